"""Texts that are too long are refused before their length makes work, and none that fits is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokenpriority.errors import InvalidSequence
from tokenpriority.schema import SequenceItem
from tokenpriority_service.configuration.settings import ServerSettings, Settings, TeamSettings
from tokenpriority_service.engines.byte_tokenizer import byte_tokenizer
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.requests import length as lengths
from tokenpriority_service.requests.chat import Chat
from tokenpriority_service.requests.length import PIECE, Length
from tokenpriority_service.requests.text import Text, Tokens

UNMARKED = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
DIGITS = "1" * 4_000_000


class Watched:
    """A tokenizer, and how many characters it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self._tokenizer(text, **options)


def tokenize(tokenizer: Any, limit: int, **item: Any) -> Tokens:
    length = Length(next(iter(item)), [("reference", limit)])
    tokens = Text(tokenizer).tokens(msgspec.convert(item, SequenceItem), length, turns="messages" in item)
    length.check(len(tokens.ids))
    return tokens


def refusal(tokenizer: Any, limit: int, **item: Any) -> str:
    with pytest.raises(InvalidSequence) as caught:
        tokenize(tokenizer, limit, **item)
    return caught.value.message


@pytest.mark.parametrize("limit", [2, 512, 100_000])
@pytest.mark.parametrize(
    "item",
    [
        {"text": DIGITS},
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": DIGITS}]},
        {"prompt": DIGITS, "completion": "1"},
        {"prompt": "1", "completion": DIGITS},
        {"prompt": [{"role": "user", "content": DIGITS}], "completion": [{"role": "assistant", "content": "1"}]},
    ],
)
def test_what_is_clearly_too_long_is_not_tokenised_whole(item: dict[str, Any], limit: int) -> None:
    watched = Watched(byte_tokenizer())  # a token of every character here
    message = refusal(watched, limit, **item)
    assert message == (
        f"{next(iter(item))}: model 'reference' takes at most {limit} tokens (max_model_len), got more than {limit}"
    )
    assert watched.characters <= 2 * limit + 2 * PIECE


def test_turns_are_not_looked_for_in_what_is_too_long(
    make_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    render, rendered = Chat._render, []

    def counted(self: Chat, messages: Any, **options: Any) -> Any:
        rendered.append(len(messages))
        return render(self, messages, **options)

    monkeypatch.setattr(Chat, "_render", counted)
    messages = [{"role": "assistant", "content": "yes"}] * 200
    tokenizer = make_tokenizer(UNMARKED)
    whole = len(tokenize(tokenizer, 100_000, messages=messages).ids)
    assert len(rendered) == 1 + 2 * 200
    rendered.clear()
    assert f"got {whole}" in refusal(tokenizer, whole - 1, messages=messages)
    assert len(rendered) == 1


def test_what_fits_is_never_refused(tokenizer: Any, corpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pieces, whose cuts cost tokens; and what is over by one is told by its exact number."""
    monkeypatch.setattr(lengths, "SPARE", 4)
    text = "\n".join(corpus)[:30_000]
    ids = tokenizer(text)["input_ids"]
    for piece in (50, 777, 20_000):
        monkeypatch.setattr(lengths, "PIECE", piece)
        for limit in (len(ids), len(ids) + 1):
            assert tokenize(tokenizer, limit, text=text).ids.tolist() == ids
        assert refusal(tokenizer, len(ids) - 1, text=text).endswith(f"got {len(ids)}")
        assert refusal(tokenizer, len(ids) // 5, text=text).endswith(f"got more than {len(ids) // 5}")


def words() -> Any:
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def unigram() -> Any:
    return Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))


@pytest.mark.parametrize(("make", "filler", "tokens"), [(words, " ", 2), (words, "b", 1), (unigram, "漢", 3)])
def test_what_a_tokenizer_merges_counts_for_little(make: Callable[[], Any], filler: str, tokens: int) -> None:
    """Millions of blanks, or of characters that it does not know, may be one token, or none."""
    fast: Any = PreTrainedTokenizerFast  # untyped
    fast = fast(tokenizer_object=make())
    text = "a" + filler * (5 * PIECE) + "a"
    assert len(tokenize(fast, tokens, text=text).ids) == tokens


def test_the_least_of_several_limits_is_told() -> None:
    length = Length("text", [("one", 9), ("two", 5), ("three", 7)])
    length.check(5)
    with pytest.raises(InvalidSequence, match="'two' takes at most 5 tokens"):
        length.check(6)
    with pytest.raises(InvalidSequence, match=r"'two' takes at most 5 tokens .* got more than 5"):
        length.check_text("a" * (PIECE + 1), len)


def test_a_request_is_refused_at_the_sequence_that_is_too_much(serve: Any) -> None:
    few = ServerSettings(max_request_tokens=20, max_queued_tokens=40)
    with serve({"reference": FakeEngine()}, Settings(server=few)) as server:
        sequences = [{"text": "a" * 8}, {"token_ids": []}, {"text": "a" * 8}, {"text": "a" * 8}, {"text": "a"}]
        answer = server.post({"sequences": sequences})
        assert answer.status_code == 413
        assert "at most 20 tokens, got 24 in the first 4 of 5 sequences" in answer.json()["error"]["message"]
        assert server.post({"sequences": [*sequences[:3], {"text": "a" * 4}]}).status_code == 200


def test_labels_lie_in_so_many_messages(server: Any) -> None:
    messages = [{"role": "user", "content": "ab"}] * 257
    spans = [{"message": index, "start": 0, "end": 2, "priority": 7} for index in range(257)]
    item = {"messages": messages, "score_from": 1}
    most, over = server.score({**item, "spans": [*spans[1:], *spans[1:]]}, {**item, "spans": spans})
    assert most["priorities"].count(7) == 256 * 2
    assert over["error"]["message"] == "spans: those of a sequence lie in at most 256 messages, got 257"


def test_one_teams_texts_do_not_hold_up_the_others(serve: Any, probe: Any, wait_until: Any) -> None:
    release, lock, held = threading.Event(), threading.Lock(), []

    class Held(Watched):
        def __call__(self, text: str, **options: Any) -> Any:
            if text == "hold":
                with lock:
                    held.append(text)
                assert release.wait(30)
            return super().__call__(text, **options)

    class Holding(type(probe)):  # type: ignore[misc]
        tokenizer = Held(byte_tokenizer())

    teams = {name: TeamSettings(key_sha256=sha256(name.encode()).hexdigest()) for name in ("alpha", "beta")}
    with serve({"reference": Holding(probe.inner)}, Settings(teams=teams)) as server, ThreadPoolExecutor(60) as pool:

        def post(team: str, **item: Any) -> int:
            status: int = server.post({"sequences": [item]}, authorization=f"Bearer {team}").status_code
            return status

        try:
            many = [pool.submit(post, "alpha", text="hold") for _ in range(50)]
            wait_until(lambda: held and server.service.gate.active == 50, "the requests")
            assert post("beta", text="a text") == 200
            assert post("alpha", token_ids=[1] * 20_000) == 200  # worked on in a thread too, of another kind
            assert len(held) == 1
        finally:
            release.set()
        assert [each.result() for each in many] == [200] * 50
        assert len(held) == 50
