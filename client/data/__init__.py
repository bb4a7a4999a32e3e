"""Private files as training examples."""
