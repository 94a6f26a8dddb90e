/* train_ops.h - vectors and matrices for training: one struct of functions for each instruction set of this machine.
 *
 *     const train_ops *ops = train_ops_find("");              // the fastest here; or "plain", "avx2", "avx512", "bf16"
 *     ops->gemm(&space, false, true, m, n, k, 1, a, k, b, k, false, c, n);      // c (m, n) = a (m, k) times b (n, k)^T
 *
 * Numbers are `real`: float, or double where TRAIN_REAL says so (a test compares the two). "bf16" rounds what goes into
 * matrix products to bfloat16 and adds up in float; everything else is float. */
#ifndef TRAIN_OPS_H
#define TRAIN_OPS_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef TRAIN_REAL
#define TRAIN_REAL float
#define TRAIN_FLOAT 1
#endif
typedef TRAIN_REAL real;

#if defined(TRAIN_FLOAT) && defined(__x86_64__) && defined(__GNUC__)
#define TRAIN_X86 1
#include <immintrin.h>
#endif

enum {
    TRAIN_LANES = 16,        /* of a reduction */
    TRAIN_DEPTH = 256,       /* elements of the inner dimension packed at a time */
    TRAIN_HIGH  = 192,       /* rows of A packed at a time: with TRAIN_DEPTH 96 KB of bf16, within the L2 cache */
    TRAIN_PANEL = 512 * 1024 /* bytes of B packed at a time: also within the L2 cache */
};

typedef real lanes __attribute__((vector_size(TRAIN_LANES * sizeof(real))));

/* What one thread's matrix products are packed into. */
typedef struct train_space {
    void *a, *b; /* TRAIN_SPACE_A and TRAIN_SPACE_B bytes, aligned to 64 */
} train_space;
#define TRAIN_SPACE_A (sizeof(real) * (TRAIN_HIGH + 16) * TRAIN_DEPTH)
#define TRAIN_SPACE_B (TRAIN_PANEL + sizeof(real) * 64 * TRAIN_DEPTH)

typedef struct train_adam {
    real beta1, beta2, epsilon;
} train_adam;

/* See train_kernels.h for what each does. */
typedef struct train_ops {
    const char *name;
    real (*dot)(size_t n, const real *a, const real *b);
    real (*sum)(size_t n, const real *a);
    void (*axpy)(size_t n, real a, const real *x, real *y);
    void (*gemm)(train_space *space, bool ta, bool tb, size_t m, size_t n, size_t k, real alpha, const real *a,
                 size_t lda, const real *b, size_t ldb, bool add, real *c, size_t ldc);
    void (*rms_norm)(size_t n, size_t d, const real *x, const real *w, real epsilon, real *y, real *rstd);
    void (*rms_norm_backward)(size_t n, size_t d, const real *x, const real *w, const real *rstd, const real *dy,
                              real *dx, real *dw, real *scratch);
    void (*layer_norm)(size_t n, size_t d, const real *x, const real *w, const real *b, real epsilon, real *y,
                       real *mean, real *rstd);
    void (*layer_norm_backward)(size_t n, size_t d, const real *x, const real *w, const real *mean, const real *rstd,
                                const real *dy, real *dx, real *dw, real *db, real *scratch);
    real (*softmax)(size_t n, real *x);
    void (*softmax_again)(size_t n, real *x, real lse);
    void (*softmax_backward)(size_t n, const real *p, real *dp);
    void (*swiglu)(size_t n, const real *gate, const real *up, real *h);
    void (*swiglu_backward)(size_t n, real *gate, real *up, const real *dh, real *h);
    void (*rope)(size_t n, size_t heads, size_t head_dim, size_t half, const real *cosine, const real *sine, real sign,
                 real *x, size_t stride);
    void (*adamw)(size_t n, real *w, const real *g, real *m, real *v, const train_adam *o, real lr, real decay,
                  real clip, real c1, real c2);
} train_ops;

