"""What a video is, without reading it."""

from __future__ import annotations

from salcap.video_geometry import orientation
from salcap.video_info import VideoInfo, VideoLimits
from salcap.video_open import VideoPath
from salcap.video_reader import DEFAULT_LIMITS, _Video


def probe(path: VideoPath, limits: VideoLimits = DEFAULT_LIMITS) -> VideoInfo:
    """Look at a video: decode its first frame, find its end from packets.

    Args:
        path: as for `salcap.video.read_frames`.
        limits: what the file may cost.

    Raises:
        VideoDecodeError: as `salcap.video.read_frames`.
    """
    with _Video(path, limits) as video:
        stream, frame = video.stream, video.first[1]
        a, b, _, _ = orientation(frame)
        return VideoInfo(
            path=video.name,
            duration_seconds=video.seconds(video.end),
            width=video.size[1],
            height=video.size[0],
            fps=float(stream.average_rate) if stream.average_rate else None,
            codec=stream.codec_context.name,
            container=video.container.format.name,
            pixel_format=frame.format.name,
            rotation={(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}[a, b],
            num_frames_stated=stream.frames or None,
            sample_aspect_ratio=float(video.stated_aspect()),
            first_frame_seconds=video.seconds(video.origin),
            start_pts_seconds=float(video.zero * video.time_base),
            warnings=video.warnings(),
        )
