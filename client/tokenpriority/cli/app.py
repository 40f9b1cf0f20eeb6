"""The commands and their options.

Knows what can be typed. Knows nothing of how it is done: each command imports its module when it runs, so that
`--help` stays fast.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tokenpriority.cli.group import CommandGroup

app = typer.Typer(
    cls=CommandGroup,
    help="Reference log-probabilities and signed token priorities for supervised fine-tuning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def parse_params(text: str) -> dict[str, Any]:
    """The value of --params. Raises typer.BadParameter if it is not a JSON object."""
    try:
        params = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--params") from None
    if not isinstance(params, dict):
        raise typer.BadParameter(f"must be a JSON object, got {text}", param_hint="--params")
    return params


def parse_url(text: str) -> str:
    """The value of --url. Raises typer.BadParameter if it is not http or https."""
    if not text.startswith(("http://", "https://")):
        raise typer.BadParameter(f"must start with http:// or https://, got {text}")
    return text


Url = Annotated[str, typer.Option(envvar="TOKENPRIORITY_URL", help="The scoring server.", callback=parse_url)]
ApiKey = Annotated[str | None, typer.Option(envvar="TOKENPRIORITY_API_KEY", help="The team's key.", show_default=False)]
Model = Annotated[str, typer.Option(help="The server's model that scores.")]
Method = Annotated[str, typer.Option(help="Priority method; `tokenpriority methods` lists them.")]
AsJson = Annotated[bool, typer.Option("--json", help="All fields, as the server answers.")]
Params = Annotated[str, typer.Option(metavar="JSON", help="The method's parameters.", show_default=False)]
Source = Annotated[Path, typer.Argument(help="JSONL or Parquet file.", metavar="IN", exists=True, dir_okay=False)]
Waits = Annotated[
    Literal["interactive", "bulk"], typer.Option(help="Who waits: interactive work goes before bulk work.")
]
DEFAULT_URL = "http://127.0.0.1:8000"


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="All fields, as GET /v1/methods answers.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="The tables of the README.")] = False,
) -> None:
    """List the priority methods: what each reads, its weight, parameters and source, and how it was verified."""
    from tokenpriority.cli import methods

    if as_json and as_markdown:
        raise typer.BadParameter("goes without --json", param_hint="--markdown")
    if as_json:
        methods.print_json()
    elif as_markdown:
        methods.print_markdown()
    else:
        methods.print_tables()


@app.command()
def score(
    source: Source,
    out: Annotated[Path, typer.Option(help="Parquet file to write.", show_default=False)],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    model: Model = "reference",
    method: Method = "uniform",
    params: Params = "{}",
    signals: Annotated[list[str] | None, typer.Option(help="Signal to add as a column; may be repeated.")] = None,
    service_class: Waits = "bulk",
    cached_only: Annotated[
        bool, typer.Option("--cached-only", help="Compute nothing: what is not stored is that row's error.")
    ] = False,
) -> None:
    """Score a file: one row per sequence, given as token_ids, text, messages, or prompt and completion.

    Stopped at any time, the same command goes on where it was. A row that cannot be scored has its reason in the
    column `error`.
    """
    from tokenpriority.cli.score import score_file
    from tokenpriority.exchange import Call

    call = Call(
        model,
        method,
        parse_params(params),
        signals or (),
        service_class=service_class,
        cached_only=cached_only,
    )
    raise typer.Exit(score_file(source, out, call, url=url, api_key=api_key))


@app.command()
def coverage(
    source: Source,
    as_json: Annotated[bool, typer.Option("--json", help="The sums, for programs.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    model: Model = "reference",
    method: Method = "uniform",
    params: Params = "{}",
    signals: Annotated[list[str] | None, typer.Option(help="Signal that is wanted; may be repeated.")] = None,
) -> None:
    """Say how much of a file the server has stored, of what `score` with the same options needs."""
    from tokenpriority.cli.coverage import cover_file
    from tokenpriority.exchange import Call

    call = Call(model, method, parse_params(params), signals or (), service_class="bulk")
    cover_file(source, call, as_json=as_json, url=url, api_key=api_key)


@app.command()
def usage(
    since: Annotated[str, typer.Option(metavar="24h|7d|DATE", help="From when on.")] = "24h",
    team: Annotated[str | None, typer.Option(help="Of this team alone; a key of scope admin sees all.")] = None,
    model: Annotated[str | None, typer.Option(help="Of this model alone.")] = None,
    by: Annotated[Literal["model", "hour"], typer.Option(help="Sum over the hours, or list each.")] = "model",
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """List what each team asked of each model: tokens, their share from the store, requests, rejections."""
    from tokenpriority.cli.usage import print_usage

    print_usage(since, team=team, model=model, by_hour=by == "hour", as_json=as_json, url=url, api_key=api_key)


@app.command()
def limits(as_json: AsJson = False, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """List what the key's team may use and has left, and what the server takes at once."""
    from tokenpriority.cli.usage import print_limits

    print_limits(as_json=as_json, url=url, api_key=api_key)


@app.command()
def inspect(
    text: Annotated[str, typer.Argument(help="Text to score; - reads it from standard input.")],
    completion: Annotated[
        str | None, typer.Option(help="Score this alone, with the text before it as its prompt.", show_default=False)
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Also list every token with its numbers.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    model: Model = "reference",
    method: Method = "prift_prob",
    params: Params = "{}",
) -> None:
    """Colour the tokens of a text by their priority: green above zero, red below, dim at zero."""
    from tokenpriority.cli.inspect import inspect_text
    from tokenpriority.exchange import Call

    text = sys.stdin.read() if text == "-" else text
    call = Call(model, method, parse_params(params), ("rank",), offsets=True)
    inspect_text(text, completion, call, table=table, url=url, api_key=api_key)
