"""Routing methods: one small file each, a line here and an entry in the registry."""

METHODS = {
    "phatgoose": "The gates choose the top-k experts for every token at every module (arXiv 2402.05859).",
    "expert:NAME": "One expert for everything, by its name or as contributor/name.",
    "merged": "The mean of all experts' outer products B A (arXiv 2402.05859, section 4.2).",
    "base": "The base model alone.",
}
"""One line for each method, as people write it."""
