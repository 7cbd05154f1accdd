"""Training by our engine and optimiser: the counterpart of reference.py."""

from __future__ import annotations

import torch

from parallel import mesh
from parallel.engine import Engine
from pretrain.data.batch import IGNORE
from pretrain.run.optimizer import MuonAdamW
from tests import gathered
from tests.run import reference


def train(zero: int, precision: str, microbatches: int, steps: int) -> reference.Trained:
    """The engine's counterpart of `reference.train`; every rank reads its rows of each batch."""
    net = reference.model()
    optimizer = MuonAdamW(net.named_parameters(), reference.OPTIMIZER)
    engine = Engine(net, optimizer, zero=zero, precision=precision, microbatches=microbatches)
    losses, norms = [], []
    for step in range(steps):
        whole = reference.batch(step)
        scored, total = int((whole.targets != IGNORE).sum()), torch.zeros(())
        mine = whole.split(mesh.dp_size())[mesh.dp_rank()]
        for part in mine.split(microbatches):
            loss = engine(part).loss
            engine.backward(loss, scored)
            total += loss.detach() / scored
        engine.step()
        torch.distributed.all_reduce(total)
        losses.append(float(total))
        norms.append(float(optimizer.grad_norm))
    trained = reference.Trained(
        gathered.whole(engine.weights()), gathered.whole(optimizer.pieces()), losses, norms
    )
    engine.close()
    return trained
