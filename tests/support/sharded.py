"""Steps and runs of several processes, many in one launch, left in files: `sharded.py FOLDER`.

Knows the cases by name, and trains one in whatever processes there are, so that one process can be asked the same.
The folder holds the students `untied` and `tied` with their tokenizer. Asserts nothing.
"""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from run_config import SGD
from tokenpriority_trainer import ColumnSource, FrozenCopies, Guard, PrioritySFTTrainer, Weighting
from tokenpriority_trainer.config import Kernel, load_config
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.group import end_group
from tokenpriority_trainer.run import run

Rows = list[dict[str, Any]]
KINDS = ("ddp", "fsdp2")
SIGNED = (-1.5, 1.0, 0.0, 0.5, 0.25, -0.5, 2.0)
RUNS = ("full", "shards", "adapters")
"""Runs from configurations `<name>.toml` in the folder, each gone on with as `<name>-resumed.toml`, under FSDP2."""


@dataclass
class Case:
    """One training over global batches of `rows`, by weights that depend on the place k and the row's number."""

    weight: Callable[[int, int], float]
    rule: Weighting | None = field(default_factory=Weighting)
    """None for TRL's own trainer, in which tokens of weight 0 have the label -100."""
    rows: int = 8
    """How many rows the trainer sees, packed or not."""
    accumulation: int = 1
    student: str = "untied"
    lora: bool = False
    guard: Guard | None = None
    reference: str | None = None
    """A frozen copy beside the student."""
    kernel: Kernel = "trl"
    changes: dict[str, Any] = field(default_factory=dict)


def _signed(place: int, number: int) -> float:
    return SIGNED[(place + number) % 7]


def _every_other(place: int, _: int) -> float:
    return float(place % 2)


def _first_six(_: int, number: int) -> float:
    return float(number < 6)


TOGETHER = Weighting(negatives="ascent", denominator="by_sign", clip=(-1.0, 1.5))
CASES = {
    "TRL": Case(lambda *_: 1.0, None),
    "one": Case(lambda *_: 1.0),
    "minus one": Case(lambda *_: -1.0, Weighting(negatives="ascent")),
    "TRL without half": Case(_every_other, None),
    "zero on half": Case(_every_other, Weighting(denominator="kept")),
    **{f"signed by {n}": Case(_signed, Weighting(denominator="by_sign"), accumulation=n) for n in (1, 2, 4)},
    "tied": Case(_signed, student="tied", accumulation=2),
    "live kept": Case(
        _signed, Weighting.of("bll_threshold", {"side": "top", "tau": 0.002}, denominator="kept"), accumulation=2
    ),
    "chunked": Case(_signed, Weighting(denominator="by_sign"), accumulation=2, kernel="chunked"),
    "reference": Case(_signed, Weighting.of(forget="npo"), accumulation=2, reference="tied"),
    # Eight rows of 80 tokens are packed into four of 20.
    "together": Case(
        _signed,
        TOGETHER,
        rows=4,
        accumulation=2,
        lora=True,
        changes={"packing": True, "max_length": 20, "gradient_checkpointing": True, "max_grad_norm": 0.01},
    ),
    # A step of six rows; then each process has a micro-batch left, and nothing to learn in it.
    "remainder": Case(
        _first_six,
        rows=6,
        accumulation=3,
        changes={"max_steps": 2, "train_sampling_strategy": "sequential", "weight_decay": 0.1},
    ),
    "left out": Case(_signed, accumulation=2, guard=Guard(action="skip", max_grad_norm=1e-3), changes={"max_steps": 2}),
}


def rows(case: Case) -> Rows:
    """Eight sequences of 3 to 17 random tokens, part of them not trained on."""
    generator = torch.Generator().manual_seed(3)
    made: Rows = []
    for number in range(8):
        ids = torch.randint(1, 300, (3 + 2 * number,), generator=generator).tolist()
        weights = [case.weight(place, number) for place in range(len(ids))]
        labels = [-100] * (number % 3) + ids[number % 3 :]
        if case.rule is None:
            labels = [label if weight else -100 for label, weight in zip(labels, weights, strict=True)]
        made.append({"input_ids": ids, "labels": labels, **({} if case.rule is None else {"priorities": weights})})
    return made


def trainer_of(case: Case, folder: Path, processes: int, changes: dict[str, Any]) -> Any:
    size = case.rows // (processes * case.accumulation)
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": case.accumulation}
    args = SFTConfig(**{**SGD, **split, "output_dir": str(folder / "out"), **case.changes, **changes})
    model = AutoModelForCausalLM.from_pretrained(folder / case.student)
    rest: dict[str, Any] = {"processing_class": AutoTokenizer.from_pretrained(folder / case.student)}
    if case.lora:
        torch.manual_seed(0)
        rest["peft_config"] = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    if case.rule is None:
        return SFTTrainer(model, args, train_dataset=Dataset.from_list(rows(case)), **rest)
    rest |= {"priorities": ColumnSource(), "weighting": case.rule, "guard": case.guard, "kernel": case.kernel}
    if case.reference is not None:
        rest["local"] = FrozenCopies(reference=str(folder / case.reference))
    return PrioritySFTTrainer(model, args, Dataset.from_list(rows(case)), **rest)


def trained(case: Case, folder: Path, processes: int = 1, **changes: Any) -> dict[str, Any]:
    """What one case changes in each parameter, its log, whether all parameters were sharded; or why it is refused."""
    try:
        trainer = trainer_of(case, folder, processes, changes)
    except ConfigError as refusal:
        return {"refused": str(refusal)}
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    parts = [isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in after.values()]
    return {
        "moved": {name: _whole(p).detach() - before[name] for name, p in after.items()},
        "log": trainer.state.log_history[0],
        "sharded": all(parts),
    }


def _whole(parameter: Any) -> Tensor:
    whole: Tensor = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return whole


def resumed(folder: Path, name: str, main: bool) -> None:
    """A whole run, and one that goes on from the first checkpoint of that one as if it had been killed after it."""
    run(load_config(folder / f"{name}.toml"))
    torch.distributed.barrier()
    if main:
        shutil.copytree(folder / name / "checkpoint-1", folder / f"{name}-resumed" / "checkpoint-1")
    torch.distributed.barrier()
    run(load_config(folder / f"{name}-resumed.toml"), resume=True)


def main(folder: Path) -> None:
    """Train every case under either kind, and the runs under FSDP2."""
    for kind in KINDS:  # accelerate keeps the process group from one to the next, and would keep FSDP on
        changes: dict[str, Any] = {}
        if kind == "fsdp2":
            import cpu_shards  # noqa: F401

            changes = {"use_cpu": False, "fsdp": True, "fsdp_config": {"cpu_ram_efficient_loading": True}}
        found = {name: trained(case, folder, 2, **copy.deepcopy(changes)) for name, case in CASES.items()}
        first = torch.distributed.get_rank() == 0
        if first:
            torch.save(found, folder / f"{kind}.pt")
    for name in RUNS:
        resumed(folder, name, first)
    end_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
