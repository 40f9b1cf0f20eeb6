"""Who is in rotation: examined before it joins, its health asked while it is in.

Knows when a replica is examined and what it must agree with. Leaves the examination to `examination`.

Every `HEALTH_SECONDS` a replica's health is asked; one that is suspected, because a request failed there or was
answered unsoundly, is examined at once. One that does not pass is out, and is examined again after growing pauses
until it passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random

from tokenpriority_service.engines.remote.agreement import disagreement
from tokenpriority_service.engines.remote.examination import Examiner, Findings, Served, Unfit
from tokenpriority_service.engines.remote.replica import Refused, Replica, Unreachable
from tokenpriority_service.engines.remote.rotation import Rotation

HEALTH_SECONDS = 3.0
"""Between two health checks of a replica in rotation."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds before a replica out of rotation is examined again: doubling, less up to half."""

logger = logging.getLogger(__name__)


class Watch:
    """Lets replicas into a rotation and out of it; the first that passes is what the others must agree with."""

    def __init__(self, rotation: Rotation, examiner: Examiner) -> None:
        self._rotation = rotation
        self._examiner = examiner
        self._first: tuple[str, Findings] | None = None

    @property
    def served(self) -> Served:
        """What is served; constant once `start` has returned."""
        assert self._first is not None, "start has returned"
        return self._first[1].served

    async def start(self, seconds: float) -> None:
        """Examine all replicas until at least one is in rotation. Of several that pass, the first given counts.

        Raises ValueError, naming the field, when all are unfit, or after `seconds` without one that passes.
        """
        end = asyncio.get_running_loop().time() + seconds
        pause = FIRST_PAUSE
        while True:
            found = await asyncio.gather(*(self._examined(replica) for replica in self._rotation.replicas))
            for replica, result in zip(self._rotation.replicas, found, strict=True):
                self._settle(replica, result)
            if (fault := self._rotation.fault) is None:
                return
            unfit = [result for result in found if isinstance(result, Unfit)]
            if len(unfit) == len(found):
                raise ValueError(f"{unfit[0].field}: {fault}")
            if asyncio.get_running_loop().time() + pause > end:
                raise ValueError(f"urls: none answered within {seconds:g} s: {fault}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def run(self) -> None:
        """Watch all replicas until cancelled."""
        async with asyncio.TaskGroup() as group:
            for replica in self._rotation.replicas:
                group.create_task(self._watch(replica))

    async def _watch(self, replica: Replica) -> None:
        pause = FIRST_PAUSE
        while True:
            ready = replica.reason is None
            wait = HEALTH_SECONDS if ready else pause * (1 - random.random() / 2)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(replica.suspected.wait(), wait)
            if ready and not replica.suspected.is_set() and await self._healthy(replica):
                pause = FIRST_PAUSE
                continue
            replica.suspected.clear()
            self._settle(replica, await self._examined(replica))
            if not ready:
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _healthy(self, replica: Replica) -> bool:
        try:
            await replica.get("/health")
        except (Unreachable, Refused) as error:
            self._rotation.leave(replica, str(error))
            return False
        return True

    async def _examined(self, replica: Replica) -> Findings | Exception:
        try:
            return await self._examiner.examine(replica)
        except (Unfit, Unreachable, Refused) as error:
            return error
        except Exception as error:  # a bug must not end the watch over a replica
            logger.exception("examining replica %s failed", replica.url)
            return error

    def _settle(self, replica: Replica, result: Findings | Exception) -> None:
        if isinstance(result, Exception):
            self._rotation.leave(replica, str(result) or type(result).__name__)
        elif (objection := self._objection(replica, result)) is not None:
            self._rotation.leave(replica, objection)
        else:
            self._rotation.join(replica)

    def _objection(self, replica: Replica, findings: Findings) -> str | None:
        if self._first is None:
            self._first = (replica.url, findings)
        url, first = self._first
        difference = first.served.difference(findings.served)
        if difference is not None:
            return f"is not what {url} served at first: {difference}"
        apart = disagreement(first.probe, findings.probe)
        if apart is not None:
            return f"has other weights than {url} had at first: the log-probabilities of the probe differ, {apart}"
        return None
