"""The demo's pictures: Debian packages, fetched with Debian's own clients and without root.

`apt-get download` fetches, `dpkg-deb -x` unpacks into the cache folder. Nothing is installed and no
system file is written. A package in the cache is complete or absent:

    CACHE/debs/NAME_VERSION_all.deb      downloaded, or placed by hand
    CACHE/packages/NAME/                 unpacked; `.fetched.json` has the count, version, SHA-256
    CACHE/apt/                           private package lists, where the system's are of no use
"""

import difflib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cit_curate.errors import ConfigError, DamagedError, ResourceError
from cit_curate.storage.durable import (
    file_sha256,
    own_prefix,
    read_json,
    sweep_temporary,
    write_json,
)

__all__ = ["DEBIAN_ASSETS", "DebianAsset", "fetch_deb"]

MARKER = ".fetched.json"
PROGRESS_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class DebianAsset:
    """A Debian package of pictures.

    Attributes:
        folder: The pictures' folder in the unpacked package.
        suffix: The suffix of their names.
        min_files: The minimum number of regular files with that suffix, links not counted: a tenth
            below that of Debian 12's version.
        num_bytes: The size of the download.
    """

    folder: str
    suffix: str
    min_files: int
    num_bytes: int


DEBIAN_ASSETS: Mapping[str, DebianAsset] = MappingProxyType(
    {
        "openclipart-png": DebianAsset(
            folder="usr/share/openclipart/png",
            suffix=".png",
            min_files=6_200,
            num_bytes=130_910_028,
        ),
        "openclipart-svg": DebianAsset(
            folder="usr/share/openclipart/svg",
            suffix=".svg",
            min_files=6_200,
            num_bytes=24_919_068,
        ),
        "tuxpaint-stamps-default": DebianAsset(
            folder="usr/share/tuxpaint/stamps",
            suffix=".png",
            min_files=700,
            num_bytes=160_880_444,
        ),
        # More evaluation pictures, for scripts/make_eval_folders.py.
        "pysiogame": DebianAsset(
            folder="usr/share/games/pysiogame/res/images/art4apps",
            suffix=".jpg",
            min_files=520,
            num_bytes=16_287_820,
        ),
        "gcompris-qt-data": DebianAsset(
            folder="usr/share/gcompris-qt/rcc",
            suffix=".rcc",
            min_files=160,
            num_bytes=44_196_292,
        ),
    }
)


def fetch_deb(name: str, cache: Path, on_progress: Callable[[str], None]) -> Path:
    """Fetch, check and unpack a Debian package of pictures, unless the cache has it.

    A `.deb` in `cache/debs` is used instead of a download. Its SHA-256 is compared with Debian's
    package list, if that lists the same version. Otherwise the check is that it unpacks and has
    enough pictures.

    Args:
        name: One of `DEBIAN_ASSETS`.
        cache: The cache folder, such as `cache_folder()`; created if necessary.
        on_progress: Called with a line of text at each stage, and about every two seconds during a
            download.

    Returns:
        The folder of the package's pictures, such as `cache/packages/NAME/usr/share/…`.

    Raises:
        ConfigError: The name is unknown, or a client is missing or finds no such package.
        DamagedError: The `.deb` is truncated, altered or another package.
        ResourceError: The download failed.
    """
    asset = _known(name)
    unpacked = cache.absolute() / "packages" / name
    if not _is_whole(unpacked, asset):
        for folder in (unpacked.parent, cache / "debs"):
            folder.mkdir(parents=True, exist_ok=True)
        sweep_temporary(unpacked.parent)
        sweep_temporary(cache / "debs")
        if shutil.which("dpkg-deb") is None:
            raise ConfigError(
                f"dpkg-deb, which unpacks {name}, is not on PATH; install the package dpkg, or "
                f"unpack {name} elsewhere and build the pool from its {asset.folder}"
            )
        apt = _Apt(cache.absolute() / "apt")
        deb = _stored_deb(name, cache.absolute() / "debs")
        if deb is None:
            deb = _download(name, asset, cache.absolute() / "debs", apt, on_progress)
        on_progress(f"checking {deb.name}")
        marker = _verify(name, deb, apt)
        on_progress(f"unpacking {deb.name}")
        _unpack(asset, deb, unpacked, marker)
    return unpacked / asset.folder


