#!/usr/bin/env bash
# Makes .venv and installs salcap into it, editable, with CPU torch; where that is done already, it returns at once.
#   usage: bash scripts/setup.sh [EXTRA]      EXTRA: dev, what scripts/test.sh needs
#   PYTHON        interpreter that makes .venv (default python3; 3.11 or later)
#   TORCH_INDEX   where the CPU build of torch is looked for if pip's own settings know none
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
extra="${1:-}"
venv="$root/.venv"
constraints="$root/scripts/constraints-cpu.txt"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

# the folder's own path counts too: a .venv that was moved or copied along is not a working one
wanted="$({ echo "$root"; cat "$root/pyproject.toml" "$constraints"; } | cksum)"
for stamp in "$venv/.salcap-dev" "$venv/.salcap-${extra:-core}"; do  # dev holds all that core holds
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi
done

install() { "$venv/bin/python" -m pip install --quiet "$@"; }

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "setup: making $venv"
    "${PYTHON:-python3}" -m venv "$venv"
fi
echo "setup: installing salcap${extra:+[$extra]} (minutes the first time, seconds later)"
torch="$(grep '^torch==' "$constraints")"
# a plain requirement would take PyPI's build for CUDA; the +cpu one is not on PyPI, so a first "no" comes at once
if ! install "$torch+cpu" 2>/dev/null; then
    install "$torch" --extra-index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"
fi
install --constraint "$constraints" --editable "$root${extra:+[$extra]}"
echo "$wanted" >"$venv/.salcap-${extra:-core}"
