"""Statistics of the training rows that a contributor agreed to share, computed by the base model alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import DataCollatorForSeq2Seq

from client.progress import Progress, Report
from client.runs.consent import Share, Sharing
from client.runs.record import STATISTICS
from client.training import gates, trainer
from protocol.bundle import GATES
from protocol.files import strict_json
from protocol.files.atomic import write_whole
from protocol.spec import Centroid, Means, Noise, Statistics
from protocol.tensors import CENTROID
from router.base.loading import Base
from router.base.module_paths import deeper
from router.base.tokens import IGNORED
from router.methods.features.embedder import Embedder
from router.model.routed_model import RoutedModel
from router.training.mean_inputs import mean_inputs

if TYPE_CHECKING:
    import datasets

_AT_ONCE = 8


def write(
    sharing: Sharing, run: Path, base: Base, rows: "datasets.Dataset", modules: Sequence[str], report: Report
) -> None:
    """Write gates together with what is shared of the base model's view of the training rows into a folder of the run.

    Raises:
        Refused: `BASE_UNREADABLE` for an embedding model that cannot be loaded, `NOT_FINITE`.
    """
    rows = _spread(rows, min(sharing.rows, len(rows)))
    tensors, statistics = load_file(run / GATES), Statistics()
    if {Share.MEANS, Share.ALL_MEANS} & set(sharing.shares):
        whole = Share.ALL_MEANS in sharing.shares
        vectors, told = _means(sharing, base, rows, modules if whole else deeper(modules), report)
        tensors |= {f"{path}.mean": mean for path, mean in vectors.items()}
        if set(vectors) == set(modules):
            told = told.model_copy(update={"modules": None})
        statistics = statistics.model_copy(update={"means": told})
    if Share.CENTROID in sharing.shares:
        device = base.model.device
        embedder = Embedder.load(sharing.embedding, device=device) if sharing.embedding else Embedder.of_base(base)
        tensors[CENTROID] = embedder.embed([_input_text(base, row) for row in rows]).double().mean(0).float()
        centroid = Centroid(embedding=embedder.ref, width=len(tensors[CENTROID]))
        statistics = statistics.model_copy(update={"centroid": centroid})
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise trainer.diverged("statistics")
    folder = sharing.folder(run)
    folder.mkdir(exist_ok=True)
    write_whole(folder / STATISTICS, strict_json.dumps(statistics.model_dump(mode="json")))
    # Last, since its presence says that the folder is whole.
    gates.save(tensors, folder / GATES)


def _means(
    sharing: Sharing, base: Base, rows: "datasets.Dataset", modules: Sequence[str], report: Report
) -> tuple[dict[str, Tensor], Means]:
    """Average [d] by path, with noise where it is asked for, and say what was done."""
    if sharing.epsilon is None:
        return mean_inputs(base, modules, _batches(base, rows, report)), Means(modules=tuple(modules))
    from client.training import private_means  # noqa: PLC0415 - dp-accounting, which is an extra

    rows = _spread(rows, private_means.counted(len(rows)))
    noise = Noise(epsilon=sharing.epsilon, delta=private_means.DELTA, rows=len(rows))
    vectors = private_means.means(RoutedModel(base), modules, _batches(base, rows, report), noise)
    return vectors, Means(modules=tuple(vectors), noise=noise)


def _spread(rows: "datasets.Dataset", count: int) -> "datasets.Dataset":
    return rows.select([at * len(rows) // count for at in range(count)])


def _batches(base: Base, rows: "datasets.Dataset", report: Report) -> Iterator[dict[str, Tensor]]:
    collate = DataCollatorForSeq2Seq(base.tokenizer)
    for start in range(0, len(rows), _AT_ONCE):
        batch = collate([rows[at] for at in range(start, min(start + _AT_ONCE, len(rows)))])
        yield {name: torch.as_tensor(value) for name, value in batch.items()}
        report(Progress("means", min(start + _AT_ONCE, len(rows)), len(rows), None))


def _input_text(base: Base, row: dict[str, list[int]]) -> str:
    ids = row["input_ids"]
    if base.architecture == "decoder-only":
        ids = [token for token, label in zip(ids, row["labels"], strict=True) if label == IGNORED]
    text: str = base.tokenizer.decode(ids, skip_special_tokens=True)
    return text
