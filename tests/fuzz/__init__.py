"""Looks for bytes that a parser neither reads nor refuses, led by which lines they reach (atheris)."""
