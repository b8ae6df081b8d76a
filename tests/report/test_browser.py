"""The page as a browser shows it; a probe shows that what is looked for would be seen."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
OWN = re.compile(r"(^|\.)(google|googleapis|gstatic)\.com$")
"""Hosts that the browser itself asks for, whatever the page."""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")


class Visit(NamedTuple):
    dom: str
    console: list[str]
    hosts: set[str]


def run_browser(profile: Path, page: Path, *options: str) -> subprocess.CompletedProcess:
    assert BROWSER is not None
    profile.mkdir()
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    return subprocess.run(
        [*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )


def visit(folder: Path, page: Path) -> Visit:
    log = folder / "net.json"
    done = run_browser(
        folder / "profile", page, "--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom"
    )
    asked = {urlsplit(url).hostname or "" for url in re.findall(r'"url":"(https?:[^"]*)', log.read_text())}
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Visit(done.stdout, console, {host for host in asked if not OWN.search(host)})


def test_the_page_opens_whole_quietly_and_alone(page, tmp_path):
    seen = visit(tmp_path, page)
    assert seen.console == []
    assert seen.hosts == set()
    assert "</footer>" in seen.dom
    sections = re.findall(r'<section id="(\w+)"', seen.dom)
    assert len(sections) == 9
    assert seen.dom.count("<table") >= 7
    assert seen.dom.count("<svg") >= 9


def test_a_page_that_is_neither_quiet_nor_alone_is_seen(tmp_path):
    probe = tmp_path / "probe.html"
    probe.write_text('<script>console.error("wrong")</script><img src="http://elsewhere.invalid/x.png">')
    seen = visit(tmp_path, probe)
    assert any("wrong" in line for line in seen.console)
    assert seen.hosts == {"elsewhere.invalid"}


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_as_bright_as_the_reader_wants(page, tmp_path, dark):
    shot = tmp_path / "shot.png"
    options = [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--window-size=900,1200"]
    run_browser(tmp_path / "profile", page, *options, f"--screenshot={shot}")
    shown = Image.open(shot).convert("L")
    histogram = shown.histogram()
    assert (sum(histogram[:64]) > sum(histogram[192:])) == dark
    # Ink on the paper: no blank page.
    assert len([n for n in histogram if n > 50]) > 20


def test_the_page_prints_on_white_paper(page, tmp_path):
    target = tmp_path / "report.pdf"
    run_browser(tmp_path / "profile", page, "--no-pdf-header-footer", f"--print-to-pdf={target}")
    content = target.read_bytes()
    assert content.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 20


def test_nothing_is_wider_than_a_phone(page, tmp_path):
    """Wide tables scroll in their own frames: the page itself does not."""
    measure = "<script>document.title = `${document.documentElement.scrollWidth} of ${innerWidth}`</script>"
    text = page.read_text(encoding="utf-8").replace("Content-Security-Policy", "left-out")
    (tmp_path / "inner.html").write_text(text.replace("</body>", f"{measure}</body>"), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        '<iframe src="inner.html" style="width:400px;height:800px;border:0" '
        'onload="document.title = this.contentDocument.title"></iframe>'
    )
    files = "--allow-file-access-from-files"
    shown = run_browser(tmp_path / "profile", frame, files, "--virtual-time-budget=3000", "--dump-dom").stdout
    found = re.search(r"<title>(\d+) of (\d+)</title>", shown)
    assert found is not None
    assert found.groups() == ("400", "400")
