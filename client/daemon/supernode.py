"""Flower's SuperNode as a child of the daemon: `python -m client.daemon.supernode`, with SuperNode's own arguments.

It ends when its standard input does, so never later than the daemon: two SuperNodes with one key disturb each other.
"""

import os
import signal
import sys
import threading
import time

from flwr.supernode.cli.flower_supernode import flower_supernode

GRACE_S = 10.0
"""How long it may take to say goodbye, in seconds."""


def main() -> None:
    """Run the process."""

    def watch() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(0)  # it waits for somebody who does not answer

    threading.Thread(target=watch, daemon=True).start()
    flower_supernode()


if __name__ == "__main__":
    main()
