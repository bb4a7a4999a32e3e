"""What a node does when a campaign asks: with the same code as the verbs, and answers of a few numbers."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from client.daemon.policy import DaemonPolicy
from client.daemon.state import DaemonFolder
from client.daemon.welcome import check_welcome
from client.data.columns import DataSource
from client.job import produce
from client.progress import Progress
from client.runs.record import coarse, finished
from client.submission import submit, upload
from client.training.request import TrainingRequest
from client.workspace import settings as client_settings
from client.workspace.settings import ClientSettings
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.fleet.campaign import Order
from protocol.fleet.reply import Reply
from protocol.signing import PublicKey
from router.base.fingerprint import check_base
from router.follow.pull import pull, pull_calibration, pull_exactly
from router.follow.workspace import BUNDLES, CALIBRATIONS

if TYPE_CHECKING:
    from client.data.examples import Pair
    from router.follow.workspace import Mirror
    from router.model.routed_model import RoutedModel

PATIENCE_S = 60.0
"""How long a node tries to reach the coordinator before it answers `later`, in seconds."""
_BATCH = 16


@dataclass
class Work:
    """A node's hands: the data, the model that stays loaded, the way to the coordinator.

    Args:
        place: The daemon's corner of the workspace.
        pool: The pool.
        device: A torch device; None for the GPU where there is one.
    """

    place: DaemonFolder
    pool: Pool
    device: str | None = None
    model: "RoutedModel | None" = None

    def answer(self, order: Order, policy: DaemonPolicy) -> Reply:
        """Do what an order asks.

        Raises:
            Refused: A code of the data, the base, the key, the recipe or the coordinator.
            Unavailable: The coordinator cannot be reached, or the disk is full.
        """
        settings = client_settings.read(self.place.workspace.settings_file)
        act: dict[str, Callable[[Order, DaemonPolicy, ClientSettings], Reply]] = {
            "info": self._info, "train": lambda _, policy, __: self.train(policy), "evaluate": self._evaluate,
            "calibrate": self._calibrate,
        }  # fmt: skip
        return act[order.kind](order, policy, settings)

    def _info(self, _order: Order, policy: DaemonPolicy, _settings: ClientSettings) -> Reply:
        import psutil  # noqa: PLC0415 - only this needs it
        import torch  # noqa: PLC0415

        from client.bundle.pack import tool_version  # noqa: PLC0415
        from client.data.files import count_rows  # noqa: PLC0415

        rows = count_rows(policy.data)
        words = {
            "version": tool_version(), "device": "cuda" if torch.cuda.is_available() else "cpu", "rows": coarse(rows),
        }  # fmt: skip
        return Reply(words=words, metrics={"memory_gb": round(psutil.virtual_memory().available / 2**30, 1)})

    def train(self, policy: DaemonPolicy) -> Reply:
        """Train an expert on the private file and submit it; what was done before is not done again.

        Raises:
            Refused: As `answer`.
            Unavailable: As `answer`.
        """
        settings = client_settings.read(self.place.workspace.settings_file)
        began, losses = time.monotonic(), dict[str, float]()

        def report(event: Progress) -> None:
            if event.loss is not None:
                losses[event.phase] = event.loss

        workspace = self.place.workspace
        now = datetime.now(UTC)
        with workspace.lock():
            asked = TrainingRequest((policy.data,), device=self.device)
            if (privacy := policy.privacy) is not None:
                asked = replace(asked, privacy=privacy.promise, max_epsilon=privacy.max_epsilon)
            coordinator = upload.Coordinator(settings.coordinator, settings.ca, PATIENCE_S)
            check_welcome(workspace, settings, self.pool, coordinator)
            bundle = produce(workspace, settings, asked, report, now)
            enrolment = submit.enrolment_for(workspace, settings, bundle, self.pool, now, keep=True)
            submit.send(workspace, bundle, enrolment, self.pool, coordinator, report)
        metrics = {"seconds": round(time.monotonic() - began, 1)}
        # No noise hides a loss, so it would break the promise.
        return Reply(words={"bundle": bundle.digest}, metrics=metrics | ({} if policy.privacy else _last(losses)))

    def _evaluate(self, order: Order, policy: DaemonPolicy, settings: ClientSettings) -> Reply:
        from client.data.examples import held_out_pairs  # noqa: PLC0415 - seconds of import, once a process

        began, count = time.monotonic(), bounded(policy)
        candidate = self._fetch(order, policy, settings, count)
        folder, where = self.place.releases, settings.coordinator
        try:
            current: Mirror | None = pull(folder, where, ca=settings.ca, pool_key=self._key, on_bytes=count)
        except Refused as error:
            if error.code is not Code.RELEASE_UNKNOWN:
                raise
            current = None
        model = self._loaded(settings)
        pairs = held_out_pairs(self._source(policy, settings), model.base.tokenizer, self._held_out())
        losses: dict[str, float] = {}
        if current is not None:
            model.take_up(current)
            losses["loss_release"] = _loss(model, pairs)
        model.take_up(candidate)
        losses["loss_candidate"] = _loss(model, pairs)
        losses["loss_base"] = _loss(model, pairs, "base")
        own = next((expert for expert in candidate.release.spec.experts if expert.contributor == settings.name), None)
        if own is not None:
            losses["loss_own"] = _loss(model, pairs, f"expert:{own.contributor}/{own.name}")
        keep_only(folder, {*model.digests, *(bundle.digest for bundle in (current.bundles if current else ()))})
        losses["seconds"] = round(time.monotonic() - began, 1)
        return Reply(words={"rows": coarse(len(pairs))}, metrics=losses)

    def _calibrate(self, order: Order, policy: DaemonPolicy, settings: ClientSettings) -> Reply:
        from client.daemon.calibration import take_steps  # noqa: PLC0415 - torch

        task = order.calibrating
        if task is None:
            raise Refused(Code.ORDER_INVALID, "The order says nothing about calibrating.", "Tell the pool's operator.")
        if policy.privacy is not None and task.privacy is None:
            raise Refused(
                Code.CONSENT, "This contributor shares nothing learnt from the data but with differential privacy.",
                "Start the campaign with a budget.",
            )  # fmt: skip
        began, count = time.monotonic(), bounded(policy)
        mirror, start = self._fetch(order, policy, settings, count), None
        if task.start is not None:
            where, ca = settings.coordinator, settings.ca
            start = pull_calibration(self.place.releases, where, task.start, ca=ca, on_bytes=count)
        model = self._loaded(settings)
        model.take_up(mirror)
        update = take_steps(model, mirror, start, task, self._source(policy, settings))
        keep_only(self.place.releases, set(model.digests))
        metrics = {"seconds": round(time.monotonic() - began, 1)}
        return Reply(words={"round": str(task.number)}, metrics=metrics, update=update)

    def _fetch(
        self, order: Order, policy: DaemonPolicy, settings: ClientSettings, count: Callable[[int], None]
    ) -> "Mirror":
        """Fetch the list of experts that an order is about; not for data that cannot be read."""
        from client.data.files import count_rows  # noqa: PLC0415 - seconds of import, once a process

        digest = order.candidate or order.release
        if digest is None:
            raise Refused(Code.ORDER_INVALID, "The order names no list of experts.", "Tell the pool's operator.")
        check_base(settings.base, self.pool.spec.base, self.place.workspace.base_cache)
        count_rows(policy.data)
        folder, where = self.place.releases, settings.coordinator
        ca, released = settings.ca, order.release is not None
        return pull_exactly(folder, where, digest, released=released, ca=ca, pool_key=self._key, on_bytes=count)

    @property
    def _key(self) -> PublicKey:
        return PublicKey.from_hex(self.pool.spec.coordinator)

    def _source(self, policy: DaemonPolicy, settings: ClientSettings) -> DataSource:
        return DataSource((policy.data,), settings.columns, self.place.workspace.split_key())

    def _held_out(self) -> float:
        """The share of rows that no training of this workspace has seen."""
        own = (record.recipe.held_out for _, record in finished(self.place.workspace.runs))
        return min([self.pool.spec.recipe.held_out, *own])

    def _loaded(self, settings: ClientSettings) -> "RoutedModel":
        from router.model.routed_model import RoutedModel  # noqa: PLC0415 - seconds of import, once a process

        self.model = self.model or RoutedModel.from_base(settings.base, device=self.device)
        return self.model


def bounded(policy: DaemonPolicy) -> Callable[[int], None]:
    """Count bytes that are fetched, and refuse (`CONSENT`) more than the contributor allows."""
    left = policy.limits.max_download_mb << 20

    def count(size: int) -> None:
        nonlocal left
        left -= size
        if left < 0:
            raise Refused(
                Code.CONSENT, "The campaign would fetch more than this contributor's policy allows.",
                "Raise max_download_mb in daemon.toml.",
            )  # fmt: skip

    return count


def _loss(model: "RoutedModel", pairs: "list[Pair]", method: str | None = None) -> float:
    """Mean loss over held-out rows, in nats a token; four digits, so that no row can be told from it."""
    from router.query.request import RoutingChoice  # noqa: PLC0415 - torch

    total = 0.0
    for at in range(0, len(pairs), _BATCH):
        batch = pairs[at : at + _BATCH]
        choice = RoutingChoice(method=method)
        total += sum(model.losses([pair.prompt for pair in batch], [pair.target for pair in batch], choice))
    return round(total / len(pairs), 4)


def keep_only(folder: Path, digests: set[str]) -> None:
    """Delete the bundles that were fetched for earlier campaigns and that nobody needs; and calibrations, all small."""
    shutil.rmtree(folder / CALIBRATIONS, ignore_errors=True)
    for bundle in (folder / BUNDLES).iterdir():
        if bundle.name not in digests:
            shutil.rmtree(bundle)


def _last(losses: dict[str, float]) -> dict[str, float]:
    return {"loss": round(losses["expert"], 4)} if "expert" in losses else {}
