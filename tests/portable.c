/* What must be the same on every IEEE-754 machine: runs the model in the repository in exact mode, mapped and through a
 * small window, with each kind of KV cache, and prints checksums of the logits, of a sampled text, of its tokens and of an
 * allocation. tests/cross.sh compares the output of many machines with this one's. With L3_NO_STDIO the model is not a
 * file but part of the program (model_object.S). */
#define L3_IMPLEMENTATION
#include "../l3_model.h"
#include <stdio.h>
#include <stdlib.h>

static void *block(size_t size) {
    unsigned char *p = (unsigned char *)malloc(size + L3_ALIGN);
    return p ? p + (L3_ALIGN - (uintptr_t)p % L3_ALIGN) % L3_ALIGN : NULL;
}

static void must(int code, const l3_error *err) {
    if (code == L3_OK) return;
    fprintf(stderr, "%s\n", err->text);
    exit(1);
}

static uint32_t floats_crc(uint32_t crc, const float *x, uint32_t n) {
    unsigned char bytes[4];
    for (uint32_t i = 0; i < n; i++) {
        l3_pack(L3_F32, x + i, 1, bytes);
        crc = l3_crc32(crc, bytes, 4);
    }
    return crc;
}

static uint32_t ids_crc(const int32_t *ids, uint32_t n) {
    unsigned char bytes[4];
    uint32_t      crc = 0;
    for (uint32_t i = 0; i < n; i++) {
        l3_pack_i32(ids + i, 1, bytes);
        crc = l3_crc32(crc, bytes, 4);
    }
    return crc;
}

static l3_model *open_model(const l3_source *source) {
    l3_error  err;
    l3_model *model = NULL;
    size_t    size  = 0;
    must(l3_model_size(source, NULL, &size, &err), &err);
    must(l3_model_open(&model, source, NULL, block(size), size, &err), &err);
    return model;
}

#define TOKENS 24

/* Prefills a prompt, samples the rest; the checksum covers every logit on the way. */
static void run(const l3_model *model, int kv_type, const char *name, size_t window) {
    const uint32_t    vocab    = l3_model_info(model)->vocab;
    const l3_sampling sampling = l3_sampling_defaults();
    l3_session_config config;
    l3_session       *session;
    l3_tokenizer     *tokenizer;
    l3_sampler       *sampler;
    l3_error          err;
    int32_t           ids[TOKENS];
    size_t            n = 0;
    memset(&config, 0, sizeof config);
    config.context     = 64;
    config.kv_type     = kv_type;
    config.work.mode   = L3_EXACT;
    config.work.window = window;
    must(l3_session_init(&session, model, &config, block(l3_session_size(model, &config)),
                         l3_session_size(model, &config), &err),
         &err);
    must(l3_tokenizer_init(&tokenizer, model, 64, block(l3_tokenizer_size(model, 64)), l3_tokenizer_size(model, 64),
                           &err),
         &err);
    must(l3_sampler_init(&sampler, &sampling, vocab, block(l3_sampler_size(&sampling, vocab)),
                         l3_sampler_size(&sampling, vocab), &err),
         &err);
    const char text[] = "Once there was a \xc3\xa9\xe2\x98\x83\xff cat";
    must(l3_tokenize(tokenizer, text, sizeof text - 1, L3_TEXT_BOS, ids, TOKENS, &n, &err), &err);
    must(l3_prefill(session, ids, (uint32_t)n, NULL, &err), &err);
    uint32_t crc = floats_crc(0, l3_logits(session), vocab);
    for (; n < TOKENS; n++) {
        must(l3_sample(sampler, l3_logits(session), &ids[n], &err), &err);
        must(l3_decode(session, ids[n], &err), &err);
        crc = floats_crc(crc, l3_logits(session), vocab);
    }
    printf("%s: logits %08x ids %08x\n", name, (unsigned)crc, (unsigned)ids_crc(ids, TOKENS));
}

static void allocate(void) {
    enum { VOCAB = 50, ROWS = 300 };
    l3_alloc *alloc;
    l3_error  err;
    int32_t   offsets[VOCAB + 1], token;
    uint64_t  state = 7;
    must(l3_alloc_init(&alloc, VOCAB, 4096, block(l3_alloc_size(VOCAB, 4096)), l3_alloc_size(VOCAB, 4096), &err), &err);
    for (int i = 0; i < 3000; i++) {
        const uint32_t a = (uint32_t)(l3_random(&state) % VOCAB), b = (uint32_t)(l3_random(&state) % VOCAB);
        token = (int32_t)(a < b ? a : b);
        must(l3_alloc_add(alloc, &token, 1, &err), &err);
        if (i % 100 == 99) l3_alloc_end_document(alloc);
    }
    must(l3_alloc_finish(alloc, ROWS, 20, offsets, NULL, &err), &err);
    printf("allocation: %08x\n", (unsigned)ids_crc(offsets, VOCAB + 1));
}

static void compare(const l3_source *mapped, const l3_source *read) {
    const l3_model *a = open_model(mapped), *b = open_model(read);
    run(a, L3_F32, "f32", 0);
    run(a, L3_F16, "f16", 0);
    run(a, L3_Q8_0, "q8_0", 0);
    run(b, L3_F32, "read", l3_session_window_min(b));
    allocate();
}

#ifdef L3_NO_STDIO
extern const unsigned char model_start[], model_end[];

static int read_flash(void *user, uint64_t off, void *dst, size_t n) {
    (void)user;
    memcpy(dst, model_start + off, n);
    return 0;
}

int main(void) {
    const l3_source mapped = l3_source_memory(model_start, (size_t)(model_end - model_start));
    l3_source       read   = mapped;
    read.map = NULL, read.read = read_flash, read.align = 256;
    compare(&mapped, &read);
    return 0;
}
#else
int main(int argc, char **argv) {
    l3_file  mapped, read;
    l3_error err;
    if (argc != 2) return 2;
    must(l3_source_open_file(&mapped, argv[1], L3_FILE_MAP, &err), &err);
    must(l3_source_open_file(&read, argv[1], L3_FILE_READ, &err), &err);
    compare(&mapped.source, &read.source);
    l3_source_close_file(&mapped);
    l3_source_close_file(&read);
    return 0;
}
#endif
