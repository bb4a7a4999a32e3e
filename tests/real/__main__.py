"""`make real`: get what the tasks and the base are read from, and say what is missing and which tasks that costs."""

import sys

from tests.real.packages import PACKAGES, ROOT, fetch, find
from tests.real.tasks import every


def main() -> int:
    """Get everything.

    Returns:
        Exit status: 1 if something is missing that every machine can have.
    """
    lost = fetch(PACKAGES, ROOT, lambda sentence: sys.stderr.write(f"{sentence}\n"))
    for name, reason in lost.items():
        sys.stderr.write(f"missing: {name} {find(name).version}: {reason}\n")
    without = [task.name for task in every().values() if lost.keys() & {*task.sources}]
    if without:
        sys.stderr.write(f"{len(without)} of {len(every())} tasks cannot be read: {', '.join(without)}\n")
    sys.stderr.write(f"{len(PACKAGES) - len(lost)} of {len(PACKAGES)} packages are here.\n")
    return int(any(find(name).kind not in ("deb", "index") for name in lost))


if __name__ == "__main__":
    sys.exit(main())
