from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanlabel.data.catalogue import Entry, Remote
from leanlabel.data.download import NotThereError, download
from leanlabel.data.obtain import RECORD, data_folder, missing, obtain, read_record
from leanlabel.errors import InputError, RunError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
OTHER = CONTENT[::-1]


@dataclass
class Site:
    """A web site on this machine: what it serves, how it misbehaves, and what it was asked."""

    root: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    tag: Callable[[bytes], str | None] = lambda content: f'"{hashlib.md5(content).hexdigest()}"'
    date: str | None = None
    cut: int | None = None
    stall: bool = False
    honest_range: bool = True
    tells_length: bool = False
    tag_of_416: str | None = None
    status: list[int] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        site, path = self.site, self.path.lstrip("/")
        site.asked.append((path, self.headers.get("Range")))
        if site.status and (status := site.status.pop(0)) != 200:
            self.send_error(status)
        elif path in site.redirects:
            self.send_response(302)
            self.send_header("Location", site.redirects[path])
            self.end_headers()
        elif path not in site.files:
            self.send_error(404)
        else:
            self.send_file(site, site.files[path])

    def send_file(self, site: Site, content: bytes) -> None:
        tag, start = site.tag(content), 0
        wanted, unless = self.headers.get("Range"), self.headers.get("If-Range")
        same = unless in (None, tag, site.date) or not site.honest_range
        if site.ranges and wanted and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_response(416)
                if site.tells_length:
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                if site.tag_of_416 is not None:
                    self.send_header("etag", site.tag_of_416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        for name, value in (("ETag", tag), ("Last-Modified", site.date)):
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        cut, site.cut = site.cut, None
        self.wfile.write(content[start : None if cut is None else start + cut])
        self.wfile.flush()
        if site.stall and cut is not None:
            site.gate.wait(5)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Site(files={"a.bin": CONTENT})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": found})
    )
    server.daemon_threads = True
    found.root = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    found.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


