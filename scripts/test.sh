#!/usr/bin/env bash
# Lint, types and all tests: bash scripts/test.sh [pytest options]. Sets everything up by itself.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/setup.sh" dev
cd "$root"
python="$root/.venv/bin/python"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest -n auto --dist loadfile "$@"  # a file stays in one process, and with it what its tests share
