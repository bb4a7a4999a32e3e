"""Flower's own server in this process, and the app of a stranger."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from coordinator.fleet.flower.gateway import App, LinkConfig, make_app

SECRET = b"s" * 32
# Flower 1.41 with the pathspec and the Alembic of today; its clients forget a socket over a refusal.
FLOWERS_OWN = [
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]


def make_link(folder: Path) -> tuple[App, frozenset[str]]:
    """Flower's app, and the paths of the nodes' calls."""
    return make_app(LinkConfig("", "", "", str(folder)), SECRET)


@contextmanager
def served(app: App, config: uvicorn.Config | None = None) -> Iterator[int]:
    """Serve an app on loopback, in a thread, as some configuration says."""
    config = config or uvicorn.Config(app, log_level="error", ws="none")
    config.host, config.port = "127.0.0.1", 0
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)


def evil_app(code: bytes) -> dict[str, bytes]:
    """Files of an app that a stranger would like to run."""
    project = b"""
[project]
name = "evil"
version = "1.0.0"
description = "x"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "mallory"
[tool.flwr.app.components]
serverapp = "evil:server"
clientapp = "evil:client"
"""
    return {"pyproject.toml": project, "evil.py": code}
