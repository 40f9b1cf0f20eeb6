"""`tokenpriority usage` and `tokenpriority limits`: what teams asked for, and what one may ask for.

Knows spans of time as people write them, sums over hours, and tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import typer
from rich.console import Console
from rich.table import Column, Table

from tokenpriority import wire
from tokenpriority.cli.coverage import share
from tokenpriority.cli.waiting import brief_client
from tokenpriority.schema import Limits, UsageEntry, UsageReport

_SPAN = re.compile(r"(\d{1,6})([hd])")
_UNITS = {"h": "hours", "d": "days"}


def parse_since(text: str, now: datetime) -> datetime:
    """The moment of --since: so many hours or days before `now`, or a date or time, UTC if it names no zone.

    Raises typer.BadParameter if it is neither.
    """
    try:
        if match := _SPAN.fullmatch(text):
            return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"must be hours (24h), days (7d) or a date (2026-11-01), got {text}", param_hint="--since"
        ) from None


def print_usage(
    since: str, *, team: str | None, model: str | None, by_hour: bool, as_json: bool, url: str, api_key: str | None
) -> None:
    """Print what was used since then: as the server answers, or as a table."""
    moment = parse_since(since, datetime.now(UTC))
    with brief_client(url, api_key) as client:
        entries = client.usage(since=moment, team=team, model=model)
    if as_json:
        typer.echo(wire.encode(UsageReport(usage=entries), wire.JSON).decode())
    elif entries:
        Console(highlight=False).print(usage_table(entries, by_hour=by_hour), markup=False)
    else:
        typer.echo(f"nothing was asked for since {moment:%Y-%m-%d %H:%M} UTC")


def summed(entries: Iterable[UsageEntry]) -> list[UsageEntry]:
    """One entry per team and model, in their order; its hour is the first one's."""
    sums: dict[tuple[str, str], UsageEntry] = {}
    for entry in entries:
        before = sums.get((entry.team, entry.model))
        sums[entry.team, entry.model] = entry if before is None else _plus(before, entry)
    return [sums[key] for key in sorted(sums)]


def usage_table(entries: list[UsageEntry], *, by_hour: bool) -> Table:
    """A row per team and model, or one of each hour as well."""
    numbers = [Column(name, justify="right") for name in ("tokens", "from the store", "requests", "rejected")]
    table = Table(*(["hour (UTC)"] if by_hour else []), "team", "model", *numbers)
    for entry in entries if by_hour else summed(entries):
        hour = [f"{datetime.fromtimestamp(entry.hour, UTC):%Y-%m-%d %H:%M}"] if by_hour else []
        stored = share(entry.cached_tokens, entry.tokens)
        counts = (f"{entry.tokens:,}", stored, f"{entry.requests:,}", f"{entry.rejections:,}")
        table.add_row(*hour, entry.team, entry.model or "-", *counts)
    return table


def print_limits(*, as_json: bool, url: str, api_key: str | None) -> None:
    """Print what the team of the key may use and has left, and what the server takes at once."""
    with brief_client(url, api_key) as client:
        limits = client.limits()
    if as_json:
        typer.echo(wire.encode(limits, wire.JSON).decode())
    else:
        Console(highlight=False).print(limits_table(limits), markup=False)


def limits_table(limits: Limits) -> Table:
    """One row per limit: its name, what it is, and what is left of it or used."""
    team = limits.team
    table = Table("limit", Column("value", justify="right"), "now")
    table.add_row("team", team.team, "")
    table.add_row("weight", f"{team.weight:g}", "")
    table.add_row("tokens per minute", _number(team.tokens_per_minute), _left(team.tokens_remaining))
    table.add_row("concurrent tokens", _number(team.concurrent_tokens), f"{team.in_flight_tokens:,} in flight")
    table.add_row("queued tokens, all teams", f"{limits.max_queued_tokens:,}", f"{limits.queued_tokens:,} queued")
    table.add_row("tokens of a request", f"{limits.max_request_tokens:,}", "")
    table.add_row("sequences of a request", f"{limits.max_sequences:,}", "")
    table.add_row("bytes of a request", f"{limits.max_body_bytes:,}", "")
    return table


def _plus(one: UsageEntry, other: UsageEntry) -> UsageEntry:
    return UsageEntry(
        team=one.team,
        model=one.model,
        hour=min(one.hour, other.hour),
        tokens=one.tokens + other.tokens,
        cached_tokens=one.cached_tokens + other.cached_tokens,
        requests=one.requests + other.requests,
        rejections=one.rejections + other.rejections,
    )


def _number(limit: int | None) -> str:
    return "none" if limit is None else f"{limit:,}"


def _left(remaining: int | None) -> str:
    return "" if remaining is None else f"{remaining:,} left"
