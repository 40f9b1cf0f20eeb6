"""Spans, through the server, against a per-character brute force."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = st.text(st.sampled_from("ab (){}=\n\té漢🙂" + "returnself"), min_size=1, max_size=60)
PRIORITY = st.sampled_from([-3.0, -0.5, 0.0, 2.0])


@st.composite
def labelled(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]]]:
    text = draw(TEXT)
    return text, [
        {"start": start, "end": draw(st.integers(start + 1, len(text))), "priority": draw(PRIORITY)}
        for start in draw(st.lists(st.integers(0, len(text) - 1), max_size=4))
    ]


@settings(max_examples=150, deadline=None)
@given(case=labelled(), skip=st.integers(0, 5))
def test_char_spans(torch_server: Any, tokenizer: Any, case: tuple[str, list[dict[str, Any]]], skip: int) -> None:
    text, spans = case
    encoding = tokenizer(text, return_offsets_mapping=True)
    length = len(encoding["input_ids"])
    start = min(skip, length)
    expected = [float(start <= i and i > 0) for i in range(length)]
    covered = True
    for span in spans:
        characters = set(range(span["start"], span["end"]))
        hit = [i for i, (a, b) in enumerate(encoding["offset_mapping"]) if characters & set(range(a, b))]
        covered &= bool(hit)
        for i in hit:
            if i >= start and i > 0:
                expected[i] = span["priority"]
    result = torch_server.score({"text": text, "spans": spans, "score_from": start})[0]
    assert covered, "a byte-level tokenizer covers every character"
    assert result["priorities"] == expected


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_token_and_char_spans_in_order(torch_server: Any, tokenizer: Any, data: st.DataObject) -> None:
    """Both units in one sequence: of overlapping spans the later one holds, whatever its unit."""
    text, spans = data.draw(labelled())
    encoding = tokenizer(text, return_offsets_mapping=True)
    length = len(encoding["input_ids"])
    expected = [float(i > 0) for i in range(length)]
    for span in spans:
        inside = set(range(span["start"], span["end"]))
        if data.draw(st.booleans()):
            span["unit"] = "token"
            span["start"] %= length
            span["end"] = min(max(span["end"], span["start"] + 1), length)
            inside = set(range(span["start"], span["end"]))
            hit = sorted(inside)
        else:
            hit = [i for i, (a, b) in enumerate(encoding["offset_mapping"]) if inside & set(range(a, b))]
        for i in hit:
            expected[i] = span["priority"] if i else 0.0
    assert torch_server.score({"text": text, "spans": spans})[0]["priorities"] == expected


def test_labels_lie_over_any_method_and_under_the_mask(torch_server: Any) -> None:
    ids = list(range(30, 40))
    span = {"start": 2, "end": 6, "priority": -2.0}
    for method in ({"name": "prift_prob"}, {"name": "spans", "params": {"outside": 0.25}}):
        item = {"token_ids": ids, "mask": [1, 1, 1, 0, 1, 1, 1, 1, 1, 0]}
        plain = torch_server.score(item, method=method)[0]["priorities"]
        got = torch_server.score({**item, "spans": [span]}, method=method)[0]["priorities"]
        assert got == [-2.0 if i in (2, 4, 5) else p for i, p in enumerate(plain)]
        assert plain[3] == plain[9] == 0.0
