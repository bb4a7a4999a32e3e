"""Scores that are there already: a folder that a rerun goes on with.

`results.jsonl` holds a line for each method and task that is done. A line counts for what it was computed from: the
rows, the base model, the experts, all that routes them, how long answers and inputs were. What the model answered,
row by row, stands beside it under `answers/`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from protocol.files import strict_json
from protocol.files.atomic import write_whole
from router.base.fingerprint import fingerprint
from router.evaluation.prompts import BatchLimits
from router.evaluation.rows import Task
from router.evaluation.scoring import Judged, Score
from router.model.releases import listing
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice

RESULTS = "results.jsonl"
ANSWERS = "answers"
_BASE = "base.json"


class Results:
    """A folder of scores, made where it is missing, of a model that answers under limits."""

    def __init__(self, folder: Path, model: RoutedModel, limits: BatchLimits) -> None:
        (folder / ANSWERS).mkdir(parents=True, exist_ok=True)
        self._folder, self._model, self._limits = folder, model, limits
        self._base = fingerprint(model.base.source, folder / _BASE).model_dump()
        self._known = _read(folder / RESULTS)

    def find(self, task: Task, choice: RoutingChoice) -> Score | None:
        """Return an earlier score of the same rows by the same method."""
        return self._known.get(self._key(task, choice))

    def keep(self, task: Task, choice: RoutingChoice, score: Score, judged: Sequence[Judged]) -> None:
        """Write a score down; its answers first, so that a line in the results always has them."""
        key = self._key(task, choice)
        answers = self._folder / ANSWERS / f"{key[:16]}.jsonl"
        lines = [
            _line({"row": each.number, "answer": each.answer, "tied": each.tied, **each.metrics}) for each in judged
        ]
        write_whole(answers, "".join(lines).encode())
        said = {"task": task.name, "method": choice.method, "rows": len(task.rows), "answers": answers.name}
        with (self._folder / RESULTS).open("a", encoding="utf-8") as file:
            file.write(_line({**said, "metrics": score.metrics, "ties": score.ties, "key": key}))
        self._known[key] = score

    def _key(self, task: Task, choice: RoutingChoice) -> str:
        """Digest everything that a score depends on; the size of a batch is not among it."""
        generation, base = self._model.held.find(choice.release), self._model.base
        method, k = choice.method or generation.settings.method, choice.k or generation.settings.k
        facts = {
            "version": version("greylag"),
            "base": self._base,
            "weights": str(base.model.dtype) + str(getattr(base.model.config, "quantization_config", "")),
            "embedding": self._model.features.embedder.ref.model_dump() if self._model.features.embedder.ref else None,
            "public": self._model.features.mixtures.public.digest,
            "routing": generation.settings.model_dump(mode="json"),
            "calibration": calibration.digest if (calibration := generation.pool.calibration) else None,
            "experts": [listing(expert) for expert in generation.pool.experts],
            "choice": {**asdict(choice), "method": method, "k": k, "release": None},
            "limits": self._limits.of(task)._replace(batch=0)._asdict(),
            "rows": task.digest,
        }
        return hashlib.sha256(strict_json.dumps(facts)).hexdigest()


def _line(fields: Mapping[str, object]) -> str:
    return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"


def _read(path: Path) -> dict[str, Score]:
    """Read what is done; a last line that a crash cut off is taken away."""
    if not path.exists():
        return {}
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if whole != raw:
        path.write_bytes(whole)
    known = {}
    for line in whole.splitlines():
        fields = json.loads(line)
        known[fields["key"]] = Score(fields["metrics"], fields["ties"])
    return known
