/* test_arithmetic.cpp - the parts of l3_cuda.cu by themselves: numbers and layouts against l3.h, kernels run on the CPU against
 * double precision, std::sort and l3_sample(). */
#include "emulator.h"

#define L3_NO_SIMD
#define L3_IMPLEMENTATION
#include "../../l3_cuda.cu"

#include "../test.h"

#include <vector>

static const int types[6] = {L3_F32, L3_F16, L3_BF16, L3_Q8_0, L3_Q4_0, L3_Q6_K};

static float noise(test_rng *r) { return (float)test_normal(r); }

/* A row of a table or matrix, of random numbers. Q6_K, which nothing here packs: random blocks with sound scales. */
static std::vector<unsigned char> random_row(test_rng *r, int type, uint32_t cols) {
    std::vector<unsigned char> row((size_t)l3_row_bytes(type, cols));
    if (type == L3_Q6_K) {
        for (unsigned char &byte : row) byte = (unsigned char)test_random(r);
        for (size_t at = 208; at < row.size(); at += 210) {
            const float d = 0.001f + (float)test_unit(r) * 0.01f;
            l3_pack(L3_F16, &d, 1, row.data() + at);
        }
        return row;
    }
    std::vector<float> x(cols);
    for (float &v : x) v = noise(r);
    l3_pack(type, x.data(), cols, row.data());
    return row;
}

static std::vector<float> unpacked(int type, const unsigned char *row, uint32_t cols) {
    std::vector<float> x(cols);
    l3_unpack(type, row, 0, cols, x.data());
    return x;
}

/* ---- numbers ---- */

TEST(slots) {
    for (uint32_t group = 4; group <= 32; group *= 2)
        for (uint32_t groups = 128 / group; groups <= 1024 / group; groups += 128 / group) {
            std::vector<bool> taken(group * groups);
            for (uint32_t k = 0; k < group * groups; k++) {
                const uint32_t at = l3__cu_slot(k, group, groups);
                if (!CHECK(at < taken.size() && !taken[at])) return;
                taken[at] = true;
            }
            /* Eight lanes beside each other read all 32 banks. */
            for (uint32_t q = 0; q < group / 4; q++)
                for (uint32_t g = 0; g + 8 <= groups; g += 8) {
                    uint32_t banks = 0;
                    for (uint32_t k = 0; k < 32; k++)
                        banks |= 1u << l3__cu_slot((g + k / 4) * group + 4 * q + k % 4, group, groups) % 32;
                    CHECK_EQ(banks, ~0u);
                }
        }
}

TEST(halves) {
    test_rng r   = {1};
    int      bad = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        const uint16_t bits = (uint16_t)h;
        float          f, b;
        l3_unpack(L3_F16, &bits, 0, 1, &f);
        l3_unpack(L3_BF16, &bits, 0, 1, &b);
        bad += l3__cu_bits(l3__cu_from_f16(bits)) != l3__cu_bits(f);
        bad += l3__cu_bits(l3__cu_from_bf16(bits)) != l3__cu_bits(b);
        if ((h & 0x7fff) < 0x7c00) bad += l3__cu_to_f16(f) != h;
        if ((h & 0x7fff) == 0x7c00) bad += l3__cu_to_f16(f) != (h & 0x8000) + 0x7bff; /* the largest number */
        if ((h & 0x7fff) <= 0x7f80) bad += l3__cu_to_bf16(b) != h;
    }
    CHECK_EQ(bad, 0);
    for (int i = 0; i < 200000; i++) {
        const float f = l3__cu_float((uint32_t)test_random(&r));
        uint16_t    h, b;
        l3_pack(L3_F16, &f, 1, &h);
        l3_pack(L3_BF16, &f, 1, &b);
        if (fabsf(f) <= 65504) bad += l3__cu_to_f16(f) != h;
        if (f == f) bad += l3__cu_to_bf16(f) != b;
        if (f != f) bad += (l3__cu_to_f16(f) & 0x7fff) <= 0x7c00 || (l3__cu_to_bf16(f) & 0x7fff) <= 0x7f80;
    }
    CHECK_EQ(bad, 0);
    CHECK_EQ(l3__cu_to_half(1.0f, false), 0x3c00);
    CHECK_EQ(l3__cu_to_half(1.0f, true), 0x3f80);
    CHECK_EQ(l3__cu_pair(1.0f, 2.0f, false), 0x40003c00u);
}

