#!/usr/bin/env bash
# The whole suite on the emulated CANN, as each version of it: device tests, all fixed cases and 500 generated ones. The first version takes longest: what
# g++ made of a kernel serves the others, too.
#
#   cargo build --release -p ropeway-cli -p ropeway-ascend-emulator
#   conformance/emulators/ascend/check.sh [--output DIRECTORY] [VERSION]...      9.0 8.5 9.1 8.1 if none is named
#
# A report (VERSION.json) of each goes to the directory. CANN 8.1 has no run-time compiler: what 9.0's compiled is loaded there.
set -uo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
tools=${CARGO_TARGET_DIR:-$root/target}/release
output=.
if [ "${1:-}" = --output ]; then
    output=$2
    shift 2
fi
[ $# -gt 0 ] || set -- 9.0 8.5 9.1 8.1
private=$(mktemp -d)
trap 'rm -rf "$private"' EXIT
unset ASCEND_TOOLKIT_HOME
export ROPEWAY_EMULATED_CANN_REPORT=$private/breaches
export ROPEWAY_EMULATED_CANN_STORE=${ROPEWAY_EMULATED_CANN_STORE:-$private/store}

as_version() {
    "$tools/ropeway-ascend-emulator" install "$private/$1" --profile "$1" >/dev/null || exit 1
    export ASCEND_HOME_PATH=$private/$1 ROPEWAY_CACHE_DIR=$private/cache-$1
    shift
    "$@"
}

failed=0
for version; do
    unset ROPEWAY_BINARIES_DIR
    if [ "$version" = 8.1 ]; then
        (as_version 9.0 "$tools/ropeway" compile --language ascendc --arch dav-2201 --cases=500 --output "$private/kernels") || exit 1
        export ROPEWAY_BINARIES_DIR=$private/kernels
    fi
    echo "==> CANN $version, emulated"
    (as_version "$version" "$tools/ropeway" devices) | grep ascend:0
    (as_version "$version" "$tools/ropeway" check --device ascend --full --cases 500 --seed 1 --json) >"$output/$version.json"
    status=$?
    python3 - "$output/$version.json" <<'END' || status=1
import json, sys
for device in json.load(open(sys.argv[1]))["devices"]:
    print({name: device[name] for name in ("passed", "failed", "skipped") if name in device})
END
    if [ $status != 0 ]; then
        failed=1
        cat "$private/breaches" 2>/dev/null
    fi
done
exit $failed
