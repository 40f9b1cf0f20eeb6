"""Who is calling.

Knows the team of a caller, what its key allows, and its team's limits. Knows nothing of keys or tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from tokenpriority_service.configuration.settings import TeamSettings

ANYONE = "-"
"""The team of every caller where no key was ever made."""

Scope = Literal["score", "admin"]
"""What a route needs. A key of scope `admin` may also score."""
SCOPES: tuple[Scope, ...] = ("score", "admin")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one team may use; None is no limit. The fields are those of `[teams.NAME]`."""

    weight: float = 1.0
    tokens_per_minute: int | None = None
    concurrent_tokens: int | None = None

    @classmethod
    def declared(cls, settings: TeamSettings) -> Self:
        """The limits of a team that the configuration file declares."""
        return cls(settings.weight, settings.tokens_per_minute, settings.concurrent_tokens)

    @property
    def bounded(self) -> bool:
        """Whether there is anything to charge."""
        return self.tokens_per_minute is not None or self.concurrent_tokens is not None


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller let in."""

    team: str
    scopes: frozenset[str]
    limits: Limits = Limits()


OPEN = Caller(ANYONE, frozenset(SCOPES))
"""Every caller of a server without keys."""
