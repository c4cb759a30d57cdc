"""Everything in a release except the images: `python -m deploy.packages.build dist` (make release).

Wheel and sdist, a deb and an rpm for each architecture, the man page, shell completion, the chart, a bill
of materials of each package's content, and the checksums of all. The same commit gives the same bytes.
Needs dpkg-deb, rpmbuild and uv; modules come from the locks, by hash.
"""
# ruff: noqa: S603, T201  a command line that runs fixed tools

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.supply_chain.sbom import inventory
from exporter import VERSION


ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "deploy" / "packages"
SYSTEMD = ROOT / "deploy" / "systemd"
PYTHONS = ("3.11", "3.12", "3.13")
# dpkg's name, rpm's name and uv's platform of each architecture.
ARCHITECTURES = (
    ("amd64", "x86_64", "x86_64-manylinux_2_28"),
    ("arm64", "aarch64", "aarch64-manylinux_2_28"),
)
SUMMARY = "Prometheus exporter that says how many FLOPS each GPU delivers"
CONTROL = """\
Package: flopwatch
Version: {version}
Architecture: {architecture}
Maintainer: flopwatch maintainers <maintainers@flopwatch.invalid>
Depends: python3 (>= 3.11), python3 (<< 3.14), systemd
Section: net
Priority: optional
Installed-Size: {kilobytes}
Homepage: https://github.com/flopwatch/flopwatch
Description: {summary}
 It says where the others went, and whether the silicon became slower. Needs the
 driver of NVIDIA; on a host without a GPU it watches the processor.
"""
SPEC = """\
Name: flopwatch
Version: {version}
Release: 1
Summary: {summary}
License: Apache-2.0
URL: https://github.com/flopwatch/flopwatch
AutoReqProv: no
Requires: systemd, /bin/sh
Recommends: python3.11
%global _build_id_links none
%global __os_install_post %{{nil}}
%description
It says where the others went, and whether the silicon became slower. Needs Python 3.11, 3.12 or 3.13, and
the driver of NVIDIA; on a host without a GPU it watches the processor.
%post
{postinst}
%preun
{prerm}
%postun
{postrm}
%files
{files}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build everything into a folder, which is emptied first."""
    parser = argparse.ArgumentParser(prog="python -m deploy.packages.build")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    dist: Path = options.folder.absolute()
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir(parents=True)
    epoch = _run("git", "log", "-1", "--format=%ct").strip()
    os.environ.update(SOURCE_DATE_EPOCH=epoch, PYTHONHASHSEED="0", TZ="UTC", LC_ALL="C.UTF-8")
    wheel = build_distributions(dist)
    with tempfile.TemporaryDirectory() as work:
        for debian, rpm, platform in ARCHITECTURES:
            tree = Path(work) / debian
            make_tree(tree, wheel, platform)
            bill = json.dumps(inventory(tree, f"flopwatch-{debian}"), indent=2) + "\n"
            (dist / f"flopwatch-{VERSION}-{debian}.sbom.json").write_text(bill)
            _clamp(tree, int(epoch))
            build_deb(tree, debian, dist)
            build_rpm(tree, rpm, dist, Path(work))
    build_chart(dist)
    write_checksums(dist)
    print("\n".join(sorted(path.name for path in dist.iterdir())))
    return 0


def build_distributions(dist: Path) -> Path:
    """Wheel and sdist for the package index; the wheel's path."""
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, ROOT)
    (source,) = dist.glob("*.tar.gz")
    _repack(source)
    found = sorted(map(str, [*dist.glob("*.whl"), *dist.glob("*.tar.gz")]))
    _run(sys.executable, "-m", "twine", "check", "--strict", *found)
    (wheel,) = dist.glob("*.whl")
    return wheel


