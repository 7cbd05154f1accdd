"""The model that sleeps, and the loop that reads with it.

hybrid.py   HybridLM: embedding, prelude | core | coda, head
sleep.py    the loop of the method
probe.py    what logging steps look at in it
flops.py    parameters and FLOPs of each block
"""
