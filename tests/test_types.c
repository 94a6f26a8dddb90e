/* test_types.c - element types, checksums and elementary functions of l3.h against independent code: ref.c's and
 * make_model.c's quantizers, values put together with ldexp(), a bit-by-bit CRC, and libm. */
#define L3_NO_SIMD /* no model is run here: compiles in half the time */
#define L3_IMPLEMENTATION
#include "../l3.h"

#include "make_model.h"
#include "ref.h"
#include "test.h"

static uint32_t float_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static float bits_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static int same_float(float a, float b) { return (a != a && b != b) || float_bits(a) == float_bits(b); }

static uint32_t read16(const unsigned char *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }

static double worst(double a, double b) { return a > b || a != a ? a : b; }

/* Distance in units of the last place of the float nearest to `exact`. */
static double ulps(float got, double exact) {
    int e;
    frexp(exact, &e);
    return fabs((double)got - exact) / ldexp(1.0, (e < -125 ? -125 : e) - 24);
}

/* ---- status, checksums, shapes ---- */

TEST(status_texts) {
#define TEXT_OF(name, code, text) CHECK_STR(l3_status_text(code), text);
    L3_STATUS_LIST(TEXT_OF)
    CHECK_STR(l3_status_text(L3_ERR_IO), "reading from the source failed");
    CHECK_STR(l3_status_text(1), "unknown status");
    CHECK_STR(l3_status_text(-99), "unknown status");
    CHECK_EQ(l3_version(), L3_VERSION);
}

/* IEEE 802.3, one bit at a time. */
static uint32_t slow_crc(const unsigned char *p, size_t n) {
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ ((crc & 1) ? 0xedb88320u : 0);
    }
    return ~crc;
}

TEST(crc_known_answers) {
    static const struct {
        const char *text;
        uint32_t    crc;
    } cases[] = {{"", 0},
                 {"123456789", 0xcbf43926u},
                 {"a", 0xe8b7be43u},
                 {"abc", 0x352441c2u},
                 {"The quick brown fox jumps over the lazy dog", 0x414fa339u}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK_EQ(l3_crc32(0, cases[i].text, strlen(cases[i].text)), cases[i].crc);
    }
}

TEST(crc_of_pieces) {
    unsigned char bytes[1000];
    test_rng      r = {1};
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)test_below(&r, 256);
    for (size_t n = 0; n <= sizeof bytes; n += 1 + n / 7) {
        const uint32_t whole = l3_crc32(0, bytes, n);
        CHECK_EQ(whole, slow_crc(bytes, n));
        CHECK_EQ(whole, mk_crc32(0, bytes, n));
        for (size_t cut = 0; cut <= n; cut += 1 + n / 5) {
            CHECK_EQ(whole, l3_crc32(l3_crc32(0, bytes, cut), bytes + cut, n - cut));
        }
    }
}

static const struct {
    int         type;
    const char *name;
    uint32_t    block, bytes;
} types[] = {{L3_F32, "f32", 1, 4},     {L3_F16, "f16", 1, 2},     {L3_BF16, "bf16", 1, 2},    {L3_I32, "i32", 1, 4},
             {L3_Q8_0, "q8_0", 32, 34}, {L3_Q4_0, "q4_0", 32, 18}, {L3_Q6_K, "q6_K", 256, 210}};
enum { N_TYPES = sizeof types / sizeof *types };

TEST(type_table) {
    for (int i = 0; i < N_TYPES; i++) {
        CHECK_STR(l3_type_name(types[i].type), types[i].name);
        CHECK_EQ(l3_type_block(types[i].type), types[i].block);
        for (uint32_t cols = 0; cols < 1100; cols++) {
            const uint64_t bytes = cols % types[i].block ? 0 : (uint64_t)(cols / types[i].block) * types[i].bytes;
            CHECK_EQ(l3_row_bytes(types[i].type, cols), bytes);
            if (cols % types[i].block == 0) CHECK_EQ(ref_type_size((uint32_t)types[i].type, cols), bytes);
        }
    }
    CHECK_EQ(l3_row_bytes(L3_F32, UINT32_MAX), 4 * (uint64_t)UINT32_MAX);
    CHECK_EQ(l3_row_bytes(L3_Q8_0, 0xffffffe0u), (uint64_t)0x7ffffff * 34);
}

