"""Runs: pretrain, score, audit and compare into a folder, resumable, from plain settings."""