TEST(exponentials) {
    int bad = 0;
    for (uint64_t bits = 0; bits < (uint64_t)1 << 32; bits += 4099) {
        const float x = l3__cu_float((uint32_t)bits);
        bad += l3__cu_bits(l3__cu_exp(x)) != l3__cu_bits(l3__expf(x));
    }
    CHECK_EQ(bad, 0);
    for (float x = -90; x < 90; x += 0.0137f) bad += l3__cu_bits(l3__cu_exp(x)) != l3__cu_bits(l3__expf(x));
    CHECK_EQ(bad, 0);
}

TEST(randoms) {
    uint64_t a = 77, b = 77;
    for (int i = 0; i < 1000; i++) CHECK(l3__cu_random(&a) == l3_random(&b));
}

TEST(ranks) {
    static const float rising[] = {-3.4028235e38f, -1e9f, -1.5f,      -1e-40f, 0.0f,
                                   1e-40f,         1.0f,  1.0000001f, 3e38f,   INFINITY};
    CHECK(l3__cu_rank(-INFINITY, 3) == 0 && l3__cu_rank(NAN, 3) == 0);
    CHECK(l3__cu_rank(-0.0f, 7) == l3__cu_rank(0.0f, 7));
    CHECK(l3__cu_rank(1.0f, 7) > l3__cu_rank(1.0f, 8));
    for (size_t i = 0; i < sizeof rising / sizeof *rising; i++) {
        CHECK(l3__cu_rank_logit(l3__cu_rank(rising[i], 9)) == rising[i]);
        CHECK(l3__cu_rank(rising[i], 1u << 20) > 0);
        if (i) CHECK(l3__cu_rank(rising[i], 1u << 20) > l3__cu_rank(rising[i - 1], 0));
    }
    CHECK_EQ(l3__cu_ordered(NAN), 0);
}

/* ---- layouts ---- */

/* A device matrix of random rows, and what they are as floats. */
struct matrix {
    l3__cu_matrix         m;
    std::vector<uint4>    data;
    std::vector<uint16_t> scales;
    std::vector<float>    right;
    matrix(test_rng *r, int from, int type, uint32_t rows, uint32_t cols) {
        m                  = {nullptr, nullptr, rows, cols, l3__cu_round(cols, L3__CU_K), type};
        const size_t bytes = l3__cu_bytes(type, m.ld);
        data.resize(rows * bytes / 16);
        scales.resize((size_t)rows * (m.ld / 32));
        m.data   = (const unsigned char *)data.data();
        m.scales = scales.data();
        for (uint32_t i = 0; i < rows; i++) {
            const std::vector<unsigned char> row = random_row(r, from, cols);
            const std::vector<float>         x   = unpacked(from, row.data(), cols);
            right.insert(right.end(), x.begin(), x.end());
            l3__cu_convert_row(&m, from, row.data(), (unsigned char *)data.data() + i * bytes,
                               scales.data() + (size_t)i * (m.ld / 32));
        }
    }
};

template <int T> static void check_layout(int from, uint32_t cols) {
    test_rng     r = {(uint64_t)(T * 100 + from)};
    const matrix a(&r, from, T, 3, cols);
    int          bad = 0;
    for (uint32_t row = 0; row < 3; row++)
        for (uint32_t k = 0; k < a.m.ld; k++) {
            const float right = k < cols ? a.right[(size_t)row * cols + k] : 0;
            const float v     = l3__cu_element<T>(a.m, row, k);
            float       want  = right;
            if (T == L3_F16 && from != T) want = l3__cu_from_f16(l3__cu_to_f16(right));
            bad += v != want;
            /* The same as halves. */
            const uint32_t g = k / l3__cu_group<T>::n, i = k % l3__cu_group<T>::n;
            if (T == L3_F32) continue;
            uint32_t pairs[4];
            l3__cu_pairs<T>(l3__cu_load<T>(a.m, row, g), l3__cu_load_scale<T>(a.m, row, g), i / 8, pairs);
            const uint16_t half = (uint16_t)(pairs[i % 8 / 2] >> (k % 2 * 16));
            bad += half != l3__cu_to_half(want, T == L3_BF16) && want != 0;
            if (want == 0) bad += (half & 0x7fff) != 0;
        }
    if (!CHECK_EQ(bad, 0)) fprintf(stderr, "    type %d as %d\n", from, T);
}

