"""Weighted supervised fine-tuning on TRL, with priorities from the scoring server."""
