"""A contributor's folder: paths, settings, keys."""
