"""The log of a real server process: no token content and no keys, whatever is sent and whatever goes wrong."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tokenpriority_service.telemetry.log import JsonFormatter

KEY = "key-of-alpha-2f6c"
CONTENT = "kryptonite"
IDS = [4_073_311_201, 4_073_311_202, 4_073_311_203]
"""So long that no time, duration or random hexadecimal of the log holds one by chance."""
SECONDS = 60.0
"""For anything to happen that must."""
NOBODY = "http://127.0.0.1:9"
"""Where no collector listens."""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and the lines of its log once it has ended."""
    config = folder / "server.toml"
    config.write_text(
        f"[server]\nport = 0\ntraces = '{NOBODY}'\nmax_request_tokens = 64\n"
        "[models.reference]\nmodel = 'x'\nengine = 'fake'\n"
        f"[teams.alpha]\nkey_sha256 = '{hashlib.sha256(KEY.encode()).hexdigest()}'\n"
    )
    code = "from tokenpriority.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--config", str(config)]
    lines: list[str] = []
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            match = re.search(r"http://\S+", process.stdout.readline())
            assert match is not None, (folder / "log").read_text()
            yield match[0], lines
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.communicate()
        lines += (folder / "log").read_text().splitlines()


def everything_wrong(http: httpx.Client) -> list[int]:
    """Requests that put content and the key wherever a server might repeat them; their statuses."""
    sequences: list[Any] = [
        {"token_ids": IDS},
        {"text": CONTENT, "id": CONTENT},
        {"token_ids": IDS, "spans": [{"start": CONTENT}]},
        {CONTENT: CONTENT},
        {"token_ids": [CONTENT]},
    ]
    bodies: list[bytes] = [
        json.dumps({"sequences": sequences}).encode(),
        json.dumps({"sequences": sequences, "model": CONTENT}).encode(),
        json.dumps({"sequences": sequences, "method": {"name": CONTENT}}).encode(),
        json.dumps({"sequences": [{"text": CONTENT * 50}]}).encode(),
        json.dumps({"sequences": CONTENT, KEY: KEY}).encode(),
        b'{"sequences": [{"text": "' + CONTENT.encode(),
        CONTENT.encode() + b"\xff",
    ]
    keyed = {"authorization": f"Bearer {KEY}"}
    odd = {"x-request-id": f"{CONTENT} {KEY}", "traceparent": CONTENT, "user-agent": CONTENT, "cookie": KEY}
    json_type = {"content-type": "application/json"}
    statuses = []
    for body in bodies:
        for headers in (json_type, {"content-type": "application/x-msgpack"}, {"content-type": CONTENT}):
            answer = http.post("/v1/priorities", content=body, headers={**keyed, **odd, **headers})
            statuses.append(answer.status_code)
    for wrong in (f"Bearer {KEY}x", f"Basic {KEY}", KEY):
        answer = http.get("/v1/models", headers={**odd, "authorization": wrong})
        statuses.append(answer.status_code)
    statuses.append(http.get(f"/{CONTENT}/{KEY}?key={KEY}", headers=keyed).status_code)
    statuses.append(http.get(f"/v1/models?key={KEY}&text={CONTENT}", headers=keyed).status_code)
    statuses.append(http.request("PROPFIND", "/v1/models", headers=keyed).status_code)
    return statuses


def test_neither_content_nor_keys_are_written(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, lines), httpx.Client(base_url=url, timeout=30) as http:
        deadline = time.monotonic() + SECONDS
        while http.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline, "never ready"
            time.sleep(0.02)
        statuses = everything_wrong(http)
        assert http.get("/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        assert {200, 400, 401, 404, 413, 422} <= set(statuses)
        assert 500 not in statuses
    log = "\n".join(lines)
    for private in (CONTENT, KEY, *map(str, IDS), hashlib.sha256(KEY.encode()).hexdigest()):
        assert private not in log
    records = [json.loads(line) for line in lines]
    requests = [record for record in records if record["message"] == "request" and record["route"] != "/readyz"]
    assert len(requests) == len(statuses) + 1
    assert len({record["request_id"] for record in requests}) == len(requests)
    assert len({record["trace_id"] for record in requests}) == len(requests)
    warnings = [record["message"] for record in records if record["level"] == "warning"]
    assert warnings == [f"spans are lost: {NOBODY}/v1/traces takes none"]


def fail() -> None:
    try:
        raise KeyError(CONTENT)
    except KeyError as error:
        raise ValueError(f"two\nlines of {CONTENT}") from error


def line(fields: dict[str, object] | None) -> str:
    try:
        fail()
    except ValueError as error:
        exc_info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "broken %s", ("thing",), exc_info)
    if fields is not None:
        record.fields = fields
    return JsonFormatter().format(record)


def test_a_bug_in_a_request_is_told_by_place_and_type_alone() -> None:
    written = line({"request_id": "r1", "trace_id": "0af7"})
    assert "\n" not in written
    assert CONTENT not in written
    record = json.loads(written)
    assert (record["message"], record["request_id"], record["trace_id"]) == ("broken thing", "r1", "0af7")
    trace = record["traceback"]
    assert trace.index("KeyError") < trace.index("ValueError")
    assert trace.count("in fail") == 2
    assert trace.endswith("ValueError")


def test_what_is_not_about_a_request_keeps_its_message() -> None:
    trace = json.loads(line(None))["traceback"]
    assert f"ValueError: two\nlines of {CONTENT}" in trace


def test_exceptions_that_cause_each_other_end() -> None:
    first, second = ValueError("a"), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "m", (), (ValueError, first, None))
    record.fields = {"request_id": "r1"}
    assert json.loads(JsonFormatter().format(record))["traceback"] == "KeyError\nValueError"
