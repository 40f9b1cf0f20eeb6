"""LoRA adapters beside their base on one engine, against peft in float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tokenpriority_service.engines import Job


@pytest.fixture(scope="module")
def exact(vllm: Any, folders: dict[str, str]) -> dict[str, Any]:
    """Base and adapters in float64."""
    models = {"base": vllm.load("llama")}
    for name, folder in folders.items():
        models[name] = PeftModel.from_pretrained(vllm.load("llama", torch.float32), folder).double().eval()
    return models


@pytest.fixture(scope="module")
def engines(vllm: Any, open_engine: Callable[..., Any], folders: dict[str, str]) -> Iterator[dict[str, Any]]:
    with open_engine(vllm.saved("llama"), max_batch_tokens=192, adapters=folders) as engine:
        yield {"base": engine, **engine.adapters}


@pytest.mark.slow
def test_all_mixed_in_one_step_equal_peft(vllm: Any, engines: dict[str, Any], exact: dict[str, Any]) -> None:
    """The same ids under each, alone and with the others, then from the middle: no prefix is shared between models."""
    import asyncio

    ids = vllm.jobs(512, 2, 40, 129, 60, seed=41)
    truths = {name: [vllm.truth_of(model, job) for job in ids] for name, model in exact.items()}
    apart = abs(truths["first"][0][0, 1:] - truths["base"][0][0, 1:]).max()
    assert apart > 0.05, "the adapters must show"

    async def run(which: list[str], jobs: list[Job]) -> dict[str, list[Any]]:
        return dict(zip(which, await asyncio.gather(*(engines[name].score(jobs) for name in which)), strict=True))

    later = [Job(job.token_ids, max(1, len(job.token_ids) - 10), top20=True) for job in ids]
    for jobs in (ids, later):
        for which in (["second"], ["base", "first"], ["base", "first", "second"], ["base"]):
            for name, results in asyncio.run(run(which, jobs)).items():
                for rows, job, truth in zip(results, jobs, truths[name], strict=True):
                    vllm.check(rows, job, truth)


@pytest.mark.slow
def test_each_says_who_it_is(engines: dict[str, Any], folders: dict[str, str], llama: Any) -> None:
    infos = {name: engine.info for name, engine in engines.items()}
    assert len({info.fingerprint for info in infos.values()}) == 3
    assert infos["base"].fingerprint == llama.info.fingerprint
    assert infos["first"].model == f"{infos['base'].model} + {folders['first']}"
    assert {info.vocab_size for info in infos.values()} == {512}
    assert [dict(engines[name].adapters) for name in folders] == [{}, {}]
    assert all(engine.fault is None for engine in engines.values())


def changed(folder: str, to: Path, **fields: Any) -> str:
    to.mkdir()
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps(config | fields))
    return str(to)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "adapters.mine: lm_head cannot be adapted"),
        ({"target_modules": ["model.embed_tokens"]}, "adapters.mine: model.embed_tokens cannot be adapted"),
        ({"modules_to_save": ["lm_head"]}, "adapters.mine: lm_head cannot be adapted"),
        ({"peft_type": "IA3"}, "adapters.mine: expected a LoRA adapter"),
        ({"target_modules": "all-linear"}, "adapters.mine: expected a LoRA adapter with a list"),
        ({"r": 1024}, "adapters.mine: expected a rank r of 1 to 512, got 1024"),
    ],
)
def test_what_cannot_be_adapted_is_refused_before_anything_starts(
    vllm: Any, open_engine: Callable[..., Any], folders: dict[str, str], tmp_path: Path, fields: Any, message: str
) -> None:
    wrong = changed(folders["first"], tmp_path / "wrong", **fields)
    with pytest.raises(ValueError, match=message), open_engine(vllm.saved("llama"), adapters={"mine": wrong}):
        pass


def test_a_folder_without_an_adapter_is_refused(vllm: Any, open_engine: Callable[..., Any], tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"adapters.mine: no adapter_config.json in"),
        open_engine(vllm.saved("llama"), adapters={"mine": str(tmp_path)}),
    ):
        pass
