/* l3-quantize and the GGUF writer under it: types by class against an independent quantizer and dequantizer, keys byte by
 * byte, checksums against an independent CRC and l3_model_verify(), what is refused. */
#include "../tools/gguf_write.h"

#include "make_model.h"
#include "model.h"
#include "ref.h"
#include "tool.h"

enum { WEIGHTS, ROWS, EMBEDDING, HEAD, OTHER };
static const char *const options[OTHER] = {"--weights", "--rows", "--embedding", "--head"};
static const char *const types[]        = {"f32", "f16", "bf16", "q8_0", "q4_0"};
static const uint32_t    type_ids[]     = {MK_F32, MK_F16, MK_BF16, MK_Q8_0, MK_Q4_0};
enum { TYPES = 5 };

static char in_path[600], out_path[600];

static void put_input(const void *bytes, size_t n) {
    test_temp("in.gguf", in_path, sizeof in_path);
    test_temp("out.gguf", out_path, sizeof out_path);
    unlink(out_path);
    CHECK(test_write(in_path, bytes, n));
}

/* The output; its bytes stay until the caller frees them. */
typedef struct gguf_file {
    unsigned char *bytes;
    size_t         n;
    ref_gguf      *ref;
} gguf_file;

static gguf_file open_bytes(unsigned char *bytes, size_t n) {
    gguf_file f = {bytes, n, bytes ? ref_gguf_open(bytes, n) : NULL};
    CHECK(f.ref != NULL);
    return f;
}

static gguf_file open_output(void) {
    size_t         n     = 0;
    unsigned char *bytes = test_read(out_path, &n);
    return open_bytes(bytes, n);
}

static void close_file(gguf_file *f) {
    if (f->ref) ref_gguf_close(f->ref);
    free(f->bytes);
}

static int class_of(const char *name) {
    if (strcmp(name, "token_embd.weight") == 0) return EMBEDDING;
    if (strcmp(name, "output.weight") == 0) return HEAD;
    if (strstr(name, "lookup_rows")) return ROWS;
    if (strstr(name, "norm") || strstr(name, "lookup_offsets")) return OTHER;
    return WEIGHTS;
}

/* ---- tensors ---- */

static double squares(const double *a, const double *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
}

/* A block of Q8_0: half a step, and what its scale, a half, may be off for the largest element. */
static void check_q8_0(const double *x, const double *y) {
    double peak = 0;
    for (int i = 0; i < 32; i++) peak = fmax(peak, fabs(x[i]));
    for (int i = 0; i < 32; i++) CHECK_NEAR(x[i], y[i], peak / 127 * 0.5001 + peak / 2048 + 1e-9);
}

/* Plain types exactly; Q4_0 leaves no more squared error in any block than rounding to nearest does. */
static void check_converted(const ref_tensor *before, const ref_tensor *after) {
    const size_t n = before->n_elements;
    double      *x = (double *)malloc(n * sizeof *x), *y = (double *)malloc(n * sizeof *y);
    double      *z      = (double *)malloc(n * sizeof *z);
    float       *single = (float *)malloc(n * sizeof *single);
    mk_buf       naive  = {NULL, 0, 0};
    CHECK(ref_dequantize(before->type, before->data, n, x) && ref_dequantize(after->type, after->data, n, y));
    for (size_t i = 0; i < n; i++) single[i] = (float)x[i];
    mk_quantize(&naive, after->type, single, n);
    CHECK_EQ(naive.n, after->n_bytes);
    CHECK(ref_dequantize(after->type, naive.data, n, z));
    if (mk_block_elements(after->type) == 1) CHECK(squares(y, z, n) == 0); /* a zero may have another sign */
    for (size_t i = 0; after->type == MK_Q8_0 && i < n; i += 32) check_q8_0(x + i, y + i);
    for (size_t i = 0; after->type == MK_Q4_0 && i < n; i += 32)
        CHECK(squares(x + i, y + i, 32) <= squares(x + i, z + i, 32) * (1 + 1e-5) + 1e-12);
    free(naive.data), free(x), free(y), free(z), free(single);
}

