"""Choosing experts for a token and adding what they say, on the CPU and on the GPU; imports `pool` and `base`."""
