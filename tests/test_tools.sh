#!/bin/sh
# The command lines of generate and the tools: exit codes, what goes where, the same text whatever the plumbing, known
# numbers, bad files, and the examples. Needs the programs in $BUILD; fixtures in $L3_FIXTURES where they are there.
# shellcheck disable=SC2016 # conditions are evaluated later, by check
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
fixtures=${L3_FIXTURES:-../shared/fixtures}
model=examples/models/books-l3.gguf
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
. tests/shell.sh

# ---- usage ----

usage() {
    for tool in generate l3-eval l3-inspect l3-bench l3-cache; do
        run "$build/$tool" --help
        check "$tool --help" eval 'ends 0 && silent err && says out "^usage: "'
        run "$build/$tool"
        check "$tool without arguments" refused 2
        run "$build/$tool" "$model" --no-such-option
        check "$tool --no-such-option" refused 2
        run "$build/$tool" "$model" "$model"
        check "$tool with two models" refused 2
    done
    while read -r arguments; do
        # shellcheck disable=SC2086 # split on purpose
        run "$build/generate" "$model" $arguments
        check "generate $arguments" refused 2
    done <<'END'
-n x
-n -1
-n 99999999999
-n
-t nan
-t 0x1
-t -1
--top-p 2
--top-p=
--source disk
--cache 5X
--cache 99999999999999999999
-c 0
-s abc
-s 18446744073709551616
--stats=1
-p a -f b
END
    run "$build/l3-eval" "$model" --ids x.i32
    check "l3-eval --ids without --logits" refused 2
    run "$build/l3-eval" "$model" --text a --encode b
    check "l3-eval with two tasks" refused 2
    run "$build/l3-bench" "$model" -j 1,
    check "l3-bench -j 1," refused 2
    for arguments in "" "--sizes 5x" "--sizes 0%" "--sizes 101%" "--policies best" "--streams 65" "--window 0"; do
        # shellcheck disable=SC2086
        run "$build/l3-cache" "$model" ${arguments:+--text README.md} $arguments
        check "l3-cache $arguments" refused 2
    done
}

# ---- generate ----

generate() { run "$build/generate" "$model" "$@"; }
same_text() { # name, arguments: the text in $work/text once more
    name=$1
    shift
    generate -p "Once upon a time" -n 60 -s 5 "$@"
    check "$name gives the same text" eval 'ends 0 && cmp -s "$work/out" "$work/text"'
}

text() {
    generate -p "Once upon a time" -n 60 -s 5
    check "text on standard output" eval 'ends 0 && says out "^Once upon a time" && ! silent err'
    cp "$work/out" "$work/text"
    check "a newline ends the output" eval '[ "$(tail -c 1 "$work/text" | od -An -c | tr -d " ")" = "\\n" ]'
    same_text "the same seed"
    same_text "--source map" --source map
    same_text "--source read" --source read
    same_text "--source=read --cache 64K" --source=read --cache 64K
    same_text "a cache of 2 MB" --source read --cache 2M
    same_text "a small window" --source read --window 4K
    same_text "weights in memory" --source read --window 4K --pin 300K
    same_text "rows read by a thread" --source ahead --cache 100K
    same_text "two threads" -j2
    same_text "three threads, read" -j 3 --source read
    same_text "a smaller context" -c 80
    generate -p "Once upon a time" -n 60 -s 6
    check "another seed gives another text" eval '! cmp -s "$work/out" "$work/text"'
    generate -p "Once upon a time" -n 60
    seed=$(awk '/^seed / { print $2 }' "$work/err")
    cp "$work/out" "$work/text"
    generate -p "Once upon a time" -n 60 -s "$seed"
    check "the seed that is printed gives the same text" eval 'cmp -s "$work/out" "$work/text"'
    generate -p "Once upon a time" -n 60 -t 0 --exact --source read --kv f16
    check "--exact --kv f16" eval 'ends 0 && says out "^Once upon a time"'
    generate -p "Once upon a time" -n 60 -s 5 --top-k 0 --top-p 1 --min-p 0 --repeat-penalty 1.2 --repeat-last-n 32
    check "every sampling option" eval 'ends 0 && says out "^Once upon a time"'
    generate -p "" -n 8 -s 1
    check "an empty prompt" eval 'ends 0 && ! silent out'
}

