"""What a formula may ask of an array library.

`Array` is a numpy array or a torch tensor; `Namespace` is the part of the array API standard the formulas keep to.
numpy >= 2.1 is passed as itself, torch as `array_api_compat.torch`. This module imports neither.
"""

from __future__ import annotations

from typing import Any, Protocol

Array = Any
"""A numpy array or a torch tensor. Neither library's type covers the other, so the type is open."""


class Namespace(Protocol):
    """The array API standard (2024.12) as formulas use it; its functions are typed by each library in its own way.

    Held to the standard by the tests, which run every formula under `array_api_strict`.
    """

    def __getattr__(self, name: str) -> Any: ...
