"""Counters of what was refused and which steps bundles took."""

from prometheus_client import CollectorRegistry, Counter

from coordinator.life import State
from protocol.errors import Code


class Metrics:
    """The counters of one process; every label is there from the start, at zero.

    Args:
        registry: Where they are collected; a new registry without one.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._refusals = Counter("greylag_refusals", "Refusals by code.", ["code"], registry=registry)
        self._steps = Counter("greylag_bundle_steps", "Steps of bundles by state.", ["state"], registry=registry)
        for code in Code:
            self._refusals.labels(code.name)
        for state in State:
            self._steps.labels(state)

    def refused(self, code: Code) -> None:
        """Count a refusal."""
        self._refusals.labels(code.name).inc()

    def stepped(self, state: str) -> None:
        """Count a step of a bundle."""
        self._steps.labels(state).inc()
