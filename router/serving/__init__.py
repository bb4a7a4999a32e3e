"""A routed model that answers others; imports `model` and below."""
