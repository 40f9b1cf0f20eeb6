"""Evidence that has been computed before, by content: in `blocks`, kept in memory and in a table of a database."""

from tokenpriority_service.store.blocks import BLOCK_OVERHEAD, BLOCK_TOKENS, Wanted, content_keys
from tokenpriority_service.store.layered import LayeredStore
from tokenpriority_service.store.memory import MemoryStore
from tokenpriority_service.store.store import EvidenceStore, StoreWatch

__all__ = [
    "BLOCK_OVERHEAD",
    "BLOCK_TOKENS",
    "EvidenceStore",
    "LayeredStore",
    "MemoryStore",
    "StoreWatch",
    "Wanted",
    "content_keys",
]
