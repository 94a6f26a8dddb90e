/* test_bad_files.c - whatever the bytes are: an error code with a sentence, or a model that runs without harm.
 * L3_LONG=1: every length, every byte of the metadata, every bit. */
#define L3_NO_SIMD /* nothing here depends on kernels: compiles in half the time */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "live.h"
#include "make_model.h"
#include "model.h"

enum { MANY = 128 };

static const live_limits limits = {64u << 20, 0};

/* ---- where things are in a good file ---- */

typedef struct part {
    char   name[64];
    size_t start, end; /* of the whole entry */
    size_t value;      /* of a key's value; of a tensor's number of dimensions */
} part;

typedef struct map {
    file   f;
    part   keys[MANY], tensors[MANY];
    size_t n_keys, n_tensors, keys_at, data_at;
} map;

static size_t value_size(const unsigned char *p, uint32_t type) {
    static const size_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    size_t              n       = 0;
    if (type == MK_STRING) return 8 + (size_t)l3__le64(p);
    if (type != MK_ARRAY) return sizes[type];
    for (uint64_t i = l3__le64(p + 4), at = 12; n = (size_t)at, i > 0; i--) at += value_size(p + at, l3__le32(p));
    return n;
}

static size_t part_name(part *p, const unsigned char *bytes, size_t at) {
    const size_t n = (size_t)l3__le64(bytes + at);
    memset(p->name, 0, sizeof p->name);
    memcpy(p->name, bytes + at + 8, n < 63 ? n : 63);
    p->start = at;
    return at + 8 + n;
}

static map map_of(file f) {
    map    m;
    size_t at = 24, alignment = 32;
    m.f         = f;
    m.keys_at   = at;
    m.n_tensors = (size_t)l3__le64(f.bytes + 8);
    m.n_keys    = (size_t)l3__le64(f.bytes + 16);
    if (m.n_keys > MANY || m.n_tensors > MANY) abort();
    for (size_t i = 0; i < m.n_keys; i++) {
        part *p  = &m.keys[i];
        at       = part_name(p, f.bytes, at);
        p->value = at + 4;
        at = p->end = at + 4 + value_size(f.bytes + at + 4, l3__le32(f.bytes + at));
        if (strcmp(p->name, "general.alignment") == 0) alignment = l3__le32(f.bytes + p->value);
    }
    for (size_t i = 0; i < m.n_tensors; i++) {
        part *p  = &m.tensors[i];
        p->value = at = part_name(p, f.bytes, at);
        at = p->end = at + 4 + 8 * l3__le32(f.bytes + at) + 12;
    }
    m.data_at = (at + alignment - 1) / alignment * alignment;
    return m;
}

static const part *find(const part *parts, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(parts[i].name, name) == 0) return &parts[i];
    return NULL;
}

static const part *key_of(const map *m, const char *name) { return find(m->keys, m->n_keys, name); }
static const part *tensor_of(const map *m, const char *name) { return find(m->tensors, m->n_tensors, name); }

/* The file without a key or tensor (NULL: none), as something to add to. */
static mk_gguf *without(const map *m, const char *key, const char *tensor) {
    mk_gguf *g = mk_gguf_new();
    for (size_t i = 0; i < m->n_keys; i++) {
        if (key && strcmp(key, m->keys[i].name) == 0) continue;
        mk_put(&g->keys, m->f.bytes + m->keys[i].start, m->keys[i].end - m->keys[i].start);
        g->n_keys++;
    }
    for (size_t i = 0; i < m->n_tensors; i++) {
        if (tensor && strcmp(tensor, m->tensors[i].name) == 0) continue;
        mk_put(&g->infos, m->f.bytes + m->tensors[i].start, m->tensors[i].end - m->tensors[i].start);
        g->n_tensors++;
    }
    mk_put(&g->blob, m->f.bytes + m->data_at, m->f.n - m->data_at);
    return g;
}

/* ---- trying a file ---- */

/* What opening gives, after a little life where it opens; 1 for an unsound failure. Read or mapped. */
static int try_file(file f, int mapped, l3_error *err) {
    static const char text[] = "the cat <s> \xe2\x98\x83";
    mock              m;
    int               code;
    mock_init(&m, f.bytes, f.n, mapped ? 0 : 16, (uint32_t)mapped, mapped ? 0 : MOCK_START);
    const int ok = live(&m.source, text, sizeof text - 1, &limits, &code, err);
    return ok && mock_clean(&m) ? code : 1;
}

