"""The README's own code, run: what a reader copies works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tokenpriority import Client
from tokenpriority.methods.table import rewritten
from tokenpriority_trainer.config import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTED = "http://127.0.0.1:8000"
COMMAND = str(Path(sys.executable).parent / "tokenpriority")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def url(free_port: int) -> Iterator[str]:
    """A server as the README starts it, with the engine that needs no weights."""
    address = f"http://127.0.0.1:{free_port}"
    command = [COMMAND, "serve", "--model", "demo", "--engine", "fake"]
    with subprocess.Popen([*command, "--port", str(free_port)], stderr=subprocess.DEVNULL) as process:
        try:
            with Client(address) as client:
                client.wait_until_ready(60)
            yield address
        finally:
            process.terminate()


def test_python_blocks_run(url: str) -> None:
    [block] = blocks("python")
    assert DOCUMENTED in block
    scope: dict[str, object] = {}
    try:
        exec(compile(block.replace(DOCUMENTED, url), "README.md", "exec"), scope)
    finally:
        client = scope.get("client")
        if isinstance(client, Client):
            client.close()


def test_curl_block_is_answered(url: str) -> None:
    [block] = [block for block in blocks("bash") if block.startswith("curl")]
    body = json.loads(re.findall(r"-d '(.*)'", block, re.DOTALL)[0])
    path = re.findall(rf"{DOCUMENTED}(/\S*)", block)[0]
    answer = httpx.post(url + path, json=body).raise_for_status().json()
    [result] = answer["results"]
    assert len(result["priorities"]) == len(result["token_ids"]) == len(result["signals"]["entropy"])


def test_toml_block_is_a_training_configuration(tmp_path: Path) -> None:
    [block] = blocks("toml")
    path = tmp_path / "config.toml"
    path.write_text(block)
    assert load_config(path).priorities.method == "prift_mass"


def test_commands_exist() -> None:
    commands = set(re.findall(r"^(?:    )?tokenpriority (\w+)", "".join(blocks("bash")), re.MULTILINE))
    assert {"serve", "train", "inspect", "score"} <= commands
    shown = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(command in shown for command in commands)


def test_method_table_is_the_registry() -> None:
    regenerate = "README.md lags behind the registry: run python -m tokenpriority.methods.table README.md"
    assert rewritten(README) == README, regenerate


def test_nothing_is_left_to_fill_in_and_every_link_leads_somewhere() -> None:
    assert "@@" not in README
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