limits() {
    generate -p "Once upon a time" -n 0 -s 1
    check "-n 0 prints the prompt" eval 'ends 0 && [ "$(cat "$work/out")" = "Once upon a time" ]'
    generate -p "Once upon a time" -n 9 -s 1 --quiet
    check "--quiet" eval 'ends 0 && silent err'
    generate -p "Once upon a time" -n 9 -s 1
    check "says that -n ended it" says err "after 9 new tokens.*-n"
    generate -p "Once upon a time" -c 16 -t 0
    check "says that the context is full" eval 'ends 0 && says err "context is full"'
    generate -p "Once upon a time" -c 4
    check "a prompt that does not fit" eval 'refused 1 && says err "context holds 4"'
    generate -c 1000000 -s 1
    check "a context that the model has not" refused 1
    generate -s 1 --source read --window 16
    check "a window that is too small" refused 1
    generate -p "Once" -n 20 -s 1 --stats --cache 64K
    check "--stats, and a cache without effect" eval 'says err "tokens/s" && says err "no effect"'
    generate -p "Once" -n 20 -s 1 --stats --cache 2K --source read
    check "a cache that is too small is reported" says err "cache .* [1-9][0-9]* had no room"
    generate -p "Once" -n 20 -s 1 --stats --cache 1M --source read
    check "a cache that works" eval 'says err "cache *[1-9].* 0 had no room" && ! says err "no effect"'
    generate -p "Once" -n 20 -s 1 --stats --pin 1G --source read
    check "all weights in memory" eval 'says err "^pinned  *2.8 MB" && says err "^weights *read 0"'
    generate -p "Once" -n 20 -s 1 --stats --pin 1G
    check "nothing is pinned where the file is mapped" eval 'ends 0 && ! says err "^pinned"'
    printf 'Once upon a time' >"$work/prompt"
    generate -f "$work/prompt" -n 9 -t 0 -s 1
    cp "$work/out" "$work/text"
    generate -p "Once upon a time" -n 9 -t 0 -s 1
    check "-f and -p are the same" cmp -s "$work/out" "$work/text"
    "$build/generate" "$model" -f - -n 9 -t 0 -s 1 <"$work/prompt" >"$work/out" 2>"$work/err"
    check "-f - reads standard input" cmp -s "$work/out" "$work/text"
    if [ -c /dev/full ]; then
        "$build/generate" "$model" -p Once -s 1 >/dev/full 2>"$work/err"
        rc=$?
        check "a full disk under standard output" eval 'ends 1 && lines err 1'
    else
        skip "no /dev/full"
    fi
}

greedy() {
    if ! command -v python3 >/dev/null || [ ! -f "$fixtures/stories-l3.greedy.json" ]; then
        skip "greedy texts: no fixtures or no python3"
        return
    fi
    for i in 0 1 2; do
        python3 - "$fixtures/stories-l3.greedy.json" $i "$work" <<'END'
import json, sys
case = json.load(open(sys.argv[1]))[int(sys.argv[2])]
open(sys.argv[3] + "/prompt", "w").write(case["prompt"])
open(sys.argv[3] + "/expect", "w").write(case["expect"] + "\n")
END
        run "$build/generate" "$fixtures/stories-l3.gguf" -f "$work/prompt" -n 120 -t 0
        check "greedy text $i" cmp -s "$work/out" "$work/expect"
    done
    run "$build/generate" "$fixtures/stories260K/stories260K.gguf" -n 200 -t 0
    check "greedy text of stories260K" eval '[ "$(head -c 400 "$work/out")" = "$(head -c 400 "$fixtures/stories260K/greedy200.txt")" ]'
}

# ---- l3-eval ----

