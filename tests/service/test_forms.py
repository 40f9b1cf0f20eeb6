"""The text forms against the tokenizer called directly."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenpriority_service.requests.chat import Chat

HEAD = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TRIMMING = HEAD.replace("m.content", "m.content.strip()") + PROMPT
# Drops what an earlier assistant turn thought, as reasoning models' templates do.
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}" + PROMPT
)
TALK = [
    {"role": "system", "content": "Answer in code."},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "def f():\n    return 'é'\n"},
    {"role": "user", "content": "def f"},
    {"role": "assistant", "content": "f()"},
]
TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=40)


def scored(result: dict[str, Any]) -> list[int]:
    assert "error" not in result, result
    return [i for i, priority in enumerate(result["priorities"]) if priority]


def turns(ids: list[int], tokenizer: Any) -> list[int]:
    """Brute force over token ids: what follows '<|im_start|>assistant\\n', to the newline after '<|im_end|>'."""
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    header = tokenizer("assistant\n", add_special_tokens=False)["input_ids"]
    out: list[int] = []
    for i, token in enumerate(ids):
        if token == start and ids[i + 1 : i + 1 + len(header)] == header:
            first = i + 1 + len(header)
            out += range(first, ids.index(end, first) + 2)
    return out


@pytest.fixture(scope="module")
def with_template(serve: Any, make_probe: Callable[..., Any], make_tokenizer: Callable[..., Any]) -> Any:
    """Makes a server whose model has this chat template."""
    from tokenpriority_service.engines.fake import FakeEngine

    def make(template: str) -> Any:
        probe = make_probe(FakeEngine())
        fast = make_tokenizer(template)

        class Templated(type(probe)):  # type: ignore[misc]
            tokenizer = fast

        return serve({"reference": Templated(probe.inner)})

    return make


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_text_is_the_tokenizers_own_call(torch_server: Any, tokenizer: Any, text: str) -> None:
    result = torch_server.score({"text": text}, offsets=True)[0]
    expected = tokenizer(text, return_offsets_mapping=True)
    assert result["token_ids"] == expected["input_ids"]
    assert result["token_ids"][0] == tokenizer.bos_token_id
    assert result["offsets"] == [edge for pair in expected["offset_mapping"] for edge in pair]
    assert result["text"] == text
    assert scored(result) == list(range(1, len(expected["input_ids"])))


@settings(max_examples=40, deadline=None)
@given(prompt=TEXTS, completion=TEXTS.filter(bool))
def test_prompt_and_completion_strings(torch_server: Any, tokenizer: Any, prompt: str, completion: str) -> None:
    head, whole = (tokenizer(text)["input_ids"] for text in (prompt, prompt + completion))
    start = 0
    while start < min(len(head), len(whole)) and head[start] == whole[start]:
        start += 1
    result = torch_server.score({"prompt": prompt, "completion": completion}, offsets=True)[0]
    assert result["token_ids"] == whole
    assert scored(result) == list(range(start, len(whole)))
    assert result["text"] == prompt + completion


def test_no_end_of_sequence_is_added(torch_server: Any, tokenizer: Any) -> None:
    bare, ended = torch_server.score(
        {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b" + tokenizer.eos_token}
    )
    assert tokenizer.eos_token_id not in bare["token_ids"]
    assert ended["token_ids"] == [*bare["token_ids"], tokenizer.eos_token_id]
    assert scored(ended)[-1] == len(ended["token_ids"]) - 1


@pytest.mark.parametrize("messages", [TALK, TALK[1:3], TALK[2:3] + TALK[1:3]])
def test_messages_with_generation_marks(torch_server: Any, tokenizer: Any, messages: list[Any]) -> None:
    result = torch_server.score({"messages": messages}, offsets=True)[0]
    expected = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    assert result["token_ids"] == expected["input_ids"]
    assert scored(result) == [i for i, bit in enumerate(expected["assistant_masks"]) if bit]
    assert scored(result) == turns(result["token_ids"], tokenizer)
    assert result["text"] == tokenizer.apply_chat_template(messages, tokenize=False)


def test_messages_without_generation_marks_score_the_same(
    torch_server: Any, tokenizer: Any, with_template: Callable[..., Any]
) -> None:
    marked = torch_server.score({"messages": TALK})[0]
    with with_template(HEAD + PROMPT) as server:
        unmarked = server.score({"messages": TALK})[0]
    assert unmarked["token_ids"] == marked["token_ids"]
    assert scored(unmarked) == scored(marked)


def test_a_template_that_rewrites_turns_is_refused_not_guessed_at(with_template: Callable[..., Any]) -> None:
    thinking = [*TALK[:2], {"role": "assistant", "content": "<think>no</think>yes"}, *TALK[3:]]
    with with_template(FORGETFUL) as server:
        refused, last = server.score({"messages": thinking}, {"messages": thinking[:3]})
        assert "messages[2]" in refused["error"]["message"]
        assert "generation" in refused["error"]["message"]
        assert scored(last)
        assert scored(server.score({"messages": thinking, "score_from": 0})[0])


def test_too_many_unmarked_turns(with_template: Callable[..., Any]) -> None:
    with with_template(HEAD + PROMPT) as server:
        result = server.score({"messages": TALK[1:3] * 257})[0]
    assert "256 assistant turns, got 257" in result["error"]["message"]


def test_mask_and_score_from_replace_the_forms_own_choice(torch_server: Any) -> None:
    ids = torch_server.score({"messages": TALK})[0]["token_ids"]
    everything, one = torch_server.score(
        {"messages": TALK, "score_from": 0}, {"messages": TALK, "mask": [int(i == 3) for i in range(len(ids))]}
    )
    assert scored(everything) == list(range(1, len(ids)))
    assert scored(one) == [3]


def test_prompt_and_completion_messages(torch_server: Any, tokenizer: Any) -> None:
    result = torch_server.score({"prompt": TALK[:2], "completion": TALK[2:3]}, offsets=True)[0]
    head = tokenizer.apply_chat_template(TALK[:2], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(TALK[:3])["input_ids"]
    assert whole[: len(head)] == head
    assert result["token_ids"] == whole
    assert scored(result) == list(range(len(head), len(whole)))
    assert result["text"] == tokenizer.apply_chat_template(TALK[:3], tokenize=False)


def spans_of(result: dict[str, Any]) -> set[int]:
    """The characters of `text` whose tokens carry the label 7."""
    offsets = result["offsets"]
    pairs = zip(offsets[::2], offsets[1::2], strict=True)
    return {c for (a, b), p in zip(pairs, result["priorities"], strict=True) if p == 7 for c in range(a, b)}


@pytest.mark.parametrize("index", range(5))
def test_spans_in_messages_find_their_own_message(torch_server: Any, index: int) -> None:
    """Contents that repeat each other and the template's own words ("user") are told apart."""
    content = TALK[index]["content"]
    span = {"message": index, "start": 0, "end": len(content), "priority": 7}
    result = torch_server.score({"messages": TALK, "score_from": 0, "spans": [span]}, offsets=True)[0]
    before = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in TALK[:index])
    start = len(before) + len(f"<|im_start|>{TALK[index]['role']}\n")
    expected = set(range(start, start + len(content)))
    got = spans_of(result)
    assert got >= expected
    # Tokens may straddle the content's last character and what the template adds, never more than one on each side.
    offsets = list(zip(result["offsets"][::2], result["offsets"][1::2], strict=True))
    assert got == {c for a, b in offsets if set(range(a, b)) & expected for c in range(a, b)}


