#!/bin/sh
# make.sh [books] [dense] [small] - how the models in this directory were made, from text to GGUF. The texts are not part of the
# project (examples/models/README.md names them); everything else is.
#
#     BOOKS=books_train.txt.xz VALID=books_valid.txt.xz STORIES=stories.txt.xz sh examples/models/make.sh books dense small
#
# A run that was interrupted goes on when it is called again. `dense` trains what `books` is compared with: the same text, order
# and number of steps, as many active parameters, no tables.
set -eu
cd "$(dirname "$0")/../.."
build=${BUILD:-build}
work=${WORK:-build/models}
here=examples/models
mkdir -p "$work"

train() { # name, tokenizer, arguments ...: trains, or goes on
    name=$1 tokenizer=$2
    shift 2
    if [ -e "$work/$name.gguf" ]; then return; fi
    set -- "$@" --tokenizer "$tokenizer" -o "$work/$name.gguf"
    if [ -e "$work/$name.ckpt" ]; then set -- "$@" --resume; fi
    "$build/l3-train" "$@" | tee -a "$work/$name.log"
}

keep() { # name, types ...: quantizes into this directory, with log and curves
    name=$1
    shift
    "$build/l3-quantize" "$work/$name.gguf" "$here/$name.gguf" "$@"
    cp "$work/$name.csv" "$work/$name.svg" "$here/"
}

books_text() {
    tok=$work/books-tokenizer.gguf
    [ -e "$tok" ] || "$build/l3-tokenizer" train --vocab 4096 -o "$tok" "$BOOKS"
    [ -e "$work/books.tokens" ] || "$build/l3-tokenizer" shard "$tok" -o "$work/books.tokens" "$BOOKS"
}

# What both have in common: 2,000 steps of 48 sequences of 256 tokens.
books_settings="--steps 2000 --set dim=160 --set blocks=6 --set heads=5 --set context=256 --set batch=48 --set lr=3e-3
    --set warmup=100 --set eval_every=250 --set eval_tokens=200000 --set sample=60"

books() {
    books_text
    [ -e "$work/books-alloc.gguf" ] ||
        "$build/l3-alloc" --tokenizer "$tok" --rows 26624 --max 128 -o "$work/books-alloc.gguf" "$BOOKS"
    # shellcheck disable=SC2086 # settings are split on purpose
    train books-l3 "$tok" --data "$work/books.tokens" --valid "$VALID" $books_settings --set ffn=448 \
        --alloc "$work/books-alloc.gguf" --set lookup=1,3 --set up_length=160 --set rows_lr=3 --name "Books, L3" \
        --description "Trained on 730 English books in the public domain (classic-books-markdown by mlschmitt)"
    keep books-l3 --weights q8_0 --rows q4_0 --text "$VALID"
}

dense() { # ffn 512: a little more than what the lookup layers' own matrices cost
    books_text
    # shellcheck disable=SC2086 # settings are split on purpose
    train books-dense "$tok" --data "$work/books.tokens" --valid "$VALID" $books_settings --set ffn=512 --name "Books, dense"
    cp "$work/books-dense.csv" "$here/"
    "$build/l3-eval" --compare "$work/books-l3.gguf" "$work/books-dense.gguf" --text "$VALID"
}

small() {
    tok=$work/small-tokenizer.gguf
    [ -e "$tok" ] || "$build/l3-tokenizer" train --vocab 768 -o "$tok" "$STORIES"
    "$build/l3-alloc" --tokenizer "$tok" --rows 2656 --max 64 -o "$work/small-alloc.gguf" "$STORIES"
    train stories-l3-small "$tok" --data "$STORIES" --steps 2400 --alloc "$work/small-alloc.gguf" --set dim=64 --set blocks=3 \
        --set heads=2 --set ffn=96 --set context=256 --set lookup=0,1 --set up_length=32 --set batch=32 --set lr=6e-3 \
        --set rows_lr=2 --set eval_every=400 --set sample=60 --name "Stories, small L3" \
        --description "Trained on children's stories from TinyStories (Eldan, Li 2023; CDLA-Sharing-1.0)"
    keep stories-l3-small --weights q8_0 --rows q4_0 --embedding q4_0
}

for what in "${@:-books}"; do
    case $what in
    books | dense | small) "$what" ;;
    *) echo "usage: make.sh [books] [dense] [small]" >&2; exit 2 ;;
    esac
done
