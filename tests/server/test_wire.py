"""Answers in the format that clients receive."""

from __future__ import annotations

from pretrain.inference.server.wire import Offsets, TokenScore, completion_choice


def test_a_character_of_several_tokens_is_counted_once() -> None:
    """Also if a stream cuts it, and if it never ends."""
    tokens = [b"a", b"\xc3", b"\xa9b", b"\xe2\x82", b"\xac", b"", b"c\xf0", b"d"]
    scores, offsets = [TokenScore(token, -1.0) for token in tokens], Offsets()
    pieces = [completion_choice(0, "", part, None, offsets) for part in (scores[:2], scores[2:])]
    found = [at for piece in pieces for at in piece["logprobs"]["text_offset"]]
    assert found == [0, 1, 1, 3, 3, 4, 4, 6]  # "aéb€c\ufffdd"
