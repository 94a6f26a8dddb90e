/* The self-test in a file: passes for every way the bytes come, KV cache, level and mode; tells a changed weight, changed
 * stored numbers and numbers that are none; where a session must be; hostile keys. */
#define L3_NO_SIMD /* plain C is enough here; test_embed.sh runs self-tests with this machine's kernels */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "make_model.h"
#include "model.h"

enum { TOKENS = 21, STORED = 40 };

static const int32_t kv_types[3] = {L3_F32, L3_F16, L3_Q8_0};

/* A small model with a self-test whose logits its own plain code computed, one token at a time. */
typedef struct subject {
    mk_spec spec;
    int32_t tokens[TOKENS];
    float   logits[3 * STORED];
    file    f;
} subject;

static void compute(const subject *x, int kv, float *logits) {
    file              f = file_make(&x->spec);
    rig               r;
    seat              s;
    l3_session_config config;
    memset(&config, 0, sizeof config);
    config.kv_type    = kv_types[kv];
    config.work.mode  = L3_EXACT;
    config.work.level = L3_LEVEL_PLAIN;
    CHECK_EQ(rig_open(&r, f, MAPPED), L3_OK);
    CHECK_EQ(seat_open_as(&s, r.model, &config, &r.err), L3_OK);
    for (int i = 0; i < TOKENS; i++) CHECK_EQ(l3_decode(s.session, x->tokens[i], &r.err), L3_OK);
    for (int i = 0; i < STORED; i++) /* the spread that docs/FORMAT.md states */
        logits[i] = l3_logits(s.session)[i * (l3_model_info(r.model)->vocab - 1) / (STORED - 1)];
    seat_close(&s);
    rig_close(&r);
    free(f.bytes);
}

static void subject_make(subject *x) {
    test_rng rng = {3};
    memset(x, 0, sizeof *x);
    x->spec             = spec_small();
    x->spec.weight_type = x->spec.head_type = MK_Q8_0;
    for (int i = 0; i < TOKENS; i++) x->tokens[i] = (int32_t)test_below(&rng, x->spec.vocab);
    for (int kv = 0; kv < 3; kv++) compute(x, kv, x->logits + kv * STORED);
    x->spec.selftest_tokens   = x->tokens;
    x->spec.n_selftest_tokens = TOKENS;
    x->spec.selftest_logits   = x->logits;
    x->spec.n_selftest_logits = 3 * STORED;
    x->f                      = file_make(&x->spec);
}

static void subject_free(subject *x) { free(x->f.bytes); }

/* The self-test of these bytes in a new session, which is empty before and after. */
static int selftest(file f, way w, const l3_session_config *config, float *difference, l3_error *err) {
    rig  r;
    seat s;
    int  code = rig_open(&r, f, w);
    *err      = r.err;
    if (code != L3_OK) return code;
    CHECK_EQ(l3_model_info(r.model)->selftest_tokens, TOKENS);
    CHECK_EQ(seat_open_as(&s, r.model, config, err), L3_OK);
    code = l3_session_selftest(s.session, difference, err);
    CHECK_EQ(l3_position(s.session), 0);
    seat_close(&s);
    rig_close(&r);
    return code;
}

static l3_session_config exactly(int kv) {
    l3_session_config config;
    memset(&config, 0, sizeof config);
    config.kv_type = kv_types[kv];
    make_exact(&config.work);
    return config;
}

TEST(passes_however_the_bytes_come) {
    static const way ways[] = {{0, 1, 0},  {0, 0, 0},           {256, 0, 0},
                               {64, 2, 0}, {16, 3, MOCK_START}, {512, 0, MOCK_START}};
    subject          x;
    l3_error         err;
    float            difference;
    subject_make(&x);
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++)
        for (int kv = 0; kv < 3; kv++)
            for (uint32_t batch = 1; batch < 20; batch += 6) {
                l3_session_config config = exactly(kv);
                config.work.batch        = batch;
                difference               = -1;
                CHECK_EQ(selftest(x.f, ways[w], &config, &difference, &err), L3_OK);
                CHECK(difference == 0);
            }
    CHECK_EQ(selftest(x.f, MAPPED, NULL, NULL, &err), L3_OK);
    subject_free(&x);
}

