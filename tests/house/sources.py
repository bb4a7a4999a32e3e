"""What the house rules look at."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("protocol", "router", "client", "coordinator")


def python_files(*folders: str) -> list[Path]:
    """Python files that people wrote, below the given folders of the repository."""
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if path.parent != ROOT / "protocol" / "v1" and "versions" not in path.parts
    )
