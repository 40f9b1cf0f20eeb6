"""Whose evidence a rule of the live student reads.

Knows the one choice; knows no rule.
"""

from __future__ import annotations

from tokenpriority.methods.inputs import Source
from tokenpriority.methods.method import Params


class StudentParams(Params):
    """Base of the parameters of a rule its authors give the live student, and that any model's evidence can serve."""

    source: Source = "student"
    """Whose evidence is read: the live student's, as the authors do, or the frozen reference's."""
