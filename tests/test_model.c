/* test_model.c - whole models: fixtures against the numbers of an independent PyTorch implementation and of llama2.c,
 * random models of every variation against ref.c in double precision. L3_LONG=1: more of them. */
#include "../l3_model.h"

#include "json.h"
#include "make_model.h"
#include "model.h"
#include "ref.h"

#define FIXTURE_TOLERANCE 2e-5 /* absolute, logits up to about 5 */
#define RANDOM_TOLERANCE \
    2e-5 /* relative to the largest logit, at least 1; normed keys that nothing scales down give
                                  steep scores, which cost a digit: without them all stay below 2e-6 */

/* ---- logits ---- */

static double largest_difference(const float *a, const float *b, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) most = d; /* NaN counts */
    }
    return most;
}

/* Numbers of a fixture: 32 bits each, little-endian. */
static uint32_t *fixture_words(const char *name, const char *end, uint32_t *n) {
    char path[128];
    snprintf(path, sizeof path, "variants/%s%s", name, end);
    file      f     = file_fixture(path);
    uint32_t *words = f.bytes ? (uint32_t *)must(f.n) : NULL;
    *n              = (uint32_t)(f.bytes ? f.n / 4 : 0);
    for (uint32_t i = 0; i < *n; i++) {
        const unsigned char *p = f.bytes + 4 * (size_t)i;
        words[i]               = p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    }
    free(f.bytes);
    return words;
}

static double variant_difference(const char *name) {
    char        path[128];
    rig         r;
    double      difference = 1e30;
    uint32_t    n, n_logits;
    uint32_t   *words = fixture_words(name, ".ids.i32", &n), *logits = fixture_words(name, ".logits.f32", &n_logits);
    const void *ids = words, *expected = logits;
    snprintf(path, sizeof path, "variants/%s.gguf", name);
    file f = file_fixture(path);
    if (f.bytes && words && logits && CHECK_EQ(rig_open(&r, f, MAPPED), L3_OK)) {
        float *all = logits_of(r.model, (const int32_t *)ids, n);
        if (CHECK_EQ(n_logits, n * l3_model_info(r.model)->vocab))
            difference = largest_difference(all, (const float *)expected, n_logits);
        free(all);
        rig_close(&r);
    }
    free(words);
    free(logits);
    free(f.bytes);
    return difference;
}

TEST(variants) {
    file   text = file_fixture("variants/index.json");
    double most = 0;
    if (!text.bytes) SKIP("no fixtures");
    const void *chars = text.bytes;
    json       *index = json_parse((const char *)chars);
    REQUIRE(index != NULL);
    for (const json *v = index->first; v; v = v->next) {
        const double d = variant_difference(json_get(v, "name")->string);
        if (!CHECK(d <= FIXTURE_TOLERANCE)) fprintf(stderr, "    %s: %.3g\n", json_get(v, "name")->string, d);
        if (d > most) most = d;
    }
    if (test_verbose()) fprintf(stderr, "  largest difference: %.3g\n", most);
    json_free(index);
    free(text.bytes);
}

/* ---- text ---- */

typedef struct speaker {
    rig    rig;
    seat   seat;
    desk   desk;
    char   text[8192];
    size_t n;
} speaker;

static int speaker_open(speaker *s, file f) {
    l3_error err;
    memset(s->text, 0, sizeof s->text);
    s->n = 0;
    return CHECK_EQ(rig_open(&s->rig, f, MAPPED), L3_OK) &&
           CHECK_EQ(seat_open(&s->seat, s->rig.model, NULL, &err), L3_OK) &&
           CHECK_EQ(desk_open(&s->desk, s->rig.model, 4096, &err), L3_OK);
}

static void speaker_close(speaker *s) {
    desk_close(&s->desk);
    seat_close(&s->seat);
    rig_close(&s->rig);
}

static void say(speaker *s, int32_t id) {
    const char *piece;
    size_t      n;
    if (!CHECK_EQ(l3_detokenize(s->desk.tokenizer, id, &piece, &n, NULL), L3_OK) || s->n + n >= sizeof s->text) return;
    memcpy(s->text + s->n, piece, n);
    s->n += n;
}

