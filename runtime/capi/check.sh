#!/usr/bin/env bash
# Installs the C interface as docs/linking.md has it (cargo-c, pkg-config) under prefixes of its own, and builds and runs the examples with
# nothing but what pkg-config says: shared, and static.
#
#   runtime/capi/check.sh            builds cargo-c first if it is not there (some minutes)
#
# Not part of test.sh: cargo-c builds the workspace once more, with a name of its own for the shared library.
set -euo pipefail
cd "$(dirname "$0")/../.."
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
CARGO_C='cargo-c@0.10.24+cargo-0.98.0'

fail() {
    echo "FAILED: $1" >&2
    exit 1
}
for program in cargo pkg-config cc c++ readelf nm; do
    command -v "$program" >/dev/null || fail "$program is missing (Debian: apt-get install pkg-config gcc g++ binutils)"
done
if ! command -v cargo-cinstall >/dev/null; then
    export PATH=$TARGET/tools/bin:$PATH
    command -v cargo-cinstall >/dev/null || cargo install --locked --root "$TARGET/tools" "$CARGO_C"
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Only what is installed is found.
export PKG_CONFIG_LIBDIR=$scratch/prefix/lib/pkgconfig

# install KIND...: what is there is replaced.
install() {
    rm -rf "$scratch/prefix"
    cargo cinstall --release -p ropeway-capi --prefix "$scratch/prefix" --libdir "$scratch/prefix/lib" "$@"
}
# installed FILE...: these files, and no others.
installed() {
    diff <(printf '%s\n' "$@" | sort) <(cd "$scratch/prefix" && find . ! -type d -printf '%P\n' | sort) ||
        fail "other files are installed than were expected (<)"
}
# run FLAGS...: builds the examples by what pkg-config says, and runs them.
run() {
    cc -std=c11 runtime/capi/examples/gemm.c $(pkg-config "$@" --cflags --libs ropeway) -lm -o "$scratch/gemm"
    c++ -std=c++17 runtime/capi/examples/moe.cpp $(pkg-config "$@" --cflags --libs ropeway) -o "$scratch/moe"
    "$scratch/gemm" cpu
    "$scratch/moe" cpu
}
needs_library() { readelf -d "$scratch/gemm" | grep -q 'NEEDED.*libropeway'; }

printf '\n==> shared\n'
# The library's number is that of the interface: what was linked with one library runs with every later one of its number.
number=$(sed -n 's/^#define ROPEWAY_API_VERSION //p' runtime/capi/include/ropeway.h)
install --library-type cdylib
library=$scratch/prefix/lib/libropeway.so
installed include/ropeway.h lib/libropeway.so "lib/libropeway.so.$number" "lib/libropeway.so.$number.0.0" lib/pkgconfig/ropeway.pc
readelf -d "$library" | grep -q "SONAME.*\[libropeway.so.$number\]" || fail "the library does not call itself libropeway.so.$number"
[ "$(nm -D --defined-only "$library" | awk '{ print $3 }')" = ropeway_get_api ] || fail "the library exports more than ropeway_get_api"
version=$(cargo pkgid -p ropeway-capi | sed 's/.*[#@]//')
[ "$(pkg-config --modversion ropeway)" = "$version" ] || fail "ropeway.pc is not of version $version"
LD_LIBRARY_PATH=$scratch/prefix/lib run
needs_library || fail "the program was not linked with the shared library"

printf '\n==> static\n'
install --library-type staticlib
installed include/ropeway.h lib/libropeway.a lib/pkgconfig/ropeway.pc
run --static
needs_library && fail "the program was not linked with the static library"

printf '\nboth passed\n'
