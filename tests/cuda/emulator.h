/* emulator.h - CUDA on the CPU, for tests on machines without a GPU: a .cu file is compiled as C++17,
 *
 *     g++ -std=c++17 -x c++ -include tests/cuda/emulator.h file.cu
 *
 * and its kernels run in this process. It is stricter than a GPU: threads run in a pseudo-random order between barriers, what
 * streams are given runs in a pseudo-random order that their dependencies allow, and as late as it can; fresh memory is NaN.
 * What a GPU would hang on, or leave undefined, ends the program with a sentence.
 *
 *     CUDA_EMULATOR_SEED   another order, default 1
 *     L3_CUDA_EMULATED     is defined, for what only a GPU's compiler understands
 *
 * Of shared memory there is the dynamic one, under one name: extern __shared__ unsigned char l3__shared[]; its kernels are in
 * no namespace. Blocks run one after the other, a thread until it waits: none may spin until another does something. */
#ifndef CUDA_EMULATOR_H
#define CUDA_EMULATOR_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define L3_CUDA_EMULATED 1

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_ASAN
#endif
#endif
#ifdef EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

/* ---- qualifiers, types ---- */

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

#define EMULATOR_VECTORS(T, name)                                              \
    struct __align__(2 * sizeof(T)) name##2 {                                  \
        T x, y;                                                                \
    };                                                                         \
    struct name##3 {                                                           \
        T x, y, z;                                                             \
    };                                                                         \
    struct __align__(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) name##4 {            \
        T x, y, z, w;                                                          \
    };                                                                         \
    inline name##2 make_##name##2(T x, T y) { return name##2 {x, y}; }         \
    inline name##3 make_##name##3(T x, T y, T z) { return name##3 {x, y, z}; } \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return name##4 {x, y, z, w}; }

EMULATOR_VECTORS(signed char, char)
EMULATOR_VECTORS(unsigned char, uchar)
EMULATOR_VECTORS(short, short)
EMULATOR_VECTORS(unsigned short, ushort)
EMULATOR_VECTORS(int, int)
EMULATOR_VECTORS(unsigned, uint)
EMULATOR_VECTORS(float, float)
EMULATOR_VECTORS(double, double)
EMULATOR_VECTORS(long long, longlong)
EMULATOR_VECTORS(unsigned long long, ulonglong)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned dx = 1, unsigned dy = 1, unsigned dz = 1) : x(dx), y(dy), z(dz) {}
    dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

inline uint3         threadIdx, blockIdx;
inline dim3          blockDim, gridDim;
inline constexpr int warpSize = 32;

enum { EMULATOR_SHARED = 232448, EMULATOR_GUARD = 4096 };

alignas(1024) inline unsigned char l3__shared[EMULATOR_SHARED + EMULATOR_GUARD];

/* ---- pseudo-random orders: splitmix64 ---- */

inline uint64_t emulator_first_seed() {
    const char *seed = getenv("CUDA_EMULATOR_SEED");
    return seed && *seed ? strtoull(seed, nullptr, 10) : 1;
}

inline uint64_t emulator_random_state = emulator_first_seed();

inline void emulator_seed(uint64_t seed) { emulator_random_state = seed; }

/* uniform in [0, n) */
inline uint32_t emulator_below(uint32_t n) {
    uint64_t z = emulator_random_state += 0x9E3779B97F4A7C15u;
    z          = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z          = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)(((z ^ (z >> 31)) >> 32) * n >> 32);
}

/* Takes any element out of a vector. */
template <class T> inline T emulator_take(std::vector<T> &from) {
    std::swap(from[emulator_below((uint32_t)from.size())], from.back());
    T taken = std::move(from.back());
    from.pop_back();
    return taken;
}

/* ---- fibers: the threads of a block, on stacks of their own ---- */

/* Where a thread is; from EMULATOR_BARRIER on, what it waits at. */
enum emulator_at {
    EMULATOR_RUNS,
    EMULATOR_RETURNED,
    EMULATOR_BARRIER,
    EMULATOR_SYNCWARP,
    EMULATOR_VOTE,
    EMULATOR_SHUFFLE, /* from here on, lanes that have returned are missed */
    EMULATOR_MMA,
    EMULATOR_LDMATRIX
};

struct emulator_async {
    void       *to;
    const void *from;
    size_t      n;
    unsigned    group;
};

struct emulator_fiber {
    void       *sp, *fake; /* fake: ASan's */
    const void *bottom;
    size_t      size;
    uint3       index;
    unsigned    id;
    emulator_at at;
    int         line;
    const char *in; /* the function of the line */
    unsigned    mask;
    void       *data; /* what a lane brings to the others */

    std::vector<emulator_async> copies;
    unsigned                    group; /* of copies to come */
};

struct emulator_launch {
    dim3                  grid, block;
    size_t                shared;
    std::function<void()> thread;
};

/* The block that runs. */
struct emulator_block {
    std::vector<std::unique_ptr<emulator_fiber>> fibers;
    std::vector<unsigned>                        ready;
    emulator_fiber                               host, *now, *to, *before;
    const emulator_launch                       *launch;
    unsigned long long                           launches;
    unsigned                                     threads, live, at_barrier;
    unsigned                                     waiting[32], returned[32]; /* of each warp; a bit per lane */
};

inline emulator_block emulator_here = {};

/* A fiber needs little where functions are optimized, more where a sanitizer pads variables. */
#ifndef EMULATOR_STACK
#ifdef EMULATOR_ASAN
#define EMULATOR_STACK (256u << 10)
#else
#define EMULATOR_STACK (64u << 10)
#endif
#endif

#if defined(__x86_64__) && defined(__ELF__) && !defined(EMULATOR_UCONTEXT)
/* Saves what a function must keep, and the stack's pointer to *from; goes on where "to" was saved. */
extern "C" void emulator_switch(void **from, void *to);
asm(".pushsection .text\n"
    ".weak emulator_switch\n"
    ".type emulator_switch, @function\n"
    "emulator_switch:\n"
    "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
    "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
    "ret\n"
    ".size emulator_switch, . - emulator_switch\n"
    ".popsection\n");

inline void *emulator_prepare(unsigned char *stack, size_t n, void (*entry)()) {
    void **top = (void **)(void *)(stack + n);
    memset(top - 9, 0, 9 * sizeof *top);
    top[-2] = (void *)entry; /* six registers below it; a return address of zero above */
    return top - 8;
}
inline void *emulator_host_sp() { return nullptr; }

#elif defined(__aarch64__) && defined(__ELF__) && !defined(EMULATOR_UCONTEXT)
extern "C" void emulator_switch(void **from, void *to);
asm(".pushsection .text\n"
    ".weak emulator_switch\n"
    ".type emulator_switch, %function\n"
    "emulator_switch:\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n stp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n"
    "stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"
    "mov x9, sp\n str x9, [x0]\n mov sp, x1\n"
    "ldp x19, x20, [sp]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n ldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n"
    "ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\n"
    "ret\n"
    ".size emulator_switch, . - emulator_switch\n"
    ".popsection\n");

inline void *emulator_prepare(unsigned char *stack, size_t n, void (*entry)()) {
    void **sp = (void **)(void *)(stack + n - 160);
    memset(sp, 0, 160);
    sp[11] = (void *)entry; /* x30 */
    return sp;
}
inline void *emulator_host_sp() { return nullptr; }

#else
#include <ucontext.h>
inline void emulator_switch(void **from, void *to) { swapcontext((ucontext_t *)*from, (ucontext_t *)to); }

inline void *emulator_host_sp() {
    static ucontext_t host;
    return &host;
}

inline void *emulator_prepare(unsigned char *stack, size_t n, void (*entry)()) {
    ucontext_t *context = new ucontext_t;
    getcontext(context);
    context->uc_stack.ss_sp   = stack;
    context->uc_stack.ss_size = n;
    context->uc_link          = nullptr;
    makecontext(context, entry, 0);
    return context;
}
#endif

/* Called on the stack of f, just come to. */
inline void emulator_arrive(emulator_fiber *f) {
#ifdef EMULATOR_ASAN
    const void *bottom;
    size_t      size;
    __sanitizer_finish_switch_fiber(f->fake, &bottom, &size);
    if (emulator_here.before == &emulator_here.host) {
        emulator_here.host.bottom = bottom;
        emulator_here.host.size   = size;
    }
#endif
    emulator_here.now = f;
    threadIdx         = f->index;
}

inline void emulator_go(emulator_fiber *to) {
    emulator_fiber *from = emulator_here.now;
    if (to == from) return;
    emulator_here.before = from;
    emulator_here.to     = to;
#ifdef EMULATOR_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->bottom, to->size);
#endif
    emulator_switch(&from->sp, to->sp);
    emulator_arrive(from);
}

/* ---- who may run ---- */

inline const char *emulator_name(emulator_at at) {
    static const char *const names[] = {"nothing", "its end",   "__syncthreads()", "__syncwarp()",
                                        "a vote",  "a shuffle", "emulated_mma",    "emulated_ldmatrix"};
    return names[at];
}

