"""Every setting of a run: type, default, meaning, choices, bounds, whether it may change on resume.

`hypnos train --help-settings` prints them. A field's type says what kind of value it takes
(`Literal`: which values); `setting` says the rest:

    at_least, above, at_most, below   bounds of a number, or of each number of a list
    changes                           may be changed when a run is resumed: it does not affect the
                                      steps done so far, or only by rounding
    path                              a file or a folder: `~` is expanded

Conditions on several settings together are in checks.py.
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
    dir: str = setting("runs", "folder that contains the run's folder", changes=True, path=True)
    seed: int = setting(0, "seed of the weights and of the order of the data", at_least=0)
    init_from: str = setting(
        "",
        "run or checkpoint to take initial weights from; [model], [sleep] and data.tokenizer "
        "default to that run's",
        path=True,
    )
    init_moments: bool = setting(
        False,
        "take the optimiser's moments from run.init_from too, for example to continue with other "
        "data, windows or learning rates; steps, data and learning-rate schedule start afresh in "
        "any case",
    )
    wandb: str = setting(
        "",
        "project of Weights & Biases that the metrics are also logged to (docs/metrics.md); "
        "empty: none",
        changes=True,
    )


@dataclass(kw_only=True)
class ModelConfig(BlockShape):
    """The hybrid model; names in (parentheses) are those of transformers."""

    layers: list[Literal["attention", "delta"]] = setting(
        ["attention", "delta", "attention", "delta"], "the blocks, from the first to the last"
    )
    vocab_size: int = setting(0, "vocabulary; 0: taken from the tokenizer or the task", at_least=0)
    tie_embeddings: bool = setting(False, "the head shares the embedding's weights")
    embedding_std: float = setting(
        0.0,
        "initial standard deviation of the embedding; 0: 1, or 0.02 if tied to the head, which "
        "works badly with many passes (docs/method.md)",
        at_least=0,
    )
    head_std: float = setting(0.02, "initial standard deviation of the head", above=0)
    init_std: float = setting(0.02, "initial standard deviation of the blocks' matrices", above=0)
    residual_std: float = setting(
        0.0,
        "initial standard deviation of the matrices that write to the residual stream (mixer.out, "
        "mlp.down); 0: as init_std",
        at_least=0,
    )
    decay_init: tuple[float, float] = setting(
        (1e-3, 0.1),
        "range of the heads' initial decay rates -log a_t, evenly spread on a log scale",
        above=0,
    )

    @property
    def embedding_at_start(self) -> float:
        """The embedding's initial standard deviation. Blocks' outputs must be small relative to it,
        or each norm that reads h is steep and gradients grow with every pass (docs/method.md); with
        a head that large, the first logits would be overconfident.
        """
        return self.embedding_std or (0.02 if self.tie_embeddings else 1.0)


@dataclass(kw_only=True)
class SleepConfig:
    """What happens when a window is full (docs/method.md)."""

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
        "number of first steps, over which N rises in equal parts from min_passes (if 0: from 1) "
        "to passes, where it stays; 0: no curriculum",
        at_least=0,
    )
    window: int = setting(256, "L, tokens of a window", at_least=1)
    when: Literal["always", "context", "awake"] = setting(
        "always",
        "always: every window whose S is read later sleeps; context: windows without targets "
        "sleep; awake, a control: every window makes its N passes before it is scored",
    )
    carries: Literal["both", "h", "S"] = setting(
        "both",
        "what a pass takes over from the previous one; both: h and S; controls: h: S is reset to "
        "what it was before the window; S: h is reset to the embedding",
    )
    eviction: Literal["hard", "sliding", "none"] = setting(
        "hard",
        "hard: keys and values are dropped after each window; sliding: the last L - 1 stay "
        "attendable; none, a control: all do",
    )
    prelude: int = setting(0, "blocks before the loop, run once per window", at_least=0)
    coda: int = setting(0, "blocks after the loop, run once per window", at_least=0)
    truncate_passes: int = setting(
        0,
        "backpropagate only through the last k passes of a window, and so not to earlier windows; "
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
        """Whether keys outlive their window; positions are then absolute."""
        return self.eviction != "hard"

    @property
    def reach(self) -> int:
        """How many tokens a query can see at most, itself included."""
        return EVERYTHING if self.eviction == "none" else self.window

    @property
    def is_control(self) -> bool:
        """Whether it is a control experiment, which only training and evaluation support."""
        return self.is_looped or self.carries != "both" or self.eviction == "none"

    @property
    def is_looped(self) -> bool:
        """Whether predictions are read from a window's last pass."""
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
    """Held-out text that is evaluated by itself."""

    name: str = setting(REQUIRED, "what its losses are called: letters, digits, _ and -")
    path: str = setting(REQUIRED, "folder of held-out shards, or its URL", path=True)


