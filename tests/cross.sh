#!/bin/sh
# Exact mode gives the same bits on every IEEE-754 machine: builds tests/portable.c for each that has a compiler and an
# emulator here, and compares what it prints with the host's. Absent ones are skipped and named.
set -u
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d) || exit 1
trap 'wineserver -k 2>/dev/null; rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0
# gnu99, as -std=c99 makes gcc compute floats in double on s390x (FLT_EVAL_METHOD 1).
flags="-std=gnu99 -O2 -ffp-contract=off -D_FILE_OFFSET_BITS=64"
model=examples/models/books-l3.gguf

${CC:-cc} $flags tests/portable.c -o "$work/host" && "$work/host" $model >"$work/expect" || exit 1
cat "$work/expect" >&2

compare() { # name, compiler, runner ("" for none)
    name=$1 cc=$2 run=$3
    set -- $cc
    compiler=$1
    set -- $run
    if ! command -v "$compiler" >/dev/null 2>&1 || { [ $# -gt 0 ] && ! command -v "$1" >/dev/null 2>&1; }; then
        skipped=$((skipped + 1))
        echo "skipped: $name needs $compiler${1:+ and $1}" >&2
        return
    fi
    if $compiler $flags ${cc#"$compiler"} tests/portable.c -o "$work/other.exe" >"$work/log" 2>&1 &&
        timeout 600 $run "$work/other.exe" $model >"$work/got" 2>>"$work/log" && tr -d '\r' <"$work/got" | cmp -s - "$work/expect"; then
        passed=$((passed + 1))
        echo "same: $name" >&2
    else
        failed=$((failed + 1))
        echo "FAILED: $name" >&2
        cat "$work/log" "$work/got" >&2
    fi
}

compare "x86-64, gcc -O0" "gcc -O0" ""
compare "x86-64, gcc -O3 -march=native" "gcc -O3 -march=native" ""
compare "x86-64, clang" clang ""
compare "x86-64, small code" "gcc -Os -DL3_NO_SIMD" ""
compare "i686, SSE2" "gcc -m32 -msse2 -mfpmath=sse -idirafter /usr/include/x86_64-linux-gnu" ""
compare "AArch64, Cortex-A53" "aarch64-linux-gnu-gcc -static" "qemu-aarch64 -cpu cortex-a53"
compare "AArch64, max" "aarch64-linux-gnu-gcc -static" "qemu-aarch64 -cpu max"
compare "Armv7 hard float" "arm-linux-gnueabihf-gcc -static -march=armv7-a -mfpu=neon-vfpv4" "qemu-arm -cpu cortex-a7"
compare "RISC-V 64" "riscv64-linux-gnu-gcc -static" qemu-riscv64
compare "s390x, big-endian" "s390x-linux-gnu-gcc -static" qemu-s390x
compare "PowerPC, 32-bit big-endian" "powerpc-linux-gnu-gcc -static" qemu-ppc
WINEPREFIX="$work/wine" WINEDEBUG=-all
export WINEPREFIX WINEDEBUG
compare "Windows x86-64, wine" "x86_64-w64-mingw32-gcc -static" wine

# The kernels of Arm against plain C: NEON alone, then every level of AArch64.
kernels() { # name, compiler, runner
    name=$1 cc=$2 run=$3
    if ! command -v "${cc%% *}" >/dev/null 2>&1 || ! command -v "${run%% *}" >/dev/null 2>&1; then
        skipped=$((skipped + 1))
        echo "skipped: kernels of $name need ${cc%% *} and ${run%% *}" >&2
    elif $cc -static $flags -D_POSIX_C_SOURCE=200809L tests/test_kernels.c tests/ref.c tests/make_model.c \
        -o "$work/kernels" -lm >"$work/log" 2>&1 && L3_QUICK=1 timeout 900 $run "$work/kernels" >>"$work/log" 2>&1; then
        passed=$((passed + 1))
        echo "kernels: $name" >&2
    else
        failed=$((failed + 1))
        echo "FAILED: kernels of $name" >&2
        cat "$work/log" >&2
    fi
}
kernels "Armv7, NEON" "arm-linux-gnueabihf-gcc -march=armv7-a -mfpu=neon-vfpv4" "qemu-arm -cpu cortex-a7"
kernels "AArch64, Cortex-A53" aarch64-linux-gnu-gcc "qemu-aarch64 -cpu cortex-a53"
kernels "AArch64, max" aarch64-linux-gnu-gcc "qemu-aarch64 -cpu max"

echo "cross: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
