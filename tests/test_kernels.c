/* test_kernels.c - the kernels of every level that works here: those with a twin in plain C give its bits; the products of
 * L3_FAST stay within what rounding their activations allows, whatever neighbours they have; and sessions in fast mode give
 * the same bits over any plumbing, near those of exact mode. */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "jobs.h"
#include "make_model.h"
#include "model.h"

#ifndef FIRST_LEVEL
#define FIRST_LEVEL L3_LEVEL_PLAIN
#define SUITE       "kernels"
#endif

static const int32_t types[6] = {L3_F32, L3_F16, L3_BF16, L3_Q8_0, L3_Q4_0, L3_Q6_K};

/* ---- random matrices ---- */

typedef struct product {
    int32_t        type;
    uint32_t       rows, cols, n;
    size_t         row_bytes, xs;
    unsigned char *w;       /* (rows, row_bytes), at an odd address */
    double        *weights; /* (rows, cols) */
    float         *x;       /* (n, xs) */
} product;

static float any_float(test_rng *r) { return (float)(test_unit(r) * 2 - 1) * (test_below(r, 9) ? 1.0f : 20.0f); }

static product product_new(test_rng *r, int32_t type, uint32_t rows, uint32_t cols, uint32_t n) {
    product p   = {type, rows, cols, n, (size_t)l3_row_bytes(type, cols), cols + test_below(r, 5), NULL, NULL, NULL};
    float  *row = (float *)must(cols * sizeof *row);
    p.w         = (unsigned char *)must(rows * p.row_bytes + 1);
    p.weights   = (double *)must((size_t)rows * cols * sizeof *p.weights);
    p.x         = new_floats(n, p.xs);
    for (uint32_t i = 0; i < rows; i++) {
        unsigned char *to = p.w + 1 + i * p.row_bytes;
        if (type == L3_Q6_K) { /* there is no packing for it */
            for (size_t k = 0; k < p.row_bytes; k++) to[k] = (unsigned char)test_below(r, 256);
            for (uint32_t b = 0; b < cols / 256; b++) l3__put_le16(to + b * 210 + 208, 0x1c00 + test_below(r, 1024));
        } else {
            for (uint32_t k = 0; k < cols; k++) row[k] = any_float(r);
            l3_pack(type, row, cols, to);
            if (type == L3_Q8_0 && cols && test_below(r, 4) == 0)
                to[2 + test_below(r, 32)] = 0x80; /* -128 is allowed */
        }
        l3_unpack(type, to, 0, cols, row);
        for (uint32_t k = 0; k < cols; k++) p.weights[(size_t)i * cols + k] = row[k];
    }
    for (size_t i = 0; i < n * p.xs; i++) p.x[i] = any_float(r);
    free(row);
    return p;
}

static void product_free(product *p) {
    free(p->w);
    free(p->weights);
    free(p->x);
}

/* Every third has one position, of which types without blocks have some with rows of 8 and some with long rows. */
static product random_product(test_rng *r, int32_t type) {
    const uint32_t block = l3_type_block(type), one = test_below(r, 3) == 0, kind = test_below(r, 3);
    uint32_t       cols = block == 1 ? 1 + test_below(r, 300) : block * (1 + test_below(r, block == 32 ? 80 : 4));
    if (block == 1 && one && kind == 0) cols = 8;
    if (block == 1 && one && kind == 1) cols = 512 + test_below(r, 100);
    return product_new(r, type, 1 + test_below(r, 70), cols, one ? 1 : 1 + test_below(r, 50));
}

/* ---- the same bits as plain C ---- */

static void check_product(const l3__kernels *k, const product *p, size_t ys) {
    const int t    = l3__type_index(p->type);
    float    *want = new_floats(p->n, ys), *got = new_floats(p->n, ys);
    memset(want, 0, p->n * ys * sizeof *want);
    memset(got, 0, p->n * ys * sizeof *got);
    l3__plain_kernels.matmul[t](p->w + 1, p->row_bytes, p->rows, p->cols, p->x, p->xs, p->n, want, ys);
    k->matmul[t](p->w + 1, p->row_bytes, p->rows, p->cols, p->x, p->xs, p->n, got, ys);
    if (!CHECK_MEM(got, want, p->n * ys * sizeof *got))
        fprintf(stderr, "    %s, %s, %u x %u, %u positions\n", l3_level_name(k->level), l3_type_name(p->type),
                (unsigned)p->rows, (unsigned)p->cols, (unsigned)p->n);
    free(want);
    free(got);
}

