"""Decoders that fail as an image's last bytes say: python FILE LIMIT."""

import os
import signal
import time

from PIL import Image

from cit_curate.images import decoders

whole = decoders.shard_image
whole_picture = decoders.read_image


def fail(data: bytes) -> None:
    if data.endswith(b"hang"):
        time.sleep(60)
    if data.endswith(b"loop"):
        while True:
            pass
    if data.endswith(b"abort"):
        os.abort()
    if data.endswith(b"kill"):
        os.kill(os.getpid(), signal.SIGKILL)


def failing(data: bytes, *, side: int, max_pixels: int) -> bytes:
    fail(data)
    return whole(data, side=side, max_pixels=max_pixels)


def failing_picture(data: bytes, *, max_pixels: int) -> Image.Image:
    fail(data)
    return whole_picture(data, max_pixels=max_pixels)


decoders.shard_image = failing
decoders.read_image = failing_picture
decoders.main()
