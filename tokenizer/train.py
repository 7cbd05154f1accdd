"""Trains a sentencepiece BPE tokenizer on documents."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from tokenizer.cut import parts
from tokenizer.encode import Tokenizer
from tokenizer.errors import TokenizerError
from tokenizer.files import check_writable, write_atomic
from tokenizer.seal import seal

PAD, EOS, UNK = 0, 1, 2
MAX_PIECES = 1 << 20
COVERAGE = 0.9995  # share of the documents' characters that get a piece of their own
MAX_UNIT = 1 << 20  # characters; sentencepiece silently drops a unit of 1 GiB

# Kept from the trainer: NUL ends its strings, and U+2581 (its space) and U+2585 (its unknown
# character) are its own marks, so a sentence with one of them would be dropped or misread. All
# three are still encoded, as bytes.
_MARKS = re.compile("[\x00\u2581\u2585]+")


def train(documents: Iterable[str], path: str | Path, vocab_size: int = 8192) -> Tokenizer:
    """Learn `vocab_size` pieces from `documents`, write the model to `path` and return it loaded.

    BPE with byte fallback; PAD, EOS and <unk> are ids 0, 1 and 2, the 256 bytes follow. Text is not
    changed: no normalisation, no dummy prefix, runs of spaces kept. Characters beyond COVERAGE, and
    those that the documents lack, even the space, are encoded as bytes. The same documents give the
    same file, byte for byte.

    Raises TokenizerError when the documents are empty or too few for the vocabulary (it says how
    many pieces they can give), the vocabulary cannot hold the bytes and the characters, or `path`
    cannot be written (before anything is read).
    """
    if vocab_size > MAX_PIECES:
        raise TokenizerError(
            f"tokenizer: --vocab-size {vocab_size}: set it to {MAX_PIECES} or less"
        )
    path = Path(path)
    check_writable(path)
    failures: list[BaseException] = []
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_noting(failures, _sentences(documents)),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=COVERAGE,
            byte_fallback=True,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNK,
            bos_id=-1,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_by_whitespace=True,
            max_sentence_length=1 << 30,  # bytes; more than MAX_UNIT characters can take
            num_threads=1,  # for a deterministic order of counting
            minloglevel=2,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        raise TokenizerError(_explain(str(error), vocab_size)) from None
    file = seal(model.getvalue())
    made = Tokenizer.of(file)  # before writing: refuses a model that changes text
    write_atomic(path, file)
    return made


def _sentences(documents: Iterable[str]) -> Iterator[str]:
    """The trainer's units of text, from all documents."""
    first, learns = "", False
    for document in documents:
        first = first or document[:4096]
        for unit in _units(document):
            learns = learns or unit.strip("\r\n") != ""
            yield unit
    if first and not learns:  # only line ends and marks, of which sentencepiece keeps nothing
        yield _MARKS.sub("", first) + " "


def _noting(failures: list[BaseException], sentences: Iterator[str]) -> Iterator[str]:
    """The same sentences; records an error, because sentencepiece replaces it by its own."""
    try:
        yield from sentences
    except BaseException as error:
        failures.append(error)
        raise


def _units(document: str) -> Iterator[str]:
    """Stretches of several lines, so that pieces such as ":\\n" can be learned."""
    for stretch in _MARKS.split(document):
        for part in parts(stretch, size=4096):
            yield from (part[at : at + MAX_UNIT] for at in range(0, len(part), MAX_UNIT))


def _explain(error: str, vocab_size: int) -> str:
    """One line, with the fix, for what sentencepiece reports."""
    if "sentences_.empty()" in error:
        return (
            "tokenizer: the documents hold no text to learn from; give a corpus that is not empty"
        )
    if limit := re.search(r"value <= (\d+)", error):
        return (
            f"tokenizer: --vocab-size {vocab_size} is more than these documents can give; "
            f"set it to {limit[1]} or less, or train on more text"
        )
    if needed := re.search(r"required_chars\. \d+ vs (\d+)", error):
        return (
            f"tokenizer: --vocab-size {vocab_size} cannot hold the 256 bytes and the documents' "
            f"characters; set it to {int(needed[1]) + 1} or more"
        )
    return f"tokenizer: sentencepiece could not train with --vocab-size {vocab_size}: {error}"
