"""Puts a workspace behind the gRPC door."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import grpc
import structlog

from coordinator.policy.stored import StoredLimits
from coordinator.serving.catalog_service import CatalogService
from coordinator.serving.intake import Intake, IntakeLimits
from coordinator.serving.intake_service import SERVICES, IntakeService
from coordinator.serving.log_service import LogService
from coordinator.storage.blobs import Store
from coordinator.storage.spool import Spool
from coordinator.workspace.context import Opened
from coordinator.workspace.metrics import Metrics
from protocol.documents import Duty
from protocol.log.note import NoteKey
from protocol.v1 import catalog_pb2_grpc, intake_pb2_grpc, log_pb2_grpc
from protocol.wire.grpc_server import Listen, serve
from protocol.wire.places import Places

_STREAMS = 24
"""Files on their way in, and as many out, at once."""
_LATELY_S = 1.0
"""How long it holds that the log has lost nothing; whoever signs for it looks anew."""
_log = structlog.get_logger(__name__)


def serve_workspace(
    opened: Opened, metrics: Metrics, *, clock: Callable[[], datetime], on_ready: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT; `on_ready` is called once with `host:port`, when calls are being taken.

    Raises:
        Refused: `SETTINGS_INVALID` for an address or a store that cannot be used.
    """
    settings = opened.settings
    store = Store(settings.store)
    spool = Spool(
        opened.workspace.spool, quota_bytes=settings.spool_quota_bytes, floor_bytes=settings.free_disk_floor_bytes
    )
    fleet = settings.fleet_address or settings.fleet_listen
    life = timedelta(hours=settings.session_hours)
    stored = StoredLimits(settings.contributor_quota_bytes, settings.refused_quota_bytes, settings.refused_days)
    limits = IntakeLimits(life, settings.first_bundles, settings.hourly_keys, stored, fleet)
    witnesses = [NoteKey.parse(each) for each in settings.witnesses]
    intake = Intake(
        opened.pool, opened.signer(Duty.LOG), opened.registry, store=store, spool=spool, clock=clock, limits=limits,
        check_log=_lately(opened.checkpoints.check),
    )  # fmt: skip
    intake.sweep()
    store.sweep_leftovers()

    def register(server: grpc.aio.Server) -> Sequence[str]:
        intake_service = IntakeService(intake, spool, Places(_STREAMS))
        intake_pb2_grpc.add_IntakeServicer_to_server(intake_service, server)
        catalog_service = CatalogService(
            opened.pool,
            opened.registry,
            store,
            Places(_STREAMS),
            lambda role, version: opened.roles.show(role, version, now=clock()),
        )
        catalog_pb2_grpc.add_CatalogServicer_to_server(catalog_service, server)
        log_service = LogService(opened.pool, opened.registry, opened.checkpoints, witnesses)
        log_pb2_grpc.add_LogServicer_to_server(log_service, server)
        return SERVICES

    def ready(port: int) -> None:
        address = f"{settings.listen.rpartition(':')[0]}:{port}"
        _log.info("serving", address=address, pool=opened.pool.digest)
        on_ready(address)

    listen = Listen(settings.listen, settings.tls_cert, settings.tls_key)
    asyncio.run(serve(listen, register, count=metrics.refused, on_ready=ready))


def _lately(check: Callable[[], object]) -> Callable[[], None]:
    """Make a check of which a good end holds for a moment, since many calls a second ask for it."""
    checked = -math.inf

    def look() -> None:
        nonlocal checked
        now = time.monotonic()
        if now - checked > _LATELY_S:
            check()
            checked = now

    return look
