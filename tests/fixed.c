/* fixed.c - L3_FAST in whole numbers (section >>fixed of l3.h), on whatever it is built for, with or without an operating system:
 * products have the bits that their definition gives, so they are the same on every machine of this kind; values of a tile, rows
 * too long or scaled too large, and activations that are no numbers; a model's logits near those of exact mode, and the same
 * for every batch and window. Prints what failed and a checksum of the logits; exits with 0 if nothing did.
 *
 * With -DTOKENS=N it decodes N tokens and nothing else, for those who count instructions; -DMODE=L3_EXACT, -DKV=L3_F32.
 *
 * tests/cross.sh builds it, with tests/model_object.S for the model's bytes. */
#define L3_NO_STDIO
#define L3_NO_ALLOCATOR
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include <math.h>
#include <stdio.h>

#ifndef MODE
#define MODE L3_FAST
#endif
#ifndef KV
#define KV L3_Q8_0
#endif

extern const unsigned char model_start[], model_end[];

typedef union memory {
    unsigned char bytes[320 * 1024];
    uint64_t      aligned;
} memory;
static memory model_memory, session_memory;

static int checks, failed;

static bool check(bool ok, const char *what, uint32_t at) {
    checks++;
    if (!ok && failed++ < 20) printf("FAILED: %s, %u\n", what, (unsigned)at);
    return ok;
}

/* ---- a model ---- */

static l3_model *model_of(const l3_source *source) {
    l3_error       err;
    l3_model      *model = NULL;
    size_t         size  = 0;
    unsigned char *at    = model_memory.bytes + (L3_ALIGN - (uintptr_t)model_memory.bytes % L3_ALIGN) % L3_ALIGN;
    check(l3_model_size(source, NULL, &size, &err) == L3_OK && size + L3_ALIGN <= sizeof model_memory &&
              l3_model_open(&model, source, NULL, at, size, &err) == L3_OK,
          "open", (uint32_t)size);
    return model;
}

static l3_session *session_of(const l3_model *model, l3_mode mode, uint32_t batch, size_t window) {
    l3_session_config c;
    l3_error          err;
    l3_session       *s  = NULL;
    unsigned char    *at = session_memory.bytes + (L3_ALIGN - (uintptr_t)session_memory.bytes % L3_ALIGN) % L3_ALIGN;
    memset(&c, 0, sizeof c);
    c.context = 128, c.kv_type = KV, c.work.mode = mode, c.work.batch = batch, c.work.window = window;
    const size_t size = l3_session_size(model, &c);
    check(size > 0 && size + L3_ALIGN <= sizeof session_memory &&
              l3_session_init(&s, model, &c, at, size, &err) == L3_OK,
          "session", (uint32_t)size);
    return s;
}

static int32_t best_of(const float *logits, uint32_t vocab) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

#ifdef TOKENS
int main(void) {
    const l3_source source = l3_source_memory(model_start, (size_t)(model_end - model_start));
    l3_model       *model  = model_of(&source);
    l3_session     *s      = model ? session_of(model, MODE, 1, 0) : NULL;
    int32_t         token  = 1;
    int (*volatile decode)(l3_session *, int32_t, l3_error *) = l3_decode; /* a call that can be seen, not inlined */
    for (int i = 0; s && i < TOKENS && decode(s, token, NULL) == L3_OK; i++)
        token = best_of(l3_logits(s), l3_model_info(model)->vocab);
    printf("level %s, last token %d\n", s ? l3_level_name(l3_session_level(s)) : "", (int)token);
    return failed;
}
#else

#if !defined(L3__FIXED)
#error "no products in whole numbers here: -DL3_NO_SIMD -DL3__FIXED=L3_LEVEL_PLAIN gives those of plain C"
#endif

/* ---- products ---- */

static uint32_t seed = 1;

/* An even number below n (Lehmer's generator, Park and Miller's constants). */
static uint32_t below(uint32_t n) {
    seed = (uint32_t)((uint64_t)seed * 48271 % 2147483647);
    return seed % n;
}
static float any_float(void) { return ((float)below(200001) / 100000.0f - 1) * (below(9) ? 1.0f : 20.0f); }

enum { ROWS = 3, POSITIONS = 2, COLS = 8448 };

typedef struct product {
    int           type;
    uint32_t      cols;
    size_t        row_bytes;
    unsigned char w[ROWS * (COLS / 32 * 34) + 1]; /* rows begin at an odd address */
    float         x[POSITIONS * COLS], y[POSITIONS * ROWS];
} product;

static product            p;
static l3__fixed_block    packed[POSITIONS * COLS / 32];
static const l3__kernels *kernels;
static const int          types[3] = {L3_Q8_0, L3_Q4_0, L3_Q6_K};

static unsigned char *row_of(uint32_t r) { return p.w + 1 + r * p.row_bytes; }

