"""Joining a pool that takes new keys by invitation."""

from pathlib import Path

import pytest

from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.signing import Identity
from tests import factories
from tests.client.cli.test_main import files_of
from tests.client.conftest import RECIPE, Cli
from tests.client.fake_coordinator import FakeCoordinator

TOKEN = "3f9a0c21-" + "ab" * 16


@pytest.fixture(scope="module")
def t5_pool(t5_base: Path, operator: Identity) -> Pool:
    return factories.make_pool(t5_base, operator, RECIPE, enrolment="invite")


@pytest.fixture
def init(address: str, t5_base: Path, tmp_path: Path) -> tuple[object, ...]:
    return ("init", "--coordinator", address, "--base", t5_base, "--name", "anna", "-w", tmp_path / "w")


def test_the_token_goes_to_the_coordinator_and_stays_nowhere(
    cli: Cli, init: tuple[object, ...], fake: FakeCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYLAG_INVITE", TOKEN)
    status, key, _ = cli(*init)
    assert (status, fake.names, fake.calls) == (0, {key.strip(): "anna"}, ["GetPool", "Enrol"])
    assert TOKEN.encode() in fake.heard
    assert [path for path in (tmp_path / "w").iterdir() if TOKEN.encode() in path.read_bytes()] == []


def test_a_refused_invite_leaves_no_workspace_but_the_key(
    cli: Cli, init: tuple[object, ...], fake: FakeCoordinator, tmp_path: Path
) -> None:
    """The reply to an earlier try may have been lost: then this key is in, and no other can come by that invite."""
    fake.fail["Enrol"] = [Refused(Code.INVITE, "There is no such invite.")]
    assert cli(*init, "--invite", TOKEN)[0] == Code.INVITE.fate.exit
    assert files_of(tmp_path / "w") == {"contributor.key", "base.json"}
    key = (tmp_path / "w" / "contributor.key").read_bytes()
    assert cli(*init)[0] == 0, "a key that is in needs no invite"
    assert (tmp_path / "w" / "contributor.key").read_bytes() == key
