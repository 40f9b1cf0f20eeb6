"""The settings of one named model: `[models.NAME]`, one class for each engine.

Knows the fields each engine has, their types, limits and defaults, and which class an `engine` picks. Knows nothing
of the engines themselves, of the machine, or of the other models of the server.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from tokenpriority_service.configuration.section import Section
from tokenpriority_service.configuration.url import check_url

Dtype = Literal["float32", "bfloat16", "float16"]
Location = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]


def _check_url(url: str) -> str:
    return check_url(url, "name the key's variable in api_key_env")


def _check_distinct(urls: list[str]) -> list[str]:
    twice = next((url for url in urls if urls.count(url) > 1), None)
    if twice is not None:
        raise ValueError(f"every replica is listed once, {twice} is there {urls.count(twice)} times")
    return urls


class ModelSettings(Section):
    """What every model has, whatever runs it."""

    model: Location
    """Folder of a transformers checkpoint, or its hub name; for `remote` the name it is served under, for `fake` any
    name."""
    engine: str
    """What runs it: `torch`, `vllm`, `remote` or `fake`."""
    max_model_len: int | None = Field(None, ge=2)
    """Longest sequence taken, in tokens; default the model's own."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the further models it brings (adapters), known before it is loaded."""
        return ()

    @property
    def summary(self) -> str:
        """What runs it and how, in a few words."""
        return self.engine


class TorchModel(ModelSettings):
    """`engine = "torch"`: transformers in this process."""

    engine: Literal["torch"] = "torch"
    """What runs it."""
    dtype: Dtype = "float32"
    """Type of the weights and of the forward pass; evidence is float32 whatever this is."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it runs."""
    max_batch_tokens: int = Field(8192, ge=1)
    """Most tokens, padding included, of one forward pass."""
    logits_bytes: int = Field(268_435_456, ge=1)
    """Most bytes of logits alive at once."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of the engine; default torch's."""

    @property
    def summary(self) -> str:
        """What runs it and how, in a few words."""
        return f"torch, {self.dtype}, {self.device}"


class FakeModel(ModelSettings):
    """`engine = "fake"`: made-up numbers without weights, to try things out."""

    engine: Literal["fake"] = "fake"
    """What runs it."""


class VllmModel(ModelSettings):
    """`engine = "vllm"`: vLLM in processes of its own, never listening on a port of its own."""

    engine: Literal["vllm"] = "vllm"
    """What runs it."""
    dtype: Dtype = "float32"
    """Type of the weights and of the forward pass; evidence is float32 whatever this is."""
    revision: str | None = Field(None, min_length=1)
    """Branch, tag or commit of a hub model; default the hub's. Part of the fingerprint."""
    evidence: Literal["full", "prompt_logprobs"] = "full"
    """`full`: every signal, computed where the logits are. `prompt_logprobs`: vLLM's own, logprob and rank only, for
    models that cannot be hosted the other way."""
    max_batch_tokens: int = Field(8192, ge=1)
    """Most tokens of one step of the engine, over all sequences; a longer sequence takes several steps."""
    max_sequences: int = Field(256, ge=1)
    """Most sequences in the engine at once; others wait."""
    logits_bytes: int = Field(268_435_456, ge=1)
    """Most bytes of logits alive at once, in each worker."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs (on a CPU: processes) the model is split over."""
    memory_share: float | None = Field(None, gt=0, le=1)
    """Share of each GPU's memory this model may take, weights included; default vLLM's. All vLLM models of a server
    use the same GPUs: with several, each states its share, and they sum to at most 1. Of no use on a CPU."""
    kv_cache_bytes: int | None = Field(None, ge=1)
    """Bytes of the KV cache of each worker; default what `memory_share` leaves, on a CPU 1 GiB."""
    prefix_caching: bool = True
    """Whether vLLM keeps the KV cache of prefixes it has seen."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of each worker; default vLLM's. Of no use on a GPU."""
    adapters: dict[Annotated[str, Field(min_length=1)], Location] = Field({})
    """LoRA adapters on this model's weights, name -> folder; each is a model of the server by its name."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters."""
        return tuple(self.adapters)

    @property
    def summary(self) -> str:
        """What runs it and how, in a few words."""
        parts = ["vllm", self.dtype, f"evidence {self.evidence}"]
        if self.tensor_parallel > 1:
            parts.append(f"tensor parallel {self.tensor_parallel}")
        if self.memory_share is not None:
            parts.append(f"{self.memory_share:.0%} of the GPU memory")
        if self.kv_cache_bytes is not None:
            parts.append(f"KV cache {self.kv_cache_bytes / (1 << 30):.2f} GiB")
        if self.adapters:
            parts.append(f"adapters {', '.join(self.adapters)}")
        return ", ".join(parts)


class RemoteModel(ModelSettings):
    """`engine = "remote"`: an existing `vllm serve`, or several replicas of one, over HTTP."""

    engine: Literal["remote"] = "remote"
    """What runs it."""
    urls: Annotated[list[Annotated[str, AfterValidator(_check_url)]], AfterValidator(_check_distinct)] = Field(
        min_length=1
    )
    """Addresses of the replicas; all serve the same weights."""
    api_key_env: str | None = Field(None, pattern="^[A-Z][A-Z0-9_]*$")
    """Name of the environment variable that holds their API key; the key itself is nowhere in the configuration."""
    tokenizer: Location | None = None
    """Folder or hub name of the model's tokenizer; without it the model takes token ids only."""
    revision: str = ""
    """Your label of the replicas' weights, part of the fingerprint: change it whenever they change, since weights
    cannot be seen over HTTP."""
    vocab_size: int | None = Field(None, ge=2)
    """Size of the vocabulary, for replicas that cannot be asked for it."""
    max_concurrent: int = Field(32, ge=1)
    """Most requests in flight to each replica."""
    timeout: float = Field(120.0, gt=0)
    """Seconds for one attempt at a request, from sending to the last byte; also how long loading waits for a first
    replica."""
    retries: int = Field(3, ge=0)
    """Attempts after the first, on other replicas where there are any."""

    @property
    def summary(self) -> str:
        """What runs it and how, in a few words."""
        return f"remote, {', '.join(self.urls)}"


def _engine(value: Any) -> Any:
    """What picks the class; a table without `engine` is torch's."""
    return value.get("engine", "torch") if isinstance(value, dict) else getattr(value, "engine", None)


MODELS: dict[str, type[ModelSettings]] = {
    "torch": TorchModel,
    "vllm": VllmModel,
    "remote": RemoteModel,
    "fake": FakeModel,
}
"""Engine -> the class of its settings."""

AnyModel = Annotated[
    Annotated[TorchModel, Tag("torch")]
    | Annotated[VllmModel, Tag("vllm")]
    | Annotated[RemoteModel, Tag("remote")]
    | Annotated[FakeModel, Tag("fake")],
    Discriminator(_engine),
]
"""`[models.NAME]`, as its `engine` says."""
