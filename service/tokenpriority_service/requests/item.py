"""One sequence of a request: parsed, checked, in tokens.

Knows the four forms, `mask`, `score_from` and what a model takes, and names field, value and limit of whatever is
wrong. Knows nothing of the other sequences, of methods or of scoring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from tokenpriority import wire
from tokenpriority.errors import ApiError, InvalidSequence
from tokenpriority.schema import SequenceItem, Span
from tokenpriority.spans import Labels, Surface, span_labels
from tokenpriority_service.engines.engine import Ids
from tokenpriority_service.models import Model
from tokenpriority_service.requests.length import Length
from tokenpriority_service.requests.text import Mask, Tokens

ItemId = str | int
MAX_SPANS = 4096
"""Each span is laid over the whole sequence, so their number is bounded."""
MAX_LABELLED_MESSAGES = 256
"""Most messages with spans in them: for each the conversation is rendered once more."""
WIRE_INTEGERS = (-(2**63), 2**64 - 1)
"""The integers msgpack can carry."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """One checked sequence; arrays of length T."""

    id: ItemId
    token_ids: Ids
    mask: Mask
    """True where a priority is wanted; False at index 0."""
    score_from: int
    """The first index at which the mask is True; T if there is none."""
    labels: Labels | None
    """The caller's signed label of each token, NaN where there is none; None if there are no spans."""
    prompt: Mask | None
    """True for the tokens of the prompt; None if the sequence does not tell, or nobody asked."""
    surface: Surface | None
    """The characters of each token, if the request asked for them and the sequence has a text."""


@dataclass(frozen=True, slots=True)
class Refused:
    """One sequence that cannot be scored."""

    id: ItemId
    error: ApiError


class _Identified(msgspec.Struct):
    """The id of an item whatever else is wrong with it."""

    id: ItemId | UnsetType = UNSET


def parse_item(index: int, raw: msgspec.Raw, media_type: str) -> tuple[ItemId, SequenceItem] | Refused:
    """One sequence as it was sent, with its id (default its index in the request)."""
    try:
        item = wire.decode(raw, SequenceItem, media_type, what="sequence")
        return _item_id(index, item.id), item
    except ApiError as error:
        try:
            return _refused(_item_id(index, wire.decode(raw, _Identified, media_type).id), error)
        except ApiError:
            return _refused(index, error)


def _item_id(index: int, value: ItemId | UnsetType) -> ItemId:
    if value is UNSET:
        return index
    least, greatest = WIRE_INTEGERS
    if isinstance(value, int) and not least <= value <= greatest:
        raise InvalidSequence(f"id: must be from {least} to {greatest}, got {value}")
    return value


def check_item(
    id_: ItemId, item: SequenceItem, *, models: list[Model], offsets: bool, prompt: bool
) -> Sequence | Refused:
    """One sequence in tokens. The first of `models` tokenises (slowly); each has its own max_model_len.

    `prompt` says whether it must be known which tokens are the prompt.
    """
    model = models[0]
    try:
        field = _form(item)
        if item.mask is not UNSET and item.score_from is not UNSET:
            raise InvalidSequence("mask: goes without score_from, got both")
        if prompt and field in ("token_ids", "text"):
            raise InvalidSequence(
                f"{field}: the method must know which tokens are the prompt; give messages or prompt + completion"
            )
        length = Length(field, [(each.name, each.engine.info.max_model_len) for each in models])
        tokens = _tokens(model, item, field, length, prompt)
        length.check(len(tokens.ids))
        _check_ids(model, tokens.ids, field)
        mask = _mask(item, tokens)
        labels = _labels(item.spans, tokens) if item.spans is not UNSET else None
        surface = tokens.surface if offsets else None
        if surface is not None and surface.offsets is None:
            raise InvalidSequence("offsets: need a fast tokenizer, which this model has not")
    except ApiError as error:
        return _refused(id_, error)
    return Sequence(
        id=id_,
        token_ids=tokens.ids,
        mask=mask,
        score_from=int(mask.argmax()) if mask.any() else len(mask),
        labels=labels,
        prompt=tokens.prompt,
        surface=surface,
    )


def _refused(id_: ItemId, error: ApiError) -> Refused:
    """Whatever is wrong with one sequence is an InvalidSequence, wherever it was found."""
    return Refused(id_, InvalidSequence(error.message))


def _form(item: SequenceItem) -> str:
    """The one form the sequence is given in: its field's name."""
    if (item.prompt is UNSET) != (item.completion is UNSET):
        given, lacking = ("prompt", "completion") if item.completion is UNSET else ("completion", "prompt")
        raise InvalidSequence(f"{given}: needs {lacking} with it")
    forms = [name for name in ("token_ids", "text", "messages", "prompt") if getattr(item, name) is not UNSET]
    if len(forms) != 1:
        got = " and ".join(forms) or "none"
        raise InvalidSequence(
            f"a sequence is given in exactly one form: token_ids, text, messages, or prompt + completion; got {got}"
        )
    return forms[0]


def _tokens(model: Model, item: SequenceItem, field: str, length: Length, prompt: bool) -> Tokens:
    if item.token_ids is not UNSET:
        # A copy: the ids outlive the body, and libraries want to own what they read.
        ids = wire.unpack(item.token_ids, wire.U4, field).astype(np.uint32)
        return Tokens(ids, np.ones(len(ids), np.bool_))
    if model.text is None:
        raise InvalidSequence(f"{field}: model {model.name!r} has no tokenizer; send token_ids")
    return model.text.tokens(item, length, turns=prompt or (item.mask is UNSET and item.score_from is UNSET))


def _check_ids(model: Model, ids: Ids, field: str) -> None:
    if not len(ids):
        raise InvalidSequence(f"{field}: a sequence has at least 1 token, got 0")
    vocab_size = model.engine.info.vocab_size
    if ids.max() >= vocab_size:
        index = int((ids >= vocab_size).argmax())
        name = "token_ids" if field == "token_ids" else f"tokens of {field}"
        raise InvalidSequence(f"{name}[{index}]: must be below the vocabulary size {vocab_size}, got {ids[index]}")


def _labels(spans: list[Span], tokens: Tokens) -> Labels:
    if len(spans) > MAX_SPANS:
        raise InvalidSequence(f"spans: a sequence has at most {MAX_SPANS}, got {len(spans)}")
    messages = {span.message for span in spans} - {UNSET}
    if len(messages) > MAX_LABELLED_MESSAGES:
        raise InvalidSequence(
            f"spans: those of a sequence lie in at most {MAX_LABELLED_MESSAGES} messages, got {len(messages)}"
        )
    return span_labels(spans, len(tokens.ids), tokens.surface)


def _mask(item: SequenceItem, tokens: Tokens) -> Mask:
    """Where a priority is wanted, (T,) bool: the request's mask or score_from, else the form's default."""
    length = len(tokens.ids)
    mask = tokens.scored.copy()
    if item.mask is not UNSET:
        bits: np.ndarray[Any, Any] = wire.unpack(item.mask, wire.U1, "mask")
        if len(bits) != length:
            raise InvalidSequence(f"mask: must have one entry per token, {length}, got {len(bits)}")
        if bits.max() > 1:
            index = int((bits > 1).argmax())
            raise InvalidSequence(f"mask[{index}]: must be 0 or 1, got {bits[index]}")
        mask = bits.astype(np.bool_)
    elif item.score_from is not UNSET:
        if item.score_from > length:
            raise InvalidSequence(f"score_from: must be at most the number of tokens {length}, got {item.score_from}")
        mask = np.arange(length) >= item.score_from
    mask[0] = False
    return mask
