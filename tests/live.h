/* live.h - what a program does with any file that opens: a little of everything, within bounds, whatever the numbers are.
 * For tests of damaged files and for the fuzzer. Needs l3_model.h. */
#ifndef TEST_LIVE_H
#define TEST_LIVE_H

#include <stdlib.h>
#include <string.h>

#include "guard.h"

/* Whether a failure says so in full. */
static inline int error_sound(int code, const l3_error *err) {
    return code < 0 && code >= L3_ERR_DEVICE && err->code == code && err->text[0] &&
           memchr(err->text, 0, sizeof err->text);
}

static inline int live_sound(int code, const l3_error *err) { return code == L3_OK || error_sound(code, err); }

typedef struct live_limits {
    size_t memory; /* of any one block */
    size_t window; /* of a session, above the least; 0: the default */
} live_limits;

/* Each of these returns whether every failure was sound. */

static inline int live_text(const l3_model *model, const char *text, size_t n, const live_limits *limits) {
    static int32_t ids[256];
    const size_t   size = l3_tokenizer_size(model, n);
    l3_tokenizer  *t;
    l3_error       err;
    const char    *piece;
    size_t         count = 0, length;
    if (size == 0 || size > limits->memory) return 1;
    guard b    = guard_new(size, L3_ALIGN, 0xff);
    int   code = l3_tokenizer_init(&t, model, n, b.mem, size, &err), ok = live_sound(code, &err);
    for (int flags = 0; ok && code == L3_OK && flags < 8; flags++) {
        const int made = l3_tokenize(t, text, n, flags, ids, 256, &count, &err);
        ok             = live_sound(made, &err);
        for (size_t i = 0; ok && i < count && i < 256 && made == L3_OK; i++)
            ok = live_sound(l3_detokenize(t, ids[i], &piece, &length, &err), &err);
        l3_detokenize_end(t, &piece, &length);
    }
    return guard_free(&b) && ok;
}

static inline int live_snapshot(l3_session *s) {
    l3_buffer b;
    l3_error  err;
    b.size   = (size_t)l3_session_save_size(s);
    b.used   = 0;
    b.bytes  = (unsigned char *)malloc(b.size);
    int code = l3_session_save(s, l3_write_buffer, &b, &err), ok = live_sound(code, &err);
    if (code == L3_OK) {
        const l3_source in = l3_source_memory(b.bytes, b.used);
        code               = l3_session_load(s, &in, &err);
        ok                 = live_sound(code, &err);
    }
    free(b.bytes);
    return ok;
}

static inline int live_session(const l3_model *model, const live_limits *limits) {
    const l3_info    *x = l3_model_info(model);
    l3_session_config c;
    l3_session       *s;
    l3_error          err;
    const int32_t     last = (int32_t)(x->vocab - 1), ids[5] = {0, last, last / 2, 0, last / 3};
    memset(&c, 0, sizeof c);
    c.context         = x->context < 6 ? x->context : 6;
    c.work.batch      = 3;
    c.work.window     = limits->window ? l3_session_window_min(model) + limits->window : 0;
    const size_t size = l3_session_size(model, &c);
    if (size == 0 || size > limits->memory) return 1;
    guard b  = guard_new(size, L3_ALIGN, 0xff);
    int   ok = live_sound(l3_session_init(&s, model, &c, b.mem, size, &err), &err);
    ok       = ok && live_sound(l3_prefill(s, ids, c.context < 5 ? c.context : 5, NULL, &err), &err);
    ok       = ok && live_sound(l3_decode(s, 1 % (last + 1), &err), &err);
    ok       = ok && live_snapshot(s);
    return guard_free(&b) && ok;
}

/* Opens a source and lives with it. *code is what opening gave. */
static inline int live(const l3_source *source, const char *text, size_t n, const live_limits *limits, int *code,
                       l3_error *err) {
    l3_model *model = NULL;
    size_t    size  = 0;
    memset(err, 0, sizeof *err);
    *code = l3_model_size(source, NULL, &size, err);
    if (*code != L3_OK) return live_sound(*code, err);
    if (size > limits->memory) return 1;
    guard b = guard_new(size, L3_ALIGN, 0xff);
    *code   = l3_model_open(&model, source, NULL, b.mem, size, err);
    int ok  = live_sound(*code, err);
    if (*code == L3_OK) {
        l3_error inner;
        ok = live_sound(l3_model_verify(model, &inner), &inner) && live_text(model, text, n, limits);
        if (ok && l3_model_info(model)->kind == L3_KIND_MODEL) ok = live_session(model, limits);
    }
    return guard_free(&b) && ok;
}

#endif
