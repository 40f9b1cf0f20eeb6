"""Methods of the live student: computed in the trainer, in the forward pass it makes anyway."""

from __future__ import annotations

from tokenpriority.methods.method import Method
from tokenpriority.methods.student.probability import DFT

STUDENT: tuple[Method, ...] = (DFT,)
