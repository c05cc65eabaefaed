"""Runs a command in a user-mode Linux whose root file system is this machine's, read-only: uml.py CACHE COMMAND...

There netem, tbf, fq and BBR are the kernel's own, whatever this machine's kernel has. Debian's packages are fetched
into CACHE and unpacked there; nobody has to be root. Where they cannot be had: a sentence, and exit status 77. One CPU,
no IPv6, about 60 us for a system call; /run, /dev/shm and $TMPDIR can be written to.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

UNAVAILABLE = 77
"""Exit status as automake has it for a test that could not be run."""

PACKAGES = ("user-mode-linux", "busybox-static")

MODULES = (
    *("net/sched/sch_netem", "net/sched/sch_tbf", "net/sched/sch_fq", "net/ipv4/tcp_bbr"),
    *("drivers/net/veth", "drivers/net/tun"),
)

PASSED_ON = ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV", "CI")

INIT = """\
#!{busybox} sh
{busybox} mount -t proc proc /proc
{busybox} mount -t sysfs sys /sys
{busybox} mount -t tmpfs run /run
{busybox} mkdir -p /run/tmp /run/results /dev/shm
{busybox} mount -t tmpfs shm /dev/shm
{busybox} mount -t hostfs results /run/results -o {results}
for module in {modules}; do {busybox} insmod $module; done
{busybox} ip link set lo up
cd {folder}
{environment} TMPDIR=/run/tmp PYTHONDONTWRITEBYTECODE=1 {command} </dev/null
echo $? > /run/results/status
{busybox} poweroff -f
"""


class Unavailable(Exception):
    """Why there is no user-mode Linux here, as a sentence."""


def fetched(cache: Path) -> tuple[Path, Path]:
    """The kernel and busybox, from Debian's packages."""
    kernel, busybox = cache / "usr/bin/linux.uml", cache / "bin/busybox"
    if not (kernel.exists() and busybox.exists()):
        cache.mkdir(parents=True, exist_ok=True)
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise Unavailable(f"`{tool}` is missing: this is no Debian")
        done = subprocess.run(
            ["apt-get", "download", *PACKAGES], cwd=cache, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Unavailable(f"Debian's {' and '.join(PACKAGES)} cannot be had: {done.stderr.strip()}")
        for package in cache.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, cache], check=True)
            package.unlink()
    return kernel, busybox


def boot(cache: Path, command: list[str]) -> int:
    """The command's exit status; its output is this process's."""
    kernel, busybox = fetched(cache)
    (modules,) = cache.glob("usr/lib/uml/modules/*/kernel")
    with tempfile.TemporaryDirectory(prefix="kvwire-uml-") as folder:
        init, status = Path(folder, "init"), Path(folder, "status")
        passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        init.write_text(
            INIT.format(
                busybox=busybox,
                results=folder,
                modules=" ".join(str(modules / f"{module}.ko") for module in MODULES),
                folder=shlex.quote(os.getcwd()),
                environment=" ".join(f"{name}={shlex.quote(value)}" for name, value in passed_on.items()),
                command=shlex.join(command),
            )
        )
        init.chmod(0o755)
        machine = [
            "mem=1G",
            "rootfstype=hostfs",
            "ro",
            f"init={init}",
            "con=null",
            "con0=null,fd:1",
            "quiet",
            "loglevel=0",
        ]
        memory = os.environ | {"TMPDIR": "/dev/shm"}  # a file; on a disk its pages would be written there
        subprocess.run([kernel, *machine], env=memory, stdin=subprocess.DEVNULL, check=False)
        return int(status.read_text()) if status.exists() else 1


def main() -> int:
    cache, *command = sys.argv[1:]
    try:
        return boot(Path(cache).absolute(), command)
    except Unavailable as reason:
        print(f"SKIPPED [1] tests/wan/uml.py: no user-mode Linux here: {reason}")  # as pytest says it, for .ci/run
        return UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