TEST(unknown_types) {
    static const int unknown[] = {-1, 3, 6, 7, 9, 12, 24, 31, 1000};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        float out[32] = {7};
        CHECK(l3_type_name(unknown[i]) == NULL);
        CHECK_EQ(l3_type_block(unknown[i]), 0);
        CHECK_EQ(l3_row_bytes(unknown[i], 256), 0);
        l3_unpack(unknown[i], "", 0, 32, out);
        CHECK(out[0] == 7);
    }
}

/* ---- plain numbers ---- */

TEST(bytes_are_little_endian) {
    static const float         numbers[2] = {1.0f, -2.5f};
    static const int32_t       ints[3]    = {0, -2, 0x01020304};
    static const unsigned char f32[] = {0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0}, f16[] = {0, 0x3c, 0, 0xc1},
                               bf16[] = {0x80, 0x3f, 0x20, 0xc0},
                               i32[]  = {0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 4, 3, 2, 1};
    unsigned char out[16];
    l3_pack(L3_F32, numbers, 2, out);
    CHECK_MEM(out, f32, sizeof f32);
    l3_pack(L3_F16, numbers, 2, out);
    CHECK_MEM(out, f16, sizeof f16);
    l3_pack(L3_BF16, numbers, 2, out);
    CHECK_MEM(out, bf16, sizeof bf16);
    l3_pack_i32(ints, 3, out);
    CHECK_MEM(out, i32, sizeof i32);
}

/* The value of a binary16, NaN included. */
static double half_value(uint32_t h) {
    const int    e = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
    const double v = e == 31 ? (fraction ? NAN : INFINITY) : ldexp(e ? 1024 + fraction : fraction, e ? e - 25 : -24);
    return h & 0x8000 ? -v : v;
}

static uint32_t pack_half(float f) {
    unsigned char out[2];
    l3_pack(L3_F16, &f, 1, out);
    return read16(out);
}

TEST(every_f16) {
    for (uint32_t h = 0; h < 65536; h++) {
        const unsigned char bytes[2] = {(unsigned char)(h & 255), (unsigned char)(h >> 8)};
        const double        exact    = half_value(h);
        float               f;
        l3_unpack(L3_F16, bytes, 0, 1, &f);
        CHECK(same_float(f, (float)exact) && (f != f || !signbit(f) == !signbit(exact)));
        if (f != f) CHECK((pack_half(f) & 0x7c00) == 0x7c00 && (pack_half(f) & 0x3ff) != 0);
        else CHECK_EQ(pack_half(f), h);
    }
}

/* Between neighbours h and h + 1: ties go to the even one, a float step to either side decides. */
TEST(f16_rounds_to_nearest_even) {
    for (uint32_t h = 0; h < 0x7c00; h++) {
        const double   above  = h + 1 < 0x7c00 ? half_value(h + 1) : 65536.0;
        const float    middle = (float)((half_value(h) + above) / 2);
        const uint32_t even   = h + (h & 1);
        CHECK_EQ(pack_half(middle), even);
        CHECK_EQ(pack_half(-middle), even | 0x8000);
        CHECK_EQ(pack_half(nextafterf(middle, 0)), h);
        CHECK_EQ(pack_half(nextafterf(middle, INFINITY)), h + 1);
    }
    CHECK_EQ(pack_half(INFINITY), 0x7c00);
    CHECK_EQ(pack_half(-INFINITY), 0xfc00);
    CHECK_EQ(pack_half(3e38f), 0x7c00);
    CHECK_EQ(pack_half(bits_float(0x80000001u)), 0x8000);
    CHECK(half_value(pack_half(NAN)) != half_value(pack_half(NAN)));
    CHECK((pack_half(bits_float(0x7f800001u)) & 0x3ff) != 0);
}

