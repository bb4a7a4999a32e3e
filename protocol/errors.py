"""What can go wrong, in one table: a code, its meaning, and how each door reports it.

Two families. `Refused` means that the other side's bytes, key or request are at fault and that
sending the same again will be refused again. `Unavailable` means that nothing is wrong with the
request: try again. Misuse by a programmer stays `ValueError`.

Exit statuses are those of BSD's sysexits.h, which shells and service managers already know.
"""

import errno
from enum import Enum
from typing import NamedTuple

EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_UNAVAILABLE, EX_SOFTWARE, EX_CANTCREAT = 64, 65, 66, 69, 70, 73
EX_IOERR, EX_TEMPFAIL, EX_PROTOCOL, EX_NOPERM, EX_CONFIG = 74, 75, 76, 77, 78


class Fate(NamedTuple):
    """How the doors report a code."""

    grpc: str
    """Name of the gRPC status code."""
    http: int
    """HTTP status."""
    exit: int
    """Exit status of a command (sysexits.h)."""
    meaning: str
    """One sentence for the reference table in docs/errors.md."""
    again: bool = False
    """The family: whether nobody is at fault, so that the same request may succeed later."""


class Code(Enum):
    """Every reason, once. A code is never reused for another meaning."""

    # What an envelope or a statement looks like.
    BAD_WIRE = Fate("INVALID_ARGUMENT", 400, EX_PROTOCOL, "The message is not what the protocol says.")
    MESSAGE_TOO_LARGE = Fate("RESOURCE_EXHAUSTED", 413, EX_PROTOCOL, "A message is larger than one side takes.")
    ENVELOPE_SCHEMA = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "The signed envelope is malformed.")
    UNSUPPORTED_STATEMENT = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "The statement is of another type or version.")
    SPEC_INVALID = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "A signed document breaks its schema.")

    # Who signed.
    BAD_SIGNATURE = Fate("UNAUTHENTICATED", 401, EX_NOPERM, "No valid signature by the expected key.")
    KEY_TYPE = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "The key is not an Ed25519 key that can be read.")
    WEAK_KEY = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "The public key is of small order and signs everything.")
    KEY_UNKNOWN = Fate("UNAUTHENTICATED", 401, EX_NOPERM, "The key is not enrolled with this coordinator.")
    KEY_PENDING = Fate("FAILED_PRECONDITION", 409, EX_NOPERM, "The key waits for an operator's approval.")
    KEY_ROTATED = Fate("PERMISSION_DENIED", 403, EX_NOPERM, "Another key of its contributor took the key's place.")
    KEY_REVOKED = Fate("PERMISSION_DENIED", 403, EX_NOPERM, "The key was revoked.")
    SIGNER_MISMATCH = Fate("PERMISSION_DENIED", 403, EX_NOPERM, "The bundle names another contributor than its signer.")
    SESSION_DENIED = Fate("PERMISSION_DENIED", 403, EX_NOPERM, "The upload session belongs to someone else.")

    # Nodes and campaigns.
    NODE_KEY = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "A node's key is not an ECDSA key on P-384.")
    NODE_TAKEN = Fate("ALREADY_EXISTS", 409, EX_DATAERR, "The node's key is bound to another contributor.")
    FLEET_OFF = Fate("FAILED_PRECONDITION", 409, EX_CONFIG, "The coordinator takes no daemons.")
    APP_UNKNOWN = Fate("PERMISSION_DENIED", 403, EX_NOPERM, "The pool does not allow this app bundle.")
    CLOCKS_APART = Fate("FAILED_PRECONDITION", 409, EX_TEMPFAIL, "The clocks of node and coordinator are apart.")
    VERSION_UNKNOWN = Fate("FAILED_PRECONDITION", 409, EX_CONFIG, "The node runs another version of the program.")
    ORDER_INVALID = Fate("PERMISSION_DENIED", 403, EX_NOPERM, "The message carries no order that this node obeys.")
    CONSENT = Fate("PERMISSION_DENIED", 403, EX_NOPERM, "The contributor does not allow the campaign, or not yet.")
    EGRESS = Fate("PERMISSION_DENIED", 403, EX_NOPERM, "The reply holds something that may not leave the node.")
    CAMPAIGN_UNKNOWN = Fate("NOT_FOUND", 404, EX_NOINPUT, "There is no such campaign.")
    CANDIDATE_UNKNOWN = Fate("NOT_FOUND", 404, EX_NOINPUT, "There is no such candidate release.")
    BUDGET_EXHAUSTED = Fate("RESOURCE_EXHAUSTED", 429, EX_NOPERM, "The privacy budget does not allow it.")
    HELD_BACK = Fate("FAILED_PRECONDITION", 409, EX_DATAERR, "The candidate did not do well enough on held-out data.")

    # What a pool takes.
    INVITE = Fate("PERMISSION_DENIED", 403, EX_NOPERM, "A new key needs an invite that still holds.")
    NAME_TAKEN = Fate("ALREADY_EXISTS", 409, EX_DATAERR, "The name belongs to another contributor.")
    NAME_MISLEADING = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "The name looks like a key.")
    WRONG_POOL = Fate("FAILED_PRECONDITION", 409, EX_DATAERR, "The bundle was made for another pool.")
    BASE_MISMATCH = Fate("FAILED_PRECONDITION", 409, EX_DATAERR, "The base model is not the pool's.")
    MODULE_UNKNOWN = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "The expert touches a module that the base lacks.")
    KIND_UNSUPPORTED = Fate("FAILED_PRECONDITION", 409, EX_DATAERR, "An expert of this kind cannot run here.")
    RANK_OUT_OF_BOUNDS = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "A rank is outside what the pool allows.")
    SUPERSEDES_UNKNOWN = Fate("NOT_FOUND", 404, EX_DATAERR, "The bundle to supersede is not this contributor's.")
    VERSION_REUSED = Fate("ALREADY_EXISTS", 409, EX_DATAERR, "The expert's name is in use and is not superseded.")
    DUPLICATE_OF = Fate("ALREADY_EXISTS", 409, EX_DATAERR, "Another key has submitted the same weights.")
    COPY_OF = Fate("ALREADY_EXISTS", 409, EX_DATAERR, "The expert adds what an earlier bundle adds.")
    NEAR_COPY = Fate("FAILED_PRECONDITION", 409, EX_DATAERR, "Much of the expert is another bundle's.")
    QUOTA = Fate("RESOURCE_EXHAUSTED", 429, EX_TEMPFAIL, "The contributor's quota is used up.")
    TOO_LARGE = Fate("RESOURCE_EXHAUSTED", 413, EX_DATAERR, "The bundle is larger than the pool takes.")

    # Bytes.
    FILE_NOT_ALLOWED = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "The bundle holds a file that no bundle has.")
    FILE_MISSING = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "The bundle lacks a file.")
    SIZE_MISMATCH = Fate("DATA_LOSS", 422, EX_DATAERR, "A file has another size than was signed.")
    DIGEST_MISMATCH = Fate("DATA_LOSS", 422, EX_DATAERR, "A file's bytes are not those that were signed.")
    CHUNK_CORRUPT = Fate("DATA_LOSS", 422, EX_IOERR, "A chunk arrived damaged.")
    OFFSET_MISMATCH = Fate("ABORTED", 409, EX_TEMPFAIL, "A chunk does not continue where the file ends.")
    MISSING_RANGES = Fate("FAILED_PRECONDITION", 409, EX_TEMPFAIL, "Not all bytes have arrived.")
    SESSION_UNKNOWN = Fate("NOT_FOUND", 404, EX_TEMPFAIL, "There is no such upload session; begin again.")

    # Tensors and numbers.
    TENSOR_HEADER = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "The safetensors header is malformed.")
    TENSOR_NAMES = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "Tensors are missing or extra.")
    TENSOR_SHAPE = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "A tensor has another shape than was declared.")
    TENSOR_DTYPE = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "A tensor has a dtype that a pool does not take.")
    CONFIG_MISMATCH = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "adapter_config.json says other than the spec.")
    CARD_INVALID = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "The model card is not plain text.")
    NOT_FINITE = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "A tensor holds NaN or infinity.")
    CONSTANT_GATE = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "A gate is constant, so it cannot route.")
    NO_EFFECT = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "The expert changes nothing.")
    NORM_LIMIT = Fate("FAILED_PRECONDITION", 409, EX_DATAERR, "An expert changes the base more than the pool allows.")
    NORM_UNUSUAL = Fate(
        "FAILED_PRECONDITION", 409, EX_DATAERR, "An expert changes far more than others; a person decides."
    )
    NEAR_GATES = Fate("FAILED_PRECONDITION", 409, EX_DATAERR, "An expert chooses as another's does; a person decides.")
    HEADROOM = Fate("FAILED_PRECONDITION", 409, EX_DATAERR, "An expert drives the model close to overflow.")
    HARMFUL = Fate("FAILED_PRECONDITION", 409, EX_DATAERR, "An expert spoils answers on the operator's rows.")
    PROBE_FAILED = Fate("FAILED_PRECONDITION", 409, EX_DATAERR, "The routed model breaks on the probe text.")
    VALIDATOR_FAILED = Fate("FAILED_PRECONDITION", 409, EX_DATAERR, "The validator hit its limits on this bundle.")
    DECLINED = Fate("FAILED_PRECONDITION", 409, EX_DATAERR, "An operator decided against the bundle.")

    # What is asked for.
    BUNDLE_UNKNOWN = Fate("NOT_FOUND", 404, EX_NOINPUT, "There is no such bundle.")
    RELEASE_UNKNOWN = Fate("NOT_FOUND", 404, EX_NOINPUT, "There is no such release.")
    RELEASE_ROLLBACK = Fate("FAILED_PRECONDITION", 409, EX_PROTOCOL, "The release is older than one already seen.")
    RELEASE_FORK = Fate("FAILED_PRECONDITION", 409, EX_PROTOCOL, "The release does not continue the one seen before.")
    RELEASE_TOO_FAR = Fate(
        "FAILED_PRECONDITION", 409, EX_PROTOCOL, "The release is too far ahead of what can have been before it."
    )
    RELEASE_DATES = Fate(
        "FAILED_PRECONDITION", 409, EX_PROTOCOL, "The release is valid for longer than the pool allows."
    )
    RELEASE_EXPIRED = Fate("FAILED_PRECONDITION", 410, EX_PROTOCOL, "The release has expired.")
    LOG_ROLLBACK = Fate("FAILED_PRECONDITION", 409, EX_PROTOCOL, "The log lost entries that it had signed for.")
    LOG_FORK = Fate("FAILED_PRECONDITION", 409, EX_PROTOCOL, "The log does not continue what it was before.")
    LOG_OMISSION = Fate("FAILED_PRECONDITION", 409, EX_PROTOCOL, "The log does not hold what it should.")
    METHOD_UNKNOWN = Fate("INVALID_ARGUMENT", 400, EX_USAGE, "There is no such routing method.")
    METHOD_CLOSED = Fate("PERMISSION_DENIED", 403, EX_NOPERM, "The router's operator keeps the method to himself.")
    EXPERT_UNKNOWN = Fate("NOT_FOUND", 404, EX_NOINPUT, "There is no such expert in the release.")
    EXPERTS_EXHAUSTED = Fate("INVALID_ARGUMENT", 400, EX_USAGE, "Too few experts are left for what is asked.")
    STATISTICS_MISSING = Fate("FAILED_PRECONDITION", 409, EX_DATAERR, "A bundle tells too little of its data.")
    STATE_CHANGE = Fate("FAILED_PRECONDITION", 409, EX_USAGE, "What it is about is in no state for that step.")
    REQUEST_INVALID = Fate("INVALID_ARGUMENT", 400, EX_USAGE, "The request cannot be answered as it is.")

    POOL_UNKNOWN = Fate("NOT_FOUND", 404, EX_NOINPUT, "The router serves no such pool.")
    USER_KEY = Fate("UNAUTHENTICATED", 401, EX_NOPERM, "A request needs the key of one of the router's users.")
    USER_UNKNOWN = Fate("NOT_FOUND", 404, EX_NOINPUT, "The router has no such user.")

    # On the user's own machine.
    DATA_UNREADABLE = Fate("INVALID_ARGUMENT", 400, EX_NOINPUT, "The data file is missing or cannot be read.")
    DATA_COLUMNS = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "The data lack the columns that training needs.")
    DATA_EMPTY = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "The data hold empty rows or too few rows.")
    DATA_TOO_LONG = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "An example is longer than the model takes.")
    TASK_ROW = Fate("INVALID_ARGUMENT", 400, EX_DATAERR, "A row of the tasks lacks something or contradicts itself.")
    ADAPTER_UNREADABLE = Fate("INVALID_ARGUMENT", 400, EX_NOINPUT, "The adapter is missing or cannot be read.")
    BASE_UNREADABLE = Fate("INVALID_ARGUMENT", 400, EX_NOINPUT, "The base model cannot be loaded.")
    PASSPHRASE = Fate("UNAUTHENTICATED", 401, EX_NOPERM, "The passphrase does not open the key.")
    KEY_UNREADABLE = Fate("INVALID_ARGUMENT", 400, EX_NOINPUT, "The key file is missing or cannot be read.")
    KEY_EXISTS = Fate("ALREADY_EXISTS", 409, EX_CANTCREAT, "There is a key already; it is never replaced.")
    SETTINGS_INVALID = Fate("INVALID_ARGUMENT", 400, EX_CONFIG, "A settings file, variable or flag is wrong.")
    WORKSPACE_BUSY = Fate("FAILED_PRECONDITION", 409, EX_TEMPFAIL, "Another process works in this workspace.")
    WORKSPACE_EXISTS = Fate("ALREADY_EXISTS", 409, EX_CANTCREAT, "There is a workspace here already.")
    WORKSPACE_MISSING = Fate("NOT_FOUND", 404, EX_CONFIG, "There is no workspace here yet.")
    SCHEMA_MISMATCH = Fate("FAILED_PRECONDITION", 409, EX_CONFIG, "The registry was written by another version.")
    REGISTRY_OLDER = Fate("FAILED_PRECONDITION", 409, EX_CONFIG, "The registry is older than what left it.")
    NOT_TRAINED = Fate("FAILED_PRECONDITION", 409, EX_USAGE, "There is no finished bundle here yet.")
    UNTRUSTED = Fate("UNAUTHENTICATED", 401, EX_NOPERM, "The coordinator is not the one that this machine trusts.")

    # Nobody's fault; try again.
    UNREACHABLE = Fate("UNAVAILABLE", 503, EX_UNAVAILABLE, "The other side cannot be reached.", again=True)
    MEMORY_FULL = Fate("RESOURCE_EXHAUSTED", 507, EX_UNAVAILABLE, "The experts do not fit into memory.", again=True)
    STORAGE_FULL = Fate("RESOURCE_EXHAUSTED", 507, EX_IOERR, "The disk is full.", again=True)
    STORE_DAMAGED = Fate("DATA_LOSS", 500, EX_IOERR, "The coordinator lost or changed what it keeps.", again=True)
    LOG_UNWITNESSED = Fate("UNAVAILABLE", 503, EX_TEMPFAIL, "Too few witnesses have signed for the log.", again=True)
    INTERRUPTED = Fate("UNAVAILABLE", 503, EX_TEMPFAIL, "A person stopped it; it goes on where it was.", again=True)
    CLOSED = Fate("UNAVAILABLE", 503, EX_TEMPFAIL, "The operator has closed the pool or its door.", again=True)
    LIMIT_REACHED = Fate(
        "RESOURCE_EXHAUSTED", 429, EX_TEMPFAIL, "The user has asked for as much as its limits allow.", again=True
    )
    BUSY = Fate("UNAVAILABLE", 503, EX_TEMPFAIL, "The other side is busy or shutting down.", again=True)
    INTERNAL = Fate("INTERNAL", 500, EX_SOFTWARE, "The other side failed; its log says why.", again=True)

    @property
    def fate(self) -> Fate:
        """How the doors report this code."""
        return self.value

    @property
    def family(self) -> type["GreylagError"]:
        """The class of its errors."""
        return Unavailable if self.fate.again else Refused


