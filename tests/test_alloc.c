/* test_alloc.c - the allocator of l3.h against ref.c's, against a naive parse with a bounded dictionary, and against
 * the fixtures, which come from an independent implementation. */
#include "../l3.h"

#include "guard.h"
#include "json.h"
#include "ref.h"
#include "test.h"

enum { MAX_VOCAB = 16, MAX_DOCS = 12, MAX_LENGTH = 64, MAX_WORDS = MAX_DOCS * MAX_LENGTH + MAX_VOCAB };

typedef struct corpus {
    uint32_t vocab;
    size_t   n_docs, lengths[MAX_DOCS];
    int32_t  tokens[MAX_DOCS][MAX_LENGTH];
} corpus;

/* Documents of noise, of one repeated pattern, of a single token, of nothing. */
static void random_document(corpus *c, size_t doc, test_rng *r) {
    const uint32_t kind = test_below(r, 6), period = 1 + test_below(r, 5), span = 1 + test_below(r, c->vocab);
    const size_t   n = kind == 0 ? 0 : kind == 1 ? 1 : 1 + test_below(r, MAX_LENGTH);
    for (size_t i = 0; i < n; i++) {
        const int repeat  = kind >= 4 && i >= period;
        c->tokens[doc][i] = repeat ? c->tokens[doc][i - period] : (int32_t)test_below(r, span);
    }
    c->lengths[doc] = n;
}

static corpus random_corpus(test_rng *r) {
    corpus c;
    memset(&c, 0, sizeof c);
    c.vocab  = 1 + test_below(r, MAX_VOCAB);
    c.n_docs = test_below(r, MAX_DOCS + 1);
    for (size_t i = 0; i < c.n_docs; i++) random_document(&c, i, r);
    return c;
}

static uint64_t corpus_tokens(const corpus *c) {
    uint64_t n = 0;
    for (size_t i = 0; i < c->n_docs; i++) n += c->lengths[i];
    return n;
}

/* ---- l3_alloc_* ---- */

typedef struct outcome {
    int             code;
    uint32_t        counts[MAX_VOCAB];
    l3_alloc_report report;
} outcome;

static void add_in_pieces(l3_alloc *a, const int32_t *tokens, size_t n, test_rng *r) {
    while (n) {
        const size_t piece = test_below(r, 4) ? test_below(r, (uint32_t)n + 1) : n;
        CHECK_EQ(l3_alloc_add(a, tokens, piece, NULL), L3_OK);
        tokens += piece;
        n -= piece;
    }
}

static void take_counts(const int32_t *offsets, uint32_t vocab, uint32_t rows, uint32_t *counts) {
    CHECK_EQ(offsets[0], 0);
    CHECK_EQ(offsets[vocab], rows);
    for (uint32_t t = 0; t < vocab; t++) counts[t] = (uint32_t)(offsets[t + 1] - offsets[t]);
}

static outcome run_alloc(const corpus *c, uint32_t words, uint32_t rows, uint32_t max, test_rng *r) {
    outcome      o;
    const size_t size = l3_alloc_size(c->vocab, words);
    guard        g    = guard_new(size, L3_ALIGN, 0xcd);
    int32_t      offsets[MAX_VOCAB + 1];
    l3_alloc    *a = NULL;
    memset(&o, 0, sizeof o);
    CHECK_EQ(l3_alloc_init(&a, c->vocab, words, g.mem, size, NULL), L3_OK);
    for (size_t i = 0; i < c->n_docs; i++) {
        add_in_pieces(a, c->tokens[i], c->lengths[i], r);
        if (i + 1 < c->n_docs || test_below(r, 2)) l3_alloc_end_document(a);
        if (test_below(r, 4) == 0) l3_alloc_end_document(a);
    }
    o.code = l3_alloc_finish(a, rows, max, offsets, &o.report, NULL);
    if (o.code == L3_OK) take_counts(offsets, c->vocab, rows, o.counts);
    CHECK(guard_free(&g));
    return o;
}

/* ---- the listing once more, with a bounded dictionary and nothing clever ---- */

typedef struct word {
    const int32_t *tokens;
    size_t         n;
    uint64_t       count;
} word;