TEST(layouts) {
    for (uint32_t cols = 256; cols <= 768; cols += 256) {
        check_layout<L3_Q8_0>(L3_Q8_0, cols);
        check_layout<L3_Q4_0>(L3_Q4_0, cols);
        check_layout<L3_Q8_0>(L3_Q8_0, cols + 32);
        check_layout<L3_Q4_0>(L3_Q4_0, cols + 96);
        for (int from : types) check_layout<L3_F32>(from, cols);
        check_layout<L3_F16>(L3_Q6_K, cols);
        check_layout<L3_F16>(L3_BF16, cols);
    }
    for (uint32_t cols : {1u, 7u, 31u, 33u, 100u, 129u}) {
        check_layout<L3_F32>(L3_F32, cols);
        check_layout<L3_F16>(L3_F16, cols);
        check_layout<L3_BF16>(L3_BF16, cols);
        check_layout<L3_F16>(L3_BF16, cols);
        check_layout<L3_F32>(L3_F16, cols);
    }
    CHECK_EQ(l3__cu_units(16, 16), 1);
    CHECK_EQ(l3__cu_units(14, 3), 2);
    CHECK_EQ(l3__cu_units(2, 0), 1);
}

template <int T> static void check_eight(uint32_t cols) {
    test_rng                         r   = {T + cols};
    const std::vector<unsigned char> row = random_row(&r, T, cols);
    const std::vector<float>         x   = unpacked(T, row.data(), cols);
    std::vector<uint4>               room(row.size() / 16 + 3);
    int                              bad = 0;
    for (uint32_t shift = 0; shift < 16; shift += 2) {
        unsigned char *at = (unsigned char *)room.data() + shift;
        memcpy(at, row.data(), row.size());
        for (uint32_t i = 0; i < cols; i += 8) {
            float v[8], aligned[8];
            l3__cu_eight<T, false>(at, i, cols, v);
            if (shift == 0) l3__cu_eight<T, true>(at, i, cols, aligned);
            for (uint32_t k = 0; k < 8; k++) {
                const float right = i + k < cols ? x[i + k] : 0;
                bad += v[k] != right;
                if (shift == 0) bad += aligned[k] != right;
            }
        }
    }
    if (!CHECK_EQ(bad, 0)) fprintf(stderr, "    type %d, %u columns\n", T, cols);
}

TEST(eights) {
    for (uint32_t cols : {1u, 5u, 8u, 12u, 33u, 64u}) {
        check_eight<L3_F32>(cols);
        check_eight<L3_F16>(cols);
        check_eight<L3_BF16>(cols);
    }
    for (uint32_t cols : {32u, 96u, 256u}) {
        check_eight<L3_Q8_0>(cols);
        check_eight<L3_Q4_0>(cols);
    }
    check_eight<L3_Q6_K>(256);
    check_eight<L3_Q6_K>(768);
}

/* ---- kernels ---- */

/* What host functions of l3_cuda.cu need of an object. */
struct bench {
    l3_cuda               s;
    std::vector<uint16_t> halves;
    std::vector<float>    hidden;
    explicit bench(size_t room) : halves(room + 8), hidden(room) {
        memset((void *)&s, 0, sizeof s);
        CHECK_EQ(cudaStreamCreateWithFlags(&s.main, cudaStreamNonBlocking), cudaSuccess);
        s.halves = halves.data();
        while ((uintptr_t)s.halves % 16) s.halves++;
        s.hidden = hidden.data();
    }
    void finish() {
        CHECK_EQ(s.failed, cudaSuccess);
        CHECK_EQ(cudaStreamSynchronize(s.main), cudaSuccess);
    }
    ~bench() { CHECK_EQ(cudaStreamDestroy(s.main), cudaSuccess); }
};

static double silu(double x) { return x / (1 + exp(-x)); }

