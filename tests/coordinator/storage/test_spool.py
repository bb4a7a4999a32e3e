import errno
import os
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.storage.spool import Spool
from protocol.bundle import SignedFile
from protocol.errors import Code, Unavailable

FILES = {"a": SignedFile("0" * 64, 6), "empty": SignedFile("0" * 64, 0)}


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", quota_bytes=100, floor_bytes=10, free_bytes=lambda _: 60)


def test_the_length_of_a_file_is_the_offset(spool: Spool) -> None:
    assert spool.missing("d", FILES) == {"a": 0, "empty": 0}
    spool.make("d", FILES)
    assert spool.missing("d", FILES) == {"a": 0}
    writer = spool.append("d", "a", 6)
    writer.write(b"abc")
    writer.sync()
    writer.close()
    writer.close()
    spool.make("d", FILES)
    assert spool.missing("d", FILES) == {"a": 3}
    writer = spool.append("d", "a", 6)
    assert writer.offset == 3
    writer.write(b"def")
    writer.close()
    assert spool.missing("d", FILES) == {}
    spool.drop_file("d", "a")
    assert spool.missing("d", FILES) == {"a": 0}


def test_a_late_write_after_closing_touches_nothing(spool: Spool) -> None:
    spool.make("d", FILES)
    writer = spool.append("d", "a", 6)
    writer.close()
    writer.write(b"late")
    writer.sync()
    assert spool.path("d", "a").read_bytes() == b""


def test_room_is_what_others_hold_and_what_the_disk_has(tmp_path: Path) -> None:
    disk = 60
    spool = Spool(tmp_path / "spool", quota_bytes=40, floor_bytes=10, free_bytes=lambda _: disk)
    spool.make("d", FILES)
    with closing(spool.append("d", "a", 6)) as writer:
        writer.write(b"ab")
    assert spool.held("d", FILES) == 2
    spool.check_room(38)
    with pytest.raises(Unavailable) as full:
        spool.check_room(39)
    assert full.value.code is Code.STORAGE_FULL
    disk = 47
    spool.check_room(37)
    with pytest.raises(Unavailable):
        spool.check_room(38)
    disk = 13
    with pytest.raises(Unavailable):
        spool.append("d", "a", 6)
    disk = 14
    spool.append("d", "a", 6).close()


def test_a_full_disk_keeps_what_fits(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def full_after_two(descriptor: int, data: memoryview) -> int:
        if os.fstat(descriptor).st_size >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:2])

    spool.make("d", FILES)
    writer = spool.append("d", "a", 6)
    monkeypatch.setattr(os, "write", full_after_two)
    with pytest.raises(Unavailable) as full:
        writer.write(b"abcdef")
    monkeypatch.undo()
    writer.close()
    assert full.value.code is Code.STORAGE_FULL
    assert spool.missing("d", FILES) == {"a": 2}
    assert spool.path("d", "a").read_bytes() == b"ab"


def test_the_sweeper_keeps_open_uploads(spool: Spool) -> None:
    for digest in ("kept", "lost"):
        spool.make(digest, FILES)
    spool.sweep({"kept"})
    assert spool.missing("kept", FILES) == {"a": 0}
    assert not spool.path("lost", "a").exists()