def make_tree(tree: Path, wheel: Path, platform: str) -> None:
    """The files of a package below their root: modules, launcher, service, man page, completion."""
    library = tree / "usr/lib/flopwatch"
    for python in PYTHONS:
        # Native modules have their Python version in their names: all fit into one folder.
        alone = tree.with_name(f"{tree.name}-{python}")
        _install(alone, python, platform, "--require-hashes", "--requirement", ROOT / "deploy/requirements/slim.txt")  # fmt: skip
        shutil.copytree(alone, library, dirs_exist_ok=True)
        shutil.rmtree(alone)
    _install(library, PYTHONS[0], platform, wheel)
    _remove_unwanted(library)
    _copy(PACKAGES / "flopwatch.sh", tree / "usr/bin/flopwatch", 0o755)
    unit = (SYSTEMD / "flopwatch.service").read_text()
    service = tree / "usr/lib/systemd/system/flopwatch.service"
    service.parent.mkdir(parents=True)
    service.write_text(unit.replace("/opt/flopwatch/bin/flopwatch", "/usr/bin/flopwatch"))
    _copy(SYSTEMD / "flopwatch.sysusers", tree / "usr/lib/sysusers.d/flopwatch.conf")
    _copy(SYSTEMD / "flopwatch.tmpfiles", tree / "usr/lib/tmpfiles.d/flopwatch.conf")
    _copy(SYSTEMD / "flopwatch.default", tree / "etc/default/flopwatch")
    share = tree / "usr/share/flopwatch"
    shutil.copytree(SYSTEMD / "flopwatch.service.d", share / "systemd")
    for folder in ("slurm", "prometheus"):
        shutil.copytree(ROOT / "deploy" / folder, share / folder)
    shutil.copytree(ROOT / "grafana" / "dashboards", share / "dashboards")
    _copy(ROOT / "LICENSE", tree / "usr/share/doc/flopwatch/copyright")
    manual = tree / "usr/share/man/man1/flopwatch.1.gz"
    manual.parent.mkdir(parents=True)
    manual.write_bytes(gzip.compress(man_page().encode(), mtime=0))
    for shell, name in (
        ("bash", "bash-completion/completions/flopwatch"),
        ("zsh", "zsh/site-functions/_flopwatch"),
    ):
        target = tree / "usr/share" / name
        target.parent.mkdir(parents=True)
        target.write_text(completion(shell))
    for path in tree.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o111 else 0o644)


def _remove_unwanted(library: Path) -> None:
    """Files that differ from build to build, or are not needed with the modules."""
    notes = ("direct_url.json", "uv_cache.json", "REQUESTED", "RECORD", "INSTALLER")
    files = [path for name in notes for path in library.glob(f"*.dist-info/{name}")]
    files += [library / ".lock", library / "example.py"]  # nvidia-ml-py's, at the top of everything
    for path in files:
        path.unlink(missing_ok=True)
    for folder in (*library.rglob("__pycache__"), library / "bin"):
        shutil.rmtree(folder, ignore_errors=True)


def man_page() -> str:
    """flopwatch(1), from the parser."""
    return _run(
        sys.executable, "-c", "from argparse_manpage.cli import main; main()",
        "--module", "exporter.cli.main", "--function", "build_parser",
        "--project-name", "flopwatch", "--prog", "flopwatch", "--version", VERSION,
        "--description", SUMMARY,
        "--url", "https://github.com/flopwatch/flopwatch",
    )  # fmt: skip


def completion(shell: str) -> str:
    """Words for shell completion, from the parser."""
    return _run(
        sys.executable, "-m", "shtab", f"--shell={shell}", "--prog=flopwatch",
        "exporter.cli.main.build_parser",
    )  # fmt: skip


def build_deb(tree: Path, architecture: str, dist: Path) -> None:
    """A package for Debian and Ubuntu."""
    control = tree / "DEBIAN"
    control.mkdir()
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) // 1024
    (control / "control").write_text(
        CONTROL.format(version=VERSION, architecture=architecture, kilobytes=size, summary=SUMMARY)
    )
    (control / "conffiles").write_text("/etc/default/flopwatch\n")
    for script in ("postinst", "prerm", "postrm"):
        _copy(PACKAGES / script, control / script, 0o755)
    _clamp(control, int(os.environ["SOURCE_DATE_EPOCH"]))
    _run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", tree, dist / f"flopwatch_{VERSION}_{architecture}.deb")  # fmt: skip
    shutil.rmtree(control)


