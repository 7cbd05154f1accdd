"""Time and memory of each unit on each pipeline stage, for one layout.

A unit's blocks, its head, its tensor-parallel all-reduces and its ZeRO 3 gathers are taken to run
one after the other; so are its sends, since the next unit may need them. (On GPUs messages also
overlap with other units, so the estimate is conservative.)
"""

from __future__ import annotations

from functools import partial

from parallel.combinations import MAX_LOGITS, MAX_WHOLE, Layout
from parallel.critical_path import CriticalPath
from parallel.schedule import SENDS_UNDER_WAY, Action
from pretrain.config.memory import FP32
from pretrain.config.schema import Config
from pretrain.model.flops import block_parameters
from pretrain.study.block_work import BlockBytes, BlockCounter, BlockWork, Rows
from pretrain.study.communication import Group
from pretrain.study.hardware import Hardware
from pretrain.study.rank_memory import UnitBytes, peak, unit_bytes
from pretrain.study.stage_units import StageUnit, StageUnits

# Backward relative to forward: attention recomputes its scores, the delta rule's kernel some parts.
PRODUCTS, ATTENTION, RULE, RULE_KERNEL, ELEMENTWISE = 2.0, 2.5, 2.0, 3.0, 2.0
NODES = 200_000  # bytes of graph nodes and objects that a block leaves in a unit, on the host


class _Cost:
    """The cost of one unit on one stage."""

    def __init__(self) -> None:
        self.forward = self.backward = 0.0  # seconds
        self.exchange = 0.0  # of these, seconds spent only on communication
        self.recomputed = 0.0  # FLOPs of one tensor-parallel rank
        self.bytes = UnitBytes(0.0, 0.0)


