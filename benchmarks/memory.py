"""Peak memory of one training step by recomputation policy and number of passes N.

Every row is a fresh process: the peak of its resident memory during forward and backward, less what it
held before. Beside it stands what a policy "unit" must store, counted: (h, S) of every (window, pass).

    python -m benchmarks.memory            # 12 rows, about ten minutes
    python -m benchmarks.memory --help
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

ROWS, WINDOW, WINDOWS, WIDTH = 8, 128, 4, 256


def resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(policy: str, passes: int) -> dict[str, float]:
    """One step in this process. Returns bytes and seconds."""
    import torch

    from parallel import mesh
    from pretrain.batch import IGNORE, Batch
    from pretrain.config import ModelConfig, SleepConfig
    from pretrain.model import HybridLM

    torch.set_num_threads(1)
    mesh.initialize()
    config = ModelConfig(d_model=WIDTH, layers=["attention", "delta"] * 2, vocab_size=512, mlp_width=4 * WIDTH)
    model = HybridLM(config, SleepConfig(passes=passes, window=WINDOW, when="context")).initialize(0)
    length = WINDOW * WINDOWS
    tokens = torch.randint(0, 512, (ROWS, length), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    targets[:, : length - WINDOW] = IGNORE  # only the last window is scored: the others sleep
    starts = torch.zeros(ROWS, WINDOWS, dtype=torch.bool)
    starts[:, 0] = True
    batch = Batch(tokens, targets, torch.ones_like(tokens, dtype=torch.bool), starts, torch.zeros(ROWS).bool())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    before, peak, done = resident(), 0, threading.Event()

    def step() -> None:
        model(batch, recompute=policy).loss.backward()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    done.set()
    watcher.join()
    begin = time.perf_counter()
    step()
    seconds = time.perf_counter() - begin
    mesh.shutdown()
    S = sum(b == "delta" for b in config.layers) * config.delta_value_heads * 64 * 64
    units = (WINDOWS - 1) * passes + 1
    return {"peak": peak - before, "seconds": seconds, "stored": units * 4 * ROWS * (WINDOW * WIDTH + S)}


def in_a_process(policy: str, passes: int, settings: dict[str, str]) -> dict[str, float]:
    """`measure` in a fresh process with these environment variables."""
    command = [sys.executable, "-m", "benchmarks.memory", "--one", policy, str(passes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | settings
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    row: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Runs the rows and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("POLICY", "N"), help="measure one row in this process, print JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    print(f"{ROWS} rows of {WINDOWS} windows of {WINDOW} tokens, D = {WIDTH}, 4 blocks, fp32, CPU\n")
    print("| recompute | N | peak MiB | vs N=1 | (h, S) of all units, MiB | step time vs none |")
    print("|---|---|---|---|---|---|")
    seconds: dict[tuple[str, int], float] = {}
    for policy in ("none", "block", "unit"):
        first = 0.0
        for passes in (1, 2, 4, 8):
            row = in_a_process(policy, passes, {})
            # glibc then gives freed tensors back at once: what is resident is what is held.
            row["peak"] = in_a_process(policy, passes, {"MALLOC_MMAP_THRESHOLD_": "65536"})["peak"]
            first = first or row["peak"]
            seconds[policy, passes] = row["seconds"]
            print(
                f"| {policy} | {passes} | {row['peak'] / 2**20:.0f} | {row['peak'] / first:.2f} "
                f"| {row['stored'] / 2**20:.0f} | {row['seconds'] / seconds['none', passes]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
