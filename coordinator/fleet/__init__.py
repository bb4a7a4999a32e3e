"""The coordinator's half of the federation: nodes, campaigns, candidates.

Only `flower`, `simulation` and `calibration.aggregation` know Flower.
"""
