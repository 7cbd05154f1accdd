"""Compares the training speed of this tree with that of an earlier commit, in turns.

Each turn is a short run of `hypnos train`, in a process of its own, in a copy of that commit. The
logged tokens per second after warm-up are compared, data and optimiser included: the best turn of
each.

    python -m benchmarks.since 5bee91b configs/depo-small.toml sleep.passes=4    # minutes
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from benchmarks.command import described
from pretrain.origin import commit, processor

ROOT = Path(__file__).parents[1]
STEPS, WARM, TURNS = 60, 20, 4


def tokens_per_second(tree: Path, config: str, overrides: list[str], run: Path) -> float:
    """The speed of a short run in a copy of the sources."""
    settings = [
        f"run.dir={run}", "run.name=run", f"train.steps={STEPS}", "train.log_every=5",
        "optimizer.warmup=1", "optimizer.decay=1", *overrides,
    ]  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "launch", "train", config, *settings],
        cwd=tree, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    with (run / "run/metrics.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    return max(row["tokens_per_s"] for row in rows if "tokens_per_s" in row and row["step"] > WARM)


def main() -> None:
    """Prints one line."""
    parser = described(__doc__)
    parser.add_argument("commit", metavar="COMMIT", help="that it is compared with")
    parser.add_argument("config", metavar="CONFIG", help="a TOML that both know")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        before = Path(place) / "before"
        before.mkdir()
        archive = subprocess.run(
            ["git", "archive", given.commit], cwd=ROOT, check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x"], cwd=before, input=archive, check=True)
        rates: dict[Path, float] = {before: 0.0, ROOT: 0.0}
        for turn in range(TURNS):
            for tree in rates:
                run = Path(place) / f"{tree.name}-{turn}"
                rate = tokens_per_second(tree, given.config, given.overrides, run)
                rates[tree] = max(rates[tree], rate)
    told = " ".join([given.config, *given.overrides])
    print(
        f"{told}: {rates[ROOT]:,.0f} tokens/s, {rates[before]:,.0f} at {given.commit}: "
        f"**{rates[ROOT] / rates[before]:.2f}x** ({processor()}, {date.today()}, commit {commit()})"
    )


if __name__ == "__main__":
    main()
