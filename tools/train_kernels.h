/* train_kernels.h - the arithmetic of training, written once and included once for every instruction set (train_ops.h does
 * it). Names end in the instruction set: KERNEL(gemm) is gemm_plain, gemm_avx2, ...
 *
 * Before including: TRAIN_ISA, a name; TRAIN_ROWS and TRAIN_COLS, the tile of gemm; TRAIN_STEP, what the packed inner dimension
 * is padded to; one of TRAIN_AVX2, TRAIN_AVX512, TRAIN_BF16 where intrinsics are wanted, TRAIN_AMX with the last. All pointers are to `real`; nothing needs alignment. Loops without intrinsics are
 * plain elementwise ones, which compilers turn into vectors; reductions run over TRAIN_LANES explicit lanes, so that they
 * need no permission to reorder. */

#define TRAIN_JOIN2(a, b) a##_##b
#define TRAIN_JOIN(a, b)  TRAIN_JOIN2(a, b)
#define KERNEL(name)      TRAIN_JOIN(name, TRAIN_ISA)

/* ---- reductions ---- */

TRAIN_TARGET static inline real KERNEL(lanes_sum)(const lanes *a) {
    real sum = 0;
    for (int i = 0; i < TRAIN_LANES; i++) sum += (*a)[i];
    return sum;
}

TRAIN_TARGET static real KERNEL(dot)(size_t n, const real *a, const real *b) {
    lanes  s = {0}, x, y;
    size_t i = 0;
    for (; i + TRAIN_LANES <= n; i += TRAIN_LANES) {
        memcpy(&x, a + i, sizeof x);
        memcpy(&y, b + i, sizeof y);
        s += x * y;
    }
    real sum = KERNEL(lanes_sum)(&s);
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

TRAIN_TARGET static real KERNEL(sum)(size_t n, const real *a) {
    lanes  s = {0}, x;
    size_t i = 0;
    for (; i + TRAIN_LANES <= n; i += TRAIN_LANES) {
        memcpy(&x, a + i, sizeof x);
        s += x;
    }
    real sum = KERNEL(lanes_sum)(&s);
    for (; i < n; i++) sum += a[i];
    return sum;
}

TRAIN_TARGET static real KERNEL(maximum)(size_t n, const real *a) {
    real   m[TRAIN_LANES], best = a[0];
    size_t i = 0;
    for (int j = 0; j < TRAIN_LANES; j++) m[j] = best;
    for (; i + TRAIN_LANES <= n; i += TRAIN_LANES)
        for (int j = 0; j < TRAIN_LANES; j++) m[j] = a[i + (size_t)j] > m[j] ? a[i + (size_t)j] : m[j];
    for (; i < n; i++) best = a[i] > best ? a[i] : best;
    for (int j = 0; j < TRAIN_LANES; j++) best = m[j] > best ? m[j] : best;
    return best;
}

TRAIN_TARGET static void KERNEL(axpy)(size_t n, real a, const real *x, real *y) {
    for (size_t i = 0; i < n; i++) y[i] += a * x[i];
}

/* ---- matrix products ---- */

/* A (rows of op(A), k) row by row, `TRAIN_DEPTH` elements apart; B in panels of TRAIN_COLS columns, for bf16 in pairs of k.
 * What is missing at the edges is zero. */

#if defined(TRAIN_BF16)
#define PACKED uint16_t
#else
#define PACKED real
#endif
#define PADDED(k) (((k) + TRAIN_STEP - 1) / TRAIN_STEP * TRAIN_STEP)

#if defined(TRAIN_BF16)
/* n floats to bf16, rounded to nearest even. */
TRAIN_TARGET static inline void KERNEL(convert)(size_t n, const float *src, uint16_t *dst) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256bh h = _mm512_cvtneps_pbh(_mm512_loadu_ps(src + i));
        memcpy(dst + i, &h, 32);
    }
    if (i < n) {
        const __mmask16 mask = (__mmask16)((1u << (n - i)) - 1);
        const __m256bh  h    = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, src + i));
        uint16_t        last[16];
        memcpy(last, &h, 32);
        memcpy(dst + i, last, (n - i) * sizeof *dst);
    }
}

