#include "ref.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *ref_alloc_zero(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p) abort();
    return p;
}

static double *ref_doubles(size_t n) { return (double *)ref_alloc_zero(n, sizeof(double)); }

/* ---- bytes and number formats ---- */

static uint64_t ref_le(const unsigned char *p, size_t n) {
    uint64_t v = 0;
    while (n--) v = v << 8 | p[n];
    return v;
}

static int ref_signed8(unsigned byte) { return byte < 128 ? (int)byte : (int)byte - 256; }

static double ref_f32(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

static double ref_f64(uint64_t bits) {
    double d;
    memcpy(&d, &bits, sizeof d);
    return d;
}

/* IEEE 754 binary16 */
static double ref_f16(uint64_t bits) {
    int    exponent = (int)(bits >> 10 & 31), fraction = (int)(bits & 1023);
    double sign = bits >> 15 & 1 ? -1.0 : 1.0;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexp((double)fraction, -24);
    return sign * ldexp((double)(1024 + fraction), exponent - 25);
}

/* ---- ggml blocks ---- */

static size_t ref_block_elements(uint32_t type) {
    switch (type) {
    case REF_F32:
    case REF_F16:
    case REF_BF16:
    case REF_I32: return 1;
    case REF_Q8_0:
    case REF_Q4_0: return 32;
    case REF_Q6_K: return 256;
    default: return 0;
    }
}

static size_t ref_block_bytes(uint32_t type) {
    switch (type) {
    case REF_F32:
    case REF_I32: return 4;
    case REF_F16:
    case REF_BF16: return 2;
    case REF_Q8_0: return 34;  /* f16 scale, 32 x i8 */
    case REF_Q4_0: return 18;  /* f16 scale, 16 bytes of nibbles */
    case REF_Q6_K: return 210; /* low nibbles 128, high bits 64, 16 x i8, f16 scale */
    default: return 0;
    }
}

size_t ref_type_size(uint32_t type, uint64_t n) {
    size_t elements = ref_block_elements(type);
    if (elements == 0 || n % elements || n / elements > SIZE_MAX / 256) return 0;
    return (size_t)(n / elements) * ref_block_bytes(type);
}

static void ref_block_q8_0(const unsigned char *b, double *out) {
    double d = ref_f16(ref_le(b, 2));
    int    i;
    for (i = 0; i < 32; i++) out[i] = d * ref_signed8(b[2 + i]);
}

/* element i in the low nibble of byte i, element i + 16 in the high one */
static void ref_block_q4_0(const unsigned char *b, double *out) {
    double d = ref_f16(ref_le(b, 2));
    int    i;
    for (i = 0; i < 16; i++) {
        out[i]      = d * ((b[2 + i] & 15) - 8);
        out[i + 16] = d * ((b[2 + i] >> 4) - 8);
    }
}

/* Two halves of 128; in each, four quarters of 32: quarters 0 and 1 in the low nibbles, 2 and 3 in the high
 * ones of the same 64 bytes; the upper two bits of all four share 32 bytes. One scale per 16 elements. */
static void ref_block_q6_k(const unsigned char *b, double *out) {
    const unsigned char *low = b, *high = b + 128, *scale = b + 192;
    double               d = ref_f16(ref_le(b + 208, 2));
    int                  i;
    for (i = 0; i < 256; i++) {
        int half = i / 128, quarter = i / 32 % 4, l = i % 32;
        int nibble = low[64 * half + 32 * (quarter % 2) + l] >> (quarter / 2 * 4) & 15;
        int upper  = high[32 * half + l] >> (2 * quarter) & 3;
        out[i]     = d * ref_signed8(scale[i / 16]) * (nibble + 16 * upper - 32);
    }
}

static void ref_block(uint32_t type, const unsigned char *b, double *out) {
    switch (type) {
    case REF_F32: out[0] = ref_f32((uint32_t)ref_le(b, 4)); break;
    case REF_F16: out[0] = ref_f16(ref_le(b, 2)); break;
    case REF_BF16: out[0] = ref_f32((uint32_t)ref_le(b, 2) << 16); break;
    case REF_I32: out[0] = (double)ref_le(b, 4) - (b[3] & 128 ? 4294967296.0 : 0.0); break;
    case REF_Q8_0: ref_block_q8_0(b, out); break;
    case REF_Q4_0: ref_block_q4_0(b, out); break;
    case REF_Q6_K: ref_block_q6_k(b, out); break;
    default: break;
    }
}

int ref_dequantize(uint32_t type, const void *bytes, size_t n, double *out) {
    const unsigned char *b        = (const unsigned char *)bytes;
    size_t               elements = ref_block_elements(type), i;
    if (elements == 0 || n % elements) return 0;
    for (i = 0; i < n; i += elements, b += ref_block_bytes(type)) ref_block(type, b, out + i);
    return 1;
}

/* ---- GGUF ---- */

enum { REF_STRING = 8, REF_ARRAY = 9 };

typedef struct ref_key {
    char    *name;
    uint32_t type; /* of the elements */
    int      is_array;
    size_t   count;
    double  *numbers; /* either these ... */
    char   **strings; /* ... or these */
    size_t  *lengths;
} ref_key;

struct ref_gguf {
    const unsigned char *bytes;
    size_t               size, at; /* at: where the reader is */
    int                  bad;
    ref_key             *keys;
    ref_tensor          *tensors;
    size_t               n_keys, n_tensors;
};

/* The next n bytes, or NULL and `bad` from then on. */
static const unsigned char *ref_take(ref_gguf *g, uint64_t n) {
    const unsigned char *p = g->bytes + g->at;
    if (g->bad || n > g->size - g->at) {
        g->bad = 1;
        return NULL;
    }
    g->at += (size_t)n;
    return p;
}

static uint64_t ref_read(ref_gguf *g, size_t n) {
    const unsigned char *p = ref_take(g, n);
    return p ? ref_le(p, n) : 0;
}

static char *ref_read_string(ref_gguf *g, size_t *length) {
    uint64_t             n = ref_read(g, 8);
    const unsigned char *p = ref_take(g, n);
    char                *s = (char *)ref_alloc_zero(p ? (size_t)n + 1 : 1, 1);
    if (p) memcpy(s, p, (size_t)n);
    if (length) *length = p ? (size_t)n : 0;
    return s;
}

static double ref_read_number(ref_gguf *g, uint32_t type) {
    switch (type) {
    case 0: return (double)ref_read(g, 1);                        /* u8 */
    case 1: return (double)ref_signed8((unsigned)ref_read(g, 1)); /* i8 */
    case 2: return (double)ref_read(g, 2);                        /* u16 */
    case 3: return (double)(int16_t)ref_read(g, 2);               /* i16 */
    case 4: return (double)ref_read(g, 4);                        /* u32 */
    case 5: return (double)(int32_t)ref_read(g, 4);               /* i32 */
    case 6: return ref_f32((uint32_t)ref_read(g, 4));             /* f32 */
    case 7: return (double)ref_read(g, 1);                        /* bool */
    case 10: return (double)ref_read(g, 8);                       /* u64 */
    case 11: return (double)(int64_t)ref_read(g, 8);              /* i64 */
    case 12: return ref_f64(ref_read(g, 8));                      /* f64 */
    default: g->bad = 1; return 0;
    }
}

static void ref_read_elements(ref_gguf *g, ref_key *k) {
    size_t i;
    if (k->type == REF_STRING) {
        k->strings = (char **)ref_alloc_zero(k->count, sizeof *k->strings);
        k->lengths = (size_t *)ref_alloc_zero(k->count, sizeof *k->lengths);
        for (i = 0; i < k->count && !g->bad; i++) k->strings[i] = ref_read_string(g, &k->lengths[i]);
    } else {
        k->numbers = ref_doubles(k->count);
        for (i = 0; i < k->count && !g->bad; i++) k->numbers[i] = ref_read_number(g, k->type);
    }
}

static void ref_read_key(ref_gguf *g, ref_key *k) {
    uint64_t count = 1;
    k->name        = ref_read_string(g, NULL);
    k->type        = (uint32_t)ref_read(g, 4);
    k->is_array    = k->type == REF_ARRAY;
    if (k->is_array) {
        k->type = (uint32_t)ref_read(g, 4);
        count   = ref_read(g, 8);
    }
    if (g->bad || count > g->size - g->at) { /* an element has a byte or more */
        g->bad = 1;
        return;
    }
    k->count = (size_t)count;
    ref_read_elements(g, k);
}

static void ref_read_tensor(ref_gguf *g, ref_tensor *t) {
    uint64_t n = 1;
    uint32_t i;
    t->name   = ref_read_string(g, NULL);
    t->n_dims = (uint32_t)ref_read(g, 4);
    if (t->n_dims > 4) g->bad = 1;
    for (i = 0; i < 4; i++) {
        t->dims[i] = i < t->n_dims && !g->bad ? ref_read(g, 8) : 1;
        if (t->dims[i] && n > 8 * (uint64_t)g->size / t->dims[i]) g->bad = 1;
        n *= t->dims[i];
    }
    t->type       = (uint32_t)ref_read(g, 4);
    t->offset     = ref_read(g, 8);
    t->n_elements = g->bad ? 0 : (size_t)n;
    t->n_bytes    = ref_type_size(t->type, t->n_elements);
}

/* Offsets count from the end of the header, rounded up to the alignment. */
static void ref_place_tensors(ref_gguf *g) {
    double   alignment = ref_number(g, "general.alignment", 0, 32);
    uint64_t step, start;
    size_t   i;
    if (g->bad || !(alignment >= 1 && alignment <= 1 << 30)) {
        g->bad = 1;
        return;
    }
    step  = (uint64_t)alignment;
    start = (g->at + step - 1) / step * step;
    for (i = 0; i < g->n_tensors; i++) {
        ref_tensor *t = &g->tensors[i];
        if (start > g->size || t->offset > g->size - start || t->n_bytes > g->size - start - t->offset) {
            g->bad = 1;
            return;
        }
        t->offset += start;
        t->data = g->bytes + t->offset;
    }
}

ref_gguf *ref_gguf_open(const void *data, size_t n) {
    ref_gguf *g = (ref_gguf *)ref_alloc_zero(1, sizeof *g);
    uint64_t  n_tensors, n_keys;
    g->bytes = (const unsigned char *)data;
    g->size  = n;
    if (ref_read(g, 4) != 0x46554747u || ref_read(g, 4) != 3) g->bad = 1;
    n_tensors = ref_read(g, 8);
    n_keys    = ref_read(g, 8);
    if (n_tensors > n / 24 || n_keys > n / 13) g->bad = 1;
    if (!g->bad) {
        g->keys    = (ref_key *)ref_alloc_zero((size_t)n_keys, sizeof *g->keys);
        g->tensors = (ref_tensor *)ref_alloc_zero((size_t)n_tensors, sizeof *g->tensors);
    }
    while (!g->bad && g->n_keys < n_keys) ref_read_key(g, &g->keys[g->n_keys++]);
    while (!g->bad && g->n_tensors < n_tensors) ref_read_tensor(g, &g->tensors[g->n_tensors++]);
    ref_place_tensors(g);
    if (!g->bad) return g;
    ref_gguf_close(g);
    return NULL;
}

static void ref_free_key(ref_key *k) {
    size_t i;
    for (i = 0; k->strings && i < k->count; i++) free(k->strings[i]);
    free(k->strings);
    free(k->lengths);
    free(k->numbers);
    free(k->name);
}

void ref_gguf_close(ref_gguf *g) {
    size_t i;
    if (!g) return;
    for (i = 0; i < g->n_keys; i++) ref_free_key(&g->keys[i]);
    for (i = 0; i < g->n_tensors; i++) free(g->tensors[i].name);
    free(g->keys);
    free(g->tensors);
    free(g);
}

static const ref_key *ref_find_key(const ref_gguf *g, const char *name) {
    size_t i;
    for (i = 0; i < g->n_keys; i++) {
        if (strcmp(g->keys[i].name, name) == 0) return &g->keys[i];
    }
    return NULL;
}

size_t ref_key_count(const ref_gguf *g, const char *key) {
    const ref_key *k = ref_find_key(g, key);
    return k ? k->count : 0;
}

int ref_key_type(const ref_gguf *g, const char *key) {
    const ref_key *k = ref_find_key(g, key);
    return k ? (int)k->type : -1;
}

int ref_key_is_array(const ref_gguf *g, const char *key) {
    const ref_key *k = ref_find_key(g, key);
    return k ? k->is_array : 0;
}

double ref_number(const ref_gguf *g, const char *key, size_t i, double otherwise) {
    const ref_key *k = ref_find_key(g, key);
    return k && k->numbers && i < k->count ? k->numbers[i] : otherwise;
}

const char *ref_string(const ref_gguf *g, const char *key, size_t i, size_t *length) {
    const ref_key *k = ref_find_key(g, key);
    if (!k || !k->strings || i >= k->count) return NULL;
    if (length) *length = k->lengths[i];
    return k->strings[i];
}

size_t ref_tensor_count(const ref_gguf *g) { return g->n_tensors; }

const ref_tensor *ref_tensor_at(const ref_gguf *g, size_t i) { return i < g->n_tensors ? &g->tensors[i] : NULL; }

const ref_tensor *ref_tensor_find(const ref_gguf *g, const char *name) {
    size_t i;
    for (i = 0; i < g->n_tensors; i++) {
        if (strcmp(g->tensors[i].name, name) == 0) return &g->tensors[i];
    }
    return NULL;
}

double *ref_tensor_read(const ref_gguf *g, const char *name, size_t *n) {
    const ref_tensor *t = ref_tensor_find(g, name);
    double           *out;
    if (!t || (t->n_elements && t->n_bytes == 0)) return NULL;
    out = ref_doubles(t->n_elements);
    ref_dequantize(t->type, t->data, t->n_elements, out);
    if (n) *n = t->n_elements;
    return out;
}

/* ---- small linear algebra ---- */

static double ref_dot(const double *a, const double *b, size_t n) {
    double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        s0 += a[i] * b[i];
        s1 += a[i + 1] * b[i + 1];
        s2 += a[i + 2] * b[i + 2];
        s3 += a[i + 3] * b[i + 3];
    }
    for (; i < n; i++) s0 += a[i] * b[i];
    return (s0 + s1) + (s2 + s3);
}

