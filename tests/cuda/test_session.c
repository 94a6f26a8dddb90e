/* test_session.c - l3_cuda.cu against the CPU's plain C path: with the object that nvcc makes of it on a GPU, or with that of
 * emulated.cpp, whose kernels run on the CPU in an order that a seed decides. */
#define L3_NO_SIMD
#define L3_IMPLEMENTATION
#include "../../l3_model.h"

#include "../../l3_cuda.cu"

#ifdef L3_CUDA_EMULATED
#include "emulated.h"
#else
#include <cuda_runtime_api.h>
#define emulated_seed(seed) (void)(seed)
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

/* What is allocated next holds no numbers: the emulator sees to that, and a driver mostly gives back what was freed last. */
static void poison_device(uint64_t bytes) {
#ifdef L3_CUDA_EMULATED
    (void)bytes;
#else
    void *p = NULL;
    if (cudaMalloc(&p, bytes) == cudaSuccess) cudaMemset(p, 0xff, bytes), cudaFree(p);
    cudaGetLastError();
#endif
}

static int card_open(card *c, const l3_model *model, const l3_cuda_config *config) {
    l3_cuda_memory memory;
    memset(c, 0, sizeof *c);
    int code = l3_cuda_memory_of(model, config, &memory, &c->err);
    if (code != L3_OK) return code;
    c->block = guard_new(memory.host, L3_ALIGN, 0xa5);
    poison_device(memory.device);
    code = l3_cuda_open(&c->gpu, model, config, c->block.mem, memory.host, &c->err);
    if (code != L3_OK) CHECK(guard_free(&c->block));
    return code;
}

/* Where it must succeed. */
static int card_new(card *c, const l3_model *model, l3_cuda_config config) {
    const int ok = CHECK_EQ(card_open(c, model, &config), L3_OK);
    if (!ok) fprintf(stderr, "    %s\n", c->err.text);
    return ok;
}

static void card_close(card *c) {
    l3_cuda_close(c->gpu);
    CHECK(guard_free(&c->block));
}

static l3_cuda_config config_of(l3_mode mode, uint32_t sequences, uint32_t batch) {
    l3_cuda_config c;
    memset(&c, 0, sizeof c);
    c.mode = mode, c.sequences = sequences, c.batch = batch;
    return c;
}

/* A model of a specification, opened. */
typedef struct world {
    file     f;
    rig      r;
    uint32_t vocab;
} world;

static int world_open(world *w, const mk_spec *spec, way how) {
    w->f = file_make(spec);
    if (!CHECK_EQ(rig_open(&w->r, w->f, how), L3_OK)) {
        fprintf(stderr, "    %s\n", w->r.err.text);
        free(w->f.bytes);
        return 0;
    }
    w->vocab = l3_model_info(w->r.model)->vocab;
    return 1;
}

static void world_close(world *w) {
    rig_close(&w->r);
    free(w->f.bytes);
}

static int long_run(void) { return test_flag("L3_LONG"); }

static const uint32_t types[6] = {MK_F32, MK_F16, MK_BF16, MK_Q8_0, MK_Q4_0, MK_Q6_K};

/* ---- numbers to compare with ---- */

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

static int is_near(const float *a, const float *right, size_t n, l3_mode mode, const char *name, unsigned at) {
    const double d    = difference(a, right, n);
    double      *most = mode == L3_EXACT ? &most_exact : &most_fast;
    if (d > *most) *most = d;
    if (CHECK(d <= (mode == L3_EXACT ? EXACT_TOLERANCE : FAST_TOLERANCE))) return 1;
    fprintf(stderr, "    %s at %u: %.3g\n", name, at, d);
    return 0;
}

/* Logits after every token: in one prefill, and by decoding from `from` on; in L3_EXACT they are the same. */
static void compare(const l3_model *model, const int32_t *ids, uint32_t n, uint32_t from, l3_cuda_config config,
                    const char *name) {
    const uint32_t vocab = l3_model_info(model)->vocab;
    float         *right = logits_of(model, ids, n), *all = new_floats(n, vocab), *one = new_floats(1, vocab);
    card           c;
    if (card_new(&c, model, config)) {
        if (!CHECK_EQ(l3_cuda_prefill(c.gpu, 0, ids, n, all, &c.err), L3_OK))
            fprintf(stderr, "    %s: %s\n", name, c.err.text);
        is_near(all, right, (size_t)n * vocab, config.mode, name, 0);
        CHECK_EQ(l3_cuda_logits(c.gpu, 0, one, &c.err), L3_OK);
        CHECK_MEM(one, all + (size_t)(n - 1) * vocab, vocab * sizeof *one);
        CHECK_EQ(l3_cuda_truncate(c.gpu, 0, from, &c.err), L3_OK);
        for (uint32_t i = from; i < n; i++) {
            CHECK_EQ(l3_cuda_decode(c.gpu, NULL, ids + i, 1, &c.err), L3_OK);
            CHECK_EQ(l3_cuda_logits(c.gpu, 0, one, &c.err), L3_OK);
            is_near(one, right + (size_t)i * vocab, vocab, config.mode, name, i);
            if (config.mode == L3_EXACT) CHECK_MEM(one, all + (size_t)i * vocab, vocab * sizeof *one);
        }
        CHECK_EQ(l3_cuda_position(c.gpu, 0), n);
        card_close(&c);
    }
    free(right);
    free(all);
    free(one);
}

/* Both modes, both caches, batches smaller than the text. */
static void compare_ways(const l3_model *model, const int32_t *ids, uint32_t n, int which, const char *name) {
    for (int way = 0; way < 4; way++) {
        l3_cuda_config config = config_of(way % 2 ? L3_EXACT : L3_FAST, 1, way == 2 ? 3 : 0);
        config.kv_type        = way == 0 ? L3_F16 : L3_F32;
        config.tables         = (l3_cuda_place)(way % 4);
        if (way == 3) config.batch = 5;
        if (long_run() || way == which) compare(model, ids, n, n - 2, config, name);
    }
}

TEST(variants) {
    file text = file_fixture("variants/index.json");
    if (!text.bytes) SKIP("no fixtures");
    const void *chars = text.bytes;
    json       *index = json_parse((const char *)chars);
    int         which = 0;
    REQUIRE(index != NULL);
    for (const json *v = index->first; v; v = v->next) {
        char path[128];
        rig  r;
        snprintf(path, sizeof path, "variants/%s.gguf", json_get(v, "name")->string);
        file f = file_fixture(path);
        which++;
        if (f.bytes && (!test_quick() || which % 6 == 1) && CHECK_EQ(rig_open(&r, f, MAPPED), L3_OK)) {
            test_rng rng = {3};
            int32_t *ids = random_ids(&rng, l3_model_info(r.model)->vocab, 8);
            compare_ways(r.model, ids, 8, which % 4, json_get(v, "name")->string);
            free(ids);
            rig_close(&r);
        }
        free(f.bytes);
    }
    json_free(index);
    free(text.bytes);
}

TEST(random_models) {
    for (int seed = 1; seed <= (long_run() ? 200 : test_some(20)); seed++) {
        const mk_spec spec = mk_random_spec((uint64_t)seed);
        char          name[32];
        world         w;
        snprintf(name, sizeof name, "seed %d", seed);
        if (!world_open(&w, &spec, MAPPED)) continue;
        test_rng       rng = {(uint64_t)seed};
        const uint32_t n   = long_run() ? 20 : 6;
        int32_t       *ids = random_ids(&rng, w.vocab, n);
        compare_ways(w.r.model, ids, n, seed % 4, name);
        free(ids);
        world_close(&w);
    }
}

/* ---- wherever tables lie ---- */

/* Logits after n tokens of a prefill and some decoded ones, all of them. */
static float *follow(const l3_model *model, l3_cuda_config config, const int32_t *ids, uint32_t n, uint32_t more) {
    const uint32_t vocab = l3_model_info(model)->vocab;
    float         *all   = new_floats(n + more, vocab);
    card           c;
    if (!card_new(&c, model, config)) return all;
    CHECK_EQ(l3_cuda_prefill(c.gpu, 0, ids, n, all, &c.err), L3_OK);
    for (uint32_t i = n; i < n + more; i++) {
        CHECK_EQ(l3_cuda_decode(c.gpu, NULL, ids + i, 1, &c.err), L3_OK);
        CHECK_EQ(l3_cuda_logits(c.gpu, 0, all + (size_t)i * vocab, &c.err), L3_OK);
    }
    card_close(&c);
    return all;
}

