"""What common tools write: archives, kinds of Parquet columns, and three forms of .json."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pretrain.data import json_rows
from pretrain.data.corpus import Corpus
from pretrain.data.suffixes import ROW_SUFFIXES
from pretrain.errors import UserError

TEXTS = ["one\r\ntwo\n", "  drei  ", "四\n" * 500, "last"]
LINES = [json.dumps({"text": text}).encode() + b"\n" for text in TEXTS]
SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"  # a frame to skip


def texts(*sources: Path, **options: object) -> list[str]:
    return [document.text for document in Corpus(sources, **options)]  # type: ignore[arg-type]


def zstd_long(data: bytes, window_log: int) -> bytes:
    """As `zstd --long` writes from a pipe, which does not know the size."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        1, window_log=window_log, hash_log=10, chain_log=10, enable_ldm=False
    )
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return frame.compress(data) + frame.flush()


ARCHIVES: dict[str, Callable[[bytes, bytes], bytes]] = {
    "members.gz": lambda a, b: gzip.compress(a) + gzip.compress(b"") + gzip.compress(b),
    "padded.gz": lambda a, b: gzip.compress(a + b) + bytes(100),
    "long27.zst": lambda a, b: zstd_long(a + b, 27),
    "long31.zst": lambda a, b: zstd_long(a + b, 31),
    "frames.zst": lambda a, b: (
        SKIPPABLE + zstandard.compress(a) + SKIPPABLE + zstandard.compress(b"")
        + zstd_long(b, 30) + SKIPPABLE
    ),
    "sized.zstd": lambda a, b: zstandard.ZstdCompressor(write_checksum=True).compress(a + b),
    "streams.xz": lambda a, b: lzma.compress(a) + lzma.compress(b, preset=9),
    "streams.bz2": lambda a, b: bz2.compress(a) + bz2.compress(b),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ROW_SUFFIXES)
def test_a_file_of_rows_is_not_read_as_text(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"d{suffix}").write_text("text without rows")
    with pytest.raises(UserError, match=f"d{suffix}"):
        texts(tmp_path / f"d{suffix}")


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("suffix", [".jsonl", ".NDJSON", ".json"])
def test_archives_of_rows(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"d{suffix}{Path(name).suffix}"
    path.write_bytes(ARCHIVES[name](b"".join(LINES[:2]), b"".join(LINES[2:])))
    assert texts(path) == TEXTS


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_one_text(tmp_path: Path, name: str) -> None:
    (tmp_path / f"BOOK.TXT{Path(name).suffix.upper()}").write_bytes(ARCHIVES[name](b"a\n", b"b"))
    assert texts(tmp_path) == ["a\nb"]


NO_MEMORY = """
import resource, sys
from pretrain.data.corpus import Corpus
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
try:
    list(Corpus([sys.argv[1]]))
except ValueError as error:
    print(error)
"""


def test_a_need_for_memory_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl.zst"
    path.write_bytes(zstd_long(b"".join(LINES), 31))
    told = subprocess.run(
        [sys.executable, "-c", NO_MEMORY, path], capture_output=True, text=True, check=True
    ).stdout
    assert told.startswith(f"{path}: its window (zstd --long), of up to 2 GiB, does not fit")
    assert "damaged" not in told


def test_a_dictionary_that_is_not_there_is_named(tmp_path: Path) -> None:
    samples = [b'{"text": "%d sheep"}' % n for n in range(2000)]
    dictionary = zstandard.train_dictionary(2000, samples)
    data = zstandard.ZstdCompressor(dict_data=dictionary).compress(LINES[0])
    (tmp_path / "d.jsonl.zst").write_bytes(data)
    with pytest.raises(UserError, match=r"compressed with a dictionary \(zstd -D\)"):
        texts(tmp_path)


BYTES = [text.encode() for text in TEXTS]
COLUMNS = {
    "string": pa.array(TEXTS),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "string_view": pa.array(TEXTS, pa.string_view()),
    "binary": pa.array(BYTES, pa.binary()),
    "large_binary": pa.array(BYTES, pa.large_binary()),
    "binary_view": pa.array(BYTES, pa.binary_view()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "dictionary of large_string": pa.array(TEXTS, pa.large_string()).dictionary_encode(),
    "dictionary of binary": pa.array(BYTES).dictionary_encode(),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_kind_of_string_in_parquet(tmp_path: Path, kind: str) -> None:
    chunks = pa.chunked_array([COLUMNS[kind]] * 200)
    table = pa.table({"text": chunks, "id": list(range(800))})
    pq.write_table(table, tmp_path / "D.PARQUET", row_group_size=7)
    assert texts(tmp_path / "D.PARQUET") == TEXTS * 200


def test_fixed_size_binary_and_json_in_parquet(tmp_path: Path) -> None:
    for name, column in (("a", pa.array([b"ab", b"cd"], pa.binary(2))), ("b", pa.array(["{}"]))):
        if name == "b":
            column = column.cast(pa.json_())
        pq.write_table(pa.table({"text": column}), tmp_path / f"{name}.parquet")
    assert texts(tmp_path) == ["ab", "cd", "{}"]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([1, 2]), "int64"),
        (pa.array([["a"]]), "list<element: string>"),
        (pa.array([{"a": "b"}]), "struct<a: string>"),
        (pa.array([True]), "bool"),
    ],
)
def test_other_parquet_columns_are_refused_with_their_type(
    tmp_path: Path, column: pa.Array, kind: str
) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "d.parquet")
    with pytest.raises(UserError) as error:
        texts(tmp_path)
    assert f'd.parquet: column "text" is {kind}, not text; name the column' in str(error.value)


