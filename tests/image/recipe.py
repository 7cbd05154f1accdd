"""Runs Dockerfile and hypnos.def step by step, and starts the services of compose.yaml."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.image.root import Root, copy_in, from_base

SECTION = re.compile(r"^%(\w+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Bench:
    """Where images are built, and what they see of this machine during the build."""

    context: Path
    folder: Path
    env: Mapping[str, str]
    binds: Mapping[str, str]
    base: Callable[[str], Root]  # the root of the image of that name

    def run(self, root: Root, command: list[str], env: Mapping[str, str] = {}) -> None:
        """Runs a command in a root; see `Root.run`."""
        root.run(command, env={**self.env, **env}, binds=self.binds)


def bench(context: Path, folder: Path, env: Mapping[str, str], binds: Mapping[str, str]) -> Bench:
    """A `Bench` that makes each base image once."""
    made = dict[str, Root]()

    def base(image: str) -> Root:
        if image not in made:
            made[image] = from_base(image, folder / f"base-{len(made)}")
        return made[image]

    return Bench(context, folder, env, binds, base)


def dockerfile(bench: Bench, path: Path, given: Mapping[str, str]) -> Root:
    """Runs a Dockerfile's steps; returns the last stage's root.

    Args:
        given: --build-arg.
    """
    from dockerfile_parse import DockerfileParser

    stages, names, defaults = list[Root](), dict[str, Root](), dict[str, str]()
    ignored = (bench.context / ".dockerignore").read_text().split()
    ignored = [pattern.removeprefix("**/") for pattern in ignored]
    arguments = dict[str, str]()
    for step in DockerfileParser(fileobj=path.open("rb")).structure:
        what, value = step["instruction"], step["value"]
        if what == "COMMENT":
            continue
        say(f"{what} {value}")
        if what == "ARG":
            name, _, default = value.partition("=")
            scope = arguments if stages else defaults
            inherited = default or defaults.get(name, "")
            scope[name] = given.get(name, filled(inherited, defaults | arguments).strip('"'))
        elif what == "FROM":
            image, _, name = filled(value, defaults).partition(" AS ")
            origin = names.get(image) or bench.base(image)
            stages.append(origin.copy(bench.folder / f"stage-{len(stages)}"))
            names[name], arguments = stages[-1], {}
        else:
            _apply(bench, stages[-1], names, arguments, ignored, what, value)
    return stages[-1]


def _apply(
    bench: Bench,
    root: Root,
    names: Mapping[str, Root],
    arguments: Mapping[str, str],
    ignored: list[str],
    what: str,
    value: str,
) -> None:
    """Runs one step of a stage."""
    known = {**arguments, **root.env}
    match what:
        case "RUN":
            bench.run(root, [*root.shell, value], arguments)
        case "COPY" if value.startswith("--from="):
            stage, source, target = value.removeprefix("--from=").split()
            copy_in(root, [names[stage].path(source)], target)
        case "COPY":
            *sources, target = filled(value, known).split()
            copy_in(root, [bench.context / source for source in sources], target, ignored)
        case "ENV":
            for name, text in re.findall(r"(\w+)=(\S+)", value):
                root.env[name] = filled(text, known)
        case "WORKDIR":
            root.workdir = filled(value, known)
            root.path(".").mkdir(parents=True, exist_ok=True)
        case "USER":
            root.user = filled(value, known)
        case "SHELL":
            root.shell = json.loads(value)
        case "ENTRYPOINT":
            root.entrypoint = json.loads(value)
        case "CMD":
            root.command = json.loads(value)
        case _:
            raise ValueError(f"{what}: not known here")


def definition(bench: Bench, path: Path, given: Mapping[str, str]) -> Root:
    """Runs an Apptainer definition's %files, %post and %test; returns its root."""
    head, *parts = SECTION.split(path.read_text())
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    defaults = re.findall(r"^\s*(\w+)=(\S+)$", sections["arguments"], re.MULTILINE)
    arguments = dict(defaults) | given

    def told(text: str) -> str:
        return re.sub(r"\{\{ (\w+) \}\}", lambda found: arguments[found[1]], text)

    image = told(re.findall(r"^From: (.*)$", head, re.MULTILINE)[0])
    root = bench.base(image).copy(bench.folder / "definition")
    for line in sections["files"].split("\n"):
        if line.strip():
            source, target = line.split()
            copy_in(root, [bench.context / source], target, ["__pycache__"])
    for name in ("post", "test"):
        say(f"%{name}")
        bench.run(root, ["/bin/sh", "-c", told(sections[name])])
    return root


def services(bench: Bench, path: Path, image: Root, timeout: float) -> list[int]:
    """Starts all services of a compose file, each in a copy of the image; their exit statuses."""
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    volumes = {name: bench.folder / f"volume-{name}" for name in found["volumes"]}
    hosts = image.path("/etc/hosts")
    hosts.write_text(hosts.read_text() + "".join(f"127.0.0.1 {n}\n" for n in found["services"]))
    for volume in volumes.values():  # an engine fills a new volume with the image's files there
        volume.mkdir()
        volume.chmod(0o777)
    running = []
    for name, service in found["services"].items():
        root = image.copy(bench.folder / f"service-{name}")
        root.workdir = service["working_dir"]
        mounts = dict(volume.split(":") for volume in service["volumes"])
        binds = {str(volumes[volume]): inside for volume, inside in mounts.items()}
        command = [*service["entrypoint"], *service["command"]]
        say(f"{name}: {' '.join(command)}")
        started = root.start(
            command, env=service["environment"], binds=binds, hostname=service["hostname"]
        )
        running.append(started)
    deadline = time.monotonic() + timeout
    return [each.wait(max(1.0, deadline - time.monotonic())) for each in running]


def filled(text: str, known: Mapping[str, str]) -> str:
    """${NAME} and $NAME replaced; an unknown name is empty."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: known.get(found[1], ""), text)


def say(line: str) -> None:
    print(f"--- {line}", flush=True)