TEST(products_with_float_activations) {
    test_rng r = {1};
    for (int level = FIRST_LEVEL; l3_level_name(level); level++) {
        const l3__kernels *k = l3__kernels_of(level);
        for (int i = 0; k && i < test_some(120); i++) {
            product p = random_product(&r, types[i % 6]);
            check_product(k, &p, p.rows + test_below(&r, 3));
            product_free(&p);
        }
    }
}

/* Keys of small heads; sums of zeros have a sign, too. */
TEST(products_with_short_rows) {
    test_rng r = {4};
    for (int level = FIRST_LEVEL; l3_level_name(level); level++) {
        const l3__kernels *k = l3__kernels_of(level);
        for (uint32_t i = 0; k && i < 300; i++) {
            product p = product_new(&r, types[i % 3], 1 + test_below(&r, 70), 1 + test_below(&r, i % 2 ? 20 : 8), 1);
            for (uint32_t c = 0; c < p.cols && i % 5 == 0; c++) p.x[c] = test_below(&r, 2) ? 0.0f : -0.0f;
            check_product(k, &p, p.rows);
            product_free(&p);
        }
    }
}

/* Numbers where elementary functions have their corners. */
static float odd_float(test_rng *r) {
    static const float odd[] = {0.0f,   -0.0f,   INFINITY, -INFINITY, NAN,    88.72f, 88.73f,
                                -86.6f, -86.59f, -87.0f,   1e-38f,    1e-45f, 3e38f,  -3e38f};
    return test_below(r, 4) ? any_float(r) * 30 : odd[test_below(r, sizeof odd / sizeof *odd)];
}

static float *odd_floats(test_rng *r, size_t n) {
    float *x = new_floats(n, 1);
    for (size_t i = 0; i < n; i++) x[i] = odd_float(r);
    return x;
}

/* NaN is NaN, whatever its bits. */
static int same_floats(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i]))) {
            fprintf(stderr, "    element %u of %u: %.9g and %.9g\n", (unsigned)i, (unsigned)n, (double)a[i],
                    (double)b[i]);
            return 0;
        }
    return 1;
}

static void check_vectors(const l3__kernels *k, test_rng *r, uint32_t n) {
    const l3__kernels *c = &l3__plain_kernels;
    float             *a = odd_floats(r, n), *b = odd_floats(r, n), *x = new_floats(n, 1), *y = new_floats(n, 1),
          odd = odd_float(r), d, e;
#define BOTH(from, plain, here)     \
    memcpy(x, from, n * sizeof *x); \
    memcpy(y, from, n * sizeof *y); \
    plain;                          \
    here;                           \
    CHECK(same_floats(y, x, n))
    BOTH(a, c->add_scaled(x, b, odd, n), k->add_scaled(y, b, odd, n));
    BOTH(a, c->scale(x, odd, n), k->scale(y, odd, n));
    BOTH(a, c->normalize(x, b, odd, n, x), k->normalize(y, b, odd, n, y));
    BOTH(a, c->normalize(b, NULL, odd, n, x), k->normalize(b, NULL, odd, n, y));
    BOTH(a, c->swiglu(x, b, n), k->swiglu(y, b, n));
#undef BOTH
    d = c->dot(a, b, n), e = k->dot(a, b, n);
    CHECK(same_floats(&e, &d, 1));
    free(a);
    free(b);
    free(x);
    free(y);
}

