/* test_plumbing.c - the same bits whatever the plumbing: how bytes arrive, windows, caches, threads, batches, splits of
 * the text, neighbours, snapshots; and sessions that go on after every kind of failure as if nothing had been. */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "jobs.h"
#include "make_model.h"
#include "model.h"

#ifdef L3_THREADS
#include <pthread.h>
#endif

enum { MAX_N = 48 };

static const int32_t kv_types[3] = {L3_F32, L3_F16, L3_Q8_0};

/* ---- texts: what a model says after every position, in the plainest way ---- */

typedef struct text {
    file     f;
    uint32_t vocab, n;
    int32_t *ids;
    float   *expected[3]; /* (n, vocab) for each type of KV cache */
} text;

static float *expected_logits(const l3_model *model, const text *t, int kv) {
    l3_session_config c;
    seat              s;
    float            *all = new_floats(t->n, t->vocab);
    memset(&c, 0, sizeof c);
    c.kv_type = kv_types[kv];
    if (!CHECK_EQ(seat_open(&s, model, &c, NULL), L3_OK)) return all;
    CHECK_EQ(l3_prefill(s.session, t->ids, t->n, all, NULL), L3_OK);
    seat_close(&s);
    return all;
}

static text text_new(const mk_spec *spec, uint64_t seed) {
    text     t;
    rig      r;
    test_rng rng = {seed};
    memset(&t, 0, sizeof t);
    t.f = file_make(spec);
    if (!CHECK_EQ(rig_open(&r, t.f, MAPPED), L3_OK)) exit(1);
    const l3_info *info = l3_model_info(r.model);
    t.vocab             = info->vocab;
    t.n                 = info->context < MAX_N ? info->context : MAX_N;
    t.ids               = random_ids(&rng, t.vocab, t.n);
    t.ids[t.n / 2]      = (int32_t)(spec->heavy_token < t.vocab ? spec->heavy_token : 0);
    for (int kv = 0; kv < 3; kv++) t.expected[kv] = expected_logits(r.model, &t, kv);
    rig_close(&r);
    return t;
}

static void text_free(text *t) {
    free(t->f.bytes);
    free(t->ids);
    for (int kv = 0; kv < 3; kv++) free(t->expected[kv]);
}

/* ---- following a text with a session ---- */

static int kv_index(const l3_session *s) { return s->config.kv_type == L3_Q8_0 ? 2 : s->config.kv_type == L3_F16; }

static int same_logits(const text *t, const l3_session *s) {
    const float *expected = t->expected[kv_index(s)] + (size_t)(l3_position(s) - 1) * t->vocab;
    return CHECK_MEM(l3_logits(s), expected, t->vocab * sizeof(float));
}

/* The next n tokens in one call; with `all` every position is compared, else the last. */
static int step(l3_session *s, const text *t, uint32_t n, int all) {
    const uint32_t at  = l3_position(s);
    float         *out = all ? new_floats(n, t->vocab) : NULL;
    l3_error       err;
    int            ok = CHECK_EQ(l3_prefill(s, t->ids + at, n, out, &err), L3_OK) && CHECK_EQ(l3_position(s), at + n);
    if (ok && all)
        ok = CHECK_MEM(out, t->expected[kv_index(s)] + (size_t)at * t->vocab, (size_t)n * t->vocab * sizeof *out);
    free(out);
    return ok && same_logits(t, s);
}

/* The next tokens, at most n and a batch, in pieces. */
static int in_pieces(l3_session *s, const text *t, uint32_t n) {
    const uint32_t at = l3_position(s), some = n < s->work.batch ? n : s->work.batch;
    int            more = 1;
    if (!CHECK_EQ(l3_decode_begin(s, t->ids + at, some, NULL), L3_OK)) return 0;
    while (more == 1) {
        if (!CHECK_EQ(l3_position(s), at)) return 0;
        more = l3_decode_step(s, NULL);
    }
    return CHECK_EQ(more, L3_OK) && CHECK_EQ(l3_position(s), at + some) && same_logits(t, s);
}

typedef enum splitting { ONE_CALL, ONE_BY_ONE, RANDOMLY, IN_PIECES } splitting;

/* Goes on to position `to`; 0 at the first difference. */
static int follow(l3_session *s, const text *t, uint32_t to, splitting how, test_rng *r) {
    while (l3_position(s) < to) {
        const uint32_t left = to - l3_position(s);
        const uint32_t n    = how == ONE_CALL ? left : how == ONE_BY_ONE ? 1 : 1 + test_below(r, left);
        const int      sort = how == RANDOMLY ? (int)test_below(r, 5) : 3;
        if (sort == 0) l3_session_hint(s, t->ids + l3_position(s), n);
        if (how == IN_PIECES || sort == 4) {
            if (!in_pieces(s, t, n)) return 0;
            continue;
        }
        if (how == ONE_BY_ONE && !CHECK_EQ(l3_decode(s, t->ids[l3_position(s)], NULL), L3_OK)) return 0;
        if (how == ONE_BY_ONE ? !same_logits(t, s) : !step(s, t, n, sort % 2)) return 0;
    }
    return 1;
}

static void rewind_to(l3_session *s, uint32_t n) {
    CHECK_EQ(l3_truncate(s, n, NULL), L3_OK);
    CHECK_EQ(l3_position(s), n);
}

/* ---- ways to run a model ---- */

typedef struct pipes {
    way               way;
    l3_session_config config;
    int               window_over; /* above l3_session_window_min(); -1: the default */
} pipes;

static int pipes_seat(seat *s, const rig *r, pipes *p) {
    l3_error err;
    if (p->window_over >= 0) p->config.work.window = l3_session_window_min(r->model) + (size_t)p->window_over;
    const int code = seat_open(s, r->model, &p->config, &err);
    if (!CHECK_EQ(code, L3_OK)) fprintf(stderr, "    %s\n", err.text);
    return code == L3_OK;
}

static int pipes_open(rig *r, seat *s, const text *t, pipes *p) {
    if (!CHECK_EQ(rig_open(r, t->f, p->way), L3_OK)) fprintf(stderr, "    %s\n", r->err.text);
    else if (pipes_seat(s, r, p)) return 1;
    else rig_close(r);
    return 0;
}

static void pipes_close(rig *r, seat *s) {
    seat_close(s);
    rig_close(r);
}

static void describe(const pipes *p) {
    const l3_session_config *c = &p->config;
    fprintf(
        stderr,
        "    align %u, mapped 1 of %u, flags %u, window +%d, batch %u, cache %u, kv %d, verify %d, mode %d, jobs %u, "
        "step %u\n",
        p->way.align, p->way.map_some, p->way.flags, p->window_over, c->work.batch, (unsigned)c->work.cache, c->kv_type,
        (int)c->work.verify, (int)c->work.mode, c->work.jobs.width, c->step);
}

static void same_through(const text *t, pipes p, splitting how, test_rng *rng) {
    rig  r;
    seat s;
    if (!pipes_open(&r, &s, t, &p)) return;
    int ok = follow(s.session, t, t->n, how, rng);
    rewind_to(s.session, test_below(rng, t->n));
    ok = ok && follow(s.session, t, t->n, RANDOMLY, rng); /* with warm caches, from a place before */
    if (!ok) describe(&p);
    pipes_close(&r, &s);
}

/* What most tests use: reads with start and wait, in the smallest window. */
static pipes streamed(void) {
    pipes p;
    memset(&p, 0, sizeof p);
    p.way.flags         = MOCK_START | MOCK_HINT;
    p.config.work.batch = 8;
    return p;
}

static pipes random_pipes(test_rng *r) {
    static const uint32_t aligns[] = {0, 1, 2, 16, 256, 512, 4096}, caches[] = {0, 500, 1024, 3000, 20000, 1000000};
    pipes                 p;
    memset(&p, 0, sizeof p);
    p.way.align          = aligns[test_below(r, 7)];
    p.way.map_some       = test_below(r, 3) ? 0 : 1 + test_below(r, 3);
    p.way.flags          = test_below(r, 4);
    p.window_over        = test_below(r, 4) ? (int)(test_below(r, 2) * test_below(r, 3000)) : -1;
    p.config.kv_type     = kv_types[test_below(r, 3)];
    p.config.work.batch  = test_below(r, 34);
    p.config.work.cache  = caches[test_below(r, 6)];
    p.config.work.mode   = test_below(r, 2) ? L3_FAST : L3_EXACT;
    p.config.work.verify = (l3_verify)test_below(r, 3);
    p.config.work.jobs   = jobs_of(test_below(r, 2) ? test_below(r, JOBS_KINDS) : 0);
    p.config.step        = 1u << test_below(r, 20);
    return p;
}

/* ---- the same bits ---- */

static text small_text(void) {
    const mk_spec s = spec_small();
    return text_new(&s, 1);
}

