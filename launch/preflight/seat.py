"""A rank's channel to the others during preflight."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from launch.preflight.rendezvous import Say, scatter
from launch.preflight.verdict import PreflightError, Problem
from launch.world import World, this_host
from parallel import talk
from pretrain.errors import PeerGone, UserError
from pretrain.files import write_atomically, writes_user_file

FILE = "preflight.json"  # in the run's folder, after a failed preflight


@dataclass(frozen=True)
class Seat:
    """One rank's channel: the store that all of them use, and where it prints."""

    world: World
    run: Path  # the run's folder, which may not exist
    store: dist.Store
    say: Say

    @property
    def here(self) -> str:
        """This rank in words."""
        return f"rank {self.world.rank} on {this_host()}"

    def hear(self, key: str, seconds: float) -> Any:
        """Waits for a value from rank 0; if the preflight has failed, raises the common error."""
        try:
            self.store.wait([key], timedelta(seconds=seconds))
            told = json.loads(self.store.get(key))
        except dist.DistError:
            line = f"no word from rank 0 in {seconds:.0f} s; see its log"
            raise PeerGone(f"preflight: {self.here}: {line}") from None
        if "error" in told:
            talk.leave_together(self.store, self.world.rank, ())
            raise PreflightError(told["error"], told["bad_hosts"])
        return told

    def keys(self, name: str) -> list[str]:
        """One for each rank."""
        return [f"{name}/{rank}" for rank in range(self.world.size)]

    def failed(
        self,
        error: PreflightError,
        keys: Sequence[str],
        problems: Sequence[Problem] = (),
        deaf: Collection[int] = (),
        can_write: bool = True,
    ) -> PreflightError:
        """Rank 0 prints what is wrong, writes it to the run's folder, and tells the others.

        Args:
            keys: on which the others wait.
            deaf: ranks that are missing, or hang.
            can_write: False if the run's folder is what is wrong.
        """
        if len(problems) > 1:
            for problem in problems:  # before any rank exits, and the launcher ends all
                self.say(f"preflight: {problem.state}: {problem}")
        lines = [str(problem) for problem in problems] or [str(error)]
        kept = {"bad_hosts": error.bad_hosts, "problems": lines}
        if can_write:  # before any rank is told and exits, and the launcher ends all
            try:
                with writes_user_file(self.run / FILE):
                    self.run.mkdir(parents=True, exist_ok=True)
                    write_atomically(self.run / FILE, json.dumps(kept, indent=1) + "\n")
            except UserError as unwritten:  # the original problem matters more
                self.say(f"preflight: {unwritten}")
        told = json.dumps({"error": str(error), "bad_hosts": error.bad_hosts})
        scatter(self.store, keys, [told] * len(keys))
        talk.leave_together(self.store, 0, set(range(self.world.size)) - set(deaf))
        return error
