"""Whether a server can score for this student, found out before anything heavy is loaded.

Knows what the server says of its models and compares it with the student's tokenizer. Knows nothing of the model's
weights, which may differ.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from tokenpriority import Client
from tokenpriority.methods import get_method
from tokenpriority.schema import ModelInfo
from tokenpriority_trainer.config import PrioritiesSection
from tokenpriority_trainer.errors import ConfigError

PROBE = "def f(x: int) -> str:\n\treturn f'{x / 1_0.5:>8}'  # na\u00efve \u65e5\u672c\u8a9e \U0001f642\r\n\n  A != b"
"""Words, numbers, white space and scripts on which two tokenizers hardly ever agree by chance."""


def check_server(
    client: Client, settings: PrioritiesSection, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> dict[str, str]:
    """Fingerprint of each model the method will read, by its name on the server.

    Raises ConfigError if the server does not answer, lacks a model, takes shorter sequences than `max_length`, has
    fewer tokens than the student's tokenizer or tokenises otherwise; the client's errors if it refuses the method.
    """
    if not client.ready():
        raise ConfigError(f"priorities.url: no server at {settings.url} answers with its models loaded")
    known = {info.name: info for info in client.models()}
    used = [settings.model, *_base(settings)]
    for name in used:
        if name not in known:
            raise ConfigError(f"priorities: the server has no model {name!r}; it has {', '.join(known)}")
        _check_model(known[name], tokenizer, max_length)
        if known[name].tokenizer:
            _check_tokens(client, name, tokenizer)
    ids = tokenizer(PROBE)["input_ids"]
    client.score([{"token_ids": ids}], method=settings.method, params=settings.params, model=settings.model)
    return {name: known[name].fingerprint for name in used}


def _base(settings: PrioritiesSection) -> list[str]:
    """Name of the second model the method reads, if it reads one."""
    method = get_method(settings.method)
    params: Any = method.parse(settings.params)
    return [params.base] if "base" in method.needs(params) else []


def _check_model(info: ModelInfo, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
    if len(tokenizer) > info.vocab_size:
        raise ConfigError(
            f"the student's tokenizer has {len(tokenizer)} tokens, the server's model {info.name!r} only "
            f"{info.vocab_size}: they must be of one family"
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
            f"({len(theirs)} and {len(mine)} tokens): they must be of one family"
        )