static void check_tile(const l3__kernels *k, test_rng *r, uint32_t n) {
    float x[L3__TILE], y[L3__TILE], odd = test_below(r, 3) ? any_float(r) : -INFINITY;
    for (uint32_t i = 0; i < n; i++) x[i] = y[i] = test_below(r, 5) ? any_float(r) : odd_float(r);
    float       high = odd;
    const float a = l3__plain_kernels.softmax_tile(x, n, 0.125f, &odd), b = k->softmax_tile(y, n, 0.125f, &high);
    CHECK(same_floats(&high, &odd, 1) && same_floats(&b, &a, 1) && same_floats(y, x, L3__TILE));
}

static void check_rows(const l3__kernels *k, test_rng *r, uint32_t cols, uint32_t n) {
    enum { HEADS = 5 };
    static const int32_t kinds[] = {L3_F32, L3_F16, L3_BF16, L3_Q8_0, L3_Q4_0};
    const int32_t        type    = kinds[test_below(r, 5)];
    if (type == L3_Q4_0) cols = (cols + 31) / 32 * 32;
    const size_t   row   = l3__kv_row_bytes(type, cols);
    unsigned char *rows  = (unsigned char *)must(row * n + 1);
    const uint32_t heads = 1 + test_below(r, HEADS);
    float         *x = new_floats(cols, HEADS), *y = new_floats(cols, HEADS), w[HEADS * L3__TILE];
    for (uint32_t i = 0; i < HEADS * L3__TILE; i++) w[i] = any_float(r);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t c = 0; c < cols; c++) x[c] = any_float(r);
        l3_pack(type, x, cols, rows + 1 + i * row);
    }
    for (uint32_t c = 0; c < HEADS * cols; c++) x[c] = y[c] = any_float(r);
    l3__plain_kernels.weigh_rows(type, rows + 1, row, w, n, x, cols, heads);
    k->weigh_rows(type, rows + 1, row, w, n, y, cols, heads);
    CHECK(same_floats(y, x, HEADS * cols));
    l3__plain_kernels.unpack(type, rows + 1, cols, x);
    k->unpack(type, rows + 1, cols, y);
    CHECK(same_floats(y, x, cols));
    free(rows);
    free(x);
    free(y);
}

static void check_turns(const l3__kernels *k, test_rng *r, uint32_t n) {
    float *x = odd_floats(r, 2 * (size_t)n), *cosine = odd_floats(r, n), *sine = odd_floats(r, n),
          *y = new_floats(n, 2);
    memcpy(y, x, 2 * n * sizeof *y);
    l3__plain_kernels.rotate(x, cosine, sine, n);
    k->rotate(y, cosine, sine, n);
    CHECK(same_floats(y, x, 2 * (size_t)n));
    free(x);
    free(y);
    free(cosine);
    free(sine);
}

TEST(vectors_as_in_plain_c) {
    test_rng r = {2};
    for (int level = FIRST_LEVEL; l3_level_name(level); level++) {
        const l3__kernels *k = l3__kernels_of(level);
        for (uint32_t n = 1; k && n < 200; n += test_quick() ? 13 : 1) {
            check_vectors(k, &r, n);
            check_tile(k, &r, 1 + n % L3__TILE);
            check_rows(k, &r, 1 + n, 1 + n % L3__TILE);
            check_turns(k, &r, n);
        }
    }
}

/* e^x at every level over all of its range, in steps that meet every exponent: below 0 by softmax, on both sides by SwiGLU. */
TEST(exponentials) {
    test_rng r = {3};
    for (int level = FIRST_LEVEL; l3_level_name(level); level++) {
        const l3__kernels *k = l3__kernels_of(level);
        for (int i = 0; k && i < test_some(5000); i++) {
            float x[L3__TILE], y[L3__TILE], gate[L3__TILE], same[L3__TILE], up[L3__TILE], peak = 0, peak2 = 0;
            for (uint32_t j = 0; j < L3__TILE; j++) {
                x[j] = y[j] = (float)(test_unit(&r) * -100);
                gate[j] = same[j] = (float)(test_unit(&r) * 200 - 100);
                up[j]             = 1;
            }
            (void)l3__plain_kernels.softmax_tile(x, L3__TILE, 1, &peak);
            (void)k->softmax_tile(y, L3__TILE, 1, &peak2);
            l3__plain_kernels.swiglu(gate, up, L3__TILE);
            k->swiglu(same, up, L3__TILE);
            if (!CHECK(peak == 0 && peak2 == 0 && same_floats(y, x, L3__TILE) && same_floats(same, gate, L3__TILE)))
                break;
        }
    }
}

