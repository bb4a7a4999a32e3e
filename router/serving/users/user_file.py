"""The users of a router: one file of its workspace, with a digest of each key in place of the key."""

import hmac
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from limits import RateLimitItem, parse_many

from protocol.documents import timestamp
from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.files import strict_json
from protocol.files.atomic import replace_secret
from protocol.files.locks import held
from protocol.spec import Name, Sha256, Timestamp
from protocol.statement import Strict, read

FILE = "users.json"
_KEY_BYTES = 32
_PREFIX = "greylag"
_NOBODY = sha256(b"").hexdigest()
_ASK = "Ask its operator for a key, and send it as: Authorization: Bearer KEY."


class User(Strict):
    """Somebody who may ask."""

    name: Name
    id: str
    """First part of the key, by which it is looked up; no secret."""
    digest: Sha256
    """Of the whole key. It is random and long, so that nothing slower than sha256 would make it harder to guess."""
    created: Timestamp
    revoked: Timestamp | None = None
    requests: str = ""
    """How many answers, as the library limits writes it: `60/minute;1000/day`; empty for any number."""
    tokens: str = ""
    """Likewise how many tokens, of inputs and of answers as long as they may become."""


class _File(Strict):
    version: Literal[1] = 1
    users: tuple[User, ...] = ()


class NewUser(NamedTuple):
    """A user and the key, which nobody can be shown again."""

    user: User
    key: str


def read_limits(text: str) -> list[RateLimitItem]:
    """Read limits as `User` holds them (`REQUEST_INVALID`)."""
    try:
        found = parse_many(text) if text else []
    except ValueError:
        found = None
    if found is None or any(limit.amount < 1 for limit in found):
        hint = "Write a number a span of time, several after semicolons: 60/minute;1000/day."
        raise Refused(Code.REQUEST_INVALID, f"{text!r:.100} is no limit.", hint)
    return found


def read_users(workspace: Path) -> tuple[User, ...]:
    """Read the users of a workspace, revoked ones among them; none where there is no file (`SPEC_INVALID`)."""
    try:
        raw = (workspace / FILE).read_bytes()
    except FileNotFoundError:
        return ()
    what = f"{workspace / FILE}"
    return read(_File, strict_json.loads(raw, what=what, code=Code.SPEC_INVALID), what=what).users


def add_user(workspace: Path, name: str, *, requests: str = "", tokens: str = "") -> NewUser:
    """Let somebody ask, from the next request on; whoever was revoked may come back under the same name.

    Raises:
        Refused: `KEY_EXISTS`, `SPEC_INVALID` for a name that is none, or `REQUEST_INVALID` for limits that are none.
    """
    for text in (requests, tokens):
        read_limits(text)
    public = secrets.token_hex(4)
    key = f"{_PREFIX}-{public}-{secrets.token_urlsafe(_KEY_BYTES)}"
    fields = {"name": name, "id": public, "digest": _digest(key), "created": timestamp(datetime.now(UTC))}
    user = read(User, fields | {"requests": requests, "tokens": tokens}, what="The user")
    with _changing(workspace) as users:
        if any(each.name == name and each.revoked is None for each in users):
            hint = f"Take it back first: greylag-router users revoke {name}"
            raise Refused(Code.KEY_EXISTS, f"{name} has a key already, which cannot be shown again.", hint)
        users[:] = [*(each for each in users if each.name != name), user]
    return NewUser(user, key)


def revoke_user(workspace: Path, name: str) -> User:
    """Let somebody ask no more, from the next request on (`USER_UNKNOWN`); who was revoked before stays so."""
    with _changing(workspace) as users:
        at = next((at for at, each in enumerate(users) if each.name == name), None)
        if at is None:
            what = f"There is no user {name!r:.100} here."
            raise Refused(Code.USER_UNKNOWN, what, "See who there is with: greylag-router users ls")
        if users[at].revoked is None:
            users[at] = users[at].model_copy(update={"revoked": timestamp(datetime.now(UTC))})
        return users[at]


class Users:
    """The users of a workspace, as its file has them at each moment.

    Args:
        workspace: The folder.

    Attributes:
        needed: Whether a request needs a key: from when there was a file, even if it is gone.
    """

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._seen: object = None
        self._users: dict[str, User] = {}
        self.needed = False
        self._look()

    def admit(self, authorization: str | None) -> User | None:
        """Tell who asks; None for anybody, where no keys are needed.

        Args:
            authorization: What the request says: `Bearer KEY`.

        Raises:
            Refused: `USER_KEY`, which does not say what is wrong with a key.
            Unavailable: `CLOSED` where the file cannot be read.
        """
        self._look()
        if not self.needed:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise Refused(Code.USER_KEY, "The router takes no requests without a key.", _ASK)
        user = self._users.get(key.partition("-")[2].partition("-")[0])
        right = hmac.compare_digest(user.digest if user else _NOBODY, _digest(key))
        if user is None or not right or user.revoked is not None:
            raise Refused(Code.USER_KEY, "The router knows no such key.", _ASK)
        return user

    def _look(self) -> None:
        try:
            status = (self._workspace / FILE).stat()
        except FileNotFoundError:
            self._seen, self._users = None, {}
            return
        self.needed, seen = True, (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            try:
                self._users = {user.id: user for user in read_users(self._workspace)}
            except (GreylagError, OSError) as error:
                self._seen, self._users = None, {}
                what = "The router's list of users cannot be read."
                raise Unavailable(Code.CLOSED, what, "Ask its operator to look at users.json.") from error
            self._seen = seen


@contextmanager
def _changing(workspace: Path) -> Iterator[list[User]]:
    workspace.mkdir(parents=True, exist_ok=True)
    busy = "Another command changes the users of this workspace."
    with held(workspace / ".users.lock", busy, "Run it again.", wait_s=10.0):
        users = list(read_users(workspace))
        yield users
        document = _File(users=tuple(users)).model_dump(mode="json")
        replace_secret(workspace / FILE, strict_json.dumps(document) + b"\n")


def _digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()