static uint32_t pack_bf16(uint32_t bits) {
    const float   f = bits_float(bits);
    unsigned char out[2];
    l3_pack(L3_BF16, &f, 1, out);
    return read16(out);
}

TEST(every_bf16) {
    for (uint32_t h = 0; h < 65536; h++) {
        const unsigned char bytes[2] = {(unsigned char)(h & 255), (unsigned char)(h >> 8)};
        const int           nan      = (h & 0x7fff) > 0x7f80;
        float               f;
        l3_unpack(L3_BF16, bytes, 0, 1, &f);
        CHECK_EQ(float_bits(f), h << 16);
        if (nan) CHECK((pack_bf16(h << 16) & 0x7fff) > 0x7f80);
        if (nan || (h & 0x7fff) == 0x7f80) continue;
        CHECK_EQ(pack_bf16(h << 16), h);
        CHECK_EQ(pack_bf16(h << 16 | 0x7fff), h);
        CHECK_EQ(pack_bf16(h << 16 | 0x8000), h + (h & 1));
        CHECK_EQ(pack_bf16(h << 16 | 0x8001), h + 1);
    }
    CHECK_EQ(pack_bf16(0x7f800000u), 0x7f80);
    CHECK((pack_bf16(0x7f800001u) & 0x7fff) > 0x7f80);
    CHECK((pack_bf16(0xffffffffu) & 0x7fff) > 0x7f80);
}

/* ---- blocks ---- */

/* Any bytes of any type give the values that ref.c gives, in whole and in part, from any address. */
static void compare_unpacked(int type, uint32_t n, test_rng *r) {
    unsigned char row[1 + 4 * 512];
    const size_t  bytes = (size_t)l3_row_bytes(type, n);
    double        exact[512];
    float         whole[512], part[512];
    for (size_t i = 0; i < sizeof row; i++) row[i] = (unsigned char)test_below(r, 256);
    REQUIRE(bytes + 1 <= sizeof row && ref_dequantize((uint32_t)type, row + 1, n, exact));
    l3_unpack(type, row + 1, 0, n, whole);
    for (uint32_t i = 0; i < n; i++) CHECK(same_float(whole[i], (float)exact[i]));
    for (int i = 0; i < 4; i++) {
        const uint32_t first = test_below(r, n / 32) * 32, count = 1 + test_below(r, n - first);
        l3_unpack(type, row + 1, first, count, part);
        for (uint32_t j = 0; j < count; j++) CHECK(same_float(part[j], whole[first + j]));
    }
}

TEST(unpack_agrees_with_the_reference) {
    test_rng r = {2};
    for (int i = 0; i < N_TYPES; i++) {
        if (types[i].type == L3_I32) continue;
        for (int round = 0; round < 200; round++) compare_unpacked(types[i].type, 512, &r);
    }
}

/* n numbers of a random magnitude; now and then zeros, equal ones, a lonely large one. */
static void random_block(test_rng *r, float *x, uint32_t n, int exponents) {
    const double   scale = ldexp(1, (int)test_below(r, 2 * (uint32_t)exponents + 1) - exponents);
    const uint32_t kind  = test_below(r, 8);
    for (uint32_t i = 0; i < n; i++) x[i] = (float)(kind == 0 ? 0 : kind == 1 ? scale : scale * test_normal(r));
    if (kind == 2) x[test_below(r, n)] *= 50;
}

/* The step of the stored scale, exact or rounded to a half, and the largest error in steps that rounding allows. */
static double block_error(int type, const float *x, double *step) {
    unsigned char row[34];
    float         back[32], peak = 0;
    double        error = 0;
    l3_pack(type, x, 32, row);
    l3_unpack(type, row, 0, 32, back);
    for (int i = 0; i < 32; i++) peak = fabsf(x[i]) > peak ? fabsf(x[i]) : peak;
    for (int i = 0; i < 32; i++) error = worst(error, fabs((double)x[i] - (double)back[i]));
    *step = (double)peak / (type == L3_Q8_0 ? 127 : 8);
    return error;
}

