"""Every error of the contract, on both sides of the wire.

Knows the error types, their HTTP statuses and how one is written and read. Knows nothing of HTTP libraries.

    TokenPriorityError
    ├── ConnectionFailed            the server could not be reached, or stopped answering
    ├── FingerprintChanged          the server's model is not the one this run began with
    ├── ContractBroken              the server's answer is not what the contract promises
    ├── SequenceErrors              some sequences of a call were refused (holds both halves)
    └── ApiError                    the server answered with an error
        ├── MalformedBody       400    not JSON / msgpack
        ├── Unauthorized        401
        ├── Forbidden           403
        ├── NotFound            404    unknown model, method or route
        │   └── NotStored              asked for from the store alone, and not there
        ├── TooLarge            413    split the request
        ├── InvalidRequest      422    a field is unknown, of the wrong type or out of range
        │   ├── InvalidParameter       of the method
        │   └── InvalidSequence        one sequence; the others of its request are scored
        ├── Overloaded          429    carries `retry_after`
        ├── Unavailable         503    loading, draining, full; may carry `retry_after`
        │   └── ServerAway             a gateway's word: its server is away (502, 503, 504)
        ├── EngineFault         503    the engine failed on this work
        └── InternalError       500    a bug
"""

from __future__ import annotations

from typing import Any, ClassVar


class TokenPriorityError(Exception):
    """Base of every error this package raises on purpose."""


class ConnectionFailed(TokenPriorityError):
    """The server could not be reached, or the connection broke, after all retries."""


class FingerprintChanged(TokenPriorityError):
    """The server now scores with another model than at the start of this run: its numbers must not be mixed."""


class ContractBroken(TokenPriorityError):
    """The answer breaks the contract: a result is missing, short, out of order or not a number. None of it is used."""


class ApiError(TokenPriorityError):
    """An error the server answered with.

    `type` is the wire name, `status` the HTTP status, `request_id` the server's id of the request (None on the
    server's side), `retry_after` the seconds after which to try again (None if the server did not say).
    """

    type: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, request_id: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.request_id, self.retry_after)

    def __str__(self) -> str:
        return f"{self.message} (request {self.request_id})" if self.request_id else self.message


def _rebuild(cls: type[ApiError], message: str, request_id: str | None, retry_after: float | None) -> ApiError:
    return cls(message, request_id=request_id, retry_after=retry_after)


class MalformedBody(ApiError):
    """The body is not the JSON or msgpack it says it is."""

    type, status = "malformed_body", 400


class Unauthorized(ApiError):
    """The key is missing or unknown."""

    type, status = "unauthorized", 401


class Forbidden(ApiError):
    """The key does not allow this."""

    type, status = "forbidden", 403


class NotFound(ApiError):
    """No such model, method or route."""

    type, status = "not_found", 404


class NotStored(NotFound):
    """The sequence was asked for with `cached_only`, and its evidence is not stored."""

    type, status = "not_stored", 404


class TooLarge(ApiError):
    """The request is larger than the server takes at once; the client splits it."""

    type, status = "too_large", 413


class InvalidRequest(ApiError):
    """A field is unknown, missing, of the wrong type or out of range."""

    type, status = "invalid_request", 422


class InvalidParameter(InvalidRequest):
    """A method's parameter is unknown, of the wrong type or out of range."""

    type, status = "invalid_parameter", 422


class InvalidSequence(InvalidRequest):
    """One sequence cannot be scored as it is; the others of its request are."""

    type, status = "invalid_sequence", 422


class Overloaded(ApiError):
    """The team has as much work at the server as it may; `retry_after` says when to come back."""

    type, status = "overloaded", 429


class Unavailable(ApiError):
    """The server is loading its models, draining, full, or without its database."""

    type, status = "unavailable", 503


class ServerAway(Unavailable):
    """A gateway before the server says that the server is away; the answer is not of this contract."""


class EngineFault(ApiError):
    """The engine failed on this work; nothing wrong was returned or kept."""

    type, status = "engine_fault", 503


class InternalError(ApiError):
    """A bug in the server; the request id finds it in its log."""

    type, status = "internal_error", 500


_WIRE: tuple[type[ApiError], ...] = (
    MalformedBody,
    Unauthorized,
    Forbidden,
    NotFound,
    NotStored,
    TooLarge,
    InvalidRequest,
    InvalidParameter,
    InvalidSequence,
    Overloaded,
    Unavailable,
    EngineFault,
    InternalError,
)
ERROR_TYPES: dict[str, type[ApiError]] = {cls.type: cls for cls in _WIRE}
"""Wire name -> class; the one table from an error's type to its status."""


def error_class(type_name: str | None, status: int) -> type[ApiError]:
    """The class for a wire type, else for a status (a proxy's error page has no type)."""
    if type_name in ERROR_TYPES:
        return ERROR_TYPES[type_name]
    if status in (502, 503, 504):
        return ServerAway
    for cls in _WIRE:
        if cls.status == status:
            return cls
    return InternalError if status >= 500 else InvalidRequest


class SequenceErrors(TokenPriorityError):
    """Some sequences of a call failed; nothing that was scored is lost.

    `failures` maps the sequence's position in the call to its error; `results` holds, in call order, the scores
    of the others and None where a sequence failed. It is empty where the others were already handed out (score_many).
    """

    def __init__(self, failures: dict[int, ApiError], results: list[Any]) -> None:
        self.failures = failures
        self.results = results
        first = min(failures)
        share = f"{len(failures)} of {len(results)} sequences failed; the first is" if results else "the failing one is"
        super().__init__(f"{share} number {first}: {failures[first]}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.failures, self.results)


def shown(value: Any) -> str:
    """A value as an error message quotes it, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
