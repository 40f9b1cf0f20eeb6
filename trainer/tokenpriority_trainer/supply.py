"""Where a configured run's weights come from: a server, with or without a store, a store alone, or neither.

Knows the settings, `--offline`, and what is checked before the model is loaded. How a source gets its weights is in
`source.py`, when a server is needed at all in `origin.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from transformers import PreTrainedTokenizerBase

from tokenpriority import Calibration, Client
from tokenpriority.schema import ServiceClass
from tokenpriority_trainer.calibrated import check_models
from tokenpriority_trainer.config import Config, PrioritiesSection
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.loading import load_rows
from tokenpriority_trainer.origin import needs_server, reads_server, static, without_server
from tokenpriority_trainer.preflight import check_server
from tokenpriority_trainer.source import PrioritySource, ServerSource, StoredSource
from tokenpriority_trainer.store import Store
from tokenpriority_trainer.weighting import Weighting

Supply = tuple[PrioritySource, dict[str, str]]
"""A source, and the fingerprint of each model its weights are of, by its name on the server."""


@contextmanager
def supply(
    config: Config,
    weighting: Weighting,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    *,
    calibration: Calibration | None = None,
    offline: bool = False,
    service_class: ServiceClass = "interactive",
) -> Iterator[Supply]:
    """The run's source, open as long as the context is. With `offline` no server is asked for anything.

    `service_class` says who waits for its answers: a training in progress, or only a store that is being filled.

    Raises ConfigError, or the client's errors, if the settings do not go together, the server or the store cannot
    answer for this student and method, or their models are not those of the calibration.
    """
    settings = asked(config.priorities, weighting)
    needed = needs_server(weighting, _copied(settings))
    _check_settings(settings, weighting, needed=needed, offline=offline)
    with ExitStack() as stack:
        if needed and offline:
            source, fingerprints = _stored(settings, stack)
        elif needed and settings.url is not None:
            source, fingerprints = _served(settings, tokenizer, max_length, service_class, stack)
        else:
            columns = load_rows("train", config.data.train).column_names
            source, fingerprints = without_server(settings.method, settings.params, columns), {}
        if calibration is not None and fingerprints:
            check_models(calibration, fingerprints)
        yield source, fingerprints


def asked(settings: PrioritiesSection, weighting: Weighting) -> PrioritiesSection:
    """The settings as the source of static weights sees them."""
    method, params = static(settings.method, settings.params, weighting)
    return settings.model_copy(update={"method": method, "params": params})


def _check_settings(settings: PrioritiesSection, weighting: Weighting, *, needed: bool, offline: bool) -> None:
    """Raises ConfigError for a store or projected scores where there can be none."""
    if offline and settings.store is None:
        raise ConfigError("--offline: needs priorities.store, the file of weights that --fetch fills")
    if needed and settings.store is not None and settings.url is None and not offline:
        raise ConfigError("priorities.store: keeps the answers of a server; set priorities.url, or train --offline")
    if settings.url is not None and settings.tokenizers == "project" and reads_server(weighting, _copied(settings)):
        part, name = next((part, each.method.name) for part, each in weighting.live if "reference" in each.roles)
        raise ConfigError(
            f"priorities.tokenizers: 'project' does not go with {part} {name!r}, which reads the log-probs of the "
            "server's reference: a projected token may have none; use a reference of the student's tokenizer"
        )


def _copied(settings: PrioritiesSection) -> set[str]:
    """The roles of which a copy stands beside the student."""
    local = settings.local
    return set() if local is None else {role for role in ("reference", "base") if getattr(local, role) is not None}


def _served(
    settings: PrioritiesSection,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    service_class: ServiceClass,
    stack: ExitStack,
) -> Supply:
    assert settings.url is not None
    try:
        client = Client(
            settings.url,
            api_key=settings.api_key(),
            model=settings.model,
            max_outage=settings.patience,
            service_class=service_class,
        )
    except ValueError as error:
        raise ConfigError(f"priorities.{error}") from None
    stack.enter_context(client)
    fingerprints = check_server(client, settings, tokenizer, max_length)
    client.pin(fingerprints)
    source = ServerSource(
        client,
        settings.method,
        settings.params,
        model=settings.model,
        depth=settings.depth,
        tokenizer=tokenizer if settings.tokenizers == "project" else None,
        store=settings.store,
    )
    if source.store is not None:
        stack.enter_context(closing(source.store))
    return source, fingerprints


def _stored(settings: PrioritiesSection, stack: ExitStack) -> Supply:
    assert settings.store is not None
    store = stack.enter_context(closing(Store.open(settings.store)))
    store.check(store.provenance.asking(settings.model, settings.method, settings.params))
    return StoredSource(store), store.provenance.fingerprints
