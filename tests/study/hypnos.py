"""Stands in for the `hypnos` command, so that a runner's tests need not wait for training.

`train` fails as often as the file FAILS says, then writes a run's metrics; `eval` prints them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

ORIGIN = {"machine": "a stand-in", "commit": "0123abc", "date": "2026-01-01"}


def main(verb: str, *rest: str) -> int:
    if verb == "eval":
        passes = rest[rest.index("--passes") + 1 :]
        for n in map(int, passes):
            print(json.dumps({"passes": n, "loss": 1.0 / n, "accuracy": {"hops_1": 0.25 * n}}))
        return 0
    settings = dict(r.split("=", 1) for r in rest if "=" in r)
    run = Path(settings["run.dir"]) / settings["run.name"]
    run.mkdir(parents=True, exist_ok=True)
    (run / "cards").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    with (run / "origins.jsonl").open("a") as origins:  # `pretrain.origin` would load torch
        origins.write(json.dumps(ORIGIN) + "\n")
    with (run / "starts").open("a") as starts:
        starts.write("x")
    fails = run.parents[1] / "FAILS"
    if fails.exists() and len((run / "starts").read_text()) <= int(fails.read_text()):
        return 1
    if (run.parents[1] / "SLOW").exists():
        time.sleep(60)
    rows = [{"kind": "eval", "step": 0, "passes": 1, "loss": 2.0, "accuracy": {"hops_1": 0.1}}]
    for step in (5, 10):
        speed = {"tokens": 100 * step, "tokens_per_s": 50.0, "flops_per_s": 1e6}
        rows.append({"kind": "train", "step": step, "loss": 2.0 - step / 10, **speed})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
