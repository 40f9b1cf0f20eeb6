"""What the weights of a script's run come from: the server looked at before training, and a resumed run compared.

A client holds a run to the models that it began with; a run that goes on from a checkpoint has another client. So what
makes the weights (models by fingerprint, method, version, parameters, composition) stands in the state of the run, and
with it in every checkpoint. Knows nothing of the command line, which has looked and compared more before its model was
loaded (`preflight.py`, `identity.py`): its CheckpointKeeper takes this out of the trainer.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainingArguments

from tokenpriority_trainer.identity import by_name, check_same, fields
from tokenpriority_trainer.preflight import check_source
from tokenpriority_trainer.source import PrioritySource, ServerSource, StoredSource
from tokenpriority_trainer.store import Provenance
from tokenpriority_trainer.weighting import Weighting

LINEAGE = "tokenpriority_lineage"
"""Key in the run's state under which the fields stand."""

_LOG = logging.getLogger(__name__)


class Lineage(TrainerCallback):
    """Looks at a source as training begins, and puts what it is into the run's state."""

    def __init__(self, source: PrioritySource, weighting: Weighting, tokenizer: PreTrainedTokenizerBase) -> None:
        self._source, self._weighting, self._tokenizer = source, weighting, tokenizer
        self.allow_changes = False
        """Whether a run may go on with other weights than those it began with; a warning names what is other."""

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002  # the signature is transformers'
        state: Any,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Raises ConfigError if the server cannot score for this student, or a resumed run had other weights."""
        present, saved = self._fields(), state.stateful_callbacks.get(LINEAGE)
        at, main = f"checkpoint-{state.global_step}", state.is_world_process_zero
        if saved is not None:
            asks = {"resume": "resume_from_checkpoint", "allow": "train(allow_changes=True)"}
            check_same(saved, present, at=at, allowed=self.allow_changes, main=main, **asks)
        elif state.global_step and main:
            _LOG.warning("%s does not say where its weights came from: whether they are the same is not known", at)
        state.stateful_callbacks[LINEAGE] = present

    def _fields(self) -> dict[str, Any]:
        found: dict[str, Any]
        provenance = self._provenance()
        if provenance is not None:
            made_by = asdict(provenance)
            found = {"fingerprints": made_by.pop("fingerprints"), "priorities": made_by}
        else:
            method, params = getattr(self._source, "made_by", (None, {}))
            found = {"priorities": {"source": type(self._source).__name__, "method": method, "params": params}}
        # What stands before the colon of the first step is the source, which is known better here.
        _, *steps = self._weighting.steps("", spans=False)
        return fields({**found, "composition": by_name(steps)})

    def _provenance(self) -> Provenance | None:
        """What makes the static weights; None if no server does."""
        source = self._source
        if isinstance(source, StoredSource):
            return source.store.provenance
        if not isinstance(source, ServerSource):
            return None
        asked = source.asked
        check_source(asked, None if source.projects else self._tokenizer)
        if source.store is not None:
            return source.store.provenance
        return Provenance.of_server(asked.client, asked.model, asked.method, asked.params)
