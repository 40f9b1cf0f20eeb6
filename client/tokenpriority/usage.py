"""The question of GET /v1/usage: which hours, of which team and model.

Knows how a moment becomes seconds and a filter a query. Knows nothing of what was used.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import TypeAlias
from urllib.parse import urlencode

Moment: TypeAlias = datetime | float
"""A time of day with its zone, or seconds since the epoch."""


def usage_path(since: Moment | None, until: Moment | None, model: str | None, team: str | None) -> str:
    """The path with its query, in whole seconds that let in no other hours than the moments do.

    Raises ValueError if a moment has no time zone or is not finite.
    """
    given = {
        "since": None if since is None else math.floor(_seconds(since, "since")),
        "until": None if until is None else math.ceil(_seconds(until, "until")),
        "model": model,
        "team": team,
    }
    query = urlencode({name: value for name, value in given.items() if value is not None})
    return "/v1/usage" + (f"?{query}" if query else "")


def _seconds(moment: Moment, name: str) -> float:
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise ValueError(f"{name}: needs a time zone, such as datetime.now(UTC), got {moment}")
        moment = moment.timestamp()
    if not math.isfinite(moment):
        raise ValueError(f"{name}: must be finite, got {moment}")
    return moment
