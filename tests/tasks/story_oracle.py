"""Reads a math story's text and works out the answer, without using its generator or solution."""

from __future__ import annotations

import re

PART = r"(?:total )?number of .+? in .+?"
UNKNOWN = range(1, 1000)


def solve(problem: str, question: str) -> tuple[int, int]:
    """(answer, operands in the definitions that the answer needs; an unknown counts none)."""
    definitions: dict[tuple[str, str], str] = {}
    checks: list[tuple[str, int]] = []
    unknown = None
    for sentence in re.findall(r"The (.+?)\.(?: |$)", problem):
        if found := re.fullmatch(
            r"number of (.+?) in (.+?) exists, and its number is greater than 0", sentence
        ):
            unknown = (found[1], found[2])
        elif found := re.fullmatch(r"total number of .+? in (.+?) equals (\d+)", sentence):
            checks.append((found[1], int(found[2])))
        else:
            found = re.fullmatch(r"number of (.+?) in (.+?) equals (.+)", sentence)
            assert found, sentence
            assert (found[1], found[2]) not in definitions
            definitions[found[1], found[2]] = found[3]

    if found := re.fullmatch(r"What is the total number of (.+?) in (.+?)\?", question):
        asked = (None, found[2])
    else:
        found = re.fullmatch(r"How many (.+?) does (.+?) have\?", question)
        assert found, question
        asked = (found[1], found[2])

    for guess in UNKNOWN:
        reader = Reader(definitions, {} if unknown is None else {unknown: guess})
        if all(reader.value((None, place)) == number for place, number in checks):
            reader.operands, reader.values = 0, dict(reader.given)
            return reader.value(asked), reader.operands
    raise AssertionError("no value of the unknown fits")


class Reader:
    def __init__(self, definitions: dict, given: dict) -> None:
        self.definitions, self.given, self.values, self.operands = (
            definitions,
            given,
            dict(given),
            0,
        )

    def value(self, key: tuple[str | None, str]) -> int:
        if key not in self.values:
            self.values[key] = self._work_out(key)
        return self.values[key]

    def _work_out(self, key: tuple[str | None, str]) -> int:
        kind, place = key
        if kind is None:
            members = [k for k in [*self.definitions, *self.given] if k[1] == place]
            assert members
            self.operands += len(members)
            return sum(self.value(k) for k in members)
        text = self.definitions[key]
        if text.isdigit():
            self.operands += 1
            return int(text)
        constant, sign, rest = re.fullmatch(r"(?:(\d+) (plus|times) )?(.+)", text).groups()
        names = re.findall(r"the (total )?number of (.+?) in (.+?)(?=,? and the |, the |$)", rest)
        numbers = [self.value((None if total else kind, place)) for total, kind, place in names]
        self.operands += len(numbers) + (constant is not None)
        if rest.startswith("the difference between "):
            result = abs(numbers[0] - numbers[1])
        else:
            assert rest.startswith("the sum of ") or len(numbers) == 1
            result = sum(numbers)
        if constant is None:
            return result
        return int(constant) + result if sign == "plus" else int(constant) * result