def build_rpm(tree: Path, architecture: str, dist: Path, work: Path) -> None:
    """A package for the families of Fedora and SUSE."""
    files = []
    for path in sorted(tree.rglob("*")):
        name = "/" + str(path.relative_to(tree))
        if path.is_dir():
            # Folders of the system belong to its own packages.
            if "/flopwatch" in name:
                files.append(f"%dir %attr(0755,root,root) {name}")
            continue
        mode = "0755" if path.stat().st_mode & 0o100 else "0644"
        prefix = "%config(noreplace) " if name.startswith("/etc/") else ""
        files.append(f'{prefix}%attr({mode},root,root) "{name}"')
    scripts = {
        name: (PACKAGES / name).read_text().replace("%", "%%").removeprefix("#!/bin/sh\n")
        for name in ("postinst", "prerm", "postrm")
    }
    spec = work / f"flopwatch-{architecture}.spec"
    spec.write_text(
        SPEC.format(version=VERSION, summary=SUMMARY, files="\n".join(files), **scripts)
    )
    epoch = os.environ["SOURCE_DATE_EPOCH"]
    _run(
        "rpmbuild", "-bb", "--quiet", "--target", f"{architecture}-linux",
        "--define", f"_topdir {work}/rpm", "--define", f"_rpmdir {dist}",
        "--define", "_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm",
        "--define", "_buildhost flopwatch", "--define", "use_source_date_epoch_as_buildtime 1",
        "--define", "clamp_mtime_to_source_date_epoch 1", "--define", f"_source_date_epoch {epoch}",
        "--define", "_binary_payload w6.xzdio",
        "--buildroot", _copied(tree, work / f"root-{architecture}"), spec,
    )  # fmt: skip


def build_chart(dist: Path) -> None:
    """The chart as `helm install` takes it from a file."""
    chart = ROOT / "deploy" / "helm" / "flopwatch"
    files = {
        f"flopwatch/{path.relative_to(chart)}": path for path in chart.rglob("*") if path.is_file()
    }
    _archive(dist / f"flopwatch-chart-{VERSION}.tgz", files)


def _repack(archive: Path) -> None:
    """The same files with the commit's time: setuptools records when it ran."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        root = Path(folder)
        files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
        _archive(archive, files)


def _archive(target: Path, files: Mapping[str, Path]) -> None:
    """A compressed archive whose bytes depend only on names and contents."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = int(os.environ["SOURCE_DATE_EPOCH"])
        member.mode = 0o755 if member.mode & 0o100 else 0o644
        return member

    with (
        target.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, path in sorted(files.items()):
            archive.add(path, name, filter=plain)


def write_checksums(dist: Path) -> None:
    """SHA256SUMS, as `sha256sum --check` reads it."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(dist.iterdir())
        if path.is_file()
    ]
    (dist / "SHA256SUMS").write_text("".join(lines))


def _install(library: Path, python: str, platform: str, *what: object) -> None:
    uv = Path(sys.executable).with_name("uv")
    _run(
        uv, "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target", library,
        "--python-version", python, "--python-platform", platform, "--link-mode=copy", *what,
    )  # fmt: skip


def _copied(tree: Path, target: Path) -> Path:
    """The build root is removed by rpmbuild when it is done."""
    shutil.copytree(tree, target, symlinks=True)
    return target


def _copy(source: Path, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def _clamp(folder: Path, epoch: int) -> None:
    """No file is newer than the commit: the same commit gives the same package."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _run(*command: object) -> str:
    # The pip configuration of this machine must not affect a release.
    result = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{command[0]} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


if __name__ == "__main__":
    sys.exit(main())
