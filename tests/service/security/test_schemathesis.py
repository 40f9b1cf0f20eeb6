"""The OpenAPI document is true: schemathesis makes requests from it, good and bad, and holds the answers against it.

It runs in a process of its own against a real server on a real socket, over every route that the document lists.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenpriority_service.engines.fake import FakeEngine

SUPPORT = Path(__file__).parents[2] / "support"
COMMAND = [sys.executable, "-m", "schemathesis.cli", "run", "--no-color", "--generation-deterministic", "--seed=1"]
COMMAND += ["--max-examples=30", "--continue-on-failure", "--request-timeout=30"]
# Replaced by `invalid_data_is_refused` of contract_hooks, which also counts the error of one sequence as a refusal.
COMMAND += ["--checks=all", "--exclude-checks=negative_data_rejection"]
# Which parameters a method takes is told by GET /v1/methods, not by the document: so a body that keeps the document may
# be refused for them.
CONFIG = """
[[operations]]
include-path-regex = "^/v1/(priorities|coverage)$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "422"]
"""


@pytest.fixture(scope="module")
def both(serve: Any) -> Any:
    with serve({"reference": FakeEngine(), "base": FakeEngine(model="base")}) as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_route_keeps_the_document(both: Any, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "contract_hooks",
        "PYTHONPATH": str(SUPPORT),
        "PYTHONHASHSEED": "0",
    }
    result = subprocess.run(
        [*COMMAND, f"{both.url}/openapi.json"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    report = result.stdout + result.stderr
    assert result.returncode == 0, report
    routes = len([None for each in both.http.get("/openapi.json").json()["paths"].values() for _ in each])
    assert f"Operations:       {routes} selected / {routes} total" in report, report
    assert f"Tested: {routes}" in report, report
    generated = re.search(r"(\d+) generated, \1 passed", report)
    assert generated is not None, report
    assert int(generated[1]) > 20 * routes, report
    assert "Schema validation skipped" not in report, report
    assert both.score({"token_ids": [1, 2]})[0]["priorities"] == [0, 1]
