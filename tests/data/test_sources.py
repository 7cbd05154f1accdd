"""Tables, tars, Arrow files and hub folders: what is read, left out, and reported as damaged."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import webdataset

from pretrain.data.corpus import Corpus
from pretrain.errors import UserError

TEXTS = ["one\r\ntwo\n", '  "drei", ', "四\n" * 500, "é😀 last"]


def texts(*sources: Path, **options: object) -> list[str]:
    return [document.text for document in Corpus(sources, **options)]  # type: ignore[arg-type]


def lines(source: Path, **options: object) -> list[str]:
    """The lines about what was read and left out."""
    corpus = Corpus([source], **options)  # type: ignore[arg-type]
    list(corpus)
    return corpus.tally.lines()


def table(rows: list[list[str]], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue().encode()


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".TSV", "\t")])
def test_tables(tmp_path: Path, suffix: str, delimiter: str) -> None:
    rows = [["id", "text"], *([str(n), text] for n, text in enumerate(TEXTS))]
    content = b"\xef\xbb\xbf" + table(rows, delimiter) + b"\r\n"
    (tmp_path / f"a{suffix}").write_bytes(content)
    (tmp_path / f"b{suffix}.gz").write_bytes(gzip.compress(content))
    (tmp_path / f"c{suffix}").write_bytes(b"\n" + content.removeprefix(b"\xef\xbb\xbf"))
    assert texts(tmp_path) == TEXTS * 3


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (b"1,2,3\n", "row 2: not as many fields as in the header: 3 instead of 2"),
        (b"alone\n", "row 2: not as many fields as in the header: 1 instead of 2"),
        (b"1,\xff\n", "row 2: invalid UTF-8"),
    ],
)
def test_a_row_of_a_table_that_is_damaged(tmp_path: Path, row: bytes, told: str) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(b"id,text\n0,first\n" + row + b"2,last\n")
    with pytest.raises(UserError, match=told):
        texts(path)
    assert texts(path, skip_bad=True) == ["first", "last"]


def test_a_quote_that_is_never_closed_swallows_nothing_unsaid(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(b'text\nfirst\n"begins\nand goes on\n')
    with pytest.raises(UserError, match=r"d\.csv, line 4: malformed table: unexpected end of data"):
        texts(path)
    assert texts(path, skip_bad=True) == ["first"]


def test_a_table_without_the_column_is_left_out_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "scores.csv").write_text("model,score\na,1\n")
    assert texts(tmp_path) == ["text"]
    assert any('not exactly one column "text" (' in line for line in lines(tmp_path))
    with pytest.raises(UserError, match=r'"text": its columns are model, score; name .*--text-fi'):
        texts(tmp_path / "scores.csv")


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_column_whose_name_is_damaged_is_told_in_one_line(tmp_path: Path, kind: str) -> None:
    table, file = pa.table({"text": ["a"], "other": [1]}), io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, file, store_schema=False)
    else:
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    path = tmp_path / f"d.{kind}"
    path.write_bytes(file.getvalue().replace(b"other", b"oth\xffr"))
    with pytest.raises(UserError, match=rf"d\.{kind}: cannot be read as {kind.title()}: 'utf-8' c"):
        texts(path)
    path.write_bytes(file.getvalue().replace(b"text", b"te\nt"))
    with pytest.raises(UserError, match=r"its columns are te\\nt, other"):
        texts(path)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_tars_of_webdataset(tmp_path: Path) -> None:
    """JSON beside a text is metadata; without a text beside it, it contains the text."""
    with webdataset.TarWriter(str(tmp_path / "a.tar.gz"), compress=True) as tar:
        for n, text in enumerate(TEXTS):
            tar.write({"__key__": f"set.d/{n}", "txt": text, "json": {"text": "caption"}})
        tar.write({"__key__": "picture", "jpg": b"\xff\xd8"})
    with webdataset.TarWriter(str(tmp_path / "b.tar")) as tar:
        for n, text in enumerate(TEXTS):
            tar.write({"__key__": f"{n}", "json": {"text": text, "id": n}})
        tar.write({"__key__": "about", "json": {"title": "none"}})
    assert texts(tmp_path) == TEXTS * 2
    said = "\n".join(lines(tmp_path))
    assert "read 2 files (1 .tar, 1 .tar.gz), row by row" in said
    for part in ("4 members: .json beside a text", "1 member: .jpg (", '.json without "text"'):
        assert part in said, said


def test_a_member_may_begin_with_a_mark(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    members = {"a.json": mark + b'{"text": "first"}', "b.txt": mark + b"second"}
    assert texts(write_tar(tmp_path / "d.tar", members)) == ["first", "second"]
    (tmp_path / "e.txt").write_bytes(mark + b"third\xef\xbb\xbf")
    assert texts(tmp_path / "e.txt") == ["third\ufeff"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("b.txt", b"\xff", "member b.txt: invalid UTF-8 at byte 0"),
        ("b.json", b"{", "member b.json: malformed JSON"),
        ("b.json", b'{"text": null}', 'member b.json: "text" is null'),
    ],
)
def test_a_member_that_is_damaged(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = write_tar(tmp_path / "d.tar", {"a.txt": b"first", name: content, "c.txt": b"last"})
    with pytest.raises(UserError, match=told):
        texts(path)
    assert texts(path, skip_bad=True) == ["first", "last"]


def test_a_tar_of_a_folder_as_it_stands(tmp_path: Path) -> None:
    """`tar -cf d.tar -C folder .` has the folder itself as its first member, called "."."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("first")
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        tar.add(tmp_path / "folder", ".")
    assert texts(tmp_path / "d.tar") == ["first"]


