"""The report on runs whose logs are written here, line by line."""

from __future__ import annotations

import base64
import errno
import json
import os
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from matplotlib import image
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from launch.cli import main
from pretrain.errors import UserError
from pretrain.logged import read_run
from pretrain.page import write_markdown_page
from pretrain.report import report
from pretrain.tables import table


def write_run(folder: Path, passes: int, accuracy: dict[str, float] | None, ends: str = "") -> Path:
    """A run of 40 steps; its loss at step s is 4 / s, its accuracies grow evenly to `accuracy`."""
    rows = []
    for step in range(1, 41):
        rows.append({"kind": "train", "step": step, "loss": 4 / step})
        if step % 20 == 0:
            places = {
                "loss_per_window": [None, 2.0, 1.5],
                "loss_per_position": [3.0, None, 2.0, 1.0],
            }
            for n in {1, passes} if step < 40 else range(1, passes + 1):
                row = {"kind": "eval", "step": step, "passes": n, "loss": 5 / step / n, **places}
                if accuracy is not None:
                    row["accuracy"] = {name: share * step / 40 for name, share in accuracy.items()}
                rows.append(row)
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + ends)
    return folder


def is_picture(path: Path) -> bool:
    """Decodes the PNG: wide enough to be read, and something is drawn."""
    pixels = image.imread(path)
    return pixels.shape[1] > 900 and pixels.std() > 0.02


def test_two_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "a", 1, {"hops_1": 1.0, "hops_2": 0.5, "hops_10": 0.25})
    four = write_run(tmp_path / "b", 4, {"hops_1": 1.0, "hops_2": 0.75, "hops_10": 0.625})
    report([one, four], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert (
        "| a   | 1 |    40 |         0.100 |         0.125 | 100.0 % | 50.0 % |  25.0 % |" in text
    )
    assert (
        "| b   | 4 |    40 |         0.100 |         0.031 | 100.0 % | 75.0 % |  62.5 % |" in text
    )
    assert text.split("\n\n")[1] in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "report.md",
        "report.html",
        "loss.png",
        "loss_by_place.png",
        "accuracy_by_hops.png",
    }
    assert all(
        is_picture(tmp_path / "out" / name) and f"]({name})" in text
        for name in written - {"report.md", "report.html"}
    )


@pytest.mark.parametrize(
    ("accuracy", "pictures"),
    [
        (None, {"loss.png", "loss_by_place.png"}),
        (
            {"exact": 0.5, "op_2": 0.5, "op_4": 0.25},
            {"loss.png", "loss_by_place.png", "accuracy_by_op.png"},
        ),
        ({"exact": 0.5, "label": 0.5}, {"loss.png", "loss_by_place.png", "accuracy.png"}),
    ],
)
def test_each_kind_of_run_gets_its_pictures(
    accuracy: dict[str, float], pictures: set[str], tmp_path: Path
) -> None:
    report([write_run(tmp_path / "run", 2, accuracy)], tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == pictures
    assert all(is_picture(tmp_path / "run" / name) for name in pictures)


def test_a_run_before_its_first_evaluation_is_reported(tmp_path: Path) -> None:
    run = tmp_path / "young"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"kind": "train", "step": 5, "loss": 2.5}\n')
    report([run], tmp_path / "out")
    assert (
        "| young | - |     5 |         2.500 |             - |"
        in (tmp_path / "out" / "report.md").read_text()
    )


def test_tokens_and_bits_per_byte_are_told_where_they_are_known(tmp_path: Path) -> None:
    text = (
        '{"kind": "train", "step": 41, "loss": 2.0, "tokens": 12345}\n'
        '{"kind": "eval", "step": 41, "passes": 2, "loss": 3.0, "bits_per_byte": 1.5,'
        ' "loss_per_window": [3.0], "loss_per_position": [3.0, 3.0]}\n'
    )
    runs = [write_run(tmp_path / "a", 2, None), write_run(tmp_path / "b", 2, None, ends=text)]
    report(runs, tmp_path / "out")
    written = (tmp_path / "out" / "report.md").read_text()
    assert "steps | tokens | training loss | held-out loss | bits per byte |" in written
    assert "|    40 |      - |         0.100 |         0.062 |             - |" in written
    assert "|    41 | 12,345 |         2.000 |         3.000 |         1.500 |" in written


