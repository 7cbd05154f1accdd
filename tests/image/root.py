"""A root file system: made by debootstrap, files copied in and out, commands run in it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RELEASES = {"debian:12": "bookworm", "debian:13": "trixie", "ubuntu:24.04": "noble"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Root:
    """A folder that is / for commands run in it, and an image's settings for them."""

    folder: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    workdir: str = "/"
    user: str = "0:0"
    shell: list[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def copy(self, folder: Path) -> Root:
        """A copy in another folder."""
        subprocess.run(["cp", "-a", "--reflink=auto", self.folder, folder], check=True)
        return Root(
            folder, dict(self.env), self.workdir, self.user, list(self.shell),
            list(self.entrypoint), list(self.command),
        )  # fmt: skip

    def path(self, inside: str) -> Path:
        """Where a path inside the root is outside it; relative ones are to its working folder."""
        return self.folder / os.path.normpath(os.path.join(self.workdir, inside)).lstrip("/")

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        binds: Mapping[str, str],
        hostname: str = "",
    ) -> subprocess.Popen[bytes]:
        """Starts a command in it, as its user.

        Args:
            env: in addition to the image's own.
            binds: paths of this machine -> their paths inside.
        """
        mounts = ["mount -t proc proc proc", "mount --rbind /dev dev", "mkdir -p dev/shm"]
        for outside, inside in binds.items():
            target = inside.lstrip("/")
            made = (
                "mkdir -p" if Path(outside).is_dir() else f"mkdir -p {Path(target).parent}; touch"
            )
            mounts.append(f"{made} {target}; mount --bind {shlex.quote(outside)} {target}")
        if hostname:
            mounts.append(f"hostname {hostname}")
        inner = shlex.join(["env", "-i", *(f"{k}={v}" for k, v in (self.env | env).items())])
        enter = f"exec chroot --userspec={self.user} . {inner} /bin/sh -c "
        script = f"cd {self.workdir} && exec {shlex.join(command)}"
        return subprocess.Popen(
            ["unshare", "--mount", "--uts", "sh", "-ec",
             "\n".join([*mounts, enter + shlex.quote(script)])],
            cwd=self.folder,
        )  # fmt: skip

    def run(
        self, command: Sequence[str], *, env: Mapping[str, str], binds: Mapping[str, str]
    ) -> None:
        """Runs a command; CalledProcessError if it fails."""
        status = self.start(command, env=env, binds=binds).wait()
        if status:
            raise subprocess.CalledProcessError(status, command)


def from_base(image: str, folder: Path) -> Root:
    """A base image's root, as debootstrap makes it for the same release."""
    release = next((r for name, r in RELEASES.items() if image.startswith(name)), None)
    if release is None:
        raise ValueError(f"{image}: only {', '.join(RELEASES)} can be made without an engine")
    subprocess.run(["debootstrap", "--variant=minbase", release, folder], check=True)
    for name in ("resolv.conf", "hosts"):
        shutil.copyfile(f"/etc/{name}", folder / "etc" / name)
    starts_nothing = folder / "usr/sbin/policy-rc.d"  # as in base images
    starts_nothing.write_text("#!/bin/sh\nexit 101\n")
    starts_nothing.chmod(0o755)
    return Root(folder)


def copy_in(root: Root, sources: Iterable[Path], target: str, ignored: Sequence[str] = ()) -> None:
    """Copies as COPY does: a folder's content into the target; a file into it if it ends with /."""
    sources, place = list(sources), root.path(target)
    for source in sources:
        if source.is_dir():
            patterns = shutil.ignore_patterns(*ignored) if ignored else None
            shutil.copytree(source, place, symlinks=True, ignore=patterns, dirs_exist_ok=True)
        else:
            into = place / source.name if target.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into)
