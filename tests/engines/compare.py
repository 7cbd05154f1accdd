"""`make test-engines`: exports in transformers, llama.cpp, mlx-lm, mistral.rs against our model.

    python -m tests.engines.compare ENGINES_PYTHON [WORD in a case's name ...]

Models with random weights everywhere (norms, decays and convolutions too: identities would hide
mistakes) are exported and read by engines that know nothing of Hypnos, each in its own process. The
reference is our session with N = 1 in one window: every log-probability that an engine returns must
be within 1e-4 of it, and greedy continuations identical. (Greedy decoding alone proves little:
wrong rotary sections pass it.) Prints a table; ends with status 1 if anything differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parallel import mesh
from pretrain.config.load import load
from pretrain.config.schema import Config, SleepConfig
from pretrain.convert import engines
from pretrain.convert.export import export
from pretrain.convert.gguf import write as write_gguf
from pretrain.convert.vocabulary import CUTS
from pretrain.inference.decode import Decoder
from pretrain.inference.session import Session
from pretrain.tables import table
from tests.convert.made import ADAD, DDDA, build, config, write_run
from tests.data.texts import make_texts
from tests.tokenizer.foreign import byte_level, sentences
from tokenizer.encode import Tokenizer
from tokenizer.export import SAMPLE
from tokenizer.sentencepiece_model import SPACE
from tokenizer.train import train

HERE = Path(__file__).parent
BOUND = 1e-4  # nats
PROMPT, GREEDY = 97, 48  # tokens; the first crosses a chunk of 64 and the attention's blocks
SLEEP = SleepConfig(passes=3, window=1024)  # one window holds both
TEXT = "A model reads a window, sleeps over it and forgets all of it but its fast weights. " * 3
LARGER = {"d_model": 128, "attention_head_dim": 32, "mlp_width": 256}
CASES = {
    "interval of 4, grouped, untied": {"layers": DDDA},
    "interval of 2, equal, tied": {
        "layers": ["delta", "attention"] * 2, "tie_embeddings": True,
        "attention_kv_heads": 4, "delta_key_heads": 4, "rope_theta": 1e6,
    },
    "attention first, grouped, tied": {"layers": ADAD, "tie_embeddings": True},
    "no interval, equal, untied": {
        "layers": ["attention", "delta", "delta", "attention", "delta"],
        "attention_kv_heads": 4, "delta_key_heads": 4, "rotary_fraction": 1.0,
    },
    "two widths": {"layers": DDDA, "delta_key_dim": 16, "delta_value_dim": 32},
}  # fmt: skip
ENGINES = {"transformers": "transformers", "llama_cpp": "llama.cpp (gguf)", "mlx": "mlx-lm",
           "mistralrs": "mistral.rs"}  # fmt: skip
# Other models' tokenizers, in a GGUF file; other engines read them unchanged.
KINDS: dict[str, Callable[[Path], Path]] = {"tokenizer of pieces, as Llama 2's": sentences} | {
    f"tokenizer of bytes, {name}": partial(byte_level, vocab_size=400, cut=cut, whole=whole)
    for (cut, whole), name in CUTS.items()
}
FOREIGN = "llama_cpp"
TEXTS = [
    *(text.replace(SPACE, "") for text in SAMPLE),  # which sentencepiece reads as a space
    *make_texts(8, seed=3),
    *(f"  I'LL\n\n{n} x{n}, y\u0301\r\n\t <think>a</think> {'z' * n}" for n in (1, 12, 123, 1234)),
]
PORTABLE = Path("configs/portable.toml")


@dataclass
class Case:
    """One exported model, and our own session's results for it."""

    name: str
    settings: Config
    job: dict[str, Any]
    logprobs: np.ndarray[Any, Any]  # [T, vocabulary] after each token
    tokenizer: Tokenizer
    cells: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def compare(self, engine: str, said: Any) -> None:
        """Records the largest difference, and what is wrong."""
        ours, after = self.logprobs[said["after"]], said["after"]
        given = ~np.isnan(said["logprobs"])
        worst = float(np.abs(said["logprobs"] - ours)[given].max())
        self.cells[engine] = f"{worst:.1e}"
        if not worst < BOUND:
            self.wrong.append(f"{engine}: log-probabilities differ by {worst:.1e}")
        best = np.where(given, said["logprobs"], -np.inf).argmax(axis=1)
        if (best != ours.argmax(axis=1)).any():
            self.wrong.append(f"{engine}: another token is the likeliest after some of {after}")
        continuation = self.job["ids"][self.job["prompt"] :]
        if "greedy" in said and list(said["greedy"]) != continuation:
            self.wrong.append(f"{engine}: greedy gives {list(said['greedy'])}")
        if "encoded" in said and list(said["encoded"]) != self.tokenizer.encode(self.job["text"]):
            self.wrong.append(f"{engine}: the text has other tokens")
        if "texts" in said:
            theirs = json.loads(said["texts"].item())
            for text, ids in zip(self.job["texts"], theirs, strict=True):
                if ids != self.tokenizer.encode(text):
                    self.wrong.append(f"{engine}: {text[:40]!r} has other tokens")
        if "written" in said:
            theirs, mine = said["written"].item(), self.tokenizer.decode(continuation)
            if _plain(theirs) != _plain(mine):
                self.wrong.append(f"{engine}: greedy writes {theirs!r}, and ours {mine!r}")


