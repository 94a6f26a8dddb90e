/* l3_cuda.cu - v0.1.0 - the models of l3_model.h on an NVIDIA GPU - public domain or MIT-0, see the end of l3.h
 *
 * The dense part of a model lies in device memory; its tables lie there too, or in pinned host memory, or where the model's
 * source has them, such as a mapped file larger than host memory. From host memory the GPU itself fetches the rows of a token
 * that it has just chosen, while the blocks in front of the lookup layer run.
 *
 *     nvcc -O3 -arch=native -c l3_cuda.cu                         // the implementation; link l3_model.h's beside it
 *     #include "l3_cuda.cu"                                       // in a C or C++ file: the declarations alone
 *
 *     l3_cuda_memory_of(model, &config, &memory, &err);           // what it takes, before anything is allocated
 *     l3_cuda_open(&gpu, model, &config, mem, memory.host, &err); // mem = memory.host bytes of yours
 *     l3_cuda_prefill(gpu, 0, ids, n, NULL, &err);                // the prompt of sequence 0
 *     l3_cuda_logits(gpu, 0, logits, &err);                       // choose a token here, then
 *     l3_cuda_decode(gpu, NULL, &id, 1, &err);                    // append it; or let the GPU choose:
 *     l3_cuda_generate(gpu, NULL, &id, 1, 64, &sampling, out, &err);
 *     l3_cuda_close(gpu);
 *
 * Whole program: examples/generate_cuda.cu.
 *
 * SWITCHES  L3_CUDA_DECLARATIONS  in a file that nvcc compiles: the declarations alone
 * MEMORY    One block of the caller's on the host, one of device memory and one of pinned memory, all taken in
 *           l3_cuda_open() and none later. What the driver needs for itself, for graphs too, is not counted.
 * ERRORS    As in l3.h. L3_ERR_DEVICE is an error of CUDA, whose number is in l3_error.io; after one that the device does not
 *           recover from, every call gives it. l3_cuda_close() still frees what is left to free; device and pinned memory of
 *           a lost device come back with cudaDeviceReset(), which ends the other objects on it, too, or when the program ends.
 * THREADS   One thread at a time for each object; several objects, on one device or several, may be used at once. Calls leave
 *           the object's device as the calling thread's current one (cudaSetDevice).
 * NUMBERS   The same bits wherever tables lie, with graphs or without, and whatever the other sequences of a call hold. In
 *           L3_EXACT floats are multiplied and added as floats, in an order that depends on nothing else: the same bits however
 *           a text is split into calls and sequences into batches. In L3_FAST two or more positions at once go through tensor
 *           cores, with activations rounded to f16 (bf16 for BF16 weights) and sums in floats. Q6_K weights are kept as f16,
 *           in L3_EXACT as floats; BF16 ones as f16 where a device has no tensor cores for them (before 8.0).
 *
 * Sections: >>session, then the implementation: >>arithmetic >>types >>products >>tensor >>attention >>lookup >>choice
 *           >>device >>layout >>upload >>passes >>calls
 */
#ifndef L3_CUDA_H
#define L3_CUDA_H

#include "l3_model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* >>session -------------------------------------------------------------------------------------------------------- */

typedef enum l3_cuda_place {
    L3_CUDA_AUTO,   /* the first of these that its budget holds */
    L3_CUDA_DEVICE, /* device memory */
    L3_CUDA_HOST,   /* pinned host memory, from which the GPU fetches rows itself */
    L3_CUDA_SOURCE  /* where the model has them: a CPU thread of the driver's copies rows to pinned memory */
} l3_cuda_place;

/* All zero is a good choice for one sequence. */
typedef struct l3_cuda_config {
    int           device;    /* CUDA's number of the device */
    uint32_t      sequences; /* that can be kept at once, 1 to 4096; 0: 1 */
    uint32_t      context;   /* positions kept of each; 0: what the model says. More than that is refused */
    uint32_t      batch;   /* positions computed at once, `sequences` to 4096; 0: 512, or `sequences` if that is more */
    int32_t       kv_type; /* l3_type of the KV cache: L3_F32 (0) or L3_F16 */
    l3_mode       mode;
    l3_cuda_place tables;
    /* Budgets of bytes for L3_CUDA_AUTO: of device memory for everything, of host memory for tables. 0: nine tenths of what is
     * free on the device, half of the host's memory. */
    uint64_t device_bytes, host_bytes;
    /* Device memory for rows of the tokens that come most often, when tables are not there. 0: what the budget leaves with
     * L3_CUDA_AUTO, else none. */
    uint64_t hot_bytes;
    /* Device memory into which a step's other rows are fetched, for each lookup layer; rows that have no room are read over the
     * bus as they are needed, for every few positions of a token again. 0: 64 MiB, or 1 MiB for each sequence (L3_CUDA_SOURCE: its
     * token's most rows) where that is more, or what `batch` tokens need at most where that is less. */
    uint64_t staging_bytes;
    /* (vocab,) how often tokens come, to choose the hot ones; NULL: those with most rows. Not kept. */
    const uint32_t *counts;
    bool            no_graph; /* launch kernels one by one */
} l3_cuda_config;

/* Bytes by purpose. */
typedef struct l3_cuda_memory {
    size_t        host;    /* of the caller's block */
    uint64_t      device;  /* device memory in all, which the next ones add up to */
    uint64_t      weights; /* everything but tables */
    uint64_t      tables;  /* 0 if they are elsewhere */
    uint64_t      hot, staging;
    uint64_t      kv;
    uint64_t      logits;
    uint64_t      scratch; /* activations, and what kernels hand to each other */
    uint64_t      pinned;  /* pinned host memory in all */
    l3_cuda_place place;   /* of tables; never L3_CUDA_AUTO */
} l3_cuda_memory;

/* What steps did with rows. */
typedef struct l3_cuda_stats {
    uint64_t steps;     /* passes over all layers */
    uint64_t row_bytes; /* wanted: one block per distinct token of a step and lookup layer */
    uint64_t hot_bytes, staged_bytes, direct_bytes; /* of these: kept on the device, fetched ahead, read as needed */
} l3_cuda_stats;

/* When the rows of a lookup layer were wanted and when they were there, in milliseconds since the step began. */
typedef struct l3_cuda_arrival {
    float wanted, there;
} l3_cuda_arrival;

typedef struct l3_cuda l3_cuda;

/* What a configuration takes. Allocates nothing; asks the device for its kind and, for L3_CUDA_AUTO, for its free memory.
 * L3_CUDA_AUTO is decided again when it is opened: another program may have taken memory meanwhile, and with `place` and `hot` of
 * this answer in the configuration nothing is decided then.
 * L3_ERR_ARGUMENT, L3_ERR_UNSUPPORTED, L3_ERR_DEVICE. config may be NULL, here and below. */
L3_API int l3_cuda_memory_of(const l3_model *model, const l3_cuda_config *config, l3_cuda_memory *memory,
                             l3_error *err);
/* mem: size bytes (l3_cuda_memory.host) aligned to L3_ALIGN, used until l3_cuda_close(). The model must outlive the object
 * where tables are L3_CUDA_SOURCE; else it is read here once. L3_ERR_MEMORY: the block, the device or the host has too little
 * memory; nothing stays allocated. L3_ERR_IO, L3_ERR_DEVICE. */
L3_API int  l3_cuda_open(l3_cuda **gpu, const l3_model *model, const l3_cuda_config *config, void *mem, size_t size,
                         l3_error *err);
L3_API void l3_cuda_close(l3_cuda *gpu);
/* What l3_cuda_memory_of() said. */
L3_API l3_cuda_memory l3_cuda_memory_used(const l3_cuda *gpu);
/* The device's name, of at most 63 bytes. */
L3_API const char *l3_cuda_name(const l3_cuda *gpu);

/* Appends n tokens to a sequence, n >= 1. all: NULL, or (n, vocab) floats for the logits after every token. On any error
 * every sequence is where it was before the call. L3_ERR_ARGUMENT, L3_ERR_CONTEXT, L3_ERR_TOKEN, L3_ERR_IO, L3_ERR_DEVICE. */
L3_API int l3_cuda_prefill(l3_cuda *gpu, uint32_t sequence, const int32_t *tokens, uint32_t n, float *all,
                           l3_error *err);
/* Appends tokens[i] to sequences[i] (all different; NULL: 0 ... n - 1), weights being read once for all. */
L3_API int l3_cuda_decode(l3_cuda *gpu, const uint32_t *sequences, const int32_t *tokens, uint32_t n, l3_error *err);
/* The same `steps` times, the GPU choosing each next token itself: out (steps, n) gets the tokens chosen, of which the last
 * ones are not yet appended. sampling: NULL or temperature 0 for the highest logit; else top_k from 1 to 1024. The choice is
 * l3_sample()'s on the same logits; sequence i draws with seed + i, and its generator goes on from call to call until the
 * sequence is emptied. Does not stop at EOS: l3_cuda_truncate() takes back what is too much. L3_ERR_NUMBER: no finite logit. */
L3_API int l3_cuda_generate(l3_cuda *gpu, const uint32_t *sequences, const int32_t *tokens, uint32_t n, uint32_t steps,
                            const l3_sampling *sampling, int32_t *out, l3_error *err);
/* Copies the logits after the last token of a sequence to logits (vocab,): of the last call that appended to it.
 * L3_ERR_ARGUMENT if there are none. */
L3_API int l3_cuda_logits(l3_cuda *gpu, uint32_t sequence, float *logits, l3_error *err);
/* Tokens of a sequence so far; positions that fit in each; sequences; positions computed at once. */
L3_API uint32_t l3_cuda_position(const l3_cuda *gpu, uint32_t sequence);
L3_API uint32_t l3_cuda_context(const l3_cuda *gpu);
L3_API uint32_t l3_cuda_sequences(const l3_cuda *gpu);
L3_API uint32_t l3_cuda_batch(const l3_cuda *gpu);
/* Keeps the first n tokens of a sequence and forgets the rest. */
L3_API int l3_cuda_truncate(l3_cuda *gpu, uint32_t sequence, uint32_t n, l3_error *err);
/* l3_cuda_decode() without a graph, and when each lookup layer's rows came: arrivals (n_lookups,). Rows cost nothing where
 * they are there before they are wanted. */
L3_API int l3_cuda_trace(l3_cuda *gpu, const uint32_t *sequences, const int32_t *tokens, uint32_t n,
                         l3_cuda_arrival *arrivals, l3_error *err);
/* Waits for the device. */
L3_API int l3_cuda_get_stats(l3_cuda *gpu, l3_cuda_stats *stats, l3_error *err);

#ifdef __cplusplus
}
#endif
#endif /* L3_CUDA_H */

/* ================================================================================================================== */

#if !defined(L3_CUDA_DECLARATIONS) && (defined(__CUDACC__) || (defined(L3_CUDA_EMULATED) && defined(__cplusplus))) && \
    !defined(L3__CUDA_IMPLEMENTED)
#define L3__CUDA_IMPLEMENTED

#include <algorithm>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#if defined(_WIN32)
#include <windows.h>
#else
#include <unistd.h>
#endif

#if defined(__CUDACC__) && CUDART_VERSION < 12000
#error "l3_cuda.cu needs CUDA 12 or later"
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750
#error "l3_cuda.cu needs compute capability 7.5 or later: nvcc -arch=native, or -arch=sm_75 and up"
#endif

/* >>arithmetic ----------------------------------------------------------------------------------------------------- */

/* What host and device compute alike, and tests check on the host. */
#define L3__CU_BOTH static __host__ __device__ __forceinline__
#define L3__CU_FN   static __device__ __forceinline__
#define L3__CU_HOST static L3__UNUSED

/* A loop whose steps are written out, so that arrays stay in registers. */
#if defined(__CUDACC__)
#define L3__CU_UNROLL       _Pragma("unroll")
#define L3__CU_TEXT(x)      #x
#define L3__CU_UNROLL_BY(n) _Pragma(L3__CU_TEXT(unroll n))
#else
#define L3__CU_UNROLL
#define L3__CU_UNROLL_BY(n)
#endif
#define L3__CU_EACH(i, n) L3__CU_UNROLL for (uint32_t i = 0; i < (n); i++)
#ifndef CUDART_CB /* how the driver calls host functions */
#define CUDART_CB
#endif

#define L3__CU_K       128u  /* columns of device matrices are padded to multiples of this with zeros */
#define L3__CU_SPLIT   256u  /* positions of a text that one block attends to */
#define L3__CU_ROWS    32u   /* rows of a token that one block attends to, at least */
#define L3__CU_BATCH   4096u /* positions at once, at most: 12 bits beside a token's 20 */
#define L3__CU_HEAD    256u  /* widest head */
#define L3__CU_BEST    1024u /* most candidates of a choice */
#define L3__CU_STEPS   256u  /* steps of l3_cuda_generate() between two looks at the device */
#define L3__CU_NOWHERE 0xffffffffu

L3__CU_BOTH uint32_t l3__cu_min(uint32_t a, uint32_t b) { return a < b ? a : b; }
L3__CU_BOTH uint32_t l3__cu_ceil(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }
L3__CU_BOTH uint32_t l3__cu_round(uint32_t a, uint32_t b) { return l3__cu_ceil(a, b) * b; }
L3__CU_BOTH uint32_t l3__cu_power(uint32_t a) { /* of two, at least a */
    uint32_t p = 1;
    while (p < a) p *= 2;
    return p;
}

/* Products and sums that are not contracted, so that host and device round alike. */
L3__CU_BOTH float l3__cu_mul(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}
L3__CU_BOTH float l3__cu_add(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

L3__CU_BOTH float l3__cu_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    float f;
    memcpy(&f, &bits, 4);
    return f;
#endif
}
L3__CU_BOTH uint32_t l3__cu_bits(float f) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(f);
#else
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
#endif
}
#define L3__CU_MINUS_INFINITY l3__cu_float(0xff800000u)

/* e^x, bit for bit that of l3.h (where its constants are explained), so that both choose the same tokens. */
L3__CU_BOTH float l3__cu_exp(float x) {
    if (!(x > -86.6f)) return x != x ? x : 0.0f;
    if (x > 88.72f) return l3__cu_float(0x7f800000u);
    const float   shifted = l3__cu_add(l3__cu_mul(x, 1.44269504088896341f), 12582912.0f);
    const int32_t k       = (int32_t)l3__cu_bits(shifted) - 0x4b400000;
    const float   n       = l3__cu_add(shifted, -12582912.0f);
    const float   r       = l3__cu_add(l3__cu_add(x, -l3__cu_mul(n, 0.693359375f)), l3__cu_mul(n, 2.12194440e-4f));
    float         p       = 1.9875691500e-4f;
    p                     = l3__cu_add(l3__cu_mul(p, r), 1.3981999507e-3f);
    p                     = l3__cu_add(l3__cu_mul(p, r), 8.3334519073e-3f);
    p                     = l3__cu_add(l3__cu_mul(p, r), 4.1665795894e-2f);
    p                     = l3__cu_add(l3__cu_mul(p, r), 1.6666665459e-1f);
    p                     = l3__cu_add(l3__cu_mul(p, r), 5.0000001201e-1f);
    p                     = l3__cu_add(l3__cu_add(l3__cu_mul(l3__cu_mul(p, r), r), r), 1.0f);
    const int32_t half    = k / 2;
    return l3__cu_mul(l3__cu_mul(p, l3__cu_float((uint32_t)(half + 127) << 23)),
                      l3__cu_float((uint32_t)(k - half + 127) << 23));
}

L3__CU_BOTH float l3__cu_silu(float x) { return x / (1.0f + l3__cu_exp(-x)); }

/* Halves are kept as their bits. */
L3__CU_BOTH float l3__cu_from_f16(uint16_t h) {
    float f;
#if defined(__CUDA_ARCH__)
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
#else
    l3_unpack(L3_F16, &h, 0, 1, &f);
#endif
    return f;
}
/* Rounded to nearest; what is too large for f16 becomes its largest number. */
L3__CU_BOTH uint16_t l3__cu_to_f16(float f) {
    uint16_t h;
    f = f > 65504.0f ? 65504.0f : f < -65504.0f ? -65504.0f : f;
#if defined(__CUDA_ARCH__)
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
#else
    l3_pack(L3_F16, &f, 1, &h);
#endif
    return h;
}
L3__CU_BOTH float    l3__cu_from_bf16(uint32_t h) { return l3__cu_float(h << 16); }
L3__CU_BOTH uint16_t l3__cu_to_bf16(float f) {
    const uint32_t bits = l3__cu_bits(f);
    if ((bits & 0x7fffffff) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
L3__CU_BOTH uint16_t l3__cu_to_half(float f, bool bf16) { return bf16 ? l3__cu_to_bf16(f) : l3__cu_to_f16(f); }

/* The generator of l3_random(). */
L3__CU_BOTH uint64_t l3__cu_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z          = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z          = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Floats as whole numbers of the same order, NaN below all. */
L3__CU_BOTH uint32_t l3__cu_ordered(float f) {
    const uint32_t bits = l3__cu_bits(f);
    if (f != f) return 0;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* Where element k of a text's activations lies in shared memory when each lane reads `group` consecutive ones, of `groups`: the
 * groups' first four, then their second four ..., so that lanes beside each other read words beside each other. */
L3__CU_BOTH uint32_t l3__cu_slot(uint32_t k, uint32_t group, uint32_t groups) {
    return (k % group / 4 * groups + k / group) * 4 + k % 4;
}

/* Rows of a token that one block attends to: enough for 64 blocks to do it. */
L3__CU_BOTH uint32_t l3__cu_rows_split(uint32_t most_rows) {
    return l3__cu_round(l3__cu_ceil(most_rows, 64) + (most_rows == 0), L3__CU_ROWS);
}

/* Units of 16 bytes that hold n bytes beginning at an address. */
L3__CU_BOTH uint32_t l3__cu_units(uint64_t at, uint64_t n) { return (uint32_t)(((at & 15) + n + 15) / 16); }

/* A sum over all lanes of a warp, in every lane. */
L3__CU_FN float l3__cu_warp_sum(float v) {
    for (uint32_t d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    return v;
}
L3__CU_FN float l3__cu_warp_max(float v) {
    for (uint32_t d = 16; d; d /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, d));
    return v;
}
/* A sum over a block of whole warps, in every thread; room: (32,) floats of shared memory. */
L3__CU_FN float l3__cu_block_sum(float v, float *room) {
    const uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32;
    v = l3__cu_warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[warp] = v;
    __syncthreads();
    v = 0;
    for (uint32_t i = 0; i < warps; i++) v += room[i];
    return v;
}

/* >>types ---------------------------------------------------------------------------------------------------------- */

/* A matrix on the device: rows of ld elements, zeros after the first cols. Q8_0 and Q4_0 have their numbers at data, and scales
 * (rows, ld / 32) apart, so that both can be read in aligned pieces. */
typedef struct l3__cu_matrix {
    const unsigned char *data;
    const uint16_t      *scales;
    uint32_t             rows, cols, ld;
    int32_t              type;
} l3__cu_matrix;

/* Elements in 16 bytes. */
template <int T> struct l3__cu_group {
    static const uint32_t n = T == L3_F32 ? 4 : T == L3_Q8_0 ? 16 : T == L3_Q4_0 ? 32 : 8;
};
L3__CU_BOTH uint32_t l3__cu_group_of(int type) {
    return type == L3_F32 ? 4 : type == L3_Q8_0 ? 16 : type == L3_Q4_0 ? 32 : 8;
}
/* Bytes of n elements, a multiple of 32, without scales. */
L3__CU_BOTH size_t l3__cu_bytes(int type, size_t n) { return n / l3__cu_group_of(type) * 16; }
L3__CU_BOTH bool   l3__cu_scaled(int type) { return type == L3_Q8_0 || type == L3_Q4_0; }

/* Group g of a row, and the scale of its block. */
template <int T> L3__CU_FN uint4 l3__cu_load(const l3__cu_matrix &w, uint32_t row, uint32_t g) {
    const uint4 *p = (const uint4 *)(w.data + l3__cu_bytes(T, (size_t)row * w.ld));
    return __ldg(p + g);
}
template <int T> L3__CU_FN uint16_t l3__cu_load_scale(const l3__cu_matrix &w, uint32_t row, uint32_t g) {
    if (T != L3_Q8_0 && T != L3_Q4_0) return 0;
    return __ldg(w.scales + (size_t)row * (w.ld / 32) + g * l3__cu_group<T>::n / 32);
}

/* Four whole numbers of a word: bytes from -128 to 127, or nibbles (of the low or high halves) less 8. Bytes become the last
 * bits of floats from 2^23 on: converting them costs more on a GPU. */
L3__CU_FN void l3__cu_bytes4(uint32_t word, float v[4]) {
    word ^= 0x80808080u; /* bytes from 0 to 255: 2^23 + 128 too much */
    v[0] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440)) - 8388736.0f;
    v[1] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7441)) - 8388736.0f;
    v[2] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7442)) - 8388736.0f;
    v[3] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7443)) - 8388736.0f;
}
L3__CU_FN void l3__cu_nibbles4(uint32_t word, uint32_t shift, float v[4]) {
    word = word >> shift & 0x0f0f0f0fu;
    v[0] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440)) - 8388616.0f;
    v[1] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7441)) - 8388616.0f;
    v[2] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7442)) - 8388616.0f;
    v[3] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7443)) - 8388616.0f;
}

/* Elements 4 q ... 4 q + 3 of a group, without its scale. */
template <int T> L3__CU_FN void l3__cu_four(const uint4 &w, uint32_t q, float v[4]) {
    const uint32_t *word = &w.x;
    switch (T) {
    case L3_F32:
        for (uint32_t i = 0; i < 4; i++) v[i] = l3__cu_float(word[i]);
        break;
    case L3_F16:
    case L3_BF16:
        for (uint32_t i = 0; i < 4; i++) {
            const uint16_t h = (uint16_t)(word[2 * q + i / 2] >> (i % 2 * 16));
            v[i]             = T == L3_F16 ? l3__cu_from_f16(h) : l3__cu_from_bf16(h);
        }
        break;
    case L3_Q8_0: l3__cu_bytes4(word[q], v); break;
    default: l3__cu_nibbles4(word[q % 4], q / 4 * 4, v); break;
    }
}

/* A row's sum with a group of activations in shared memory (slots as l3__cu_slot has them) is added to sum. */
template <int T>
L3__CU_FN float l3__cu_dot(const uint4 &w, uint16_t scale, const float4 *x, uint32_t g, uint32_t groups, float sum) {
    float part = l3__cu_scaled(T) ? 0 : sum;
    L3__CU_EACH (q, l3__cu_group<T>::n / 4) {
        const float4 a = x[q * groups + g];
        float        v[4];
        l3__cu_four<T>(w, q, v);
        part = fmaf(v[0], a.x, part);
        part = fmaf(v[1], a.y, part);
        part = fmaf(v[2], a.z, part);
        part = fmaf(v[3], a.w, part);
    }
    return l3__cu_scaled(T) ? fmaf(l3__cu_from_f16(scale), part, sum) : part;
}

/* One element of a matrix. */
template <int T> L3__CU_FN float l3__cu_element(const l3__cu_matrix &w, uint32_t row, uint32_t k) {
    const uint32_t g = k / l3__cu_group<T>::n, i = k % l3__cu_group<T>::n;
    const uint4    bytes = l3__cu_load<T>(w, row, g);
    float          v[4];
    l3__cu_four<T>(bytes, i / 4, v);
    return l3__cu_scaled(T) ? v[i % 4] * l3__cu_from_f16(l3__cu_load_scale<T>(w, row, g)) : v[i % 4];
}

/* ---- rows of tables, as they lie in files: at any even address, blocks with their scales in front ---- */

L3__CU_FN uint32_t l3__cu_u16(const unsigned char *p) { return *(const uint16_t *)p; }

