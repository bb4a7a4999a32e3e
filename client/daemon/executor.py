"""The warm executor: `python -m client.daemon.executor WORKSPACE PORT`, a child of the daemon.

It stands where stock Flower starts a process that unpacks and runs the code of an app bundle. This one never
looks into the bundle: if the pool's signed policy names its digest, the app of the installed package answers.
"""

import os
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from client import settings as client_settings
from client.daemon.place import WORKING, Place
from client.daemon.policy import judge, read_policy
from client.daemon.work import Work
from client.door import quiet_libraries
from client.workspace import Workspace, storage
from protocol.campaign import Order
from protocol.errors import Code
from protocol.reply import Reply

_GRACE_S = 1.0


class Act:
    """Asks the policy before every campaign, and writes down what was asked and done.

    Args:
        place: The daemon's corner of the workspace.
        work: Does it.
    """

    def __init__(self, place: Place, work: Work) -> None:
        self._place, self._work = place, work

    def __call__(self, order: Order) -> Reply:
        """Do what an order asks if the contributor lets it.

        Raises:
            Refused: `CONSENT`, or as `Work.answer`.
            Unavailable: As `Work.answer`.
        """
        import psutil  # noqa: PLC0415 - only this needs it

        policy = read_policy(self._place.policy)
        name = f"campaign-{order.number}"
        note = self._place.note(name) or {"number": order.number, "kind": order.kind, "allowed": None}
        verdict = judge(
            policy, order.kind, allowed=note.get("allowed"), now=datetime.now().astimezone(), overran="overran" in note,
            free_memory_mb=psutil.virtual_memory().available >> 20,
        )  # fmt: skip
        self._place.write_note(name, note | {"state": verdict})
        if verdict != "done":
            self.log(f"campaign {order.number} ({order.kind}): {'has to wait' if verdict == 'later' else 'declined'}")
            return Reply(verdict, Code.CONSENT.name)
        self.log(f"campaign {order.number} ({order.kind}): begun")
        began = time.time()
        self._place.write_note(WORKING, {"campaign": order.number, "kind": order.kind, "since": began})
        try:
            with storage():
                reply = self._work.answer(order, policy)
        finally:
            self._place.write_note(WORKING, {})
        self._place.write_note(name, note | {"state": "answered"})
        self.log(f"campaign {order.number} ({order.kind}): answered after {time.time() - began:.1f} s")
        return reply

    def log(self, sentence: str) -> None:
        """Write a line for the contributor."""
        with self._place.log.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {sentence}\n")


def main() -> None:
    """Run the process; it ends when its standard input does, so never later than the daemon."""
    root, port = Path(sys.argv[1]), int(sys.argv[2])
    place = Place(Workspace(root))
    settings = client_settings.read(place.workspace.settings_file)
    quiet_libraries(settings.base)
    pool = place.workspace.pool(settings.pool_key)
    stopped = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        stopped.set()
        time.sleep(_GRACE_S)
        os._exit(0)  # in the middle of training; it resumes from its last checkpoint

    threading.Thread(target=watch, daemon=True).start()
    from client.daemon.tasks import serve  # noqa: PLC0415 - Flower, which takes its environment at import

    act = Act(place, Work(place, pool))
    serve(act, act.log, pool, port, place.secret.read_bytes(), stopped=stopped.is_set)


if __name__ == "__main__":
    main()
