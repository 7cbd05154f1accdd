"""What is trained, on what, and how well.

    config.py           every setting, its default and meaning;  settings.py  TOML and overrides
    bounds.py           what is refused;  memory.py  the least that a run needs of it;  errors.py  a user's error
    batch.py            what a step reads: tokens, targets, PAD, document starts
    data/               corpus -> shards (webdataset) -> order -> lanes -> batches
    tasks/              rule110, depo, stories: data, targets and metric, one file each
    model.py            HybridLM: embedding, prelude | core | coda, head
    sleep.py            the loop of the method, and nothing else;  probe.py  what logging steps look at in it
    step.py             forward and backward of a step's microbatches, on one stage or on several
    optimizer.py        Muon and AdamW on ZeRO's shards
    verdict.py          whether a step counts, decided on the device;  guard.py  what becomes of those that do not
    trainer.py          the flat training loop
    console.py          what it shows;  metrics.py, flops.py  what it writes down (docs/metrics.md)
    checkpoint/         every rank its slices, hashed, whole or not there, written beside training
    snapshot.py         what of a run goes into one;  stop.py  ends a run before its time, saved
    evaluate.py         held-out loss by window and place, task accuracy, at any N;  report.py  tables and plots
    inference.py        the session: wake, sleep when the window is full, wake again
    files.py            files that are there whole or not at all;  json_text.py  JSON from a file that may hold anything
"""
