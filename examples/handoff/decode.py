"""The decode process: learns the cache's layout from the manifest, receives it, and goes on decoding."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import keys
import layout
import model as models
import torch
from jobs import HandoffError, Job, Received
from loop import Loop
from state import rebuild

import kvwire


def skeleton(model: Any, modules: models.ModuleState) -> Any:
    """A cache of the classes this model makes, filled by a short forward whose contents `rebuild` replaces."""
    _, cache = models.prefill(model, models.prompt(model, models.PROBE_TOKENS), lambda number, cache: None)
    modules.put({})
    return cache


def damage(memory: layout.Memory, manifest: kvwire.Manifest, which: str) -> str:
    """Flips the sign of every element of one received tensor; its path. `which`: as in `Job.damage`."""
    for spec, layer in layout.segments([group.spec for group in manifest.groups]):
        for path in layout.paths(spec, layer):
            if which == "any" or which == spec.kind.value or which in path:
                tensor = memory.tensors[path]
                tensor.copy_(~tensor if tensor.dtype is torch.bool else -tensor)
                return path
    raise HandoffError(f"nothing in this cache fits --damage {which}")


async def receive(incoming: kvwire.Incoming, memory: layout.Memory) -> list[float]:
    """Takes everything on offer; when each layer of each group was complete (monotonic, seconds)."""
    await incoming.grant(memory.slots)
    landed = []
    async for _ in incoming.layers():
        landed.append(time.monotonic())
    await incoming.committed()
    return landed


def take_over(job: Job, model: Any, node: kvwire.Node, loop: Loop) -> Received:
    """One job: grant what is offered, build the cache anew and decode from it."""
    modules = models.ModuleState(model)
    cache = skeleton(model, modules)
    incoming = loop.call(node.accept())
    manifest = incoming.manifest
    if manifest.model.revision != models.digest(model):
        loop.call(incoming.refuse("the weights differ"))
        raise HandoffError("the two processes built different weights from one configuration")
    memory = layout.Memory(group.spec for group in manifest.groups)
    landed = loop.call(receive(incoming, memory))

    damaged = damage(memory, manifest, job.damage) if job.damage else ""
    state = rebuild(incoming.attachment["state"], memory.tensors, {"cache": cache, "modules": {}})
    modules.put(state["modules"])
    decoded = models.decode(model, state["cache"], incoming.attachment["first_token"], job.decode_tokens)
    return Received(decoded, landed, damaged)


def main(pipe: Connection, lanes: int, where: Path | None) -> None:
    """Says its port, then works off the jobs that come over `pipe`; answers with `Received` or `HandoffError`."""
    models.settle()
    loop = Loop()
    config = kvwire.Config(lanes=lanes, plain=where is None)
    node = loop.call(kvwire.Node.serve("127.0.0.1", 0, config, identity=keys.load(where, "decode")))
    pipe.send(node.port)
    try:
        while True:
            job = pipe.recv()
            try:
                pipe.send(take_over(job, models.build(job.config, job.dtype), node, loop))
            except HandoffError as error:
                pipe.send(error)
            except Exception as error:  # a model class may fail in any way on a configuration nobody tried
                pipe.send(HandoffError(f"{type(error).__name__}: {models.one_line(error)}"))
    except EOFError:
        pass
    finally:
        loop.call(node.close())
        loop.close()
