#!/bin/sh
# run_tests.sh TEST... - runs test programs and scripts one after another. Each prints "suite: P passed, F failed, S skipped";
# the last line here is their sum. A test that ends badly without having counted a failure is one.
set -u
passed=0 failed=0 skipped=0

for test; do
    case $test in
    *.sh) output=$(sh "$test") ;;
    *) output=$("$test") ;;
    esac
    status=$?
    [ -n "$output" ] && printf '%s\n' "$output"
    # shellcheck disable=SC2046 # three numbers
    set -- $(printf '%s\n' "$output" | awk '/: [0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ {
        n = NF; p += $(n - 5); f += $(n - 3); s += $(n - 1); lines++ } END { print p + 0, f + 0, s + 0, lines + 0 }')
    if [ "$status" -ne 0 ] && [ "$2" -eq 0 ]; then
        echo "FAILED: $test ended with status $status" >&2
        failed=$((failed + 1))
    elif [ "$4" -eq 0 ]; then
        echo "FAILED: $test did not say how many tests passed" >&2
        failed=$((failed + 1))
    fi
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
done

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