def test_conversations_rendered_at_the_same_time_do_not_disturb_each_other(tokenizer: Any) -> None:
    """The library tracks generation marks in one place per template."""
    talks = [[*TALK, {"role": "assistant", "content": f"{n} " * (n + 1)}] * (n + 1) for n in range(8)]

    def ranges(talk: list[Any]) -> list[tuple[int, int]]:
        chat = Chat(tokenizer)
        return chat.assistant_ranges(talk, chat.render(talk))

    alone = [ranges(talk) for talk in talks]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns within one rendering
    try:
        with ThreadPoolExecutor(8) as pool:
            together = [list(pool.map(ranges, talks)) for _ in range(20)]
    finally:
        sys.setswitchinterval(interval)
    assert together == [alone] * 20


def test_a_tokenizer_without_offsets(serve: Any, probe: Any, tokenizer: Any) -> None:
    class Slow:
        is_fast = False

        def __getattr__(self, name: str) -> Any:
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(tokenizer, name)

        def __call__(self, text: str, *, return_offsets_mapping: bool = False, **options: Any) -> Any:
            assert not return_offsets_mapping, "slow tokenizers refuse this"
            return tokenizer(text, **options)

    class Offsetless(type(probe)):  # type: ignore[misc]
        tokenizer = Slow()

    span = {"start": 0, "end": 1, "priority": 7}
    with serve({"reference": Offsetless(probe.inner)}) as server:
        plain, labelled, by_token, talk, pair = server.score(
            {"text": "ab c"},
            {"text": "ab c", "spans": [span]},
            {"text": "ab c", "spans": [{**span, "unit": "token", "end": 2}]},
            {"messages": TALK},
            {"prompt": "a", "completion": " b"},
        )
        assert plain["token_ids"] == tokenizer("ab c")["input_ids"]
        assert "spans[0]: character spans need a fast tokenizer" in labelled["error"]["message"]
        assert by_token["priorities"][:2] == [0, 7]
        assert "fast tokenizer; give score_from" in talk["error"]["message"]
        assert scored(pair)
        refused = server.score({"text": "ab c"}, offsets=True)[0]
        assert "offsets: need a fast tokenizer" in refused["error"]["message"]


def test_spans_in_trimmed_messages(with_template: Callable[..., Any]) -> None:
    messages = [TALK[1], {"role": "assistant", "content": "  \n say(it)  "}]
    spans = [{"message": 1, "start": 4, "end": 7, "priority": 7}]
    with with_template(TRIMMING) as server:
        result, gone = server.score(
            {"messages": messages, "spans": spans},
            {"messages": messages, "spans": [{"message": 1, "start": 0, "end": 3, "priority": 7}]},
            offsets=True,
        )
    assert "say" in "".join(result["text"][c] for c in sorted(spans_of(result)))
    assert "(" not in "".join(result["text"][c] for c in sorted(spans_of(result)))
    assert "trimmed off by the chat template" in gone["error"]["message"]


def test_spans_in_a_rewritten_message_are_refused(with_template: Callable[..., Any]) -> None:
    messages = [TALK[1], {"role": "assistant", "content": "<think>no</think>yes"}, *TALK[3:]]
    span = {"message": 1, "start": 0, "end": 3, "priority": 7}
    with with_template(FORGETFUL) as server:
        result = server.score({"messages": messages, "score_from": 0, "spans": [span]})[0]
    assert "messages[1].content: the chat template does not show it as it is" in result["error"]["message"]


def test_offsets_are_not_given_for_token_ids(torch_server: Any) -> None:
    ids, text = torch_server.score({"token_ids": [5, 6]}, {"text": "ab"}, offsets=True)
    assert "offsets" not in ids
    assert "text" not in ids
    assert text["text"] == "ab"
    assert "offsets" not in torch_server.score({"text": "ab"})[0]
