#!/bin/sh
# The same on every machine: builds programs for each that has a compiler and an emulator here, and runs them. What is absent
# is skipped and named. As many machines are tried side by side as there are cores. sh tests/cross.sh WORD: only those whose
# line in the table has the word.
set -u
cd "$(dirname "$0")/.." || exit 1
export LC_ALL=C.UTF-8 WINEDEBUG=-all

# name | compiler and options | how to run, several with ";" | what to run
#
# What to run: "portable" is tests/portable.c, whose checksums must be the host's, as exact mode gives the same bits on every
# IEEE-754 machine; "embedded" is the same without a system, the model in the program. "generate" is the example: its text
# must be the host's. "page" is tests/wasm/model.c. "fixed" is tests/fixed.c: fast mode in whole numbers, whose levels are chosen
# when compiling, against its definition; "vectors" the same by clang, as gcc 12 has no intrinsics for RISC-V vectors. Anything
# else is tests/test_NAME.c, or one of its cases, NAME:CASE, with L3_QUICK=1.
#
# Static, as emulators then need no libraries; -DL3_NO_SIMD where kernels are not the point, which saves compiling them. MIPS
# has no misaligned access, as the smallest Arm cores: QEMU ends the program. Raspberry Pi OS for the Zero is hard float for
# Armv6; Debian's hard float is for Armv7, so here the calls are armel's, and the code is the same.
machines() {
    cat <<END
Armv7, hard float, NEON | arm-linux-gnueabihf-gcc -static $threads -march=armv7-a -mfpu=neon-vfpv4 | qemu-arm -cpu cortex-a7 | portable kernels generate types layer_errors files tokenizer sampler alloc model:variants plumbing:same_bits
AArch64 | aarch64-linux-gnu-gcc -static $threads | qemu-aarch64 -cpu cortex-a53; qemu-aarch64 -cpu cortex-a72; qemu-aarch64 -cpu cortex-a76; qemu-aarch64 -cpu max | portable kernels generate types files model:variants
s390x, 64-bit big-endian | s390x-linux-gnu-gcc -static $threads | qemu-s390x | portable generate types layer_errors files tokenizer sampler alloc model:variants plumbing:same_bits plumbing:snapshots
MIPS, 32-bit big-endian, strict alignment | mips-linux-gnu-gcc -static $threads | qemu-mips | portable types layer layer_errors files tokenizer sampler model:variants plumbing:every_window
RISC-V 64 | riscv64-linux-gnu-gcc -static $threads | qemu-riscv64 | portable generate types files tokenizer model:variants plumbing:same_bits
Windows x86-64 | x86_64-w64-mingw32-gcc -static | wine | portable generate types layer_errors files tokenizer sampler alloc model
WebAssembly, WASI | clang $wasi | node --no-warnings tests/wasm/run.mjs | portable generate types layer_errors files tokenizer sampler alloc model
WebAssembly, no C library | clang --target=wasm32 -nostdlib -fno-builtin $wasm_stack -Wl,--no-entry -Wl,--export-dynamic | node tests/wasm/model.mjs | page
RISC-V 32, no system, soft float | riscv64-unknown-elf-gcc -march=rv32imac -mabi=ilp32 $bare_riscv | qemu-system-riscv32 $bare_run | embedded
RISC-V 32, no system, hard float | riscv64-unknown-elf-gcc -march=rv32imafdc -mabi=ilp32d $bare_riscv | qemu-system-riscv32 $bare_run | embedded
RISC-V vectors | riscv64-linux-gnu-gcc -static | qemu-riscv64 -cpu rv64,v=true,vext_spec=v1.0,vlen=128; qemu-riscv64 -cpu rv64,v=true,vext_spec=v1.0,vlen=512 | vectors
Armv7 without NEON | arm-linux-gnueabihf-gcc -static -march=armv7-a -mfpu=vfpv3-d16 | qemu-arm -cpu cortex-a9 | fixed
Cortex-M0+, floats by software | arm-none-eabi-gcc -mcpu=cortex-m0plus $bare_arm,--defsym=__ram=0x21000000 | qemu-system-arm -M mps2-an385 $bare_arm_run | fixed embedded
Cortex-M4 | arm-none-eabi-gcc -mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16 $bare_arm,--defsym=__ram=0x21000000 | qemu-system-arm -M mps2-an386 $bare_arm_run | fixed embedded
Cortex-M55, Helium | arm-none-eabi-gcc -mcpu=cortex-m55 -mfloat-abi=hard -fno-if-conversion2 $bare_arm,--defsym=__ram=0x60000000 | qemu-system-arm -M mps3-an547 $bare_arm_run | fixed
Armv6, Raspberry Pi Zero | arm-linux-gnueabi-gcc -static $threads -march=armv6 -mfpu=vfp -mfloat-abi=softfp -marm | qemu-arm -cpu arm1176 | portable generate types
PowerPC, 32-bit big-endian | powerpc-linux-gnu-gcc -static $threads | qemu-ppc | portable
i686, SSE2 | gcc -m32 -msse2 -mfpmath=sse -idirafter /usr/include/x86_64-linux-gnu $threads | env | portable generate types layer layer_errors files tokenizer sampler alloc memory bad_files model plumbing
x86-64, musl | musl-gcc -static $threads -DL3_NO_SIMD | env | portable generate types files tokenizer model plumbing:threads
x86-64, contraction allowed | gcc -O2 -mfma -mavx2 -ffp-contract=fast $threads | env | kernels
x86-64, -Os, unsigned char, short enumerations | gcc -Os -funsigned-char -fshort-enums -DL3_NO_SIMD | env | portable types layer_errors tokenizer sampler alloc model
x86-64, -O0 | gcc -O0 -DL3_NO_SIMD | env | portable
x86-64, whole numbers | gcc -DL3_NO_SIMD -DL3__FIXED=L3_LEVEL_PLAIN | env | fixed
x86-64, -O3 -march=native | gcc -O3 -march=native | env | portable
x86-64, clang | clang $threads | env | portable types tokenizer
END
}
threads="-pthread -DL3_THREADS"
wasm_stack="-Wl,-z,stack-size=262144,--stack-first" # the linker gives 64 KB, and no warning when they are used up
wasi="--target=wasm32-wasi $wasm_stack -Wl,--initial-memory=536870912" # node 20 fails now and then when it grows
bare_riscv="-mcmodel=medany --specs=picolibc.specs --crt0=semihost --oslib=semihost -Wl,--defsym=__flash=0x80000000"
bare_riscv="$bare_riscv,--defsym=__flash_size=16M,--defsym=__ram=0x81000000,--defsym=__ram_size=32M"
# What programs without a system print by semihosting goes to standard output.
console="-chardev stdio,id=console -semihosting-config enable=on,target=native,chardev=console"
# Microcontrollers: picolibc's start-up code, 512 KB for code and the model, 16 MB of memory. -fno-if-conversion2: else gcc 12
# writes conversions for the Cortex-M55 that binutils 2.40 do not know.
bare_arm="-mthumb --specs=picolibc.specs --crt0=semihost --oslib=semihost -Wl,--defsym=__flash=0x0,--defsym=__flash_size=512K"
bare_arm="$bare_arm,--defsym=__ram_size=16M"
bare_arm_run="-display none $console -kernel"
bare_run="-M virt -m 64M -display none $console -bios none -kernel"

