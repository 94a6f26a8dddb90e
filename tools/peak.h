/* peak.h - the floor of a prompt: how many products a second the processor's vector or matrix unit has, from registers alone,
 * with the instruction that a level multiplies a type of weights by. x86-64 alone; elsewhere nothing is known. */
#ifndef PEAK_H
#define PEAK_H

/* Runs `times` times PEAK_STEPS instructions on registers that the compiler cannot see through. */
typedef struct peak_unit {
    const char *name;
    double      products; /* multiply-adds of an instruction */
    void (*run)(uint32_t times);
} peak_unit;

enum { PEAK_STEPS = 8, PEAK_TIMES = 20000 }; /* of a piece: some 50 microseconds, of tiles a millisecond */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(_WIN32)
#include <immintrin.h>

/* x: a register of operands; s: a sum. Eight sums side by side, so that latency never is what takes the time. */
#define PEAK_STEP(sum, step)            \
    do {                                \
        s = sum;                        \
        __asm__ volatile("" : "+v"(x)); \
        sum = step;                     \
    } while (0)
#define PEAK_UNIT(unit, isa, vector, empty, step)                                              \
    static __attribute__((target(isa))) void peak_##unit(uint32_t times) {                     \
        vector x = empty, s, a = x, b = x, c = x, d = x, e = x, f = x, g = x, h = x;           \
        while (times--) {                                                                      \
            PEAK_STEP(a, step);                                                                \
            PEAK_STEP(b, step);                                                                \
            PEAK_STEP(c, step);                                                                \
            PEAK_STEP(d, step);                                                                \
            PEAK_STEP(e, step);                                                                \
            PEAK_STEP(f, step);                                                                \
            PEAK_STEP(g, step);                                                                \
            PEAK_STEP(h, step);                                                                \
        }                                                                                      \
        __asm__ volatile("" ::"v"(a), "v"(b), "v"(c), "v"(d), "v"(e), "v"(f), "v"(g), "v"(h)); \
    }
#define PEAK_INT256 _mm256_setzero_si256()
#define PEAK_INT512 _mm512_setzero_si512()
PEAK_UNIT(float_avx2, "avx2", __m256, _mm256_setzero_ps(), _mm256_add_ps(s, _mm256_mul_ps(x, x)))
PEAK_UNIT(float_avx512, "avx512f", __m512, _mm512_setzero_ps(), _mm512_add_ps(s, _mm512_mul_ps(x, x)))
PEAK_UNIT(fused_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), _mm256_fmadd_ps(x, x, s))
PEAK_UNIT(fused_avx512, "avx512f", __m512, _mm512_setzero_ps(), _mm512_fmadd_ps(x, x, s))
PEAK_UNIT(bytes_avx2, "avx2", __m256i, PEAK_INT256, _mm256_add_epi16(s, _mm256_maddubs_epi16(x, x)))
PEAK_UNIT(words_avx2, "avx2", __m256i, PEAK_INT256, _mm256_add_epi32(s, _mm256_madd_epi16(x, x)))
PEAK_UNIT(bytes_avx512, "avx512f,avx512vnni", __m512i, PEAK_INT512, _mm512_dpbusd_epi32(s, x, x))
PEAK_UNIT(words_avx512, "avx512f,avx512vnni", __m512i, PEAK_INT512, _mm512_dpwssd_epi32(s, x, x))
PEAK_UNIT(bf16_avx512, "avx512f,avx512bf16", __m512, _mm512_setzero_ps(), _mm512_dpbf16_ps(s, (__m512bh)x, (__m512bh)x))

#if !defined(L3__EMULATE_AMX) && defined(__linux__) && defined(__LP64__) && \
    (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
/* Tiles of 16 rows of 64 bytes. L3_LEVEL_AMX has asked the system for permission. */
#define PEAK_TILES_ONCE      \
    _tile_dpbf16ps(0, 4, 5); \
    _tile_dpbf16ps(1, 4, 5); \
    _tile_dpbf16ps(2, 4, 5); \
    _tile_dpbf16ps(3, 4, 5)
static __attribute__((target("amx-tile,amx-bf16"))) void peak_tiles(uint32_t times) {
    static const struct { /* static, as gcc's intrinsic does not tell it that more than a pointer's bytes are read */
        uint8_t  palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t  rows[16];
    } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    while (times--) {
        PEAK_TILES_ONCE;
        PEAK_TILES_ONCE;
    }
    _tile_release();
}
#define PEAK_TILES \
    { "tiles of bf16", 16.0 * 16 * 32, peak_tiles }
#else
#define PEAK_TILES \
    { NULL, 0, NULL }
#endif

/* What multiplies a prompt's weights of this type. run is NULL where that is not known. */
static inline peak_unit peak_of(l3_level level, int type, bool exact) {
    static const peak_unit apart8  = {"floats, products and sums apart", 8, peak_float_avx2},
                           apart16 = {"floats, products and sums apart", 16, peak_float_avx512},
                           fused8 = {"floats", 8, peak_fused_avx2}, fused16 = {"floats", 16, peak_fused_avx512},
                           byte32 = {"int8", 32, peak_bytes_avx2}, byte64 = {"int8", 64, peak_bytes_avx512},
                           word16 = {"int16", 16, peak_words_avx2}, word32 = {"int16", 32, peak_words_avx512},
                           bf16 = {"bf16", 32, peak_bf16_avx512}, tiles = PEAK_TILES, unknown = {NULL, 0, NULL};
    const bool bytes = type == L3_Q8_0 || type == L3_Q4_0, fused = type == L3_F32, six = type == L3_Q6_K;
    switch ((int)level) {
    case L3_LEVEL_AVX2: return exact ? apart8 : fused || six ? fused8 : type == L3_Q4_0 ? byte32 : word16;
    case L3_LEVEL_AVX512: return exact ? apart16 : fused || six ? fused16 : bytes ? byte64 : word32;
    case L3_LEVEL_BF16: return exact ? apart16 : fused ? fused16 : bytes ? byte64 : bf16;
    case L3_LEVEL_AMX: return exact ? apart16 : fused ? fused16 : tiles;
    default: return unknown;
    }
}
#else
static inline peak_unit peak_of(l3_level level, int type, bool exact) {
    const peak_unit unknown = {NULL, 0, NULL};
    return (void)level, (void)type, (void)exact, unknown;
}
#endif

static inline void peak_piece(void *arg, uint32_t piece) {
    (void)piece;
    ((const peak_unit *)arg)->run(PEAK_TIMES);
}

#endif /* PEAK_H */
