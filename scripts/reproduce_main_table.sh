#!/usr/bin/env bash
# The README's main table: scripts/reproduce_main_table.sh
# Reads $SALCAP_SHARED (default ../shared), writes runs/main-table/. Started again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
for seed in 0 1 2; do
  for arm in none center teacher student; do
    python scripts/main_table.py train $arm $seed
    python scripts/main_table.py caption $arm $seed
  done
done
[ -f runs/main-table/times.json ] || python scripts/main_table.py time
python scripts/main_table.py table