/* Elements i ... i + 7 of a row, i a multiple of 8; zeros from n on. */
template <int T, bool ALIGNED>
L3__CU_FN void l3__cu_eight(const unsigned char *row, uint32_t i, uint32_t n, float v[8]) {
    if (T == L3_Q8_0 || T == L3_Q4_0) { /* n is a multiple of 32 */
        const unsigned char *block = row + (size_t)(i / 32) * (T == L3_Q8_0 ? 34 : 18);
        const float          scale = l3__cu_from_f16((uint16_t)l3__cu_u16(block));
        const unsigned char *p     = block + 2 + (T == L3_Q8_0 ? i % 32 : i % 16);
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t word = l3__cu_u16(p + 4 * half) | l3__cu_u16(p + 4 * half + 2) << 16;
            if (T == L3_Q8_0) l3__cu_bytes4(word, v + 4 * half);
            else l3__cu_nibbles4(word, i % 32 / 16 * 4, v + 4 * half);
        }
        for (uint32_t k = 0; k < 8; k++) v[k] *= scale;
        return;
    }
    if (T == L3_Q6_K) { /* n is a multiple of 256; the file's own order of products, so that bits are the CPU's */
        const unsigned char *block = row + (size_t)(i / 256) * 210;
        const uint32_t       half = i / 128 % 2, quarter = i / 32 % 4, at = i % 32;
        const unsigned char *ql = block + half * 64 + quarter % 2 * 32 + at, *qh = block + 128 + half * 32 + at;
        const float          d = l3__cu_from_f16((uint16_t)l3__cu_u16(block + 208));
        const float          scale =
            l3__cu_mul(d, (float)(int8_t)block[192 + half * 8 + quarter * 2 + at / 16]); /* the same for all eight */
        for (uint32_t k = 0; k < 8; k++) {
            const uint32_t low = quarter < 2 ? ql[k] & 15 : ql[k] >> 4, high = qh[k] >> (2 * quarter) & 3;
            v[k] = scale * (float)((int)(low | high << 4) - 32);
        }
        return;
    }
    const uint32_t size = T == L3_F32 ? 4 : 2;
    if (ALIGNED && i + 8 <= n) {
        const uint4 w = *(const uint4 *)(row + (size_t)i * size);
        l3__cu_four<T>(w, 0, v);
        if (T == L3_F32) {
            const uint4 w2 = *(const uint4 *)(row + (size_t)i * size + 16);
            l3__cu_four<T>(w2, 0, v + 4);
        } else {
            l3__cu_four<T>(w, 1, v + 4);
        }
        return;
    }
    for (uint32_t k = 0; k < 8; k++) {
        const unsigned char *p = row + (size_t)(i + k) * size;
        if (i + k >= n) v[k] = 0;
        else if (T == L3_F32) v[k] = l3__cu_float(l3__cu_u16(p) | l3__cu_u16(p + 2) << 16);
        else v[k] = T == L3_F16 ? l3__cu_from_f16((uint16_t)l3__cu_u16(p)) : l3__cu_from_bf16(l3__cu_u16(p));
    }
}

/* >>products ------------------------------------------------------------------------------------------------------- */

/* out (n, rows) = x (n, cols) times a matrix. */
typedef struct l3__cu_product {
    l3__cu_matrix   w;
    const float    *x;
    uint32_t        x_ld, n;
    bool            normalize; /* x first goes through RMSNorm with this weight, or NULL: ones */
    const float    *norm;
    float           epsilon;
    float          *out; /* row i goes to out + map[i] * out_ld, without map to out + i * out_ld */
    const uint32_t *map;
    uint32_t        out_ld;
    bool            add;   /* to what is there */
    bool            gated; /* rows r and rows / 2 + r give silu(first) * second: SwiGLU (Shazeer 2020) */
} l3__cu_product;

L3__CU_FN float *l3__cu_out(const l3__cu_product &p, uint32_t i) {
    return p.out + (size_t)(p.map ? p.map[i] : i) * p.out_ld;
}

/* 1 / rms of a row (cols,), the same in every thread of the block. */
L3__CU_FN float l3__cu_rms(const float *x, uint32_t cols, float epsilon, float *room) {
    float sum = 0;
    for (uint32_t k = threadIdx.x; k < cols; k += blockDim.x) sum = fmaf(x[k], x[k], sum);
    return 1.0f / sqrtf(l3__cu_block_sum(sum, room) / (float)cols + epsilon);
}

#define L3__CU_CHUNK 8192u /* floats of activations in shared memory */
#define L3__CU_AHEAD 4u    /* groups of a row under way at once */

/* Activations k0 ... k0 + count - 1 of positions first ... first + N - 1, normalized, to shared memory. */
template <int T, int N>
L3__CU_FN void l3__cu_stage(const l3__cu_product &p, uint32_t first, uint32_t k0, uint32_t count, const float *rms,
                            float *shared) {
    const uint32_t groups = count / l3__cu_group<T>::n;
    for (uint32_t i = 0; i < N; i++) {
        const float *x = p.x + (size_t)(first + i) * p.x_ld;
        for (uint32_t k = threadIdx.x; k < count; k += blockDim.x) {
            float v = 0;
            if (k0 + k < p.w.cols && first + i < p.n) {
                v = x[k0 + k];
                if (p.normalize) v = l3__cu_mul(l3__cu_mul(v, rms[i]), p.norm ? p.norm[k0 + k] : 1.0f);
            }
            shared[i * count + l3__cu_slot(k, l3__cu_group<T>::n, groups)] = v;
        }
    }
}

/* Groups of two rows that are on their way. */
template <int T> struct l3__cu_ahead {
    uint4    w[2][L3__CU_AHEAD];
    uint16_t scale[2][L3__CU_AHEAD];
};

/* Starts reading groups g, g + 32 ... of rows a and b, as far as they are below `end`. */
template <int T>
L3__CU_FN void l3__cu_read_ahead(l3__cu_ahead<T> *to, const l3__cu_matrix &m, uint32_t a, uint32_t b, uint32_t g,
                                 uint32_t end) {
    L3__CU_EACH (u, L3__CU_AHEAD) {
        if (g + 32 * u >= end) continue;
        to->w[0][u]     = l3__cu_load<T>(m, a, g + 32 * u);
        to->w[1][u]     = l3__cu_load<T>(m, b, g + 32 * u);
        to->scale[0][u] = l3__cu_load_scale<T>(m, a, g + 32 * u);
        to->scale[1][u] = l3__cu_load_scale<T>(m, b, g + 32 * u);
    }
}

/* For N positions a block: each warp takes two rows and reads them once; lanes take groups in turn. Weights are on their way
 * while activations are still normalized. Sums are made in the same order whatever N is. Block: 256 threads. */
template <int T, int N> __global__ void __launch_bounds__(256) l3__cu_matvec(l3__cu_product p) {
    extern __shared__ __align__(16) unsigned char l3__shared[];
    float                                        *room = (float *)l3__shared, *shared = room + 32;
    const uint32_t                                G = l3__cu_group<T>::n, all = p.w.ld / G;
    const uint32_t  warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.y * N;
    const uint32_t  out_rows = p.gated ? p.w.rows / 2 : p.w.rows, step = p.gated ? 1 : 2;
    const uint32_t  r0 = (blockIdx.x * 8 + warp) * step, r1 = p.gated ? r0 + out_rows : r0 + 1;
    const uint32_t  a = l3__cu_min(r0, p.w.rows - 1), b = l3__cu_min(r1, p.w.rows - 1);
    const uint32_t  chunk = l3__cu_min(L3__CU_CHUNK / N, p.w.ld);
    l3__cu_ahead<T> ahead;
    float           sum[2][N], rms[N];
    l3__cu_read_ahead<T>(&ahead, p.w, a, b, lane, chunk / G);
    for (uint32_t i = 0; i < N; i++) {
        sum[0][i] = sum[1][i] = 0;
        rms[i]                = 1;
        if (p.normalize && first + i < p.n)
            rms[i] = l3__cu_rms(p.x + (size_t)(first + i) * p.x_ld, p.w.cols, p.epsilon, room);
    }
    for (uint32_t k0 = 0; k0 < p.w.ld; k0 += chunk) { /* more than one chunk: every lane has groups in each */
        const uint32_t count = l3__cu_min(chunk, p.w.ld - k0), groups = count / G, g0 = k0 / G;
        __syncthreads();
        l3__cu_stage<T, N>(p, first, k0, count, rms, shared);
        __syncthreads();
        for (uint32_t g = lane; g < groups; g += 32 * L3__CU_AHEAD) {
            L3__CU_EACH (u, L3__CU_AHEAD) {
                if (g + 32 * u >= groups) continue;
                L3__CU_EACH (i, N)
                    for (uint32_t r = 0; r < 2; r++)
                        sum[r][i] = l3__cu_dot<T>(ahead.w[r][u], ahead.scale[r][u],
                                                  (const float4 *)(shared + i * count), g + 32 * u, groups, sum[r][i]);
            }
            const uint32_t next = g + 32 * L3__CU_AHEAD;
            if (next < groups) l3__cu_read_ahead<T>(&ahead, p.w, a, b, g0 + next, g0 + groups);
            else l3__cu_read_ahead<T>(&ahead, p.w, a, b, g0 + groups + lane, l3__cu_min(g0 + groups + chunk / G, all));
        }
    }
    for (uint32_t i = 0; i < N; i++) {
        const float s0 = l3__cu_warp_sum(sum[0][i]), s1 = l3__cu_warp_sum(sum[1][i]);
        if (lane != 0 || first + i >= p.n) continue;
        float *out = l3__cu_out(p, first + i);
        if (p.gated) {
            if (r0 < out_rows) out[r0] = l3__cu_silu(s0) * s1;
            continue;
        }
        if (r0 < out_rows) out[r0] = p.add ? out[r0] + s0 : s0;
        if (r1 < out_rows) out[r1] = p.add ? out[r1] + s1 : s1;
    }
}

/* Activations as halves for tensor cores: (n, ld) of x (n, cols), zeros after cols. */
typedef struct l3__cu_halves {
    const float *x;
    uint32_t     x_ld, cols, ld;
    bool         normalize, gated, bf16; /* gated: x holds cols gates, then cols others */
    const float *norm;
    float        epsilon;
    uint16_t    *out;    /* or NULL: */
    float       *floats; /* the same as floats */
} l3__cu_halves;

__global__ void __launch_bounds__(256) l3__cu_make_halves(l3__cu_halves h) {
    extern __shared__ __align__(16) unsigned char l3__shared[];
    const float                                  *x = h.x + (size_t)blockIdx.x * h.x_ld;
    const float rms = h.normalize ? l3__cu_rms(x, h.cols, h.epsilon, (float *)l3__shared) : 1.0f;
    for (uint32_t k = threadIdx.x; k < h.ld; k += blockDim.x) {
        float v = k < h.cols ? x[k] : 0;
        if (h.normalize && k < h.cols) v = l3__cu_mul(l3__cu_mul(v, rms), h.norm ? h.norm[k] : 1.0f);
        if (h.gated && k < h.cols) v = l3__cu_silu(v) * x[h.cols + k];
        if (h.out) h.out[(size_t)blockIdx.x * h.ld + k] = l3__cu_to_half(v, h.bf16);
        else h.floats[(size_t)blockIdx.x * h.ld + k] = v;
    }
}

/* The embedding of each position, and its token goes into its sequence's history. */
typedef struct l3__cu_inputs {
    const int32_t  *tokens;    /* (n,) */
    const uint32_t *sequences; /* (n,) */
    const uint32_t *positions; /* (n,) */
} l3__cu_inputs;

template <int T>
__global__ void l3__cu_embed(l3__cu_matrix w, l3__cu_inputs in, float *x, int32_t *history, uint32_t context) {
    const uint32_t i = blockIdx.x;
    const int32_t  t = in.tokens[i];
    for (uint32_t k = threadIdx.x; k < w.cols; k += blockDim.x)
        x[(size_t)i * w.cols + k] = l3__cu_element<T>(w, (uint32_t)t, k);
    if (threadIdx.x == 0) history[(size_t)in.sequences[i] * context + in.positions[i]] = t;
}

/* >>tensor --------------------------------------------------------------------------------------------------------- */

/* c (16, 8) += a (16, 16) b (16, 8), fragments as PTX has them for mma.m16n8k16: lane 4 g + t holds of a rows g and g + 8, of b
 * column g, of c rows g and g + 8 and columns 2 t, 2 t + 1. */
template <bool BF16> L3__CU_FN void l3__cu_mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#if !defined(__CUDA_ARCH__)
#if defined(L3_CUDA_EMULATED)
    emulated_mma_m16n8k16(c, a, b, BF16);
#endif
#elif __CUDA_ARCH__ >= 800
    if (BF16)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else /* Turing: f16 only, eight columns at a time */
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

/* Four 8 x 8 tiles of halves from shared memory, each turned around or not; lane i gives the address of row i % 8 of tile
 * i / 8. */
template <bool TURNED> L3__CU_FN void l3__cu_tiles(uint32_t r[4], const uint16_t *row) {
#if defined(__CUDA_ARCH__)
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    if (TURNED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at));
#elif defined(L3_CUDA_EMULATED)
    if (TURNED) emulated_ldmatrix_x4_trans(r, row);
    else emulated_ldmatrix_x4(r, row);
#endif
}

L3__CU_FN uint32_t l3__cu_pair(float low, float high, bool bf16) {
    return l3__cu_to_half(low, bf16) | (uint32_t)l3__cu_to_half(high, bf16) << 16;
}

/* Two halves less two others, and times two others. */
L3__CU_FN uint32_t l3__cu_sub2(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
    uint32_t v;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
#else
    return l3__cu_pair(l3__cu_from_f16((uint16_t)a) - l3__cu_from_f16((uint16_t)b),
                       l3__cu_from_f16((uint16_t)(a >> 16)) - l3__cu_from_f16((uint16_t)(b >> 16)), false);
#endif
}
L3__CU_FN uint32_t l3__cu_mul2(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
    uint32_t v;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
#else
    return l3__cu_pair(l3__cu_from_f16((uint16_t)a) * l3__cu_from_f16((uint16_t)b),
                       l3__cu_from_f16((uint16_t)(a >> 16)) * l3__cu_from_f16((uint16_t)(b >> 16)), false);
#endif
}

/* Two bytes of a word, from 0 to 255, less `less`, times a scale in f16: rounded once. As the last bits of f16 from 1024
 * (0x6400) on they need no conversion. */
L3__CU_FN uint32_t l3__cu_scaled_pair(uint32_t word, uint32_t which, uint32_t less, uint16_t scale) {
    const uint32_t v = which ? __byte_perm(word, 0x64646464u, 0x4342) : __byte_perm(word, 0x64646464u, 0x4140);
    return l3__cu_mul2(l3__cu_sub2(v, (0x6400u + less) * 0x10001u), scale * 0x10001u);
}

/* Elements 8 s ... 8 s + 7 of a group as four pairs of halves. */
template <int T> L3__CU_FN void l3__cu_pairs(const uint4 &w, uint16_t scale, uint32_t s, uint32_t pairs[4]) {
    const uint32_t *word = &w.x;
    if (T == L3_F16 || T == L3_BF16) {
        for (uint32_t i = 0; i < 4; i++) pairs[i] = word[i];
    } else if (T == L3_Q8_0) {
        for (uint32_t i = 0; i < 4; i++)
            pairs[i] = l3__cu_scaled_pair(word[2 * s + i / 2] ^ 0x80808080u, i % 2, 128, scale);
    } else {
        for (uint32_t i = 0; i < 4; i++)
            pairs[i] = l3__cu_scaled_pair(word[s % 2 * 2 + i / 2] >> (s / 2 * 4) & 0x0f0f0f0fu, i % 2, 8, scale);
    }
}

/* A product whose activations are halves (n, w.ld). */
typedef struct l3__cu_tensor_product {
    l3__cu_product  p;
    const uint16_t *x;
} l3__cu_tensor_product;

L3__CU_FN void l3__cu_put(const l3__cu_product &p, uint32_t position, uint32_t row, float v) {
    if (position >= p.n || row >= p.w.rows) return;
    float *out = l3__cu_out(p, position) + row;
    *out       = p.add ? *out + v : v;
}

/* For few positions, where reading weights is what takes time: every warp of a block takes another part of the columns of the
 * same 16 M rows, straight from memory into fragments, for 8 N positions. As the order of columns does not matter to a
 * product, each lane's 16 bytes are columns that belong together. Block: 256 threads. */
template <int T, int M, int N> __global__ void __launch_bounds__(256) l3__cu_stream(l3__cu_tensor_product q) {
    extern __shared__ __align__(16) unsigned char l3__shared[];
    const l3__cu_product                         &p = q.p;
    const uint32_t                                E = l3__cu_group<T>::n;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t row0 = blockIdx.x * 16 * M, first = blockIdx.y * 8 * N;
    float          c[M][N][4];
    L3__CU_EACH (m, M)
        L3__CU_EACH (j, N)
            L3__CU_EACH (i, 4) c[m][j][i] = 0;
    L3__CU_UNROLL_BY(2)
    for (uint32_t k = warp; k < p.w.ld / (4 * E); k += 8) {
        uint4    w[M][2];
        uint16_t scale[M][2];
        L3__CU_EACH (m, M)
            L3__CU_EACH (h, 2) {
                const uint32_t row = l3__cu_min(row0 + 16 * m + 8 * h + g, p.w.rows - 1);
                w[m][h]            = l3__cu_load<T>(p.w, row, 4 * k + t);
                scale[m][h]        = l3__cu_load_scale<T>(p.w, row, 4 * k + t);
            }
        L3__CU_EACH (s, E / 8) {
            uint32_t a[M][2][4];
            L3__CU_EACH (m, M)
                L3__CU_EACH (h, 2) l3__cu_pairs<T>(w[m][h], scale[m][h], s, a[m][h]);
            L3__CU_EACH (j, N) {
                const uint32_t position = l3__cu_min(first + 8 * j + g, p.n - 1);
                const uint4    x        = *(const uint4 *)(q.x + (size_t)position * p.w.ld + (4 * k + t) * E + 8 * s);
                const uint32_t b[4]     = {x.x, x.y, x.z, x.w};
                L3__CU_EACH (m, M)
                    L3__CU_EACH (i, 2) {
                        const uint32_t f[4] = {a[m][0][2 * i], a[m][1][2 * i], a[m][0][2 * i + 1], a[m][1][2 * i + 1]};
                        l3__cu_mma<T == L3_BF16>(c[m][j], f, b + 2 * i);
                    }
            }
        }
    }
    /* Warps 4 to 7 give their sums to 0 to 3, these theirs to 0 and 1, and 1 to 0. */
    float *room = (float *)l3__shared;
    for (uint32_t half = 4; half; half /= 2) {
        float *mine = room + (size_t)(warp % half) * M * N * 128;
        __syncthreads();
        if (warp >= half && warp < 2 * half)
            L3__CU_EACH (i, M * N * 4) mine[i * 32 + lane] = (&c[0][0][0])[i];
        __syncthreads();
        if (warp < half)
            L3__CU_EACH (i, M * N * 4) (&c[0][0][0])[i] += mine[i * 32 + lane];
    }
    if (warp != 0) return;
    L3__CU_EACH (m, M)
        L3__CU_EACH (j, N)
            L3__CU_EACH (i, 4) l3__cu_put(p, first + 8 * j + 2 * t + i % 2, row0 + 16 * m + g + i / 2 * 8, c[m][j][i]);
}

#define L3__CU_TILE_ROWS 128u
#define L3__CU_TILE_K    64u
#define L3__CU_TILE_LD   72u /* halves of a row in shared memory: 16 bytes apart in banks */

/* For many positions: 128 rows by P positions a block, 64 columns at a time through shared memory, the next ones on their way
 * in registers. Warps: four of 32 rows by two of P / 2 positions. Block: 256 threads. */
template <int T, int P> __global__ void __launch_bounds__(256) l3__cu_tile(l3__cu_tensor_product q) {
    extern __shared__ __align__(16) unsigned char l3__shared[];
    const l3__cu_product                         &p = q.p;
    const uint32_t E = l3__cu_group<T>::n, per_row = L3__CU_TILE_K / E, W = L3__CU_TILE_ROWS * per_row / 256,
                   X  = P / 32;
    uint16_t      *ws = (uint16_t *)l3__shared, *xs = ws + L3__CU_TILE_ROWS * L3__CU_TILE_LD;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t row0 = blockIdx.x * L3__CU_TILE_ROWS, first = blockIdx.y * P;
    const uint32_t wm = warp / 2 * 32, wn = warp % 2 * (P / 2);
    float          c[2][P / 16][4];
    uint4          w[W], x[X];
    uint16_t       scale[W];
    L3__CU_EACH (m, 2)
        L3__CU_EACH (j, P / 16)
            L3__CU_EACH (i, 4) c[m][j][i] = 0;
    for (uint32_t k = 0; k <= p.w.ld / L3__CU_TILE_K; k++) {
        __syncthreads(); /* the last columns are done with */
        if (k > 0) {
            L3__CU_EACH (i, W) {
                const uint32_t at = threadIdx.x + 256 * i;
                uint16_t      *to = ws + at / per_row * L3__CU_TILE_LD + at % per_row * E;
                L3__CU_EACH (s, E / 8) {
                    uint32_t pairs[4];
                    l3__cu_pairs<T>(w[i], scale[i], s, pairs);
                    *(uint4 *)(to + 8 * s) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
                }
            }
            L3__CU_EACH (i, X) {
                const uint32_t at                                     = threadIdx.x + 256 * i;
                *(uint4 *)(xs + at / 8 * L3__CU_TILE_LD + at % 8 * 8) = x[i];
            }
        }
        __syncthreads();
        if (k < p.w.ld / L3__CU_TILE_K) {
            L3__CU_EACH (i, W) {
                const uint32_t at  = threadIdx.x + 256 * i;
                const uint32_t row = l3__cu_min(row0 + at / per_row, p.w.rows - 1);
                w[i]               = l3__cu_load<T>(p.w, row, k * per_row + at % per_row);
                scale[i]           = l3__cu_load_scale<T>(p.w, row, k * per_row + at % per_row);
            }
            L3__CU_EACH (i, X) {
                const uint32_t at       = threadIdx.x + 256 * i;
                const uint32_t position = l3__cu_min(first + at / 8, p.n - 1);
                x[i] = *(const uint4 *)(q.x + (size_t)position * p.w.ld + k * L3__CU_TILE_K + at % 8 * 8);
            }
        }
        if (k == 0) continue;
        L3__CU_UNROLL
        for (uint32_t kk = 0; kk < L3__CU_TILE_K; kk += 16) {
            uint32_t a[2][4], b[P / 32][4];
            L3__CU_EACH (m, 2)
                l3__cu_tiles<false>(a[m], ws + (wm + 16 * m + lane % 16) * L3__CU_TILE_LD + kk + lane / 16 * 8);
            L3__CU_EACH (j, P / 32)
                l3__cu_tiles<false>(b[j], xs + (wn + 16 * j + lane / 16 * 8 + lane % 8) * L3__CU_TILE_LD + kk +
                                              lane / 8 % 2 * 8);
            L3__CU_EACH (m, 2)
                L3__CU_EACH (j, P / 16) l3__cu_mma<T == L3_BF16>(c[m][j], a[m], b[j / 2] + j % 2 * 2);
        }
    }
    L3__CU_EACH (m, 2)
        L3__CU_EACH (j, P / 16)
            L3__CU_EACH (i, 4)
                l3__cu_put(p, first + wn + 8 * j + lane % 4 * 2 + i % 2, row0 + wm + 16 * m + lane / 4 + i / 2 * 8,
                           c[m][j][i]);
}

/* >>attention ------------------------------------------------------------------------------------------------------ */

/* Keys and values of one decoder block: (sequences, n_kv_heads, context, ld), ld being head_dim rounded up to 8, with zeros. */
typedef struct l3__cu_cache {
    unsigned char *keys, *values;
    uint32_t       sequences, n_kv_heads, context, ld;
    bool           half; /* f16, else floats */
} l3__cu_cache;

