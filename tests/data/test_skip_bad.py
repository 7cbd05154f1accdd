"""Bad rows and files among good ones are named, or left out and counted by kind."""

from __future__ import annotations

import errno
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.data import corpus as corpus_module
from pretrain.data.corpus import Corpus
from pretrain.errors import UserError

BAD_LINES = {
    '"text" is null': [b'{"text": null}', b'{"text":null, "id": 3}'],
    '"text" is a number, not text': [b'{"text": 3}', b'{"text": 1e9}'],
    '"text" is true or false, not text': [b'{"text": true}'],
    '"text" is an array, not text': [b'{"text": ["a"]}'],
    '"text" is an object, not text': [b'{"text": {}}'],
    'no field "text"': [b"{}", b'{"content": "x"}', b"3", b"[]", b'"x"', b"null"],
    "malformed JSON": [b'{"text": "cut', b"{", b"no json"],
    "invalid UTF-8": [b'{"text": "\xff"}', b'{"text": "caf\xe9"}'],
    '"text" holds a lone surrogate: invalid text': [b'{"text": "\\ud800"}'],
    "JSON that is nested too deeply": [b"[" * 100_000],
}


def test_bad_lines_are_left_out_and_counted_by_kind(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    lines = [line for kind in BAD_LINES.values() for line in kind]
    path.write_bytes(b"".join(b'{"text": "good"}\n' + line + b"\n" for line in lines))
    corpus = Corpus([path], skip_bad=True)
    assert [d.text for d in corpus] == ["good"] * len(lines)
    told = corpus.tally.lines()[1:]
    place = 2
    for (kind, bad), line in zip(BAD_LINES.items(), told, strict=True):
        rows = f"{len(bad)} rows: {kind} (the first: " if len(bad) > 1 else f"1 row: {kind} ("
        assert line == f"left out {rows}{path}, line {place})"
        place += 2 * len(bad)


def test_without_skip_bad_the_row_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    path.write_bytes(b'{"text": "ab"}\n{"text": null}\n')
    with pytest.raises(UserError) as error:
        list(Corpus([path]))
    assert str(error.value) == (
        f'{path}, line 2: "text" is null; repair it, or leave out such rows with --skip-bad'
    )


@pytest.mark.parametrize("column", [["a", None], [b"a", b"\xff"]])
def test_bad_parquet_rows(tmp_path: Path, column: list[object]) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": column * 300}), path)
    with pytest.raises(UserError, match=r"d\.parquet, row 1: .* with --skip-bad"):
        list(Corpus([path]))
    corpus = Corpus([path], skip_bad=True)
    assert [d.text for d in corpus] == ["a"] * 300
    assert corpus.tally.lines()[1].startswith("left out 300 rows: ")


def test_a_line_that_is_too_long_is_one_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.data.json_rows.MAX_LINE", 100)
    long = [json.dumps({"text": "x" * n}) for n in (80, 100, 350, 3000)]
    (tmp_path / "d.jsonl").write_text("\n".join([*long, '{"text": "last"}']))
    corpus = Corpus([tmp_path / "d.jsonl"], skip_bad=True)
    assert [len(d.text) for d in corpus] == [80, 4]
    assert "left out 3 rows: more than" in corpus.tally.lines()[1]


def test_the_rest_of_a_damaged_file_is_left_out(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % n for n in range(20_000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:-1000])
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    (tmp_path / "z.txt").write_text("whole")
    corpus = Corpus([tmp_path], skip_bad=True)
    found = [d.text for d in corpus]
    assert found[-1] == "whole"
    assert found[:-1] == [str(n) for n in range(len(found) - 1)] and len(found) > 1000
    assert corpus.tally.lines()[2:] == [
        f"left out 1 file: cannot be decompressed ({tmp_path}/a.jsonl.gz, "
        f"after {len(found) - 1:,} rows)",
        f"left out 2 files: cannot be read as Parquet (the first: {tmp_path}/b.parquet)",
    ]


def test_an_error_of_the_disk_ends_it_in_any_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr(corpus_module, "read_text", fail)
    with pytest.raises(UserError, match=r"a\.txt: cannot be read: Input/output error; check"):
        list(Corpus([tmp_path], skip_bad=True))


def test_a_corpus_of_bad_rows_alone_is_refused_with_their_kinds(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"content": "x"}\n' * 3)
    with pytest.raises(UserError, match=r'the corpus is empty.*left out 3 rows: no field "text"'):
        list(Corpus([tmp_path], skip_bad=True))
