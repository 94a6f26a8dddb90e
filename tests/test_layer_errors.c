/* test_layer_errors.c - the lookup layer of l3.h when things go wrong: drivers that fail, callers that stop, bytes that
 * do not match their checksums, memory that is too small, layers and sources that cannot work. */
#define L3_NO_SIMD /* nothing here depends on kernels: compiles in half the time */
#define L3_IMPLEMENTATION
#include "../l3.h"

#include "lab.h"

/* ---- arguments ---- */

TEST(wrong_arguments) {
    static const int32_t wrong[] = {-1, 6, INT32_MIN, INT32_MAX};
    test_rng             r       = {10};
    const shape          s       = full_shape(4, 4, 3);
    plumbing             p       = streamed(1, MOCK_START, -1, 0);
    lab                  b;
    bench                w;
    text                 t;
    lab_of(&b, &r, 6, 5, &s, 1, 0);
    t              = random_text(&b, &r, 4);
    p.config.batch = 3;
    CHECK_EQ(bench_open(&w, &b, &p), L3_OK);
    CHECK_EQ(l3_lookup_forward(w.work, 0, t.y, &w.err), L3_ERR_ARGUMENT);
    CHECK_EQ(l3_lookup_begin(w.work, NULL, 0, &w.err), L3_OK);
    CHECK_EQ(l3_lookup_forward(w.work, 0, t.y, &w.err), L3_ERR_ARGUMENT);
    CHECK_EQ(l3_lookup_begin(w.work, t.tokens, 4, &w.err), L3_ERR_ARGUMENT);
    for (int i = 0; i < 4; i++) {
        t.tokens[1] = wrong[i];
        CHECK_EQ(l3_lookup_begin(w.work, t.tokens, 2, &w.err), L3_ERR_TOKEN);
        CHECK_EQ(l3_lookup_forward(w.work, 0, t.y, &w.err), L3_ERR_ARGUMENT);
        l3_lookup_hint(w.work, t.tokens, 2);
    }
    memset(&w.err, 0x77, sizeof w.err);
    CHECK_EQ(l3_lookup_begin(w.work, t.tokens + 2, 2, &w.err), L3_OK);
    CHECK_EQ(l3_lookup_forward(w.work, 0, t.y, &w.err), L3_OK);
    CHECK_EQ(w.err.code, 0x77777777);
    CHECK_EQ(l3_lookup_forward(w.work, 1, t.y, &w.err), L3_ERR_ARGUMENT);
    bench_close(&w);
    text_free(&t);
    lab_free(&b);
}

/* ---- memory ---- */

TEST(memory_is_exact) {
    test_rng r = {11};
    for (int i = 0; i < 60; i++) {
        const plumbing p = random_plumbing(&r);
        lab            b;
        bench          w;
        l3_work       *work = NULL;
        lab_random(&b, &r, (uint32_t)i * 5, 1 + (uint32_t)i % MAX_LAYERS, 0);
        CHECK_EQ(bench_open(&w, &b, &p), L3_OK);
        unsigned char *m    = w.block.mem;
        const size_t   size = w.block.size;
        CHECK_EQ(l3_work_init(&work, w.layers, b.n_layers, &w.p.config, m, size - 1, &w.err), L3_ERR_MEMORY);
        CHECK_EQ(l3_work_init(&work, w.layers, b.n_layers, &w.p.config, m, 0, &w.err), L3_ERR_MEMORY);
        CHECK_EQ(l3_work_init(&work, w.layers, b.n_layers, &w.p.config, m + 1, size, &w.err), L3_ERR_MEMORY);
        CHECK_EQ(l3_work_init(&work, w.layers, b.n_layers, &w.p.config, m + L3_ALIGN / 2, size, &w.err), L3_ERR_MEMORY);
        CHECK_EQ(l3_work_init(&work, w.layers, b.n_layers, &w.p.config, NULL, size, NULL), L3_ERR_MEMORY);
        CHECK(work == NULL && w.err.code == L3_ERR_MEMORY);
        bench_close(&w);
        lab_free(&b);
    }
}

