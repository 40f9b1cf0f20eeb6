"""A client made before a fork works in the child, and the parent's goes on."""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tokenpriority import Client, FingerprintChanged

pytestmark = pytest.mark.filterwarnings(
    # Python 3.12 warns of any fork in a process with threads; that such a fork works is what is tested here.
    "ignore:.*use of fork\\(\\) may lead to deadlocks in the child:DeprecationWarning"
)


class Scored(Dataset[Any]):
    """Each item scored inside the worker that loads it."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        [scores] = self.client.score([[index, index + 1, index + 2]], method="prift_prob")
        return os.getpid(), torch.from_numpy(scores.priorities.copy())


@pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
def test_a_client_works_in_data_loader_workers(service: str, used: bool) -> None:
    sequences = [[index, index + 1, index + 2] for index in range(8)]
    with Client(service) as client, Client(service) as other:
        expected = np.stack([scores.priorities for scores in other.score(sequences, method="prift_prob")])
        if used:
            client.score(sequences)
        loader = DataLoader(Scored(client), batch_size=2, num_workers=2, multiprocessing_context="fork")
        pids, priorities = zip(*loader, strict=True)
        np.testing.assert_array_equal(torch.cat(priorities).numpy(), expected)
        assert os.getpid() not in torch.cat(pids).tolist()
        assert len(set(torch.cat(pids).tolist())) == 2
        assert len(client.score(sequences)) == 8, "the parent's client goes on"


def in_child(work: Callable[[], Any]) -> Any:
    """The result of `work` in a forked child, or the exception it raised."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            result = work()
        except BaseException as error:
            result = error
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(pickle.dumps(result))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        result = pipe.read()
    os.waitpid(pid, 0)
    return pickle.loads(result)


def test_pins_go_with_the_fork(server: Any) -> None:
    with Client(server.url, retries=0) as client:
        client.score([[1, 2]])
        server.fingerprint = "f1"
        error = in_child(lambda: client.score([[1, 2]]))
    assert isinstance(error, FingerprintChanged)


def test_a_child_that_forgets_or_closes_its_copy_leaves_the_parents_alone(service: str) -> None:
    clients = [Client(service), Client(service)]
    for client in clients:
        client.score([[1, 2]])

    def drop() -> str:
        clients.pop()
        gc.collect()
        clients[0].close()
        return "dropped"

    assert in_child(drop) == "dropped"
    for client in clients:
        assert len(client.score([[3, 4]])) == 1
        client.close()


def test_a_prefetch_of_the_parent_is_refused_in_the_child(server: Any) -> None:
    with Client(server.url) as client:
        prefetch = client.prefetch([[[n, 1]] for n in range(5)], sequences=list, method="uniform", depth=2)
        next(prefetch)
        error = in_child(lambda: next(prefetch))
        assert isinstance(error, RuntimeError)
        assert "belongs to the parent process" in str(error)
        assert len(list(prefetch)) == 4
