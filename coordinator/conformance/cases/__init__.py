"""The cases, grouped by subject; each is a name, what is sent, and the answer that must come."""
