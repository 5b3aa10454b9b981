"""The demo page: its columns and exports by themselves, the server's doors, and the page in a real Chromium."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner
from video_factory import make_video

from salcap import SaliencyCaptioner, Weighting, create_saliency
from salcap.cli import app
from salcap.demo import view
from salcap.demo.columns import EVERY, ROLES, Settings, caption_column, open_clip, write_export
from salcap.demo.models import Models
from salcap.demo.page import Page
from salcap.demo.server import serve
from salcap.records import read_records

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"
BROWSERS = ("google-chrome", "chromium")
OPEN_DOORS = {  # what gradio would take from its environment
    "GRADIO_ALLOWED_PATHS": "/",
    "GRADIO_ROOT_PATH": "https://example.org/elsewhere",
    "GRADIO_VIBE_MODE": "1",
    "GRADIO_WATCH_DIRS": str(SAMPLE.parent),
}
SETTINGS = Settings("salcap-mini", "spectral_residual", "center", ("prune",), "top", 0.25, 2)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@pytest.fixture(scope="module")
def unmodified() -> SaliencyCaptioner:
    return SaliencyCaptioner.from_pretrained("salcap-mini", mode="none")


@pytest.fixture(scope="module")
def columns(models):
    clip = open_clip(SAMPLE, SETTINGS)
    return [caption_column(models, clip, SETTINGS, role, 4 / 3) for role in ROLES]


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """Nothing that is published is on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SALCAP_WEIGHTS", raising=False)


# --- columns


def test_columns_are_what_the_captioner_says(columns, models, unmodified):
    pruned = Weighting(mode="prune", policy="top", keep_ratio=0.25)
    for column in columns:
        captioner = unmodified
        if column.role != "unmodified":
            captioner = SaliencyCaptioner(unmodified.captioner, create_saliency(column.arm.saliency), pruned)
        expected = captioner.caption(SAMPLE, num_frames=2)
        assert (column.caption.text, column.caption.visual_tokens) == (expected.text, expected.visual_tokens)
        assert column.caption.path == "sample.mp4"
    tokens = [column.caption.visual_tokens for column in columns]
    assert (tokens[0], tokens[1]) == (2 * 196, 2 * 49)
    assert [column.shown.patches is None for column in columns] == [True, False, False]
    assert columns[1].shown.patches.kept.sum(1).tolist() == [49, 49]
    student, teacher = (models.pipeline("salcap-mini", column.arm) for column in columns[1:])
    assert student.captioner is teacher.captioner
    assert models.backbone("center") is models.backbone("center") is teacher.saliency


def test_a_column_that_fails_is_alone(models, no_weights):
    settings = Settings("salcap-mini", "center", "attention_center", ("prune",), "top", 0.5, 1)
    clip = open_clip(SAMPLE, settings)
    student, teacher = (caption_column(models, clip, settings, role, 4 / 3) for role in ROLES[1:])
    assert student.caption.text
    assert teacher.caption.text is None
    assert teacher.shown is None
    card = view.cards([student, teacher])
    assert student.caption.text in card
    assert "attention_center" in teacher.caption.error
    assert teacher.caption.error.split(";")[0] in card


def test_modes_that_do_not_fit(models):
    with pytest.raises(ValueError, match="at least one mode"):
        Settings("salcap-mini", "uva_net", "center", (), "top", 0.5, 2)
    settings = Settings("salcap-mini", "center", "center", ("scale",), "top", 0.5, 1)
    assert (settings.arm("student").policy, settings.arm("student").keep_ratio) == (None, 1.0)
    column = caption_column(models, open_clip(SAMPLE, settings), settings, "student", 4 / 3)
    assert (column.caption.mode, column.caption.keep_ratio, column.shown.patches) == ("scale", 1.0, None)


def test_pictures_name_each_frame(columns):
    drawn = view.patches(columns)
    assert drawn.count("<figcaption>") == 6
    assert drawn.count("49 of 196 kept") == 4
    assert drawn.count("all kept") == 2
    assert "1.50 s" in drawn
    assert 'aria-label="sample.mp4 at 1.50 s, spectral_residual top 0.25: of 196 patches 49 kept, 147 dropped"' in drawn