TEST(every_batch_and_split) {
    text     t = small_text();
    test_rng r = {2};
    for (uint32_t batch = 1; batch <= 33; batch++) {
        pipes p             = streamed();
        p.config.work.batch = batch;
        same_through(&t, p, (splitting)(batch % 3), &r);
    }
    text_free(&t);
}

TEST(every_window_and_alignment) {
    text     t = small_text();
    test_rng r = {3};
    for (uint32_t align = 1; align <= 4096; align *= 2)
        for (int over = 0; over < 5000; over = over * 3 + 1) {
            pipes p       = streamed();
            p.way.align   = align;
            p.way.flags   = over % 2 ? 0 : MOCK_START;
            p.window_over = over;
            same_through(&t, p, RANDOMLY, &r);
        }
    text_free(&t);
}

TEST(every_cache) {
    text     t = small_text();
    test_rng r = {4};
    for (size_t cache = 1; cache < 500000; cache = cache * 3 / 2 + 1) {
        pipes p             = streamed();
        p.config.work.cache = cache;
        p.way.align         = cache % 2 ? 16 : 512;
        same_through(&t, p, RANDOMLY, &r);
    }
    text_free(&t);
}

static mk_spec spec_wide(void) {
    mk_spec s = spec_small();
    s.dim = 96, s.n_heads = 6, s.n_kv_heads = 3, s.ffn = 200, s.vocab = 600, s.value_length = 64, s.up_length = 160;
    return s;
}

TEST(every_number_of_threads) {
    const mk_spec wide = spec_wide();
    text          t    = text_new(&wide, 5);
    test_rng      r    = {5};
    for (uint32_t kind = 0; kind < JOBS_KINDS; kind++)
        for (int i = 0; i < 4; i++) {
            pipes p             = streamed();
            p.way.map_some      = (uint32_t)(i & 1);
            p.config.work.batch = i & 2 ? 33 : 7;
            p.config.work.jobs  = jobs_of(kind);
            p.window_over       = i & 2 ? -1 : 5000;
            same_through(&t, p, RANDOMLY, &r);
        }
    text_free(&t);
}

TEST(random_models_through_random_pipes) {
    const uint32_t n = test_flag("L3_LONG") ? 500 : (uint32_t)test_some(30);
    for (uint64_t seed = 1; seed <= n; seed++) {
        test_rng      r    = {seed};
        const mk_spec spec = mk_random_spec(seed);
        text          t    = text_new(&spec, seed);
        for (int i = 0; i < 6; i++) same_through(&t, random_pipes(&r), (splitting)test_below(&r, 3), &r);
        text_free(&t);
    }
}

/* ---- on every machine ---- */

static mk_spec spec_of_types(uint32_t weights, uint32_t rows) {
    mk_spec s = spec_small();
    s.dim = s.value_length = s.ffn = s.up_length = 256;
    s.heavy_rows = 0, s.weight_type = weights, s.row_type = rows, s.embedding_type = weights, s.head_type = rows;
    return s;
}

/* CRC-32 of all logits. The figures are from x86-64 with gcc; a change of kernels may change them, a machine may not. */
TEST(the_same_bits_on_every_machine) {
    static const struct {
        uint32_t weights, rows, crc[3];
    } cases[] = {
        {MK_F32, MK_F32, {0xbbf5aa26, 0xe7b5ee6f, 0x46aa9e09}},
        {MK_F16, MK_BF16, {0xcf745533, 0xba3158e8, 0x1cff1a92}},
        {MK_BF16, MK_F16, {0x8ffcdf6f, 0x69c4ea54, 0x73ee862a}},
        {MK_Q8_0, MK_Q4_0, {0xaf96131a, 0xc4233b17, 0xf06ecf2d}},
        {MK_Q4_0, MK_Q8_0, {0x1df1f7da, 0xfa46726c, 0x2e49fff2}},
        {MK_Q6_K, MK_Q6_K, {0xcf333361, 0x08aa9007, 0x8a425a3d}},
    };
    for (int i = 0; i < 6; i++) {
        const mk_spec spec = spec_of_types(cases[i].weights, cases[i].rows);
        text          t    = text_new(&spec, 1);
        for (int kv = 0; kv < 3; kv++) {
            uint32_t crc = 0;
            for (size_t k = 0; k < (size_t)t.n * t.vocab; k++) {
                unsigned char bytes[4];
                l3__put_le32(bytes, l3__as_bits(t.expected[kv][k]));
                crc = mk_crc32(crc, bytes, 4);
            }
            if (!CHECK(crc == cases[i].crc[kv])) fprintf(stderr, "    case %d, KV cache %d: 0x%08x\n", i, kv, crc);
        }
        text_free(&t);
    }
}

/* ---- statistics ---- */

static uint64_t sum_of(const unsigned char *counts, size_t n) {
    uint64_t sum = 0;
    while (n) sum += counts[--n];
    return sum;
}

/* Every byte that the source was asked for is counted, and a warm cache saves reads. */
TEST(statistics) {
    text     t = small_text();
    test_rng r = {19};
    for (int i = 0; i < 6; i++) {
        rig   g;
        seat  s;
        pipes p             = streamed();
        p.way.flags         = i & 1 ? MOCK_START : 0;
        p.config.work.cache = i < 2 ? 0 : 200000;
        p.way.map_some      = i >= 4;
        REQUIRE(pipes_open(&g, &s, &t, &p));
        g.mock.touched = (unsigned char *)must(t.f.n);
        follow(s.session, &t, 2, ONE_BY_ONE, &r);
        const l3_stats cold = l3_session_stats(s.session);
        CHECK_EQ(cold.row_bytes_read + cold.weight_bytes_read, sum_of(g.mock.touched, t.f.n));
        CHECK(i >= 4 ? cold.weight_bytes_read == 0 : cold.weight_bytes_read > 0);
        CHECK(cold.row_bytes_asked > 0 && cold.cache_hits == 0 && cold.lookups <= 4 &&
              (i >= 4 || cold.row_bytes_read == cold.row_bytes_asked));
        rewind_to(s.session, 0);
        follow(s.session, &t, 2, ONE_BY_ONE, &r);
        const l3_stats warm = l3_session_stats(s.session);
        CHECK_EQ(warm.row_bytes_asked, 2 * cold.row_bytes_asked);
        CHECK_EQ(warm.row_bytes_read, (i < 2 ? 2 : 1) * cold.row_bytes_read);
        CHECK_EQ(warm.cache_hits, i == 2 || i == 3 ? cold.lookups : 0);
        free(g.mock.touched);
        pipes_close(&g, &s);
    }
    text_free(&t);
}

/* ---- several sessions of one model ---- */

enum { MAX_SEATS = 9 };

TEST(interleaved_sessions) {
    text     t = small_text();
    test_rng r = {6};
    rig      g;
    seat     s[4];
    REQUIRE(rig_open(&g, t.f, streamed().way) == L3_OK);
    for (int i = 0; i < 4; i++) {
        pipes p = random_pipes(&r);
        REQUIRE(pipes_seat(&s[i], &g, &p));
    }
    for (int turn = 0; turn < 200; turn++) {
        l3_session *one = s[test_below(&r, 4)].session;
        if (l3_position(one) == t.n) rewind_to(one, test_below(&r, t.n));
        const uint32_t left = t.n - l3_position(one), n = 1 + test_below(&r, left < 5 ? left : 5);
        if (!step(one, &t, n, turn % 2)) break;
    }
    for (int i = 0; i < 4; i++) seat_close(&s[i]);
    rig_close(&g);
    text_free(&t);
}

/* One token for each, every session at its own place; those at the end go back. */
static int batch_round(seat *s, uint32_t n, const text *t, test_rng *r) {
    l3_session *sessions[MAX_SEATS];
    int32_t     ids[MAX_SEATS];
    int         ok = 1;
    for (uint32_t i = 0; i < n; i++) {
        sessions[i] = s[i].session;
        if (l3_position(sessions[i]) == t->n) rewind_to(sessions[i], test_below(r, t->n));
        ids[i] = t->ids[l3_position(sessions[i])];
    }
    ok = CHECK_EQ(l3_decode_batch(sessions, ids, n, NULL), L3_OK);
    for (uint32_t i = 0; ok && i < n; i++) ok = same_logits(t, sessions[i]);
    return ok;
}

TEST(decoding_in_batches) {
    text     t = small_text();
    test_rng r = {7};
    for (uint32_t n = 1; n <= MAX_SEATS; n++)
        for (uint32_t lead_batch = 1; lead_batch <= n + 1; lead_batch += 1 + n / 3) {
            rig  g;
            seat s[MAX_SEATS];
            REQUIRE(rig_open(&g, t.f, random_pipes(&r).way) == L3_OK);
            for (uint32_t i = 0; i < n; i++) {
                pipes p = random_pipes(&r);
                if (i == 0) p.config.work.batch = lead_batch;
                REQUIRE(pipes_seat(&s[i], &g, &p));
                REQUIRE(follow(s[i].session, &t, test_below(&r, t.n), ONE_CALL, &r));
            }
            for (int round = 0; round < 12; round++)
                if (!batch_round(s, n, &t, &r)) break;
            for (uint32_t i = 0; i < n; i++) seat_close(&s[i]);
            rig_close(&g);
        }
    text_free(&t);
}

