"""The process `fleet`: what one node or one candidate is wrong with keeps nothing else from going on."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update

from coordinator.fleet import service
from coordinator.fleet.campaigns.start import start
from coordinator.fleet.flower import client
from coordinator.fleet.flower.gateway import Guard, inside
from coordinator.fleet.simulation.simulate import enrol, open_pool, propose
from coordinator.registry.tables import Candidate, Node
from tests.coordinator.fleet.campaigns.test_driver import Town, good
from tests.stock import FLOWERS_OWN, SECRET, make_link, served

pytestmark = FLOWERS_OWN


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[client.Superlink]:
    app, _ = make_link(tmp_path)
    with served(Guard(app, inside(SECRET))) as port, closing(client.Superlink(port, SECRET)) as superlink:
        yield superlink


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    with open_pool(tmp_path) as opened:
        town = Town(opened)
        yield town
        town.grid.close()


def test_one_key_that_flower_does_not_take_keeps_nobody_out(town: Town, superlink: client.Superlink) -> None:
    bad, good_ones = enrol(town.opened, "ada"), {enrol(town.opened, name) for name in ("bob", "carl")}
    with town.opened.registry.writing() as session:
        session.execute(update(Node).where(Node.public == bad).values(public="rotten"))
    told: dict[str, str] = {}
    for _ in range(2):
        service.step(town.opened, superlink, town.driver, told, now=town.clock())
        assert {node.public_key.decode() for node in superlink.nodes()} == good_ones
    assert told.keys() == good_ones


def test_an_answer_that_never_came_is_asked_for_again(
    town: Town, superlink: client.Superlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, register = {enrol(town.opened, name) for name in ("ada", "bob")}, superlink.register
    cut = [httpx.ReadTimeout("too late")]

    def once(public: str, name: str) -> None:
        if cut:
            raise cut.pop()
        register(public, name)

    monkeypatch.setattr(superlink, "register", once)
    told: dict[str, str] = {}
    with pytest.raises(httpx.ReadTimeout):
        service.step(town.opened, superlink, town.driver, told, now=town.clock())
    service.step(town.opened, superlink, town.driver, told, now=town.clock())
    assert {node.public_key.decode() for node in superlink.nodes()} == nodes


def test_one_candidate_that_cannot_be_read_stops_no_campaign(town: Town, superlink: client.Superlink) -> None:
    due = replace(town.opened, settings=town.opened.settings.model_copy(update={"evaluate_after_minutes": 0}))
    propose(town.opened, town.clock())
    with town.opened.registry.writing() as session:
        session.execute(update(Candidate).values(envelope=b"rotten"))
    town.join("ada", good)
    minute = timedelta(minutes=1)
    number = start(town.opened, "info", open_for=minute, ends_after=minute, now=town.clock()).number
    service.step(due, superlink, town.driver, {}, now=town.clock())
    assert town.states(number) == {"ada": "asked"}
