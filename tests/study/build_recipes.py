"""Builds the stages of recipes with given layouts; test_recipes.py runs it in its own process."""

from __future__ import annotations

import sys
from pathlib import Path

from pretrain.config.load import load
from pretrain.convert.engines import reasons
from pretrain.study.fake_world import build_stages
from pretrain.study.hardware import load_hardware

RECIPES = Path(__file__).parents[2] / "configs/recipes"


def main(given: list[str]) -> None:
    """Prints a line for each stage it builds. given: "NAME GPUS key=value ..."."""
    h100 = load_hardware("h100")
    for name, gpus, *layout in map(str.split, given):
        config = load(RECIPES / f"{name}.toml", layout)
        assert not any(reasons(config).values()), reasons(config)
        for line in build_stages(config, int(gpus), h100):
            print(f"{name} on {gpus}: {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
