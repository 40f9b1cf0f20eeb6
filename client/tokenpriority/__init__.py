"""tokenpriority: reference log-probabilities and signed token priorities from a shared scoring server.

Names are imported at first use, so that `import tokenpriority` costs nothing and works wherever numpy, httpx, pydantic
and msgspec are.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenpriority.async_client import AsyncClient
    from tokenpriority.calibration import Calibration
    from tokenpriority.client import Client
    from tokenpriority.coverage import Coverage, Covered
    from tokenpriority.errors import (
        ApiError,
        ConnectionFailed,
        ContractBroken,
        EngineFault,
        FingerprintChanged,
        Forbidden,
        InternalError,
        InvalidParameter,
        InvalidRequest,
        InvalidSequence,
        MalformedBody,
        NotFound,
        NotStored,
        Overloaded,
        SequenceErrors,
        ServerAway,
        TokenPriorityError,
        TooLarge,
        Unauthorized,
        Unavailable,
    )
    from tokenpriority.prefetch import Prefetch
    from tokenpriority.scores import ScoreFailure, Scores
    from tokenpriority.source import Source

__all__ = [
    "ApiError",
    "AsyncClient",
    "Calibration",
    "Client",
    "ConnectionFailed",
    "ContractBroken",
    "Coverage",
    "Covered",
    "EngineFault",
    "FingerprintChanged",
    "Forbidden",
    "InternalError",
    "InvalidParameter",
    "InvalidRequest",
    "InvalidSequence",
    "MalformedBody",
    "NotFound",
    "NotStored",
    "Overloaded",
    "Prefetch",
    "ScoreFailure",
    "Scores",
    "SequenceErrors",
    "ServerAway",
    "Source",
    "TokenPriorityError",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
]

_ELSEWHERE = {
    "AsyncClient": "async_client",
    "Calibration": "calibration",
    "Client": "client",
    "Coverage": "coverage",
    "Covered": "coverage",
    "Prefetch": "prefetch",
    "ScoreFailure": "scores",
    "Scores": "scores",
    "Source": "source",
}
"""Module of each public name that is not an error."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
