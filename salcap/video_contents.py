"""What a file is that was to be a video and is not, from its first bytes, in words that say what to do about it."""

from __future__ import annotations

import codecs
import re
from textwrap import shorten

HEAD_BYTES = 4096

_SIGNATURES = (  # the beginning, as a regular expression; what it is
    (rb"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer, not the video itself: run 'git lfs pull'"),
    (rb"version https://hawser\.github\.com/spec/", "a Git LFS pointer, not the video itself: run 'git lfs pull'"),
    (rb"\0\x05\x16[\0\x07]", "an AppleDouble file of macOS ('._name'), not the video: take the file of that name"),
    (rb"Salted__", "encrypted by OpenSSL: decrypt it first"),
    (rb"-----BEGIN PGP MESSAGE|age-encryption\.org/", "encrypted: decrypt it first"),
    (rb"PK\x03\x04", "a ZIP archive: unpack it first"),
    (rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ\0|\x28\xb5\x2f\xfd", "a compressed file: unpack it first"),
    (rb"Rar!\x1a\x07|7z\xbc\xaf\x27\x1c", "an archive: unpack it first"),
    (rb"(?s).{257}ustar", "a tar archive: unpack it first"),
    (rb"%PDF-", "a PDF document"),
    (rb"\x7fELF|MZ", "a program"),
    (rb"\x89HDF\r\n|\x93NUMPY", "an array file, not a video"),
)
_TEXTS = (  # the last one is what all other text is
    (r"(<!--.*?-->\s*)?<(!doctype\s+html|html|head|body)\b", "an HTML page, as failed downloads leave it"),
    (r"<\?xml|<[a-z][\w:.-]*[\s/>]", "XML, as failed downloads leave it"),
    (r"[\[{]", "JSON, as failed downloads leave it"),
    (r"#EXTM3U|ffconcat version|\[playlist\]", "a playlist (other files that one names are not opened)"),
    (r"", "text"),
)
_NOT_IN_TEXT = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_TS_PACKET = 188


def describe_contents(head: bytes) -> str | None:
    """What the first `HEAD_BYTES` bytes of a file without a readable frame show it to be; None: perhaps a video."""
    if not head:
        return "the file is empty (0 bytes)"
    for pattern, words in _SIGNATURES:
        if re.match(pattern, head):
            return f"the file is {words}"
    if is_animated_webp(head):
        return (
            "the file is an animated WebP, which FFmpeg does not decode: convert it, for instance with Pillow's "
            "Image.save(name + '.gif', save_all=True), or pass its frames as an array (T, H, W, 3)"
        )
    if _is_scrambled(head):
        return "the stream is encrypted (scrambled MPEG-TS): decrypt it first"
    if not head.strip(b"\0"):
        return f"the file begins with {len(head)} zero bytes: its download or copy may not have been finished"
    return _describe_text(head)


def is_animated_webp(head: bytes) -> bool:
    """Whether a file is a WebP with the animation flag."""
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20 and bool(head[20] & 2)


def _is_scrambled(head: bytes) -> bool:
    """Whether the packets of an MPEG transport stream say that they are scrambled."""
    packets = [head[at : at + 4] for at in range(0, len(head) - 3, _TS_PACKET)]
    return len(packets) > 2 and all(each[0] == 0x47 for each in packets) and any(each[3] & 0x80 for each in packets)


def _describe_text(head: bytes) -> str | None:
    """Text by its kind and its beginning; None: not text."""
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    decoder = codecs.getincrementaldecoder(encoding)()  # which may end within a character
    try:
        text = decoder.decode(head, final=len(head) < HEAD_BYTES).lstrip()
    except UnicodeDecodeError:
        return None
    if _NOT_IN_TEXT.search(text):
        return None
    kind = next(words for pattern, words in _TEXTS if re.match(pattern, text, re.IGNORECASE | re.DOTALL))
    return f"the file is {kind}, not a video; it begins {shorten(text, 80)!r}"
