"""A Parquet file that is written part by part and can be gone on with.

Knows rows, parts and the job they belong to. Parts end at fixed counts, so an interrupted and an uninterrupted run
write the same bytes. Knows nothing of the server.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tokenpriority.errors import TokenPriorityError
from tokenpriority.scores import ScoreFailure, Scores

PART_ROWS = 1024
PART_TOKENS = 131_072
"""A part ends with the row that reaches either; what a kill can lose is less than one part."""
_JOB = b"tokenpriority"


class OtherJob(TokenPriorityError):
    """The output was begun from another file, by another model or with another method."""


class Parts:
    """The output of one job: `OUT.parts/` while it runs, OUT once it is whole."""

    def __init__(self, out: Path, job: dict[str, Any], signals: Iterable[str]) -> None:
        self.out = out
        self._job = json.dumps(job, sort_keys=True)
        self._folder = out.with_name(out.name + ".parts")
        self._signals = tuple(signals)
        floats, self._rows, self._tokens = pa.list_(pa.float32()), list[Scores | ScoreFailure](), 0
        self._schema = pa.schema(
            [("id", pa.string()), ("token_ids", pa.list_(pa.uint32())), ("logprobs", floats), ("priorities", floats)]
            + [(name, floats) for name in self._signals]
            + [("error", pa.string())],
            metadata={_JOB: self._job},
        )
        self.complete = out.exists()
        """Whether the job was already finished. Raises OtherJob if what is there belongs to another one."""
        self._parts = [] if self.complete else sorted(self._folder.glob("*.parquet"))
        if self.complete:
            self._must_match((parquet.read_schema(out).metadata or {}).get(_JOB, b"{}").decode(), out)
            self._remove_leftover()
        elif self._parts:
            self._must_match((self._folder / "job.json").read_text("utf-8"), self._folder)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / "job.json").write_text(self._job, "utf-8")

    @property
    def rows(self) -> int:
        """Rows in complete parts."""
        return sum(parquet.read_metadata(part).num_rows for part in self._parts)

    def add(self, row: Scores | ScoreFailure) -> None:
        """Take the next row."""
        self._rows.append(row)
        self._tokens += len(row.token_ids) if isinstance(row, Scores) else 0
        if len(self._rows) >= PART_ROWS or self._tokens >= PART_TOKENS:
            self._end_part()

    def finish(self) -> tuple[int, int]:
        """Join the parts into OUT; rows and failed rows of the whole job."""
        if self._rows:
            self._end_part()
        failed = 0
        partial = self._folder / "joined.tmp"
        with parquet.ParquetWriter(partial, self._schema) as writer:
            for part in self._parts:
                table = parquet.read_table(part, schema=self._schema)
                failed += len(table) - table["error"].null_count
                writer.write_table(table)
        rows = self.rows
        partial.replace(self.out)
        shutil.rmtree(self._folder)
        return rows, failed

    def _remove_leftover(self) -> None:
        """Remove the parts a kill left beside the whole file; its job.json may be removed already."""
        job = self._folder / "job.json"
        if job.exists():
            self._must_match(job.read_text("utf-8"), self._folder)
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def _end_part(self) -> None:
        """Write the rows at hand as a part: whole and on the disk, or not there."""
        partial = self._folder / "part.tmp"
        with partial.open("wb") as file:
            parquet.write_table(self._table(), file)
            file.flush()
            os.fsync(file.fileno())
        part = self._folder / f"{len(self._parts):08d}.parquet"
        partial.replace(part)
        self._parts.append(part)
        self._rows, self._tokens = [], 0

    def _table(self) -> Any:
        scored = [row if isinstance(row, Scores) else None for row in self._rows]
        columns: dict[str, list[Any]] = {
            "id": [str(row.id) for row in self._rows],
            **{name: [s and getattr(s, name) for s in scored] for name in ("token_ids", "logprobs", "priorities")},
            **{name: [s and s.signals[name] for s in scored] for name in self._signals},
            "error": [str(row.error) if isinstance(row, ScoreFailure) else None for row in self._rows],
        }
        return pa.table(columns, schema=self._schema)

    def _must_match(self, begun: str, where: Path) -> None:
        if begun == self._job:
            return
        was, now = json.loads(begun), json.loads(self._job)
        differences = "; ".join(
            f"{key}: {was.get(key)} there, {now[key]} now" for key in now if was.get(key) != now[key]
        )
        raise OtherJob(f"{where} belongs to another job ({differences}); remove it or choose another --out")
