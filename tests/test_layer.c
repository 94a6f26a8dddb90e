/* test_layer.c - the lookup layer of l3.h: every variation against ref.c in double precision, then the same bits
 * whatever the plumbing: mapped, read, started, any window, alignment, cache, batch, threads. */
#define L3_IMPLEMENTATION
#include "../l3.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

#include "lab.h"

/* Largest difference from the reference, relative to the largest element of the reference's output (at least 1). */
#define TOLERANCE 4e-6

/* ---- every variation against the reference, and the same bits through random plumbing ---- */

TEST(every_variation) {
    test_rng r    = {1};
    double   most = 0;
    for (uint32_t v = 0; v < VARIATIONS; v += test_quick() ? 5 : 1) {
        lab            b;
        text           t;
        const uint32_t n_layers = 1 + test_below(&r, MAX_LAYERS), n = 1 + test_below(&r, 16);
        lab_random(&b, &r, v, n_layers, v % 3 == 0);
        t                  = random_text(&b, &r, n);
        const double error = baseline(&b, &t);
        if (!CHECK(error <= TOLERANCE)) fprintf(stderr, "    variation %u: %.3g\n", (unsigned)v, error);
        if (error > most) most = error;
        for (int i = 0; i < (test_quick() ? 2 : 6); i++) {
            const plumbing p = random_plumbing(&r);
            same_bits(&b, &t, &p, 1 + test_below(&r, p.config.batch));
        }
        text_free(&t);
        lab_free(&b);
    }
    fprintf(stderr, "  largest error: %.3g\n", most);
}

TEST(every_type_and_size) {
    static const int      all[]  = {L3_F32, L3_F16, L3_BF16, L3_Q8_0, L3_Q4_0, L3_Q6_K};
    static const uint32_t keys[] = {1, 7, 33, 64, 96, 160, 256};
    test_rng              r      = {2};
    double                most   = 0;
    for (int i = 0; i < 6 * 6 * 7; i++) {
        const uint32_t key = keys[i / 36];
        shape          s   = full_shape(key, 64, 50);
        lab            b;
        text           t;
        s.row_type    = all[i % 6];
        s.weight_type = all[i / 6 % 6];
        if (key % l3_type_block(s.row_type)) continue;
        if (s.weight_type == L3_Q6_K) s.up = 512 - key;
        lab_of(&b, &r, 9, key, &s, 1, 0);
        t                  = random_text(&b, &r, 4);
        const double error = baseline(&b, &t);
        if (!CHECK(error <= TOLERANCE))
            fprintf(stderr, "    types %d and %d, key length %u\n", s.row_type, s.weight_type, (unsigned)key);
        if (error > most) most = error;
        text_free(&t);
        lab_free(&b);
    }
    fprintf(stderr, "  largest error: %.3g\n", most);
}

TEST(thousands_of_rows) {
    test_rng r    = {3};
    double   most = 0;
    for (int i = 0; i < 8; i++) {
        shape s = full_shape(32, 48, 4000);
        lab   b;
        text  t;
        s.tied        = i & 1;
        s.key_norm    = i & 2;
        s.row_type    = i & 4 ? L3_Q8_0 : L3_F16;
        s.score_scale = i & 2 ? 0.5f : 2;
        lab_of(&b, &r, 5, 64, &s, 1, 0);
        t                  = random_text(&b, &r, 12);
        const double error = baseline(&b, &t);
        CHECK(error <= TOLERANCE);
        if (error > most) most = error;
        for (int k = 0; k < 4; k++) {
            const plumbing p = streamed(k & 1 ? 512 : 1, k & 2 ? MOCK_START : 0, k ? 3000 : 0, k == 3 ? 2000000 : 0);
            same_bits(&b, &t, &p, 12);
        }
        text_free(&t);
        lab_free(&b);
    }
    fprintf(stderr, "  largest error: %.3g\n", most);
}

/* A high score met late, after others have been summed: the sums are rescaled, to nothing if it is high enough. */
TEST(rising_scores) {
    static const float scales[] = {1e-3f, 1, 30, 1e4f, 1e8f, -30};
    test_rng           r        = {4};
    for (int i = 0; i < 6; i++) {
        shape s = full_shape(16, 16, 300);
        lab   b;
        text  t;
        lab_of(&b, &r, 6, 16, &s, 1, 0);
        b.layers[0].score_scale    = scales[i];
        b.exact[0].ref.score_scale = (double)scales[i];
        t                          = random_text(&b, &r, 20);
        const double error         = baseline(&b, &t);
        CHECK(error <= TOLERANCE);
        text_free(&t);
        lab_free(&b);
    }
}