/* So small that a run is quick; rows lie at any even address. */
static mk_spec spec_tiny(uint32_t type) {
    mk_spec s    = spec_small();
    s.seed       = 11 + type;
    s.n_blocks   = 2;
    s.vocab      = 261;
    s.checksums  = 0;
    s.row_type   = type;
    s.n_kv_heads = 1;
    if (type == MK_F32 || type == MK_F16 || type == MK_BF16) s.value_length = 33;
    if (type == MK_Q6_K) s.dim = 256, s.value_length = 256, s.tied = 1, s.up_length = 32;
    return s;
}

typedef struct variation {
    l3_cuda_place place;
    uint64_t      hot, staging;
    bool          counts, no_graph, exact; /* exact: a prefill in other pieces */
} variation;

static const variation variations[] = {
    {L3_CUDA_DEVICE, 0, 0, false, false, false},  {L3_CUDA_HOST, 0, 0, false, true, false},
    {L3_CUDA_HOST, 4000, 0, false, false, false}, {L3_CUDA_HOST, 1 << 20, 0, true, false, false},
    {L3_CUDA_HOST, 0, 1, false, false, false},    {L3_CUDA_HOST, 3000, 2000, true, false, false},
    {L3_CUDA_HOST, 0, 9000, false, true, false},  {L3_CUDA_SOURCE, 0, 0, false, false, false},
    {L3_CUDA_SOURCE, 5000, 0, true, true, false}, {L3_CUDA_SOURCE, 1 << 20, 0, false, false, false},
    {L3_CUDA_SOURCE, 0, 2, false, false, true}};

TEST(places) {
    for (int i = 0; i < (test_quick() ? 1 : 6); i++) {
        const mk_spec spec = spec_tiny(types[i]);
        uint32_t      counts[261];
        test_rng      rng = {5};
        world         w;
        if (!world_open(&w, &spec, MAPPED)) continue;
        const int32_t ids[10] = {5, 17, 5, 12, 1, 200, 260, 5, 12, 33}; /* 5 is heavy, 1 and 12 have no rows */
        float        *right[2];
        for (uint32_t t = 0; t < w.vocab; t++) counts[t] = test_below(&rng, 50);
        for (int mode = 0; mode < 2; mode++) {
            l3_cuda_config c = config_of((l3_mode)mode, 1, 8);
            c.tables         = L3_CUDA_DEVICE;
            c.no_graph       = true;
            right[mode]      = follow(w.r.model, c, ids, 8, 2);
        }
        for (size_t k = 0; k < sizeof variations / sizeof *variations; k++) {
            const variation *v = &variations[k];
            if (!long_run() && (k + (size_t)i / 2) % 2 == 0) continue; /* each with every other type */
            l3_cuda_config c = config_of(v->exact || (k / 2 + (size_t)i) % 2 ? L3_EXACT : L3_FAST, 1, 8);
            c.tables = v->place, c.hot_bytes = v->hot, c.staging_bytes = v->staging, c.no_graph = v->no_graph;
            c.counts = v->counts ? counts : NULL;
            if (v->exact) { /* the rows of so many tokens, to the byte */
                const l3_lookup *l    = l3_model_lookup(w.r.model, 0, NULL);
                const uint64_t   most = 70 * l3_row_bytes(l->rows.type, l->rows.cols);
                c.staging_bytes       = v->staging * ((most + 15) / 16 * 16);
            }
            emulated_seed(k * 7 + (uint64_t)i);
            float *all = follow(w.r.model, c, ids, 8, 2);
            if (!CHECK_MEM(all, right[c.mode], 10 * w.vocab * sizeof *all))
                fprintf(stderr, "    rows of type %u, variation %u\n", (unsigned)types[i], (unsigned)k);
            free(all);
        }
        free(right[0]);
        free(right[1]);
        world_close(&w);
    }
}

TEST(places_chosen) {
    const mk_spec  spec = spec_tiny(MK_F16);
    l3_cuda_memory m, device;
    l3_cuda_config c = config_of(L3_FAST, 1, 4);
    world          w;
    if (!world_open(&w, &spec, MAPPED)) return;
    c.tables = L3_CUDA_DEVICE;
    CHECK_EQ(l3_cuda_memory_of(w.r.model, &c, &device, NULL), L3_OK);
    c.tables       = L3_CUDA_AUTO;
    c.device_bytes = device.device;
    CHECK_EQ(l3_cuda_memory_of(w.r.model, &c, &m, NULL), L3_OK);
    CHECK_EQ(m.place, L3_CUDA_DEVICE);
    c.device_bytes--;
    CHECK_EQ(l3_cuda_memory_of(w.r.model, &c, &m, NULL), L3_OK);
    CHECK_EQ(m.place, L3_CUDA_HOST);
    CHECK(m.pinned > device.pinned && m.tables == 0 && m.staging > 0);
    c.staging_bytes = device.tables / 4; /* leaves room for hot rows */
    CHECK_EQ(l3_cuda_memory_of(w.r.model, &c, &m, NULL), L3_OK);
    CHECK(m.hot > 0 && m.device <= c.device_bytes);
    c.host_bytes = 1000;
    CHECK_EQ(l3_cuda_memory_of(w.r.model, &c, &m, NULL), L3_OK);
    CHECK_EQ(m.place, L3_CUDA_SOURCE);
    for (int i = 0; i < 3; i++) {
        c.tables = (l3_cuda_place)(L3_CUDA_DEVICE + i);
        CHECK_EQ(l3_cuda_memory_of(w.r.model, &c, &m, NULL), L3_OK);
        CHECK_EQ(m.device, m.weights + m.tables + m.hot + m.staging + m.kv + m.logits + m.scratch);
    }
    world_close(&w);
}

/* ---- neighbours ---- */

/* The last logits of sequence q after two steps of a batch; in `all`, unless NULL, those of every sequence. */
static void two_steps(l3_cuda *gpu, const int32_t *first, const int32_t *second, uint32_t n, uint32_t vocab, float *all,
                      uint32_t q, float *one) {
    l3_error err;
    for (uint32_t i = 0; i < n; i++) CHECK_EQ(l3_cuda_truncate(gpu, i, 0, &err), L3_OK);
    CHECK_EQ(l3_cuda_decode(gpu, NULL, first, n, &err), L3_OK);
    CHECK_EQ(l3_cuda_decode(gpu, NULL, second, n, &err), L3_OK);
    for (uint32_t i = 0; all && i < n; i++) CHECK_EQ(l3_cuda_logits(gpu, i, all + (size_t)i * vocab, &err), L3_OK);
    if (one) CHECK_EQ(l3_cuda_logits(gpu, q, one, &err), L3_OK);
}

#ifdef L3_CUDA_EMULATED
enum { MANY = 130 };
#else
enum { MANY = 512 };
#endif

