"""Whether the database serves the store.

Knows when it was last found not to, and who is told. A database that does not work is left alone for a while, so that
requests do not wait for it one after another.
"""

from __future__ import annotations

import logging
import time
from typing import Literal

from tokenpriority_service.database.database import reason
from tokenpriority_service.store.store import StoreWatch

Operation = Literal["find", "keep"]

RETRY_SECONDS = 2.0
"""How long an operation that failed is not tried again."""

logger = logging.getLogger(__name__)


class Health:
    """What works and what does not: reading may, while writing meets a full disk."""

    def __init__(self, watch: StoreWatch) -> None:
        self._watch = watch
        self._retry_at: dict[Operation, float] = {}
        """The operations that failed when last tried."""

    def usable(self, operation: Operation) -> bool:
        """Whether to try it now."""
        return time.monotonic() >= self._retry_at.get(operation, 0.0)

    def failed(self, operation: Operation, error: Exception) -> None:
        """It did not work; one line in the log when the trouble begins."""
        if not self._retry_at:
            logger.warning("the store does not work: %s: %s", operation, reason(error))
        self._retry_at[operation] = time.monotonic() + RETRY_SECONDS
        self.lost(operation)

    def lost(self, operation: Operation) -> None:
        """It was not tried."""
        self._watch.store_failed(operation)

    def worked(self, operation: Operation) -> None:
        """It worked; one line in the log when the trouble is over."""
        if self._retry_at.pop(operation, None) is not None and not self._retry_at:
            logger.warning("the store works again")
