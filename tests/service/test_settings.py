"""Where settings come from, and how a mistake in them is told."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tokenpriority_service.configuration import checks
from tokenpriority_service.configuration.checks import check, check_address
from tokenpriority_service.configuration.settings import (
    LOOPBACK,
    DatabaseSettings,
    FakeModel,
    InvalidSettings,
    RemoteModel,
    ServerSettings,
    Settings,
    StoreSettings,
    TeamSettings,
    TorchModel,
    VllmModel,
    read,
)
from tokenpriority_service.configuration.settings_models import MODELS as CLASSES

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


VLLM = "[models.a]\nmodel = 'x'\nengine = 'vllm'\n"
REMOTE = "[models.a]\nmodel = 'x'\nengine = 'remote'\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(FILE)
    return path


def test_a_file_and_its_defaults(file: Path) -> None:
    settings = read(file)
    assert (settings.server.port, settings.server.max_sequences, settings.server.host) == (9000, 5, "127.0.0.1")
    assert settings.store.max_bytes == 1000
    assert settings.models["reference"] == TorchModel(model="some/model", dtype="bfloat16", max_model_len=128)
    assert settings.models["base"] == FakeModel(model="fake")
    assert settings.models["reference"].model_dump()["logits_bytes"] == 268_435_456
    assert list(settings.teams) == ["alpha"]


def test_options_before_environment_before_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPRIORITY_SERVER__PORT", "9001")
    monkeypatch.setenv("TOKENPRIORITY_SERVER__HOST", "::1")
    monkeypatch.setenv("TOKENPRIORITY_MODELS__REFERENCE__DTYPE", "float16")
    monkeypatch.setenv("TOKENPRIORITY_API_KEY", "a client's own")
    settings = read(file, {"server": {"host": "localhost"}})
    assert (settings.server.port, settings.server.host, settings.server.max_sequences) == (9001, "localhost", 5)
    assert settings.models["reference"] == TorchModel(model="some/model", dtype="float16", max_model_len=128)


def test_settings_are_frozen(file: Path) -> None:
    settings = read(file)
    with pytest.raises(ValueError, match="frozen"):
        settings.server.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nprot = 1", ["server.prot: unknown key"]),
        ("[servers]\nport = 1", ["servers", "unknown key"]),
        ("[server]\nport = 70000", ["server.port", "65535", "70000"]),
        ('[server]\nport = "x"', ["server.port", "'x'"]),
        ("[server]\nmax_queued_tokens = 7", ["server", "max_queued_tokens", "524288", "7"]),
        ("[models.a]\ndtype = 'float32'", ["models.a.model", "is required"]),
        ("[models.a]\nmodel = 'x'\nengine = 'tpu'", ["models.a.engine:", "'torch'", "'vllm'", "'remote'", "got 'tpu'"]),
        ("[models]\na = 3", ["models.a: must be a table, got 3"]),
        ("[models.a]\nmodel = 'x'\ndtype = 'int8'", ["models.a.dtype", "'bfloat16'", "'int8'"]),
        ("[models.a]\nmodel = 'x'\nthreads = 0", ["models.a.threads", "1", "0"]),
        (
            VLLM + "device = 'cpu'",
            ['models.a.device: not a setting of engine "vllm"', "its settings are model, engine"],
        ),
        (VLLM + "temperature = 0.7", ['models.a.temperature: not a setting of engine "vllm"']),
        ("[models.a]\nmodel = 'x'\nevidence = 'full'", ['models.a.evidence: not a setting of engine "torch"']),
        ("[models.a]\nmodel = 'x'\nengine = 'fake'\ndtype = 'float32'", ["models.a.dtype: not a setting", '"fake"']),
        (VLLM + "memory_share = 1.5", ["models.a.memory_share", "1", "1.5"]),
        (VLLM + "memory_share = 0", ["models.a.memory_share", "greater than 0"]),
        (VLLM + "kv_cache_bytes = 0", ["models.a.kv_cache_bytes", "got 0"]),
        (VLLM + "tensor_parallel = 0", ["models.a.tensor_parallel", "got 0"]),
        (VLLM + "max_model_len = 1", ["models.a.max_model_len", "2", "got 1"]),
        (VLLM + "evidence = 'some'", ["models.a.evidence", "'full'", "'prompt_logprobs'", "got 'some'"]),
        (VLLM + "adapters = {tuned = ''}", ["models.a.adapters.tuned", "got ''"]),
        (REMOTE[:-1], ["models.a.urls: is required"]),
        (REMOTE + "urls = []", ["models.a.urls", "1"]),
        (REMOTE + "urls = ['ftp://h']", ["models.a.urls.0", "http://HOST"]),
        (REMOTE + "urls = ['http://h', 'http://h']", ["models.a.urls", "http://h is there 2 times"]),
        (REMOTE + "urls = ['http://h']\ntimeout = 0", ["models.a.timeout", "greater than 0"]),
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


@pytest.mark.parametrize(
    "text",
    [
        "urls = ['http://me:secret@h']",
        "urls = ['http://secret@h']",
        "urls = ['http://h']\napi_key_env = 'sk-secret'",
        "urls = ['http://h']\napi_key = 'sk-secret'",
    ],
)
def test_an_api_key_in_the_file_is_not_printed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "server.toml"
    path.write_text(REMOTE + text)
    with pytest.raises(InvalidSettings, match=r"models\.a\.(urls|api_key)") as error:
        read(path)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        '[database]\nuri = "postgresql://u:secret@h/db"',
        '[database]\nurl = ["postgresql://u:secret@h/db"]',
        '[databse]\nurl = "postgresql://u:secret@h/db"',
        'database = "postgresql://u:secret@h/db"',
        '[server]\ndatabase = "postgresql://u:secret@h/db"',
        'server = "https://u:secret@h"',
        'models = "sk-secret"',
        '[models]\napi_key = "sk-secret"',
        '[server]\ntrace = "https://u:secret@h"',
        '[server]\ntraces = "https://u:secret@h"',
        '[server]\ntraces = "grpc://u:secret@h"',
        '[server]\ntraces = "https://h/?token=secret"',
        '[server]\ntraces = "https://u:secret/@h"',
        '[server]\ntraces = "https://u:1234/secret@h"',  # u:1234 could be a host and its port
        '[server]\ntraces = "https://secret:secret"',
        '[server]\ntraces = "https://[secret"',
        '[server]\ntraces = ["https://u:secret@h"]',
        "[teem.a]\nkey_sha256 = 'tp_secret'",
        "[teams]\na = 'tp_secret'",
        REMOTE + "urls = 'http://u:secret@h'",
        REMOTE + "urls = ['http://u:secret/@h']",
        REMOTE + "urls = ['http://u:secret']",
    ],
)
def test_no_password_in_the_file_is_printed(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENPRIORITY_DATABASE__URL", raising=False)  # the tests' own would win
    path = tmp_path / "server.toml"
    path.write_text(text)
    with pytest.raises(InvalidSettings, match=r"server\.toml: (server|datab|models|te)") as error:
        read(path)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE", "postgresql://u:secret@h/db"),
        ("DATABASE__URI", "postgresql://u:secret@h/db"),
        ("SERVER__TRACES", "https://u:secret@h"),
        ("MODELS__A__URLS", "http://u:secret@h"),
        ("TEAMS", "tp_secret"),
    ],
)
def test_no_password_in_the_environment_is_printed(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("TOKENPRIORITY_MODELS__A__ENGINE", "remote")
    monkeypatch.setenv("TOKENPRIORITY_MODELS__A__MODEL", "m")
    monkeypatch.setenv(f"TOKENPRIORITY_{name}", value)
    with pytest.raises(InvalidSettings) as error:
        read()
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("url", ["http://collector:4318", "https://[::1]:4318", "https://example.org/otlp/"])
def test_addresses_that_may_be_a_collectors(tmp_path: Path, url: str) -> None:
    path = tmp_path / "server.toml"
    path.write_text(f'[server]\ntraces = "{url}"')
    assert read(path).server.traces == url


def test_lists_and_tables_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"A__MODEL": "m", "A__ENGINE": "remote", "A__URLS": '["http://h:1", "http://h:2"]'}
    values |= {"B__MODEL": "m", "B__ENGINE": "vllm", "B__MEMORY_SHARE": "0.5", "B__ADAPTERS__TUNED": "owner/name"}
    for name, value in values.items():
        monkeypatch.setenv(f"TOKENPRIORITY_MODELS__{name}", value)
    assert read().models == {
        "a": RemoteModel(model="m", urls=["http://h:1", "http://h:2"]),
        "b": VllmModel(model="m", memory_share=0.5, adapters={"tuned": "owner/name"}),
    }


def vllm_models(**models: dict[str, Any]) -> dict[str, Any]:
    return {"models": {name: {"model": "owner/name", "engine": "vllm", **each} for name, each in models.items()}}


def test_memory_shares_of_one_gpu_sum_to_at_most_one() -> None:
    shares = [{"memory_share": share} for share in (0.7, 0.2, 0.1)]
    Settings.model_validate(vllm_models(**dict(zip("abc", shares, strict=True))))
    with pytest.raises(
        ValueError, match=r"models\.a\.memory_share = 0\.7, models\.b\.memory_share = 0\.4: .* got 1\.1"
    ):
        Settings.model_validate(vllm_models(a=shares[0], b={"memory_share": 0.4}))


def test_every_model_has_a_name_of_its_own() -> None:
    tuned = {"adapters": {"tuned": "owner/tuned"}}
    assert Settings.model_validate(vllm_models(a=tuned)).models["a"].names == ("tuned",)
    for models, words in (
        ({"a": {"adapters": {"a": "x"}}}, r"models\.a\.adapters\.a: models\.a has this name"),
        ({"a": tuned, "tuned": {}}, r"models\.a\.adapters\.tuned: models\.tuned has this name"),
        ({"a": tuned, "b": tuned}, r"models\.b\.adapters\.tuned: models\.a\.adapters\.tuned has this name"),
    ):
        with pytest.raises(ValueError, match=words):
            Settings.model_validate(vllm_models(**models))


def test_an_environment_variable_with_a_typo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPRIORITY_SERVER__PROT", "1")
    with pytest.raises(InvalidSettings, match=r"server\.prot: unknown key"):
        read()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5"])
def test_an_open_server_stays_on_loopback(host: str) -> None:
    with pytest.raises(InvalidSettings, match=r"server\.host: while no team has a key only loopback"):
        check_address(host, keyed=False, insecure=False)
    check_address(host, keyed=False, insecure=True)
    check_address(host, keyed=True, insecure=False)
    for loopback in LOOPBACK:
        check_address(loopback, keyed=False, insecure=False)


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "~/missing", "a/b/c"])
@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("model", {}),
        ("model", {"engine": "vllm"}),
        ("adapters.tuned", {"engine": "vllm"}),
        ("tokenizer", {"engine": "remote", "urls": ["http://h"]}),
    ],
)
def test_a_folder_that_is_not_there(path: str, field: str, given: dict[str, Any]) -> None:
    pytest.importorskip("vllm") if given.get("engine") == "vllm" else None
    value = {"adapters": {"tuned": path}} if field.startswith("adapters") else {field: path}
    settings = Settings.model_validate({"models": {"reference": {"model": "owner/name", **given, **value}}})
    with pytest.raises(InvalidSettings, match=rf"models\.reference\.{field}: no such folder"):
        check(settings)


def test_a_remote_model_needs_the_variable_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = {"model": "m", "engine": "remote", "urls": ["http://h"], "api_key_env": "THEIR_KEY"}
    settings = Settings.model_validate({"models": {"reference": remote}})
    for value in (None, ""):
        monkeypatch.delenv("THEIR_KEY", raising=False) if value is None else monkeypatch.setenv("THEIR_KEY", value)
        with pytest.raises(InvalidSettings, match=r"api_key_env: the environment variable THEIR_KEY is not set"):
            check(settings)
    monkeypatch.setenv("THEIR_KEY", "secret")
    check(settings)


@pytest.mark.parametrize("cpu", [True, False])
def test_vllm_models_on_the_same_gpus_state_their_shares(monkeypatch: pytest.MonkeyPatch, cpu: bool) -> None:
    monkeypatch.setattr(checks, "missing", lambda kind: None)
    monkeypatch.setattr(checks, "builds_for_cpu", lambda: cpu)
    half = {"memory_share": 0.5}
    check(Settings.model_validate(vllm_models(a={})))
    check(Settings.model_validate(vllm_models(a=half, b=half)))
    expected: Any = contextlib.nullcontext()
    if not cpu:
        words = r"models\.b\.memory_share: is required, above 0 and at most 1, beside .* \(models\.a\)"
        expected = pytest.raises(InvalidSettings, match=words)
    with expected:
        check(Settings.model_validate(vllm_models(a=half, b={})))


def test_the_installed_vllm_is_known_by_its_version() -> None:
    interface = pytest.importorskip("vllm.platforms")
    assert checks.builds_for_cpu() == interface.current_platform.is_cpu()


def test_what_may_be_served(tmp_path: Path) -> None:
    for model in (str(tmp_path), "owner/name"):
        check(Settings.model_validate({"models": {"reference": {"model": model}}}))
    with pytest.raises(InvalidSettings, match="no models"):
        check(Settings())


README = (Path(__file__).parents[2] / "service" / "README.md").read_text()
SECTIONS: dict[str, type[BaseModel]] = {
    "[server]": ServerSettings,
    "[database]": DatabaseSettings,
    "[store]": StoreSettings,
    "[teams.NAME]": TeamSettings,
    **{f'[models.NAME] with engine = "{engine}"': settings for engine, settings in CLASSES.items()},
}


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_every_field_is_explained(section: type[BaseModel]) -> None:
    assert [name for name, field in section.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(("title", "section"), SECTIONS.items(), ids=SECTIONS)
def test_the_readme_lists_every_field_with_its_default(title: str, section: type[BaseModel]) -> None:
    [text] = re.findall(rf"^`{re.escape(title)}`.*?\n\n(\|.*?)\n\n", README, re.DOTALL | re.MULTILINE)
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE))
    fields = {name: field for name, field in section.model_fields.items() if name != "engine"}
    assert list(rows) == list(fields)
    for name, field in fields.items():
        shown, default = rows[name].strip("`"), field.get_default(call_default_factory=True)
        if field.is_required():
            assert shown == "required", name
        elif default is not None:
            expected = f"{default:g}" if isinstance(default, float) else json.dumps(default).strip('"')
            assert (shown or '""') == (expected or '""'), name