L3__CU_BOTH size_t l3__cu_cache_row(const l3__cu_cache &c, uint32_t sequence, uint32_t head, uint32_t position) {
    return (((size_t)sequence * c.n_kv_heads + head) * c.context + position) * c.ld;
}
L3__CU_FN void l3__cu_cache_put(const l3__cu_cache &c, unsigned char *base, size_t at, float v) {
    if (c.half) ((uint16_t *)base)[at] = l3__cu_to_f16(v);
    else ((float *)base)[at] = v;
}
/* Eight elements, `at` a multiple of 8. */
L3__CU_FN void l3__cu_cache_eight(const l3__cu_cache &c, const unsigned char *base, size_t at, float v[8]) {
    if (c.half) l3__cu_eight<L3_F16, true>(base + 2 * at, 0, 8, v);
    else l3__cu_eight<L3_F32, true>(base + 4 * at, 0, 8, v);
}

typedef struct l3__cu_attention {
    float        *qkv; /* (n, n_heads + 2 n_kv_heads, head_dim) */
    l3__cu_inputs in;
    uint32_t      n, n_heads, head_dim, rope_dims;
    const float  *cosines, *sines; /* (context, rope_dims / 2) */
    l3__cu_cache  cache;
    float        *out;      /* (n, n_heads, head_dim) */
    float        *partials; /* (n, n_heads, splits, head_dim + 2): sums, highest score, total */
    uint32_t     *arrived;  /* (n, n_kv_heads) blocks that are done; zero between launches */
    uint32_t      first;    /* position of the pass that the grid begins with */
} l3__cu_attention;

L3__CU_FN float *l3__cu_query(const l3__cu_attention &a, uint32_t i, uint32_t head) {
    return a.qkv + ((size_t)i * (a.n_heads + 2 * a.cache.n_kv_heads) + head) * a.head_dim;
}

/* Queries and keys are rotated in adjacent pairs (RoPE: Su et al. 2021); keys and values go to the cache.
 * Grid: (n, blocks for all pairs). */
__global__ void __launch_bounds__(256) l3__cu_rope(l3__cu_attention a) {
    const uint32_t i = blockIdx.x, n_kv = a.cache.n_kv_heads, pairs = a.cache.ld / 2;
    const uint32_t sequence = a.in.sequences[i], position = a.in.positions[i];
    const float   *cosines = a.cosines + (size_t)position * (a.rope_dims / 2);
    const float   *sines   = a.sines + (size_t)position * (a.rope_dims / 2);
    for (uint32_t at = blockIdx.y * blockDim.x + threadIdx.x; at < (a.n_heads + 2 * n_kv) * pairs;
         at += gridDim.y * blockDim.x) {
        const uint32_t head = at / pairs, k = at % pairs * 2;
        float         *x = l3__cu_query(a, i, head);
        float          u = k < a.head_dim ? x[k] : 0, v = k + 1 < a.head_dim ? x[k + 1] : 0;
        if (head < a.n_heads + n_kv && k < a.rope_dims) {
            const float c = cosines[k / 2], s = sines[k / 2], first = u;
            u = l3__cu_add(l3__cu_mul(first, c), -l3__cu_mul(v, s));
            v = l3__cu_add(l3__cu_mul(first, s), l3__cu_mul(v, c));
        }
        if (head < a.n_heads) {
            if (k < a.head_dim) x[k] = u;
            if (k + 1 < a.head_dim) x[k + 1] = v;
            continue;
        }
        const bool     is_key = head < a.n_heads + n_kv;
        const uint32_t kv     = head - a.n_heads - (is_key ? 0 : n_kv);
        const size_t   to     = l3__cu_cache_row(a.cache, sequence, kv, position) + k;
        l3__cu_cache_put(a.cache, is_key ? a.cache.keys : a.cache.values, to, u);
        l3__cu_cache_put(a.cache, is_key ? a.cache.keys : a.cache.values, to + 1, v);
    }
}

#define L3__CU_HEADS 4u /* query heads that share each key and value read */

/* Scores of up to L3__CU_HEADS queries in shared memory with `count` keys from position t0 on: so many lanes as a row has
 * pieces of eight share a key. */
L3__CU_FN void l3__cu_key_scores(const l3__cu_attention &a, size_t row0, uint32_t count, const float *q,
                                 float *scores) {
    const uint32_t ld = a.cache.ld, lanes = l3__cu_min(l3__cu_power(ld / 8), 32), per_warp = 32 / lanes;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = lane % lanes;
    const float    scale = 1.0f / sqrtf((float)a.head_dim);
    for (uint32_t t0 = warp * per_warp; t0 < count; t0 += blockDim.x / 32 * per_warp) {
        const uint32_t t                 = t0 + lane / lanes;
        float          sum[L3__CU_HEADS] = {0, 0, 0, 0}, k[8];
        for (uint32_t at = part * 8; t < count && at < ld; at += lanes * 8) {
            l3__cu_cache_eight(a.cache, a.cache.keys, row0 + (size_t)t * ld + at, k);
            for (uint32_t h = 0; h < L3__CU_HEADS; h++)
                for (uint32_t i = 0; i < 8; i++) sum[h] = fmaf(q[h * ld + at + i], k[i], sum[h]);
        }
        for (uint32_t h = 0; h < L3__CU_HEADS; h++) {
            for (uint32_t d = lanes / 2; d; d /= 2) sum[h] += __shfl_xor_sync(~0u, sum[h], d);
            if (part == 0 && t < count) scores[h * L3__CU_SPLIT + t] = sum[h] * scale;
        }
    }
}

/* Scores become their exponentials, relative to the highest; a warp a head. */
L3__CU_FN void l3__cu_exponentials(float *scores, uint32_t count, float *peak, float *total) {
    const uint32_t lane = threadIdx.x % 32;
    float          high = L3__CU_MINUS_INFINITY, sum = 0;
    for (uint32_t t = lane; t < count; t += 32) high = fmaxf(high, scores[t]);
    high = l3__cu_warp_max(high);
    for (uint32_t t = lane; t < count; t += 32) sum += scores[t] = l3__cu_exp(scores[t] - high);
    sum = l3__cu_warp_sum(sum);
    if (lane != 0) return;
    *total = sum;
    *peak  = high;
}

/* sums (heads, ld) of values weighed by exponentials: threads take eight columns of every few rows each, then add up. */
L3__CU_FN void l3__cu_weigh_values(const l3__cu_attention &a, size_t row0, uint32_t count, const float *scores,
                                   float *room, float *sums) {
    const uint32_t ld = a.cache.ld, columns = l3__cu_power(ld / 8), groups = blockDim.x / columns;
    const uint32_t column = threadIdx.x % columns * 8, group = threadIdx.x / columns;
    float          sum[L3__CU_HEADS][8], v[8];
    for (uint32_t h = 0; h < L3__CU_HEADS; h++)
        for (uint32_t i = 0; i < 8; i++) sum[h][i] = 0;
    for (uint32_t t = group; column < ld && t < count; t += groups) {
        l3__cu_cache_eight(a.cache, a.cache.values, row0 + (size_t)t * ld + column, v);
        for (uint32_t h = 0; h < L3__CU_HEADS; h++)
            for (uint32_t i = 0; i < 8; i++) sum[h][i] = fmaf(scores[h * L3__CU_SPLIT + t], v[i], sum[h][i]);
    }
    for (uint32_t h = 0; column < ld && h < L3__CU_HEADS; h++)
        for (uint32_t i = 0; i < 8; i++) room[(group * L3__CU_HEADS + h) * ld + column + i] = sum[h][i];
    __syncthreads();
    for (uint32_t at = threadIdx.x; at < L3__CU_HEADS * ld; at += blockDim.x) {
        float all = 0;
        for (uint32_t g = 0; g < groups; g++) all += room[g * L3__CU_HEADS * ld + at];
        sums[at] = all;
    }
    __syncthreads();
}

/* Partial sums of splits, each (width,), highest score, total, stride apart, become one result: sum / total. */
L3__CU_FN void l3__cu_merge(const float *partials, size_t stride, uint32_t splits, uint32_t width, float *out) {
    float high = L3__CU_MINUS_INFINITY, total = 0;
    for (uint32_t s = 0; s < splits; s++) high = fmaxf(high, __ldcg(partials + s * stride + width));
    for (uint32_t s = 0; s < splits; s++)
        total = fmaf(__ldcg(partials + s * stride + width + 1),
                     l3__cu_exp(__ldcg(partials + s * stride + width) - high), total);
    for (uint32_t k = threadIdx.x; k < width; k += blockDim.x) {
        float sum = 0;
        for (uint32_t s = 0; s < splits; s++)
            sum =
                fmaf(__ldcg(partials + s * stride + k), l3__cu_exp(__ldcg(partials + s * stride + width) - high), sum);
        out[k] = sum / total;
    }
}

/* Whether this block is the last of `blocks` to come here; what the others wrote before can then be read. */
L3__CU_FN bool l3__cu_last(uint32_t *arrived, uint32_t blocks, uint32_t *room) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        *room = atomicAdd(arrived, 1u) == blocks - 1;
        if (*room) *arrived = 0;
    }
    __syncthreads();
    const bool last = *room != 0;
    __threadfence();
    return last;
}

L3__CU_BOTH size_t l3__cu_attend_shared(uint32_t ld) {
    const uint32_t groups = 128 / l3__cu_power(ld / 8);
    return sizeof(float) * (L3__CU_HEADS * ((size_t)ld * 2 + L3__CU_SPLIT + 2 + (size_t)groups * ld) + 1);
}

/* A block: one position and head of keys, the queries that share it, L3__CU_SPLIT positions of the text. The last block of a
 * position and head puts the parts together, always in the same order. Block: 128 threads; grid: (splits, n_kv_heads, n). */
__global__ void __launch_bounds__(128) l3__cu_attend(l3__cu_attention a) {
    extern __shared__ __align__(16) unsigned char l3__shared[];
    const uint32_t i = a.first + blockIdx.z, kv = blockIdx.y, split = blockIdx.x, ld = a.cache.ld;
    const uint32_t length = a.in.positions[i] + 1, splits = l3__cu_ceil(length, L3__CU_SPLIT),
                   t0    = split * L3__CU_SPLIT;
    const uint32_t share = a.n_heads / a.cache.n_kv_heads;
    const size_t   part  = a.head_dim + 2;
    float *q = (float *)l3__shared, *scores = q + L3__CU_HEADS * ld, *peaks = scores + L3__CU_HEADS * L3__CU_SPLIT;
    float *sums = peaks + 2 * L3__CU_HEADS, *room = sums + L3__CU_HEADS * ld;
    if (t0 >= length) return;
    const uint32_t count = l3__cu_min(L3__CU_SPLIT, length - t0);
    const size_t   row0  = l3__cu_cache_row(a.cache, a.in.sequences[i], kv, t0);
    for (uint32_t h0 = 0; h0 < share; h0 += L3__CU_HEADS) {
        const uint32_t heads = l3__cu_min(L3__CU_HEADS, share - h0);
        for (uint32_t at = threadIdx.x; at < L3__CU_HEADS * ld; at += blockDim.x) {
            const uint32_t h = at / ld, k = at % ld;
            q[at] = h < heads && k < a.head_dim ? l3__cu_query(a, i, kv * share + h0 + h)[k] : 0;
        }
        __syncthreads();
        l3__cu_key_scores(a, row0, count, q, scores);
        __syncthreads();
        l3__cu_exponentials(scores + threadIdx.x / 32 * L3__CU_SPLIT, count, peaks + threadIdx.x / 32,
                            peaks + L3__CU_HEADS + threadIdx.x / 32);
        __syncthreads();
        l3__cu_weigh_values(a, row0, count, scores, room, sums);
        for (uint32_t h = 0; h < heads; h++) {
            const uint32_t head = kv * share + h0 + h;
            float         *to   = a.partials + (((size_t)blockIdx.z * a.n_heads + head) * gridDim.x + split) * part;
            for (uint32_t k = threadIdx.x; k < a.head_dim; k += blockDim.x) {
                if (splits == 1)
                    a.out[((size_t)i * a.n_heads + head) * a.head_dim + k] = sums[h * ld + k] / peaks[L3__CU_HEADS + h];
                else to[k] = sums[h * ld + k];
            }
            if (threadIdx.x == 0 && splits > 1) {
                to[a.head_dim]     = peaks[h];
                to[a.head_dim + 1] = peaks[L3__CU_HEADS + h];
            }
        }
        __syncthreads();
    }
    if (splits == 1 || !l3__cu_last(a.arrived + (size_t)blockIdx.z * a.cache.n_kv_heads + kv, splits,
                                    (uint32_t *)(room + (size_t)128 / l3__cu_power(ld / 8) * L3__CU_HEADS * ld)))
        return;
    for (uint32_t h = 0; h < share; h++) {
        const uint32_t head = kv * share + h;
        l3__cu_merge(a.partials + ((size_t)blockIdx.z * a.n_heads + head) * gridDim.x * part, part, splits, a.head_dim,
                     a.out + ((size_t)i * a.n_heads + head) * a.head_dim);
    }
}

#define L3__CU_QUERIES 64u /* positions of a block in prefill, and keys at a time */

/* Eight elements of a cache row as halves; zeros where there are none. */
L3__CU_FN uint4 l3__cu_cache_halves(const l3__cu_cache &c, const unsigned char *base, size_t row, uint32_t at) {
    if (at >= c.ld) return make_uint4(0, 0, 0, 0);
    if (c.half) return *(const uint4 *)(base + 2 * (row + at));
    float v[8];
    l3__cu_cache_eight(c, base, row + at, v);
    return make_uint4(l3__cu_pair(v[0], v[1], false), l3__cu_pair(v[2], v[3], false), l3__cu_pair(v[4], v[5], false),
                      l3__cu_pair(v[6], v[7], false));
}

/* Prefill in L3_FAST: 64 positions of one sequence and one head against 64 keys at a time on tensor cores, with an online
 * softmax (Milakov, Gimelshein 2018; tiles as in FlashAttention, Dao et al. 2022). D: head_dim rounded up to 64 or 128.
 * Block: 128 threads, of which each warp has 16 positions; grid: (n / 64 rounded up, n_heads). */
template <int D> __global__ void __launch_bounds__(128) l3__cu_prefill_attend(l3__cu_attention a) {
    extern __shared__ __align__(16) unsigned char l3__shared[];
    const uint32_t                                LD   = D + 8; /* halves of a row in shared memory */
    uint16_t                                     *keys = (uint16_t *)l3__shared, *values = keys + L3__CU_QUERIES * LD;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t first = blockIdx.x * L3__CU_QUERIES, head = blockIdx.y, kv = head / (a.n_heads / a.cache.n_kv_heads);
    const uint32_t position0 = a.in.positions[0], sequence = a.in.sequences[0];
    const uint32_t last  = position0 + l3__cu_min(first + L3__CU_QUERIES, a.n) - 1;
    const float    scale = 1.0f / sqrtf((float)a.head_dim);
    uint32_t       q[D / 16][4];
    float          o[D / 8][4], high[2] = {L3__CU_MINUS_INFINITY, L3__CU_MINUS_INFINITY}, total[2] = {0, 0};
    for (uint32_t at = threadIdx.x; at < L3__CU_QUERIES * D; at += blockDim.x) {
        const uint32_t r = at / D, k = at % D;
        const bool     in = first + r < a.n && k < a.head_dim;
        keys[r * LD + k]  = l3__cu_to_f16(in ? l3__cu_query(a, first + r, head)[k] * scale : 0.0f);
    }
    __syncthreads();
    L3__CU_EACH (k, D / 16) l3__cu_tiles<false>(q[k], keys + (16 * warp + lane % 16) * LD + 16 * k + lane / 16 * 8);
    L3__CU_EACH (k, D / 8)
        L3__CU_EACH (i, 4) o[k][i] = 0;
    for (uint32_t t0 = 0; t0 <= last; t0 += L3__CU_QUERIES) {
        __syncthreads();
        for (uint32_t at = threadIdx.x; at < L3__CU_QUERIES * (D / 8); at += blockDim.x) {
            const uint32_t r = at / (D / 8), k = at % (D / 8) * 8;
            const bool     in               = t0 + r <= last;
            const size_t   row              = l3__cu_cache_row(a.cache, sequence, kv, in ? t0 + r : t0);
            const uint4    nothing          = make_uint4(0, 0, 0, 0);
            *(uint4 *)(keys + r * LD + k)   = in ? l3__cu_cache_halves(a.cache, a.cache.keys, row, k) : nothing;
            *(uint4 *)(values + r * LD + k) = in ? l3__cu_cache_halves(a.cache, a.cache.values, row, k) : nothing;
        }
        __syncthreads();
        float s[8][4];
        L3__CU_EACH (j, 8)
            L3__CU_EACH (i, 4) s[j][i] = 0;
        L3__CU_EACH (k, D / 16)
            L3__CU_EACH (j, 4) {
                uint32_t b[4];
                l3__cu_tiles<false>(b, keys + (16 * j + lane / 16 * 8 + lane % 8) * LD + 16 * k + lane / 8 % 2 * 8);
                l3__cu_mma<false>(s[2 * j], q[k], b);
                l3__cu_mma<false>(s[2 * j + 1], q[k], b + 2);
            }
        L3__CU_EACH (half, 2) { /* rows g and g + 8 */
            const uint32_t own  = position0 + first + 16 * warp + g + 8 * half;
            float          peak = high[half];
            L3__CU_EACH (j, 8) L3__CU_UNROLL
            for (uint32_t i = 2 * half; i < 2 * half + 2; i++) {
                if (t0 + 8 * j + 2 * t + i % 2 > own) s[j][i] = L3__CU_MINUS_INFINITY;
                peak = fmaxf(peak, s[j][i]);
            }
            peak               = fmaxf(peak, __shfl_xor_sync(~0u, peak, 1));
            peak               = fmaxf(peak, __shfl_xor_sync(~0u, peak, 2));
            const float shrink = l3__cu_exp(high[half] - peak);
            high[half]         = peak;
            total[half] *= shrink;
            L3__CU_EACH (k, D / 8) L3__CU_UNROLL
            for (uint32_t i = 2 * half; i < 2 * half + 2; i++) o[k][i] *= shrink;
            L3__CU_EACH (j, 8) L3__CU_UNROLL
            for (uint32_t i = 2 * half; i < 2 * half + 2; i++) total[half] += s[j][i] = l3__cu_exp(s[j][i] - peak);
        }
        L3__CU_UNROLL
        for (uint32_t j = 0; j < 4;
             j++) { /* scores of 16 keys, as the left side of a product: they lie right already */
            const uint32_t p[4] = {l3__cu_pair(s[2 * j][0], s[2 * j][1], false),
                                   l3__cu_pair(s[2 * j][2], s[2 * j][3], false),
                                   l3__cu_pair(s[2 * j + 1][0], s[2 * j + 1][1], false),
                                   l3__cu_pair(s[2 * j + 1][2], s[2 * j + 1][3], false)};
            L3__CU_EACH (k, D / 16) {
                uint32_t b[4];
                l3__cu_tiles<true>(b, values + (16 * j + lane / 8 % 2 * 8 + lane % 8) * LD + 16 * k + lane / 16 * 8);
                l3__cu_mma<false>(o[2 * k], p, b);
                l3__cu_mma<false>(o[2 * k + 1], p, b + 2);
            }
        }
    }
    L3__CU_EACH (half, 2) {
        const uint32_t i = first + 16 * warp + g + 8 * half;
        total[half] += __shfl_xor_sync(~0u, total[half], 1);
        total[half] += __shfl_xor_sync(~0u, total[half], 2);
        for (uint32_t k = 0; i < a.n && k < D / 8; k++)
            L3__CU_EACH (j, 2)
                if (8 * k + 2 * t + j < a.head_dim)
                    a.out[((size_t)i * a.n_heads + head) * a.head_dim + 8 * k + 2 * t + j] =
                        o[k][2 * half + j] / total[half];
    }
}

/* >>lookup --------------------------------------------------------------------------------------------------------- */

/* Where a lookup layer's table is. */
typedef struct l3__cu_table {
    const int32_t       *offsets; /* (vocab + 1,) on the device */
    const unsigned char *rows;    /* on the device or in pinned memory; of L3_CUDA_SOURCE what a step gathered */
    const uint32_t      *hot;     /* (vocab,) units of 16 bytes into hot_rows, or L3__CU_NOWHERE; NULL: none is hot */
    const unsigned char *hot_rows;
    unsigned char       *staging; /* where rows are fetched to; NULL: they are used where they are */
    uint32_t             units;   /* of 16 bytes in staging */
    uint32_t             row_bytes;
    bool                 gathered; /* rows lie one token after the other, in the order of groups */
} l3__cu_table;

/* A distinct token of a step: positions order[begin] ... order[end - 1], and its rows in one layer. */
typedef struct l3__cu_rows {
    const unsigned char *rows, *from; /* where they are used; where they are fetched from, or NULL */
    uint32_t             n, begin, end, unused;
} l3__cu_rows;

typedef struct l3__cu_grouping {
    const int32_t      *tokens; /* (n,) */
    uint32_t            n, n_layers, batch;
    const l3__cu_table *tables;   /* (n_layers,) */
    l3__cu_rows        *rows;     /* (n_layers, batch) */
    uint32_t           *order;    /* (batch,) positions sorted by token */
    uint32_t           *n_groups; /* (1,) */
    unsigned long long *stats;    /* (4,) bytes of rows: wanted, hot, fetched, used where they are */
} l3__cu_grouping;

/* A token in the upper 20 bits, its position in the pass below: sorted, equal tokens are in the order of their positions. */
L3__CU_BOTH uint32_t l3__cu_key(int32_t token, uint32_t position) { return (uint32_t)token << 12 | position; }

/* v (n,), n a power of two, rises. */
L3__CU_FN void l3__cu_sort(uint32_t *v, uint32_t n) {
    for (uint32_t size = 2; size <= n; size *= 2)
        for (uint32_t step = size / 2; step; step /= 2) {
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
                const uint32_t j = i ^ step;
                if (j > i && (v[i] > v[j]) == ((i & size) == 0)) {
                    const uint32_t w = v[i];
                    v[i] = v[j], v[j] = w;
                }
            }
        }
    __syncthreads();
}

/* Sums up to each place, no more than the largest number. n <= 4 blockDim.x. */
L3__CU_FN void l3__cu_sums(uint32_t *v, uint32_t n) {
    for (uint32_t step = 1; step < n; step *= 2) {
        uint32_t sum[4];
        __syncthreads();
        for (uint32_t u = 0, i = threadIdx.x; u < 4 && i < n; u++, i += blockDim.x) {
            const uint32_t before = i >= step ? v[i - step] : 0;
            sum[u]                = v[i] + before < before ? L3__CU_NOWHERE : v[i] + before;
        }
        __syncthreads();
        for (uint32_t u = 0, i = threadIdx.x; u < 4 && i < n; u++, i += blockDim.x) v[i] = sum[u];
    }
    __syncthreads();
}

/* Units of staging that a token's rows take: none if they are hot, too many, or used where they are. */
L3__CU_BOTH uint32_t l3__cu_units_of(const l3__cu_table &t, int32_t token, uint32_t first, uint32_t n) {
    if (!t.staging || n == 0 || (t.hot && t.hot[token] != L3__CU_NOWHERE)) return 0;
    const uint64_t bytes = (uint64_t)n * t.row_bytes;
    if (bytes > (uint64_t)t.units * 16) return 0;
    return l3__cu_units(t.gathered ? 0 : (uint64_t)(uintptr_t)t.rows + (uint64_t)first * t.row_bytes, bytes);
}