/* Q8_0: half a step, and 127 steps times the half's rounding (2^-11). Q4_0: the end opposite to the peak has no
 * level of its own and loses up to one step. Below 2^-14 the scale's own error is up to 2^-25. */
static void check_block_errors(int type, double rounding, double levels) {
    test_rng r    = {3};
    double   most = 0;
    for (int round = 0; round < 40000; round++) {
        float  x[32];
        double step, error;
        random_block(&r, x, 32, 10);
        error = block_error(type, x, &step);
        CHECK(error <= step * (rounding + levels / 2048 + 1e-5) + levels * ldexp(1, -25));
        if (step > ldexp(1, -14)) most = worst(most, error / step);
    }
    fprintf(stderr, "  largest error of %s: %.4f steps\n", l3_type_name(type), most);
}

TEST(quantization_errors) {
    check_block_errors(L3_Q8_0, 0.5, 127);
    check_block_errors(L3_Q4_0, 1.0, 8);
}

/* Every level is the nearest one to the number over the block's scale before that was rounded. */
static void check_nearest(const float *x) {
    unsigned char row[34];
    double        peak = 0;
    l3_pack(L3_Q8_0, x, 32, row);
    for (int i = 0; i < 32; i++) peak = worst(fabs((double)x[i]), peak);
    for (int i = 0; i < 32 && peak > 0; i++) {
        const int level = row[2 + i] < 128 ? row[2 + i] : row[2 + i] - 256;
        CHECK_NEAR(level, (double)x[i] * 127 / peak, 0.5 + 3e-5);
    }
    CHECK_EQ(read16(row), pack_half((float)peak / 127.0f));
}

TEST(q8_0_levels_are_nearest) {
    test_rng r = {4};
    float    x[32];
    for (int round = 0; round < 5000; round++) {
        random_block(&r, x, 32, 10);
        check_nearest(x);
    }
}

/* 0.49999997 + 0.5 is 1 in floats. */
TEST(just_below_a_half_rounds_down) {
    unsigned char row[34];
    float         x[32];
    for (int i = 0; i < 32; i++) x[i] = i == 0 ? 127.0f : i % 2 ? 0.49999997f : -0.49999997f;
    l3_pack(L3_Q8_0, x, 32, row);
    for (int i = 1; i < 32; i++) CHECK_EQ(row[2 + i], 0);
}

TEST(q4_0_layout) {
    unsigned char row[18], expected[18] = {0x00, 0x38}; /* scale 0.5 */
    float         x[32], back[32];
    for (int i = 0; i < 32; i++) x[i] = 0.5f * (float)(i % 16 - 8);
    for (int i = 0; i < 16; i++) expected[2 + i] = (unsigned char)(i | i << 4);
    l3_pack(L3_Q4_0, x, 32, row);
    CHECK_MEM(row, expected, sizeof row);
    l3_unpack(L3_Q4_0, row, 0, 32, back);
    CHECK_MEM(back, x, sizeof x);
}

/* What was unpacked packs to the same values again. */
TEST(packing_twice_changes_nothing) {
    static const int kinds[] = {L3_F32, L3_F16, L3_BF16, L3_Q8_0, L3_Q4_0};
    test_rng         r       = {5};
    for (int round = 0; round < 5000; round++) {
        const int     type = kinds[round % 5];
        unsigned char a[128], b[128];
        float         x[32], y[32], z[32];
        random_block(&r, x, 32, 4);
        l3_pack(type, x, 32, a);
        l3_unpack(type, a, 0, 32, y);
        l3_pack(type, y, 32, b);
        l3_unpack(type, b, 0, 32, z);
        for (int i = 0; i < 32; i++) CHECK_NEAR(y[i], z[i], fabs((double)y[i]) * (type == L3_Q8_0 ? 1e-3 : 0));
    }
}

/* One odd number in a block of ones. */
static void pack_odd(int type, float odd, float *back) {
    unsigned char row[128];
    float         x[32];
    for (int i = 0; i < 32; i++) x[i] = i == 5 ? odd : 1.0f;
    l3_pack(type, x, 32, row);
    l3_unpack(type, row, 0, 32, back);
}

