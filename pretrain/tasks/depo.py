"""Depo: read a directed cycle as shuffled edges, then say which node comes k hops after another.

Section 4 of "Do Language Models Need Sleep?" (arXiv 2605.26099); docs/method.md lists our own
choices. The k-th successor takes k look-ups, so k measures how far the context was processed before
it was evicted.

    PAD PAD a b | c d  b c | d a          4 nodes a -> b -> c -> d -> a as edges, left-padded
    [hop 2] a [ANS] c  [hop 1] c [ANS] d  queries; scored: the answer's tokens, from [ANS] on

A name of j tokens is j - 1 tokens of one set and a last token of another, so the end of a name is
unambiguous.

There are few small cycles with few names (5,040 for eight nodes and eight names), which may be
memorised: with `kept`, some are held out for the test.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretrain.config.schema import DepoConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.tasks.counter import Ints, Rows
from pretrain.tasks.kept import Mask, check_kept, described, one_in, redrawn
from pretrain.tasks.task import check_context, depth_at, make_batch

PAD, ANS, HOP = 0, 1, 2  # [hop k] is HOP + k - 1


class Names(NamedTuple):
    """The names of each row's nodes."""

    tokens: Ints  # [B, nodes, m]
    used: Mask  # [B, nodes, m]: a name may be shorter than m tokens


