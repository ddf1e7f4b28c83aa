"""Every page of the rendered reports, opened in a real browser on two screens: `make check-site`."""
from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.pages import check_site, slips

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REPORTS = sorted(path.parent
                 for path in (Path(__file__).resolve().parents[2] / "reports").glob("[!.]*/index.html"))
WIDTHS = (360, 1440)
# Elements wider than the screen that no ancestor lets scroll, with everything that can be unfolded open.
OVERFLOW = """(() => {
  for (const details of document.querySelectorAll("main details")) details.open = true;
  const room = document.documentElement.clientWidth;
  const scrolls = (e) => e && e !== document.body
    && (getComputedStyle(e).overflowX !== "visible" || scrolls(e.parentElement));
  // blanks of code (.w) hang over the end of a wrapped line, where nobody sees them
  const wide = [...document.body.querySelectorAll("*:not(pre .w)")].filter((e) =>
    e.getBoundingClientRect().right > room + 1 && !scrolls(e.parentElement) && e.getClientRects().length);
  const broken = [...document.images].filter((image) => image.loading !== "lazy" && !image.naturalWidth);
  return JSON.stringify({scroll: document.documentElement.scrollWidth - room,
    wide: wide.slice(0, 3).map((e) => e.outerHTML.slice(0, 120)),
    broken: broken.map((image) => image.src.slice(-60))});
})()"""


class Browser:
    """A headless Chromium, spoken to through its DevTools protocol."""

    def __init__(self, folder: Path):
        import websocket

        self.process = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--remote-debugging-port=0", "--remote-allow-origins=*",
             f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = folder / "DevToolsActivePort"
        while not (port.exists() and port.read_text().count("\n")):
            assert self.process.poll() is None, "Chromium did not start"
            time.sleep(0.05)
        number, path = port.read_text().splitlines()
        self.socket = websocket.create_connection(f"ws://127.0.0.1:{number}{path}", timeout=60)
        self.sent, self.events = 0, []
        self.session = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters):
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.sent:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def visit(self, url: str, width: int) -> tuple[dict, list[str]]:
        """What the page is like once loaded, and everything the browser complained about."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.events.clear()
        self("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv()))
        found = json.loads(self("Runtime.evaluate", expression=OVERFLOW)["result"]["value"])
        complaints = [json.dumps(event["params"])[:1500] for event in self.events
                      if event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled",
                                             "Log.entryAdded", "Network.loadingFailed")]
        outside = [event["params"]["request"]["url"][:100] for event in self.events
                   if event["method"] == "Network.requestWillBeSent"
                   and not event["params"]["request"]["url"].startswith(("file:", "data:"))]
        return found, complaints + outside


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.process.terminate()
    opened.process.wait()


@pytest.mark.site
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")
@pytest.mark.parametrize("folder", REPORTS, ids=lambda path: path.name)
def test_pages_load_without_complaint_and_fit_the_screen(folder, browser):
    check_site(folder)
    faults = {page.name: found for page in sorted(folder.glob("*.html")) if (found := slips(page))}
    for page in sorted(folder.glob("*.html")):
        for width in WIDTHS:
            found, complaints = browser.visit(page.as_uri(), width)
            if complaints or found["scroll"] > 0 or found["wide"] or found["broken"]:
                faults[page.name, width] = found, complaints
    assert faults == {}


@pytest.mark.site
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")
def test_the_browser_notices_what_is_wrong(tmp_path, browser):
    page = tmp_path / "page.html"
    page.write_text("<img src=gone.png alt=gone><div style='width: 2000px'>wide</div>"
                    "<script>missing()</script>")
    found, complaints = browser.visit(page.as_uri(), 360)
    assert found["scroll"] > 1000 and "2000px" in found["wide"][0] and found["broken"]
    assert any("gone.png" in text or "ERR_FILE_NOT_FOUND" in text for text in complaints)
    assert any("missing is not defined" in text for text in complaints)
