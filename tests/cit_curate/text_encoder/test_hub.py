"""Models of the hub: from the cache without a question, or asked for once."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.errors import ConfigError
from cit_curate.text_encoder.hub import HubName, hub_folder
from cit_curate.text_encoder.load import resolve_model_name

COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "vocab.txt": b"a\nb\n",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
    "modeling_own.py": b"raise SystemExit('code was run')",
    "onnx/config.json": b"{}",
    "onnx/model.onnx": b"big",
}
FETCHED = ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
WORD = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_]{0,20}", fullmatch=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put_into_cache(cache: Path, files: dict[str, bytes], repo: str = "org/name") -> Path:
    """What an earlier download left."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for name, data in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(data)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """A small hub with the repository org/name: its address, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            api = "/api/models/org/name"
            if path in (api, f"{api}/revision/main"):
                siblings = [{"rfilename": name} for name in FILES]
                value = {"id": "org/name", "sha": COMMIT, "siblings": siblings}
                self.answer(200, json.dumps(value).encode())
            elif path.startswith(f"{api}/revision/"):
                self.answer(404, b"", X_Error_Code="RevisionNotFound")
            elif path.startswith(f"{api}/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": f"{number:040x}"}
                    for number, (name, data) in enumerate(FILES.items())
                ]
                self.answer(200, json.dumps(tree).encode())
            elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
                name = path.partition(f"{COMMIT}/")[2]
                tag = f'"{list(FILES).index(name):040x}"'
                self.answer(200, FILES[name], ETag=tag, X_Repo_Commit=COMMIT)
            else:
                self.answer(404, b"", X_Error_Code="RepoNotFound")

        do_HEAD = do_GET  # noqa: N815 - the name is http.server's

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(
    name: str, home: Path, endpoint: str, **settings: str
) -> "subprocess.CompletedProcess[str]":
    """`hub_folder` in a process of its own, whose huggingface_hub is not offline."""
    code = (
        "import sys\n"
        "from cit_curate.errors import CitError\n"
        "from cit_curate.text_encoder.hub import hub_folder\n"
        "try: print(hub_folder(sys.argv[1]))\n"
        "except CitError as error: sys.exit(f'{error.exit_code} {error}')\n"
    )
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **settings,
    }
    return subprocess.run(
        [sys.executable, "-c", code, name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@given(org=WORD, name=WORD, revision=WORD)
def test_every_spelling_of_a_model_is_the_same_model(org: str, name: str, revision: str) -> None:
    assert HubName.parse(f"hf://{org}/{name}") == HubName.parse(f"{org}/{name}")
    assert HubName.parse(f"{org}/{name}") == HubName(f"{org}/{name}", "main")
    assert HubName.parse(f"hf://{org}/{name}@{revision}") == HubName(f"{org}/{name}", revision)
    assert HubName.parse(name) == HubName(name, "main")


@pytest.mark.parametrize(
    "name",
    ["hf://", "a/b/c", "a//b", "../b", "a/..", "a/b@", "a/b@../../c", "a b/c", "a/b--c", "-a/b"],
)
def test_what_cannot_be_a_model_is_refused_before_anybody_is_asked(name: str) -> None:
    with pytest.raises(ConfigError):
        hub_folder(name)


@pytest.mark.faults("X4")
def test_what_the_cache_has_is_used_offline(cache: Path) -> None:
    snapshot = put_into_cache(cache, FILES)
    for name in ("hf://org/name", "org/name", "hf://org/name@main", f"org/name@{COMMIT}"):
        assert resolve_model_name(name) == str(snapshot)


def test_a_half_fetched_model_is_not_used(cache: Path) -> None:
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
    files = {
        "config.json": b"{}",
        "model-00001-of-00002.safetensors": b"half",
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    snapshot = put_into_cache(cache, files)
    with pytest.raises(ConfigError, match="not in the hub's cache"):
        hub_folder("org/name")
    (snapshot / "model-00002-of-00002.safetensors").write_bytes(b"half")
    assert hub_folder("org/name") == snapshot
    put_into_cache(cache, {"config.json": b"{}"}, "org/without-weights")
    with pytest.raises(ConfigError, match="not in the hub's cache"):
        hub_folder("org/without-weights")


@pytest.mark.faults("E8")
def test_offline_mode_is_a_message_with_the_local_alternative(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE.*package:minilm.*efficientnet-lite0"):
        hub_folder("org/other")


def test_a_model_is_fetched_once_without_its_code(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    endpoint, asked = hub
    first = ask("hf://org/name", tmp_path, endpoint)
    assert first.returncode == 0, first.stderr
    folder = Path(first.stdout.strip())
    assert sorted(path.name for path in folder.iterdir()) == FETCHED
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    asked.clear()
    assert ask("org/name", tmp_path, endpoint).stdout == first.stdout
    assert asked == []


def test_unknown_models_and_revisions_are_named_after_one_question(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    endpoint, asked = hub
    unknown = ask("org/nmae", tmp_path, endpoint)
    assert unknown.stderr.startswith("2 org/nmae is neither a directory here nor a model")
    assert len(asked) == 1
    revision = ask("hf://org/name@v9", tmp_path, endpoint)
    assert "org/name has no revision 'v9'" in revision.stderr


@pytest.mark.faults("E8")
def test_no_network_is_said_at_once(tmp_path: Path) -> None:
    ended = ask("org/name", tmp_path, "http://127.0.0.1:9")
    assert ended.stderr.startswith("2 org/name is neither a directory here nor in the hub's cache")
    assert "package:minilm" in ended.stderr
