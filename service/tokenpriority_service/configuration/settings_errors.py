"""A mistake in the configuration, told in one line: key, what is wrong, value.

Knows pydantic's errors. Never prints what may be a secret: a database's URL, a team's key pasted in place of its hash,
an API key in place of its variable's name, whatever stands under a key that nobody knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from tokenpriority_service.configuration.settings_models import MODELS

_TABLES = ("model_type", "dict_type", "union_tag_not_found")
"""Mistakes where a table is expected."""
_SECRETS = {"traces", "urls", "api_key_env"}
"""Settings beside those of the database and the teams that may hold a key or a password by mistake."""


class InvalidSettings(Exception):
    """The configuration cannot be used; the message is one line naming the key, its value and the limit."""


def explain(error: ValidationError) -> str:
    """The first mistake, and how many more there are."""
    first = error.errors()[0]
    key, what = _told(first["type"], list(first["loc"]), first)
    shown = first["type"] not in ("missing", "value_error") and not _secret(first["loc"], first["type"], first["input"])
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


def _secret(place: Sequence[str | int], kind: str, value: Any) -> bool:
    """Whether a key or a password may stand where the mistake is."""
    # The name of an unknown key tells what is wrong; its value may be that of any other.
    unknown = kind == "extra_forbidden"
    # Such as a URL or a key in place of the table that has a place for it.
    no_table = kind in _TABLES and isinstance(value, str | list)
    return unknown or no_table or place[:1] in (("database",), ("teams",)) or not _SECRETS.isdisjoint(place)
