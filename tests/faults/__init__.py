"""Plays a pool's worst days: programs killed at random moments, and fifty bad peers beside ten honest ones."""
