"""Pieces of tensors that are split over ranks, and how to reassemble the whole.

Tensor parallelism cuts a parameter into boxes, by rows or by columns; ZeRO cuts the flattened
elements of each box into runs. So a rank holds of a tensor a run of a box:

    whole [4, 6]      box ((0, 4), (3, 6))      run (5, 9) of its 12 elements
    . . . # # #             0  1  2                   .  .  .
    . . . # # #             3  4  5                   .  .  5
    . . . # # #             6  7  8                   6  7  8
    . . . # # #             9 10 11                   .  .  .
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice, pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


class Slice(NamedTuple):
    """Which part of a whole tensor a piece is."""

    shape: tuple[int, ...]  # of the whole
    box: tuple[tuple[int, int], ...]  # (begin, end) in each dimension
    run: tuple[int, int]  # (begin, end) of the box's elements, the last dimension running fastest

    @property
    def box_shape(self) -> tuple[int, ...]:
        return tuple(end - begin for begin, end in self.box)

    @staticmethod
    def share(
        shape: tuple[int, ...],
        places: dict[int, tuple[int, int]],
        run: tuple[int, int] | None = None,
    ) -> Slice:
        """A box that is the k-th of n along some dimensions of the whole, or a run of that box.

        Args:
            shape: of the box. places: dimension -> (k, n). run: None: the whole box.
        """
        whole, box = list(shape), [(0, size) for size in shape]
        for dim, (k, n) in places.items():
            whole[dim], box[dim] = shape[dim] * n, (shape[dim] * k, shape[dim] * (k + 1))
        return Slice(tuple(whole), tuple(box), run or (0, prod(shape)))


class Piece(NamedTuple):
    """A part of a tensor, and where it belongs."""

    where: Slice
    values: Tensor  # the run, of any shape


def assemble(
    shape: tuple[int, ...],
    pieces: Iterable[Piece],
    partial: bool = False,
    into: Tensor | None = None,
) -> Tensor:
    """The whole tensor of this shape.

    Memory holds it once, plus at most one box that is cut into runs.

    Args:
        partial: elements that no piece covers are 0; otherwise every element must be covered.
        into: of this shape and of any dtype; is filled and returned.
    Raises:
        ValueError: the pieces do not fit, overlap, differ in dtype or leave a gap.
    """
    pieces, covered = list(pieces), 0
    for where, values in pieces:  # all are checked before anything is allocated
        begin, end = where.run
        inside = all(0 <= a <= b <= size for (a, b), size in zip(where.box, shape, strict=True))
        if where.shape != shape or not inside or not 0 <= begin <= end <= prod(where.box_shape):
            raise ValueError(
                f"a piece lies at {where.box} of {list(where.shape)}, outside {list(shape)}"
            )
        if values.numel() != end - begin:
            raise ValueError(f"a piece has {values.numel()} elements instead of {end - begin}")
        covered += end - begin
    if len({values.dtype for _, values in pieces}) > 1:
        raise ValueError("its pieces are of different dtypes")
    _check_apart(where for where, _ in pieces)
    if not partial and covered != prod(shape):
        raise ValueError(f"its pieces have {covered} of {prod(shape)} elements")
    if into is None:
        dtype = pieces[0].values.dtype if pieces else torch.float32
        into = torch.empty(shape, dtype=dtype)
    if covered != prod(shape):
        into.zero_()
    boxes: dict[tuple[tuple[int, int], ...], list[Piece]] = {}
    for piece in pieces:
        boxes.setdefault(piece.where.box, []).append(piece)
    for box, runs in boxes.items():
        _fill(into[tuple(slice(a, b) for a, b in box)], runs)
    return into


def all_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite; needs no memory, unlike `isfinite`."""
    low, high = tensor.aminmax()  # NaN if any element is
    return bool(low.isfinite() and high.isfinite())


def _fill(box: Tensor, runs: list[Piece]) -> None:
    """Writes runs of a box into it."""
    for _, values in runs:
        if values.numel() == box.numel():
            box.copy_(values.reshape(box.shape))
            return
    flat = box.view(-1) if box.is_contiguous() else box.new_zeros(box.numel())
    for (_, _, (begin, end)), values in runs:
        flat[begin:end] = values.reshape(-1)
    if not box.is_contiguous():
        box.copy_(flat.view(box.shape))


def _check_apart(pieces: Iterable[Slice]) -> None:
    """ValueError if two pieces of one tensor share an element, or two different boxes do."""
    runs: dict[tuple[tuple[int, int], ...], list[tuple[int, int]]] = {}
    for piece in pieces:
        runs.setdefault(piece.box, []).append(piece.run)
    for of_box in runs.values():
        if any(
            one[1] > other[0]
            for one, other in pairwise(sorted(run for run in of_box if run[0] < run[1]))
        ):
            raise ValueError("its pieces overlap")
    boxes = sorted(box for box in runs if all(begin < end for begin, end in box))
    for number, box in enumerate(boxes):
        for other in islice(boxes, number + 1, None):
            if other[0][0] >= box[0][1]:  # boxes are sorted: no later one can overlap it either
                break
            if all(max(a, c) < min(b, d) for (a, b), (c, d) in zip(box, other, strict=True)):
                raise ValueError("its pieces overlap")
