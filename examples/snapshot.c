/* snapshot.c - save a session, go on, and go on again from the snapshot: the two continuations are the same.
 *
 * A snapshot holds the KV cache, the position and the logits, not the weights. It can be kept to skip the prefill of a
 * long prompt, to survive a power cut, or to try several continuations of one text. Here it goes to memory with
 * l3_write_buffer; any function that takes bytes will do. A snapshot of another model is refused.
 *
 *     build/snapshot [examples/models/books-l3.gguf] */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BEFORE = 12, AFTER = 40 }; /* tokens */

static l3_error err;
static void    *blocks[8];
static size_t   n_blocks;

static void check(int status) {
    if (status == L3_OK) return;
    fprintf(stderr, "snapshot: %s\n", err.text);
    exit(1);
}

/* malloc() with the library's alignment. */
static void *block(size_t n) {
    unsigned char *p = (unsigned char *)malloc(n + L3_ALIGN);
    if (!p || n_blocks == 8) exit(1);
    blocks[n_blocks++] = p;
    return p + (L3_ALIGN - (uintptr_t)p % L3_ALIGN);
}

static l3_session *new_session(const l3_model *model) {
    l3_session  *session;
    const size_t size = l3_session_size(model, NULL);
    check(l3_session_init(&session, model, NULL, block(size), size, &err));
    return session;
}

static l3_sampler *new_sampler(const l3_model *model, const l3_sampling *sampling) {
    l3_sampler    *sampler;
    const uint32_t vocab = l3_model_info(model)->vocab;
    const size_t   size  = l3_sampler_size(sampling, vocab);
    check(l3_sampler_init(&sampler, sampling, vocab, block(size), size, &err));
    return sampler;
}

static void say(l3_tokenizer *tokenizer, int32_t id) {
    const char *text;
    size_t      n;
    check(l3_detokenize(tokenizer, id, &text, &n, &err));
    printf("%.*s", (int)n, text);
}

/* Writes `count` tokens, to the screen and to ids. */
static void go_on(l3_session *session, l3_sampler *sampler, l3_tokenizer *tokenizer, int32_t *ids, int count) {
    const char *text;
    size_t      n;
    for (int i = 0; i < count; i++) {
        check(l3_sample(sampler, l3_logits(session), &ids[i], &err));
        say(tokenizer, ids[i]);
        check(l3_decode(session, ids[i], &err));
    }
    l3_detokenize_end(tokenizer, &text, &n);
    printf("%.*s\n", (int)n, text);
}

int main(int argc, char **argv) {
    static const char prompt[] = "Once upon a time";
    l3_file           file;
    l3_model         *model;
    l3_tokenizer     *tokenizer;
    int32_t           ids[64], first[AFTER], second[AFTER];
    size_t            size, n;
    l3_sampling       sampling = l3_sampling_defaults();

    check(l3_source_open_file(&file, argc > 1 ? argv[1] : "examples/models/books-l3.gguf", L3_FILE_MAP, &err));
    check(l3_model_size(&file.source, NULL, &size, &err));
    check(l3_model_open(&model, &file.source, NULL, block(size), size, &err));
    size = l3_tokenizer_size(model, sizeof prompt);
    check(l3_tokenizer_init(&tokenizer, model, sizeof prompt, block(size), size, &err));

    l3_session *session = new_session(model);
    check(l3_tokenize(tokenizer, prompt, sizeof prompt - 1, L3_TEXT_BOS, ids, 64, &n, &err));
    check(l3_prefill(session, ids, (uint32_t)n, NULL, &err));
    for (size_t i = 0; i < n; i++) say(tokenizer, ids[i]);
    go_on(session, new_sampler(model, &sampling), tokenizer, ids, BEFORE);

    const uint64_t bytes = l3_session_save_size(session);
    l3_buffer      saved = {(unsigned char *)malloc((size_t)bytes), (size_t)bytes, 0};
    if (!saved.bytes) return 1;
    check(l3_session_save(session, l3_write_buffer, &saved, &err));
    printf("\n[%lu bytes saved after %u tokens]\n\n1: ", (unsigned long)saved.used, (unsigned)l3_position(session));

    sampling.seed = 7; /* a sampler is no part of the snapshot: both continuations get a new one with the same seed */
    go_on(session, new_sampler(model, &sampling), tokenizer, first, AFTER);

    l3_session     *restored = new_session(model);
    const l3_source snapshot = l3_source_memory(saved.bytes, saved.used);
    check(l3_session_load(restored, &snapshot, &err));
    printf("\n2: ");
    go_on(restored, new_sampler(model, &sampling), tokenizer, second, AFTER);

    const int same = memcmp(first, second, sizeof first) == 0;
    printf("\nThe two continuations are %s.\n", same ? "identical" : "DIFFERENT");
    free(saved.bytes);
    while (n_blocks) free(blocks[--n_blocks]);
    l3_source_close_file(&file);
    return same ? 0 : 1;
}
