"""What a run is told: one TOML file and overrides -> `Config`.

schema.py      every setting: type, default, meaning, choices, bounds, may it change on resume
fields.py      the one reader of what stands there: lists the settings, checks each by itself
load.py        TOML and overrides to a `Config`, and back
checks.py      combinations of settings that are refused
memory.py      does it fit the device; what makes room
run_folder.py  a run's configuration where its folder lies now, with its tokenizer
resume.py      what a run that goes on may change
reference.py   the page of all settings, docs/settings.md
"""
