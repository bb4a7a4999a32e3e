"""Flower's SuperLink behind a guard: `python -m coordinator.fleet.flower.gateway`, started and watched by `fleet`.

Stock Flower serves nodes, operators and executors on one port and asks operators for no credentials, so that
whoever reaches it may register a key and run code on every node. Here the public port answers nothing but the
nodes' own calls (each signed by a registered key); operators and executors come in through loopback, with secrets.
"""

import asyncio
import hmac
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import uvicorn

SECRET = "secret"  # noqa: S105 - the file's name
SECRET_HEADER = "flwr-task-token"  # noqa: S105 - the header in which Flower's own clients show something
HEALTH = "/health"
MAX_BODY_BYTES = 4 << 20
"""Largest request on the public port; Flower reads a body before it asks who sent it. Replies are a few lines."""
STOP_S = 5
"""How long calls in flight may take after a stop signal, in seconds."""
_CONTROL, _RUNTIME = "/v1/control/", "/v1/runtime/"
_QUIET: dict[str, Any] = {"access_log": False, "log_level": "warning", "timeout_graceful_shutdown": STOP_S}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class LinkConfig:
    """What the process is told, as one line of JSON on its standard input."""

    listen: str
    """Public `host:port`."""
    certificate: str
    key: str
    folder: str
    """For Flower's own database, what else it likes to keep, and the secret that operators and executors show."""


def quiet_flower(home: Path) -> None:
    """Before Flower's first import: it asks nothing of the internet, and keeps what it likes to keep in `home`."""
    os.environ.update(
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
        FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
        FLWR_HOME=str(home),
    )


class Guard:
    """Lets through what a rule allows; everything else does not exist.

    Args:
        app: What is guarded.
        allows: Judges a request by its ASGI scope.
        most: Largest body, in bytes; None for any.
    """

    def __init__(self, app: App, allows: Callable[[Scope], bool], most: int | None = None) -> None:
        self._app, self._allows, self._most = app, allows, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 404."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._allows(scope)):
            if self._most is not None:
                receive, send = _bounded(receive, send, self._most)
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})


def _bounded(receive: Receive, send: Send, most: int) -> tuple[Receive, Send]:
    """Hang up on a body that is too large."""
    left = most

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    async def last(message: MutableMapping[str, Any]) -> None:
        if left < 0 and message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    return bounded, last


def outside(fleet: frozenset[str]) -> Callable[[Scope], bool]:
    """Allow the nodes' own calls, by their exact paths, and the health check."""
    allowed = {("GET", HEALTH), *(("POST", path) for path in fleet)}
    return lambda scope: (scope["method"], scope["path"]) in allowed


def inside(secret: bytes) -> Callable[[Scope], bool]:
    """Allow executors, whom Flower asks for a secret itself, and operators who show ours."""
    shown = header(secret).encode()

    def allows(scope: Scope) -> bool:
        path: str = scope["path"]
        if path.startswith(_CONTROL):
            return hmac.compare_digest(dict(scope["headers"]).get(SECRET_HEADER.encode(), b""), shown)
        return path.startswith(_RUNTIME) or path == HEALTH

    return allows


def header(secret: bytes) -> str:
    """Derive what operators show from the secret, which itself is never sent."""
    return hmac.new(secret, b"greylag control v1", "sha256").hexdigest()


def make_app(config: LinkConfig, secret: bytes) -> tuple[App, frozenset[str]]:
    """Build Flower's app with node authentication on, and list the paths of the nodes' calls."""
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan  # noqa: PLC0415 - after the environment is set
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin  # noqa: PLC0415
    from flwr.superlink.main import create_app  # noqa: PLC0415
    from flwr.superlink.routers.fleet.router import router  # noqa: PLC0415

    lifespan = SuperLinkLifespanConfig(
        control_address="", health_server_address=None, host="127.0.0.1", port=0, insecure=True, certificates=None,
        superexec_auth_secret=secret, authn_plugin=load_control_authn_plugin(), event_log_plugin=None,
        fleet_event_log_plugin=None, enable_event_log=False, artifact_provider=None, enable_supernode_auth=True,
        fleet_api_type="grpc-rere", fleet_api_address=None, simulation=False, ssl_ca_certfile=None,
        ssl_certfile=None, ssl_keyfile=None, database=str(Path(config.folder, "flower.db")), isolation="process",
        runtime_dependency_install=False,
    )  # fmt: skip
    paths = frozenset(str(route.path) for route in router.routes if hasattr(route, "path"))
    return create_app(lifespan, SuperLinkLifespan), paths


def public_door(app: App, fleet: frozenset[str], **tls: Any) -> "uvicorn.Config":
    """Configure the server of the public port, whose every byte a stranger may have written."""
    import uvicorn  # noqa: PLC0415 - comes with Flower

    from coordinator.fleet.flower.slow_peers import HastyProtocol  # noqa: PLC0415 - as above

    options: dict[str, Any] = {"http": HastyProtocol, "ws": "none", "proxy_headers": False, "lifespan": "off"}
    return uvicorn.Config(Guard(app, outside(fleet), MAX_BODY_BYTES), **options, **_QUIET, **tls)


async def serve(config: LinkConfig, secret: bytes) -> None:
    """Serve both doors until SIGTERM; print where the inner one is."""
    import uvicorn  # noqa: PLC0415 - comes with Flower

    class Quiet(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> "Iterator[None]":
            yield  # two servers share this process; both are told below

    app, fleet = make_app(config, secret)
    inner, outer = _listen("127.0.0.1:0"), _listen(config.listen)
    public = public_door(app, fleet, ssl_certfile=config.certificate, ssl_keyfile=config.key)
    servers = (Quiet(uvicorn.Config(Guard(app, inside(secret)), **_QUIET)), inner), (Quiet(public), outer)

    def stop() -> None:
        for server, _ in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    where = {"inner": inner.getsockname()[1], "outer": outer.getsockname()[1]}
    sys.stdout.write(json.dumps(where) + "\n")
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads on: a full pipe would stop whoever writes to it
    await asyncio.gather(*(server.serve(sockets=[listener]) for server, listener in servers))


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host.strip("[]"), int(port)))
    return listener


def _end_with_parent() -> None:
    """Exit when the process that holds the other end of standard input is gone, however it went."""

    def watch() -> None:
        while sys.stdin.readline():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2 * STOP_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the process."""
    config = LinkConfig(**json.loads(sys.stdin.readline()))
    quiet_flower(Path(config.folder, "home"))
    _end_with_parent()
    asyncio.run(serve(config, Path(config.folder, SECRET).read_bytes()))


if __name__ == "__main__":
    main()
