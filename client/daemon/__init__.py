"""The daemon beside the data: answers campaigns within its contributor's policy; `app` and `tasks` know Flower."""