def bring(site: Site, to: Path, address: str | None = None, **more: Any) -> Path:
    options: dict[str, Any] = {"most_bytes": 10**6, "pause": 0.0, "timeout": 5.0} | more
    return download(address or f"{site.root}/a.bin", to, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------- one file


def test_values(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    found = bring(site, tmp_path / "deep" / "a.bin", progress=lambda here, total: seen.append((here, total)))
    assert found.read_bytes() == CONTENT
    assert names(tmp_path / "deep") == ["a.bin"]
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert site.asked == [("a.bin", None)]


def test_values_local_file(tmp_path: Path) -> None:
    (tmp_path / "a b.bin").write_bytes(CONTENT)
    address = (tmp_path / "a b.bin").as_uri()
    assert download(address, tmp_path / "c.bin", most_bytes=10**6).read_bytes() == CONTENT


@pytest.mark.parametrize("mark", ["strong tag", "date only", "weak tag and date"])
def test_state_resumed(site: Site, tmp_path: Path, mark: str) -> None:
    """A later call goes on where the first was cut off, and asks for the rest only."""
    if mark != "strong tag":
        site.tag = (lambda _: None) if mark == "date only" else (lambda _: 'W/"1"')
        site.date = "Wed, 01 Jan 2020 00:00:00 GMT"
    site.cut = 100_000
    with pytest.raises(RunError, match=r"not downloaded after 1 attempts.*100,000 of 300,000"):
        bring(site, tmp_path / "a.bin", attempts=1)
    assert names(tmp_path) == ["a.bin.part", "a.bin.part.json"]
    assert bring(site, tmp_path / "a.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["a.bin"]
    assert site.asked == [("a.bin", None), ("a.bin", "bytes=100000-")]


def test_state_resumed_in_one_call(site: Site, tmp_path: Path) -> None:
    site.cut = 100_000
    assert bring(site, tmp_path / "a.bin").read_bytes() == CONTENT
    assert [start for _, start in site.asked] == [None, "bytes=100000-"]


@pytest.mark.parametrize(
    ("tells", "tag", "asked"),
    [
        (True, None, 1),  # all of it is here, only the name is missing
        (True, "same", 1),
        (True, '"other"', 2),
        (False, None, 2),
    ],
)
def test_state_complete_part(site: Site, tmp_path: Path, tells: bool, tag: str | None, asked: int) -> None:
    """Killed between the last byte and the name: the rest is asked for, there is none, and it is not fetched again."""
    mark = site.tag(CONTENT)
    note = {"address": f"{site.root}/a.bin", "mark": mark}
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    (tmp_path / "a.bin.part.json").write_text(json.dumps(note))
    site.tells_length, site.tag_of_416 = tells, mark if tag == "same" else tag
    seen: list[tuple[int, int | None]] = []
    found = bring(site, tmp_path / "a.bin", progress=lambda here, total: seen.append((here, total)))
    assert found.read_bytes() == CONTENT
    assert names(tmp_path) == ["a.bin"]
    assert site.asked[0] == ("a.bin", f"bytes={len(CONTENT)}-")
    assert len(site.asked) == asked
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_errors_complete_part(site: Site, tmp_path: Path) -> None:
    """The checksum and the limit still decide."""
    for more, told in (({"check": refuse_all}, "not this one"), ({"most_bytes": 1000}, "larger than 1,000")):
        note = {"address": f"{site.root}/a.bin", "mark": site.tag(CONTENT)}
        (tmp_path / "a.bin.part").write_bytes(CONTENT)
        (tmp_path / "a.bin.part.json").write_text(json.dumps(note))
        site.tells_length = True
        with pytest.raises(InputError, match=told):
            bring(site, tmp_path / "a.bin", **more)
        assert names(tmp_path) == []


def refuse_all(_: Path) -> None:
    raise InputError("not this one")


def test_state_without_ranges(site: Site, tmp_path: Path) -> None:
    site.ranges, site.cut = False, 100_000
    assert bring(site, tmp_path / "a.bin").read_bytes() == CONTENT
    assert len(site.asked) == 2


def test_state_without_marks(site: Site, tmp_path: Path) -> None:
    """A server that does not say which file it is cannot be asked for the rest of it."""
    site.tag, site.cut = lambda _: None, 100_000
    assert bring(site, tmp_path / "a.bin").read_bytes() == CONTENT
    assert site.asked == [("a.bin", None), ("a.bin", None)]


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("length", [300_000, 250_000, 50_000])
def test_state_changed_file(site: Site, tmp_path: Path, honest: bool, length: int) -> None:
    """The rest of another file is never glued to what is here, even where the server would do so."""
    site.cut = 100_000
    with pytest.raises(RunError):
        bring(site, tmp_path / "a.bin", attempts=1)
    site.files["a.bin"], site.honest_range = OTHER[:length], honest
    assert bring(site, tmp_path / "a.bin").read_bytes() == OTHER[:length]
    assert names(tmp_path) == ["a.bin"]


def test_state_other_address(site: Site, tmp_path: Path) -> None:
    site.files["b.bin"], site.cut, site.tag = OTHER, 100_000, lambda _: '"same"'
    with pytest.raises(RunError):
        bring(site, tmp_path / "a.bin", attempts=1)
    assert bring(site, tmp_path / "a.bin", f"{site.root}/b.bin").read_bytes() == OTHER


@pytest.mark.parametrize("note", ["", "[1]", "{}", '{"address": 3}', "\x00"])
def test_state_broken_note(site: Site, tmp_path: Path, note: str) -> None:
    (tmp_path / "a.bin.part").write_bytes(OTHER[:1000])
    (tmp_path / "a.bin.part.json").write_text(note, encoding="utf-8")
    assert bring(site, tmp_path / "a.bin").read_bytes() == CONTENT


def test_degenerate(site: Site, tmp_path: Path) -> None:
    site.files["a.bin"] = b""
    assert bring(site, tmp_path / "a.bin").read_bytes() == b""
    site.files["a.bin"] = CONTENT
    site.status = [503, 429]
    assert bring(site, tmp_path / "b.bin").read_bytes() == CONTENT
    site.redirects["old"] = f"{site.root}/a.bin"
    assert bring(site, tmp_path / "c.bin", f"{site.root}/old").read_bytes() == CONTENT


def test_errors_answers(site: Site, tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match="answered 404"):
        bring(site, tmp_path / "a.bin", f"{site.root}/none")
    assert len(site.asked) == 1
    site.status = [403]
    with pytest.raises(RunError, match=r"answered 403.*--mirror"):
        bring(site, tmp_path / "a.bin")
    site.status = [500, 500, 500]
    with pytest.raises(RunError, match="after 3 attempts"):
        bring(site, tmp_path / "a.bin")
    assert names(tmp_path) == []


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a", "data:,abc", "gopher://x/"])
def test_errors_redirects(site: Site, tmp_path: Path, target: str) -> None:
    site.redirects["a.bin"] = target
    with pytest.raises(InputError, match="points to an address that is refused"):
        bring(site, tmp_path / "a.bin")
    assert names(tmp_path) == []


def test_errors_redirect_loop(site: Site, tmp_path: Path) -> None:
    site.redirects["a.bin"] = f"{site.root}/a.bin"
    with pytest.raises(InputError, match="refused"):
        bring(site, tmp_path / "a.bin")


@pytest.mark.parametrize("address", ["ftp://x/a", "a.bin", "data:,abc", "C:/a", "javascript:1"])
def test_errors_schemes(tmp_path: Path, address: str) -> None:
    with pytest.raises(InputError, match="addresses start with http, https, file"):
        download(address, tmp_path / "a.bin", most_bytes=10)
    with pytest.raises(InputError, match="another machine"):
        download("file://server/share", tmp_path / "a.bin", most_bytes=10)
    with pytest.raises(InputError, match="no such file"):
        download((tmp_path / "none").as_uri(), tmp_path / "a.bin", most_bytes=10)


def test_errors_slow(site: Site, tmp_path: Path) -> None:
    """Silence ends an attempt; what came before it is kept."""
    site.cut, site.stall = 100_000, True
    with pytest.raises(RunError, match="timed out"):
        bring(site, tmp_path / "a.bin", attempts=1, timeout=0.3)
    assert (tmp_path / "a.bin.part").stat().st_size == 100_000


def test_errors_unreachable(site: Site, tmp_path: Path) -> None:
    port = site.root.rpartition(":")[2]
    closed = f"http://127.0.0.1:{1 if port != '1' else 2}/a.bin"
    with pytest.raises(RunError, match=r"not downloaded after 2 attempts.*Run the same command again"):
        bring(site, tmp_path / "a.bin", closed, attempts=2)


def test_errors_large(site: Site, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"larger than 1,000 bytes.*--max-bytes"):
        bring(site, tmp_path / "a.bin", most_bytes=1000)
    (tmp_path / "b.bin").write_bytes(CONTENT)
    with pytest.raises(InputError, match="larger than 1,000 bytes"):
        download((tmp_path / "b.bin").as_uri(), tmp_path / "c.bin", most_bytes=1000)
    assert not (tmp_path / "a.bin").exists()
    assert not (tmp_path / "c.bin").exists()


def test_errors_check(site: Site, tmp_path: Path) -> None:
    def refuse(part: Path) -> None:
        assert part.read_bytes() == CONTENT
        raise InputError("not this one")

    with pytest.raises(InputError, match="not this one"):
        bring(site, tmp_path / "a.bin", check=refuse)
    assert names(tmp_path) == []


def test_errors_disk(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves nothing under the final name, and what is here is used by the next call."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"could not be written \(No space left on device\)"):
            bring(site, tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="could not be written"):
        bring(site, tmp_path / "file" / "a.bin")


def test_errors_interrupted(site: Site, tmp_path: Path) -> None:
    def stop(here: int, _: int | None) -> None:
        if here > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(site, tmp_path / "a.bin", progress=stop)
    assert names(tmp_path) == ["a.bin.part", "a.bin.part.json"]
    assert bring(site, tmp_path / "a.bin").read_bytes() == CONTENT
    assert site.asked[1][1] is not None


# ------------------------------------------------------------------------------------------------- one set


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(site: Site, **changes: Any) -> Entry:
    site.files |= {"a.bin": CONTENT, "b.bin": OTHER, "c.bin": b"third"}
    files = (
        Remote("Set/raw/a.bin", f"{site.root}/a.bin", len(CONTENT), sha(CONTENT)),
        Remote("Set/raw/b.bin", f"{site.root}/b.bin", len(OTHER), git_sha1=git(OTHER)),
        Remote("Set/raw/c.bin", f"{site.root}/c.bin", 5),
    )
    packed = Remote("graphs/set.npz", "", 6, sha(b"packed"))
    found = Entry("set", "a set", "graph", files, "three files", "stated", "nobody", "Set/raw", packed)
    return replace(found, **changes)


def test_values_set(site: Site, tmp_path: Path) -> None:
    one = entry(site)
    steps: list[str] = []
    found = obtain(one, tmp_path, step=lambda file, *_: steps.append(file.name), pause=0)
    assert [(item.state, item.verified) for item in found] == [
        ("downloaded", "catalogue"),
        ("downloaded", "git"),
        ("downloaded", "nothing"),
    ]
    assert [item.sha256 for item in found] == [sha(CONTENT), sha(OTHER), sha(b"third")]
    assert set(steps) == {"a.bin", "b.bin", "c.bin"}
    record = json.loads((tmp_path / RECORD).read_text(encoding="utf-8"))
    assert sorted(record) == ["Set/raw/a.bin", "Set/raw/b.bin", "Set/raw/c.bin"]
    noted = record["Set/raw/c.bin"]
    assert (noted["set"], noted["address"], noted["sha256"], noted["bytes"]) == (
        "set",
        f"{site.root}/c.bin",
        sha(b"third"),
        5,
    )
    assert noted["date"].endswith("+00:00")
    assert missing(one, tmp_path) == ()
    asked = len(site.asked)
    again = obtain(one, tmp_path, pause=0)
    assert [(item.state, item.verified) for item in again] == [
        ("there", "catalogue"),
        ("there", "record"),
        ("there", "record"),
    ]
    assert len(site.asked) == asked


def test_state_set_interrupted(site: Site, tmp_path: Path) -> None:
    """Files that are here are not asked for again."""
    one = entry(site)
    site.status = [200, 403]
    with pytest.raises(RunError, match="403"):
        obtain(one, tmp_path, pause=0)
    assert names(tmp_path / "Set" / "raw") == ["a.bin"]
    obtain(one, tmp_path, pause=0)
    assert [path for path, _ in site.asked] == ["a.bin", "b.bin", "b.bin", "c.bin"]


@pytest.mark.parametrize("name", ["a.bin", "b.bin"])
def test_errors_checksum(site: Site, tmp_path: Path, name: str) -> None:
    """A file that is not the known one is removed; both checksums are named."""
    one = entry(site)
    site.files[name] = b"something else"
    wrong = sha(b"something else") if name == "a.bin" else git(b"something else")
    known = sha(CONTENT) if name == "a.bin" else git(OTHER)
    with pytest.raises(InputError, match=rf"is {wrong}, expected {known}.*removed"):
        obtain(one, tmp_path, pause=0)
    assert not (tmp_path / "Set" / "raw" / name).exists()
    assert not list(tmp_path.rglob("*.part*"))


def test_errors_recorded(site: Site, tmp_path: Path) -> None:
    """What the first download recorded must match from then on."""
    one = entry(site)
    obtain(one, tmp_path, pause=0)
    third = tmp_path / "Set" / "raw" / "c.bin"
    third.unlink()
    site.files["c.bin"] = b"other"
    with pytest.raises(InputError, match=rf"expected {sha(b'third')}"):
        obtain(one, tmp_path, pause=0)
    third.write_bytes(b"local")
    with pytest.raises(InputError, match=rf"c\.bin.*is {sha(b'local')}.*Move it away"):
        obtain(one, tmp_path, pause=0)
    assert third.read_bytes() == b"local"
    record = read_record(tmp_path)
    del record["Set/raw/c.bin"]
    (tmp_path / RECORD).write_text(json.dumps(record), encoding="utf-8")
    assert obtain(one, tmp_path, pause=0)[2].verified == "nothing"
    assert read_record(tmp_path)["Set/raw/c.bin"]["sha256"] == sha(b"local")
    for broken in ("{", "[]", '{"a": 1}'):
        (tmp_path / RECORD).write_text(broken, encoding="utf-8")
        with pytest.raises(InputError, match=RECORD):
            obtain(one, tmp_path, pause=0)


@pytest.mark.parametrize("layout", ["paths", "names"])
def test_values_mirror_folder(site: Site, tmp_path: Path, layout: str) -> None:
    one, mirror = entry(site), tmp_path / "mirror"
    for file in one.files:
        place = mirror / (file.path if layout == "paths" else file.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(site.files[file.name])
    for k, given in enumerate((str(mirror), mirror.as_uri())):
        found = obtain(one, tmp_path / f"to{k}", mirror=given)
        assert {item.state for item in found} == {"copied"}
        assert (tmp_path / f"to{k}" / "Set" / "raw" / "b.bin").read_bytes() == OTHER
    assert site.asked == []
    next(mirror.rglob("a.bin")).write_bytes(b"wrong")
    with pytest.raises(InputError, match=rf"expected {sha(CONTENT)}"):
        obtain(one, tmp_path / "wrong", mirror=str(mirror))


@pytest.mark.parametrize("layout", ["Set/raw/", "", "packed"])
def test_values_mirror_address(site: Site, tmp_path: Path, layout: str) -> None:
    one = entry(site)
    if layout == "packed":
        site.files = {"m/graphs/set.npz": b"packed"}
    else:
        site.files = {f"m/{layout}{name}": content for name, content in site.files.items()}
    found = obtain(one, tmp_path, mirror=f"{site.root}/m/", pause=0)
    assert {item.state for item in found} == {"downloaded"}
    assert len(found) == (1 if layout == "packed" else 3)


def test_values_mirror_packed(site: Site, tmp_path: Path) -> None:
    """A mirror may hold the packed file only; with it the set is complete."""
    one, mirror = entry(site), tmp_path / "mirror"
    (mirror / "graphs").mkdir(parents=True)
    (mirror / "graphs" / "set.npz").write_bytes(b"packed")
    (mirror / "a.bin").write_bytes(CONTENT)  # not all of the published files
    to = tmp_path / "to"
    for state in ("copied", "there"):
        (found,) = obtain(one, to, mirror=str(mirror))
        assert (found.state, found.verified, found.path) == (state, "catalogue", to / "graphs" / "set.npz")
    assert missing(one, to) == ()


def test_errors_mirror(site: Site, tmp_path: Path) -> None:
    one = entry(site)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has neither a\.bin, b\.bin, c\.bin nor set\.npz.*published at"):
        obtain(one, tmp_path / "to", mirror=str(tmp_path / "empty"))
    with pytest.raises(InputError, match="has neither"):
        obtain(one, tmp_path / "to", mirror=f"{site.root}/nothing", pause=0)
    for mirror in (str(tmp_path / "none"), "ftp-is-not-known"):
        with pytest.raises(InputError, match="is no folder"):
            obtain(one, tmp_path / "to", mirror=mirror)
    assert not (tmp_path / "to" / "Set").exists()


def test_values_archive(site: Site, tmp_path: Path) -> None:
    """A set that is published as an archive is unpacked once it is verified."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner/data.txt", "hello")
    site.files["set.zip"] = path.read_bytes()
    file = Remote("Set/set.zip", f"{site.root}/set.zip", 200, sha(path.read_bytes()), unpack="Set/raw")
    one = replace(entry(site), files=(file,), packed=None)
    to = tmp_path / "to"
    obtain(one, to, pause=0)
    assert (to / "Set" / "raw" / "inner" / "data.txt").read_text(encoding="utf-8") == "hello"
    (to / "Set" / "raw" / "inner" / "data.txt").write_text("kept", encoding="utf-8")
    obtain(one, to, pause=0)
    assert (to / "Set" / "raw" / "inner" / "data.txt").read_text(encoding="utf-8") == "kept"


def test_errors_limit(site: Site, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="larger than 7 bytes"):
        obtain(entry(site), tmp_path, most_bytes=7, pause=0)
    one = entry(site)
    tiny = replace(one, files=(replace(one.files[2], size=0), *one.files[:2]))
    site.files["c.bin"] = bytes(13 * 10**6)
    with pytest.raises(InputError, match="far more than expected"):
        obtain(tiny, tmp_path, pause=0)


def test_values_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LEANLABEL_DATA", raising=False)
    assert data_folder() == Path("data")
    monkeypatch.setenv("LEANLABEL_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    assert data_folder("here") == Path("here")
