"""Every error the trainer raises on purpose.

TokenPriorityError              (the client's base)
├── ConfigError                 the configuration cannot be run; names the key
├── DataError                   a dataset's spans or priorities do not fit its tokens; names the example
├── WeightError                 a token that is trained on has no usable weight; names the document
├── NothingToLearn              every weight of an optimiser step is zero
├── GuardStop                   an optimiser step was beyond a limit of the guard; names field, value and limit
└── Diverged                    the loss stopped being a finite number
"""

from __future__ import annotations

from tokenpriority.errors import TokenPriorityError


class ConfigError(TokenPriorityError):
    """The configuration cannot be run."""


class DataError(TokenPriorityError):
    """A dataset's spans or priorities do not fit its tokens."""


class WeightError(TokenPriorityError):
    """A token that is trained on has no weight, a weight that is no finite number, or the weight of another token."""


class NothingToLearn(TokenPriorityError):
    """Every weight of an optimiser step is zero: the step would change nothing."""


class Diverged(TokenPriorityError):
    """The negative log-likelihood is no longer finite; going on would only write broken weights."""


class GuardStop(TokenPriorityError):
    """An optimiser step was beyond a limit of the guard and was not taken; the last checkpoint is as it was."""
