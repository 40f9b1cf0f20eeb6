"""TRL's SFTTrainer with a signed weight on every token.

Knows where in TRL's loop weights must enter: columns into the dataset, priorities into the batch, counts into the
optimiser step, the weighted loss into the forward pass. Everything else (formats, templates, packing, PEFT, devices,
checkpoints, logging) is TRL's. Knows nothing of files or of the command line.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from tokenpriority import spans
from tokenpriority_trainer.alignment import SpanAligner
from tokenpriority_trainer.checks import check_arguments, check_setting
from tokenpriority_trainer.collator import DOCUMENTS, EXTRAS, FILL, PRIORITIES, SPAN_PRIORITIES, PriorityCollator
from tokenpriority_trainer.columns import Rows, has_columns, prepare
from tokenpriority_trainer.documents import IGNORED, place
from tokenpriority_trainer.errors import NothingToLearn, WeightError
from tokenpriority_trainer.loss import KEPT, count, ramped, shifted, weighted_loss
from tokenpriority_trainer.metrics import SignMetrics
from tokenpriority_trainer.ramp import progress
from tokenpriority_trainer.source import Batch, PrioritySource
from tokenpriority_trainer.weighting import TORCH, Weighting


class PrioritySFTTrainer(SFTTrainer):  # type: ignore[misc]  # TRL publishes no types
    """Supervised fine-tuning in which every token counts by its priority.

    `priorities` says where weights come from, `weighting` how they become a loss; all other arguments are
    SFTTrainer's, without those that would replace the collator or the loss. Evaluation stays plain NLL. Raises
    ConfigError for settings under which weights would be ignored or counted wrongly.
    """

    data_collator: Any
    _signature_columns: list[str] | None
    loss_is_scaled_for_ga = True  # the denominators count the whole global batch; Trainer must not divide again

    def __init__(
        self,
        model: Any,
        args: SFTConfig,
        train_dataset: Rows,
        *,
        priorities: PrioritySource,
        weighting: Weighting | None = None,
        **rest: Any,
    ) -> None:
        check_arguments(args, train_dataset, priorities, rest)
        self.priorities = priorities
        self.weighting = weighting or Weighting()
        self.sign_metrics = SignMetrics()
        self._stream_of: Iterator[Batch] | None = None
        self._stream: Generator[Batch, None, None] | None = None
        super().__init__(model=model, args=args, train_dataset=train_dataset, **rest)
        check_setting(self)
        self.data_collator = PriorityCollator(**vars(self.data_collator))

    def _prepare_dataset(
        self, dataset: Rows, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Rows:
        """TRL's preparation with our columns carried along."""
        if not has_columns(dataset):
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False

        def tokenise(rows: Rows) -> Rows:
            return SFTTrainer._prepare_dataset(self, rows, processing_class, whole, False, None, dataset_name)

        aligner = SpanAligner(self._tokenizer, args.dataset_text_field, self.chat_template, dataset_name)
        return prepare(dataset, tokenise, aligner, args, packing=packing)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*(self._signature_columns or []), *FILL]))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as SFTTrainer does; the prefetch is closed however training ends."""
        self.sign_metrics.start()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._close_stream()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The micro-batches of one optimiser step, weighted, and the counts their losses are divided by.

        The epoch's iterator is wrapped once, so the source reads ahead of training; skipping batches on resume
        happens before, inside the iterator.
        """
        if epoch_iterator is not self._stream_of:
            self._close_stream()
            self._stream_of, self._stream = epoch_iterator, self._weighted(epoch_iterator)
        samples: tuple[list[Batch], Tensor] = super().get_batch_samples(self._stream, num_batches, device)
        return samples

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream_of = self._stream = None

    def _weighted(self, batches: Iterator[Batch]) -> Generator[Batch, None, None]:
        """Each batch with its final `priorities` in place of our other keys; span labels override the source's."""
        with closing(self.priorities.stream(batches)) as stream:
            for batch, values in stream:
                found, ids, labels = batch.pop(DOCUMENTS), batch["input_ids"], batch["labels"]
                weights = torch.from_numpy(place(found, values, tuple(ids.shape))).to(ids.device)
                if SPAN_PRIORITIES in batch:
                    trained = labels != IGNORED
                    trained[:, 0] = False
                    weights = spans.apply(weights, batch.pop(SPAN_PRIORITIES), trained, xp=TORCH)
                self.sign_metrics.see(sum(document.end - document.start for document in found))
                yield {**batch, PRIORITIES: weights}

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor | None:
        """The counts of `loss.count` over the whole global batch: every micro-batch of the step, every process.

        Raises NothingToLearn if no token of it has a weight.
        """
        if not batch_samples:
            return None
        local = torch.stack([count(batch["labels"], batch[PRIORITIES]) for batch in batch_samples]).sum(0).to(device)
        counts: Tensor = self.accelerator.reduce(local)
        if counts[KEPT] == 0:
            raise NothingToLearn(
                f"step {self.state.global_step + 1}: all {int(counts[0])} trained tokens of the global batch have "
                "weight 0; use a larger batch, or a method or parameters that keep more"
            )
        return counts

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """The weighted loss of one micro-batch in training, plain NLL in evaluation."""
        batch = {key: value for key, value in inputs.items() if key not in EXTRAS}
        if not self.model.training:
            return super().compute_loss(model, batch, return_outputs, num_items_in_batch)
        assert num_items_in_batch is not None  # Trainer passes on what _get_num_items_in_batch returned
        router = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**batch, **router, use_cache=False, fused_lm_head=True)
        priorities = shifted(inputs[PRIORITIES])
        if outputs.log_probs.shape != priorities.shape:
            raise WeightError(
                f"the model scored {tuple(outputs.log_probs.shape)} positions, weights are for "
                f"{tuple(priorities.shape)}; adapters that add virtual tokens are not supported"
            )
        weights = self._applied(outputs, priorities)
        self.sign_metrics.add(outputs, priorities, weights)
        rule = self.weighting
        loss = weighted_loss(
            outputs.log_probs, weights, num_items_in_batch, denominator=rule.denominator, negatives=rule.negatives
        )
        loss = loss * self.accelerator.num_processes  # the counts are global and gradients are averaged over processes
        if self.aux_loss_enabled:
            # A mean per micro-batch, as TRL adds it: averaged over the step's micro-batches.
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / self.current_gradient_accumulation_steps
        return loss

    def _applied(self, outputs: Any, priorities: Tensor) -> Tensor:
        """The weights of this step: priorities after the ramp on negatives and the student's factor on positives."""
        rule = self.weighting
        weights = ramped(priorities, rule.ramp, progress(self.state.global_step, self.state.max_steps))
        if rule.student is None:
            return weights
        factor = rule.student(outputs.log_probs, outputs.entropy, outputs.label_mask)
        return torch.where(weights > 0, weights * factor, weights)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with our metrics beside TRL's."""
        if self.model.training:
            report = self.sign_metrics.drain(self.accelerator, self.priorities.wait_seconds)
            self._metrics["train"].update({name: [value] for name, value in report.items()})
            self._total_train_tokens = self.sign_metrics.tokens  # TRL logs it in evaluation
        super().log(logs, start_time)
