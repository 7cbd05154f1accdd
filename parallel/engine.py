"""DeepSpeed around a model or a pipeline stage: ZeRO 0..3, fp32, or bf16 with fp32 masters.

DeepSpeed reduces gradients, shards gradients, master weights and optimiser state, and gathers the
weights. Everything that must be the same at every ZeRO stage is done by our optimiser, on the
shards that `parallel.zero_layout` describes: the global gradient norm, clipping, the decision to
skip a step, and whole-matrix updates. All parameters form one DeepSpeed parameter group, so that
the optimiser is called once per step with everything.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel import mesh
from parallel.combinations import MAX_BUCKET
from parallel.layers import partial_grad, split_dim
from parallel.megatron import parallel_state
from parallel.slices import Piece
from parallel.uncompiled import uncompiled
from parallel.zero_layout import Partition, shard_layout
from parallel.zero_order import WeightGathering, fill_missing, reduce_in_order

# torch 2.13 has renamed two collectives that DeepSpeed calls on every step.
warnings.filterwarnings(
    "ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning
)


class ShardedOptimizer(Protocol):
    """What the engine needs: a torch optimiser with a single parameter group, and these members."""

    names: list[str]  # of the parameters, in the order of its group
    calls: int  # of step()

    def attach(self, partition: Partition) -> None:
        """Called once, when DeepSpeed has laid out the master weights that step() will update."""

    def skip(self) -> None:
        """Called when DeepSpeed dropped a non-finite gradient without calling step()."""


class DeepSpeedMPU:
    """Megatron's grid behind the interface of DeepSpeed's `mpu`.

    The model-parallel group is tp x pp, so that all stages agree on norms and overflow, but both
    rank getters return the tp rank: DeepSpeed counts what is replicated over tp on rank 0 only.
    Its data-parallel ranks are those that hold the same weights, dp x cp.
    """

    get_model_parallel_group = staticmethod(parallel_state.get_model_parallel_group)
    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_tensor_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_tensor_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_tensor_model_parallel_world_size = staticmethod(
        parallel_state.get_tensor_model_parallel_world_size
    )
    get_data_parallel_group = staticmethod(mesh.dp_cp_group)
    get_data_parallel_rank = staticmethod(mesh.dp_cp_rank)
    get_data_parallel_world_size = staticmethod(mesh.dp_cp_size)

    @staticmethod
    def get_model_parallel_world_size() -> int:
        """tp x pp."""
        return dist.get_world_size(parallel_state.get_model_parallel_group())


class Engine:
    """A model, its optimiser and DeepSpeed.

    Without a pipeline, a step is `out = engine(...)` and `engine.backward(loss, n_scored)` for each
    microbatch, then `engine.step()`. A pipeline stage calls torch's backward itself, inside
    `with engine.accumulating()`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: ShardedOptimizer,
        *,
        zero: int,
        precision: str,
        microbatches: int = 1,
        offload: bool = False,
        tied: nn.Parameter | None = None,
    ) -> None:
        """
        Args:
            model: in fp32, on the host, as a GPU may have room only for what DeepSpeed makes of it,
                and moves there; its values become the master weights.
            optimizer: over all of the model's parameters.
            zero: stage 0..3. precision: fp32 or bf16. microbatches: backward calls per step.
            offload: master weights and optimiser state stay in host memory (ZeRO 1..3).
            tied: in a pipeline, the embedding that the first and the last stage both hold.
        """
        parameters = dict(model.named_parameters())
        # on the host; DeepSpeed gives the parameters other storage, unless ZeRO is off in fp32
        values = {name: parameters[name].detach() for name in optimizer.names}
        self.model, self.optimizer, self.precision = model, optimizer, precision
        self.microbatches = 1 if mesh.pp_size() > 1 else microbatches
        self._tied = tied if mesh.pp_size() > 1 else None
        owners = _Owners({name: parameters[name] for name in optimizer.names}, self._tied)
        config = _config(model, zero, precision, self.microbatches, offload)
        self._deepspeed = _initialize(model, optimizer, config)
        self._parameters = [parameters[name] for name in optimizer.names]
        if zero:
            reduce_in_order(self._deepspeed.optimizer, zero, self._parameters)
        self.gathering = WeightGathering(self._deepspeed.optimizer, model) if zero == 3 else None
        self.partition = _partition(
            self._deepspeed, zero, {name: v.shape for name, v in values.items()}, owners
        )
        self._accept(values)
        optimizer.attach(self.partition)
        self._accumulated = 0

    def _accept(self, values: dict[str, Tensor]) -> None:
        """Checks that DeepSpeed's layout is as expected, and copies in the exact fp32 values."""
        low = torch.bfloat16 if self.precision == "bf16" else torch.float32
        for shard in self.partition.shards:
            expected = values[shard.name].reshape(-1)[shard.start : shard.start + shard.length]
            expected, held = expected.to(self.partition.flat.device), shard.of(self.partition.flat)
            assert torch.equal(held, expected.to(low).float()), (
                f"unexpected DeepSpeed layout at {shard.name}"
            )
            held.copy_(expected)  # DeepSpeed made its own from the low-precision weights

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward."""
        return self._deepspeed(*args, **kwargs)

    def backward(self, loss: Tensor, n_scored: Tensor | int) -> None:
        """Accumulates the gradient of one microbatch.

        Args:
            loss: sum of losses over this rank's microbatch; without a graph if nothing is scored.
            n_scored: see `loss_scale`.
        """
        loss = loss * self.loss_scale(n_scored)
        if not loss.requires_grad:  # adds nothing here, but ranks with the same weights wait for us
            if self.partition.sharded:
                self._deepspeed._backward_prologue()  # DeepSpeed calls it if outputs have a graph
            loss = loss.detach().requires_grad_() + 0  # a graph without any parameters
        self._deepspeed.backward(loss, scale_wrt_gas=False)
        if self.gathering is not None:
            self.gathering.check()
        self._accumulated += 1
        if self._accumulated < self.microbatches:
            self._deepspeed.step()  # counts the microbatch, changes nothing

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """Inside, torch's backward accumulates gradients; on exit they are reduced, once.

        The caller scales losses by `loss_scale`, as `backward` does.
        """
        if self.precision == "fp32":
            with self._deepspeed.coalesce_grad_reduction():
                yield
                fill_missing(self._parameters)
                self._sum_tied()
        else:  # DeepSpeed's bf16 optimiser adds every backward to fp32 gradients
            yield
            self._sum_tied()
            self._deepspeed.allreduce_gradients()
        self._accumulated += 1

    @staticmethod
    def loss_scale(n_scored: Tensor | int) -> Tensor | float:
        """The factor by which a sum of losses is scaled so that a step has the mean's gradient.

        DeepSpeed averages gradients over the ranks that hold the same weights, but they must be
        summed: those ranks have different rows or tokens.

        Args:
            n_scored: the divisor of the sum over all ranks and microbatches of the step.
        """
        return mesh.dp_cp_size() / n_scored

    def _sum_tied(self) -> None:
        """Sums the gradients of a tied embedding's two copies, on the first and the last stage."""
        if self._tied is None:
            return
        gradient = self._tied.grad if self.precision == "fp32" else self._tied._hp_grad  # type: ignore[attr-defined]
        assert gradient is not None, "the embedding and the head have both been used"
        dist.all_reduce(gradient, group=parallel_state.get_embedding_group())

    def step(self) -> None:
        """Updates the weights with the accumulated gradient, unless it is not finite."""
        assert self._accumulated == self.microbatches, "a step takes one backward per microbatch"
        calls, self._accumulated = self.optimizer.calls, 0
        self._deepspeed.step()
        if self.optimizer.calls == calls:
            self.optimizer.skip()
            # DeepSpeed's offloading optimiser would keep its sum of bf16 gradients and add to it
            getattr(self._deepspeed.optimizer, "averaged_gradients", {}).clear()

    def weights(self) -> dict[str, Piece]:
        """This rank's pieces of the fp32 master weights, by name; views, so copy to keep them."""
        return self.partition.pieces(self.partition.flat, self.optimizer.names)

    def close(self) -> None:
        """Releases what DeepSpeed holds: hooks and buffers."""
        self._deepspeed.destroy()


