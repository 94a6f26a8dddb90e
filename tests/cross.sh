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

# L3_FAST in whole numbers, whose levels are chosen when compiling: tests/fixed.c against the definition.
fixed() { # name, what is missing ("" if nothing), runner, compiler and options
    name=$1 missing=$2 run=$3
    shift 3
    for tool in "$1" "${run%% *}"; do command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"; done
    if [ -n "$missing" ]; then
        skipped=$((skipped + 1))
        echo "skipped: whole numbers, $name need $missing" >&2
    elif "$@" tests/model_object.S -DMODEL_FILE='"examples/models/stories-l3-small.gguf"' -o "$work/fixed" -lm \
        >"$work/log" 2>&1 && timeout 300 $run "$work/fixed" </dev/null >>"$work/log" 2>&1; then
        passed=$((passed + 1))
        echo "whole numbers: $name" >&2
    else
        failed=$((failed + 1))
        echo "FAILED: whole numbers, $name" >&2
        cat "$work/log" >&2
    fi
}
fixed "plain C" "" env "${CC:-cc}" $flags -DL3_NO_SIMD -DL3__FIXED=L3_LEVEL_PLAIN tests/fixed.c
fixed "Armv7 without NEON: DSP" "" "qemu-arm -cpu cortex-a9" \
    arm-linux-gnueabihf-gcc -static -march=armv7-a -mfpu=vfpv3-d16 $flags tests/fixed.c

# Microcontrollers, with picolibc's start-up code and 16 MB of memory beside the code.
missing=
[ -f "$(arm-none-eabi-gcc -print-file-name=picolibc.specs 2>/dev/null)" ] || missing=" picolibc"
micro() { # name, machine, where its memory is, options
    name=$1 machine=$2 ram=$3
    shift 3
    fixed "$name" "$missing" "qemu-system-arm -M $machine -nographic -semihosting-config enable=on,target=native -kernel" \
        arm-none-eabi-gcc --specs=picolibc.specs --crt0=semihost --oslib=semihost -mthumb -Wl,--defsym=__flash=0x0 \
        -Wl,--defsym=__flash_size=512K "-Wl,--defsym=__ram=$ram" -Wl,--defsym=__ram_size=16M $flags "$@" tests/fixed.c
}
micro "Cortex-M0+, floats by software" mps2-an385 0x21000000 -mcpu=cortex-m0plus
micro "Cortex-M4: DSP" mps2-an386 0x21000000 -mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16
# Without the last option gcc 12 writes conversions for this core that binutils 2.40 do not know.
micro "Cortex-M55: Helium" mps3-an547 0x60000000 -mcpu=cortex-m55 -mfloat-abi=hard -fno-if-conversion2

# gcc 12 has no intrinsics for RISC-V vectors, clang links nothing for it here, and what clang makes vectors of by itself is too
# much for QEMU 7.2.
riscv=riscv64-linux-gnu
for clang in clang-19 clang-16; do command -v $clang >/dev/null 2>&1 && break; done
missing=
if command -v $clang >/dev/null 2>&1 && command -v $riscv-gcc >/dev/null 2>&1; then
    $clang --target=$riscv -march=rv64gcv --sysroot=/usr/$riscv $flags -fno-vectorize -fno-slp-vectorize \
        -c tests/fixed.c -o "$work/rvv.o" || failed=$((failed + 1))
else missing=" $clang"; fi
for bits in 128 512; do
    fixed "RISC-V vectors of $bits bits" "$missing" "qemu-riscv64 -cpu rv64,v=true,vext_spec=v1.0,vlen=$bits" \
        $riscv-gcc -static "$work/rvv.o"
done

echo "cross: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
