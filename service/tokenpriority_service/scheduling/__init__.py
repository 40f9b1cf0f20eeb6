"""Whose work is next, and how much is taken."""
