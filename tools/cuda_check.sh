#!/bin/sh
# cuda_check.sh - everything that a machine with an NVIDIA GPU can tell about l3_cuda.cu, in one run of less than ten minutes: it
# builds for that GPU, tests, writes a text with the tables in each place, measures models of the paper's shapes, beside PyTorch
# where that is installed, and looks for races and bad accesses in what time is left. One short table comes last. What a machine
# has not got is skipped, and said so.
#
#     sh tools/cuda_check.sh
#     SHAPES="0.8B 1.5B 2.6B" TYPES="f16 q8_0" sh tools/cuda_check.sh
#
# SHAPES     what to measure (0.8B); more of l3-bench-cuda --synthetic. They are written to TMPDIR: 10, 16 and 23 GB in F16
# TYPES      types of their weights and rows (f16)
# TABLES     places of tables (dense,device,host,hot)
# BATCHES    sequences at once (1,8,64,300); PROMPTS: lengths (128,512,2048); REPEAT: repetitions (3)
# LIMIT      seconds for each shape and type (200)
# TEST_LIMIT seconds for the tests and for each of the two checks by compute-sanitizer, which take a part of them (120)
# DEADLINE   seconds for everything (540): what would begin or go on later is ended
# PYTHON     an interpreter that has PyTorch (python3)
# ONLY       parts of: build text tests speed peer sanitizer (all)
# BUILD      where programs are built (build); NVCC: the compiler. Without one, programs that are there already are used
# OUT        a folder that gets the output of every part and the table as they come (none)
# L3_FIXTURES  where the models with expected logits are (../shared/fixtures)
#
# Ends with 1 if something that should work did not.
# shellcheck disable=SC2317 # parts are called by their names
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build} only=${ONLY:-build text tests speed peer sanitizer} test_limit=${TEST_LIMIT:-120}
python=${PYTHON:-python3} deadline=${DEADLINE:-540}
model=examples/models/books-l3.gguf
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
failed=0

say() { echo "== $*"; }
bad() {
    echo "FAILED: $*"
    failed=1
}

# ---- the machine ----

has_gpu() {
    command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

if ! has_gpu; then
    echo "skipped: no GPU"
    exit 0
fi
has_nvcc() { command -v "$nvcc" >/dev/null 2>&1; }
if ! has_nvcc && [ ! -x "$build/l3-bench-cuda" ]; then
    echo "skipped: no nvcc"
    exit 0
fi
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'table; exit 1' INT TERM
start=$(date +%s)

machine() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,pcie.link.gen.max,pcie.link.width.max \
        --format=csv,noheader | tr '\n' ';'
    if has_nvcc; then "$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/ nvcc \1;/p' | tr -d '\n'; fi
    echo " $(getconf _NPROCESSORS_ONLN) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)," \
        "$(awk '/^MemTotal/ { printf "%.0f GB", $2 / 2^20 }' /proc/meminfo) of memory"
}

# Runs a command for so many seconds at most, its output in $work/log; says how it ended.
limited() { # seconds, name, command ...
    limit=$1 name=$2
    shift 2
    begin=$(date +%s)
    left=$((start + deadline - begin))
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 10 ]; then
        say "$name: skipped, DEADLINE is near"
        : >"$work/log"
        return 124
    fi
    timeout -k 10 "$limit" "$@" >"$work/log" 2>&1
    rc=$?
    [ ! -d "${OUT:-}" ] || cp "$work/log" "$OUT/$(echo "$name" | tr -c 'A-Za-z0-9.\n' -).log"
    took=$(($(date +%s) - begin))
    case $rc in
    0) say "$name: done in $took s" ;;
    124 | 137) say "$name: not finished in $limit s, ended" ;;
    *)
        tail -n 30 "$work/log"
        bad "$name, with code $rc after $took s"
        ;;
    esac
    return "$rc"
}

# What hangs has failed: tests and texts take seconds.
finished() { # name, code
    [ ! -s "$work/log" ] || case $2 in 124 | 137) bad "$1 has not ended" ;; esac
}

table() {
    [ ! -s "$work/table" ] || awk '!/^\|(---|[^|]*model)/ || !seen[$0]++' "$work/table"
}

# ---- parts ----

do_build() {
    if ! has_nvcc; then
        say "skipped: no nvcc; $build/l3-bench-cuda and its like are what was built before"
        return
    fi
    gpu=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -dc 0-9)
    limited 300 "build" make cuda NVCC="$nvcc" NVCCWARN= GPUS="${gpu:-90}" B="$build" || {
        bad "nothing was built"
        touch "$work/stop"
    }
}