typedef struct naive {
    word     words[MAX_WORDS];
    size_t   n, limit;
    uint64_t given, full_after;
    int32_t  singles[MAX_VOCAB];
    uint64_t frequency[MAX_VOCAB];
} naive;

static word *naive_find(naive *d, const int32_t *tokens, size_t n) {
    for (size_t i = 0; i < d->n; i++)
        if (d->words[i].n == n && memcmp(d->words[i].tokens, tokens, n * sizeof *tokens) == 0) return &d->words[i];
    return NULL;
}

static void naive_set(naive *d, const int32_t *tokens, size_t n, uint64_t count, uint64_t given) {
    word *w = naive_find(d, tokens, n);
    if (!w && d->n == d->limit) {
        if (d->full_after == 0) d->full_after = given;
        return;
    }
    if (!w) w = &d->words[d->n++];
    w->tokens = tokens;
    w->n      = n;
    w->count  = count;
}

static void naive_parse(naive *d, const int32_t *toks, size_t n) {
    size_t last = 0, cur = 1;
    while (cur < n) {
        while (cur < n && naive_find(d, toks + last, cur - last)) cur++;
        naive_find(d, toks + last, cur - 1 - last)->count++;
        naive_set(d, toks + last, cur - last, 1, d->given + (cur < n ? cur + 1 : n));
        last = cur;
        cur++;
    }
    for (size_t i = 0; i < n; i++) d->frequency[toks[i]]++;
    d->given += n;
}

static void naive_start(naive *d, uint32_t vocab, size_t limit) {
    memset(d, 0, sizeof *d);
    d->limit = vocab;
    for (uint32_t t = 0; t < vocab; t++) {
        d->singles[t] = (int32_t)t;
        naive_set(d, &d->singles[t], 1, 0, 0);
    }
    d->limit = limit;
}

/* Gives one row to a token if it may have one. */
static uint32_t naive_give(uint32_t *count, uint32_t left, uint32_t max) {
    if (left == 0 || (max && *count >= max)) return 0;
    ++*count;
    return 1;
}

/* The highest count not yet used up, the first of equals; `used` marks them. */
static size_t next_highest(const uint64_t *counts, char *used, size_t n) {
    size_t best = n;
    for (size_t i = 0; i < n; i++)
        if (!used[i] && (best == n || counts[i] > counts[best])) best = i;
    used[best] = 1;
    return best;
}

/* Returns the rows that were left when the codewords had run out. */
static uint32_t naive_place(const naive *d, uint32_t vocab, uint32_t rows, uint32_t max, uint32_t *counts) {
    uint64_t word_counts[MAX_WORDS];
    char     used[MAX_WORDS] = {0};
    uint32_t left            = rows - vocab, fallback;
    for (uint32_t t = 0; t < vocab; t++) counts[t] = 1;
    for (size_t i = 0; i < d->n; i++) word_counts[i] = d->words[i].count;
    for (size_t i = 0; i < d->n; i++) {
        const word *w = &d->words[next_highest(word_counts, used, d->n)];
        left -= naive_give(&counts[w->tokens[w->n - 1]], left, max);
    }
    for (fallback = left; left;) {
        char again[MAX_VOCAB] = {0};
        for (uint32_t i = 0; i < vocab; i++) {
            const size_t t = next_highest(d->frequency, again, vocab);
            left -= naive_give(&counts[t], left, max);
        }
    }
    return fallback;
}

/* ---- comparisons ---- */

typedef struct demand {
    uint32_t rows, max;
} demand;

static demand random_demand(const corpus *c, test_rng *r) {
    demand d;
    d.rows = c->vocab + test_below(r, 1 + test_below(r, 200));
    d.max  = test_below(r, 3) ? (d.rows + c->vocab - 1) / c->vocab + test_below(r, 20) : 0;
    return d;
}

