"""Downloads the wheels that a bare GPU machine lacks, for CPython 3.12 on x86-64 Linux.

    python -m benchmarks.gpu.kit .gpu-kit

Such a machine has CUDA 13, torch 2.11, triton, transformers, numpy, safetensors, sentencepiece,
psutil, einops, msgpack, rich and tensorboard; for the tests pyarrow, pytest and pytest-xdist; and
their dependencies. The stage "environment" names what is missing. The kit leaves out flash-qla,
faster kernels of the delta rule: the compiler that it needs (tilelang with z3-solver) alone is 88
MB.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.command import described

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
# From constraints.txt where it has them.
PACKAGES = (
    "megatron-core", "webdataset", "braceexpand", "hjson", "zstandard", "pydantic",
    "pydantic_core", "annotated-types", "typing-inspection",
    "flash-linear-attention", "fla-core",
)  # fmt: skip
SOURCES = ("deepspeed",)  # has no wheel: built here, without any of its CUDA extensions
GLIBC = (28, 27, 24, 17)
MAX_MIB = 60


def pinned(name: str) -> str:
    """The requirement of a package."""
    line = re.search(rf"^{re.escape(name)}==\S+$", CONSTRAINTS.read_text(), re.M)
    return line[0] if line else name


def pip(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True
    )


def main() -> int:
    parser = described(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):  # two versions of one package cannot both be installed
        old.unlink()
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in GLIBC]
    pip(
        "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version=3.12",
        "--implementation=cp", *platforms, "--platform=manylinux2014_x86_64", "-d", str(folder),
        *map(pinned, PACKAGES),
    )  # fmt: skip
    pip(
        "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder),
        *map(pinned, SOURCES),
    )  # fmt: skip
    wheels = sorted(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(*(wheel.name for wheel in wheels), f"{len(wheels)} wheels, {size:.1f} MiB", sep="\n")
    if size > MAX_MIB:
        sys.exit(f"benchmarks.gpu.kit: the kit is to be under {MAX_MIB} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
