"""One-line faults that the tests must catch: `make mutants`."""