/* The order of exact mode: element i to lane i mod 16, lanes added pairwise, 8 apart, then 4, 2, 1. */
static float ordered_dot(const double *w, const float *x, uint32_t n) {
    float lane[16] = {0};
    for (uint32_t i = 0; i < n; i++) lane[i % 16] += (float)w[i] * x[i];
    for (int apart = 8; apart > 0; apart /= 2)
        for (int i = 0; i < apart; i++) lane[i] += lane[i + apart];
    return lane[0];
}

/* A token without rows and a layer without bias: y = mix [0 ; x], each element one dot product. */
static void check_order(const lab *b, const text *t) {
    const uint32_t up = b->layers[0].up_length, n = up + b->key;
    float         *ux = (float *)zeroed(n, sizeof *ux);
    for (uint32_t p = 0; p < t->n; p++) {
        memcpy(ux + up, t->x + p * b->key, b->key * sizeof *ux);
        for (uint32_t i = 0; i < b->key; i++) {
            const float y = ordered_dot(b->exact[0].ref.mix + (size_t)i * n, ux, n);
            CHECK_MEM(&y, t->y + p * b->key + i, sizeof y);
        }
    }
    free(ux);
}

static int32_t token_without_rows(const lab *b) {
    int32_t token = 0;
    while (b->exact[0].first[token] != b->exact[0].first[token + 1]) token++;
    return token;
}

TEST(sums_in_the_documented_order) {
    static const uint32_t kinds[] = {L3_F32, L3_F16, L3_BF16, L3_Q8_0, L3_Q4_0, L3_Q6_K};
    test_rng              r       = {28};
    for (uint32_t k = 0; k < 120; k++) {
        const uint32_t key = 1 + k % 61, width = k % 6 < 3 ? key + 1 + k % 40 : k % 6 < 5 ? 96 : 256;
        shape          s = full_shape(3, width - key, 0);
        plumbing       p = streamed(1, 0, k % 2 ? 0 : -1, 0);
        lab            b;
        text           t;
        s.weight_type = (int)kinds[k % 6];
        s.residual = s.up_bias = false;
        p.config.mode          = L3_EXACT;
        lab_of(&b, &r, 4, key, &s, 1, 0);
        t = random_text(&b, &r, 7);
        for (uint32_t i = 0; i < 7; i++) t.tokens[i] = token_without_rows(&b);
        baseline(&b, &t);
        check_order(&b, &t);
        same_bits(&b, &t, &p, 7);
        text_free(&t);
        lab_free(&b);
    }
}

/* A table without a single row. */
TEST(no_rows_at_all) {
    test_rng r = {22};
    shape    s = full_shape(8, 8, 0);
    lab      b;
    text     t;
    do lab_of(&b, &r, 1, 8, &s, 1, 1);
    while (b.layers[0].row_count > 0 && (lab_free(&b), 1));
    t = random_text(&b, &r, 5);
    CHECK(baseline(&b, &t) <= TOLERANCE);
    for (int k = 0; k < 4; k++) {
        const plumbing p = streamed(1, k & 1 ? MOCK_START : 0, 0, k & 2 ? 3000 : 0);
        same_bits(&b, &t, &p, 2);
    }
    text_free(&t);
    lab_free(&b);
}

/* ---- windows ---- */

TEST(every_window) {
    static const uint32_t aligns[] = {1, 16, 512};
    test_rng              r        = {5};
    const shape           s        = full_shape(8, 12, 30);
    lab                   b;
    text                  t;
    lab_of(&b, &r, 9, 7, &s, 2, 1);
    t = random_text(&b, &r, 9);
    baseline(&b, &t);
    for (int i = 0; i < 6; i++) {
        for (int over = 0; over < 3000; over += over < 150 ? 1 : 97) {
            const plumbing p = streamed(aligns[i % 3], i < 3 ? 0 : MOCK_START, over, 0);
            same_bits(&b, &t, &p, 9);
        }
    }
    text_free(&t);
    lab_free(&b);
}

