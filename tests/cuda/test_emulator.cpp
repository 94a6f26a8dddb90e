/* test_emulator.cpp - emulator.h does what a GPU does, and notices what a GPU would not forgive. */
#include "emulator.h"
#include "../test.h"

#include <sys/wait.h>

/* ---- helpers ---- */

enum { SEEDS = 20 };

template <class... P, class... A>
static cudaError_t launch(dim3 grid, dim3 block, size_t shared, cudaStream_t stream, void (*kernel)(P...), A... args) {
    cudaLaunchConfig_t config = {};
    config.gridDim            = grid;
    config.blockDim           = block;
    config.dynamicSmemBytes   = shared;
    config.stream             = stream;
    return cudaLaunchKernelEx(&config, kernel, args...);
}

/* Memory of the device, given back at the end. */
template <class T> struct device {
    T *p = nullptr;
    explicit device(size_t n) { CHECK_EQ(cudaMalloc(&p, n * sizeof(T)), cudaSuccess); }
    device(const device &) = delete;
    ~device() { CHECK_EQ(cudaFree(p), cudaSuccess); }
    void put(const T *from, size_t n) {
        CHECK_EQ(cudaMemcpy(p, from, n * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
    }
    void get(T *to, size_t n) { CHECK_EQ(cudaMemcpy(to, p, n * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess); }
};

/* Runs fn in another process, which ends by a signal or with an error; what it says. */
static bool dies(void (*fn)(), char *says, size_t n) {
    int    fd[2], status = 0;
    size_t len = 0;
    if (pipe(fd)) abort();
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        dup2(fd[1], 2);
        fn();
        _exit(0);
    }
    close(fd[1]);
    for (ssize_t got = 1; got > 0 && len + 1 < n; len += got > 0 ? (size_t)got : 0)
        got = read(fd[0], says + len, n - 1 - len);
    says[len] = 0;
    close(fd[0]);
    waitpid(child, &status, 0);
    return status != 0;
}

static bool says(void (*fn)(), const char *text) {
    char       all[8192];
    const bool died = dies(fn, all, sizeof all), found = strstr(all, text) != NULL;
    if (!found) fprintf(stderr, "  instead of \"%s\":\n%s\n", text, all);
    return died && found;
}

/* ---- threads, barriers ---- */

static __global__ void __launch_bounds__(1024) block_sum(float *out, const float *__restrict__ in, int n) {
    extern __shared__ __align__(16) unsigned char l3__shared[];
    float                                        *warps = (float *)l3__shared;
    const int                                     i     = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float                                         v     = i < n ? __ldg(in + i) : 0;
    for (int o = 16; o; o /= 2) v += __shfl_down_sync(~0u, v, (unsigned)o);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned w = 1; w < blockDim.x / 32; w++) v += warps[w];
        out[blockIdx.x] = v;
    }
}

TEST(sums) {
    enum { N = 10000, BLOCK = 256, BLOCKS = (N + BLOCK - 1) / BLOCK };
    static float  x[N], y[BLOCKS];
    double        sum = 0;
    device<float> in(N), out(BLOCKS);
    for (int i = 0; i < N; i++) x[i] = (float)(i % 7);
    in.put(x, N);
    CHECK_EQ(launch(BLOCKS, BLOCK, BLOCK / 32 * sizeof(float), nullptr, block_sum, out.p, in.p, (int)N), cudaSuccess);
    out.get(y, BLOCKS);
    for (int b = 0; b < BLOCKS; b++) sum += y[b];
    CHECK_EQ(sum, N / 7 * 21 + 0 + 1 + 2 + 3);
}

static __global__ void indices(unsigned *out) {
    const unsigned block  = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    atomicAdd(&out[block * blockDim.x * blockDim.y * blockDim.z + thread], block * 1000 + thread);
}

TEST(every_thread_once) {
    enum { BLOCKS = 4 * 3 * 2, THREADS = 5 * 4 * 3 };
    device<unsigned> out(BLOCKS * THREADS);
    unsigned         y[BLOCKS * THREADS];
    CHECK_EQ(cudaMemset(out.p, 0, sizeof y), cudaSuccess);
    CHECK_EQ(launch(dim3(4, 3, 2), dim3(5, 4, 3), 0, nullptr, indices, out.p), cudaSuccess);
    out.get(y, BLOCKS * THREADS);
    for (unsigned i = 0; i < BLOCKS * THREADS; i++) CHECK_EQ(y[i], i / THREADS * 1000 + i % THREADS);
}

