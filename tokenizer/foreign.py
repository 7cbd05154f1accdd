"""The tokenizer of a Hugging Face folder: its files, copied unchanged, and what they mean."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizer.errors import TokenizerError
from tokenizer.fast_model import FastModel
from tokenizer.files import write_atomic
from tokenizer.seal import is_whole
from tokenizer.sentencepiece_model import SentencePieceModel

FAST, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")  # that name EOS and PAD
TEMPLATE, TEMPLATES = "chat_template.jinja", ("chat_template.json", "tokenizer_config.json")
FILES = (
    FAST, SENTENCEPIECE, *CONFIGS, "added_tokens.json", "vocab.json", "merges.txt",
    TEMPLATE, "chat_template.json",
)  # fmt: skip
KINDS = ("bos_token", "eos_token", "pad_token", "unk_token")  # that chat templates may name
SUMS = "SHA256SUMS"  # as `sha256sum` writes and checks it


class Chat(NamedTuple):
    """How a model's conversations are written.

    template  in Jinja; "" if there is none
    names     the text of special tokens in it, by `KINDS`
    """

    template: str
    names: dict[str, str]


NO_CHAT = Chat("", {})


def is_foreign(path: Path) -> bool:
    """Whether it is a folder with a tokenizer that `hypnos tokenizer train` did not make."""
    if not any((path / name).exists() for name in (FAST, SENTENCEPIECE)):
        return False
    own = path / SENTENCEPIECE
    return not (own.exists() and is_whole(own.read_bytes()))


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder's tokenizer, by name. TokenizerError: one is damaged."""
    held = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
    sums = folder / SUMS
    if sums.exists() and sums.read_text(errors="replace") != _sums(held):
        raise TokenizerError(
            f"{folder}: changed since it was written (`sha256sum -c {SUMS}` there)"
        )
    return held


def copy(folder: Path, to: Path) -> list[str]:
    """Copies the files of a folder's tokenizer to another folder; returns their names."""
    held = contents(folder)
    for name, content in held.items():
        write_atomic(to / name, content)
    return list(held)


def hold(folder: Path, run: Path) -> None:
    """Like `copy`, with checksums written last: without them the copy is incomplete."""
    copy(folder, run)
    write_atomic(run / SUMS, _sums(contents(folder)).encode())


def _sums(held: dict[str, bytes]) -> str:
    return "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in held.items()
    )


def read(folder: Path) -> tuple[SentencePieceModel | FastModel, str, Chat]:
    """The pieces, a fingerprint of what determines the ids, and how conversations are written.

    In a folder with both kinds, tokenizer.json is used, as in transformers: only it has tokens that
    were added later.
    """
    held = contents(folder)
    if FAST not in held:
        model = SentencePieceModel(held[SENTENCEPIECE])
        return model, hashlib.sha256(held[SENTENCEPIECE]).hexdigest(), _chat(held)
    eos, pad = (_special(held, kind) for kind in ("eos_token", "pad_token"))
    if eos is None:
        raise TokenizerError(
            f"no eos_token in {' or '.join(CONFIGS)}; add the one it was trained with"
        )
    decisive = held[FAST] + f"\0{eos}\0{pad}".encode()
    return FastModel(held[FAST], eos, pad), hashlib.sha256(decisive).hexdigest(), _chat(held)


def _chat(held: dict[str, bytes]) -> Chat:
    """The chat template; of several, the one named default."""
    names = {kind: token for kind in KINDS if (token := _special(held, kind)) is not None}
    try:
        if TEMPLATE in held:
            return Chat(held[TEMPLATE].decode(), names)
        for name in TEMPLATES:
            found: Any = json.loads(held.get(name, b"{}")).get("chat_template") or ""
            if isinstance(found, list):
                found = {each["name"]: each["template"] for each in found}.get("default", "")
            if found:
                return Chat(str(found), names)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise TokenizerError(f"its chat template cannot be read: {error}") from None
    return Chat("", names)


def _special(held: dict[str, bytes], kind: str) -> str | None:
    """A special token, from the first file that defines it."""
    for name in CONFIGS:
        try:
            described: Any = json.loads(held.get(name, b"{}"))
            token = described.get(kind)
            if token is not None:
                return str(token["content"] if isinstance(token, dict) else token)
        except (ValueError, AttributeError, KeyError):
            raise TokenizerError(f"{name}: does not name an {kind} as transformers does") from None
    return None
