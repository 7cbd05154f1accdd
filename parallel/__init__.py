"""How one step is computed on many ranks: the grid, the hybrid blocks and their state.

shape.py            sizes of a block; the legend of shape letters
setting.py          a field that says what it means and what it may be
megatron.py         what we take from Megatron-core;  uncompiled.py  without its compiler
mesh.py             the grid of ranks;  combinations.py  what may be combined
talk.py             what ranks tell each other beside training
context.py          between mixers ranks share tokens, in them heads: the exchange
layers.py           Megatron's parallel linears and embedding, cross-entropy;  norms.py  norms
delta_rule.py       the gated delta rule: recurrent, chunked, flash-linear-attention
chunked_delta_rule.py  its chunked form with the gradient
delta_merge.py      over tokens that ranks share: what each share does to S, merged
hopper.py           one of its gradients, where Triton compiles it wrongly
attention.py        gated causal attention
gated_delta_net.py  the block part that owns fast weights
short_convolution.py  the convolution before it
mlp.py  block.py    SwiGLU; the whole block: forward(x, state, window) -> (y, state)
state.py            what blocks keep from one window to the next
window.py           what all blocks share within one window
fused.py            elementwise functions: one kernel each on CUDA, gradients by hand on a CPU
graphs.py           a (window, pass) unit as one CUDA graph
recompute.py        activation checkpointing of one (window, pass) unit
stages.py           which blocks a pipeline stage holds
passes.py           what a stage computes in one pass over one window
schedule.py         when each stage does what;  simulator.py  proves a schedule on paper
critical_path.py    how long a schedule takes, for those who compare thousands
pipeline.py         carries a schedule out
engine.py           DeepSpeed ZeRO
zero_layout.py      which rank holds and updates what;  zero_order.py  when it is sent
slices.py           pieces of tensors that several ranks hold, and how they make a whole
watchdog.py         ends a rank that makes no progress
"""

import warnings

# Megatron looks for optional CUDA libraries on import and says so four times; none is needed here.
warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
