#!/bin/sh
# l3-embed: what it writes compiles, assembles and gives the same bytes; the image in a program passes its checksums and its
# self-test, a damaged one does not; names, sections, alignment; what is refused. Needs the programs in $BUILD and $CC.
# shellcheck disable=SC2016 # conditions are evaluated later, by check
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
case $build in /*) ;; *) build=$PWD/$build ;; esac
cc=${CC:-cc}
root=$PWD
model=$root/examples/models/stories-l3-small.gguf
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
. tests/shell.sh
cd "$work" || exit 1

embed() { run "$build/l3-embed" "$@"; }
has() { command -v "$1" >/dev/null 2>&1; }

usage() {
    embed --help
    check "--help" eval 'ends 0 && silent err && says out "^usage: "'
    while read -r arguments; do
        # shellcheck disable=SC2086 # split on purpose
        embed $arguments
        check "l3-embed $arguments" refused 2
    done <<'END'

model.gguf
model.gguf out
model.gguf out.s
model.gguf .S
model.gguf out.S third
model.gguf out.gguf
model.gguf out.S --align 3
model.gguf out.S --align 0
model.gguf out.S --align 2097152
model.gguf out.S --selftest 1
model.gguf out.S --selftest 4097
model.gguf out.S --name 1st
model.gguf out.S --name a-b
model.gguf out.S --name ABC
model.gguf out.S --name
model.gguf out.S --section a,b
model.gguf ABC.S
END
    check "nothing was written" eval '[ -z "$(find . -name "out.*")" ]'
}

# The same image as an assembler file and as C, in the same program.
images() {
    embed "$model" stories.S
    check "an assembler file" eval 'ends 0 && silent err && [ -s stories.S ] && [ -s stories.h ] && [ -s stories.bin ]'
    cp stories.bin first.bin
    cp stories.h first.h
    embed "$model" stories.c
    check "a C file" eval 'ends 0 && [ -s stories.c ]'
    check "the same image and header" eval 'cmp -s stories.bin first.bin && cmp -s stories.h first.h'
    check "the header has the size" grep -q "STORIES_SIZE $(wc -c <stories.bin | tr -d ' ')u" stories.h
    run $cc -std=gnu99 -O1 -Wall -Wextra -Werror -include stories.h -DIMAGE=stories -DIMAGE_SIZE=STORIES_SIZE \
        -DALIGN=256 -c "$root/tests/embedded.c" -o program.o
    check "the program compiles" ends 0
    for source in stories.S stories.c; do
        run $cc $source program.o -o program
        check "$source compiles and links" ends 0
        ./program dump >dumped
        check "$source: the same bytes" cmp -s dumped stories.bin
        check "$source: aligned" ./program aligned
        run ./program run
        check "$source: checksums and self-test" says out "^verify 0, exact 0, fast 0$"
    done
    run $cc -std=c99 -Wall -Wextra -Wpedantic -Wconversion -Werror -c stories.c -o c.o
    check "the C file is C99 without warnings" ends 0
    for compiler in g++ clang++; do
        if has $compiler; then
            run $compiler -std=c++11 -Wall -Wextra -Wpedantic -Wconversion -Werror -x c++ -c stories.c -o cpp.o
            check "the C file is C++11: $compiler" ends 0
            run $cc cpp.o program.o -o program
            check "and links with C: $compiler" eval 'ends 0 && ./program dump | cmp -s - stories.bin'
        else
            skip "$compiler is not installed"
        fi
    done
}

# Bytes that are wrong, and bytes that are right where the numbers are not.
damage() {
    ./program damage >damaged.bin
    run "$build/l3-inspect" --verify damaged.bin
    check "a turned bit does not match the checksum" eval 'refused 1 && says err "checksum"'
    embed damaged.bin again.bin
    check "and is not embedded" eval 'refused 1 && says err "checksum" && [ ! -e again.bin ]'
    ./program forge >forged.bin
    run "$build/l3-inspect" --verify forged.bin
    check "with another checksum the self-test tells" eval 'refused 1 && says err "self-test: after 16 tokens"'
    run "$build/l3-inspect" --verify stories.bin
    check "the image itself is sound" eval 'ends 0 && says out "self-test: the same bits"'
    run "$build/l3-inspect" --verify --json stories.bin
    check "as JSON" eval 'ends 0 && says out "\"selftest_tokens\": 16, \"selftest_fast_difference\": 0"'
    run "$build/l3-inspect" --verify "$model"
    check "a model without a self-test" eval 'ends 0 && ! says out "self-test"'
    head -c 200000 stories.bin >short.bin
    embed short.bin again.bin
    check "a model cut short" eval 'refused 1 && [ ! -e again.bin ]'
    embed "$work/none.gguf" again.bin
    check "no model" refused 1
    embed "$model" none/again.S
    check "no directory" refused 1
}

# Everything else reads the image as the model it is.
others() {
    run "$build/generate" "$model" -p "Once upon a time" -n 24 -t 0 --exact --quiet
    mv out text
    run "$build/generate" stories.bin -p "Once upon a time" -n 24 -t 0 --exact --quiet
    check "the same text" cmp -s out text
    embed stories.bin again.bin
    check "an image of an image is the same" cmp -s again.bin stories.bin
    embed again.bin again.bin
    check "onto itself, too" cmp -s again.bin stories.bin
    check "a header alone declares nothing" eval '! grep -q extern again.h && grep -q "define AGAIN_VOCAB 768" again.h'
    for context in 37 128; do
        printf '#include <stdio.h>\n#include "again.h"\nint main(void) { printf("%%u\\n", AGAIN_MODEL_BYTES + AGAIN_SESSION_BYTES(%du)); }\n' \
            $context >memory.c
        run "$build/l3-inspect" again.bin --budget 1 --mapped --kv q8_0 -c $context --json
        told=$(tr -d ' \n' <out | sed 's/.*"parts":{//; s/"tokenizer_bytes.*//' | tr ',' '\n' | awk -F: '{ n += $2 } END { print n }')
        check "the header's memory for a context of $context" eval '${CC:-cc} memory.c -o memory && [ "$(./memory)" = "$told" ]'
    done
    embed "$model" bare.bin --selftest 0
    run "$build/l3-quantize" stories.bin copied.gguf
    check "l3-quantize leaves the self-test out" eval 'ends 0 && cmp -s copied.gguf bare.bin'
    embed "$model" long.bin --selftest 40
    run "$build/l3-inspect" --verify long.bin
    check "a longer self-test" eval 'ends 0 && says out "self-test  *40 tokens"'
    check "size and memory need not be powers of two" eval '[ $(($(wc -c <long.bin) % 1024)) -ne 0 ]'
}

