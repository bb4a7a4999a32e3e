"""The daemon's own corner of a workspace: its keys, what was asked, how it stands, what it did."""

import json
from datetime import UTC, datetime
from typing import Any

from client.workspace.paths import ClientWorkspace
from protocol.files.atomic import renew_secret, write_whole
from protocol.fleet.node_key import NodeKey

WORKING = "working"
"""Note about the campaign that is being worked for."""
PORT = "port"
"""Note about where the SuperNode listens."""
UNASKED = "campaign-0"
"""Note about training on changed data that was stopped; it counts as campaign 0, which nobody asked for."""


class DaemonFolder:
    """Paths below `daemon/` of a workspace."""

    def __init__(self, workspace: ClientWorkspace) -> None:
        self.workspace = workspace
        self.policy = workspace.root / "daemon.toml"
        """The contributor's own; all else stands in the folder."""
        self.folder = folder = workspace.root / "daemon"
        self.node_key = folder / "node.key"
        self.secret = folder / "secret"
        """What the executor shows to the SuperNode, so that no other process of this machine takes a task."""
        self.log = folder / "daemon.log"
        """What the daemon did, a line each, for a person."""
        self.flower_log = folder / "flower.log"
        self.flower_home = folder / "flower"
        self.lock = folder / "daemon.lock"
        self.releases = folder / "releases"
        """What was fetched to be scored."""

    def prepare(self) -> NodeKey:
        """Make a secret, and folder and node key where they are missing."""
        node = self.key()
        renew_secret(self.secret)
        return node

    def key(self) -> NodeKey:
        """Read the node's key, or make it, and the folder."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.node_key.exists():
            NodeKey.generate().save(self.node_key)
        return NodeKey.load(self.node_key)

    def port(self) -> int:
        """Loopback port of the SuperNode that runs now."""
        return int(self.note(PORT).get("port", 0))

    def note(self, name: str) -> dict[str, Any]:
        """Read a small JSON file of the daemon; empty if it is not there."""
        try:
            value: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return value

    def write_note(self, name: str, value: dict[str, Any]) -> None:
        """Replace a small JSON file of the daemon."""
        write_whole(self.folder / f"{name}.json", json.dumps(value).encode())

    def drop_note(self, name: str) -> None:
        """Remove a small JSON file of the daemon, which a full disk does not hinder."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def say(self, sentence: str) -> bool:
        """Add a line to the log; a full disk costs the line and nothing else.

        Returns:
            Whether it was written.
        """
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {sentence}\n")
        except OSError:
            return False
        return True

    def asked(self) -> list[dict[str, Any]]:
        """Campaigns that a person was asked about, oldest first."""
        notes = (self.note(path.stem) for path in self.folder.glob("campaign-*.json") if path.stem != UNASKED)
        return sorted((note for note in notes if note), key=lambda note: note["number"])