/* Where one token's rows are in a layer; `end` is where its place in staging would end. */
L3__CU_FN l3__cu_rows l3__cu_find(const l3__cu_table &t, int32_t token, uint32_t end, unsigned long long *bytes) {
    const uint32_t       first = (uint32_t)t.offsets[token], n = (uint32_t)t.offsets[token + 1] - first;
    const uint32_t       units = l3__cu_units_of(t, token, first, n);
    const uint64_t       all   = (uint64_t)n * t.row_bytes;
    const unsigned char *lie =
        t.gathered ? t.rows + (size_t)(end - units) * 16 : t.rows + (uint64_t)first * t.row_bytes;
    l3__cu_rows r = {lie, NULL, n, 0, 0, 0};
    atomicAdd(bytes, (unsigned long long)all);
    if (t.hot && t.hot[token] != L3__CU_NOWHERE) {
        r.rows = t.hot_rows + (size_t)t.hot[token] * 16;
        atomicAdd(bytes + 1, (unsigned long long)all);
    } else if (units && end <= t.units) {
        r.from = lie;
        r.rows = t.staging + (size_t)(end - units) * 16 + ((uintptr_t)lie & 15);
        atomicAdd(bytes + 2, (unsigned long long)all);
    } else {
        atomicAdd(bytes + 3, (unsigned long long)all);
    }
    return r;
}

L3__CU_BOTH size_t l3__cu_group_shared(uint32_t n) { return 3 * sizeof(uint32_t) * l3__cu_power(n); }

/* Sorts the positions of a pass by token and finds each distinct token's rows in every layer. One block of 1024 threads. */
__global__ void __launch_bounds__(1024) l3__cu_group_tokens(l3__cu_grouping a) {
    extern __shared__ __align__(16) unsigned char l3__shared[];
    const uint32_t                                all = l3__cu_power(a.n);
    uint32_t *keys = (uint32_t *)l3__shared, *sums = keys + all, *begins = sums + all;
    for (uint32_t i = threadIdx.x; i < all; i += blockDim.x)
        keys[i] = i < a.n ? l3__cu_key(a.tokens[i], i) : L3__CU_NOWHERE;
    l3__cu_sort(keys, all);
    for (uint32_t i = threadIdx.x; i < all; i += blockDim.x)
        sums[i] = i < a.n && (i == 0 || keys[i] >> 12 != keys[i - 1] >> 12);
    l3__cu_sums(sums, all);
    const uint32_t n_groups = sums[a.n - 1];
    for (uint32_t i = threadIdx.x; i < a.n; i += blockDim.x) {
        a.order[i] = keys[i] & (L3__CU_BATCH - 1);
        if (i == 0 || sums[i] != sums[i - 1]) begins[sums[i] - 1] = i;
    }
    if (threadIdx.x == 0) *a.n_groups = n_groups;
    for (uint32_t layer = 0; layer < a.n_layers; layer++) {
        const l3__cu_table t = a.tables[layer];
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n_groups; i += blockDim.x) {
            const int32_t token = (int32_t)(keys[begins[i]] >> 12);
            sums[i]             = l3__cu_units_of(t, token, (uint32_t)t.offsets[token],
                                                  (uint32_t)(t.offsets[token + 1] - t.offsets[token]));
        }
        l3__cu_sums(sums, n_groups);
        for (uint32_t i = threadIdx.x; i < n_groups; i += blockDim.x) {
            l3__cu_rows r                       = l3__cu_find(t, (int32_t)(keys[begins[i]] >> 12), sums[i], a.stats);
            r.begin                             = begins[i];
            r.end                               = i + 1 < n_groups ? begins[i + 1] : a.n;
            a.rows[(size_t)layer * a.batch + i] = r;
        }
    }
}

#define L3__CU_FETCHERS \
    32u /* blocks that fetch rows: enough reads under way for a bus, few enough not to be in the way */

/* Brings a step's rows of one layer from host memory into staging: 16 bytes at a time, four under way a thread. Units are dealt
 * out so that all threads have work however small the tokens' blocks are. */
__global__ void __launch_bounds__(256)
    l3__cu_fetch(const l3__cu_rows *rows, const uint32_t *n_groups, l3__cu_table table) {
    const uint32_t threads = gridDim.x * blockDim.x, own = blockIdx.x * blockDim.x + threadIdx.x;
    for (uint32_t i = 0; i < *n_groups; i++) {
        const l3__cu_rows r = rows[i];
        if (!r.from) continue;
        const uint32_t units = l3__cu_units((uintptr_t)r.from, (uint64_t)r.n * table.row_bytes);
        const uint4   *from  = (const uint4 *)((uintptr_t)r.from & ~(uintptr_t)15);
        uint4         *to    = (uint4 *)((uintptr_t)r.rows & ~(uintptr_t)15);
        const uint32_t at    = (uint32_t)(((const unsigned char *)to - table.staging) / 16 % threads);
        for (uint32_t u = (own + threads - at) % threads; u < units; u += 4 * threads) {
            uint4 v[4];
            L3__CU_EACH (k, 4)
                if (u + k * threads < units) v[k] = from[u + k * threads];
            L3__CU_EACH (k, 4)
                if (u + k * threads < units) to[u + k * threads] = v[k];
        }
    }
}

typedef struct l3__cu_rows_attention {
    const l3__cu_rows *rows; /* (n_groups,) */
    const uint32_t    *n_groups, *order;
    const float       *query;                                          /* (n, query_ld), zeros from key_length on */
    uint32_t  query_ld, key_length, value_length, row_bytes, value_at; /* byte of a row where its value begins */
    uint32_t  rows_split, splits; /* l3__cu_rows_split(), blocks of the token with most rows */
    bool      key_norm;
    float     score_scale, epsilon;
    float    *partials; /* (n, splits, value_length + 2): sums, highest score, total */
    uint32_t *arrived;  /* (n,) by group; zero between launches */
    float    *out;      /* (n, value_length) */
} l3__cu_rows_attention;

/* Positions of a token that share each read of its rows; and rows of a warp. */
#define L3__CU_TOGETHER 4u

/* Scores (P, 32) of `count` rows with n <= P positions: each warp has four rows, so that 8 warps have all. */
template <int T, bool ALIGNED, int P>
L3__CU_FN void l3__cu_row_scores(const l3__cu_rows_attention &a, const unsigned char *rows, uint32_t count,
                                 const uint32_t *positions, uint32_t n, float *scores) {
    const uint32_t r0 = threadIdx.x / 32 * L3__CU_TOGETHER, lane = threadIdx.x % 32;
    float          sum[L3__CU_TOGETHER][P], square[L3__CU_TOGETHER];
    if (r0 >= count) return;
    L3__CU_EACH (r, L3__CU_TOGETHER) {
        square[r] = 0;
        L3__CU_EACH (p, P) sum[r][p] = 0;
    }
    L3__CU_UNROLL_BY(2)
    for (uint32_t k = lane * 8; k < a.key_length; k += 256) {
        float q[P][8], v[L3__CU_TOGETHER][8];
        L3__CU_EACH (r, L3__CU_TOGETHER) /* what is not there is the last once more */
            l3__cu_eight<T, ALIGNED>(rows + (size_t)l3__cu_min(r0 + r, count - 1) * a.row_bytes, k, a.key_length, v[r]);
        L3__CU_EACH (p, P)
            l3__cu_eight<L3_F32, true>((const unsigned char *)(a.query + (size_t)positions[p < n ? p : 0] * a.query_ld),
                                       k, a.query_ld, q[p]);
        L3__CU_EACH (r, L3__CU_TOGETHER)
            L3__CU_EACH (i, 8) {
                square[r] = fmaf(v[r][i], v[r][i], square[r]);
                L3__CU_EACH (p, P) sum[r][p] = fmaf(v[r][i], q[p][i], sum[r][p]);
            }
    }
    L3__CU_EACH (r, L3__CU_TOGETHER) {
        float scale = a.score_scale;
        if (a.key_norm) scale *= 1.0f / sqrtf(l3__cu_warp_sum(square[r]) / (float)a.key_length + a.epsilon);
        L3__CU_EACH (p, P) {
            const float s = l3__cu_warp_sum(sum[r][p]);
            if (lane == 0 && r0 + r < count) scores[p * 32 + r0 + r] = s * scale;
        }
    }
}

/* Scores become exponentials, warp p those of position p; what earlier rows of this block summed up is to be scaled by
 * shrink[p]. */
L3__CU_FN void l3__cu_row_softmax(float *scores, uint32_t count, bool begins, float *peak, float *total,
                                  float *shrink) {
    const uint32_t p = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float    before = begins ? L3__CU_MINUS_INFINITY : peak[p];
    const float    score  = lane < count ? scores[p * 32 + lane] : L3__CU_MINUS_INFINITY;
    const float    high   = fmaxf(l3__cu_warp_max(score), before);
    const float    e      = lane < count ? l3__cu_exp(score - high) : 0;
    const float    sum    = l3__cu_warp_sum(e);
    scores[p * 32 + lane] = e;
    __syncwarp(); /* all lanes have read peak[p] */
    if (lane != 0) return;
    shrink[p] = begins ? 0 : l3__cu_exp(before - high);
    total[p]  = begins ? sum : fmaf(total[p], shrink[p], sum);
    peak[p]   = high;
}

/* Values of `count` rows, weighed by exponentials, are added to the partial sums of n <= P positions: eight columns a thread;
 * where half of the threads are enough for that, the others take every second row. room: (P, value_length) floats then. */
template <int T, bool ALIGNED, int P>
L3__CU_FN void l3__cu_weigh_rows(const l3__cu_rows_attention &a, const unsigned char *rows, uint32_t count,
                                 const uint32_t *positions, uint32_t n, uint32_t split, bool begins,
                                 const float *scores, const float *shrink, float *room) {
    const uint32_t teams = a.value_length <= 1024 ? 2 : 1, threads = blockDim.x / teams, team = threadIdx.x / threads;
    for (uint32_t k0 = 0; k0 < a.value_length; k0 += 8 * threads) {
        const uint32_t k = k0 + threadIdx.x % threads * 8;
        float          sum[P][8];
        L3__CU_EACH (p, P)
            L3__CU_EACH (i, 8) sum[p][i] = 0;
        L3__CU_UNROLL_BY(4)
        for (uint32_t j = team; k < a.value_length && j < count; j += teams) {
            float v[8];
            l3__cu_eight<T, ALIGNED>(rows + (size_t)j * a.row_bytes + a.value_at, k, a.value_length, v);
            L3__CU_EACH (p, P)
                L3__CU_EACH (i, 8) sum[p][i] = fmaf(scores[p * 32 + j], v[i], sum[p][i]);
        }
        if (teams == 2) {
            L3__CU_EACH (p, P)
                L3__CU_EACH (i, 8)
                    if (team == 1 && k + i < a.value_length) room[p * a.value_length + k + i] = sum[p][i];
            __syncthreads();
        }
        L3__CU_EACH (p, P) {
            if (team != 0 || p >= n) continue;
            float *to = a.partials + ((size_t)positions[p] * a.splits + split) * (a.value_length + 2) + k;
            L3__CU_EACH (i, 8) {
                if (k + i >= a.value_length) continue;
                const float v = teams == 2 ? sum[p][i] + room[p * a.value_length + k + i] : sum[p][i];
                to[i]         = begins ? v : fmaf(to[i], shrink[p], v);
            }
        }
    }
}

/* A block: some rows of one token for all positions that have it, keys and values read once for P of them. The last block of a
 * token puts the parts together. Sums are made in the same order whatever P is. Block: 256 threads; grid: (splits, n). */
template <int T, bool ALIGNED, int P>
__global__ void __launch_bounds__(256) l3__cu_attend_rows(l3__cu_rows_attention a) {
    extern __shared__ __align__(16) unsigned char l3__shared[];
    float         *scores = (float *)l3__shared, *peak = scores + P * 32, *total = peak + P, *shrink = total + P;
    float         *room  = shrink + P + 1;
    const uint32_t group = blockIdx.y, split = blockIdx.x;
    if (group >= *a.n_groups) return;
    const l3__cu_rows r     = a.rows[group];
    const uint32_t    begin = split * a.rows_split, end = l3__cu_min(begin + a.rows_split, r.n);
    const size_t      part = a.value_length + 2;
    if (r.n == 0 && split == 0) /* nothing to attend to */
        for (uint32_t at = threadIdx.x; at < (r.end - r.begin) * a.value_length; at += blockDim.x)
            a.out[(size_t)a.order[r.begin + at / a.value_length] * a.value_length + at % a.value_length] = 0;
    if (begin >= r.n) return;
    for (uint32_t p0 = r.begin; p0 < r.end; p0 += P) {
        const uint32_t n = l3__cu_min(P, r.end - p0);
        for (uint32_t row = begin; row < end; row += 32) {
            const uint32_t       count = l3__cu_min(32, end - row);
            const unsigned char *rows  = r.rows + (size_t)row * a.row_bytes;
            __syncthreads();
            l3__cu_row_scores<T, ALIGNED, P>(a, rows, count, a.order + p0, n, scores);
            __syncthreads();
            if (threadIdx.x / 32 < P) l3__cu_row_softmax(scores, count, row == begin, peak, total, shrink);
            __syncthreads();
            l3__cu_weigh_rows<T, ALIGNED, P>(a, rows, count, a.order + p0, n, split, row == begin, scores, shrink,
                                             room);
        }
        if (threadIdx.x < n) {
            float *to = a.partials + ((size_t)a.order[p0 + threadIdx.x] * a.splits + split) * part + a.value_length;
            to[0] = peak[threadIdx.x], to[1] = total[threadIdx.x];
        }
    }
    const uint32_t blocks = l3__cu_ceil(r.n, a.rows_split);
    if (!l3__cu_last(a.arrived + group, blocks, (uint32_t *)(shrink + P))) return;
    for (uint32_t p = r.begin; p < r.end; p++)
        l3__cu_merge(a.partials + (size_t)a.order[p] * a.splits * part, part, blocks, a.value_length,
                     a.out + (size_t)a.order[p] * a.value_length);
}
L3__CU_BOTH size_t l3__cu_attend_rows_shared(uint32_t positions, uint32_t value_length) {
    return sizeof(float) * (positions * (35 + (size_t)(value_length <= 1024 ? value_length : 0)) + 1);
}

/* What W_mix is multiplied with: norm(u), then x. */
typedef struct l3__cu_mixing {
    const float *u, *x; /* (n, up_length), (n, dim) */
    uint32_t     up_length, dim;
    const float *weight, *bias; /* or NULL: ones, zeros */
    bool         layer_norm;
    float        epsilon;
    float       *out; /* (n, up_length + dim) */
} l3__cu_mixing;

__global__ void __launch_bounds__(256) l3__cu_fill_mix(l3__cu_mixing m) {
    extern __shared__ __align__(16) unsigned char l3__shared[];
    const float                                  *u    = m.u + (size_t)blockIdx.x * m.up_length;
    float                                        *out  = m.out + (size_t)blockIdx.x * (m.up_length + m.dim);
    float                                        *room = (float *)l3__shared, mean = 0, sum = 0;
    if (m.layer_norm) {
        for (uint32_t k = threadIdx.x; k < m.up_length; k += blockDim.x) mean += u[k];
        mean = l3__cu_block_sum(mean, room) / (float)m.up_length;
    }
    for (uint32_t k = threadIdx.x; k < m.up_length; k += blockDim.x) sum = fmaf(u[k] - mean, u[k] - mean, sum);
    const float scale = 1.0f / sqrtf(l3__cu_block_sum(sum, room) / (float)m.up_length + m.epsilon);
    for (uint32_t k = threadIdx.x; k < m.up_length; k += blockDim.x)
        out[k] = (u[k] - mean) * scale * (m.weight ? m.weight[k] : 1.0f) + (m.bias ? m.bias[k] : 0.0f);
    for (uint32_t k = threadIdx.x; k < m.dim; k += blockDim.x)
        out[m.up_length + k] = m.x[(size_t)blockIdx.x * m.dim + k];
}

/* >>choice --------------------------------------------------------------------------------------------------------- */

/* l3_sampling without its seed. */
typedef struct l3__cu_sampling {
    float    temperature, top_p, min_p, repeat_penalty;
    uint32_t top_k, repeat_last_n;
} l3__cu_sampling;

typedef struct l3__cu_choice {
    const float           *logits; /* (sequences, vocab) */
    uint32_t               vocab, n, context;
    const l3__cu_sampling *sampling;
    int32_t               *tokens;    /* (n,): of the step before; of the next one after it */
    const uint32_t        *sequences; /* (n,) */
    uint32_t              *positions; /* (n,) */
    const int32_t         *history;   /* (sequences, context) */
    uint64_t              *states;    /* (n,) of generators */
    uint32_t              *steps;     /* (n,) steps done */
    int32_t               *out;       /* (steps, n) */
    int32_t               *status;    /* l3_status of the first that failed */
} l3__cu_choice;

/* What a block of 1024 threads choosing a token has in shared memory. */
typedef struct l3__cu_choosing {
    unsigned long long best[L3__CU_BEST]; /* l3__cu_rank() */
    float              relative[L3__CU_BEST];
    int32_t            recent[L3__CU_BEST];
    uint32_t           bins[256], warps[32];
    uint32_t           found, wanted, prefix, valid;
} l3__cu_choosing;

/* A logit and its token: the higher, the better; of equals the lower ID. 0: no candidate. */
L3__CU_BOTH unsigned long long l3__cu_rank(float logit, uint32_t id) {
    if (!(logit >= -3.4028235e38f)) return 0; /* minus infinity, or NaN */
    return (unsigned long long)l3__cu_ordered(logit + 0.0f) << 32 | (0xffffffffu - id);
}
L3__CU_BOTH float l3__cu_rank_logit(unsigned long long rank) {
    const uint32_t v = (uint32_t)(rank >> 32);
    return l3__cu_float(v >> 31 ? v & 0x7fffffffu : ~v);
}

L3__CU_FN unsigned long long l3__cu_candidate(const float *logits, uint32_t id, const l3__cu_choosing *c,
                                              uint32_t n_recent, float penalty) {
    float logit = logits[id];
    for (uint32_t i = 0; i < n_recent; i++)
        if (c->recent[i] == (int32_t)id) {
            logit = logit > 0 ? logit / penalty : l3__cu_mul(logit, penalty);
            break;
        }
    return l3__cu_rank(logit, id);
}

/* The best of all, in best[0]. */
L3__CU_FN void l3__cu_choose_one(const float *logits, uint32_t vocab, l3__cu_choosing *c, uint32_t n_recent,
                                 float penalty) {
    unsigned long long best = 0;
    for (uint32_t id = threadIdx.x; id < vocab; id += blockDim.x) {
        const unsigned long long r = l3__cu_candidate(logits, id, c, n_recent, penalty);
        best                       = r > best ? r : best;
    }
    c->best[threadIdx.x] = best;
    for (uint32_t step = 512; step; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step && c->best[threadIdx.x + step] > c->best[threadIdx.x])
            c->best[threadIdx.x] = c->best[threadIdx.x + step];
    }
    __syncthreads();
}

/* c->prefix becomes the logit (ordered) of the k-th best, digit by digit from the highest; c->wanted how many with that very
 * logit are among the k best. k is lowered to the number of candidates, which is returned. */
