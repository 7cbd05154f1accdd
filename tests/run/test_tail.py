"""Reading a file backwards from its end gives every line once, wherever blocks begin."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from pretrain import tail
from pretrain.tail import lines_backwards, rows_backwards


@pytest.mark.parametrize("text", ["", "a", "a\n", "\n\nab\n\n", "é\nlonger than a block\nab\ncd"])
@pytest.mark.parametrize("block", [1, 2, 3, 1000])
def test_every_line_once(
    text: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "BLOCK", block)
    (tmp_path / "file").write_text(text)
    assert list(lines_backwards(tmp_path / "file")) == text.split("\n")[::-1]


def test_rows_are_those_that_are_whole(tmp_path: Path) -> None:
    assert list(rows_backwards(tmp_path / "metrics.jsonl")) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnull\n{"step": 2}\n{"st')
    assert list(rows_backwards(tmp_path / "metrics.jsonl")) == [{"step": 2}, {"step": 1}]


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.truncate(1 << 32)  # sparse
        file.seek(0, 2)
        file.write(b"\nlast\n")
    assert list(islice(lines_backwards(path), 2)) == ["", "last"]
