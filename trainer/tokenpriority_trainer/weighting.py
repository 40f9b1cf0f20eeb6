"""How priorities become a loss: live methods, schedule, clip, rule for negatives, denominator.

Knows the choices, their defaults, which are the method's own, and which go together; names every step. Knows nothing of
tensors: `live.py` applies methods, `tokenpriority.composition` schedule and clip, `loss.py` the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ValidationError

from tokenpriority.composition import ASCENT, CLIP_LIMIT, Clip, Schedule, is_clip
from tokenpriority.methods import Denominator, Method, Negatives, Role, get_method
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.live import LiveMethod, Part, is_live


@dataclass(frozen=True, slots=True)
class Weighting:
    """How the trainer turns priorities into a loss; see `loss.py` for the equation.

    Raises ConfigError for a clip out of its limit or parts that do not go together.
    """

    denominator: Denominator = "all"
    """Which count of the global batch divides."""
    negatives: Negatives = "unlikelihood"
    """How a negative weight acts."""
    schedule: Schedule | None = None
    """Factor that follows the run; None for 1 throughout."""
    clip: Clip | None = None
    """Bounds of the weight after the schedule; None for none."""
    student: LiveMethod | None = None
    """Live factor on positive weights."""
    forget: LiveMethod | None = None
    """Live factor on negative weights."""
    method: LiveMethod | None = None
    """The method itself, where it is computed in the forward pass."""

    def __post_init__(self) -> None:
        if self.clip is not None and not is_clip(self.clip):
            raise ConfigError(f"clip: {CLIP_LIMIT}, got {self.clip!r}")
        own = self.method
        if own is None:
            return
        name = own.method.name
        if self.student is not None:
            raise ConfigError(f"student: method {name!r} is computed in the forward pass already")
        if self.forget is not None and own.method.labels == "inside":
            raise ConfigError(f"forget: method {name!r} is an unlearning method itself")
        if own.method.loss is None and own.method.sign == "signed" and own.method.labels == "over":
            if self.forget is not None:
                raise ConfigError(f"forget: method {name!r} gives its own negative weights in the forward pass")
            if self.denominator == "by_sign":
                raise ConfigError(
                    f"denominator: 'by_sign' needs signs that are known before the forward pass, but {name!r} decides "
                    "them in it; take its weights from a server or a column, or another denominator"
                )

    @classmethod
    def of(
        cls,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        *,
        denominator: Denominator | None = None,
        negatives: Negatives | None = None,
        schedule: Schedule | Mapping[str, Any] | None = None,
        clip: Clip | None = None,
        student: str | None = None,
        student_params: Mapping[str, Any] | None = None,
        forget: str | None = None,
        forget_params: Mapping[str, Any] | None = None,
        local: bool = False,
    ) -> Self:
        """The method's own weighting with the given parts replaced.

        A method's schedule belongs to its rule for negatives and goes when that is replaced; ascent that is nobody's
        own rule gets `composition.ASCENT`. A method of the live student is computed in the forward pass; with `local`,
        so is one of frozen models, whose copies the trainer then has. Raises NotFound or InvalidParameter for an
        unknown method or parameter, ConfigError for parts that cannot be or do not go together.
        """
        chosen = get_method(method)
        chosen.parse(params)
        live = is_live(method, params) or (local and bool(chosen.needs(chosen.parse(params))))
        down = LiveMethod.of("forget", forget, forget_params) if forget is not None else None
        for part, name, given in (("student", student, student_params), ("forget", forget, forget_params)):
            if name is None and given:
                raise ConfigError(f"{part}_params: goes with {part}, which is not set")
        rule = negatives or (down.method.negatives if down is not None else chosen.negatives)
        return cls(
            denominator=denominator or chosen.denominator,
            negatives=rule,
            schedule=_parsed(schedule) or _default_schedule(chosen if down is None else down.method, rule),
            clip=clip,
            student=LiveMethod.of("student", student, student_params) if student is not None else None,
            forget=down,
            method=LiveMethod.of("method", method, params) if live else None,
        )

    @property
    def live(self) -> tuple[tuple[Part, LiveMethod], ...]:
        """The parts computed in the forward pass, in the order they are applied."""
        parts: tuple[tuple[Part, LiveMethod | None], ...] = (
            ("method", self.method),
            ("student", self.student),
            ("forget", self.forget),
        )
        return tuple((part, each) for part, each in parts if each is not None)

    @property
    def roles(self) -> tuple[Role, ...]:
        """Whose evidence or distribution the live parts read."""
        return tuple(dict.fromkeys(role for _, each in self.live for role in each.roles))

    @property
    def deferred(self) -> bool:
        """Whether the denominator is known only after the forward passes: live weights decide what is kept."""
        return self.denominator == "kept" and any(each.method.loss is None for _, each in self.live)

    def reads(self, role: Role) -> tuple[str, ...]:
        """The signals the live parts read of a role."""
        return tuple(dict.fromkeys(name for _, each in self.live for name in each.signals(role)))

    def reads_distribution(self, role: Role) -> bool:
        """Whether a live part reads the whole distribution of a role."""
        return any(role in each.distributions for _, each in self.live)

    @property
    def reads_prompt(self) -> bool:
        """Whether a live part must know which tokens are the prompt."""
        return any(each.method.reads_prompt for _, each in self.live)

    @property
    def labels_inside(self) -> bool:
        """Whether the method reads the caller's labels itself, so that they are not laid over its weights."""
        return self.method is not None and self.method.method.labels == "inside"

    def steps(self, static: str, *, spans: bool) -> list[str]:
        """Every step from priority to loss, in order, with versions and parameters.

        `static` says where the static priority comes from, `spans` whether the data has labels.
        """
        steps = [f"priority: {static}"]
        if self.method is not None:
            kind = "loss" if self.method.method.loss is not None else "weight"
            steps.append(f"live {kind}: {self.method}")
        if spans:
            steps.insert(2 if self.labels_inside else 1, "labels: " + self._labels())
        steps += [f"student factor: {self.student}"] if self.student is not None else []
        steps += [f"forget factor: {self.forget}"] if self.forget is not None else []
        steps += [f"schedule: {self.schedule}"] if self.schedule is not None else []
        steps += [f"clip: [{self.clip[0]:g}, {self.clip[1]:g}]"] if self.clip is not None else []
        own_loss = self.labels_inside and self.method is not None and self.method.method.loss is not None
        steps.append("negatives: the method's own loss" if own_loss else f"negatives: {self.negatives}")
        return [*steps, f"denominator: {self.denominator}"]

    def _labels(self) -> str:
        return f"read by {self.method.method.name}" if self.labels_inside and self.method else "spans laid over"


def _parsed(schedule: Schedule | Mapping[str, Any] | None) -> Schedule | None:
    if schedule is None or isinstance(schedule, Schedule):
        return schedule
    try:
        return Schedule.model_validate(dict(schedule))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("schedule", *first["loc"]))
        raise ConfigError(f"{key}: {first['msg']}, got {first['input']!r}") from None


def _default_schedule(method: Method, negatives: Negatives) -> Schedule | None:
    """The method's own schedule under its own rule for negatives; else ASCENT for ascent, which is unbounded."""
    if negatives == method.negatives:
        return method.schedule
    return ASCENT if negatives == "ascent" else None
