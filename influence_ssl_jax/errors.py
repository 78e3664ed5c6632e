"""Define the errors that a user can correct.

Each message says what was wrong, what was got and what to do.
"""

import contextlib
import errno
import importlib.util
import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path


class InfluenceError(Exception):
    """Base of every documented error.

    The command line prints its message without a traceback.

    Attributes:
        status: Exit status of a command that ends with it.

    Examples:
        >>> import influence_ssl_jax as isj
        >>> try:
        ...     isj.Folder("photographs that are nowhere").open()
        ... except isj.InfluenceError as error:
        ...     print(type(error).__name__, error.status)
        DataError 2
    """

    status = 2


class IndefiniteError(InfluenceError):
    """`C + damping·I` is not positive definite, so a self-influence could be negative."""

    def __init__(self, smallest: float, damping: float):
        super().__init__(
            f"C + damping·I is not positive definite: the smallest eigenvalue of C is about {smallest:.4g} and the damping "
            f"is {damping:.4g}. Use a curvature that is positive semi-definite by construction (curvature='ggn', the "
            f"default), or an absolute damping above {-smallest:.4g}."
        )
        self.smallest = smallest
        self.damping = damping


class CurvatureError(InfluenceError):
    """A backend cannot represent the requested curvature."""


class DivergenceError(InfluenceError):
    """An iteration would grow without bound instead of converging."""


class StructureError(InfluenceError):
    """Parameters do not match the layers, the network or another vector."""


class DataError(InfluenceError):
    """A data set is unknown, not prepared, empty, or wrongly described."""


class StoreError(InfluenceError):
    """An output folder cannot be used.

    It belongs to another run, is in use, or lacks the requested content.
    """


class SkippedError(InfluenceError):
    """A finished run skipped more of its images than allowed.

    It could not use them; its results are complete.
    """

    status = 3


class PartnerError(InfluenceError):
    """Another process of the same run has ended with an error."""

    status = 4


class MissingExtraError(InfluenceError, ImportError):
    """A part of the package needs packages that are not installed."""


EXTRAS = {
    "data": ("pyarrow", "PIL", "fsspec", "scipy", "sklearn"),
    "tfds": ("tensorflow_datasets", "array_record", "importlib_resources"),
    "train": ("optax", "orbax", "rich"),
    "report": ("matplotlib", "jinja2", "rich"),
    "cli": ("tyro",),
}
"""The packages that each extra installs, by the names under which Python imports them."""


def require(extra: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        extra: A key of `EXTRAS`.

    Raises:
        MissingExtraError: If one is not installed; the message names the extra.

    Examples:
        >>> require("data")  # silent if the packages are installed
    """
    absent = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if absent:
        raise MissingExtraError(
            f"This part of influence_ssl_jax needs {', '.join(absent)}: pip install 'influence-ssl-jax[{extra}]'."
        )


class FullDiskError(InfluenceError):
    """A disk is full."""


class FailingDiskError(InfluenceError):
    """A disk cannot be read or written for now."""


_FAILING = frozenset(
    {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN}
    | {errno.ETIMEDOUT, errno.EREMOTEIO, errno.EHOSTDOWN, errno.ENETUNREACH}
)
"""Errors of a disk that is broken, read-only, closed to this user, or no longer connected."""


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a disk that is full, or of a quota or limit that is reached."""


@contextlib.contextmanager
def disk_of(path: Path) -> Iterator[None]:
    """Report a full or failing disk by name, with what to do.

    Args:
        path: A path on the disk that the block writes to.

    Raises:
        FullDiskError: If no space is left, a quota is used up, or a file may not grow further.
        FailingDiskError: If the disk is broken, read-only, closed to this user, or no longer connected.

    Examples:
        >>> import errno, pathlib
        >>> try:
        ...     with disk_of(pathlib.Path.cwd()):
        ...         raise OSError(errno.ENOSPC, "No space left on device")
        ... except FullDiskError as error:
        ...     print(str(error).startswith("The disk of"))
        True
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # orbax's own writer reports it as one of the latter two
        number = error.errno if isinstance(error, OSError) else None
        if number is None:
            number = next((each for each in (*_FULL, *_FAILING) if os.strerror(each) in str(error)), None)
        if number is None or number not in _FULL | _FAILING:
            raise
        if number in _FAILING:
            raise FailingDiskError(
                f"{getattr(error, 'filename', None) or path} cannot be read or written: {os.strerror(number)}. Repair the "
                "disk or its permissions, then give the same command again: what was finished is kept."
            ) from error
        free = shutil.disk_usage(path.parent).free
        raise FullDiskError(
            f"The disk of {path} cannot take more data: {os.strerror(number)}, {free:,} bytes are free. Make room there, "
            "then give the same command again: what was finished is kept."
        ) from error


_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction in which the text around them is shown."""


def printable(text: str) -> str:
    r"""Return `text` with escapes for what a terminal obeys or cannot show.

    Control characters, line separators and changes of direction become `\x1b` or `\u202e`; a byte of a file name that
    is not UTF-8 becomes `\xff`.

    Examples:
        >>> print(printable("a\x1b[2Jb"))
        a\x1b[2Jb
    """
    if text.isprintable():
        return text
    return "".join(map(_escape, text))


def _escape(character: str) -> str:
    """Return a character, or its escape if `printable` needs one."""
    if "\udc80" <= character <= "\udcff":  # how Python writes a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNS:
        return character.encode("unicode_escape").decode("ascii")
    return character
