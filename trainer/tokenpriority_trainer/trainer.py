"""TRL's SFTTrainer with a signed weight on every token.

Knows where in TRL's loop weights must enter: columns into the dataset, priorities into the batch, counts into the
optimiser step, the weighted loss into the forward pass. Everything else (formats, templates, packing, PEFT, devices,
checkpoints, logging) is TRL's. Knows nothing of files or of the command line.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from trl import SFTConfig, SFTTrainer
from trl.data_utils import get_dataset_column_names

from tokenpriority import Source
from tokenpriority_trainer.alignment import SpanAligner
from tokenpriority_trainer.batches import WeightedBatches
from tokenpriority_trainer.checks import check_arguments, check_evidence, check_setting
from tokenpriority_trainer.choice import use_kernel
from tokenpriority_trainer.collator import (
    COMPLETION,
    EXAMPLES,
    EXTRAS,
    FILL,
    PRIORITIES,
    SEQUENCES,
    PriorityCollator,
)
from tokenpriority_trainer.columns import Rows, has_columns, prepare
from tokenpriority_trainer.composer import Composer
from tokenpriority_trainer.config import Kernel
from tokenpriority_trainer.deferred import DeferredCount, rescale
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.guard import Guard, Watch, allow_step
from tokenpriority_trainer.head import WeightedHead
from tokenpriority_trainer.holding import check_held
from tokenpriority_trainer.lineage import Lineage
from tokenpriority_trainer.local import FrozenCopies
from tokenpriority_trainer.loss import ALL, KEPT, count, shifted, weighted_loss
from tokenpriority_trainer.metrics import SignMetrics
from tokenpriority_trainer.origin import origin
from tokenpriority_trainer.progress import epoch_steps, is_remainder
from tokenpriority_trainer.sample import PrioritySample
from tokenpriority_trainer.sharding import written_whole
from tokenpriority_trainer.source import Batch, PrioritySource, StoredSource
from tokenpriority_trainer.student import Pass, forward, forward_library, forward_weighted
from tokenpriority_trainer.weighting import Weighting


class PrioritySFTTrainer(SFTTrainer):  # type: ignore[misc]  # TRL publishes no types
    """Supervised fine-tuning in which every token counts by its priority.

    `priorities` says where weights come from: `client.source(...)`, an object of `source.py`, or None for the dataset's
    column of this name. `weighting` says how they become a loss, by default as the source's method would have it,
    `local` which frozen models stand beside the student for methods that read more than a server's numbers, `guard`
    which steps are not taken, `kernel` where the loss is computed (the attribute of this name never says `auto`); all
    other arguments are SFTTrainer's, without those that would replace the collator or the loss. Evaluation stays plain
    NLL. Raises ConfigError for settings under which weights would be ignored or counted wrongly.
    """

    data_collator: Any
    _signature_columns: list[str] | None
    loss_is_scaled_for_ga = True  # the denominators count the whole global batch; Trainer must not divide again

    def __init__(
        self,
        model: Any,
        args: SFTConfig | None = None,
        train_dataset: Rows | None = None,
        *,
        priorities: PrioritySource | Source | None = None,
        weighting: Weighting | None = None,
        local: FrozenCopies | None = None,
        kernel: Kernel = "auto",
        guard: Guard | None = None,
        **rest: Any,
    ) -> None:
        if train_dataset is None:
            raise ConfigError("train_dataset: is required")
        columns = get_dataset_column_names(train_dataset)
        self.local = local or FrozenCopies()
        self.priorities, self.weighting = origin(priorities, weighting, columns, self.local.roles)
        check_arguments(args or SFTConfig(), train_dataset, self.priorities, rest)
        check_evidence(self.weighting, self.priorities, self.local)
        self.sign_metrics = SignMetrics()
        self.sample = PrioritySample()
        self._composer = Composer(self.weighting, self.local)
        self._deferred = DeferredCount()
        self._batches = WeightedBatches(self.priorities, self.weighting, self.sample, self.sign_metrics)
        super().__init__(model=model, args=args, train_dataset=train_dataset, **rest)
        check_setting(self)
        self.kernel = use_kernel(kernel, self)
        self._watch = Watch(guard or Guard(), deepspeed=self.is_deepspeed_enabled)
        self.data_collator = PriorityCollator(**vars(self.data_collator))
        if isinstance(self.priorities, StoredSource):
            check_held(self, self.priorities.store)
        roles = (role for role in self.weighting.roles if role == "old" or role in self.local.roles)
        self.local.load(roles, self.model, self._tokenizer)
        self._lineage = Lineage(self.priorities, self.weighting, self._tokenizer)
        self.add_callback(self._lineage)

    def _prepare_dataset(
        self, dataset: Rows, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Rows:
        """TRL's preparation with our columns carried along."""
        if not (has_columns(dataset) or self.weighting.reads_prompt):
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False

        def tokenise(rows: Rows) -> Rows:
            return SFTTrainer._prepare_dataset(self, rows, processing_class, whole, False, None, dataset_name)

        aligner = SpanAligner(self._tokenizer, args.dataset_text_field, self.chat_template, dataset_name)
        return prepare(dataset, tokenise, aligner, args, packing=packing)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*(self._signature_columns or []), COMPLETION, *FILL]))

    def train(self, *args: Any, allow_changes: bool = False, **kwargs: Any) -> Any:
        """Train as SFTTrainer does; the prefetch is closed however training ends.

        A run that goes on from a checkpoint raises ConfigError if its weights come from elsewhere than the
        checkpoint's did, unless `allow_changes`.
        """
        self._lineage.allow_changes = allow_changes
        self.sign_metrics.start()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._batches.close()

    def _run_epoch(self, **kwargs: Any) -> None:
        """One epoch; none of a run resumed at its last step, which Trainer would train a step too far."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The micro-batches of one optimiser step, weighted, and the counts their losses are divided by."""
        self._deferred.clear()
        self._watch.clear()
        self.local.begin_step(self.state.global_step, self.model)
        weighted = self._batches.of(epoch_iterator)
        samples: tuple[list[Batch], Tensor] = super().get_batch_samples(weighted, num_batches, device)
        self.sample.collect(self.state.global_step + 1)
        return samples

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor | None:
        """The counts of `loss.count` over the whole global batch: every micro-batch of the step, every process."""
        if not batch_samples:
            return None
        each = [count(batch["labels"], batch[PRIORITIES], batch[SEQUENCES]) for batch in batch_samples]
        own = torch.stack(each).sum(0)
        examples = own.new_tensor([sum(batch[EXAMPLES] for batch in batch_samples)])
        counts: Tensor
        counts, total = self.accelerator.reduce(torch.cat([own, examples]).to(device)).split([len(own), 1])
        if counts[KEPT] == 0:
            self._watch.leave_out(int(counts[ALL]), is_remainder(self, int(total)), self.state, self.accelerator)
        return counts

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        """Trainer's; what no model takes keeps its dtype, where DeepSpeed has it give floats the model's."""
        own = {key: value for key, value in inputs.items() if key in EXTRAS and isinstance(value, Tensor)}
        return {**super()._prepare_inputs(inputs), **{key: value.to(self.args.device) for key, value in own.items()}}

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """The weighted loss of one micro-batch in training, plain NLL in evaluation."""
        batch = {key: value for key, value in inputs.items() if key not in EXTRAS}
        if not self.model.training:
            return super().compute_loss(model, batch, return_outputs, num_items_in_batch)
        assert num_items_in_batch is not None  # Trainer passes on what _get_num_items_in_batch returned
        rule, factor = self.weighting, self._factor()
        passed = self._pass(model, batch, inputs[PRIORITIES], num_items_in_batch, factor)
        made = self._composer(inputs, passed, factor)
        self.sign_metrics.add(passed, made.decided, made.weights)
        self._watch.add(passed.log_probs, made.decided, made.weights)
        if rule.deferred:
            self._deferred.add_kept(made.decided)
        denominator = "all" if rule.deferred else rule.denominator
        loss = passed.loss
        if loss is None:
            charges = made.positive, made.negative, made.weights
            loss = weighted_loss(*charges, num_items_in_batch, denominator=denominator)
        loss = loss * self.accelerator.num_processes  # the counts are global and gradients are averaged over processes
        if self.aux_loss_enabled:
            # A mean per micro-batch, as TRL adds it: averaged over the step's micro-batches.
            loss = loss + self.router_aux_loss_coef * passed.aux_loss / self.current_gradient_accumulation_steps
        return loss

    def _pass(self, model: Any, batch: Batch, priorities: Tensor, counts: Tensor, factor: float) -> Pass:
        """The student's pass, ending in the weighted loss where our own kernel makes it."""
        rule = self.weighting
        if self.kernel == "chunked":
            weigh = partial(self._composer.tokens, factor=factor)
            head = WeightedHead(shifted(priorities), weigh, counts, rule.negatives, rule.denominator)
            return forward_weighted(model, batch, head)
        if self.kernel != "trl":
            return forward_library(model, batch)
        return forward(
            model,
            batch,
            signals=rule.reads("student"),
            distribution=rule.reads_distribution("student"),
            router=self.aux_loss_enabled,
        )

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Tensor | None = None) -> Tensor:
        """TRL's step; the last of an optimiser step brings in a denominator that only the forward passes gave."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not self.weighting.deferred:
            return loss
        assert num_items_in_batch is not None
        self._deferred.add_loss(loss)
        if not self.accelerator.sync_gradients:
            return loss
        ratio = num_items_in_batch[ALL] / self._deferred.kept(self.accelerator).clamp(min=1)
        rescale(model.parameters(), ratio)
        return loss + self._deferred.correction(ratio)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """TRL's; here, between the last backward pass and the optimiser, the guard judges the step."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        allow_step(not self._watch.judge(norm, self.state, self.accelerator), self.optimizer, self.accelerator)
        return norm

    def _factor(self) -> float:
        """The schedule's factor at this optimiser step."""
        schedule = self.weighting.schedule
        if schedule is None:
            return 1.0
        return schedule.factor(self.state.global_step, self.state.max_steps, epoch_steps=epoch_steps(self))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """TRL's; the model is whole, also under FSDP and also where the checkpoints are not."""
        with nullcontext() if _internal_call else written_whole(self.accelerator):
            super().save_model(output_dir, _internal_call)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with our metrics beside TRL's."""
        if self.model.training:
            report = self.sign_metrics.drain(self.accelerator, self.priorities.wait_seconds)
            report |= self._watch.drain() if report else {}
            self._metrics["train"].update({name: [value] for name, value in report.items()})
            self._total_train_tokens = self.sign_metrics.tokens  # TRL logs it in evaluation
        super().log(logs, start_time)