/* out (n_out,) = w (n_out, n_in) x (n_in,) */
static void ref_matvec(const double *w, const double *x, size_t n_out, size_t n_in, double *out) {
    size_t i;
    for (i = 0; i < n_out; i++) out[i] = ref_dot(w + i * n_in, x, n_in);
}

/* out may be x; weight NULL: ones */
static void ref_rms_norm(const double *x, const double *weight, size_t n, double epsilon, double *out) {
    double scale = 1.0 / sqrt(ref_dot(x, x, n) / (double)n + epsilon);
    size_t i;
    for (i = 0; i < n; i++) out[i] = x[i] * scale * (weight ? weight[i] : 1.0);
}

static void ref_layer_norm(const double *x, const double *weight, const double *bias, size_t n, double epsilon,
                           double *out) {
    double mean = 0, variance = 0;
    size_t i;
    for (i = 0; i < n; i++) mean += x[i] / (double)n;
    for (i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean) / (double)n;
    for (i = 0; i < n; i++) {
        out[i] = (x[i] - mean) / sqrt(variance + epsilon) * (weight ? weight[i] : 1.0);
        if (bias) out[i] += bias[i];
    }
}

static void ref_softmax(double *s, size_t n) {
    double top = -INFINITY, sum = 0;
    size_t i;
    for (i = 0; i < n; i++) top = s[i] > top ? s[i] : top;
    for (i = 0; i < n; i++) sum += s[i] = exp(s[i] - top);
    for (i = 0; i < n; i++) s[i] /= sum;
}

