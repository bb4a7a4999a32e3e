"""One contract, two kinds of file system."""

import errno
import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest

from coordinator.storage.blobs import Store
from protocol.errors import Code, Refused, Unavailable

CONTENT = bytes(range(256)) * 20
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def damage(store: Store) -> None:
    with store._fs.open(store._key(SHA256), "wb") as file:
        file.write(b"other bytes")


def test_what_was_put_is_there(store: Store, source: Path, tmp_path: Path) -> None:
    assert SHA256 not in store.digests()
    assert not store.verify(SHA256)
    store.put(source, SHA256)
    store.put(source, SHA256)
    assert source.read_bytes() == CONTENT, "the file itself stays until the row is there"
    assert store.verify(SHA256)
    assert list(store.digests()) == [SHA256]
    with store.open(SHA256, 1000) as file:
        assert file.read() == CONTENT[1000:]
    store.copy_to(SHA256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT
    store.sweep_leftovers()
    assert list(store.digests()) == [SHA256]
    store.remove(SHA256)
    assert SHA256 not in store.digests()
    with pytest.raises(FileNotFoundError):
        store.open(SHA256)


def test_rot_is_found_also_after_a_good_verdict_and_healed(store: Store, source: Path) -> None:
    store.put(source, SHA256)
    assert store.verify(SHA256)
    store.remove(SHA256)  # a hard link would damage the source too
    store.put(source, SHA256)
    store._fs.rm_file(store._key(SHA256))
    damage(store)
    assert not store.verify(SHA256)
    store.put(source, SHA256)
    assert store.verify(SHA256)


def test_an_interrupted_put_leaves_nothing_under_the_digest(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", fail)
    monkeypatch.setattr(store._fs, "mv", fail, raising=False)
    with pytest.raises(Unavailable) as full:
        store.put(source, SHA256)
    assert full.value.code is Code.STORAGE_FULL
    assert list(store.digests()) == []
    monkeypatch.undo()
    store.sweep_leftovers()
    assert store._fs.find(store._root) == []


def test_a_local_put_syncs_the_file_then_its_folder(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    Store(str(tmp_path / "store")).put(source, SHA256)
    assert synced[0].startswith(".incoming-")
    assert synced[1:] == [SHA256[:2], "store"]


def test_a_file_system_without_links_is_copied_to(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    store = Store(str(tmp_path / "store"))
    store.put(source, SHA256)
    store.copy_to(SHA256, tmp_path / "copy")
    assert store.verify(SHA256)
    assert (tmp_path / "copy").stat().st_ino != Path(store._key(SHA256)).stat().st_ino


@pytest.mark.parametrize("url", ["nosuchprotocol://x", "/proc/nowhere/store"])
def test_a_store_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(Refused) as refused:
        Store(url)
    assert refused.value.code is Code.SETTINGS_INVALID


def test_leftovers_are_swept(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    (tmp_path / "store" / ".incoming-1").write_bytes(b"half")
    store.sweep_leftovers()
    assert fsspec.filesystem("file").find(str(tmp_path / "store")) == []
