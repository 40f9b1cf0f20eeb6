"""What decides the numbers of a run: its settings, its models and its data, field by field.

Knows which settings change the weights a run ends with, under the names they have in the configuration file, and what
is said where they have changed. Knows nothing of checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from trl import SFTConfig

from tokenpriority_trainer.config import Config
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.loading import load_rows

_LOG = logging.getLogger(__name__)

ELSEWHERE = {"url", "api_key_env", "depth", "store", "patience", "calibration"}
"""Keys of `[priorities]` that say where, how early or how patiently weights are fetched; a calibration's content is its
method's parameters, and the models it holds for are among the fingerprints."""

TRAINING = (
    "seed",
    "data_seed",
    "world_size",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "neftune_noise_alpha",
    "bf16",
    "fp16",
    "max_length",
    "truncation_mode",
    "packing",
    "packing_strategy",
    "padding_free",
    "pad_to_multiple_of",
    "completion_only_loss",
    "assistant_only_loss",
    "dataset_text_field",
    "chat_template_path",
    "eos_token",
    "pad_token",
    "shuffle_dataset",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "router_aux_loss_coef",
)
"""Arguments of SFTConfig that change the weights a run ends with, or which examples it reads in which order."""


def identity(
    config: Config, args: SFTConfig, fingerprints: Mapping[str, str], composition: list[str]
) -> dict[str, Any]:
    """Every field and its value, as JSON has it; a field that is not set is left out.

    `composition` is `Weighting.steps`: its entries become fields by what stands before their colon. Data files count by
    their content, not their name.
    """
    sections = config.model_dump(mode="json", exclude={"priorities": ELSEWHERE, "data": True, "training": True})
    if config.guard.action == "stop":
        del sections["guard"]  # it ends a run or changes nothing
    known = {
        **sections,
        "composition": by_name(composition),
        "fingerprints": dict(fingerprints),
        "data": {key: _content(key, name) for key, name in config.data.model_dump(exclude={"eval"}).items()},
        "training": {name: _plain(getattr(args, name)) for name in TRAINING},
    }
    return fields(known)


def by_name(composition: Iterable[str]) -> dict[str, str]:
    """The entries of `Weighting.steps`, each by what stands before its colon."""
    steps = (step.partition(": ") for step in composition)
    return {name: value for name, _, value in steps}


def fields(known: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of nested mappings by its dotted name, as JSON has it; None is left out."""
    found: dict[str, Any] = json.loads(json.dumps(dict(_flat("", known))))
    return found


def check_same(
    saved: Mapping[str, Any],
    present: Mapping[str, Any],
    *,
    at: str,
    allowed: bool,
    main: bool,
    resume: str = "--resume",
    allow: str = "--allow-changes",
) -> None:
    """Raises ConfigError naming the first field that has changed since it was saved; a warning if `allowed`.

    `at` says where it was saved, `resume` and `allow` what asks to go on, and to go on all the same.
    """
    changed = [f"{field}: was {then} at {at}, is {now}" for field, (then, now) in differences(saved, present).items()]
    if changed and not allowed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ConfigError(f"{resume}: {changed[0]}{more}; {allow} goes on all the same")
    for line in changed if main else []:
        _LOG.warning("%s: %s", allow, line)


def differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The fields that differ, each with its saved and its present value in words."""
    names = dict.fromkeys([*present, *saved])
    found = {name: (saved.get(name), present.get(name)) for name in names}
    return {name: (_said(then), _said(now)) for name, (then, now) in found.items() if then != now}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), each)
    elif value is not None:
        yield prefix, value


def _content(key: str, name: Any) -> Any:
    """A digest of a file's bytes; of a dataset of the hub its name and what `datasets` knows it by."""
    if not isinstance(name, str):
        return name
    if Path(name).is_file():
        with Path(name).open("rb") as file:
            return f"blake2b {hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()}"
    return f"{name} {load_rows(key, name)._fingerprint}"


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _said(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)
