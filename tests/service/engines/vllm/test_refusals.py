"""What an engine refuses to start with, and that it says which field is to blame."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WRONG = '''
"""A plugin whose evidence is wrong: off by a little, in vLLM's processes alone."""

import multiprocessing


def register():
    if multiprocessing.parent_process() is None:
        return
    from tokenpriority_service.engines.vllm import pooler

    right = pooler.token_statistics

    def wrong(*args, **kwargs):
        evidence = right(*args, **kwargs)
        evidence[0] -= 3e-4
        return evidence

    pooler.token_statistics = wrong
'''


@pytest.mark.slow
def test_wrong_evidence_is_never_served(
    vllm: Any, open_engine: Callable[..., Any], processes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM loads a second plugin that spoils ours by 3e-4 nats."""
    (tmp_path / "spoiling.py").write_text(WRONG)
    about = tmp_path / "spoiling-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: spoiling\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[vllm.general_plugins]\nspoiling = spoiling:register\n")
    monkeypatch.syspath_prepend(tmp_path)  # as it is here, it is in the processes started from here
    monkeypatch.setenv("VLLM_PLUGINS", "tokenpriority,spoiling")
    others = set(processes.named("EngineCore"))
    with (
        pytest.raises(ValueError, match=r"the self-check failed: .* differ by 0.0003"),
        open_engine(vllm.saved("llama")),
    ):
        pass
    assert set(processes.named("EngineCore")) == others


def checked(count: int = 5) -> Any:
    """[9, n]: evidence and plain statistics that agree."""
    rows = -np.random.default_rng(0).random((9, count)).astype(np.float32)
    rows[6:9] = rows[0:3]
    return rows


@pytest.mark.parametrize("row", [0, 1, 2, 6, 7, 8])
@pytest.mark.parametrize("wrong", [2e-4, -2e-4, np.nan, np.inf])
def test_the_self_check_sees_any_wrong_number(vllm: Any, row: int, wrong: float) -> None:
    from tokenpriority_service.engines.vllm import check

    rows = checked()
    check.compare(rows)
    rows[row, 3] += wrong
    with pytest.raises(ValueError, match="the self-check failed: fast path and log_softmax"):
        check.compare(rows)


@pytest.mark.parametrize(("dtype", "drift"), [("float32", 2e-3), ("float16", 0.1), ("bfloat16", 1.0)])
def test_two_runs_of_the_same_tokens_must_agree(vllm: Any, dtype: str, drift: float) -> None:
    from tokenpriority_service.engines.vllm import check

    row = checked()[0]
    check.compare_runs(row, row + drift / 4, dtype, "runs")
    for wrong in (drift, np.nan):
        with pytest.raises(ValueError, match="the self-check failed: runs differ by"):
            check.compare_runs(row, row + np.float32(wrong), dtype, "runs")


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_evidence_must_stand_at_its_token(vllm: Any, shift: int) -> None:
    """Evidence of a model whose every row depends on all tokens before it, right and shifted by one."""
    from tokenpriority_service.engines.vllm import check

    def evidence(ids: Any) -> Any:
        context = np.cumsum(ids.astype(np.float64) * np.arange(1, len(ids) + 1))[:-1] % 97
        rows = np.stack([context + ids[1:] % 89, context, context % 31]).astype(np.float32)
        return np.roll(rows, shift, axis=1)

    ids = np.arange(40, dtype=np.uint32) * 7 % 50
    changed = {position: evidence(each) for position, each in check.variants(ids, 50).items()}
    assert len(changed) == 3
    if shift == 0:
        check.compare_variants(evidence(ids), changed, "float32")
    else:
        with pytest.raises(ValueError, match="the self-check failed"):
            check.compare_variants(evidence(ids), changed, "float32")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        ({"evidence": "some"}, "evidence: expected one of full, prompt_logprobs, got 'some'"),
        ({"max_model_len": 4096}, r"^model: vLLM cannot run .*max_model_len \(4096\)"),
        ({"tensor_parallel": 3}, r"^model: vLLM cannot run .*4\) must be divisible by tensor parallel size \(3\)"),
        ({"max_batch_tokens": 0}, "^model: vLLM cannot run .*: max_num_batched_tokens.Input should be greater"),
    ],
)
def test_settings_name_their_field(
    vllm: Any, open_engine: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message), open_engine(vllm.saved("llama"), **settings):
        pass


def test_logits_bytes_must_hold_one_row(vllm: Any, llama: Any) -> None:
    """Known before a worker is asked: there it would end the core."""
    from tokenpriority_service.engines.vllm.fast_path import FastPath

    path = FastPath(dtype="float32", logits_bytes=2047)
    with pytest.raises(ValueError, match="logits_bytes: one row of 512 logits takes 2048 bytes, got 2047"):
        asyncio.run(llama._core.call(path.check))
    assert llama.fault is None


def without_weights(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')


def a_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("not a model")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (without_weights, "^model: no weights "),
        (a_file, "^model: no weights "),
        (None, "^model: vLLM cannot run .*/model"),
    ],
)
def test_a_folder_that_holds_no_model(
    vllm: Any, open_engine: Callable[..., Any], tmp_path: Path, made: Callable[[Path], None] | None, message: str
) -> None:
    """One without weights, one with neither weights nor config, and none at all."""
    folder = tmp_path / "model"
    if made is not None:
        folder.mkdir()
        made(folder)
    with pytest.raises(ValueError, match=message), open_engine(folder):
        pass


def test_weights_without_a_config(vllm: Any, open_engine: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^model: vLLM cannot run .*"), open_engine(tmp_path):
        pass
