"""The recipes can be built: every stage of the planned layout, in a world of ranks that are not
there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILT = ("100M:8", "1B:64", "7B:512", "30B:64", "7B:4096")


def test_recipes_build() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.study.build_recipes", *BUILT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.stem for path in (ROOT / "configs/recipes").glob("*.toml")} == {
        each.partition(":")[0] for each in BUILT
    }
    for each in BUILT:
        assert f"{each.replace(':', ' on ')}: stage 0: blocks 0 to" in done.stdout