/* Worst difference from double precision, relative to the sum of sizes of what is added up. */
static double product(int type, uint32_t rows, uint32_t cols, uint32_t n, l3_mode mode, bool normalize, bool gated,
                      bool add) {
    test_rng           r = {(uint64_t)type * 1000 + rows + cols + n};
    const matrix       a(&r, type, type == L3_Q6_K ? L3_F16 : type, rows, cols);
    bench              b((size_t)n * a.m.ld * 2);
    const size_t       out_rows = gated ? rows / 2 : rows;
    std::vector<float> x((size_t)n * cols), norm(cols), y(n * out_rows + 3, 0.5f);
    for (float &v : x) v = noise(&r);
    for (float &v : norm) v = noise(&r);
    l3__cu_product p = l3__cu_product_of(&a.m, x.data(), cols, n, y.data(), (uint32_t)out_rows);
    p.normalize = normalize, p.norm = norm.data(), p.epsilon = 1e-5f, p.gated = gated, p.add = add;
    b.s.config.mode = mode;
    l3__cu_multiply(&b.s, p, false);
    b.finish();
    double worst = 0;
    for (uint32_t i = 0; i < n; i++) {
        double square = 0;
        for (uint32_t k = 0; k < cols; k++) square += (double)x[i * cols + k] * (double)x[i * cols + k];
        const double rms     = normalize ? 1 / sqrt(square / cols + 1e-5) : 1;
        double       sums[2] = {0, 0}, size = 0;
        for (uint32_t row = 0; row < out_rows; row++) {
            size = sums[0] = sums[1] = 0;
            for (int half = 0; half < (gated ? 2 : 1); half++)
                for (uint32_t k = 0; k < cols; k++) {
                    const double v = (double)x[i * cols + k] * rms * (normalize ? (double)norm[k] : 1) *
                                     (double)a.right[(row + (half ? out_rows : 0)) * cols + k];
                    sums[half] += v, size += fabs(v);
                }
            const double right = (gated ? silu(sums[0]) * sums[1] : sums[0]) + (add ? 0.5 : 0);
            const double d = fabs((double)y[i * out_rows + row] - right) / (size + 1) / (gated ? 1 + fabs(sums[1]) : 1);
            if (!(d <= worst)) worst = d;
        }
    }
    for (size_t i = 0; i < 3; i++) CHECK(y[n * out_rows + i] == 0.5f); /* nothing behind it */
    return worst;
}

static void check_product(int type, uint32_t rows, uint32_t cols, uint32_t n, l3_mode mode, bool normalize, bool gated,
                          bool add) {
    /* Halves have 11 bits, those of bf16 8; some of both are rounded: half of the last bit each. */
    const bool   halves  = (mode == L3_FAST && n > 1 && type != L3_F32) || type == L3_Q6_K;
    const double allowed = !halves ? 1e-6 : type == L3_BF16 ? 0x1p-8 : 0x1p-10;
    const double d       = product(type, rows, cols, n, mode, normalize, gated, add);
    if (!CHECK(d <= allowed))
        fprintf(stderr, "    type %d, %u x %u, %u positions, mode %d: %.3g\n", type, rows, cols, n, (int)mode, d);
}

TEST(products) {
    static const uint32_t counts[] = {1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 129};
    for (int type : types) {
        const uint32_t odd = type == L3_Q6_K ? 256 : l3_type_block(type) == 32 ? 96 : 77;
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            const uint32_t rows = i % 3 == 0 ? 130 : i % 3 == 1 ? 33 : 7;
            check_product(type, rows, odd, counts[i], L3_FAST, i % 2 == 0, false, i % 3 == 0);
        }
        check_product(type, 34, odd, 5, L3_EXACT, true, true, false);
        check_product(type, 19, 512, 1, L3_EXACT, false, false, true);
        check_product(type, 18, 256, 4, L3_EXACT, false, true, false);
        check_product(type, 5, 8192 + 256, 1, L3_EXACT, true, false, false); /* more than fits in shared memory */
        check_product(type, 5, 2048 + 256, 3, L3_EXACT, true, false, false);
        check_product(type, 40, 1024, 20, L3_FAST, true, false, false);
    }
}

/* ---- attention ---- */

