"""An address in the configuration: of HTTP, and without a secret in it, since it is shown and logged.

Knows what a URL is made of. Knows nothing of what answers there.
"""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit


def check_url(url: str, instead: str) -> str:
    """The URL as it is. Raises ValueError, which says what to do `instead` of writing a password, and never quotes: one
    may stand in it.
    """
    if "@" in url:  # wherever: a password with a slash in it ends the address before its @
        raise ValueError(f"a URL must hold no user or password; {instead}")
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be http://HOST[:PORT] or https://HOST[:PORT], with no query")
    return url


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # its message quotes
        return None
    return parts
