"""The process group that a training leaves behind, ended before the interpreter is.

Knows that torch's gloo threads may hold tensors with Python objects in the interpreter's last moments, where letting
go of one aborts the process after all its work is done (pytorch/pytorch#190489). Begins no group: accelerate does.
"""

from __future__ import annotations

import gc

from accelerate import PartialState


def end_group() -> None:
    """End the group, where there is one; every process of it calls this, after its last collective.

    Not for a process that has failed: another may still wait for it in a collective, and this would wait with it.
    """
    gc.collect()  # of a trainer that is gone, cycles still hold the group, and the group its threads
    PartialState().destroy_process_group()
