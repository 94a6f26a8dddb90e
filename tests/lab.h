/* lab.h - lookup layers for tests: random ones, with the same numbers as doubles for ref.c, and everything needed to
 * run them over mock sources. Needs l3.h with its implementation, make_model.c and ref.c. */
#ifndef TEST_LAB_H
#define TEST_LAB_H

#include "guard.h"
#include "jobs.h"
#include "levels.h"
#include "make_model.h"
#include "mock.h"
#include "ref.h"
#include "test.h"

enum { MAX_LAYERS = 3, MAX_N = 40 };

/* ---- random layers: an image of bytes, tensors at odd places in it, and the same numbers as doubles ---- */

typedef struct shape {
    uint32_t value, up; /* up 0: absent */
    int      row_type, weight_type, vector_type;
    bool     tied, query_norm, query_weight, key_norm, layer_norm, up_weight, up_bias, residual;
    float    score_scale, epsilon;
    uint32_t heavy; /* rows of one token */
} shape;

/* A layer in doubles. */
typedef struct exact {
    ref_lookup_layer ref;
    double          *owned[6], *rows;
    size_t           row_length;
    uint32_t        *first; /* (vocab + 1,) */
} exact;

typedef struct lab {
    uint32_t       vocab, key, n_layers;
    l3_lookup      layers[MAX_LAYERS]; /* tensors have neither data nor source yet */
    exact          exact[MAX_LAYERS];
    mk_buf         image;
    unsigned char *bytes; /* the image once more, of exactly its size, at an odd address */
} lab;

static inline void *zeroed(size_t count, size_t size) {
    void *p = calloc(count ? count : 1, size);
    if (!p) abort();
    return p;
}

static inline uint32_t pick(test_rng *r, const uint32_t *from, uint32_t n) { return from[test_below(r, n)]; }

static inline l3_tensor tensor_here(lab *b, test_rng *r, int type, uint32_t rows, uint32_t cols) {
    l3_tensor t;
    for (uint32_t i = test_below(r, 40); i > 0; i--) mk_put_u8(&b->image, test_below(r, 256));
    memset(&t, 0, sizeof t);
    t.offset = b->image.n;
    t.rows   = rows;
    t.cols   = cols;
    t.type   = type;
    return t;
}

static inline l3_tensor add_tensor(lab *b, test_rng *r, int type, uint32_t rows, uint32_t cols, double mean,
                                   double deviation, double **numbers) {
    const l3_tensor t   = tensor_here(b, r, type, rows, cols);
    float          *row = (float *)zeroed(cols, sizeof *row);
    for (uint32_t i = 0; i < rows; i++) {
        for (uint32_t j = 0; j < cols; j++) row[j] = (float)(mean + deviation * test_normal(r));
        mk_quantize(&b->image, (uint32_t)type, row, cols);
    }
    *numbers = (double *)zeroed((size_t)rows * cols, sizeof **numbers);
    if (!ref_dequantize((uint32_t)type, b->image.data + t.offset, (size_t)rows * cols, *numbers)) abort();
    free(row);
    return t;
}

/* A matrix whose rows are no whole blocks becomes F16. */
static inline l3_tensor add_matrix(lab *b, test_rng *r, int type, uint32_t rows, uint32_t cols, double **numbers) {
    const int fits = cols % l3_type_block(type) == 0;
    return add_tensor(b, r, fits ? type : L3_F16, rows, cols, 0, 1 / sqrt((double)cols), numbers);
}

/* 0 to 40 rows for most tokens, many for one. */
static inline uint32_t add_offsets(lab *b, test_rng *r, const shape *s, l3_tensor *offsets, uint32_t *first) {
    static const uint32_t counts[] = {0, 1, 1, 2, 3, 5, 17, 40};
    const uint32_t        heavy    = test_below(r, b->vocab);
    for (uint32_t t = 0; t < b->vocab; t++) first[t + 1] = first[t] + (t == heavy ? s->heavy : pick(r, counts, 8));
    *offsets = tensor_here(b, r, L3_I32, 1, b->vocab + 1);
    for (uint32_t t = 0; t <= b->vocab; t++) mk_put_u32(&b->image, first[t]);
    return first[b->vocab];
}

