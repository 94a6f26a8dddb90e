#!/bin/sh
# bench_train.sh - how fast l3-train is: beside a PyTorch training loop of the same model on the same cores
# (tools/peer_train.py), beside a dense model with as many active parameters, and with larger and larger tables. Both programs
# take turns, every figure is the median of RUNS processes with minimum and maximum, and the report is Markdown on stdout.
#
#     TEXT=stories.txt.xz sh tools/bench_train.sh
#
# TEXT       text for the tokenizer and the allocations; its first PART bytes (400000) are what is trained on
# TOKENIZER  tokenizer, or a model that has one (made from TEXT, VOCAB tokens: 4096)
# ALLOC      rows of the L3 model's tokens (made from TEXT, ROWS: 16384, at most MAX a token: 256)
# BIG_ALLOC  rows of the one with the bigger table (made from TEXT: BIG_ROWS, BIG_MAX: 131072, 512)
# RUNS       repetitions (5)
# THREADS    "1 2"
# STEPS      steps that a run times (1), of BATCH sequences (48)
# ONLY       parts of: peer active table (all)
# MICRO      sequences that PyTorch takes at once (8 in dense models, 16 in L3 models: faster than all 48)
# PLAIN      1: PyTorch as one writes it first: rows by a gather that is padded to the longest, malloc as it is
# PYTHON     an interpreter with PyTorch and numpy (python3)
# BUILD      where the tools are (build); WORK: a directory for files, kept (a temporary one, removed)
#
# The model is --preset small. PyTorch runs with glibc's malloc keeping what it has (the MALLOC_ variables below): without them
# every large tensor is mapped and zeroed anew, which costs it a tenth. OPENBLAS_CORETYPE is taken as it is found. Tables have a
# dense gradient and AdamW: SparseAdam was slower, as were the two other ways to read rows that peer_train.py knows.
set -eu
cd "$(dirname "$0")/.."
build=${BUILD:-build} python=${PYTHON:-python3} runs=${RUNS:-5} threads=${THREADS:-1 2} only=${ONLY:-peer active table}
vocab=${VOCAB:-4096} batch=${BATCH:-48} steps=${STEPS:-1}
dim=192 blocks=6 ffn=512 lookup=1,3 # preset small

say() { echo "bench_train.sh: $*" >&2; }
fail() { say "$*"; exit 1; }

[ -n "${TEXT:-}" ] || fail "TEXT=FILE is expected: text to train on"
if [ -n "${WORK:-}" ]; then
    work=$WORK && mkdir -p "$work/results"
