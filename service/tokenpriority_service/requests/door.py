"""A raw body -> a checked request.

Knows the limits of a request, which methods a server can run on which models, and how its parts fit together; one
sequence is item.py's. An error of the envelope fails the request; an error of one sequence becomes that item's, and the
others go on. Computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import UNSET

from tokenpriority import wire
from tokenpriority.errors import InvalidParameter, InvalidRequest, TooLarge
from tokenpriority.evidence import ENGINE_SIGNALS
from tokenpriority.methods import Method, Params, get_method
from tokenpriority.methods.inputs import Role
from tokenpriority.schema import RequestEnvelope, SequenceItem, ServiceClass
from tokenpriority_service.configuration.settings import ServerSettings
from tokenpriority_service.models import Model, Models
from tokenpriority_service.requests.item import ItemId, Refused, Sequence, check_item, parse_item
from tokenpriority_service.web.body import max_values, measure

_LIVE: dict[Role, str] = {"student": "the live student", "old": "the student of some steps ago"}
"""Whose evidence only a trainer has."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A request whose envelope is checked and whose sequences are parsed, but not yet checked."""

    model: Model
    base: Model | None
    method: Method
    params: Params
    signals: tuple[str, ...]
    offsets: bool
    service_class: ServiceClass
    cached_only: bool
    items: list[tuple[ItemId, SequenceItem] | Refused]

    @property
    def models(self) -> list[tuple[Model, bool]]:
        """The models of the request, the base last, and whether `entropy_top20` is wanted of each."""
        read = self.method.needs(self.params) if "entropy_top20" in self.method.reads(self.params) else ()
        models = [(self.model, "entropy_top20" in self.signals or "reference" in read)]
        return models if self.base is None else [*models, (self.base, "base" in read)]

    @property
    def has_text(self) -> bool:
        """Whether a sequence has to be tokenised."""
        return any(not isinstance(item, Refused) and item[1].token_ids is UNSET for item in self.items)


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request."""

    draft: Draft
    sequences: list[Sequence | Refused]
    tokens: int
    """Over all sequences that can be scored."""


class Door:
    """What every request passes."""

    def __init__(self, settings: ServerSettings, models: Models) -> None:
        self._settings = settings
        self._models = models

    def open(self, body: bytes, media_type: str) -> Draft:
        """Read and check the envelope, read the sequences. Raises the ApiError that fails the request."""
        measure(body, media_type, max_values(self._settings.max_request_tokens))
        envelope = wire.decode(body, RequestEnvelope, media_type)
        count, limit = len(envelope.sequences), self._settings.max_sequences
        if count > limit:
            raise TooLarge(f"sequences: a request holds at most {limit} sequences, got {count}")
        model = self._models.get(envelope.model)
        method = get_method(envelope.method.name)
        params = method.parse(envelope.method.params)
        for index, signal in enumerate(envelope.signals):
            if signal not in model.engine.info.signals:
                given = ", ".join(model.engine.info.signals)
                raise InvalidRequest(f"signals[{index}]: model {model.name!r} gives {given}, got {signal!r}")
        _check_runs_here(method, params)
        base = self._base(model, method, params)
        _check_signals(method, params, {"reference": model} if base is None else {"reference": model, "base": base})
        return Draft(
            model=model,
            base=base,
            method=method,
            params=params,
            signals=tuple(dict.fromkeys(envelope.signals)),
            offsets=envelope.offsets,
            service_class=envelope.service_class,
            cached_only=envelope.cached_only,
            items=[parse_item(index, raw, media_type) for index, raw in enumerate(envelope.sequences)],
        )

    def check(self, draft: Draft) -> Request:
        """Check every sequence. Raises TooLarge as soon as they hold too many tokens together.

        Slow where text is to be tokenised, so not for the event loop then; safe in any thread.
        """
        sequences: list[Sequence | Refused] = []
        tokens, limit = 0, self._settings.max_request_tokens
        models = [model for model, _ in draft.models]
        prompt = draft.method.reads_prompt
        for item in draft.items:
            checked = (
                item
                if isinstance(item, Refused)
                else check_item(*item, models=models, offsets=draft.offsets, prompt=prompt)
            )
            sequences.append(checked)
            if isinstance(checked, Sequence):
                tokens += len(checked.token_ids)
            if tokens > limit:
                of = f"the first {len(sequences)} of {len(draft.items)} sequences"
                raise TooLarge(f"sequences: a request holds at most {limit} tokens, got {tokens} in {of}")
        return Request(draft, sequences, tokens)

    def _base(self, model: Model, method: Method, params: Params) -> Model | None:
        """The second model, if the method reads one. Raises if it does not fit the first."""
        if "base" not in method.needs(params):
            return None
        name: str = params.base  # type: ignore[attr-defined]  # every method with the role has the parameter
        if name == model.name:
            raise InvalidParameter(f"method.params.base: must be another model than the request's, got {name!r}")
        base = self._models.get(name, "method.params.base")
        for what, first, second in (
            ("vocabulary size", model.engine.info.vocab_size, base.engine.info.vocab_size),
            ("tokenizer", model.tokenizer, base.tokenizer),
        ):
            if first != second:
                raise InvalidParameter(
                    f"method.params.base: {name!r} must have the {what} of {model.name!r}, {first!r}, got {second!r}"
                )
        if base.engine.info.fingerprint == model.engine.info.fingerprint:
            raise InvalidParameter(
                f"method.params.base: must have other weights than the request's model, but {name!r} and "
                f"{model.name!r} have one fingerprint: every score would be 0 and the ranking arbitrary"
            )
        return base


def _check_runs_here(method: Method, params: Params) -> None:
    """Raises InvalidParameter if the method reads what only a trainer has, saying what and what to do instead."""
    if method.distributions:
        whose = " and ".join(_LIVE.get(role, f"the {role}") for role in method.distributions)
        frozen = [role for role in method.distributions if role not in _LIVE]
        copy = f", with a local frozen copy of the {' and the '.join(frozen)}" if frozen else ""
        raise InvalidParameter(
            f"method.name: {method.name!r} reads the whole distribution of {whose}, and a server gives numbers of the "
            f"submitted tokens only: run it in the trainer{copy}"
        )
    live = [_LIVE[role] for role in method.needs(params) if role in _LIVE]
    if live:
        instead = ", or set method.params.source to 'reference'" if method.runs_on_reference else ""
        raise InvalidParameter(
            f"method.name: {method.name!r} reads {' and '.join(live)} with these parameters, and a server has frozen "
            f"models only: run it in the trainer{instead}"
        )
    unknown = [name for name in method.reads(params) if name not in ENGINE_SIGNALS]
    if unknown:
        raise InvalidParameter(
            f"method.name: {method.name!r} reads {' and '.join(unknown)}, which no engine gives: run it in the trainer "
            "with a local frozen copy of the reference"
        )


def _check_signals(method: Method, params: Params, models: dict[Role, Model]) -> None:
    """Raises InvalidParameter if a model does not give a signal that the method reads of it."""
    for role in method.needs(params):
        model = models[role]
        given = model.engine.info.signals
        for signal in method.reads(params):
            if signal not in given:
                raise InvalidParameter(
                    f"method.name: {method.name!r} reads {signal} of the {role} with these parameters, but model "
                    f"{model.name!r} (engine {model.engine.info.engine!r}) gives {', '.join(given)}: choose a model or "
                    "an engine that gives it"
                )
