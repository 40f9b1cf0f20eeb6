"""A configuration, run: model, tokenizer, data, source and trainer put together, trained and saved.

Knows the order of things: what can be refused early is refused before the model is loaded. Knows nothing of how any
part works.
"""

from __future__ import annotations

import sys
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from tokenpriority import Client
from tokenpriority.methods import get_method
from tokenpriority_trainer.alignment import SPANS
from tokenpriority_trainer.bar import followed
from tokenpriority_trainer.calibrated import check_models, keep_copy, load_calibration, with_calibration
from tokenpriority_trainer.checkpoint import Checkpoint, CheckpointKeeper, check_unchanged, starting_point
from tokenpriority_trainer.collator import PRIORITIES
from tokenpriority_trainer.config import Config, PrioritiesSection, training_arguments
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.identity import identity
from tokenpriority_trainer.live import described
from tokenpriority_trainer.loading import load_model, load_rows, load_tokenizer, lora_config
from tokenpriority_trainer.local import FrozenCopies
from tokenpriority_trainer.preflight import check_server
from tokenpriority_trainer.records import MetricsFile, mean_loss, read_summary, write_summary
from tokenpriority_trainer.reporting import reported
from tokenpriority_trainer.source import ColumnSource, LocalSource, PrioritySource, ServerSource
from tokenpriority_trainer.trainer import PrioritySFTTrainer
from tokenpriority_trainer.weighting import Weighting


def run(config: Config, *, resume: bool = False, allow_changes: bool = False) -> None:
    """Train as configured and leave model, tokenizer, metrics.jsonl, summary.json and report.html in `output_dir`.

    With `resume`, go on from the last whole checkpoint there, or begin if there is none; a finished run is left as it
    is. What decides the run's numbers must then be as it was at the checkpoint, unless `allow_changes`. Raises
    TokenPriorityError with one line that says what is wrong, where it can before the model is loaded.
    """
    if allow_changes and not resume:
        raise ConfigError("--allow-changes: goes with --resume")
    args = training_arguments(config.training)
    calibration = load_calibration(config.priorities)
    config = with_calibration(config, calibration)
    settings = config.priorities
    folder = Path(args.output_dir)
    if resume and _is_finished(folder, args.process_index == 0):
        return
    checkpoint = starting_point(args, resume=resume)
    weighting = _weighting(settings)
    _check_projection(settings, weighting)
    tokenizer = load_tokenizer(config.model)
    asked = _asked(settings, weighting)
    with _client(asked, weighting) as client:
        fingerprints: dict[str, str] = {}
        if client is not None:
            fingerprints = check_server(client, asked, tokenizer, args.max_length)
            if calibration is not None:
                check_models(calibration, fingerprints)
            client.pin(fingerprints)
        source = _source(asked, client, load_rows("train", config.data.train).column_names, tokenizer)
        facts = _facts(config, weighting, source, fingerprints)
        decided = identity(config, args, fingerprints, facts["composition"])
        if checkpoint is not None:
            check_unchanged(checkpoint, decided, allowed=allow_changes, main=args.process_index == 0)
        trainer = _trainer(config, args, tokenizer, weighting, source)
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


def _trainer(
    config: Config,
    args: SFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    weighting: Weighting,
    source: PrioritySource,
) -> PrioritySFTTrainer:
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
    return {
        "method": settings.method,
        "params": settings.params,
        "composition": _steps(config, weighting, source),
        "fingerprint": fingerprints.get(settings.model),
        "fingerprints": fingerprints,
    }


def _record(trainer: PrioritySFTTrainer, summary: dict[str, Any]) -> None:
    if trainer.is_world_process_zero():
        write_summary(Path(trainer.args.output_dir), summary)


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
    settings = _asked(config.priorities, weighting)
    method = get_method(settings.method)
    static = described(method, method.parse(settings.params))
    if isinstance(source, ServerSource):
        static += f" from {settings.model}"
        static += f", calibrated by {settings.calibration}" if settings.calibration is not None else ""
    elif isinstance(source, ColumnSource):
        static = f"column {PRIORITIES!r}"
    return weighting.steps(static, spans=SPANS in load_rows("train", config.data.train).column_names)


def _asked(settings: PrioritiesSection, weighting: Weighting) -> PrioritiesSection:
    """The settings as the source of static weights sees them: 1 throughout where the method itself is live."""
    return settings if weighting.method is None else settings.model_copy(update={"method": "uniform", "params": {}})


def _client(settings: PrioritiesSection, weighting: Weighting) -> Any:
    """The client, as a context that closes it; a context of None where no server is needed."""
    read = weighting.method is None or _reads_server(settings, weighting)
    if settings.url is None or not read:
        return nullcontext()
    try:
        return closing(Client(settings.url, api_key=settings.api_key(), model=settings.model))
    except ValueError as error:
        raise ConfigError(f"priorities.{error}") from None


def _reads_server(settings: PrioritiesSection, weighting: Weighting) -> bool:
    """Whether live parts read the reference's log-probs of the server."""
    copied = settings.local is not None and settings.local.reference is not None
    return settings.url is not None and "reference" in weighting.roles and not copied


def _check_projection(settings: PrioritiesSection, weighting: Weighting) -> None:
    """Raises ConfigError if a live part would read log-probs that a projected token may not have."""
    if settings.tokenizers == "project" and _reads_server(settings, weighting):
        part, name = next((part, each.method.name) for part, each in weighting.live if "reference" in each.roles)
        raise ConfigError(
            f"priorities.tokenizers: 'project' does not go with {part} {name!r}, which reads the log-probs of the "
            "server's reference: a projected token may have none; use a reference of the student's tokenizer"
        )


def _source(
    settings: PrioritiesSection, client: Client | None, columns: list[str], tokenizer: PreTrainedTokenizerBase
) -> PrioritySource:
    if client is not None:
        return ServerSource(
            client,
            settings.method,
            settings.params,
            model=settings.model,
            depth=settings.depth,
            tokenizer=tokenizer if settings.tokenizers == "project" else None,
        )
    if PRIORITIES in columns:
        return ColumnSource()
    return LocalSource(settings.method, settings.params)


def _weighting(settings: PrioritiesSection) -> Weighting:
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
        local=settings.url is None and settings.local is not None,
    )


def _is_finished(folder: Path, main: bool) -> bool:
    """Whether the run in this folder has ended; a line on stderr then says so."""
    summary = read_summary(folder)
    finished = bool(summary.get("complete"))
    if finished and main:
        steps = summary["steps"]
        print(f"--resume: {folder} holds a finished run of {steps} steps: nothing is left to do", file=sys.stderr)
    return finished
