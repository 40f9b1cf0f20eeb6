"""`python -m tokenpriority_trainer CONFIG.toml`, and through it `accelerate launch -m tokenpriority_trainer ...`."""

from __future__ import annotations

import typer

from tokenpriority_trainer.command import train

if __name__ == "__main__":
    typer.run(train)
