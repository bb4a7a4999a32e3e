"""A run of Flower's own server, as a campaign holds it."""

import threading
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from flwr.supercore.heartbeat import HeartbeatSender

from coordinator.fleet.flower import client
from coordinator.fleet.flower.gateway import App, Guard, Scope, inside
from tests.stock import FLOWERS_OWN, SECRET, make_link, served

pytestmark = FLOWERS_OWN


def beating() -> int:
    """How many threads tell the server that a run is alive."""
    targets = (getattr(thread, "_target", None) for thread in threading.enumerate())
    return sum(isinstance(getattr(target, "__self__", None), HeartbeatSender) for target in targets)


def guarded(folder: Path, *, without: str = "nothing") -> App:
    app, _ = make_link(folder)
    within = inside(SECRET)

    def allows(scope: Scope) -> bool:
        return within(scope) and not scope["path"].endswith(without)

    return Guard(app, allows)


def test_a_run_that_cannot_be_begun_leaves_nothing_behind(tmp_path: Path) -> None:
    with served(guarded(tmp_path, without="pull-task-input")) as port, closing(client.Superlink(port, SECRET)) as link:
        with pytest.raises(httpx.HTTPStatusError):
            link.begin()
        assert beating() == 0


def test_a_run_is_alive_until_it_is_given_back(tmp_path: Path) -> None:
    with served(guarded(tmp_path)) as port, closing(client.Superlink(port, SECRET)) as link:
        run = link.begin()
        assert beating() == 1
        client.finish(run)
        assert beating() == 0
