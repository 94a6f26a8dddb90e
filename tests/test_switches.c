/* test_switches.c - a build that leaves things out: what it has still works, against ref.c; a file or a configuration that needs
 * what it has not is refused by the name of the switch. */
#define L3_NO_SIMD
#define L3_NO_F16
#define L3_NO_BF16
#define L3_NO_Q4_0
#define L3_NO_Q6_K
#define L3_NO_ENCODER
#define L3_NO_SAMPLER
#define L3_NO_SNAPSHOT
#define L3_NO_SELFTEST
#define L3_NO_STEPS
#define L3_NO_PIN
#define L3_NO_ALLOCATOR
#define L3_MAX_ALIGN 16 /* as for memory-mapped flash: names and texts are longer than a block */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "guard.h"
#include "make_model.h"
#include "mock.h"
#include "ref.h"
#include "test.h"

typedef struct opened {
    unsigned char *file;
    size_t         n;
    mock           mock;
    guard          block;
    l3_model      *model;
    l3_error       err;
} opened;

static int open_made(opened *o, const mk_spec *spec, uint32_t align, uint32_t map_some) {
    size_t size = 0;
    memset(o, 0, sizeof *o);
    o->file = mk_model(spec, &o->n);
    mock_init(&o->mock, o->file, o->n, align, map_some, 0);
    int code = l3_model_size(&o->mock.source, NULL, &size, &o->err);
    o->block = guard_new(size, L3_ALIGN, 0xa5);
    if (code == L3_OK) code = l3_model_open(&o->model, &o->mock.source, NULL, o->block.mem, size, &o->err);
    return code;
}

static void close_made(opened *o) {
    CHECK(guard_free(&o->block));
    CHECK(mock_clean(&o->mock));
    free(o->file);
}

static mk_spec spec_of(uint32_t weights, uint32_t rows) {
    mk_spec s;
    memset(&s, 0, sizeof s);
    s.seed = 3, s.checksums = 1, s.weight_type = weights, s.row_type = rows;
    return s;
}

static const struct {
    uint32_t    type;
    const char *name;
} left_out[] = {{MK_F16, "L3_NO_F16"}, {MK_BF16, "L3_NO_BF16"}, {MK_Q4_0, "L3_NO_Q4_0"}, {MK_Q6_K, "L3_NO_Q6_K"}};

TEST(types_that_are_left_out) {
    for (size_t i = 0; i < sizeof left_out / sizeof *left_out; i++)
        for (int rows = 0; rows < 2; rows++) {
            mk_spec s = rows ? spec_of(MK_Q8_0, left_out[i].type) : spec_of(left_out[i].type, MK_Q8_0);
            opened  o;
            s.dim = s.value_length = s.up_length = s.ffn = 256; /* whole blocks of Q6_K */
            CHECK_EQ(open_made(&o, &s, 0, 0), L3_ERR_UNSUPPORTED);
            CHECK(strstr(o.err.text, left_out[i].name) != NULL);
            close_made(&o);
        }
    float x[256] = {1};
    for (size_t i = 0; i < sizeof left_out / sizeof *left_out; i++) {
        unsigned char row[256];
        memset(row, 7, sizeof row);
        l3_pack((int)left_out[i].type, x, 32, row);
        CHECK_EQ(row[0], 7);
    }
}

TEST(configurations_that_are_left_out) {
    const mk_spec     s = spec_of(MK_Q8_0, MK_Q8_0);
    opened            o;
    l3_session_config config;
    l3_session       *session;
    l3_tokenizer     *tokenizer;
    memset(&config, 0, sizeof config);
    config.kv_type = L3_F16;
    if (CHECK_EQ(open_made(&o, &s, 0, 1), L3_OK)) {
        guard g = guard_new(1 << 20, L3_ALIGN, 0);
        CHECK_EQ(l3_session_size(o.model, &config), 0);
        CHECK_EQ(l3_session_init(&session, o.model, &config, g.mem, g.size, &o.err), L3_ERR_UNSUPPORTED);
        CHECK(strstr(o.err.text, "L3_NO_F16") != NULL);
        CHECK_EQ(l3_tokenizer_init(&tokenizer, o.model, 10, g.mem, g.size, &o.err), L3_ERR_UNSUPPORTED);
        CHECK(strstr(o.err.text, "L3_NO_ENCODER") != NULL);
        CHECK_EQ(l3_tokenizer_init(&tokenizer, o.model, 0, g.mem, g.size, &o.err), L3_OK);
        CHECK(guard_free(&g));
    }
    close_made(&o);
}

/* The text of a token, and its logits after three others, mapped and read in pieces of 16 bytes. */
static void runs(uint32_t align, uint32_t map_some) {
    const mk_spec     s      = spec_of(MK_Q8_0, MK_Q8_0);
    const int32_t     ids[4] = {1, 70, 5, 300};
    opened            o;
    l3_session_config config;
    l3_session       *session;
    l3_tokenizer     *tokenizer;
    const char       *text;
    size_t            n;
    memset(&config, 0, sizeof config);
    config.kv_type = L3_Q8_0;
    if (CHECK_EQ(open_made(&o, &s, align, map_some), L3_OK)) {
        const uint32_t vocab = l3_model_info(o.model)->vocab;
        ref_model     *ref   = ref_load(o.file, o.n);
        double        *want  = (double *)malloc(4 * vocab * sizeof *want);
        guard          a     = guard_new(l3_session_size(o.model, &config), L3_ALIGN, 0);
        guard          b     = guard_new(l3_tokenizer_size(o.model, 0), L3_ALIGN, 0);
        CHECK_EQ(l3_model_verify(o.model, &o.err), L3_OK);
        CHECK_EQ(l3_session_init(&session, o.model, &config, a.mem, a.size, &o.err), L3_OK);
        CHECK_EQ(l3_prefill(session, ids, 3, NULL, &o.err), L3_OK);
        CHECK_EQ(l3_decode(session, ids[3], &o.err), L3_OK);
        ref_logits(ref, ids, 4, want);
        for (uint32_t i = 0; i < vocab; i++) CHECK_NEAR(l3_logits(session)[i], want[3 * vocab + i], 0.1);
        CHECK_EQ(l3_tokenizer_init(&tokenizer, o.model, 0, b.mem, b.size, &o.err), L3_OK);
        CHECK_EQ(l3_detokenize(tokenizer, 3 + 'A', &text, &n, &o.err), L3_OK);
        CHECK(n == 1 && *text == 'A');
        CHECK(guard_free(&a));
        CHECK(guard_free(&b));
        ref_free(ref);
        free(want);
    }
    close_made(&o);
}
TEST(what_is_left_works) {
    runs(0, 1);
    runs(0, 0);
    runs(16, 0);
}

int main(void) {
    RUN(types_that_are_left_out);
    RUN(configurations_that_are_left_out);
    RUN(what_is_left_works);
    return test_report("switches");
}