/* ---- products with packed activations ---- */

/* How far output `row` of position `p` may be from the exact product: each activation rounded to int8 (10 words a block) is off by
 * half a step of its block's scale at most, to int16 (17 words) by 1/258 of that, halves then to 12 bits of their block's scale, or
 * (18 words) of the position's largest scale, for Q6_K twice that; in bf16, which has 8 bits, weight and activation by 2^-8 of their size each (BF16 weights are not
 * rounded); sums in float by a little. */
static double allowed(const product *m, const l3__fast *f, uint32_t row, uint32_t p, double *exact) {
    const double *w    = m->weights + (size_t)row * m->cols;
    const float  *x    = m->x + p * m->xs;
    double        size = 0, steps = 0, all_weights = 0, highest = 0, halves = 0;
    *exact = 0;
    for (uint32_t b = 0; b < m->cols; b += 32) {
        double peak = 0, weights = 0, heaviest = 0, activations = 0;
        for (uint32_t i = b; i < m->cols && i < b + 32; i++) {
            *exact += w[i] * (double)x[i];
            size += fabs(w[i] * (double)x[i]);
            weights += fabs(w[i]);
            activations += fabs((double)x[i]);
            if (fabs((double)x[i]) > peak) peak = fabs((double)x[i]);
            if (fabs(w[i]) > heaviest) heaviest = fabs(w[i]);
        }
        steps += weights * peak / 127 / 2 * 1.0001;
        halves += activations * heaviest / 2047 / 2 * 1.0001;
        all_weights += weights;
        if (peak > highest) highest = peak;
    }
    const double bf16 = size / (m->type == L3_BF16 ? 255 : 127);
    if (f->words == 18) steps = all_weights * highest / (m->type == L3_Q6_K ? 16383 : 32767) / 2 * 1.0001;
    if (f->words == 17) steps = steps / 258 * 1.001 + (m->type == L3_Q8_0 ? 0 : halves);
    return (f->words == 32 ? 0 : f->words == 16 ? bf16 : steps) + size * 4e-6;
}

/* Whether some level has products with packed activations. */
static int some_fast(void) {
    for (int level = FIRST_LEVEL; l3_level_name(level); level++) {
        const l3__kernels *k = l3__kernels_of(level);
        for (int t = 0; k && t < L3__N_TYPES; t++)
            if (k->decode[t] || k->prefill[t]) return 1;
    }
    return 0;
}

static float *multiply(const product *m, const l3__fast *f, uint32_t first, uint32_t n) {
    float         *y      = new_floats(n, m->rows);
    const uint64_t size   = l3__packed_bytes(f, n, m->cols);
    guard          packed = guard_new((size_t)size, L3_ALIGN, 0xff);
    f->pack(m->type, m->x + first * m->xs, m->xs, n, m->cols, packed.mem);
    l3__multiply(f, m->type, m->w + 1, m->row_bytes, m->rows, m->cols, packed.mem, n, y, m->rows);
#ifdef L3__EMULATE_AMX
    CHECK(amx_here()->palette == 0); /* released */
#endif
    CHECK(guard_free(&packed));
    return y;
}

static int check_fast(const product *m, const l3__fast *f) {
    float *y  = multiply(m, f, 0, m->n);
    int    ok = 1;
    for (uint32_t p = 0; p < m->n; p++) {
        for (uint32_t row = 0; row < m->rows; row++) {
            double       exact;
            const double most = allowed(m, f, row, p, &exact);
            ok &= CHECK(fabs((double)y[(size_t)p * m->rows + row] - exact) <= most);
        }
        float *alone = multiply(m, f, p, 1); /* neighbours make no difference */
        ok &= CHECK_MEM(alone, y + (size_t)p * m->rows, m->rows * sizeof *y);
        free(alone);
    }
    free(y);
    return ok;
}

