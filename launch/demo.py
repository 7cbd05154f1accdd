"""`make demo`: the whole story on this machine, as the commands that anyone would type.

    1  a corpus that every machine has becomes a tokenizer and webdataset shards
    2  three runs are trained, two at a time: a small sleeping hybrid on that text, and the paper's
       question, multi-hop retrieval, with N = 1 and N = 4 passes on the same data and seed
    3  the text model is evaluated and writes on; the two Depo runs are drawn side by side

Interrupted, it goes on where it stopped; `rm -r runs/demo` begins anew.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path("runs/demo")
TOKENIZER, SHARDS = ROOT / "tokenizer.model", ROOT / "shards"
PROMPT = 'class Session:\n    """A session that '
TEXT, DEPO = "text", {"depo-n4": 4, "depo-n1": 1}
TRAIN_TEXT = (
    "train", "configs/text-tiny.toml", f"run.dir={ROOT}", f"run.name={TEXT}",
    f"data.tokenizer={TOKENIZER}", f'data.train=[{{path="{SHARDS / "train"}"}}]',
    f"data.heldout={SHARDS / 'heldout'}",
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
        prepare()
        train()
        show()
    except subprocess.CalledProcessError as error:
        print(
            f"\ndemo: `{' '.join(error.cmd)}` ended with status {error.returncode}", file=sys.stderr
        )
        return error.returncode or 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; `make demo` goes on from here", file=sys.stderr)
        return 130
    summary(time.monotonic() - begin)
    return 0


def prepare() -> None:
    """The sources and documentation of the running Python, as a tokenizer and shards."""
    title("1 of 3: a corpus, a tokenizer, shards")
    if not TOKENIZER.exists():
        hypnos("tokenizer", "train", "--python", "--vocab-size", "2048", "--out", str(TOKENIZER))
    if not SHARDS.exists():
        hypnos(
            "data",
            "prepare",
            "--python",
            "--tokenizer",
            str(TOKENIZER),
            "--holdout",
            "0.05",
            "--out",
            str(SHARDS),
        )
    hypnos("data", "stats", str(SHARDS))


def train() -> None:
    """The longest run has a core to itself; the other two share the second, one after the other."""
    title("2 of 3: training on text, and on multi-hop retrieval with sleep (N=4) and without (N=1)")
    runs = {TEXT: TRAIN_TEXT} | {name: depo(name, passes) for name, passes in DEPO.items()}
    longest_first = ("depo-n4", TEXT, "depo-n1")
    with ThreadPoolExecutor(min(3, max(2, os.cpu_count() or 1))) as pool:
        list(pool.map(lambda name: hypnos(*runs[name], label=name), longest_first))


def depo(name: str, passes: int) -> tuple[str, ...]:
    """The command that trains one of the two runs: they differ in the number of passes alone."""
    return (
        "train",
        "configs/depo-small.toml",
        f"run.dir={ROOT}",
        f"run.name={name}",
        f"sleep.passes={passes}",
    )


def show() -> None:
    """What the text model knows, what it writes, and what sleep bought."""
    title("3 of 3: what came of it")
    hypnos("eval", str(ROOT / TEXT))
    hypnos("generate", str(ROOT / TEXT), "--prompt", PROMPT, "--tokens", "300")
    hypnos("report", str(ROOT / TEXT))
    hypnos("report", *(str(ROOT / name) for name in sorted(DEPO)), "--out", str(ROOT))


def summary(seconds: float) -> None:
    """Where everything is."""
    title(f"done in {seconds / 60:.1f} minutes")
    rows = {
        "text run": ROOT / TEXT,
        "its checkpoint": ROOT / TEXT / "checkpoints",
        "Depo runs": " and ".join(str(ROOT / name) for name in sorted(DEPO)),
        "loss by place": ROOT / TEXT / "loss_by_place.png",
        "accuracy by hops": ROOT / "accuracy_by_hops.png",
        "all curves": f".venv/bin/tensorboard --logdir {ROOT}",
        "go on writing": f'.venv/bin/hypnos generate {ROOT / TEXT} --prompt "import "',
    }
    for name, place in rows.items():
        print(f"  {name:<18}{place}")


def title(words: str) -> None:
    print(f"\n=== {words} ===", flush=True)


def hypnos(*arguments: str, label: str = "") -> None:
    """Runs one `hypnos` command to its end, in sight; a label begins each line that it prints."""
    print(f"\n$ hypnos {' '.join(quoted(a) for a in arguments)}", flush=True)
    command = [sys.executable, "-m", "launch", *arguments]
    # runs side by side, each small: more threads only wait
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.PIPE if label else None
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=output, stderr=subprocess.STDOUT
    )
    for line in process.stdout or ():
        print(f"{label:<8}| {line}", end="", flush=True)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, ["hypnos", *arguments])


def quoted(argument: str) -> str:
    return f"'{argument}'" if set(argument) & set(' "{}[]\n') else argument


if __name__ == "__main__":
    sys.exit(main())