@pytest.mark.parametrize("left", [3072, 3072 + 100, 3072 + 512, 3072 + 700, 100])
def test_a_tar_that_was_cut(tmp_path: Path, left: int) -> None:
    """Between two members or within one; what comes before is whole."""
    path = write_tar(tmp_path / "d.tar", {f"{n}.txt": b"x" * 600 for n in range(3)})
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match=f"{path}: cannot be read as a tar: "):
        texts(path)
    if left > 1000:
        assert texts(path, skip_bad=True) == ["x" * 600] * 2


def test_json_of_a_sample_that_was_cut(tmp_path: Path) -> None:
    """Its text may be the missing part."""
    members = {"a.txt": b"first", "b.json": b'{"text": "of b?"}', "b.txt": b"x" * 600}
    path = write_tar(tmp_path / "d.tar", members)
    path.write_bytes(path.read_bytes()[:2048])
    assert texts(path, skip_bad=True) == ["first"]


def test_members_of_one_name_up_to_the_first_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts are read one by one, however many; JSON is held back, as a text may be beside it."""
    monkeypatch.setattr("pretrain.data.tar.MAX_LINE", 100)
    path = write_tar(tmp_path / "d.tar", {f"all.{n}.txt": b"x" * 60 for n in range(5)})
    assert texts(path) == ["x" * 60] * 5
    captions = {f"all.{n}.json": b'{"text": "a"}' for n in range(9)}
    path = write_tar(tmp_path / "d.tar", {"all.txt": b"first"} | captions)
    assert texts(path) == ["first"]
    path = write_tar(tmp_path / "d.tar", captions)
    with pytest.raises(
        UserError, match=r"d.tar: a sample of more .* JSON, all: .*; make their names differ"
    ):
        texts(path)


def test_only_a_text_may_be_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A film beside it is left out, however long it is."""
    monkeypatch.setattr("pretrain.data.tar.MAX_LINE", 100)
    path = write_tar(tmp_path / "d.tar", {"a.txt": b"first", "a.mp4": b"x" * 101})
    assert texts(path) == ["first"]
    for name in ("b.txt", "b.json"):
        path = write_tar(tmp_path / "d.tar", {"a.txt": b"first", name: b"x" * 101})
        with pytest.raises(UserError, match=f"member {name}: more than .* MiB; split the text"):
            texts(path)
        assert texts(path, skip_bad=True) == ["first"]


