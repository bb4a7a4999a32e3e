"""Pure rules: who may, what comes next, and when a candidate is good enough."""
