"""JSON from a file that may hold anything."""

from __future__ import annotations

import json
from typing import Any

MOST = 1 << 53  # of whatever is counted: JSON's own numbers are exact up to here


def counted(value: Any) -> int:
    """A number of things out of a file that may say anything: ValueError if it is none."""
    if type(value) is not int or not 0 <= value <= MOST:
        raise ValueError("not a number of things")
    return value


def parse_json(text: str | bytes) -> Any:
    """The value that `text` is; ValueError says in a few words why it is none."""
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    except ValueError:  # Python's own limit on the digits of a number
        raise ValueError("JSON with a number of too many digits") from None