static void check_report(const corpus *c, const outcome *o, uint32_t rows, uint64_t by_frequency) {
    uint64_t documents = 0;
    for (size_t i = 0; i < c->n_docs; i++) documents += c->lengths[i] > 0;
    CHECK_EQ(o->report.tokens, corpus_tokens(c));
    CHECK_EQ(o->report.documents, documents);
    CHECK_EQ(o->report.placed_by_frequency, by_frequency);
    CHECK_EQ(o->report.placed_by_code, rows - c->vocab - by_frequency);
}

static void against_reference(const corpus *c, demand d, test_rng *r) {
    const int32_t *docs[MAX_DOCS];
    uint32_t       counts[MAX_VOCAB] = {0};
    uint64_t       fallback          = 0;
    const outcome  o                 = run_alloc(c, MAX_WORDS, d.rows, d.max, r);
    for (size_t i = 0; i < c->n_docs; i++) docs[i] = c->tokens[i];
    REQUIRE(o.code == L3_OK);
    CHECK_EQ(ref_alloc(docs, c->lengths, c->n_docs, c->vocab, d.rows, d.max, counts, &fallback), d.rows);
    CHECK_MEM(o.counts, counts, c->vocab * sizeof *counts);
    CHECK_EQ(o.report.full_after, 0);
    check_report(c, &o, d.rows, fallback);
}

static void against_naive(const corpus *c, uint32_t words, demand d, test_rng *r) {
    static naive  n;
    uint32_t      counts[MAX_VOCAB] = {0};
    const outcome o                 = run_alloc(c, words, d.rows, d.max, r);
    naive_start(&n, c->vocab, words);
    for (size_t i = 0; i < c->n_docs; i++) naive_parse(&n, c->tokens[i], c->lengths[i]);
    REQUIRE(o.code == L3_OK);
    check_report(c, &o, d.rows, naive_place(&n, c->vocab, d.rows, d.max, counts));
    CHECK_MEM(o.counts, counts, c->vocab * sizeof *counts);
    CHECK_EQ(o.report.codewords, n.n);
    CHECK_EQ(o.report.full_after, n.full_after);
}

TEST(random_corpora) {
    test_rng r = {1};
    for (int i = 0; i < (test_quick() ? 500 : 3000); i++) {
        const corpus c = random_corpus(&r);
        against_reference(&c, random_demand(&c, &r), &r);
    }
}

TEST(full_dictionaries) {
    test_rng r = {2};
    for (int i = 0; i < (test_quick() ? 300 : 1500); i++) {
        const corpus c = random_corpus(&r);
        against_naive(&c, c.vocab + test_below(&r, 1 + test_below(&r, 80)), random_demand(&c, &r), &r);
    }
}

/* Counts above 2^16, where codewords are no longer ordered by counting alone. */
TEST(large_counts) {
    static naive   n;
    static int32_t tokens[1000];
    enum { VOCAB = 5, WORDS = 12, ROWS = 14, ROUNDS = 1500 };
    guard     g = guard_new(l3_alloc_size(VOCAB, WORDS), L3_ALIGN, 0xff);
    l3_alloc *a;
    int32_t   offsets[VOCAB + 1];
    uint32_t  counts[VOCAB], expected[VOCAB], large = 0;
    test_rng  r = {3};
    naive_start(&n, VOCAB, WORDS);
    REQUIRE(l3_alloc_init(&a, VOCAB, WORDS, g.mem, g.size, NULL) == L3_OK);
    for (size_t i = 0; i < 1000; i++) tokens[i] = (int32_t)test_below(&r, 1 + test_below(&r, VOCAB));
    for (int round = 0; round < ROUNDS; round++) {
        naive_parse(&n, tokens, 1000);
        CHECK_EQ(l3_alloc_add(a, tokens, 1000, NULL), L3_OK);
        l3_alloc_end_document(a);
    }
    for (size_t i = 0; i < n.n; i++) large += n.words[i].count > 65536;
    CHECK(large > 1 && large < WORDS);
    naive_place(&n, VOCAB, ROWS, 0, expected);
    CHECK_EQ(l3_alloc_finish(a, ROWS, 0, offsets, NULL, NULL), L3_OK);
    take_counts(offsets, VOCAB, ROWS, counts);
    CHECK_MEM(counts, expected, sizeof counts);
    CHECK(guard_free(&g));
}

