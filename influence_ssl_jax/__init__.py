"""Influence functions for self-supervised learning, with an exact reference beside each approximation."""
