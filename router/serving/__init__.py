"""A routed model that answers others."""
