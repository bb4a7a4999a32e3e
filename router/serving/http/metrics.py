"""What the door did, for Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from protocol.errors import Code
from router.serving.engine import Engine

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class DoorMetrics:
    """The counters of one door, and what its engine says when somebody looks.

    Args:
        engine: Who answers.
    """

    def __init__(self, engine: Engine) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "greylag_router_requests", "Requests over HTTP.", ["path", "status"], registry=registry
        )
        self._refusals = Counter("greylag_router_refusals", "Refusals by code.", ["code"], registry=registry)
        self._tokens = Counter("greylag_router_tokens", "Tokens read and written.", ["of"], registry=registry)
        self._first = Histogram(
            "greylag_router_first_token_seconds", "From a request to its first token.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._whole = Histogram(
            "greylag_router_answer_seconds", "From a request to its last token.", buckets=_SECONDS, registry=registry
        )
        for name, text, look in (
            ("waiting", "Requests that wait for a place in the batch.", lambda: engine.load.waiting),
            ("running", "Requests in the batch.", lambda: engine.load.running),
            ("release", "Number of the newest release.", lambda: engine.model.held.newest.release),
            ("experts", "Experts of the newest release.", lambda: len(engine.model.held.newest.pool.experts)),
        ):
            Gauge(f"greylag_router_{name}", text, registry=registry).set_function(look)
        for code in Code:
            self._refusals.labels(code.name)

    def answered(self, path: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()

    def refused(self, code: Code) -> None:
        """Count a refusal."""
        self._refusals.labels(code.name).inc()

    def began(self, since: float) -> None:
        """Note how long a request waited for its first token, since a moment of the monotonic clock."""
        self._first.observe(time.monotonic() - since)

    def ended(self, since: float, *, read: int, written: int) -> None:
        """Count a request's tokens, and note how long it took, since a moment of the monotonic clock."""
        self._tokens.labels("input").inc(read)
        self._tokens.labels("output").inc(written)
        self._whole.observe(time.monotonic() - since)

    def page(self) -> bytes:
        """Write them down in Prometheus' text format."""
        return generate_latest(self._registry)
