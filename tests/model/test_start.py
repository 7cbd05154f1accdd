"""How a model is initialised."""

from typing import Any

import pytest
import torch

from pretrain.config.schema import DepoConfig, ModelConfig, SleepConfig
from pretrain.data.batch import Batch
from pretrain.model.hybrid import initial_value
from pretrain.model.sleep import SleepLM
from pretrain.tasks import Depo

BLOCKS = ["attention", "delta"] * 5


def gradient_norm(batch: Batch, passes: int, **model: Any) -> float:
    """Norm of the mean loss's gradient in a freshly initialised model with default values."""
    config = ModelConfig(layers=BLOCKS, vocab_size=64, **model)
    net = SleepLM(config, SleepConfig(passes=passes, window=16, when="context")).initialize(0)
    (net(batch).loss / (batch.targets >= 0).sum()).backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


@pytest.fixture(scope="module")
def batch() -> Batch:
    settings = DepoConfig(
        nodes=8, max_hops=4, context=16, queries=4, vocabulary=8, name_tokens=(1, 1)
    )
    return Depo(settings, 16).sample(0, 0, 8)


def test_gradients_do_not_grow_with_passes(batch: Batch) -> None:
    assert gradient_norm(batch, 4) < 1.1 * gradient_norm(batch, 1)
    small = [gradient_norm(batch, passes, embedding_std=0.02) for passes in (1, 4)]
    assert small[1] > 2 * small[0] > 10 * gradient_norm(batch, 1)  # so it is not 0.02 by default


@pytest.mark.parametrize(
    "settings, std", [({}, 1.0), ({"tie_embeddings": True}, 0.02), ({"embedding_std": 0.3}, 0.3)]
)
def test_the_embedding(settings: dict[str, Any], std: float) -> None:
    drawn = initial_value("embed.weight", [256, 256], ModelConfig(**settings), 0)
    assert float(drawn.std()) == pytest.approx(std, rel=0.02)
