/* Prints the sizes of every kind of block for a 32-bit machine: asked of this machine if it is one, else of the calls that tell
 * another machine's. tests/test_sizes.sh compares the two. Usage: target_sizes model.gguf */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#if UINTPTR_MAX <= 0xffffffff
#define L3_NO_STDIO /* as on the machines that the sizes are meant for: L3_ALIGN is 16 */
#endif
#define L3_STATIC
#define L3_IMPLEMENTATION
#include "../l3_model.h"

static const unsigned char *bytes;

static int read_bytes(void *user, uint64_t off, void *dst, size_t n) {
    (void)user;
    memcpy(dst, bytes + off, n);
    return 0;
}
static int wait_for_nothing(void *user) {
    (void)user;
    return 0;
}

#ifdef L3_NO_STDIO
#define SIZE(call, ...)      call(__VA_ARGS__)
#define FOR_MODEL(source, n) l3_model_size(source, NULL, n, &err)
#else
static l3_target target;
#define SIZE(call, ...)      call##_for(&target, __VA_ARGS__)
#define FOR_MODEL(source, n) l3_model_size_for(&target, source, n, &err)
#endif

static void fail(const l3_error *err) {
    printf("%s\n", err->text);
    exit(1);
}

static void print_sizes(const char *name, const l3_source *source) {
    static const struct {
        uint32_t context, batch;
        int32_t  kv_type;
        l3_mode  mode;
        size_t   window, cache;
    } cases[]                  = {{0, 0, L3_F32, L3_FAST, 0, 0},
                                  {100, 1, L3_Q8_0, L3_FAST, 0, 3000},
                                  {77, 3, L3_F16, L3_EXACT, 9000, 70000},
                                  {33, 1, L3_F32, L3_FAST, 8192, 1 << 20}};
    l3_sampling       sampling = l3_sampling_defaults();
    l3_session_config config;
    l3_error          err;
    l3_model         *model = NULL;
    size_t            size, here;
    if (FOR_MODEL(source, &size) != L3_OK || l3_model_size(source, NULL, &here, &err) != L3_OK) fail(&err);
    void *mem = aligned_alloc(64, (here + 63) / 64 * 64);
    if (!mem || l3_model_open(&model, source, NULL, mem, here, &err) != L3_OK) fail(&err);
    printf("%s model %lu", name, (unsigned long)size);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        memset(&config, 0, sizeof config);
        config.context     = cases[i].context;
        config.kv_type     = cases[i].kv_type;
        config.work.batch  = cases[i].batch;
        config.work.mode   = cases[i].mode;
        config.work.window = cases[i].window;
        config.work.cache  = cases[i].cache;
        printf(" session %lu", (unsigned long)SIZE(l3_session_size, model, &config));
        printf(" work %lu", (unsigned long)SIZE(l3_work_size, model->lookups, model->info.n_lookups, &config.work));
    }
    printf(" tokenizer %lu %lu", (unsigned long)SIZE(l3_tokenizer_size, model, 0),
           (unsigned long)SIZE(l3_tokenizer_size, model, 500));
    printf(" sampler %lu", (unsigned long)SIZE(l3_sampler_size, &sampling, model->info.vocab));
    sampling.top_k = 0;
    printf(" %lu\n", (unsigned long)SIZE(l3_sampler_size, &sampling, model->info.vocab));
    free(mem);
}

int main(int argc, char **argv) {
    FILE *f = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (!f) return 2;
    fseek(f, 0, SEEK_END);
    const long     size = ftell(f);
    unsigned char *p    = (unsigned char *)malloc((size_t)size);
    rewind(f);
    if (!p || fread(p, 1, (size_t)size, f) != (size_t)size) return 2;
    fclose(f);
    bytes = p;
#ifndef L3_NO_STDIO
    target = l3_target_32();
#endif
    const l3_source mapped = l3_source_memory(p, (size_t)size);
    l3_source       reads  = mapped;
    reads.map              = NULL;
    reads.read             = read_bytes;
    print_sizes("mapped", &mapped);
    print_sizes("read", &reads);
    reads.align = 128;
    reads.start = read_bytes;
    reads.wait  = wait_for_nothing;
    print_sizes("pages", &reads);
    free(p);
    return 0;
}