else
    work=$(mktemp -d) && mkdir "$work/results"
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' INT TERM
fi
rm -f "$work"/results/*

# ---- what is trained on ----

text_of() {
    case $1 in
    *.xz) xz -dc "$1" ;;
    *.gz) gzip -dc "$1" ;;
    *) cat "$1" ;;
    esac
}

allocation() { # file, rows, most
    [ -e "$1" ] || "$build/l3-alloc" --tokenizer "$tokenizer" --rows "$2" --max "$3" -o "$1" "$TEXT" >/dev/null 2>"$work/log" ||
        fail "$(cat "$work/log")"
}

prepare() {
    tokenizer=${TOKENIZER:-$work/tokenizer.gguf} alloc=${ALLOC:-$work/alloc.gguf} big=${BIG_ALLOC:-$work/big.gguf}
    [ -e "$tokenizer" ] || "$build/l3-tokenizer" train --vocab "$vocab" -o "$tokenizer" "$TEXT" 2>"$work/log" ||
        fail "$(cat "$work/log")"
    allocation "$alloc" "${ROWS:-16384}" "${MAX:-256}"
    allocation "$big" "${BIG_ROWS:-131072}" "${BIG_MAX:-512}"
    text_of "$TEXT" 2>/dev/null | head -c "${PART:-400000}" >"$work/part.txt"
    "$build/l3-tokenizer" shard "$tokenizer" -o "$work/part.tokens" "$work/part.txt" 2>"$work/log" || fail "$(cat "$work/log")"
}

# ---- one run of either program; results/NAME gets a line: tokens a second, peak bytes ----

bytes='function bytes(value, unit) { return value * (unit == "KB" ? 2^10 : unit == "MB" ? 2^20 : unit == "GB" ? 2^30 : 1) }'

# Prints the options of a model: dense, dense-equal, l3, l3-big, l3-x1, l3-x4, l3-x16.
options_of() {
    case $1 in
    dense) echo "--set lookup=" ;;
    dense-equal) echo "--set lookup= --set ffn=$equal" ;;
    l3-big) echo "--alloc $big" ;;
    l3-x*) echo "--alloc $work/x${1#l3-x}.gguf" ;;
    *) echo "--alloc $alloc" ;;
    esac
}

l3() { # name, model, threads, options ...
    name=$1 model=$2 j=$3
    shift 3
    # shellcheck disable=SC2046 # options are split on purpose
    "$build/l3-train" --tokenizer "$tokenizer" --data "$work/part.tokens" --preset small $(options_of "$model") \
        --set batch="$batch" --set log_every=1 --set sample=0 --set eval_tokens=2 --steps "$steps" -j "$j" "$@" \
        -o "$work/run.gguf" >"$work/run.log" 2>"$work/log" || fail "l3-train: $(cat "$work/log")"
    awk -F, 'NR > 1 && $7 { n++; time += 1 / $7 } END { printf "%.1f ", n / time }' "$work/run.csv" >>"$work/results/$name"
    awk "$bytes"' /^peak memory/ { print bytes($3, $4) }' "$work/run.log" >>"$work/results/$name"
    awk "$bytes"' /^model/ { sub(/.*; /, ""); active = $1 }
        /^memory/ { split($0, half, "; "); said = bytes($2, $3); split(half[2], p, " "); said += bytes(p[1], p[2]) }
        /^time/ { for (i = 1; i < NF; i++) if ($i == "with") kernels = $(i + 1) }
        /lookups after/ { for (i = 2; i <= NF; i++) if ($i == "rows") rows = $(i - 1) }
        END { print active, said, kernels, rows }' "$work/run.log" >"$work/results/$name.about"
}

peer() { # name, model, threads, options ...
    name=$1 model=$2 j=$3
    shift 3
    # shellcheck disable=SC2046 # options are split on purpose
    case $model in
    dense) set -- "$@" --micro-batch "${MICRO:-8}" ;;
    *) set -- "$@" --micro-batch "${MICRO:-16}" --lookup "$lookup" $(options_of "$model") ;;
    esac
    malloc="MALLOC_MMAP_THRESHOLD_=100000000000 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456"
    if [ "${PLAIN:-0}" = 1 ]; then
        malloc=
        set -- "$@" --rows-by gather
    fi
    # shellcheck disable=SC2086 # variables are split on purpose
    env $malloc OPENBLAS_VERBOSE=2 "$python" tools/peer_train.py --data "$work/part.tokens" --dim "$dim" \
        --blocks "$blocks" --heads 6 --ffn "$ffn" --context 256 --batch "$batch" --warmup 1 --steps "$steps" --threads "$j" --json "$@" \
        >"$work/peer.log" 2>"$work/log" || fail "peer_train.py: $(cat "$work/log")"
    sed 's/.*"tokens_per_second": \([0-9.]*\).*"peak_memory": \([0-9]*\).*/\1 \2/' "$work/peer.log" >>"$work/results/$name"
    sed -n 's/^Core: //p' "$work/log" | head -n 1 >"$work/core"
}

# ---- tables ----

sorted() { awk -v c="$2" '{ print $c }' "$work/results/$1" | sort -n; }
median() { sorted "$1" "$2" | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'; }
speed() { sorted "$1" 1 | awk -v m="$(median "$1" 1)" '{ v[NR] = $1 } END { printf "%.0f (%.0f to %.0f)", m, v[1], v[NR] }'; }
mb() { awk -v b="$1" 'BEGIN { if (b < 1e9) printf "%.0f MB", b / 1e6; else printf "%.2f GB", b / 1e9 }'; }
memory() { mb "$(median "$1" 2)"; }

# Of two results whose lines were measured in turns: the median of the ratios, minimum and maximum.
ratio() {
    paste -d ' ' "$work/results/$1" "$work/results/$2" | awk '{ print $1 / $3 }' | sort -n | awk '{ v[NR] = $1 }
        END { printf "%.2f (%.2f to %.2f)", (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2, v[1], v[NR] }'
}
about() { cut -d ' ' -f "$2" "$work/results/$1.about"; }
title() { # result
    case $1 in
    dense*) echo dense ;;
    *) echo "L3, $(about "$1" 4) rows" ;;
    esac
}

# ---- beside PyTorch ----

# What is compared: F32 with F32, and what l3-train takes by itself with autocast where that rounds to bfloat16, too.
f32_kernels() {
    case $(grep -m 1 '^flags' /proc/cpuinfo 2>/dev/null) in
    *avx512dq*avx512bw*avx512vl*) echo avx512 ;;
    *fma*avx2*) echo avx2 ;;
    *) echo plain ;;
    esac
}

has_peer() { "$python" -c 'import numpy, torch' 2>/dev/null; }

pair() { # model, arithmetic, threads
    key=$1-$2-$3
    if [ "$2" = f32 ]; then
        l3 "$key" "$1" "$3" --kernels "$(f32_kernels)"
        if has_peer; then peer "$key.peer" "$1" "$3"; fi
    else
        l3 "$key" "$1" "$3"
        if has_peer; then peer "$key.peer" "$1" "$3" --bf16; fi
    fi
}

