"""The one-command federation: a small base model, the world of words it lives in, and six contributors."""
