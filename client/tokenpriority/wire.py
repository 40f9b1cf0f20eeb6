"""Bytes to structs and back, in JSON and in msgpack.

Knows the two formats, how arrays are packed in each, and how to turn a decoder's complaint into one that names
the field, the value and the limit. Knows nothing of HTTP or of what the fields mean.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
import numpy as np

from tokenpriority.errors import ApiError, InvalidRequest, MalformedBody, shown
from tokenpriority.schema import ErrorBody, ErrorResponse

JSON = "application/json"
MSGPACK = "application/x-msgpack"

T = TypeVar("T")
F4 = np.dtype("<f4")
U4 = np.dtype("<u4")
U1 = np.dtype("u1")

_LIBRARY: dict[str, Any] = {JSON: msgspec.json, MSGPACK: msgspec.msgpack}
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_PATH = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|\[\.\.\.\]")


def decode(
    body: bytes | memoryview | msgspec.Raw, kind: type[T], media_type: str = MSGPACK, *, what: str = "body"
) -> T:
    """Read a body as `kind`. Raises MalformedBody (not the format) or InvalidRequest (not the contract).

    `what` is what errors call the whole of it.
    """
    library = _LIBRARY[media_type]
    try:
        value: T = library.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_explain(str(error), _generic(body, media_type), kind, what)) from None
    except _BROKEN as error:
        raise MalformedBody(f"the body is not valid {media_type}: {error}") from None
    return value


def encode(value: Any, media_type: str = MSGPACK) -> bytes:
    """Write a struct; NaN becomes null in JSON and stays NaN in msgpack."""
    body: bytes = _LIBRARY[media_type].encode(value)
    return body


def encode_error(error: ApiError, request_id: str | None, media_type: str = JSON) -> bytes:
    """The one shape of an error: {"error": {"type", "message", "request_id"}}."""
    body = ErrorBody(type=error.type, message=error.message, request_id=request_id)
    return encode(ErrorResponse(error=body), media_type)


def pack(array: np.ndarray[Any, Any], dtype: np.dtype[Any], media_type: str = MSGPACK) -> Any:
    """An array as it stands on the wire: raw little-endian bytes in msgpack, a list (NaN as None) in JSON."""
    if media_type == JSON:
        return array.tolist()
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def unpack(value: bytes | list[Any], dtype: np.dtype[Any], field: str) -> np.ndarray[Any, Any]:
    """The array behind a wire value, shape (n,), `dtype`; read-only when it came as bytes (no copy).

    Raises InvalidRequest naming `field` if the bytes are no whole number of values.
    """
    if isinstance(value, bytes):
        if len(value) % dtype.itemsize:
            raise InvalidRequest(
                f"{field}: {len(value)} bytes is not a multiple of {dtype.itemsize} ({dtype.str} values)"
            )
        return np.frombuffer(value, dtype=dtype)
    if dtype.kind == "f":
        return np.array([np.nan if x is None else x for x in value], dtype=dtype)
    return np.array(value, dtype=dtype)


def _generic(body: bytes | memoryview | msgspec.Raw, media_type: str) -> Any:
    """The body without a contract. Raises MalformedBody: a mismatch may be found before the body proves broken."""
    try:
        return _LIBRARY[media_type].decode(body)
    except _BROKEN as error:
        raise MalformedBody(f"the body is not valid {media_type}: {error}") from None


def _values(kind: Any, field: str) -> list[str]:
    """What a field of a struct may be, where that is one of a few words."""
    return [repr(each) for each in get_args(get_type_hints(kind)[field])]


def _explain(message: str, value: Any, kind: Any, whole: str) -> str:
    """Add the field, the offending value and the known fields to msgspec's complaint, which names type and limit."""
    match = _PATH.match(message)
    path = (match and match["path"]) or ""
    what = (match and match["what"]) or message
    field = path.removeprefix(".") or whole
    if what.startswith("Object contains unknown field") and not path:
        return f"{field}: {what}; known fields: {', '.join(kind.__struct_encode_fields__)}"
    if what.startswith("Invalid enum value"):
        return f"{field}: {what}, must be one of {', '.join(_values(kind, field))}"
    if "[...]" in path or what.startswith("Object"):
        return f"{field}: {what}"
    try:
        for key, index in _STEP.findall(path):
            value = value[key] if key else value[int(index)]
    except (KeyError, IndexError, TypeError):
        return f"{field}: {what}"  # a key stands twice: the path is of another value than the last one
    return f"{field}: {what}, got {shown(value)}"