@dataclass(kw_only=True)
class DataConfig:
    """What is trained on."""

    task: Literal[
        "text", "depo", "rule110", "stories", "mqar", "s5", "brevo", "recall", "questions"
    ] = setting(
        "text",
        "text: shards of a corpus; questions: a file of contexts, questions and answers; the "
        "others are generated, see their sections",
    )
    tokenizer: str = setting(
        "",
        "file of `hypnos tokenizer train`, or the Hugging Face folder of a model that has one; "
        "required for text, questions, stories and recall; on resume only its path may change, "
        "not its content",
        changes=True,
        path=True,
    )
    train: list[CorpusConfig] = setting(
        [],
        "corpora of text, and their weights; on resume only the paths may change",
        changes=True,
    )
    heldout: str = setting(
        "", "folder of held-out shards, or its URL (text)", changes=True, path=True
    )
    heldout_sets: list[HeldoutConfig] = setting(
        [],
        "further held-out shards, each evaluated by itself at every evaluation, on "
        "train.eval_batches batches of its own (text)",
        changes=True,
    )
    windows: int = setting(4, "W, windows per training sequence (text)", at_least=1)
    documents: Literal["isolate", "stitch"] = setting(
        "isolate",
        "isolate: each document starts a window, with S = 0; stitch: documents are concatenated, "
        "with EOS between them",
    )
    repeats: int = setting(
        1,
        "a control for tasks: each window of context is read in so many copies, side by side in "
        "one window of sleep.window tokens",
        at_least=1,
    )
    curriculum: int = setting(
        0,
        "number of first steps, over which a task's maximum depth (depo.max_hops, rule110.steps, "
        "stories.max_ops, recall.max_hops) rises in equal parts to its full value; 0: no "
        "curriculum",
        at_least=0,
    )
    state_passing: float = setting(
        0.0,
        "share of a task's rows that start with the fast weights that the previous row in the same "
        "place of the batch has left, instead of S = 0",
        at_least=0,
        at_most=1,
    )
    carry: bool = setting(
        True, "a document longer than W windows carries S from one sequence to the next"
    )
    cache: str = setting(
        "~/.cache/hypnos",
        "folder on a local disk that caches shards from an object store; ~ is the user's home",
        changes=True,
    )
    cache_gb: float = setting(
        50.0, "limit of data.cache in GB, for all runs on a host", at_least=0.01, changes=True
    )
    retry: float = setting(
        300.0,
        "seconds for which reading an object is retried if the object store fails or is slow",
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

    nodes: int = setting(75, "nodes of the largest cycle", at_least=1)
    min_nodes: int = setting(
        0,
        "nodes of the smallest cycle in training; equal to nodes: all cycles have that size; "
        "0: as many as queries",
        at_least=0,
    )
    max_hops: int = setting(16, "a query asks for 1 to max_hops hops", at_least=1)
    context: int = setting(300, "tokens of the edge list, left-padded", at_least=1)
    queries: int = setting(10, "queries per cycle", at_least=1)
    vocabulary: int = setting(
        50, "size of each of the two sets of tokens that node names are made of", at_least=1
    )
    name_tokens: tuple[int, int] = setting((1, 2), "min and max tokens of a name", at_least=1)
    mask_pad: bool = setting(
        False, "mask PAD, so that it neither writes nor decays; by default it is an ordinary token"
    )
    kept: int = setting(0, "one cycle in so many is held out for the test; 0: none", at_least=0)


@dataclass(kw_only=True)
class Rule110Config:
    """A cellular automaton, whose state some steps later is predicted (docs/method.md)."""

    width: int = setting(24, "cells of a ring; a multiple or a divisor of sleep.window", at_least=3)
    rings: int = setting(4, "rings of a sequence; they fill whole windows", at_least=1)
    steps: int = setting(32, "t, applications of the rule", at_least=0, at_most=1 << 20)
    min_steps: int = setting(
        0,
        "each row is asked for every t from steps down to min_steps; 0: only for t = steps",
        at_least=0,
    )
    kept: int = setting(
        0,
        "one in so many patterns of the 2t + 1 cells that determine a label is held out for the "
        "test; 0: none",
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
    min_ops: int = setting(1, "fewest operations of a story", at_least=1)
    max_ops: int = setting(8, "most operations of a story", at_least=1)
    context: int = setting(2000, "tokens, left-padded", at_least=1)
    question_first: bool = setting(True, "the question comes before the story")


@dataclass(kw_only=True)
class QuestionsConfig:
    """Questions about contexts, from a file (docs/data.md)."""

    path: str = setting(
        "",
        ".jsonl (also compressed) with context, question, answer; required",
        changes=True,
        path=True,
    )
    heldout: str = setting(
        "",
        "such a file of held-out questions; empty: a tenth of the contexts of questions.path, "
        "chosen by a hash",
        changes=True,
        path=True,
    )
    context: int = setting(512, "tokens of the context, left-padded: whole windows", at_least=1)
    answer: int = setting(128, "tokens of the question and its answer, padded", at_least=2)
    group: str = setting(
        "",
        "a field by whose values accuracy is also reported, such as a number of hops",
        changes=True,
    )


@dataclass(kw_only=True)
class MqarConfig:
    """Associative recall: the values of keys (docs/method.md)."""

    pairs: int = setting(32, "key-value pairs; they fill whole windows", at_least=1)
    queries: int = setting(8, "how many keys are asked for", at_least=1)
    vocabulary: int = setting(64, "number of different keys, and of different values", at_least=1)


@dataclass(kw_only=True)
class S5Config:
    """The word problem of a symmetric group (docs/method.md)."""

    symbols: int = setting(5, "symbols that are permuted: 5 for S5", at_least=2, at_most=5)
    length: int = setting(16, "elements of the word; it fills whole windows", at_least=1)


@dataclass(kw_only=True)
class BrevoConfig:
    """List everything that a node of a graph depends on, leaves first (docs/method.md)."""

    nodes: int = setting(16, "nodes of a graph", at_least=2)
    needs: int = setting(2, "most dependencies of a node", at_least=1)
    max_depth: int = setting(
        4,
        "test rows ask for nodes whose longest chain of dependencies is 1 to max_depth",
        at_least=1,
        at_most=8,
    )
    context: int = setting(64, "tokens of the edge list, left-padded", at_least=1)
    vocabulary: int = setting(32, "number of node names, one token each", at_least=1)


@dataclass(kw_only=True)
class RecallConfig:
    """Needles and chains of variables in real text (docs/method.md)."""

    context: int = setting(512, "tokens of the text, left-padded", at_least=1)
    chains: int = setting(
        2, "chains of variables, each with its own number", at_least=1, at_most=100
    )
    max_hops: int = setting(
        4, "hops of each chain; questions ask for 0 to max_hops", at_least=0, at_most=64
    )
    questions: int = setting(1, "how many chains are asked about, one name of each", at_least=1)
    name_letters: int = setting(3, "letters of a name", at_least=1, at_most=8)
    digits: int = setting(3, "digits of a number", at_least=1, at_most=8)


@dataclass(kw_only=True)
class OptimizerConfig:
    """Muon and AdamW; learning rates warm up, stay at their peak and decay."""

    muon_lr: float = setting(2e-3, "peak learning rate of the blocks' matrices", above=0)
    adamw_lr: float = setting(
        1e-3,
        "peak learning rate of embeddings, head, norms, biases, A_log, dt_bias, convolutions",
        above=0,
    )
    momentum: float = setting(0.95, "Muon's momentum", at_least=0, below=1)
    betas: tuple[float, float] = setting((0.9, 0.95), "AdamW's betas", at_least=0, below=1)
    weight_decay: float = setting(
        1e-4, "decoupled weight decay of matrices, multiplied by the learning rate", at_least=0
    )
    clip: float = setting(1.0, "gradients are clipped to this global norm", above=0)
    warmup: int = setting(100, "steps of linear learning-rate warm-up", at_least=0)
    decay: int = setting(
        0,
        "number of last steps, in which learning rates decay to final_lr of their peak; 0: no "
        'decay. A cosine schedule is decay = train.steps - warmup with decay_shape = "cosine"',
        at_least=0,
        changes=True,
    )
    decay_shape: Literal["linear", "cosine", "sqrt"] = setting(
        "linear",
        "shape of the decay, as its fraction done p goes from 0 to 1. linear: 1 - p; cosine: "
        "(1 + cos(pi p)) / 2; sqrt: 1 - sqrt(p), common after a constant rate (WSD)",
        changes=True,
    )
    final_lr: float = setting(
        0.1, "fraction of the peak learning rate at the end of the decay", at_least=0, at_most=1
    )
    name: Literal["muon", "adamw"] = setting(
        "muon", "muon: Muon for the blocks' matrices, AdamW for the rest; adamw: AdamW for all"
    )
    body_lr_share: float = setting(
        1.0, "with adamw: factor on adamw_lr for the blocks' matrices", above=0
    )
    residual_lr_share: float = setting(
        1.0,
        "factor on the learning rate of matrices that write to the residual stream (mixer.out, "
        "mlp.down)",
        above=0,
    )
    head_lr_share: float = setting(1.0, "factor on adamw_lr for the head", above=0)
    update: Literal["all", "delta"] = setting(
        "all", "what is trained: all parameters, or only the delta-rule blocks"
    )

    def reaches_peak(self, steps: int) -> bool:
        """Whether warm-up and decay fit into a run of `steps` steps."""
        return self.warmup + self.decay <= steps


@dataclass(kw_only=True)
class ParallelConfig:
    """How a step is spread over ranks; the factor beyond tp x cp x pp is data parallel
    (docs/parallelism.md).
    """

    tp: int = setting(
        1,
        "tensor parallelism: ranks that split each layer, by heads and by features",
        at_least=1,
        changes=True,
    )
    cp: int = setting(
        1,
        "context parallelism: ranks that split the tokens of each window, and in mixers the heads",
        at_least=1,
        changes=True,
    )
    cp_delta: Literal["heads", "tokens"] = setting(
        "heads",
        "how cp ranks split the delta rule. heads: tokens of whole windows are exchanged; tokens: "
        "only the effect of each rank's tokens on S is exchanged, but the rule runs twice",
        changes=True,
    )
    pp: int = setting(
        1,
        "pipeline parallelism: stages that the blocks are split over",
        at_least=1,
        changes=True,
    )
    stages: list[int] = setting(
        [], "blocks on each stage; empty: balanced by FLOPs", at_least=1, changes=True
    )
    sequence_parallel: bool = setting(
        False, "between layers, tp ranks split the tokens too", changes=True
    )
    zero: Literal[0, 1, 2, 3] = setting(1, "DeepSpeed ZeRO stage", changes=True)
    offload: bool = setting(
        False, "keep optimiser state and fp32 master weights in host memory", changes=True
    )
    recompute: Literal["none", "unit", "block"] = setting(
        "unit",
        "activation checkpointing. none: keep all activations; unit: of each (window, pass) keep "
        "only its inputs; block: keep each block's inputs",
        changes=True,
    )
    cuda_graphs: bool = setting(
        False,
        "replay each (window, pass) as one CUDA graph: for models too small for the host to keep a "
        "GPU busy",
        changes=True,
    )
    timeout: float = setting(
        600.0,
        "seconds without progress after which a rank, computing or waiting, ends the job",
        above=0,
        at_most=1e9,
        changes=True,
    )


@dataclass(kw_only=True)
class TrainConfig:
    """Duration and batches, and when to log, evaluate and save."""

    steps: int = setting(1000, "optimiser steps", at_least=1, changes=True)
    batch: int = setting(
        32, "sequences per optimiser step, over all ranks", at_least=1, at_most=1 << 20
    )
    microbatches: int = setting(
        1, "gradient accumulation: microbatches per step on each rank", at_least=1, changes=True
    )
    precision: Literal["fp32", "bf16"] = setting(
        "fp32",
        "precision of blocks and activations; fast weights, gates and master weights are always "
        "fp32",
    )
    log_every: int = setting(10, "steps between rows of metrics", at_least=1, changes=True)
    eval_every: int = setting(200, "steps between evaluations", at_least=1, changes=True)
    eval_batches: int = setting(4, "held-out batches per evaluation", at_least=1, changes=True)
    checkpoint_every: int = setting(200, "steps between checkpoints", at_least=1, changes=True)
    keep: int = setting(2, "how many of the newest checkpoints to keep", at_least=1, changes=True)
    keep_every: int = setting(
        0,
        "checkpoints at multiples of so many steps are kept for good; 0: none",
        at_least=0,
        changes=True,
    )
    profile: list[int] = setting(
        [],
        "first and last step to trace with torch.profiler, into RUN/profile; []: none",
        at_least=1,
        changes=True,
    )


@dataclass(kw_only=True)
class GuardConfig:
    """Skipping of bad steps (docs/guard.md). Steps with a non-finite loss or gradient norm are
    always skipped.
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
        "stop: end the run with an explanation; rollback: go back to the newest good checkpoint "
        "and continue with the data after the skipped steps",
        changes=True,
    )
    rollbacks: int = setting(
        3, "rollbacks to the same checkpoint before the run stops", at_least=1, changes=True
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
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
    mqar: MqarConfig = field(default_factory=MqarConfig)
    s5: S5Config = field(default_factory=S5Config)
    brevo: BrevoConfig = field(default_factory=BrevoConfig)
    recall: RecallConfig = field(default_factory=RecallConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
