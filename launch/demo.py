"""`make demo`: the whole story on this machine, as the commands that a user would type.

    on one core   the paper's question, multi-hop retrieval, is trained with N = 4 passes; then the
                  text model is evaluated, and continues a prompt
    on another    a corpus that every machine has becomes a tokenizer and webdataset shards, a small
                  sleeping hybrid is trained on that text, and then retrieval with N = 1, same data
                  and seed
    at the end    the two retrieval runs are plotted side by side

If interrupted, it continues where it stopped; `rm -r runs/demo` starts afresh.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launch import HYPNOS
from pretrain.origin import cores

ROOT = Path("runs/demo")
TOKENIZER, SHARDS = ROOT / "tokenizer.model", ROOT / "shards"
PROMPT = 'class Session:\n    """A session that '
TEXT, DEPO = "text", {"depo-n4": 4, "depo-n1": 1}
STEPS = 1000  # of Depo: four fifths of the configuration's; N = 4 is nearly there by then
RUNNING: set[subprocess.Popen[str]] = set()
TRAIN_TEXT = (
    "train", "configs/text-tiny.toml", f"run.dir={ROOT}", f"run.name={TEXT}",
    f"data.tokenizer={TOKENIZER}", f'data.train=[{{path="{SHARDS / "train"}"}}]',
    f"data.heldout={SHARDS / 'heldout'}", "train.steps=200",
)  # fmt: skip


def main() -> int:
    """Runs the steps in order; returns the status of the first that fails, else 0."""
    parser = argparse.ArgumentParser(
        description="Runs the demo: about ten minutes on two cores, into runs/demo.",
        epilog="example: python -m launch.demo",
    )
    parser.parse_args()
    begin = time.monotonic()
    try:
        train()
        draw()
    except subprocess.CalledProcessError as error:
        print(
            f"\ndemo: `{' '.join(error.cmd)}` ended with status {error.returncode}", file=sys.stderr
        )
        return error.returncode or 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; `make demo` continues from here", file=sys.stderr)
        return 130
    summary(time.monotonic() - begin)
    return 0


def train() -> None:
    """Gives the longest run a core of its own; everything else shares another, or more."""
    title("1 of 2: multi-hop retrieval with sleep (N=4); a text model; retrieval (N=1)")
    with ThreadPoolExecutor() as pool:
        with_sleep = pool.submit(train_depo, "depo-n4")
        without = pool.submit(train_depo, "depo-n1") if cores() > 2 else None
        try:
            prepare()
            hypnos(*TRAIN_TEXT, label=TEXT)
            without = without or pool.submit(train_depo, "depo-n1")
            with_sleep.result()
            look_at_text()  # on the core that is now free
            without.result()
        finally:  # if a command fails, the one beside it saves and ends too
            for process in [*RUNNING]:
                process.terminate()


def prepare() -> None:
    """Makes a tokenizer and shards from the running Python's sources and documentation."""
    if not TOKENIZER.exists():
        hypnos("tokenizer", "train", "--python", "--vocab-size", "2048", "--out", str(TOKENIZER))
    if not SHARDS.exists():
        where = "--tokenizer", str(TOKENIZER), "--out", str(SHARDS)
        hypnos("data", "prepare", "--python", "--holdout", "0.05", *where)
    hypnos("data", "stats", str(SHARDS))


def look_at_text() -> None:
    """Evaluates the text model, and lets it continue a prompt."""
    run = str(ROOT / TEXT)
    hypnos("eval", run, label=TEXT)
    hypnos("generate", run, "--prompt", PROMPT, "--tokens", "300", label=TEXT)
    hypnos("report", run, label=TEXT)


def train_depo(name: str) -> None:
    """Trains one of the two runs, which differ only in the number of passes."""
    settings = f"run.dir={ROOT}", f"run.name={name}", f"sleep.passes={DEPO[name]}"
    hypnos("train", "configs/depo-small.toml", *settings, f"train.steps={STEPS}", label=name)


def draw() -> None:
    """Plots what sleep gained."""
    title("2 of 2: retrieval without sleep and with it")
    hypnos("report", *(str(ROOT / name) for name in sorted(DEPO)), "--out", str(ROOT))


def summary(seconds: float) -> None:
    """Prints where everything is."""
    title(f"done in {seconds / 60:.1f} minutes")
    rows = {
        "text run": ROOT / TEXT,
        "its checkpoint": ROOT / TEXT / "checkpoints",
        "Depo runs": " and ".join(str(ROOT / name) for name in sorted(DEPO)),
        "loss by place": ROOT / TEXT / "loss_by_place.png",
        "accuracy by hops": ROOT / "accuracy_by_hops.png",
        "all curves": f".venv/bin/tensorboard --logdir {ROOT}",
        "continue a text": f'.venv/bin/hypnos generate {ROOT / TEXT} --prompt "import "',
    }
    for name, place in rows.items():
        print(f"  {name:<18}{place}")


def title(words: str) -> None:
    print(f"\n=== {words} ===", flush=True)


def hypnos(*arguments: str, label: str = "") -> None:
    """Runs one `hypnos` command to its end and prints its output, each line with a label."""
    print(f"\n$ hypnos {shlex.join(arguments)}", flush=True)
    command = [*HYPNOS, *arguments]
    # small runs side by side: more threads would only wait
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.PIPE if label else None
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=output, stderr=subprocess.STDOUT
    )
    RUNNING.add(process)
    for line in process.stdout or ():
        print(f"{label:<8}| {line}", end="", flush=True)
    process.wait()
    RUNNING.discard(process)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, ["hypnos", *arguments])


if __name__ == "__main__":
    sys.exit(main())
