"""JSON from a file that may hold anything, and JSON that tells whether it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

MAX = 1 << 53  # of whatever is counted: JSON's own numbers are exact up to here
_SEAL = b',\n "sha256": "'


def counted(value: Any) -> int:
    """A number of things out of a file that may say anything: ValueError if it is none."""
    if type(value) is not int or not 0 <= value <= MAX:
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


def sealed(value: Mapping[str, Any]) -> bytes:
    """A JSON object that holds something, and last in it, as "sha256", the hash of all bytes before
    that.
    """
    return seal(json.dumps(value, indent=1).removesuffix("\n}").encode())


def seal(body: bytes) -> bytes:
    """The same of an object that is written up to its last member."""
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def is_sealed(content: bytes) -> bool:
    """Whether these are the bytes that were sealed."""
    return content == seal(content.rpartition(_SEAL)[0])
