"""Uploads whose time is over: their bytes and their rows go together."""

import threading
from pathlib import Path

import pytest

from protocol.bundle import CARD, Bundle
from protocol.signing import Identity
from tests import factories
from tests.coordinator.conftest import Served
from tests.coordinator.serving.conftest import Join


@pytest.mark.parametrize("first", ["dies", "drops"])
def test_a_crash_among_expired_uploads_is_healed_by_a_restart(
    served: Served, join: Join, identity: Identity, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Whoever expires an upload dies before or after its bytes are gone; the row is there until they are."""
    ada = join(identity)
    ada.begin(bundle)
    served.clock.forward(hours=25)
    drop = served.spool.drop

    def die(digest: str) -> None:
        if first == "drops":
            drop(digest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(served.spool, "drop", die)
        with pytest.raises(KeyboardInterrupt):
            served.intake.begin(bundle.manifest.envelope)
    assert served.registry.uploads.digests() == {bundle.digest}, "bytes that are there belong to somebody"
    served.intake.sweep()
    assert (served.registry.uploads.digests(), list(served.spool._folder.iterdir())) == (set(), [])
    begun = ada.begin(bundle)
    ada.put(bundle, begun)
    assert ada.commit(begun)


def test_who_begins_again_while_his_upload_expires_keeps_his_bytes(
    served: Served, join: Join, identity: Identity, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = join(identity)
    ada.begin(bundle)
    served.clock.forward(hours=25)
    other = factories.make_bundle(tmp_path / "other", served.pool, identity, name="other", seed=7)
    drop, began, again = served.spool.drop, threading.Event(), list[threading.Thread]()

    def begin_again() -> None:
        served.intake.begin(bundle.manifest.envelope)
        began.set()

    def slowly(digest: str) -> None:
        if not again:
            again.append(threading.Thread(target=begin_again))
            again[0].start()
            began.wait(0.3)
        drop(digest)

    monkeypatch.setattr(served.spool, "drop", slowly)
    served.intake.begin(other.manifest.envelope)
    again[0].join(20)
    assert served.spool.path(bundle.digest, CARD).exists()