static void neighbours_of(uint32_t type, const uint32_t *sizes, size_t n_sizes) {
    mk_spec spec     = spec_tiny(MK_Q8_0);
    spec.weight_type = type, spec.head_type = type, spec.embedding_type = type;
    spec.seed      = 3 + type;
    spec.no_lookup = type != MK_Q8_0, spec.heavy_rows = 0, spec.ffn = 32;
    if (type == MK_Q6_K) spec.dim = 256, spec.weight_type = MK_F16, spec.ffn = 32;
    world w;
    if (!world_open(&w, &spec, MAPPED)) return;
    test_rng rng = {type};
    int32_t *a = random_ids(&rng, w.vocab, MANY), *b = random_ids(&rng, w.vocab, MANY);
    int32_t *c = random_ids(&rng, w.vocab, MANY), *d = random_ids(&rng, w.vocab, MANY);
    float   *right = new_floats(MANY, w.vocab), *all = new_floats(MANY, w.vocab), *one = new_floats(1, w.vocab);
    for (uint32_t i = 0; i < MANY; i++) {
        const int32_t two[2] = {a[i], b[i]};
        float        *both   = logits_of(w.r.model, two, 2);
        memcpy(right + (size_t)i * w.vocab, both + w.vocab, w.vocab * sizeof *both);
        free(both);
    }
    for (int mode = 0; mode < 2; mode++) {
        l3_cuda_config config = config_of((l3_mode)mode, MANY, MANY);
        card           x;
        float         *exact = new_floats(MANY, w.vocab);
        config.context       = 3;
        if (!card_new(&x, w.r.model, config)) continue;
        for (size_t k = 0; k < n_sizes; k++) {
            const uint32_t n = sizes[k], q = (n - 1) / 2, last = n - 1;
            char           name[48];
            snprintf(name, sizeof name, "weights of type %u, batch %u", (unsigned)type, (unsigned)n);
            if (mode == L3_EXACT && n > 17 && !long_run()) continue; /* one kernel for all */
            two_steps(x.gpu, a, b, n, w.vocab, all, 0, NULL);
            for (uint32_t i = 0; i < n; i++)
                if (!is_near(all + (size_t)i * w.vocab, right + (size_t)i * w.vocab, w.vocab, (l3_mode)mode, name, i))
                    break;
            if (mode == L3_EXACT) { /* whatever the batch is */
                if (k) CHECK_MEM(all, exact, (n < sizes[0] ? n : sizes[0]) * w.vocab * sizeof *all);
                else memcpy(exact, all, (size_t)n * w.vocab * sizeof *all);
            }
            /* The same text elsewhere, among others. */
            if (k % 2 && !long_run()) continue;
            c[last] = a[q], d[last] = b[q];
            two_steps(x.gpu, c, d, n, w.vocab, NULL, last, one);
            if (!CHECK_MEM(one, all + (size_t)q * w.vocab, w.vocab * sizeof *one)) fprintf(stderr, "    %s\n", name);
        }
        if (mode == L3_EXACT) /* one after the other */
            for (uint32_t i = 0; i < 3; i++) {
                two_steps(x.gpu, a + i, b + i, 1, w.vocab, NULL, 0, one);
                CHECK_MEM(one, all + (size_t)i * w.vocab, w.vocab * sizeof *one);
            }
        free(exact);
        card_close(&x);
    }
    free(a);
    free(b);
    free(c);
    free(d);
    free(right);
    free(all);
    free(one);
    world_close(&w);
}

TEST(neighbours) {
    static const uint32_t all[] = {3, 1, 2, 8, 9, 16, 17, 33, 64, 65, 130, 300, 512}, some[] = {2, 9, 17, 33, 65};
    for (int i = 0; i < 6; i++)
        if (!test_quick() && (types[i] == MK_Q8_0 || long_run())) neighbours_of(types[i], all, MANY == 512 ? 13 : 11);
        else if (!test_quick() || i % 3 == 1)
            neighbours_of(types[i], some, types[i] == MK_F32 || types[i] == MK_Q6_K ? 2 : 5);
}

/* Sequences of different lengths in a batch are what each would be alone. */
TEST(lengths) {
    mk_spec spec    = spec_tiny(MK_Q4_0);
    spec.heavy_rows = 2500; /* more than a block of rows for each of 64 blocks */
    world w;
    if (!world_open(&w, &spec, MAPPED)) return;
    test_rng rng = {8};
    int32_t *ids[3];
    float   *right[3], *one = new_floats(1, w.vocab), *kept = new_floats(1, w.vocab);
    card     c;
    l3_error err;
    for (int q = 0; q < 3; q++) {
        ids[q]    = random_ids(&rng, w.vocab, 14);
        ids[q][9] = 5, ids[q][5] = 1;
        right[q] = follow(w.r.model, config_of(L3_EXACT, 1, 8), ids[q], 13, 1);
    }
    if (card_new(&c, w.r.model, config_of(L3_EXACT, 4, 6))) {
        static const uint32_t lengths[3] = {9, 1, 4};
        for (uint32_t q = 0; q < 3; q++) CHECK_EQ(l3_cuda_prefill(c.gpu, 3 - q, ids[q], lengths[q], NULL, &err), L3_OK);
        for (uint32_t i = 0; i < 5; i++) {
            const uint32_t order[3]  = {1, 3, 2}; /* sequence 3 - q is text q */
            const int32_t  tokens[3] = {ids[2][4 + i], ids[0][9 + i], ids[1][1 + i]};
            CHECK_EQ(l3_cuda_decode(c.gpu, order, tokens, 3, &err), L3_OK);
            for (uint32_t q = 0; q < 3; q++) {
                CHECK_EQ(l3_cuda_logits(c.gpu, 3 - q, one, &err), L3_OK);
                CHECK_MEM(one, right[q] + (size_t)(lengths[q] + i) * w.vocab, w.vocab * sizeof *one);
                CHECK_EQ(l3_cuda_position(c.gpu, 3 - q), lengths[q] + i + 1);
            }
        }
        /* Another sequence does not disturb the logits of these. */
        CHECK_EQ(l3_cuda_logits(c.gpu, 2, kept, &err), L3_OK);
        CHECK_EQ(l3_cuda_prefill(c.gpu, 0, ids[0], 7, NULL, &err), L3_OK);
        CHECK_EQ(l3_cuda_logits(c.gpu, 2, one, &err), L3_OK);
        CHECK_MEM(one, kept, w.vocab * sizeof *one);
        /* Back, and on another way. */
        CHECK_EQ(l3_cuda_truncate(c.gpu, 3, 6, &err), L3_OK);
        CHECK_EQ(l3_cuda_logits(c.gpu, 3, one, &err), L3_ERR_ARGUMENT);
        CHECK_EQ(l3_cuda_prefill(c.gpu, 3, ids[0] + 6, 8, NULL, &err), L3_OK);
        CHECK_EQ(l3_cuda_logits(c.gpu, 3, one, &err), L3_OK);
        CHECK_MEM(one, right[0] + (size_t)13 * w.vocab, w.vocab * sizeof *one);
        /* The same tokens in all. */
        for (uint32_t q = 0; q < 4; q++) CHECK_EQ(l3_cuda_truncate(c.gpu, q, 0, &err), L3_OK);
        for (uint32_t i = 0; i < 3; i++) {
            const int32_t same[4] = {ids[1][i], ids[1][i], ids[1][i], ids[1][i]};
            CHECK_EQ(l3_cuda_decode(c.gpu, NULL, same, 4, &err), L3_OK);
        }
        for (uint32_t q = 0; q < 4; q++) {
            CHECK_EQ(l3_cuda_logits(c.gpu, q, one, &err), L3_OK);
            CHECK_MEM(one, right[1] + (size_t)2 * w.vocab, w.vocab * sizeof *one);
        }
        card_close(&c);
    }
    for (int q = 0; q < 3; q++) {
        free(ids[q]);
        free(right[q]);
    }
    free(one);
    free(kept);
    world_close(&w);
}

/* ---- shapes of attention ---- */

TEST(heads) {
    static const uint32_t shapes[][4] = {/* dim, heads, heads of keys, rotated */
                                         {32, 4, 4, 8},   {72, 8, 1, 8},    {99, 9, 1, 10}, {33, 1, 1, 32},
                                         {66, 6, 2, 10},  {65, 1, 1, 0},    {96, 6, 6, 4},  {128, 1, 1, 128},
                                         {130, 1, 1, 64}, {256, 1, 1, 256}, {192, 2, 1, 96}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i += test_quick() ? 4 : 1) {
        mk_spec spec    = spec_tiny(MK_F16);
        spec.dim        = shapes[i][0];
        spec.n_heads    = shapes[i][1];
        spec.n_kv_heads = shapes[i][2];
        spec.rope_dim   = shapes[i][3] ? shapes[i][3] : 2;
        spec.n_blocks = 1, spec.n_lookups = 1, spec.ffn = 16, spec.context = 80, spec.lookup_blocks[1] = 0;
        world w;
        char  name[64];
        snprintf(name, sizeof name, "%u heads of %u", (unsigned)shapes[i][1], (unsigned)(shapes[i][0] / shapes[i][1]));
        if (!world_open(&w, &spec, MAPPED)) continue;
        test_rng       rng = {i};
        const uint32_t n   = i % 3 == 0 || long_run() ? 65 : 12;
        int32_t       *ids = random_ids(&rng, w.vocab, n);
        l3_cuda_config c   = config_of(L3_FAST, 1, 128);
        c.kv_type          = i % 2 ? L3_F32 : L3_F16;
        compare(w.r.model, ids, n, n - 1, c, name);
        c = config_of(L3_EXACT, 1, 7);
        compare(w.r.model, ids, 5, 4, c, name);
        free(ids);
        world_close(&w);
    }
}

