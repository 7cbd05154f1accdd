"""One file per subcommand: `register` declares it, `run` does it. Heavy imports stand inside `run`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[Any]  # what `register` adds to