/* Numbers off by a part of the range: in exact mode none may, in fast mode up to the bound; and what it was is told. */
TEST(fast_mode_has_a_bound) {
    static const float parts[] = {1e-6f, 0.95f * L3_SELFTEST_BOUND, 1.05f * L3_SELFTEST_BOUND, -0.5f};
    subject            x;
    l3_error           err;
    float              difference, low = INFINITY, high = -INFINITY;
    int                middle = 0;
    subject_make(&x);
    for (int i = 0; i < STORED; i++) {
        low  = fminf(low, x.logits[i]);
        high = fmaxf(high, x.logits[i]);
    }
    while (fabsf(x.logits[middle] - (low + high) / 2) > 0.1f * (high - low)) middle++;
    const float was = x.logits[middle];
    for (int i = 0; i < 4; i++)
        for (int mode = 0; mode < 2; mode++) {
            l3_session_config config = exactly(0);
            config.work.mode         = mode ? L3_FAST : L3_EXACT;
            x.logits[middle]         = was + parts[i] * (high - low);
            file f                   = file_make(&x.spec);
            CHECK_EQ(selftest(f, MAPPED, &config, &difference, &err), mode && i < 2 ? L3_OK : L3_ERR_SELFTEST);
            CHECK_NEAR((double)difference, fabs((double)parts[i]), i == 3 ? 0.1 : 1e-6);
            free(f.bytes);
        }
    subject_free(&x);
}

/* Where a tensor's bytes begin, in a file that opens. */
static size_t tensor_at(file f, const char *wanted) {
    rig              r;
    char             name[64];
    const l3_tensor *t;
    size_t           at = 0;
    CHECK_EQ(rig_open(&r, f, MAPPED), L3_OK);
    for (uint32_t i = 0; (t = l3_model_tensor(r.model, i, name)) != NULL; i++)
        if (strcmp(name, wanted) == 0) at = (size_t)t->offset;
    CHECK(at > 0);
    rig_close(&r);
    return at;
}

/* One bit of one weight: the checksum tells, and without it the self-test. */
TEST(a_changed_weight_is_told) {
    static const char *const tensors[] = {"blk.0.attn_q.weight", "blk.2.ffn_down.weight", "output.weight",
                                          "blk.1.lookup_mix.weight", "output_norm.weight"};
    subject                  x;
    l3_error                 err;
    float                    difference;
    rig                      r;
    subject_make(&x);
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        const l3_session_config config = exactly(0);
        const size_t            at     = tensor_at(x.f, tensors[i]) + 7; /* of a float or of an int8 */
        x.f.bytes[at] ^= 0x20;
        CHECK_EQ(rig_open(&r, x.f, MAPPED), L3_OK);
        CHECK_EQ(l3_model_verify(r.model, &r.err), L3_ERR_CHECKSUM);
        rig_close(&r);
        CHECK_EQ(selftest(x.f, MAPPED, &config, &difference, &err), L3_ERR_SELFTEST);
        CHECK(difference > 0);
        CHECK(err.code == L3_ERR_SELFTEST && strstr(err.text, "after 21 tokens"));
        x.f.bytes[at] ^= 0x20;
    }
    subject_free(&x);
}

/* Nonsense fails in fast mode, too: norms of zero, and a head whose signs are turned. */
TEST(fast_mode_tells_nonsense) {
    subject           x;
    l3_error          err;
    float             difference;
    l3_session_config config = exactly(2);
    config.work.mode         = L3_FAST;
    subject_make(&x);
    const size_t norm = tensor_at(x.f, "blk.0.attn_norm.weight");
    for (size_t i = 0; i < x.spec.dim * 4; i++) x.f.bytes[norm + i] ^= i % 4 == 3 ? 0x80 : 0;
    CHECK_EQ(selftest(x.f, MAPPED, &config, &difference, &err), L3_ERR_SELFTEST);
    CHECK(difference > L3_SELFTEST_BOUND);
    for (size_t i = 0; i < x.spec.dim * 4; i++) x.f.bytes[norm + i] ^= i % 4 == 3 ? 0x80 : 0;
    const size_t head = tensor_at(x.f, "output.weight");
    for (size_t i = 0; i < x.spec.vocab; i++) x.f.bytes[head + i * 34 + 1] ^= 0x80; /* signs of the scales */
    CHECK_EQ(selftest(x.f, MAPPED, &config, &difference, &err), L3_ERR_SELFTEST);
    CHECK(difference > L3_SELFTEST_BOUND);
    subject_free(&x);
}

