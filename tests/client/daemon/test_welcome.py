"""What a daemon asks before it trains for hours."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.daemon import handlers
from client.daemon.handlers import Work
from client.daemon.policy import DaemonPolicy
from client.daemon.state import DaemonFolder
from client.submission import outbox
from protocol.bundle import Bundle
from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.v1.intake_pb2 import StatusReply
from tests.client.conftest import Site, make_site
from tests.client.fake_coordinator import FakeCoordinator, serving


class Asked:
    """A node that is asked to train, at a coordinator's that answers."""

    def __init__(self, site: Site, fake: FakeCoordinator) -> None:
        self.site, self.fake, self.trained = site, fake, 0
        self.superseded: list[str | None] = []

    def produce(self, *_: object) -> Bundle:
        self.trained += 1
        self.superseded.append(outbox.predecessor(outbox.load(self.site.workspace.outbox), "anna"))
        raise Refused(Code.DATA_EMPTY, "So far, and no further.")

    def train(self) -> Code:
        with pytest.raises(GreylagError) as raised:
            Work(DaemonFolder(self.site.workspace)).train(DaemonPolicy(data=self.site.data))
        return raised.value.code

    def submitted(self, name: str, state: str = "received") -> str:
        digest = f"{len(list(self.site.workspace.outbox.glob('*'))) + 1:064x}"
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        facts = {"schema": 1, "digest": digest, "name": name, "sequence": int(digest, 16), "received": now}
        outbox.save(self.site.workspace.outbox, outbox.Record.model_validate(facts | {"receipt": "", "state": state}))
        return digest


@pytest.fixture
def asked(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    fake = FakeCoordinator(site.pool, site.operator)
    with serving(fake) as address:
        here = make_site(tmp_path / "here", site.base, site.pool, site.operator, address)
        asked = Asked(here, fake)
        monkeypatch.setattr(handlers, "produce", asked.produce)
        yield asked


@pytest.mark.parametrize(
    "error",
    [
        Refused(Code.KEY_REVOKED, "The key was revoked."),
        Refused(Code.NAME_TAKEN, "The name belongs to another contributor."),
    ],
)
def test_nobody_trains_for_a_coordinator_that_would_not_take_it(asked: Asked, error: GreylagError) -> None:
    asked.fake.fail["Enrol"] = [error]
    assert (asked.train(), asked.trained) == (error.code, 0)
    assert (asked.train(), asked.trained) == (Code.DATA_EMPTY, 1)


def test_where_nobody_answers_training_goes_on(asked: Asked) -> None:
    asked.fake.fail["Enrol"] = [Unavailable(Code.STORAGE_FULL, "Not now.")]
    assert (asked.train(), asked.trained) == (Code.DATA_EMPTY, 1)


def test_nobody_trains_with_a_key_that_waits(asked: Asked) -> None:
    asked.fake.key_state = "pending"
    assert (asked.train(), asked.trained) == (Code.KEY_PENDING, 0)


def test_nobody_trains_where_there_is_no_room(asked: Asked) -> None:
    limit = asked.site.pool.spec.policy.max_experts_per_contributor
    asked.fake.states = [StatusReply(state="released")]
    for at in range(limit - 1):
        asked.submitted(f"other-{at}")
    asked.submitted("gone", "yanked")
    asked.submitted("anna")
    assert (asked.train(), asked.trained) == (Code.DATA_EMPTY, 1)  # its own name has its place
    asked.submitted("one-too-many")
    assert (asked.train(), asked.trained) == (Code.QUOTA, 1)


def test_after_a_refusal_the_next_bundle_supersedes_what_really_holds_the_name(asked: Asked) -> None:
    first = asked.submitted("anna", "released")
    second = asked.submitted("anna")
    asked.fake.states = [StatusReply(state="released"), StatusReply(state="refused", code="NOT_FINITE")]
    asked.train()
    states = {record.digest: record.state for record in outbox.load(asked.site.workspace.outbox)}
    assert states == {first: "released", second: "refused"}
    assert asked.superseded == [first]


def test_a_bundle_that_the_coordinator_has_lost_holds_nobody_up(asked: Asked) -> None:
    asked.submitted("anna")
    asked.fake.fail["Status"] = [Refused(Code.BUNDLE_UNKNOWN, "No bundle.")]
    assert (asked.train(), asked.trained) == (Code.DATA_EMPTY, 1)
