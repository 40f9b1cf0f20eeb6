"""One connection: how large the head and the trailers of a request may be, and how long a head may take.

Knows uvicorn's protocol, which bounds none of it: whoever can connect, with or without a key, could fill the memory
with one endless header or endless trailers, or hold connections for ever with heads that never end.
"""

from __future__ import annotations

from asyncio import TimerHandle

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65_536
"""Request line and headers, and what comes around the pieces of a chunked body, trailers among it; a piece of the size
the socket gives at once (up to 256 KiB) may pass above it."""
HEAD_SECONDS = 30.0
"""From the connection, or the first byte after an answer, until the head is whole."""
_REFUSAL = (
    b"HTTP/1.1 %s\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
)


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with bounded heads: too large is 431, too slow 408. Trailers are bounded alike and dropped."""

    _in_head = False
    _handed_on = False
    """Whether a whole head or a piece of a body was in what came last."""
    _held_bytes = 0
    """What came since."""
    _timer: TimerHandle | None = None

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]  # noqa: D102
        super().connection_made(transport)
        self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:  # noqa: D102
        self._in_head, self._held_bytes = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        # The parser reports trailers here too, and uvicorn would add them to the headers: a key that came after the
        # body, past whatever checks heads in front of this server, would count.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:  # noqa: D102
        self._in_head, self._handed_on = False, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:  # noqa: D102
        self._handed_on = True
        super().on_body(body)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._handed_on = False
        super().data_received(data)
        self._held_bytes = 0 if self._handed_on else self._held_bytes + len(data)
        if self._held_bytes > MAX_HEAD_BYTES:
            why = b"A request's head has at most %d bytes, and so have its trailers." % MAX_HEAD_BYTES
            self._refuse(b"431 Request Header Fields Too Large", why)
            return
        self._time_head()

    def _time_head(self) -> None:
        """Run the timer while, and only while, the next head is awaited and nothing else closes the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self._refuse(b"408 Request Timeout", b"A request's head must arrive within %d s." % HEAD_SECONDS)

    def _refuse(self, status: bytes, why: bytes) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not answering:  # it would stand in the middle of another answer
            self.transport.write(_REFUSAL % (status, len(why), why))
        self.transport.close()