TEST(too_small_a_window) {
    static const uint32_t aligns[] = {0, 1, 2, 64, 4096};
    test_rng              r        = {6};
    for (int i = 0; i < 20; i++) {
        plumbing p = streamed(aligns[i % 5], 0, 0, 0);
        lab      b;
        bench    w;
        l3_work *work = NULL;
        lab_random(&b, &r, test_below(&r, VARIATIONS), 2, 0);
        CHECK_EQ(bench_open(&w, &b, &p), L3_OK);
        CHECK(w.p.config.window >= l3_row_bytes(b.layers[1].mix.type, b.layers[1].mix.cols));
        w.p.config.window--;
        CHECK_EQ(l3_work_size(w.layers, 2, &w.p.config), 0);
        CHECK_EQ(l3_work_init(&work, w.layers, 2, &w.p.config, w.block.mem, w.block.size, &w.err), L3_ERR_ARGUMENT);
        CHECK(work == NULL && w.err.code == L3_ERR_ARGUMENT && strstr(w.err.text, "window"));
        bench_close(&w);
        lab_free(&b);
    }
}

/* ---- jobs and batches ---- */

TEST(jobs_make_no_difference) {
    test_rng    r = {7};
    const shape s = full_shape(96, 256, 40);
    lab         b;
    text        t;
    lab_of(&b, &r, 12, 160, &s, 2, 0);
    t = random_text(&b, &r, MAX_N);
    baseline(&b, &t);
    for (uint32_t kind = 1; kind < 6; kind++) {
        for (uint32_t step = 1; step <= MAX_N; step += 13) {
            plumbing p    = streamed(1, MOCK_START, step == 1 ? 0 : -1, 0);
            p.config.jobs = jobs_of(kind);
            p.place[1]    = step % 2 ? IN_DATA : IN_SOURCE;
            same_bits(&b, &t, &p, step);
        }
    }
    CHECK(*(uint32_t *)backwards().user > 100);
    text_free(&t);
    lab_free(&b);
}

TEST(every_batch_size) {
    test_rng r = {8};
    shape    s = full_shape(33, 20, 12);
    lab      b;
    text     t;
    s.row_type = L3_BF16;
    lab_of(&b, &r, 7, 33, &s, 2, 0);
    t = random_text(&b, &r, MAX_N);
    baseline(&b, &t);
    for (uint32_t step = 1; step <= MAX_N; step++) {
        plumbing p     = streamed(16, step % 2 ? MOCK_START : 0, 0, step % 3 ? 0 : 4000);
        p.config.batch = step;
        same_bits(&b, &t, &p, step);
    }
    for (uint32_t i = 0; i < MAX_N; i++) t.tokens[i] = 3;
    memcpy(t.y, t.x, t.bytes);
    baseline(&b, &t);
    same_bits(&b, &t, &(plumbing){.config.batch = MAX_N, .window_over = -1}, MAX_N);
    text_free(&t);
    lab_free(&b);
}

#ifdef L3_THREADS
typedef struct tally {
    uint32_t done[128];
} tally;

static void count_piece(void *arg, uint32_t i) { __atomic_fetch_add(&((tally *)arg)->done[i], 1, __ATOMIC_RELAXED); }

TEST(pools_run_every_piece_once) {
    for (int k = 0; k < 4; k++) {
        const l3_jobs jobs = l3_pool_jobs(all_pools()->pool[k]);
        CHECK_EQ(jobs.width, pool_threads[k]);
        CHECK((jobs.run == NULL) == (pool_threads[k] == 1));
        for (uint32_t round = 0; jobs.run && round < 1500; round++) {
            tally          t;
            const uint32_t n   = round % 128;
            int            bad = 0;
            memset(&t, 0, sizeof t);
            jobs.run(jobs.user, n, count_piece, &t);
            for (uint32_t i = 0; i < 128; i++) bad += t.done[i] != (i < n);
            CHECK_EQ(bad, 0);
        }
    }
}

static void wait_for_others(void *arg, uint32_t i) {
    tally       *t   = (tally *)arg;
    const time_t end = time(NULL) + 20;
    (void)i;
    __atomic_fetch_add(&t->done[0], 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&t->done[0], __ATOMIC_SEQ_CST) < t->done[1] && time(NULL) < end) sched_yield();
    const uint32_t begun = __atomic_load_n(&t->done[0], __ATOMIC_SEQ_CST);
    if (begun >= t->done[1]) __atomic_fetch_add(&t->done[2], 1, __ATOMIC_SEQ_CST);
}

/* As many pieces as threads, none of which ends before all have begun. */
TEST(pools_run_pieces_at_once) {
    for (int k = 1; k < 4; k++) {
        const l3_jobs jobs = l3_pool_jobs(all_pools()->pool[k]);
        for (int round = 0; round < 20; round++) {
            tally t;
            memset(&t, 0, sizeof t);
            t.done[1] = jobs.width;
            jobs.run(jobs.user, jobs.width, wait_for_others, &t);
            if (!CHECK_EQ(t.done[2], jobs.width)) return;
        }
    }
}

