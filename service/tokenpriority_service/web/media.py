"""Which of the two formats a request is in and which one its answer takes.

Knows the headers Content-Type and Accept. Knows nothing of bodies.
"""

from __future__ import annotations

from tokenpriority import wire
from tokenpriority.errors import InvalidRequest

OFFERED = (wire.JSON, wire.MSGPACK)
_EITHER = " or ".join(OFFERED)


def body_type(content_type: str | None, content_encoding: str | None = None) -> str:
    """The format of a body by its headers. Raises InvalidRequest if it is missing or another."""
    if content_encoding not in (None, "", "identity"):
        raise InvalidRequest(f"Content-Encoding: must be absent or identity, got {content_encoding!r}")
    if content_type is None:
        raise InvalidRequest(f"Content-Type: must be {_EITHER}, got none")
    name = content_type.split(";")[0].strip().lower()
    if name not in OFFERED:
        raise InvalidRequest(f"Content-Type: must be {_EITHER}, got {content_type!r}")
    return name


def answer_type(accept: str | None, default: str = wire.JSON) -> str:
    """The format the client likes best; `default` where it has no preference.

    Raises InvalidRequest if it takes neither. The most specific range that names a format decides its quality
    (RFC 9110, 12.5.1).
    """
    if accept is None or not accept.strip():
        return default
    ranges = dict(_range(part) for part in accept.split(","))
    quality = {
        offer: next((ranges[r] for r in (offer, "application/*", "*/*") if r in ranges), 0.0) for offer in OFFERED
    }
    best = max(OFFERED, key=lambda offer: (quality[offer], offer == default))
    if quality[best] == 0.0:
        raise InvalidRequest(f"Accept: must allow {_EITHER}, got {accept!r}")
    return best


def _range(part: str) -> tuple[str, float]:
    name, *params = (piece.strip().lower() for piece in part.split(";"))
    for param in params:
        key, _, value = param.partition("=")
        if key.strip() == "q":
            try:
                return name, min(max(float(value), 0.0), 1.0)
            except ValueError:
                raise InvalidRequest(f"Accept: q must be a number from 0 to 1, got {value!r}") from None
    return name, 1.0
