"""Methods that hold the live student against a frozen model."""

from __future__ import annotations

from tokenpriority.methods.both.asft import ASFT
from tokenpriority.methods.both.iw_sft import IW_SFT
from tokenpriority.methods.both.rft import RFT
from tokenpriority.methods.both.rho1 import RHO1
from tokenpriority.methods.both.sstoken import SSTOKEN_EXCESS
from tokenpriority.methods.method import Method

BOTH: tuple[Method, ...] = (RHO1, SSTOKEN_EXCESS, IW_SFT, RFT, ASFT)
