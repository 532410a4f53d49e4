"""Processes that open untrusted images: a decoder that hangs or crashes takes one image with it.

Decoders are native code. In a thread, one that never ends cannot be ended, and one that crashes
ends the run. Here each has a process that is asked for one image at a time over a pipe; the kernel
ends it when an image takes too long, and the next image starts another one. Measured: 0.04 ms more
for a JPEG of 53 kB that takes 0.47 ms in a thread, 0.25 ms for one of 215 kB and 1.6 ms; 32 MB and
0.12 s to start one.
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

from cit_curate.errors import PeerLostError
from cit_curate.images.pictures import MAX_PIXELS, read_image
from cit_curate.images.rejected import ImageRejected
from cit_curate.images.shard_image import shard_image

# A picture of MAX_PIXELS takes about two seconds; this is for a machine that is busy otherwise.
LIMIT_SECONDS = 60.0
_COMMAND = (sys.executable, "-P", "-m", "cit_curate.images.decoders")
# What a decoder's own mistakes end in. Any other signal came from outside, as for want of memory.
_OWN_MISTAKES = frozenset(
    getattr(signal, f"SIG{name}") for name in ("ABRT", "ALRM", "BUS", "FPE", "ILL", "SEGV", "SYS")
)

_ASKED = struct.Struct("<BQQQ")  # one of those below, side, max_pixels, bytes of the image
_SHARD_IMAGE, _PICTURE = range(2)
_SIZE = struct.Struct("<QQ")  # width and height, before a picture's pixels
_ANSWER = struct.Struct("<BQ")  # one of those below, and bytes that follow
_SAME, _OTHER, _REJECTED = range(3)


class Decoders:
    """Processes that wait for images; as many as are asked at once. For use by several threads."""

    def __init__(
        self, *, limit_seconds: float = LIMIT_SECONDS, command: Sequence[str] = _COMMAND
    ) -> None:
        """Start none yet.

        Args:
            limit_seconds: That an image may take.
            command: Runs `main`, with the limit as its argument.
        """
        self._limit_seconds = limit_seconds
        self._command = command
        self._idle: list[subprocess.Popen[bytes]] = []

    def shard_image(self, data: bytes, *, side: int = 0, max_pixels: int = MAX_PIXELS) -> bytes:
        """What `cit_curate.images.shard_image.shard_image` gives, from another process.

        Raises:
            ImageRejected: As there, or `decoder_failed`.
            PeerLostError: The process was killed.
        """
        kind, answer = self._asked(_SHARD_IMAGE, data, side, max_pixels)
        return answer if kind == _OTHER else data

    def read_image(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """What `cit_curate.images.pictures.read_image` gives, from another process.

        Raises:
            ImageRejected: As there, or `decoder_failed`.
            PeerLostError: The process was killed.
        """
        _, answer = self._asked(_PICTURE, data, 0, max_pixels)
        size = _SIZE.unpack_from(answer)
        return Image.frombytes("RGB", size, answer[_SIZE.size :])

    def close(self) -> None:
        """End the processes that wait."""
        while self._idle:
            _end(self._idle.pop())

    def _asked(self, what: int, data: bytes, side: int, max_pixels: int) -> tuple[int, bytes]:
        try:
            decoder = self._idle.pop()
        except IndexError:
            decoder = self._start()
        try:
            kind, answer = _ask(decoder, _ASKED.pack(what, side, max_pixels, len(data)), data)
        except (BrokenPipeError, EOFError):
            raise self._failure(decoder) from None
        self._idle.append(decoder)
        if kind == _REJECTED:
            raise ImageRejected(*json.loads(answer))
        return kind, answer

    def _start(self) -> "subprocess.Popen[bytes]":
        path = os.pathsep.join(filter(None, sys.path))
        return subprocess.Popen(
            [*self._command, str(self._limit_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            process_group=0,  # a terminal and a launcher send signals to the parent's
        )

    def _failure(self, decoder: "subprocess.Popen[bytes]") -> Exception:
        code = _end(decoder)
        if -code == signal.SIGALRM:
            detail = f"it was not decoded in {self._limit_seconds:g} s"
            return ImageRejected("decoder_failed", detail)
        if -code in _OWN_MISTAKES:
            detail = f"its decoder crashed ({signal.Signals(-code).name})"
            return ImageRejected("decoder_failed", detail)
        self.close()  # those that wait may be gone, too
        return PeerLostError(
            f"a process that opens images ended with code {code}, perhaps for want of memory; run "
            "the same command again (a training run with --resume)"
        )


@cache
def decoders() -> Decoders:
    """Those of this process, which end with it."""
    own = Decoders()
    atexit.register(own.close)
    # A child that is forked would share the pipes.
    os.register_at_fork(after_in_child=decoders.cache_clear)
    return own


def _ask(decoder: "subprocess.Popen[bytes]", *message: bytes) -> tuple[int, bytes]:
    assert decoder.stdin is not None
    assert decoder.stdout is not None
    for part in message:
        decoder.stdin.write(part)
    decoder.stdin.flush()
    kind, length = _ANSWER.unpack(_read(decoder.stdout, _ANSWER.size))
    return kind, _read(decoder.stdout, length)


def _end(decoder: "subprocess.Popen[bytes]") -> int:
    """The exit code of a process that has ended, or that ends as it is asked nothing more."""
    assert decoder.stdin is not None
    assert decoder.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # of what was not sent
        decoder.stdin.close()
    decoder.stdout.close()
    return decoder.wait()


def _read(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def main() -> None:
    """Answer on standard output what standard input asks, until that ends with the parent."""
    limit_seconds = float(sys.argv[1])
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it ends the process in the midst of C
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    while head := questions.read(_ASKED.size):
        what, side, max_pixels, length = _ASKED.unpack(head)
        data = questions.read(length)
        signal.setitimer(signal.ITIMER_REAL, limit_seconds)
        kind, answer = _answer(what, data, side, max_pixels)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(_ANSWER.pack(kind, len(answer)))
        answers.write(answer)
        answers.flush()


def _answer(what: int, data: bytes, side: int, max_pixels: int) -> tuple[int, bytes]:
    try:
        if what == _PICTURE:
            picture = read_image(data, max_pixels=max_pixels)
            return _OTHER, _SIZE.pack(*picture.size) + picture.tobytes()
        image = shard_image(data, side=side, max_pixels=max_pixels)
    except ImageRejected as rejected:
        return _REJECTED, json.dumps([rejected.reason, rejected.detail]).encode()
    return (_SAME, b"") if image is data else (_OTHER, image)


if __name__ == "__main__":
    main()