static inline void add_checksums(lab *b, test_rng *r, l3_lookup *l, const uint32_t *first) {
    const size_t row = (size_t)l3_row_bytes(l->rows.type, l->rows.cols);
    l->checksums     = tensor_here(b, r, L3_I32, 1, b->vocab);
    for (uint32_t t = 0; t < b->vocab; t++) {
        const unsigned char *rows = b->image.data + l->rows.offset + first[t] * row;
        mk_put_u32(&b->image, mk_crc32(0, rows, (first[t + 1] - first[t]) * row));
    }
}

static inline void set_shape(const lab *b, const shape *s, l3_lookup *l) {
    memset(l, 0, sizeof *l);
    l->vocab        = b->vocab;
    l->key_length   = b->key;
    l->value_length = s->tied ? b->key : s->value;
    l->up_length    = s->up ? s->up : l->value_length;
    l->tied         = s->tied;
    l->query_norm   = s->query_norm;
    l->key_norm     = s->key_norm;
    l->layer_norm   = s->layer_norm;
    l->residual     = s->residual;
    l->score_scale  = s->score_scale;
    l->norm_epsilon = s->epsilon;
}

static inline void set_reference(const l3_lookup *l, exact *e) {
    ref_lookup_layer *f = &e->ref;
    f->d_in             = l->key_length;
    f->d_emb            = l->value_length;
    f->d_up             = l->up_length;
    f->tied             = l->tied;
    f->query_norm       = l->query_norm;
    f->key_norm         = l->key_norm;
    f->layer_norm       = l->layer_norm;
    f->residual         = l->residual;
    f->score_scale      = (double)l->score_scale;
    f->epsilon          = (double)l->norm_epsilon;
    f->query_weight     = e->owned[1];
    f->up               = e->owned[2];
    f->norm_weight      = e->owned[3];
    f->norm_bias        = e->owned[4];
    f->mix              = e->owned[5];
    e->rows             = e->owned[0];
    e->row_length       = l->rows.cols;
}

static inline void add_layer(lab *b, test_rng *r, const shape *s, int checksums) {
    l3_lookup     *l      = &b->layers[b->n_layers];
    exact         *e      = &b->exact[b->n_layers++];
    const double   spread = 1.5 / sqrt((double)b->key);
    const uint32_t width  = s->tied ? b->key : b->key + s->value;
    memset(e, 0, sizeof *e);
    e->first = (uint32_t *)zeroed(b->vocab + 1, sizeof *e->first);
    set_shape(b, s, l);
    l->row_count = add_offsets(b, r, s, &l->offsets, e->first);
    l->rows      = add_tensor(b, r, s->row_type, l->row_count, width, 0, spread, &e->owned[0]);
    if (s->query_weight) l->query_norm_weight = add_tensor(b, r, s->vector_type, 1, b->key, 1, 0.1, &e->owned[1]);
    if (s->up) l->up = add_matrix(b, r, s->weight_type, s->up, l->value_length, &e->owned[2]);
    if (s->up_weight) l->up_norm_weight = add_tensor(b, r, s->vector_type, 1, l->up_length, 1, 0.1, &e->owned[3]);
    if (s->up_bias) l->up_norm_bias = add_tensor(b, r, s->vector_type, 1, l->up_length, 0, 0.1, &e->owned[4]);
    l->mix = add_matrix(b, r, s->weight_type, b->key, l->up_length + b->key, &e->owned[5]);
    if (checksums) add_checksums(b, r, l, e->first);
    set_reference(l, e);
}

static inline void lab_close_image(lab *b) {
    unsigned char *p = (unsigned char *)zeroed(b->image.n + 1, 1);
    memcpy(p + 1, b->image.data, b->image.n);
    b->bytes = p + 1;
}

