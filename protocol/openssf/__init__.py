"""Signatures that others verify, who know nothing of pools."""
