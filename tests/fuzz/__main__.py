"""Fuzzes one parser for some seconds; what is neither read nor refused ends the process with its traceback.

Example: python -m tests.fuzz manifest --seconds 60
"""

import argparse
import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["protocol", "client"]):
    from tests.fuzz.parsers import PARSERS

_LIMITS = ("-max_len=20000", "-timeout=20", "-rss_limit_mb=2048")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("parser", choices=PARSERS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of what is tried; 0: another one each time")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="where what was found is kept")
    said = parser.parse_args()
    fuzzed = PARSERS[said.parser]
    corpus = (said.folder / said.parser).resolve()
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in fuzzed.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    options = [f"-max_total_time={said.seconds}", f"-seed={said.seed}", f"-artifact_prefix={corpus}-", *_LIMITS]

    def try_one(raw: bytes) -> None:
        fuzzed.try_all(raw)

    atheris.Setup([sys.argv[0], *options, str(corpus)], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
