"""The daemon beside the data: answers campaigns within its contributor's policy.

Only `app`, `supernode` and `task_loop` know Flower.
"""
