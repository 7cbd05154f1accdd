"""Reads the schema: lists all settings, and checks each one on its own.

Nothing here knows any setting by name.
"""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from parallel.setting import Rule
from pretrain.config.schema import Config
from pretrain.errors import UserError, shortened

MAX_SETTING = 1e15  # so that the product of two settings is finite in fp32
# cached: a study reads hundreds of configurations
type_hints: Callable[[type], dict[str, Any]] = cache(get_type_hints)


class Setting(NamedTuple):
    """A field of one of the schema's dataclasses."""

    name: str
    hint: Any  # its type
    default: Any  # dataclasses.MISSING if there is none
    rule: Rule


def settings(cls: type) -> list[Setting]:
    """The settings of a section, or of a table within one, in the schema's order."""
    hints = type_hints(cls)
    return [
        Setting(
            field.name,
            hints[field.name],
            field.default
            if field.default_factory is dataclasses.MISSING
            else field.default_factory(),
            field.metadata["rule"],
        )
        for field in dataclasses.fields(cls)
    ]


def sections() -> dict[str, type]:
    """The dataclass of each section."""
    return type_hints(Config)


def values(config: Config) -> Iterator[tuple[str, Setting, Any]]:
    """Every setting of a configuration: its dotted name, its `Setting`, its value."""
    for section, cls in sections().items():
        table = getattr(config, section)
        for setting in settings(cls):
            yield f"{section}.{setting.name}", setting, getattr(table, setting.name)


def differences(one: Config, other: Config) -> Iterator[tuple[str, Setting, Any, Any]]:
    """Every setting in which two configurations differ: name, `Setting`, both values."""
    for (place, setting, mine), (_, _, its) in zip(values(one), values(other), strict=True):
        if mine != its:
            yield place, setting, mine, its


def check(table: Any) -> None:
    """UserError at the first value that its own field does not allow, in a configuration or any
    other dataclass of sections.
    """
    for section in dataclasses.fields(table):
        values = getattr(table, section.name)
        for setting in settings(type(values)):
            name = f"{section.name}.{setting.name}"
            _check(name, setting.hint, setting.rule, getattr(values, setting.name))


def _check(place: str, hint: Any, rule: Rule, value: Any) -> None:
    if dataclasses.is_dataclass(hint):
        for inner in settings(hint):  # type: ignore[arg-type]
            _check(f"{place}.{inner.name}", inner.hint, inner.rule, getattr(value, inner.name))
    elif get_origin(hint) in (list, tuple):
        for number, element in enumerate(value):
            _check(f"{place}[{number}]", get_args(hint)[0], rule, element)
    elif get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise refused(place, value, f"must be {_choices(hint)}")
    elif hint is str:
        _check_text(place, value)
    elif hint in (int, float):
        if not _within(rule, value):
            raise refused(place, value, f"must be {bounds(rule)}")
        if abs(value) > MAX_SETTING and hint is float:
            raise refused(place, value, f"must be at most {MAX_SETTING:g}")


def _check_text(place: str, text: str) -> None:
    """Refuses NUL, line ends and lone surrogates: most texts become file names, and all are shown
    in messages.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise UserError(f"{place} = {shortened(ascii(text))}: holds a control character: remove it")


def _within(rule: Rule, number: float) -> bool:
    return not (
        (rule.at_least is not None and number < rule.at_least)
        or (rule.above is not None and number <= rule.above)
        or (rule.at_most is not None and number > rule.at_most)
        or (rule.below is not None and number >= rule.below)
    )


def bounds(rule: Rule) -> str:
    """The bounds in words, as "at least 0 and less than 1"; empty if there are none."""
    said = [
        ("at least", rule.at_least),
        ("more than", rule.above),
        ("at most", rule.at_most),
        ("less than", rule.below),
    ]
    return " and ".join(f"{words} {bound:.15g}" for words, bound in said if bound is not None)


def _choices(hint: Any) -> str:
    """The choices in words, as '"hard" or "sliding"'."""
    return " or ".join(map(shown, get_args(hint)))


def shown(value: object) -> str:
    """A value as a message shows it."""
    if isinstance(value, bool):
        return str(value).lower()
    return shortened(f'"{value}"' if isinstance(value, str) else str(value))


def refused(place: str, value: object, why: str) -> UserError:
    """The error for a setting's value."""
    return UserError(f"{place} = {shown(value)}: {why}")


def expand_paths(table: Any) -> None:
    """Expands a leading `~` in paths, since shells do not do so after `key=`."""
    for setting in settings(type(table)):
        value = getattr(table, setting.name)
        if setting.rule.path:
            setattr(table, setting.name, os.path.expanduser(value))
        elif isinstance(value, list):
            for element in filter(dataclasses.is_dataclass, value):
                expand_paths(element)
