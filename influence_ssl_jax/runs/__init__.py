"""Pretrain, import, score, audit and compare, each in a resumable folder."""
