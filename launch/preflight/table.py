"""Prints a preflight's survey as a table: a row per host, and noteworthy findings below."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from launch.doctor import GIB
from launch.preflight.survey import Survey
from launch.preflight.verdict import named


def show(survey: Survey) -> None:
    """Prints the table."""
    places = defaultdict[str, list[int]](list)
    for report in survey.reports:
        places[report.host].append(report.rank)
    table = Table(box=box.SIMPLE)
    for column in ("host", "ranks", "device", "driver", "clock", "disk"):
        table.add_column(column)
    for column in ("matmul TFLOP/s", "exchange GB/s"):
        table.add_column(column, justify="right")
    for host, ranks in places.items():
        here = [survey.reports[rank] for rank in ranks]
        rates = [survey.rates[rank] for rank in ranks] if survey.rates else []
        table.add_row(
            host,
            named(ranks).partition(" ")[2],
            ", ".join(sorted({each.device for each in here})),
            ", ".join(sorted({each.driver for each in here})) or "-",
            f"{max((each.ahead for each in here), key=abs):+.2f} s",
            f"{min(each.disk_free for each in here) / GIB:.0f} GiB free",
            _span(each.matmul / 1e12 for each in rates),
            _span(each.exchange / 1e9 for each in rates if each.exchange is not None),
        )
    console = Console(soft_wrap=True)
    console.print(table)
    for line in survey.lines():
        console.print(line, markup=False, highlight=False)


def _span(values: Iterable[float]) -> str:
    """The range of some values, in words."""
    found = sorted(values)
    if not found:
        return "-"
    low, high = f"{found[0]:.3g}", f"{found[-1]:.3g}"
    return low if low == high else f"{low} - {high}"