TEST(batches_that_are_refused) {
    text        t = small_text();
    test_rng    r = {8};
    rig         g, other;
    seat        s[3], stranger;
    l3_session *sessions[3];
    int32_t     ids[3];
    l3_error    err;
    pipes       p = streamed();
    REQUIRE(rig_open(&g, t.f, p.way) == L3_OK && rig_open(&other, t.f, p.way) == L3_OK);
    REQUIRE(pipes_seat(&stranger, &other, &p));
    for (uint32_t i = 0; i < 3; i++) {
        p.config.context = i == 2 ? 10 : 0;
        REQUIRE(pipes_seat(&s[i], &g, &p) && follow(s[i].session, &t, 10, ONE_CALL, &r));
        sessions[i] = s[i].session;
        ids[i]      = t.ids[10];
    }
    CHECK_EQ(l3_decode_batch(sessions, ids, 0, &err), L3_ERR_ARGUMENT);
    CHECK_EQ(l3_decode_batch(sessions, ids, 3, &err), L3_ERR_CONTEXT);
    ids[1] = (int32_t)t.vocab;
    CHECK_EQ(l3_decode_batch(sessions, ids, 2, &err), L3_ERR_TOKEN);
    ids[1]      = t.ids[10];
    sessions[1] = sessions[0];
    CHECK_EQ(l3_decode_batch(sessions, ids, 2, &err), L3_ERR_ARGUMENT);
    sessions[1] = stranger.session;
    CHECK_EQ(l3_decode_batch(sessions, ids, 2, &err), L3_ERR_ARGUMENT);
    CHECK(error_sound(L3_ERR_ARGUMENT, &err));
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(l3_position(s[i].session), 10);
        follow(s[i].session, &t, l3_context(s[i].session) < t.n ? 10 : t.n, ONE_BY_ONE, &r);
        seat_close(&s[i]);
    }
    seat_close(&stranger);
    rig_close(&other);
    rig_close(&g);
    text_free(&t);
}

#ifdef L3_THREADS
typedef struct worker {
    pthread_t       thread;
    const l3_model *model;
    const text     *text;
    int             bad;
} worker;

static void *work(void *arg) { /* no checks here: they count in one place */
    worker           *w   = (worker *)arg;
    void             *mem = NULL;
    l3_session       *s;
    l3_session_config c;
    memset(&c, 0, sizeof c);
    c.work.mode       = L3_EXACT;
    const size_t size = l3_session_size(w->model, &c);
    w->bad            = posix_memalign(&mem, L3_ALIGN, size) || l3_session_init(&s, w->model, &c, mem, size, NULL);
    for (uint32_t i = 0; !w->bad && i < w->text->n; i++) {
        w->bad = l3_decode(s, w->text->ids[i], NULL);
        w->bad |=
            memcmp(l3_logits(s), w->text->expected[0] + (size_t)i * w->text->vocab, w->text->vocab * sizeof(float));
    }
    free(mem);
    return NULL;
}

