"""Doors: what a person types and what is printed; no other code prints, and none imports these."""