ADVICE = {
    Code.BAD_WIRE: "Run the same version on both sides.",
    Code.ENVELOPE_SCHEMA: "Make and sign the document again, with the other side's version of the program.",
    Code.UNSUPPORTED_STATEMENT: "Give the document that is asked for, of the version that is asked for.",
    Code.SPEC_INVALID: "Correct the document, then sign it again.",
    Code.BAD_SIGNATURE: "Sign the document again, with the key that it names.",
    Code.TOO_LARGE: "Make it smaller.",
    Code.FILE_NOT_ALLOWED: "Leave it out, and pack the bundle again.",
    Code.FILE_MISSING: "Pack the bundle again.",
    Code.SIZE_MISMATCH: "Pack the bundle again, and send the files as they were packed.",
    Code.DIGEST_MISMATCH: "Send the files again, as they were packed.",
    Code.OFFSET_MISMATCH: "Begin again to learn where the file continues.",
    Code.TENSOR_HEADER: "Write the file again with the safetensors library, then pack it.",
    Code.TENSOR_NAMES: "Write the tensors that the spec declares and no others, then pack them.",
    Code.TENSOR_SHAPE: "Write the tensors in the shapes that the spec declares, then pack them.",
    Code.TENSOR_DTYPE: "Write the tensors in the dtype that the spec declares, then pack them.",
    Code.REQUEST_INVALID: "Correct the request.",
}
"""What to do, for the many places that refuse with a code and know nothing nearer."""


