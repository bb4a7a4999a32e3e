"""From examples to an expert and its gates."""
