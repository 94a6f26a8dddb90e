/* test_reference.c - proves the reference of ref.c and the model writer of make_model.c against the fixtures,
 * which come from an independent implementation, and against each other. */
#include "json.h"
#include "make_model.h"
#include "ref.h"
#include "test.h"

/* ---- memory and files ---- */

static double *doubles(size_t n) {
    double *p = (double *)calloc(n ? n : 1, sizeof *p);
    if (!p) abort();
    return p;
}

static int32_t *ids_room(size_t n) {
    int32_t *p = (int32_t *)calloc(n ? n : 1, sizeof *p);
    if (!p) abort();
    return p;
}

static uint32_t le32(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static double le_f32(const unsigned char *p) {
    uint32_t bits = le32(p);
    float    f;
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

static json *json_fixture(const char *name) {
    unsigned char *text = test_read_fixture(name, NULL);
    json          *v    = text ? json_parse((const char *)text) : NULL;
    free(text);
    return v;
}

/* A model and the bytes behind it. */
typedef struct loaded {
    unsigned char *data;
    ref_model     *m;
} loaded;

static loaded load_fixture(const char *name) {
    loaded l;
    size_t n = 0;
    l.data   = test_read_fixture(name, &n);
    l.m      = l.data ? ref_load(l.data, n) : NULL;
    return l;
}

static void unload(loaded *l) {
    ref_free(l->m);
    free(l->data);
}

/* ---- number formats ---- */

static void check_f16(unsigned bits, double expect) {
    unsigned char b[2];
    double        got;
    b[0] = (unsigned char)(bits & 255);
    b[1] = (unsigned char)(bits >> 8);
    CHECK(ref_dequantize(REF_F16, b, 1, &got));
    CHECK_NEAR(got, expect, 0);
}

TEST(half_precision_values) {
    check_f16(0x3C00, 1.0);
    check_f16(0xC000, -2.0);
    check_f16(0x7BFF, 65504.0);
    check_f16(0x0001, 5.9604644775390625e-08);
    check_f16(0x03FF, 6.097555160522461e-05);
    check_f16(0x0400, 6.103515625e-05);
    check_f16(0x3555, 0.333251953125);
}

/* Every half is its own rounding; halfway goes to the even neighbour. */
TEST(half_precision_writer) {
    mk_buf   b = {NULL, 0, 0};
    float    two[2];
    double   got;
    unsigned bits, wrong = 0;
    for (bits = 0; bits < 0x7C00; bits++) {
        unsigned char in[2];
        float         f;
        in[0] = (unsigned char)(bits & 255);
        in[1] = (unsigned char)(bits >> 8);
        ref_dequantize(REF_F16, in, 1, &got);
        f   = (float)got;
        b.n = 0;
        mk_quantize(&b, MK_F16, &f, 1);
        wrong += memcmp(b.data, in, 2) != 0;
    }
    CHECK_EQ(wrong, 0);
    two[0] = 1.0f + 1.0f / 2048;
    two[1] = 1.0f + 3.0f / 2048;
    b.n    = 0;
    mk_quantize(&b, MK_F16, two, 2);
    CHECK_EQ(b.data[0] | b.data[1] << 8, 0x3C00);
    CHECK_EQ(b.data[2] | b.data[3] << 8, 0x3C02);
    free(b.data);
}

/* A block with a different value in every field, written out by hand from ggml's layout. */
TEST(q6_k_layout) {
    unsigned char block[210];
    double        got[256];
    int           i, wrong = 0;
    for (i = 0; i < 128; i++) block[i] = (unsigned char)(i * 7 + 3);
    for (i = 0; i < 64; i++) block[128 + i] = (unsigned char)(i * 13 + 5);
    for (i = 0; i < 16; i++) block[192 + i] = (unsigned char)(i * 17 - 120);
    block[208] = 0;
    block[209] = 0x38; /* 0.5 */
    CHECK(ref_dequantize(REF_Q6_K, block, 256, got));
    for (i = 0; i < 256; i += 128) { /* as ggml's dequantize_row_q6_K goes, half by half */
        const unsigned char *ql = block + i / 2, *qh = block + 128 + i / 4, *sc = block + 192 + i / 16;
        int                  l;
        for (l = 0; l < 32; l++) {
            int q1 = ((ql[l] & 15) | (qh[l] & 3) << 4) - 32;
            int q2 = ((ql[l + 32] & 15) | (qh[l] >> 2 & 3) << 4) - 32;
            int q3 = (ql[l] >> 4 | (qh[l] >> 4 & 3) << 4) - 32;
            int q4 = (ql[l + 32] >> 4 | (qh[l] >> 6 & 3) << 4) - 32;
            wrong += got[i + l] != 0.5 * (signed char)sc[l / 16] * q1;
            wrong += got[i + l + 32] != 0.5 * (signed char)sc[l / 16 + 2] * q2;
            wrong += got[i + l + 64] != 0.5 * (signed char)sc[l / 16 + 4] * q3;
            wrong += got[i + l + 96] != 0.5 * (signed char)sc[l / 16 + 6] * q4;
        }
    }
    CHECK_EQ(wrong, 0);
}

/* Root mean square error over random normals, relative to their deviation. */
static double quantization_error(uint32_t type, size_t n) {
    float   *x    = (float *)calloc(n, sizeof *x);
    double  *back = doubles(n), sum = 0;
    mk_buf   b   = {NULL, 0, 0};
    test_rng rng = {7};
    size_t   i;
    for (i = 0; i < n; i++) x[i] = (float)test_normal(&rng);
    mk_quantize(&b, type, x, n);
    CHECK_EQ(b.n, ref_type_size(type, n));
    CHECK(ref_dequantize(type, b.data, n, back));
    for (i = 0; i < n; i++) sum += (back[i] - (double)x[i]) * (back[i] - (double)x[i]);
    free(b.data);
    free(back);
    free(x);
    return sqrt(sum / (double)n);
}

TEST(quantizers_come_back) {
    CHECK_NEAR(quantization_error(MK_F32, 1024), 0, 0);
    CHECK(quantization_error(MK_F16, 1024) < 4e-4);
    CHECK(quantization_error(MK_BF16, 1024) < 3e-3);
    CHECK(quantization_error(MK_Q8_0, 4096) < 8e-3);
    CHECK(quantization_error(MK_Q6_K, 4096) < 3e-2);
    CHECK(quantization_error(MK_Q4_0, 4096) < 0.11);
}

TEST(crc32_check_value) {
    CHECK_EQ(mk_crc32(0, "123456789", 9), 0xCBF43926u);
    CHECK_EQ(mk_crc32(mk_crc32(0, "1234", 4), "56789", 5), 0xCBF43926u);
    CHECK_EQ(mk_crc32(0, "", 0), 0);
}

TEST(json_reader) {
    json       *v = json_parse("{\"a\": [1, -2.5e1, true, null],"
                                     " \"b\\n\": \"\\u00e9\\ud83d\\ude00\\u0000x\\/\"}\n");
    const json *text;
    REQUIRE(v != NULL);
    CHECK_EQ(json_get(v, "a")->length, 4);
    CHECK_NEAR(json_at(json_get(v, "a"), 1)->number, -25, 0);
    text = json_get(v, "b\n");
    REQUIRE(text != NULL);
    CHECK_EQ(text->length, 9);
    CHECK_MEM(text->string, "\xC3\xA9\xF0\x9F\x98\x80\0x/", 9);
    json_free(v);
    CHECK(json_parse("[1, 2") == NULL);
    CHECK(json_parse("{\"a\" 1}") == NULL);
    CHECK(json_parse("\"\\u12") == NULL);
    CHECK(json_parse("") == NULL);
}

/* ---- lookup layer ---- */

/* Worked by hand: two rows, tied, scores log 3 apart, so the weights are 3/4 and 1/4. */
TEST(lookup_by_hand) {
    static const double mix[]   = {1, 0, 0, 0, 0, 1, 0, 0}; /* y = u */
    double              rows[4] = {0, 0, 4, 0}, x[2] = {0, 0}, out[2];
    ref_lookup_layer    l;
    memset(&l, 0, sizeof l);
    l.d_in = l.d_emb = l.d_up = 2;
    l.tied = l.residual = 1;
    l.score_scale       = 1;
    l.mix               = mix;
    x[0]                = log(3.0) / 4;
    ref_lookup(&l, rows, 2, x, out); /* a = (3, 0), rms norm gives (sqrt 2, 0) */
    CHECK_NEAR(out[0], x[0] + sqrt(2.0), 1e-12);
    CHECK_NEAR(out[1], 0, 1e-12);
    l.layer_norm = 1;
    l.residual   = 0;
    ref_lookup(&l, rows, 2, x, out); /* a - mean = (1.5, -1.5) */
    CHECK_NEAR(out[0], 1, 1e-12);
    CHECK_NEAR(out[1], -1, 1e-12);
    l.layer_norm = 0;
    l.epsilon    = 1e-5;
    ref_lookup(&l, rows, 0, x, out); /* no rows: a = 0 */
    CHECK_NEAR(out[0], 0, 0);
}

/* Normalized query and keys, a scale, values of their own, W_up. */
TEST(lookup_variations_by_hand) {
    static const double mix[] = {1, 0, 0, 0, 0, 0, 1, 0, 0, 0}, up[] = {1, 0, 1}; /* W_up (3, 1) */
    static const double weight[] = {2, 2, 2}, bias[] = {0.5, 0.5, 0.5}, query_weight[] = {0.5, 1};
    static const double rows[] = {0, 0, 4, 7, 0, 8, 0, 5, 4}; /* key, key, value */
    double              x[2]   = {11, 0}, out[2], a;
    ref_lookup_layer    l;
    memset(&l, 0, sizeof l);
    l.d_in       = 2;
    l.d_emb      = 1;
    l.d_up       = 3;
    l.query_norm = l.key_norm = l.layer_norm = 1;
    l.epsilon                                = 1e-30;        /* keeps the key of zeros at zero */
    l.query_weight                           = query_weight; /* q = (1, 0) / sqrt 2; key 1 becomes (sqrt 2, 0) */
    l.score_scale                            = log(6.0);     /* scores 0, log 6, 0: a = (4 + 48 + 4) / 8 = 7 */
    l.up                                     = up;
    l.norm_weight                            = weight;
    l.norm_bias                              = bias;
    l.mix                                    = mix;
    ref_lookup(&l, rows, 3, x, out); /* (7, 0, 7): mean 14/3, deviation 7 sqrt(2) / 3 */
    CHECK_NEAR(out[0], 2 / sqrt(2.0) + 0.5, 1e-12);
    CHECK_NEAR(out[1], -2 * sqrt(2.0) + 0.5, 1e-12);
    l.layer_norm = 0;
    l.epsilon    = 3; /* in every norm; a by the definition */
    ref_lookup(&l, rows, 3, x, out);
    a = exp(log(6.0) * (11 / sqrt(63.5) / 2) * (7 / sqrt(27.5)));
    a = (4 + 8 * a + 4) / (2 + a);
    CHECK_NEAR(out[0], 2 * a / sqrt(2 * a * a / 3 + 3), 1e-12);
}

/* ---- models ---- */

/* The largest difference from NAME.logits.f32. */
static void check_variant(const char *name) {
    char           file[256];
    size_t         n_ids = 0, n_logits = 0, n, i;
    unsigned char *ids_raw, *expect;
    loaded         l;
    double        *out, worst = 0;
    int32_t       *ids;
    snprintf(file, sizeof file, "variants/%s.gguf", name);
    l = load_fixture(file);
    snprintf(file, sizeof file, "variants/%s.ids.i32", name);
    ids_raw = test_read_fixture(file, &n_ids);
    snprintf(file, sizeof file, "variants/%s.logits.f32", name);
    expect = test_read_fixture(file, &n_logits);
    if (!CHECK(l.m && ids_raw && expect)) return;
    n = n_ids / 4;
    CHECK_EQ(n_logits, n * ref_vocab(l.m) * 4);
    ids = ids_room(n);
    out = doubles(n * ref_vocab(l.m));
    for (i = 0; i < n; i++) ids[i] = (int32_t)le32(ids_raw + 4 * i);
    ref_logits(l.m, ids, n, out);
    for (i = 0; i < n_logits / 4; i++) worst = fmax(worst, fabs(out[i] - le_f32(expect + 4 * i)));
    if (test_verbose()) fprintf(stderr, "  %-28s largest difference %.2e\n", name, worst);
    CHECK_NEAR(worst, 0, 1e-5); /* their RoPE angles are rounded to float32 */
    free(ids);
    free(out);
    free(ids_raw);
    free(expect);
    unload(&l);
}

TEST(variants_logits) {
    json       *index = json_fixture("variants/index.json");
    const json *v;
    if (!index) SKIP("no fixture variants/index.json");
    for (v = index->first; v; v = v->next) check_variant(json_string(v, "name"));
    json_free(index);
}

/* ---- tokenizer ---- */

static void check_encoding(const ref_model *m, const json *text, const json *ids) {
    int32_t *got  = ids_room(3 * (text->length + 1));
    size_t   n    = ref_encode(m, text->string, text->length, got), i;
    char    *back = (char *)calloc(text->length + 1, 1);
    CHECK_EQ(n, ids->length);
    for (i = 0; i < n && i < ids->length; i++) CHECK_EQ(got[i], json_at(ids, i)->number);
    if (!strstr(text->string, "\xE2\x96\x81")) {
        CHECK_EQ(ref_decode(m, got, n, back, text->length), text->length);
        CHECK_MEM(back, text->string, text->length);
    }
    free(back);
    free(got);
}

TEST(stories_encodings) {
    loaded      l     = load_fixture("stories-l3.gguf");
    json       *cases = json_fixture("stories-l3.encode.json");
    const json *v;
    int         have = l.m && cases;
    for (v = have ? cases->first : NULL; v; v = v->next) {
        check_encoding(l.m, json_get(v, "text"), json_get(v, "ids"));
    }
    json_free(cases);
    unload(&l);
    if (!have) SKIP("no fixture stories-l3.gguf or its encodings");
}

/* decode(encode(bytes)) for random bytes, spaces and multibyte characters, in a random model. */
static void check_round_trip(const ref_model *m, test_rng *rng) {
    static const char *const bits[]    = {" ",
                                          " ",
                                          "e",
                                          "t",
                                          "a",
                                          "he",
                                          "\xC3\xA9",
                                          "\xE2\x98\x83",
                                          "\xF0\x9F\x98\x80",
                                          "\xE2\x96",
                                          "\xC0\x80",
                                          "\n",
                                          "\xED\xA0\x80",
                                          "\xFF",
                                          "<s>",
                                          "\xF4\x90\x80\x80"};
    char                     text[256] = "", back[256];
    int32_t                  ids[3 * 257];
    size_t                   n, len;
    int                      i, pieces = (int)test_below(rng, 40);
    for (i = 0; i < pieces; i++) strcat(text, bits[test_below(rng, 16)]);
    len = strlen(text);
    n   = ref_encode(m, text, len, ids);
    CHECK_EQ(ref_decode(m, ids, n, back, sizeof back), len);
    CHECK_MEM(back, text, len);
}

TEST(random_round_trips) {
    test_rng rng = {3};
    int      i, j;
    for (i = 0; i < 4; i++) {
        mk_spec        s;
        size_t         n;
        unsigned char *data;
        ref_model     *m;
        memset(&s, 0, sizeof s);
        s.seed            = (uint64_t)i;
        s.vocab           = 300 + 200 * (uint32_t)i;
        s.no_space_prefix = i % 2;
        data              = mk_model(&s, &n);
        m                 = ref_load_tokenizer(data, n);
        if (CHECK(m != NULL)) {
            for (j = 0; j < 200; j++) check_round_trip(m, &rng);
        }
        ref_free(m);
        free(data);
    }
}

/* Highest score first, the leftmost of equals, on a vocabulary small enough to see. */
TEST(merge_order_by_hand) {
    static const char *const tokens[] = {"<unk>", "a", "b", "c", "ab", "bc", "aa", "abc", "<s>", "x", "<s"};
    static const float       scores[] = {0, -9, -9, -9, -1, -1, -2, -3, 0, -9, -2};
    static const int32_t     types[]  = {2, 1, 1, 1, 1, 1, 1, 1, 3, 1, 1};
    mk_gguf                 *g        = mk_gguf_new();
    int32_t                  ids[64];
    size_t                   n;
    unsigned char           *data;
    ref_model               *m;
    mk_strings(g, "tokenizer.ggml.tokens", tokens, 11);
    mk_f32s(g, "tokenizer.ggml.scores", scores, 11);
    mk_i32s(g, "tokenizer.ggml.token_type", types, 11);
    mk_bool(g, "tokenizer.ggml.add_space_prefix", 0);
    data = mk_finish(g, &n);
    m    = ref_load_tokenizer(data, n);
    REQUIRE(m != NULL);
    CHECK_EQ(ref_encode(m, "abc", 3, ids), 1); /* ab and bc equal: leftmost ab, then abc */
    CHECK_EQ(ids[0], 7);
    CHECK_EQ(ref_encode(m, "aaab", 4, ids), 2); /* ab before aa */
    CHECK_EQ(ids[0], 6);
    CHECK_EQ(ids[1], 4);
    CHECK_EQ(ref_encode(m, "", 0, ids), 0);
    CHECK_EQ(ref_encode(m, "<s>", 3, ids), 2); /* control tokens are ordinary text: "<s", unknown */
    CHECK_EQ(ids[0], 10);
    CHECK_EQ(ids[1], 0);
    ref_free(m);
    free(data);
}

/* ---- greedy text ---- */

/* ids hold n tokens of prompt and room for `limit` more; returns how many there are when EOS or BOS comes. */
static size_t greedy(const ref_model *m, int32_t *ids, size_t n, size_t limit) {
    ref_session *s      = ref_start(m);
    double      *logits = doubles(ref_vocab(m));
    size_t       i;
    for (i = 0; i < n; i++) ref_step(s, ids[i], logits);
    while (limit--) {
        int32_t next = ref_argmax(logits, ref_vocab(m));
        if (next == ref_bos(m) || next == ref_eos(m)) break;
        ids[n++] = next;
        ref_step(s, next, logits);
    }
    free(logits);
    ref_end(s);
    return n;
}

static void check_greedy(const ref_model *m, const char *prompt, size_t limit, const char *expect) {
    int32_t *ids = ids_room(3 * (strlen(prompt) + 1) + 1 + limit);
    char     text[8192];
    size_t   n;
    ids[0]  = ref_bos(m);
    n       = 1 + ref_encode(m, prompt, strlen(prompt), ids + 1);
    n       = greedy(m, ids, n, limit);
    n       = ref_decode(m, ids, n, text, sizeof text - 1);
    text[n] = 0;
    CHECK_STR(text, expect);
    free(ids);
}

TEST(stories_greedy) {
    loaded      l     = load_fixture("stories-l3.gguf");
    json       *cases = json_fixture("stories-l3.greedy.json");
    const json *v;
    int         have = l.m && cases;
    for (v = have ? cases->first : NULL; v; v = v->next) {
        check_greedy(l.m, json_string(v, "prompt"), (size_t)json_number(v, "n"), json_string(v, "expect"));
    }
    json_free(cases);
    unload(&l);
    if (!have) SKIP("no fixture stories-l3.gguf or its greedy texts");
}

TEST(stories260k_greedy) {
    loaded l      = load_fixture("stories260K/stories260K.gguf");
    size_t n      = 0;
    char  *expect = (char *)test_read_fixture("stories260K/greedy200.txt", &n);
    int    have   = l.m && expect;
    if (n && expect[n - 1] == '\n') expect[n - 1] = 0;
    if (have) check_greedy(l.m, "", 200, expect);
    free(expect);
    unload(&l);
    if (!have) SKIP("no fixture stories260K");
}

/* ---- perplexity ---- */

static void check_perplexity(const ref_model *m, const int32_t *ids, size_t n, size_t window, const json *expect) {
    size_t predicted;
    double got = ref_perplexity(m, ids, n, window, &predicted), want = json_number(expect, "perplexity");
    if (test_verbose()) fprintf(stderr, "  window %u: %.10f, expected %.10f\n", (unsigned)window, got, want);
    CHECK_NEAR(got / want, 1, 1e-6);
    CHECK_EQ(predicted, json_number(expect, "tokens"));
}

TEST(stories_perplexity) {
    loaded   l      = load_fixture("stories-l3.gguf");
    json    *expect = json_fixture("stories-l3.perplexity.json");
    size_t   n      = 0;
    char    *text   = (char *)test_read_fixture("stories_eval.txt", &n);
    int32_t *ids    = ids_room(3 * (n + 1));
    int      have   = l.m && expect && text;
    if (have) {
        n = ref_encode(l.m, text, n, ids);
        if (!test_quick()) check_perplexity(l.m, ids, n, 64, json_get(expect, "64"));
        if (!test_quick()) check_perplexity(l.m, ids, n, 256, json_get(expect, "256"));
        CHECK(isnan(ref_perplexity(l.m, ids, n, ref_context(l.m) + 1, NULL)));
    }
    free(ids);
    free(text);
    json_free(expect);
    unload(&l);
    if (!have) SKIP("no fixture stories-l3.gguf, its perplexity or stories_eval.txt");
    if (test_quick()) SKIP("L3_QUICK is set");
}

/* ---- allocation ---- */

/* Documents, one per line, as numbers. */
typedef struct corpus {
    int32_t **docs;
    size_t   *lengths, n;
} corpus;

static size_t count_char(const char *text, char c) {
    size_t n = 0;
    for (; *text; text++) n += *text == c;
    return n;
}

static corpus parse_corpus(const char *text) {
    corpus c;
    size_t room = count_char(text, '\n') + 1;
    c.docs      = (int32_t **)calloc(room, sizeof *c.docs);
    c.lengths   = (size_t *)calloc(room, sizeof *c.lengths);
    if (!c.docs || !c.lengths) abort();
    for (c.n = 0; *text; c.n++) {
        size_t line = strcspn(text, "\n"), used = 0;
        c.docs[c.n] = ids_room(line);
        while (used < line) {
            char *end;
            c.docs[c.n][c.lengths[c.n]++] = (int32_t)strtol(text + used, &end, 10);
            used                          = (size_t)(end - text);
            while (text[used] == ' ') used++;
        }
        text += line + (text[line] == '\n');
    }
    return c;
}

static void free_corpus(corpus *c) {
    size_t i;
    for (i = 0; i < c->n; i++) free(c->docs[i]);
    free(c->docs);
    free(c->lengths);
}

static void check_counts(const json *v, const corpus *c, const char *expect) {
    uint32_t  vocab    = (uint32_t)json_number(v, "vocab"), t;
    uint32_t *counts   = (uint32_t *)calloc(vocab, sizeof *counts);
    uint64_t  fallback = 1, placed;
    size_t    wrong    = 0;
    placed = ref_alloc((const int32_t *const *)c->docs, c->lengths, c->n, vocab, (uint64_t)json_number(v, "rows"),
                       (uint32_t)json_number(v, "max"), counts, &fallback);
    CHECK_EQ(placed, json_number(v, "rows"));
    CHECK_EQ(fallback, 0);
    for (t = 0; t < vocab; t++) {
        char *end;
        wrong += counts[t] != strtoul(expect, &end, 10) || end == expect;
        expect = end;
    }
    CHECK_EQ(wrong, 0);
    free(counts);
}

TEST(alloc_fixtures) {
    json       *index = json_fixture("alloc/index.json");
    const json *v;
    if (!index) SKIP("no fixture alloc/index.json");
    for (v = index->first; v; v = v->next) {
        char   file[256];
        char  *text, *expect;
        corpus c;
        snprintf(file, sizeof file, "alloc/%s.ids.txt", json_string(v, "name"));
        text = (char *)test_read_fixture(file, NULL);
        snprintf(file, sizeof file, "alloc/%s.counts.txt", json_string(v, "name"));
        expect = (char *)test_read_fixture(file, NULL);
        c      = parse_corpus(text ? text : "");
        if (CHECK(text && expect)) check_counts(v, &c, expect);
        free_corpus(&c);
        free(text);
        free(expect);
    }
    json_free(index);
}

/* The text behind stories_lines.ids.txt, each line encoded alone. */
TEST(alloc_lines_encoded) {
    loaded l        = load_fixture("stories-l3.gguf");
    char  *text     = (char *)test_read_fixture("alloc/stories_lines.txt", NULL), *line;
    char  *ids_text = (char *)test_read_fixture("alloc/stories_lines.ids.txt", NULL);
    size_t i = 0, wrong = 0;
    corpus c    = parse_corpus(ids_text ? ids_text : "");
    int    have = l.m && text && ids_text;
    for (line = text; have && *line && i < c.n; i++) {
        size_t   len = strcspn(line, "\n");
        int32_t *ids = ids_room(3 * (len + 1));
        size_t   n   = ref_encode(l.m, line, len, ids);
        wrong += n != c.lengths[i] || memcmp(ids, c.docs[i], n * sizeof *ids) != 0;
        free(ids);
        line += len + (line[len] == '\n');
    }
    if (have) CHECK_EQ(i, c.n);
    CHECK_EQ(wrong, 0);
    free_corpus(&c);
    free(text);
    free(ids_text);
    unload(&l);
    if (!have) SKIP("no fixture stories-l3.gguf or alloc/stories_lines");
}

/* Codewords of "0 1 0 1": 01 (reset to 1 by the tail), singles 0 (1) and 1 (0), 2 (0). */
TEST(alloc_fallback_by_hand) {
    static const int32_t doc[] = {0, 1, 0, 1};
    const int32_t       *docs[1];
    size_t               length = 4;
    uint32_t             counts[3];
    uint64_t             fallback;
    docs[0] = doc;
    CHECK_EQ(ref_alloc(docs, &length, 1, 3, 7, 0, counts, &fallback), 7); /* 3 + 4 codewords */
    CHECK_EQ(fallback, 0);
    CHECK_EQ(counts[0], 2);
    CHECK_EQ(counts[1], 3);
    CHECK_EQ(counts[2], 2);
    CHECK_EQ(ref_alloc(docs, &length, 1, 3, 11, 0, counts, &fallback), 11);
    CHECK_EQ(fallback, 4); /* 0, 1 (both seen twice), 2, and 0 again */
    CHECK_EQ(counts[0], 4);
    CHECK_EQ(counts[1], 4);
    CHECK_EQ(counts[2], 3);
    CHECK_EQ(ref_alloc(docs, &length, 1, 3, 100, 3, counts, &fallback), 9);
    CHECK_EQ(ref_alloc(docs, &length, 1, 3, 2, 3, counts, &fallback), 0);
}

/* ---- the model writer ---- */

static void check_row_checksums(const ref_model *m, uint32_t block) {
    char              key[64], name[64];
    const ref_tensor *rows, *offsets;
    uint32_t          t, vocab = ref_vocab(m);
    size_t            row;
    snprintf(key, sizeof key, "l3.checksum.rows.%u", (unsigned)block);
    snprintf(name, sizeof name, "blk.%u.lookup_rows.weight", (unsigned)block);
    rows = ref_tensor_find(ref_file(m), name);
    snprintf(name, sizeof name, "blk.%u.lookup_offsets", (unsigned)block);
    offsets = ref_tensor_find(ref_file(m), name);
    row     = rows->n_bytes / (size_t)rows->dims[1];
    CHECK_EQ(ref_key_count(ref_file(m), key), vocab);
    for (t = 0; t < vocab; t++) {
        uint32_t first = le32(offsets->data + 4 * t), end = le32(offsets->data + 4 * t + 4);
        uint32_t crc = mk_crc32(0, rows->data + row * first, row * (end - first));
        CHECK_EQ(ref_number(ref_file(m), key, t, -1), crc);
    }
}

/* The last key of the file is its checksum: find its value, zero it, take the sum. */
static void check_file_checksum(const ref_model *m, const unsigned char *data, size_t n) {
    static const char key[] = "l3.checksum.file";
    unsigned char    *copy  = (unsigned char *)malloc(n);
    size_t            i;
    if (!copy) abort();
    memcpy(copy, data, n);
    for (i = 0; i + sizeof key - 1 < n && memcmp(data + i, key, sizeof key - 1) != 0; i++) {
    }
    i += sizeof key - 1 + 4;
    memset(copy + i, 0, 4);
    CHECK_EQ(ref_number(ref_file(m), key, 0, -1), mk_crc32(0, copy, n));
    free(copy);
}

static void check_lookup_layers(const ref_model *m, const mk_spec *s) {
    uint32_t i, lookups = 0;
    for (i = 0; i < ref_block_count(m); i++) {
        if (!ref_has_lookup(m, i)) continue;
        lookups++;
        if (s->heavy_rows) CHECK_EQ(ref_row_count(m, i, (int32_t)s->heavy_token), s->heavy_rows);
        if (s->checksums) check_row_checksums(m, i);
    }
    CHECK_EQ(lookups, s->n_lookups);
}

static double largest_logit(const ref_model *m, uint64_t seed) {
    test_rng rng = {seed};
    double  *out = doubles(8 * (size_t)ref_vocab(m)), top = 0;
    int32_t  ids[8];
    size_t   i;
    for (i = 0; i < 8; i++) ids[i] = (int32_t)test_below(&rng, ref_vocab(m));
    ref_logits(m, ids, 8, out);
    for (i = 0; i < 8 * (size_t)ref_vocab(m); i++) {
        if (!isfinite(out[i])) top = INFINITY;
        top = fmax(top, fabs(out[i]));
    }
    free(out);
    return top;
}

static void check_random_model(uint64_t seed) {
    mk_spec        spec = mk_random_spec(seed), s = mk_defaults(&spec);
    size_t         n, again_n;
    unsigned char *data = mk_model(&spec, &n), *again = mk_model(&spec, &again_n);
    ref_model     *m = ref_load(data, n);
    double         top;
    CHECK_EQ(n, again_n);
    CHECK_MEM(data, again, n);
    if (CHECK(m != NULL)) {
        top = largest_logit(m, seed);
        CHECK(top > 1 && top < 12);
        CHECK_EQ(ref_vocab(m), s.vocab);
        check_lookup_layers(m, &s);
        if (s.checksums) check_file_checksum(m, data, n);
    } else {
        fprintf(stderr, "  seed %u\n", (unsigned)seed);
    }
    ref_free(m);
    free(data);
    free(again);
}

TEST(random_models) {
    uint64_t seed;
    for (seed = 1; seed <= (uint64_t)test_some(40); seed++) check_random_model(seed);
}

static double *rope_logits(uint32_t rope_dim, float freq_base) {
    static const int32_t ids[] = {5, 300, 7, 300, 280, 9};
    mk_spec              s;
    size_t               n;
    unsigned char       *data;
    ref_model           *m;
    double              *out = doubles(6 * 320);
    memset(&s, 0, sizeof s);
    s.dim       = 32;
    s.n_heads   = 8;
    s.rope_dim  = rope_dim;
    s.freq_base = freq_base;
    data        = mk_model(&s, &n);
    m           = ref_load(data, n);
    if (CHECK(m != NULL)) ref_logits(m, ids, 6, out);
    ref_free(m);
    free(data);
    return out;
}

static double distance(const double *a, const double *b, size_t n) {
    double worst = 0;
    size_t i;
    for (i = 0; i < n; i++) worst = fmax(worst, fabs(a[i] - b[i]));
    return worst;
}

/* Heads of 4: with an endless base the second pair stands still, as when only two elements turn. */
TEST(partial_rope) {
    double *two = rope_logits(2, 1e38f), *four = rope_logits(4, 1e38f), *usual = rope_logits(4, 3.0f);
    CHECK_NEAR(distance(two, four, 6 * 320), 0, 1e-12);
    CHECK_NEAR(distance(two, usual, 320), 0, 1e-12); /* the first position does not turn */
    CHECK(distance(two + 320, usual + 320, 5 * 320) > 1e-3);
    free(two);
    free(four);
    free(usual);
}

TEST(requested_row_count) {
    mk_spec        s;
    size_t         n;
    unsigned char *data;
    ref_model     *m;
    memset(&s, 0, sizeof s);
    s.n_lookups        = 2;
    s.lookup_blocks[1] = 2;
    s.row_count        = 5000;
    s.empty_every      = 7;
    s.heavy_token      = 8; /* would be empty otherwise */
    s.heavy_rows       = 3000;
    data               = mk_model(&s, &n);
    m                  = ref_load(data, n);
    REQUIRE(m != NULL);
    CHECK_EQ(ref_number(ref_file(m), "l3.lookup.row_count", 0, 0), 5000);
    CHECK_EQ(ref_row_count(m, 0, 8), 3000);
    CHECK_EQ(ref_row_count(m, 2, 8), 3000);
    CHECK_EQ(ref_row_count(m, 0, 1), 0);
    CHECK(ref_row_count(m, 0, 2) > 0);
    ref_free(m);
    free(data);
}

/* Cut anywhere, a file is refused; no byte behind the end is read (run under a sanitizer). */
TEST(cut_files_are_refused) {
    mk_spec        s;
    size_t         n, cut;
    unsigned char *data;
    memset(&s, 0, sizeof s);
    s.n_blocks = 1;
    s.dim      = 32;
    s.ffn      = 32;
    data       = mk_model(&s, &n);
    for (cut = 0; cut + 4096 < n; cut += 1 + cut / 16) {
        unsigned char *part = (unsigned char *)malloc(cut ? cut : 1);
        if (!part) abort();
        memcpy(part, data, cut);
        CHECK(ref_load(part, cut) == NULL);
        free(part);
    }
    free(data);
}

int main(void) {
    RUN(half_precision_values);
    RUN(half_precision_writer);
    RUN(q6_k_layout);
    RUN(quantizers_come_back);
    RUN(crc32_check_value);
    RUN(json_reader);
    RUN(lookup_by_hand);
    RUN(lookup_variations_by_hand);
    RUN(variants_logits);
    RUN(merge_order_by_hand);
    RUN(stories_encodings);
    RUN(random_round_trips);
    RUN(stories_greedy);
    RUN(stories260k_greedy);
    RUN(stories_perplexity);
    RUN(alloc_fixtures);
    RUN(alloc_lines_encoded);
    RUN(alloc_fallback_by_hand);
    RUN(random_models);
    RUN(partial_rope);
    RUN(requested_row_count);
    RUN(cut_files_are_refused);
    return test_report("reference");
}
