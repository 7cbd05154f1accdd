"""Loads a `Config` from TOML and overrides, and writes it back.

    config = load("configs/depo-small.toml", ["sleep.passes=1", "run.name=depo-n1"])

Reading is strict: an unknown key, a value of the wrong type, or an invalid value is refused with
one line that says what to write instead.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pretrain.config.checks import validate
from pretrain.config.fields import check, expand_paths, sections, type_hints
from pretrain.config.schema import Config
from pretrain.errors import UserError, shortened, storage_error

T = TypeVar("T")
Table = dict[str, Any]
MAX_BYTES = 1 << 16  # of a configuration
# tomllib's time and memory are quadratic in the dots of one key
MAX_DOTS = 1 << 12
MAX_FLOAT = sys.float_info.max
KINDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text in quotes",
}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The validated configuration of a TOML file, changed by overrides such as "sleep.passes=4".

    A leading `~` in paths is expanded.

    Raises:
        UserError: the file cannot be read, or it or an override is refused.
    """
    config = given(read_tables(path), str(path), overrides)
    try:
        return validated(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A copy of the configuration, changed by overrides and validated."""
    changed = copy.deepcopy(config)
    for text in overrides:
        _override(changed, text)
    return validated(changed)


def validated(config: Config) -> Config:
    """The same configuration, with paths expanded. UserError if it is not valid."""
    for section in sections():
        expand_paths(getattr(config, section))
    validate(config)
    return config


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) and not path.is_absolute()
        where = f" in {Path.cwd()}" if missing else ""
        run = path.parent.parent if path.parent.name == "checkpoints" else path
        if (own := run / "config.toml").is_file():
            where = f"; to resume that run, name {own}"
        told = f"{path}: cannot read the configuration: {error.strerror}{where}"
        raise storage_error(error)(told) from None
    if len(content) > MAX_BYTES:
        what = f"more than {MAX_BYTES >> 10} KiB, so it is not a configuration"
        raise UserError(f"{path}: {what}; name a TOML file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def parse(text: str, name: str = "configuration", overrides: Sequence[str] = ()) -> Config:
    """The configuration of a TOML text, types checked but values not; errors call it `name`."""
    return given(_tables(text, name), name, overrides)


def read_tables(path: str | Path) -> Table:
    """The sections of a TOML file, unchecked."""
    return _tables(_read(Path(path)), str(path))


def given(tables: Mapping[str, Any], name: str, overrides: Sequence[str]) -> Config:
    """As `from_tables`, changed by overrides."""
    config = from_tables(tables, name)
    for each in overrides:
        _override(config, each)
    return config


def from_tables(tables: Mapping[str, Any], name: str) -> Config:
    """The configuration of sections of settings, types checked but values not; errors call it
    `name`.
    """
    config: Config = _build(Config, tables, name)
    return config


def read_settings(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Settings other than a run's: any dataclass of sections, from a TOML file, just as strictly.

    Raises:
        UserError: the file cannot be read, or is refused.
    """
    found: T = _build(cls, read_tables(path), str(path))
    for each in overrides:
        _override(found, each)
    try:
        check(found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return found


def dump(config: Any) -> str:
    """All settings of a configuration, or of another dataclass of sections, as TOML. `parse` turns
    a configuration's into an equal one.
    """
    lines = []
    for section in dataclasses.fields(config):
        lines.append(f"[{section.name}]")
        values = getattr(config, section.name)
        lines += [
            f"{f.name} = {to_toml(getattr(values, f.name))}" for f in dataclasses.fields(values)
        ]
        lines.append("")
    return "\n".join(lines)


def _tables(text: str, name: str) -> Table:
    try:
        return _parse_toml(text)
    except ValueError as error:
        raise UserError(f"{name}: not valid TOML: {error}") from None


def _parse_toml(text: str) -> Table:
    """The tables of a TOML text; ValueError says why it is invalid."""
    if text.count(".") > MAX_DOTS:
        raise ValueError(f"more than {MAX_DOTS} dots")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:  # Python's own limit on the digits of a number
        raise ValueError("a number with too many digits") from None


def _build(
    cls: type, values: Mapping[str, Any], source: str, prefix: str = "", root: type | None = None
) -> Any:
    """A dataclass from a table of a file that as a whole is a `root`; `prefix` is the table's
    dotted name, with its last dot.
    """
    hints, root = type_hints(cls), root or cls
    for key in values:
        if key not in hints:
            suggestion = _suggest(key, prefix, list(hints), root)
            raise UserError(f"{source}: unknown setting {prefix}{shortened(key)}{suggestion}")
    found = {key: _value(hints[key], v, source, prefix + key, root) for key, v in values.items()}
    try:
        return cls(**found)
    except TypeError:  # a field without a default is missing
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in values and _required(f)]
        raise UserError(f"{source}: {prefix}{missing[0]} is missing") from None


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(hint: Any, value: Any, source: str, place: str, root: type) -> Any:
    """`value` as the type `hint`, or a UserError that says what was expected.

    Does not check which values a `Literal` allows.
    """
    if get_origin(hint) is Literal:
        hint = type(get_args(hint)[0])
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, source, place + ".", root)  # type: ignore[arg-type]
    if get_origin(hint) is list and isinstance(value, list):
        (inner,) = get_args(hint)
        return [_value(inner, v, source, f"{place}[{i}]", root) for i, v in enumerate(value)]
    if get_origin(hint) is tuple and isinstance(value, list) and len(value) == len(get_args(hint)):
        parts = enumerate(zip(get_args(hint), value, strict=True))
        return tuple(_value(h, v, source, f"{place}[{i}]", root) for i, (h, v) in parts)
    if hint is float and type(value) in (int, float) and -MAX_FLOAT <= value <= MAX_FLOAT:
        return float(value)
    if hint is int and type(value) is int and not -(2**63) <= value < 2**63:
        raise UserError(f"{source}: {place} must fit in 64 bits, not {_shown(value)}")
    if hint in (int, bool, str) and type(value) is hint:
        return value
    raise UserError(f"{source}: {place} must be {_expected(hint)}, not {_shown(value)}")


