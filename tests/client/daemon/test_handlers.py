"""What a node does: with a model that was really trained, and answers of a few numbers."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client.daemon import handlers
from client.daemon.handlers import Work
from client.daemon.policy import CampaignLimits, DaemonPolicy, PrivacyBudget
from client.daemon.state import DaemonFolder
from protocol.bundle import open_bundle
from protocol.documents import timestamp
from protocol.errors import Code, Refused
from protocol.fleet.campaign import Calibrating, Order
from protocol.fleet.reply import Reply, read_reply
from protocol.release import ReleasedExpert, ReleaseSpec, sign_candidate, sign_release
from protocol.signing import Identity
from protocol.spec import Routing
from protocol.v1.intake_pb2 import StatusReply
from router.follow.workspace import BUNDLES, Mirror
from router.pool.calibration import Calibration
from tests import factories
from tests.client.conftest import PLANTED, RECIPE, Site, Trained, make_site, write_rows
from tests.client.fake_coordinator import FakeCoordinator, serving

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def order(site: Site, kind: str) -> Order:
    return Order.model_validate(
        {
            "pool": site.pool.digest, "number": 1, "kind": kind, "created": timestamp(NOW),
            "expires": timestamp(NOW + timedelta(hours=1)), "candidate": "2" * 64 if kind == "evaluate" else None,
        }
    )  # fmt: skip


def mirror(trained: Trained, *, empty: bool) -> Mirror:
    listed = () if empty else (ReleasedExpert(name="reverse", contributor="anna", bundle=trained.bundle.digest),)
    site = trained.site
    spec = ReleaseSpec(
        pool=site.pool.digest, number=1, previous=None, experts=listed, routing=site.pool.spec.routing,
        created=timestamp(NOW), expires=timestamp(NOW + timedelta(days=1)),
    )  # fmt: skip
    release = (sign_release if empty else sign_candidate)(spec, site.operator)
    return Mirror(site.pool, release, () if empty else (trained.bundle,))


def test_info_tells_a_bucket(site: Site) -> None:
    reply = Work(DaemonFolder(site.workspace)).answer(order(site, "info"), DaemonPolicy(data=site.data))
    assert reply.words["rows"] == "100 to 1,000"
    assert read_reply("info", reply.text, reply.metrics) == reply


def test_a_candidate_is_scored_against_release_base_and_own_expert(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, place = trained.site, DaemonFolder(trained.site.workspace)
    stale = place.releases / BUNDLES / ("9" * 64)
    stale.mkdir(parents=True)
    monkeypatch.setattr(handlers, "pull_exactly", lambda *_, **__: mirror(trained, empty=False))
    monkeypatch.setattr(handlers, "pull", lambda *_, **__: mirror(trained, empty=True))
    node = Work(place, device="cpu")
    reply = node.answer(order(site, "evaluate"), DaemonPolicy(data=site.data))
    losses = reply.metrics
    assert losses["loss_candidate"] == losses["loss_own"] < losses["loss_base"] == losses["loss_release"]
    assert read_reply("evaluate", reply.text, reply.metrics) == reply
    assert PLANTED not in str(reply)
    assert not stale.exists()


def test_before_the_first_release_there_is_the_base(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> Mirror:
        raise Refused(Code.RELEASE_UNKNOWN, "There is no release yet.")

    site, place = trained.site, DaemonFolder(trained.site.workspace)
    (place.releases / BUNDLES).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(handlers, "pull_exactly", lambda *_, **__: mirror(trained, empty=False))
    monkeypatch.setattr(handlers, "pull", none)
    reply = Work(place, device="cpu").answer(order(site, "evaluate"), DaemonPolicy(data=site.data))
    assert set(reply.metrics) == {"loss_base", "loss_candidate", "loss_own", "seconds"}


def calibrating(site: Site, **task: object) -> Order:
    facts = {
        "strategy": "fedavg", "rounds": 2, "number": 1, "round_minutes": 5.0, "steps": 3, "learning_rate": 0.1,
        "start": None, "numbers": 2 * len(site.pool.spec.modules), **task,
    }  # fmt: skip
    return order(site, "info").model_copy(
        update={"kind": "calibrate", "candidate": "2" * 64, "calibrating": Calibrating.model_validate(facts)}
    )


def change(reply: Reply, start: float = 0.0) -> NDArray[np.float32]:
    return np.frombuffer(reply.update, np.float32) - np.float32(start)


@pytest.mark.parametrize("private", [False, True])
def test_a_round_is_answered_with_numbers_alone(
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
    private: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    site, place = trained.site, DaemonFolder(trained.site.workspace)
    (place.releases / BUNDLES).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(handlers, "pull_exactly", lambda *_, **__: mirror(trained, empty=False))
    node, policy = Work(place, device="cpu"), DaemonPolicy(data=site.data)
    privacy = {"clipping_norm": 0.01, "noise_multiplier": 1.0, "max_epsilon": 8.0, "delta": 1e-5}
    task = calibrating(site, privacy=privacy if private else None)
    reply = node.answer(task, policy)
    assert read_reply("calibrate", reply.text, reply.metrics, reply.update) == reply
    assert (reply.words, set(reply.metrics)) == ({"round": "1"}, {"seconds"})
    modules = len(site.pool.spec.modules)
    learnt = change(reply)
    # One expert alone has all the weight, whatever its bias and temperature.
    assert learnt.shape == (2 * modules,)
    assert not learnt.any()
    assert node.answer(task, policy).update == reply.update
    with pytest.raises(Refused) as refused:
        node.answer(calibrating(site, numbers=5), policy)
    assert refused.value.code is Code.ORDER_INVALID


def furthest(steps: int, rate: float) -> float:
    """Add up Adam's largest steps: |mean| over root mean square, under their weights w and v, by Cauchy-Schwarz."""
    far = 0.0
    for step in range(1, steps + 1):
        w, v = (decay ** np.arange(step) for decay in (0.9, 0.999))
        far += rate * float(np.sqrt(((w / w.sum()) ** 2 / (v / v.sum())).sum()))
    return far


