"""Closed forms of Influence-SSL, and every statement about them with its verdict and its checks."""
