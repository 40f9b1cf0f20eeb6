"""The registry as a table, one row a method: for the command line, and as Markdown for the README.

Knows the columns, their words and the order of the groups. Knows no formula.

    python -m tokenpriority.methods.table README.md

writes the table anew into a file, between the lines `<!-- methods -->` and `<!-- /methods -->`.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tokenpriority.methods.both import BOTH
from tokenpriority.methods.frozen import FROZEN
from tokenpriority.methods.method import Denominator, Method
from tokenpriority.methods.student import STUDENT
from tokenpriority.methods.unlearning import UNLEARNING

BEGIN, END = "<!-- methods -->", "<!-- /methods -->"
GROUPS: tuple[tuple[str, tuple[Method, ...]], ...] = (
    ("Methods of frozen models", FROZEN),
    ("Methods of the live student", STUDENT),
    ("Methods of the live student and frozen models", BOTH),
    ("Unlearning", UNLEARNING),
)
DIVIDED_BY: dict[Denominator, str] = {
    "all": "all tokens",
    "kept": "kept tokens",
    "by_sign": "each sign by its own count",
    "sequences": "sequences",
}
HEADER = (
    "| method | sign | reads | runs on | scope | weight | divided by | parameters | source | verified by |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n"
)


@dataclass(frozen=True, slots=True)
class Row:
    """What a person is told of a method, in plain words."""

    name: str
    family: str
    sign: str
    reads: str
    runs_on: str
    scope: str
    weight: str
    divided_by: str
    parameters: tuple[str, ...]
    """`name=default`, or the name and "(required)"."""
    citation: str
    verified: str


def row(method: Method) -> Row:
    """The row of a method."""
    return Row(
        name=method.name,
        family=method.family,
        sign=method.sign,
        reads=_reads(method),
        runs_on=_runs_on(method),
        scope=method.scope,
        weight=method.equation,
        divided_by=DIVIDED_BY[method.denominator],
        parameters=tuple(
            f"{name} (required)" if field.is_required() else f"{name}={field.default}"
            for name, field in method.params.model_fields.items()
        ),
        citation=method.citation,
        verified=method.verified,
    )


def groups() -> list[tuple[str, list[Row]]]:
    """Title and rows of each group that has methods."""
    return [(title, [row(method) for method in methods]) for title, methods in GROUPS if methods]


def markdown() -> str:
    """The whole registry: for each group its title and a table, one row a method."""
    parts = [f"**{title}**\n\n{HEADER}{''.join(map(_line, rows))}" for title, rows in groups()]
    return "\n".join(parts)


def rewritten(text: str) -> str:
    """A document with the table between its marks replaced. Raises ValueError if it has not exactly one such place."""
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"expected one line {BEGIN} and after it one line {END}")
    return f"{before}{begin}\n{markdown()}\n{end}{after}"


def _reads(method: Method) -> str:
    """Roles and signals by default; with `source`, whose else the signals may be."""
    roles: list[str] = [role for role in method.roles if role not in method.distributions]
    if "source" in method.params.model_fields:
        other = {"reference": "student", "student": "reference"}
        roles = [f"{role} or {other[role]}" for role in roles]
    parts = [f"{', '.join(roles)}: {', '.join(method.signals)}"] if roles else []
    if method.distributions:
        parts.append(f"whole distribution of {', '.join(method.distributions)}")
    if method.reads_prompt:
        parts.append("which tokens are the prompt")
    if method.labels == "inside":
        parts.append("your labels")
    return "; ".join(parts) or "nothing"


def _runs_on(method: Method) -> str:
    """Which side can compute it, with the parameters that decide it."""
    if method.distributions:
        frozen = [role for role in method.distributions if role not in ("student", "old")]
        return f"trainer, with a local copy of {', '.join(frozen)}" if frozen else "trainer"
    if method.family == "frozen":
        return "server"
    if "base" in method.roles:
        return "trainer, with a local copy of base"
    return "trainer; server with `source=reference`" if method.runs_on_reference else "trainer"


def _line(row: Row) -> str:
    source = re.sub(r"arXiv (\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", row.citation)
    cells = (
        f"`{row.name}`",
        row.sign,
        row.reads,
        row.runs_on,
        row.scope,
        f"`{row.weight}`",
        row.divided_by,
        ", ".join(f"`{parameter}`" for parameter in row.parameters) or "none",
        source,
        f"**{row.verified}**" if row.verified == "second-hand" else row.verified,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def main(paths: list[str]) -> None:
    """Rewrite the table in each of these files."""
    for path in map(Path, paths):
        path.write_text(rewritten(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