TEST(absurd_sizes) {
    test_rng    r = {12};
    const shape s = full_shape(64, 64, 3);
    plumbing    p = streamed(1, 0, -1, 0);
    lab         b;
    bench       w;
    lab_of(&b, &r, 6, 64, &s, 1, 0);
    CHECK_EQ(bench_open(&w, &b, &p), L3_OK);
    w.p.config.batch = UINT32_MAX;
    CHECK_EQ(l3_work_init(&w.work, w.layers, 1, &w.p.config, w.block.mem, w.block.size, &w.err), L3_ERR_MEMORY);
    w.p.config.batch  = 1;
    w.p.config.window = SIZE_MAX;
    CHECK_EQ(l3_work_size(w.layers, 1, &w.p.config), 0);
    CHECK_EQ(l3_work_init(&w.work, w.layers, 1, &w.p.config, w.block.mem, w.block.size, &w.err), L3_ERR_MEMORY);
    w.p.config.window = 0;
    w.p.config.cache  = SIZE_MAX;
    CHECK_EQ(l3_work_size(w.layers, 1, &w.p.config), 0);
    bench_close(&w);
    lab_free(&b);
}

/* Window and cache cost nothing where everything is in memory. */
TEST(memory_is_not_wasted) {
    test_rng    r = {13};
    const shape s = full_shape(64, 64, 30);
    plumbing    p = {.window_over = -1, .place = {IN_BOTH, IN_BOTH}, .align = {4096, 4096}};
    lab         b;
    bench       w;
    lab_of(&b, &r, 6, 64, &s, 1, 0);
    CHECK_EQ(bench_open(&w, &b, &p), L3_OK);
    const size_t least = w.block.size;
    CHECK_EQ(l3_work_window_min(w.layers, 1), 0);
    w.p.config.window = 1 << 20;
    w.p.config.cache  = 1 << 20;
    CHECK_EQ(l3_work_size(w.layers, 1, &w.p.config), least);
    w.p.config.level = L3_LEVEL_PLAIN;
    CHECK(l3_work_size(w.layers, 1, &w.p.config) < 32 * (64 * 6 * sizeof(float) + 64) + 8192);
    bench_close(&w);
    lab_free(&b);
}

/* A strict source costs the padding of one window, or of two where reads are started. */
TEST(alignment_costs_little) {
    test_rng    r = {29};
    const shape s = full_shape(64, 64, 30);
    size_t      size[2][2];
    lab         b;
    lab_of(&b, &r, 6, 64, &s, 1, 0);
    for (int k = 0; k < 4; k++) {
        plumbing p = streamed(k & 1 ? 4096 : 1, k & 2 ? MOCK_START : 0, -1, 0);
        bench    w;
        CHECK_EQ(bench_open(&w, &b, &p), L3_OK);
        size[k / 2][k % 2] = w.block.size;
        bench_close(&w);
    }
    CHECK_EQ(size[0][1] - size[0][0], 4096 - L3_ALIGN);
    CHECK_EQ(size[1][1] - size[1][0], 2 * (4096 - L3_ALIGN));
    CHECK_EQ(size[1][0] - size[0][0], 65536);
    lab_free(&b);
}

TEST(no_layers) {
    static const int32_t tokens[] = {5, 3, 1000000};
    const size_t         size     = l3_work_size(NULL, 0, NULL);
    guard                g        = guard_new(size, L3_ALIGN, 0xcd);
    l3_work             *work     = NULL;
    float                x        = 0;
    REQUIRE(size > 0 && l3_work_init(&work, NULL, 0, NULL, g.mem, size, NULL) == L3_OK);
    l3_lookup_hint(work, tokens, 3);
    CHECK_EQ(l3_lookup_begin(work, tokens, 3, NULL), L3_OK);
    CHECK_EQ(l3_lookup_forward(work, 0, &x, NULL), L3_ERR_ARGUMENT);
    CHECK(guard_free(&g));
}

