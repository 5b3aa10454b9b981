#!/usr/bin/env bash
# Builds sdist and wheel, checks them, installs the wheel into an environment of its own, and tries it there.
#   usage: bash scripts/check_release.sh [lowest|highest]
#   lowest        every dependency at its lower bound in pyproject.toml; highest (default): as new as pip finds
#   TORCH         version of torch instead, such as 2.13.0
#   TORCH_BUILD   of that version: +cpu (default), or empty for the one on PyPI, CUDA's of some gigabytes
#   TORCH_INDEX   where that is looked for if pip's own settings know none
#   PYTHON        interpreter of the environments (default python3); they are deleted at the end
set -euo pipefail
bound="${1:-highest}"
case "$bound" in lowest | highest) ;; *) echo "check_release: lowest or highest, got $bound" >&2; exit 2 ;; esac
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 HF_HUB_OFFLINE=1

step() { echo "== $*"; }

step "build: sdist, and from it the wheel"
"${PYTHON:-python3}" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet build twine
"$work/tools/bin/python" -m build --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$work/tools/bin/twine" check --strict "$work"/dist/*
ls -l "$work/dist"
wheel="$(echo "$work"/dist/*.whl)"

step "install with dependencies: $bound"
"${PYTHON:-python3}" -m venv "$work/venv"
python="$work/venv/bin/python"
# name==lower bound, for each dependency that is not an extra's
"$python" - "$wheel" >"$work/lowest.txt" <<'EOF'
import re, sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
for name, bound in re.findall(r"^Requires-Dist: ([\w-]+)>=([\w.]+)$", metadata, re.M):
    print(f"{name}=={bound}")
EOF
if [ "$bound" = highest ]; then : >"$work/constraints.txt"; else grep -v '^torch==' "$work/lowest.txt" >"$work/constraints.txt"; fi
if [ "$bound" = lowest ]; then torch="${TORCH:-$(sed -n 's/^torch==//p' "$work/lowest.txt")}"; else torch="${TORCH:-}"; fi
build="${TORCH_BUILD-+cpu}"
index="${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"
install() { "$python" -m pip install --quiet --constraint "$work/constraints.txt" "$@"; }
# the +cpu build of a version is not on PyPI, so that CUDA's is never taken for it unasked
if [ -n "$torch" ]; then
    install "torch==$torch$build" 2>/dev/null || install "torch==$torch$build" --index-url "$index"
else
    install torch --index-url "$index"
fi
install "$wheel"
"$python" -m pip check
"$python" -m pip list --format=freeze | grep -iE "^(torch|transformers|accelerate|av|huggingface.hub|numpy|pillow|pycocoevalcap|pyyaml|rich|safetensors|typer)=="

cd "$work"
step "salcap doctor"
"$work/venv/bin/salcap" doctor
step "salcap caption"
"$work/venv/bin/salcap" caption "$root/data/sample.mp4" --output captions.vtt
cat captions.vtt
step "the Python interface, another backbone"
"$python" - "$root/data/sample.mp4" <<'EOF'
import sys, salcap
pipe = salcap.pipeline("salcap-mini", saliency="uva_net", keep_ratio=0.25, seed=0)
for record in pipe([sys.argv[1], open(sys.argv[1], "rb")], num_frames=4):
    assert record["error"] is None, record["error"]
    print(record["caption"], record["visual_tokens"], record["saliency"])
print(salcap.score_captions({"a": ["a dog runs on grass"]}, {"a": "a dog runs"}, metrics=["bleu", "cider"])["bleu_1"])
EOF
"$work/venv/bin/salcap" saliency "$root/data/sample.mp4" --num-frames 2 --output sheet.png
step "import times in seconds of CPU, the best of three"
"$python" - <<'EOF'
import os, subprocess, sys

def best(*command):
    times = []
    for _ in range(3):
        before = os.times()
        subprocess.run(command, check=True, capture_output=True)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(times)

after_torch = "import torch, time; before = time.process_time(); import salcap; print(time.process_time() - before)"
runs = [subprocess.run([sys.executable, "-c", after_torch], check=True, capture_output=True, text=True) for _ in range(3)]
print(f"import torch {best(sys.executable, '-c', 'import torch'):.2f}")
print(f"import salcap after it {min(float(run.stdout) for run in runs):.3f}")
print(f"import salcap alone {best(sys.executable, '-c', 'import salcap'):.2f}")
print(f"salcap --help {best(os.path.join(os.path.dirname(sys.executable), 'salcap'), '--help'):.2f}")
EOF
step "passed: $bound"
