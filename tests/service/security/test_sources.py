"""What no source of this project does: unpickle, evaluate, or run code that came with a checkpoint."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = sorted(path for folder in ("client", "service", "trainer") for path in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
"""Reading any of these runs what it holds."""
CALLS = {"eval", "exec", "compile", "__import__"}
# What a call needs beside its name to be safe, and what it must not have.
REQUIRED = {"torch.load": ("weights_only", True), "yaml.load": ("Loader", "SafeLoader")}
FORBIDDEN = {("allow_pickle", True), ("trust_remote_code", True), ("shell", True), ("weights_only", False)}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute or a name; "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def stated(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else dotted(node).rpartition(".")[2]


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    if isinstance(node, ast.Call) and dotted(node.func).endswith("import_module") and node.args:
        return [str(stated(node.args[0]))]
    return []


def faults(tree: ast.AST) -> Iterator[str]:
    """Everything a source must not do, as `line: what`."""
    for node in ast.walk(tree):
        for name in imported(node):
            if name.partition(".")[0] in MODULES:
                yield f"{node.lineno}: imports {name}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            given = {(word.arg, stated(word.value)) for word in node.keywords}
            if name in CALLS:
                yield f"{node.lineno}: calls {name}"
            if name in REQUIRED and REQUIRED[name] not in given:
                yield f"{node.lineno}: {name} without {REQUIRED[name]}"
            for argument in FORBIDDEN & given:
                yield f"{node.lineno}: {name}({argument[0]}={argument[1]})"
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and (key.value, stated(value)) in FORBIDDEN:
                    yield f"{node.lineno}: {key.value!r}: {stated(value)}"


def test_there_are_sources() -> None:
    assert {path.name for path in SOURCES} >= {"wire.py", "torch.py", "loading.py"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_runs_no_foreign_code(path: Path) -> None:
    assert list(faults(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import torch.multiprocessing, dill", "from joblib import load",
        "importlib.import_module('marshal')", "eval(x)", "exec('a')", "subprocess.run(c, shell=True)",
        "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)",
        "yaml.load(f)", "yaml.load(f, Loader=yaml.UnsafeLoader)",
        "f(trust_remote_code=True)", "x = {'trust_remote_code': True}",
    ],
)  # fmt: skip
def test_each_of_them_would_be_found(source: str) -> None:
    assert list(faults(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f, weights_only=True)", "yaml.load(f, Loader=yaml.SafeLoader)", "yaml.safe_load(f)", "np.load(f)",
        "f(trust_remote_code=False)", "re.compile('a')", "model.eval()",
    ],
)  # fmt: skip
def test_what_is_safe_is_not(source: str) -> None:
    assert list(faults(ast.parse(source))) == []


def test_every_loader_of_the_service_says_that_it_trusts_no_remote_code() -> None:
    """The default of transformers may be asked of a person at a terminal; ours is no question."""
    calls = [
        (path.name, {(word.arg, stated(word.value)) for word in node.keywords})
        for path in SOURCES
        if "tokenpriority_service" in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and re.fullmatch(r"Auto\w+\.from_(pretrained|config)", dotted(node.func))
    ]
    assert len(calls) >= 3
    assert [name for name, given in calls if ("trust_remote_code", False) not in given] == []
