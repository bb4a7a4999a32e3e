"""Fifty bad peers beside ten honest ones: who gets through, how fast, and what it costs the server in memory."""

import json
import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from client.submission import submit, upload
from client.submission.join import join
from client.workspace.paths import ClientWorkspace
from deploy.demo.processes import first_document, running
from protocol.bundle import Bundle
from protocol.errors import GreylagError
from protocol.files.atomic import write_whole
from tests.faults.bad_peers import KINDS, pester
from tests.faults.children import Child
from tests.faults.pool import Pool, found, must, tell, wait
from tests.system.proxy import proxied

HONEST, BAD, ROUNDS = 10, 50, 4
WIDTH, RANK, PAUSE_S = 256, 16, 1.0
"""Of the base and of experts, so that a bundle has megabytes; and how long an honest peer rests between two."""
MOST_RATIO, MOST_MB = 3.0, 300.0
_READY_S, _PHASE_S, _WARM_S = 180.0, 120.0, 10.0
_PHASES = ("quiet", "beside")


def play(folder: Path) -> dict[str, Any]:
    """Let honest peers contribute alone, then beside the bad ones.

    Raises:
        RuntimeError: Somebody does not come to an end.
    """
    began = time.monotonic()
    pool = found(folder, width=WIDTH, first_bundles="99")
    tls = ("--tls-cert", pool.authority.certificate, "--tls-key", pool.authority.key)
    words = ("serve", "-w", pool.workspace, "--listen", pool.address, *tls, "--json")
    with ExitStack() as stack:
        log = pool.log("serve")
        server = stack.enter_context(running("coordinator", *words, log=log, environment=pool.settings))
        first_document(server, log)
        process = psutil.Process(server.pid)
        idle = process.memory_info().rss
        places = [folder / f"honest-{number}" for number in range(HONEST)]
        people = [
            Child(contribute, place, pool, f"127.0.1.{number + 1}", log=pool.log(place.name))
            for number, place in enumerate(places)
        ]
        wait(lambda: all((place / "ready").exists() for place in places), _READY_S, "Honest peers do not join.")
        most, spent = 0, dict[str, float]()
        bad: list[Child] = []
        for phase in _PHASES:
            if phase == "beside":
                bad = _let_loose(pool)
                time.sleep(_WARM_S)
            tell(f"{HONEST} honest peers contribute {ROUNDS} times each: {phase}.")
            (folder / phase).touch()
            end, used = time.monotonic() + _PHASE_S, sum(process.cpu_times()[:2])
            while not all((place / f"{phase}.json").exists() for place in places):
                must(time.monotonic() < end, f"Honest peers do not come to an end: {phase}.")
                most = max(most, process.memory_info().rss)
                time.sleep(0.1)
            spent[phase] = round(sum(process.cpu_times()[:2]) - used, 1)
        for child in bad:
            child.kill()
        for place, person in zip(places, people, strict=True):
            must(person.ended(30) == 0, f"{place.name} ended with {person.status}.")
    took = {phase: [json.loads((place / f"{phase}.json").read_text()) for place in places] for phase in _PHASES}
    return _report(took, spent, (most - idle) / 1e6, _did(folder)) | {"seconds": round(time.monotonic() - began, 1)}


def _let_loose(pool: Pool) -> list[Child]:
    each = BAD // len(KINDS)
    sources = [[f"127.0.0.{2 + kind * each + number}" for number in range(each)] for kind in range(len(KINDS))]
    return [
        Child(pester, kind, mine, pool.port, pool.authority.ca, pool.folder / f"bad-{kind}.json", log=pool.log("bad"))
        for kind, mine in enumerate(sources)
    ]


def _report(
    took: dict[str, list[list[float | None]]], spent: dict[str, float], memory_mb: float, did: dict[str, int]
) -> dict[str, Any]:
    """Compare each peer's slowest contribution with the median of its quiet ones."""
    quiet = [[seconds for seconds in each if seconds] for each in took["quiet"]]
    must(all(quiet), "Somebody cannot contribute although nobody is in the way.")
    beside = [[seconds for seconds in each if seconds] for each in took["beside"]]
    ratios = [max(late, default=0.0) / median(usual) for late, usual in zip(beside, quiet, strict=True)]
    return {
        "bad": BAD, "honest": HONEST, "contributions": HONEST * ROUNDS,
        "succeeded": sum(len(each) == ROUNDS for each in beside),
        "quiet_s": round(median(seconds for each in quiet for seconds in each), 2),
        "quiet_worst_s": round(max(seconds for each in quiet for seconds in each), 2),
        "beside_s": round(median(seconds for each in beside for seconds in each), 2) if any(beside) else None,
        "beside_worst_s": round(max((seconds for each in beside for seconds in each), default=0.0), 2),
        "ratio": round(max(ratios), 2), "median_ratio": round(median(ratios), 2),
        "memory_mb": round(memory_mb, 1), "serve_cpu_s": spent, "did": did,
    }  # fmt: skip


def is_kept(report: dict[str, Any]) -> bool:
    """Tell whether every honest contribution succeeded, in time, and the server stayed small."""
    return report["succeeded"] == report["honest"] and report["ratio"] <= MOST_RATIO and report["memory_mb"] <= MOST_MB


def _did(folder: Path) -> dict[str, int]:
    did: Counter[str] = Counter()
    for path in folder.glob("bad-*.json"):
        did.update(json.loads(path.read_text()))
    return dict(sorted(did.items()))


def contribute(place: Path, pool: Pool, source: str) -> None:
    """Be an honest peer with an address of its own, and write down how long its contributions took in each phase."""
    from tests import factories  # noqa: PLC0415 - torch, which is there already

    place.mkdir()
    with proxied(pool.port, source=source) as proxy:
        address, ca = f"127.0.0.1:{proxy.port}", pool.authority.ca
        space, coordinator = ClientWorkspace(place), upload.Coordinator(address, ca, _PHASE_S)
        flags = {"coordinator": address, "ca": ca, "base": str(pool.base), "name": place.name}
        join(space, flags, datetime.now(UTC))
        identity, seed = space.identity(), int(place.name.rpartition("-")[2]) * 100
        bundles = [
            factories.make_bundle(
                space.bundles / str(at), space.pool, identity, name=f"e{at}", rank=RANK, seed=seed + at
            )
            for at in range(ROUNDS * len(_PHASES))
        ]
        (place / "ready").touch()
        for phase in _PHASES:
            wait((pool.folder / phase).exists, _READY_S + _PHASE_S, "Nobody says when.")
            took = [_send(space, bundles.pop(), coordinator) for _ in range(ROUNDS)]
            write_whole(place / f"{phase}.json", json.dumps(took).encode())


def _send(space: ClientWorkspace, bundle: Bundle, coordinator: upload.Coordinator) -> float | None:
    """Contribute once, rest, and return how long it took in seconds; None for a failure."""
    start = time.monotonic()
    try:
        enrolment = submit.enrolment_for(space, bundle, datetime.now(UTC), keep=True)
        submit.send(space, bundle, enrolment, coordinator, lambda _: None)
    except GreylagError as error:
        tell(f"{error.code.name}: {error.message}")
        return None
    else:
        return time.monotonic() - start
    finally:
        time.sleep(PAUSE_S)
