"""Studies: many runs that answer one question, how they are compared, and their results.

reproduce.py   the paper's experiments as lists of runs     controls.py   the control experiments
one_run.py     one run of a study, and what is kept of it   results.py    results of all runs
curve.py       a run's training curve                       cards.py      assigns GPUs to runs
runner.py      trains and evaluates runs, several at a time
intervals.py   means over seeds, with intervals             summary.py    tables, CSV, the verdict
figures.py     plots                                        overview.py   several studies in a table
progress.py    the progress of all runs

A ladder of sizes, and scaling laws (docs/scaling.md):

ladder.py      STUDY.toml -> runs, one dial for size        transfer.py  rates for every size
coordinates.py do they transfer?                            law.py       the laws of loss and depth
fit.py         fits laws to runs, with intervals            frontier.py  how best to spend FLOPs
scale.py       results, as inputs of the fits               dry_run.py   what the runs will need
predictions.py each rung, from the rungs below it
fit_report.py  fit.md and fit.html: text, tables, plots

A plan: what a run needs on given hardware, before it runs (docs/plan.md):

planner.py     every layout on given hardware, best first   estimate.py  a step's memory and time
stage_units.py what stages do in each unit                  stage_times.py  how long that takes
block_work.py  FLOPs, bytes and activations of a block      rank_memory.py  memory of a rank
hardware.py    specifications of hardware                   communication.py  times of collectives
measure.py     measures this machine                        links.py     and its links
one_block.py   the block that is timed                      crowding.py  ranks that share cores
fake_world.py  builds stages without ranks or memory        plan_table.py  a plan as a table
"""
