/* test_session.c - l3_cuda.cu against the CPU's plain C path: with the object that nvcc makes of it on a GPU, or with that of
 * emulated.cpp, whose kernels run on the CPU in an order that a seed decides. */
#define L3_NO_SIMD
#define L3_IMPLEMENTATION
#include "../../l3_model.h"

#include "../../l3_cuda.cu"

#ifdef L3_CUDA_EMULATED
#include "emulated.h"
#endif
#include "../json.h"
#include "../make_model.h"
#include "../model.h"

#define EXACT_TOLERANCE 2e-5 /* relative to the largest logit, at least 1: as test_model.c against double precision */
#define FAST_TOLERANCE  2e-2 /* activations rounded to halves, scales to halves */

/* ---- a GPU beside a model ---- */

typedef struct card {
    guard    block;
    l3_cuda *gpu;
    l3_error err;
} card;

static int card_open(card *c, const l3_model *model, const l3_cuda_config *config) {
    l3_cuda_memory memory;
    memset(c, 0, sizeof *c);
    int code = l3_cuda_memory_of(model, config, &memory, &c->err);
    if (code != L3_OK) return code;
    c->block = guard_new(memory.host, L3_ALIGN, 0xa5);
    code     = l3_cuda_open(&c->gpu, model, config, c->block.mem, memory.host, &c->err);
    if (code != L3_OK) CHECK(guard_free(&c->block));
    return code;
}

static void card_close(card *c) {
    l3_cuda_close(c->gpu);
    CHECK(guard_free(&c->block));
}

/* ---- numbers to compare with ---- */

static float *cpu_logits(const l3_model *model, const int32_t *ids, uint32_t n) {
    float   *all = new_floats(n, l3_model_info(model)->vocab);
    l3_error err;
    seat     s;
    if (CHECK_EQ(seat_open(&s, model, NULL, &err), L3_OK)) {
        CHECK_EQ(l3_prefill(s.session, ids, n, all, &err), L3_OK);
        seat_close(&s);
    }
    return all;
}

/* Largest difference, relative to the largest number, at least 1. */
static double difference(const float *a, const float *b, size_t n) {
    double most = 0, scale = 1;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) most = d; /* NaN counts */
        if (fabs((double)b[i]) > scale) scale = fabs((double)b[i]);
    }
    return most / scale;
}

/* ---- against the CPU ---- */

static double most_exact, most_fast;

/* Logits after every token: in one prefill, by decoding, in halves. */
static void compare(const l3_model *model, const int32_t *ids, uint32_t n, l3_cuda_config config, const char *name) {
    const uint32_t vocab = l3_model_info(model)->vocab;
    float         *right = cpu_logits(model, ids, n), *all = new_floats(n, vocab), *one = new_floats(1, vocab);
    const double   allowed = config.mode == L3_EXACT ? EXACT_TOLERANCE : FAST_TOLERANCE;
    double        *most    = config.mode == L3_EXACT ? &most_exact : &most_fast;
    card           c;
    if (!CHECK_EQ(card_open(&c, model, &config), L3_OK)) {
        fprintf(stderr, "    %s: %s\n", name, c.err.text);
        return;
    }
    if (!CHECK_EQ(l3_cuda_prefill(c.gpu, 0, ids, n, all, &c.err), L3_OK))
        fprintf(stderr, "    %s: %s\n", name, c.err.text);
    double d = difference(all, right, (size_t)n * vocab);
    if (!CHECK(d <= allowed)) fprintf(stderr, "    %s, prefill: %.3g\n", name, d);
    if (d > *most) *most = d;
    CHECK_EQ(l3_cuda_logits(c.gpu, 0, one, &c.err), L3_OK);
    CHECK_MEM(one, all + (size_t)(n - 1) * vocab, vocab * sizeof *one);
    CHECK_EQ(l3_cuda_truncate(c.gpu, 0, n / 2, &c.err), L3_OK);
    for (uint32_t i = n / 2; i < n; i++) {
        CHECK_EQ(l3_cuda_decode(c.gpu, NULL, ids + i, 1, &c.err), L3_OK);
        CHECK_EQ(l3_cuda_logits(c.gpu, 0, one, &c.err), L3_OK);
        d = difference(one, right + (size_t)i * vocab, vocab);
        if (!CHECK(d <= allowed)) fprintf(stderr, "    %s, decode %u: %.3g\n", name, i, d);
        if (d > *most) *most = d;
        if (config.mode == L3_EXACT) CHECK_MEM(one, all + (size_t)i * vocab, vocab * sizeof *one);
    }
    CHECK_EQ(l3_cuda_position(c.gpu, 0), n);
    card_close(&c);
    free(right);
    free(all);
    free(one);
}

static void compare_ways(const l3_model *model, const int32_t *ids, uint32_t n, const char *name) {
    for (int way = 0; way < 4; way++) {
        l3_cuda_config config;
        memset(&config, 0, sizeof config);
        config.mode    = way % 2 ? L3_EXACT : L3_FAST;
        config.kv_type = way / 2 ? L3_F32 : L3_F16;
        config.batch   = way == 2 ? 3 : 0;
        if (config.mode == L3_EXACT) config.kv_type = L3_F32;
        compare(model, ids, n, config, name);
    }
}

TEST(variants) {
    file text = file_fixture("variants/index.json");
    if (!text.bytes) SKIP("no fixtures");
    const void *chars = text.bytes;
    json       *index = json_parse((const char *)chars);
    REQUIRE(index != NULL);
    for (const json *v = index->first; v; v = v->next) {
        char path[128];
        rig  r;
        snprintf(path, sizeof path, "variants/%s.gguf", json_get(v, "name")->string);
        file f = file_fixture(path);
        if (f.bytes && CHECK_EQ(rig_open(&r, f, MAPPED), L3_OK)) {
            test_rng rng = {3};
            int32_t *ids = random_ids(&rng, l3_model_info(r.model)->vocab, 24);
            compare_ways(r.model, ids, 24, json_get(v, "name")->string);
            free(ids);
            rig_close(&r);
        }
        free(f.bytes);
    }
    json_free(index);
    free(text.bytes);
}

TEST(random_models) {
    for (uint64_t seed = 1; seed <= (uint64_t)test_some(30); seed++) {
        const mk_spec spec = mk_random_spec(seed);
        file          f    = file_make(&spec);
        char          name[32];
        rig           r;
        snprintf(name, sizeof name, "seed %u", (unsigned)seed);
        if (CHECK_EQ(rig_open(&r, f, MAPPED), L3_OK)) {
            test_rng       rng = {seed};
            const uint32_t n   = l3_model_info(r.model)->context < 20 ? l3_model_info(r.model)->context : 20;
            int32_t       *ids = random_ids(&rng, l3_model_info(r.model)->vocab, n);
            compare_ways(r.model, ids, n, name);
            free(ids);
            rig_close(&r);
        }
        free(f.bytes);
    }
}

int main(void) {
    RUN(variants);
    RUN(random_models);
    if (test_verbose()) fprintf(stderr, "  largest difference: exact %.3g, fast %.3g\n", most_exact, most_fast);
    return test_report("cuda");
}
