"""Spans and priorities through TRL's tokenisation, truncation and packing, against a per-character brute force."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from tokenpriority_trainer import ColumnSource, LocalSource, PrioritySFTTrainer
from tokenpriority_trainer.errors import DataError

Prepare = Callable[..., Any]
END = "<|end|>"


@pytest.fixture
def prepare(make_model: Callable[..., Any], make_args: Callable[..., Any], tokenizer: Any) -> Prepare:
    """The train dataset as the trainer prepares it."""

    def made(rows: list[dict[str, Any]] | Any, **changes: Any) -> Any:
        dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
        from_column = isinstance(rows, list) and "priorities" in rows[0]
        trainer = PrioritySFTTrainer(
            make_model(),
            make_args(**changes),
            dataset,
            priorities=ColumnSource() if from_column else LocalSource("spans"),
            processing_class=tokenizer,
        )
        return trainer.train_dataset

    return made


def brute_force(tokenizer: Any, text: str, spans: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Token ids of an ASCII text and the label of each, found by walking its characters one token at a time."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    labels, start = [], 0
    for token in ids:
        end = start + len(tokenizer.decode([token]))
        hits = [s["priority"] for s in spans if any(s["start"] <= c < s["end"] for c in range(start, end))]
        labels.append(hits[-1] if hits else math.nan)
        start = end
    assert start == len(text)
    return ids, labels


def random_spans(rng: random.Random, length: int) -> list[dict[str, Any]]:
    spans = []
    for _ in range(rng.randrange(4)):
        start = rng.randrange(length)
        spans.append(
            {"start": start, "end": rng.randrange(start, length) + 1, "priority": rng.choice([-2.0, 0.0, 0.5])}
        )
    return spans


def random_texts(text: str, count: int = 24) -> list[dict[str, Any]]:
    rng = random.Random(0)
    pieces = [text[at : at + rng.randrange(5, 90)] for at in (rng.randrange(len(text) - 100) for _ in range(count))]
    return [{"text": piece, "spans": random_spans(rng, len(piece))} for piece in pieces]


def same(found: list[float], expected: list[float]) -> bool:
    pairs = list(zip(found, expected, strict=True))
    return all(f == e or (math.isnan(f) and math.isnan(e)) for f, e in pairs)


def truths(tokenizer: Any, rows: list[dict[str, Any]]) -> list[tuple[list[int], list[float]]]:
    return [brute_force(tokenizer, row["text"] + END, row["spans"]) for row in rows]


def assert_rows(found: Any, expected: list[tuple[list[int], list[float]]]) -> None:
    assert [row["input_ids"] for row in found] == [ids for ids, _ in expected]
    assert all(same(row["span_priorities"], labels) for row, (_, labels) in zip(found, expected, strict=True))


def test_spans_reach_the_tokens_they_overlap(prepare: Prepare, tokenizer: Any, text: str) -> None:
    rows = random_texts(text)
    assert_rows(prepare(rows), truths(tokenizer, rows))


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning")
@pytest.mark.parametrize(("mode", "window"), [("keep_start", slice(None, 12)), ("keep_end", slice(-12, None))])
def test_spans_are_truncated_with_their_tokens(
    prepare: Prepare, tokenizer: Any, text: str, mode: str, window: slice
) -> None:
    rows = random_texts(text)
    expected = [(ids[window], labels[window]) for ids, labels in truths(tokenizer, rows)]
    assert_rows(prepare(rows, max_length=12, truncation_mode=mode), expected)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_columns_are_packed_with_their_tokens(prepare: Prepare, strategy: str, shuffle: bool) -> None:
    # Every token's id is its own, and its label and priority are made from it: no other truth is needed.
    bounds = [0, 3, 40, 41, 60, 75, 90]
    examples = [list(range(start, end)) for start, end in itertools.pairwise(bounds)]
    rows = [{"input_ids": ids, "labels": ids} for ids in examples]
    ours = [
        {
            **row,
            "priorities": [i / 8 for i in row["input_ids"]],
            "spans": [{"start": k, "end": k + 1, "priority": -i / 4} for k, i in enumerate(row["input_ids"]) if i % 3],
        }
        for row in rows
    ]
    packing = {"packing": True, "packing_strategy": strategy, "max_length": 30, "shuffle_dataset": shuffle}
    found, plain = prepare(ours, **packing), prepare(rows, **packing)
    assert [row["input_ids"] for row in found] == [row["input_ids"] for row in plain]
    assert [row["labels"] for row in found] == [row["labels"] for row in plain]
    assert [row.get("seq_lengths") for row in found] == [row.get("seq_lengths") for row in plain]
    for row in found:
        assert row["priorities"] == [i / 8 for i in row["input_ids"]]
        assert same(row["span_priorities"], [-i / 4 if i % 3 else math.nan for i in row["input_ids"]])


def test_prompt_and_completion_are_one_text(prepare: Prepare, tokenizer: Any) -> None:
    spans = [{"start": 4, "end": 14, "priority": -1.0}]
    (row,) = prepare([{"prompt": "import json", "completion": "\nimport os", "spans": spans}])
    ids, labels = brute_force(tokenizer, "import json\nimport os" + END, spans)
    assert row["input_ids"] == ids
    assert row["labels"][0] == -100
    assert same(row["span_priorities"], labels)


CHAT = [
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "  json.dumps(user)\n"},
    {"role": "user", "content": "json.dumps(user)"},
]


@pytest.mark.parametrize("split", [None, 1])
def test_spans_of_a_chat_stand_in_the_message_they_name(prepare: Prepare, tokenizer: Any, split: int | None) -> None:
    """Contents repeat each other and the template's own words, and the template strips them: only position tells."""
    in_second = {"start": 2, "end": 6, "priority": -1.0, "message": 1}
    in_third = {"start": 0, "end": 2, "priority": 0.5, "message": 2}
    chat = {"messages": CHAT} if split is None else {"prompt": CHAT[:split], "completion": CHAT[split:]}
    (row,) = prepare([{**chat, "spans": [in_second, in_third]}])
    text = "<user>user<|end|><assistant>json.dumps(user)<|end|><user>json.dumps(user)<|end|>"
    first, second = text.index("json"), text.rindex("json")
    placed = [
        {"start": first, "end": first + 4, "priority": -1.0},
        {"start": second, "end": second + 2, "priority": 0.5},
    ]
    ids, labels = brute_force(tokenizer, text, placed)
    assert row["input_ids"] == ids
    assert same(row["span_priorities"], labels)


