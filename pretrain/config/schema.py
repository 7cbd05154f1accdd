"""Every setting of a run: type, default, meaning, choices, bounds, may it change on resume.

Read from top to bottom, or printed by `hypnos train --help-settings`. A field's type says what kind
of value it takes (`Literal`: which ones); `setting` says the rest:

    at_least, above, at_most, below   bounds of a number, or of each number of a list
    changes                           a run that goes on may have another value than before: it does
                                      not enter what has been computed so far, or only by rounding
    path                              the name of a file or a folder: `~` is expanded

What several settings must satisfy together is in checks.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from parallel.setting import REQUIRED, setting
from parallel.shape import BlockShape

EVERYTHING = 1 << 40  # tokens: more than any sequence has


@dataclass(kw_only=True)
class RunConfig:
    """The run's folder is dir/name."""

    name: str = setting("run", "name of the run's folder", changes=True)
    dir: str = setting("runs", "folder that the run's folder is in", changes=True, path=True)
    seed: int = setting(0, "seed of the weights and of the order of the data", at_least=0)
    init_from: str = setting(
        "",
        "run or checkpoint to take initial weights from; [model], [sleep] and data.tokenizer "
        "default to that run's",
        path=True,
    )
    init_moments: bool = setting(
        False,
        "the optimiser's moments also come from run.init_from, as for other data, windows or rates "
        "in mid-course; steps, data and the schedule of rates begin anew in any case",
    )


@dataclass(kw_only=True)
class ModelConfig(BlockShape):
    """The hybrid model; names in (parentheses) are transformers' for the same size."""

    layers: list[Literal["attention", "delta"]] = setting(
        ["attention", "delta", "attention", "delta"], "the blocks, from the first to the last"
    )
    vocab_size: int = setting(0, "tokens; 0: taken from the tokenizer or the task", at_least=0)
    tie_embeddings: bool = setting(False, "the head uses the embedding's weights")
    embedding_std: float = setting(
        0.0,
        "of the embedding at start; 0: 1, or 0.02 if the head uses it too, which does not go well "
        "with many passes (docs/method.md)",
        at_least=0,
    )
    head_std: float = setting(0.02, "of the head at start", above=0)
    init_std: float = setting(0.02, "of the blocks' matrices at start", above=0)
    residual_std: float = setting(
        0.0,
        "of those of them that write to the residual stream (mixer.out, mlp.down); 0: as init_std",
        at_least=0,
    )
    decay_init: tuple[float, float] = setting(
        (1e-3, 0.1), "-log a_t of the heads at start: evenly spread in log scale", above=0
    )

    @property
    def embedding_at_start(self) -> float:
        """Its standard deviation. What blocks write must be small beside it, or each norm that
        reads h is steep and gradients grow with every pass (docs/method.md); a head that large
        would make the first logits overconfident.
        """
        return self.embedding_std or (0.02 if self.tie_embeddings else 1.0)


