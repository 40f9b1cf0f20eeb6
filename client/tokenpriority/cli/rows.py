"""Sequences from a JSONL or Parquet file, row by row.

Knows the two formats and which columns the contract has. Judges no row: one that is not even a JSON object is handed
on as a failure in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from tokenpriority.errors import InvalidSequence
from tokenpriority.schema import SequenceItem
from tokenpriority.scores import ScoreFailure

COLUMNS = frozenset(SequenceItem.__struct_fields__)
"""Columns of a file that are read; others are counted in `Rows.ignored`."""
BATCH = 256


class Rows:
    """The rows of a file from number `skip` on: mappings with an `id`, or failures."""

    def __init__(self, path: Path, skip: int = 0) -> None:
        self.path = path
        self.skip = skip
        self.ignored: set[str] = set()
        """Columns met and not read."""
        self._parquet = path.suffix == ".parquet"
        self._count, self.digest = self._parquet_measure() if self._parquet else self._lines_measure()

    def __len__(self) -> int:
        return max(self._count - self.skip, 0)

    def __iter__(self) -> Iterator[dict[str, Any] | ScoreFailure]:
        rows = self._read_parquet() if self._parquet else self._read_lines()
        for number, row in enumerate(islice(rows, self.skip, None), self.skip):
            yield self._sequence(row, number)

    def _sequence(self, row: Any, number: int) -> dict[str, Any] | ScoreFailure:
        if isinstance(row, InvalidSequence):
            return ScoreFailure(number, row)
        if not isinstance(row, dict):
            return ScoreFailure(number, InvalidSequence(f"row {number}: must be an object, got {type(row).__name__}"))
        self.ignored |= row.keys() - COLUMNS
        known = {key: value for key, value in row.items() if key in COLUMNS and value is not None}
        return {"id": number, **known}

    def _read_lines(self) -> Iterator[Any]:
        with self.path.open("rb") as file:
            for number, line in enumerate(filter(bytes.strip, file)):
                try:
                    yield msgspec.json.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    yield InvalidSequence(f"row {number}: not JSON: {error}")

    def _read_parquet(self) -> Iterator[Any]:
        from pyarrow import parquet

        with parquet.ParquetFile(self.path) as file:
            names = file.schema_arrow.names
            self.ignored |= set(names) - COLUMNS
            for batch in file.iter_batches(BATCH, columns=[name for name in names if name in COLUMNS]):
                yield from (_without_nulls(row) for row in batch.to_pylist())

    def _lines_measure(self) -> tuple[int, str]:
        digest, count = hashlib.blake2b(digest_size=16), 0
        with self.path.open("rb") as file:
            for line in file:
                digest.update(line)
                count += bool(line.strip())
        return count, digest.hexdigest()

    def _parquet_measure(self) -> tuple[int, str]:
        from pyarrow import parquet

        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return parquet.read_metadata(self.path).num_rows, digest


def _without_nulls(value: Any) -> Any:
    """A Parquet struct without its absent fields; the contract has no null."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_without_nulls(inner) for inner in value]
    return value
