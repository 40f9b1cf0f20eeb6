"""The scoring server: HTTP, engines, admission, score store."""
