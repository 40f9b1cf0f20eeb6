"""The compose files of docker/, read as Compose reads them, as far as they use it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).parents[2] / "docker"
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def load(name: str) -> Any:
    """A YAML file of docker/, anchors and merges resolved, variables not."""
    return yaml.safe_load((DOCKER / name).read_text())


def substituted(value: Any, given: dict[str, str]) -> Any:
    """`value` with its variables put in: the given one, else its default; one that is required must be given."""
    if isinstance(value, dict):
        return {key: substituted(each, given) for key, each in value.items()}
    if isinstance(value, list):
        return [substituted(each, given) for each in value]
    if not isinstance(value, str):
        return value

    def put(match: re.Match[str]) -> str:
        name, kind, rest = match["name"], match["kind"], match["rest"]
        if given.get(name):
            return given[name]
        assert kind == "-", f"{name} is required: {rest}"
        return str(rest)

    return VARIABLE.sub(put, value)


def example() -> dict[str, str]:
    """The variables of .env.example; those commented out too."""
    lines = re.findall(r"^#?([A-Z_]+)=(.*)$", (DOCKER / ".env.example").read_text(), re.MULTILINE)
    return dict(lines)
