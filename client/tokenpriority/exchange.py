"""One exchange with the server as pure functions: a request's bytes, an answer's checks, an error's class.

Knows the contract from the caller's side; both clients stand on it. Knows nothing of sockets, loops or retries.
Whatever of an answer is missing, short, out of order or not a number raises; none of it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from tokenpriority import wire
from tokenpriority.errors import (
    ApiError,
    ContractBroken,
    InvalidParameter,
    InvalidRequest,
    InvalidSequence,
    MalformedBody,
    error_class,
)
from tokenpriority.retry import parse_retry_after
from tokenpriority.schema import (
    CoverageItem,
    CoverageResponse,
    ErrorBody,
    ErrorResponse,
    PriorityResponse,
    ResultItem,
    ServiceClass,
)
from tokenpriority.scores import Floats, Ids, ScoreFailure, Scores
from tokenpriority.sequences import Item, plain_number

T = TypeVar("T")
A = TypeVar("A", bound=PriorityResponse | CoverageResponse)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked of every sequence of a call."""

    model: str
    method: str
    params: Mapping[str, Any] | None = None
    signals: Iterable[str] = ()
    offsets: bool = False
    service_class: ServiceClass = "interactive"
    cached_only: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.signals, str):
            raise TypeError(f"signals: a list of names is expected, got the str {self.signals!r}")
        object.__setattr__(self, "signals", tuple(self.signals))  # an iterator would serve the first request only


@dataclass(frozen=True, slots=True)
class Question(Generic[A, R]):
    """What is asked of a group of sequences: the route, the body of its answer, and how its results are read."""

    path: str
    body: type[A]
    read: Callable[[A, Sequence[Item], Call], list[R | ScoreFailure]]


def build_request(items: Sequence[Item], call: Call) -> bytes:
    """The msgpack body of a question, without most fields that have the contract's default.

    Raises InvalidParameter if a parameter cannot be encoded.
    """
    try:
        params = msgspec.to_builtins(dict(call.params or {}), enc_hook=plain_number)
    except TypeError as error:
        raise InvalidParameter(f"method.params: cannot be encoded: {error}") from None
    body: dict[str, Any] = {
        "model": call.model,
        "method": {"name": call.method, "params": params},
        "signals": list(call.signals),
        "sequences": [{"id": item.id, **item.fields} for item in items],
    }
    if call.service_class != "interactive":
        body["service_class"] = call.service_class
    flags = {"offsets": call.offsets, "cached_only": call.cached_only}
    return wire.encode(body | {name: True for name, is_set in flags.items() if is_set})


def read(body: bytes, kind: type[T], content_type: str) -> T:
    """A body of the contract. Raises ContractBroken if it is not one."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in (wire.JSON, wire.MSGPACK):
        raise ContractBroken(f"expected {wire.MSGPACK}, the server answered {content_type or 'without a type'}")
    try:
        return wire.decode(body, kind, media_type)
    except (MalformedBody, InvalidRequest) as error:
        raise ContractBroken(f"the answer is not a {kind.__name__}: {error}") from None


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """The error of an answer that is not 2xx; a proxy's page is told by its status and first words."""
    try:
        error = read(body, ErrorResponse, headers.get("content-type", "")).error
    except ContractBroken:
        text = " ".join(body[:200].decode("utf-8", "replace").split())
        error = ErrorBody(type="", message=f"HTTP {status}" + (f": {text}" if text else ""))
    return error_class(error.type, status)(
        error.message,
        request_id=error.request_id or headers.get("x-request-id"),
        retry_after=parse_retry_after(headers.get("retry-after")),
    )


def read_scores(response: PriorityResponse, items: Sequence[Item], call: Call) -> list[Scores | ScoreFailure]:
    """The scores of a request in the order of its items, every promise checked. Raises ContractBroken."""
    _same("method", response.method.name, call.method)
    check_answer(response, items, call)
    return [_result(result, item, call) for result, item in zip(response.results, items, strict=True)]


PRIORITIES = Question("/v1/priorities", PriorityResponse, read_scores)