/* The prompt and up to n tokens of highest logit; EOS or BOS ends the text. */
static void speak(speaker *s, const char *prompt, uint32_t n) {
    int32_t        ids[512];
    size_t         count;
    const l3_info *info = l3_model_info(s->rig.model);
    REQUIRE(l3_tokenize(s->desk.tokenizer, prompt, strlen(prompt), L3_TEXT_BOS, ids, 512, &count, NULL) == L3_OK);
    for (size_t i = 0; i < count; i++) say(s, ids[i]);
    REQUIRE(l3_prefill(s->seat.session, ids, (uint32_t)count, NULL, NULL) == L3_OK);
    for (uint32_t i = 0; i < n; i++) {
        const int32_t id = best(l3_logits(s->seat.session), info->vocab);
        if (id == info->bos || id == info->eos) break;
        say(s, id);
        if (i + 1 < n) REQUIRE(l3_decode(s->seat.session, id, NULL) == L3_OK);
    }
}

TEST(greedy_text) {
    file f = file_fixture("stories-l3.gguf"), g = file_fixture("stories-l3.greedy.json");
    if (!f.bytes || !g.bytes) SKIP("no fixtures");
    const void *chars = g.bytes;
    json       *cases = json_parse((const char *)chars);
    REQUIRE(cases != NULL);
    for (const json *c = cases->first; c; c = c->next) {
        static speaker s;
        if (!speaker_open(&s, f)) break;
        speak(&s, json_get(c, "prompt")->string, (uint32_t)json_get(c, "n")->number);
        CHECK_STR(s.text, json_get(c, "expect")->string);
        speaker_close(&s);
    }
    json_free(cases);
    free(f.bytes);
    free(g.bytes);
}

TEST(llama2c_text) {
    file           f = file_fixture("stories260K/stories260K.gguf"), g = file_fixture("stories260K/greedy200.txt");
    static speaker s;
    if (!f.bytes || !g.bytes) SKIP("no fixtures");
    const void *expected = g.bytes;
    while (g.n && g.bytes[g.n - 1] == '\n') g.bytes[--g.n] = 0;
    REQUIRE(speaker_open(&s, f));
    speak(&s, "", 200);
    CHECK_STR(s.text, (const char *)expected);
    speaker_close(&s);
    free(f.bytes);
    free(g.bytes);
}

/* ---- perplexity ---- */

static double surprise(const float *logits, uint32_t vocab, int32_t next) {
    double peak = logits[0], sum = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > peak) peak = logits[i];
    for (uint32_t i = 0; i < vocab; i++) sum += exp(logits[i] - peak);
    return log(sum) + peak - logits[next];
}

static double perplexity(const l3_model *model, const int32_t *ids, uint32_t n, uint32_t window, int32_t kv_type) {
    const l3_info    *info = l3_model_info(model);
    float            *all  = new_floats(window, info->vocab);
    int32_t          *part = (int32_t *)must(window * sizeof *part);
    double            sum  = 0;
    seat              s;
    l3_session_config c;
    memset(&c, 0, sizeof c);
    c.kv_type = kv_type;
    CHECK_EQ(seat_open(&s, model, &c, NULL), L3_OK);
    part[0] = info->bos;
    for (uint32_t at = 0, count; at < n; at += count) {
        count = n - at < window - 1 ? n - at : window - 1;
        memcpy(part + 1, ids + at, count * sizeof *part);
        CHECK_EQ(l3_truncate(s.session, 0, NULL), L3_OK);
        CHECK_EQ(l3_prefill(s.session, part, count, all, NULL), L3_OK);
        for (uint32_t i = 0; i < count; i++) sum += surprise(all + (size_t)i * info->vocab, info->vocab, part[i + 1]);
    }
    seat_close(&s);
    free(all);
    free(part);
    return exp(sum / n);
}

static int32_t *encode_whole(const l3_model *model, file text, size_t *n) {
    int32_t    *ids   = (int32_t *)must((text.n + 1) * sizeof *ids);
    const void *chars = text.bytes;
    desk        d;
    CHECK_EQ(desk_open(&d, model, text.n, NULL), L3_OK);
    CHECK_EQ(l3_tokenize(d.tokenizer, (const char *)chars, text.n, 0, ids, text.n + 1, n, NULL), L3_OK);
    desk_close(&d);
    return ids;
}