static mk_spec spec_long(void) {
    mk_spec s = spec_tiny(MK_F16);
    s.dim = 16, s.n_heads = 2, s.n_blocks = 1, s.n_lookups = 1, s.ffn = 16, s.context = 1100, s.heavy_rows = 0;
    s.value_length = 16, s.up_length = 0, s.vocab = 259, s.weight_type = MK_F16, s.separate_head = 0;
    return s;
}

/* Lengths around tiles of prefill and splits of attention; batches that end within the text. */
TEST(long_texts) {
    const mk_spec         spec    = spec_long();
    static const uint32_t ends[]  = {63, 64, 65, 128, 129, 257, 511, 512, 514, 769, 1030};
    static const uint32_t first[] = {0, 1, 127, 0};
    world                 w;
    if (!world_open(&w, &spec, MAPPED)) return;
    test_rng rng   = {77};
    int32_t *ids   = random_ids(&rng, w.vocab, 1031);
    float   *right = logits_of(w.r.model, ids, 1031), *one = new_floats(1, w.vocab), *two = new_floats(1, w.vocab);
    for (int way = 0; way < (long_run() ? 4 : test_quick() ? 1 : 3); way++) {
        l3_cuda_config config = config_of(way % 2 ? L3_EXACT : L3_FAST, 1, way < 2 ? 600 : 100);
        card           c;
        uint32_t       at = 0;
        config.kv_type    = way == 0 ? L3_F16 : L3_F32;
        if (!card_new(&c, w.r.model, config)) continue;
        if (first[way]) CHECK_EQ(l3_cuda_prefill(c.gpu, 0, ids, first[way], NULL, &c.err), L3_OK);
        for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
            if (way >= 2 && i % 3 != 1 && !long_run()) continue;
            at = l3_cuda_position(c.gpu, 0);
            if (at >= ends[i]) continue;
            CHECK_EQ(l3_cuda_prefill(c.gpu, 0, ids + at, ends[i] - at, NULL, &c.err), L3_OK);
            CHECK_EQ(l3_cuda_logits(c.gpu, 0, one, &c.err), L3_OK);
            is_near(one, right + (size_t)(ends[i] - 1) * w.vocab, w.vocab, config.mode, "a prompt", ends[i]);
            CHECK_EQ(l3_cuda_truncate(c.gpu, 0, ends[i] - 1, &c.err), L3_OK);
            CHECK_EQ(l3_cuda_decode(c.gpu, NULL, ids + ends[i] - 1, 1, &c.err), L3_OK);
            CHECK_EQ(l3_cuda_logits(c.gpu, 0, two, &c.err), L3_OK);
            is_near(two, right + (size_t)(ends[i] - 1) * w.vocab, w.vocab, config.mode, "a token", ends[i]);
            if (config.mode == L3_EXACT) CHECK_MEM(one, two, w.vocab * sizeof *one);
        }
        card_close(&c);
    }
    free(ids);
    free(right);
    free(one);
    free(two);
    world_close(&w);
}

/* ---- the GPU chooses ---- */

typedef struct chooser {
    guard       block;
    l3_sampler *sampler;
} chooser;

static void chooser_open(chooser *c, l3_sampling how, uint32_t i, uint32_t vocab) {
    l3_error err;
    how.seed += i;
    c->block = guard_new(l3_sampler_size(&how, vocab), L3_ALIGN, 0xff);
    CHECK_EQ(l3_sampler_init(&c->sampler, &how, vocab, c->block.mem, c->block.size, &err), L3_OK);
}

/* n sequences, from prompts of different lengths; the GPU is asked in two calls, the other goes step by step. */
static void generate_as(const l3_model *model, l3_sampling how, uint32_t n, uint32_t steps, l3_cuda_config config,
                        const char *name) {
    const uint32_t vocab = l3_model_info(model)->vocab, before = steps > 260 ? 2 : steps / 3;
    test_rng       rng = {how.seed + n};
    int32_t       *ids = random_ids(&rng, vocab, 64), *out = (int32_t *)must((size_t)steps * n * sizeof *out);
    int32_t       *next = (int32_t *)must(n * sizeof *next);
    float         *a = new_floats(1, vocab), *b = new_floats(1, vocab);
    chooser        choosers[8];
    card           c;
    config.sequences = n;
    if (!card_new(&c, model, config)) return;
    for (uint32_t q = 0; q < n; q++) CHECK_EQ(l3_cuda_prefill(c.gpu, q, ids, q + 2, NULL, &c.err), L3_OK);
    for (uint32_t q = 0; q < n; q++) next[q] = ids[20 + q];
    CHECK_EQ(l3_cuda_generate(c.gpu, NULL, next, n, before, &how, out, &c.err), L3_OK);
    CHECK_EQ(l3_cuda_generate(c.gpu, NULL, out + (size_t)(before - 1) * n, n, steps - before, &how,
                              out + (size_t)before * n, &c.err),
             L3_OK);
    CHECK_EQ(l3_cuda_logits(c.gpu, n - 1, a, &c.err), L3_OK);
    card_close(&c);

    if (!card_new(&c, model, config)) return;
    for (uint32_t q = 0; q < n; q++) {
        CHECK_EQ(l3_cuda_prefill(c.gpu, q, ids, q + 2, NULL, &c.err), L3_OK);
        chooser_open(&choosers[q], how, q, vocab);
        l3_sampler_accept(choosers[q].sampler, ids, q + 2);
    }
    for (uint32_t i = 0, right = 1; right && i < steps; i++) {
        CHECK_EQ(l3_cuda_decode(c.gpu, NULL, next, n, &c.err), L3_OK);
        for (uint32_t q = 0; q < n; q++) {
            l3_sampler_accept(choosers[q].sampler, next + q, 1);
            CHECK_EQ(l3_cuda_logits(c.gpu, q, b, &c.err), L3_OK);
            CHECK_EQ(l3_sample(choosers[q].sampler, b, next + q, &c.err), L3_OK);
            if (!CHECK_EQ(out[(size_t)i * n + q], next[q])) {
                fprintf(stderr, "    %s, step %u, sequence %u\n", name, (unsigned)i, (unsigned)q);
                right = 0;
            }
        }
    }
    CHECK_MEM(a, b, vocab * sizeof *a);
    for (uint32_t q = 0; q < n; q++) CHECK(guard_free(&choosers[q].block));
    card_close(&c);
    free(ids);
    free(out);
    free(next);
    free(a);
    free(b);
}

TEST(generate) {
    mk_spec           spec   = spec_tiny(MK_Q8_0);
    const l3_sampling greedy = {0, 40, 1, 0, 1, 0, 0}, warm = {0.8f, 40, 0.95f, 0.05f, 1.3f, 9, 5};
    const l3_sampling hot = {1.5f, 1024, 1, 0, 1, 64, 99}, wide = {1.0f, 200, 0.9f, 0, 0.7f, 64, 1};
    const l3_sampling one = {0.9f, 1, 1, 0, 1.1f, 1024, 3};
    world             w;
    if (world_open(&w, &spec, MAPPED)) {
        generate_as(w.r.model, greedy, 1, 9, config_of(L3_EXACT, 1, 8), "greedy");
        generate_as(w.r.model, warm, 3, 9, config_of(L3_FAST, 1, 8), "warm");
        generate_as(w.r.model, hot, 2, 12, config_of(L3_FAST, 1, 8), "hot");
        generate_as(w.r.model, wide, 1, 12, config_of(L3_EXACT, 1, 8), "wide");
        l3_cuda_config config = config_of(L3_FAST, 1, 8);
        config.tables         = L3_CUDA_SOURCE;
        config.no_graph       = true;
        generate_as(w.r.model, one, 2, 6, config, "one");
        world_close(&w);
    }
    spec           = spec_long();
    spec.no_lookup = 1;
    if (world_open(&w, &spec, MAPPED)) { /* past 256 steps, past a split */
        generate_as(w.r.model, greedy, 1, test_quick() ? 5 : 264, config_of(L3_FAST, 1, 8), "long");
        world_close(&w);
    }
}

