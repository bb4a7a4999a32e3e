"""The memory and the decisions: admits, registers, releases. The only home of rows.

Only `coordinator.review`, `coordinator.fleet` and the founding of a pool load a model. Floors, from the top: cli;
review, serving; fleet; workspace; admission, registry, storage; policy.
"""