TEST(perplexity_of_text) {
    file f = file_fixture("stories-l3.gguf"), text = file_fixture("stories_eval.txt"),
         g = file_fixture("stories-l3.perplexity.json");
    rig r;
    if (test_quick()) SKIP("L3_QUICK is set");
    if (!f.bytes || !text.bytes || !g.bytes) SKIP("no fixtures");
    const void *chars = g.bytes;
    json       *cases = json_parse((const char *)chars);
    REQUIRE(cases && rig_open(&r, f, MAPPED) == L3_OK);
    size_t   n;
    int32_t *ids = encode_whole(r.model, text, &n);
    for (const json *c = cases->first; c; c = c->next) {
        const double expected = json_get(c, "perplexity")->number;
        const double got      = perplexity(r.model, ids, (uint32_t)n, (uint32_t)atoi(c->key), L3_F32);
        CHECK_EQ(n, json_get(c, "tokens")->number);
        CHECK_NEAR(got / expected, 1, 1e-5);
        if (test_verbose()) fprintf(stderr, "  window %s: %.9f, expected %.9f\n", c->key, got, expected);
    }
    free(ids);
    json_free(cases);
    rig_close(&r);
    free(f.bytes);
    free(text.bytes);
    free(g.bytes);
}

/* What a smaller KV cache costs a real model. */
TEST(perplexity_with_small_caches) {
    file f = file_fixture("stories-l3.gguf"), text = file_fixture("stories_eval.txt");
    rig  r;
    if (test_quick()) SKIP("L3_QUICK is set");
    if (!f.bytes || !text.bytes) SKIP("no fixtures");
    REQUIRE(rig_open(&r, f, MAPPED) == L3_OK);
    size_t       n;
    int32_t     *ids   = encode_whole(r.model, text, &n);
    const double full  = perplexity(r.model, ids, 1020, 256, L3_F32);
    const double half  = perplexity(r.model, ids, 1020, 256, L3_F16) / full - 1;
    const double eight = perplexity(r.model, ids, 1020, 256, L3_Q8_0) / full - 1;
    CHECK(fabs(half) < 1e-4);
    CHECK(fabs(eight) < 2e-3);
    if (test_verbose()) fprintf(stderr, "  f16: %+.2g, q8_0: %+.2g\n", half, eight);
    free(ids);
    rig_close(&r);
    free(f.bytes);
    free(text.bytes);
}

/* ---- against the reference ---- */

/* The largest difference relative to the largest logit; n positions. */
static double against_reference(file f, uint64_t seed, uint32_t n) {
    rig      r;
    test_rng rng  = {seed};
    double   most = 0, peak = 1;
    if (!CHECK_EQ(rig_open(&r, f, MAPPED), L3_OK)) {
        fprintf(stderr, "    seed %u: %s\n", (unsigned)seed, r.err.text);
        return 1e30;
    }
    const uint32_t vocab = l3_model_info(r.model)->vocab;
    ref_model     *ref   = ref_load(f.bytes, f.n);
    int32_t       *ids   = random_ids(&rng, vocab, n);
    double        *want  = (double *)must((size_t)n * vocab * sizeof *want);
    float         *got   = logits_of(r.model, ids, n);
    if (CHECK(ref != NULL)) ref_logits(ref, ids, n, want);
    for (size_t i = 0; i < (size_t)n * vocab; i++)
        if (fabs(want[i]) > peak) peak = fabs(want[i]);
    for (size_t i = 0; i < (size_t)n * vocab; i++) {
        const double d = fabs((double)got[i] - want[i]) / peak;
        if (!(d <= most)) most = d;
    }
    ref_free(ref);
    free(ids);
    free(want);
    free(got);
    rig_close(&r);
    return most;
}

static double check_spec(const mk_spec *spec, const char *name, uint64_t seed) {
    file         f = file_make(spec);
    const double d = against_reference(f, seed, spec->context ? spec->context : 32);
    if (!CHECK(d <= RANDOM_TOLERANCE)) fprintf(stderr, "    %s, seed %u: %.3g\n", name, (unsigned)seed, d);
    free(f.bytes);
    return d;
}

TEST(random_models) {
    const uint32_t n    = test_flag("L3_LONG") ? 1000 : (uint32_t)test_some(64);
    double         most = 0;
    for (uint64_t seed = 1; seed <= n; seed++) {
        const mk_spec spec = mk_random_spec(seed);
        const double  d    = check_spec(&spec, "mk_random_spec", seed);
        if (d > most) most = d;
    }
    if (test_verbose()) fprintf(stderr, "  %u models, largest difference: %.3g\n", (unsigned)n, most);
}

