"""Which URLs are read, what is tried again, and what the cache keeps."""

import errno
import json
import multiprocessing
import os
import re
from pathlib import Path

import fsspec
import httpx2
import pytest
from aiohttp import ServerDisconnectedError
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ProfileNotFound
from fsspec.exceptions import FSTimeoutError
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalTokenNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st

from cit_curate.errors import ConfigError, DamagedError, ResourceError
from cit_curate.run.ledger import Run
from cit_curate.storage import remote, remote_cache
from cit_curate.storage.remote import (
    RemoteFile,
    below,
    list_files,
    put_file,
    read_range,
    remote_url,
    shown_url,
    stat_file,
)
from cit_curate.storage.remote_cache import cache_bytes, cache_name, hold, local_copy, make_room
from cit_curate.storage.upload import made_here, upload_folder

REQUEST = httpx2.Request("GET", "https://store/a")


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty memory:// store, an empty cache, and no waiting."""
    monkeypatch.setenv("CIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CIT_CACHE_BYTES", raising=False)
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.0)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


def put(name: str, data: bytes) -> RemoteFile:
    fsspec.filesystem("memory").pipe_file(f"/bucket/{name}", data)
    found = stat_file(f"memory://bucket/{name}")
    assert found is not None
    return found


def failing(monkeypatch, method: str, errors: list[Exception]) -> list[str]:
    """Make a method of the store raise each of the errors once; gives the calls."""
    fs = fsspec.filesystem("memory")
    own, calls = getattr(fs, method), []

    def call(*args, **kwargs):
        calls.append(method)
        if errors:
            raise errors.pop(0)
        return own(*args, **kwargs)

    monkeypatch.setattr(fs, method, call)
    return calls


def test_a_url_is_the_same_as_a_text_and_as_a_path():
    for text in ("s3://bucket/a/pool", "hf://datasets/org/name@main/pool", "az://box/x"):
        assert remote_url(text) == remote_url(f"{text}/") == remote_url(Path(text)) == text
    assert remote_url("S3://bucket//a") == "s3://bucket/a"
    assert remote_url("abfs://box@account.dfs.core.windows.net/a") is not None
    for local in ("pool", "/a/b", "a:b", Path("a/b:c"), "c:/x"):
        assert remote_url(local) is None


@pytest.mark.faults("X3", "X4")
@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd",
        "local:///etc/passwd",
        "simplecache::s3://b/x",
        "zip://a.zip::s3://b/x",
        "s3://b/x::file:///etc/passwd",
        "pipe:///bin/sh",
        "ssh://host/x",
        "sftp://host/x",
        "http://host/pool",
        "https://host/pool",
        "github://org:repo@main/x",
    ],
)
def test_protocols_beyond_the_list_and_chains_are_refused(text):
    for place in (text, Path(text)):
        with pytest.raises(ConfigError, match=r"s3://|chains"):
            remote_url(place)


@pytest.mark.parametrize(
    "text", ["s3://", "s3://b/../x", "s3://b/x?versionId=1", "s3://b/a\nb", "s3://b\\c/x"]
)
def test_a_url_that_is_no_place_is_refused(text):
    with pytest.raises(ConfigError):
        remote_url(text)


def test_a_folder_whose_name_ends_in_a_colon_stays_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes:").mkdir()
    assert remote_url(Path("notes:/a")) is None


def test_secrets_in_a_url_are_refused_and_never_shown():
    for text in ("s3://KEY:hidden@bucket/x", "https://me:hidden@host/x?sig=token-of-mine"):
        assert not re.search("hidden|token-of-mine", shown_url(text))
        with pytest.raises(ConfigError) as caught:
            remote_url(text)
        assert not re.search("hidden|token-of-mine", str(caught.value))


@given(st.text(max_size=30))
def test_no_name_leads_out_of_a_folder(name):
    url = below("s3://bucket/pool", name)
    if url is not None:
        assert remote_url(url.replace("?", "")) == url.replace("?", "")
        assert url.startswith("s3://bucket/pool/")


@pytest.mark.faults("X3")
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a//b", ".", "", "a\\b"])
def test_names_that_lead_out_are_no_names(name):
    assert below("s3://bucket/pool", name) is None


files = st.builds(
    RemoteFile,
    url=st.text(min_size=1, max_size=40).map(lambda rest: f"s3://bucket/{rest}"),
    bytes=st.integers(0, 1 << 50),
    version=st.text(max_size=20),
)


@settings(deadline=None)
@given(files, files)
def test_cache_names_are_plain_and_differ_with_url_size_and_version(one, other):
    name = cache_name(one)
    assert re.fullmatch(r"[0-9a-f]{2}/[0-9a-f]{40}-[A-Za-z0-9._-]{0,60}", name)
    assert name == cache_name(RemoteFile(one.url, one.bytes, one.version))
    assert (name == cache_name(other)) == (one == other)


