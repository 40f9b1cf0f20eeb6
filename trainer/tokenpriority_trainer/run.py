"""A configuration, run: model, tokenizer, data, source and trainer put together, trained and saved.

Knows the order of things: what can be refused early is refused before the model is loaded. Knows nothing of how any
part works.
"""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from tokenpriority import Client
from tokenpriority_trainer.collator import PRIORITIES
from tokenpriority_trainer.config import Config, PrioritiesSection, training_arguments
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.loading import load_model, load_rows, load_tokenizer, lora_config
from tokenpriority_trainer.preflight import check_server
from tokenpriority_trainer.records import MetricsFile, read_summary, write_summary
from tokenpriority_trainer.source import ColumnSource, LocalSource, PrioritySource, ServerSource
from tokenpriority_trainer.trainer import PrioritySFTTrainer
from tokenpriority_trainer.weighting import Weighting, is_live


def run(config: Config, *, resume: bool = False) -> None:
    """Train as configured and leave the model, the tokenizer, metrics.jsonl and summary.json in `output_dir`.

    With `resume`, go on from the last checkpoint there; the server must then score with the models the run began
    with. Raises TokenPriorityError with one line that says what is wrong, where it can before the model is loaded.
    """
    settings, args = config.priorities, training_arguments(config.training)
    folder = Path(args.output_dir)
    checkpoint = _last_checkpoint(folder) if resume else None
    weighting = _weighting(settings)
    tokenizer = load_tokenizer(config.model)
    with _client(settings) as client:
        fingerprints: dict[str, str] = {}
        if client is not None:
            client.pin(read_summary(folder).get("fingerprints", {}) if resume else {})
            fingerprints = check_server(client, settings, tokenizer, args.max_length)
            client.pin(fingerprints)
        trainer = _trainer(config, args, tokenizer, weighting, client)
        facts: dict[str, Any] = {"method": settings.method, "params": settings.params}
        facts |= {"fingerprint": fingerprints.get(settings.model), "fingerprints": fingerprints}
        _record(trainer, {"complete": False, **facts})
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        _record(trainer, {"complete": True, **_totals(trainer, result.metrics["train_runtime"]), **facts})


def _trainer(
    config: Config,
    args: SFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    weighting: Weighting,
    client: Client | None,
) -> PrioritySFTTrainer:
    rows = load_rows("train", config.data.train)
    return PrioritySFTTrainer(
        load_model(config.model),
        args,
        rows,
        priorities=_source(config.priorities, client, rows.column_names),
        weighting=weighting,
        eval_dataset=load_rows("eval", config.data.eval) if config.data.eval else None,
        processing_class=tokenizer,
        peft_config=lora_config(config.model),
        callbacks=[MetricsFile(Path(args.output_dir))],
    )


def _record(trainer: PrioritySFTTrainer, summary: dict[str, Any]) -> None:
    if trainer.is_world_process_zero():
        write_summary(Path(trainer.args.output_dir), summary)


def _totals(trainer: PrioritySFTTrainer, seconds: float) -> dict[str, Any]:
    """What this call to train did; after a resume, the steps before it are in `steps` alone."""
    tokens = trainer.sign_metrics.tokens
    return {
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "wait_seconds": trainer.sign_metrics.wait_seconds,
        "train_loss": trainer.state.log_history[-1].get("train_loss"),
    }


def _client(settings: PrioritiesSection) -> Any:
    """The client, as a context that closes it; a context of None where no server is needed."""
    if settings.url is None or is_live(settings.method, settings.params):
        return nullcontext()
    try:
        return closing(Client(settings.url, api_key=settings.api_key(), model=settings.model))
    except ValueError as error:
        raise ConfigError(f"priorities.{error}") from None


def _source(settings: PrioritiesSection, client: Client | None, columns: list[str]) -> PrioritySource:
    if client is not None:
        return ServerSource(client, settings.method, settings.params, model=settings.model, depth=settings.depth)
    if PRIORITIES in columns:
        return ColumnSource()
    live = is_live(settings.method, settings.params)
    return LocalSource() if live else LocalSource(settings.method, settings.params)


def _weighting(settings: PrioritiesSection) -> Weighting:
    return Weighting.of(
        settings.method,
        settings.params,
        denominator=settings.denominator,
        negatives=settings.negatives,
        ramp=settings.ramp,
        student=settings.student,
    )


def _last_checkpoint(folder: Path) -> str:
    numbered = {int(path.name.removeprefix("checkpoint-")): path for path in folder.glob("checkpoint-[0-9]*")}
    if not numbered:
        raise ConfigError(f"--resume: {folder} holds no checkpoint; set save_steps under [training]")
    return str(numbered[max(numbered)])
