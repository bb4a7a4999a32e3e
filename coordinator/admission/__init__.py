"""Rules that a bundle must pass before the model sees it: its envelope, its bytes, its content."""