TEST(products_with_packed_activations) {
    test_rng r = {4};
    for (int level = FIRST_LEVEL; l3_level_name(level); level++) {
        const l3__kernels *k = l3__kernels_of(level);
        for (int i = 0; k && i < test_some(120); i++) {
            product               p    = random_product(&r, types[i % 6]);
            const int             t    = l3__type_index(p.type);
            const l3__fast *const f[2] = {k->decode[t], k->prefill[t]};
            for (int j = 0; j < 2; j++)
                if (f[j] && !check_fast(&p, f[j]))
                    fprintf(stderr, "    %s, %s, %s, %u x %u, %u positions\n", l3_level_name(level),
                            j ? "prefill" : "decode", l3_type_name(p.type), (unsigned)p.rows, (unsigned)p.cols,
                            (unsigned)p.n);
            product_free(&p);
        }
    }
    if (!some_fast()) SKIP("no level that works here rounds activations");
}

/* More positions than a kernel keeps sums of, more columns than it unpacks at once, a few rows and elements over. */
TEST(products_that_pass_in_parts) {
    test_rng r = {12};
    for (int level = FIRST_LEVEL; l3_level_name(level); level++) {
        const l3__kernels *k = l3__kernels_of(level);
        for (int i = 0; k && i < 6; i++) {
            const l3__fast *f = k->prefill[l3__type_index(types[i])];
            if (!f) continue;
            product p =
                product_new(&r, types[i], test_quick() ? 17 : 35, l3_type_block(types[i]) == 1 ? 1100 : 1280, 139);
            if (!check_fast(&p, f)) fprintf(stderr, "    %s, %s\n", l3_level_name(level), l3_type_name(types[i]));
            product_free(&p);
        }
    }
    if (!some_fast()) SKIP("no level that works here rounds activations");
}

/* An activation that is no number leaves no number in its position's outputs, and the other positions alone. */
TEST(activations_that_are_no_numbers) {
    test_rng r = {7};
    for (int level = FIRST_LEVEL; l3_level_name(level); level++) {
        const l3__kernels *k = l3__kernels_of(level);
        for (int i = 0; k && i < 36; i++) {
            product               p                  = random_product(&r, types[i % 6]);
            const int             t                  = l3__type_index(p.type);
            const l3__fast *const f[2]               = {k->decode[t], k->prefill[t]};
            const uint32_t        bad                = test_below(&r, p.n);
            const float           odd[3]             = {NAN, INFINITY, -INFINITY};
            p.x[bad * p.xs + test_below(&r, p.cols)] = odd[i / 6 % 3];
            for (int j = 0; j < 2; j++) {
                float *y = f[j] ? multiply(&p, f[j], 0, p.n) : NULL;
                for (size_t at = 0; y && at < (size_t)p.n * p.rows; at++)
                    if (!CHECK_EQ(isfinite(y[at]) != 0, at / p.rows != bad)) break;
                free(y);
            }
            product_free(&p);
        }
    }
    if (!some_fast()) SKIP("no level that works here rounds activations");
}

/* Ones on the diagonal give what was packed as bf16: rounded to nearest, ties to even. */
TEST(rounding_to_bf16) {
    enum { N = 64 };
    static const uint32_t low[5] = {0, 0x7fff, 0x8000, 0x8001, 0xffff};
    test_rng              r      = {8};
    float                 x[N * N];
    unsigned char         w[N * N * 2 + 1];
    const product         p = {L3_BF16, N, N, N, N * 2, N, w, NULL, x};
    memset(w, 0, sizeof w);
    for (uint32_t i = 0; i < N; i++) l3__put_le16(w + 1 + (i * N + i) * 2, 0x3f80);
    for (uint32_t i = 0; i < N * N; i++)
        x[i] = l3__as_float(test_below(&r, 2) << 31 | (64 + test_below(&r, 128)) << 23 | test_below(&r, 128) << 16 |
                            low[test_below(&r, 5)]);
    for (int level = FIRST_LEVEL; l3_level_name(level); level++) {
        const l3__kernels *k = l3__kernels_of(level);
        const l3__fast    *f = k ? k->prefill[l3__type_index(L3_BF16)] : NULL;
        if (f && f->words == 17) continue; /* int16 */
        float *y = f ? multiply(&p, f, 0, N) : NULL;
        for (uint32_t i = 0; y && i < N * N; i++)
            if (!CHECK(y[i] == (f->words == 16 ? l3__as_float(l3__to_bf16(x[i]) << 16) : x[i]))) break;
        free(y);
    }
    if (!l3__choose_kernels(L3_LEVEL_BEST)->prefill[2]) SKIP("no level that works here has prompts of bf16");
}