/* 16 pairs (low: one element of a, high: of b) from up to 16 elements of two rows; NULL: zeros. */
TRAIN_TARGET static inline __m512i KERNEL(pairs)(const float *a, const float *b, __mmask16 mask) {
    const __m256bh lo = _mm512_cvtneps_pbh(a ? _mm512_maskz_loadu_ps(mask, a) : _mm512_setzero_ps());
    const __m256bh hi = _mm512_cvtneps_pbh(b ? _mm512_maskz_loadu_ps(mask, b) : _mm512_setzero_ps());
    __m256i        l, h;
    memcpy(&l, &lo, 32);
    memcpy(&h, &hi, 32);
    return _mm512_or_si512(_mm512_cvtepu16_epi32(l), _mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
#endif

#if defined(TRAIN_BF16) || defined(TRAIN_AVX512)
/* dst[c][r] = src[r][c] for a 16 by 16 block of 32-bit words; strides in words. */
TRAIN_TARGET static inline void KERNEL(transpose16)(const uint32_t *src, size_t from, uint32_t *dst, size_t to) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (size_t i = 0; i < 16; i++) a[i] = _mm512_loadu_si512((const void *)(src + i * from));
#pragma GCC unroll 8
    for (size_t i = 0; i < 16; i += 2) {
        b[i]     = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 16; i += 4) { /* a[i + j]: column 4 * lane + j of rows i ... i + 3 */
        a[i]     = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; j++) {
        const __m512i p = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x44), q = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xee);
        const __m512i r = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x44);
        const __m512i s = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xee);
        _mm512_storeu_si512((void *)(dst + j * to), _mm512_shuffle_i32x4(p, r, 0x88));
        _mm512_storeu_si512((void *)(dst + (4 + j) * to), _mm512_shuffle_i32x4(p, r, 0xdd));
        _mm512_storeu_si512((void *)(dst + (8 + j) * to), _mm512_shuffle_i32x4(q, s, 0x88));
        _mm512_storeu_si512((void *)(dst + (12 + j) * to), _mm512_shuffle_i32x4(q, s, 0xdd));
    }
}
#endif

/* dst[c * to + r] = src[r * from + c] for r < rows, c < cols; elements are `word`s. */
#if defined(TRAIN_BF16)
#define WORD uint32_t
#else
#define WORD real
#endif
TRAIN_TARGET static void KERNEL(transpose)(size_t rows, size_t cols, const WORD *src, size_t from, WORD *dst,
                                           size_t to) {
    size_t done = 0;
#if defined(TRAIN_BF16) || defined(TRAIN_AVX512)
    for (size_t block = 0; block < rows / 16; block++, done += 16) {
        size_t c0 = 0;
        for (; c0 + 16 <= cols; c0 += 16) KERNEL(transpose16)
        ((const uint32_t *)(const void *)(src + done * from + c0), from, (uint32_t *)(void *)(dst + c0 * to + done),
         to);
        for (; c0 < cols; c0++)
            for (size_t r = done; r < done + 16; r++) dst[c0 * to + r] = src[r * from + c0];
    }
    rows %= 16;
#endif
    for (size_t r = done; r < done + rows; r++)
        for (size_t c = 0; c < cols; c++) dst[c * to + r] = src[r * from + c];
}

