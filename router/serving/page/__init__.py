"""The page at a router's door, which people ask in a browser."""
