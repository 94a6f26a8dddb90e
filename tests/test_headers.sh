#!/bin/sh
# Both headers, alone and together, as C and C++, with every switch, warnings as errors; no data of their own; two private
# copies in one program; no C library at all. Compilers that are absent are skipped and named.
set -u
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0 groups=0
warnings="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wcast-align -Werror"

check() { # name, command ...
    name=$1
    shift
    if "$@" >"$work/log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name" >&2
        head -5 "$work/log" >&2
    fi
}
skip() {
    skipped=$((skipped + 1))
    echo "skipped: $1" >&2
}
has() { command -v "$1" >/dev/null 2>&1; }

# Compiling takes long: groups of checks run side by side, each in a directory of its own, and are counted at the end.
group() { # name, command ...
    groups=$((groups + 1))
    mkdir "$work/$1"
    (
        work=$work/$1 passed=0 failed=0 skipped=0
        shift
        "$@"
        echo "$passed $failed $skipped" >"$work/count"
    ) &
}

write_unit() { # file, defines, headers ...
    file=$1 defines=$2
    shift 2
    : >"$file"
    for d in $defines; do echo "#define $d" >>"$file"; done
    for h in "$@"; do echo "#include \"$PWD/$h\"" >>"$file"; done
    echo "int unit_is_not_empty; extern int unit_is_not_empty;" >>"$file"
}

little="L3_NO_STDIO L3_NO_F16 L3_NO_BF16 L3_NO_Q8_0 L3_NO_Q4_0 L3_NO_Q6_K L3_NO_ENCODER L3_NO_SAMPLER L3_NO_SNAPSHOT L3_NO_SELFTEST L3_NO_STEPS L3_NO_PIN"

# Declarations alone, the implementation, each switch. gcc finds more when it optimizes (uninitialized values); it takes longer.
compile_all() { # compiler, standard, language suffix
    for defines in "" "L3_IMPLEMENTATION" "L3_IMPLEMENTATION L3_STATIC L3_THREADS" \
        "L3_IMPLEMENTATION L3_NO_STDIO L3_NO_ERROR_TEXT L3_NO_ALLOCATOR" "L3_IMPLEMENTATION $little"; do
        for headers in "l3.h" "l3_model.h"; do
            write_unit "$work/unit.$3" "$defines" $headers
            check "$1 $2 [$defines] $headers" "$1" "$2" $warnings -fsyntax-only "$work/unit.$3"
        done
    done
    write_unit "$work/unit.$3" "L3_IMPLEMENTATION" l3_model.h l3.h
    check "$1 $2, the other header again" "$1" "$2" $warnings -fsyntax-only "$work/unit.$3"
    case $1 in clang*) return ;; esac
    write_unit "$work/unit.$3" "L3_IMPLEMENTATION" l3_model.h
    check "$1 $2 -O2" "$1" "$2" -O2 $warnings -c "$work/unit.$3" -o "$work/unit.o"
}

for compiler in gcc clang g++ clang++; do
    case $compiler in *++) set -- -std=c++11 cpp ;; *) set -- -std=c99 c ;; esac
    if has $compiler; then group "$compiler" compile_all $compiler "$@"; else skip "$compiler is not installed"; fi
done

# Other word sizes, byte orders and character signs, where a cross compiler is there.
targets() {
    for target in "gcc -m32 -idirafter /usr/include/x86_64-linux-gnu" "gcc -funsigned-char -fshort-enums" \
        aarch64-linux-gnu-gcc arm-linux-gnueabihf-gcc "arm-none-eabi-gcc -mcpu=cortex-m4 -mthumb -DL3_NO_STDIO" \
        "arm-none-eabi-gcc -mcpu=cortex-m0 -mthumb -DL3_NO_STDIO" riscv64-linux-gnu-gcc s390x-linux-gnu-gcc \
        powerpc-linux-gnu-gcc x86_64-w64-mingw32-gcc musl-gcc "clang --target=wasm32-wasi -include stdio.h" \
        "riscv64-unknown-elf-gcc -march=rv32imac -mabi=ilp32 --specs=picolibc.specs -DL3_NO_STDIO"; do
        set -- $target
        echo "int main(void) { return 0; }" >"$work/probe.c"
        if ! has "$1" || ! "$@" -c "$work/probe.c" -o "$work/probe.o" 2>/dev/null ||
            { [ "${2:-}" = -m32 ] && ! "$@" -include stdio.h -c "$work/probe.c" -o "$work/probe.o" 2>/dev/null; }; then
            skip "no compiler: $target"
            continue
        fi
        write_unit "$work/unit.c" "L3_IMPLEMENTATION" l3_model.h
        check "$target" "$@" -std=c99 $warnings -fsyntax-only "$work/unit.c"
    done
}
group targets targets

# A system header first, in strict C99, hides pread and the advice calls: the header must still compile and map files.
printf '#include <stdio.h>\n#define L3_IMPLEMENTATION\n#include "%s/l3_model.h"\nint main(void) { return 0; }\n' "$PWD" >"$work/late.c"
check "after stdio.h in c99" ${CC:-cc} -std=c99 -DL3_NO_SIMD $warnings "$work/late.c" -o "$work/late"

# No data of our own: everything is code and constants.
write_unit "$work/unit.c" "L3_IMPLEMENTATION" l3_model.h
sed -i.bak '/unit_is_not_empty/d' "$work/unit.c"
${CC:-cc} -std=c99 -fno-pic -c "$work/unit.c" -o "$work/unit.o"
check "no .data, no .bss" sh -c "test \"\$(size \"$work/unit.o\" | awk 'NR == 2 { print \$2 + \$3 }')\" = 0"

# Two private copies in one program.
for half in one two; do
    cat >"$work/$half.c" <<END
#define L3_STATIC
#define L3_IMPLEMENTATION
#include "$PWD/l3_model.h"
unsigned version_$half(void);
unsigned version_$half(void) { return l3_version(); }
END
done
cat >"$work/both.c" <<END
unsigned version_one(void), version_two(void);
int main(void) { return version_one() == version_two() ? 0 : 1; }
END
check "two static copies link" ${CC:-cc} -std=c99 -DL3_NO_SIMD "$work/one.c" "$work/two.c" "$work/both.c" -o "$work/both"
check "two static copies run" "$work/both"

# No C library.
model=examples/models/books-l3.gguf
freestanding() { # compiler, runner ...
    cc=$1
    shift
    check "freestanding links: $cc" $cc -std=c99 -O2 -ffreestanding -nostdlib -static -fno-builtin -fno-stack-protector \
        -fno-tree-loop-distribute-patterns -DMODEL_FILE="\"$model\"" tests/freestanding.c tests/model_object.S -o "$work/free" -lgcc
    check "freestanding runs: $cc" "$@" "$work/free"
}
case $(uname -sm) in
"Linux x86_64") if has gcc; then freestanding gcc env; else skip "freestanding build: no gcc"; fi ;;
*) skip "the freestanding build is known for x86-64 Linux only, this is $(uname -sm)" ;;
esac
if has aarch64-linux-gnu-gcc && has qemu-aarch64; then
    freestanding aarch64-linux-gnu-gcc qemu-aarch64
else
    skip "freestanding AArch64: no aarch64-linux-gnu-gcc or qemu-aarch64"
fi

wait
for count in "$work"/*/count; do
    read -r p f s <"$count"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
[ "$(find "$work" -name count | wc -l)" -eq "$groups" ] || failed=$((failed + 1)) # a group that ended early
echo "headers: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
