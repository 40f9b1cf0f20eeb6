"""Whether a server can score for this student, found out before anything heavy is loaded.

Knows what the server says of its models and compares it with the student's tokenizer. Knows nothing of the model's
weights, which may differ.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tokenpriority import Client, Source
from tokenpriority.errors import ConnectionFailed, Unavailable
from tokenpriority.schema import ModelInfo
from tokenpriority_trainer.config import PrioritiesSection
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.store import models_read
from tokenpriority_trainer.surfaces import Surfaces

PROBE = "def f(x: int) -> str:\n\treturn f'{x / 1_0.5:>8}'  # na\u00efve \u65e5\u672c\u8a9e \U0001f642\r\n\n  A != b"
"""Words, numbers, white space and scripts on which two tokenizers hardly ever agree by chance."""

_OTHERWISE = (
    'the token ids of one would mean nothing to the other; priorities.tokenizers = "project" sends text instead and '
    "projects the scores"
)

POLL_SECONDS = 0.5

LOADING_SECONDS = 3600.0
"""How long a script waits for a server that is loading, as a client does for one answer."""


def check_server(
    client: Client, settings: PrioritiesSection, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> dict[str, str]:
    """Fingerprint of each model the method will read, by its name on the server.

    Waits for models that are loading; those that the run does not use may be in any state. Raises ConfigError if the
    server does not answer or lacks a model; where tokenizers must be the same, if a model takes shorter sequences than
    `max_length`, has fewer tokens than the student's tokenizer or tokenises otherwise; where scores are projected, if
    a model has no tokenizer, the student's is not a fast one, or the method's models tokenise differently. Raises
    Unavailable if a model failed to load, or loads for longer than `patience`; the client's errors if it refuses the
    method.
    """
    used = models_read(settings.model, settings.method, settings.params)
    known = wait_for_models(settings, used)
    if settings.tokenizers == "project":
        probe: Any = PROBE
        Surfaces(tokenizer)  # refuses a tokenizer that is not a fast one
        _check_projection(client, [known[name] for name in used])
    else:
        _check_models(client, [known[name] for name in used], tokenizer, max_length)
        probe = {"token_ids": tokenizer(PROBE)["input_ids"]}
    client.score([probe], method=settings.method, params=settings.params, model=settings.model)
    return {name: known[name].fingerprint for name in used}


def check_source(source: Source, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Wait until the server has loaded the models it will be asked about.

    Raises ConfigError if it lacks one or, given the student's tokenizer, one of them has fewer tokens than that or
    tokenises otherwise; the client's errors if a model failed to load or the server does not answer. What the server
    itself would refuse, such as sequences that are too long, is left to it.
    """
    used = models_read(source.model, source.method, source.params)
    known = {info.name: info for info in source.client.models()}
    for name in used:
        if name not in known:
            raise _unknown(name, known)
    if not all(known[name].ready for name in used):
        source.client.wait_until_ready(LOADING_SECONDS, used)
        known = {info.name: info for info in source.client.models()}
    if tokenizer is not None:
        _check_models(source.client, [known[name] for name in used], tokenizer, None)


def wait_for_models(settings: PrioritiesSection, names: list[str]) -> dict[str, ModelInfo]:
    """What the server says of these models once all are ready, by name; raises as `check_server` does.

    A line on stderr says that it waits.
    """
    assert settings.url is not None
    end = time.monotonic() + settings.patience
    said = False
    # One attempt per question: a wrong address is told at once, not after the retries that suit a long run.
    with closing(Client(settings.url, api_key=settings.api_key(), retries=0)) as client:
        while True:
            known = _listed(client, settings, names)
            which = ", ".join(repr(name) for name, info in known.items() if not info.ready)
            if not which:
                return known
            if time.monotonic() >= end:
                raise Unavailable(
                    f"priorities: the server is still loading {which} after {settings.patience:g} seconds"
                )
            if not said:
                print(f"waiting for {settings.url} to load {which}", file=sys.stderr, flush=True)
                said = True
            time.sleep(POLL_SECONDS)


def _listed(client: Client, settings: PrioritiesSection, names: list[str]) -> dict[str, ModelInfo]:
    """What the server says of these models now. Raises ConfigError if it lacks one, Unavailable if one has failed."""
    try:
        known = {info.name: info for info in client.models()}
    except ConnectionFailed as error:
        raise ConfigError(f"priorities.url: no server at {settings.url} answers: {error}") from None
    for name in names:
        if name not in known:
            raise _unknown(name, known)
        failure = known[name].error
        if failure is not None:
            raise Unavailable(f"priorities: the server's model {name!r} failed to load: {' '.join(failure.split())}")
    return {name: known[name] for name in names}


def _unknown(name: str, known: Iterable[str]) -> ConfigError:
    return ConfigError(f"priorities: the server has no model {name!r}; it has {', '.join(known)}")


def _check_models(
    client: Client, models: list[ModelInfo], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> None:
    for info in models:
        _check_model(info, tokenizer, max_length)
        if info.tokenizer:
            _check_tokens(client, info.name, tokenizer)


def _check_model(info: ModelInfo, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
    if len(tokenizer) > info.vocab_size:
        raise ConfigError(
            f"the student's tokenizer has {len(tokenizer)} tokens, the server's model {info.name!r} only "
            f"{info.vocab_size}: {_OTHERWISE}"
        )
    if max_length is not None and max_length > info.max_model_len:
        raise ConfigError(
            f"training.max_length: the server's model {info.name!r} takes at most {info.max_model_len} tokens, "
            f"got {max_length}"
        )


def _check_tokens(client: Client, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    mine = list(tokenizer(PROBE)["input_ids"])
    theirs = client.score([PROBE], model=name)[0].token_ids.tolist()
    if mine != theirs:
        raise ConfigError(
            f"the server's model {name!r} tokenises a probe text into other tokens than the student's tokenizer "
            f"({len(theirs)} and {len(mine)} tokens): {_OTHERWISE}"
        )


def _check_projection(client: Client, models: list[ModelInfo]) -> None:
    """The first model tokenises and says which characters its tokens stand for; the others read those tokens."""
    for info in models:
        if not info.tokenizer:
            raise ConfigError(f"priorities.tokenizers: 'project' needs a tokenizer, which model {info.name!r} has not")
    first, *others = [(info.name, client.score([PROBE], model=info.name, offsets=True)[0]) for info in models]
    if first[1].text != PROBE:
        raise ConfigError(f"priorities.tokenizers: the server's model {first[0]!r} changes the text it tokenises")
    for name, scores in others:
        if not np.array_equal(scores.token_ids, first[1].token_ids):
            raise ConfigError(
                f"priorities: the server's models {first[0]!r} and {name!r} tokenise a probe text differently, but the "
                "method reads both"
            )