static int survives(file f, int mapped) {
    l3_error  err;
    const int code = try_file(f, mapped, &err);
    if (code == 1) fprintf(stderr, "    unsound: code %d, \"%s\"\n", err.code, err.text);
    return code != 1;
}

/* Takes the file over. wanted 1: any sound answer; the sentence names `name` when that is given. */
static int gives(mk_gguf *g, int wanted, const char *name) {
    file     f;
    l3_error err;
    f.bytes        = mk_finish(g, &f.n);
    const int code = try_file(f, 0, &err), mapped = try_file(f, 1, &err);
    int       ok = CHECK_EQ(code, mapped) && CHECK(code != 1) && (wanted == 1 || CHECK_EQ(code, wanted));
    if (ok && code < 0 && name) ok = CHECK(strstr(err.text, name) != NULL);
    if (!ok) fprintf(stderr, "    %s: \"%s\"\n", name ? name : "", err.text);
    free(f.bytes);
    return ok;
}

static mk_spec spec_tiny(void) {
    mk_spec s;
    memset(&s, 0, sizeof s);
    s.seed = 3, s.dim = 8, s.n_heads = 2, s.n_kv_heads = 1, s.n_blocks = 2, s.ffn = 4, s.vocab = 265, s.context = 16,
    s.k         = 3;
    s.n_lookups = 1, s.value_length = 4, s.up_length = 4, s.layer_norm = 1, s.up_bias = 1, s.norm_epsilon = 1e-4f,
    s.score_scale   = 0.5f;
    s.separate_head = 1, s.checksums = 1;
    return s;
}

static map tiny(void) {
    const mk_spec s = spec_tiny();
    return map_of(file_make(&s));
}

TEST(the_good_file) {
    map m = tiny();
    CHECK_EQ(try_file(m.f, 0, &(l3_error){0, 0, 0, ""}), L3_OK);
    CHECK_EQ(try_file(m.f, 1, &(l3_error){0, 0, 0, ""}), L3_OK);
    gives(without(&m, "l3.checksum.file", NULL), L3_OK, NULL);
    free(m.f.bytes);
}

/* ---- cut and damaged ---- */

TEST(truncations) {
    map m = tiny();
    for (size_t n = 0; n < m.f.n; n += test_flag("L3_LONG") || n < 64 ? 1 : 3) {
        l3_error err;
        file     f = {(unsigned char *)must(n), n}; /* of exactly this size */
        memcpy(f.bytes, m.f.bytes, n);
        const int code = try_file(f, n % 2, &err);
        free(f.bytes);
        if (!CHECK(code < 0)) break;
    }
    free(m.f.bytes);
}

static int in_vocabulary(const map *m, size_t at) {
    static const char *const lists[] = {"tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type",
                                        "l3.checksum.rows.0"};
    for (int i = 0; i < 4; i++) {
        const part *p = key_of(m, lists[i]);
        if (p && at > p->value + 32 && at < p->end) return 1;
    }
    return 0;
}

/* What a byte may become: 0 ... 5 are the most telling, then every bit of it flipped. */
static unsigned char damaged(unsigned char old, int kind) {
    const int values[] = {~old, 0, 0xff, old + 1, old - 1, 1};
    return (unsigned char)((kind < 6 ? values[kind] : old ^ 1 << (kind - 6)) & 0xff);
}

TEST(damaged_bytes) {
    map       m         = tiny();
    const int long_test = test_flag("L3_LONG");
    for (size_t at = 0; at < m.data_at; at += test_quick() || (in_vocabulary(&m, at) && !long_test) ? 17 : 1) {
        const unsigned char old = m.f.bytes[at];
        for (int kind = 0; kind < (long_test ? 14 : 6); kind++) {
            m.f.bytes[at] = damaged(old, kind);
            if (!CHECK(survives(m.f, kind % 2))) fprintf(stderr, "    byte %u\n", (unsigned)at);
        }
        m.f.bytes[at] = old;
    }
    free(m.f.bytes);
}

