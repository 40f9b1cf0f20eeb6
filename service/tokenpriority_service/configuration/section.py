"""What every section of the configuration is: frozen, closed, documented field by field.

Knows how a section treats keys and values. Knows none of the sections.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the TOML file; unknown keys are errors, the docstring under a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
