"""The weights of a whole training set brought into its store, so that training can do without the server.

Knows that the data is prepared exactly as training does it, by the trainer itself. Trains nothing.
"""

from __future__ import annotations

from contextlib import closing

from transformers.utils import logging

from tokenpriority_trainer.calibrated import load_calibration, with_calibration
from tokenpriority_trainer.config import Config, training_arguments
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.holding import Holding, shares
from tokenpriority_trainer.loading import load_tokenizer
from tokenpriority_trainer.run import make_trainer, make_weighting
from tokenpriority_trainer.source import ServerSource
from tokenpriority_trainer.supply import supply


def fetch_weights(config: Config) -> None:
    """Ask the server for every document of the training data that the store lacks, and say how many there were.

    Raises TokenPriorityError as a run does, and ConfigError where there is no server or no store to fill.
    """
    args = training_arguments(config.training)
    calibration = load_calibration(config.priorities)
    config = with_calibration(config, calibration)
    weighting, tokenizer = make_weighting(config.priorities), load_tokenizer(config.model)
    found = supply(config, weighting, tokenizer, args.max_length, calibration=calibration, service_class="bulk")
    with found as (source, _):
        if not isinstance(source, ServerSource) or source.store is None:
            raise ConfigError("--fetch: needs priorities.store, priorities.url, and a method that needs a server")
        trainer = make_trainer(config, args, tokenizer, weighting, source)
        held = Holding.of(trainer, source.store)
        main = trainer.is_world_process_zero()
        with closing(source.stream(shares(trainer))) as stream:
            for _ in logging.tqdm(stream, "fetching", unit=" batches", disable=args.disable_tqdm or not main):
                pass
        trainer.accelerator.wait_for_everyone()
        if main:
            stored, tokens = held.documents - held.missing_documents, held.tokens - held.missing_tokens
            print(
                f"{source.store.path} holds all {held.documents} documents ({held.tokens:,} tokens) of the data: "
                f"{stored} ({tokens:,}) were stored, {held.missing_documents} ({held.missing_tokens:,}) were fetched"
            )