TEST(pool_memory) {
    guard    g    = guard_new(l3_pool_size(), L3_ALIGN, 0xff);
    l3_pool *pool = NULL;
    l3_error err;
    CHECK_EQ(l3_pool_init(&pool, 2, g.mem, g.size - 1, &err), L3_ERR_MEMORY);
    CHECK_EQ(l3_pool_init(&pool, 2, g.mem + L3_ALIGN / 2, g.size, &err), L3_ERR_MEMORY);
    CHECK_EQ(l3_pool_init(&pool, 2, NULL, g.size, &err), L3_ERR_MEMORY);
    CHECK(pool == NULL);
    for (uint32_t threads = 0; threads <= 100; threads += 50) {
        REQUIRE(l3_pool_init(&pool, threads, g.mem, g.size, &err) == L3_OK);
        CHECK_EQ(l3_pool_jobs(pool).width, threads == 0 ? 1 : threads < L3_MAX_THREADS ? threads : L3_MAX_THREADS);
        l3_pool_free(pool);
    }
    CHECK(guard_free(&g));
}
#endif

/* ---- order of calls ---- */

/* A layer may run twice, and layers in any order; only reads ahead are lost. */
TEST(layers_in_any_order) {
    static const uint32_t order[] = {2, 0, 1, 1, 0, 2, 2};
    test_rng              r       = {9};
    const shape           s       = full_shape(9, 10, 20);
    lab                   b;
    text                  t;
    float                *y;
    lab_of(&b, &r, 8, 11, &s, 3, 0);
    t = random_text(&b, &r, 10);
    y = (float *)zeroed(1, t.bytes);
    for (int k = 0; k < 5; k++) {
        const plumbing p = streamed(k == 2 ? 64 : 1, k & 1 ? MOCK_START : 0, k == 3 ? 0 : -1, k == 4 ? 5000 : 0);
        bench          w;
        memcpy(t.y, t.x, t.bytes);
        CHECK_EQ(bench_open(&w, &b, &p), L3_OK);
        CHECK_EQ(l3_lookup_begin(w.work, t.tokens, t.n, NULL), L3_OK);
        for (int i = 0; i < 7; i++) {
            l3_lookup_hint(w.work, t.tokens, t.n);
            CHECK_EQ(bench_forward(&w, order[i], t.n, t.y), L3_OK);
        }
        CHECK_EQ(l3_lookup_begin(w.work, t.tokens, 1, NULL), L3_OK);
        CHECK_EQ(l3_lookup_begin(w.work, t.tokens, t.n, NULL), L3_OK);
        CHECK_EQ(l3_lookup_begin(w.work, NULL, 0, NULL), L3_OK); /* ends the read that is under way */
        if (k == 0) memcpy(y, t.y, t.bytes);
        CHECK_MEM(t.y, y, t.bytes);
        bench_close(&w);
    }
    free(y);
    text_free(&t);
    lab_free(&b);
}

/* ---- what is read ---- */

/* Every byte of the rows of tokens in t was counted `times` times, and no other row byte at all. */
static void check_row_counts(const lab *b, const text *t, const unsigned char *counts, int times) {
    for (uint32_t i = 0; i < b->n_layers; i++) {
        const size_t row = (size_t)l3_row_bytes(b->layers[i].rows.type, b->layers[i].rows.cols);
        for (uint32_t token = 0; token < b->vocab; token++) {
            const int            expected = is_in(t, (int32_t)token) ? times : 0;
            const size_t         begin = b->exact[i].first[token] * row, end = b->exact[i].first[token + 1] * row;
            const unsigned char *p     = counts + b->layers[i].rows.offset;
            int                  wrong = 0;
            for (size_t k = begin; k < end; k++) wrong += p[k] != expected;
            CHECK_EQ(wrong, 0);
        }
    }
}

static void check_tensor_counts(const l3_tensor *t, const unsigned char *counts, int times) {
    int wrong = 0;
    for (uint64_t i = 0; i < l3_row_bytes(t->type, t->cols) * t->rows; i++) wrong += counts[t->offset + i] != times;
    CHECK_EQ(wrong, 0);
}

