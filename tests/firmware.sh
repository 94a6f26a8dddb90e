#!/bin/sh
# The firmware example on every board of examples/firmware/boards, in QEMU, with the model mapped and behind the driver: the same
# text, byte for byte, as the desktop's plain C writes in exact mode. Fast mode is compared by logits: the self-test of an image that
# l3-embed made. Then what must not work: writing to the model, a stack that
# is too small, a damaged and a short image. Last, what the same sources say on this machine to thousands of flipped bits.
#     sh tests/firmware.sh --table   prints instead what docs/BENCHMARKS.md shows: instructions a token, memory, flash
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
firmware=$PWD/$build/firmware
prompt="Once upon a time" tokens=64
model=examples/models/stories-l3-small.gguf
dense=$(cd "${L3_FIXTURES:-../shared/fixtures}" 2>/dev/null && pwd)/stories260K/stories260K.gguf
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

for tool in arm-none-eabi-gcc qemu-system-arm; do
    if ! command -v $tool >/dev/null 2>&1; then
        echo "skipped: the firmware example needs $tool" >&2
        echo "firmware: 0 passed, 0 failed, 1 skipped"
        exit 0
    fi
done

check() { # what, command that must succeed
    what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        echo "passed: $what" >&2
    else
        failed=$((failed + 1))
        echo "FAILED: $what" >&2
        tail -n 20 "$work/log" "$work/out" >&2
    fi
}
machine() { sed -n 's/^MACHINE = *//p' "examples/firmware/boards/$1.mk"; }
compile() { # board, name, more for make
    board=$1 name=$2
    shift 2
    ${MAKE:-make} --no-print-directory -C examples/firmware B="$firmware" BOARD="$board" NAME="$name" "$@" >"$work/log" 2>&1
}
compile_all() { ${MAKE:-make} --no-print-directory B="$build" firmware >"$work/log" 2>&1; } # side by side
compile_dense() { compile an386 stories260K MODEL="$dense" DEFINES=-DTRUSTED=1; } # it has no checksums
emulate() { # board, elf file, more options: exit code in $rc, output in $work/out. Time goes by the instructions: every run is the same.
    board=$1 elf=$2
    shift 2
    timeout 300 qemu-system-arm -M "$(machine "$board")" -display none -monitor none -serial stdio -icount shift=0,sleep=off \
        -semihosting-config enable=on,target=native -kernel "$elf" "$@" <"/dev/null" >"$work/out" 2>"$work/log"
    rc=$?
}
figure() { sed -n "\$s/.*\"$1\": \([0-9]*\).*/\1/p" "$work/out"; }

writes() { # board, name, storage, file with the text
    emulate "$1" "$firmware/$2-$3.elf"
    [ $rc = 0 ] && sed '$d' "$work/out" | cmp -s - "$4" && sed -n '$p' "$work/out" | grep -q "^{.*\"storage\": \"$3\".*}\$" &&
        [ "$(figure new_tokens)" -gt 30 ] && [ "$(figure session_bytes)" -le 262144 ]
}
# The driver's price in RAM: two windows and the cache (story.c), and what aligning three blocks to pages takes.
driver_costs() { # session bytes mapped, behind the driver
    [ "$2" -gt "$1" ] && [ $(($2 - $1)) -le $((2 * 4096 + 8192 + 1024)) ]
}
faults() { # board, name, storage, what is expected of cfsr
    emulate "$1" "$firmware/$2-$3.elf"
    [ $rc = 99 ] && grep -q "^fault: cfsr $4," "$work/out"
}
refuses() { # board, name, storage, status
    emulate "$1" "$firmware/$2-$3.elf"
    [ $rc = 1 ] && grep -q "^error $4 (.*), driver [-0-9]*, byte [0-9]*: ..*" "$work/out"
}
desktop() { # model, output
    L3_LEVEL=plain "$build/generate" "$1" --exact --kv q8_0 -c 256 -t 0 -p "$prompt" -n $tokens --quiet >"$2"
}
embed() { "$build/l3-embed" $model "$work/image.S" >"$work/log" 2>&1; }
# Its self-test has run; in exact mode with the bits that the desktop stored, in fast mode with others, not far from them.
selftested() { # mode
    [ "$(figure selftest_tokens)" -gt 8 ] || return 1
    if [ "$1" = exact ]; then [ "$(figure selftest_billionths)" = 0 ]; else [ "$(figure selftest_billionths)" -gt 0 ]; fi
}
allocates_nothing() { ! arm-none-eabi-nm "$1" | grep -qE ' (_?malloc|_?free|_sbrk|_write|printf)$'; }