TEST(many_damaged_bytes) {
    map       m    = tiny();
    test_rng  r    = {1};
    file      f    = {(unsigned char *)must(m.f.n), m.f.n};
    const int runs = test_flag("L3_LONG") ? 100000 : test_some(3000);
    for (int run = 0; run < runs; run++) {
        memcpy(f.bytes, m.f.bytes, f.n);
        for (uint32_t i = 1 + test_below(&r, 8); i > 0; i--) {
            const size_t range                       = test_below(&r, 4) ? m.data_at : f.n;
            f.bytes[test_below(&r, (uint32_t)range)] = (unsigned char)test_below(&r, 256);
        }
        if (!CHECK(survives(f, run % 2))) break;
    }
    free(f.bytes);
    free(m.f.bytes);
}

/* ---- keys ---- */

TEST(missing_keys) {
    static const char *const needed[] = {"l3.context_length",       "l3.embedding_length",
                                         "l3.block_count",          "l3.feed_forward_length",
                                         "l3.attention.head_count", "l3.attention.layer_norm_rms_epsilon",
                                         "l3.lookup.row_count"};
    map                      m        = tiny();
    for (int i = 0; i < 7; i++) gives(without(&m, needed[i], NULL), L3_ERR_FORMAT, needed[i]);
    gives(without(&m, "general.architecture", NULL), L3_ERR_UNSUPPORTED, "architecture");
    for (size_t i = 0; i < m.n_keys; i++) gives(without(&m, m.keys[i].name, NULL), 1, NULL);
    free(m.f.bytes);
}

typedef struct added_key {
    const char *name;
    uint32_t    type;
    double      number;
    const char *text;
    int         wanted;
} added_key;

static mk_gguf *with_key(const map *m, const added_key *k) {
    mk_gguf *g = without(m, k->name, NULL);
    if (k->type == MK_STRING) mk_string(g, k->name, k->text);
    if (k->type == MK_U32) mk_u32(g, k->name, (uint32_t)k->number);
    if (k->type == MK_U64) mk_u64(g, k->name, (uint64_t)k->number);
    if (k->type == MK_FLOAT) mk_f32(g, k->name, (float)k->number);
    if (k->type == MK_BOOL) mk_bool(g, k->name, (int)k->number);
    if (k->type == MK_ARRAY) mk_u32s(g, k->name, (const uint32_t[]){8, 8}, 2);
    return g;
}

