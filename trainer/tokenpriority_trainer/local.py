"""Frozen copies of models beside the student, for methods that a scoring server's numbers do not suffice for.

Knows a frozen reference, a second frozen model (the base) and the student as it was some steps ago, and what each says
of a batch. Knows nothing of methods.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.sharding import read_by_all

REFRESH = 8
"""Optimiser steps from one snapshot of the student to the next: PSFT's batch of 64 in mini-batches of 8."""


class FrozenCopies:
    """Models that are read and never trained: in evaluation mode, without gradient, on the student's device, in its
    dtype.

    `reference` and `base` are folders, hub names or models. Raises ConfigError if one cannot be loaded, has another
    vocabulary than the student, comes with a tokenizer that differs from the student's, or has weights of 0 alone.
    """

    def __init__(self, *, reference: Any = None, base: Any = None, refresh: int = REFRESH) -> None:
        if refresh < 1:
            raise ConfigError(f"priorities.local.refresh: must be at least 1, got {refresh}")
        given = {"reference": reference, "base": base}
        self._given = {role: model for role, model in given.items() if model is not None}
        self._models: dict[str, Any] = {}
        self._refresh = refresh
        self._taken = False

    @property
    def roles(self) -> frozenset[str]:
        """The frozen roles there are copies for; `old` is the student's own and always possible."""
        return frozenset(self._given)

    def load(self, roles: Iterable[str], student: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make the copies of these roles ready; `student` is the model before anything wraps it."""
        parameter = next(student.parameters())
        for role in roles:
            model = _snapshot(student) if role == "old" else _loaded(role, self._given[role], student, tokenizer)
            mine, its = _vocabulary(student), _vocabulary(model)
            if mine != its:
                raise ConfigError(
                    f"priorities.local.{role}: its vocabulary has {its} entries, the student's {mine}: must be equal"
                )
            self._models[role] = model.to(device=parameter.device, dtype=parameter.dtype).eval().requires_grad_(False)

    def begin_step(self, step: int, student: Any) -> None:
        """Take the snapshot anew if optimiser step `step` (from 0) begins a window of `refresh`.

        Raises ConfigError if the run is resumed within a window: the snapshot it began with is not in a checkpoint.
        """
        if "old" not in self._models:
            return
        old = self._models["old"]
        if step % self._refresh == 0:
            with torch.no_grad():
                for mine, live in zip(old.parameters(), student.parameters(), strict=True):
                    mine.copy_(live)
            self._taken = True
        elif not self._taken:
            raise ConfigError(
                f"priorities.local.refresh: a resumed run must begin at a multiple of {self._refresh} steps, where the "
                f"snapshot is taken anew, got step {step}; set save_steps to a multiple"
            )

    @torch.no_grad()
    def logits(self, role: str, batch: Mapping[str, Any]) -> Tensor:
        """(R, C, V) of the batch without its labels."""
        model = self._models[role]
        device = next(iter(batch.values())).device
        if next(model.parameters()).device != device:
            model.to(device)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        found: Tensor = model(**inputs, use_cache=False).logits
        return found


def _loaded(role: str, given: Any, student: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The model, and a ConfigError if it is the student or its own tokenizer is not the student's."""
    if given is student:
        raise ConfigError(f"priorities.local.{role}: is the student itself, which does not stay as it is; give a copy")
    if not isinstance(given, str):
        if not any(bool(parameter.any()) for parameter in given.parameters()):
            raise ConfigError(
                f"priorities.local.{role}: its weights are all 0, as they are on all processes but the first under "
                "FSDP's cpu_ram_efficient_loading; give its path, not the model"
            )
        return given
    attention = student.config._attn_implementation
    try:
        with read_by_all():
            model = AutoModelForCausalLM.from_pretrained(given, attn_implementation=attention, trust_remote_code=False)
        its = AutoTokenizer.from_pretrained(given, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ConfigError(f"priorities.local.{role}: no model with its tokenizer at {given!r}: {reason}") from None
    if its.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"priorities.local.{role}: the tokenizer of {given!r} is not the student's: a local copy must share it"
        )
    return model


def _snapshot(student: Any) -> Any:
    """A copy of the student with the forward of its own class: TRL's patched one would call the student's."""
    made = copy.deepcopy(student)
    inner = made.get_base_model() if hasattr(made, "get_base_model") else made
    inner.__dict__.pop("forward", None)
    return made


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)
