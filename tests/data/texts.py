"""Texts to make corpora of."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = [
    "sleep",
    "wake",
    "window",
    "state",
    "memory",
    "pass",
    "write",
    "read",
    "forget",
    "night",
    "day",
    "dream",
]


def make_texts(count: int, seed: int, longest: int = 120) -> list[str]:
    """Distinct texts of 1 to `longest` words."""
    chance = random.Random(seed)
    return [
        f"{i} " + " ".join(chance.choices(WORDS, k=chance.randint(1, longest))) + "\n"
        for i in range(count)
    ]


def write_texts(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(parents=True)
    for i, text in enumerate(texts):
        (folder / f"{i:03d}.txt").write_text(text)
    return folder
