"""Prints all settings for users: a configuration with every default, and comments.

hypnos train --help-settings                               # as text
python -m pretrain.config.reference > docs/settings.md     # as the page
"""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any, Literal, get_args, get_origin

from pretrain.config.fields import Setting, bounds, sections, settings, shown
from pretrain.config.load import to_toml

WIDTH = 100  # columns
KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}
CHANGES = "may change on resume"
PAGE = """\
# Settings

Every setting with its default, as one configuration in TOML. With each value comes what it may be,
and whether a run that resumes from a checkpoint may have another value ("{changes}"): all others
affect what has been computed so far. Settings that a configuration leaves out keep their defaults;
on the command line, `section.name=value` sets one. Invalid combinations of settings are refused
with a line that names them and the fix.

This page is written by `python -m pretrain.config.reference > docs/settings.md` from
`pretrain/config/schema.py`; `hypnos train --help-settings` prints the same.
"""


def text() -> str:
    """All sections."""
    return "\n".join(section(name, cls) for name, cls in sections().items())


def page() -> str:
    """docs/settings.md."""
    parts = [PAGE.format(changes=CHANGES)]
    parts += [
        f"## {name}\n\n```toml\n{section(name, cls)}```\n" for name, cls in sections().items()
    ]
    return "\n".join(parts)


def section(name: str, cls: type) -> str:
    """A section's settings in TOML, each with its meaning above and its possible values behind it,
    or above it if they do not fit on the line.
    """
    lines = _comment(" ".join(str(cls.__doc__).split())) + [f"[{name}]"]
    for setting in settings(cls):
        lines += ["", *_comment(setting.rule.meaning), *_table_comment(setting)]
        value, facts = f"{setting.name} = {to_toml(setting.default)}", _facts(setting)
        line = f"{value}  # {facts}"
        lines += [line] if len(line) <= WIDTH else [*_comment(facts), value]
    return "\n".join(lines) + "\n"


def _comment(words: str) -> list[str]:
    return textwrap.wrap(words, WIDTH, initial_indent="# ", subsequent_indent="# ")


def _table_comment(setting: Setting) -> list[str]:
    """The settings of a list's tables."""
    if not (
        get_origin(setting.hint) is list and dataclasses.is_dataclass(get_args(setting.hint)[0])
    ):
        return []
    lines = ["# each a table of"]
    for inner in settings(get_args(setting.hint)[0]):
        required = inner.default is dataclasses.MISSING
        value = "" if required else f" = {to_toml(inner.default)}"
        lines += _comment(f"    {inner.name}{value}: {inner.rule.meaning} ({_facts(inner)})")
    return lines


def _facts(setting: Setting) -> str:
    """A setting's possible values, and whether it may change."""
    rule = setting.rule
    allowed = ["path" if rule.path else _kind(setting.hint), bounds(rule)]
    return "; ".join([", ".join(filter(None, allowed)), *([CHANGES] if rule.changes else [])])


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(map(shown, get_args(hint)))
    if get_origin(hint) is list:
        inner = get_args(hint)[0]
        return f"list of {'tables' if dataclasses.is_dataclass(inner) else _plural(inner)}"
    if get_origin(hint) is tuple:
        return f"list of {len(get_args(hint))} {_plural(get_args(hint)[0])}"
    return KINDS[hint]


def _plural(hint: Any) -> str:
    return _kind(hint) if get_origin(hint) is Literal else f"{KINDS[hint]}s"


if __name__ == "__main__":
    print(page(), end="")
