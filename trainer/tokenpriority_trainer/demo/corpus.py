"""Real text: the Python standard library's own sources, split by file, and a tokenizer made from them.

Knows files and windows of tokens. Knows nothing of noise, models or training. Everything here is a function of the
installed Python and of the seed: same interpreter, same text, same windows.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
Ids = np.ndarray[Any, np.dtype[np.int64]]

# Tests and installed packages are not the library; encodings and pydoc_data are generated tables, which would
# make a file's NLL say more of the table than of the model.
_LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"})
_PLACES = ("heldout", "tuning", "curated", "tuning", "tuning", "tuning", "curated", "tuning")
"""Where file i of the packages goes, by i modulo 8."""


class CorpusTooSmall(RuntimeError):
    """This Python's standard library has too little source text for the demo."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Paths of the four parts, disjoint by file, each in sorted order."""

    base: tuple[Path, ...]
    """What the base model is trained on: the library's top-level modules."""
    curated: tuple[Path, ...]
    """What the reference sees on top: files of the packages, clean, seen by neither base nor fine-tuning."""
    tuning: tuple[Path, ...]
    """What the fine-tuning set is made from: files of the packages, which are new to the base."""
    heldout: tuple[Path, ...]
    """What nothing is trained on: files of the packages."""


def split_sources(max_bytes: int | None = None) -> Corpus:
    """The standard library's sources in four parts: modules for the base; package file i by i modulo 8.

    Only ASCII files are taken, so that a window cut at any token is text. `max_bytes` stops reading modules, and
    stops reading packages, once so much of them has been taken.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(root.rglob("*.py")) if _is_taken(path, root)]
    modules = _first([path for path in files if path.parent == root], max_bytes)
    packages = _first([path for path in files if path.parent != root], max_bytes)
    parts = {
        name: tuple(path for index, path in enumerate(packages) if _PLACES[index % len(_PLACES)] == name)
        for name in ("curated", "tuning", "heldout")
    }
    return Corpus(base=tuple(modules), **parts)


def train_tokenizer(paths: Iterable[Path], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocab_size` tokens made from these files."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        (_read(path) for path in paths), vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def windows(tokenizer: PreTrainedTokenizerFast, paths: Iterable[Path], length: int, seed: int) -> Ids:
    """Every whole window of `length` tokens, none across files, in an order the seed decides: (N, length) int64."""
    texts = [_read(path) for path in paths]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    whole = [np.array(ids[: len(ids) // length * length], np.int64).reshape(-1, length) for ids in encoded]
    rows = np.concatenate([np.empty((0, length), np.int64), *whole])
    return np.random.default_rng(seed).permutation(rows)


def decode(tokenizer: PreTrainedTokenizerFast, token_ids: Ids) -> str:
    """The text of some tokens, shape (T,)."""
    return str(tokenizer.decode(token_ids.tolist()))


def at_least(rows: Ids, count: int, part: str) -> Ids:
    """The first `count` rows. Raises CorpusTooSmall, naming the part, if there are fewer."""
    if len(rows) < count:
        raise CorpusTooSmall(
            f"the {part} part of this Python's standard library holds {len(rows)} sequences of {rows.shape[1]} tokens, "
            f"the demo needs {count}"
        )
    return rows[:count]


def _is_taken(path: Path, root: Path) -> bool:
    return not _LEFT_OUT.intersection(path.relative_to(root).parts) and path.is_file() and path.read_bytes().isascii()


def _first(paths: list[Path], max_bytes: int | None) -> list[Path]:
    """Paths from the first on, as long as those before it hold fewer than `max_bytes`."""
    if max_bytes is None:
        return paths
    before = accumulate((path.stat().st_size for path in paths), initial=0)
    return [path for path, taken in zip(paths, before, strict=False) if taken < max_bytes]


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii")
