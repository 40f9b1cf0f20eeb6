"""Tiny real models and a real tokenizer, made on the spot; training arguments for one CPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from datasets import Dataset
from hypothesis import settings
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig

from run_config import SGD
from tokenpriority import Client
from tokenpriority_trainer import ColumnSource, LocalSource, PrioritySFTTrainer, Weighting

# No test asserts on time, and these machines are often busy.
settings.register_profile("trainer", deadline=None)
settings.load_profile("trainer")

# transformers leaves these constructors untyped.
_FAST: Any = PreTrainedTokenizerFast
_LLAMA: Any = LlamaForCausalLM

END = "<|end|>"
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}<|end|>{% endfor %}"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text() -> str:
    """Real ASCII text: a source file of the standard library."""
    return Path(json.__file__).read_text(encoding="ascii")


@pytest.fixture(scope="session")
def tokenizer(text: str) -> Any:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([text], vocab_size=400, special_tokens=[END], show_progress=False)
    made: Any = _FAST(tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=END)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="session")
def make_model(tokenizer: Any) -> Callable[..., Any]:
    """A random Llama, the same at every call with the same seed."""

    def make(seed: int = 0, **changes: Any) -> Any:
        torch.manual_seed(seed)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(
            **{
                **sizes,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 256,
                "initializer_range": 0.2,
                **changes,
            }
        )
        return _LLAMA(config).float()

    return make


@pytest.fixture(scope="session")
def reference_seed() -> int:
    """The seed of the model that the server scores with; its base is one further."""
    return 11


@pytest.fixture(scope="session")
def save_student(make_model: Callable[..., Any], tokenizer: Any) -> Callable[..., Path]:
    """Writes a model and its tokenizer into a folder."""

    def save(folder: Path, seed: int = 0, **changes: Any) -> Path:
        make_model(seed, **changes).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def command_line() -> list[str]:
    """The console script `tokenpriority`, whether or not it is on the path."""
    return [sys.executable, "-c", "from tokenpriority.cli import main; main()"]


def begin_server(
    command_line: list[str], folder: Path, models: dict[str, Path], port: int = 0
) -> tuple[subprocess.Popen[str], str]:
    """A real scoring server in a process of its own and its address, its models not loaded yet."""
    lines = ["[server]", f"port = {port}"]
    for name, path in models.items():
        lines += [f"[models.{name}]", f'model = "{path}"', 'engine = "torch"', "threads = 1"]
    (folder / "server.toml").write_text("\n".join(lines), encoding="utf-8")
    command = [*command_line, "serve", "--config", str(folder / "server.toml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = list(iter_until(process.stdout, "listens on"))
    found = re.search(r"http://\S+", said[-1]) if said else None
    assert found, "".join(said)
    # What the server writes on must be read, or it would one day stand still on a full pipe.
    threading.Thread(target=process.stdout.read, daemon=True).start()
    return process, found[0]


@contextmanager
def serving(command_line: list[str], folder: Path, models: dict[str, Path]) -> Iterator[str]:
    """The address of such a server, as long as the context is open."""
    process, url = begin_server(command_line, folder, models)
    with process:
        yield url
        process.terminate()


@pytest.fixture(scope="session")
def begin(command_line: list[str]) -> Callable[..., tuple[subprocess.Popen[str], str]]:
    """Begins a server of these models, at this port: its process, for the caller to end, and its address."""
    return partial(begin_server, command_line)


@pytest.fixture(scope="session")
def serve(command_line: list[str]) -> Callable[[Path, dict[str, Path]], Any]:
    """Begins a server of these models: a context that gives its address."""
    return lambda folder, models: serving(command_line, folder, models)


@pytest.fixture(scope="session")
def server(
    command_line: list[str],
    save_student: Callable[..., Path],
    reference_seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The address of a server with a reference and a base."""
    folder = tmp_path_factory.mktemp("server")
    seeds = {"reference": reference_seed, "base": reference_seed + 1}
    models = {name: save_student(folder / name, seed) for name, seed in seeds.items()}
    with serving(command_line, folder, models) as url:
        with Client(url) as client:
            client.wait_until_ready(60)
        yield url


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    """A client of that server."""
    with Client(server, timeout=60) as made:
        yield made


@pytest.fixture(scope="session")
def half_server(
    command_line: list[str],
    save_student: Callable[..., Path],
    reference_seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The address of a server that is never ready: its model `broken` cannot be loaded, its reference can."""
    folder = tmp_path_factory.mktemp("half")
    (folder / "broken").mkdir()
    models = {"broken": folder / "broken", "reference": save_student(folder / "reference", reference_seed)}
    with serving(command_line, folder, models) as url:
        yield url


@pytest.fixture
def make_args(tmp_path: Path) -> Callable[..., SFTConfig]:
    """Arguments under which one optimiser step of SGD moves every parameter by minus its gradient."""

    def make(**changes: Any) -> SFTConfig:
        return SFTConfig(**{**SGD, "output_dir": str(tmp_path / "out"), **changes})

    return make


SIGNED = [-1.5, 1.0, 0.0, 0.5, 0.25, -0.5, 2.0]


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Eight sequences of 3 to 17 random tokens, part of them not trained on."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for number in range(8):
        ids = torch.randint(1, 300, (3 + 2 * number,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * (number % 3) + ids[number % 3 :]})
    return made


@pytest.fixture
def signed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with every kind of weight, unlike from row to row."""
    return [{**r, "priorities": [SIGNED[(i + len(r["labels"])) % 7] for i in r["input_ids"]]} for r in rows]


@pytest.fixture
def weighted(rows: list[dict[str, Any]]) -> Callable[[float], list[dict[str, Any]]]:
    """The rows with one weight on every token."""
    return lambda weight: [{**row, "priorities": [weight] * len(row["input_ids"])} for row in rows]


@pytest.fixture
def make_trainer(
    make_model: Callable[..., Any], make_args: Callable[..., SFTConfig], tokenizer: Any
) -> Callable[..., Any]:
    """A trainer that takes its weights from the rows' own column, else weight 1."""

    def make(rows: list[dict[str, Any]], weighting: Weighting | None = None, model: Any = None, **changes: Any) -> Any:
        source = changes.pop("source", None)
        rest = {key: changes.pop(key) for key in ("peft_config", "eval_dataset", "local") if key in changes}
        return PrioritySFTTrainer(
            model if model is not None else make_model(),
            make_args(**changes),
            Dataset.from_list(rows),
            priorities=source or (ColumnSource() if "priorities" in rows[0] else LocalSource()),
            weighting=weighting,
            processing_class=tokenizer,
            **rest,
        )

    return make


def iter_until(lines: IO[str], what: str) -> Iterator[str]:
    """Lines up to and with the one that says `what`."""
    for line in lines:
        yield line
        if what in line:
            return
