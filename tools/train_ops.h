/* train_ops.h - vectors and matrices for training: one struct of functions for each instruction set of this machine.
 *
 *     const train_ops *ops = train_ops_find("");              // the fastest here; or "plain", "avx2", "avx512", "bf16", "amx"
 *     ops->gemm(&space, false, true, m, n, k, 1, a, k, b, k, false, c, n);      // c (m, n) = a (m, k) times b (n, k)^T
 *
 * Numbers are `real`: float, or double where TRAIN_REAL says so (a test compares the two). "bf16" and "amx" round what
 * goes into matrix products to bfloat16 and add up in float; everything else is float. */
#ifndef TRAIN_OPS_H
#define TRAIN_OPS_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef TRAIN_REAL
#define TRAIN_REAL  float
#define TRAIN_FLOAT 1
#endif
typedef TRAIN_REAL real;

#if defined(TRAIN_FLOAT) && defined(__x86_64__) && defined(__GNUC__)
#define TRAIN_X86 1
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
/* The system call itself (number 158): libc has no function for it. */
static inline long train_arch_prctl(long code, unsigned long argument) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(158L), "D"(code), "S"(argument) : "rcx", "r11", "memory");
    return result;
}
#endif
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
#define TRAIN_SPACE_A (sizeof(real) * (TRAIN_HIGH + 32) * TRAIN_DEPTH)
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
    const float magic   = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    x                   = x > -87.0f ? x : -87.0f;
    x                   = x < 88.0f ? x : 88.0f;
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

/* ---- AMX: tiles of 16 rows of 64 bytes ---- */

#ifdef TRAIN_X86
/* Eight tiles of full size; the layout is Intel's (Architectures Software Developer's Manual, LDTILECFG). */
typedef struct train_tiles {
    uint8_t  palette, start_row, reserved[14];
    uint16_t bytes[16]; /* of a row */
    uint8_t  rows[16];
} train_tiles;

#ifdef TRAIN_EMULATE_AMX /* for tests on machines without: the same tiles in memory */
static __thread float train_emulated[8][16][16];
static inline void    train_emulated_load(int t, const void *base, size_t stride) {
       for (size_t r = 0; r < 16; r++) memcpy(train_emulated[t][r], (const char *)base + r * stride, 64);
}
static inline void train_emulated_store(int t, void *base, size_t stride) {
    for (size_t r = 0; r < 16; r++) memcpy((char *)base + r * stride, train_emulated[t][r], 64);
}
static inline void train_emulated_dot(int c, int a, int b) {
    for (size_t m = 0; m < 16; m++)
        for (size_t k = 0; k < 16; k++)
            for (size_t n = 0; n < 16; n++) {
                uint32_t x, y;
                float    f[4];
                memcpy(&x, &train_emulated[a][m][k], 4);
                memcpy(&y, &train_emulated[b][k][n], 4);
                const uint32_t bits[4] = {x << 16, y << 16, x & 0xffff0000u, y & 0xffff0000u};
                memcpy(f, bits, sizeof f);
                train_emulated[c][m][n] += f[0] * f[1] + f[2] * f[3];
            }
}
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_zero(t)                memset(train_emulated[t], 0, sizeof train_emulated[t])
#define _tile_loadd(t, base, stride) train_emulated_load(t, base, stride)
#define _tile_stored(t, p, stride)   train_emulated_store(t, p, stride)
#define _tile_dpbf16ps(c, a, b)      train_emulated_dot(c, a, b)
static inline void train_tile_config(void) {}
static inline bool train_has_amx(void) { return true; }
#else
__attribute__((target("amx-tile"))) static inline void train_tile_config(void) {
    train_tiles t;
    memset(&t, 0, sizeof t);
    t.palette = 1;
    for (int i = 0; i < 8; i++) t.bytes[i] = 64, t.rows[i] = 16;
    __asm__ volatile("" : : "r"(&t) : "memory");
    _tile_loadconfig(&t);
}
/* The processor has it, and Linux lets this process use it (arch_prctl ARCH_REQ_XCOMP_PERM, tile data is state 18). */
static inline bool train_has_amx(void) {
#if defined(__linux__)
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    return train_arch_prctl(0x1023, 18) == 0;
#else
    return false;
#endif
}
#endif
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
#define TRAIN_STEP 1
#include "train_kernels.h"
#undef TRAIN_TARGET
#undef TRAIN_ISA
#undef TRAIN_NAME
#undef TRAIN_ROWS
#undef TRAIN_COLS
#undef TRAIN_STEP