/* Which sequences draw how does not depend on their order, nor on into how many calls the steps are split. */
TEST(generate_in_order) {
    const mk_spec     spec   = spec_tiny(MK_Q4_0);
    const l3_sampling how    = {1.2f, 100, 0.98f, 0, 1, 0, 8};
    const int32_t     ids[3] = {4, 9, 14}, turned[3] = {14, 4, 9};
    const uint32_t    order[3] = {2, 0, 1};
    int32_t           a[18], b[18];
    l3_error          err;
    world             w;
    card              c;
    if (!world_open(&w, &spec, MAPPED)) return;
    if (card_new(&c, w.r.model, config_of(L3_EXACT, 3, 8))) {
        CHECK_EQ(l3_cuda_generate(c.gpu, NULL, ids, 3, 6, &how, a, &err), L3_OK);
        for (uint32_t q = 0; q < 3; q++) CHECK_EQ(l3_cuda_truncate(c.gpu, q, 0, &err), L3_OK);
        CHECK_EQ(l3_cuda_generate(c.gpu, order, turned, 3, 2, &how, b, &err), L3_OK);
        CHECK_EQ(l3_cuda_generate(c.gpu, order, b + 3, 3, 4, &how, b + 6, &err), L3_OK);
        for (uint32_t i = 0; i < 18; i++) CHECK_EQ(b[i], a[i / 3 * 3 + order[i % 3]]);
        card_close(&c);
    }
    world_close(&w);
}

/* Puts NaN where the last norm has its weights. */
static void poison(world *w) {
    char             name[64];
    const l3_tensor *t;
    for (uint32_t i = 0; (t = l3_model_tensor(w->r.model, i, name)) != NULL; i++)
        if (strcmp(name, "output_norm.weight") == 0) memset(w->f.bytes + t->offset, 0xff, 4 * t->cols);
}

TEST(no_number) {
    const mk_spec     spec = spec_tiny(MK_F32);
    const l3_sampling how  = {0.8f, 40, 0.95f, 0.05f, 1, 0, 5};
    const int32_t     id   = 9;
    int32_t           out[4];
    world             w;
    card              c;
    if (!world_open(&w, &spec, MAPPED)) return;
    poison(&w);
    if (card_new(&c, w.r.model, config_of(L3_FAST, 1, 8))) {
        CHECK_EQ(l3_cuda_prefill(c.gpu, 0, &id, 1, NULL, &c.err), L3_OK);
        CHECK_EQ(l3_cuda_generate(c.gpu, NULL, &id, 1, 4, &how, out, &c.err), L3_ERR_NUMBER);
        CHECK(error_sound(L3_ERR_NUMBER, &c.err));
        CHECK_EQ(l3_cuda_generate(c.gpu, NULL, &id, 1, 4, NULL, out, &c.err), L3_ERR_NUMBER);
        CHECK_EQ(l3_cuda_position(c.gpu, 0), 1);
        CHECK_EQ(l3_cuda_decode(c.gpu, NULL, &id, 1, &c.err), L3_OK);
        card_close(&c);
    }
    world_close(&w);
}

/* ---- what is refused ---- */

static void check_refused(int code, int expected, const l3_error *err, const char *text) {
    if (!CHECK_EQ(code, expected)) return;
    CHECK(error_sound(code, err));
    if (!CHECK(strstr(err->text, text) != NULL)) fprintf(stderr, "    %s\n", err->text);
}

TEST(configurations) {
    const mk_spec spec = spec_tiny(MK_F32);
    static const struct {
        l3_cuda_config config;
        const char    *text;
    } bad[] = {
        {{.sequences = 4097}, "sequences"},   {{.sequences = 5, .batch = 4}, "batch"},
        {{.batch = 4097}, "batch"},           {{.context = 49}, "context"},
        {{.kv_type = L3_Q8_0}, "KV cache"},   {{.kv_type = -1}, "KV cache"},
        {{.mode = (l3_mode)2}, "mode"},       {{.tables = (l3_cuda_place)4}, "place"},
        {{.device = 1000}, "counted from 0"}, {{.device = -1}, "counted from 0"},
    };
    l3_cuda_memory m;
    l3_error       err;
    world          w;
    if (!world_open(&w, &spec, MAPPED)) return;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memset(&err, 0, sizeof err);
        check_refused(l3_cuda_memory_of(w.r.model, &bad[i].config, &m, &err), L3_ERR_ARGUMENT, &err, bad[i].text);
        CHECK_EQ(l3_cuda_memory_of(w.r.model, &bad[i].config, &m, NULL), L3_ERR_ARGUMENT);
    }
    world_close(&w);
    mk_spec wide = spec;
    wide.dim = 258, wide.n_heads = wide.n_kv_heads = 1, wide.rope_dim = 2, wide.value_length = 32;
    if (!world_open(&w, &wide, MAPPED)) return;
    check_refused(l3_cuda_memory_of(w.r.model, NULL, &m, &err), L3_ERR_UNSUPPORTED, &err, "heads of 258");
    world_close(&w);
}

