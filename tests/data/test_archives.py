from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanlabel.data.archives import extract
from leanlabel.errors import InputError

CONTENT = {"set/a.txt": b"one", "set/deep/b.bin": bytes(range(256)) * 9, "set/empty.txt": b"", "c": b"top"}
Maker = Callable[[Path, dict[str, bytes]], Path]


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make_gz(path: Path, files: dict[str, bytes]) -> Path:
    return make_tar(path, files, "w:gz")


def make_xz(path: Path, files: dict[str, bytes]) -> Path:
    return make_tar(path, files, "w:xz")


def make_bz2(path: Path, files: dict[str, bytes]) -> Path:
    return make_tar(path, files, "w:bz2")


MAKERS = [make_zip, make_tar, make_gz, make_xz, make_bz2]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check_refused(folder: Path, archive: Path, message: str, **limits: int) -> None:
    """Refused, with nothing left beside the archive."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        extract(archive, folder / "out", **limits)
    assert archive.name in str(caught.value)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("make", MAKERS)
def test_values(tmp_path: Path, make: Maker) -> None:
    """The contents decide, not the name; files come sorted; permissions of the archive are not taken."""
    archive = make(tmp_path / "a.bin", CONTENT)
    found = extract(archive, tmp_path / "out")
    assert contents(tmp_path / "out") == CONTENT
    assert [file.relative_to(tmp_path / "out").as_posix() for file in found] == sorted(CONTENT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "out"]


def test_values_permissions(tmp_path: Path) -> None:
    member = tarfile.TarInfo("run.sh")
    member.mode = 0o6777
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(member, io.BytesIO())
    (file,) = extract(tmp_path / "a.tar", tmp_path / "out")
    assert not file.stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR)


def test_values_zip_in_tar(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", {"x": b"1"}).read_bytes()
    extract(make_tar(tmp_path / "a.tar", {"inner.zip": inner}), tmp_path / "out")
    assert contents(tmp_path / "out") == {"inner.zip": inner}


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["/etc/passwd"], "absolute"),
        (["//server/share"], "absolute"),
        (["C:/Windows/a"], "absolute"),
        (["c:a"], "absolute"),
        (["../a"], r"leave the folder"),
        (["a/../../b"], r"leave the folder"),
        (["a/b/.."], r"leave the folder"),
        (["..\\a"], "not every system"),
        (["a\\b"], "not every system"),
        (["a:stream"], "not every system|absolute"),
        (["a\nb"], "not every system"),
        (["a?"], "not every system"),
        (["a//b"], "empty part"),
        (["con"], "reserved on Windows"),
        (["d/NUL.txt"], "reserved on Windows"),
        (["com7.tar.gz"], "reserved on Windows"),
        (["a."], "reserved on Windows"),
        (["a /b"], "reserved on Windows"),
        (["x" * 256], "longer than 255"),
        (["a/File", "a/file"], "in case or accents only"),
        (["A/x", "a/y"], "in case or accents only"),
        (["stra\u00dfe", "STRASSE"], "in case or accents only"),
        (["caf\u00e9", "cafe\u0301"], "in case or accents only"),
        (["a", "a/b"], "both a file and a folder"),
        (["a/b", "a"], "both a file and a folder"),
        (["a", "a"], "occurs twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_errors_names(tmp_path: Path, make: Any, names: list[str], message: str) -> None:
    path = tmp_path / "a.bin"
    if make is make_zip:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("good", b"1")
            for name in names:
                archive.writestr(zipfile.ZipInfo(name), b"1")
    else:
        with tarfile.open(path, "w") as archive:
            for name in ["good", *names]:
                member = tarfile.TarInfo(name)
                member.size = 1
                archive.addfile(member, io.BytesIO(b"1"))
    check_refused(tmp_path, path, message)


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE"])
@pytest.mark.parametrize("target", ["good", "/etc/passwd", "../../x"])
def test_errors_tar_links(tmp_path: Path, kind: str, target: str) -> None:
    """No link and no device, wherever it points; a later member would be written through it."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("good"), io.BytesIO())
        member = tarfile.TarInfo("evil")
        member.type, member.linkname = getattr(tarfile, kind), target
        archive.addfile(member)
        through = tarfile.TarInfo("evil/file")
        archive.addfile(through, io.BytesIO())
    check_refused(tmp_path, tmp_path / "a.tar", "is a link, a device or a sparse file")


def test_errors_zip_links(tmp_path: Path) -> None:
    member = zipfile.ZipInfo("evil")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good", b"1")
        archive.writestr(member, b"/etc/passwd")
    check_refused(tmp_path, tmp_path / "a.zip", "is a link or a device")


