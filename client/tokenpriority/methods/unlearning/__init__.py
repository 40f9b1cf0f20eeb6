"""Methods that push tokens down: negative priorities, each with the rule by which they end."""

from __future__ import annotations

from tokenpriority.methods.method import Method
from tokenpriority.methods.unlearning.ascent import GA, GRADDIFF
from tokenpriority.methods.unlearning.ce_u import CE_U
from tokenpriority.methods.unlearning.confidence import SATIMP, WGA
from tokenpriority.methods.unlearning.npo import NPO, SIMNPO
from tokenpriority.methods.unlearning.tnpo import TNPO, WTNPO
from tokenpriority.methods.unlearning.undial import UNDIAL
from tokenpriority.methods.unlearning.unlikelihood import UNLIKELIHOOD

UNLEARNING: tuple[Method, ...] = (GA, GRADDIFF, WGA, SATIMP, NPO, SIMNPO, TNPO, WTNPO, UNDIAL, CE_U, UNLIKELIHOOD)
