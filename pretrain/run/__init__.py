"""The parts of a training run, which pretrain/trainer.py puts together.

facts.py       what must be the same on all ranks before a run begins
agreement.py   what ranks agree on while they train; what rank 0 does for all
prepare.py     checks a configuration against data, ranks and memory before anything is built
resume.py      takes the run's folder, and finds the checkpoint to resume from or to go back to
remarks.py     warnings about suspicious settings, before a run begins
step.py        forward and backward of a step's microbatches, on one stage or on several
optimizer.py   Muon and AdamW on ZeRO's shards;  newton_schulz.py  Muon's orthogonalisation
guard.py       skips steps with bad numbers, and ends a run with too many of them
gather.py      gathers what ranks know of their rows on rank 0
state.py       what a checkpoint holds of a run
stop.py        saves and ends a run on a signal;  signals.py  how signals are received
metrics.py     the run's metrics.jsonl (docs/metrics.md);  console.py  its progress on the terminal
scalars.py     the numbers of a row by name, for TensorBoard and Weights & Biases
wandb_log.py   keeps a process that logs to Weights & Biases;  wandb_writer.py  that process
train_row.py   loss and throughput of a logging step;  peak.py  the peak FLOP/s of a device
trace.py       profiles some steps;  host_memory.py  keeps freed host memory for the next step
"""
