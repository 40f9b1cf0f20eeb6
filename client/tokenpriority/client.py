"""The synchronous client: the asynchronous one, run in a background thread.

Knows how a call is handed over and its results taken. The routes without sequences are in `session.py`, everything
else in `async_client.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from tokenpriority.background import wait
from tokenpriority.batches import batch_sequences
from tokenpriority.coverage import COVERAGE, Coverage
from tokenpriority.depth import Depth, Wanted
from tokenpriority.exchange import PRIORITIES, A, Call, Question
from tokenpriority.prefetch import Prefetch
from tokenpriority.progress import Advance, progress_bar
from tokenpriority.scores import ScoreFailure, Scores
from tokenpriority.sequences import Entry, SequenceLike, encoded
from tokenpriority.session import Session
from tokenpriority.source import Source
from tokenpriority.window import Errors, Result, ahead, check_errors, handed_out

if TYPE_CHECKING:
    from tokenpriority.calibration import Calibration

B = TypeVar("B")
R = TypeVar("R")


class Client(Session):
    """A scoring server; may be used from several threads, pickled, and used after a fork.

    `url` the server's address; `model` the default of every call; `service_class` who waits for the answers:
    `interactive` work goes before `bulk` work; `timeout` seconds without a byte of an answer; `max_inflight_tokens`
    bounds what was sent and not yet answered, over all calls; `retries` attempts after the first, on connection
    errors, 408, 409, 429 and 5xx; `max_wait` seconds that one request waits, in all, while the server says when to
    come back (429 or 503 with Retry-After), which uses up no attempt unless `retries` is 0; `max_outage` seconds that
    it waits, in all, for a server that is away (no connection, no answer, a gateway's 502, 503 or 504), where None
    counts attempts; `transport` instead of the network, such as `httpx.ASGITransport(app)`.

    The first answer pins each model's fingerprint: a later answer by another model raises FingerprintChanged.
    """

    def score(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        signals: Iterable[str] = (),
        model: str | None = None,
        offsets: bool = False,
        cached_only: bool = False,
    ) -> list[Scores]:
        """Scores of each sequence, in order.

        A sequence is token ids (1-D array or list), a text, or a mapping with the keys of `schema.SequenceItem`.
        `offsets` asks for the characters of each token of sequences given as text. With `cached_only` nothing is
        computed, and a sequence that is not stored whole is refused as NotStored. Raises SequenceErrors, which holds
        both halves, if some sequences were refused; ApiError if the call was; ConnectionFailed after all retries;
        ContractBroken or FingerprintChanged if the answer cannot be used.
        """
        call = self._remote.call(method, params, signals, model, offsets=offsets, cached_only=cached_only)
        entries = list(encoded(sequences))  # in this thread: the iterable may be slow, or use this client
        return self._background.run(self._remote.score_entries(entries, call))

    @overload
    def score_many(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str = ...,
        params: Mapping[str, Any] | None = ...,
        signals: Iterable[str] = ...,
        model: str | None = ...,
        progress: bool = ...,
        errors: Literal["raise"] = ...,
        cached_only: bool = ...,
    ) -> Generator[Scores]: ...
    @overload
    def score_many(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str = ...,
        params: Mapping[str, Any] | None = ...,
        signals: Iterable[str] = ...,
        model: str | None = ...,
        progress: bool = ...,
        errors: Literal["return"],
        cached_only: bool = ...,
    ) -> Generator[Result]: ...
    def score_many(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        signals: Iterable[str] = (),
        model: str | None = None,
        progress: bool = False,
        errors: Errors = "raise",
        cached_only: bool = False,
    ) -> Generator[Result]:
        """Scores of many sequences, in order; read lazily, at most `max_inflight_tokens` ahead of what was taken.

        A sequence that failed raises SequenceErrors in its place, with all before it handed out, or, with
        errors="return", is handed out as a ScoreFailure. An error of the iterable is raised in its place too.
        `progress` shows a bar. `cached_only` and what is raised as in `score`.
        """
        check_errors(errors)
        call = self._remote.call(method, params, signals, model, cached_only=cached_only)
        return self._stream(encoded(sequences), call, progress_bar(progress, sequences), errors)

    def prefetch(
        self,
        loader: Iterable[B],
        *,
        sequences: Callable[[B], Iterable[SequenceLike]] | None = None,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        signals: Iterable[str] = (),
        model: str | None = None,
        depth: Wanted | Depth = "auto",
        offsets: bool = False,
        cached_only: bool = False,
    ) -> Prefetch[B]:
        """Iterate `(batch, scores of sequences(batch))` in the loader's order, at most `depth` batches ahead.

        Without `sequences` the batch itself is a list of sequences, or a mapping whose `input_ids` hold them as rows,
        cut where `attention_mask` is 0; a batch of another kind raises TypeError. See `batch_sequences`, `Prefetch`.
        Depth "auto" is 8, and grows to ceil(p99 of the time scores take / time between two `next`) + 4 where that is
        more, to 128 at most; a Depth (`depth.py`) goes on from what it found before. `offsets` and `cached_only` as in
        `score`. Raises ValueError for a depth below 1.
        """
        call = self._remote.call(method, params, signals, model, offsets=offsets, cached_only=cached_only)
        pick = batch_sequences if sequences is None else sequences

        def begin(batch: B) -> Future[list[Scores]]:
            return self._background.submit(self._remote.score_entries(list(encoded(pick(batch))), call))

        return Prefetch(loader, begin, depth)

    def source(
        self,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        *,
        model: str | None = None,
        depth: Wanted = "auto",
    ) -> Source:
        """What a trainer is to ask of this server about every batch: `PrioritySFTTrainer(priorities=client.source())`.

        Nothing is sent yet, and the client must stay open until training has ended. Raises ValueError for a depth
        below 1.
        """
        return Source(self, method, dict(params or {}), model or self._remote.model, depth)

    def coverage(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        signals: Iterable[str] = (),
        model: str | None = None,
        progress: bool = False,
    ) -> Coverage:
        """How much of these sequences the server has stored of what `score` with the same arguments would need.

        Nothing is computed or charged. The iterable is read lazily, as in `score_many`; a sequence that cannot be
        scored is a ScoreFailure among the items. `progress` shows a bar. Raises as `score`, but for SequenceErrors.
        """
        call = self._remote.call(method, params, signals, model)
        bar = progress_bar(progress, sequences, "looking up")
        with closing(self._groups(encoded(sequences), call, COVERAGE, bar)) as groups:
            return Coverage.of(item for group in groups for item in group)

    def calibrate(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str,
        params: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> Calibration:
        """The exact threshold with which a method of dataset scope keeps the best `keep` of these sequences' tokens.

        Scores every sequence once under each model the method reads: this client's, and the method's base. Reads the
        iterable once, lazily, in memory that does not grow with it (4 bytes per token go to a temporary file). Spans
        are left aside. Raises InvalidParameter if the method ranks nothing over a dataset or no token would be kept;
        else as `score_many`.
        """
        from tokenpriority.calibration import Calibrator  # loads every method: 0.1 s that few calls need

        with ExitStack() as stack:
            calibrator = stack.enter_context(Calibrator(method, params, model=self._remote.model))
            asked = calibrator.questions(sequences, progress=progress)
            streams = [stack.enter_context(closing(self.score_many(**each))) for each in asked]
            for scores in zip(*streams, strict=True):
                calibrator.add(scores)
            return calibrator.calibration(self.fingerprints)

    def _groups(
        self, entries: Iterable[Entry], call: Call, question: Question[A, R], bar: AbstractContextManager[Advance]
    ) -> Generator[list[R | ScoreFailure]]:
        """The results of each group of entries, in order, each asked for before it is wanted."""
        remote, begin = self._remote, self._background.submit
        bound = remote.settings.max_inflight_tokens
        requests = ahead(entries, lambda group: remote.ask(group, call, question), begin, bound, remote.group_tokens)
        with bar as advance, closing(requests):
            for request in requests:
                results = wait(request)
                advance(results)
                yield results

    def _stream(
        self, entries: Iterable[Entry], call: Call, bar: AbstractContextManager[Advance], errors: Errors
    ) -> Generator[Result]:
        position = 0
        with closing(self._groups(entries, call, PRIORITIES, bar)) as groups:
            for results in groups:
                yield from handed_out(results, position, errors)
                position += len(results)
