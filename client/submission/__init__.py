"""The one way out: bundles to the coordinator, and what became of them."""
