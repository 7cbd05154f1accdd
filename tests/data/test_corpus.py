"""Documents from text and JSON lines, and one clear error line for each kind of damage."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from pretrain.data.corpus import Corpus, PythonCorpus
from pretrain.errors import UserError

TEXTS = ["one\r\ntwo\n", "  drei  ", "四\n" * 5000, "last"]


def texts(*sources: Path, **options: object) -> list[str]:
    return [document.text for document in Corpus(sources, **options)]  # type: ignore[arg-type]


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def json_lines(key: str = "text") -> bytes:
    return b"".join(json.dumps({key: text, "id": 1}).encode() + b"\n" for text in TEXTS)


def test_folder_is_read_in_sorted_order_with_files_kept_whole(tmp_path: Path) -> None:
    for name, text in {
        "b.txt": "b",
        "a/z.md": "z\r\n",
        "a/b.py": "py",
        "c.rst": "c",
        "empty.txt": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    documents = list(Corpus([tmp_path]))
    assert [d.text for d in documents] == ["py", "z\r\n", "b", "c"]
    assert documents[0].source == f"{tmp_path.name}/a/b.py"
    assert texts(tmp_path, suffixes=[".md", ".rst"]) == ["z\r\n", "c"]


def test_single_files_of_any_suffix(tmp_path: Path) -> None:
    (tmp_path / "book").write_text("text")
    assert texts(tmp_path / "book", tmp_path / "book") == ["text", "text"]


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.jsonl.zst"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    content = (
        json_lines().replace(b"\n", b"\n\n", 1) + b'{"text": ""}\n' + json_lines().rstrip(b"\n")
    )
    if name.endswith("gz"):
        content = gzip.compress(content[:100]) + gzip.compress(content[100:])
    elif name.endswith("zst"):  # several frames, as `zstd` and `pzstd` write
        content = (
            zstandard.compress(content[:100])
            + zstandard.compress(b"")
            + zstandard.compress(content[100:])
        )
    (tmp_path / name).write_bytes(content)
    assert texts(tmp_path / name) == TEXTS * 2
    sources = [d.source for d in Corpus([tmp_path / name])]
    assert sources[1].endswith(f"{name}:3")


def test_json_field_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(json_lines("content"))
    assert texts(tmp_path / "d.jsonl", text_field="content") == TEXTS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "malformed JSON"),
        (b'{"content": "x"}', 'no field "text"'),
        (b'["text"]', 'no field "text"'),
        (b'{"text": 3}', '"text" is a number, not text'),
        (b'{"text": null}', '"text" is null'),
        (b'{"text": {}}', '"text" is an object, not text'),
        (b'{"text": "\xff"}', "invalid UTF-8 at byte 10"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
    ],
)
def test_bad_json_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "d.jsonl").write_bytes(json_lines() + line + b"\n" + json_lines())
    with pytest.raises(UserError, match=rf"d\.jsonl, line 5: .*{reason}") as error:
        texts(tmp_path / "d.jsonl")
    one_line(error)


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.jsonl.zst"])
@pytest.mark.parametrize("damage", ["truncated", "foreign", "flipped"])
def test_damaged_compressed_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    whole = (
        gzip.compress
        if name.endswith("gz")
        else zstandard.ZstdCompressor(write_checksum=True).compress
    )(json_lines())
    middle = len(whole) // 2
    content = {
        "truncated": whole[:-5],
        "foreign": json_lines(),
        "flipped": whole[:middle] + bytes([whole[middle] ^ 0x55]) + whole[middle + 1 :],
    }[damage]
    (tmp_path / name).write_bytes(content)
    told = rf"{name}(, after \d rows)?: cannot be decompressed: .*; copy it again if it is damaged"
    with pytest.raises(UserError, match=rf"{told}|{name}, line \d: malformed") as error:
        texts(tmp_path / name)
    one_line(error)


def test_invalid_utf8_is_named_or_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"abc\xe9")
    (tmp_path / "good.txt").write_text("good")
    with pytest.raises(UserError, match=r"bad\.txt: invalid UTF-8 at byte 3") as error:
        texts(tmp_path)
    corpus = Corpus([tmp_path], skip_bad=True)
    assert [d.text for d in corpus] == ["good"]
    one_line(error)
    assert corpus.tally.lines() == [
        "read 1 file (1 .txt), each as one text",
        f"left out 1 file: invalid UTF-8 ({tmp_path / 'bad.txt'})",
    ]


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"dangling\.txt: cannot be read: No such file") as error:
        texts(tmp_path)
    one_line(error)


@pytest.mark.parametrize("kind", ["missing", "no such suffix", "only empty files", "empty jsonl"])
def test_empty_corpus_is_refused(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source.jsonl" if kind == "empty jsonl" else tmp_path / "source"
    if kind == "empty jsonl":
        source.write_text("\n\n")
    elif kind != "missing":
        source.mkdir()
        (source / ("a.bin" if kind == "no such suffix" else "a.txt")).write_text("")
    with pytest.raises(UserError, match="source") as error:
        texts(source)
    one_line(error)


def test_python_corpus_is_whole_files_of_the_standard_library() -> None:
    documents = {d.source: d.text for d in PythonCorpus()}
    assert documents["python/json/decoder.py"] == Path(json.decoder.__file__).read_bytes().decode()
    assert 3e6 < sum(map(len, documents.values())) < 40e6
    assert not [name for name in documents if "site-packages" in name or "/test/" in name]
    assert list(documents) == [d.source for d in PythonCorpus()]