def _shown(value: Any) -> str:
    """A refused value for a message, however large it is."""
    try:
        return shortened(to_toml(value))
    # tables nested too deeply, or an integer with too many digits to print
    except (RecursionError, ValueError):
        return f"this {type(value).__name__}"


def _expected(hint: Any) -> str:
    if dataclasses.is_dataclass(hint):
        return "a table of settings"
    if get_origin(hint) is Literal:
        hint = type(get_args(hint)[0])
    if get_origin(hint) is list:
        inner = get_args(hint)[0]
        if not dataclasses.is_dataclass(inner):
            return f"a list, each {_expected(inner)}"
        required = ", ".join(f'{f.name} = "..."' for f in dataclasses.fields(inner) if _required(f))
        return f"a list of tables such as [{{{required}}}]"
    if get_origin(hint) is tuple:
        return f"a list of {len(get_args(hint))} values, each {_expected(get_args(hint)[0])}"
    return KINDS[hint]


def _suggest(key: str, prefix: str, known: list[str], root: type) -> str:
    """A suggestion: a similar name here, or in another section; else all names here."""
    elsewhere = _places(root)
    if not prefix and key in elsewhere:
        return f"; did you mean {elsewhere[key]}?"
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"; did you mean {prefix}{near[0]}?"
    far = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.8)
    if far:
        return f"; did you mean {elsewhere[far[0]]}?"
    where = f"[{prefix[:-1]}]" if prefix else "a configuration" if root is Config else "the file"
    return f"; {where} has {', '.join(sorted(known))}"


def _places(root: type) -> dict[str, str]:
    """name -> section.name, for all settings."""
    return {
        name: f"{section}.{name}"
        for section, cls in type_hints(root).items()
        if isinstance(cls, type) and dataclasses.is_dataclass(cls)
        for name in type_hints(cls)
    }


def _override(config: Any, text: str) -> None:
    """Applies "section.key=value". The value is TOML; text needs no quotes."""
    known = type_hints(type(config))
    place, equals, written = (part.strip() for part in text.partition("="))
    source = f"override {shortened(repr(text))}"
    section, dot, key = place.partition(".")
    if not equals or not dot or not key:
        meant = _places(type(config)).get(place.lstrip("-"))
        example = f"{meant}={written or 'VALUE'}" if meant else "sleep.passes=4"
        raise UserError(f"{source}: write it as section.key=value, for example {example}")
    if section not in known:
        suggestion = _suggest(section, "", list(known), type(config))
        raise UserError(f"{source}: unknown section {shortened(section)}{suggestion}")
    hints = type_hints(known[section])
    if key not in hints:
        suggestion = _suggest(key, section + ".", list(hints), type(config))
        raise UserError(f"{source}: unknown setting {shortened(place)}{suggestion}")
    value = _written(written)
    if hints[key] is str and not isinstance(value, str):
        value = written  # a name such as 2026 or true
    if value == written and hints[key] is not str and written.startswith(("[", "{")):
        hint = "inside a list or table, text needs quotes, and .5 is 0.5"
        raise UserError(f"{source}: not valid TOML; {hint}")
    setattr(getattr(config, section), key, _value(hints[key], value, source, place, type(config)))


def _written(text: str) -> Any:
    """The TOML value of `text`; the text itself if it is not TOML."""
    try:
        tables = _parse_toml(f"value = {text}")
    except ValueError:
        return text
    return tables["value"] if len(tables) == 1 else text


def to_toml(value: Any) -> str:
    """One value in TOML."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # JSON's escapes are valid in TOML, except for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k} = {to_toml(v)}' for k, v in value.items())}}}"
    return str(value)
