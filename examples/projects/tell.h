/* tell.h - what is the same in every project here: opens a model, runs its self-test and writes a few words. A project
 * adds where the bytes come from and where the text goes. Include it in one file, after the switches of l3.h. */
#ifndef TELL_H
#define TELL_H

#define L3_IMPLEMENTATION
#include "l3_model.h" /* in the include path; in your project beside this file */

#include <string.h>

enum { TELL_MEMORY = 56 * 1024, TELL_CONTEXT = 48, TELL_RUN = 32 }; /* bytes, tokens, bytes of a word of the prompt */

typedef void (*tell_put)(void *user, const char *text, size_t n);

typedef struct teller {
    l3_model     *model;
    l3_session   *session;
    l3_tokenizer *tokenizer;
} teller;

/* All the memory there is; what is not used at the end could be smaller. */
static size_t tell_used;
static void  *tell_take(size_t n) {
     static union {
         unsigned char bytes[TELL_MEMORY];
         double        aligned;
    } memory;
     tell_used += (L3_ALIGN - (size_t)((uintptr_t)(memory.bytes + tell_used) % L3_ALIGN)) % L3_ALIGN;
     if (n == 0 || n > TELL_MEMORY - tell_used) return NULL; /* which the library then reports */
    tell_used += n;
     return memory.bytes + tell_used - n;
}

static int tell_open(teller *t, const l3_source *source, l3_error *err) {
    l3_session_config config;
    size_t            size;
    int               code;
    tell_used = 0;
    memset(&config, 0, sizeof config);
    config.context     = TELL_CONTEXT;
    config.kv_type     = L3_Q8_0;
    config.work.batch  = 1;
    config.work.mode   = L3_EXACT; /* the same text on every machine */
    config.work.window = source->map ? 0 : 8 * 1024;
    if ((code = l3_model_size(source, NULL, &size, err)) != L3_OK) return code;
    if ((code = l3_model_open(&t->model, source, NULL, tell_take(size), size, err)) != L3_OK) return code;
    size = l3_session_size(t->model, &config);
    if ((code = l3_session_init(&t->session, t->model, &config, tell_take(size), size, err)) != L3_OK) return code;
    size = l3_tokenizer_size(t->model, TELL_RUN);
    return l3_tokenizer_init(&t->tokenizer, t->model, TELL_RUN, tell_take(size), size, err);
}

static int tell_token(teller *t, int32_t id, tell_put put, void *user, l3_error *err) {
    const char *text = NULL;
    size_t      n    = 0;
    const int   code = l3_detokenize(t->tokenizer, id, &text, &n, err);
    if (code == L3_OK && n) put(user, text, n);
    return code;
}

/* Writes the prompt and up to `tokens` more, always the likeliest. L3_OK, or what failed, with *err filled in. */
static int tell(const l3_source *source, const char *prompt, int tokens, tell_put put, void *user, l3_error *err) {
    teller  t;
    int32_t ids[TELL_CONTEXT], id;
    size_t  n    = 0;
    int     code = tell_open(&t, source, err);
    if (code == L3_OK && l3_model_info(t.model)->selftest_tokens) code = l3_session_selftest(t.session, NULL, err);
    if (code == L3_OK) code = l3_tokenize(t.tokenizer, prompt, strlen(prompt), L3_TEXT_BOS, ids, TELL_CONTEXT, &n, err);
    for (size_t i = 0; i < n && code == L3_OK; i++) code = tell_token(&t, ids[i], put, user, err);
    if (code == L3_OK) code = l3_prefill(t.session, ids, (uint32_t)n, NULL, err);
    for (int i = 0; i < tokens && code == L3_OK; i++) {
        const float *logits = l3_logits(t.session);
        id                  = 0;
        for (int32_t other = 1; other < (int32_t)l3_model_info(t.model)->vocab; other++)
            if (logits[other] > logits[id]) id = other;
        if (id == l3_model_info(t.model)->eos || l3_position(t.session) == TELL_CONTEXT) break;
        if ((code = tell_token(&t, id, put, user, err)) == L3_OK) code = l3_decode(t.session, id, err);
    }
    return code;
}

#endif
