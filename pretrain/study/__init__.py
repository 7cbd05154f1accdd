"""Many runs that answer one question: who is compared, the runs themselves, and what came of it.

reproduce.py   the paper's experiments as lists of runs     controls.py   who sleep is compared with
runner.py      trains and evaluates them, some at a time    results.py    what they logged, by seed
intervals.py   means over seeds, and how sure they are      summary.py    tables, csv, the verdict
figures.py     the same as pictures                        progress.py  one table of all runs
"""
