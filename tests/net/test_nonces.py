"""No key seals two frames under one nonce: two nodes whose cipher writes down every key and nonce, in bad weather."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kvwire import Config
from kvwire._ext import cipher
from kvwire._ext.nonces import RECORD_BYTES, NonceRecorder
from tests.net.kit import through_proxy
from tests.net.test_storms import SPECS, STORM_S, Tally, keep_moving

KEY_BYTES = 16


@pytest.mark.timeout(STORM_S + 60)
async def test_no_nonce_comes_twice_over_rekeys_lost_lanes_and_reconnects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transfers both ways; lanes are reset, all connections are cut, and keys are good for 40 frames."""
    records = tmp_path / "nonces"
    with records.open("ab", buffering=0) as file:
        recorder = NonceRecorder(cipher.find(), file.fileno())
        monkeypatch.setattr(cipher, "find", lambda: recorder)
        async with through_proxy(Config(lanes=3, rekey_frames=40)) as (pair, proxy):
            tallies, rng, resets, cuts = (Tally(), Tally()), np.random.default_rng(1), 0, 0
            until = time.monotonic() + STORM_S
            moving = asyncio.gather(
                keep_moving(pair.link, pair.server, until, "there", tallies[0], SPECS),
                keep_moving(pair.back, pair.client, until, "back", tallies[1], SPECS),
            )
            while not moving.done():
                await asyncio.wait((moving,), timeout=0.1)
                reset = await asyncio.to_thread(proxy.reset_one, "lane", rng)
                resets += reset
                if reset and resets % 5 == 4:  # of connections that have lanes
                    await asyncio.to_thread(proxy.cut)
                    proxy.heal()
                    cuts += 1
            await moving
            assert all(tally.transfers for tally in tallies)
            assert resets > STORM_S
            assert cuts
    data = records.read_bytes()
    found = Counter(data[at : at + RECORD_BYTES] for at in range(0, len(data), RECORD_BYTES))
    keys = {record[:KEY_BYTES] for record in found}
    print(f"{len(data) // RECORD_BYTES} frames under {len(keys)} keys; {resets} lanes reset, {cuts} times all cut")
    assert max(found.values()) == 1
    assert len(keys) > 2 * (cuts + 1), "keys of each connection's lanes, and more by re-keys"
