"""tokenpriority: reference log-probabilities and signed token priorities from a shared scoring server."""