def test_a_tar_that_is_damaged(tmp_path: Path) -> None:
    """Damage in a header is reported by name."""
    path = write_tar(tmp_path / "d.tar", {f"{n}.txt": b"x" * 600 for n in range(3)})
    sound = path.read_bytes()
    for at in (0, 150, 1536, 1700, 3072 + 130):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x11]) + sound[at + 1 :])
        with pytest.raises(UserError, match=f"{path}: cannot be read as a tar: "):
            texts(path)
    path.write_bytes(b"")
    (tmp_path / "a.txt").write_text("text")
    assert lines(tmp_path)[-1].startswith("left out 1 file: empty (")


def test_tars_that_were_put_one_after_the_other(tmp_path: Path) -> None:
    """Common readers see only the first."""
    one, two = (write_tar(tmp_path / f"{n}.tar", {"a.txt": n.encode()}) for n in "12")
    both = tmp_path / "both.tar"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(UserError, match="cannot be read as a tar: data follow its end"):
        texts(both)


def arrow_files(folder: Path) -> list[Path]:
    rows = pa.table({"id": range(4), "text": TEXTS})
    folder.mkdir(exist_ok=True)
    paths = [folder / name for name in ("stream.arrow", "file.arrow", "old.feather")]
    with pa.ipc.new_stream(paths[0], rows.schema) as stream:
        for batch in rows.to_batches(max_chunksize=3):
            stream.write_batch(batch)
    with pa.ipc.new_file(paths[1], rows.schema) as file:
        file.write_table(rows)
    feather.write_feather(rows, paths[2], compression="zstd")
    return paths


def test_arrow_files(tmp_path: Path) -> None:
    for path in arrow_files(tmp_path):
        assert texts(path) == TEXTS
    said = 'not exactly one column "body": its columns are id, text; name the column'
    with pytest.raises(UserError, match=said):
        texts(path, text_field="body")


def test_arrow_files_that_are_damaged(tmp_path: Path) -> None:
    """Damage at any byte is reported by name or has no effect; it never crashes."""
    rng = random.Random(0)
    for path in arrow_files(tmp_path):
        sound, told = path.read_bytes(), 0
        for at in rng.sample(range(len(sound)), 60):
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x55]) + sound[at + 1 :])
            try:
                texts(path)
            except UserError as error:
                assert str(path) in str(error)
                told += 1
        assert told > 5
        path.write_bytes(sound[: len(sound) // 2])
        with pytest.raises(UserError, match=f"{path}: cannot be read as Arrow"):
            texts(path)


def test_a_folder_of_the_hub(tmp_path: Path) -> None:
    """As in its cache: links to blobs; and as `datasets` saves to disk."""
    blobs = tmp_path / "datasets--a--b" / "blobs"
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "0123" / "data"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    pq.write_table(pa.table({"text": TEXTS}), blobs / "c0ffee")
    (blobs / "beef").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (blobs / "cafe").write_text(json.dumps({"default": {"features": {"text": {}}}}))
    (snapshot / "train-00000-of-00001.parquet").symlink_to(blobs / "c0ffee")
    (snapshot / "train.jsonl").symlink_to(blobs / "beef")
    (snapshot.parent / "dataset_infos.json").symlink_to(blobs / "cafe")
    (snapshot.parent / "README.md").write_text("the card")
    assert texts(tmp_path / "datasets--a--b") == TEXTS * 2

    saved = tmp_path / "saved"
    arrow_files(saved)[0].rename(saved / "data-00000-of-00001.arrow")
    for name in ("file.arrow", "old.feather"):
        (saved / name).unlink()
    (saved / "dataset_info.json").write_text('{"features": {"text": {"dtype": "string"}}}')
    (saved / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    assert texts(saved) == TEXTS
    assert any(line.startswith("left out 2 files: neither JSON lines nor") for line in lines(saved))
    for name in ("cache-1af801adefdf1afe.arrow", "cache-1af801adefdf1afe_00000_of_00004.arrow"):
        shutil.copy(saved / "data-00000-of-00001.arrow", saved / name)  # of a map or a filter
    assert texts(saved) == TEXTS
    told = "left out 2 files: cache of `datasets`, derived from other files (the first: "
    assert told in str(lines(saved))
    assert texts(saved / "cache-1af801adefdf1afe.arrow") == TEXTS
