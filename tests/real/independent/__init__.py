"""Two methods of the bench worked out again by code that shares nothing with the product; see `__main__`."""
