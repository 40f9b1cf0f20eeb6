"""`tokenpriority serve`.

Knows the options, what is said at start, and how a mistake is told: in one line on standard error, with exit status 2
for a configuration that cannot be used and 1 for an address that cannot be listened on. Heavy libraries are imported
once the configuration is known to be good.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tokenpriority.errors import ApiError
from tokenpriority_service.configuration.checks import check, check_address
from tokenpriority_service.configuration.settings import LOOPBACK, InvalidSettings, Settings, read
from tokenpriority_service.configuration.settings_models import MODELS

if TYPE_CHECKING:
    from fastapi import FastAPI


def serve(
    config: Annotated[Path | None, typer.Option(help="TOML file; see service/README.md.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Serve this one model, as `reference`: a folder or a hub name.", show_default=False),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="torch, vllm, remote or fake, with --model.", show_default="torch")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="torch, vllm: float32, bfloat16 or float16.", show_default="float32"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="torch: cpu or cuda.", show_default="cpu")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest sequence taken, in tokens.", show_default="the model's own")
    ] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option(help="vllm: GPUs the model is split over.", show_default="1")
    ] = None,
    evidence: Annotated[
        str | None,
        typer.Option(
            help="vllm: full (every signal), or prompt_logprobs (logprob and rank alone, for a model that vLLM cannot "
            "host the other way).",
            show_default="full",
        ),
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(help="remote: address of a running `vllm serve`; once for each replica.", show_default=False),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(help="remote: name of the environment variable with its API key.", show_default=False),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes a free one.", show_default="8000")
    ] = None,
    insecure: Annotated[bool, typer.Option(help="Listen beyond this machine although nobody needs a key.")] = False,
) -> None:
    """Serve reference log-probabilities and token priorities over HTTP.

    Each model is run by an engine: torch (transformers, in this process; works anywhere), vllm (vLLM, in processes of
    its own), remote (a `vllm serve` that runs already), fake (made-up numbers). Several models, adapters and the
    settings not listed here go into a TOML file.
    """
    options: dict[str, Any] = {"server": _given(host=host, port=port)}
    one = _given(
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        tensor_parallel=tensor_parallel,
        evidence=evidence,
        urls=url or None,
        api_key_env=api_key_env,
    )
    if model is not None:
        _check_options(engine or "torch", one)
        options["models"] = {"reference": {"model": model, **_given(engine=engine), **one}}
    elif one or engine is not None:
        name = "--engine" if engine is not None else _option(next(iter(one)))
        _fail(f"{name}: goes with --model only; with --config, set it in the file's [models.NAME]")
    try:
        settings = read(config, options)
        check(settings)
    except InvalidSettings as error:
        _fail(str(error))
    run(settings, insecure=insecure)


def run(settings: Settings, *, insecure: bool = False) -> None:
    """Serve until told to stop."""
    from tokenpriority_service.telemetry import log
    from tokenpriority_service.web.server import PortTaken, Server, listen

    app, keyed = _prepared(settings, insecure)
    try:
        sock = listen(settings.server.host, settings.server.port)
    except PortTaken as error:
        _fail(str(error), status=1)
    log.configure()
    host, port = sock.getsockname()[:2]
    typer.echo(f"tokenpriority listens on http://{f'[{host}]' if ':' in host else host}:{port}  (docs at /docs)")
    for name, each in settings.models.items():
        typer.echo(f"  model {name}: {each.model} ({each.summary}), loading")
    typer.echo(f"  database: {app.state.service.database.shown}")
    typer.echo(f"  keys: {_said(keyed, settings.server.host)}")
    Server(app, app.state.service.gate, settings.server.drain_seconds).run(sockets=[sock])


def _said(keyed: bool, host: str) -> str:
    """Who may use the server."""
    if keyed:
        return "asked for"
    who = (
        "and only this machine is listened to"
        if host in LOOPBACK
        else "and anybody who reaches this address may use it"
    )
    return f"no team has one, so none is asked for, {who} (`tokenpriority keys create`)"


def _prepared(settings: Settings, insecure: bool) -> tuple[FastAPI, bool]:
    """The application over a database that is up to date, and whether it asks for keys."""
    from tokenpriority_service.app import create_app
    from tokenpriority_service.database.database import InvalidUrl, reason
    from tokenpriority_service.database.upgrade import NotCurrent

    try:
        app = create_app(settings)
        app.state.service.prepare()
        keyed = not app.state.service.directory.open_now()
        check_address(settings.server.host, keyed=keyed, insecure=insecure)
    except InvalidUrl as error:
        _fail(f"database.url: {error}")
    except InvalidSettings as error:
        _fail(str(error))
    except NotCurrent as error:
        _fail(f"database.url: {error}", status=1)
    except ApiError as error:
        _fail(f"database.url: {app.state.service.database.shown} cannot be used: {reason(error)}", status=1)
    return app, keyed


def _check_options(engine: str, given: dict[str, Any]) -> None:
    """Fail on the first option that this engine does not have."""
    if engine not in MODELS:
        _fail(f"--engine: must be one of {', '.join(MODELS)}, got {engine!r}")
    fields = MODELS[engine].model_fields
    for field in given:
        if field not in fields:
            having = [kind for kind, settings in MODELS.items() if field in settings.model_fields]
            _fail(f"{_option(field)}: not an option of --engine {engine}, but of {', '.join(having)}")
    if engine == "remote" and "urls" not in given:
        _fail("--url: is required with --engine remote, once for each replica")


def _option(field: str) -> str:
    """The option of a setting."""
    return "--url" if field == "urls" else f"--{field.replace('_', '-')}"


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _fail(message: str, status: int = 2) -> NoReturn:
    typer.echo(f"tokenpriority serve: {message}", err=True)
    raise typer.Exit(status)