TEST(layers_that_do_not_fit_together) {
    test_rng    r = {14};
    const shape s = full_shape(4, 4, 3);
    plumbing    p = streamed(1, 0, -1, 0);
    lab         b;
    bench       w;
    lab_of(&b, &r, 6, 5, &s, 2, 0);
    CHECK_EQ(bench_open(&w, &b, &p), L3_OK);
    w.layers[1].vocab++;
    CHECK_EQ(l3_work_init(&w.work, w.layers, 2, &w.p.config, w.block.mem, w.block.size, &w.err), L3_ERR_ARGUMENT);
    w.layers[1].vocab--;
    w.layers[1].key_length--;
    CHECK_EQ(l3_work_init(&w.work, w.layers, 2, &w.p.config, w.block.mem, w.block.size, &w.err), L3_ERR_ARGUMENT);
    bench_close(&w);
    lab_free(&b);
}

/* ---- interruptions ---- */

enum { FAIL_ROWS, FAIL_WEIGHTS, STOP };

static uint32_t *event_count(bench *w, int event) { return event == STOP ? &w->stop.calls : &w->mocks[event].calls; }

static void event_at(bench *w, int event, uint32_t at) {
    if (event == STOP) w->stop.stop_at = at;
    else w->mocks[event].fail_at = at;
}

static void check_interruption(const bench *w, int event, int code) {
    CHECK_EQ(code, event == STOP ? L3_ERR_CANCELLED : L3_ERR_IO);
    CHECK_EQ(w->err.code, code);
    CHECK_EQ(w->err.io, event == STOP ? 0 : MOCK_FAILURE);
    CHECK(w->err.text[0] != '\0');
    CHECK(event != FAIL_ROWS || w->err.offset >= w->lab->layers[0].rows.offset);
}

/* The at-th event fails. After it the same work gives right results, then once more from its cache. False: that many
 * events there were not. */
static int interrupt(const lab *b, const text *t, const plumbing *p, int event, uint32_t at) {
    bench  w;
    float *x = (float *)zeroed(1, t->bytes);
    CHECK_EQ(bench_open(&w, b, p), L3_OK);
    memcpy(x, t->x, t->bytes);
    event_at(&w, event, at);
    const int code  = bench_run(&w, t->tokens, t->n, t->n / 2, x);
    const int there = *event_count(&w, event) >= at;
    if (there) check_interruption(&w, event, code);
    else CHECK_EQ(code, L3_OK);
    for (int round = 0; there && round < 2; round++) run_again(&w, t, t->n / 2);
    bench_close(&w);
    free(x);
    return there;
}

static void interrupt_everywhere(int event, int stoppable) {
    static const size_t caches[] = {0, 1500, 100000};
    test_rng            r        = {17};
    const shape         s        = full_shape(8, 8, 10);
    uint32_t            events   = 0;
    lab                 b;
    text                t;
    lab_of(&b, &r, 6, 8, &s, 2, 1);
    t = random_text(&b, &r, 8);
    baseline(&b, &t);
    for (int k = 0; k < 12; k++) {
        plumbing p  = streamed(k % 2 ? 16 : 1, k & 2 ? MOCK_START : 0, k & 4 ? 200 : -1, caches[k % 3]);
        p.stoppable = stoppable;
        for (uint32_t at = 1; interrupt(&b, &t, &p, event, at); at++) events++;
    }
    CHECK(events > 100);
    text_free(&t);
    lab_free(&b);
}

TEST(rows_that_cannot_be_read) { interrupt_everywhere(FAIL_ROWS, 0); }
TEST(weights_that_cannot_be_read) { interrupt_everywhere(FAIL_WEIGHTS, 0); }
TEST(stopping_anywhere) { interrupt_everywhere(STOP, 1); }

/* The caller gets to speak after every piece of work, however small the window makes it. */
TEST(progress_between_reads) {
    test_rng    r = {27};
    const shape s = full_shape(8, 8, 10);
    plumbing    p = streamed(1, MOCK_START, 0, 0);
    lab         b;
    text        t;
    bench       w;
    p.stoppable = true;
    lab_of(&b, &r, 6, 8, &s, 2, 0);
    t = random_text(&b, &r, 8);
    CHECK_EQ(bench_open(&w, &b, &p), L3_OK);
    CHECK_EQ(bench_run(&w, t.tokens, t.n, t.n, t.x), L3_OK);
    CHECK(w.stop.calls >= w.mocks[0].starts + b.layers[0].mix.rows + b.layers[1].mix.rows);
    bench_close(&w);
    text_free(&t);
    lab_free(&b);
}