static void check_prefill(uint32_t heads, uint32_t kv_heads, uint32_t dim, uint32_t n, uint32_t at, bool half) {
    test_rng              r  = {dim + n + at};
    const uint32_t        ld = l3__cu_round(dim, 8), context = at + n + 3, all = heads + 2 * kv_heads;
    bench                 b(1);
    const size_t          cells = (size_t)2 * kv_heads * context * ld;
    std::vector<float>    qkv((size_t)n * all * dim), out((size_t)n * heads * dim, -1.0f), keys(cells), values(cells);
    std::vector<uint32_t> sequences(n, 1), positions(n);
    std::vector<uint4>    k16(cells / 8 + 1), v16(cells / 8 + 1);
    for (float &v : qkv) v = noise(&r);
    for (size_t i = 0; i < cells; i++) {
        const bool in               = i % ld < dim;
        keys[i]                     = in ? l3__cu_from_f16(l3__cu_to_f16(noise(&r))) : 0;
        values[i]                   = in ? l3__cu_from_f16(l3__cu_to_f16(noise(&r))) : 0;
        ((uint16_t *)k16.data())[i] = l3__cu_to_f16(keys[i]);
        ((uint16_t *)v16.data())[i] = l3__cu_to_f16(values[i]);
        /* What lies behind the text is not read. */
        if (i / ld % context >= at + n) ((uint16_t *)k16.data())[i] = ((uint16_t *)v16.data())[i] = 0x7e00;
    }
    for (uint32_t i = 0; i < n; i++) positions[i] = at + i;
    l3__cu_attention a;
    memset(&a, 0, sizeof a);
    a.qkv = qkv.data(), a.in = {nullptr, sequences.data(), positions.data()};
    a.n = n, a.n_heads = heads, a.head_dim = dim, a.out = out.data();
    a.cache = {half ? (unsigned char *)k16.data() : (unsigned char *)keys.data(),
               half ? (unsigned char *)v16.data() : (unsigned char *)values.data(),
               2,
               kv_heads,
               context,
               ld,
               half};
    const size_t shared = 2 * L3__CU_QUERIES * ((dim <= 64 ? 64 : 128) + 8) * sizeof(uint16_t);
    const dim3   grid(l3__cu_ceil(n, L3__CU_QUERIES), heads);
    l3__cu_launch(&b.s, grid, 128, shared, dim <= 64 ? l3__cu_prefill_attend<64> : l3__cu_prefill_attend<128>, a);
    b.finish();
    double worst = 0;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t h = 0; h < heads; h++) {
            const uint32_t      kv = h / (heads / kv_heads);
            std::vector<double> w(at + i + 1), sum(dim);
            double              total = 0;
            for (uint32_t t = 0; t <= at + i; t++) {
                const size_t row = l3__cu_cache_row(a.cache, 1, kv, t);
                for (uint32_t k = 0; k < dim; k++)
                    w[t] += (double)qkv[((size_t)i * all + h) * dim + k] * (double)keys[row + k];
                total += w[t] = exp(w[t] / sqrt((double)dim));
                for (uint32_t k = 0; k < dim; k++) sum[k] += w[t] * (double)values[row + k];
            }
            for (uint32_t k = 0; k < dim; k++) {
                const double d = fabs(sum[k] / total - (double)out[((size_t)i * heads + h) * dim + k]);
                if (!(d <= worst)) worst = d;
            }
        }
    /* Queries, keys and weights have 11 bits; scores of up to about 4 that differ by 2^-10 change their weights so much. */
    if (!CHECK(worst <= 4e-3)) fprintf(stderr, "    heads of %u, %u positions from %u: %.3g\n", dim, n, at, worst);
}

TEST(prefill_attention) {
    check_prefill(2, 1, 64, 64, 0, true);
    check_prefill(4, 2, 8, 65, 0, false);
    check_prefill(1, 1, 33, 3, 61, true);
    check_prefill(3, 1, 128, 10, 130, true);
    check_prefill(2, 2, 100, 70, 5, false);
    check_prefill(1, 1, 65, 2, 0, true);
    check_prefill(8, 1, 16, 129, 64, true);
}

/* ---- tokens and their rows ---- */

