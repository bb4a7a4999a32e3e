"""A router process: model, follower and doors together."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import cast

import structlog

from protocol.bundle import open_bundle
from protocol.documents import read_pool
from protocol.files.locks import held
from router.base.fingerprint import check_base
from router.follow.pull import pull
from router.follow.source import PULL_DEADLINE_S
from router.follow.workspace import FINGERPRINT, POOL, RELEASE, RELEASES, Mirror, open_mirror
from router.model.releases import Held
from router.model.routed_model import Options, RoutedModel
from router.serving.batches.opening import open_engine
from router.serving.doors import OnReady, serve_doors
from router.serving.follower import Follower
from router.settings import RouterSettings, ServingSettings

START_S = 60.0
"""Longest that a router with a release on its disk waits for a newer one before it answers, in seconds."""
_log = structlog.get_logger(__name__)


def run(workspace: Path, settings: RouterSettings, on_ready: OnReady) -> None:
    """Serve a workspace until SIGTERM or SIGINT.

    Starts with the newest release; where that does not come, not within `START_S`, or cannot be loaded, with the newest
    on the disk that can; where there is none, the base answers.

    Args:
        workspace: Folder with the pulled releases; made if it is missing.
        settings: Where releases come from and where to listen.
        on_ready: Called with the ports of gRPC and, if it is asked for, HTTP once questions are answered.

    Raises:
        Refused: `WORKSPACE_BUSY`, `BASE_MISMATCH`, `BASE_UNREADABLE` or `SETTINGS_INVALID`.
        Unavailable: `MEMORY_FULL` where no memory is left for requests.
    """
    with _alone(workspace):
        _run(workspace, settings, on_ready)


def run_bundles(workspace: Path, bundles: Sequence[Path], settings: ServingSettings, on_ready: OnReady) -> None:
    """Serve bundles of this machine, that no pool has to know, until SIGTERM or SIGINT.

    Args:
        workspace: Folder of the users.
        bundles: Their folders, in the order in which they came.
        settings: The base, and where to listen.
        on_ready: As in `run`.

    Raises:
        Refused: As `run`, `protocol.bundle.open_bundle` and `RoutedModel.from_bundles`.
        Unavailable: `MEMORY_FULL`.
    """
    opened = [open_bundle(folder) for folder in bundles]  # before the model, which takes longer
    with _alone(workspace):
        model = RoutedModel.from_bundles(settings.base, opened, **_reading(settings, workspace))
        _answer(workspace, settings, model, str, on_ready)


def _alone(workspace: Path) -> AbstractContextManager[object]:
    workspace.mkdir(parents=True, exist_ok=True)
    busy = f"Another router serves from {workspace.resolve()}."
    return held(workspace / ".router.lock", busy, "Stop it, or use another folder.")


def _reading(settings: ServingSettings, workspace: Path) -> Options:
    reading = Options(embedding=settings.embedding, public=settings.public_text, cache=workspace / FINGERPRINT)
    return cast("Options", {**reading, **settings.loading})


def _answer(
    workspace: Path, settings: ServingSettings, model: RoutedModel, trouble: Callable[[], str], on_ready: OnReady
) -> None:
    engine = open_engine(model, waiting=settings.max_waiting, memory_share=settings.memory_share, seats=settings.seats)
    engine.start()
    try:
        asyncio.run(serve_doors(workspace, settings, engine, trouble, on_ready))
    finally:
        engine.stop()


def _run(workspace: Path, settings: RouterSettings, on_ready: OnReady) -> None:
    cache = workspace / FINGERPRINT
    fetch = partial(
        pull, workspace, settings.coordinator, base=settings.base, say=_log.warning, **settings.contact
    )  # fmt: skip
    if (workspace / RELEASE).exists():
        check_base(settings.base, read_pool((workspace / POOL).read_bytes()).spec.base, cache)
    model = RoutedModel.from_base(settings.base, **_reading(settings, workspace))
    model.held = Held(answers_expired=settings.answer_expired)
    taken = _start(model, fetch, workspace)
    follower = Follower(model, fetch, interval_s=settings.follow_interval_s, held=taken)
    follower.start()
    try:
        _answer(workspace, settings, model, lambda: follower.trouble, on_ready)
    finally:
        follower.stop()


def _start(model: RoutedModel, fetch: Callable[..., Mirror], workspace: Path) -> Mirror | None:
    empty = model.held
    kept = [int(each.name.partition(".")[0]) for each in (workspace / RELEASES).glob("*.dsse.json")]
    try:
        return fetch(take_up=model.take_up, deadline_s=START_S if kept else PULL_DEADLINE_S)
    except Exception as error:  # noqa: BLE001 - whatever it is, the last good release answers
        _log.warning("no new release at start", message=str(error))
    for number in sorted(kept, reverse=True):
        model.held = empty  # without what a release that failed has left behind
        try:
            mirror = open_mirror(workspace, number)
            model.take_up(mirror)
        except Exception as error:  # noqa: BLE001 - as above
            _log.warning("release cannot be loaded", release=number, message=str(error))
        else:
            return mirror
    model.held = empty
    return None