class _Owners:
    """How model-parallel ranks split the parameters, recorded before DeepSpeed rearranges them."""

    def __init__(self, parameters: dict[str, nn.Parameter], tied: nn.Parameter | None) -> None:
        self.splits = {name: split_dim(p) for name, p in parameters.items()}
        self.partial_grad = {name for name, p in parameters.items() if partial_grad(p)}
        copies = {name for name, p in parameters.items() if p is tied and mesh.pp_rank() > 0}
        replicas = {name for name, dim in self.splits.items() if dim is None and mesh.tp_rank() > 0}
        self.counted = parameters.keys() - copies - replicas


def _initialize(model: nn.Module, optimizer: ShardedOptimizer, config: dict[str, Any]) -> Any:
    """DeepSpeed's engine, without its log messages and without compiling anything."""
    os.environ.setdefault("LOCAL_RANK", "0")  # required even in a world of one
    # otherwise it probes for one, and warns
    os.environ.setdefault("DS_ACCELERATOR", mesh.device().type)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # We need none of its own kernels. To find out which it could build, it would try the compiler
    # on every rank, with files in the system's temporary folder, and then build one (a minute) that
    # helps little on one machine.
    deepspeed.ops.__compatible_ops__ = {}
    # one of its optimisers prints memory figures; another, its Muon, would load the compiler
    with contextlib.redirect_stdout(io.StringIO()), uncompiled():
        if config["zero_optimization"]["stage"] == 3:
            # Parameter by parameter: `initialize` would first move the whole model to the GPU.
            low = torch.bfloat16 if config["bf16"]["enabled"] else torch.float32
            deepspeed.zero.Init(
                module=model.to(low), data_parallel_group=mesh.dp_cp_group(),
                config_dict_or_path=config, dtype=low, mpu=DeepSpeedMPU,
            )  # fmt: skip
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, mpu=DeepSpeedMPU
        )
    return engine


