"""A configuration, run: model, tokenizer, data, source and trainer put together, trained and saved.

Knows the order of things: what can be refused early is refused before the model is loaded. Knows nothing of how any
part works.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from tokenpriority.methods import get_method
from tokenpriority_trainer.alignment import SPANS
from tokenpriority_trainer.bar import followed
from tokenpriority_trainer.calibrated import keep_copy, load_calibration, with_calibration
from tokenpriority_trainer.checkpoint import Checkpoint, CheckpointKeeper, check_unchanged, starting_point
from tokenpriority_trainer.collator import PRIORITIES
from tokenpriority_trainer.config import Config, PrioritiesSection, training_arguments
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.identity import identity
from tokenpriority_trainer.live import described
from tokenpriority_trainer.loading import load_model, load_rows, load_tokenizer, lora_config
from tokenpriority_trainer.local import FrozenCopies
from tokenpriority_trainer.records import MetricsFile, mean_loss, read_summary, write_summary
from tokenpriority_trainer.reporting import reported
from tokenpriority_trainer.source import ColumnSource, PrioritySource, ServerSource, StoredSource
from tokenpriority_trainer.supply import asked, supply
from tokenpriority_trainer.trainer import PrioritySFTTrainer
from tokenpriority_trainer.weighting import Weighting


def run(config: Config, *, resume: bool = False, allow_changes: bool = False, offline: bool = False) -> None:
    """Train as configured and leave model, tokenizer, metrics.jsonl, summary.json and report.html in `output_dir`.

    With `resume`, go on from the last whole checkpoint there, or begin if there is none; a finished run is left as it
    is. What decides the run's numbers must then be as it was at the checkpoint, unless `allow_changes`. With `offline`
    the weights are those of `priorities.store`, and no server is asked. Raises TokenPriorityError with one line that
    says what is wrong, where it can before the model is loaded.
    """
    if allow_changes and not resume:
        raise ConfigError("--allow-changes: goes with --resume")
    args = training_arguments(config.training)
    calibration = load_calibration(config.priorities)
    config = with_calibration(config, calibration)
    folder = Path(args.output_dir)
    if resume and _is_finished(folder, args.process_index == 0):
        return
    checkpoint = starting_point(args, resume=resume)
    weighting = make_weighting(config.priorities)
    tokenizer = load_tokenizer(config.model)
    found = supply(config, weighting, tokenizer, args.max_length, calibration=calibration, offline=offline)
    with found as (source, fingerprints):
        facts = _facts(config, weighting, source, fingerprints)
        decided = identity(config, args, fingerprints, _steps(config, weighting, source))
        if checkpoint is not None:
            check_unchanged(checkpoint, decided, allowed=allow_changes, main=args.process_index == 0)
        trainer = make_trainer(config, args, tokenizer, weighting, source)
        keeper = CheckpointKeeper(trainer, decided, checkpoint)
        trainer.add_callback(keeper)
        keeper.begin()
        _record(trainer, {"complete": False, **facts})
        if calibration is not None and trainer.is_world_process_zero():
            keep_copy(calibration, folder)
        with reported(trainer, tokenizer, facts, lambda: asdict(keeper.totals())), followed(trainer):
            result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.path))
            totals = _totals(trainer, keeper, result.training_loss, checkpoint)
            trainer.save_model()
            _record(trainer, {"complete": True, **totals, **facts})


def make_trainer(
    config: Config,
    args: SFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    weighting: Weighting,
    source: PrioritySource,
) -> PrioritySFTTrainer:
    """The trainer of this configuration, its model loaded and its data prepared."""
    local = config.priorities.local
    return PrioritySFTTrainer(
        load_model(config.model),
        args,
        load_rows("train", config.data.train),
        priorities=source,
        weighting=weighting,
        local=FrozenCopies(**local.model_dump()) if local is not None else None,
        kernel=config.priorities.kernel,
        guard=config.guard,
        eval_dataset=load_rows("eval", config.data.eval) if config.data.eval else None,
        processing_class=tokenizer,
        peft_config=lora_config(config.model),
        callbacks=[MetricsFile(Path(args.output_dir))],
    )


def _facts(
    config: Config, weighting: Weighting, source: PrioritySource, fingerprints: dict[str, str]
) -> dict[str, Any]:
    """What a summary says of how the run's weights are made."""
    settings = config.priorities
    priority, *others = _steps(config, weighting, source)
    calibrated = f", calibrated by {settings.calibration}" if settings.calibration is not None else ""
    return {
        "method": settings.method,
        "params": settings.params,
        "composition": [priority + calibrated, *others],
        "fingerprint": fingerprints.get(settings.model),
        "fingerprints": fingerprints,
    }


def _record(trainer: PrioritySFTTrainer, summary: dict[str, Any]) -> None:
    if trainer.is_world_process_zero():
        write_summary(Path(trainer.args.output_dir), {**summary, "kernel": trainer.kernel})


def _totals(
    trainer: PrioritySFTTrainer, keeper: CheckpointKeeper, loss: float, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    """Of the whole run: a step counts once, whichever process trained it last. `loss` is the mean of this process."""
    totals = keeper.totals()
    return {
        "steps": trainer.state.global_step,
        **asdict(totals),
        "tokens_per_second": totals.tokens / totals.seconds,
        "train_loss": mean_loss(trainer.state, loss, after=0 if checkpoint is None else checkpoint.step),
    }


def _steps(config: Config, weighting: Weighting, source: PrioritySource) -> list[str]:
    """The steps of the composition, the static priority by where it comes from."""
    settings = asked(config.priorities, weighting)
    method = get_method(settings.method)
    static = described(method, method.parse(settings.params))
    if isinstance(source, ServerSource | StoredSource):
        static += f" from {settings.model}"
    elif isinstance(source, ColumnSource):
        static = f"column {PRIORITIES!r}"
    return weighting.steps(static, spans=SPANS in load_rows("train", config.data.train).column_names)


def make_weighting(settings: PrioritiesSection) -> Weighting:
    """The weighting of these settings."""
    return Weighting.of(
        settings.method,
        settings.params,
        denominator=settings.denominator,
        negatives=settings.negatives,
        schedule=settings.schedule,
        clip=settings.clip,
        student=settings.student,
        student_params=settings.student_params,
        forget=settings.forget,
        forget_params=settings.forget_params,
        local=settings.url is None and settings.store is None and settings.local is not None,
    )


def _is_finished(folder: Path, main: bool) -> bool:
    """Whether the run in this folder has ended; a line on stderr then says so."""
    summary = read_summary(folder)
    finished = bool(summary.get("complete"))
    if finished and main:
        steps = summary["steps"]
        print(f"--resume: {folder} holds a finished run of {steps} steps: nothing is left to do", file=sys.stderr)
    return finished