/* Threads hand a number around through shared memory; without a barrier some read before others write. */
static __global__ void rotate(int *out, int rounds, bool barriers) {
    extern __shared__ unsigned char l3__shared[];
    int                            *s = (int *)l3__shared;
    const int                       n = (int)blockDim.x, i = (int)threadIdx.x;
    int                             v = i;
    for (int r = 0; r < rounds; r++) {
        s[i] = v;
        if (barriers) __syncthreads();
        v = s[(i + 1) % n];
        if (barriers) __syncthreads();
    }
    out[i] = v;
}

static bool rotates(bool barriers) {
    int         y[64];
    bool        right = true;
    device<int> out(64);
    CHECK_EQ(launch(1, 64, sizeof y, nullptr, rotate, out.p, 3, barriers), cudaSuccess);
    out.get(y, 64);
    for (int i = 0; i < 64; i++) right = right && y[i] == (i + 3) % 64;
    return right;
}

TEST(a_missing_barrier_is_noticed) {
    int wrong = 0;
    for (int seed = 1; seed <= SEEDS; seed++) {
        emulator_seed((uint64_t)seed);
        CHECK(rotates(true));
        wrong += !rotates(false);
    }
    CHECK(wrong > 0);
}

static __global__ void some_return(int *out) {
    if (threadIdx.x % 3 == 1) return;
    __syncthreads();
    __syncwarp();
    const unsigned votes = __ballot_sync(~0u, 1);
    if (threadIdx.x == 0) out[0] = __popc(votes);
    __syncthreads();
    atomicAdd(out + 1, 1);
}

TEST(who_has_returned_is_not_waited_for) {
    int         y[2];
    device<int> out(2);
    CHECK_EQ(cudaMemset(out.p, 0, sizeof y), cudaSuccess);
    CHECK_EQ(launch(1, 50, 0, nullptr, some_return, out.p), cudaSuccess);
    out.get(y, 2);
    CHECK_EQ(y[0], 21); /* of lanes 0 ... 31 */
    CHECK_EQ(y[1], 33);
}

/* ---- warps ---- */

struct shuffled {
    int   index, exclusive, up, down;
    float value;
};

static __global__ void shuffle_all(shuffled *out, int width) {
    const int lane = (int)threadIdx.x % 32;
    shuffled &to   = out[threadIdx.x];
    to.index       = __shfl_sync(~0u, lane, lane * 5 + 3, width);
    to.exclusive   = __shfl_xor_sync(~0u, lane, 5, width);
    to.up          = (int)__shfl_up_sync(~0u, (unsigned)lane, 3, width);
    to.down        = (int)__shfl_down_sync(~0u, (unsigned long long)lane << 40, 3, width) + lane;
    to.value       = __shfl_sync(~0u, (float)lane + 0.5f, 31 - lane);
}

/* By the words of CUDA's guide. */
TEST(shuffles) {
    shuffled         y[64];
    device<shuffled> out(64);
    for (int width = 1; width <= 32; width *= 2) {
        CHECK_EQ(launch(1, 64, 0, nullptr, shuffle_all, out.p, width), cudaSuccess);
        out.get(y, 64);
        for (int i = 0; i < 64; i++) {
            const int lane = i % 32, first = lane / width * width, last = first + width - 1;
            CHECK_EQ(y[i].index, first + (lane * 5 + 3) % width);
            CHECK_EQ(y[i].exclusive, (lane ^ 5) <= last ? lane ^ 5 : lane);
            CHECK_EQ(y[i].up, lane - 3 >= first ? lane - 3 : lane);
            CHECK_EQ(y[i].down, lane); /* the other part was lost in an int */
            CHECK_EQ(y[i].value * 2, (31 - lane) * 2 + 1);
        }
    }
}

static __global__ void wide_shuffle(unsigned long long *out) {
    out[threadIdx.x] = __shfl_down_sync(~0u, 1ull << threadIdx.x % 32 << 20, 4, 16);
}

TEST(shuffles_of_64_bits) {
    unsigned long long         y[32];
    device<unsigned long long> out(32);
    CHECK_EQ(launch(1, 32, 0, nullptr, wide_shuffle, out.p), cudaSuccess);
    out.get(y, 32);
    for (int i = 0; i < 32; i++) CHECK_EQ(y[i], 1ull << ((i % 16 + 4 < 16 ? i + 4 : i) + 20));
}

/* Halves of a warp go different ways. */
static __global__ void diverge(unsigned *out) {
    const unsigned lane = threadIdx.x;
    if (lane < 16) {
        const unsigned votes = __ballot_sync(0xffffu, lane % 2);
        __syncwarp(0xffffu);
        out[lane] = votes + __shfl_xor_sync(0xffffu, lane, 1);
    } else {
        const int any = __any_sync(0xffff0000u, lane == 20), all = __all_sync(0xffff0000u, lane > 16);
        out[lane] = (unsigned)(2 * any + all);
    }
}

