"""Plays it, tells of it on stderr, and ends with one line of JSON."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from protocol.programs import print_json
from tests.faults import kills, peers, verdict


def main() -> None:
    """Run it; the exit status is 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="how many programs are killed (1000)")
    parser.add_argument("--peers", action="store_true", help="nobody is killed: 50 bad peers beside 10 honest ones")
    parser.add_argument("--contributors", type=int, default=4, help="who upload meanwhile (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which somebody dies (0)")
    parser.add_argument("--folder", type=Path, default=Path("build/faults"), help="where everything goes")
    said = parser.parse_args()
    folder: Path = said.folder.resolve() / "played"  # what is removed is never somebody's own
    shutil.rmtree(folder, ignore_errors=True)
    try:
        report, kept = _play(folder, said)
    except RuntimeError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    print_json(report)
    sys.exit(0 if kept else 1)


def _play(folder: Path, said: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    if said.peers:
        report = peers.play(folder)
        return report, peers.is_kept(report)
    report = kills.play(folder, kills=said.kills, contributors=said.contributors, seed=said.seed)
    return report, verdict.is_kept(report)


if __name__ == "__main__":
    main()
