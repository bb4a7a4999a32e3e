"""The processes: `serve` takes bundles in and hands releases out, `worker` judges, `fleet` asks contributors."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.cli.options import CertOption, JsonLogOption, JsonOption, KeyOption, MetricsOption, WorkspaceOption
from coordinator.cli.output import now, opened_workspace, stop_signal
from protocol.programs import print_json, say

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from coordinator.review.bundle_cache import Cache
    from coordinator.review.worker import Worker
    from coordinator.workspace.context import Opened
    from coordinator.workspace.metrics import Metrics
    from router.model.routed_model import RoutedModel


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
        serve_workspace(open_, counters, clock=now, on_ready=ready)


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
    stopped = stop_signal()
    with _working(workspace, "worker", json_log=json_log, worker_metrics=metrics) as (open_, _):
        work = _worker(open_)
        say(f"Working for pool {open_.pool.spec.name}.")
        if once:
            while not stopped.is_set() and work.step(stopped):
                pass
        else:
            work.run(stopped, interval_s=open_.settings.worker_interval_s)


def fleet(
    *,
    listen: Annotated[
        str | None, typer.Option(help="host:port for daemons; default: fleet_listen of coordinator.toml.")
    ] = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    ask_again: Annotated[
        float, typer.Option(min=0, help="Seconds before a node that could not answer is asked again.")
    ] = 60.0,
    json_log: JsonLogOption = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Take contributors' daemons in and run campaigns with them, until SIGTERM.

    Example: greylag-coordinator fleet -w pool --listen pool.example.org:7445 --tls-cert cert.pem --tls-key key.pem
    """
    from coordinator.fleet.flower.gateway import quiet_flower

    quiet_flower(workspace.resolve() / "fleet" / "home")
    from coordinator.fleet.service import run

    stopped = stop_signal()
    flags: dict[str, Any] = {"fleet_listen": listen, "tls_cert": tls_cert, "tls_key": tls_key}

    def ready(port: int) -> None:
        say(f"Taking daemons of pool {open_.pool.spec.name} on port {port}; stop with Ctrl-C.")
        if as_json:
            print_json({"port": port, "pool": open_.pool.digest})

    with opened_workspace(workspace, "fleet", json_log=json_log, **flags) as open_:
        open_.high_water.check()
        pause_s = open_.settings.worker_interval_s
        run(open_, stopped, clock=now, on_ready=ready, interval_s=pause_s, ask_again_s=ask_again)


@contextmanager
def _working(folder: Path, process: str, *, json_log: bool, **flags: Any) -> "Iterator[tuple[Opened, Metrics]]":
    """Be the one process of a kind in a workspace, if its registry knows all that left it."""
    from coordinator.workspace.metrics import Metrics

    counters = Metrics()
    with (
        opened_workspace(folder, process, json_log=json_log, counters=counters, **flags) as open_,
        counters.exposed(open_.settings.metrics if process == "serve" else open_.settings.worker_metrics),
    ):
        open_.high_water.check()
        open_.high_water.level()
        open_.roles.check()
        yield open_, counters


def load_model(open_: "Opened", cache: "Cache") -> "RoutedModel":
    """Load the base, without experts, to route as the pool says."""
    from router.model.routed_model import RoutedModel

    model = RoutedModel.from_base(open_.settings.base, dtype=open_.settings.dtype, cache=open_.workspace.fingerprint)
    model.route_as(open_.pool.spec.routing, cache.statistics(open_.pool.spec.statistics))
    return model


def _worker(open_: "Opened", clock: "Callable[[], datetime]" = now) -> "Worker":
    from coordinator.admission.limited_process import ProcessLimits
    from coordinator.review.bundle_cache import Cache
    from coordinator.review.copies import PURPOSE, Copies
    from coordinator.review.kept_figures import KeptFigures
    from coordinator.review.probe import Reviewer
    from coordinator.review.worker import Worker
    from coordinator.storage.blobs import Store
    from coordinator.workspace.create import read_probe
    from coordinator.workspace.material import read_material
    from protocol.documents import Duty
    from router.base.fingerprint import check_base

    settings, place, review = open_.settings, open_.workspace, open_.pool.spec.policy.review
    check_base(settings.base, open_.pool.spec.base, place.fingerprint)
    material = read_material(read_probe(settings.probe), settings.rows, settings.canaries, review.canaries)
    store = Store(settings.store)
    cache = Cache(place.bundles, store)

    return Worker(
        open_.pool, open_.signer(Duty.RELEASES), open_.registry, cache=cache, clock=clock,
        checkpoint=open_.checkpoints.newest,
        check=Copies(
            open_.pool, place.pool, open_.registry, cache, open_.sketch_secret(PURPOSE),
            ProcessLimits(wall_s=settings.review_s),
        ).check,
        reviewer=Reviewer(
            partial(load_model, open_, cache), open_.registry, cache, material=material, review=review,
            seconds=settings.review_s, kept=KeptFigures(place.figures, f"{material.digest[:16]}-{settings.dtype}"),
        ),
    )  # fmt: skip
