"""Founds the pool, plays the whole suite, and ends with its one line."""

import shutil
import subprocess
import sys
import time

from tests.conformance import trial
from tests.house.sources import ROOT


def main() -> None:
    """Run it."""
    folder = ROOT / "build" / "conformance"
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    trial.found_with_model(folder / "pool")
    with trial.running(folder / "pool", worker=True) as pool:
        command = [sys.executable, "-m", "coordinator.cli.main", "conformance", *pool.flags, *sys.argv[1:]]
        report = folder / "report.json"
        done = subprocess.run([*command, "--report", str(report), "--json"], check=False)
    sys.stderr.write(f"{time.monotonic() - began:.0f} s; each case is in {report}, logs are in {folder / 'pool'}.\n")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