/* Worked by hand: 0 counted and 00 made; 00 counted and 000 made; the last two tokens count 0 and set 00 to 1. */
TEST(a_run_of_one_token) {
    corpus   c = {2, 1, {7}, {{0}}};
    test_rng r = {4};
    outcome  o = run_alloc(&c, 10, 6, 0, &r);
    CHECK_EQ(o.code, L3_OK);
    CHECK_EQ(o.report.codewords, 4);
    CHECK_EQ(o.counts[0], 4);
    CHECK_EQ(o.counts[1], 2);
    CHECK_EQ(o.report.placed_by_frequency, 0);
}

TEST(fallback_by_frequency) {
    corpus                c = {4, 4, {1, 1, 1, 1}, {{2}, {1}, {2}, {3}}};
    test_rng              r = {5};
    outcome               o = run_alloc(&c, 4, 4 + 4 + 5, 0, &r); /* one each, one each by code, then 2 1 3 0 2 */
    static const uint32_t expected[4] = {3, 3, 4, 3};
    CHECK_MEM(o.counts, expected, sizeof expected);
    CHECK_EQ(o.report.placed_by_code, 4);
    CHECK_EQ(o.report.placed_by_frequency, 5);
    CHECK_EQ(o.report.full_after, 0);
}

TEST(no_corpus) {
    corpus   c = {3, 0, {0}, {{0}}};
    test_rng r = {6};
    outcome  o = run_alloc(&c, 3, 9, 3, &r);
    for (int t = 0; t < 3; t++) CHECK_EQ(o.counts[t], 3);
    CHECK_EQ(o.report.documents, 0);
}

/* ---- errors and memory ---- */

TEST(sizes_out_of_range) {
    static const uint32_t cases[][2] = {{0, 10}, {10, 9}, {10, 0}, {1, 0x80000000u}, {1, UINT32_MAX}};
    unsigned char         mem[64];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        l3_alloc *a = NULL;
        l3_error  err;
        CHECK_EQ(l3_alloc_size(cases[i][0], cases[i][1]), 0);
        CHECK_EQ(l3_alloc_init(&a, cases[i][0], cases[i][1], mem, sizeof mem, &err), L3_ERR_ARGUMENT);
        CHECK(a == NULL && err.code == L3_ERR_ARGUMENT && err.text[0] != '\0');
    }
    CHECK(sizeof(size_t) < 8 || l3_alloc_size(1, INT32_MAX) > 0);
    CHECK(l3_alloc_size(256, 100000) < 20 * 100000 + 300000);
}

TEST(memory_is_exact) {
    const size_t size = l3_alloc_size(9, 50);
    guard        g    = guard_new(size, L3_ALIGN, 0xff);
    l3_alloc    *a    = NULL;
    l3_error     err;
    CHECK_EQ(l3_alloc_init(&a, 9, 50, g.mem, size - 1, &err), L3_ERR_MEMORY);
    CHECK_EQ(l3_alloc_init(&a, 9, 50, g.mem + 1, size, &err), L3_ERR_MEMORY);
    CHECK_EQ(l3_alloc_init(&a, 9, 50, g.mem + L3_ALIGN / 2, size, &err), L3_ERR_MEMORY);
    CHECK_EQ(l3_alloc_init(&a, 9, 50, NULL, size, &err), L3_ERR_MEMORY);
    CHECK(a == NULL);
    memset(&err, 0x77, sizeof err);
    CHECK_EQ(l3_alloc_init(&a, 9, 50, g.mem, size, &err), L3_OK);
    CHECK_EQ(err.code, 0x77777777);
    CHECK(guard_free(&g));
}

