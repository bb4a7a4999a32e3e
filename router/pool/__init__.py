"""Experts in memory, and how they are told apart: pages, groups, gates, calibration; imports `base`."""
