"""Shares of a fair queue against the paper's bound and the paper's equations, over any sequence of operations."""

from __future__ import annotations

import itertools
from collections import defaultdict
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority_service.scheduling.fair_queue import CLASS_WEIGHTS, FairQueue, Flow

# Powers of two, so that the tags are exact.
WEIGHTS = {"alpha": 1.0, "beta": 2.0, "gamma": 0.25, "delta": 1.0}
FLOWS = [Flow(team, name, weight) for team, weight in WEIGHTS.items() for name in ("interactive", "bulk")]
LARGEST = 50

flows = st.sampled_from(FLOWS)
tokens = st.integers(1, LARGEST)
pushes = st.tuples(st.just("push"), flows, tokens)
pops = st.just(("pop",))
removes = st.tuples(st.just("remove"), st.integers(0, 10_000))
moves = st.tuples(st.just("move"), st.integers(0, 10_000), flows)


class Lag:
    """Of two parties with weights: how far apart their services, each by its weight, came while both had work."""

    def __init__(self) -> None:
        self.apart: dict[Any, Fraction] = defaultdict(Fraction)
        self.range: dict[Any, tuple[Fraction, Fraction]] = {}

    def backlogged(self, parties: set[Any]) -> None:
        """Who has work; a pair begins anew when one of them had none."""
        pairs = set(itertools.permutations(parties, 2))
        for gone in set(self.apart) - pairs:
            del self.apart[gone], self.range[gone]
        for pair in pairs - set(self.apart):
            self.apart[pair], self.range[pair] = Fraction(0), (Fraction(0), Fraction(0))

    def served(self, party: Any, service: Fraction) -> None:
        for one, other in self.apart:
            if party in (one, other):
                self.apart[one, other] += service if party == one else -service
        for pair, apart in self.apart.items():
            low, high = self.range[pair]
            self.range[pair] = min(low, apart), max(high, apart)

    def widest(self, one: Any, other: Any) -> Fraction:
        low, high = self.range[one, other]
        return high - low


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(pushes, pushes, pops, removes, moves), max_size=200), st.sampled_from([0, 64, 512]))
def test_services_of_those_who_wait_differ_by_their_largest_items_at_most(
    operations: list[Any], head_start: int
) -> None:
    """|W_f / w_f - W_g / w_g| <= l_f / w_f + l_g / w_g over any interval in which both wait (the paper's theorem 1):
    for classes, but for the head start, and for teams of a class, whoever comes, goes or is moved meanwhile.
    """
    queue: FairQueue[int] = FairQueue(head_start)
    truth: dict[int, tuple[Flow, int]] = {}
    classes, teams = Lag(), {name: Lag() for name in CLASS_WEIGHTS}
    numbers = itertools.count()
    for operation, *arguments in operations:
        if operation == "push":
            item = next(numbers)
            truth[item] = arguments[0], arguments[1]
            queue.push(item, *arguments)
        elif not truth:
            continue
        elif operation == "remove":
            item = list(truth)[arguments[0] % len(truth)]
            del truth[item]
            queue.remove(item)
        elif operation == "move":
            item = list(truth)[arguments[0] % len(truth)]
            truth[item] = arguments[1], truth.pop(item)[1]
            queue.move(item, arguments[1])
        else:
            item = queue.peek()
            assert queue.pop() == item
            flow, size = truth.pop(item)
            name = flow.service_class
            assert item == next((k for k, v in {item: (flow, size), **truth}.items() if v[0] == flow), None)
            classes.served(name, Fraction(size) / Fraction(CLASS_WEIGHTS[name]))
            teams[name].served(flow.team, Fraction(size) / Fraction(flow.weight))
            for one, other in classes.apart:
                bound = LARGEST / Fraction(CLASS_WEIGHTS[one]) + LARGEST / Fraction(CLASS_WEIGHTS[other])
                assert classes.widest(one, other) <= bound + head_start
            for one, other in teams[name].apart:
                bound = LARGEST / Fraction(WEIGHTS[one]) + LARGEST / Fraction(WEIGHTS[other])
                assert teams[name].widest(one, other) <= bound
        waiting = {(flow.team, flow.service_class) for flow, _ in truth.values()}
        classes.backlogged({name for _, name in waiting})
        for name, lag in teams.items():
            lag.backlogged({team for team, other in waiting if other == name})
        assert {item: queue.flow(item) for item in queue} == {item: flow for item, (flow, _) in truth.items()}
        assert len(queue) == len(truth)