/* Distinct tokens with rows, and the bytes of their rows, summed over layers. */
static uint64_t wanted(const lab *b, const text *t, uint64_t *bytes) {
    uint64_t blocks = 0;
    *bytes          = 0;
    for (uint32_t i = 0; i < b->n_layers; i++)
        for (uint32_t token = 0; token < b->vocab; token++) {
            const uint32_t rows = b->exact[i].first[token + 1] - b->exact[i].first[token];
            if (!is_in(t, (int32_t)token) || rows == 0) continue;
            blocks++;
            *bytes += rows * l3_row_bytes(b->layers[i].rows.type, b->layers[i].rows.cols);
        }
    return blocks;
}

static void read_once(const lab *b, const text *t, const plumbing *p) {
    bench    w;
    uint64_t bytes, blocks = wanted(b, t, &bytes);
    CHECK_EQ(bench_open(&w, b, p), L3_OK);
    for (int i = 0; i < 2; i++) w.mocks[i].touched = (unsigned char *)zeroed(b->image.n, 1);
    for (int round = 1; round <= 2; round++) {
        const int cached = p->config.cache > 0 && round == 2;
        run_again(&w, t, t->n);
        const l3_stats s = l3_work_stats(w.work);
        check_row_counts(b, t, w.mocks[0].touched, cached ? 1 : round);
        check_tensor_counts(&b->layers[0].mix, w.mocks[1].touched, round);
        check_tensor_counts(&b->layers[0].up, w.mocks[1].touched, round);
        CHECK_EQ(s.lookups, blocks * (uint64_t)round);
        CHECK_EQ(s.row_bytes_asked, bytes * (uint64_t)round);
        CHECK_EQ(s.row_bytes_read, bytes * (uint64_t)(cached ? 1 : round));
        CHECK_EQ(s.cache_hits, cached ? blocks : 0);
        if (p->window_over < 0) CHECK_EQ(s.row_reads, blocks * (uint64_t)(cached ? 1 : round));
    }
    for (int i = 0; i < 2; i++) free(w.mocks[i].touched);
    bench_close(&w);
}

TEST(rows_are_read_once_a_batch) {
    test_rng    r = {15};
    const shape s = full_shape(6, 9, 50);
    lab         b;
    text        t;
    lab_of(&b, &r, 30, 10, &s, 3, 1);
    t = random_text(&b, &r, MAX_N);
    baseline(&b, &t);
    for (int k = 0; k < 8; k++) {
        const plumbing p = streamed(1, k & 1 ? MOCK_START : 0, k & 2 ? 0 : -1, k & 4 ? 1000000 : 0);
        read_once(&b, &t, &p);
    }
    text_free(&t);
    lab_free(&b);
}

static void check_hints(const lab *b, const text *t, const plumbing *p) {
    bench w;
    CHECK_EQ(bench_open(&w, b, p), L3_OK);
    w.mocks[0].hinted = (unsigned char *)zeroed(b->image.n, 1);
    CHECK_EQ(l3_lookup_begin(w.work, t->tokens, t->n, NULL), L3_OK);
    check_row_counts(b, t, w.mocks[0].hinted, 1);
    CHECK_EQ(w.mocks[1].hints, 0);
    for (int32_t token = -3; token < (int32_t)b->vocab + 3; token++)
        if (is_in(t, token) || token < 0 || token >= (int32_t)b->vocab) l3_lookup_hint(w.work, &token, 1);
    if (p->config.cache == 0) check_row_counts(b, t, w.mocks[0].hinted, 2); /* else the first read is in it */
    w.mocks[0].hints = 0;
    run_again(&w, t, t->n);
    l3_lookup_hint(w.work, t->tokens, t->n);
    CHECK((w.mocks[0].hints > b->vocab) == (p->config.cache == 0));
    free(w.mocks[0].hinted);
    bench_close(&w);
}

TEST(rows_are_hinted_when_known) {
    test_rng    r = {16};
    const shape s = full_shape(6, 9, 50);
    lab         b;
    text        t;
    lab_of(&b, &r, 30, 10, &s, 1, 0);
    t = random_text(&b, &r, MAX_N);
    baseline(&b, &t);
    for (int k = 0; k < 6; k++) {
        plumbing p = streamed(k & 1 ? 64 : 1, MOCK_HINT | (k & 1 ? MOCK_START : 0), -1, k == 3 ? 1000000 : 0);
        if (k >= 4) p.place[0] = IN_BOTH;
        check_hints(&b, &t, &p);
    }
    text_free(&t);
    lab_free(&b);
}

/* ---- the cache ---- */

