"""Counters of what was refused and which steps bundles took, for Prometheus."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, start_http_server

from coordinator.policy.lifecycle import State
from protocol.errors import Code, Refused
from protocol.wire.grpc_client import check_address


class Metrics:
    """The counters of one process; every label is there from the start, at zero."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._refusals = Counter("greylag_refusals", "Refusals by code.", ["code"], registry=registry)
        self._steps = Counter("greylag_bundle_steps", "Steps of bundles by state.", ["state"], registry=registry)
        for code in Code:
            self._refusals.labels(code.name)
        for state in State:
            self._steps.labels(state)

    @contextmanager
    def exposed(self, address: str | None) -> Iterator[None]:
        """Answer `GET /metrics` at `host:port` for the length of a block (`SETTINGS_INVALID`); nowhere without one."""
        if address is None:
            yield
            return
        host, port = check_address(address)
        try:
            server, thread = start_http_server(port, host, registry=self._registry)
        except OSError as error:
            what = f"Cannot answer /metrics at {address}: {error.strerror}."
            raise Refused(Code.SETTINGS_INVALID, what, "Is another process listening there?") from error
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def refused(self, code: Code) -> None:
        """Count a refusal."""
        self._refusals.labels(code.name).inc()

    def stepped(self, state: str) -> None:
        """Count a step of a bundle."""
        self._steps.labels(state).inc()
