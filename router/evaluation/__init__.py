"""A release on somebody's own tasks: rows, what is right, every method, the table; imports `model` and below."""
