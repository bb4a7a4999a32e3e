"""gRPC's health protocol. Unlike the servicer of grpc_health, nobody waits here for a watcher who does not read."""
# ruff: noqa: N802 - gRPC decides the names

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from protocol.wire.peer import Context

_LOOK_S = 1.0
"""How often the health of a server is looked at for those who watch it, in seconds."""


class Health(HealthServicer):
    """Says whether a server answers with its services, named in full; once `stopped` is set, it does not."""

    def __init__(self, services: Collection[str], healthy: Callable[[], bool], stopped: asyncio.Event) -> None:
        self._services, self._healthy, self._stopped = {"", *services}, healthy, stopped

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """Say it once."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return self._say(request)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> AsyncIterator[HealthCheckResponse]:  # noqa: ARG002
        """Say it whenever it changes, until the end."""
        last = None
        while (now := self._say(request)) != last or not self._stopped.is_set():
            if now != last:
                yield now
            last = now
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), _LOOK_S)

    def _say(self, request: HealthCheckRequest) -> HealthCheckResponse:
        said = HealthCheckResponse
        if request.service not in self._services:
            return said(status=said.SERVICE_UNKNOWN)
        return said(status=said.SERVING if self._healthy() and not self._stopped.is_set() else said.NOT_SERVING)