def test_words_are_no_markup():
    assert "<img" not in view.alarm("<img src=x onerror=alert(1)>")
    assert "<b>" not in view.overlay_failed("teacher", "<b>", "<b>")


def test_exports(columns, tmp_path):
    texts = [column.caption.text for column in columns]
    record = json.loads(write_export(columns, "student", ".jsonl", tmp_path).read_text(encoding="utf-8"))
    assert (record["id"], record["caption"], record["saliency"]) == ("sample.mp4", texts[1], "spectral_residual")
    subtitles = write_export(columns, "teacher", ".vtt", tmp_path)
    assert subtitles.name == "sample-teacher.vtt"
    assert subtitles.read_text(encoding="utf-8") == f"WEBVTT\n\n00:00:00.000 --> 00:00:06.000\n{texts[2]}\n\n"
    with write_export(columns, EVERY, ".csv", tmp_path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["caption"] for row in rows] == texts
    assert [row["id"] for row in rows] == [f"sample.mp4 {role}" for role in ROLES]
    assert [r["caption"] for r in read_records(write_export(columns, EVERY, ".jsonl", tmp_path))] == texts
    with pytest.raises(ValueError, match=r"\.srt subtitles belong to one video, got 3"):
        write_export(columns, EVERY, ".srt", tmp_path)


def test_an_export_that_cannot_be_written_says_so(columns, models, tmp_path):
    page = Page(pytest.importorskip("gradio"), tmp_path, models, (), (), ())
    page.build()
    named = [replace(column, caption=replace(column.caption, path=f"{'n' * 250}.mp4")) for column in columns]
    assert "cannot write the file: File name too long" in page.export(named, "student", ".csv")[page.download]


# --- command, server


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(app, ["demo"])
    assert (result.exit_code, "pip install 'salcap[demo]'" in result.stderr) == (2, True)


@pytest.fixture
def not_started(monkeypatch):
    monkeypatch.setattr(Page, "build", lambda page: pytest.fail("the page is started"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nothere.mp4"], r"files of videos, got 'nothere\.mp4': there is no such file"),
        (["--saliency", "centre"], "unknown saliency backbone 'centre', allowed: .*; did you mean 'center'"),
        (["--saliency", "nofile.py:f"], "'nofile.py:f': there is no file"),
        (["--model", "./nope"], r"no captioner '\./nope', allowed: salcap-mini, a folder with a config\.json or"),
        (["--model", str(SAMPLE.parent)], "no captioner's folder, allowed: salcap-mini"),
    ],
)
def test_arguments_that_cannot_work(arguments, words, not_started):
    result = CliRunner().invoke(app, ["demo", *arguments])
    assert (result.exit_code, re.search(words, result.stderr) is not None) == (2, True), result.stderr


def test_a_port_that_is_taken(not_started):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["demo", "--port", str(port)])
    assert result.exit_code == 2
    assert f"port {port} cannot be had: Address already in use; give another one with --port" in result.stderr