enum { CACHE_VOCAB = 60, CACHE_KEY = 8 };

/* One hidden state for each token, and what becomes of it. */
static text text_of_vocabulary(const lab *b, test_rng *r) {
    text t = random_text(b, r, MAX_N);
    t.x    = (float *)realloc(t.x, CACHE_VOCAB * CACHE_KEY * sizeof(float));
    t.y    = (float *)realloc(t.y, CACHE_VOCAB * CACHE_KEY * sizeof(float));
    if (!t.x || !t.y) abort();
    for (int i = 0; i < CACHE_VOCAB * CACHE_KEY; i++) t.y[i] = t.x[i] = (float)test_normal(r);
    return t;
}

static void expect_vocabulary(const lab *b, text *t) {
    static const plumbing plain = {.window_over = -1};
    bench                 w;
    CHECK_EQ(bench_open(&w, b, &plain), L3_OK);
    for (int32_t token = 0; token < CACHE_VOCAB; token++)
        CHECK_EQ(bench_run(&w, &token, 1, 1, t->y + token * CACHE_KEY), L3_OK);
    bench_close(&w);
}

/* 1 to 6 tokens, low ones far more often. Now and then a read fails. */
static void request(bench *w, const text *t, test_rng *r, int failures) {
    const uint32_t n = 1 + test_below(r, 6);
    int32_t        tokens[6];
    float          x[6 * CACHE_KEY];
    const size_t   one = CACHE_KEY * sizeof(float);
    for (uint32_t i = 0; i < n; i++) {
        const double u = test_unit(r);
        tokens[i]      = (int32_t)(u * u * u * CACHE_VOCAB);
        memcpy(x + i * CACHE_KEY, t->x + tokens[i] * CACHE_KEY, one);
    }
    w->mocks[0].fail_at = failures && test_below(r, 20) == 0 ? w->mocks[0].calls + 1 + test_below(r, 4) : 0;
    const int code      = bench_run(w, tokens, n, n, x);
    CHECK(code == L3_OK || (failures && code == L3_ERR_IO));
    for (uint32_t i = 0; code == L3_OK && i < n; i++) CHECK_MEM(x + i * CACHE_KEY, t->y + tokens[i] * CACHE_KEY, one);
}

/* Blocks of the cache lie one after another, and those that can be found are in its index exactly once. */
static void check_ring(const l3__cache *c) {
    size_t found = 0, at = c->tail;
    for (size_t i = 0; i < c->entries; i++) {
        const l3__entry *e = l3__entry_at(c, at);
        CHECK(e->size >= sizeof *e && at + e->size <= (c->wrapped && at >= c->tail ? c->end : c->size));
        CHECK(e->pinned == 0);
        if (e->layer != UINT32_MAX) CHECK(l3__cache_find(c, e->layer, e->token) == e);
        found += e->layer != UINT32_MAX;
        at += e->size;
        if (c->wrapped && at == c->end) at = 0;
    }
    CHECK(c->entries == 0 || at == c->head);
    for (size_t i = 0; i < c->n_buckets; i++)
        for (size_t next = c->buckets[i]; next; next = l3__entry_at(c, next - 1)->next) found--;
    CHECK_EQ(found, 0);
}

/* Returns the share of lookups that the cache served, in percent. */
static uint64_t use_cache(const lab *b, const text *t, test_rng *r, const plumbing *p, int failures) {
    bench w;
    CHECK_EQ(bench_open(&w, b, p), L3_OK);
    for (int i = 0; i < (test_quick() ? 100 : 400); i++) {
        request(&w, t, r, failures);
        if (w.work->cache.size) check_ring(&w.work->cache);
    }
    const l3_stats s = l3_work_stats(w.work);
    if (p->window_over < 0) CHECK_EQ(s.row_reads + s.cache_hits, s.lookups);
    CHECK_EQ(s.row_bytes_read, w.mocks[0].asked);
    bench_close(&w);
    return s.cache_hits * 100 / s.lookups;
}

/* A cache alone, of a layer of CACHE_VOCAB tokens. */
static void *cache_alone(l3__cache *c, size_t budget) {
    l3__arena size = l3__arena_of(NULL, NULL), arena = size;
    l3__cache_layout(&size, c, budget, CACHE_VOCAB);
    void *block = zeroed((size_t)size.used + L3_ALIGN, 1);
    arena.base  = (unsigned char *)block + (L3_ALIGN - (uintptr_t)block % L3_ALIGN) % L3_ALIGN;
    l3__cache_layout(&arena, c, budget, CACHE_VOCAB);
    return block;
}

