"""When `report.html` is written, and from what.

Knows the trainer, its folder, its processes and the tokenizer that makes tokens text. A report is never worth a
training: whatever keeps it from being made is one warning in the log. Knows nothing of HTML.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from tokenpriority_trainer.records import METRICS, read_summary, write_whole
from tokenpriority_trainer.report import Share, Shown, html_report
from tokenpriority_trainer.sample import Example, PrioritySample
from tokenpriority_trainer.trainer import PrioritySFTTrainer

REPORT = "report.html"

_LOGGER = logging.getLogger(__name__)


@contextmanager
def reported(
    trainer: PrioritySFTTrainer,
    tokenizer: PreTrainedTokenizerBase,
    facts: Mapping[str, Any],
    totals: Callable[[], Mapping[str, Any]],
) -> Iterator[None]:
    """Writes the report from the main process when the context ends; every process must take part.

    At a proper end the facts are those of summary.json and the samples those of all processes. Where an error or an
    interruption ends it, the report has the given facts and totals as far as they go, the reason, and the sample of
    the main process alone, since the others may be gone; before the first trained step there is nothing to report.
    """
    try:
        yield
    except BaseException as error:
        if trainer.sample.tokens:
            words = " ".join(str(error).split())
            reason = f"{type(error).__name__}: {words}" if words else type(error).__name__
            _write(
                trainer,
                tokenizer,
                lambda: {**facts, "steps": trainer.state.global_step, **totals()},
                stopped=reason,
            )
        raise
    _write(trainer, tokenizer, lambda: read_summary(Path(trainer.args.output_dir)), stopped=None)


def text_of(tokenizer: PreTrainedTokenizerBase, example: Example) -> Shown:
    """A token and its surroundings as text.

    Tokens are decoded together, so that spaces between words come out as in the whole text; where a token does not
    begin at a character's first byte, the parts are decoded each for itself.
    """
    ids, at = list(example.token_ids), example.at
    before, until, whole = (_decoded(tokenizer, ids[:end]) for end in (at, at + 1, len(ids)))
    joined = until.startswith(before) and whole.startswith(until)
    return Shown(
        before=before,
        token=until.removeprefix(before) if joined else _decoded(tokenizer, ids[at : at + 1]),
        after=whole.removeprefix(until) if joined else _decoded(tokenizer, ids[at + 1 :]),
        token_id=ids[at],
        priority=example.priority,
        logprob=example.logprob,
        step=example.step,
    )


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)) if ids else ""


def _write(
    trainer: PrioritySFTTrainer,
    tokenizer: PreTrainedTokenizerBase,
    facts: Callable[[], Mapping[str, Any]],
    *,
    stopped: str | None,
) -> None:
    """The report, or a warning that says why there is none."""
    try:
        samples: Sequence[PrioritySample] = [trainer.sample] if stopped else gather_object([trainer.sample])
        if trainer.is_world_process_zero():
            folder = Path(trainer.args.output_dir)
            share = Share(len(samples), trainer.accelerator.num_processes)
            page = _page(folder, tokenizer, facts(), samples, share, stopped)
            write_whole(folder / REPORT, page)
    except Exception as error:
        _LOGGER.warning("%s was not written: %s: %s", REPORT, type(error).__name__, " ".join(str(error).split()))


def _page(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    facts: Mapping[str, Any],
    samples: Sequence[PrioritySample],
    share: Share,
    stopped: str | None,
) -> str:
    whole = PrioritySample()
    for sample in samples:
        whole.merge(sample)
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines() if (folder / METRICS).exists() else []
    return html_report(
        facts,
        [json.loads(line) for line in lines],
        whole,
        [text_of(tokenizer, example) for example in whole.most_positive.sorted()],
        [text_of(tokenizer, example) for example in whole.most_negative.sorted()],
        share=share,
        stopped=stopped,
    )
