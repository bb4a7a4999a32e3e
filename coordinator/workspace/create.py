"""Makes a workspace: key, signed pool, empty registry. Whole or not at all."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import tomli_w
from pydantic import ValidationError

from coordinator.registry.registry import Registry
from coordinator.storage.blobs import Store
from coordinator.workspace.material import parse_rows, read_file
from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.role_keys import found_roles
from coordinator.workspace.settings import anchored, read
from protocol.adapters import Shape
from protocol.documents import Pool, read_timestamp, sign_pool, timestamp
from protocol.errors import Code, Refused, from_os_error
from protocol.files.atomic import write_secret
from protocol.fleet.campaign import APP_DIGEST
from protocol.keys.signers import open_signer
from protocol.roles.metadata import Keys
from protocol.signing import Identity, PublicKey
from protocol.spec import Architecture, BaseModelRef, Name, Policy, PoolSpec, Recipe, Routing, StatisticsFile
from protocol.statement import Strict, first_invalid
from router.base.module_paths import in_layers, numbers
from router.methods import BY_MEANS

if TYPE_CHECKING:
    from router.methods.features.background import Kind

PROBE = (
    "The quick brown fox jumps over the lazy dog.",
    "Water boils at one hundred degrees at sea level.",
    "Please send me the report before Friday.",
    "Once upon a time there was a king who had three daughters.",
)
"""Public text for a pool whose operator gives none."""


_PROBE, _ROWS, _CANARIES = "probe.txt", "rows.jsonl", "canaries.jsonl"


@dataclass(frozen=True)
class TrialFiles:
    """Files that an operator gives for experts to be tried on; all are copied."""

    probe: Path | None = None
    """Public text, one input a line; without it, a few sentences of our own."""
    rows: Path | None = None
    """Public rows, JSON Lines of `input` and `target`."""
    canaries: Path | None = None
    """Rows that stay with the operator, likewise."""


NO_FILES = TrialFiles()


class Founding(NamedTuple):
    """Where the keys of a pool are to be."""

    people: Mapping[str, Keys] = MappingProxyType({})
    """Those of the roles root and targets that lie elsewhere, by role."""
    signer: tuple[PublicKey, str] | None = None
    """The public half of the pool's key and its signer's URI; None to make one in a file."""
    passphrase: str | None = None
    """What files of keys are put under."""


ALL_HERE = Founding()


@dataclass(frozen=True)
class BaseFacts:
    """What a pool says of its base model."""

    location: str
    """Folder or Hugging Face id; stays in the operator's settings."""
    ref: BaseModelRef
    architecture: Architecture
    modules: dict[str, Shape]
    statistics: bytes | None = None
    """What public text looks like inside it, as a file; None in a pool whose methods do not ask."""


def study_base(
    name_or_path: str, kinds: Collection["Kind"] = (), public: Path | None = None, layers: "Layers | None" = None
) -> BaseFacts:
    """Load a base model and list what a pool must know of it.

    Args:
        name_or_path: Folder or Hugging Face id.
        kinds: Of statistics of public text that the pool's method reads.
        public: The public text, one a line; without it, random tokens.
        layers: Those whose modules experts touch; None for every linear module of the base.

    Raises:
        Refused: `BASE_UNREADABLE`, `DATA_UNREADABLE` for public text that is none, or `SETTINGS_INVALID` for layers
            that the base does not have.
    """
    from router.base.fingerprint import fingerprint  # noqa: PLC0415
    from router.base.linear import linear_modules  # noqa: PLC0415 - seconds of import that only this needs
    from router.base.loading import load_base  # noqa: PLC0415
    from router.methods.features.background import read_public  # noqa: PLC0415
    from router.model.expert_set import ExpertSet  # noqa: PLC0415

    if public is not None:
        read_public(public)  # refused before the base is loaded
    loaded = load_base(name_or_path, device="cpu")
    folder, modules = Path(name_or_path), linear_modules(loaded.model)
    if layers is not None:
        modules = _narrowed(modules, *layers)
    statistics = ExpertSet(loaded, public=public).features.mixtures.public.dump(kinds) if kinds else None
    location = str(folder.resolve()) if folder.is_dir() else name_or_path
    return BaseFacts(location, fingerprint(name_or_path), loaded.architecture, modules, statistics)