TEST(keys_that_matter) {
    static const added_key keys[] = {
        {"l3.rope.scaling.type", MK_STRING, 0, "linear", L3_ERR_UNSUPPORTED},
        {"l3.rope.scaling.type", MK_STRING, 0, "none", L3_OK},
        {"l3.rope.scaling.factor", MK_FLOAT, 8, "", L3_ERR_UNSUPPORTED},
        {"l3.rope.scale_linear", MK_FLOAT, 2, "", L3_ERR_UNSUPPORTED},
        {"l3.rope.scale_linear", MK_FLOAT, 1, "", L3_OK},
        {"l3.attention.sliding_window", MK_U32, 4, "", L3_ERR_UNSUPPORTED},
        {"l3.attention.causal", MK_BOOL, 0, "", L3_ERR_UNSUPPORTED},
        {"l3.attention.causal", MK_BOOL, 1, "", L3_OK},
        {"l3.attention.head_count_kv", MK_ARRAY, 0, "", L3_ERR_FORMAT},
        {"l3.attention.head_count_kv", MK_U32, 3, "", L3_ERR_FORMAT},
        {"l3.attention.value_length", MK_U32, 3, "", L3_ERR_FORMAT},
        {"l3.expert_count", MK_U32, 8, "", L3_ERR_UNSUPPORTED},
        {"l3.expert_count", MK_STRING, 0, "8", L3_ERR_UNSUPPORTED},
        {"l3.expert_count", MK_ARRAY, 0, "", L3_ERR_UNSUPPORTED},
        {"l3.expert_count", MK_U32, 0, "", L3_OK},
        {"l3.logit_scale", MK_FLOAT, 2, "", L3_ERR_UNSUPPORTED},
        {"l3.lookup.dropout", MK_FLOAT, 2, "", L3_ERR_UNSUPPORTED},
        {"l3.checksum.other", MK_U32, 2, "", L3_ERR_UNSUPPORTED},
        {"l3.checksum.file", MK_STRING, 2, "x", L3_ERR_FORMAT},
        {"l3.checksum.rows.0", MK_ARRAY, 2, "x", L3_ERR_FORMAT},
        {"l3.training.loss", MK_FLOAT, 2, "", L3_OK},
        {"llama.block_count", MK_U32, 2, "", L3_ERR_FORMAT},
        {"split.count", MK_U32, 2, "", L3_ERR_UNSUPPORTED},
        {"other.thing", MK_STRING, 0, "x", L3_OK},
        {"general.architecture", MK_STRING, 0, "gpt2", L3_ERR_UNSUPPORTED},
        {"general.architecture", MK_U32, 1, "", L3_ERR_UNSUPPORTED},
        {"general.alignment", MK_U32, 0, "", L3_ERR_FORMAT},
        {"general.alignment", MK_U32, 3, "", L3_ERR_FORMAT},
        {"general.alignment", MK_U32, 2147483648.0, "", L3_ERR_FORMAT},
        {"general.alignment", MK_U64, 32, "", L3_ERR_FORMAT},
        {"l3.lookup.norm_type", MK_STRING, 0, "batch", L3_ERR_FORMAT},
        {"l3.lookup.tied", MK_U32, 0, "", L3_ERR_FORMAT},
        {"l3.lookup.block_indices", MK_U32, 0, "", L3_ERR_FORMAT},
        {"l3.lookup.block_indices", MK_ARRAY, 0, "", L3_ERR_FORMAT},
        {"l3.lookup.rows_per_token_max", MK_U32, 2, "", L3_ERR_FORMAT},
        {"l3.embedding_length", MK_FLOAT, 8, "", L3_ERR_FORMAT},
        {"l3.embedding_length", MK_U64, 1e18, "", L3_ERR_FORMAT},
        {"l3.vocab_size", MK_U32, 266, "", L3_ERR_FORMAT},
        {"l3.rope.dimension_count", MK_U32, 3, "", L3_ERR_FORMAT},
        {"l3.rope.dimension_count", MK_U32, 6, "", L3_ERR_FORMAT},
        {"tokenizer.ggml.bos_token_id", MK_U32, 265, "", L3_ERR_FORMAT},
        {"tokenizer.ggml.eos_token_id", MK_U32, 2147483648.0, "", L3_ERR_FORMAT},
        {"tokenizer.ggml.eos_token_id", MK_U32, 4294967295.0, "", L3_OK},
        {"tokenizer.ggml.unknown_token_id", MK_U32, 4294967294.0, "", L3_ERR_FORMAT},
        {"tokenizer.ggml.bos_token_id", MK_STRING, 0, "<s>", L3_ERR_FORMAT},
        {"tokenizer.ggml.scores", MK_ARRAY, 0, "", L3_ERR_FORMAT},
        {"tokenizer.ggml.tokens", MK_ARRAY, 0, "", L3_ERR_FORMAT},
        {"tokenizer.ggml.model", MK_STRING, 0, "gpt2", L3_OK},
    };
    map m = tiny();
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!gives(with_key(&m, &keys[i]), keys[i].wanted, NULL))
            fprintf(stderr, "    %s, case %u\n", keys[i].name, (unsigned)i);
    for (size_t i = 0; i < 18; i++)
        if (keys[i].wanted == L3_ERR_UNSUPPORTED) gives(with_key(&m, &keys[i]), L3_ERR_UNSUPPORTED, keys[i].name);
    free(m.f.bytes);
}

/* Every integer key with numbers that no model has. */
TEST(hostile_integers) {
    static const uint32_t values[] = {0,          1,           2,           3,          5,        7,
                                      9,          255,         4096,        65535,      1u << 20, (1u << 20) + 1,
                                      0x7fffffff, 0x80000000u, 0xfffffffeu, 0xffffffffu};
    map                   m        = tiny();
    for (size_t i = 0; i < m.n_keys; i++) {
        unsigned char *p    = m.f.bytes + m.keys[i].value;
        const uint32_t type = l3__le32(p - 4), old = l3__le32(p);
        for (int v = 0; v < 16 && (type == MK_U32 || type == MK_FLOAT); v++) {
            l3__put_le32(p, values[v]);
            if (!CHECK(survives(m.f, v % 2))) fprintf(stderr, "    %s = %u\n", m.keys[i].name, values[v]);
        }
        if (type == MK_U32 || type == MK_FLOAT) l3__put_le32(p, old);
    }
    free(m.f.bytes);
}

