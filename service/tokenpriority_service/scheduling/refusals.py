"""Why a request is refused for want of room: on the wire 429 or 503, in the metrics each by its own name.

Knows the reasons. Knows nothing of what is counted or who counts.
"""

from __future__ import annotations

from typing import ClassVar

from tokenpriority.errors import Overloaded, Unavailable
from tokenpriority_service.telemetry.metrics import Reason


class RateExceeded(Overloaded):
    """The team has used its tokens of this minute."""

    reason: ClassVar[Reason] = "tokens_per_minute"


class ConcurrencyExceeded(Overloaded):
    """The team has as many tokens in flight as it may."""

    reason: ClassVar[Reason] = "concurrent_tokens"


class ShareExceeded(Overloaded):
    """The team would hold more of the queue than it leaves free for others."""

    reason: ClassVar[Reason] = "share"


class ServerFull(Unavailable):
    """The queue has no room for anybody."""

    reason: ClassVar[Reason] = "server_full"


REFUSALS = (RateExceeded, ConcurrencyExceeded, ShareExceeded, ServerFull)