TEST(arguments) {
    const mk_spec      spec   = spec_tiny(MK_F32);
    const int32_t      ids[4] = {1, 2, 3, 4}, high[2] = {1, 261}, low[2] = {1, -1};
    const uint32_t     twice[2] = {1, 1}, outside[2] = {0, 2};
    static l3_sampling bad[] = {{-1, 40, 1, 0, 1, 0, 0},      {0.5f, 0, 1, 0, 1, 0, 0},   {0.5f, 1025, 1, 0, 1, 0, 0},
                                {0.5f, 40, 1.5f, 0, 1, 0, 0}, {0.5f, 40, 1, -1, 1, 0, 0}, {0.5f, 40, 1, 0, 0, 0, 0},
                                {0.5f, 40, 1, 0, 1, 1025, 0}};
    int32_t            out[256];
    float             *logits;
    world              w;
    card               c;
    if (!world_open(&w, &spec, MAPPED)) return;
    logits                = new_floats(1, w.vocab);
    l3_cuda_config config = config_of(L3_FAST, 2, 3);
    config.context        = 6;
    if (card_new(&c, w.r.model, config)) {
        l3_cuda  *g = c.gpu;
        l3_error *e = &c.err;
        CHECK_EQ(l3_cuda_context(g), 6);
        CHECK_EQ(l3_cuda_sequences(g), 2);
        CHECK_EQ(l3_cuda_batch(g), 3);
        CHECK(l3_cuda_name(g)[0] != 0 && strlen(l3_cuda_name(g)) < 64);
        CHECK_EQ(l3_cuda_position(g, 2), 0);
        check_refused(l3_cuda_logits(g, 0, logits, e), L3_ERR_ARGUMENT, e, "no logits");
        check_refused(l3_cuda_logits(g, 2, logits, e), L3_ERR_ARGUMENT, e, "sequence 2 of 2");
        check_refused(l3_cuda_prefill(g, 0, ids, 0, NULL, e), L3_ERR_ARGUMENT, e, "no tokens");
        check_refused(l3_cuda_prefill(g, 2, ids, 1, NULL, e), L3_ERR_ARGUMENT, e, "sequence 2 of 2");
        check_refused(l3_cuda_prefill(g, 0, high, 2, NULL, e), L3_ERR_TOKEN, e, "token 1");
        check_refused(l3_cuda_prefill(g, 0, low, 2, NULL, e), L3_ERR_TOKEN, e, "token 1");
        check_refused(l3_cuda_prefill(g, 0, ids, 7, NULL, e), L3_ERR_CONTEXT, e, "do not fit");
        check_refused(l3_cuda_decode(g, NULL, ids, 0, e), L3_ERR_ARGUMENT, e, "0 sequences");
        check_refused(l3_cuda_decode(g, NULL, ids, 3, e), L3_ERR_ARGUMENT, e, "3 sequences");
        check_refused(l3_cuda_decode(g, twice, ids, 2, e), L3_ERR_ARGUMENT, e, "twice");
        check_refused(l3_cuda_decode(g, outside, ids, 2, e), L3_ERR_ARGUMENT, e, "sequence 2 of 2");
        check_refused(l3_cuda_decode(g, NULL, high, 2, e), L3_ERR_TOKEN, e, "token 1");
        check_refused(l3_cuda_generate(g, NULL, ids, 1, 0, NULL, out, e), L3_ERR_ARGUMENT, e, "no steps");
        check_refused(l3_cuda_generate(g, NULL, ids, 1, 7, NULL, out, e), L3_ERR_CONTEXT, e, "do not fit");
        check_refused(l3_cuda_generate(g, twice, ids, 2, 2, NULL, out, e), L3_ERR_ARGUMENT, e, "twice");
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
            check_refused(l3_cuda_generate(g, NULL, ids, 1, 2, &bad[i], out, e), L3_ERR_ARGUMENT, e, "sampling");
        check_refused(l3_cuda_truncate(g, 0, 1, e), L3_ERR_ARGUMENT, e, "cannot be kept");
        check_refused(l3_cuda_truncate(g, 2, 0, e), L3_ERR_ARGUMENT, e, "sequence 2 of 2");
        CHECK_EQ(l3_cuda_decode(g, twice, ids, 2, NULL), L3_ERR_ARGUMENT);
        CHECK_EQ(l3_cuda_position(g, 0), 0);
        CHECK_EQ(l3_cuda_prefill(g, 0, ids, 4, NULL, e), L3_OK);
        check_refused(l3_cuda_prefill(g, 0, ids, 3, NULL, e), L3_ERR_CONTEXT, e, "do not fit");
        CHECK_EQ(l3_cuda_generate(g, NULL, ids, 1, 2, NULL, out, e), L3_OK); /* full now */
        check_refused(l3_cuda_decode(g, NULL, ids, 1, e), L3_ERR_CONTEXT, e, "do not fit");
        CHECK_EQ(l3_cuda_logits(g, 0, logits, e), L3_OK); /* refused calls take nothing away */
        card_close(&c);
    }
    free(logits);
    world_close(&w);
}

/* Staging into which a token's rows do not fit. */
TEST(small_staging) {
    const mk_spec spec   = spec_tiny(MK_F16);
    const int32_t ids[3] = {3, 4, 6};
    world         w;
    card          c;
    if (!world_open(&w, &spec, MAPPED)) return;
    l3_cuda_config config = config_of(L3_FAST, 3, 8);
    config.tables         = L3_CUDA_SOURCE;
    config.staging_bytes  = 100;
    if (card_new(&c, w.r.model, config)) {
        check_refused(l3_cuda_prefill(c.gpu, 0, ids, 3, NULL, &c.err), L3_ERR_ARGUMENT, &c.err, "staging_bytes");
        check_refused(l3_cuda_decode(c.gpu, NULL, ids, 1, &c.err), L3_ERR_ARGUMENT, &c.err, "staging_bytes");
        CHECK_EQ(l3_cuda_position(c.gpu, 0), 0);
        card_close(&c);
    }
    config.staging_bytes = 2 * 70 * 130 + 32; /* for two tokens of the most rows */
    if (card_new(&c, w.r.model, config)) {
        check_refused(l3_cuda_decode(c.gpu, NULL, ids, 3, &c.err), L3_ERR_ARGUMENT, &c.err, "2 surely fit");
        CHECK_EQ(l3_cuda_decode(c.gpu, NULL, ids, 2, &c.err), L3_OK);
        card_close(&c);
    }
    world_close(&w);
}

/* ---- sources ---- */

TEST(sources) {
    const mk_spec  spec    = spec_tiny(MK_Q8_0);
    const int32_t  ids[10] = {5, 17, 5, 12, 1, 200, 260, 5, 12, 33};
    const way      reads = {1, 0, 0}, some = {0, 2, 0}, blocks = {512, 0, 0};
    l3_cuda_memory m;
    l3_error       err;
    world          w;
    card           c;
    float         *right = NULL;
    if (world_open(&w, &spec, MAPPED)) {
        right = follow(w.r.model, config_of(L3_FAST, 1, 8), ids, 7, 3);
        world_close(&w);
    }
    for (int i = 0; i < 4; i++) {
        if (!world_open(&w, &spec, i % 2 ? reads : some)) continue;
        l3_cuda_config config = config_of(L3_FAST, 1, 8);
        config.tables         = i / 2 ? L3_CUDA_SOURCE : L3_CUDA_HOST;
        config.hot_bytes      = 3000;
        float *all            = follow(w.r.model, config, ids, 7, 3);
        CHECK_MEM(all, right, 10 * w.vocab * sizeof *all);
        free(all);
        world_close(&w);
    }
    free(right);
    if (world_open(&w, &spec, blocks)) {
        check_refused(l3_cuda_memory_of(w.r.model, NULL, &m, &err), L3_ERR_UNSUPPORTED, &err, "align 1");
        world_close(&w);
    }
    /* Every read fails in turn, while opening ... */
    if (!world_open(&w, &spec, reads)) return;
    l3_cuda_config config = config_of(L3_EXACT, 1, 4);
    config.tables         = L3_CUDA_SOURCE;
    for (uint32_t fail = 1, done = 0; !done; fail++) {
        w.r.mock.calls = 0, w.r.mock.fail_at = fail;
        const int code = card_open(&c, w.r.model, &config);
        done           = w.r.mock.calls < fail;
        if (!CHECK_EQ(code, done ? L3_OK : L3_ERR_IO)) break;
        if (code == L3_OK) card_close(&c);
        else CHECK(error_sound(code, &c.err) && c.err.io == MOCK_FAILURE);
    }
    /* ... and in a step, after which all goes on. */
    w.r.mock.fail_at = 0;
    right            = follow(w.r.model, config, ids, 2, 1);
    if (card_new(&c, w.r.model, config)) {
        float *one = new_floats(1, w.vocab);
        for (uint32_t fail = 1; fail < 100; fail++) {
            w.r.mock.calls = 0, w.r.mock.fail_at = fail;
            const int code = l3_cuda_prefill(c.gpu, 0, ids, 2, NULL, &c.err);
            if (w.r.mock.calls < fail) {
                CHECK_EQ(code, L3_OK);
                break;
            }
            check_refused(code, L3_ERR_IO, &c.err, "could not be read");
            CHECK_EQ(c.err.io, MOCK_FAILURE);
            CHECK_EQ(l3_cuda_position(c.gpu, 0), 0);
        }
        w.r.mock.fail_at = 0;
        CHECK_EQ(l3_cuda_decode(c.gpu, NULL, ids + 2, 1, &c.err), L3_OK);
        CHECK_EQ(l3_cuda_logits(c.gpu, 0, one, &c.err), L3_OK);
        CHECK_MEM(one, right + 2 * w.vocab, w.vocab * sizeof *one);
        free(one);
        card_close(&c);
    }
    free(right);
    world_close(&w);
}