L3__CU_FN uint32_t l3__cu_threshold(const float *logits, uint32_t vocab, l3__cu_choosing *c, uint32_t n_recent,
                                    float penalty, uint32_t k) {
    if (threadIdx.x == 0) c->prefix = 0;
    for (uint32_t shift = 32; shift;) {
        shift -= 8;
        __syncthreads();
        if (threadIdx.x < 256) c->bins[threadIdx.x] = 0;
        __syncthreads();
        const uint32_t prefix = c->prefix;
        for (uint32_t id = threadIdx.x; id < vocab; id += blockDim.x) {
            const unsigned long long r = l3__cu_candidate(logits, id, c, n_recent, penalty);
            const uint32_t           v = (uint32_t)(r >> 32);
            if (r && (shift == 24 || v >> (shift + 8) == prefix >> (shift + 8)))
                atomicAdd(&c->bins[v >> shift & 255], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            if (shift == 24) {
                c->valid = 0;
                for (uint32_t i = 0; i < 256; i++) c->valid += c->bins[i];
                c->wanted = l3__cu_min(k, c->valid);
            }
            uint32_t digit = 255;
            while (digit && c->bins[digit] < c->wanted) c->wanted -= c->bins[digit--];
            c->prefix = prefix | digit << shift;
        }
        __syncthreads();
    }
    return l3__cu_min(k, c->valid);
}

/* The k best into best[0 ... k - 1], in any order. */
L3__CU_FN uint32_t l3__cu_collect(const float *logits, uint32_t vocab, l3__cu_choosing *c, uint32_t n_recent,
                                  float penalty, uint32_t k) {
    k = l3__cu_threshold(logits, vocab, c, n_recent, penalty, k);
    if (threadIdx.x == 0) c->found = 0;
    __syncthreads();
    const uint32_t least = c->prefix, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t       equals = c->wanted;
    for (uint32_t from = 0; k && from < vocab; from += blockDim.x) {
        const uint32_t           id    = from + threadIdx.x;
        const unsigned long long r     = id < vocab ? l3__cu_candidate(logits, id, c, n_recent, penalty) : 0;
        const bool               equal = r && (uint32_t)(r >> 32) == least;
        if (r && (uint32_t)(r >> 32) > least) c->best[atomicAdd(&c->found, 1u)] = r;
        if (!equals) continue;                           /* the same in all threads */
        const uint32_t mask = __ballot_sync(~0u, equal); /* of equals, those with the lowest IDs */
        if (lane == 0) c->warps[warp] = (uint32_t)__popc(mask);
        __syncthreads();
        uint32_t before = (uint32_t)__popc(mask & ((1u << lane) - 1)), all = 0;
        for (uint32_t w = 0; w < blockDim.x / 32; w++) {
            if (w < warp) before += c->warps[w];
            all += c->warps[w];
        }
        if (equal && before < equals) c->best[atomicAdd(&c->found, 1u)] = r;
        equals -= l3__cu_min(equals, all);
        __syncthreads();
    }
    __syncthreads();
    return k;
}

/* best (k,) falls. */
L3__CU_FN void l3__cu_sort_best(l3__cu_choosing *c, uint32_t k) {
    const uint32_t n = l3__cu_power(k);
    for (uint32_t i = k + threadIdx.x; i < n; i += blockDim.x) c->best[i] = 0;
    for (uint32_t size = 2; size <= n; size *= 2)
        for (uint32_t step = size / 2; step; step /= 2) {
            __syncthreads();
            const uint32_t i = threadIdx.x, j = i ^ step;
            if (i < n && j > i && (c->best[i] < c->best[j]) == ((i & size) == 0)) {
                const unsigned long long w = c->best[i];
                c->best[i] = c->best[j], c->best[j] = w;
            }
        }
    __syncthreads();
}

L3__CU_FN void l3__cu_relatives(l3__cu_choosing *c, uint32_t n, float temperature) {
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
        c->relative[i] = l3__cu_exp((l3__cu_rank_logit(c->best[i]) - l3__cu_rank_logit(c->best[0])) / temperature);
    __syncthreads();
}

/* Top-p, then min-p, at temperature 1, of relative[] (n,): how many of the best stay; as l3_sample() does it. */
L3__CU_BOTH uint32_t l3__cu_cut(const float *relative, uint32_t n, float top_p, float min_p) {
    float    total = 0, sum = 0;
    uint32_t stay = 0;
    for (uint32_t i = 0; i < n; i++) total = l3__cu_add(total, relative[i]);
    while (stay < n && (stay == 0 || top_p >= 1 || sum < l3__cu_mul(top_p, total)))
        sum = l3__cu_add(sum, relative[stay++]);
    while (stay > 1 && relative[stay - 1] < min_p) stay--;
    return stay;
}

/* One draw from relative[] (n,). */
L3__CU_BOTH uint32_t l3__cu_draw(const float *relative, uint32_t n, uint64_t *state) {
    float    total = 0, sum = 0;
    uint32_t i = 0;
    for (uint32_t j = 0; j < n; j++) total = l3__cu_add(total, relative[j]);
    const float draw =
        l3__cu_mul(l3__cu_mul((float)(l3__cu_random(state) >> 40), 5.9604644775390625e-8f), total); /* 2^-24 */
    for (; i + 1 < n; i++) {
        sum = l3__cu_add(sum, relative[i]);
        if (!(sum <= draw)) break;
    }
    return i;
}

/* The next token of each sequence, which becomes the next step's. A block of 1024 threads a sequence. */
__global__ void __launch_bounds__(1024) l3__cu_choose(l3__cu_choice a) {
    extern __shared__ __align__(16) unsigned char l3__shared[];
    l3__cu_choosing                              *c = (l3__cu_choosing *)l3__shared;
    const l3__cu_sampling                         s = *a.sampling;
    const uint32_t i = blockIdx.x, sequence = a.sequences[i], length = a.positions[i] + 1;
    const float   *logits   = a.logits + (size_t)sequence * a.vocab;
    const uint32_t n_recent = s.repeat_penalty < 1 || s.repeat_penalty > 1 ? l3__cu_min(s.repeat_last_n, length) : 0;
    for (uint32_t k = threadIdx.x; k < n_recent; k += blockDim.x)
        c->recent[k] = a.history[(size_t)sequence * a.context + length - n_recent + k];
    __syncthreads();
    uint32_t stay = 1;
    if (s.temperature > 0) {
        stay = l3__cu_collect(logits, a.vocab, c, n_recent, s.repeat_penalty, l3__cu_min(s.top_k, a.vocab));
        l3__cu_sort_best(c, stay);
        l3__cu_relatives(c, stay, 1);
        if (threadIdx.x == 0) c->found = l3__cu_cut(c->relative, stay, s.top_p, s.min_p);
        __syncthreads();
        stay = c->found;
        l3__cu_relatives(c, stay, s.temperature);
    } else {
        l3__cu_choose_one(logits, a.vocab, c, n_recent, s.repeat_penalty);
    }
    if (threadIdx.x != 0) return;
    const bool sound  = stay && c->best[0] && l3__cu_rank_logit(c->best[0]) <= 3.4028235e38f;
    uint32_t   chosen = 0;
    if (!sound) *a.status = L3_ERR_NUMBER;
    else if (s.temperature > 0) chosen = l3__cu_draw(c->relative, stay, &a.states[i]);
    const int32_t id                    = sound ? (int32_t)(0xffffffffu - (uint32_t)c->best[chosen]) : 0;
    a.out[(size_t)a.steps[i] * a.n + i] = id;
    a.tokens[i]                         = id;
    a.positions[i]++;
    a.steps[i]++;
}

/* >>device --------------------------------------------------------------------------------------------------------- */

#define L3__CU_GRAPHS 16u
#define L3__CU_PIECE  (8u << 20) /* bytes of the file that are on their way to the device at a time */

/* The matrices of a decoder block; those that read the same activations are one, if they have one type. */
typedef struct l3__cu_block {
    l3__cu_matrix qkv, attn_output, gate_up, down;
    float        *attn_norm, *ffn_norm;
} l3__cu_block;

typedef struct l3__cu_lookup {
    const l3_lookup *layer;
    uint32_t         block, most_rows;
    l3__cu_matrix    up, mix; /* up.rows 0: absent */
    float           *query_norm, *up_norm, *up_bias;
    int32_t         *offsets;
    l3__cu_table     table;
    unsigned char   *device_rows, *pinned_rows, *staging, *hot_rows; /* those that there are */
    uint32_t        *hot;
    uint64_t         row_bytes, table_bytes, most_bytes; /* of a row, of all, of the token with most rows */
} l3__cu_lookup;

/* A graph of one step. */
typedef struct l3__cu_graph {
    cudaGraphExec_t exec;
    uint32_t        n, splits, used;
    bool            choose;
} l3__cu_graph;

/* What the host function of L3_CUDA_SOURCE is told. */
typedef struct l3__cu_gather {
    l3_cuda *gpu;
    uint32_t n;
} l3__cu_gather;

struct l3_cuda {
    const l3_model *model;
    l3_cuda_config  config; /* settled */
    l3_info         info;
    l3_cuda_memory  memory;
    char            name[64];
    bool            tensor_bf16; /* the code for this device multiplies bf16 */
    int             broken;      /* the CUDA error that it does not recover from */
    cudaError_t     failed;      /* the first failure since l3__cu_settle() */
    uint64_t        steps;
    uint32_t        most_rows;          /* of a token, over all layers */
    uint32_t        splits, row_splits; /* most blocks that share a text; a token's rows */
    uint32_t        slice;              /* positions that attend in one launch */

    /* In the caller's block. */
    l3__cu_block  *blocks;    /* (n_blocks,) */
    l3__cu_lookup *lookups;   /* (n_lookups,) */
    uint32_t      *positions; /* (sequences,) */
    uint64_t      *draws;     /* (sequences,) numbers that the generator has given */
    bool          *has;       /* (sequences,) logits */
    bool          *seen;      /* (sequences,) in this call */
    uint64_t      *ranks;     /* (vocab,) tokens below how often they come: sorted, the most frequent first */
    bool          *is_hot;    /* (n_lookups, vocab), for L3_CUDA_SOURCE with hot rows; else NULL */
    int32_t       *distinct;  /* (batch,) */
    cudaEvent_t   *events;    /* (2 n_lookups + 2,): start, side begun, then wanted and there of each layer */
    l3__cu_gather  gathers[L3__CU_GRAPHS + 1];
    l3__cu_graph   graphs[L3__CU_GRAPHS];

    /* On the device. */
    unsigned char      *arena;
    l3__cu_matrix       embedding, output;
    float              *output_norm, *cosines, *sines;
    l3__cu_table       *tables; /* (n_lookups,) */
    unsigned char      *keys, *values;
    float              *logits;                                /* (sequences, vocab) */
    float              *some;                                  /* (L3__CU_SOME, vocab): for logits after every token */
    float              *x, *qkv, *attended, *gate_up, *hidden; /* (batch, ...) */
    float              *query, *sums, *up, *mix, *attend_partials, *row_partials;
    uint16_t           *halves;
    int32_t            *tokens, *history, *chosen, *status;
    uint32_t           *sequences, *at, *order, *n_groups, *step_counts, *attend_arrived, *row_arrived;
    l3__cu_rows        *rows; /* (n_lookups, batch) */
    uint64_t           *states;
    l3__cu_sampling    *sampling;
    unsigned long long *stats;

    /* Pinned. */
    unsigned char *pinned;
    int32_t       *in; /* (3, batch): tokens, sequences, positions */
    int32_t       *out_status;
    int32_t       *asked;       /* (batch,) tokens for the host function */
    int32_t       *io;          /* (1,) what it could not read */
    uint64_t      *out64;       /* (batch,) */
    unsigned char *piece, *raw; /* (L3__CU_PIECE + a row,) each */

    cudaStream_t main, side;
};

#define L3__CU_SOME 16u

L3__CU_HOST int l3__cu_fail(l3_error *err, int code, int io, const char *format, ...) {
    if (!err) return code;
    err->code   = code;
    err->io     = io;
    err->offset = 0;
#ifdef L3_NO_ERROR_TEXT
    (void)format;
    err->text[0] = '\0';
#else
    va_list list;
    va_start(list, format);
    (void)vsnprintf(err->text, sizeof err->text, format, list);
    va_end(list);
#endif
    return code;
}

/* Whether the device is lost: then whatever waits for it fails, however often the error is taken note of. Only this session's
 * stream is waited for, as waiting for all of the device ends the capture of a graph that another thread is busy with. */
L3__CU_HOST bool l3__cu_is_lost(const l3_cuda *s) {
    (void)cudaGetLastError();
    return s->main && cudaStreamSynchronize(s->main) != cudaSuccess;
}

L3__CU_HOST int l3__cu_error(l3_cuda *s, cudaError_t e, const char *what, l3_error *err) {
    if (e == cudaSuccess) return L3_OK;
    if (s && l3__cu_is_lost(s)) s->broken = (int)e;
    (void)cudaGetLastError();
    if (e == cudaErrorMemoryAllocation)
        return l3__cu_fail(err, L3_ERR_MEMORY, (int)e, "%s: there is too little memory", what);
    return l3__cu_fail(err, L3_ERR_DEVICE, (int)e, "%s: %s", what, cudaGetErrorString(e));
}

/* What went wrong in the calls since the last time, if anything. */
L3__CU_HOST int l3__cu_settle(l3_cuda *s, const char *what, l3_error *err) {
    const cudaError_t e = s->failed;
    s->failed           = cudaSuccess;
    return l3__cu_error(s, e, what, err);
}

L3__CU_HOST void l3__cu_note(l3_cuda *s, cudaError_t e) {
    if (s->failed == cudaSuccess) s->failed = e;
}

/* What is given to streams: nothing once something has failed, as what comes next would not wait for what is missing. */
#define L3__CU_GIVE(s, call)                                      \
    do {                                                          \
        if ((s)->failed == cudaSuccess) l3__cu_note((s), (call)); \
    } while (0)

template <class... P, class... A>
static void l3__cu_launch(l3_cuda *s, dim3 grid, uint32_t block, size_t shared, void (*kernel)(P...), A... arguments) {
    if (s->failed != cudaSuccess) return;
    cudaLaunchConfig_t c = {};
    c.gridDim            = grid;
    c.blockDim           = dim3(block);
    c.dynamicSmemBytes   = shared;
    c.stream             = s->main;
    l3__cu_note(s, cudaLaunchKernelEx(&c, kernel, arguments...));
}

L3__CU_HOST int l3__cu_check_device(const l3_cuda *s, l3_error *err) {
    if (!s->broken) return L3_OK;
    return l3__cu_fail(err, L3_ERR_DEVICE, s->broken, "the device was lost: %s",
                       cudaGetErrorString((cudaError_t)s->broken));
}

/* Begins a call: the device is this thread's, and nothing has failed for good. */
L3__CU_HOST int l3__cu_enter(l3_cuda *s, l3_error *err) {
    const int code = l3__cu_check_device(s, err);
    return code == L3_OK ? l3__cu_error(s, cudaSetDevice(s->config.device), "choosing the device", err) : code;
}

/* >>layout --------------------------------------------------------------------------------------------------------- */

/* Room is given out from a block, or only counted where there is none. */
typedef struct l3__cu_arena {
    unsigned char *base;
    uint64_t       used, align;
} l3__cu_arena;

template <class T> static void l3__cu_take(l3__cu_arena *a, T **to, uint64_t count) {
    *to = NULL;
    if (count == 0) return; /* nor is there padding, which would count for what is not there */
    a->used = (a->used + a->align - 1) / a->align * a->align;
    *to     = a->base ? (T *)(void *)(a->base + a->used) : NULL;
    a->used += count * sizeof(T);
}

/* The type that a tensor has on the device. Q6_K is only read: it becomes the smallest type that holds its numbers well enough. */
L3__CU_HOST int l3__cu_device_type(const l3_cuda *s, int type) {
    if (type == L3_Q6_K) return s->config.mode == L3_EXACT ? L3_F32 : L3_F16;
    return type == L3_BF16 && !s->tensor_bf16 && s->config.mode == L3_FAST ? L3_F16 : type;
}

/* Room for matrices below each other: of one type if they have it, else floats. */
L3__CU_HOST void l3__cu_take_matrix(const l3_cuda *s, l3__cu_arena *a, const l3_tensor *const *tensors, uint32_t n,
                                    l3__cu_matrix *m) {
    unsigned char *data;
    uint16_t      *scales;
    memset(m, 0, sizeof *m);
    m->type = l3__cu_device_type(s, tensors[0]->type);
    m->cols = tensors[0]->cols;
    m->ld   = l3__cu_round(m->cols, L3__CU_K);
    for (uint32_t i = 0; i < n; i++) {
        m->rows += tensors[i]->rows;
        if (l3__cu_device_type(s, tensors[i]->type) != m->type) m->type = L3_F32;
    }
    l3__cu_take(a, &data, l3__cu_bytes(m->type, (size_t)m->rows * m->ld));
    l3__cu_take(a, &scales, l3__cu_scaled(m->type) ? (uint64_t)m->rows * (m->ld / 32) : 0);
    m->data   = data;
    m->scales = scales;
}

/* The tensors of one block as the model has them. */
typedef struct l3__cu_tensors {
    const l3_tensor *attn_norm, *ffn_norm, *qkv[3], *attn_output, *gate_up[2], *down;
} l3__cu_tensors;

L3__CU_HOST void l3__cu_place(l3__cu_tensors *b, const char *name, const l3_tensor *t) {
    const struct {
        const char       *name;
        const l3_tensor **to;
    } places[] = {
        {"attn_norm.weight", &b->attn_norm}, {"ffn_norm.weight", &b->ffn_norm}, {"attn_q.weight", &b->qkv[0]},
        {"attn_k.weight", &b->qkv[1]},       {"attn_v.weight", &b->qkv[2]},     {"attn_output.weight", &b->attn_output},
        {"ffn_gate.weight", &b->gate_up[0]}, {"ffn_up.weight", &b->gate_up[1]}, {"ffn_down.weight", &b->down}};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (strcmp(name, places[i].name) == 0) *places[i].to = t;
}

/* What the model's tensors are walked for. */
typedef struct l3__cu_walk {
    l3_cuda *gpu;
    int (*block)(struct l3__cu_walk *walk, uint32_t block, const l3__cu_tensors *tensors, l3_error *err);
    const l3_tensor *embedding, *output_norm, *output;
    l3__cu_arena    *arena;
} l3__cu_walk;

/* All tensors once, in the file's fixed order, in which those of a block follow each other. */
L3__CU_HOST int l3__cu_each_block(l3__cu_walk *w, l3_error *err) {
    const l3_model  *m = w->gpu->model;
    const l3_tensor *t;
    l3__cu_tensors   b;
    char             name[64], rest[64];
    uint32_t         current = 0;
    int              code    = L3_OK;
    memset(&b, 0, sizeof b);
    for (uint32_t i = 0; code == L3_OK && (t = l3_model_tensor(m, i, name)) != NULL; i++) {
        unsigned block;
        if (strcmp(name, "token_embd.weight") == 0) w->embedding = t;
        if (strcmp(name, "output_norm.weight") == 0) w->output_norm = t;
        if (strcmp(name, "output.weight") == 0) w->output = t;
        if (sscanf(name, "blk.%u.%63s", &block, rest) != 2 || strncmp(rest, "lookup", 6) == 0) continue;
        if (block != current) {
            code    = w->block(w, current, &b, err);
            current = block;
        }
        l3__cu_place(&b, rest, t);
    }
    return code == L3_OK ? w->block(w, current, &b, err) : code;
}

L3__CU_HOST int l3__cu_take_block(l3__cu_walk *w, uint32_t block, const l3__cu_tensors *t, l3_error *err) {
    l3_cuda     *s = w->gpu;
    l3__cu_block unused, *b = s->blocks ? &s->blocks[block] : &unused;
    (void)err;
    l3__cu_take(w->arena, &b->attn_norm, s->info.dim);
    l3__cu_take(w->arena, &b->ffn_norm, s->info.dim);
    l3__cu_take_matrix(s, w->arena, t->qkv, 3, &b->qkv);
    l3__cu_take_matrix(s, w->arena, &t->attn_output, 1, &b->attn_output);
    l3__cu_take_matrix(s, w->arena, t->gate_up, 2, &b->gate_up);
    l3__cu_take_matrix(s, w->arena, &t->down, 1, &b->down);
    return L3_OK;
}

/* The host's block. */
L3__CU_HOST size_t l3__cu_host_layout(l3_cuda *s, void *base) {
    l3__cu_arena   a = {(unsigned char *)base, 0, 16};
    const l3_info *x = &s->info;
    l3_cuda       *self;
    l3__cu_take(&a, &self, 1);
    l3__cu_take(&a, &s->blocks, x->n_blocks);
    l3__cu_take(&a, &s->lookups, x->n_lookups);
    l3__cu_take(&a, &s->positions, s->config.sequences);
    l3__cu_take(&a, &s->draws, s->config.sequences);
    l3__cu_take(&a, &s->has, s->config.sequences);
    l3__cu_take(&a, &s->seen, s->config.sequences);
    l3__cu_take(&a, &s->ranks, x->n_lookups ? x->vocab : 0);
    const bool flags = s->memory.place == L3_CUDA_SOURCE && s->config.hot_bytes;
    l3__cu_take(&a, &s->is_hot, flags ? (uint64_t)x->n_lookups * x->vocab : 0);
    if (!flags) s->is_hot = NULL;
    l3__cu_take(&a, &s->distinct, s->config.batch);
    l3__cu_take(&a, &s->events, 2 * (uint64_t)x->n_lookups + 2);
    return (size_t)a.used;
}

/* One lookup layer's numbers, from the model. */
L3__CU_HOST void l3__cu_describe_lookup(const l3_cuda *s, uint32_t i, l3__cu_lookup *l) {
    memset(l, 0, sizeof *l);
    l->layer       = l3_model_lookup(s->model, i, &l->block);
    l->most_rows   = s->most_rows;
    l->row_bytes   = l3_row_bytes(l->layer->rows.type, l->layer->rows.cols);
    l->table_bytes = l->row_bytes * l->layer->row_count;
    l->most_bytes  = l->row_bytes * l->most_rows;
}

L3__CU_HOST bool l3__cu_present(const l3_tensor *t) { return t->data || t->source; }

L3__CU_HOST void l3__cu_take_vector(l3__cu_arena *a, float **to, const l3_tensor *t) {
    l3__cu_take(a, to, l3__cu_present(t) ? t->cols : 0);
    if (!l3__cu_present(t)) *to = NULL;
}

/* Units of 16 bytes for n bytes at any address. */
L3__CU_HOST uint64_t l3__cu_padded(uint64_t n) { return n ? n + 32 : 0; }

L3__CU_HOST void l3__cu_take_lookup(l3_cuda *s, l3__cu_arena *a, l3__cu_lookup *l) {
    const l3_lookup *x = l->layer;
    l3__cu_take_vector(a, &l->query_norm, &x->query_norm_weight);
    l3__cu_take_vector(a, &l->up_norm, &x->up_norm_weight);
    l3__cu_take_vector(a, &l->up_bias, &x->up_norm_bias);
    const l3_tensor *up = &x->up, *mix = &x->mix;
    if (l3__cu_present(up)) l3__cu_take_matrix(s, a, &up, 1, &l->up);
    l3__cu_take_matrix(s, a, &mix, 1, &l->mix);
    l3__cu_take(a, &l->offsets, (uint64_t)x->vocab + 1);
}

/* Whole pieces of 16 bytes, as many as 32 bits count. */
L3__CU_HOST uint64_t l3__cu_pieces16(uint64_t n) {
    return n < (uint64_t)0xfffffff0u * 16 ? n / 16 * 16 : (uint64_t)0xfffffff0u * 16;
}

/* Bytes of staging, and of hot rows, for one layer. */
L3__CU_HOST uint64_t l3__cu_staging(const l3_cuda *s, const l3__cu_lookup *l) {
    if (s->memory.place == L3_CUDA_DEVICE) return 0;
    const uint64_t all = s->config.batch * (l->most_bytes / 16 + 2) * 16;
    uint64_t       n   = s->config.staging_bytes;
    if (n == 0) {
        const uint64_t each = s->memory.place == L3_CUDA_SOURCE ? (l->most_bytes / 16 + 2) * 16 : (uint64_t)1 << 20;
        n = (uint64_t)64 << 20;
        if (n < s->config.sequences * each) n = s->config.sequences * each;
    }
    return l3__cu_pieces16(n < all ? n : all);
}
L3__CU_HOST uint64_t l3__cu_hot(const l3_cuda *s, const l3__cu_lookup *l) {
    if (s->memory.place == L3_CUDA_DEVICE) return 0;
    const uint64_t n = s->config.hot_bytes / s->info.n_lookups, all = l->table_bytes + 16 * (uint64_t)s->info.vocab;
    return l3__cu_pieces16(n < all ? n : all);
}

/* Weights; the first part of the device's block. */
L3__CU_HOST int l3__cu_take_weights(l3_cuda *s, l3__cu_arena *a, l3_error *err) {
    const l3_info *x    = &s->info;
    l3__cu_walk    w    = {s, l3__cu_take_block, NULL, NULL, NULL, a};
    const int      code = l3__cu_each_block(&w, err);
    if (code != L3_OK) return code;
    l3__cu_take_matrix(s, a, &w.embedding, 1, &s->embedding);
    s->output = s->embedding;
    if (!x->tied_head) l3__cu_take_matrix(s, a, &w.output, 1, &s->output);
    l3__cu_take(a, &s->output_norm, x->dim);
    l3__cu_take(a, &s->cosines, (uint64_t)s->config.context * (x->rope_dims / 2));
    l3__cu_take(a, &s->sines, (uint64_t)s->config.context * (x->rope_dims / 2));
    l3__cu_take(a, &s->tables, x->n_lookups);
    for (uint32_t i = 0; i < x->n_lookups; i++) {
        l3__cu_lookup one, *l = s->lookups ? &s->lookups[i] : &one;
        l3__cu_describe_lookup(s, i, l);
        l3__cu_take_lookup(s, a, l);
    }
    return L3_OK;
}

/* Rows of tables that are on the device. */
L3__CU_HOST void l3__cu_take_tables(l3_cuda *s, l3__cu_arena *a, int part) {
    for (uint32_t i = 0; i < s->info.n_lookups; i++) {
        l3__cu_lookup one, *l = s->lookups ? &s->lookups[i] : &one;
        if (!s->lookups) l3__cu_describe_lookup(s, i, l);
        const uint64_t hot = l3__cu_hot(s, l);
        if (part == 0)
            l3__cu_take(a, &l->device_rows, s->memory.place == L3_CUDA_DEVICE ? l3__cu_padded(l->table_bytes) : 0);
        if (part == 1) l3__cu_take(a, &l->hot_rows, l3__cu_padded(hot));
        if (part == 1) l3__cu_take(a, &l->hot, hot ? s->info.vocab : 0);
        if (part == 2) l3__cu_take(a, &l->staging, l3__cu_padded(l3__cu_staging(s, l)));
    }
}

L3__CU_HOST uint32_t l3__cu_head_ld(const l3_info *x) { return l3__cu_round(x->head_dim, 8); }

/* Positions that attend in one launch: as many as 64 MiB of partial sums hold. */
L3__CU_HOST uint32_t l3__cu_slice(const l3_cuda *s) {
    const uint64_t one = (uint64_t)s->info.n_heads * s->splits * (s->info.head_dim + 2) * sizeof(float);
    const uint64_t n   = ((uint64_t)64 << 20) / one;
    return n < 1 ? 1 : n < s->config.batch ? (uint32_t)n : s->config.batch;
}

typedef struct l3__cu_lengths {
    uint32_t value, up, halves; /* widest value row, W_up, activations as halves */
} l3__cu_lengths;

L3__CU_HOST l3__cu_lengths l3__cu_widest(const l3_cuda *s) {
    const l3_info *x = &s->info;
    l3__cu_lengths w = {0, 0, x->dim > x->ffn_dim ? x->dim : x->ffn_dim};
    if (w.halves < x->n_heads * x->head_dim) w.halves = x->n_heads * x->head_dim;
    for (uint32_t i = 0; i < x->n_lookups; i++) {
        const l3_lookup *l = l3_model_lookup(s->model, i, NULL);
        if (w.value < l->value_length) w.value = l->value_length;
        if (w.up < l->up_length) w.up = l->up_length;
    }
    if (w.halves < w.value) w.halves = w.value;
    if (x->n_lookups && w.halves < w.up + x->dim) w.halves = w.up + x->dim;
    return w;
}

L3__CU_HOST void l3__cu_take_scratch(l3_cuda *s, l3__cu_arena *a) {
    const l3_info       *x     = &s->info;
    const uint64_t       batch = s->config.batch, sequences = s->config.sequences, layers = x->n_lookups;
    const l3__cu_lengths w = l3__cu_widest(s);
    l3__cu_take(a, &s->x, batch * x->dim);
    l3__cu_take(a, &s->qkv, batch * (x->n_heads + 2 * x->n_kv_heads) * x->head_dim);
    l3__cu_take(a, &s->attended, batch * x->n_heads * x->head_dim);
    l3__cu_take(a, &s->gate_up, batch * x->ffn_dim * 2);
    l3__cu_take(a, &s->hidden, batch * x->ffn_dim);
    l3__cu_take(a, &s->query, layers ? batch * l3__cu_round(x->dim, 8) : 0);
    l3__cu_take(a, &s->sums, batch * w.value);
    l3__cu_take(a, &s->up, batch * w.up);
    l3__cu_take(a, &s->mix, layers ? batch * (w.up + x->dim) : 0);
    l3__cu_take(a, &s->halves, batch * l3__cu_round(w.halves, L3__CU_K));
    l3__cu_take(a, &s->attend_partials, (uint64_t)s->slice * x->n_heads * s->splits * (x->head_dim + 2));
    l3__cu_take(a, &s->row_partials, layers ? batch * s->row_splits * (w.value + 2) : 0);
    l3__cu_take(a, &s->rows, layers * batch);
    l3__cu_take(a, &s->order, batch);
    l3__cu_take(a, &s->n_groups, 1);
    l3__cu_take(a, &s->attend_arrived, (uint64_t)s->slice * x->n_kv_heads);
    l3__cu_take(a, &s->row_arrived, batch);
    l3__cu_take(a, &s->tokens, 3 * batch); /* one copy brings in all three */
    s->sequences = s->tokens ? (uint32_t *)s->tokens + batch : NULL;
    s->at        = s->tokens ? (uint32_t *)s->tokens + 2 * batch : NULL;
    l3__cu_take(a, &s->history, sequences * s->config.context);
    l3__cu_take(a, &s->chosen, L3__CU_STEPS * sequences);
    l3__cu_take(a, &s->step_counts, sequences);
    l3__cu_take(a, &s->states, sequences);
    l3__cu_take(a, &s->sampling, 1);
    l3__cu_take(a, &s->status, 1);
    l3__cu_take(a, &s->stats, 4);
}

/* The device's block, and how it is divided. */
L3__CU_HOST int l3__cu_device_layout(l3_cuda *s, void *base, l3_error *err) {
    l3__cu_arena    a    = {(unsigned char *)base, 0, 256};
    l3_cuda_memory *m    = &s->memory;
    const l3_info  *x    = &s->info;
    const int       code = l3__cu_take_weights(s, &a, err);
    if (code != L3_OK) return code;
    m->weights = a.used;
    l3__cu_take_tables(s, &a, 0);
    m->tables = a.used - m->weights;
    l3__cu_take_tables(s, &a, 1);
    m->hot = a.used - m->weights - m->tables;
    l3__cu_take_tables(s, &a, 2);
    m->staging            = a.used - m->weights - m->tables - m->hot;
    uint64_t       before = a.used;
    const uint64_t kv     = (uint64_t)x->n_blocks * s->config.sequences * x->n_kv_heads * s->config.context *
                        l3__cu_head_ld(x) * (s->config.kv_type == L3_F16 ? 2 : 4);
    l3__cu_take(&a, &s->keys, kv);
    l3__cu_take(&a, &s->values, kv);
    m->kv  = a.used - before;
    before = a.used;
    l3__cu_take(&a, &s->logits, (uint64_t)s->config.sequences * x->vocab);
    l3__cu_take(&a, &s->some, (uint64_t)L3__CU_SOME * x->vocab);
    m->logits = a.used - before;
    before    = a.used;
    l3__cu_take_scratch(s, &a);
    m->scratch = a.used - before;
    m->device  = a.used;
    return L3_OK;
}

/* Bytes of a row of the widest tensor, in the file and on the device. */
L3__CU_HOST uint64_t l3__cu_widest_row(const l3_cuda *s) {
    char             name[64];
    uint64_t         widest = 0;
    const l3_tensor *t;
    for (uint32_t i = 0; (t = l3_model_tensor(s->model, i, name)) != NULL; i++)
        if (widest < (uint64_t)t->cols * 4) widest = (uint64_t)t->cols * 4;
    return widest + 4 * L3__CU_K;
}

L3__CU_HOST void l3__cu_pinned_layout(l3_cuda *s, void *base) {
    l3__cu_arena   a     = {(unsigned char *)base, 0, 256};
    const uint64_t piece = L3__CU_PIECE + l3__cu_widest_row(s);
    l3__cu_take(&a, &s->in, 3 * (uint64_t)s->config.batch);
    l3__cu_take(&a, &s->asked, s->config.batch);
    l3__cu_take(&a, &s->out_status, 1);
    l3__cu_take(&a, &s->io, 1);
    l3__cu_take(&a, &s->out64, s->config.batch);
    l3__cu_take(&a, &s->piece, piece);
    l3__cu_take(&a, &s->raw, piece);
    for (uint32_t i = 0; i < s->info.n_lookups; i++) {
        l3__cu_lookup one, *l = s->lookups ? &s->lookups[i] : &one;
        if (!s->lookups) l3__cu_describe_lookup(s, i, l);
        l3__cu_take(&a, &l->pinned_rows,
                    s->memory.place == L3_CUDA_HOST     ? l3__cu_padded(l->table_bytes)
                    : s->memory.place == L3_CUDA_SOURCE ? l3__cu_padded(l3__cu_staging(s, l))
                                                        : 0);
    }
    s->memory.pinned = a.used;
}

/* Half of the host's memory. */
L3__CU_HOST uint64_t l3__cu_host_memory(void) {
#if defined(_WIN32)
    MEMORYSTATUSEX m;
    m.dwLength = sizeof m;
    return GlobalMemoryStatusEx(&m) ? m.ullTotalPhys / 2 : 0;
#else
    return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGE_SIZE) / 2;
#endif
}

