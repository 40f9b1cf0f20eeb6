"""Where a run's static weights come from: the server, a column, or neither.

Knows when a server is needed at all: for weights that are not made in the forward pass, or for a reference that a live
method reads and no copy stands beside the student. Knows nothing of how a source gets its weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tokenpriority import Source
from tokenpriority_trainer.collator import PRIORITIES
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.source import ColumnSource, LocalSource, PrioritySource, ServerSource
from tokenpriority_trainer.weighting import Weighting

Asked = tuple[str, Mapping[str, Any]]
"""A method and its parameters."""


def origin(
    given: PrioritySource | Source | None,
    weighting: Weighting | None,
    columns: Collection[str],
    copied: Collection[str],
) -> tuple[PrioritySource, Weighting]:
    """The source and the weighting of a trainer that was given these, or not.

    `columns` are the dataset's, `copied` the roles of which a copy stands beside the student. Without a weighting the
    method that makes the weights brings its own; without a source the dataset's column is read. Raises ConfigError if
    there is none, or if the forward pass makes another method's weights than the source does.
    """
    if isinstance(given, Source):
        return _asked_of_server(given, weighting or Weighting.of(given.method, given.params), columns, copied)
    rule = weighting or _own(given)
    if given is None and PRIORITIES not in columns and rule.method is None:
        raise ConfigError(
            f"priorities: not given, and the train dataset has no column {PRIORITIES!r}; give client.source(...), or "
            "LocalSource() for weight 1 on every token"
        )
    return without_server("uniform", {}, columns) if given is None else given, rule


def _own(given: PrioritySource | None) -> Weighting:
    """The weighting of the method that a source's weights are made by."""
    made_by: Asked | None = getattr(given, "made_by", None)
    if made_by is None:
        return Weighting()
    rule = Weighting.of(*made_by)
    if rule.method is not None:
        name = rule.method.method.name
        raise ConfigError(
            f"priorities: {name!r} is computed in the forward pass; give client.source({name!r}, ...), or "
            f"LocalSource() and weighting=Weighting.of({name!r}, ...)"
        )
    return rule


def static(method: str, params: Mapping[str, Any], weighting: Weighting) -> Asked:
    """What static weights are made by: 1 throughout where the method itself is computed in the forward pass."""
    return (method, params) if weighting.method is None else ("uniform", {})


def needs_server(weighting: Weighting, copied: Collection[str]) -> bool:
    """Whether anything is asked of a server that is there: static weights, or the log-probs of its reference."""
    return weighting.method is None or reads_server(weighting, copied)


def reads_server(weighting: Weighting, copied: Collection[str]) -> bool:
    """Whether live parts read the log-probs of a server's reference."""
    return "reference" in weighting.roles and "reference" not in copied


def without_server(method: str, params: Mapping[str, Any], columns: Collection[str]) -> PrioritySource:
    """The dataset's column, else a method that reads no model. Raises ConfigError if it reads one."""
    return ColumnSource() if PRIORITIES in columns else LocalSource(method, params)


def _asked_of_server(
    source: Source, weighting: Weighting, columns: Collection[str], copied: Collection[str]
) -> tuple[PrioritySource, Weighting]:
    live = weighting.method
    if live is not None and live.method.name != source.method:
        raise ConfigError(
            f"weighting: {live.method.name!r} is computed in the forward pass, but priorities asks for "
            f"{source.method!r}; give weighting=Weighting.of({source.method!r}, ...)"
        )
    method, params = static(source.method, source.params, weighting)
    if not needs_server(weighting, copied):
        return without_server(method, params, columns), weighting
    return ServerSource(source.client, method, params, model=source.model, depth=source.depth), weighting
