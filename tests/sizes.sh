#!/bin/sh
# Bytes of code, constants and data of the headers, and the deepest stack of any public call, for machines and sets of switches, all
# at -Os and without operating system. Prints lines "machine set text rodata data bss stack libgcc" (what of the compiler's own
# library the whole object needs); machines without a compiler are named on stderr.
#     sh tests/sizes.sh                   all machines, and for m4 every switch alone
#     sh tests/sizes.sh machine ...       these, in five sets
#     sh tests/sizes.sh --calls machine set   "call stack" for every public call
#     sh tests/sizes.sh --table           docs/SIZES.md
set -u
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

compiler_of() { # machine
    m="arm-none-eabi-gcc -mthumb -mcpu=cortex"
    case $1 in
    m0plus) echo "$m-m0plus" ;;
    m3) echo "$m-m3" ;;
    m4) echo "$m-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16" ;;
    m7) echo "$m-m7 -mfloat-abi=hard -mfpu=fpv5-d16" ;;
    m33) echo "$m-m33 -mfloat-abi=hard -mfpu=fpv5-sp-d16" ;;
    m55) echo "$m-m55 -mfloat-abi=hard -fno-if-conversion2" ;; # gas of binutils 2.40 rejects predicated vcvt
    rv32) echo "riscv64-unknown-elf-gcc -isystem /usr/lib/picolibc/riscv64-unknown-elf/include -march=rv32imac -mabi=ilp32" ;;
    aarch64) echo "aarch64-linux-gnu-gcc -DL3_NO_SIMD -fno-pic" ;;
    x86-64) echo "gcc -m64 -DL3_NO_SIMD -fno-pic" ;;
    esac
}
one_type="L3_NO_F16 L3_NO_BF16 L3_NO_Q4_0 L3_NO_Q6_K"
switches_of() { # set
    case $1 in
    all) ;;
    no-allocator) echo L3_NO_ALLOCATOR ;;
    no-text) echo L3_NO_ALLOCATOR L3_NO_ERROR_TEXT ;;
    minimal | linked)
        echo L3_NO_ALLOCATOR L3_NO_ERROR_TEXT "$one_type" L3_NO_ENCODER L3_NO_SNAPSHOT L3_NO_SELFTEST L3_NO_STEPS L3_NO_PIN
        ;;
    *) echo "$1" ;; # one switch
    esac
}

build() { # machine, set: $work/unit.o and its call graph
    echo "#define L3_NO_STDIO" >"$work/unit.c"
    for switch in $(switches_of "$2"); do echo "#define $switch" >>"$work/unit.c"; done
    header=l3_model.h
    if [ "$2" = linked ]; then header=tests/sizes_program.c; fi
    printf '#define L3_IMPLEMENTATION\n#include "%s/%s"\n' "$PWD" $header >>"$work/unit.c"
    # shellcheck disable=SC2046 # a list
    $(compiler_of "$1") -std=gnu99 -Os -fno-asynchronous-unwind-tables -fcallgraph-info=su \
        -ffunction-sections -fdata-sections -c "$work/unit.c" -o "$work/unit.o"
    if [ "$2" = linked ]; then # what program() reaches
        mv "$work/unit.o" "$work/whole.o"
        $(compiler_of "$1") -r -nostdlib -Wl,--gc-sections,-e,program "$work/whole.o" -o "$work/unit.o"
    fi
}
sections() { # file: text rodata data bss
    size -A "$1" | awk '
        /^\.text/ { text += $2 }
        /^\.rodata|^\.srodata/ { rodata += $2 }
        /^\.s?data/ { data += $2 }
        /^\.s?bss/ { bss += $2 }
        END { print text + 0, rodata + 0, data + 0, bss + 0 }'
}
library() { # machine: bytes of libgcc that the object pulls in; libc's functions stay unresolved
    $(compiler_of "$1") -r -nostdlib "$work/unit.o" -lgcc -o "$work/linked" &&
        echo $(($(sections "$work/linked" | sed 's/ /+/g') - ($(sections "$work/unit.o" | sed 's/ /+/g'))))
}
calls() { awk -f tests/stack.awk l3.h l3_model.h "$work/unit.ci"; }
measure() { # machine, set
    build "$1" "$2" || return 1
    stack=$(calls) || return 1
    library=$(library "$1") || return 1
    echo "$1 $2 $(sections "$work/unit.o") ${stack##* } $library"
}

if [ "${1:-}" = --calls ]; then
    build "$2" "$3" && calls
    exit