/* Bytes [from, from + n) of a tensor, to be read from where the model has them. */
L3__CU_HOST int l3__cu_read(const l3_tensor *t, uint64_t from, size_t n, unsigned char *to, l3_error *err) {
    const l3_source *source = t->source;
    const void      *mapped = NULL;
    if (t->data && t->pinned == 0) mapped = (const unsigned char *)t->data + from;
    else if (source && source->map) mapped = source->map(source->user, t->offset + from, n);
    if (mapped) {
        memcpy(to, mapped, n);
        return L3_OK;
    }
    if (!source || !source->read || source->align > 1)
        return l3__cu_fail(err, L3_ERR_UNSUPPORTED, 0,
                           "weights for a GPU come from a source with map, or with read and align 1");
    const int io = source->read(source->user, t->offset + from, to, n);
    if (io == 0) return L3_OK;
    l3__cu_fail(err, L3_ERR_IO, io, "reading %zu bytes failed", n);
    if (err) err->offset = t->offset + from;
    return L3_ERR_IO;
}

L3__CU_HOST uint32_t l3__cu_offset(const unsigned char *bytes, uint32_t i) {
    const unsigned char *p = bytes + 4 * (size_t)i;
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Refuses offsets between which kernels must not read. */
L3__CU_HOST int l3__cu_check_offsets(const l3_lookup *l, uint32_t token, uint32_t a, uint32_t b, l3_error *err) {
    if (a <= b && b <= l->row_count) return L3_OK;
    return l3__cu_fail(err, L3_ERR_FORMAT, 0, "rows %u to %u of token %u; the table has %u", a, b, token, l->row_count);
}

/* first row and number of rows of a token */
L3__CU_HOST int l3__cu_token_rows(const l3_lookup *l, int32_t token, uint32_t *first, uint32_t *n, l3_error *err) {
    unsigned char two[8];
    int           code = l3__cu_read(&l->offsets, 4 * (uint64_t)token, 8, two, err);
    if (code == L3_OK)
        code = l3__cu_check_offsets(l, (uint32_t)token, l3__cu_offset(two, 0), l3__cu_offset(two, 1), err);
    *first = code == L3_OK ? l3__cu_offset(two, 0) : 0;
    *n     = code == L3_OK ? l3__cu_offset(two, 1) - *first : 0;
    return code;
}

/* How many rows each token has, called with one after the other. */
typedef void (*l3__cu_count)(void *user, uint32_t token, uint32_t rows);

L3__CU_HOST int l3__cu_each_token(const l3_lookup *l, l3__cu_count count, void *user, l3_error *err) {
    unsigned char some[4 * 1025]; /* the offsets of 1024 tokens */
    for (uint32_t t = 0; t < l->vocab; t += 1024) {
        const uint32_t n    = l3__cu_min(1024, l->vocab - t);
        int            code = l3__cu_read(&l->offsets, 4 * (uint64_t)t, 4 * ((size_t)n + 1), some, err);
        for (uint32_t k = 0; code == L3_OK && k < n; k++) {
            const uint32_t a = l3__cu_offset(some, k), b = l3__cu_offset(some, k + 1);
            code = l3__cu_check_offsets(l, t + k, a, b, err);
            if (code == L3_OK) count(user, t + k, b - a);
        }
        if (code != L3_OK) return code;
    }
    return L3_OK;
}

static void l3__cu_count_most(void *user, uint32_t token, uint32_t rows) {
    uint32_t *most = (uint32_t *)user;
    (void)token;
    if (*most < rows) *most = rows;
}

/* Rows of the token with most, over all layers. */
L3__CU_HOST int l3__cu_find_most_rows(l3_cuda *s, l3_error *err) {
    int code = L3_OK;
    for (uint32_t i = 0; code == L3_OK && i < s->info.n_lookups; i++)
        code = l3__cu_each_token(l3_model_lookup(s->model, i, NULL), l3__cu_count_most, &s->most_rows, err);
    return code;
}

/* Zeros of a configuration become what they stand for. */
L3__CU_HOST int l3__cu_check_config(l3_cuda *s, l3_error *err) {
    l3_cuda_config *c = &s->config;
    const l3_info  *x = &s->info;
    if (x->kind != L3_KIND_MODEL) return l3__cu_fail(err, L3_ERR_ARGUMENT, 0, "the file is no model");
    if (c->sequences == 0) c->sequences = 1;
    if (c->context == 0) c->context = x->context;
    if (c->batch == 0) c->batch = c->sequences > 512 ? c->sequences : 512;
    if (c->sequences > L3__CU_BATCH || c->batch < c->sequences || c->batch > L3__CU_BATCH)
        return l3__cu_fail(err, L3_ERR_ARGUMENT, 0,
                           "%u sequences with a batch of %u: sequences <= batch <= %u is right", c->sequences, c->batch,
                           L3__CU_BATCH);
    if (c->context > x->context)
        return l3__cu_fail(err, L3_ERR_ARGUMENT, 0, "a context of %u; the model has %u", c->context, x->context);
    if (c->kv_type != L3_F32 && c->kv_type != L3_F16)
        return l3__cu_fail(err, L3_ERR_ARGUMENT, 0, "a KV cache of type %d; f32 or f16 is right", (int)c->kv_type);
    uint32_t place, mode; /* numbers, as C lets them be: in C++ an enumeration may not even be read */
    memcpy(&place, &c->tables, sizeof place);
    memcpy(&mode, &c->mode, sizeof mode);
    if (place > L3_CUDA_SOURCE || mode > L3_EXACT)
        return l3__cu_fail(err, L3_ERR_ARGUMENT, 0, "no such place for tables, or no such mode");
    if (x->head_dim > L3__CU_HEAD)
        return l3__cu_fail(err, L3_ERR_UNSUPPORTED, 0, "heads of %u; up to %u can be on a GPU", x->head_dim,
                           L3__CU_HEAD);
    const int code = l3__cu_find_most_rows(s, err);
    s->splits      = l3__cu_ceil(c->context, L3__CU_SPLIT);
    s->row_splits  = l3__cu_ceil(s->most_rows, l3__cu_rows_split(s->most_rows));
    s->slice       = l3__cu_slice(s);
    return code;
}

/* What a budget of device memory leaves holds hot rows. */
L3__CU_HOST int l3__cu_choose_hot(l3_cuda *s, uint64_t device, l3_error *err) {
    const uint64_t beside = s->info.n_lookups * (s->info.vocab * sizeof(uint32_t) + 1024); /* index, padding */
    const int      code   = l3__cu_device_layout(s, NULL, err);
    if (code == L3_OK && s->memory.device + beside < device) s->config.hot_bytes = device - s->memory.device - beside;
    return code;
}

/* Where tables go. */
L3__CU_HOST int l3__cu_choose_place(l3_cuda *s, l3_error *err) {
    size_t   available = 0, all = 0;
    uint64_t tables = 0, device = s->config.device_bytes, host = s->config.host_bytes;
    int      code   = L3_OK;
    s->memory.place = s->config.tables;
    if (s->config.tables != L3_CUDA_AUTO) return L3_OK;
    s->memory.place = L3_CUDA_DEVICE;
    if (s->info.n_lookups == 0) return L3_OK;
    if (device == 0) {
        code   = l3__cu_error(s, cudaMemGetInfo(&available, &all), "asking for the device's memory", err);
        device = available / 10 * 9;
    }
    if (host == 0) host = l3__cu_host_memory();
    if (code == L3_OK) code = l3__cu_device_layout(s, NULL, err);
    if (code != L3_OK || s->memory.device <= device) return code;
    for (uint32_t i = 0; i < s->info.n_lookups; i++) {
        l3__cu_lookup l;
        l3__cu_describe_lookup(s, i, &l);
        tables += l.table_bytes;
    }
    s->memory.place = tables <= host ? L3_CUDA_HOST : L3_CUDA_SOURCE;
    return s->config.hot_bytes ? L3_OK : l3__cu_choose_hot(s, device, err);
}

/* Everything that is known before anything is allocated. */
L3__CU_HOST int l3__cu_describe(l3_cuda *s, const l3_model *model, const l3_cuda_config *config, l3_error *err) {
    int                devices = 0;
    cudaFuncAttributes built   = {};
    memset(s, 0, sizeof *s);
    s->model = model;
    s->info  = *l3_model_info(model);
    if (config) s->config = *config;
    int code = l3__cu_check_config(s, err);
    if (code == L3_OK) code = l3__cu_error(NULL, cudaGetDeviceCount(&devices), "looking for a device", err);
    if (code == L3_OK && (s->config.device < 0 || s->config.device >= devices))
        code =
            l3__cu_fail(err, L3_ERR_ARGUMENT, 0, "device %d of %d; they are counted from 0", s->config.device, devices);
    if (code == L3_OK) code = l3__cu_error(NULL, cudaSetDevice(s->config.device), "choosing the device", err);
    if (code == L3_OK) /* the code that runs may be for an older kind of device */
        code = l3__cu_error(NULL, cudaFuncGetAttributes(&built, l3__cu_make_halves), "looking for code for the device",
                            err);
    s->tensor_bf16 = built.ptxVersion >= 80;
    if (code == L3_OK) code = l3__cu_choose_place(s, err);
    if (code == L3_OK) code = l3__cu_device_layout(s, NULL, err);
    if (code != L3_OK) return code;
    l3__cu_pinned_layout(s, NULL);
    s->memory.host = l3__cu_host_layout(s, NULL);
    return L3_OK;
}

L3_API int l3_cuda_memory_of(const l3_model *model, const l3_cuda_config *config, l3_cuda_memory *memory,
                             l3_error *err) {
    l3_cuda   s;
    const int code = l3__cu_describe(&s, model, config, err);
    if (code == L3_OK) *memory = s.memory;
    return code;
}

/* >>upload --------------------------------------------------------------------------------------------------------- */

L3__CU_HOST int l3__cu_send(l3_cuda *s, void *to, const void *from, size_t n, l3_error *err) {
    cudaError_t e = n ? cudaMemcpyAsync(to, from, n, cudaMemcpyHostToDevice, s->main) : cudaSuccess;
    if (e == cudaSuccess) e = cudaStreamSynchronize(s->main);
    return l3__cu_error(s, e, "sending weights to the device", err);
}

/* A row of a tensor in the layout of a device matrix. scales: (ld / 32,) */
L3__CU_HOST void l3__cu_convert_row(const l3__cu_matrix *m, int type, const unsigned char *row, unsigned char *data,
                                    uint16_t *scales) {
    const size_t bytes = l3__cu_bytes(m->type, m->ld);
    memset(data, 0, bytes);
    if (type == m->type && !l3__cu_scaled(type)) {
        memcpy(data, row, (size_t)l3_row_bytes(type, m->cols));
    } else if (type == m->type) {
        const size_t quants = type == L3_Q8_0 ? 32 : 16;
        memset(scales, 0, m->ld / 32 * sizeof *scales);
        for (uint32_t b = 0; b < m->cols / 32; b++, row += quants + 2) {
            memcpy(scales + b, row, 2);
            memcpy(data + b * quants, row + 2, quants);
        }
    } else {
        for (uint32_t k = 0; k < m->cols; k += 32) {
            const uint32_t n = l3__cu_min(m->cols - k, 32);
            float          v[32];
            l3_unpack(type, row, k, n, v);
            if (m->type == L3_F16) /* what it cannot hold becomes its largest number */
                for (uint32_t i = 0; i < n; i++) v[i] = v[i] > 65504 ? 65504 : v[i] < -65504 ? -65504 : v[i];
            l3_pack(m->type, v, n, data + l3_row_bytes(m->type, 1) * k);
        }
    }
}

/* Rows of a tensor go to rows `at` on of a device matrix. */
L3__CU_HOST int l3__cu_upload(l3_cuda *s, const l3__cu_matrix *m, uint32_t at, const l3_tensor *t, l3_error *err) {
    const size_t in = (size_t)l3_row_bytes(t->type, t->cols), out = l3__cu_bytes(m->type, m->ld);
    const size_t scales = l3__cu_scaled(m->type) ? m->ld / 32 * sizeof(uint16_t) : 0;
    uint32_t     rows   = (uint32_t)(L3__CU_PIECE / (in > out + scales ? in : out + scales));
    int          code   = L3_OK;
    if (rows == 0) rows = 1;
    for (uint32_t r = 0; code == L3_OK && r < t->rows; r += rows) {
        const uint32_t n = l3__cu_min(rows, t->rows - r);
        code             = l3__cu_read(t, (uint64_t)r * in, n * in, s->raw, err);
        for (uint32_t i = 0; code == L3_OK && i < n; i++)
            l3__cu_convert_row(m, t->type, s->raw + i * in, s->piece + i * out,
                               (uint16_t *)(void *)(s->piece + n * out + i * scales));
        if (code == L3_OK) code = l3__cu_send(s, (void *)(m->data + (size_t)(at + r) * out), s->piece, n * out, err);
        if (code == L3_OK && scales)
            code = l3__cu_send(s, (void *)((const unsigned char *)m->scales + (at + r) * scales), s->piece + n * out,
                               n * scales, err);
    }
    return code;
}

L3__CU_HOST int l3__cu_upload_all(l3_cuda *s, const l3__cu_matrix *m, const l3_tensor *const *t, uint32_t n,
                                  l3_error *err) {
    int code = L3_OK;
    for (uint32_t i = 0, at = 0; code == L3_OK && i < n; at += t[i]->rows, i++)
        code = l3__cu_upload(s, m, at, t[i], err);
    return code;
}

L3__CU_HOST int l3__cu_upload_vector(l3_cuda *s, float *to, const l3_tensor *t, l3_error *err) {
    if (!to) return L3_OK;
    int code = l3__cu_read(t, 0, (size_t)l3_row_bytes(t->type, t->cols), s->raw, err);
    for (uint32_t k = 0; code == L3_OK && k < t->cols; k += 32)
        l3_unpack(t->type, s->raw, k, l3__cu_min(t->cols - k, 32), (float *)(void *)s->piece + k);
    return code == L3_OK ? l3__cu_send(s, to, s->piece, t->cols * sizeof(float), err) : code;
}

L3__CU_HOST int l3__cu_upload_block(l3__cu_walk *w, uint32_t block, const l3__cu_tensors *t, l3_error *err) {
    l3_cuda            *s    = w->gpu;
    const l3__cu_block *b    = &s->blocks[block];
    int                 code = l3__cu_upload_vector(s, b->attn_norm, t->attn_norm, err);
    if (code == L3_OK) code = l3__cu_upload_vector(s, b->ffn_norm, t->ffn_norm, err);
    if (code == L3_OK) code = l3__cu_upload_all(s, &b->qkv, t->qkv, 3, err);
    if (code == L3_OK) code = l3__cu_upload_all(s, &b->attn_output, &t->attn_output, 1, err);
    if (code == L3_OK) code = l3__cu_upload_all(s, &b->gate_up, t->gate_up, 2, err);
    if (code == L3_OK) code = l3__cu_upload_all(s, &b->down, &t->down, 1, err);
    return code;
}

/* Cosines and sines of every position. */
L3__CU_HOST int l3__cu_upload_rope(l3_cuda *s, l3_error *err) {
    const uint32_t half = s->info.rope_dims / 2;
    float         *out  = (float *)(void *)s->piece;
    int            code = L3_OK;
    if (half == 0) return L3_OK;
    const uint32_t most = L3__CU_PIECE / (half * (uint32_t)sizeof *out);
    for (int sine = 0; sine < 2; sine++)
        for (uint32_t p = 0, n; code == L3_OK && p < s->config.context; p += n) {
            n = l3__cu_min(most, s->config.context - p);
            for (uint32_t at = 0; at < n * half; at++) {
                const double angle = (p + at / half) * pow(s->info.rope_base, -2.0 * (at % half) / s->info.rope_dims);
                out[at]            = (float)(sine ? sin(angle) : cos(angle));
            }
            code = l3__cu_send(s, (sine ? s->sines : s->cosines) + (size_t)p * half, out,
                               (size_t)n * half * sizeof *out, err);
        }
    return code;
}

/* Bytes of a table, to the device or to pinned memory. */
L3__CU_HOST int l3__cu_upload_rows(l3_cuda *s, const l3_tensor *t, uint64_t from, uint64_t n, unsigned char *to,
                                   bool device, l3_error *err) {
    int code = L3_OK;
    for (uint64_t at = 0; code == L3_OK && at < n; at += L3__CU_PIECE) {
        const size_t some = (size_t)(n - at < L3__CU_PIECE ? n - at : L3__CU_PIECE);
        code              = l3__cu_read(t, from + at, some, device ? s->raw : to + at, err);
        if (code == L3_OK && device) code = l3__cu_send(s, to + at, s->raw, some, err);
    }
    return code;
}

L3__CU_BOTH uint64_t l3__cu_rank_of(uint32_t count, uint32_t token) { return (uint64_t)~count << 32 | token; }

static void l3__cu_count_rank(void *user, uint32_t token, uint32_t rows) {
    ((uint64_t *)user)[token] = l3__cu_rank_of(rows, token);
}

/* The tokens that come most often have their rows on the device, as far as there is room. */
L3__CU_HOST int l3__cu_upload_hot(l3_cuda *s, l3__cu_lookup *l, l3_error *err) {
    const uint64_t room  = l3__cu_hot(s, l);
    const uint32_t vocab = s->info.vocab, *counts = s->config.counts;
    uint64_t       used = 0;
    int            code = L3_OK;
    if (!room) return L3_OK;
    if (!counts) code = l3__cu_each_token(l->layer, l3__cu_count_rank, s->ranks, err);
    for (uint32_t t = 0; counts && t < vocab; t++) s->ranks[t] = l3__cu_rank_of(counts[t], t);
    if (code != L3_OK) return code;
    std::sort(s->ranks, s->ranks + vocab);
    uint32_t *hot = (uint32_t *)(void *)s->piece; /* which holds more than the largest vocabulary */
    std::fill(hot, hot + vocab, L3__CU_NOWHERE);
    for (uint32_t i = 0; code == L3_OK && i < vocab; i++) {
        const uint32_t token = (uint32_t)s->ranks[i];
        uint32_t       first, n;
        code                 = l3__cu_token_rows(l->layer, (int32_t)token, &first, &n, err);
        const uint64_t bytes = n * l->row_bytes, padded = (bytes + 15) / 16 * 16;
        if (n == 0) continue;
        if (used + padded > room) break;
        code       = l3__cu_upload_rows(s, &l->layer->rows, first * l->row_bytes, bytes, l->hot_rows + used, true, err);
        hot[token] = (uint32_t)(used / 16);
        if (s->is_hot) s->is_hot[(size_t)(l - s->lookups) * vocab + token] = true;
        used += padded;
    }
    return code == L3_OK ? l3__cu_send(s, l->hot, hot, vocab * sizeof *hot, err) : code;
}

L3__CU_HOST int l3__cu_upload_lookup(l3_cuda *s, uint32_t i, l3_error *err) {
    l3__cu_lookup   *l  = &s->lookups[i];
    const l3_lookup *x  = l->layer;
    const l3_tensor *up = &x->up, *mix = &x->mix;
    int              code = l3__cu_upload_vector(s, l->query_norm, &x->query_norm_weight, err);
    if (code == L3_OK) code = l3__cu_upload_vector(s, l->up_norm, &x->up_norm_weight, err);
    if (code == L3_OK) code = l3__cu_upload_vector(s, l->up_bias, &x->up_norm_bias, err);
    if (code == L3_OK && l->up.rows) code = l3__cu_upload(s, &l->up, 0, up, err);
    if (code == L3_OK) code = l3__cu_upload(s, &l->mix, 0, mix, err);
    if (code == L3_OK) /* little-endian on both sides */
        code =
            l3__cu_upload_rows(s, &x->offsets, 0, 4 * ((uint64_t)x->vocab + 1), (unsigned char *)l->offsets, true, err);
    if (code == L3_OK && s->memory.place == L3_CUDA_DEVICE)
        code = l3__cu_upload_rows(s, &x->rows, 0, l->table_bytes, l->device_rows, true, err);
    if (code == L3_OK && s->memory.place == L3_CUDA_HOST)
        code = l3__cu_upload_rows(s, &x->rows, 0, l->table_bytes, l->pinned_rows, false, err);
    if (code == L3_OK) code = l3__cu_upload_hot(s, l, err);
    if (code != L3_OK) return code;
    l3__cu_table *t = &l->table;
    t->offsets      = l->offsets;
    t->rows         = s->memory.place == L3_CUDA_DEVICE ? l->device_rows : l->pinned_rows;
    t->hot          = l3__cu_hot(s, l) ? l->hot : NULL;
    t->hot_rows     = l->hot_rows;
    t->staging      = s->memory.place == L3_CUDA_DEVICE ? NULL : l->staging;
    t->units        = (uint32_t)(l3__cu_staging(s, l) / 16);
    t->row_bytes    = (uint32_t)l->row_bytes;
    t->gathered     = s->memory.place == L3_CUDA_SOURCE;
    return l3__cu_send(s, s->tables + i, t, sizeof *t, err);
}

L3__CU_HOST int l3__cu_upload_model(l3_cuda *s, l3_error *err) {
    l3__cu_walk w    = {s, l3__cu_upload_block, NULL, NULL, NULL, NULL};
    int         code = l3__cu_each_block(&w, err);
    if (code == L3_OK) code = l3__cu_upload(s, &s->embedding, 0, w.embedding, err);
    if (code == L3_OK && !s->info.tied_head) code = l3__cu_upload(s, &s->output, 0, w.output, err);
    if (code == L3_OK) code = l3__cu_upload_vector(s, s->output_norm, w.output_norm, err);
    if (code == L3_OK) code = l3__cu_upload_rope(s, err);
    for (uint32_t i = 0; code == L3_OK && i < s->info.n_lookups; i++) code = l3__cu_upload_lookup(s, i, err);
    return code;
}

/* >>passes --------------------------------------------------------------------------------------------------------- */

/* A pass over n positions, whose tokens, sequences and positions are on the device. */
typedef struct l3__cu_pass {
    uint32_t n, splits; /* blocks for the longest text */
    bool     one_text;  /* positions of one sequence, one after the other: prefill */
    bool     wants_all; /* logits of every position, not stored here */
    bool     choose;    /* then choose the next tokens */
    bool     trace;     /* record events around lookups */
    uint32_t gather;    /* which of s->gathers tells the host function */
} l3__cu_pass;

#define L3__CU_BY_TYPE(type, kernel, ...)              \
    ((type) == L3_F32    ? kernel<L3_F32 __VA_ARGS__>  \
     : (type) == L3_F16  ? kernel<L3_F16 __VA_ARGS__>  \
     : (type) == L3_BF16 ? kernel<L3_BF16 __VA_ARGS__> \
     : (type) == L3_Q8_0 ? kernel<L3_Q8_0 __VA_ARGS__> \
                         : kernel<L3_Q4_0 __VA_ARGS__>)
#define L3__CU_COMMA ,
/* Rows of tables keep every type. */
#define L3__CU_BY_ROW_TYPE(type, kernel, ...) \
    ((type) == L3_Q6_K ? kernel<L3_Q6_K __VA_ARGS__> : L3__CU_BY_TYPE(type, kernel, __VA_ARGS__))

typedef void (*l3__cu_tensor_kernel)(l3__cu_tensor_product);

/* The kernel for halves, its positions and rows a block, and its shared memory. */
typedef struct l3__cu_plan {
    l3__cu_tensor_kernel kernel;
    uint32_t             positions, rows;
    size_t               shared;
} l3__cu_plan;

template <int T> static l3__cu_plan l3__cu_plan_of(uint32_t n) {
    if (n <= 8) return {l3__cu_stream<T, 1, 1>, 8, 16, 4 * 1 * 512};
    if (n <= 16) return {l3__cu_stream<T, 1, 2>, 16, 16, 4 * 2 * 512};
    if (n <= 32) return {l3__cu_stream<T, 2, 4>, 32, 32, 4 * 8 * 512};
    if (n <= 64 && T == L3_Q4_0)
        return {l3__cu_stream<T, 1, 8>, 64, 16, 4 * 8 * 512}; /* two would need too many registers */
    if (n <= 64) return {l3__cu_stream<T, 2, 8>, 64, 32, 4 * 16 * 512};
    return {l3__cu_tile<T, 128>, 128, L3__CU_TILE_ROWS, (L3__CU_TILE_ROWS + 128) * L3__CU_TILE_LD * sizeof(uint16_t)};
}

/* Whether n positions of a matrix go through tensor cores. */
L3__CU_HOST bool l3__cu_uses_tensor(const l3_cuda *s, const l3__cu_matrix *m, uint32_t n) {
    return s->config.mode == L3_FAST && n > 1 && m->type != L3_F32;
}

L3__CU_HOST void l3__cu_halve(l3_cuda *s, const l3__cu_product *p, bool gated, uint16_t *out, float *floats,
                              uint32_t ld) {
    l3__cu_halves h;
    memset(&h, 0, sizeof h);
    h.x         = p->x;
    h.x_ld      = p->x_ld;
    h.cols      = p->w.cols;
    h.ld        = ld;
    h.normalize = p->normalize;
    h.gated     = gated;
    h.bf16      = p->w.type == L3_BF16;
    h.norm      = p->norm;
    h.epsilon   = p->epsilon;
    h.out       = out;
    h.floats    = floats;
    l3__cu_launch(s, p->n, 256, 32 * sizeof(float), l3__cu_make_halves, h);
}

/* A product of floats by whichever kernel is right. gated_input: x holds gates and others side by side. */
L3__CU_HOST void l3__cu_multiply(l3_cuda *s, l3__cu_product p, bool gated_input) {
    if (l3__cu_uses_tensor(s, &p.w, p.n)) {
        const l3__cu_plan     plan = p.w.type == L3_F16    ? l3__cu_plan_of<L3_F16>(p.n)
                                     : p.w.type == L3_BF16 ? l3__cu_plan_of<L3_BF16>(p.n)
                                     : p.w.type == L3_Q8_0 ? l3__cu_plan_of<L3_Q8_0>(p.n)
                                                           : l3__cu_plan_of<L3_Q4_0>(p.n);
        l3__cu_tensor_product q    = {p, s->halves};
        l3__cu_halve(s, &p, gated_input, s->halves, NULL, p.w.ld);
        l3__cu_launch(s, dim3(l3__cu_ceil(p.w.rows, plan.rows), l3__cu_ceil(p.n, plan.positions)), 256, plan.shared,
                      plan.kernel, q);
        return;
    }
    if (gated_input) {
        l3__cu_halve(s, &p, true, NULL, s->hidden, p.w.cols);
        p.x    = s->hidden;
        p.x_ld = p.w.cols;
    }
    const uint32_t rows = p.gated ? p.w.rows / 2 : p.w.rows, per_block = p.gated ? 8 : 16;
    const uint32_t together = p.n == 1 ? 1 : 4, floats = l3__cu_min(L3__CU_CHUNK / together, p.w.ld) * together;
    const size_t   shared = (32 + floats) * sizeof(float);
    const dim3     grid(l3__cu_ceil(rows, per_block), l3__cu_ceil(p.n, together));
    if (p.n == 1) l3__cu_launch(s, grid, 256, shared, L3__CU_BY_TYPE(p.w.type, l3__cu_matvec, L3__CU_COMMA 1), p);
    else l3__cu_launch(s, grid, 256, shared, L3__CU_BY_TYPE(p.w.type, l3__cu_matvec, L3__CU_COMMA 4), p);
}

L3__CU_HOST l3__cu_product l3__cu_product_of(const l3__cu_matrix *w, const float *x, uint32_t x_ld, uint32_t n,
                                             float *out, uint32_t out_ld) {
    l3__cu_product p;
    memset(&p, 0, sizeof p);
    p.w      = *w;
    p.x      = x;
    p.x_ld   = x_ld;
    p.n      = n;
    p.out    = out;
    p.out_ld = out_ld;
    return p;
}

L3__CU_HOST l3__cu_inputs l3__cu_inputs_of(const l3_cuda *s) {
    const l3__cu_inputs in = {s->tokens, s->sequences, s->at};
    return in;
}

L3__CU_HOST void l3__cu_attend_all(l3_cuda *s, uint32_t block, const l3__cu_pass *pass) {
    const l3_info *x    = &s->info;
    const size_t   size = (size_t)s->config.sequences * x->n_kv_heads * s->config.context * l3__cu_head_ld(x) *
                        (s->config.kv_type == L3_F16 ? 2 : 4);
    l3__cu_attention a;
    memset(&a, 0, sizeof a);
    a.qkv                    = s->qkv;
    a.in                     = l3__cu_inputs_of(s);
    a.n                      = pass->n;
    a.n_heads                = x->n_heads;
    a.head_dim               = x->head_dim;
    a.rope_dims              = x->rope_dims;
    a.cosines                = s->cosines;
    a.sines                  = s->sines;
    a.out                    = s->attended;
    a.partials               = s->attend_partials;
    a.arrived                = s->attend_arrived;
    const l3__cu_cache cache = {
        s->keys + block * size, s->values + block * size, s->config.sequences,        x->n_kv_heads,
        s->config.context,      l3__cu_head_ld(x),        s->config.kv_type == L3_F16};
    a.cache              = cache;
    const uint32_t pairs = (x->n_heads + 2 * x->n_kv_heads) * (a.cache.ld / 2);
    l3__cu_launch(s, dim3(pass->n, l3__cu_ceil(pairs, 256)), 256, 0, l3__cu_rope, a);
    if (pass->one_text && pass->n > 1 && s->config.mode == L3_FAST && x->head_dim <= 128) {
        const dim3   grid(l3__cu_ceil(pass->n, L3__CU_QUERIES), x->n_heads);
        const size_t shared = 2 * L3__CU_QUERIES * ((x->head_dim <= 64 ? 64 : 128) + 8) * sizeof(uint16_t);
        if (x->head_dim <= 64) l3__cu_launch(s, grid, 128, shared, l3__cu_prefill_attend<64>, a);
        else l3__cu_launch(s, grid, 128, shared, l3__cu_prefill_attend<128>, a);
        return;
    }
    for (; a.first < pass->n; a.first += s->slice)
        l3__cu_launch(s, dim3(pass->splits, x->n_kv_heads, l3__cu_min(s->slice, pass->n - a.first)), 128,
                      l3__cu_attend_shared(a.cache.ld), l3__cu_attend, a);
}

L3__CU_HOST void l3__cu_run_block(l3_cuda *s, uint32_t block, const l3__cu_pass *pass) {
    const l3_info      *x = &s->info;
    const l3__cu_block *b = &s->blocks[block];
    const uint32_t      q = x->n_heads * x->head_dim, f = x->ffn_dim, n = pass->n;
    l3__cu_product      p = l3__cu_product_of(&b->qkv, s->x, x->dim, n, s->qkv, b->qkv.rows);
    p.normalize = true, p.norm = b->attn_norm, p.epsilon = x->rms_epsilon;
    l3__cu_multiply(s, p, false);
    l3__cu_attend_all(s, block, pass);
    p     = l3__cu_product_of(&b->attn_output, s->attended, q, n, s->x, x->dim);
    p.add = true;
    l3__cu_multiply(s, p, false);
    const bool apart =
        l3__cu_uses_tensor(s, &b->gate_up, n); /* then SwiGLU comes with the next product's activations */
    p           = l3__cu_product_of(&b->gate_up, s->x, x->dim, n, apart ? s->gate_up : s->hidden, apart ? 2 * f : f);
    p.normalize = true, p.norm = b->ffn_norm, p.epsilon = x->rms_epsilon, p.gated = !apart;
    l3__cu_multiply(s, p, false);
    p     = l3__cu_product_of(&b->down, apart ? s->gate_up : s->hidden, apart ? 2 * f : f, n, s->x, x->dim);
    p.add = true;
    l3__cu_multiply(s, p, apart);
}

L3__CU_HOST bool l3__cu_rows_aligned(const l3__cu_lookup *l) {
    const uint64_t value_at = l->layer->tied ? 0 : l3_row_bytes(l->layer->rows.type, l->layer->key_length);
    return l->row_bytes % 16 == 0 && value_at % 16 == 0;
}

L3__CU_HOST void l3__cu_run_lookup(l3_cuda *s, uint32_t i, const l3__cu_pass *pass) {
    const l3_info        *x = &s->info;
    const l3__cu_lookup  *l = &s->lookups[i];
    const l3_lookup      *y = l->layer;
    const uint32_t        n = pass->n, up = y->up_length;
    l3__cu_rows_attention a;
    const l3__cu_matrix   none = {NULL, NULL, 0, x->dim, l3__cu_round(x->dim, 8), L3_F32};
    l3__cu_product        p    = l3__cu_product_of(&none, s->x, x->dim, n, NULL, 0);
    p.normalize = y->query_norm, p.norm = l->query_norm, p.epsilon = y->norm_epsilon;
    l3__cu_halve(s, &p, false, NULL, s->query, none.ld);
    memset(&a, 0, sizeof a);
    a.rows         = s->rows + (size_t)i * s->config.batch;
    a.n_groups     = s->n_groups;
    a.order        = s->order;
    a.query        = s->query;
    a.query_ld     = none.ld;
    a.key_length   = y->key_length;
    a.value_length = y->value_length;
    a.row_bytes    = (uint32_t)l->row_bytes;
    a.value_at     = y->tied ? 0 : (uint32_t)l3_row_bytes(y->rows.type, y->key_length);
    a.rows_split   = l3__cu_rows_split(l->most_rows);
    a.splits       = s->row_splits;
    a.key_norm     = y->key_norm;
    a.score_scale  = y->score_scale;
    a.epsilon      = y->norm_epsilon;
    a.partials     = s->row_partials;
    a.arrived      = s->row_arrived;
    a.out          = s->sums;
    if (pass->trace) L3__CU_GIVE(s, cudaEventRecord(s->events[2 + 2 * i], s->main));
    L3__CU_GIVE(s, cudaStreamWaitEvent(s->main, s->events[3 + 2 * i], 0));
    const dim3     grid(s->row_splits, n);
    const uint32_t together = n == 1 ? 1 : L3__CU_TOGETHER;
    const size_t   shared   = l3__cu_attend_rows_shared(together, y->value_length);
    const bool     aligned  = l3__cu_rows_aligned(l);
    l3__cu_launch(s, grid, 256, shared,
                  n == 1 && aligned
                      ? L3__CU_BY_ROW_TYPE(y->rows.type, l3__cu_attend_rows, L3__CU_COMMA true L3__CU_COMMA 1)
                  : n == 1  ? L3__CU_BY_ROW_TYPE(y->rows.type, l3__cu_attend_rows, L3__CU_COMMA false L3__CU_COMMA 1)
                  : aligned ? L3__CU_BY_ROW_TYPE(y->rows.type, l3__cu_attend_rows, L3__CU_COMMA true L3__CU_COMMA 4)
                            : L3__CU_BY_ROW_TYPE(y->rows.type, l3__cu_attend_rows, L3__CU_COMMA false L3__CU_COMMA 4),
                  a);
    if (l->up.rows) l3__cu_multiply(s, l3__cu_product_of(&l->up, s->sums, y->value_length, n, s->up, up), false);
    l3__cu_mixing m = {
        l->up.rows ? s->up : s->sums, s->x, up, x->dim, l->up_norm, l->up_bias, y->layer_norm, y->norm_epsilon, s->mix};
    l3__cu_launch(s, n, 256, 32 * sizeof(float), l3__cu_fill_mix, m);
    p     = l3__cu_product_of(&l->mix, s->mix, up + x->dim, n, s->x, x->dim);
    p.add = y->residual;
    l3__cu_multiply(s, p, false);
}

/* The rows of a step's distinct tokens, one after the other, from the model's source to pinned memory. Runs in a thread of the
 * driver's; calls nothing of CUDA. */
static void CUDART_CB l3__cu_gather_rows(void *user) {
    const l3__cu_gather *g = (const l3__cu_gather *)user;
    l3_cuda             *s = g->gpu;
    std::copy(s->asked, s->asked + g->n, s->distinct);
    std::sort(s->distinct, s->distinct + g->n);
    const int32_t *end = std::unique(s->distinct, s->distinct + g->n);
    for (uint32_t i = 0; i < s->info.n_lookups; i++) {
        const l3__cu_lookup *l  = &s->lookups[i];
        uint64_t             at = 0;
        for (const int32_t *t = s->distinct; t < end && *s->io == 0; t++) {
            uint32_t       first, n;
            l3_error       err   = {0, 0, 0, {0}};
            const int      code  = l3__cu_token_rows(l->layer, *t, &first, &n, &err);
            const uint64_t bytes = n * l->row_bytes;
            if (s->is_hot && s->is_hot[(size_t)i * s->info.vocab + (uint32_t)*t]) continue;
            if (code == L3_OK && bytes && at + (bytes + 15) / 16 * 16 <= (uint64_t)l->table.units * 16)
                if (l3__cu_read(&l->layer->rows, first * l->row_bytes, (size_t)bytes, l->pinned_rows + at, &err) !=
                    L3_OK)
                    *s->io = err.io ? err.io : -1;
            if (code != L3_OK) *s->io = err.io ? err.io : -1;
            at += (bytes + 15) / 16 * 16;
        }
    }
}

/* On the side stream: which rows are wanted, and bringing them in. */
L3__CU_HOST void l3__cu_fetch_rows(l3_cuda *s, const l3__cu_pass *pass) {
    const cudaStream_t main = s->main;
    l3__cu_grouping    g    = {s->tokens, pass->n,  s->info.n_lookups, s->config.batch, s->tables,
                               s->rows,   s->order, s->n_groups,       s->stats};
    L3__CU_GIVE(s, cudaEventRecord(s->events[1], s->main));
    L3__CU_GIVE(s, cudaStreamWaitEvent(s->side, s->events[1], 0));
    s->main = s->side; /* what is launched now goes there */
    l3__cu_launch(s, 1, 1024, l3__cu_group_shared(pass->n), l3__cu_group_tokens, g);
    if (s->memory.place == L3_CUDA_SOURCE) {
        L3__CU_GIVE(s,
                    cudaMemcpyAsync(s->asked, s->tokens, pass->n * sizeof *s->asked, cudaMemcpyDeviceToHost, s->side));
        L3__CU_GIVE(s, cudaLaunchHostFunc(s->side, l3__cu_gather_rows, &s->gathers[pass->gather]));
    }
    for (uint32_t i = 0; i < s->info.n_lookups; i++) {
        if (s->memory.place != L3_CUDA_DEVICE)
            l3__cu_launch(s, L3__CU_FETCHERS, 256, 0, l3__cu_fetch,
                          (const l3__cu_rows *)s->rows + (size_t)i * s->config.batch, (const uint32_t *)s->n_groups,
                          s->lookups[i].table);
        L3__CU_GIVE(s, cudaEventRecord(s->events[3 + 2 * i], s->side));
    }
    s->main = main;
}

L3__CU_HOST void l3__cu_run_head(l3_cuda *s, const float *x, uint32_t n, float *out, const uint32_t *map) {
    l3__cu_product p = l3__cu_product_of(&s->output, x, s->info.dim, n, out, s->info.vocab);
    p.normalize = true, p.norm = s->output_norm, p.epsilon = s->info.rms_epsilon;
    p.map = map;
    l3__cu_multiply(s, p, false);
}

L3__CU_HOST void l3__cu_run_choice(l3_cuda *s, uint32_t n) {
    const l3__cu_choice c = {s->logits,      s->info.vocab, n,        s->config.context, s->sampling,
                             s->tokens,      s->sequences,  s->at,    s->history,        s->states,
                             s->step_counts, s->chosen,     s->status};
    l3__cu_launch(s, n, 1024, sizeof(l3__cu_choosing), l3__cu_choose, c);
}

/* Launches a whole pass; of one text the logits of the last position, else of each, unless all are wanted elsewhere. */
L3__CU_HOST void l3__cu_run(l3_cuda *s, const l3__cu_pass *pass) {
    const l3_info *x = &s->info;
    if (pass->trace) L3__CU_GIVE(s, cudaEventRecord(s->events[0], s->main));
    if (x->n_lookups) l3__cu_fetch_rows(s, pass);
    l3__cu_launch(s, pass->n, 128, 0, L3__CU_BY_TYPE(s->embedding.type, l3__cu_embed, ), s->embedding,
                  l3__cu_inputs_of(s), s->x, s->history, s->config.context);
    for (uint32_t b = 0, i = 0; b < x->n_blocks; b++) {
        l3__cu_run_block(s, b, pass);
        if (i < x->n_lookups && s->lookups[i].block == b) l3__cu_run_lookup(s, i++, pass);
    }
    if (pass->wants_all) return;
    const uint32_t last = pass->one_text ? pass->n - 1 : 0;
    l3__cu_run_head(s, s->x + (size_t)last * x->dim, pass->n - last, s->logits, s->sequences + last);
    if (pass->choose) l3__cu_run_choice(s, pass->n);
}

/* The graph of a pass, captured if it is not there yet; NULL on failure. */
L3__CU_HOST l3__cu_graph *l3__cu_graph_of(l3_cuda *s, const l3__cu_pass *pass) {
    l3__cu_graph *g = s->graphs;
    for (uint32_t i = 0; i < L3__CU_GRAPHS; i++) {
        l3__cu_graph *h = &s->graphs[i];
        if (h->exec && h->n == pass->n && h->splits == pass->splits && h->choose == pass->choose) {
            h->used = (uint32_t)(s->steps & 0x7fffffff) + 1;
            return h;
        }
        if (h->used < g->used) g = h;
    }
    if (g->exec) l3__cu_note(s, cudaGraphExecDestroy(g->exec));
    memset(g, 0, sizeof *g);
    cudaGraph_t graph      = NULL;
    l3__cu_pass p          = *pass;
    p.gather               = (uint32_t)(g - s->graphs);
    s->gathers[p.gather].n = p.n;
    l3__cu_note(s, cudaStreamBeginCapture(s->main, cudaStreamCaptureModeThreadLocal));
    if (s->failed != cudaSuccess) return NULL;
    l3__cu_run(s, &p);
    const cudaError_t ended = cudaStreamEndCapture(s->main, &graph);                 /* after a failure, too */
    if (ended != cudaSuccess && !graph) (void)cudaStreamEndCapture(s->main, &graph); /* no capture stays */
    l3__cu_note(s, ended);
    if (s->failed == cudaSuccess) l3__cu_note(s, cudaGraphInstantiate(&g->exec, graph, 0));
    if (graph) l3__cu_note(s, cudaGraphDestroy(graph));
    if (s->failed != cudaSuccess) {
        if (g->exec) (void)cudaGraphExecDestroy(g->exec);
        memset(g, 0, sizeof *g);
        return NULL;
    }
    g->n      = p.n;
    g->splits = p.splits;
    g->choose = p.choose;
    g->used   = (uint32_t)(s->steps & 0x7fffffff) + 1;
    return g;
}

/* One step of several texts, by graph unless the configuration says otherwise. */
L3__CU_HOST void l3__cu_step(l3_cuda *s, l3__cu_pass *pass) {
    if (s->config.no_graph || pass->trace) {
        pass->gather                = L3__CU_GRAPHS;
        s->gathers[L3__CU_GRAPHS].n = pass->n;
        l3__cu_run(s, pass);
    } else {
        const l3__cu_graph *g = l3__cu_graph_of(s, pass);
        if (g) L3__CU_GIVE(s, cudaGraphLaunch(g->exec, s->main));
    }
    s->steps++;
}

/* Blocks for a text of so many positions: a power of two, so that there are few graphs. */
L3__CU_HOST uint32_t l3__cu_splits_for(const l3_cuda *s, uint32_t length) {
    return l3__cu_min(l3__cu_power(l3__cu_ceil(length, L3__CU_SPLIT)), s->splits);
}

/* >>calls ---------------------------------------------------------------------------------------------------------- */

L3__CU_HOST int l3__cu_allocate(l3_cuda *s, l3_error *err) {
    int   last = 0, first = 0;
    void *device = NULL, *pinned = NULL;
    int   code = l3__cu_error(s, cudaMalloc(&device, s->memory.device), "device memory", err);
    s->arena   = (unsigned char *)device;
    if (code == L3_ERR_MEMORY)
        return l3__cu_fail(err, L3_ERR_MEMORY, (int)cudaErrorMemoryAllocation, "the device cannot give %llu bytes",
                           (unsigned long long)s->memory.device);
    if (code == L3_OK)
        code = l3__cu_error(s, cudaHostAlloc(&pinned, s->memory.pinned, cudaHostAllocMapped), "pinned memory", err);
    s->pinned = (unsigned char *)pinned;
    if (code == L3_ERR_MEMORY)
        return l3__cu_fail(err, L3_ERR_MEMORY, (int)cudaErrorMemoryAllocation,
                           "the host cannot give %llu bytes of pinned memory", (unsigned long long)s->memory.pinned);
    if (code == L3_OK)
        code = l3__cu_error(s, cudaStreamCreateWithFlags(&s->main, cudaStreamNonBlocking), "a stream", err);
    if (code == L3_OK) code = l3__cu_error(s, cudaDeviceGetStreamPriorityRange(&last, &first), "a stream", err);
    if (code == L3_OK) /* its few blocks go first, so that rows are under way before the others take all room */
        code = l3__cu_error(s, cudaStreamCreateWithPriority(&s->side, cudaStreamNonBlocking, first), "a stream", err);
    for (uint32_t i = 0; code == L3_OK && i < 2 * s->info.n_lookups + 2; i++)
        code = l3__cu_error(s, cudaEventCreateWithFlags(&s->events[i], cudaEventDefault), "an event", err);
    return code;
}

/* What kernels count on finding. */
L3__CU_HOST int l3__cu_clear(l3_cuda *s, l3_error *err) {
    L3__CU_GIVE(
        s, cudaMemsetAsync(s->attend_arrived, 0, (size_t)s->slice * s->info.n_kv_heads * sizeof(uint32_t), s->main));
    L3__CU_GIVE(s, cudaMemsetAsync(s->row_arrived, 0, s->config.batch * sizeof(uint32_t), s->main));
    L3__CU_GIVE(s, cudaMemsetAsync(s->stats, 0, 4 * sizeof *s->stats, s->main));
    L3__CU_GIVE(s, cudaMemsetAsync(s->status, 0, sizeof *s->status, s->main));
    l3__cu_note(s, cudaStreamSynchronize(s->main));
    *s->io = 0;
    return l3__cu_settle(s, "preparing the device", err);
}

L3_API int l3_cuda_open(l3_cuda **gpu, const l3_model *model, const l3_cuda_config *config, void *mem, size_t size,
                        l3_error *err) {
    l3_cuda d;
    int     code = l3__cu_describe(&d, model, config, err);
    if (code != L3_OK) return code;
    if (!mem || size < d.memory.host || (uintptr_t)mem % L3_ALIGN != 0)
        return l3__cu_fail(err, L3_ERR_MEMORY, 0, "%zu bytes aligned to %d are needed; %zu were given", d.memory.host,
                           (int)L3_ALIGN, mem ? size : (size_t)0);
    memset(mem, 0, d.memory.host);
    l3_cuda *s = (l3_cuda *)mem;
    *s         = d;
    (void)l3__cu_host_layout(s, mem);
    for (uint32_t i = 0; i <= L3__CU_GRAPHS; i++) s->gathers[i].gpu = s;
    cudaDeviceProp properties;
    code = l3__cu_error(s, cudaGetDeviceProperties(&properties, s->config.device), "asking for the device's name", err);
    if (code == L3_OK) (void)snprintf(s->name, sizeof s->name, "%.63s", properties.name);
    if (code == L3_OK) code = l3__cu_allocate(s, err);
    if (code == L3_OK) code = l3__cu_device_layout(s, s->arena, err);
    if (code == L3_OK) l3__cu_pinned_layout(s, s->pinned);
    if (code == L3_OK) code = l3__cu_clear(s, err);
    if (code == L3_OK) code = l3__cu_upload_model(s, err);
    s->config.counts = NULL;
    if (code != L3_OK) l3_cuda_close(s);
    else *gpu = s;
    return code;
}

L3_API void l3_cuda_close(l3_cuda *s) {
    if (!s) return;
    (void)cudaSetDevice(s->config.device);
    if (s->main) (void)cudaStreamSynchronize(s->main);
    if (s->side) (void)cudaStreamSynchronize(s->side);
    for (uint32_t i = 0; i < L3__CU_GRAPHS; i++)
        if (s->graphs[i].exec) (void)cudaGraphExecDestroy(s->graphs[i].exec);
    for (uint32_t i = 0; i < 2 * s->info.n_lookups + 2; i++)
        if (s->events[i]) (void)cudaEventDestroy(s->events[i]);
    if (s->main) (void)cudaStreamDestroy(s->main);
    if (s->side) (void)cudaStreamDestroy(s->side);
    if (s->pinned) (void)cudaFreeHost(s->pinned);
    if (s->arena) (void)cudaFree(s->arena);
    (void)cudaGetLastError();
    memset((void *)s, 0, sizeof *s);
}

L3_API l3_cuda_memory l3_cuda_memory_used(const l3_cuda *s) { return s->memory; }
L3_API const char    *l3_cuda_name(const l3_cuda *s) { return s->name; }
L3_API uint32_t       l3_cuda_context(const l3_cuda *s) { return s->config.context; }
L3_API uint32_t       l3_cuda_sequences(const l3_cuda *s) { return s->config.sequences; }
L3_API uint32_t       l3_cuda_batch(const l3_cuda *s) { return s->config.batch; }
L3_API uint32_t       l3_cuda_position(const l3_cuda *s, uint32_t sequence) {
          return sequence < s->config.sequences ? s->positions[sequence] : 0;
}

L3__CU_HOST int l3__cu_check_sequence(const l3_cuda *s, uint32_t sequence, l3_error *err) {
    if (sequence < s->config.sequences) return L3_OK;
    return l3__cu_fail(err, L3_ERR_ARGUMENT, 0, "sequence %u of %u", sequence, s->config.sequences);
}

L3__CU_HOST int l3__cu_check_tokens(const l3_cuda *s, const int32_t *tokens, uint32_t n, l3_error *err) {
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= s->info.vocab)
            return l3__cu_fail(err, L3_ERR_TOKEN, 0, "token %u of this call is outside the vocabulary of %u", i,
                               s->info.vocab);
    return L3_OK;
}