# Contraction is as the compiler has it by default. gnu99, as -std=c99 makes gcc compute floats in double on s390x
# (FLT_EVAL_METHOD 1).
flags="-std=gnu99 -D_POSIX_C_SOURCE=200809L -D_FILE_OFFSET_BITS=64"
model=examples/models/books-l3.gguf
small=examples/models/stories-l3-small.gguf
copy=größe.gguf # a name and a text that are not ASCII
text="Où is ☃"

has() { command -v "$1" >/dev/null 2>&1; }

# passed, failed or skipped, and what; what is known about a failure is in the log.
tell() {
    echo "$1" >>"$out/results"
    echo "$1: $2" >&2
    [ "$1" != failed ] || cat "$out/log" >&2
}

build() { # program, -O, sources and options ...
    program=$out/$1.exe level=$2
    shift 2
    $compiler $flags "$level" $options "$@" -o "$program" $libs >"$out/log" 2>&1
}

run_program() { # arguments ...
    timeout 900 $run "$program" "$@" </dev/null >"$out/printed" 2>>"$out/log"
    status=$?
    tr -d '\r' <"$out/printed" >"$out/got"
    cat "$out/got" >>"$out/log"
    return $status
}

same() { # expected, arguments ...
    expected=$1
    shift
    run_program "$@" && cmp -s "$out/got" "$expected"
}

check() { # what to run, by $run
    case $1 in
    portable) same "$work/portable" $model ;;
    embedded) same "$work/embedded" ;;
    fixed | vectors) run_program ;;
    generate) same "$work/text" "$work/$copy" -p "$text" -n 16 -s 7 --exact --quiet ;;
    page) same "$work/page" $model "$text" 16 ;;
    *:*) L3_TEST=${1#*:} run_program && grep -q ': [1-9][0-9]* passed, 0 failed' "$out/got" ;;
    *) run_program && grep -q ': [1-9][0-9]* passed, 0 failed' "$out/got" ;;
    esac
}

