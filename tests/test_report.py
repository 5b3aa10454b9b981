"""The report of a comparison: all of it in one file, escaped, with the numbers of the JSON and the patches kept."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import tiny_models
import torch
from test_cli import run

from salcap.evaluation.bootstrap import Difference
from salcap.evaluation.captions import SCORES
from salcap.evaluation.compare import NONE, Arm
from salcap.evaluation.comparison import ComparedArm, Comparison
from salcap.evaluation.faithfulness import Faithfulness
from salcap.evaluation.report import write_report
from salcap.evaluation.samples import Pictures, Sample, shrink
from salcap.evaluation.scatter import Point, place_labels, scatter
from salcap.evaluation.witness import KeptPatches, Shown, show
from salcap.frames import Frames
from salcap.saliency import SaliencyModel
from salcap.saliency_captioner import SaliencyCaptioner

VOID = {"meta", "link", "br", "img", "hr", "input"}
EVIL = '<script>alert("&")</script>'


class Page(HTMLParser):
    """A page's tables, its text, and every attribute; raises where tags do not match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.labels: list[str] = []  # of the plots' points
        self.attributes: list[tuple[str, str]] = []
        self.tables: dict[str, dict[str, list[float]]] = {}  # heading -> first cell of a row -> its numbers
        self.heading = self.row = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "data":
            self.tables.setdefault(self.heading, {}).setdefault(self.row, []).append(float(dict(attrs)["value"]))

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.attributes and ("class", "label") in self.attributes[-3:] and self.open[-1:] == ["text"]:
            self.labels.append(data)
        if self.open and self.open[-1] == "h2":
            self.heading = data
        elif self.open and self.open[-1] == "th":
            self.row = data


def row(arm: Arm, cider: float | None, ms: float, captions: dict[str, str]) -> ComparedArm:
    gap = Difference(0.1234567, -0.01, 0.25)
    against = {} if arm == NONE or cider is None else {"none": {"cider": gap}}
    scores = dict.fromkeys(SCORES) | {"bleu_4": 0.3, "cider": cider}
    return ComparedArm(
        arm=arm,
        visual_tokens=49.5,
        scores=scores,
        against=against,
        verdicts=dict.fromkeys(against, "better: cider"),
        ms={"encode": {"p50": ms, "p95": 2 * ms}, "total": {"p50": ms + 1, "p95": 2 * ms + 1}},
        time_saved=0.125,
        peak_memory_mib=None,
        captions=captions,
    )


def comparison(**changes) -> Comparison:
    rows = [
        row(NONE, 0.5123456, 20.0, {"a": "a dog", "b": EVIL}),
        row(Arm("uva_net", "prune", "top", 0.5), 0.6, 12.0, {"a": EVIL, "b": "a cat"}),
        row(Arm(None, "prune", "pool", 0.5), 0.55, 11.0, {"a": "dogs", "b": "cats"}),
    ]
    made = Comparison(
        *("flickr8k-val", "my <model>", 2, "attention_center", "cpu", "float32", 2, 50, rows),
        *({}, {EVIL: "broken"}, {"attention_center": "no weights"}, {}),
    )
    return replace(made, **changes)


def page_of(tmp_path, made: Comparison, *args) -> tuple[Page, str]:
    write_report(made, tmp_path / "report.html", *args)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    return Page(source), source


def test_the_page_needs_nothing_else_and_escapes_all(tmp_path, captioner, clip):
    shown = {made.arm: shrink(show(captioner, clip, {"num_frames": 2}), 1.0) for made in comparison().rows}
    page, source = page_of(tmp_path, comparison(), [Sample("a", shown)], {"a": [EVIL, "plain words"]})
    assert "script" not in page.tags
    assert page.words.count(EVIL) == 3  # a clip's name, an arm's caption, a reference
    assert {"a dog", "dogs", "plain words", ": no weights", "my <model> on flickr8k-val"} <= set(page.words)
    links = [value for name, value in page.attributes if name in ("href", "src", "xlink:href", "action")]
    assert links
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert "//" not in "".join(part for part in source.split('"') if not part.startswith("data:"))
    assert "url(" not in source
    assert page.tags.count("image") == 2  # the clip's two frames, which all arms share


def test_the_numbers_are_those_of_the_json(tmp_path):
    found = {"uva_net": Faithfulness(8, -0.31, -0.35, -0.52, Difference(0.17, 0.1, 0.2))}
    made = comparison(faithfulness=found)
    page, _ = page_of(tmp_path, made)
    record = json.loads(json.dumps(made.to_dict()))
    assert list(page.tables["Quality"]) == [arm.arm.name for arm in made.rows]
    for arm, line in zip(made.rows, record["rows"], strict=True):
        scores = [line["scores"][name] for name in ("bleu_4", "cider")]
        gap = [line["against"]["none"]["cider"][part] for part in ("value", "low", "high")] if line["against"] else []
        assert page.tables["Quality"][arm.arm.name] == [line["visual_tokens"], *scores, *gap]
        total = line["ms"]["total"]
        times = [line["ms"]["encode"]["p50"], total["p50"], total["p95"], line["time_saved"]]
        assert page.tables["Time and memory"][arm.arm.name] == [line["visual_tokens"], *times]
    faith = record["faithfulness"]["uva_net"]
    assert page.tables["Deletion faithfulness"]["uva_net"] == [
        *(faith[name] for name in ("whole", "least_dropped", "most_dropped")),
        *(faith["difference"][name] for name in ("value", "low", "high")),
    ]


