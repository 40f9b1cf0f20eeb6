"""What is compared: for each method, where its weights come from and how they become a loss.

Knows names and parameters, the authors' defaults wherever they have any. Knows nothing of data or of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training."""

    name: str
    static: str = "uniform"
    """The method of frozen models whose weights are computed beforehand, as a server does."""
    params: Mapping[str, Any] = field(default_factory=dict)
    live: str | None = None
    """The method that is computed in the forward pass, by itself or as a factor; see `part`."""
    live_params: Mapping[str, Any] = field(default_factory=dict)
    part: str = "method"
    """What the live method is: `method`, `student` or `forget`."""
    labelled: bool = False
    """Whether the unsafe idiom is labelled, with priority -1."""


def _frozen(name: str, **params: Any) -> Recipe:
    return Recipe(_titled(name, params), static=name, params=params)


def _live(name: str, **params: Any) -> Recipe:
    return Recipe(_titled(name, params), live=name, live_params=params)


def _forgetting(name: str, **params: Any) -> Recipe:
    return Recipe(_titled(name, params) + ", labelled", live=name, live_params=params, labelled=True)


def _titled(name: str, params: Mapping[str, Any]) -> str:
    given = " ".join(f"{key}={value}" for key, value in params.items())
    return f"{name} {given}".strip()


_LABELLED = {"forget": "labelled"}

RECIPES: tuple[Recipe, ...] = (
    _frozen("uniform"),
    _frozen("prift_prob"),
    _frozen("prift_mass"),
    _frozen("prift_mass", tau=0.1),
    _frozen("token_cleaning"),
    _frozen("forgetting", scope="sequence"),
    _frozen("t3s"),
    _frozen("xtf_known"),
    _frozen("tis_dpo"),
    _live("dft"),
    _live("bll", alpha=0.5),
    _live("bll_threshold", side="top", tau=0.1),
    _live("bll_threshold", side="bottom", tau=0.1),
    _live("deft"),
    _live("cayley"),
    _live("focal"),
    _live("mile"),
    _live("talr"),
    _live("profit"),
    _live("infosft"),
    _live("eaft"),
    _live("ranktuner"),
    _live("psft"),
    _live("gem"),
    _live("rho1", keep=0.6),
    _live("iw_sft", unit="sequence"),
    _live("iw_sft", unit="token"),
    _live("sstoken_excess"),
    _live("asft"),
    _live("rft", tau=1.0),
    _live("unlikelihood"),
    Recipe("prift_mass tau=0.1 x dft", static="prift_mass", params={"tau": 0.1}, live="dft", part="student"),
    Recipe("uniform, labelled, unlikelihood on labels", labelled=True),
    Recipe("prift_mass tau=0.1, labelled", static="prift_mass", params={"tau": 0.1}, labelled=True),
    Recipe("uniform, labelled, wga factor", labelled=True, live="wga", live_params={"beta": 1.0}, part="forget"),
    _forgetting("graddiff"),
    _forgetting("wga", **_LABELLED),
    _forgetting("satimp", **_LABELLED),
    _forgetting("npo", **_LABELLED),
    _forgetting("simnpo", **_LABELLED),
    _forgetting("tnpo", **_LABELLED),
    _forgetting("wtnpo", **_LABELLED),
    _forgetting("undial", **_LABELLED),
    _forgetting("ce_u", **_LABELLED),
)
"""Static methods, live ones, both together, then those that unlearn what is labelled."""
