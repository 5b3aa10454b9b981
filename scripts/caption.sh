#!/usr/bin/env bash
# Captions videos with the bundled model: bash scripts/caption.sh [VIDEO ...] (default: the sample in data/).
# Options of "salcap caption" may follow. Sets everything up by itself; only captions go to standard output.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ $# -eq 0 ]; then set -- "$root/data/sample.mp4"; fi
bash "$root/scripts/setup.sh" >&2
exec "$root/.venv/bin/salcap" caption "$@"
