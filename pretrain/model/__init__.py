"""The model that sleeps, and the loop over windows and passes.

hybrid.py      HybridLM: embedding, prelude | core | coda, head; no loop
sleep.py       SleepLM and the loop of the method: wake, sleep, predict
plan.py        what each window and each pass does, planned before anything runs
draw.py        how many passes each training step makes: fixed, drawn at random, or rising
reader.py      around the loop: its constants, memory and output, a window's begin and end
stop_rule.py   ends a sleep early, once S has settled
probe.py       norms that logging steps record inside the loop
flops.py       parameters and FLOPs of each block
"""
