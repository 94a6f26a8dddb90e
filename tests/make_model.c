#include "make_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *mk_alloc(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p) abort();
    return p;
}

/* ---- buffers ---- */

void mk_put(mk_buf *b, const void *bytes, size_t n) {
    if (b->n + n > b->cap) {
        b->cap  = 2 * b->cap + n + 64;
        b->data = (unsigned char *)realloc(b->data, b->cap);
        if (!b->data) abort();
    }
    if (n) memcpy(b->data + b->n, bytes, n);
    b->n += n;
}

static void mk_put_le(mk_buf *b, uint64_t v, size_t n) {
    unsigned char bytes[8];
    size_t        i;
    for (i = 0; i < n; i++) bytes[i] = (unsigned char)(v >> (8 * i) & 255);
    mk_put(b, bytes, n);
}

void mk_put_u8(mk_buf *b, uint32_t v) { mk_put_le(b, v, 1); }
void mk_put_u16(mk_buf *b, uint32_t v) { mk_put_le(b, v, 2); }
void mk_put_u32(mk_buf *b, uint32_t v) { mk_put_le(b, v, 4); }
void mk_put_u64(mk_buf *b, uint64_t v) { mk_put_le(b, v, 8); }

static uint32_t mk_float_bits(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

void mk_put_f32(mk_buf *b, float v) { mk_put_u32(b, mk_float_bits(v)); }

void mk_put_string(mk_buf *b, const void *text, size_t n) {
    mk_put_u64(b, n);
    mk_put(b, text, n);
}

static void mk_pad(mk_buf *b, size_t alignment) {
    while (b->n % alignment) mk_put_u8(b, 0);
}

/* ---- GGUF writer ---- */

mk_gguf *mk_gguf_new(void) {
    mk_gguf *g   = (mk_gguf *)mk_alloc(1, sizeof *g);
    g->magic     = 0x46554747u;
    g->version   = 3;
    g->alignment = 32;
    return g;
}

void mk_gguf_free(mk_gguf *g) {
    if (!g) return;
    free(g->keys.data);
    free(g->infos.data);
    free(g->blob.data);
    free(g);
}

static mk_buf *mk_begin_key(mk_gguf *g, const char *key, uint32_t type) {
    g->n_keys++;
    mk_put_string(&g->keys, key, strlen(key));
    mk_put_u32(&g->keys, type);
    return &g->keys;
}

static mk_buf *mk_begin_array(mk_gguf *g, const char *key, uint32_t type, size_t n) {
    mk_buf *b = mk_begin_key(g, key, MK_ARRAY);
    mk_put_u32(b, type);
    mk_put_u64(b, n);
    return b;
}

void mk_key(mk_gguf *g, const char *key, uint32_t type, const void *value, size_t n) {
    mk_put(mk_begin_key(g, key, type), value, n);
}

void mk_u32(mk_gguf *g, const char *key, uint32_t v) { mk_put_u32(mk_begin_key(g, key, MK_U32), v); }
void mk_u64(mk_gguf *g, const char *key, uint64_t v) { mk_put_u64(mk_begin_key(g, key, MK_U64), v); }
void mk_f32(mk_gguf *g, const char *key, float v) { mk_put_f32(mk_begin_key(g, key, MK_FLOAT), v); }
void mk_bool(mk_gguf *g, const char *key, int v) { mk_put_u8(mk_begin_key(g, key, MK_BOOL), v != 0); }

void mk_string(mk_gguf *g, const char *key, const char *v) {
    mk_put_string(mk_begin_key(g, key, MK_STRING), v, strlen(v));
}

void mk_u32s(mk_gguf *g, const char *key, const uint32_t *v, size_t n) {
    mk_buf *b = mk_begin_array(g, key, MK_U32, n);
    size_t  i;
    for (i = 0; i < n; i++) mk_put_u32(b, v[i]);
}

void mk_i32s(mk_gguf *g, const char *key, const int32_t *v, size_t n) {
    mk_buf *b = mk_begin_array(g, key, MK_INT32, n);
    size_t  i;
    for (i = 0; i < n; i++) mk_put_u32(b, (uint32_t)v[i]);
}

void mk_f32s(mk_gguf *g, const char *key, const float *v, size_t n) {
    mk_buf *b = mk_begin_array(g, key, MK_FLOAT, n);
    size_t  i;
    for (i = 0; i < n; i++) mk_put_f32(b, v[i]);
}

void mk_strings(mk_gguf *g, const char *key, const char *const *v, size_t n) {
    mk_buf *b = mk_begin_array(g, key, MK_STRING, n);
    size_t  i;
    for (i = 0; i < n; i++) mk_put_string(b, v[i], strlen(v[i]));
}

void mk_checksum(mk_gguf *g) {
    mk_u32(g, "l3.checksum.file", 0);
    g->checksum_at = g->keys.n - 4;
}

void mk_tensor_info(mk_gguf *g, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *dims,
                    uint64_t offset) {
    uint32_t i;
    g->n_tensors++;
    mk_put_string(&g->infos, name, strlen(name));
    mk_put_u32(&g->infos, n_dims);
    for (i = 0; i < n_dims; i++) mk_put_u64(&g->infos, dims[i]);
    mk_put_u32(&g->infos, type);
    mk_put_u64(&g->infos, offset);
}

size_t mk_tensor(mk_gguf *g, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *dims, const void *data,
                 size_t n) {
    size_t offset;
    mk_pad(&g->blob, g->alignment);
    offset = g->blob.n;
    mk_tensor_info(g, name, type, n_dims, dims, offset);
    mk_put(&g->blob, data, n);
    return offset;
}

/* The checksum's own 4 bytes are zero while it is taken. */
static void mk_fill_checksum(mk_gguf *g, mk_buf *file, size_t header) {
    mk_buf value = {NULL, 0, 0};
    mk_put_u32(&value, mk_crc32(0, file->data, file->n));
    memcpy(file->data + header + g->checksum_at, value.data, 4);
    free(value.data);
}

unsigned char *mk_finish(mk_gguf *g, size_t *n) {
    mk_buf file = {NULL, 0, 0};
    size_t header;
    mk_put_u32(&file, g->magic);
    mk_put_u32(&file, g->version);
    mk_put_u64(&file, g->n_tensors);
    mk_put_u64(&file, g->n_keys);
    header = file.n;
    mk_put(&file, g->keys.data, g->keys.n);
    mk_put(&file, g->infos.data, g->infos.n);
    mk_pad(&file, g->alignment);
    mk_pad(&g->blob, g->alignment);
    mk_put(&file, g->blob.data, g->blob.n);
    if (g->checksum_at) mk_fill_checksum(g, &file, header);
    mk_gguf_free(g);
    *n = file.n;
    return file.data;
}

uint32_t mk_crc32(uint32_t crc, const void *data, size_t n) {
    const unsigned char *p = (const unsigned char *)data;
    int                  bit;
    crc = ~crc;
    while (n--) {
        crc ^= *p++;
        for (bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
    }
    return ~crc;
}

/* ---- quantizers ---- */

size_t mk_block_elements(uint32_t type) {
    switch (type) {
    case MK_F32:
    case MK_F16:
    case MK_BF16: return 1;
    case MK_Q8_0:
    case MK_Q4_0: return 32;
    case MK_Q6_K: return 256;
    default: return 0;
    }
}

/* binary16, round to nearest even: the fraction in units of 2^(e - 10), where e is -14 or more */
static uint32_t mk_half_bits(double v) {
    uint32_t sign = v < 0 ? 0x8000u : 0, bits;
    int      e;
    frexp(v, &e);
    e = v == 0 || e - 1 < -14 ? -14 : e - 1;
    if (e > 15) return sign | 0x7C00u;
    bits = ((uint32_t)(e + 14) << 10) + (uint32_t)rint(ldexp(fabs(v), 10 - e));
    return sign | (bits > 0x7C00u ? 0x7C00u : bits);
}

static double mk_half(uint32_t bits) {
    int    e = (int)(bits >> 10 & 31), fraction = (int)(bits & 1023);
    double v = e ? ldexp((double)(1024 + fraction), e - 25) : ldexp((double)fraction, -24);
    return bits & 0x8000u ? -v : v;
}

static void mk_put_bf16(mk_buf *out, float v) {
    uint32_t bits = mk_float_bits(v);
    mk_put_u16(out, (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

static int mk_round(double v, int low, int high) {
    double r = rint(v);
    return r < low ? low : r > high ? high : (int)r;
}

static double mk_ratio(double v, double d) { return d == 0 ? 0 : v / d; }

/* The element with the largest magnitude, with its sign. */
static double mk_extreme(const float *x, size_t n) {
    double best = 0;
    size_t i;
    for (i = 0; i < n; i++) best = fabs((double)x[i]) > fabs(best) ? (double)x[i] : best;
    return best;
}

static void mk_put_q8_0(mk_buf *out, const float *x) {
    uint32_t scale = mk_half_bits(fabs(mk_extreme(x, 32)) / 127);
    double   d     = mk_half(scale);
    int      i;
    mk_put_u16(out, scale);
    for (i = 0; i < 32; i++) mk_put_u8(out, (uint32_t)mk_round(mk_ratio((double)x[i], d), -127, 127) & 255);
}

static void mk_put_q4_0(mk_buf *out, const float *x) {
    uint32_t scale = mk_half_bits(mk_extreme(x, 32) / -8);
    double   d     = mk_half(scale);
    int      i;
    mk_put_u16(out, scale);
    for (i = 0; i < 16; i++) {
        int low  = mk_round(mk_ratio((double)x[i], d), -8, 7) + 8;
        int high = mk_round(mk_ratio((double)x[i + 16], d), -8, 7) + 8;
        mk_put_u8(out, (uint32_t)(high << 4 | low));
    }
}

/* Element i: nibble i / 64 % 2 of low byte 64 (i / 128) + i % 64, its upper two bits at bit 2 (i / 32 % 4) of
 * high byte 32 (i / 128) + i % 32. */
static void mk_pack_q6_k(const unsigned *q, unsigned char *low, unsigned char *high) {
    unsigned i;
    memset(low, 0, 128);
    memset(high, 0, 64);
    for (i = 0; i < 256; i++) {
        unsigned char *l = &low[64 * (i / 128) + i % 64], *h = &high[32 * (i / 128) + i % 32];
        *l = (unsigned char)(*l | (q[i] & 15u) << 4 * (i / 64 % 2));
        *h = (unsigned char)(*h | q[i] >> 4 << 2 * (i / 32 % 4));
    }
}

static void mk_put_q6_k(mk_buf *out, const float *x) {
    double        scale[16], top = 0, d;
    unsigned char packed[192], scales[16];
    unsigned      q[256];
    uint32_t      half;
    int           i;
    for (i = 0; i < 16; i++) {
        scale[i] = mk_extreme(x + 16 * i, 16) / -32;
        top      = fabs(scale[i]) > top ? fabs(scale[i]) : top;
    }
    half = mk_half_bits(top / 127);
    d    = mk_half(half);
    for (i = 0; i < 256; i++) {
        int s          = mk_round(mk_ratio(scale[i / 16], d), -128, 127);
        scales[i / 16] = (unsigned char)(s & 255);
        q[i]           = (unsigned)(mk_round(mk_ratio((double)x[i], d * s), -32, 31) + 32);
    }
    mk_pack_q6_k(q, packed, packed + 128);
    mk_put(out, packed, 192);
    mk_put(out, scales, 16);
    mk_put_u16(out, half);
}

void mk_quantize(mk_buf *out, uint32_t type, const float *x, size_t n) {
    size_t i, step = mk_block_elements(type);
    for (i = 0; step && i + step <= n; i += step) {
        switch (type) {
        case MK_F32: mk_put_f32(out, x[i]); break;
        case MK_F16: mk_put_u16(out, mk_half_bits((double)x[i])); break;
        case MK_BF16: mk_put_bf16(out, x[i]); break;
        case MK_Q8_0: mk_put_q8_0(out, x + i); break;
        case MK_Q4_0: mk_put_q4_0(out, x + i); break;
        default: mk_put_q6_k(out, x + i); break;
        }
    }
}

/* ---- randomness ---- */

/* splitmix64 */
static uint64_t mk_random(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z          = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z          = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static uint32_t mk_below(uint64_t *rng, uint32_t n) { return (uint32_t)(mk_random(rng) % n); }

/* A sum of 12 uniforms of 21 bits: exact, so the same on every host. Mean 0, deviation 1. */
static double mk_normal(uint64_t *rng) {
    double sum = 0;
    int    i;
    for (i = 0; i < 12; i++) sum += (double)(mk_random(rng) >> 43) / 2097152.0;
    return sum - 6.0;
}

/* ---- specs ---- */

static void mk_default(uint32_t *field, uint32_t value) {
    if (*field == 0) *field = value;
}

mk_spec mk_defaults(const mk_spec *spec) {
    mk_spec s = *spec;
    if (!s.architecture) s.architecture = "l3";
    mk_default(&s.dim, 64);
    mk_default(&s.n_blocks, 3);
    mk_default(&s.n_heads, 4);
    mk_default(&s.n_kv_heads, s.n_heads);
    mk_default(&s.rope_dim, s.dim / s.n_heads);
    mk_default(&s.ffn, 160);
    mk_default(&s.vocab, 320);
    mk_default(&s.context, 64);
    mk_default(&s.alignment, 32);
    if (s.rms_eps == 0) s.rms_eps = 1e-5f;
    if (s.freq_base == 0) s.freq_base = 10000;
    if (strcmp(s.architecture, "l3") != 0) s.no_lookup = 1;
    if (s.no_lookup) s.n_lookups = 0;
    else if (s.n_lookups == 0) s.lookup_blocks[s.n_lookups++] = s.n_blocks / 2;
    mk_default(&s.k, 24);
    if (s.k < s.heavy_rows) s.k = s.heavy_rows;
    if (s.tied) s.value_length = s.dim;
    mk_default(&s.value_length, s.dim / 2);
    return s;
}

static uint32_t mk_pick(uint64_t *rng, const uint32_t *from, uint32_t n) { return from[mk_below(rng, n)]; }

static void mk_random_shape(mk_spec *s, uint64_t *r) {
    static const uint32_t dims[] = {32, 64, 64, 96, 128, 256}, heads[] = {1, 2, 4, 8};
    static const uint32_t alignments[] = {8, 32, 32, 64, 4096}, ffns[] = {40, 96, 160, 256};
    s->dim        = mk_pick(r, dims, 6);
    s->n_heads    = mk_pick(r, heads, 4);
    s->n_kv_heads = s->n_heads >> mk_below(r, 4);
    mk_default(&s->n_kv_heads, 1);
    s->rope_dim      = mk_below(r, 3) ? 0 : s->dim / s->n_heads / 2;
    s->ffn           = mk_pick(r, ffns, 4);
    s->vocab         = 259 + mk_below(r, 200);
    s->n_blocks      = 1 + mk_below(r, 4);
    s->alignment     = mk_pick(r, alignments, 5);
    s->freq_base     = mk_below(r, 3) ? 0 : 500.0f;
    s->separate_head = (int)mk_below(r, 2);
    s->minimal       = (int)mk_below(r, 2);
}

static void mk_random_lookup(mk_spec *s, uint64_t *r) {
    static const uint32_t ups[] = {0, 32, 96, 128, 192};
    uint32_t              i;
    for (i = 0; i < s->n_blocks; i++) {
        if (mk_below(r, 2)) s->lookup_blocks[s->n_lookups++] = i;
    }
    s->no_lookup       = mk_below(r, 8) == 0;
    s->k               = 1 + mk_below(r, 30);
    s->empty_every     = mk_below(r, 2) ? 0 : 3 + mk_below(r, 20);
    s->heavy_token     = mk_below(r, s->vocab);
    s->heavy_rows      = mk_below(r, 3) ? 0 : 300 + mk_below(r, 900);
    s->tied            = (int)mk_below(r, 2);
    s->value_length    = 32 * mk_below(r, 4);
    s->up_length       = mk_pick(r, ups, 5);
    s->no_query_norm   = mk_below(r, 4) == 0;
    s->no_query_weight = mk_below(r, 3) == 0;
    s->key_norm        = mk_below(r, 3) == 0;
    s->score_scale     = mk_below(r, 2) ? 0 : 0.25f;
    s->layer_norm      = (int)mk_below(r, 2);
    s->norm_epsilon    = mk_below(r, 2) ? 0 : 1e-3f;
    s->no_up_weight    = mk_below(r, 3) == 0;
    s->up_bias         = (int)mk_below(r, 2);
    s->no_residual     = mk_below(r, 4) == 0;
}

mk_spec mk_random_spec(uint64_t seed) {
    static const uint32_t types[] = {MK_F32, MK_F32, MK_F16, MK_BF16, MK_Q8_0, MK_Q4_0, MK_Q6_K};
    mk_spec               s;
    uint64_t              r = seed;
    memset(&s, 0, sizeof s);
    s.seed         = mk_random(&r);
    s.architecture = mk_below(&r, 8) ? "l3" : "llama";
    mk_random_shape(&s, &r);
    mk_random_lookup(&s, &r);
    s.weight_type     = mk_pick(&r, types, 7);
    s.row_type        = mk_pick(&r, types, 7);
    s.embedding_type  = mk_pick(&r, types, 7);
    s.head_type       = mk_pick(&r, types, 7);
    s.checksums       = (int)mk_below(&r, 2);
    s.no_bos          = mk_below(&r, 4) == 0;
    s.no_space_prefix = mk_below(&r, 4) == 0;
    return s;
}

/* ---- tokenizer ---- */

enum { MK_PIECE_BYTES = 24, MK_FIRST_CHARACTER = 259 };

typedef struct mk_piece {
    char    text[MK_PIECE_BYTES + 1];
    float   score;
    int32_t type; /* 1 normal, 2 unknown, 3 control, 6 byte */
} mk_piece;

static void mk_set_piece(mk_piece *p, const char *text, float score, int32_t type) {
    snprintf(p->text, sizeof p->text, "%s", text);
    p->score = score;
    p->type  = type;
}

static uint32_t mk_special_pieces(mk_piece *p) {
    char     text[8];
    unsigned i;
    mk_set_piece(&p[0], "<unk>", 0, 2);
    mk_set_piece(&p[1], "<s>", 0, 3);
    mk_set_piece(&p[2], "</s>", 0, 3);
    for (i = 0; i < 256; i++) {
        snprintf(text, sizeof text, "<0x%02X>", i & 255);
        mk_set_piece(&p[3 + i], text, 0, 6);
    }
    return MK_FIRST_CHARACTER;
}

/* Single characters take the first half of the rest, at most; their scores are the lowest. */
static uint32_t mk_characters(mk_piece *p, uint32_t n, uint32_t vocab) {
    static const char *const characters[] = {"\xE2\x96\x81",
                                             "e",
                                             "t",
                                             "a",
                                             "\xC3\xA9",
                                             "o",
                                             "n",
                                             "i",
                                             "h",
                                             "s",
                                             "r",
                                             "d",
                                             "l",
                                             ".",
                                             "u",
                                             "w",
                                             "y",
                                             "\xE2\x98\x83",
                                             "g",
                                             "c",
                                             "m",
                                             ",",
                                             "f",
                                             "p",
                                             "b",
                                             "T",
                                             "\xC3\xAF",
                                             "v",
                                             "k",
                                             "H",
                                             "I",
                                             "1",
                                             "\"",
                                             "\xF0\x9F\x98\x80",
                                             "x",
                                             "z",
                                             "<",
                                             ">",
                                             "0",
                                             "!",
                                             "?",
                                             "j",
                                             "q",
                                             "\xD0\x96",
                                             "\xE4\xB8\xAD"};
    uint32_t                 count = sizeof characters / sizeof *characters, room = (vocab - n + 1) / 2, i;
    for (i = 0; i < count && i < room; i++) mk_set_piece(&p[n++], characters[i], -1000000.0f - (float)i, 1);
    return n;
}

static int mk_starts_with_space(const mk_piece *p) { return strncmp(p->text, "\xE2\x96\x81", 3) == 0; }

/* Two earlier pieces in a row, or 0 when that is no new plausible piece: the space mark stays in front. */
static int mk_join(const mk_piece *p, uint32_t n, uint64_t *rng, char *out) {
    const mk_piece *left  = &p[MK_FIRST_CHARACTER + mk_below(rng, n - MK_FIRST_CHARACTER)];
    const mk_piece *right = &p[MK_FIRST_CHARACTER + mk_below(rng, n - MK_FIRST_CHARACTER)];
    uint32_t        i;
    if (strlen(left->text) + strlen(right->text) > MK_PIECE_BYTES || mk_starts_with_space(right)) return 0;
    strcpy(out, left->text);
    strcat(out, right->text);
    for (i = MK_FIRST_CHARACTER; i < n; i++) {
        if (strcmp(p[i].text, out) == 0) return 0;
    }
    return 1;
}

/* Scores fall; about one in four equals the one before. Where joining finds nothing, a word is made up. */
static uint32_t mk_merges(mk_piece *p, uint32_t n, uint32_t vocab, uint64_t *rng) {
    char  text[2 * MK_PIECE_BYTES + 1];
    float score = 0;
    while (n < vocab) {
        int tries = 1000;
        while (!mk_join(p, n, rng, text) && --tries) {
        }
        if (tries == 0) snprintf(text, sizeof text, "~%u", (unsigned)n);
        if (mk_below(rng, 4)) score -= 1;
        mk_set_piece(&p[n++], text, score, 1);
    }
    return n;
}

static void mk_add_pieces(mk_gguf *g, const mk_piece *p, uint32_t n) {
    const char **texts  = (const char **)mk_alloc(n, sizeof *texts);
    float       *scores = (float *)mk_alloc(n, sizeof *scores);
    int32_t     *types  = (int32_t *)mk_alloc(n, sizeof *types);
    uint32_t     i;
    for (i = 0; i < n; i++) {
        texts[i]  = p[i].text;
        scores[i] = p[i].score;
        types[i]  = p[i].type;
    }
    mk_strings(g, "tokenizer.ggml.tokens", texts, n);
    mk_f32s(g, "tokenizer.ggml.scores", scores, n);
    mk_i32s(g, "tokenizer.ggml.token_type", types, n);
    free(texts);
    free(scores);
    free(types);
}

static void mk_add_tokenizer(mk_gguf *g, const mk_spec *s, uint64_t *rng) {
    mk_piece *p = (mk_piece *)mk_alloc(s->vocab, sizeof *p);
    uint32_t  n = mk_special_pieces(p);
    n           = mk_characters(p, n, s->vocab);
    mk_merges(p, n, s->vocab, rng);
    mk_string(g, "tokenizer.ggml.model", "llama");
    mk_add_pieces(g, p, s->vocab);
    mk_u32(g, "tokenizer.ggml.bos_token_id", 1);
    mk_u32(g, "tokenizer.ggml.eos_token_id", 2);
    mk_u32(g, "tokenizer.ggml.unknown_token_id", 0);
    if (s->no_bos) mk_bool(g, "tokenizer.ggml.add_bos_token", 0);
    if (s->no_space_prefix) mk_bool(g, "tokenizer.ggml.add_space_prefix", 0);
    free(p);
}

/* ---- metadata ---- */

static const char *mk_name(const mk_spec *s, const char *key, char *out, size_t n) {
    snprintf(out, n, "%s.%s", s->architecture, key);
    return out;
}

static void mk_arch_u32(mk_gguf *g, const mk_spec *s, const char *key, uint32_t v) {
    char name[128];
    mk_u32(g, mk_name(s, key, name, sizeof name), v);
}

static void mk_arch_f32(mk_gguf *g, const mk_spec *s, const char *key, float v) {
    char name[128];
    mk_f32(g, mk_name(s, key, name, sizeof name), v);
}

static void mk_add_backbone_keys(mk_gguf *g, const mk_spec *s) {
    mk_string(g, "general.architecture", s->architecture);
    mk_string(g, "general.name", "random");
    if (!s->minimal || s->alignment != 32) mk_u32(g, "general.alignment", s->alignment);
    mk_arch_u32(g, s, "context_length", s->context);
    mk_arch_u32(g, s, "embedding_length", s->dim);
    mk_arch_u32(g, s, "block_count", s->n_blocks);
    mk_arch_u32(g, s, "feed_forward_length", s->ffn);
    mk_arch_u32(g, s, "attention.head_count", s->n_heads);
    mk_arch_u32(g, s, "attention.head_count_kv", s->n_kv_heads);
    mk_arch_f32(g, s, "attention.layer_norm_rms_epsilon", s->rms_eps);
    if (!s->minimal) mk_arch_u32(g, s, "vocab_size", s->vocab);
    if (!s->minimal || s->rope_dim != s->dim / s->n_heads) {
        mk_arch_u32(g, s, "rope.dimension_count", s->rope_dim);
    }
    if (!s->minimal || s->freq_base != 10000) mk_arch_f32(g, s, "rope.freq_base", s->freq_base);
}

static void mk_add_lookup_keys(mk_gguf *g, const mk_spec *s) {
    mk_u32s(g, "l3.lookup.block_indices", s->lookup_blocks, s->n_lookups);
    mk_u32(g, "l3.lookup.row_count", s->row_count);
    mk_u32(g, "l3.lookup.rows_per_token_max", s->k);
    mk_u32(g, "l3.lookup.key_length", s->dim);
    mk_u32(g, "l3.lookup.value_length", s->value_length);
    mk_u32(g, "l3.lookup.up_length", s->up_length ? s->up_length : s->value_length);
    mk_bool(g, "l3.lookup.tied", s->tied);
    mk_bool(g, "l3.lookup.query_norm", !s->no_query_norm);
    if (!s->minimal || s->key_norm) mk_bool(g, "l3.lookup.key_norm", s->key_norm);
    if (s->score_scale != 0) mk_f32(g, "l3.lookup.score_scale", s->score_scale);
    mk_string(g, "l3.lookup.norm_type", s->layer_norm ? "layer" : "rms");
    if (s->norm_epsilon != 0) mk_f32(g, "l3.lookup.norm_epsilon", s->norm_epsilon);
    if (!s->minimal || s->no_residual) mk_bool(g, "l3.lookup.residual", !s->no_residual);
}

/* ---- weights ---- */

/* (n_out, n_in) elements of this deviation; returns where the data is in blob, its size in *n_bytes */
static size_t mk_add_matrix(mk_gguf *g, const char *name, uint32_t type, uint32_t n_in, uint32_t n_out,
                            double deviation, uint64_t *rng, size_t *n_bytes) {
    float   *row  = (float *)mk_alloc(n_in, sizeof *row);
    mk_buf   data = {NULL, 0, 0};
    uint64_t dims[2];
    uint32_t i, j;
    size_t   at;
    dims[0] = n_in;
    dims[1] = n_out;
    if (n_in % mk_block_elements(type)) type = MK_F16;
    for (i = 0; i < n_out; i++) {
        for (j = 0; j < n_in; j++) row[j] = (float)(deviation * mk_normal(rng));
        mk_quantize(&data, type, row, n_in);
    }
    at = mk_tensor(g, name, type, 2, dims, data.data, data.n);
    if (n_bytes) *n_bytes = data.n;
    free(data.data);
    free(row);
    return at;
}

static void mk_add_vector(mk_gguf *g, const char *name, uint32_t n, double mean, double deviation, uint64_t *rng) {
    mk_buf   data = {NULL, 0, 0};
    uint64_t dims[1];
    uint32_t i;
    dims[0] = n;
    for (i = 0; i < n; i++) mk_put_f32(&data, (float)(mean + deviation * mk_normal(rng)));
    mk_tensor(g, name, MK_F32, 1, dims, data.data, data.n);
    free(data.data);
}

static const char *mk_in_block(uint32_t block, const char *suffix, char *out, size_t n) {
    snprintf(out, n, "blk.%u.%s", (unsigned)block, suffix);
    return out;
}

/* A matrix that keeps the size of a unit input. */
static void mk_block_matrix(mk_gguf *g, const mk_spec *s, uint32_t block, const char *suffix, uint32_t n_in,
                            uint32_t n_out, uint64_t *rng) {
    char name[128];
    mk_in_block(block, suffix, name, sizeof name);
    mk_add_matrix(g, name, s->weight_type, n_in, n_out, 1 / sqrt((double)n_in), rng, NULL);
}

static void mk_block_vector(mk_gguf *g, uint32_t block, const char *suffix, uint32_t n, double mean, uint64_t *rng) {
    char name[128];
    mk_add_vector(g, mk_in_block(block, suffix, name, sizeof name), n, mean, 0.1, rng);
}

static void mk_add_block(mk_gguf *g, const mk_spec *s, uint32_t i, uint64_t *rng) {
    uint32_t kv = s->dim / s->n_heads * s->n_kv_heads;
    mk_block_vector(g, i, "attn_norm.weight", s->dim, 1, rng);
    mk_block_matrix(g, s, i, "attn_q.weight", s->dim, s->dim, rng);
    mk_block_matrix(g, s, i, "attn_k.weight", s->dim, kv, rng);
    mk_block_matrix(g, s, i, "attn_v.weight", s->dim, kv, rng);
    mk_block_matrix(g, s, i, "attn_output.weight", s->dim, s->dim, rng);
    mk_block_vector(g, i, "ffn_norm.weight", s->dim, 1, rng);
    mk_block_matrix(g, s, i, "ffn_gate.weight", s->dim, s->ffn, rng);
    mk_block_matrix(g, s, i, "ffn_up.weight", s->dim, s->ffn, rng);
    mk_block_matrix(g, s, i, "ffn_down.weight", s->ffn, s->dim, rng);
}

/* ---- lookup layers ---- */

static int mk_is_empty(const mk_spec *s, uint32_t token) {
    return s->empty_every && token % s->empty_every == 1 && !(s->heavy_rows && token == s->heavy_token);
}

static uint32_t mk_first_counts(const mk_spec *s, uint32_t *counts, uint64_t *rng) {
    uint32_t sum = 0, t;
    for (t = 0; t < s->vocab; t++) {
        counts[t] = mk_is_empty(s, t) ? 0 : 1 + mk_below(rng, s->heavy_rows && s->k > 24 ? 24 : s->k);
        if (s->heavy_rows && t == s->heavy_token) counts[t] = s->heavy_rows;
        sum += counts[t];
    }
    return sum;
}

/* Tokens that may, give or take a row each until all rows are placed; a target out of reach is approached. */
static void mk_fit_counts(const mk_spec *s, uint32_t *counts, uint32_t sum, uint32_t target) {
    uint32_t before = sum + 1, t;
    while (sum != target && before != sum) {
        before = sum;
        for (t = 0; t < s->vocab && sum != target; t++) {
            if (mk_is_empty(s, t) || (s->heavy_rows && t == s->heavy_token)) continue;
            if (sum < target && counts[t] < s->k) {
                counts[t]++;
                sum++;
            }
            if (sum > target && counts[t] > 1) {
                counts[t]--;
                sum--;
            }
        }
    }
}

/* (n_lookups, vocab) rows of every token; all layers have the same sum, which becomes row_count. */
static uint32_t *mk_counts(mk_spec *s, uint64_t *rng) {
    uint32_t *counts = (uint32_t *)mk_alloc((size_t)s->n_lookups * s->vocab, sizeof *counts), i, t, sum;
    for (i = 0; i < s->n_lookups; i++) {
        uint32_t *layer = counts + (size_t)i * s->vocab;
        sum             = mk_first_counts(s, layer, rng);
        if (s->row_count) mk_fit_counts(s, layer, sum, s->row_count);
        if (i > 0) continue;
        for (s->row_count = 0, t = 0; t < s->vocab; t++) s->row_count += layer[t];
    }
    return counts;
}

static void mk_add_offsets(mk_gguf *g, const mk_spec *s, uint32_t block, const uint32_t *counts) {
    mk_buf   data = {NULL, 0, 0};
    uint64_t dims[1];
    uint32_t sum = 0, t;
    char     name[128];
    dims[0] = s->vocab + 1;
    mk_put_u32(&data, 0);
    for (t = 0; t < s->vocab; t++) mk_put_u32(&data, sum += counts[t]);
    mk_tensor(g, mk_in_block(block, "lookup_offsets", name, sizeof name), MK_I32, 1, dims, data.data, data.n);
    free(data.data);
}

/* Key l3.checksum.rows.N: CRC-32 of every token's rows; rows: their bytes. */
static void mk_add_row_checksums(mk_gguf *g, const mk_spec *s, uint32_t block, const uint32_t *counts,
                                 const unsigned char *rows, size_t n_bytes) {
    uint32_t *crc = (uint32_t *)mk_alloc(s->vocab, sizeof *crc), t;
    size_t    row = n_bytes / s->row_count;
    char      key[64];
    for (t = 0; t < s->vocab; t++) {
        crc[t] = mk_crc32(0, rows, row * counts[t]);
        rows += row * counts[t];
    }
    snprintf(key, sizeof key, "l3.checksum.rows.%u", (unsigned)block);
    mk_u32s(g, key, crc, s->vocab);
    free(crc);
}

/* No block may straddle key and value. Deviation 1.5 / sqrt(dim): scores spread over a few units. */
static void mk_add_rows(mk_gguf *g, const mk_spec *s, uint32_t block, const uint32_t *counts, uint64_t *rng) {
    uint32_t length = s->tied ? s->dim : s->dim + s->value_length, type = s->row_type;
    size_t   at, n;
    char     name[128];
    if (s->dim % mk_block_elements(type) || s->value_length % mk_block_elements(type)) type = MK_F16;
    mk_in_block(block, "lookup_rows.weight", name, sizeof name);
    at = mk_add_matrix(g, name, type, length, s->row_count, 1.5 / sqrt((double)s->dim), rng, &n);
    if (s->checksums) mk_add_row_checksums(g, s, block, counts, g->blob.data + at, n);
}

static void mk_add_lookup(mk_gguf *g, const mk_spec *s, uint32_t block, const uint32_t *counts, uint64_t *rng) {
    uint32_t d_up = s->up_length ? s->up_length : s->value_length;
    mk_add_offsets(g, s, block, counts);
    mk_add_rows(g, s, block, counts, rng);
    if (!s->no_query_norm && !s->no_query_weight) {
        mk_block_vector(g, block, "lookup_query_norm.weight", s->dim, 1, rng);
    }
    if (s->up_length) mk_block_matrix(g, s, block, "lookup_up.weight", s->value_length, d_up, rng);
    if (!s->no_up_weight) mk_block_vector(g, block, "lookup_up_norm.weight", d_up, 1, rng);
    if (s->layer_norm && s->up_bias) mk_block_vector(g, block, "lookup_up_norm.bias", d_up, 0, rng);
    mk_block_matrix(g, s, block, "lookup_mix.weight", d_up + s->dim, s->dim, rng);
}

/* ---- the model ---- */

static void mk_add_lookups(mk_gguf *g, mk_spec *s, uint64_t *rng) {
    uint32_t *counts = mk_counts(s, rng), i;
    for (i = 0; i < s->n_lookups; i++) {
        mk_add_lookup(g, s, s->lookup_blocks[i], counts + (size_t)i * s->vocab, rng);
    }
    free(counts);
}

unsigned char *mk_model(const mk_spec *spec, size_t *n) {
    mk_spec  s    = mk_defaults(spec);
    mk_gguf *g    = mk_gguf_new();
    uint64_t rng  = s.seed;
    double   head = 1.5 / sqrt((double)s.dim); /* logits of deviation 1.5: the highest is about 5 */
    uint32_t i;
    g->alignment = s.alignment;
    mk_add_backbone_keys(g, &s);
    mk_add_tokenizer(g, &s, &rng);
    mk_add_matrix(g, "token_embd.weight", s.embedding_type, s.dim, s.vocab, head, &rng, NULL);
    for (i = 0; i < s.n_blocks; i++) mk_add_block(g, &s, i, &rng);
    mk_add_lookups(g, &s, &rng);
    if (strcmp(s.architecture, "l3") == 0) mk_add_lookup_keys(g, &s);
    mk_add_vector(g, "output_norm.weight", s.dim, 1, 0.1, &rng);
    if (s.separate_head) mk_add_matrix(g, "output.weight", s.head_type, s.dim, s.vocab, head, &rng, NULL);
    if (s.selftest_tokens) mk_i32s(g, "l3.selftest.tokens", s.selftest_tokens, s.n_selftest_tokens);
    if (s.selftest_logits) mk_f32s(g, "l3.selftest.logits", s.selftest_logits, s.n_selftest_logits);
    if (s.checksums) mk_checksum(g);
    return mk_finish(g, n);
}
