"""What a training waits for priorities, and what fetching them costs it when they are never late.

    python tests/benchmarks/training/waiting.py [--quick]

Real trainings of a small random Llama by PrioritySFTTrainer, forward, backward and optimiser, whose weights come from
a scoring server in a process of its own over a loopback socket in msgpack, every sequence new to it. One thing alone is
simulated: how long the server's engine takes. It has no model, sleeps, and has one batch at a time: on average 1 / 1.5
of the trainer's step, measured just before without a server, with a coefficient of variation of 0.3 or 1 from batch
to batch. As it sleeps, it takes no core from the trainer. What the rate then was is told: on a busy machine the step is
another one. Waited is what `next` of the prefetch took, over the wall time, from the end of the step FILLING to the end
of the last: nothing can be ready for the first, and what is asked for at once with it, FILLING batches, is answered in
calls of many batches. What all these wait is told apart, in ms; a training pays it once.

Then steps without the optimiser of TRL's SFTTrainer, of ours with a column of weights, and of ours with a server whose
engine takes no time, in turn, so that noise falls on all alike; ratios are taken within a round, medians over rounds.

torch has one thread: client and server find a core of their own, as where a GPU trains.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tokenpriority import Client
from tokenpriority_trainer import ColumnSource, LocalSource, PrioritySFTTrainer, ServerSource
from training.steps import ROWS, arguments, model, tokenizer

RATE = 1.5
"""Batches the scorer does while the trainer does one."""
FILLING = 8
"""Batches the prefetch asks for at first."""
JITTERS = {"0.3": "wait_share", "1.0": "wait_share_cv_1"}
VOCABULARY, WIDTH, LENGTH = 8_192, 128, 64
METHOD = "prift_prob"
PLAIN, COLUMN, SERVER = "TRL's SFTTrainer", "ours, a column", "ours, a server"


@dataclass(frozen=True, slots=True)
class Waited:
    """A training: seconds of its mean step without what it waited, share waited after the step FILLING, seconds waited
    until then."""

    step: float
    share: float
    filling: float


def measure(quick: bool) -> dict[str, float]:
    """Print two tables; the shares waited by `JITTERS`, the longest wait of the steps FILLING, the greatest rate of the
    scorers over the trainer that came of RATE, and the step's time over TRL's and over that with a column."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(*((120, 20) if quick else (400, 100)))
    finally:
        torch.set_num_threads(threads)


def _measured(steps: int, rounds: int) -> dict[str, float]:
    waited, rates = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for cv in JITTERS:
            seconds = train(Path(folder), LocalSource(), 20).step / RATE
            with served(seconds) as client:
                waited[cv] = train(Path(folder), ServerSource(client, METHOD, model=cv), steps)
            rates[cv] = waited[cv].step / seconds
        with served(seconds) as client:
            times = interleaved(Path(folder), client, rounds)
    report(waited, rates, times)
    shares = {JITTERS[cv]: round(each.share, 5) for cv, each in waited.items()}
    shares |= {"filling_seconds": round(max(each.filling for each in waited.values()), 3)}
    ratios = {"server_time_over_trl": ratio(times, PLAIN), "server_time_over_column": ratio(times, COLUMN)}
    return shares | {"scorer_over_trainer": round(max(rates.values()), 3)} | ratios


@contextmanager
def served(seconds: float) -> Iterator[Client]:
    """A client of a ready server whose models take so long for a batch."""
    told = [f"{VOCABULARY}", f"{seconds}", f"{ROWS}", *JITTERS]
    command = [sys.executable, str(Path(__file__).with_name("scorer.py")), *told]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        try:
            with Client(child.stdout.readline().strip()) as client:
                client.wait_until_ready(60)
                yield client
        finally:
            child.terminate()


def train(folder: Path, source: Any, steps: int) -> Waited:
    """A training of so many steps on rows of its own."""
    clock = Clock(source)
    trainer = PrioritySFTTrainer(
        student(), settings(folder, steps), rows(steps), priorities=source, callbacks=[clock], **words()
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    (began, filling), (ended, last) = clock.seen[FILLING - 1], clock.seen[-1]
    worked = ended - began - (last - filling)
    return Waited(worked / (steps - FILLING), (last - filling) / (ended - began), filling)


class Clock(TrainerCallback):
    """The moment and what was waited until then, at the end of every step."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.seen: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seen.append((time.perf_counter(), self._source.wait_seconds))


def interleaved(folder: Path, client: Client, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way's step in every round; the first rounds, in which nothing can be ready, are not counted."""
    warm = 3
    data = rows(warm + rounds + 8)  # and what may be read ahead in the last
    weighted = data.add_column("priorities", [[1.0] * LENGTH] * len(data))
    server = ServerSource(client, METHOD, model="never-late")
    ways = {
        PLAIN: stepper(SFTTrainer(student(), settings(folder, rounds), train_dataset=data, **words())),
        COLUMN: stepper(
            PrioritySFTTrainer(student(), settings(folder, rounds), weighted, priorities=ColumnSource(), **words())
        ),
        SERVER: stepper(PrioritySFTTrainer(student(), settings(folder, rounds), data, priorities=server, **words())),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm + rounds):
        names = list(ways)
        for name in names[number % 3 :] + names[: number % 3]:
            began = time.perf_counter()
            ways[name]()
            if number >= warm:
                times[name].append(time.perf_counter() - began)
    return times


def stepper(trainer: Any) -> Callable[[], None]:
    """One step after the other of one epoch, without the optimiser."""
    trainer.current_gradient_accumulation_steps = 1
    epoch = iter(trainer.get_train_dataloader())

    def step() -> None:
        samples, counts = trainer.get_batch_samples(epoch, 1, trainer.args.device)
        trainer.training_step(trainer.model, samples[0], counts)
        trainer.model.zero_grad()

    return step


def student() -> Any:
    return model(VOCABULARY, WIDTH)


def words() -> dict[str, Any]:
    return {"processing_class": tokenizer(VOCABULARY)}


def settings(folder: Path, steps: int) -> SFTConfig:
    made = arguments(folder, save_strategy="no", logging_steps=10)
    made.max_steps = steps
    return made


def rows(steps: int) -> Any:
    """Random rows for so many steps, unlike those of any other call."""
    ids = torch.randint(1, VOCABULARY, (steps * ROWS, LENGTH), generator=GENERATOR).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


GENERATOR = torch.Generator().manual_seed(0)


def ratio(times: dict[str, list[float]], over: str) -> float:
    return round(statistics.median(a / b for a, b in zip(times[SERVER], times[over], strict=True)), 4)


def report(waited: dict[str, Waited], rates: dict[str, float], times: dict[str, list[float]]) -> None:
    print(f"\nwaiting, {ROWS} x {LENGTH} tokens a step")
    print(
        f"\n| jitter of the scorer (cv) | step, ms | scorer over trainer | waited | by the first {FILLING} steps, ms |"
    )
    print("|---|---|---|---|---|")
    for cv, each in waited.items():
        print(f"| {cv} | {1e3 * each.step:.0f} | {rates[cv]:.2f} | {each.share:.2%} | {1e3 * each.filling:.0f} |")
    print(f"\n| step without optimiser | ms | {SERVER}, over it |\n|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {1e3 * statistics.median(seconds):.0f} | {ratio(times, name):.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="120 steps instead of 400, 20 rounds instead of 100")
    print(measure(parser.parse_args().quick))