TEST(parts_of_warps) {
    unsigned         y[32];
    device<unsigned> out(32);
    CHECK_EQ(launch(1, 32, 0, nullptr, diverge, out.p), cudaSuccess);
    out.get(y, 32);
    for (unsigned i = 0; i < 32; i++) CHECK_EQ(y[i], i < 16 ? 0xaaaa + (i ^ 1) : 2);
}

/* ---- tensor cores ---- */

/* Small multiples of 1/4 are exact in both types. */
static uint16_t half_of(float x, bool bf16) {
    int         e;
    const float m    = frexpf(fabsf(x), &e); /* in [1/2, 1) */
    const int   sign = x < 0 ? 0x8000 : 0;
    if (bf16) return (uint16_t)(__float_as_uint(x) >> 16);
    return (uint16_t)(x == 0.0f ? sign : sign | (e + 14) << 10 | ((int)(m * 2048) & 1023));
}

static __global__ void mma_tile(float *c, const uint16_t *a, const uint16_t *b, bool bf16) {
    const int group = (int)threadIdx.x / 4, member = (int)threadIdx.x % 4;
    uint32_t  x[4], y[2];
    float     z[4];
    for (int i = 0; i < 4; i++) memcpy(&x[i], &a[(group + i % 2 * 8) * 16 + member * 2 + i / 2 * 8], 4);
    for (int i = 0; i < 2; i++) memcpy(&y[i], &b[group * 16 + member * 2 + i * 8], 4);
    for (int i = 0; i < 4; i++) z[i] = c[(group + i / 2 * 8) * 8 + member * 2 + i % 2];
    emulated_mma_m16n8k16(z, x, y, bf16);
    for (int i = 0; i < 4; i++) c[(group + i / 2 * 8) * 8 + member * 2 + i % 2] = z[i];
}

static void check_mma(bool bf16, test_rng *rng) {
    float            a[16][16], b[16][8], c[16][8], d[16][8];
    uint16_t         x[16 * 16], y[8 * 16];
    device<float>    to(16 * 8);
    device<uint16_t> left(16 * 16), right(8 * 16);
    for (int i = 0; i < 256; i++) a[i / 16][i % 16] = ((float)test_below(rng, 63) - 31) / 4;
    for (int i = 0; i < 128; i++) b[i / 8][i % 8] = ((float)test_below(rng, 63) - 31) / 4;
    for (int i = 0; i < 128; i++) c[i / 8][i % 8] = (float)test_below(rng, 1000);
    for (int i = 0; i < 256; i++) x[i] = half_of(a[i / 16][i % 16], bf16);
    for (int i = 0; i < 128; i++) y[i] = half_of(b[i % 16][i / 16], bf16); /* columns */
    to.put(c[0], 128);
    left.put(x, 256);
    right.put(y, 128);
    CHECK_EQ(launch(1, 32, 0, nullptr, mma_tile, to.p, left.p, right.p, bf16), cudaSuccess);
    to.get(d[0], 128);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 8; j++) {
            for (int k = 0; k < 16; k++) c[i][j] += a[i][k] * b[k][j];
            CHECK_EQ(c[i][j] * 16, d[i][j] * 16);
        }
    }
}

TEST(products_of_tiles) {
    test_rng rng = {1};
    for (int i = 0; i < 4; i++) check_mma(i % 2 != 0, &rng);
    CHECK_EQ(__float_as_uint(emulator_half(0x7c00, false)), 0x7f800000);
    CHECK_EQ(__float_as_uint(emulator_half(0x8001, false)), __float_as_uint(-0x1p-24f));
    CHECK_EQ(__float_as_uint(emulator_half(0x7bff, false)), __float_as_uint(65504.0f));
    CHECK(isnan(emulator_half(0xfe00, false)));
    CHECK_EQ(__float_as_uint(emulator_half(0xc040, true)), __float_as_uint(-3.0f));
}

static __global__ void load_tiles(uint32_t *out, bool transposed) {
    extern __shared__ __align__(16) unsigned char l3__shared[];
    uint16_t                                     *s = (uint16_t *)l3__shared;
    uint32_t                                      r[4];
    for (int i = (int)threadIdx.x; i < 256; i += 32) s[i] = (uint16_t)i;
    __syncwarp();
    if (transposed) emulated_ldmatrix_x4_trans(r, s + 8 * threadIdx.x);
    else emulated_ldmatrix_x4(r, s + 8 * threadIdx.x);
    for (int i = 0; i < 4; i++) out[4 * threadIdx.x + (unsigned)i] = r[i];
}