@dataclass(kw_only=True)
class SleepConfig:
    """What is done with a window when it is full (docs/method.md)."""

    passes: int = setting(
        4, "N, all passes over a window; 1 is the plain hybrid with eviction", at_least=1
    )
    min_passes: int = setting(
        0,
        "each training step draws its N from min_passes to passes, all equally likely; "
        "0: N is always passes",
        at_least=0,
    )
    curriculum: int = setting(
        0,
        "first steps, over which N rises in equal parts from min_passes (0: from 1) to passes, "
        "where it stays; 0: no curriculum",
        at_least=0,
    )
    window: int = setting(256, "L, tokens", at_least=1)
    when: Literal["always", "context", "awake"] = setting(
        "always",
        "always: every window but the last sleeps; context: windows without targets sleep; "
        "awake, a control: every window makes its N passes before it is predicted",
    )
    carries: Literal["both", "h", "S"] = setting(
        "both",
        "what a pass takes from the one before; both: h and S; controls: h: it begins with S as "
        "the window found it; S: it begins with the embedding",
    )
    eviction: Literal["hard", "sliding", "none"] = setting(
        "hard",
        "hard: keys and values end with a window; sliding: the last L - 1 stay attendable; "
        "none, a control: all do",
    )
    prelude: int = setting(0, "blocks before the loop, run once per window", at_least=0)
    coda: int = setting(0, "blocks after the loop, run once per window", at_least=0)
    truncate_passes: int = setting(
        0,
        "backpropagate through the last k passes of a window only, and so to no window before it; "
        "0: through all",
        at_least=0,
    )
    truncate_windows: int = setting(
        0,
        "cut backpropagation every j windows, counted from the sequence's end; 0: never",
        at_least=0,
    )

    @property
    def slides(self) -> bool:
        """Keys outlive their window, and positions are absolute."""
        return self.eviction != "hard"

    @property
    def reach(self) -> int:
        """How many tokens a query sees at most, itself among them."""
        return EVERYTHING if self.eviction == "none" else self.window

    @property
    def is_control(self) -> bool:
        """Something to compare with, which only training and evaluation know."""
        return self.is_looped or self.carries != "both" or self.eviction == "none"

    @property
    def is_looped(self) -> bool:
        """Predictions are read from a window's last pass."""
        return self.when == "awake"


@dataclass(kw_only=True)
class CorpusConfig:
    """One corpus of a mixture."""

    path: str = setting(
        REQUIRED,
        "folder that `hypnos data prepare` wrote, or its URL (s3://bucket/prefix)",
        path=True,
    )
    weight: float = setting(
        1.0,
        "share of the tokens drawn from it, relative to the others",
        at_least=1e-6,
        at_most=1e6,
    )


@dataclass(kw_only=True)
class HeldoutConfig:
    """Held-out text that is judged by itself."""

    name: str = setting(REQUIRED, "what its losses are called: letters, digits, _ and -")
    path: str = setting(REQUIRED, "folder of held-out shards, or its URL", path=True)


@dataclass(kw_only=True)
class DataConfig:
    """What is trained on."""

    task: Literal["text", "depo", "rule110", "stories", "mqar", "s5", "brevo", "recall"] = setting(
        "text", "text: shards of a corpus; the others are generated, as their sections say"
    )
    tokenizer: str = setting(
        "",
        "file of `hypnos tokenizer train`, or the Hugging Face folder of a model that has one; "
        "required for text, stories and recall; of a run that goes on, only its place may be "
        "another",
        changes=True,
        path=True,
    )
    train: list[CorpusConfig] = setting(
        [],
        "corpora of text, and their weights; of a run that goes on, only the paths may be others",
        changes=True,
    )
    heldout: str = setting(
        "", "folder of held-out shards, or its URL (text)", changes=True, path=True
    )
    heldout_sets: list[HeldoutConfig] = setting(
        [],
        "further held-out shards, each judged by itself at every evaluation, on "
        "train.eval_batches of its own (text)",
        changes=True,
    )
    windows: int = setting(4, "W, windows per training sequence (text)", at_least=1)
    documents: Literal["isolate", "stitch"] = setting(
        "isolate", "isolate: a document starts a window with S = 0; stitch: joined by EOS"
    )
    repeats: int = setting(
        1,
        "a control for tasks: so many copies of each window of context, side by side in a window "
        "of sleep.window tokens, are read in one go",
        at_least=1,
    )
    curriculum: int = setting(
        0,
        "first steps, over which the deepest rows of a task rise in equal parts to the deepest "
        "there are: depo.max_hops, rule110.steps, stories.max_ops, recall.max_hops; 0: none",
        at_least=0,
    )
    state_passing: float = setting(
        0.0,
        "share of a task's rows that begin with the fast weights that another row has left, the "
        "one before in their place of the batch, in place of S = 0",
        at_least=0,
        at_most=1,
    )
    carry: bool = setting(
        True, "a document longer than W windows keeps S from one sequence to the next"
    )
    cache: str = setting(
        "~/.cache/hypnos",
        "folder on a local disk for what is read of shards on an object store; ~ is each user's",
        changes=True,
    )
    cache_gb: float = setting(
        50.0, "GB that it may hold, of all runs on a host", at_least=0.01, changes=True
    )
    retry: float = setting(
        300.0,
        "seconds for which an object store that fails or is slow is asked for an object",
        at_least=1,
        at_most=1e9,
        changes=True,
    )

    def heldout_paths(self) -> dict[str, str]:
        """The folders of all held-out shards, by the setting that names each."""
        sets = (each.path for each in self.heldout_sets)
        named = {f"data.heldout_sets[{i}].path": path for i, path in enumerate(sets)}
        return {"data.heldout": self.heldout} | named


