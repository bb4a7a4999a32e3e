"""A router process: model, follower and service together."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from protocol.documents import read_pool
from protocol.errors import GreylagError
from protocol.files.locks import held
from protocol.wire.grpc_server import Listen, serve
from router.base.fingerprint import check_base
from router.follow.pull import pull
from router.follow.workspace import FINGERPRINT, POOL, RELEASES, Mirror, open_mirror
from router.model.releases import Held
from router.model.routed_model import RoutedModel
from router.serving.follower import Follower
from router.serving.query_service import QueryService
from router.settings import RouterSettings

_log = structlog.get_logger(__name__)


def run(workspace: Path, settings: RouterSettings, on_ready: Callable[[int], None]) -> None:
    """Serve a workspace until SIGTERM or SIGINT.

    Starts with the newest release, from the disk where its coordinator cannot be reached, or with the newest before
    it that can be loaded; where there is none, the base answers.

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
    cache = workspace / FINGERPRINT
    fetch = partial(
        pull, workspace, settings.coordinator, base=settings.base, say=_log.warning, **settings.contact
    )  # fmt: skip
    mirror: Mirror | None = None
    try:
        mirror = fetch()
    except GreylagError as error:
        _log.warning("no new release at start", code=error.code.name, message=error.message)
    kept = [int(each.name.partition(".")[0]) for each in (workspace / RELEASES).glob("*.dsse.json")]
    if kept:
        check_base(settings.base, read_pool((workspace / POOL).read_bytes()).spec.base, cache)
    model = RoutedModel.from_base(
        settings.base, embedding=settings.embedding, public=settings.public_text, cache=cache, **settings.loading
    )
    model.held = Held(answers_expired=settings.answer_expired)
    for number in sorted(kept, reverse=True):
        try:
            if mirror is None or mirror.release.spec.number != number:
                mirror = open_mirror(workspace, number)
            model.take_up(mirror)
            break
        except Exception as error:  # noqa: BLE001 - whatever it is, the last good release answers
            _log.warning("release cannot be loaded", release=number, message=str(error))
            model.held = Held(answers_expired=settings.answer_expired)  # without what it has left behind
    follower = Follower(model, fetch, interval_s=settings.follow_interval_s, held=mirror)
    follower.start()
    try:
        listen = Listen(settings.listen, settings.tls_cert, settings.tls_key)
        service = QueryService(model, settings.allowance, lambda: follower.trouble)
        asyncio.run(serve(listen, service.register, on_ready=on_ready, healthy=lambda: model.held.answering))
    finally:
        follower.stop()
