"""The page at / in a real headless browser: it chats, shows the sleep, and resumes after a reload.

`make test-browser` installs what it needs: playwright, and Chromium if the machine has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.serving import WINDOW, Serving, make_run, serving

LONG = "the window sleeps and the memory writes what the day has read " * 12
# Records every text that the state (awake, asleep) shows, however briefly.
WATCH = """() => {
  const mind = document.getElementById("mind");
  window.minds = [];
  new MutationObserver(() => window.minds.push(mind.textContent)).observe(mind, {childList: true});
}"""


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(corpus, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(run, tmp_path_factory.mktemp("store")) as found:
        yield found


def say(page: Page, text: str) -> str:
    """Sends a message; returns the answer once it is complete."""
    answers = page.locator("#talk li.assistant")
    count = answers.count()
    page.locator("#text").fill(text)
    page.locator("#send").click()
    expect(answers.nth(count).get_by_role("button")).to_be_visible()  # it can be continued
    return answers.nth(count).evaluate("item => item.firstChild.data")


def number(page: Page, id: str) -> int:
    return int(re.sub(r"\D", "", page.locator(f"#{id}").inner_text()))


def test_a_conversation_that_sleeps_and_lasts(served: Serving, page: Page) -> None:
    page.goto(served.url)
    expect(page.locator("#model")).to_have_text("tiny")
    page.locator("#temperature").fill("0")
    page.evaluate(WATCH)
    first = say(page, LONG)
    assert first
    expect(page.locator("#mind")).to_have_text("awake")
    minds: list[str] = page.evaluate("window.minds")
    assert "asleep: 2 passes to go" in minds and "asleep: 1 passes to go" in minds

    read, held = number(page, "tokens"), page.locator("#bytes").inner_text()
    assert read > 12 * WINDOW and number(page, "slept") == read // WINDOW
    assert page.locator("#window").inner_text() == f"{read % WINDOW} of {WINDOW}"
    width = page.locator("#filled").evaluate("bar => parseFloat(bar.style.width)")
    assert width == pytest.approx(100 * (read % WINDOW) / WINDOW)

    second = say(page, "and then?")
    assert number(page, "tokens") > read
    assert page.locator("#bytes").inner_text() == held  # however much it has read

    page.reload()  # everything is on the server
    expect(page.locator("#talk li")).to_have_count(4)
    assert first in page.locator("#talk").inner_text()
    expect(page.locator("#window")).not_to_have_text("0")
    page.locator("#temperature").fill("0")
    page.locator("#talk li.assistant").first.get_by_role("button").click()
    expect(page.locator("#talk li")).to_have_count(2)
    assert say(page, "and then?") == second  # the same place, the same answer

    page.locator("#new").click()
    expect(page.locator("#talk li")).to_have_count(0)
    assert say(page, "a") and number(page, "tokens") < read


def test_text_is_shown_as_text(served: Serving, page: Page) -> None:
    page.goto(served.url)
    text = "<img src=x onerror='document.title=1'> & <b>"
    say(page, text)
    assert page.locator("#talk li.user").inner_text() == text
    assert page.locator("#talk img").count() == 0 and page.title() == "hypnos"


def test_a_key_is_asked_for(run: Path, tmp_path: Path, page: Page) -> None:
    with serving(run, tmp_path, keys=frozenset({"good"})) as found:
        page.goto(found.url)
        expect(page.locator("#talk li.error")).to_contain_text("Incorrect API key")
        page.locator("#key").fill("good")
        page.locator("#key").blur()
        expect(page.locator("#model")).to_have_text("tiny")
        page.locator("#temperature").fill("0")  # a sampled first token may be invisible
        assert say(page, "a")


def test_what_the_server_refuses_is_told(served: Serving, page: Page) -> None:
    page.goto(served.url)
    expect(page.locator("#model")).to_have_text("tiny")
    page.locator("#temperature").fill("9")
    page.locator("#text").fill("a")
    page.locator("#text").press("Enter")
    expect(page.locator("#talk li.error")).to_contain_text("temperature")


def test_it_fits_a_telephone(served: Serving, page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    page.goto(served.url)
    wide: Any = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 360
    expect(page.locator("#send")).to_be_in_viewport()