static inline void lab_free(lab *b) {
    for (uint32_t i = 0; i < b->n_layers; i++) {
        for (int k = 0; k < 6; k++) free(b->exact[i].owned[k]);
        free(b->exact[i].first);
    }
    free(b->image.data);
    free(b->bytes - 1);
}

/* ---- shapes ---- */

enum { VARIATIONS = 3 * 2 * 6 * 2 * 2 * 2 };

/* Every combination of the switches. */
static inline void set_variation(shape *s, uint32_t v) {
    const uint32_t query = v % 3, norm = v / 6 % 6;
    s->query_norm   = query > 0;
    s->query_weight = query > 1;
    s->key_norm     = v / 3 % 2;
    s->layer_norm   = norm >= 2;
    s->up_weight    = norm % 2;
    s->up_bias      = norm >= 4;
    s->tied         = v / 36 % 2;
    s->residual     = v / 72 % 2;
    if (v / 144 % 2) s->up = 0;
}

/* A key length goes with the row types whose blocks it holds. */
static inline int random_row_type(test_rng *r, uint32_t key) {
    static const uint32_t kinds[] = {L3_F32, L3_F16, L3_BF16, L3_Q8_0, L3_Q4_0, L3_Q6_K, L3_Q6_K, L3_Q6_K};
    return (int)pick(r, kinds, key % 256 == 0 ? 8 : key % 32 == 0 ? 5 : 3);
}

static inline shape random_shape(test_rng *r, uint32_t key, uint32_t variation) {
    static const uint32_t lengths[] = {1, 7, 33, 160, 32, 64, 96, 96}, longs[] = {256, 512};
    static const uint32_t ups[]     = {5, 32, 64, 96, 256, 31, 1, 130};
    static const uint32_t weights[] = {L3_F32, L3_F16, L3_BF16, L3_Q8_0, L3_Q4_0, L3_Q6_K};
    static const float    scales[] = {1, 1, 0.125f, 2.5f, -0.5f, 0}, epsilons[] = {1e-5f, 1e-6f, 1e-2f};
    shape                 s;
    uint32_t              block;
    memset(&s, 0, sizeof s);
    s.row_type    = random_row_type(r, key);
    block         = l3_type_block(s.row_type);
    s.value       = block == 1 ? pick(r, lengths, 8) : block == 32 ? pick(r, lengths + 3, 5) : pick(r, longs, 2);
    s.up          = pick(r, ups, 8);
    s.weight_type = (int)pick(r, weights, 6);
    s.vector_type = (int)pick(r, weights, 3);
    s.epsilon     = epsilons[test_below(r, 3)];
    s.score_scale = scales[test_below(r, 6)];
    s.heavy       = 1 + test_below(r, 200);
    set_variation(&s, variation);
    if (s.key_norm) s.score_scale /= sqrtf((float)key); /* large scores round more: test rising_scores has some */
    return s;
}

static inline void lab_random(lab *b, test_rng *r, uint32_t variation, uint32_t n_layers, int checksums) {
    static const uint32_t keys[] = {1, 7, 33, 64, 96, 160, 32, 256};
    memset(b, 0, sizeof *b);
    b->vocab = 4 + test_below(r, 20);
    b->key   = pick(r, keys, 8);
    for (uint32_t i = 0; i < n_layers; i++) {
        const shape s = random_shape(r, b->key, i ? test_below(r, VARIATIONS) : variation);
        add_layer(b, r, &s, checksums);
    }
    lab_close_image(b);
}

/* ---- a work over a lab ---- */

enum { IN_DATA, IN_SOURCE, IN_BOTH };

/* How the bytes arrive. Index 0 is for rows, 1 for everything else. */
typedef struct plumbing {
    l3_work_config   config;
    int              place[2];
    uint32_t         align[2], map_some[2];
    unsigned         flags[2];
    int              window_over; /* bytes of window above the least; -1: the config's own */
    int              fill;        /* of the block before it is used */
    bool             stoppable;   /* with a progress callback */
    const l3_source *instead;     /* of the mock source */
} plumbing;

