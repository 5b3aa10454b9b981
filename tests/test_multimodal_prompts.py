"""Multimodal families from folders and in the pipeline; their prompts; what they refuse."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny_models
import tiny_multimodal
import torch
from test_captioners import assert_same_bits, make_clip, make_map, outputs  # noqa: F401
from test_multimodal import CHATS, FAMILIES, QFORMERS, load
from tiny_chat import PROMPT

import salcap
from salcap.captioners import load_captioner
from salcap.captioners.smolvlm import in_words
from salcap.config import Weighting
from salcap.frames import Frames


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_captions_as_the_model_it_was_saved_from(family, tmp_path):
    tiny, given = load(family)
    tiny.model.save_pretrained(tmp_path)
    tokenizer, template = tiny.processor.tokenizer, tiny.processor.chat_template if family in CHATS else None
    if family == "internvl":  # as older checkpoints have it: the processor's own file, and one for text alone
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
        tokenizer.save_pretrained(tmp_path)
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"chat_template": "for text alone"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    else:
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path)
    frames = getattr(tiny.processor, "image_processor", None) or tiny.processor.video_processor
    frames.save_pretrained(tmp_path)
    if family == "instructblipvideo":
        tiny.processor.qformer_tokenizer.save_pretrained(tmp_path / "qformer_tokenizer")
    loaded = load_captioner(str(tmp_path), attn_implementation="eager", device_map="cpu")
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.read_options == given.read_options
    weighting, clips, maps = Weighting("bias+prune", keep_ratio=0.5), [make_clip(0)], [make_map(0)]
    (ours,), (theirs,) = (c.generate(clips, maps, weighting, max_new_tokens=5) for c in (loaded, given))
    assert ours.text == theirs.text
    assert ours.score == pytest.approx(theirs.score, abs=1e-4)


def test_an_attention_that_adds_no_mask_offers_no_bias():
    tiny = tiny_multimodal.internvl()
    tiny.model.model.language_model.config._attn_implementation = "flash_attention_2"
    captioner = load_captioner(tiny.model, tiny.processor)
    assert captioner.modes == {"none", "scale", "prune"}
    with pytest.raises(ValueError, match=r"cannot honour mode 'bias'; it allows \['none', 'prune', 'scale'\]"):
        captioner.generate([make_clip(0)], [make_map(0)], Weighting("bias"))


@pytest.mark.parametrize("family", FAMILIES)
def test_videos_of_unequal_length_go_through_the_whole_pipeline(family):
    tiny = tiny_multimodal.FAMILIES[family]()
    captioner = salcap.SaliencyCaptioner.from_pretrained(
        tiny.model, tiny.processor, saliency="center", mode="scale+prune", policy="top", keep_ratio=0.5
    )
    videos = [
        make_clip(seed, num_frames, height=40).pixels.permute(0, 2, 3, 1) for seed, num_frames in enumerate((5, 2))
    ]
    results = captioner.caption_batch(videos, num_frames=3, max_new_tokens=3)
    assert [result.error for result in results] == [None, None]
    whole = captioner.with_weighting(mode="none").caption(videos[0], num_frames=3, max_new_tokens=3)
    assert results[0].visual_tokens == (15 if family in QFORMERS else (whole.visual_tokens + 1) // 2)


@pytest.mark.parametrize("family", CHATS)
def test_another_prompt_changes_the_text_and_is_no_part_of_it(family, outputs):  # noqa: F811
    _, captioner = load(family)
    for prompt in (captioner.default_prompt, "w7 w8 w9"):
        (text,) = captioner.generate([make_clip(0)], None, Weighting(), prompt=prompt, max_new_tokens=3)
        assert "w7 w8 w9" not in text.text
    a, b = (output for output, _ in outputs)
    assert not torch.equal(a.scores[0], b.scores[0])
    assert "w7 w8 w9" in captioner.tokenizer.decode(b.sequences[0])


def test_a_chat_without_place_for_the_video_is_refused():
    tiny = tiny_multimodal.internvl()
    processor = SimpleNamespace(image_processor=tiny.processor.image_processor, tokenizer=tiny.processor.tokenizer)
    with pytest.raises(ValueError, match="has no chat template"):
        load_captioner(tiny.model, processor).generate([make_clip(0)], None, Weighting())
    processor.chat_template = "{{ messages[0]['content'][1]['text'] }}"
    with pytest.raises(ValueError, match=r"makes 0 of 1 placeholders '<video>': give the model's own processor"):
        load_captioner(tiny.model, processor).generate([make_clip(0)], None, Weighting())
    processor.chat_template = "<video><IMG_CONTEXT>"
    with pytest.raises(ValueError, match=r"the prompt has \[33\] places for \[32\] visual tokens"):
        load_captioner(tiny.model, processor).generate([make_clip(0)], None, Weighting())
    processor.chat_template = "{{ raise_exception('no videos here') }}"
    with pytest.raises(ValueError, match=r"does not take prompt 'w1': no videos here"):
        load_captioner(tiny.model, processor).generate([make_clip(0)], None, Weighting(), prompt="w1")


# --- prompts from model cards ---


@pytest.mark.parametrize("family", CHATS)
def test_placeholders_and_messages_are_the_chat_that_the_question_alone_is(family):
    _, captioner = load(family)
    clip = replace(make_clip(0), source="a.mp4")
    expected = captioner.chat(clip, "w7 w8")
    token, video = captioner.chat_token, {"type": "video"}
    for prompt in (
        f"{token}\nw7 w8",
        f"{token} \n w7 w8",
        f"<|vision_start|>{token}<|vision_end|>w7 w8",
        [{"role": "user", "content": "w7 w8"}],
        [{"role": "user", "content": f"{token} w7 w8"}],
        ({"role": "user", "content": [video, {"type": "text", "text": "w7 w8"}]},),
        [{"role": "user", "content": [{**video, "text": None}, {"type": "text", "text": "w7 w8", "video": None}]}],
        [{"role": "user", "content": [{"type": "text", "text": "w7 w8"}]}],
        [{"role": "user", "content": [{**video, "path": os.path.abspath("a.mp4")}, {"type": "text", "text": "w7 w8"}]}],
        [
            {
                "role": "user",
                "content": [{"type": "video_url", "video_url": {"url": "a.mp4"}}, {"type": "text", "text": "w7 w8"}],
            }
        ],
    ):
        assert captioner.chat(clip, prompt) == expected
    asked, said, asked_again = (
        {"role": role, "content": text} for role, text in (("user", "w1"), ("assistant", "w2"), ("user", "w3"))
    )
    chat = captioner.chat(clip, [{"role": "system", "content": "w0"}, asked, said, asked_again])
    places = [chat.index(part) for part in ("w0", token, "w1", "w2", "w3")]
    assert places == sorted(places)
    assert chat.count(token) == expected.count(token)
    between = captioner.chat(clip, f"w7 {token} w8")
    assert between.index("w7 ") < between.index(token) <= between.rindex(token) < between.index(" w8")


def test_a_prompt_with_a_placeholder_captions_as_one_without():
    _, captioner = load("llava_onevision")
    asked = "w7 w8", "<video>\nw7 w8", [{"role": "user", "content": "w7 w8"}], "w9"
    texts = [captioner.generate([make_clip(0)], None, Weighting(), prompt=p, max_new_tokens=3)[0] for p in asked]
    assert texts[0].score == texts[1].score == texts[2].score != texts[3].score
    assert texts[0].text == texts[1].text == texts[2].text


WORDS_ONLY = "give the question alone, as 'Describe the video.'"


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("<video> w1 <video>", f"one place for the video, got 2: .*{WORDS_ONLY}"),
        ("<|video_pad|>w1", rf"holds '<\|video_pad\|>'; {WORDS_ONLY}"),
        ("<image>\nw1", f"holds '<image>'; {WORDS_ONLY}"),
        ("<|im_start|>user\n<video>w1", rf"holds '<\|im_start\|>'; {WORDS_ONLY}"),
        ("USER: <video>\nw1 ASSISTANT:", f"looks like a whole chat; {WORDS_ONLY}"),
        (7, r"is a string, or messages such as \[\{'role': 'user', .*got 7"),
        ([], "is a string, or messages"),
        (["w1", "w2"], "messages have a role and a content, .* got 'w1'"),
        ([{"role": "user", "text": "w1"}], "messages have a role and a content"),
        ([{"role": "user", "content": None}], "content of a message is a string or a list of parts, got None"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "must be text or video, got {'type': 'audio'}"),
        ([{"role": "system", "content": "w1"}], r"must have the role 'user', got the roles \['system'\]"),
        ([{"role": "user", "content": "w"}, {"role": "assistant", "content": "w"}], "must have the role 'user'"),
        (
            [{"role": "user", "content": [{"type": "video", "video": "b.mp4"}]}],
            "the video is the one that is captioned",
        ),
        ([{"role": "user", "content": [{"type": "video", "fps": 1.0}]}], "its settings are those of salcap"),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}], "one place for the video, got 2"),
    ],
)
def test_prompts_that_cannot_be_asked_fail(prompt, message):
    _, captioner = load("llava_onevision")
    with pytest.raises(ValueError, match=message):
        captioner.generate([replace(make_clip(0), source="a.mp4")], None, Weighting(), prompt=prompt, max_new_tokens=1)


@pytest.mark.parametrize("family", [*QFORMERS, "blip", "git"])
def test_families_without_chat_say_how_a_prompt_is_given(family):
    tiny = tiny_models.FAMILIES[family]() if family in ("blip", "git") else tiny_multimodal.FAMILIES[family]()
    captioner = load_captioner(tiny.model, tiny.processor)
    for prompt in ("<image> w1", [{"role": "user", "content": "w1"}]):
        message = "does not take a prompt" if family == "git" else WORDS_ONLY
        with pytest.raises(ValueError, match=message):
            captioner.generate([make_clip(0)], None, Weighting(), prompt=prompt, max_new_tokens=1)


def test_llava_next_video_with_another_pooling_is_refused():
    tiny = tiny_multimodal.llava_next_video()
    tiny.model.config.spatial_pool_mode = "max"
    with pytest.raises(ValueError, match="pools by 'max': only 'average' is supported"):
        load_captioner(tiny.model, tiny.processor)


def test_a_config_without_placeholder_is_refused():
    tiny = tiny_multimodal.blip_2()
    tiny.model.config.image_token_index = None
    with pytest.raises(ValueError, match="has no image_token_id"):
        load_captioner(tiny.model, tiny.processor)


def test_instructblipvideo_needs_its_second_tokenizer():
    tiny = tiny_multimodal.instructblipvideo()
    with pytest.raises(ValueError, match="and a qformer_tokenizer, got SimpleNamespace"):
        load_captioner(tiny.model, SimpleNamespace(video_processor=1, tokenizer=2))


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_video_llama_3_leaves_out_what_does_not_change(num_frames, outputs):  # noqa: F811
    """A still clip whose last column changes: as the family's processor does it, alone and with pruning."""
    tiny, captioner = load("video_llama_3")
    pixels = make_clip(0, 1, height=32, width=48).pixels.repeat(num_frames, 1, 1, 1)
    pixels[1:, ..., 40:] += 60
    clip = Frames(pixels, torch.arange(num_frames))
    plain = tiny.generate([clip], max_new_tokens=4)
    (text,) = captioner.generate([clip], None, Weighting(), prompt=PROMPT, max_new_tokens=4)
    assert_same_bits(outputs[-1][0], plain)
    assert text.visual_tokens == 24 + 4 * (num_frames > 1) + (num_frames > 2)
    for mode in ("prune", "bias+prune"):
        log_density = torch.zeros(num_frames, 4, 6)
        log_density[:, 1:3, :] = 9.0
        weighting = Weighting(mode, "top", 0.5)
        (text,) = captioner.generate([clip], [log_density], weighting, prompt=PROMPT, max_new_tokens=4)
        assert text.visual_tokens == 12 + 2 * (num_frames > 1) + (num_frames > 2)


@pytest.mark.parametrize(
    "number, words",
    [
        (0, "zero"),
        (8, "eight"),
        (13, "thirteen"),
        (20, "twenty"),
        (64, "sixty-four"),
        (100, "one hundred"),
        (128, "one hundred and twenty-eight"),
        (999, "nine hundred and ninety-nine"),
    ],
)
def test_numbers_in_words(number, words):
    assert in_words(number) == words


def test_numbers_too_large_for_words_are_refused():
    with pytest.raises(ValueError, match="at most 999 frames"):
        in_words(1000)
