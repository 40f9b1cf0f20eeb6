"""Methods of frozen models: the server can do all of it, once, for everyone."""

from __future__ import annotations

from tokenpriority.methods.frozen.cdpo import CDPO
from tokenpriority.methods.frozen.excess import FORGETTING, TOKEN_CLEANING
from tokenpriority.methods.frozen.prift import PRIFT_MASS
from tokenpriority.methods.frozen.shad import SHAD
from tokenpriority.methods.frozen.spans import SPANS
from tokenpriority.methods.frozen.t3s import T3S
from tokenpriority.methods.frozen.tis_dpo import TIS_DPO
from tokenpriority.methods.frozen.uniform import UNIFORM
from tokenpriority.methods.frozen.wit import WIT
from tokenpriority.methods.frozen.xtf import XTF_KNOWN
from tokenpriority.methods.method import Method
from tokenpriority.methods.student.probability import PRIFT_PROB

FROZEN: tuple[Method, ...] = (
    UNIFORM,
    SPANS,
    WIT,
    PRIFT_PROB,
    PRIFT_MASS,
    XTF_KNOWN,
    TOKEN_CLEANING,
    FORGETTING,
    T3S,
    SHAD,
    TIS_DPO,
    CDPO,
)
