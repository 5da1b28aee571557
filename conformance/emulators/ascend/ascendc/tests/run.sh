#!/bin/sh
# Builds and runs the tests of the AscendC subset: needs g++ alone. ROPEWAY_TEST_VERBOSE=1 prints what each planted fault is reported as.
set -eu
folder=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
g++ -std=c++17 -O1 -Wall -Wextra -DASCENDC_FOLDER="\"$folder\"" "$folder/tests/check.cpp" -ldl -o "$work/check"
ROPEWAY_TEST_FOLDER=$work "$work/check"
