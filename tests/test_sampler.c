/* test_sampler.c - sampling against a naive one in double precision, written from the order of its steps alone. */
#define L3_NO_SIMD /* no model is run here: compiles in half the time */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "guard.h"
#include "test.h"

enum { MAX_VOCAB = 500 };

/* ---- the generator ---- */

/* Published for seed 1234567 (Rosetta Code, "Pseudo-random numbers/Splitmix64"); those of seed 1 come from a separate program
 * that gives the published ones too. */
TEST(generator) {
    static const uint64_t one[5]  = {0x910a2dec89025cc1u, 0xbeeb8da1658eec67u, 0xf893a2eefb32555eu, 0x71c18690ee42c90bu,
                                     0x71bb54d8d101b5b9u};
    static const uint64_t many[5] = {6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
                                     4593380528125082431u, 16408922859458223821u};
    uint64_t              a = 1, b = 1234567;
    for (int i = 0; i < 5; i++) {
        CHECK(l3_random(&a) == one[i]);
        CHECK(l3_random(&b) == many[i]);
    }
}

/* ---- the naive sampler ---- */

typedef struct choice {
    double  logit, p;
    int32_t id;
} choice;

typedef struct naive {
    l3_sampling    options;
    uint32_t       vocab;
    uint64_t       state;
    const int32_t *history;
    size_t         n_history;
    double         margin; /* how near the last answer was to another one */
} naive;

static int by_logit(const void *a, const void *b) {
    const choice *x = (const choice *)a, *y = (const choice *)b;
    if (x->logit < y->logit || x->logit > y->logit) return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

static int is_recent(const naive *s, int32_t id) {
    const size_t last = s->options.repeat_last_n;
    for (size_t i = s->n_history > last ? s->n_history - last : 0; i < s->n_history; i++)
        if (s->history[i] == id) return 1;
    return 0;
}

static uint32_t ranked(const naive *s, const float *logits, choice *out) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->vocab; i++) {
        double x = (double)logits[i];
        if (isnan(x)) continue;
        if (is_recent(s, (int32_t)i))
            x = x > 0 ? x / (double)s->options.repeat_penalty : x * (double)s->options.repeat_penalty;
        if (isinf(x) && x < 0) continue;
        out[n].logit = x;
        out[n++].id  = (int32_t)i;
    }
    qsort(out, n, sizeof *out, by_logit);
    return s->options.top_k && s->options.top_k < n ? s->options.top_k : n;
}

static void probabilities(choice *c, uint32_t n, double temperature) {
    double total = 0;
    for (uint32_t i = 0; i < n; i++) total += c[i].p = exp((c[i].logit - c[0].logit) / temperature);
    for (uint32_t i = 0; i < n; i++) c[i].p /= total;
}

static void keep_margin(naive *s, double distance) {
    if (distance != 0 && fabs(distance) < s->margin) s->margin = fabs(distance);
}

static uint32_t cut_top_p(naive *s, const choice *c, uint32_t n) {
    double   sum = 0;
    uint32_t i   = 0;
    if (s->options.top_p >= 1) return n;
    do {
        sum += c[i++].p;
        keep_margin(s, sum - (double)s->options.top_p);
    } while (i < n && sum < (double)s->options.top_p);
    return i;
}

static uint32_t cut_min_p(naive *s, const choice *c, uint32_t n) {
    uint32_t kept = 1;
    while (kept < n && c[kept].p >= (double)s->options.min_p * c[0].p) kept++;
    for (uint32_t i = 1; i < n; i++) keep_margin(s, c[i].p / c[0].p - (double)s->options.min_p);
    return kept;
}

/* -1: no finite maximum. */
static int32_t naive_sample(naive *s, const float *logits) {
    static choice c[MAX_VOCAB];
    uint32_t      n = ranked(s, logits, c), i = 0;
    s->margin = 1;
    if (n == 0 || isinf(c[0].logit)) return -1;
    if (s->options.temperature == 0.0f) return c[0].id;
    probabilities(c, n, 1);
    n = cut_top_p(s, c, n);
    n = cut_min_p(s, c, n);
    probabilities(c, n, (double)s->options.temperature);
    const double u   = (double)(l3_random(&s->state) >> 40) / 16777216.0;
    double       sum = c[0].p;
    for (; i + 1 < n && sum <= u; sum += c[++i].p) keep_margin(s, sum - u);
    if (i + 1 < n) keep_margin(s, sum - u);
    return c[i].id;
}

/* ---- both, side by side ---- */

typedef struct pair {
    naive       naive;
    guard       block;
    l3_sampler *sampler;
    int32_t     history[1000];
} pair;

