"""Beside the private data: the only home of examples and of contributors' keys.

Data enters through `data.py` and stays; what leaves goes through `pack.py` and `upload.py`, which
never import it.
"""
