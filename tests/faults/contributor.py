"""A contributor who never stops: the client's own code makes, sends, resumes and proves bundle after bundle."""

import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.submission import log, outbox, submit, upload
from client.submission.join import join
from client.workspace.paths import ClientWorkspace
from protocol.bundle import Bundle, pack
from protocol.errors import GreylagError, Refused
from protocol.files.atomic import write_whole

NAMES, UNDECIDED = 3, 6
"""Names that a contributor's bundles bear in turn, and how many wait for their verdict at once."""
PATIENCE_S, _LONGEST_PAUSE_S, _LAST_S = 60.0, 0.4, 120.0


class Contributor:
    """One workspace, and whoever works in it.

    Args:
        place: The workspace; it may be that of one who was killed.
        address: `host:port` of the coordinator.
        ca: Its CA certificate.
        base: Folder of the base model.
    """

    def __init__(self, place: Path, address: str, ca: Path, base: Path) -> None:
        self._space, self._base = ClientWorkspace(place), base
        self._place, self._stop = place, place.parent / "stop"
        self._draw = random.Random()
        self._coordinator = upload.Coordinator(address, ca, PATIENCE_S, sleep=_nap)

    def work(self) -> None:
        """Submit until told to stop; then let everything come to its end, and prove it all."""
        while not self._space.settings_file.exists():
            self._attempt(self._join)
        while not self._stop.exists():
            self._attempt(self._turn)
        end = time.monotonic() + _LAST_S
        while (left := self._unsent()) and time.monotonic() < end:
            self._attempt(lambda: self._send(left[0]))
        while not self._attempt(self._account) and time.monotonic() < end:
            pass

    def _join(self) -> None:
        flags = {"coordinator": self._coordinator.address, "ca": self._coordinator.ca, "base": str(self._base)}
        join(self._space, flags | {"name": self._place.name}, datetime.now(UTC))

    def _turn(self) -> None:
        """Hear what became of what was sent, and send something unless much waits; prove the log either way."""
        records = outbox.load(self._space.outbox)
        waiting = [record for record in records if record.state not in submit.FINAL]
        for record in waiting:
            submit.refresh(self._space, record, self._coordinator, wait=False)
        if left := self._unsent():
            self._send(left[0])
        elif len(waiting) < UNDECIDED:
            self._send(self._make(outbox.load(self._space.outbox)))
        else:
            self._send_again(self._draw.choice(records))
            time.sleep(_LONGEST_PAUSE_S)
        self._prove()

    def _unsent(self) -> list[Bundle]:
        """Bundles of an earlier life of which no receipt came; what it left half made is dropped."""
        found, sent = [], {record.digest for record in outbox.load(self._space.outbox)}
        for folder in sorted(self._space.bundles.glob("*")):
            try:
                bundle = submit.verify(folder)
            except (Refused, OSError):
                shutil.rmtree(folder)
                continue
            if bundle.digest in sent:
                shutil.rmtree(folder)
            else:
                found.append(bundle)
        return found

    def _make(self, records: list[outbox.Record]) -> Bundle:
        from tests import factories  # noqa: PLC0415 - torch, which is there already

        name = f"{self._place.name}-{len(records) % NAMES}"
        folder = self._space.bundles / f"{len(records)}-{self._draw.randrange(1 << 30)}"
        identity, seed = self._space.identity(), self._draw.randrange(1 << 30)
        bundle = factories.make_bundle(folder, self._space.pool, identity, name=name, rank=8, seed=seed)
        return pack(folder, bundle.spec.model_copy(update={"supersedes": outbox.predecessor(records, name)}), identity)

    def _send(self, bundle: Bundle) -> None:
        enrolment = submit.enrolment_for(self._space, bundle, datetime.now(UTC), keep=True)
        submit.send(self._space, bundle, enrolment, self._coordinator, lambda _: None)
        kept = self._place / "sent" / bundle.digest
        kept.parent.mkdir(exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        bundle.folder.rename(kept)

    def _send_again(self, record: outbox.Record) -> None:
        """Ask for the receipt of what was received long ago: it must be the same one."""
        folder = self._place / "sent" / record.digest
        if not folder.exists():
            return
        bundle = submit.verify(folder)
        enrolment = submit.enrolment_for(self._space, bundle, datetime.now(UTC), keep=True)
        _, receipt = upload.submit(bundle, enrolment, self._space.keep_up, self._coordinator, lambda _: None)
        if receipt.decode() != record.receipt:
            self._note({"fault": "another receipt", "bundle": record.digest})

    def _prove(self) -> None:
        """Hold the log against every receipt and what was seen before, and keep each checkpoint for the end."""
        log.verify(self._space)
        self._keep_checkpoint()

    def _keep_checkpoint(self) -> None:
        seen = self._place / "seen"
        seen.mkdir(exist_ok=True)
        note = self._space.checkpoint.read_bytes()
        write_whole(seen / f"{note.splitlines()[1].decode()}.txt", note)

    def _account(self) -> None:
        for record in outbox.load(self._space.outbox):
            submit.refresh(self._space, record, self._coordinator, wait=False)
        found = log.verify(self._space)
        self._keep_checkpoint()
        proved = [each.digest for each in found.bundles if each.fault is None]
        faults = {each.digest: each.fault.message for each in found.bundles if each.fault}
        write_whole(self._place / "account.json", json.dumps({"proved": proved, "faults": faults}).encode())

    def _attempt(self, work: Callable[[], object]) -> bool:
        """Do something, and note why it could not be done."""
        try:
            work()
        except GreylagError as error:
            self._note({"code": error.code.name, "message": error.message, "refused": isinstance(error, Refused)})
            _nap(_LONGEST_PAUSE_S)
            return False
        return True

    def _note(self, what: dict[str, Any]) -> None:
        sys.stderr.write(json.dumps({"at": round(time.time(), 3), **what}) + "\n")
        with (self._place / "notes.jsonl").open("a") as file:
            file.write(json.dumps(what) + "\n")


def contribute(place: Path, address: str, ca: Path, base: Path) -> None:
    """Be a contributor until the file `stop` lies beside the workspace."""
    place.mkdir(exist_ok=True)
    Contributor(place, address, ca, base).work()


def _nap(seconds: float) -> None:
    """Wait, but never for as long as a person would: restarts come by the second here."""
    time.sleep(min(seconds, _LONGEST_PAUSE_S))
