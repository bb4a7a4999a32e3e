"""A running model goes over to releases as they come, and reads nothing twice."""

import errno
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from protocol.bundle import ADAPTER_WEIGHTS, Bundle
from protocol.errors import Code, Refused, Unavailable
from protocol.files.atomic import write_whole
from protocol.release import sign_release
from protocol.spec import Routing
from router.follow import pull as pulling
from router.follow.pull import pull
from router.follow.workspace import RELEASE, Mirror, open_mirror
from router.model.releases import KEPT
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from router.serving.follower import Follower
from tests.router.catalog import Catalog, serving


@pytest.fixture
def model(t5_base: Path) -> RoutedModel:
    return RoutedModel.from_base(str(t5_base), device="cpu")


@pytest.fixture
def follower(model: RoutedModel, address: str, tmp_path: Path) -> Follower:
    return Follower(model, partial(pull, tmp_path / "node", address), interval_s=10)


def test_a_running_model_follows(
    catalog: Catalog, bundles: list[Bundle], model: RoutedModel, follower: Follower
) -> None:
    assert not follower.step()  # nothing is released yet
    catalog.publish(bundles[:2], number=1)
    assert follower.step()
    assert not follower.step()
    first = model.generation
    catalog.publish(bundles[1:], number=2)
    assert follower.step()
    assert model.digests == (bundles[1].digest, bundles[2].digest)
    assert model.generation.release == 2
    # What stayed was not loaded again, and the old generation is whole.
    assert model.generation.pool.experts[0] is first.pool.experts[1]
    assert [expert.name for expert in first.pool.experts] == ["e0", "e1"]


@pytest.fixture(scope="module")
def opened() -> list[str]:
    """Files of bundles that are opened from now on, as often as they are."""
    seen: list[str] = []

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and "bundles" in str(arguments[0]):
            seen.append(str(arguments[0]))

    sys.addaudithook(look)
    return seen


