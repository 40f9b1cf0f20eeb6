"""The demo from beginning to end.

Knows the order of things and which files lie where. Everything it does is done by the modules beside it.

    OUT/report.html, OUT/results.json
    and in OUT/work:
    base, reference     the frozen models
    seed-S              plain.jsonl, labelled.jsonl; uniform, positive and signed, one training each
    logs                what the server and the trainings printed
"""

from __future__ import annotations

import os
import platform
import tempfile
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import AutoModelForCausalLM

from tokenpriority import Client
from tokenpriority_trainer.demo import dataset, training
from tokenpriority_trainer.demo.corpus import decode
from tokenpriority_trainer.demo.dataset import Examples
from tokenpriority_trainer.demo.evaluate import Trials, measure
from tokenpriority_trainer.demo.preparation import Prepared, prepare
from tokenpriority_trainer.demo.processes import Children
from tokenpriority_trainer.demo.progress import Progress
from tokenpriority_trainer.demo.report import Token, html_report
from tokenpriority_trainer.demo.results import Results, Row, mean_of
from tokenpriority_trainer.demo.scale import Scale
from tokenpriority_trainer.demo.server import Server
from tokenpriority_trainer.demo.training import Inputs, Training


def run_demo(scale: Scale, *, seeds: int, out: Path, console: Console) -> Results:
    """Run everything, write OUT/report.html and OUT/results.json, and return what was measured.

    Base and reference are trained once; each seed draws a fine-tuning set, its noise and its data order anew, the same
    for all three trainings. Raises ChildFailed if the server or a training fails, CorpusTooSmall if there is too
    little text, TimeoutError if something does not end.
    """
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    _set_up_process()
    results = Results({"scale": asdict(scale), "machine": _machine()}, seeds)
    with (
        Progress(console) as progress,
        tempfile.TemporaryDirectory() as cache,
        Children(work / "logs", {"HF_DATASETS_CACHE": cache}) as children,
    ):
        prepared = prepare(scale, work, progress)
        results.curves.update(prepared.curves)
        server = Server(children, {name: work / name for name in prepared.frozen}, work / "server.toml")
        bench = _Bench(scale, work, prepared, server, children, progress, results)
        for seed in range(seeds):
            bench.compare(seed)
        shown = bench.scored_example()
    results.stages.update(progress.seconds)
    results.write(out / "results.json")
    method = f"prift_mass, tau {scale.tau:g}, the idiom labelled {training.IDIOM_PRIORITY:g}"
    (out / "report.html").write_text(html_report(results, shown, method=method), encoding="utf-8")
    return results


@dataclass(frozen=True, slots=True)
class _Bench:
    """Everything the comparison of one seed stands on."""

    scale: Scale
    work: Path
    prepared: Prepared
    server: Server
    children: Children
    progress: Progress
    results: Results

    def compare(self, seed: int) -> None:
        """One seed: its fine-tuning set, the three trainings at once, and every model's figures."""
        with self.progress.stage(f"Seed {seed}: fine-tuning set, frozen models"):
            examples = self._examples(seed)
            inputs = self._write(examples, seed)
            trials = self._trials(examples)
            frozen = self.prepared.frozen.items()
            self.results.rows.extend(Row(name, seed, measure(model, trials)) for name, model in frozen)
        with self.progress.stage(f"Seed {seed}: waiting for the server"):
            self.server.wait_until_ready()
        trainings = self._train(inputs)
        with self.progress.stage(f"Seed {seed}: evaluation", len(trainings)) as stage:
            for number, each in enumerate(trainings, 1):
                self.results.rows.append(_row(each, seed, trials))
                if seed == 0:
                    self.results.curves[each.recipe.name] = each.curve()
                stage.to(number)

    def scored_example(self) -> list[Token]:
        """The first example of seed 0 with both noise and idiom, as the signed training had it from the server."""
        examples = self._examples(0)
        number = int((examples.noise.any(axis=1) & examples.idiom.any(axis=1)).argmax())
        token_ids, noise, idiom = examples.token_ids[number], examples.noise[number], examples.idiom[number]
        signed = training.recipes(self.scale)[-1]
        sequence = {"token_ids": token_ids, "spans": dataset.spans(idiom, training.IDIOM_PRIORITY)}
        with closing(Client(self.server.url)) as client:
            [scores] = client.score([sequence], method=signed.method, params=signed.params, signals=["rank"])
        spoilt = ["noise" if noise[index] else "idiom" if idiom[index] else "" for index in range(len(token_ids))]
        texts = [decode(self.prepared.tokenizer, token) for token in token_ids[:, None]]
        figures = zip(scores.logprobs, scores.signals["rank"], scores.priorities, strict=True)
        return [
            Token(text, float(logprob), float(rank), float(priority), what)
            for text, what, (logprob, rank, priority) in zip(texts, spoilt, figures, strict=True)
        ]

    def _examples(self, seed: int) -> Examples:
        return dataset.spoil(self.prepared.tokenizer, self.prepared.tuning, self.scale, seed)

    def _write(self, examples: Examples, seed: int) -> Inputs:
        folder = self.work / f"seed-{seed}"
        folder.mkdir(exist_ok=True)
        inputs = Inputs(self.work / "base", folder / "plain.jsonl", folder / "labelled.jsonl", folder, seed)
        dataset.write_jsonl(examples, inputs.plain, label=None)
        dataset.write_jsonl(examples, inputs.labelled, label=training.IDIOM_PRIORITY)
        return inputs

    def _trials(self, examples: Examples) -> Trials:
        noisy = examples.noise.any(axis=1)
        first = slice(0, self.scale.heldout)
        prepared = self.prepared
        return Trials(
            clean=prepared.clean,
            noisy=examples.token_ids[noisy][first],
            noise=examples.noise[noisy][first],
            probes=prepared.probes,
            idiom=prepared.idiom,
        )

    def _train(self, inputs: Inputs) -> list[Training]:
        """The three trainings, started together and followed to their end."""
        recipes = training.recipes(self.scale)
        trainings = [training.start(self.children, self.server, self.scale, inputs, recipe) for recipe in recipes]
        with ExitStack() as stages:
            bars = {
                each.recipe.name: stages.enter_context(
                    self.progress.stage(f"Seed {inputs.seed}: training {each.recipe.name}", self.scale.tuning_steps)
                )
                for each in trainings
            }
            training.finish(trainings, self.server, lambda each, step: bars[each.recipe.name].to(step))
        return trainings


def _row(each: Training, seed: int, trials: Trials) -> Row:
    summary = each.summary()
    return Row(
        each.recipe.name,
        seed,
        measure(AutoModelForCausalLM.from_pretrained(each.folder, dtype="float32"), trials),
        kept_share=mean_of(each.curve(), "kept_share"),
        wait_seconds=summary["wait_seconds"],
        tokens_per_second=summary["tokens_per_second"],
        seconds=summary["seconds"],
    )


def _set_up_process() -> None:
    # Steps on models this small are short: a second thread helps little, and where another program wants that core,
    # threads that wait for each other made a step twenty times slower.
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _cores() -> int:
    """Cores this process may use; a container's share is often less than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> dict[str, Any]:
    return {
        "cores": _cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