/* ---- checksums ---- */

typedef struct verifying {
    int       place;
    l3_verify verify;
    unsigned  flags;
    int       window_over;
    uint32_t  map_some;
    int       noticed;
} verifying;

static const verifying verifyings[] = {{IN_SOURCE, L3_VERIFY_READS, 0, -1, 0, 1},
                                       {IN_SOURCE, L3_VERIFY_READS, 0, 0, 0, 1},
                                       {IN_SOURCE, L3_VERIFY_READS, MOCK_START, -1, 0, 1},
                                       {IN_SOURCE, L3_VERIFY_READS, MOCK_START, 100, 0, 1},
                                       {IN_SOURCE, L3_VERIFY_ALL, 0, -1, 0, 1},
                                       {IN_SOURCE, L3_VERIFY_NONE, 0, -1, 0, 0},
                                       {IN_SOURCE, L3_VERIFY_READS, 0, -1, 1, 0},
                                       {IN_SOURCE, L3_VERIFY_ALL, 0, -1, 1, 1},
                                       {IN_DATA, L3_VERIFY_READS, 0, -1, 0, 0},
                                       {IN_DATA, L3_VERIFY_ALL, 0, -1, 0, 1},
                                       {IN_DATA, L3_VERIFY_NONE, 0, -1, 0, 0},
                                       {IN_BOTH, L3_VERIFY_ALL, 0, -1, 0, 1}};

static plumbing verifying_plumbing(const verifying *v, size_t cache) {
    plumbing p      = streamed(1, v->flags, v->window_over, cache);
    p.place[0]      = v->place;
    p.map_some[0]   = v->map_some;
    p.config.verify = v->verify;
    return p;
}

/* With a damaged byte of token 2's rows: noticed or not, then mended, and the same work is right again. */
static void damage_rows(lab *b, const text *t, const verifying *v, size_t cache, uint64_t at) {
    const plumbing   p = verifying_plumbing(v, cache);
    const l3_lookup *l = &b->layers[1];
    bench            w;
    float           *x = (float *)zeroed(1, t->bytes);
    memcpy(x, t->x, t->bytes);
    CHECK_EQ(bench_open(&w, b, &p), L3_OK);
    b->bytes[at] ^= 1;
    CHECK_EQ(bench_run(&w, t->tokens, t->n, t->n, x), v->noticed ? L3_ERR_CHECKSUM : L3_OK);
    if (v->noticed) {
        CHECK_EQ(w.err.code, L3_ERR_CHECKSUM);
        CHECK_EQ(w.err.offset, l->rows.offset + b->exact[1].first[2] * l3_row_bytes(l->rows.type, l->rows.cols));
        CHECK(strstr(w.err.text, "token 2") != NULL);
    }
    b->bytes[at] ^= 1;
    if (v->noticed || cache == 0) run_again(&w, t, t->n);
    bench_close(&w);
    free(x);
}

TEST(damaged_rows) {
    test_rng    r = {18};
    const shape s = full_shape(8, 8, 30);
    lab         b;
    text        t;
    do lab_of(&b, &r, 5, 8, &s, 2, 1);
    while (b.exact[1].first[3] - b.exact[1].first[2] < 5 && (lab_free(&b), 1));
    t = random_text(&b, &r, 20);
    baseline(&b, &t);
    const size_t   row   = (size_t)l3_row_bytes(b.layers[1].rows.type, b.layers[1].rows.cols);
    const uint64_t first = b.layers[1].rows.offset + b.exact[1].first[2] * row;
    const uint64_t last  = b.layers[1].rows.offset + b.exact[1].first[3] * row - 1;
    REQUIRE(is_in(&t, 2));
    for (size_t i = 0; i < sizeof verifyings / sizeof *verifyings; i++) {
        damage_rows(&b, &t, &verifyings[i], 0, first);
        damage_rows(&b, &t, &verifyings[i], 100000, last);
        damage_rows(&b, &t, &verifyings[i], 3000, (first + last) / 2);
    }
    text_free(&t);
    lab_free(&b);
}

