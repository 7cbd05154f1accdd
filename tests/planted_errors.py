"""Errors that the suite must find: each is planted in a copy of the tree, and its tests are run.

    make test-planted      (or: python -m tests.planted_errors [WORD in the error's name ...])

prints the table of docs/testing.md: which half finds each, `make test` or `make test-rest`, and by
which test. Ends with status 1 if one goes unnoticed, or is no longer there to be planted. (Errors
that need a patched rank rather than another text are planted by tests/layouts/planted.py and
tests/run/planted.py, inside the tests that find them.)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
HALVES = {"make test": "not slow", "make test-rest": "slow"}


class Planted(NamedTuple):
    """One error: a text that occurs once in a file, its replacement, and the tests that find it."""

    name: str
    path: str
    right: str
    wrong: str
    tests: str  # files or folders below tests/


ERRORS = [
    # ---- data
    Planted(
        "a row's targets one position too early", "pretrain/data/rows.py",
        "ids[span.start + 1 : stop + 1]", "ids[span.start : stop]", "data",
    ),
    Planted(
        "a stitched row's targets one position too early", "pretrain/data/rows.py",
        "stream[:-1], stream[1:]", "stream[:-1], stream[:-1]", "data",
    ),
    Planted(
        "every epoch in the same order", "pretrain/data/order.py",
        'key(self._seed, "documents", corpus, epoch)', 'key(self._seed, "documents", corpus)',
        "data",
    ),
    Planted(
        "weights applied to documents, not to tokens", "pretrain/data/order.py",
        "weight / mean for", "weight for", "data",
    ),
    Planted(
        "a resumed stream one token ahead", "pretrain/data/stream.py",
        "(k, used) for k, used in", "(k, used + 1) for k, used in", "data",
    ),
    Planted(
        "the text stream does not count steps", "pretrain/data/stream.py",
        "Position(self._ahead.steps + 1,", "Position(self._ahead.steps,", "data",
    ),
    Planted(
        "a task repeats its rows", "pretrain/tasks/rule110.py",
        'Rows(seed, "rule110", position, rows)', 'Rows(seed, "rule110", 0, rows)', "tasks",
    ),
    # ---- model
    Planted(
        "S carries over into a new document", "parallel/state.py",
        "b._replace(S=b.S.masked_fill(starts[:, None, None, None], 0.0))", "b",
        "model/test_documents.py",
    ),
    Planted(
        "a pass begins with the previous pass's convolution state", "parallel/state.py",
        "begun = [_kept(b, slice(self.past))",
        "begun = [b if isinstance(b, DeltaState) else _kept(b, slice(self.past))",
        "inference",
    ),
    Planted(
        "a token attends to one key too many", "pretrain/inference/decode.py",
        "max(0, new + 1 - memory.hidden.shape[1])", "max(0, new - memory.hidden.shape[1])",
        "inference",
    ),
    Planted(
        "every pass of a session's sleep begins with the wake pass's h",
        "pretrain/inference/session.py", "            h.copy_(left)\n", "", "inference",
    ),
    Planted(
        "a restored session restarts its random draws", "pretrain/inference/store.py",
        "vocab_size, drawn)\n", "vocab_size)\n", "inference",
    ),
    Planted(
        "an export with gates before queries in each head", "pretrain/convert/names.py",
        'for name in ("q", "gate"))', 'for name in ("gate", "q"))', "convert/test_export.py",
    ),
    Planted(
        "PAD writes into the fast weights", "parallel/gated_delta_net.py",
        "return masked(beta, valid), ", "return beta, ",
        "model/test_documents.py",
    ),
    Planted(
        "PAD decays the fast weights", "parallel/gated_delta_net.py",
        "masked(log_decay, valid)", "log_decay", "model/test_documents.py",
    ),
    Planted(
        "a query sees one key too many", "parallel/window.py",
        "(distance < width)", "(distance <= width)", "model/test_eviction.py",
    ),
    Planted(
        "one pass too few", "pretrain/model/plan.py",
        "count = N if some_sleep[w] else 1", "count = N - 1 if some_sleep[w] else 1",
        "model/test_sleep.py",
    ),
    Planted(
        "the last pass leaves out its last writing block", "pretrain/model/plan.py",
        "range(blocks.start, writers[-1] + 1)", "range(blocks.start, writers[-1])",
        "model/test_sleep.py",
    ),
    Planted(
        "a document's end is slept over before the next begins", "pretrain/model/plan.py",
        "sleeps[:-1] &= ~starts[1:]", "sleeps[:-1] &= ~starts[:-1]", "model",
    ),
    Planted(
        "truncation one pass too early", "pretrain/model/plan.py",
        "detaches = 1 < n == w.truncated + 1", "detaches = 1 < n == w.truncated",
        "model parallel",
    ),
    Planted(
        "rows that do not sleep take the sleepers' fast weights", "pretrain/model/sleep.py",
        "state.blocks[core], memory.woke)", "memory.woke, state.blocks[core])", "model",
    ),
    Planted(
        "recomputing a unit loses the gradient of its fast weights", "parallel/recompute.py",
        "return maybe_checkpoint(unit, h, *states,",
        "return maybe_checkpoint(unit, h, *(type(s)(*(t.detach() for t in s)) for s in states)\n"
        "                            if policy == 'unit' else states,",
        "model/test_recompute.py",
    ),
    # ---- optimiser
    Planted(
        "Muon without the scale of tall matrices", "pretrain/run/optimizer.py",
        " * max(1.0, U.shape[1] / U.shape[2]) ** 0.5", "",
        "run/test_optimizer.py parallel/test_engine.py",
    ),
    Planted(
        "Muon without Nesterov", "pretrain/run/optimizer.py",
        "gradient.add_(momentum, alpha=self.config.momentum)", "momentum.clone()",
        "run/test_optimizer.py parallel/test_engine.py",
    ),
    Planted(
        "small gradients scaled up to the clip", "pretrain/run/optimizer.py",
        ".clamp(max=1.0))", ")", "run/test_optimizer.py parallel/test_engine.py",
    ),
    Planted(
        "warm-up one step late", "pretrain/run/optimizer.py",
        "(step + 1) / config.warmup", "step / config.warmup", "run/test_optimizer.py",
    ),
    Planted(
        "final decay one step late", "pretrain/run/optimizer.py",
        "(step + 1 - (steps", "(step - (steps", "run/test_optimizer.py",
    ),
    Planted(
        "weight decay on norms and biases", "pretrain/run/optimizer.py",
        "self._by_share((DECAYED,))", "self._by_share((DECAYED, PLAIN))",
        "run/test_optimizer.py parallel/test_engine.py",
    ),
    Planted(
        "a skipped step changes the momentum", "pretrain/run/optimizer.py",
        "torch.where(accepted, advanced, momentum)", "advanced", "run/test_guard.py",
    ),
    Planted(
        "a skipped step counts in the running means", "pretrain/run/guard.py",
        "torch.where(accepted, torch.lerp(seen, self.sums, DECAY), self.sums)",
        "torch.lerp(seen, self.sums, DECAY)", "run/test_guard.py",
    ),
    # ---- checkpoints and resuming
    Planted(
        "a checkpoint without one moment", "pretrain/run/optimizer.py",
        "for kind, moment in self.moments.items():\n            named",
        "for kind, moment in list(self.moments.items())[:-1]:\n            named",
        "run/test_trainer.py",
    ),
    Planted(
        "Adam's step count restarts", "pretrain/run/optimizer.py",
        'fill_(counters["adam_steps"])', "fill_(0)", "run/test_trainer.py",
    ),
    Planted(
        "a resumed run forgets open documents", "pretrain/run/state.py",
        "State.from_named(named, model.stage.blocks) if goes_on else None", "None",
        "run/test_trainer.py",
    ),
    Planted(
        "ranks that stop save the step of the slowest", "pretrain/run/stop.py",
        "max(int(store.get(key))", "min(int(store.get(key))", "resume/test_gate.py",
    ),
    # ---- starting
    Planted(
        "hosts blamed for what most of them share", "launch/preflight/verdict.py",
        "2 * len(set(bad)) <= len(set(hosts))", "bad", "launch/test_preflight.py",
    ),
    Planted(
        "a GPU at half the others' speed passes", "launch/preflight/verdict.py",
        "report.gpu and share < TOO_SLOW", "report.gpu and share < 0", "launch/test_preflight.py",
    ),
    # ---- ranks
    Planted(
        "maps of S that are added, not composed", "parallel/delta_merge.py",
        "S = P @ S + U", "S = S + U", "parallel/test_delta_rule.py layouts/test_layouts.py",
    ),
    Planted(
        "the gradient divided by the data-parallel ranks", "parallel/engine.py",
        "return mesh.dp_cp_size() / n_scored", "return 1.0 / n_scored", "layouts/test_layouts.py",
    ),
    Planted(
        "gradients of shared norms not summed over tp", "pretrain/run/optimizer.py",
        "self.partition.complete(gradient)", "pass", "layouts/test_layouts.py",
    ),
    Planted(
        "parameters shared by tp ranks counted twice in the norm", "parallel/engine.py",
        "parameters.keys() - copies - replicas", "parameters.keys() - copies",
        "layouts/test_layouts.py",
    ),
    Planted(
        "one end's gradient of a tied embedding dropped", "parallel/engine.py",
        "dist.all_reduce(gradient, group=parallel_state.get_embedding_group())", "pass",
        "layouts/test_layouts.py",
    ),
    Planted(
        "the gradient of the fast weights stays on its stage", "parallel/pipeline.py",
        "if not tensor.requires_grad or tensor.is_leaf:", "if True:", "layouts/test_layouts.py",
    ),
]  # fmt: skip


def found_by(error: Planted, tree: Path) -> tuple[str, str] | None:
    """The half and the test that find an error; None if none does."""
    path = tree / error.path
    text = path.read_text()
    path.write_text(text.replace(error.right, error.wrong))
    try:
        for half, mark in HALVES.items():
            done = subprocess.run(
                [
                    sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
                    "-m", mark, *(f"tests/{name}" for name in error.tests.split()),
                ],
                cwd=tree, capture_output=True, text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "HYPNOS_FUZZ": "0.2"},
            )  # fmt: skip
            assert done.returncode in (0, 1, 5), done.stdout + done.stderr  # 5: no tests ran
            if failed := re.search(r"^FAILED tests/([^\s\[]+)", done.stdout, re.MULTILINE):
                return half, failed[1]
        return None
    finally:
        path.write_text(text)


def missing(tree: Path) -> list[str]:
    """Errors whose text is not in its file exactly once."""

    def count(error: Planted) -> int:
        path = tree / error.path
        return path.read_text().count(error.right) if path.is_file() else 0

    return [error.name for error in ERRORS if count(error) != 1]


def main(words: list[str]) -> int:
    """Plants the errors with one of the words in their names, or all."""
    gone, unseen = missing(ROOT), 0
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    print("| planted | in | found by | test |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        tree = Path(folder)
        for file in filter(lambda file: (ROOT / file).is_file(), files):
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, tree / file)
        for error in ERRORS:
            if (words and not any(word in error.name for word in words)) or error.name in gone:
                continue
            half, test = found_by(error, tree) or ("**nothing**", "")
            unseen += not test
            print(f"| {error.name} | {error.path} | {half} | {test} |", flush=True)
    for name in gone:
        print(f"no longer to be planted, since its text has changed: {name}", file=sys.stderr)
    return 1 if gone or unseen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
