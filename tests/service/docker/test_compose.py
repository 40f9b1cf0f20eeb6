"""The compose files as far as they can be checked without Docker."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

from composed import DOCKER, VARIABLE, example, load, substituted
from tokenpriority_service.configuration.settings import ServerSettings, TorchModel, VllmModel, read

GIVEN = {"POSTGRES_PASSWORD": "p" * 64, "GRAFANA_PASSWORD": "g" * 64, "METRICS_KEY": "tp_k_s", "MODELS": "/srv/models"}
SERVICE_KEYS = {
    "build", "cap_drop", "command", "depends_on", "deploy", "environment", "healthcheck", "image", "ports", "restart",
    "secrets", "security_opt", "shm_size", "stop_grace_period", "volumes",
}  # fmt: skip
"""Of the Compose specification, those used here."""
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period", "disable"}
DURATION = re.compile(r"(\d+)(s|m)")


@pytest.fixture
def compose() -> dict[str, Any]:
    found: dict[str, Any] = substituted(load("compose.yaml"), GIVEN)
    return found


def seconds(duration: str) -> int:
    match = DURATION.fullmatch(duration)
    assert match is not None, duration
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


def mounts(service: dict[str, Any]) -> list[tuple[str, str]]:
    return [(volume.split(":")[0], volume.split(":")[1]) for volume in service.get("volumes", [])]


def options_of(name: str, subcommand: str) -> set[str]:
    """The options of a command of `tokenpriority`, which must exist."""
    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())["project"]
    module, attribute = project["entry-points"]["tokenpriority.commands"][name].split(":")
    group: Any = typer.main.get_command(getattr(importlib.import_module(module), attribute))
    return {option for parameter in group.commands[subcommand].params for option in parameter.opts}


def test_every_key_is_one_of_composes(compose: dict[str, Any]) -> None:
    assert {key for key in compose if not key.startswith("x-")} == {"name", "services", "secrets", "volumes"}
    for service in [*compose["services"].values(), *load("compose.gpu.yaml")["services"].values()]:
        assert set(service) <= SERVICE_KEYS
    assert set(compose["services"]) == {"service", "upgrade", "postgres", "prometheus", "grafana"}
    assert set(load("compose.gpu.yaml")["services"]) <= set(compose["services"])


def test_variables_are_those_of_the_example() -> None:
    text = (DOCKER / "compose.yaml").read_text() + (DOCKER / "compose.gpu.yaml").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    used = {match["name"] for match in VARIABLE.finditer(lines)}
    used |= {secret["environment"] for secret in load("compose.yaml")["secrets"].values()}
    for service in load("compose.yaml")["services"].values():
        used |= {name for name, value in service.get("environment", {}).items() if value is None}
    assert used == set(example())


def test_no_secret_is_written_down(compose: dict[str, Any]) -> None:
    for name, value in example().items():
        assert not value or not re.search("PASSWORD|KEY", name)
    for service in load("compose.yaml")["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|KEY|SECRET|DATABASE__URL", name):
                assert VARIABLE.search(value), name
    assert ".env" in (DOCKER / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", ["POSTGRES_PASSWORD", "GRAFANA_PASSWORD", "MODELS"])
def test_what_has_no_default_is_asked_for(name: str) -> None:
    with pytest.raises(AssertionError, match=f"{name} is required"):
        substituted(load("compose.yaml"), {**GIVEN, name: ""})


def test_files_volumes_and_secrets_exist(compose: dict[str, Any]) -> None:
    used: set[str] = set()
    for service in compose["services"].values():
        for source, target in mounts(service):
            assert target.startswith("/")
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
            elif source != GIVEN["MODELS"]:
                used.add(source)
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        if "build" in service:
            context = (DOCKER / service["build"]["context"]).resolve()
            assert (context / service["build"]["dockerfile"]).is_file()
            declared = re.findall(r"^ARG (\w+)", (context / service["build"]["dockerfile"]).read_text(), re.MULTILINE)
            assert set(service["build"]["args"]) <= set(declared)
        else:
            assert re.fullmatch(r"[a-z/]+:v?\d[\d.]*", service["image"]), "pinned"
    assert used == set(compose["volumes"])


def test_what_is_waited_for_can_come(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        needs = service.get("depends_on", {})
        for name in needs:
            assert name in services
        for name, how in needs.items() if isinstance(needs, dict) else ():
            if how["condition"] == "service_healthy":
                assert "test" in services[name]["healthcheck"]
            else:
                assert how["condition"] == "service_completed_successfully"
                assert services[name]["restart"] == "no"
    assert services["service"]["depends_on"] == {"upgrade": {"condition": "service_completed_successfully"}}


def test_health_checks_are_commands(compose: dict[str, Any]) -> None:
    checked = {name: each["healthcheck"] for name, each in compose["services"].items() if "healthcheck" in each}
    assert set(checked) == {"upgrade", "postgres", "prometheus"}
    for check in checked.values():
        assert set(check) <= HEALTH_KEYS
        if "disable" not in check:
            assert check["test"][0] == "CMD"
            assert all(isinstance(word, str) for word in check["test"])
            for key in ("interval", "timeout", "start_period"):
                assert seconds(check.get(key, "1s")) > 0
    environment = compose["services"]["postgres"]["environment"]
    assert f"--username={environment['POSTGRES_USER']}" in checked["postgres"]["test"]
    assert f"--dbname={environment['POSTGRES_DB']}" in checked["postgres"]["test"]


def test_the_service_and_the_upgrade_have_one_database(compose: dict[str, Any]) -> None:
    services = compose["services"]
    [url] = {services[name]["environment"]["TOKENPRIORITY_DATABASE__URL"] for name in ("service", "upgrade")}
    postgres = services["postgres"]["environment"]
    user, password, name = (postgres[f"POSTGRES_{part}"] for part in ("USER", "PASSWORD", "DB"))
    assert url == f"postgresql://{user}:{password}@postgres/{name}"


@pytest.mark.parametrize(("gpu", "kind"), [(False, TorchModel), (True, VllmModel)])
def test_the_environment_and_the_file_are_settings(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch, gpu: bool, kind: type
) -> None:
    service = compose["services"]["service"]
    environment = dict(service["environment"])
    if gpu:
        environment |= load("compose.gpu.yaml")["services"]["service"]["environment"]
    for name, value in environment.items():
        monkeypatch.setenv(name, "http://collector:4318" if value is None else value)
    [file] = [DOCKER / source for source, target in mounts(service) if target.endswith(".toml")]
    settings = read(file)
    assert settings.database.url.startswith("postgresql://")
    assert settings.server.traces == "http://collector:4318"
    assert isinstance(settings.models["reference"], kind)
    models = [target for source, target in mounts(service) if source == GIVEN["MODELS"]]
    assert str(Path(settings.models["reference"].model).parent) in models
    # The image's command names the file where it is mounted.
    [mounted] = [target for _, target in mounts(service) if target.endswith(".toml")]
    assert f'"{mounted}"' in (DOCKER / "service.Dockerfile").read_text()


def test_a_drain_fits_before_the_kill(compose: dict[str, Any]) -> None:
    assert seconds(compose["services"]["service"]["stop_grace_period"]) > ServerSettings().drain_seconds + 5


def test_ports_are_on_loopback_and_those_of_the_services(compose: dict[str, Any]) -> None:
    targets = {name: each["ports"] for name, each in compose["services"].items() if "ports" in each}
    assert targets == {
        "service": ["127.0.0.1:8000:8000"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    assert "EXPOSE 8000\n" in (DOCKER / "service.Dockerfile").read_text()


def test_the_upgrade_is_a_command(compose: dict[str, Any]) -> None:
    assert "--config" in options_of(*compose["services"]["upgrade"]["command"])


def test_the_readme_s_commands_exist() -> None:
    text = (DOCKER / "README.md").read_text() + (DOCKER / ".env.example").read_text()
    found = re.findall(r"docker compose run --rm service ([^`#\n]+)", text)
    assert len(found) >= 3
    for line in found:
        words = shlex.split(line)
        named = [word for word in words if word.startswith("-")]
        assert set(named) <= options_of(*words[:2])
