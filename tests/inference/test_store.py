"""Sessions that are saved and restored continue as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pretrain.errors import UserError
from pretrain.files import read_whole
from pretrain.inference import store
from pretrain.inference.decode import Decoder
from pretrain.inference.sampling import Sampler, Sampling
from pretrain.inference.session import Session, read_together
from pretrain.inference.store import load_session, save_session
from tests.inference.test_session import L, make_batch, make_decoder
from tests.model.tiny import equal

IDS = make_batch().tokens[0].tolist()


def written(session: Session, sampler: Sampler, count: int) -> list[int]:
    """Lets the session sample and read tokens; returns them."""
    tokens, logits = [], session.read([1])
    for _ in range(count):
        tokens.append(sampler.choose(logits, session.seen).token)
        session.sleep()
        logits = read_together([session], tokens[-1:])[0]
    return tokens


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
def test_it_goes_on_from_any_point(tmp_path: Path, eviction: str) -> None:
    """After any number of tokens, in any pass of a sleep, with the same further draws."""
    decoder, path = make_decoder(eviction=eviction, passes=3, coda=1), tmp_path / "s"
    reopened = make_decoder(eviction=eviction, passes=3, coda=1)
    for length in (0, 4, 2 * L):
        for passes_made in (0, 1):
            session, sampler = Session(decoder, passes=4), Sampler(Sampling(seed=7, top_k=9))
            if length:
                session.read(IDS[:length])
            sampler.drawn = length
            if passes_made and not session.pending:
                continue
            if passes_made:
                session.sleep_pass()
            size = save_session(path, session, sampler, {"of": "Ada", "turns": [1, 2]})
            assert size == path.stat().st_size
            found, drawn, notes = load_session(path, reopened)
            assert drawn is not None and notes == {"of": "Ada", "turns": [1, 2]}
            assert (found.position, found.pending, found.passes, found.slept) == (
                session.position, session.pending, session.passes, session.slept,
            )  # fmt: skip
            assert written(found, drawn, L + 1) == written(session, sampler, L + 1)
            assert equal(found.memory.named_tensors(), session.memory.named_tensors())
            assert (found.seen == session.seen).all()


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_session(path, Session(make_decoder()))
    other = make_decoder()
    with torch.no_grad():
        other.model.blocks["1"].mixer.A_log[0] += 1e-3
    for decoder in (other, make_decoder(eviction="sliding"), make_decoder(prelude=1)):
        with pytest.raises(
            UserError, match=rf"^{path}: a session of another model \([0-9a-f]{{12}}"
        ):
            load_session(path, Decoder(decoder.model))
    load_session(path, make_decoder(passes=7))  # N is the session's own


def test_every_byte_is_checked(tmp_path: Path) -> None:
    decoder, path = make_decoder(), tmp_path / "s"
    session = Session(decoder)
    session.read(IDS[:4])
    save_session(path, session, notes={"who": "me"})
    whole = path.read_bytes()
    for at in range(8, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match=f"^{path}: "):
            load_session(path, decoder)
    for cut in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=f"^{path}: "):
            load_session(path, decoder)


def test_a_file_that_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server replaces a session when it has slept; whoever reads it meanwhile gets one of the
    two.
    """
    decoder, path = make_decoder(), tmp_path / "s"
    session = Session(decoder)
    session.read(IDS[:4])
    save_session(path, session)

    def read_before(path: Path) -> bytes:
        content = read_whole(path)
        session.read(IDS[4:5])
        save_session(path, session)
        return content

    monkeypatch.setattr(store, "read_whole", read_before)
    assert load_session(path, decoder).session.position == 4


def test_long_notes(tmp_path: Path) -> None:
    """In any script they take as many bytes as in UTF-8: the format limits their length."""
    session, path = Session(make_decoder()), tmp_path / "s"
    empty = save_session(path, session, notes={"said": ""})
    for letter in "aя語😀":
        text = letter * 1000
        assert save_session(path, session, notes={"said": text}) - empty < len(text.encode()) + 8
        assert load_session(path, session.decoder).notes == {"said": text}
    with pytest.raises(UserError, match=f"^{path}: cannot be written: .*header too large"):
        save_session(path, session, notes={"said": "a" * 10**8})
    assert load_session(path, session.decoder).notes == {"said": text}


def test_notes_of_a_path_that_is_not_utf_8(tmp_path: Path) -> None:
    session, path = Session(make_decoder()), tmp_path / "s"
    notes = {"of": "\udcff", "\udcfe": "ä\\u"}
    save_session(path, session, notes=notes)
    assert load_session(path, session.decoder).notes == notes


def test_what_is_no_session_is_refused(tmp_path: Path) -> None:
    decoder, path = make_decoder(), tmp_path / "s"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_session(path, decoder)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a saved session"):
        load_session(path, decoder)
    with pytest.raises(UserError, match="cannot be written: No such file"):
        save_session(tmp_path / "gone" / "s", Session(decoder))