#ifdef TRAIN_X86
#define TRAIN_AVX2   1
#define TRAIN_TARGET __attribute__((target("avx2,fma")))
#define TRAIN_ISA    avx2
#define TRAIN_NAME   "avx2"
#define TRAIN_ROWS   6
#define TRAIN_COLS   16
#define TRAIN_STEP   1
#include "train_kernels.h"
#undef TRAIN_AVX2
#undef TRAIN_TARGET
#undef TRAIN_ISA
#undef TRAIN_NAME
#undef TRAIN_ROWS
#undef TRAIN_COLS
#undef TRAIN_STEP

#define TRAIN_AVX512 1
#define TRAIN_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#define TRAIN_ISA    avx512
#define TRAIN_NAME   "avx512"
#define TRAIN_ROWS   8
#define TRAIN_COLS   32
#define TRAIN_STEP   1
#include "train_kernels.h"
#undef TRAIN_AVX512
#undef TRAIN_TARGET
#undef TRAIN_ISA
#undef TRAIN_NAME
#undef TRAIN_ROWS
#undef TRAIN_COLS
#undef TRAIN_STEP

#define TRAIN_BF16   1
#define TRAIN_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
#define TRAIN_ISA    bf16
#define TRAIN_NAME   "bf16"
#define TRAIN_ROWS   8
#define TRAIN_COLS   32
#define TRAIN_STEP   2
#include "train_kernels.h"
#undef TRAIN_BF16
#undef TRAIN_TARGET
#undef TRAIN_ISA
#undef TRAIN_NAME
#undef TRAIN_ROWS
#undef TRAIN_COLS
#undef TRAIN_STEP

#ifdef TRAIN_EMULATE_AMX
#define TRAIN_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
#else
#define TRAIN_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,amx-tile,amx-bf16")))
#endif
#define TRAIN_BF16 1
#define TRAIN_AMX  1
#define TRAIN_ISA  amx
#define TRAIN_NAME "amx"
#define TRAIN_ROWS 32
#define TRAIN_COLS 32
#define TRAIN_STEP 32
#include "train_kernels.h"
#undef TRAIN_BF16
#undef TRAIN_AMX
#undef TRAIN_TARGET
#undef TRAIN_ISA
#undef TRAIN_NAME
#undef TRAIN_ROWS
#undef TRAIN_COLS
#undef TRAIN_STEP
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif

enum { TRAIN_MAX_OPS = 5 };

/* What this machine can run, slowest first; returns how many. */
static inline int train_ops_list(const train_ops *list[TRAIN_MAX_OPS]) {
    int n     = 0;
    list[n++] = &ops_plain;
#ifdef TRAIN_X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list[n++] = &ops_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        list[n++] = &ops_avx512;
        if (__builtin_cpu_supports("avx512bf16")) {
            list[n++] = &ops_bf16;
            if (train_has_amx()) list[n++] = &ops_amx;
        }
    }
#endif
    return n;
}

/* Whether matrix products take bfloat16. */
static inline bool train_rounds(const train_ops *ops) {
    return strcmp(ops->name, "bf16") == 0 || strcmp(ops->name, "amx") == 0;
}

/* By name, or the fastest for ""; NULL: not on this machine. */
static inline const train_ops *train_ops_find(const char *name) {
    const train_ops *list[TRAIN_MAX_OPS];
    for (int n = train_ops_list(list); n > 0; n--)
        if (!*name || strcmp(list[n - 1]->name, name) == 0) return list[n - 1];
    return NULL;
}

#endif /* TRAIN_OPS_H */
