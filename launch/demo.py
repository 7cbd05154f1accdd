"""`make demo`: the whole story on this machine, as the commands that anyone would type.

    1  a corpus that every machine has becomes a tokenizer and webdataset shards
    2  a small sleeping hybrid is pretrained on it, evaluated, and continues a prompt
    3  the paper's question: multi-hop retrieval with N = 1 and N = 4, same data and seed, side by side

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
TEXT, DEPO = ROOT / "text", {"N=1": ROOT / "depo-n1", "N=4": ROOT / "depo-n4"}
PROMPT = 'class Session:\n    """A session that '


def main() -> int:
    """Runs the steps in order; returns the status of the first that fails, else 0."""
    parser = argparse.ArgumentParser(
        description="Runs the demo: about ten minutes on two cores, into runs/demo.",
        epilog="example: python -m launch.demo",
    )
    parser.parse_args()
    begin = time.monotonic()
    try:
        corpus()
        text()
        depo()
    except subprocess.CalledProcessError as error:
        print(f"\ndemo: `{' '.join(error.cmd)}` ended with status {error.returncode}", file=sys.stderr)
        return error.returncode or 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; `make demo` goes on from here", file=sys.stderr)
        return 130
    summary(time.monotonic() - begin)
    return 0


def corpus() -> None:
    """The sources and documentation of the running Python, as a tokenizer and shards."""
    title("1 of 3: a corpus, a tokenizer, shards")
    if not TOKENIZER.exists():
        hypnos("tokenizer", "train", "--python", "--vocab-size", "4096", "--out", str(TOKENIZER))
    if not SHARDS.exists():
        hypnos("data", "prepare", "--python", "--tokenizer", str(TOKENIZER), "--holdout", "0.05", "--out", str(SHARDS))
    hypnos("data", "stats", str(SHARDS))


def text() -> None:
    """Pretrains on the shards, evaluates at N = 1 and the trained N, and generates."""
    title("2 of 3: pretraining a model that sleeps, on text")
    hypnos(
        "train", "configs/text-tiny.toml", f"run.dir={ROOT}", f"run.name={TEXT.name}", f"data.tokenizer={TOKENIZER}",
        f'data.train=[{{path="{SHARDS / "train"}"}}]', f"data.heldout={SHARDS / 'heldout'}", threads=cores(),
    )  # fmt: skip
    hypnos("eval", str(TEXT), threads=cores())
    hypnos("generate", str(TEXT), "--prompt", PROMPT, "--tokens", "300", threads=cores())


def depo() -> None:
    """Trains both runs at once, a core each, and draws them side by side."""
    title("3 of 3: what sleep buys: multi-hop retrieval with one pass (N=1) and with sleep (N=4)")
    with ThreadPoolExecutor(len(DEPO)) as pool:
        list(pool.map(train_depo, DEPO))
    hypnos("report", *map(str, DEPO.values()), "--out", str(ROOT))


def summary(seconds: float) -> None:
    """Where everything is."""
    title(f"done in {seconds / 60:.1f} minutes")
    rows = {
        "text run": TEXT,
        "its checkpoint": TEXT / "checkpoints",
        "Depo runs": " and ".join(str(run) for run in DEPO.values()),
        "accuracy by hops": ROOT / "accuracy_by_hops.png",
        "curves": f"tensorboard --logdir {ROOT}",
        "go on writing": f'.venv/bin/hypnos generate {TEXT} --prompt "import "',
    }
    for name, place in rows.items():
        print(f"  {name:<18}{place}")


def title(words: str) -> None:
    print(f"\n=== {words} ===", flush=True)


def cores() -> int:
    return os.cpu_count() or 1


def start(arguments: tuple[str, ...], threads: int, **settings: object) -> subprocess.Popen[str]:
    """Starts a `hypnos` command with this interpreter."""
    print(f"\n$ hypnos {' '.join(quoted(a) for a in arguments)}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "launch", *arguments]
    return subprocess.Popen(command, env=environment, text=True, **settings)  # type: ignore[call-overload]


def quoted(argument: str) -> str:
    return f"'{argument}'" if set(argument) & set(' "{}[]\n') else argument


def hypnos(*arguments: str, threads: int = 1) -> None:
    """Runs one command to its end, in sight."""
    process = start(arguments, threads)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, ["hypnos", *arguments])


def train_depo(label: str) -> None:
    """Trains one of the runs, with its label before each line it prints."""
    run, passes = DEPO[label], label.removeprefix("N=")
    arguments = (
        "train", "configs/depo-small.toml", f"run.dir={ROOT}", f"run.name={run.name}", f"sleep.passes={passes}",
    )  # fmt: skip
    process = start(arguments, 1, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    for line in process.stdout:
        print(f"{label} | {line}", end="", flush=True)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, ["hypnos", *arguments])


if __name__ == "__main__":
    sys.exit(main())
