"""Slices of any sharding reassemble into the full tensors, also when read as the docs describe."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parallel.slices import Piece, Slice, assemble
from pretrain.checkpoint import Checkpoint, folder
from pretrain.checkpoint.write import write_common, write_part
from tests.checkpoint.written import CONFIG, STATE
from tests.documents import program


def cut(whole: Tensor, dim: int | None, shares: int, runs: int) -> list[Piece]:
    """The pieces that `shares` tensor-parallel and `runs` data-parallel ranks hold."""
    pieces = []
    for k, box in enumerate(whole.chunk(shares, dim) if dim is not None else [whole]):
        places = {} if dim is None else {dim: (k, shares)}
        bounds = [box.numel() * r // runs for r in range(runs + 1)]
        for run in pairwise(bounds):
            pieces.append(
                Piece(
                    Slice.share(tuple(box.shape), places, run), box.reshape(-1)[slice(*run)].clone()
                )
            )
    return pieces


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.integers(1, 3), min_size=0, max_size=3),
    st.integers(1, 3),
    st.integers(1, 5),
    st.randoms(),
)
def test_what_was_cut_is_made_whole(sizes: list[int], shares: int, runs: int, chance: Any) -> None:
    dim = chance.randrange(len(sizes)) if sizes else None
    if dim is not None:
        sizes[dim] *= shares
    whole = 1 + torch.arange(torch.Size(sizes).numel(), dtype=torch.float64).view(sizes)
    pieces = cut(whole, dim, shares, runs)
    chance.shuffle(pieces)
    assert torch.equal(assemble(tuple(sizes), pieces), whole)
    first, *rest = sorted(pieces, key=lambda piece: -piece.values.numel())
    partial = assemble(tuple(sizes), rest, partial=True)
    assert torch.equal(partial == 0, torch.isin(whole, first.values))
    with pytest.raises(ValueError, match="its pieces have"):
        assemble(tuple(sizes), rest)


@pytest.mark.parametrize(
    "where",
    [
        Slice((4, 4), ((0, 5), (0, 4)), (0, 4)),
        Slice((4, 4), ((0, 4), (-1, 3)), (0, 4)),
        Slice((4, 4), ((0, 2), (0, 2)), (1, 5)),
        Slice((4, 5), ((0, 4), (0, 4)), (0, 4)),
    ],
)
def test_a_piece_that_lies_elsewhere_is_refused(where: Slice) -> None:
    with pytest.raises(ValueError, match="outside"):
        assemble((4, 4), [Piece(where, torch.zeros(4))], partial=True)
    with pytest.raises(ValueError, match="has 3 elements instead of 4"):
        assemble(
            (4, 4), [Piece(Slice((4, 4), ((0, 2), (0, 2)), (0, 4)), torch.zeros(3))], partial=True
        )


def test_the_documentation_reads_it_too(tmp_path: Path) -> None:
    """With the docs' own code, and with `Checkpoint`, however tensors are cut."""
    values = torch.Generator().manual_seed(0)
    tensors = {f"{dim}": torch.randn(6, 4, generator=values) for dim in (0, 1, None)}
    cuts = {
        name: cut(t, None if name == "None" else int(name), 2, 3) for name, t in tensors.items()
    }
    folder.make_draft(tmp_path, 7)
    draft = folder.draft_dir(tmp_path, 7)
    parts = []
    for rank in range(6):
        mine = {name: pieces[rank] for name, pieces in cuts.items() if rank < len(pieces)}
        parts.append(write_part(draft, rank, {"model": mine}))
    write_common(draft, 7, parts, STATE, CONFIG)
    folder.publish(tmp_path, 7, keep=1, keep_every=0)

    scope: dict[str, Any] = {}
    exec(program("checkpoints.md"), scope)
    saved = Checkpoint.open(folder.checkpoint_dir(tmp_path, 7))
    for name, expected in tensors.items():
        assert torch.equal(torch.from_numpy(scope["read"](saved.folder, "model", name)), expected)
        assert torch.equal(saved.tensor("model", name), expected)
