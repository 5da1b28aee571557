#!/usr/bin/env bash
# Builds the wheel and tests it in a clean virtual environment, on every device that this machine has.
#
#   runtime/python/test.sh [PYTEST ARGUMENT…]
#
# Needs Python 3.11 or later with venv, and PyPI for what requirements.txt pins. Environment: CARGO_TARGET_DIR, PYTHON.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
mkdir -p "$target/python"
target=$(cd "$target" && pwd)
export CARGO_TARGET_DIR=$target
work=$(mktemp -d "$target/python/test.XXXXXX")
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
python=$work/venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
"$python" -m pip install --quiet --requirement "$here/requirements.txt"
(cd "$here" && VIRTUAL_ENV=$work/venv "$work/venv/bin/maturin" build --release --quiet --interpreter "$python" --out "$work/wheel")
"$python" -m pip install --quiet --no-index --no-deps "$work"/wheel/ropeway-*.whl
cd "$here"
"$python" -c "import ropeway; print(ropeway.devices())"
"$python" -m pytest -p no:cacheprovider "$@"
