"""The suffixes of files: of texts, of rows, and of compression.

The command line lists them, so this imports nothing that has to be installed.
"""

from __future__ import annotations

from pathlib import Path

TEXT_SUFFIXES = (".py", ".txt", ".md", ".rst")
ARROW_SUFFIXES = (".arrow", ".feather")
ROW_SUFFIXES = (
    ".jsonl", ".ndjson", ".json", ".parquet", *ARROW_SUFFIXES, ".csv", ".tsv", ".tar",
)  # fmt: skip
COMPRESSED = (".gz", ".zst", ".zstd", ".xz", ".bz2")


def split_suffix(name: str) -> tuple[str, str]:
    """The suffixes of a file's format and of its compression: (".jsonl", ".gz")."""
    path = Path(name.lower())
    if path.suffix in COMPRESSED:
        return Path(path.stem).suffix, path.suffix
    return path.suffix, ""
