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
from client.data.columns import SEEN, DataSource
from client.job import produce
from client.progress import Progress
from client.runs.record import coarse, finished
from client.submission import submit, upload
from client.training.plan import TrainingRequest
from client.workspace.paths import ClientWorkspace
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

    What the workspace's files say is read anew for each order; the base that was loaded first stays.
    """

    place: DaemonFolder
    device: str | None = None
    model: "RoutedModel | None" = None

    def answer(self, order: Order, policy: DaemonPolicy) -> Reply:
        """Do what an order asks.

        Raises:
            Refused: A code of the data, the base, the key, the recipe or the coordinator.
            Unavailable: The coordinator cannot be reached, or the disk is full.
        """
        match order.kind:
            case "info":
                return _info(policy)
            case "train":
                return self.train(policy)
            case "evaluate":
                return self._evaluate(order, policy, self._workspace())
            case "calibrate":
                return self._calibrate(order, policy, self._workspace())

    def train(self, policy: DaemonPolicy) -> Reply:
        """Train an expert on the private file and submit it; what was done before is not done again.

        Raises:
            Refused: As `answer`.
            Unavailable: As `answer`.
        """
        began, losses = time.monotonic(), dict[str, float]()

        def report(event: Progress) -> None:
            if event.loss is not None:
                losses[event.phase] = event.loss

        workspace, now = self._workspace(), datetime.now(UTC)
        coordinator = upload.Coordinator(workspace.settings.coordinator, workspace.settings.ca, PATIENCE_S)
        asked = TrainingRequest((policy.data,), device=self.device)
        if (privacy := policy.privacy) is not None:
            asked = replace(asked, privacy=privacy.promise, max_epsilon=privacy.max_epsilon)
        with workspace.lock():
            check_welcome(workspace, coordinator)
            bundle = produce(workspace, asked, report, now, self.place.say)
            enrolment = submit.enrolment_for(workspace, bundle, now, keep=True)
            submit.send(workspace, bundle, enrolment, coordinator, report)
        metrics = {"seconds": round(time.monotonic() - began, 1)}
        if "expert" in losses and privacy is None:  # no noise hides a loss, so it would break the promise
            metrics["loss"] = round(losses["expert"], 4)
        return Reply(words={"bundle": bundle.digest}, metrics=metrics)

    def _workspace(self) -> ClientWorkspace:
        return ClientWorkspace(self.place.workspace.root)

    def _evaluate(self, order: Order, policy: DaemonPolicy, workspace: ClientWorkspace) -> Reply:
        from client.data.examples import held_out_pairs  # noqa: PLC0415 - seconds of import, once a process

        began, count, settings = time.monotonic(), bounded(policy), workspace.settings
        candidate = self._fetch(order, policy, workspace, count)
        folder, key = self.place.releases, PublicKey.from_hex(settings.pool_key)
        current: Mirror | None = None
        try:
            current = pull(folder, settings.coordinator, ca=settings.ca, pool_key=key, on_bytes=count)
        except Refused as error:
            if error.code is not Code.RELEASE_UNKNOWN:
                raise
        model, share = self._loaded(workspace), workspace.pool.spec.recipe.held_out
        runs, source = dict(finished(workspace.runs)), _source(policy, workspace)
        limit = min((record.recipe.held_out for run, record in runs.items() if not (run / SEEN).is_file()), default=1.0)
        pairs = held_out_pairs(source, model.base.tokenizer, share, (self.place.folder, *runs), limit)
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

    def _calibrate(self, order: Order, policy: DaemonPolicy, workspace: ClientWorkspace) -> Reply:
        from client.daemon.calibration import take_steps  # noqa: PLC0415 - torch

        task = order.calibrating
        if task is None:
            raise Refused(Code.ORDER_INVALID, "The order says nothing about calibrating.", "Tell the pool's operator.")
        if policy.privacy is not None and task.privacy is None:
            raise Refused(
                Code.CONSENT, "This contributor shares nothing learnt from the data but with differential privacy.",
                "Start the campaign with a budget.",
            )  # fmt: skip
        began, count, settings = time.monotonic(), bounded(policy), workspace.settings
        mirror, start = self._fetch(order, policy, workspace, count), None
        if task.start is not None:
            where, ca = settings.coordinator, settings.ca
            start = pull_calibration(self.place.releases, where, task.start, ca=ca, on_bytes=count)
        model = self._loaded(workspace)
        model.take_up(mirror)
        update = take_steps(model, mirror, start, task, _source(policy, workspace), self.place.folder)
        keep_only(self.place.releases, set(model.digests))
        metrics = {"seconds": round(time.monotonic() - began, 1)}
        return Reply(words={"round": str(task.number)}, metrics=metrics, update=update)

    def _fetch(
        self, order: Order, policy: DaemonPolicy, workspace: ClientWorkspace, count: Callable[[int], None]
    ) -> "Mirror":
        """Fetch the list of experts that an order is about; not for data that cannot be read."""
        from client.data.files import count_rows  # noqa: PLC0415 - seconds of import, once a process

        digest, settings = order.candidate or order.release, workspace.settings
        if digest is None:
            raise Refused(Code.ORDER_INVALID, "The order names no list of experts.", "Tell the pool's operator.")
        check_base(settings.base, workspace.pool.spec.base, workspace.base_cache)
        count_rows(policy.data)
        return pull_exactly(
            self.place.releases, settings.coordinator, digest, released=order.release is not None, ca=settings.ca,
            pool_key=PublicKey.from_hex(settings.pool_key), on_bytes=count,
        )  # fmt: skip

    def _loaded(self, workspace: ClientWorkspace) -> "RoutedModel":
        from router.model.routed_model import RoutedModel  # noqa: PLC0415 - seconds of import, once a process

        self.model = self.model or RoutedModel.from_base(workspace.settings.base, device=self.device)
        return self.model


def _info(policy: DaemonPolicy) -> Reply:
    import psutil  # noqa: PLC0415 - only this needs it
    import torch  # noqa: PLC0415

    from client.bundle.pack import tool_version  # noqa: PLC0415
    from client.data.files import count_rows  # noqa: PLC0415

    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = {"version": tool_version(), "device": device, "rows": coarse(count_rows(policy.data))}
    return Reply(words=words, metrics={"memory_gb": round(psutil.virtual_memory().available / 2**30, 1)})


def _source(policy: DaemonPolicy, workspace: ClientWorkspace) -> DataSource:
    return DataSource((policy.data,), workspace.settings.columns, workspace.split_key)


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
