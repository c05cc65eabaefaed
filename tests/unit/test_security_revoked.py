"""A revocation list that is not there, or cannot be looked at; and files that can be read only the next time."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvwire import AuthenticationFailed, Authority, Identity, IdentityError, KeyFiles, Peer, pin, revoke
from tests.unit.security_kit import DECODE, PREFILL, meet, under_one_ca


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories of keys under one CA."""
    first, second = under_one_ca(tmp_path, PREFILL, DECODE)
    return first, second


def no_file(path: Path) -> None:
    path.unlink()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("not-mounted/revoked.txt")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def through_a_file(path: Path) -> None:
    path.unlink()
    path.symlink_to("certificate.pem/revoked.txt")


ABSENCES: list[tuple[Callable[[Path], None], str]] = [
    (no_file, "is not there: who is revoked"),
    (dangling, "No such file or directory"),
    (loop, "Too many levels of symbolic links"),
    (through_a_file, "Not a directory"),
]


@pytest.mark.parametrize(("make", "sentence"), ABSENCES)
def test_a_node_does_not_start_without_its_list(
    pair: tuple[Path, Path], make: Callable[[Path], None], sentence: str
) -> None:
    """It named somebody, as far as anybody knows."""
    make(pair[0] / "revoked.txt")
    with pytest.raises(IdentityError, match=rf"revoked\.txt.*{sentence}"):
        Identity.load(pair[0])


@pytest.mark.parametrize(("make", "sentence"), ABSENCES)
def test_a_running_node_believes_nobody_without_its_list(
    pair: tuple[Path, Path], make: Callable[[Path], None], sentence: str
) -> None:
    dialler, acceptor = map(Identity.load, pair)
    make(pair[1] / "revoked.txt")
    assert acceptor.refresh()
    with pytest.raises(AuthenticationFailed, match=rf"nobody is believed: .*revoked\.txt.*{sentence}"):
        meet(dialler, acceptor)


@pytest.mark.parametrize("name", ["ca.pem", "pins.json"])
def test_a_link_to_nothing_is_not_as_if_it_were_absent(pair: tuple[Path, Path], name: str) -> None:
    """A node that has pins beside a CA would believe others without them."""
    pin(pair[0], pair[1] / "certificate.pem")
    (pair[0] / name).unlink()
    (pair[0] / name).symlink_to("not-mounted")
    with pytest.raises(IdentityError, match=f"{name}: No such file or directory"):
        Identity.load(pair[0])


def elsewhere(directory: Path) -> Identity:
    """An identity in files of other names, whose list is where it would be by default."""
    (directory / "identity.pem").rename(directory / "tls.pem")
    return Identity.load(directory, certificate="tls.pem")


def test_files_of_other_names_need_no_list(pair: tuple[Path, Path]) -> None:
    (pair[1] / "revoked.txt").unlink()
    dialler, acceptor = Identity.load(pair[0]), elsewhere(pair[1])
    assert not acceptor.refresh()
    assert meet(dialler, acceptor)[1].subject == PREFILL
    revoke(pair[1], dialler.fingerprint)  # it comes later
    assert acceptor.refresh()
    assert acceptor.revoked(dialler.fingerprint)


@pytest.mark.parametrize("make", [dangling, loop])
def test_files_of_other_names_and_a_list_that_cannot_be_read(
    pair: tuple[Path, Path], make: Callable[[Path], None]
) -> None:
    (pair[1] / "revoked.txt").unlink()
    dialler, acceptor = Identity.load(pair[0]), elsewhere(pair[1])
    (pair[1] / "revoked.txt").touch()
    make(pair[1] / "revoked.txt")
    assert acceptor.refresh()
    with pytest.raises(AuthenticationFailed, match="nobody is believed"):
        meet(dialler, acceptor)
    with pytest.raises(IdentityError, match=r"revoked\.txt"):
        Identity.load(pair[1], certificate="tls.pem")


@pytest.mark.parametrize("make", [dangling, loop])
def test_a_command_takes_no_list_that_it_cannot_read_for_an_empty_one(
    pair: tuple[Path, Path], make: Callable[[Path], None]
) -> None:
    make(pair[0] / "revoked.txt")
    with pytest.raises(IdentityError, match=r"revoked\.txt"):
        KeyFiles.read(pair[0])
    with pytest.raises(IdentityError, match=r"revoked\.txt"):
        revoke(pair[0], "ab" * 32)
    assert (pair[0] / "revoked.txt").is_symlink()


# --- for want of descriptors ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def descriptors(free: int) -> Iterator[None]:
    """This process can open so many files, and no more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 16, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(free):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("free", [0, 1])
def test_a_rotation_for_want_of_descriptors(
    tmp_path: Path, pair: tuple[Path, Path], free: int, caplog: pytest.LogCaptureFixture
) -> None:
    """One is enough to read the files, and not to give them to `ssl`."""
    dialler, acceptor = map(Identity.load, pair)
    before = acceptor.fingerprint
    Authority.load(tmp_path / "ca").issue(pair[1], DECODE, replace=True)
    with descriptors(free):
        assert not acceptor.refresh()
        assert not acceptor.refresh()
        with pytest.raises(IdentityError, match=r"identity\.pem: Too many open files"):
            Identity.load(pair[1])
    assert acceptor.fingerprint == before
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "identity, CA and pins stay as they were"
    ]
    assert acceptor.refresh()
    assert acceptor.fingerprint != before
    assert meet(dialler, acceptor)[0] == Peer(DECODE, acceptor.fingerprint)


def test_a_revocation_for_want_of_descriptors(pair: tuple[Path, Path]) -> None:
    dialler, acceptor = map(Identity.load, pair)
    revoke(pair[1], "ab" * 32)
    with descriptors(0):
        assert acceptor.refresh()
    with pytest.raises(AuthenticationFailed, match=r"nobody is believed: .*Too many open files"):
        meet(dialler, acceptor)
    assert acceptor.refresh()
    assert meet(dialler, acceptor)[1].subject == PREFILL
    assert acceptor.revoked("ab" * 32)


def test_a_list_that_is_back_as_it_was(pair: tuple[Path, Path]) -> None:
    """As after a mount that was gone for a while: the same file, of the same time."""
    dialler, acceptor = map(Identity.load, pair)
    pair[1].rename(pair[1].with_name("unmounted"))
    assert acceptor.refresh()
    with pytest.raises(AuthenticationFailed, match="nobody is believed"):
        meet(dialler, acceptor)
    pair[1].with_name("unmounted").rename(pair[1])
    assert acceptor.refresh()
    assert meet(dialler, acceptor)[1].subject == PREFILL