/* ---- one lookup layer ---- */

/* scores (n_rows,): softmax over this token's rows */
static void ref_lookup_scores(const ref_lookup_layer *l, const double *rows, size_t n_rows, const double *x,
                              double *scores) {
    size_t  stride = l->tied ? l->d_in : l->d_in + l->d_emb, r;
    double *q = ref_doubles(l->d_in), *key = ref_doubles(l->d_in);
    memcpy(q, x, l->d_in * sizeof *q);
    if (l->query_norm) ref_rms_norm(x, l->query_weight, l->d_in, l->epsilon, q);
    for (r = 0; r < n_rows; r++) {
        memcpy(key, rows + r * stride, l->d_in * sizeof *key);
        if (l->key_norm) ref_rms_norm(key, NULL, l->d_in, l->epsilon, key);
        scores[r] = l->score_scale * ref_dot(key, q, l->d_in);
    }
    ref_softmax(scores, n_rows);
    free(q);
    free(key);
}

/* a (d_emb,), zeros when the token has no rows */
static void ref_lookup_read(const ref_lookup_layer *l, const double *rows, size_t n_rows, const double *x, double *a) {
    size_t  stride = l->tied ? l->d_in : l->d_in + l->d_emb, first = l->tied ? 0 : l->d_in, r, i;
    double *scores = ref_doubles(n_rows);
    ref_lookup_scores(l, rows, n_rows, x, scores);
    for (i = 0; i < l->d_emb; i++) a[i] = 0;
    for (r = 0; r < n_rows; r++) {
        for (i = 0; i < l->d_emb; i++) a[i] += scores[r] * rows[r * stride + first + i];
    }
    free(scores);
}

void ref_lookup(const ref_lookup_layer *l, const double *rows, size_t n_rows, const double *x, double *out) {
    double *a = ref_doubles(l->d_emb), *ux = ref_doubles(l->d_up + l->d_in), *y = ref_doubles(l->d_in);
    size_t  i;
    ref_lookup_read(l, rows, n_rows, x, a);
    if (l->up) ref_matvec(l->up, a, l->d_up, l->d_emb, ux);
    else memcpy(ux, a, l->d_up * sizeof *ux);
    if (l->layer_norm) ref_layer_norm(ux, l->norm_weight, l->norm_bias, l->d_up, l->epsilon, ux);
    else ref_rms_norm(ux, l->norm_weight, l->d_up, l->epsilon, ux);
    memcpy(ux + l->d_up, x, l->d_in * sizeof *ux);
    ref_matvec(l->mix, ux, l->d_in, l->d_up + l->d_in, y);
    for (i = 0; i < l->d_in; i++) out[i] = l->residual ? x[i] + y[i] : y[i];
    free(a);
    free(ux);
    free(y);
}

/* ---- loading a model ---- */

typedef struct ref_block_weights {
    const double    *attn_norm, *q, *k, *v, *o, *ffn_norm, *gate, *up, *down;
    int              has_lookup;
    ref_lookup_layer lookup;
    const double    *offsets; /* (vocab + 1,) */
    const double    *rows;    /* (row_count, row_length) */
    size_t           row_length;
} ref_block_weights;

typedef struct ref_piece {
    const char *text;
    size_t      length;
    double      score;
    int         type;
    int32_t     id;
} ref_piece;

enum { REF_UNKNOWN = 2, REF_CONTROL = 3, REF_USER = 4, REF_BYTE = 6 };

struct ref_model {
    ref_gguf          *file;
    const char        *arch;
    int                bad;
    size_t             vocab, dim, n_blocks, n_heads, n_kv_heads, head, n_rot, ffn, context;
    double             epsilon, freq_base;
    const double      *embedding, *output_norm, *output;
    ref_block_weights *blocks;
    void             **owned;
    size_t             n_owned;

    ref_piece *pieces;  /* by ID */
    ref_piece *by_text; /* those that text can become, sorted */
    size_t     n_pieces, n_by_text;
    int32_t    byte_ids[256]; /* -1: none */
    int32_t    bos, eos, unk;
    int        space_prefix;
};

static void ref_own(ref_model *m, void *p) {
    m->owned = (void **)realloc(m->owned, (m->n_owned + 1) * sizeof *m->owned);
    if (!m->owned) abort();
    m->owned[m->n_owned++] = p;
}

/* Key with the architecture in front. */
static double ref_model_number(const ref_model *m, const char *key, double otherwise) {
    char name[128];
    snprintf(name, sizeof name, "%s.%s", m->arch, key);
    return ref_number(m->file, name, 0, otherwise);
}

static size_t ref_model_size(ref_model *m, const char *key, double otherwise) {
    double v = ref_model_number(m, key, otherwise);
    if (!(v >= 0 && v <= 4294967295.0)) m->bad = 1;
    return m->bad ? 0 : (size_t)v;
}

