"""Captioners and backbones of a page, each loaded when it is first asked for, and kept."""

from __future__ import annotations

import numpy as np

from salcap.evaluation.compare import Arm, arm_pipeline
from salcap.saliency import SaliencyModel, create_saliency
from salcap.saliency_captioner import SaliencyCaptioner

_BLANK = np.zeros((2, 64, 64, 3), np.uint8)  # backbones may have another network for clips than for one frame


class Models:
    """Loads what the page's columns name.

    Args:
        device: as torch names it; None: where captioners and backbones are by themselves, the CPU.
    """

    def __init__(self, device: str | None = None) -> None:
        self._device = device
        self._captioners: dict[str, SaliencyCaptioner] = {}
        self._backbones: dict[str, SaliencyModel] = {}
        self._warm: set[tuple[str, Arm]] = set()

    def backbone(self, name: str) -> SaliencyModel:
        """Errors as those of `create_saliency`; what failed is tried again when it is asked for again."""
        if name not in self._backbones:
            backbone = create_saliency(name)
            self._backbones[name] = backbone if self._device is None else backbone.to(self._device)
        return self._backbones[name]

    def pipeline(self, model: str, arm: Arm) -> SaliencyCaptioner:
        """A captioner as an arm has it, warm: the first call of a model costs more, and no column is to pay for it.

        Raises:
            ValueError, ImportError, OSError: as `SaliencyCaptioner.from_pretrained` and `create_saliency`.
        """
        if model not in self._captioners:
            self._captioners[model] = SaliencyCaptioner.from_pretrained(model, device=self._device)
        captioner = self._captioners[model]
        pipeline = arm_pipeline(captioner, arm, self.backbone(arm.saliency) if arm.saliency else captioner.saliency)
        if (model, arm) not in self._warm:
            pipeline.caption(_BLANK, max_new_tokens=2)
            self._warm.add((model, arm))
        return pipeline
