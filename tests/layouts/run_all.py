"""Run by torchrun: trains what every TOML file of a folder describes, one after the other.

torchrun --nproc-per-node=4 tests/layouts/run_all.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from parallel import mesh
from pretrain import trainer
from pretrain.config.load import load

if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.toml")):
        mesh.parallel_state.destroy_model_parallel()  # each has a grid of its own
        trainer.train(load(path), progress=False)
    mesh.shutdown()
