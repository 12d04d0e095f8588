"""Adapters: their files, what they change, and the weights that they are merged into."""
