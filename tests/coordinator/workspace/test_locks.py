import threading
from pathlib import Path

from filelock import FileLock

from coordinator.workspace.locks import exclusive, is_at_work
from coordinator.workspace.paths import CoordinatorWorkspace


def test_who_only_looks_keeps_nobody_out(tmp_path: Path) -> None:
    workspace = CoordinatorWorkspace(tmp_path)
    looking = FileLock(workspace.lock("fleet"), thread_local=False)
    looking.acquire()  # as a look does, for a moment
    threading.Timer(0.1, looking.release).start()
    with exclusive(workspace, "fleet"):
        assert is_at_work(workspace, "fleet")
    assert not is_at_work(workspace, "fleet")
