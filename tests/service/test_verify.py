"""`tokenpriority verify`: real models, real processes; engines that are right, wrong, or do not start."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner, Result

from tokenpriority.evidence import ENGINE_SIGNALS, OPTIONAL_SIGNALS, SIGNALS
from tokenpriority_service import engines
from tokenpriority_service.verify import verification
from tokenpriority_service.verify.apart import Failed, run_apart
from tokenpriority_service.verify.command import verify
from tokenpriority_service.verify.comparison import TOLERANCES, SignalError, compare, window
from tokenpriority_service.verify.memory import free_memory, place
from tokenpriority_service.verify.plain import Plain, run_plain
from tokenpriority_service.verify.report import print_report, to_json
from tokenpriority_service.verify.sequences import make_sequences
from tokenpriority_service.verify.verification import Route, Verification, verify_model


@pytest.fixture(scope="module")
def found(checkpoints: dict[str, Path]) -> Verification:
    """Against transformers: the torch engine; one that does not start; one with the weights of another model."""
    routes = [
        Route("torch", "torch", {"threads": 1}),
        Route("torch on a tpu", "torch", {"device": "tpu"}),
        Route("another model", "torch", {"model": str(checkpoints["base"]), "threads": 1}),
    ]
    return verify_model(str(checkpoints["reference"]), routes=routes, count=8, longest=60)


def only(found: Verification, *names: str) -> Verification:
    """The verification as if these engines alone had been asked for."""
    kept = [each for each in found.outcomes if each.name in names or each.name.startswith("transformers")]
    return dataclasses.replace(found, outcomes=kept)


def report(found: Verification) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(found, console)
    return console.export_text()


def test_an_engine_that_is_right_agrees(found: Verification) -> None:
    plain, exact, engine, *_ = found.outcomes
    assert found.truth == "transformers float64"
    assert (found.sequences, found.longest) == (8, 60)
    assert engine.judged
    assert engine.agrees
    assert only(found, "torch").agrees
    assert [each.signal for each in engine.errors] == list(ENGINE_SIGNALS)
    assert [each.signal for each in plain.errors] == list(ENGINE_SIGNALS)
    assert exact.errors == []  # it is the truth
    assert all(
        0 < each.greatest < 1e-4 for each in engine.errors[:3]
    )  # two implementations in float32: near, not equal
    assert all(each.tokens_per_second and each.load_seconds for each in (plain, exact, engine))
    assert len(engine.fingerprint) == 32


def test_an_engine_that_does_not_start_is_a_row(found: Verification) -> None:
    broken = found.outcomes[3]
    assert broken.failure == "device: expected one of cpu, cuda, got 'tpu'"
    assert not broken.judged
    assert broken.failure in report(found)
    assert only(found, "torch", "torch on a tpu").agrees  # what was compared agrees
    assert not only(found, "torch on a tpu").agrees  # nothing was
    assert "No engine could be compared" in report(only(found, "torch on a tpu"))


def test_the_report_states_errors_tolerances_and_versions(found: Verification) -> None:
    found = only(found, "torch", "torch on a tpu")
    text = report(found)
    for words in ("greatest 0.0001", "torch and transformers float64 agree", found.outcomes[2].fingerprint, "tokens/s"):
        assert words in text, text
    body = json.loads(to_json(found))
    assert body["agrees"] is True
    assert {"tokenpriority", "torch", "transformers"} <= set(body["versions"])
    path = {each["name"]: each for each in body["paths"]}
    assert path["torch"]["signals"]["logprob"]["allowed_greatest"] >= TOLERANCES["float32"].greatest
    assert path["torch"]["signals"]["rank"] == {
        **{"greatest": 0.0, "mean": 0.0, "allowed_greatest": None, "allowed_mean": 0.0, "agrees": True}
    }
    assert path["torch on a tpu"]["agrees"] is None


def test_an_engine_that_is_wrong_disagrees(found: Verification) -> None:
    errors = {each.signal: each for each in found.outcomes[4].errors}
    assert errors["logprob"].greatest > 0.1
    assert not any(errors[signal].agrees for signal in ("logprob", "entropy", "top1_logprob", "rank", "mass_above"))
    assert not found.agrees
    assert "another model and transformers float64 disagree" in report(found)


def test_bfloat16_is_judged_by_what_it_costs(checkpoints: dict[str, Path]) -> None:
    """Both on the same rounded weights, one sequence of each length."""
    sequences = make_sequences(range(512), 4, 60)
    plain, exact = (
        run_plain(str(checkpoints["reference"]), "bfloat16", precision, sequences, window("bfloat16"))
        for precision in ("bfloat16", "float64")
    )
    errors = compare(plain.values, ENGINE_SIGNALS, exact, "bfloat16", [])
    assert 1e-3 < errors[0].greatest < TOLERANCES["bfloat16"].greatest
    assert all(each.agrees for each in compare(plain.values, ENGINE_SIGNALS, exact, "bfloat16", errors))
    assert not all(each.agrees for each in compare(plain.values, ENGINE_SIGNALS, exact, "float32", []))


def test_without_float64_transformers_in_the_dtype_is_the_truth() -> None:
    plain = truth_of((0, 0))
    exact = Failed("float64 needs 9.0 GiB, 1.0 GiB are free")
    truth, rows = verification._transformers(plain, exact, "float32", 10)
    assert truth is plain
    assert [each.failure for each in rows] == [None, exact.reason]
    assert verification._transformers(exact, exact, "float32", 10)[0] is exact


def test_the_truth_is_the_definitions_in_float64(checkpoints: dict[str, Path]) -> None:
    """Against plain Python loops over the same logits, and the intervals against every order rounding may make."""
    ids, window = make_sequences(range(512), 1, 12)[0], 0.05
    plain = run_plain(str(checkpoints["reference"]), "float32", "float64", [ids], window)
    load: Any = AutoModelForCausalLM.from_pretrained
    model = load(checkpoints["reference"], dtype=torch.float64).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0].tolist()
    for position, (z, y) in enumerate(zip(logits, ids[1:].tolist(), strict=False)):
        total = math.fsum(map(math.exp, z))
        q = [math.exp(each) / total for each in z]
        above = [v for v in range(len(z)) if z[v] > z[y]]
        near = [v for v in range(len(z)) if v != y and abs(z[v] - z[y]) <= window]
        surely = [v for v in above if v not in near]
        top = sorted(q)[-20:]
        top20 = -math.fsum(p / math.fsum(top) * math.log(p / math.fsum(top)) for p in top)
        entropy = -math.fsum(p * math.log(p) for p in q)
        expected = [math.log(q[y]), entropy, math.log(max(q)), 1 + len(above), sum(q[v] for v in above), 0.0, top20]
        np.testing.assert_allclose(plain.values[:, position], expected, rtol=0, atol=1e-9)
        assert plain.low[3, position] == 1 + len(surely)
        assert plain.high[3, position] == 1 + len(surely) + len(near)
        np.testing.assert_allclose(plain.low[4, position], sum(q[v] for v in surely), atol=1e-9)
        np.testing.assert_allclose(plain.high[5, position], sum(q[v] for v in near), atol=1e-9)


def truth_of(rank: tuple[float, float]) -> Plain:
    low, high = np.zeros((2, 7, 10))
    low[3], high[3] = rank
    return Plain(low, low, high, 1.0, 1.0)


@pytest.mark.parametrize(
    ("error", "agrees"),
    [(0.0, True), (9e-5, False), (9e-6, True), (2e-4, False), (np.nan, False), (np.inf, False)],
)
def test_greatest_and_mean_error_are_judged(error: float, agrees: bool) -> None:
    values = np.zeros((6, 10), np.float32)
    values[0] = error
    logprob, entropy, *_ = compare(values, SIGNALS, truth_of((0, 0)), "float32", [])
    assert (logprob.agrees, entropy.agrees) == (agrees, True)


def test_a_rank_is_right_within_what_the_window_allows() -> None:
    values = np.zeros((6, 10), np.float32)
    for rank, share in ((4, 0.0), (6, 0.0), (3, 1.0), (7, 1.0)):
        values[3] = rank
        found = compare(values, ("rank",), truth_of((4, 6)), "float32", [])
        assert [(each.signal, each.mean, each.agrees) for each in found] == [("rank", share, share == 0)]
    values[3] = [7, *[5] * 9]
    assert compare(values, ("rank",), truth_of((4, 6)), "bfloat16", [])[0].mean == 0.1


def test_transformers_own_errors_widen_what_is_allowed() -> None:
    values = np.full((6, 10), 3e-4, np.float32)
    yardstick = [SignalError("logprob", 2e-4, 2e-4, 0, 0)]
    logprob, entropy = compare(values, ("logprob", "entropy"), truth_of((0, 0)), "float32", yardstick)
    assert (logprob.agrees, entropy.agrees) == (True, False)
    assert window("float32") == 2e-4


def test_sequences_are_the_same_everywhere_and_of_all_lengths() -> None:
    vocabulary = range(3, 500, 2)
    first, again = (make_sequences(vocabulary, 12, 100) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert [len(each) for each in first[:2]] == [100, 1]
    assert all(1 < len(each) <= 100 for each in first[2:])
    assert set(np.concatenate(first).tolist()) <= set(vocabulary)
    shared = first[8][: len(first[8]) // 2]
    assert np.array_equal(shared, first[0][: len(shared)])
    assert not np.array_equal(make_sequences(vocabulary, 12, 100, seed=1)[0], first[0])


@pytest.mark.parametrize(
    ("function", "arguments", "reason"),
    [
        ("abort", (), "its process ended without a word: killed, or out of memory"),
        ("remove", ("/no/such/file",), "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'"),
    ],
)
def test_what_fails_apart_is_a_reason(function: str, arguments: tuple[Any, ...], reason: str) -> None:
    assert run_apart(getattr(os, function), *arguments) == Failed(reason)


def test_standard_output_is_the_reports_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_apart(print, "said by a library") is None
    out, err = capfd.readouterr()
    assert out == ""
    assert "said by a library" in err


def test_memory_is_found_or_refused() -> None:
    assert free_memory() > 1 << 20
    with pytest.raises(ValueError, match=r"float64 needs 1048576\.0 GiB, .* GiB are free"):
        place(1 << 50, "float64")


def invoke(*options: str) -> Result:
    app = typer.Typer()
    app.command()(verify)
    return CliRunner().invoke(app, options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "/no/such/folder"), "--model: no such folder: /no/such/folder"),
        (("--model", "x", "--dtype", "int8"), "--dtype: must be one of float32, bfloat16, float16, got 'int8'"),
    ],
)
def test_options_that_cannot_be_used(options: tuple[str, ...], words: str) -> None:
    done = invoke(*options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("engine", "status"), [("torch", 0), ("another model", 1), ("torch on a tpu", 1)])
def test_the_exit_status_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch, found: Verification, engine: str, status: int
) -> None:
    monkeypatch.setattr(verification, "verify_model", lambda *_, **__: only(found, engine))
    monkeypatch.setattr(engines, "missing", lambda kind: None)
    assert invoke("--model", "x").exit_code == status
    done = invoke("--model", "x", "--json")
    assert (done.exit_code, json.loads(done.stdout)["agrees"]) == (status, status == 0)


@pytest.mark.slow
@pytest.mark.timeout(900)  # five processes that each import torch, two of which start vLLM
def test_vllm_agrees_with_transformers(tmp_path: Path) -> None:
    """Both of vLLM's paths, as the command runs them; the smallest heads vLLM's CPU attention has."""
    pytest.importorskip("vllm")
    shape: dict[str, Any] = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(**shape, num_attention_heads=2, max_position_embeddings=128, initializer_range=0.3)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM  # untyped
    model(config).save_pretrained(tmp_path)
    done = invoke("--model", str(tmp_path), "--sequences", "8", "--longest", "100", "--json")
    assert done.exit_code == 0, done.output
    body = json.loads(done.stdout)
    full, own = body["paths"][2:]
    assert (full["agrees"], own["agrees"], full["failure"], own["failure"]) == (True, True, None, None)
    assert set(full["signals"]) == {*SIGNALS, *OPTIONAL_SIGNALS}
    assert set(own["signals"]) == {"logprob", "rank"}