/* Tensors of the class have the type, whose bytes say what they should; all others are copies. */
static void check_tensors(const gguf_file *in, const gguf_file *out, int class, uint32_t type) {
    REQUIRE(in->ref && out->ref);
    CHECK_EQ(ref_tensor_count(in->ref), ref_tensor_count(out->ref));
    for (size_t i = 0; i < ref_tensor_count(in->ref); i++) {
        const ref_tensor *a = ref_tensor_at(in->ref, i), *b = ref_tensor_find(out->ref, a->name);
        REQUIRE(b != NULL);
        CHECK_EQ(a->n_elements, b->n_elements);
        const int own = class_of(a->name), changes = own != OTHER && (own == class || class == OTHER);
        CHECK_EQ(b->type, changes ? type : a->type);
        if (b->type != a->type) {
            check_converted(a, b);
        } else {
            CHECK_EQ(a->n_bytes, b->n_bytes);
            CHECK_MEM(a->data, b->data, a->n_bytes);
        }
    }
}

/* ---- checksums ---- */

/* Where in the file an array's or a number's bytes are: the first place after its name. */
static size_t value_at(const gguf_file *f, const char *name, size_t head) {
    const size_t length = strlen(name);
    for (size_t i = 0; i + length < f->n; i++)
        if (memcmp(f->bytes + i, name, length) == 0) return i + length + head;
    return 0;
}