perplexity() {
    printf 'Once upon a time there was a little dog.\n<|endoftext|>\n\n<|endoftext|>\nThe dog ran to the park. ' >"$work/text.txt"
    run "$build/l3-eval" "$model" --text "$work/text.txt"
    check "perplexity and bits per byte" eval 'ends 0 && lines out 2 && says out "^perplexity [0-9.]* over [0-9]* tokens$" &&
        says out "^bits per byte [0-9.]* over 65 bytes$"'
    cp "$work/out" "$work/text"
    for how in "--source read" "--source read --cache 64K" "-j 2" "-c 64"; do
        # shellcheck disable=SC2086
        run "$build/l3-eval" "$model" --text "$work/text.txt" $how
        check "perplexity with $how" cmp -s "$work/out" "$work/text"
    done
    run "$build/l3-eval" "$model" --text "$work/text.txt" --exact
    cp "$work/out" "$work/text"
    run "$build/l3-eval" "$model" --text "$work/text.txt" --exact --decode
    check "perplexity token by token" eval 'ends 0 && cmp -s "$work/out" "$work/text"'
    run env L3_LEVEL=avx2 "$build/l3-eval" "$model" --text "$work/text.txt"
    if ends 0; then # decoding rounds to int8 there, prompts to int16
        cp "$work/out" "$work/text"
        run env L3_LEVEL=avx2 "$build/l3-eval" "$model" --text "$work/text.txt" --decode
        check "--decode has kernels of its own" eval 'ends 0 && ! cmp -s "$work/out" "$work/text"'
    fi
    run "$build/l3-eval" "$model" --encode "$work/text.txt" --decode
    check "--decode without a text to predict" refused 2
    run "$build/l3-eval" "$model" --text "$work/text.txt" --window 1000
    check "a window above the context" refused 1
    printf '\n<|endoftext|>\n<|endoftext|>\n' >"$work/none.txt"
    run "$build/l3-eval" "$model" --text "$work/none.txt" --window 8
    check "a text that holds a newline only" eval 'ends 0 || refused 1'
    run "$build/l3-eval" "$model" --text "$work/no-such-file"
    check "a text that is not there" refused 1
    if [ ! -f "$fixtures/stories_eval.txt" ]; then
        skip "perplexity fixtures"
        return
    fi
    run "$build/l3-eval" "$fixtures/stories-l3.gguf" --text "$fixtures/stories_eval.txt" --window 256
    check "perplexity in windows of 256" eval 'near out perplexity 18.713424607609106 0.001 && says out "over 4632 tokens"'
    run "$build/l3-eval" "$fixtures/stories-l3.gguf" --text "$fixtures/stories_eval.txt" --window 64
    check "perplexity in windows of 64" eval 'near out perplexity 24.702730622939313 0.001 && says out "over 4632 tokens"'
}

logits() {
    # tokens 1 432 443 261
    printf '\001\000\000\000\260\001\000\000\273\001\000\000\005\001\000\000' >"$work/ids.i32"
    run "$build/l3-eval" "$model" --ids "$work/ids.i32" --logits "$work/a.f32"
    check "logits" eval 'ends 0 && silent out && size_is "$work/a.f32" 65536'
    run "$build/l3-eval" "$model" --ids "$work/ids.i32" --logits "$work/b.f32" --source read -j 2
    check "logits, read and in two threads" cmp -s "$work/a.f32" "$work/b.f32"
    run "$build/l3-eval" "$model" --ids "$work/ids.i32" --logits -
    check "logits on standard output" cmp -s "$work/out" "$work/a.f32"
    ln -s a.f32 "$work/link.f32"
    run "$build/l3-eval" "$model" --ids "$work/ids.i32" --logits "$work/link.f32" --exact
    check "a link stays a link" eval 'ends 0 && [ -L "$work/link.f32" ]'
    echo old >"$work/old.f32"
    printf '\001\000\000\000\377\377\000\000' >"$work/bad.i32"
    run "$build/l3-eval" "$model" --ids "$work/bad.i32" --logits "$work/old.f32"
    check "a token outside the vocabulary keeps the old file" eval 'refused 1 && [ "$(cat "$work/old.f32")" = old ]'
    run sh -c 'trap "" XFSZ; ulimit -f 8; exec "$0" "$@"' "$build/l3-eval" "$model" --ids "$work/ids.i32" --logits "$work/old.f32"
    check "a full disk keeps the old file" eval 'refused 1 && [ "$(cat "$work/old.f32")" = old ]'
    run "$build/l3-eval" "$model" --ids "$work/ids.i32" --logits "$work/no/such/folder.f32"
    check "a folder that is not there" refused 1
    run "$build/l3-eval" "$model" --ids "$work/ids.i32" --logits "$work/c.f32" -c 3
    check "more tokens than the context holds" eval 'refused 1 && [ ! -e "$work/c.f32" ]'
    printf '123' >"$work/odd.i32"
    run "$build/l3-eval" "$model" --ids "$work/odd.i32" --logits "$work/c.f32"
    check "IDs that are no whole number" refused 1
    check "no temporary files are left" eval '! ls "$work" | grep -q tmp'
    run "$build/l3-eval" "$model" --ids "$work/ids.i32" --logits /dev/null
    check "a device is written in place" eval 'ends 0 && [ -c /dev/null ]'
}