TEST(hostile_floats) {
    static const char *const keys[]   = {"l3.attention.layer_norm_rms_epsilon", "l3.rope.freq_base",
                                         "l3.lookup.score_scale", "l3.lookup.norm_epsilon"};
    static const float       values[] = {-1, 0, 1e-45f, 1e38f, -1e38f};
    map                      m        = tiny();
    for (int i = 0; i < 4; i++) {
        added_key k = {keys[i], MK_FLOAT, 0, "", 1};
        for (int v = 0; v < 5; v++) {
            k.number = (double)values[v];
            gives(with_key(&m, &k), 1, NULL);
        }
        k.number = (double)NAN;
        gives(with_key(&m, &k), L3_ERR_FORMAT, keys[i]);
        k.number = (double)INFINITY;
        gives(with_key(&m, &k), L3_ERR_FORMAT, keys[i]);
        k.number = -1;
        gives(with_key(&m, &k), i == 2 ? L3_OK : L3_ERR_FORMAT, NULL);
    }
    free(m.f.bytes);
}

/* Values from their bytes: types and counts that cannot be. */
TEST(hostile_values) {
    static const struct {
        uint32_t type;
        uint64_t words[4]; /* little-endian, as many bytes as n */
        size_t   n;
        int      wanted;
    } values[] = {
        {13, {0}, 8, L3_ERR_FORMAT},
        {0xffffffffu, {0}, 8, L3_ERR_FORMAT},
        {256 + MK_U32, {0}, 4, L3_ERR_FORMAT},
        {MK_STRING, {UINT64_MAX}, 8, L3_ERR_FORMAT},
        {MK_STRING, {1u << 30}, 8, L3_ERR_FORMAT},
        {MK_STRING, {0}, 8, L3_OK},
        {MK_ARRAY, {(uint64_t)MK_U32 | 0xffffffff00000000u, 0xffffffffu}, 12, L3_ERR_FORMAT},
        {MK_ARRAY, {(uint64_t)MK_U64, 0x20000000u}, 12, L3_ERR_FORMAT},
        {MK_ARRAY, {(uint64_t)MK_STRING, 0x40000000u}, 12, L3_ERR_FORMAT},
        {MK_ARRAY, {(uint64_t)MK_ARRAY | 1ull << 32, 0}, 12, L3_ERR_FORMAT},
        {MK_ARRAY, {(uint64_t)MK_ARRAY, 0}, 12, 1},
        {MK_ARRAY, {(uint64_t)77 | 1ull << 32, 0}, 12, L3_ERR_FORMAT},
        {MK_ARRAY, {(uint64_t)(256 + MK_U8) | 1ull << 32, 0}, 13, L3_ERR_FORMAT},
        {MK_ARRAY, {(uint64_t)MK_U8 | 1ull << 32, 0}, 13, L3_OK},
        {MK_BOOL, {255}, 1, 1},
    };
    map m = tiny();
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        unsigned char bytes[32];
        mk_gguf      *g = without(&m, NULL, NULL);
        for (int w = 0; w < 4; w++) l3__put_le64(bytes + 8 * w, values[i].words[w]);
        mk_key(g, "some.thing", values[i].type, bytes, values[i].n);
        if (!gives(g, values[i].wanted, NULL)) fprintf(stderr, "    case %u\n", (unsigned)i);
    }
    free(m.f.bytes);
}

TEST(hostile_headers) {
    static const struct {
        size_t   at, n;
        uint64_t value;
        int      wanted;
    } headers[] = {
        {0, 4, 0x46554748, L3_ERR_FORMAT},  {4, 4, 0, L3_ERR_UNSUPPORTED},          {4, 4, 1, L3_ERR_UNSUPPORTED},
        {4, 4, 4, L3_ERR_UNSUPPORTED},      {4, 4, 0x03000000, L3_ERR_UNSUPPORTED}, {8, 8, 0, L3_ERR_FORMAT},
        {8, 8, UINT64_MAX, L3_ERR_FORMAT},  {8, 8, 65536, L3_ERR_FORMAT},           {16, 8, 0, 1},
        {16, 8, UINT64_MAX, L3_ERR_FORMAT}, {16, 8, 65536, L3_ERR_FORMAT},          {16, 8, 5, 1},
    };
    map m = tiny();
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        l3_error      err;
        unsigned char old[8], new_bytes[8];
        memcpy(old, m.f.bytes + headers[i].at, 8);
        l3__put_le64(new_bytes, headers[i].value);
        memcpy(m.f.bytes + headers[i].at, new_bytes, headers[i].n);
        const int code = try_file(m.f, 0, &err);
        if (!CHECK(code != 1 && (headers[i].wanted == 1 || code == headers[i].wanted)))
            fprintf(stderr, "    case %u: %d %s\n", (unsigned)i, code, err.text);
        memcpy(m.f.bytes + headers[i].at, old, 8);
    }
    free(m.f.bytes);
}

