#!/bin/sh
# l3-tokenizer from the outside: tokenizers it makes, compression beside SentencePiece's, lossless round trips, shards, packed
# text and pipes, what bad input gets. Needs the programs in $BUILD; fixtures in $L3_FIXTURES where they are there.
# shellcheck disable=SC2016 # conditions are evaluated later, by check
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
fixtures=${L3_FIXTURES:-../shared/fixtures}
data=${L3_DATA:-../shared/data}
model=examples/models/books-l3.gguf
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
. tests/shell.sh
tool=$build/l3-tokenizer
text=$work/text
tok=$work/tok.gguf

same() { cmp -s "$work/$1" "$work/$2"; }
number() { awk -v f="$2" 'NR == 1 { print $f }' "$work/$1"; } # file, field of its first line
new_files() { ls "$work" >"$work.after" && cmp -s "$work.before" "$work.after"; }

usage() {
    run "$tool" --help
    check "--help" eval 'ends 0 && silent err && says out "^usage: "'
    while read -r arguments; do
        # shellcheck disable=SC2086 # split on purpose
        run "$tool" $arguments
        check "l3-tokenizer $arguments" refused 2
    done <<'END'

make
train
train --vocab 300 -o x
train --vocab 300 y
train -o x y
train --vocab 259 -o x y
train --vocab 1048577 -o x y
train --vocab 300x -o x y
train --vocab 300 --max-piece 0 -o x y
train --vocab 300 --max-piece 257 -o x y
train --vocab 300 --character-coverage 1.5 -o x y
train --vocab 300 --special= -o x y
train --vocab 300 --special <s> -o x y
train --vocab 300 --special a --special a -o x y
encode
encode x
encode x y z
decode x
shard x y
shard x -o y
shard -o x y
END
}

# ---- train ----

trained() {
    cat l3.h docs/*.md README.md >"$text"
    run "$tool" train --vocab 1000 -o "$tok" "$text"
    check "train" eval 'ends 0 && silent out && says err "bytes a token"'
    cp "$work/err" "$work/report"
    run "$build/l3-inspect" --verify "$tok"
    check "l3-inspect --verify takes it" ends 0
    run "$tool" train --vocab 1000 -o "$work/again.gguf" "$text"
    check "the same text gives the same bytes" same tok.gguf again.gguf
    run sh -c '"$1" train --vocab 1000 -o "$2" - <"$3"' - "$tool" "$work/again.gguf" "$text"
    check "standard input" eval 'ends 0 && same tok.gguf again.gguf'
    run "$tool" train --vocab 300 --character-coverage 0.6 --max-piece 1 --name "two words" -o "$work/few.gguf" "$text"
    check "pieces of one character are no pieces" eval 'refused 1 && says err "allows 2[67][0-9] tokens"'
    run "$tool" train --vocab 400 --special "<|user|>" --special "<|bot|>" -o "$work/special.gguf" "$text"
    echo "399 398 397 4" >"$work/ids"
    run "$tool" decode "$work/special.gguf" "$work/ids"
    check "special tokens are the last, and have no text" eval 'ends 0 && [ "$(wc -c <"$work/out")" -le 18 ]'
    echo "<|user|>" >"$work/line"
    run "$tool" encode "$work/special.gguf" "$work/line"
    check "their text is text" eval 'ends 0 && ! says out "39[89]"'
    run "$tool" train --vocab 600 --memory 20K -o "$work/small.gguf" "$text"
    check "a small table of words says so" eval 'ends 0 && says err "dropped"'
}

# The largest vocabulary that it names is possible, one more is not.
limits() {
    head -c 2000 README.md >"$work/short"
    run "$tool" train --vocab 5000 -o "$work/none.gguf" "$work/short"
    check "a vocabulary that is too large" eval 'refused 1 && [ ! -e "$work/none.gguf" ]'
    most=$(sed 's/.* allows \([0-9]*\) tokens.*/\1/' "$work/err")
    run "$tool" train --vocab "$most" -o "$work/most.gguf" "$work/short"
    check "the largest one" eval 'ends 0 && says err " pieces"'
    run "$tool" train --vocab $((most + 1)) -o "$work/none.gguf" "$work/short"
    check "one more" eval 'refused 1 && says err "allows $most tokens"'
    run "$tool" train --vocab 270 -o "$work/none.gguf" "$work/short"
    least=$(sed 's/.* are \([0-9]*\) already.*/\1/' "$work/err")
    check "a vocabulary that is too small" eval 'refused 1 && [ "$least" -gt 270 ]'
    run "$tool" train --vocab "$least" -o "$work/least.gguf" "$work/short"
    check "the smallest one" ends 0
}

