"""Routing parameters, averaged over nodes."""