L3__CU_HOST int l3__cu_check_room(const l3_cuda *s, uint32_t sequence, uint32_t n, l3_error *err) {
    if (n <= s->config.context - s->positions[sequence]) return L3_OK;
    return l3__cu_fail(err, L3_ERR_CONTEXT, 0, "%u tokens do not fit: the context of %u holds %u already", n,
                       s->config.context, s->positions[sequence]);
}

/* Where rows are gathered by the host they must all have room; n distinct tokens surely do. */
L3__CU_HOST uint32_t l3__cu_gatherable(const l3_cuda *s) {
    uint32_t n = s->config.batch;
    for (uint32_t i = 0; s->memory.place == L3_CUDA_SOURCE && i < s->info.n_lookups; i++) {
        const uint64_t fit = l3__cu_staging(s, &s->lookups[i]) / ((s->lookups[i].most_bytes + 15) / 16 * 16);
        if (fit < n) n = (uint32_t)fit;
    }
    return n;
}

/* n sequences of a batch: all there, all different, with room for `steps` tokens. */
L3__CU_HOST int l3__cu_check_batch(l3_cuda *s, const uint32_t *sequences, const int32_t *tokens, uint32_t n,
                                   uint32_t steps, l3_error *err) {
    int code = l3__cu_enter(s, err);
    if (code == L3_OK && (n == 0 || n > s->config.sequences))
        code = l3__cu_fail(err, L3_ERR_ARGUMENT, 0, "%u sequences in a call; from 1 to %u is right", n,
                           s->config.sequences);
    if (code == L3_OK && n > l3__cu_gatherable(s))
        code = l3__cu_fail(err, L3_ERR_ARGUMENT, 0,
                           "%u sequences may need more rows than staging_bytes hold; %u surely fit", n,
                           l3__cu_gatherable(s));
    if (code == L3_OK) code = l3__cu_check_tokens(s, tokens, n, err);
    if (code != L3_OK) return code;
    memset(s->seen, 0, s->config.sequences * sizeof *s->seen);
    for (uint32_t i = 0; code == L3_OK && i < n; i++) {
        const uint32_t q = sequences ? sequences[i] : i;
        code             = l3__cu_check_sequence(s, q, err);
        if (code == L3_OK && s->seen[q]) code = l3__cu_fail(err, L3_ERR_ARGUMENT, 0, "sequence %u is given twice", q);
        if (code == L3_OK) code = l3__cu_check_room(s, q, steps, err);
        if (code == L3_OK) s->seen[q] = true;
    }
    return code;
}

