"""``salcap.pipeline``: one thing in any order of imports; every kind of video in, dictionaries out."""

from __future__ import annotations

import inspect
import io
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
from test_captioners import make_clip
from test_exports import run_python
from transformers.pipelines import pt_utils

import salcap
from salcap.decoded import read_decoded
from salcap.pipeline import CaptionPipeline

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample.mp4"
FEW = {"num_frames": 2, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def tiny() -> tiny_models.Tiny:
    return tiny_models.git()


@pytest.fixture(scope="module")
def pipe(tiny: tiny_models.Tiny) -> CaptionPipeline:
    return salcap.pipeline(tiny.model, tiny.processor, keep_ratio=0.5, saliency="center")


class Numbered(torch.utils.data.Dataset):
    """Clips by index; like many data sets it never raises IndexError."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> torch.Tensor:
        return make_clip(index).pixels.permute(0, 2, 3, 1)


class Streamed(torch.utils.data.IterableDataset):
    def __iter__(self):
        return (Numbered()[index] for index in range(3))


def content(record: dict) -> dict:
    return {name: value for name, value in record.items() if name not in ("timings", "path")}


IMPORTS = (
    "import salcap",
    "import salcap.pipeline",
    "import salcap.cli; from salcap import pipeline; import salcap",
    "import salcap; salcap.pipeline; import salcap.pipeline",
    "import salcap; salcap.SaliencyCaptioner; from salcap.pipeline import pipeline",
    "from salcap import *; import salcap; assert pipeline is salcap.pipeline",
)


def test_the_pipeline_is_called_after_any_imports() -> None:
    code = f"""
import sys
for imports in {IMPORTS}:
    for name in [name for name in sys.modules if name.split(".")[0] == "salcap"]:
        del sys.modules[name]
    exec(imports)
    try:
        salcap.pipeline(42)
    except ValueError as error:
        print(error)
"""
    said = run_python(code).splitlines()
    assert said == ["model must be a hub id, a folder or a transformers model, got int"] * len(IMPORTS)


def test_its_signature_and_documentation_are_found() -> None:
    assert {"model", "processor", "seed"} < set(inspect.signature(salcap.pipeline).parameters)
    assert "transformers.pipeline" in salcap.pipeline.__doc__
    assert "Raises:" in salcap.pipeline.__doc__


def test_every_kind_of_one_video_gives_the_same_dictionary(pipe: CaptionPipeline) -> None:
    expected = pipe(str(SAMPLE), **FEW)
    assert expected == {**pipe.captioner.caption(SAMPLE, **FEW).to_dict(), "timings": expected["timings"]}
    assert expected["caption"]
    data = SAMPLE.read_bytes()
    with SAMPLE.open("rb") as file:
        for video in (
            SAMPLE,
            file,
            file,
            io.BytesIO(data),
            data,
            bytearray(data),
            memoryview(data),
        ):  # a file is left open, to be read again
            assert content(pipe(video, **FEW)) == content(expected)
        assert pipe(file, **FEW)["path"] == str(SAMPLE)
    assert pipe(data, **FEW)["path"] is pipe([b"no video"], **FEW)[0]["path"] is None
    assert pipe(data, frames="saliency", **FEW)["frames"] == "saliency"
    pixels = Numbered()[1]
    records = [
        pipe(video, **FEW) for video in (pixels, pixels.numpy(), salcap.Frames(pixels.permute(0, 3, 1, 2), [0, 1]))
    ]
    assert content(records[0]) == content(records[1]) == content(records[2])


def test_several_videos_give_a_list_or_an_iterator(pipe: CaptionPipeline, tmp_path: Path) -> None:
    singly = [content(pipe(video, **FEW)) for video in (Numbered()[0], Numbered()[1], Numbered()[2])]
    assert len({record["score"] for record in singly}) == 3
    stacked = np.stack([video.numpy() for video in Streamed()])
    for several in (Numbered, Streamed, lambda: iter(Streamed()), lambda: stacked):
        for batch_size in (1, 2):
            records = pipe(several(), batch_size=batch_size, **FEW)
            assert not isinstance(records, list)
            assert [record["caption"] for record in records] == [record["caption"] for record in singly]
    both = pipe([SAMPLE, tmp_path / "missing.mp4", 5], **FEW)
    assert isinstance(both, list)
    assert [record["error_class"] for record in both] == [None, "VideoDecodeError", "TypeError"]
    assert "open binary file" in both[2]["error"]
    assert pipe([]) == []


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_video_that_the_settings_do_not_fit_is_alone(tiny: tiny_models.Tiny, batch_size: int) -> None:
    pipe = salcap.pipeline(tiny.model, tiny.processor, saliency="center", mode="prune", max_visual_tokens=2)
    short, long = (np.zeros((length, 16, 24, 3), np.uint8) for length in (1, 3))
    records = pipe([short, long, short], batch_size=batch_size, num_frames=3, max_new_tokens=4)
    assert [record["error_class"] for record in records] == [None, "ValueError", None]
    assert records[1]["caption"] is None
    assert "max_visual_tokens" in records[1]["error"]
    with pytest.raises(ValueError, match="max_visual_tokens"):
        pipe([long, long], batch_size=batch_size, num_frames=3)
    for videos in ([short, short, "missing.mp4", long], ["missing.mp4", long, short]):
        classes = [record["error_class"] for record in pipe(videos, batch_size=2, num_frames=3, max_new_tokens=4)]
        assert classes == [{str: "VideoDecodeError"}.get(type(v), None if v is short else "ValueError") for v in videos]


def test_an_iterable_is_read_as_results_are_taken(pipe: CaptionPipeline) -> None:
    read: list[int] = []

    def endless():
        for index in range(10**9):
            read.append(index)
            yield Numbered()[index % 3]

    records = pipe(endless(), batch_size=2, **FEW)
    assert read == []
    first = [next(records) for _ in range(3)]
    assert read == [0, 1, 2, 3]
    assert all(record["caption"] for record in first)


def test_a_seed_repeats_what_is_sampled_and_leaves_the_callers_numbers_alone(tiny: tiny_models.Tiny) -> None:
    sampled = {"do_sample": True, "num_beams": 1, "temperature": 3.0, "max_new_tokens": 12}
    pipes = [salcap.pipeline(tiny.model, tiny.processor, seed=seed) for seed in (1, 1, 2, None)]
    video = Numbered()[1]
    torch.manual_seed(7)
    numbers = torch.rand(3)
    torch.manual_seed(7)
    texts = [pipe(video, **sampled)["caption"] for pipe in pipes[:3]]
    assert torch.equal(torch.rand(3), numbers)
    assert texts[0] == texts[1] != texts[2]
    assert [r["caption"] for r in pipes[0]([video, video], **sampled)] == texts[:1] * 2
    unseeded = {pipes[3](video, **sampled)["caption"] for _ in range(4)}
    assert len(unseeded) > 1
    chosen = [
        salcap.pipeline(tiny.model, tiny.processor, mode="prune", policy="random", keep_ratio=0.25, seed=seed)
        for seed in (1, 1, 2)
    ]
    scores = [pipe(SAMPLE, **FEW)["score"] for pipe in chosen]
    assert scores[0] == scores[1] != scores[2]


@pytest.mark.filterwarnings("error")
def test_frames_that_cannot_be_written_are_read(pipe: CaptionPipeline) -> None:
    frames = Numbered()[0].numpy()
    expected = pipe(frames, **FEW)
    frames.flags.writeable = False
    assert content(pipe(frames, **FEW)) == content(expected)


def test_device_and_dtype_are_taken(tiny: tiny_models.Tiny) -> None:
    pipe = salcap.pipeline(tiny_models.git().model, tiny.processor, device="cpu", dtype="bfloat16")
    assert pipe.captioner.captioner.model.dtype == torch.bfloat16
    assert pipe(Numbered()[1], max_new_tokens=3)["error"] is None


@pytest.mark.parametrize(
    "videos, options, error, message",
    [
        (5, {}, TypeError, "a video, or a list, iterable or data set of videos, got int"),
        (["a.mp4"], {"batch_size": 0}, ValueError, "batch_size must be a whole number from 1, got 0"),
        (["a.mp4"], {"batch_size": 1.5}, ValueError, "got 1.5"),
        (["a.mp4"], {"num_frames": 0}, ValueError, "frames, got 0"),
        (["a.mp4"], {"num_frames": 2.5}, ValueError, "frames, got 2.5"),
        (["a.mp4"], {"num_workers": -1}, ValueError, "num_workers must be a whole number from 0, got -1"),
        ("a.mp4", {"num_workers": 0.5}, ValueError, "num_workers must be a whole number from 0, got 0.5"),
        ("a.mp4", {"generate_kwargs": 5}, TypeError, "generate_kwargs must be a dict, got 5"),
        (
            "a.mp4",
            {"num_beams": 1, "generate_kwargs": {"num_beams": 2}},
            ValueError,
            "num_beams is given twice: 1, and",
        ),
        (
            {"video": "a.mp4"},
            {},
            TypeError,
            r"data set of videos, got dict; of rows with the columns video give one, as",
        ),
        (
            {"path": None, "bytes": None},
            {},
            TypeError,
            "Video column of datasets holds, got {'path': None, 'bytes': None}",
        ),
        ([{"video": "a.mp4", "label": 1}], {}, TypeError, r"columns video, label give one, as dataset\['video'\]"),
        ([["a.mp4", "b.mp4"]], {}, TypeError, "each video must be one, got a list of 2: give the data set itself"),
        (b"no video", {}, salcap.VideoDecodeError, "<file object>"),
        (io.StringIO("text"), {}, salcap.VideoDecodeError, "opened as text"),
        ("missing.mp4", {}, salcap.VideoDecodeError, r"missing\.mp4"),
        (torch.zeros(2, 3, 8, 8), {}, ValueError, r"\(T, H, W, 3\) uint8 RGB, got \(2, 3, 8, 8\) torch.float32"),
    ],
)
def test_what_is_no_video_fails(pipe: CaptionPipeline, videos, options, error, message) -> None:
    with pytest.raises(error, match=message):
        pipe(videos, **options)


# --- habits from transformers.pipeline ---


def test_the_device_of_transformers_for_the_cpu_and_the_older_name_of_dtype() -> None:
    tiny = tiny_models.git()
    for options in (
        {"torch_dtype": torch.bfloat16},
        {"model_kwargs": {"torch_dtype": "bfloat16"}},
        {"model_kwargs": {"dtype": "bfloat16"}},
        {"dtype": torch.bfloat16, "torch_dtype": torch.bfloat16},
    ):
        pipe = salcap.pipeline(tiny_models.git().model, tiny.processor, device=-1, **options)
        assert pipe.captioner.captioner.model.dtype == torch.bfloat16
        assert pipe.captioner.captioner.model.device == torch.device("cpu")
    parts = tiny.processor.image_processor, tiny.processor.tokenizer
    pipe = salcap.pipeline(tiny.model, image_processor=parts[0], tokenizer=parts[1])
    assert (pipe.captioner.captioner.image_processor, pipe.captioner.captioner.tokenizer) == parts


@pytest.mark.parametrize(
    "options, error, message",
    [
        (
            {"dtype": "float32", "torch_dtype": "bfloat16"},
            ValueError,
            "dtype is given twice: 'float32', and by torch_dtype",
        ),
        (
            {"mode": "none", "model_kwargs": {"mode": "prune"}},
            ValueError,
            "mode is given twice: 'none', and by model_kw",
        ),
        (
            {"max_new_tokens": 5},
            TypeError,
            r"does not take max_new_tokens; allowed: model, .*pipe\(video, max_new_tokens=20\)",
        ),
        ({"tokenizer": 5}, ValueError, "give a processor, or both a tokenizer and an image_processor"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number from 1, got 0"),
        ({"num_workers": True}, ValueError, "num_workers must be a whole number from 0, got True"),
    ],
)
def test_options_that_the_pipeline_does_not_take_fail(options, error, message) -> None:
    with pytest.raises(error, match=message):
        salcap.pipeline("salcap-mini", **options)


def test_arguments_of_generate_are_given_to_the_call_or_once_for_all(tiny: tiny_models.Tiny, pipe) -> None:
    expected = content(pipe(SAMPLE, num_frames=2, max_new_tokens=3, num_beams=2))
    assert expected != content(pipe(SAMPLE, num_frames=2, max_new_tokens=4, num_beams=2))
    generation = {"max_new_tokens": 3, "num_beams": 2}
    assert content(pipe(SAMPLE, num_frames=2, generate_kwargs=generation)) == expected
    assert content(pipe([SAMPLE], num_frames=2, generate_kwargs=generation)[0]) == expected
    kept = CaptionPipeline(pipe.captioner, generate_kwargs={"max_new_tokens": 4, "num_beams": 2})
    assert content(kept(SAMPLE, num_frames=2, max_new_tokens=3)) == expected
    assert content(kept(SAMPLE, num_frames=2, generate_kwargs={"max_new_tokens": 3})) == expected


@pytest.mark.parametrize("options", [{}, {"frames": "saliency"}, {"start_seconds": 0.5, "end_seconds": 1.0}])
@pytest.mark.parametrize("batch_size, num_workers", [(1, 1), (2, 3), (3, 1)])
def test_workers_change_nothing_but_who_reads(
    pipe, tmp_path: Path, batch_size, num_workers, options, monkeypatch
) -> None:
    with SAMPLE.open("rb") as file:
        videos = [SAMPLE, tmp_path / "missing.mp4", file, SAMPLE.read_bytes(), Numbered()[1], 5, str(SAMPLE)]
        expected = pipe(videos, **FEW, **options)
        assert [record["error_class"] for record in expected[:3]] == [None, "VideoDecodeError", None]
        readers: list[str] = []
        read = salcap.sources.read_frames

        def noting(*arguments, **options):
            readers.append(threading.current_thread().name)
            return read(*arguments, **options)

        monkeypatch.setattr(salcap.sources, "read_frames", noting)
        records = pipe(videos, batch_size=batch_size, num_workers=num_workers, **FEW, **options)
    assert [record["path"] for record in records] == [record["path"] for record in expected]
    assert [record["caption"] for record in records] == [record["caption"] for record in expected]
    assert [record["error"] for record in records] == [record["error"] for record in expected]
    assert sum(name.startswith("salcap-read") for name in readers) == 4
    kept = CaptionPipeline(pipe.captioner, batch_size=batch_size, num_workers=num_workers)
    assert [record["caption"] for record in kept(videos[3:], **FEW)] == [
        record["caption"] for record in pipe(videos[3:], **FEW)
    ]


def test_workers_read_no_further_ahead_than_they_must(pipe) -> None:
    taken: list[int] = []

    def endless():
        for index in range(10**9):
            taken.append(index)
            yield str(SAMPLE)

    records = pipe(endless(), batch_size=2, num_workers=3, **FEW)
    assert taken == []
    assert next(records)["caption"]
    assert len(taken) <= 2 + 2 + 3
    records.close()


# --- videos of a data set ---


class StubDecoder:
    """The interface of torchcodec's VideoDecoder that is used, over frames in memory; the clock starts at 5 s."""

    def __init__(self, frames: salcap.Frames, end: float, order: str = "NCHW") -> None:
        self.frames, self.order = frames, order
        self.metadata = SimpleNamespace(begin_stream_seconds=5.0, end_stream_seconds=5.0 + end)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.frames.pixels[index]

    def get_frames_played_at(self, seconds: list[float]) -> SimpleNamespace:
        times = self.frames.pts_seconds + 5.0
        assert all(5.0 <= second < self.metadata.end_stream_seconds for second in seconds)
        chosen = self.frames.take(torch.searchsorted(times, torch.tensor(seconds).double(), right=True) - 1)
        pixels = chosen.pixels.permute(0, 2, 3, 1) if self.order == "NHWC" else chosen.pixels
        return SimpleNamespace(data=pixels, pts_seconds=chosen.pts_seconds + 5.0)


@pytest.fixture(scope="module")
def whole() -> salcap.Frames:
    return salcap.read_frames(SAMPLE, 1000)


def test_a_video_of_a_data_set_is_its_file_or_bytes(pipe: CaptionPipeline, whole, tmp_path: Path) -> None:
    expected, data = content(pipe(SAMPLE, **FEW)), SAMPLE.read_bytes()
    decoder = StubDecoder(whole.take(torch.arange(1)), 1.0)  # which is not asked where there is a file
    for held in ({"path": str(SAMPLE), "bytes": None}, {"path": "elsewhere.mp4", "bytes": data}, {"bytes": data}):
        record = pipe(held, **FEW)
        assert content(record) == expected
        assert record["path"] == held.get("path")
        decoder._hf_encoded = held
        assert content(pipe(decoder, **FEW)) == expected
    rows = [{"path": str(SAMPLE), "bytes": None}, {"path": "missing.mp4", "bytes": None}, {"path": None, "bytes": None}]
    for videos in (rows, iter(rows)):
        for num_workers in (0, 2):
            records = list(pipe(videos if videos is rows else iter(rows), num_workers=num_workers, **FEW))
            assert [record["error_class"] for record in records] == [None, "VideoDecodeError", "TypeError"]
            assert content(records[0]) == expected
    column = pt_utils.KeyDataset([{"video": row, "label": 1} for row in rows], "video")
    assert [record["error_class"] for record in pipe(column, **FEW)] == [None, "VideoDecodeError", "TypeError"]
    windows = [list(pipe.captioner.caption_windows(video, 1.0, **FEW)) for video in (SAMPLE, rows[0])]
    assert [caption.text for caption in windows[0]] == [caption.text for caption in windows[1]]


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_a_decoder_gives_the_frames_that_its_file_gives(pipe: CaptionPipeline, whole, order: str) -> None:
    decoder = StubDecoder(whole, whole.clip_seconds[1], order)
    for options in ({}, {"start_seconds": 0.7}, {"start_seconds": 0.2, "end_seconds": 1.1}, {"end_seconds": 99.0}):
        ours, theirs = read_decoded(decoder, 5, **options), salcap.read_frames(SAMPLE, 5, **options)
        assert torch.equal(ours.pixels, theirs.pixels)
        torch.testing.assert_close(ours.pts_seconds, theirs.pts_seconds)
    few = read_decoded(StubDecoder(whole.take(torch.arange(2)), 2 / 24), 5)
    assert (len(few), few.warnings) == (2, ("asked for 5 frames, the clip gave 2",))
    with pytest.raises(ValueError, match="the clip starts at 99 s, but the video ends after"):
        read_decoded(decoder, 5, 99.0)
    record = pipe(decoder, **FEW)
    assert record["frame_pts_seconds"] == pipe(SAMPLE, **FEW)["frame_pts_seconds"]
    assert [each["caption"] for each in pipe([decoder], num_workers=1, **FEW)] == [record["caption"]]
    with pytest.raises(TypeError, match=r"windows are cut out of files .* got StubDecoder"):
        next(pipe.captioner.caption_windows(decoder, 1.0))
