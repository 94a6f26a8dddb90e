#!/bin/sh
# docs/PORTING.md, as its reader would follow it: the files on that page, built and run in QEMU, with the model mapped and
# behind the driver, write what the desktop writes.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
. tests/shell.sh

for tool in arm-none-eabi-gcc qemu-system-arm; do
    command -v $tool >/dev/null 2>&1 || skip "the page on porting needs $tool"
done
if [ $skipped = 0 ]; then
    # A line that is nothing but a file's name in backquotes, and then a block.
    awk -v to="$work/" '/^`[a-z_0-9]+\.[a-zA-Z]+`$/ { name = to substr($0, 2, length($0) - 2) }
        /^```/ { inside = !inside && name; if (!inside) name = ""; next }
        inside { print > name }' docs/PORTING.md
    cp l3.h l3_model.h "$work"
    run "$build/l3-embed" examples/models/stories-l3-small.gguf "$work/model.bin"
    check "l3-embed writes the model" ends 0
    run "$build/l3-inspect" examples/models/stories-l3-small.gguf --budget 100K --kv q8_0 -c 128
    told=$(awk '$1 == "in" && $2 == "all" { print $3 }' "$work/out")
    check "the page says how much memory it takes" grep -q "($(echo "$told" | sed 's/\(...\)$/,\1/') bytes in all)" docs/PORTING.md
    eval "$(sed -n 's/^    \(FLAGS=.*\)/\1/p' docs/PORTING.md)"
    "$build/generate" "$work/model.bin" -p "Once upon a time" -n 100 -t 0 --exact --kv q8_0 --quiet >"$work/expected"
    cd "$work" || exit 1
    warnings="-Wall -Wextra -Werror"
    run arm-none-eabi-gcc $FLAGS $warnings -c board.c story.c l3.c model.S
    check "PORTING.md compiles" ends 0
    for flash in mapped driver; do
        run arm-none-eabi-gcc $FLAGS $warnings -Wl,--gc-sections --specs=nano.specs -nostartfiles -T link.ld \
            board.o story.o flash_$flash.c l3.o model.o -o $flash.elf
        check "PORTING.md links, $flash" ends 0
        run timeout 300 qemu-system-arm -M netduino2 -nographic -semihosting-config enable=on,target=native -kernel $flash.elf
        check "PORTING.md writes the desktop's text, $flash" cmp out expected
    done
fi
echo "porting: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
