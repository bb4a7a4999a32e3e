"""Bytes by digest, and where they wait until they are whole."""
