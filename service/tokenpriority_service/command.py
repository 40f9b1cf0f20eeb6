"""`tokenpriority serve`.

Knows the options, what is said at start, and how a mistake is told: in one line on standard error, with exit status 2
for a configuration that cannot be used and 1 for an address that cannot be listened on. Heavy libraries are imported
once the configuration is known to be good.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tokenpriority_service.settings import LOOPBACK, InvalidSettings, ModelSettings, Settings, read


def serve(
    config: Annotated[Path | None, typer.Option(help="TOML file; see service/README.md.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Serve this one model, as `reference`.", show_default=False)] = None,
    engine: Annotated[str | None, typer.Option(help="torch or fake, with --model.", show_default="torch")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16, with --model.", show_default="float32")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, with --model.", show_default="cpu")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes a free one.", show_default="8000")
    ] = None,
    insecure: Annotated[bool, typer.Option(help="Listen beyond this machine although nobody needs a key.")] = False,
) -> None:
    """Serve reference log-probabilities and token priorities over HTTP."""
    options: dict[str, Any] = {"server": _given(host=host, port=port)}
    one = _given(engine=engine, dtype=dtype, device=device)
    if model is not None:
        options["models"] = {"reference": {"model": model, **one}}
    elif one:
        _fail(f"--{next(iter(one))}: goes with --model only; with --config, set it in the file's [models.NAME]")
    try:
        settings = read(config, options)
        check(settings, insecure=insecure)
    except InvalidSettings as error:
        _fail(str(error))
    run(settings)


def check(settings: Settings, *, insecure: bool = False) -> None:
    """Raises InvalidSettings for what is known to be wrong before anything is loaded."""
    if not settings.models:
        raise InvalidSettings("no models: give --model PATH, or --config FILE with a [models.NAME]")
    for name, each in settings.models.items():
        _check_model(name, each)
    host = settings.server.host
    if not settings.teams and host not in LOOPBACK and not insecure:
        raise InvalidSettings(
            f"server.host: without teams only loopback ({', '.join(LOOPBACK)}) is listened on, got {host!r}; "
            "add [teams.NAME] key_sha256, or --insecure"
        )


def run(settings: Settings) -> None:
    """Serve until told to stop."""
    from tokenpriority_service import log
    from tokenpriority_service.app import create_app
    from tokenpriority_service.server import PortTaken, Server, listen

    try:
        sock = listen(settings.server.host, settings.server.port)
    except PortTaken as error:
        _fail(str(error), status=1)
    log.configure()
    app = create_app(settings)
    host, port = sock.getsockname()[:2]
    typer.echo(f"tokenpriority listens on http://{f'[{host}]' if ':' in host else host}:{port}  (docs at /docs)")
    for name, each in settings.models.items():
        typer.echo(f"  model {name}: {each.model} ({each.engine}, {each.dtype}, {each.device}), loading")
    keys = ", ".join(settings.teams) if settings.teams else "none configured: no key is asked for"
    typer.echo(f"  teams: {keys}")
    Server(app, app.state.service.gate, settings.server.drain_seconds).run(sockets=[sock])


def _check_model(name: str, settings: ModelSettings) -> None:
    path = Path(settings.model).expanduser()
    # `owner/name` may be a hub name; anything else that is not there is a path that is wrong.
    is_path = path.is_absolute() or settings.model.startswith((".", "~")) or len(path.parts) > 2
    if settings.engine == "torch" and is_path and not path.is_dir():
        raise InvalidSettings(f"models.{name}.model: no such folder: {settings.model}")


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _fail(message: str, status: int = 2) -> NoReturn:
    typer.echo(f"tokenpriority serve: {message}", err=True)
    raise typer.Exit(status)