/* What chance may leave out: each case is one field of the default spec, or a few. */
static mk_spec special(int i) {
    static const uint32_t types[] = {MK_F32, MK_F16, MK_BF16, MK_Q8_0, MK_Q4_0, MK_Q6_K};
    mk_spec               s;
    memset(&s, 0, sizeof s);
    s.seed = (uint64_t)i + 100;
    if (i < 6) s.dim = 256, s.ffn = 256, s.weight_type = types[i], s.value_length = 256, s.up_length = 256;
    if (i >= 6 && i < 12) s.dim = 256, s.row_type = types[i - 6], s.value_length = 256;
    if (i >= 12 && i < 18) s.dim = 256, s.embedding_type = types[i - 12];
    if (i >= 18 && i < 24) s.dim = 256, s.head_type = types[i - 18], s.separate_head = 1;
    switch (i) {
    case 24: s.dim = 96, s.n_heads = 12; break;                  /* heads of 8 */
    case 25: s.dim = 96, s.n_heads = 4; break;                   /* of 24 */
    case 26: s.dim = 160, s.n_heads = 4; break;                  /* of 40 */
    case 27: s.dim = 96, s.n_heads = 6, s.n_kv_heads = 1; break; /* one KV head */
    case 28: s.dim = 96, s.n_heads = 6, s.n_kv_heads = 2, s.rope_dim = 4; break;
    case 29: s.rope_dim = 2; break;
    case 30: s.heavy_rows = 5000, s.heavy_token = 30; break;
    case 31: s.empty_every = 2; break;
    case 32: s.key_norm = 1, s.no_query_norm = 1; break;
    case 33: s.tied = 1, s.key_norm = 1, s.no_residual = 1; break;
    case 34: s.no_lookup = 1; break;
    case 35: s.architecture = "llama"; break;
    case 36: s.layer_norm = 1, s.up_bias = 1, s.up_length = 96; break;
    case 37: s.context = 300, s.freq_base = 1000000; break;
    case 38:
        s.n_blocks = 4, s.n_lookups = 4, s.lookup_blocks[1] = 1, s.lookup_blocks[2] = 2, s.lookup_blocks[3] = 3;
        break;
    case 39: s.dim = 2, s.n_heads = 1, s.ffn = 1, s.value_length = 1; break;
    default: break;
    }
    return s;
}

TEST(special_models) {
    double most = 0;
    for (int i = 0; i < 40; i += test_quick() ? 5 : 1) {
        const mk_spec spec = special(i);
        const double  d    = check_spec(&spec, "special", (uint64_t)i);
        if (d > most) most = d;
    }
    if (test_verbose()) fprintf(stderr, "  largest difference: %.3g\n", most);
}

TEST(trained_models) {
    static const char *const names[] = {"stories-l3.gguf", "stories-l3-q8_0.gguf", "stories260K/stories260K.gguf"};
    for (int i = 0; i < 3; i++) {
        file f = file_fixture(names[i]);
        if (!f.bytes) SKIP("no fixtures");
        const double d = against_reference(f, 1, 48);
        CHECK(d <= RANDOM_TOLERANCE);
        if (test_verbose()) fprintf(stderr, "  %s: %.3g\n", names[i], d);
        free(f.bytes);
    }
}

/* ---- what a file says about itself ---- */

static int same_tensor(const ref_gguf *g, const l3_tensor *t, const char *name) {
    const ref_tensor *want = ref_tensor_find(g, name);
    return CHECK(want != NULL) && CHECK_EQ(t->type, want->type) && CHECK_EQ(t->cols, want->dims[0]) &&
           CHECK_EQ(t->rows, want->dims[1]) && CHECK_EQ(t->offset, want->offset) &&
           CHECK(t->data == (const void *)want->data);
}

