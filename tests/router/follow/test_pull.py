"""Releases come over the wire: whole, checked, resumed, and never backwards."""

import errno
import io
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from protocol.bundle import ADAPTER_WEIGHTS, CARD, GATES, Bundle, pack
from protocol.errors import Code, Refused, Unavailable
from protocol.v1.chunk_pb2 import Chunk
from protocol.wire import chunks, grpc_client
from router.base import progress
from router.follow import transfer, workspace
from router.follow.pull import pull
from router.follow.workspace import Mirror, open_mirror
from tests import factories
from tests.router.catalog import Catalog


def test_a_release_arrives_whole(catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path) -> None:
    catalog.publish(bundles[:2], number=1)
    mirror = pull(tmp_path / "node", address)
    assert [bundle.digest for bundle in mirror.bundles] == [bundle.digest for bundle in bundles[:2]]
    assert [bundle.digest for bundle in open_mirror(tmp_path / "node").bundles] == [b.digest for b in bundles[:2]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("patience", [1e-9, 60])
def test_what_takes_long_shows_a_bar_over_the_bytes_of_all_bundles(
    catalog: Catalog,
    address: str,
    bundles: list[Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    patience: float,
) -> None:
    catalog.publish(bundles[:1], number=1)
    pull(tmp_path / "node", address)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    catalog.publish(bundles, number=2)
    monkeypatch.setattr(progress, "PATIENCE_S", patience)
    monkeypatch.setattr("tqdm.tqdm", partial(tqdm, mininterval=0))
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())

    def shown() -> None:
        progress.show_bars()
        pull(tmp_path / "node", address)

    copy_context().run(shown)
    size = sum(file.size for bundle in bundles[1:] for file in bundle.manifest.files.values())
    assert (f"/{tqdm.format_sizeof(size)} " in terminal.getvalue()) == (patience < 1)
    assert bool(terminal.getvalue()) == (patience < 1)


def test_only_what_is_missing_is_fetched(catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path) -> None:
    catalog.publish(bundles[:2], number=1)
    pull(tmp_path / "node", address)
    catalog.fetched.clear()
    catalog.publish(bundles, number=2)
    pull(tmp_path / "node", address)
    assert {sha for sha, _ in catalog.fetched} == {file.sha256 for file in bundles[2].manifest.files.values()}


def test_a_cut_stream_continues_where_it_broke(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    catalog.publish(bundles[:1], number=1)
    catalog.breaks = 3
    pull(tmp_path / "node", address)
    offsets = [offset for _, offset in catalog.fetched]
    assert len([offset for offset in offsets if offset]) == 3


def test_a_byte_at_a_time_is_given_up_and_continued_elsewhen(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_client, "IDLE_S", 0.1)
    catalog.publish(bundles[:1], number=1)
    catalog.drips = True
    with pytest.raises(Unavailable, match=f"{address} stood still") as failed:
        pull(tmp_path / "node", address)
    assert failed.value.code is Code.UNREACHABLE
    catalog.drips = False
    catalog.fetched.clear()
    pull(tmp_path / "node", address)
    assert catalog.fetched[0][1] > 0


def test_a_stream_that_stays_cut_is_unavailable_and_keeps_what_came(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    catalog.publish(bundles[:1], number=1)
    catalog.silent = True
    catalog.breaks = 1
    with pytest.raises(Unavailable) as failed:
        pull(tmp_path / "node", address)
    assert failed.value.code is Code.UNREACHABLE
    assert not (tmp_path / "node" / workspace.RELEASE).exists()
    catalog.silent = False
    catalog.fetched.clear()
    pull(tmp_path / "node", address)
    assert catalog.fetched[0][1] == 1000


def test_tampered_bytes_are_refused_and_not_kept(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    catalog.publish(bundles[:1], number=1)
    path = bundles[0].folder / GATES
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(Refused) as refused:
        pull(tmp_path / "node", address)
    assert refused.value.code is Code.DIGEST_MISMATCH
    assert not (tmp_path / "node" / workspace.RELEASE).exists()
    path.write_bytes(good)
    assert len(pull(tmp_path / "node", address).bundles) == 1


def test_endless_data_is_cut(catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path) -> None:
    catalog.publish(bundles[:1], number=1)
    with (bundles[0].folder / GATES).open("ab") as file:
        file.write(bytes(5 << 20))
    with pytest.raises(Refused) as refused:
        pull(tmp_path / "node", address)
    assert refused.value.code is Code.SIZE_MISMATCH


def test_a_swapped_bundle_is_refused(catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path) -> None:
    catalog.publish(bundles[:2], number=1)
    catalog.bundles[bundles[0].digest] = bundles[1]
    with pytest.raises(Refused) as refused:
        pull(tmp_path / "node", address)
    assert refused.value.code is Code.DIGEST_MISMATCH


def test_no_release_yet(address: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        pull(tmp_path / "node", address)
    assert refused.value.code is Code.RELEASE_UNKNOWN
    with pytest.raises(Refused) as refused:
        open_mirror(tmp_path / "node")
    assert refused.value.code is Code.WORKSPACE_MISSING


def test_a_full_disk_is_a_sentence(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.publish(bundles[:1], number=1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_continue_file", full)
        with pytest.raises(Unavailable) as failed:
            pull(tmp_path / "node", address)
    assert failed.value.code is Code.STORAGE_FULL
    assert len(pull(tmp_path / "node", address).bundles) == 1


def test_of_two_pulls_in_one_folder_one_waits_for_the_other(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    catalog.publish(bundles[:1], number=1)
    waits, began, folder = threading.Event(), threading.Event(), tmp_path / "node"

    def hold(_: int) -> None:
        began.set()
        assert waits.wait(10)

    def hear(sentence: str) -> None:
        if "waiting" in sentence:
            waits.set()

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(pull, folder, address, on_bytes=hold)
        assert began.wait(10)
        second = threads.submit(pull, folder, address, say=hear)
        assert first.result(20).release.digest == second.result(20).release.digest
    assert waits.is_set()
    names = [sha for sha, _ in catalog.fetched]
    assert len(names) == len(set(names))


def test_a_pull_for_another_base_fetches_no_bundle(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, llama_base: Path, t5_base: Path
) -> None:
    catalog.publish(bundles, number=1)
    with pytest.raises(Refused) as refused:
        pull(tmp_path / "node", address, base=str(llama_base))
    assert refused.value.code is Code.BASE_MISMATCH
    assert not catalog.fetched
    assert len(pull(tmp_path / "node", address, base=str(t5_base)).bundles) == 3


def refused_by_pull(catalog: Catalog, address: str, bundles: list[Bundle], node: Path) -> Refused:
    catalog.publish(bundles, number=1)
    with pytest.raises(Refused) as refused:
        pull(node, address)
    assert not (node / workspace.RELEASE).exists()
    return refused.value


def test_a_bundle_for_another_pool_is_refused_before_a_byte_is_fetched(
    catalog: Catalog, address: str, tmp_path: Path, t5_base: Path
) -> None:
    other = factories.make_pool(t5_base, catalog.identity, max_rank=3)
    bundle = factories.make_bundle(tmp_path / "b", other, catalog.identity)
    assert refused_by_pull(catalog, address, [bundle], tmp_path / "node").code is Code.WRONG_POOL
    assert not catalog.fetched


def test_a_bundle_for_another_base_is_refused_before_a_byte_is_fetched(
    catalog: Catalog, address: str, tmp_path: Path
) -> None:
    base = catalog.pool.spec.base.model_copy(update={"weights": "f" * 64})
    spec = catalog.pool.spec.model_copy(update={"base": base})
    bundle = factories.make_bundle(tmp_path / "b", replace(catalog.pool, spec=spec), catalog.identity)
    assert refused_by_pull(catalog, address, [bundle], tmp_path / "node").code is Code.BASE_MISMATCH
    assert not catalog.fetched


def test_a_declared_size_that_no_tensor_needs_is_refused_before_a_byte_is_fetched(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    with (bundles[0].folder / GATES).open("ab") as file:
        file.write(bytes(2 << 20))
    padded = pack(bundles[0].folder, bundles[0].spec, catalog.identity)
    assert refused_by_pull(catalog, address, [padded], tmp_path / "node").code is Code.SIZE_MISMATCH
    assert not catalog.fetched


def test_a_stream_that_ends_without_a_byte_is_not_asked_for_ever(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.router.catalog.read_chunks", lambda *_: iter(()))
    assert refused_by_pull(catalog, address, bundles[:1], tmp_path / "node").code is Code.SIZE_MISMATCH
    assert len(catalog.fetched) == 1


def test_a_stream_of_empty_chunks_is_cut(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.router.catalog.read_chunks", lambda *_: repeat(Chunk(), 1000))
    assert refused_by_pull(catalog, address, bundles[:1], tmp_path / "node").code is Code.BAD_WIRE


def test_an_empty_file_of_a_bundle_arrives(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    (bundles[0].folder / CARD).write_bytes(b"")
    catalog.publish([pack(bundles[0].folder, bundles[0].spec, catalog.identity)], number=1)
    assert len(pull(tmp_path / "node", address).bundles) == 1


def test_a_bundle_that_was_damaged_here_is_fetched_afresh(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    catalog.publish(bundles[:1], number=1)
    mirror = pull(tmp_path / "node", address)
    (mirror.bundles[0].folder / GATES).write_bytes(b"")
    with pytest.raises(Refused):
        open_mirror(tmp_path / "node")
    pull(tmp_path / "node", address)
    assert open_mirror(tmp_path / "node").bundles[0].digest == bundles[0].digest


def test_a_bundle_under_another_ones_name_is_noticed(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    catalog.publish(bundles[:2], number=1)
    first, second = (bundle.folder for bundle in pull(tmp_path / "node", address).bundles)
    shutil.rmtree(first)
    shutil.copytree(second, first)
    with pytest.raises(Refused) as refused:
        open_mirror(tmp_path / "node")
    assert refused.value.code is Code.DIGEST_MISMATCH


def test_tensors_other_than_the_specs_are_refused_and_the_last_release_stays(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    catalog.publish(bundles[:1], number=1)
    pull(tmp_path / "node", address)
    weights = bundles[1].folder / ADAPTER_WEIGHTS
    save_file({f"x{name}": tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    catalog.publish([bundles[0], pack(bundles[1].folder, bundles[1].spec, catalog.identity)], number=2)
    with pytest.raises(Refused) as refused:
        pull(tmp_path / "node", address)
    assert refused.value.code is Code.TENSOR_NAMES
    assert open_mirror(tmp_path / "node").release.spec.number == 1


@pytest.mark.parametrize("file", [ADAPTER_WEIGHTS, GATES])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_not_kept_though_nobody_loads_them(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, file: str, number: float
) -> None:
    catalog.publish(bundles[:1], number=1)
    pull(tmp_path / "node", address)
    path = bundles[1].folder / file
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[-1] = number
    save_file(tensors, path, {"format": "pt"})
    catalog.publish([bundles[0], pack(bundles[1].folder, bundles[1].spec, catalog.identity)], number=2)
    with pytest.raises(Refused) as refused:
        pull(tmp_path / "node", address)
    assert refused.value.code is Code.NOT_FINITE
    assert open_mirror(tmp_path / "node").release.spec.number == 1
    assert len(list((tmp_path / "node" / workspace.BUNDLES).iterdir())) == 1


def test_a_release_is_kept_only_once_it_is_taken_up(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    node, taken = tmp_path / "node", list[Mirror]()
    catalog.publish(bundles[:1], number=1)
    pull(node, address)
    catalog.publish(bundles, number=2)

    def fail(_: Mirror) -> None:
        raise Unavailable(Code.MEMORY_FULL, "It does not fit.")

    with pytest.raises(Unavailable):
        pull(node, address, take_up=fail)
    assert open_mirror(node).release.spec.number == 1
    assert not workspace.kept(node, 2).exists()
    catalog.fetched.clear()
    pull(node, address, take_up=taken.append)
    assert not catalog.fetched  # every byte had come
    assert [mirror.release.spec.number for mirror in taken] == [2]
    assert open_mirror(node).release.spec.number == 2


def test_a_whole_pull_has_a_deadline_and_the_next_one_goes_on(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    catalog.publish(bundles[:1], number=1)
    catalog.drips = True  # at 100 bytes a second: no single wait is long, and all together would last for minutes
    began = time.monotonic()
    with pytest.raises(Unavailable) as failed:
        pull(tmp_path / "node", address, deadline_s=0.5)
    assert failed.value.code is Code.UNREACHABLE
    assert time.monotonic() - began < 5
    assert not (tmp_path / "node" / workspace.RELEASE).exists()
    catalog.drips = False
    catalog.fetched.clear()
    pull(tmp_path / "node", address)
    assert catalog.fetched[0][1] > 0


def test_a_line_that_breaks_after_every_byte_does_not_outlast_the_deadline(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1)
    catalog.publish(bundles[:1], number=1)
    catalog.breaks = sys.maxsize
    with pytest.raises(Unavailable) as failed:
        pull(tmp_path / "node", address, deadline_s=0.5)
    assert failed.value.code is Code.UNREACHABLE