/* Offsets by which rows would lie outside of the table: before opening, and where the source changes later. */
TEST(damaged_offsets) {
    const mk_spec  spec   = spec_tiny(MK_Q8_0);
    const int32_t  id     = 100;
    l3_cuda_config config = config_of(L3_FAST, 1, 4);
    l3_cuda_memory m;
    l3_error       err;
    world          w;
    card           c;
    if (!world_open(&w, &spec, MAPPED)) return;
    unsigned char *at = w.f.bytes + l3_model_lookup(w.r.model, 1, NULL)->offsets.offset + 4 * (size_t)id;
    config.tables     = L3_CUDA_SOURCE;
    if (card_new(&c, w.r.model, config)) {
        at[6] = 0x7f; /* where the rows of 100 end */
        check_refused(l3_cuda_decode(c.gpu, NULL, &id, 1, &c.err), L3_ERR_IO, &c.err, "could not be read");
        CHECK_EQ(l3_cuda_position(c.gpu, 0), 0);
        check_refused(l3_cuda_memory_of(w.r.model, &config, &m, &err), L3_ERR_FORMAT, &err, "of token 100");
        at[6] = 0;
        CHECK_EQ(l3_cuda_decode(c.gpu, NULL, &id, 1, &c.err), L3_OK);
        card_close(&c);
    }
    at[0] = 0xff, at[1] = 0xff, at[3] = 0xff;
    check_refused(l3_cuda_memory_of(w.r.model, &config, &m, &err), L3_ERR_FORMAT, &err, "of token 99");
    world_close(&w);
}

/* ---- what steps did ---- */

TEST(stats) {
    const mk_spec spec   = spec_tiny(MK_F16);
    const int32_t ids[6] = {5, 17, 5, 12, 200, 17};
    world         w;
    if (!world_open(&w, &spec, MAPPED)) return;
    uint64_t wanted = 0;
    for (uint32_t i = 0; i < l3_model_info(w.r.model)->n_lookups; i++) {
        const l3_lookup *l = l3_model_lookup(w.r.model, i, NULL);
        for (int k = 0; k < 6; k++) { /* distinct ones of the prefill of 5, then 17 again */
            const unsigned char *at = w.f.bytes + l->offsets.offset + 4 * (size_t)ids[k];
            const uint32_t       n  = (uint32_t)(at[4] | at[5] << 8) - (uint32_t)(at[0] | at[1] << 8);
            if (k != 2) wanted += n * l3_row_bytes(l->rows.type, l->rows.cols);
        }
    }
    for (int k = 0; k < 4; k++) {
        l3_cuda_config  config = config_of(L3_FAST, 1, 8);
        l3_cuda_stats   s;
        l3_cuda_arrival arrivals[2] = {{-1, -1}, {-1, -1}};
        card            c;
        config.tables        = k ? L3_CUDA_HOST : L3_CUDA_DEVICE;
        config.hot_bytes     = k == 2 ? 30000 : 0;
        config.staging_bytes = k == 3 ? 1 : 0;
        if (!card_new(&c, w.r.model, config)) continue;
        CHECK_EQ(l3_cuda_get_stats(c.gpu, &s, &c.err), L3_OK);
        CHECK(s.steps == 0 && s.row_bytes == 0);
        CHECK_EQ(l3_cuda_prefill(c.gpu, 0, ids, 5, NULL, &c.err), L3_OK);
        CHECK_EQ(l3_cuda_trace(c.gpu, NULL, ids + 5, 1, arrivals, &c.err), L3_OK);
        for (int i = 0; i < 2; i++) CHECK(arrivals[i].wanted >= 0 && arrivals[i].there >= 0);
        CHECK(arrivals[1].wanted >= arrivals[0].wanted && arrivals[1].there >= arrivals[0].there);
        CHECK_EQ(l3_cuda_get_stats(c.gpu, &s, &c.err), L3_OK);
        CHECK_EQ(s.steps, 2);
        CHECK_EQ(s.row_bytes, wanted);
        CHECK_EQ(s.hot_bytes + s.staged_bytes + s.direct_bytes, wanted);
        if (k == 0) CHECK_EQ(s.hot_bytes, wanted);
        if (k == 1) CHECK_EQ(s.staged_bytes, wanted);
        if (k == 2) CHECK(s.hot_bytes > 0 && s.direct_bytes == 0);
        if (k == 3) CHECK_EQ(s.direct_bytes, wanted);
        card_close(&c);
    }
    world_close(&w);
}

/* ---- memory, and failures of the device ---- */

TEST(memory) {
    const mk_spec  spec = spec_tiny(MK_F16);
    l3_cuda_memory of, used;
    l3_error       err;
    world          w;
    if (!world_open(&w, &spec, MAPPED)) return;
    for (int k = 0; k < 3; k++) {
        l3_cuda_config config = config_of(L3_FAST, 2, 8);
        l3_cuda       *gpu    = NULL;
        config.tables         = (l3_cuda_place)(L3_CUDA_DEVICE + k);
        config.hot_bytes      = 2000;
        CHECK_EQ(l3_cuda_memory_of(w.r.model, &config, &of, &err), L3_OK);
        guard g = guard_new(of.host, L3_ALIGN, 0xa5);
        check_refused(l3_cuda_open(&gpu, w.r.model, &config, g.mem, of.host - 1, &err), L3_ERR_MEMORY, &err, "needed");
        check_refused(l3_cuda_open(&gpu, w.r.model, &config, NULL, of.host, &err), L3_ERR_MEMORY, &err, "needed");
        check_refused(l3_cuda_open(&gpu, w.r.model, &config, g.mem + 1, of.host, &err), L3_ERR_MEMORY, &err, "aligned");
        CHECK(gpu == NULL);
        if (CHECK_EQ(l3_cuda_open(&gpu, w.r.model, &config, g.mem, of.host, &err), L3_OK)) {
            used = l3_cuda_memory_used(gpu);
            CHECK_MEM(&used, &of, sizeof used);
#ifdef L3_CUDA_EMULATED
            CHECK_EQ(emulated_device_bytes(), of.device);
            CHECK_EQ(emulated_pinned_bytes(), of.pinned);
#endif
            l3_cuda_close(gpu);
        }
#ifdef L3_CUDA_EMULATED
        gpu = NULL;
        emulated_limit_memory(of.device - 1);
        check_refused(l3_cuda_open(&gpu, w.r.model, &config, g.mem, of.host, &err), L3_ERR_MEMORY, &err, "the device");
        emulated_limit_memory(of.device);
        CHECK_EQ(l3_cuda_open(&gpu, w.r.model, &config, g.mem, of.host, &err), L3_OK);
        l3_cuda_close(gpu);
        emulated_reset();
        CHECK_EQ(emulated_outstanding(), 0);
#endif
        CHECK(guard_free(&g));
    }
    l3_cuda_close(NULL);
    world_close(&w);
}

#ifndef L3_CUDA_EMULATED
/* Where something else has the device's memory: a code and a sentence, and all is well when it is free again. */
TEST(device_full) {
    enum { PIECE = 16 << 20, PIECES = 1 << 16 };
    const mk_spec  spec   = spec_tiny(MK_F16);
    l3_cuda_config config = config_of(L3_FAST, 4096, 0);
    l3_cuda_memory of;
    static void   *taken[PIECES];
    int            n = 0;
    card           c;
    world          w;
    if (!world_open(&w, &spec, MAPPED)) return;
    CHECK_EQ(l3_cuda_memory_of(w.r.model, &config, &of, NULL), L3_OK);
    CHECK(of.device > 4 * (uint64_t)PIECE);
    while (n < PIECES && cudaMalloc(&taken[n], PIECE) == cudaSuccess) n++;
    cudaGetLastError();
    check_refused(card_open(&c, w.r.model, &config), L3_ERR_MEMORY, &c.err, "the device");
    while (n > 0) cudaFree(taken[--n]);
    if (card_new(&c, w.r.model, config)) card_close(&c);
    world_close(&w);
}
#endif

#ifdef L3_CUDA_EMULATED
enum { LAUNCH = 98, OUT_OF_MEMORY = 2, ILLEGAL_ADDRESS = 700, LAUNCH_FAILURE = 719 };