TEST(odd_numbers_in_blocks) {
    static const int kinds[] = {L3_Q8_0, L3_Q4_0};
    for (int k = 0; k < 2; k++) {
        float back[32];
        pack_odd(kinds[k], 1e-42f, back);
        CHECK(fabsf(back[5]) < 0.01f && fabsf(back[0] - 1) < 0.2f);
        pack_odd(kinds[k], NAN, back);
        CHECK(fabsf(back[0] - 1) < 0.2f);
        pack_odd(kinds[k], INFINITY, back);
        CHECK(!isfinite(back[5]));
        pack_odd(kinds[k], 3e38f, back);
        CHECK(!isfinite(back[5]));
    }
}

TEST(blocks_of_tiny_numbers) {
    static const float tiny[] = {0, -0.0f, 1e-45f, -1e-45f, 1e-39f, 1e-38f, -1e-30f, 1e-12f};
    for (size_t k = 0; k < sizeof tiny / sizeof *tiny; k++) {
        unsigned char row[34];
        float         x[32], back[32];
        for (int i = 0; i < 32; i++) x[i] = i % 3 ? tiny[k] : 0;
        for (int type = L3_Q4_0; type <= L3_Q8_0; type += L3_Q8_0 - L3_Q4_0) {
            l3_pack(type, x, 32, row);
            l3_unpack(type, row, 0, 32, back);
            for (int i = 0; i < 32; i++) CHECK(fabsf(back[i]) <= fabsf(tiny[k]) * 1.01f);
        }
    }
}

/* ---- elementary functions ---- */

static double expf_error(float x) { return ulps(l3__expf(x), exp((double)x)); }

TEST(expf_against_libm) {
    const uint32_t stride = test_quick() ? 2111 : 307;
    double         most   = 0;
    for (uint32_t bits = 0; bits < 0x42b17000u; bits += stride) most = worst(most, expf_error(bits_float(bits)));
    for (uint32_t bits = 0; bits < 0x42ad3300u; bits += stride) most = worst(most, expf_error(-bits_float(bits)));
    for (double x = -86.59; x < 88.71; x += 1e-6 * (double)stride) most = worst(most, expf_error((float)x));
    fprintf(stderr, "  largest error of expf: %.3f ulp\n", most);
    CHECK(most <= 1.05); /* 0.982, and 1.023 where a compiler contracts all the same */
    CHECK(l3__expf(0) == 1 && l3__expf(-INFINITY) == 0 && l3__expf(-86.6f) == 0 && isinf(l3__expf(89)));
    CHECK(isinf(l3__expf(INFINITY)) && isnan(l3__expf(NAN)));
    CHECK(l3__expf(-86.59f) > 0 && isfinite(l3__expf(88.72f)));
}

TEST(expf_never_falls) {
    float before = 0;
    for (double x = -90; x < 90; x += 3e-5) {
        const float now = l3__expf((float)x);
        if (now < before) CHECK_NEAR(now, before, 1.2e-7 * (double)before);
        before = now;
    }
    CHECK(isinf(before));
}

TEST(sqrtf_bit_for_bit) {
    const int n     = test_quick() ? 300000 : 4000000;
    test_rng  r     = {6};
    int       wrong = 0;
    for (int i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)(test_random(&r) & 0x7fffffff);
        const float    any = bits_float(bits), subnormal = bits_float(bits & 0x7fffff);
        const float    square = bits_float(bits >> 12 << 12) * bits_float(bits >> 12 << 12);
        wrong += !same_float(l3__sqrtf(any), sqrtf(any)) + !same_float(l3__sqrtf(subnormal), sqrtf(subnormal));
        wrong += !same_float(l3__sqrtf(square), sqrtf(square));
    }
    for (uint32_t e = 0; e < 255; e++) {
        for (uint32_t low = 0; low < 64; low++) {
            const float below = bits_float((e + 1) << 23 | 0), a = bits_float(e << 23 | low);
            const float b = bits_float(float_bits(below) - 1 - low);
            wrong += !same_float(l3__sqrtf(a), sqrtf(a)) + !same_float(l3__sqrtf(b), sqrtf(b));
        }
    }
    CHECK_EQ(wrong, 0);
    CHECK(l3__sqrtf(INFINITY) == INFINITY && isnan(l3__sqrtf(NAN)) && isnan(l3__sqrtf(-1)));
    CHECK(l3__sqrtf(0) == 0 && signbit(l3__sqrtf(-0.0f)) && isnan(l3__sqrtf(-1e-45f)));
}

