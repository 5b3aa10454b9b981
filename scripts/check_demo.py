"""Use the demo page in a real Chromium: upload, captions, overlay, errors, keyboard, network; take screenshots.

    python scripts/check_demo.py /tmp/demo --axe axe.min.js     # npm pack axe-core has that file

Needs playwright and a Chromium that is installed; downloads nothing. Each step is logged. Exit status 1 where a step
fails, a request leaves this machine, or axe finds something serious or critical.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from salcap.demo.server import serve

ROOT = Path(__file__).resolve().parents[1]
VIEWS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "has_touch": True},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
}
PATIENCE = 600_000  # milliseconds, of a busy machine
SEVERE = ("serious", "critical")
LOCAL = ("127.0.0.1", "localhost", "::1")


class Check:
    """A run: its log, its findings, and what went wrong."""

    def __init__(self, browser: Browser, address: str, folder: Path, axe: Path | None) -> None:
        self.browser, self.address, self.folder = browser, address, folder
        self.axe = axe.read_text(encoding="utf-8") if axe else None
        self.findings: dict[str, dict[str, list[str]]] = {}
        self.requests: set[str] = set()
        self.faults: list[str] = []

    def step(self, words: str, holds: bool = True) -> None:
        print(f"{time.strftime('%H:%M:%S')} {'ok  ' if holds else 'FAIL'} {words}", flush=True)
        if not holds:
            self.faults.append(words)

    @contextmanager
    def page(self, view: str) -> Iterator[Page]:
        context = self.browser.new_context(**VIEWS[view], reduced_motion="reduce")
        context.set_default_timeout(PATIENCE)
        context.on("request", lambda request: self.requests.add(request.url))
        page = context.new_page()
        page.on("pageerror", lambda error: self.step(f"{view}: script error {error}", False))
        page.goto(self.address)
        page.get_by_role("button", name="Caption", exact=True).wait_for()
        yield page
        context.close()

    def shoot(self, page: Page, name: str) -> None:
        page.screenshot(path=self.folder / f"{name}.png", full_page=True)
        if self.axe is None:
            return
        page.evaluate(self.axe)
        for finding in page.evaluate("axe.run()")["violations"]:
            places = [" ".join(node["target"]) for node in finding["nodes"]]
            kind = self.findings.setdefault(finding["impact"], {})
            kind.setdefault(f"{finding['id']}: {finding['help']}", []).extend(f"{name}: {place}" for place in places)

    def fits(self, page: Page, view: str) -> None:
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        self.step(f"{view}: nothing is wider than the window (by {wide} pixels)", wide <= 0)


def upload(page: Page, *file: Any) -> None:
    page.locator("input[type=file]").first.set_input_files(*file)


def views(check: Check, video: Path) -> None:
    """The page at work: on a desktop, then as a phone and in dark mode."""
    with check.page("desktop") as page:
        check.shoot(page, "empty")
        upload(page, video)
        expect(page.locator(".facts")).to_contain_text(video.name, timeout=PATIENCE)
        check.step(f"upload: {page.locator('.facts figcaption').inner_text().splitlines()}")
        page.get_by_role("button", name="Caption", exact=True).click()
        expect(page.locator(".card .caption").first).to_be_visible(timeout=PATIENCE)
        page.screenshot(path=check.folder / "working.png")
        expect(page.get_by_role("status").filter(has_text="Done")).to_be_visible(timeout=PATIENCE)
        captions = page.locator(".card .caption").all_inner_texts()
        check.step(f"captions {captions}", len(captions) == 3)
        check.step(f"patches of {page.locator('.frames figure').count()} frames")
        play(check, page)
        for view, options in VIEWS.items():
            page.set_viewport_size(options["viewport"])
            page.emulate_media(color_scheme=options["color_scheme"])
            check.fits(page, view)
            check.shoot(page, view)
        export(check, page)


def play(check: Check, page: Page) -> None:
    for video in page.locator("video").all():
        state = video.evaluate(
            """async video => {
                await video.play();
                await new Promise(done => setTimeout(done, 1500));
                video.pause();
                return [video.readyState, video.currentTime, video.videoWidth, video.error?.message ?? null];
            }"""
        )
        check.step(f"overlay [readyState, currentTime, width, error] {state}", state[0] >= 2 and state[1] > 0.3)


def export(check: Check, page: Page) -> None:
    for column, suffix in (("Student", ".vtt"), ("All three", ".csv")):
        for label, choice in (("Caption of", column), ("Format", suffix)):
            page.get_by_label(label).click()
            page.get_by_role("option", name=choice, exact=True).click()
        name = f"-{'all' if column == 'All three' else 'student'}{suffix}"
        with page.expect_download() as download:
            page.get_by_role("link", name=re.compile(name)).click()
        text = Path(download.value.path()).read_text(encoding="utf-8")
        check.step(f"export {download.value.suggested_filename}: {text.splitlines()[:3]}", bool(text))


def errors(check: Check, video: Path) -> None:
    """Files that are no videos, too large, and a teacher that is not there."""
    with check.page("desktop") as page:
        alert = page.get_by_role("alert")
        page.get_by_role("button", name="Caption", exact=True).click()
        expect(alert).to_contain_text("No video", timeout=PATIENCE)
        upload(page, {"name": "notes.mp4", "mimeType": "video/mp4", "buffer": b"not a video\n" * 100})
        expect(alert).to_contain_text("Cannot read notes.mp4", timeout=PATIENCE)
        check.step(f"bad file: {alert.first.inner_text()}")
        check.shoot(page, "error")
    with check.page("phone") as page:
        upload(page, {"name": "notes.mp4", "mimeType": "video/mp4", "buffer": b"not a video\n" * 100})
        expect(page.get_by_role("alert")).to_contain_text("Cannot read notes.mp4", timeout=PATIENCE)
        check.fits(page, "phone, error")
        check.shoot(page, "error_phone")
    with check.page("desktop") as page:
        upload(page, {"name": "large.mp4", "mimeType": "video/mp4", "buffer": b"0" * (3 * 2**20)})
        words = page.get_by_text(re.compile("size|large", re.I)).filter(has_text=re.compile("exceed|max|larger", re.I))
        words.first.wait_for()
        check.step(f"large file: {words.first.inner_text()}")
        check.shoot(page, "too_large")
    with check.page("desktop") as page:
        page.get_by_label("Teacher").click()
        page.get_by_role("option", name="attention_center").click()
        page.get_by_label("Or pick one").click()
        page.get_by_role("option", name=video.name).click()
        expect(page.locator(".facts")).to_be_visible(timeout=PATIENCE)
        page.get_by_role("button", name="Caption", exact=True).click()
        expect(page.get_by_role("status").filter(has_text="Done")).to_be_visible(timeout=PATIENCE)
        captions, failed = page.locator(".card .caption").count(), page.locator(".card .alarm").first.inner_text()
        check.step(f"absent teacher: {captions} captions, and {failed!r}", captions == 2)
        check.shoot(page, "absent_teacher")


def keyboard(check: Check, video: Path) -> None:
    """Caption without a mouse; every stop must have a name."""
    with check.page("desktop") as page:
        upload(page, video)  # the system's own file dialogue is beyond the page
        expect(page.locator(".facts")).to_be_visible(timeout=PATIENCE)
        stops = [tab(page, "Tab")]
        while len(stops) < 60 and stops[-1] and stops[-1] not in stops[:-1]:
            stops.append(tab(page, "Tab"))
        check.step(f"keyboard stops: {stops}", "button Caption" in stops and not any(s.endswith(" ") for s in stops))
        while tab(page, "Shift+Tab") != "button Caption":
            pass
        page.keyboard.press("Enter")
        expect(page.locator(".card .caption").first).to_be_visible(timeout=PATIENCE)
        check.step("keyboard: Enter captions")


def tab(page: Page, keys: str) -> str:
    """Go on to the next stop; gives what it is and its name."""
    page.keyboard.press(keys)
    stop = page.evaluate(
        """() => {
            const e = document.activeElement, words = e.ariaLabel || e.labels?.[0]?.innerText || e.innerText;
            return e === document.body ? "" : `${e.tagName.toLowerCase()} ${words}`;
        }"""
    )
    return re.sub(r"\s+", " ", stop)


def doors(check: Check) -> None:
    """What must stay shut."""
    api = check.browser.new_context().request
    for path, headers in (
        ("file=/etc/passwd", {}),
        (f"file={ROOT}/pyproject.toml", {}),
        ("file=../../../../etc/passwd", {}),
        ("file=https://example.org/", {}),
        ("proxy=https://example.hf.space/", {}),
        ("info", {"Origin": "https://example.org"}),
        ("info", {"Host": "example.org"}),
    ):
        status = api.get(f"{check.address}gradio_api/{path}", headers=headers).status
        check.step(f"{path} {headers or ''}: {status}", status in (400, 403, 404))


def hosts_asked(net_log: Path) -> tuple[set[str], set[str]]:
    """Other hosts that Chromium's network log names, and those of them that only its own services ask.

    Sign-in, check-in and autofill are such: no origin is their initiator.
    """
    text = net_log.read_text(encoding="utf-8", errors="replace")  # an event a line
    asked = re.findall(r'"initiator":"([^"]*)".*?"url":"\w+://([^/:"]+)', text)
    pages = {host for initiator, host in asked if initiator != "not an origin"}
    own = {host for _, host in asked} - pages
    hosts = set(re.findall(r'"(?:url|host|group_id)":"(?:[^"]* )?(?:\w+://)?([\w-]+(?:\.[\w-]+)+)', text))
    return hosts.difference(own, LOCAL), own.difference(LOCAL)


def main(folder: Path, video: Path, axe: Path | None, chromium: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    outside: set[str] = set()

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in LOCAL:
            outside.add(str(arguments[1]))
        elif event == "socket.getaddrinfo" and arguments[0] not in (*LOCAL, None):
            outside.add(str(arguments[0]))

    sys.addaudithook(listen)
    net_log = folder / "net_log.json"
    with serve([str(video)], max_upload_mb=2) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", f"--log-net-log={net_log}", "--disable-gpu"]
        )
        check = Check(browser, address, folder, axe)
        check.step(f"serving {address}, Chromium {browser.version}")
        for part in (views, errors, keyboard):
            try:
                part(check, video)
            except (AssertionError, Error) as error:
                check.step(f"{part.__name__}: {error}", False)
        doors(check)
        browser.close()
    remote = sorted(url for url in check.requests if not url.startswith((address, "data:", "blob:")))
    check.step(f"{len(check.requests)} requests of the page, elsewhere: {remote}", not remote)
    hosts, own = hosts_asked(net_log)
    check.step(
        f"Chromium's network log, elsewhere: {sorted(hosts)} (Chromium's own services: {sorted(own)})", not hosts
    )
    check.step(f"connections of the server, elsewhere: {sorted(outside)}", not outside)
    for impact, kinds in check.findings.items():
        for kind, places in kinds.items():
            check.step(f"axe, {impact}: {kind}; {len(places)} places: {places[:4]}", impact not in SEVERE)
    counts = {impact: len(kinds) for impact, kinds in check.findings.items()}
    print(json.dumps({"faults": len(check.faults), "axe": counts if axe else None, "screenshots": str(folder)}))
    return 1 if check.faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="For screenshots and Chromium's network log.")
    parser.add_argument("--video", type=Path, default=ROOT / "data" / "sample.mp4")
    parser.add_argument("--axe", type=Path, help="axe.min.js; left out: no accessibility check.")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    sys.exit(main(arguments.folder, arguments.video, arguments.axe, arguments.chromium))
