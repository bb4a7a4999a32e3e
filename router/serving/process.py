"""A router process: model, follower and service together."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from protocol.errors import GreylagError
from protocol.files.locks import held
from protocol.signing import PublicKey
from protocol.wire.grpc_server import Listen, serve
from router.follow.pull import pull
from router.follow.workspace import FINGERPRINT, RELEASE, Mirror, open_mirror
from router.model.routed_model import RoutedModel
from router.serving.follower import Follower
from router.serving.query_service import QueryService
from router.settings import RouterSettings

_log = structlog.get_logger(__name__)


def run(workspace: Path, settings: RouterSettings, on_ready: Callable[[int], None]) -> None:
    """Serve a workspace until SIGTERM or SIGINT.

    Starts with the release on disk where there is one, so that a router comes up without its
    coordinator; before the first release the base answers.

    Args:
        workspace: Folder with the pulled releases; made if it is missing.
        settings: Where releases come from and where to listen.
        on_ready: Called with the port once questions are answered.

    Raises:
        Refused: `WORKSPACE_BUSY`, `BASE_MISMATCH`, `BASE_UNREADABLE` or `SETTINGS_INVALID`.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    busy = f"Another router serves from {workspace.resolve()}."
    with held(workspace / ".router.lock", busy, "Stop it, or use another folder."):
        _run(workspace, settings, on_ready)


def _run(workspace: Path, settings: RouterSettings, on_ready: Callable[[int], None]) -> None:
    key = PublicKey.from_hex(settings.pool_key) if settings.pool_key else None

    fetch = partial(
        pull, workspace, settings.coordinator, ca=settings.ca, pool_key=key, base=settings.base, say=_log.warning
    )
    mirror: Mirror | None
    try:
        mirror = fetch()
    except GreylagError as error:
        _log.warning("no new release at start", code=error.code.name, message=error.message)
        mirror = open_mirror(workspace) if (workspace / RELEASE).is_file() else None
    load = RoutedModel.from_base if mirror is None else partial(RoutedModel.from_mirror, mirror=mirror)
    model = load(
        settings.base,
        embedding=settings.embedding,
        public=settings.public_text,
        cache=workspace / FINGERPRINT,
        **settings.loading,
    )
    model.held = replace(model.held, answers_expired=settings.answer_expired)
    follower = Follower(model, fetch, interval_s=settings.follow_interval_s, held=mirror)
    follower.start()
    try:
        listen = Listen(settings.listen, settings.tls_cert, settings.tls_key)
        service = QueryService(model, settings.allowance, lambda: follower.trouble)
        asyncio.run(serve(listen, service.register, on_ready=on_ready, healthy=lambda: model.held.answering))
    finally:
        follower.stop()
