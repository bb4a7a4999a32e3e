"""A routed model out of a router's folder."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

from protocol.documents import read_timestamp
from router import settings as router_settings
from router.follow.workspace import FINGERPRINT, open_mirror

if TYPE_CHECKING:
    from router.model.routed_model import RoutedModel


def load_model(
    workspace: Path,
    saved: Path | None,
    releases: Sequence[int | None],
    settings: dict[str, Any],
    say: Callable[[str], None],
) -> "RoutedModel":
    """Load the model of a workspace, or one that was saved.

    Args:
        workspace: Folder with the pulled releases.
        saved: A saved model; None for the workspace's.
        releases: What is going to be asked for; None stands for the newest.
        settings: `base`, `embedding`, `device` and `quantise` from the command line.
        say: Told if the release has expired.

    Raises:
        Refused: `WORKSPACE_MISSING`, `RELEASE_UNKNOWN`, or as `RoutedModel.from_mirror` and `from_pretrained`.
    """
    if saved is not None:
        from router.model.routed_model import RoutedModel  # noqa: PLC0415 - torch takes seconds

        cache = user_cache_path("greylag") / FINGERPRINT
        with suppress(OSError):  # a home that cannot be written only costs the time again
            cache.parent.mkdir(parents=True, exist_ok=True)
        return RoutedModel.from_pretrained(saved, cache=cache, **settings)
    mirror = open_mirror(workspace)
    chosen = router_settings.load(workspace, **settings)
    spec = mirror.release.spec
    if read_timestamp(spec.expires) < datetime.now(UTC):
        say(f"Release {spec.number} expired at {spec.expires}; fetch the newest with: greylag-router pull")
    numbers = {number for number in releases if number is not None} - {spec.number}
    earlier = [open_mirror(workspace, number) for number in sorted(numbers)]
    # What is wrong with the workspace is said at once.
    from router.model.routed_model import Options, RoutedModel  # noqa: PLC0415

    cache = workspace / FINGERPRINT
    options: Options = {**chosen.loading, "embedding": chosen.embedding, "public": chosen.public_text, "cache": cache}
    return RoutedModel.from_mirror(chosen.base, mirror, earlier=earlier, **options)