/* The stored numbers are as untrusted as all others. */
TEST(stored_numbers_may_be_anything) {
    static const float values[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 0, 1e-40f};
    subject            x;
    l3_error           err;
    float              difference;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        for (int all = 0; all < 2; all++)
            for (int mode = 0; mode < 2; mode++) {
                l3_session_config config = exactly(0);
                config.work.mode         = mode ? L3_FAST : L3_EXACT;
                subject_make(&x);
                for (int k = all ? 0 : 5; k < (all ? 3 * STORED : 6); k++) x.logits[k] = values[i];
                subject_free(&x);
                x.f            = file_make(&x.spec);
                const int code = selftest(x.f, MAPPED, &config, &difference, &err);
                /* one number near 0 may well be within the bound of fast mode */
                CHECK(code == L3_ERR_SELFTEST || (mode && !all && values[i] >= 0 && values[i] < 1));
                CHECK(difference >= 0 && difference <= 1e30f);
                if (code == L3_ERR_SELFTEST) CHECK(err.offset > 0 && err.offset < x.f.n);
                subject_free(&x);
            }
}

TEST(sessions_must_be_empty_and_large_enough) {
    subject           x;
    rig               r;
    seat              s;
    l3_session_config config = exactly(0);
    subject_make(&x);
    CHECK_EQ(rig_open(&r, x.f, MAPPED), L3_OK);
    CHECK_EQ(seat_open_as(&s, r.model, &config, &r.err), L3_OK);
    CHECK_EQ(l3_decode(s.session, 3, &r.err), L3_OK);
    CHECK_EQ(l3_session_selftest(s.session, NULL, &r.err), L3_ERR_ARGUMENT);
    CHECK_EQ(l3_position(s.session), 1);
    CHECK_EQ(l3_truncate(s.session, 0, &r.err), L3_OK);
    CHECK_EQ(l3_session_selftest(s.session, NULL, &r.err), L3_OK);
    seat_close(&s);
    config.context = TOKENS - 1;
    CHECK_EQ(seat_open_as(&s, r.model, &config, &r.err), L3_OK);
    CHECK_EQ(l3_session_selftest(s.session, NULL, &r.err), L3_ERR_CONTEXT);
    CHECK_EQ(l3_position(s.session), 0);
    seat_close(&s);
    rig_close(&r);
    x.spec.selftest_tokens = NULL, x.spec.selftest_logits = NULL;
    file f = file_make(&x.spec);
    CHECK_EQ(rig_open(&r, f, MAPPED), L3_OK);
    CHECK_EQ(l3_model_info(r.model)->selftest_tokens, 0);
    CHECK_EQ(seat_open_as(&s, r.model, NULL, &r.err), L3_OK);
    CHECK_EQ(l3_session_selftest(s.session, NULL, &r.err), L3_ERR_UNSUPPORTED);
    CHECK(strstr(r.err.text, "l3-embed") != NULL);
    seat_close(&s);
    rig_close(&r);
    free(f.bytes);
    subject_free(&x);
}

/* Every read that fails is an error, and leaves the session empty and fit. */
TEST(reads_that_fail) {
    subject           x;
    rig               r;
    seat              s;
    l3_session_config config = exactly(1);
    uint32_t          calls, step;
    subject_make(&x);
    const way read = {0, 0, 0};
    CHECK_EQ(rig_open(&r, x.f, read), L3_OK);
    CHECK_EQ(seat_open_as(&s, r.model, &config, &r.err), L3_OK);
    calls = r.mock.calls;
    CHECK_EQ(l3_session_selftest(s.session, NULL, &r.err), L3_OK);
    calls = r.mock.calls - calls;
    step  = calls / 150 + 1;
    for (uint32_t at = 1; at <= calls; at += at + 60 < calls ? step : 1) {
        r.mock.fail_at = r.mock.calls + at;
        CHECK_EQ(l3_session_selftest(s.session, NULL, &r.err), L3_ERR_IO);
        CHECK_EQ(r.err.io, MOCK_FAILURE);
        CHECK_EQ(l3_position(s.session), 0);
    }
    r.mock.fail_at = 0;
    CHECK_EQ(l3_session_selftest(s.session, NULL, &r.err), L3_OK);
    seat_close(&s);
    rig_close(&r);
    subject_free(&x);
}