def test_a_round_goes_on_from_the_one_before(trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two experts, so that there is something to learn; and steps that are long enough to be clipped."""
    site, place = trained.site, DaemonFolder(trained.site.workspace)
    (place.releases / BUNDLES).mkdir(parents=True, exist_ok=True)
    one = mirror(trained, empty=False)
    other = factories.make_bundle(tmp_path / "other", site.pool, Identity.generate(), name="other", seed=1)
    listed = (*one.release.spec.experts, ReleasedExpert(name="other", contributor="bob", bundle=other.digest))
    spec = one.release.spec.model_copy(update={"experts": listed})
    both = Mirror(site.pool, sign_candidate(spec, site.operator), (trained.bundle, other))
    start = Calibration.zeros([each.bundle for each in listed], sorted(site.pool.spec.modules))
    start = start.at(np.full_like(start.vector, 0.25))
    monkeypatch.setattr(handlers, "pull_exactly", lambda *_, **__: both)
    monkeypatch.setattr(handlers, "pull_calibration", lambda *_, **__: start)
    node, policy = Work(place, device="cpu"), DaemonPolicy(data=site.data)
    file = {"sha256": start.digest, "size": len(start.content), "campaign": 1}
    task = {"numbers": len(start.vector), "number": 2, "start": file}
    learnt = change(node.answer(calibrating(site, **task), policy), 0.25)
    assert 0 < np.abs(learnt).max() <= furthest(3, 0.1) + 1e-6
    privacy = {"clipping_norm": 0.01, "noise_multiplier": 1.0, "max_epsilon": 8.0, "delta": 1e-5}
    short = change(node.answer(calibrating(site, **task, privacy=privacy), policy), 0.25)
    assert np.linalg.norm(short) == pytest.approx(0.01, rel=1e-3)
    assert short @ learnt == pytest.approx(np.linalg.norm(short) * np.linalg.norm(learnt), rel=1e-3)


def test_another_method_is_not_calibrated(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    site, one = trained.site, mirror(trained, empty=False)
    spec = one.release.spec.model_copy(update={"routing": Routing(method="merged")})
    monkeypatch.setattr(
        handlers, "pull_exactly", lambda *_, **__: Mirror(site.pool, sign_candidate(spec, site.operator), one.bundles)
    )
    with pytest.raises(Refused) as refused:
        Work(DaemonFolder(site.workspace), device="cpu").answer(calibrating(site), DaemonPolicy(data=site.data))
    assert refused.value.code is Code.METHOD_UNKNOWN


def test_a_download_has_bounds(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(*_: object, on_bytes, **__: object) -> Mirror:  # type: ignore[no-untyped-def]  # noqa: ANN001
        on_bytes((1 << 20) + 1)
        raise AssertionError("went on")

    site = trained.site
    monkeypatch.setattr(handlers, "pull_exactly", large)
    policy = DaemonPolicy(data=site.data, limits=CampaignLimits(max_download_mb=1))
    with pytest.raises(Refused) as refused:
        Work(DaemonFolder(site.workspace)).answer(order(site, "evaluate"), policy)
    assert refused.value.code is Code.CONSENT


def test_another_base_is_not_scored(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: object) -> None:
        raise Refused(Code.BASE_MISMATCH, "Another base.")

    monkeypatch.setattr(handlers, "check_base", other)
    site = trained.site
    with pytest.raises(Refused) as refused:
        Work(DaemonFolder(site.workspace)).answer(order(site, "evaluate"), DaemonPolicy(data=site.data))
    assert refused.value.code is Code.BASE_MISMATCH


def test_training_submits_once_however_often_it_is_asked(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = trained.site
    fake = FakeCoordinator(site.pool, site.operator)
    with serving(fake) as address:
        monkeypatch.setenv("GREYLAG_CLIENT_COORDINATOR", address)
        monkeypatch.setattr(handlers, "produce", lambda *_: trained.bundle)
        fake.states = [StatusReply(state="verified")]
        node = Work(DaemonFolder(site.workspace))
        replies = [node.answer(order(site, "train"), DaemonPolicy(data=site.data)) for _ in range(2)]
    assert [reply.words["bundle"] for reply in replies] == [trained.bundle.digest] * 2
    assert list(fake.kept) == [trained.bundle.digest]
    assert PLANTED.encode() not in fake.heard


PRIVATE = PrivacyBudget(epsilon=8.0, delta=1e-3, max_epsilon=8.0)


@pytest.mark.filterwarnings(
    "ignore:Optimal order is the largest alpha"
)  # as in tests/client/training/test_differential_privacy.py
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_private_training_spends_once_and_tells_no_loss(
    tmp_path: Path, t5_base: Path, operator: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE.model_copy(update={"expert_steps": 4, "gate_steps": 2, "eval_every": 2})
    site = make_site(tmp_path, t5_base, factories.make_pool(t5_base, operator, recipe), operator)
    fake, policy = FakeCoordinator(site.pool, operator), DaemonPolicy(data=site.data, privacy=PRIVATE)
    with serving(fake) as address:
        monkeypatch.setenv("GREYLAG_CLIENT_COORDINATOR", address)
        fake.states = [StatusReply(state="verified")]
        node = Work(DaemonFolder(site.workspace), device="cpu")
        replies = [node.answer(order(site, "train"), policy) for _ in range(2)]
        assert len({reply.words["bundle"] for reply in replies}) == len(fake.kept) == 1
        assert all(set(reply.metrics) == {"seconds"} for reply in replies)
        bundle = open_bundle(site.workspace.bundles / "anna")
        assert bundle.spec.privacy == PRIVATE.promise
        write_rows(site.data, rows=130)
        with pytest.raises(Refused, match="8 is spent") as refused:
            node.answer(order(site, "train"), policy)
        assert refused.value.code is Code.BUDGET_EXHAUSTED
        policy = policy.model_copy(update={"privacy": PRIVATE.model_copy(update={"max_epsilon": 16.0})})
        assert node.answer(order(site, "train"), policy).words["bundle"] != bundle.digest


def test_who_promises_privacy_shares_nothing_without_it(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    site, place = trained.site, DaemonFolder(trained.site.workspace)
    (place.releases / BUNDLES).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(handlers, "pull_exactly", lambda *_, **__: mirror(trained, empty=False))
    node, policy = Work(place, device="cpu"), DaemonPolicy(data=site.data, privacy=PRIVATE)
    with pytest.raises(Refused) as refused:
        node.answer(calibrating(site), policy)
    assert refused.value.code is Code.CONSENT
    noisy = {"clipping_norm": 0.01, "noise_multiplier": 1.0, "max_epsilon": 8.0, "delta": 1e-5}
    assert node.answer(calibrating(site, privacy=noisy), policy).update
