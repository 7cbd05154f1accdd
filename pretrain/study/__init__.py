"""Many runs that answer one question: who is compared, the runs themselves, and what came of it.

reproduce.py   the paper's experiments as lists of runs     controls.py   who sleep is compared with
one_run.py     a run, and what it has left when it is done  results.py    what they logged, by seed
curve.py       how it got there                             cards.py      the GPUs of each
runner.py      trains and evaluates them, some at a time
intervals.py   means over seeds, and how sure they are      summary.py    tables, csv, the verdict
figures.py     the same as pictures               overview.py   several studies as one table
progress.py    how far all runs are

A ladder of sizes, and the laws that come of it (docs/scaling.md):

ladder.py      STUDY.toml -> runs, one dial for size        transfer.py  rates for every size
coordinates.py do they transfer?                            law.py       loss and depth, as laws
fit.py         laws from runs, with intervals               frontier.py  what to spend FLOPs on
scale.py       results, as the laws take them               dry_run.py   what the runs will take
predictions.py each rung, from the rungs below it
fit_report.py  fit.md and fit.html: words, tables, pictures

A plan: what a run needs on given hardware, before it runs (docs/plan.md):

planner.py     every layout on given hardware, best first   estimate.py  a step's memory and time
stage_units.py what stages do in each unit                  stage_times.py  how long that takes
block_work.py  what a block does and keeps                  rank_memory.py  what a rank holds
hardware.py    what devices do in a second                  communication.py  how ranks exchange
measure.py     the same of this machine                     links.py     messages in it
one_block.py   what is timed of it                          crowding.py  ranks that share cores
fake_world.py  builds stages in a world that is not there   plan_table.py  a plan in words
"""