encode() {
    printf 'Once upon a time\n\n leading\ntwo  spaces\ntab\there\n<s> not special </s>\ntrailing \na' >"$work/lines"
    cat >"$work/expect" <<'END'
432 443 261 404

1975 498 359 292
913 1975 466 734 321
670 1996 12 769
1975 63 1984 65 382 723 1975 63 50 1984 65
1056 1928 1975
261
END
    if [ -f "$fixtures/stories-l3.gguf" ]; then
        run "$build/l3-eval" "$fixtures/stories-l3.gguf" --encode "$work/lines"
        check "encoding lines" eval 'ends 0 && cmp -s "$work/out" "$work/expect"'
        "$build/l3-eval" "$fixtures/stories-l3.gguf" --encode - <"$work/lines" >"$work/out" 2>"$work/err"
        check "encoding standard input" cmp -s "$work/out" "$work/expect"
    else
        skip "no fixture stories-l3.gguf for encodings"
    fi
    awk 'BEGIN { for (i = 0; i < 20000; i++) printf "x" }' >"$work/long"
    run "$build/l3-eval" "$model" --encode "$work/long"
    check "a word of 20000 letters" eval 'ends 0 && [ "$(wc -w <"$work/out")" -eq 20001 ]'
    run "$build/l3-eval" "$model" --encode /dev/null
    check "encoding nothing" eval 'ends 0 && silent out'
}

# ---- bad files, for every program ----

bad_files() {
    mkdir "$work/folder"
    : >"$work/empty.gguf"
    head -c 20 "$model" >"$work/head.gguf"
    head -c 20000 "$model" >"$work/keys.gguf"
    head -c 3000000 "$model" >"$work/data.gguf"
    echo "no model at all, but long enough to be one" >"$work/text.gguf"
    for file in no-such-file folder empty.gguf head.gguf keys.gguf data.gguf text.gguf; do
        for program in "generate" "l3-eval --encode $work/lines" "l3-eval --text $work/lines" "l3-inspect" "l3-inspect --json --verify" "l3-bench -p 1 -n 1" "l3-cache --text $work/lines"; do
            # shellcheck disable=SC2086
            set -- $program
            tool=$1
            shift
            run "$build/$tool" "$work/$file" "$@"
            check "$tool $file" refused 1
        done
    done
}

# ---- l3-inspect, l3-bench, examples ----

inspect() {
    run "$build/l3-inspect" "$model" --verify
    check "l3-inspect --verify" eval 'ends 0 && silent err && says out "^verified" && says out "11236000"'
    run "$build/l3-inspect" "$model" -c 1000000
    check "l3-inspect with too much context" eval 'ends 1 && lines err 1'
    run "$build/l3-inspect" "$model" --text "$work/lines" --json
    if command -v python3 >/dev/null; then check "l3-inspect --json" is_json; else skip "no python3 to read JSON"; fi
    check "the JSON has what it should" eval 'says out "\"table_parameters\": 8519680" && says out "\"cases\": \[{"'
}

