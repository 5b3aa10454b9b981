#!/usr/bin/env bash
# The README's see-very-little table: scripts/reproduce_see_little.sh
# Reads $SALCAP_SHARED (default ../shared), writes runs/see-little/. Started again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
python scripts/see_little.py data
salcap train configs/see_little/teacher.yaml
python scripts/see_little.py unlabelled
salcap train configs/see_little/student.yaml
python scripts/see_little.py undistilled
python scripts/see_little.py table