class Depo:
    """Multi-hop retrieval; Q queries on a cycle of n nodes with names of up to m tokens."""

    def __init__(self, config: DepoConfig, window: int) -> None:
        self.config, self.window = config, window
        self._names = HOP + config.max_hops  # first token of names
        sets = 2 if config.name_tokens[1] > 1 else 1
        self.vocab_size = self._names + sets * config.vocabulary
        self.fingerprint = described(config, window)
        self.min_nodes = config.min_nodes or config.queries
        self.query_tokens = 2 + 2 * config.name_tokens[1]
        self.test_hops = [2**i for i in range(config.max_hops.bit_length())]
        self._check()
        # Small cycles are easier and more frequent: p(n) ~ 1 / (sqrt(N) + n).
        weights = 1 / (np.sqrt(config.nodes) + np.arange(self.min_nodes, config.nodes + 1))
        self._share = np.cumsum(weights) / weights.sum()

    def sample(self, seed: int, position: int, rows: int) -> Batch:
        """Training rows: n from the distribution above, k uniform in 1..max_hops."""
        return self.sample_up_to(seed, position, rows, 1.0)

    def sample_up_to(self, seed: int, position: int, rows: int, share: float) -> Batch:
        """The same with k up to a share of max_hops."""
        most = depth_at(share, self.config.max_hops)
        draw = Rows(seed, "depo", position, rows)
        smaller = np.searchsorted(self._share[:-1], draw.uniform("nodes", 1)[:, 0], side="right")
        hops = 1 + draw.below("hops", self.config.queries, most)
        return self._write(draw, self.min_nodes + smaller, hops, kept=False)

    def test(self, seed: int, rows: int) -> Batch:
        """Test rows: the largest n, with the queries' k cycling through the powers of two; held-out
        cycles if `kept` is set.
        """
        count = rows * self.config.queries
        if count < len(self.test_hops):
            raise UserError(
                f"{count} test queries cannot cover each of the {len(self.test_hops)} hop counts; "
                f"set train.batch to at least {-(-len(self.test_hops) // self.config.queries)}"
            )
        hops = np.resize(self.test_hops, count).reshape(rows, self.config.queries)
        n = np.full(rows, self.config.nodes)
        return self._write(Rows(seed, "depo test", 0, rows), n, hops, kept=True)

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """Share of queries answered in full, {"hops_k": share}, for every k asked. best: [B, T]
        int64.
        """
        context = self.config.context
        asked = batch.tokens[:, context:] - HOP + 1  # k at a query's first token
        targets, best = batch.targets[:, context:], best[:, context:]
        first = batch.valid[:, context:] & (asked >= 1) & (asked <= self.config.max_hops)
        # [B, T - context], the query of the row that a token belongs to
        query = first.cumsum(dim=1) - 1
        misses = torch.zeros(best.shape[0], self.config.queries, dtype=torch.int64)
        misses.scatter_add_(1, query.clamp(min=0), ((targets != IGNORE) & (best != targets)).long())
        right, hops = misses.flatten() == 0, asked[first]
        return {
            f"hops_{k}": float(right[hops == k].double().mean()) for k in hops.unique().tolist()
        }

    def _write(self, draw: Rows, n: Ints, hops: Ints, *, kept: bool) -> Batch:
        """Rows with n [B] nodes and queries of hops [B, Q]. Node i points to node i + 1."""
        config, B = self.config, len(n)
        names = self._names_of(draw, n, kept)
        T = config.context + hops.shape[1] * self.query_tokens
        tokens, targets = np.full((B, T), PAD), np.full((B, T), IGNORE)
        valid = np.zeros((B, T), dtype=np.bool_)
        valid[:, : config.context] = not config.mask_pad

        edges, used = self._edge_tokens(draw, n, names)
        row, column = _packed(used)
        column += config.context - used.sum(axis=(1, 2))[row]  # left-padded
        tokens[row, column], valid[row, column] = edges[used], True

        queries, scored, used = self._query_tokens(draw, n, hops, names)
        row, column = _packed(used)
        column += config.context
        tokens[row, column], valid[row, column] = queries[used], True
        targets[row, column] = scored[used]
        return make_batch(tokens, targets, valid, self.window)

    def _edge_tokens(self, draw: Rows, n: Ints, names: Names) -> tuple[Ints, Mask]:
        """Edges in random order, each as two names: (tokens, used), [B, 2 * nodes, m]."""
        nodes, row = self.config.nodes, np.arange(len(n))[:, None]
        source = draw.order("edges", nodes, n)  # [B, nodes], of which the first n are nodes
        both = np.stack([source, (source + 1) % n[:, None]], axis=2).reshape(len(n), -1)
        is_edge = np.repeat(np.arange(nodes) < n[:, None], 2, axis=1)  # [B, 2 * nodes]
        return names.tokens[row, both], names.used[row, both] & is_edge[:, :, None]

    def _query_tokens(
        self, draw: Rows, n: Ints, hops: Ints, names: Names
    ) -> tuple[Ints, Ints, Mask]:
        """Queries as [hop k] name [ANS] answer: (tokens, targets, used), [B, Q, 2 + 2m].

        The target at a position is the answer's next token.
        """
        (B, Q), m = hops.shape, names.tokens.shape[2]
        row = np.arange(B)[:, None]
        start = draw.order("starts", self.config.nodes, n)[:, :Q]  # distinct
        end = (start + hops) % n[:, None]
        one = np.ones((B, Q, 1), dtype=np.bool_)
        hop, ans = (HOP - 1 + hops)[:, :, None], np.full((B, Q, 1), ANS)
        answer, answer_used = names.tokens[row, end], names.used[row, end]
        tokens = np.concatenate([hop, names.tokens[row, start], ans, answer], axis=2)
        used = np.concatenate([one, names.used[row, start], one, answer_used], axis=2)
        targets = np.full(tokens.shape, IGNORE)
        targets[:, :, m + 1 : -1] = np.where(answer_used, answer, IGNORE)  # from [ANS] on
        return tokens, targets, used

    def _names_of(self, draw: Rows, n: Ints, kept: bool) -> Names:
        """Distinct names for n [B] nodes per cycle; `kept`: of held-out cycles."""

        def is_kept(tokens: Ints) -> Mask:
            """[B, nodes, m] -> [B], independent of where the cycle starts."""
            weights = self.vocab_size ** np.arange(tokens.shape[2])
            is_node = np.arange(tokens.shape[1]) < n[:, None]
            number = np.where(is_node, tokens @ weights, np.iinfo(np.int64).max)  # [B, nodes]
            turned = (number.argmin(axis=1)[:, None] + np.arange(tokens.shape[1])) % n[:, None]
            cycle = np.take_along_axis(number, turned, axis=1)
            return one_in(self.config.kept, np.where(is_node, cycle, 0))

        def tokens(again: str) -> Ints:
            return self._draw_names(draw, again)

        named = redrawn(tokens, is_kept, kept=kept) if self.config.kept else tokens("")
        return Names(named, named != PAD)

    def _draw_names(self, draw: Rows, again: str) -> Ints:
        """Distinct names [B, nodes, m]; one of j tokens uses the first j, followed by PAD."""
        (low, high), V, nodes = self.config.name_tokens, self.config.vocabulary, self.config.nodes
        length = low + draw.below(f"lengths{again}", nodes, high - low + 1)  # [B, nodes]
        names = np.zeros((*length.shape, high), dtype=np.int64)
        for j in range(low, high + 1):
            count = min(nodes, V**j)
            rank = np.cumsum(length == j, axis=1) - 1
            length[(length == j) & (rank >= count)] += 1  # names of j tokens are used up
            code = draw.distinct(f"names of {j}{again}", count, V**j)
            row, node = (length == j).nonzero()
            code = code[row, rank[row, node]]
            for token in reversed(range(j)):  # base V
                last_set = V if token == j - 1 and high > 1 else 0
                names[row, node, token] = self._names + last_set + code % V
                code //= V
        return names

    def _check(self) -> None:
        """UserError for settings under which the task cannot be laid out as intended."""
        c, L = self.config, self.window
        check_kept("depo.kept", c.kept)
        low, high = c.name_tokens
        if not 1 <= low <= high:
            raise UserError(
                f"depo.name_tokens = [{low}, {high}]: must be two numbers from 1, "
                "the smaller one first"
            )
        if not c.queries <= self.min_nodes <= c.nodes:
            raise UserError(
                "depo: queries start at distinct nodes, so queries <= min_nodes <= nodes, but they "
                f"are {c.queries}, {self.min_nodes} and {c.nodes}; "
                "lower depo.queries or raise depo.nodes"
            )
        if high * math.log2(c.vocabulary) > 31:  # names are drawn as 32-bit numbers
            raise UserError(
                f"depo.vocabulary = {c.vocabulary} gives more than 2^31 names of "
                f"depo.name_tokens = {high} tokens; lower one of them"
            )
        if c.vocabulary**high < c.nodes:
            raise UserError(
                f"depo.vocabulary = {c.vocabulary} gives fewer than depo.nodes = {c.nodes} names; "
                f"raise it to {c.nodes}"
            )
        if c.context < 2 * c.nodes * high:
            raise UserError(
                f"depo.context = {c.context} does not hold {c.nodes} edges of two names of up to "
                f"{high} tokens; set it to at least {2 * c.nodes * high}"
            )
        check_context("depo.context", c.context, L)
        if c.queries * self.query_tokens > L and (low != high or L % self.query_tokens):
            fit = L // self.query_tokens
            fewer = f"lower depo.queries to {fit}, or " if fit else ""
            raise UserError(
                f"depo: {c.queries} queries of up to {self.query_tokens} tokens need more than one "
                f"window of sleep.window = {L} and would be cut by its boundary; {fewer}take names "
                f"of one length and a window that is a multiple of {self.query_tokens}"
            )


def _packed(used: Mask) -> tuple[Ints, Ints]:
    """(row, column) of the used tokens of [B, items, m] when rows are packed without gaps."""
    flat = used.reshape(len(used), -1)
    column = np.cumsum(flat, axis=1) - 1
    return flat.nonzero()[0], column[flat]