/* Asks for n bytes of a token's; true: they were there. */
static bool ask(l3__cache *c, int32_t token, size_t n) {
    const size_t size = l3__cache_entry_size(c, n);
    l3__cache_note(c, token);
    if (l3__cache_find(c, 0, token)) return true;
    l3__entry *e = size ? l3__cache_add(c, 0, token, size) : NULL;
    if (e) e->pinned = 0;
    return false;
}

/* How many of the tokens from ... from + n - 1 are found, each asked for `times` times in turns. */
static int found(l3__cache *c, int32_t from, int32_t n, int times) {
    int hits = 0;
    for (int i = 0; i < times; i++)
        for (int32_t t = 0; t < n; t++) hits += ask(c, from + t, 400);
    return hits;
}

TEST(frequent_tokens_stay_in_the_cache) {
    l3__cache c;
    void     *block = cache_alone(&c, 4400); /* room for 9, and no two tokens share a count */
    found(&c, 0, 6, 10);
    for (int32_t t = 6; t < CACHE_VOCAB; t++) {
        CHECK(!ask(&c, t, 400));
        check_ring(&c);
    }
    CHECK_EQ(found(&c, 0, 6, 1), 6);
    free(block);
}

/* Another text, of other tokens: what was frequent before must go, long before the others have been asked for as often. */
TEST(the_cache_follows_the_text) {
    l3__cache c;
    void     *block = cache_alone(&c, 4400);
    found(&c, 0, 6, 2000);
    found(&c, 6, CACHE_VOCAB - 6, 20);
    for (int32_t t = 0; t < 6; t++) CHECK(l3__cache_find(&c, 0, t));
    found(&c, 6, CACHE_VOCAB - 6, 200);
    for (int32_t t = 0; t < 6; t++) CHECK(!l3__cache_find(&c, 0, t));
    free(block);
}

/* Where every token's entry is, 1 and its offset; 0: nowhere. */
static void places(const l3__cache *c, size_t at[CACHE_VOCAB]) {
    for (int32_t t = 0; t < CACHE_VOCAB; t++) {
        const void *e = l3__cache_find(c, 0, t);
        at[t]         = e ? (size_t)((const unsigned char *)e - c->bytes) + 1 : 0;
    }
}

/* Blocks of all sizes: no more than L3__MOVED bytes are moved for one that is read, and no entry grows or overlaps. */
TEST(moving_is_paid_for_by_reading) {
    test_rng r = {27};
    for (size_t budget = 2000; budget < 60000; budget = budget * 3 / 2) {
        l3__cache c;
        size_t    before[CACHE_VOCAB], after[CACHE_VOCAB], read = 0, moved = 0;
        void     *block = cache_alone(&c, budget);
        for (int i = 0; i < 3000; i++) {
            const double  u     = test_unit(&r);
            const int32_t token = (int32_t)(u * u * u * CACHE_VOCAB);
            const size_t  n     = 3000 / (size_t)(token + 1) + 8;
            places(&c, before);
            if (!ask(&c, token, n)) read += l3__cache_entry_size(&c, n);
            places(&c, after);
            for (int32_t t = 0; t < CACHE_VOCAB; t++)
                if (before[t] && after[t] && before[t] != after[t]) moved += l3__entry_at(&c, after[t] - 1)->size;
            CHECK(moved <= L3__MOVED * read);
            check_ring(&c);
        }
        CHECK(moved > 0 || budget > 20000); /* that holds all */
        free(block);
    }
}

TEST(cache_changes_nothing) {
    static const size_t budgets[] = {0, 1023, 1024, 2000, 4000, 8000, 16000, 40000, 1000000};
    test_rng            r         = {23};
    shape               s         = full_shape(8, 4, 60);
    lab                 b;
    text                t;
    lab_of(&b, &r, CACHE_VOCAB, CACHE_KEY, &s, 2, 0);
    t = text_of_vocabulary(&b, &r);
    expect_vocabulary(&b, &t);
    for (int k = 0; k < 8; k++) {
        uint64_t served = 0;
        for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++) {
            const plumbing p = streamed(k & 1 ? 32 : 1, k & 2 ? MOCK_START : 0, i % 4 == 3 ? 40 : -1, budgets[i]);
            served           = use_cache(&b, &t, &r, &p, k & 4);
            CHECK(budgets[i] >= 1024 || served == 0);
        }
        CHECK(served > 80);
    }
    text_free(&t);
    lab_free(&b);
}

