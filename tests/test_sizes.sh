#!/bin/sh
# Sizes of memory blocks that are told for a 32-bit machine are what such a machine says.
# shellcheck disable=SC2086 # $flags, $cc and $run are lists
set -u
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
. tests/shell.sh
model=examples/models/stories-l3-small.gguf
flags="-std=gnu11 -O0 -DL3_NO_SIMD"

# Blocks for a 32-bit machine. Arm with short enumerations is what l3_target_32() says; on i686 some structs are smaller.
same_sizes() { cmp -s "$work/told" "$work/out"; }
up_to() { # no number above what was told, or more than a seventh below
    awk 'NR == FNR { told[FNR] = $0; next } { n = split(told[FNR], t); if (n != NF) exit 1
        for (i = 1; i <= NF; i++) if ($i ~ /^[0-9]+$/ && ($i > t[i] || $i * 7 < t[i] * 6)) exit 1 }' "$work/told" "$work/out"
}
blocks() { # name, check, compiler, runner
    name=$1 comparison=$2 cc=$3 run=$4
    echo 'int main(void) { return 0; }' >"$work/probe.c"
    if ! $cc -include stdio.h "$work/probe.c" -o "$work/probe" 2>/dev/null || ! $run "$work/probe" 2>/dev/null; then
        skip "sizes of blocks on $name: no compiler or no emulator"
        return
    fi
    run $cc $flags tests/target_sizes.c -o "$work/there"
    [ "$rc" -ne 0 ] || run $run "$work/there" $model
    check "sizes of blocks on $name" "$comparison"
}
run ${CC:-cc} $flags tests/target_sizes.c -o "$work/here"
[ "$rc" -ne 0 ] || run "$work/here" $model
check "sizes of blocks are told" ends 0
cp "$work/out" "$work/told"
blocks "Arm" same_sizes "arm-linux-gnueabihf-gcc -static -fshort-enums" qemu-arm
blocks "i686" up_to "gcc -m32 -idirafter /usr/include/x86_64-linux-gnu" env

echo "sizes: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