[[noreturn]] inline void emulator_stop(const char *what) {
    const emulator_block &e = emulator_here;
    fprintf(stderr, "emulated CUDA: %s", what);
    if (e.launch) {
        const dim3 g = e.launch->grid, b = e.launch->block;
        fprintf(stderr, "; kernel launch %llu, grid %ux%ux%u of blocks %ux%ux%u, block (%u, %u, %u)", e.launches, g.x,
                g.y, g.z, b.x, b.y, b.z, blockIdx.x, blockIdx.y, blockIdx.z);
    }
    fprintf(stderr, "\n");
    fflush(stderr);
    abort();
}

inline bool emulator_same_place(const emulator_fiber *a, const emulator_fiber *b) {
    return a->at == b->at && a->line == b->line && (a->at <= EMULATOR_BARRIER || a->mask == b->mask);
}

/* Threads one after the other that wait at one place are told of in a line. */
[[noreturn]] inline void emulator_deadlock() {
    const emulator_block &e = emulator_here;
    for (unsigned i = 0, end; i < e.threads; i = end) {
        const emulator_fiber *f = e.fibers[i].get();
        for (end = i + 1; end < e.threads && emulator_same_place(f, e.fibers[end].get());) end++;
        fprintf(stderr, "  threads %u to %u: %s", i, end - 1,
                f->at == EMULATOR_RETURNED ? "have returned" : "wait at ");
        if (f->at >= EMULATOR_BARRIER) fprintf(stderr, "%s in %s, line %d", emulator_name(f->at), f->in, f->line);
        if (f->at > EMULATOR_BARRIER) fprintf(stderr, ", for lanes %08x", f->mask);
        fprintf(stderr, "\n");
    }
    emulator_stop("deadlock, no thread can run");
}

inline emulator_fiber *emulator_next() {
    emulator_block &e = emulator_here;
    if (e.ready.empty() && e.live) emulator_deadlock();
    return e.ready.empty() ? &e.host : e.fibers[emulator_take(e.ready)].get();
}

inline void emulator_wake(emulator_fiber *f) {
    f->at = EMULATOR_RUNS;
    emulator_here.ready.push_back(f->id);
}

/* All that live are at one barrier: they go on. */
inline void emulator_try_barrier() {
    emulator_block       &e     = emulator_here;
    const emulator_fiber *first = nullptr;
    if (e.at_barrier != e.live || !e.live) return;
    for (unsigned i = 0; i < e.threads; i++) {
        const emulator_fiber *f = e.fibers[i].get();
        if (f->at != EMULATOR_BARRIER) continue;
        if (first && first->line != f->line) return;
        first = f;
    }
    e.at_barrier = 0;
    for (unsigned i = 0; i < e.threads; i++)
        if (e.fibers[i]->at == EMULATOR_BARRIER) emulator_wake(e.fibers[i].get());
}

/* Does the work of all lanes when the last one has come: lanes[i] is what lane i has brought, NULL if it is not in the mask. */
typedef void (*emulator_meeting)(void *const *lanes);

inline bool emulator_try_warp(emulator_fiber *f, emulator_meeting meeting) {
    emulator_block &e = emulator_here;
    const unsigned  w = f->id / 32, need = f->at < EMULATOR_SHUFFLE ? f->mask & ~e.returned[w] : f->mask;
    void           *lanes[32] = {};
    if ((e.waiting[w] & need) != need) return false;
    for (unsigned i = 0; i < 32; i++) {
        if (!(need >> i & 1)) continue;
        if (!emulator_same_place(e.fibers[32 * w + i].get(), f)) return false;
        lanes[i] = e.fibers[32 * w + i]->data;
    }
    meeting(lanes);
    e.waiting[w] &= ~need;
    for (unsigned i = 0; i < 32; i++)
        if (need >> i & 1) emulator_wake(e.fibers[32 * w + i].get());
    return true;
}

struct emulator_nothing {
    static void meet(void *const *) {}
};

/* What a lane brings has the function that does the work as its first member. */
struct emulator_lane {
    emulator_meeting meeting;
};

inline void emulator_wait_here(emulator_at at, int line, const char *in) {
    emulator_fiber *f = emulator_here.now;
    if (!f || f == &emulator_here.host) emulator_stop("a function of the device is called on the host");
    f->at   = at;
    f->line = line;
    f->in   = in;
}

inline void emulator_meet(emulator_at at, unsigned mask, emulator_lane *lane, int line, const char *in) {
    emulator_wait_here(at, line, in);
    emulator_fiber *f = emulator_here.now;
    f->mask           = mask;
    f->data           = lane;
    if (!(mask >> f->id % 32 & 1)) emulator_stop("a lane is not in the mask that it gives");
    emulator_here.waiting[f->id / 32] |= 1u << f->id % 32;
    emulator_try_warp(f, lane->meeting);
    emulator_go(emulator_next());
}

/* Votes, __syncwarp() and __syncthreads() do not wait for who has returned. */
inline void emulator_return() {
    emulator_block &e = emulator_here;
    const unsigned  w = e.now->id / 32;
    e.now->at         = EMULATOR_RETURNED;
    e.now->line       = 0;
    if (!e.now->copies.empty()) emulator_stop("a thread returns before its cp.async has been waited for");
    e.live--;
    e.returned[w] |= 1u << e.now->id % 32;
    emulator_try_barrier();
    for (unsigned i = 32 * w; i < 32 * w + 32 && i < e.threads; i++) {
        emulator_fiber *f = e.fibers[i].get();
        if (f->at == EMULATOR_SYNCWARP || f->at == EMULATOR_VOTE)
            emulator_try_warp(f, ((emulator_lane *)f->data)->meeting);
    }
    emulator_go(emulator_next());
}

inline void emulator_fiber_main() {
    emulator_arrive(emulator_here.to);
    for (;;) {
        emulator_here.launch->thread();
        emulator_return();
    }
}

/* The pages below a stack are not there, so that one too small is a fault; tops differ, so that caches keep more of them. */
inline emulator_fiber *emulator_new_fiber(unsigned id) {
    const size_t none = 65536, top = id * 448 % 16384, n = EMULATOR_STACK;
    void        *at = mmap(nullptr, none + n + top, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || mprotect(at, none, PROT_NONE)) emulator_stop("no memory for stacks");
    unsigned char  *stack = (unsigned char *)at + none;
    emulator_fiber *f     = new emulator_fiber();
    f->id                 = id;
    f->bottom             = stack;
    f->size               = n + top;
    f->sp                 = emulator_prepare(stack, f->size, emulator_fiber_main);
    return f;
}

/* ---- a launch ---- */

enum { EMULATOR_GUARD_BYTE = 0xA5 };

inline void emulator_shared_begin(size_t n) {
#ifdef EMULATOR_ASAN
    __asan_unpoison_memory_region(l3__shared, sizeof l3__shared);
    __asan_poison_memory_region(l3__shared + n, sizeof l3__shared - n);
#else
    memset(l3__shared + n, EMULATOR_GUARD_BYTE, EMULATOR_GUARD);
#endif
    memset(l3__shared, 0xff, n);
}

inline void emulator_shared_end(size_t n) {
#ifdef EMULATOR_ASAN
    (void)n;
#else
    for (size_t i = 0; i < EMULATOR_GUARD; i++)
        if (l3__shared[n + i] != EMULATOR_GUARD_BYTE) emulator_stop("shared memory is written beyond its end");
#endif
}

inline void emulator_run_block() {
    emulator_block &e = emulator_here;
    const dim3      d = blockDim;
    e.threads = e.live = d.x * d.y * d.z;
    e.at_barrier       = 0;
    e.ready.clear();
    memset(e.waiting, 0, sizeof e.waiting);
    memset(e.returned, 0, sizeof e.returned);
    if (e.threads % 32) e.returned[e.threads / 32] = ~0u << e.threads % 32;
    for (unsigned i = 0; i < e.threads; i++) {
        if (i == e.fibers.size()) e.fibers.emplace_back(emulator_new_fiber(i));
        e.fibers[i]->index = uint3{i % d.x, i / d.x % d.y, i / d.x / d.y};
        emulator_wake(e.fibers[i].get());
    }
    emulator_shared_begin(e.launch->shared);
    emulator_go(emulator_next());
    emulator_shared_end(e.launch->shared);
}

/* Blocks run in an order of its own: from any one on, in steps that meet all. */
inline void emulator_run_grid(const emulator_launch &launch) {
    emulator_block &e = emulator_here;
    const dim3      g = gridDim = launch.grid;
    const uint64_t  n           = (uint64_t)g.x * g.y * g.z;
    uint64_t        at = emulator_below((uint32_t)n), step = 0;
    blockDim = launch.block;
    while (std::gcd(step, n) != 1) step = 1 + emulator_below((uint32_t)n);
    e.launch = &launch;
    e.now    = &e.host;
    e.launches++;
    if (!e.host.sp) e.host.sp = emulator_host_sp();
    for (uint64_t i = 0; i < n; i++, at = (at + step) % n) {
        blockIdx = uint3{(unsigned)(at % g.x), (unsigned)(at / g.x % g.y), (unsigned)(at / g.x / g.y)};
        emulator_run_block();
    }
    e.launch = nullptr;
}

