"""Documents from tars as webdataset writes them: KEY.txt, or KEY.json with the text in a field.

Consecutive members whose names are the same up to the first dot form a sample. Its text members are
documents, and a JSON member beside them is metadata; in a sample without text members, the JSON has
the text (so JSON is held back until a text member or the end of its sample).
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

from pretrain.data.compression import open_stream
from pretrain.data.formats import BOM, Document, LeftOut, Rejected, as_text, split_text
from pretrain.data.json_rows import MAX_LINE, json_document
from pretrain.data.suffixes import TEXT_SUFFIXES
from pretrain.files import parse_json

Row = Document | Rejected | LeftOut
Member = tuple[tarfile.TarInfo, bytes | None]  # with its content, if it is text or JSON


def read_tar(path: Path, name: str, key: str, separator: str) -> Iterator[Row]:
    """The texts of all samples, in order; of a damaged tar, all before the damage, except JSON of
    the last sample, of which a text may be missing. Text members, not JSON, are split at
    separators.
    """
    try:
        with (
            open_stream(path) as file,
            tarfile.open(fileobj=file, mode="r|", tarinfo=_Member) as tar,
        ):
            members = ((info, _content(tar, info)) for info in tar)
            for _, sample in groupby(members, lambda member: _sample(member[0].name)):
                yield from _texts(sample, path, name, key, separator)
            _check_end(tar.fileobj)
    except tarfile.TarError as error:
        raise Rejected(
            str(path), "cannot be read as a tar", f": {error}", fix="copy it again if it is damaged"
        ) from None


class _Member(tarfile.TarInfo):
    """A member whose reader raises if the tar has no end, or garbage between its members."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:  # the library would take this for the end
            raise tarfile.ReadError(f"neither a member nor the end of the tar ({error})") from None


def _check_end(rest: Any) -> None:
    """ReadError if something follows the end, as in concatenated tars."""
    while chunk := rest.read(1 << 16):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("data follow its end, as when two tars are joined")


def _sample(name: str) -> str:
    """The part of a member's name that its sample shares."""
    path = PurePosixPath(name)
    first = path.name.partition(".")[0] or path.name
    return str(path.with_name(first)) if first else name  # "." has none


def _suffix(info: tarfile.TarInfo) -> str:
    return PurePosixPath(info.name.lower()).suffix


def _is_read(info: tarfile.TarInfo) -> bool:
    """Whether a member is text or JSON."""
    return info.isfile() and _suffix(info) in (*TEXT_SUFFIXES, ".json")


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes | None:
    """The content of a text or JSON member, unless too long; read it before the next member."""
    if not _is_read(info) or info.size > MAX_LINE:
        return None
    member: IO[bytes] | None = tar.extractfile(info)
    assert member is not None, "it is a file"
    return member.read()


def _texts(
    sample: Iterable[Member], path: Path, name: str, key: str, separator: str
) -> Iterator[Row]:
    has_text, held = False, 0
    waiting: list[tuple[bytes, str, str]] = []
    for info, content in sample:
        place, source = f"{path}, member {info.name}", f"{name}/{info.name}"
        if info.isdir():
            continue
        if PurePosixPath(info.name).name.startswith("."):
            yield LeftOut("hidden", place)
        elif content is None and _is_read(info):
            yield Rejected(place, f"more than {MAX_LINE >> 20} MiB", fix="split the text")
        elif content is None:
            suffix = _suffix(info) or "without a suffix"
            yield LeftOut(suffix if info.isfile() else "not a file", place)
        elif _suffix(info) in TEXT_SUFFIXES:
            has_text = True
            if separator and content:
                yield from split_text(io.BytesIO(content), separator, place, source)
            else:
                yield _text(content, place, source)
        elif has_text:
            yield LeftOut(".json beside a text", place)
        else:
            waiting.append((content, place, source))
            if (held := held + len(content)) > MAX_LINE:
                raise Rejected(
                    str(path),
                    f"a sample of more than {MAX_LINE >> 20} MiB of JSON",
                    f", {_sample(info.name)}: members whose names are the same up to the first dot",
                    fix="make their names differ before it",
                )
    for content, place, source in waiting:
        if has_text:
            yield LeftOut(".json beside a text", place)
        else:
            yield _json(content, key, place, source)


def _text(content: bytes, place: str, source: str) -> Row:
    try:
        return Document(as_text(content), source)
    except UnicodeDecodeError as error:
        return Rejected(
            place, "invalid UTF-8", f" at byte {error.start}", fix="convert it to UTF-8"
        )


def _json(content: bytes, key: str, place: str, source: str) -> Row:
    try:
        value = parse_json(content.removeprefix(BOM))
    except ValueError as error:
        return Rejected(place, str(error).partition(" at byte ")[0], fix="repair it")
    if not isinstance(value, dict) or key not in value:
        return LeftOut(f'.json without "{key}"', place)
    return json_document(value, key, place, source)
