#!/bin/sh
# Code, constants and stack on Cortex-M4 by sets of switches, against tests/sizes.txt: 3% more is a failure, as are any data of our
# own, 32 KB in the smallest program, or a stack above 2 KB. What the stack really was, painted, in an emulated Cortex-M4. Sizes
# of memory blocks that are told for a 32-bit machine are what such a machine says. After a change that is meant:
#     sh tests/test_sizes.sh --write      (and `make sizes`, which renews docs/SIZES.md)
# shellcheck disable=SC2086 # $flags, $cc and $run are lists
set -u
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
. tests/shell.sh
model=examples/models/stories-l3-small.gguf
flags="-std=gnu11 -O0"

known=tests/sizes.txt
grown() { # machine, set, text, rodata, data, bss, stack: is it within 3% of what is known, and within the goals?
    awk -v machine="$1" -v set="$2" -v text="$3" -v rodata="$4" -v data="$5" -v bss="$6" -v stack="$7" '
        $1 == machine && $2 == set {
            found = 1
            bad = text + rodata > ($3 + $4) * 1.03 || stack > $7 * 1.03
        }
        END { exit !found || bad || data + bss > 0 || stack > 2048 || (set == "linked" && text + rodata > 32768) }' "$known"
}
if ! command -v arm-none-eabi-gcc >/dev/null; then
    skip "no arm-none-eabi-gcc to compile for Cortex-M4 with"
elif compiler=$(arm-none-eabi-gcc --version | head -n 1) && [ "${1:-}" != --write ] && ! grep -qxF "# $compiler" $known; then
    skip "sizes are known for another compiler than $compiler"
else
    run sh tests/sizes.sh m4
    check "sizes can be taken" ends 0
    if [ "${1:-}" = --write ]; then { echo "# $compiler" && cat "$work/out"; } >$known; fi
    while read -r machine set rest; do
        # shellcheck disable=SC2086 # six numbers
        check "m4, $set: text, rodata, data, bss, stack and libgcc are $rest" grown "$machine" "$set" $rest
    done <"$work/out"
fi

# Measured stacks against those that the call graph tells; the measuring function and libgcc's take up to 96 bytes more.
within() {
    awk 'NR == FNR { told[$1] = $2; next }
        { calls++ }
        !($1 in told) || $2 > told[$1] + 96 || $2 * 2 < told[$1] { bad = 1 }
        END { exit bad || calls < 14 }' "$work/told" "$work/painted"
}
if ! command -v qemu-system-arm >/dev/null || ! command -v arm-none-eabi-gcc >/dev/null; then
    skip "no qemu-system-arm and arm-none-eabi-gcc to paint a stack with"
else
    sh tests/sizes.sh --calls m4 all >"$work/told"
    run arm-none-eabi-gcc -mthumb -mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16 -std=gnu99 -Os -nostartfiles \
        -Wl,--section-start=.vectors=0,-Ttext=0x100,-Tbss=0x20000000,-e,reset "-DMODEL_FILE=\"$model\"" \
        tests/painted_stack.c tests/model_object.S -o "$work/painted.elf"
    [ "$rc" -ne 0 ] || run timeout 60 qemu-system-arm -M mps2-an386 -nographic -semihosting-config enable=on,target=native \
        -kernel "$work/painted.elf"
    check "stacks are measured" ends 0
    grep '^l3_' "$work/err" >"$work/painted"
    check "stacks are within what is told" within
fi

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
run ${CC:-cc} $flags -DL3_NO_SIMD tests/target_sizes.c -o "$work/here"
[ "$rc" -ne 0 ] || run "$work/here" $model
check "sizes of blocks are told" ends 0
cp "$work/out" "$work/told"
blocks "Arm" same_sizes "arm-linux-gnueabihf-gcc -static -fshort-enums" qemu-arm
blocks "i686" up_to "gcc -m32 -DL3_NO_SIMD -DL3__FIXED=L3_LEVEL_PLAIN -idirafter /usr/include/x86_64-linux-gnu" env

echo "sizes: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
