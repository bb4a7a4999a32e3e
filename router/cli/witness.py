"""The verb `witness`."""

from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import Unavailable
from protocol.programs import print_json, put, say
from router.cli.options import Ca, Json, Workspace

PoolKey = Annotated[
    str | None,
    typer.Option(help="The key that must sign the pool, 64 hexadecimal digits; default: the key seen first."),
]


def witness(
    *,
    coordinator: Annotated[str, typer.Option(help="The coordinator, host:port.")],
    name: Annotated[str, typer.Option(help="What the witness is called, such as witness.example.org/w1.")],
    pool_key: PoolKey = None,
    ca: Ca = None,
    interval_s: Annotated[float, typer.Option(min=0, help="Seconds between two looks.")] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="Sign once, then end.")] = False,
    json_: Json = False,
    workspace: Workspace = Path(),
) -> None:
    """Sign for a pool's log as long as it only grows, until SIGTERM; print the key by which readers name the witness.

    It ends where the log does not continue what it has signed for: somebody should look.

    Example: greylag-router witness -w seen --coordinator pool.example.org:7443 --name witness.example.org/w1
    """
    import signal
    import threading
    from datetime import UTC, datetime

    from protocol.signing import PublicKey
    from router.follow.witness import Witness

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    own = Witness(workspace, name)
    if not json_:
        put(str(own.key))
    trusted, size = PublicKey.from_hex(pool_key) if pool_key else None, -1
    while not stopped.is_set():
        try:
            signed = own.look(coordinator, clock=lambda: datetime.now(UTC), ca=ca, pool_key=trusted, say=say)
        except Unavailable as error:
            if once:
                raise
            say(f"{error.message} Trying again.")
        else:
            if signed.size != size:
                say(f"Signed for {signed.size} entries.")
            size = signed.size
        if once:
            break
        stopped.wait(interval_s)
    if json_:
        print_json({"key": str(own.key), "size": size})