bench() {
    run "$build/l3-bench" "$model" -j 1,2 -p 8,16 -n 4 -r 2 --source read --cache 64K --json
    if command -v python3 >/dev/null; then check "l3-bench --json" is_json; else skip "no python3 to read JSON"; fi
    check "four cases" eval '[ "$(grep -o prefill_tok_s "$work/out" | wc -l)" -eq 4 ] && says out "\"floor_gb_s\""'
    session_bytes() { grep -o '"session_bytes": [0-9]*' "$work/out" | head -n 1 | tr -dc 0-9; }
    whole=$(session_bytes)
    run "$build/l3-bench" "$model" -j 1 -p 8 -n 4 -r 1 --source read --cache 64K --batch 1 --json
    check "a batch of one takes less memory" eval 'ends 0 && [ "$(session_bytes)" -lt "$whole" ]'
    for level in plain avx2 avx512 bf16 amx; do
        run env L3_LEVEL=$level "$build/l3-bench" "$model" -j 2 -p 8 -n 1 -r 1
        ends 0 || continue # not on this machine
        case $level in plain) none=! ;; *) none= ;; esac
        check "the floor of prompts, $level" eval "$none"' says out "^ *peak products .*billion/s" && says out "^ *memory floor "'
    done
    for type in q8_0 q4_0 f16 bf16 f32; do
        run env TMPDIR="$work" "$build/l3-bench" --synthetic 110M --dim 64 --blocks 2 --ffn 96 --heads 4 --kv-heads 2 --vocab 300 \
            --rows 900 --k 20 --d-emb 32 --type $type -p 4 -n 4 -r 1
        check "l3-bench --synthetic, $type" eval 'ends 0 && says out "^synthetic 110M"'
    done
    run env TMPDIR="$work" "$build/l3-bench" --synthetic 1.1B --dim 64 --blocks 1 --ffn 64 --heads 2 --kv-heads 1 --vocab 100 --lookups 0 -p 4 -n 4 -r 1
    check "l3-bench --synthetic without lookups" ends 0
    check "the synthetic model is removed" eval '! ls "$work" | grep -q l3-bench'
    run "$build/l3-bench" "$model" -p 8 -n 4 -r 3 --no-lookup --compare 'echo {threads} threads; echo {prompt} {tokens}' --json
    check "l3-bench --no-lookup --compare" eval 'says out "\"no_lookup_decode_ratio\"" && says out "\"peer_prefill_tok_s\": 8, " && says out "\"peer_decode_tok_s\": 4, "'
    run "$build/l3-bench" "$model" -p 8 -n 4 -r 1 --compare 'echo no numbers'
    check "l3-bench --compare with a program that says nothing" refused 1
    run "$build/l3-bench" "$model" -p 8 -n 4 -r 1 --compare 'exit 3'
    check "l3-bench --compare with a program that fails" refused 1
    cp "$model" "$work/cold.gguf"
    run "$build/l3-bench" "$work/cold.gguf" -p 8 -n 4 -r 2 --cold --source ahead
    check "l3-bench --cold" eval 'ends 0 && says out "ahead cold"'
    run "$build/l3-bench" --synthetic 110M --dim 64 --blocks 2 --ffn 96 --heads 4 --kv-heads 2 --tokenizer "$model" --alloc "$model" \
        --text "$work/lines" -p 4 -n 4 -r 1 -o "$work/kept.gguf"
    check "l3-bench -o keeps a model with a tokenizer" eval 'ends 0 && "$build/l3-inspect" "$work/kept.gguf" --verify >/dev/null'
    run "$build/l3-bench" "$model" -p 4000 --json
    check "a prompt that does not fit" refused 1
}

# What the bench reads after its prompt of one token, and what the replay says of the same tokens (BOS is one more there).
cache_bytes() { # cache, tokens
    "$build/l3-cache" "$model" --text README.md --sizes "$1" --policies l3 --cold "$2" --json |
        awk -v RS=', ' '/"bytes":/ { b = $NF } /"bytes_found"/ { print b - $NF; exit }'
}

