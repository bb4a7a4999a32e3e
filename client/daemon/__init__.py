"""The daemon beside the data: answers campaigns within its contributor's policy; `app`, `node`, `tasks` know Flower."""