/* A tensor of the shape (n_out, n_in), or (n_in,) when n_out is 0; NULL when absent. */
static const double *ref_optional(ref_model *m, const char *name, size_t n_in, size_t n_out) {
    const ref_tensor *t = ref_tensor_find(m->file, name);
    double           *data;
    if (!t || m->bad) return NULL;
    if (t->dims[0] != n_in || t->dims[1] != (n_out ? n_out : 1)) m->bad = 1;
    if (t->dims[2] != 1 || t->dims[3] != 1) m->bad = 1;
    data = m->bad ? NULL : ref_tensor_read(m->file, name, NULL);
    if (data) ref_own(m, data);
    else m->bad = 1;
    return data;
}

static const double *ref_required(ref_model *m, const char *name, size_t n_in, size_t n_out) {
    const double *data = ref_optional(m, name, n_in, n_out);
    if (!data) m->bad = 1;
    return data;
}

static const double *ref_in_block(ref_model *m, size_t block, const char *suffix, size_t n_in, size_t n_out,
                                  int required) {
    char name[128];
    snprintf(name, sizeof name, "blk.%u.%s", (unsigned)block, suffix);
    return required ? ref_required(m, name, n_in, n_out) : ref_optional(m, name, n_in, n_out);
}

static void ref_load_block(ref_model *m, size_t i) {
    ref_block_weights *b = &m->blocks[i];
    size_t             d = m->dim, kv = m->n_kv_heads * m->head;
    b->attn_norm = ref_in_block(m, i, "attn_norm.weight", d, 0, 1);
    b->q         = ref_in_block(m, i, "attn_q.weight", d, d, 1);
    b->k         = ref_in_block(m, i, "attn_k.weight", d, kv, 1);
    b->v         = ref_in_block(m, i, "attn_v.weight", d, kv, 1);
    b->o         = ref_in_block(m, i, "attn_output.weight", d, d, 1);
    b->ffn_norm  = ref_in_block(m, i, "ffn_norm.weight", d, 0, 1);
    b->gate      = ref_in_block(m, i, "ffn_gate.weight", d, m->ffn, 1);
    b->up        = ref_in_block(m, i, "ffn_up.weight", d, m->ffn, 1);
    b->down      = ref_in_block(m, i, "ffn_down.weight", m->ffn, d, 1);
}

static void ref_load_lookup_keys(ref_model *m, ref_lookup_layer *l) {
    const char *norm = ref_string(m->file, "l3.lookup.norm_type", 0, NULL);
    l->tied          = ref_model_number(m, "lookup.tied", 0) != 0;
    l->query_norm    = ref_model_number(m, "lookup.query_norm", 0) != 0;
    l->key_norm      = ref_model_number(m, "lookup.key_norm", 0) != 0;
    l->residual      = ref_model_number(m, "lookup.residual", 1) != 0;
    l->score_scale   = ref_model_number(m, "lookup.score_scale", 1);
    l->epsilon       = ref_model_number(m, "lookup.norm_epsilon", m->epsilon);
    l->layer_norm    = norm && strcmp(norm, "layer") == 0;
    l->d_in          = m->dim;
    l->d_emb         = l->tied ? m->dim : ref_model_size(m, "lookup.value_length", 0);
    if (!norm || (!l->layer_norm && strcmp(norm, "rms") != 0)) m->bad = 1;
    if (ref_model_size(m, "lookup.key_length", (double)m->dim) != m->dim) m->bad = 1;
}

static void ref_check_offsets(ref_model *m, const ref_block_weights *b, size_t row_count) {
    size_t t;
    if (m->bad) return;
    if (b->offsets[0] != 0 || b->offsets[m->vocab] != (double)row_count) m->bad = 1;
    for (t = 0; t < m->vocab; t++) m->bad |= b->offsets[t + 1] < b->offsets[t];
}

static void ref_load_lookup(ref_model *m, size_t i) {
    ref_block_weights *b         = &m->blocks[i];
    ref_lookup_layer  *l         = &b->lookup;
    size_t             row_count = ref_model_size(m, "lookup.row_count", 0);
    size_t             d_up      = ref_model_size(m, "lookup.up_length", 0);
    ref_load_lookup_keys(m, l);
    b->row_length   = l->tied ? l->d_in : l->d_in + l->d_emb;
    b->offsets      = ref_in_block(m, i, "lookup_offsets", m->vocab + 1, 0, 1);
    b->rows         = ref_in_block(m, i, "lookup_rows.weight", b->row_length, row_count, 1);
    l->up           = ref_in_block(m, i, "lookup_up.weight", l->d_emb, d_up, 0);
    l->d_up         = l->up ? d_up : l->d_emb;
    l->query_weight = ref_in_block(m, i, "lookup_query_norm.weight", l->d_in, 0, 0);
    l->norm_weight  = ref_in_block(m, i, "lookup_up_norm.weight", l->d_up, 0, 0);
    l->norm_bias    = ref_in_block(m, i, "lookup_up_norm.bias", l->d_up, 0, 0);
    l->mix          = ref_in_block(m, i, "lookup_mix.weight", l->d_up + l->d_in, l->d_in, 1);
    b->has_lookup   = 1;
    ref_check_offsets(m, b, row_count);
}

static void ref_load_lookups(ref_model *m) {
    const char *key = "l3.lookup.block_indices";
    size_t      i, n = strcmp(m->arch, "l3") == 0 ? ref_key_count(m->file, key) : 0;
    for (i = 0; i < n && !m->bad; i++) {
        double block = ref_number(m->file, key, i, -1);
        if (!(block >= 0 && block < (double)m->n_blocks)) m->bad = 1;
        else ref_load_lookup(m, (size_t)block);
    }
}

static void ref_load_sizes(ref_model *m) {
    m->dim        = ref_model_size(m, "embedding_length", 0);
    m->n_blocks   = ref_model_size(m, "block_count", 0);
    m->n_heads    = ref_model_size(m, "attention.head_count", 0);
    m->n_kv_heads = ref_model_size(m, "attention.head_count_kv", (double)m->n_heads);
    m->ffn        = ref_model_size(m, "feed_forward_length", 0);
    m->context    = ref_model_size(m, "context_length", 0);
    m->vocab      = ref_model_size(m, "vocab_size", (double)m->n_pieces);
    m->epsilon    = ref_model_number(m, "attention.layer_norm_rms_epsilon", 1e-5);
    m->freq_base  = ref_model_number(m, "rope.freq_base", 10000);
    if (m->bad || m->dim == 0 || m->n_heads == 0 || m->n_kv_heads == 0 || m->vocab == 0 || m->dim % m->n_heads ||
        m->n_heads % m->n_kv_heads || m->n_blocks > 65536) {
        m->bad = 1;
        return;
    }
    m->head  = m->dim / m->n_heads;
    m->n_rot = ref_model_size(m, "rope.dimension_count", (double)m->head);
    if (m->n_rot > m->head || m->n_rot % 2) m->bad = 1;
}

