"""Releases from a coordinator: fetched, checked, and taken up as they appear."""
