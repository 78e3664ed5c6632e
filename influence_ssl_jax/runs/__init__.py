"""Pretrain, import, score, audit and compare, each into a folder that can be resumed."""
