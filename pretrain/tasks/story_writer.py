"""Writes math stories in the style of GSM-Infinite (arXiv 2502.05252), so none need be downloaded.

    The number of adult fox in Pine Ridge equals 3. The number of adult deer in Pine Ridge equals 2
    plus the number of adult fox in Pine Ridge. ...
    What is the total number of adult animals in Pine Ridge?

A story is a graph of quantities, drawn from the question towards its leaves until exactly `op`
operands are used in the definitions that the answer needs; the public records count their `op` in
the same way. Other quantities are noise. Of the public forms, differences (nothing becomes
negative) and equations with an unknown are not written.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

LARGEST = 999  # of answers and intermediate values
MAX_OPS = 30
_NO_OPERATOR = "plus"


class World(NamedTuple):
    """The nouns of one template."""

    template: str
    prefix: str  # of every kind
    total: str  # all kinds together
    kinds: list[str]
    places: list[str]


WORLDS = [
    World(
        "animals_in_parks", "adult ", "adult animals",
        ["fox", "deer", "owl", "bear", "wolf", "crow", "otter", "lynx", "hare", "heron",
         "badger", "eagle"],
        ["Pine Ridge", "Cedar Valley", "Maple Creek", "Stone Harbor", "Willow Park",
         "Amber Hills", "North Meadow", "Silver Lake", "Oak Hollow", "Misty Coast", "Red Canyon",
         "Elm Grove"],
    ),
    World(
        "schools_in_cities", "", "schools",
        ["elementary school", "public highschool", "music school", "medical school",
         "law school", "art school", "night school", "sports school", "cooking school",
         "language school", "flight school", "drama school"],
        ["Brightford", "Ruby Bay", "Evervale", "Hawksburg", "Glenfield", "Westhaven",
         "Clearwater", "Oakbridge", "Riverton", "Shoreline", "Northgate", "Millbrook"],
    ),
    World(
        "movies_at_festivals", "", "movies",
        ["calm road movie", "solemn period drama", "upbeat comedy", "space adventure",
         "silent film", "ghost story", "courtroom drama", "heist movie", "nature film",
         "musical", "spy thriller", "western"],
        ["Northwood Festival", "Verdi Festival", "Golden Lamp Festival", "Lumen Festival",
         "Harbor Film Week", "Taylor Festival", "West Sahara Festival", "Polar Film Days",
         "Montreval Festival", "Aurora Festival", "Old Town Film Week", "Saffron Festival"],
    ),
]  # fmt: skip
TOTALS = 4  # places whose total may be used; all other quantities are in the other places
MAX_NOISE = min(len(w.kinds) * (len(w.places) - TOTALS) for w in WORLDS) - MAX_OPS


class Quantity(NamedTuple):
    """The number of a kind in a place, or of all kinds there (kind None)."""

    kind: str | None
    place: str


class Definition(NamedTuple):
    """constant, constant `operator` sum of terms, or the sum of terms."""

    terms: list[Quantity]
    constant: int | None = None
    operator: str = _NO_OPERATOR  # "plus" | "times", between the constant and the terms

    @property
    def operands(self) -> int:
        """How much this definition adds to a story's `op`."""
        return len(self.terms) + (self.constant is not None)


@dataclass
class Story:
    """A drawn graph: what the answer needs, from the question to the leaves, and noise."""

    world: World
    needed: dict[Quantity, Definition]  # a definition only uses quantities that follow it
    # a definition only uses needed quantities and noise before it
    noise: dict[Quantity, Definition]
    values: dict[Quantity, int]  # of the needed ones
    shuffle: list[float]  # sort keys of the sentences, one for each definition

    def record(self, noise: int) -> dict[str, str | int]:
        """The story in the public format, with the first `noise` noise quantities only."""
        told = list(self.needed.items()) + list(self.noise.items())[:noise]
        sentences = [
            (key, self._sentence(q, d))
            for key, (q, d) in zip(self.shuffle, told, strict=False)
            if q.kind
        ]
        asked = next(iter(self.needed))
        if asked.kind is None:
            question = f"What is the {self.name(asked)}?"
        else:
            question = f"How many {self.world.prefix}{asked.kind} does {asked.place} have?"
        return {
            "problem": "".join(f"{sentence} " for _, sentence in sorted(sentences)),
            "question": question,
            "solution": self._solution(asked),
            "op": sum(d.operands for d in self.needed.values()),
            "template": self.world.template,
            "mode": "normalforward",
        }

    def name(self, q: Quantity) -> str:
        """ "number of adult fox in Pine Ridge"."""
        if q.kind is None:
            return f"total number of {self.world.total} in {q.place}"
        return f"number of {self.world.prefix}{q.kind} in {q.place}"

    def _sentence(self, q: Quantity, d: Definition) -> str:
        names = [f"the {self.name(t)}" for t in d.terms]
        parts = [] if d.constant is None else [str(d.constant)]
        if parts and names:
            parts.append(d.operator)
        if len(names) == 1:
            parts.append(names[0])
        elif len(names) == 2:
            parts.append(f"the sum of {names[0]} and {names[1]}")
        elif names:
            parts.append(f"the sum of {', '.join(names[:-1])}, and {names[-1]}")
        return f"The {self.name(q)} equals {' '.join(parts)}."

    def _solution(self, asked: Quantity) -> str:
        letters = iter(string.ascii_letters)
        letter = {q: next(letters) for q in self.needed}
        steps = []
        for q in reversed(self.needed):  # leaves first
            d = self.needed[q]
            symbols, numbers = [letter[t] for t in d.terms], [self.values[t] for t in d.terms]
            helper = ""
            if d.constant is not None and len(symbols) > 1:
                inner = next(letters)
                helper = f"{inner} = {_chain(' + ', symbols, numbers)}; "
                symbols, numbers = [inner], [sum(numbers)]
            if d.constant is not None:
                symbols, numbers = [str(d.constant)] + symbols, [d.constant] + numbers
            sign = " + " if d.constant is None or d.operator == "plus" else " * "
            what = self.name(q).removeprefix("number of ")
            value = _chain(sign, symbols, numbers) if d.terms else str(d.constant)
            steps.append(f"Define {what} as {letter[q]}; {helper}so {letter[q]} = {value}.")
        return " ".join(steps) + f" Answer: {self.values[asked]}."


