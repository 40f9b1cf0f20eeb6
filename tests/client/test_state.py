"""The state of a prefetch: what was handed out is neither handed out nor asked about again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority import Client, Prefetch


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, retries=0) as connected:
        yield connected


def batches(count: int) -> list[list[list[int]]]:
    return [[[number, 1]] for number in range(count)]


@given(st.data())
def test_two_halves_are_the_whole(data: st.DataObject) -> None:
    """For any loader, depth and moment to stop at, by futures of real threads."""
    length = data.draw(st.integers(0, 40))
    cut = data.draw(st.integers(0, length))
    depths = data.draw(st.tuples(*[st.one_of(st.integers(1, 50), st.just("auto"))] * 2))
    asked: list[list[int]] = []
    first: list[Any]
    second: list[Any]

    with ThreadPoolExecutor(3) as pool:

        def begin(batch: int) -> Future[Any]:
            asked[-1].append(batch)
            return pool.submit(lambda: [batch * 10])

        asked.append([])
        with Prefetch(range(length), begin, depths[0]) as prefetch:
            first = list(islice(prefetch, cut))
            saved = json.dumps(prefetch.state_dict())
            most = cut + prefetch.depth
        asked.append([])
        with Prefetch(range(length), begin, depths[1]) as prefetch:
            prefetch.load_state_dict(json.loads(saved))
            second = list(prefetch)
            assert prefetch.state_dict() == {"batches": length}
    assert first + second == [(number, [number * 10]) for number in range(length)]
    assert asked[0] == list(range(len(asked[0])))
    assert cut <= len(asked[0]) <= most
    assert asked[1] == list(range(cut, length))


def test_the_server_is_not_asked_about_what_was_handed_out(server: Any, client: Client) -> None:
    with client.prefetch(batches(20), sequences=list, depth=4) as prefetch:
        before = [batch for batch, _ in islice(prefetch, 7)]
        saved = json.loads(json.dumps(prefetch.state_dict()))
    assert saved == {"batches": 7}, "not those that were read ahead"
    resumed = client.prefetch(iter(batches(20)), sequences=list, depth=4, model="again")
    resumed.load_state_dict(saved)
    after = []
    for batch, scores in resumed:
        assert scores[0].token_ids.tolist() == batch[0]
        after.append(batch)
        assert resumed.state_dict() == {"batches": 7 + len(after)}
    assert before + after == batches(20)
    asked = [request.sequences[0].token_ids[0] for request in server.requests if request.model == "again"]
    assert sorted(asked) == list(range(7, 20))


def test_a_failure_is_where_the_next_one_begins(server: Any, client: Client) -> None:
    """A batch that raised was not handed out."""
    refused: list[list[list[int]]] = [*batches(3), [[]], *batches(2)]
    prefetch = client.prefetch(refused, sequences=list)
    with pytest.raises(Exception, match="1 of 1 sequences failed"):
        list(prefetch)
    mended = client.prefetch([*batches(3), [[9, 9]], *batches(2)], sequences=list)
    mended.load_state_dict(prefetch.state_dict())
    assert [batch for batch, _ in mended] == [[[9, 9]], *batches(2)]


def test_a_state_comes_before_the_first_batch(client: Client) -> None:
    with client.prefetch(batches(3), sequences=list) as prefetch:
        next(prefetch)
        with pytest.raises(RuntimeError, match="load_state_dict: must be called before the first next"):
            prefetch.load_state_dict({"batches": 1})
        assert len(list(prefetch)) == 2, "and nothing has changed"
    never = client.prefetch(batches(3), sequences=list)
    never.close()
    with pytest.raises(RuntimeError, match="before the first next, on a new Prefetch"):
        never.load_state_dict({"batches": 1})


@pytest.mark.parametrize("state", [{}, {"batches": -1}, {"batches": 1.0}, {"batches": True}, {"batches": "1"}])
def test_what_is_no_state_is_refused(client: Client, state: dict[str, Any]) -> None:
    prefetch = client.prefetch(batches(3), sequences=list)
    with pytest.raises(ValueError, match="state: 'batches' must be a whole number of at least 0, got "):
        prefetch.load_state_dict(state)


def test_a_loader_that_ends_before_its_state_is_an_error(server: Any, client: Client) -> None:
    at_its_end = client.prefetch(batches(3), sequences=list)
    at_its_end.load_state_dict({"batches": 3})
    assert list(at_its_end) == []
    prefetch = client.prefetch(batches(3), sequences=list)
    prefetch.load_state_dict({"batches": 5})
    with pytest.raises(ValueError, match="state: 5 batches were handed out, but the loader ends after 3"):
        next(prefetch)
    assert list(prefetch) == []
    assert server.requests == []
