"""The configuration of a training run: one TOML file, one frozen object.

Knows the keys, their types and what must go together. Imports neither torch nor TRL, so that a mistake shows at once;
`[training]` belongs to TRL's SFTConfig and is checked against it by `training_arguments`.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tokenpriority.composition import CLIP_LIMIT, Clip, Schedule, is_clip
from tokenpriority.depth import DEPTH_LIMIT, Wanted, is_depth
from tokenpriority.methods import Denominator, Negatives
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.guard import Guard

if TYPE_CHECKING:
    from trl import SFTConfig

Kernel = Literal["auto", "trl", "chunked", "liger", "cce"]
"""Where the lm head and the loss are computed: TRL's fused head; our own, which makes loss and gradients at once; on a
GPU, Liger's or Apple's CCE. `auto` is our own where it is measured to be worth it and can be had, else TRL's."""


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
"""The types of `[training]` that are checked here, as errors name them."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class LoraSection(_Section):
    """`[model.lora]`: train low-rank adapters instead of the whole model."""

    r: int = Field(16, ge=1)
    """Rank."""
    alpha: float = Field(32, gt=0)
    """Scale; the adapter counts alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapter."""
    target_modules: list[str] | str = "all-linear"
    """Names of the adapted modules."""


class ModelSection(_Section):
    """`[model]`: the student."""

    path: str = Field(min_length=1)
    """Folder or hub name of a causal language model with its tokenizer."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory. A model trained whole is updated in it; adapters beside it in float32, but under
    ZeRO-3. `bf16 = true` under `[training]`, the default on a GPU, is mixed precision and goes with either."""
    lora: LoraSection | None = None


class DataSection(_Section):
    """`[data]`: columns `text`, `messages`, `prompt` + `completion` or `input_ids`; optional `spans`, `priorities`."""

    train: str = Field(min_length=1)
    """A .jsonl, .json or .parquet file, or `hub-name` or `hub-name:split`."""
    eval: str | None = None
    """The same, for evaluation by plain NLL."""


class LocalSection(_Section):
    """`[priorities.local]`: frozen models beside the student, for methods that read more than a server's numbers."""

    reference: str | None = Field(None, min_length=1)
    """Folder or hub name of the reference, with the student's tokenizer."""
    base: str | None = Field(None, min_length=1)
    """The same for the second frozen model."""
    refresh: int = Field(8, ge=1)
    """Optimiser steps between snapshots of the student, for methods that read it as it was (`psft`)."""


