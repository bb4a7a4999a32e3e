"""Run one campaign over virtual contributors: some die, some come late, and the registry tells the rest."""

import pkgutil
import random
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from flwr.clientapp import ClientApp

from coordinator.fleet.campaigns.driver import ASK_AGAIN_S, Driver
from coordinator.fleet.campaigns.start import ENDS_AFTER, OPEN_FOR, start
from coordinator.fleet.records.campaigns import FINAL
from coordinator.fleet.records.fleet import Fleet
from coordinator.fleet.simulation.local_grid import LocalGrid, VirtualNode
from coordinator.fleet.simulation.scratch_pool import Clock, enrol, open_pool, propose
from coordinator.workspace.context import Opened
from protocol.errors import Code, Unavailable
from protocol.fleet.campaign import CLIENT_APP, Kind, Order
from protocol.fleet.reply import Reply
from protocol.spec import Policy

LIMIT_S = 600.0
"""Longest simulation, in seconds."""
_PAUSE_S = 0.02
_ABOUT_EXPERTS: dict[Kind, int] = {"evaluate": 0, "calibrate": 2}
"""How many experts a candidate lists that virtual nodes are asked about."""


@dataclass(frozen=True)
class Crowd:
    """How many virtual contributors, and what is wrong with them."""

    nodes: int
    failing: float = 0.0
    """Share of nodes that die over every message."""
    late: float = 0.0
    """Share of nodes that come only after the first round."""
    seed: int = 0
    """Of who fails, who is late, and the figures that nodes tell."""


def simulate(folder: Path, kind: Kind, crowd: Crowd, policy: Policy | None = None) -> dict[str, Any]:
    """Run a campaign over virtual nodes to its end; whenever nobody is at work, the clock jumps ahead.

    Args:
        folder: Where the registry goes.
        kind: Of the campaign.
        crowd: The virtual contributors.
        policy: The pool's; that of a new pool, unless given.

    Raises:
        Unavailable: `BUSY` if it does not come to an end.
    """
    draw = random.Random(crowd.seed)  # noqa: S311 - no secret
    order = draw.sample(range(crowd.nodes), crowd.nodes)
    dying, tardy = order[: round(crowd.failing * crowd.nodes)], order[len(order) - round(crowd.late * crowd.nodes) :]
    clock, began, peak = Clock(), time.monotonic(), 0
    # Found by the name that campaigns give it: a coordinator's code knows nothing of the client's.
    make_app: Callable[..., ClientApp] = pkgutil.resolve_name(CLIENT_APP)
    with open_pool(folder, policy) as opened:
        publics = [enrol(opened, f"node-{number:04}") for number in range(crowd.nodes)]
        apps = [make_app(opened.pool, partial(answer, f"{crowd.seed}-{at}"), str) for at in range(crowd.nodes)]
        nodes = zip(publics, apps, strict=True)
        grid = LocalGrid([VirtualNode(*node, up=at not in tardy, dies=at in dying) for at, node in enumerate(nodes)])
        try:
            if kind in _ABOUT_EXPERTS:
                propose(opened, clock(), _ABOUT_EXPERTS[kind])
            number = start(opened, kind, open_for=OPEN_FOR, ends_after=ENDS_AFTER, now=clock()).number
            driver, fleet = Driver(opened, grid.as_run, clock=clock), Fleet(opened.registry)
            while fleet.campaigns.find(number).state == "running":
                driver.step()
                peak = max(peak, psutil.Process().memory_info().rss)
                if not any(answer.state == "asked" for answer, _ in fleet.campaigns.answers(number)):
                    for at in tardy:
                        grid.nodes[at].up = True
                    clock.forward(timedelta(seconds=ASK_AGAIN_S))
                if time.monotonic() - began > LIMIT_S:
                    raise Unavailable(Code.BUSY, f"The simulation does not end within {LIMIT_S:.0f} s.")
                time.sleep(_PAUSE_S)
        finally:
            grid.close()
        facts = {"nodes": crowd.nodes, "failing": len(dying), "late": len(tardy)}
        seconds = round(time.monotonic() - began, 1)
        return facts | _outcome(opened, number) | {"seconds": seconds, "peak_mb": peak >> 20}


def answer(seed: str, order: Order) -> Reply:
    """Draw an answer to an order, as the schema of its kind wants it."""
    draw = random.Random(f"{seed}-{order.number}")  # noqa: S311 - no secret
    base = draw.uniform(2.0, 3.0)
    if order.kind == "train":
        metrics = {"loss": round(base, 4), "seconds": round(draw.uniform(60, 3600), 1)}
        return Reply(words={"bundle": f"{draw.getrandbits(256):064x}"}, metrics=metrics)
    if order.kind == "evaluate":
        losses = {"loss_base": base, "loss_candidate": base - draw.gauss(0.1, 0.05)}
        return Reply(words={"rows": "100 to 1,000"}, metrics={name: round(loss, 4) for name, loss in losses.items()})
    if order.calibrating is not None:
        numbers = array("f", (draw.gauss(0, 0.1) for _ in range(order.calibrating.numbers)))
        return Reply(words={"round": str(order.calibrating.number)}, metrics={"seconds": 1.0}, update=numbers.tobytes())
    return Reply(words={"device": "cpu", "rows": "100 to 1,000"}, metrics={"memory_gb": round(draw.uniform(4, 64), 1)})


def _outcome(opened: Opened, number: int) -> dict[str, Any]:
    fleet = Fleet(opened.registry)
    row, answers = fleet.campaigns.find(number), fleet.campaigns.answers(number)
    ended = {name for answer, name in answers if answer.state in FINAL}
    return {
        "kind": row.kind,
        "answered": sum(answer.state == "done" for answer, _ in answers),
        "failed": [name for answer, name in answers if answer.state == "failed"],
        "silent": [name for _, name in fleet.nodes.all() if name not in ended],
        "conclusion": row.conclusion,
    }
