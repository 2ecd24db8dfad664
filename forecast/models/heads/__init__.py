"""Output heads: the distributions that the network's parameters describe.

A file for each family of distributions; `factory` builds the head that `model.head` names.
"""