static uint32_t u32_at(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void check_file_checksum(gguf_file *f) {
    const size_t   at   = value_at(f, "l3.checksum.file", 4);
    const uint32_t said = u32_at(f->bytes + at);
    REQUIRE(at > 0);
    memset(f->bytes + at, 0, 4);
    CHECK_EQ(mk_crc32(0, f->bytes, f->n), said);
    l3_pack_i32((const int32_t[]){(int32_t)said}, 1, f->bytes + at);
}

/* Every row block's; returns how many tokens have rows. */
static size_t check_row_checksums(const gguf_file *f, uint32_t block) {
    char name[64];
    snprintf(name, sizeof name, "l3.checksum.rows.%u", block);
    if (!CHECK(f->ref != NULL)) return 0;
    const size_t at = value_at(f, name, 16), n = ref_key_count(f->ref, name);
    snprintf(name, sizeof name, "blk.%u.lookup_offsets", block);
    const ref_tensor *offsets = ref_tensor_find(f->ref, name);
    snprintf(name, sizeof name, "blk.%u.lookup_rows.weight", block);
    const ref_tensor *rows  = ref_tensor_find(f->ref, name);
    size_t            owned = 0;
    if (!CHECK(at && offsets && rows && n + 1 == offsets->n_elements)) return 0;
    for (size_t t = 0; t < n; t++) {
        const size_t row = rows->n_bytes / rows->dims[1], from = u32_at(offsets->data + 4 * t) * row,
                     to = u32_at(offsets->data + 4 * t + 4) * row;
        CHECK_EQ(u32_at(f->bytes + at + 4 * t), mk_crc32(0, rows->data + from, to - from));
        owned += to > from;
    }
    return owned;
}

static void check_opens_and_verifies(const gguf_file *f) {
    const file bytes = {f->bytes, f->n};
    rig        r;
    REQUIRE(rig_open(&r, bytes, MAPPED) == L3_OK);
    CHECK_EQ(l3_model_verify(r.model, &r.err), L3_OK);
    CHECK(l3_model_info(r.model)->has_file_checksum);
    rig_close(&r);
}

/* ---- cases ---- */

static mk_spec spec_wide(uint64_t seed) {
    mk_spec s = spec_small();
    s.seed    = seed;
    s.dim = 64, s.ffn = 96, s.value_length = 32, s.up_length = 64, s.row_count = 0;
    return s;
}

static void quantize(const char *arguments) {
    const tool_result r = tool_run("l3-quantize", "'%s' '%s' %s", in_path, out_path, arguments);
    CHECK_EQ(r.code, 0);
    if (r.code) fprintf(stderr, "  %s", r.err);
}

TEST(every_type_of_every_class) {
    const mk_spec spec = spec_wide(1);
    size_t        n;
    gguf_file     in = {NULL, 0, NULL};
    in.bytes         = mk_model(&spec, &n);
    in               = open_bytes(in.bytes, n);
    put_input(in.bytes, n);
    for (int class = 0; class <= OTHER; class ++)
        for (int type = 0; type < TYPES; type++) {
            char arguments[128];
            if (class == OTHER) snprintf(arguments, sizeof arguments, "--weights %s", types[type]); /* all follow */
            else if (class == WEIGHTS)
                snprintf(arguments, sizeof arguments, "--weights %s --rows f32 --embedding f32 --head f32",
                         types[type]);
            else snprintf(arguments, sizeof arguments, "%s %s", options[class], types[type]);
            quantize(arguments);
            gguf_file out = open_output();
            check_tensors(&in, &out, class, type_ids[type]);
            check_file_checksum(&out);
            CHECK(check_row_checksums(&out, 1) > 200);
            check_opens_and_verifies(&out);
            close_file(&out);
        }
    close_file(&in);
}

/* Every type that can be read, Q6_K too, to every type that can be written. */
TEST(every_type_to_every_type) {
    static const uint32_t sources[] = {MK_F32, MK_F16, MK_BF16, MK_Q8_0, MK_Q4_0, MK_Q6_K};
    for (int source = 0; source < 6; source++) {
        mk_spec spec = spec_wide(2);
        spec.dim = spec.ffn = spec.value_length = spec.up_length = 256; /* a block of Q6_K */
        spec.n_blocks = spec.n_lookups = 1, spec.lookup_blocks[0] = 0, spec.heavy_rows = 0, spec.k = 2;
        spec.weight_type = spec.row_type = spec.embedding_type = spec.head_type = sources[source];
        size_t         n;
        unsigned char *bytes = mk_model(&spec, &n);
        gguf_file      in    = open_bytes(bytes, n);
        put_input(in.bytes, n);
        for (int type = 0; type < TYPES; type++) {
            char arguments[64];
            snprintf(arguments, sizeof arguments, "--weights %s", types[type]);
            quantize(arguments);
            gguf_file out = open_output();
            check_tensors(&in, &out, OTHER, type_ids[type]);
            close_file(&out);
        }
        close_file(&in);
    }
}

/* ---- keys ---- */

/* The bytes of one key, name and value, that begin at p. */
static size_t key_bytes(const unsigned char *p) {
    static const size_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    size_t              at = 8 + u32_at(p), count = 1;
    uint32_t            type = u32_at(p + at);
    at += 4;
    if (type == MK_ARRAY) type = u32_at(p + at), count = u32_at(p + at + 4), at += 12;
    for (size_t i = 0; i < count; i++) at += type == MK_STRING ? 8 + u32_at(p + at) : sizes[type];
    return at;
}

static int key_is(const unsigned char *key, const char *name) {
    return u32_at(key) == strlen(name) && memcmp(key + 8, name, strlen(name)) == 0;
}

static int key_may_change(const unsigned char *key) {
    return (u32_at(key) > 12 && memcmp(key + 8, "l3.checksum.", 12) == 0) || key_is(key, "general.file_type") ||
           key_is(key, "general.quantization_version");
}

/* Every key of `in` that may not change is in `out`, byte by byte and in the same order. */
static void check_keys(const gguf_file *in, const gguf_file *out) {
    REQUIRE(in->ref && out->ref);
    const unsigned char *a = in->bytes + 24, *b = out->bytes + 24;
    size_t               left = u32_at(out->bytes + 16);
    for (size_t i = 0; i < u32_at(in->bytes + 16); i++, a += key_bytes(a)) {
        if (key_may_change(a)) continue;
        while (left && key_may_change(b)) b += key_bytes(b), left--;
        REQUIRE(left > 0);
        CHECK_EQ(key_bytes(a), key_bytes(b));
        CHECK_MEM(a, b, key_bytes(a));
        b += key_bytes(b), left--;
    }
    for (; left; b += key_bytes(b), left--) CHECK(key_may_change(b));
}

/* A model's bytes with more keys in front. Together they are a multiple of the alignment long, so that all data stay where
 * they are. */
static gguf_file with_keys(const mk_spec *spec, mk_gguf *more) {
    enum { FILLER = 8 + 6 + 4 + 8 }; /* bytes of a key "filler" with an empty string */
    const size_t alignment = spec->alignment ? spec->alignment : 32;
    size_t       n;
    char         text[65537];
    const size_t used = more->keys.n + FILLER, zeros = (alignment - used % alignment) % alignment;
    memset(text, 'x', zeros);
    text[zeros] = '\0';
    mk_string(more, "filler", text);
    unsigned char *model = mk_model(spec, &n), *all = (unsigned char *)malloc(n + more->keys.n);
    memcpy(all, model, 24);
    memcpy(all + 24, more->keys.data, more->keys.n);
    memcpy(all + 24 + more->keys.n, model + 24, n - 24);
    l3_pack_i32((const int32_t[]){(int32_t)(u32_at(model + 16) + more->n_keys)}, 1, all + 16);
    const gguf_file f = open_bytes(all, n + more->keys.n);
    mk_gguf_free(more);
    free(model);
    return f;
}

static mk_gguf *odd_keys(void) {
    static const char *const strings[] = {"", "two", "", "a longer string \xc3\xa9"};
    static const int32_t     numbers[] = {-1, 2, INT32_MIN};
    char                     name[300];
    mk_gguf                 *g = mk_gguf_new();
    memset(name, 'n', sizeof name);
    name[299] = '\0';
    mk_string(g, name, "a key whose name is longer than any buffer");
    mk_strings(g, "odd.strings", strings, 4);
    mk_strings(g, "odd.nothing", strings, 0);
    mk_i32s(g, "odd.numbers", numbers, 3);
    mk_i32s(g, "odd.no.numbers", numbers, 0);
    mk_u64(g, "odd.u64", UINT64_MAX);
    mk_key(g, "odd.u8", MK_U8, "\xff", 1);
    mk_key(g, "odd.i16", MK_I16, "\x80\xff", 2);
    mk_key(g, "odd.f64", MK_DOUBLE, "\1\2\3\4\5\6\7\10", 8);
    mk_key(g, "odd.bools", MK_ARRAY, "\7\0\0\0\2\0\0\0\0\0\0\0\1\0", 14);
    mk_u32(g, "general.file_type", 1);
    return g;
}

TEST(keys) {
    static const uint32_t alignments[] = {8, 32, 64, 4096, 65536};
    for (int i = 0; i < 5; i++) {
        mk_spec  spec  = spec_wide(3);
        mk_gguf *more  = odd_keys();
        spec.alignment = alignments[i], spec.checksums = 0;
        if (alignments[i] != 32 && spec.minimal) mk_u32(more, "general.alignment", alignments[i]);
        gguf_file in = with_keys(&spec, more);
        put_input(in.bytes, in.n);
        quantize("--weights q8_0 --rows f16");
        gguf_file out = open_output();
        check_keys(&in, &out);
        CHECK_EQ(ref_number(out.ref, "general.alignment", 0, 32), alignments[i]);
        CHECK_EQ(ref_number(out.ref, "general.file_type", 0, -1), 7); /* mostly Q8_0 */
        CHECK_EQ(ref_number(out.ref, "general.quantization_version", 0, -1), 2);
        for (size_t k = 0; k < ref_tensor_count(out.ref); k++)
            CHECK_EQ(ref_tensor_at(out.ref, k)->offset % alignments[i], 0);
        check_file_checksum(&out);
        close_file(&out);
        close_file(&in);
    }
}

/* Without options: the same tensors, with checksums; again: the same file. In place, too. */
TEST(copies) {
    for (uint64_t seed = 1; seed <= 12; seed++) {
        const mk_spec  spec = mk_random_spec(seed);
        size_t         n;
        unsigned char *bytes = mk_model(&spec, &n);
        gguf_file      in    = open_bytes(bytes, n);
        put_input(in.bytes, n);
        quantize("");
        gguf_file out = open_output();
        check_tensors(&in, &out, -1, 0);
        check_keys(&in, &out);
        check_opens_and_verifies(&out);
        snprintf(in_path, sizeof in_path, "%s", out_path);
        quantize("");
        gguf_file again = open_output();
        CHECK_EQ(again.n, out.n);
        CHECK_MEM(again.bytes, out.bytes, out.n);
        close_file(&again);
        close_file(&out);
        close_file(&in);
    }
}

TEST(in_place) {
    const mk_spec  spec = spec_wide(4);
    size_t         n;
    unsigned char *bytes = mk_model(&spec, &n);
    gguf_file      in    = open_bytes(bytes, n);
    put_input(in.bytes, n);
    snprintf(out_path, sizeof out_path, "%s", in_path);
    quantize("--weights q4_0");
    gguf_file out = open_output();
    check_tensors(&in, &out, OTHER, MK_Q4_0);
    close_file(&out);
    close_file(&in);
}

/* ---- blocks that do not fit ---- */

static uint32_t type_after(const gguf_file *f, const char *name) {
    const ref_tensor *t = f->ref ? ref_tensor_find(f->ref, name) : NULL;
    return t ? t->type : 999;
}

TEST(rows_that_are_no_whole_blocks) {
    mk_spec spec = spec_wide(5);
    spec.dim = 64, spec.ffn = 72, spec.value_length = 48; /* a row of key and value has 112 elements, ffn_down 72 */
    size_t         n;
    unsigned char *bytes = mk_model(&spec, &n);
    put_input(bytes, n);
    const tool_result r = tool_run("l3-quantize", "'%s' '%s' --weights q4_0", in_path, out_path);
    CHECK_EQ(r.code, 0);
    CHECK(strstr(r.out, "5 tensors of class weights are f16") && strstr(r.out, "2 tensors of class rows are f16"));
    gguf_file out = open_output();
    CHECK_EQ(type_after(&out, "blk.0.ffn_down.weight"), MK_F16);
    CHECK_EQ(type_after(&out, "blk.0.ffn_up.weight"), MK_Q4_0);
    CHECK_EQ(type_after(&out, "blk.1.lookup_rows.weight"), MK_F16);
    CHECK_EQ(type_after(&out, "blk.1.lookup_up.weight"), MK_F16);
    CHECK_EQ(type_after(&out, "token_embd.weight"), MK_Q4_0);
    check_opens_and_verifies(&out);
    close_file(&out);
    free(bytes);
    spec.dim = 96, spec.n_heads = 2, spec.n_kv_heads = 1, spec.value_length = 32, spec.key_norm = 0;
    bytes = mk_model(&spec, &n); /* 96 + 32 = 128: whole blocks, and so is each part */
    put_input(bytes, n);
    quantize("--rows q8_0");
    out = open_output();
    CHECK_EQ(type_after(&out, "blk.1.lookup_rows.weight"), MK_Q8_0);
    close_file(&out);
    free(bytes);
    spec.dim = 80, spec.value_length = 48; /* 80 + 48 = 128: whole blocks, but a block would straddle both */
    bytes = mk_model(&spec, &n);
    put_input(bytes, n);
    quantize("--rows q8_0");
    out = open_output();
    CHECK_EQ(type_after(&out, "blk.1.lookup_rows.weight"), MK_F16);
    close_file(&out);
    free(bytes);
}

/* ---- reports ---- */

static double relative_error(const gguf_file *in, const gguf_file *out, int class, double *largest) {
    double error  = 0;
    size_t values = 0;
    *largest      = 0;
    for (size_t i = 0; i < ref_tensor_count(in->ref); i++) {
        const ref_tensor *a = ref_tensor_at(in->ref, i);
        size_t            n;
        if (class_of(a->name) != class) continue;
        double *x = ref_tensor_read(in->ref, a->name, &n), *y = ref_tensor_read(out->ref, a->name, &n);
        error += squares(x, y, n);
        for (size_t k = 0; k < n; k++) *largest = fmax(*largest, fabs(x[k] - y[k]));
        values += n;
        free(x), free(y);
    }
    return sqrt(error / (double)values);
}

TEST(report) {
    static const int classes[] = {WEIGHTS, ROWS, EMBEDDING, HEAD};
    const mk_spec    spec      = spec_wide(6);
    size_t           n;
    unsigned char   *bytes = mk_model(&spec, &n);
    gguf_file        in    = open_bytes(bytes, n);
    put_input(in.bytes, n);
    const tool_result r =
        tool_run("l3-quantize", "'%s' '%s' --weights q8_0 --rows q4_0 --head bf16 --json", in_path, out_path);
    json     *v   = tool_json(&r);
    gguf_file out = open_output();
    REQUIRE(v != NULL);
    CHECK_EQ(json_number(v, "file_bytes_before"), in.n);
    CHECK_EQ(json_number(v, "file_bytes_after"), out.n);
    for (int i = 0; i < 4; i++) {
        const json *c = json_at(json_get(v, "cases"), (size_t)i); /* in the order of classes */
        double      largest, error = relative_error(&in, &out, classes[i], &largest);
        CHECK_NEAR(json_number(c, "rms_error"), error, 1e-6 * error);
        CHECK_NEAR(json_number(c, "max_error"), largest, 1e-6 * largest);
    }
    json_free(v);
    close_file(&in);
    close_file(&out);
}

/* Perplexities are l3-eval's of the two files; at one level, as the two programs may have been built with different kernels. */
TEST(perplexity) {
    const char *model = "examples/models/stories-l3-small.gguf";
    char        text[600];
    const char *words = "Once upon a time there was a little dog. It ran to the park and was happy.\n";
    test_temp("out.gguf", out_path, sizeof out_path);
    test_temp("text", text, sizeof text);
    REQUIRE(test_write(text, words, strlen(words)));
    setenv("L3_LEVEL", "plain", 1);
    tool_result r = tool_run("l3-quantize", "%s '%s' --weights q4_0 --text '%s' --json", model, out_path, text);
    json       *v = tool_json(&r);
    for (int after = 0; v && after < 2; after++) {
        r       = tool_run("l3-eval", "'%s' --text '%s' --json", after ? out_path : model, text);
        json *e = tool_json(&r);
        CHECK_NEAR(json_number(v, after ? "perplexity_after" : "perplexity_before"), json_number(e, "perplexity"),
                   1e-9);
        json_free(e);
    }
    CHECK(json_number(v, "perplexity_before") > 1);
    json_free(v);
    unsetenv("L3_LEVEL");
}

/* ---- refused ---- */

static void check_no_output(void) {
    char        leftover[700];
    struct stat st;
    CHECK(stat(out_path, &st) != 0);
    snprintf(leftover, sizeof leftover, "ls '%s'.*.tmp >/dev/null 2>&1", out_path);
    CHECK(system(leftover) != 0);
}

static void spoil(const mk_spec *spec, const char *tensor, float value, const char *arguments, const char *words) {
    size_t            n;
    unsigned char    *bytes = mk_model(spec, &n);
    ref_gguf         *g     = ref_gguf_open(bytes, n);
    const ref_tensor *t     = ref_tensor_find(g, tensor);
    REQUIRE(t && t->type == MK_F32);
    l3_pack(L3_F32, &value, 1, bytes + t->offset + 4 * (t->n_elements - 1));
    ref_gguf_close(g);
    put_input(bytes, n);
    CHECK_REFUSED(1, words, "l3-quantize", "'%s' '%s' %s", in_path, out_path, arguments);
    check_no_output();
    free(bytes);
}

TEST(numbers_that_do_not_fit) {
    mk_spec spec   = spec_wide(7);
    spec.checksums = 0;
    spoil(&spec, "blk.2.ffn_up.weight", NAN, "--weights q4_0", "blk.2.ffn_up.weight has values that are no finite");
    spoil(&spec, "blk.2.ffn_up.weight", INFINITY, "--weights f16", "blk.2.ffn_up.weight has values that are no finite");
    spoil(&spec, "output.weight", 1e6f, "--head f16", "output.weight has numbers that f16 cannot hold");
    spoil(&spec, "output.weight", 1e30f, "--head q4_0", "output.weight has numbers that q4_0 cannot hold");
    spoil(&spec, "output.weight", 1e30f, "--head q8_0", "output.weight has numbers that q8_0 cannot hold");
}

TEST(damage_is_not_checksummed_over) {
    const mk_spec  spec = spec_wide(8);
    size_t         n;
    unsigned char *bytes = mk_model(&spec, &n);
    bytes[n - 9] ^= 16;
    put_input(bytes, n);
    CHECK_REFUSED(1, "checksum", "l3-quantize", "'%s' '%s' --weights q8_0", in_path, out_path);
    check_no_output();
    free(bytes);
}

TEST(wrong_files_and_usage) {
    mk_spec        spec = spec_wide(9);
    size_t         n;
    unsigned char *bytes;
    spec.architecture = "llama", spec.separate_head = 0;
    bytes = mk_model(&spec, &n);
    put_input(bytes, n);
    CHECK_REFUSED(1, "no lookup layer", "l3-quantize", "'%s' '%s' --rows q8_0", in_path, out_path);
    CHECK_REFUSED(1, "its head is the embedding", "l3-quantize", "'%s' '%s' --head q8_0", in_path, out_path);
    CHECK_REFUSED(2, "--weights q5_0: one of", "l3-quantize", "'%s' '%s' --weights q5_0", in_path, out_path);
    CHECK_REFUSED(2, "two files are expected", "l3-quantize", "'%s' --weights q8_0", in_path);
    CHECK_REFUSED(2, "standard output", "l3-quantize", "'%s' - --json", in_path);
    CHECK_REFUSED(1, "no such file", "l3-quantize", "'%s.no' '%s'", in_path, out_path);
    CHECK_REFUSED(1, "read again", "l3-quantize", "'%s' /dev/null --text /dev/null", in_path);
    CHECK(test_write(in_path, bytes, n / 2));
    CHECK_REFUSED(1, "", "l3-quantize", "'%s' '%s'", in_path, out_path);
    check_no_output();
    free(bytes);
}

/* Standard output gets the same tensors, no checksums and nothing else. */
TEST(standard_output) {
    const mk_spec  spec = spec_wide(10);
    size_t         n;
    unsigned char *bytes = mk_model(&spec, &n);
    gguf_file      in    = open_bytes(bytes, n);
    put_input(in.bytes, n);
    const tool_result r = tool_run("l3-quantize", "'%s' - --weights f16", in_path);
    CHECK_EQ(r.code, 0);
    REQUIRE(test_write(out_path, r.out, r.out_bytes));
    gguf_file out = open_output();
    check_tensors(&in, &out, OTHER, MK_F16);
    CHECK_EQ(ref_key_type(out.ref, "l3.checksum.file"), -1);
    CHECK_EQ(ref_key_type(out.ref, "l3.checksum.rows.1"), -1);
    close_file(&out);
    close_file(&in);
}

/* ---- the writer ---- */

enum { W_VOCAB = 40, W_ROWS = 57, W_COLS = 6 };

/* The file in pieces of random length; offsets before the rows of layer 3, behind those of layer 5. */
static void write_pieces(const char *path, const float *x, const int32_t *offsets, test_rng *r) {
    gguf_writer   w;
    unsigned char bytes[2][W_ROWS * W_COLS * 4];
    cli_name = "writer";
    l3_pack(L3_F32, x, W_ROWS * W_COLS, bytes[0]);
    l3_pack_i32(offsets, W_VOCAB + 1, bytes[1]);
    gguf_begin(&w, path);
    gguf_string(&w, "general.architecture", "l3");
    gguf_tensor(&w, "blk.3.lookup_offsets", L3_I32, W_VOCAB + 1, 0);
    gguf_tensor(&w, "blk.3.lookup_rows.weight", L3_F32, W_COLS, W_ROWS);
    gguf_tensor(&w, "blk.5.lookup_rows.weight", L3_F32, W_COLS, W_ROWS);
    gguf_tensor(&w, "blk.5.lookup_offsets", L3_I32, W_VOCAB + 1, 0);
    gguf_begin_data(&w);
    for (int i = 0; i < 4; i++) {
        const int    is_offsets = i == 0 || i == 3;
        const size_t all        = is_offsets ? 4 * (W_VOCAB + 1) : sizeof bytes[0];
        for (size_t at = 0, n; at < all; at += n) {
            n = 1 + test_below(r, 50);
            if (n > all - at) n = all - at;
            gguf_data(&w, bytes[is_offsets] + at, n);
        }
    }
    gguf_end(&w);
}

TEST(writer) {
    test_rng r = {11};
    test_temp("out.gguf", out_path, sizeof out_path);
    for (int round = 0; round < 60; round++) {
        float   x[W_ROWS * W_COLS];
        int32_t offsets[W_VOCAB + 1] = {0};
        for (int i = 0; i < W_ROWS * W_COLS; i++) x[i] = (float)test_normal(&r);
        for (int t = 1; t < W_VOCAB; t++) { /* many tokens without rows, first and last ones among them */
            const int32_t left = W_ROWS - offsets[t - 1];
            offsets[t] = offsets[t - 1] + (test_below(&r, 2) ? (int32_t)test_below(&r, (uint32_t)left / 2 + 1) : 0);
        }
        offsets[W_VOCAB] = W_ROWS;
        if (round % 3 == 0) offsets[W_VOCAB - 1] = W_ROWS;
        write_pieces(out_path, x, offsets, &r);
        gguf_file f = open_output();
        check_file_checksum(&f);
        CHECK(check_row_checksums(&f, 3) > 0);
        CHECK_EQ(ref_key_type(f.ref, "l3.checksum.rows.5"), -1);
        close_file(&f);
    }
}

/* A sum of CRCs: any two parts, among them empty ones and a long one. */
TEST(joined_checksums) {
    enum { N = 70000 };
    unsigned char *p = (unsigned char *)malloc(N);
    test_rng       r = {12};
    for (size_t i = 0; i < N; i++) p[i] = (unsigned char)test_below(&r, 256);
    for (int i = 0; i < 200; i++) {
        const size_t n = test_below(&r, N + 1), first = i % 10 ? test_below(&r, (uint32_t)n + 1) : i % 20 ? 0 : n;
        CHECK_EQ(gguf_crc_join(mk_crc32(0, p, first), mk_crc32(0, p + first, n - first), n - first), mk_crc32(0, p, n));
    }
    free(p);
}

int main(void) {
    RUN(every_type_of_every_class);
    RUN(every_type_to_every_type);
    RUN(keys);
    RUN(copies);
    RUN(in_place);
    RUN(rows_that_are_no_whole_blocks);
    RUN(report);
    RUN(perplexity);
    RUN(numbers_that_do_not_fit);
    RUN(damage_is_not_checksummed_over);
    RUN(wrong_files_and_usage);
    RUN(standard_output);
    RUN(writer);
    RUN(joined_checksums);
    return test_report("quantize");
}
