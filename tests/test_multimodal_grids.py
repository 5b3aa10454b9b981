"""That a cell of the saliency grid, a group of patches and a token of the language model are one place in the frame."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_multimodal
import torch
from test_captioners import make_clip, make_map, outputs  # noqa: F401
from test_multimodal import FAMILIES, QWENS, load, vision_layers
from tiny_multimodal import PROMPT
from torch import Tensor
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from salcap.captioners.patch_groups import from_groups, to_groups
from salcap.captioners.pooled_patches import PooledFrame
from salcap.captioners.visual_tokens import ClipTokens
from salcap.config import Weighting
from salcap.frames import Frames
from salcap.weighting import relative_saliency

EARLY = [family for family in FAMILIES if family != "perception_lm"]
CELLS = [[(0, 1), (2, 3), (3, 0)], [(1, 2), (1, 0), (3, 3)]]  # rows and columns, for each span of frames


def load_exact(family: str) -> tuple[tiny_multimodal.TinyMultimodal, Any, Frames]:
    """A model with frames of just its size, so that no resizing mixes pixels of neighbouring cells."""
    tiny, captioner = load(family)
    if family == "idefics3":
        tiny.processor.image_processor.size = {"longest_edge": 32}
    if family == "perception_lm":  # it prunes behind the encoder, whose layers mix patches: do without them
        del vision_layers(tiny.model)[:]
    rows, columns = (cells * tiny.side for cells in tiny.grid)
    num_frames = 4 if family in QWENS else 2
    pixels = torch.randint(20, 236, (num_frames, 3, rows, columns), generator=torch.Generator().manual_seed(5))
    return tiny, captioner, Frames(pixels.to(torch.uint8), torch.arange(num_frames))


def cell_maps(family: str, grid: tuple[int, int]) -> Tensor:
    """Maps that are salient in the cells only."""
    maps = torch.full((2, *grid), -12.0)
    for span, cells in enumerate(CELLS):
        for row, column in cells:
            maps[span, row, column] = 0.0
    return maps.repeat_interleave(2 if family in QWENS else 1, 0)


def frames_of(family: str, span: int) -> slice:
    return slice(2 * span, 2 * span + 2) if family in QWENS else slice(span, span + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_model_sees_is_what_is_salient(family, outputs):  # noqa: F811
    """The bright-square test, from pixels to logits: inverting a salient square changes the logits; inverting
    everything else leaves every bit as it was.
    """
    tiny, captioner, clip = load_exact(family)
    maps, weighting = cell_maps(family, tiny.grid), Weighting("prune", "top", 3 / (tiny.grid[0] * tiny.grid[1]))
    margin = 2 if family == "llava_onevision" else 0  # its tokens are of 7 pixels, its patches of 4

    def logits(pixels: Tensor) -> Tensor:
        captioner.generate([Frames(pixels, clip.pts_seconds)], [maps], weighting, max_new_tokens=1)
        return outputs[-1][0].scores[0]

    original, outside, side = logits(clip.pixels), 255 - clip.pixels, tiny.side
    for span, cells in enumerate(CELLS):
        frames = frames_of(family, span)
        for row, column in cells:
            top, left = row * side, column * side
            square = (frames, slice(None), slice(top + 2, top + side - 2), slice(left + 2, left + side - 2))
            inverted = clip.pixels.clone()
            inverted[square] = 255 - inverted[square]
            assert not torch.equal(logits(inverted), original), (span, row, column)
            around = (slice(max(start - margin, 0), start + side + margin) for start in (top, left))
            square = (frames, slice(None), *around)
            outside[square] = clip.pixels[square]
    assert not torch.equal(outside, clip.pixels)
    assert torch.equal(logits(outside), original)


@pytest.mark.parametrize("policy", ["foveate", "pool"])
@pytest.mark.parametrize("family", FAMILIES)
def test_coarse_tokens_cover_the_whole_frame(family, policy, outputs):  # noqa: F811
    tiny, captioner, clip = load_exact(family)
    maps, weighting, side = cell_maps(family, tiny.grid), Weighting("prune", policy, 0.5), tiny.side

    def logits(pixels: Tensor) -> Tensor:
        captioner.generate([Frames(pixels, clip.pts_seconds)], [maps], weighting, max_new_tokens=1)
        return outputs[-1][0].scores[0]

    original = logits(clip.pixels)
    for index in range(0, tiny.grid[0] * tiny.grid[1], 3):
        row, column = divmod(index, tiny.grid[1])
        inverted = clip.pixels.clone()
        square = (frames_of(family, 1), slice(None), *(slice(at * side, at * side + side) for at in (row, column)))
        inverted[square] = 255 - inverted[square]
        assert not torch.equal(logits(inverted), original), (row, column)


def rows_of_cells(family: str, grid: tuple[int, int], captioner: Any, clip: Frames) -> list[int]:
    """Where the patches of the salient cells enter the first layer of the unpruned encoder, frame after frame."""
    side = 1 if family in ("blip_2", "instructblipvideo") else 2
    packed = family in (*QWENS, "video_llama_3")
    prefix = 1 if family in ("blip_2", "instructblipvideo", "internvl", "llava_next_video") else 0
    width, total = grid[1] * side, prefix + grid[0] * grid[1] * side**2
    if packed:
        pixels = captioner.preprocess(clip)
        thw = torch.tensor([[len(pixels), 2 * grid[0], 2 * grid[1]]])
        order = torch.arange(pixels.shape[:3].numel())
        if family == "qwen2_5_vl":
            vision = captioner.model.config.vision_config
            order, _ = get_vision_window_index(thw, 2, vision.window_size, vision.patch_size)
        place = order.argsort()
    rows = []
    for span, cells in enumerate(CELLS):
        rows += [span * total + index for index in range(prefix)]
        for row, column in cells:
            if packed:
                start = 4 * int(place[span * grid[0] * grid[1] + row * grid[1] + column])
                rows += range(start, start + 4)
            else:
                inner = [(row * side + i) * width + column * side + j for i in range(side) for j in range(side)]
                rows += [span * total + prefix + index for index in inner]
    return rows


@pytest.mark.parametrize("family", [family for family in EARLY if family != "llava_onevision"])
def test_what_enters_the_encoder_are_the_patches_of_the_salient_cells(family):
    """With their position embeddings: row for row against what enters the unpruned encoder."""
    tiny, captioner, clip = load_exact(family)
    entered: list[Tensor] = []
    vision_layers(tiny.model)[0].register_forward_pre_hook(lambda _m, args: entered.append(args[0].clone()))
    weighting = Weighting("prune", "top", 3 / (tiny.grid[0] * tiny.grid[1]))
    captioner.generate([clip], [cell_maps(family, tiny.grid)], weighting, max_new_tokens=1)
    captioner.generate([clip], None, Weighting(), max_new_tokens=1)
    pruned, full = (rows.flatten(0, -2) for rows in entered)
    assert len(pruned) < len(full) / 4
    expected = full[rows_of_cells(family, tiny.grid, captioner, clip)]
    assert len(pruned) == len(expected)
    equal = (pruned[:, None] - expected).abs().amax(-1) < 1e-6  # they come in the order of the frame, or of windows
    assert equal.any(0).all()
    assert equal.any(1).all()


@pytest.mark.parametrize("family", EARLY)
def test_the_pruned_way_without_pruning_is_the_unpruned_one(family, monkeypatch, outputs):  # noqa: F811
    """All bookkeeping (groups, windows, positions, lengths, pooling) at once, in a batch of clips of several shapes."""
    _, captioner = load(family)
    clips = [make_clip(0, 4, height=40, width=40), make_clip(1, 2), make_clip(2, 3, height=28, width=52)]
    captioner.generate(clips, None, Weighting(), max_new_tokens=2)
    whole = outputs[-1][0]
    plan_clip = captioner.plan_clip

    def keep_all(*args: Any, **kwargs: Any) -> ClipTokens:
        plan = plan_clip(*args, **kwargs)
        count = plan.counts[0] - plan.num_prefix_tokens
        plan._choices = [(torch.arange(count), None)] * len(plan.counts)
        assert plan.prunes
        return plan

    monkeypatch.setattr(captioner, "plan_clip", keep_all)
    captioner.generate(clips, None, Weighting(), max_new_tokens=2)
    for a, b in zip(whole.scores, outputs[-1][0].scores, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("height, width", [(32, 48), (40, 40), (48, 24)])
@pytest.mark.parametrize("family", [*QWENS, "video_llama_3"])
def test_pruned_patches_keep_their_positions_and_windows(family, height, width):
    """Against transformers' own bookkeeping of the whole grid, with what was dropped taken out."""
    tiny, captioner = load(family)
    clip = make_clip(0, 4, height, width)
    pixels = captioner.preprocess(clip)
    spans, rows, columns = pixels.shape[:3]
    log_density = torch.randn(4, rows, columns, generator=torch.Generator().manual_seed(1))
    places: list[dict[str, Tensor]] = []
    original = captioner.pruned_places
    captioner.pruned_places = lambda *args: places.append(original(*args)) or places[-1]
    captioner.generate([clip], [log_density], Weighting("prune", "top", 0.4), max_new_tokens=1)
    saliency = relative_saliency(log_density, (rows, columns)).unflatten(0, (spans, -1)).mean(1)
    count = round(0.4 * rows * columns)
    kept = torch.zeros_like(saliency, dtype=torch.bool).scatter_(1, saliency.topk(count).indices, True).flatten()
    thw = torch.tensor([[spans, 2 * rows, 2 * columns]])
    positions = get_vision_position_ids(thw, 2).unflatten(0, (-1, 4))[kept].flatten(0, 1)
    assert torch.equal(places[0]["position_ids"], positions.float())
    assert places[0]["cu_seqlens"].tolist() == [4 * count * span for span in range(spans + 1)]
    if family == "qwen2_5_vl":
        vision = tiny.model.config.vision_config
        index, ends = get_vision_window_index(thw, 2, vision.window_size, vision.patch_size)
        windows = [window[kept[window]] for window in index.split((ends.diff() // 4).tolist())]
        number = kept.cumsum(0) - 1  # of each kept group among those kept
        assert places[0]["window_index"].tolist() == [int(number[g]) for window in windows for g in window]
        lengths = torch.tensor([0, *(4 * len(window) for window in windows if len(window))])
        assert places[0]["cu_window_seqlens"].tolist() == lengths.cumsum(0).tolist()


@pytest.mark.parametrize("policy", ["top", "pool"])
@pytest.mark.parametrize("family", QWENS)
def test_tokens_keep_the_positions_of_the_unpruned_prompt(family, policy, outputs):  # noqa: F811
    tiny, captioner, clip = load_exact(family)
    clips = [clip, Frames(clip.pixels[:2], clip.pts_seconds[:2])]  # the second is padded
    maps = [cell_maps(family, tiny.grid), cell_maps(family, tiny.grid)[:2]]
    keep_ratio = (3 if policy == "top" else 6) / 24
    captioner.generate(clips, None, Weighting(), max_new_tokens=1)
    captioner.generate(clips, maps, Weighting("prune", policy, keep_ratio), max_new_tokens=1)
    (_, whole), (_, pruned) = outputs
    for row, spans in enumerate((2, 1)):
        kept, mask = pruned["position_ids"][:, row], pruned["attention_mask"][row].bool()
        assert kept[0, mask].tolist() == list(range(int(mask.sum())))
        visual = {id(k): k["input_ids"][row] == captioner.placeholder_id for k in (whole, pruned)}
        full = whole["position_ids"][1:, row]
        text = full[:, whole["attention_mask"][row].bool() & ~visual[id(whole)]]
        assert torch.equal(kept[1:, mask & ~visual[id(pruned)]], text)
        grid = full[:, visual[id(whole)]].unflatten(1, (spans, *tiny.grid))
        if policy == "top":
            cells = [sorted(cells) for cells in CELLS[:spans]]
            expected = torch.stack([grid[:, t, r, c] for t, row_ in enumerate(cells) for r, c in row_], 1)
        else:
            expected = torch.nn.functional.avg_pool2d(grid.float(), 2).round().long().flatten(1)
        assert torch.equal(kept[1:, visual[id(pruned)]], expected)


def test_times_are_the_frames_own(outputs):  # noqa: F811
    """Written where the family writes them, in seconds or minutes, and in Qwen2.5-VL's positions."""
    clip = Frames(make_clip(0, 4).pixels, [0.5, 2.0, 3.25, 65.0], clip_seconds=(0.0, 70.5))
    texts = {}
    for family in ("smolvlm", "qwen3_vl", "video_llama_3"):
        _, captioner = load(family)
        texts[family] = captioner.expand(clip, [1] * (2 if family == "qwen3_vl" else 4))[0]
    assert [f"Frame from {t}:" in texts["smolvlm"] for t in ("00:00", "00:02", "00:03", "01:05")] == [True] * 4
    assert "four frames from a 0:01:10 [H:MM:SS] video." in texts["smolvlm"]
    assert texts["qwen3_vl"].startswith("<1.2 seconds><|vision_start|>")
    assert "<34.1 seconds>" in texts["qwen3_vl"]
    assert texts["video_llama_3"].split(",")[3] == "Time 65.0s:<|video_pad|>"
    _, captioner = load("qwen2_5_vl")
    for seconds in (1.0, 3.0):
        captioner.generate([Frames(clip.pixels, torch.arange(4) * seconds)], None, Weighting(), max_new_tokens=1)
    first, second = (keywords["position_ids"][1, 0] for _, keywords in outputs)
    visual = outputs[0][1]["input_ids"][0] == captioner.placeholder_id
    assert (first[visual].max() - first[visual].min(), second[visual].max() - second[visual].min()) == (8, 24)


def test_groups_are_squares_in_raster_order():
    patches = torch.arange(24.0)[:, None]  # 4 rows of 6
    groups = to_groups(patches, (2, 3), 2)
    assert groups.tolist()[0] == [0, 1, 6, 7]
    assert groups.tolist()[4] == [14, 15, 20, 21]
    assert from_groups(groups, 2)[:, 0].tolist()[4:8] == [2, 3, 8, 9]


def test_pooled_tokens_are_what_pooling_all_patches_gives():
    """A kept token and a coarse one, where the encoder changes nothing."""
    generator = torch.Generator().manual_seed(0)
    pooling = torch.rand(4, 9, generator=generator) * (torch.rand(4, 9, generator=generator) > 0.6)
    pooling /= pooling.sum(1, keepdim=True)
    plan = ClipTokens(Weighting(), 1, (2, 2), 0)
    plan._choices, plan.counts = [(torch.tensor([2]), torch.tensor([[0.5, 0.25, 0.0, 0.25]]))], (2,)
    frame = PooledFrame(plan, 0, pooling)
    prefix, patches = torch.randn(1, 8, generator=generator), torch.randn(9, 8, generator=generator)
    pruned = frame.prune(1, torch.cat([prefix, patches]))
    assert len(pruned) == 1 + frame.length == 1 + int((pooling[2] > 0).sum()) + 1
    tokens = pooling @ patches
    expected = torch.stack([tokens[2], 0.5 * tokens[0] + 0.25 * tokens[1] + 0.25 * tokens[3]])
    torch.testing.assert_close(frame.pool(pruned[1:]), expected)


@pytest.mark.parametrize("family", QWENS)
def test_an_odd_last_frame_stands_for_the_missing_one(family, outputs):  # noqa: F811
    _, captioner = load(family)
    clip = make_clip(0, 3)
    twice = Frames(clip.pixels[[0, 1, 2, 2]], clip.pts_seconds[[0, 1, 2, 2]])
    for frames in (clip, twice):
        maps = make_map(0, 3) if len(frames) == 3 else make_map(0, 3)[[0, 1, 2, 2]]
        captioner.generate([frames], [maps], Weighting("prune", "top", 0.3), prompt=PROMPT, max_new_tokens=1)
    a, b = (output.scores[0] for output, _ in outputs)
    if family == "qwen2_5_vl":  # the mean time between frames differs
        assert a.shape == b.shape
    else:
        assert torch.equal(a, b)
    assert torch.equal(captioner.preprocess(clip), captioner.preprocess(twice))
