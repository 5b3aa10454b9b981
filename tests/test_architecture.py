"""The package's shape, read off its syntax trees: imports run one way, and heavy packages have their one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "salcap"
FILES = sorted(PACKAGE.rglob("*.py"))

# A room may import rooms of the rows above its own, and those of its own row that are named in SIDEWAYS.
ROWS = (
    ("strict_json",),
    (
        "caption",
        "config",
        "devices",
        "efficientnet_lite",
        "frames",
        "hashing",
        "optimisation",
        "records",
        "seeding",
        "timeline",
        "video_colour",
        "video_contents",
        "video_crop",
        "video_geometry",
        "video_info",
        "video_joined",
        "video_open",
        "video_probe",
        "video_reader",
    ),
    (
        "captioners",
        "datasets",
        "decoded",
        "manifest",
        "outputs",
        "saliency",
        "sampling",
        "shots",
        "stills",
        "reader_process",
        "video",
        "views",
        "weighting",
        "windows",
    ),
    ("reading", "record_parts", "saliency_captioner", "sources"),
    (
        "batch_captioner",
        "batching",
        "corpus",
        "demo",
        "distill",
        "doctor",
        "evaluation",
        "inspection",
        "pictures",
        "pipeline",
        "ray",
        "training",
    ),
    ("cli",),
    ("__init__", "__main__", "_transformers_hook"),
)
SIDEWAYS = {
    ("captioners", "weighting"),
    ("batch_captioner", "batching"),
    ("corpus", "batch_captioner"),
    ("demo", "evaluation"),
    ("demo", "pictures"),
    ("evaluation", "doctor"),  # a receipt states versions
    ("evaluation", "corpus"),  # captions of a data set come by the corpus code path
    ("pictures", "evaluation"),  # what a captioner keeps is overheard by its witness
    ("ray", "batch_captioner"),
    ("ray", "corpus"),
    ("saliency_captioner", "sources"),
    ("training", "evaluation"),  # validation uses the one scorer
    ("distill", "evaluation"),
    ("__init__", "_transformers_hook"),
    ("__main__", "cli"),
    ("video_crop", "video_info"),
    ("video_joined", "video_crop"),
    ("video_joined", "video_info"),
    ("video_open", "video_contents"),
    ("video_open", "video_info"),
    ("video_probe", "video_geometry"),
    ("video_probe", "video_info"),
    ("video_probe", "video_open"),
    ("video_probe", "video_reader"),
    ("video_reader", "timeline"),
    ("video_reader", "video_colour"),
    ("video_reader", "video_crop"),
    ("video_reader", "video_geometry"),
    ("video_reader", "video_info"),
    ("video_reader", "video_joined"),
    ("video_reader", "video_open"),
    ("windows", "manifest"),
    ("windows", "shots"),
}
RANK = {room: rank for rank, rooms in enumerate(ROWS) for room in rooms}

# package -> the only files that may import it
OWNERS = {
    "accelerate": ("distill/", "training/"),
    "av": (
        "pictures/video_writer.py",
        "video_colour.py",
        "video_crop.py",
        "video_geometry.py",
        "video_open.py",
        "video_reader.py",
    ),
    "fsspec": ("record_parts.py",),
    "gradio": ("demo/",),
    "pycocoevalcap": ("evaluation/captions.py",),
    "transformers": ("captioners/", "training/"),
    "typer": ("cli/",),
}
OPTIONAL = {
    "ai_edge_litert",
    "gradio",
    "matplotlib",
    "onnxruntime",
    "openvino",
    "peft",
    "pyarrow",
    "ray",
    "torchvision",
}


def imports(tree: ast.AST, file: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every module that a tree imports, absolute, also by ``import_module`` of a written name."""
    package = ("salcap", *file.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, node) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # "from salcap import video" imports the room, "from salcap.video import x" a name in it
            yield from ((f"{module}.{name.name}" if module == "salcap" else module, node) for name in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from ((str(name.value), node) for name in node.args[:1] if isinstance(name, ast.Constant))


def top_level(tree: ast.Module) -> ast.Module:
    """The tree without what runs only when a function is called."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
            return ast.Constant(None)

    return Strip().visit(tree)


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def faults(file: Path, source: str) -> list[str]:
    """What a file of the package breaks, one line each."""
    tree = ast.parse(source)
    place = file.relative_to(PACKAGE).as_posix()
    room = room_of(file)
    found = [] if room in RANK else [f"{place}: room {room!r} has no row in ROWS"]
    for module, node in imports(tree, file):
        top, _, rest = module.partition(".")
        where = f"{place}:{node.lineno}: imports {module}"  # type: ignore[attr-defined]
        if top == "salcap":
            other = rest.split(".")[0]
            if other == "__version__" or other == room:
                continue
            if RANK.get(other, len(ROWS)) >= RANK.get(room, 0) and (room, other) not in SIDEWAYS:
                found.append(f"{where} against the one way")
        elif top in OWNERS and not place.startswith(OWNERS[top]):
            found.append(f"{where}, only {OWNERS[top]} may")
    for module, node in imports(top_level(tree), file):
        if module.split(".")[0] in OPTIONAL:
            found.append(f"{place}:{node.lineno}: imports {module} outside a function")  # type: ignore[attr-defined]
    lines = source.count("\n")
    if lines > 400:
        found.append(f"{place}: {lines} lines; split it")
    if file.stem in ("utils", "common", "helpers", "misc"):
        found.append(f"{place}: a name that says nothing")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_file_keeps_the_rules(file: Path) -> None:
    assert faults(file, file.read_text(encoding="utf-8")) == []


def test_the_package_was_found() -> None:
    assert {"frames.py", "config.py", "__init__.py"} <= {file.name for file in FILES}


@pytest.mark.parametrize(
    "place, source, expected",
    [
        ("saliency/student.py", "from salcap.captioners import base", "against the one way"),
        ("captioners/git.py", "def f():\n    from salcap.saliency.registry import x", "against the one way"),
        ("frames.py", "import salcap.saliency_captioner", "against the one way"),
        ("weighting/x.py", "from salcap import cli", "against the one way"),
        ("saliency/x.py", "from ..saliency_captioner import SaliencyCaptioner", "against the one way"),
        ("pipeline.py", "import salcap", "against the one way"),
        ("sampling.py", "import av.container", "'video_open.py', 'video_reader.py') may"),
        ("pipeline.py", "def f():\n    import transformers", "may"),
        ("doctor.py", "from importlib import import_module\nimport_module('transformers')", "may"),
        ("evaluation/evaluate.py", "from pycocoevalcap.cider.cider import Cider", "may"),
        ("pipeline.py", "import accelerate", "may"),
        ("video.py", "try:\n    import torchvision\nexcept ImportError:\n    pass", "outside a function"),
        ("corpus.py", "class A:\n    import ray", "outside a function"),
        ("saliency/utils.py", "", "says nothing"),
        ("novelty.py", "", "has no row"),
        ("frames.py", "\n" * 401, "split it"),
    ],
)
def test_a_breach_is_found(place: str, source: str, expected: str) -> None:
    found = faults(PACKAGE / place, source)
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    "place, source",
    [
        ("captioners/git.py", "from salcap.weighting import prune_patches\nimport transformers"),
        ("saliency/x.py", "from .density import f\nfrom ..frames import Frames"),
        ("evaluation/report.py", "def f():\n    import matplotlib.pyplot"),
        ("cli.py", "from salcap import __version__\nfrom salcap.evaluation.captions import score_captions"),
        ("training/x.py", "import accelerate, transformers"),
    ],
)
def test_what_is_allowed_passes(place: str, source: str) -> None:
    assert faults(PACKAGE / place, source) == []
