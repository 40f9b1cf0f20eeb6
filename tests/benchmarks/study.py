"""Every method on the demo's data: three noise levels, with the unsafe idiom planted, three seeds.

    python tests/benchmarks/study.py [--out FOLDER] [--quick] [--json]

Small models of the Python standard library's sources, fine-tuned on text of which some tokens are replaced at random
and some lines are an unsafe idiom. For each recipe: the NLL of clean held-out text, the NLL of the replaced tokens, the
probability of the idiom, and steps per second. All recipes of one noise level and seed have the same data in the same
order, and no method's parameters or learning rate were tuned to it. A run that was stopped goes on where it was.

Writes FOLDER/findings.jsonl, table.md and figure.svg. Says what was measured, not which method is good elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("study"), help="folder of models and findings")
    parser.add_argument("--quick", action="store_true", help="one noise level, one seed")
    parser.add_argument("--only", help="recipes whose name begins with one of these, comma-separated")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    import datasets
    import torch
    import transformers

    from comparison.conditions import NOISE, Conditions
    from comparison.findings import Findings, figure, table
    from comparison.recipes import RECIPES
    from comparison.training import study

    torch.set_num_threads(1)  # steps this short gain nothing from a second thread
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    conditions = Conditions(options.out)
    findings = Findings(options.out / "findings.jsonl")
    chosen = [
        recipe for recipe in RECIPES if not options.only or recipe.name.startswith(tuple(options.only.split(",")))
    ]
    for seed in range(1 if options.quick else 3):
        for noise in NOISE[1:2] if options.quick else NOISE:
            left = [recipe for recipe in chosen if not findings.has((noise, seed, recipe.name))]
            condition = conditions.make(noise, seed) if left else None
            for recipe in left:
                assert condition is not None
                findings.add(study(conditions, condition, recipe))
                print(f"noise {noise:.0%}, seed {seed}: {findings.rows[-1]}", file=sys.stderr, flush=True)
    (options.out / "table.md").write_text(table(findings.rows))
    (options.out / "figure.svg").write_text(figure(findings.rows))
    print(table(findings.rows))
    if options.json:
        print(json.dumps({"trainings": len(findings.rows), "failed": sum(bool(row.failure) for row in findings.rows)}))


if __name__ == "__main__":
    main()
