#!/bin/sh
# Instructions a token in plain C, as Valgrind counts them: a figure that depends on the compiler and not on the machine, or on what
# else it does. tests/instructions.txt has what they were; a tenth more is a failure. After a change that is meant:
#     sh tests/test_instructions.sh --write
# shellcheck disable=SC2016 # conditions are evaluated later, by check
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
known=tests/instructions.txt
compiler=$(${CC:-cc} --version | head -n 1)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
. tests/shell.sh

count() { # options of generate: instructions in $instructions, tokens of the prompt in $prompt
    run env L3_LEVEL=plain valgrind --tool=callgrind --callgrind-out-file=/dev/null "$build/generate" --stats -t 0 -j 1 "$@"
    instructions=$(awk '/I +refs:/ { gsub(",", "", $NF); print $NF }' "$work/err")
    prompt=$(awk '$1 == "prefill" { print $2 }' "$work/err")
    [ "$rc" -eq 0 ] && [ -n "$instructions" ]
}
decoding() { # model: instructions of a decoded token
    count "$1" -p Once -n 3 && few=$instructions && count "$1" -p Once -n 11 && echo $(((instructions - few) / 8))
}
prompts() { # model: instructions of a token of a prompt
    count "$1" -p "Once upon a time" -n 1 && few=$instructions && before=$prompt &&
        count "$1" -n 1 -p "Once upon a time there was a little girl who lived in a house by the sea with her mother and a dog" &&
        echo $(((instructions - few) / (prompt - before)))
}
case_is() { # name, now
    was=$(awk -v name="$1" '$1 == name { print $2 }' "$known")
    [ -n "$2" ] && [ -n "$was" ] && [ "$2" -le $((was + was / 10)) ]
}

if ! command -v valgrind >/dev/null; then
    skip "no valgrind to count instructions with"
elif [ "${1:-}" != --write ] && ! grep -qxF "# $compiler" "$known"; then
    skip "instructions were counted for another compiler than $compiler"
elif ! count examples/models/stories-l3-small.gguf -n 1; then
    skip "what was built does not run under valgrind, or not as it is usually built"
else
    echo "# $compiler" >"$work/now"
    for model in books-l3 stories-l3-small; do
        echo "$model-decode $(decoding examples/models/$model.gguf)" >>"$work/now"
        echo "$model-prompt $(prompts examples/models/$model.gguf)" >>"$work/now"
    done
    if [ "${1:-}" = --write ]; then cp "$work/now" "$known"; fi
    rc=0
    while read -r name now; do
        [ "$name" = "#" ] || check "$name: $now instructions a token" case_is "$name" "$now"
    done <"$work/now"
fi
echo "instructions: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
