"""Fingerprints: digests of everything that moves a number.

Knows weights, configs and tokenizers as bytes. Knows nothing of what they compute.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

DIGEST_BYTES = 16

# What a config says about where the model came from or which versions wrote it, not about what it computes. The dtype
# in effect is digested by itself.
_CONFIG_NOISE = ("_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype")

# Truncation and padding are left behind in the backend by the last call that used them.
_TOKENIZER_NOISE = ("truncation", "padding")


def tokenizer_fingerprint(tokenizer: Any | None) -> str:
    """32 hex digits over the tokenizer's vocabulary, rules, special tokens and chat template; empty if there is none.

    `tokenizer` is a transformers tokenizer; one without a `tokenizers` backend is known by its class and vocabulary.
    """
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = {key: rule for key, rule in json.loads(backend.to_str()).items() if key not in _TOKENIZER_NOISE}
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return digest(
        {
            "rules": rules,
            "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "chat_template": tokenizer.chat_template,
        }
    )


def model_fingerprint(model: Any, tokenizer: Any | None, numerics: dict[str, str]) -> str:
    """32 hex digits over a transformers model's weights and config, its tokenizer, and `numerics`.

    `numerics` names whatever else moves a number: dtype, device, attention, the versions of the code that computes.
    The same folder gives the same fingerprint in every process.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    digest.update(_json(_without_noise(json.loads(model.config.to_json_string(use_diff=False)))))
    digest.update(_json({"numerics": numerics, "tokenizer": tokenizer_fingerprint(tokenizer)}))
    _update_with_weights(digest, model)
    return digest.hexdigest()


def files_fingerprint(files: dict[str, str], tokenizer: Any | None, numerics: dict[str, str]) -> str:
    """32 hex digits over a checkpoint's files (name -> digest, `checkpoint.digest_files`), tokenizer and `numerics`.

    For engines that hold the weights in another process, or on another machine.
    """
    return digest({"files": files, "numerics": numerics, "tokenizer": tokenizer_fingerprint(tokenizer)})


def _update_with_weights(digest: Any, model: Any) -> None:
    """Name, dtype, shape and raw bytes of each tensor by name; a tied tensor's bytes once, then by its first name."""
    import torch  # here, so that a server without a torch model can digest its tokenizer

    first_name: dict[tuple[Any, ...], str] = {}
    for name, tensor in sorted(model.state_dict().items()):
        place = (str(tensor.device), tensor.data_ptr(), tensor.shape, tensor.stride())
        digest.update(_json([name, str(tensor.dtype), list(tensor.shape)]))
        if tensor.numel() and place in first_name:
            digest.update(_json({"tied to": first_name[place]}))
            continue
        first_name[place] = name
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _without_noise(value: Any) -> Any:
    """A config's fields, nested ones too, without those in `_CONFIG_NOISE`."""
    if isinstance(value, dict):
        return {key: _without_noise(each) for key, each in value.items() if key not in _CONFIG_NOISE}
    return [_without_noise(each) for each in value] if isinstance(value, list) else value


def _json(value: Any) -> bytes:
    # The trailing newline keeps two neighbours from reading as one.
    return json.dumps(value, sort_keys=True).encode() + b"\n"


def digest(value: Any) -> str:
    """32 hex digits over a value of JSON."""
    return hashlib.blake2b(_json(value), digest_size=DIGEST_BYTES).hexdigest()