def test_a_rotten_release_is_tried_again_only_after_a_growing_delay_or_for_a_newer_one(
    catalog: Catalog, bundles: list[Bundle], model: RoutedModel, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("router.serving.follower.monotonic", lambda: now)
    catalog.publish(bundles[:1], number=1)
    assert follower.step()
    assert follower.trouble == ""
    weights = bundles[1].folder / ADAPTER_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    catalog.publish(bundles[:2], number=2)
    tried = []
    for now in range(10, 210, 10):
        catalog.fetched.clear()
        assert not follower.step()
        tried += [now] if catalog.fetched else []
    assert tried == [10, 20, 40, 80, 160]
    assert "Release 2 " in follower.trouble
    assert "[DIGEST_MISMATCH]" in follower.trouble
    catalog.publish([bundles[0], bundles[2]], number=3)
    assert follower.step()
    assert (model.generation.release, follower.trouble) == (3, "")


def test_a_release_that_cannot_be_loaded_is_not_loaded_at_every_round(
    catalog: Catalog, bundles: list[Bundle], model: RoutedModel, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []

    def full(mirror: Mirror) -> None:
        loads.append(mirror.release.spec.number)
        raise RuntimeError("out of memory") if len(loads) == 1 else Unavailable(Code.MEMORY_FULL, "It does not fit.")

    monkeypatch.setattr(model, "take_up", full)
    for number in (1, 2):
        catalog.publish(bundles[:number], number=number)
        assert not any(follower.step() for _ in range(3))
    assert loads == [1, 2]
    assert "Release 2 " in follower.trouble
    assert "[MEMORY_FULL]" in follower.trouble


def test_a_release_that_this_version_refuses_is_loaded_once(
    catalog: Catalog, bundles: list[Bundle], model: RoutedModel, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("router.serving.follower.monotonic", lambda: now)
    catalog.publish(bundles[:1], number=1)
    assert follower.step()
    catalog.publish(bundles[:2], number=2, method="of-tomorrow")
    known = []
    for now in (10, 20, 40, 80, 4000):
        assert not follower.step()
        known.append((now, len(model.generation.pool._store.experts)))
    assert [rows for _, rows in known] == [2] * 5  # each attempt costs memory that comes back only later
    assert "[METHOD_UNKNOWN]" in follower.trouble
    catalog.publish(bundles[:2], number=3)
    assert follower.step()


@pytest.mark.parametrize("trouble", [grpc.StatusCode.UNKNOWN, errno.EIO])
def test_what_the_line_or_the_disk_did_is_tried_again_at_the_next_round(
    catalog: Catalog,
    bundles: list[Bundle],
    follower: Follower,
    monkeypatch: pytest.MonkeyPatch,
    trouble: grpc.StatusCode | int,
) -> None:
    monkeypatch.setattr("router.serving.follower.monotonic", lambda: 0.0)
    catalog.publish(bundles[:1], number=1)
    with monkeypatch.context() as patch:
        if isinstance(trouble, grpc.StatusCode):
            patch.setattr(catalog, "bundles", {})  # the call fails with a status that says nothing of ours
        else:

            def broken(*_: object) -> None:
                raise OSError(trouble, "Input/output error")

            patch.setattr(pulling, "sync", broken)
        for _ in range(2):
            assert not follower.step()
    assert follower.trouble
    assert follower.step()


def test_a_follower_reads_no_bundle_twice(
    catalog: Catalog, bundles: list[Bundle], follower: Follower, opened: list[str]
) -> None:
    catalog.publish(bundles[:2], number=1)
    assert follower.step()
    opened.clear()
    assert not follower.step()
    assert opened == []
    catalog.publish(bundles, number=2)
    assert follower.step()
    assert opened
    assert not [path for path in opened if bundles[2].digest not in path]


def test_a_release_in_another_order_is_taken_up_in_that_order(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, t5_base: Path
) -> None:
    catalog.publish(bundles, number=1)
    model = RoutedModel.from_release(address, str(t5_base), folder=tmp_path / "node", device="cpu")
    catalog.publish(bundles[::-1], number=2)
    model.take_up(pull(tmp_path / "node", address))
    assert model.digests == tuple(bundle.digest for bundle in bundles[::-1])


def test_experts_take_the_releases_names_and_earlier_releases_stay_as_asked(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, t5_base: Path
) -> None:
    mirrors = []
    for number in range(1, KEPT + 3):
        catalog.publish(bundles[:1] if number == 1 else bundles, number=number)
        mirrors.append(pull(tmp_path / "node", address))
    model = RoutedModel.from_bundles(str(t5_base), bundles[:2], device="cpu")
    model.take_up(mirrors[0])
    assert [expert.full_name for expert in model.generation.pool.experts] == ["ada/e0"]
    many = RoutedModel.from_mirror(str(t5_base), mirrors[-1], earlier=mirrors[:-1], device="cpu")
    assert many.held.releases == tuple(range(1, KEPT + 3))
    assert many.generate(["say a"], RoutingChoice(release=1), max_new_tokens=1)


def test_a_follower_outlives_a_lost_coordinator(
    catalog: Catalog, bundles: list[Bundle], tmp_path: Path, t5_base: Path
) -> None:
    model = RoutedModel.from_base(str(t5_base), device="cpu")
    with serving(catalog) as address:
        catalog.publish(bundles, number=1)
        assert Follower(model, partial(pull, tmp_path / "node", address), interval_s=60).step()
    assert not Follower(model, partial(pull, tmp_path / "node", address), interval_s=60).step()
    assert model.generation.release == 1


def test_from_release_loads_what_the_coordinator_serves(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, t5_base: Path, llama_base: Path
) -> None:
    catalog.publish(bundles, number=3)
    model = RoutedModel.from_release(address, str(t5_base), folder=tmp_path / "node", device="cpu")
    assert model.digests == tuple(bundle.digest for bundle in bundles)
    assert model.answer(["a b"], max_new_tokens=2).answers[0].release == 3
    with pytest.raises(Refused) as refused:
        RoutedModel.from_release(address, str(llama_base), folder=tmp_path / "node", device="cpu")
    assert refused.value.code is Code.BASE_MISMATCH


def test_a_release_with_an_unknown_method_is_not_taken_up(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, t5_base: Path
) -> None:
    catalog.publish(bundles, number=1)
    mirror = pull(tmp_path / "node", address)
    spec = mirror.release.spec.model_copy(update={"routing": Routing(method="of-tomorrow")})
    model = RoutedModel.from_base(str(t5_base), device="cpu")
    before = model.generation
    with pytest.raises(Refused) as refused:
        model.take_up(replace(mirror, release=sign_release(spec, catalog.identity)))
    assert refused.value.code is Code.METHOD_UNKNOWN
    assert model.generation is before


def test_a_follower_outlives_a_fault_of_its_own(tmp_path: Path, t5_base: Path) -> None:
    def fetch(**_: object) -> Mirror:
        raise RuntimeError("a bug")

    assert not Follower(RoutedModel.from_base(str(t5_base), device="cpu"), fetch, interval_s=60).step()


def test_a_release_that_could_not_be_written_down_answers_and_is_kept_once_there_is_room(
    catalog: Catalog,
    bundles: list[Bundle],
    model: RoutedModel,
    follower: Follower,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalog.publish(bundles[:1], number=1)

    def full(path: Path, content: bytes) -> None:
        if path.name == RELEASE:
            raise OSError(errno.ENOSPC, "no room")
        write_whole(path, content)

    monkeypatch.setattr(pulling, "write_whole", full)
    for _ in range(2):
        assert not follower.step()
        assert model.generation.release == 1
        assert "Release 1 was not kept" in follower.trouble
        assert "[STORAGE_FULL]" in follower.trouble
    taken = model.generation
    monkeypatch.undo()
    follower.step()
    assert (follower.trouble, model.generation) == ("", taken)
    assert open_mirror(tmp_path / "node").release.spec.number == 1


def test_what_answers_counts_against_a_fork_though_there_was_no_room_for_it(
    catalog: Catalog, bundles: list[Bundle], model: RoutedModel, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == RELEASE:
            raise OSError(errno.ENOSPC, "no room")
        write_whole(path, content)

    monkeypatch.setattr(pulling, "write_whole", full)
    catalog.publish(bundles[:1], number=1)
    follower.step()
    monkeypatch.undo()
    catalog.publish(bundles[1:2], number=1)
    assert not follower.step()
    assert "[RELEASE_FORK]" in follower.trouble
    assert model.digests == (bundles[0].digest,)