static void check_description(const mk_spec *spec) {
    const mk_spec s = mk_defaults(spec);
    file          f = file_make(spec);
    rig           r;
    uint32_t      n = 0, block;
    char          name[64];
    REQUIRE(rig_open(&r, f, MAPPED) == L3_OK);
    ref_gguf      *g = ref_gguf_open(f.bytes, f.n);
    const l3_info *x = l3_model_info(r.model);
    CHECK(x->kind == L3_KIND_MODEL && x->dim == s.dim && x->ffn_dim == s.ffn && x->n_blocks == s.n_blocks &&
          x->n_heads == s.n_heads);
    CHECK(x->n_kv_heads == s.n_kv_heads && x->head_dim == s.dim / s.n_heads && x->rope_dims == s.rope_dim &&
          x->context == s.context);
    CHECK(x->vocab == s.vocab && x->tied_head == !s.separate_head && x->has_tokenizer && x->bos == 1 && x->eos == 2 &&
          x->unknown == 0);
    CHECK(x->add_bos == !s.no_bos && x->add_space_prefix == !s.no_space_prefix && x->file_bytes == f.n);
    CHECK(x->has_file_checksum == (s.checksums != 0) && x->n_lookups == s.n_lookups);
    CHECK_STR(x->architecture, s.architecture);
    CHECK_STR(x->name, "random");
    for (const l3_tensor *t; (t = l3_model_tensor(r.model, n, name)) != NULL; n++) same_tensor(g, t, name);
    CHECK_EQ(n, ref_tensor_count(g));
    for (uint32_t i = 0; i < s.n_lookups; i++)
        CHECK(l3_model_lookup(r.model, i, &block) != NULL && block == s.lookup_blocks[i]);
    CHECK(l3_model_lookup(r.model, s.n_lookups, NULL) == NULL);
    ref_gguf_close(g);
    rig_close(&r);
    free(f.bytes);
}

TEST(descriptions) {
    for (uint64_t seed = 1; seed <= (uint64_t)test_some(20); seed++) {
        const mk_spec spec = mk_random_spec(seed + 300);
        check_description(&spec);
    }
}

static mk_gguf *part_of_model(const char *type) {
    static const char *const texts[] = {"<unk>", "<s>", "</s>", "a"};
    mk_gguf                 *g       = mk_gguf_new();
    mk_string(g, "general.architecture", "l3");
    mk_string(g, "general.type", type);
    mk_string(g, "tokenizer.ggml.model", "llama");
    mk_strings(g, "tokenizer.ggml.tokens", texts, 4);
    return g;
}

TEST(tokenizer_files) {
    file     f;
    rig      r;
    desk     d;
    l3_error err;
    f.bytes = mk_finish(part_of_model("tokenizer"), &f.n);
    REQUIRE(rig_open(&r, f, MAPPED) == L3_OK);
    CHECK(l3_model_info(r.model)->kind == L3_KIND_TOKENIZER && l3_model_info(r.model)->vocab == 4);
    CHECK_EQ(l3_session_size(r.model, NULL), 0);
    CHECK_EQ(l3_session_init(NULL, r.model, NULL, NULL, 0, &err), L3_ERR_UNSUPPORTED);
    if (CHECK_EQ(desk_open(&d, r.model, 10, &err), L3_OK)) desk_close(&d);
    rig_close(&r);
    free(f.bytes);
}

TEST(allocation_files) {
    static const unsigned char offsets[20] = {0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 7, 0, 0, 0};
    mk_gguf                   *g           = part_of_model("allocation");
    const uint64_t             dims[1]     = {5};
    file                       f;
    rig                        r;
    mk_u32(g, "l3.lookup.row_count", 7);
    mk_tensor(g, "blk.0.lookup_offsets", MK_I32, 1, dims, offsets, sizeof offsets);
    f.bytes = mk_finish(g, &f.n);
    REQUIRE(rig_open(&r, f, MAPPED) == L3_OK);
    const l3_lookup *l = l3_model_lookup(r.model, 0, NULL);
    CHECK(l3_model_info(r.model)->kind == L3_KIND_ALLOCATION && l != NULL && l->row_count == 7 && l->vocab == 4);
    CHECK_EQ(l3_session_size(r.model, NULL), 0);
    rig_close(&r);
    free(f.bytes);
}

int main(void) {
    RUN(variants);
    RUN(greedy_text);
    RUN(llama2c_text);
    RUN(perplexity_of_text);
    RUN(perplexity_with_small_caches);
    RUN(random_models);
    RUN(special_models);
    RUN(trained_models);
    RUN(descriptions);
    RUN(tokenizer_files);
    RUN(allocation_files);
    return test_report("model");
}