/* Rows that were checked when they were read need no second look; tokens that are not used need none at all. */
TEST(undamaged_tokens_pass) {
    test_rng       r = {19};
    const shape    s = full_shape(8, 8, 30);
    const plumbing p = streamed(1, 0, -1, 100000);
    lab            b;
    text           t;
    bench          w;
    lab_of(&b, &r, 5, 8, &s, 1, 1);
    t = random_text(&b, &r, 20);
    for (uint32_t i = 0; i < t.n; i++) t.tokens[i] = i % 2 ? 1 : 3;
    baseline(&b, &t);
    CHECK_EQ(bench_open(&w, &b, &p), L3_OK);
    for (int32_t token = 0; token < 5; token += 2)
        for (uint32_t i = 0; i < 4; i++) b.bytes[b.layers[0].checksums.offset + 4 * (uint32_t)token + i] ^= 0xff;
    run_again(&w, &t, t.n);
    memset(b.bytes + b.layers[0].rows.offset, 0, (size_t)l3__tensor_bytes(&b.layers[0].rows));
    run_again(&w, &t, t.n);
    bench_close(&w);
    text_free(&t);
    lab_free(&b);
}

/* ---- l3_lookup_check ---- */

typedef struct wrong_field {
    size_t      at; /* of a 32-bit field of l3_lookup */
    uint32_t    value;
    int         code;
    const char *text; /* is in the message */
} wrong_field;

#define FIELD(name) offsetof(l3_lookup, name)
enum { NAN_BITS = 0x7fc00000, INF_BITS = 0x7f800000 };

