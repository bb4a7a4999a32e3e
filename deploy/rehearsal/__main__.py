"""`make rehearse`: prints one JSON document about a rehearsed campaign."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from deploy.rehearsal.rehearse import rehearse


def main() -> None:
    """Rehearse, and print one JSON document."""
    parser = argparse.ArgumentParser(prog="make rehearse")
    parser.add_argument("--nodes", type=int, default=200, help="virtual contributors")
    parser.add_argument("--failing", type=float, default=0.1, help="share of nodes that fail")
    parser.add_argument("--late", type=float, default=0.1, help="share of nodes that come late")
    parser.add_argument("--seed", type=int, default=0, help="who fails and who is late")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shares = {"failing": options.failing, "late": options.late}
        told = rehearse(Path(folder), options.nodes, **shares, seed=options.seed)
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
