"""Real users' folders: nothing in them is skipped or misread silently."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.data.corpus import Corpus
from pretrain.errors import UserError


def write(root: Path, *names: str) -> None:
    """Writes files whose text, or row, is their own name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"text": [name]}), path)
        else:
            path.write_text(f'{{"text": "{name}"}}\n' if "json" in name.lower() else name)


def read(*sources: Path, **options: object) -> tuple[list[str], list[str]]:
    """The texts read, and the lines of the tally."""
    corpus = Corpus(sources, **options)  # type: ignore[arg-type]
    return [document.text for document in corpus], corpus.tally.lines()


def test_a_folder_as_a_hub_gives_it(tmp_path: Path) -> None:
    write(tmp_path, "README.md", "data/a.parquet", "data/b.jsonl", "c.json", "dataset_infos.json")
    (tmp_path / "dataset_infos.json").write_text('{"default": {\n "features": {}}}')
    write(tmp_path, ".gitattributes", ".cache/x.txt", "LICENSE", "cover.png", "BOOK.TXT")
    texts, lines = read(tmp_path)
    assert texts == ["BOOK.TXT", "c.json", "data/a.parquet", "data/b.jsonl"]
    assert lines == [
        "read 3 files (1 .json, 1 .jsonl, 1 .parquet), row by row",
        "read 1 file (1 .txt), each as one text",
        f"left out 1 folder: hidden ({tmp_path}/.cache)",
        f"left out 1 file: hidden ({tmp_path}/.gitattributes)",
        f"left out 1 file: README taken as dataset card of data beside it ({tmp_path}/README.md)",
        "left out 1 file: neither JSON lines nor a JSON array of objects, and no field "
        f'"text" ({tmp_path}/dataset_infos.json)',
        "left out 2 files (1 without a suffix, 1 .png): choose suffixes with --suffix",
    ]


def test_a_readme_without_rows_beside_it_is_a_text(tmp_path: Path) -> None:
    write(tmp_path, "README.md", "src/main.py", "src/readme.rst")
    assert read(tmp_path)[0] == ["README.md", "src/main.py", "src/readme.rst"]
    write(tmp_path, "web/README.md", "web/data/train/a.jsonl", "web/data/train/README.txt")
    (tmp_path / "README.md").unlink()
    texts, lines = read(tmp_path)
    assert texts == ["src/main.py", "src/readme.rst", "web/data/train/a.jsonl"]
    assert lines[2].startswith("left out 2 files: README taken as dataset card of data beside it (")


def test_suffixes_are_chosen_in_any_case_and_compressed(tmp_path: Path) -> None:
    write(tmp_path, "README.md", "a.LOG", "b.log", "c.txt", "d.jsonl")
    assert read(tmp_path, suffixes=[".log", ".md"]) == (
        ["README.md", "a.LOG", "b.log"],
        [
            "read 3 files (2 .log, 1 .md), each as one text",
            "left out 2 files (1 .jsonl, 1 .txt): choose suffixes with --suffix",
        ],
    )


def test_a_file_named_by_its_user_is_read_whatever_its_suffix(tmp_path: Path) -> None:
    write(tmp_path, "table.log", "book", ".hidden", "README.md")
    sources = [tmp_path / name for name in ("table.log", "book", ".hidden", "README.md")]
    texts, lines = read(*sources)
    assert texts == ["table.log", "book", ".hidden", "README.md"]
    assert lines == ["read 4 files (2 without a suffix, 1 .log, 1 .md), each as one text"]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path, "set/a.txt", "other/b.txt", "other/deep/c.txt")
    os.symlink("../other", tmp_path / "set" / "linked")
    os.symlink("../other", tmp_path / "set" / "twice")
    os.symlink("..", tmp_path / "other" / "deep" / "up")  # back to a folder that is being read
    os.symlink("../set", tmp_path / "set" / "loop")
    os.symlink("itself.txt", tmp_path / "set" / "itself.txt")
    with pytest.raises(UserError, match=r"itself\.txt: cannot be read: Too many levels"):
        read(tmp_path / "set")
    texts, lines = read(tmp_path / "set", skip_bad=True)
    assert texts == ["set/a.txt", "other/b.txt", "other/deep/c.txt"]
    assert lines[1:] == [
        "left out 3 folders: a link to a folder that has already been read (the first: "
        f"{tmp_path}/set/linked/deep/up)",
        f"left out 1 file: cannot be read: Too many levels of symbolic links "
        f"({tmp_path}/set/itself.txt)",
    ]


def test_a_file_that_two_sources_have_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, "set/a.txt", "set/deep/b.txt", "c.txt")
    os.symlink("set", tmp_path / "linked")
    sources = ("set/deep", "set", "c.txt", "linked/a.txt", "c.txt")
    texts, lines = read(*(tmp_path / name for name in sources))
    assert texts == ["set/deep/b.txt", "set/a.txt", "c.txt", "c.txt"]  # c.txt is named twice
    first = tmp_path / "set" / "deep" / "b.txt"
    told = "left out 2 files: another source already contains it"
    assert lines[1:] == [f"{told} (the first: {first})"]


def test_versions_of_one_dataset_are_not_read_together(tmp_path: Path) -> None:
    """As in a hub's cache: links into one folder of contents."""
    cache = tmp_path / "datasets--one"
    write(cache, "blobs/0a", "snapshots/old/a.txt", "snapshots/new/a.txt")
    for source in (tmp_path, cache, cache / "snapshots"):
        with pytest.raises(
            UserError, match=r"snapshots: holds 2 versions of .* \(new, old\); give"
        ):
            read(source)
    assert read(cache / "snapshots" / "new")[0] == ["snapshots/new/a.txt"]


def test_empty_files_and_texts_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    empty = ("b.txt", "c.jsonl", "d.json", "e.parquet", "e.arrow", "e.tar", "e.txt.xz", "e.csv.bz2")
    for name in empty:
        (tmp_path / name).write_text("")
    (tmp_path / "f.jsonl").write_text('{"text": ""}\n\n{"text": "f"}\n{"text": ""}\n')
    texts, lines = read(tmp_path)
    assert texts == ["a.txt", "f"]
    assert lines[2:] == [
        f"left out 8 files: empty (the first: {tmp_path}/b.txt)",
        f"left out 2 rows: empty text (the first: {tmp_path.name}/f.jsonl:1)",
    ]


def test_a_folder_without_files_to_read_says_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path, *(f"{n}.s{n}" for n in range(12)), "a.s0", "b.xls", "c.xls", "d.xls")
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert str(error.value).startswith(
        f"{tmp_path}: no file to read in this folder, which holds 16 files (3 .xls, 2 .s0, "
    )
    assert "1 .s6, 3 other suffixes)" in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="which holds no files"):
        read(tmp_path / "empty")


def test_a_folder_that_cannot_be_read_is_named_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: str) -> Any:  # root would be allowed to read it
        if path.endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    write(tmp_path, "a.txt", "closed/b.txt")
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match="closed: cannot be read: Permission denied"):
        read(tmp_path)
    texts, lines = read(tmp_path, skip_bad=True)
    assert texts == ["a.txt"]
    assert lines[1].startswith("left out 1 folder: cannot be read: Permission denied (")
