"""Real tokenizers of four kinds, made on the spot."""

from __future__ import annotations

from typing import Any

from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, SentencePieceUnigramTokenizer, Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence, Strip
from tokenizers.models import BPE
from tokenizers.normalizers import Prepend
from tokenizers.normalizers import Replace as ReplaceBefore
from tokenizers.normalizers import Sequence as InTurn
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

_FAST: Any = PreTrainedTokenizerFast


def made(backend: Any, **special: str) -> Any:
    """The tokenizer as transformers wraps it."""
    return _FAST(tokenizer_object=backend, **special)


def byte_level(text: str) -> Any:
    """Byte-level, of a smaller vocabulary than the student's, with a beginning that it adds by itself."""
    backend: Any = ByteLevelBPETokenizer()
    special = ["<s>", "</s>", "<|end|>"]
    backend.train_from_iterator([text[::-1], text], vocab_size=330, special_tokens=special, show_progress=False)
    backend._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made(backend._tokenizer, bos_token="<s>", eos_token="</s>")


def word_pieces(text: str) -> Any:
    """Words and their pieces without the spaces, with a beginning and an end that it adds by itself."""
    backend: Any = BertWordPieceTokenizer(lowercase=False)
    backend.train_from_iterator([text], vocab_size=300, show_progress=False)
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend._tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return made(backend._tokenizer, unk_token="[UNK]", cls_token="[CLS]", eos_token="[SEP]")


def byte_fallback() -> Any:
    """Single pieces and bytes, as Llama's: spaces are underlines, unknown characters their bytes."""
    alphabet = sorted(set("\u2581def(x):rtun1#"))
    vocab = {token: n for n, token in enumerate(["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *alphabet])}
    merges = [("d", "e"), ("de", "f"), ("\u2581", "def"), ("\u2581", "x")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    backend: Any = Tokenizer(BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = InTurn([Prepend("\u2581"), ReplaceBefore(" ", "\u2581")])
    backend.decoder = Sequence([Replace("\u2581", " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)])
    return made(backend, eos_token="</s>", unk_token="<unk>")


def unigrams(text: str) -> Any:
    """Pieces of a unigram model, spaces as underlines."""
    backend: Any = SentencePieceUnigramTokenizer()
    special = {"special_tokens": ["<unk>", "</s>"], "unk_token": "<unk>"}
    backend.train_from_iterator([text], vocab_size=300, show_progress=False, **special)
    return made(backend._tokenizer, eos_token="</s>", unk_token="<unk>")
