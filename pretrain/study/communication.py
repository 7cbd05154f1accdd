"""Times of collectives and messages, by the ranks' placement: rings on a host or across hosts.

Ranks are laid out as in `parallel.mesh`: tp innermost, then cp, dp, pp. A group on one host uses
the host's links. A group that spans hosts is a ring through all of them; its ranks on a host use
only their own network interfaces, not those of other groups.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.study.hardware import Hardware


@dataclass(frozen=True)
class Group:
    """Ranks that communicate, `stride` apart."""

    hardware: Hardware
    ranks: int
    stride: int = 1

    @property
    def _is_on_one_host(self) -> bool:
        node = self.hardware.node
        return self.ranks * self.stride <= node.devices or node.shared

    @property
    def _bandwidth(self) -> float:
        """Bytes per second that a rank of a ring sends."""
        node, network = self.hardware.node, self.hardware.network
        if self._is_on_one_host:
            return 1e9 * node.link_gbs
        on_a_host = max(1, node.devices // self.stride)
        return 1e9 * min(node.link_gbs, on_a_host * network.link_gbs)

    @property
    def _latency(self) -> float:
        node, network = self.hardware.node, self.hardware.network
        return node.latency_s if self._is_on_one_host else network.latency_s

    def _hops(self) -> float:
        """Latency of consecutive messages: around the ring, or in a tree if the ring is long."""
        return min(self.ranks - 1, 2 * (self.ranks - 1).bit_length() + 6) * self._latency

    def shared_out(self, size: float) -> float:
        """Seconds of an all-gather, a reduce-scatter or an all-to-all: each rank has 1/ranks of
        `size` bytes, before or after.
        """
        if self.ranks == 1:
            return 0.0
        return size * (self.ranks - 1) / self.ranks / self._bandwidth + self._hops()

    def all_reduce(self, size: float) -> float:
        """Seconds in which every rank gets the sum of `size` bytes."""
        return 2 * self.shared_out(size)

    def send(self, size: float) -> float:
        """Seconds in which a rank sends `size` bytes to its neighbour in the group."""
        node, network = self.hardware.node, self.hardware.network
        near = self.stride < node.devices or node.shared
        bandwidth = 1e9 * (node.link_gbs if near else network.link_gbs)
        return size / bandwidth + (node.latency_s if near else network.latency_s)
