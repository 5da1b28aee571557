#!/bin/sh
# Builds and runs the tests of the AscendC subset and of the kernels on it: needs g++ alone. `run.sh gemm` runs those of one program.
# ROPEWAY_TEST_VERBOSE=1 prints what each planted fault is reported as.
set -eu
folder=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
g++ -std=c++17 -O3 -Wall -Wextra -fPIC -fvisibility=hidden -c "$folder/machine.cpp" -o "$work/machine.o"
for test in ${*:-check functions cost lines gemm attention}; do
    g++ -std=c++17 -O1 -Wall -Wextra -DASCENDC_FOLDER="\"$folder\"" -DKERNELS="\"$folder/../../../../kernels\"" \
        "$folder/tests/$test.cpp" -ldl -o "$work/$test"
    ROPEWAY_TEST_FOLDER=$work "$work/$test"
done
