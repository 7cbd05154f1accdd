"""The server's Prometheus metrics, served at /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Meters:
    """Counters of one server since its start. Any thread may increment them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"hypnos_{name}", help, labels, registry=self.registry)

        def times(name: str, help: str) -> Histogram:
            name = f"hypnos_{name}_seconds"
            return Histogram(name, help, buckets=SECONDS, registry=self.registry)

        self.answers = counter("answers", "Finished answers, by how they ended", "reason")
        self.read = counter("prompt_tokens", "Input tokens read")
        self.said = counter("generation_tokens", "Tokens of answers")
        self.passes = counter("sleep_passes", "Passes of sleep, each over one window of a session")
        self.first = times("time_to_first_token", "From a request's arrival to its first token")
        self.between = times("time_between_tokens", "From one token of an answer to the next")
        self.whole = times("answer", "From a request's arrival to the end of an answer")

    def show(self, **now: float) -> str:
        """All metrics in Prometheus's text format, with some current values as gauges."""
        beside = CollectorRegistry()
        for name, value in now.items():
            Gauge(f"hypnos_{name}", name.replace("_", " "), registry=beside).set(value)
        return (generate_latest(self.registry) + generate_latest(beside)).decode()