TEST(loads_of_tiles) {
    uint32_t         y[128];
    device<uint32_t> out(128);
    for (int transposed = 0; transposed < 2; transposed++) {
        CHECK_EQ(launch(1, 32, 512, nullptr, load_tiles, out.p, transposed != 0), cudaSuccess);
        out.get(y, 128);
        for (int i = 0; i < 256; i++) {
            const int lane = i / 8, matrix = i / 2 % 4, row = lane / 4, column = lane % 4 * 2 + i % 2;
            const int at = transposed ? 8 * column + row : 8 * row + column;
            CHECK_EQ(y[i / 2] >> i % 2 * 16 & 0xffff, 64 * matrix + at);
        }
    }
}

/* Tiles are copied two ahead of the sum; with a group too few waited for, NaN is summed. */
static __global__ void copy_ahead(float *out, const float *in, int tiles, unsigned ahead) {
    extern __shared__ __align__(16) unsigned char l3__shared[];
    float                                        *s   = (float *)l3__shared;
    const int                                     i   = (int)threadIdx.x;
    float                                         sum = 0;
    for (int t = 0; t < tiles + 2; t++) {
        if (t < tiles) emulated_cp_async(s + t % 3 * 128 + 4 * i, in + t * 128 + 4 * i, 16, i == 31 ? 12 : 16);
        emulated_cp_async_commit();
        emulated_cp_async_wait(t < 2 ? 2 : ahead);
        __syncthreads();
        for (int k = 0; t >= 2 && k < 4; k++) sum += s[(t - 2) % 3 * 128 + 4 * (31 - i) + k];
        __syncthreads();
    }
    emulated_cp_async_wait(0);
    out[i] = sum;
}

TEST(copies_ahead) {
    float         x[5 * 128], y[32];
    device<float> in(5 * 128), out(32);
    for (int i = 0; i < 5 * 128; i++) x[i] = (float)i;
    in.put(x, 5 * 128);
    for (unsigned ahead = 2; ahead <= 3; ahead++) {
        CHECK_EQ(launch(1, 32, 3 * 512, nullptr, copy_ahead, out.p, in.p, 5, ahead), cudaSuccess);
        out.get(y, 32);
        for (int i = 0; i < 32 && ahead == 2; i++) {
            float sum = 0;
            for (int k = 0; k < 20; k++) sum += i == 0 && k % 4 == 3 ? 0 : x[k / 4 * 128 + 4 * (31 - i) + k % 4];
            CHECK_EQ(y[i], sum);
        }
        if (ahead == 3) CHECK(isnan(y[0]));
    }
}

/* ---- arithmetic ---- */

TEST(functions) {
    int          i = 5;
    unsigned     u = 7;
    unsigned     old;
    volatile int negative = -1;
    CHECK_EQ(__clz(1), 31);
    CHECK_EQ(__clz(0), 32);
    CHECK_EQ(__popc(0xf0f0u), 8);
    CHECK_EQ(__ffs(8), 4);
    CHECK_EQ(__brev(1), 0x80000000u);
    CHECK_EQ(__byte_perm(0x33221100, 0x77665544, 0x7250), 0x77225500);
    CHECK_EQ(__funnelshift_r(0x80000001u, 3, 1), 0xc0000000u);
    CHECK_EQ(__funnelshift_l(0x80000001u, 3, 1), 7);
    CHECK_EQ(__dp4a((int)0xff020304, (int)0x05fe0708, 100), 100 - 5 - 4 + 21 + 32);
    CHECK_EQ(__dp4a(0xff020304u, 0x05fe0708u, 100u), 100 + 255 * 5 + 2 * 254 + 21 + 32);
    CHECK_EQ(min(negative, 1u), 1);
    CHECK_EQ(max(negative, 1), 1);
    CHECK_EQ(min(2.0f, 1.0f), 1);
    CHECK_EQ(rsqrtf(4.0f) * 2, 1);
    CHECK_EQ(atomicMax(&i, 9), 5);
    CHECK_EQ(atomicCAS(&i, 9, 2), 9);
    CHECK_EQ(atomicExch(&i, 3), 2);
    old = atomicMin(&u, 2u);
    CHECK_EQ(old * 10 + u, 72);
}

/* ---- what ends the program ---- */

static __global__ void lonely_barrier() {
    if (threadIdx.x < 40) __syncthreads();
    else __syncwarp(1u << threadIdx.x % 32);
    if (threadIdx.x == 63) __shfl_sync(3u << 30, 1, 0);
}
static __global__ void two_barriers() {
    if (threadIdx.x < 32) __syncthreads();
    else __syncthreads();
}
static __global__ void shuffle_without_all() {
    if (threadIdx.x != 7) __shfl_xor_sync(~0u, 1.0f, 1);
}
static __global__ void lane_not_in_mask() { __syncwarp(0xf); }
static __global__ void beyond_shared() {
    extern __shared__ unsigned char l3__shared[];
    l3__shared[64 + 10 * threadIdx.x] = 1;
}
static __global__ void beyond_rows() {
    uint32_t r[4];
    emulated_ldmatrix_x4(r, l3__shared + 8 * threadIdx.x);
}

