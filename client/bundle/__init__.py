"""A finished expert as a signed bundle."""
