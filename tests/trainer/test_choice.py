"""Which kernel a trainer gets, and the reason in one line where it cannot get the one it asks for."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma2Config, Gemma2ForCausalLM, PhiConfig, PhiForCausalLM

from tokenpriority_trainer import Weighting
from tokenpriority_trainer.choice import use_kernel
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.libraries import Library, beyond

Make = Callable[..., Any]

REFUSED: dict[str, tuple[Weighting, str]] = {
    "micro-batch": (Weighting.of("focal"), "'focal' decides over a batch"),
    "signals": (Weighting.of("eaft"), "'eaft' reads more than the student's log-prob and entropy: .*entropy_top20"),
    "neighbours": (Weighting.of("profit", {"mode": "random"}), "'profit' reads more than .*token ids"),
    "losses": (Weighting.of("gem"), "'gem' reads labels or the prompt, or gives losses"),
    "deferred": (Weighting.of("dft", denominator="kept"), "'kept' with a live method"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_trls_head_is_refused_by_name_and_falls_back_under_auto(
    name: str, make_trainer: Make, weighted: Make
) -> None:
    rule, what = REFUSED[name]
    trainer = make_trainer(weighted(1.0), rule)
    assert trainer.kernel == "trl"
    with pytest.raises(ConfigError, match=f"kernel: 'chunked' cannot be had here: .*{what}"):
        use_kernel("chunked", trainer)


def test_without_being_asked_a_trainer_on_a_cpu_gets_our_own(make_trainer: Make, weighted: Make) -> None:
    trainer = make_trainer(weighted(1.0), Weighting.of("dft"))
    assert trainer.kernel == "chunked"
    assert use_kernel("trl", trainer) == "trl"


READS_MORE: dict[str, tuple[Library, Weighting, str]] = {
    "a signal": (
        "liger",
        Weighting.of("eaft"),
        "'eaft' reads the student's entropy_top20.*liger gives entropy and logprob",
    ),
    "the distribution": ("cce", Weighting.of("gem"), "'gem' reads the student's whole distribution.*cce gives logprob"),
}


@pytest.mark.parametrize("name", READS_MORE)
def test_a_library_is_refused_to_a_method_that_reads_more(name: str, make_trainer: Make, weighted: Make) -> None:
    library, rule, what = READS_MORE[name]
    with pytest.raises(ConfigError, match=f"kernel: '{library}' cannot be had here: {what} alone"):
        use_kernel(library, make_trainer(weighted(1.0), rule))


@pytest.mark.parametrize(("library", "module"), [("liger", "liger_kernel"), ("cce", "cut_cross_entropy")])
def test_a_library_that_is_not_installed_is_refused(
    library: Library, module: str, make_trainer: Make, weighted: Make
) -> None:
    if find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    with pytest.raises(ConfigError, match=rf"is not installed: pip install 'tokenpriority\[{library}\]'"):
        use_kernel(library, make_trainer(weighted(1.0)))


def installed(folder: Path, package: str, version: str) -> str:
    """A folder in which pip would list a package of this version."""
    metadata = folder / f"{package.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return str(folder)


def test_liger_before_0_8_2_is_refused_whatever_else_is_missing(
    make_trainer: Make, weighted: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(weighted(1.0))
    monkeypatch.syspath_prepend(installed(tmp_path / "old", "liger-kernel", "0.8.1"))
    with pytest.raises(ConfigError, match=r"liger-kernel is 0\.8\.1, and must be 0\.8\.2 or later \(.* in silence\)"):
        use_kernel("liger", trainer)
    monkeypatch.syspath_prepend(installed(tmp_path / "new", "liger-kernel", "0.8.10"))
    with pytest.raises(ConfigError, match="liger needs a CUDA device, and the model is on cpu"):
        use_kernel("liger", trainer)


def test_what_a_library_cannot_do_to_logits_is_refused_by_name() -> None:
    sizes: Any = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "pad_token_id": 0}
    heads: Any = {"num_attention_heads": 2, "num_key_value_heads": 2}
    make: Any = (PhiForCausalLM, Gemma2ForCausalLM)  # untyped
    biased = make[0](PhiConfig(**sizes, **heads))
    capped = make[1](Gemma2Config(**sizes, **heads, head_dim=4, final_logit_softcapping=30.0))
    assert beyond("liger", biased) == "liger adds no bias to the logits, and the model's lm head has one"
    assert beyond("cce", biased) == "cce adds no bias to the logits, and the model's lm head has one"
    assert beyond("liger", capped) == "liger caps no logits, and the model's are capped at 30 (final_logit_softcapping)"
    assert beyond("cce", capped) is None
