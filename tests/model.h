/* model.h - models, sessions and tokenizers for tests: over bytes in memory, through any kind of source, in blocks of
 * exactly the right size with guards around them. Needs l3_model.h and make_model.h. */
#ifndef TEST_MODEL_H
#define TEST_MODEL_H

#include "guard.h"
#include "levels.h"
#include "live.h"
#include "mock.h"
#include "test.h"

/* ---- files ---- */

typedef struct file {
    unsigned char *bytes; /* NULL: not there */
    size_t         n;
} file;

static inline file file_fixture(const char *name) {
    file f  = {NULL, 0};
    f.bytes = test_read_fixture(name, &f.n);
    return f;
}

static inline file file_make(const mk_spec *spec) {
    file f  = {NULL, 0};
    f.bytes = mk_model(spec, &f.n);
    return f;
}

/* Small and quick, with two lookup layers, row checksums and a token of many rows. */
static inline mk_spec spec_small(void) {
    mk_spec s;
    memset(&s, 0, sizeof s);
    s.seed = 7, s.dim = 32, s.n_blocks = 3, s.n_heads = 2, s.n_kv_heads = 1, s.ffn = 48, s.vocab = 270, s.context = 48;
    s.n_lookups = 2, s.lookup_blocks[1] = 1, s.k = 6, s.heavy_token = 5, s.heavy_rows = 70, s.empty_every = 11;
    s.up_length = 48, s.value_length = 32, s.separate_head = 1, s.checksums = 1;
    return s;
}

/* ---- models: `way` is how the bytes come, all zero for plain reads ---- */

typedef struct way {
    uint32_t align, map_some; /* as in mock_init() */
    unsigned flags;
} way;

static const way MAPPED = {0, 1, 0};

typedef struct rig {
    mock      mock;
    guard     block;
    l3_model *model;
    l3_error  err;
} rig;

/* The rig must not move while it is used. On failure there is nothing to close. */
static inline int rig_open(rig *r, file f, way w) {
    size_t size = 0;
    int    code;
    memset(r, 0, sizeof *r);
    mock_init(&r->mock, f.bytes, f.n, w.align, w.map_some, w.flags);
    if ((code = l3_model_size(&r->mock.source, NULL, &size, &r->err)) != L3_OK) return code;
    r->block = guard_new(size, L3_ALIGN, 0xa5);
    code     = l3_model_open(&r->model, &r->mock.source, NULL, r->block.mem, size, &r->err);
    if (code != L3_OK) CHECK(guard_free(&r->block));
    return code;
}

static inline void rig_close(rig *r) {
    CHECK(guard_free(&r->block));
    CHECK(mock_clean(&r->mock));
}

/* ---- sessions ---- */

typedef struct seat {
    guard       block;
    l3_session *session;
} seat;

static inline int seat_open_as(seat *s, const l3_model *model, const l3_session_config *config, l3_error *err) {
    const size_t size = l3_session_size(model, config);
    s->block          = guard_new(size, L3_ALIGN, 0xff); /* floats: NaN */
    const int code    = l3_session_init(&s->session, model, config, s->block.mem, size, err);
    if (code != L3_OK) CHECK(guard_free(&s->block));
    return code;
}

/* In exact mode, whatever the configuration says. */
static inline int seat_open(seat *s, const l3_model *model, const l3_session_config *config, l3_error *err) {
    l3_session_config c;
    memset(&c, 0, sizeof c);
    if (config) c = *config;
    make_exact(&c.work);
    return seat_open_as(s, model, &c, err);
}

static inline void seat_close(seat *s) { CHECK(guard_free(&s->block)); }

/* ---- tokenizers ---- */

typedef struct desk {
    guard         block;
    l3_tokenizer *tokenizer;
} desk;

static inline int desk_open(desk *d, const l3_model *model, size_t run, l3_error *err) {
    const size_t size = l3_tokenizer_size(model, run);
    d->block          = guard_new(size, L3_ALIGN, 0xa5);
    const int code    = l3_tokenizer_init(&d->tokenizer, model, run, d->block.mem, size, err);
    if (code != L3_OK) CHECK(guard_free(&d->block));
    return code;
}

static inline void desk_close(desk *d) { CHECK(guard_free(&d->block)); }

/* ---- a source that changes its bytes between reads ---- */

typedef struct liar {
    file     f;
    test_rng rng;
    uint32_t one_in; /* reads are true but for one in so many */
} liar;

static inline int lie(void *user, uint64_t off, void *dst, size_t n) {
    liar          *l     = (liar *)user;
    unsigned char *bytes = (unsigned char *)dst;
    memcpy(dst, l->f.bytes + off, n);
    for (uint32_t flips = test_below(&l->rng, l->one_in) ? 0 : 1 + test_below(&l->rng, 4); n && flips > 0; flips--)
        bytes[test_below(&l->rng, (uint32_t)n)] ^= (unsigned char)(1u << test_below(&l->rng, 8));
    return 0;
}

static inline l3_source liar_source(liar *l, uint32_t align) {
    l3_source s;
    memset(&s, 0, sizeof s);
    s.user = l, s.size = l->f.n, s.read = lie, s.align = align;
    return s;
}

/* ---- numbers ---- */

static inline void *must(size_t bytes) {
    void *p = calloc(bytes ? bytes : 1, 1);
    if (!p) abort();
    return p;
}

static inline float *new_floats(size_t rows, size_t cols) { return (float *)must(rows * cols * sizeof(float)); }

static inline int32_t *random_ids(test_rng *r, uint32_t vocab, uint32_t n) {
    int32_t *ids = (int32_t *)must(n * sizeof *ids);
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)(i && test_below(r, 4) == 0 ? (uint32_t)ids[test_below(r, i)] : test_below(r, vocab));
    return ids;
}

/* Logits after every position (n, vocab), in one prefill on the CPU, in exact mode. */
static inline float *logits_of(const l3_model *model, const int32_t *ids, uint32_t n) {
    float   *all = new_floats(n, l3_model_info(model)->vocab);
    l3_error err;
    seat     s;
    if (CHECK_EQ(seat_open(&s, model, NULL, &err), L3_OK)) {
        CHECK_EQ(l3_prefill(s.session, ids, n, all, &err), L3_OK);
        seat_close(&s);
    }
    return all;
}

/* The lowest ID of the highest logit. */
static inline int32_t best(const float *logits, uint32_t vocab) {
    uint32_t at = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[at]) at = i;
    return (int32_t)at;
}

#endif
