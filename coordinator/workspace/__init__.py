"""An operator's folder: paths, settings, locks, founding, checks."""
