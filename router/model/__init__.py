"""A base model with all experts of a release, the routed model; imports `follow`, `methods` and below."""