class _Apt:
    """Debian's download clients, with the system's package lists or private ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._options: tuple[str, ...] = ()

    def use_private_lists(self, on_progress: Callable[[str], None]) -> None:
        """Fetch package lists into the cache; later commands of this object use them."""
        for partial in ("lists/partial", "archives/archives/partial"):
            (self._folder / partial).mkdir(parents=True, exist_ok=True)
        self._options = (
            f"-oDir::State::Lists={self._folder / 'lists'}",
            f"-oDir::Cache={self._folder / 'archives'}",
        )
        on_progress("fetching Debian's package lists (10 MB) into the cache")
        command = self.command("apt-get", "update")
        outcome = _run(command)
        if outcome.returncode != 0:
            raise ResourceError(
                f"Debian's package lists could not be fetched: `{' '.join(command)}` says: "
                f"{_last_line(outcome)}"
            )

    def command(self, client: str, *words: str) -> list[str]:
        # Retries: mirrors drop connections. Sandbox user: when root runs apt, its default user
        # cannot write into a home folder, and apt warns about it.
        common = ("-q", "-oAcquire::Retries=3", "-oAPT::Sandbox::User=root")
        return [client, *common, *self._options, *words]

    def releases(self, name: str) -> dict[str, str]:
        """The SHA-256 of each listed version of a package, by version; empty without lists."""
        if shutil.which("apt-cache") is None:
            return {}
        shown = _run(self.command("apt-cache", "show", name))
        if shown.returncode != 0:
            return {}
        releases = {}
        for stanza in shown.stdout.split("\n\n"):
            lines = (line.partition(":") for line in stanza.splitlines())
            fields = {key: value.strip() for key, _, value in lines}
            if fields.get("Package") == name and "Version" in fields and "SHA256" in fields:
                releases[fields["Version"]] = fields["SHA256"].lower()
        return releases


def _known(name: str) -> DebianAsset:
    if name in DEBIAN_ASSETS:
        return DEBIAN_ASSETS[name]
    near = difflib.get_close_matches(name, DEBIAN_ASSETS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown package {name!r}; {hint}known: {', '.join(DEBIAN_ASSETS)}")


def _num_pictures(unpacked: Path, asset: DebianAsset) -> int:
    folder = unpacked / asset.folder
    files = folder.rglob(f"*{asset.suffix}")
    return sum(path.is_file() and not path.is_symlink() for path in files)


def _is_whole(unpacked: Path, asset: DebianAsset) -> bool:
    if not (unpacked / MARKER).is_file():
        return False
    try:
        expected = read_json(unpacked / MARKER).get("pictures")
    except DamagedError:
        return False
    return bool(expected == _num_pictures(unpacked, asset))


def _stored_deb(name: str, debs: Path) -> Path | None:
    stored = debs.glob(f"{name}_*.deb")
    return max(stored, key=lambda path: (path.stat().st_mtime, path.name), default=None)


def _download(
    name: str, asset: DebianAsset, debs: Path, apt: _Apt, on_progress: Callable[[str], None]
) -> Path:
    by_hand = (
        f"or get the package's .deb file elsewhere and put it into {debs}, which is $CIT_CACHE/debs"
    )
    if shutil.which("apt-get") is None:
        raise ConfigError(
            f"apt-get, which downloads {name}, is not on PATH; use a Debian machine, {by_hand}"
        )
    is_private = not apt.releases(name)
    if is_private:
        apt.use_private_lists(on_progress)
    with tempfile.TemporaryDirectory(prefix=own_prefix(), dir=debs) as temporary:
        folder = Path(temporary)
        outcome = _run_download(name, asset, folder, apt, on_progress)
        if outcome.returncode != 0 and not is_private:
            # Old lists name files that the mirror has since replaced.
            apt.use_private_lists(on_progress)
            outcome = _run_download(name, asset, folder, apt, on_progress)
        debs_here = sorted(folder.glob(f"{name}_*.deb"))
        if outcome.returncode != 0 or not debs_here:
            error = ResourceError if apt.releases(name) else ConfigError
            raise error(
                f"`apt-get download {name}` failed: {_last_line(outcome)}; check the network and "
                f"that apt's sources are Debian's or Ubuntu's, {by_hand}"
            )
        return debs_here[0].replace(debs / debs_here[0].name)


def _run_download(
    name: str, asset: DebianAsset, folder: Path, apt: _Apt, on_progress: Callable[[str], None]
) -> subprocess.CompletedProcess[str]:
    """Run the download in `folder` and report bytes, rate and time left."""
    total = asset.num_bytes / 1e6
    on_progress(f"downloading {name} ({total:.0f} MB) with apt-get")
    start = time.monotonic()
    command = apt.command("apt-get", "download", name)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        with subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_c_locale(),
        ) as process:
            while True:
                try:
                    process.wait(timeout=PROGRESS_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    done = sum(path.stat().st_size for path in folder.glob("*.deb*")) / 1e6
                    rate = done / (time.monotonic() - start)
                    left = f", {max(total - done, 0) / rate:.0f} s left" if rate > 0 else ""
                    on_progress(f"{name}: {done:.0f} of {total:.0f} MB, {rate:.1f} MB/s{left}")
                except BaseException:
                    process.terminate()
                    raise
        output.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, output.read(), "")


def _verify(name: str, deb: Path, apt: _Apt) -> dict[str, str]:
    """Check a package's name and, where listed, its hash; return them with its version."""
    remedy = f"delete {deb} and run again"
    fields = _run(["dpkg-deb", "--show", "--showformat=${Package}\\n${Version}", str(deb)])
    package, _, version = fields.stdout.strip().partition("\n")
    if fields.returncode != 0:
        raise DamagedError(f"{deb} is not a Debian package: {_last_line(fields)}; {remedy}")
    if package != name:
        raise DamagedError(f"{deb} is the package {package!r}, not {name!r}; {remedy}")
    sha256 = file_sha256(deb)
    listed = apt.releases(name).get(version)
    if listed is not None and listed != sha256:
        raise DamagedError(
            f"{deb} has the SHA-256 {sha256} and Debian's list says {listed} for {name} {version}; "
            f"{remedy}"
        )
    return {"package": name, "version": version, "sha256": sha256}


def _unpack(asset: DebianAsset, deb: Path, unpacked: Path, marker: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix=own_prefix(), dir=unpacked.parent) as parent:
        temporary = Path(parent) / unpacked.name
        outcome = _run(["dpkg-deb", "-x", str(deb), str(temporary)])
        if outcome.returncode != 0:
            raise DamagedError(
                f"{deb} could not be unpacked: {_last_line(outcome)}; make sure that "
                f"{unpacked.parent} has room (400 MB), or delete the file and run again"
            )
        pictures = _num_pictures(temporary, asset)
        if pictures < asset.min_files:
            raise DamagedError(
                f"{deb} has {pictures:,} {asset.suffix} files in {asset.folder}, and at least "
                f"{asset.min_files:,} are expected; delete it and run again"
            )
        # One sync for thousands of files, which must reach the disk before the rename.
        os.sync()
        write_json(temporary / MARKER, {**marker, "pictures": pictures})
        if unpacked.exists():
            unpacked.rename(Path(parent) / "damaged")
        temporary.rename(unpacked)


def _c_locale() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=_c_locale(),
        check=False,
    )


def _last_line(outcome: subprocess.CompletedProcess[str]) -> str:
    lines = (outcome.stderr or outcome.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit code {outcome.returncode}"
