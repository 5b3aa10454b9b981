"""The README's blocks: what is a block, what its mark says, and that a failing line fails its block."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from video_factory import ROOT, load_script

readme_blocks = load_script("readme_blocks")

TEXT = """
```
a diagram
```
<!-- not run: needs the hub -->
```python
load()
```
text
```bash
false
echo behind
```
<!-- long: hours -->
```bash
train
```
```yaml
key: value
```
"""


def test_blocks_and_their_marks() -> None:
    found = list(readme_blocks.blocks(TEXT))
    assert [(block.language, block.mark, block.why) for block in found] == [
        ("python", "not run", "needs the hub"),
        ("bash", None, None),
        ("bash", "long", "hours"),
    ]
    assert [TEXT.split("\n")[block.line] for block in found] == ["load()", "false", "train"]
    with pytest.raises(ValueError, match="in the line before a fence"):
        list(readme_blocks.blocks(TEXT.replace("hub -->\n", "hub -->\n\n")))


def test_the_readmes_blocks_are_found_and_its_python_compiles() -> None:
    found = list(readme_blocks.blocks((ROOT / "README.md").read_text(encoding="utf-8")))
    assert {block.mark for block in found} == {None, "not run", "long"}
    for block in found:
        if block.language == "python":
            compile(block.code, f"README.md:{block.line}", "exec")


@pytest.mark.parametrize(
    "language, code, status",
    [
        ("bash", "false\necho behind >file\n", 1),
        ("bash", "cat nothing | sort >file\n", 1),
        ("bash", "echo whole >file\n", 0),
        ("python", "raise SystemExit(3)\n", 3),
        ("python", "open('file', 'w').write('whole')\n", 0),
    ],
)
def test_a_failing_line_fails_its_block(language: str, code: str, status: int, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    assert readme_blocks.run(readme_blocks.Block(1, language, code, None, None), tmp_path, environment) == status
    if not status:
        assert (tmp_path / "file").read_text().strip() == "whole"
