"""Where weights are looked for, and what a download must be before it counts."""

from __future__ import annotations

import hashlib
import io

import pytest

from salcap.saliency import weights
from salcap.saliency.weights import Download, cache_folder, find_weights, is_offline

CONTENT = bytes(range(256)) * 700  # several chunks
NAMES = ("net/model.bin", "model.bin")
PUBLISHED = Download("https://example.org/model.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def _own_places(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("SALCAP_WEIGHTS", "HF_HUB_OFFLINE", "SALCAP_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def put(path, content=b"here"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def serve(content):
    """An opener that counts its calls, and the calls."""
    calls = []

    def opener(url):
        calls.append(url)
        return io.BytesIO(content)

    return opener, calls


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_searched_directly_and_below(tmp_path, monkeypatch, name):
    file = put(tmp_path / "folder" / name)
    assert find_weights(NAMES, tmp_path / "folder") == file
    monkeypatch.setenv("SALCAP_WEIGHTS", str(tmp_path / "folder"))
    assert find_weights(NAMES) == file


def test_places_are_searched_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("SALCAP_WEIGHTS", str(tmp_path / "env"))
    cached = put(cache_folder() / NAMES[0])
    assert find_weights(NAMES) == cached
    in_env = put(tmp_path / "env" / "model.bin")
    assert find_weights(NAMES) == in_env
    named = put(tmp_path / "any name.bin")
    assert find_weights(NAMES, named) == named
    assert find_weights("other.bin", str(named)) == named


def test_an_explicit_path_is_the_only_place(tmp_path):
    put(cache_folder() / NAMES[0])
    opener, calls = serve(CONTENT)
    for path in (tmp_path, tmp_path / "missing.bin"):
        with pytest.raises(FileNotFoundError, match=str(path)):
            find_weights(NAMES, path, download=PUBLISHED, opener=opener)
    assert calls == []


def test_a_download_is_kept_and_not_repeated(tmp_path):
    opener, calls = serve(CONTENT)
    path = find_weights(NAMES, download=PUBLISHED, opener=opener)
    assert path.read_bytes() == CONTENT
    assert path == tmp_path / "cache" / "salcap" / "weights" / "net" / "model.bin"
    assert find_weights(NAMES, download=PUBLISHED, opener=opener) == path
    assert calls == [PUBLISHED.url]


@pytest.mark.parametrize(
    "content, message",
    [
        (CONTENT[:-1], f"got {len(CONTENT) - 1} bytes"),
        (CONTENT + b"x", f"got more than {len(CONTENT)} bytes"),
        (b"x" + CONTENT[1:], "with sha256 .*, got .* bytes with"),
        (b"", "got 0 bytes"),
    ],
)
def test_download_fails_on_another_file_and_leaves_nothing(content, message):
    opener, _ = serve(content)
    with pytest.raises(ValueError, match=f"example.org.* is not the file.*{message}"):
        find_weights(NAMES, download=PUBLISHED, opener=opener)
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []


def test_an_endless_download_is_cut_off():
    class Endless(io.RawIOBase):
        given = 0

        def read(self, count):
            self.given += count
            return bytes(count)

    stream = Endless()
    with pytest.raises(ValueError, match="got more than"):
        find_weights(NAMES, download=PUBLISHED, opener=lambda url: stream)
    assert stream.given < 2 * len(CONTENT)


def test_a_stopped_download_leaves_nothing_and_can_be_repeated():
    class Stopped(io.BytesIO):
        def read(self, count=-1):
            if self.tell() > 0:
                raise KeyboardInterrupt
            return super().read(count)

    with pytest.raises(KeyboardInterrupt):
        find_weights(NAMES, download=PUBLISHED, opener=lambda url: Stopped(CONTENT))
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []
    assert find_weights(NAMES, download=PUBLISHED, opener=serve(CONTENT)[0]).read_bytes() == CONTENT


def test_find_weights_fails_naming_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("SALCAP_WEIGHTS", str(tmp_path / "env"))

    def unreachable(url):
        raise ConnectionError("no route")

    with pytest.raises(OSError, match=r"no route.*get https://example.org/model.bin.* SALCAP_WEIGHTS"):
        find_weights(NAMES, download=PUBLISHED, opener=unreachable)
    with pytest.raises(FileNotFoundError, match="Name the file, or set SALCAP_WEIGHTS"):
        find_weights(NAMES)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "SALCAP_OFFLINE"])
@pytest.mark.parametrize("value, offline", [("1", True), ("true", True), ("0", False), ("", False)])
def test_offline_names_all_places_and_downloads_nothing(tmp_path, monkeypatch, variable, value, offline):
    monkeypatch.setenv("SALCAP_WEIGHTS", str(tmp_path / "env"))
    monkeypatch.setenv(variable, value)
    assert is_offline() is offline
    opener, calls = serve(CONTENT)
    if not offline:
        assert find_weights(NAMES, download=PUBLISHED, opener=opener).is_file()
        return
    with pytest.raises(FileNotFoundError) as info:
        find_weights(NAMES, download=PUBLISHED, opener=opener)
    for part in (tmp_path / "env" / NAMES[0], tmp_path / "env" / NAMES[1], cache_folder() / NAMES[0], PUBLISHED.url):
        assert str(part) in str(info.value)
    assert calls == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_nothing_but_https_is_opened(url):
    with pytest.raises(ValueError, match="https only"):
        Download(url, 1, "")
    with pytest.raises(OSError, match="unknown url type"):
        weights._open_https(url)