same_as_bench() { # cache
    run "$build/l3-bench" "$model" -j 1 -p 1 -n 200 -r 1 --source read --cache "$1" --text README.md --json
    bench=$(grep -o 'cold_row_read_bytes_per_token": [0-9.]*' "$work/out" | awk '{ printf "%.0f", 200 * $2 }')
    [ "$bench" -gt 0 ] && [ $(($(cache_bytes "$1" 202) - $(cache_bytes "$1" 2))) -eq "$bench" ]
}

# What a policy reads with a cache of 5% in the second half of the text.
warm() { awk -v name="$1" '$2 == name { print $(NF - 1) }' "$work/out"; }

cache() {
    for size in 3K 64K 300K; do check "l3-cache reads what a model reads, $size" same_as_bench $size; done
    run "$build/l3-cache" "$model" --text README.md --sizes 5% --policies all
    check "l3-cache --policies all" eval 'ends 0 && silent err && lines out 19'
    for policy in l3 clock lru s3-fifo tinylfu lfuda gdsf lfu pin-rows pin-text furthest; do
        check "none reads more than $policy, and that more than the bound" \
            eval '[ $(warm none) -gt $(warm $policy) ] && [ $(warm $policy) -gt $(warm bound) ]'
    done
    check "knowing what comes is best" eval '[ $(warm furthest) -lt $(warm lfu) ] && [ $(warm furthest) -lt $(warm l3) ]'
    run "$build/l3-cache" "$model" --text README.md --sizes 100M --policies all --streams 3
    check "a cache that holds all" eval '[ "$(warm lru)" = "$(warm l3)" ] && [ "$(warm gdsf)" = "$(warm furthest)" ]'
    run "$build/l3-cache" "$model" --text README.md --text docs/DESIGN.md --streams 8 --json
    if command -v python3 >/dev/null; then check "l3-cache --json" is_json; else skip "no python3 to read JSON"; fi
    check "six cases" eval '[ "$(grep -o cache_bytes "$work/out" | wc -l)" -eq 6 ]'
    "$build/l3-alloc" --tokenizer "$model" --rows 8000 --max 99 -o "$work/alloc.gguf" README.md >/dev/null
    run "$build/l3-cache" "$work/alloc.gguf" --tokenizer "$model" --row-bytes 500 --text README.md
    check "l3-cache of an allocation" eval 'ends 0 && says out "in 1 layer$"'
    run "$build/l3-cache" "$work/alloc.gguf" --text README.md --row-bytes 500
    check "l3-cache of an allocation without a tokenizer" refused 1
    run "$build/l3-cache" "$work/alloc.gguf" --tokenizer "$model" --text README.md
    check "l3-cache of an allocation without --row-bytes" refused 1
    run "$build/l3-cache" "$model" --text /dev/null
    check "l3-cache without text" refused 1
}

examples() {
    run "$build/flash_stream"
    check "flash_stream" eval 'ends 0 && says out "^Once upon a time" && says out "^rows read"'
    run "$build/flash_stream" "$work/no-such-file"
    check "flash_stream without a file" refused 1
    run "$build/snapshot"
    check "snapshot" eval 'ends 0 && says out "identical"'
    if [ -x "$build/layer" ]; then
        run "$build/layer"
        check "layer" ends 0
    else
        skip "no layer example"
    fi
}

# ---- Ctrl-C ----

stop() {
    mkfifo "$work/pipe"
    "$build/generate" "$model" -f "$work/pipe" -s 1 >"$work/out" 2>"$work/err" &
    pid=$!
    exec 3>"$work/pipe"
    sleep 1 # until it waits
    kill -INT $pid
    wait $pid
    rc=$?
    exec 3>&-
    check "Ctrl-C while reading the prompt" eval 'ends 1 && says err stopped'
}

usage
text
limits
greedy
perplexity
logits
encode
bad_files
inspect
bench
cache
examples
stop
echo "tools: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
