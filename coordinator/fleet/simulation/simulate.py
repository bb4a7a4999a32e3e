"""Run one campaign over virtual contributors: some die, some come late, and the registry tells the rest."""

import random
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from coordinator.fleet.campaigns.driver import ASK_AGAIN_S, Driver
from coordinator.fleet.campaigns.start import ENDS_AFTER, OPEN_FOR, start
from coordinator.fleet.records.campaigns import FINAL
from coordinator.fleet.records.fleet import Fleet
from coordinator.fleet.simulation.local_grid import LocalGrid, VirtualNode
from coordinator.fleet.simulation.scratch_pool import Clock, enrol, open_pool, propose
from coordinator.fleet.simulation.virtual_nodes import VirtualApp
from coordinator.workspace.context import Opened
from protocol.errors import Code, Unavailable
from protocol.fleet.campaign import Kind
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
    with open_pool(folder, policy) as opened:
        publics = [enrol(opened, f"node-{number:04}") for number in range(crowd.nodes)]
        app = VirtualApp(opened.pool, dying, crowd.seed)
        grid = LocalGrid([VirtualNode(public, app, up=at not in tardy) for at, public in enumerate(publics)])
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
