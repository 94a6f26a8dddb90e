#!/bin/sh
# experiments.sh [run|report|list] - the paper's claims at a size that one machine carries: the same text, tokens, active
# parameters and arithmetic for every variant, three seeds each, held-out text. A finished run adds a line to docs/experiments.csv
# and is not done again, so the whole can be spread over days; `report` makes docs/experiments.svg and the table in
# docs/EXPERIMENTS.md from that file.
#
#     TEXT=books_train.txt.xz VALID=books_valid.txt.xz sh tools/experiments.sh run
#
# SCALE    tiny (a minute a run on 2 cores; the default), small (some 6 minutes), full (some 25 minutes); wide: tiny with a large
#          vocabulary, most of whose tokens are rare (some 3 minutes)
# SEEDS    "1 2 3"
# ONLY     names of variants; all without it
# THREADS  of every run (2); results depend on it in the last bits only
# WORK     where tokenizer, allocations and tokens are kept (build/experiments)
set -eu
cd "$(dirname "$0")/.."
build=${BUILD:-build}
scale=${SCALE:-tiny}
seeds=${SEEDS:-1 2 3}
threads=${THREADS:-2}
work=${WORK:-build/experiments}
csv=docs/experiments.csv

# A scale: vocabulary, rows of a table, width, blocks, context, sequences of a step, steps, validation tokens.
case $scale in
tiny) vocab=2048 rows=8192 dim=96 blocks=4 context=128 batch=64 steps=200 tokens=200000 ;;
wide) vocab=16384 rows=65536 dim=96 blocks=4 context=128 batch=64 steps=200 tokens=200000 ;;
small) vocab=4096 rows=16384 dim=128 blocks=6 context=256 batch=32 steps=1000 tokens=500000 ;;
full) vocab=8192 rows=65536 dim=256 blocks=6 context=256 batch=64 steps=900 tokens=500000 ;;
*) echo "experiments.sh: SCALE=$scale: tiny, wide, small or full is expected" >&2; exit 2 ;;
esac

# Feed-forward widths that give all variants the same active parameters: a lookup layer's up and mix matrices, 3 dim^2 with
# up_length = dim, cost as much as dim more feed-forward width in one block; dense models get that spread over their blocks.
ffn=$((dim * 8 / 3 / 32 * 32))
ffn_one=$((ffn + dim / blocks)) # one lookup layer instead of two
ffn_none=$((ffn + 2 * dim / blocks))
experts=$((1 + (2 * rows * dim + 3 * dim * ffn_none * blocks / 2) / (3 * dim * ffn_none * blocks))) # as many parameters as L3 has
early=0,1 middle=$((blocks / 2 - 1)),$((blocks / 2)) late=$((blocks - 2)),$((blocks - 1)) apart=0,$((blocks / 2))

variants() { # name, allocation, settings
    cat <<END
dense            -           ffn=$ffn_none
l3               k512        ffn=$ffn lookup=$apart
l3-uniform       uniform     ffn=$ffn lookup=$apart
l3-frequency     frequency   ffn=$ffn lookup=$apart
l3-untied        k512        ffn=$ffn lookup=$apart tied=0
l3-k64           k64         ffn=$ffn lookup=$apart
l3-unbounded     k0          ffn=$ffn lookup=$apart
l3-one-layer     k512-double ffn=$ffn_one lookup=$((blocks / 2 - 1))
l3-early         k512        ffn=$ffn lookup=$early
l3-middle        k512        ffn=$ffn lookup=$middle
l3-late          k512        ffn=$ffn lookup=$late
experts          -           ffn=$ffn_none experts=$experts experts_used=1
END
}

say() { echo "experiments.sh: $*" >&2; }

prepare() {
    : "${TEXT:?the text to train on, as TEXT=FILE}" "${VALID:?held-out text, as VALID=FILE}"
    mkdir -p "$work"
    tok=$work/tok-$vocab.gguf
    shard=$work/$scale.tokens
    [ -e "$tok" ] || "$build/l3-tokenizer" train --vocab "$vocab" -o "$tok" "$TEXT"
    [ -e "$shard" ] || "$build/l3-tokenizer" shard "$tok" -o "$shard" "$TEXT"
}

