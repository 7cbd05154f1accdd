"""What can be checked in Dockerfile, hypnos.def and compose.yaml without running them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from launch.cli import make_parser
from pretrain.config.load import load
from tests.image import recipe

ROOT = Path(__file__).parents[2]


def test_both_images_have_the_same_inside() -> None:
    """The same defaults, and the Debian packages of both Dockerfile stages."""
    dockerfile, definition = (ROOT / "Dockerfile").read_text(), (ROOT / "hypnos.def").read_text()
    for name in ("BASE", "DEVICE", "TORCH", "GPUS"):
        value = re.search(rf"^ARG {name}=(.*)$", dockerfile, re.MULTILINE)
        assert value and f"    {name.lower()}={value[1]}\n" in definition

    def packages(text: str) -> set[str]:
        lists = re.findall(r"--no-install-recommends((?:(?:[ ]|\\\n)+[\w+.-]+)+)", text)
        return {name for each in lists for name in each.replace("\\", " ").split()}

    only_at_run_time = {"gcc", "libc6-dev", "tini"}  # g++ brings the first two
    assert packages(dockerfile) - packages(definition) == only_at_run_time
    assert packages(definition) <= packages(dockerfile)


def test_the_definition_takes_what_the_dockerfile_takes() -> None:
    text = (ROOT / "hypnos.def").read_text()
    files = re.search(r"^%files\n((?:    .*\n)+)", text, re.MULTILINE)
    assert files
    taken = {line.split()[0] for line in files[1].splitlines()}
    ignored = set((ROOT / ".dockerignore").read_text().split())
    visible = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    recipes = {"Dockerfile", "hypnos.def", "compose.yaml", "LICENSE"}
    ours = {name for name in visible - ignored - recipes if not name.endswith(".egg-info")}
    assert taken <= ours and {"launch", "pretrain", "parallel", "tokenizer", "tests"} <= taken


@pytest.mark.parametrize("service", ["node0", "node1"])
def test_a_services_command_is_one_that_hypnos_takes(service: str) -> None:
    told = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"][service]
    words = told["command"][told["command"].index("hypnos") + 1 :]
    words = [word.replace("/opt/hypnos", str(ROOT)) for word in words]
    given = make_parser().parse_args(words)
    load(given.config, given.overrides)
    assert told["hostname"] == service and "--master-addr=node0" in told["entrypoint"]


def test_variables_are_filled_in() -> None:
    assert recipe.filled("${A}/$B:${C}", {"A": "x", "B": "y"}) == "x/y:"
