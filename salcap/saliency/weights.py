"""Published weights that salcap does not ship: found on this machine, or downloaded once and checked."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# A url in, a binary stream out
Opener = Callable[[str], AbstractContextManager[BinaryIO]]

_TIMEOUT_SECONDS = 30
_CHUNK = 1 << 16
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Download:
    """Where a file is published, and what it must be.

    Raises:
        ValueError: an address that is not https.
    """

    url: str
    num_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not self.url.startswith("https://"):
            raise ValueError(f"weights are downloaded over https only, got {self.url!r}")


def find_weights(
    file_names: str | Sequence[str],
    path: str | os.PathLike[str] | None = None,
    *,
    download: Download | None = None,
    opener: Opener | None = None,
) -> Path:
    """Find a file of weights: at ``path``, else in the folder $SALCAP_WEIGHTS, else in the cache, else download it.

    Args:
        file_names: what the file may be called inside a folder, best first, sub-folders with "/"; the first is also its
            place in the cache folder (see `cache_folder`).
        path: the file itself, whatever its name, or a folder that holds it; nothing else is looked at then.
        download: where users get it; None where it is not published.
        opener: opens the address instead of the network.

    Raises:
        FileNotFoundError: it is nowhere, and there is no download or HF_HUB_OFFLINE or SALCAP_OFFLINE forbids it; all
            places that were looked at are named.
        ValueError: the downloaded file is not the published one.
        OSError: the download failed.
    """
    names = (file_names,) if isinstance(file_names, str) else tuple(file_names)
    if path is not None:
        path = Path(path).expanduser()
        places = [path / name for name in names] if path.is_dir() else [path]
    else:
        folder = os.environ.get("SALCAP_WEIGHTS")
        places = [Path(folder).expanduser() / name for name in names] if folder else []
        places.append(cache_folder() / names[0])
    for place in places:
        if place.is_file():
            return place
    missing = f"no weights {names[0]}; looked at {', '.join(map(str, places))}"
    if path is not None:
        raise FileNotFoundError(missing)
    if download is None:
        raise FileNotFoundError(f"{missing}. Name the file, or set SALCAP_WEIGHTS to the folder that holds it")
    by_hand = f"get {download.url}, and name that file or set SALCAP_WEIGHTS to the folder that holds it as {names[-1]}"
    if is_offline():
        raise FileNotFoundError(
            f"{missing}. HF_HUB_OFFLINE or SALCAP_OFFLINE is set, so nothing is downloaded: {by_hand}"
        )
    _logger.info("downloading %s to %s", download.url, places[-1])
    try:
        return _download(download, places[-1], opener or _open_https)
    except OSError as error:
        raise OSError(f"{missing}. The download failed ({error}): {by_hand}") from error


def cache_folder() -> Path:
    """Where downloaded weights are kept: $XDG_CACHE_HOME/salcap/weights, by default below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "salcap" / "weights"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or SALCAP_OFFLINE forbids downloads; read at every call."""
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in _OFFLINE)


_OFFLINE = ("HF_HUB_OFFLINE", "SALCAP_OFFLINE")


def _download(source: Download, target: Path, opener: Opener) -> Path:
    """Write the file at one stroke, once its size and hash are right."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, count = hashlib.sha256(), 0
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            with opener(source.url) as stream:
                while count <= source.num_bytes and (chunk := stream.read(_CHUNK)):
                    digest.update(chunk)
                    count += len(chunk)
                    file.write(chunk)
            if count != source.num_bytes or digest.hexdigest() != source.sha256:
                size = f"more than {source.num_bytes}" if count > source.num_bytes else f"{count}"
                raise ValueError(
                    f"{source.url} is not the file that salcap knows: expected {source.num_bytes} bytes with sha256"
                    f" {source.sha256}, got {size} bytes with {digest.hexdigest()}"
                )
            file.close()
            os.replace(file.name, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise
    return target


def _open_https(url: str) -> AbstractContextManager[BinaryIO]:
    """Open an address with no handler but https, so that a redirection to anything else fails."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener.open(url, timeout=_TIMEOUT_SECONDS)
