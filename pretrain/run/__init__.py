"""What a training run does between its data and its checkpoints (pretrain/trainer.py).

facts.py       what must be the same on all ranks before a run begins
agreement.py   what ranks agree on while they train; what rank 0 does for all
prepare.py     what a configuration must fit before anything is built
resume.py      taking the run's folder, and the checkpoint that is gone on from, or back to
remarks.py     what a run says of its settings before it begins
step.py        forward and backward of a step's microbatches, on one stage or on several
optimizer.py   Muon and AdamW on ZeRO's shards;  newton_schulz.py  the direction of Muon's steps
guard.py       steps whose numbers go wrong: which are skipped, and when there are too many
gather.py      what the ranks know of their rows, put together on rank 0
state.py       what a checkpoint holds of a run
stop.py        ends a run before its time, saved;  signals.py  who hears signals, and when
metrics.py     what it writes down (docs/metrics.md);  console.py  what it shows
train_row.py   the numbers of a logging step;  peak.py  what a device computes at best
trace.py       where the time of some steps goes
"""
