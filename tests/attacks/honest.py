"""The honest pool that is attacked: the demo's six contributors, trained once, one after the other."""

import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.__main__ import story
from deploy.demo.federation import Federation, found_pool, serving
from deploy.demo.processes import run, running
from deploy.demo.story import Question
from deploy.demo.world import WORDS
from protocol.bundle import Bundle, open_bundle
from protocol.documents import Pool, read_pool
from protocol.files.atomic import write_whole

STORY = story()
TRAINED = "trained"
"""Empty file of a folder whose pool is whole."""


@dataclass(frozen=True)
class HonestPool:
    """Where a pool lies in which six experts are released."""

    coordinator: Path
    """The operator's workspace."""
    pool: Pool
    bundles: dict[str, Bundle]
    """By contributor."""
    statistics: Path | None = None
    """What the pool tells of public text, where it routes by means."""

    @property
    def questions(self) -> list[Question]:
        """What honest users ask: held-out requests of every contributor's kind, alike of each."""
        return [question for one in STORY.contributors.values() for question in one.held_out[:PER_CONTRIBUTOR]]


PER_CONTRIBUTOR = 32


def honest_pool(folder: Path) -> HonestPool:
    """Found, train and release below a folder, or find what was trained there for the same story."""
    key = found_pool(folder, WORDS, digest=STORY.digest)
    if not (folder / TRAINED).exists():
        with (
            serving(folder, "coordinator", "serve", "--listen", "127.0.0.1:0") as served,
            running("coordinator", "worker", "-w", folder / "coordinator", log=folder / "logs" / "worker.log"),
        ):
            cast = Federation(folder, WORDS, served["address"], "", ("--pool-key", key), _say)
            for name, one in STORY.contributors.items():
                _say(name, "trains and contributes")
                cast.contribute(name, cast.join(name, one.private), lambda _: None)
        write_whole(folder / TRAINED, b"")
    else:  # trained by an older version, perhaps
        run("coordinator", "migrate", "-w", folder / "coordinator", log=folder / "logs" / "coordinator.log")
    pool = read_pool((folder / "coordinator" / "pool.dsse.json").read_bytes())
    bundles = {name: open_bundle(folder / "contributors" / name / "bundles" / name) for name in STORY.contributors}
    return HonestPool(folder / "coordinator", pool, bundles)


def _say(who: str, what: str) -> None:
    sys.stderr.write(f"{who}: {what}\n")