class Paper:
    """One level by the paper's equations 4 to 6: each item is tagged as it arrives, in exact fractions."""

    def __init__(self) -> None:
        self.now = self.furthest = Fraction(0)
        self.finish: dict[str, Fraction] = defaultdict(Fraction)
        self.starts: dict[int, tuple[Fraction, Fraction]] = {}

    def arrive(self, item: int, flow: Flow, size: int) -> None:
        if not self.starts:
            self.now = self.furthest  # the end of a busy period
        start = max(self.now, self.finish[flow.team])
        self.finish[flow.team] = start + Fraction(size) / Fraction(flow.weight)
        self.starts[item] = start, self.finish[flow.team]

    def serve(self, item: int) -> None:
        start, finish = self.starts.pop(item)
        assert all(start <= other for other, _ in self.starts.values()), "another one's start tag is less"
        self.now, self.furthest = start, max(self.furthest, finish)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(pushes, pushes, pops), max_size=200))
def test_the_least_start_tag_of_the_paper_goes_first(operations: list[Any]) -> None:
    queue: FairQueue[int] = FairQueue()
    paper = Paper()
    for number, (operation, *arguments) in enumerate(operations):
        if operation == "push":
            flow, size = arguments
            flow = Flow(flow.team, "bulk", flow.weight)
            queue.push(number, flow, size)
            paper.arrive(number, flow, size)
        elif len(queue):
            paper.serve(queue.pop())


@given(st.lists(st.tuples(flows, tokens), min_size=1, max_size=60), st.data())
def test_items_leave_in_order_of_arrival_within_a_flow_and_all_leave(items: list[Any], data: st.DataObject) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, (flow, size) in enumerate(items):
        queue.push(number, flow, size)
    gone = data.draw(st.sets(st.sampled_from(range(len(items)))))
    for number in gone:
        queue.remove(number)
    left = [queue.pop() for _ in range(len(queue))]
    for flow in FLOWS:
        expected = [n for n in range(len(items)) if items[n][0] == flow and n not in gone]
        assert [n for n in left if items[n][0] == flow] == expected
    assert len(left) == len(items) - len(gone)
    assert (len(queue), list(queue)) == (0, [])


def fill(queue: FairQueue[Any], flow: Flow, count: int, size: int = 10) -> None:
    for number in range(count):
        queue.push((flow.team, flow.service_class, number), flow, size)


def test_bulk_gets_a_fifth_and_interactive_under_its_share_goes_first() -> None:
    queue: FairQueue[Any] = FairQueue(head_start=0)
    fill(queue, Flow("b", "bulk", 1.0), 200)
    for _ in range(50):
        queue.pop()
    fill(queue, Flow("i", "interactive", 1.0), 100)
    served = [queue.pop()[1] for _ in range(100)]
    assert served[:4] == ["interactive"] * 4
    assert all(19 <= served[start:].count("bulk") * 100 / (100 - start) <= 25 for start in (0, 5, 10, 50))
    while len(queue):
        queue.pop()
    # Interactive work that leaves its share unused goes first every time.
    fill(queue, Flow("b", "bulk", 1.0), 200)
    for number in range(20):
        queue.push(number, Flow("i", "interactive", 1.0), 10)
        assert queue.pop() == number
        assert [queue.pop()[0] for _ in range(3)] == ["b"] * 3


def test_a_request_after_less_than_its_share_goes_whole_and_bulk_makes_up_for_it() -> None:
    queue: FairQueue[Any] = FairQueue(head_start=100)
    fill(queue, Flow("b", "bulk", 1.0), 500)
    for _ in range(50):
        queue.pop()
    for _ in range(2):  # 4 x 100 tokens go first
        fill(queue, Flow("i", "interactive", 1.0), 100)
        served = [queue.pop()[1] for _ in range(150)]
        assert served[:40] == ["interactive"] * 40
        assert served[41:111].count("bulk") == pytest.approx(14, abs=1), "from then on it has its share"
    fill(queue, Flow("i", "interactive", 1.0), 20)
    assert {queue.pop()[0] for _ in range(20)} == {"i"}
    fill(queue, Flow("i", "interactive", 1.0), 60)
    served = [queue.pop()[1] for _ in range(60)]
    assert served[:20] == ["interactive"] * 20, "what the request before left of the head start"
    assert served[21:].count("bulk") == pytest.approx(8, abs=1)