class GreylagError(Exception):
    """An error that a person can act on.

    Args:
        code: The reason; decides exit, HTTP and gRPC status, and which of the two classes is right.
        message: One public sentence: what, where, expected, found. Never private data.
        hint: What to do next, often a command to type; the code's `ADVICE` unless given.
    """

    def __init__(self, code: Code, message: str, hint: str = "") -> None:
        if type(self) is not code.family:
            raise ValueError(f"{code.name} is no {type(self).__name__}")
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint or ADVICE.get(code, "")

    def __reduce__(self) -> tuple[type["GreylagError"], tuple[Code, str, str]]:
        return type(self), (self.code, self.message, self.hint)  # by itself pickle gives the message alone

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}" + (f" {self.hint}" if self.hint else "")


class Refused(GreylagError):  # noqa: N818 - the word people see
    """The request is at fault; the same request will be refused again."""


class Unavailable(GreylagError):  # noqa: N818 - as above
    """The request is fine; try again later."""


def from_os_error(error: OSError) -> GreylagError:
    """Say what the operating system refused, for the doors: a path that cannot be used, a full disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable(Code.STORAGE_FULL, "The disk is full.", "Make room, then run the same command again.")
    what = "A file" if error.filename is None else str(error.filename)
    reason = error.strerror or type(error).__name__
    return Refused(Code.SETTINGS_INVALID, f"{what} cannot be used: {reason}.", "Check the path and its permissions.")