/* ---- what kernels call: barriers, shuffles, votes ---- */

#define EMULATOR_PLACE int line = __builtin_LINE(), const char *in = __builtin_FUNCTION()

inline void __syncthreads(EMULATOR_PLACE) {
    emulator_wait_here(EMULATOR_BARRIER, line, in);
    emulator_here.at_barrier++;
    emulator_try_barrier();
    emulator_go(emulator_next());
}

inline void __syncwarp(unsigned mask = ~0u, EMULATOR_PLACE) {
    emulator_lane lane = {emulator_nothing::meet};
    emulator_meet(EMULATOR_SYNCWARP, mask, &lane, line, in);
}

struct emulator_shuffle : emulator_lane {
    uint64_t value, result;
    int      source;
    /* From a lane that is not there comes what nobody can use. */
    static void meet(void *const *lanes) {
        for (int i = 0; i < 32; i++) {
            emulator_shuffle *to = (emulator_shuffle *)lanes[i];
            if (!to) continue;
            const emulator_shuffle *from = (const emulator_shuffle *)lanes[to->source];
            to->result                   = from ? from->value : ~(uint64_t)0;
        }
    }
};

inline int emulator_lane_id() { return (int)(emulator_here.now->id % 32); }

template <class T> inline T emulator_from(unsigned mask, T value, int source, int line, const char *in) {
    static_assert(std::is_arithmetic<T>::value && sizeof(T) <= 8, "not a number");
    emulator_shuffle lane;
    lane.meeting = emulator_shuffle::meet;
    lane.value   = 0;
    lane.source  = source;
    memcpy(&lane.value, &value, sizeof value);
    emulator_meet(EMULATOR_SHUFFLE, mask, &lane, line, in);
    memcpy(&value, &lane.result, sizeof value);
    return value;
}

template <class T> inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_PLACE) {
    const int first = emulator_lane_id() & ~(width - 1);
    return emulator_from(mask, value, first | (source & (width - 1)), line, in);
}

template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATOR_PLACE) {
    const int lane = emulator_lane_id(), source = lane ^ bits;
    return emulator_from(mask, value, source > (lane | (width - 1)) ? lane : source, line, in);
}

template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_PLACE) {
    const int lane = emulator_lane_id(), source = lane - (int)delta;
    return emulator_from(mask, value, source < (lane & ~(width - 1)) ? lane : source, line, in);
}

template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_PLACE) {
    const int lane = emulator_lane_id(), source = lane + (int)delta;
    return emulator_from(mask, value, source > (lane | (width - 1)) ? lane : source, line, in);
}

struct emulator_vote : emulator_lane {
    bool        yes;
    unsigned    votes;
    static void meet(void *const *lanes) {
        unsigned votes = 0;
        for (int i = 0; i < 32; i++)
            if (lanes[i] && ((const emulator_vote *)lanes[i])->yes) votes |= 1u << i;
        for (int i = 0; i < 32; i++)
            if (lanes[i]) ((emulator_vote *)lanes[i])->votes = votes;
    }
};

inline unsigned __ballot_sync(unsigned mask, int yes, EMULATOR_PLACE) {
    emulator_vote lane;
    lane.meeting = emulator_vote::meet;
    lane.yes     = yes != 0;
    emulator_meet(EMULATOR_VOTE, mask, &lane, line, in);
    return lane.votes;
}

inline int __any_sync(unsigned mask, int yes, EMULATOR_PLACE) { return __ballot_sync(mask, yes, line, in) != 0; }
inline int __all_sync(unsigned mask, int yes, EMULATOR_PLACE) { return __ballot_sync(mask, !yes, line, in) == 0; }

/* One thread runs at a time. */
template <class T, class F> inline T emulator_atomic(T *at, F change) {
    const T old = *at;
    *at         = (T)change(old);
    return old;
}

#define EMULATOR_ATOMICS(T)                                         \
    inline T atomicExch(T *at, T x) {                               \
        return emulator_atomic(at, [=](T) { return x; });           \
    }                                                               \
    inline T atomicAdd(T *at, T x) {                                \
        return emulator_atomic(at, [=](T old) { return old + x; }); \
    }
#define EMULATOR_INTEGER_ATOMICS(T)                                                   \
    EMULATOR_ATOMICS(T)                                                               \
    inline T atomicMax(T *at, T x) {                                                  \
        return emulator_atomic(at, [=](T old) { return old > x ? old : x; });         \
    }                                                                                 \
    inline T atomicMin(T *at, T x) {                                                  \
        return emulator_atomic(at, [=](T old) { return old < x ? old : x; });         \
    }                                                                                 \
    inline T atomicOr(T *at, T x) {                                                   \
        return emulator_atomic(at, [=](T old) { return old | x; });                   \
    }                                                                                 \
    inline T atomicAnd(T *at, T x) {                                                  \
        return emulator_atomic(at, [=](T old) { return old & x; });                   \
    }                                                                                 \
    inline T atomicCAS(T *at, T expected, T x) {                                      \
        return emulator_atomic(at, [=](T old) { return old == expected ? x : old; }); \
    }

EMULATOR_ATOMICS(float)
EMULATOR_ATOMICS(double)
EMULATOR_INTEGER_ATOMICS(int)
EMULATOR_INTEGER_ATOMICS(unsigned)
EMULATOR_INTEGER_ATOMICS(unsigned long long)

inline unsigned atomicInc(unsigned *at, unsigned last) {
    return emulator_atomic(at, [=](unsigned old) { return old >= last ? 0 : old + 1; });
}

inline void              __threadfence() {}
inline void              __threadfence_block() {}
inline void              __threadfence_system() {}
inline void              cudaGridDependencySynchronize() {}
inline void              cudaTriggerProgrammaticLaunchCompletion() {}
[[noreturn]] inline void __trap() { emulator_stop("__trap() is called"); }

/* ---- what kernels call: arithmetic ---- */

template <class T> inline T    __ldg(const T *p) { return *p; }
template <class T> inline T    __ldcs(const T *p) { return *p; }
template <class T> inline T    __ldcg(const T *p) { return *p; }
template <class T> inline T    __ldca(const T *p) { return *p; }
template <class T> inline void __stcs(T *p, T x) { *p = x; }
template <class T> inline void __stcg(T *p, T x) { *p = x; }

template <class To, class From> inline To emulator_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "of another size");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}

inline unsigned  __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
inline int       __float_as_int(float x) { return emulator_bits<int>(x); }
inline float     __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
inline float     __int_as_float(int x) { return emulator_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
inline double    __longlong_as_double(long long x) { return emulator_bits<double>(x); }

/* A result that is rounded: the compiler does not fuse it with what follows. */
inline float emulator_rounded(float x) {
#if defined(__x86_64__)
    asm("" : "+x"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#else
    asm("" : "+m"(x));
#endif
    return x;
}

inline float __fmul_rn(float a, float b) { return emulator_rounded(a * b); }
inline float __fadd_rn(float a, float b) { return emulator_rounded(emulator_rounded(a) + b); }
inline float __fsub_rn(float a, float b) { return emulator_rounded(emulator_rounded(a) - b); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1 : 0; }
inline int   __float2int_rn(float x) { return (int)lrintf(x); }
inline int   __float2int_rz(float x) { return (int)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }

/* The C library has functions of these names, or will. */
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define rsqrtf(x) __frsqrt_rn(x)

inline int      __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int      __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int      __popc(unsigned x) { return __builtin_popcount(x); }
inline int      __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int      __ffs(int x) { return __builtin_ffs(x); }
inline int      __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }

inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y = y << 1 | (x >> i & 1);
    return y;
}

inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    const uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned       z     = 0;
    for (int i = 0; i < 4; i++) z |= (unsigned)(bytes >> 8 * (s >> 4 * i & 7) & 0xff) << 8 * i;
    return z;
}

inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (n & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
    return (unsigned)(((uint64_t)high << 32 | low) << (n & 31) >> 32);
}

inline int __dp4a(int a, int b, int c) {
    unsigned sum = (unsigned)c;
    for (int i = 0; i < 32; i += 8) sum += (unsigned)((int8_t)((unsigned)a >> i) * (int8_t)((unsigned)b >> i));
    return (int)sum;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 32; i += 8) c += (a >> i & 0xff) * (b >> i & 0xff);
    return c;
}

/* Of an int and an unsigned, both are unsigned. */
#define EMULATOR_MIN_MAX(T, A, B)                                \
    inline T min(A a, B b) { return (T)a < (T)b ? (T)a : (T)b; } \
    inline T max(A a, B b) { return (T)a > (T)b ? (T)a : (T)b; }
#define EMULATOR_MIN_MAX_OF(S, U) \
    EMULATOR_MIN_MAX(S, S, S)     \
    EMULATOR_MIN_MAX(U, U, U)     \
    EMULATOR_MIN_MAX(U, S, U)     \
    EMULATOR_MIN_MAX(U, U, S)