def test_parquet_inside_an_archive_is_refused_as_that(tmp_path: Path) -> None:
    (tmp_path / "d.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(UserError, match=r"d\.parquet\.gz: Parquet inside \.gz; decompress it"):
        texts(tmp_path)


@pytest.mark.parametrize("damage", ["foreign", "truncated", "column"])
def test_damaged_parquet_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"content" if damage == "column" else "text": TEXTS}), path)
    if damage == "foreign":
        path.write_bytes(b"hello")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"d\.parquet: ") as error:
        texts(path)
    assert "\n" not in str(error.value)


RECORDS = [{"text": text, "n": [1, {"a": "]"}]} for text in TEXTS]
JSON = {
    "lines": b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS),
    "lines, blank first": b"\n\n" + b"".join(LINES),
    "lines, with a mark": b"\xef\xbb\xbf" + b"".join(LINES),
    "array on one line": json.dumps(RECORDS).encode(),
    "array, indented": json.dumps(RECORDS, indent=2, ensure_ascii=False).encode(),
    "array, blank first": b"\n" * 9 + json.dumps(RECORDS).encode(),
    "array of lines": b"[\n" + b",\n".join(line.strip() for line in LINES) + b"\n]\n",
    "array, with a mark": b"\xef\xbb\xbf" + json.dumps(RECORDS).encode(),
}


@pytest.mark.parametrize("form", JSON)
@pytest.mark.parametrize("chunk", [3, 64, 1 << 16])
def test_json_lines_or_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, chunk: int
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    (tmp_path / "d.json").write_bytes(JSON[form])
    assert texts(tmp_path / "d.json") == texts(tmp_path) == TEXTS


@pytest.mark.parametrize("indent", [None, 1])
def test_json_of_one_object_is_one_document(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "d.json").write_text(json.dumps(RECORDS[0], indent=indent))
    assert texts(tmp_path) == TEXTS[:1]


@pytest.mark.parametrize("content", ['{"features": {}}', '{\n "version": 1\n}', '["a", "b"]', "3"])
def test_json_without_documents_is_left_out_of_a_folder_and_refused_by_name(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "d.jsonl").write_bytes(LINES[0])
    (tmp_path / "info.json").write_text(content)
    corpus = Corpus([tmp_path])
    assert [d.text for d in corpus] == TEXTS[:1]
    assert "left out 1 file: " in corpus.tally.lines()[1] and "info.json" in corpus.tally.lines()[1]
    with pytest.raises(UserError, match=r"info\.json: .*JSON"):
        texts(tmp_path / "info.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[{"text": "a"}, {"text": null}]', 'element 2: "text" is null'),
        ('[{"text": "a"}, 3]', 'element 2: no field "text"'),
        ('[{"text": "a"}, {"text": "b"', "element 2: malformed JSON"),
        ('[{"text": "a"} {"text": b}]', "element 2: malformed JSON"),
        ('{"text": "a"}\n{"text": "b"\n', "line 2: malformed JSON"),
        ('{"text": "a"\n{"text": "b"}\n', "line 1: malformed JSON"),
    ],
)
def test_bad_element_is_named_or_left_out(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(UserError, match=rf"d\.json, {reason}"):
        texts(tmp_path)
    assert len(texts(tmp_path, skip_bad=True)) == 1


@pytest.mark.parametrize("chunk", [3, 1 << 16])
@pytest.mark.parametrize("more", ['\n[{"text": "b"}]', ' {"text": "b"}', "]"])
def test_what_follows_an_array_is_not_left_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, more: str
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    (tmp_path / "d.json").write_text('[{"text": "a"}]' + more)
    with pytest.raises(UserError, match=r"d\.json: more JSON after the end of its array"):
        texts(tmp_path)
    assert texts(tmp_path, skip_bad=True) == ["a"]


def test_bytes_that_are_no_utf8_spoil_one_element(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_bytes(b'[{"text": "a"}, {"text": "\xff"}, {"text": "b"}]')
    assert texts(tmp_path, skip_bad=True) == ["a", "b"]
