"""Methods that push tokens down: negative priorities, each with the rule by which they end."""

from __future__ import annotations

from tokenpriority.methods.method import Method

UNLEARNING: tuple[Method, ...] = ()