EMULATOR_MIN_MAX_OF(int, unsigned)
EMULATOR_MIN_MAX_OF(long, unsigned long)
EMULATOR_MIN_MAX_OF(long long, unsigned long long)
inline float  min(float a, float b) { return fminf(a, b); }
inline float  max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin((double)a, b); }
inline double max(float a, double b) { return fmax((double)a, b); }
inline double min(double a, float b) { return fmin(a, (double)b); }
inline double max(double a, float b) { return fmax(a, (double)b); }

/* ---- tensor cores: mma.sync, ldmatrix; layouts of the PTX ISA ---- */

inline float emulator_half(uint32_t bits, bool bf16) {
    const uint32_t sign = (bits & 0x8000) << 16, rest = bits & 0x7fff;
    if (bf16) return __uint_as_float(bits << 16);
    if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}

/* Lane 4 * group + member has, of registers with two halves each: of A the rows group (registers 0 and 2) and group + 8, the
 * columns 2 * member and 2 * member + 8 (2 and 3) and the next ones; of B, the other way round, rows 2 * member and
 * 2 * member + 8 of column group; of C and D the columns 2 * member and the next of rows group (0, 1) and group + 8. */
struct emulator_mma : emulator_lane {
    float          *c;
    const uint32_t *a, *b;
    bool            bf16;
    static void     load(void *const *lanes, float (*a)[16], float (*b)[8]) {
            for (int lane = 0; lane < 32; lane++) {
                const emulator_mma *m     = (const emulator_mma *)lanes[lane];
                const int           group = lane / 4, k = lane % 4 * 2;
                for (int i = 0; i < 8; i++)
                a[group + i / 2 % 2 * 8][k + i % 2 + i / 4 * 8] =
                    emulator_half(m->a[i / 2] >> i % 2 * 16 & 0xffff, m->bf16);
            for (int i = 0; i < 4; i++)
                b[k + i % 2 + i / 2 * 8][group] = emulator_half(m->b[i / 2] >> i % 2 * 16 & 0xffff, m->bf16);
        }
    }
    static void meet(void *const *lanes) {
        float a[16][16], b[16][8], c[16][8] = {};
        load(lanes, a, b);
        for (int i = 0; i < 16; i++)
            for (int k = 0; k < 16; k++)
                for (int j = 0; j < 8; j++) c[i][j] += a[i][k] * b[k][j];
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++)
                ((emulator_mma *)lanes[lane])->c[i] += c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
};

/* mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32, or .bf16: c += a * b */
inline void emulated_mma_m16n8k16(float c[4], const uint32_t a[4], const uint32_t b[2], bool bf16, EMULATOR_PLACE) {
    emulator_mma lane;
    lane.meeting = emulator_mma::meet;
    lane.c       = c;
    lane.a       = a;
    lane.b       = b;
    lane.bf16    = bf16;
    emulator_meet(EMULATOR_MMA, ~0u, &lane, line, in);
}

/* Lanes 0 ... 7 have the addresses of the rows of the first matrix, 8 ... 15 of the second, and so on. Lane 4 * i + j gets the
 * elements 2 * j and 2 * j + 1 of row i, or, transposed, of column i. */
struct emulator_ldmatrix : emulator_lane {
    uint32_t       *r;
    const void     *row;
    bool            transposed;
    static uint32_t element(void *const *lanes, int matrix, int row, int column) {
        uint16_t x;
        memcpy(&x, (const char *)((const emulator_ldmatrix *)lanes[8 * matrix + row])->row + 2 * column, sizeof x);
        return x;
    }
    static void meet(void *const *lanes) {
        for (int lane = 0; lane < 32; lane++) {
            emulator_ldmatrix *to = (emulator_ldmatrix *)lanes[lane];
            const int          i = lane / 4, j = lane % 4 * 2;
            for (int m = 0; m < 4; m++) {
                const uint32_t low  = to->transposed ? element(lanes, m, j, i) : element(lanes, m, i, j);
                const uint32_t high = to->transposed ? element(lanes, m, j + 1, i) : element(lanes, m, i, j + 1);
                to->r[m]            = high << 16 | low;
            }
        }
    }
};

inline void emulator_load_matrices(uint32_t *r, const void *row, bool transposed, int line, const char *in) {
    const uintptr_t   at = (uintptr_t)row - (uintptr_t)l3__shared;
    emulator_ldmatrix lane;
    lane.meeting    = emulator_ldmatrix::meet;
    lane.r          = r;
    lane.row        = row;
    lane.transposed = transposed;
    if (at % 16) emulator_stop("ldmatrix: the row's address is not a multiple of 16");
    if (at >= EMULATOR_SHARED) emulator_stop("ldmatrix: the row is not in shared memory");
    emulator_meet(EMULATOR_LDMATRIX, ~0u, &lane, line, in);
}

/* ldmatrix.sync.aligned.m8n8.x4.shared.b16, and with .trans */
inline void emulated_ldmatrix_x4(uint32_t r[4], const void *row, EMULATOR_PLACE) {
    emulator_load_matrices(r, row, false, line, in);
}
inline void emulated_ldmatrix_x4_trans(uint32_t r[4], const void *row, EMULATOR_PLACE) {
    emulator_load_matrices(r, row, true, line, in);
}

/* ---- cp.async: copies that are done when the thread waits for their group, no sooner ---- */

/* Of size bytes the first n are copied, the others are zero. */
inline void emulated_cp_async(void *shared, const void *global, size_t size, size_t n) {
    const uintptr_t at = (uintptr_t)shared - (uintptr_t)l3__shared;
    if ((size != 4 && size != 8 && size != 16) || n > size) emulator_stop("cp.async: the size");
    if ((uintptr_t)shared % size || (uintptr_t)global % size) emulator_stop("cp.async: an address is not aligned");
    if (at + size > EMULATOR_SHARED) emulator_stop("cp.async: the destination is not in shared memory");
    memset(shared, 0xff, size);
    memset((char *)shared + n, 0, size - n);
    emulator_here.now->copies.push_back({shared, global, n, emulator_here.now->group});
}

inline void emulated_cp_async_commit() { emulator_here.now->group++; }

/* All but the last n groups are there, for this thread. */
inline void emulated_cp_async_wait(unsigned n) {
    std::vector<emulator_async> &copies = emulator_here.now->copies;
    const unsigned               end    = emulator_here.now->group;
    size_t                       done   = 0;
    for (; done < copies.size() && copies[done].group + n < end; done++)
        memcpy(copies[done].to, copies[done].from, copies[done].n);
    copies.erase(copies.begin(), copies.begin() + (ptrdiff_t)done);
}

/* ---- the runtime: errors ---- */

#define EMULATOR_ERRORS(X)                                                              \
    X(cudaSuccess, 0, "no error")                                                       \
    X(cudaErrorInvalidValue, 1, "invalid argument")                                     \
    X(cudaErrorMemoryAllocation, 2, "out of memory")                                    \
    X(cudaErrorInitializationError, 3, "initialization error")                          \
    X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")               \
    X(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient")           \
    X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                    \
    X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                     \
    X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                            \
    X(cudaErrorNoKernelImageForDevice, 209, "no kernel image for the device")           \
    X(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                   \
    X(cudaErrorIllegalState, 401, "the operation cannot be performed in this state")    \
    X(cudaErrorNotReady, 600, "device not ready")                                       \
    X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")         \
    X(cudaErrorLaunchOutOfResources, 701, "too many resources requested for launch")    \
    X(cudaErrorLaunchTimeout, 702, "the launch timed out and was terminated")           \
    X(cudaErrorHostMemoryAlreadyRegistered, 712, "host memory is already registered")   \
    X(cudaErrorHostMemoryNotRegistered, 713, "host memory is not registered")           \
    X(cudaErrorMisalignedAddress, 716, "misaligned address")                            \
    X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                        \
    X(cudaErrorNotPermitted, 800, "operation not permitted")                            \
    X(cudaErrorNotSupported, 801, "operation not supported")                            \
    X(cudaErrorStreamCaptureUnsupported, 900, "not permitted when stream is capturing") \
    X(cudaErrorStreamCaptureInvalidated, 901, "the capture was invalidated")            \
    X(cudaErrorStreamCaptureMerge, 902, "captures would be merged")                     \
    X(cudaErrorStreamCaptureUnmatched, 903, "the capture was not begun here")           \
    X(cudaErrorStreamCaptureUnjoined, 904, "the capture has work that was not joined")  \
    X(cudaErrorStreamCaptureIsolation, 905, "a dependency on work not captured")        \
    X(cudaErrorStreamCaptureImplicit, 906, "an implicit dependency of a capture")       \
    X(cudaErrorCapturedEvent, 907, "the event was last recorded in a capture")          \
    X(cudaErrorUnknown, 999, "unknown error")

#define EMULATOR_ENUMERATOR(name, number, text) name = number,
typedef enum cudaError { EMULATOR_ERRORS(EMULATOR_ENUMERATOR) } cudaError_t;
#undef EMULATOR_ENUMERATOR

inline const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define EMULATOR_CASE(name, number, text) \
    case name: return #name;
        EMULATOR_ERRORS(EMULATOR_CASE)
#undef EMULATOR_CASE
    }
    return "unrecognized error code";
}

