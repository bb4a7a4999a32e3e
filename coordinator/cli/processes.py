"""The two processes: `serve` takes bundles in and hands releases out, `worker` judges and publishes."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.output import CertOption, JsonOption, KeyOption, WorkspaceOption, configure_logs
from protocol.programs import print_json, say

if TYPE_CHECKING:
    from coordinator.review.worker import Worker
    from coordinator.workspace.context import Opened

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
    from coordinator.workspace.context import opened
    from coordinator.workspace.locks import exclusive
    from coordinator.workspace.metrics import Metrics
    from coordinator.workspace.paths import CoordinatorWorkspace
    from coordinator.workspace.settings import load

    configure_logs(as_json=json_log)
    place = CoordinatorWorkspace(workspace)
    settings = load(
        place,
        listen=listen,
        tls_cert=tls_cert and tls_cert.absolute(),
        tls_key=tls_key and tls_key.absolute(),
        metrics=metrics,
        fleet_address=fleet,
    )

    def ready(address: str) -> None:
        say(f"Serving pool {open_.pool.spec.name} on {address}; stop with Ctrl-C.")
        if as_json:
            print_json({"address": address, "pool": open_.pool.digest})

    counters = Metrics()
    with (
        exclusive(place, "serve"),
        counters.exposed(settings.metrics),
        opened(place, settings, counters) as open_,
    ):
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

    from coordinator.workspace.context import opened
    from coordinator.workspace.locks import exclusive
    from coordinator.workspace.metrics import Metrics
    from coordinator.workspace.paths import CoordinatorWorkspace
    from coordinator.workspace.settings import load

    configure_logs(as_json=json_log)
    place = CoordinatorWorkspace(workspace)
    settings = load(place, worker_metrics=metrics)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    counters = Metrics()
    with (
        exclusive(place, "worker"),
        counters.exposed(settings.worker_metrics),
        opened(place, settings, counters) as open_,
    ):
        work = _worker(open_)
        say(f"Working for pool {open_.pool.spec.name}.")
        if once:
            while not stopped.is_set() and work.step(stopped):
                pass
        else:
            work.run(stopped, interval_s=settings.worker_interval_s)


def _worker(open_: "Opened") -> "Worker":
    from coordinator.admission import limited_process
    from coordinator.review.bundle_cache import Cache
    from coordinator.review.probe import Model, Reviewer
    from coordinator.review.worker import Worker
    from coordinator.storage.blobs import Store
    from coordinator.workspace.create import read_probe
    from router.base.fingerprint import check_base

    base = open_.settings.base
    check_base(base, open_.pool.spec.base, open_.workspace.fingerprint)
    cache = Cache(open_.workspace.bundles, Store(open_.settings.store))

    def load_model() -> Model:
        from router.model.routed_model import RoutedModel

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