build_for() { # what to run
    case $1 in
    portable) build portable -O2 tests/portable.c ;;
    embedded) build embedded -O2 -DL3_NO_STDIO -DMODEL_FILE="\"$small\"" tests/portable.c tests/model_object.S ;;
    generate) build generate -O2 examples/generate.c ;;
    fixed) build fixed -O2 -DMODEL_FILE="\"$small\"" tests/fixed.c tests/model_object.S ;;
    vectors) # what clang makes vectors of by itself is too much for QEMU 7.2
        "$clang" --target=riscv64-linux-gnu --sysroot=/usr/riscv64-linux-gnu -march=rv64gcv $flags -O2 -fno-vectorize \
            -fno-slp-vectorize -c tests/fixed.c -o "$out/vectors.o" >"$out/log" 2>&1 &&
            build vectors -O2 -DMODEL_FILE="\"$small\"" "$out/vectors.o" tests/model_object.S
        ;;
    page) build page -O2 tests/wasm/model.c "$(clang --target=wasm32-wasi -print-libgcc-file-name)" ;;
    *)
        [ -f "$out/parts" ] || for part in ref make_model; do build $part -O1 -c tests/$part.c || return; done
        touch "$out/parts"
        program=$out/${1%:*}.exe # another case of it may have been built before
        [ -f "$program" ] || build "${1%:*}" -O1 -DL3_IMPLEMENTATION= "tests/test_${1%:*}.c" "$out/ref.exe" "$out/make_model.exe"
        ;;
    esac
}

machine() { # its line in the table
    IFS='|' read -r name words runs what <<END
$(machines | sed -n "$1 s/ *| */|/gp")
END
    out=$work/$1 compiler=${words%% *} options=${words#"${words%% *}"} libs=-lm
    mkdir "$out"
    tools="$compiler ${runs%% *}"
    case $what in vectors) for clang in clang-19 clang-16; do has $clang && break; done; tools="$tools $clang" ;; esac
    for tool in $tools; do
        if ! has "$tool"; then tell skipped "$name needs $tool" && return; fi
    done
    header=stdio.h
    case $what in page) header=stddef.h libs= ;; esac
    printf '#include <%s>\nint main(void) { return 0; }\n' $header >"$out/probe.c"
    if ! build probe -O0 "$out/probe.c"; then tell skipped "$name: $compiler lacks its library" && return; fi
    echo "$runs" | tr ';' '\n' >"$out/runs"
    for item in $what; do
        if ! build_for "$item"; then tell failed "$name: $item does not compile" && continue; fi
        while read -r run; do
            label="$name: $item"
            [ "$run" = "$runs" ] || label="$label, $run"
            if check "$item"; then tell passed "$label"; else tell failed "$label"; fi
        done <"$out/runs"
    done
}

if [ "${1:-}" = --machine ]; then
    machine "$2"
    exit
fi

work=$(mktemp -d) || exit 1
trap 'wineserver -k 2>/dev/null; rm -rf "$work"' EXIT
WINEPREFIX=$work/wine L3_QUICK=1
export work WINEPREFIX L3_QUICK
fixtures=${L3_FIXTURES:-../shared/fixtures}
[ ! -d "$fixtures" ] || L3_FIXTURES=$(cd "$fixtures" && pwd) # WebAssembly sees nothing beside this directory
export L3_FIXTURES
cp $model "$work/$copy"

# What the host's plain C prints.
out=$work compiler=${CC:-cc} options=-DL3_NO_SIMD libs=-lm run=env
for item in portable generate; do
    build_for $item || { cat "$work/log"; exit 1; }
done
program=$work/portable.exe
run_program $small && cp "$work/got" "$work/embedded" && run_program $model && cp "$work/got" "$work/portable" &&
    program=$work/generate.exe && run_program $model -p "$text" -n 16 -s 7 --exact --quiet && cp "$work/got" "$work/text" &&
    run_program $model -p "$text" -n 16 -t 0 --exact --quiet && cp "$work/got" "$work/page" || { cat "$work/log"; exit 1; }
cat "$work/portable" "$work/text" >&2

machines | grep -n -i -F -e "${1:-|}" | cut -d: -f1 | xargs -P "$(getconf _NPROCESSORS_ONLN)" -n 1 sh "$0" --machine

count() { cat "$work"/*/results | grep -c "$1"; }
echo "cross: $(count passed) passed, $(count failed) failed, $(count skipped) skipped"
[ "$(count failed)" = 0 ] && [ "$(count passed)" -gt 0 ]