inline const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
#define EMULATOR_CASE(name, number, text) \
    case name: return text;
        EMULATOR_ERRORS(EMULATOR_CASE)
#undef EMULATOR_CASE
    }
    return "unrecognized error code";
}

/* After these a context is of no use any more. */
inline bool emulator_sticky(cudaError_t error) {
    return error == cudaErrorIllegalAddress || error == cudaErrorLaunchTimeout || error == cudaErrorMisalignedAddress ||
           error == cudaErrorLaunchFailure;
}

/* ---- the runtime: its state ---- */

/* An operation that was given to a stream. It runs when "waits", of those before it, is zero. */
struct emulator_node {
    std::shared_ptr<std::function<void()>>      run; /* none: a mere point in a stream */
    bool                                        host, done;
    unsigned                                    waits;
    std::vector<std::shared_ptr<emulator_node>> next;
    std::chrono::steady_clock::time_point       when; /* it was done */
};
typedef std::shared_ptr<emulator_node> emulator_point;

struct emulator_recorded {
    std::shared_ptr<std::function<void()>> run;
    bool                                   host;
    std::vector<size_t>                    after; /* nodes of the graph before it */
};

struct CUgraph_st {
    std::vector<emulator_recorded> nodes;
};
struct CUgraphExec_st {
    std::vector<emulator_recorded> nodes;
    emulator_point                 last; /* launches of one graph do not overlap */
};
struct CUgraphNode_st;

enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};

struct emulator_capture {
    CUgraph_st            graph;
    cudaStreamCaptureMode mode;
    struct CUstream_st   *origin;
    bool                  invalid, ended;
};

struct CUstream_st {
    std::vector<emulator_point>       tail; /* what the next operation waits for */
    bool                              blocking;
    std::shared_ptr<emulator_capture> capture;
    std::vector<size_t>               ends; /* "tail" in the graph of the capture */
};

struct CUevent_st {
    emulator_point                    point; /* none: never recorded */
    bool                              timing;
    std::shared_ptr<emulator_capture> capture;
    std::vector<size_t>               ends;
};

typedef struct CUstream_st    *cudaStream_t;
typedef struct CUevent_st     *cudaEvent_t;
typedef struct CUgraph_st     *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;
typedef struct CUgraphNode_st *cudaGraphNode_t;
typedef void (*cudaHostFn_t)(void *user);

struct emulator_runtime {
    int         devices = 1, device = 0, major = 9, minor = 0, processors = 4;
    size_t      limit  = (size_t)16 << 30;
    cudaError_t sticky = cudaSuccess, fail = cudaSuccess, fail_run = cudaSuccess;
    uint64_t    calls = 0, fail_at = 0, runs = 0, fail_run_at = 0; /* calls, runs: how many there were */
    bool        in_host_function = false, accessible = false;

    CUstream_st                  legacy = {{}, true, nullptr, {}};
    std::set<cudaStream_t>       streams;
    std::set<cudaEvent_t>        events;
    std::set<cudaGraph_t>        graphs;
    std::set<cudaGraphExec_t>    execs;
    std::vector<emulator_point>  runnable;
    std::map<uintptr_t, size_t>  device_memory, host_memory, registered;
    size_t                       used = 0;
    std::map<void (*)(), size_t> shared_limits;
    std::recursive_mutex         mutex;
};

inline emulator_runtime         emulator;
inline thread_local cudaError_t emulator_last_error = cudaSuccess;

/* ---- for tests ---- */

/* The n-th call from now on (1: the next) fails; those that free, or tell errors, are not counted. After an error such as
 * cudaErrorIllegalAddress all others fail, until emulator_reset(). */
inline void emulator_fail_after(uint64_t n, cudaError_t error) {
    emulator.fail_at = emulator.calls + n;
    emulator.fail    = error;
}

/* The n-th kernel, copy, ... from now on fails where it runs, which the next call that waits tells. */
inline void emulator_fail_run_after(uint64_t n, cudaError_t error) {
    emulator.fail_run_at = emulator.runs + n;
    emulator.fail_run    = error;
}

inline uint64_t emulator_calls() { return emulator.calls; }
inline uint64_t emulator_runs() { return emulator.runs; }
inline void     emulator_limit_memory(size_t bytes) { emulator.limit = bytes; }
inline void     emulator_set_devices(int n) { emulator.devices = n; }
inline void     emulator_set_processors(int n) { emulator.processors = n; }
inline void     emulator_set_capability(int major, int minor) {
        emulator.major = major;
        emulator.minor = minor;
}

/* What was made and not yet freed. */
inline size_t emulator_device_blocks() { return emulator.device_memory.size(); }
inline size_t emulator_device_bytes() { return emulator.used; }
inline size_t emulator_host_blocks() { return emulator.host_memory.size() + emulator.registered.size(); }
inline size_t emulator_objects() {
    return emulator.streams.size() + emulator.events.size() + emulator.graphs.size() + emulator.execs.size();
}
inline size_t emulator_outstanding() { return emulator_device_blocks() + emulator_host_blocks() + emulator_objects(); }

inline void emulator_end_capture(const std::shared_ptr<emulator_capture> &capture);

/* As at first: no errors, no limits, nothing pending. What was made stays. */
inline void emulator_reset() {
    emulator_runtime &e = emulator;
    emulator_set_devices(1);
    emulator_set_processors(4);
    emulator_set_capability(9, 0);
    e.device = 0;
    e.limit  = (size_t)16 << 30;
    e.sticky = emulator_last_error = cudaSuccess;
    e.fail_at = e.fail_run_at = 0;
    e.runnable.clear();
    e.legacy.tail.clear();
    for (cudaStream_t s : e.streams) {
        s->tail.clear();
        if (s->capture) emulator_end_capture(s->capture);
    }
    for (cudaEvent_t event : e.events) event->point = nullptr;
    for (cudaGraphExec_t exec : e.execs) exec->last = nullptr;
}

/* ---- what a call begins and ends with ---- */

/* The error that a call has before it does anything. */
inline cudaError_t emulator_refusal() {
    emulator_runtime &e = emulator;
    e.calls++;
    if (e.in_host_function) return cudaErrorNotPermitted;
    if (e.sticky) return e.sticky;
    if (e.devices == 0) return cudaErrorNoDevice;
    if (e.calls != e.fail_at) return cudaSuccess;
    if (emulator_sticky(e.fail)) e.sticky = e.fail;
    return e.fail;
}

inline cudaError_t emulator_ended(cudaError_t error) {
    if (error) emulator_last_error = error;
    return error;
}

template <class F> inline cudaError_t emulator_call(F body) {
    std::lock_guard<std::recursive_mutex> lock(emulator.mutex);
    const cudaError_t                     error = emulator_refusal();
    return emulator_ended(error ? error : body());
}

/* One that frees: it works after errors too. */
template <class F> inline cudaError_t emulator_release(F body) {
    std::lock_guard<std::recursive_mutex> lock(emulator.mutex);
    return emulator_ended(emulator.in_host_function ? cudaErrorNotPermitted : body());
}

inline cudaError_t cudaPeekAtLastError() { return emulator.sticky ? emulator.sticky : emulator_last_error; }
inline cudaError_t cudaGetLastError() {
    const cudaError_t error = cudaPeekAtLastError();
    emulator_last_error     = cudaSuccess;
    return error;
}

/* ---- what is pending runs ---- */

/* The device's memory is the host's only where ASan does not run. */
inline void emulator_open(bool open) {
#ifdef EMULATOR_ASAN
    if (open == emulator.accessible) return;
    for (auto &block : emulator.device_memory) {
        if (open) __asan_unpoison_memory_region((void *)block.first, block.second);
        else __asan_poison_memory_region((void *)block.first, block.second);
    }
#endif
    emulator.accessible = open;
}

inline emulator_point emulator_any_node() {
    if (emulator.runnable.empty()) emulator_stop("what is waited for was dropped by emulator_reset()");
    return emulator_take(emulator.runnable);
}

inline void emulator_run_node(const emulator_point &node) {
    emulator_runtime &e = emulator;
    if (node->run && !e.sticky && ++e.runs == e.fail_run_at) e.sticky = e.fail_run;
    if (node->run && !e.sticky) {
        emulator_open(!node->host);
        e.in_host_function = node->host;
        (*node->run)();
        e.in_host_function = false;
    }
    node->done = true;
    node->when = std::chrono::steady_clock::now();
    for (const emulator_point &next : node->next)
        if (--next->waits == 0) e.runnable.push_back(next);
    node->next.clear();
    node->run = nullptr;
}

/* Runs any nodes until this one, or all of these, are done. */
inline void emulator_run_until(const std::vector<emulator_point> &points) {
    for (const emulator_point &point : points)
        while (!point->done) emulator_run_node(emulator_any_node());
    emulator_open(false);
}

inline void emulator_run_all() {
    while (!emulator.runnable.empty()) emulator_run_node(emulator_take(emulator.runnable));
    emulator_open(false);
}

/* Time passes: one node runs. */
inline bool emulator_poll(const std::vector<emulator_point> &points) {
    if (!emulator.runnable.empty()) emulator_run_node(emulator_take(emulator.runnable));
    emulator_open(false);
    return std::all_of(points.begin(), points.end(), [](const emulator_point &p) { return p->done; });
}