static void check_groups(uint32_t n, uint32_t vocab, bool gathered, uint32_t units) {
    test_rng                 r = {n + vocab};
    std::vector<int32_t>     tokens(n), offsets(vocab + 1);
    std::vector<uint32_t>    order(n), hot(vocab, L3__CU_NOWHERE);
    std::vector<l3__cu_rows> rows(2 * (size_t)n);
    std::vector<uint4>       staging(units + 2), table(4);
    uint32_t                 n_groups = 0;
    unsigned long long       stats[4] = {0, 0, 0, 0};
    for (int32_t &t : tokens) t = (int32_t)test_below(&r, vocab);
    for (uint32_t t = 0; t < vocab; t++) {
        offsets[t + 1] = offsets[t] + (int32_t)(test_below(&r, 5) ? test_below(&r, 7) : 0);
        if (test_below(&r, 6) == 0) hot[t] = t;
    }
    l3__cu_table t[2];
    memset(t, 0, sizeof t);
    t[0].offsets = t[1].offsets = offsets.data();
    t[0].rows = t[1].rows = (const unsigned char *)table.data() + 6;
    t[0].row_bytes = t[1].row_bytes = 34;
    t[1].hot = hot.data(), t[1].hot_rows = (const unsigned char *)table.data();
    t[1].staging = (unsigned char *)staging.data(), t[1].units = units, t[1].gathered = gathered;
    const l3__cu_grouping g = {tokens.data(), n, 2, n, t, rows.data(), order.data(), &n_groups, stats};
    bench                 b(1);
    l3__cu_launch(&b.s, 1, 1024, l3__cu_group_shared(n), l3__cu_group_tokens, g);
    b.finish();
    std::vector<uint32_t> right(n);
    for (uint32_t i = 0; i < n; i++) right[i] = i;
    std::stable_sort(right.begin(), right.end(), [&](uint32_t x, uint32_t y) { return tokens[x] < tokens[y]; });
    int                bad    = order != right;
    uint32_t           groups = 0, at = 0;
    unsigned long long bytes[4] = {0, 0, 0, 0};
    for (uint32_t begin = 0, end; begin < n && groups < n_groups; begin = end, groups++) {
        const int32_t token = tokens[right[begin]];
        for (end = begin; end < n && tokens[right[end]] == token;) end++;
        const uint32_t first = (uint32_t)offsets[(size_t)token], count = (uint32_t)offsets[(size_t)token + 1] - first;
        for (int layer = 0; layer < 2; layer++) {
            const l3__cu_rows   &x   = rows[(size_t)layer * n + groups];
            const unsigned char *lie = t[layer].rows + (size_t)first * 34;
            bad += x.begin != begin || x.end != end || x.n != count;
            bytes[0] += count * 34ull;
            if (layer == 0) {
                bad += x.rows != lie || x.from != NULL;
                bytes[3] += count * 34ull;
            } else if (hot[(size_t)token] != L3__CU_NOWHERE) {
                bad += x.rows != t[1].hot_rows + 16 * (size_t)token || x.from != NULL;
                bytes[1] += count * 34ull;
            } else if (count) {
                const uint32_t need = l3__cu_units(gathered ? 0 : (uintptr_t)lie, count * 34ull);
                if (gathered) lie = t[1].rows + 16 * (size_t)at;
                const bool small = count * 34ull <= 16ull * units; /* what is larger takes no room of others' */
                at += small ? need : 0;
                const bool fits = small && at <= units;
                bad += fits ? x.from != lie || x.rows != t[1].staging + 16 * (size_t)(at - need) + ((uintptr_t)lie & 15)
                            : x.from != NULL || (!gathered && x.rows != lie);
                bytes[fits ? 2 : 3] += count * 34ull;
            }
        }
    }
    bad += groups != n_groups;
    for (int i = 0; i < 4; i++) bad += bytes[i] != stats[i];
    if (!CHECK_EQ(bad, 0)) fprintf(stderr, "    %u tokens of %u\n", n, vocab);
}

TEST(groups) {
    for (uint32_t n = 1; n <= 40; n++) check_groups(n, n % 3 ? 20 : 1000, n % 2 != 0, 5 * n);
    for (uint32_t n : {63u, 64u, 65u, 127u, 500u, 1023u, 1024u, 1025u, 2048u, 3000u, 4095u, 4096u})
        check_groups(n, n % 2 ? 1u << 16 : 300, n % 3 == 0, 2 * n);
    for (uint32_t units = 0; units < 20; units++) check_groups(9, 30, units % 2 != 0, units);
}

static __global__ void sums_of(uint32_t *v, uint32_t n) { l3__cu_sums(v, n); }

TEST(prefix_sums) {
    test_rng r = {4};
    bench    b(1);
    for (uint32_t n = 1; n <= 4096; n += n < 40 ? 1 : 811) {
        std::vector<uint32_t> v(n), right(n);
        uint64_t              sum = 0;
        for (uint32_t i = 0; i < n; i++) {
            v[i]     = (uint32_t)test_random(&r) >> (n % 2 ? 8 : 20);
            right[i] = (uint32_t)std::min<uint64_t>(sum += v[i], ~0u);
        }
        l3__cu_launch(&b.s, 1, 1024, 0, sums_of, v.data(), n);
        b.finish();
        CHECK(v == right);
    }
}

/* ---- choosing ---- */

