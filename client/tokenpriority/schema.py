"""The wire contract: every body of every route, once.

Knows the fields, their types and limits; the OpenAPI document, the server's parsing and the client's reading all
come from these structs. Knows nothing of tokenizers, models or transport.

Arrays travel in one of two forms. In JSON: lists of numbers, NaN as null. In msgpack: `bin` holding raw
little-endian values (`<u4` for ids, `u1` for masks, `<f4` for everything else). A request may use either form in
either format (in JSON the binary form is base64).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tokenpriority.evidence import ENGINE_SIGNALS

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Ids = bytes | list[Annotated[int, Meta(ge=0, lt=2**32)]]
Bits = bytes | list[Annotated[int, Meta(ge=0, le=1)]]
Numbers = bytes | list[float | None]
Message = dict[str, Any]


class _Struct(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class Span(_Struct):
    """A signed label from the caller: tokens in [start, end) get `priority` whatever the method says, unless the method
    reads labels itself (`MethodInfo.labels` is `inside`).

    Offsets are of characters where the sequence is given as text, messages or prompt+completion (of the text, of
    `messages[message].content`, of prompt + completion), of tokens where it is given as token_ids; `unit` overrides
    that. A token counts as inside if it overlaps. Of overlapping spans the later one holds. Masked tokens stay 0.
    """

    start: Annotated[int, Meta(ge=0)]
    end: Annotated[int, Meta(ge=1)]
    priority: Annotated[float, Meta(ge=-100.0, le=100.0)]
    unit: Annotated[str, Meta(extra_json_schema={"enum": ["token", "char"]})] | UnsetType = UNSET
    message: Annotated[int, Meta(ge=0)] | UnsetType = UNSET


class SequenceItem(_Struct):
    """One sequence, in exactly one of four forms: token_ids; text; messages; prompt + completion.

    `mask[i] = 0` gives token i priority 0; `score_from` is the index of the first token scored. At most one of the
    two. Messages default to the assistant's tokens, prompt + completion to the completion, else all are scored.
    """

    id: Annotated[str, Meta(max_length=200)] | int | UnsetType = UNSET
    token_ids: Ids | UnsetType = UNSET
    text: str | UnsetType = UNSET
    messages: list[Message] | UnsetType = UNSET
    prompt: str | list[Message] | UnsetType = UNSET
    completion: str | list[Message] | UnsetType = UNSET
    mask: Bits | UnsetType = UNSET
    score_from: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    spans: list[Span] | UnsetType = UNSET


class MethodCall(_Struct):
    """A priority method by name, with its parameters (see GET /v1/methods for each one's schema)."""

    name: Name = "uniform"
    params: dict[str, Any] = msgspec.field(default_factory=dict)


SignalName = Annotated[str, Meta(extra_json_schema={"enum": list(ENGINE_SIGNALS)})]
"""One of `evidence.ENGINE_SIGNALS`; what a model does not give is refused by name."""


ServiceClass = Literal["interactive", "bulk"]
"""Who waits: `interactive` work goes before `bulk` work, which always keeps a share of the engine."""


class PriorityRequest(_Struct):
    """Body of POST /v1/priorities and of POST /v1/coverage.

    `offsets` asks for the characters of each token and the text they count in (see ResultItem); sequences given as
    token_ids have none. With `cached_only` nothing is computed: a sequence that is not stored whole is that item's
    `not_stored` error.
    """

    sequences: Annotated[list[SequenceItem], Meta(min_length=1)]
    model: Name = "reference"
    method: MethodCall = msgspec.field(default_factory=MethodCall)
    signals: list[SignalName] = msgspec.field(default_factory=list)
    offsets: bool = False
    service_class: ServiceClass = "interactive"
    cached_only: bool = False


class RequestEnvelope(_Struct):
    """A PriorityRequest whose sequences are still raw, so that one bad sequence does not spoil the others."""

    sequences: Annotated[list[msgspec.Raw], Meta(min_length=1)]
    model: Name = "reference"
    method: MethodCall = msgspec.field(default_factory=MethodCall)
    signals: list[SignalName] = msgspec.field(default_factory=list)
    offsets: bool = False
    service_class: ServiceClass = "interactive"
    cached_only: bool = False


class ErrorBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What went wrong, in one shape everywhere; `type` is a key of `errors.ERROR_TYPES`."""

    type: str
    message: str
    request_id: str | None = None


class ErrorResponse(msgspec.Struct, kw_only=True):
    """Body of every answer that is not 2xx."""

    error: ErrorBody


class ModelRef(msgspec.Struct, kw_only=True):
    """The model that scored; its fingerprint covers everything that moves a number."""

    name: str
    fingerprint: str


class MethodRef(msgspec.Struct, kw_only=True):
    """The method as it was applied, every parameter spelled out."""

    name: str
    version: int
    params: dict[str, Any]


class Usage(msgspec.Struct, kw_only=True):
    """What the request cost: tokens submitted, how many of them the store knew (of whole sequences, and of beginnings
    shared with others), and the time spent where."""

    tokens: int
    cached_tokens: int
    queue_ms: float
    engine_ms: float


class ResultItem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The scores of one sequence, or its `error` alone.

    Every array has the length of token_ids; logprobs and signals are NaN (null) where nothing was scored, priorities 0.

    Where the request asked for offsets and the sequence was not given as token_ids, `offsets` holds the characters
    [start, end) of each token, [T, 2] flattened row by row (`<u4`), and `text` what they count in: the text; prompt +
    completion; for messages the text rendered by the chat template. A token of no characters has start = end.
    """

    id: str | int
    token_ids: Ids | UnsetType = UNSET
    logprobs: Numbers | UnsetType = UNSET
    priorities: Numbers | UnsetType = UNSET
    signals: dict[str, Numbers] | UnsetType = UNSET
    offsets: Ids | UnsetType = UNSET
    text: str | UnsetType = UNSET
    cached: bool | UnsetType = UNSET
    error: ErrorBody | UnsetType = UNSET


class PriorityResponse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Body of the answer to POST /v1/priorities; results stand in the order of the sequences."""

    model: ModelRef
    base: ModelRef | UnsetType = UNSET
    """The second model, where the method reads one."""
    method: MethodRef
    results: list[ResultItem]
    usage: Usage


class ModelInfo(msgspec.Struct, kw_only=True):
    """One model of the server, as listed by GET /v1/models."""

    name: str
    ready: bool
    engine: str
    model: str
    dtype: str
    max_model_len: int
    vocab_size: int
    fingerprint: str
    signals: list[str]
    tokenizer: str
    """Fingerprint of the tokenizer; empty if the model has none."""
    error: str | None = None
    """Why the model is not ready and will not become so, if that is known."""
    fault: str | None = None
    """Why the model cannot score for the moment; it is ready again once that is over."""


class ModelList(msgspec.Struct, kw_only=True):
    """Body of GET /v1/models."""

    models: list[ModelInfo]


class MethodInfo(msgspec.Struct, kw_only=True):
    """One method, as listed by GET /v1/methods and `tokenpriority methods --json`."""

    name: str
    version: int
    sign: str
    family: str
    """What must be at hand: `frozen` models only, the live `student` only, or `both`."""
    gives: str
    """`priority`, a weight for each token; or `loss`, a loss of its own, in the trainer only."""
    source: str
    signals: list[str]
    """Signals read of each source's evidence."""
    distributions: list[str]
    """Sources whose whole distribution is read: in the trainer only, with a local frozen copy where frozen."""
    scope: str
    """Over which set a token's weight is decided: token, sequence, the trainer's micro-batch (a server's each sequence
    by itself) or the dataset."""
    denominator: str
    """What a batch's weighted sum is divided by: `all` tokens, those `kept`, `by_sign`, or `sequences`."""
    negatives: str
    """How a negative priority acts: bounded `unlikelihood`, or plain gradient `ascent`."""
    schedule: dict[str, Any] | None
    """Factor on priorities over the training run, where the method has one of its own; see `composition.Schedule`."""
    labels: str
    """Whether the caller's signed labels are laid `over` the priorities or read `inside` the formula."""
    calibrated: bool
    """Whether it can rank over a whole dataset, with a threshold that `calibrate` finds."""
    summary: str
    equation: str
    citation: str
    verified: str
    """How the formula was checked: authors' code, third-party code, paper, own, or second-hand (from a summary)."""
    params: dict[str, Any]
    """JSON schema of the parameters."""


class MethodList(msgspec.Struct, kw_only=True):
    """Body of GET /v1/methods."""

    methods: list[MethodInfo]


class CoverageItem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How much of one sequence is stored, under every model the request reads, or its `error` alone."""

    id: str | int
    tokens: int | UnsetType = UNSET
    stored_tokens: int | UnsetType = UNSET
    """Leading tokens that need no engine; all of `tokens` if the sequence is stored whole."""
    error: ErrorBody | UnsetType = UNSET


class CoverageResponse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Body of the answer to POST /v1/coverage: what the same request to /v1/priorities would find stored. Nothing is
    computed or charged. Sums are over the sequences without an error."""

    model: ModelRef
    base: ModelRef | UnsetType = UNSET
    results: list[CoverageItem]
    sequences: int
    stored_sequences: int
    tokens: int
    stored_tokens: int


class TeamLimits(msgspec.Struct, kw_only=True):
    """What one team may use, and what is left of it; None is no limit."""

    team: str
    weight: float
    """Its share of the engines when several teams wait, relative to theirs."""
    tokens_per_minute: int | None
    tokens_remaining: int | None
    """Of `tokens_per_minute`, now."""
    concurrent_tokens: int | None
    in_flight_tokens: int
    """Queued or in an engine: on all replicas where `concurrent_tokens` is set, else on the one that answers."""


class Limits(msgspec.Struct, kw_only=True):
    """Body of GET /v1/limits: what the server takes at once, and what the caller's team may use."""

    max_body_bytes: int
    max_sequences: int
    max_request_tokens: int
    max_queued_tokens: int
    queued_tokens: int
    """On this replica."""
    team: TeamLimits


class UsageEntry(msgspec.Struct, kw_only=True):
    """What a team asked of a model in one hour."""

    team: str
    model: str
    """Empty where a request was rejected before its model was known."""
    hour: int
    """Its first second, since the epoch."""
    tokens: int
    """Submitted, and answered."""
    cached_tokens: int
    """Of them, from the store."""
    requests: int
    rejections: int
    """Requests refused with 429, or with 503 since the server was full."""


class UsageReport(msgspec.Struct, kw_only=True):
    """Body of GET /v1/usage, oldest hour first: the caller's team; with a key of scope `admin` every team."""

    usage: list[UsageEntry]
