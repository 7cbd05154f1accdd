"""The model, its data, its training and its evaluation.

trainer.py      train(): sets up or resumes a run, and takes its steps
evaluate.py     held-out loss by window and position, task accuracy, at any N
report.py       compares runs: tables and plots
logged.py       reads what a run logged
inside.py       plots of what a run's probes recorded
tables.py       tables as Markdown and as CSV
page.py         self-contained HTML pages
plots.py        the style of plots
origin.py       where results come from: machine, commit, day
errors.py       errors that a user can fix
exit_status.py  exit statuses of a run's processes
files.py        atomic writes, hashes, robust JSON parsing
whole.py        folders and files that appear atomically
locks.py        locks on folders
tail.py         reads a long file backwards, by lines or rows
config/         every setting, and what is refused
model/          SleepLM: the model, and the loop of the method
data/           corpus -> shards (webdataset) -> order -> lanes -> batches
tasks/          synthetic tasks, one file each: data, targets and metric
run/            a step, the optimiser, skipped steps, stops, metrics
checkpoint/     sharded, hashed, atomic checkpoints, written asynchronously
convert/        export to and import from other software, one tensor at a time
inference/      sessions: wake, sleep when the window is full, wake again
study/          many runs that answer one question: the paper's experiments, with seeds and controls
"""
