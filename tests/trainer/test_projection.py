"""Weights from references of other tokenizers: a real server over a real socket, real tokenizers of three kinds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import ByT5Tokenizer

from tokenpriority import Client, Scores, SequenceErrors
from tokenpriority_trainer import ServerSource
from tokenpriority_trainer.collator import DOCUMENTS, PriorityCollator
from tokenpriority_trainer.config import PrioritiesSection, load_config
from tokenpriority_trainer.errors import ConfigError, WeightError
from tokenpriority_trainer.preflight import _check_projection, check_server
from tokenpriority_trainer.projector import Projector, projected
from tokenpriority_trainer.run import run
from tokenpriority_trainer.specials import ask_specials
from vocabularies import byte_level, made, word_pieces

MIXED = "def d\u00e9code(\u65e5\u672c x):\n  return 1 # \U0001f642 caf\u00e9!"
KINDS = ["bytes", "words"]


@pytest.fixture(scope="module")
def url(serve: Any, make_model: Any, tokenizer: Any, text: str, tmp_path_factory: Any) -> Iterator[str]:
    """A server whose models tokenise in three ways: as the student, in other bytes, in words."""
    folder = tmp_path_factory.mktemp("tokenizers")
    models = {"same": tokenizer, "bytes": byte_level(text), "words": word_pieces(text)}
    for number, (name, each) in enumerate(models.items()):
        make_model(20 + number, vocab_size=len(each)).save_pretrained(folder / name)
        each.save_pretrained(folder / name)
    with serve(folder, {name: folder / name for name in models}) as address:
        with Client(address) as client:
            client.wait_until_ready(60)
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout=60) as made:
        yield made


@pytest.fixture
def rows(tokenizer: Any, text: str) -> list[dict[str, Any]]:
    """Texts of ASCII and not, whole and cut in the middle of a character, all or only their ends trained on."""
    ids = [[*tokenizer(each)["input_ids"], tokenizer.eos_token_id] for each in (text[:90], MIXED, text[300:420])]
    cut = tokenizer(MIXED)["input_ids"]
    ids += [cut[10:], cut[:11], [tokenizer.eos_token_id, *ids[0]]]
    made = [{"input_ids": each, "labels": each} for each in ids]
    return [*made, *({**row, "labels": [-100] * 12 + row["labels"][12:]} for row in made[:3])]


def batch(rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    collated: dict[str, Any] = PriorityCollator(pad_token_id=0, **options)(rows)
    return collated


def weights(source: ServerSource, collated: dict[str, Any]) -> list[Any]:
    ((given, values),) = source.stream([collated])
    assert "questions" not in given
    return values


def asked(client: Client, name: str, tokenizer: Any, collated: Any, **method: Any) -> tuple[Any, list[Scores]]:
    projector = Projector(client, name, tokenizer)
    questions = [projector.question(document) for document in collated[DOCUMENTS]]
    sequences = [question.sequence for question in questions]
    return questions, client.score(sequences, model=name, offsets=True, **method)


@pytest.mark.parametrize("name", ["same", *KINDS])
def test_the_total_of_the_log_probs_is_kept(
    client: Client, tokenizer: Any, rows: list[dict[str, Any]], name: str
) -> None:
    questions, answers = asked(client, name, tokenizer, batch(rows[:4]))
    for question, answer, scores in zip(questions, answers, projected(questions, answers), strict=True):
        assert answer.offsets is not None
        assert answer.text == question.surface.text
        text = (answer.offsets[:, 1] > answer.offsets[:, 0]) & ~np.isnan(answer.logprobs)
        mine = question.surface.offsets[:, 1] > question.surface.offsets[:, 0]
        found = np.nansum(scores.logprobs[mine].astype(np.float64))
        np.testing.assert_allclose(found, answer.logprobs[text].astype(np.float64).sum(), rtol=1e-6)
        assert scores.token_ids is question.document.token_ids


@pytest.mark.parametrize("name", ["same", *KINDS])
@pytest.mark.parametrize("options", [{}, {"padding_free": True}])
def test_uniform_is_1_on_every_trained_token(
    client: Client, tokenizer: Any, rows: list[dict[str, Any]], name: str, options: dict[str, Any]
) -> None:
    collated = batch(rows, **options)
    values = weights(ServerSource(client, model=name, tokenizer=tokenizer), collated)
    for document, value in zip(collated[DOCUMENTS], values, strict=True):
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, document.trained)


@pytest.mark.parametrize("name", KINDS)
def test_weights_lie_within_those_of_the_references_tokens(
    client: Client, tokenizer: Any, rows: list[dict[str, Any]], name: str
) -> None:
    collated = batch(rows)
    values = weights(ServerSource(client, "prift_prob", model=name, tokenizer=tokenizer), collated)
    questions, answers = asked(client, name, tokenizer, collated, method="prift_prob")
    for question, answer, value in zip(questions, answers, values, strict=True):
        assert answer.offsets is not None
        assert len(np.unique(value)) > 3
        scored = ~np.isnan(answer.logprobs)
        starts, ends = answer.offsets.astype(int).T
        for token in np.flatnonzero(question.document.trained):
            start, end = question.surface.offsets[token]
            touched = answer.priorities[scored & (starts < end) & (ends > start)]
            if len(touched) and end > start and name == "bytes":  # words leave out spaces, which others cover
                assert touched.min() <= value[token] <= touched.max()
        assert ((value >= 0) & (value <= 1)).all()


@pytest.mark.parametrize("method", ["prift_prob", "prift_mass"])
def test_a_reference_of_the_same_tokenizer_gives_the_weights_of_plain_token_ids_bit_by_bit(
    client: Client, tokenizer: Any, rows: list[dict[str, Any]], method: str
) -> None:
    whole = [*rows[:3], *rows[6:]]
    plain = weights(ServerSource(client, method, model="same"), batch(whole))
    text = weights(ServerSource(client, method, model="same", tokenizer=tokenizer), batch(whole))
    assert len(plain) == 6
    for one, other in zip(plain, text, strict=True):
        assert one.tobytes() == other.tobytes()
        if method == "prift_prob":
            assert one[-1] != 1  # the end-of-sequence token was judged


@pytest.mark.parametrize("name", KINDS)
def test_an_end_that_the_reference_has_not_keeps_weight_1(
    client: Client, tokenizer: Any, rows: list[dict[str, Any]], name: str
) -> None:
    """The byte-level reference has the student's end under the same text; WordPiece adds one of its own."""
    stranger = made(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), eos_token="<|end|>", pad_token="<|end|>")
    stranger.add_special_tokens({"additional_special_tokens": ["<|other|>"]})
    other = stranger.convert_tokens_to_ids("<|other|>")
    ids = [*rows[0]["input_ids"][:-1], other, stranger.eos_token_id, other]
    collated = batch([{"input_ids": ids, "labels": ids}])
    (value,) = weights(ServerSource(client, "prift_prob", model=name, tokenizer=stranger), collated)
    assert value[-1] == 1
    assert (value[-3] == 1, value[-2] == 1) == ((True, False) if name == "bytes" else (False, True))