class PrioritiesSection(_Section):
    """`[priorities]`: where weights come from and how they become a loss."""

    url: str | None = None
    """The scoring server. Without it: the `priorities` column, else a method that needs no server."""
    api_key_env: str = "TOKENPRIORITY_API_KEY"
    """Environment variable that holds the server's key."""
    model: str = Field("reference", min_length=1)
    """Name of the reference model on the server."""
    method: str = Field("uniform", min_length=1)
    """A method of `tokenpriority methods`."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Its parameters."""
    calibration: str | None = Field(None, min_length=1)
    """A file of `Calibration.save`, which gives method and parameters instead, for the models it was made with."""
    depth: Wanted = "auto"
    """Batches whose weights are fetched ahead of training; "auto" measures how many are needed."""
    store: str | None = Field(None, min_length=1)
    """A file in which the server's answers are kept, so that no document is asked about twice; see `store.py`."""
    patience: float = Field(600.0, ge=0)
    """Seconds for which a server that is away, or loading at the start, is waited for."""
    tokenizers: Literal["same", "project"] = "same"
    """Whether the server's model must share the student's tokenizer, or its scores are projected through the text."""
    student: str | None = None
    """A positive method of the live student (`dft`) that multiplies positive weights."""
    student_params: dict[str, Any] = Field(default_factory=dict)
    """Its parameters."""
    forget: str | None = None
    """An unlearning method (`wga`, `npo`) whose weights' sizes multiply negative weights."""
    forget_params: dict[str, Any] = Field(default_factory=dict)
    """Its parameters."""
    negatives: Negatives | None = None
    """How negative weights act; the method's own rule by default."""
    schedule: Schedule | None = None
    """Factor on weights that follows the run; its default is the method's, see `Weighting.of`."""
    clip: Clip | None = Field(None, strict=False)  # TOML has lists, not tuples; the values stay strict
    """Least and greatest weight after the schedule."""
    denominator: Denominator | None = None
    """Which count divides the loss; the method's by default."""
    kernel: Kernel = "auto"
    """Where the loss is computed."""
    local: LocalSection | None = None

    @model_validator(mode="before")
    @classmethod
    def _calibrated_or_said(cls, given: Any) -> Any:
        beside = [name for name in ("method", "params") if name in given] if isinstance(given, dict) else []
        if beside and given.get("calibration") is not None:
            raise PydanticCustomError("calibration", f"calibration gives method and params; leave out {beside[0]}")
        return given

    @model_validator(mode="before")
    @classmethod
    def _stored_by_token(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("store") is not None and given.get("tokenizers") == "project":
            raise PydanticCustomError("store", "store keeps scores of the student's own tokens; leave out tokenizers")
        return given

    @field_validator("depth", mode="before")
    @classmethod
    def _at_least_one(cls, depth: Any) -> Any:
        if not is_depth(depth):
            raise PydanticCustomError("depth", DEPTH_LIMIT)
        return depth

    @field_validator("clip")
    @classmethod
    def _within_limit(cls, clip: Clip | None) -> Clip | None:
        if clip is not None and not is_clip(clip):
            raise PydanticCustomError("clip", CLIP_LIMIT)
        return clip

    def api_key(self) -> str | None:
        """The key, None if the variable is not set. Raises ConfigError if it was named but is not set."""
        key = os.environ.get(self.api_key_env)
        if key is None and "api_key_env" in self.model_fields_set:
            raise ConfigError(f"priorities.api_key_env: the environment variable {self.api_key_env} is not set")
        return key


class Config(_Section):
    """A whole run."""

    model: ModelSection
    data: DataSection
    priorities: PrioritiesSection = PrioritiesSection()
    guard: Guard = Guard()
    training: dict[str, Any]
    """Arguments of TRL's SFTConfig; `output_dir` is required."""


def load_config(path: Path) -> Config:
    """The configuration in a TOML file. Raises ConfigError naming the key, its value and the limit."""
    try:
        return Config.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        got = "" if first["type"] == "missing" else f", got {first['input']!r}"
        raise ConfigError(f"{path}: {key}: {first['msg']}{got}") from None


def training_arguments(training: dict[str, Any]) -> SFTConfig:
    """TRL's SFTConfig from `[training]`, by default without reports, and with bf16 and pinned memory only on a GPU.

    Raises ConfigError naming the key if it is unknown or missing or its value of another type, or with TRL's own words
    if it refuses the values.
    """
    import torch
    from trl import SFTConfig

    known = {field.name for field in fields(SFTConfig) if field.init}
    for key in training:
        if key not in known:
            close = "".join(f"; did you mean {name}?" for name in get_close_matches(key, known, n=1))
            raise ConfigError(f"training.{key}: no such argument of SFTConfig{close}")
    _check_types(training, get_type_hints(SFTConfig))
    if not training.get("output_dir"):
        raise ConfigError("training.output_dir: is required: the folder the model and its metrics are written to")
    gpu = torch.cuda.is_available()
    defaults = {"report_to": "none", "bf16": gpu and not training.get("fp16", False), "dataloader_pin_memory": gpu}
    try:
        return SFTConfig(**{**defaults, **training})
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: {error}") from None


def _check_types(training: dict[str, Any], hints: dict[str, Any]) -> None:
    """Raises ConfigError for a value that is not of its field's type, where that is a switch or a number.

    TRL takes "false" for true and "8" for a batch size. Fields that may hold more than plain values are left to it.
    """
    for key, value in training.items():
        hint = hints[key]
        types = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
        if not types <= {*_NAMES, NoneType} or types.isdisjoint({bool, int, float}):
            continue
        taken = {*types, int} if float in types else types
        if type(value) not in taken:
            wanted = " or ".join(name for kind, name in _NAMES.items() if kind in types)
            raise ConfigError(f"training.{key}: must be {wanted}, got {type(value).__name__} {value!r}")
