"""What importing the package needs, costs and exports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest

import tokenpriority
from tokenpriority import errors


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def bare_modules() -> list[str]:
    """Top-level modules of what `pip install tokenpriority` brings, without extras."""
    distributions, waiting = set(), ["tokenpriority"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in distributions:
            continue
        try:
            needed = requires(name) or []
        except PackageNotFoundError:  # for another platform or Python
            continue
        distributions.add(name)
        waiting += [re.split(r"[^\w.-]", line)[0] for line in needed if "extra ==" not in line]
    assert {"numpy", "httpx", "pydantic", "msgspec"} <= distributions
    others = distributions - {"tokenpriority"}  # whose distribution holds service and trainer too
    return ["tokenpriority"] + [
        module
        for module, owners in packages_distributions().items()
        if {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & others
    ]


BARE = """
    import importlib, json, pkgutil, sys
    allowed = {*json.loads(sys.argv[1]), *sys.stdlib_module_names}

    class Bare:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] not in allowed and not name.startswith("_sysconfigdata"):  # Python's own
                raise ModuleNotFoundError(f"not in a bare environment: {name}", name=name.partition(".")[0])

    sys.meta_path.insert(0, Bare())
    import tokenpriority
"""


def test_every_module_but_the_command_line_imports_in_a_bare_environment() -> None:
    program = (
        BARE
        + """
    for name in tokenpriority.__all__:
        getattr(tokenpriority, name)
    for module in pkgutil.walk_packages(tokenpriority.__path__, "tokenpriority."):
        if not module.name.startswith("tokenpriority.cli."):
            importlib.import_module(module.name)
    with tokenpriority.Client("http://127.0.0.1:9", retries=0) as client:
        assert not client.ready()
    """
    )
    done = run(program, json.dumps(bare_modules()))
    assert done.returncode == 0, done.stderr


def test_the_command_line_says_what_to_install() -> None:
    done = run(BARE + "    from tokenpriority.cli import main; main()", json.dumps(bare_modules()))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'The command line needs typer: pip install "tokenpriority[cli]"\n'


def test_scoring_a_file_says_what_to_install() -> None:
    program = f"""
        import sys
        sys.modules["pyarrow"] = None  # as if it were not installed
        sys.argv = ["tokenpriority", "score", {__file__!r}, "--out", "never-written.parquet"]
        from tokenpriority.cli import main
        main()
    """
    done = run(program)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'The command line needs pyarrow: pip install "tokenpriority[cli]"\n'


def test_a_progress_bar_says_what_to_install() -> None:
    program = (
        BARE
        + """
    with tokenpriority.Client("http://127.0.0.1:9") as client:
        try:
            client.score_many([[1, 2]], progress=True)
        except ImportError as error:
            print(error)
    """
    )
    done = run(program, json.dumps(bare_modules()))
    assert done.stdout == 'progress=True needs rich: pip install "tokenpriority[cli]"\n', done.stderr


def test_importing_takes_less_than_half_a_second() -> None:
    program = "from time import perf_counter as now; t = now(); import tokenpriority; print(now() - t)"
    assert min(float(run(program).stdout) for _ in range(5)) < 0.5


@pytest.mark.parametrize(
    ("command", "forbidden"),
    [
        ("import tokenpriority", ["numpy", "httpx", "pydantic", "msgspec", "rich"]),
        ("from tokenpriority import Client", ["pydantic", "typer", "torch", "pyarrow"]),
        (
            "import sys; sys.argv = ['tokenpriority', '--help']; from tokenpriority.cli import main; main()",
            ["torch", "fastapi", "transformers", "numpy", "pyarrow", "httpx", "tokenpriority_service.command"],
        ),
    ],
)
def test_what_is_not_imported(command: str, forbidden: list[str]) -> None:
    program = f"""
        import atexit, sys
        atexit.register(lambda: sys.stderr.write(",".join(m for m in {forbidden!r} if m in sys.modules)))
        {command}
    """
    assert run(program).stderr == ""


def test_the_public_names_are_these() -> None:
    assert tokenpriority.__all__ == [
        "ApiError",
        "AsyncClient",
        "Calibration",
        "Client",
        "ConnectionFailed",
        "ContractBroken",
        "Coverage",
        "Covered",
        "EngineFault",
        "FingerprintChanged",
        "Forbidden",
        "InternalError",
        "InvalidParameter",
        "InvalidRequest",
        "InvalidSequence",
        "MalformedBody",
        "NotFound",
        "NotStored",
        "Overloaded",
        "Prefetch",
        "ScoreFailure",
        "Scores",
        "SequenceErrors",
        "ServerAway",
        "Source",
        "TokenPriorityError",
        "TooLarge",
        "Unauthorized",
        "Unavailable",
    ]
    for name in tokenpriority.__all__:
        assert getattr(tokenpriority, name).__name__ == name
    assert dir(tokenpriority) == tokenpriority.__all__


def test_every_error_is_public() -> None:
    defined = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, errors.TokenPriorityError)}
    assert defined <= set(tokenpriority.__all__)
    assert set(errors.ERROR_TYPES.values()) <= {getattr(tokenpriority, name) for name in defined}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        tokenpriority.Clinet  # noqa: B018