def test_spans_of_token_ids_are_in_tokens(prepare: Prepare) -> None:
    (row,) = prepare([{"input_ids": [5, 6, 7], "labels": [5, 6, 7], "spans": [{"start": 1, "end": 3, "priority": 2}]}])
    assert same(row["span_priorities"], [math.nan, 2.0, 2.0])


def test_unit_token_counts_the_tokens_of_a_text(prepare: Prepare) -> None:
    spans = [{"start": 1, "end": 2, "priority": -1.0, "unit": "token"}]
    (row,) = prepare([{"text": "import json", "spans": spans}])
    assert [k for k, v in enumerate(row["span_priorities"]) if not math.isnan(v)] == [1]


def test_a_streamed_dataset_is_prepared_alike(prepare: Prepare, text: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = random_texts(text, 4)
    streamed = prepare(IterableDataset.from_generator(lambda: iter(rows)), max_length=12)
    (said,) = [each.getMessage() for each in caplog.records if each.name == "tokenpriority_trainer.truncation"]
    assert said.startswith("train dataset: it is streamed, so span labels and examples lost to max_length 12 or")
    for found, expected in zip(streamed, prepare(rows, max_length=12), strict=True):
        assert found["input_ids"] == expected["input_ids"]
        assert same(found["span_priorities"], expected["span_priorities"])


def test_examples_without_a_trained_token_are_dropped_as_trl_drops_them(prepare: Prepare) -> None:
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, -100, 3], "priorities": [1.0, 1, 1]}] * 2
    rows[1] = {**rows[1], "labels": [-100, 2, 3]}
    assert [row["labels"] for row in prepare(rows, max_length=2)] == [[-100, 2]]


