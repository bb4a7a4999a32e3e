"""Who has the coordinator's duties, over the wire: root after root, each signed by the one before."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from tuf.api.metadata import Metadata, Root

from coordinator.workspace.keyring import Keyring
from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.role_keys import Change, draft_root
from protocol.documents import Duty, Pool
from protocol.errors import Code, Refused
from protocol.roles import chain
from protocol.roles.chain import keep_up, with_duties
from protocol.roles.metadata import Keys, make_root, operators_of, read, sign
from protocol.signing import Identity
from protocol.v1.catalog_pb2_grpc import CatalogStub
from protocol.wire.grpc_client import connect
from tests.coordinator.conftest import Served


@pytest.fixture
def catalog(served: Served) -> Iterator[CatalogStub]:
    with served.running() as address, connect(address) as channel:
        yield CatalogStub(channel)


def draft(served: Served, change: Change) -> Metadata[Root]:
    keyring = Keyring(CoordinatorWorkspace(served.folder))
    return draft_root(keyring, served.roles.root(), served.pool, {}, change, now=served.clock())


def told(pool: Pool) -> list[str]:
    return [pool.key(duty).hex for duty in Duty]


def test_roots_are_followed_and_kept(served: Served, catalog: CatalogStub, tmp_path: Path) -> None:
    pool, folder, now = served.pool, tmp_path / "roots", served.clock()
    assert told(keep_up(pool, folder, catalog, now=now)) == [pool.spec.coordinator] * 3
    served.roles.publish(draft(served, Change(frozenset({"log"}))).to_bytes(), now=now)
    served.roles.publish(draft(served, Change()).to_bytes(), now=now)
    assert told(with_duties(pool, folder)) == [pool.spec.coordinator] * 3, "nobody has asked yet"
    news = keep_up(pool, folder, catalog, now=now)
    log, *others = told(news)
    assert log != pool.spec.coordinator
    assert others == [pool.spec.coordinator] * 2, "what is not replaced stays, also in another year's root"
    assert [key.hex for key in news.keys(Duty.LOG)] == [log, pool.spec.coordinator]
    assert told(with_duties(pool, folder)) == told(news)
    with pytest.raises(Refused) as ended:
        keep_up(pool, folder, catalog, now=now + timedelta(days=400))
    assert ended.value.code is Code.RELEASE_EXPIRED
    with pytest.raises(Refused) as other:
        keep_up(pool, tmp_path / "other", catalog, now=now, first="0" * 64)
    assert other.value.code is Code.UNTRUSTED


def test_so_many_roots_are_read_and_no_more(
    served: Served, catalog: CatalogStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "MOST_ROOTS", 1)
    served.roles.publish(draft(served, Change(frozenset({"log"}))).to_bytes(), now=served.clock())
    for _ in range(2):
        assert told(keep_up(served.pool, tmp_path, catalog, now=served.clock())) == [served.pool.spec.coordinator] * 3
    assert [path.name for path in tmp_path.glob("*.json")] == ["1.json"]


def test_a_coordinator_that_is_gone_is_no_end_of_the_roots(served: Served, tmp_path: Path) -> None:
    with served.running() as address:
        pass
    with connect(address) as channel, pytest.raises(grpc.RpcError):
        keep_up(served.pool, tmp_path / "roots", CatalogStub(channel), now=served.clock())
    assert not (tmp_path / "roots").exists()


def test_operators_of_whom_too_many_must_sign_are_refused(served: Served) -> None:
    root = served.roles.root()
    assert root is not None
    root.signed.unrecognized_fields["x-greylag-operators"] = {"keys": [served.pool.spec.coordinator], "threshold": 2}
    with pytest.raises(Refused, match="1 keys, of which 2 must sign") as refused:
        operators_of(root.signed)
    assert refused.value.code is Code.SPEC_INVALID


@pytest.mark.parametrize(
    ("what", "code"),
    [("own keys alone", Code.BAD_SIGNATURE), ("skipped", Code.SPEC_INVALID), ("duties", Code.SPEC_INVALID)],
)
def test_a_root_that_does_not_follow_is_refused(
    served: Served, catalog: CatalogStub, tmp_path: Path, what: str, code: Code
) -> None:
    now, thief = served.clock(), Identity.generate()
    second = draft(served, Change(frozenset({"log"})))
    if what == "own keys alone":
        second = make_root(served.pool, 2, dict.fromkeys(second.signed.roles, Keys((thief.public,))), now=now)
        sign(second, thief)
    elif what == "skipped":
        second.signed.version = 3
    else:
        second.signed.unrecognized_fields["x-greylag-duties"]["log"] = "0"
    (served.folder / "roles" / "root" / "2.json").write_bytes(second.to_bytes())
    with pytest.raises(Refused) as refused:
        keep_up(served.pool, tmp_path / "roots", catalog, now=now)
    assert refused.value.code is code
    assert not (tmp_path / "roots" / "2.json").exists()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for version in (1, 2):
        raw = (served.folder / "roles" / "root" / f"{version}.json").read_bytes()
        assert read(raw, Root)
        (damaged / f"{version}.json").write_bytes(raw)
    with pytest.raises(Refused, match="damaged"):
        with_duties(served.pool, damaged)
