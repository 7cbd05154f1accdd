"""Brevo: read a graph of dependencies, then list all that a node depends on, leaves first.

Recursive traversal (Allen-Zhu, "Physics of Language Models: Part 4.1", 2025): an answer begins with
the deepest nodes, so the graph must be worked through before the first token of the answer.

    PAD PAD a b | c a  d b  c d    edges in random order, "c needs a", left-padded; nothing scored
    c [ANS] b a d c [END]          a query; scored from [ANS] on

Several orders have the leaves first. The target order is by height (the length of the longest chain
below a node), then by token.
"""

from __future__ import annotations

from random import Random

import numpy as np
import torch
from torch import Tensor

from pretrain.config.schema import BrevoConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.tasks.counter import Rows
from pretrain.tasks.task import GradedBatch, by_grade, check_context, make_batch

PAD, ANS, END, NAMES = 0, 1, 2, 3

Graph = dict[int, list[int]]  # node -> the nodes that it needs


class Brevo:
    """Graphs of `nodes` nodes, each of which needs up to `needs` others."""

    def __init__(self, config: BrevoConfig, window: int) -> None:
        self.config, self.window = config, window
        self.vocab_size = NAMES + config.vocabulary
        self.fingerprint = f"{config} window={window}"
        if config.vocabulary < config.nodes:
            raise UserError(
                f"brevo.vocabulary = {config.vocabulary} gives fewer names than brevo.nodes = "
                f"{config.nodes}; raise it to {config.nodes}"
            )
        if config.context < (most := 2 * config.nodes * config.needs):
            raise UserError(
                f"brevo.context = {config.context} does not hold up to {most // 2} edges of two "
                f"tokens; set it to at least {most}"
            )
        check_context("brevo.context", config.context, window)
        if config.nodes < 2 * config.max_depth:
            raise UserError(
                f"brevo.nodes = {config.nodes} seldom form chains of brevo.max_depth = "
                f"{config.max_depth}; raise it to {2 * config.max_depth}, or lower the depth"
            )
        if config.max_depth > 4 * config.needs:
            raise UserError(
                f"brevo.needs = {config.needs}: nodes that need so few seldom form chains of "
                f"brevo.max_depth = {config.max_depth}; raise it to {-(-config.max_depth // 4)}, "
                "or lower the depth"
            )
        if config.nodes + 2 > window:
            raise UserError(
                f"sleep.window = {window} does not hold a query and an answer of up to "
                f"brevo.nodes = {config.nodes} tokens; set it to {config.nodes + 2} or more, or "
                "lower brevo.nodes"
            )

    def sample(self, seed: int, position: int, rows: int) -> Batch:
        """Training rows: the node asked for is any that needs another one."""
        generators = Rows(seed, "brevo", position, rows).generators()
        return self._write([(random, *self._draw(random)) for random in generators])

    def test(self, seed: int, rows: int) -> Batch:
        """Test rows, with heights cycling through 1..max_depth."""
        if rows < self.config.max_depth:
            raise UserError(
                f"{rows} test rows cannot cover each height up to brevo.max_depth = "
                f"{self.config.max_depth}; set train.batch to {self.config.max_depth}"
            )
        generators = Rows(seed, "brevo test", 0, rows).generators()
        return self._write(
            [
                (random, *self._draw_of_height(random, 1 + i % self.config.max_depth))
                for i, random in enumerate(generators)
            ]
        )

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """Share of whole lists right, {"depth_h": by the height of the node asked for}. best:
        [B, T] int64.
        """
        right = ((best == batch.targets) | (batch.targets == IGNORE)).all(dim=1)
        return by_grade("depth", right, batch)

    def _write(self, drawn: list[tuple[Random, Graph, int]]) -> GradedBatch:
        c = self.config
        B, T = len(drawn), c.context + c.nodes + 2
        tokens, targets = np.full((B, T), PAD), np.full((B, T), IGNORE)
        valid = np.zeros((B, T), dtype=np.bool_)
        grade = np.zeros(B, dtype=np.int64)
        for row, (random, graph, asked) in enumerate(drawn):
            edges = [(node, needed) for node, all_of_it in graph.items() for needed in all_of_it]
            random.shuffle(edges)
            read = [token for edge in edges for token in edge]
            heights = height_of(graph)
            answer = [*answer_of(graph, heights, asked), END]
            said = [asked, ANS, *answer[:-1]]
            tokens[row, c.context - len(read) : c.context] = read
            tokens[row, c.context : c.context + len(said)] = said
            valid[row, c.context - len(read) : c.context + len(said)] = True
            targets[row, c.context + 1 : c.context + 1 + len(answer)] = answer
            grade[row] = heights[asked]
        batch = make_batch(tokens, targets, valid, self.window)
        return GradedBatch(**vars(batch), grade=torch.from_numpy(grade))

    def _draw(self, random: Random) -> tuple[Graph, int]:
        """A graph, and a node of it that needs another one."""
        graph = self._draw_graph(random)
        return graph, random.choice([n for n, needed in graph.items() if needed] or list(graph))

    def _draw_of_height(self, random: Random, height: int) -> tuple[Graph, int]:
        """A graph, and a node of it with this height."""
        while True:
            graph = self._draw_graph(random)
            if found := [node for node, h in height_of(graph).items() if h == height]:
                return graph, random.choice(found)

    def _draw_graph(self, random: Random) -> Graph:
        c = self.config
        names = [NAMES + n for n in random.sample(range(c.vocabulary), c.nodes)]
        graph: Graph = {}
        for i, name in enumerate(names):  # needs only nodes before it: no cycles
            graph[name] = random.sample(names[:i], min(i, random.randint(0, c.needs)))
        return graph


def height_of(graph: Graph) -> dict[int, int]:
    """The height of each node: the longest chain below it, 0 for a leaf. Nodes need only earlier
    ones.
    """
    heights: dict[int, int] = {}
    for node, needed in graph.items():
        heights[node] = max((1 + heights[n] for n in needed), default=0)
    return heights


def answer_of(graph: Graph, heights: dict[int, int], asked: int) -> list[int]:
    """The node and all that it needs, directly or indirectly, in the target order."""
    found, open_nodes = {asked}, [asked]
    while open_nodes:
        new = [n for n in graph[open_nodes.pop()] if n not in found]
        found.update(new)
        open_nodes += new
    return sorted(found, key=lambda node: (heights[node], node))