@dataclass(kw_only=True)
class DepoConfig:
    """Multi-hop retrieval in a shuffled directed cycle (docs/method.md)."""

    nodes: int = setting(75, "of the largest cycle", at_least=1)
    min_nodes: int = setting(
        0,
        "of the smallest cycle in training; equal to nodes: all have that size; "
        "0: as many as queries",
        at_least=0,
    )
    max_hops: int = setting(16, "a query goes 1 to so many hops", at_least=1)
    context: int = setting(300, "tokens of the edge list, left-padded", at_least=1)
    queries: int = setting(10, "on each cycle", at_least=1)
    vocabulary: int = setting(
        50, "size of each of the two sets of tokens that node names are written in", at_least=1
    )
    name_tokens: tuple[int, int] = setting((1, 2), "least and most tokens of a name", at_least=1)
    mask_pad: bool = setting(
        False, "PAD neither writes nor decays; by default it is an ordinary token"
    )
    kept: int = setting(
        0, "one cycle in so many is kept for the test, and never read before; 0: none", at_least=0
    )


@dataclass(kw_only=True)
class Rule110Config:
    """A cellular automaton, whose state some steps later is predicted (docs/method.md)."""

    width: int = setting(
        24, "cells of a ring; sleep.window is a multiple of it, or it of sleep.window", at_least=3
    )
    rings: int = setting(4, "of a sequence; they fill whole windows", at_least=1)
    steps: int = setting(32, "t, applications of the rule", at_least=0, at_most=1 << 20)
    min_steps: int = setting(
        0,
        "each row is asked for every t from steps down to this one; 0: for t = steps alone",
        at_least=0,
    )
    kept: int = setting(
        0,
        "one in so many patterns of the 2t + 1 cells that decide a label is kept for the test, and "
        "never read before; 0: none",
        at_least=0,
    )


@dataclass(kw_only=True)
class StoriesConfig:
    """Math stories in the GSM-Infinite format."""

    path: str = setting(
        "",
        ".jsonl with problem, question, solution, op; empty: the built-in generator",
        changes=True,
        path=True,
    )
    min_ops: int = setting(1, "least operations of a story", at_least=1)
    max_ops: int = setting(8, "most operations of a story", at_least=1)
    context: int = setting(2000, "tokens, left-padded", at_least=1)
    question_first: bool = setting(True, "the question comes before the story")


@dataclass(kw_only=True)
class MqarConfig:
    """Associative recall: the values of keys (docs/method.md)."""

    pairs: int = setting(32, "of a key and a value; they fill whole windows", at_least=1)
    queries: int = setting(8, "keys that are asked for", at_least=1)
    vocabulary: int = setting(64, "size of the set of keys, and of that of values", at_least=1)


@dataclass(kw_only=True)
class S5Config:
    """The word problem of a symmetric group (docs/method.md)."""

    symbols: int = setting(5, "that are permuted: 5 for S5", at_least=2, at_most=5)
    length: int = setting(16, "of the word; it fills whole windows", at_least=1)