static void ref_load_weights(ref_model *m) {
    size_t i;
    m->embedding   = ref_required(m, "token_embd.weight", m->dim, m->vocab);
    m->output_norm = ref_required(m, "output_norm.weight", m->dim, 0);
    m->output      = ref_optional(m, "output.weight", m->dim, m->vocab);
    if (!m->output) m->output = m->embedding;
    m->blocks = (ref_block_weights *)ref_alloc_zero(m->n_blocks, sizeof *m->blocks);
    for (i = 0; i < m->n_blocks && !m->bad; i++) ref_load_block(m, i);
    ref_load_lookups(m);
}

/* ---- loading a tokenizer ---- */

static int ref_compare_text(const ref_piece *a, const ref_piece *b) {
    size_t n = a->length < b->length ? a->length : b->length;
    int    c = n ? memcmp(a->text, b->text, n) : 0;
    return c ? c : (a->length > b->length) - (a->length < b->length);
}

static int ref_compare_piece(const void *pa, const void *pb) {
    const ref_piece *a = (const ref_piece *)pa, *b = (const ref_piece *)pb;
    int              c = ref_compare_text(a, b);
    return c ? c : (a->id > b->id) - (a->id < b->id);
}

/* The byte of "<0xAB>", or -1. */
static int ref_byte_of(const char *text) {
    unsigned byte;
    char     end;
    if (strlen(text) == 6 && sscanf(text, "<0x%2x%c", &byte, &end) == 2 && end == '>') return (int)byte;
    return -1;
}

static int ref_guess_type(const ref_model *m, const ref_piece *p) {
    if (p->id == m->unk) return REF_UNKNOWN;
    if (p->id == m->bos || p->id == m->eos) return REF_CONTROL;
    return ref_byte_of(p->text) >= 0 ? REF_BYTE : 1;
}

/* May text become this piece? */
static int ref_is_text(const ref_piece *p) {
    return p->type != REF_UNKNOWN && p->type != REF_CONTROL && p->type != REF_BYTE;
}

static void ref_load_piece(ref_model *m, size_t i) {
    ref_piece *p = &m->pieces[i];
    int        byte;
    p->id    = (int32_t)i;
    p->text  = ref_string(m->file, "tokenizer.ggml.tokens", i, &p->length);
    p->score = ref_number(m->file, "tokenizer.ggml.scores", i, 0);
    p->type  = (int)ref_number(m->file, "tokenizer.ggml.token_type", i, (double)ref_guess_type(m, p));
    byte     = ref_byte_of(p->text);
    if (p->type == REF_BYTE && byte >= 0 && m->byte_ids[byte] < 0) m->byte_ids[byte] = p->id;
    if (ref_is_text(p)) m->by_text[m->n_by_text++] = *p;
}

static int32_t ref_token_key(const ref_model *m, const char *key, double otherwise) {
    double id = ref_number(m->file, key, 0, otherwise);
    return id >= 0 && id < (double)m->n_pieces ? (int32_t)id : -1;
}

static void ref_load_pieces(ref_model *m) {
    size_t i;
    m->n_pieces     = ref_key_type(m->file, "tokenizer.ggml.tokens") == REF_STRING
                          ? ref_key_count(m->file, "tokenizer.ggml.tokens")
                          : 0;
    m->bos          = ref_token_key(m, "tokenizer.ggml.bos_token_id", 1);
    m->eos          = ref_token_key(m, "tokenizer.ggml.eos_token_id", 2);
    m->unk          = ref_token_key(m, "tokenizer.ggml.unknown_token_id", 0);
    m->space_prefix = ref_number(m->file, "tokenizer.ggml.add_space_prefix", 0, 1) != 0;
    m->pieces       = (ref_piece *)ref_alloc_zero(m->n_pieces, sizeof *m->pieces);
    m->by_text      = (ref_piece *)ref_alloc_zero(m->n_pieces, sizeof *m->by_text);
    for (i = 0; i < 256; i++) m->byte_ids[i] = -1;
    for (i = 0; i < m->n_pieces; i++) ref_load_piece(m, i);
    qsort(m->by_text, m->n_by_text, sizeof *m->by_text, ref_compare_piece);
}

/* ---- the model's life and facts ---- */

ref_model *ref_load_tokenizer(const void *data, size_t n) {
    ref_gguf  *file = ref_gguf_open(data, n);
    ref_model *m;
    if (!file) return NULL;
    m       = (ref_model *)ref_alloc_zero(1, sizeof *m);
    m->file = file;
    ref_load_pieces(m);
    return m;
}

ref_model *ref_load(const void *data, size_t n) {
    ref_model *m = ref_load_tokenizer(data, n);
    if (!m) return NULL;
    m->arch = ref_string(m->file, "general.architecture", 0, NULL);
    if (!m->arch || (strcmp(m->arch, "l3") != 0 && strcmp(m->arch, "llama") != 0)) m->bad = 1;
    if (!m->bad) ref_load_sizes(m);
    if (!m->bad) ref_load_weights(m);
    if (!m->bad) return m;
    ref_free(m);
    return NULL;
}

void ref_free(ref_model *m) {
    size_t i;
    if (!m) return;
    for (i = 0; i < m->n_owned; i++) free(m->owned[i]);
    free(m->owned);
    free(m->blocks);
    free(m->pieces);
    free(m->by_text);
    ref_gguf_close(m->file);
    free(m);
}

const ref_gguf *ref_file(const ref_model *m) { return m->file; }
uint32_t        ref_vocab(const ref_model *m) { return (uint32_t)m->vocab; }
uint32_t        ref_dim(const ref_model *m) { return (uint32_t)m->dim; }
uint32_t        ref_block_count(const ref_model *m) { return (uint32_t)m->n_blocks; }
uint32_t        ref_context(const ref_model *m) { return (uint32_t)m->context; }
int32_t         ref_bos(const ref_model *m) { return m->bos; }
int32_t         ref_eos(const ref_model *m) { return m->eos; }

int ref_has_lookup(const ref_model *m, uint32_t block) { return m->blocks[block].has_lookup; }

const ref_lookup_layer *ref_layer(const ref_model *m, uint32_t block) {
    return m->blocks[block].has_lookup ? &m->blocks[block].lookup : NULL;
}

uint32_t ref_row_count(const ref_model *m, uint32_t block, int32_t token) {
    const double *offsets = m->blocks[block].offsets + token;
    return (uint32_t)(offsets[1] - offsets[0]);
}

const double *ref_rows(const ref_model *m, uint32_t block, int32_t token) {
    const ref_block_weights *b = &m->blocks[block];
    return b->rows + (size_t)b->offsets[token] * b->row_length;
}

/* ---- forward pass ---- */

struct ref_session {
    const ref_model *m;
    size_t           n;      /* tokens so far */
    double         **k, **v; /* per block: (n, n_kv_heads * head) */
};

