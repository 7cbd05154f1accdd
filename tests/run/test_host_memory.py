"""Page faults of blocks that are freed and allocated again, counted by the kernel."""

import subprocess
import sys

FAULTS = """
import resource, torch
from pretrain.run.host_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)  # 64 MB: 16,384 pages, or 32 large ones
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_memory()
faults(), faults()  # small blocks may take a part of the first ones
print(before, faults())
"""


def test_freed_memory_is_not_cleared_again() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True
    ).stdout
    before, after = map(int, shown.split())
    assert after < before / 10, shown