static int pair_open(pair *p, const l3_sampling *o, uint32_t vocab) {
    const size_t size = l3_sampler_size(o, vocab);
    memset(&p->naive, 0, sizeof p->naive);
    p->naive.options = *o;
    p->naive.vocab   = vocab;
    p->naive.state   = o->seed;
    p->naive.history = p->history;
    p->block         = guard_new(size, L3_ALIGN, 0xff);
    return CHECK_EQ(l3_sampler_init(&p->sampler, o, vocab, p->block.mem, size, NULL), L3_OK);
}

static void pair_accept(pair *p, const int32_t *ids, size_t n) {
    for (size_t i = 0; i < n && p->naive.n_history < 1000; i++) p->history[p->naive.n_history++] = ids[i];
    l3_sampler_accept(p->sampler, ids, n);
}

/* 1: the same; 0: not, and it was not a matter of rounding. */
static int pair_sample(pair *p, const float *logits, int32_t *id) {
    l3_error      err;
    const int     code = l3_sample(p->sampler, logits, id, &err);
    const int32_t want = naive_sample(&p->naive, logits);
    CHECK(p->sampler->state == p->naive.state); /* one draw, one number */
    if (want < 0) return CHECK_EQ(code, L3_ERR_NUMBER) && CHECK(err.code == code && err.text[0]);
    return CHECK_EQ(code, L3_OK) && (*id == want || p->naive.margin < 1e-5 || CHECK_EQ(*id, want));
}

static void pair_close(pair *p) { CHECK(guard_free(&p->block)); }

enum { LOGITS = 8 };

static void random_logits(test_rng *r, uint32_t kind, float *logits, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        logits[i] = (float)(3 * test_normal(r));
        if (kind == 1) logits[i] = (float)test_below(r, 5) - 2; /* ties */
        if (kind == 2 && test_below(r, 3) == 0) logits[i] = (float)NAN;
        if (kind == 3 && test_below(r, 3) == 0) logits[i] = -INFINITY;
        if (kind == 4) logits[i] = 1.5f;
        if (kind == 5) logits[i] *= 30;
        if (kind == 6) logits[i] = test_below(r, 2) ? 0.0f : -0.0f;
        if (kind == 7) logits[i] = i % 7 == 3 ? logits[i] : test_below(r, 2) ? -INFINITY : (float)NAN;
    }
}

static l3_sampling random_options(test_rng *r, uint32_t vocab) {
    static const float temperatures[] = {0, 0.3f, 0.8f, 1, 2.5f}, ps[] = {0, 0.1f, 0.5f, 0.95f, 1},
                       penalties[] = {1, 1, 1.1f, 2, 0.7f};
    l3_sampling o                  = l3_sampling_defaults();
    o.temperature                  = temperatures[test_below(r, 5)];
    o.top_k                        = test_below(r, 2) ? test_below(r, vocab + 3) : 0;
    o.top_p                        = ps[test_below(r, 5)];
    o.min_p                        = test_below(r, 2) ? ps[test_below(r, 5)] : 0;
    o.repeat_penalty               = penalties[test_below(r, 5)];
    o.repeat_last_n                = test_below(r, 3) ? test_below(r, 70) : 0;
    o.seed                         = test_random(r);
    return o;
}

TEST(against_naive) {
    const int   turns  = test_flag("L3_LONG") ? 20000 : 1500;
    test_rng    r      = {1};
    long        unsure = 0, all = 0;
    static pair p;
    for (int turn = 0; turn < turns; turn++) {
        const uint32_t    vocab = turn % 10 == 0 ? 1 : 1 + test_below(&r, turn % 3 ? 20 : MAX_VOCAB);
        const l3_sampling o     = random_options(&r, vocab);
        float             logits[MAX_VOCAB];
        int32_t           id = 0, ids[50];
        int               ok = pair_open(&p, &o, vocab);
        for (uint32_t i = 0; i < 50; i++) ids[i] = (int32_t)test_below(&r, vocab + 2) - 1; /* some are no tokens */
        pair_accept(&p, ids, test_below(&r, 50));
        for (int i = 0; ok && i < 12; i++, all++) {
            random_logits(&r, test_below(&r, LOGITS), logits, vocab);
            ok = pair_sample(&p, logits, &id);
            unsure += p.naive.margin < 1e-5;
            pair_accept(&p, &id, 1);
        }
        if (!ok)
            fprintf(stderr, "    turn %d: vocab %u, temperature %g, k %u, p %g, min %g, penalty %g over %u\n", turn,
                    vocab, (double)o.temperature, o.top_k, (double)o.top_p, (double)o.min_p, (double)o.repeat_penalty,
                    o.repeat_last_n);
        pair_close(&p);
    }
    if (test_verbose()) fprintf(stderr, "  %ld draws, %ld too near to another answer\n", all, unsure);
    CHECK(unsure * 10 < all);
}

/* ---- plain cases ---- */

