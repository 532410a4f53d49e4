"""`apt-get`, `apt-cache` and `dpkg-deb` are small stand-ins on PATH; a package is a JSON file."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cit_curate.errors import ConfigError, DamagedError, ResourceError
from cit_train.demo import assets
from cit_train.demo.assets import DEBIAN_ASSETS, DebianAsset, fetch_deb

NAME = "openclipart-svg"
DEB = f"{NAME}_1%3a2_all.deb"

# Each client appends its words to `calls`; `site.json` says what it knows.
APT = """
import json, pathlib, shutil, sys
here = pathlib.Path(__file__).parent
site = json.loads((here / "site.json").read_text())
client, words = pathlib.Path(__file__).name, sys.argv[1:]
with (here / "calls").open("a") as calls:
    calls.write(" ".join([client, *words]) + "\\n")
lists = [word.split("=")[1] for word in words if word.startswith("-oDir::State::Lists=")]
usable = (pathlib.Path(lists[0]) / "made").exists() if lists else site["system_lists"]
words = [word for word in words if not word.startswith("-")]
if words[0] == "update":
    if not site["network"]:
        sys.exit("E: Failed to fetch: no network")
    (pathlib.Path(lists[0]) / "made").touch()
elif words[0] == "show":
    if not usable or words[1] not in site["shown"]:
        sys.exit("E: No packages found")
    print(site["shown"][words[1]])
elif words[0] == "download":
    if not usable or not site["network"] or (site["old_lists"] and not lists):
        pathlib.Path("half.deb.partial").touch()
        sys.exit("E: 404  Not Found")
    shutil.copy(here / site["deb"], site["deb"])
"""
DPKG = """
import json, pathlib, sys
with (pathlib.Path(__file__).parent / "calls").open("a") as calls:
    calls.write("dpkg-deb " + sys.argv[1] + "\\n")
file = sys.argv[3] if sys.argv[1] == "--show" else sys.argv[2]
try:
    deb = json.loads(pathlib.Path(file).read_text())
except ValueError:
    sys.exit("dpkg-deb: error: is not a Debian format archive")
if sys.argv[1] == "--show":
    sys.stdout.write(deb["package"] + "\\n" + deb["version"])
else:
    for name in deb["files"]:
        path = pathlib.Path(sys.argv[3]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    if deb.get("cut"):
        sys.exit("tar: unexpected end of archive")
"""


@dataclass
class Site:
    """The stand-in clients' folder and what they were asked."""

    bin: Path
    cache: Path
    said: list[str] = field(default_factory=list)

    def know(self, **facts: object) -> None:
        path = self.bin / "site.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))

    def calls(self, word: str) -> list[str]:
        path = self.bin / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if word in line.split()]

    def fetch(self) -> Path:
        return fetch_deb(NAME, self.cache, self.said.append)


def write_deb(path: Path, **changes: object) -> bytes:
    folder = DEBIAN_ASSETS[NAME].folder
    deb = {"package": NAME, "version": "1:2", "files": [f"{folder}/{n}/a.svg" for n in "abc"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**deb, **changes}))
    return path.read_bytes()


def stanza(deb: bytes, version: str = "1:2") -> str:
    sha256 = hashlib.sha256(deb).hexdigest()
    return f"Package: {NAME}\nVersion: {version}\nDescription: x\n more: y\nSHA256: {sha256}\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A machine whose apt knows one package, with three pictures."""
    made = Site(tmp_path / "bin", tmp_path / "cache")
    made.bin.mkdir()
    for client, source in (("apt-get", APT), ("apt-cache", APT), ("dpkg-deb", DPKG)):
        (made.bin / client).write_text(f"#!{sys.executable}\n{source}")
        (made.bin / client).chmod(0o755)
    deb = write_deb(made.bin / DEB)
    facts = {"network": True, "system_lists": True, "old_lists": False, "deb": DEB}
    (made.bin / "site.json").write_text(json.dumps({**facts, "shown": {NAME: stanza(deb)}}))
    monkeypatch.setenv("PATH", str(made.bin))
    asset = DebianAsset(
        folder=DEBIAN_ASSETS[NAME].folder, suffix=".svg", min_files=3, num_bytes=1_000_000
    )
    monkeypatch.setattr(assets, "DEBIAN_ASSETS", {NAME: asset})
    return made


def assert_nothing_half_done(cache: Path) -> None:
    assert not [path for path in cache.rglob("*") if path.name.startswith(".tmp-")]
    assert not (cache / "packages" / NAME).exists()


def test_a_package_is_downloaded_checked_and_unpacked(site: Site) -> None:
    folder = site.fetch()
    assert folder == site.cache / "packages" / NAME / "usr/share/openclipart/svg"
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c"]
    marker = json.loads((site.cache / "packages" / NAME / ".fetched.json").read_text())
    sha256 = hashlib.sha256((site.cache / "debs" / DEB).read_bytes()).hexdigest()
    assert marker == {"package": NAME, "version": "1:2", "sha256": sha256, "pictures": 3}
    assert site.said == [
        f"downloading {NAME} (1 MB) with apt-get",
        f"checking {DEB}",
        f"unpacking {DEB}",
    ]
    assert not site.calls("update")


