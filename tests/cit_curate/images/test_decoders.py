"""Images are opened by processes that may hang or crash."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from run_fixtures import image_bytes

from cit_curate.errors import PeerLostError
from cit_curate.images.decoders import Decoders, decoders
from cit_curate.images.read import ImageRejected, read_image
from cit_curate.images.shard_image import shard_image

FAILING = (sys.executable, str(Path(__file__).parents[1] / "failing_decoder.py"))
LARGE = image_bytes(size=(600, 400))


@pytest.fixture
def failing() -> Iterator[Decoders]:
    started = Decoders(limit_seconds=1, command=FAILING)
    yield started
    started.close()


def outcome(opened: Decoders, image: bytes) -> str:
    try:
        assert opened.shard_image(image) == image
    except ImageRejected as rejected:
        return f"{rejected.reason}: {rejected.detail}"
    return "opened"


@pytest.mark.parametrize("side", [0, 100])
@pytest.mark.parametrize("image", [image_bytes(), LARGE, LARGE[:-20], b"", b"GIF89a", b"II*\0"])
def test_a_process_answers_as_the_function_does(image: bytes, side: int) -> None:
    def answer(open_image: object) -> object:
        try:
            return open_image(image, side=side, max_pixels=500_000)
        except ImageRejected as rejected:
            return rejected.reason, rejected.detail

    assert answer(decoders().shard_image) == answer(shard_image)


@pytest.mark.parametrize("max_pixels", [500_000, 1000])
@pytest.mark.parametrize("image", [image_bytes(), LARGE, LARGE[:-20], b"", b"GIF89a", b"II*\0"])
def test_a_process_gives_the_picture_that_the_function_gives(image: bytes, max_pixels: int) -> None:
    def answer(read: Callable[..., Image.Image]) -> object:
        try:
            picture = read(image, max_pixels=max_pixels)
        except ImageRejected as rejected:
            return rejected.reason, rejected.detail
        return picture.mode, picture.size, picture.tobytes()

    assert answer(decoders().read_image) == answer(read_image)


@pytest.mark.faults("I9")
@pytest.mark.parametrize("way", ["hang", "loop"])
@pytest.mark.slow
def test_an_image_that_is_decoded_for_ever_is_rejected_and_the_next_is_opened(
    failing: Decoders, way: str
) -> None:
    began = time.monotonic()
    rejected = "decoder_failed: it was not decoded in 1 s"
    assert outcome(failing, image_bytes() + way.encode()) == rejected
    assert time.monotonic() - began < 20
    assert outcome(failing, image_bytes()) == "opened"


@pytest.mark.faults("I9")
def test_an_image_that_crashes_its_decoder_is_rejected_while_others_are_opened(
    failing: Decoders,
) -> None:
    images = [image_bytes(), image_bytes() + b"abort"] * 6
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda image: outcome(failing, image), images))
    assert found == ["opened", "decoder_failed: its decoder crashed (SIGABRT)"] * 6


@pytest.mark.faults("I9", "S5")
def test_a_process_that_was_killed_is_not_the_images_fault(failing: Decoders) -> None:
    with pytest.raises(PeerLostError, match="code -9, perhaps for want of memory") as caught:
        failing.shard_image(image_bytes() + b"kill")
    assert caught.value.exit_code == 6
    assert outcome(failing, image_bytes()) == "opened"


@pytest.mark.faults("I9", "S6")
@pytest.mark.parametrize(
    "last",
    ["input()", pytest.param("own.shard_image(image + b'hang')", marks=pytest.mark.slow)],
)
def test_no_decoder_outlives_its_parent(tmp_path: Path, last: str) -> None:
    code = (
        "import sys; from cit_curate.images.decoders import Decoders\n"
        "image = open(sys.argv[1], 'rb').read()\n"
        "own = Decoders(limit_seconds=2, command=sys.argv[2:])\n"
        "own.shard_image(image)\n"
        "print(own._idle[0].pid, flush=True)\n"
        f"{last}\n"
    )
    (tmp_path / "a.png").write_bytes(image_bytes())
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.png"), *FAILING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        os.kill(child, 0)
        parent.kill()
    deadline = time.monotonic() + 20
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_decoders_of_its_own() -> None:
    assert outcome(decoders(), image_bytes()) == "opened"
    parents = decoders()
    child = os.fork()
    if not child:
        os._exit(0 if decoders() is not parents else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert outcome(parents, image_bytes()) == "opened"


def test_signals_to_the_process_group_do_not_reach_a_decoder() -> None:
    own = Decoders()
    assert outcome(own, image_bytes()) == "opened"
    (decoder,) = own._idle
    assert os.getpgid(decoder.pid) != os.getpgid(0)
    decoder.send_signal(signal.SIGINT)
    assert outcome(own, image_bytes()) == "opened"
    own.close()
    assert decoder.returncode == 0