/* The second of two keys counts; nothing else is promised. */
TEST(keys_that_come_twice) {
    map m = tiny();
    for (size_t i = 0; i < m.n_keys; i++)
        for (size_t j = 0; j < m.n_keys; j += 3) { /* key i once more, with the value of j */
            mk_gguf    *g = without(&m, NULL, NULL);
            const part *a = &m.keys[i], *b = &m.keys[j];
            mk_put(&g->keys, m.f.bytes + a->start, a->value - 4 - a->start);
            mk_put(&g->keys, m.f.bytes + b->value - 4, b->end - b->value + 4);
            g->n_keys++;
            gives(g, 1, NULL);
        }
    free(m.f.bytes);
}

/* ---- tensors ---- */

TEST(missing_tensors) {
    map m = tiny();
    for (size_t i = 0; i < m.n_tensors; i++) {
        const char *name     = m.tensors[i].name;
        const int   optional = strstr(name, "norm.bias") || strstr(name, "lookup_up_norm") ||
                             strstr(name, "lookup_query_norm") || strcmp(name, "output.weight") == 0 ||
                             strstr(name, "lookup_up.");
        gives(without(&m, NULL, name), optional ? L3_OK : L3_ERR_FORMAT, name);
    }
    free(m.f.bytes);
}

TEST(unknown_tensors) {
    static const char *const names[] = {"blk.0.attn_q.bias",
                                        "rope_freqs.weight",
                                        "blk.0.ffn_gate_exps.weight",
                                        "blk.2.attn_q.weight",
                                        "blk.00.attn_q.weight",
                                        "blk.4294967296.attn_q.weight",
                                        "blk.0.lookup_rows.bias",
                                        "blk.1.lookup_mix.weight",
                                        "",
                                        "blk.",
                                        "blk.0",
                                        "blk.0.",
                                        "output_norm.bias",
                                        "token_embd.weight2"};
    map                      m       = tiny();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        mk_gguf *g = without(&m, NULL, NULL);
        mk_tensor(g, names[i], MK_F32, 1, (const uint64_t[]){2}, "12345678", 8);
        gives(g, L3_ERR_UNSUPPORTED, names[i]);
    }
    for (size_t i = 0; i < m.n_tensors; i++) {
        mk_gguf *g = without(&m, NULL, NULL);
        mk_put(&g->infos, m.f.bytes + m.tensors[i].start, m.tensors[i].end - m.tensors[i].start);
        g->n_tensors++;
        gives(g, L3_ERR_FORMAT, m.tensors[i].name); /* there twice */
    }
    free(m.f.bytes);
}

/* One field of every tensor's description in turn. */
TEST(hostile_tensors) {
    static const uint64_t dims[]  = {0, 1, 2, 7, 9, 1ull << 31, 1ull << 32, (1ull << 32) + 8, 1ull << 63, UINT64_MAX};
    static const uint32_t types[] = {1,  2,  3,  6,  8,  12,    14,         15,          24,
                                     26, 27, 30, 31, 39, 0x100, 0x7fffffff, 0x80000000u, 0xffffffffu};
    map                   m       = tiny();
    for (size_t i = 0; i < m.n_tensors; i++) {
        const part    *t = &m.tensors[i];
        unsigned char *p = m.f.bytes + t->value, *type = m.f.bytes + t->end - 12, *offset = m.f.bytes + t->end - 8;
        unsigned char  old[64];
        const size_t   n     = t->end - t->value;
        const uint64_t right = l3__le64(offset), offsets[] = {1,
                                                              32,
                                                              right + 1,
                                                              right + 8,
                                                              right + 32,
                                                              right ^ 64,
                                                              m.f.n - m.data_at,
                                                              1ull << 40,
                                                              UINT64_MAX - 31,
                                                              UINT64_MAX};
        memcpy(old, p, n);
        for (int k = 0; k < 18 + 2 * 10 + 10 + 6; k++) {
            if (k < 18) l3__put_le32(type, types[k]);
            else if (k < 28) l3__put_le64(p + 4, dims[k - 18]);
            else if (k < 38 && n > 28) l3__put_le64(p + 12, dims[k - 28]);
            else if (k < 48) l3__put_le64(offset, offsets[k % 10]);
            else l3__put_le32(p, k < 53 ? (uint32_t)(k - 48) : UINT32_MAX);
            if (!CHECK(survives(m.f, k % 2))) fprintf(stderr, "    %s, case %d\n", t->name, k);
            memcpy(p, old, n);
        }
    }
    free(m.f.bytes);
}

