"""The decisions of `make setup`, without installing anything."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from launch import bootstrap

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line[0] != "#"
]


def test_torch_is_asked_for_with_the_range_of_the_project() -> None:
    assert f"torch{bootstrap.TORCH_RANGE}" in PROJECT["dependencies"]


def test_every_direct_dependency_but_torch_has_one_exact_version() -> None:
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in CONSTRAINTS}
    extras = PROJECT["optional-dependencies"]
    direct = {
        re.split(r"[\[<>=]", line)[0]
        for line in PROJECT["dependencies"] + extras["gpu"] + extras["serve"] + extras["test"]
    }
    assert direct - pinned == {"torch"}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in CONSTRAINTS)


def test_nothing_of_cuda_is_constrained() -> None:
    """A machine with a GPU needs other builds, which torch brings along."""
    assert not [
        line
        for line in CONSTRAINTS
        if line.startswith(("torch", "triton", "nvidia", "cuda")) or "+" in line
    ]


def test_pips_own_configuration_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    first, second, last = bootstrap.torch_choices(cuda=False)
    assert first == [bootstrap.TORCH_CPU]
    assert second == [
        bootstrap.TORCH_CPU,
        "--extra-index-url",
        "https://download.pytorch.org/whl/cpu",
    ]
    assert last == [f"torch{bootstrap.TORCH_RANGE}"]
    assert bootstrap.torch_choices(cuda=True) == [[f"torch{bootstrap.TORCH_RANGE}"]]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert bootstrap.torch_choices(cuda=False) == [[f"torch{bootstrap.TORCH_RANGE}"]]


class Machine:
    """Stands in for pip and .venv: which requirements pip can find, what is installed, and what was
    requested.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        installed: bootstrap.Torch | None,
        offers: list[list[str]],
    ) -> None:
        self.installed, self.offers, self.asked = installed, offers, list[list[str]]()
        monkeypatch.setattr(bootstrap, "pip", self.pip)
        monkeypatch.setattr(bootstrap, "installed_torch", lambda: self.installed)
        monkeypatch.setattr(sys, "platform", "linux")

    def pip(self, verb: str, *arguments: str) -> str:
        self.asked.append([verb, *arguments])
        if verb == "uninstall":
            self.installed = None
        elif list(arguments) in self.offers:
            cuda = arguments[0] != bootstrap.TORCH_CPU
            self.installed = bootstrap.Torch("2.13.0" if cuda else "2.13.0+cpu", True, cuda, cuda)
        else:
            return "ERROR: No matching distribution found"
        return ""


CPU = bootstrap.Torch("2.13.0+cpu", fits=True, cuda=False, sees_gpu=False)
CUDA = bootstrap.Torch("2.12.1", fits=True, cuda=True, sees_gpu=True)
OLD = bootstrap.Torch("2.8.0+cpu", fits=False, cuda=False, sees_gpu=False)
MIRROR = [bootstrap.TORCH_CPU]
PUBLIC = [bootstrap.TORCH_CPU, "--extra-index-url", bootstrap.CPU_INDEX]
PLAIN = [f"torch{bootstrap.TORCH_RANGE}"]


@pytest.mark.parametrize(
    ("installed", "cuda", "offers", "asked", "pinned"),
    [
        (None, False, [MIRROR, PUBLIC], [["install", *MIRROR]], "torch==2.13.0+cpu"),
        (None, False, [PUBLIC], [["install", *MIRROR], ["install", *PUBLIC]], "torch==2.13.0+cpu"),
        (None, True, [PLAIN], [["install", *PLAIN]], "torch==2.13.0"),
        (CPU, False, [], [], "torch==2.13.0+cpu"),
        (CUDA, True, [], [], "torch==2.12.1"),
        (CUDA, False, [], [], "torch==2.12.1"),
        (
            CPU,
            True,
            [PLAIN],
            [["uninstall", "--yes", "torch"], ["install", *PLAIN]],
            "torch==2.13.0",
        ),
        (
            OLD,
            False,
            [MIRROR],
            [["uninstall", "--yes", "torch"], ["install", *MIRROR]],
            "torch==2.13.0+cpu",
        ),
    ],
)
def test_the_torch_that_fits_is_installed_and_one_that_is_there_is_kept(
    monkeypatch: pytest.MonkeyPatch,
    installed: bootstrap.Torch | None,
    cuda: bool,
    offers: list[list[str]],
    asked: list[list[str]],
    pinned: str,
) -> None:
    machine = Machine(monkeypatch, installed, offers)
    assert bootstrap.install_torch(cuda) == pinned
    assert machine.asked == asked


