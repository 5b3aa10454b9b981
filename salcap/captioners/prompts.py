"""Prompts as people give them: a question, one with a placeholder from a model card, or a list of chat messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Prompt: TypeAlias = Any  # text, or chat messages; families without a chat narrow it to text
Message = dict[str, Any]

_HOW = (
    "give the question alone, as 'Describe the video.': salcap puts the video, and the tokens that the model expects"
    " around it, into the prompt itself"
)
_MESSAGES = "[{'role': 'user', 'content': 'Describe the video.'}]"
# what stands for a video or an image in the prompts of one model or another
_PLACEHOLDERS = (
    *("<video>", "<image>", "<|video|>", "<|image|>", "<|video_pad|>", "<|image_pad|>", "<IMG_CONTEXT>"),
    *("<|vision_start|>", "<|vision_end|>"),
)
_SPEAKER = re.compile(r"^\s*(user|human)\s*:|\bassistant\s*:\s*$", re.IGNORECASE)


def check_text(prompt: Any, name: str, strange: Iterable[str] = (), takes_text: bool = True) -> None:
    """Refuse a prompt that cannot be read as plain text.

    Args:
        name: of the model, for the message.
        strange: more strings that the text must not hold.
        takes_text: whether the model reads a prompt at all.

    Raises:
        ValueError: a model that reads none, not a string, or one with a placeholder.
    """
    if not takes_text:
        raise ValueError(f"{name} does not take a prompt, got {prompt!r}")
    if not isinstance(prompt, str):
        raise ValueError(f"the prompt of {name} is a string, not messages, got {prompt!r}; {_HOW}")
    found = next((mark for mark in (*_PLACEHOLDERS, *strange) if mark in prompt), None)
    if found is not None:
        raise ValueError(f"prompt {prompt!r} holds {found!r}; {_HOW}")


def to_messages(
    prompt: Any,
    visuals: Sequence[Mapping[str, str]],
    *,
    name: str,
    placeholders: Iterable[str],
    special_tokens: Iterable[str] = (),
    source: str | None = None,
) -> list[Message]:
    """Turn a prompt into the messages that a chat template takes.

    Args:
        prompt: a question; one with a placeholder where the video goes; or messages, whose content is text or a list
            of ``{"type": "text", "text": ...}`` and ``{"type": "video"}``. If nothing says where the video goes, it
            comes first in the first message of the user.
        visuals: what stands for the video in the content of a message.
        name: of the model, for errors.
        placeholders: what the model's own prompts have for a video.
        special_tokens: of the tokenizer, which the chat template writes and a question must not hold.
        source: where the video comes from, which messages may repeat.

    Raises:
        ValueError: neither text nor messages, more than one place for the video, special tokens in the text, or a
            message with a video of its own.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, Sequence) or isinstance(messages, bytes) or not messages:
        raise ValueError(f"a prompt of {name} is a string, or messages such as {_MESSAGES}, got {prompt!r}")
    marks = tuple(dict.fromkeys(placeholders))
    strange = (*(mark for mark in _PLACEHOLDERS if mark not in marks), *(t for t in special_tokens if len(t) > 2))
    made: list[Message] = []
    num_places = 0
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"messages have a role and a content, such as {_MESSAGES}, got {message!r}")
        content: list[Mapping[str, Any]] = []
        for part in _parts(message["content"], marks):
            if part is None:
                num_places += 1
                content += visuals
            elif "text" in part:
                check_text(part["text"], name, strange)
                content.append({"type": "text", "text": part["text"]})
            else:
                _check_source(part, source)
                num_places += 1
                content += visuals
        made.append({"role": message["role"], "content": content})
    if num_places > 1:
        raise ValueError(f"a prompt has one place for the video, got {num_places}: {prompt!r}; {_HOW}")
    users = [message for message in made if message["role"] == "user"]
    if not users or made[-1]["role"] != "user":
        raise ValueError(f"the last message must have the role 'user', got the roles {[m['role'] for m in made]}")
    if num_places and isinstance(prompt, str) and any(_SPEAKER.search(part.get("text", "")) for part in content):
        raise ValueError(f"prompt {prompt!r} looks like a whole chat; {_HOW}")
    if not num_places:
        users[0]["content"] = [*visuals, *users[0]["content"]]
    return made


def _parts(content: Any, marks: Sequence[str]) -> list[Mapping[str, Any] | None]:
    """The parts of a message's content; None for each placeholder in its text."""
    if not isinstance(content, str):
        if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
            raise ValueError(f"the content of a message is a string or a list of parts, got {content!r}")
        # columns of a data set fill the keys that a part does not have with None
        known = [{key: value for key, value in part.items() if value is not None} for part in content]
        return [each for part in known for each in (_parts(part["text"], marks) if "text" in part else [part])]
    around = r"(?:<\|vision_start\|>)?(?:{})(?:<\|vision_end\|>)?"
    texts = re.split(around.format("|".join(map(re.escape, marks))), content) if marks else [content]
    if len(texts) > 1:  # line breaks between a placeholder at either end and the text are up to the template
        if not texts[0].strip():
            texts[:2] = ["", texts[1].lstrip()]
        if not texts[-1].strip():
            texts[-2:] = [texts[-2].rstrip(), ""]
    parts: list[Mapping[str, Any] | None] = []
    for number, text in enumerate(texts):
        parts += [None] * bool(number)
        if text or len(texts) == 1:
            parts.append({"type": "text", "text": text})
    return parts


def _check_source(part: Mapping[str, Any], source: str | None) -> None:
    """A part that is a video: it may name only the one that is being captioned."""
    kind = str(part.get("type"))
    if kind not in ("video", "image", "video_url", "image_url"):
        raise ValueError(f"the type of a part of a message must be text or video, got {part!r}")
    for name, value in part.items():
        named = str(value.get("url") if isinstance(value, Mapping) else value).removeprefix("file://")
        if name != "type" and (source is None or Path(named).absolute() != Path(source).absolute()):
            raise ValueError(
                f"the video is the one that is captioned, and its settings are those of salcap: write {{'type':"
                f" 'video'}} in place of {dict(part)!r}"
            )
