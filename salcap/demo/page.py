"""The page: its controls, and what happens when they are used. With server.py the only file that knows gradio."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from salcap.captioners.registry import BUNDLED
from salcap.config import MODES, POLICIES
from salcap.demo import view
from salcap.demo.columns import EVERY, FORMATS, ROLES, Column, Settings, caption_column, open_clip, write_export
from salcap.demo.models import Models
from salcap.pictures.draw import draw_saliency, picture_size
from salcap.records import as_text
from salcap.saliency import list_saliency
from salcap.video import VideoDecodeError, VideoInfo, probe, read_frames

STUDENT, TEACHER = "uva_net", "effnet_teacher"  # both bundled
OVERLAY_SECONDS = 6.0  # a teacher may take a second for a frame
MOST_FRAMES = 16
_POSTER_SIDE = 240  # pixels
_KEPT_SECONDS = 86400  # uploads and results that are older are deleted
_MODES = [mode for mode in MODES if mode != "none"]
_RESULT = "result-"
_SELECTED = ("student", ".jsonl")  # for export, at first
_START = view.message("Choose a video, then press Caption.")

Updates = dict[Any, Any]  # component -> its new value, or an update of it


class Page:
    """A gradio page in front of `Models`.

    Args:
        folder: where uploads and results are; nothing else is served.
        videos: to pick from.
        models: captioners to choose from beside the bundled ones, as `SaliencyCaptioner.from_pretrained` takes them.
        saliency: backbones to choose from beside the registered ones.
    """

    def __init__(
        self,
        gradio: Any,
        folder: Path,
        loaded: Models,
        videos: Sequence[str],
        models: Sequence[str],
        saliency: Sequence[str],
    ) -> None:
        self._gradio, self._folder, self._loaded = gradio, folder, loaded
        self._working, self._closing = threading.Lock(), False
        self._videos = {as_text(video): video for video in videos}
        self._models = list(dict.fromkeys((*BUNDLED, *models)))
        self._saliency = list(dict.fromkeys((*list_saliency(), *saliency)))

    def build(self) -> Any:
        """The page as ``gradio.Blocks``."""
        gr = self._gradio
        with gr.Blocks(
            title="salcap", analytics_enabled=False, fill_width=True, delete_cache=(3600, _KEPT_SECONDS)
        ) as page:
            gr.HTML("<h1>salcap</h1><p>A caption, and where people would look in the video.</p>")
            with gr.Row(equal_height=False):
                with gr.Column(scale=1, min_width=300):
                    self._lay_out_controls()
                with gr.Column(scale=3, min_width=300):
                    self._lay_out_results()
            self._connect()
        return page

    def close(self) -> None:
        """Have work end at its next step, and wait: a thread that is cut off in native code takes the process along."""
        self._closing = True
        with self._working:
            pass

    def _lay_out_controls(self) -> None:
        gr = self._gradio
        with gr.Group():
            self.upload = gr.File(label="Video", height=120)
            self.pick = gr.Dropdown(
                list(self._videos), value=None, label="Or pick one", visible=bool(self._videos), filterable=False
            )
        self.facts = gr.HTML()
        self.run = gr.Button("Caption", variant="primary")
        self.status = gr.HTML(_START, min_height=56)
        with gr.Group():
            self.model = gr.Dropdown(self._models, value=self._models[0], label="Captioner", filterable=False)
            self.student = gr.Dropdown(self._saliency, value=STUDENT, label="Student", filterable=False)
            self.teacher = gr.Dropdown(self._saliency, value=TEACHER, label="Teacher", filterable=False)
            self.modes = gr.CheckboxGroup(_MODES, value=["prune"], label="What saliency does (modes)")
            self.policy = gr.Dropdown(
                POLICIES, value="foveate", label="Which patches prune keeps (policy)", filterable=False
            )
            self.keep_ratio = gr.Slider(
                0.05, 1.0, 0.5, step=0.05, label="Share of patches it keeps (keep ratio)", buttons=[]
            )
            self.num_frames = gr.Slider(1, MOST_FRAMES, 8, step=1, label="Frames", buttons=[])

    def _lay_out_results(self) -> None:
        gr = self._gradio
        gr.HTML("<h2>Captions</h2>")
        self.captions = gr.HTML(view.cards((), ROLES))
        gr.HTML("<h2>Where people look</h2>")
        with gr.Row(elem_classes="wrapping"):
            self.overlays = {role: gr.HTML() for role in ROLES[1:]}
        gr.HTML("<h2>What the captioner keeps</h2>")
        self.patches = gr.HTML()
        gr.HTML("<h2>Export</h2>")
        with gr.Row(elem_classes="wrapping"):
            columns = [(role.title(), role) for role in ROLES] + [("All three", EVERY)]
            self.role = gr.Dropdown(columns, value=_SELECTED[0], label="Caption of", filterable=False)
            self.format = gr.Dropdown(FORMATS, value=_SELECTED[1], label="Format", filterable=False)
        self.download = gr.HTML(view.download(None))

    def _connect(self) -> None:
        gr = self._gradio
        self.columns = gr.State([])
        private = {"api_visibility": "private"}
        quiet = {**private, "show_progress": "hidden"}
        self.pick.input(self.pick_video, self.pick, [self.upload, self.status], **quiet)
        self.upload.change(self.look_at, self.upload, [self.facts, self.status], **quiet)
        choices = [self.model, self.student, self.teacher, self.modes, self.policy, self.keep_ratio, self.num_frames]
        results = [self.status, self.captions, self.patches, *self.overlays.values(), self.columns]
        exporting = {"inputs": [self.columns, self.role, self.format], "outputs": [self.download], **quiet}

        # gradio finds its progress by the default value
        def caption(video: str | None, *chosen: Any, progress: Any = gr.Progress()) -> Iterator[Updates]:  # noqa: B008
            yield from self.caption(video, *chosen, progress=progress)

        self.run.click(
            caption,
            [self.upload, *choices],
            results,
            show_progress_on=self.status,
            concurrency_limit=1,
            **private,
        ).then(self.export, **exporting)
        for chooser in (self.role, self.format):
            chooser.input(self.export, **exporting)

    def pick_video(self, video: str | None) -> Updates:
        """Put a video to pick from where uploads are."""
        if video is None:
            return self._gradio.skip()
        try:
            source = Path(self._videos[video])
            return {self.upload: str(shutil.copy(source, self._new_folder() / as_text(source.name)))}
        except OSError as error:
            return {self.status: view.alarm(f"{video}: {error.strerror or error}")}

    def look_at(self, video: str | None) -> Updates:
        """Show what a file is, or what is wrong with it."""
        if video is None:
            return {self.facts: "", self.status: _START}
        try:
            info, aspect = _probe(video)
            first = read_frames(video, 1, shortest_side=_POSTER_SIDE)
        except VideoDecodeError as error:
            return {self.facts: "", self.status: _unreadable(error)}
        return {self.facts: view.facts(info, first, aspect), self.status: view.message("Ready: press Caption.")}

    def caption(self, video: str | None, *chosen: Any, progress: Any) -> Iterator[Updates]:
        """Fill the page, column by column."""
        gone = dict.fromkeys((self.patches, *self.overlays.values()), "")
        if video is None:
            yield {self.status: view.alarm("No video is chosen.")}
            return
        try:
            model, student, teacher, modes, policy, keep_ratio, num_frames = chosen
            settings = Settings(model, student, teacher, tuple(modes), policy, keep_ratio, int(num_frames))
            info, aspect = _probe(video)
        except (ValueError, VideoDecodeError) as error:
            words = _unreadable(error) if isinstance(error, VideoDecodeError) else view.alarm(str(error))
            yield {self.status: words, self.captions: view.cards((), ROLES), self.columns: [], **gone}
            return
        clip, columns = open_clip(video, settings), list[Column]()
        yield {self.captions: view.cards((), ROLES), self.columns: [], **gone}
        for number, role in enumerate(ROLES):
            progress((number, len(ROLES)), f"Captioning, {role}", unit="columns")
            with self._working:
                if self._closing:
                    return
                columns.append(caption_column(self._loaded, clip, settings, role, aspect))
            yield {self.captions: view.cards(columns, ROLES[number + 1 :])}
        yield {self.patches: view.patches(columns), self.columns: columns}
        for column in columns[1:]:
            with self._working:
                overlay = self._overlay(column, info, video, progress)
            yield {self.overlays[column.role]: overlay}
        failed = [column.role for column in columns if column.caption.error is not None]
        yield {self.status: view.message(f"Done, without {' and '.join(failed)}." if failed else "Done.")}

    def _overlay(self, column: Column, info: VideoInfo, video: str, progress: Any) -> str:
        role, backbone = column.role, column.arm.saliency or ""
        end = OVERLAY_SECONDS if info.duration_seconds > OVERLAY_SECONDS else None
        part = f"its first {end:.0f} s; salcap saliency draws all" if end else "all of it"
        done = 0.0

        def advance(seconds: float, total: float) -> None:
            nonlocal done
            if self._closing:
                raise InterruptedError("the page is closed")
            done += seconds
            progress((round(done, 1), round(total, 1)), f"Drawing, {role}", unit="s of video")

        try:
            looker = self._loaded.backbone(backbone)
            output = self._new_folder() / "overlay.mp4"
            drawing = draw_saliency(video, output, looker, end_seconds=end, progress=advance)
        except Exception as error:  # as in `caption_column`
            words = str(error) or type(error).__name__
            known = words == column.caption.error
            return view.overlay_failed(role, backbone, "no map, for the reason above" if known else words)
        return view.overlay(role, backbone, output, f"{drawing.num_frames} frames, {part}")

    def export(self, columns: list[Column], role: str, suffix: str) -> Updates:
        """Have the chosen captions ready as a file."""
        if not columns:
            return {self.download: view.download(None)}
        try:
            path = write_export(columns, role, suffix, self._new_folder())
        except (ValueError, ImportError) as error:
            return {self.download: view.alarm(str(error))}
        except OSError as error:
            return {self.download: view.alarm(f"cannot write the file: {error.strerror or error}")}
        return {self.download: view.download(path)}

    def _new_folder(self) -> Path:
        for folder in self._folder.glob(f"{_RESULT}*"):
            if time.time() - folder.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=_RESULT, dir=self._folder))


def _probe(video: str) -> tuple[VideoInfo, float]:
    """What is known of a video, and the width of its pictures over their height."""
    info = probe(video)
    height, width = picture_size(info, _POSTER_SIDE)
    return info, width / height


def _unreadable(error: VideoDecodeError) -> str:
    return view.alarm(f"Cannot read {Path(error.path).name} as a video: {error.message}")
