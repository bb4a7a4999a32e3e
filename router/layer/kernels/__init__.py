"""Triton kernels of the routed layer, the only importers of Triton.

What each computes is said beside it, how they are launched in `launch`.

A kernel finds gates and factors through tables of addresses (`router.pool.device_table`), so it reads experts where the
pool put them. It reads how many rows there are from device memory, so grids depend on capacities alone: the
host never waits for the device, and a CUDA graph that was captured before an expert came serves it, too.

Half-precision operands meet tensor cores as they are; everything is summed in float32. Triton's interpreter has
no arithmetic on bfloat16, therefore the flag UP widens operands there.
"""