TEXT = {"text": "import json"}
TOKENS = {"input_ids": [1, 2], "labels": [1, 2]}


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({**TEXT, "spans": [{"start": 3, "end": 3, "priority": 1.0}]}, r"spans\[0\].end: must be greater than start 3"),
        (
            {**TEXT, "spans": [{"start": 3, "end": 12, "priority": 1.0}]},
            r"spans\[0\].end: the sequence has 11 characters",
        ),
        ({**TEXT, "spans": [{"start": 3, "end": 4, "priority": 101.0}]}, r"spans\[0\].*<= 100"),
        ({**TEXT, "spans": [{"start": 3, "end": 4, "priority": math.inf}]}, r"spans\[0\]"),
        ({**TEXT, "spans": [{"start": -1, "end": 4, "priority": 1.0}]}, r"spans\[0\].*>= 0"),
        ({**TEXT, "spans": [{"start": 3, "end": 4}]}, r"spans\[0\].*priority"),
        ({**TEXT, "spans": [{"start": 3, "end": 4, "priority": 1.0, "weight": 2}]}, r"spans\[0\].*weight"),
        ({**TEXT, "spans": [{"start": 3, "end": 4, "priority": 1.0, "message": 0}]}, r"message: goes with"),
        ({**TOKENS, "spans": [{"start": 1, "end": 3, "priority": 1.0}]}, r"spans\[0\].end: the sequence has 2 tokens"),
        ({**TOKENS, "spans": [{"start": 0, "end": 1, "priority": 1.0, "unit": "char"}]}, "must be 'token'"),
        ({"messages": CHAT, "spans": [{"start": 0, "end": 1, "priority": 1.0}]}, r"message: is required"),
        (
            {"messages": CHAT, "spans": [{"start": 0, "end": 1, "priority": 1.0, "message": 3}]},
            "number of messages 3, got 3",
        ),
        (
            {"messages": CHAT, "spans": [{"start": 0, "end": 1, "priority": 1.0, "message": 1}]},
            "trimmed off by the chat template",
        ),
        ({"conversations": [{"from": "human", "value": "a"}], "spans": []}, "spans need text, prompt"),
        ({**TOKENS, "priorities": [1.0]}, "2 tokens but its 'priorities' has 1 values"),
        ({**TOKENS, "priorities": None}, "2 tokens but its 'priorities' is missing"),
        ({**TOKENS, "priorities": [1.0, math.nan]}, r"priorities\[1\] is nan"),
        ({**TOKENS, "priorities": [1.0, None]}, r"priorities\[1\] is None"),
        ({**TEXT, "priorities": [1.0, 1.0]}, "tokens but its 'priorities' has 2 values"),
    ],
)
def test_what_does_not_fit_names_the_example_and_the_field(prepare: Prepare, row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=f"train dataset, example 0: .*{what}"):
        prepare([row])


def test_the_number_of_the_example_is_named(prepare: Prepare) -> None:
    bad = {**TEXT, "spans": [{"start": 0, "end": 99, "priority": 1.0}]}
    with pytest.raises(DataError, match="example 1: "):
        prepare([{**TEXT, "spans": []}, bad])


def test_a_template_that_rewrites_a_message_is_refused(prepare: Prepare, tokenizer: Any, monkeypatch: Any) -> None:
    shouting = tokenizer.chat_template.replace("| trim", "| upper")
    monkeypatch.setattr(tokenizer, "chat_template", shouting)
    spans = [{"start": 2, "end": 6, "priority": -1.0, "message": 1}]
    with pytest.raises(DataError, match=r"messages\[1\].content: the chat template does not show it"):
        prepare([{"messages": CHAT, "spans": spans}])


def test_tokens_other_than_trls_are_refused(prepare: Prepare, tokenizer: Any, monkeypatch: Any) -> None:
    """Should TRL one day make other tokens of a text, spans must not be laid over them."""
    monkeypatch.setattr("trl.trainer.sft_trainer._tokenize", lambda *_, **__: {"input_ids": [1, 2, 3]})
    with pytest.raises(DataError, match="example 0: its spans were aligned to other tokens than TRL made"):
        prepare([{**TEXT, "spans": []}])
