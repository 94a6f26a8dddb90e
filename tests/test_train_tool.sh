#!/bin/sh
# l3-train from the outside: text in, a model out that the other programs run; resuming bit for bit; starting from other models;
# what bad input gets. Needs the programs in $BUILD; fixtures in $L3_FIXTURES where they are there.
# shellcheck disable=SC2016 # conditions are evaluated later, by check
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
fixtures=${L3_FIXTURES:-../shared/fixtures}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
. tests/shell.sh

tiny="--set dim=32 --set blocks=3 --set heads=2 --set ffn=64 --set context=32 --set batch=8 --set eval_every=20
    --set eval_tokens=20000 --set warmup=5 --set sample=8 --set log_every=5 -j2"
# shellcheck disable=SC2086 # options are split on purpose
train() { # output, arguments
    out=$1
    shift
    run "$build/l3-train" --tokenizer "$work/tok.gguf" --data "$work/text" $tiny -o "$work/$out.gguf" "$@"
}
perplexity() { # model, text: prints it
    "$build/l3-eval" "$work/$1.gguf" --text "$2" --window 32 | awk '/^perplexity/ { print $2; exit }'
}
close() { # a, b, relative difference allowed
    awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { d = a / b - 1; exit !(a > 0 && d <= t && d >= -t) }'
}
validations() { awk -F, '$1 % 20 == 0 { print $1, $8 }' "$work/$1.csv"; } # log lines between them may cover other steps
weights() { tail -c 200000 "$work/$1.gguf" | cksum; } # the end of a file is its last table and tensors