# ---- encode, decode ----

encodings() {
    run "$tool" encode "$model" README.md
    cp "$work/out" "$work/ids"
    run "$build/l3-eval" "$model" --encode README.md
    check "encode is l3-eval --encode" eval 'ends 0 && same out ids'
    printf 'a\n\n\n b\n  \nno newline' >"$work/lines"
    run "$tool" encode "$tok" "$work/lines"
    check "empty lines stay" eval 'ends 0 && lines out 6 && [ "$(grep -c "^$" "$work/out")" = 2 ]'
    run "$build/l3-eval" "$tok" --encode "$work/lines"
    cp "$work/out" "$work/ids"
    run "$tool" encode "$tok" "$work/lines"
    check "the same lines" same out ids
    : >"$work/empty"
    run "$tool" encode "$tok" "$work/empty"
    check "an empty file" eval 'ends 0 && silent out'
    run sh -c 'printf "one line\nand one" | "$1" encode "$2" - | "$1" decode "$2" -' - "$tool" "$tok"
    check "pipes" eval 'ends 0 && [ "$(cat "$work/out")" = "one line
and one" ]'
    if [ -e "$fixtures/alloc/stories_lines.txt" ] && [ -e "$fixtures/stories-l3.gguf" ]; then
        run "$tool" encode "$fixtures/stories-l3.gguf" "$fixtures/alloc/stories_lines.txt"
        check "known IDs" cmp -s "$work/out" "$fixtures/alloc/stories_lines.ids.txt"
    else
        skip "no fixtures for known IDs"
    fi
}

round_trip() { # name, model: $work/in through encode and decode
    name=$1
    run sh -c '"$1" encode "$2" "$3" >"$4"' - "$tool" "$2" "$work/in" "$work/ids"
    [ "$rc" = 0 ] && run "$tool" decode "$2" "$work/ids"
    check "$name" eval 'ends 0 && same in out'
}

