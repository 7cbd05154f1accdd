"""Sessions on disk: one safetensors file each, written atomically and verified when read.

    blocks.B.S, .tail, .k, .v   the memory of block B; of keys and values, those in use
    hidden                      of the open window, [1, t, D]
    seen                        [vocabulary] bool
    metadata                    format version; the model's fingerprint; N, and the session's
                                position in its window and sleep; sampling settings and number of
                                draws; the caller's notes; sha256 of all this and of every tensor

A restored session continues exactly as the saved one would have, even in the middle of a sleep, but
only with the model that it was saved with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from parallel import mesh
from pretrain.errors import UserError, not_written, shortened
from pretrain.files import read_whole, write_atomically
from pretrain.inference.decode import Decoder
from pretrain.inference.sampling import Sampler, Sampling
from pretrain.inference.session import Session

FORMAT = "hypnos session 3"
WHERE = ("ended", "done", "slept", "sleep_passes", "until")  # attributes of a session
HOW_FULL = ("past", "filled", "position")  # attributes of its memory


class Saved(NamedTuple):
    """The content of a session file."""

    session: Session
    sampler: Sampler | None
    notes: dict[str, Any]


def save_session(
    path: Path,
    session: Session,
    sampler: Sampler | None = None,
    notes: Mapping[str, Any] | None = None,
) -> int:
    """Writes a session durably, replacing an existing file; waits for a sleep in the background.

    Args:
        sampler: that of its answers, if the next answer is to continue its draws.
        notes: JSON-serialisable, returned by `load_session`.
    Returns:
        the file's size in bytes.
    Raises:
        UserError: it cannot be written, or its notes are too long. ValueError: the session spans
            several ranks.
    """
    if mesh.tp_size() > 1:
        raise ValueError("a session is saved by one process: run the model with tp = 1")
    session.wait()
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in session.memory.named_tensors().items()
    } | {"seen": torch.from_numpy(session.seen)}
    facts = {
        "format": FORMAT,
        "model": session.decoder.fingerprint,
        "passes": session.passes,
        "session": {name: getattr(session, name) for name in WHERE},
        "memory": {name: getattr(session.memory, name) for name in HOW_FULL},
        "sampler": sampler and [asdict(sampler.sampling), sampler.vocab_size, sampler.drawn],
        "notes": dict(notes or {}),
    }
    # only lone surrogates are escaped: the header, which is limited, escapes all of it again
    said = json.dumps(facts, ensure_ascii=False).encode(errors="backslashreplace").decode()
    try:
        content = save(tensors, {"session": said, "sha256": _checksum(said, tensors)})
        write_atomically(path, content)
    except OSError as error:
        raise UserError(not_written(path, error)) from None
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be written: {error}") from None
    return len(content)


def load_session(path: Path, decoder: Decoder) -> Saved:
    """Reads a session that `save_session` wrote.

    Raises:
        UserError: names the file: it is missing, damaged, or belongs to another model.
    """
    try:
        content = read_whole(path)  # once: it may be replaced at any moment
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__") or {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a saved session: {shortened(str(error))}") from None
    said = metadata.get("session", "")
    if not said:
        raise UserError(f"{path}: not a saved session: it has no session metadata")
    if metadata.get("sha256") != _checksum(said, tensors):
        raise UserError(f"{path}: damaged: its content is not what was written; copy it again")
    facts = json.loads(said)
    if facts["format"] != FORMAT:
        raise UserError(f"{path}: written by another version of Hypnos: {facts['format']}")
    if facts["model"] != decoder.fingerprint:
        theirs, ours = facts["model"][:12], decoder.fingerprint[:12]
        raise UserError(
            f"{path}: a session of another model ({theirs}, this one is {ours}); open it with the "
            "weights and the [sleep] settings that it was saved with"
        )
    session = Session(decoder, facts["passes"])
    session.seen[:] = tensors.pop("seen").numpy()
    for name in WHERE:
        setattr(session, name, facts["session"][name])
    for name, value in facts["memory"].items():
        setattr(session.memory, name, value)
    for name, room in session.memory.named_tensors().items():
        room.copy_(tensors[name])
    sampler = None
    if facts["sampler"]:
        settings, vocab_size, drawn = facts["sampler"]
        sampler = Sampler(Sampling(**settings), vocab_size, drawn)
    return Saved(session, sampler, facts["notes"])


def _checksum(said: str, tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(said.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