inline emulator_point emulator_add(const std::vector<emulator_point> &after, const emulator_recorded &what) {
    emulator_point node = std::make_shared<emulator_node>();
    node->run           = what.run;
    node->host          = what.host;
    for (const emulator_point &point : after) {
        if (point->done) continue;
        point->next.push_back(node);
        node->waits++;
    }
    if (!node->waits) emulator.runnable.push_back(node);
    return node;
}

/* ---- streams ---- */

#define cudaStreamLegacy ((cudaStream_t)0x1)

enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };

inline cudaStream_t emulator_stream(cudaStream_t stream) {
    if (stream == nullptr || stream == cudaStreamLegacy) return &emulator.legacy;
    if (!emulator.streams.count(stream)) emulator_stop("a stream that does not exist is used");
    return stream;
}

inline cudaError_t emulator_invalidate(const std::shared_ptr<emulator_capture> &capture, cudaError_t error) {
    capture->invalid = true;
    return error;
}

/* Captures forbid calls that wait, or might: relaxed ones only some of these. */
inline cudaError_t emulator_unsafe(bool even_relaxed = false) {
    cudaError_t error = cudaSuccess;
    for (cudaStream_t s : emulator.streams)
        if (s->capture && (even_relaxed || s->capture->mode != cudaStreamCaptureModeRelaxed))
            error = emulator_invalidate(s->capture, cudaErrorStreamCaptureUnsupported);
    return error;
}

/* What is given to the legacy stream would wait for the captures of blocking ones. */
inline cudaError_t emulator_legacy_use() {
    cudaError_t error = cudaSuccess;
    for (cudaStream_t s : emulator.streams)
        if (s->capture && s->blocking) error = emulator_invalidate(s->capture, cudaErrorStreamCaptureImplicit);
    return error;
}

/* The legacy stream and the blocking ones wait for each other. */
inline std::vector<emulator_point> emulator_before(cudaStream_t s) {
    std::vector<emulator_point> before = s->tail;
    if (s == &emulator.legacy) {
        for (cudaStream_t other : emulator.streams)
            if (other->blocking) before.insert(before.end(), other->tail.begin(), other->tail.end());
    } else if (s->blocking) {
        before.insert(before.end(), emulator.legacy.tail.begin(), emulator.legacy.tail.end());
    }
    return before;
}

inline cudaError_t emulator_record(cudaStream_t s, const emulator_recorded &what) {
    emulator_capture &c = *s->capture;
    if (c.invalid) return cudaErrorStreamCaptureInvalidated;
    c.graph.nodes.push_back({what.run, what.host, s->ends});
    s->ends = {c.graph.nodes.size() - 1};
    return cudaSuccess;
}

inline cudaError_t emulator_give(cudaStream_t stream, bool host, std::function<void()> run) {
    const emulator_recorded what = {std::make_shared<std::function<void()>>(std::move(run)), host, {}};
    cudaStream_t            s    = emulator_stream(stream);
    if (s->capture) return emulator_record(s, what);
    if (s == &emulator.legacy)
        if (cudaError_t error = emulator_legacy_use()) return error;
    s->tail = {emulator_add(emulator_before(s), what)};
    return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    return emulator_call([&] {
        if (!stream || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
        *stream = new CUstream_st{{}, flags != cudaStreamNonBlocking, nullptr, {}};
        emulator.streams.insert(*stream);
        return cudaSuccess;
    });
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}
inline cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}

/* Its work is still done. */
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return emulator_release([&] {
        if (!emulator.streams.erase(stream)) return cudaErrorInvalidResourceHandle;
        if (stream->capture) stream->capture->invalid = true;
        delete stream;
        return cudaSuccess;
    });
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return emulator_call([&] {
        cudaStream_t s = emulator_stream(stream);
        if (s->capture) return emulator_invalidate(s->capture, cudaErrorStreamCaptureUnsupported);
        emulator_run_until(emulator_before(s));
        return emulator.sticky;
    });
}

inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
    return emulator_call([&] {
        cudaStream_t s = emulator_stream(stream);
        if (s->capture) return emulator_invalidate(s->capture, cudaErrorStreamCaptureUnsupported);
        const bool done = emulator_poll(emulator_before(s));
        return emulator.sticky ? emulator.sticky : done ? cudaSuccess : cudaErrorNotReady;
    });
}

inline cudaError_t cudaDeviceSynchronize() {
    return emulator_call([&] {
        if (cudaError_t error = emulator_unsafe(true)) return error;
        emulator_run_all();
        return emulator.sticky;
    });
}

inline cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *user) {
    return emulator_call([&] {
        if (!fn) return cudaErrorInvalidValue;
        return emulator_give(stream, true, [=] { fn(user); });
    });
}

/* ---- events ---- */

enum { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2, cudaEventWaitDefault = 0 };

inline cudaEvent_t emulator_event(cudaEvent_t event) {
    if (!emulator.events.count(event)) emulator_stop("an event that does not exist is used");
    return event;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    return emulator_call([&] {
        if (!event || flags > 3) return cudaErrorInvalidValue;
        *event = new CUevent_st{nullptr, !(flags & cudaEventDisableTiming), nullptr, {}};
        emulator.events.insert(*event);
        return cudaSuccess;
    });
}
inline cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return emulator_release([&] {
        if (!emulator.events.erase(event)) return cudaErrorInvalidResourceHandle;
        delete event;
        return cudaSuccess;
    });
}

inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
    return emulator_call([&] {
        cudaStream_t s = emulator_stream(stream);
        cudaEvent_t  e = emulator_event(event);
        if (s->capture && s->capture->invalid) return cudaErrorStreamCaptureInvalidated;
        if (s == &emulator.legacy)
            if (cudaError_t error = emulator_legacy_use()) return error;
        e->capture = s->capture;
        e->ends    = s->ends;
        e->point   = s->capture ? nullptr : emulator_add(emulator_before(s), {});
        if (e->point) s->tail = {e->point};
        return cudaSuccess;
    });
}

/* A stream that waits for a captured event is captured too. */
inline cudaError_t emulator_wait_captured(cudaStream_t s, cudaEvent_t e) {
    if (e->capture->ended) return cudaErrorCapturedEvent;
    if (e->capture->invalid) return cudaErrorStreamCaptureInvalidated;
    if (s == &emulator.legacy) return emulator_invalidate(e->capture, cudaErrorStreamCaptureImplicit);
    if (s->capture && s->capture != e->capture) {
        emulator_invalidate(s->capture, cudaErrorStreamCaptureMerge);
        return emulator_invalidate(e->capture, cudaErrorStreamCaptureMerge);
    }
    if (!s->capture) s->ends.clear();
    s->capture = e->capture;
    for (size_t end : e->ends)
        if (std::find(s->ends.begin(), s->ends.end(), end) == s->ends.end()) s->ends.push_back(end);
    return cudaSuccess;
}

inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0) {
    return emulator_call([&] {
        cudaStream_t s = emulator_stream(stream);
        cudaEvent_t  e = emulator_event(event);
        if (flags) return cudaErrorNotSupported;
        if (e->capture) return emulator_wait_captured(s, e);
        if (s->capture && e->point) return emulator_invalidate(s->capture, cudaErrorStreamCaptureIsolation);
        if (e->point && !e->point->done) s->tail.push_back(e->point);
        return cudaSuccess;
    });
}

inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    return emulator_call([&] {
        cudaEvent_t e = emulator_event(event);
        if (e->capture) return emulator_invalidate(e->capture, cudaErrorCapturedEvent);
        if (e->point) emulator_run_until({e->point});
        return emulator.sticky;
    });
}

inline cudaError_t cudaEventQuery(cudaEvent_t event) {
    return emulator_call([&] {
        cudaEvent_t e = emulator_event(event);
        if (e->capture) return emulator_invalidate(e->capture, cudaErrorCapturedEvent);
        if (cudaError_t error = emulator_unsafe()) return error;
        const bool done = !e->point || emulator_poll({e->point});
        return emulator.sticky ? emulator.sticky : done ? cudaSuccess : cudaErrorNotReady;
    });
}

inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    return emulator_call([&] {
        const cudaEvent_t a = emulator_event(from), b = emulator_event(to);
        if (!ms || !a->timing || !b->timing || !a->point || !b->point) return cudaErrorInvalidResourceHandle;
        if (!a->point->done || !b->point->done) return cudaErrorNotReady;
        *ms = std::chrono::duration<float, std::milli>(b->point->when - a->point->when).count();
        return cudaSuccess;
    });
}

/* ---- memory ---- */

enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};

enum { cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2, cudaHostAllocWriteCombined = 4 };
enum {
    cudaHostRegisterDefault  = 0,
    cudaHostRegisterPortable = 1,
    cudaHostRegisterMapped   = 2,
    cudaHostRegisterReadOnly = 8
};

/* The bytes from p to the end of the block that it is in, 0 when it is in none. */
inline size_t emulator_behind(const std::map<uintptr_t, size_t> &blocks, const void *p) {
    auto after = blocks.upper_bound((uintptr_t)p);
    if (after == blocks.begin()) return 0;
    const auto     &block = *--after;
    const uintptr_t at    = (uintptr_t)p - block.first;
    return at < block.second ? block.second - at : 0;
}

