"""Builds the stages of recipes, each on so many GPUs; run by test_recipes.py in its own process."""

from __future__ import annotations

import sys
from pathlib import Path

from pretrain.config.load import load
from pretrain.convert.engines import reasons
from pretrain.study.fake_world import build_stages
from pretrain.study.hardware import load_hardware
from pretrain.study.planner import plan, with_layout

RECIPES = Path(__file__).parents[2] / "configs/recipes"


def main(given: list[str]) -> None:
    """Prints a line for each stage that was built. given: NAME:GPUS."""
    h100 = load_hardware("h100")
    for name, _, gpus in (text.partition(":") for text in given):
        config = load(RECIPES / f"{name}.toml")
        assert not any(reasons(config).values()), reasons(config)
        best = plan(config, int(gpus), h100, top=1).best[0]
        for line in build_stages(with_layout(config, best.layout), int(gpus), h100):
            print(f"{name} on {gpus}: {line}")


if __name__ == "__main__":
    main(sys.argv[1:])