static int sample_once(l3_sampling o, const float *logits, uint32_t vocab, int32_t *id) {
    uint64_t    mem[200];
    void       *p    = mem;
    uintptr_t   skip = (L3_ALIGN - (uintptr_t)p % L3_ALIGN) % L3_ALIGN;
    l3_sampler *s;
    CHECK_EQ(l3_sampler_init(&s, &o, vocab, (unsigned char *)p + skip, sizeof mem - skip, NULL), L3_OK);
    return l3_sample(s, logits, id, NULL);
}

TEST(numbers_that_are_none) {
    const float bad[4][3] = {{1, INFINITY, 2},
                             {(float)NAN, (float)NAN, (float)NAN},
                             {-INFINITY, -INFINITY, -INFINITY},
                             {(float)NAN, -INFINITY, INFINITY}};
    const float good[3]   = {(float)NAN, -INFINITY, -1e30f};
    for (int greedy = 0; greedy < 2; greedy++) {
        l3_sampling o  = l3_sampling_defaults();
        int32_t     id = -7;
        if (greedy) o.temperature = 0;
        for (int i = 0; i < 4; i++) CHECK_EQ(sample_once(o, bad[i], 3, &id), L3_ERR_NUMBER);
        CHECK_EQ(id, -7);
        CHECK_EQ(sample_once(o, good, 3, &id), L3_OK);
        CHECK_EQ(id, 2);
    }
}

TEST(ties_go_to_the_lowest_id) {
    const float logits[6] = {0, 3, 1, 3, 3, -1};
    for (uint32_t k = 0; k <= 2; k++) {
        l3_sampling o = l3_sampling_defaults();
        int32_t     id;
        o.top_k = k, o.temperature = k == 2 ? 0.8f : 0, o.top_p = k == 2 ? 0 : 1;
        CHECK_EQ(sample_once(o, logits, 6, &id), L3_OK);
        CHECK_EQ(id, 1);
    }
}

TEST(defaults) {
    const l3_sampling o = l3_sampling_defaults();
    CHECK_NEAR(o.temperature, 0.8, 1e-7);
    CHECK_NEAR(o.top_p, 0.95, 1e-7);
    CHECK_NEAR(o.min_p, 0.05, 1e-7);
    CHECK_NEAR(o.repeat_penalty, 1, 0);
    CHECK_EQ(o.top_k, 40);
}

/* The penalty covers the last repeat_last_n tokens and no more. */
TEST(recent_tokens) {
    const float   logits[4] = {2.0f, 1.5f, 1.2f, -3};
    static pair   p;
    l3_sampling   o      = l3_sampling_defaults();
    const int32_t seen[] = {0, 1, 2, 3, 3, 3};
    const int32_t want[] = {0, 1, 2, 0, 0, 1, 2}; /* after that many tokens */
    int32_t       id;
    o.temperature = 0, o.repeat_penalty = 2, o.repeat_last_n = 3;
    REQUIRE(pair_open(&p, &o, 4));
    for (int i = 0; i < 7; i++) {
        CHECK_EQ(l3_sample(p.sampler, logits, &id, NULL), L3_OK);
        if (i < 4) CHECK_EQ(id, want[i]);
        if (i < 6) l3_sampler_accept(p.sampler, &seen[i], 1);
    }
    CHECK_EQ(id, 0); /* only 3 is recent */
    pair_close(&p);
}

/* ---- frequencies ---- */

TEST(frequencies) {
    enum { V = 16, DRAWS = 100000 };
    float       logits[V];
    double      p[V], total = 0, chi = 0;
    long        count[V] = {0};
    test_rng    r        = {3};
    static pair s;
    l3_sampling o = l3_sampling_defaults();
    int32_t     id;
    o.top_k = 0, o.top_p = 1, o.min_p = 0, o.seed = 42;
    REQUIRE(pair_open(&s, &o, V));
    for (int i = 0; i < V; i++) {
        logits[i]     = (float)test_normal(&r);
        total += p[i] = exp((double)logits[i] / (double)o.temperature);
    }
    for (int i = 0; i < DRAWS; i++)
        if (l3_sample(s.sampler, logits, &id, NULL) == L3_OK) count[id]++;
    for (int i = 0; i < V; i++) {
        const double expected = DRAWS * p[i] / total;
        chi += ((double)count[i] - expected) * ((double)count[i] - expected) / expected;
    }
    CHECK(chi < 37.7); /* 15 degrees of freedom: 0.1% of all seeds give more */
    if (test_verbose()) fprintf(stderr, "  chi-square %.1f\n", chi);
    pair_close(&s);
}

int main(void) {
    RUN(generator);
    RUN(against_naive);
    RUN(numbers_that_are_none);
    RUN(ties_go_to_the_lowest_id);
    RUN(defaults);
    RUN(recent_tokens);
    RUN(frequencies);
    return test_report("sampler");
}