# Names, sections and other compilers' assemblers.
places() {
    mkdir -p sub
    embed "$model" sub/2nd-try.S --align 4096 --section .model
    check "a name from the file's" eval 'ends 0 && grep -q "extern const unsigned char _2nd_try\[_2ND_TRY_SIZE\]" sub/2nd-try.h'
    run $cc -c sub/2nd-try.S -o placed.o
    check "included by the path given" ends 0
    (cd sub && $cc '-D_2ND_TRY_FILE="2nd-try.bin"' -c 2nd-try.S -o ../other.o) >/dev/null 2>&1
    check "or by another" cmp -s placed.o other.o
    if has objdump; then
        check "in its section, aligned" eval 'objdump -h placed.o | grep -A1 "[.]model .*2\*\*12" | grep -q READONLY'
    else
        skip "objdump is not installed"
    fi
    embed "$model" stories.c --section .model --name weights
    check "C in a section, with a name" eval 'ends 0 && grep -q "section(\"[.]model\")" stories.c && grep -q "unsigned char weights" stories.h'
    for compiler in arm-none-eabi-gcc clang x86_64-w64-mingw32-gcc riscv64-linux-gnu-gcc; do
        if has $compiler; then
            run $compiler -c sub/2nd-try.S -o "$compiler.o"
            check "assembled by $compiler" ends 0
        else
            skip "$compiler is not installed"
        fi
    done
    if has arm-none-eabi-objcopy; then
        arm-none-eabi-objcopy -O binary -j .model arm-none-eabi-gcc.o arm.bin
        check "the same bytes for Arm" cmp -s arm.bin sub/2nd-try.bin
    else
        skip "arm-none-eabi-objcopy is not installed"
    fi
}

usage
images
damage
others
places
echo "embed: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