def test_special_tokens_are_found_on_the_server(client: Client, tokenizer: Any, text: str) -> None:
    end = tokenizer.eos_token_id
    same = ask_specials(client, "same", tokenizer)
    assert set(same.ids) == {end}
    assert (dict(same.known), same.before, same.after) == ({end: end}, (), ())
    theirs = byte_level(text)
    begin, stop = theirs.bos_token_id, theirs.eos_token_id
    own = ask_specials(client, "bytes", theirs)
    assert dict(own.known) == {number: number for number in own.ids}
    assert (own.before, own.after) == ((begin,), ())
    ids = np.array([begin, 50, begin, stop], np.uint32)
    assert own.written(ids).tolist() == [False, True, True, True]
    words = ask_specials(client, "words", theirs)
    assert not words.known
    assert (len(words.before), len(words.after)) == (1, 1)
    assert words.written(ids).tolist() == [False, True, False, False]


def test_a_document_of_which_nothing_can_be_asked_is_not_sent(client: Client, tokenizer: Any) -> None:
    byte = tokenizer("\u65e5")["input_ids"][1]
    collated = batch([{"input_ids": [byte] * 3, "labels": [byte] * 3}])
    (value,) = weights(ServerSource(client, "prift_prob", model="bytes", tokenizer=tokenizer), collated)
    assert value.tolist() == [0, 1, 1]


