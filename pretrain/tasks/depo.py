"""Depo: read a directed cycle as shuffled edges, then say which node comes k hops after another.

Section 4 of "Do Language Models Need Sleep?" (arXiv 2605.26099); docs/method.md lists what is our
choice. The k-th successor takes k look-ups, so that k measures how far a context was worked through
before it was evicted.

    PAD PAD a b | c d  b c | d a          4 nodes a -> b -> c -> d -> a as edges, left-padded to whole windows
    [hop 2] a [ANS] c  [hop 1] c [ANS] d  queries; scored: the answer's tokens, the first of them at [ANS]

A name of j tokens is j - 1 tokens of one set and a last token of another, so names end where they
seem to.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.config.schema import DepoConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.tasks.counter import Ints, Rows
from pretrain.tasks.task import check_context, make_batch

PAD, ANS, HOP = 0, 1, 2  # [hop k] is HOP + k - 1


class Depo:
    """Multi-hop retrieval; Q queries on a cycle of n nodes whose names are at most m tokens long."""

    def __init__(self, config: DepoConfig, window: int) -> None:
        self.config, self.window = config, window
        self._names = HOP + config.max_hops  # first token of names
        sets = 2 if config.name_tokens[1] > 1 else 1
        self.vocab_size = self._names + sets * config.vocabulary
        self.fingerprint = f"{config} window={window}"
        self.min_nodes = config.min_nodes or config.queries
        self.query_tokens = 2 + 2 * config.name_tokens[1]
        self.test_hops = [2**i for i in range(config.max_hops.bit_length())]
        self._check()
        # Small cycles are the easier ones and come more often: p(n) ~ 1 / (sqrt(N) + n).
        weights = 1 / (np.sqrt(config.nodes) + np.arange(self.min_nodes, config.nodes + 1))
        self._share = np.cumsum(weights) / weights.sum()

    def sample(self, seed: int, position: int, rows: int) -> Batch:
        """Training rows: n by the law above, k uniform in 1..max_hops."""
        draw = Rows(seed, "depo", position, rows)
        smaller = np.searchsorted(self._share[:-1], draw.uniform("nodes", 1)[:, 0], side="right")
        hops = 1 + draw.below("hops", self.config.queries, self.config.max_hops)
        return self._write(draw, self.min_nodes + smaller, hops)

    def test(self, seed: int, rows: int) -> Batch:
        """Test rows: the largest n, and queries that go through the powers of two in turn."""
        count = rows * self.config.queries
        if count < len(self.test_hops):
            raise UserError(
                f"{count} test queries cannot hold one of each of the {len(self.test_hops)} hop counts; "
                f"set train.batch to at least {-(-len(self.test_hops) // self.config.queries)}"
            )
        hops = np.resize(self.test_hops, count).reshape(rows, self.config.queries)
        return self._write(Rows(seed, "depo test", 0, rows), np.full(rows, self.config.nodes), hops)

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """Share of queries answered in full, {"hops_k": share}, for every k asked. best: [B, T]
        int64.
        """
        asked = batch.tokens[:, self.config.context :] - HOP + 1  # k at a query's first token
        targets, best = batch.targets[:, self.config.context :], best[:, self.config.context :]
        first = (
            batch.valid[:, self.config.context :] & (asked >= 1) & (asked <= self.config.max_hops)
        )
        # [B, T - context], which query of the row a token belongs to
        query = first.cumsum(dim=1) - 1
        misses = torch.zeros(best.shape[0], self.config.queries, dtype=torch.int64)
        misses.scatter_add_(1, query.clamp(min=0), ((targets != IGNORE) & (best != targets)).long())
        right, hops = misses.flatten() == 0, asked[first]
        return {
            f"hops_{k}": float(right[hops == k].double().mean()) for k in hops.unique().tolist()
        }

    def _write(self, draw: Rows, n: Ints, hops: Ints) -> Batch:
        """Rows with n [B] nodes and queries of hops [B, Q]. Node i points to node i + 1: the names
        are random.
        """
        config, B, Q = self.config, len(n), hops.shape[1]
        names, used = self._draw_names(draw)  # [B, nodes, m]
        T = config.context + Q * self.query_tokens
        tokens, targets = np.full((B, T), PAD), np.full((B, T), IGNORE)
        valid = np.zeros((B, T), dtype=np.bool_)
        valid[:, : config.context] = not config.mask_pad
        row = np.arange(B)[:, None]

        source = draw.order("edges", config.nodes, n)  # [B, nodes], the first n of it are nodes
        # [B, 2 * nodes]
        edges = np.stack([source, (source + 1) % n[:, None]], axis=2).reshape(B, -1)
        real = (
            used[row, edges]
            & np.repeat(np.arange(config.nodes) < n[:, None], 2, axis=1)[:, :, None]
        )
        at, place = _packed(real)
        place += config.context - real.sum(axis=(1, 2))[at]  # left-padded
        tokens[at, place], valid[at, place] = names[row, edges][real], True

        start = draw.order("starts", config.nodes, n)[:, :Q]  # distinct
        goal = (start + hops) % n[:, None]
        one = np.ones((B, Q, 1), dtype=np.bool_)
        hop, answer = (HOP - 1 + hops)[:, :, None], np.full((B, Q, 1), ANS)
        # [B, Q, 2 + 2m]: hop, name, ANS, answer
        written = np.concatenate([hop, names[row, start], answer, names[row, goal]], axis=2)
        real = np.concatenate([one, used[row, start], one, used[row, goal]], axis=2)
        wanted = np.full(written.shape, IGNORE)
        m = names.shape[2]
        wanted[:, :, m + 1 : -1] = np.where(used[row, goal], names[row, goal], IGNORE)
        at, place = _packed(real)
        place += config.context
        tokens[at, place], targets[at, place], valid[at, place] = written[real], wanted[real], True
        return make_batch(tokens, targets, valid, self.window)

    def _draw_names(self, draw: Rows) -> tuple[Ints, NDArray[np.bool_]]:
        """Distinct names [B, nodes, m], and which of their tokens are used: a name of j tokens uses
        the first j.
        """
        (low, high), V, nodes = self.config.name_tokens, self.config.vocabulary, self.config.nodes
        length = low + draw.below("lengths", nodes, high - low + 1)  # [B, nodes]
        names = np.zeros((*length.shape, high), dtype=np.int64)
        for j in range(low, high + 1):
            count = min(nodes, V**j)
            rank = np.cumsum(length == j, axis=1) - 1
            length[(length == j) & (rank >= count)] += 1  # there are no more names of j tokens
            code = draw.distinct(f"names of {j}", count, V**j)
            row, node = (length == j).nonzero()
            code = code[row, rank[row, node]]
            for token in reversed(range(j)):  # base V
                last_set = V if token == j - 1 and high > 1 else 0
                names[row, node, token] = self._names + last_set + code % V
                code //= V
        return names, np.arange(high) < length[:, :, None]

    def _check(self) -> None:
        """UserError for settings under which the task cannot be laid out or asked as it is meant."""
        c, L = self.config, self.window
        low, high = c.name_tokens
        if not 1 <= low <= high:
            raise UserError(
                f"depo.name_tokens = [{low}, {high}]: must be two numbers from 1, the smaller one first"
            )
        if not c.queries <= self.min_nodes <= c.nodes:
            raise UserError(
                f"depo: queries start at distinct nodes, so queries <= min_nodes <= nodes, but they are "
                f"{c.queries}, {self.min_nodes} and {c.nodes}; lower depo.queries or raise depo.nodes"
            )
        if high * math.log2(c.vocabulary) > 31:  # names are drawn as numbers of 32 bits
            raise UserError(
                f"depo.vocabulary = {c.vocabulary} gives more than 2^31 names of depo.name_tokens = {high} tokens; "
                "lower one of them"
            )
        if c.vocabulary**high < c.nodes:
            raise UserError(
                f"depo.vocabulary = {c.vocabulary} gives fewer than depo.nodes = {c.nodes} names; raise it to {c.nodes}"
            )
        if c.context < 2 * c.nodes * high:
            raise UserError(
                f"depo.context = {c.context} does not hold {c.nodes} edges of two names of up to {high} tokens; "
                f"set it to at least {2 * c.nodes * high}"
            )
        check_context("depo.context", c.context, L)
        if c.queries * self.query_tokens > L and (low != high or L % self.query_tokens):
            raise UserError(
                f"depo: {c.queries} queries of up to {self.query_tokens} tokens need more than one window of "
                f"sleep.window = {L} and would be cut by its boundary; lower depo.queries to {L // self.query_tokens}, "
                f"or take names of one length and a window that is a multiple of {self.query_tokens}"
            )


def _packed(real: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Where the real entries of [B, items, slots] go when a row is written without gaps: (row,
    place from 0).
    """
    flat = real.reshape(len(real), -1)
    place = np.cumsum(flat, axis=1) - 1
    return flat.nonzero()[0], place[flat]