/* Every half, what lies just before, at and just after the middle to the next one, and where rows end. */
TEST(packing) {
    enum { N = 37 };
    float         x[N];
    unsigned char want[2 * N], got[2 * N + 1];
    for (int level = FIRST_LEVEL; l3_level_name(level); level++) {
        const l3__kernels *k = l3__kernels_of(level);
        for (uint32_t at = 0; k && at < 4 * 65536; at += N) {
            for (uint32_t i = 0; i < N; i++) {
                const uint32_t half = (at + i) / 4 & 0xffff, bits = l3__as_bits(l3__from_f16(half));
                const uint32_t step = (at + i) % 4; /* subnormal halves have their middle elsewhere */
                const float    next = l3__from_f16((half + 1) & 0xffff);
                const float    mid  = half & 0x7c00 ? l3__as_float(bits + 0x1000) : (l3__as_float(bits) + next) / 2;
                x[i]                = step ? l3__as_float(l3__as_bits(mid) + step - 2) : l3__as_float(bits);
            }
            l3_pack(L3_F16, x, N, want);
            k->pack(L3_F16, x, N, got + 1);
            for (uint32_t i = 0; i < N; i++) {
                const uint32_t a = l3__le16(want + 2 * i), b = l3__le16(got + 1 + 2 * i);
                CHECK(a == b || ((a & 0x7fff) > 0x7c00 && (b & 0x7fff) > 0x7c00));
            }
        }
    }
}

/* Long rows go through more than one panel. */
TEST(long_rows) {
    test_rng r = {5};
    for (int level = FIRST_LEVEL; l3_level_name(level); level++) {
        const l3__kernels *k = l3__kernels_of(level);
        for (int i = 0; k && i < 6; i++) {
            product p = product_new(&r, types[i], 19, 4608, 5);
            if (k->prefill[i]) CHECK(check_fast(&p, k->prefill[i]));
            if (k->decode[i]) CHECK(check_fast(&p, k->decode[i]));
            product_free(&p);
        }
    }
    if (!some_fast()) SKIP("no level that works here rounds activations");
}

/* ---- sessions in fast mode ---- */

static mk_spec spec_of(int i) {
    static const uint32_t made[] = {MK_F32, MK_F16, MK_BF16, MK_Q8_0, MK_Q4_0, MK_Q6_K};
    mk_spec               s;
    memset(&s, 0, sizeof s);
    s.seed = (uint64_t)i + 1, s.dim = 256, s.ffn = 256, s.vocab = 300, s.context = 128, s.value_length = 256;
    s.up_length = 256, s.n_lookups = 2, s.lookup_blocks[1] = 1;
    s.weight_type = made[i % 6], s.row_type = made[(i + 2) % 6];
    s.n_heads = 2u << i % 4, s.n_kv_heads = i % 2 ? 2 : 1; /* heads of 128, 64, 32, and 16, which goes without tiles */
    return s;
}

enum { TOKENS = 70 }; /* more than share the unpacking of keys, and no multiple of a tile */

/* The logits after every token: those of a call with them all, of single ones, or of two sessions side by side. */
typedef enum manner { PREFILL, PREFILL_IN_PARTS, DECODE, DECODE_BATCH } manner;

