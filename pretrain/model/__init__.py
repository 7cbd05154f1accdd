"""The model that sleeps, and the loop that reads with it.

hybrid.py      HybridLM: embedding, prelude | core | coda, head; no loop
sleep.py       SleepLM and the loop of the method: wake, sleep, predict
plan.py        what each window and each pass does, before anything runs
draw.py        how many passes a step makes, where they are drawn or rise
reader.py      around the loop: who reads a batch, what is kept from pass to pass, what comes of it
stop_rule.py   when a sleep has done its work, before its N-th pass
probe.py       what logging steps look at in it
flops.py       parameters and FLOPs of each block
"""
