"""The replicas in rotation, and whose turn it is.

Knows load and who may be asked. Knows nothing of why a replica joins or leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

from tokenpriority.errors import Unavailable
from tokenpriority_service.engines.remote.replica import Replica

logger = logging.getLogger(__name__)


class Rotation:
    """Hands out the replica with the fewest tokens in flight."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = replicas
        self._changed = asyncio.Event()

    @property
    def fault(self) -> str | None:
        """Why no replica can be asked, each with its reason; None if one can. May be read from any thread."""
        reasons = [(replica.url, replica.reason) for replica in self.replicas]
        if any(reason is None for _, reason in reasons):
            return None
        return "no replica can be used: " + "; ".join(f"{url}: {reason}" for url, reason in reasons)

    def join(self, replica: Replica) -> None:
        """It may be asked from now on."""
        if replica.reason is not None:
            logger.info("replica %s joins the rotation", replica.url)
        replica.reason = None
        self._wake()

    def leave(self, replica: Replica, reason: str) -> None:
        """It is not asked any more, and what it still owes is given up."""
        if replica.reason != reason:
            logger.warning("replica %s is out of rotation: %s", replica.url, reason)
        replica.leave(reason)
        self._wake()

    def hold(self, replica: Replica, seconds: float) -> None:
        """It stays in rotation, but is asked nothing for so long."""
        replica.hold(seconds)
        asyncio.get_running_loop().call_later(seconds, self._wake)

    @asynccontextmanager
    async def turn(self, tokens: int, tried: Collection[Replica]) -> AsyncIterator[Replica]:
        """A replica, others than those `tried` if there are any, counted as asked for so many tokens.

        Waits until one is free. Raises Unavailable at once while none is in rotation.
        """
        replica = await self._free(tried)
        replica.begin(tokens)
        try:
            yield replica
        finally:
            replica.end(tokens)
            self._wake()

    async def _free(self, tried: Collection[Replica]) -> Replica:
        while True:
            ready = [replica for replica in self.replicas if replica.reason is None]
            if not ready:
                raise Unavailable(self.fault or "no replica can be used")
            others = [replica for replica in ready if replica not in tried] or ready
            free = [replica for replica in others if replica.free]
            if free:
                return min(free, key=lambda replica: replica.tokens)
            await self._changed.wait()

    def _wake(self) -> None:
        """Let those who wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()
