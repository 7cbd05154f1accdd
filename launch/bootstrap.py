"""Sets up .venv: the virtual environment, the torch that fits this machine, and pinned packages.

Run by `make setup` with any Python >= 3.11; uses the standard library only. pip's own
configuration (a mirror, find-links, a certificate) is honoured throughout.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"

TORCH_RANGE = ">=2.11,<2.14"  # the same as in pyproject.toml
# PyPI's Linux build brings gigabytes of CUDA, so the CPU build is asked for by name
TORCH_CPU = "torch==2.13.0+cpu"
# PyTorch's own index, where the CPU build is published
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_INDEX = "https://download.pytorch.org/whl/cu126"  # named in messages only
# pip would keep a build that is there, since its version fits
BY_HAND = (
    "as in `.venv/bin/pip uninstall --yes torch && .venv/bin/pip install "
    f"'torch{TORCH_RANGE}' --index-url {CUDA_INDEX}`; then set up again"
)

PROBE = """
import importlib.metadata, json, sys
from pip._vendor.packaging.specifiers import SpecifierSet
try:
    import torch
except ImportError:
    print(json.dumps(None))
else:
    # as pip knows it: torch.__version__ of PyPI's build is 2.13.0+cu130, which PyPI has not
    version = importlib.metadata.version("torch")
    fits = version in SpecifierSet(sys.argv[1])
    print(json.dumps([version, fits, torch.version.cuda is not None, torch.cuda.is_available()]))
"""


class Torch(NamedTuple):
    """The torch in .venv."""

    version: str
    fits: bool  # within the range
    cuda: bool  # a CUDA build
    sees_gpu: bool


class SetupError(Exception):
    """Printed as one line."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Sets up .venv for Hypnos.")
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="torch build to install; auto looks for a GPU (cuda: on a login node, in an image)",
    )
    device = parser.parse_args().device
    try:
        check_python()
        cuda = has_gpu() if device == "auto" else device == "cuda"
        make_venv()
        torch = install_torch(cuda)
        install_packages(torch, cuda)
        compile_bytecode()
        if cuda and has_gpu():
            check_cuda()
    except SetupError as error:
        print(f"hypnos setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def check_python() -> None:
    """Older Pythons, from 3.6, reach this line, because nothing above needs a newer one."""
    if sys.version_info < (3, 11):  # noqa: UP036
        version = platform.python_version()
        raise SetupError(
            f"Python {version} is too old: install Python >= 3.11 and run "
            "`make PYTHON=python3.11 ...`"
        )


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU with a working driver."""
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return listed.returncode == 0 and "GPU" in listed.stdout


def make_venv() -> None:
    """Creates .venv with pip in it; keeps an existing one that has it, and a Python >= 3.11."""
    works = [str(PYTHON), "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"]
    if PYTHON.exists() and subprocess.run(works, capture_output=True).returncode == 0:
        return
    try:
        import ensurepip  # noqa: F401  (Debian ships it apart from Python)
        import venv
    except ImportError:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(
            f"{version} has no venv module: run `apt install {version}-venv` (or python3-venv)"
        ) from None
    say("1/3 virtual environment in .venv")
    venv.create(VENV, clear=True, with_pip=True)


def install_torch(cuda: bool) -> str:
    """Installs the build that fits, unless .venv has one. Returns its exact requirement."""
    found = installed_torch()
    if found and not (found.fits and (found.cuda or not cuda)):
        pip("uninstall", "--yes", "torch")
        found = None
    if found is None:
        say(f"2/3 torch, {'CUDA' if cuda else 'CPU'} build")
        error = ""
        for choice in torch_choices(cuda):
            if error:
                say(f"    {error}; now trying {' '.join(choice)}")
            error = pip("install", *choice)
            if not error:
                break
        if error:
            raise SetupError(
                f"pip could not install torch ({error}); check the network and `pip config list`"
            )
        found = installed_torch()
    if found is None:
        raise SetupError(
            "torch was installed into .venv but cannot be imported: run `make clean` and try again"
        )
    if cuda and not found.cuda:
        raise SetupError(
            f"pip chose torch {found.version}, a CPU build: take what offers it out of pip's "
            f"configuration (`pip config list`), or install a CUDA build {BY_HAND}"
        )
    return f"torch=={found.version}"


def torch_choices(cuda: bool) -> "list[list[str]]":
    """What to ask pip for, first choice first."""
    if cuda or sys.platform == "darwin":
        return [[f"torch{TORCH_RANGE}"]]
    # The last choice is large, but the only one on an index that mirrors only PyPI.
    return [[TORCH_CPU], [TORCH_CPU, "--extra-index-url", CPU_INDEX], [f"torch{TORCH_RANGE}"]]


def installed_torch() -> "Torch | None":
    """The torch in .venv; None if there is none that can be imported."""
    probe = subprocess.run([PYTHON, "-c", PROBE, TORCH_RANGE], capture_output=True, text=True)
    found = json.loads(probe.stdout) if probe.returncode == 0 else None
    return Torch(*found) if found else None


def install_packages(torch: str, cuda: bool) -> None:
    """Everything else, at the versions of constraints.txt; naming torch keeps pip from replacing
    it.
    """
    say("3/3 packages")
    constraints = str(ROOT / "constraints.txt")
    extras = "gpu,serve,test" if cuda else "serve,test"
    errors = pip("install", torch, "-c", constraints, "-e", f"{ROOT}[{extras}]")
    if errors:
        raise SetupError(
            f"pip could not install the packages ({errors}); check the network and "
            "`pip config list`"
        )


def compile_bytecode() -> None:
    """Compiles all packages if PYTHONDONTWRITEBYTECODE is set: otherwise each process would compile
    what it imports, for ten seconds at every start. (Without it, the first process does so.)
    """
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        say("    bytecode")
        # its status is ignored: it also fails on files for newer Pythons, such as a test of torch's
        options = ["-qq", "-j", "0", "-x", "/tests/"]
        subprocess.run([str(PYTHON), "-m", "compileall", *options, str(VENV / "lib")])


def check_cuda() -> None:
    """Checks that torch sees the GPU: a CUDA build newer than the driver can be imported, but does
    not.
    """
    found = installed_torch()
    if found and not found.sees_gpu:
        raise SetupError(
            f"torch {found.version} cannot use this GPU: update its driver, or install a build for "
            f"the driver's CUDA (nvidia-smi shows it) {BY_HAND}"
        )


def pip(verb: str, *arguments: str) -> str:
    """Runs .venv's pip. Returns its last error, or "" if it succeeded."""
    options = ["--disable-pip-version-check"]
    if not sys.stdout.isatty():
        options.append("--quiet")  # progress bars only on a terminal
    command = [str(PYTHON), "-m", "pip", verb, *options, *arguments]
    if verb == "install":
        command.append("--no-compile")  # only a seventh is ever imported, and compiled then
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return errors[-1] if errors else f"pip ended with status {done.returncode}"


def say(text: str) -> None:
    print(f"setup {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
