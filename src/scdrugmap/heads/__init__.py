"""Classifiers on an embedding, and the one way to fit them."""