/* A progress callback that stops the stop_at-th time. */
typedef struct stopper {
    uint32_t calls, stop_at;
} stopper;

typedef struct bench {
    const lab *lab;
    plumbing   p;
    mock       mocks[2];
    l3_lookup  layers[MAX_LAYERS];
    guard      block;
    stopper    stop;
    l3_work   *work;
    l3_error   err;
} bench;

static inline int stop_when_due(void *user) {
    stopper *s = (stopper *)user;
    return ++s->calls == s->stop_at;
}

static inline void place_tensor(bench *w, l3_tensor *t, int which) {
    if (t->cols == 0) return;
    if (w->p.place[which] != IN_SOURCE) t->data = w->lab->bytes + t->offset;
    if (w->p.place[which] != IN_DATA) t->source = &w->mocks[which].source;
}

static inline void place_layers(bench *w) {
    for (uint32_t i = 0; i < w->lab->n_layers; i++) {
        l3_lookup *l = &w->layers[i];
        *l           = w->lab->layers[i];
        place_tensor(w, &l->rows, 0);
        place_tensor(w, &l->offsets, 1);
        place_tensor(w, &l->query_norm_weight, 1);
        place_tensor(w, &l->up, 1);
        place_tensor(w, &l->up_norm_weight, 1);
        place_tensor(w, &l->up_norm_bias, 1);
        place_tensor(w, &l->mix, 1);
        place_tensor(w, &l->checksums, 1);
    }
}

static inline void set_window(bench *w) {
    const size_t least = l3_work_window_min(w->layers, w->lab->n_layers);
    if (w->p.window_over >= 0 && least) w->p.config.window = least + (size_t)w->p.window_over;
}

static inline void place_sources(bench *w) {
    const plumbing *p = &w->p;
    for (int i = 0; i < 2; i++) {
        mock_init(&w->mocks[i], w->lab->bytes, w->lab->image.n, p->align[i], p->map_some[i], p->flags[i]);
        if (p->instead) w->mocks[i].source = *p->instead;
    }
    if (p->stoppable) w->p.config.progress = stop_when_due, w->p.config.progress_user = &w->stop;
}

static inline int bench_open(bench *w, const lab *b, const plumbing *p) {
    size_t size;
    memset(w, 0, sizeof *w);
    w->lab = b;
    w->p   = *p;
    make_exact(&w->p.config);
    place_sources(w);
    place_layers(w);
    for (uint32_t i = 0; i < b->n_layers; i++) CHECK_EQ(l3_lookup_check(&w->layers[i], NULL), L3_OK);
    set_window(w);
    size     = l3_work_size(w->layers, b->n_layers, &w->p.config);
    w->block = guard_new(size, L3_ALIGN, p->fill);
    for (int i = 0; i < 2; i++) {
        mock_reset_counts(&w->mocks[i]);
        w->mocks[i].mem      = w->block.mem;
        w->mocks[i].mem_size = size;
    }
    return l3_work_init(&w->work, w->layers, b->n_layers, &w->p.config, w->block.mem, size, &w->err);
}

static inline void bench_close(bench *w) {
    CHECK(mock_clean(&w->mocks[0]) && mock_clean(&w->mocks[1]));
    CHECK(guard_free(&w->block));
}

/* One layer; after an error x is what it was, and there is nothing left to run. */
static inline int bench_forward(bench *w, uint32_t layer, uint32_t n, float *x) {
    const size_t bytes  = (size_t)n * w->lab->key * sizeof(float);
    float       *before = (float *)zeroed(1, bytes);
    memcpy(before, x, bytes);
    const int code = l3_lookup_forward(w->work, layer, x, &w->err);
    if (code != L3_OK) {
        CHECK_EQ(w->err.code, code);
        CHECK_MEM(x, before, bytes);
        CHECK_EQ(l3_lookup_forward(w->work, layer, x, NULL), L3_ERR_ARGUMENT);
    }
    free(before);
    return code;
}

