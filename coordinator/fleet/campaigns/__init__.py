"""Campaigns from their start to what follows from them."""