/* What a copy has on the device lies in one block, what it has on the host in none. */
inline bool emulator_side(const void *p, size_t n, bool device, bool any) {
    const size_t behind = emulator_behind(emulator.device_memory, p);
    return behind ? (device || any) && behind >= n : !device || any;
}

/* Poisoned, and exactly as long as asked for. */
inline void *emulator_block_of(size_t n, size_t align) {
    void *p = nullptr;
    if (posix_memalign(&p, align, n)) return nullptr;
    return memset(p, 0xff, n);
}

template <class T> inline cudaError_t cudaMalloc(T **at, size_t n) {
    return emulator_call([&] {
        if (cudaError_t error = emulator_unsafe()) return error;
        if (!at) return cudaErrorInvalidValue;
        *at = nullptr;
        if (!n) return cudaSuccess;
        if (n > emulator.limit - std::min(emulator.limit, emulator.used)) return cudaErrorMemoryAllocation;
        void *p = emulator_block_of(n, 256);
        if (!p) return cudaErrorMemoryAllocation;
        emulator.device_memory[(uintptr_t)p] = n;
        emulator.used += n;
#ifdef EMULATOR_ASAN
        __asan_poison_memory_region(p, n);
#endif
        *at = (T *)p;
        return cudaSuccess;
    });
}

/* Waits for the device, as it does on a GPU. */
inline cudaError_t cudaFree(void *p) {
    return emulator_release([&] {
        if (cudaError_t error = emulator_unsafe()) return error;
        emulator_run_all();
        auto block = emulator.device_memory.find((uintptr_t)p);
        if (!p) return cudaSuccess;
        if (block == emulator.device_memory.end()) return cudaErrorInvalidValue;
#ifdef EMULATOR_ASAN
        __asan_unpoison_memory_region(p, block->second);
#endif
        emulator.used -= block->second;
        emulator.device_memory.erase(block);
        free(p);
        return cudaSuccess;
    });
}

template <class T> inline cudaError_t cudaHostAlloc(T **at, size_t n, unsigned flags) {
    return emulator_call([&] {
        if (cudaError_t error = emulator_unsafe()) return error;
        if (!at || flags > 7) return cudaErrorInvalidValue;
        *at = nullptr;
        if (!n) return cudaSuccess;
        *at = (T *)emulator_block_of(n, 4096);
        if (!*at) return cudaErrorMemoryAllocation;
        emulator.host_memory[(uintptr_t)*at] = n;
        return cudaSuccess;
    });
}
template <class T> inline cudaError_t cudaMallocHost(T **at, size_t n) { return cudaHostAlloc(at, n, 0); }

inline cudaError_t cudaFreeHost(void *p) {
    return emulator_release([&] {
        if (cudaError_t error = emulator_unsafe()) return error;
        emulator_run_all();
        if (p && !emulator.host_memory.erase((uintptr_t)p)) return cudaErrorInvalidValue;
        free(p);
        return cudaSuccess;
    });
}

inline cudaError_t cudaHostRegister(void *p, size_t n, unsigned flags) {
    return emulator_call([&] {
        if (!p || !n || flags > 15) return cudaErrorInvalidValue;
        if (emulator_behind(emulator.host_memory, p) || emulator_behind(emulator.registered, p))
            return cudaErrorHostMemoryAlreadyRegistered;
        emulator.registered[(uintptr_t)p] = n;
        return cudaSuccess;
    });
}

inline cudaError_t cudaHostUnregister(void *p) {
    return emulator_release([&] {
        emulator_run_all();
        return emulator.registered.erase((uintptr_t)p) ? cudaSuccess : cudaErrorHostMemoryNotRegistered;
    });
}

template <class T> inline cudaError_t cudaHostGetDevicePointer(T **device, void *host, unsigned flags) {
    return emulator_call([&] {
        if (!device || flags) return cudaErrorInvalidValue;
        *device = nullptr;
        if (!emulator_behind(emulator.host_memory, host) && !emulator_behind(emulator.registered, host))
            return cudaErrorInvalidValue;
        *device = (T *)host;
        return cudaSuccess;
    });
}

inline cudaError_t emulator_copy(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t stream) {
    const bool any         = kind == cudaMemcpyDefault;
    const bool to_device   = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (!n) return cudaSuccess;
    if (!to || !from || !emulator_side(to, n, to_device, any) || !emulator_side(from, n, from_device, any))
        return cudaErrorInvalidValue;
    return emulator_give(stream, false, [=] { memcpy(to, from, n); });
}

/* Memory of the host that is not pinned is read and written when the copy runs, no sooner. */
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind,
                                   cudaStream_t stream = nullptr) {
    return emulator_call([&] { return emulator_copy(to, from, n, kind, stream); });
}

inline cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind) {
    return emulator_call([&] {
        if (cudaError_t error = emulator_unsafe()) return error;
        if (cudaError_t error = emulator_copy(to, from, n, kind, nullptr)) return error;
        emulator_run_until(emulator.legacy.tail);
        return emulator.sticky;
    });
}

inline cudaError_t cudaMemsetAsync(void *to, int byte, size_t n, cudaStream_t stream = nullptr) {
    return emulator_call([&] {
        if (!n) return cudaSuccess;
        if (emulator_behind(emulator.device_memory, to) < n && emulator_behind(emulator.host_memory, to) < n)
            return cudaErrorInvalidValue;
        return emulator_give(stream, false, [=] { memset(to, byte, n); });
    });
}
inline cudaError_t cudaMemset(void *to, int byte, size_t n) { return cudaMemsetAsync(to, byte, n, nullptr); }

inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    return emulator_call([&] {
        *available = emulator.limit - std::min(emulator.limit, emulator.used);
        *total     = emulator.limit;
        return cudaSuccess;
    });
}

/* ---- devices ---- */

enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock               = 1,
    cudaDevAttrMaxSharedMemoryPerBlock          = 8,
    cudaDevAttrWarpSize                         = 10,
    cudaDevAttrMultiProcessorCount              = 16,
    cudaDevAttrIntegrated                       = 18,
    cudaDevAttrCanMapHostMemory                 = 19,
    cudaDevAttrConcurrentKernels                = 31,
    cudaDevAttrL2CacheSize                      = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor      = 39,
    cudaDevAttrUnifiedAddressing                = 41,
    cudaDevAttrComputeCapabilityMajor           = 75,
    cudaDevAttrComputeCapabilityMinor           = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrManagedMemory                    = 83,
    cudaDevAttrPageableMemoryAccess             = 88,
    cudaDevAttrCooperativeLaunch                = 95,
    cudaDevAttrMaxSharedMemoryPerBlockOptin     = 97,
    cudaDevAttrHostRegisterSupported            = 99,
    cudaDevAttrReservedSharedMemoryPerBlock     = 111
};

struct cudaDeviceProp {
    char   name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin;
    int    warpSize, maxThreadsPerBlock, multiProcessorCount, major, minor, canMapHostMemory, integrated, l2CacheSize;
};

inline cudaError_t cudaGetDeviceCount(int *n) {
    *n = emulator.devices;
    return emulator_call([&] { return cudaSuccess; });
}

inline cudaError_t cudaGetDevice(int *device) {
    return emulator_call([&] {
        *device = emulator.device;
        return cudaSuccess;
    });
}

inline bool emulator_is_device(int device) { return device >= 0 && device < emulator.devices; }

inline cudaError_t cudaSetDevice(int device) {
    return emulator_call([&] {
        if (!emulator_is_device(device)) return cudaErrorInvalidDevice;
        emulator.device = device;
        return cudaSuccess;
    });
}

inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    const std::map<int, int> values = {
        {cudaDevAttrMaxThreadsPerBlock, 1024},
        {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
        {cudaDevAttrWarpSize, 32},
        {cudaDevAttrMultiProcessorCount, emulator.processors},
        {cudaDevAttrIntegrated, 0},
        {cudaDevAttrCanMapHostMemory, 1},
        {cudaDevAttrConcurrentKernels, 1},
        {cudaDevAttrL2CacheSize, 52428800},
        {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
        {cudaDevAttrUnifiedAddressing, 1},
        {cudaDevAttrComputeCapabilityMajor, emulator.major},
        {cudaDevAttrComputeCapabilityMinor, emulator.minor},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 233472},
        {cudaDevAttrManagedMemory, 0},
        {cudaDevAttrPageableMemoryAccess, 0},
        {cudaDevAttrCooperativeLaunch, 0},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, EMULATOR_SHARED},
        {cudaDevAttrHostRegisterSupported, 1},
        {cudaDevAttrReservedSharedMemoryPerBlock, 1024},
    };
    return emulator_call([&] {
        if (!emulator_is_device(device)) return cudaErrorInvalidDevice;
        if (!value || !values.count(attribute)) return cudaErrorInvalidValue;
        *value = values.at(attribute);
        return cudaSuccess;
    });
}

struct cudaFuncAttributes {
    int binaryVersion, ptxVersion;
};