/* Inputs of a pass go to the device. */
L3__CU_HOST void l3__cu_send_inputs(l3_cuda *s) {
    L3__CU_GIVE(s, cudaMemcpyAsync(s->tokens, s->in, 3 * (size_t)s->config.batch * sizeof(int32_t),
                                   cudaMemcpyHostToDevice, s->main));
}

/* Fills them in for a batch; the longest text then has as many positions as are returned. */
L3__CU_HOST uint32_t l3__cu_batch_inputs(l3_cuda *s, const uint32_t *sequences, const int32_t *tokens, uint32_t n) {
    const uint32_t batch   = s->config.batch;
    uint32_t       longest = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t q     = sequences ? sequences[i] : i;
        s->in[i]             = tokens[i];
        s->in[batch + i]     = (int32_t)q;
        s->in[2 * batch + i] = (int32_t)s->positions[q];
        if (longest < s->positions[q] + 1) longest = s->positions[q] + 1;
    }
    l3__cu_send_inputs(s);
    return longest;
}

/* Waits for what was launched; the errors of all of it. */
L3__CU_HOST int l3__cu_finish(l3_cuda *s, const char *what, l3_error *err) {
    l3__cu_note(s, cudaStreamSynchronize(s->main));
    if (s->failed != cudaSuccess) (void)cudaStreamSynchronize(s->side); /* which main did not get to wait for */
    const int io = *s->io;
    *s->io       = 0;
    int code     = l3__cu_settle(s, what, err);
    if (code == L3_OK && io)
        code = l3__cu_fail(err, L3_ERR_IO, io, "rows of a table could not be read from the source");
    return code;
}

/* arrivals: NULL, or when rows came. */
L3__CU_HOST int l3__cu_decode(l3_cuda *s, const uint32_t *sequences, const int32_t *tokens, uint32_t n,
                              l3_cuda_arrival *arrivals, l3_error *err) {
    int code = l3__cu_check_batch(s, sequences, tokens, n, 1, err);
    if (code != L3_OK) return code;
    l3__cu_pass pass = {n, 0, false, false, false, arrivals != NULL, 0};
    pass.splits      = l3__cu_splits_for(s, l3__cu_batch_inputs(s, sequences, tokens, n));
    l3__cu_step(s, &pass);
    code = l3__cu_finish(s, "decoding", err);
    for (uint32_t i = 0; code == L3_OK && arrivals && i < s->info.n_lookups; i++) {
        L3__CU_GIVE(s, cudaEventElapsedTime(&arrivals[i].wanted, s->events[0], s->events[2 + 2 * i]));
        L3__CU_GIVE(s, cudaEventElapsedTime(&arrivals[i].there, s->events[0], s->events[3 + 2 * i]));
        code = l3__cu_settle(s, "reading times", err);
    }
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t q = sequences ? sequences[i] : i;
        s->has[q]        = code == L3_OK;
        if (code == L3_OK) s->positions[q]++;
    }
    return code;
}

L3_API int l3_cuda_decode(l3_cuda *s, const uint32_t *sequences, const int32_t *tokens, uint32_t n, l3_error *err) {
    return l3__cu_decode(s, sequences, tokens, n, NULL, err);
}

L3_API int l3_cuda_trace(l3_cuda *s, const uint32_t *sequences, const int32_t *tokens, uint32_t n,
                         l3_cuda_arrival *arrivals, l3_error *err) {
    return l3__cu_decode(s, sequences, tokens, n, arrivals, err);
}

/* The logits of positions of the pass that has just been launched, L3__CU_SOME at a time, to (n, vocab) on the host. */
L3__CU_HOST void l3__cu_copy_all(l3_cuda *s, uint32_t n, float *all) {
    const size_t vocab = s->info.vocab;
    for (uint32_t i = 0; i < n; i += L3__CU_SOME) {
        const uint32_t some = l3__cu_min(L3__CU_SOME, n - i);
        l3__cu_run_head(s, s->x + (size_t)i * s->info.dim, some, s->some, NULL);
        L3__CU_GIVE(s, cudaMemcpyAsync(all + i * vocab, s->some, some * vocab * sizeof(float), cudaMemcpyDeviceToHost,
                                       s->main));
        l3__cu_note(s, cudaStreamSynchronize(s->main));
    }
}

/* Up to a batch of one text's tokens, from position `at` on. */
L3__CU_HOST int l3__cu_prefill_some(l3_cuda *s, uint32_t sequence, const int32_t *tokens, uint32_t n, uint32_t at,
                                    float *all, l3_error *err) {
    const uint32_t batch = s->config.batch;
    l3__cu_pass    pass  = {n, l3__cu_splits_for(s, at + n), true, all != NULL, false, false, L3__CU_GRAPHS};
    for (uint32_t i = 0; i < n; i++) {
        s->in[i]             = tokens[i];
        s->in[batch + i]     = (int32_t)sequence;
        s->in[2 * batch + i] = (int32_t)(at + i);
    }
    l3__cu_send_inputs(s);
    s->gathers[L3__CU_GRAPHS].n = n;
    l3__cu_run(s, &pass);
    s->steps++;
    if (all) {
        const size_t vocab = s->info.vocab;
        l3__cu_copy_all(s, n, all);
        L3__CU_GIVE(s, cudaMemcpyAsync(s->logits + sequence * vocab, s->some + (n - 1) % L3__CU_SOME * vocab,
                                       vocab * sizeof(float), cudaMemcpyDeviceToDevice, s->main));
    }
    return l3__cu_finish(s, "prefill", err);
}

L3_API int l3_cuda_prefill(l3_cuda *s, uint32_t sequence, const int32_t *tokens, uint32_t n, float *all,
                           l3_error *err) {
    int code = l3__cu_enter(s, err);
    if (code == L3_OK && n == 0) code = l3__cu_fail(err, L3_ERR_ARGUMENT, 0, "no tokens were given");
    if (code == L3_OK) code = l3__cu_check_sequence(s, sequence, err);
    if (code == L3_OK) code = l3__cu_check_room(s, sequence, n, err);
    if (code == L3_OK) code = l3__cu_check_tokens(s, tokens, n, err);
    const uint32_t most = code == L3_OK ? l3__cu_gatherable(s) : 0, at = code == L3_OK ? s->positions[sequence] : 0;
    if (code == L3_OK && most == 0)
        code = l3__cu_fail(err, L3_ERR_ARGUMENT, 0, "staging_bytes do not hold the rows of one token");
    if (code != L3_OK) return code;
    for (uint32_t i = 0; code == L3_OK && i < n; i += most)
        code = l3__cu_prefill_some(s, sequence, tokens + i, l3__cu_min(most, n - i), at + i,
                                   all ? all + (size_t)i * s->info.vocab : NULL, err);
    s->has[sequence] = code == L3_OK;
    if (code == L3_OK) s->positions[sequence] += n;
    return code;
}

L3__CU_HOST int l3__cu_check_sampling(const l3_sampling *o, l3__cu_sampling *to, l3_error *err) {
    const l3__cu_sampling greedy = {0, 1, 0, 1, 1, 0};
    *to                          = greedy;
    if (!o) return L3_OK;
    if (!(o->temperature >= 0) || !(o->temperature < 1e6f) || !(o->top_p >= 0) || !(o->top_p <= 1) ||
        !(o->min_p >= 0) || !(o->min_p <= 1) || !(o->repeat_penalty > 0) || !(o->repeat_penalty < 1e6f))
        return l3__cu_fail(
            err, L3_ERR_ARGUMENT, 0,
            "sampling: a temperature from 0, top-p and min-p from 0 to 1 and a penalty above 0 are right");
    if ((o->temperature > 0 && (o->top_k == 0 || o->top_k > L3__CU_BEST)) || o->repeat_last_n > L3__CU_BEST)
        return l3__cu_fail(err, L3_ERR_ARGUMENT, 0,
                           "sampling on a GPU: top-k from 1 to %u and a penalty over up to %u tokens are right",
                           L3__CU_BEST, L3__CU_BEST);
    const l3__cu_sampling s = {o->temperature, o->top_p, o->min_p, o->repeat_penalty, o->top_k, o->repeat_last_n};
    *to                     = s;
    return L3_OK;
}

/* Up to L3__CU_STEPS steps, from positions as they are. out: (steps, n). */
L3__CU_HOST int l3__cu_generate_some(l3_cuda *s, const uint32_t *sequences, const int32_t *tokens, uint32_t n,
                                     uint32_t steps, uint64_t seed, int32_t *out, l3_error *err) {
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t q = sequences ? sequences[i] : i;
        s->out64[i]      = seed + q + s->draws[q] * 0x9e3779b97f4a7c15u;
    }
    const uint32_t longest = l3__cu_batch_inputs(s, sequences, tokens, n);
    L3__CU_GIVE(s, cudaMemcpyAsync(s->states, s->out64, n * sizeof *s->states, cudaMemcpyHostToDevice, s->main));
    L3__CU_GIVE(s, cudaMemsetAsync(s->step_counts, 0, n * sizeof *s->step_counts, s->main));
    L3__CU_GIVE(s, cudaMemsetAsync(s->status, 0, sizeof *s->status, s->main));
    for (uint32_t i = 0; i < steps && s->failed == cudaSuccess; i++) {
        l3__cu_pass pass = {n, l3__cu_splits_for(s, longest + i), false, false, true, false, 0};
        l3__cu_step(s, &pass);
    }
    L3__CU_GIVE(s, cudaMemcpyAsync(out, s->chosen, (size_t)steps * n * sizeof *out, cudaMemcpyDeviceToHost, s->main));
    L3__CU_GIVE(s, cudaMemcpyAsync(s->out_status, s->status, sizeof *s->status, cudaMemcpyDeviceToHost, s->main));
    const int code = l3__cu_finish(s, "generating", err);
    if (code != L3_OK || *s->out_status == 0) return code;
    return l3__cu_fail(err, L3_ERR_NUMBER, 0, "the highest of %u logits is not finite", s->info.vocab);
}

L3_API int l3_cuda_generate(l3_cuda *s, const uint32_t *sequences, const int32_t *tokens, uint32_t n, uint32_t steps,
                            const l3_sampling *sampling, int32_t *out, l3_error *err) {
    l3__cu_sampling how;
    int             code = l3__cu_check_sampling(sampling, &how, err);
    if (code == L3_OK && steps == 0) code = l3__cu_fail(err, L3_ERR_ARGUMENT, 0, "no steps were asked for");
    if (code == L3_OK) code = l3__cu_check_batch(s, sequences, tokens, n, steps, err);
    if (code == L3_OK) code = l3__cu_send(s, s->sampling, &how, sizeof how, err);
    if (code != L3_OK) return code;
    for (uint32_t i = 0; code == L3_OK && i < steps; i += L3__CU_STEPS) {
        const uint32_t some = l3__cu_min(L3__CU_STEPS, steps - i);
        code                = l3__cu_generate_some(s, sequences, i ? out + (size_t)(i - 1) * n : tokens, n, some,
                                    sampling ? sampling->seed : 0, out + (size_t)i * n, err);
        for (uint32_t k = 0; k < n; k++) {
            const uint32_t q = sequences ? sequences[k] : k;
            s->has[q]        = code == L3_OK;
            s->positions[q] += some;
            if (how.temperature > 0) s->draws[q] += some;
        }
        if (code == L3_OK) continue;
        for (uint32_t k = 0; k < n; k++) { /* every sequence is where it was */
            const uint32_t q = sequences ? sequences[k] : k;
            s->positions[q] -= i + some;
            if (how.temperature > 0) s->draws[q] -= i + some;
        }
    }
    return code;
}

L3_API int l3_cuda_logits(l3_cuda *s, uint32_t sequence, float *logits, l3_error *err) {
    int code = l3__cu_enter(s, err);
    if (code == L3_OK) code = l3__cu_check_sequence(s, sequence, err);
    if (code == L3_OK && !s->has[sequence])
        code = l3__cu_fail(err, L3_ERR_ARGUMENT, 0, "sequence %u has no logits: append a token first", sequence);
    if (code != L3_OK) return code;
    L3__CU_GIVE(s, cudaMemcpyAsync(logits, s->logits + (size_t)sequence * s->info.vocab, s->info.vocab * sizeof(float),
                                   cudaMemcpyDeviceToHost, s->main));
    return l3__cu_finish(s, "copying logits", err);
}

L3_API int l3_cuda_truncate(l3_cuda *s, uint32_t sequence, uint32_t n, l3_error *err) {
    int code = l3__cu_check_device(s, err);
    if (code == L3_OK) code = l3__cu_check_sequence(s, sequence, err);
    if (code != L3_OK) return code;
    if (n > s->positions[sequence])
        return l3__cu_fail(err, L3_ERR_ARGUMENT, 0, "%u tokens cannot be kept of %u", n, s->positions[sequence]);
    if (n < s->positions[sequence]) s->has[sequence] = false;
    if (n == 0) s->draws[sequence] = 0;
    s->positions[sequence] = n;
    return L3_OK;
}

L3_API int l3_cuda_get_stats(l3_cuda *s, l3_cuda_stats *stats, l3_error *err) {
    unsigned long long bytes[4] = {0, 0, 0, 0};
    int                code     = l3__cu_enter(s, err);
    if (code != L3_OK) return code;
    L3__CU_GIVE(s, cudaMemcpyAsync(bytes, s->stats, sizeof bytes, cudaMemcpyDeviceToHost, s->main));
    code = l3__cu_finish(s, "reading statistics", err);
    if (code != L3_OK) return code;
    const bool here     = s->memory.place == L3_CUDA_DEVICE;
    stats->steps        = s->steps;
    stats->row_bytes    = bytes[0];
    stats->hot_bytes    = here ? bytes[0] : bytes[1];
    stats->staged_bytes = bytes[2];
    stats->direct_bytes = here ? 0 : bytes[3];
    return L3_OK;
}

#endif /* L3__CUDA_IMPLEMENTED */
