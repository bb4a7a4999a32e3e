"""Settings of a program: flags before environment before a TOML file; what nobody knows is refused."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import tomli_w
from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource

from protocol.errors import Code, Refused
from protocol.statement import first_invalid

Settings = TypeVar("Settings", bound=BaseSettings)


def read_settings(
    schema: type[Settings],
    flags: Mapping[str, object],
    file: Path | None = None,
    defaults: Mapping[str, object] | None = None,
) -> Settings:
    """Read settings once.

    Args:
        schema: What may be set; its `env_prefix` names the variables.
        flags: Settings from the command line; None stands for a flag that was not given.
        file: The TOML file, where there may be one.
        defaults: What holds where nobody says anything, and depends on where the file is.

    Raises:
        Refused: `SETTINGS_INVALID`, naming the setting and what is wrong with it.
    """
    _check_environment(schema)
    given = {name: value for name, value in flags.items() if value is not None}
    where = file or "the settings file"
    try:
        written = tomllib.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}
        return schema(**{**(defaults or {}), **written, **EnvSettingsSource(schema)(), **given})
    except ValidationError as error:
        name, reason = first_invalid(error)
        raise Refused(
            Code.SETTINGS_INVALID,
            f"The setting {name} is wrong: {reason}.",
            f"Give --{name.replace('_', '-')}, set {_prefix(schema)}{name.upper()}, or write it in {where}.",
        ) from error
    except (OSError, ValueError) as error:  # among them what is not UTF-8
        what = "cannot be read" if isinstance(error, OSError) else "is not TOML"
        raise Refused(Code.SETTINGS_INVALID, f"{file} {what}: {error}.", "Correct the file.") from error


def dump_settings(settings: BaseSettings) -> bytes:
    """Write what differs from the defaults as TOML."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True)).encode()


def _check_environment(schema: type[BaseSettings]) -> None:
    # pydantic-settings ignores variables that it does not know; a misspelt one should not be ignored.
    prefix = _prefix(schema)
    known = [prefix + field.upper() for field in schema.model_fields]
    for name in os.environ:
        if name.startswith(prefix) and name.upper() not in known:
            raise Refused(Code.SETTINGS_INVALID, f"There is no setting {name}.", f"Known are {', '.join(known)}.")


def _prefix(schema: type[BaseSettings]) -> str:
    return schema.model_config.get("env_prefix", "")
