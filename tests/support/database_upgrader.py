"""Processes that all bring one database up to date at the same moment."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from typing import Any

from tokenpriority_service.database.database import Database
from tokenpriority_service.database.upgrade import check, upgrade

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["pytest", "tokenpriority_service.database.upgrade", "psycopg"])


def together(url: str, processes: int) -> list[str]:
    """How it went in each process: "current", or the error."""
    barrier, queue = context.Barrier(processes), context.Queue()
    running = [context.Process(target=_upgrade, args=(url, barrier, queue), daemon=True) for _ in range(processes)]
    for process in running:
        process.start()
    ends = [queue.get(timeout=60) for _ in running]
    for process in running:
        process.join(60)
    return ends


def _upgrade(url: str, barrier: Barrier, queue: Any) -> None:
    database = Database(url)
    barrier.wait(60)
    try:
        upgrade(database)
        check(database)
    except Exception as error:
        queue.put(f"{error!r} {error.__cause__!r}")
    else:
        queue.put("current")
    database.close()
