"""Where settings come from, and how a mistake in them is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokenpriority_service.command import check
from tokenpriority_service.settings import InvalidSettings, Settings, read

FILE = """
[server]
port = 9000
max_sequences = 5
[store]
max_bytes = 1000
[models.reference]
model = "some/model"
dtype = "bfloat16"
max_model_len = 128
[models.base]
model = "fake"
engine = "fake"
[teams.alpha]
key_sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(FILE)
    return path


def test_a_file_and_its_defaults(file: Path) -> None:
    settings = read(file)
    assert (settings.server.port, settings.server.max_sequences, settings.server.host) == (9000, 5, "127.0.0.1")
    assert settings.store.max_bytes == 1000
    assert settings.models["reference"].dtype == "bfloat16"
    assert (settings.models["reference"].engine, settings.models["base"].engine) == ("torch", "fake")
    assert settings.models["reference"].logits_bytes == 268_435_456
    assert list(settings.teams) == ["alpha"]


def test_options_before_environment_before_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPRIORITY_SERVER__PORT", "9001")
    monkeypatch.setenv("TOKENPRIORITY_SERVER__HOST", "::1")
    monkeypatch.setenv("TOKENPRIORITY_MODELS__REFERENCE__DTYPE", "float16")
    monkeypatch.setenv("TOKENPRIORITY_API_KEY", "a client's own")
    settings = read(file, {"server": {"host": "localhost"}})
    assert (settings.server.port, settings.server.host, settings.server.max_sequences) == (9001, "localhost", 5)
    assert settings.models["reference"].dtype == "float16"
    assert settings.models["reference"].max_model_len == 128


def test_settings_are_frozen(file: Path) -> None:
    settings = read(file)
    with pytest.raises(ValueError, match="frozen"):
        settings.server.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nprot = 1", ["server.prot", "unknown key", "1"]),
        ("[servers]\nport = 1", ["servers", "unknown key"]),
        ("[server]\nport = 70000", ["server.port", "65535", "70000"]),
        ('[server]\nport = "x"', ["server.port", "'x'"]),
        ("[server]\nmax_queued_tokens = 7", ["server", "max_queued_tokens", "524288", "7"]),
        ("[models.a]\ndtype = 'float32'", ["models.a.model", "is required"]),
        ("[models.a]\nmodel = 'x'\nengine = 'vllm'", ["models.a.engine", "'torch'", "'vllm'"]),
        ("[models.a]\nmodel = 'x'\ndtype = 'int8'", ["models.a.dtype", "'bfloat16'", "'int8'"]),
        ("[models.a]\nmodel = 'x'\nthreads = 0", ["models.a.threads", "1", "0"]),
        (f"[teams.a]\nkey_sha256 = '{'0' * 64}'\n[teams.b]\nkey_sha256 = '{'0' * 64}'", ["teams.b", "teams.a"]),
        ("[server", ["not valid TOML"]),
    ],
)
def test_mistakes_are_one_line_naming_key_value_and_limit(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "server.toml"
    path.write_text(text)
    with pytest.raises(InvalidSettings) as error:
        read(path)
    message = str(error.value)
    assert "\n" not in message
    assert "server.toml" in message
    assert not [word for word in words if word not in message], message


def test_a_key_in_place_of_its_hash_is_not_printed(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("[teams.a]\nkey_sha256 = 'my secret key'")
    with pytest.raises(InvalidSettings, match=r"teams\.a\.key_sha256") as error:
        read(path)
    assert "secret" not in str(error.value)


def test_an_environment_variable_with_a_typo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPRIORITY_SERVER__PROT", "1")
    with pytest.raises(InvalidSettings, match=r"server\.prot: unknown key"):
        read()


MODELS = {"models": {"reference": {"model": "fake", "engine": "fake"}}}
TEAMS = {"teams": {"a": {"key_sha256": "0" * 64}}}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5"])
def test_an_open_server_stays_on_loopback(host: str) -> None:
    settings = Settings.model_validate({**MODELS, "server": {"host": host}})
    with pytest.raises(InvalidSettings, match=r"server\.host: without teams only loopback"):
        check(settings)
    check(settings, insecure=True)
    check(Settings.model_validate({**MODELS, **TEAMS, "server": {"host": host}}))


@pytest.mark.parametrize("model", ["/no/such/folder", "./missing", "~/missing", "a/b/c"])
def test_a_model_that_is_not_there(model: str) -> None:
    settings = Settings.model_validate({"models": {"reference": {"model": model}}})
    with pytest.raises(InvalidSettings, match=r"models\.reference\.model: no such folder"):
        check(settings)


def test_what_may_be_served(tmp_path: Path) -> None:
    for model in (str(tmp_path), "owner/name"):
        check(Settings.model_validate({"models": {"reference": {"model": model}}}))
    with pytest.raises(InvalidSettings, match="no models"):
        check(Settings())


def test_every_field_is_explained() -> None:
    for section in ("ServerSettings", "StoreSettings", "ModelSettings", "TeamSettings"):
        properties: dict[str, Any] = Settings.model_json_schema()["$defs"][section]["properties"]
        assert [name for name, field in properties.items() if not field.get("description")] == []


def test_the_readme_lists_every_field_with_its_default() -> None:
    readme = (Path(__file__).parents[2] / "service" / "README.md").read_text()
    rows = {row.split("`")[1]: row.split("|")[2].strip(" `") for row in readme.splitlines() if row.startswith("| `")}
    definitions = Settings.model_json_schema()["$defs"]
    for section, prefix in (
        ("ServerSettings", "server"),
        ("StoreSettings", "store"),
        ("ModelSettings", "models.NAME"),
        ("TeamSettings", "teams.NAME"),
    ):
        for name, field in definitions[section]["properties"].items():
            shown = rows[f"{prefix}.{name}"]
            default = field.get("default")
            expected = f"{default:g}" if isinstance(default, float) else str(default)
            assert default is None or shown == expected, name