/* Rows i0 ... of op(A), elements k0 ... k0 + kc - 1. */
TRAIN_TARGET static void KERNEL(pack_a)(bool transposed, const real *a, size_t lda, size_t i0, size_t m, size_t k0,
                                        size_t kc, PACKED *dst) {
    const size_t padded = (m + TRAIN_ROWS - 1) / TRAIN_ROWS * TRAIN_ROWS, depth = PADDED(kc);
#if defined(TRAIN_BF16)
    if (!transposed) {
        for (size_t i = 0; i < m; i++) {
            KERNEL(convert)(kc, a + (i0 + i) * lda + k0, dst + i * TRAIN_DEPTH);
            memset(dst + i * TRAIN_DEPTH + kc, 0, (depth - kc) * sizeof *dst);
        }
    } else {
        uint32_t pairs[TRAIN_DEPTH / 2 * 16];
        for (size_t i = 0; i < m; i += 16) {
            const size_t    n    = m - i < 16 ? m - i : 16;
            const __mmask16 mask = (__mmask16)((1u << n) - 1);
            for (size_t k = 0; k < depth; k += 2) {
                const float  *p  = a + (k0 + k) * lda + i0 + i;
                const __m512i pp = KERNEL(pairs)(k < kc ? p : NULL, k + 1 < kc ? p + lda : NULL, mask);
                memcpy(pairs + k / 2 * 16, &pp, 64);
            }
            KERNEL(transpose)(depth / 2, n, pairs, 16, (uint32_t *)(void *)(dst + i * TRAIN_DEPTH), TRAIN_DEPTH / 2);
        }
    }
#else
    if (!transposed)
        for (size_t i = 0; i < m; i++) memcpy(dst + i * TRAIN_DEPTH, a + (i0 + i) * lda + k0, kc * sizeof *dst);
    else KERNEL(transpose)(kc, m, a + k0 * lda + i0, lda, dst, TRAIN_DEPTH);
#endif
    for (size_t i = m; i < padded; i++) memset(dst + i * TRAIN_DEPTH, 0, depth * sizeof *dst);
}

/* Columns j0 ... j0 + n - 1 of op(B), elements k0 ... k0 + kc - 1, as panels of (kc, TRAIN_COLS). */
TRAIN_TARGET static void KERNEL(pack_b)(bool transposed, const real *b, size_t ldb, size_t j0, size_t n, size_t k0,
                                        size_t kc, PACKED *dst) {
#if defined(TRAIN_BF16)
    const size_t depth = PADDED(kc);
    uint16_t     rows[TRAIN_COLS * TRAIN_DEPTH];
    for (size_t j = 0; j < n; j += TRAIN_COLS, dst += depth * TRAIN_COLS) {
        const size_t cols = n - j < TRAIN_COLS ? n - j : TRAIN_COLS;
        if (transposed) {
            for (size_t c = 0; c < cols; c++) {
                KERNEL(convert)(kc, b + (j0 + j + c) * ldb + k0, rows + c * TRAIN_DEPTH);
                memset(rows + c * TRAIN_DEPTH + kc, 0, (depth - kc) * sizeof *rows);
            }
            for (size_t c = cols; c < TRAIN_COLS; c++) memset(rows + c * TRAIN_DEPTH, 0, depth * sizeof *rows);
            KERNEL(transpose)
            (TRAIN_COLS, depth / 2, (const uint32_t *)(const void *)rows, TRAIN_DEPTH / 2, (uint32_t *)(void *)dst,
             TRAIN_COLS);
            continue;
        }
        for (size_t k = 0; k < depth; k += 2)
            for (size_t c = 0; c < TRAIN_COLS; c += 16) {
                const size_t    left = cols > c ? cols - c : 0;
                const __mmask16 mask = left >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
                const float    *p    = b + (k0 + k) * ldb + j0 + j + c;
                const __m512i   pp   = KERNEL(pairs)(k < kc ? p : NULL, k + 1 < kc ? p + ldb : NULL, mask);
                memcpy(dst + k * TRAIN_COLS + 2 * c, &pp, 64);
            }
    }
#else
    for (size_t j = 0; j < n; j += TRAIN_COLS, dst += kc * TRAIN_COLS) {
        const size_t cols = n - j < TRAIN_COLS ? n - j : TRAIN_COLS;
        if (cols < TRAIN_COLS) memset(dst, 0, kc * TRAIN_COLS * sizeof *dst);
        if (transposed) KERNEL(transpose)(cols, kc, b + (j0 + j) * ldb + k0, ldb, dst, TRAIN_COLS);
        else
            for (size_t k = 0; k < kc; k++)
                memcpy(dst + k * TRAIN_COLS, b + (k0 + k) * ldb + j0 + j, cols * sizeof *dst);
    }
#endif
}