def _plain(text: str) -> str:
    """Without bytes that are not text, which each engine decodes differently."""
    return "".join(character for character in text if character.isascii())


def make(name: str, settings: Config, folder: Path) -> Case:
    """Exports a model, and reads and continues a text with it."""
    tokenizer = Tokenizer.load(settings.data.tokenizer)
    export(write_run(folder / "run", settings), folder / "hf")
    reasons = engines.reasons(settings)
    if reasons[ENGINES["llama_cpp"]] is None:
        write_gguf(folder / "hf", folder / "model.gguf")
    model = build(settings, SleepConfig(passes=1, window=SLEEP.window))
    text = next(
        TEXT[:k] for k in range(PROMPT, len(TEXT)) if len(tokenizer.encode(TEXT[:k])) == PROMPT
    )
    ids, rows, session = tokenizer.encode(text), [], Session(Decoder(model))
    for t in range(PROMPT + GREEDY):
        if t >= PROMPT:
            ids.append(int(rows[-1].argmax()))
            if ids[-1] == tokenizer.eos:  # engines stop there
                ids.pop()
                break
        logits = session.read([ids[t]], every=True)
        rows.append(torch.log_softmax(logits[0], dim=-1).numpy())
    cuts = [k for k in range(8, len(text)) if text[k] == " "]
    cuts = [k for k in cuts if ids[: len(e := tokenizer.encode(text[:k]))] == e][:: len(cuts) // 7]
    job = {
        "folder": str(folder / "hf"),
        "gguf": str(folder / "model.gguf"),
        "interval": engines.interval(settings.model.layers),
        "vocabulary": settings.model.vocab_size,
        "ids": ids,
        "prompt": PROMPT,
        "text": text,
        "texts": TEXTS,
        "prefixes": [[len(tokenizer.encode(text[:k])) - 1, text[:k]] for k in cuts],
        "ascii": tokenizer.encode("a")[0],
    }
    (folder / "job.json").write_text(json.dumps(job))
    return Case(name, settings, job, np.stack(rows), tokenizer)


def run(case: Case, engine: str, python: str, folder: Path) -> None:
    """One engine on one case."""
    if why := engines.reasons(case.settings)[ENGINES[engine]]:
        case.cells[engine] = "refused"
        print(f"{case.name}: not for {ENGINES[engine]}: {why}")
        return
    out = folder / f"{engine}.npz"
    command = [python, str(HERE / f"by_{engine}.py"), str(folder / "job.json"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode or not out.exists():
        case.cells[engine] = "failed"
        case.wrong.append(f"{engine}: status {done.returncode}: {done.stderr[-1500:]}")
        return
    with np.load(out) as said:
        case.compare(engine, said)


def cases(tokenizer: Path) -> dict[str, Config]:
    """Small models, and the shape of configs/portable.toml with a smaller vocabulary."""
    settings = {
        name: config(
            tokenizer, SLEEP, **(LARGER | {"delta_key_dim": 32, "delta_value_dim": 32} | c)
        )
        for name, c in CASES.items()
    }
    vocabulary = Tokenizer.load(tokenizer).vocab_size
    overrides = [f"data.tokenizer={tokenizer}", f"model.vocab_size={vocabulary}"]
    foreign = {name: make(tokenizer.parent / name) for name, make in KINDS.items()}
    return (
        settings
        | {"portable.toml": load(PORTABLE, overrides)}
        | {name: config(folder, SLEEP, **LARGER) for name, folder in foreign.items()}
    )


def main(python: str, *words: str) -> int:
    """Runs every engine on every case, or on the named ones."""
    mesh.initialize()
    torch.set_num_threads(1)
    done = []
    with tempfile.TemporaryDirectory() as place:
        tokenizer = Path(place) / "tokenizer.model"
        train(make_texts(60, seed=9), tokenizer, vocab_size=400)
        for number, (name, settings) in enumerate(cases(tokenizer).items()):
            if words and not any(word in name for word in words):
                continue
            folder = Path(place) / str(number)
            case = make(name, settings, folder)
            for engine in [FOREIGN] if name in KINDS else ENGINES:
                run(case, engine, sys.executable if engine == "transformers" else python, folder)
                print(f"{name}: {ENGINES[engine]}: {case.cells[engine]}", flush=True)
            done.append(case)
    rows = [[case.name, *(case.cells.get(engine, "") for engine in ENGINES)] for case in done]
    print("\n" + table(["largest difference of log-probabilities", *ENGINES.values()], rows))
    wrong = [f"{case.name}: {line}" for case in done for line in case.wrong]
    print("\n".join(wrong) if wrong else f"\nall within {BOUND:g}, greedy tokens identical")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
