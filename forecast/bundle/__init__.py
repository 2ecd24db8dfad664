"""Bundles: a version of a model that scores without torch."""
