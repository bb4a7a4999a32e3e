"""Attacks on experts of the real bench: what a mean, a gate and a loss tell of the rows behind them.

    python -m tests.real.privacy --pool build/real/bench/pool-... --suite build/real/bench/suite-....json \\
        --experts past-tense country-of-city

Every figure is the area under the ROC curve, averaged over the experts: .5 is a guess. A member is a row that the mean
is of, and on which the expert was trained; a stranger is drawn from the same task in the same way. Rare words stand in
one or two of the members' inputs. Held against rare words of other rows of the task they tell of a leak of single
words, against those of other experts' members of a leak of the topic. Columns are kinds of modules, joined over layers.
Writes a page of Markdown; the last line of stdout is one JSON document.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from protocol.bundle import open_bundle
from protocol.errors import GreylagError
from protocol.files.atomic import write_whole
from tests.lab.trial import assemble
from tests.real.base import real_base
from tests.real.bench import suite as suites
from tests.real.privacy import found as told
from tests.real.privacy.reading import sides
from tests.real.privacy.run import attack


def main(arguments: Sequence[str] | None = None) -> None:
    """Attack what was asked for, and print what was found."""
    given = _parser().parse_args(arguments)
    suite = suites.read(given.suite)
    experts, by_name = given.pool / str(suite.seed), {each.name: each for each in (*suite.known, *suite.further)}
    public = given.out.with_suffix(".txt")
    write_whole(
        public,
        "".join(f"{' '.join(text.split())}\n" for text in (row.input for row in suite.public[: given.public])).encode(),
    )
    bundles = [open_bundle(next((experts / name).glob("bundles/*"))) for name in given.experts]
    model = assemble(real_base(given.base), bundles, public)
    every = [
        sides(model.base, experts / name, by_name[name], suite.seed, given.rows, given.reference)
        for name in given.experts
    ]
    found, routed = attack(model, every)
    areas = found.areas()
    kept = "".join(f"| {size:g} | {each.own:.1f} % | {each.familiar:.1f} % |\n" for size, each in routed.items())
    facts = f"{len(every)} experts: {', '.join(given.experts)}. Members and strangers: {given.rows} each at most.\n"
    title = (
        "## Where strangers go of these experts, by noise on means\n\n| noise | their own | familiar |\n|---|---|---|\n"
    )
    write_whole(given.out, "\n".join([facts, told.markdown(areas), title + kept]).encode())
    sys.stderr.write(f"{given.out}\n")
    document = {"schema": 1, "base": given.base, "suite": suite.digest, "experts": given.experts, "rows": given.rows}
    sys.stdout.write(json.dumps({**document, "areas": told.document(areas), "routed": routed}) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.real.privacy", description=__doc__)
    say = parser.add_argument
    say("--pool", type=Path, required=True, metavar="FOLDER", help="of make bench-real")
    say("--suite", type=Path, required=True, metavar="FILE", help="that the pool's experts are of")
    say("--experts", nargs="+", required=True, metavar="NAME")
    say("--base", default="smollm2", help="as make bench-real takes it")
    say("--rows", type=int, default=80, help="members of an expert, and strangers, at most")
    say("--reference", type=int, default=160, help="other rows of the task that an attacker knows")
    say("--public", type=int, default=256, help="texts of the suite's public ones that are read")
    say("--out", type=Path, default=Path("build/real/privacy.md"), metavar="FILE", help="for people")
    return parser


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, GreylagError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
