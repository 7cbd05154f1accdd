"""The settings of a run: what each one means, its default and its bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

from parallel.shape import BlockShape


@dataclass(kw_only=True)
class RunConfig:
    name: str = "run"
    dir: str = "runs"  # the run's folder is dir/name
    seed: int = 0


@dataclass(kw_only=True)
class ModelConfig(BlockShape):
    layers: list[str] = field(default_factory=lambda: ["attention", "delta"] * 2)
    vocab_size: int = 0  # 0: taken from the tokenizer or the task
    tie_embeddings: bool = False
    embedding_std: float = 0.02
    head_std: float = 0.02
    init_std: float = 0.02  # body matrices
    # -log a_t of the heads at start: evenly spread in log scale
    decay_init: tuple[float, float] = (1e-3, 0.1)


@dataclass(kw_only=True)
class SleepConfig:
    passes: int = 4  # N, all passes over a window; 1 is the plain hybrid with eviction
    window: int = 256  # L, tokens
    # "always": every window but the last sleeps | "context": windows without targets sleep
    when: str = "always"
    # "hard": KV cleared at each window | "sliding": the last L-1 tokens stay attendable
    eviction: str = "hard"
    prelude: int = 0  # blocks before the loop, run once per window
    coda: int = 0  # blocks after the loop, run once per window
    truncate_passes: int = 0  # backpropagate through the last k passes of a window only; 0: all
    # cut backpropagation every j windows, counted from the sequence's end; 0: never
    truncate_windows: int = 0


@dataclass(kw_only=True)
class CorpusConfig:
    path: str  # folder that `hypnos data prepare` wrote
    weight: float = 1.0  # share of the tokens drawn from it, relative to the others


@dataclass(kw_only=True)
class DataConfig:
    task: str = "text"  # "text" | "depo" | "rule110" | "stories"
    tokenizer: str = ""  # sentencepiece model; required for text and stories
    train: list[CorpusConfig] = field(default_factory=list)
    heldout: str = ""  # folder of held-out shards
    windows: int = 4  # W, windows per training sequence (text)
    # "isolate": a document starts a window with S = 0 | "stitch": joined by EOS
    documents: str = "isolate"
    carry: bool = True  # a document longer than W windows keeps S from one sequence to the next


@dataclass(kw_only=True)
class DepoConfig:
    """Multi-hop retrieval in a shuffled directed cycle (docs/method.md)."""

    nodes: int = 75
    # smallest cycle in training; equal to nodes: all have that size; 0: as many as queries
    min_nodes: int = 0
    max_hops: int = 16
    context: int = 300  # tokens of the edge list, left-padded
    queries: int = 10
    vocabulary: int = 50  # size of each of the two sets that node names are written in
    name_tokens: tuple[int, int] = (1, 2)
    mask_pad: bool = False  # PAD neither writes nor decays; by default it is an ordinary token


@dataclass(kw_only=True)
class Rule110Config:
    width: int = 24  # cells of a ring; sleep.window is a multiple of it, or it of sleep.window
    rings: int = 4  # they fill whole windows
    steps: int = 32  # t, applications of the rule


@dataclass(kw_only=True)
class StoriesConfig:
    """Math stories in the GSM-Infinite format."""

    path: str = ""  # .jsonl with problem, question, solution, op; empty: the built-in generator
    min_ops: int = 1
    max_ops: int = 8
    context: int = 2000  # tokens, left-padded
    question_first: bool = True


@dataclass(kw_only=True)
class OptimizerConfig:
    muon_lr: float = 2e-3  # body matrices
    adamw_lr: float = 1e-3  # embeddings, head, norms, biases, A_log, dt_bias, convolutions
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    clip: float = 1.0
    warmup: int = 100  # steps
    decay: int = 0  # last steps, linear to final_lr of the peak
    final_lr: float = 0.1
    name: str = "muon"  # "muon": Muon on body matrices, AdamW on the rest | "adamw": AdamW on all


@dataclass(kw_only=True)
class ParallelConfig:
    """How a step is spread over ranks; those left over by tp x pp are data parallel
    (docs/parallelism.md).
    """

    tp: int = 1  # ranks that share each layer, by heads and by features
    pp: int = 1  # stages that the blocks are split over
    # blocks on each stage; empty: balanced by FLOPs
    stages: list[int] = field(default_factory=list)
    sequence_parallel: bool = False  # between layers, tp ranks share the tokens too
    zero: int = 1  # DeepSpeed ZeRO stage 0..3
    offload: bool = False  # optimiser state and fp32 master weights in host memory
    recompute: str = "unit"  # "none" | "unit": a (window, pass) keeps only its inputs | "block"
    # seconds after which a rank that makes no progress, or waits for one, ends the job
    timeout: float = 600.0


@dataclass(kw_only=True)
class TrainConfig:
    steps: int = 1000
    batch: int = 32  # sequences per optimiser step, over all ranks
    microbatches: int = 1  # gradient accumulation on each rank
    # "fp32" | "bf16"; fast weights, gates and master weights are always fp32
    precision: str = "fp32"
    log_every: int = 10
    eval_every: int = 200
    eval_batches: int = 4
    checkpoint_every: int = 200
    keep: int = 2  # newest checkpoints kept
    keep_every: int = 0  # steps; a checkpoint at a multiple of it is kept for good; 0: none is


@dataclass(kw_only=True)
class GuardConfig:
    """Steps whose numbers go wrong (docs/guard.md). One whose loss or gradient norm is not finite
    is always skipped.
    """

    # also skip a step whose loss or gradient norm exceeds this many times its running mean; 0:
    # never
    spike: float = 0.0
    limit: int = 10  # so many skipped steps in a row are trouble
    # "stop", explained | "rollback": back to the newest checkpoint, on with the data after that
    then: str = "stop"
    rollbacks: int = 3  # to one checkpoint; after so many it stops


@dataclass(kw_only=True)
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sleep: SleepConfig = field(default_factory=SleepConfig)
    data: DataConfig = field(default_factory=DataConfig)
    depo: DepoConfig = field(default_factory=DepoConfig)
    rule110: Rule110Config = field(default_factory=Rule110Config)
    stories: StoriesConfig = field(default_factory=StoriesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