def test_a_gpus_kernels_come_with_a_torch_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, CUDA, [])
    for cuda in (False, True):
        with pytest.raises(bootstrap.SetupError):
            bootstrap.install_packages("torch==2.13.0", cuda)
    assert [asked[-1].rpartition("[")[2] for asked in machine.asked] == [
        "serve,test]", "gpu,serve,test]"
    ]  # fmt: skip


def test_torch_is_named_as_pip_knows_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PyPI's build of 2.13.0 calls itself 2.13.0+cu130, which PyPI does not have."""
    (tmp_path / "torch.py").write_text(
        "class version: cuda = '13.0'\nclass cuda: is_available = lambda: True\n"
        "__version__ = '2.13.0+cu130'\n"
    )
    (tmp_path / "torch-2.13.0.dist-info").mkdir()
    (tmp_path / "torch-2.13.0.dist-info/METADATA").write_text("Name: torch\nVersion: 2.13.0\n")
    monkeypatch.setattr(bootstrap, "PYTHON", Path(sys.executable))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert bootstrap.installed_torch() == bootstrap.Torch("2.13.0", True, True, True)


def test_a_torch_that_pip_cannot_find_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, None, [])
    with pytest.raises(
        bootstrap.SetupError,
        match=r"^pip could not install torch \(ERROR: No matching .*\); check the ",
    ):
        bootstrap.install_torch(cuda=False)


def test_a_cpu_build_is_not_taken_for_a_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """To pip 2.13.0+cpu, where its configuration names a place that has it, is above 2.13.0."""
    monkeypatch.setattr(bootstrap, "pip", lambda *_: "")
    monkeypatch.setattr(bootstrap, "installed_torch", lambda: CPU)
    with pytest.raises(bootstrap.SetupError, match=r"torch 2\.13\.0\+cpu, a CPU build: .* as in "):
        bootstrap.install_torch(cuda=True)


def test_an_old_python_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 2))
    monkeypatch.setattr(sys, "argv", ["bootstrap.py"])
    assert bootstrap.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("hypnos setup: Python ") and "install Python >= 3.11" in error
    assert error.count("\n") == 1


def test_an_old_python_can_read_it() -> None:
    """From 3.6 on, as is python3 on RHEL 8: it has no `from __future__ import annotations`, and
    would evaluate newer ones.
    """
    tree = ast.parse((ROOT / "launch/bootstrap.py").read_text(), feature_version=(3, 6))
    written = list[ast.expr | None]()
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
        written += [node.returns] if isinstance(node, ast.FunctionDef) else []
        written += [node.annotation] if isinstance(node, ast.arg | ast.AnnAssign) else []
    assert {type(each) for each in written} == {ast.Name, ast.Constant}


def test_an_environment_of_an_old_python_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = list[Path]()
    monkeypatch.setattr("venv.create", lambda folder, **_: made.append(folder))
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.version_info = (3, 9, 18)\n")
    monkeypatch.setattr(bootstrap, "PYTHON", Path(sys.executable))
    bootstrap.make_venv()
    assert not made
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bootstrap.make_venv()
    assert made == [bootstrap.VENV]


def test_a_python_without_ensurepip_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / "none")
    # as on Debian before apt install python3-venv
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(bootstrap.SetupError, match=r"run `apt install python3\.\d+-venv`"):
        bootstrap.make_venv()


def test_a_gpu_is_one_that_nvidia_smi_lists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not bootstrap.has_gpu()
    tool = tmp_path / "nvidia-smi"
    for script, expected in (
        ("echo 'GPU 0: H200'", True),
        ("echo failed; exit 9", False),
        ("echo none", False),
    ):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        assert bootstrap.has_gpu() is expected


@pytest.mark.parametrize(("told", "there"), [("1", True), ("", False)])
def test_bytecode_is_written_where_no_process_will(
    told: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/newer.py").write_text("match match match:\n")
    (tmp_path / "lib/package.py").write_text("x = 1\n")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", told)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    monkeypatch.setattr(bootstrap, "PYTHON", Path(sys.executable))
    bootstrap.compile_bytecode()
    assert bool(list(tmp_path.glob("lib/__pycache__/package.*"))) == there
