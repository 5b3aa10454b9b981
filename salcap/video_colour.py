"""Colours of a decoded frame as the 8 bit sRGB that captioners were trained on.

Ordinary video goes through swscale as it is. HDR (PQ and HLG) and wide gamuts (BT.2020 and Display P3) are converted
here, because swscale alone would take their code values for those of BT.709 and give pale, dark pictures.
"""

from __future__ import annotations

from functools import cache

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter

SCALING = 4 | 0x2000 | 0x40000  # swscale's BICUBIC, FULL_CHR_H_INT, ACCURATE_RND: PyAV 17 has no names for flags

# Matrices by their number in ITU-T H.273, which FFmpeg shares; swscale knows those below 8 and BT.2020's
_RGB, _BT709, _UNSPECIFIED, _RESERVED, _BT601, _BT2020 = 0, 1, 2, 3, 5, 9
_NAMES = {8: "YCgCo", 10: "BT.2020 constant luminance", 14: "ICtCp", 15: "IPT-PQ-C2"}

_HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
_WHITE_NITS = 203.0  # of diffuse white in HDR, ITU-R BT.2408
_PEAK_NITS = 1000.0  # of the display that HLG is defined for; brighter light in PQ becomes white
_KNEE = 0.9  # of diffuse white: darker colours keep their light, brighter ones share what is left
_GAMUTS: dict[int, np.ndarray] = {  # to sRGB, in linear light: ITU-R BT.2087, and the same for Display P3
    ColorPrimaries.BT2020: np.array(
        ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)), np.float32
    ),
    ColorPrimaries.SMPTE432: np.array(
        ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)), np.float32
    ),
}
_ROWS = 64
_LUMINANCE = np.array((0.2627, 0.6780, 0.0593), np.float32)  # of BT.2020


def to_srgb(frame: av.VideoFrame, reformatter: VideoReformatter, width: int, height: int) -> np.ndarray:
    """Convert a decoded frame to sRGB, scaled.

    PQ and HLG are tone-mapped: colours up to 90 % of diffuse white (203 cd/m2) look as they do in SDR, and highlights
    up to 1,000 cd/m2 are compressed into the rest, with their hue kept. Frames that do not state their matrix are
    BT.709 if they are HD and BT.601 otherwise, as in mpv. Full and limited range are taken from the frame.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: a colour matrix that is not supported.
    """
    curve = ColorTrc(frame.color_trc) if frame.color_trc in _HDR else None
    gamut = _GAMUTS.get(frame.color_primaries)
    if curve is not None and gamut is None:  # HDR is BT.2020 unless it says otherwise
        is_709 = frame.color_primaries == ColorPrimaries.BT709
        gamut = np.eye(3, dtype=np.float32) if is_709 else _GAMUTS[ColorPrimaries.BT2020]
    scaling = None if (frame.height, frame.width) == (height, width) else SCALING
    kind, matrix = "rgb24" if gamut is None else "rgb48le", _matrix(frame, curve is not None)
    picture = reformatter.reformat(frame, width, height, kind, matrix, interpolation=scaling, threads=1).to_ndarray()
    return picture if gamut is None else _convert(picture, curve, gamut)


def _matrix(frame: av.VideoFrame, is_hdr: bool) -> int | None:
    """The matrix to read a frame with; None: the one that it states."""
    stated = frame.colorspace
    if stated not in (_UNSPECIFIED, _RESERVED):
        if stated < 8 or stated == _BT2020:
            return None
        raise ValueError(f"its colour matrix {_NAMES.get(stated, stated)} is not supported")
    if frame.format.is_rgb:
        return None
    if is_hdr or frame.color_primaries == ColorPrimaries.BT2020:
        return _BT2020
    if frame.width >= 1280 or frame.height > 576:
        return _BT709
    return None if stated == _UNSPECIFIED else _BT601


def _convert(picture: np.ndarray, curve: ColorTrc | None, gamut: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint16 RGB of a transfer curve and gamut as uint8 sRGB, some rows at a time to save memory."""
    converted = np.empty(picture.shape, np.uint8)
    for top in range(0, len(picture), _ROWS):
        rows = slice(top, top + _ROWS)
        converted[rows] = _convert_rows(picture[rows], curve, gamut)
    return converted


def _convert_rows(picture: np.ndarray, curve: ColorTrc | None, gamut: np.ndarray) -> np.ndarray:
    light = _light(curve)[picture]
    if curve == ColorTrc.ARIB_STD_B67:  # the scene's light: the display adds contrast (BT.2100's OOTF, gamma 1.2)
        light *= (light @ _LUMINANCE)[..., None] ** 0.2 * (_PEAK_NITS / _WHITE_NITS)
    light = light @ gamut.T
    if curve is not None:
        brightest = np.maximum(light.max(-1, keepdims=True), 1e-6)
        light *= _compressed(brightest) / brightest
    return _encoding(curve is not None)[(light.clip(0.0, 1.0) * 65535 + 0.5).astype(np.uint16)]


def _compressed(light: np.ndarray) -> np.ndarray:
    """Tone-mapped light, 1 being white: the same up to the knee, then Reinhard's curve from there to the peak."""
    above = np.maximum(light - _KNEE, 0.0) / (1 - _KNEE)
    peak = (_PEAK_NITS / _WHITE_NITS - _KNEE) / (1 - _KNEE)
    return np.minimum(light, _KNEE) + (1 - _KNEE) * np.minimum(above * (1 + above / peak**2) / (1 + above), 1.0)


@cache
def _light(curve: ColorTrc | None) -> np.ndarray:
    """Linear light of each 16 bit code value, 1 being diffuse white; of HLG the scene's, 1 being its peak."""
    code = np.arange(65536) / 65535
    if curve == ColorTrc.SMPTE2084:
        power = code ** (1 / 78.84375)
        light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        light *= 10000 / _WHITE_NITS
    elif curve == ColorTrc.ARIB_STD_B67:
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    else:
        light = code**2.4  # BT.1886
    return light.astype(np.float32)


@cache
def _encoding(is_hdr: bool) -> np.ndarray:
    """8 bit code value of each 16 bit share of white: sRGB's curve, or for SDR the inverse of the one it came by."""
    light = np.arange(65536) / 65535
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * (srgb if is_hdr else light ** (1 / 2.4))).astype(np.uint8)