/* Each says what is wrong with which tensor. */
TEST(misplaced_tensors) {
    map            m        = tiny();
    const part    *t        = tensor_of(&m, "blk.1.ffn_up.weight");
    unsigned char *p        = m.f.bytes + t->end - 8;
    const uint64_t old      = l3__le64(p),
                   places[] = {old + 1, old + 16, old - 32, old + 32, m.f.n, UINT64_MAX - 31, UINT64_MAX - 200};
    for (int i = 0; i < 7; i++) {
        l3_error err;
        l3__put_le64(p, places[i]);
        CHECK_EQ(try_file(m.f, i % 2, &err), L3_ERR_FORMAT);
        CHECK(strstr(err.text, "blk.1.") != NULL || strstr(err.text, "output") != NULL);
        l3__put_le64(p, old);
    }
    free(m.f.bytes);
}

TEST(hostile_offsets) {
    map            m     = tiny();
    const part    *t     = tensor_of(&m, "blk.0.lookup_offsets");
    unsigned char *table = m.f.bytes + m.data_at + (size_t)l3__le64(m.f.bytes + t->end - 8);
    const uint32_t n = l3__le32(table + 4 * 265), values[] = {0x80000000u, 0xffffffffu, n, n + 1, n + 1000000};
    for (uint32_t at = 0; at <= 265; at += 5)
        for (int i = 0; i < 5; i++) {
            l3_error       err;
            const uint32_t old = l3__le32(table + 4 * at);
            if (old == values[i]) continue;
            l3__put_le32(table + 4 * at, values[i]);
            CHECK_EQ(try_file(m.f, i % 2, &err), L3_ERR_FORMAT);
            l3__put_le32(table + 4 * at, old);
        }
    l3_error err;
    l3__put_le32(table + 4 * 100, l3__le32(table + 4 * 99) + 4); /* k is 3 */
    CHECK_EQ(try_file(m.f, 0, &err), L3_ERR_FORMAT);
    free(m.f.bytes);
}

/* ---- numbers that are none ---- */

/* The logits may be anything; the sampler then says so. */
TEST(weights_that_are_no_numbers) {
    static const uint32_t values[] = {0x7fc00000, 0x7f800000, 0xff800000, 0x7f7fffff, 0x00000001, 0xffffffff};
    map                   m        = tiny();
    for (size_t i = 0; i < m.n_tensors; i++) {
        unsigned char *p = m.f.bytes + m.data_at + (size_t)l3__le64(m.f.bytes + m.tensors[i].end - 8);
        if (strstr(m.tensors[i].name, "offsets")) continue;
        for (int v = 0; v < 6; v++) {
            const uint32_t old = l3__le32(p);
            l3__put_le32(p, values[v]);
            if (!CHECK(survives(m.f, 1))) fprintf(stderr, "    %s\n", m.tensors[i].name);
            l3__put_le32(p, old);
        }
    }
    free(m.f.bytes);
}

TEST(scores_that_are_no_numbers) {
    static const uint32_t values[] = {0x7fc00000, 0x7f800000, 0xff800000};
    map                   m        = tiny();
    unsigned char        *p        = m.f.bytes + key_of(&m, "tokenizer.ggml.scores")->value + 12 + 4 * 262;
    for (int v = 0; v < 3; v++) {
        rig      r;
        desk     d;
        l3_error err;
        l3__put_le32(p, values[v]);
        if (!CHECK_EQ(rig_open(&r, m.f, MAPPED), L3_OK)) break;
        const int code = desk_open(&d, r.model, 10, &err);
        CHECK(code == L3_ERR_FORMAT && error_sound(code, &err));
        rig_close(&r);
    }
    free(m.f.bytes);
}

