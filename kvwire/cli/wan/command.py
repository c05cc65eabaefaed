"""kvwire-bench wan: what kvwire makes of a long, lossy, shared link, which is emulated on this host.

Two network namespaces, joined by real netem or by an emulator of kvwire's own, take a sender and a receiver process.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import socket
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kvwire
from kvwire import emulate
from kvwire.cli import compression, machine, record, sealing
from kvwire.cli.arguments import Subparsers
from kvwire.cli.failure import Failure
from kvwire.cli.jobs import Job, job_of
from kvwire.cli.loopback import iperf3
from kvwire.cli.progress import Progress
from kvwire.cli.report import command as report
from kvwire.cli.report.fields import Fields
from kvwire.cli.units import show_rate, show_share, show_size, show_time
from kvwire.cli.wan import beside, black_hole, flags, model, step, transfer, urgent
from kvwire.cli.wan.emulated import EmulatedLink, kind_of, summary
from kvwire.cli.wan.ends import Ends
from kvwire.cli.wan.setting import AT_ONCE, Result, Setting, patience_s
from kvwire.congestion import make_controller

MEASURES: dict[str, Callable[[Setting], Result]] = {
    "transfer": transfer.measure,
    "step": step.measure,
    "black_hole": black_hole.measure,
    "urgent": urgent.measure,
    "beside": beside.measure,
    "model": model.measure,
}
PREFERRED = "bbr"
"""What fills a long and lossy link, by itself; everybody whose kernel has it would use it there."""
GRID = tuple(
    {"rtt": rtt_s, "loss": loss, "cc": cc}
    for rtt_s in (0.040, 0.080)
    for loss in (0.0, 0.0001, 0.001)
    for cc in ("bbr", "cubic")
)
ALIKE = (
    "goodput_bps",
    "link_payload_bps",
    "utilisation",
    "iperf3_bps",
    "ratio_vs_iperf3",
    "retransmitted_share",
    "lanes",
)
"""What the summary of a grid has of each cell, besides its place in it."""


def add_command(subparsers: Subparsers) -> None:
    flags.add_arguments(subparsers, __doc__).set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    """Measures and prints. Exit status 1 where a byte was wrong."""
    options = flags.checked(options)
    job = model.scaled(job_of(options, options.size, options.size), options.scale)
    for name in options.vs_compression:
        compression.check(name, job.specs)
    cells = [Namespace(**vars(options) | cell) for cell in GRID] if options.grid else [options]
    for cell in cells:
        cell.cc = machine.congestion(cell.cc) if cell.cc else _preferred()
    if options.controller is not None:
        _check_controller(options.controller)
    compared = {"iperf3": iperf3.version()} if _uses_iperf3(options) else {}
    if options.beside:
        machine.congestion(options.beside[0])
    _check_memory(options, job)
    emulate.enter_user_namespace()
    if fault := EmulatedLink.why_not(options):
        raise Failure(fault)
    if options.html:
        report.check_free(options.html)  # and not after an hour of measuring
    if options.keep:
        _make_directory(options.keep)
    here, records = machine.describe(), []
    missing: list[dict[str, Any]] = []  # cells of a grid; one that fails must not cost the others an hour
    if not options.json:
        print(f"{flags.SCENARIOS[options.scenario]}: {show_size(job.transfer_bytes)} in {job.segments} segments")
        print(", ".join([machine.show(here), *compared.values()]), flush=True)
    with sealing.unwinding(), Progress() as progress:
        for number, cell in enumerate(cells, 1):
            said = f"cell {number} of {len(cells)}, " if len(cells) > 1 else ""
            try:
                result = _cell(cell, job, progress, said) | compared
            except (Failure, kvwire.KvwireError) as error:
                if not options.grid:
                    raise
                progress.say("")
                print(f"kvwire-bench: {said}{EmulatedLink.of(cell).show()}, {cell.cc}: {error}", file=sys.stderr)
                missing.append({"rtt_s": cell.rtt, "loss": cell.loss, "congestion": cell.cc, "why": str(error)})
                continue
            records.append(record.record("wan", {"here": here}, result) | _command_of(cell))
            progress.say("")
            record.show(records[-1]) if options.json else show(records[-1])
    if not records:
        raise Failure("no cell could be measured")
    if options.grid:
        summary = record.record("wan-grid", {"here": here}, grid_summary(records, missing))
        if options.json:
            record.show(summary)
        records.insert(0, summary)
    if options.html:
        report.write(options.html, report.page([Fields(found, "this run") for found in records]).encode())
    return 1 if not all(found["verified"] for found in records) else 2 if missing else 0


def _preferred() -> str:
    try:
        return machine.congestion(PREFERRED)
    except Failure:
        with socket.socket() as sock:
            return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def _check_controller(text: str) -> None:
    try:
        make_controller(text)
    except kvwire.ConfigError as error:
        raise Failure(f"--controller {text}: {error}") from None


def _uses_iperf3(options: Namespace) -> bool:
    return bool(options.beside or (options.scenario == "transfer" and options.vs == "iperf3"))


def _check_memory(options: Namespace, job: Job) -> None:
    """Two memories at each end, the second for a transfer that is not measured; of a flow one more at the receiver."""
    count = 4 if options.scenario in ("transfer", "model") else 2 * AT_ONCE + 1
    instead = "ask for fewer tokens, or scale them" if options.model else "give a smaller --size"
    machine.check_memory(count * job.transfer_bytes, instead)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"{path} cannot be made: {error.strerror}") from None


def _command_of(cell: Namespace) -> dict[str, str]:
    """Of a cell of the grid, the command that repeats it alone."""
    if not cell.grid:
        return {}
    words = [word for word in sys.argv[1:] if word != "--grid"]
    place = ["--rtt", f"{cell.rtt * 1e3:g}ms", "--loss", f"{cell.loss * 100:g}%", "--cc", cell.cc]
    return {"command": shlex.join(["kvwire-bench", *words, *place])}


@contextlib.contextmanager
def _keys(options: Namespace) -> Iterator[Path | None]:
    if options.plain:
        yield None
        return
    with sealing.fresh_keys() as keys:
        yield keys


def _cell(options: Namespace, job: Job, progress: Progress, said: str) -> Result:
    """Everything about one cell but the machine."""
    link = EmulatedLink.of(options)
    wanted: dict[str, Any] = {"lanes": options.lanes, "controller": options.controller}
    with _keys(options) as keys, link.up() as hosts:
        within_s = patience_s(link, job)
        config = kvwire.Config(
            plain=options.plain,
            congestion=options.cc,
            transfer_timeout_s=within_s,
            compression=compression.choice(options.compression),
            **{name: value for name, value in wanted.items() if value is not None},
        )
        with Ends(hosts, config, keys) as ends:
            place = f"{said}{link.show()}, {options.cc}: "
            setting = Setting(options, link, hosts, ends, job, within_s, progress, place)
            found = MEASURES[options.scenario](setting)
            lanes, congestion = ends.sender.call("lanes")
            automatic = ends.sender.call("automatic")
    return {
        "scenario": options.scenario,
        **link.describe(),
        "link_payload_bps": link.payload_bps,
        "utilisation": found["goodput_bps"] / link.payload_bps,
        **found,
        "lanes": lanes,
        "lanes_wanted": options.lanes,
        "controller": config.controller,
        "compression": options.compression,
        "content": job.content,
        **automatic,
        "congestion": ", ".join(congestion),
        **sealing.facts(options.plain),
        "runs": options.runs,
        "transfer_bytes": job.transfer_bytes,
        "segments": job.segments,
        "page_bytes": max(spec.block_bytes for spec in job.specs),
        "scatter": options.scatter,
        "emulator": kind_of(hosts),
        **summary(setting.spans, link.rate_bps, alone=options.scenario != "beside"),
        "late_runs_refused": setting.refused,
        "checked": setting.checked,
        "verified": not setting.damage,
        "damage": setting.damage,
    }


def grid_summary(records: list[record.Record], missing: list[dict[str, Any]]) -> Result:
    """The cells of a grid, short; each has a record of its own. `missing`: what could not be measured, and why."""
    cells = [
        {name: found[name] for name in ("rtt_s", "loss", "congestion", *ALIKE, "verified") if name in found}
        for found in records
    ]
    shared = {name: records[0][name] for name in ("rate_bps", "runs", "transfer_bytes", "cold", "emulator", "sealed")}
    return {
        **shared,
        "cells": cells,
        "missing": missing,
        "least_utilisation": min(cell["utilisation"] for cell in cells),
        "verified": all(cell["verified"] for cell in cells),
        "damage": [sentence for found in records for sentence in found["damage"]],
    }


SHOWN = {"_bps": show_rate, "_s": show_time, "_share": show_share, "_bytes": show_size}


def show(found: record.Record) -> None:
    """One cell, for people."""
    place = [show_rate(found["rate_bps"]), f"{show_time(found['rtt_s'])} RTT", f"{show_share(found['loss'])} loss"]
    print(", ".join([*place, found["congestion"]]))
    for name, value in found.items():
        if isinstance(value, float):
            form = next((form for end, form in SHOWN.items() if name.endswith(end)), "{:.4g}".format)
            print(f"{name:>22}  {form(value)}")
    for sentence in found["damage"]:
        print(f"WRONG: {sentence}")
    print("every byte was right" if found["verified"] else "NOT VERIFIED: bytes were wrong", flush=True)