@dataclass(kw_only=True)
class BrevoConfig:
    """All that a node of a graph depends on, leaves first (docs/method.md)."""

    nodes: int = setting(16, "of a graph", at_least=2)
    needs: int = setting(2, "a node needs so many others at most", at_least=1)
    max_depth: int = setting(
        4, "tests ask for nodes with chains of 1 to so many below them", at_least=1, at_most=8
    )
    context: int = setting(64, "tokens of the edge list, left-padded", at_least=1)
    vocabulary: int = setting(32, "names of nodes, a token each", at_least=1)


@dataclass(kw_only=True)
class RecallConfig:
    """Needles and chains of variables in real text (docs/method.md)."""

    context: int = setting(512, "tokens of the text, left-padded", at_least=1)
    chains: int = setting(2, "numbers that are passed on", at_least=1, at_most=100)
    max_hops: int = setting(
        4, "a chain has so many; asked for are 0 to so many", at_least=0, at_most=64
    )
    questions: int = setting(1, "chains that are asked about, one name of each", at_least=1)
    name_letters: int = setting(3, "letters of a name", at_least=1, at_most=8)
    digits: int = setting(3, "of a number", at_least=1, at_most=8)


@dataclass(kw_only=True)
class OptimizerConfig:
    """Muon and AdamW; learning rates warm up, stay at their peak and decay."""

    muon_lr: float = setting(2e-3, "peak learning rate of the body's matrices", above=0)
    adamw_lr: float = setting(
        1e-3,
        "peak learning rate of embeddings, head, norms, biases, A_log, dt_bias, convolutions",
        above=0,
    )
    momentum: float = setting(0.95, "of Muon", at_least=0, below=1)
    betas: tuple[float, float] = setting((0.9, 0.95), "of AdamW", at_least=0, below=1)
    weight_decay: float = setting(1e-4, "of matrices, times the learning rate", at_least=0)
    clip: float = setting(1.0, "most that the gradient's norm may be", above=0)
    warmup: int = setting(100, "steps in which learning rates rise to their peak", at_least=0)
    decay: int = setting(
        0,
        "last steps, in which learning rates fall to final_lr of their peak; 0: they never fall. A "
        'cosine over the run is decay = train.steps - warmup with decay_shape = "cosine"',
        at_least=0,
        changes=True,
    )
    decay_shape: Literal["linear", "cosine", "sqrt"] = setting(
        "linear",
        "how they fall, as the share p of the decay that is done goes from 0 to 1. linear: 1 - p; "
        "cosine: (1 + cos(pi p)) / 2; sqrt: 1 - sqrt(p), as after a constant rate (WSD)",
        changes=True,
    )
    final_lr: float = setting(
        0.1, "share of the peak learning rate at the end of the decay", at_least=0, at_most=1
    )
    name: Literal["muon", "adamw"] = setting(
        "muon", "muon: Muon on the body's matrices, AdamW on the rest; adamw: AdamW on all"
    )
    body_lr_share: float = setting(
        1.0, "with adamw: share of adamw_lr that the body's matrices have", above=0
    )
    residual_lr_share: float = setting(
        1.0,
        "share of their learning rate for matrices that write to the residual stream (mixer.out, "
        "mlp.down)",
        above=0,
    )
    head_lr_share: float = setting(1.0, "share of adamw_lr that the head has", above=0)
    update: Literal["all", "delta"] = setting(
        "all",
        "what learns: every parameter, or the delta-rule blocks while all else stays as it is",
    )

    def reaches_peak(self, steps: int) -> bool:
        """Whether learning rates have risen in a run of so many steps before they begin to fall."""
        return self.warmup + self.decay <= steps