/* tile (TRAIN_ROWS, TRAIN_COLS) = A panel times B panel; then C (+)= alpha * tile for its first m rows and n columns. */
TRAIN_TARGET static void KERNEL(tile)(size_t kc, const PACKED *a, const PACKED *b, real alpha, bool add, real *c,
                                      size_t ldc, size_t m, size_t n) {
    real edge[TRAIN_ROWS * TRAIN_COLS];
#if defined(TRAIN_AMX)
    __asm__ volatile("" ::: "memory"); /* tile loads do not tell the compiler that they read memory */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t k = 0; k < kc; k += 32, b += 32 * TRAIN_COLS) {
        _tile_loadd(4, a + k, 2 * TRAIN_DEPTH);
        _tile_loadd(5, a + 16 * TRAIN_DEPTH + k, 2 * TRAIN_DEPTH);
        _tile_loadd(6, b, 4 * TRAIN_COLS);
        _tile_loadd(7, b + TRAIN_COLS, 4 * TRAIN_COLS);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, edge, 4 * TRAIN_COLS);
    _tile_stored(1, edge + 16, 4 * TRAIN_COLS);
    _tile_stored(2, edge + 16 * TRAIN_COLS, 4 * TRAIN_COLS);
    _tile_stored(3, edge + 16 * TRAIN_COLS + 16, 4 * TRAIN_COLS);
#elif defined(TRAIN_BF16) || defined(TRAIN_AVX512)
    __m512 sum[TRAIN_ROWS][2];