def _chain(sign: str, symbols: list[str], numbers: list[int]) -> str:
    """ "a + b = 1 + 2 = 3"."""
    result = sum(numbers) if sign == " + " else numbers[0] * numbers[1]
    parts = [sign.join(symbols), sign.join(map(str, numbers)), str(result)]
    return " = ".join(parts if len(numbers) > 1 else parts[:2])


def write_story(random: Random, op: int, noise: int) -> Story:
    """A story with exactly `op` operands (1..MAX_OPS) and `noise` (0..MAX_NOISE) irrelevant
    quantities.

    Stories with a value above LARGEST are redrawn.
    """
    while True:
        world = random.choice(WORLDS)
        draft = _Draft(random, world, op)
        values: dict[Quantity, int] = {}
        for q, d in reversed(draft.needed.items()):
            total = sum(values[t] for t in d.terms)
            if d.constant is not None:
                total = d.constant * total if d.operator == "times" else d.constant + total
            values[q] = total
        if max(values.values()) <= LARGEST:
            distractors = draft.draw_noise(noise)
            shuffle = [random.random() for _ in range(len(draft.needed) + noise)]
            return Story(world, draft.needed, distractors, values, shuffle)


class _Draft:
    """Draws the needed quantities. For each open (not yet defined) one, the operands of its
    cheapest definition are reserved.

    A definition may use new and open quantities, never defined ones, so there are no cycles.
    """

    def __init__(self, random: Random, world: World, op: int) -> None:
        self.random, self.world = random, world
        places = random.sample(world.places, len(world.places))
        self.total_places = places[:TOTALS]
        self.fresh = [Quantity(kind, place) for kind in world.kinds for place in places[TOTALS:]]
        random.shuffle(self.fresh)
        self.needed: dict[Quantity, Definition] = {}
        self.spare = op - 1  # operands that are not reserved for an open quantity
        first = self._new_total() if self.spare and random.random() < 0.7 else self.fresh.pop()
        self.spare -= first.kind is None
        self.open = [first]
        while self.open:
            q = self.open.pop(random.randrange(len(self.open)))
            self.needed[q] = self._define() if q.kind else self._define_total(q)

    def draw_noise(self, count: int) -> dict[Quantity, Definition]:
        """`count` further quantities, defined by constants or by existing quantities."""
        noise: dict[Quantity, Definition] = {}
        known = list(self.needed)
        for _ in range(count):
            several = min(self.random.choice([0, 0, 1, 1, 2, 3]), len(known))
            terms = self.random.sample(known, several)
            q = self.fresh.pop()
            constant = self.random.random() < 0.3 or not terms
            noise[q] = self._with_constant(terms) if constant else Definition(terms)
            known.append(q)
        return noise

    def _define(self) -> Definition:
        """Draws a definition. Its first operand was reserved for this quantity; further ones, and
        those to reserve for new quantities, are taken from `spare`.
        """
        must_grow = not self.open
        if not self.spare or (not must_grow and self.random.random() < 0.3):
            return self._with_constant([])
        constant = self.spare > 1 and self.random.random() < 0.4
        self.spare -= constant
        terms: list[Quantity] = []
        for number in range(self.random.choice([1, 1, 2, 2, 3])):
            another = int(number > 0)
            reusable = [t for t in self.open if t not in terms]
            may_reuse = reusable and not (must_grow and not terms) and self.spare >= another
            choices = ["open"] if may_reuse else []
            choices += ["new"] * 2 if self.spare >= another + 1 else []
            choices += ["total"] if self.spare >= another + 2 and self.total_places else []
            if not choices:
                break
            choice = self.random.choice(choices)
            self.spare -= another + {"open": 0, "new": 1, "total": 2}[choice]
            if choice == "open":
                terms.append(self.random.choice(reusable))
            else:
                terms.append(self.fresh.pop() if choice == "new" else self._new_total())
                self.open.append(terms[-1])
        return self._with_constant(terms) if constant else Definition(terms)

    def _define_total(self, q: Quantity) -> Definition:
        """Defines a place's total, by kinds of a place that has no other quantities."""
        kinds = 1 + self.random.randint(0, min(self.spare // 2, 3))
        self.spare -= 2 * (kinds - 1)
        members = [Quantity(kind, q.place) for kind in self.random.sample(self.world.kinds, kinds)]
        self.open += members
        return Definition(members)

    def _new_total(self) -> Quantity:
        return Quantity(None, self.total_places.pop())

    def _with_constant(self, terms: list[Quantity]) -> Definition:
        operator = self.random.choice(["plus", "times"]) if terms else _NO_OPERATOR
        return Definition(terms, self.random.randint(1 + (operator == "times"), 4), operator)