@pytest.mark.parametrize("make", MAKERS)
def test_errors_bomb(tmp_path: Path, make: Maker) -> None:
    archive = make(tmp_path / "a.bin", {"zeros": bytes(3 * 10**6)})
    check_refused(tmp_path, archive, "unpacks to more than 1,000,000 bytes", most_bytes=10**6)
    extract(archive, tmp_path / "out", most_bytes=3 * 10**6)


def test_errors_bomb_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit given, an archive may grow to 200 times its size; 1 : 1000 is a bomb."""
    monkeypatch.setattr("leanlabel.data.archives._SPARE", 10_000)
    archive = make_zip(tmp_path / "a.zip", {"zeros": bytes(3 * 10**6)})
    check_refused(tmp_path, archive, "It may be a bomb")
    numbers = np.random.default_rng(0).integers(0, 256, 10**5, dtype=np.uint8).tobytes()
    extract(make_zip(tmp_path / "b.zip", {"noise": numbers}), tmp_path / "out")


def test_errors_bomb_in_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of a .tar may claim to be gigabytes of text: it is counted while it is read."""
    monkeypatch.setattr("leanlabel.data.archives._SPARE", 10**6)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a")
        member.pax_headers = {"comment": "x" * (3 * 10**6)}
        archive.addfile(member, io.BytesIO())
    check_refused(tmp_path, tmp_path / "a.tar.gz", "unpacks to more", most_bytes=1000)


def test_errors_lying_zip(tmp_path: Path) -> None:
    """A member that is longer than the directory says does not get past the limit."""
    archive = make_zip(tmp_path / "a.zip", {"zeros": bytes(10**6)})
    content = archive.read_bytes()
    short = (10**6).to_bytes(4, "little"), (10).to_bytes(4, "little")
    assert content.count(short[0]) == 2
    archive.write_bytes(content.replace(*short))
    check_refused(tmp_path, archive, r"not a complete|unpacks to more", most_bytes=1000)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_errors_members(tmp_path: Path, make: Maker) -> None:
    archive = make(tmp_path / "a.bin", {f"f{k}": b"" for k in range(20)})
    check_refused(tmp_path, archive, "more than 10 files", most_members=10)
    assert len(extract(archive, tmp_path / "out", most_members=20)) == 20


@pytest.mark.parametrize("make", MAKERS)
def test_errors_damage(tmp_path: Path, make: Maker) -> None:
    """Cut anywhere, an archive is refused; a flipped byte gives an error or a file that is not silently short."""
    whole = make(tmp_path / "a.bin", CONTENT).read_bytes()
    path = tmp_path / "b.bin"
    end = len(whole) if make is not make_tar else len(whole.rstrip(b"\0"))
    for size in range(0, end, max(1, end // 23)):
        path.write_bytes(whole[:size])
        check_refused(tmp_path, path, "b.bin")
    for position in range(0, end, max(1, end // 37)):
        broken = bytearray(whole)
        broken[position] ^= 0x10
        path.write_bytes(broken)
        out = tmp_path / f"out{position}"
        try:
            extract(path, out)
        except InputError:
            assert not out.exists()
        else:
            assert sum(map(len, contents(out).values())) == sum(map(len, CONTENT.values()))


def test_errors_places(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", CONTENT)
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists already"):
        extract(archive, tmp_path / "there")
    with pytest.raises(InputError, match="cannot be unpacked"):
        extract(archive, tmp_path / "no" / "folder")
    with pytest.raises(InputError, match="cannot be unpacked"):
        extract(tmp_path / "none.zip", tmp_path / "new")
    encrypted = bytearray(archive.read_bytes())
    for position in (encrypted.index(b"PK\x03\x04") + 6, encrypted.index(b"PK\x01\x02") + 8):
        encrypted[position] |= 1
    (tmp_path / "e.zip").write_bytes(encrypted)
    check_refused(tmp_path, tmp_path / "e.zip", "is encrypted")


def test_degenerate(tmp_path: Path) -> None:
    assert extract(make_zip(tmp_path / "a.zip", {}), tmp_path / "a") == []
    assert extract(make_tar(tmp_path / "a.tar", {}), tmp_path / "b") == []
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        for name in (".", "./folder", "./folder/"):
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        archive.addfile(tarfile.TarInfo("./folder/file"), io.BytesIO())
    assert [file.name for file in extract(tmp_path / "c.tar", tmp_path / "c")] == ["file"]
