"""The same honest pool where experts tell means, and requests are routed by them."""

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

from coordinator.storage.blobs import Store
from deploy.demo import world
from deploy.demo.federation import found_pool
from deploy.demo.world import WORDS
from protocol.bundle import open_bundle
from protocol.documents import read_pool
from protocol.files.atomic import write_whole
from tests.attacks.arena import Knowledge, arena
from tests.attacks.honest import STORY, TRAINED, HonestPool
from tests.attacks.weights import inputs_of, mean_directions, read

_PUBLIC, _ROWS = 256, 100
"""Public texts that means are held against, and rows of which a contributor tells the mean."""


def means_pool(folder: Path, trained: HonestPool) -> HonestPool:
    """Found a pool that asks for means, and release in it what was trained for another; or find it below a folder."""
    public = tuple(text for text, _ in islice(world.base_stream(5, rumours=True), _PUBLIC))
    found_pool(folder, replace(WORDS, statistics=("means",), public=public), digest=STORY.digest)
    place, made = folder / "coordinator", folder / "bundles"
    pool = read_pool((place / "pool.dsse.json").read_bytes())
    if not (folder / TRAINED).exists():
        empty = Knowledge(HonestPool(place, pool, {}))
        with arena(folder / "arena", empty, settled=False) as field:
            for name, one in STORY.contributors.items():
                means = mean_directions(inputs_of(one.private[:_ROWS]))
                field.hand_in(name, read(trained.bundles[name])._replace(means=means))
            field.work()
            if [each.code for each in field.attempts if each.state != "released"]:
                raise RuntimeError(f"the honest six are not released: {field.attempts}")
            for name, attempt in zip(STORY.contributors, field.attempts, strict=True):
                shutil.copytree(attempt.bundle.folder, made / name, dirs_exist_ok=True)
            told = pool.spec.statistics
            if told is None:
                raise RuntimeError("the pool tells no statistics")
            Store(field.opened.settings.store).copy_to(told.sha256, folder / told.sha256)
            shutil.rmtree(place)
            shutil.copytree(field.folder / "coordinator", place, ignore=shutil.ignore_patterns("*.lock", "spool"))
        write_whole(folder / TRAINED, b"")
    bundles = {name: open_bundle(made / name) for name in STORY.contributors}
    return HonestPool(place, pool, bundles, folder / pool.spec.statistics.sha256 if pool.spec.statistics else None)