def test_files_are_read_listed_and_written(tmp_path):
    put("pool/a.txt", b"0123456789")
    put("pool/b/c.txt", b"c")
    assert read_range("memory://bucket/pool/a.txt", 2, 5) == b"234"
    listed = list_files("memory://bucket/pool")
    assert {name: file.bytes for name, file in listed.items()} == {"a.txt": 10, "b/c.txt": 1}
    assert listed["b/c.txt"].url == "memory://bucket/pool/b/c.txt"
    assert stat_file("memory://bucket/none") is None
    assert stat_file("memory://bucket/pool") is None
    assert list_files("memory://bucket/none") == {}
    (tmp_path / "out").write_bytes(b"out")
    put_file(tmp_path / "out", "memory://bucket/out")
    assert read_range("memory://bucket/out") == b"out"


def test_a_network_error_is_tried_again_and_then_named(monkeypatch):
    put("a", b"abc")
    calls = failing(monkeypatch, "cat_file", [ConnectionResetError("reset"), TimeoutError("slow")])
    assert read_range("memory://bucket/a") == b"abc"
    assert len(calls) == 3
    calls = failing(monkeypatch, "cat_file", [ConnectionResetError("reset")] * 9)
    with pytest.raises(ResourceError, match=r"memory://bucket/a failed at try 5 of 5.*reset"):
        read_range("memory://bucket/a")
    assert len(calls) == remote.TRIES