static void decode_in_threads(const l3_model *model, const text *t) {
    worker w[4];
    for (int i = 0; i < 4; i++) {
        w[i].model = model;
        w[i].text  = t;
        CHECK_EQ(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(w[i].thread, NULL);
        CHECK_EQ(w[i].bad, 0);
    }
}

TEST(sessions_in_threads) {
    text t = small_text();
    rig  g;
    REQUIRE(rig_open(&g, t.f, MAPPED) == L3_OK);
    g.model->source = l3_source_memory(t.f.bytes, t.f.n); /* the mock counts, and is for one thread */
    decode_in_threads(g.model, &t);
    rig_close(&g);
    text_free(&t);
}
#endif

/* Tokens from position 9 on: 12 in a prefill, or a batch in pieces. */
static int go_on(l3_session *s, const text *t, splitting how, l3_error *err) {
    if (how != IN_PIECES) return l3_prefill(s, t->ids + 9, 12, NULL, err);
    int code = l3_decode_begin(s, t->ids + 9, s->work.batch < 12 ? s->work.batch : 12, err);
    while (code == L3_OK && (code = l3_decode_step(s, err)) == 1) code = L3_OK;
    return code;
}

/* Makes call k of something go wrong for every k in turn, while the session goes on from position 9; *calls and *fail_at
 * are how. After each failure the same session does it again, undisturbed. Returns how many failures there were. */
static uint32_t disturb(seat *s, const text *t, splitting how, uint32_t *calls, uint32_t *fail_at, int wanted,
                        test_rng *r) {
    uint32_t failures = 0;
    l3_error err;
    follow(s->session, t, 9, ONE_CALL, r);
    for (uint32_t k = 1;; k++, rewind_to(s->session, 9)) {
        *calls         = 0;
        *fail_at       = k;
        const int code = go_on(s->session, t, how, &err);
        *fail_at       = 0;
        if (code == L3_OK && (!same_logits(t, s->session) || *calls < k)) return failures;
        if (code == L3_OK) continue; /* only a hint had gone wrong */
        failures++;
        if (!CHECK_EQ(code, wanted) || !CHECK(error_sound(code, &err)) || !CHECK_EQ(l3_position(s->session), 9))
            return 0;
        if (wanted == L3_ERR_IO && !CHECK_EQ(err.io, MOCK_FAILURE)) return 0;
        if (!follow(s->session, t, 9 + 1 + test_below(r, 15), ONE_CALL, r)) return 0;
    }
}

#ifdef L3_THREADS
/* ---- rows that a thread reads while everything else is mapped ---- */

typedef struct library {
    mock       weights, rows;
    guard      block, reader_block;
    l3_reader *reader;
    l3_source  tables;
    l3_model  *model;
} library;

static int library_open(library *l, const text *t, uint32_t align, unsigned flags) {
    l3_model_config c;
    size_t          size = 0;
    memset(l, 0, sizeof *l);
    memset(&c, 0, sizeof c);
    mock_init(&l->weights, t->f.bytes, t->f.n, 0, 1, 0);
    mock_init(&l->rows, t->f.bytes, t->f.n, align, 0, flags);
    l->reader_block = guard_new(l3_reader_size(), L3_ALIGN, 0xa5);
    if (!CHECK_EQ(l3_reader_init(&l->reader, &l->rows.source, l->reader_block.mem, l3_reader_size(), NULL), L3_OK))
        return 0;
    l->tables = l3_reader_source(l->reader);
    c.tables  = &l->tables;
    CHECK_EQ(l3_model_size(&l->weights.source, &c, &size, NULL), L3_OK);
    l->block = guard_new(size, L3_ALIGN, 0xa5);
    return CHECK_EQ(l3_model_open(&l->model, &l->weights.source, &c, l->block.mem, size, NULL), L3_OK);
}

static void library_close(library *l) {
    l3_reader_free(l->reader);
    CHECK(guard_free(&l->reader_block) && guard_free(&l->block));
    CHECK(mock_clean(&l->weights) && mock_clean(&l->rows));
}

TEST(rows_read_by_a_thread) {
    text     t = small_text();
    test_rng r = {31};
    for (int i = 0; i < 24; i++) {
        l3_session_config c;
        library           l;
        seat              s;
        memset(&c, 0, sizeof c);
        c.work.cache = i % 3 == 0 ? 0 : i % 3 == 1 ? 8000 : 100000;
        c.work.batch = 1 + test_below(&r, 20);
        c.work.jobs  = jobs_of(i % 4);
        REQUIRE(library_open(&l, &t, i & 1 ? 64 : 0, i & 2 ? MOCK_HINT : 0));
        if (test_below(&r, 2)) c.work.window = l3_session_window_min(l.model) + test_below(&r, 5000);
        REQUIRE(seat_open(&s, l.model, &c, NULL) == L3_OK);
        follow(s.session, &t, t.n, (splitting)(i % 3), &r);
        const l3_stats stats = l3_session_stats(s.session);
        CHECK(stats.row_reads > 0 && stats.row_reads == l.rows.reads && stats.row_bytes_read == l.rows.asked);
        CHECK(l.weights.reads == 0 && stats.weight_bytes_read == 0);
        seat_close(&s);
        library_close(&l);
    }
    text_free(&t);
}

TEST(reading_threads_that_fail) {
    text     t = small_text();
    test_rng r = {32};
    for (int i = 0; i < 6; i++) {
        l3_session_config c;
        library           l;
        seat              s;
        memset(&c, 0, sizeof c);
        c.work.cache = i % 3 == 0 ? 0 : i % 3 == 1 ? 8000 : 100000;
        c.work.batch = i & 1 ? 5 : 16;
        REQUIRE(library_open(&l, &t, 0, 0));
        REQUIRE(seat_open(&s, l.model, &c, NULL) == L3_OK);
        CHECK(disturb(&s, &t, i % 2 ? IN_PIECES : ONE_CALL, &l.rows.calls, &l.rows.fail_at, L3_ERR_IO, &r) >
              (i % 3 == 2 ? 0u : 5u)); /* few reads where all is cached */
        rewind_to(s.session, 0);
        follow(s.session, &t, t.n, RANDOMLY, &r);
        seat_close(&s);
        library_close(&l);
    }
    text_free(&t);
}

TEST(sessions_that_share_a_reading_thread) {
    text    t = small_text();
    library l;
    REQUIRE(library_open(&l, &t, 0, 0));
    decode_in_threads(l.model, &t);
    library_close(&l);
    text_free(&t);
}

TEST(readers_that_are_refused) {
    text            t      = small_text();
    l3_source       memory = l3_source_memory(t.f.bytes, t.f.n), shorter = memory;
    l3_model_config c;
    l3_reader      *reader;
    l3_model       *m;
    l3_error        err;
    size_t          size  = 0;
    guard           block = guard_new(l3_reader_size(), L3_ALIGN, 0xa5);
    memset(&c, 0, sizeof c);
    CHECK_EQ(l3_reader_init(&reader, &memory, block.mem, l3_reader_size(), &err), L3_ERR_ARGUMENT); /* no read */
    CHECK(error_sound(L3_ERR_ARGUMENT, &err));
    CHECK_EQ(l3_reader_init(&reader, &memory, block.mem, l3_reader_size() - 1, &err), L3_ERR_MEMORY);
    CHECK(guard_free(&block));
    shorter.size--;
    c.tables = &shorter;
    CHECK_EQ(l3_model_size(&memory, &c, &size, NULL), L3_OK);
    block = guard_new(size, L3_ALIGN, 0xa5);
    CHECK_EQ(l3_model_open(&m, &memory, &c, block.mem, size, &err), L3_ERR_ARGUMENT);
    CHECK(error_sound(L3_ERR_ARGUMENT, &err));
    CHECK(guard_free(&block));
    text_free(&t);
}
#endif

/* ---- snapshots ---- */

static l3_buffer save(const l3_session *s) {
    l3_buffer b;
    b.size  = (size_t)l3_session_save_size(s);
    b.bytes = (unsigned char *)must(b.size);
    b.used  = 0;
    CHECK_EQ(l3_session_save(s, l3_write_buffer, &b, NULL), L3_OK);
    CHECK_EQ(b.used, b.size);
    return b;
}

static int load(l3_session *s, const l3_buffer *b, way w, l3_error *err) {
    mock m;
    mock_init(&m, b->bytes, b->used, w.align, w.map_some, w.flags);
    const int code = l3_session_load(s, &m.source, err);
    CHECK(mock_clean(&m));
    return code;
}

/* From one session to another of its own kind of KV cache, which was somewhere else before. */
static void move_session(const text *t, test_rng *r) {
    pipes a = random_pipes(r), b = random_pipes(r);
    rig   from, to;
    seat  s, n;
    b.config.kv_type  = a.config.kv_type;
    const uint32_t at = test_below(r, t->n + 1);
    b.config.context  = at + test_below(r, t->n - at + 1);
    if (!pipes_open(&from, &s, t, &a)) return;
    int ok = follow(s.session, t, at, RANDOMLY, r);
    if (pipes_open(&to, &n, t, &b)) {
        follow(n.session, t, test_below(r, l3_context(n.session) + 1), RANDOMLY, r);
        l3_buffer snapshot = save(s.session);
        memset(s.session->kv, 0xff, 64); /* the old one is gone */
        ok = ok && CHECK_EQ(load(n.session, &snapshot, random_pipes(r).way, NULL), L3_OK) &&
             CHECK_EQ(l3_position(n.session), at);
        if (at) ok = ok && same_logits(t, n.session);
        ok = ok && follow(n.session, t, l3_context(n.session) < t->n ? l3_context(n.session) : t->n, RANDOMLY, r);
        if (!ok) describe(&b);
        free(snapshot.bytes);
        pipes_close(&to, &n);
    }
    pipes_close(&from, &s);
}

TEST(snapshots) {
    for (uint64_t seed = 1; seed <= (uint64_t)test_some(8); seed++) {
        const mk_spec spec = seed == 1 ? spec_small() : mk_random_spec(seed + 1000);
        text          t    = text_new(&spec, seed);
        test_rng      r    = {seed};
        for (int i = 0; i < 10; i++) move_session(&t, &r);
        text_free(&t);
    }
}

typedef struct failing_writer {
    uint32_t calls, fail_at;
} failing_writer;

static int fail_to_write(void *user, const void *bytes, size_t n) {
    failing_writer *w = (failing_writer *)user;
    (void)bytes;
    (void)n;
    return ++w->calls == w->fail_at ? -77 : 0;
}

TEST(snapshots_that_cannot_be_written) {
    text     t = small_text();
    test_rng r = {9};
    pipes    p = streamed();
    rig      g;
    seat     s;
    l3_error err;
    uint32_t failures = 0;
    REQUIRE(pipes_open(&g, &s, &t, &p) && follow(s.session, &t, 20, ONE_CALL, &r));
    for (;;) {
        failing_writer w    = {0, failures + 1};
        const int      code = l3_session_save(s.session, fail_to_write, &w, &err);
        if (code == L3_OK) break;
        if (!CHECK_EQ(code, L3_ERR_IO) || !CHECK_EQ(err.io, -77) || !CHECK(error_sound(code, &err))) break;
        failures++;
    }
    CHECK(failures > 5);
    l3_buffer small = save(s.session);
    small.size--;
    small.used = 0;
    CHECK_EQ(l3_session_save(s.session, l3_write_buffer, &small, &err), L3_ERR_IO);
    CHECK_EQ(err.io, -1);
    CHECK_EQ(l3_position(s.session), 20);
    follow(s.session, &t, t.n, RANDOMLY, &r);
    free(small.bytes);
    pipes_close(&g, &s);
    text_free(&t);
}

/* A snapshot that must be refused, and leaves the session where it is. */
static int refused(l3_session *s, const l3_buffer *b, int wanted) {
    const uint32_t at = l3_position(s);
    l3_error       err;
    const int      code = load(s, b, MAPPED, &err);
    return CHECK(wanted ? code == wanted : code < 0) && CHECK(error_sound(code, &err)) && CHECK_EQ(l3_position(s), at);
}

TEST(snapshots_of_others) {
    text     t          = small_text();
    mk_spec  other_spec = spec_small();
    test_rng r          = {10};
    other_spec.seed++;
    text  other = text_new(&other_spec, 1);
    pipes p = streamed(), half = streamed(), narrow = streamed();
    rig   g, g2;
    seat  s, s_half, s_narrow, s_other;
    half.config.kv_type   = L3_F16;
    narrow.config.context = 20;
    REQUIRE(pipes_open(&g, &s, &t, &p) && pipes_seat(&s_half, &g, &half) && pipes_seat(&s_narrow, &g, &narrow));
    REQUIRE(pipes_open(&g2, &s_other, &other, &p));
    REQUIRE(follow(s.session, &t, 21, ONE_CALL, &r) && follow(s_half.session, &t, 9, ONE_CALL, &r) &&
            follow(s_narrow.session, &t, 11, ONE_CALL, &r) && follow(s_other.session, &other, 13, ONE_CALL, &r));
    l3_buffer b = save(s.session);
    CHECK(refused(s_half.session, &b, L3_ERR_MISMATCH));
    CHECK(refused(s_narrow.session, &b, L3_ERR_MISMATCH));
    CHECK(refused(s_other.session, &b, L3_ERR_MISMATCH));
    follow(s_half.session, &t, t.n, RANDOMLY, &r);
    follow(s_narrow.session, &t, 20, RANDOMLY, &r);
    follow(s_other.session, &other, other.n, RANDOMLY, &r);
    free(b.bytes);
    seat_close(&s_half);
    seat_close(&s_narrow);
    pipes_close(&g, &s);
    pipes_close(&g2, &s_other);
    text_free(&other);
    text_free(&t);
}

TEST(damaged_snapshots) {
    text      t = small_text();
    test_rng  r = {11};
    pipes     p = streamed();
    rig       g;
    seat      s;
    const int long_test = test_flag("L3_LONG");
    p.way               = MAPPED;
    REQUIRE(pipes_open(&g, &s, &t, &p) && follow(s.session, &t, 7, ONE_CALL, &r));
    l3_buffer b = save(s.session), cut = b;
    follow(s.session, &t, 12, ONE_CALL, &r);
    for (cut.used = 0; cut.used < b.used; cut.used++)
        if (!refused(s.session, &cut, 0)) break;
    for (size_t i = 0; i < b.used; i += long_test || i < 64 ? 1 : 3) {
        static const unsigned char flips[] = {0x01, 0x80, 0xff};
        for (int k = 0; k < 3; k++) {
            b.bytes[i] ^= flips[k];
            if (!refused(s.session, &b, 0)) i = b.used;
            b.bytes[i] ^= flips[k];
        }
    }
    CHECK_EQ(load(s.session, &b, MAPPED, NULL), L3_OK);
    CHECK_EQ(l3_position(s.session), 7);
    follow(s.session, &t, t.n, RANDOMLY, &r);
    free(b.bytes);
    pipes_close(&g, &s);
    text_free(&t);
}

/* Whatever comes: an error, or the right state; and never a third thing. */
TEST(snapshots_that_change) {
    text     t = small_text();
    test_rng r = {20};
    pipes    p = streamed();
    rig      g;
    seat     s;
    int      loaded = 0, emptied = 0;
    REQUIRE(pipes_open(&g, &s, &t, &p) && follow(s.session, &t, 20, ONE_CALL, &r));
    l3_buffer b = save(s.session);
    liar      l = {{b.bytes, b.used}, {2}, 1};
    for (int run = 0; run < 300; run++) {
        const l3_source in = liar_source(&l, 1u << test_below(&r, 6));
        l3_error        err;
        l.one_in = 1 + test_below(&r, 8);
        rewind_to(s.session, 10);
        const int code = l3_session_load(s.session, &in, &err);
        CHECK(code == L3_OK ? l3_position(s.session) == 20 : error_sound(code, &err));
        loaded += code == L3_OK;
        emptied += l3_position(s.session) == 0;
        if (!follow(s.session, &t, 21, ONE_CALL, &r)) break;
    }
    CHECK(loaded > 0 && emptied > 0);
    free(b.bytes);
    pipes_close(&g, &s);
    text_free(&t);
}

/* Reads of the snapshot, or of the model for its fingerprint, that fail. */
TEST(snapshots_that_cannot_be_read) {
    text     t = small_text();
    test_rng r = {12};
    pipes    p = streamed();
    rig      g;
    seat     s;
    l3_error err;
    mock     m;
    REQUIRE(pipes_open(&g, &s, &t, &p) && follow(s.session, &t, 20, ONE_CALL, &r));
    l3_buffer b = save(s.session);
    for (int of_model = 0; of_model < 2; of_model++)
        for (uint32_t k = 1;; k++) {
            mock_init(&m, b.bytes, b.used, 16, 0, 0);
            rewind_to(s.session, 10);
            g.mock.calls                               = 0;
            *(of_model ? &g.mock.fail_at : &m.fail_at) = k;
            const int code                             = l3_session_load(s.session, &m.source, &err);
            g.mock.fail_at                             = 0;
            if (code == L3_OK) break;
            if (!CHECK_EQ(code, L3_ERR_IO) || !CHECK(error_sound(code, &err)) || !CHECK_EQ(err.io, MOCK_FAILURE)) break;
            CHECK(l3_position(s.session) == 10 || (!of_model && l3_position(s.session) == 0));
            if (!follow(s.session, &t, 22, ONE_CALL, &r)) break;
        }
    CHECK_EQ(l3_position(s.session), 20);
    follow(s.session, &t, t.n, RANDOMLY, &r);
    free(b.bytes);
    pipes_close(&g, &s);
    text_free(&t);
}

/* ---- in pieces ---- */

/* Kernels that count multiply-adds. */
static l3__kernels        counting;
static const l3__kernels *counted;
static uint64_t           products;

#define COUNTING_MATMUL(i)                                                                                         \
    static void count_matmul_##i(const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols, const float *x, \
                                 size_t xs, uint32_t n, float *y, size_t ys) {                                     \
        products += (uint64_t)rows * cols * n;                                                                     \
        counted->matmul[i](w, row_bytes, rows, cols, x, xs, n, y, ys);                                             \
    }
