"""The synchronous client: the asynchronous one, run in a background thread.

Knows how to hand a call over and wait for it. Everything else is in `async_client.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from tokenpriority.async_client import AsyncClient
from tokenpriority.background import Background, wait
from tokenpriority.batches import batch_sequences
from tokenpriority.exchange import Call
from tokenpriority.prefetch import Prefetch
from tokenpriority.progress import Advance, progress_bar
from tokenpriority.schema import Limits, MethodInfo, ModelInfo
from tokenpriority.scores import Scores
from tokenpriority.sequences import Entry, SequenceLike, encoded
from tokenpriority.window import Errors, Result, ahead, check_errors, handed_out

if TYPE_CHECKING:
    import httpx

    from tokenpriority.calibration import Calibration

B = TypeVar("B")


class Client:
    """A scoring server; may be used from several threads, pickled, and used after a fork.

    `url` the server's address; `model` the default of every call; `timeout` seconds without a byte of an answer;
    `max_inflight_tokens` bounds what was sent and not yet answered, over all calls; `retries` attempts after the
    first, on connection errors, 408, 409, 429 and 5xx; `transport` instead of the network, such as
    `httpx.ASGITransport(app)`.

    The first answer pins each model's fingerprint: a later answer by another model raises FingerprintChanged.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str = "reference",
        timeout: float = 120.0,
        max_inflight_tokens: int = 262_144,
        retries: int = 8,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._remote = AsyncClient(
            url,
            api_key=api_key,
            model=model,
            timeout=timeout,
            max_inflight_tokens=max_inflight_tokens,
            retries=retries,
            transport=transport,
        )
        self._background = Background(self._remote.aclose)

    def score(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        signals: Iterable[str] = (),
        model: str | None = None,
        offsets: bool = False,
    ) -> list[Scores]:
        """Scores of each sequence, in order.

        A sequence is token ids (1-D array or list), a text, or a mapping with the keys of `schema.SequenceItem`.
        `offsets` asks for the characters of each token of sequences given as text. Raises SequenceErrors, which holds
        both halves, if some sequences were refused; ApiError if the call was; ConnectionFailed after all retries;
        ContractBroken or FingerprintChanged if the answer cannot be used.
        """
        call = Call(model or self._remote.model, method, params, signals, offsets)
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
    ) -> Generator[Result]:
        """Scores of many sequences, in order; read lazily, at most `max_inflight_tokens` ahead of what was taken.

        A sequence that failed raises SequenceErrors in its place, with all before it handed out, or, with
        errors="return", is handed out as a ScoreFailure. An error of the iterable is raised in its place too.
        `progress` shows a bar. Raises as `score`.
        """
        check_errors(errors)
        call = Call(model or self._remote.model, method, params, signals)
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
        depth: int = 8,
        offsets: bool = False,
    ) -> Prefetch[B]:
        """Iterate `(batch, scores of sequences(batch))` in the loader's order, at most `depth` batches ahead.

        Without `sequences` the batch itself is a list of sequences, or a mapping whose `input_ids` hold them as rows,
        cut where `attention_mask` is 0; a batch of another kind raises TypeError. See `batch_sequences`, `Prefetch`.
        Depth 8 keeps a trainer from waiting where scoring takes up to 0.7 of a training step; `offsets` as in `score`.
        """
        call = Call(model or self._remote.model, method, params, signals, offsets)
        pick = batch_sequences if sequences is None else sequences

        def begin(batch: B) -> Future[list[Scores]]:
            return self._background.submit(self._remote.score_entries(list(encoded(pick(batch))), call))

        return Prefetch(loader, begin, depth)

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

    def models(self) -> list[ModelInfo]:
        """The server's models."""
        return self._background.run(self._remote.models())

    def methods(self) -> list[MethodInfo]:
        """The server's priority methods, each with the JSON schema of its parameters."""
        return self._background.run(self._remote.methods())

    def limits(self) -> Limits:
        """What the server takes at once, and what it has queued."""
        return self._background.run(self._remote.limits())

    def ready(self) -> bool:
        """Whether the server answers and its models are loaded; one attempt."""
        return self._background.run(self._remote.ready())

    def wait_until_ready(self, timeout: float, models: Iterable[str] | None = None) -> None:
        """Return once the server is ready, or, with `models`, once those of these names are, whatever the others do.

        Raises ConnectionFailed after `timeout` seconds; Unavailable at once if a model says it never will be, and, with
        `models`, NotFound or another ApiError at once if waiting cannot help.
        """
        self._background.run(self._remote.wait_until_ready(timeout, models))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each model that has answered or was pinned."""
        return self._remote.fingerprints

    def pin(self, fingerprints: Mapping[str, str]) -> None:
        """Expect these fingerprints by model, those of an earlier run or of a Calibration.

        Raises FingerprintChanged if a model has already answered with another; later answers raise it likewise.
        """
        self._remote.pin(fingerprints)

    def close(self) -> None:
        """Cancel what is under way, close the connections and end the thread; idempotent."""
        self._background.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> AsyncClient:
        return self._remote

    def __setstate__(self, remote: AsyncClient) -> None:
        self._remote = remote
        self._background = Background(remote.aclose)

    def _stream(
        self, entries: Iterable[Entry], call: Call, bar: AbstractContextManager[Advance], errors: Errors
    ) -> Generator[Result]:
        remote, begin = self._remote, self._background.submit
        bound = remote.settings.max_inflight_tokens
        requests = ahead(entries, lambda group: remote.ask(group, call), begin, bound, remote.group_tokens)
        position = 0
        with bar as advance, closing(requests):
            for request in requests:
                results = wait(request)
                advance(results)
                yield from handed_out(results, position, errors)
                position += len(results)
