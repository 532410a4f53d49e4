"""Decoders that fail as an image's last bytes say, for `cit_curate.decoders`: python FILE LIMIT."""

import os
import signal
import time

from cit_curate import decoders

whole = decoders.shard_image


def failing(data: bytes, *, side: int, max_pixels: int) -> bytes:
    if data.endswith(b"hang"):
        time.sleep(60)
    if data.endswith(b"loop"):
        while True:
            pass
    if data.endswith(b"abort"):
        os.abort()
    if data.endswith(b"kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(data, side=side, max_pixels=max_pixels)


decoders.shard_image = failing
decoders.main()
