"""The numbers of a row of metrics under the names that TensorBoard and Weights & Biases show.

train/loss, eval/passes_4/loss, train/retention_per_head/0/3: lists and tables have a part for each
level (docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pretrain.logged import Row

MAX_STRETCHES = 16  # of positions


def scalars(kind: str, row: Row) -> list[tuple[str, float]]:
    """(name, number) of every number in a row of this kind, without the row's samples. A loss by
    position is averaged over stretches: a window may have thousands of positions.
    """
    return _scalars(f"eval/passes_{row['passes']}" if "passes" in row else kind, row)


def _scalars(tag: str, value: Any) -> list[tuple[str, float]]:
    shown = isinstance(value, int | float | dict | list) and not isinstance(value, bool)
    if not shown or tag.endswith("/samples"):
        return []
    if isinstance(value, int | float):
        return [(tag, value)]
    items: Iterable[tuple[Any, Any]]
    if tag.endswith("/loss_per_position"):
        items = _means(value)
    else:
        items = value.items() if isinstance(value, dict) else enumerate(value)
    return [scalar for key, item in items for scalar in _scalars(f"{tag}/{key}", item)]


def _means(losses: Sequence[float | None]) -> Iterator[tuple[int, float]]:
    """(first position, mean) of stretches of equal length (the last may be shorter), without those
    where nothing is scored.
    """
    length = -(-len(losses) // MAX_STRETCHES)
    for begin in range(0, len(losses), max(1, length)):
        scored = [loss for loss in losses[begin : begin + length] if loss is not None]
        if scored:
            yield begin, sum(scored) / len(scored)
