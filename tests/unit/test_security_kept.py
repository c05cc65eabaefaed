"""Who else could have put an identity's files there: modes and owners of files, links and directories."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvwire import AuthenticationFailed, Authority, Identity, IdentityError, pin, revoke
from tests.unit.security_kit import DECODE, PREFILL, meet, put, under_one_ca

NAMES = {"certificate": "tls.crt", "key": "tls.key", "ca": "ca.crt"}
OWN, STRANGER = 4321, 9876
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories of keys under one CA, with a pin each."""
    first, second = under_one_ca(tmp_path, PREFILL, DECODE)
    pin(first, second / "certificate.pem")
    pin(second, first / "certificate.pem")
    return first, second


@pytest.fixture
def place() -> Iterator[Path]:
    """Where every user may look, unlike pytest's."""
    where = Path(tempfile.mkdtemp(prefix="kvwire-test-"))
    where.chmod(0o755)
    yield where
    shutil.rmtree(where)


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def mounted(secret: Path, keys: Path) -> Path:
    """As Kubernetes mounts a secret: links to links, key and certificate apart, where everybody may write."""
    pem = (keys / "identity.pem").read_bytes()
    at = pem.index(b"-----BEGIN CERT")
    put(secret / "..1" / "tls.key", pem[:at], 0o440)
    put(secret / "..1" / "tls.crt", pem[at:], 0o644)
    put(secret / "..1" / "ca.crt", (keys / "ca.pem").read_bytes(), 0o644)
    (secret / "..1").chmod(0o755)
    (secret / "..data").symlink_to("..1")
    for name in NAMES.values():
        (secret / name).symlink_to(f"..data/{name}")
    secret.chmod(0o1777)
    return secret


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o702, 0o2770])
def test_a_directory_that_others_may_write(pair: tuple[Path, Path], mode: int) -> None:
    pair[0].chmod(mode)
    with pytest.raises(IdentityError, match=rf"p1 is writable by others \(mode {mode:03o}\) \(chmod go-w "):
        Identity.load(pair[0])


@pytest.mark.parametrize("name", ["identity.pem", "ca.pem", "pins.json", "revoked.txt"])
@pytest.mark.parametrize("bit", [0o020, 0o002])
def test_a_file_that_others_may_write(pair: tuple[Path, Path], name: str, bit: int) -> None:
    path = pair[0] / name
    path.chmod(path.stat().st_mode | bit)
    with pytest.raises(IdentityError, match=f"{name} .*writable by others"):
        Identity.load(pair[0])


def test_a_link_into_a_directory_that_others_may_write(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """By way of another link, which nobody else may change."""
    (tmp_path / "open").mkdir()
    (pair[0] / "ca.pem").rename(tmp_path / "open" / "ca.pem")
    (tmp_path / "link.pem").symlink_to("open/ca.pem")
    (pair[0] / "ca.pem").symlink_to(tmp_path / "link.pem")
    (tmp_path / "open").chmod(0o755)
    assert Identity.load(pair[0]).subject == PREFILL
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(IdentityError, match="open is writable by others"):
        Identity.load(pair[0])


def test_a_directory_that_is_opened_while_a_node_runs(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """What changes in it from then on does not count, and whom the list names nobody knows."""
    dialler, acceptor = map(Identity.load, pair)
    before = acceptor.fingerprint
    Authority.load(tmp_path / "ca").issue(pair[1], DECODE, replace=True)
    revoke(pair[1], "ab" * 32)
    pair[1].chmod(0o777)
    assert acceptor.refresh()
    assert (acceptor.fingerprint, acceptor.revoked("ab" * 32)) == (before, False)
    with pytest.raises(AuthenticationFailed, match=r"nobody is believed: .*is writable by others"):
        meet(dialler, acceptor)
    pair[1].chmod(0o700)
    assert acceptor.refresh()
    assert acceptor.fingerprint != before
    assert acceptor.revoked("ab" * 32)


def test_a_mounted_secret(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    secret = mounted(tmp_path / "secret", pair[0])
    assert meet(Identity.load(str(secret), **NAMES), Identity.load(pair[1]))[1].subject == PREFILL
    absolute = {what: secret / name for what, name in NAMES.items()}
    assert Identity.load("/", **absolute).subject == PREFILL
    with pytest.raises(IdentityError, match=r"gone\.txt is not there"):
        Identity.load(secret, **NAMES, revoked="gone.txt")
    with pytest.raises(IdentityError, match=r"gone\.json: No such file"):
        Identity.load(secret, **NAMES, pins="gone.json")
    secret.chmod(0o777)
    with pytest.raises(IdentityError, match="secret is writable by others"):
        Identity.load(secret, **NAMES)


# --- owners -----------------------------------------------------------------------------------------------------------


def give(path: Path, uid: int) -> None:
    os.chown(path, uid, uid, follow_symlinks=False)


@needs_root
def test_a_mounted_secret_of_roots_that_another_user_reads(place: Path, pair: tuple[Path, Path]) -> None:
    secret = mounted(place / "secret", pair[0])
    os.chown(secret / "..1" / "tls.key", 0, OWN)
    os.setegid(OWN)
    try:
        with as_user(OWN):
            assert Identity.load(secret, **NAMES).subject == PREFILL
    finally:
        os.setegid(0)


def add_pins(secret: Path, pair: tuple[Path, Path]) -> None:
    """What every user may do in a sticky directory."""
    put(secret / "pins.json", (pair[0] / "pins.json").read_bytes(), 0o644)
    give(secret / "pins.json", STRANGER)


def add_link(secret: Path, pair: tuple[Path, Path]) -> None:
    """To pins that are another node's, and that root keeps."""
    (secret / "pins.json").symlink_to(pair[0] / "pins.json")
    give(secret / "pins.json", STRANGER)


def add_directory(secret: Path, pair: tuple[Path, Path]) -> None:
    """Behind a link of root's that led to nothing."""
    (secret / "pins.json").symlink_to("later/pins.json")
    (secret / "later").symlink_to(pair[0])
    give(secret / "later", STRANGER)


@needs_root
@pytest.mark.parametrize("add", [add_pins, add_link, add_directory])
def test_what_a_stranger_adds_to_a_mounted_secret(
    tmp_path: Path, pair: tuple[Path, Path], add: Callable[[Path, tuple[Path, Path]], None]
) -> None:
    secret = mounted(tmp_path / "secret", pair[0])
    identity = Identity.load(secret, **NAMES)
    before = identity.context(True)
    add(secret, pair)
    assert not identity.refresh()
    assert identity.context(True) is before
    with pytest.raises(IdentityError, match=f"belongs to user {STRANGER}, who is neither root nor"):
        Identity.load(secret, **NAMES)


@needs_root
@pytest.mark.parametrize("name", ["", "identity.pem", "ca.pem", "pins.json", "revoked.txt"])
def test_files_of_another_user(pair: tuple[Path, Path], name: str) -> None:
    give(pair[0] / name, STRANGER)
    with pytest.raises(IdentityError, match=f"{pair[0] / name} belongs to user {STRANGER}, who is neither root nor"):
        Identity.load(pair[0])


@needs_root
def test_files_of_ones_own(place: Path, pair: tuple[Path, Path]) -> None:
    keys = Path(shutil.copytree(pair[0], place / "keys"))
    for path in (keys, *keys.iterdir()):
        give(path, OWN)
    with as_user(OWN):
        assert Identity.load(keys).subject == PREFILL
    with pytest.raises(IdentityError, match=f"belongs to user {OWN}"):
        Identity.load(keys)
