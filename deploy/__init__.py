"""Ways to run Greylag; not part of the distribution."""
