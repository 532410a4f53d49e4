"""A download ends whole and checked, whatever the server, the network or a kill does to it."""

import hashlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from file_server import Served, file_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cit_curate.errors import ConfigError, DamagedError, ResourceError
from cit_train.hub.download import MAX_REDIRECTS, download
from cit_train.hub.stored_file import stored_file

FETCH_FILE = Path(__file__).parents[1] / "fetch_file.py"
CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NO_PAUSES = (0.0, 0.0, 0.0)


@pytest.fixture
def served() -> Iterator[Served]:
    with file_server(Served(content=CONTENT)) as server:
        yield server


def test_a_file_arrives_with_its_record_and_is_not_fetched_again(
    served: Served, tmp_path: Path
) -> None:
    seen: list[tuple[int, int | None]] = []
    path = tmp_path / "cache" / "weights.pth"
    stored = download(served.url, path, on_progress=lambda *at: seen.append(at))
    assert path.read_bytes() == CONTENT
    assert (stored.bytes, stored.sha256) == (len(CONTENT), SHA256)
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    record = json.loads((path.parent / "weights.pth.json").read_text())
    assert record["sha256"] == SHA256
    assert record["url"] == served.url
    assert sorted(p.name for p in path.parent.iterdir()) == ["weights.pth", "weights.pth.json"]
    assert download(served.url, path) == stored
    assert len(served.requests) == 1


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(1, 120_000), max_size=4))
def test_a_cut_connection_goes_on_where_it_was_cut(
    cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "weights.pth"
    with file_server(Served(content=CONTENT, cuts=list(cuts))) as served:
        assert download(served.url, path, pauses=NO_PAUSES).sha256 == SHA256
        starts = np.cumsum([0, *cuts])
        assert (
            served.requests
            == ["", *(f"bytes={start}-" for start in starts[1:])][: len(served.requests)]
        )
    assert path.read_bytes() == CONTENT


def test_a_download_that_keeps_breaking_off_ends_and_the_next_call_goes_on(
    served: Served, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    served.cuts = [100_000]
    served.statuses = []
    with pytest.raises(ResourceError, match=r"100,000 bytes.*run the command again"):
        download(served.url, path, pauses=())
    assert not path.exists()
    assert (tmp_path / "weights.pth.part").stat().st_size == 100_000
    assert download(served.url, path).sha256 == SHA256
    assert served.requests == ["", "bytes=100000-"]


def test_a_file_that_changed_meanwhile_starts_anew(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    served.cuts = [100_000]
    with pytest.raises(ResourceError):
        download(served.url, path, pauses=())
    served.content = CONTENT[::-1]
    download(served.url, path)
    assert path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("lacking", ["ranges", "etag"])
def test_a_server_without_ranges_or_versions_sends_all_again(
    served: Served, tmp_path: Path, lacking: str
) -> None:
    setattr(served, lacking, False)
    path = tmp_path / "weights.pth"
    served.cuts = [100_000]
    assert download(served.url, path, pauses=NO_PAUSES).sha256 == SHA256
    assert path.read_bytes() == CONTENT


def test_a_server_that_does_not_say_the_length_is_read_to_its_end(
    served: Served, tmp_path: Path
) -> None:
    served.length = False
    assert download(served.url, tmp_path / "weights.pth").sha256 == SHA256


def test_a_partial_answer_of_another_place_is_not_appended(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    served.cuts = [100_000]
    with pytest.raises(ResourceError):
        download(served.url, path, pauses=())
    # More bytes than the server will ever have: it answers 416.
    with (tmp_path / "weights.pth.part").open("ab") as stream:
        stream.write(bytes(300_000))
    assert download(served.url, path, pauses=NO_PAUSES).sha256 == SHA256


def test_a_file_that_is_whole_but_for_its_name_is_not_fetched_again(
    served: Served, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    served.cuts = [100_000]
    with pytest.raises(ResourceError):
        download(served.url, path, pauses=())
    (tmp_path / "weights.pth.part").write_bytes(CONTENT)
    assert download(served.url, path).sha256 == SHA256
    assert served.requests == [""]


@pytest.mark.faults("E8")
def test_a_wrong_hash_is_refused_and_nothing_of_it_stays(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(ConfigError, match=r"was requested.*cit pull again") as caught:
        download(served.url, path, sha256="0" * 64)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []
    assert download(served.url, path, sha256=SHA256.upper()).sha256 == SHA256


def test_a_file_that_changed_on_disk_is_noticed(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    download(served.url, path)
    damaged = bytearray(CONTENT)
    damaged[1234] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DamagedError, match=r"its record weights\.pth\.json"):
        download(served.url, path)
    path.write_bytes(CONTENT)
    with pytest.raises(DamagedError, match="came from"):
        stored_file(path, url="https://example.org/other.pth")


def test_a_file_put_there_by_hand_is_taken_and_recorded(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT)
    stored = download(served.url, path)
    assert (stored.url, stored.sha256) == ("", SHA256)
    assert served.requests == []
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DamagedError):
        download(served.url, path)


def test_missing_and_forbidden_files_say_how_to_do_without(served: Served, tmp_path: Path) -> None:
    for status in (404, 403):
        served.statuses = [status]
        with pytest.raises(ConfigError, match=rf"returned {status}.*put it at .*weights\.pth"):
            download(served.url, tmp_path / "weights.pth", pauses=NO_PAUSES)
    assert len(served.requests) == 2


def test_a_busy_server_is_asked_again_and_not_for_ever(served: Served, tmp_path: Path) -> None:
    served.statuses = [503, 429]
    assert download(served.url, tmp_path / "one.pth", pauses=NO_PAUSES).sha256 == SHA256
    served.statuses = [500] * 9
    with pytest.raises(ResourceError, match="500"):
        download(served.url, tmp_path / "two.pth", pauses=NO_PAUSES)
    assert len(served.statuses) == 9 - 1 - len(NO_PAUSES)


@pytest.mark.faults("E8")
def test_no_network_is_one_quick_message(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"cannot be reached.*put it at"):
        download(f"http://127.0.0.1:{port}/weights.pth", tmp_path / "weights.pth")
    assert time.monotonic() - start < 1.0


def test_silence_ends_a_download(served: Served, tmp_path: Path) -> None:
    served.chunk_seconds = 5.0
    with pytest.raises(ResourceError, match="timed out"):
        download(served.url, tmp_path / "weights.pth", timeout_seconds=0.2, pauses=())


def test_a_file_over_the_limit_is_refused_before_or_while_it_arrives(
    served: Served, tmp_path: Path
) -> None:
    for says_length in (True, False):
        served.length = says_length
        with pytest.raises(ConfigError, match="the limit is 1,000"):
            download(served.url, tmp_path / "weights.pth", max_bytes=1000)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/weights.pth",
        "file:///etc/passwd",
        "ftp://example.org/weights.pth",
        "https:///weights.pth",
        "weights.pth",
    ],
)
def test_only_https_is_fetched(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="https://"):
        download(url, tmp_path / "weights.pth")


def test_a_redirect_leads_to_https_or_stays_on_this_machine(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with file_server(Served(location=served.url)) as first:
        assert download(first.url, path).sha256 == SHA256
    for elsewhere in ("http://example.org/weights.pth", "file:///etc/passwd", "http://[::1"):
        with (
            file_server(Served(location=elsewhere)) as first,
            pytest.raises(ConfigError, match=r"to which .* redirects|returned 302"),
        ):
            download(first.url, tmp_path / "other.pth", pauses=())


def test_redirects_in_a_circle_end(served: Served, tmp_path: Path) -> None:
    served.location = served.url
    with pytest.raises(ConfigError, match="returned 302"):
        download(served.url, tmp_path / "weights.pth", pauses=())
    assert len(served.requests) == MAX_REDIRECTS


def test_a_record_of_what_arrived_that_is_damaged_starts_anew(
    served: Served, tmp_path: Path
) -> None:
    for number, record in enumerate(("", "[]", '{"url": 1}', "{}")):
        path = tmp_path / f"weights-{number}.pth"
        path.with_name(f"{path.name}.part").write_bytes(b"half")
        path.with_name(f"{path.name}.part.json").write_text(record)
        assert download(served.url, path).sha256 == SHA256
    assert served.requests == [""] * 4


def test_a_killed_download_goes_on(tmp_path: Path) -> None:
    content = CONTENT * 8
    path, part = tmp_path / "weights.pth", tmp_path / "weights.pth.part"
    script = FETCH_FILE
    with file_server(Served(content=content, chunk_seconds=0.05)) as served:
        process = subprocess.Popen([sys.executable, str(script), served.url, str(path)])
        limit = time.monotonic() + 60
        while not part.is_file() or part.stat().st_size < 1 << 17:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.01)
        process.kill()
        process.wait()
        arrived = part.stat().st_size
        assert 0 < arrived < len(content)
        served.chunk_seconds = 0.0
        stored = download(served.url, path)
        assert served.requests == ["", f"bytes={arrived}-"]
    assert stored.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.slow
def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with file_server(Served(content=CONTENT, chunk_seconds=0.3)) as served:
        process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).parents[1] / "fetch_file.py"),
                served.url,
                str(path),
            ]
        )
        while not (tmp_path / "weights.pth.part").is_file():
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(ResourceError, match="is held by"):
            download(served.url, path)
        assert process.wait() == 0
    assert path.read_bytes() == CONTENT
