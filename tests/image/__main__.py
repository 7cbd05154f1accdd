"""Runs Dockerfile, hypnos.def and compose.yaml on a machine without a container engine."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.image import recipe

ROOT = Path(__file__).parents[2]
PARTS = ("dockerfile", "compose", "definition")


def pair(text: str) -> tuple[str, str]:
    """Parses NAME=VALUE, or OUTSIDE:INSIDE."""
    name, _, value = text.partition("=" if "=" in text else ":")
    return name, value or name


def main() -> None:
    """Lints the Dockerfile and runs the requested parts."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m tests.image --bind /opt/wheels --env PIP_FIND_LINKS=/opt/wheels",
    )
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {' '.join(PARTS)}")
    parser.add_argument("--build-arg", type=pair, action="append", default=[], help="NAME=VALUE")
    parser.add_argument("--env", type=pair, action="append", default=[], help="while it is made")
    parser.add_argument("--bind", type=pair, action="append", default=[], help="OUTSIDE[:INSIDE]")
    parser.add_argument("--keep", type=Path, help="a new folder, for what is made (default: none)")
    args = parser.parse_args()
    hadolint = Path(sys.executable).with_name("hadolint")
    subprocess.run([hadolint, ROOT / "Dockerfile"], check=True)
    given = dict(args.build_arg)
    with ExitStack() as cleanup:
        if args.keep:
            args.keep.mkdir(parents=True)
        folder = args.keep or cleanup.enter_context(tempfile.TemporaryDirectory(prefix="image-"))
        bench = recipe.bench(ROOT, Path(folder), dict(args.env), dict(args.bind))
        if {"dockerfile", "compose"} & set(args.parts):
            began = time.monotonic()
            image = recipe.dockerfile(bench, ROOT / "Dockerfile", given)
            bench.run(image, [*image.entrypoint, *image.command])
            recipe.say(f"Dockerfile: {time.monotonic() - began:.0f} s")
        if "compose" in args.parts:
            statuses = recipe.services(bench, ROOT / "compose.yaml", image, timeout=600)
            recipe.say(f"compose.yaml: statuses {statuses}")
            if any(statuses):
                sys.exit(1)
        if "definition" in args.parts:
            began = time.monotonic()
            lower = {name.lower(): value for name, value in given.items()}
            recipe.definition(bench, ROOT / "hypnos.def", lower)
            recipe.say(f"hypnos.def: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
