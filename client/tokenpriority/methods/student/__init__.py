"""Methods of the live student: computed in the trainer, in the forward pass it makes anyway.

A rule with the parameter `source` reads the frozen reference's evidence as well, and then a server can run it. What is
taken over a micro-batch there is taken over the one sequence a server weighs at a time.
"""

from __future__ import annotations

from tokenpriority.methods.method import Method
from tokenpriority.methods.student.bll import BLL, BLL_THRESHOLD
from tokenpriority.methods.student.deft import CAYLEY, DEFT
from tokenpriority.methods.student.eaft import EAFT
from tokenpriority.methods.student.focal import FOCAL
from tokenpriority.methods.student.gem import GEM
from tokenpriority.methods.student.infosft import INFOSFT
from tokenpriority.methods.student.mile import MILE
from tokenpriority.methods.student.probability import DFT
from tokenpriority.methods.student.profit import PROFIT
from tokenpriority.methods.student.psft import PSFT
from tokenpriority.methods.student.ranktuner import RANKTUNER
from tokenpriority.methods.student.talr import TALR

STUDENT: tuple[Method, ...] = (
    DFT,
    BLL,
    BLL_THRESHOLD,
    DEFT,
    CAYLEY,
    FOCAL,
    TALR,
    PROFIT,
    INFOSFT,
    EAFT,
    MILE,
    RANKTUNER,
    GEM,
    PSFT,
)