def test_what_was_not_measured_is_left_out(tmp_path):
    rows = [row(made.arm, None, 9.0, made.captions) for made in comparison().rows]
    page, _ = page_of(tmp_path, comparison(rows=rows))
    assert page.words.count("CIDEr") == 0
    assert "Deletion faithfulness" not in page.words
    assert "Samples" not in page.words
    assert sum("BLEU-4 against time" in value for name, value in page.attributes if name == "aria-label") == 1


def test_a_map_that_is_called_like_a_policy_is_labelled_otherwise(tmp_path):
    arms = (
        Arm("random", "prune", "foveate", 0.5),
        Arm(None, "prune", "random", 0.5),
        Arm("uva_net", "prune", "top", 0.5),
    )
    page, _ = page_of(tmp_path, comparison(rows=[row(arm, 0.5, 20.0, {}) for arm in arms]))
    for label in ("random foveate 0.5", "random 0.5", "uva_net 0.5"):
        assert page.labels.count(label) == 2  # in either plot


# --- kept patches ---


@pytest.fixture(scope="module")
def captioner():
    tiny = tiny_models.git()
    return SaliencyCaptioner.from_pretrained(
        tiny.model, tiny.processor, saliency="spectral_residual", mode="prune", policy="top", keep_ratio=0.5
    )