SIGNALLED = """
import os, signal, sys
from salcap.cli.demo import ended_by_signals

number = signal.Signals[sys.argv[1]]
signal.signal(number, signal.SIG_DFL)
try:
    with ended_by_signals():
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)
            print("cleaned up")
except KeyboardInterrupt:
    print("interrupted")
print(signal.getsignal(number) == signal.SIG_DFL)
signal.signal(number, signal.SIG_IGN)
with ended_by_signals():
    os.kill(os.getpid(), number)
print("ignored")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_interrupt_once(name):
    ran = subprocess.run([sys.executable, "-c", SIGNALLED, name], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["cleaned up", "interrupted", "True", "ignored"]


def test_uploads_go_with_sigterm(tmp_path):
    pytest.importorskip("gradio")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "salcap", "demo"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert upload(process.stdout.readline().strip(), 9) == 200
            assert [file.read_bytes() for file in tmp_path.glob("salcap-demo-*/*/a.mp4")] == [b"0" * 9]
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert list(tmp_path.glob("salcap-demo-*")) == []


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("picks")
    odd = make_video(folder / "odd.mp4", 36).rename(folder / "\udcff.mp4")  # a name that is no UTF-8
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OPEN_DOORS.items():
            patch.setenv(name, value)
        with serve([str(SAMPLE), str(odd)], max_upload_mb=1) as address:
            yield address
        assert {name: os.environ[name] for name in OPEN_DOORS} == OPEN_DOORS


def answer(url: str, data: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], str]:
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, dict(response.headers), response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


def upload(address: str, count: int) -> int:
    part = 'Content-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
    body = f"--x\r\n{part}".encode() + b"0" * count + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    return answer(f"{address}gradio_api/upload", body, **kind)[0]


def test_only_its_own_files_are_served(address, tmp_path):
    outside = tmp_path / "secret.txt"
    outside.write_text("secret", encoding="utf-8")
    for place in (outside, SAMPLE, "/etc/passwd", "../../../../../../etc/passwd", f"{SAMPLE.parent}/../pyproject.toml"):
        status, _, body = answer(f"{address}gradio_api/file={place}")
        assert status == 403, place
        assert "secret" not in body.replace("secret.txt", "")
    for place in ("file=https://example.org/x", "proxy=https://example.hf.space/x"):
        status, _, body = answer(f"{address}gradio_api/{place}")
        assert (status, body) == (403, "refused: not of this page\n")


def test_only_its_own_pages_are_heard(address):
    assert address.startswith("http://127.0.0.1:")
    status, headers, page = answer(address)
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "fonts.googleapis" not in page
    assert answer(address, Host="example.org")[0] == 400
    assert answer(f"{address}gradio_api/info", Origin="https://example.org")[0] == 403
    assert answer(f"{address}gradio_api/info", Origin=address.rstrip("/"))[0] == 200
    for other in ("http://localhost:1234", "http://127.0.0.1:1234", "http://127.0.0.1", "http://[", "null"):
        assert answer(f"{address}gradio_api/info", Origin=other)[0] == 403, other
    named = address.replace("127.0.0.1", "localhost").rstrip("/")
    assert answer(f"{address}gradio_api/info", Origin=named, Host=named.removeprefix("http://"))[0] == 200


def test_the_environment_changes_nothing(address):
    config = json.loads(answer(f"{address}config")[2])
    assert (config["root"], config["dev_mode"], config["vibe_mode"]) == (address.rstrip("/"), False, False)


def test_uploads_are_limited(address):
    assert (upload(address, 2**20 - 1), upload(address, 2**20 + 1)) == (200, 413)


# --- the page in a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    if chromium is None:
        pytest.skip(f"the page is not tried in a browser: none of {', '.join(BROWSERS)} is on PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_page_in_chromium(address, browser, unmodified, tmp_path):
    clip = make_video(tmp_path / "numbers.mp4", 12)
    page = browser.new_page()
    page.set_default_timeout(180_000)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.locator("input[type=file]").set_input_files(clip)
    page.get_by_text("0.50 s, 160 x 96, 24 frames a second, h264").wait_for()
    page.get_by_label("number input for Frames").fill("2")
    page.get_by_role("button", name="Caption", exact=True).click()
    page.get_by_role("status").filter(has_text="Done").wait_for()

    words = page.locator(".card .caption").all_inner_texts()
    assert words[0] == unmodified.caption(clip, num_frames=2).text
    assert len(words) == 3
    assert page.locator(".frames svg").count() == 6
    for overlay in page.locator("video").all():
        overlay.evaluate("video => video.play()")
        page.wait_for_function("video => video.readyState >= 2 && video.currentTime > 0", arg=overlay.element_handle())
    page.get_by_label("Format").click()
    page.get_by_role("option", name=".srt", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download numbers-student.srt").click()
    assert words[1] in Path(download.value.path()).read_text(encoding="utf-8")

    page.get_by_role("button", name="Clear").click()
    page.locator("input[type=file]").set_input_files(
        {"name": "notes.mp4", "mimeType": "video/mp4", "buffer": b"no video\n" * 99}
    )
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "Cannot read notes.mp4 as a video" in alert.inner_text()
    page.get_by_label("Or pick one").click()
    page.get_by_role("option", name="sample.mp4").click()
    page.get_by_text("6.00 s, 320 x 240, 24 frames a second, h264").wait_for()
    page.get_by_label("Or pick one").click()
    page.get_by_role("option", name="udcff.mp4").click()
    page.get_by_text("1.50 s, 160 x 96, 24 frames a second, h264").wait_for()
    assert all(url.startswith((address, "data:", "blob:")) for url in requests)
    page.close()
