"""A real server on a real socket, over small real models or a `probe.Probe`."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from postgres import Postgres
from probe import Probe
from tokenpriority import wire
from tokenpriority_service.app import create_app
from tokenpriority_service.configuration.settings import Settings, TorchModel
from tokenpriority_service.engines.engine import Engine
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.service import Service
from tokenpriority_service.web.server import Server, listen

HEADER = "{{ '<|im_start|>' + m.role + '\n' }}"
BODY = "{{ m.content + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
MARKED = (
    f"{{% for m in messages %}}{HEADER}{{% if m.role == 'assistant' %}}{{% generation %}}{BODY}{{% endgeneration %}}"
    f"{{% else %}}{BODY}{{% endif %}}{{% endfor %}}{PROMPT}"
)
UNMARKED = f"{{% for m in messages %}}{HEADER}{BODY}{{% endfor %}}{PROMPT}"


@dataclass
class Running:
    """A server under test."""

    url: str
    service: Service
    server: Server
    http: httpx.Client

    def post(self, body: Any, *, media: str = wire.JSON, accept: str | None = None, **headers: str) -> httpx.Response:
        """POST /v1/priorities with a struct-like body in a format."""
        content = body if isinstance(body, bytes) else wire.encode(body, media)
        sent = {"content-type": media, **({"accept": accept} if accept else {}), **headers}
        return self.http.post("/v1/priorities", content=content, headers=sent)

    def score(self, *sequences: Any, **envelope: Any) -> list[dict[str, Any]]:
        """The results of sequences, as JSON; the request must succeed."""
        response = self.post({"sequences": list(sequences), **envelope})
        assert response.status_code == 200, response.text
        results: list[dict[str, Any]] = response.json()["results"]
        return results


def until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Wait for something another thread brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)


@contextlib.contextmanager
def running(
    engines: Mapping[str, Engine] | None = None,
    settings: Settings | None = None,
    *,
    ready: bool = True,
    **load: Any,
) -> Iterator[Running]:
    """A server in a thread of its own, on a free port."""
    settings = settings or Settings()
    app = create_app(settings, engines, **load)
    sock = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    service: Service = app.state.service
    server = Server(app, service.gate, settings.server.drain_seconds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started, "the server")
        if ready:
            until(lambda: not service.models.unready, f"models: {service.models.unready}")
        with httpx.Client(base_url=url, timeout=60) as http:
            yield Running(url, service, server, http)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server."""
    with Postgres() as running_server:
        yield running_server


@pytest.fixture(scope="session")
def serve() -> Callable[..., contextlib.AbstractContextManager[Running]]:
    """Makes servers: `with serve({"reference": engine}) as server`."""
    return running


def leave_early(server: Any, body: Any, wait: Callable[[], None]) -> None:
    """Send a request whole, wait, and close the connection before the answer."""
    content = wire.encode(body, wire.JSON)
    fields = {"host": "x", "content-type": wire.JSON, "content-length": len(content)}
    head = "POST /v1/priorities HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + content)
        wait()


@pytest.fixture(scope="session")
def hang_up() -> Callable[..., None]:
    return leave_early


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    return until


@pytest.fixture
def probe() -> Probe:
    """A watched fake engine."""
    return Probe(FakeEngine())


@pytest.fixture(scope="session")
def make_probe() -> Callable[..., Probe]:
    return Probe


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Real text: files of Python's standard library."""
    folder = Path(contextlib.__file__).parent
    return [(folder / name).read_text()[:20_000] for name in ("textwrap.py", "shlex.py", "string.py", "queue.py")]


def train_tokenizer(corpus: list[str], template: str | None) -> Any:
    """A small byte-level BPE that adds a beginning-of-sequence token, as many do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    fast: Any = PreTrainedTokenizerFast  # untyped
    fast = fast(tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|im_end|>")
    if template is not None:
        fast.chat_template = template
    return fast


@pytest.fixture(scope="session")
def make_tokenizer(corpus: list[str]) -> Callable[[str | None], Any]:
    return lambda template: train_tokenizer(corpus, template)


@pytest.fixture(scope="session")
def tokenizer(corpus: list[str]) -> Any:
    """The tokenizer of the `checkpoints`."""
    return train_tokenizer(corpus, MARKED)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    """Two small random models of one tokenizer, as folders: "reference" and "base"."""
    folders = {}
    for seed, name in enumerate(("reference", "base")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=2,
        )
        folder = tmp_path_factory.mktemp(name)
        model: Any = LlamaForCausalLM  # untyped
        model(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[name] = folder
    return folders


@pytest.fixture(scope="session")
def torch_settings(checkpoints: dict[str, Path]) -> Settings:
    return Settings(models={name: TorchModel(model=str(path), threads=1) for name, path in checkpoints.items()})


@pytest.fixture(scope="session")
def torch_server(torch_settings: Settings) -> Iterator[Running]:
    """A server with two real models, `reference` and `base`."""
    with running(settings=torch_settings) as server:
        yield server


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """A server with the fake engine."""
    with running({"reference": FakeEngine()}) as server:
        yield server


@pytest.fixture(scope="session")
def arrays() -> Callable[[Mapping[str, Any]], dict[str, np.ndarray[Any, Any]]]:
    """The arrays of one result, from either format."""

    def read(result: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        fields = {"token_ids": wire.U4, "logprobs": wire.F4, "priorities": wire.F4}
        out = {name: wire.unpack(result[name], dtype, name) for name, dtype in fields.items()}
        return out | {name: wire.unpack(value, wire.F4, name) for name, value in result["signals"].items()}

    return read


@pytest.fixture(scope="session")
def decode() -> Callable[[httpx.Response], Any]:
    """The body of an answer in whatever format it says it has."""
    libraries = {wire.JSON: msgspec.json, wire.MSGPACK: msgspec.msgpack}
    return lambda response: libraries[response.headers["content-type"]].decode(response.content)