COUNTING_MATMUL(0)
COUNTING_MATMUL(1)
COUNTING_MATMUL(2)
COUNTING_MATMUL(3)
COUNTING_MATMUL(4)
COUNTING_MATMUL(5)

static void count_weigh_rows(int type, const uint8_t *rows, size_t row_bytes, const float *w, uint32_t n, float *out,
                             uint32_t cols, uint32_t heads) {
    products += (uint64_t)n * cols * heads;
    counted->weigh_rows(type, rows, row_bytes, w, n, out, cols, heads);
}

static float count_softmax(float *w, uint32_t n, float scale, float *peak) {
    products += (uint64_t)n * L3__EXP_COST;
    return counted->softmax_tile(w, n, scale, peak);
}

static void count_swiglu(float *gate, const float *up, size_t n) {
    products += n * L3__EXP_COST;
    counted->swiglu(gate, up, n);
}

static void count_products(l3_session *s) {
    const l3__matmul_fn all[L3__N_TYPES] = {count_matmul_0, count_matmul_1, count_matmul_2,
                                            count_matmul_3, count_matmul_4, count_matmul_5};
    counted                              = s->work.kernels;
    counting                             = *counted;
    memcpy(counting.matmul, all, sizeof all);
    counting.weigh_rows   = count_weigh_rows;
    counting.softmax_tile = count_softmax;
    counting.swiglu       = count_swiglu;
    s->work.kernels       = &counting;
}

/* Steps of n tokens from here; 0 if one of them did more than its bound, or the result is wrong. */
static uint32_t count_steps(l3_session *s, const text *t, const mock *m, uint32_t n) {
    const l3_step_bound bound = l3_session_step_bound(s);
    uint32_t            steps = 0;
    int                 more  = l3_decode_begin(s, t->ids + l3_position(s), n, NULL) == L3_OK;
    while (more == 1) {
        const uint64_t asked = m->asked;
        const uint32_t reads = m->reads + m->starts;
        products             = 0;
        more                 = l3_decode_step(s, NULL);
        steps++;
        if (!CHECK(products <= bound.products) || !CHECK(m->asked - asked <= bound.read_bytes) ||
            !CHECK(m->reads + m->starts - reads <= bound.reads))
            return 0;
    }
    return CHECK_EQ(more, L3_OK) && same_logits(t, s) ? steps : 0;
}

/* Smaller steps are more of them, whatever the model and the plumbing, and none goes beyond what was said. */
TEST(steps_keep_their_bound) {
    for (uint64_t seed = 1; seed <= 24; seed++) {
        test_rng      r     = {seed};
        const mk_spec spec  = seed == 1 ? spec_small() : seed == 2 ? spec_wide() : mk_random_spec(seed);
        text          t     = text_new(&spec, seed);
        uint32_t      steps = UINT32_MAX;
        pipes         p     = random_pipes(&r);
        p.config.work.jobs  = jobs_of(0);
        p.config.work.batch = 1 + test_below(&r, 4);
        for (uint32_t step = 64; step <= 1u << 20; step *= 128) {
            rig  g;
            seat s;
            p.config.step = step;
            REQUIRE(pipes_open(&g, &s, &t, &p));
            const uint32_t n = t.n < s.session->work.batch ? t.n : s.session->work.batch;
            count_products(s.session);
            follow(s.session, &t, t.n - n, ONE_CALL, &r);
            const uint32_t now = count_steps(s.session, &t, &g.mock, n);
            if (!CHECK(now > 0 && now <= steps)) describe(&p);
            steps = now;
            pipes_close(&g, &s);
        }
        text_free(&t);
    }
}

/* A token of many rows four times in a batch: each row counts for four. */
TEST(steps_over_equal_tokens) {
    const mk_spec spec   = spec_small();
    text          t      = small_text();
    pipes         p      = streamed();
    const int32_t heavy  = (int32_t)spec.heavy_token;
    const int32_t ids[4] = {heavy, heavy, heavy, heavy};
    rig           g;
    seat          s;
    int           more = 1;
    p.config.step      = 2000;
    p.window_over      = -1;
    REQUIRE(pipes_open(&g, &s, &t, &p));
    count_products(s.session);
    CHECK_EQ(l3_decode_begin(s.session, ids, 4, NULL), L3_OK);
    while (more == 1) {
        products = 0;
        more     = l3_decode_step(s.session, NULL);
        CHECK(products <= 2000);
    }
    CHECK_EQ(more, L3_OK);
    pipes_close(&g, &s);
    text_free(&t);
}