ref_session *ref_start(const ref_model *m) {
    ref_session *s = (ref_session *)ref_alloc_zero(1, sizeof *s);
    s->m           = m;
    s->k           = (double **)ref_alloc_zero(m->n_blocks, sizeof *s->k);
    s->v           = (double **)ref_alloc_zero(m->n_blocks, sizeof *s->v);
    return s;
}

void ref_end(ref_session *s) {
    size_t i;
    if (!s) return;
    for (i = 0; i < s->m->n_blocks; i++) {
        free(s->k[i]);
        free(s->v[i]);
    }
    free(s->k);
    free(s->v);
    free(s);
}

/* Adjacent pairs (2i, 2i + 1) of the first n_rot elements turn by position * base^(-2i / n_rot). */
static void ref_rope(double *head, size_t n_rot, double base, size_t position) {
    size_t i;
    for (i = 0; i < n_rot; i += 2) {
        double angle = (double)position * pow(base, -(double)i / (double)n_rot);
        double re = head[i], im = head[i + 1];
        head[i]     = re * cos(angle) - im * sin(angle);
        head[i + 1] = re * sin(angle) + im * cos(angle);
    }
}

static void ref_rope_heads(const ref_model *m, double *x, size_t n_heads, size_t position) {
    size_t h;
    for (h = 0; h < n_heads; h++) ref_rope(x + h * m->head, m->n_rot, m->freq_base, position);
}

/* One query head over positions 0 .. n - 1; keys and values (n, stride). */
static void ref_attend(const double *q, const double *k, const double *v, size_t n, size_t stride, size_t head,
                       double *out) {
    double *w = ref_doubles(n);
    size_t  t, i;
    for (t = 0; t < n; t++) w[t] = ref_dot(q, k + t * stride, head) / sqrt((double)head);
    ref_softmax(w, n);
    for (i = 0; i < head; i++) out[i] = 0;
    for (t = 0; t < n; t++) {
        for (i = 0; i < head; i++) out[i] += w[t] * v[t * stride + i];
    }
    free(w);
}

/* Room for the next position of a cache; returns that position's row. */
static double *ref_grow(double **cache, size_t n, size_t stride) {
    *cache = (double *)realloc(*cache, (n + 1) * stride * sizeof **cache);
    if (!*cache) abort();
    return *cache + n * stride;
}

static void ref_attention(ref_session *s, size_t block, double *x) {
    const ref_model         *m = s->m;
    const ref_block_weights *b = &m->blocks[block];
    size_t                   d = m->dim, stride = m->n_kv_heads * m->head, group = m->n_heads / m->n_kv_heads, h, i;
    double                  *norm = ref_doubles(d), *q = ref_doubles(d), *mixed = ref_doubles(d);
    double                  *k = ref_grow(&s->k[block], s->n, stride), *v = ref_grow(&s->v[block], s->n, stride);
    ref_rms_norm(x, b->attn_norm, d, m->epsilon, norm);
    ref_matvec(b->q, norm, d, d, q);
    ref_matvec(b->k, norm, stride, d, k);
    ref_matvec(b->v, norm, stride, d, v);
    ref_rope_heads(m, q, m->n_heads, s->n);
    ref_rope_heads(m, k, m->n_kv_heads, s->n);
    for (h = 0; h < m->n_heads; h++) {
        size_t kv = h / group * m->head;
        ref_attend(q + h * m->head, s->k[block] + kv, s->v[block] + kv, s->n + 1, stride, m->head, mixed + h * m->head);
    }
    ref_matvec(b->o, mixed, d, d, norm);
    for (i = 0; i < d; i++) x[i] += norm[i];
    free(norm);
    free(q);
    free(mixed);
}

/* SwiGLU */
static void ref_feed_forward(const ref_model *m, const ref_block_weights *b, double *x) {
    double *norm = ref_doubles(m->dim), *gate = ref_doubles(m->ffn), *up = ref_doubles(m->ffn);
    size_t  i;
    ref_rms_norm(x, b->ffn_norm, m->dim, m->epsilon, norm);
    ref_matvec(b->gate, norm, m->ffn, m->dim, gate);
    ref_matvec(b->up, norm, m->ffn, m->dim, up);
    for (i = 0; i < m->ffn; i++) up[i] *= gate[i] / (1.0 + exp(-gate[i]));
    ref_matvec(b->down, up, m->dim, m->ffn, norm);
    for (i = 0; i < m->dim; i++) x[i] += norm[i];
    free(norm);
    free(gate);
    free(up);
}

void ref_step(ref_session *s, int32_t id, double *logits) {
    const ref_model *m = s->m;
    double          *x = ref_doubles(m->dim);
    uint32_t         i;
    memcpy(x, m->embedding + (size_t)id * m->dim, m->dim * sizeof *x);
    for (i = 0; i < m->n_blocks; i++) {
        ref_attention(s, i, x);
        ref_feed_forward(m, &m->blocks[i], x);
        if (m->blocks[i].has_lookup) {
            ref_lookup(&m->blocks[i].lookup, ref_rows(m, i, id), ref_row_count(m, i, id), x, x);
        }
    }
    s->n++;
    ref_rms_norm(x, m->output_norm, m->dim, m->epsilon, x);
    if (logits) ref_matvec(m->output, x, m->vocab, m->dim, logits);
    free(x);
}

void ref_logits(const ref_model *m, const int32_t *ids, size_t n, double *out) {
    ref_session *s = ref_start(m);
    size_t       i;
    for (i = 0; i < n; i++) ref_step(s, ids[i], out + i * m->vocab);
    ref_end(s);
}

int32_t ref_argmax(const double *logits, uint32_t vocab) {
    uint32_t best = 0, i;
    for (i = 1; i < vocab; i++) best = logits[i] > logits[best] ? i : best;
    return (int32_t)best;
}

/* ---- perplexity ---- */

static double ref_log_probability(const double *logits, size_t vocab, int32_t id) {
    double top = logits[0], sum = 0;
    size_t i;
    for (i = 1; i < vocab; i++) top = logits[i] > top ? logits[i] : top;
    for (i = 0; i < vocab; i++) sum += exp(logits[i] - top);
    return logits[id] - top - log(sum);
}

/* The sum of log probabilities of ids after BOS. */
static double ref_window(const ref_model *m, const int32_t *ids, size_t n) {
    ref_session *s      = ref_start(m);
    double      *logits = ref_doubles(m->vocab), sum = 0;
    size_t       i;
    for (i = 0; i < n; i++) {
        ref_step(s, i ? ids[i - 1] : m->bos, logits);
        sum += ref_log_probability(logits, m->vocab, ids[i]);
    }
    free(logits);
    ref_end(s);
    return sum;
}

