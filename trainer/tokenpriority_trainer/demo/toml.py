"""Configuration files, written.

Knows as much TOML as the server's and the trainer's files need: tables of strings, numbers, booleans, lists and
inline tables of those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_toml(path: Path, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Write tables by their dotted names, each a mapping of keys to values."""
    lines: list[str] = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items()), ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    # A basic string is a JSON string, but for surrogate pairs.
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
