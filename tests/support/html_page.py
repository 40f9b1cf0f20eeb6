"""A page of HTML, read."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "line", "polyline", "circle"}


class Page(HTMLParser):
    """The text and the elements of a page; raises if elements are not closed in order or an id comes twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.by_id: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self._inside: list[str | None] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.attributes.append((tag, found))
        self.names.add(tag)
        name = f"in {found['aria-labelledby']}" if tag == "section" else found.get("id")
        if name is not None:
            assert name not in self.by_id
            self.by_id[name] = ""
        if tag == "tr" and (table := self._table()):
            self.rows.setdefault(table, []).append([])
        if tag in ("td", "th") and (table := self._table()):
            self.rows[table][-1].append("")
        if tag not in VOID:
            self.open.append(tag)
            self._inside.append(name)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag
        self._inside.pop()

    def handle_data(self, data: str) -> None:
        for name in self._inside:
            if name is not None:
                self.by_id[name] += data
        if (table := self._table()) and {"td", "th"} & set(self.open):
            self.rows[table][-1][-1] += data

    def _table(self) -> str | None:
        """The table we are in, by its id."""
        names = [name for name, tag in zip(self._inside, self.open, strict=True) if tag == "table"]
        return names[-1] if names else None


def seen(marked: str) -> str:
    """What a reader sees of HTML."""
    return Page(f'<p id="all">{marked}</p>').by_id["all"]
