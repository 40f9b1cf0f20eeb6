"""Who is calling: from a bearer key to the name of a team.

Knows hashes of keys, never keys. With no teams configured the server is open, and `command.py` keeps it on loopback.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from tokenpriority.errors import Unauthorized
from tokenpriority_service.settings import TeamSettings

ANYONE = "-"
"""The team of every caller where no teams are configured."""


class Teams:
    """The teams of a server."""

    def __init__(self, teams: Mapping[str, TeamSettings]) -> None:
        self._digests = {name: bytes.fromhex(team.key_sha256) for name, team in teams.items()}

    @property
    def open(self) -> bool:
        """Whether anyone may call."""
        return not self._digests

    def team(self, authorization: str | None) -> str:
        """The team behind an Authorization header. Raises Unauthorized if the key is missing or unknown."""
        if self.open:
            return ANYONE
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("Authorization: this server needs a key, as 'Bearer KEY'")
        # Header values reach us decoded as latin-1; this gives back the bytes that were sent.
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        # Every digest is compared, each in constant time, so that timing tells nothing of which one matched.
        matches = [name for name, known in self._digests.items() if hmac.compare_digest(known, digest)]
        if not matches:
            raise Unauthorized("Authorization: unknown key")
        return matches[0]
