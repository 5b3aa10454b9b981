"""Clocks wait for the device that did the work, and for no other."""

from __future__ import annotations

import pytest
import torch
from test_inspection import load

from salcap.devices import check_device, synchronize


@pytest.mark.parametrize("name, waited", [("cpu", []), ("cuda:1", ["cuda:1"]), ("mps", ["mps"])])
def test_a_device_is_waited_for_in_its_own_way(monkeypatch, name, waited):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(str(device)))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: calls.append("mps"))
    synchronize(torch.device(name))
    assert calls == waited


def test_a_captioner_reads_its_clock_after_its_device(monkeypatch):
    calls = []
    monkeypatch.setattr("salcap.captioners.family.synchronize", lambda device: calls.append(device.type))
    before, after = (load("blip").now_ms() for _ in range(2))
    assert before < after
    assert calls == ["cpu", "cpu"]


def test_a_device_that_is_not_here_is_told_with_those_that_are():
    check_device(None)
    check_device("cpu")
    for device in ("cuda:77", "meta", "gpu"):
        with pytest.raises(ValueError, match=rf"device '{device}' cannot be used .*here are cpu"):
            check_device(device)
