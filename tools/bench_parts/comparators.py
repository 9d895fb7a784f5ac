"""Where the foreign programs stand that we are compared with, and how they get there (``tools/bench --interop``).

They are unpacked into a private folder below the user's cache, never installed: ipsec-mb 2.x, which is newer than
what stable distributions carry, and DPDK's crypto-perf and testpmd with the libraries that they load. All come from the
package sources that this machine's apt is configured with; for the first one the same sources are asked for another
suite. A Debian system is needed, root is not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SUITES = ("unstable", "testing", "stable")  # newest first
#: Packages that these programs may load something from.
KEEP = re.compile(r"(dpdk-dev|lib(?!systemd|udev|pam|nss)[^_]*(?<!-dev))_")


def folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "virtio-ipsec" / "comparators"


@dataclass(frozen=True)
class Prefix:
    """An unpacked package."""

    include: Path
    library: Path


def ipsec_mb() -> Prefix | None:
    """The private copy of ipsec-mb; None when there is none (an installed one may still be used)."""
    root = folder() / "ipsec-mb" / "usr"
    libraries = [*root.glob("lib/libIPSec_MB.so"), *root.glob("lib/*/libIPSec_MB.so")]
    return Prefix(root / "include", libraries[0].parent) if libraries else None


@dataclass(frozen=True)
class Program:
    """A program of DPDK: how it is called."""

    command: Sequence[str]
    environment: Mapping[str, str]
    version: str


def crypto_perf() -> Program | None:
    """dpdk-test-crypto-perf with its software AES-GCM device."""
    return _dpdk("dpdk-test-crypto-perf", "mempool_ring", "crypto_ipsec_mb")


def testpmd() -> Program | None:
    """dpdk-testpmd with both ends of vhost-user."""
    return _dpdk("dpdk-testpmd", "mempool_ring", "net_vhost", "net_virtio")


def _dpdk(name: str, *plugins: str) -> Program | None:
    """An installed one, else the private copy, else None. Beside an installed DPDK the private one does not run: it
    loads the drivers that it finds there."""
    installed = shutil.which(name)
    if installed:
        return Program([installed], os.environ, "as installed")
    root = folder() / "dpdk"
    private = root / "usr" / "bin" / name
    version = root / "version"
    if not private.is_file() or not version.is_file():
        return None
    libraries = sorted(
        {str(path.parent) for path in root.glob("**/lib*.so.*") if "dpdk/pmds" not in str(path)}
    )
    found = [str(path) for plugin in plugins for path in root.glob(
        f"usr/lib/*/librte_{plugin}.so.*") if path.name.count(".") == 2]  # fmt: skip
    loads = [word for plugin in found for word in ("-d", plugin)]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}
    return Program([str(private), *loads], environment, version.read_text().strip())


class Apt:
    """apt-get with lists, archives and sources of its own."""

    def __init__(self, work: Path, sources: Path | None) -> None:
        self.work = work
        (work / "archives" / "partial").mkdir(parents=True)
        self.options = ["-qq", f"-oDir::Cache::archives={work / 'archives'}", "-oAPT::Sandbox::User="]
        if sources is not None:
            (work / "lists" / "partial").mkdir(parents=True)
            self.options += [
                "-oDir::Etc::sourcelist=/dev/null", f"-oDir::Etc::sourceparts={sources}",
                f"-oDir::State::lists={work / 'lists'}", f"-oDir::Cache={work}",
            ]  # fmt: skip

    def __call__(self, *words: str, check: bool = True) -> bool:
        done = subprocess.run(["apt-get", *self.options, *words], cwd=self.work, check=check)
        return done.returncode == 0

    def unpack(self, target: Path, keep: Callable[[str], object]) -> None:
        for archive in sorted([*self.work.glob("*.deb"), *self.work.glob("archives/*.deb")]):
            if keep(archive.name):
                subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """Entries of a deb822 sources file; continuation lines joined."""
    for block in re.split(r"\n\s*\n", text):
        lines = re.sub(r"\n[ \t]+", " ", "\n".join(x for x in block.splitlines() if not x.startswith("#")))
        entry = dict(re.findall(r"^([\w-]+):[ \t]*(.*)$", lines, flags=re.MULTILINE))
        if entry:
            yield entry


def distribution_sources(suite: str, code_name: str) -> Iterator[str]:
    """The machine's own sources of its distribution (`code_name`), pointed at another suite."""
    etc = Path("/etc/apt")
    for path in etc.glob("sources.list.d/*.sources"):
        for entry in stanzas(path.read_text()):
            if code_name in entry.get("Suites", "").split() and "deb" in entry.get("Types", "").split():
                changed = entry | {"Suites": suite, "Types": "deb"}
                yield "".join(f"{name}: {value}\n" for name, value in changed.items()) + "\n"
    for path in (etc / "sources.list", *etc.glob("sources.list.d/*.list")):
        lines = path.read_text().splitlines() if path.is_file() else []
        for line in lines:
            found = re.match(r"deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s+(.+)", line)
            if found and found[3] == code_name:
                signed = re.search(r"signed-by=(\S+)", found[1] or "")
                key = f"Signed-By: {signed[1]}\n" if signed else ""
                yield f"Types: deb\nURIs: {found[2]}\nSuites: {suite}\nComponents: {found[4]}\n{key}\n"


def code_name() -> str:
    found = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), flags=re.MULTILINE)
    if found is None:
        raise SystemExit("error: /etc/os-release names no suite: --interop needs a Debian system")
    return found[1]


def install_ipsec_mb(target: Path) -> None:
    for suite in SUITES:
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            sources = work / "sources"
            sources.mkdir()
            text = "".join(distribution_sources(suite, code_name()))
            (sources / "suite.sources").write_text(text)
            apt = Apt(work, sources)
            wanted = ("libipsec-mb2", "libipsec-mb-dev")
            if text and apt("update", check=False) and apt("download", *wanted, check=False):
                apt.unpack(target, keep=lambda _: True)
                return
    raise SystemExit(f"error: no libipsec-mb2 in {', '.join(SUITES)} of this machine's package sources")


def install_dpdk(target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        apt = Apt(Path(name), None)
        # Without the lists of packages there is nothing to choose from; only root may renew them.
        if os.geteuid() == 0:
            apt("update")
        apt("install", "-y", "--no-install-recommends", "--download-only", "-oDebug::NoLocking=1", "dpdk-dev")
        apt.unpack(target, keep=KEEP.match)
        (found, *_) = sorted(Path(name).glob("archives/dpdk-dev_*.deb"))
        (target / "version").write_text(found.name.split("_")[1] + "\n")


def install() -> None:
    """Fetch and unpack what is not there yet."""
    for name, make in (("ipsec-mb", install_ipsec_mb), ("dpdk", install_dpdk)):
        target = folder() / name
        if target.is_dir() or (name == "dpdk" and crypto_perf()):
            print(f"{name}: {'in ' + str(target) if target.is_dir() else 'installed'}")
            continue
        print(f"{name}: unpacking into {target}", flush=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when complete: a folder that is there is whole. DPDK wants no world-writable one.
        with tempfile.TemporaryDirectory(dir=target.parent) as unfinished:
            made = Path(unfinished) / name
            made.mkdir()
            make(made)
            made.rename(target)
