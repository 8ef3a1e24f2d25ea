"""The pages in a real browser: nothing is requested, nothing fails, nothing runs over the edge of a phone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_samples import FINDINGS, compared, near_figure, with_pictures

from leanlabel.report.comparison import write_comparison
from leanlabel.report.findings import write_findings
from leanlabel.report.run import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
# The browser's own traffic (updates, clock) finds no host; what a page asks for is still logged as a request.
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--enable-logging=stderr", "--v=0"),
]
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
WIDTHS = (320, 390, 768, 1200)
# Tells the frame around it how wide the content is; the page's own policy would not let it run.
PROBE = "<script>onload=()=>parent.postMessage(name+':'+document.documentElement.scrollWidth,'*')</script>"
COLLECT = "<script>onmessage=e=>document.title+=e.data+';'</script>"


def browse(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a local page once, without a window."""
    command = [str(BROWSER), *FLAGS, OFFLINE, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=True)


def visit(page: Path, folder: Path) -> tuple[list[str], list[str]]:
    """(lines of the console, addresses the page asked for)."""
    log = folder / "net.json"
    done = browse(page, folder / "profile", f"--log-net-log={log}", "--dump-dom")
    assert "</html>" in done.stdout
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return console, [address for address in requested(log) if not address.startswith("file:")]


def requested(log: Path) -> list[str]:
    """Addresses of the requests that a page started; the browser's own have no origin."""
    written = log.read_text(encoding="utf-8", errors="replace").rstrip()
    try:
        found: dict[str, Any] = json.loads(written)
    except ValueError:  # the browser left before it closed the list
        found = json.loads(written.rstrip(",") + "]}")
    kind = found["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    events = [event.get("params") or {} for event in found["events"] if event["type"] == kind]
    return [
        params["url"] for params in events if params.get("url") and params["initiator"] != "not an origin"
    ]


def pages(folder: Path) -> dict[str, Path]:
    """One page of each kind."""
    return {
        "run": write_report(with_pictures(folder / "run", near_figure(8, 6), steps=200)),
        "comparison": write_comparison(folder / "comparison.html", compared()),
        "findings": write_findings(folder / "findings.html", "Data check of amazon-photo.npz", FINDINGS),
    }


def test_values_no_request_no_script_error(tmp_path: Path) -> None:
    made = pages(tmp_path)
    for name in ("run", "comparison"):
        folder = tmp_path / f"visit {name}"
        folder.mkdir()
        assert visit(made[name], folder) == ([], [])


def test_reference_a_bad_page_is_noticed(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<html><img src="http://host.invalid/x.png"><script>missing()</script></html>', encoding="utf-8"
    )
    console, addresses = visit(bad, tmp_path)
    assert len(console) == 1
    assert "missing is not defined" in console[0]
    assert addresses == ["http://host.invalid/x.png"]


def test_values_no_sideways_scroll(tmp_path: Path) -> None:
    """Headless windows are at least 500 px wide; a frame can be as narrow as a phone."""
    made = pages(tmp_path)
    (tmp_path / "wide.html").write_text(
        '<html><head></head><p style="width:1500px">wide</p></html>', encoding="utf-8"
    )
    made["wide"] = tmp_path / "wide.html"
    frames = []
    for name, page in made.items():
        html = re.sub(
            r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8")
        )
        (tmp_path / f"probed-{name}.html").write_text(
            html.replace("<head>", f"<head>{PROBE}"), encoding="utf-8"
        )
        frames += [
            f'<iframe name="{name}-{width}" src="probed-{name}.html" style="width:{width}px;border:0"></iframe>'
            for width in WIDTHS
        ]
    (tmp_path / "frames.html").write_text(COLLECT + "".join(frames), encoding="utf-8")
    done = browse(tmp_path / "frames.html", tmp_path / "profile", "--virtual-time-budget=5000", "--dump-dom")
    found = re.search("<title>(.*?)</title>", done.stdout)
    assert found is not None
    expected = {f"{name}-{width}:{1508 if name == 'wide' else width}" for name in made for width in WIDTHS}
    assert set(found[1].strip(";").split(";")) == expected


def test_values_screenshots(tmp_path: Path) -> None:
    """Light, dark and phone; all pages, and kept, where LEANLABEL_SCREENSHOTS names a folder for people to look at."""
    chosen = os.environ.get("LEANLABEL_SCREENSHOTS")
    kept = Path(chosen or tmp_path / "screenshots")
    kept.mkdir(parents=True, exist_ok=True)
    made = pages(tmp_path)
    looks = {
        "light": (1200, []),
        "dark": (1200, ["--blink-settings=preferredColorScheme=0"]),
        "phone": (390, []),
    }
    for name in made if chosen else ["run"]:
        for look, (width, flags) in looks.items():
            target = kept / f"{name}-{look}.png"
            browse(
                made[name],
                tmp_path / "profile",
                f"--screenshot={target}",
                f"--window-size={width},1600",
                *flags,
            )
            data = target.read_bytes()
            assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (width, 1600)
            assert len(data) > 20_000
        assert (kept / f"{name}-light.png").read_bytes() != (kept / f"{name}-dark.png").read_bytes()
