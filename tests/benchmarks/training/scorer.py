"""Serves scorers of a given speed: `python scorer.py VOCABULARY SECONDS ROWS CV...`. Prints its address.

The service is the real one. Its models are fake ones: `never-late`, and one per CV, of that name, that has one batch at
a time and takes SECONDS for ROWS sequences on average, with that coefficient of variation from batch to batch (gamma).
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence

from tokenpriority_service.app import create_app
from tokenpriority_service.configuration.settings import Settings
from tokenpriority_service.engines.engine import Engine, Job, Rows
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.telemetry import log
from tokenpriority_service.web.server import Server, listen


class Paced(FakeEngine):
    """The fake engine, as slow as it is told.

    Each sequence takes a time of its own, so that it does not matter how the service puts them together: those of a
    batch add up to a gamma variable of mean `seconds` and the coefficient of variation `cv`.
    """

    def __init__(self, vocabulary: int, seconds: float, rows: int, cv: float) -> None:
        super().__init__(model=f"cv {cv}", vocab_size=vocabulary)
        self._shape, self._scale = 1 / (rows * cv**2), seconds * cv**2
        self._random = random.Random(0)
        self._busy = asyncio.Lock()

    async def score(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
        """As the fake engine, after those that came before."""
        async with self._busy:
            await asyncio.sleep(sum(self._random.gammavariate(self._shape, self._scale) for _ in jobs))
            return await super().score(jobs)


def main(vocabulary: int, seconds: float, rows: int, jitters: list[str]) -> None:
    log.configure()
    engines: dict[str, Engine] = {cv: Paced(vocabulary, seconds, rows, float(cv)) for cv in jitters}
    engines["never-late"] = FakeEngine(vocab_size=vocabulary)
    sock = listen("127.0.0.1", 0)
    app = create_app(Settings(), engines=engines)
    print(f"http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    Server(app, app.state.service.gate, 2.0).run(sockets=[sock])


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
