"""The only files of this room that know Flower."""
