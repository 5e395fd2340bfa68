"""Makes `dist/s5jtd-VERSION-linux-ARCH.tar.gz`: everything that `install.sh` needs, and nothing to download.

Wheels for each processor and each Python are fetched by pip as they are published; a package without a
wheel for one of them ends this with pip's message, and no bundle is made.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Debian's name of a processor -> Python's.
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
#: Debian 12, Ubuntu 24.04, Debian 13, and the one after it.
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
#: The newest glibc that is asked for, as in Debian 10 and RHEL 8.
MANYLINUX = (
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_26",
    "manylinux_2_24",
    "manylinux_2_17",
    "manylinux2014",
)
#: Published without a wheel; pure Python, so that the one built here is good everywhere.
WITHOUT_WHEEL = ("sdnotify",)
#: Brought along as they are; what is not there yet is left out.
FILES = (
    "install.sh", "systemd", "etc", "docs", "README.md", "CHANGELOG.md", "ARCHITECTURE.md", "LICENSE",
)  # fmt: skip
#: Folder of the tree -> folder of the bundle.
MOVED = {"completions": "completions"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("machines", nargs="*", default=sorted(MACHINES), help="amd64, arm64 (default: both)")
    parser.add_argument("--python", action="append", help="only for this Python, such as 3.11; several")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="default: dist")
    chosen = parser.parse_args()
    pythons = tuple(chosen.python or PYTHONS)
    if unknown := set(chosen.machines) - set(MACHINES):
        parser.error(f"no bundles are made for {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="s5jtd-bundle-") as folder:
        common = Path(folder, "common")
        own = own_wheels(Path(folder, "source"), common)
        for machine in chosen.machines:
            print(make(machine, pythons, own, common, Path(folder, machine), chosen.output))


def pip(*arguments: str | Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], check=True
    )


def own_wheels(source: Path, common: Path) -> str:
    """Build our wheel from a copy of the tree, so that nothing stale gets in; answer with its name."""
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("s5jtd", "s5jtctl"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--wheel-dir", common, source)
    pip("wheel", "--no-deps", "--wheel-dir", common, *WITHOUT_WHEEL)
    pip("download", "--no-deps", "--only-binary=:all:", "--dest", common, "pip")
    return next(common.glob("s5jtd-*.whl")).name


def make(machine: str, pythons: tuple[str, ...], own: str, common: Path, work: Path, output: Path) -> Path:
    """One bundle; answers with its path."""
    version = own.split("-")[1]
    name = f"s5jtd-{version}-linux-{machine}"
    folder = work / name
    wheels = folder / "wheels"
    shutil.copytree(common, wheels)
    for python in pythons:
        fetch(machine, python, common / own, wheels)
    for file in FILES:
        copy(ROOT / file, folder / file)
    for here, there in MOVED.items():
        if (ROOT / here).is_dir():
            shutil.copytree(ROOT / here, folder / there, dirs_exist_ok=True)
    subprocess.run([sys.executable, ROOT / "release" / "man.py", folder / "man"], check=True)
    (folder / "BUNDLE").write_text(f'VERSION="{version}"\nARCH="{machine}"\nPYTHONS="{" ".join(pythons)}"\n')
    write_sums(folder)
    output.mkdir(exist_ok=True)
    target = output / f"{name}.tar.gz"
    pack(folder, target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    target.with_name(f"{target.name}.sha256").write_text(f"{digest}  {target.name}\n")
    return target


def fetch(machine: str, python: str, own: Path, wheels: Path) -> None:
    """What our wheel needs, and what that needs, for one processor and one Python."""
    platforms = [f"--platform={tag}_{MACHINES[machine]}" for tag in MANYLINUX]
    abis = [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    pip(
        "download", "--only-binary=:all:", "--dest", wheels, "--find-links", wheels, "--implementation=cp",
        f"--python-version={python}", *platforms, *abis, f"s5jtd[api,demo] @ {own.as_uri()}",
    )  # fmt: skip


def copy(here: Path, there: Path) -> None:
    if here.is_dir():
        shutil.copytree(here, there, ignore=shutil.ignore_patterns("__pycache__", "man"))
    else:
        shutil.copy(here, there)


def write_sums(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def pack(folder: Path, target: Path) -> None:
    """The same files always give the same archive: no times, no owners of this machine."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or commit_time())

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mtime = epoch
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        return entry

    temporary = target.with_suffix(".new")
    with (
        temporary.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for path in [folder, *sorted(folder.rglob("*"))]:
            archive.add(path, path.relative_to(folder.parent), recursive=False, filter=plain)
    temporary.replace(target)


def commit_time() -> str:
    """When the tree's commit was made; a fixed time where there is no git."""
    asked = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "1700000000"


if __name__ == "__main__":
    main()
