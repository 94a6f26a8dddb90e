# shell.sh - the smallest harness for tests of command lines, sourced by them. $work is a directory of the test's own.
# shellcheck shell=sh disable=SC2154 # work is set by the test
passed=0 failed=0 skipped=0

run() { # command ...: its exit code in $rc, its output in $work/out and $work/err
    "$@" >"$work/out" 2>"$work/err" </dev/null
    rc=$?
}
check() { # name, command that must succeed
    name=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name (exit code $rc)" >&2
        head -c 300 "$work/err" >&2
    fi
}
skip() {
    skipped=$((skipped + 1))
    echo "skipped: $1" >&2
}
lines() { [ "$(wc -l <"$work/$1")" -eq "$2" ]; }
silent() { [ ! -s "$work/$1" ]; }
says() { grep -q -e "$2" "$work/$1"; }
ends() { [ "$rc" -eq "$1" ]; }
refused() { ends "$1" && lines err 1 && silent out; }
is_json() { ends 0 && python3 -m json.tool <"$work/out" >/dev/null; }
near() { # file, pattern before the number, expected, tolerance (relative)
    awk -v p="$2" -v want="$3" -v tol="$4" '{ for (i = 1; i < NF; i++) if ($i == p) got = $(i + 1) }
        END { d = got / want - 1; exit !(d <= tol && d >= -tol) }' "$work/$1"
}
size_is() { [ "$(wc -c <"$1")" -eq "$2" ]; }

