"""From a model's name to its captioner: the family is chosen by the config's ``model_type``."""

from __future__ import annotations

import difflib
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salcap.captioners.adapters import (
    ADAPTER_FILE,
    find_adapter,
    is_adapter_alone,
    own_tokenizer,
    read_base,
    unwrap,
    with_adapter,
)
from salcap.captioners.base import Captioner
from salcap.devices import check_device

if TYPE_CHECKING:
    import torch

    from salcap.captioners.family import CaptionerFamily

BUNDLED_FOLDER = Path(__file__).parents[1] / "weights"
BUNDLED = ("salcap-mini",)

# model_type, or model_type/encoder's model_type for a finer choice -> a family, or where to import it from
CAPTIONER_FAMILIES: dict[str, str | type[CaptionerFamily]] = {
    "blip": "salcap.captioners.blip:BlipCaptioner",
    "blip-2": "salcap.captioners.blip_2:Blip2Captioner",
    "git": "salcap.captioners.git:GitCaptioner",
    "idefics3": "salcap.captioners.idefics3:Idefics3Captioner",
    "instructblipvideo": "salcap.captioners.instructblipvideo:InstructBlipVideoCaptioner",
    "internvl": "salcap.captioners.internvl:InternVLCaptioner",
    "llava_next_video": "salcap.captioners.llava_next_video:LlavaNextVideoCaptioner",
    "llava_onevision": "salcap.captioners.llava_onevision:LlavaOnevisionCaptioner",
    "perception_lm": "salcap.captioners.perception_lm:PerceptionLMCaptioner",
    "qwen2_5_vl": "salcap.captioners.qwen2_5_vl:Qwen2_5VLCaptioner",
    "qwen2_vl": "salcap.captioners.qwen2_vl:Qwen2VLCaptioner",
    "qwen3_vl": "salcap.captioners.qwen3_vl:Qwen3VLCaptioner",
    "smolvlm": "salcap.captioners.smolvlm:SmolVLMCaptioner",
    "video_llama_3": "salcap.captioners.video_llama_3:VideoLlama3Captioner",
    "vision-encoder-decoder": "salcap.captioners.vision_encoder_decoder:VisionEncoderDecoderCaptioner",
    "vision-encoder-decoder/salcap-encoder": "salcap.captioners.mini.captioner:MiniCaptioner",
}


def register_captioner(model_type: str, family: str | type[CaptionerFamily]) -> None:
    """Make `load_captioner` use a family for a model type; one that is registered already is replaced.

    Args:
        model_type: of the model's config; "a/b" for type a with an encoder of type b, which goes before plain "a".
        family: a `CaptionerFamily`, or "module:Class" to import it when it is needed.

    Raises:
        ValueError: a string that names no class in a module.
    """
    if isinstance(family, str) and not all(part.strip() for part in family.partition(":")):
        raise ValueError(f"family must be a class or 'module:Class', got {family!r}")
    CAPTIONER_FAMILIES[model_type] = family