def test_a_second_fetch_asks_nobody(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = site.fetch()
    monkeypatch.setenv("PATH", "")
    site.said.clear()
    assert site.fetch() == folder
    assert site.said == []


@pytest.mark.parametrize("harm", ["a picture is gone", "the marker is cut", "no marker"])
def test_a_damaged_unpacked_package_is_unpacked_again_without_a_download(
    site: Site, harm: str
) -> None:
    folder = site.fetch()
    marker = site.cache / "packages" / NAME / ".fetched.json"
    if harm == "a picture is gone":
        (folder / "a" / "a.svg").unlink()
    elif harm == "the marker is cut":
        marker.write_text("{")
    else:
        marker.unlink()
    assert (site.fetch() / "a" / "a.svg").is_file()
    assert len(site.calls("download")) == 1
    assert [path.name for path in (site.cache / "packages").iterdir()] == [NAME]


def test_missing_package_lists_are_fetched_into_the_cache(site: Site) -> None:
    site.know(system_lists=False)
    site.fetch()
    private = f"-oDir::State::Lists={site.cache}/apt/lists"
    assert private in site.calls("update")[0]
    assert private in site.calls("download")[0]
    assert (site.cache / "apt/lists/partial").is_dir()
    assert (site.cache / "apt/archives/archives/partial").is_dir()


def test_old_package_lists_are_replaced_by_private_ones(site: Site) -> None:
    site.know(old_lists=True)
    assert site.fetch().is_dir()
    assert len(site.calls("download")) == 2
    assert len(site.calls("update")) == 1


def test_a_deb_put_there_by_hand_needs_no_apt(site: Site) -> None:
    write_deb(site.cache / "debs" / DEB)
    for client in ("apt-get", "apt-cache"):
        (site.bin / client).unlink()
    assert site.fetch().is_dir()


def test_a_deb_by_hand_of_a_version_that_is_not_listed_is_taken(site: Site) -> None:
    write_deb(site.cache / "debs" / f"{NAME}_9_all.deb", version="9")
    site.fetch()
    marker = json.loads((site.cache / "packages" / NAME / ".fetched.json").read_text())
    assert marker["version"] == "9"


def test_without_apt_get_the_error_says_where_to_put_the_file(site: Site) -> None:
    (site.bin / "apt-get").unlink()
    with pytest.raises(ConfigError, match=r"apt-get.*not on PATH") as raised:
        site.fetch()
    assert f"put it into {site.cache}/debs, which is $CIT_CACHE/debs" in str(raised.value)


def test_without_dpkg_deb_nothing_is_downloaded(site: Site) -> None:
    (site.bin / "dpkg-deb").unlink()
    with pytest.raises(ConfigError, match="dpkg-deb"):
        site.fetch()
    assert not site.calls("download")


def test_an_unknown_package_gets_the_nearest_spelling(site: Site) -> None:
    with pytest.raises(ConfigError, match="did you mean 'openclipart-svg'"):
        fetch_deb("openclipart_svg", site.cache, site.said.append)
    assert not site.cache.exists()


def test_no_network_is_a_resource_error_and_leaves_nothing(site: Site) -> None:
    site.know(network=False)
    with pytest.raises(ResourceError, match=r"lists could not be fetched.*no network"):
        site.fetch()
    assert_nothing_half_done(site.cache)
    assert not list((site.cache / "debs").iterdir())


def test_a_package_that_the_sources_do_not_have_is_a_config_error(site: Site) -> None:
    site.know(shown={}, old_lists=True, deb="missing.deb")
    with pytest.raises(ConfigError, match=r"download openclipart-svg` failed.*apt's sources"):
        site.fetch()
    assert_nothing_half_done(site.cache)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda deb: write_deb(deb, files=["etc/other"]), "0 .svg files in .*, and at least 3"),
        (lambda deb: write_deb(deb, package="other"), "is the package 'other', not"),
        (lambda deb: write_deb(deb, cut=True), "could not be unpacked: tar: unexpected end"),
        (lambda deb: deb.write_bytes(b"<html>"), "is not a Debian package: dpkg-deb: error"),
    ],
    ids=["too few pictures", "another package", "cut", "not a package"],
)
def test_a_damaged_deb_is_refused_and_leaves_nothing(
    site: Site, harm: Callable[[Path], object], message: str
) -> None:
    site.know(shown={})
    (site.cache / "debs").mkdir(parents=True)
    harm(site.cache / "debs" / DEB)
    with pytest.raises(DamagedError, match=message) as raised:
        site.fetch()
    assert str(site.cache / "debs" / DEB) in str(raised.value)
    assert_nothing_half_done(site.cache)


def test_a_deb_that_is_not_the_listed_one_is_refused(site: Site) -> None:
    other = write_deb(site.cache / "debs" / DEB, files=[])
    with pytest.raises(DamagedError, match="Debian's list says") as raised:
        site.fetch()
    assert hashlib.sha256(other).hexdigest() in str(raised.value)
    assert_nothing_half_done(site.cache)