TEST(the_bound_of_a_model) {
    text  t = small_text();
    pipes p = streamed();
    rig   g;
    seat  s;
    p.config.work.batch = 1;
    p.window_over       = 0;
    REQUIRE(pipes_open(&g, &s, &t, &p));
    l3_step_bound b = l3_session_step_bound(s.session);
    CHECK_EQ(b.products, 16384);
    CHECK_EQ(b.reads, 3); /* rows, with their offsets and their checksum */
    CHECK_EQ(b.read_bytes, l3_session_window_min(g.model) + 8 + 4);
    pipes_close(&g, &s);
    p.config.step       = 1;
    p.config.work.batch = 5;
    p.way               = MAPPED;
    REQUIRE(pipes_open(&g, &s, &t, &p));
    b = l3_session_step_bound(s.session);
    CHECK_EQ(b.products, L3__TILE * (2 * 16 + 16)); /* a tile of 32 positions of a head of 16; rows have at most 80 */
    CHECK_EQ(b.reads, 0);
    CHECK_EQ(b.read_bytes, 0);
    pipes_close(&g, &s);
    text_free(&t);
}

/* Everything that ends a token under way: as if it had not been begun. */
static int interrupt(l3_session *s, const text *t, int how, l3_buffer *snapshot, test_rng *r) {
    const uint32_t at = l3_position(s);
    l3_error       err;
    switch (how) {
    case 0: return follow(s, t, at + 2, ONE_BY_ONE, r);
    case 1: return follow(s, t, at + 3, ONE_CALL, r);
    case 2: return CHECK_EQ(l3_decode_batch(&s, t->ids + at, 1, NULL), L3_OK) && same_logits(t, s);
    case 3: rewind_to(s, at); break;
    case 4:
        if (!CHECK_EQ(load(s, snapshot, MAPPED, NULL), L3_OK)) return 0;
        break;
    case 5: return in_pieces(s, t, 2);
    default:
        l3_session_hint(s, t->ids, 3); /* no effect */
        while (l3_decode_step(s, NULL) == 1) l3_session_hint(s, t->ids, 3);
        return same_logits(t, s);
    }
    return CHECK_EQ(l3_decode_step(s, &err), L3_ERR_ARGUMENT) && CHECK(error_sound(L3_ERR_ARGUMENT, &err));
}

TEST(steps_that_are_interrupted) {
    text     t = small_text();
    test_rng r = {41};
    for (int i = 0; i < 70; i++) {
        pipes p = random_pipes(&r);
        rig   g;
        seat  s;
        if (i % 3 == 0) p.way.flags = MOCK_START | MOCK_HINT, p.way.map_some = 0;
        p.config.work.batch = 1 + test_below(&r, 5);
        REQUIRE(pipes_open(&g, &s, &t, &p));
        follow(s.session, &t, 5 + test_below(&r, 20), ONE_CALL, &r);
        l3_buffer      snapshot = save(s.session);
        const uint32_t at       = l3_position(s.session);
        CHECK_EQ(l3_decode_begin(s.session, t.ids + at, 1 + test_below(&r, s.session->work.batch), NULL), L3_OK);
        for (uint32_t n = test_below(&r, 60); n > 0 && l3_decode_step(s.session, NULL) == 1;) n--;
        if (!interrupt(s.session, &t, l3_position(s.session) > at ? 0 : i % 7, &snapshot, &r)) describe(&p);
        if (!follow(s.session, &t, t.n, RANDOMLY, &r)) describe(&p);
        free(snapshot.bytes);
        pipes_close(&g, &s);
    }
    text_free(&t);
}

/* A session of a batch that another one leads. */
TEST(steps_and_batches_of_others) {
    text        t = small_text();
    test_rng    r = {43};
    pipes       p = streamed();
    rig         g;
    seat        s[2];
    l3_session *sessions[2];
    int32_t     ids[2];
    REQUIRE(rig_open(&g, t.f, p.way) == L3_OK);
    for (int i = 0; i < 2; i++) {
        REQUIRE(pipes_seat(&s[i], &g, &p) && follow(s[i].session, &t, 4, ONE_CALL, &r));
        CHECK_EQ(l3_decode_begin(s[i].session, t.ids + 4, 3, NULL), L3_OK);
        for (int k = 0; k < 9 - 5 * i; k++) CHECK_EQ(l3_decode_step(s[i].session, NULL), 1);
        l3_truncate(s[0].session, l3_position(s[0].session), NULL); /* one read under way at a time in this mock */
        sessions[i] = s[i].session;
        ids[i]      = t.ids[4];
    }
    CHECK_EQ(l3_truncate(s[1].session, 4, NULL), L3_OK);
    CHECK_EQ(l3_decode_begin(s[1].session, t.ids + 4, 3, NULL), L3_OK);
    CHECK_EQ(l3_decode_batch(sessions, ids, 2, NULL), L3_OK);
    for (int i = 0; i < 2; i++) {
        CHECK(same_logits(&t, s[i].session));
        CHECK_EQ(l3_decode_step(s[i].session, NULL), L3_ERR_ARGUMENT);
        follow(s[i].session, &t, t.n, RANDOMLY, &r);
        seat_close(&s[i]);
    }
    rig_close(&g);
    text_free(&t);
}

TEST(steps_that_are_refused) {
    text     t = small_text();
    test_rng r = {44};
    pipes    p = streamed();
    rig      g;
    seat     s;
    l3_error err;
    int32_t  bad[2]  = {1, (int32_t)t.vocab};
    p.config.context = 10;
    REQUIRE(pipes_open(&g, &s, &t, &p));
    CHECK_EQ(l3_decode_step(s.session, &err), L3_ERR_ARGUMENT);
    CHECK_EQ(l3_decode_begin(s.session, t.ids, 0, &err), L3_ERR_ARGUMENT);
    CHECK_EQ(l3_decode_begin(s.session, t.ids, 9, &err), L3_ERR_ARGUMENT); /* the batch is 8 */
    CHECK_EQ(l3_decode_begin(s.session, bad, 2, &err), L3_ERR_TOKEN);
    CHECK(error_sound(L3_ERR_TOKEN, &err));
    CHECK_EQ(l3_decode_step(s.session, &err), L3_ERR_ARGUMENT);
    CHECK(in_pieces(s.session, &t, 8));
    CHECK_EQ(l3_decode_begin(s.session, t.ids + 8, 3, &err), L3_ERR_CONTEXT);
    CHECK(error_sound(L3_ERR_CONTEXT, &err));
    follow(s.session, &t, 10, RANDOMLY, &r);
    pipes_close(&g, &s);
    text_free(&t);
}

/* ---- weights pinned in RAM ---- */

/* Bytes of weights that the next token reads. */
static uint64_t weights_of_a_token(seat *s, const text *t, test_rng *r) {
    const uint64_t before = l3_session_stats(s->session).weight_bytes_read;
    follow(s->session, t, l3_position(s->session) + 1, ONE_BY_ONE, r);
    return l3_session_stats(s->session).weight_bytes_read - before;
}

/* Pins into blocks of exactly the right size, one after the other. */
static int pin(rig *g, const size_t *budgets, int n, guard *blocks) {
    int ok = 1;
    for (int i = 0; i < n; i++) {
        const size_t size = l3_model_pin_size(g->model, budgets[i]);
        l3_error     err;
        blocks[i] = guard_new(size, L3_ALIGN, 0xa5);
        ok        = ok && CHECK(size <= budgets[i]) && CHECK_EQ(l3_model_pin_size(g->model, size), size) &&
             CHECK_EQ(l3_model_pin(g->model, blocks[i].mem, size, &err), L3_OK);
    }
    return ok;
}

TEST(pinned_weights) {
    for (uint64_t seed = 1; seed <= 12; seed++) {
        const mk_spec spec = seed == 1 ? spec_small() : mk_random_spec(seed);
        text          t    = text_new(&spec, seed);
        for (int i = 0; i < 6; i++) {
            test_rng     r          = {seed * 10 + (uint64_t)i};
            const size_t budgets[2] = {i == 5 ? SIZE_MAX : test_below(&r, 1u << (8 + 2 * i)), test_below(&r, 2000)};
            pipes        p          = random_pipes(&r);
            rig          g;
            seat         s;
            guard        blocks[2];
            if (i % 2) p.way.map_some = 0;
            REQUIRE(rig_open(&g, t.f, p.way) == L3_OK && pin(&g, budgets, 2, blocks));
            if (p.way.map_some == 1) CHECK_EQ(g.model->pinned, 0);
            REQUIRE(pipes_seat(&s, &g, &p));
            if (!follow(s.session, &t, t.n, RANDOMLY, &r)) describe(&p);
            if (p.way.map_some == 0 && i == 5) { /* what is left is a row of an embedding that is not the head */
                rewind_to(s.session, t.n - 1);
                const uint64_t most = g.model->info.tied_head ? 0 : l3__most_read(&g.model->embedding, spec.dim * 4);
                CHECK(weights_of_a_token(&s, &t, &r) <= most);
            }
            pipes_close(&g, &s);
            for (int k = 0; k < 2; k++) CHECK(guard_free(&blocks[k]));
        }
        text_free(&t);
    }
}