Layers = tuple[int, int | None]
"""First and last, counted from 0 in each stack, both included; None for the base's last."""


def read_layers(text: str) -> Layers:
    """Read a range of layers: `15-29`, `15-` to the last, or `15` alone.

    Raises:
        Refused: `SETTINGS_INVALID`.
    """
    found = re.fullmatch(r"([0-9]{1,4})(-([0-9]{1,4})?)?", text)
    first = int(found[1]) if found else 0
    last = None if found is None else first if not found[2] else int(found[3]) if found[3] else None
    if found is None or (last is not None and last < first):
        what = f"--layers is wrong: {text!r:.80} is no range of layers."
        raise Refused(Code.SETTINGS_INVALID, what, "Give the first and the last, counted from 0: --layers 15-29.")
    return first, last


def _narrowed(modules: dict[str, Shape], first: int, last: int | None) -> dict[str, Shape]:
    """Keep the modules of a base that stand in a range of its layers."""
    there = numbers(modules)
    last = max(there, default=0) if last is None else last
    if not {first, last} <= set(there):
        absent = first if first not in there else last
        has = f"layers {there[0]} to {there[-1]}" if there else "no numbered layers"
        what = f"--layers is wrong: the base has no layer {absent}, it has {has}."
        raise Refused(Code.SETTINGS_INVALID, what, "Name layers of the base, or leave it out to take them all.")
    return {path: modules[path] for path in in_layers(modules, first, last)}


class _Choices(Strict):
    """What an operator decides of a pool."""

    name: Name
    recipe: Recipe
    policy: Policy
    routing: Routing


def found(
    workspace: CoordinatorWorkspace,
    study: Callable[[], BaseFacts],
    *,
    name: str,
    choices: Mapping[str, dict[str, Any]],
    settings: dict[str, Any],
    trial: TrialFiles = NO_FILES,
    keys: Founding = ALL_HERE,
    now: datetime,
) -> Pool:
    """Make a workspace.

    Args:
        workspace: A folder that is not a workspace yet; made if it is missing.
        study: Reads the base model, when everything else was checked.
        name: The pool's name.
        choices: Under `recipe`, `policy` and `routing`, the fields that differ from the defaults.
        settings: Entries of coordinator.toml; None for the default. A database and a store outside of the workspace
            are written down also where the environment names them.
        trial: What experts are tried on.
        keys: Where keys are to be.
        now: The time.

    Raises:
        Refused: `WORKSPACE_EXISTS`, `SETTINGS_INVALID` or `DATA_UNREADABLE`; nothing is left behind.
        Unavailable: `BUSY` if the database does not answer, `STORAGE_FULL`.
    """
    check_absent(workspace)
    files = _trial_files(trial)
    policy = {"apps": (APP_DIGEST,), **choices.get("policy", {})}
    if _CANARIES in files:
        policy["review"] = {**policy.get("review", {}), "canaries": hashlib.sha256(files[_CANARIES]).hexdigest()}
    try:
        chosen = _Choices.model_validate({"name": name, "recipe": {}, "routing": {}, **choices, "policy": policy})
    except ValidationError as error:
        place, reason = first_invalid(error)
        what = f"The pool's {place} is wrong: {reason}."
        raise Refused(Code.SETTINGS_INVALID, what, "Correct the option or the file.") from error
    identity = open_signer(keys.signer[1], keys.signer[0]) if keys.signer else Identity.generate()
    base = study()
    told = base.statistics
    if "means" in chosen.policy.statistics and "method" not in choices.get("routing", {}):
        routing = chosen.routing.model_copy(update={"method": BY_MEANS[base.architecture]})
        chosen = chosen.model_copy(update={"routing": routing})
    spec = PoolSpec(
        **dict(chosen), base=base.ref, architecture=base.architecture, modules=base.modules,
        statistics=StatisticsFile(sha256=hashlib.sha256(told).hexdigest(), size=len(told)) if told else None,
        coordinator=identity.public.hex, created=timestamp(now),
    )  # fmt: skip
    pool = sign_pool(spec, identity)
    given = {name: value for name, value in settings.items() if value is not None}
    named = {Path(name).stem: name for name in files if name != _PROBE}
    settings = {"base": base.location, **named, **given}
    if keys.signer:
        settings["signers"] = {keys.signer[0].hex: keys.signer[1]}
    _write(workspace, identity, pool, keys, files=files, statistics=told, settings=settings, now=now)
    return pool


