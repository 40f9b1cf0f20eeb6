"""The disk is full: scoring goes on, a metric and one line of the log say so, and it mends once there is room."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from replica import Ids, Replica, configured, fresh, logprobs, results, run, truth

FAILURES = "tokenpriority_store_failures_total"


class Disk:
    """A small disk of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _mount("-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder))

    def grow(self) -> None:
        """Room for all."""
        _mount("-o", "remount,size=64m", str(self.folder))

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", str(self.folder)], check=True, timeout=30)


def _mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True, capture_output=True, timeout=30)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        made = Disk(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a small disk takes rights this machine does not give: {error}")
    try:
        yield made
    finally:
        made.close()


def test_scoring_goes_on_and_says_so(disk: Disk, tmp_path: Path) -> None:
    """Also for a team whose every request is charged in a database on that disk."""
    key = "a key of some length, as nobody would choose"
    team = (
        f'[teams.limited]\nkey_sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\ntokens_per_minute = 1_000_000_000'
    )
    config = configured(tmp_path, f"sqlite:///{disk.folder / 'evidence.db'}", f"[store]\nmemory_bytes = 0\n{team}")
    admin = run(config, "keys", "create", "--team", "platform", "--scope", "admin")
    with Replica(config) as replica:

        def score(sequences: list[Ids]) -> list[Ids]:
            """The sequences, each scored and right."""
            for ids, result in zip(sequences, results(replica.score(sequences, key)), strict=True):
                np.testing.assert_array_equal(logprobs(result), truth(ids))
            return sequences

        assert replica.metric(FAILURES, admin) == 0
        kept = score(fresh(20, 64))
        deadline = time.monotonic() + 60
        while not replica.metric(FAILURES, admin):
            score(fresh(40, 512))
            assert time.monotonic() < deadline, "the disk never filled"
        for _ in range(300):
            score(fresh(1, 64))
        assert len(_told(replica, "the store does not work")) == 1
        score(kept)  # reading goes on too
        disk.grow()
        while not _told(replica, "the store works again"):
            score(fresh(5, 64))
            assert time.monotonic() < deadline, "it never mended"
            time.sleep(0.1)
        last = score(fresh(5, 64))
        while not all(result.cached is True for result in results(replica.score(last, key, cached_only=True))):
            assert time.monotonic() < deadline, "never written"
            time.sleep(0.1)
        assert len(_told(replica, "the store does not work")) == 1
        assert "Traceback" not in replica.log


def _told(replica: Replica, words: str) -> list[str]:
    """Lines of the log with these words."""
    return [line for line in replica.log.splitlines() if words in json.loads(line)["message"]]