fi
table() {
    sh tests/sizes.sh >"$work/lines" || return 1
    for set in all minimal; do sh tests/sizes.sh --calls m4 $set >"$work/$set" || return 1; done
    cat <<'END'
# Sizes

Bytes of the two headers' own object, compiled at -Os without operating system (`L3_NO_STDIO`), and the deepest stack of any public
call. `make sizes` writes this file; `tests/test_sizes.sh`, a part of `make test`, compares the lines of Cortex-M4 with
`tests/sizes.txt` and fails where one has grown by 3%.

- **all**: `L3_NO_STDIO` alone. **no-allocator**: and `L3_NO_ALLOCATOR`. **no-text**: and `L3_NO_ERROR_TEXT`. **minimal**: and one
  weight type beside F32 (Q8_0), `L3_NO_ENCODER`, `L3_NO_SNAPSHOT`, `L3_NO_SELFTEST`, `L3_NO_STEPS`, `L3_NO_PIN`. **linked**: what of
  it is left in a program that opens a model, decodes, samples and writes text (`tests/sizes_program.c`, with `-ffunction-sections
  -Wl,--gc-sections`).
- **libgcc** is what the whole object needs of the compiler's own library: doubles, 64-bit division, and floats where there is no FPU.
  Not counted are seven functions of the C library (memcpy, memmove, memset, memcmp, strlen, strcmp, strncmp).
- **Stack** is from the frames that gcc tells (`-fcallgraph-info=su`) and its call graph, with `L3_MAX_ALIGN` 256.
  A call through a pointer is counted as the deepest function that `tests/stack.awk` names for it: kernels, parts of jobs, what a scan
  of the file tells. The caller's own callbacks and functions outside the object count as nothing: add them, and an interrupt's.

END
    compilers=$(for m in m4 rv32 aarch64 x86-64; do c=$(compiler_of $m) && "${c%% *}" --version 2>/dev/null | head -n 1; done)
    printf 'Compilers:\n\n%s\n\n' "$(echo "$compilers" | sed 's/^/    /')"
    awk 'BEGIN {
            print "## By machine\n\n| machine | set | text | rodata | both | data + bss | libgcc | stack |\n|---|---|---:|---:|---:|---:|---:|---:|"
            names = "m0plus Cortex-M0+ m3 Cortex-M3 m4 Cortex-M4F m7 Cortex-M7 m33 Cortex-M33 m55 Cortex-M55 rv32 RV32IMAC aarch64 AArch64 x86-64 x86-64"
            n = split(names, part, " ")
            for (i = 1; i < n; i += 2) name[part[i]] = part[i + 1]
        }
        $2 == "all" && $1 == "m4" { all = $3 + $4 }
        $2 !~ /^L3/ { print "| " name[$1] " | " $2 " | " $3 " | " $4 " | " $3 + $4 " | " $5 + $6 " | " $8 " | " $7 " |" }
        $2 ~ /^L3/ { saves = saves "| `" $2 "` | " all - $3 - $4 " |\n" }
        END { print "\n## What each switch saves alone, Cortex-M4F\n\n| switch | text + rodata |\n|---|---:|\n" saves }' "$work/lines"
    awk 'BEGIN { print "## Stack of each call, Cortex-M4F\n\n| call | all | minimal |\n|---|---:|---:|" }
        NR == FNR { minimal[$1] = $2; next }
        $2 > 100 { row[++n] = "| `" $1 "` | " $2 " | " ($1 in minimal ? minimal[$1] : "-") " |" }
        END { for (i = n; i > 0; i--) print row[i]; print "\nOf all other calls: 100 or less." }' "$work/minimal" "$work/all"
}

if [ "${1:-}" = --table ]; then
    table
    exit
fi
single=
if [ $# -eq 0 ]; then
    set -- m0plus m3 m4 m7 m33 m55 rv32 aarch64 x86-64
    single="L3_NO_ALLOCATOR L3_NO_ERROR_TEXT $one_type L3_NO_Q8_0 L3_NO_ENCODER L3_NO_SAMPLER L3_NO_SNAPSHOT L3_NO_SELFTEST L3_NO_STEPS L3_NO_PIN"
fi
for machine; do
    compiler=$(compiler_of "$machine")
    if ! command -v "${compiler%% *}" >/dev/null; then
        echo "skipped: sizes on $machine need ${compiler%% *}" >&2
        continue
    fi
    for set in all no-allocator no-text minimal linked; do measure "$machine" $set || exit 1; done
    [ "$machine" = m4 ] || continue
    for switch in $single; do measure m4 "$switch" || exit 1; done
done
