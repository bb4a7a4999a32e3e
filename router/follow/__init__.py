"""Releases from a coordinator, fetched, checked and kept in a router's folder; imports `layer` and below."""