static int opens(const subject *x, const char *words) {
    rig       r;
    file      f    = file_make(&x->spec);
    const int code = rig_open(&r, f, MAPPED);
    if (code == L3_OK) rig_close(&r);
    else CHECK(strstr(r.err.text, words) != NULL);
    free(f.bytes);
    return code;
}

TEST(hostile_keys) {
    subject  x;
    subject  y;
    l3_error err;
    subject_make(&x);
    const int32_t outside[TOKENS] = {1, 2, 270, -1};
    y = x, y.spec.selftest_logits = NULL;
    CHECK_EQ(opens(&y, "only one"), L3_ERR_FORMAT);
    y = x, y.spec.selftest_tokens = NULL;
    CHECK_EQ(opens(&y, "only one"), L3_ERR_FORMAT);
    for (size_t n = 0; n < 2; n++) {
        y = x, y.spec.n_selftest_tokens = n;
        CHECK_EQ(opens(&y, "l3.selftest.tokens"), L3_ERR_FORMAT);
    }
    for (size_t n = 0; n < 13; n++) {
        y = x, y.spec.n_selftest_logits = n;
        CHECK_EQ(opens(&y, "l3.selftest.logits"), n >= 6 && n % 3 == 0 ? L3_OK : L3_ERR_FORMAT);
    }
    y = x, y.spec.context = TOKENS - 1; /* more tokens than the model has room for */
    CHECK_EQ(opens(&y, "l3.selftest.tokens"), L3_ERR_FORMAT);
    float *many              = new_floats(3, 271); /* more logits than tokens */
    y                        = x;
    y.spec.selftest_logits   = many;
    y.spec.n_selftest_logits = 3 * 271;
    CHECK_EQ(opens(&y, "l3.selftest.logits"), L3_ERR_FORMAT);
    free(many);
    y = x, y.spec.selftest_tokens = outside;
    y.f                            = file_make(&y.spec);
    const l3_session_config config = exactly(0);
    CHECK_EQ(selftest(y.f, MAPPED, &config, NULL, &err), L3_ERR_TOKEN);
    subject_free(&y);
    subject_free(&x);
}

/* Of another type, and names that are not known. */
TEST(other_keys) {
    static const struct {
        const char *name;
        int         code;
    } cases[] = {{"l3.selftest.tokenz", L3_ERR_UNSUPPORTED}, {"l3.selftest.", L3_ERR_UNSUPPORTED}};
    subject x;
    subject_make(&x);
    for (size_t i = 0; i < 2; i++) {
        file         f    = {NULL, 0};
        mk_gguf     *g    = mk_gguf_new();
        const size_t head = 24;
        rig          r;
        memset(&r, 0, sizeof r);
        mk_u32(g, cases[i].name, 1);
        f.bytes = mk_finish(g, &f.n);
        CHECK(f.n > head);
        CHECK_EQ(rig_open(&r, f, MAPPED), cases[i].code);
        free(f.bytes);
    }
    /* the type of the items: i32 as f32 and the other way round */
    for (int which = 0; which < 2; which++) {
        const char *const name  = which ? "l3.selftest.logits" : "l3.selftest.tokens";
        int               found = 0;
        for (size_t i = 0; i + 20 < x.f.n; i++)
            if (memcmp(x.f.bytes + i, name, 18) == 0) {
                const unsigned char was = x.f.bytes[i + 22];
                rig                 r;
                found++;
                x.f.bytes[i + 22] = was == MK_FLOAT ? MK_INT32 : MK_FLOAT;
                CHECK_EQ(rig_open(&r, x.f, MAPPED), L3_ERR_FORMAT);
                x.f.bytes[i + 22] = was;
            }
        CHECK_EQ(found, 1);
    }
    subject_free(&x);
}

int main(void) {
    RUN(passes_however_the_bytes_come);
    RUN(fast_mode_has_a_bound);
    RUN(a_changed_weight_is_told);
    RUN(fast_mode_tells_nonsense);
    RUN(stored_numbers_may_be_anything);
    RUN(sessions_must_be_empty_and_large_enough);
    RUN(reads_that_fail);
    RUN(hostile_keys);
    RUN(other_keys);
    return test_report("selftest");
}