static float *run(const l3_model *model, const l3_session_config *c, const int32_t *ids, manner how, test_rng *r) {
    const uint32_t vocab = l3_model_info(model)->vocab;
    float         *all   = new_floats(TOKENS, vocab);
    seat           s, other;
    l3_error       err;
    if (!CHECK_EQ(seat_open_as(&s, model, c, &err), L3_OK)) exit(1);
    if (how == DECODE_BATCH && !CHECK_EQ(seat_open_as(&other, model, c, &err), L3_OK)) exit(1);
    if (how == PREFILL) CHECK_EQ(l3_prefill(s.session, ids, TOKENS, all, &err), L3_OK);
    for (uint32_t at = 0; how == PREFILL_IN_PARTS && at < TOKENS;) { /* of two tokens at least: one alone is decoding */
        uint32_t n = 2 + test_below(r, 20);
        if (TOKENS - at < n + 2) n = TOKENS - at;
        CHECK_EQ(l3_prefill(s.session, ids + at, n, all + (size_t)at * vocab, &err), L3_OK);
        at += n;
    }
    for (uint32_t i = 0; how >= DECODE && i < TOKENS; i++) {
        l3_session   *both[2]   = {other.session, s.session};
        const int32_t tokens[2] = {ids[TOKENS - 1 - i], ids[i]};
        if (how == DECODE) CHECK_EQ(l3_decode(s.session, ids[i], &err), L3_OK);
        else CHECK_EQ(l3_decode_batch(both, tokens, 2, &err), L3_OK);
        memcpy(all + (size_t)i * vocab, l3_logits(s.session), vocab * sizeof *all);
    }
    if (how == DECODE_BATCH) seat_close(&other);
    seat_close(&s);
    return all;
}

static double relative_difference(const float *a, const float *b, size_t n) {
    double sum = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return sqrt(sum / size);
}

static l3_session_config random_pipes(test_rng *r, const l3_model *model, const l3_session_config *like) {
    l3_session_config c;
    memset(&c, 0, sizeof c);
    c.kv_type    = like->kv_type;
    c.work.level = like->work.level;
    c.work.batch = test_below(r, 4) ? 1 + test_below(r, 50) : 0;
    c.work.cache = test_below(r, 2) ? test_below(r, 200000) : 0;
    if (test_below(r, 2)) c.work.window = l3_session_window_min(model) + test_below(r, 5000);
    c.work.jobs = jobs_of(test_below(r, 2) ? test_below(r, 6) : 0);
    return c;
}

/* Rounding activations to int8 leaves a noise of about 1 / 127 / sqrt(12) of the block's peak, 0.7% of a usual value, in each
 * product; over the 16 products on the way to the logits of these models that makes 3%. */
#if defined(L3__FIXED) /* to int16: measured 3e-5; queries of lookups are rounded even where no weight is */
static const double FAST_DIFFERENCE = 2e-4, UNROUNDED_DIFFERENCE = 2e-4;
#else
static const double FAST_DIFFERENCE = 0.035, UNROUNDED_DIFFERENCE = 1e-5;
#endif

/* A random model at one level: two ways of bytes, threads, batches, windows and caches; then how far exact mode is. */
static void check_model(int i, int level, test_rng *r, double *most) {
    const mk_spec     spec = spec_of(i);
    file              f    = file_make(&spec);
    int32_t          *ids  = random_ids(r, spec.vocab, TOKENS);
    const size_t      n    = (size_t)TOKENS * spec.vocab;
    l3_session_config fast, slow;
    float            *want[2], *exact;
    rig               g;
    memset(&fast, 0, sizeof fast);
    fast.work.level = (l3_level)level;
    fast.kv_type    = types[i / 6 ? 1 + i % 2 * 2 : 0]; /* F32 first, then F16 and Q8_0 */
    slow            = fast;
    slow.work.mode  = L3_EXACT;
    REQUIRE(rig_open(&g, f, MAPPED) == L3_OK);
    want[0] = run(g.model, &fast, ids, PREFILL, r);
    want[1] = run(g.model, &fast, ids, DECODE, r);
    exact   = run(g.model, &slow, ids, PREFILL, r);
    rig_close(&g);
    for (int k = 0; k < 8; k++) {
        const manner how = (manner)(k % 4);
        const way    w   = {k % 3 ? 0 : 64, k % 2 ? 1 : 0, (unsigned)k % 4};
        if (!CHECK_EQ(rig_open(&g, f, w), L3_OK)) break;
        l3_session_config c   = random_pipes(r, g.model, &fast);
        float            *got = run(g.model, &c, ids, how, r);
        if (!CHECK_MEM(got, want[how >= DECODE], n * sizeof *got))
            fprintf(stderr, "    %s, model %d, manner %d, batch %u\n", l3_level_name(level), i, how,
                    (unsigned)c.work.batch);
        free(got);
        rig_close(&g);
    }
    for (int k = 0; k < 2; k++) {
        const double d     = relative_difference(want[k], exact, n);
        const double allow = spec.weight_type == MK_F32 && i < 6 ? UNROUNDED_DIFFERENCE
                                                                 : FAST_DIFFERENCE; /* no weight meets rounded ones */
        if (!CHECK(d < allow)) fprintf(stderr, "    %s, model %d: %.3g\n", l3_level_name(level), i, d);
        if (d > *most) *most = d;
        free(want[k]);
    }
    free(exact);
    free(ids);
    free(f.bytes);
}