def _config(
    model: nn.Module, zero: int, precision: str, microbatches: int, offload: bool
) -> dict[str, Any]:
    """DeepSpeed's configuration; norm and clipping are left to our optimiser where possible."""
    bf16 = precision == "bf16"
    config: dict[str, Any] = {
        # used only multiplied by the next one, in counters we don't read
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": microbatches,
        "gradient_clipping": 0.0,
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        # its timer would make the host wait for the GPU before and after each microbatch
        "timers": {"throughput": {"enabled": False}},
        "bf16": {"enabled": bf16},
        "zero_optimization": {
            "stage": zero,
            "overlap_comm": False,
            # a buffer of that size is allocated, so at most the model's size
            "reduce_bucket_size": min(sum(p.numel() for p in model.parameters()), MAX_BUCKET),
            "sub_group_size": 10**15,  # one flat vector, so one optimiser call, in stage 3
            # stage 3 would replace torch's linear everywhere
            "memory_efficient_linear": False,
        },
    }
    if bf16 and zero:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["bf16"]["immediate_grad_update"] = True
    if offload:
        config["zero_optimization"]["offload_optimizer"] = {
            "device": "cpu",
            "pin_memory": mesh.device().type == "cuda",
        }
        config["zero_force_ds_cpu_optimizer"] = False  # ours works on either side
    elif zero == 2 or (zero == 1 and not bf16):
        # Our optimiser does both without making the host wait. The other stages can't skip them.
        config["zero_optimization"]["compute_grad_norm"] = False
        config["bf16"]["check_grad_overflow"] = False
    return config


def _partition(engine: Any, zero: int, shapes: dict[str, torch.Size], owners: _Owners) -> Partition:
    """Where DeepSpeed has put this rank's fp32 master weights."""
    if zero == 0:
        # one tensor per parameter; they become views of one vector
        parts: list[Tensor] = engine.optimizer.param_groups[0]["params"]
        flat = torch.cat([p.detach().reshape(-1) for p in parts])
        for p, view in zip(parts, flat.split([p.numel() for p in parts]), strict=True):
            p.data = view.view_as(p)
    elif zero == 3:
        flat = engine.optimizer.fp32_partitioned_groups_flat[0]
    else:
        flat = engine.optimizer.param_groups[0]["params"][0]

    def gradient() -> Tensor:
        if zero == 0:
            return torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parts]
            )
        assert flat.grad is not None
        return flat.grad

    return Partition(
        flat=flat.detach(),
        layout=shard_layout(shapes, stage=zero, ranks=mesh.dp_cp_size(), part=flat.numel()),
        sharded=zero > 0,
        gradient=gradient,
        splits=owners.splits,
        partial_grad=owners.partial_grad,
        counted=owners.counted,
    )