/* Of a layer with vocabulary 10, key length 48, value length 16, up length 20. */
static const wrong_field wrong_fields[] = {{FIELD(vocab), 0, L3_ERR_FORMAT, "absurd"},
                                           {FIELD(vocab), 9, L3_ERR_FORMAT, "lookup_offsets"},
                                           {FIELD(vocab), 11, L3_ERR_FORMAT, "lookup_offsets"},
                                           {FIELD(vocab), UINT32_MAX, L3_ERR_FORMAT, "absurd"},
                                           {FIELD(row_count), 0, L3_ERR_FORMAT, "lookup_rows"},
                                           {FIELD(row_count), 0x80000000u, L3_ERR_FORMAT, "absurd"},
                                           {FIELD(key_length), 0, L3_ERR_FORMAT, "absurd"},
                                           {FIELD(key_length), 47, L3_ERR_FORMAT, "lookup_rows"},
                                           {FIELD(key_length), UINT32_MAX, L3_ERR_FORMAT, "absurd"},
                                           {FIELD(value_length), 0, L3_ERR_FORMAT, "absurd"},
                                           {FIELD(value_length), 17, L3_ERR_FORMAT, "lookup_rows"},
                                           {FIELD(up_length), 0, L3_ERR_FORMAT, "absurd"},
                                           {FIELD(up_length), 21, L3_ERR_FORMAT, "lookup_up"},
                                           {FIELD(up_length), 0x40000000, L3_ERR_FORMAT, "absurd"},
                                           {FIELD(norm_epsilon), NAN_BITS, L3_ERR_FORMAT, "epsilon"},
                                           {FIELD(norm_epsilon), INF_BITS, L3_ERR_FORMAT, "epsilon"},
                                           {FIELD(norm_epsilon), 0xbf000000u, L3_ERR_FORMAT, "epsilon"},
                                           {FIELD(score_scale), NAN_BITS, L3_ERR_FORMAT, "scale"},
                                           {FIELD(score_scale), INF_BITS, L3_ERR_FORMAT, "scale"},
                                           {FIELD(rows.rows), 3, L3_ERR_FORMAT, "lookup_rows"},
                                           {FIELD(rows.cols), 63, L3_ERR_FORMAT, "lookup_rows"},
                                           {FIELD(rows.type), L3_I32, L3_ERR_UNSUPPORTED, "lookup_rows"},
                                           {FIELD(rows.type), 3, L3_ERR_UNSUPPORTED, "lookup_rows"},
                                           {FIELD(rows.type), L3_Q8_0, L3_ERR_FORMAT, "key_length 48"},
                                           {FIELD(rows.type), L3_Q4_0, L3_ERR_FORMAT, "key_length 48"},
                                           {FIELD(rows.type), L3_Q6_K, L3_ERR_FORMAT, "q6_K"},
                                           {FIELD(offsets.cols), 10, L3_ERR_FORMAT, "lookup_offsets"},
                                           {FIELD(offsets.rows), 2, L3_ERR_FORMAT, "lookup_offsets"},
                                           {FIELD(offsets.type), L3_F32, L3_ERR_FORMAT, "lookup_offsets"},
                                           {FIELD(query_norm_weight.cols), 1, L3_ERR_FORMAT, "lookup_query_norm"},
                                           {FIELD(up.rows), 19, L3_ERR_FORMAT, "lookup_up"},
                                           {FIELD(up.cols), 17, L3_ERR_FORMAT, "lookup_up"},
                                           {FIELD(up.type), L3_Q8_0, L3_ERR_FORMAT, "lookup_up"},
                                           {FIELD(up_norm_weight.cols), 21, L3_ERR_FORMAT, "lookup_up_norm.weight"},
                                           {FIELD(up_norm_weight.rows), 0, L3_ERR_FORMAT, "lookup_up_norm.weight"},
                                           {FIELD(up_norm_bias.cols), 0, L3_ERR_FORMAT, "lookup_up_norm.bias"},
                                           {FIELD(up_norm_bias.type), 99, L3_ERR_UNSUPPORTED, "lookup_up_norm.bias"},
                                           {FIELD(mix.rows), 20, L3_ERR_FORMAT, "lookup_mix"},
                                           {FIELD(mix.cols), 48, L3_ERR_FORMAT, "lookup_mix"},
                                           {FIELD(mix.type), L3_Q4_0, L3_ERR_FORMAT, "lookup_mix"},
                                           {FIELD(checksums.cols), 11, L3_ERR_FORMAT, "checksums"},
                                           {FIELD(checksums.type), L3_BF16, L3_ERR_FORMAT, "checksums"}};

typedef struct check_bench {
    lab   b;
    bench w;
} check_bench;

static void check_open(check_bench *c, const plumbing *p) {
    test_rng    r = {20};
    const shape s = full_shape(16, 20, 30);
    lab_of(&c->b, &r, 10, 48, &s, 1, 1);
    CHECK_EQ(bench_open(&c->w, &c->b, p), L3_OK);
    c->w.mocks[0].mem = c->w.mocks[1].mem = NULL;
}

static void check_close(check_bench *c) {
    bench_close(&c->w);
    lab_free(&c->b);
}

static void refused(const l3_lookup *l, int code, const char *words) {
    l3_error err;
    memset(&err, 0x77, sizeof err);
    CHECK_EQ(l3_lookup_check(l, NULL), code);
    CHECK_EQ(l3_lookup_check(l, &err), code);
    CHECK_EQ(err.code, code);
    if (!CHECK(strstr(err.text, words) != NULL)) fprintf(stderr, "    \"%s\" is not in: %s\n", words, err.text);
}

TEST(wrong_shapes_are_refused) {
    for (int place = IN_DATA; place <= IN_SOURCE; place++) {
        plumbing    p = streamed(1, 0, -1, 0);
        check_bench c;
        p.place[0] = p.place[1] = place;
        check_open(&c, &p);
        for (size_t i = 0; i < sizeof wrong_fields / sizeof *wrong_fields; i++) {
            l3_lookup l = c.w.layers[0];
            memcpy((unsigned char *)&l + wrong_fields[i].at, &wrong_fields[i].value, 4);
            refused(&l, wrong_fields[i].code, wrong_fields[i].text);
        }
        check_close(&c);
    }
}

