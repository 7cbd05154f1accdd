"""Every stage of the recipes can be built with the layouts in docs/plan.md, in a world of fake
ranks.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"\| (\w+) \| ([\d,]+) \| `(.*?)` \|")


def test_recipes_build() -> None:
    rows = ROW.findall((ROOT / "docs/plan.md").read_text(encoding="utf-8"))
    asked = [f"{name} {gpus.replace(',', '')} {layout}" for name, gpus, layout in rows]
    recipes = {path.stem for path in (ROOT / "configs/recipes").glob("*.toml")}
    pairs = {tuple(text.split()[:2]) for text in asked}
    # 30B does not fit on 8
    assert pairs == {(r, g) for r in recipes for g in ("8", "64", "512", "4096")} - {("30B", "8")}
    command = [sys.executable, "-W", "ignore", "-m", "tests.study.build_recipes", *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, gpus in pairs:
        assert f"{name} on {gpus}: stage 0: blocks 0 to" in done.stdout
