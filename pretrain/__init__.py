"""What is trained, on what, and how well.

trainer.py      train(): sets a run up, and the loop
evaluate.py     held-out loss by window and place, task accuracy, at any N
report.py       runs side by side: tables and plots
logged.py       what a run logged, read
inside.py       what goes on inside a run, as pictures
tables.py       a table as Markdown and as csv
page.py         a page of HTML that holds all it shows
plots.py        how pictures look
origin.py       where numbers come from: the machine, the commit, the day
errors.py       a user's error
exit_status.py  how a process of a run ends: finished, start me again, failed
files.py        files that are there whole or not at all, hashes, JSON that may hold anything
whole.py        folders and files that appear whole or not at all
locks.py        folders that one process at a time works in
tail.py         the end of a long file: its lines or rows, the last first
config/         every setting, and what is refused
model/          SleepLM: the model, and the loop of the method
data/           corpus -> shards (webdataset) -> order -> lanes -> batches
tasks/          rule110, depo, stories, mqar, s5, brevo, recall: data, targets and metric
run/            a step, the optimiser, steps that go wrong, stops, metrics
checkpoint/     every rank its slices, hashed, whole or not there, written beside training
convert/        models out to other software and in, a tensor at a time
inference/      sessions: wake, sleep when the window is full, wake again
study/          many runs that answer one question: the paper's experiments, with seeds and controls
"""