def test_the_step_of_an_older_evaluation_is_named(tmp_path: Path) -> None:
    later = '{"kind": "train", "step": 1041, "loss": 0.05}\n'
    report([write_run(tmp_path / "run", 2, None, ends=later)], tmp_path / "out")
    written = (tmp_path / "out" / "report.md").read_text()
    assert "| 1,041 |         0.050 | 0.062 (step 40) |" in written


def test_a_full_disk_is_a_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = write_run(tmp_path / "run", 2, None)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["report", str(run)]) == 2
    said = f"hypnos: error: {run / 'loss.png'}: No space left on device\n"
    assert capsys.readouterr().err.endswith(said)
    assert not list(run.glob("*.png"))


def test_a_loss_that_is_not_a_number_is_reported_as_such(tmp_path: Path) -> None:
    rows = ({"kind": "train", "loss": None}, {"kind": "warning", "message": "!"})
    diverged = "".join(json.dumps(row | {"step": 41}) + "\n" for row in rows)
    report([write_run(tmp_path / "run", 2, None, ends=diverged)], tmp_path / "out")
    assert "|           nan |" in (tmp_path / "out" / "report.md").read_text()


def test_steps_logged_again_after_a_resume_count_once(tmp_path: Path) -> None:
    # and a line that is still being written
    again = '{"kind": "train", "step": 40, "loss": 7.0}\n{"kind": "train", "st'
    run = read_run("x", write_run(tmp_path / "run", 4, None, ends=again))
    assert [row["step"] for row in run.train] == list(range(1, 41)) and run.train[-1]["loss"] == 7.0
    assert [(row["step"], row["passes"]) for row in run.evaluations] == [(20, 4), (40, 4)]
    assert [(n, row["step"]) for n, row in run.with_fewer.items()] == [(1, 40), (2, 40), (3, 40)]


def test_runs_that_were_judged_on_other_rows_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / name, 1, None) for name in "ab"]
    for run, batch in zip(runs, (4, 8), strict=True):
        (run / "config.toml").write_text(f"[train]\nbatch = {batch}\neval_batches = 2\n")
    (tmp_path / "refused").mkdir()
    assert main(["report", *map(str, runs), str(tmp_path / "refused")]) == 0
    told = capsys.readouterr()
    assert "rows: train.eval_batches x train.batch differ. Do not compare" in told.out
    assert f"{tmp_path / 'refused'}: left out" in told.err
    for run, nodes in zip(runs, (6, 8), strict=True):
        (run / "config.toml").write_text(f'[data]\ntask = "depo"\n[depo]\nnodes = {nodes}\n')
    report(runs, tmp_path / "tasks")
    assert "Evaluated on different problems: depo.nodes differ" in capsys.readouterr().out
    for task, told_of in (("text", False), ("depo", True)):
        for run, batch in zip(runs, (4, 8), strict=True):
            batches = f"batch = {batch}\neval_batches = {8 // batch}"
            (run / "config.toml").write_text(f'[data]\ntask = "{task}"\n[train]\n{batches}\n')
        report(runs, tmp_path / task)
        assert ("Evaluated on different rows" in capsys.readouterr().out) == told_of
    report(runs[:1], tmp_path / "one")
    assert "Evaluated on" not in capsys.readouterr().out