template <void (*kernel)()> static void run_it() {
    launch(2, 64, 64, nullptr, kernel);
    cudaDeviceSynchronize();
}

TEST(deadlocks_are_told) {
    char all[8192];
    CHECK(says(run_it<two_barriers>, "deadlock"));
    CHECK(says(run_it<shuffle_without_all>, "threads 7 to 7: have returned"));
    CHECK(says(run_it<lane_not_in_mask>, "a lane is not in the mask"));
    CHECK(dies(run_it<lonely_barrier>, all, sizeof all));
    CHECK(strstr(all, "threads 0 to 39: wait at __syncthreads() in lonely_barrier") != NULL);
    CHECK(strstr(all, "threads 63 to 63: wait at a shuffle in lonely_barrier") != NULL);
    CHECK(strstr(all, ", grid 2x1x1 of blocks 64x1x1, block (") != NULL);
}

#ifdef EMULATOR_ASAN
static void host_reads_device() {
    volatile char *p = nullptr;
    cudaMalloc(&p, 16);
    if (p[3] == 0) abort();
}
#endif

TEST(bad_accesses_are_told) {
    char all[8192];
#ifdef EMULATOR_ASAN
    CHECK(says(host_reads_device, "use-after-poison"));
#endif
    CHECK(dies(run_it<beyond_shared>, all, sizeof all));
    CHECK(says(run_it<beyond_rows>, "ldmatrix: the row's address"));
}

/* ---- memory ---- */

TEST(memory) {
    const size_t   before = emulator_outstanding();
    void          *p = nullptr, *q = nullptr;
    unsigned char *host = nullptr;
    unsigned char  x[100];
    size_t         available = 0, total = 0;
    emulator_limit_memory(1000);
    CHECK_EQ(cudaMalloc(&p, 600), cudaSuccess);
    CHECK_EQ(cudaMalloc(&q, 401), cudaErrorMemoryAllocation);
    CHECK(q == NULL);
    CHECK_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
    CHECK_EQ(cudaGetLastError(), cudaSuccess);
    CHECK_EQ(cudaMemGetInfo(&available, &total), cudaSuccess);
    CHECK_EQ(available * 10000 + total, 4001000);
    CHECK_EQ(cudaMemcpy(x, (char *)p + 500, 100, cudaMemcpyDeviceToHost), cudaSuccess);
    for (int i = 0; i < 100; i++) CHECK_EQ(x[i], 0xff);
    CHECK_EQ(cudaMemcpy(x, (char *)p + 501, 100, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    CHECK_EQ(cudaMemcpy(p, x, 100, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    CHECK_EQ(cudaMemset((char *)p + 1, 0, 600), cudaErrorInvalidValue);
    CHECK_EQ(cudaHostAlloc(&host, 100, cudaHostAllocMapped), cudaSuccess);
    CHECK_EQ(cudaHostGetDevicePointer(&q, host, 0), cudaSuccess);
    CHECK_EQ(emulator_outstanding(), before + 2);
    CHECK_EQ(emulator_device_bytes(), 600);
    CHECK_EQ(cudaFreeHost(host), cudaSuccess);
    CHECK_EQ(cudaFree(p), cudaSuccess);
    CHECK_EQ(cudaFree(p), cudaErrorInvalidValue);
    CHECK_EQ(emulator_outstanding(), before);
    emulator_reset();
}

static __global__ void nothing(int) {}

TEST(launches_are_checked) {
    int blocks = 0;
    CHECK_EQ(launch(1, 1024, 0, nullptr, nothing, 1), cudaSuccess);
    CHECK_EQ(launch(1, 1025, 0, nullptr, nothing, 1), cudaErrorInvalidConfiguration);
    CHECK_EQ(launch(0, 32, 0, nullptr, nothing, 1), cudaErrorInvalidConfiguration);
    CHECK_EQ(launch(dim3(1, 65536), 32, 0, nullptr, nothing, 1), cudaErrorInvalidConfiguration);
    CHECK_EQ(launch(1, 32, 49153, nullptr, nothing, 1), cudaErrorInvalidValue);
    CHECK_EQ(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 232449), cudaErrorInvalidValue);
    CHECK_EQ(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 232448), cudaSuccess);
    CHECK_EQ(launch(1, 32, 232448, nullptr, nothing, 1), cudaSuccess);
    CHECK_EQ(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nothing, 256, 1000), cudaSuccess);
    CHECK_EQ(blocks, 2);
    CHECK_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST(devices) {
    int            n = 0, major = 0;
    cudaDeviceProp properties = {};
    emulator_set_capability(8, 6);
    CHECK_EQ(cudaGetDeviceCount(&n), cudaSuccess);
    CHECK_EQ(n, 1);
    CHECK_EQ(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), cudaSuccess);
    CHECK_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
    CHECK_EQ(major * 10 + properties.minor, 86);
    CHECK_EQ(cudaSetDevice(1), cudaErrorInvalidDevice);
    emulator_set_devices(0);
    CHECK_EQ(cudaGetDeviceCount(&n), cudaErrorNoDevice);
    CHECK_EQ(n, 0);
    emulator_reset();
}

/* ---- streams, events, graphs ---- */

static __global__ void times_plus(int *x, int times, int plus) {
    if (threadIdx.x == 0) *x = *x * times + plus;
}

struct two_streams {
    cudaStream_t a = nullptr, b = nullptr;
    cudaEvent_t  fork = nullptr, join = nullptr;
    two_streams() {
        CHECK_EQ(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking), cudaSuccess);
        CHECK_EQ(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking), cudaSuccess);
        CHECK_EQ(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming), cudaSuccess);
        CHECK_EQ(cudaEventCreateWithFlags(&join, cudaEventDisableTiming), cudaSuccess);
    }
    two_streams(const two_streams &) = delete;
    ~two_streams() {
        CHECK_EQ(cudaEventDestroy(fork), cudaSuccess);
        CHECK_EQ(cudaEventDestroy(join), cudaSuccess);
        CHECK_EQ(cudaStreamDestroy(a), cudaSuccess);
        CHECK_EQ(cudaStreamDestroy(b), cudaSuccess);
    }
};

