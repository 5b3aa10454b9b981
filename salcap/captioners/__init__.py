"""Captioners: Hugging Face models with places where saliency acts. The only folder beside training that imports
``transformers``, and only once a captioner is loaded.
"""

from salcap.captioners.base import Captioner, GeneratedText
from salcap.captioners.registry import CAPTIONER_FAMILIES, load_captioner, register_captioner

__all__ = ["CAPTIONER_FAMILIES", "Captioner", "GeneratedText", "load_captioner", "register_captioner"]