#pragma GCC unroll 8
    for (size_t r = 0; r < TRAIN_ROWS; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
#if defined(TRAIN_BF16)
    for (size_t k = 0; k < kc; k += 2, b += 2 * TRAIN_COLS) {
        __m512bh b0, b1;
        memcpy(&b0, b, 64);
        memcpy(&b1, b + TRAIN_COLS, 64);
#pragma GCC unroll 8
        for (size_t r = 0; r < TRAIN_ROWS; r++) {
            int32_t pair;
            memcpy(&pair, a + r * TRAIN_DEPTH + k, 4);
            const __m512i  v = _mm512_set1_epi32(pair);
            const __m512bh w = (__m512bh)v;
            sum[r][0]        = _mm512_dpbf16_ps(sum[r][0], w, b0);
            sum[r][1]        = _mm512_dpbf16_ps(sum[r][1], w, b1);
        }
    }
#else
    for (size_t k = 0; k < kc; k++, b += TRAIN_COLS) {
        const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
#pragma GCC unroll 8
        for (size_t r = 0; r < TRAIN_ROWS; r++) {
            const __m512 v = _mm512_set1_ps(a[r * TRAIN_DEPTH + k]);
            sum[r][0]      = _mm512_fmadd_ps(v, b0, sum[r][0]);
            sum[r][1]      = _mm512_fmadd_ps(v, b1, sum[r][1]);
        }
    }
#endif
    if (m == TRAIN_ROWS && n == TRAIN_COLS) {
        const __m512 scale = _mm512_set1_ps(alpha);
#pragma GCC unroll 8
        for (size_t r = 0; r < TRAIN_ROWS; r++)
            for (size_t h = 0; h < 2; h++) {
                float       *p = c + r * ldc + 16 * h;
                const __m512 x = add ? _mm512_loadu_ps(p) : _mm512_setzero_ps();
                _mm512_storeu_ps(p, _mm512_fmadd_ps(scale, sum[r][h], x));
            }
        return;
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < TRAIN_ROWS; r++) {
        _mm512_storeu_ps(edge + r * TRAIN_COLS, sum[r][0]);
        _mm512_storeu_ps(edge + r * TRAIN_COLS + 16, sum[r][1]);
    }
#elif defined(TRAIN_AVX2)
    __m256 sum[TRAIN_ROWS][2];
#pragma GCC unroll 6
    for (size_t r = 0; r < TRAIN_ROWS; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (size_t k = 0; k < kc; k++, b += TRAIN_COLS) {
        const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 6
        for (size_t r = 0; r < TRAIN_ROWS; r++) {
            const __m256 v = _mm256_broadcast_ss(a + r * TRAIN_DEPTH + k);
            sum[r][0]      = _mm256_fmadd_ps(v, b0, sum[r][0]);
            sum[r][1]      = _mm256_fmadd_ps(v, b1, sum[r][1]);
        }
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < TRAIN_ROWS; r++) {
        _mm256_storeu_ps(edge + r * TRAIN_COLS, sum[r][0]);
        _mm256_storeu_ps(edge + r * TRAIN_COLS + 8, sum[r][1]);
    }
#else
    lanes sum[TRAIN_ROWS], x; /* TRAIN_COLS is TRAIN_LANES here */
    memset(sum, 0, sizeof sum);
    for (size_t k = 0; k < kc; k++, b += TRAIN_COLS) {
        memcpy(&x, b, sizeof x);
#pragma GCC unroll 4
        for (size_t r = 0; r < TRAIN_ROWS; r++) sum[r] += x * a[r * TRAIN_DEPTH + k];
    }
    memcpy(edge, sum, sizeof edge);
#endif
    for (size_t r = 0; r < m; r++)
        for (size_t j = 0; j < n; j++) c[r * ldc + j] = (add ? c[r * ldc + j] : 0) + alpha * edge[r * TRAIN_COLS + j];
}

/* C (m, n) = alpha op(A) op(B), or C += that. op(A) is (m, k), A itself (k, m) when ta; op(B) is (k, n), B (n, k) when tb. */
TRAIN_TARGET static void KERNEL(gemm)(train_space *space, bool ta, bool tb, size_t m, size_t n, size_t k, real alpha,
                                      const real *a, size_t lda, const real *b, size_t ldb, bool add, real *c,
                                      size_t ldc) {
    PACKED      *pa = (PACKED *)space->a, *pb = (PACKED *)space->b;
    const size_t wide = TRAIN_PANEL / TRAIN_DEPTH / sizeof(PACKED);
#if defined(TRAIN_AMX)
    train_tile_config();
#endif
    for (size_t j0 = 0; j0 < n; j0 += wide) {
        const size_t nc = n - j0 < wide ? n - j0 : wide;
        for (size_t k0 = 0; k0 < k; k0 += TRAIN_DEPTH) {
            const size_t kc = k - k0 < TRAIN_DEPTH ? k - k0 : TRAIN_DEPTH;
            KERNEL(pack_b)(tb, b, ldb, j0, nc, k0, kc, pb);
            for (size_t i0 = 0; i0 < m; i0 += TRAIN_HIGH) {
                const size_t mc = m - i0 < TRAIN_HIGH ? m - i0 : TRAIN_HIGH;
                KERNEL(pack_a)(ta, a, lda, i0, mc, k0, kc, pa);
                for (size_t j = 0; j < nc; j += TRAIN_COLS)
                    for (size_t i = 0; i < mc; i += TRAIN_ROWS)
                        KERNEL(tile)
                        (kc, pa + i * TRAIN_DEPTH, pb + j * PADDED(kc), alpha, add || k0 > 0,
                         c + (i0 + i) * ldc + j0 + j, ldc, mc - i < TRAIN_ROWS ? mc - i : TRAIN_ROWS,
                         nc - j < TRAIN_COLS ? nc - j : TRAIN_COLS);
            }
        }
    }
}

/* ---- norms ---- */

/* y = x / rms(x) * w for n rows of d; w NULL: ones. rstd (n,) = 1 / rms. */
TRAIN_TARGET static void KERNEL(rms_norm)(size_t n, size_t d, const real *x, const real *w, real epsilon, real *y,
                                          real *rstd) {
    for (size_t i = 0; i < n; i++, x += d, y += d) {
        const real r = 1 / REAL_SQRT(KERNEL(dot)(d, x, x) / (real)d + epsilon);
        rstd[i]      = r;
        if (w)
            for (size_t j = 0; j < d; j++) y[j] = x[j] * r * w[j];
        else
            for (size_t j = 0; j < d; j++) y[j] = x[j] * r;
    }
}

/* dx += the gradient through rms_norm, dw += (NULL: none). scratch (d,). */
TRAIN_TARGET static void KERNEL(rms_norm_backward)(size_t n, size_t d, const real *x, const real *w, const real *rstd,
                                                   const real *dy, real *dx, real *dw, real *scratch) {
    for (size_t i = 0; i < n; i++, x += d, dy += d, dx += d) {
        const real  r = rstd[i];
        const real *g = dy;
        if (w) {
            for (size_t j = 0; j < d; j++) scratch[j] = dy[j] * w[j];
            g = scratch;
        }
        const real c = KERNEL(dot)(d, g, x) * r * r * r / (real)d;
        for (size_t j = 0; j < d; j++) dx[j] += g[j] * r - x[j] * c;
        if (dw)
            for (size_t j = 0; j < d; j++) dw[j] += dy[j] * x[j] * r;
    }
}

/* Layer norm: y = (x - mean) * rstd * w + b; w, b NULL: ones, zeros. */
TRAIN_TARGET static void KERNEL(layer_norm)(size_t n, size_t d, const real *x, const real *w, const real *b,
                                            real epsilon, real *y, real *mean, real *rstd) {
    for (size_t i = 0; i < n; i++, x += d, y += d) {
        const real mu = KERNEL(sum)(d, x) / (real)d;
        for (size_t j = 0; j < d; j++) y[j] = x[j] - mu;
        const real r = 1 / REAL_SQRT(KERNEL(dot)(d, y, y) / (real)d + epsilon);
        mean[i]      = mu;
        rstd[i]      = r;
        for (size_t j = 0; j < d; j++) y[j] = y[j] * r * (w ? w[j] : 1) + (b ? b[j] : 0);
    }
}

/* dx = (not +=) the gradient through layer_norm. scratch (2 d,). */
TRAIN_TARGET static void KERNEL(layer_norm_backward)(size_t n, size_t d, const real *x, const real *w, const real *mean,
                                                     const real *rstd, const real *dy, real *dx, real *dw, real *db,
                                                     real *scratch) {
    real *hat = scratch, *g = scratch + d;
    for (size_t i = 0; i < n; i++, x += d, dy += d, dx += d) {
        for (size_t j = 0; j < d; j++) hat[j] = (x[j] - mean[i]) * rstd[i];
        for (size_t j = 0; j < d; j++) g[j] = dy[j] * (w ? w[j] : 1);
        const real s = KERNEL(sum)(d, g) / (real)d, c = KERNEL(dot)(d, g, hat) / (real)d;
        for (size_t j = 0; j < d; j++) dx[j] = (g[j] - s - hat[j] * c) * rstd[i];
        if (dw)
            for (size_t j = 0; j < d; j++) dw[j] += dy[j] * hat[j];
        if (db)
            for (size_t j = 0; j < d; j++) db[j] += dy[j];
    }
}

/* ---- activations ---- */

/* x = exp(x - shift), elementwise; returns the sum. */
TRAIN_TARGET static real KERNEL(exp_sum)(size_t n, real *x, real shift) {
    for (size_t i = 0; i < n; i++) x[i] = REAL_EXP(x[i] - shift);
    return KERNEL(sum)(n, x);
}

/* x = softmax(x); returns log(sum(exp(x))). */
TRAIN_TARGET static real KERNEL(softmax)(size_t n, real *x) {
    const real max = KERNEL(maximum)(n, x), sum = KERNEL(exp_sum)(n, x, max), scale = 1 / sum;
    for (size_t i = 0; i < n; i++) x[i] *= scale;
    return max + REAL_LOG(sum);
}

/* x = exp(x - lse): the softmax once more, its normalizer being known. */
TRAIN_TARGET static void KERNEL(softmax_again)(size_t n, real *x, real lse) {
    for (size_t i = 0; i < n; i++) x[i] = REAL_EXP(x[i] - lse);
}

/* dp becomes the gradient before a softmax with probabilities p. */
TRAIN_TARGET static void KERNEL(softmax_backward)(size_t n, const real *p, real *dp) {
    const real c = KERNEL(dot)(n, p, dp);
    for (size_t i = 0; i < n; i++) dp[i] = p[i] * (dp[i] - c);
}

/* h = silu(gate) * up */
TRAIN_TARGET static void KERNEL(swiglu)(size_t n, const real *gate, const real *up, real *h) {
    for (size_t i = 0; i < n; i++) h[i] = gate[i] / (1 + REAL_EXP(-gate[i])) * up[i];
}

/* From dh: gate and up become their gradients, h what it was in the forward pass. */
TRAIN_TARGET static void KERNEL(swiglu_backward)(size_t n, real *gate, real *up, const real *dh, real *h) {
    for (size_t i = 0; i < n; i++) {
        const real g = gate[i], u = up[i], s = 1 / (1 + REAL_EXP(-g));
        h[i]    = g * s * u;
        up[i]   = dh[i] * g * s;
        gate[i] = dh[i] * u * s * (1 + g * (1 - s));
    }
}

/* Rotates the first 2 * half elements of every head of n rows; cosine and sine (n, half); sign -1: back. */
TRAIN_TARGET static void KERNEL(rope)(size_t n, size_t heads, size_t head_dim, size_t half, const real *cosine,
                                      const real *sine, real sign, real *x, size_t stride) {
    for (size_t i = 0; i < n; i++, cosine += half, sine += half)
        for (size_t h = 0; h < heads; h++) {
            real *p = x + i * stride + h * head_dim;
            for (size_t j = 0; j < half; j++) {
                const real a = p[2 * j], b = p[2 * j + 1], c = cosine[j], s = sign * sine[j];
                p[2 * j]     = a * c - b * s;
                p[2 * j + 1] = a * s + b * c;
            }
        }
}

/* ---- the optimizer ---- */

/* AdamW (Loshchilov, Hutter 2019) on n parameters. g is scaled by `clip` first; c1, c2: 1 / (1 - beta^step). */
TRAIN_TARGET static void KERNEL(adamw)(size_t n, real *w, const real *g, real *m, real *v, const train_adam *o, real lr,
                                       real decay, real clip, real c1, real c2) {
    const real b1 = o->beta1, b2 = o->beta2, epsilon = o->epsilon, keep = 1 - lr * decay;
    for (size_t i = 0; i < n; i++) {
        const real x = g[i] * clip, mi = b1 * m[i] + (1 - b1) * x, vi = b2 * v[i] + (1 - b2) * x * x;
        m[i] = mi;
        v[i] = vi;
        w[i] = w[i] * keep - lr * (mi * c1) / (REAL_SQRT(vi * c2) + epsilon);
    }
}

static const train_ops KERNEL(ops) = {
    TRAIN_NAME,
    KERNEL(dot),
    KERNEL(sum),
    KERNEL(axpy),
    KERNEL(gemm),
    KERNEL(rms_norm),
    KERNEL(rms_norm_backward),
    KERNEL(layer_norm),
    KERNEL(layer_norm_backward),
    KERNEL(softmax),
    KERNEL(softmax_again),
    KERNEL(softmax_backward),
    KERNEL(swiglu),
    KERNEL(swiglu_backward),
    KERNEL(rope),
    KERNEL(adamw),
};

#undef KERNEL
#undef TRAIN_JOIN
#undef TRAIN_JOIN2
#undef PACKED
#undef PADDED
#undef WORD
