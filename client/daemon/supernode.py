"""Flower's SuperNode as a child of the daemon: `python -m client.daemon.supernode`, with SuperNode's own arguments.

Two SuperNodes with one key disturb each other, so it must not outlive the daemon.
"""

import os
import signal

from flwr.supernode.cli.flower_supernode import flower_supernode

from client.daemon.child_process import end_with_parent

GRACE_S = 10.0
"""How long it may take to say goodbye, in seconds: it waits for somebody who may not answer."""


def main() -> None:
    """Run the process."""
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM), GRACE_S)
    flower_supernode()


if __name__ == "__main__":
    main()