lossless() {
    for with in "$tok" "$model"; do
        # shellcheck disable=SC2018 # a newline ends the last line, which is not in the text otherwise
        { head -c 300000 /dev/urandom && echo; } | LC_ALL=C sed 's/\xe2\x96\x81/x/g' >"$work/in"
        round_trip "random bytes, $with" "$with"
        { tr -d '\n' </dev/urandom | head -c 100000 && echo; } | LC_ALL=C sed 's/\xe2\x96\x81/x/g' >"$work/in"
        round_trip "one long line of random bytes, $with" "$with"
        printf '  two  spaces \n\n\t\r\n caf\303\251 \342\230\203 \360\237\230\200 \345\217\245\n<s> </s> <unk> <0x41>\n \n' >"$work/in"
        cat docs/*.md >>"$work/in"
        round_trip "text, $with" "$with"
        { head -c 200000 /dev/zero && echo && head -c 200000 /dev/zero | tr '\0' ' ' && echo && head -c 200000 /dev/zero |
            tr '\0' a && echo; } >"$work/in"
        round_trip "long lines of one byte, $with" "$with"
    done
}

bad_ids() {
    for ids in "1 2 x" "1,2" "-1" "1000" "4294967296" "99999999999999999999999999" "1.5" "0x10"; do
        echo "5" >"$work/ids"
        echo "$ids" >>"$work/ids"
        run "$tool" decode "$tok" "$work/ids"
        check "decode $ids" eval 'ends 1 && lines err 1 && says err "line 2"'
    done
}

# ---- shards ----

field() { od -An -tu"$3" -j"$2" -N"$3" "$work/$1" | tr -d ' '; } # file, offset, bytes: a number

shards() {
    run "$tool" shard "$tok" -o "$work/a.tokens" "$text"
    check "shard" eval 'ends 0 && silent out && says err "bytes a token"'
    check "its header" eval '[ "$(head -c 4 "$work/a.tokens")" = L3TK ] && [ "$(field a.tokens 4 4)" = 1 ] &&
        [ "$(field a.tokens 8 4)" = 1000 ] && [ "$(field a.tokens 12 4)" = 2 ] && [ "$(field a.tokens 32 8)" = "$(wc -c <"$text")" ]'
    n=$(field a.tokens 24 8)
    check "its size" size_is "$work/a.tokens" $((48 + 2 * n))
    check "BOS and EOS" eval '[ "$(field a.tokens 48 2)" = 1 ] && [ "$(field a.tokens $((46 + 2 * n)) 2)" = 2 ]'
    # One document: what training said a token is worth is what tokenizing finds, BOS and EOS aside.
    check "the trainer knows how it will tokenize" eval \
        '[ "$(number report 1)" ] && grep -q "^$(awk -v b="$(wc -c <"$text")" -v n="$n" "BEGIN { printf \"%.4f\", b / (n - 2) }") bytes" "$work/report"'
    printf 'one\n<|endoftext|>\n\ntwo\n' >"$work/documents"
    run "$tool" shard "$tok" -o "$work/b.tokens" "$work/documents"
    first=$(od -An -v -tu2 -j48 "$work/b.tokens" | tr -s ' \n' ' ')
    check "documents" eval 'case $first in " 1 "*" 2 1 "*" 2 ") true ;; *) false ;; esac'
    run "$tool" shard "$tok" -o "$work/c.tokens" --lines "$work/documents"
    check "--lines" eval '[ "$(od -An -v -w2 -tu2 -j48 "$work/c.tokens" | grep -c "^ *1$")" = 3 ]'
    run sh -c '"$1" shard "$2" -o /dev/stdout "$3" | cat' - "$tool" "$tok" "$text"
    check "a pipe cannot take a shard" eval 'says err "path of a file" && lines err 1 && silent out'
}

# ---- packed files ----

packed() {
    cp "$text" "$work/it's a \"file\" \$x.txt"
    for how in xz gzip; do
        command -v $how >/dev/null || { skip "$how is not here"; continue; }
        $how -k "$work/it's a \"file\" \$x.txt"
        set -- "$work"/it*.xz "$work"/it*.gz
        [ -e "$1" ] || shift
        run "$tool" train --vocab 1000 -o "$work/again.gguf" "$1"
        check "$how" eval 'ends 0 && same tok.gguf again.gguf'
        head -c 5000 "$1" >"$work/cut.${1##*.}"
        run "$tool" train --vocab 300 -o "$work/none.gguf" "$work/cut.${1##*.}"
        check "$how, cut short" eval 'refused 1 && says err "$how cannot unpack it" && [ ! -e "$work/none.gguf" ]'
        cp "$text" "$work/not.${1##*.}"
        run "$tool" shard "$tok" -o "$work/none.tokens" "$work/not.${1##*.}"
        check "no $how file" eval 'refused 1 && says err "$how cannot unpack it" && [ ! -e "$work/none.tokens" ]'
        mkdir -p "$work/bin"
        run env PATH="$work/bin" "$tool" shard "$tok" -o "$work/none.tokens" "$1"
        check "$how is not installed" eval 'refused 1 && says err "$how"'
        rm -f "$1"
    done
}

# ---- what goes wrong ----

bad_files() {
    for f in "$work/none" "$work" "$work/none.xz"; do
        run "$tool" train --vocab 300 -o "$work/none.gguf" "$f"
        check "train on $f" refused 1
        run "$tool" shard "$tok" -o "$work/none.tokens" "$f"
        check "shard of $f" refused 1
        run "$tool" encode "$tok" "$f"
        check "encode $f" refused 1
        run "$tool" encode "$f" "$text"
        check "a tokenizer $f" refused 1
    done
    printf '\n<|endoftext|>\n<|endoftext|>' >"$work/nothing"
    run "$tool" train --vocab 300 -o "$work/none.gguf" "$work/nothing"
    check "train on no text" eval 'refused 1 && says err "no text"'
    run "$tool" shard "$tok" -o "$work/none.tokens" "$work/nothing"
    check "a shard of no text" eval 'refused 1 && says err "no text"'
    run "$tool" encode README.md "$text"
    check "no GGUF file" refused 1
    run "$tool" train --vocab 1000 -o /dev/full "$text"
    check "a full disk, train" refused 1
    run sh -c '"$1" encode "$2" "$3" >/dev/full' - "$tool" "$tok" "$text"
    check "a full disk, encode" refused 1
    run "$tool" train --vocab 1000 -o "$work/no/such/place.gguf" "$text"
    check "no such directory" refused 1
    ls "$work" >"$work.before"
    run sh -c 'ulimit -f 8; trap "" XFSZ; "$1" shard "$2" -o "$3/none.tokens" "$4"' - "$tool" "$tok" "$work" "$text"
    check "a file that may not grow" eval 'ends 1 && lines err 1 && new_files'
    rm -f "$work.before" "$work.after"
}

# ---- beside SentencePiece ----

# Its BPE with byte fallback and nothing normalized, on the same lines; tokens of other lines.
compression() { # name, vocabulary, share allowed: $work/corpus and $work/held
    if ! command -v spm_train >/dev/null; then
        skip "compression of $1: no spm_train (Debian: sentencepiece)"
        return
    fi
    run spm_train --input="$work/corpus" --model_prefix="$work/spm" --model_type=bpe --vocab_size="$2" --byte_fallback=true \
        --normalization_rule_name=identity --remove_extra_whitespaces=false --num_threads=1 --minloglevel=2
    check "spm_train, $1" ends 0
    theirs=$(spm_encode --model="$work/spm.model" --output_format=id <"$work/held" | wc -w)
    run "$tool" train --vocab "$2" -o "$work/ours.gguf" "$work/corpus"
    check "train, $1" ends 0
    ours=$("$tool" encode "$work/ours.gguf" "$work/held" | wc -w)
    [ -z "${L3_VERBOSE:-}" ] || echo "  $1, $2 tokens: $ours, SentencePiece $theirs" >&2
    check "$1: $ours tokens, SentencePiece needs $theirs" eval '[ "$ours" -gt 1000 ] && [ $((ours * 1000)) -le $((theirs * '"$3"')) ]'
}

compressions() {
    grep -h . l3.h l3_model.h | head -n 4000 >"$work/corpus"
    grep -h . docs/*.md README.md >"$work/held"
    compression "the headers" 1000 1020
    if [ -e "$data/stories.txt.xz" ]; then
        xz -dc "$data/stories.txt.xz" | grep -v '^<|endoftext|>$' | grep . >"$work/stories"
        head -n 8000 "$work/stories" >"$work/corpus"
        tail -n 1000 "$work/stories" >"$work/held"
        compression "stories" 2000 1020
    else
        skip "compression of stories: they are not here"
    fi
}

usage
trained
limits
encodings
lossless
bad_ids
shards
packed
bad_files
compressions
echo "tokenizer_tool: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
