"""The prefill process: computes a prompt layer by layer and lets each layer go as soon as it is final."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import keys
import layout
import model as models
from jobs import HandoffError, Job, Sent, UnsupportedState
from loop import Loop
from state import Walk

import kvwire

TIMEOUT_S = 120.0
"""Longest wait for the grant (the decoder may still be building its model) and for the receipt."""

END = 1 << 30
"""In place of a layer number: final only when the whole forward is done."""


@dataclass
class Plan:
    """What a prefill of this length will hold, and after which decoder layer each segment is final."""

    specs: list[kvwire.GroupSpec]
    due: dict[int, list[tuple[kvwire.GroupSpec, int]]] = field(default_factory=dict)

    @property
    def groups(self) -> str:
        """The groups in words: layers of each kind, for example "3 conv, 3 recurrent, 1 full"."""
        layers: dict[str, int] = {}
        for spec in self.specs:
            layers[spec.kind.value] = layers.get(spec.kind.value, 0) + len(spec.layers)
        return ", ".join(f"{count} {kind}" for kind, count in layers.items())


def whole_walk(cache: Any, modules: models.ModuleState) -> Walk:
    """Walks all that a decoder needs: the cache, and what the forward left on the modules."""
    return Walk.of({"cache": cache, "modules": modules.changed()})


def rehearse(model: Any, modules: models.ModuleState, tokens: int) -> Plan:
    """Runs a prefill of the same length on other tokens, and watches when each tensor of the cache changes last.

    An engine knows its cache layout from its configuration; this finds it for models nobody described. It runs
    on real tensors, because the routing of mixture-of-experts models cannot run on meta tensors.
    """
    seen: dict[str, tuple[Any, int]] = {}
    last_change: dict[str, int] = {}

    def watch(number: int, walk: Walk) -> None:
        for path, tensor in walk.tensors.items():
            before, version = seen.get(path, (None, 0))
            if before is not tensor or version != tensor._version:
                seen[path] = (tensor, tensor._version)
                last_change[path] = number

    other = models.prompt(model, tokens).flip(1)
    _, cache = models.prefill(model, other, lambda number, cache: watch(number, Walk.of({"cache": cache})))
    walk = whole_walk(cache, modules)
    watch(END, walk)
    modules.put({})
    if not walk.tensors:
        raise UnsupportedState(f"{type(model).__name__} keeps nothing of a prompt where the walk reaches")
    plan = Plan(layout.group_specs(walk, tokens))
    for spec, layer in layout.segments(plan.specs):
        final = max(last_change[path] for path in layout.paths(spec, layer))
        plan.due.setdefault(final, []).append((spec, layer))
    return plan


class Departure:
    """Copies segments into registered memory when they are final, and tells kvwire that they are ready."""

    def __init__(self, plan: Plan, memory: layout.Memory, ready: Callable[[str, int], None]) -> None:
        self._plan = plan
        self._memory = memory
        self._ready = ready
        self._left: dict[str, tuple[Any, int]] = {}
        self.last_ready = 0.0

    def after_layer(self, number: int, cache: Any) -> None:
        """Called in the model's thread as soon as the forward of decoder layer `number` is done."""
        if number in self._plan.due:
            self._leave(number, Walk.of({"cache": cache}))

    def finish(self, walk: Walk) -> None:
        """Lets the rest go. Raises `UnsupportedState` where the rehearsal was wrong about something."""
        self._leave(END, walk)
        unknown = walk.tensors.keys() ^ self._memory.tensors.keys()
        if unknown:
            raise UnsupportedState(f"{min(unknown)} depends on the tokens of the prompt, not on their number alone")
        for path, (tensor, version) in self._left.items():
            if walk.tensors[path] is not tensor or tensor._version != version:
                raise UnsupportedState(f"{path} changed after its layer was done, which the rehearsal did not show")

    def _leave(self, number: int, walk: Walk) -> None:
        for spec, layer in self._plan.due.get(number, ()):
            for path in layout.paths(spec, layer):
                tensor, memory = walk.tensors.get(path), self._memory.tensors[path]
                if tensor is None or tensor.shape != memory.shape or tensor.dtype != memory.dtype:
                    raise UnsupportedState(f"{path} has another shape than in the rehearsal")
                memory.copy_(tensor)
                self._left[path] = (tensor, tensor._version)
            self.last_ready = time.monotonic()
            self._ready(spec.name, layer)


def hand_off(job: Job, model: Any, link: kvwire.Link, loop: Loop) -> Sent:
    """One job: offer, prefill, receipt; then the decode that never leaves this process."""
    modules = models.ModuleState(model)
    plan = rehearse(model, modules, job.prompt_tokens)
    memory = layout.Memory(plan.specs)
    ids = models.prompt(model, job.prompt_tokens)
    tag = kvwire.ModelTag(model.config.model_type, models.digest(model), kvwire.layout_digest(plan.specs))
    prefix = kvwire.block_hashes(ids[0].tolist(), job.prompt_tokens)
    hashes = {spec.name: prefix for spec in plan.specs}
    manifest = kvwire.Manifest.of(
        f"{job.name}.{job.dtype}", tag, job.prompt_tokens, plan.specs, hashes=hashes, attachment=True
    )
    outgoing = loop.call(link.offer(manifest, memory.slots, timeout_s=TIMEOUT_S))

    departure = Departure(plan, memory, outgoing.ready)
    start = time.monotonic()
    try:
        logits, cache = models.prefill(model, ids, departure.after_layer)
        prefill_s = time.monotonic() - start
        walk = whole_walk(cache, modules)
        departure.finish(walk)
        first = int(logits.argmax())
        outgoing.attach({"first_token": first, "state": walk.tree})
    except BaseException as error:
        outgoing.abort_nowait(str(error))
        raise
    receipt = outgoing.wait_committed(TIMEOUT_S)
    decoded = models.decode(model, cache, first, job.decode_tokens)
    groups = receipt.coded.values()
    coded = sum(group.plain_bytes for group in groups), sum(group.wire_bytes for group in groups)
    return Sent(decoded, prefill_s, departure.last_ready, receipt.tail_s or 0.0, receipt.bytes, plan.groups, coded)


def main(pipe: Connection, lanes: int, where: Path | None, compression: str | dict[str, str]) -> None:
    """Takes the decoder's port from `pipe`, then jobs until it closes; answers with `Sent` or `HandoffError`."""
    models.settle()
    loop = Loop()
    config = kvwire.Config(lanes=lanes, plain=where is None, compression=compression)
    node = loop.call(kvwire.Node.start(config, identity=keys.load(where, "prefill")))
    link = loop.call(node.connect("127.0.0.1", pipe.recv()))
    try:
        while True:
            job = pipe.recv()
            try:
                pipe.send(hand_off(job, models.build(job.config, job.dtype), link, loop))
            except HandoffError as error:
                pipe.send(error)
            except Exception as error:  # a model class may fail in any way on a configuration nobody tried
                pipe.send(HandoffError(f"{type(error).__name__}: {models.one_line(error)}"))
    except EOFError:
        pass
    finally:
        loop.call(node.close())
        loop.close()
