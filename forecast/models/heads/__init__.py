"""Output heads: what the network's numbers mean.

A file for each family of distributions; `factory` makes the one that `model.head` names.
"""
