"""The daemon beside the data: answers campaigns within the contributor's own policy. Only `app` and `executor` know
Flower; its SuperNode runs as a child that is told nothing of the data.
"""
