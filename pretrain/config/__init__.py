"""What a run is told: one TOML file and overrides -> `Config`.

schema.py   every setting: type, default, meaning
load.py     TOML and overrides to a `Config`, and back
checks.py   what is refused
memory.py   the least memory that a run needs
"""