/* begin, and every layer in turn, for `step` tokens at a time. */
static inline int bench_run(bench *w, const int32_t *tokens, uint32_t n, uint32_t step, float *x) {
    for (uint32_t at = 0; at < n; at += step) {
        const uint32_t now  = n - at < step ? n - at : step;
        int            code = l3_lookup_begin(w->work, tokens + at, now, &w->err);
        for (uint32_t i = 0; code == L3_OK && i < w->lab->n_layers; i++)
            code = bench_forward(w, i, now, x + (size_t)at * w->lab->key);
        if (code != L3_OK) return code;
    }
    return L3_OK;
}

/* ---- texts: tokens, hidden states, and what must come out ---- */

typedef struct text {
    uint32_t n;
    int32_t  tokens[MAX_N];
    size_t   bytes; /* of x and y */
    float   *x, *y;
} text;

static inline text random_text(const lab *b, test_rng *r, uint32_t n) {
    text t;
    t.n     = n;
    t.bytes = (size_t)n * b->key * sizeof(float);
    t.x     = (float *)zeroed(1, t.bytes);
    t.y     = (float *)zeroed(1, t.bytes);
    for (uint32_t i = 0; i < n; i++) t.tokens[i] = (int32_t)test_below(r, b->vocab);
    for (size_t i = 0; i < (size_t)n * b->key; i++) t.x[i] = (float)test_normal(r);
    memcpy(t.y, t.x, t.bytes);
    return t;
}

static inline int is_in(const text *t, int32_t token) {
    for (uint32_t i = 0; i < t->n; i++)
        if (t->tokens[i] == token) return 1;
    return 0;
}

static inline void text_free(text *t) {
    free(t->x);
    free(t->y);
}

static inline double reference_error(const lab *b, uint32_t layer, int32_t token, const float *before,
                                     const float *after) {
    const exact  *e = &b->exact[layer];
    double       *x = (double *)zeroed(b->key, sizeof *x), top = 1, error = 0;
    const double *rows = e->rows + e->first[token] * e->row_length;
    for (uint32_t i = 0; i < b->key; i++) x[i] = (double)before[i];
    ref_lookup(&e->ref, rows, e->first[token + 1] - e->first[token], x, x);
    for (uint32_t i = 0; i < b->key; i++) {
        if (fabs(x[i]) > top) top = fabs(x[i]);
        if (!(fabs(x[i] - (double)after[i]) <= error)) error = fabs(x[i] - (double)after[i]);
    }
    free(x);
    return error / top;
}

/* Fills t->y with everything in memory, one token at a time; returns the largest error against the reference. */
static inline double baseline(const lab *b, text *t) {
    static const plumbing plain = {.fill = 0xcd, .window_over = -1};
    bench                 w;
    double                most   = 0;
    float                *before = (float *)zeroed(b->key, sizeof *before);
    CHECK_EQ(bench_open(&w, b, &plain), L3_OK);
    for (uint32_t i = 0; i < t->n; i++) {
        float *y = t->y + (size_t)i * b->key;
        CHECK_EQ(l3_lookup_begin(w.work, &t->tokens[i], 1, NULL), L3_OK);
        for (uint32_t layer = 0; layer < b->n_layers; layer++) {
            memcpy(before, y, b->key * sizeof *y);
            CHECK_EQ(l3_lookup_forward(w.work, layer, y, NULL), L3_OK);
            const double error = reference_error(b, layer, t->tokens[i], before, y);
            if (!(error <= most)) most = error;
        }
    }
    free(before);
    bench_close(&w);
    return most;
}

/* The text through a work: the bits of the baseline. */
static inline void run_again(bench *w, const text *t, uint32_t step) {
    float *x = (float *)zeroed(1, t->bytes);
    memcpy(x, t->x, t->bytes);
    CHECK_EQ(bench_run(w, t->tokens, t->n, step, x), L3_OK);
    CHECK_MEM(x, t->y, t->bytes);
    free(x);
}