class AnswerError(OSError):
    """As of a driver whose errors have the status of the answer themselves."""

    def __init__(self, name, status):
        super().__init__(f"answers {status}")
        setattr(self, name, status)


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url="http://store/tokens.json"),
        ServerDisconnectedError(),
        FSTimeoutError("slow"),
        HfHubHTTPError("busy", response=httpx2.Response(503, request=REQUEST)),
        json.JSONDecodeError("half an answer", "{", 1),
        OSError(errno.EIO, "a code that the driver does not know"),
        AnswerError("status", 503),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_driver_raises_is_tried_again(monkeypatch, error):
    put("a", b"abc")
    calls = failing(monkeypatch, "cat_file", [error])
    assert read_range("memory://bucket/a") == b"abc"
    assert len(calls) == 2


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("x"),
        NoCredentialsError(),
        ProfileNotFound(profile="mine"),
        LocalTokenNotFoundError("log in"),
        HfHubHTTPError("no", response=httpx2.Response(401, request=REQUEST)),
        GatedRepoError("no", response=httpx2.Response(403, request=REQUEST)),
        AnswerError("code", 401),
        AnswerError("status_code", 403),
    ],
    ids=lambda error: type(error).__name__,
)
def test_missing_and_refused_credentials_are_named_at_once(monkeypatch, error):
    put("a", b"abc")
    calls = failing(monkeypatch, "cat_file", [error])
    with pytest.raises(ConfigError, match=rf"not allowed \({type(error).__name__}.*credentials"):
        read_range("memory://bucket/a")
    assert len(calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("x"),
        IsADirectoryError("x"),
        OSError(errno.ENOSPC, "no space left"),
        ValueError("no such bucket can be"),
        TypeError("a mistake of ours"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_will_not_change_is_not_tried_again(monkeypatch, error):
    put("a", b"abc")
    calls = failing(monkeypatch, "cat_file", [error])
    with pytest.raises(type(error)) as caught:
        read_range("memory://bucket/a")
    assert caught.value is error
    assert len(calls) == 1


def test_a_missing_driver_is_named_with_its_command(monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError, match=r"pip install 'cit\[remote\]'"):
        read_range("s3://bucket/a")
    with pytest.raises(ConfigError, match="pip install 'adlfs'"):
        read_range("az://bucket/a")


def test_a_copy_is_fetched_once_and_again_when_the_file_was_written_anew(monkeypatch):
    file = put("part.parquet", b"old")
    calls = failing(monkeypatch, "get_file", [])
    path = local_copy(file)
    assert path.read_bytes() == b"old"
    assert local_copy(file) == path
    assert len(calls) == 1
    newer = put("part.parquet", b"new")
    assert newer != file
    assert local_copy(newer).read_bytes() == b"new"


@pytest.mark.faults("S3")
def test_a_cut_download_is_fetched_again(monkeypatch):
    file = put("a", b"0123456789")
    fs = fsspec.filesystem("memory")
    lengths = iter([4, 0, 10])
    monkeypatch.setattr(
        fs, "get_file", lambda path, to: Path(to).write_bytes(b"0123456789"[: next(lengths)])
    )
    assert local_copy(file).read_bytes() == b"0123456789"


def test_a_download_that_stays_cut_or_differs_from_its_hash_is_refused_and_not_kept(monkeypatch):
    file = put("a", b"0123456789")
    with pytest.raises(DamagedError, match="SHA-256 differs"):
        local_copy(file, sha256="0" * 64)
    monkeypatch.setattr(
        fsspec.filesystem("memory"), "get_file", lambda path, to: Path(to).write_bytes(b"0123")
    )
    with pytest.raises(DamagedError, match="4 of 10 bytes"):
        local_copy(file)
    assert not list(remote_cache.copies_folder().rglob("*-a"))


def test_a_copy_that_was_changed_is_fetched_again_when_it_is_checked():
    import hashlib

    file, sha256 = put("a", b"0123"), hashlib.sha256(b"0123").hexdigest()
    local_copy(file).write_bytes(b"9999")
    assert local_copy(file, sha256=sha256, recheck=True).read_bytes() == b"0123"


def test_the_least_recently_used_copies_make_room(monkeypatch, tmp_path):
    monkeypatch.setenv("CIT_CACHE_BYTES", "250")
    paths = []
    for number, name in enumerate("abc"):
        paths.append(local_copy(put(name, bytes([number]) * 100)))
        if number < 2:
            os.utime(paths[number], (number, number))
    assert [path.exists() for path in paths] == [False, True, True]
    assert local_copy(put("c", b"c" * 100)).exists()


def test_a_held_copy_outlives_its_name_in_the_cache(monkeypatch, tmp_path):
    path = local_copy(put("a", b"0123"))
    hold(path, tmp_path / "held" / "a")
    monkeypatch.setenv("CIT_CACHE_BYTES", "1")
    make_room(remote_cache.copies_folder(), 0)
    assert not path.exists()
    assert (tmp_path / "held" / "a").read_bytes() == b"0123"


def test_the_bound_of_the_cache_is_a_size(monkeypatch):
    assert cache_bytes() == 20 << 30
    for text, size in (("1000", 1000), ("1.5K", 1536), ("2GB", 2 << 30), ("3 TiB", 3 << 40)):
        monkeypatch.setenv("CIT_CACHE_BYTES", text)
        assert cache_bytes() == size
    monkeypatch.setenv("CIT_CACHE_BYTES", "much")
    with pytest.raises(ConfigError, match="CIT_CACHE_BYTES"):
        cache_bytes()


def _fetch(number: int) -> str:
    file = RemoteFile("memory://bucket/shared", 4, "1")

    def slow(self, path, to):
        with Path(os.environ["CIT_CACHE"], "calls").open("a") as stream:
            stream.write("x")
        Path(to).write_bytes(b"0123")

    fsspec.get_filesystem_class("memory").get_file = slow
    return local_copy(file).read_bytes().decode()


def test_processes_that_want_the_same_file_fetch_it_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CIT_CACHE", str(tmp_path))
    with multiprocessing.get_context("fork").Pool(4) as workers:
        assert workers.map(_fetch, range(4)) == ["0123"] * 4
    assert (tmp_path / "calls").read_text() == "x"


def test_a_folder_is_put_with_its_sign_last_and_only_into_an_empty_place(tmp_path, monkeypatch):
    (tmp_path / "pool" / "pairs").mkdir(parents=True)
    for name in ("pool.json", "pairs/z.parquet", "zz"):
        (tmp_path / "pool" / name).write_text(name)
    order = []
    fs = fsspec.filesystem("memory")
    own = fs.put_file
    monkeypatch.setattr(fs, "put_file", lambda a, b: (order.append(b), own(a, b)))
    upload_folder(tmp_path / "pool", "memory://bucket/pool", last="pool.json")
    assert order == ["/bucket/pool/pairs/z.parquet", "/bucket/pool/zz", "/bucket/pool/pool.json"]
    with pytest.raises(ConfigError, match="3 files in it"):
        upload_folder(tmp_path / "pool", "memory://bucket/pool")
    with pytest.raises(ConfigError, match="is a file"):
        upload_folder(tmp_path / "pool", "memory://bucket/pool/zz")


def test_what_fails_while_it_is_made_is_not_put(store):
    def cut() -> None:
        with made_here(Path("memory://bucket/out.json")) as local:
            local.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cut()
    assert not store.exists("/bucket/out.json")


def test_an_upload_that_arrives_cut_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"0123")
    fs = fsspec.filesystem("memory")
    monkeypatch.setattr(fs, "put_file", lambda local, path: fs.pipe_file(path, b"01"))
    with pytest.raises(ResourceError, match="not written whole"):
        put_file(tmp_path / "a", "memory://bucket/a")


def test_a_run_is_never_in_a_store():
    for place in ("s3://bucket/run", Path("s3://bucket/run")):
        with pytest.raises(ConfigError, match=r"file system.*cit export"):
            Run.open(place)
        with pytest.raises(ConfigError, match="file system"):
            Run.check_free(Path(place), overwrite=False)
