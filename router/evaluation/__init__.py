"""A release on somebody's own tasks: rows, what is right, every method on the same rows, and the table of it."""
