#!/bin/sh
# generate-cuda and l3-bench-cuda where there is no GPU, built with tests/cuda/emulator.h: the text of generate in exact mode
# wherever tables are, exit codes, figures for every place, and tools/cuda_check.sh on a machine without a GPU. The programs
# are $BUILD/tests/cuda/generate-cuda and $BUILD/tests/cuda/l3-bench-cuda.
# shellcheck disable=SC2016 # conditions are evaluated later, by check
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
cuda=$build/tests/cuda/generate-cuda bench=$build/tests/cuda/l3-bench-cuda
model=examples/models/stories-l3-small.gguf
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
. tests/shell.sh

text() {
    "$build/generate" "$model" -p "Once upon a" -n 12 -s 5 --exact >"$work/expected" 2>"$work/err"
    for place in auto device host source; do
        run "$cuda" "$model" -p "Once upon a" -n 12 -s 5 --exact --tables $place --stats
        check "generate-cuda writes what generate writes, tables: $place" eval 'ends 0 && cmp -s "$work/out" "$work/expected"'
    done
    check "generate-cuda --stats" eval 'says err "^decode  *12 tokens" && says err "^memory "'
    "$build/generate" "$model" -t 0 -n 40 -c 20 --exact >"$work/expected" 2>"$work/err"
    run "$cuda" "$model" -t 0 -n 40 -c 20 --exact
    check "without a prompt, until the context is full" eval 'ends 0 && cmp -s "$work/out" "$work/expected" && says err "the context is full"'
    check "a seed that nobody chose is said" says err '^seed [0-9]'
    run "$cuda" "$model" -p "Once upon a" -n 0 -s 1
    check "no new tokens" eval 'ends 0 && says out "^Once upon a$"'
    run "$cuda" "$model" -p "Once upon a time there was a cat" -n 1 -c 4 -s 1
    check "a prompt that does not fit" eval 'refused 1'
    run "$cuda" "$work/no-such-file"
    check "no such file" eval 'ends 1 && says err "no such file"'
    run "$cuda" --help
    check "generate-cuda --help" eval 'ends 0 && silent err && says out "^usage: "'
    while read -r arguments; do
        # shellcheck disable=SC2086 # split on purpose
        run "$cuda" "$model" $arguments
        check "generate-cuda $arguments" refused 2
    done <<'END'
-n x
-n 1.5
-n -1
-n
-t nan
--top-k 0
--top-k 1025
--tables disk
--no-such 1
another-model
END
}

# A model that is emulated in no time.
small="--dim 64 --blocks 3 --ffn 96 --heads 4 --kv-heads 2 --vocab 300 --rows 1200 --k 16 --d-emb 32 --d-up 64"
speed() {
    # shellcheck disable=SC2086 # split on purpose
    run env TMPDIR="$work" "$bench" --synthetic 0.8B $small -p 3,5 -b 1,3 -n 2 --depth 3 -r 2 --tables dense,device,host,hot,source
    check "l3-bench-cuda" eval 'ends 0 && [ "$(grep -c "^| synthetic 0.8B | f16 |" "$work/out")" -eq 5 ]'
    check "rows arrive, after blocks 1 and 2" eval '[ "$(grep -c "rows after block [12] wanted" "$work/out")" -eq 16 ]'
    check "models that were made are removed" eval '! ls "$work" | grep -q l3-bench'
    for type in q8_0 q4_0 bf16 f32; do
        # shellcheck disable=SC2086 # split on purpose
        run env TMPDIR="$work" "$bench" --synthetic 0.8B $small --type $type -p 3 -b 2 -n 2 --depth 3 -r 1 --tables dense,host \
            --compare 'echo {prompt} {tokens}' --json
        if command -v python3 >/dev/null; then check "l3-bench-cuda --json, $type" is_json; else skip "no python3 to read JSON"; fi
        check "beside another program, $type" says out '"peer_prefill_tok_s": 3, '
    done
    run "$bench" "$model" -p 3 -b 1 -n 2 --depth 3 -r 9 --limit 1 --text README.md --exact --no-graph --kv f32
    check "l3-bench-cuda MODEL --text" eval 'ends 0 && says out "^the text.s tokens, "'
    run "$bench" "$model" -p 4000
    check "l3-bench-cuda: a prompt that does not fit" refused 1
    run "$bench" "$model" --tables device,disk
    check "l3-bench-cuda --tables disk" refused 2
    run "$bench"
    check "l3-bench-cuda without arguments" refused 2
}

check_script() {
    if command -v nvidia-smi >/dev/null; then
        skip "a machine with nvidia-smi: what cuda_check.sh says without one"
        return
    fi
    run sh tools/cuda_check.sh
    check "cuda_check.sh without a GPU" eval 'ends 0 && says out "^skipped: no GPU"'
}

if [ -x "$cuda" ] && [ -x "$bench" ]; then
    text
    speed
else
    skip "$cuda and $bench are not built"
fi
check_script
echo "cuda tools: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
