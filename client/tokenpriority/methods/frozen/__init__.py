"""Methods of frozen models: the server can do all of it, once, for everyone."""

from __future__ import annotations

from tokenpriority.methods.frozen.excess import FORGETTING, TOKEN_CLEANING
from tokenpriority.methods.frozen.prift import PRIFT_MASS
from tokenpriority.methods.frozen.spans import SPANS
from tokenpriority.methods.frozen.uniform import UNIFORM
from tokenpriority.methods.method import Method
from tokenpriority.methods.student.probability import PRIFT_PROB

FROZEN: tuple[Method, ...] = (UNIFORM, SPANS, PRIFT_PROB, PRIFT_MASS, TOKEN_CLEANING, FORGETTING)