/* A text by every kind of call. out: (5,) logits of what was appended last, and tokens. */
static int all_calls(l3_cuda *gpu, const int32_t *ids, float *logits, int32_t *out, l3_error *err) {
    l3_cuda_arrival arrivals[2];
    l3_cuda_stats   stats;
    int             code = l3_cuda_prefill(gpu, 0, ids, 5, NULL, err);
    if (code == L3_OK) code = l3_cuda_decode(gpu, NULL, ids, 2, err);
    if (code == L3_OK) code = l3_cuda_generate(gpu, NULL, ids, 2, 2, NULL, out, err);
    if (code == L3_OK) code = l3_cuda_trace(gpu, NULL, ids, 1, arrivals, err);
    if (code == L3_OK) code = l3_cuda_get_stats(gpu, &stats, err);
    return code == L3_OK ? l3_cuda_logits(gpu, 0, logits, err) : code;
}

static void restart(l3_cuda *gpu) {
    for (uint32_t q = 0; q < 2; q++) CHECK_EQ(l3_cuda_truncate(gpu, q, 0, NULL), L3_OK);
}

/* A call of CUDA fails once, wherever it is: a code, a sentence, and then the right bits. */
TEST(every_call_fails) {
    const mk_spec spec   = spec_long();
    const int32_t ids[6] = {5, 17, 5, 12, 200, 17};
    int32_t       out[4], right_out[4];
    world         w;
    card          c;
    if (!world_open(&w, &spec, MAPPED)) return;
    float *right = new_floats(1, w.vocab), *one = new_floats(1, w.vocab);
    for (int k = 0; k < 3; k++) {
        l3_cuda_config config = config_of(L3_FAST, 2, 8);
        config.context        = 16;
        config.tables         = k == 0 ? L3_CUDA_HOST : k == 1 ? L3_CUDA_SOURCE : L3_CUDA_DEVICE;
        config.no_graph       = k == 2;
        const uint64_t before = emulated_calls();
        if (!card_new(&c, w.r.model, config)) break;
        const uint64_t opening = emulated_calls() - before;
        CHECK_EQ(all_calls(c.gpu, ids, right, right_out, &c.err), L3_OK);
        const uint64_t all = emulated_calls() - before - opening;
        card_close(&c);
        CHECK_EQ(emulated_outstanding(), 0);
        for (uint64_t i = 0; i < opening; i += i < 20 || i + 20 > opening || long_run() ? 1 : 17) {
            const int error = i % 2 ? OUT_OF_MEMORY : LAUNCH;
            emulated_fail_after(i, error);
            const int code = card_open(&c, w.r.model, &config);
            emulated_reset();
            if (!CHECK_EQ(code, error == LAUNCH ? L3_ERR_DEVICE : L3_ERR_MEMORY))
                fprintf(stderr, "    opening, call %u\n", (unsigned)i);
            if (code == L3_OK) card_close(&c);
            else CHECK(error_sound(code, &c.err) && c.err.io == error);
            if (!CHECK_EQ(emulated_outstanding(), 0)) break;
        }
        if (!card_new(&c, w.r.model, config)) break;
        unsigned made = 0;
        for (uint64_t i = 0; i < all; i += long_run() ? 1 : 1 + all / (test_quick() ? 5 : 14)) {
            if (made++ % 8 == 0) { /* graphs are there or are yet to be made */
                card_close(&c);
                if (!card_new(&c, w.r.model, config)) break;
            }
            restart(c.gpu);
            emulated_fail_after(i, LAUNCH);
            const int code = all_calls(c.gpu, ids, one, out, &c.err);
            emulated_fail_after(1u << 30, LAUNCH);
            /* With graphs made before there are fewer calls. */
            if (code != L3_OK && (!CHECK_EQ(code, L3_ERR_DEVICE) || !CHECK(error_sound(code, &c.err))))
                fprintf(stderr, "    call %u of %u\n", (unsigned)i, (unsigned)all);
            const uint32_t at = l3_cuda_position(c.gpu, 0);
            CHECK(at == 0 || at == 5 || at == 6 || at == 8 || at == 9);
            restart(c.gpu);
            if (!CHECK_EQ(all_calls(c.gpu, ids, one, out, &c.err), L3_OK)) {
                fprintf(stderr, "    after call %u of %u, variation %d: %s\n", (unsigned)i, (unsigned)all, k,
                        c.err.text);
                break;
            }
            CHECK_MEM(one, right, w.vocab * sizeof *one);
            CHECK_MEM(out, right_out, sizeof out);
        }
        card_close(&c);
        CHECK_EQ(emulated_outstanding(), 0);
        emulated_reset();
    }
    free(right);
    free(one);
    world_close(&w);
}

/* The device is lost in a call, or while something runs: nothing works any more, and everything can be freed. */
TEST(lost_device) {
    const mk_spec spec   = spec_long();
    const int32_t ids[6] = {5, 17, 5, 12, 200, 17};
    int32_t       out[4];
    world         w;
    card          c;
    if (!world_open(&w, &spec, MAPPED)) return;
    float *one = new_floats(1, w.vocab);
    for (unsigned i = 0; i < 60; i += i < 8 || long_run() ? 1 : 5) {
        const int      error  = i % 2 ? ILLEGAL_ADDRESS : LAUNCH_FAILURE;
        l3_cuda_config config = config_of(L3_FAST, 2, 8);
        l3_cuda_stats  stats;
        config.context = 16;
        config.tables  = i % 3 ? L3_CUDA_SOURCE : L3_CUDA_HOST;
        if (!card_new(&c, w.r.model, config)) break;
        if (i % 4 < 2) emulated_fail_run_after(i, error);
        else emulated_fail_after(i, error);
        int code = all_calls(c.gpu, ids, one, out, &c.err);
        CHECK_EQ(code, L3_ERR_DEVICE);
        CHECK(error_sound(code, &c.err) && c.err.io == error);
        l3_cuda *g = c.gpu;
        check_refused(l3_cuda_prefill(g, 0, ids, 2, NULL, &c.err), L3_ERR_DEVICE, &c.err, "lost");
        check_refused(l3_cuda_decode(g, NULL, ids, 1, &c.err), L3_ERR_DEVICE, &c.err, "lost");
        check_refused(l3_cuda_generate(g, NULL, ids, 1, 1, NULL, out, &c.err), L3_ERR_DEVICE, &c.err, "lost");
        check_refused(l3_cuda_trace(g, NULL, ids, 1, NULL, &c.err), L3_ERR_DEVICE, &c.err, "lost");
        check_refused(l3_cuda_logits(g, 0, one, &c.err), L3_ERR_DEVICE, &c.err, "lost");
        check_refused(l3_cuda_get_stats(g, &stats, &c.err), L3_ERR_DEVICE, &c.err, "lost");
        check_refused(l3_cuda_truncate(g, 0, 0, &c.err), L3_ERR_DEVICE, &c.err, "lost");
        card_close(&c);
        CHECK_EQ(emulated_outstanding(), 0);
        emulated_reset();
    }
    emulated_set_devices(0);
    check_refused(card_open(&c, w.r.model, NULL), L3_ERR_DEVICE, &c.err, "device");
    emulated_reset();
    free(one);
    world_close(&w);
}

/* Without bf16 in its tensor cores a device keeps such weights as f16. */
TEST(turing) {
    static const uint32_t some[] = {5, 20, 67};
    emulated_set_capability(7, 5);
    neighbours_of(MK_BF16, some, 3);
    emulated_reset();
}
#else
TEST(every_call_fails) { SKIP("needs the emulator"); }
TEST(lost_device) { SKIP("needs the emulator"); }
TEST(turing) { SKIP("needs the emulator"); }
#endif

int main(void) {
    RUN(variants);
    RUN(random_models);
    RUN(places);
    RUN(places_chosen);
    RUN(neighbours);
    RUN(lengths);
    RUN(heads);
    RUN(long_texts);
    RUN(generate);
    RUN(generate_in_order);
    RUN(no_number);
    RUN(configurations);
    RUN(arguments);
    RUN(small_staging);
    RUN(sources);
    RUN(damaged_offsets);
    RUN(stats);
    RUN(memory);
#ifndef L3_CUDA_EMULATED
    RUN(device_full);
#endif
    RUN(every_call_fails);
    RUN(lost_device);
    RUN(turing);
    if (test_verbose()) fprintf(stderr, "  largest difference: exact %.3g, fast %.3g\n", most_exact, most_fast);
    return test_report("cuda");
}
