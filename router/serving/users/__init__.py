"""Who may ask a router over HTTP: keys, of which digests are kept, and how much each may ask."""
