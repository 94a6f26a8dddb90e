#!/bin/sh
# run_tests.sh TEST... - runs test programs and scripts, as many at once as there are processors (or $JOBS). Each prints
# "suite: P passed, F failed, S skipped"; the last line here is their sum. A test that ends badly without having counted a
# failure is one. What a test prints is shown when it has ended.
set -u

# One test: prints what it prints, and writes to a file: passed, failed, skipped.
run_one() { # file, test
    case $2 in
    *.sh) output=$(sh "$2" 2>&1) ;;
    *) output=$("$2" 2>&1) ;;
    esac
    status=$?
    [ -n "$output" ] && printf '%s\n' "$output"
    # shellcheck disable=SC2046 # four numbers
    set -- "$1" "$2" $(printf '%s\n' "$output" | awk '/: [0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ {
        n = NF; p += $(n - 5); f += $(n - 3); s += $(n - 1); lines++ } END { print p + 0, f + 0, s + 0, lines + 0 }')
    failed=$4
    if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
        echo "FAILED: $2 ended with status $status"
        failed=1
    elif [ "$6" -eq 0 ]; then
        echo "FAILED: $2 did not say how many tests passed"
        failed=1
    fi
    echo "$3 $failed $5" >"$1"
}

if [ "${1:-}" = --one ]; then
    run_one "$2" "$3"
    exit 0
fi

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
n=0
for test; do
    n=$((n + 1))
    echo "$work/$n" "$test"
done | xargs -n 2 -P "${JOBS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)}" sh "$0" --one

for n in $(seq $#); do cat "$work/$n" 2>/dev/null || echo 0 1 0; done | awk '{ p += $1; f += $2; s += $3 }
    END { printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f > 0 }'
