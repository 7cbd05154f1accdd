"""What a training run does between its data and its checkpoints.

step.py        forward and backward of a step's microbatches, on one stage or on several
optimizer.py   Muon and AdamW on ZeRO's shards
verdict.py     whether a step counts, decided on the device;  guard.py  what becomes of those that do not
state.py       what a checkpoint holds of a run
remarks.py     what it says of its learning rate before it begins
stop.py        ends a run before its time, saved
metrics.py     what it writes down (docs/metrics.md);  console.py  what it shows
"""
