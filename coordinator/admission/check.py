"""Is the inside of a bundle what its envelope says? Runs in a limited process, never in a server."""

from pathlib import Path

from coordinator.admission import numerics
from protocol import tensors
from protocol.bundle import ADAPTER_WEIGHTS, CARD, ENVELOPE, GATES, SPEC, check_spec, read_manifest
from protocol.compatibility import check_derived
from protocol.documents import read_pool
from protocol.errors import Code, Refused
from protocol.printable import printable


def check_content(folder: Path, pool: Path) -> None:
    """Check structure, then numbers, of a bundle whose digests are right.

    Raises:
        Refused: `CARD_INVALID`, `NOT_FINITE`, `CONSTANT_GATE`, `NO_EFFECT`, or as `check_spec`, `check_derived` and
            `tensors.check`.
    """
    manifest = read_manifest((folder / ENVELOPE).read_bytes())
    spec = manifest.spec
    check_spec(folder / SPEC, spec)
    check_derived(manifest, read_pool(pool.read_bytes()))
    _check_card(folder / CARD)
    adapter = tensors.check(folder / ADAPTER_WEIGHTS, tensors.adapter_tensors(spec))
    gates = tensors.check(folder / GATES, tensors.gate_tensors(spec))
    numerics.check_adapter(folder / ADAPTER_WEIGHTS, adapter)
    numerics.check_gates(folder / GATES, gates)


def _check_card(path: Path) -> None:
    """Refuse a model card that is no text, or holds what a screen would obey (`CARD_INVALID`)."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise Refused(Code.CARD_INVALID, "The model card is no UTF-8 text.", "Write it again.") from error
    if printable(text) != text:
        what = "The model card holds control characters or other invisible ones."
        raise Refused(Code.CARD_INVALID, what, "Write it again without them.")