TEST(fast_sessions) {
    test_rng r    = {6};
    double   most = 0;
    for (int level = FIRST_LEVEL; l3_level_name(level); level++)
        for (int i = 0; l3_level_works(level) && i < test_some(level == L3_LEVEL_PLAIN ? 2 : 8); i++)
            check_model(i, level, &r, &most);
    if (test_verbose()) fprintf(stderr, "  largest difference of fast mode: %.3g of the logits' size\n", most);
}

/* ---- levels ---- */

TEST(levels) {
    const mk_spec     spec = spec_small();
    file              f    = file_make(&spec);
    l3_session_config c;
    l3_error          err;
    l3_session       *s;
    seat              a;
    rig               g;
    memset(&c, 0, sizeof c);
    REQUIRE(rig_open(&g, f, MAPPED) == L3_OK);
    CHECK(l3_level_works(L3_LEVEL_BEST) && l3_level_works(L3_LEVEL_PLAIN) && !l3_level_works(1000) &&
          !l3_level_name(1000));
    for (int level = L3_LEVEL_PLAIN; l3_level_name(level); level++) {
        setenv("L3_LEVEL", l3_level_name(level), 1);
        if (l3_level_works(level) && CHECK_EQ(seat_open_as(&a, g.model, &c, &err), L3_OK)) {
            CHECK_EQ(a.session->work.kernels->level, level);
            seat_close(&a);
        }
        if (l3_level_works(level)) continue;
        CHECK_EQ(l3_session_size(g.model, &c), 0);
        CHECK_EQ(l3_session_init(&s, g.model, &c, NULL, 0, &err), L3_ERR_ARGUMENT);
    }
    setenv("L3_LEVEL", "no such thing", 1);
    CHECK_EQ(l3_session_size(g.model, &c), 0);
    CHECK_EQ(l3_session_init(&s, g.model, &c, NULL, 0, &err), L3_ERR_ARGUMENT);
    CHECK(strstr(err.text, "L3_LEVEL") != NULL);
    c.work.level = L3_LEVEL_PLAIN; /* the configuration comes first */
    CHECK(l3_session_size(g.model, &c) > 0);
    unsetenv("L3_LEVEL");
    c.work.level = (l3_level)99;
    CHECK_EQ(l3_session_init(&s, g.model, &c, NULL, 0, &err), L3_ERR_ARGUMENT);
    rig_close(&g);
    free(f.bytes);
}

TEST(no_such_level) { SKIP("the level does not work here"); }

int main(void) {
    if (!l3_level_works(FIRST_LEVEL)) {
        RUN(no_such_level);
        return test_report(SUITE);
    }
    RUN(products_with_float_activations);
    RUN(products_with_short_rows);
    RUN(vectors_as_in_plain_c);
    RUN(exponentials);
    RUN(products_with_packed_activations);
    RUN(products_that_pass_in_parts);
    RUN(activations_that_are_no_numbers);
    RUN(rounding_to_bf16);
    RUN(packing);
    RUN(long_rows);
    RUN(fast_sessions);
    RUN(levels);
#ifdef L3_THREADS
    free_pools();
#endif
    return test_report(SUITE);
}
