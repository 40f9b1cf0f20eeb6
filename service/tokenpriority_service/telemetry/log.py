"""The server's log: one JSON object per line on standard error.

Knows the shape of a line. What a request's line may hold is decided in record.py: never token content or keys. Nor may
they come in by an exception: the traceback of a record about a request says where and of which type, and leaves out the
message, which may quote what was sent.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, the record's `fields`, and a traceback if any.

    A record is about a request if its `fields` have a `request_id`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        fields: dict[str, object] = getattr(record, "fields", {})
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= fields
        if record.exc_info:
            error = record.exc_info[1]
            private = error is not None and "request_id" in fields
            line["traceback"] = _places(error) if private else self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _places(error: BaseException | None) -> str:
    """Where an exception and those before it were raised, and their types, the first first."""
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        parts.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(reversed(parts))


def configure() -> None:
    """Send this server's records, and all libraries' warnings, to standard error as JSON lines.

    Called once, by `serve`, before transformers is imported.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tokenpriority_service").setLevel(logging.INFO)
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # what it has to say database.py says, in a line
    logging.captureWarnings(True)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
