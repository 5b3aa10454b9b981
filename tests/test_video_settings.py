"""A checkpoint's settings for videos: as many visual tokens as transformers' own video processor makes."""

from __future__ import annotations

import ast
import json
import math
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_multimodal
import torch

from salcap import Frames, SaliencyCaptioner
from salcap.captioners import load_captioner
from salcap.captioners.qwen3_vl import video_size

MODULES = {
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_vl",
    "qwen3_vl": "qwen3_vl",
    "video_llama_3": "video_llama_3",
}
FACTOR = 8  # pixels on the side of a token in the tiny models


def their_smart_resize(family: str) -> Any:
    """Of the video processor's module, which cannot be imported without torchvision."""
    module = MODULES[family]
    spec = find_spec(f"transformers.models.{module}")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).with_name(f"video_processing_{module}.py").read_text()
    (function,) = [
        node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "smart_resize"
    ]
    names: dict[str, Any] = {"math": math}
    exec(compile(ast.Module([function], []), module, "exec"), names)
    return names["smart_resize"]


def their_tokens(family: str, num_frames: int, height: int, width: int, least: int, most: int) -> int:
    resize = their_smart_resize(family)
    limits = {"factor": FACTOR, "min_pixels": least, "max_pixels": most}
    if family == "qwen3_vl":
        height, width = resize(num_frames, height, width, temporal_factor=2, **limits)
    elif family == "video_llama_3":
        height, width = resize(height, width, **{**limits, "max_pixels": most // num_frames})
    else:
        height, width = resize(height, width, **limits)
    span = 1 if family == "video_llama_3" else 2
    return math.ceil(num_frames / span) * (height // FACTOR) * (width // FACTOR)


def save(family: str, folder: Path) -> dict[str, Any]:
    """A model's folder; returns the settings of its image processor."""
    tiny = getattr(tiny_multimodal, family, None) or tiny_multimodal.FAMILIES[family]
    tiny = tiny()
    tiny.model.save_pretrained(folder)
    tiny.processor.tokenizer.chat_template = getattr(tiny.processor, "chat_template", None)
    tiny.processor.tokenizer.save_pretrained(folder)
    tiny.processor.image_processor.save_pretrained(folder)
    return json.loads((folder / "preprocessor_config.json").read_text())


def noise(num_frames: int, height: int = 60, width: int = 84) -> Frames:
    generator = torch.Generator().manual_seed(num_frames)
    pixels = torch.randint(0, 256, (num_frames, 3, height, width), generator=generator, dtype=torch.uint8)
    return Frames(pixels, torch.arange(num_frames))


def put(folder: Path, where: str, settings: dict[str, Any]) -> None:
    if where == "own file":
        (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    else:
        (folder / "processor_config.json").write_text(json.dumps({"video_processor": settings}))


@pytest.mark.parametrize("where", ["own file", "processor"])
@pytest.mark.parametrize("limits", [(576, 20000), (576, 2000), (9000, 40000)])
@pytest.mark.parametrize("family", MODULES)
def test_as_many_tokens_as_the_video_processor_makes(family, limits, where, tmp_path):
    settings = save(family, tmp_path)
    least, most = limits
    del settings["image_processor_type"]
    settings |= {"size": {"shortest_edge": least, "longest_edge": most}, "merge_size": 2}
    put(tmp_path, where, {**settings, "video_processor_type": "of the family"})
    captioner = SaliencyCaptioner.from_pretrained(str(tmp_path), mode="none")
    for num_frames in (2, 3, 5, 8):
        made = captioner.caption(noise(num_frames), num_frames=num_frames, max_new_tokens=1).visual_tokens
        assert made == their_tokens(family, num_frames, 60, 84, least, most)


@pytest.mark.parametrize("family", MODULES)
def test_settings_for_images_hold_where_a_checkpoint_has_no_others(family, tmp_path):
    size = save(family, tmp_path)["size"]
    captioner = SaliencyCaptioner.from_pretrained(str(tmp_path), mode="none")
    made = captioner.caption(noise(6), num_frames=6, max_new_tokens=1).visual_tokens
    assert made == their_tokens(family, 6, 60, 84, size["shortest_edge"], size["longest_edge"])


def test_limits_in_the_words_of_older_files(tmp_path):
    settings = save("qwen2_vl", tmp_path)
    settings |= {"min_pixels": 576, "max_pixels": 1200, "video_processor_type": "Qwen2VLVideoProcessor"}
    put(tmp_path, "own file", settings)
    captioner = SaliencyCaptioner.from_pretrained(str(tmp_path), mode="none")
    made = captioner.caption(noise(4), num_frames=4, max_new_tokens=1).visual_tokens
    assert made == their_tokens("qwen2_vl", 4, 60, 84, 576, 1200)


@pytest.mark.parametrize("family", MODULES)
def test_a_loaded_processor_brings_its_video_processor(family):
    tiny = tiny_multimodal.FAMILIES[family]()
    images = tiny.processor.image_processor
    video = SimpleNamespace(**{**images.to_dict(), "merge_size": 2})
    video.size = {"shortest_edge": 576, "longest_edge": 3000}
    processor = SimpleNamespace(
        image_processor=images,
        video_processor=video,
        tokenizer=tiny.processor.tokenizer,
        chat_template=tiny.processor.chat_template,
    )
    before = dict(images.size)
    captioner = SaliencyCaptioner.from_pretrained(tiny.model, processor, mode="none")
    made = captioner.caption(noise(4), num_frames=4, max_new_tokens=1).visual_tokens
    assert made == their_tokens(family, 4, 60, 84, 576, 3000)
    assert dict(images.size) == before


def test_the_size_of_videos_goes_before_that_of_images_in_other_families(tmp_path):
    settings = save("llava_onevision", tmp_path)
    images = dict(settings["size"])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "size": {"height": 8, "width": 8}}))
    put(tmp_path, "own file", {"size": images, "video_processor_type": "LlavaOnevisionVideoProcessor"})
    captioner = load_captioner(str(tmp_path))
    assert captioner.preprocess(noise(2)).shape[-2:] == (images["height"], images["width"])


def test_sizes_of_frames_are_those_of_qwen3_vls_video_processor():
    theirs = their_smart_resize("qwen3_vl")
    for num_frames in (2, 3, 5, 8, 30):
        for height, width in ((120, 160), (5, 90), (31, 33), (1080, 1920), (2, 200)):
            for least, most in ((4096, 25165824), (65536, 16777216), (4096, 9000), (400000, 900000)):
                expected = theirs(num_frames, height, width, 2, 32, least, most)
                assert video_size(num_frames, height, width, 2, 32, least, most) == expected


def test_frames_that_are_far_too_long_are_refused():
    with pytest.raises(ValueError, match="at most 200 times as long as wide, got 32x6432"):
        video_size(2, 32, 6432, 2, 32, 4096, 90000)


@pytest.mark.parametrize("where", ["own file", "processor"])
def test_smolvlms_square_for_videos_goes_before_that_for_images(where, tmp_path):
    settings = save("smolvlm", tmp_path)
    side = settings["max_image_size"]["longest_edge"]
    video = {"size": {"longest_edge": 12}, "max_image_size": {"longest_edge": side}}
    images = {**settings, "max_image_size": {"longest_edge": 2 * side}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    put(tmp_path, where, {**video, "video_processor_type": "SmolVLMVideoProcessor"})
    captioner = load_captioner(str(tmp_path))
    assert captioner.preprocess(noise(2)).shape[-2:] == (side, side)
    assert captioner.preprocess.size == {"longest_edge": 12}
    put(tmp_path, where, {**video, "size": {"longest_edge": side}, "video_processor_type": "SmolVLMVideoProcessor"})
    sharp = load_captioner(str(tmp_path)).preprocess(noise(2))
    assert not torch.equal(captioner.preprocess(noise(2)), sharp)


@pytest.mark.parametrize("family", ["internvl", "perception_lm", "llava_next_video"])
@pytest.mark.parametrize("size", [{"height": 8, "width": 8}, 8])
def test_other_families_take_the_size_for_videos(family, size, tmp_path):
    save(family, tmp_path)
    put(tmp_path, "own file", {"size": size, "do_center_crop": False, "video_processor_type": "of the family"})
    captioner = load_captioner(str(tmp_path))
    shape = captioner.preprocess(noise(2)).shape[-2:]
    if family != "llava_next_video" or isinstance(size, dict):
        assert shape == (8, 8)
    else:
        assert min(shape) == 8  # its sizes are of the shortest side


def test_a_limit_for_each_frame_counts_as_in_the_video_processor(tmp_path):
    settings = save("qwen2_vl", tmp_path)
    del settings["image_processor_type"]
    settings |= {"size": {"shortest_edge": 576, "longest_edge": 20000}, "cap_pixels_per_frame": True}
    put(tmp_path, "own file", {**settings, "max_video_tokens": 40, "video_processor_type": "Qwen2VLVideoProcessor"})
    captioner = SaliencyCaptioner.from_pretrained(str(tmp_path), mode="none")
    most = max(min(20000, int(40 * FACTOR**2 * 0.9) * 2 // 4), int(576 * 1.05))
    made = captioner.caption(noise(4), num_frames=4, max_new_tokens=1).visual_tokens
    assert made == their_tokens("qwen2_vl", 4, 60, 84, 576, most)
    assert made < their_tokens("qwen2_vl", 4, 60, 84, 576, 20000)
