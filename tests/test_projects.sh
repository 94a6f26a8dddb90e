#!/bin/sh
# examples/projects: each is built as its README says where the tools are here, else from its own sources with a stub of the
# SDK's header (tests/stubs), and must write the text that generate writes. What has a cross compiler is compiled by it, too.
# Needs the programs in $BUILD.
# shellcheck disable=SC2016,SC2086 # conditions are evaluated later, by check; flags are split on purpose
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
case $build in /*) ;; *) build=$PWD/$build ;; esac
root=$PWD
projects=$root/examples/projects
model=$root/examples/models/stories-l3-small.gguf
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
. tests/shell.sh
has() { command -v "$1" >/dev/null 2>&1; }
warnings="-Wall -Wextra -Werror"
flags="-O0 -I$projects -I$root -I$work -I$root/tests/stubs" # with L3_NO_STDIO there are no kernels to compile
cc=${CC:-cc}

run "$build/generate" "$model" -p "Once upon a time" -n 32 -t 0 -c 48 --exact --kv q8_0 --quiet
check "generate" ends 0
cp "$work/out" "$work/text"
run "$build/l3-embed" "$model" "$work/stories.c"
check "l3-embed" ends 0

same() { # file: the expected text, whatever the line ends
    tr -d '\r' <"$work/$1" | cmp -s - "$work/text"
}
tells() { # name, program, arguments: it ends well, with the text
    name=$1
    shift
    run "$@"
    check "$name" eval 'ends 0 && silent err && same out'
}

# ---- CMake ----

if has cmake; then
    run cmake -S "$projects/cmake" -B "$work/cmake" -DCMAKE_C_COMPILER="${cc%% *}" -DCMAKE_C_FLAGS="-O1 -DL3_NO_SIMD" \
        -DL3_THREADS=ON
    check "cmake: configure" ends 0
    run cmake --build "$work/cmake"
    check "cmake: build" ends 0
    tells "cmake: text" "$work/cmake/story" "$model"
    tells "cmake: an image of l3-embed" "$work/cmake/story" "$work/stories.bin"
    run "$work/cmake/story" "$projects/tell.h"
    check "cmake: no model" refused 1
else
    skip "cmake is not installed"
fi

# ---- copies in C and C++ ----

if has g++ || has clang++; then
    cxx=$(command -v g++ || command -v clang++)
    run make -C "$projects/vendored" -j2 OUT="$work" CC="$cc" CXX="$cxx" CPPFLAGS=-DL3_NO_SIMD \
        CFLAGS="-O1 $warnings" CXXFLAGS="-O1 $warnings"
    check "vendored: build" ends 0
    tells "vendored: the C program" "$work/c" "$work/stories.bin"
    tells "vendored: the C++ program" "$work/cpp" "$work/stories.bin"
    cat "$work/text" "$work/text" >"$work/twice"
    run "$work/two" "$work/stories.bin"
    check "vendored: two copies in one program" eval 'ends 0 && cmp -s "$work/out" "$work/twice"'
    run "$work/two" "$projects/tell.h"
    check "vendored: no model" eval 'ends 1 && lines err 1'
else
    skip "there is no C++ compiler"
fi

# ---- boards: with stubs of their SDKs, on this machine and for Arm ----

run $cc $flags -c "$work/stories.c" -o "$work/stories.o"
check "the model compiles" ends 0
arm="-mcpu=cortex-m4 -mthumb -fsyntax-only"

on_arm() { # name, compiler, arguments
    if has $2; then
        name=$1
        shift
        run "$@"
        check "$name for Arm" ends 0
    else
        skip "$1 for Arm needs $2"
    fi
}

board() { # name, source, options
    name=$1 source=$projects/$2
    shift 2
    run $cc $flags $warnings "$@" "$source" "$work/stories.o" -o "$work/board"
    check "$name: compiles" ends 0
    tells "$name: text" "$work/board"
    on_arm "$name" arm-none-eabi-gcc $arm $flags $warnings "$@" "$source"
}
board pico pico/main.c
board zephyr zephyr/src/main.c
board esp-idf esp-idf/main/main.c -DSTUB_MAIN "-DSTUB_PARTITION=\"$work/stories.bin\""

sketch="$flags $warnings -x c++ -std=gnu++11"
printf '#include "%s/arduino/story/story.ino"\nint main() { setup(); loop(); }\n' "$projects" >"$work/sketch.cpp"
if has g++; then
    run g++ $sketch "$work/sketch.cpp" -x none "$work/stories.o" -o "$work/board"
    check "arduino: compiles" ends 0
    tells "arduino: text" "$work/board"
else
    skip "arduino needs g++"
fi
on_arm arduino arm-none-eabi-g++ $sketch $arm "$work/sketch.cpp"

echo "projects: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