def check_answer(response: PriorityResponse | CoverageResponse, items: Sequence[Item], call: Call) -> None:
    """Raises ContractBroken if it answers for another model or another number of sequences."""
    _same("model", response.model.name, call.model)
    _same("number of results", len(response.results), len(items))


def failure_of(result: ResultItem | CoverageItem, item: Item) -> ScoreFailure | None:
    """The item's failure, if its result is one. Raises ContractBroken if the result is another item's."""
    _promise(result.id == item.id, item, f"its result has the id {result.id!r}: results are out of order")
    if not isinstance(result.error, ErrorBody):
        return None
    error = error_class(result.error.type, InvalidSequence.status)
    return ScoreFailure(item.id, error(result.error.message, request_id=result.error.request_id))


def _same(what: str, got: Any, asked: Any) -> None:
    if got != asked:
        raise ContractBroken(f"{what}: asked for {asked!r}, the server answered {got!r}")


def _result(result: ResultItem, item: Item, call: Call) -> Scores | ScoreFailure:
    if failure := failure_of(result, item):
        return failure
    token_ids = _token_ids(result, item)
    length = len(token_ids)
    signals = result.signals if isinstance(result.signals, dict) else {}
    _promise(set(call.signals) <= set(signals), item, f"signals: asked for {list(call.signals)}, got {list(signals)}")
    offsets, text = _offsets(result, item, length, call)
    scores = Scores(
        id=item.id,
        token_ids=token_ids,
        logprobs=_floats(result.logprobs, "logprobs", length, item),
        priorities=_floats(result.priorities, "priorities", length, item),
        signals={name: _floats(signals[name], f"signals.{name}", length, item) for name in call.signals},
        cached=result.cached is True,
        offsets=offsets,
        text=text,
    )
    _check_numbers(scores, item)
    return scores


def _check_numbers(scores: Scores, item: Item) -> None:
    """The rule of alignment: the first token has no prediction, and what has a priority has a log-probability."""
    _promise(bool(np.isfinite(scores.priorities).all()), item, "a priority is not finite")
    unscored = np.isnan(scores.logprobs)
    _promise(bool(unscored[0]) and scores.priorities[0] == 0, item, "index 0 has no prediction, but it has numbers")
    _promise(not (unscored & (scores.priorities != 0)).any(), item, "a token has a priority but no log-probability")


def _token_ids(result: ResultItem, item: Item) -> Ids:
    sent = item.token_ids
    token_ids: Ids = _array(result.token_ids, wire.U4, "token_ids", item, None if sent is None else len(sent))
    _promise(len(token_ids) > 0, item, "token_ids are empty")
    if sent is None:
        return token_ids
    _promise(np.array_equal(token_ids, sent), item, "token_ids differ from those that were sent")
    return sent


def _offsets(result: ResultItem, item: Item, length: int, call: Call) -> tuple[Ids | None, str | None]:
    if not call.offsets or item.token_ids is not None:
        return None, None
    offsets: Ids = _array(result.offsets, wire.U4, "offsets", item, 2 * length)
    if not isinstance(result.text, str):
        raise ContractBroken(f"sequence {item.id!r}: text is missing")
    return offsets.reshape(length, 2), result.text


def _floats(value: Any, name: str, length: int, item: Item) -> Floats:
    array: Floats = _array(value, wire.F4, name, item, length)
    return array


def _array(value: Any, dtype: np.dtype[Any], name: str, item: Item, length: int | None) -> np.ndarray[Any, Any]:
    """An array of the answer, read-only; `length` numbers, where it is known how many."""
    if not isinstance(value, bytes | list):
        raise ContractBroken(f"sequence {item.id!r}: {name}: missing")
    count, rest = divmod(len(value), dtype.itemsize) if isinstance(value, bytes) else (len(value), 0)
    if rest or count != (count if length is None else length):
        raise ContractBroken(
            f"sequence {item.id!r}: {name}: expected {length or 'whole'} numbers, got {len(value)} "
            + (f"bytes of {dtype.str}" if isinstance(value, bytes) else "numbers")
        )
    array = wire.unpack(value, dtype, name)
    array.flags.writeable = False
    return array


def _promise(kept: bool, item: Item, broken: str) -> None:
    if not kept:
        raise ContractBroken(f"sequence {item.id!r}: {broken}")
