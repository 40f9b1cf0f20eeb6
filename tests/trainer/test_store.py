"""The file that scores are kept in: bit by bit, for one question, by several processes, and never half of anything."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenpriority import Client, FingerprintChanged, Scores
from tokenpriority.methods import get_method
from tokenpriority_trainer.errors import ConfigError, WeightError
from tokenpriority_trainer.store import Provenance, Store

MADE_BY = Provenance("reference", "prift_mass", 1, {"tau": 0.2}, {"reference": "aa"})


def sent(*ids: int, mask: list[int] | None = None) -> dict[str, Any]:
    return {"token_ids": np.array(ids, np.uint32), "mask": np.array(mask or [0, *[1] * (len(ids) - 1)], np.uint8)}


def scored(document: dict[str, Any], seed: int = 0) -> Scores:
    drawn = np.random.default_rng(seed).standard_normal((2, len(document["token_ids"]))).astype(np.float32)
    drawn[:, 0] = np.nan, 0
    return Scores(0, document["token_ids"], drawn[0], drawn[1])


def assert_same(found: Scores | None, expected: Scores) -> None:
    assert found is not None
    assert found.logprobs.tobytes() == expected.logprobs.tobytes()
    assert found.priorities.tobytes() == expected.priorities.tobytes()
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)


def test_what_is_kept_is_found_bit_by_bit_by_tokens_and_mask(tmp_path: Path) -> None:
    documents = [sent(1, 2, 3), sent(1, 2), sent(1, 2, 3, mask=[0, 0, 1]), sent(2**32 - 1, 7)]
    made = [scored(document, seed) for seed, document in enumerate(documents)]
    store = Store.open(tmp_path / "weights.db", MADE_BY)
    assert store.find(documents) == [None] * 4
    store.keep(documents[:3], made[:3])
    store.keep(documents[:1], [scored(documents[0], seed=9)])  # what is there stays
    store.close()
    again = Store.open(tmp_path / "weights.db")
    assert again.provenance == MADE_BY
    *found, other = again.find(documents)
    for scores, expected in zip(found, made[:3], strict=True):
        assert_same(scores, expected)
    assert other is None
    again.close()
    assert [path.name for path in tmp_path.iterdir()] == ["weights.db"], "all of it is in the one file"


@pytest.mark.parametrize(
    ("field", "wanted", "said"),
    [
        ("model", "judge", 'model "reference", this run asks for "judge"'),
        ("method", "prift_prob", 'method "prift_mass", this run asks for "prift_prob"'),
        ("version", 2, "version 1, this run asks for 2"),
        ("params", {"tau": 0.25}, r'params {"tau": 0.2}, this run asks for {"tau": 0.25}'),
        (
            "fingerprints",
            {"reference": "bb"},
            r'fingerprints {"reference": "aa"}, this run asks for {"reference": "bb"}',
        ),
    ],
)
def test_a_store_answers_one_question(tmp_path: Path, field: str, wanted: Any, said: str) -> None:
    path = tmp_path / "weights.db"
    Store.open(path, MADE_BY).close()
    Store.open(path, MADE_BY).close()
    with pytest.raises(ConfigError) as refused:
        Store.open(path, replace(MADE_BY, **{field: wanted}))
    assert str(refused.value) == f"priorities.store: {path} holds scores of {said}; name another file"


def test_parameters_are_compared_with_their_defaults() -> None:
    asked = MADE_BY.asking("reference", "prift_mass", {})
    assert asked == MADE_BY.asking("reference", "prift_mass", get_method("prift_mass").parse({}).model_dump())
    assert asked.fingerprints == MADE_BY.fingerprints


@pytest.mark.parametrize("column", ["logprobs", "priorities"])
def test_a_row_of_another_length_is_an_error(tmp_path: Path, column: str) -> None:
    store = Store.open(tmp_path / "weights.db", MADE_BY)
    store.keep([sent(1, 2, 3)], [scored(sent(1, 2, 3))])
    with sqlite3.connect(store.path) as other:
        other.execute(f"UPDATE scores SET {column} = substr({column}, 1, 8)")
    other.close()
    with pytest.raises(WeightError, match=f"the {column} of a document of 3 tokens have 8 bytes, not 12"):
        store.find([sent(1, 2, 3)])


def test_other_files_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    text, other = tmp_path / "text.db", tmp_path / "other.db"
    text.write_text("no database at all, but long enough to be read as one" * 20)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE scores (key BLOB)")
    database.close()
    before = other.read_bytes()
    for path, said in (
        (text, "cannot be used: file is not a database"),
        (other, "is no store of scores"),
        (tmp_path / "no" / "weights.db", f"there is no {tmp_path / 'no'}$"),
    ):
        with pytest.raises(ConfigError, match=said):
            Store.open(path, MADE_BY)
    with pytest.raises(ConfigError, match=f"there is no {tmp_path / 'none.db'}$"):
        Store.open(tmp_path / "none.db")
    assert other.read_bytes() == before
    assert not (tmp_path / "none.db").exists()


WRITER = """
import sys
import numpy as np
from tokenpriority import Scores
from tokenpriority_trainer.store import Provenance, Store

path, own = sys.argv[1], int(sys.argv[2])
store = Store.open(path, Provenance("reference", "prift_mass", 1, {"tau": 0.2}, {"reference": "aa"}))
for number in range(100):
    for first in (own, 99):  # documents of its own, and some that all processes bring
        ids = np.array([first, number, 5], np.uint32)
        sent = {"token_ids": ids, "mask": np.array([0, 1, 1], np.uint8)}
        value = np.array([first, number, 0.5], np.float32)
        store.keep([sent], [Scores(0, ids, value, -value)])
        (found,) = store.find([sent])
        assert found.logprobs.tobytes() == value.tobytes()
store.close()
"""


def test_processes_that_begin_and_fill_a_store_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.db"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(own)], stderr=subprocess.PIPE, text=True)
        for own in range(4)
    ]
    for writer in writers:
        assert writer.communicate(timeout=120)[1] == ""
        assert writer.returncode == 0
    store = Store.open(path)
    documents = [sent(first, number, 5) for first in (0, 1, 2, 3, 99) for number in range(100)]
    for document, found in zip(documents, store.find(documents), strict=True):
        value = np.array([*document["token_ids"][:2], 0.5], np.float32)
        assert_same(found, Scores(0, document["token_ids"], value, -value))


def test_a_server_says_what_its_scores_are_made_by(server: str) -> None:
    with Client(server) as client:
        made = Provenance.of_server(client, "reference", "token_cleaning", {"keep": 0.5})
        known = {info.name: info.fingerprint for info in client.models()}
        assert made.fingerprints == known
        assert made.version == get_method("token_cleaning").version
        assert client.fingerprints == known, "from now on the client takes no other model's scores"
        with pytest.raises(ConfigError, match="the server has no model 'nobody'; it has reference, base"):
            Provenance.of_server(client, "nobody", "uniform", {})
    with Client(server) as client:
        client.pin({"reference": "another"})
        with pytest.raises(FingerprintChanged):
            Provenance.of_server(client, "reference", "uniform", {})