def check_captioner(name: str) -> None:
    """Raise a ValueError for a name that is no bundled captioner's, no folder with a config and no hub id by its form.

    Nothing is loaded, and no hub is asked.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    path = Path(name)
    if name in BUNDLED or any((path / file).is_file() for file in ("config.json", ADAPTER_FILE)):
        return
    allowed = f"allowed: {', '.join(BUNDLED)}, a folder with a config.json or {ADAPTER_FILE}, or a hub id as owner/name"
    if path.exists():
        raise ValueError(f"{name!r} is no captioner's folder, {allowed}")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"there is no captioner {name!r}, {allowed}") from error


def load_captioner(
    model: Any,
    processor: Any = None,
    *,
    revision: str | None = None,
    device: str | int | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Captioner:
    """Load a captioner, or put one around a model that is loaded.

    Args:
        model: "salcap-mini" (bundled), a hub id, a local folder, or a loaded model. A folder of adapters loads its base
            model too (extra ``[lora]``). A ``PeftModel`` with adapters in its layers, a compiled model and one in
            ``DataParallel`` are unwrapped.
        processor: for a loaded model only: its processor, or (image processor, tokenizer).
        revision: branch, tag or commit on the hub.
        device: None leaves the model where it is (CPU for one that is loaded here).
        dtype: None leaves a loaded or quantised model as it is, and means float32 for any other that is loaded here,
            whatever its file holds; "auto" keeps the file's.
        device_map, attn_implementation: of ``transformers``, for a model that is loaded here.
        trust_remote_code: let the config, image processor and tokenizer run code from the hub.

    Raises:
        OSError: a hub id or folder that cannot be read; the message says what to do offline.
        ValueError: a model type without family, a checkpoint made for another task, or a processor that is missing
            or not wanted; a device that is not here.
    """
    check_device(device)
    if isinstance(model, (str, os.PathLike)):
        if processor is not None:
            raise ValueError(f"{os.fspath(model)!r} brings its own processor; give one only with a loaded model")
        options = {"device_map": device_map, "attn_implementation": attn_implementation}
        options = {name: value for name, value in options.items() if value is not None}
        if device is not None and device_map is not None:
            raise ValueError(f"give device or device_map, got {device!r} and {device_map!r}")
        return _load(os.fspath(model), revision, device, dtype, trust_remote_code=trust_remote_code, **options)
    if device_map is not None or attn_implementation is not None:
        raise ValueError("device_map and attn_implementation are for a model that is loaded here, give its id or path")
    given = type(model).__name__
    model, adapted = unwrap(model)
    config = getattr(model, "config", None)
    if config is None:
        raise ValueError(f"model must be a hub id, a folder or a transformers model, got {given}")
    if processor is None:
        raise ValueError(f"a loaded {type(model).__name__} needs its processor: load_captioner(model, processor)")
    family = _find_family(config.model_type, getattr(getattr(config, "encoder", None), "model_type", None))
    captioner = family(model, processor, revision=revision)
    if adapted and revision is None:
        captioner.revision = None  # the base model's commit does not tell what the adapter makes of it
    dtype = _resolve_dtype(dtype)
    if device is not None or dtype is not None:  # else it stays where transformers placed it, as it quantised it
        model.to(**{name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None})
    return captioner


def _load(
    name: str,
    revision: str | None,
    device: str | int | torch.device | None,
    dtype: str | torch.dtype | None,
    **options: Any,
) -> CaptionerFamily:
    from transformers import PretrainedConfig

    path = str(BUNDLED_FOLDER / name) if name in BUNDLED else name
    try:
        # not AutoConfig: it knows our own encoder only once the family's module is imported
        unread: OSError | None = None
        try:
            config, _ = PretrainedConfig.get_config_dict(path, revision=revision or "main")
        except OSError as error:
            config, unread = {}, error
        if "model_type" in config and not is_adapter_alone(path):
            family = _find_family(config["model_type"], (config.get("encoder") or {}).get("model_type"))
            if dtype is None:  # quantised weights come with the precision that they were made for
                dtype = "auto" if config.get("quantization_config") else "float32"
            captioner = family.from_pretrained(path, name=name, revision=revision, dtype=dtype, **options)
        elif (adapter := find_adapter(path, revision)) is not None:
            captioner = _load_with_adapter(name, adapter, dtype, **options)
        else:
            raise unread or OSError(f"{path} has no config.json with a model_type")
    except OSError as error:
        raise OSError(_explain(name, path, error)) from error
    if device is not None:
        captioner.model.to(device)
    return captioner


def _load_with_adapter(name: str, folder: str, dtype: str | torch.dtype | None, **options: Any) -> CaptionerFamily:
    """A captioner from a folder of adapters: its base model with the adapter active."""
    base, base_revision = read_base(folder)
    try:
        captioner = _load(base, base_revision, None, dtype, **options)
    except OSError as error:
        raise OSError(f"it holds an adapter of {base!r}, which cannot be loaded: {error}") from error
    tokenizer = own_tokenizer(captioner.model, folder, options.get("trust_remote_code", False))
    if tokenizer is not None:
        tokenizer.chat_template = tokenizer.chat_template or getattr(captioner, "chat_template", None)
        captioner = type(captioner)(captioner.model, (captioner.image_processor, tokenizer))
    with_adapter(captioner.model, folder)
    captioner.name, captioner.revision = name, None  # the base model's commit does not tell what the adapter makes
    return captioner


def _find_family(model_type: str, encoder_type: str | None) -> type[CaptionerFamily]:
    keys = [f"{model_type}/{encoder_type}", model_type]
    found = next((CAPTIONER_FAMILIES[key] for key in keys if key in CAPTIONER_FAMILIES), None)
    if found is None:
        raise ValueError(
            f"no captioner family for model type {model_type!r}; there are {', '.join(sorted(CAPTIONER_FAMILIES))}."
            " To add one, derive it from salcap.captioners.family.CaptionerFamily, or from"
            " salcap.captioners.multimodal.MultimodalCaptioner where a language model reads placeholders, and call"
            f" salcap.captioners.register_captioner({model_type!r}, YourFamily)"
        )
    if isinstance(found, str):
        module, _, name = found.partition(":")
        try:
            return getattr(import_module(module), name)
        except (ImportError, RuntimeError) as error:
            if "torchvision" not in str(error):
                raise
            raise RuntimeError(
                "transformers cannot import the torchvision that is installed; salcap does without: uninstall it or"
                f" install the one that belongs to this torch (see `salcap doctor`): {error}"
            ) from error
    return found


def _explain(name: str, path: str, error: OSError) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if name in BUNDLED:
        return f"the bundled captioner {name} is not whole ({path}); reinstall salcap: {reason}"
    if Path(path).is_dir():
        return f"folder {path} does not hold a whole captioner: {reason}"
    from huggingface_hub import is_offline_mode

    close = difflib.get_close_matches(name, BUNDLED, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    if is_offline_mode():
        advice = "HF_HUB_OFFLINE is set, so by id only what is in the local cache can be loaded"
    else:
        advice = "without a network only what is in the local cache can be loaded by id; set HF_HUB_OFFLINE=1 then"
    return (
        f"cannot load captioner {name!r}{hint}: there is no such folder, and the hub gave: {reason} ({advice}, or give"
        " the path of a local folder)"
    )


def _resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    import torch

    if not isinstance(dtype, str):
        return dtype
    resolved = None if dtype == "auto" else getattr(torch, dtype, dtype)
    if resolved is not None and not isinstance(resolved, torch.dtype):
        raise ValueError(f"dtype must be a torch dtype, its name or 'auto', got {dtype!r}")
    return resolved
