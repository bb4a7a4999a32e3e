"""The coordinator's half of the federation: nodes, campaigns, candidates. Only `link` and `flower` know Flower."""
