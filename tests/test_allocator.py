"""Memory that is freed stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from salcap.allocator import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("another C library")
for turn in range(21):
    if turn == 1:  # the first one's pages are new in any case
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**25, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_comes_back_has_its_pages() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("glibc's malloc is Linux's")
    faults = {}
    for way in ("keep", "plain"):
        found = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True)
        if "another C library" in found.stderr:
            pytest.skip("not glibc")
        assert found.returncode == 0, found.stderr
        faults[way] = int(found.stdout)
    assert faults["keep"] < 100 < faults["plain"]
