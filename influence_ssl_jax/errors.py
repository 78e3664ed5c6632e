"""The errors that a user can mend: what was wrong, what was got, what to do."""

import contextlib
import errno
import importlib.util
import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path


class InfluenceError(Exception):
    """Base of every documented error; the command line prints its message without a traceback.

    Attributes:
        status: The exit status of a command that it ends.
    """

    status = 2


class IndefiniteError(InfluenceError):
    """`C + damping·I` is not positive definite, so a self-influence would have no sign."""

    def __init__(self, smallest: float, damping: float):
        super().__init__(
            f"C + damping·I is not positive definite: the smallest eigenvalue of C is about {smallest:.4g} and the damping "
            f"is {damping:.4g}. Use a curvature that is positive semi-definite by construction (curvature='ggn', the "
            f"default), or an absolute damping above {-smallest:.4g}."
        )
        self.smallest = smallest
        self.damping = damping


class CurvatureError(InfluenceError):
    """A backend was asked for a curvature that it cannot represent."""


class DivergenceError(InfluenceError):
    """An iteration would grow without bound instead of converging."""


class StructureError(InfluenceError):
    """Parameters and layers do not match: a parameter that no layer explains, or a vector of another structure."""


class DataError(InfluenceError):
    """A data set that is unknown, not prepared or empty, or a description of it that cannot be."""


class StoreError(InfluenceError):
    """An output folder that belongs to another run, is in use, or does not hold what is asked of it."""


class SkippedError(InfluenceError):
    """A finished run that could not use more of its images than its user allows; what it made is whole."""

    status = 3


class PartnerError(InfluenceError):
    """Another process of a run of several has died."""

    status = 4


class MissingExtraError(InfluenceError, ImportError):
    """A part of the package was imported whose packages are not installed."""


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
        MissingExtraError: One is not; the message names the extra.
    """
    absent = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if absent:
        raise MissingExtraError(
            f"This part of influence_ssl_jax needs {', '.join(absent)}: pip install 'influence-ssl-jax[{extra}]'."
        )


class FullDiskError(InfluenceError):
    """A disk that takes no more bytes."""


@contextlib.contextmanager
def disk_of(path: Path) -> Iterator[None]:
    """Where the disk that `path` is written to is full, says which one it is and what to do.

    Raises:
        FullDiskError: No space is left, a quota is used up, or a file may not grow further.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # orbax's own writer reports it as one of the latter two
        number = getattr(error, "errno", None)
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            number = errno.ENOSPC
        free = shutil.disk_usage(path.parent).free
        raise FullDiskError(
            f"The disk of {path} takes no more: {os.strerror(number)}, {free:,} bytes are free. Make room there, then "
            "give the same command again: what was finished is kept."
        ) from error


_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction in which text around them is shown."""


def printable(text: str) -> str:
    r"""Return `text` with everything that a terminal would obey, or could not show, as an escape.

    Control characters, line separators and changes of direction become `\x1b` or `\u202e`, a byte of a file name that is
    not UTF-8 becomes `\xff`.
    """
    if text.isprintable():
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python writes a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNS:
        return character.encode("unicode_escape").decode("ascii")
    return character
