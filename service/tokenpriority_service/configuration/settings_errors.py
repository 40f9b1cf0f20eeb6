"""A mistake in the configuration, told in one line: key, what is wrong, value.

Knows pydantic's errors. Never prints what may be a secret: a team's key pasted in place of its hash, an API key in
place of its variable's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from tokenpriority_service.configuration.settings_models import MODELS


class InvalidSettings(Exception):
    """The configuration cannot be used; the message is one line naming the key, its value and the limit."""


def explain(error: ValidationError) -> str:
    """The first mistake, and how many more there are."""
    first = error.errors()[0]
    key, what = _told(first["type"], list(first["loc"]), first)
    shown = first["type"] not in ("missing", "value_error") and not _secret(first["loc"], first["type"])
    got = f", got {first['input']!r}" if shown else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{key}: {what}{got}{more}" if key else f"{what}{more}"


def _told(kind: str, place: list[str | int], error: Any) -> tuple[str, str]:
    """The key and what is wrong with it."""
    engine = None
    if place[:1] == ["models"] and len(place) > 2:
        engine = str(place.pop(2))  # pydantic names the chosen class here
    if kind == "union_tag_not_found":
        what = "must be a table"
    elif kind == "union_tag_invalid":
        place.append("engine")
        error["input"] = error["input"]["engine"]
        what = f"must be one of {', '.join(map(repr, MODELS))}"
    elif kind == "extra_forbidden" and engine is not None and len(place) == 3:
        what = f'not a setting of engine "{engine}"; its settings are {", ".join(MODELS[engine].model_fields)}'
    else:
        kinds = {"extra_forbidden": "unknown key", "missing": "is required"}
        what = kinds.get(kind, error["msg"].removeprefix("Value error, "))
    return ".".join(map(str, place)), what


def _secret(place: Sequence[str | int], kind: str) -> bool:
    """Whether a key may stand where the mistake is."""
    of_model = place[:1] == ("models",) and (kind == "extra_forbidden" or "api_key_env" in place)
    return place[:1] == ("teams",) or of_model
