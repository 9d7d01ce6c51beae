"""Files of every kind: written whole or not at all, and names that are shown harmlessly."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from iba_core.arguments import given
from iba_core.errors import InputError
from iba_core.undo import undoing

_unfinished: set[Path] = set()
"""The temporary files that are being written, and temporary folders."""


def shown(name: object) -> str:
    r"""Write a name so that a terminal or a figure shows it and does nothing else.

    Line breaks, escape sequences, other control characters and bytes that are no UTF-8 are escaped as in
    Python.

    Args:
        name: a text, a path, or anything with a text.

    Example:
        >>> print(shown("a\x1b[31m\nb"))
        a\x1b[31m\nb
    """
    text = os.fsdecode(name) if isinstance(name, (bytes, os.PathLike)) else str(name)
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def as_path(path: Any, argument: str = "path") -> Path:
    """Return the path that a caller gave.

    Raises:
        InputError: it is no text and no path, or empty, or holds a zero byte.

    Example:
        >>> as_path("").name
        Traceback (most recent call last):
        iba_core.errors.InputError: path='' is not the name of a file
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        text = ""
    if not text or "\0" in text:
        raise InputError(f"{given(argument, path)} is not the name of a file")
    return Path(text)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a regular file: no folder, device or pipe.

    Example:
        >>> is_file("/dev/null"), is_file("x" * 5000)
        (False, False)
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def require_writable(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """Check that a file can be written, before the work for it begins.

    Args:
        path: the file.
        argument: name of the argument, for the message.

    Returns:
        The path of the file itself, where `path` is a link to it.

    Raises:
        InputError: its folder does not exist or is read-only, its name is too long, or it exists and is a
            folder, a device or read-only.

    Example:
        >>> require_writable("/dev/null")
        Traceback (most recent call last):
        iba_core.errors.InputError: path='/dev/null' is a device or a pipe; a file was expected
    """
    given = as_path(path, argument)
    name = f"{argument}={str(given)!r}"
    target = Path(os.path.realpath(given))
    try:
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError as error:
        raise InputError(f"{name} cannot be written: {_reason(error)}") from error
    if not target.parent.is_dir():
        raise InputError(f"{name} cannot be written: its folder does not exist")
    if mode is not None and stat.S_ISDIR(mode):
        raise InputError(f"{name} is a folder; a file was expected")
    if mode is not None and not stat.S_ISREG(mode):
        raise InputError(f"{name} is a device or a pipe; a file was expected")
    if mode is not None and not os.access(target, os.W_OK):
        raise InputError(f"{name} cannot be written: it is read-only")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"{name} cannot be written: its folder is read-only")
    return target


@contextmanager
def write_atomically(
    path: str | os.PathLike[str], argument: str = "path", *, waits: bool = True
) -> Iterator[BinaryIO]:
    """Open a file that appears whole when the block ends, or not at all.

    Until then, an earlier file of that name stays as it is, also after a crash. A link is followed, and the
    permissions of an earlier file are kept.

    Args:
        path: the file.
        argument: name of the argument, for the message.
        waits: whether to wait until the disk has it. Files that can be made again need not.

    Yields:
        A file to write bytes to.

    Raises:
        InputError: it cannot be written, see `require_writable`, or the disk is full.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "file"
        >>> with write_atomically(path) as file:
        ...     _ = file.write(b"all of it")
        >>> path.read_bytes()
        b'all of it'
    """
    target = require_writable(path, argument)
    # In the same folder, since a rename is atomic only within one file system. The name is short, since that
    # of the file may be as long as the file system allows.
    unfinished = target.with_name(f".iba-{uuid.uuid4().hex}")

    def clear() -> None:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        _unfinished.discard(unfinished)

    with undoing(clear):
        _unfinished.add(unfinished)
        try:
            with unfinished.open("xb") as file:
                yield file
                if waits:
                    file.flush()
                    os.fsync(file.fileno())
            _keep_permissions(target, unfinished)
            unfinished.replace(target)
            if waits:
                _sync_folder(target.parent)
        except OSError as error:
            name = f"{argument}={os.fsdecode(path)!r}"
            raise InputError(f"{name} cannot be written: {_reason(error)}") from error


@contextmanager
def temporary_folder(within: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Context with a new folder, which is removed at the end with all in it.

    Python's own `tempfile.TemporaryDirectory` stays where an interrupt comes while it is made or removed.

    Args:
        within: the folder that it is made in; that for temporary files if None.

    Yields:
        The folder, which only this user can read.

    Example:
        >>> with temporary_folder() as folder:
        ...     _ = (folder / "file").write_text("text")
        >>> folder.exists()
        False
    """
    path = Path(tempfile.gettempdir() if within is None else within) / f".iba-{uuid.uuid4().hex}"

    def clear() -> None:
        shutil.rmtree(path, ignore_errors=True)
        _unfinished.discard(path)

    with undoing(clear):
        _unfinished.add(path)
        path.mkdir(mode=0o700)
        yield path


def discard_unfinished() -> None:
    """Remove the temporary files and folders of all that is being done, where the program ends at once."""
    for path in tuple(_unfinished):
        with suppress(OSError):
            path.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def _keep_permissions(target: Path, unfinished: Path) -> None:
    with suppress(FileNotFoundError):
        known = os.stat(target)
        # Only an administrator may give a file away; for others it stays their own.
        with suppress(OSError):
            os.chown(unfinished, known.st_uid, known.st_gid)
        os.chmod(unfinished, stat.S_IMODE(known.st_mode))


def _sync_folder(folder: Path) -> None:
    """Make the rename last, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