class StageTimes:
    """Times of a microbatch in one layout on all stages; s is a stage's number, from 0."""

    def __init__(
        self,
        config: Config,
        hardware: Hardware,
        counter: BlockCounter,
        x: Layout,
        dp: int,
        units: StageUnits,
    ) -> None:
        """
        Args:
            counter: of the layout's blocks.
        """
        self._model, self._hardware = config.model, hardware
        self._counter, self._layout = counter, x
        self._weights, self._units = dp * x.cp, units  # ranks that hold the same weights
        self._element = 2 if x.precision == "bf16" else FP32
        self._fused = hardware.device.kind == "cuda" and hardware.device.fused
        blocks = sum(block_parameters(self._model, kind) for kind in self._model.layers) / x.tp
        self._gathers = x.zero == 3 and blocks > MAX_WHOLE
        self.rows = config.train.batch // (dp * x.microbatches)
        # A rank of the context-parallel group has 1/cp of tokens and heads: as if of rows.
        self._share = self.rows / x.cp
        known = {unit: self._cost(unit) for unit in {u for stage in units.of for u in stage if u}}
        nothing = _Cost()
        self._costs = [[known[u] if u else nothing for u in stage] for stage in units.of]
        # seconds of a microbatch, by stage; the part in which ranks only exchange something
        self.busy = [sum(c.forward + c.backward for c in stage) for stage in self._costs]
        self.exchange = [sum(c.exchange for c in stage) for stage in self._costs]
        self.recomputed = sum(c.recomputed for stage in self._costs for c in stage)
        self._makespans: dict[int, float] = {}

    def least(self, M: int) -> float:
        """Seconds of M microbatches with approximately minimal idle time: the pipeline is filled
        and drained once.
        """
        firsts = [stage[0].forward + stage[0].backward for stage in self._costs]
        return M * max(self.busy) + sum(firsts) - max(firsts)

    def makespan(self, M: int) -> float:
        """Seconds of M microbatches in the order of the schedule.

        If there are many, the first groups of P are simulated, and the rest is extrapolated.
        """
        P = self._layout.pp
        if P == 1:
            return M * self.busy[0]
        few = self._few(M)
        if few == M:
            return self._play(M)
        return self._play(few) + (self._play(few) - self._play(few - P)) * (M - few) / P

    def _few(self, M: int) -> int:
        """How many microbatches are simulated for M: three groups of P and the remainder; if P is
        large, two groups suffice.
        """
        P = self._layout.pp
        return min(M, (3 if P < 16 else 2) * P + M % P)

    def _play(self, M: int) -> float:
        def duration(action: Action, s: int) -> float:
            cost = self._costs[s][action.unit]
            return cost.backward if action.backward else cost.forward

        if M not in self._makespans:
            self._makespans[M] = self._path(M).seconds(duration)
        return self._makespans[M]

    def _path(self, M: int) -> CriticalPath:
        recompute = "none" if self._layout.recompute == "none" else "unit"
        return self._units.path(M, recompute)

    def least_activations(self, s: int, M: int) -> float:
        """A lower bound of activations in bytes on a stage: of the microbatches that are in flight
        in the later stages.
        """
        if self._layout.pp == 1:
            return self.activations(s, M)
        segments: dict[int, float] = {}
        for p, cost in zip(self._units.passes, self._costs[s], strict=True):
            segments[p.segment] = segments.get(p.segment, 0.0) + cost.bytes.kept
        again = min((c.bytes.again for c in self._costs[s] if c.bytes.again), default=0.0)
        return min(M, self._layout.pp - s) * max(segments.values()) + again

    def activations(self, s: int, M: int) -> float:
        """Peak bytes of activations on a stage."""
        P, passes = self._layout.pp, self._units.passes
        if P == 1:
            trained = [n for n in reversed(range(len(passes))) if passes[n].has_backward(0)]
            order = [(False, n) for n in range(len(passes))] + [(True, n) for n in trained]
        else:
            order = [(a.backward, a.unit) for a in self._path(self._few(M)).actions[s]]
        h = self._share * self._units.widest * self._stream * self._element
        # what a unit gives and its gradient; hidden states on their way to other stages
        hidden = 2 + (SENDS_UNDER_WAY + 2) * (P > 1)
        return peak(order, [c.bytes for c in self._costs[s]]) + hidden * h

    # ---- one unit

    def _cost(self, unit: StageUnit) -> _Cost:
        x, cost = self._layout, _Cost()
        again = x.recompute != "none"
        seconds = partial(
            block_seconds, hardware=self._hardware, precision=x.precision, graphs=x.cuda_graphs
        )
        for (kind, past, write_only, has_grad), count in unit.blocks:
            work = self._counter.work(Rows(kind, self._share, unit.width, past, write_only))
            summed = self._summed(unit, 0 if write_only else 2)
            summed += self._exchanged(kind, unit, write_only)
            matrices = self._element * self._elements(kind)
            forward = seconds(work, matrices) + summed
            cost.forward += count * forward
            cost.exchange += count * summed
            if not has_grad:
                continue
            in_forward = summed
            summed = self._summed(unit, 1 if write_only else 2)
            summed += self._exchanged(kind, unit, write_only)
            cost.backward += count * (
                seconds(work, matrices, backward=True)
                + summed + again * forward + self._accumulated(kind)
            )  # fmt: skip
            cost.exchange += count * (summed + again * in_forward)
            cost.recomputed += again * count * (work.products + work.attention + work.delta)
        head, gathered, sent = self._head(unit), self._gathered(unit), self._sent(unit)
        cost.forward += head + gathered + unit.sends * sent
        cost.backward += unit.has_backward * ((2 + again) * head + gathered)
        cost.backward += unit.sends_back * sent
        cost.exchange += (1 + unit.has_backward) * gathered
        cost.exchange += (unit.sends + unit.sends_back) * sent
        if unit.has_backward:
            cost.bytes = self._bytes(unit)
        return cost

    @property
    def _stream(self) -> float:
        return self._model.d_model / (self._layout.tp if self._layout.sequence_parallel else 1)

    def _summed(self, unit: StageUnit, times: int) -> float:
        """Seconds of tensor-parallel all-reduces of hidden states."""
        size = self._share * unit.width * self._model.d_model * self._element
        return times * Group(self._hardware, self._layout.tp).all_reduce(size)

    def _exchanged(self, kind: str, unit: StageUnit, write_only: bool) -> float:
        """Seconds of the context-parallel exchanges of a mixer, tokens for heads and back."""
        x, model = self._layout, self._model
        if x.cp == 1:
            return 0.0
        if kind == "attention":
            arriving = 2 * model.attention_kv_heads * model.attention_head_dim
            read = model.attention_heads * model.attention_head_dim
            leaving = read
        else:
            read = model.delta_keys
            leaving = model.delta_values
            arriving = read + leaving + 2 * model.delta_value_heads
        group, element = Group(self._hardware, x.cp, x.tp), self._element / x.tp
        size = self._share * unit.width * element
        if write_only:
            return group.shared_out(size * arriving)
        return group.shared_out(size * (arriving + read)) + group.shared_out(size * leaving)

    def _accumulated(self, kind: str) -> float:
        """Seconds of accumulating a block's gradients."""
        return 3 * FP32 * self._elements(kind) / self._hardware.device.bandwidth

    def _elements(self, kind: str) -> float:
        """The number of a block's parameters on a rank."""
        return block_parameters(self._model, kind) / self._layout.tp

    def _logits(self, unit: StageUnit) -> float:
        """How many logits a rank computes."""
        return self._share * unit.scored * self._model.vocab_size / self._layout.tp

    def _head(self, unit: StageUnit) -> float:
        device, logits = self._hardware.device, self._logits(unit)
        rate = self._hardware.flops(self._layout.precision) * device.product_share
        moved = (3 * self._element if self._fused else 6 * FP32) * logits / device.bandwidth
        return 2 * logits * self._model.d_model / rate + moved

    def _sent(self, unit: StageUnit) -> float:
        size = self._share * unit.width * self._stream * self._element
        return Group(self._hardware, self._layout.pp, self._layout.tp * self._weights).send(size)

    def _gathered(self, unit: StageUnit) -> float:
        """Seconds in which ZeRO 3 gathers weights that do not stay from unit to unit."""
        if not self._gathers:
            return 0.0
        elements = sum(n * block_parameters(self._model, b.kind) for b, n in unit.blocks)
        size = self._element * elements / self._layout.tp
        return Group(self._hardware, self._weights, self._layout.tp).shared_out(size)

    def _bytes(self, unit: StageUnit) -> UnitBytes:
        policy = self._layout.recompute
        blocks: list[BlockBytes] = []
        for (kind, past, write_only, has_grad), count in unit.blocks:
            rows = Rows(kind, self._share, unit.width, past, write_only)
            blocks += [self._counter.work(rows).bytes] * count * has_grad
        kept, again = unit_bytes(policy, blocks)
        if self._hardware.device.kind == "cpu":
            kept += NODES * len(blocks)
        # a logit, and unless it is fused the same in fp32 and its logarithm
        each, logits = self._element if self._fused else 2 * FP32, self._logits(unit)
        kept += each * logits * (policy == "none")
        return UnitBytes(kept, max(again, 2 * each * min(logits, MAX_LOGITS)))


def block_seconds(
    work: BlockWork,
    matrices: float,
    hardware: Hardware,
    precision: str,
    *,
    backward: bool = False,
    graphs: bool,
) -> float:
    """How long a block takes on one rank, with weights of `matrices` bytes.

    Args:
        graphs: its unit is replayed (parallel.cuda_graphs), so the host launches almost nothing.
    """
    device, flops = hardware.device, hardware.flops(precision)
    rule = RULE_KERNEL if device.kind == "cuda" and precision == "bf16" else RULE
    products, attention, delta, elementwise = (
        (PRODUCTS, ATTENTION, rule, ELEMENTWISE) if backward else (1.0, 1.0, 1.0, 1.0)
    )
    seconds = products * work.products / (flops * device.product_share)
    seconds += attention * work.attention / (flops * device.attention_share)
    seconds += delta * work.delta / (flops * device.delta_share)
    seconds += elementwise * work.moved / device.bandwidth
    launched = 0.0 if graphs else elementwise * work.launches * device.launch_s
    if device.kind == "cuda":  # it works while the host launches, and multiplies while it reads
        return max(seconds, launched)
    times = 2 if backward else 1  # backward writes their gradients, too
    read = times * matrices / device.bandwidth
    return seconds + launched + read