prepare() {
    cat l3.h l3_model.h docs/*.md README.md >"$work/text"
    head -c 20000 docs/DESIGN.md >"$work/valid"
    run "$build/l3-tokenizer" train --vocab 600 -o "$work/tok.gguf" "$work/text"
    check "a tokenizer" ends 0
    run "$build/l3-alloc" --tokenizer "$work/tok.gguf" --rows 2000 --max 32 -o "$work/alloc.gguf" "$work/text"
    check "an allocation" ends 0
}

usage() {
    while read -r arguments; do
        # shellcheck disable=SC2086 # split on purpose
        run "$build/l3-train" $arguments
        check "l3-train $arguments" refused 2
    done <<END

--data x
--data x -o y
--tokenizer t --data x -o y
--tokenizer t --data x -o y --steps 0
--tokenizer t --data x -o y --steps 1 --set dim=0
--tokenizer t --data x -o y --steps 1 --set dim=1.5
--tokenizer t --data x -o y --steps 1 --set nonsense=1
--tokenizer t --data x -o y --time 5x
--tokenizer t --data x -o y --steps 1 --preset huge
--check m --batch b
END
    run "$build/l3-train" --settings
    check "--settings" eval 'ends 0 && says out "^  weight_decay" && says out "^--preset nano"'
    train none --steps 1 --set lookup=3
    check "a lookup layer after a block that is not there" refused 2
    train none --steps 1 --set heads=5
    check "heads that do not divide the width" refused 2
    train none --steps 1 --set lookup=1
    check "lookup layers without --alloc" refused 2
}

a_model() {
    train dense --steps 40 --kernels plain --valid "$work/valid" --name "A dense one"
    check "a dense model" eval 'ends 0 && says out "validation loss" && says out "^done after 40 steps"'
    train l3 --steps 40 --kernels plain --valid "$work/valid" --alloc "$work/alloc.gguf" --set lookup=0,2 --set tied=0
    check "an L3 model" ends 0
    for model in dense l3; do
        run "$build/l3-inspect" "$work/$model.gguf" --verify
        check "$model: checksums" ends 0
        run "$build/generate" "$work/$model.gguf" -p "The" -n 10 -s 1
        check "$model: generate writes with it" ends 0
        check "$model: curves" eval 'grep -q "</svg>" "$work/$model.svg" && [ "$(wc -l <"$work/$model.csv")" -ge 9 ]'
        said=$(awk -F, 'END { print exp($8) }' "$work/$model.csv")
        check "$model: the validation is what l3-eval says" close "$said" "$(perplexity $model "$work/valid")" 1e-3
    done
    check "the loss falls" awk -F, 'NR == 2 { first = $5 } NR == 9 { last = $5 } END { exit !(last < first - 0.5) }' "$work/l3.csv"
}

resuming() {
    with="--alloc $work/alloc.gguf --set lookup=1 --set dropout=0.1"
    # shellcheck disable=SC2086
    train whole --steps 60 $with
    check "a run in one piece" ends 0
    # shellcheck disable=SC2086
    "$build/l3-train" --tokenizer "$work/tok.gguf" --data "$work/text" $tiny --steps 60 $with -o "$work/parts.gguf" \
        >"$work/out" 2>"$work/err" &
    pid=$!
    while [ "$(cat "$work/parts.csv" 2>/dev/null | wc -l)" -lt 3 ] && kill -0 $pid 2>/dev/null; do sleep 0.05; done
    kill -INT $pid
    wait $pid
    rc=$?
    check "Ctrl-C ends a run cleanly" eval 'ends 0 && says out "^stopped after"'
    cp "$work/parts.ckpt" "$work/copy.ckpt"
    train parts --resume
    check "--resume goes on" eval 'ends 0 && says out "^done after 60 steps"'
    check "the same weights, bit for bit" [ "$(weights whole)" = "$(weights parts)" ]
    check "the same validation losses" [ "$(validations whole)" = "$(validations parts)" ]
    train parts --resume
    check "a finished run that is resumed adds nothing" [ "$(validations whole)" = "$(validations parts)" ]
    train parts --resume --set dim=64
    check "another shape is refused" refused 1
    cp "$work/copy.ckpt" "$work/parts.ckpt"
    run "$build/l3-train" --tokenizer "$work/tok.gguf" --data "$work/valid" --resume -o "$work/parts.gguf"
    check "another text is refused" refused 1
    train timed --time 1s --set eval_every=1000
    check "--time ends a run" eval 'ends 0 && says out "^done after"'
}

# Ctrl-C in a run that does little but write: curves, models, log.
interrupted_writing() {
    clean=0
    for i in 1 2 3 4 5 6; do
        rm -f "$work"/busy.*
        # shellcheck disable=SC2086
        "$build/l3-train" --tokenizer "$work/tok.gguf" --data "$work/text" $tiny --set lookup= --set eval_every=1 --set sample=0 \
            --export-every 1 --steps 1000000 -o "$work/busy.gguf" >"$work/out" 2>"$work/err" &
        pid=$!
        while [ "$(cat "$work/busy.csv" 2>/dev/null | wc -l)" -lt $((2 + i)) ] && kill -0 $pid 2>/dev/null; do sleep 0.02; done
        kill -INT $pid
        wait $pid && [ -s "$work/busy.ckpt" ] && clean=$((clean + 1))
    done
    check "Ctrl-C while files are written" [ $clean = 6 ]
}

from_models() {
    train zero --steps 1 --set lr=0 --init "$work/dense.gguf" --alloc "$work/alloc.gguf" --add-lookup 0,1
    check "lookup layers are added" ends 0
    before=$(perplexity dense "$work/valid")
    check "they change nothing at first" close "$(perplexity zero "$work/valid")" "$before" 1e-5
    train frozen --steps 30 --init "$work/dense.gguf" --alloc "$work/alloc.gguf" --add-lookup 0,1 --set freeze=1 --set lr=0.01
    check "a frozen model learns by them" eval 'ends 0 && awk "BEGIN { exit !($(perplexity frozen "$work/text") < $(perplexity dense "$work/text")) }"'
    run "$build/l3-quantize" "$work/l3.gguf" "$work/half.gguf" --weights q8_0
    train tuned --steps 20 --init "$work/half.gguf"
    check "training goes on from a quantized model" ends 0
    train experts --steps 5 --set experts=4 --set experts_used=2
    check "experts train, and are not written" eval 'ends 0 && says out "none is written" && [ ! -e "$work/experts.gguf" ]'
}

bad_input() {
    : >"$work/empty"
    head -c 3000 "$work/dense.gguf" >"$work/binary"
    run "$build/l3-train" --tokenizer "$work/tok.gguf" --data "$work/empty" --steps 1 -o "$work/bad.gguf"
    check "an empty text" refused 1
    run "$build/l3-train" --tokenizer "$work/tok.gguf" --data "$work/valid" --steps 1 --set context=100000 -o "$work/bad.gguf"
    check "a text shorter than a sequence" refused 1
    run "$build/l3-train" --tokenizer "$work/text" --data "$work/valid" --steps 1 -o "$work/bad.gguf"
    check "a tokenizer that is none" refused 1
    train bad --steps 1 --set lookup=1 --alloc "$work/tok.gguf"
    check "an allocation that is none" refused 1
    train none --resume
    check "nothing to resume from" refused 1
    head -c 100000 "$work/whole.ckpt" >"$work/cut.ckpt"
    train cut --resume
    check "a checkpoint that is cut short" eval 'refused 1 && says err "cut"'
    cp "$work/whole.ckpt" "$work/cut.ckpt"
    printf '\377' | dd of="$work/cut.ckpt" bs=1 seek=200000 conv=notrunc 2>/dev/null
    train cut --resume
    check "a damaged checkpoint" eval 'refused 1 && says err "checksum"'
    cp "$work/dense.gguf" "$work/cut.ckpt"
    train cut --resume
    check "a model instead of a checkpoint" refused 1
    cp "$work/dense.gguf" "$work/nan.gguf" # the last values of the file are weights of the last block and the output norm
    printf '\000\000\300\177' | dd of="$work/nan.gguf" bs=1 seek=$(($(wc -c <"$work/nan.gguf") - 4)) conv=notrunc 2>/dev/null
    cp "$work/whole.ckpt" "$work/bad.ckpt"
    train bad --steps 5 --init "$work/nan.gguf"
    check "a loss that is no number" eval 'ends 1 && says err "step 1: the loss" && cmp -s "$work/bad.ckpt" "$work/whole.ckpt"'
    (
        trap '' XFSZ
        ulimit -f 100 # blocks of 512 or 1024 bytes: less than a checkpoint
        train parts --resume --steps 80
        echo $rc >"$work/code"
    )
    rc=$(cat "$work/code")
    check "a disk that fills" eval 'ends 1 && says err "cannot be written" && cmp -s "$work/parts.ckpt" "$work/copy.ckpt"'
    check "nothing half-written stays" eval '! ls "$work"/*.tmp >/dev/null 2>&1'
}

checks() {
    if [ ! -e "$fixtures/train/tied.gguf" ]; then
        skip "no fixtures for --check"
        return
    fi
    run "$build/l3-train" --check "$fixtures/train/tied.gguf" --batch "$fixtures/train/tied.batch.i32" --shape 4,33 --steps 2 \
        --gradients "$work/gradients.gguf" --set weight_decay=0 --set lr=0.001
    sed -n 1p "$work/out" >"$work/first"
    check "--check" eval 'ends 0 && near first loss 5.897024405 1e-6 && [ -s "$work/gradients.gguf" ]'
    sed -n 3p "$work/out" >"$work/second"
    check "--check after a step" near second loss 5.077418787 1e-6
    run "$build/l3-train" --check "$fixtures/train/tied.gguf" --batch "$fixtures/train/tied.batch.i32" --shape 5,33
    check "--check with a batch of another size" refused 1
}

prepare
usage
a_model
resuming
interrupted_writing
from_models
bad_input
checks
echo "train_tool: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