/* Random bytes, but scales from 2^-9 to 2^-7, of either sign. */
static void product_make(int type, uint32_t cols) {
    const uint32_t block = type == L3_Q8_0 ? 34 : type == L3_Q4_0 ? 18 : 210;
    p.type = type, p.cols = cols, p.row_bytes = (size_t)l3_row_bytes(type, cols);
    for (size_t i = 0; i < ROWS * p.row_bytes; i++) p.w[1 + i] = (unsigned char)below(256);
    for (size_t i = 0; i < ROWS * p.row_bytes; i += block)
        l3__put_le16(p.w + 1 + i + (type == L3_Q6_K ? 208 : 0), 0x1800 + below(0x800) + below(2) * 0x8000);
    for (uint32_t i = 0; i < POSITIONS * cols; i++) p.x[i] = any_float();
}

static void multiply(void) {
    const l3__fast *f     = kernels->decode[l3__type_index(p.type)];
    void           *bytes = packed;
    f->pack(p.type, p.x, p.cols, POSITIONS, p.cols, (unsigned char *)bytes);
    f->rows(p.type, row_of(0), p.row_bytes, ROWS, p.cols, (const unsigned char *)bytes, POSITIONS, p.y, ROWS);
}

/* Block b of a row: 32 numbers that are whole when divided by the scale, and the scale as a half. */
static uint32_t block_of(const unsigned char *row, uint32_t b, int32_t *w) {
    float          v[32];
    const unsigned at   = p.type == L3_Q8_0 ? b * 34 : p.type == L3_Q4_0 ? b * 18 : b / 8 * 210 + 208;
    const uint32_t half = l3__le16(row + at);
    l3_unpack(p.type, row, b * 32, 32, v);
    for (int i = 0; i < 32; i++) w[i] = (int32_t)(v[i] / l3__from_f16(half)); /* both exact */
    return half;
}

static void whole_products(void) {
    for (uint32_t n = 0; n < 30; n++) {
        const int type = types[n % 3];
        product_make(type, type == L3_Q6_K ? 256 + below(3) * 256 : 32 + below(20) * 32);
        multiply();
        for (uint32_t i = 0; i < POSITIONS * ROWS; i++) {
            const l3__fixed_block *x     = packed + i / ROWS * (p.cols / 32);
            const float            unit  = x->unit;
            int64_t                total = 0;
            for (uint32_t b = 0; b < p.cols / 32; b++, x++) {
                int32_t        w[32];
                const uint32_t half  = block_of(row_of(i % ROWS), b, w);
                const int32_t  scale = (int32_t)(l3__from_f16(half) * 16777216.0f);
                for (uint32_t k = 0; k < 32; k++) total += (int64_t)w[k] * x->q[l3__fixed_at(k)] * scale;
            }
            const float want = l3__fixed_float(total) * unit;
            check(memcmp(&p.y[i], &want, sizeof want) == 0, "a product", n);
        }
    }
}

/* How far a product may be from that of the activations as they were: half a step each. */
static void near_products(uint32_t n) {
    for (uint32_t i = 0; i < POSITIONS * ROWS; i++) {
        const float *x    = p.x + i / ROWS * p.cols;
        double       want = 0, size = 0, weights = 0, peak = 0;
        for (uint32_t c = 0; c < p.cols; c++) {
            float w[32];
            if (c % 32 == 0) l3_unpack(p.type, row_of(i % ROWS), c, 32, w);
            want += (double)w[c % 32] * (double)x[c];
            size += fabs((double)w[c % 32] * (double)x[c]);
            weights += fabs((double)w[c % 32]);
            if (fabs((double)x[c]) > peak) peak = fabs((double)x[c]);
        }
        const double step = peak / (p.type == L3_Q6_K ? 16383 : 32767);
        check(fabs((double)p.y[i] - want) <= weights * step * 0.5001 + size * 1e-5, "near the exact product", n);
    }
}

static void near_all(void) {
    for (uint32_t n = 0; n < 12; n++) {
        product_make(types[n % 3], 256 + below(2) * 256);
        if (n >= 6) /* a scale from 1 to 2: beyond sums of whole numbers */
            for (uint32_t r = 0; r < ROWS; r++)
                l3__put_le16(row_of(r) + (p.type == L3_Q8_0   ? 34 * below(8)
                                          : p.type == L3_Q4_0 ? 18 * below(8)
                                                              : 208),
                             0x3c00 + below(1024));
        multiply();
        near_products(n);
    }
    product_make(L3_Q6_K, COLS); /* too long for them */
    multiply();
    near_products(COLS);
}