static void after(cudaStream_t later, cudaEvent_t event, cudaStream_t first) {
    CHECK_EQ(cudaEventRecord(event, first), cudaSuccess);
    CHECK_EQ(cudaStreamWaitEvent(later, event), cudaSuccess);
}

/* x = 3 on one stream, then x = 5 * x + 1 on another, then x = 2 * x on the first. */
static void give_work(const two_streams &s, int *x, bool events) {
    CHECK_EQ(launch(1, 32, 0, s.a, times_plus, x, 0, 3), cudaSuccess);
    if (events) after(s.b, s.fork, s.a);
    CHECK_EQ(launch(1, 32, 0, s.b, times_plus, x, 5, 1), cudaSuccess);
    if (events) after(s.a, s.join, s.b);
    CHECK_EQ(launch(1, 32, 0, s.a, times_plus, x, 2, 0), cudaSuccess);
}

TEST(a_missing_event_is_noticed) {
    const two_streams s;
    device<int>       x(1);
    int               wrong = 0, y;
    for (int seed = 1; seed <= SEEDS; seed++) {
        for (int events = 0; events < 2; events++) {
            emulator_seed((uint64_t)seed);
            give_work(s, x.p, events != 0);
            CHECK_EQ(cudaMemcpyAsync(&y, x.p, sizeof y, cudaMemcpyDeviceToHost, s.a), cudaSuccess);
            CHECK_EQ(cudaStreamSynchronize(s.a), cudaSuccess);
            if (events) CHECK_EQ(y, 32);
            else wrong += y != 32;
            CHECK_EQ(cudaDeviceSynchronize(), cudaSuccess);
        }
    }
    CHECK(wrong > 0);
}

TEST(nothing_runs_before_it_must) {
    const two_streams s;
    device<int>       x(1);
    int               y = 7, polls = 0;
    float             ms = -1;
    cudaEvent_t       from, to;
    CHECK_EQ(cudaEventCreate(&from), cudaSuccess);
    CHECK_EQ(cudaEventCreate(&to), cudaSuccess);
    CHECK_EQ(cudaEventQuery(to), cudaSuccess); /* not recorded */
    CHECK_EQ(cudaEventRecord(from, s.a), cudaSuccess);
    CHECK_EQ(cudaMemcpyAsync(x.p, &y, sizeof y, cudaMemcpyHostToDevice, s.a), cudaSuccess);
    y = 8;
    CHECK_EQ(cudaMemcpyAsync(&y, x.p, sizeof y, cudaMemcpyDeviceToHost, s.a), cudaSuccess);
    CHECK_EQ(cudaEventRecord(to, s.a), cudaSuccess);
    CHECK_EQ(cudaEventElapsedTime(&ms, from, to), cudaErrorNotReady);
    while (cudaStreamQuery(s.a) == cudaErrorNotReady) polls++;
    CHECK(polls > 0);
    CHECK_EQ(y, 8);
    CHECK_EQ(cudaEventElapsedTime(&ms, from, to), cudaSuccess);
    CHECK(ms >= 0);
    CHECK_EQ(cudaEventDestroy(from), cudaSuccess);
    CHECK_EQ(cudaEventDestroy(to), cudaSuccess);
    cudaGetLastError();
}

