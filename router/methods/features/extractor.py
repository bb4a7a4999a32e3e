"""What routing methods look at inputs with before anything is routed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from router.base.loading import Base
from router.methods.features.activations import Reader
from router.methods.features.background import PublicText, read_public
from router.methods.features.embedder import Embedder
from router.methods.features.mixture import Mixtures


@dataclass(frozen=True)
class Features:
    """The base, or another encoder, reading for itself."""

    embedder: Embedder
    """Turns inputs into vectors."""
    mixtures: Mixtures
    """Solves inputs as mixtures of experts."""

    @classmethod
    def of_base(
        cls,
        base: Base,
        paths: Sequence[str],
        *,
        embedding: str | None = None,
        public: Path | None = None,
        cache: Path | None = None,
    ) -> "Features":
        """See with a base model.

        Args:
            base: Its linear modules are routed ones.
            paths: Their paths.
            embedding: Folder or Hub id of the model that embeds; without one, the base.
            public: Public text, one a line; without it, random tokens.
            cache: File that keeps the base's fingerprint; beside it is kept what is worked out once a base.

        Raises:
            Refused: `BASE_UNREADABLE`, or `DATA_UNREADABLE` for public text that is none.
        """
        reader = Reader(base, paths)
        embedder = Embedder.load(embedding, device=base.model.device) if embedding else Embedder.of_base(base)
        return cls(embedder, Mixtures(reader, PublicText(reader, read_public(public) if public else (), cache)))
