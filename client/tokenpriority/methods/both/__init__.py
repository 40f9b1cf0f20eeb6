"""Methods that hold the live student against a frozen model."""

from __future__ import annotations

from tokenpriority.methods.method import Method

BOTH: tuple[Method, ...] = ()
