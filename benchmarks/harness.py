"""Compares an export in transformers with our session that sleeps, in lm-evaluation-harness.

    python -m benchmarks.harness RUN TEXT...       (needs the package: pip install -e '.[eval]')

Two tasks are made from texts (UTF-8 files that the run was not trained on); nothing is downloaded:
`bits`, bits per byte of each text from its beginning; `next`, which of four passages follows
another, by likelihood per byte. transformers reads the export in pieces of one window and carries
nothing over; our session keeps the fast weights, with N = 1, 2, 4 passes over each window.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

PASSAGE = 400  # characters
PASSES = (1, 2, 4)

BITS = """\
task: bits
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/bits.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
NEXT = """\
task: next
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/next.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{before}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc_norm}}]
"""


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(
        description="Evaluates a run in lm-evaluation-harness, exported and with sleep.",
        epilog="example: python -m benchmarks.harness runs/text-tiny README.md docs/*.md",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run of text")
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT", help="UTF-8 files")
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as place:
        tasks = Path(place)
        asked = write_tasks([path.read_text(encoding="utf-8") for path in given.texts], tasks)
        evaluate(given.run, tasks, asked)


def write_tasks(texts: list[str], folder: Path) -> int:
    """Both tasks' data and settings. Returns how many questions `next` has."""
    cuts = [
        (text[at : at + PASSAGE], text[at + PASSAGE : at + PASSAGE + 80])
        for text in texts
        for at in range(0, len(text) - PASSAGE - 80, PASSAGE)
    ]
    draw, rows = random.Random(0), []
    for before, after in cuts:
        others = [other for _, other in draw.sample(cuts, 4) if other != after][:3]
        choices = [after, *others]
        draw.shuffle(choices)
        rows.append({"before": before, "choices": choices, "answer": choices.index(after)})
    _write_rows(folder / "bits.jsonl", [{"text": text} for text in texts])
    _write_rows(folder / "next.jsonl", rows)
    (folder / "bits.yaml").write_text(BITS.format(folder=folder))
    (folder / "next.yaml").write_text(NEXT.format(folder=folder))
    return len(rows)


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def evaluate(run: Path, folder: Path, asked: int) -> None:
    """Runs the tasks on each of the models, and prints the results."""
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from pretrain.convert.export import export
    from pretrain.inference.generate import open_run
    from pretrain.inference.likelihood import likelihood
    from pretrain.tables import table

    decoder, tokenizer = open_run(run)

    class Sleeping(LM):
        """Our session, with the harness's interface."""

        def __init__(self, passes: int) -> None:
            super().__init__()
            self.passes = passes

        def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
            return [self._score(*request.args) for request in requests]

        def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
            return [self._score("", request.args[0])[0] for request in requests]

        def generate_until(self, requests: list[Instance]) -> list[str]:
            raise NotImplementedError("no task here generates")

        def _score(self, context: str, continuation: str) -> tuple[float, bool]:
            # As the harness does for transformers: trailing spaces move to the continuation.
            stripped = context.rstrip()
            whole = tokenizer.encode(context + continuation)
            before = tokenizer.encode(stripped)
            after = whole[len(before) :]
            return likelihood(decoder, before or [tokenizer.eos], after, self.passes)

    export(run, folder / "hf")
    models: dict[str, LM] = {
        "transformers": HFLM(str(folder / "hf"), device="cpu", dtype="float32", batch_size=1)
    }
    models |= {f"session, N = {n}": Sleeping(n) for n in PASSES}
    rows, manager = [], TaskManager(include_path=str(folder), include_defaults=False)
    for name, model in models.items():
        said = lm_eval.simple_evaluate(
            model, tasks=["bits", "next"], task_manager=manager, bootstrap_iters=0
        )["results"]
        bits, right = said["bits"]["bits_per_byte,none"], said["next"]["acc_norm,none"]
        rows.append([name, f"{bits:.4f}", f"{100 * right:.1f} %"])
        print(f"{name}: {rows[-1][1:]}", flush=True)
    heads = ["read by", "bits per byte", f"right passage of four, {asked} questions"]
    print("\n" + table(heads, rows))


if __name__ == "__main__":
    main()
