"""Kernels under Triton's interpreter; collected by `tests/router/layer/test_kernels.py` in a process of its own."""
