"""Attacks on a pool, one small script each, kept for ever: `make attacks` plays them against the real coordinator."""