def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        UserError, match=r"metrics.jsonl: cannot read the run's metrics: No such file"
    ):
        report([tmp_path], tmp_path)
    # a mistyped name among others
    mistyped = [str(write_run(tmp_path / "one", 1, None)), str(tmp_path / "tow")]
    assert main(["report", *mistyped]) == 2
    assert f"error: {tmp_path / 'tow'}: does not exist" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"metrics.jsonl:\d+: not a line of metrics"):
        read_run("x", write_run(tmp_path / "run", 1, None, ends="oops\n"))
    cut = write_run(tmp_path / "cut", 1, None) / "metrics.jsonl"
    whole = read_run("x", cut.parent)
    with cut.open("ab") as file:
        file.write('{"kind": "warning", "step": 9, "message": "é'.encode()[:-1])  # being written
    assert read_run("x", cut.parent) == whole
    cut.write_bytes(cut.read_bytes() + b'"}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:\d+: not a line of metrics"):
        read_run("x", cut.parent)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing was logged yet"):
        read_run("x", tmp_path / "empty")


def test_tables_are_markdown_and_aligned() -> None:
    assert table(["run", "loss"], [["a", "1.25"], ["longer", "10.5"]]).splitlines() == [
        "| run    | loss |",
        "|--------|-----:|",
        "| a      | 1.25 |",
        "| longer | 10.5 |",
    ]


@pytest.mark.parametrize("name", ["x$^$y", "_base", "a|b", "a*b*_c_", "<i>"])
def test_a_run_is_drawn_and_tabulated_as_it_is_called(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def read_legend(figure: Figure) -> None:
        drawn.extend(t.get_text() for t in figure.legends[0].get_texts() if not t.get_parse_math())

    monkeypatch.setattr(plt, "close", read_legend)
    report([write_run(tmp_path / name, 1, None)], tmp_path / "out")
    assert drawn == [name, name]  # loss.png, loss_by_place.png
    assert f"| {name} " in capsys.readouterr().out
    row = (tmp_path / "out" / "report.md").read_text().splitlines()[4]
    html = MarkdownIt("commonmark").enable("table").render("| a |\n|---|\n" + row)
    assert f"<td>{escape(name)}</td>" in html


class _Page(HTMLParser):
    """The parts of an HTML page."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[bytes] = []
        self.cells: list[str] = []
        self.others: list[str] = []  # what the page would have to fetch
        self._open = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._open = tag
        for name, value in attributes:
            if name in ("src", "href") and value is not None:
                kind, comma, data = value.partition("base64,")
                if comma and kind == "data:image/png;":
                    self.pictures.append(base64.b64decode(data))
                else:
                    self.others.append(value)

    def handle_data(self, data: str) -> None:
        if self._open == "td" and data.strip():
            self.cells.append(data)


def test_one_page_holds_all(tmp_path: Path) -> None:
    run = write_run(tmp_path / "<b>&amp;", 4, {"hops_1": 1.0, "hops_2": 0.5})
    inside = {
        "update_norm_per_pass": [4.0, 2.0, 1.0], "grad_norm_per_pass": [0.1, 0.2, 0.3],
        "state_norm": 5.0, "retention": 0.9, "retention_per_head": [[0.8, 1.0], [0.9, 0.9]],
        "wake_tokens_per_s": 100.0, "sleep_tokens_per_s": 300.0,
    }  # fmt: skip
    with (run / "metrics.jsonl").open("a") as metrics:
        for step in (41, 42):
            metrics.write(json.dumps({"kind": "train", "step": step, "loss": 0.1, **inside}) + "\n")
    report([run], tmp_path / "out")
    page = _Page()
    page.feed((tmp_path / "out" / "report.html").read_text())
    names = ("loss", "loss_by_place", "accuracy_by_hops", "passes", "state", "heads", "throughput")
    written = [(tmp_path / "out" / f"{name}.png").read_bytes() for name in names]
    assert page.pictures == written and page.others == []
    assert page.cells[:3] == ["<b>&amp;", "4", "42"] and page.cells[-1] == "50.0 %"


def test_what_a_study_is_called_is_no_part_of_its_pages_code(tmp_path: Path) -> None:
    name = "<img src=x>"
    write_markdown_page(tmp_path / "fit.html", f"# {name}\n\n{name}\n")
    assert (tmp_path / "fit.html").read_text().count(escape(name)) == 3  # the tab's title included