def _write(
    workspace: CoordinatorWorkspace,
    identity: Identity,
    pool: Pool,
    keys: Founding,
    *,
    files: Mapping[str, bytes],
    statistics: bytes | None,
    settings: dict[str, Any],
    now: datetime,
) -> None:
    """Write a workspace whole, or leave nothing behind."""
    existed = workspace.folder.exists()
    try:
        workspace.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".init-", dir=workspace.folder) as folder:
            draft = CoordinatorWorkspace(Path(folder))
            if identity.is_held:
                identity.save(draft.key, keys.passphrase)
            draft.pool.write_bytes(pool.envelope)
            found_roles(draft, pool, identity, keys.people, passphrase=keys.passphrase, now=now)
            for name, content in files.items():
                write_secret(draft.folder / name, content)
            settings |= anchored({name: settings[name] for name in ("database", "store") if name in settings}, Path())
            used = read(draft, **settings)
            # An external database is made where it is; SQLite's file moves in with the rest.
            _make_registry(used.database)
            if statistics and pool.spec.statistics:
                (file := draft.folder / ".statistics").write_bytes(statistics)
                Store(used.store).put(file, pool.spec.statistics.sha256)
                file.unlink()
            elsewhere = {"database": used.database, "store": used.store}
            settings |= {name: url for name, url in elsewhere.items() if str(draft.folder.resolve()) not in url}
            write_secret(draft.settings, tomli_w.dumps(settings).encode())
            _move_in(draft, workspace, pool)
    except BaseException as error:
        if not existed:
            shutil.rmtree(workspace.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise from_os_error(error) from error
        raise


def check_absent(workspace: CoordinatorWorkspace) -> None:
    """Refuse to found a workspace over another, or over what an interrupted founding left."""
    for path in (workspace.settings, workspace.key, workspace.pool, workspace.roles, workspace.folder / "registry.db"):
        if path.exists():
            hint = "Choose another folder with --workspace; a key and a registry are never replaced."
            raise Refused(Code.WORKSPACE_EXISTS, f"{path} is there already.", hint)


def _trial_files(given: TrialFiles) -> dict[str, bytes]:
    """Read what experts are tried on, by the names under which it is kept."""
    lines = list(PROBE) if given.probe is None else read_probe(given.probe)
    files = {_PROBE: ("\n".join(lines) + "\n").encode()}
    for name, path in ((_ROWS, given.rows), (_CANARIES, given.canaries)):
        if path is not None:
            files[name] = read_file(path)
            parse_rows(path, files[name])
    return files


def read_probe(path: Path) -> list[str]:
    """Read public text, one input a line (`DATA_UNREADABLE`)."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.reason
        what = f"The probe {path} cannot be read: {reason}."
        raise Refused(Code.DATA_UNREADABLE, what, "Give a UTF-8 text file.") from error
    if not lines:
        raise Refused(Code.DATA_UNREADABLE, f"The probe {path} is empty.", "Give one input a line.")
    return lines


def _make_registry(url: str) -> None:
    with closing(Registry.open(url, migrate=True)) as registry:
        if registry.first_event() is not None:
            what = "The database holds the registry of another pool."
            raise Refused(Code.WORKSPACE_EXISTS, what, "Give an empty database.")


def _move_in(draft: CoordinatorWorkspace, workspace: CoordinatorWorkspace, pool: Pool) -> None:
    """Move a finished workspace into place; the settings file makes it one, and then the registry is the pool's."""
    moved: list[Path] = []
    names = sorted((path.name for path in draft.folder.iterdir()), key=lambda name: name == draft.settings.name)
    try:
        for name in names:
            (draft.folder / name).rename(workspace.folder / name)
            moved.append(workspace.folder / name)
        with closing(Registry.open(read(workspace).database)) as registry:
            registry.claim(pool.digest, now=read_timestamp(pool.spec.created))
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
