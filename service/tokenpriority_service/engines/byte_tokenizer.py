"""A tokenizer without a file: one token per UTF-8 byte, and the markers of a small chat template.

Knows bytes and chat markers. Knows nothing of engines; it lets a model without weights take text and messages.
"""

from __future__ import annotations

from typing import Any

MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB_SIZE = 256 + len(MARKERS)
"""Ids in use: 0 to 255 are bytes (in the order of the byte-level alphabet), then the markers."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer() -> Any:
    """A transformers fast tokenizer; needs transformers installed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(MARKERS))
    build: Any = PreTrainedTokenizerFast  # its constructor is untyped
    return build(tokenizer_object=backend, eos_token=MARKERS[0], chat_template=CHAT_TEMPLATE)
