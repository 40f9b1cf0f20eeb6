"""A calibration that the configuration names: the method and threshold it gives, and the models these belong to.

Knows the file and what must agree with it. Knows nothing of how a threshold is found: that is the client's
`calibration.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenpriority import Calibration
from tokenpriority_trainer.config import Config, PrioritiesSection
from tokenpriority_trainer.errors import ConfigError

FILE = "calibration.json"
"""The copy's name in the run's folder."""


def load_calibration(settings: PrioritiesSection) -> Calibration | None:
    """The calibration of these settings; None if they name none.

    Raises ConfigError if the file is not there or not a calibration, or the run has no server to compare it with.
    """
    if settings.calibration is None:
        return None
    if settings.url is None and settings.store is None:
        raise ConfigError(
            "priorities.calibration: holds for the models of a server only; set priorities.url or priorities.store"
        )
    try:
        return Calibration.load(settings.calibration)
    except OSError as error:
        raise ConfigError(f"priorities.calibration: {settings.calibration}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"priorities.calibration: {error}") from None


def with_calibration(config: Config, calibration: Calibration | None) -> Config:
    """The configuration with the calibration's method and parameters."""
    if calibration is None:
        return config
    given = {"method": calibration.method, "params": calibration.params}
    return config.model_copy(update={"priorities": config.priorities.model_copy(update=given)})


def check_models(calibration: Calibration, fingerprints: Mapping[str, str]) -> None:
    """Raises ConfigError if the models of this run, fingerprint by name, are not those that were calibrated."""
    for name in sorted(set(fingerprints) | set(calibration.fingerprints)):
        made, now = calibration.fingerprints.get(name), fingerprints.get(name)
        if made != now:
            raise ConfigError(
                f"priorities.calibration: was made with {_called(name, made)}, this run has {_called(name, now)}: "
                "calibrate again"
            )


def keep_copy(calibration: Calibration, folder: Path) -> None:
    """Write the calibration beside the run's other files."""
    folder.mkdir(parents=True, exist_ok=True)
    calibration.save(folder / FILE)


def _called(name: str, fingerprint: str | None) -> str:
    return f"no model {name!r}" if fingerprint is None else f"model {name!r} of fingerprint {fingerprint}"