double ref_perplexity(const ref_model *m, const int32_t *ids, size_t n, size_t window, size_t *predicted) {
    double sum = 0;
    size_t i, step = window - 1;
    if (predicted) *predicted = n;
    if (window < 2 || window > m->context || m->bos < 0 || n == 0) return NAN;
    for (i = 0; i < n; i += step) sum += ref_window(m, ids + i, n - i < step ? n - i : step);
    return exp(-sum / (double)n);
}

/* ---- tokenizer ---- */

/* U+2581 in UTF-8 stands for a space. */
static int ref_is_space_mark(const unsigned char *p, size_t n) {
    return n >= 3 && p[0] == 0xE2 && p[1] == 0x96 && p[2] == 0x81;
}

/* Bytes of the valid UTF-8 character at p (RFC 3629), 0 when it is none. */
static size_t ref_utf8(const unsigned char *p, size_t n) {
    static const unsigned char first[5] = {0, 0x00, 0xC2, 0xE0, 0xF0};
    static const unsigned char last[5]  = {0, 0x7F, 0xDF, 0xEF, 0xF4};
    unsigned long              c;
    size_t                     len = 4, i;
    while (len && (p[0] < first[len] || p[0] > last[len])) len--;
    if (len < 2 || len > n) return len > n ? 0 : len;
    c = p[0] & (0x7Fu >> len);
    for (i = 1; i < len; i++) {
        if ((p[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (p[i] & 0x3Fu);
    }
    if (len == 3 && (c < 0x800 || (c >= 0xD800 && c < 0xE000))) return 0;
    if (len == 4 && (c < 0x10000 || c > 0x10FFFF)) return 0;
    return len;
}

typedef struct ref_symbol {
    const char      *text;
    size_t           length;
    int              frozen; /* user-defined pieces and invalid bytes merge with nothing */
    const ref_piece *pair;   /* the piece that this and the next symbol make, or NULL */
} ref_symbol;

static const ref_piece *ref_find_piece(const ref_model *m, const char *text, size_t length) {
    ref_piece want;
    size_t    low = 0, high = m->n_by_text;
    memset(&want, 0, sizeof want);
    want.text   = text;
    want.length = length;
    while (low < high) { /* the first that is not less */
        size_t mid = (low + high) / 2;
        if (ref_compare_text(&m->by_text[mid], &want) < 0) low = mid + 1;
        else high = mid;
    }
    if (low < m->n_by_text && ref_compare_text(&m->by_text[low], &want) == 0) return &m->by_text[low];
    return NULL;
}

/* Spaces marked, the dummy one in front. */
static char *ref_mark_spaces(const ref_model *m, const char *text, size_t n, size_t *out_n) {
    char  *out = (char *)ref_alloc_zero(3 * (n + 1), 1);
    size_t len = 0, i;
    for (i = 0; i < n + 1; i++) {
        int  dummy = i == 0;
        char c     = dummy ? ' ' : text[i - 1];
        if (dummy && !m->space_prefix) continue;
        if (c == ' ') {
            memcpy(out + len, "\xE2\x96\x81", 3);
            len += 3;
        } else {
            out[len++] = c;
        }
    }
    *out_n = len;
    return out;
}

/* The longest user-defined piece that the text begins with, 0 for none. */
static size_t ref_user_defined(const ref_model *m, const char *text, size_t n) {
    size_t best = 0, i;
    for (i = 0; i < m->n_pieces; i++) {
        const ref_piece *p = &m->pieces[i];
        if (p->type != REF_USER || p->length > n || memcmp(p->text, text, p->length) != 0) continue;
        if (p->length > best) best = p->length;
    }
    return best;
}

static size_t ref_split(const ref_model *m, const char *text, size_t n, ref_symbol *out) {
    size_t at = 0, count = 0;
    while (at < n) {
        ref_symbol *s         = &out[count++];
        size_t      user      = ref_user_defined(m, text + at, n - at);
        size_t      character = ref_utf8((const unsigned char *)text + at, n - at);
        s->text               = text + at;
        s->length             = user ? user : character ? character : 1;
        s->frozen             = user || !character;
        at += s->length;
    }
    return count;
}

static void ref_pair(const ref_model *m, ref_symbol *s, size_t i, size_t n) {
    s[i].pair = NULL;
    if (i + 1 < n && !s[i].frozen && !s[i + 1].frozen) {
        s[i].pair = ref_find_piece(m, s[i].text, s[i].length + s[i + 1].length);
    }
}

/* The pair with the highest score, the leftmost of equals, becomes one symbol; 0 when no pair is a piece. */
static int ref_merge_best(const ref_model *m, ref_symbol *s, size_t *n) {
    size_t best = *n, i;
    for (i = 0; i + 1 < *n; i++) {
        if (s[i].pair && (best == *n || s[i].pair->score > s[best].pair->score)) best = i;
    }
    if (best == *n) return 0;
    s[best].length += s[best + 1].length;
    memmove(s + best + 1, s + best + 2, (*n - best - 2) * sizeof *s);
    --*n;
    ref_pair(m, s, best, *n);
    if (best) ref_pair(m, s, best - 1, *n);
    return 1;
}

static size_t ref_emit(const ref_model *m, const ref_symbol *s, int32_t *out) {
    const ref_piece *p     = ref_find_piece(m, s->text, s->length);
    size_t           count = 0, i;
    if (p) {
        out[0] = p->id;
        return 1;
    }
    for (i = 0; i < s->length; i++) {
        int32_t id = m->byte_ids[(unsigned char)s->text[i]];
        if (id < 0) id = m->unk;
        if (id >= 0) out[count++] = id;
    }
    return count;
}

size_t ref_encode(const ref_model *m, const char *text, size_t n, int32_t *out) {
    size_t      marked_n, n_symbols, count = 0, i;
    char       *marked;
    ref_symbol *s;
    if (n == 0) return 0;
    marked    = ref_mark_spaces(m, text, n, &marked_n);
    s         = (ref_symbol *)ref_alloc_zero(marked_n, sizeof *s);
    n_symbols = ref_split(m, marked, marked_n, s);
    for (i = 0; i < n_symbols; i++) ref_pair(m, s, i, n_symbols);
    while (ref_merge_best(m, s, &n_symbols)) {
    }
    for (i = 0; i < n_symbols; i++) count += ref_emit(m, &s[i], out + count);
    free(s);
    free(marked);
    return count;
}

typedef struct ref_text {
    char  *out;
    size_t cap, n;
} ref_text;

static void ref_put(ref_text *t, char c) {
    if (t->n < t->cap) t->out[t->n] = c;
    t->n++;
}

static void ref_put_piece(ref_text *t, const ref_piece *p, int drop_space) {
    const unsigned char *text = (const unsigned char *)p->text;
    size_t               i    = 0;
    while (i < p->length) {
        int space = ref_is_space_mark(text + i, p->length - i);
        if (!(space && i == 0 && drop_space)) ref_put(t, space ? ' ' : p->text[i]);
        i += space ? 3 : 1;
    }
}

size_t ref_decode(const ref_model *m, const int32_t *ids, size_t n, char *out, size_t cap) {
    ref_text t;
    int      first = 1; /* no piece since the start or BOS */
    size_t   i;
    t.out = out;
    t.cap = cap;
    t.n   = 0;
    for (i = 0; i < n; i++) {
        const ref_piece *p = &m->pieces[ids[i]];
        if (ids[i] < 0 || (size_t)ids[i] >= m->n_pieces) continue;
        if (ids[i] == m->bos) first = 1;
        if (p->type == REF_CONTROL || p->type == REF_UNKNOWN) continue;
        if (p->type == REF_BYTE) ref_put(&t, (char)(unsigned char)ref_byte_of(p->text));
        else ref_put_piece(&t, p, first && m->space_prefix);
        first = 0;
    }
    return t.n;
}

/* ---- allocation ---- */

typedef struct ref_word {
    const int32_t *tokens;
    size_t         length;
    uint64_t       count;
    size_t         order; /* of insertion */
} ref_word;

/* Python's dict: codewords in order of insertion, and a hash table of 1 + index into them. */
typedef struct ref_dict {
    ref_word *words;
    size_t    n, cap;
    size_t   *table;
    size_t    slots; /* a power of two */
} ref_dict;

/* FNV-1a over the tokens, then mixed */
static uint64_t ref_hash(const int32_t *tokens, size_t n) {
    uint64_t h = 0xCBF29CE484222325u;
    size_t   i;
    for (i = 0; i < n; i++) h = (h ^ (uint32_t)tokens[i]) * 0x100000001B3u;
    return h ^ h >> 29;
}

/* The slot of a codeword, or the empty slot where it belongs. */
static size_t *ref_slot(const ref_dict *d, const int32_t *tokens, size_t n) {
    size_t at = (size_t)ref_hash(tokens, n) & (d->slots - 1);
    while (d->table[at]) {
        const ref_word *w = &d->words[d->table[at] - 1];
        if (w->length == n && memcmp(w->tokens, tokens, n * sizeof *tokens) == 0) break;
        at = (at + 1) & (d->slots - 1);
    }
    return &d->table[at];
}

static ref_word *ref_get(const ref_dict *d, const int32_t *tokens, size_t n) {
    size_t slot = *ref_slot(d, tokens, n);
    return slot ? &d->words[slot - 1] : NULL;
}

static void ref_dict_grow(ref_dict *d) {
    size_t i;
    d->cap   = d->cap ? 2 * d->cap : 1024;
    d->words = (ref_word *)realloc(d->words, d->cap * sizeof *d->words);
    if (!d->words) abort();
    free(d->table);
    d->slots = 4 * d->cap;
    d->table = (size_t *)ref_alloc_zero(d->slots, sizeof *d->table);
    for (i = 0; i < d->n; i++) *ref_slot(d, d->words[i].tokens, d->words[i].length) = i + 1;
}

/* dictionary[tokens] = count; a known codeword keeps its place. */
static void ref_set(ref_dict *d, const int32_t *tokens, size_t n, uint64_t count) {
    ref_word *w = ref_get(d, tokens, n);
    if (!w) {
        if (d->n == d->cap) ref_dict_grow(d);
        w                       = &d->words[d->n];
        w->tokens               = tokens;
        w->length               = n;
        w->order                = d->n++;
        *ref_slot(d, tokens, n) = d->n;
    }
    w->count = count;
}

static void ref_parse(ref_dict *d, const int32_t *toks, size_t n) {
    size_t last = 0, cur = 1;
    while (cur < n) {
        while (cur < n && ref_get(d, toks + last, cur - last)) cur += 1;
        ref_get(d, toks + last, cur - 1 - last)->count += 1;
        ref_set(d, toks + last, cur - last, 1);
        last = cur;
        cur += 1;
    }
}

static int ref_compare_words(const void *pa, const void *pb) {
    const ref_word *a = (const ref_word *)pa, *b = (const ref_word *)pb;
    if (a->count != b->count) return a->count < b->count ? 1 : -1;
    return (a->order > b->order) - (a->order < b->order);
}

/* Every token by falling number of occurrences, ties by ID. */
static ref_word *ref_frequencies(const int32_t *const *docs, const size_t *lengths, size_t n_docs, uint32_t vocab) {
    ref_word *w = (ref_word *)ref_alloc_zero(vocab, sizeof *w);
    size_t    i, j;
    for (i = 0; i < vocab; i++) w[i].order = i;
    for (i = 0; i < n_docs; i++) {
        for (j = 0; j < lengths[i]; j++) w[docs[i][j]].count++;
    }
    qsort(w, vocab, sizeof *w, ref_compare_words);
    return w;
}

static uint64_t ref_fallback(const ref_word *by_frequency, uint32_t vocab, uint64_t rows, uint32_t max,
                             uint32_t *counts, uint64_t placed) {
    uint64_t before;
    do {
        uint32_t i;
        before = placed;
        for (i = 0; i < vocab && placed < rows; i++) {
            uint32_t *c = &counts[by_frequency[i].order];
            if (max == 0 || *c < max) {
                ++*c;
                placed++;
            }
        }
    } while (placed != before);
    return placed;
}

static uint64_t ref_place(ref_dict *d, uint32_t vocab, uint64_t rows, uint32_t max, uint32_t *counts) {
    uint64_t placed = vocab;
    size_t   i;
    qsort(d->words, d->n, sizeof *d->words, ref_compare_words);
    for (i = 0; i < vocab; i++) counts[i] = 1;
    for (i = 0; i < d->n && placed < rows; i++) {
        uint32_t *c = &counts[d->words[i].tokens[d->words[i].length - 1]];
        if (max == 0 || *c < max) {
            ++*c;
            placed++;
        }
    }
    return placed;
}

uint64_t ref_alloc(const int32_t *const *docs, const size_t *lengths, size_t n_docs, uint32_t vocab, uint64_t rows,
                   uint32_t max, uint32_t *counts, uint64_t *placed_by_fallback) {
    int32_t  *single       = (int32_t *)ref_alloc_zero(vocab, sizeof *single);
    ref_word *by_frequency = ref_frequencies(docs, lengths, n_docs, vocab);
    ref_dict  d;
    uint64_t  by_words, placed;
    size_t    i;
    memset(&d, 0, sizeof d);
    ref_dict_grow(&d);
    for (i = 0; i < vocab; i++) {
        single[i] = (int32_t)i;
        ref_set(&d, &single[i], 1, 0);
    }
    for (i = 0; i < n_docs; i++) ref_parse(&d, docs[i], lengths[i]);
    by_words = ref_place(&d, vocab, rows, max, counts);
    placed   = ref_fallback(by_frequency, vocab, rows, max, counts, by_words);
    if (placed_by_fallback) *placed_by_fallback = placed - by_words;
    free(by_frequency);
    free(d.table);
    free(d.words);
    free(single);
    return rows < vocab ? 0 : placed;
}