allocation() { # name: makes it if it is not there
    file=$work/alloc-$scale-$1.gguf
    [ -e "$file" ] && return
    case $1 in
    k512) set -- --rows "$rows" --max 512 ;;
    k512-double) set -- --rows $((2 * rows)) --max 512 ;;
    k64) set -- --rows "$rows" --max 64 ;;
    k0) set -- --rows "$rows" --max 0 ;;
    uniform) set -- --rows "$rows" --max 512 --uniform ;;
    frequency) set -- --rows "$rows" --max 512 --frequency ;;
    esac
    "$build/l3-alloc" --tokenizer "$tok" "$@" -o "$file" "$TEXT" >"$work/alloc.log"
}

one() { # name, allocation, seed, settings ...
    name=$1 alloc=$2 seed=$3
    shift 3
    grep -q "^$scale,$name,$seed," "$csv" && return
    out=$work/$scale-$name-$seed
    options="--set dim=$dim --set blocks=$blocks --set heads=$((dim / 32)) --set context=$context --set batch=$batch
        --set up_length=$dim --set lr=4e-3 --set warmup=$((steps / 10)) --set eval_every=1000000 --set eval_tokens=$tokens --set sample=0"
    for setting; do options="$options --set $setting"; done
    [ "$alloc" = - ] || { allocation "$alloc"; options="$options --alloc $work/alloc-$scale-$alloc.gguf"; }
    say "$scale $name, seed $seed"
    # shellcheck disable=SC2086 # options are split on purpose
    "$build/l3-train" --tokenizer "$tok" --data "$shard" --valid "$VALID" $options --steps "$steps" --seed "$seed" -j "$threads" \
        -o "$out.gguf" >"$out.log" 2>"$out.err" || { cat "$out.err" >&2; exit 1; }
    # "model 1.23 M parameters, 0.80 M of them in tables; 0.43 M active" and the last line of the run's own CSV
    awk -F '[ ,]+' '/^model/ { print $2, $5, $11 }' "$out.log" >"$out.sizes"
    awk -F, -v s="$scale" -v n="$name" -v seed="$seed" -v sizes="$(cat "$out.sizes")" 'END { split(sizes, p, " ")
        printf "%s,%s,%s,%s,%s,%s,%s,%s,%.0f\n", s, n, seed, p[1], p[2], p[3], $2, $8, $3 }' "$out.csv" >>"$csv"
    rm -f "$out.gguf" "$out.ckpt"
}

run() {
    prepare
    [ -e "$csv" ] || echo "scale,variant,seed,parameters_m,table_parameters_m,active_parameters_m,tokens,valid_loss,seconds" >"$csv"
    for seed in $seeds; do
        variants | while read -r name alloc settings; do
            case " ${ONLY:-$name} " in *" $name "*) ;; *) continue ;; esac
            # shellcheck disable=SC2086 # settings are split on purpose
            one "$name" "$alloc" "$seed" $settings
        done
    done
}

# The table between the two marks of docs/EXPERIMENTS.md, and the picture, from the CSV file alone.
report() {
    for s in tiny wide small full; do grep -q "^$s," "$csv" && awk -F, -v scale="$s" -f tools/experiments.awk "$csv"; done >"$work/table.md"
    awk -v table="$work/table.md" '/<!-- end of the table -->/ { inside = 0 } !inside { print }
        /<!-- table, made by tools\/experiments.sh report -->/ { inside = 1; while ((getline line < table) > 0) print line }' \
        docs/EXPERIMENTS.md >"$work/EXPERIMENTS.md"
    cp "$work/EXPERIMENTS.md" docs/EXPERIMENTS.md
    awk -F, -v svg=1 -v scale="$scale" -f tools/experiments.awk "$csv" >docs/experiments.svg
}

case ${1:-run} in
run) run ;;
report) mkdir -p "$work"; report ;;
list) variants ;;
*) echo "usage: experiments.sh [run|report|list]" >&2; exit 2 ;;
esac