/* As long as there are vectors and matrices to pin, a byte pinned is a byte a token less to read. */
TEST(what_pinning_saves) {
    text     t = small_text();
    test_rng r = {51};
    pipes    p = streamed();
    uint64_t all;
    p.way.flags = 0;
    for (size_t budget = 0; budget < 80000; budget += budget / 2 + 100) {
        rig   g;
        seat  s;
        guard block;
        REQUIRE(rig_open(&g, t.f, p.way) == L3_OK && pin(&g, &budget, 1, &block) && pipes_seat(&s, &g, &p));
        const uint64_t one = weights_of_a_token(&s, &t, &r);
        if (budget == 0) all = one;
        else if (!l3__in_memory(&g.model->lookups[0].offsets)) CHECK_EQ(one, all - g.model->pinned);
        else CHECK(one <= all);
        uint32_t partly = 0;
        for (uint32_t i = 0; i < g.model->info.n_blocks; i++) {
            const l3__block *b = &g.model->blocks[i];
            if (b->attn_k.data) CHECK(l3__in_memory(&b->attn_norm)); /* the smaller one first */
            if (b->attn_q.data) CHECK(l3__in_memory(&b->attn_k));
            partly += (b->attn_q.pinned != 0) + (b->attn_k.pinned != 0) + (b->ffn_up.pinned != 0);
        }
        CHECK(partly <= 1);
        pipes_close(&g, &s);
        CHECK(guard_free(&block));
    }
    text_free(&t);
}

TEST(pinning_that_fails) {
    text     t = small_text();
    test_rng r = {52};
    pipes    p = streamed();
    for (uint32_t k = 1; k < 200; k += 7) {
        rig      g;
        seat     s;
        l3_error err;
        REQUIRE(rig_open(&g, t.f, p.way) == L3_OK);
        const size_t size  = l3_model_pin_size(g.model, SIZE_MAX);
        guard        block = guard_new(size, L3_ALIGN, 0xa5), more = guard_new(size, L3_ALIGN, 0xa5);
        mock_reset_counts(&g.mock);
        g.mock.fail_at = k;
        int code       = l3_model_pin(g.model, block.mem, size, &err);
        g.mock.fail_at = 0;
        if (code != L3_OK) {
            CHECK_EQ(code, L3_ERR_IO);
            CHECK_EQ(err.io, MOCK_FAILURE);
            CHECK(error_sound(code, &err));
            code = l3_model_pin(g.model, more.mem, size, &err);
        }
        CHECK_EQ(code, L3_OK);
        CHECK_EQ(l3_model_pin_size(g.model, SIZE_MAX), 0);
        REQUIRE(pipes_seat(&s, &g, &p));
        follow(s.session, &t, t.n, RANDOMLY, &r);
        pipes_close(&g, &s);
        CHECK(guard_free(&block));
        CHECK(guard_free(&more));
    }
    rig      g;
    l3_error err;
    guard    block = guard_new(1000, L3_ALIGN, 0xa5);
    REQUIRE(rig_open(&g, t.f, p.way) == L3_OK);
    CHECK_EQ(l3_model_pin(g.model, block.mem + 1, 900, &err), L3_ERR_MEMORY);
    CHECK_EQ(l3_model_pin(g.model, NULL, 900, &err), L3_ERR_MEMORY);
    CHECK_EQ(l3_model_pin(g.model, NULL, 0, &err), L3_OK);
    CHECK_EQ(g.model->pinned, 0);
    CHECK(guard_free(&block));
    rig_close(&g);
    text_free(&t);
}

/* ---- failures, and going on ---- */

TEST(full_context) {
    text     t = small_text();
    test_rng r = {13};
    pipes    p = streamed();
    rig      g;
    seat     s;
    l3_error err;
    p.config.context = 20;
    REQUIRE(pipes_open(&g, &s, &t, &p));
    CHECK_EQ(l3_context(s.session), 20);
    for (uint32_t at = 0; at <= 20; at += 5) {
        follow(s.session, &t, at, ONE_CALL, &r);
        CHECK_EQ(l3_prefill(s.session, t.ids, 21 - at, NULL, &err), L3_ERR_CONTEXT);
        CHECK(error_sound(L3_ERR_CONTEXT, &err));
        CHECK_EQ(l3_position(s.session), at);
    }
    CHECK_EQ(l3_decode(s.session, 1, NULL), L3_ERR_CONTEXT);
    CHECK_EQ(l3_prefill(s.session, t.ids, UINT32_MAX, NULL, &err) < 0, 1);
    CHECK_EQ(l3_truncate(s.session, 21, &err), L3_ERR_ARGUMENT);
    CHECK_EQ(l3_position(s.session), 20);
    CHECK(same_logits(&t, s.session));
    rewind_to(s.session, 3);
    follow(s.session, &t, 20, RANDOMLY, &r);
    pipes_close(&g, &s);
    text_free(&t);
}

TEST(bad_tokens) {
    static const int32_t wrong[] = {-1, INT32_MIN, INT32_MAX, 270, 271};
    text                 t       = small_text();
    test_rng             r       = {14};
    pipes                p       = streamed();
    rig                  g;
    seat                 s;
    l3_error             err;
    REQUIRE(pipes_open(&g, &s, &t, &p) && follow(s.session, &t, 5, ONE_CALL, &r));
    for (int i = 0; i < 5; i++)
        for (uint32_t at = 5; at < 20; at++) {
            const int32_t kept = t.ids[at];
            t.ids[at]          = wrong[i];
            CHECK_EQ(l3_prefill(s.session, t.ids + 5, 15, NULL, &err), L3_ERR_TOKEN);
            CHECK(error_sound(L3_ERR_TOKEN, &err));
            t.ids[at] = kept;
        }
    CHECK_EQ(l3_decode(s.session, -1, NULL), L3_ERR_TOKEN);
    CHECK_EQ(l3_prefill(s.session, t.ids, 0, NULL, &err), L3_ERR_ARGUMENT);
    l3_session_hint(s.session, wrong, 5); /* is only a hint */
    CHECK_EQ(l3_position(s.session), 5);
    follow(s.session, &t, t.n, RANDOMLY, &r);
    pipes_close(&g, &s);
    text_free(&t);
}

typedef struct stopper {
    uint32_t calls, stop_at;
} stopper;

static int stop(void *user) {
    stopper *s = (stopper *)user;
    return ++s->calls == s->stop_at;
}

TEST(sources_that_fail) {
    text     t = small_text();
    test_rng r = {15};
    for (int i = 0; i < 12; i += test_quick() ? 5 : 1) {
        rig   g;
        seat  s;
        pipes p             = streamed();
        p.way.flags         = (unsigned)i & 3; /* start and wait, hint */
        p.way.align         = i & 2 ? 64 : 0;
        p.config.work.cache = i % 3 == 0 ? 0 : i % 3 == 1 ? 8000 : 100000;
        p.config.work.batch = i & 4 ? 5 : 16;
        p.window_over       = i & 8 ? 0 : 3000;
        REQUIRE(pipes_open(&g, &s, &t, &p));
        const uint32_t failures =
            disturb(&s, &t, i % 2 ? IN_PIECES : ONE_CALL, &g.mock.calls, &g.mock.fail_at, L3_ERR_IO, &r);
        if (!CHECK(failures > 20)) describe(&p);
        CHECK(!g.mock.dst);
        rewind_to(s.session, 0);
        follow(s.session, &t, t.n, RANDOMLY, &r);
        pipes_close(&g, &s);
    }
    text_free(&t);
}

TEST(callers_that_stop) {
    text     t = small_text();
    test_rng r = {16};
    for (int i = 0; i < 8; i += test_quick() ? 3 : 1) {
        rig     g;
        seat    s;
        stopper brake               = {0, 0};
        pipes   p                   = streamed();
        p.way.map_some              = (uint32_t)(i & 1);
        p.way.flags                 = i & 2 ? MOCK_START : 0;
        p.config.work.cache         = i & 4 ? 20000 : 0;
        p.window_over               = i & 2 ? -1 : 0;
        p.config.work.progress      = stop;
        p.config.work.progress_user = &brake;
        REQUIRE(pipes_open(&g, &s, &t, &p));
        CHECK(disturb(&s, &t, i % 2 ? IN_PIECES : ONE_CALL, &brake.calls, &brake.stop_at, L3_ERR_CANCELLED, &r) > 20);
        follow(s.session, &t, t.n, RANDOMLY, &r);
        pipes_close(&g, &s);
    }
    text_free(&t);
}

