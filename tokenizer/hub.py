"""What to do about a name of the Hugging Face Hub where a path on this machine is asked for."""

from __future__ import annotations

import os
import re
from pathlib import Path

# owner/name; but no file, as texts/notes.jsonl
ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(?<!\.)")
FILE = re.compile(r"\.[A-Za-z]+$|\.[A-Za-z]+\.(gz|zst|xz|bz2)$")


def download_first(path: str | Path, dataset: bool = False) -> str:
    """What a message about a path that is not there goes on with: "" if it looks like no name of
    the Hub, as a path into a folder that is there.
    """
    name = str(path)
    if not ID.fullmatch(name) or FILE.search(name) or os.path.lexists(name.partition("/")[0]):
        return ""
    kind = " --repo-type dataset" if dataset else ""
    return (
        "; if it is on the Hugging Face Hub, download it first: "
        f"hf download {name}{kind} --local-dir FOLDER"
    )
