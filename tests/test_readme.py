"""The README's file structure is that of the tree: one line a file, the first of its docstring.

python -m tests.test_readme     # writes it anew
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("pretrain", "parallel", "tokenizer", "launch", "benchmarks")
BLOCK = re.compile(r"(?<=<!-- file structure -->\n)```text\n.*?```\n", re.DOTALL)


def first_line(path: Path) -> str:
    """The first line of a file's description of itself."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, f"{path.relative_to(ROOT)} does not say what is in it"
    return docstring.splitlines()[0]


def structure(folder: Path, indent: str = "") -> list[str]:
    """A line for the folder, from its __init__.py, then one for each file, then its folders."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith(("_", ".")))
    files = [path for path in paths if path.suffix == ".py"]
    folders = [path for path in paths if path.is_dir() and any(path.glob("*.py"))]
    door = folder / "__init__.py"
    lines = [f"{f'{indent}{folder.name}/':24} {first_line(door) if door.exists() else ''}".rstrip()]
    lines += [f"{f'{indent}  {path.name}':24} {first_line(path)}" for path in files]
    for path in folders:
        lines += structure(path, indent + "  ")
    return lines


def block() -> str:
    """The README's text block."""
    lines = [line for room in ROOMS for line in structure(ROOT / room)]
    return "\n".join(["```text", *lines, "```"]) + "\n"


def test_the_file_structure_is_that_of_the_tree() -> None:
    (written,) = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert written == block(), "write it anew: python -m tests.test_readme"


def test_a_files_first_line_is_a_whole_sentence_on_one_line() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            line = first_line(path)
            assert len(line) <= 97 and line.endswith((".", "?")), f"{path}: {line}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(BLOCK.sub(lambda _: block(), readme.read_text(encoding="utf-8")))
