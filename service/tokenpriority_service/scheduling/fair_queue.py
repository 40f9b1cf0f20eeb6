"""Whose turn it is: start-time fair queueing over two classes and, within each, over teams by weight, in tokens.

Knows items only by what they cost and whose they are. Knows nothing of what they are or of how they are done.

The discipline is start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996), at two levels as in its section 3. Each
flow has a start tag; the least goes first, and what it takes moves its tag on by tokens / weight. A flow that becomes
active starts where the flow last served started: it has no credit from its idle past, and no debt beyond the end of
what it was last given. So over any time in which two flows always have something queued, their services, each divided
by its weight, differ by no more than the largest item of the one plus the largest of the other, each likewise divided;
this holds at whatever speed the items leave. What a class is given in one turn is one item of it. One exception is
ours: interactive work that comes after less than its share starts a little earlier, so that a request goes whole before
the bulk work that came before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, Literal, TypeVar

ServiceClass = Literal["interactive", "bulk"]

CLASS_WEIGHTS: dict[ServiceClass, float] = {"interactive": 4.0, "bulk": 1.0}
"""Shares of the classes while both have work queued. Interactive work under its share goes before bulk; bulk is sure of
a fifth."""

HEAD_START = 2048.0
"""How far behind the flow last served, in tokens / weight, interactive work may start: about two large requests, which
bulk work makes up for later."""

T = TypeVar("T", bound=Hashable)
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Flow:
    """Whose tokens: a team's, in a class. `weight` > 0 is the team's share beside other teams of the class."""

    team: str
    service_class: ServiceClass
    weight: float


class _Turns(Generic[K]):
    """Start tags of keys that share something.

    With `forgets`, debts end once nobody waits, so that keys that come and go cost no memory. Classes are few, and what
    an engine was last given of one goes on after the queue is empty: their debts stay.
    """

    def __init__(self, *, forgets: bool, head_starts: Mapping[K, float] = MappingProxyType({})) -> None:
        self._forgets = forgets
        self._head_starts = head_starts
        self._now = 0.0
        """The largest start tag of a key that was served."""
        self._starts: dict[K, float] = {}
        """Of keys with something queued."""
        self._finished: dict[K, float] = {}
        """Of keys without: where what they were last given ends, as long as they cannot start before that."""

    def enter(self, key: K) -> None:
        """It has something queued again."""
        earliest = self._earliest(key)
        self._starts[key] = max(earliest, self._finished.pop(key, earliest))

    def leave(self, key: K) -> None:
        """It has nothing queued any more."""
        start = self._starts.pop(key)
        if not self._starts and self._forgets:  # nobody waits: whoever comes next begins anew
            self._now = 0.0
            self._finished.clear()
        elif start > self._earliest(key):
            self._finished[key] = start

    def first(self, order: Iterable[K]) -> K:
        """Whose turn it is; at equal tags, the first in this order."""
        return min((key for key in order if key in self._starts), key=self._starts.__getitem__)

    def serve(self, key: K, cost: float) -> None:
        """It is given something of this cost (tokens / weight)."""
        self._now = max(self._now, self._starts[key])
        self._starts[key] += cost
        for other in [other for other, end in self._finished.items() if end <= self._earliest(other)]:
            del self._finished[other]

    def _earliest(self, key: K) -> float:
        return self._now - self._head_starts.get(key, 0.0)


class _Lane(Generic[T]):
    """What one team has queued in one class, in order of arrival, with what each costs."""

    def __init__(self) -> None:
        self.items: OrderedDict[T, int] = OrderedDict()  # unlike a dict's, its first is found at once however many went
        self.weight = 1.0


class _Class(Generic[T]):
    """The lanes of one class, by team."""

    def __init__(self) -> None:
        self.lanes: dict[str, _Lane[T]] = {}
        self.turns: _Turns[str] = _Turns(forgets=True)

    def push(self, item: T, flow: Flow, tokens: int) -> None:
        lane = self.lanes.get(flow.team)
        if lane is None:
            lane = self.lanes[flow.team] = _Lane()
            self.turns.enter(flow.team)
        lane.weight = flow.weight  # the latest word counts
        lane.items[item] = tokens

    def head(self) -> tuple[T, str]:
        team = self.turns.first(self.lanes)  # which are in order of their becoming active
        return next(iter(self.lanes[team].items)), team

    def serve(self, team: str, tokens: int) -> None:
        self.turns.serve(team, tokens / self.lanes[team].weight)

    def remove(self, item: T, team: str) -> None:
        lane = self.lanes[team]
        del lane.items[item]
        if not lane.items:
            del self.lanes[team]
            self.turns.leave(team)


class FairQueue(Generic[T]):
    """Items that wait, each once. `pop`, `peek` and `push` take time by the number of teams that wait, not of items."""

    def __init__(self, head_start: float = HEAD_START) -> None:
        self._classes: dict[ServiceClass, _Class[T]] = {name: _Class() for name in CLASS_WEIGHTS}
        self._turns: _Turns[ServiceClass] = _Turns(forgets=False, head_starts={"interactive": head_start})
        self._flows: dict[T, Flow] = {}

    def push(self, item: T, flow: Flow, tokens: int) -> None:
        """Queue an item behind those of its flow. Raises ValueError if it is queued already, or costs nothing."""
        if item in self._flows:
            raise ValueError("item: already in the queue")
        if tokens < 1 or not flow.weight > 0:
            raise ValueError(f"tokens, weight: expected more than 0, got {tokens}, {flow.weight}")
        if not self._classes[flow.service_class].lanes:
            self._turns.enter(flow.service_class)
        self._classes[flow.service_class].push(item, flow, tokens)
        self._flows[item] = flow

    def peek(self) -> T:
        """What `pop` would give. Raises IndexError if nothing waits."""
        if not self._flows:
            raise IndexError("the queue is empty")
        return self._classes[self._turns.first(CLASS_WEIGHTS)].head()[0]

    def pop(self) -> T:
        """Take what is next, on its flow's account. Raises IndexError if nothing waits."""
        return self.take(0)[0]

    def take(self, most: int) -> list[T]:
        """Take what is next and, in the same turn of its class, what follows of that, as long as all costs no more than
        `most`. To the other class it is one item; teams take turns in it. Raises IndexError if nothing waits.
        """
        name = self._flows[self.peek()].service_class
        waiting, total = self._classes[name], 0
        taken: list[T] = []
        while waiting.lanes:
            item, team = waiting.head()
            tokens = waiting.lanes[team].items[item]
            if taken and total + tokens > most:
                break
            waiting.serve(team, tokens)
            total += tokens
            taken.append(item)
            waiting.remove(item, team)
            del self._flows[item]
        self._turns.serve(name, total / CLASS_WEIGHTS[name])
        if not waiting.lanes:
            self._turns.leave(name)
        return taken

    def remove(self, item: T) -> None:
        """Take an item out wherever it stands, on nobody's account. Raises KeyError if it is not queued."""
        flow = self._flows.pop(item)
        waiting = self._classes[flow.service_class]
        waiting.remove(item, flow.team)
        if not waiting.lanes:
            self._turns.leave(flow.service_class)

    def move(self, item: T, flow: Flow) -> None:
        """Put a queued item at the end of another flow. Raises KeyError if it is not queued."""
        old = self._flows[item]
        tokens = self._classes[old.service_class].lanes[old.team].items[item]
        self.remove(item)
        self.push(item, flow, tokens)

    def flow(self, item: T) -> Flow:
        """The flow a queued item waits in. Raises KeyError if it is not queued."""
        return self._flows[item]

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[T]:
        """Every item, in no order that matters."""
        return iter(list(self._flows))
