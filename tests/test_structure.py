"""The rooms: imports go one way, launch -> pretrain -> parallel, and never round in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "parallel": {"parallel"},
    "tokenizer": {"tokenizer"},
    "pretrain": {"pretrain", "parallel", "tokenizer"},
    "launch": {"launch", "pretrain", "parallel", "tokenizer"},
}


def modules() -> dict[str, Path]:
    """Our modules, by name; a package is its __init__."""
    found = {}
    for room in MAY_IMPORT:
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def module_level(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports outside functions, those under TYPE_CHECKING included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from module_level(child)


def named(node: ast.Import | ast.ImportFrom, known: dict[str, Path]) -> Iterator[str]:
    """Those of our modules that an import names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        assert node.level == 0, "imports say the whole name"
        below = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if name in known else str(node.module) for name in below]
    yield from (name for name in names if name in known)


def graph() -> dict[str, set[str]]:
    """For each module, those that it imports."""
    known = modules()
    return {
        module: {
            name
            for node in module_level(ast.parse(path.read_text()))
            for name in named(node, known)
        }
        for module, path in known.items()
    }


def test_no_circle() -> None:
    found = graph()
    assert "parallel.passes" in found["pretrain.model.plan"]
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_one_way(room: str) -> None:
    """Imports inside functions included."""
    known = modules()
    for module, path in known.items():
        if module.split(".")[0] == room:
            imports = [
                node
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import | ast.ImportFrom)
            ]
            rooms = {name.split(".")[0] for node in imports for name in named(node, known)}
            assert rooms <= MAY_IMPORT[room], module


def test_sleep_is_read_at_one_sitting() -> None:
    """The loop of the method comes first in its file, which stays short."""
    text = (ROOT / "pretrain/model/sleep.py").read_text()
    functions = [f for f in ast.walk(ast.parse(text)) if isinstance(f, ast.FunctionDef)]
    assert min(functions, key=lambda f: f.lineno).name == "forward"
    assert len(text.splitlines()) < 200


ROOMS = [path.parent for room in MAY_IMPORT for path in (ROOT / room).rglob("__init__.py")]


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_says_what_is_in_it(room: Path) -> None:
    """The list of files in a package's docstring is complete, and names no file that is gone."""
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    said = set(re.findall(r"(?<![\w/])\w+\.py\b", text))  # not in other rooms: pretrain/x.py
    there = {path.name for path in room.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert not said or said == there, "in one of the two only: " + " ".join(said ^ there)
