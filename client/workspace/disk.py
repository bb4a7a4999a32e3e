"""A disk that is full or read-only, in words."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from protocol.errors import GreylagError, from_os_error


@contextmanager
def storage() -> Iterator[None]:
    """Turn a full or closed disk inside the block into one clear sentence.

    Raises:
        Unavailable: `STORAGE_FULL`.
        Refused: `SETTINGS_INVALID` where the workspace cannot be written.
    """
    try:
        yield
    except GreylagError:
        raise
    except Exception as error:
        cause = _os_error(error)
        if cause is None or cause.errno not in _DISK:
            raise
        raise from_os_error(cause) from error


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
# safetensors and torch.save report a failed write without its errno; torch only by its source file.
_FULL = ("No space left on device", "inline_container.cc")


def _os_error(error: BaseException) -> OSError | None:
    # Libraries wrap a failed write in errors of their own (datasets in DatasetGenerationError).
    seen: BaseException | None = error
    for _ in range(8):
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen
        if seen is not None and any(text in str(seen) for text in _FULL):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seen = seen and (seen.__cause__ or seen.__context__)
    return None
