"""A hint for users who give a Hugging Face Hub name where a local path is expected."""

from __future__ import annotations

import os
import re
from pathlib import Path

# owner/name; but not a file such as texts/notes.jsonl
ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(?<!\.)")
FILE = re.compile(r"\.[A-Za-z]+$|\.[A-Za-z]+\.(gz|zst|xz|bz2)$")


def download_first(path: str | Path, dataset: bool = False) -> str:
    """The rest of a message about a missing path; "" if it does not look like a Hub name, for
    example because its first part is an existing folder.
    """
    name = str(path)
    if not ID.fullmatch(name) or FILE.search(name) or os.path.lexists(name.partition("/")[0]):
        return ""
    kind = " --repo-type dataset" if dataset else ""
    return (
        "; if it is on the Hugging Face Hub, download it first: "
        f"hf download {name}{kind} --local-dir FOLDER"
    )