static double sincos_error(double a) {
    float s, c;
    l3__sincos(a, &s, &c);
    return worst(fabs((double)s - sin(a)), fabs((double)c - cos(a)));
}

/* Half a unit in the last place of a float below 1 is 2^-25 = 2.98e-8: what no float can beat. */
TEST(sincos_against_libm) {
    static const struct {
        double limit, allowed;
    } cases[]  = {{1, 2.99e-8}, {1000, 2.99e-8}, {1e6, 2.99e-8}, {2147483647.0, 4e-7}};
    test_rng r = {7};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        double most = 0;
        for (int i = 0; i < 300000; i++) most = worst(most, sincos_error(test_unit(&r) * cases[k].limit));
        for (int i = 0; i < 1000; i++) most = worst(most, sincos_error(floor(i * cases[k].limit / 1000)));
        fprintf(stderr, "  largest error of sincos up to %.3g: %.4g\n", cases[k].limit, most);
        CHECK(most <= cases[k].allowed);
    }
    for (int i = 0; i < 4000; i++) CHECK(sincos_error(i * 0.78539816339744831) <= 2.99e-8);
}

TEST(exp_and_log_against_libm) {
    test_rng r    = {8};
    double   exps = 0, logs = 0;
    for (int i = 0; i < 300000; i++) {
        const double x = (test_unit(&r) * 2 - 1) * 690, y = exp(x), near_one = 1 + x * 1e-4;
        exps = worst(exps, fabs(l3__exp(x) / y - 1));
        logs = worst(logs, fabs(l3__log(y) - log(y)) / fabs(log(y)));
        logs = worst(logs, fabs(l3__log(near_one) - log(near_one)) / fabs(log(near_one)));
    }
    fprintf(stderr, "  largest relative error of exp: %.3g, of log: %.3g\n", exps, logs);
    CHECK(exps <= 1e-15 && logs <= 1e-15);
    CHECK(l3__exp(0) == 1 && l3__log(1) == 0);
}

/* What RoPE needs: base^(-2i/d), against pow(). */
TEST(rope_frequencies_against_libm) {
    double most = 0;
    for (double base = 100; base < 1e8; base *= 1.7) {
        for (int i = 0; i < 128; i++) {
            const double exact = pow(base, -i / 128.0);
            most               = worst(most, fabs(l3__exp(-i / 128.0 * l3__log(base)) / exact - 1));
        }
    }
    CHECK(most <= 5e-15);
}

int main(void) {
    RUN(status_texts);
    RUN(crc_known_answers);
    RUN(crc_of_pieces);
    RUN(type_table);
    RUN(unknown_types);
    RUN(bytes_are_little_endian);
    RUN(every_f16);
    RUN(f16_rounds_to_nearest_even);
    RUN(every_bf16);
    RUN(unpack_agrees_with_the_reference);
    RUN(quantization_errors);
    RUN(q8_0_levels_are_nearest);
    RUN(just_below_a_half_rounds_down);
    RUN(q4_0_layout);
    RUN(packing_twice_changes_nothing);
    RUN(odd_numbers_in_blocks);
    RUN(blocks_of_tiny_numbers);
    RUN(expf_against_libm);
    RUN(expf_never_falls);
    RUN(sqrtf_bit_for_bit);
    RUN(sincos_against_libm);
    RUN(exp_and_log_against_libm);
    RUN(rope_frequencies_against_libm);
    return test_report("types");
}
