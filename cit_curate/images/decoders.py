"""Processes that decode untrusted images, so that a hang or a crash costs only one image.

Decoders are native code. In a thread, one that never returns cannot be stopped, and one that
crashes ends the run. Here each runs in a process, which receives one image at a time over a pipe.
The kernel kills it when an image takes too long, and the next image starts a new one. Measured: a
JPEG of 53 kB takes 0.47 ms in a thread and 0.04 ms more here, one of 215 kB 1.6 ms and 0.25 ms
more; starting a process takes 0.12 s and 32 MB.
"""

import atexit
import contextlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import IO

from PIL import Image

from cit_curate.config import ImageFormat
from cit_curate.errors import PeerLostError
from cit_curate.images.export_image import export_image
from cit_curate.images.pictures import MAX_PIXELS, read_image
from cit_curate.images.rejected import ImageRejected
from cit_curate.images.shard_image import shard_image

# A picture of MAX_PIXELS takes about two seconds; the rest is a margin for a busy machine.
LIMIT_SECONDS = 60.0
_COMMAND = (sys.executable, "-P", "-m", "cit_curate.images.decoders")
# Signals caused by a decoder's own faults. Any other came from outside, such as the OOM killer.
_OWN_MISTAKES = frozenset(
    getattr(signal, f"SIG{name}") for name in ("ABRT", "ALRM", "BUS", "FPE", "ILL", "SEGV", "SYS")
)

_REQUEST = struct.Struct("<BQQQ")  # kind (next line), side, max_pixels, bytes of the image
_SHARD_IMAGE, _PICTURE, *_EXPORTED = range(6)
_FORMATS: dict[ImageFormat, int] = dict(zip(("auto", "jpg", "png", "webp"), _EXPORTED, strict=True))
_FORMAT_OF = {kind: name for name, kind in _FORMATS.items()}
_SIZE = struct.Struct("<QQ")  # width and height, before a picture's pixels
_RESULT = struct.Struct("<BQ")  # kind (next line), and the number of bytes that follow
_SAME, _OTHER, _REJECTED = range(3)


class Decoders:
    """A pool of decoder processes, one for each concurrent call; safe for several threads."""

    def __init__(
        self, *, limit_seconds: float = LIMIT_SECONDS, command: Sequence[str] = _COMMAND
    ) -> None:
        """Set up the pool; processes start on demand.

        Args:
            limit_seconds: The time limit of one image.
            command: The command that runs `main`; the limit is appended as its argument.
        """
        self._limit_seconds = limit_seconds
        self._command = command
        self._idle: list[subprocess.Popen[bytes]] = []

    def shard_image(self, data: bytes, *, side: int = 0, max_pixels: int = MAX_PIXELS) -> bytes:
        """As `cit_curate.images.shard_image.shard_image`, in another process.

        Raises:
            ImageRejected: As there, or `decoder_failed`.
            PeerLostError: The process was killed.
        """
        kind, result = self._request(_SHARD_IMAGE, data, side, max_pixels)
        return result if kind == _OTHER else data

    def export_image(
        self,
        data: bytes,
        *,
        side: int = 0,
        format: ImageFormat = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> bytes:
        """As `cit_curate.images.export_image.export_image`, in another process.

        Raises:
            ImageRejected: As there, or `decoder_failed`.
            PeerLostError: The process was killed.
        """
        kind, result = self._request(_FORMATS[format], data, side, max_pixels)
        return result if kind == _OTHER else data

    def read_image(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """As `cit_curate.images.pictures.read_image`, in another process.

        Raises:
            ImageRejected: As there, or `decoder_failed`.
            PeerLostError: The process was killed.
        """
        _, result = self._request(_PICTURE, data, 0, max_pixels)
        size = _SIZE.unpack_from(result)
        return Image.frombytes("RGB", size, result[_SIZE.size :])

    def close(self) -> None:
        """End the idle processes."""
        while self._idle:
            _end(self._idle.pop())

    def _request(self, what: int, data: bytes, side: int, max_pixels: int) -> tuple[int, bytes]:
        try:
            decoder = self._idle.pop()
        except IndexError:
            decoder = self._start()
        try:
            kind, result = _send(decoder, _REQUEST.pack(what, side, max_pixels, len(data)), data)
        except (BrokenPipeError, EOFError):
            raise self._failure(decoder) from None
        self._idle.append(decoder)
        if kind == _REJECTED:
            raise ImageRejected(*json.loads(result))
        return kind, result

    def _start(self) -> "subprocess.Popen[bytes]":
        path = os.pathsep.join(filter(None, sys.path))
        return subprocess.Popen(
            [*self._command, str(self._limit_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            process_group=0,  # terminals and launchers signal the parent's group
        )

    def _failure(self, decoder: "subprocess.Popen[bytes]") -> Exception:
        code = _end(decoder)
        if -code == signal.SIGALRM:
            detail = f"it was not decoded in {self._limit_seconds:g} s"
            return ImageRejected("decoder_failed", detail)
        if -code in _OWN_MISTAKES:
            detail = f"its decoder crashed ({signal.Signals(-code).name})"
            return ImageRejected("decoder_failed", detail)
        self.close()  # the idle ones may be gone, too
        return PeerLostError(
            f"a process that opens images ended with code {code}, perhaps for want of memory; run "
            "the same command again (a training run with --resume)"
        )


@cache
def decoders() -> Decoders:
    """The decoders of this process, which end with it."""
    own = Decoders()
    atexit.register(own.close)
    # A forked child would share the pipes.
    os.register_at_fork(after_in_child=decoders.cache_clear)
    return own


def _send(decoder: "subprocess.Popen[bytes]", *message: bytes) -> tuple[int, bytes]:
    assert decoder.stdin is not None
    assert decoder.stdout is not None
    for part in message:
        decoder.stdin.write(part)
    decoder.stdin.flush()
    kind, length = _RESULT.unpack(_read(decoder.stdout, _RESULT.size))
    return kind, _read(decoder.stdout, length)


def _end(decoder: "subprocess.Popen[bytes]") -> int:
    """The exit code of a process, which ends when its input is closed."""
    assert decoder.stdin is not None
    assert decoder.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # unsent bytes
        decoder.stdin.close()
    decoder.stdout.close()
    return decoder.wait()


def _read(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def main() -> None:
    """Serve requests on standard input with results on standard output, until the input ends."""
    limit_seconds = float(sys.argv[1])
    requests, results = sys.stdin.buffer, sys.stdout.buffer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it ends the process even in C code
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    while head := requests.read(_REQUEST.size):
        what, side, max_pixels, length = _REQUEST.unpack(head)
        data = requests.read(length)
        signal.setitimer(signal.ITIMER_REAL, limit_seconds)
        kind, result = _result(what, data, side, max_pixels)
        signal.setitimer(signal.ITIMER_REAL, 0)
        results.write(_RESULT.pack(kind, len(result)))
        results.write(result)
        results.flush()


def _result(what: int, data: bytes, side: int, max_pixels: int) -> tuple[int, bytes]:
    try:
        if what == _PICTURE:
            picture = read_image(data, max_pixels=max_pixels)
            return _OTHER, _SIZE.pack(*picture.size) + picture.tobytes()
        if what == _SHARD_IMAGE:
            image = shard_image(data, side=side, max_pixels=max_pixels)
        else:
            image = export_image(data, side=side, format=_FORMAT_OF[what], max_pixels=max_pixels)
    except ImageRejected as rejected:
        return _REJECTED, json.dumps([rejected.reason, rejected.detail]).encode()
    return (_SAME, b"") if image is data else (_OTHER, image)


if __name__ == "__main__":
    main()