def test_teams_share_by_weight_with_no_credit_for_the_past() -> None:
    queue: FairQueue[Any] = FairQueue()
    fill(queue, Flow("early", "bulk", 1.0), 400)
    for _ in range(100):
        queue.pop()
    fill(queue, Flow("late", "bulk", 3.0), 400)
    served = [queue.pop()[0] for _ in range(200)]
    for start in range(0, 200, 20):
        assert 14 <= served[start : start + 20].count("late") <= 16, "a weight of 3 beside a weight of 1"


def test_one_item_at_a_time_gets_no_more_than_its_share() -> None:
    """A team that comes back each time with one item is charged for what it had: it cannot go first every time."""
    queue: FairQueue[Any] = FairQueue()
    fill(queue, Flow("many", "bulk", 1.0), 400)
    one = Flow("one", "bulk", 1.0)
    queue.push("one", one, 10)
    served = []
    for _ in range(100):
        served.append(queue.pop())
        if served[-1] == "one":
            queue.push("one", one, 10)
    assert 49 <= served.count("one") <= 51


def test_what_is_taken_out_is_on_nobodys_account() -> None:
    queue: FairQueue[Any] = FairQueue()
    left, right = Flow("left", "bulk", 1.0), Flow("right", "bulk", 1.0)
    fill(queue, right, 20)
    for number in range(20):
        queue.push(number, left, 1000)
        queue.remove(number)
    fill(queue, left, 20)
    served = [queue.pop()[0] for _ in range(20)]
    assert 9 <= served.count("left") <= 11


def test_a_team_that_left_costs_no_memory() -> None:
    queue: FairQueue[Any] = FairQueue()
    fill(queue, Flow("steady", "bulk", 1.0), 4000, 1)
    for number in range(1000):
        queue.push(number, Flow(f"team {number}", "bulk", 1.0), 1)
        for _ in range(3):
            queue.pop()
    waiting = queue._classes["bulk"]
    assert set(waiting.lanes) == {"steady"}
    assert len(waiting.turns._finished) <= 1
    while len(queue):
        queue.pop()
    assert [len(each) for each in (waiting.lanes, waiting.turns._finished)] == [0, 0]


def test_misuse_is_refused() -> None:
    queue: FairQueue[str] = FairQueue()
    flow = Flow("a", "bulk", 1.0)
    queue.push("item", flow, 1)
    with pytest.raises(ValueError, match="already"):
        queue.push("item", flow, 1)
    for size, weight in ((0, 1.0), (1, 0.0), (1, float("nan"))):
        with pytest.raises(ValueError, match="more than 0"):
            queue.push("other", Flow("a", "bulk", weight), size)
    queue.remove("item")
    for call in (queue.pop, queue.peek):
        with pytest.raises(IndexError):
            call()
    for missing in (lambda: queue.remove("item"), lambda: queue.move("item", flow), lambda: queue.flow("item")):
        with pytest.raises(KeyError):
            missing()


def test_what_one_call_takes_of_a_class_is_one_turn() -> None:
    queue: FairQueue[str] = FairQueue(0.0)
    for number in range(40):
        queue.push(f"i{number}", Flow("a", "interactive", 1.0), 100)
        queue.push(f"b{number}", Flow("ab"[number % 2], "bulk", 1.0), 100)
    turns = [queue.take(450) for _ in range(10)]
    assert [turn[0][0] for turn in turns] == ["i", "b", "i", "i", "i", "i", "b", "i", "i", "i"], "four to one"
    assert all({each[0] for each in turn} == {turn[0][0]} and len(turn) == 4 for turn in turns)
    assert [int(each[1:]) % 2 for each in turns[1]] == [0, 1, 0, 1], "its teams take turns in it"
    assert queue.take(1) == ["i32"], "one that is larger goes alone"
    rest = [len(queue.take(10_000)) for _ in range(2)]
    assert (sum(rest), len(queue)) == (80 - 40 - 1, 0)