@pytest.fixture(scope="module")
def clip() -> Frames:
    """Already at the tiny models' size, so that a patch is 8 x 8 of its pixels."""
    side = tiny_models.SIDE
    pixels = torch.randint(0, 256, (3, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Frames(pixels, torch.arange(3.0), "clip")


def test_the_patches_shown_are_those_that_the_captioner_used(captioner, clip):
    """What lies below dropped patches changes nothing; what lies below any kept one does."""

    class Fixed(SaliencyModel):
        name = "fixed"

        def forward(self, pixels, pts_seconds=None):
            return torch.randn(len(pixels), 4, 4, generator=torch.Generator().manual_seed(1))

    fixed = SaliencyCaptioner(captioner.captioner, Fixed(), captioner.weighting)
    shown = show(fixed, clip, {"num_frames": 2, "num_beams": 3, "max_new_tokens": 9})
    assert len(shown.frames) == 2
    assert shown.patches.grid == (4, 4)
    assert shown.patches.kept.sum(1).tolist() == [8, 8]
    assert not shown.patches.merged.any()
    request = {"num_frames": 2, "max_new_tokens": 5}
    plain = fixed.caption(clip, **request).score
    for frame, kept in zip((0, 2), shown.patches.kept, strict=True):
        for cell in range(16):
            y, x = (8 * place for place in divmod(cell, 4))
            pixels = clip.pixels.clone()
            pixels[frame, :, y : y + 8, x : x + 8] = 255 - pixels[frame, :, y : y + 8, x : x + 8]
            changed = fixed.caption(replace(clip, pixels=pixels), **request).score
            assert (changed != plain) == bool(kept[cell])


@pytest.mark.parametrize("family", ["git", "mini", "vision_encoder_decoder"])
def test_merged_patches_are_those_not_kept(family, clip):
    tiny = getattr(tiny_models, family)()
    options = {"saliency": "center", "mode": "prune", "keep_ratio": 0.5}
    for policy, kept in (("foveate", 4), ("pool", 0), ("top", 8)):
        pipeline = SaliencyCaptioner.from_pretrained(tiny.model, tiny.processor, policy=policy, **options)
        patches = show(pipeline, clip, {"num_frames": 1}).patches
        assert patches.kept.sum().item() == kept
        assert patches.merged.sum().item() == (0 if policy == "top" else 16 - kept)
        assert not (patches.kept & patches.merged).any()
    whole = pipeline.with_weighting(keep_ratio=1.0)
    assert show(whole, clip, {"num_frames": 1}).patches is None
    assert len(show(pipeline.with_weighting(mode="none"), clip, {"num_frames": 2}).frames) == 2


def test_pictures_of_a_sample(captioner, clip):
    arm, plain = Arm("spectral_residual", "prune", "top", 0.5), captioner.with_weighting(mode="none")
    shown = {key: show(p, clip, {"num_frames": 3}) for key, p in ((NONE, plain), (arm, captioner))}
    pictures = Pictures(Sample("a <b>", {key: shrink(found, 2.0) for key, found in shown.items()}), "clip0")
    whole, halved = pictures.draw(NONE), pictures.draw(arm)
    assert len(whole) == len(halved) == pictures.definitions().count("<image") == 3
    assert "dropped" not in whole[0]
    assert 'viewBox="0 0 224 112"' in whole[0]
    label = "a &lt;b&gt; at 1.00 s, spectral_residual top 0.5: of 16 patches 8 kept, 8 dropped"
    assert f'aria-label="{label}"' in halved[1]
    runs = halved[1].split(' d="')[1].split('"')[0].split("M")[1:]
    covered = {
        (int(x) + step, int(y))
        for x, y, run in ((*part.split("h")[0].split(), part.split("h")[1].split("v")[0]) for part in runs)
        for step in range(int(run))
    }
    kept = shown[arm].patches.kept[1].view(4, 4)
    assert covered == {(x, y) for x in range(4) for y in range(4) if not kept[y, x]}


def test_few_small_frames_of_a_long_clip_are_drawn():
    long = Frames(torch.zeros(10, 3, 90, 160, dtype=torch.uint8), torch.arange(10.0))
    kept = torch.arange(20).view(10, 2) % 3 == 0
    patches = KeptPatches((1, 2), (0.0, 0.0, 1.0, 1.0), kept, ~kept)
    small = shrink(Shown(long, None, patches), 16 / 9)
    assert small.frames.pixels.shape == (4, 3, 126, 224)
    assert small.frames.pts_seconds.tolist() == [0.0, 2.0, 5.0, 7.0]
    assert torch.equal(small.patches.kept, kept[[0, 2, 5, 7]])


# --- plot ---


def test_labels_make_room_for_each_other():
    rng = torch.Generator().manual_seed(0)
    places = [(100 + 200 * x, 100 + 150 * y) for x, y in torch.rand(17, 2, generator=rng).tolist()]
    boxes = place_labels(places, ["uva_net 0.25"] * 17, (50.0, 10.0, 430.0, 320.0))
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert 50 <= left < right <= 430
        assert 10 <= top < bottom <= 320
        for other in boxes[:i]:
            assert not (left < other[2] and other[0] < right and top < other[3] and other[1] < bottom)


def test_points_lie_where_the_axes_say():
    points = [Point(10.0, 0.5, "a", 0, 0), Point(30.0, 0.7, "b <", 1, 12), Point(20.0, 0.6, "c", 2, 1)]
    page = Page(scatter(points, "ms", "CIDEr", "three arms"))
    assert {"a", "b <", "c", "ms", "CIDEr"} <= set(page.words)
    marks = [value for name, value in page.attributes if name == "transform" and "rotate" not in value]
    (ax, ay), (bx, by), (cx, cy) = (map(float, mark[len("translate(") : -1].split()) for mark in marks)
    assert ax < cx < bx
    assert ay > cy > by  # better is higher
    assert (cx - ax, ay - cy) == pytest.approx((bx - cx, cy - by), abs=0.2)
    alone = Page(scatter([Point(3.0, 0.0, "one", 0, 0)], "ms", "CIDEr", ""))
    assert "one" in alone.words
    for y, other in ((0.3, 0.1 + 0.2), (1e-13, 1.5e-13), (0.3, 0.3)):
        near = Page(scatter([Point(3.0, y, "one", 0, 0), Point(3.0, other, "other", 1, 0)], "ms", "CIDEr", ""))
        assert {"one", "other"} <= set(near.words)


def test_times_far_apart_get_a_logarithmic_axis():
    points = [Point(x, y, f"{x:g}", 0, 0) for x, y in ((30.0, 0.1), (90.0, 0.3), (270.0, 0.2))]
    page = Page(scatter(points, "ms", "CIDEr", ""))
    assert {"20", "50", "100", "200", "500", "ms, logarithmic"} <= set(page.words)
    marks = [value for name, value in page.attributes if name == "transform" and "rotate" not in value]
    left, middle, right = (float(mark[len("translate(") : -1].split()[0]) for mark in marks)
    assert middle - left == pytest.approx(right - middle, abs=0.2)


def test_command_writes_the_report(tmp_path, java, shared):
    root, out = shared / "data/captions/flickr8k", tmp_path / "out"
    options = ("--dataset", "flickr8k-val", "--root", root, "--limit", 2, "--num-beams", 1, "--metrics", "bleu,cider")
    arms = ("--saliency", "none,center", "--policy", "top", "--keep-ratio", 0.5, "--draws", 20)
    result = run("compare", *options, *arms, "--faithfulness", 1, "--output", out)
    assert result.exit_code == 0, result.stderr
    assert "Deletion faithfulness" in result.stdout
    record = json.loads((out / "comparison.json").read_text())
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    for line, name in zip(record["rows"], ("none", "center top 0.5"), strict=True):
        assert line["scores"]["cider"] in page.tables["Quality"][name]
        assert set(line["captions"].values()) <= set(page.words)
    assert record["faithfulness"]["center"]["num_clips"] == 1
    assert record["faithfulness"]["center"]["difference"]["value"] in page.tables["Deletion faithfulness"]["center"]
    assert page.tags.count("image") == 2
    failed = run("compare", *options, "--saliency", "none", "--faithfulness", 1)
    assert failed.exit_code == 2
    assert "faithfulness" in failed.stderr
