"""A byte of the registry's database changes on the disk: `fsck` says so, unless nothing promised has changed."""

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from coordinator.registry.tables import RegistryTable
from protocol.errors import Code
from protocol.signing import Identity
from tests.coordinator.cli.test_main import Program, program
from tests.coordinator.workspace.test_restored import Place

__all__ = ["program"]

FLIPS = 40
UNSIGNED = ("message", "hint", "content")


def content(database: Path) -> list[str]:
    """All that a database says, but for what nobody signs: sentences, and numbers that a worker can work out again."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        connection.text_factory = bytes
        said = []
        for table in RegistryTable.metadata.sorted_tables:
            chosen = ", ".join(f'"{column.name}"' for column in table.columns if column.name not in UNSIGNED)
            said += [str(row) for row in connection.execute(f"SELECT {chosen} FROM {table.name}")]
        return said


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A pool with two experts in a release, one of which was yanked, whose database is one file."""
    place = Place(tmp_path_factory.mktemp("sound"), Identity.generate())
    for bundle in (place.make(), place.make()):
        place.submit(bundle)
    place.work()
    with sqlite3.connect(place.database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return place


@pytest.mark.parametrize("seed", range(2))
def test_a_changed_byte_of_the_database_is_noticed_or_changes_nothing(
    program: Program, sound: Place, tmp_path: Path, seed: int
) -> None:
    draw, good = random.Random(seed), sound.database.read_bytes()
    before, noticed, unnoticed = content(sound.database), 0, []
    assert program(sound.workspace, "fsck") == 0
    kept = shutil.copy(sound.database, tmp_path / "kept.db")
    # Most of a page is empty: what is changed is where something is written.
    written = [at for at, byte in enumerate(good) if byte]
    try:
        for _ in range(FLIPS):
            at, bit = draw.choice(written), draw.randrange(8)
            sound.database.write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
            if (status := program(sound.workspace, "fsck")) != 0:
                assert status != Code.INTERNAL.fate.exit, program.err
                noticed += 1
            else:
                try:
                    after = content(sound.database)
                except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                    after = [str(error)]
                if after != before:
                    unnoticed.append((at, [row[:300] for row in after if row not in before][:2]))
    finally:
        for path in sound.database.parent.glob("registry.db-*"):
            path.unlink()
        shutil.copy(kept, sound.database)
    assert not unnoticed
    assert noticed