def test_a_text_of_too_many_tokens_for_the_reference_stops_the_run(client: Client, tokenizer: Any) -> None:
    ids = tokenizer("\u65e5 " * 120)["input_ids"]
    with pytest.raises(WeightError, match=r"the document at row 0, .* of the batch, whose token ids begin") as failed:
        weights(ServerSource(client, model="bytes", tokenizer=tokenizer), batch([{"input_ids": ids, "labels": ids}]))
    assert isinstance(failed.value.__cause__, SequenceErrors)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda answers: answers[1:], "9 documents were sent but scores of 8 came back"),
        (lambda answers: answers[::-1], "row 0, .*: the server scored another text than was sent"),
        (lambda answers: [replace(answers[0], text=None), *answers[1:]], "row 0, .*: the server scored another text"),
        (
            lambda answers: [replace(answers[0], offsets=answers[0].offsets + np.uint32(1)), *answers[1:]],
            "row 0, .*: the server scored another text",
        ),
        (
            lambda answers: [replace(answers[0], offsets=answers[0].offsets[::-1]), *answers[1:]],
            "row 0, .*: the server's offsets cannot be used: given: token 1 starts before the one before it",
        ),
    ],
)
def test_answers_about_another_text_are_refused(
    client: Client, tokenizer: Any, rows: list[dict[str, Any]], spoil: Any, what: str
) -> None:
    questions, answers = asked(client, "same", tokenizer, batch(rows))
    with pytest.raises(WeightError, match=what):
        projected(questions, spoil(answers))


@pytest.mark.parametrize("name", KINDS)
def test_another_tokenizer_is_refused_by_default_and_the_message_says_what_to_do(
    client: Client, url: str, tokenizer: Any, name: str
) -> None:
    with pytest.raises(ConfigError, match=r'priorities.tokenizers = "project" sends text instead'):
        check_server(client, PrioritiesSection(url=url, model=name), tokenizer, 64)
    found = check_server(client, PrioritiesSection(url=url, model=name, tokenizers="project"), tokenizer, 10_000)
    assert set(found) == {name}


def test_a_student_without_a_fast_tokenizer_is_refused_early(client: Client, url: str) -> None:
    with pytest.raises(ConfigError, match="needs a fast tokenizer, which ByT5Tokenizer is not"):
        check_server(client, PrioritiesSection(url=url, model="bytes", tokenizers="project"), ByT5Tokenizer(), None)


def test_a_model_without_a_tokenizer_is_refused(client: Client, tokenizer: Any) -> None:
    info = next(info for info in client.models() if info.name == "bytes")
    info.tokenizer = ""
    with pytest.raises(ConfigError, match="'project' needs a tokenizer, which model 'bytes' has not"):
        _check_projection(client, [info])


def test_two_models_of_a_method_must_tokenise_alike(client: Client, url: str, tokenizer: Any) -> None:
    method: dict[str, Any] = {"method": "token_cleaning", "params": {"base": "words"}}
    with pytest.raises(ConfigError, match="models 'bytes' and 'words' tokenise a probe text differently"):
        check_server(client, PrioritiesSection(url=url, model="bytes", tokenizers="project", **method), tokenizer, None)


def test_a_run_is_configured_to_project(url: str, save_student: Callable[..., Path], tmp_path: Path, text: str) -> None:
    data, out = tmp_path / "train.jsonl", tmp_path / "out"
    data.write_text("\n".join(json.dumps({"text": text[50 * i : 50 * i + 60]}) for i in range(8)), encoding="utf-8")
    lines = [
        f'model = {{path = "{save_student(tmp_path / "student")}"}}',
        f'data = {{train = "{data}"}}',
        f'priorities = {{url = "{url}", model = "words", method = "prift_prob", tokenizers = "project"}}',
        f'training = {{output_dir = "{out}", max_steps = 2, max_length = 32, use_cpu = true, disable_tqdm = true}}',
    ]
    (tmp_path / "run.toml").write_text("\n".join(lines), encoding="utf-8")
    run(load_config(tmp_path / "run.toml"))
    assert json.loads((out / "summary.json").read_text())["complete"]