TEST(missing_parts_are_refused) {
    const plumbing p = streamed(1, 0, -1, 0);
    check_bench    c;
    l3_lookup      l;
    check_open(&c, &p);
    l = c.w.layers[0], l.mix.source = NULL;
    refused(&l, L3_ERR_FORMAT, "lookup_mix");
    l = c.w.layers[0], l.rows.source = NULL;
    refused(&l, L3_ERR_FORMAT, "lookup_rows");
    l = c.w.layers[0], l.offsets.source = NULL;
    refused(&l, L3_ERR_FORMAT, "lookup_offsets");
    l = c.w.layers[0], l.up.source = NULL;
    refused(&l, L3_ERR_FORMAT, "up_length 20");
    l = c.w.layers[0], l.tied = true;
    refused(&l, L3_ERR_FORMAT, "value_length");
    l = c.w.layers[0], l.layer_norm = false;
    refused(&l, L3_ERR_FORMAT, "lookup_up_norm.bias");
    l = c.w.layers[0], l.norm_epsilon = 0;
    refused(&l, L3_ERR_FORMAT, "epsilon");
    check_close(&c);
}

/* Offset `index` of the table becomes `value`; the one that is wrong then is number `index + later`. */
static const struct {
    uint32_t index;
    int32_t  change;
    uint32_t later;
} wrong_offsets[] = {{0, 1, 0}, {0, -1, 0}, {5, 1000, 0}, {5, -1000, 0}, {10, 1, 0}, {10, -1, 0}, {5, INT32_MIN, 0}};

TEST(wrong_offsets_are_refused) {
    static const uint32_t aligns[] = {0, 2, 16, 512, 4096};
    for (int k = 0; k < 15; k++) {
        plumbing    p = streamed(aligns[k % 5], 0, -1, 0);
        check_bench c;
        p.map_some[1] = k < 10 ? 0 : 2;
        p.place[1]    = k < 5 ? IN_DATA : IN_SOURCE;
        check_open(&c, &p);
        for (size_t i = 0; i < sizeof wrong_offsets / sizeof *wrong_offsets; i++) {
            const uint32_t index = wrong_offsets[i].index;
            const uint64_t at    = c.b.layers[0].offsets.offset + 4 * index;
            const int32_t  wrong = (int32_t)c.b.exact[0].first[index] + wrong_offsets[i].change;
            unsigned char  right[4];
            memcpy(right, c.b.bytes + at, 4);
            l3_pack_i32(&wrong, 1, c.b.bytes + at);
            CHECK_EQ(l3_lookup_check(&c.w.layers[0], &c.w.err), L3_ERR_FORMAT);
            CHECK_EQ(c.w.err.offset, at);
            memcpy(c.b.bytes + at, right, 4);
        }
        check_close(&c);
    }
}

TEST(more_rows_than_allowed_are_refused) {
    const plumbing p = streamed(1, 0, -1, 0);
    check_bench    c;
    uint32_t       most  = 0;
    int32_t        token = 0;
    float          x[48] = {0};
    check_open(&c, &p);
    for (int32_t t = 0; t < 10; t++) {
        const uint32_t rows = c.b.exact[0].first[t + 1] - c.b.exact[0].first[t];
        if (rows > most) most = rows, token = t;
    }
    c.w.layers[0].max_rows = most;
    CHECK_EQ(l3_lookup_check(&c.w.layers[0], NULL), L3_OK);
    CHECK_EQ(l3_lookup_begin(c.w.work, &token, 1, NULL), L3_OK);
    CHECK_EQ(l3_lookup_forward(c.w.work, 0, x, NULL), L3_OK);
    c.w.layers[0].max_rows = most - 1;
    CHECK_EQ(l3_lookup_check(&c.w.layers[0], &c.w.err), L3_ERR_FORMAT);
    CHECK_EQ(l3_lookup_begin(c.w.work, &token, 1, NULL), L3_OK);
    CHECK_EQ(l3_lookup_forward(c.w.work, 0, x, &c.w.err), L3_ERR_FORMAT);
    CHECK_EQ(c.w.err.code, L3_ERR_FORMAT);
    check_close(&c);
}