TEST(a_cache_that_holds_all_reads_all_once) {
    test_rng r = {24};
    shape    s = full_shape(8, 4, 60);
    plumbing p = streamed(1, MOCK_START, -1, 1000000);
    lab      b;
    text     t;
    bench    w;
    lab_of(&b, &r, CACHE_VOCAB, CACHE_KEY, &s, 2, 0);
    t = text_of_vocabulary(&b, &r);
    expect_vocabulary(&b, &t);
    CHECK_EQ(bench_open(&w, &b, &p), L3_OK);
    w.mocks[0].touched = (unsigned char *)zeroed(b.image.n, 1);
    for (int i = 0; i < 500; i++) request(&w, &t, &r, 0);
    for (size_t i = 0; i < b.image.n; i++) CHECK(w.mocks[0].touched[i] <= 1);
    free(w.mocks[0].touched);
    bench_close(&w);
    text_free(&t);
    lab_free(&b);
}

/* ---- sources of the library's own ---- */

TEST(memory_source) {
    test_rng r = {25};
    lab      b;
    text     t;
    lab_random(&b, &r, 17, 2, 1);
    t = random_text(&b, &r, 12);
    baseline(&b, &t);
    const l3_source memory = l3_source_memory(b.bytes, b.image.n);
    plumbing        p      = streamed(0, 0, 0, 2000);
    p.instead              = &memory;
    CHECK_EQ(memory.size, b.image.n);
    same_bits(&b, &t, &p, 12);
    p.config.verify = L3_VERIFY_ALL;
    same_bits(&b, &t, &p, 1);
    text_free(&t);
    lab_free(&b);
}

static void through_file(const lab *b, const text *t, const char *path, l3_file_mode mode) {
    l3_file  f;
    plumbing p = streamed(0, 0, 0, 2000);
    REQUIRE(l3_source_open_file(&f, path, mode, NULL) == L3_OK);
    CHECK_EQ(f.source.size, b->image.n);
    CHECK((f.source.map != NULL) == (mode == L3_FILE_MAP));
    p.instead = &f.source;
    same_bits(b, t, &p, 12);
    p.window_over = -1;
    same_bits(b, t, &p, 5);
    l3_source_close_file(&f);
}

TEST(files) {
    test_rng r = {26};
    lab      b;
    text     t;
    char     path[600];
    l3_file  f;
    l3_error err;
    lab_random(&b, &r, 100, 2, 1);
    t = random_text(&b, &r, 12);
    baseline(&b, &t);
    test_temp("layer.bin", path, sizeof path);
    REQUIRE(test_write(path, b.bytes, b.image.n));
    through_file(&b, &t, path, L3_FILE_MAP);
    through_file(&b, &t, path, L3_FILE_READ);
    CHECK_EQ(l3_source_open_file(&f, test_temp("absent", path, sizeof path), L3_FILE_MAP, &err), L3_ERR_IO);
    CHECK(err.code == L3_ERR_IO && err.io == -ENOENT && strstr(err.text, "absent"));
    test_temp("empty", path, sizeof path);
    CHECK(test_write(path, "", 0));
    CHECK_EQ(l3_source_open_file(&f, path, L3_FILE_READ, &err), L3_ERR_IO);
    CHECK_EQ(l3_source_open_file(&f, test_get()->temp, L3_FILE_READ, &err), L3_ERR_IO);
    text_free(&t);
    lab_free(&b);
}

int main(void) {
    RUN(every_variation);
    RUN(every_type_and_size);
    RUN(thousands_of_rows);
    RUN(rising_scores);
    RUN(sums_in_the_documented_order);
    RUN(no_rows_at_all);
    RUN(every_window);
    RUN(too_small_a_window);
    RUN(jobs_make_no_difference);
    RUN(every_batch_size);
#ifdef L3_THREADS
    RUN(pools_run_every_piece_once);
    RUN(pools_run_pieces_at_once);
    RUN(pool_memory);
#endif
    RUN(layers_in_any_order);
    RUN(rows_are_read_once_a_batch);
    RUN(rows_are_hinted_when_known);
    RUN(frequent_tokens_stay_in_the_cache);
    RUN(the_cache_follows_the_text);
    RUN(moving_is_paid_for_by_reading);
    RUN(cache_changes_nothing);
    RUN(a_cache_that_holds_all_reads_all_once);
    RUN(memory_source);
    RUN(files);
#ifdef L3_THREADS
    free_pools();
#endif
    return test_report("layer");
}