@dataclass(kw_only=True)
class ParallelConfig:
    """How a step is spread over ranks; those beyond tp x cp x pp are data parallel
    (docs/parallelism.md).
    """

    tp: int = setting(
        1, "ranks that share each layer, by heads and by features", at_least=1, changes=True
    )
    cp: int = setting(
        1,
        "ranks that share the tokens of each window, and heads in mixers",
        at_least=1,
        changes=True,
    )
    cp_delta: Literal["heads", "tokens"] = setting(
        "heads",
        "what they share of the delta rule. heads: whole windows are exchanged; tokens: only what "
        "each rank's tokens do to S is, which takes the rule twice",
        changes=True,
    )
    pp: int = setting(1, "stages that the blocks are split over", at_least=1, changes=True)
    stages: list[int] = setting(
        [], "blocks on each stage; empty: balanced by FLOPs", at_least=1, changes=True
    )
    sequence_parallel: bool = setting(
        False, "between layers, tp ranks share the tokens too", changes=True
    )
    zero: Literal[0, 1, 2, 3] = setting(1, "DeepSpeed ZeRO stage", changes=True)
    offload: bool = setting(
        False, "optimiser state and fp32 master weights in host memory", changes=True
    )
    recompute: Literal["none", "unit", "block"] = setting(
        "unit",
        "none: all activations are kept; unit: a (window, pass) keeps only its inputs; "
        "block: each block does",
        changes=True,
    )
    cuda_graphs: bool = setting(
        False,
        "replay each (window, pass) as one CUDA graph: for models so small that the host cannot "
        "keep a GPU busy",
        changes=True,
    )
    timeout: float = setting(
        600.0,
        "seconds after which a rank that makes no progress, or waits for one, ends the job",
        above=0,
        at_most=1e9,
        changes=True,
    )


@dataclass(kw_only=True)
class TrainConfig:
    """How long, in which portions, and what is written when."""

    steps: int = setting(1000, "optimiser steps", at_least=1, changes=True)
    batch: int = setting(
        32, "sequences per optimiser step, over all ranks", at_least=1, at_most=1 << 20
    )
    microbatches: int = setting(1, "gradient accumulation on each rank", at_least=1, changes=True)
    precision: Literal["fp32", "bf16"] = setting(
        "fp32", "of blocks and activations; fast weights, gates and master weights are always fp32"
    )
    log_every: int = setting(10, "steps between rows of metrics", at_least=1, changes=True)
    eval_every: int = setting(200, "steps between evaluations", at_least=1, changes=True)
    eval_batches: int = setting(4, "held-out batches of an evaluation", at_least=1, changes=True)
    checkpoint_every: int = setting(200, "steps between checkpoints", at_least=1, changes=True)
    keep: int = setting(2, "newest checkpoints that are kept", at_least=1, changes=True)
    keep_every: int = setting(
        0,
        "steps; a checkpoint at a multiple of it is kept for good; 0: none is",
        at_least=0,
        changes=True,
    )
    profile: list[int] = setting(
        [],
        "first and last step of a trace of torch.profiler, in RUN/profile; [] none",
        at_least=1,
        changes=True,
    )


@dataclass(kw_only=True)
class GuardConfig:
    """Steps whose numbers go wrong (docs/guard.md). One whose loss or gradient norm is not finite
    is always skipped.
    """

    spike: float = setting(
        0.0,
        "also skip a step whose loss or gradient norm exceeds this many times its running mean; "
        "0: never",
        at_least=0,
    )
    limit: int = setting(
        10, "consecutive skipped steps after which guard.then applies", at_least=1, changes=True
    )
    then: Literal["stop", "rollback"] = setting(
        "stop",
        "stop: end, explained; rollback: to the newest checkpoint, on with the data after that",
        changes=True,
    )
    rollbacks: int = setting(
        3, "to one checkpoint; after so many the run stops", at_least=1, changes=True
    )


@dataclass(kw_only=True)
class Config:
    """All settings of a run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sleep: SleepConfig = field(default_factory=SleepConfig)
    data: DataConfig = field(default_factory=DataConfig)
    depo: DepoConfig = field(default_factory=DepoConfig)
    rule110: Rule110Config = field(default_factory=Rule110Config)
    stories: StoriesConfig = field(default_factory=StoriesConfig)
    mqar: MqarConfig = field(default_factory=MqarConfig)
    s5: S5Config = field(default_factory=S5Config)
    brevo: BrevoConfig = field(default_factory=BrevoConfig)
    recall: RecallConfig = field(default_factory=RecallConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