/* A batch that fails moves none of its sessions. */
TEST(batches_that_fail) {
    text        t = small_text();
    test_rng    r = {17};
    pipes       p = streamed();
    rig         g;
    seat        s[4];
    l3_session *sessions[4];
    int32_t     ids[4];
    l3_error    err;
    uint32_t    k       = 0;
    p.config.work.batch = 3;
    p.way.flags         = MOCK_START; /* without hints, whose failures do not count */
    REQUIRE(rig_open(&g, t.f, p.way) == L3_OK);
    for (uint32_t i = 0; i < 4; i++) {
        REQUIRE(pipes_seat(&s[i], &g, &p) && follow(s[i].session, &t, 5 * i, ONE_CALL, &r));
        sessions[i] = s[i].session;
        ids[i]      = t.ids[5 * i];
    }
    for (;;) {
        g.mock.calls   = 0;
        g.mock.fail_at = ++k;
        const int code = l3_decode_batch(sessions, ids, 4, &err);
        g.mock.fail_at = 0;
        if (code == L3_OK || !CHECK_EQ(code, L3_ERR_IO)) break;
        for (uint32_t i = 0; i < 4; i++) CHECK_EQ(l3_position(sessions[i]), 5 * i);
    }
    CHECK(k > 50);
    for (uint32_t i = 0; i < 4; i++) {
        same_logits(&t, sessions[i]);
        follow(sessions[i], &t, t.n, RANDOMLY, &r);
        seat_close(&s[i]);
    }
    rig_close(&g);
    text_free(&t);
}

/* ---- damaged rows ---- */

/* Where the rows of a token begin in the file. */
static size_t rows_at(const l3_model *model, uint32_t layer, int32_t token, const unsigned char *bytes, size_t *n) {
    const l3_lookup *l       = l3_model_lookup(model, layer, NULL);
    const size_t     row     = (size_t)l3_row_bytes(l->rows.type, l->rows.cols);
    const uint8_t   *offsets = bytes + l->offsets.offset + 4 * (size_t)token;
    *n                       = row * (l3__le32(offsets + 4) - l3__le32(offsets));
    return (size_t)l->rows.offset + row * l3__le32(offsets);
}

static int in_text(const text *t, int32_t token) {
    uint32_t i = 0;
    while (i < t->n && t->ids[i] != token) i++;
    return i < t->n;
}

static void damage_rows(const text *t, pipes p, int noticed, test_rng *r) {
    rig      g;
    seat     s;
    l3_error err;
    size_t   n;
    REQUIRE(pipes_open(&g, &s, t, &p));
    for (int32_t i = 0, token; i < 12; i++) {
        for (token = i ? 30 + 10 * i : 5; i && in_text(t, token); token++) continue; /* not in a cache yet */
        const size_t at      = rows_at(g.model, (uint32_t)i % 2, token, t->f.bytes, &n),
                     flip    = n ? at + test_below(r, (uint32_t)n) : 0;
        const uint32_t place = l3_position(s.session);
        if (n == 0) continue;
        t->f.bytes[flip] ^= 0x10;
        const int code = l3_decode(s.session, token, &err);
        t->f.bytes[flip] ^= 0x10;
        CHECK_EQ(code, noticed ? L3_ERR_CHECKSUM : L3_OK);
        if (noticed) CHECK(error_sound(code, &err));
        rewind_to(s.session, place);
        if (!noticed && p.config.work.cache) break; /* the cache has the damaged rows now */
        if (!follow(s.session, t, place + 3, ONE_CALL, r)) describe(&p);
        CHECK_EQ(l3_decode(s.session, token, &err), L3_OK);
        rewind_to(s.session, place + 3);
    }
    pipes_close(&g, &s);
}

TEST(damaged_rows) {
    text     t = small_text();
    test_rng r = {18};
    for (int i = 0; i < 16; i++)
        for (int verify = 0; verify < 3; verify++) {
            pipes p              = streamed();
            p.way.map_some       = (uint32_t)(i & 1);
            p.way.flags          = i & 2 ? MOCK_START : 0;
            p.config.work.cache  = i & 4 ? 60000 : 0;
            p.window_over        = i & 8 ? 0 : -1;
            p.config.work.verify = (l3_verify)verify;
            damage_rows(&t, p, verify == L3_VERIFY_ALL || (verify == L3_VERIFY_READS && !p.way.map_some), &r);
        }
    text_free(&t);
}

/* ---- smaller KV caches ---- */

/* Largest difference from the F32 cache, relative to the largest logit. */
static double kv_loss(const text *t, int kv) {
    const size_t n    = (size_t)t->n * t->vocab;
    double       most = 0, peak = 1;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)t->expected[kv][i] - (double)t->expected[0][i]);
        if (fabs(t->expected[0][i]) > peak) peak = fabs(t->expected[0][i]);
        if (!(d <= most)) most = d;
    }
    return most / peak;
}

TEST(small_kv_caches) {
    double most[3] = {0, 0, 0};
    for (uint64_t seed = 1; seed <= 12; seed++) {
        mk_spec spec  = mk_random_spec(seed + 500);
        spec.key_norm = 0; /* its steep scores would magnify any difference */
        text t        = text_new(&spec, seed);
        for (int kv = 1; kv < 3; kv++)
            if (kv_loss(&t, kv) > most[kv]) most[kv] = kv_loss(&t, kv);
        text_free(&t);
    }
    CHECK(most[1] > 0 && most[1] < 1e-3);
    CHECK(most[2] > 0 && most[2] < 3e-2);
    if (test_verbose()) fprintf(stderr, "  loss with f16: %.3g, with q8_0: %.3g\n", most[1], most[2]);
}

#if defined(L3_THREADS) && defined(__linux__)
static void count_piece(void *arg, uint32_t i) { ((uint32_t *)arg)[i]++; }

/* Workers that shall rest do, at most half of them; every piece is still done once, and a pool ends while they rest. */
TEST(workers_rest) {
    guard    mem      = guard_new(l3_pool_size(), L3_ALIGN, 0xcd);
    l3_pool *pool     = NULL;
    uint32_t done[64] = {0}, most = 0, runs = 0;
    REQUIRE(l3_pool_init(&pool, 4, mem.mem, l3_pool_size(), NULL) == L3_OK);
    for (uint32_t resting = 0; most < 2 && runs < 1000000; runs++) {
        __atomic_store_n(&pool->tired, 1, __ATOMIC_RELAXED);
        l3_pool_jobs(pool).run(pool, 64, count_piece, done);
        pthread_mutex_lock(&pool->lock);
        resting = pool->resting;
        pthread_mutex_unlock(&pool->lock);
        if (resting > most) most = resting;
    }
    for (int i = 0; i < 1000; i++, runs++) {
        __atomic_store_n(&pool->tired, 1, __ATOMIC_RELAXED);
        l3_pool_jobs(pool).run(pool, 64, count_piece, done);
    }
    pthread_mutex_lock(&pool->lock);
    if (pool->resting > most) most = pool->resting;
    pthread_mutex_unlock(&pool->lock);
    CHECK_EQ(most, 2);
    for (int i = 0; i < 64; i++) CHECK_EQ(done[i], runs);
    l3_pool_free(pool);
    CHECK(guard_free(&mem));
}
#endif

int main(void) {
    RUN(every_batch_and_split);
    RUN(every_window_and_alignment);
    RUN(every_cache);
    RUN(every_number_of_threads);
    RUN(random_models_through_random_pipes);
    RUN(the_same_bits_on_every_machine);
    RUN(statistics);
    RUN(interleaved_sessions);
    RUN(decoding_in_batches);
    RUN(batches_that_are_refused);
#ifdef L3_THREADS
    RUN(sessions_in_threads);
    RUN(rows_read_by_a_thread);
    RUN(reading_threads_that_fail);
    RUN(sessions_that_share_a_reading_thread);
    RUN(readers_that_are_refused);
#endif
    RUN(snapshots);
    RUN(snapshots_that_cannot_be_written);
    RUN(snapshots_of_others);
    RUN(damaged_snapshots);
    RUN(snapshots_that_change);
    RUN(snapshots_that_cannot_be_read);
    RUN(steps_keep_their_bound);
    RUN(steps_over_equal_tokens);
    RUN(the_bound_of_a_model);
    RUN(steps_that_are_interrupted);
    RUN(steps_and_batches_of_others);
    RUN(steps_that_are_refused);
    RUN(pinned_weights);
    RUN(what_pinning_saves);
    RUN(pinning_that_fails);
    RUN(full_context);
    RUN(bad_tokens);
    RUN(sources_that_fail);
    RUN(callers_that_stop);
    RUN(batches_that_fail);
    RUN(damaged_rows);
    RUN(small_kv_caches);
    free_pools();
#if defined(L3_THREADS) && defined(__linux__)
    RUN(workers_rest);
#endif
    return test_report("plumbing");
}
