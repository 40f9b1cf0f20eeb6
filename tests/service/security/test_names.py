"""A request names a model; it can never name a file, a folder or an address."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refusals import check

SECRET = "not-to-be-opened"
EVENTS = ("open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "import")

_heard: list[tuple[str, str]] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _heard is not None and event in EVENTS:
        _heard.append((event, str(arguments)))


@pytest.fixture(scope="module", autouse=True)
def _hooked() -> None:
    sys.addaudithook(_hook)  # it cannot be taken away again; without a listener it does nothing


@pytest.fixture
def heard() -> Iterator[list[tuple[str, str]]]:
    """What this process opens, lists, connects to and imports from here on."""
    global _heard
    _heard = []
    yield _heard
    _heard = None


@pytest.fixture
def places(tmp_path: Path, checkpoints: dict[str, Path]) -> list[str]:
    """Names that would lead somewhere if anything followed them; two of them are real checkpoints."""
    (tmp_path / SECRET).write_text("secret")
    folder = checkpoints["reference"]
    return [
        str(folder), f"{folder}/", f"{folder.parent}/../{folder.parent.name}/{folder.name}", str(tmp_path / SECRET),
        f"file://{folder}", f"../{SECRET}", "..", ".", "/", "/etc/passwd", "reference/../reference", "./reference",
        "reference\0", "reference/", "~", "$HOME", "%2e%2e%2f", "C:\\Windows", "\\\\host\\share",
        f"https://{SECRET}.invalid/model", f"http://127.0.0.1:9/{SECRET}", f"hf://{SECRET}/model", f"{SECRET}/model",
    ]  # fmt: skip


def test_the_hook_hears(tmp_path: Path, heard: list[tuple[str, str]]) -> None:
    (tmp_path / "x").write_text("")
    assert [event for event, what in heard if str(tmp_path) in what] == ["open"]


@pytest.mark.parametrize("field", ["model", "method.params.base"])
def test_places_are_no_models(server: Any, places: list[str], field: str, heard: list[tuple[str, str]]) -> None:
    body: dict[str, Any] = {"sequences": [{"token_ids": [1, 2, 3]}]}
    server.post(body)
    heard.clear()
    for place in places:
        named = (
            {"model": place} if field == "model" else {"method": {"name": "token_cleaning", "params": {"base": place}}}
        )
        check(server.post({**body, **named}), 404, "not_found", [field, "known models: reference"])
        # The sockets of this test's own client apart, nothing at all was touched.
        touched = [(event, what) for event, what in heard if not event.startswith("socket.")]
        assert touched == []
        assert not [what for _, what in heard if SECRET in what]


def test_a_name_may_not_be_endless(server: Any) -> None:
    response = server.post({"sequences": [{"token_ids": [1]}], "model": "a" * 201})
    check(response, 422, "invalid_request", ["model", "200"])