TEST(wrong_tokens_and_demands) {
    static const demand  demands[] = {{3, 0}, {13, 3}, {0, 0}, {0x80000000u, 0}, {5, 1}};
    static const int32_t wrong[] = {-1, 4, INT32_MAX, INT32_MIN}, good[] = {0, 1, 2, 3, 3, 3};
    guard                g = guard_new(l3_alloc_size(4, 40), L3_ALIGN, 0xcd);
    l3_alloc            *a;
    int32_t              offsets[5];
    l3_error             err;
    REQUIRE(l3_alloc_init(&a, 4, 40, g.mem, g.size, NULL) == L3_OK);
    CHECK_EQ(l3_alloc_add(a, good, 6, NULL), L3_OK);
    CHECK_EQ(l3_alloc_add(a, NULL, 0, NULL), L3_OK);
    for (int i = 0; i < 4; i++) CHECK_EQ(l3_alloc_add(a, &wrong[i], 1, &err), L3_ERR_TOKEN);
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(l3_alloc_finish(a, demands[i].rows, demands[i].max, offsets, NULL, &err), L3_ERR_ARGUMENT);
    }
    CHECK_EQ(l3_alloc_finish(a, 12, 3, offsets, NULL, NULL), L3_OK);
    CHECK_EQ(offsets[4], 12);
    CHECK(guard_free(&g));
}

/* ---- fixtures ---- */

/* One document a line; tokens separated by spaces. */
static void add_lines(l3_alloc *a, const char *p) {
    while (*p) {
        char         *end;
        const int32_t token = (int32_t)strtol(p, &end, 10);
        const char   *line  = strchr(p, '\n');
        if (line && (end == p || line < end)) {
            l3_alloc_end_document(a);
            p = line + 1;
        } else {
            CHECK_EQ(l3_alloc_add(a, &token, 1, NULL), L3_OK);
            p = end;
            while (*p == ' ') p++;
        }
    }
}

static void compare_counts(const char *name, const int32_t *offsets, uint32_t vocab) {
    char           path[128];
    unsigned char *text;
    char          *p;
    snprintf(path, sizeof path, "alloc/%s.counts.txt", name);
    REQUIRE((text = test_read_fixture(path, NULL)) != NULL);
    p = (char *)text;
    for (uint32_t t = 0; t < vocab; t++) CHECK_EQ(offsets[t + 1] - offsets[t], strtol(p, &p, 10));
    free(text);
}

static void check_fixture(const json *entry) {
    const uint32_t  vocab = (uint32_t)json_number(entry, "vocab"), rows = (uint32_t)json_number(entry, "rows");
    const uint32_t  words = vocab + (uint32_t)json_number(entry, "tokens"), max = (uint32_t)json_number(entry, "max");
    guard           g       = guard_new(l3_alloc_size(vocab, words), L3_ALIGN, 0xcd);
    int32_t        *offsets = (int32_t *)calloc(vocab + 1, sizeof *offsets);
    l3_alloc       *a       = NULL;
    l3_alloc_report report;
    char            path[128];
    unsigned char  *text;
    snprintf(path, sizeof path, "alloc/%s.ids.txt", json_string(entry, "name"));
    text = test_read_fixture(path, NULL);
    REQUIRE(text && offsets && l3_alloc_init(&a, vocab, words, g.mem, g.size, NULL) == L3_OK);
    add_lines(a, (const char *)text);
    CHECK_EQ(l3_alloc_finish(a, rows, max, offsets, &report, NULL), L3_OK);
    CHECK_EQ(report.tokens, json_number(entry, "tokens"));
    CHECK_EQ(report.full_after, 0);
    CHECK_EQ(report.placed_by_frequency, 0);
    compare_counts(json_string(entry, "name"), offsets, vocab);
    CHECK(guard_free(&g));
    free(offsets);
    free(text);
}

TEST(fixtures) {
    unsigned char *text = test_read_fixture("alloc/index.json", NULL);
    json          *index;
    if (!text) SKIP("no fixtures");
    index = json_parse((const char *)text);
    CHECK(index && index->length > 0);
    for (size_t i = 0; index && i < index->length; i++) check_fixture(json_at(index, i));
    json_free(index);
    free(text);
}

int main(void) {
    RUN(random_corpora);
    RUN(full_dictionaries);
    RUN(large_counts);
    RUN(a_run_of_one_token);
    RUN(fallback_by_frequency);
    RUN(no_corpus);
    RUN(sizes_out_of_range);
    RUN(memory_is_exact);
    RUN(wrong_tokens_and_demands);
    RUN(fixtures);
    return test_report("alloc");
}