boards=$(basename -s .mk examples/firmware/boards/*.mk)

# Instructions from one call of l3_decode to the next: a token with its sampling and printing.
instructions() { # board, elf file
    emulate "$1" "$2" -plugin "$work/count.so,at=0x$(arm-none-eabi-nm "$2" | awk '$3 == "l3_decode" { print $1 }')"
    sed -n 's/.*, each //p' "$work/log"
}
row() { # board, name, storage, instructions
    elf=$firmware/$2-$3.elf
    emulate "$1" "$elf"
    code=$(arm-none-eabi-size -A "$elf" | awk '$1 == ".text" { print $2 }')
    echo "| $2 | $3 | $(sed -n '$s/.*"level": "\([a-z0-9]*\)".*/\1/p' "$work/out") | $4 | $code | $(figure model_bytes) | $(figure session_bytes) | $(figure tokenizer_bytes) |" \
        "$(figure sampler_bytes) | $(figure stack_bytes) | $(figure flash_bytes_per_token) |"
}
rows() { # board, name
    row "$1" "$2" mapped "$(instructions "$1" "$firmware/$2-mapped.elf")"
    row "$1" "$2" driver ""
}
if [ "${1:-}" = --table ]; then
    ${CC:-cc} -shared -fPIC -O2 tests/instructions_plugin.c -o "$work/count.so" || exit 1
    echo "| board, model | storage | kernels | instructions a token | code, constants | model | session | tokenizer | sampler | stack | flash read a token |"
    echo "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for board in $boards; do
        compile "$board" "$board" && rows "$board" "$board"
        compile "$board" "$board-fast" DEFINES=-DMODE=L3_FAST && rows "$board" "$board-fast"
    done
    if [ -f "$dense" ]; then compile_dense && rows an386 stories260K; fi
    exit 0
fi

desktop $model "$work/text" || exit 1
check "every board builds" compile_all
for board in $boards; do
    check "$board: nothing allocates or prints" allocates_nothing "$firmware/$board-driver.elf"
    for storage in mapped driver; do
        check "$board, $storage: the desktop's text" writes "$board" "$board" $storage "$work/text"
        if [ $storage = mapped ]; then mapped=$(figure session_bytes); fi
    done
    check "$board: what the driver takes" driver_costs "$mapped" "$(figure session_bytes)"
done

# An image with a self-test. Fast mode has bits of its own for each level of kernels; how the model is reached does not show there,
# either. an385 computes floats by software, an386 has the DSP extension, an547 Helium.
image=$work/image.bin
check "l3-embed makes an image" embed
check "with a self-test, exact, builds" compile an386 an386-image MODEL="$image"
check "an386, exact: the desktop's text" writes an386 an386-image driver "$work/text"
check "... and its logits" selftested exact
for board in an385 an386 an547; do
    check "$board, fast, builds" compile "$board" "$board-tested" DEFINES=-DMODE=L3_FAST MODEL="$image"
    emulate "$board" "$firmware/$board-tested-mapped.elf"
    sed '$d' "$work/out" >"$work/fast"
    check "$board, fast: logits near the desktop's" selftested fast
    check "$board, fast: one text for both storages" writes "$board" "$board-tested" driver "$work/fast"
done
check "a build with fast-math builds" compile an386 fast-math B="$firmware/fast-math" MODEL="$image" CFLAGS="-O2 -ffast-math"
check "... and fails its self-test" refuses an386 fast-math/fast-math mapped -12

# A dense model of another shape, in floats.
if [ -f "$dense" ] && desktop "$dense" "$work/dense"; then
    check "stories260K builds" compile_dense
    for storage in mapped driver; do
        check "stories260K, $storage: the desktop's text" writes an386 stories260K $storage "$work/dense"
    done
else
    skipped=$((skipped + 1))
    echo "skipped: $dense is not here" >&2
fi

# ARMv7-M and ARMv8-M differ in how memory is protected and stacks are limited.
for pair in 'an386:000000[89]2' an547:00100000; do
    board=${pair%:*}
    compile "$board" "$board-write" DEFINES=-DWRITE_TO_MODEL
    check "$board: a write to the model is a fault" faults "$board" "$board-write" mapped 00000082
    compile "$board" "$board-stack" STACK=1K
    check "$board: a stack that is too small is a fault" faults "$board" "$board-stack" driver "${pair#*:}"
done

# One bit changed, the last byte missing, the metadata cut off.
size=$(($(wc -c <$model)))
middle=$((size * 3 / 4))
{
    head -c $middle $model
    printf '%b' "\\0$(printf '%o' $(($(od -An -tu1 -j $middle -N 1 $model) ^ 4)))"
    tail -c +$((middle + 2)) $model
} >"$work/bent.gguf"
head -c $((size - 1)) $model >"$work/short.gguf"
head -c 200 $model >"$work/stub.gguf"
for pair in bent:-9 short:-4 stub:-4; do
    image=${pair%:*}
    compile an386 "$image" MODEL="$work/$image.gguf"
    check "an image that is $image is refused, mapped" refuses an386 "$image" mapped "${pair#*:}"
    check "... and behind the driver" refuses an386 "$image" driver "${pair#*:}"
done

# A model with a type that the build leaves out.
check "a smaller build builds" compile an386 few-types B="$firmware/few" L3="-DL3_NO_STDIO -DL3_NO_Q4_0"
check "a model that the build cannot run is refused" refuses an386 few/few-types mapped -5

if [ -x "$build/tests/test_firmware" ]; then
    check "thousands of flipped bits, a chip that fails or stalls" env L3_LONG=1 "$build/tests/test_firmware" >"$work/out"
else
    skipped=$((skipped + 1))
    echo "skipped: $build/tests/test_firmware is not built" >&2
fi

echo "firmware: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
