"""A node that cannot take part says why in its own log, the coordinator reads a code, and the others go on."""

import errno
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from client.daemon import handlers
from client.daemon.app import make_app
from client.daemon.executor import Act
from client.daemon.handlers import Work
from client.daemon.state import DaemonFolder
from coordinator.fleet.campaigns.driver import Driver
from coordinator.fleet.campaigns.start import start
from coordinator.fleet.records.fleet import Fleet
from coordinator.fleet.simulation.local_grid import LocalGrid, VirtualNode
from coordinator.fleet.simulation.simulate import Clock, enrol, propose
from coordinator.registry.registry import Registry
from coordinator.workspace.context import Opened
from coordinator.workspace.keyring import Keyring
from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.settings import Settings
from protocol.documents import Pool
from protocol.errors import Code
from protocol.files.atomic import write_whole
from protocol.fleet.campaign import Kind, Order
from protocol.fleet.reply import Reply
from protocol.settings import dump_settings
from protocol.signing import Identity
from router.follow.workspace import Mirror
from tests.client.conftest import PLANTED, Site, make_site, operator, t5_pool
from tests.client.fake_coordinator import FakeCoordinator, serving

__all__ = ["operator", "t5_pool"]  # fixtures
_S = timedelta(seconds=1)
FORBIDDING = '[campaigns]\ninfo = "never"\ntrain = "never"\nevaluate = "never"\ncalibrate = "never"\n'
OBEYING = '[campaigns]\ntrain = "auto"\nevaluate = "auto"\ncalibrate = "auto"\n'


def answer_well(order: Order) -> Reply:
    if order.calibrating is not None:
        return Reply(words={"round": str(order.calibrating.number)}, update=b"\0" * 4 * order.calibrating.numbers)
    return Reply(
        metrics={
            "info": {"memory_gb": 1.0},
            "train": {"loss": 1.0},
            "evaluate": {"loss_base": 1.0, "loss_candidate": 0.5},
        }[order.kind]
    )


