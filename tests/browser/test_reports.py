"""HTML reports in a real headless browser: complete without any other file or the network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page

from pretrain.page import write_markdown_page
from pretrain.report import report
from pretrain.study.overview import overview
from pretrain.study.reproduce import plan, write_results
from pretrain.study.runner import run_all
from tests.server.serving import make_run
from tests.study.test_runner import DEPO, HYPNOS

RESULTS = Path(__file__).parents[2] / "docs/results"


@pytest.fixture(scope="module")
def pages(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One report of each kind."""
    out = tmp_path_factory.mktemp("pages")
    report([make_run(corpus, out)], out)
    overview([RESULTS / task for task in ("depo", "rule110", "text")], out)
    planned = plan(DEPO, passes=[1, 2], seeds=2)
    run_all([p.run for p in planned], out, hypnos=HYPNOS)
    write_results(planned, out, "Depo")
    ladder = shutil.copytree(RESULTS / "scale-depo", out / "ladder")
    write_markdown_page(ladder / "fit.html", (ladder / "fit.md").read_text())
    return {
        "run": out / "report.html",
        "study": out / "results.html",
        "studies": out / "overview.html",
        "ladder": ladder / "fit.html",
    }


@pytest.mark.parametrize(
    ("kind", "pictures"), [("run", 5), ("study", 3), ("studies", 0), ("ladder", 2)]
)
def test_a_page_of_results_is_whole(
    pages: dict[str, Path], tmp_path: Path, page: Page, kind: str, pictures: int
) -> None:
    alone = shutil.copy(pages[kind], tmp_path)  # no other files beside it
    asked = list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{alone}")
    assert all(url.startswith(("file:", "data:")) for url in asked)
    assert page.title() and page.locator("h1").inner_text() == page.title()
    assert page.locator("table").first.is_visible()
    widths = page.locator("img").evaluate_all("images => images.map(i => i.naturalWidth)")
    assert len(widths) >= pictures and all(width > 300 for width in widths)
    # a wide table scrolls by itself, the page does not
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
