"""`make bench-real`: routing methods on a pre-trained base and real tasks; see `tests.real.bench.__main__`."""