static void host_function(void *user) {
    int *x = (int *)user;
    x[0]++;
    x[1] = cudaDeviceSynchronize();
}

TEST(host_functions) {
    const two_streams s;
    int               x[2] = {0, 0};
    CHECK_EQ(cudaLaunchHostFunc(s.b, host_function, x), cudaSuccess);
    CHECK_EQ(x[0], 0);
    CHECK_EQ(cudaStreamSynchronize(s.b), cudaSuccess);
    CHECK_EQ(x[0], 1);
    CHECK_EQ(x[1], cudaErrorNotPermitted);
    cudaGetLastError();
}

/* The stream NULL and those that are not cudaStreamNonBlocking wait for each other. */
TEST(the_legacy_stream) {
    device<int>  x(1);
    cudaStream_t s;
    int          y;
    CHECK_EQ(cudaStreamCreate(&s), cudaSuccess);
    for (int seed = 1; seed <= SEEDS; seed++) {
        emulator_seed((uint64_t)seed);
        CHECK_EQ(launch(1, 1, 0, s, times_plus, x.p, 0, 3), cudaSuccess);
        CHECK_EQ(launch(1, 1, 0, nullptr, times_plus, x.p, 5, 1), cudaSuccess);
        CHECK_EQ(launch(1, 1, 0, s, times_plus, x.p, 2, 0), cudaSuccess);
        x.get(&y, 1);
        CHECK_EQ(y, 32);
    }
    CHECK_EQ(cudaStreamDestroy(s), cudaSuccess);
}

