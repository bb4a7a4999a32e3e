"""The model: the only home of activations.

Shapes in docstrings use one set of letters: b batch, s tokens of a sequence, t tokens of a whole
batch (b * s), d d_in of a module, o d_out, r rank, n experts, k chosen experts.
"""