/* A driver that gives other offsets later than when they were checked: an error, and nothing outside is read. */
TEST(offsets_that_change_harm_nobody) {
    test_rng    r = {21};
    check_bench c;
    for (int k = 0; k < 4; k++) {
        const plumbing p = streamed(1, k & 1 ? MOCK_START : 0, k & 2 ? 0 : -1, k == 3 ? 5000 : 0);
        check_open(&c, &p);
        for (int i = 0; i < 300; i++) {
            const uint64_t at    = c.b.layers[0].offsets.offset + test_below(&r, 44);
            const int32_t  token = (int32_t)test_below(&r, 10);
            float          x[48] = {0};
            c.b.bytes[at]        = (unsigned char)test_below(&r, 256);
            int code             = l3_lookup_begin(c.w.work, &token, 1, NULL);
            if (code == L3_OK) code = l3_lookup_forward(c.w.work, 0, x, NULL);
            CHECK(code == L3_OK || code == L3_ERR_FORMAT || code == L3_ERR_CHECKSUM);
        }
        check_close(&c);
    }
}

TEST(wrong_sources_are_refused) {
    const plumbing p = streamed(1, MOCK_START, -1, 0);
    check_bench    c;
    l3_source     *s;
    check_open(&c, &p);
    for (int which = 0; which < 2; which++) {
        const l3_source right = c.w.mocks[which].source;
        s                     = &c.w.mocks[which].source;
        s->align              = 3;
        refused(&c.w.layers[0], L3_ERR_ARGUMENT, "align");
        s->align = 2 * L3_MAX_ALIGN;
        refused(&c.w.layers[0], L3_ERR_ARGUMENT, "align");
        *s = right, s->read = NULL;
        refused(&c.w.layers[0], L3_ERR_ARGUMENT, "neither");
        *s = right, s->wait = NULL;
        refused(&c.w.layers[0], L3_ERR_ARGUMENT, "wait");
        *s = right, s->size = c.b.layers[0].rows.offset + 100;
        refused(&c.w.layers[0], L3_ERR_FORMAT, "beyond");
        *s = right;
        CHECK_EQ(l3_lookup_check(&c.w.layers[0], NULL), L3_OK);
    }
    c.w.layers[0].mix.offset = UINT64_MAX - 5;
    refused(&c.w.layers[0], L3_ERR_FORMAT, "lookup_mix");
    check_close(&c);
}

TEST(check_reports_the_driver) {
    for (uint32_t at = 1; at <= 2; at++) {
        plumbing    p = streamed(1, 0, -1, 0);
        check_bench c;
        check_open(&c, &p);
        c.w.mocks[1].calls   = 0;
        c.w.mocks[1].fail_at = at;
        const int code       = l3_lookup_check(&c.w.layers[0], &c.w.err);
        CHECK_EQ(code, at == 1 ? L3_ERR_IO : L3_OK);
        if (code != L3_OK) CHECK(c.w.err.code == L3_ERR_IO && c.w.err.io == MOCK_FAILURE);
        check_close(&c);
    }
}

int main(void) {
    RUN(wrong_arguments);
    RUN(memory_is_exact);
    RUN(absurd_sizes);
    RUN(memory_is_not_wasted);
    RUN(alignment_costs_little);
    RUN(no_layers);
    RUN(layers_that_do_not_fit_together);
    RUN(rows_that_cannot_be_read);
    RUN(weights_that_cannot_be_read);
    RUN(stopping_anywhere);
    RUN(progress_between_reads);
    RUN(damaged_rows);
    RUN(undamaged_tokens_pass);
    RUN(wrong_shapes_are_refused);
    RUN(missing_parts_are_refused);
    RUN(wrong_offsets_are_refused);
    RUN(more_rows_than_allowed_are_refused);
    RUN(offsets_that_change_harm_nobody);
    RUN(wrong_sources_are_refused);
    RUN(check_reports_the_driver);
#ifdef L3_THREADS
    free_pools();
#endif
    return test_report("layer_errors");
}