/* What the work says it did is what the sources saw. */
static inline void check_stats(const bench *w) {
    const l3_stats s    = l3_work_stats(w->work);
    const mock    *rows = &w->mocks[0], *rest = &w->mocks[1];
    const uint64_t reads = (uint64_t)rows->reads + rows->starts;
    CHECK_EQ(s.row_bytes_read, rows->asked);
    CHECK_EQ(s.row_reads, reads);
    CHECK_EQ(s.weight_bytes_read, rest->asked);
    CHECK_EQ(rest->starts, 0);
    if (w->p.place[0] != IN_SOURCE) CHECK(reads == 0 && s.cache_hits == 0);
    else CHECK(s.cache_hits <= s.lookups && s.lookups <= reads + s.cache_hits + rows->maps);
    if (w->p.place[1] != IN_SOURCE) CHECK_EQ(rest->reads, 0);
}

static inline void same_bits(const lab *b, const text *t, const plumbing *p, uint32_t step) {
    bench w;
    CHECK_EQ(bench_open(&w, b, p), L3_OK);
    if (w.work) {
        run_again(&w, t, step);
        if (!p->instead) check_stats(&w);
    }
    bench_close(&w);
}

/* ---- random plumbing ---- */

static inline plumbing random_plumbing(test_rng *r) {
    static const uint32_t aligns[] = {0, 1, 2, 16, 256, 512, 4096};
    static const uint32_t caches[] = {0, 0, 500, 1024, 3000, 20000, 1000000};
    plumbing              p;
    memset(&p, 0, sizeof p);
    for (int i = 0; i < 2; i++) {
        p.place[i]    = (int)test_below(r, 3);
        p.align[i]    = pick(r, aligns, 7);
        p.map_some[i] = test_below(r, 2) ? 0 : 1 + test_below(r, 3);
        p.flags[i]    = test_below(r, 4);
        if (p.map_some[i] == 1 && test_below(r, 2)) p.flags[i] = MOCK_NO_READ;
    }
    p.window_over = (int)test_below(r, 1800) - 600;
    if (p.window_over < 0) p.window_over = p.window_over % 2 ? 0 : -1;
    p.config.batch  = 1 + test_below(r, MAX_N);
    p.config.cache  = pick(r, caches, 7);
    p.config.verify = (l3_verify)test_below(r, 3);
    p.config.jobs   = jobs_of(test_below(r, 2) ? test_below(r, 6) : 0);
    p.fill          = test_below(r, 2) ? 0xcd : 0xff;
    return p;
}

/* ---- shapes of one's own ---- */

/* Everything present, F32. */
static inline shape full_shape(uint32_t value, uint32_t up, uint32_t heavy) {
    shape s;
    memset(&s, 0, sizeof s);
    s.value       = value;
    s.up          = up;
    s.heavy       = heavy;
    s.score_scale = 1;
    s.epsilon     = 1e-5f;
    s.query_norm = s.query_weight = s.layer_norm = s.up_weight = s.up_bias = s.residual = true;
    return s;
}

/* n_layers of the same shape. */
static inline void lab_of(lab *b, test_rng *r, uint32_t vocab, uint32_t key, const shape *s, uint32_t n_layers,
                          int checksums) {
    memset(b, 0, sizeof *b);
    b->vocab = vocab;
    b->key   = key;
    for (uint32_t i = 0; i < n_layers; i++) add_layer(b, r, s, checksums);
    lab_close_image(b);
}

/* Rows from one mock source, everything else from another. */
static inline plumbing streamed(uint32_t align, unsigned flags, int window_over, size_t cache) {
    plumbing p;
    memset(&p, 0, sizeof p);
    p.place[0] = p.place[1] = IN_SOURCE;
    p.align[0] = p.align[1] = align;
    p.flags[0] = p.flags[1] = flags;
    p.window_over           = window_over;
    p.config.cache          = cache;
    p.config.batch          = MAX_N;
    p.fill                  = 0xff;
    return p;
}

#endif
