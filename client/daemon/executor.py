"""The warm executor: `python -m client.daemon.executor WORKSPACE`, a child of the daemon.

It stands where stock Flower starts a process that unpacks and runs the code of an app bundle. This one never
looks into the bundle: if the pool's signed policy names its digest, the app of the installed package answers.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from client.daemon.child_process import end_with_parent
from client.daemon.data_watch import DataWatch
from client.daemon.handlers import Work
from client.daemon.policy import Consented, DaemonPolicy, judge, read_policy
from client.daemon.state import UNASKED, WORKING, DaemonFolder
from client.libraries import quiet_libraries
from client.workspace.disk import storage
from client.workspace.paths import ClientWorkspace
from protocol.documents import Pool
from protocol.errors import Code, GreylagError, Unavailable
from protocol.fleet.campaign import Kind, Order
from protocol.fleet.reply import Reply
from protocol.wire.grpc_client import connect

LOOK_AGAIN_S, LONGEST_PAUSE_S = 60.0, 3600.0
"""Pause between two looks at the private file, in seconds; it doubles with each training that fails."""
_GRACE_S = 1.0
_STATES = {"done": "begun", "later": "waits", "failed": "declined"}
"""How verdicts are called where a person reads them."""


class Act:
    """Asks the policy before every campaign, and writes down what was asked and done."""

    def __init__(self, place: DaemonFolder, work: Work) -> None:
        self._place, self._work = place, work
        self._watch = DataWatch(place.folder / "trained.bin")
        self._look_again, self._pause_s = 0.0, LOOK_AGAIN_S
        self._put_off: Consented | None = None

    def __call__(self, order: Order) -> Reply:
        """Do what an order asks if the contributor lets it.

        What a person said holds for one order, not for its number: a pool that is founded anew counts anew.

        Raises:
            Refused: As `Work.answer`.
            Unavailable: As `Work.answer`, or `STORAGE_FULL`.
        """
        what, name = f"campaign {order.number} ({order.kind})", f"campaign-{order.number}"
        with storage():
            policy = read_policy(self._place.policy)
            before = self._place.note(name)
            if before.get("order") != order.digest:
                before = {"allowed": None}
            note = before | {"number": order.number, "kind": order.kind, "order": order.digest, "until": order.expires}
            verdict = _judge(policy, order.kind, allowed=note["allowed"], overran="overran" in note)
            state = _STATES[verdict.state]
            self._place.write_note(name, note | {"state": state, "why": verdict.why})
        if verdict.state != "done":
            if (state, verdict.why) != (before.get("state"), before.get("why")):  # it is asked again and again
                self._place.say(f"{what} {state}: {verdict.why}")
            return Reply(verdict.state, Code.CONSENT.name)
        if order.kind == "train":
            self._watch.look(policy.data)  # rows that come while it trains are new afterwards
        try:
            with self._working(what, number=order.number, kind=order.kind):
                reply = self._work.answer(order, policy)
        except Exception as error:
            self._conclude(name, "waits" if isinstance(error, Unavailable) else "failed", str(error))
            raise
        self._conclude(name, "answered", "")
        if order.kind == "train":
            with suppress(OSError):
                self._watch.remember()
        return reply

    def _conclude(self, name: str, state: str, why: str) -> None:
        # What was done is answered for, even if the disk has no room for a note.
        with suppress(OSError):
            self._place.write_note(name, self._place.note(name) | {"state": state, "why": why})

    def idle(self) -> None:
        """Train a superseding expert if the policy says so and enough of the private file has changed."""
        if time.monotonic() < self._look_again:
            return
        try:
            self._train_again()
            self._pause_s = LOOK_AGAIN_S
        except Exception as error:  # noqa: BLE001 - told here; the change is still there at the next look
            self._place.say(f"training on changed data: {error if isinstance(error, GreylagError) else repr(error)}")
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._look_again = time.monotonic() + self._pause_s

    def _train_again(self) -> None:
        policy = read_policy(self._place.policy)
        share = self._watch.look(policy.data) if policy.watch.retrain == "auto" else 0.0
        if share == 0.0 or share < policy.watch.changed or self._was_stopped(policy):
            return
        verdict = _judge(policy, "train", allowed=True, overran=False)
        if verdict.state != "done":
            if verdict != self._put_off:
                self._place.say(f"training on changed data {_STATES[verdict.state]}: {verdict.why}")
            self._put_off = verdict
            return
        self._put_off = None
        with self._working(f"training on changed data ({share:.0%} of the lines)", number=0, kind="train"):
            self._work.train(policy)
            self._watch.remember()

    def _was_stopped(self, policy: DaemonPolicy) -> bool:
        """Tell whether training on these very lines took too long, and would again."""
        note, now = self._place.note(UNASKED), {"lines": self._watch.digest, "max_minutes": policy.limits.max_minutes}
        if not note:
            return False
        if "lines" not in note:
            self._place.write_note(UNASKED, note | now)
            self._place.say("training on changed data is not tried again until they or max_minutes change again")
            return True
        if note.items() >= now.items():
            return True
        self._place.drop_note(UNASKED)
        return False

    @contextmanager
    def _working(self, what: str, *, number: int, kind: str) -> Iterator[None]:
        """Say what is being done, so that the daemon can stop it, and turn a full disk into a sentence."""
        self._place.say(f"{what}: begun")
        began = time.monotonic()
        try:
            with storage():
                self._place.write_note(WORKING, {"campaign": number, "kind": kind, "since": time.time()})
                yield
        finally:
            self._place.drop_note(WORKING)
        self._place.say(f"{what}: done after {time.monotonic() - began:.1f} s")


def _judge(policy: DaemonPolicy, kind: Kind, *, allowed: bool | None, overran: bool) -> Consented:
    import psutil  # noqa: PLC0415 - only this needs it

    free = psutil.virtual_memory().available >> 20
    now = datetime.now().astimezone()
    return judge(policy, kind, allowed=allowed, now=now, free_memory_mb=free, overran=overran)


def main() -> None:
    """Run the process."""
    place = DaemonFolder(ClientWorkspace(Path(sys.argv[1])))
    settings, pool = place.workspace.settings, place.workspace.pool
    quiet_libraries(settings.base, settings.embedding)
    stopped = threading.Event()
    end_with_parent(stopped.set, _GRACE_S)  # also in the middle of training; it resumes from its last checkpoint
    from client.daemon.task_loop import serve  # noqa: PLC0415 - Flower, which takes its environment at import

    place.drop_note(WORKING)  # left by a kill in the middle of work
    act = Act(place, Work(place))

    def keep_up() -> Pool:
        with suppress(Unavailable), connect(settings.coordinator, settings.ca) as channel:
            return place.workspace.keep_up(channel)
        return place.workspace.pool

    secret = place.secret.read_bytes()
    serve(act, place.say, pool, place.port, secret, stopped=stopped.is_set, idle=act.idle, keep_up=keep_up)


if __name__ == "__main__":
    main()