pairs() { # the comparisons there are: model, arithmetic
    printf '%s f32\n' dense l3
    case $fast in
    bf16 | amx) printf '%s bf16\n' dense l3 l3-big ;;
    *) echo l3-big f32 ;;
    esac
}

measure_peer() {
    has_peer || say "skipped: what needs PyTorch ($python has no torch or numpy; PYTHON=... names another)"
    for run in $(seq "$runs"); do
        for j in $threads; do
            pairs | while read -r model arithmetic; do
                say "run $run of $runs: $model, $arithmetic, $j threads"
                pair "$model" "$arithmetic" "$j"
            done
        done
    done
}

report_peer() {
    echo "Training, tokens a second; median of $runs runs (minimum to maximum), peak memory of the process:"
    echo
    echo "| model | arithmetic | threads | l3-train | PyTorch | ratio | memory, l3-train | memory, PyTorch |"
    echo "|---|---|---|---|---|---|---|---|"
    pairs | while read -r model arithmetic; do
        for j in $threads; do
            key=$model-$arithmetic-$j
            printf '| %s | %s | %s | %s ' "$(title "$key")" "$arithmetic" "$j" "$(speed "$key")"
            if has_peer; then
                echo "| $(speed "$key.peer") | $(ratio "$key" "$key.peer") | $(memory "$key") | $(memory "$key.peer") |"
            else
                echo "| skipped: no PyTorch | | $(memory "$key") | |"
            fi
        done
    done
    echo
    has_peer || return 0
    "$python" -c 'import torch; print("PyTorch", torch.__version__, end="")'
    echo "; OpenBLAS kernels: $(cat "$work/core")"
    echo
}

# ---- beside a dense model with as many active parameters ----

measure_active() {
    for run in $(seq "$runs"); do
        for j in $threads; do
            say "run $run of $runs: L3 and a dense model of the same active parameters, $j threads"
            l3 "active-l3-$j" l3 "$j"
            l3 "active-dense-$j" dense-equal "$j"
        done
    done
}

report_active() {
    echo "L3 beside a dense model with as many active parameters (feed-forward $equal instead of $ffn), kernels $fast:"
    echo
    echo "| threads | L3 ($(about "active-l3-$j" 1) M active) | dense ($(about "active-dense-$j" 1) M active) | ratio |"
    echo "|---|---|---|---|"
    for j in $threads; do
        echo "| $j | $(speed "active-l3-$j") | $(speed "active-dense-$j") | $(ratio "active-l3-$j" "active-dense-$j") |"
    done
    echo
}

# ---- larger tables ----

# The tokens of the text keep their rows; what is added belongs to tokens that the text has not. So a step touches the same
# rows, spread over a larger table.
measure_table() {
    if ! "$python" -c 'import numpy' 2>/dev/null; then
        say "skipped: larger tables ($python has no numpy, which makes their allocations)"
        return
    fi
    for times in 1 4 16; do
        "$python" tools/peer_train.py --grow "$alloc" --data "$work/part.tokens" --times "$times" -o "$work/x$times.gguf"
    done
    for run in $(seq "$runs"); do
        for times in 1 4 16; do
            say "run $run of $runs: table times $times"
            l3 "table-$times" "l3-x$times" "${threads##* }"
        done
    done
}

report_table() {
    [ -e "$work/results/table-1" ] || return 0
    echo "Tables with rows that no token of the text owns, ${threads##* } threads, kernels $fast:"
    echo
    echo "| rows of a table | tokens/s | of the first | memory, said before the start | peak |"
    echo "|---|---|---|---|---|"
    for times in 1 4 16; do
        key=table-$times
        echo "| $(about $key 4) | $(speed $key) | $(ratio $key table-1) | $(mb "$(about $key 2)") | $(memory $key) |"
    done
    echo
}

report_memory() {
    echo "Memory that l3-train said before the start, and its peak:"
    echo
    echo "| run | said | peak | peak / said |"
    echo "|---|---|---|---|"
    for file in "$work"/results/*.about; do
        name=$(basename "$file" .about)
        said=$(about "$name" 2) peak=$(median "$name" 2)
        echo "| $name | $(mb "$said") | $(mb "$peak") | $(awk -v p="$peak" -v s="$said" 'BEGIN { printf "%.2f", p / s }') |"
    done
}

# ---- all of it ----

prepare
first=${threads%% *}
l3 warm-dense dense "$first" # also says which kernels l3-train takes, and the active parameters
l3 warm-l3 l3 "$first"
fast=$(about warm-l3 3)
equal=$(awk -v l="$(about warm-l3 1)" -v d="$(about warm-dense 1)" -v f="$ffn" -v unit=$((3 * dim * blocks)) \
    'BEGIN { print int((f + (l - d) * 1e6 / unit) / 16 + 0.5) * 16 }')
rm -f "$work"/results/warm-*
for part in $only; do "measure_$part"; done
for part in $only; do "report_$part"; done
report_memory
