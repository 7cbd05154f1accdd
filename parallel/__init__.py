"""How one training step is computed on many ranks: process grid, hybrid blocks and their state.

shape.py            sizes of a block; the legend of shape letters
setting.py          a dataclass field that carries its description and its bounds
megatron.py         what we use of Megatron-core;  uncompiled.py  imports it without torch.compile
mesh.py             the process grid;  combinations.py  which layouts are refused
talk.py             messages between ranks outside the training step
context.py          context parallelism: split by tokens between mixers, by heads inside them
layers.py           Megatron's parallel linears and embedding, cross-entropy;  norms.py  norms
delta_rule.py       the gated delta rule: recurrent, chunked, flash-linear-attention
chunked_delta_rule.py  its chunked form with the gradient
delta_merge.py      the rule over a window split by tokens: each rank's map of S, composed
hopper.py           one gradient of fla's kernel, where Triton miscompiles it
attention.py        gated causal attention
gated_delta_net.py  the block part that owns fast weights
short_convolution.py  the convolution before it
mlp.py  block.py    SwiGLU; the whole block: forward(x, state, window) -> (y, state)
state.py            what blocks carry from one window to the next
window.py           what all blocks share within one window
fused.py            elementwise functions: one kernel each on CUDA, hand-written gradients on a CPU
graphs.py           CUDA graphs of (window, pass) units
recompute.py        activation checkpointing of one (window, pass) unit
stages.py           which blocks a pipeline stage holds
passes.py           one pass over one window: which stages it visits, what each computes
schedule.py         the order of work on each stage;  simulator.py  checks and times a schedule
critical_path.py    how long a schedule takes, fast enough to compare thousands of layouts
pipeline.py         executes a schedule on one stage
engine.py           DeepSpeed ZeRO
zero_layout.py      which rank holds and updates what;  zero_order.py  in what order ZeRO talks
slices.py           pieces of tensors that are split over ranks, and how to reassemble them
watchdog.py         ends a rank that makes no progress
"""

import warnings

# On import Megatron looks for optional CUDA libraries and warns four times; we need none of them.
warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
