"""What a formula may ask of an array library.

`Array` is a numpy array or a torch tensor; `Namespace` is the part of the array API standard the formulas keep to.
numpy >= 2.1 is passed as itself, torch as `array_api_compat.torch`. This module imports neither.
"""

from __future__ import annotations

from typing import Any, Protocol

Array = Any
"""A numpy array or a torch tensor. Neither library's type covers the other, so the type is open."""


class Namespace(Protocol):
    """The functions of the array API standard (2023.12) that formulas use; a checker refuses any other."""

    @property
    def float64(self) -> Any: ...  # noqa: D102
    @property
    def int64(self) -> Any: ...  # noqa: D102
    @property
    def inf(self) -> float: ...  # noqa: D102

    # The standard's functions, by its names; each library types them its own way.
    @property
    def all(self) -> Any: ...  # noqa: D102
    @property
    def argsort(self) -> Any: ...  # noqa: D102
    @property
    def astype(self) -> Any: ...  # noqa: D102
    @property
    def exp(self) -> Any: ...  # noqa: D102
    @property
    def floor(self) -> Any: ...  # noqa: D102
    @property
    def full_like(self) -> Any: ...  # noqa: D102
    @property
    def isfinite(self) -> Any: ...  # noqa: D102
    @property
    def isnan(self) -> Any: ...  # noqa: D102
    @property
    def ones_like(self) -> Any: ...  # noqa: D102
    @property
    def sum(self) -> Any: ...  # noqa: D102
    @property
    def where(self) -> Any: ...  # noqa: D102
    @property
    def zeros_like(self) -> Any: ...  # noqa: D102