@dataclass
class Village:
    """A coordinator and its nodes, in this process; one node is good."""

    opened: Opened
    clock: Clock = field(default_factory=Clock)
    wire: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.grid, self.fleet = LocalGrid([], on_wire=self.wire.append), Fleet(self.opened.registry)
        self.driver = Driver(self.opened, self.grid.as_run, clock=self.clock)
        app = make_app(self.opened.pool, answer_well, lambda _: None)
        self.grid.nodes.append(VirtualNode(enrol(self.opened, "good"), app))

    def join(self, place: DaemonFolder) -> None:
        act = Act(place, Work(place, device="cpu"))
        node = VirtualNode(enrol(self.opened, "bad"), make_app(self.opened.pool, act, place.say))
        self.grid.nodes.append(node)

    def ask(self, kind: Kind) -> int:
        if kind in ("evaluate", "calibrate"):
            propose(self.opened, self.clock(), experts=2)
        return start(self.opened, kind, open_for=60 * _S, ends_after=3600 * _S, now=self.clock()).number

    def drive(self, until: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not until():
            self.driver.step()
            assert time.monotonic() < end
            time.sleep(0.01)

    def answers(self, number: int) -> dict[str, tuple[str, str]]:
        return {name: (answer.state, answer.code) for answer, name in self.fleet.campaigns.answers(number)}


@pytest.fixture
def site(tmp_path: Path, t5_base: Path, t5_pool: Pool, operator: Identity) -> Iterator[Site]:
    with serving(FakeCoordinator(t5_pool, operator)) as address:
        yield make_site(tmp_path / "bad", t5_base, t5_pool, operator, address)


@pytest.fixture
def place(site: Site) -> DaemonFolder:
    place = DaemonFolder(site.workspace)
    place.prepare()
    place.policy.write_text(f'data = "{site.data}"\n{OBEYING}')
    return place


@pytest.fixture
def village(tmp_path: Path, site: Site) -> Iterator[Village]:
    registry = Registry.open(f"sqlite:///{tmp_path / 'registry.db'}", migrate=True)
    settings = Settings(base="none", database="none", store=str(tmp_path), probe=tmp_path / "none")
    place = CoordinatorWorkspace(tmp_path)
    keyring = Keyring(place, held=(site.operator,))
    village = Village(Opened(place, settings, site.pool, keyring, registry))
    yield village
    village.grid.close()
    registry.close()


Spoil = Callable[[Site, DaemonFolder, pytest.MonkeyPatch, Path], None]


def another_base(site: Site, place: DaemonFolder, patch: pytest.MonkeyPatch, other: Path) -> None:
    settings = site.settings.model_copy(update={"base": str(other)})
    write_whole(site.workspace.settings_file, dump_settings(settings))


def forbids_everything(site: Site, place: DaemonFolder, patch: pytest.MonkeyPatch, other: Path) -> None:
    place.policy.write_text(f'data = "{site.data}"\n{FORBIDDING}')


def no_held_out_rows(site: Site, place: DaemonFolder, patch: pytest.MonkeyPatch, other: Path) -> None:
    site.data.write_text(json.dumps({"input": PLANTED, "target": PLANTED}) + "\n")
    patch.setattr(handlers, "pull_exactly", lambda *_, **__: Mirror(site.pool, None, ()))  # type: ignore[arg-type]
    patch.setattr(handlers, "pull", lambda *_, **__: Mirror(site.pool, None, ()))  # type: ignore[arg-type]


def no_data(site: Site, place: DaemonFolder, patch: pytest.MonkeyPatch, other: Path) -> None:
    site.data.unlink()


def full_disk(site: Site, place: DaemonFolder, patch: pytest.MonkeyPatch, other: Path) -> None:
    def produce(*_: object) -> None:
        raise OSError(errno.ENOSPC, PLANTED)

    patch.setattr(handlers, "produce", produce)


class Case(NamedTuple):
    kind: Kind
    spoil: Spoil
    code: Code
    sentence: str
    state: str = "failed"


CASES = (
    Case("train", another_base, Code.BASE_MISMATCH, "is not the pool's base model"),
    Case("evaluate", another_base, Code.BASE_MISMATCH, "is not the pool's base model"),
    Case("calibrate", another_base, Code.BASE_MISMATCH, "is not the pool's base model"),
    Case("train", forbids_everything, Code.CONSENT, '(train) declined: daemon.toml says train = "never"'),
    Case(
        "evaluate",
        forbids_everything,
        Code.CONSENT,
        '(evaluate) declined: daemon.toml says evaluate = "never"',
    ),
    Case(
        "calibrate",
        forbids_everything,
        Code.CONSENT,
        '(calibrate) declined: daemon.toml says calibrate = "never"',
    ),
    Case("train", no_held_out_rows, Code.DATA_EMPTY, "at least"),
    Case("evaluate", no_held_out_rows, Code.DATA_EMPTY, "at least"),
    Case("train", no_data, Code.DATA_UNREADABLE, "There is no data file"),
    Case("info", no_data, Code.DATA_UNREADABLE, "There is no data file"),
    Case("evaluate", no_data, Code.DATA_UNREADABLE, "There is no data file"),
    Case("calibrate", no_data, Code.DATA_UNREADABLE, "There is no data file"),
    Case("train", full_disk, Code.STORAGE_FULL, "The disk is full", "waiting"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind} {case.spoil.__name__}")
def test_a_node_that_cannot_take_part_says_why_and_the_others_go_on(
    village: Village, site: Site, place: DaemonFolder, monkeypatch: pytest.MonkeyPatch, llama_base: Path, case: Case
) -> None:
    case.spoil(site, place, monkeypatch, llama_base)
    village.join(place)
    number = village.ask(case.kind)
    village.drive(lambda: village.answers(number).get("bad", ("asked", ""))[0] != "asked")
    village.drive(lambda: village.answers(number) == {"good": ("done", ""), "bad": (case.state, case.code.name)})
    assert case.sentence in place.log.read_text()
    village.clock.forward(3600 * _S)
    village.drive(lambda: village.fleet.campaigns.find(number).state == "finished")
    told = f"failed: bad ({case.code.name})" if case.state == "failed" else f"waiting: bad ({case.code.name})"
    assert village.fleet.campaigns.find(number).conclusion.startswith(f"1 answered; {told}.")
    assert not any(PLANTED.encode() in raw for raw in village.wire)


def test_a_node_whose_clock_is_apart_says_so(village: Village, place: DaemonFolder) -> None:
    village.clock.forward(timedelta(days=-2))
    village.join(place)
    number = village.ask("train")
    village.drive(lambda: village.answers(number).get("bad") == ("failed", Code.CLOCKS_APART.name))
    assert "this machine's clock says" in place.log.read_text()
    assert Code.CLOCKS_APART.fate.meaning == "The clocks of node and coordinator are apart."
