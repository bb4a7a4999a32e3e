"""Doors: what a contributor types, and what is printed."""