do_tests() {
    if [ ! -x "$build/tests/test_cuda_gpu" ]; then
        bad "tests: $build/tests/test_cuda_gpu was not built"
        return
    fi
    [ -d "${L3_FIXTURES:-../shared/fixtures}" ] || say "skipped: the models with expected logits; L3_FIXTURES names no folder"
    limited "$test_limit" "tests" "$build/tests/test_cuda_gpu"
    finished "tests" $?
    tail -n 12 "$work/log"
}

sanitizer() {
    command -v compute-sanitizer || ls "$(dirname "$nvcc")/compute-sanitizer" /usr/local/cuda/bin/compute-sanitizer 2>/dev/null | head -n 1
}

do_sanitizer() {
    check=$(sanitizer)
    if [ -z "$check" ]; then
        say "skipped: no compute-sanitizer"
        return
    fi
    for tool in "memcheck --report-api-errors no" racecheck; do # tests provoke errors of the API
        # shellcheck disable=SC2086 # a name and its options
        limited "$test_limit" "${tool%% *}" env L3_QUICK=1 "$check" --tool $tool --error-exitcode 9 "$build/tests/test_cuda_gpu"
        grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$work/log" | tail -n 1
        if grep -E '^========= (Invalid|Error|Warning|.*hazard)' "$work/log" | head -n 5 | grep .; then
            bad "${tool%% *}" # also where it was ended before its summary
        fi
    done
}

# The same text wherever the tables are, and how it sounds.
do_text() {
    for place in device host source; do
        limited 60 "text, tables: $place" "$build/generate-cuda" "$model" -p "The old house" -n 60 -t 0 -s 1 --exact \
            --tables "$place" --stats || {
            finished "text, tables: $place" $?
            return
        }
        sed '/^ended after /,$d' "$work/log" >"$work/text.$place"
        cmp -s "$work/text.device" "$work/text.$place" || bad "the text with tables: $place is another"
    done
    cat "$work/log"
}

measure() { # shape, type
    limit=${LIMIT:-200}
    set -- "$1" "$2" env TMPDIR="$work" "$build/l3-bench-cuda" --synthetic "$1" --type "$2" --tables "${TABLES:-dense,device,host,hot}" \
        -b "${BATCHES:-1,8,64,300}" -p "${PROMPTS:-128,512,2048}" -r "${REPEAT:-3}" --limit $((limit * 2 / 3))
    name="$1 $2"
    shift 2
    limited "$limit" "$name" "$@"
    cat "$work/log"
    grep '^|' "$work/log" >>"$work/table"
    grep -E '^decode, batch|rows after block|fetched ahead' "$work/log" | sed "s/^ */$name: /" >>"$work/rows"
    [ ! -d "${OUT:-}" ] || cp "$work/table" "$OUT/table.md"
    rm -f "$work"/l3-bench-* # what one that was ended has left
}

do_speed() {
    for shape in ${SHAPES:-0.8B}; do
        for type in ${TYPES:-f16}; do measure "$shape" "$type"; done
    done
}

# A line of the table: PyTorch's figure, and how many times as fast this is with tables on the device.
beside_peer() { # what, PyTorch's tokens a second
    own=$(awk -F ' *[|] *' -v shape="$shape" -v what="$1" '
        / device / { for (i = 1; i <= NF; i++) if ($i == "device") at = i }
        index($2, shape) && $3 == "f16" && $4 == what { split($at, own, " "); print own[1]; exit }' "$work/table" 2>/dev/null)
    awk -v own="${own:-0}" -v other="$2" -v line="| $shape | f16 | $1 | PyTorch, $mode: $2" \
        'BEGIN { if (own > 0 && other > 0) line = line sprintf("; device %.2f times that", own / other); print line " |" }' >>"$work/table"
}

do_peer() {
    if ! "$python" -c 'import numpy, torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        say "skipped: $python has no PyTorch with CUDA"
        return
    fi
    for shape in ${SHAPES:-0.8B}; do
        for mode in eager compiled matmul; do
            limited 100 "PyTorch $shape $mode" "$python" tools/peer_cuda.py --shape "$shape" --mode "$mode" --prompt 2048 \
                --tokens 64 --repeat 3 || continue
            head -n 1 "$work/log"
            # shellcheck disable=SC2046 # two numbers
            set -- $(tail -n 1 "$work/log")
            beside_peer "prompt of 2048" "$1"
            [ "$mode" = matmul ] || beside_peer "decode, batch 1" "$2" # its products are of a prompt
        done
    done
}

# ---- all of it ----

machine
for part in $only; do
    "do_$part"
    [ ! -e "$work/stop" ] || break # nothing was built
done
say "all in $(($(date +%s) - start)) s"
machine
[ ! -s "$work/rows" ] || cat "$work/rows"
table
exit $failed
