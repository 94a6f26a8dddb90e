/* emulated_amx.h - the tiles of AMX in memory, for tests on machines without: included before l3.h, it makes the level "amx"
 * work wherever AVX2 does. All of the level's code runs but its rounding in AVX-512 (here amx_halves), in vectors of 8 instead
 * of 16. The operations follow those of Intel's manual (Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TDPBF16PS,
 * ...), configuration and exceptions included: what a processor would refuse ends the program. */
#ifndef EMULATED_AMX_H
#define EMULATED_AMX_H

#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define L3__EMULATE_AMX
#define L3__AMX_TARGET              target("avx2,fma,f16c")
#define L3__AMX_CONFIGURE(config)   amx_configure(config)
#define L3__AMX_RELEASE()           amx_release()
#define L3__AMX_ZERO(t)             amx_zero(t)
#define L3__AMX_LOAD(t, p, stride)  amx_load(t, p, stride)
#define L3__AMX_STORE(t, p, stride) amx_store(t, p, stride)
#define L3__AMX_DOT(c, a, b)        amx_dot(c, a, b)

typedef struct amx_tile {
    uint32_t rows, bytes; /* of a row */
    uint32_t at[16][16];
} amx_tile;

/* A thread's own; palette 0: not configured. */
typedef struct amx_state {
    int      palette;
    amx_tile tile[8];
} amx_state;

static inline amx_state *amx_here(void) {
    static __thread amx_state state;
    return &state;
}

static inline void amx_need(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "emulated AMX: %s\n", what);
    abort();
}

static inline amx_tile *amx_tile_at(int t) {
    amx_state *s = amx_here();
    amx_need(s->palette == 1, "tiles are used that this thread has not configured");
    amx_need(t >= 0 && t < 8 && s->tile[t].rows > 0, "no such tile");
    return &s->tile[t];
}

static inline void amx_release(void) { memset(amx_here(), 0, sizeof(amx_state)); }

/* 64 bytes: palette, first row, 14 of zero, the bytes of a row of each of 16 tiles (16 bits each), their rows. */
static inline void amx_configure(const void *config) {
    const unsigned char *c = (const unsigned char *)config;
    amx_state           *s = amx_here();
    amx_release();
    amx_need(c[0] == 1, "the palette is not 1");
    for (int i = 1; i < 16; i++) amx_need(c[i] == 0, "reserved bytes, or a first row");
    for (int t = 0; t < 16; t++) {
        const uint32_t bytes = c[16 + 2 * t] | (uint32_t)c[17 + 2 * t] << 8, rows = c[48 + t];
        amx_need(bytes <= 64 && rows <= 16 && (bytes == 0) == (rows == 0), "a tile's size");
        amx_need(t < 8 || rows == 0, "a tile that palette 1 does not have");
        if (t < 8) s->tile[t].rows = rows, s->tile[t].bytes = bytes;
    }
    s->palette = 1;
}

static inline void amx_zero(int t) { memset(amx_tile_at(t)->at, 0, sizeof(uint32_t[16][16])); }

static inline void amx_load(int t, const void *base, size_t stride) {
    amx_tile *to = amx_tile_at(t);
    amx_zero(t);
    for (size_t r = 0; r < to->rows; r++) memcpy(to->at[r], (const char *)base + r * stride, to->bytes);
}

static inline void amx_store(int t, void *base, size_t stride) {
    const amx_tile *from = amx_tile_at(t);
    for (size_t r = 0; r < from->rows; r++) memcpy((char *)base + r * stride, from->at[r], from->bytes);
}

#define AMX_AVX2 __attribute__((target("avx2,fma,f16c")))

static inline AMX_AVX2 __m256 amx_low(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
static inline AMX_AVX2 __m256 amx_high(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000u)));
}

/* Columns n ... n + 7 of row m; the first elements of all pairs have a sum, the second ones another. */
static __attribute__((noinline, target("avx2,fma,f16c"))) void amx_dot_part(amx_tile *c, const amx_tile *a,
                                                                            const amx_tile *b, uint32_t m, uint32_t n) {
    __m256   low = _mm256_setzero_ps(), high = low;
    float    sum[8];
    uint32_t row[8];
    for (uint32_t k = 0; k < a->bytes / 4; k++) {
        const __m256i x = _mm256_set1_epi32((int)a->at[m][k]);
        const __m256i y = _mm256_loadu_si256((const __m256i *)(const void *)&b->at[k][n]);
        low             = _mm256_fmadd_ps(amx_low(x), amx_low(y), low);
        high            = _mm256_fmadd_ps(amx_high(x), amx_high(y), high);
    }
    memcpy(sum, &c->at[m][n], sizeof sum);
    _mm256_storeu_ps(sum, _mm256_add_ps(_mm256_loadu_ps(sum), _mm256_add_ps(low, high)));
    memcpy(row, sum, sizeof row);
    for (uint32_t i = 0; i < 8; i++) c->at[m][n + i] = n + i < c->bytes / 4 ? row[i] : 0;
}

static inline void amx_dot(int to, int left, int right) {
    const unsigned  mxcsr = _mm_getcsr();
    amx_tile       *c     = amx_tile_at(to);
    const amx_tile *a = amx_tile_at(left), *b = amx_tile_at(right);
    amx_need(to != left && to != right && left != right, "one tile twice");
    amx_need(c->bytes % 4 == 0 && a->bytes % 4 == 0 && b->bytes % 4 == 0, "parts of elements");
    amx_need(c->rows == a->rows && c->bytes == b->bytes && a->bytes / 4 == b->rows, "shapes that do not match");
    _mm_setcsr(0x9fc0); /* to nearest even; subnormals are zero, as inputs and as outputs; nothing is raised */
    for (uint32_t m = 0; m < c->rows; m++) amx_dot_part(c, a, b, m, 0), amx_dot_part(c, a, b, m, 8);
    _mm_setcsr(mxcsr);
}

/* 8 floats, rounded to bf16, in 32 bits each; a NaN stays one. */
static inline AMX_AVX2 __m256i amx_halves(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x),
                  odd  = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up   = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i nan  = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i no   = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(up, nan, no), 16);
}

/* 16 floats as 8 words of two bf16. */
static inline __attribute__((always_inline, target("avx2,fma,f16c"))) __m256 l3__pairs_avx2(__m256 low, __m256 high) {
    const __m256i mixed = _mm256_packus_epi32(amx_halves(low), amx_halves(high));
    return _mm256_castsi256_ps(_mm256_permute4x64_epi64(mixed, 0xd8));
}

#endif
