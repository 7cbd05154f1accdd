"""The configuration of a run: one TOML file and overrides -> `Config`.

schema.py      every setting: type, default, meaning, choices, bounds, whether it may change
fields.py      reads the schema: lists the settings, checks each on its own
load.py        TOML and overrides to a `Config`, and back
checks.py      combinations of settings that are refused
memory.py      whether a run can fit in memory; advice after out-of-memory
run_folder.py  a run's configuration adapted to where its folder is now, with its tokenizer
resume.py      what a resumed run may change
reference.py   the page of all settings, docs/settings.md
"""