static void no_numbers(void) {
    for (uint32_t n = 0; n < 9; n++) {
        product_make(types[n % 3], 256);
        p.x[below(256)] = l3__as_float(n < 3 ? 0x7fc00000u : n < 6 ? 0x7f800000u : 0xff800000u);
        multiply();
        for (uint32_t i = 0; i < POSITIONS * ROWS; i++)
            check((isfinite(p.y[i]) != 0) == (i >= ROWS), "what is no number stays none, with its position", n);
    }
    product_make(L3_Q8_0, 64); /* zeros, and what is as good as zero */
    for (uint32_t c = 0; c < 64; c++) p.x[c] = 0, p.x[64 + c] = 1e-38f;
    multiply();
    for (uint32_t i = 0; i < POSITIONS * ROWS; i++) check(fabsf(p.y[i]) < 1e-30f, "zeros", i);
}

/* The values of a tile: each weight times its row's scale is rounded to a 32767th of the largest. */
static void values(void) {
    for (uint32_t n = 1; n <= L3__TILE; n++) {
        float w[L3__TILE], got[64];
        product_make(L3_Q8_0, n * 32); /* n rows of 64, in what are 3 rows */
        for (uint32_t t = 0; t < n; t++) w[t] = (float)below(1000) / 1000.0f;
        for (uint32_t c = 0; c < 64; c++) got[c] = p.x[c % 32];
        l3__fixed_weigh(row_of(0), 68, w, n, got, 64);
        for (uint32_t c = 0; c < 64; c++) {
            double want = (double)p.x[c % 32], size = fabs(want), step = 0;
            for (uint32_t t = 0; t < n; t++) {
                float        v[32];
                const double scale = fabs((double)l3__from_f16(l3__le16(row_of(0) + t * 68 + c / 32 * 34)));
                l3_unpack(L3_Q8_0, row_of(0) + t * 68, c / 32 * 32, 32, v);
                want += (double)w[t] * (double)v[c % 32];
                size += fabs((double)w[t] * (double)v[c % 32]);
                if ((double)w[t] * scale > step) step = (double)w[t] * scale;
            }
            check(fabs((double)got[c] - want) <= step / 32767 * 0.5001 * 128 * n + size * 1e-6, "a value", n);
        }
    }
}

/* ---- a model ---- */

enum { VOCAB = 768, TEXT = 40 };
static float logits[TEXT][VOCAB];

static int read_bytes(void *user, uint64_t off, void *dst, size_t n) {
    (void)user;
    memcpy(dst, model_start + off, n);
    return 0;
}

static void sessions(void) {
    l3_source   source = l3_source_memory(model_start, (size_t)(model_end - model_start));
    l3_model   *model  = model_of(&source);
    l3_session *s      = model ? session_of(model, L3_FAST, 1, 0) : NULL;
    int32_t     ids[TEXT + 1];
    double      difference = 0, size = 0;
    uint32_t    crc = 0;
    if (!s || !check(l3_model_info(model)->vocab == VOCAB, "vocabulary", 0)) return;
    check(l3_session_level(s) == L3__FIXED, "the level is the best", (uint32_t)l3_session_level(s));
    ids[0] = 1;
    for (uint32_t i = 0; i < TEXT; i++) {
        if (!check(l3_decode(s, ids[i], NULL) == L3_OK, "decode", i)) return;
        memcpy(logits[i], l3_logits(s), sizeof logits[i]);
        ids[i + 1] = best_of(logits[i], VOCAB);
        crc        = l3_crc32(crc, logits[i], sizeof logits[i]);
    }
    if ((s = session_of(model, L3_EXACT, 1, 0)) == NULL) return;
    for (uint32_t i = 0; i < TEXT; i++) {
        check(l3_decode(s, ids[i], NULL) == L3_OK, "decode", i);
        for (uint32_t v = 0; v < VOCAB; v++) {
            const double exact = (double)l3_logits(s)[v], d = (double)logits[i][v] - exact;
            difference += d * d, size += exact * exact;
        }
        check(best_of(l3_logits(s), VOCAB) == ids[i + 1], "the most likely token", i);
    }
    difference = sqrt(difference / size);
    check(difference > 0 && difference < 1e-3, "fast and exact logits, in millionths", (uint32_t)(difference * 1e6));
    source.map  = NULL; /* the same through a window, a batch of seven at a time */
    source.read = read_bytes;
    model       = model_of(&source);
    s           = model ? session_of(model, L3_FAST, 7, l3_session_window_min(model) + 100) : NULL;
    if (!s || !check(l3_prefill(s, ids, TEXT, NULL, NULL) == L3_OK, "prefill", 0)) return;
    check(memcmp(l3_logits(s), logits[TEXT - 1], sizeof logits[0]) == 0, "prefill and decode, read and mapped", 0);
    printf("%s: logits differ from exact mode's by %.2g of their size, crc %08x\n", l3_level_name(L3__FIXED),
           difference, (unsigned)crc);
}

int main(void) {
    kernels = l3__kernels_of(L3__FIXED);
    if (!check(kernels != NULL, "the level works", L3__FIXED)) return 1;
    whole_products();
    near_all();
    no_numbers();
    values();
    sessions();
    printf("fixed: %d checks, %d failed\n", checks, failed);
    return failed != 0;
}
#endif