#ifdef TRAIN_FLOAT
#define REAL_SQRT sqrtf
#define REAL_LOG  logf
#define REAL_EXP  train_exp
/* exp to about 1e-7, without branches so that loops over it become vectors: 2^n times a polynomial on [-ln2/2, ln2/2]
 * (Taylor's, to the 7th power). */
static inline __attribute__((always_inline)) float train_exp(float x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    x                 = x > -87.0f ? x : -87.0f;
    x                 = x < 88.0f ? x : 88.0f;
    const float shifted = x * 1.44269504f + magic, n = shifted - magic;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float       p = 1.0f / 5040;
    int32_t     bits;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    memcpy(&bits, &shifted, 4);
    const int32_t power = (int32_t)((uint32_t)(bits - 0x4b400000 + 127) << 23);
    float         scale;
    memcpy(&scale, &power, 4);
    return p * scale;
}
#else
#define REAL_SQRT sqrt
#define REAL_LOG  log
#define REAL_EXP  exp
#endif

/* ---- one inclusion for each instruction set ---- */

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("O3", "no-math-errno", "no-trapping-math")
#endif

#define TRAIN_TARGET
#define TRAIN_ISA  plain
#define TRAIN_NAME "plain"
#define TRAIN_ROWS 2
#define TRAIN_COLS TRAIN_LANES
#include "train_kernels.h"
#undef TRAIN_TARGET
#undef TRAIN_ISA
#undef TRAIN_NAME
#undef TRAIN_ROWS
#undef TRAIN_COLS

#ifdef TRAIN_X86
#define TRAIN_AVX2   1
#define TRAIN_TARGET __attribute__((target("avx2,fma")))
#define TRAIN_ISA    avx2
#define TRAIN_NAME   "avx2"
#define TRAIN_ROWS   6
#define TRAIN_COLS   16
#include "train_kernels.h"
#undef TRAIN_AVX2
#undef TRAIN_TARGET
#undef TRAIN_ISA
#undef TRAIN_NAME
#undef TRAIN_ROWS
#undef TRAIN_COLS

#define TRAIN_AVX512 1
#define TRAIN_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#define TRAIN_ISA    avx512
#define TRAIN_NAME   "avx512"
#define TRAIN_ROWS   8
#define TRAIN_COLS   32
#include "train_kernels.h"
#undef TRAIN_AVX512
#undef TRAIN_TARGET
#undef TRAIN_ISA
#undef TRAIN_NAME
#undef TRAIN_ROWS
#undef TRAIN_COLS

#define TRAIN_BF16   1
#define TRAIN_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
#define TRAIN_ISA    bf16
#define TRAIN_NAME   "bf16"
#define TRAIN_ROWS   8
#define TRAIN_COLS   32
#include "train_kernels.h"
#undef TRAIN_BF16
#undef TRAIN_TARGET
#undef TRAIN_ISA
#undef TRAIN_NAME
#undef TRAIN_ROWS
#undef TRAIN_COLS
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif

enum { TRAIN_MAX_OPS = 4 };

/* What this machine can run, slowest first; returns how many. */
static inline int train_ops_list(const train_ops *list[TRAIN_MAX_OPS]) {
    int n     = 0;
    list[n++] = &ops_plain;
#ifdef TRAIN_X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list[n++] = &ops_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        list[n++] = &ops_avx512;
        if (__builtin_cpu_supports("avx512bf16")) list[n++] = &ops_bf16;
    }
#endif
    return n;
}

/* By name, or the fastest for ""; NULL: not on this machine. */
static inline const train_ops *train_ops_find(const char *name) {
    const train_ops *list[TRAIN_MAX_OPS];
    for (int n = train_ops_list(list); n > 0; n--)
        if (!*name || strcmp(list[n - 1]->name, name) == 0) return list[n - 1];
    return NULL;
}

#endif /* TRAIN_OPS_H */
