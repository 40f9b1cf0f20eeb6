"""A checkpoint as files: its tokenizer, and the digest of what is in it.

Knows folders and the hub's cache. Knows nothing of engines; nothing is computed with the weights.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer
from transformers.utils.hub import has_file

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_CHUNK = 1 << 22


def load_tokenizer(model: str, revision: str | None = None) -> Any | None:
    """The transformers tokenizer beside a checkpoint, a folder or a hub name; None if there is none."""
    # Without these files transformers makes up an empty tokenizer for some architectures.
    if not any(has_file(model, name, revision=revision) for name in _TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)


def checkpoint_files(model: str, revision: str | None = None) -> list[Path]:
    """The weights and config.json, or adapter_config.json, of a folder, or of a hub name that has been downloaded.

    Raises ValueError if there are no weights.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
    weights = sorted(path for pattern in _WEIGHTS for path in folder.rglob(pattern))
    if not weights:
        raise ValueError(f"model: no weights ({', '.join(_WEIGHTS)}) in {model}")
    configs = [folder / name for name in ("config.json", "adapter_config.json")]
    return [*(path for path in configs if path.is_file()), *weights]


def digest_files(files: list[Path]) -> dict[str, str]:
    """Path below the folder -> hex blake2b of each file's bytes; some gigabytes a second from a warm disk."""
    folder = os.path.commonpath([path.parent for path in files])
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = pool.map(_digest, files)
        return {path.relative_to(folder).as_posix(): digest for path, digest in zip(files, digests, strict=True)}


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