TEST(graphs) {
    const two_streams s;
    device<int>       x(2);
    int               in    = 10, y[2];
    size_t            n     = 0;
    cudaGraph_t       graph = nullptr;
    cudaGraphExec_t   exec  = nullptr;
    CHECK_EQ(cudaMemset(x.p, 0, 8), cudaSuccess);
    CHECK_EQ(cudaDeviceSynchronize(), cudaSuccess);
    CHECK_EQ(cudaStreamBeginCapture(s.a, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    give_work(s, x.p, true);
    CHECK_EQ(cudaMemcpyAsync(x.p + 1, &in, sizeof in, cudaMemcpyHostToDevice, s.a), cudaSuccess);
    CHECK_EQ(cudaStreamEndCapture(s.a, &graph), cudaSuccess);
    CHECK_EQ(cudaGraphGetNodes(graph, nullptr, &n), cudaSuccess);
    CHECK_EQ(n, 4);
    CHECK_EQ(cudaGraphInstantiate(&exec, graph), cudaSuccess);
    CHECK_EQ(cudaGraphDestroy(graph), cudaSuccess);
    x.get(y, 2);
    CHECK_EQ(y[0], 0); /* captured only */
    for (int i = 0; i < SEEDS; i++) {
        in = i;
        CHECK_EQ(cudaGraphLaunch(exec, s.a), cudaSuccess);
        after(s.b, s.fork, s.a);
        CHECK_EQ(launch(1, 32, 0, s.b, times_plus, x.p, 2, i), cudaSuccess);
        CHECK_EQ(cudaStreamSynchronize(s.b), cudaSuccess);
        x.get(y, 2);
        CHECK_EQ(y[0], 64 + i);
        CHECK_EQ(y[1], i);
    }
    CHECK_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

static cudaError_t end(cudaStream_t stream) {
    cudaGraph_t       graph = nullptr;
    const cudaError_t error = cudaStreamEndCapture(stream, &graph);
    if (graph) CHECK_EQ(cudaGraphDestroy(graph), cudaSuccess);
    return error;
}

TEST(captures_that_fail) {
    const two_streams s;
    int               x;
    void             *p;
    const auto begin = [&](cudaStreamCaptureMode mode) { CHECK_EQ(cudaStreamBeginCapture(s.a, mode), cudaSuccess); };
    CHECK_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeRelaxed), cudaErrorStreamCaptureUnsupported);
    CHECK_EQ(end(s.a), cudaErrorIllegalState);
    begin(cudaStreamCaptureModeRelaxed);
    CHECK_EQ(cudaStreamSynchronize(s.a), cudaErrorStreamCaptureUnsupported);
    CHECK_EQ(launch(1, 1, 0, s.a, nothing, 1), cudaErrorStreamCaptureInvalidated);
    CHECK_EQ(end(s.a), cudaErrorStreamCaptureInvalidated);
    begin(cudaStreamCaptureModeRelaxed);
    CHECK_EQ(cudaMalloc(&p, 16), cudaSuccess);
    CHECK_EQ(cudaFree(p), cudaSuccess);
    after(s.b, s.fork, s.a);
    CHECK_EQ(cudaEventSynchronize(s.fork), cudaErrorCapturedEvent);
    CHECK_EQ(end(s.a), cudaErrorStreamCaptureInvalidated);
    begin(cudaStreamCaptureModeThreadLocal);
    CHECK_EQ(cudaMalloc(&p, 16), cudaErrorStreamCaptureUnsupported);
    CHECK_EQ(end(s.a), cudaErrorStreamCaptureInvalidated);
    begin(cudaStreamCaptureModeGlobal);
    after(s.b, s.fork, s.a);
    CHECK_EQ(launch(1, 1, 0, s.b, nothing, 1), cudaSuccess);
    CHECK_EQ(end(s.b), cudaErrorStreamCaptureUnmatched);
    CHECK_EQ(end(s.a), cudaErrorStreamCaptureInvalidated);
    begin(cudaStreamCaptureModeGlobal);
    after(s.b, s.fork, s.a);
    CHECK_EQ(launch(1, 1, 0, s.b, nothing, 1), cudaSuccess);
    CHECK_EQ(end(s.a), cudaErrorStreamCaptureUnjoined);
    CHECK_EQ(cudaEventRecord(s.join, s.b), cudaSuccess);
    begin(cudaStreamCaptureModeGlobal);
    CHECK_EQ(cudaStreamWaitEvent(s.a, s.join), cudaErrorStreamCaptureIsolation);
    CHECK_EQ(end(s.a), cudaErrorStreamCaptureInvalidated);
    begin(cudaStreamCaptureModeGlobal);
    CHECK_EQ(cudaMemcpyAsync(&x, &x, 0, cudaMemcpyHostToHost, s.a), cudaSuccess);
    CHECK_EQ(end(s.a), cudaSuccess);
    CHECK_EQ(cudaDeviceSynchronize(), cudaSuccess);
    cudaGetLastError();
}

/* ---- failures ---- */

TEST(failures) {
    const two_streams s;
    void             *p = nullptr;
    int               n;
    emulator_fail_after(2, cudaErrorMemoryAllocation);
    CHECK_EQ(cudaGetDevice(&n), cudaSuccess);
    CHECK_EQ(cudaMalloc(&p, 16), cudaErrorMemoryAllocation);
    CHECK_EQ(cudaMalloc(&p, 16), cudaSuccess);
    CHECK_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
    emulator_fail_after(1, cudaErrorIllegalAddress);
    CHECK_EQ(cudaStreamSynchronize(s.a), cudaErrorIllegalAddress);
    CHECK_EQ(cudaGetDevice(&n), cudaErrorIllegalAddress);
    CHECK_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
    CHECK_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
    CHECK_EQ(cudaFree(p), cudaSuccess);
    emulator_reset();
    CHECK_EQ(cudaGetLastError(), cudaSuccess);
    CHECK_STR(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress");
    CHECK_STR(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory");
}

TEST(failures_of_kernels) {
    const two_streams s;
    int               x[2] = {0, 0};
    emulator_fail_run_after(2, cudaErrorLaunchFailure);
    CHECK_EQ(launch(1, 1, 0, s.a, nothing, 1), cudaSuccess);
    CHECK_EQ(launch(1, 1, 0, s.a, nothing, 1), cudaSuccess);
    CHECK_EQ(cudaLaunchHostFunc(s.a, host_function, x), cudaSuccess);
    CHECK_EQ(cudaStreamSynchronize(s.a), cudaErrorLaunchFailure);
    CHECK_EQ(launch(1, 1, 0, s.a, nothing, 1), cudaErrorLaunchFailure);
    CHECK_EQ(x[0], 0);
    emulator_reset();
    CHECK_EQ(launch(1, 1, 0, s.a, nothing, 1), cudaSuccess);
    CHECK_EQ(cudaStreamSynchronize(s.a), cudaSuccess);
}

int main() {
    RUN(sums);
    RUN(every_thread_once);
    RUN(a_missing_barrier_is_noticed);
    RUN(who_has_returned_is_not_waited_for);
    RUN(shuffles);
    RUN(shuffles_of_64_bits);
    RUN(parts_of_warps);
    RUN(products_of_tiles);
    RUN(loads_of_tiles);
    RUN(copies_ahead);
    RUN(functions);
    RUN(deadlocks_are_told);
    RUN(bad_accesses_are_told);
    RUN(memory);
    RUN(launches_are_checked);
    RUN(devices);
    RUN(a_missing_event_is_noticed);
    RUN(nothing_runs_before_it_must);
    RUN(host_functions);
    RUN(the_legacy_stream);
    RUN(graphs);
    RUN(captures_that_fail);
    RUN(failures);
    RUN(failures_of_kernels);
    return test_report("cuda_emulator");
}