/* ---- files that change while they are read ---- */

TEST(files_that_change) {
    static const char text[] = "the cat <s> \xe2\x98\x83";
    const int         runs   = test_flag("L3_LONG") ? 50000 : test_some(3000);
    map               m      = tiny();
    liar              l      = {m.f, {1}, 1};
    int               opened = 0;
    for (int run = 0; run < runs; run++) {
        const l3_source s = liar_source(&l, 1u << test_below(&l.rng, 8));
        l3_error        err;
        int             code;
        l.one_in = 1 + test_below(&l.rng, 300);
        if (!CHECK(live(&s, text, sizeof text - 1, &limits, &code, &err)))
            fprintf(stderr, "    run %d: %s\n", run, err.text);
        opened += code == L3_OK;
    }
    CHECK(opened > runs / 30);
    free(m.f.bytes);
}

TEST(sources_that_cannot_work) {
    map       m = tiny();
    mock      k;
    size_t    size;
    l3_error  err;
    l3_source s;
    for (int i = 0; i < 6; i++) {
        mock_init(&k, m.f.bytes, m.f.n, 0, i == 5, MOCK_START);
        s = k.source;
        if (i == 0) s.read = NULL;
        if (i == 1) s.align = 3;
        if (i == 2) s.align = L3_MAX_ALIGN * 2;
        if (i == 3) s.wait = NULL;
        if (i == 4) s.start = NULL;
        const int code = l3_model_size(&s, NULL, &size, &err);
        CHECK_EQ(code, i == 5 ? L3_OK : L3_ERR_ARGUMENT);
        CHECK(code == L3_OK || error_sound(code, &err));
    }
    CHECK_EQ(l3_model_size(NULL, NULL, &size, &err), L3_ERR_ARGUMENT);
    free(m.f.bytes);
}

TEST(checksums) {
    map             m = tiny();
    rig             r;
    l3_error        err;
    l3_model_config required = {true, NULL};
    test_rng        rng      = {5};
    l3_model       *model;
    REQUIRE(rig_open(&r, m.f, MAPPED) == L3_OK);
    CHECK_EQ(l3_model_open(&model, &r.mock.source, &required, r.block.mem, r.block.size, &err), L3_OK);
    CHECK_EQ(l3_model_verify(r.model, &err), L3_OK);
    for (int i = 0; i < 300; i++) {
        const size_t at = i < 32 ? m.data_at + (size_t)i : test_below(&rng, (uint32_t)m.f.n);
        m.f.bytes[at] ^= 0x20;
        const int code = l3_model_verify(r.model, &err);
        if (!CHECK(code < 0 && error_sound(code, &err))) fprintf(stderr, "    byte %u\n", (unsigned)at);
        m.f.bytes[at] ^= 0x20;
    }
    CHECK_EQ(l3_model_verify(r.model, &err), L3_OK);
    rig_close(&r);
    for (int i = 0; i < 2; i++) {
        file f;
        f.bytes = mk_finish(without(&m, i ? "l3.checksum.file" : "l3.checksum.rows.0", NULL), &f.n);
        if (!CHECK_EQ(rig_open(&r, f, MAPPED), L3_OK)) break;
        const int code = l3_model_open(&model, &r.mock.source, &required, r.block.mem, r.block.size, &err);
        CHECK(code == L3_ERR_CHECKSUM && error_sound(code, &err));
        rig_close(&r);
        free(f.bytes);
    }
    free(m.f.bytes);
}

int main(void) {
    RUN(the_good_file);
    RUN(truncations);
    RUN(damaged_bytes);
    RUN(many_damaged_bytes);
    RUN(missing_keys);
    RUN(keys_that_matter);
    RUN(hostile_integers);
    RUN(hostile_floats);
    RUN(hostile_values);
    RUN(hostile_headers);
    RUN(keys_that_come_twice);
    RUN(missing_tensors);
    RUN(unknown_tensors);
    RUN(hostile_tensors);
    RUN(misplaced_tensors);
    RUN(hostile_offsets);
    RUN(weights_that_are_no_numbers);
    RUN(scores_that_are_no_numbers);
    RUN(files_that_change);
    RUN(sources_that_cannot_work);
    RUN(checksums);
    return test_report("bad_files");
}
