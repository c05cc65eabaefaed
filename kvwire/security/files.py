"""Files that say who may talk to whom: read whole and bounded, written by one rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from kvwire.errors import IdentityError, KvwireError

MAX_FILE_BYTES = 16 << 20
"""Far more than any of them needs: a revocation list of 100,000 certificates."""

OTHERS_MAY_WRITE = 0o022
PRIVATE = 0o600
PUBLIC = 0o644

MAX_LINKS = 40
"""In a row, as the kernel has it."""

Name = str | os.PathLike[str]

Stamp = tuple[int, ...]
"""What tells one state of a file from another, be it that it cannot be looked at."""


def path_of(name: Name, error: type[KvwireError] = IdentityError) -> Path:
    """Of what an application calls a file; `error` for what is no name of one."""
    try:
        return Path(name)
    except TypeError:
        raise error(f"{name!r:.80} is no path; expected a string or a Path") from None


def stamp(path: Path) -> Stamp:
    """The inode's change time rather than the content's: it moves with every write, rename and chmod, and nobody can
    set it back."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError) as error:
        return getattr(error, "errno", None) or 0, is_there(path)
    return facts.st_ctime_ns, facts.st_size, facts.st_ino


def is_there(path: Path) -> bool:
    """Whether there is something of that name, be it a link to nothing, or what may not be looked at."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True


def read(path: Path, *, private: bool = False) -> bytes:
    """The whole file. IdentityError where it cannot be read, or where others may read (`private`) or change it."""
    try:
        with open(path, "rb", opener=open_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise IdentityError(f"{path} is no regular file")
            if private and mode & 0o007:
                raise IdentityError(
                    f"{path} holds a key and is readable or writable by others (mode {mode & 0o777:03o})",
                    hint=f"chmod 600 {path}",
                )
            if mode & 0o002:
                raise _writable(path, mode)
            content: bytes | None = file.read(MAX_FILE_BYTES + 1)
            if content is None:  # some of what the kernel makes up as files (proc(5)) would have us wait
                raise IdentityError(f"{path} has nothing to read yet", hint="it is to be a file with all its content")
    except (OSError, ValueError) as error:
        if isinstance(error, IdentityError):
            raise
        raise IdentityError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MAX_FILE_BYTES:
        raise IdentityError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return content


def check_kept(path: Path) -> None:
    """IdentityError where anybody but root and this process's user may change the file, or put another in its place.

    Looked at are the file, the links to it one after the other, and the directory of each. A directory that others may
    write to will do where it is sticky, as those are in which Kubernetes mounts secrets: what is there is safe in them,
    and what others add is theirs, which is refused.
    """
    try:
        for _ in range(MAX_LINKS):
            directory = os.stat(path.parent)
            _check_owner(path.parent, os.lstat(path.parent))  # of a link, beside what it leads to
            _check_owner(path.parent, directory)
            if directory.st_mode & OTHERS_MAY_WRITE and not directory.st_mode & stat.S_ISVTX:
                raise _writable(path.parent, directory.st_mode)
            facts = os.lstat(path)
            _check_owner(path, facts)
            if not stat.S_ISLNK(facts.st_mode):
                break
            path = path.parent / os.readlink(path)
        else:
            raise IdentityError(f"{path}: {os.strerror(errno.ELOOP)}")
    except (OSError, ValueError) as error:
        if isinstance(error, IdentityError):
            raise
        raise IdentityError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if facts.st_mode & OTHERS_MAY_WRITE:
        raise _writable(path, facts.st_mode)


def _check_owner(path: Path, facts: os.stat_result) -> None:
    if facts.st_uid not in (0, os.geteuid()):
        raise IdentityError(f"{path} belongs to user {facts.st_uid}, who is neither root nor this process's own")


def _writable(path: Path, mode: int) -> IdentityError:
    return IdentityError(f"{path} is writable by others (mode {mode & 0o7777:03o})", hint=f"chmod go-w {path}")


def open_at_once(path: str, flags: int) -> int:
    """An opener for `open`: a FIFO in the file's place must not stop us."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextlib.contextmanager
def key_directory(path: Path, *, make: bool = False) -> Iterator[None]:
    """Keeps other commands out of the directory meanwhile. `make`: where there is none, it is made, 0700."""
    try:
        if make:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (OSError, ValueError) as error:
        raise IdentityError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        if os.fstat(fd).st_mode & OTHERS_MAY_WRITE:
            raise IdentityError(f"{path} is writable by others: no place for keys", hint=f"chmod 700 {path}")
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def check_absent(*paths: Path) -> None:
    """IdentityError where one of them is there, and would be overwritten."""
    for path in paths:
        if os.path.lexists(path):
            raise IdentityError(f"{path} is there already", hint="choose another directory")


def write(path: Path, content: bytes, mode: int) -> None:
    """Puts a file there by one rename, within `key_directory`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb", opener=_create_private) as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise IdentityError(f"{path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _create_private(path: str, flags: int) -> int:
    return os.open(path, flags, PRIVATE)