template <class T> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *to, T *) {
    return emulator_call([&] {
        to->binaryVersion = to->ptxVersion = emulator.major * 10 + emulator.minor;
        return cudaSuccess;
    });
}

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *to, int device) {
    return emulator_call([&] {
        if (!emulator_is_device(device)) return cudaErrorInvalidDevice;
        memset(to, 0, sizeof *to);
        strcpy(to->name, "emulated");
        to->totalGlobalMem         = emulator.limit;
        to->sharedMemPerBlock      = 49152;
        to->sharedMemPerBlockOptin = EMULATOR_SHARED;
        to->warpSize               = 32;
        to->maxThreadsPerBlock     = 1024;
        to->multiProcessorCount    = emulator.processors;
        to->major                  = emulator.major;
        to->minor                  = emulator.minor;
        to->canMapHostMemory       = 1;
        to->l2CacheSize            = 52428800;
        return cudaSuccess;
    });
}

inline cudaError_t cudaDriverGetVersion(int *version) { return *version = 12080, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 12080, cudaSuccess; }
inline cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    return emulator_call([&] {
        if (least) *least = 0;
        if (greatest) *greatest = -5;
        return cudaSuccess;
    });
}

/* ---- launches ---- */

enum cudaLaunchAttributeID {
    cudaLaunchAttributeIgnore                          = 0,
    cudaLaunchAttributeCooperative                     = 2,
    cudaLaunchAttributeClusterDimension                = 4,
    cudaLaunchAttributeProgrammaticStreamSerialization = 6,
    cudaLaunchAttributePriority                        = 8
};

union cudaLaunchAttributeValue {
    char pad[64];
    int  cooperative, programmaticStreamSerializationAllowed, priority;
    struct {
        unsigned x, y, z;
    } clusterDim;
};

struct cudaLaunchAttribute {
    cudaLaunchAttributeID    id;
    cudaLaunchAttributeValue val;
};

struct cudaLaunchConfig_t {
    dim3                 gridDim, blockDim;
    size_t               dynamicSmemBytes;
    cudaStream_t         stream;
    cudaLaunchAttribute *attrs;
    unsigned             numAttrs;
};

enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize    = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};

template <class T> inline cudaError_t cudaFuncSetAttribute(T *kernel, cudaFuncAttribute attribute, int value) {
    return emulator_call([&] {
        if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
        if (value < 0 || value > EMULATOR_SHARED) return cudaErrorInvalidValue;
        emulator.shared_limits[(void (*)())kernel] = (size_t)value;
        return cudaSuccess;
    });
}

inline bool emulator_shared_fits(void (*kernel)(), size_t n) {
    const auto limit = emulator.shared_limits.find(kernel);
    return n <= 49152 || (limit != emulator.shared_limits.end() && n <= limit->second);
}

template <class T>
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, T *kernel, int threads, size_t shared) {
    return emulator_call([&] {
        *blocks = emulator_shared_fits((void (*)())kernel, shared) && threads <= 1024 ? 2 : 0;
        return cudaSuccess;
    });
}

inline cudaError_t emulator_check(const cudaLaunchConfig_t &config, void (*kernel)()) {
    const dim3 g = config.gridDim, b = config.blockDim;
    if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z) return cudaErrorInvalidConfiguration;
    if (g.x > 0x7fffffff || g.y > 65535 || g.z > 65535) return cudaErrorInvalidConfiguration;
    if (b.x > 1024 || b.y > 1024 || b.z > 64 || (uint64_t)b.x * b.y * b.z > 1024) return cudaErrorInvalidConfiguration;
    if (!emulator_shared_fits(kernel, config.dynamicSmemBytes)) return cudaErrorInvalidValue;
    for (unsigned i = 0; i < config.numAttrs; i++) {
        const cudaLaunchAttribute &a = config.attrs[i];
        const auto                &c = a.val.clusterDim;
        if (a.id == cudaLaunchAttributeCooperative && a.val.cooperative) return cudaErrorNotSupported;
        if (a.id == cudaLaunchAttributeClusterDimension && c.x * c.y * c.z != 1) return cudaErrorNotSupported;
    }
    return cudaSuccess;
}

template <class... P, class... A>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P...), A &&...args) {
    return emulator_call([&] {
        if (!config || !kernel) return cudaErrorInvalidValue;
        if (cudaError_t error = emulator_check(*config, (void (*)())kernel)) return error;
        const std::tuple<P...> values(std::forward<A>(args)...);
        const emulator_launch  launch = {config->gridDim, config->blockDim, config->dynamicSmemBytes,
                                         [=] { std::apply(kernel, values); }};
        return emulator_give(config->stream, false, [=] { emulator_run_grid(launch); });
    });
}

/* ---- graphs ---- */

enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone,
    cudaStreamCaptureStatusActive,
    cudaStreamCaptureStatusInvalidated
};

inline void emulator_end_capture(const std::shared_ptr<emulator_capture> &ended) {
    const std::shared_ptr<emulator_capture> capture = ended;
    capture->ended                                  = true;
    for (cudaStream_t s : emulator.streams) {
        if (s->capture != capture) continue;
        s->capture = nullptr;
        s->ends.clear();
    }
}

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    return emulator_call([&] {
        cudaStream_t s = emulator_stream(stream);
        if (s == &emulator.legacy) return cudaErrorStreamCaptureUnsupported;
        if (s->capture) return cudaErrorIllegalState;
        s->capture = std::make_shared<emulator_capture>(emulator_capture{{}, mode, s, false, false});
        s->ends.clear();
        return cudaSuccess;
    });
}

/* All that was captured is before the end of the stream that began. */
inline bool emulator_joined(const emulator_capture &capture) {
    std::vector<bool>   before(capture.graph.nodes.size());
    std::vector<size_t> todo = capture.origin->ends;
    while (!todo.empty()) {
        const size_t i = todo.back();
        todo.pop_back();
        if (before[i]) continue;
        before[i] = true;
        todo.insert(todo.end(), capture.graph.nodes[i].after.begin(), capture.graph.nodes[i].after.end());
    }
    return std::find(before.begin(), before.end(), false) == before.end();
}

inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    return emulator_call([&] {
        cudaStream_t                            s       = emulator_stream(stream);
        const std::shared_ptr<emulator_capture> capture = s->capture;
        if (graph) *graph = nullptr;
        if (!capture || !graph) return cudaErrorIllegalState;
        if (capture->origin != s) return emulator_invalidate(capture, cudaErrorStreamCaptureUnmatched);
        const bool joined = emulator_joined(*capture);
        emulator_end_capture(capture);
        if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
        if (!joined) return cudaErrorStreamCaptureUnjoined;
        *graph = new CUgraph_st(capture->graph);
        emulator.graphs.insert(*graph);
        return cudaSuccess;
    });
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    return emulator_call([&] {
        const emulator_capture *c = emulator_stream(stream)->capture.get();
        *status                   = !c           ? cudaStreamCaptureStatusNone
                                    : c->invalid ? cudaStreamCaptureStatusInvalidated
                                                 : cudaStreamCaptureStatusActive;
        return cudaSuccess;
    });
}

/* How many; the nodes themselves have no handles here. */
inline cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n) {
    return emulator_call([&] {
        if (!emulator.graphs.count(graph) || !n) return cudaErrorInvalidValue;
        if (nodes) return cudaErrorNotSupported;
        *n = graph->nodes.size();
        return cudaSuccess;
    });
}

inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags = 0) {
    return emulator_call([&] {
        if (!exec || !emulator.graphs.count(graph)) return cudaErrorInvalidValue;
        if (flags) return cudaErrorNotSupported;
        *exec = new CUgraphExec_st{graph->nodes, nullptr};
        emulator.execs.insert(*exec);
        return cudaSuccess;
    });
}

/* Its nodes become pending, each after those before it; a last point waits for all of them. */
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    return emulator_call([&] {
        cudaStream_t s = emulator_stream(stream);
        if (!emulator.execs.count(exec)) return cudaErrorInvalidValue;
        if (s->capture) return emulator_invalidate(s->capture, cudaErrorNotSupported);
        std::vector<emulator_point> before = emulator_before(s), nodes;
        if (exec->last) before.push_back(exec->last);
        for (const emulator_recorded &node : exec->nodes) {
            std::vector<emulator_point> after;
            for (size_t i : node.after) after.push_back(nodes[i]);
            nodes.push_back(emulator_add(after.empty() ? before : after, node));
        }
        exec->last = emulator_add(nodes.empty() ? before : nodes, {});
        s->tail    = {exec->last};
        return cudaSuccess;
    });
}

inline cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t) {
    return emulator_call([&] { return emulator.execs.count(exec) ? cudaSuccess : cudaErrorInvalidValue; });
}

inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    return emulator_release([&] {
        if (!emulator.graphs.erase(graph)) return cudaErrorInvalidValue;
        delete graph;
        return cudaSuccess;
    });
}

inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    return emulator_release([&] {
        if (!emulator.execs.erase(exec)) return cudaErrorInvalidValue;
        delete exec;
        return cudaSuccess;
    });
}

#endif