/* One token for each of two sequences, by the kernel and by l3_sample(). */
static void check_choice(const std::vector<float> &logits, const l3_sampling &how,
                         const std::vector<int32_t> &history) {
    const uint32_t        vocab = (uint32_t)logits.size() / 2, length = (uint32_t)history.size() / 2;
    l3__cu_sampling       s;
    std::vector<int32_t>  tokens(2), out(2);
    std::vector<uint32_t> sequences = {1, 0}, positions(2, length - 1), steps(2);
    std::vector<uint64_t> states    = {how.seed + 1, how.seed};
    int32_t               status    = 0;
    bench                 b(1);
    CHECK_EQ(l3__cu_check_sampling(&how, &s, NULL), L3_OK);
    const l3__cu_choice c = {logits.data(),
                             vocab,
                             2,
                             length,
                             &s,
                             tokens.data(),
                             sequences.data(),
                             positions.data(),
                             history.data(),
                             states.data(),
                             steps.data(),
                             out.data(),
                             &status};
    l3__cu_launch(&b.s, 2, 1024, sizeof(l3__cu_choosing), l3__cu_choose, c);
    b.finish();
    bool failed = false;
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t q     = sequences[i];
        l3_sampling    own   = how;
        l3_sampler    *naive = NULL;
        int32_t        id    = 0;
        own.seed += q;
        std::vector<uint4> mem(l3_sampler_size(&own, vocab) / 16 + 8);
        unsigned char     *at = (unsigned char *)mem.data();
        while ((uintptr_t)at % L3_ALIGN) at++;
        CHECK_EQ(l3_sampler_init(&naive, &own, vocab, at, l3_sampler_size(&own, vocab), NULL), L3_OK);
        l3_sampler_accept(naive, history.data() + (size_t)q * length, length);
        if (l3_sample(naive, logits.data() + (size_t)q * vocab, &id, NULL) == L3_OK) {
            if (!CHECK_EQ(out[i], id)) fprintf(stderr, "    of %u, top_k %u\n", vocab, how.top_k);
            CHECK_EQ(tokens[i], id);
        } else {
            failed = true;
            CHECK(tokens[i] == 0);
        }
        CHECK(positions[i] == length && steps[i] == 1);
    }
    CHECK_EQ(status, failed ? L3_ERR_NUMBER : 0);
}

TEST(choices) {
    static const uint32_t vocabs[] = {1, 2, 31, 40, 300, 1023, 1024, 1500, 5000};
    test_rng              r        = {9};
    for (int i = 0; i < test_some(150); i++) {
        const uint32_t       vocab = vocabs[i % 9], kind = test_below(&r, 6), length = 1 + test_below(&r, 90);
        std::vector<float>   logits(2 * (size_t)vocab);
        std::vector<int32_t> history(2 * (size_t)length);
        for (float &v : logits) {
            v = noise(&r) * 4;
            if (kind == 1) v = (float)test_below(&r, 3); /* ties */
            if (kind == 2) v = 1;
            if (kind == 3 && test_below(&r, 3)) v = test_below(&r, 2) ? NAN : -INFINITY;
            if (kind == 4) v = test_below(&r, 50) ? v : 0.0f * -1;
            if (kind == 5 && i % 4 == 0) v = i % 8 ? NAN : -INFINITY;
            if (kind == 5 && i % 4 == 1 && test_below(&r, 20) == 0) v = INFINITY;
        }
        for (int32_t &t : history) t = (int32_t)test_below(&r, vocab);
        l3_sampling how = {(float)test_unit(&r) * 2,
                           1 + test_below(&r, i % 2 ? 1024 : 50),
                           (float)test_unit(&r),
                           (float)test_unit(&r) * 0.1f,
                           1,
                           test_below(&r, 70),
                           test_random(&r)};
        if (i % 5 == 0) how.temperature = 0;
        if (i % 3 == 0) how.top_p = 1;
        if (i % 4 == 0) how.min_p = 0;
        if (i % 2 == 0) how.repeat_penalty = i % 8 ? 1.3f : 0.6f;
        if (i % 7 == 0) how.top_k = 1024;
        check_choice(logits, how, history);
    }
}

int main() {
    RUN(slots);
    RUN(halves);
    RUN(exponentials);
    RUN(randoms);
    RUN(ranks);
    RUN(layouts);
    RUN(eights);
    RUN(products);
    RUN(prefill_attention);
    RUN(groups);
    RUN(prefix_sums);
    RUN(choices);
    return test_report("cuda arithmetic");
}
