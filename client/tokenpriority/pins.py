"""What this run began with, so that numbers of two models are never mixed.

Knows fingerprints of models and versions of methods by name. Knows nothing of how they are made.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET

from tokenpriority.errors import FingerprintChanged
from tokenpriority.schema import CoverageResponse, PriorityResponse


class Pins:
    """The fingerprint of each model and the version of each method that has answered in this run."""

    def __init__(self) -> None:
        self.fingerprints: dict[str, str] = {}
        self._versions: dict[str, int] = {}

    def pin(self, fingerprints: Mapping[str, str]) -> None:
        """Begin with these models. Raises FingerprintChanged if one of them has answered as another."""
        for name, fingerprint in fingerprints.items():
            pinned = self.fingerprints.setdefault(name, fingerprint)
            if pinned != fingerprint:
                raise FingerprintChanged(
                    f"model {name!r} had the fingerprint {pinned} at the start of this run, now {fingerprint}"
                )

    def check(self, response: PriorityResponse | CoverageResponse) -> None:
        """Pin on first sight. Raises FingerprintChanged if a model or the method is another than before."""
        models = [response.model] if response.base is UNSET else [response.model, response.base]
        self.pin({model.name: model.fingerprint for model in models})
        if isinstance(response, CoverageResponse):
            return
        method = response.method
        version = self._versions.setdefault(method.name, method.version)
        if version != method.version:
            raise FingerprintChanged(
                f"method {method.name!r} had version {version} at the start of this run, now {method.version}"
            )
