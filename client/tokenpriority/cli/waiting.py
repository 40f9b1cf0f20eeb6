"""How long a command waits: for models to load, and for a server that puts it off.

Knows the two kinds of commands: those that work through a file, and those whose answer somebody looks at.
"""

from __future__ import annotations

from typing import Any

import typer

from tokenpriority.client import Client
from tokenpriority.errors import ConnectionFailed
from tokenpriority.exchange import Call
from tokenpriority.methods import METHODS

QUIET_SECONDS = 1.0
READY_SECONDS = 120.0
"""How long to wait for the models the call reads: first without a word, then saying so."""
RETRIES, MAX_WAIT = 2, 10.0
"""Of a command whose answer somebody looks at."""


def brief_client(url: str, api_key: str | None, **settings: Any) -> Client:
    """A client for a command whose answer somebody looks at."""
    return Client(url, api_key=api_key, retries=RETRIES, max_wait=MAX_WAIT, **settings)


def model_fingerprints(client: Client, call: Call, url: str) -> dict[str, str]:
    """Fingerprint of each model the call reads, once they are loaded. Raises as `Client.wait_until_ready`."""
    names = [call.model]
    if call.method in METHODS:
        base = getattr(METHODS[call.method].parse(call.params), "base", None)
        names += [base] if base else []
    try:
        client.wait_until_ready(QUIET_SECONDS, names)
    except ConnectionFailed:
        typer.echo(f"waiting for {', '.join(names)} at {url}", err=True)
        client.wait_until_ready(READY_SECONDS, names)
    known = {model.name: model.fingerprint for model in client.models()}
    return {name: known[name] for name in names}
