/* The headers in WebAssembly with no C library and no WASI, as a web page would have them: nothing is imported. JavaScript
 * (model.mjs beside this) puts the model's bytes into the memory behind the program, calls open() with the rest of the memory,
 * prompt(), and then next() for every token. */
#define L3_NO_STDIO
#define L3_NO_ALLOCATOR
#define L3_STATIC
#define L3_IMPLEMENTATION
#include "../../l3_model.h"

#include "../nolibc.h"

#define EXPORT __attribute__((visibility("default"), used))

static l3_model     *model;
static l3_session   *session;
static l3_tokenizer *tokenizer;
static const char   *text; /* of the last token */
static size_t        text_bytes;

/* The first address after the program's own. */
EXPORT unsigned char *heap(void) {
    extern unsigned char __heap_base;
    return &__heap_base + (L3_ALIGN - (uintptr_t)&__heap_base % L3_ALIGN) % L3_ALIGN;
}

static void *take(unsigned char **mem, size_t *left, size_t n) {
    unsigned char *p = *mem;
    n                = (n + L3_ALIGN - 1) / L3_ALIGN * L3_ALIGN;
    if (n > *left) return NULL;
    *mem += n, *left -= n;
    return p;
}

/* A model of n bytes at file; mem: everything else it needs, aligned to L3_ALIGN. L3_ERR_MEMORY: it needs more. */
EXPORT int open(const unsigned char *file, size_t n, unsigned char *mem, size_t left) {
    const l3_source   source = l3_source_memory(file, n);
    l3_session_config config;
    size_t            size;
    memset(&config, 0, sizeof config);
    config.work.mode = L3_EXACT;
    int code         = l3_model_size(&source, NULL, &size, NULL);
    if (code == L3_OK) code = l3_model_open(&model, &source, NULL, take(&mem, &left, size), size, NULL);
    if (code != L3_OK) return code;
    size = l3_session_size(model, &config);
    code = l3_session_init(&session, model, &config, take(&mem, &left, size), size, NULL);
    if (code != L3_OK) return code;
    size = l3_tokenizer_size(model, 256);
    return l3_tokenizer_init(&tokenizer, model, 256, take(&mem, &left, size), size, NULL);
}

/* Reads a prompt of n bytes of UTF-8, at most 256. */
EXPORT int prompt(const char *bytes, size_t n) {
    int32_t ids[258];
    size_t  count = 0;
    int     code  = l3_tokenize(tokenizer, bytes, n, L3_TEXT_BOS, ids, 258, &count, NULL);
    for (size_t i = 0; code == L3_OK && i < count; i++)
        code = l3_detokenize(tokenizer, ids[i], &text, &text_bytes, NULL);
    return code == L3_OK ? l3_prefill(session, ids, (uint32_t)count, NULL, NULL) : code;
}

/* Appends the likeliest token; where its text is, and how long: text_at(), text_size(). */
EXPORT int next(void) {
    const float   *logits = l3_logits(session);
    const uint32_t vocab  = l3_model_info(model)->vocab;
    int32_t        best   = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = (int32_t)i;
    const int code = l3_detokenize(tokenizer, best, &text, &text_bytes, NULL);
    return code == L3_OK ? l3_decode(session, best, NULL) : code;
}

EXPORT const char *text_at(void) { return text; }
EXPORT size_t      text_size(void) { return text_bytes; }
