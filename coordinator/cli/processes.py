"""The two processes: `serve` takes bundles in and hands releases out, `worker` judges and publishes."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.cli.output import CertOption, JsonOption, KeyOption, WorkspaceOption
from protocol.programs import configure_logs, print_json, say

if TYPE_CHECKING:
    from coordinator.review.worker import Worker
    from coordinator.workspace.context import Opened
    from coordinator.workspace.metrics import Metrics
    from router.model.routed_model import RoutedModel

MetricsOption = Annotated[
    str | None, typer.Option(help="host:port where GET /metrics answers, in plain HTTP; default: nowhere.")
]
JsonLogOption = Annotated[bool, typer.Option("--json-log", help="Write log lines as JSON.")]


def serve(
    *,
    listen: Annotated[
        str | None, typer.Option(help="host:port; port 0 takes a free one; default: that of coordinator.toml.")
    ] = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    fleet: Annotated[str | None, typer.Option(help="host:port of `fleet`, which daemons are told.")] = None,
    metrics: MetricsOption = None,
    json_log: JsonLogOption = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Take bundles from contributors and hand releases to routers, until SIGTERM.

    Example: greylag-coordinator serve -w pool --tls-cert cert.pem --tls-key key.pem
    """
    from coordinator.serving.server import serve_workspace

    def ready(address: str) -> None:
        say(f"Serving pool {open_.pool.spec.name} on {address}; stop with Ctrl-C.")
        if as_json:
            print_json({"address": address, "pool": open_.pool.digest})

    flags = {"listen": listen, "tls_cert": tls_cert, "tls_key": tls_key, "metrics": metrics, "fleet_address": fleet}
    with _working(workspace, "serve", json_log=json_log, **flags) as (open_, counters):
        serve_workspace(open_, counters, clock=_now, on_ready=ready)


def worker(
    *,
    once: Annotated[bool, typer.Option("--once", help="Do what there is to do, then end.")] = False,
    metrics: MetricsOption = None,
    json_log: JsonLogOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Judge bundles, try experts on the model and publish releases, until SIGTERM.

    Example: greylag-coordinator worker -w pool
    """
    import signal
    import threading

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with _working(workspace, "worker", json_log=json_log, worker_metrics=metrics) as (open_, _):
        work = _worker(open_)
        say(f"Working for pool {open_.pool.spec.name}.")
        if once:
            while not stopped.is_set() and work.step(stopped):
                pass
        else:
            work.run(stopped, interval_s=open_.settings.worker_interval_s)


@contextmanager
def _working(folder: Path, process: str, *, json_log: bool, **flags: Any) -> "Iterator[tuple[Opened, Metrics]]":
    """Be the one process of a kind in a workspace, if its registry knows all that left it."""
    from coordinator.workspace.context import opened
    from coordinator.workspace.locks import exclusive
    from coordinator.workspace.metrics import Metrics
    from coordinator.workspace.paths import CoordinatorWorkspace
    from coordinator.workspace.settings import load

    configure_logs(as_json=json_log)
    place, counters = CoordinatorWorkspace(folder), Metrics()
    settings = load(
        place, **{name: flag.absolute() if isinstance(flag, Path) else flag for name, flag in flags.items()}
    )
    address = settings.metrics if process == "serve" else settings.worker_metrics
    with exclusive(place, process), counters.exposed(address), opened(place, settings, counters) as open_:
        open_.high_water.check()
        open_.high_water.level()
        yield open_, counters


def _worker(open_: "Opened") -> "Worker":
    from coordinator.admission import limited_process
    from coordinator.review.bundle_cache import Cache
    from coordinator.review.probe import Reviewer
    from coordinator.review.worker import Worker
    from coordinator.storage.blobs import Store
    from coordinator.workspace.create import read_probe
    from router.base.fingerprint import check_base

    base = open_.settings.base
    check_base(base, open_.pool.spec.base, open_.workspace.fingerprint)
    cache = Cache(open_.workspace.bundles, Store(open_.settings.store))

    def load_model() -> "RoutedModel":
        from router.base.progress import show_bars
        from router.model.routed_model import RoutedModel

        show_bars()
        return RoutedModel.from_base(base)

    return Worker(
        open_.pool,
        open_.identity,
        open_.registry,
        cache=cache,
        check=lambda bundle: limited_process.check(bundle.folder, open_.workspace.pool),
        reviewer=Reviewer(load_model, open_.registry, cache, read_probe(open_.settings.probe)),
        clock=_now,
    )


def _now() -> datetime:
    return datetime.now(UTC)
