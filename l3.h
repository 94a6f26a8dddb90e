/* l3.h - v0.1.0 - Large Lookup Layers (L3) for C and C++ - public domain or MIT-0, see the end of this file
 *
 * An L3 layer keeps its parameters in a table from which each token needs only its own few rows, known from the
 * token ID alone. The table may lie in flash, on a card, on disk or in RAM; this header finds the rows, reads them
 * ahead of use and runs the layer. l3_model.h, beside it, runs a whole language model with such layers.
 *
 *     #define L3_IMPLEMENTATION            // in one C or C++ file
 *     #include "l3.h"
 *
 *     l3_lookup layer = { ... };           // where the table and the weights are
 *     l3_work *work;                       // everything that changes, in a block of yours
 *     l3_work_init(&work, &layer, 1, NULL, block, sizeof block, &err);
 *     l3_lookup_begin(work, &token, 1, &err);          // the reads start here ...
 *     l3_lookup_forward(work, 0, x, &err);             // ... and x (1, d_in) becomes x + L3(x, token)
 *
 * A whole program: examples/layer.c.
 *
 * SWITCHES (define before including; the same in every file that includes this header)
 *     L3_IMPLEMENTATION  gives the implementation, in one file of the program
 *     L3_STATIC          makes every function static: private copies in several files do not collide
 *     L3_NO_STDIO        leaves out l3_source_open_file() and every operating-system header
 *     L3_NO_ERROR_TEXT   leaves out the sentences; codes and offsets stay, l3_status_text() gives their names
 *     L3_NO_ALLOCATOR    leaves out the builder of allocations (l3_alloc_*)
 *     L3_NO_SIMD         leaves out the kernels for particular processors: plain C only, as always on x86-64 with L3_NO_STDIO
 *     L3_NO_F16, L3_NO_BF16, L3_NO_Q8_0, L3_NO_Q4_0, L3_NO_Q6_K  each leaves out an element type: its plain C kernels,
 *                        unpacking and packing. A file with such a tensor, or a KV cache of it, is refused
 *                        (L3_ERR_UNSUPPORTED). F32 stays
 *     L3_THREADS         gives l3_pool, a small pthread pool (needs gcc or clang atomics)
 *     L3_ALIGN           alignment of blocks given to the library, a power of two >= 8 (64; 16 with L3_NO_STDIO)
 *     L3_MAX_ALIGN       largest l3_source.align, a power of two; three times this, 256 bytes or more, is taken from the stack
 *                        while a file is opened or verified, a snapshot saved or loaded (4096; 256 with L3_NO_STDIO)
 *
 * MEMORY   The library never allocates. A call ending in _size tells how many bytes an object needs, the call ending
 *          in _init takes them; the size is exact. No globals. No recursion.
 * ERRORS   Every call that can fail returns L3_OK (0) or a negative l3_status and, where err is not NULL, fills *err.
 * THREADS  Objects that calls take as const may be used by any number of threads at once; l3_work by one at a time.
 * STACK    A few kilobytes; in L3_FAST above plain C up to 44 KB, at L3_LEVEL_AMX 88 KB, in every thread that takes part (panels
 *          of weights), but not at the levels L3_LEVEL_DSP, HELIUM and RVV.
 * NUMBERS  For one build, mode and level, results are the same bits however the bytes arrive (mapped, read, any window,
 *          alignment, cache, threads, batch). In L3_EXACT they are the same at every level. Built without fast-math, with
 *          floats computed as floats (FLT_EVAL_METHOD 0: on 32-bit x86 -msse2 -mfpmath=sse, on s390x -std=gnu99 instead of
 *          c99), they are the same on every IEEE-754 machine: exp, sin, cos, pow and sqrt are ours. Contraction is switched off
 *          for the implementation with gcc and, unless told -ffp-contract=fast, clang; with others it must be.
 *
 * Sections: >>status >>source >>types >>jobs >>lookup >>allocation, then the implementation:
 *           >>base >>math >>rows >>matmul >>fixed >>vectors >>levels >>threads >>files >>cache >>chunks >>forward >>lzw,
 *           and what is read once for every instruction set: >>int8 >>kernels
 */
#ifndef L3_H
#define L3_H

#if defined(L3_IMPLEMENTATION) && !defined(L3_NO_STDIO) && !defined(_WIN32) && !defined(_POSIX_C_SOURCE) && \
    !defined(_GNU_SOURCE) && defined(__STRICT_ANSI__)
#define _POSIX_C_SOURCE 200809L /* pread and posix_madvise under -std=c99, if no system header came before */
#endif

#include <stddef.h>
#include <stdint.h>
#ifndef __cplusplus
#include <stdbool.h>
#endif

#define L3_VERSION 100 /* major * 10000 + minor * 100 + patch */

#ifndef L3_ALIGN
#ifdef L3_NO_STDIO
#define L3_ALIGN 16
#else
#define L3_ALIGN 64
#endif
#endif
#ifndef L3_MAX_ALIGN
#ifdef L3_NO_STDIO
#define L3_MAX_ALIGN 256
#else
#define L3_MAX_ALIGN 4096
#endif
#endif

#if defined(__GNUC__)
#define L3__UNUSED __attribute__((unused))
#else
#define L3__UNUSED
#endif
#ifdef L3_STATIC
#define L3_API static L3__UNUSED
#else
#define L3_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* L3_VERSION of the implementation that was linked. */
L3_API uint32_t l3_version(void);

/* >>status --------------------------------------------------------------------------------------------------------- */

#define L3_STATUS_LIST(X)                                                                   \
    X(L3_OK, 0, "ok")                                                                       \
    X(L3_ERR_ARGUMENT, -1, "an argument is outside its range")                              \
    X(L3_ERR_MEMORY, -2, "a memory block is too small or not aligned")                      \
    X(L3_ERR_IO, -3, "reading from the source failed")                                      \
    X(L3_ERR_FORMAT, -4, "the file is damaged or not what it says it is")                   \
    X(L3_ERR_UNSUPPORTED, -5, "the file asks for something that this version cannot do")    \
    X(L3_ERR_TOKEN, -6, "a token ID is outside the vocabulary")                             \
    X(L3_ERR_CONTEXT, -7, "the context is full")                                            \
    X(L3_ERR_CANCELLED, -8, "stopped by the caller's progress callback")                    \
    X(L3_ERR_CHECKSUM, -9, "bytes do not match their checksum")                             \
    X(L3_ERR_MISMATCH, -10, "a snapshot of another model or of a session of another shape") \
    X(L3_ERR_NUMBER, -11, "the logits hold no finite maximum")                              \
    X(L3_ERR_SELFTEST, -12, "the self-test gave other numbers than the file says")          \
    X(L3_ERR_DEVICE, -13, "the GPU failed or cannot be used")

/* clang-format off */
typedef enum l3_status {
#define L3__STATUS(name, code, text) name = code,
    L3_STATUS_LIST(L3__STATUS)
#undef L3__STATUS
    L3__STATUS_END = 1
} l3_status;
/* clang-format on */

/* What went wrong. Owned by the caller; untouched on success. */
typedef struct l3_error {
    int      code;      /* the l3_status that was returned                                                   */
    int      io;        /* with L3_ERR_IO: what the source's own callback returned                           */
    uint64_t offset;    /* byte offset in the source that the error is about; 0 where there is none          */
    char     text[192]; /* what, where, and what would be right, ending in '\0'; empty with L3_NO_ERROR_TEXT */
} l3_error;

/* The general meaning of a status, a constant string; "unknown status" for other numbers. */
L3_API const char *l3_status_text(int status);

/* >>source --------------------------------------------------------------------------------------------------------- */

/* Where bytes live: a mapped file, an array, SPI flash behind a driver, an SD card, an HTTP range.
 * Callbacks may be called from any thread that uses an object over this source, one call at a time per l3_work. */
typedef struct l3_source {
    void    *user;  /* passed to every callback */
    uint64_t size;  /* bytes; nothing beyond is ever asked for */
    uint32_t align; /* reads start, end (or end at size) and land on multiples of it: a power of two; 0 means 1 */
    /* Optional. n bytes at off, valid while the source is; or NULL: use read for these. */
    const void *(*map)(void *user, uint64_t off, size_t n);
    /* Reads n bytes at off into dst. 0, or an own negative code, which comes back in l3_error.io.
     * Needed unless map never returns NULL. May be called between start and wait. */
    int (*read)(void *user, uint64_t off, void *dst, size_t n);
    /* Optional, both or none: begin a read (DMA, a queue) and end the oldest one begun. At most one is under way per
     * l3_work. dst belongs to the read from start to wait. Every start that returned 0 is followed by a wait. */
    int (*start)(void *user, uint64_t off, void *dst, size_t n);
    int (*wait)(void *user);
    /* Optional: these bytes will be wanted soon. */
    void (*hint)(void *user, uint64_t off, size_t n);
} l3_source;

/* A source over bytes in memory, which must outlive it. */
L3_API l3_source l3_source_memory(const void *bytes, size_t size);

#ifndef L3_NO_STDIO
/* A file as a source. Owned by the caller; must not move while it is open. */
typedef struct l3_file {
    l3_source   source;
    const void *mapping; /* the whole file, or NULL */
    intptr_t    handle;  /* file descriptor, or HANDLE on Windows */
    intptr_t    view;    /* where it is mapped: the page size; on Windows the mapping object */
} l3_file;

typedef enum l3_file_mode {
    L3_FILE_MAP, /* mapped read-only; where the system cannot, read */
    L3_FILE_READ /* explicit reads only */
} l3_file_mode;

/* Opens the file at path (UTF-8) and fills file->source. Reads of one source may run in several threads at once.
 * L3_ERR_IO with -errno (-GetLastError() on Windows), or 0, in err->io; the same from reads that fail. A mapped file that
 * becomes shorter while it is used ends the program, as with every mapping. */
L3_API int  l3_source_open_file(l3_file *file, const char *path, l3_file_mode mode, l3_error *err);
L3_API void l3_source_close_file(l3_file *file);
#endif

/* >>types ---------------------------------------------------------------------------------------------------------- */

/* Element types, with ggml's numbers and layouts, always little-endian. */
typedef enum l3_type {
    L3_F32  = 0,
    L3_F16  = 1,
    L3_Q4_0 = 2,  /* blocks of 32: f16 scale, 16 bytes of nibbles: 18 bytes            */
    L3_Q8_0 = 8,  /* blocks of 32: f16 scale, 32 int8: 34 bytes                        */
    L3_Q6_K = 14, /* blocks of 256: 6-bit values, 16 int8 scales, f16 scale: 210 bytes */
    L3_I32  = 26, /* offsets and checksums only                                        */
    L3_BF16 = 30
} l3_type;

/* A matrix (rows, cols), cols contiguous, or a vector (1, cols). Absent: data and source both NULL. */
typedef struct l3_tensor {
    const void      *data;   /* the bytes in memory, of any alignment; or NULL: read them from source */
    const l3_source *source; /* not owned                                                             */
    uint64_t         offset; /* of the first byte in source                                           */
    uint32_t         rows, cols;
    int32_t          type;   /* l3_type */
    uint32_t         pinned; /* rows, the first ones, that are at data while the others are read; 0: all are there */
} l3_tensor;

/* "f32" ..., or NULL for a number that is no supported type. */
L3_API const char *l3_type_name(int type);
/* Elements in a block of the type (1, 32 or 256), 0 for no supported type. A row holds whole blocks. */
L3_API uint32_t l3_type_block(int type);
/* Bytes of a row of cols elements; 0 if the type is unknown or cols is no multiple of its block. */
L3_API uint64_t l3_row_bytes(int type, uint32_t cols);
/* Elements first ... first + n - 1 of a row, to float. first is a multiple of 32. Any type but L3_I32. */
L3_API void l3_unpack(int type, const void *row, uint32_t first, uint32_t n, float *dst);
/* n floats (whole blocks) to a row of l3_row_bytes() bytes, rounded to nearest. F32, F16, BF16, Q8_0 or Q4_0. */
L3_API void l3_pack(int type, const float *src, uint32_t n, void *row);
/* n int32_t to their little-endian bytes (L3_I32). */
L3_API void l3_pack_i32(const int32_t *src, uint32_t n, void *row);
/* CRC-32 (IEEE 802.3, as zlib): of n bytes, continuing from crc; start with 0. */
L3_API uint32_t l3_crc32(uint32_t crc, const void *bytes, size_t n);

/* >>jobs ----------------------------------------------------------------------------------------------------------- */

/* How to use several cores: the library splits work into pieces, the caller runs them where it likes. All zero: the
 * calling thread does everything. Results do not depend on it. */
typedef struct l3_jobs {
    void    *user;
    uint32_t width; /* pieces that can run at once, including the caller's own thread */
    /* Calls piece(arg, i) once for every i < n, in any order, on any threads, and returns when all have returned. */
    void (*run)(void *user, uint32_t n, void (*piece)(void *arg, uint32_t i), void *arg);
} l3_jobs;

#ifdef L3_THREADS
#define L3_MAX_THREADS 64
typedef struct l3_pool l3_pool;
/* Threads - 1 workers (at most L3_MAX_THREADS), sleeping while there is no work. size_t l3_pool_size() bytes aligned to
 * L3_ALIGN; must not move until l3_pool_free(). One run at a time. L3_ERR_IO if a thread cannot be started. */
L3_API size_t  l3_pool_size(void);
L3_API int     l3_pool_init(l3_pool **pool, uint32_t threads, void *mem, size_t size, l3_error *err);
L3_API l3_jobs l3_pool_jobs(l3_pool *pool);
L3_API void    l3_pool_free(l3_pool *pool);

/* A thread that reads: a source without start and wait gets them, so that rows come in while blocks are computed. It
 * sleeps while there is nothing to read. size_t l3_reader_size() bytes aligned to L3_ALIGN; must not move until
 * l3_reader_free(), nor be freed while something uses its source. L3_ERR_IO if the thread cannot be started. */
typedef struct l3_reader l3_reader;
L3_API size_t            l3_reader_size(void);
/* *source is copied; it needs read, which is called from the new thread and, for what is not read ahead, from others. */
L3_API int l3_reader_init(l3_reader **reader, const l3_source *source, void *mem, size_t size, l3_error *err);
/* The same bytes without map. Any number of works and threads may use it; the error of a read under way may then be
 * told to another of them, too. */
L3_API l3_source l3_reader_source(l3_reader *reader);
L3_API void      l3_reader_free(l3_reader *reader);
#endif

/* >>lookup --------------------------------------------------------------------------------------------------------- */

/* One lookup layer: shapes and where its tensors are. Filled in by the caller (l3_model.h does it from a file) and
 * immutable while in use. For hidden state x (key_length,) of token t with rows K (d_t, key_length),
 * V (d_t, value_length):
 *     q = query_norm ? rms(x) * query_norm_weight : x
 *     s = softmax(score_scale * (key_norm ? rms(K) : K) q)
 *     u = norm(up V^T s) * up_norm_weight + up_norm_bias         without `up`: u = norm(V^T s)
 *     x = (residual ? x : 0) + mix [u ; x]
 * A token without rows has V^T s = 0. */
typedef struct l3_lookup {
    uint32_t vocab;        /* tokens                                                                    */
    uint32_t row_count;    /* v, rows of the table                                                      */
    uint32_t max_rows;     /* k: no token has more; 0: no bound                                         */
    uint32_t key_length;   /* d_in, the width of the hidden state                                       */
    uint32_t value_length; /* d_emb; equals key_length when tied                                        */
    uint32_t up_length;    /* d_up; equals value_length when `up` is absent                             */
    bool     tied;         /* keys are the values: a row is one vector                                  */
    bool     query_norm, key_norm, layer_norm /* else RMS */, residual;
    float    score_scale;
    float    norm_epsilon; /* of the query, key and up norms; above 0                                   */

    l3_tensor offsets;           /* (1, vocab + 1) I32: rows of token t are offsets[t] ... offsets[t + 1] - 1     */
    l3_tensor rows;              /* (v, key_length [+ value_length unless tied]): key, then value                 */
    l3_tensor query_norm_weight; /* (1, key_length), or absent: ones                                    */
    l3_tensor up;                /* (up_length, value_length), or absent                                */
    l3_tensor up_norm_weight;    /* (1, up_length), or absent: ones                                     */
    l3_tensor up_norm_bias;      /* (1, up_length), or absent: zeros; layer norm only                   */
    l3_tensor mix;               /* (key_length, up_length + key_length); inputs: u, then x             */
    l3_tensor checksums;         /* (1, vocab) I32: l3_crc32 of each token's row block, or absent       */
} l3_lookup;

/* Checks shapes, types, that tensors lie inside their sources, and every offset: first 0, never falling, last =
 * row_count, no token above max_rows. One pass over the offsets. L3_ERR_FORMAT or L3_ERR_UNSUPPORTED with the place;
 * L3_ERR_ARGUMENT for a source that cannot work; L3_ERR_IO. */
L3_API int l3_lookup_check(const l3_lookup *layer, l3_error *err);

typedef enum l3_verify {
    L3_VERIFY_READS, /* row blocks that were read are checked against their checksums, if the layer has them */
    L3_VERIFY_ALL,   /* mapped ones too, each time they are used */
    L3_VERIFY_NONE
} l3_verify;

typedef enum l3_mode {
    L3_FAST, /* activations are rounded where the level gains by it: to int8, by blocks of 32, for Q8_0, Q4_0 and Q6_K weights
                and for the scores of such rows. In l3_prefill also for F16 and BF16 weights, which are rounded as well: to
                int16 and 12 bits by blocks of 32 at AVX2 and AVX512, to bf16 where the level has it (then Q6_K, and with
                AMX Q8_0 and Q4_0, too). At DSP, HELIUM, RVV, and at PLAIN where floats are computed by software, to int16
                instead of int8, as are the weights of a Q8_0 cache's values. The last bits depend on the level, and on
                which tokens came alone and which together with others in a call of l3_prefill */
    L3_EXACT /* float activations, every reduction in a fixed order: the same bits at every level and however a text is
                split into calls */
} l3_mode;

/* Instruction sets that there are kernels for. */
typedef enum l3_level {
    L3_LEVEL_BEST,    /* what the environment variable L3_LEVEL names, else the best that this machine has */
    L3_LEVEL_PLAIN,   /* plain C; without a unit for floats, L3_FAST multiplies whole numbers              */
    L3_LEVEL_AVX2,    /* x86-64: AVX2, FMA, F16C                                                           */
    L3_LEVEL_AVX512,  /* and AVX-512 F, BW, DQ, VL, VNNI                                                   */
    L3_LEVEL_BF16,    /* and AVX-512 BF16                                                                  */
    L3_LEVEL_AMX,     /* and AMX with BF16, for prompts: on Linux, which is asked for permission           */
    L3_LEVEL_NEON,    /* AArch64: every one; 32-bit Arm if compiled for NEON: only what L3_FAST multiplies */
    L3_LEVEL_DOTPROD, /* and the int8 dot product of ARMv8.2 and later                                     */
    L3_LEVEL_I8MM,    /* and matrix products of int8 and bf16, ARMv8.6 and later                           */
    L3_LEVEL_DSP,     /* 32-bit Arm without NEON, if compiled for its DSP extension: Cortex-M4, M7, M33 .. */
    L3_LEVEL_HELIUM,  /* Cortex-M55 and M85, if compiled for MVE, instead of DSP                           */
    L3_LEVEL_RVV      /* RISC-V, if compiled for its vectors (V 1.0)                                       */
} l3_level;

/* "plain", "avx2" ...; NULL for a number that is no level. */
L3_API const char *l3_level_name(int level);
/* Whether this build has the level's kernels and this machine can run them. */
L3_API bool l3_level_works(int level);

/* How layers are run. All zero is a good choice; NULL means the same. */
typedef struct l3_work_config {
    l3_mode  mode;
    l3_level level;  /* refused (L3_ERR_ARGUMENT) where it does not work                                        */
    uint32_t batch;  /* positions computed at once; 0: 32, from AVX2 to I8MM 128. Memory grows with it, weights are
                         read once for all                                                                       */
    size_t   window; /* bytes through which weights and rows without a mapping are read; 0: the larger of 64 KiB and
                         the least that works. With start/wait there are two. Without effect when all is mapped */
    size_t cache; /* bytes for rows of tokens read before; 0: none. Without effect when rows are mapped. Rows of tokens
                         that are asked for too seldom pass through the window: all at once if it is that large */
    l3_verify verify;
    l3_jobs   jobs;
    /* Optional; called between pieces of work; anything but 0 stops the call with L3_ERR_CANCELLED. */
    int (*progress)(void *user);
    void *progress_user;
} l3_work_config;

typedef struct l3_stats {
    uint64_t lookups;           /* row blocks wanted: one per distinct token of a batch and layer          */
    uint64_t row_bytes_asked;   /* their bytes                                                              */
    uint64_t row_bytes_read;    /* bytes read for them from sources, alignment included; 0 when mapped      */
    uint64_t row_reads;         /* calls of read or start for them                                         */
    uint64_t cache_hits;        /* row blocks found in the cache                                           */
    uint64_t cache_misfits;     /* row blocks that the whole cache is too small for                        */
    uint64_t weight_bytes_read; /* bytes read for everything else; 0 when mapped                           */
} l3_stats;

/* Bytes of RAM by purpose: l3_session_memory() of l3_model.h fills it in. Each holds the padding in front of it. */
typedef struct l3_memory {
    /* Of a model's block: */
    size_t model;      /* descriptions of its tensors */
    size_t vocabulary; /* where every 16th token lies in the file */
    /* Of blocks given to l3_model_pin(): */
    size_t pinned;
    /* Of a session's block: */
    size_t session; /* what is neither of these: its struct, the positions of a batch */
    size_t kv;      /* keys and values of all positions of the context */
    size_t logits;
    size_t scratch; /* activations of a batch */
    size_t window;  /* or two of them */
    size_t cache;   /* for rows, with its index */
} l3_memory;

typedef struct l3_work l3_work;

/* Bytes of a work for layers[0 ... n_layers - 1], exact, or 0 if the configuration cannot work (l3_work_init says
 * why). The layers are not copied and must outlive the work; l3_lookup_check() must have passed them. */
L3_API size_t l3_work_size(const l3_lookup *layers, uint32_t n_layers, const l3_work_config *config);
/* The least config->window that works; 0 when everything is mapped. */
L3_API size_t l3_work_window_min(const l3_lookup *layers, uint32_t n_layers);
/* mem: size bytes, aligned to L3_ALIGN, used until the work is forgotten; there is nothing to free. */
L3_API int l3_work_init(l3_work **work, const l3_lookup *layers, uint32_t n_layers, const l3_work_config *config,
                        void *mem, size_t size, l3_error *err);
/* Tells which tokens come next, n <= batch: sorts them, hints their rows in every layer and starts the first read.
 * Call it as soon as they are known. n = 0 ends a read that is under way: the work's block may then be given up. */
L3_API int l3_lookup_begin(l3_work *work, const int32_t *tokens, uint32_t n, l3_error *err);
/* Runs layers[layer] for the tokens of the last begin. x: (n, key_length) in their order, in place.
 * Layers are best run in the order in which they were given. After an error x is as it was; begin again. */
L3_API int l3_lookup_forward(l3_work *work, uint32_t layer, float *x, l3_error *err);

#ifndef L3_NO_STDIO
/* Another machine, of which a tool wants to know sizes. Its bytes of structs that blocks begin with or hold, by struct;
 * those of l3_model.h are here, too. */
typedef struct l3_target {
    uint32_t align;   /* L3_ALIGN of its build */
    uint32_t pointer; /* bytes of a pointer and of a size_t */
    uint32_t packed;  /* bytes into which L3_FAST packs 32 activations for weights in blocks; 0: it does not */
    uint32_t lookup, work, model, block, session, tokenizer, sampler;
} l3_target;

/* 32-bit machines with L3_NO_STDIO: exact for Arm and RISC-V; where 64-bit numbers are aligned to 4 bytes (i686) the blocks
 * are a little smaller. `packed` is for products in whole numbers; plain C needs none (0): Cortex-M4 on with L3_NO_SIMD, RISC-V
 * with an FPU and without vectors. */
L3_API l3_target l3_target_32(void);
/* l3_work_size() there. For these calls and those of l3_model.h L3_LEVEL_BEST means plain C. */
L3_API size_t l3_work_size_for(const l3_target *target, const l3_lookup *layers, uint32_t n_layers,
                               const l3_work_config *config);
#endif

/* Hints the rows of tokens that will come later, for example the rest of a prompt. Errors show when they are used. */
L3_API void     l3_lookup_hint(l3_work *work, const int32_t *tokens, uint32_t n);
L3_API l3_stats l3_work_stats(const l3_work *work);

/* >>allocation ----------------------------------------------------------------------------------------------------- */

#ifndef L3_NO_ALLOCATOR
/* How many rows each token gets: an LZW parse of a tokenized corpus, frequent codewords give a row to their last token
 * ("L3: Large Lookup Layers", algorithm 1 and listing A.3). Exact until max_codewords are known; from then on known
 * codewords still count and none is added. */
typedef struct l3_alloc l3_alloc;

typedef struct l3_alloc_report {
    uint64_t tokens;              /* tokens given                                                                     */
    uint64_t documents;           /* documents with at least one token                                                */
    uint64_t codewords;           /* in the dictionary, single tokens included                                        */
    uint64_t full_after;          /* tokens that had been given when the dictionary was full; 0: it never was         */
    uint64_t placed_by_code;      /* rows placed by codewords, beyond the first row of each token                     */
    uint64_t placed_by_frequency; /* rows placed by token frequency when the codewords had run out               */
} l3_alloc_report;

/* Bytes for a dictionary of up to max_codewords (vocab included, <= 2^31 - 1), about 20 each; 0 if out of range. */
L3_API size_t l3_alloc_size(uint32_t vocab, uint32_t max_codewords);
L3_API int    l3_alloc_init(l3_alloc **alloc, uint32_t vocab, uint32_t max_codewords, void *mem, size_t size,
                            l3_error *err);
/* The next n tokens of the current document; a document may come in any number of calls. */
L3_API int l3_alloc_add(l3_alloc *alloc, const int32_t *tokens, size_t n, l3_error *err);
/* Ends the document. Without tokens since the last one: nothing. */
L3_API void l3_alloc_end_document(l3_alloc *alloc);
/* Ends the parse and places row_count rows, at most max_rows each (0: no bound): offsets (vocab + 1,), the prefix sums.
 * L3_ERR_ARGUMENT if row_count < vocab or > vocab * max_rows. report may be NULL. The alloc is used up. */
L3_API int l3_alloc_finish(l3_alloc *alloc, uint32_t row_count, uint32_t max_rows, int32_t *offsets,
                           l3_alloc_report *report, l3_error *err);
#endif

#ifdef __cplusplus
}
#endif
#endif /* L3_H */

/* ================================================================================================================== */

#if defined(L3_IMPLEMENTATION) && !defined(L3__IMPLEMENTED)
#define L3__IMPLEMENTED

#include <stdarg.h>
#if defined(__has_include)
#if !__has_include(<string.h>)
#define L3__NO_STRING_H
#endif
#endif
#ifndef L3__NO_STRING_H
#include <string.h>
#else /* no C library at all: the program defines these */
#ifdef __cplusplus
extern "C" {
#endif
void  *memcpy(void *to, const void *from, size_t n);
void  *memmove(void *to, const void *from, size_t n);
void  *memset(void *to, int byte, size_t n);
int    memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);
int    strcmp(const char *a, const char *b);
int    strncmp(const char *a, const char *b, size_t n);
#ifdef __cplusplus
}
#endif
#endif
#ifndef L3_NO_STDIO
#if defined(_WIN32)
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
#else
#include <errno.h>
#include <fcntl.h>
#ifndef __wasi__ /* it has no mappings: files are read */
#include <sys/mman.h>
#endif
#include <sys/stat.h>
#include <unistd.h>
#endif
#endif
#ifdef L3_THREADS
#include <pthread.h>
#ifdef __linux__
#include <sys/resource.h>
#include <time.h>
#endif
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(L3_NO_STDIO) && !defined(L3_NO_SIMD) && \
    (!defined(_WIN32) || defined(__clang__)) /* gcc for Windows does not align vectors on the stack (PR 54412) */
#define L3__X86
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" /* gcc's own headers, when they are C++ (PR 105593) */
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#if defined(__linux__)
#include <cpuid.h>
#endif
#endif
#if defined(__GNUC__) && defined(__ARM_NEON) && !defined(__ARM_BIG_ENDIAN) && !defined(L3_NO_SIMD)
#define L3__NEON
#include <arm_neon.h>
#if defined(__linux__) && !defined(L3_NO_STDIO)
#include <sys/auxv.h>
#endif
#endif
#if defined(L3__X86) || defined(L3__NEON)
#define L3__VECTORS
#endif
/* Products in whole numbers, section >>fixed: which level has them, and what its operations are made of. A test may say
 * -DL3_NO_SIMD -DL3__FIXED=L3_LEVEL_PLAIN. */
#if defined(L3__VECTORS) || defined(L3__FIXED)
#elif defined(__GNUC__) && defined(__ARM_FEATURE_MVE) && !defined(__ARM_BIG_ENDIAN) && !defined(L3_NO_SIMD)
#define L3__FIXED L3_LEVEL_HELIUM
#define L3__HELIUM
#include <arm_mve.h>
#elif defined(__GNUC__) && defined(__ARM_FEATURE_SIMD32) && !defined(__ARM_BIG_ENDIAN) && !defined(L3_NO_SIMD)
#define L3__FIXED L3_LEVEL_DSP
#define L3__DSP
#include <arm_acle.h>
#elif defined(__riscv_v) && defined(__riscv_v_intrinsic) && !defined(L3_NO_SIMD) /* registers of 128 bits or more */
#define L3__FIXED L3_LEVEL_RVV
#define L3__RVV
#include <riscv_vector.h>
#elif defined(__SOFTFP__) || (defined(__riscv) && !defined(__riscv_flen)) || defined(__XTENSA_SOFT_FLOAT__)
#define L3__FIXED L3_LEVEL_PLAIN /* floats are computed by software there */
#endif
#if !defined(L3_NO_STDIO)
#include <stdlib.h> /* getenv */
#endif

/* A compiler would fuse products and sums in one copy of a loop and not in the next: results would depend on the batch. clang's
 * -ffp-contract=fast has the last word all the same. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Internal functions are static; some serve only l3_model.h, so that a file with this header alone leaves them unused. */
#define L3__FN static L3__UNUSED
/* Where the compiler is asked for small code (-Os), what is otherwise written once for each type or caller is there once,
 * loops for four positions and tables that save time are left out. Results are the same. */
#if defined(__OPTIMIZE_SIZE__)
#define L3__SMALL 1
#else
#define L3__SMALL 0
#endif
#if defined(__GNUC__) && !defined(__OPTIMIZE_SIZE__)
#define L3__INLINE static inline __attribute__((always_inline))
#else
#define L3__INLINE static inline
#endif

/* Never put into its callers: for the sake of their stack frames, or of small code. */
#if defined(__GNUC__)
#define L3__APART static L3__UNUSED __attribute__((noinline))
#else
#define L3__APART static L3__UNUSED
#endif

/* >>base ---------------------------------------------------------------------------------------------------------- */

L3_API uint32_t l3_version(void) { return L3_VERSION; }

#ifdef L3_NO_ERROR_TEXT
#define L3__MEANING(name, text) #name
#else
#define L3__MEANING(name, text) text
#endif
L3_API const char *l3_status_text(int status) {
    switch (status) {
#define L3__TEXT(name, code, text) \
    case code: return L3__MEANING(name, text);
        L3_STATUS_LIST(L3__TEXT)
#undef L3__TEXT
    default: return "unknown status";
    }
}

#ifdef L3_NO_ERROR_TEXT
L3__APART int l3__fail_code(l3_error *err, int code, uint64_t offset) {
    if (!err) return code;
    err->code    = code;
    err->io      = 0;
    err->offset  = offset;
    err->text[0] = '\0';
    return code;
}
L3__FN int l3__unsaid(const char *format, ...) { return *format; }
/* What the sentence would say is not worked out; compilers see that it is used. */
#define l3__fail(err, code, offset, ...) ((void)(0 && l3__unsaid(__VA_ARGS__)), l3__fail_code(err, code, offset))
#else
L3__FN char *l3__put_text(char *p, const char *end, const char *s) {
    while (*s && p < end) {
        const unsigned char c = (unsigned char)*s++;
        *p++ = (c < 0x20 || c == 0x7f) ? '?' : (char)c; /* names come from files: keep a terminal safe */
    }
    return p;
}

L3__FN char *l3__put_number(char *p, const char *end, uint64_t v) {
    char digits[21];
    int  i    = 20;
    digits[i] = '\0';
    do digits[--i] = (char)('0' + (int)(v % 10));
    while ((v /= 10) != 0);
    return l3__put_text(p, end, digits + i);
}

/* Fills *err and returns code. format knows %s, %u (uint32_t) and %U (uint64_t). */
L3__FN int l3__fail(l3_error *err, int code, uint64_t offset, const char *format, ...) {
    if (!err) return code;
    err->code       = code;
    err->io         = 0;
    err->offset     = offset;
    char       *p   = err->text;
    const char *end = err->text + sizeof err->text - 1;
    va_list     args;
    va_start(args, format);
    for (; *format && p < end; format++) {
        if (*format != '%') {
            *p++ = *format;
            continue;
        }
        switch (*++format) {
        case 's': p = l3__put_text(p, end, va_arg(args, const char *)); break;
        case 'u': p = l3__put_number(p, end, va_arg(args, uint32_t)); break;
        default: p = l3__put_number(p, end, va_arg(args, uint64_t)); break;
        }
    }
    va_end(args);
    *p = '\0';
    return code;
}
#endif

/* The one pair of checked arithmetic: false on overflow. */
L3__FN bool l3__add(uint64_t a, uint64_t b, uint64_t *sum) {
    *sum = a + b;
    return *sum >= a;
}
L3__FN bool l3__mul(uint64_t a, uint64_t b, uint64_t *product) {
    *product = a * b;
    return a == 0 || *product / a == b;
}

/* Little-endian loads and stores, of any alignment: the only places where file bytes become numbers. */
L3__INLINE uint16_t l3__le16(const uint8_t *p) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
#else
    return (uint16_t)(p[0] | p[1] << 8);
#endif
}
L3__INLINE uint32_t l3__le32(const uint8_t *p) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
#else
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
#endif
}
L3__FN uint64_t l3__le64(const uint8_t *p) { return l3__le32(p) | (uint64_t)l3__le32(p + 4) << 32; }

L3__INLINE void l3__put_le16(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)(v & 0xff);
    p[1] = (uint8_t)(v >> 8 & 0xff);
}
L3__INLINE void l3__put_le32(uint8_t *p, uint32_t v) {
    l3__put_le16(p, v & 0xffff);
    l3__put_le16(p + 2, v >> 16);
}
L3__FN void l3__put_le64(uint8_t *p, uint64_t v) {
    l3__put_le32(p, (uint32_t)(v & 0xffffffffu));
    l3__put_le32(p + 4, (uint32_t)(v >> 32));
}

L3__INLINE float l3__as_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
L3__INLINE uint32_t l3__as_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

/* Bytes of a struct, of a pointer, and L3_ALIGN, where an arena is meant for. */
#ifdef L3_NO_STDIO
typedef void l3__target;
#define L3__BYTES_OF(a, type, field) ((void)(a), sizeof(type))
#define L3__ALIGN_OF(a)              ((void)(a), (uint32_t)L3_ALIGN)
#else
typedef l3_target l3__target;
#define L3__BYTES_OF(a, type, field) ((a)->target ? (a)->target->field : sizeof(type))
#define L3__ALIGN_OF(a)              ((a)->target ? (a)->target->align : (uint32_t)L3_ALIGN)
#endif

/* Carves a caller's block. With base NULL it only counts: every _size call is its _init call's layout, run dry. */
typedef struct l3__arena {
    unsigned char    *base;
    const l3__target *target; /* NULL: this machine; else base is NULL */
    uint64_t          used, peak;
    bool              overflow;
    l3_memory        *memory; /* where growth is told by purpose, or NULL */
    size_t           *part;   /* of it */
} l3__arena;

/* What comes next is for this purpose. */
#define L3__PURPOSE(a, purpose) ((a)->part = (a)->memory ? &(a)->memory->purpose : NULL)

L3__FN l3__arena l3__arena_of(void *base, const l3__target *target) {
    const l3__arena a = {(unsigned char *)base, target, 0, 0, false, NULL, NULL};
    return a;
}

L3__FN void *l3__take(l3__arena *a, uint64_t count, size_t size) {
    uint64_t       bytes, end;
    const uint64_t mask = L3__ALIGN_OF(a) - 1, start = (a->used + mask) & ~mask;
    if (!l3__mul(count, size, &bytes) || !l3__add(start, bytes, &end) || end > (UINT64_MAX >> 1)) {
        a->overflow = true;
        return NULL;
    }
    if (bytes) a->used = end;
    if (bytes && a->peak < end) {
        if (a->part) *a->part += (size_t)(end - a->peak);
        a->peak = end;
    }
    return a->base ? a->base + start : NULL;
}

/* count times size bytes that start on a multiple of align, which may be more than L3_ALIGN: takes the worst case. */
L3__FN unsigned char *l3__take_aligned(l3__arena *a, uint64_t bytes, uint32_t align) {
    const uint32_t have = L3__ALIGN_OF(a), slack = bytes && align > have ? align - have : 0;
    unsigned char *p = (unsigned char *)l3__take(a, bytes + slack, 1);
    if (p && slack) p += (align - (uint32_t)((uintptr_t)p % align)) % align;
    return p;
}

/* Ends a layout: the exact size, or 0 if it does not fit this machine. */
L3__FN size_t l3__arena_size(const l3__arena *a) {
    const uint64_t most = L3__BYTES_OF(a, void *, pointer) < sizeof(uint64_t) ? UINT32_MAX / 2 : UINT64_MAX / 2;
    return a->overflow || a->peak > most || a->peak > (uint64_t)(SIZE_MAX / 2) ? 0 : (size_t)a->peak;
}

/* Checks a caller's block against the size that a layout needs. */
L3__FN int l3__check_block(const void *mem, size_t size, size_t need, l3_error *err) {
    if (need == 0) return l3__fail(err, L3_ERR_MEMORY, 0, "more memory is needed than this machine can address");
    if (!mem || (uintptr_t)mem % L3_ALIGN != 0)
        return l3__fail(err, L3_ERR_MEMORY, 0, "the block is NULL or not aligned to %u bytes", (uint32_t)L3_ALIGN);
    if (size < need)
        return l3__fail(err, L3_ERR_MEMORY, 0, "the block has %U bytes, %U are needed", (uint64_t)size, (uint64_t)need);
    return L3_OK;
}

L3__FN uint32_t l3__align_of(const l3_source *s) { return s && s->align > 1 ? s->align : 1; }

/* A source that cannot work is refused once, when something is opened over it. */
L3__FN int l3__check_source(const l3_source *s, l3_error *err) {
    const uint32_t align = l3__align_of(s);
    if (!s || (!s->read && !s->map)) return l3__fail(err, L3_ERR_ARGUMENT, 0, "the source has neither map nor read");
    if ((align & (align - 1)) != 0 || align > L3_MAX_ALIGN)
        return l3__fail(err, L3_ERR_ARGUMENT, 0, "source.align is %u; a power of two up to L3_MAX_ALIGN (%u) is right",
                        align, (uint32_t)L3_MAX_ALIGN);
    if ((s->start != NULL) != (s->wait != NULL))
        return l3__fail(err, L3_ERR_ARGUMENT, 0, "the source has only one of start and wait");
    return L3_OK;
}

/* The aligned range around [off, off + n): what is really read. */
typedef struct l3__range {
    uint64_t start;
    size_t   size, skip; /* bytes; the wanted ones begin skip bytes in */
} l3__range;

L3__FN l3__range l3__aligned_range(const l3_source *s, uint64_t off, size_t n) {
    const uint64_t mask = l3__align_of(s) - 1;
    l3__range      r;
    uint64_t       end = (off + n + mask) & ~mask;
    if (end > s->size) end = s->size;
    r.start = off & ~mask;
    r.skip  = (size_t)(off - r.start);
    r.size  = (size_t)(end - r.start);
    return r;
}

L3__FN int l3__io_error(l3_error *err, int io, uint64_t off, uint64_t n) {
    const int code = l3__fail(err, L3_ERR_IO, off, "reading %U bytes at %U failed", n, off);
    if (err) err->io = io;
    return code;
}

/* Every synchronous read of the library. dst has room for l3__aligned_range() of the same arguments. */
L3__FN int l3__read(const l3_source *s, uint64_t off, size_t n, void *dst, const uint8_t **bytes, l3_error *err) {
    uint64_t end;
    int      io;
    if (!l3__add(off, n, &end) || end > s->size)
        return l3__fail(err, L3_ERR_FORMAT, off, "%U bytes at %U lie beyond the source's end at %U", (uint64_t)n, off,
                        s->size);
    const l3__range r = l3__aligned_range(s, off, n);
    if (!s->read) return l3__io_error(err, 0, off, n);
    if ((io = s->read(s->user, r.start, dst, r.size)) != 0) return l3__io_error(err, io, off, n);
    *bytes = (const uint8_t *)dst + r.skip;
    return L3_OK;
}

/* Reads small pieces in any order through one buffer: file headers, offsets, vocabulary. */
typedef struct l3__reader {
    const l3_source *source;
    unsigned char   *buffer; /* aligned to source->align */
    size_t           capacity;
    uint64_t         at; /* the buffer holds [at, at + have) */
    size_t           have;
} l3__reader;

/* n bytes at off, valid until the next call; n <= capacity - align + 1. */
L3__FN const uint8_t *l3__peek(l3__reader *r, uint64_t off, size_t n, l3_error *err) {
    const l3_source *s = r->source;
    const uint8_t   *p;
    uint64_t         end;
    if (!l3__add(off, n, &end) || end > s->size) {
        l3__fail(err, L3_ERR_FORMAT, off, "the file ends at byte %U, inside something that starts at %U", s->size, off);
        return NULL;
    }
    if (n == 0) return r->buffer; /* at the very end there is nothing to ask for */
    if (s->map && (p = (const uint8_t *)s->map(s->user, off, n)) != NULL) return p;
    if (off < r->at || end > r->at + r->have) {
        const uint64_t mask = l3__align_of(s) - 1, start = off & ~mask, left = s->size - start;
        const size_t   room = r->capacity & ~(size_t)mask, size = left < room ? (size_t)left : room;
        r->have = 0;
        if (l3__read(s, start, size, r->buffer, &p, err) != L3_OK) return NULL;
        r->at   = start;
        r->have = size;
    }
    return r->buffer + (off - r->at);
}

/* What the buffer of a call that has no block yet holds: names of 127 bytes, wherever they begin in aligned blocks. */
#define L3__PEEK ((size_t)(L3_MAX_ALIGN > 128 ? 2 * L3_MAX_ALIGN : 256))

/* A reader over a buffer on the stack, for those calls. */
typedef struct l3__stack_buffer {
    unsigned char bytes[L3__PEEK + L3_MAX_ALIGN]; /* so many aligned ones wherever the stack put it */
} l3__stack_buffer;

L3__FN l3__reader l3__stack_reader(const l3_source *s, l3__stack_buffer *b) {
    const uint32_t align = l3__align_of(s);
    l3__reader     r;
    r.source   = s;
    r.buffer   = b->bytes + (align - (uint32_t)((uintptr_t)b->bytes % align)) % align;
    r.capacity = L3__PEEK;
    r.at       = 0;
    r.have     = 0;
    return r;
}

L3_API uint32_t l3_crc32(uint32_t crc, const void *bytes, size_t n) {
#if L3__SMALL
    static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
                                       0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                       0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
#else
    /* clang-format off */
    static const uint32_t table[256] = {
        0x00000000, 0x77073096, 0xee0e612c, 0x990951ba, 0x076dc419, 0x706af48f, 0xe963a535, 0x9e6495a3,
        0x0edb8832, 0x79dcb8a4, 0xe0d5e91e, 0x97d2d988, 0x09b64c2b, 0x7eb17cbd, 0xe7b82d07, 0x90bf1d91,
        0x1db71064, 0x6ab020f2, 0xf3b97148, 0x84be41de, 0x1adad47d, 0x6ddde4eb, 0xf4d4b551, 0x83d385c7,
        0x136c9856, 0x646ba8c0, 0xfd62f97a, 0x8a65c9ec, 0x14015c4f, 0x63066cd9, 0xfa0f3d63, 0x8d080df5,
        0x3b6e20c8, 0x4c69105e, 0xd56041e4, 0xa2677172, 0x3c03e4d1, 0x4b04d447, 0xd20d85fd, 0xa50ab56b,
        0x35b5a8fa, 0x42b2986c, 0xdbbbc9d6, 0xacbcf940, 0x32d86ce3, 0x45df5c75, 0xdcd60dcf, 0xabd13d59,
        0x26d930ac, 0x51de003a, 0xc8d75180, 0xbfd06116, 0x21b4f4b5, 0x56b3c423, 0xcfba9599, 0xb8bda50f,
        0x2802b89e, 0x5f058808, 0xc60cd9b2, 0xb10be924, 0x2f6f7c87, 0x58684c11, 0xc1611dab, 0xb6662d3d,
        0x76dc4190, 0x01db7106, 0x98d220bc, 0xefd5102a, 0x71b18589, 0x06b6b51f, 0x9fbfe4a5, 0xe8b8d433,
        0x7807c9a2, 0x0f00f934, 0x9609a88e, 0xe10e9818, 0x7f6a0dbb, 0x086d3d2d, 0x91646c97, 0xe6635c01,
        0x6b6b51f4, 0x1c6c6162, 0x856530d8, 0xf262004e, 0x6c0695ed, 0x1b01a57b, 0x8208f4c1, 0xf50fc457,
        0x65b0d9c6, 0x12b7e950, 0x8bbeb8ea, 0xfcb9887c, 0x62dd1ddf, 0x15da2d49, 0x8cd37cf3, 0xfbd44c65,
        0x4db26158, 0x3ab551ce, 0xa3bc0074, 0xd4bb30e2, 0x4adfa541, 0x3dd895d7, 0xa4d1c46d, 0xd3d6f4fb,
        0x4369e96a, 0x346ed9fc, 0xad678846, 0xda60b8d0, 0x44042d73, 0x33031de5, 0xaa0a4c5f, 0xdd0d7cc9,
        0x5005713c, 0x270241aa, 0xbe0b1010, 0xc90c2086, 0x5768b525, 0x206f85b3, 0xb966d409, 0xce61e49f,
        0x5edef90e, 0x29d9c998, 0xb0d09822, 0xc7d7a8b4, 0x59b33d17, 0x2eb40d81, 0xb7bd5c3b, 0xc0ba6cad,
        0xedb88320, 0x9abfb3b6, 0x03b6e20c, 0x74b1d29a, 0xead54739, 0x9dd277af, 0x04db2615, 0x73dc1683,
        0xe3630b12, 0x94643b84, 0x0d6d6a3e, 0x7a6a5aa8, 0xe40ecf0b, 0x9309ff9d, 0x0a00ae27, 0x7d079eb1,
        0xf00f9344, 0x8708a3d2, 0x1e01f268, 0x6906c2fe, 0xf762575d, 0x806567cb, 0x196c3671, 0x6e6b06e7,
        0xfed41b76, 0x89d32be0, 0x10da7a5a, 0x67dd4acc, 0xf9b9df6f, 0x8ebeeff9, 0x17b7be43, 0x60b08ed5,
        0xd6d6a3e8, 0xa1d1937e, 0x38d8c2c4, 0x4fdff252, 0xd1bb67f1, 0xa6bc5767, 0x3fb506dd, 0x48b2364b,
        0xd80d2bda, 0xaf0a1b4c, 0x36034af6, 0x41047a60, 0xdf60efc3, 0xa867df55, 0x316e8eef, 0x4669be79,
        0xcb61b38c, 0xbc66831a, 0x256fd2a0, 0x5268e236, 0xcc0c7795, 0xbb0b4703, 0x220216b9, 0x5505262f,
        0xc5ba3bbe, 0xb2bd0b28, 0x2bb45a92, 0x5cb36a04, 0xc2d7ffa7, 0xb5d0cf31, 0x2cd99e8b, 0x5bdeae1d,
        0x9b64c2b0, 0xec63f226, 0x756aa39c, 0x026d930a, 0x9c0906a9, 0xeb0e363f, 0x72076785, 0x05005713,
        0x95bf4a82, 0xe2b87a14, 0x7bb12bae, 0x0cb61b38, 0x92d28e9b, 0xe5d5be0d, 0x7cdcefb7, 0x0bdbdf21,
        0x86d3d2d4, 0xf1d4e242, 0x68ddb3f8, 0x1fda836e, 0x81be16cd, 0xf6b9265b, 0x6fb077e1, 0x18b74777,
        0x88085ae6, 0xff0f6a70, 0x66063bca, 0x11010b5c, 0x8f659eff, 0xf862ae69, 0x616bffd3, 0x166ccf45,
        0xa00ae278, 0xd70dd2ee, 0x4e048354, 0x3903b3c2, 0xa7672661, 0xd06016f7, 0x4969474d, 0x3e6e77db,
        0xaed16a4a, 0xd9d65adc, 0x40df0b66, 0x37d83bf0, 0xa9bcae53, 0xdebb9ec5, 0x47b2cf7f, 0x30b5ffe9,
        0xbdbdf21c, 0xcabac28a, 0x53b39330, 0x24b4a3a6, 0xbad03605, 0xcdd70693, 0x54de5729, 0x23d967bf,
        0xb3667a2e, 0xc4614ab8, 0x5d681b02, 0x2a6f2b94, 0xb40bbe37, 0xc30c8ea1, 0x5a05df1b, 0x2d02ef8d
    };
    /* clang-format on */
#endif
    const uint8_t *p = (const uint8_t *)bytes;
    crc              = ~crc;
    while (n--) {
#if L3__SMALL
        crc ^= *p++;
        for (int half = 0; half < 2; half++) crc = table[crc & 15] ^ crc >> 4;
#else
        crc = table[(crc ^ *p++) & 0xff] ^ crc >> 8;
#endif
    }
    return ~crc;
}

/* >>math ---------------------------------------------------------------------------------------------------------- */

/* Our own elementary functions: only IEEE operations, so that every machine gives the same bits. */

/* e^x: Cody-Waite reduction by ln 2, Cephes' polynomial (expf.c, S. Moshier). About 1 ulp; results below 2^-125 are 0. */
L3__INLINE float l3__expf(float x) {
    if (!(x > -86.6f)) return x != x ? x : 0.0f;
    if (x > 88.72f) return l3__as_float(0x7f800000u);
    const float shifted = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
    const float n       = shifted - 12582912.0f;
    const float r       = x - n * 0.693359375f + n * 2.12194440e-4f;
    float       p       = 1.9875691500e-4f;
    p                   = p * r + 1.3981999507e-3f;
    p                   = p * r + 8.3334519073e-3f;
    p                   = p * r + 4.1665795894e-2f;
    p                   = p * r + 1.6666665459e-1f;
    p                   = p * r + 5.0000001201e-1f;
    p                   = p * r * r + r + 1.0f;
    /* times 2^n: shifted's lowest bits are n's, and p is near 1, so that adding n to its exponent gives no infinity */
    return l3__as_float(l3__as_bits(p) + (l3__as_bits(shifted) << 23));
}

/* Square root, correctly rounded: in whole numbers, digit by digit. */
L3__FN float l3__sqrtf(float x) {
    if (!(x > 0.0f) || x > 3.4028235e38f) return x == 0.0f || x > 0.0f ? x : l3__as_float(0x7fc00000u);
#if defined(L3__X86) /* one instruction, with the same result */
    return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
#else
    const uint32_t bits     = l3__as_bits(x);
    int32_t        exponent = (int32_t)(bits >> 23) - 127;
    uint32_t       rest = bits & 0x7fffff, root = 0;
    if (exponent > -127) rest |= 0x800000;
    else
        for (exponent++; rest < 0x800000; exponent--) rest <<= 1; /* subnormal */
    rest <<= 1 + (exponent & 1); /* the root of rest * 2^24 has 25 digits, the last one for rounding */
    for (uint32_t digit = 1u << 24; digit > 0; digit >>= 1, rest <<= 1)
        if (rest >= 2 * root + digit) {
            rest -= 2 * root + digit;
            root += digit;
        }
    return l3__as_float(((uint32_t)((exponent - (exponent & 1)) / 2 + 126) << 23) + (root + 1) / 2);
#endif
}

/* e^x in double, |x| < 700, by a Taylor series after reduction: for RoPE frequencies. */
L3__FN double l3__exp(double x) {
    const double scaled = x * 1.44269504088896340736;
    const int    k      = (int)(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    const double r      = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
    double       sum = 1, term = 1, scale;
    for (int i = 1; i < 18; i++) sum += (term *= r / i);
    const uint64_t bits = (uint64_t)(k + 1023) << 52;
    memcpy(&scale, &bits, 8);
    return sum * scale;
}

/* ln x for normal x > 0: exponent and mantissa, then 2 artanh((m - 1) / (m + 1)) as a series. */
L3__FN double l3__log(double x) {
    uint64_t bits;
    double   m, sum = 0;
    memcpy(&bits, &x, 8);
    int k = (int)(bits >> 52) - 1023;
    bits  = (bits & 0xfffffffffffffull) | (uint64_t)1023 << 52;
    memcpy(&m, &bits, 8);
    if (m > 1.41421356237309505) {
        m *= 0.5;
        k++;
    }
    const double s = (m - 1) / (m + 1), s2 = s * s;
    for (int i = 23; i > 0; i -= 2) sum = sum * s2 + 1.0 / i;
    return 2 * s * sum + k * 6.93147180559945309417e-01;
}

/* Sine and cosine of an angle in radians, 0 <= a < 2^31: reduction by pi/2 in two parts (fdlibm's), Taylor series to within
 * 1e-11, without the divisions that take microcontrollers longest. */
L3__FN void l3__sincos(double a, float *sine, float *cosine) {
    const int64_t k = (int64_t)(a * 6.36619772367581382433e-01 + 0.5);
    const double  r = (a - (double)k * 1.57079632673412561417e+00) - (double)k * 6.07710050650619224932e-11, r2 = r * r;
    const double  s =
        r * (1 + r2 * (-1.0 / 6 + r2 * (1.0 / 120 + r2 * (-1.0 / 5040 + r2 * (1.0 / 362880 - r2 * (1.0 / 39916800))))));
    const double c =
        1 + r2 * (-1.0 / 2 + r2 * (1.0 / 24 + r2 * (-1.0 / 720 + r2 * (1.0 / 40320 + r2 * (-1.0 / 3628800 +
                                                                                           r2 * (1.0 / 479001600))))));
    const double quarter[4] = {s, c, -s, -c};
    *sine                   = (float)quarter[k & 3];
    *cosine                 = (float)quarter[(k + 1) & 3];
}

/* >>rows ---------------------------------------------------------------------------------------------------------- */

/* Layouts as in ggml (ggml-common.h). Every unpack function serves n <= 32 elements from a multiple of 32; a block
 * of Q8_0 may be cut short at the end of a row, which the KV cache uses for odd head widths. */
typedef void (*l3__unpack_fn)(const uint8_t *row, uint32_t first, uint32_t n, float *dst);

/* Exact for every half, subnormal ones included: the exponent is rebased by a multiplication. */
L3__INLINE float l3__from_f16(uint32_t h) {
    const uint32_t sign = (h & 0x8000) << 16, rest = (h & 0x7fff) << 13;
    const float    f    = l3__as_float(rest) * 5.192296858534828e33f; /* 2^112 */
    const uint32_t bits = (h & 0x7c00) == 0x7c00 ? rest | 0x7f800000u : l3__as_bits(f);
    return l3__as_float(bits | sign);
}

/* Round to nearest even; overflow to infinity. */
L3__FN uint32_t l3__to_f16(float f) {
    const uint32_t bits = l3__as_bits(f), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000u) return sign | 0x7e00;
    if (rest >= 0x477ff000u) return sign | 0x7c00; /* 65520 and above */
    if (rest < 0x38800000u)                        /* below 2^-14: adding 0.5 leaves units of 2^-24 in the mantissa */
        return sign | (l3__as_bits(l3__as_float(rest) + 0.5f) - 0x3f000000u);
    return sign | ((rest - 0x38000000u + 0xfff + (rest >> 13 & 1)) >> 13);
}

L3__FN uint32_t l3__to_bf16(float f) {
    const uint32_t bits = l3__as_bits(f);
    if ((bits & 0x7fffffff) > 0x7f800000u) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* Whether a build has a type, and what a table says of it. F32 is always there: norms are. */
#ifdef L3_NO_F16
#define L3__IF_F16(there) NULL
#else
#define L3__IF_F16(there) there
#endif
#ifdef L3_NO_BF16
#define L3__IF_BF16(there) NULL
#else
#define L3__IF_BF16(there) there
#endif
#ifdef L3_NO_Q8_0
#define L3__IF_Q8_0(there) NULL
#else
#define L3__IF_Q8_0(there) there
#endif
#ifdef L3_NO_Q4_0
#define L3__IF_Q4_0(there) NULL
#else
#define L3__IF_Q4_0(there) there
#endif
#ifdef L3_NO_Q6_K
#define L3__IF_Q6_K(there) NULL
#else
#define L3__IF_Q6_K(there) there
#endif

L3__INLINE void l3__unpack_f32(const uint8_t *row, uint32_t first, uint32_t n, float *dst) {
    row += (size_t)first * 4;
    for (uint32_t i = 0; i < n; i++) dst[i] = l3__as_float(l3__le32(row + 4 * i));
}
L3__INLINE void l3__unpack_f16(const uint8_t *row, uint32_t first, uint32_t n, float *dst) {
    row += (size_t)first * 2;
    for (uint32_t i = 0; i < n; i++) dst[i] = l3__from_f16(l3__le16(row + 2 * i));
}
L3__INLINE void l3__unpack_bf16(const uint8_t *row, uint32_t first, uint32_t n, float *dst) {
    row += (size_t)first * 2;
    for (uint32_t i = 0; i < n; i++) dst[i] = l3__as_float((uint32_t)l3__le16(row + 2 * i) << 16);
}
L3__INLINE void l3__unpack_q8_0(const uint8_t *row, uint32_t first, uint32_t n, float *dst) {
    row += (size_t)(first / 32) * 34;
    const float scale = l3__from_f16(l3__le16(row));
    for (uint32_t i = 0; i < n; i++) dst[i] = scale * (float)(int8_t)row[2 + i];
}
/* Low nibbles are elements 0 ... 15 of the block, high ones 16 ... 31. */
L3__INLINE void l3__unpack_q4_0(const uint8_t *row, uint32_t first, uint32_t n, float *dst) {
    row += (size_t)(first / 32) * 18;
    const float scale = l3__from_f16(l3__le16(row));
    float       part[32], *all = n < 32 ? part : dst;
    for (int i = 0; i < 16; i++) all[i] = scale * (float)((row[2 + i] & 15) - 8);
    for (int i = 0; i < 16; i++) all[16 + i] = scale * (float)((row[2 + i] >> 4) - 8);
    if (n < 32) memcpy(dst, part, n * sizeof *dst);
}
/* A block of 256 is ql[128], qh[64], int8 scales[16], f16 d. Each half of 128 elements has four groups of 32: low
 * nibbles of ql, then high ones; two more bits from qh, shifted by the group; one scale for each 16 elements. */
L3__INLINE void l3__unpack_q6_k(const uint8_t *row, uint32_t first, uint32_t n, float *dst) {
    row += (size_t)(first / 256) * 210;
    const uint32_t half = first / 128 % 2, group = first / 32 % 4;
    const uint8_t *ql = row + half * 64 + group % 2 * 32, *qh = row + 128 + half * 32;
    const uint8_t *scales = row + 192 + half * 8 + group * 2;
    const float    d      = l3__from_f16(l3__le16(row + 208));
    for (uint32_t i = 0; i < n; i++) {
        const int low = group < 2 ? ql[i] & 15 : ql[i] >> 4, high = qh[i] >> (2 * group) & 3;
        dst[i] = d * (float)(int8_t)scales[i / 16] * (float)((low | high << 4) - 32);
    }
}

L3__FN l3__unpack_fn l3__unpacker(int type) {
    switch (type) {
    case L3_F32: return l3__unpack_f32;
    case L3_F16: return L3__IF_F16(l3__unpack_f16);
    case L3_BF16: return L3__IF_BF16(l3__unpack_bf16);
    case L3_Q8_0: return L3__IF_Q8_0(l3__unpack_q8_0);
    case L3_Q4_0: return L3__IF_Q4_0(l3__unpack_q4_0);
    case L3_Q6_K: return L3__IF_Q6_K(l3__unpack_q6_k);
    default: return NULL;
    }
}

L3_API void l3_unpack(int type, const void *row, uint32_t first, uint32_t n, float *dst) {
    const l3__unpack_fn unpack = l3__unpacker(type);
    for (uint32_t i = 0; unpack && i < n; i += 32)
        unpack((const uint8_t *)row, first + i, n - i < 32 ? n - i : 32, dst + i);
}

/* Refuses a type that has no unpacking here. */
L3__FN int l3__refuse_type(l3_error *err, uint64_t offset, const char *name, uint32_t type) {
    const char *left_out = NULL;
    switch (type) {
    case L3_F16: left_out = "L3_NO_F16"; break;
    case L3_BF16: left_out = "L3_NO_BF16"; break;
    case L3_Q8_0: left_out = "L3_NO_Q8_0"; break;
    case L3_Q4_0: left_out = "L3_NO_Q4_0"; break;
    case L3_Q6_K: left_out = "L3_NO_Q6_K"; break;
    default:
        return l3__fail(err, L3_ERR_UNSUPPORTED, offset, "%s has type %u, which is not supported here", name, type);
    }
    return l3__fail(err, L3_ERR_UNSUPPORTED, offset, "%s has a type that this build leaves out by %s", name, left_out);
}

L3_API const char *l3_type_name(int type) {
    switch (type) {
    case L3_F32: return "f32";
    case L3_F16: return "f16";
    case L3_BF16: return "bf16";
    case L3_Q8_0: return "q8_0";
    case L3_Q4_0: return "q4_0";
    case L3_Q6_K: return "q6_K";
    case L3_I32: return "i32";
    default: return NULL;
    }
}

/* Elements and bytes of a block; 0 elements for an unknown type. */
L3__FN uint32_t l3__block_of(int type, uint32_t *bytes) {
    uint32_t elements = 1;
    switch (type) {
    case L3_F32:
    case L3_I32: *bytes = 4; break;
    case L3_F16:
    case L3_BF16: *bytes = 2; break;
    case L3_Q8_0: elements = 32, *bytes = 34; break;
    case L3_Q4_0: elements = 32, *bytes = 18; break;
    case L3_Q6_K: elements = 256, *bytes = 210; break;
    default: elements = 0, *bytes = 0; break;
    }
    return elements;
}

L3_API uint32_t l3_type_block(int type) {
    uint32_t bytes;
    return l3__block_of(type, &bytes);
}

L3_API uint64_t l3_row_bytes(int type, uint32_t cols) {
    uint32_t       bytes;
    const uint32_t elements = l3__block_of(type, &bytes);
    return elements == 0 || cols % elements != 0 ? 0 : (uint64_t)(cols / elements) * bytes;
}

/* To the nearest integer in [low, high]; NaN gives low. */
L3__INLINE int l3__round_to(float v, int low, int high) {
    if (!(v > (float)low)) return low;
    if (v > (float)high) return high;
    const int   whole = (int)v; /* adding 0.5 first would round 0.49999997 up */
    const float rest  = v - (float)whole;
    return whole + (rest >= 0.5f) - (rest <= -0.5f);
}

/* One block of n <= 32 elements; the scale maps the largest magnitude to 127. */
L3__FN void l3__pack_q8_0(const float *src, uint32_t n, uint8_t *dst) {
    float peak = 0;
    for (uint32_t i = 0; i < n; i++) {
        const float magnitude = src[i] < 0 ? -src[i] : src[i];
        if (magnitude > peak) peak = magnitude;
    }
    const float scale = peak / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
    l3__put_le16(dst, l3__to_f16(scale));
    for (uint32_t i = 0; i < n; i++) dst[2 + i] = (uint8_t)(l3__round_to(src[i] * inverse, -127, 127) & 0xff);
}

/* One block of 32; the scale maps the element of largest magnitude to -8. */
L3__FN void l3__pack_q4_0(const float *src, uint32_t n, uint8_t *dst) {
    float peak = 0;
    (void)n;
    for (int i = 0; i < 32; i++)
        if ((src[i] < 0 ? -src[i] : src[i]) > (peak < 0 ? -peak : peak)) peak = src[i];
    const float scale = peak / -8.0f, inverse = peak < 0 || peak > 0 ? 1.0f / scale : 0.0f;
    l3__put_le16(dst, l3__to_f16(scale));
    for (int i = 0; i < 16; i++) {
        const int low  = l3__round_to(src[i] * inverse, -8, 7) + 8;
        const int high = l3__round_to(src[16 + i] * inverse, -8, 7) + 8;
        dst[2 + i]     = (uint8_t)(low | high << 4);
    }
}

L3__FN void l3__pack_row_f32(const float *src, uint32_t n, uint8_t *dst) {
    for (uint32_t i = 0; i < n; i++) l3__put_le32(dst + 4 * i, l3__as_bits(src[i]));
}
L3__FN void l3__pack_row_f16(const float *src, uint32_t n, uint8_t *dst) {
    for (uint32_t i = 0; i < n; i++) l3__put_le16(dst + 2 * i, l3__to_f16(src[i]));
}
L3__FN void l3__pack_row_bf16(const float *src, uint32_t n, uint8_t *dst) {
    for (uint32_t i = 0; i < n; i++) l3__put_le16(dst + 2 * i, l3__to_bf16(src[i]));
}

/* Like l3__unpack_fn, from the start of a block or of 32 elements on. */
typedef void (*l3__pack_fn)(const float *src, uint32_t n, uint8_t *dst);

L3__FN l3__pack_fn l3__packer(int type) {
    switch (type) {
    case L3_F32: return l3__pack_row_f32;
    case L3_F16: return L3__IF_F16(l3__pack_row_f16);
    case L3_BF16: return L3__IF_BF16(l3__pack_row_bf16);
    case L3_Q8_0: return L3__IF_Q8_0(l3__pack_q8_0);
    case L3_Q4_0: return L3__IF_Q4_0(l3__pack_q4_0);
    default: return NULL;
    }
}

L3_API void l3_pack(int type, const float *src, uint32_t n, void *row) {
    const l3__pack_fn pack = l3__packer(type);
    const size_t      step = (size_t)l3_row_bytes(type, 32);
    for (uint32_t i = 0; pack && i < n; i += 32) pack(src + i, n - i < 32 ? n - i : 32, (uint8_t *)row + i / 32 * step);
}

L3_API void l3_pack_i32(const int32_t *src, uint32_t n, void *row) {
    for (uint32_t i = 0; i < n; i++) l3__put_le32((uint8_t *)row + (size_t)i * 4, (uint32_t)src[i]);
}

L3__FN bool l3__in_memory(const l3_tensor *t) { return t->data != NULL && t->pinned == 0; }
L3__FN bool l3__present(const l3_tensor *t) { return t->data != NULL || t->source != NULL; }

L3__FN uint64_t l3__tensor_bytes(const l3_tensor *t) { return l3_row_bytes(t->type, t->cols) * t->rows; }

/* >>matmul -------------------------------------------------------------------------------------------------------- */

/* The order of every dot product: element i goes to lane i mod 16, lanes are added pairwise. It leaves room for vectors
 * of up to 16 floats on every machine and gives the same bits on all. */
#define L3__LANES 16

L3__INLINE float l3__lanes_sum(const float *lane) {
    float s[8];
    for (int i = 0; i < 8; i++) s[i] = lane[i] + lane[i + 8];
    for (int i = 0; i < 4; i++) s[i] += s[i + 4];
    return (s[0] + s[2]) + (s[1] + s[3]);
}

/* Lanes stay in registers only where the compiler sees through the loops over them: with gcc twice the speed at -O2. */
#if defined(__clang__) && defined(__ARM_NEON)
#define L3__PRAGMA(text) _Pragma(#text)
#define L3__UNROLL       L3__PRAGMA(clang loop unroll(full))
#elif defined(__GNUC__) && !defined(__clang__)
#define L3__PRAGMA(text) _Pragma(#text)
#define L3__UNROLL       L3__PRAGMA(GCC unroll 16)
#else
#define L3__UNROLL
#endif

L3__INLINE void l3__lanes_clear(float *lane) {
    L3__UNROLL
    for (int i = 0; i < L3__LANES; i++) lane[i] = 0;
}

L3__INLINE void l3__lanes_add32(float *lane, const float *a, const float *b) {
#if L3__SMALL
    for (int k = 0; k < 32; k += L3__LANES) {
        L3__UNROLL
        for (int i = 0; i < L3__LANES; i++) lane[i] += a[k + i] * b[k + i];
    }
#else
    L3__UNROLL
    for (int i = 0; i < L3__LANES; i++) lane[i] += a[i] * b[i];
    L3__UNROLL
    for (int i = 0; i < L3__LANES; i++) lane[i] += a[i + L3__LANES] * b[i + L3__LANES];
#endif
}

/* The last n < 32 elements. */
L3__INLINE void l3__lanes_add(float *lane, const float *a, const float *b, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) lane[i % L3__LANES] += a[i] * b[i];
}

L3__FN float l3__dot(const float *a, const float *b, uint32_t n) {
    float    lane[L3__LANES] = {0};
    uint32_t i               = 0;
    for (; !L3__SMALL && i + 32 <= n; i += 32) l3__lanes_add32(lane, a + i, b + i);
    l3__lanes_add(lane, a + i, b + i, n - i);
    return l3__lanes_sum(lane);
}

/* Y = X W^T for rows of one weight type: w (rows, cols), x (n, cols) with stride xs, y (n, rows) with stride ys.
 * Every y is one dot product in the order above, whatever n is. */
typedef void (*l3__matmul_fn)(const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols, const float *x,
                              size_t xs, uint32_t n, float *y, size_t ys);

/* One row against `count` positions, 1 or 4: a row of weights is unpacked once for four positions. */
L3__INLINE void l3__dot_row(l3__unpack_fn unpack, const uint8_t *row, uint32_t cols, const float *x, size_t xs,
                            const int count, float *y, size_t ys) {
    float    lane[L3__SMALL ? 1 : 4][L3__LANES], w[32];
    uint32_t i = 0;
    L3__UNROLL
    for (int p = 0; p < count; p++) l3__lanes_clear(lane[p]);
    for (; i + 32 <= cols; i += 32) {
        unpack(row, i, 32, w);
        L3__UNROLL
        for (int p = 0; p < count; p++) l3__lanes_add32(lane[p], w, x + (size_t)p * xs + i);
    }
    if (i < cols) {
        unpack(row, i, cols - i, w);
        for (int p = 0; p < count; p++) l3__lanes_add(lane[p], w, x + (size_t)p * xs + i, cols - i);
    }
    for (int p = 0; p < count; p++) y[(size_t)p * ys] = l3__lanes_sum(lane[p]);
}

L3__INLINE void l3__matmul_by(l3__unpack_fn unpack, const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols,
                              const float *x, size_t xs, uint32_t n, float *y, size_t ys) {
    for (uint32_t r = 0; r < rows; r++) {
        const uint8_t *row = w + r * row_bytes;
        uint32_t       p   = 0;
        for (; !L3__SMALL && p + 4 <= n; p += 4) l3__dot_row(unpack, row, cols, x + p * xs, xs, 4, y + p * ys + r, ys);
        for (; p < n; p++) l3__dot_row(unpack, row, cols, x + p * xs, xs, 1, y + p * ys + r, ys);
    }
}

/* A matmul for each type, with the unpacking inlined. */
#define L3__MATMUL(name)                                                                                            \
    L3__FN void l3__matmul_##name(const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols, const float *x, \
                                  size_t xs, uint32_t n, float *y, size_t ys) {                                     \
        l3__matmul_by(l3__unpack_##name, w, row_bytes, rows, cols, x, xs, n, y, ys);                                \
    }
L3__MATMUL(f32)
L3__MATMUL(f16)
L3__MATMUL(bf16)
L3__MATMUL(q8_0)
L3__MATMUL(q4_0)
L3__MATMUL(q6_k)

/* acc += weight * row, element by element. */
L3__FN void l3__add_scaled(float *acc, const float *row, float weight, size_t n) {
    for (size_t i = 0; i < n; i++) acc[i] += weight * row[i];
}

/* x *= factor */
L3__FN void l3__scale(float *x, float factor, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] *= factor;
}

/* y = x * scale * weight; weight NULL means ones; y may be x. */
L3__FN void l3__normalize(const float *x, const float *weight, float scale, size_t n, float *y) {
    for (size_t i = 0; i < n; i++) y[i] = weight ? x[i] * scale * weight[i] : x[i] * scale;
}

/* gate = silu(gate) * up */
L3__FN void l3__swiglu(float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + l3__expf(-gate[i])) * up[i];
}

/* What an exponential counts as where work is cut into pieces of so many multiply-adds. */
#define L3__EXP_COST 16u

/* Positions that share one rescaling of the online softmax: multiples of it from the text's start, whatever the call. */
#define L3__TILE 32u

/* The first n of a tile's scores w become exp(w * scale - peak), the others 0, after *peak has risen to the highest of them.
 * Returns their sum, which goes by lanes as in a dot product. */
L3__FN float l3__softmax_tile(float *w, uint32_t n, float scale, float *peak) {
    float lane[L3__LANES];
    for (uint32_t i = 0; i < n; i++) {
        w[i] *= scale;
        if (w[i] > *peak) *peak = w[i];
    }
    for (uint32_t i = 0; i < L3__TILE; i++) w[i] = i < n ? l3__expf(w[i] - *peak) : 0;
    for (uint32_t i = 0; i < L3__LANES; i++) lane[i] = w[i] + w[i + L3__LANES];
    return l3__lanes_sum(lane);
}

/* out (heads, cols) += the n rows weighted by w (heads, L3__TILE), row after row. */
L3__FN void l3__weigh_rows(int type, const uint8_t *rows, size_t row_bytes, const float *w, uint32_t n, float *out,
                           uint32_t cols, uint32_t heads) {
    const l3__unpack_fn unpack = l3__unpacker(type);
    float               v[32];
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t i = 0; i < cols; i += 32) {
            const uint32_t left = cols - i < 32 ? cols - i : 32;
            unpack(rows + t * row_bytes, i, left, v);
            for (uint32_t h = 0; h < heads; h++)
                l3__add_scaled(out + (size_t)h * cols + i, v, w[h * L3__TILE + t], left);
        }
}

L3__FN void l3__unpack_row(int type, const uint8_t *row, uint32_t n, float *dst) { l3_unpack(type, row, 0, n, dst); }

L3__FN void l3__center(float *x, uint32_t n) {
    float sum[L3__LANES] = {0};
    for (uint32_t i = 0; i < n; i++) sum[i % L3__LANES] += x[i];
    const float mean = l3__lanes_sum(sum) / (float)n;
    for (uint32_t i = 0; i < n; i++) x[i] -= mean;
}

/* How L3_FAST multiplies weights of one type, Y = X W^T. X (n, cols) is packed first, `tile` positions at a time, each block
 * of 32 elements into `words` words of 32 bits a position. Then either one function does the rest (`rows`: the rows take the
 * packed positions one by one, or AMX goes its own way), or, for many positions, panels of 16 rows are made of the weights
 * (`panel`, blocks first ... end - 1 of cols elements, panel_words times 16 words a block) and multiplied with a tile at a
 * time (`times`, so many blocks deep: c (tile, 16), with stride cs, is set if `first`, else added to). */
typedef struct l3__fast {
    void (*pack)(int type, const float *x, size_t xs, uint32_t n, uint32_t cols, unsigned char *dst);
    void (*rows)(int type, const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols, const unsigned char *x,
                 uint32_t n, float *y, size_t ys);
    void (*panel)(int type, const uint8_t *const *rows, uint32_t first, uint32_t end, uint32_t cols, void *panel);
    void (*times)(const void *panel, const void *x, uint32_t blocks, bool first, float *c, size_t cs);
    uint32_t tile, words, panel_words;
} l3__fast;

/* The 16 rows of a panel; what is beyond the last one is any row, and its results are thrown away. */
L3__FN void l3__panel_rows(const uint8_t **row, const uint8_t *w, size_t row_bytes, uint32_t rows) {
    for (uint32_t r = 0; r < 16; r++) row[r] = w + (r < rows ? r : 0) * row_bytes;
}

/* Whether any level here has products of its own for L3_FAST. Where none has, what would pack activations for them is left out. */
#if defined(L3__VECTORS) || defined(L3__FIXED)
#define L3__HAS_FAST 1
#else
#define L3__HAS_FAST 0
#endif

#define L3__N_TYPES 6
L3__FN int l3__type_index(int type) {
    switch (type) {
    case L3_F32: return 0;
    case L3_F16: return 1;
    case L3_BF16: return 2;
    case L3_Q8_0: return 3;
    case L3_Q4_0: return 4;
    default: return 5;
    }
}

/* >>fixed --------------------------------------------------------------------------------------------------------- */

#if defined(L3__FIXED)
/* L3_FAST in whole numbers, in little code, for processors that multiply them faster than floats: Cortex-M, RISC-V, and all that
 * compute floats by software. Activations become int16 with one scale for a position, finer than int8 with a scale for each block
 * unless a block is 258 times smaller than the largest. Their products with Q8_0, Q4_0 and Q6_K weights are exact: so are the
 * sums, in units of 2^-24 of the scale, and every level of this kind gives the same ones. */

/* 32 activations of a position; what they add up to; and what a unit of a sum is worth, the same in all blocks. */
typedef struct l3__fixed_block {
    int16_t q[32];
    int32_t sum;
    float   unit;
} l3__fixed_block;

/* Where activation i of a block lies, and the sum of w[i] * x[i] over 16 signed bytes, or over 16 bytes with a low nibble for x[0]
 * to x[15] and a high one for x[16] to x[31]. */
#if defined(L3__DSP)
/* Bytes 0 and 2, and 1 and 3, of a word become two numbers of 16 bits by one instruction. */
L3__INLINE uint32_t l3__fixed_at(uint32_t i) { return (i & ~3u) | (i & 1) << 1 | (i >> 1 & 1); }

L3__INLINE uint32_t l3__sxtb16_8(uint32_t w) {
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(w) : "r"(w)); /* from the intrinsic gcc makes two instructions */
    return w;
}
L3__INLINE int32_t l3__smlad(uint32_t w, const int16_t *x, int32_t sum) {
    int16x2_t pair;
    memcpy(&pair, x, 4);
    return __smlad((int16x2_t)w, pair, sum);
}
L3__INLINE int32_t l3__fixed_bytes(const uint8_t *w, const int16_t *x) {
    int32_t sum = 0;
    L3__UNROLL
    for (int i = 0; i < 16; i += 4) {
        const uint32_t four = l3__le32(w + i);
        sum                 = l3__smlad((uint32_t)__sxtb16((int8x4_t)four), x + i, sum);
        sum                 = l3__smlad(l3__sxtb16_8(four), x + i + 2, sum);
    }
    return sum;
}
L3__INLINE int32_t l3__fixed_nibbles(const uint8_t *w, const int16_t *x) {
    int32_t sum = 0;
    L3__UNROLL
    for (int i = 0; i < 16; i += 4) {
        const uint32_t four = l3__le32(w + i), nibbles = 0x000f000f;
        sum = l3__smlad(four & nibbles, x + i, sum);
        sum = l3__smlad(four >> 8 & nibbles, x + i + 2, sum);
        sum = l3__smlad(four >> 4 & nibbles, x + 16 + i, sum);
        sum = l3__smlad(four >> 12 & nibbles, x + 18 + i, sum);
    }
    return sum;
}
#else
L3__INLINE uint32_t l3__fixed_at(uint32_t i) { return i; }

#if defined(L3__HELIUM)
L3__INLINE int32_t  l3__fixed_bytes(const uint8_t *w, const int16_t *x) {
     const void   *p   = w;
     const int32_t sum = vmladavq_s16(vldrbq_s16((const int8_t *)p), vldrhq_s16(x));
     return vmladavaq_s16(sum, vldrbq_s16((const int8_t *)p + 8), vldrhq_s16(x + 8));
}
L3__INLINE int32_t l3__fixed_nibbles(const uint8_t *w, const int16_t *x) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i += 8) {
        const uint16x8_t q = vldrbq_u16(w + i);
        sum = vmladavaq_s16(sum, vreinterpretq_s16_u16(vandq_u16(q, vdupq_n_u16(15))), vldrhq_s16(x + i));
        sum = vmladavaq_s16(sum, vreinterpretq_s16_u16(vshrq_n_u16(q, 4)), vldrhq_s16(x + 16 + i));
    }
    return sum;
}
#elif defined(L3__RVV)
L3__INLINE int32_t l3__fixed_sum(vint32m4_t v) {
    return __riscv_vmv_x_s_i32m1_i32(__riscv_vredsum_vs_i32m4_i32m1(v, __riscv_vmv_v_x_i32m1(0, 1), 16));
}
L3__INLINE int32_t l3__fixed_bytes(const uint8_t *w, const int16_t *x) {
    const void      *p = w;
    const vint16m2_t q = __riscv_vsext_vf2_i16m2(__riscv_vle8_v_i8m1((const int8_t *)p, 16), 16);
    return l3__fixed_sum(__riscv_vwmul_vv_i32m4(q, __riscv_vle16_v_i16m2(x, 16), 16));
}
L3__INLINE int32_t l3__fixed_bytes32(const uint8_t *w, const int16_t *x) {
    const void      *p = w;
    const vint16m4_t q = __riscv_vsext_vf2_i16m4(__riscv_vle8_v_i8m2((const int8_t *)p, 32), 32);
    const vint32m8_t v = __riscv_vwmul_vv_i32m8(q, __riscv_vle16_v_i16m4(x, 32), 32);
    return __riscv_vmv_x_s_i32m1_i32(__riscv_vredsum_vs_i32m8_i32m1(v, __riscv_vmv_v_x_i32m1(0, 1), 32));
}
L3__INLINE int32_t l3__fixed_nibbles(const uint8_t *w, const int16_t *x) {
    const vuint8m1_t q = __riscv_vle8_v_u8m1(w, 16);
    const vint16m2_t low =
        __riscv_vreinterpret_v_u16m2_i16m2(__riscv_vzext_vf2_u16m2(__riscv_vand_vx_u8m1(q, 15, 16), 16));
    const vint16m2_t high =
        __riscv_vreinterpret_v_u16m2_i16m2(__riscv_vzext_vf2_u16m2(__riscv_vsrl_vx_u8m1(q, 4, 16), 16));
    const vint32m4_t half = __riscv_vwmul_vv_i32m4(low, __riscv_vle16_v_i16m2(x, 16), 16);
    return l3__fixed_sum(__riscv_vwmacc_vv_i32m4(half, high, __riscv_vle16_v_i16m2(x + 16, 16), 16));
}
#else
L3__INLINE int32_t l3__fixed_bytes(const uint8_t *w, const int16_t *x) {
    int32_t sum = 0;
    L3__UNROLL
    for (int i = 0; i < 16; i++) sum += (int8_t)w[i] * x[i];
    return sum;
}
L3__INLINE int32_t l3__fixed_nibbles(const uint8_t *w, const int16_t *x) {
    int32_t sum = 0;
    L3__UNROLL
    for (int i = 0; i < 16; i++) sum += (w[i] & 15) * x[i] + (w[i] >> 4) * x[16 + i];
    return sum;
}
#endif
#endif
#if !defined(L3__RVV)
L3__INLINE int32_t l3__fixed_bytes32(const uint8_t *w, const int16_t *x) {
    return l3__fixed_bytes(w, x) + l3__fixed_bytes(w + 16, x + 16);
}
#endif

/* Up to 32767 in size; for Q6_K, whose 32 products with 6 bits and a scale of 8 are added up, half of that. What is no number
 * leaves a unit that is none. */
L3__FN void l3__fixed_pack(int type, const float *x, size_t xs, uint32_t n, uint32_t cols, unsigned char *dst) {
    const float      limit = type == L3_Q6_K ? 16383.0f : 32767.0f;
    void            *first = dst;
    l3__fixed_block *to    = (l3__fixed_block *)first;
    for (; n > 0; n--, x += xs) {
        uint32_t peak = 0; /* magnitudes are compared as integers, which orders NaN above infinity */
        for (uint32_t i = 0; i < cols; i++) {
            const uint32_t size = l3__as_bits(x[i]) & 0x7fffffff;
            if (size > peak) peak = size;
        }
        const float high = l3__as_float(peak), unit = high / limit * 5.9604644775390625e-8f; /* 2^-24 */
        const bool  usable = peak > 0x1e000000u && peak < 0x7f800000u;                       /* from 7e-21 on */
        const float factor = usable ? limit / high : 0.0f;
        for (uint32_t i = 0; i < cols; i += 32, to++) {
            to->sum  = 0;
            to->unit = unit;
            for (uint32_t k = 0; k < 32; k++) { /* to nearest even; right below 2^22 */
                const float   shifted  = x[i + k] * factor + 12582912.0f;
                const int32_t q        = usable ? (int32_t)(l3__as_bits(shifted) - 0x4b400000u) : 0;
                to->q[l3__fixed_at(k)] = (int16_t)q;
                to->sum += q;
            }
        }
    }
}

/* One of 8 groups of 32 of a block of Q6_K, with its two scales. */
L3__FN int32_t l3__fixed_q6(const uint8_t *block, uint32_t group, const int16_t *x) {
    const uint8_t *ql = block + group / 4 * 64 + group % 2 * 32, *qh = block + 128 + group / 4 * 32;
    const uint32_t low = group % 4 / 2 * 4, high = group % 4 * 2;
    int32_t        sum = 0;
    for (uint32_t h = 0; h < 2; h++, ql += 16, qh += 16, x += 16) {
        uint8_t v[16];
        for (uint32_t i = 0; i < 16; i++) v[i] = (uint8_t)(((ql[i] >> low & 15) | (qh[i] >> high & 3) << 4) - 32);
        sum += (int8_t)block[192 + group * 2 + h] * l3__fixed_bytes(v, x);
    }
    return sum;
}

/* A half below 1 in units of 2^-24. */
L3__INLINE int32_t l3__fixed_half(uint32_t h) {
#if defined(__arm__) && defined(__ARM_FP) && defined(__ARM_FEATURE_FMA) /* VFPv4 and FPv4 on */
    float f = l3__as_float(h);
    __asm__("vcvtb.f32.f16 %0, %0\n\tvcvt.s32.f32 %0, %0, #24" : "+t"(f));
    return (int32_t)l3__as_bits(f);
#else
    const uint32_t exponent = h >> 10 & 31, rest = h & 0x3ff;
    const uint32_t size = exponent ? (rest | 0x400) << (exponent - 1) : rest;
    return h & 0x8000 ? -(int32_t)size : (int32_t)size;
#endif
}

L3__INLINE float l3__fixed_float(int64_t v) {
#if defined(__arm__) && defined(__ARM_FP) /* in two parts, which need no function */
    return (float)(int32_t)(v >> 32) * 4294967296.0f + (float)(uint32_t)v;
#else
    return (float)v;
#endif
}

/* A row times a position where the rest would not do: by floats. */
L3__FN float l3__fixed_wide(int type, const uint8_t *row, const l3__fixed_block *x, uint32_t blocks) {
    const float unit = x->unit * 16777216.0f;
    float       w[32], sum = 0;
    for (uint32_t b = 0; b < blocks; b++, x++) {
        l3_unpack(type, row, b * 32, 32, w);
        for (uint32_t i = 0; i < 32; i++) sum += w[i] * (float)x->q[l3__fixed_at(i)];
    }
    return sum * unit;
}

/* y (rows,) = rows times one position. Sums of 64 bits have room for 2^12 times 2^27 * 2^24, or with Q6_K for 2^8 times
 * 2^31 * 2^24; scales of 1 and more do not occur and go another way. */
L3__INLINE void l3__fixed_some(const int type, const uint8_t *w, size_t row_bytes, uint32_t rows,
                               const l3__fixed_block *x, uint32_t blocks, float *y) {
    const float unit = x->unit;
    const bool  fits = blocks <= (type == L3_Q6_K ? 256 : 4096);
    for (; rows > 0; rows--, w += row_bytes) {
        const l3__fixed_block *at    = x;
        const uint8_t         *q     = w;
        int64_t                total = 0;
        uint32_t               left  = blocks;
        for (; fits && left > 0; left--, at++) {
            const uint32_t half = l3__le16(type == L3_Q6_K ? q + 208 : q);
            int32_t        s;
            if ((half & 0x7fff) >= 0x3c00) break;
            if (type == L3_Q8_0) s = l3__fixed_bytes32(q + 2, at->q);
            else if (type == L3_Q4_0) s = l3__fixed_nibbles(q + 2, at->q) - 8 * at->sum;
            else s = l3__fixed_q6(q, (blocks - left) % 8, at->q);
            total += (int64_t)s * l3__fixed_half(half);
            q += type == L3_Q8_0 ? 34 : type == L3_Q4_0 ? 18 : (blocks - left) % 8 == 7 ? 210 : 0;
        }
        *y++ = left > 0 ? l3__fixed_wide(type, w, x, blocks) : l3__fixed_float(total) * unit;
    }
}

/* out (cols,) += the n <= 32 rows of Q8_0 weighted by w, which is rounded after it has met the rows' scales. */
L3__APART void l3__fixed_weigh(const uint8_t *rows, size_t row_bytes, const float *w, uint32_t n, float *out,
                               uint32_t cols) {
    for (uint32_t i = 0; i < cols; i += 32, rows += 34, out += 32) {
        float           weight[32] = {0};
        l3__fixed_block x;
        void           *packed = &x;
        for (uint32_t t = 0; t < n; t++) weight[t] = w[t] * l3__from_f16(l3__le16(rows + t * row_bytes));
        l3__fixed_pack(L3_Q8_0, weight, 0, 1, 32, (unsigned char *)packed);
        const float unit = x.unit * 16777216.0f;
        for (uint32_t c = 0; c < 32; c += 4) {
            const uint8_t *v      = rows + 2 + c;
            int32_t        sum[4] = {0, 0, 0, 0};
            for (uint32_t t = 0; t < n; t++, v += row_bytes) {
                const int32_t q = x.q[l3__fixed_at(t)];
                L3__UNROLL
                for (int j = 0; j < 4; j++) sum[j] += q * (int8_t)v[j];
            }
            for (uint32_t j = 0; j < 4; j++) out[c + j] += (float)sum[j] * unit;
        }
    }
}

/* Several positions share 16 rows, which lie in a cache then. */
#define L3__FIXED_ROWS(name, type)                                                                             \
    L3__FN void l3__fixed_rows_##name(int t, const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols, \
                                      const unsigned char *packed, uint32_t n, float *y, size_t ys) {          \
        const void    *x    = packed;                                                                          \
        const uint32_t step = n == 1 ? rows : 16, blocks = cols / 32;                                          \
        (void)t;                                                                                               \
        for (uint32_t r = 0; r < rows; r += step)                                                              \
            for (uint32_t p = 0; p < n; p++)                                                                   \
                l3__fixed_some(type, w + r * row_bytes, row_bytes, rows - r < step ? rows - r : step,          \
                               (const l3__fixed_block *)x + p * blocks, blocks, y + p * ys + r);               \
    }                                                                                                          \
    static const l3__fast l3__fixed_##name = {l3__fixed_pack, l3__fixed_rows_##name, NULL, NULL, 1, 18, 0};
#ifndef L3_NO_Q8_0
L3__FIXED_ROWS(q8_0, L3_Q8_0)
#endif
#ifndef L3_NO_Q4_0
L3__FIXED_ROWS(q4_0, L3_Q4_0)
#endif
#ifndef L3_NO_Q6_K
L3__FIXED_ROWS(q6_k, L3_Q6_K)
#endif
#define L3__FIXED_DECODE \
    { NULL, NULL, NULL, L3__IF_Q8_0(&l3__fixed_q8_0), L3__IF_Q4_0(&l3__fixed_q4_0), L3__IF_Q6_K(&l3__fixed_q6_k) }
#endif

/* n pairs (a, b) of x, each turned by its angle. */
L3__FN void l3__rotate(float *x, const float *cosine, const float *sine, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i]     = a * cosine[i] - b * sine[i];
        x[2 * i + 1] = a * sine[i] + b * cosine[i];
    }
}

/* The kernels of one level. The first ones give the same bits at every level. */
typedef struct l3__kernels {
    l3_level level;
    uint32_t batch; /* positions at once if nothing else is said */
    float (*dot)(const float *a, const float *b, uint32_t n);
    void (*unpack)(int type, const uint8_t *row, uint32_t n, float *dst);
    void (*pack)(int type, const float *src, uint32_t n, void *row);
    void (*add_scaled)(float *acc, const float *row, float weight, size_t n);
    void (*scale)(float *x, float factor, size_t n);
    void (*normalize)(const float *x, const float *weight, float scale, size_t n, float *y);
    void (*swiglu)(float *gate, const float *up, size_t n);
    void (*rotate)(float *x, const float *cosine, const float *sine, uint32_t n);
    float (*softmax_tile)(float *w, uint32_t n, float scale, float *peak);
    void (*weigh_rows)(int type, const uint8_t *rows, size_t row_bytes, const float *w, uint32_t n, float *out,
                       uint32_t cols, uint32_t heads);
    l3__matmul_fn matmul[L3__N_TYPES];
    /* L3_FAST, NULL where `matmul` is as good: for decoding, and for many positions of a text at once. */
    const l3__fast *decode[L3__N_TYPES], *prefill[L3__N_TYPES];
} l3__kernels;

#define L3__PLAIN_KERNELS                                                                                       \
    l3__dot, l3__unpack_row, l3_pack, l3__add_scaled, l3__scale, l3__normalize, l3__swiglu, l3__rotate,         \
        l3__softmax_tile, l3__weigh_rows, {                                                                     \
        l3__matmul_f32, L3__IF_F16(l3__matmul_f16), L3__IF_BF16(l3__matmul_bf16), L3__IF_Q8_0(l3__matmul_q8_0), \
            L3__IF_Q4_0(l3__matmul_q4_0), L3__IF_Q6_K(l3__matmul_q6_k)                                          \
    }
#define L3__NO_FAST \
    { NULL, NULL, NULL, NULL, NULL, NULL }
#if defined(L3__FIXED)
static const l3__kernels l3__fixed_kernels = {L3__FIXED, 32, L3__PLAIN_KERNELS, L3__FIXED_DECODE, L3__NO_FAST};
#endif
static const l3__kernels l3__plain_kernels = {L3_LEVEL_PLAIN, 32, L3__PLAIN_KERNELS, L3__NO_FAST, L3__NO_FAST};

/* 1 / rms(x): the scale of RMSNorm (Zhang, Sennrich 2019). */
L3__FN float l3__rms_scale(const l3__kernels *k, const float *x, uint32_t n, float epsilon) {
    return 1.0f / l3__sqrtf(k->dot(x, x, n) / (float)n + epsilon);
}

/* y = rms(x) * weight; weight NULL means ones; y may be x. */
L3__FN void l3__rms_norm(const l3__kernels *k, const float *x, const float *weight, uint32_t n, float epsilon,
                         float *y) {
    k->normalize(x, weight, l3__rms_scale(k, x, n, epsilon), n, y);
}

/* >>vectors ------------------------------------------------------------------------------------------------------- */

/* What the kernels at the end of this file, read once for every instruction set, call its operations: a vector of
 * L3__W floats, of which 16 / L3__W make the lanes of a dot product. */
/* A loop that is unrolled, so that arrays of vectors stay in registers. */
#define L3__EACH(i, n) L3__UNROLL for (size_t i = 0; i < (size_t)(n); i++)

#if defined(L3__X86)
/* What differs by the width only. scale2: a * 2^k, k being the integer that `shifted` has in its low bits, as in l3__expf. */
#define L3__X86_OPS(isa, v, mm, si)                                                   \
    typedef v   l3__v_##isa;                                                          \
    L3__OP v    l3__load_##isa(const float *p) { return mm##_loadu_ps(p); }           \
    L3__OP void l3__store_##isa(float *p, v a) { mm##_storeu_ps(p, a); }              \
    L3__OP v    l3__all_##isa(float a) { return mm##_set1_ps(a); }                    \
    L3__OP v    l3__plus_##isa(v a, v b) { return mm##_add_ps(a, b); }                \
    L3__OP v    l3__minus_##isa(v a, v b) { return mm##_sub_ps(a, b); }               \
    L3__OP v    l3__times_##isa(v a, v b) { return mm##_mul_ps(a, b); }               \
    L3__OP v    l3__over_##isa(v a, v b) { return mm##_div_ps(a, b); }                \
    L3__OP v    l3__fma_##isa(v a, v b, v c) { return mm##_fmadd_ps(a, b, c); }       \
    L3__OP v    l3__max_##isa(v a, v b) { return mm##_max_ps(a, b); }                 \
    L3__OP v    l3__scale2_##isa(v a, v shifted) {                                    \
           const v##i exponents = mm##_slli_epi32(mm##_castps_##si(shifted), 23);     \
           return mm##_cast##si##_ps(mm##_add_epi32(mm##_castps_##si(a), exponents)); \
    }

#define L3__AVX2_TARGET   "avx2,fma,f16c"
#define L3__AVX512_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"

#define L3__OP static inline __attribute__((always_inline, unused, target(L3__AVX2_TARGET)))
L3__X86_OPS(avx2, __m256, _mm256, si256)

L3__OP __m128i l3__bytes8(const void *p) { return _mm_loadl_epi64((const __m128i *)p); }
L3__OP __m128i l3__bytes16(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
L3__OP __m256i l3__bytes32(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
L3__OP float   l3__half_avx2(const uint8_t *p) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(l3__le16(p)))); }
L3__OP __m256  l3__all_half_avx2(const uint8_t *p) { return _mm256_cvtph_ps(_mm_set1_epi16((short)l3__le16(p))); }

/* The first n of 8; zeros behind. */
L3__OP __m256 l3__load_part_avx2(const float *p, uint32_t n) {
    const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    if (n >= 8) return _mm256_loadu_ps(p);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), place));
}
L3__OP __m256 l3__from_f16_avx2(const uint8_t *p) { return _mm256_cvtph_ps(l3__bytes16(p)); }
L3__OP __m256 l3__from_bf16_avx2(const uint8_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(l3__bytes16(p)), 16));
}
L3__OP __m256 l3__from_i8_avx2(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
/* Elements j, j + 1, ... of a block of Q4_0, without its scale: j < 16 are low nibbles, the others high ones. */
L3__OP __m256 l3__from_q4_avx2(const uint8_t *q, uint32_t j) {
    const __m256i w = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(q + j % 16)));
    const __m256i n = _mm256_and_si256(j < 16 ? w : _mm256_srli_epi32(w, 4), _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(n, _mm256_set1_epi32(8)));
}
/* a > b ? x : y in each place; y where a or b is NaN. */
L3__OP __m256 l3__above_avx2(__m256 a, __m256 b, __m256 x, __m256 y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
/* a, but b where b is NaN. */
L3__OP __m256 l3__keep_nan_avx2(__m256 a, __m256 b) {
    return _mm256_blendv_ps(a, b, _mm256_cmp_ps(b, b, _CMP_UNORD_Q));
}
/* The sum of 16 lanes in the order of l3__lanes_sum. */
L3__OP float l3__total_avx2(__m256 s) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    const __m128 two  = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
/* a[i][j] and a[j][i] change places. */
L3__OP void l3__transpose_avx2(__m256 *a) {
    __m256 b[8], c[8];
    for (size_t i = 0; i < 8; i += 2)
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]), b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            c[i + 2 * j]     = _mm256_shuffle_ps(b[i + j], b[i + 2 + j], 0x44);
            c[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + 2 + j], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        a[i]     = _mm256_permute2f128_ps(c[i], c[i + 4], 0x20);
        a[i + 4] = _mm256_permute2f128_ps(c[i], c[i + 4], 0x31);
    }
}
L3__OP float l3__sum_avx2(const __m256 *lane) { return l3__total_avx2(_mm256_add_ps(lane[0], lane[1])); }
L3__OP float l3__highest_avx2(__m256 a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two  = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
/* 32 values of a block of Q6_K, the g-th of eight, without scales. */
L3__OP __m256i l3__q6_avx2(const uint8_t *block, uint32_t g) {
    const __m256i low = l3__bytes32(block + g / 4 * 64 + g % 2 * 32), high = l3__bytes32(block + 128 + g / 4 * 32);
    const __m256i four =
        _mm256_and_si256(_mm256_srl_epi16(low, _mm_cvtsi32_si128((int)(g % 4 / 2 * 4))), _mm256_set1_epi8(15));
    const __m256i two =
        _mm256_and_si256(_mm256_srl_epi16(high, _mm_cvtsi32_si128((int)(g % 4 * 2))), _mm256_set1_epi8(3));
    return _mm256_sub_epi8(_mm256_or_si256(four, _mm256_slli_epi16(two, 4)), _mm256_set1_epi8(32));
}
/* Four of them: each addition serves two or four rows. */
L3__OP __m128 l3__totals_avx2(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 ab  = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    const __m256 cd  = _mm256_add_ps(_mm256_permute2f128_ps(c, d, 0x20), _mm256_permute2f128_ps(c, d, 0x31));
    const __m256 two = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    const __m256 one = _mm256_add_ps(_mm256_shuffle_ps(two, two, 0x88), _mm256_shuffle_ps(two, two, 0xdd));
    return _mm_unpacklo_ps(_mm256_castps256_ps128(one), _mm256_extractf128_ps(one, 1));
}
L3__OP void l3__sums4_avx2(const __m256 *a, const __m256 *b, const __m256 *c, const __m256 *d, float *y) {
    _mm_storeu_ps(y, l3__totals_avx2(_mm256_add_ps(a[0], a[1]), _mm256_add_ps(b[0], b[1]), _mm256_add_ps(c[0], c[1]),
                                     _mm256_add_ps(d[0], d[1])));
}
#undef L3__OP

#define L3__OP static inline __attribute__((always_inline, unused, target(L3__AVX512_TARGET)))
L3__X86_OPS(avx512, __m512, _mm512, si512)

L3__OP __m512i l3__bytes64(const void *p) { return _mm512_loadu_si512(p); }

/* The first n of 16. */
L3__OP __mmask16 l3__first16(uint32_t n) { return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffff); }

/* The first n, and zeros behind. */
L3__OP __m512  l3__load_part_avx512(const float *p, uint32_t n) { return _mm512_maskz_loadu_ps(l3__first16(n), p); }
L3__OP __m256i l3__part16_avx512(const uint8_t *p, uint32_t n) { return _mm256_maskz_loadu_epi16(l3__first16(n), p); }
L3__OP __m512  l3__part_f16_avx512(const uint8_t *p, uint32_t n) { return _mm512_cvtph_ps(l3__part16_avx512(p, n)); }

L3__OP __m512 l3__part_bf16_avx512(const uint8_t *p, uint32_t n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(l3__part16_avx512(p, n)), 16));
}
L3__OP float  l3__half_avx512(const uint8_t *p) { return l3__half_avx2(p); }
L3__OP __m512 l3__all_half_avx512(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_set1_epi16((short)l3__le16(p))); }
L3__OP __m512 l3__from_f16_avx512(const uint8_t *p) { return _mm512_cvtph_ps(l3__bytes32(p)); }
L3__OP __m512 l3__from_bf16_avx512(const uint8_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(l3__bytes32(p)), 16));
}
L3__OP __m512 l3__from_i8_avx512(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(l3__bytes16(p))); }
/* The 32 values of a block of Q4_0; value (16,) is what each nibble stands for. */
L3__OP void l3__from_q4_avx512(const uint8_t *q, __m512 value, __m512 *w) {
    const __m512i bytes = _mm512_cvtepu8_epi32(l3__bytes16(q));
    w[0]                = _mm512_permutexvar_ps(bytes, value); /* looks at the low four bits only */
    w[1]                = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), value);
}
L3__OP __m512 l3__nibbles_avx512(void) {
    return _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
}
L3__OP __m512 l3__above_avx512(__m512 a, __m512 b, __m512 x, __m512 y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}
L3__OP __m512 l3__keep_nan_avx512(__m512 a, __m512 b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(b, b, _CMP_UNORD_Q), a, b);
}
L3__OP void l3__transpose_avx512(__m512 *a) {
    __m512 b[16];
    L3__EACH(h, 8)
    b[2 * h] = _mm512_unpacklo_ps(a[2 * h], a[2 * h + 1]), b[2 * h + 1] = _mm512_unpackhi_ps(a[2 * h], a[2 * h + 1]);
    L3__EACH(h, 8) { /* a[4 i + j]: column 4 * lane + j of rows 4 i ... 4 i + 3 */
        const size_t i = h / 2 * 4, j = h % 2;
        a[i + 2 * j]     = _mm512_shuffle_ps(b[i + j], b[i + 2 + j], 0x44);
        a[i + 2 * j + 1] = _mm512_shuffle_ps(b[i + j], b[i + 2 + j], 0xee);
    }
    L3__EACH(j, 4) {
        const __m512 p = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x44), q = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xee);
        const __m512 r = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x44);
        const __m512 t = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xee);
        b[j]           = _mm512_shuffle_f32x4(p, r, 0x88);
        b[4 + j]       = _mm512_shuffle_f32x4(p, r, 0xdd);
        b[8 + j]       = _mm512_shuffle_f32x4(q, t, 0x88);
        b[12 + j]      = _mm512_shuffle_f32x4(q, t, 0xdd);
    }
    L3__EACH(j, 16) a[j] = b[j];
}
L3__OP __m256 l3__half_sum_avx512(const __m512 *lane) {
    return _mm256_add_ps(_mm512_castps512_ps256(lane[0]), _mm512_extractf32x8_ps(lane[0], 1));
}
L3__OP float l3__sum_avx512(const __m512 *lane) { return l3__total_avx2(l3__half_sum_avx512(lane)); }
L3__OP float l3__highest_avx512(__m512 a) {
    return l3__highest_avx2(_mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)));
}
L3__OP void l3__sums4_avx512(const __m512 *a, const __m512 *b, const __m512 *c, const __m512 *d, float *y) {
    _mm_storeu_ps(y, l3__totals_avx2(l3__half_sum_avx512(a), l3__half_sum_avx512(b), l3__half_sum_avx512(c),
                                     l3__half_sum_avx512(d)));
}
#undef L3__OP

/* AMX: operations on eight tiles of up to 16 rows of 64 bytes, whose numbers are literals. tests/emulated_amx.h defines them
 * in memory, for machines without. */
#if !defined(L3__EMULATE_AMX) && defined(__linux__) && defined(__LP64__) && \
    (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define L3__AMX_TARGET              target(L3__AVX512_TARGET ",avx512bf16,amx-tile,amx-bf16")
#define L3__AMX_CONFIGURE(config)   _tile_loadconfig(config)
#define L3__AMX_RELEASE()           _tile_release()
#define L3__AMX_ZERO(t)             _tile_zero(t)
#define L3__AMX_LOAD(t, p, stride)  _tile_loadd(t, p, stride)
#define L3__AMX_STORE(t, p, stride) _tile_stored(t, p, stride)
#define L3__AMX_DOT(c, a, b)        _tile_dpbf16ps(c, a, b)

/* The processor has it, and the system lets this process use it: arch_prctl(ARCH_REQ_XCOMP_PERM, 18 (tile data)), a system
 * call (158) that libc has no function for. */
L3__FN bool l3__may_use_amx(void) {
    unsigned a, b, c, d;
    long     result;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    __asm__ volatile("syscall" : "=a"(result) : "a"(158L), "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
    return result == 0;
}
#endif
#endif

#if defined(L3__NEON)
#define L3__OP static inline __attribute__((always_inline, unused))
typedef float32x4_t l3__v_neon;

/* Rows of F32 need not be aligned, which 32-bit Arm would notice. */
L3__OP float32x4_t l3__load_neon(const float *p) {
    const void *bytes = p;
    return vreinterpretq_f32_u8(vld1q_u8((const uint8_t *)bytes));
}
L3__OP float32x4_t l3__load_part_neon(const float *p, uint32_t n) {
    float v[4] = {0};
    memcpy(v, p, (n < 4 ? n : 4) * sizeof *v);
    return vld1q_f32(v);
}
L3__OP void        l3__store_neon(float *p, float32x4_t a) { vst1q_f32(p, a); }
L3__OP float32x4_t l3__all_neon(float a) { return vdupq_n_f32(a); }
L3__OP float32x4_t l3__plus_neon(float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); }
L3__OP float32x4_t l3__minus_neon(float32x4_t a, float32x4_t b) { return vsubq_f32(a, b); }
L3__OP float32x4_t l3__times_neon(float32x4_t a, float32x4_t b) { return vmulq_f32(a, b); }
L3__OP float32x4_t l3__over_neon(float32x4_t a, float32x4_t b) { return a / b; }
L3__OP float32x4_t l3__fma_neon(float32x4_t a, float32x4_t b, float32x4_t c) {
#if defined(__ARM_FEATURE_FMA)
    return vfmaq_f32(c, a, b);
#else
    return vmlaq_f32(c, a, b);
#endif
}
L3__OP float32x4_t l3__max_neon(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
#if defined(__aarch64__) || (defined(__ARM_FP16_FORMAT_IEEE) && (__ARM_FP & 2))
L3__OP float32x4_t l3__from_f16_neon(const uint8_t *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }

L3__OP float l3__half_neon(const uint8_t *p) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(l3__le16(p)))), 0);
}
#else
L3__OP float l3__half_neon(const uint8_t *p) { return l3__from_f16(l3__le16(p)); }

L3__OP float32x4_t l3__from_f16_neon(const uint8_t *p) {
    const float v[4] = {l3__half_neon(p), l3__half_neon(p + 2), l3__half_neon(p + 4), l3__half_neon(p + 6)};
    return vld1q_f32(v);
}
#endif
L3__OP float32x4_t l3__all_half_neon(const uint8_t *p) { return vdupq_n_f32(l3__half_neon(p)); }
L3__OP float32x4_t l3__from_bf16_neon(const uint8_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}
/* Four bytes, each in 16 bits. */
L3__OP int16x4_t l3__four_neon(const uint8_t *p) {
    return vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(l3__le32(p)))));
}
L3__OP float32x4_t l3__from_i8_neon(const uint8_t *p) { return vcvtq_f32_s32(vmovl_s16(l3__four_neon(p))); }
L3__OP float32x4_t l3__from_q4_neon(const uint8_t *q, uint32_t j) {
    const int32x4_t w = vmovl_s16(l3__four_neon(q + j % 16));
    const int32x4_t n = vandq_s32(j < 16 ? w : vshrq_n_s32(w, 4), vdupq_n_s32(15));
    return vcvtq_f32_s32(vsubq_s32(n, vdupq_n_s32(8)));
}
L3__OP float32x4_t l3__above_neon(float32x4_t a, float32x4_t b, float32x4_t x, float32x4_t y) {
    return vbslq_f32(vcgtq_f32(a, b), x, y);
}
L3__OP float32x4_t l3__keep_nan_neon(float32x4_t a, float32x4_t b) { return vbslq_f32(vceqq_f32(b, b), a, b); }
L3__OP float32x4_t l3__scale2_neon(float32x4_t a, float32x4_t shifted) {
    const uint32x4_t exponents = vshlq_n_u32(vreinterpretq_u32_f32(shifted), 23);
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(a), exponents));
}
L3__OP void l3__transpose_neon(float32x4_t *a) {
    const float32x4x2_t b = vtrnq_f32(a[0], a[1]), c = vtrnq_f32(a[2], a[3]);
    L3__EACH(i, 2) {
        a[i]     = vcombine_f32(vget_low_f32(b.val[i]), vget_low_f32(c.val[i]));
        a[2 + i] = vcombine_f32(vget_high_f32(b.val[i]), vget_high_f32(c.val[i]));
    }
}
/* (s0 + s2) + (s1 + s3) */
L3__OP float l3__total_neon(float32x4_t s) {
    const float32x2_t two = vadd_f32(vget_low_f32(s), vget_high_f32(s));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
L3__OP float l3__highest_neon(float32x4_t a) {
    const float32x4_t two = l3__max_neon(a, vextq_f32(a, a, 2));
    return vgetq_lane_f32(l3__max_neon(two, vextq_f32(two, two, 1)), 0);
}
L3__OP float l3__sum_neon(const float32x4_t *lane) {
    return l3__total_neon(vaddq_f32(vaddq_f32(lane[0], lane[2]), vaddq_f32(lane[1], lane[3])));
}
L3__OP void l3__sums4_neon(const float32x4_t *a, const float32x4_t *b, const float32x4_t *c, const float32x4_t *d,
                           float *y) {
    y[0] = l3__sum_neon(a), y[1] = l3__sum_neon(b), y[2] = l3__sum_neon(c), y[3] = l3__sum_neon(d);
}

/* The 32 bytes of a block of weights, those of Q4_0 8 above their value. */
L3__OP void l3__nibbles_neon(const int type, const uint8_t *w, int8x16_t *low, int8x16_t *high) {
    const uint8x16_t q = vld1q_u8(w + 2);
    *low               = vreinterpretq_s8_u8(type == L3_Q8_0 ? q : vandq_u8(q, vdupq_n_u8(15)));
    *high              = vreinterpretq_s8_u8(type == L3_Q8_0 ? vld1q_u8(w + 18) : vshrq_n_u8(q, 4));
}
/* Their values. */
L3__OP void l3__weights_neon(const int type, const uint8_t *w, int8x16_t *low, int8x16_t *high) {
    const int8x16_t offset = vdupq_n_s8(type == L3_Q8_0 ? 0 : 8);
    l3__nibbles_neon(type, w, low, high);
    *low  = vsubq_s8(*low, offset);
    *high = vsubq_s8(*high, offset);
}
/* A block's product in 4 partial sums: two products of bytes fit 16 bits, 128 * 127 * 2. */
L3__OP float32x4_t l3__block_neon(const int type, const uint8_t *w, const int8_t *x, int32_t bias) {
    int8x16_t       a, b;
    const int8x16_t c = vld1q_s8(x), d = vld1q_s8(x + 16);
    (void)bias;
    l3__weights_neon(type, w, &a, &b);
    const int16x8_t s = vmlal_s8(vmull_s8(vget_low_s8(a), vget_low_s8(c)), vget_low_s8(b), vget_low_s8(d));
    const int16x8_t t = vmlal_s8(vmull_s8(vget_high_s8(a), vget_high_s8(c)), vget_high_s8(b), vget_high_s8(d));
    return vcvtq_f32_s32(vpadalq_s16(vpaddlq_s16(s), t));
}
#undef L3__OP

/* What levels DOTPROD and I8MM are compiled for; undefined where the compiler has no such thing. gcc inlines nothing that
 * has features its caller lacks, so whatever the compiler was told to use must be included; clang before 16 (Apple's counts
 * differently) only knows instructions that the whole file may use. */
#if !defined(__aarch64__)
#elif defined(__clang__)
#if defined(__ARM_FEATURE_DOTPROD) || (__clang_major__ >= 16 && !defined(__apple_build_version__))
#define L3__DOTPROD_TARGET "dotprod"
#endif
#if defined(L3__DOTPROD_TARGET) && \
    (__clang_major__ >= 16 || (defined(__ARM_FEATURE_MATMUL_INT8) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)))
#define L3__I8MM_TARGET "dotprod,i8mm,bf16"
#endif
#elif __GNUC__ >= 8
#if defined(__ARM_FEATURE_DOTPROD) || defined(__ARM_FEATURE_FP16_SCALAR_ARITHMETIC) || defined(__ARM_FEATURE_SVE) || \
    defined(__ARM_FEATURE_COMPLEX) /* ARMv8.2 or later */
#define L3__ARM_AND "+"
#else
#define L3__ARM_AND "arch=armv8.2-a+crypto+"
#endif
#define L3__DOTPROD_TARGET L3__ARM_AND "dotprod"
#if __GNUC__ >= 10
#define L3__I8MM_TARGET L3__ARM_AND "dotprod+i8mm+bf16"
#endif
#endif

#if defined(L3__DOTPROD_TARGET)
#define L3__OP static inline __attribute__((always_inline, unused, target(L3__DOTPROD_TARGET)))
typedef float32x4_t l3__v_dotprod;
L3__OP float32x4_t  l3__all_dotprod(float a) { return vdupq_n_f32(a); }
L3__OP float32x4_t  l3__fma_dotprod(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
L3__OP float        l3__half_dotprod(const uint8_t *p) { return l3__half_neon(p); }
L3__OP float        l3__total_dotprod(float32x4_t s) { return l3__total_neon(s); }
/* The bias, which is for 8 partial sums, takes back by how much nibbles are above their value. */
L3__OP float32x4_t l3__block_dotprod(const int type, const uint8_t *w, const int8_t *x, int32_t bias) {
    int8x16_t       a, b;
    const int32x4_t from = type == L3_Q8_0 ? vdupq_n_s32(0) : vshlq_n_s32(vdupq_n_s32(bias), 1);
    l3__nibbles_neon(type, w, &a, &b);
    return vcvtq_f32_s32(vdotq_s32(vdotq_s32(from, a, vld1q_s8(x)), b, vld1q_s8(x + 16)));
}
#undef L3__OP
#endif
#endif

/* >>levels -------------------------------------------------------------------------------------------------------- */

#if defined(L3__VECTORS)
/* ---- what all matrix products of many positions share ---- */

#define L3__ALIGN64 __attribute__((aligned(64)))
#define L3__MAX_P   12     /* positions of a tile, at most */
#define L3__PANEL   32768u /* bytes of a panel, which stay in the L1 or L2 cache while all positions pass */

/* Where a tile's results go: right into Y, or at its edges into a buffer from which the part that exists is copied. */
typedef struct l3__corner {
    float   *at, *y;
    size_t   stride, ys;
    uint32_t rows, n;
} l3__corner;

L3__FN l3__corner l3__corner_at(float *y, size_t ys, uint32_t rows, uint32_t n, uint32_t tile, float *edge) {
    const bool whole = rows >= 16 && n >= tile;
    l3__corner c     = {whole ? y : edge, y, whole ? ys : 16, ys, rows < 16 ? rows : 16, n < tile ? n : tile};
    return c;
}
L3__FN void l3__corner_in(const l3__corner *c) {
    for (uint32_t p = 0; c->at != c->y && p < c->n; p++)
        memcpy(c->at + p * 16, c->y + p * c->ys, c->rows * sizeof(float));
}
L3__FN void l3__corner_out(const l3__corner *c) {
    for (uint32_t p = 0; c->at != c->y && p < c->n; p++)
        memcpy(c->y + p * c->ys, c->at + p * 16, c->rows * sizeof(float));
}

/* A product by panels and tiles. */
L3__FN void l3__gemm(const l3__fast *f, int type, const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols,
                     const unsigned char *x, uint32_t n, float *y, size_t ys) {
    L3__ALIGN64 unsigned char panel[L3__PANEL];
    float                     edge[L3__MAX_P * 16];
    const uint32_t            blocks = (cols + 31) / 32, most = L3__PANEL / (f->panel_words * 64);
    /* The next 16 rows come into the L2 cache meanwhile, a few lines a tile. */
    const size_t steps = (size_t)((blocks + most - 1) / most) * ((n + f->tile - 1) / f->tile);
    const size_t lines = (16 * row_bytes / 64 + steps) / steps;
    for (uint32_t r0 = 0; r0 < rows; r0 += 16) {
        const uint8_t *row[16], *ahead = w + (r0 + 16) * row_bytes;
        l3__panel_rows(row, w + r0 * row_bytes, row_bytes, rows - r0);
        for (uint32_t b = 0; b < blocks; b += most) {
            const uint32_t deep = blocks - b < most ? blocks - b : most;
            f->panel(type, row, b, b + deep, cols, panel);
            for (uint32_t p = 0; p < n; p += f->tile) {
                const size_t at = ((size_t)p * blocks + (size_t)b * f->tile) * f->words * 4;
                l3__corner   c  = l3__corner_at(y + p * ys + r0, ys, rows - r0, n - p, f->tile, edge);
                for (size_t i = 0; i < lines; i++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
                if (b > 0) l3__corner_in(&c);
                f->times(panel, x + at, deep, b == 0, c.at, c.stride);
                l3__corner_out(&c);
            }
        }
    }
}

/* The last n < 32 elements of 16 rows as a block of a panel of floats, with zeros behind them. */
L3__FN void l3__panel_tail(int type, const uint8_t *const *rows, uint32_t k, uint32_t n, float *panel) {
    float v[32];
    memset(panel, 0, 32 * 16 * sizeof *panel);
    for (uint32_t r = 0; r < 16; r++) {
        l3__unpacker(type)(rows[r], k, n, v);
        for (uint32_t i = 0; i < n; i++) panel[i * 16 + r] = v[i];
    }
}

/* ---- int8 activations: each block of 32 floats has a scale that maps its largest magnitude to 127 ---- */

#if defined(L3__X86)
#define L3__BASE    static __attribute__((unused, target(L3__AVX2_TARGET)))
#define L3__BASE_OP static inline __attribute__((always_inline, unused, target(L3__AVX2_TARGET)))
#define L3__OP5     static inline __attribute__((always_inline, unused, target(L3__AVX512_TARGET)))
#define L3__AVX512  static __attribute__((unused, target(L3__AVX512_TARGET)))
#else
#define L3__BASE    static __attribute__((unused))
#define L3__BASE_OP static inline __attribute__((always_inline, unused))
#endif

/* Four rows at a time need their bytes soon enough. Side by side they are four streams in one, which the processors' own
 * prefetchers do not see: what comes L3__AHEAD later, in the order in which all rows together use it up. A quarter of the
 * matrix apart they are streams of their own, each with a fourth of that. Past the end it has no effect. */
#define L3__AHEAD 8192
enum { L3__ALONE, L3__SIDE_BY_SIDE, L3__SPREAD }; /* how the rows of a product lie */
L3__BASE_OP void l3__prefetch(const uint8_t *p, const size_t bytes) {
    L3__EACH(i, (bytes + 63) / 64) __builtin_prefetch(p + 64 * i, 0, 3);
}

#if defined(L3__X86)
/* The largest magnitude of a block. They are compared as integers, which orders NaN above infinity: so neither gets lost,
 * and the scale says it. */
L3__BASE_OP float l3__peak32(const __m256 *v) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i       peak      = _mm256_setzero_si256();
    L3__EACH(j, 4) peak     = _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(v[j]), magnitude), peak);
    __m128i most            = _mm_max_epi32(_mm256_castsi256_si128(peak), _mm256_extracti128_si256(peak, 1));
    most                    = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    most                    = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(most));
}

/* A block as integers from -limit to limit, and their scale. */
L3__BASE_OP void l3__round32(const __m256 *v, const float limit, __m256i *i, float *scale) {
    const float  high   = l3__peak32(v);
    const __m256 to     = _mm256_set1_ps(high > 0 ? limit / high : 0.0f);
    *scale              = high / limit;
    L3__EACH(j, 4) i[j] = _mm256_cvtps_epi32(_mm256_mul_ps(v[j], to));
}

/* Returns the sum of the block's integers. */
L3__BASE_OP int32_t l3__quantize32(const float *x, int8_t *q, float *scale) {
    __m256  v[4];
    __m256i i[4];
    L3__EACH(j, 4) v[j] = _mm256_loadu_ps(x + 8 * j);
    l3__round32(v, 127.0f, i, scale);
    const __m256i words = _mm256_packs_epi16(_mm256_packs_epi32(i[0], i[1]), _mm256_packs_epi32(i[2], i[3]));
    const __m256i all   = _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)q, all);
    const __m256i sums = _mm256_add_epi32(_mm256_add_epi32(i[0], i[1]), _mm256_add_epi32(i[2], i[3]));
    __m128i       s    = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    s                  = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
#else
#if defined(__aarch64__)
L3__BASE_OP uint32_t  l3__most_neon(uint32x4_t a) { return vmaxvq_u32(a); }
L3__BASE_OP int32_t   l3__sum_of_neon(int32x4_t a) { return vaddvq_s32(a); }
L3__BASE_OP int32x4_t l3__round_neon(float32x4_t a) { return vcvtnq_s32_f32(a); }
#else
L3__BASE_OP uint32_t l3__most_neon(uint32x4_t a) {
    const uint32x2_t two = vmax_u32(vget_low_u32(a), vget_high_u32(a));
    return vget_lane_u32(vpmax_u32(two, two), 0);
}
L3__BASE_OP int32_t l3__sum_of_neon(int32x4_t a) {
    const int32x2_t two = vadd_s32(vget_low_s32(a), vget_high_s32(a));
    return vget_lane_s32(vpadd_s32(two, two), 0);
}
L3__BASE_OP int32x4_t l3__round_neon(float32x4_t a) { /* to nearest even; right below 2^22 */
    return vsubq_s32(vreinterpretq_s32_f32(vaddq_f32(a, vdupq_n_f32(12582912.0f))), vdupq_n_s32(0x4b400000));
}
#endif

/* Rounds a block; returns the sum of its integers. Magnitudes are compared as integers, which orders NaN above infinity: so
 * neither gets lost, and the scale says it. */
L3__BASE_OP int32_t l3__quantize32(const float *x, int8_t *q, float *scale) {
    uint32x4_t peak = vdupq_n_u32(0);
    int32x4_t  sum  = vdupq_n_s32(0);
    int16x4_t  half[8];
    L3__EACH(j, 8) peak = vmaxq_u32(vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + 4 * j))), peak);
    const float high = l3__as_float(l3__most_neon(peak)), to = high > 0 ? 127.0f / high : 0.0f;
    *scale = high / 127.0f;
    L3__EACH(j, 8) {
        const int32x4_t i = l3__round_neon(vmulq_n_f32(vld1q_f32(x + 4 * j), to));
        half[j]           = vqmovn_s32(i);
        sum               = vaddq_s32(sum, i);
    }
    L3__EACH(j, 4) vst1_s8(q + 8 * j, vqmovn_s16(vcombine_s16(half[2 * j], half[2 * j + 1])));
    return l3__sum_of_neon(sum);
}
#endif

/* Weights are multiplied as unsigned bytes, 128 (Q8_0) or 8 (Q4_0) above their value; the bias takes that back. */
L3__FN int32_t l3__weight_offset(int type) { return type == L3_Q8_0 ? 128 : 8; }

/* ... in `parts` partial sums each. Unsigned: activations that are no numbers give integers of any size. */
L3__FN int32_t l3__bias(int type, uint32_t parts, int32_t sum) {
    return (int32_t)(0u - (uint32_t)l3__weight_offset(type) / parts * (uint32_t)sum);
}

/* For decoding: a position's integers (cols,), scales (cols / 32,) and biases (cols / 32,), one after the other. The bias is
 * for each of 8 partial sums. */
typedef struct l3__int8s {
    const int8_t        *q;
    const unsigned char *scale, *bias;
} l3__int8s;

L3__FN l3__int8s l3__int8s_at(const unsigned char *x, uint32_t p, uint32_t cols) {
    const void     *q = x + (size_t)p * (cols + cols / 4);
    const l3__int8s a = {(const int8_t *)q, (const unsigned char *)q + cols,
                         (const unsigned char *)q + cols + cols / 8};
    return a;
}

/* Of each `group` (1, 2, 4) whole blocks the first halves come first, then the second ones, with biases for 4 partial sums. */
L3__BASE_OP void l3__pack_int8_as(int type, const uint32_t group, const float *x, size_t xs, uint32_t n, uint32_t cols,
                                  unsigned char *dst) {
    const uint32_t grouped = group > 1 ? cols / 32 / group * group : 0;
    for (uint32_t p = 0; p < n; p++, dst += cols + cols / 4)
        for (uint32_t b = 0; b < cols / 32; b++) {
            int8_t         q[32];
            float          scale;
            const uint32_t g    = b < grouped ? group : 1;
            const int32_t  bias = l3__bias(type, g > 1 ? 4 : 8, l3__quantize32(x + p * xs + b * 32, q, &scale));
            unsigned char *low = dst + b / g * g * 32 + b % g * 16, *high = low + g * 16;
            memcpy(low, q, 16);
            memcpy(high, q + 16, 16);
            memcpy(dst + cols + b * 4, &scale, 4);
            memcpy(dst + cols + cols / 8 + b * 4, &bias, 4);
        }
}

L3__BASE void l3__pack_int8(int type, const float *x, size_t xs, uint32_t n, uint32_t cols, unsigned char *dst) {
    l3__pack_int8_as(type, 1, x, xs, n, cols, dst);
}

#if defined(L3__X86)
L3__BASE void l3__pack_int8_fours(int type, const float *x, size_t xs, uint32_t n, uint32_t cols, unsigned char *dst) {
    l3__pack_int8_as(type, 4, x, xs, n, cols, dst);
}

L3__BASE void l3__pack_int8_pairs(int type, const float *x, size_t xs, uint32_t n, uint32_t cols, unsigned char *dst) {
    l3__pack_int8_as(type, 2, x, xs, n, cols, dst);
}

/* Rows against one position with AVX2: unsigned times signed bytes gives pairs in 16 bits, which 128 * 127 * 2 fits. */
L3__BASE_OP __m256 l3__block_avx2(const int type, const uint8_t *w, const int8_t *x, int32_t bias) {
    const __m256i ones = _mm256_set1_epi16(1), q = l3__bytes32(x);
    if (type == L3_Q8_0) {
        const __m256i b = l3__bytes32(w + 2);
        return _mm256_cvtepi32_ps(
            _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(b), _mm256_sign_epi8(q, b)), ones));
    }
    const __m128i b = l3__bytes16(w + 2);
    const __m256i u = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(b, 4), b), _mm256_set1_epi8(15));
    return _mm256_cvtepi32_ps(
        _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(u, q), ones), _mm256_set1_epi32(bias)));
}

/* Blocks b and b + 1 of `rows` rows of Q4_0 against n positions whose activations are in pairs: 15 * 127 * 4 fits 16 bits. */
L3__BASE_OP void l3__pair_q4_avx2(const uint8_t *w, size_t row_bytes, uint32_t b, const l3__int8s *x, const size_t rows,
                                  const size_t n, __m256 (*sum)[4]) {
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const __m256i to = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    L3__EACH(r, rows) {
        const uint8_t *q    = w + r * row_bytes + b * 18;
        const __m256i  both = _mm256_set_m128i(l3__bytes16(q + 20), l3__bytes16(q + 2));
        const __m256i low = _mm256_and_si256(both, nibble), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
        const __m128  d = _mm_cvtph_ps(_mm_cvtsi32_si128((int)(l3__le16(q) | (uint32_t)l3__le16(q + 18) << 16)));
        L3__EACH(p, n) {
            const __m256i v    = _mm256_add_epi16(_mm256_maddubs_epi16(low, l3__bytes32(x[p].q + b * 32)),
                                                  _mm256_maddubs_epi16(high, l3__bytes32(x[p].q + b * 32 + 32)));
            const __m256i bias = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(l3__bytes8(x[p].bias + b * 4)), to);
            const __m128  scale = _mm_mul_ps(d, _mm_castsi128_ps(l3__bytes8(x[p].scale + b * 4)));
            const __m256i s     = _mm256_add_epi32(_mm256_madd_epi16(v, ones), bias);
            sum[r][p]           = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s),
                                                  _mm256_permutevar8x32_ps(_mm256_castps128_ps256(scale), to), sum[r][p]);
        }
    }
}

/* y[p * ys + r] = row r times position p, for `rows` rows and n positions, both constants. */
L3__BASE_OP void l3__q4_dots_avx2(const uint8_t *w, size_t row_bytes, uint32_t blocks, const l3__int8s *x,
                                  const size_t rows, const size_t n, const int lie, float *y, size_t ys) {
    __m256   sum[4][4];
    uint32_t b                                 = 0;
    L3__EACH(r, rows) L3__EACH(p, n) sum[r][p] = _mm256_setzero_ps();
    for (; b + 2 <= blocks; b += 2) {
        if (lie == L3__SIDE_BY_SIDE) l3__prefetch(w + L3__AHEAD + b * 4 * 18, 8 * 18);
        if (lie == L3__SPREAD) L3__EACH(r, rows) l3__prefetch(w + r * row_bytes + L3__AHEAD / 4 + b * 18, 2 * 18);
        l3__pair_q4_avx2(w, row_bytes, b, x, rows, n, sum);
    }
    L3__EACH(r, rows) L3__EACH(p, n) {
        const uint8_t *last = w + r * row_bytes + b * 18;
        float          scale;
        int32_t        bias;
        if (b < blocks) {
            memcpy(&scale, x[p].scale + b * 4, 4);
            memcpy(&bias, x[p].bias + b * 4, 4);
            const __m256 d = _mm256_set1_ps(scale * l3__half_avx2(last));
            sum[r][p]      = _mm256_fmadd_ps(l3__block_avx2(L3_Q4_0, last, x[p].q + b * 32, bias), d, sum[r][p]);
        }
        y[p * ys + r] = l3__total_avx2(sum[r][p]);
    }
}

L3__BASE void l3__q4_avx2(int type, const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols,
                          const unsigned char *x, uint32_t n, float *y, size_t ys) {
    const uint32_t blocks = cols / 32, quarter = rows > L3__TILE ? rows / 4 : 0;
    (void)type;
    for (uint32_t p = 0, some; p < n; p += some) {
        float    *to = y + p * ys, four[4];
        l3__int8s a[4];
        uint32_t  r = 0;
        some        = n - p >= 4 ? 4 : 1;
        for (uint32_t i = 0; i < some; i++) a[i] = l3__int8s_at(x, p + i, cols);
        for (; some == 1 && r < quarter; r++) {
            l3__q4_dots_avx2(w + r * row_bytes, quarter * row_bytes, blocks, a, 4, 1, L3__SPREAD, four, 0);
            L3__EACH(i, 4) to[i * quarter + r] = four[i];
        }
        r *= 4;
        for (; some == 1 && r + 4 <= rows; r += 4)
            l3__q4_dots_avx2(w + r * row_bytes, row_bytes, blocks, a, 4, 1, L3__SIDE_BY_SIDE, to + r, ys);
        for (; r < rows; r++) {
            if (some == 4) l3__q4_dots_avx2(w + r * row_bytes, row_bytes, blocks, a, 1, 4, L3__ALONE, to + r, ys);
            else l3__q4_dots_avx2(w + r * row_bytes, row_bytes, blocks, a, 1, 1, L3__ALONE, to + r, ys);
        }
    }
}

static const l3__fast l3__q4_by_avx2 = {l3__pack_int8_pairs, l3__q4_avx2, NULL, NULL, 1, 10, 0};

/* Two blocks of a row with AVX-512, as unsigned bytes; `both` false: the second is missing. */
L3__OP5 __m512i l3__blocks_avx512(const int type, const uint8_t *w, const bool both) {
    if (type == L3_Q8_0) {
        __m512i q = _mm512_zextsi256_si512(l3__bytes32(w + 2));
        q         = _mm512_inserti64x4(q, both ? l3__bytes32(w + 36) : _mm256_setzero_si256(), 1);
        return _mm512_xor_si512(q, _mm512_set1_epi32(-0x7f7f7f80));
    }
    const __m128i a = l3__bytes16(w + 2), b = both ? l3__bytes16(w + 20) : _mm_setzero_si128();
    const __m512i q = _mm512_inserti64x4(_mm512_zextsi256_si512(_mm256_set_m128i(_mm_srli_epi16(a, 4), a)),
                                         _mm256_set_m128i(_mm_srli_epi16(b, 4), b), 1);
    return _mm512_and_si512(q, _mm512_set1_epi8(15));
}

/* Two scales, each in 8 places. */
L3__OP5 __m512 l3__halves_avx512(const uint8_t *a, const uint8_t *b, const bool both) {
    const __m256 low  = _mm256_cvtph_ps(_mm_set1_epi16((short)l3__le16(a)));
    const __m256 high = both ? _mm256_cvtph_ps(_mm_set1_epi16((short)l3__le16(b))) : _mm256_setzero_ps();
    return _mm512_insertf32x8(_mm512_zextps256_ps512(low), high, 1);
}

/* Two numbers of 32 bits, each in 8 places. */
L3__OP5 __m512i l3__pair_avx512(const unsigned char *p, const bool both) {
    long long     bits = 0;
    const __m512i to   = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    memcpy(&bits, p, both ? 8 : 4);
    return _mm512_permutexvar_epi32(to, _mm512_set1_epi64(bits));
}

/* Blocks b and b + 1 of `rows` rows against n positions; `both` false: only b. */
L3__OP5 void l3__step2_avx512(const int type, const uint8_t *w, size_t row_bytes, uint32_t b, const l3__int8s *x,
                              const size_t rows, const size_t n, const bool both, __m512 (*sum)[4]) {
    const size_t block = type == L3_Q8_0 ? 34 : 18;
    __m512i      q[4];
    __m512       d[4];
    L3__EACH(r, rows) {
        const uint8_t *row = w + r * row_bytes + b * block;
        q[r]               = l3__blocks_avx512(type, row, both);
        d[r]               = l3__halves_avx512(row, row + block, both);
    }
    L3__EACH(p, n) {
        const __m512i a     = both ? l3__bytes64(x[p].q + b * 32)
                                   : _mm512_inserti64x4(_mm512_setzero_si512(), l3__bytes32(x[p].q + b * 32), 0);
        const __m512i bias  = l3__pair_avx512(x[p].bias + b * 4, both);
        const __m512  scale = _mm512_castsi512_ps(l3__pair_avx512(x[p].scale + b * 4, both));
        L3__EACH(r, rows) {
            const __m512i s = _mm512_dpbusd_epi32(bias, q[r], a);
            sum[r][p]       = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), _mm512_mul_ps(d[r], scale), sum[r][p]);
        }
    }
}

/* Four numbers of 32 bits, each in 4 places. */
L3__OP5 __m512i l3__quad_avx512(const unsigned char *p) {
    const __m512i to = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_epi32(to, _mm512_zextsi128_si512(l3__bytes16(p)));
}

/* Four blocks of a row as unsigned bytes, first halves of all four, then second ones; returns their scales, each in 4 places. */
L3__OP5 __m512 l3__four_q8_avx512(const uint8_t *w, __m512i *low, __m512i *high) {
    const __m512i  sign = _mm512_set1_epi32(-0x7f7f7f80);
    const __m512i  to   = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i  a    = _mm512_inserti64x4(_mm512_zextsi256_si512(l3__bytes32(w + 2)), l3__bytes32(w + 36), 1);
    const __m512i  b    = _mm512_inserti64x4(_mm512_zextsi256_si512(l3__bytes32(w + 70)), l3__bytes32(w + 104), 1);
    const uint64_t h    = (uint64_t)l3__le16(w) | (uint64_t)l3__le16(w + 34) << 16 | (uint64_t)l3__le16(w + 68) << 32 |
                       (uint64_t)l3__le16(w + 102) << 48;
    *low  = _mm512_xor_si512(_mm512_shuffle_i64x2(a, b, 0x88), sign);
    *high = _mm512_xor_si512(_mm512_shuffle_i64x2(a, b, 0xdd), sign);
    return _mm512_permutexvar_ps(to, _mm512_zextps128_ps512(_mm_cvtph_ps(_mm_cvtsi64_si128((long long)h))));
}

/* The same of Q4_0, whose blocks are 9 words of 16 bits, by which they are picked out of two vectors. */
L3__OP5 __m512 l3__four_q4_avx512(const uint8_t *w, __m512i *low, __m512i *high) {
    static const uint16_t scales[16]  = {0, 0, 0, 0, 9, 9, 9, 9, 18, 18, 18, 18, 27, 27, 27, 27};
    static const uint16_t nibbles[32] = {1,  2,  3,  4,  5,  6,  7,  8,  10, 11, 12, 13, 14, 15, 16, 17,
                                         19, 20, 21, 22, 23, 24, 25, 26, 56, 57, 58, 59, 60, 61, 62, 63};
    const __m512i         first = l3__bytes64(w), second = l3__bytes64(w + 8), nibble = _mm512_set1_epi8(15);
    const __m512i         q  = _mm512_permutex2var_epi16(first, l3__bytes64(nibbles), second);
    const __m512i         to = _mm512_castsi256_si512(l3__bytes32(scales));
    *low                     = _mm512_and_si512(q, nibble);
    *high                    = _mm512_and_si512(_mm512_srli_epi16(q, 4), nibble);
    return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(to, first)));
}

/* Blocks b ... b + 3 of `rows` rows against n positions whose activations are in that order. */
L3__OP5 void l3__step4_avx512(const int type, const uint8_t *w, size_t row_bytes, uint32_t b, const l3__int8s *x,
                              const size_t rows, const size_t n, __m512 (*sum)[4]) {
    const size_t block = type == L3_Q8_0 ? 34 : 18;
    __m512i      low[4], high[4];
    __m512       d[4];
    L3__EACH(r, rows) {
        const uint8_t *p = w + r * row_bytes + b * block;
        d[r] = type == L3_Q8_0 ? l3__four_q8_avx512(p, &low[r], &high[r]) : l3__four_q4_avx512(p, &low[r], &high[r]);
    }
    L3__EACH(p, n) {
        const __m512i a = l3__bytes64(x[p].q + b * 32), c = l3__bytes64(x[p].q + b * 32 + 64);
        const __m512i bias  = l3__quad_avx512(x[p].bias + b * 4);
        const __m512  scale = _mm512_castsi512_ps(l3__quad_avx512(x[p].scale + b * 4));
        L3__EACH(r, rows) {
            const __m512i s = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(bias, low[r], a), high[r], c);
            sum[r][p]       = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), _mm512_mul_ps(d[r], scale), sum[r][p]);
        }
    }
}

L3__OP5 void l3__int8_dots_avx512(const int type, const uint8_t *w, size_t row_bytes, uint32_t blocks,
                                  const l3__int8s *x, const size_t rows, const size_t n, const int lie, float *y,
                                  size_t ys) {
    const size_t block = type == L3_Q8_0 ? 34 : 18;
    __m512       sum[4][4];
    uint32_t     b                             = 0;
    L3__EACH(r, rows) L3__EACH(p, n) sum[r][p] = _mm512_setzero_ps();
    for (; b + 4 <= blocks; b += 4) {
        if (lie == L3__SIDE_BY_SIDE) l3__prefetch(w + L3__AHEAD + (size_t)b * 4 * block, 16 * block);
        if (lie == L3__SPREAD) L3__EACH(r, rows) l3__prefetch(w + r * row_bytes + L3__AHEAD / 4 + b * block, 4 * block);
        l3__step4_avx512(type, w, row_bytes, b, x, rows, n, sum);
    }
    for (; b + 2 <= blocks; b += 2) l3__step2_avx512(type, w, row_bytes, b, x, rows, n, true, sum);
    if (b < blocks) l3__step2_avx512(type, w, row_bytes, b, x, rows, n, false, sum);
    L3__EACH(r, rows) L3__EACH(p, n) y[p * ys + r] = l3__sum_avx512(&sum[r][p]);
}

/* Many rows: four at a time, a quarter of them apart. Returns how many it did. */
L3__OP5 uint32_t l3__int8_streams_avx512(const int type, const uint8_t *w, size_t row_bytes, uint32_t rows,
                                         uint32_t cols, const l3__int8s *x, const size_t n, float *y, size_t ys) {
    const uint32_t quarter = rows / 4;
    for (uint32_t r = 0; r < quarter; r++) {
        float four[4 * 4];
        l3__int8_dots_avx512(type, w + r * row_bytes, quarter * row_bytes, cols / 32, x, 4, n, L3__SPREAD, four, 4);
        L3__EACH(p, n) L3__EACH(i, 4) y[p * ys + i * quarter + r] = four[p * 4 + i];
    }
    return 4 * quarter;
}

L3__OP5 void l3__int8_rows_avx512(const int type, const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols,
                                  const unsigned char *x, uint32_t n, float *y, size_t ys) {
    for (uint32_t p = 0; p < n;) {
        const uint32_t some = n - p >= 4 ? 4 : 1, blocks = cols / 32;
        l3__int8s      a[4];
        uint32_t       r  = 0;
        float         *to = y + p * ys;
        for (uint32_t i = 0; i < some; i++) a[i] = l3__int8s_at(x, p + i, cols);
        if (rows > L3__TILE) {
            if (some == 1) r = l3__int8_streams_avx512(type, w, row_bytes, rows, cols, a, 1, to, ys);
            else if (type == L3_Q8_0) r = l3__int8_streams_avx512(type, w, row_bytes, rows, cols, a, 4, to, ys);
        }
        for (; r + 4 <= rows; r += 4) {
            const uint8_t *four = w + r * row_bytes;
            if (some == 4) l3__int8_dots_avx512(type, four, row_bytes, blocks, a, 4, 4, L3__SIDE_BY_SIDE, to + r, ys);
            else l3__int8_dots_avx512(type, four, row_bytes, blocks, a, 4, 1, L3__SIDE_BY_SIDE, to + r, ys);
        }
        for (; r < rows; r++) {
            const uint8_t *row = w + r * row_bytes;
            if (some == 4) l3__int8_dots_avx512(type, row, row_bytes, blocks, a, 1, 4, L3__ALONE, to + r, ys);
            else l3__int8_dots_avx512(type, row, row_bytes, blocks, a, 1, 1, L3__ALONE, to + r, ys);
        }
        p += some;
    }
}

L3__AVX512 void l3__int8_avx512(int type, const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols,
                                const unsigned char *x, uint32_t n, float *y, size_t ys) {
    if (type == L3_Q8_0) l3__int8_rows_avx512(L3_Q8_0, w, row_bytes, rows, cols, x, n, y, ys);
    else l3__int8_rows_avx512(L3_Q4_0, w, row_bytes, rows, cols, x, n, y, ys);
}

/* ---- Q6_K: one row against 1 or 4 positions ---- */

L3__BASE_OP void l3__q6_dots(const uint8_t *row, uint32_t cols, const l3__int8s *x, const size_t n, float *y,
                             size_t ys) {
    __m256 sum[4];
    L3__EACH(p, n) sum[p] = _mm256_setzero_ps();
    for (uint32_t b = 0; b < cols / 32; b++) {
        const uint8_t *block = row + (size_t)(b / 8) * 210, *scales = block + 192 + b % 8 * 2;
        const __m256i  q = l3__q6_avx2(block, b % 8), size = _mm256_abs_epi8(q);
        const __m256i  scale = _mm256_set_m128i(_mm_set1_epi16((int8_t)scales[1]), _mm_set1_epi16((int8_t)scales[0]));
        const float    d     = l3__half_avx2(block + 208);
        if (b % 8 == 0) l3__prefetch(block + L3__AHEAD / 4, 210);
        L3__EACH(p, n) {
            float         a;
            const __m256i v = _mm256_sign_epi8(l3__bytes32(x[p].q + b * 32), q);
            /* 32 * 127 * 2 fits 16 bits; times a scale of 8 bits it takes 32 */
            const __m256i s = _mm256_madd_epi16(_mm256_maddubs_epi16(size, v), scale);
            memcpy(&a, x[p].scale + b * 4, 4);
            sum[p] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), _mm256_set1_ps(d * a), sum[p]);
        }
    }
    L3__EACH(p, n) y[p * ys] = l3__total_avx2(sum[p]);
}

L3__BASE void l3__q6_rows(int type, const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols,
                          const unsigned char *x, uint32_t n, float *y, size_t ys) {
    (void)type;
    for (uint32_t p = 0; p < n;) {
        const uint32_t some = n - p >= 4 ? 4 : 1;
        l3__int8s      a[4];
        for (uint32_t i = 0; i < some; i++) a[i] = l3__int8s_at(x, p + i, cols);
        for (uint32_t r = 0; r < rows; r++) {
            if (some == 4) l3__q6_dots(w + r * row_bytes, cols, a, 4, y + p * ys + r, ys);
            else l3__q6_dots(w + r * row_bytes, cols, a, 1, y + p * ys + r, ys);
        }
        p += some;
    }
}

static const l3__fast l3__fast_q6_avx2 = {l3__pack_int8, l3__q6_rows, NULL, NULL, 1, 10, 0};

/* ---- int8 for many positions: panels of 16 rows, words of 4 elements, tiles of 12 positions ---- */

#define L3__P512 12

/* A block of a tile: words (8, tile), scales (tile,), biases (tile,). */
L3__BASE_OP void l3__pack_tiles8(int type, const uint32_t tile, const float *x, size_t xs, uint32_t n, uint32_t cols,
                                 unsigned char *dst) {
    for (uint32_t p0 = 0; p0 < n; p0 += tile)
        for (uint32_t b = 0; b < cols / 32; b++, dst += 10 * tile * 4) {
            if (n - p0 < tile) memset(dst, 0, 10 * tile * 4);
            for (uint32_t p = 0; p < tile && p0 + p < n; p++) {
                int8_t        q[32];
                float         scale;
                const int32_t bias = l3__bias(type, 1, l3__quantize32(x + (p0 + p) * xs + b * 32, q, &scale));
                L3__EACH(i, 8) memcpy(dst + (i * tile + p) * 4, q + 4 * i, 4);
                memcpy(dst + (8 * tile + p) * 4, &scale, 4);
                memcpy(dst + (9 * tile + p) * 4, &bias, 4);
            }
        }
}

L3__BASE void l3__pack_tiles_int8(int type, const float *x, size_t xs, uint32_t n, uint32_t cols, unsigned char *dst) {
    l3__pack_tiles8(type, L3__P512, x, xs, n, cols, dst);
}

/* A block of a panel: words (8, 16), scales (16,). Two blocks are turned at once. */
L3__OP5 void l3__panel_int8_of(const int type, const uint8_t *const *rows, uint32_t first, uint32_t end,
                               unsigned char *panel) {
    const size_t block = type == L3_Q8_0 ? 34 : 18;
    for (uint32_t b = first; b < end; b += 2, panel += 2 * 9 * 64) {
        const bool both = end - b > 1;
        __m512     t[16];
        float      scale[2][16];
        L3__EACH(r, 16) {
            const uint8_t *row = rows[r] + b * block;
            t[r] = _mm512_castsi512_ps(both ? l3__blocks_avx512(type, row, true) : l3__blocks_avx512(type, row, false));
            scale[0][r] = l3__half_avx2(row);
            scale[1][r] = both ? l3__half_avx2(row + block) : 0.0f;
        }
        l3__transpose_avx512(t);
        for (uint32_t half = 0; half < (both ? 2u : 1u); half++) {
            L3__EACH(c, 8) _mm512_storeu_ps(panel + (half * 9 + c) * 64, t[half * 8 + c]);
            memcpy(panel + (half * 9 + 8) * 64, scale[half], 64);
        }
    }
}
L3__AVX512 void l3__panel_int8(int type, const uint8_t *const *rows, uint32_t first, uint32_t end, uint32_t cols,
                               void *panel) {
    (void)cols;
    if (type == L3_Q8_0) l3__panel_int8_of(L3_Q8_0, rows, first, end, (unsigned char *)panel);
    else l3__panel_int8_of(L3_Q4_0, rows, first, end, (unsigned char *)panel);
}

L3__OP5 __m512i l3__word_avx512(const unsigned char *p) {
    int32_t word;
    memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
}

L3__AVX512 void l3__times_int8(const void *panel, const void *x, uint32_t blocks, bool first, float *c, size_t cs) {
    const unsigned char *w = (const unsigned char *)panel, *a = (const unsigned char *)x;
    __m512               sum[L3__P512];
    L3__EACH(p, L3__P512) sum[p] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(c + p * cs);
    for (; blocks > 0; blocks--, w += 9 * 64, a += 10 * L3__P512 * 4) {
        const unsigned char *scale = a + 8 * L3__P512 * 4, *bias = a + 9 * L3__P512 * 4;
        const __m512         d = _mm512_loadu_ps(w + 8 * 64);
        __m512i              s[L3__P512];
        L3__EACH(p, L3__P512) s[p] = l3__word_avx512(bias + 4 * p);
        for (uint32_t g = 0; g < 8; g++) {
            const __m512i q            = l3__bytes64(w + g * 64);
            L3__EACH(p, L3__P512) s[p] = _mm512_dpbusd_epi32(s[p], q, l3__word_avx512(a + (g * L3__P512 + p) * 4));
        }
        L3__EACH(p, L3__P512) {
            const __m512 m = _mm512_mul_ps(d, _mm512_castsi512_ps(l3__word_avx512(scale + 4 * p)));
            sum[p]         = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[p]), m, sum[p]);
        }
    }
    L3__EACH(p, L3__P512) _mm512_storeu_ps(c + p * cs, sum[p]);
}

static const l3__fast l3__int8_by_avx512   = {l3__pack_int8_fours, l3__int8_avx512, NULL, NULL, 1, 10, 0};
static const l3__fast l3__gemm_int8_avx512 = {
    l3__pack_tiles_int8, NULL, l3__panel_int8, l3__times_int8, L3__P512, 10, 9};

/* ---- the same with AVX2, whose products of bytes end in 16 bits: tiles of 3 positions ---- */

#define L3__P256 3

/* Q4_0: eight products of a nibble and an int8, in pairs, still fit 16 bits: 15 * 127 * 2 * 8 < 2^15. */
L3__BASE void l3__pack_tiles_int8_avx2(int type, const float *x, size_t xs, uint32_t n, uint32_t cols,
                                       unsigned char *dst) {
    l3__pack_tiles8(type, L3__P256, x, xs, n, cols, dst);
}

/* 16 rows of 8 words of a block. */
L3__BASE_OP void l3__turn_avx2(const __m256i *rows, unsigned char *panel) {
    for (size_t g = 0; g < 2; g++) {
        __m256 t[8];
        L3__EACH(r, 8) t[r] = _mm256_castsi256_ps(rows[8 * g + r]);
        l3__transpose_avx2(t);
        L3__EACH(c, 8) _mm256_storeu_ps((float *)(void *)(panel + c * 64 + g * 32), t[c]);
    }
}

/* A block of a panel: words (8, 16), scales (16,). */
L3__BASE void l3__panel_int4_avx2(int type, const uint8_t *const *rows, uint32_t first, uint32_t end, uint32_t cols,
                                  void *to) {
    unsigned char *panel = (unsigned char *)to;
    (void)type;
    (void)cols;
    for (uint32_t b = first; b < end; b++, panel += 9 * 64) {
        __m256i q[16];
        float   scale[16];
        L3__EACH(r, 16) {
            const uint8_t *row = rows[r] + b * 18;
            const __m128i  w   = l3__bytes16(row + 2);
            q[r]               = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(w, 4), w), _mm256_set1_epi8(15));
            scale[r]           = l3__half_avx2(row);
        }
        l3__turn_avx2(q, panel);
        memcpy(panel + 8 * 64, scale, 64);
    }
}

L3__BASE_OP __m256i l3__word_avx2(const unsigned char *p) {
    int32_t word;
    memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
}

L3__BASE_OP void l3__load_sums_avx2(__m256 (*sum)[2], bool first, const float *c, size_t cs) {
    L3__EACH(p, L3__P256) {
        L3__EACH(j, 2) sum[p][j] = first ? _mm256_setzero_ps() : _mm256_loadu_ps(c + p * cs + j * 8);
    }
}

/* sum += the block's integers times both scales. */
L3__BASE_OP void l3__scale_sums_avx2(__m256 (*sum)[2], __m256i (*s)[2], const unsigned char *d,
                                     const unsigned char *scale) {
    const __m256 d0 = _mm256_castsi256_ps(l3__bytes32(d)), d1 = _mm256_castsi256_ps(l3__bytes32(d + 32));
    L3__EACH(p, L3__P256) {
        const __m256 a = _mm256_castsi256_ps(l3__word_avx2(scale + 4 * p));
        sum[p][0]      = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[p][0]), _mm256_mul_ps(d0, a), sum[p][0]);
        sum[p][1]      = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[p][1]), _mm256_mul_ps(d1, a), sum[p][1]);
    }
}

/* sum += v, in place: gcc moves and spills accumulators that it is free to rename. */
L3__BASE_OP void l3__add16_avx2(__m256i *sum, __m256i v) { __asm__("vpaddw %1, %0, %0" : "+x"(*sum) : "x"(v)); }
L3__BASE_OP void l3__add32_avx2(__m256i *sum, __m256i v) { __asm__("vpaddd %1, %0, %0" : "+x"(*sum) : "x"(v)); }

L3__BASE void l3__times_int4_avx2(const void *panel, const void *x, uint32_t blocks, bool first, float *c, size_t cs) {
    const unsigned char *w = (const unsigned char *)panel, *a = (const unsigned char *)x;
    const __m256i        ones = _mm256_set1_epi16(1);
    __m256               sum[L3__P256][2];
    l3__load_sums_avx2(sum, first, c, cs);
    for (; blocks > 0; blocks--, w += 9 * 64, a += 10 * L3__P256 * 4) {
        __m256i s[L3__P256][2];
        L3__EACH(p, L3__P256) s[p][0] = s[p][1] = _mm256_setzero_si256();
        for (uint32_t g = 0; g < 8; g++) {
            const __m256i w0 = l3__bytes32(w + g * 64), w1 = l3__bytes32(w + g * 64 + 32);
            L3__EACH(p, L3__P256) {
                const __m256i v = l3__word_avx2(a + (g * L3__P256 + p) * 4);
                l3__add16_avx2(&s[p][0], _mm256_maddubs_epi16(w0, v));
                l3__add16_avx2(&s[p][1], _mm256_maddubs_epi16(w1, v));
            }
        }
        L3__EACH(p, L3__P256) {
            const __m256i bias     = l3__word_avx2(a + (9 * L3__P256 + p) * 4);
            L3__EACH(j, 2) s[p][j] = _mm256_add_epi32(_mm256_madd_epi16(s[p][j], ones), bias);
        }
        l3__scale_sums_avx2(sum, s, w + 8 * 64, a + 8 * L3__P256 * 4);
    }
    L3__EACH(p, L3__P256) { L3__EACH(j, 2) _mm256_storeu_ps(c + p * cs + j * 8, sum[p][j]); }
}

/* ---- words of two int16, where bytes would overflow or are too few: Q8_0 with AVX2, and halves ---- */

/* 32 floats, rounded to integers of which the largest magnitude is `limit`, times a scale. */
L3__BASE_OP void l3__to_int16(const __m256 *v, const float limit, __m256i *two, float *scale) {
    __m256i i[4];
    l3__round32(v, limit, i, scale);
    L3__EACH(j, 2) two[j] = _mm256_permute4x64_epi64(_mm256_packs_epi32(i[2 * j], i[2 * j + 1]), 0xd8);
}

/* A block of a tile: words (16, tile), scales (tile,). */
L3__BASE_OP void l3__pack_tiles16(const uint32_t tile, const float *x, size_t xs, uint32_t n, uint32_t cols,
                                  unsigned char *dst) {
    for (uint32_t p0 = 0; p0 < n; p0 += tile)
        for (uint32_t k = 0; k < cols; k += 32, dst += 17 * tile * 4) {
            if (n - p0 < tile) memset(dst, 0, 17 * tile * 4);
            for (uint32_t p = 0; p < tile && p0 + p < n; p++) {
                float   whole[32] = {0}, scale;
                __m256  v[4];
                __m256i two[2];
                int32_t words[16];
                memcpy(whole, x + (p0 + p) * xs + k, (cols - k < 32 ? cols - k : 32) * sizeof *x);
                L3__EACH(j, 4) v[j] = _mm256_loadu_ps(whole + 8 * j);
                l3__to_int16(v, 32767.0f, two, &scale);
                L3__EACH(j, 2) _mm256_storeu_si256((__m256i *)(void *)(words + 8 * j), two[j]);
                L3__EACH(i, 16) memcpy(dst + (i * tile + p) * 4, words + i, 4);
                memcpy(dst + (16 * tile + p) * 4, &scale, 4);
            }
        }
}

L3__BASE void l3__pack_tiles_int16_avx2(int type, const float *x, size_t xs, uint32_t n, uint32_t cols,
                                        unsigned char *dst) {
    (void)type;
    l3__pack_tiles16(L3__P256, x, xs, n, cols, dst);
}

/* Block b of a row as integers times a scale, which is returned: Q8_0 as they are; halves such that the sum of a block fits,
 * 32 * 2047 * 32767 < 2^31. */
L3__BASE_OP float l3__row_int16(const int type, const uint8_t *row, uint32_t b, __m256i *two) {
    if (type == L3_Q8_0) {
        const uint8_t *block  = row + b * 34;
        L3__EACH(j, 2) two[j] = _mm256_cvtepi8_epi16(l3__bytes16(block + 2 + 16 * j));
        return l3__half_avx2(block);
    }
    __m256 v[4];
    float  scale;
    L3__EACH(j, 4) {
        const uint8_t *from = row + b * 64 + j * 16;
        v[j]                = type == L3_F16 ? l3__from_f16_avx2(from) : l3__from_bf16_avx2(from);
    }
    l3__to_int16(v, 2047.0f, two, &scale);
    return scale;
}

/* A block of a panel: words (16, 16), scales (16,). */
L3__BASE_OP void l3__panel_int16_of(const int type, const uint8_t *const *rows, uint32_t first, uint32_t end,
                                    unsigned char *panel) {
    for (uint32_t b = first; b < end; b++, panel += 17 * 64) {
        __m256i q[2][16];
        float   scale[16];
        L3__EACH(r, 16) {
            __m256i two[2];
            scale[r] = l3__row_int16(type, rows[r], b, two);
            q[0][r]  = two[0];
            q[1][r]  = two[1];
        }
        L3__EACH(half, 2) l3__turn_avx2(q[half], panel + half * 8 * 64);
        memcpy(panel + 16 * 64, scale, 64);
    }
}

L3__BASE void l3__panel_int16(int type, const uint8_t *const *rows, uint32_t first, uint32_t end, uint32_t cols,
                              void *to) {
    unsigned char *panel = (unsigned char *)to;
    const uint32_t whole = end * 32 <= cols ? end : end - 1;
    if (type == L3_Q8_0) l3__panel_int16_of(L3_Q8_0, rows, first, whole, panel);
    else if (type == L3_F16) l3__panel_int16_of(L3_F16, rows, first, whole, panel);
    else l3__panel_int16_of(L3_BF16, rows, first, whole, panel);
    if (whole < end) { /* the last elements of halves, and zeros behind them */
        uint16_t       last[16][32];
        const uint8_t *row[16];
        memset(last, 0, sizeof last);
        for (uint32_t r = 0; r < 16; r++) {
            const void *p = last[r];
            memcpy(last[r], rows[r] + (size_t)whole * 64, (cols - whole * 32) * 2);
            row[r] = (const uint8_t *)p;
        }
        l3__panel_int16(type, row, 0, 1, 32, panel + (size_t)(whole - first) * 17 * 64);
    }
}

L3__BASE void l3__times_int16_avx2(const void *panel, const void *x, uint32_t blocks, bool first, float *c, size_t cs) {
    const unsigned char *w = (const unsigned char *)panel, *a = (const unsigned char *)x;
    __m256               sum[L3__P256][2];
    l3__load_sums_avx2(sum, first, c, cs);
    for (; blocks > 0; blocks--, w += 17 * 64, a += 17 * L3__P256 * 4) {
        __m256i s[L3__P256][2];
        L3__EACH(p, L3__P256) s[p][0] = s[p][1] = _mm256_setzero_si256();
        for (uint32_t g = 0; g < 16; g++) {
            const __m256i w0 = l3__bytes32(w + g * 64), w1 = l3__bytes32(w + g * 64 + 32);
            L3__EACH(p, L3__P256) {
                const __m256i v = l3__word_avx2(a + (g * L3__P256 + p) * 4);
                l3__add32_avx2(&s[p][0], _mm256_madd_epi16(w0, v));
                l3__add32_avx2(&s[p][1], _mm256_madd_epi16(w1, v));
            }
        }
        l3__scale_sums_avx2(sum, s, w + 16 * 64, a + 16 * L3__P256 * 4);
    }
    L3__EACH(p, L3__P256) { L3__EACH(j, 2) _mm256_storeu_ps(c + p * cs + j * 8, sum[p][j]); }
}

L3__BASE void l3__pack_tiles_int16_avx512(int type, const float *x, size_t xs, uint32_t n, uint32_t cols,
                                          unsigned char *dst) {
    (void)type;
    l3__pack_tiles16(L3__P512, x, xs, n, cols, dst);
}

L3__AVX512 void l3__times_int16_avx512(const void *panel, const void *x, uint32_t blocks, bool first, float *c,
                                       size_t cs) {
    const unsigned char *w = (const unsigned char *)panel, *a = (const unsigned char *)x;
    __m512               sum[L3__P512];
    L3__EACH(p, L3__P512) sum[p] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(c + p * cs);
    for (; blocks > 0; blocks--, w += 17 * 64, a += 17 * L3__P512 * 4) {
        const __m512 d = _mm512_loadu_ps(w + 16 * 64);
        __m512i      s[L3__P512];
        L3__EACH(p, L3__P512) s[p] = _mm512_setzero_si512();
        for (uint32_t g = 0; g < 16; g++) {
            const __m512i q            = l3__bytes64(w + g * 64);
            L3__EACH(p, L3__P512) s[p] = _mm512_dpwssd_epi32(s[p], q, l3__word_avx512(a + (g * L3__P512 + p) * 4));
        }
        L3__EACH(p, L3__P512) {
            const __m512 m = _mm512_mul_ps(d, _mm512_castsi512_ps(l3__word_avx512(a + (16 * L3__P512 + p) * 4)));
            sum[p]         = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[p]), m, sum[p]);
        }
    }
    L3__EACH(p, L3__P512) _mm512_storeu_ps(c + p * cs, sum[p]);
}

static const l3__fast l3__gemm_int4_avx2 = {
    l3__pack_tiles_int8_avx2, NULL, l3__panel_int4_avx2, l3__times_int4_avx2, L3__P256, 10, 9};
static const l3__fast l3__gemm_int16_avx2 = {
    l3__pack_tiles_int16_avx2, NULL, l3__panel_int16, l3__times_int16_avx2, L3__P256, 17, 17};
static const l3__fast l3__gemm_int16_avx512 = {
    l3__pack_tiles_int16_avx512, NULL, l3__panel_int16, l3__times_int16_avx512, L3__P512, 17, 17};

#endif /* L3__X86 */

#if defined(L3__NEON)
#if defined(__aarch64__)
#define L3__P_NEON 6
#else
#define L3__P_NEON 2 /* 16 registers */
#endif
#endif

#if defined(L3__NEON) && defined(__aarch64__)
/* ---- AArch64, int8 and bf16 for many positions: panels of 16 rows, tiles of 6 positions. A vector is what one instruction
 * multiplies: 4 cells of 4 bytes (vdotq_laneq) or 2 of 8 (vmmlaq, vbfmmlaq), each a part of another row or position. ---- */

L3__BASE_OP int8x16_t l3__bytes_neon(const float *p) { return vreinterpretq_s8_f32(vld1q_f32(p)); }

/* A block of a tile: cells (32 / cell, 6), scales (6,). */
L3__BASE_OP void l3__pack_cells(const size_t cell, const float *x, size_t xs, uint32_t n, uint32_t cols,
                                unsigned char *dst) {
    for (uint32_t p0 = 0; p0 < n; p0 += L3__P_NEON)
        for (uint32_t b = 0; b < cols / 32; b++, dst += 9 * L3__P_NEON * 4) {
            if (n - p0 < L3__P_NEON) memset(dst, 0, 9 * L3__P_NEON * 4);
            for (uint32_t p = 0; p < L3__P_NEON && p0 + p < n; p++) {
                int8_t q[32];
                float  scale;
                (void)l3__quantize32(x + (p0 + p) * xs + b * 32, q, &scale);
                L3__EACH(i, 32 / cell) memcpy(dst + (i * L3__P_NEON + p) * cell, q + i * cell, cell);
                memcpy(dst + (8 * L3__P_NEON + p) * 4, &scale, 4);
            }
        }
}

/* First all blocks of 8 rows, then those of the other 8. A block: sets of 16 / cell rows, in each of which the vectors with
 * the rows' first cells, second ones and so on; then scales (8,). */
L3__BASE_OP void l3__panel_cells(const int type, const size_t cell, const uint8_t *const *rows, uint32_t first,
                                 uint32_t end, void *to) {
    const size_t block = type == L3_Q8_0 ? 34 : 18;
    float       *panel = (float *)to;
    for (uint32_t g = 0; g < 16; g += 8)
        for (uint32_t b = first; b < end; b++, panel += 72) {
            float32x4_t v[2][8];
            L3__EACH(r, 8) {
                const uint8_t *row = rows[g + r] + b * block;
                int8x16_t      low, high;
                l3__weights_neon(type, row, &low, &high);
                v[0][r]       = vreinterpretq_f32_s8(low);
                v[1][r]       = vreinterpretq_f32_s8(high);
                panel[64 + r] = l3__half_neon(row);
            }
            if (cell == 4) {
                L3__EACH(i, 4) { /* rows 0 ... 3, their first halves; then the second ones; then rows 4 ... 7 */
                    const float32x4_t  *a   = &v[i % 2][i / 2 * 4];
                    const float32x4x4_t all = {{a[0], a[1], a[2], a[3]}};
                    vst4q_f32(panel + i * 16, all);
                }
            } else {
                L3__EACH(i, 8) {
                    const float64x2_t a = vreinterpretq_f64_f32(v[i % 2][i / 2 * 2]);
                    const float64x2_t c = vreinterpretq_f64_f32(v[i % 2][i / 2 * 2 + 1]);
                    vst1q_f32(panel + i * 8, vreinterpretq_f32_f64(vzip1q_f64(a, c)));
                    vst1q_f32(panel + i * 8 + 4, vreinterpretq_f32_f64(vzip2q_f64(a, c)));
                }
            }
        }
}

#if defined(L3__DOTPROD_TARGET)
L3__BASE void l3__pack_fours(int type, const float *x, size_t xs, uint32_t n, uint32_t cols, unsigned char *dst) {
    (void)type;
    l3__pack_cells(4, x, xs, n, cols, dst);
}
L3__BASE void l3__panel_fours(int type, const uint8_t *const *rows, uint32_t first, uint32_t end, uint32_t cols,
                              void *panel) {
    (void)cols;
    if (type == L3_Q8_0) l3__panel_cells(L3_Q8_0, 4, rows, first, end, panel);
    else l3__panel_cells(L3_Q4_0, 4, rows, first, end, panel);
}

#define L3__OP static inline __attribute__((always_inline, unused, target(L3__DOTPROD_TARGET)))
/* s[i] += cell i of w times cell `lane` of a. */
L3__OP int32x4_t l3__dot_lane(int32x4_t s, int8x16_t w, int8x16_t a, const size_t lane) {
    switch (lane) {
    case 0: return vdotq_laneq_s32(s, w, a, 0);
    case 1: return vdotq_laneq_s32(s, w, a, 1);
    case 2: return vdotq_laneq_s32(s, w, a, 2);
    default: return vdotq_laneq_s32(s, w, a, 3);
    }
}
#undef L3__OP

#define L3__DOTPROD static __attribute__((unused, target(L3__DOTPROD_TARGET)))
L3__DOTPROD void l3__times_dotprod(const void *panel, const void *x, uint32_t blocks, bool first, float *c, size_t cs) {
    const float *w = (const float *)panel;
    for (size_t g = 0; g < 16; g += 8) {
        const float *a = (const float *)x;
        float32x4_t  sum[L3__P_NEON][2];
        L3__EACH(p, L3__P_NEON) {
            L3__EACH(j, 2) sum[p][j] = first ? vdupq_n_f32(0) : vld1q_f32(c + p * cs + g + 4 * j);
        }
        for (uint32_t b = 0; b < blocks; b++, w += 72, a += 9 * L3__P_NEON) {
            int32x4_t s[L3__P_NEON][2];
            L3__EACH(p, L3__P_NEON) s[p][0] = s[p][1] = vdupq_n_s32(0);
            for (size_t i = 0; i < 8; i += 2) { /* two cells each of 6 positions are three vectors */
                int8x16_t v[3];
                L3__EACH(k, 3) v[k] = l3__bytes_neon(a + i * L3__P_NEON + k * 4);
                L3__EACH(k, 4) {
                    const int8x16_t q = l3__bytes_neon(w + k % 2 * 32 + (i + k / 2) * 4);
                    L3__EACH(p, L3__P_NEON) {
                        const size_t at = k / 2 * L3__P_NEON + p;
                        s[p][k % 2]     = l3__dot_lane(s[p][k % 2], q, v[at / 4], at % 4);
                    }
                }
            }
            L3__EACH(p, L3__P_NEON) {
                L3__EACH(j, 2) {
                    const float32x4_t m = vmulq_n_f32(vld1q_f32(w + 64 + 4 * j), a[8 * L3__P_NEON + p]);
                    sum[p][j]           = vfmaq_f32(sum[p][j], vcvtq_f32_s32(s[p][j]), m);
                }
            }
        }
        L3__EACH(p, L3__P_NEON) { L3__EACH(j, 2) vst1q_f32(c + p * cs + g + 4 * j, sum[p][j]); }
    }
}
#undef L3__DOTPROD
static const l3__fast l3__gemm_dotprod = {l3__pack_fours, NULL, l3__panel_fours, l3__times_dotprod, L3__P_NEON, 9, 9};
#endif

#if defined(L3__I8MM_TARGET)
L3__BASE void l3__pack_eights(int type, const float *x, size_t xs, uint32_t n, uint32_t cols, unsigned char *dst) {
    (void)type;
    l3__pack_cells(8, x, xs, n, cols, dst);
}
L3__BASE void l3__panel_eights(int type, const uint8_t *const *rows, uint32_t first, uint32_t end, uint32_t cols,
                               void *panel) {
    (void)cols;
    if (type == L3_Q8_0) l3__panel_cells(L3_Q8_0, 8, rows, first, end, panel);
    else l3__panel_cells(L3_Q4_0, 8, rows, first, end, panel);
}

/* Sums of 8 rows: a vector has those of 2 rows and 2 positions, (row 0, position 0), (0, 1), (1, 0), (1, 1). */
L3__BASE_OP void l3__pairs_in(const float *c, size_t cs, bool zero, float32x4_t (*sum)[4]) {
    L3__EACH(i, L3__P_NEON) {
        const float      *at = c + i / 2 * 2 * cs + i % 2 * 4;
        const float32x4_t a = zero ? vdupq_n_f32(0) : vld1q_f32(at), b = zero ? a : vld1q_f32(at + cs);
        sum[i / 2][i % 2 * 2]     = vzip1q_f32(a, b);
        sum[i / 2][i % 2 * 2 + 1] = vzip2q_f32(a, b);
    }
}
L3__BASE_OP void l3__pairs_out(float *c, size_t cs, float32x4_t (*sum)[4]) {
    L3__EACH(i, L3__P_NEON) {
        float            *at = c + i / 2 * 2 * cs + i % 2 * 4;
        const float32x4_t a = sum[i / 2][i % 2 * 2], b = sum[i / 2][i % 2 * 2 + 1];
        vst1q_f32(at, vuzp1q_f32(a, b));
        vst1q_f32(at + cs, vuzp2q_f32(a, b));
    }
}

#define L3__I8MM static __attribute__((unused, target(L3__I8MM_TARGET)))

L3__I8MM void l3__times_i8mm(const void *panel, const void *x, uint32_t blocks, bool first, float *c, size_t cs) {
    const float *w = (const float *)panel;
    for (size_t g = 0; g < 16; g += 8) {
        const float *a = (const float *)x;
        float32x4_t  sum[3][4];
        l3__pairs_in(c + g, cs, first, sum);
        for (uint32_t b = 0; b < blocks; b++, w += 72, a += 9 * L3__P_NEON) {
            int32x4_t s[3][4];
            L3__EACH(p, 3) { L3__EACH(r, 4) s[p][r] = vdupq_n_s32(0); }
            for (size_t i = 0; i < 4; i++) {
                int8x16_t v[3];
                L3__EACH(p, 3) v[p] = l3__bytes_neon(a + (i * 3 + p) * 4);
                L3__EACH(r, 4) {
                    const int8x16_t q      = l3__bytes_neon(w + (r * 4 + i) * 4);
                    L3__EACH(p, 3) s[p][r] = vmmlaq_s32(s[p][r], q, v[p]);
                }
            }
            L3__EACH(p, 3) {
                const float32x2_t two  = vld1_f32(a + 8 * L3__P_NEON + 2 * p);
                const float32x4_t pair = vcombine_f32(two, two);
                L3__EACH(r, 4) {
                    const float32x4_t d = vld1q_f32(w + 64 + r / 2 * 4);
                    const float32x4_t m = vmulq_f32(r % 2 ? vzip2q_f32(d, d) : vzip1q_f32(d, d), pair);
                    sum[p][r]           = vfmaq_f32(sum[p][r], vcvtq_f32_s32(s[p][r]), m);
                }
            }
        }
        l3__pairs_out(c + g, cs, sum);
    }
}
static const l3__fast l3__gemm_i8mm = {l3__pack_eights, NULL, l3__panel_eights, l3__times_i8mm, L3__P_NEON, 9, 9};

/* The same in bf16, cells being 4 elements. */

/* The first n elements of 32 floats, rounded to nearest even; zeros behind. */
L3__I8MM inline void l3__round_bf16(const float *x, uint32_t n, bfloat16x8_t *v) {
    float all[32] = {0};
    if (n < 32) x = (const float *)memcpy(all, x, n * sizeof *x);
    L3__EACH(j, 4) v[j] = vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(vld1q_f32(x + 8 * j)), vld1q_f32(x + 8 * j + 4));
}

L3__I8MM void l3__pack_bfmmla(int type, const float *x, size_t xs, uint32_t n, uint32_t cols, unsigned char *dst) {
    (void)type;
    for (uint32_t p0 = 0; p0 < n; p0 += L3__P_NEON)
        for (uint32_t k = 0; k < cols; k += 32, dst += 64 * L3__P_NEON) {
            if (n - p0 < L3__P_NEON) memset(dst, 0, 64 * L3__P_NEON);
            for (uint32_t p = 0; p < L3__P_NEON && p0 + p < n; p++) {
                bfloat16x8_t v[4];
                l3__round_bf16(x + (p0 + p) * xs + k, cols - k < 32 ? cols - k : 32, v);
                L3__EACH(i, 8) memcpy(dst + (i * L3__P_NEON + p) * 8, (const unsigned char *)v + i * 8, 8);
            }
        }
}

L3__I8MM void l3__panel_bfmmla(int type, const uint8_t *const *rows, uint32_t first, uint32_t end, uint32_t cols,
                               void *to) {
    float *panel = (float *)to;
    for (uint32_t k = first * 32; k < end * 32; k += 32)
        for (uint32_t r = 0; r < 16; r += 2, panel += 32) {
            bfloat16x8_t v[2][4];
            L3__EACH(i, 2) {
                const uint8_t *row = rows[r + i];
                if (type == L3_BF16 && cols - k >= 32) {
                    L3__EACH(j, 4) v[i][j] = vreinterpretq_bf16_u8(vld1q_u8(row + k * 2 + 16 * j));
                } else {
                    const uint32_t n = cols - k < 32 ? cols - k : 32;
                    float          x[32];
                    if (type == L3_F16 && n == 32)
                        L3__EACH(j, 8) vst1q_f32(x + 4 * j, l3__from_f16_neon(row + k * 2 + 8 * j));
                    else l3__unpacker(type)(row, k, n, x);
                    l3__round_bf16(x, n, v[i]);
                }
            }
            L3__EACH(j, 4) {
                const float64x2_t a = vreinterpretq_f64_bf16(v[0][j]), c = vreinterpretq_f64_bf16(v[1][j]);
                vst1q_f32(panel + j * 8, vreinterpretq_f32_f64(vzip1q_f64(a, c)));
                vst1q_f32(panel + j * 8 + 4, vreinterpretq_f32_f64(vzip2q_f64(a, c)));
            }
        }
}

L3__I8MM inline bfloat16x8_t l3__load_bf16(const float *p) { return vreinterpretq_bf16_f32(vld1q_f32(p)); }

L3__I8MM void l3__times_bfmmla(const void *panel, const void *x, uint32_t blocks, bool first, float *c, size_t cs) {
    for (size_t g = 0; g < 16; g += 8) {
        const float *w = (const float *)panel + g * 16, *a = (const float *)x;
        float32x4_t  sum[3][4];
        l3__pairs_in(c + g, cs, first, sum);
        for (uint32_t b = 0; b < blocks; b++, w += 256)
            for (size_t i = 0; i < 8; i++, a += 2 * L3__P_NEON) {
                bfloat16x8_t v[3];
                L3__EACH(p, 3) v[p] = l3__load_bf16(a + 4 * p);
                L3__EACH(r, 4) {
                    const bfloat16x8_t q     = l3__load_bf16(w + r * 32 + i * 4);
                    L3__EACH(p, 3) sum[p][r] = vbfmmlaq_f32(sum[p][r], q, v[p]);
                }
            }
        l3__pairs_out(c + g, cs, sum);
    }
}
static const l3__fast l3__gemm_bfmmla = {l3__pack_bfmmla, NULL, l3__panel_bfmmla, l3__times_bfmmla, L3__P_NEON, 16, 16};
#undef L3__I8MM
#endif
#endif /* __aarch64__ */

/* ---- the levels ---- */

#if defined(L3__X86)
#define L3__INT8        avx2
#define L3__INT8_TARGET target(L3__AVX2_TARGET)
#include "l3.h"
#undef L3__INT8
#undef L3__INT8_TARGET

#define L3__ISA    avx2
#define L3__W      8
#define L3__P      6
#define L3__TARGET target(L3__AVX2_TARGET)
#define L3__TABLES                                                                                                  \
    static const l3__kernels l3__avx2_kernels = {                                                                   \
        L3_LEVEL_AVX2,                                                                                              \
        128,                                                                                                        \
        L3__FLOAT_KERNELS,                                                                                          \
        {NULL, NULL, NULL, &l3__int8_by_avx2, &l3__q4_by_avx2, &l3__fast_q6_avx2},                                  \
        {&l3__fast_f32_avx2, &l3__gemm_int16_avx2, &l3__gemm_int16_avx2, &l3__gemm_int16_avx2, &l3__gemm_int4_avx2, \
         &l3__fast_f32_avx2}};
#if defined(L3__EMULATE_AMX)
#define L3__PAIRS_TARGET L3__TARGET
#define L3__AMX_DECODE \
    { NULL, NULL, NULL, &l3__int8_by_avx2, &l3__q4_by_avx2, &l3__fast_q6_avx2 }
#endif
#include "l3.h"
#undef L3__ISA
#undef L3__W
#undef L3__P
#undef L3__TARGET
#undef L3__TABLES
#undef L3__PAIRS_TARGET
#undef L3__AMX_DECODE

#define L3__ISA          avx512
#define L3__W            16
#define L3__P            L3__P512
#define L3__TARGET       target(L3__AVX512_TARGET)
#define L3__PAIRS_TARGET target(L3__AVX512_TARGET ",avx512bf16")
#define L3__TABLES                                                                                           \
    static const l3__kernels l3__avx512_kernels = {                                                          \
        L3_LEVEL_AVX512,                                                                                     \
        128,                                                                                                 \
        L3__FLOAT_KERNELS,                                                                                   \
        {NULL, NULL, NULL, &l3__int8_by_avx512, &l3__int8_by_avx512, &l3__fast_q6_avx2},                     \
        {&l3__fast_f32_avx512, &l3__gemm_int16_avx512, &l3__gemm_int16_avx512, &l3__gemm_int8_avx512,        \
         &l3__gemm_int8_avx512, &l3__fast_f32_avx512}};                                                      \
    static const l3__kernels l3__bf16_kernels = {                                                            \
        L3_LEVEL_BF16,                                                                                       \
        128,                                                                                                 \
        L3__FLOAT_KERNELS,                                                                                   \
        {NULL, NULL, NULL, &l3__int8_by_avx512, &l3__int8_by_avx512, &l3__fast_q6_avx2},                     \
        {&l3__fast_f32_avx512, &l3__fast_bf16, &l3__fast_bf16, &l3__gemm_int8_avx512, &l3__gemm_int8_avx512, \
         &l3__fast_bf16}};
#if defined(L3__AMX_TARGET) && !defined(L3__EMULATE_AMX)
#define L3__AMX_DECODE \
    { NULL, NULL, NULL, &l3__int8_by_avx512, &l3__int8_by_avx512, &l3__fast_q6_avx2 }
#endif
#include "l3.h"
#undef L3__ISA
#undef L3__W
#undef L3__P
#undef L3__TARGET
#undef L3__TABLES
#undef L3__PAIRS_TARGET
#undef L3__AMX_DECODE
#else
#if defined(L3__DOTPROD_TARGET)
#define L3__INT8        dotprod
#define L3__INT8_TARGET target(L3__DOTPROD_TARGET)
#include "l3.h"
#undef L3__INT8
#undef L3__INT8_TARGET
#define L3__DOTPROD_TABLE                                                                                  \
    static const l3__kernels l3__dotprod_kernels = {                                                       \
        L3_LEVEL_DOTPROD,                                                                                  \
        128,                                                                                               \
        L3__FLOAT_KERNELS,                                                                                 \
        {NULL, NULL, NULL, &l3__int8_by_dotprod, &l3__int8_by_dotprod, NULL},                              \
        {&l3__fast_f32_neon, &l3__fast_f32_neon, &l3__fast_f32_neon, &l3__gemm_dotprod, &l3__gemm_dotprod, \
         &l3__fast_f32_neon}};
#else
#define L3__DOTPROD_TABLE
#endif
#if defined(L3__I8MM_TARGET)
#define L3__I8MM_TABLE                                                        \
    static const l3__kernels l3__i8mm_kernels = {                             \
        L3_LEVEL_I8MM,                                                        \
        128,                                                                  \
        L3__FLOAT_KERNELS,                                                    \
        {NULL, NULL, NULL, &l3__int8_by_dotprod, &l3__int8_by_dotprod, NULL}, \
        {&l3__fast_f32_neon, &l3__gemm_bfmmla, &l3__gemm_bfmmla, &l3__gemm_i8mm, &l3__gemm_i8mm, &l3__gemm_bfmmla}};
#else
#define L3__I8MM_TABLE
#endif

#define L3__ISA neon
#define L3__W   4
#define L3__P   L3__P_NEON
#if !defined(__aarch64__) /* NEON has no subnormals there, so what gives the same bits at every level stays plain C */
#define L3__NEON_BATCH   32
#define L3__NEON_KERNELS L3__PLAIN_KERNELS
#else
#define L3__NEON_BATCH   128
#define L3__NEON_KERNELS L3__FLOAT_KERNELS
#endif
#define L3__TABLES                                                                                               \
    static const l3__kernels l3__neon_kernels = {L3_LEVEL_NEON,                                                  \
                                                 L3__NEON_BATCH,                                                 \
                                                 L3__NEON_KERNELS,                                               \
                                                 {NULL, NULL, NULL, &l3__int8_by_neon, &l3__int8_by_neon, NULL}, \
                                                 {&l3__fast_f32_neon, &l3__fast_f32_neon, &l3__fast_f32_neon,    \
                                                  &l3__fast_f32_neon, &l3__fast_f32_neon, &l3__fast_f32_neon}};  \
    L3__DOTPROD_TABLE                                                                                            \
    L3__I8MM_TABLE
#define L3__INT8 neon
#define L3__INT8_TARGET
#include "l3.h"
#undef L3__INT8
#undef L3__INT8_TARGET
#define L3__TARGET
#include "l3.h"
#undef L3__TARGET
#undef L3__ISA
#undef L3__W
#undef L3__P
#undef L3__TABLES
#undef L3__NEON_BATCH
#undef L3__NEON_KERNELS
#undef L3__DOTPROD_TABLE
#undef L3__I8MM_TABLE
#endif
#endif /* L3__VECTORS */

L3_API const char *l3_level_name(int level) {
    switch (level) {
    case L3_LEVEL_BEST: return "best";
    case L3_LEVEL_PLAIN: return "plain";
    case L3_LEVEL_AVX2: return "avx2";
    case L3_LEVEL_AVX512: return "avx512";
    case L3_LEVEL_BF16: return "bf16";
    case L3_LEVEL_AMX: return "amx";
    case L3_LEVEL_NEON: return "neon";
    case L3_LEVEL_DOTPROD: return "dotprod";
    case L3_LEVEL_I8MM: return "i8mm";
    case L3_LEVEL_DSP: return "dsp";
    case L3_LEVEL_HELIUM: return "helium";
    case L3_LEVEL_RVV: return "rvv";
    default: return NULL;
    }
}

#if defined(L3__NEON)
L3__FN bool l3__has_dotprod(void) {
#if defined(__ARM_FEATURE_DOTPROD)
    return true;
#elif defined(__linux__) && !defined(L3_NO_STDIO)
    return (getauxval(AT_HWCAP) & (1ul << 20)) != 0;   /* HWCAP_ASIMDDP */
#else
    return false;
#endif
}
L3__FN bool l3__has_i8mm(void) {
#if defined(__ARM_FEATURE_MATMUL_INT8) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    return true;
#elif defined(__linux__) && !defined(L3_NO_STDIO)
    return (~getauxval(AT_HWCAP2) & (3ul << 13)) == 0; /* HWCAP2_I8MM and HWCAP2_BF16 */
#else
    return false;
#endif
}
#endif

/* The kernels of a level, or NULL where it does not work. */
L3__FN const l3__kernels *l3__kernels_of(int level) {
#if defined(L3__FIXED)
    if (level == L3__FIXED) return &l3__fixed_kernels;
#endif
    if (level == L3_LEVEL_PLAIN) return &l3__plain_kernels;
#if defined(L3__X86)
    const bool avx2   = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (level == L3_LEVEL_AVX2 && avx2) return &l3__avx2_kernels;
    if (level == L3_LEVEL_AVX512 && avx512) return &l3__avx512_kernels;
    if (level == L3_LEVEL_BF16 && bf16) return &l3__bf16_kernels;
#if defined(L3__EMULATE_AMX)
    if (level == L3_LEVEL_AMX && avx2) return &l3__amx_kernels;
#elif defined(L3__AMX_TARGET)
    if (level == L3_LEVEL_AMX && bf16 && l3__may_use_amx()) return &l3__amx_kernels;
#endif
#elif defined(L3__NEON)
    if (level == L3_LEVEL_NEON) return &l3__neon_kernels;
#if defined(L3__DOTPROD_TARGET)
    if (level == L3_LEVEL_DOTPROD && l3__has_dotprod()) return &l3__dotprod_kernels;
#endif
#if defined(L3__I8MM_TARGET)
    if (level == L3_LEVEL_I8MM && l3__has_dotprod() && l3__has_i8mm()) return &l3__i8mm_kernels;
#endif
#endif
    return NULL;
}

L3_API bool l3_level_works(int level) { return level == L3_LEVEL_BEST || l3__kernels_of(level) != NULL; }

/* What a configuration asks for, or NULL. */
L3__FN const l3__kernels *l3__choose_kernels(int level) {
    const l3__kernels *k = NULL;
#if !defined(L3_NO_STDIO)
    const char *name = level == L3_LEVEL_BEST ? getenv("L3_LEVEL") : NULL;
    for (int i = L3_LEVEL_PLAIN; name && *name && level == L3_LEVEL_BEST; i++) {
        if (!l3_level_name(i)) return NULL;
        if (strcmp(name, l3_level_name(i)) == 0) level = i;
    }
#endif
    if (level != L3_LEVEL_BEST) return l3__kernels_of(level);
    for (int i = L3_LEVEL_RVV; !k; i--) k = l3__kernels_of(i);
    return k;
}
/* >>threads ------------------------------------------------------------------------------------------------------- */

L3__FN void l3__run(const l3_jobs *jobs, uint32_t n, void (*piece)(void *arg, uint32_t i), void *arg) {
    if (jobs->run && n > 1) {
        jobs->run(jobs->user, n, piece, arg);
        return;
    }
    for (uint32_t i = 0; i < n; i++) piece(arg, i);
}

#ifdef L3_THREADS
/* How often, and for how long, the system takes a thread of a pool off its core for another one. Nanoseconds. */
typedef struct l3__watch {
    uint64_t since;    /* 0: not begun */
    uint64_t idle;     /* since then, of its own will */
    uint64_t used;     /* processor time at that time */
    long     switches; /* at that time */
    uint64_t left;     /* when it began to be idle */
    int      calm;     /* for how many tenths of a second it was seldom */
    bool     crowded;
} l3__watch;

/* Workers join a run while it is open, take pieces from `next`, and leave; a run ends when it is closed and all have
 * left. A worker that the system wakes late finds the run closed and costs nothing. */
struct l3_pool {
    pthread_mutex_t lock;
    pthread_cond_t  wake, left, rest;
    pthread_t       threads[L3_MAX_THREADS];
    uint32_t        workers, resting;
    uint32_t        run;          /* number of the current run, atomic */
    uint32_t        next, inside; /* atomic */
    uint32_t        crowded;      /* how many threads share a core with something else, atomic */
    uint32_t        tired;        /* not 0: a worker shall rest, atomic */
    l3__watch       caller;       /* of who calls l3__pool_run */
    bool            open, stop;
    uint32_t        n;
    void (*piece)(void *arg, uint32_t i);
    void *arg;
};

/* A waiting thread looks so often before it sleeps, some 20 to 100 microseconds; then, where every thread has its core for
 * itself, for so many nanoseconds. On a virtual machine whose host is busy who sleeps loses the core, so that the next wait is
 * longer. Where cores are shared, sleeping is what gives one to the thread that is waited for. */
#define L3__SPINS    2000u
#define L3__PATIENCE 10000000u

/* Beside a program that keeps a core busy all threads are slower than all but one, as every run waits for who was taken off its
 * core amid a piece. So a worker rests for so many nanoseconds; then a tenth of a second tells whether it does again. */
#define L3__REST 1000000000u

L3__FN void l3__relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#if defined(__linux__) && defined(CLOCK_MONOTONIC)
L3__FN uint64_t l3__nanoseconds(void) {
    struct timespec t = {0, 0};
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

L3__FN uint64_t l3__time_of(const struct timeval *t) {
    return (uint64_t)t->tv_sec * 1000000000u + (uint64_t)t->tv_usec * 1000u;
}

L3__FN void l3__idle_begin(l3__watch *w) { w->left = l3__nanoseconds(); }
L3__FN void l3__idle_end(l3__watch *w) {
    if (w->left) w->idle += l3__nanoseconds() - w->left;
    w->left = 0;
}

/* Every tenth of a second, whether this thread lost its core more than 70 times a second since (an idle Linux: about 20; beside
 * a busy process: 200 and more). A core counts as shared at first, and for a second after it was. If the thread was off it
 * for a quarter of the time, too, a worker is to rest. */
L3__FN void l3__watch_core(l3_pool *p, l3__watch *w) {
    const int      this_thread = 1; /* RUSAGE_THREAD, which <sys/resource.h> gives with _GNU_SOURCE alone */
    const uint64_t now = l3__nanoseconds(), time = now - w->since;
    struct rusage  use;
    if ((w->since && time < 100000000u) || getrusage(this_thread, &use) != 0) return;
    const uint64_t used  = l3__time_of(&use.ru_utime) + l3__time_of(&use.ru_stime);
    const bool     often = w->since && (uint64_t)(use.ru_nivcsw - w->switches) * 14000000u > time;
    if (!w->since) w->calm = 8;
    if (often) w->calm = 0;
    else if (w->calm < 10) w->calm++;
    if (often && w->idle + (used - w->used) < time - time / 4) __atomic_store_n(&p->tired, 1, __ATOMIC_RELAXED);
    if (w->crowded != (w->calm < 10)) __atomic_fetch_add(&p->crowded, w->crowded ? UINT32_MAX : 1u, __ATOMIC_RELAXED);
    w->crowded  = w->calm < 10;
    w->since    = now;
    w->idle     = 0;
    w->used     = used;
    w->switches = use.ru_nivcsw;
}

/* A worker rests if one shall, at most half of them (rounded up) at a time. p->lock is held. */
L3__FN void l3__rest(l3_pool *p, l3__watch *w) {
    if (__atomic_exchange_n(&p->tired, 0, __ATOMIC_RELAXED) == 0 || p->resting >= (p->workers + 1) / 2) return;
    const uint64_t  until = l3__nanoseconds() + L3__REST;
    struct timespec at;
    at.tv_sec  = (time_t)(until / 1000000000u);
    at.tv_nsec = (long)(until % 1000000000u);
    p->resting++;
    while (!p->stop && pthread_cond_timedwait(&p->rest, &p->lock, &at) == 0) {
    }
    p->resting--;
    w->since = 0;
}

L3__FN void l3__rest_init(l3_pool *p) {
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&p->rest, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

L3__FN bool l3__patient(const l3_pool *p, uint64_t *until) {
    if (__atomic_load_n(&p->crowded, __ATOMIC_RELAXED)) return false;
    const uint64_t now = l3__nanoseconds();
    if (!*until) *until = now + L3__PATIENCE;
    return now < *until;
}
#else
L3__FN void l3__watch_core(l3_pool *p, l3__watch *w) { (void)p, (void)w; }
L3__FN void l3__rest(l3_pool *p, l3__watch *w) { (void)p, (void)w; }
L3__FN void l3__rest_init(l3_pool *p) { pthread_cond_init(&p->rest, NULL); }
L3__FN void l3__idle_begin(l3__watch *w) { (void)w; }
L3__FN void l3__idle_end(l3__watch *w) { (void)w; }
L3__FN bool l3__patient(const l3_pool *p, uint64_t *until) {
    (void)p, (void)until;
    return false;
}
#endif

/* Looks for a while whether *word is `value`, or if not `wanted` something else. */
L3__FN void l3__spin(const l3_pool *p, const uint32_t *word, uint32_t value, bool wanted) {
    uint64_t until = 0;
    for (uint32_t i = 1; (__atomic_load_n(word, __ATOMIC_ACQUIRE) == value) != wanted; i++) {
        if (i >= L3__SPINS && i % 64 == 0 && !l3__patient(p, &until)) return;
        l3__relax();
    }
}

L3__FN void l3__pool_work(l3_pool *p) {
    uint32_t i;
    while ((i = __atomic_fetch_add(&p->next, 1, __ATOMIC_RELAXED)) < p->n) p->piece(p->arg, i);
}

L3__FN void *l3__pool_thread(void *arg) {
    l3_pool  *p    = (l3_pool *)arg;
    uint32_t  seen = 0;
    l3__watch core;
    memset(&core, 0, sizeof core);
    for (;;) {
        l3__watch_core(p, &core);
        l3__spin(p, &p->run, seen, false);
        pthread_mutex_lock(&p->lock);
        l3__rest(p, &core);
        l3__idle_begin(&core);
        while (p->run == seen && !p->stop) pthread_cond_wait(&p->wake, &p->lock);
        l3__idle_end(&core);
        const bool stop = p->stop, join = p->open;
        seen = p->run;
        if (join) __atomic_fetch_add(&p->inside, 1, __ATOMIC_RELAXED);
        pthread_mutex_unlock(&p->lock);
        if (stop) return NULL;
        if (!join) continue;
        l3__pool_work(p);
        pthread_mutex_lock(&p->lock);
        if (__atomic_sub_fetch(&p->inside, 1, __ATOMIC_RELEASE) == 0) pthread_cond_signal(&p->left);
        pthread_mutex_unlock(&p->lock);
    }
}

L3__FN void l3__pool_run(void *user, uint32_t n, void (*piece)(void *arg, uint32_t i), void *arg) {
    l3_pool *p = (l3_pool *)user;
    l3__idle_end(&p->caller);
    pthread_mutex_lock(&p->lock);
    p->piece = piece;
    p->arg   = arg;
    p->n     = n;
    p->next  = 0;
    p->open  = true;
    __atomic_store_n(&p->run, p->run + 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    l3__pool_work(p);
    l3__spin(p, &p->inside, 0, true);
    l3__watch_core(p, &p->caller);
    pthread_mutex_lock(&p->lock);
    p->open = false;
    l3__idle_begin(&p->caller);
    while (__atomic_load_n(&p->inside, __ATOMIC_ACQUIRE) != 0) pthread_cond_wait(&p->left, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

L3_API size_t l3_pool_size(void) { return sizeof(l3_pool); }

L3_API int l3_pool_init(l3_pool **pool, uint32_t threads, void *mem, size_t size, l3_error *err) {
    const int code = l3__check_block(mem, size, sizeof(l3_pool), err);
    if (code != L3_OK) return code;
    l3_pool *p = (l3_pool *)mem;
    memset(p, 0, sizeof *p);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->left, NULL);
    l3__rest_init(p);
    if (threads > L3_MAX_THREADS) threads = L3_MAX_THREADS;
    for (; p->workers + 1 < threads; p->workers++) {
        const int io = pthread_create(&p->threads[p->workers], NULL, l3__pool_thread, p);
        if (io == 0) continue;
        l3_pool_free(p);
        l3__fail(err, L3_ERR_IO, 0, "thread %u of %u cannot be started", p->workers + 1, threads);
        if (err) err->io = io;
        return L3_ERR_IO;
    }
    *pool = p;
    return L3_OK;
}

L3_API l3_jobs l3_pool_jobs(l3_pool *pool) {
    l3_jobs jobs;
    jobs.user  = pool;
    jobs.width = pool->workers + 1;
    jobs.run   = pool->workers ? l3__pool_run : NULL;
    return jobs;
}

L3_API void l3_pool_free(l3_pool *p) {
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    __atomic_store_n(&p->run, p->run + 1, __ATOMIC_RELEASE); /* for who does not sleep */
    pthread_cond_broadcast(&p->wake);
    pthread_cond_broadcast(&p->rest);
    pthread_mutex_unlock(&p->lock);
    for (uint32_t i = 0; i < p->workers; i++) pthread_join(p->threads[i], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->left);
    pthread_cond_destroy(&p->rest);
}

#define L3__READS 16

/* Reads are done in the order in which they were begun. An error is told to every wait until no read is under way, as it
 * is not known whose read it was. */
struct l3_reader {
    l3_source       source;
    pthread_mutex_t lock;
    pthread_cond_t  wake, done;
    pthread_t       thread;
    uint64_t        begun, finished, waits; /* how many since the beginning */
    int             error;
    bool            stop;
    struct {
        uint64_t off;
        void    *dst;
        size_t   n;
    } reads[L3__READS]; /* number i at i mod L3__READS */
};

L3__FN void *l3__reader_thread(void *arg) {
    l3_reader *r = (l3_reader *)arg;
    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        if (r->finished == r->begun) {
            pthread_cond_wait(&r->wake, &r->lock);
            continue;
        }
        const uint32_t i   = (uint32_t)(r->finished % L3__READS);
        const uint64_t off = r->reads[i].off;
        void          *dst = r->reads[i].dst;
        const size_t   n   = r->reads[i].n;
        pthread_mutex_unlock(&r->lock);
        const int io = r->source.read(r->source.user, off, dst, n);
        pthread_mutex_lock(&r->lock);
        if (io && !r->error) r->error = io;
        r->finished++;
        pthread_cond_broadcast(&r->done);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

L3__FN int l3__reader_start(void *user, uint64_t off, void *dst, size_t n) {
    l3_reader *r = (l3_reader *)user;
    pthread_mutex_lock(&r->lock);
    while (r->begun - r->finished == L3__READS) pthread_cond_wait(&r->done, &r->lock);
    const uint32_t i = (uint32_t)(r->begun++ % L3__READS);
    r->reads[i].off  = off;
    r->reads[i].dst  = dst;
    r->reads[i].n    = n;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
    return 0;
}

/* Everything that was begun before is there. */
L3__FN int l3__reader_wait(void *user) {
    l3_reader *r = (l3_reader *)user;
    pthread_mutex_lock(&r->lock);
    const uint64_t begun = r->begun;
    while (r->finished < begun) pthread_cond_wait(&r->done, &r->lock);
    const int io = r->error;
    if (++r->waits == r->begun) r->error = 0;
    pthread_mutex_unlock(&r->lock);
    return io;
}

L3__FN int l3__reader_read(void *user, uint64_t off, void *dst, size_t n) {
    const l3_reader *r = (const l3_reader *)user;
    return r->source.read(r->source.user, off, dst, n);
}

L3__FN void l3__reader_hint(void *user, uint64_t off, size_t n) {
    const l3_reader *r = (const l3_reader *)user;
    r->source.hint(r->source.user, off, n);
}

L3_API size_t l3_reader_size(void) { return sizeof(l3_reader); }

L3_API int l3_reader_init(l3_reader **reader, const l3_source *source, void *mem, size_t size, l3_error *err) {
    int code = l3__check_block(mem, size, sizeof(l3_reader), err);
    if (code == L3_OK) code = l3__check_source(source, err);
    if (code != L3_OK) return code;
    if (!source->read) return l3__fail(err, L3_ERR_ARGUMENT, 0, "the source of a reader needs read");
    l3_reader *r = (l3_reader *)mem;
    memset(r, 0, sizeof *r);
    r->source = *source;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->wake, NULL);
    pthread_cond_init(&r->done, NULL);
    const int io = pthread_create(&r->thread, NULL, l3__reader_thread, r);
    if (io == 0) {
        *reader = r;
        return L3_OK;
    }
    code = l3__fail(err, L3_ERR_IO, 0, "the reading thread cannot be started");
    if (err) err->io = io;
    return code;
}

L3_API l3_source l3_reader_source(l3_reader *r) {
    l3_source s = r->source;
    s.user      = r;
    s.map       = NULL;
    s.read      = l3__reader_read;
    s.start     = l3__reader_start;
    s.wait      = l3__reader_wait;
    s.hint      = r->source.hint ? l3__reader_hint : NULL;
    return s;
}

L3_API void l3_reader_free(l3_reader *r) {
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
    pthread_join(r->thread, NULL);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->wake);
    pthread_cond_destroy(&r->done);
}
#endif

/* >>files --------------------------------------------------------------------------------------------------------- */

L3__FN const void *l3__map_memory(void *user, uint64_t off, size_t n) {
    (void)n;
    return (const uint8_t *)user + off;
}

L3_API l3_source l3_source_memory(const void *bytes, size_t size) {
    l3_source s;
    memset(&s, 0, sizeof s);
    memcpy(&s.user, &bytes, sizeof s.user); /* never written through */
    s.size = size;
    s.map  = l3__map_memory;
    return s;
}

#ifndef L3_NO_STDIO
L3__FN const void *l3__map_file(void *user, uint64_t off, size_t n) {
    const l3_file *f = (const l3_file *)user;
    (void)n;
    return (const uint8_t *)f->mapping + off;
}

L3__FN int l3__open_error(l3_error *err, int io, const char *what, const char *path) {
    const int code = l3__fail(err, L3_ERR_IO, 0, "%s: %s", path, what);
    if (err) err->io = io;
    return code;
}

#if defined(_WIN32)
L3__FN int l3__read_file(void *user, uint64_t off, void *dst, size_t n) {
    const l3_file *f = (const l3_file *)user;
    uint8_t       *p = (uint8_t *)dst;
    while (n) {
        OVERLAPPED  at;
        DWORD       got  = 0;
        const DWORD want = n > 0x40000000 ? 0x40000000 : (DWORD)n;
        memset(&at, 0, sizeof at);
        at.Offset     = (DWORD)(off & 0xffffffffu);
        at.OffsetHigh = (DWORD)(off >> 32);
        if (!ReadFile((HANDLE)f->handle, p, want, &got, &at)) return -(int)GetLastError();
        if (got == 0) return -(int)ERROR_HANDLE_EOF; /* the file has become shorter */
        p += got, n -= got, off += got;
    }
    return 0;
}

#if defined(_WIN32_WINNT) && _WIN32_WINNT >= 0x0602 /* Windows 8 */
L3__FN void l3__hint_map(void *user, uint64_t off, size_t n) {
    const l3_file           *f = (const l3_file *)user;
    WIN32_MEMORY_RANGE_ENTRY range;
    void                    *p;
    memcpy(&p, &f->mapping, sizeof p);
    range.VirtualAddress = (uint8_t *)p + off;
    range.NumberOfBytes  = n;
    (void)PrefetchVirtualMemory(GetCurrentProcess(), 1, &range, 0);
}
#endif

L3_API int l3_source_open_file(l3_file *f, const char *path, l3_file_mode mode, l3_error *err) {
    WCHAR         wide[4096];
    LARGE_INTEGER size;
    memset(f, 0, sizeof *f);
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, 4096) == 0)
        return l3__open_error(err, -(int)GetLastError(), "the path is no valid UTF-8 or too long", path);
    const HANDLE h = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
    if (h == INVALID_HANDLE_VALUE) return l3__open_error(err, -(int)GetLastError(), "cannot be opened", path);
    f->handle = (intptr_t)h;
    if (!GetFileSizeEx(h, &size) || size.QuadPart == 0) {
        CloseHandle(h);
        return l3__open_error(err, 0, "is empty or no regular file", path);
    }
    f->source.user = f;
    f->source.size = (uint64_t)size.QuadPart;
    f->source.read = l3__read_file;
    if (mode == L3_FILE_MAP) {
        const HANDLE view = CreateFileMappingW(h, NULL, PAGE_READONLY, 0, 0, NULL);
        if (view) f->mapping = MapViewOfFile(view, FILE_MAP_READ, 0, 0, 0);
        f->view = (intptr_t)view;
        if (f->mapping) f->source.map = l3__map_file;
#if defined(_WIN32_WINNT) && _WIN32_WINNT >= 0x0602
        if (f->mapping) f->source.hint = l3__hint_map;
#endif
    }
    return L3_OK;
}

L3_API void l3_source_close_file(l3_file *f) {
    if (f->mapping) UnmapViewOfFile(f->mapping);
    if (f->view) CloseHandle((HANDLE)f->view);
    CloseHandle((HANDLE)f->handle);
    memset(f, 0, sizeof *f);
}
#else
/* glibc hides pread and the advice calls under -std=c99 when a system header was included before this one. */
#if !defined(__GLIBC__) || defined(__USE_XOPEN2K8)
#define L3__HAVE_PREAD 1
#endif

L3__FN int l3__read_file(void *user, uint64_t off, void *dst, size_t n) {
    const l3_file *f = (const l3_file *)user;
    uint8_t       *p = (uint8_t *)dst;
    while (n) {
        const size_t  want = n > 0x40000000 ? 0x40000000 : n;
#ifdef L3__HAVE_PREAD
        const ssize_t got  = pread((int)f->handle, p, want, (off_t)off);
#else
        const ssize_t got =
            lseek((int)f->handle, (off_t)off, SEEK_SET) < 0 ? -1 : read((int)f->handle, p, want); /* one thread only */
#endif
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -errno;
        if (got == 0) return -EIO; /* the file has become shorter */
        p += got, n -= (size_t)got, off += (uint64_t)got;
    }
    return 0;
}

#ifdef POSIX_MADV_WILLNEED
L3__FN void l3__hint_map(void *user, uint64_t off, size_t n) {
    const l3_file  *f    = (const l3_file *)user;
    const uintptr_t p    = (uintptr_t)f->mapping + (uintptr_t)off;
    const uintptr_t skip = p & ((uintptr_t)f->view - 1); /* view: the page size */
    (void)posix_madvise((void *)(p - skip), n + (size_t)skip, POSIX_MADV_WILLNEED);
}
#endif
#ifdef POSIX_FADV_WILLNEED
L3__FN void l3__hint_read(void *user, uint64_t off, size_t n) {
    const l3_file *f = (const l3_file *)user;
    (void)posix_fadvise((int)f->handle, (off_t)off, (off_t)n, POSIX_FADV_WILLNEED);
}
#endif

L3_API int l3_source_open_file(l3_file *f, const char *path, l3_file_mode mode, l3_error *err) {
    struct stat st;
    memset(f, 0, sizeof *f);
    const int fd = open(path, O_RDONLY);
    if (fd < 0) return l3__open_error(err, -errno, errno == ENOENT ? "no such file" : "cannot be opened", path);
    const int failed = fstat(fd, &st) != 0 ? -errno : 0;
    if (failed || !S_ISREG(st.st_mode) || st.st_size <= 0) {
        close(fd);
        return l3__open_error(err, failed, "is empty or no regular file", path);
    }
    f->handle      = fd;
    f->source.user = f;
    f->source.size = (uint64_t)st.st_size;
    f->source.read = l3__read_file;
#ifdef POSIX_FADV_WILLNEED
    f->source.hint = l3__hint_read;
#endif
#ifndef __wasi__
    if (mode == L3_FILE_MAP && f->source.size <= SIZE_MAX) {
        void *p = mmap(NULL, (size_t)f->source.size, PROT_READ, MAP_SHARED, fd, 0);
        if (p != MAP_FAILED) {
            f->mapping     = p;
            f->view        = (intptr_t)sysconf(_SC_PAGESIZE);
            f->source.map  = l3__map_file;
#ifdef POSIX_MADV_WILLNEED
            f->source.hint = l3__hint_map;
#endif
        }
    }
#else
    (void)mode;
#endif
    return L3_OK;
}

L3_API void l3_source_close_file(l3_file *f) {
#ifndef __wasi__
    if (f->mapping) {
        void *p;
        memcpy(&p, &f->mapping, sizeof p);
        munmap(p, (size_t)f->source.size);
    }
#endif
    close((int)f->handle);
    memset(f, 0, sizeof *f);
}
#endif
#endif /* L3_NO_STDIO */

/* >>cache --------------------------------------------------------------------------------------------------------- */

/* Row blocks of tokens read before. Entries lie one after another in a ring, so whole blocks stay contiguous and nothing
 * fragments. A block comes in at the front, and the oldest entries make room for it; but one whose token is asked for more
 * often than the newcomer's, by two or more, moves to the front instead. Moving is paid for: reading n bytes allows
 * L3__MOVED times n to be moved, and when that is used up the newcomer is refused and passes through the window. How often
 * tokens are asked for is counted, a byte each, in a table by their last bits; counts are halved after L3__RECENT requests
 * and L3__RECENT_PER_ENTRY for each entry, as more entries need a longer memory. */
#define L3__MOVED            2
#define L3__RECENT           4096
#define L3__RECENT_PER_ENTRY 16

typedef struct l3__entry {
    size_t   size;  /* of the entry with this header, a multiple of 8 */
    size_t   next;  /* offset + 1 of the next entry in the hash bucket */
    size_t   skip;  /* from the entry's start to the rows */
    uint32_t layer; /* UINT32_MAX: dead */
    int32_t  token;
    uint32_t pinned; /* being read or computed with, so it must stay where it is */
} l3__entry;

typedef struct l3__cache {
    unsigned char *bytes;
    size_t         size;    /* 0: no cache */
    size_t        *buckets; /* offset + 1 of the first entry; a power of two of them */
    size_t         n_buckets;
    uint8_t       *counts; /* how often tokens were asked for lately; a power of two of them */
    size_t         n_counts;
    size_t         asked;           /* since they were halved */
    size_t         head, tail, end; /* next free byte; oldest entry; where the last round ended, if wrapped */
    size_t         entries;
    size_t         movable; /* bytes that may be moved */
    bool           wrapped;
} l3__cache;

L3__FN l3__entry *l3__entry_at(const l3__cache *c, size_t off) {
    void *p = c->bytes + off;
    return (l3__entry *)p;
}

L3__FN size_t *l3__bucket(const l3__cache *c, uint32_t layer, int32_t token) {
    const uint32_t h = ((uint32_t)token + layer * 0x85ebca6bu) * 0x9e3779b1u;
    return &c->buckets[(h ^ h >> 15) & (c->n_buckets - 1)];
}

L3__FN l3__entry *l3__cache_find(const l3__cache *c, uint32_t layer, int32_t token) {
    if (c->size == 0) return NULL;
    for (size_t at = *l3__bucket(c, layer, token); at; at = l3__entry_at(c, at - 1)->next) {
        l3__entry *e = l3__entry_at(c, at - 1);
        if (e->layer == layer && e->token == token) return e;
    }
    return NULL;
}

L3__FN void l3__cache_link(const l3__cache *c, size_t off) {
    l3__entry *e      = l3__entry_at(c, off);
    size_t    *bucket = l3__bucket(c, e->layer, e->token);
    e->next           = *bucket;
    *bucket           = off + 1;
}

L3__FN void l3__cache_unlink(const l3__cache *c, size_t off) {
    const l3__entry *e    = l3__entry_at(c, off);
    size_t          *link = l3__bucket(c, e->layer, e->token);
    while (*link && *link != off + 1) link = &l3__entry_at(c, *link - 1)->next;
    if (*link) *link = e->next;
}

L3__FN uint8_t *l3__cache_count(const l3__cache *c, int32_t token) {
    return &c->counts[(uint32_t)token & (c->n_counts - 1)];
}

/* A token's rows are asked for. */
L3__FN void l3__cache_note(l3__cache *c, int32_t token) {
    if (c->size == 0) return;
    uint8_t *count = l3__cache_count(c, token);
    if (*count < UINT8_MAX) ++*count;
    if (++c->asked < L3__RECENT + L3__RECENT_PER_ENTRY * c->entries) return;
    c->asked = 0;
    for (size_t i = 0; i < c->n_counts; i++) c->counts[i] = (uint8_t)(c->counts[i] >> 1);
}

/* The entry is forgotten; its bytes are free when the ring comes round. */
L3__FN void l3__cache_kill(const l3__cache *c, l3__entry *e) {
    void *p = e;
    l3__cache_unlink(c, (size_t)((unsigned char *)p - c->bytes));
    e->layer  = UINT32_MAX;
    e->pinned = 0;
}

/* Room for n contiguous bytes at the head, without evicting: its offset, or SIZE_MAX. */
L3__FN size_t l3__cache_room(l3__cache *c, size_t n) {
    if (c->entries == 0) c->head = c->tail = 0, c->wrapped = false;
    if (!c->wrapped && c->size - c->head < n && c->tail >= n) {
        c->end     = c->head;
        c->head    = 0;
        c->wrapped = true;
    }
    const size_t limit = c->wrapped ? c->tail : c->size;
    return limit - c->head >= n ? c->head : SIZE_MAX;
}

/* Takes the oldest entry out, or moves it to the front if it is worth more than the token's rows. False: it stays. */
L3__FN bool l3__cache_evict(l3__cache *c, int32_t token) {
    const size_t     from = c->tail;
    const l3__entry *e    = l3__entry_at(c, from);
    const size_t     size = e->size;
    const bool       dead = e->layer == UINT32_MAX;
    const bool       keep = !dead && *l3__cache_count(c, e->token) > *l3__cache_count(c, token) + 1;
    if (e->pinned || (keep && (size > c->movable || c->entries == 1))) return false;
    if (!dead) l3__cache_unlink(c, from);
    c->tail += size;
    c->entries--;
    if (c->wrapped && c->tail == c->end) c->tail = 0, c->wrapped = false;
    if (!keep) return true;
    const size_t to = l3__cache_room(c, size); /* what it left is enough */
    memmove(c->bytes + to, c->bytes + from, size);
    c->movable -= size;
    c->head = to + size;
    c->entries++;
    l3__cache_link(c, to);
    return true;
}

/* Bytes of an entry with n bytes of rows, or 0 if the cache is too small for it. */
L3__FN size_t l3__cache_entry_size(const l3__cache *c, uint64_t n) {
    const size_t header = sizeof(l3__entry);
    if (n > c->size || c->size - (size_t)n < header + 8) return 0;
    return (header + (size_t)n + 7) & ~(size_t)7;
}

/* A pinned entry of `size` bytes, or NULL: what is there is worth more, or pinned. */
L3__FN l3__entry *l3__cache_add(l3__cache *c, uint32_t layer, int32_t token, size_t size) {
    size_t       at;
    const size_t earned = size < c->size / L3__MOVED ? L3__MOVED * size : c->size;
    c->movable          = c->movable < c->size - earned ? c->movable + earned : c->size;
    while ((at = l3__cache_room(c, size)) == SIZE_MAX)
        if (!l3__cache_evict(c, token)) return NULL;
    l3__entry *e = l3__entry_at(c, at);
    e->size      = size;
    e->skip      = sizeof(l3__entry);
    e->layer     = layer;
    e->token     = token;
    e->pinned    = 1;
    c->head      = at + size;
    c->entries++;
    l3__cache_link(c, at);
    return e;
}

/* The index and the counts are within the budget. No more counts than tokens. */
L3__FN void l3__cache_layout(l3__arena *a, l3__cache *c, size_t budget, uint32_t vocab) {
    memset(c, 0, sizeof *c);
    const size_t word = L3__BYTES_OF(a, size_t, pointer);
    if (budget < 1024) return;
    c->n_buckets = c->n_counts = 1;
    while (c->n_buckets * 1024 <= budget / 2) c->n_buckets *= 2;
    while (c->n_counts < vocab && c->n_counts < 16 * c->n_buckets) c->n_counts *= 2;
    c->size    = (budget - c->n_buckets * word - c->n_counts) & ~(size_t)7;
    c->buckets = (size_t *)l3__take(a, c->n_buckets, word);
    c->counts  = (uint8_t *)l3__take(a, c->n_counts, 1);
    c->bytes   = (unsigned char *)l3__take(a, c->size, 1);
}

/* >>chunks -------------------------------------------------------------------------------------------------------- */

/* The positions of a batch that have the same token, and that token's rows in one layer. */
typedef struct l3__group {
    int32_t  token;
    uint32_t begin, end; /* of l3_work.order */
    uint32_t first_row, rows;
    uint32_t checksum;
} l3__group;

/* Rows of one group that are in memory, or on their way, in one piece. */
typedef struct l3__chunk {
    uint32_t       layer, group, row, rows;
    const uint8_t *bytes;
    l3__entry     *entry;   /* its place in the cache, or NULL */
    bool           active;  /* begun and not yet finished */
    bool           pending; /* start was called, wait was not */
    bool           fresh;   /* read just now: not from a mapping or the cache */
} l3__chunk;

struct l3_work {
    const l3_lookup   *layers;
    uint32_t           n_layers, batch;
    l3_work_config     config;
    const l3__kernels *kernels;
    bool               prefill; /* this pass may use kernels for many positions of one text */
    unsigned char     *packed;  /* activations as l3__fast wants them */
    size_t             window_size;
    unsigned char     *window[2]; /* [0] for everything that is read at once; [1] only where start/wait exist */
    bool               async;     /* some layer's rows come through start/wait */
    l3__cache          cache;
    l3_stats           stats;

    uint32_t   n, n_groups; /* positions and distinct tokens of this batch */
    int32_t   *tokens;      /* (batch,) */
    uint32_t  *order;       /* (batch,) positions sorted by token */
    l3__group *groups;      /* (batch,) */
    uint32_t   planned;     /* the layer whose rows the groups hold, or UINT32_MAX */
    l3__chunk  ahead;       /* the first chunk of the next layer, under way */

    /* Where a layer is that runs in pieces. */
    uint64_t  most;  /* multiply-adds of a piece; UINT64_MAX: a layer is one piece */
    int       stage; /* l3__layer_stage */
    uint32_t  at;    /* rows of the stage's matrices, or of `current`, that are done */
    l3__chunk current, next;
    int       slot; /* the window of the last read */
    uint32_t  crc;  /* of the rows of current's token so far */

    float *vector; /* (widest vector,) a norm's weight or bias while it is used */
    float *row;    /* (key_length,) an unpacked key, where keys are normalized */
    /* Scratch of one layer, each (batch, ...), in the order of tokens. A session shares these bytes with its attention and
     * feed-forward. */
    float *query;        /* key_length */
    float *sum;          /* value_length: rows weighted so far */
    float *peak, *total; /* no score so far is above; the sum of e^(score - peak) */
    float *mix;          /* up_length + key_length: u, then x */
    float *out;          /* key_length */
};

L3__FN int l3__check_progress(const l3_work *w, l3_error *err) {
    if (!w->config.progress || w->config.progress(w->config.progress_user) == 0) return L3_OK;
    return l3__fail(err, L3_ERR_CANCELLED, 0, "stopped by the progress callback");
}

/* Bytes of window that n bytes of a source need wherever they begin. */
L3__FN uint64_t l3__window_for(const l3_source *s, uint64_t n) { return n + 2 * (uint64_t)(l3__align_of(s) - 1); }

L3__FN uint32_t l3__rows_per_window(const l3_work *w, const l3_tensor *t) {
    const uint64_t slack = l3__window_for(t->source, 0), row = l3_row_bytes(t->type, t->cols);
    const uint64_t rows = w->window_size > slack ? (w->window_size - slack) / row : 0;
    return rows > UINT32_MAX ? UINT32_MAX : (uint32_t)rows;
}

L3__FN void l3__need_window(uint64_t *min, const l3_tensor *t) {
    if (!l3__present(t) || l3__in_memory(t)) return;
    const uint64_t row  = t->type == L3_I32 ? 8 : l3_row_bytes(t->type, t->cols); /* offsets are read in pairs */
    const uint64_t need = l3__window_for(t->source, row);
    if (*min < need) *min = need;
}

/* n bytes of a tensor from byte `at` on, valid until the window is used again. */
L3__FN const uint8_t *l3__bytes(l3_work *w, const l3_tensor *t, uint64_t at, size_t n, l3_error *err) {
    const uint8_t   *p;
    const l3_source *s = t->source;
    if (l3__in_memory(t) || at + n <= t->pinned * l3_row_bytes(t->type, t->cols)) return (const uint8_t *)t->data + at;
    if (s->map && (p = (const uint8_t *)s->map(s->user, t->offset + at, n)) != NULL) return p;
    if (l3__read(s, t->offset + at, n, w->window[0], &p, err) != L3_OK) return NULL;
    w->stats.weight_bytes_read += l3__aligned_range(s, t->offset + at, n).size;
    return p;
}

/* Rows first ... first + rows - 1 of a matrix. */
L3__FN l3_tensor l3__rows_of(const l3_tensor *t, uint32_t first, uint32_t rows) {
    l3_tensor      part = *t;
    const uint64_t skip = first * l3_row_bytes(t->type, t->cols);
    part.offset += skip;
    part.rows   = rows;
    part.pinned = t->pinned > first ? t->pinned - first : 0;
    part.data   = l3__in_memory(t) || part.pinned ? (const uint8_t *)t->data + skip : NULL;
    return part;
}

/* Row `row` of a tensor as floats (cols,). */
L3__FN int l3__load_row(l3_work *w, const l3_tensor *t, uint32_t row, float *dst, l3_error *err) {
    const uint64_t bytes = l3_row_bytes(t->type, t->cols);
    const uint8_t *p     = l3__bytes(w, t, bytes * row, (size_t)bytes, err);
    if (!p) return L3_ERR_IO;
    w->kernels->unpack(t->type, p, t->cols, dst);
    return L3_OK;
}

/* A norm's weight: w->vector, or NULL for ones where the tensor is absent. */
L3__FN int l3__load_weight(l3_work *w, const l3_tensor *t, const float **weight, l3_error *err) {
    *weight = NULL;
    if (!l3__present(t)) return L3_OK;
    *weight = w->vector;
    return l3__load_row(w, t, 0, w->vector, err);
}

/* One of the products that share their activations: y (n, t->rows) with stride ys. */
typedef struct l3__product {
    const l3_tensor *t;
    float           *y;
    size_t           ys;
} l3__product;

/* Rows of weights that are in memory, as part of a job. */
typedef struct l3__part {
    const uint8_t *weights;
    size_t         row_bytes;
    uint32_t       rows;
    int32_t        type;
    float         *y;
    size_t         ys;
} l3__part;

#define L3__MAX_PARTS 3

typedef struct l3__matmul_job {
    const l3__kernels   *kernels;
    const l3__fast      *fast; /* how it is done, or NULL: by kernels->matmul */
    const float         *x;
    size_t               xs;
    const unsigned char *packed;
    uint32_t             cols, n, n_parts, units; /* a unit is 16 rows */
    uint32_t             units_per_piece;
    l3__part             parts[L3__MAX_PARTS];
} l3__matmul_job;

#define L3__UNIT 16u

/* Y = X W^T for packed X. */
L3__FN void l3__multiply(const l3__fast *f, int type, const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols,
                         const unsigned char *x, uint32_t n, float *y, size_t ys) {
    if (f->rows) f->rows(type, w, row_bytes, rows, cols, x, n, y, ys);
#if defined(L3__VECTORS)
    else l3__gemm(f, type, w, row_bytes, rows, cols, x, n, y, ys);
#endif
}

L3__FN void l3__matmul_part(const l3__matmul_job *j, const l3__part *p, uint32_t from, uint32_t rows) {
    const uint8_t *w = p->weights + from * p->row_bytes;
    if (L3__HAS_FAST && j->fast)
        l3__multiply(j->fast, p->type, w, p->row_bytes, rows, j->cols, j->packed, j->n, p->y + from, p->ys);
    else
        j->kernels->matmul[l3__type_index(p->type)](w, p->row_bytes, rows, j->cols, j->x, j->xs, j->n, p->y + from,
                                                    p->ys);
}

/* Units i * units_per_piece ... of all parts together. */
L3__FN void l3__matmul_piece(void *arg, uint32_t i) {
    const l3__matmul_job *j  = (const l3__matmul_job *)arg;
    uint32_t              at = i * j->units_per_piece, end = at + j->units_per_piece, before = 0;
    for (uint32_t k = 0; k < j->n_parts; k++) {
        const l3__part *p     = &j->parts[k];
        const uint32_t  units = (p->rows + L3__UNIT - 1) / L3__UNIT;
        if (at < before + units && at < end) {
            const uint32_t from = (at - before) * L3__UNIT, last = end < before + units ? end : before + units;
            const uint32_t to = (last - before) * L3__UNIT;
            l3__matmul_part(j, p, from, (to < p->rows ? to : p->rows) - from);
            at = last;
        }
        before += units;
    }
}

/* Into how many pieces work is split: of at least some microseconds, a few for each thread so that a slow one holds nobody
 * up. `units` at most. */
L3__FN uint32_t l3__pieces(const l3_work *w, uint64_t products, uint32_t units) {
    const uint64_t least  = w->kernels->level == L3_LEVEL_PLAIN ? 16384 : 65536;
    uint32_t       pieces = w->config.jobs.run ? w->config.jobs.width * 4 : 1;
    if (products / least < pieces) pieces = (uint32_t)(products / least);
    if (pieces > units) pieces = units;
    return pieces < 2 ? 1 : pieces;
}

L3__FN void l3__matmul_run(const l3_work *w, l3__matmul_job *j) {
    uint64_t rows = 0;
    j->units      = 0;
    for (uint32_t k = 0; k < j->n_parts; k++) {
        rows += j->parts[k].rows;
        j->units += (j->parts[k].rows + L3__UNIT - 1) / L3__UNIT;
    }
    const uint32_t pieces = l3__pieces(w, rows * j->cols * j->n, j->units);
    j->units_per_piece    = (j->units + pieces - 1) / pieces;
    if (j->n_parts)
        l3__run(&w->config.jobs, (j->units + j->units_per_piece - 1) / j->units_per_piece, l3__matmul_piece, j);
    j->n_parts = 0;
}

/* What is done to each position of a pass alone. */
typedef struct l3__positions {
    void (*one)(const void *arg, uint32_t p);
    const void *arg;
    uint32_t    n, each; /* positions; of a piece */
} l3__positions;

L3__FN void l3__positions_piece(void *arg, uint32_t i) {
    const l3__positions *j     = (const l3__positions *)arg;
    const uint32_t       first = i * j->each, end = j->n - first < j->each ? j->n : first + j->each;
    for (uint32_t p = first; p < end; p++) j->one(j->arg, p);
}

/* Calls `one`, which costs so many multiply-adds, for positions 0 ... n - 1, on all threads. */
L3__FN void l3__each_position(const l3_work *w, uint32_t n, uint64_t products, void (*one)(const void *arg, uint32_t p),
                              const void *arg) {
    const uint32_t pieces = l3__pieces(w, n * products, n);
    l3__positions  j      = {one, arg, n, (n + pieces - 1) / pieces};
    l3__run(&w->config.jobs, (n + j.each - 1) / j.each, l3__positions_piece, &j);
}

/* RMSNorm of each position, y = norm(x) * weight; if `centered`, which needs y to be x, after its mean was taken away: layer
 * norm. */
typedef struct l3__norms {
    const l3__kernels *kernels;
    const float       *x, *weight; /* (n, dim) with stride; (dim,) or NULL: ones */
    float             *y;          /* as x, and may be x */
    size_t             stride;
    uint32_t           dim;
    float              epsilon;
    bool               centered;
} l3__norms;

L3__FN void l3__norm_one(const void *arg, uint32_t p) {
    const l3__norms *j = (const l3__norms *)arg;
    float           *y = j->y + p * j->stride;
    if (j->centered) l3__center(y, j->dim);
    l3__rms_norm(j->kernels, j->x + p * j->stride, j->weight, j->dim, j->epsilon, y);
}

/* How weights of a type are multiplied in this pass, or NULL: as they are. */
L3__FN const l3__fast *l3__fast_for(const l3_work *w, int type) {
    if (!L3__HAS_FAST || w->config.mode != L3_FAST) return NULL;
    const int i = l3__type_index(type);
    return w->prefill && w->kernels->prefill[i] ? w->kernels->prefill[i] : w->kernels->decode[i];
}

L3__FN uint64_t l3__packed_bytes(const l3__fast *f, uint32_t n, uint32_t cols) {
    return f ? ((uint64_t)n + f->tile - 1) / f->tile * f->tile * (((uint64_t)cols + 31) / 32) * f->words * 4 : 0;
}

/* score (queries, L3__TILE) = n rows times q (queries, cols): rounded, in `packed`, as `fast` says, or as it is where that is
 * NULL. */
L3__FN void l3__scores(const l3_work *w, const l3__fast *fast, int type, const uint8_t *rows, size_t row_bytes,
                       uint32_t n, uint32_t cols, const float *q, const unsigned char *packed, uint32_t queries,
                       float *score) {
    if (fast) l3__multiply(fast, type, rows, row_bytes, n, cols, packed, queries, score, L3__TILE);
    else w->kernels->matmul[l3__type_index(type)](rows, row_bytes, n, cols, q, cols, queries, score, L3__TILE);
}

typedef struct l3__pack_job {
    const l3__fast *fast;
    const float    *x;
    size_t          xs, bytes; /* of a tile */
    int             type;
    uint32_t        n, cols, tiles; /* of a piece */
    unsigned char  *packed;
} l3__pack_job;

L3__FN void l3__pack_piece(void *arg, uint32_t i) {
    const l3__pack_job *j    = (const l3__pack_job *)arg;
    const uint32_t      from = i * j->tiles * j->fast->tile, left = j->n - from, most = j->tiles * j->fast->tile;
    j->fast->pack(j->type, j->x + from * j->xs, j->xs, left < most ? left : most, j->cols,
                  j->packed + i * j->tiles * j->bytes);
}

L3__FN void l3__pack_activations(const l3_work *w, const l3__matmul_job *m, int type) {
    const l3__fast *f      = m->fast;
    const uint32_t  tiles  = (m->n + f->tile - 1) / f->tile;
    const uint32_t  pieces = l3__pieces(w, (uint64_t)m->n * m->cols * 8, tiles);
    l3__pack_job    j      = {f,        m->x, m->xs,   (size_t)l3__packed_bytes(f, 1, m->cols),
                              type,     m->n, m->cols, (tiles + pieces - 1) / pieces,
                              w->packed};
    l3__run(&w->config.jobs, (tiles + j.tiles - 1) / j.tiles, l3__pack_piece, &j);
}

/* Weights without a mapping pass through the window, a few rows at a time, each once: rows from ... from + rows - 1. Those
 * that are pinned need none. */
L3__FN int l3__matmul_through_window(l3_work *w, l3__matmul_job *j, const l3__product *y, uint32_t from, uint32_t rows,
                                     l3_error *err) {
    const l3_tensor *t    = y->t;
    const uint32_t   room = l3__rows_per_window(w, t), end = from + rows;
    const size_t     row = (size_t)l3_row_bytes(t->type, t->cols);
    for (uint32_t r = from, count; r < end; r += count) {
        count = r < t->pinned ? t->pinned - r : room;
        if (count > end - r) count = end - r;
        const uint8_t *weights = l3__bytes(w, t, (uint64_t)r * row, count * row, err);
        if (!weights) return L3_ERR_IO;
        const l3__part part = {weights, row, count, t->type, y->y + r, y->ys};
        j->parts[0]         = part;
        j->n_parts          = 1;
        l3__matmul_run(w, j);
        const int code = l3__check_progress(w, err);
        if (code != L3_OK) return code;
    }
    return L3_OK;
}

/* A piece of work is done, and more of the same kind is left. */
#define L3__MORE 1

L3__FN bool l3__in_pieces(const l3_work *w) {
#ifdef L3_NO_STEPS
    (void)w;
    return false;
#else
    return w->most != UINT64_MAX;
#endif
}

/* How many of `left` units, each of so many multiply-adds, make a piece: at least one. */
L3__FN uint32_t l3__allowed(const l3_work *w, uint32_t left, uint64_t cost) {
    if (!l3__in_pieces(w)) return left;
    const uint64_t n = w->most / cost;
    return n >= left ? left : n ? (uint32_t)n : 1;
}

/* Up to L3__MAX_PARTS products of the same activations x (n, cols), with stride xs in floats: Y = X t^T. A piece of them has
 * at most w->most multiply-adds and one read, but at least one row: L3__MORE until the rows of all products are done. */
L3__FN int l3__matmuls(l3_work *w, const l3__product *products, uint32_t count, const float *x, size_t xs, uint32_t n,
                       l3_error *err) {
    l3__matmul_job j;
    int            packed = -1;           /* the type that the packed activations are for */
    uint32_t       done = w->at, all = 0; /* rows done before, of this product; rows in all */
    j.kernels = w->kernels, j.packed = w->packed;
    j.x = x, j.xs = xs, j.cols = products[0].t->cols, j.n = n, j.n_parts = 0;
    j.fast = NULL;
    for (uint32_t i = 0; i < count; i++) all += products[i].t->rows;
    uint32_t left = l3__allowed(w, all - done, (uint64_t)j.cols * n);
    for (uint32_t i = 0; i < count && left > 0; i++) {
        const l3_tensor *t    = products[i].t;
        const l3__fast  *fast = l3__fast_for(w, t->type);
        if (done >= t->rows) {
            done -= t->rows;
            continue;
        }
        const uint32_t from = done;
        uint32_t       rows = t->rows - from < left ? t->rows - from : left;
        if (!l3__in_memory(t) && l3__in_pieces(w))
            left = rows = rows < l3__rows_per_window(w, t) ? rows : l3__rows_per_window(w, t);
        done = 0;
        left -= rows;
        w->at += rows;
        if (fast != j.fast || (fast && packed != t->type)) {
            l3__matmul_run(w, &j); /* what was collected for other activations */
            j.fast = fast;
            packed = t->type;
            if (fast) l3__pack_activations(w, &j, t->type);
        }
        if (l3__in_memory(t)) {
            const size_t   row  = (size_t)l3_row_bytes(t->type, t->cols);
            const l3__part part = {
                (const uint8_t *)t->data + from * row, row, rows, t->type, products[i].y + from, products[i].ys};
            j.parts[j.n_parts++] = part;
            continue;
        }
        l3__matmul_run(w, &j);
        const int code = l3__matmul_through_window(w, &j, &products[i], from, rows, err);
        if (code != L3_OK) return code;
    }
    l3__matmul_run(w, &j);
    const bool more = w->at < all;
    if (!more) w->at = 0;
    const int code = l3__check_progress(w, err);
    return code == L3_OK && more ? L3__MORE : code;
}

/* y (n, t->rows) = x (n, t->cols) times t transposed; xs and ys are the strides of x and y in floats. */
L3__FN int l3__matmul(l3_work *w, const l3_tensor *t, const float *x, size_t xs, uint32_t n, float *y, size_t ys,
                      l3_error *err) {
    const l3__product product = {t, y, ys};
    return l3__matmuls(w, &product, 1, x, xs, n, err);
}

/* Where the rows of a token lie; every offset is checked when it is used, so a driver that lies harms nobody. */
L3__FN int l3__span(l3_work *w, uint32_t layer, int32_t token, uint32_t *first, uint32_t *rows, l3_error *err) {
    const l3_lookup *l = &w->layers[layer];
    const uint8_t   *p = l3__bytes(w, &l->offsets, (uint64_t)(uint32_t)token * 4, 8, err);
    if (!p) return L3_ERR_IO;
    const uint32_t a = l3__le32(p), b = l3__le32(p + 4);
    if (a > b || b > l->row_count || (l->max_rows && b - a > l->max_rows))
        return l3__fail(err, L3_ERR_FORMAT, l->offsets.offset,
                        "lookup offsets of token %u are %u and %u; the table has %u rows", (uint32_t)token, a, b,
                        l->row_count);
    *first = a;
    *rows  = b - a;
    return L3_OK;
}

/* Tensor i of a layer, for what concerns all of them; NULL after the last. */
L3__FN const l3_tensor *l3__lookup_tensor(const l3_lookup *l, int i) {
    const l3_tensor *all[8] = {&l->offsets,      &l->rows, &l->query_norm_weight, &l->up, &l->up_norm_weight,
                               &l->up_norm_bias, &l->mix,  &l->checksums};
    return i < 8 ? all[i] : NULL;
}

/* The least window: one row of the longest tensor that is not in memory. */
L3__FN uint64_t l3__lookup_window(const l3_lookup *l) {
    const l3_tensor *t;
    uint64_t         min = 0;
    for (int i = 0; (t = l3__lookup_tensor(l, i)) != NULL; i++) l3__need_window(&min, t);
    return min;
}

/* The alignment of windows: the strictest of the sources that are read through them. */
L3__FN uint32_t l3__lookup_align(const l3_lookup *l) {
    const l3_tensor *t;
    uint32_t         align = 1;
    for (int i = 0; (t = l3__lookup_tensor(l, i)) != NULL; i++)
        if (!l3__in_memory(t) && align < l3__align_of(t->source)) align = l3__align_of(t->source);
    return align;
}

/* Sorts order[] by (token, position): Shell sort, as a batch has hundreds of positions at most. */
L3__FN void l3__sort_positions(l3_work *w) {
    for (uint32_t i = 0; i < w->n; i++) w->order[i] = i;
    for (uint32_t gap = w->n / 2; gap > 0; gap /= 2)
        for (uint32_t i = gap; i < w->n; i++) {
            const uint32_t p = w->order[i];
            uint32_t       j = i;
            for (; j >= gap; j -= gap) {
                const uint32_t q = w->order[j - gap];
                if (w->tokens[q] < w->tokens[p] || (w->tokens[q] == w->tokens[p] && q < p)) break;
                w->order[j] = q;
            }
            w->order[j] = p;
        }
}

L3__FN void l3__group_positions(l3_work *w) {
    w->n_groups = 0;
    for (uint32_t i = 0; i < w->n; i++) {
        const int32_t token = w->tokens[w->order[i]];
        if (i == 0 || token != w->groups[w->n_groups - 1].token) {
            w->groups[w->n_groups].token = token;
            w->groups[w->n_groups].begin = i;
            w->n_groups++;
        }
        w->groups[w->n_groups - 1].end = i + 1;
    }
}

L3__FN bool l3__verifies(const l3_work *w, const l3_lookup *l, bool was_read) {
    return l3__present(&l->checksums) && w->config.verify != L3_VERIFY_NONE &&
           (was_read || w->config.verify == L3_VERIFY_ALL);
}

/* Fills in the rows of every group for one layer. The window must be free. */
L3__FN int l3__plan(l3_work *w, uint32_t layer, l3_error *err) {
    const l3_lookup *l = &w->layers[layer];
    if (w->planned == layer) return L3_OK;
    w->planned = UINT32_MAX;
    for (uint32_t i = 0; i < w->n_groups; i++) {
        l3__group *g    = &w->groups[i];
        const int  code = l3__span(w, layer, g->token, &g->first_row, &g->rows, err);
        if (code != L3_OK) return code;
        if (!l3__verifies(w, l, !l->rows.data)) continue;
        const uint8_t *p = l3__bytes(w, &l->checksums, (uint64_t)(uint32_t)g->token * 4, 4, err);
        if (!p) return L3_ERR_IO;
        g->checksum = l3__le32(p);
    }
    w->planned = layer;
    return L3_OK;
}

/* A place for the bytes of c: the whole block in the cache if it can be had, else rows in a window. */
L3__FN unsigned char *l3__chunk_place(l3_work *w, l3__chunk *c, uint64_t bytes, int slot) {
    const l3_tensor *t     = &w->layers[c->layer].rows;
    const uint32_t   align = l3__align_of(t->source);
    const size_t     size  = l3__cache_entry_size(&w->cache, l3__window_for(t->source, bytes) + align);
    if (c->row == 0 && size) c->entry = l3__cache_add(&w->cache, c->layer, w->groups[c->group].token, size);
    if (!c->entry) {
        if (c->row == 0 && w->config.cache && !size) w->stats.cache_misfits++;
        const uint32_t room = l3__rows_per_window(w, t);
        if (c->rows > room) c->rows = room;
        return w->window[slot];
    }
    void          *e = c->entry;
    unsigned char *p = (unsigned char *)e + sizeof(l3__entry);
    return p + (align - (uint32_t)((uintptr_t)p % align)) % align;
}

/* Begins to bring in rows from (c->layer, c->group, c->row) on, into window `slot` if they are neither mapped nor go
 * through the cache; c->rows says how many. */
L3__FN int l3__chunk_begin(l3_work *w, l3__chunk *c, int slot, l3_error *err) {
    const l3_tensor *t   = &w->layers[c->layer].rows;
    const l3_source *s   = t->source;
    const l3__group *g   = &w->groups[c->group];
    const uint64_t   row = l3_row_bytes(t->type, t->cols), at = row * (g->first_row + c->row);
    const uint64_t   bytes = row * (g->rows - c->row);
    int              io;
    c->rows    = g->rows - c->row;
    c->entry   = NULL;
    c->active  = true;
    c->pending = c->fresh = false;
    if (c->row == 0) w->stats.lookups++, w->stats.row_bytes_asked += bytes;
    if (t->data) {
        c->bytes = (const uint8_t *)t->data + at;
        return L3_OK;
    }
    if (c->row == 0) l3__cache_note(&w->cache, g->token);
    if (c->row == 0 && (c->entry = l3__cache_find(&w->cache, c->layer, g->token)) != NULL) {
        void *e          = c->entry;
        c->bytes         = (const uint8_t *)e + c->entry->skip;
        c->entry->pinned = 1;
        w->stats.cache_hits++;
        return L3_OK;
    }
    if (s->map && bytes <= SIZE_MAX &&
        (c->bytes = (const uint8_t *)s->map(s->user, t->offset + at, (size_t)bytes)) != NULL)
        return L3_OK;
    unsigned char  *dst = l3__chunk_place(w, c, bytes, slot);
    const size_t    n   = (size_t)(c->rows * row);
    const l3__range r   = l3__aligned_range(s, t->offset + at, n);
    c->fresh            = true;
    c->bytes            = dst + r.skip;
    if (c->entry) {
        void *e        = c->entry;
        c->entry->skip = (size_t)(dst - (unsigned char *)e) + r.skip;
    }
    w->stats.row_reads++;
    w->stats.row_bytes_read += r.size;
    if (!s->start) return l3__read(s, t->offset + at, n, dst, &c->bytes, err);
    if ((io = s->start(s->user, r.start, dst, r.size)) != 0) return l3__io_error(err, io, t->offset + at, n);
    c->pending = true;
    return L3_OK;
}

/* Ends a read that is under way. After it the bytes are there, or an error is returned. */
L3__FN int l3__chunk_wait(l3_work *w, l3__chunk *c, l3_error *err) {
    const l3_tensor *t = &w->layers[c->layer].rows;
    if (!c->pending) return L3_OK;
    c->pending   = false;
    const int io = t->source->wait(t->source->user);
    if (io == 0) return L3_OK;
    const uint64_t row = l3_row_bytes(t->type, t->cols);
    return l3__io_error(err, io, t->offset + row * (w->groups[c->group].first_row + c->row), row * c->rows);
}

/* Gives a chunk up: nothing is under way any more, and what it was filling is forgotten. */
L3__FN void l3__chunk_drop(l3_work *w, l3__chunk *c) {
    if (!c->active) return;
    (void)l3__chunk_wait(w, c, NULL);
    if (c->entry && c->fresh) l3__cache_kill(&w->cache, c->entry);
    if (c->entry) c->entry->pinned = 0;
    c->active = false;
}

/* Whatever was under way is given up: a read, and a layer that had not run to its end. */
L3__FN void l3__chunks_drop(l3_work *w) {
    l3__chunk_drop(w, &w->ahead);
    l3__chunk_drop(w, &w->next);
    l3__chunk_drop(w, &w->current);
    w->stage = 0;
    w->at    = 0;
}

/* Checks the rows against the token's checksum, which a chunk that does not hold all of them carries on in *crc. */
L3__FN int l3__chunk_verify(l3_work *w, const l3__chunk *c, uint32_t *crc, l3_error *err) {
    const l3_lookup *l   = &w->layers[c->layer];
    const l3__group *g   = &w->groups[c->group];
    const uint64_t   row = l3_row_bytes(l->rows.type, l->rows.cols);
    if (!l3__verifies(w, l, c->fresh) || (c->entry && !c->fresh)) return L3_OK;
    *crc = l3_crc32(c->row == 0 ? 0 : *crc, c->bytes, (size_t)(row * c->rows));
    if (c->row + c->rows < g->rows || *crc == g->checksum) return L3_OK;
    return l3__fail(err, L3_ERR_CHECKSUM, l->rows.offset + row * g->first_row,
                    "the rows of token %u (%u rows at byte %U) do not match their checksum", (uint32_t)g->token,
                    g->rows, l->rows.offset + row * g->first_row);
}

/* The chunk after c in its layer, or false. Groups without rows have none. */
L3__FN bool l3__chunk_next(const l3_work *w, const l3__chunk *c, l3__chunk *next) {
    next->layer = c->layer;
    next->group = c->group;
    next->row   = c->row + c->rows;
    while (next->group < w->n_groups && next->row >= w->groups[next->group].rows) {
        next->group++;
        next->row = 0;
    }
    next->active = false;
    return next->group < w->n_groups;
}

L3__FN bool l3__chunk_first(const l3_work *w, uint32_t layer, l3__chunk *first) {
    l3__chunk before;
    before.layer = layer;
    before.group = before.row = before.rows = 0;
    return l3__chunk_next(w, &before, first);
}

/* Starts the first read of a layer while other work goes on; the window must be free. */
L3__FN int l3__start_ahead(l3_work *w, uint32_t layer, l3_error *err) {
    if (!w->async || layer >= w->n_layers) return L3_OK;
    const int code = l3__plan(w, layer, err);
    if (code != L3_OK || !l3__chunk_first(w, layer, &w->ahead)) return code;
    const int begun = l3__chunk_begin(w, &w->ahead, 1, err);
    if (begun != L3_OK) l3__chunk_drop(w, &w->ahead);
    return begun;
}

L3__FN void l3__hint_token(l3_work *w, uint32_t layer, int32_t token) {
    const l3_tensor *t     = &w->layers[layer].rows;
    uint32_t         first = 0, rows = 0;
    if (!t->source || !t->source->hint || l3__cache_find(&w->cache, layer, token)) return;
    if (l3__span(w, layer, token, &first, &rows, NULL) != L3_OK || rows == 0) return;
    const uint64_t row = l3_row_bytes(t->type, t->cols);
    if (row * rows <= SIZE_MAX) t->source->hint(t->source->user, t->offset + row * first, (size_t)(row * rows));
}

L3_API void l3_lookup_hint(l3_work *w, const int32_t *tokens, uint32_t n) {
    for (uint32_t layer = 0; layer < w->n_layers; layer++)
        for (uint32_t i = 0; i < n; i++)
            if (tokens[i] >= 0 && (uint32_t)tokens[i] < w->layers[layer].vocab) l3__hint_token(w, layer, tokens[i]);
}

L3_API int l3_lookup_begin(l3_work *w, const int32_t *tokens, uint32_t n, l3_error *err) {
    l3__chunks_drop(w);
    w->n = w->n_groups = 0;
    w->planned         = UINT32_MAX;
    if (n > w->batch) return l3__fail(err, L3_ERR_ARGUMENT, 0, "%u tokens given; the batch is %u", n, w->batch);
    for (uint32_t i = 0; i < n; i++) {
        if (w->n_layers && (tokens[i] < 0 || (uint32_t)tokens[i] >= w->layers[0].vocab))
            return l3__fail(err, L3_ERR_TOKEN, 0, "token %u of this call is outside the vocabulary of %u", i,
                            w->layers[0].vocab);
        w->tokens[i] = tokens[i];
    }
    w->n = n;
    if (w->n_layers == 0) return L3_OK;
    l3__sort_positions(w);
    l3__group_positions(w);
    for (uint32_t layer = 0; layer < w->n_layers; layer++)
        for (uint32_t i = 0; i < w->n_groups; i++) l3__hint_token(w, layer, w->groups[i].token);
    const int code = l3__start_ahead(w, 0, err);
    if (code != L3_OK) w->n = 0;
    return code;
}

/* >>forward ------------------------------------------------------------------------------------------------------- */

/* Positions of a token that pass by its rows together; a device has little stack. */
#ifdef L3_NO_STDIO
#define L3__SHARE 1u
#else
#define L3__SHARE 4u
#endif
#define L3__SLACK 8.0f /* in fast mode the peak rises so far above a score that passes it: few sums are rescaled */

/* n <= L3__TILE more rows for positions p ... p + some - 1, none of whose scores (some, L3__TILE) is above its peak. They
 * become weights. */
L3__FN void l3__attend_below(l3_work *w, const l3_lookup *l, uint32_t p, uint32_t some, float *score,
                             const uint8_t *values, size_t row, uint32_t n) {
    for (uint32_t i = 0; i < some; i++) {
        float *weight = score + (size_t)i * L3__TILE, peak = w->peak[p + i];
        w->kernels->softmax_tile(weight, n, 1.0f, &peak);
        for (uint32_t r = 0; r < n; r++) w->total[p + i] += weight[r];
    }
    w->kernels->weigh_rows(l->rows.type, values, row, score, n, w->sum + (size_t)p * l->value_length, l->value_length,
                           some);
}

/* Such rows for one position, whatever their scores: online softmax (Milakov, Gimelshein 2018). Only a score above the peak
 * rescales what was summed, and rows between two such are added up together: the result depends on the rows and their order,
 * never on how many come at a time. The peak rises `slack` above such a score. */
L3__FN void l3__attend_rows(l3_work *w, const l3_lookup *l, uint32_t p, const float *score, const uint8_t *values,
                            size_t row, uint32_t n, float slack) {
    for (uint32_t from = 0, r = 0; from < n; from = r) {
        while (r < n && !(score[r] > w->peak[p])) r++;
        if (r > from) {
            float weight[L3__TILE];
            memcpy(weight, score + from, (r - from) * sizeof *weight);
            l3__attend_below(w, l, p, 1, weight, values + from * row, row, r - from);
        }
        if (r == n) return;
        const float peak = score[r] + slack, shrink = l3__expf(w->peak[p] - peak);
        w->kernels->scale(w->sum + (size_t)p * l->value_length, shrink, l->value_length);
        w->total[p] *= shrink;
        w->peak[p] = peak;
    }
}

/* How rows meet queries in this mode: rounded to int8 like the activations of other weights of the type, or NULL: floats. */
L3__FN const l3__fast *l3__fast_scores(const l3_work *w, const l3_lookup *l) {
    return L3__HAS_FAST && w->config.mode == L3_FAST ? w->kernels->decode[l3__type_index(l->rows.type)] : NULL;
}

/* What multiplies a row's score. */
L3__FN float l3__score_scale(l3_work *w, const l3_lookup *l, const uint8_t *key) {
    if (!l->key_norm) return l->score_scale;
    w->kernels->unpack(l->rows.type, key, l->key_length, w->row);
    return l->score_scale * l3__rms_scale(w->kernels, w->row, l->key_length, l->norm_epsilon);
}

/* A chunk's rows for positions begin ... end - 1, in the order of tokens, of its group. */
L3__FN void l3__attend_chunk(l3_work *w, const l3__chunk *c, uint32_t begin, uint32_t end) {
    const l3_lookup *l     = &w->layers[c->layer];
    const size_t     row   = (size_t)l3_row_bytes(l->rows.type, l->rows.cols);
    const size_t     value = l->tied ? 0 : (size_t)l3_row_bytes(l->rows.type, l->key_length);
    const l3__fast  *fast  = l3__fast_scores(w, l);
    const float      slack = fast ? L3__SLACK : 0;
    for (uint32_t r = 0; r < c->rows; r += L3__TILE) {
        const uint32_t n    = c->rows - r < L3__TILE ? c->rows - r : L3__TILE;
        const uint8_t *keys = c->bytes + r * row;
        float          scale[L3__TILE], score[L3__SHARE][L3__TILE];
        for (uint32_t i = 0; i < n; i++) scale[i] = l3__score_scale(w, l, keys + i * row);
        for (uint32_t p = begin, some; p < end; p += some) {
            some = end - p < L3__SHARE ? end - p : L3__SHARE;
            l3__scores(w, fast, l->rows.type, keys, row, n, l->key_length, w->query + (size_t)p * l->key_length,
                       w->packed + p * l3__packed_bytes(fast, 1, l->key_length), some, score[0]);
            bool below = true;
            for (uint32_t i = 0; i < some; i++) {
                for (uint32_t k = 0; k < n; k++) score[i][k] *= scale[k];
                if (w->total[p + i] == 0) w->peak[p + i] = score[i][0] + slack; /* the first row */
                for (uint32_t k = 0; k < n; k++) below &= !(score[i][k] > w->peak[p + i]);
            }
            if (below) l3__attend_below(w, l, p, some, score[0], keys + value, row, n);
            for (uint32_t i = 0; i < some && !below; i++)
                l3__attend_rows(w, l, p + i, score[i], keys + value, row, n, slack);
        }
    }
}

typedef struct l3__attend_groups_job {
    l3_work *work;
    uint32_t layer;
} l3__attend_groups_job;

/* Position order[i] and those after it in its group, if it is the first of L3__SHARE. */
L3__FN void l3__attend_groups_piece(void *arg, uint32_t i) {
    const l3__attend_groups_job *j = (const l3__attend_groups_job *)arg;
    l3_work                     *w = j->work;
    const l3_tensor             *t = &w->layers[j->layer].rows;
    const l3__group             *g = w->groups;
    l3__chunk                    c;
    while (g->end <= i) g++;
    if ((i - g->begin) % L3__SHARE != 0) return;
    memset(&c, 0, sizeof c);
    c.layer = j->layer;
    c.rows  = g->rows;
    c.bytes = (const uint8_t *)t->data + l3_row_bytes(t->type, t->cols) * g->first_row;
    l3__attend_chunk(w, &c, i, g->end - i < L3__SHARE ? g->end : i + L3__SHARE);
}

/* Whether a layer's rows wait for all of them to be there, so that all threads take part. */
L3__FN bool l3__gathers_at_once(const l3_work *w, const l3_lookup *l) {
    return l3__in_memory(&l->rows) && !l3__in_pieces(w);
}

/* All groups of a layer whose rows are in memory. */
L3__FN void l3__attend_groups(l3_work *w, uint32_t layer) {
    const l3_lookup      *l        = &w->layers[layer];
    const l3_jobs         nowhere  = {NULL, 0, NULL};
    uint64_t              products = 0;
    l3__attend_groups_job j        = {w, layer};
    for (const l3__group *g = w->groups; g < w->groups + w->n_groups; g++)
        products += (uint64_t)(g->end - g->begin) * g->rows * (l->key_length + l->value_length);
    /* Normalized keys are unpacked into the work's one row. */
    l3__run(products < 65536 || l->key_norm ? &nowhere : &w->config.jobs, w->n, l3__attend_groups_piece, &j);
}

/* Brings in the first rows of a layer, or finds those that were started ahead. w->current is inactive if there are none. */
L3__FN int l3__gather_begin(l3_work *w, uint32_t layer, l3_error *err) {
    w->next.active = false;
    w->current     = w->ahead;
    w->slot        = 1;
    w->crc         = 0;
    if (w->ahead.active && w->ahead.layer == layer) {
        w->ahead.active = false;
        return L3_OK;
    }
    w->current.active = false;
    l3__chunk_drop(w, &w->ahead);
    const int code = l3__plan(w, layer, err);
    if (code != L3_OK || !l3__chunk_first(w, layer, &w->current)) return code;
    return l3__chunk_begin(w, &w->current, w->slot = 0, err);
}

/* The current chunk has come; where reads can go on beside work, the next one is begun. */
L3__FN int l3__gather_arrive(l3_work *w, l3_error *err) {
    int code = l3__chunk_wait(w, &w->current, err);
    if (code == L3_OK) code = l3__chunk_verify(w, &w->current, &w->crc, err);
    if (code == L3_OK && l3__chunk_next(w, &w->current, &w->next) && w->async)
        code = l3__chunk_begin(w, &w->next, w->slot ^= 1, err);
    return code;
}

/* Multiply-adds of one row for one position. */
L3__FN uint64_t l3__row_products(const l3_lookup *l) {
    return (uint64_t)l->key_length * (l->key_norm ? 2 : 1) + l->value_length + L3__EXP_COST;
}

/* A piece of the current chunk goes into the sums. After the last one the next chunk is current. */
L3__FN int l3__gather_rows(l3_work *w, l3_error *err) {
    const l3__chunk *c    = &w->current;
    const l3_lookup *l    = &w->layers[c->layer];
    const l3__group *g    = &w->groups[c->group];
    l3__chunk        part = *c;
    part.bytes += w->at * l3_row_bytes(l->rows.type, l->rows.cols);
    part.rows = l3__allowed(w, c->rows - w->at, (g->end - g->begin) * l3__row_products(l));
    if (!l3__gathers_at_once(w, l)) l3__attend_chunk(w, &part, g->begin, g->end);
    w->at += part.rows;
    int code = l3__check_progress(w, err);
    if (code != L3_OK || w->at < c->rows) return code == L3_OK ? L3__MORE : code;
    w->at = 0;
    if (c->entry) c->entry->pinned = 0;
    w->current.active = false;
    if (w->next.group == w->n_groups) return L3_OK;
    if (!w->async) code = l3__chunk_begin(w, &w->next, w->slot, err);
    w->current     = w->next;
    w->next.active = false;
    return code;
}

L3__FN int l3__make_queries(l3_work *w, const l3_lookup *l, const float *x, l3_error *err) {
    const float *weight = NULL;
    const size_t d      = l->key_length;
    const int    code   = l->query_norm ? l3__load_weight(w, &l->query_norm_weight, &weight, err) : L3_OK;
    if (code != L3_OK) return code;
    for (uint32_t p = 0; p < w->n; p++) memcpy(w->query + p * d, x + w->order[p] * d, d * sizeof(float));
    const l3__norms j = {w->kernels, w->query, weight, w->query, d, l->key_length, l->norm_epsilon, false};
    if (l->query_norm) l3__each_position(w, w->n, 2 * d, l3__norm_one, &j);
    for (uint32_t p = 0; p < w->n; p++) {
        w->peak[p]  = l3__as_float(0xff800000u); /* -infinity */
        w->total[p] = 0;
    }
    memset(w->sum, 0, (size_t)w->n * l->value_length * sizeof(float));
    const l3__fast *f = l3__fast_scores(w, l);
    if (f) f->pack(l->rows.type, w->query, d, w->n, l->key_length, w->packed);
    return L3_OK;
}

/* sum (n, value_length) /= total. */
L3__FN void l3__divide_sums(l3_work *w, const l3_lookup *l) {
    for (uint32_t p = 0; p < w->n; p++) {
        float      *sum   = w->sum + (size_t)p * l->value_length;
        const float total = w->total[p];
        if (l3__fast_scores(w, l)) w->kernels->scale(sum, total > 0 ? 1.0f / total : 0, l->value_length);
        else
            for (uint32_t i = 0; total > 0 && i < l->value_length; i++) sum[i] /= total;
    }
}

/* mix (n, up_length + key_length), first part: up sum. */
L3__FN int l3__make_up(l3_work *w, const l3_lookup *l, l3_error *err) {
    const size_t stride = (size_t)l->up_length + l->key_length;
    if (l3__present(&l->up)) return l3__matmul(w, &l->up, w->sum, l->value_length, w->n, w->mix, stride, err);
    for (uint32_t p = 0; p < w->n; p++)
        memcpy(w->mix + p * stride, w->sum + (size_t)p * l->value_length, l->value_length * sizeof(float));
    return L3_OK;
}

/* It becomes u = norm(up sum) ... */
L3__FN int l3__norm_up(l3_work *w, const l3_lookup *l, l3_error *err) {
    const size_t    stride = (size_t)l->up_length + l->key_length;
    const float    *weight;
    const int       code = l3__load_weight(w, &l->up_norm_weight, &weight, err);
    const l3__norms j    = {w->kernels, w->mix, weight, w->mix, stride, l->up_length, l->norm_epsilon, l->layer_norm};
    if (code == L3_OK) l3__each_position(w, w->n, 2 * l->up_length, l3__norm_one, &j);
    return code;
}

/* ... plus its bias; and the second part is x. */
L3__FN int l3__fill_mix(l3_work *w, const l3_lookup *l, const float *x, l3_error *err) {
    const size_t d = l->key_length, stride = l->up_length + d;
    const float *bias;
    const int    code = l3__load_weight(w, &l->up_norm_bias, &bias, err);
    if (code != L3_OK) return code;
    for (uint32_t p = 0; p < w->n; p++) {
        if (bias) w->kernels->add_scaled(w->mix + p * stride, bias, 1.0f, l->up_length);
        memcpy(w->mix + p * stride + l->up_length, x + w->order[p] * d, d * sizeof(float));
    }
    return L3_OK;
}

L3__FN int l3__mix(l3_work *w, const l3_lookup *l, float *x, l3_error *err) {
    const size_t d = l->key_length, stride = l->up_length + d;
    const int    code = l3__matmul(w, &l->mix, w->mix, stride, w->n, w->out, d, err);
    if (code != L3_OK) return code;
    for (uint32_t p = 0; p < w->n; p++)
        if (l->residual) w->kernels->add_scaled(x + w->order[p] * d, w->out + p * d, 1.0f, (uint32_t)d);
        else memcpy(x + w->order[p] * d, w->out + p * d, d * sizeof(float));
    return L3_OK;
}

typedef enum l3__layer_stage {
    L3__LAYER_QUERIES,
    L3__LAYER_GATHER,
    L3__LAYER_ARRIVE,
    L3__LAYER_ROWS,
    L3__LAYER_AHEAD,
    L3__LAYER_UP,
    L3__LAYER_UP_NORM,
    L3__LAYER_FILL_MIX,
    L3__LAYER_MIX,
    L3__LAYER_DONE
} l3__layer_stage;

/* Runs the next piece of a layer: L3__MORE until all are done. */
L3__FN int l3__lookup_piece(l3_work *w, uint32_t layer, float *x, l3_error *err) {
    const l3_lookup *l    = &w->layers[layer];
    int              code = L3_OK;
    switch (w->stage) {
    case L3__LAYER_QUERIES: code = l3__make_queries(w, l, x, err); break;
    case L3__LAYER_GATHER: code = l3__gather_begin(w, layer, err); break;
    case L3__LAYER_ARRIVE:
        if (w->current.active) code = l3__gather_arrive(w, err);
        else w->stage = L3__LAYER_ROWS; /* no more rows */
        break;
    case L3__LAYER_ROWS:
        code = l3__gather_rows(w, err);
        if (code == L3_OK) w->stage = L3__LAYER_GATHER;
        break;
    case L3__LAYER_AHEAD:
        if (l3__gathers_at_once(w, l)) l3__attend_groups(w, layer);
        l3__divide_sums(w, l);
        code = l3__start_ahead(w, layer + 1, err);
        break;
    case L3__LAYER_UP: code = l3__make_up(w, l, err); break;
    case L3__LAYER_UP_NORM: code = l3__norm_up(w, l, err); break;
    case L3__LAYER_FILL_MIX: code = l3__fill_mix(w, l, x, err); break;
    default: code = l3__mix(w, l, x, err); break;
    }
    if (code == L3_OK) {
        w->stage = (w->stage + 1) % L3__LAYER_DONE;
        return w->stage == 0 ? L3_OK : L3__MORE;
    }
    if (code == L3__MORE) return code;
    l3__chunks_drop(w);
    w->n = 0;
    return code;
}

L3_API int l3_lookup_forward(l3_work *w, uint32_t layer, float *x, l3_error *err) {
    int code = L3__MORE;
    if (layer >= w->n_layers || w->n == 0)
        return l3__fail(err, L3_ERR_ARGUMENT, 0, "no lookup layer %u, or no l3_lookup_begin before", layer);
    while (code == L3__MORE) code = l3__lookup_piece(w, layer, x, err);
    return code;
}

L3_API l3_stats l3_work_stats(const l3_work *w) { return w->stats; }

/* What a work must be wide enough for: the layers', and whatever a model adds. */
typedef struct l3__widths {
    uint64_t window;            /* least window in bytes */
    uint32_t vector;            /* longest norm weight */
    uint32_t align;             /* of windows */
    bool     start;             /* some source has start */
    uint32_t queries;           /* width of a position's queries that attention packs; 0: none */
    uint32_t cols[L3__N_TYPES]; /* widest matrix of each type */
} l3__widths;

L3__FN void l3__need_packed(l3__widths *x, int type, uint32_t cols) {
    uint32_t *widest = &x->cols[l3__type_index(type)];
    if (*widest < cols) *widest = cols;
}

L3__FN void l3__need_cols(l3__widths *x, const l3_tensor *t) {
    if (l3__present(t)) l3__need_packed(x, t->type, t->cols);
}

L3__FN l3__widths l3__lookup_widths(const l3_lookup *layers, uint32_t n) {
    l3__widths x = {0, 0, 1, false, 0, {0, 0, 0, 0, 0, 0}};
    for (uint32_t i = 0; i < n; i++) {
        const l3_lookup *l    = &layers[i];
        const l3_source *s    = l->rows.source;
        const uint64_t   need = l3__lookup_window(l);
        if (x.window < need) x.window = need;
        if (x.vector < l->key_length) x.vector = l->key_length;
        if (x.vector < l->up_length) x.vector = l->up_length;
        if (x.align < l3__lookup_align(l)) x.align = l3__lookup_align(l);
        if (!l->rows.data && s && s->start) x.start = true;
        l3__need_cols(&x, &l->up);
        l3__need_cols(&x, &l->mix);
        l3__need_packed(&x, l->rows.type, l->key_length);
    }
    return x;
}

/* Scratch of the lookup layers; a session lays it over its other scratch. */
L3__FN void l3__scratch_layout(l3__arena *a, l3_work *w) {
    uint32_t key = 0, value = 0, mix = 0;
    for (uint32_t i = 0; i < w->n_layers; i++) {
        const l3_lookup *l = &w->layers[i];
        if (key < l->key_length) key = l->key_length;
        if (value < l->value_length) value = l->value_length;
        if (mix < l->up_length + l->key_length) mix = l->up_length + l->key_length;
    }
    w->query = (float *)l3__take(a, (uint64_t)w->batch * key, sizeof(float));
    w->sum   = (float *)l3__take(a, (uint64_t)w->batch * value, sizeof(float));
    w->peak  = (float *)l3__take(a, w->n_layers ? w->batch : 0, sizeof(float));
    w->total = (float *)l3__take(a, w->n_layers ? w->batch : 0, sizeof(float));
    w->mix   = (float *)l3__take(a, (uint64_t)w->batch * mix, sizeof(float));
    w->out   = (float *)l3__take(a, (uint64_t)w->batch * key, sizeof(float));
}

#ifndef L3_NO_STDIO
L3__FN uint64_t l3__most_packed_there(const l3_target *target, const l3_work *w, const l3__widths *widths) {
    uint64_t most = 0;
    for (int i = l3__type_index(L3_Q8_0); w->config.mode == L3_FAST && i < L3__N_TYPES; i++)
        if (most < ((uint64_t)widths->cols[i] + 31) / 32) most = ((uint64_t)widths->cols[i] + 31) / 32;
    return most * target->packed * w->batch;
}
#endif

/* Bytes of packed activations: the most that a matrix of any type needs for a whole batch. */
L3__FN uint64_t l3__most_packed(const l3__arena *a, const l3_work *w, const l3__widths *widths) {
#ifndef L3_NO_STDIO
    if (a->target) return l3__most_packed_there(a->target, w, widths);
#endif
    (void)a;
    if (!L3__HAS_FAST) return 0;
    const l3__fast *floats = w->kernels->prefill[0];
    uint64_t        most   = w->config.mode == L3_FAST ? l3__packed_bytes(floats, w->batch, widths->queries) : 0;
    for (int i = 0; i < L3__N_TYPES; i++) {
        const l3__fast *const fast[2] = {w->kernels->decode[i], w->kernels->prefill[i]};
        for (int k = 0; k < 2 && w->config.mode == L3_FAST && widths->cols[i]; k++)
            if (most < l3__packed_bytes(fast[k], w->batch, widths->cols[i]))
                most = l3__packed_bytes(fast[k], w->batch, widths->cols[i]);
    }
    return most;
}

/* Everything of a work that lives longer than one layer. False if the window is too small. */
L3__FN bool l3__work_layout(l3__arena *a, l3_work *w, const l3_lookup *layers, uint32_t n_layers,
                            const l3_work_config *config, const l3__widths *widths) {
    uint64_t window = config && config->window ? config->window : 65536;
    uint32_t row    = 0;
    memset(w, 0, sizeof *w);
    if (config) w->config = *config;
    w->kernels = l3__choose_kernels((int)w->config.level);
    if (!w->kernels) return false;
    w->layers   = layers;
    w->n_layers = n_layers;
    w->batch    = w->config.batch ? w->config.batch : w->kernels->batch;
    w->planned  = UINT32_MAX;
    w->most     = UINT64_MAX;
    w->async    = widths->start;
    if (!w->config.window && window < widths->window) window = widths->window;
    if (widths->window == 0) window = 0;
    if (window < widths->window || window > SIZE_MAX) return false;
    w->window_size = (size_t)window;
    L3__PURPOSE(a, window);
    w->window[0] = l3__take_aligned(a, window, widths->align);
    w->window[1] = l3__take_aligned(a, widths->start ? window : 0, widths->align);
    for (uint32_t i = 0; i < n_layers; i++)
        if (layers[i].key_norm && row < layers[i].key_length) row = layers[i].key_length;
    L3__PURPOSE(a, cache);
    for (uint32_t i = 0; i < n_layers; i++)
        if (!layers[i].rows.data && w->cache.size == 0)
            l3__cache_layout(a, &w->cache, w->config.cache, layers[i].vocab);
    L3__PURPOSE(a, session);
    w->tokens = (int32_t *)l3__take(a, w->batch, sizeof(int32_t));
    w->order  = (uint32_t *)l3__take(a, n_layers ? w->batch : 0, sizeof(uint32_t));
    w->groups = (l3__group *)l3__take(a, n_layers ? w->batch : 0, sizeof(l3__group));
    L3__PURPOSE(a, scratch);
    w->vector = (float *)l3__take(a, widths->vector, sizeof(float));
    w->row    = (float *)l3__take(a, row, sizeof(float));
    w->packed = (unsigned char *)l3__take(a, l3__most_packed(a, w, widths), 1);
    return true;
}

/* After a layout with a base: what must start at zero. */
L3__FN void l3__work_reset(l3_work *w) {
    if (w->cache.size) memset(w->cache.buckets, 0, w->cache.n_buckets * sizeof(size_t));
    if (w->cache.size) memset(w->cache.counts, 0, w->cache.n_counts);
}

L3_API size_t l3_work_window_min(const l3_lookup *layers, uint32_t n_layers) {
    return (size_t)l3__lookup_widths(layers, n_layers).window;
}

/* One layout for size and init: base NULL counts. */
L3__FN size_t l3__work_place(l3_work *w, const l3_lookup *layers, uint32_t n_layers, const l3_work_config *config,
                             const l3__target *target, void *base) {
    const l3__widths widths = l3__lookup_widths(layers, n_layers);
    l3__arena        a      = l3__arena_of(base, target);
    (void)l3__take(&a, 1, L3__BYTES_OF(&a, l3_work, work));
    if (!l3__work_layout(&a, w, layers, n_layers, config, &widths)) return 0;
    l3__scratch_layout(&a, w);
    return l3__arena_size(&a);
}

L3_API size_t l3_work_size(const l3_lookup *layers, uint32_t n_layers, const l3_work_config *config) {
    l3_work w;
    return l3__work_place(&w, layers, n_layers, config, NULL, NULL);
}

#ifndef L3_NO_STDIO
L3_API l3_target l3_target_32(void) {
    const l3_target t = {16, 4, 72, 296, 360, 504, 288, 528, 144, 80}; /* tests/test_sizes.sh compares */
    return t;
}

/* A configuration for another machine: what is best here is not there. */
L3__FN l3_work_config l3__config_for(const l3_work_config *config) {
    l3_work_config c;
    memset(&c, 0, sizeof c);
    if (config) c = *config;
    if (c.level == L3_LEVEL_BEST) c.level = L3_LEVEL_PLAIN;
    return c;
}

L3_API size_t l3_work_size_for(const l3_target *target, const l3_lookup *layers, uint32_t n_layers,
                               const l3_work_config *config) {
    l3_work              w;
    const l3_work_config c = l3__config_for(config);
    return l3__work_place(&w, layers, n_layers, &c, target, NULL);
}
#endif

L3__FN int l3__window_error(l3_error *err, uint64_t window, uint64_t least) {
    return l3__fail(err, L3_ERR_ARGUMENT, 0, "a window of %U bytes is too small: the longest row needs %U", window,
                    least);
}

L3__FN int l3__check_level(const l3_work_config *config, l3_error *err) {
    const int level = config ? (int)config->level : L3_LEVEL_BEST;
    if (l3__choose_kernels(level)) return L3_OK;
    return l3__fail(err, L3_ERR_ARGUMENT, 0, "the level %s does not work on this machine or in this build",
                    level == L3_LEVEL_BEST ? "that L3_LEVEL names"
                    : l3_level_name(level) ? l3_level_name(level)
                                           : "asked for");
}

L3_API int l3_work_init(l3_work **work, const l3_lookup *layers, uint32_t n_layers, const l3_work_config *config,
                        void *mem, size_t size, l3_error *err) {
    const size_t least = l3_work_window_min(layers, n_layers);
    if (config && config->window && config->window < least) return l3__window_error(err, config->window, least);
    const int works = l3__check_level(config, err);
    if (works != L3_OK) return works;
    const int code = l3__check_block(mem, size, l3_work_size(layers, n_layers, config), err);
    if (code != L3_OK) return code;
    for (uint32_t i = 0; i < n_layers; i++)
        if (layers[i].vocab != layers[0].vocab || layers[i].key_length != layers[0].key_length)
            return l3__fail(err, L3_ERR_ARGUMENT, 0, "layer %u has another vocabulary or key length than layer 0", i);
    l3_work *w = (l3_work *)mem;
    (void)l3__work_place(w, layers, n_layers, config, NULL, mem);
    l3__work_reset(w);
    *work = w;
    return L3_OK;
}

typedef struct l3__check {
    l3_error *err;
    int       code;
} l3__check;

/* A tensor's place in its source. */
L3__FN void l3__check_place(l3__check *c, const l3_tensor *t, const char *name) {
    uint64_t end;
    if (c->code != L3_OK || !t->source) return;
    if (!t->data && (c->code = l3__check_source(t->source, c->err)) != L3_OK) return;
    if (!l3__add(t->offset, l3__tensor_bytes(t), &end) || end > t->source->size)
        c->code = l3__fail(c->err, L3_ERR_FORMAT, t->offset, "%s: %U bytes at %U lie beyond the source's end at %U",
                           name, l3__tensor_bytes(t), t->offset, t->source->size);
}

/* A tensor's shape, type, block size and place; `name` is for the message. */
L3__FN void l3__check_tensor(l3__check *c, const l3_tensor *t, const char *name, uint32_t rows, uint32_t cols,
                             bool optional) {
    if (c->code != L3_OK || (optional && !l3__present(t))) return;
    if (!l3__present(t)) c->code = l3__fail(c->err, L3_ERR_FORMAT, 0, "%s is missing", name);
    else if (t->rows != rows || t->cols != cols)
        c->code = l3__fail(c->err, L3_ERR_FORMAT, t->offset, "%s is %u x %u; %u x %u is right", name, t->rows, t->cols,
                           rows, cols);
    else if (!l3__unpacker(t->type)) c->code = l3__refuse_type(c->err, t->offset, name, (uint32_t)t->type);
    else if (l3_row_bytes(t->type, t->cols) == 0)
        c->code = l3__fail(c->err, L3_ERR_FORMAT, t->offset, "%s: rows of %u elements are no whole blocks of type %s",
                           name, cols, l3_type_name(t->type));
    l3__check_place(c, t, name);
}

L3__FN void l3__check_i32(l3__check *c, const l3_tensor *t, const char *name, uint32_t cols) {
    if (c->code == L3_OK && (!l3__present(t) || t->type != L3_I32 || t->rows != 1 || t->cols != cols))
        c->code =
            l3__fail(c->err, L3_ERR_FORMAT, t->offset, "%s must be there, of type i32, with %u elements", name, cols);
    l3__check_place(c, t, name);
}

/* Every offset of the table, in order, through a small buffer. */
L3__APART int l3__check_offsets(const l3_lookup *l, l3_error *err) {
    const l3_source  memory = l3_source_memory(l->offsets.data, (size_t)l->vocab * 4 + 4);
    const uint64_t   base   = l->offsets.data ? 0 : l->offsets.offset;
    l3__stack_buffer buffer;
    l3__reader       r      = l3__stack_reader(l->offsets.data ? &memory : l->offsets.source, &buffer);
    uint32_t         before = 0;
    for (uint32_t t = 0; t <= l->vocab; t++) {
        const uint8_t *p = l3__peek(&r, base + (uint64_t)t * 4, 4, err);
        if (!p) return L3_ERR_IO;
        const uint32_t now = l3__le32(p);
        const bool     bad = t == 0 ? now != 0 : now < before || (l->max_rows && now - before > l->max_rows);
        if (bad || now > l->row_count || (t == l->vocab && now != l->row_count))
            return l3__fail(err, L3_ERR_FORMAT, l->offsets.offset + (uint64_t)t * 4,
                            "lookup offset %u is %u after %u; they rise from 0 to %u, by at most %u a token", t, now,
                            before, l->row_count, l->max_rows ? l->max_rows : l->row_count);
        before = now;
    }
    return L3_OK;
}

L3_API int l3_lookup_check(const l3_lookup *l, l3_error *err) {
    const uint32_t limit = 1u << 24; /* far above any real width; products of two stay in 64 bits */
    l3__check      c     = {err, L3_OK};
    if (l->vocab == 0 || l->vocab > limit || l->row_count > INT32_MAX || l->key_length == 0 || l->value_length == 0 ||
        l->up_length == 0 || l->key_length > limit || l->value_length > limit || l->up_length > limit)
        return l3__fail(err, L3_ERR_FORMAT, 0, "a lookup layer's vocabulary, rows or widths are zero or absurd");
    if (l->tied && l->value_length != l->key_length)
        return l3__fail(err, L3_ERR_FORMAT, 0, "tied rows need value_length %u to equal key_length %u", l->value_length,
                        l->key_length);
    if (!l3__present(&l->up) && l->up_length != l->value_length)
        return l3__fail(err, L3_ERR_FORMAT, 0, "without lookup_up, up_length %u must equal value_length %u",
                        l->up_length, l->value_length);
    if (!(l->norm_epsilon > 0) || !(l->norm_epsilon < 1) || !(l->score_scale > -1e9f) || !(l->score_scale < 1e9f))
        return l3__fail(err, L3_ERR_FORMAT, 0, "the norm epsilon or the score scale is no usable number");
    const uint32_t width = l->tied ? l->key_length : l->key_length + l->value_length;
    l3__check_tensor(&c, &l->rows, "lookup_rows", l->row_count, width, false);
    if (c.code == L3_OK && (l->key_length % l3_type_block(l->rows.type) != 0))
        c.code = l3__fail(err, L3_ERR_FORMAT, l->rows.offset, "key_length %u is no multiple of the row type's block",
                          l->key_length);
    l3__check_tensor(&c, &l->query_norm_weight, "lookup_query_norm", 1, l->key_length, true);
    l3__check_tensor(&c, &l->up, "lookup_up", l->up_length, l->value_length, true);
    l3__check_tensor(&c, &l->up_norm_weight, "lookup_up_norm.weight", 1, l->up_length, true);
    l3__check_tensor(&c, &l->up_norm_bias, "lookup_up_norm.bias", 1, l->up_length, true);
    if (c.code == L3_OK && l3__present(&l->up_norm_bias) && !l->layer_norm)
        c.code = l3__fail(err, L3_ERR_FORMAT, l->up_norm_bias.offset, "lookup_up_norm.bias goes with layer norm only");
    l3__check_tensor(&c, &l->mix, "lookup_mix", l->key_length, l->up_length + l->key_length, false);
    l3__check_i32(&c, &l->offsets, "lookup_offsets", l->vocab + 1);
    if (l3__present(&l->checksums)) l3__check_i32(&c, &l->checksums, "lookup checksums", l->vocab);
    return c.code == L3_OK ? l3__check_offsets(l, err) : c.code;
}

/* >>lzw ----------------------------------------------------------------------------------------------------------- */

#ifndef L3_NO_ALLOCATOR
/* The dictionary is a trie: node = codeword, its parent the codeword without its last token. Nodes 0 ... vocab - 1 are
 * the single tokens; the others are found through an open-addressed hash of (parent, token). */
typedef struct l3__codeword {
    uint32_t parent, token, count;
} l3__codeword;

#define L3__NONE          UINT32_MAX
#define L3__COUNT_BUCKETS 65536u /* counts from here on share a bucket, which is sorted by comparison */

struct l3_alloc {
    uint32_t        vocab, capacity, n, n_slots;
    l3__codeword   *words;         /* (capacity,) in order of insertion */
    uint32_t       *slots;         /* (n_slots,) node, or L3__NONE; later the order of placing */
    uint32_t       *histogram;     /* (L3__COUNT_BUCKETS + 1,) */
    uint64_t       *frequency;     /* (vocab,) */
    uint32_t        node, pending; /* the match so far, and the token after it; L3__NONE: none */
    bool            in_document;
    l3_alloc_report report;
};

L3__FN uint64_t l3__alloc_layout(l3__arena *a, l3_alloc *x, uint32_t vocab, uint32_t capacity) {
    memset(x, 0, sizeof *x);
    x->vocab     = vocab;
    x->capacity  = capacity;
    x->n_slots   = capacity + capacity / 2 + 1;
    x->words     = (l3__codeword *)l3__take(a, capacity, sizeof(l3__codeword));
    x->slots     = (uint32_t *)l3__take(a, x->n_slots, sizeof(uint32_t));
    x->histogram = (uint32_t *)l3__take(a, L3__COUNT_BUCKETS + 1, sizeof(uint32_t));
    x->frequency = (uint64_t *)l3__take(a, vocab, sizeof(uint64_t));
    return l3__arena_size(a);
}

L3_API size_t l3_alloc_size(uint32_t vocab, uint32_t max_codewords) {
    l3_alloc  x;
    l3__arena a = l3__arena_of(NULL, NULL);
    if (vocab == 0 || max_codewords < vocab || max_codewords > INT32_MAX) return 0;
    (void)l3__take(&a, 1, sizeof x);
    return (size_t)l3__alloc_layout(&a, &x, vocab, max_codewords);
}

L3_API int l3_alloc_init(l3_alloc **alloc, uint32_t vocab, uint32_t max_codewords, void *mem, size_t size,
                         l3_error *err) {
    l3__arena a = l3__arena_of(mem, NULL);
    if (vocab == 0 || max_codewords < vocab || max_codewords > INT32_MAX)
        return l3__fail(err, L3_ERR_ARGUMENT, 0, "%u codewords for a vocabulary of %u; at least one a token is right",
                        max_codewords, vocab);
    const int code = l3__check_block(mem, size, l3_alloc_size(vocab, max_codewords), err);
    if (code != L3_OK) return code;
    l3_alloc *x = (l3_alloc *)l3__take(&a, 1, sizeof *x);
    (void)l3__alloc_layout(&a, x, vocab, max_codewords);
    for (uint32_t t = 0; t < vocab; t++) {
        x->words[t].parent = L3__NONE;
        x->words[t].token  = t;
        x->words[t].count  = 0;
        x->frequency[t]    = 0;
    }
    memset(x->slots, 0xff, (size_t)x->n_slots * sizeof *x->slots);
    x->n    = vocab;
    x->node = x->pending = L3__NONE;
    *alloc               = x;
    return L3_OK;
}

/* The slot that holds (parent, token), or the free one where it would go. */
L3__FN uint32_t *l3__alloc_slot(const l3_alloc *x, uint32_t parent, uint32_t token) {
    const uint64_t hash = ((uint64_t)parent << 32 | token) * 0x9e3779b97f4a7c15u;
    uint32_t       i    = (uint32_t)(((hash >> 32) * x->n_slots) >> 32);
    while (x->slots[i] != L3__NONE && (x->words[x->slots[i]].parent != parent || x->words[x->slots[i]].token != token))
        if (++i == x->n_slots) i = 0;
    return &x->slots[i];
}

/* The listing's two assignments: count the match, and (re)set the one-longer codeword to 1. */
L3__FN void l3__alloc_emit(l3_alloc *x, uint32_t *slot) {
    if (x->words[x->node].count != UINT32_MAX) x->words[x->node].count++;
    if (*slot != L3__NONE) {
        x->words[*slot].count = 1;
    } else if (x->n < x->capacity) {
        x->words[x->n].parent = x->node;
        x->words[x->n].token  = x->pending;
        x->words[x->n].count  = 1;
        *slot                 = x->n++;
    } else if (x->report.full_after == 0) {
        x->report.full_after = x->report.tokens;
    }
}

/* One token later than the listing, which looks at whether another token follows before it looks the match up. */
L3_API int l3_alloc_add(l3_alloc *x, const int32_t *tokens, size_t n, l3_error *err) {
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= x->vocab)
            return l3__fail(err, L3_ERR_TOKEN, 0, "token %U of this call is outside the vocabulary of %u", (uint64_t)i,
                            x->vocab);
        const uint32_t t = (uint32_t)tokens[i];
        x->frequency[t]++;
        x->report.tokens++;
        x->in_document = true;
        if (x->node == L3__NONE) {
            x->node = t;
        } else if (x->pending == L3__NONE) {
            x->pending = t;
        } else {
            uint32_t *slot = l3__alloc_slot(x, x->node, x->pending);
            if (*slot != L3__NONE) {
                x->node    = *slot;
                x->pending = t;
            } else {
                l3__alloc_emit(x, slot);
                x->node    = t;
                x->pending = L3__NONE;
            }
        }
    }
    return L3_OK;
}

L3_API void l3_alloc_end_document(l3_alloc *x) {
    if (x->pending != L3__NONE) l3__alloc_emit(x, l3__alloc_slot(x, x->node, x->pending));
    if (x->in_document) x->report.documents++;
    x->node = x->pending = L3__NONE;
    x->in_document       = false;
}

/* Sorts indices by descending key, ties by index, where key(i) is key[i * stride]: Shell sort in place. */
L3__FN void l3__sort_by_count(uint32_t *index, uint32_t n, const l3__codeword *words, const uint64_t *frequency) {
    for (uint32_t gap = n / 2; gap > 0; gap = gap == 2 ? 1 : (uint32_t)(gap / 2.2))
        for (uint32_t i = gap; i < n; i++) {
            const uint32_t a   = index[i];
            const uint64_t key = words ? words[a].count : frequency[a];
            uint32_t       j   = i;
            for (; j >= gap; j -= gap) {
                const uint32_t b     = index[j - gap];
                const uint64_t other = words ? words[b].count : frequency[b];
                if (other > key || (other == key && b < a)) break;
                index[j] = b;
            }
            index[j] = a;
        }
}

/* slots[0 ... n) = the codewords by descending count, ties in order of insertion: a counting sort. */
L3__FN void l3__alloc_order(l3_alloc *x) {
    uint32_t *start = x->histogram, at = 0;
    memset(start, 0, (L3__COUNT_BUCKETS + 1) * sizeof *start);
    for (uint32_t i = 0; i < x->n; i++)
        start[x->words[i].count < L3__COUNT_BUCKETS ? x->words[i].count : L3__COUNT_BUCKETS]++;
    const uint32_t large = start[L3__COUNT_BUCKETS];
    for (uint32_t b = L3__COUNT_BUCKETS + 1; b-- > 0;) {
        const uint32_t n = start[b];
        start[b]         = at;
        at += n;
    }
    for (uint32_t i = 0; i < x->n; i++)
        x->slots[start[x->words[i].count < L3__COUNT_BUCKETS ? x->words[i].count : L3__COUNT_BUCKETS]++] = i;
    l3__sort_by_count(x->slots, large, x->words, NULL);
}

/* One more row for each token by descending frequency, again and again, until none is left or every token has k. */
L3__FN void l3__alloc_fallback(l3_alloc *x, uint32_t left, uint32_t max_rows, int32_t *rows) {
    uint32_t n = x->vocab;
    for (uint32_t t = 0; t < n; t++) x->slots[t] = t;
    l3__sort_by_count(x->slots, n, NULL, x->frequency);
    x->report.placed_by_frequency = left;
    while (left) {
        uint32_t kept = 0;
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t t = x->slots[i];
            if (max_rows && (uint32_t)rows[t] >= max_rows) continue;
            x->slots[kept++] = t;
            if (left) rows[t]++, left--;
        }
        n = kept;
    }
}

L3_API int l3_alloc_finish(l3_alloc *x, uint32_t row_count, uint32_t max_rows, int32_t *offsets,
                           l3_alloc_report *report, l3_error *err) {
    uint32_t left = row_count - x->vocab, sum = 0;
    if (row_count < x->vocab || row_count > INT32_MAX || (max_rows && row_count > (uint64_t)x->vocab * max_rows))
        return l3__fail(err, L3_ERR_ARGUMENT, 0, "%u rows for %u tokens; one each and at most %U in all are right",
                        row_count, x->vocab, max_rows ? (uint64_t)x->vocab * max_rows : (uint64_t)INT32_MAX);
    l3_alloc_end_document(x);
    x->report.codewords = x->n;
    l3__alloc_order(x);
    for (uint32_t t = 0; t < x->vocab; t++) offsets[t] = 1;
    for (uint32_t i = 0; i < x->n && left; i++) {
        const uint32_t t = x->words[x->slots[i]].token;
        if (max_rows && (uint32_t)offsets[t] >= max_rows) continue;
        offsets[t]++;
        left--;
    }
    x->report.placed_by_code = row_count - x->vocab - left;
    if (left) l3__alloc_fallback(x, left, max_rows, offsets);
    for (uint32_t t = 0; t < x->vocab; t++) {
        const uint32_t rows = (uint32_t)offsets[t];
        offsets[t]          = (int32_t)sum;
        sum += rows;
    }
    offsets[x->vocab] = (int32_t)sum;
    if (report) *report = x->report;
    return L3_OK;
}
#endif /* L3_NO_ALLOCATOR */

#ifdef __cplusplus
}
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT DEFAULT
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif /* L3_IMPLEMENTATION */

/* >>int8 ---------------------------------------------------------------------------------------------------------- */

/* Rows of Q8_0 or Q4_0 against int8 activations, read once for every L3__INT8, which has an operation `block`. */
#ifdef L3__INT8
#define L3__JOIN2(a, b) a##_##b
#define L3__JOIN(a, b)  L3__JOIN2(a, b)
#define L3__K(name)     L3__JOIN(l3__##name, L3__INT8)
#define L3__PART        static inline __attribute__((always_inline, unused, L3__INT8_TARGET))

/* y[p * ys + r] = row r times position p, for `rows` rows and `n` positions, both constants. */
L3__PART void L3__K(int8_dots)(const int type, const uint8_t *w, size_t row_bytes, uint32_t blocks, const l3__int8s *x,
                               const size_t rows, const size_t n, const int lie, float *y, size_t ys) {
    const size_t block = type == L3_Q8_0 ? 34 : 18;
    L3__K(v) sum[4][4];
    L3__EACH(r, rows) L3__EACH(p, n) sum[r][p] = L3__K(all)(0.0f);
    for (uint32_t b = 0; b < blocks; b++) {
        if (lie == L3__SIDE_BY_SIDE) l3__prefetch(w + L3__AHEAD + b * 4 * block, 4 * block);
        if (lie == L3__SPREAD) L3__EACH(r, rows) l3__prefetch(w + r * row_bytes + L3__AHEAD / 4 + b * block, block);
        L3__EACH(p, n) {
            float   scale;
            int32_t bias;
            memcpy(&scale, x[p].scale + b * 4, 4);
            memcpy(&bias, x[p].bias + b * 4, 4);
            L3__EACH(r, rows) {
                const uint8_t *q = w + r * row_bytes + b * block;
                sum[r][p] = L3__K(fma)(L3__K(block)(type, q, x[p].q + b * 32, bias), L3__K(all)(scale * L3__K(half)(q)),
                                       sum[r][p]);
            }
        }
    }
    L3__EACH(r, rows) L3__EACH(p, n) y[p * ys + r] = L3__K(total)(sum[r][p]);
}

/* Four rows stay in the L1 cache for all positions; one of them is unpacked for four positions at once. */
L3__PART void L3__K(int8_rows)(const int type, const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols,
                               const unsigned char *x, uint32_t n, float *y, size_t ys) {
    const uint32_t blocks = cols / 32;
    uint32_t       r      = 0;
#if defined(L3__X86)
    if (n == 1 && rows > L3__TILE) {
        const uint32_t  quarter = rows / 4;
        const l3__int8s a       = l3__int8s_at(x, 0, cols);
        for (; r < quarter; r++) {
            float four[4];
            L3__K(int8_dots)(type, w + r * row_bytes, quarter * row_bytes, blocks, &a, 4, 1, L3__SPREAD, four, 0);
            L3__EACH(i, 4) y[i * quarter + r] = four[i];
        }
        r *= 4;
    }
#endif
    for (uint32_t some; r < rows; r += some) {
        const uint8_t *row = w + r * row_bytes;
        uint32_t       p   = 0;
        some               = rows - r >= 4 ? 4 : 1;
        for (; p + 4 <= n; p += 4) {
            l3__int8s a[4];
            for (uint32_t i = 0; i < 4; i++) a[i] = l3__int8s_at(x, p + i, cols);
            for (uint32_t i = 0; i < some; i++) {
                const uint8_t *one = row + i * row_bytes;
                L3__K(int8_dots)(type, one, row_bytes, blocks, a, 1, 4, L3__ALONE, y + p * ys + r + i, ys);
            }
        }
        for (; p < n; p++) {
            const l3__int8s a  = l3__int8s_at(x, p, cols);
            float          *to = y + p * ys + r;
            if (some == 4) L3__K(int8_dots)(type, row, row_bytes, blocks, &a, 4, 1, L3__SIDE_BY_SIDE, to, ys);
            else L3__K(int8_dots)(type, row, row_bytes, blocks, &a, 1, 1, L3__ALONE, to, ys);
        }
    }
}

static __attribute__((unused, L3__INT8_TARGET)) void L3__K(int8)(int type, const uint8_t *w, size_t row_bytes,
                                                                 uint32_t rows, uint32_t cols, const unsigned char *x,
                                                                 uint32_t n, float *y, size_t ys) {
#if defined(L3__X86)
    (void)type; /* Q4_0 goes by pairs of blocks there */
#else
    if (type == L3_Q4_0) L3__K(int8_rows)(L3_Q4_0, w, row_bytes, rows, cols, x, n, y, ys);
    else
#endif
    L3__K(int8_rows)(L3_Q8_0, w, row_bytes, rows, cols, x, n, y, ys);
}

static const l3__fast L3__K(int8_by) = {l3__pack_int8, L3__K(int8), NULL, NULL, 1, 10, 0};

#undef L3__JOIN2
#undef L3__JOIN
#undef L3__K
#undef L3__PART
#endif

/* >>kernels ------------------------------------------------------------------------------------------------------- */

/* Read once for every instruction set L3__ISA by the section >>levels above, which defines L3__W and L3__TARGET. What has a
 * plain C twin in >>matmul gives the same bits as that. */
#if defined(L3__ISA) && !defined(L3__INT8)
#define L3__JOIN2(a, b) a##_##b
#define L3__JOIN(a, b)  L3__JOIN2(a, b)
#define L3__K(name)     L3__JOIN(l3__##name, L3__ISA) /* l3__dot_avx2, ... */
#define L3__PARTS       (L3__LANES / L3__W)           /* vectors that make up the lanes */
#define L3__KERNEL      static __attribute__((unused, L3__TARGET))
#define L3__PART        static inline __attribute__((always_inline, unused, L3__TARGET))
#define L3__VF          L3__K(v)

/* What four rows need later than elements i ... i + 31, as they lie. */
L3__PART void L3__K(prefetch4)(const int type, const int lie, const uint8_t *w, size_t row_bytes, uint32_t i) {
    const size_t bytes = type == L3_F32 ? 128 : type == L3_Q8_0 ? 34 : type == L3_Q4_0 ? 18 : 64, at = i / 32 * bytes;
    if (type == L3_Q6_K) return;
    if (lie == L3__SIDE_BY_SIDE) l3__prefetch(w + L3__AHEAD + 4 * at, 4 * bytes);
    if (lie == L3__SPREAD) L3__EACH(r, 4) l3__prefetch(w + r * row_bytes + L3__AHEAD / 4 + at, bytes);
}

/* Elements first ... first + 31 of a row, to vectors. */
L3__PART void L3__K(weights32)(const int type, const uint8_t *row, uint32_t first, L3__VF *w) {
    const uint8_t *q;
    switch (type) {
    case L3_F32: {
        const void *p                   = row + (size_t)first * 4;
        L3__EACH(j, 2 * L3__PARTS) w[j] = L3__K(load)((const float *)p + j * L3__W);
        break;
    }
    case L3_F16: L3__EACH(j, 2 * L3__PARTS) w[j] = L3__K(from_f16)(row + ((size_t)first + j * L3__W) * 2); break;
    case L3_BF16: L3__EACH(j, 2 * L3__PARTS) w[j] = L3__K(from_bf16)(row + ((size_t)first + j * L3__W) * 2); break;
    case L3_Q8_0: {
        q                               = row + (size_t)(first / 32) * 34;
        const L3__VF scale              = L3__K(all_half)(q);
        L3__EACH(j, 2 * L3__PARTS) w[j] = L3__K(times)(scale, L3__K(from_i8)(q + 2 + j * L3__W));
        break;
    }
    case L3_Q4_0: {
        q                  = row + (size_t)(first / 32) * 18;
        const L3__VF scale = L3__K(all_half)(q);
#if L3__W == 16
        l3__from_q4_avx512(q + 2, L3__K(times)(scale, l3__nibbles_avx512()), w);
#else
        L3__EACH(j, 2 * L3__PARTS) w[j] = L3__K(times)(scale, L3__K(from_q4)(q + 2, (uint32_t)j * L3__W));
#endif
        break;
    }
    default: {
#if defined(L3__X86)
        const uint8_t *block = row + (size_t)(first / 256) * 210;
        const float    d     = L3__K(half)(block + 208);
        int8_t         v[32];
        const void    *bytes = v;
        _mm256_storeu_si256((__m256i *)(void *)v, l3__q6_avx2(block, first / 32 % 8));
        L3__EACH(j, 2 * L3__PARTS) {
            const float scale = d * (float)(int8_t)block[192 + first / 16 % 16 + j * L3__W / 16];
            w[j]              = L3__K(times)(L3__K(all)(scale), L3__K(from_i8)((const uint8_t *)bytes + j * L3__W));
        }
#else
        float values[32];
        l3__unpack_q6_k(row, first, 32, values);
        L3__EACH(j, 2 * L3__PARTS) w[j] = L3__K(load)(values + j * L3__W);
#endif
        break;
    }
    }
}

/* The same times a weight. */
L3__PART void L3__K(weighted32)(const int type, const uint8_t *row, uint32_t first, L3__VF weight, L3__VF *w) {
#if L3__W == 16
    if (type == L3_Q4_0) {
        const uint8_t *q     = row + (size_t)(first / 32) * 18;
        const L3__VF   scale = L3__K(all_half)(q);
        l3__from_q4_avx512(q + 2, L3__K(times)(weight, L3__K(times)(scale, l3__nibbles_avx512())), w);
        return;
    }
#endif
    L3__K(weights32)(type, row, first, w);
    L3__EACH(j, 2 * L3__PARTS) w[j] = L3__K(times)(weight, w[j]);
}

/* Elements first ... first + n - 1 of a row, and zeros behind them; types without blocks. Lanes never hold -0, so adding 0 to
 * them changes nothing. */
L3__PART L3__VF L3__K(some)(const int type, const uint8_t *row, uint32_t first, uint32_t n) {
    const void *p = row + (size_t)first * 4;
    if (type == L3_F32) return L3__K(load_part)((const float *)p, n);
#if L3__W == 16 /* small heads have less than a vector */
    return type == L3_F16 ? L3__K(part_f16)(row + (size_t)first * 2, n) : L3__K(part_bf16)(row + (size_t)first * 2, n);
#else
    float v[L3__W] = {0};
    if (n >= L3__W)
        return type == L3_F16 ? L3__K(from_f16)(row + (size_t)first * 2) : L3__K(from_bf16)(row + (size_t)first * 2);
    l3__unpacker(type)(row, first, n, v);
    return L3__K(load)(v);
#endif
}

/* The last n < 32 elements of a row of Q8_0 in a KV cache, with zeros behind. */
L3__PART void L3__K(last_q8)(const uint8_t *row, uint32_t first, uint32_t n, L3__VF *w) {
    float values[32] = {0};
    l3__unpack_q8_0(row, first, n, values);
    L3__EACH(j, 2 * L3__PARTS) w[j] = L3__K(load)(values + j * L3__W);
}

/* Vector j of the 16 elements from `first` on, as far as there are any. */
L3__PART void L3__K(add_part)(const int type, const uint8_t *const *row, const float *x, size_t xs, uint32_t first,
                              uint32_t cols, const size_t rows, const size_t n, const uint32_t j,
                              L3__VF (*lane)[4][L3__PARTS]) {
    const uint32_t i = first + j * L3__W, left = cols - i;
    if (i >= cols) return;
    L3__EACH(r, rows) {
        const L3__VF v = L3__K(some)(type, row[r], i, left);
        L3__EACH(p, n)
        lane[r][p][j] = L3__K(plus)(lane[r][p][j], L3__K(times)(v, L3__K(load_part)(x + p * xs + i, left)));
    }
}

/* y[p * ys + r] = row r times x[p], for `rows` rows, which lie as `lie` says, and `n` positions, all constants. */
L3__PART void L3__K(dots)(const int type, const uint8_t *w, size_t row_bytes, uint32_t cols, const float *x, size_t xs,
                          const size_t rows, const size_t n, const int lie, float *y, size_t ys) {
    L3__VF         lane[4][4][L3__PARTS], v[2 * L3__PARTS];
    const uint8_t *row[4];
    uint32_t       i                                                      = 0;
    L3__EACH(r, rows) L3__EACH(p, n) L3__EACH(j, L3__PARTS) lane[r][p][j] = L3__K(all)(0.0f);
    L3__EACH(r, rows) row[r]                                              = w + r * row_bytes;
    for (; i + 32 <= cols; i += 32) {
        if (lie != L3__ALONE) L3__K(prefetch4)(type, lie, w, row_bytes, i);
        L3__EACH(r, rows) {
            L3__K(weights32)(type, row[r], i, v);
            L3__EACH(p, n) {
                L3__EACH(j, 2 * L3__PARTS) {
                    L3__VF *sum = &lane[r][p][j % L3__PARTS];
                    *sum        = L3__K(plus)(*sum, L3__K(times)(v[j], L3__K(load)(x + p * xs + i + j * L3__W)));
                }
            }
        }
    }
    if (i < cols && type == L3_Q8_0) {
        L3__EACH(r, rows) {
            L3__K(last_q8)(row[r], i, cols - i, v);
            L3__EACH(p, n) {
                for (uint32_t j = 0; j * L3__W < cols - i; j++) {
                    const L3__VF a            = L3__K(load_part)(x + p * xs + i + j * L3__W, cols - i - j * L3__W);
                    lane[r][p][j % L3__PARTS] = L3__K(plus)(lane[r][p][j % L3__PARTS], L3__K(times)(v[j], a));
                }
            }
        }
        i = cols;
    }
    for (; i < cols; i += L3__LANES) { /* a vector at a time; lanes stay in registers where their index is constant */
        L3__K(add_part)(type, row, x, xs, i, cols, rows, n, 0, lane);
        if (L3__PARTS > 1) L3__K(add_part)(type, row, x, xs, i, cols, rows, n, 1 % L3__PARTS, lane);
        if (L3__PARTS > 2) L3__K(add_part)(type, row, x, xs, i, cols, rows, n, 2 % L3__PARTS, lane);
        if (L3__PARTS > 2) L3__K(add_part)(type, row, x, xs, i, cols, rows, n, 3 % L3__PARTS, lane);
    }
    L3__EACH(p, n) {
        if (rows == 4) L3__K(sums4)(lane[0][p], lane[1][p], lane[2][p], lane[3][p], y + p * ys);
        else L3__EACH(r, rows) y[p * ys + r] = L3__K(sum)(lane[r][p]);
    }
}

#if L3__W == 16
/* Vector i of rows of 8 that lie side by side: rows 2 i and 2 i + 1, of which there may be 1 or none. */
L3__PART __m512 l3__two_rows(const int type, const uint8_t *w, uint32_t rows, size_t i) {
    const uint32_t first = 16 * (uint32_t)i;
    return L3__K(some)(type, w, first, rows * 8 > first ? rows * 8 - first : 0);
}

/* y (rows,) = rows of 8 times x (8,), 16 rows at a time. */
L3__PART void l3__rows_of_8(const int type, const uint8_t *w, uint32_t rows, const float *x, float *y) {
    const __m512  q  = _mm512_broadcast_f32x8(_mm256_loadu_ps(x));
    const __m512i to = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (uint32_t r = 0; r < rows; r += 16, w += 16 * 8 * (type == L3_F32 ? 4 : 2)) {
        const uint32_t left = rows - r < 16 ? rows - r : 16;
        __m512         four[4], two[2];
        L3__EACH(i, 4) { /* lane k + 4 to lane k: rows 4 i ... 4 i + 3 */
            const __m512 a = _mm512_mul_ps(l3__two_rows(type, w, left, 2 * i), q);
            const __m512 b = _mm512_mul_ps(l3__two_rows(type, w, left, 2 * i + 1), q);
            four[i]        = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
        }
        L3__EACH(i, 2)
        two[i] = _mm512_add_ps(_mm512_shuffle_ps(four[2 * i], four[2 * i + 1], 0x44),
                               _mm512_shuffle_ps(four[2 * i], four[2 * i + 1], 0xee));
        const __m512 one =
            _mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xdd));
        /* Place 4 j + i holds row 4 i + j; the 0 turns a -0 into what lanes that began with 0 give. */
        const __m512 sums = _mm512_add_ps(_mm512_permutexvar_ps(to, one), _mm512_setzero_ps());
        if (left == 16) _mm512_storeu_ps(y + r, sums);
        else _mm512_mask_storeu_ps(y + r, l3__first16(left), sums);
    }
}

#endif

#if L3__W >= 8
/* Many rows: four at a time, a quarter of them apart, times n positions. Returns how many it did. */
L3__PART uint32_t L3__K(streams)(const int type, const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols,
                                 const float *x, size_t xs, const size_t n, float *y, size_t ys) {
    const uint32_t quarter = rows / 4;
    for (uint32_t r = 0; r < quarter; r++) {
        float four[16];
        L3__K(dots)(type, w + r * row_bytes, quarter * row_bytes, cols, x, xs, 4, n, L3__SPREAD, four, 4);
        L3__EACH(p, n) L3__EACH(i, 4) y[p * ys + i * quarter + r] = four[p * 4 + i];
    }
    return 4 * quarter;
}
#endif

L3__PART void L3__K(matmul)(const int type, const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols,
                            const float *x, size_t xs, uint32_t n, float *y, size_t ys) {
    uint32_t p = 0;
#if L3__W == 16 /* keys of small heads */
    if (cols == 8 && (type == L3_F32 || type == L3_F16 || type == L3_BF16) && row_bytes == l3_row_bytes(type, 8)) {
        for (; p < n; p++) l3__rows_of_8(type, w, rows, x + p * xs, y + p * ys);
        return;
    }
#endif
    for (; p + 4 <= n; p += 4) {
        const float *at = x + p * xs;
        float       *to = y + p * ys;
        uint32_t     r  = 0;
#if L3__W == 16 /* else there are not enough registers */
        if (rows > L3__TILE && type != L3_Q6_K) r = L3__K(streams)(type, w, row_bytes, rows, cols, at, xs, 4, to, ys);
#endif
        for (; r < rows; r++)
            L3__K(dots)(type, w + r * row_bytes, row_bytes, cols, at, xs, 1, 4, L3__ALONE, to + r, ys);
    }
    for (; p < n; p++) {
        const float *at = x + p * xs;
        float       *to = y + p * ys;
        uint32_t     r  = 0;
#if L3__W >= 8
        if (rows > L3__TILE && (type == L3_F32 || type == L3_F16 || type == L3_BF16)) /* else computing decides */
            r = L3__K(streams)(type, w, row_bytes, rows, cols, at, 0, 1, to, 0);
#endif
        for (; r + 4 <= rows; r += 4)
            L3__K(dots)(type, w + r * row_bytes, row_bytes, cols, at, xs, 4, 1, L3__SIDE_BY_SIDE, to + r, ys);
        for (; r < rows; r++)
            L3__K(dots)(type, w + r * row_bytes, row_bytes, cols, at, xs, 1, 1, L3__ALONE, to + r, ys);
    }
}

#define L3__MATMUL_OF(name, type)                                                                          \
    L3__KERNEL void L3__K(matmul_##name)(const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols, \
                                         const float *x, size_t xs, uint32_t n, float *y, size_t ys) {     \
        L3__K(matmul)(type, w, row_bytes, rows, cols, x, xs, n, y, ys);                                    \
    }
L3__MATMUL_OF(f32, L3_F32)
L3__MATMUL_OF(f16, L3_F16)
L3__MATMUL_OF(bf16, L3_BF16)
L3__MATMUL_OF(q8_0, L3_Q8_0)
L3__MATMUL_OF(q4_0, L3_Q4_0)
L3__MATMUL_OF(q6_k, L3_Q6_K)
#undef L3__MATMUL_OF

L3__KERNEL float L3__K(dot)(const float *a, const float *b, uint32_t n) {
    const void *row = a;
    float       y;
    L3__K(dots)(L3_F32, (const uint8_t *)row, 0, n, b, 0, 1, 1, L3__ALONE, &y, 0);
    return y;
}

L3__KERNEL void L3__K(rotate)(float *x, const float *cosine, const float *sine, uint32_t n) {
    uint32_t i = 0;
#if defined(L3__X86)
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    for (; i + 4 <= n; i += 4) {
        const __m256 c = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(cosine + i)), twice);
        const __m256 s = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(sine + i)), twice);
        const __m256 v = _mm256_loadu_ps(x + 2 * i), turned = _mm256_permute_ps(v, 0xb1);
        _mm256_storeu_ps(x + 2 * i, _mm256_addsub_ps(_mm256_mul_ps(v, c), _mm256_mul_ps(turned, s)));
    }
#endif
    l3__rotate(x + 2 * i, cosine + i, sine + i, n - i);
}

/* As l3_pack, but that what is no number may become another such. */
L3__KERNEL void L3__K(pack)(int type, const float *src, uint32_t n, void *row) {
    uint32_t i = 0;
    if (type == L3_F32) { /* levels have little-endian bytes */
        memcpy(row, src, n * sizeof *src);
        return;
    }
#if defined(L3__X86)
    for (; type == L3_F16 && i + 8 <= n; i += 8) {
        const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm_storeu_si128((__m128i *)row + i / 8, halves);
    }
#endif
    if (i < n) l3_pack(type, src + i, n - i, (uint8_t *)row + l3_row_bytes(type, i));
}

L3__KERNEL void L3__K(unpack)(int type, const uint8_t *row, uint32_t n, float *dst) {
    uint32_t i = 0;
    for (; i + 32 <= n; i += 32) {
        L3__VF v[2 * L3__PARTS];
        switch (type) {
        case L3_F32: L3__K(weights32)(L3_F32, row, i, v); break;
        case L3_F16: L3__K(weights32)(L3_F16, row, i, v); break;
        case L3_BF16: L3__K(weights32)(L3_BF16, row, i, v); break;
        case L3_Q8_0: L3__K(weights32)(L3_Q8_0, row, i, v); break;
        case L3_Q4_0: L3__K(weights32)(L3_Q4_0, row, i, v); break;
        default: L3__K(weights32)(L3_Q6_K, row, i, v); break;
        }
        L3__EACH(j, 2 * L3__PARTS) L3__K(store)(dst + i + j * L3__W, v[j]);
    }
    if (i < n) l3__unpacker(type)(row, i, n - i, dst + i);
}

L3__KERNEL void L3__K(add_scaled)(float *acc, const float *row, float weight, size_t n) {
    const L3__VF v = L3__K(all)(weight);
    size_t       i = 0;
    for (; i + L3__W <= n; i += L3__W)
        L3__K(store)(acc + i, L3__K(plus)(L3__K(load)(acc + i), L3__K(times)(v, L3__K(load)(row + i))));
    for (; i < n; i++) acc[i] += weight * row[i];
}

L3__KERNEL void L3__K(scale)(float *x, float factor, size_t n) {
    const L3__VF v = L3__K(all)(factor);
    size_t       i = 0;
    for (; i + L3__W <= n; i += L3__W) L3__K(store)(x + i, L3__K(times)(L3__K(load)(x + i), v));
    for (; i < n; i++) x[i] *= factor;
}

L3__KERNEL void L3__K(normalize)(const float *x, const float *weight, float scale, size_t n, float *y) {
    const L3__VF v = L3__K(all)(scale);
    size_t       i = 0;
    for (; i + L3__W <= n; i += L3__W) {
        const L3__VF t = L3__K(times)(L3__K(load)(x + i), v);
        L3__K(store)(y + i, weight ? L3__K(times)(t, L3__K(load)(weight + i)) : t);
    }
    for (; i < n; i++) y[i] = weight ? x[i] * scale * weight[i] : x[i] * scale;
}

/* l3__expf for every element, operation by operation. */
L3__PART L3__VF L3__K(exp)(L3__VF x) {
    const L3__VF big = L3__K(all)(12582912.0f), one = L3__K(all)(1.0f);
    const L3__VF shifted = L3__K(plus)(L3__K(times)(x, L3__K(all)(1.44269504088896341f)), big);
    const L3__VF n       = L3__K(plus)(shifted, L3__K(all)(-12582912.0f));
    const L3__VF r       = L3__K(plus)(L3__K(plus)(x, L3__K(times)(n, L3__K(all)(-0.693359375f))),
                                 L3__K(times)(n, L3__K(all)(2.12194440e-4f)));
    L3__VF       p       = L3__K(all)(1.9875691500e-4f);
    p                    = L3__K(plus)(L3__K(times)(p, r), L3__K(all)(1.3981999507e-3f));
    p                    = L3__K(plus)(L3__K(times)(p, r), L3__K(all)(8.3334519073e-3f));
    p                    = L3__K(plus)(L3__K(times)(p, r), L3__K(all)(4.1665795894e-2f));
    p                    = L3__K(plus)(L3__K(times)(p, r), L3__K(all)(1.6666665459e-1f));
    p                    = L3__K(plus)(L3__K(times)(p, r), L3__K(all)(5.0000001201e-1f));
    p                    = L3__K(plus)(L3__K(plus)(L3__K(times)(L3__K(times)(p, r), r), r), one);
    L3__VF y             = L3__K(scale2)(p, shifted);
    y                    = L3__K(above)(x, L3__K(all)(88.72f), L3__K(all)(l3__as_float(0x7f800000u)), y);
    y                    = L3__K(above)(x, L3__K(all)(-86.6f), y, L3__K(all)(0.0f));
    return L3__K(keep_nan)(y, x);
}

L3__KERNEL void L3__K(swiglu)(float *gate, const float *up, size_t n) {
    const L3__VF one = L3__K(all)(1.0f), zero = L3__K(all)(0.0f);
    size_t       i = 0;
    for (; i + L3__W <= n; i += L3__W) {
        const L3__VF g = L3__K(load)(gate + i);
        const L3__VF e = L3__K(exp)(L3__K(minus)(zero, g));
        L3__K(store)(gate + i, L3__K(times)(L3__K(over)(g, L3__K(plus)(one, e)), L3__K(load)(up + i)));
    }
    for (; i < n; i++) gate[i] = gate[i] / (1.0f + l3__expf(-gate[i])) * up[i];
}

/* Not `whole`: n <= 16, and there is nothing to compute for the second half. */
L3__PART float L3__K(softmax_some)(const bool whole, float *w, uint32_t n, float scale, float *peak) {
    static const float place[L3__TILE] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                          16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
    const size_t       some            = whole ? 2 * L3__PARTS : L3__PARTS;
    const L3__VF last = L3__K(all)((float)n - 1), zero = L3__K(all)(0.0f), none = L3__K(all)(l3__as_float(0xff800000u));
    L3__VF       score[2 * L3__PARTS], lane[L3__PARTS], high                    = L3__K(all)(*peak);
    L3__EACH(j, some) {
        score[j] = L3__K(times)(L3__K(load)(w + j * L3__W), L3__K(all)(scale));
        high     = L3__K(max)(L3__K(above)(L3__K(load)(place + j * L3__W), last, none, score[j]), high);
    }
    *peak = L3__K(highest)(high);
    high  = L3__K(all)(*peak);
    L3__EACH(j, some) {
        score[j] = L3__K(exp)(L3__K(minus)(score[j], high));
        score[j] = L3__K(above)(L3__K(load)(place + j * L3__W), last, zero, score[j]);
    }
    L3__EACH(j, 2 * L3__PARTS) L3__K(store)(w + j * L3__W, j < some ? score[j] : zero);
    L3__EACH(j, L3__PARTS) lane[j] = L3__K(plus)(score[j], whole ? score[L3__PARTS + j] : zero);
    return L3__K(sum)(lane);
}

L3__KERNEL float L3__K(softmax_tile)(float *w, uint32_t n, float scale, float *peak) {
    return n > L3__LANES ? L3__K(softmax_some)(true, w, n, scale, peak) : L3__K(softmax_some)(false, w, n, scale, peak);
}

/* 32 * blocks columns of what follows: enough sums side by side to hide how long an addition takes. `heads` is a constant. */
L3__PART void L3__K(weigh_blocks)(const int type, const uint8_t *rows, size_t row_bytes, const float *w, uint32_t n,
                                  float *out, uint32_t cols, uint32_t first, const size_t blocks, const size_t heads) {
    L3__VF sum[2][4][2 * L3__PARTS], v[2 * L3__PARTS];
    L3__EACH(h, heads) L3__EACH(b, blocks) L3__EACH(j, 2 * L3__PARTS) {
        sum[h][b][j] = L3__K(load)(out + h * cols + first + b * 32 + j * L3__W);
    }
    for (uint32_t t = 0; t < n; t++) {
        L3__EACH(b, blocks) {
            const uint8_t *row = rows + t * row_bytes;
            const uint32_t at  = first + (uint32_t)b * 32;
            if (heads == 1) {
                L3__K(weighted32)(type, row, at, L3__K(all)(w[t]), v);
                L3__EACH(j, 2 * L3__PARTS) sum[0][b][j] = L3__K(plus)(sum[0][b][j], v[j]);
                continue;
            }
            L3__K(weights32)(type, row, at, v);
            L3__EACH(h, heads) L3__EACH(j, 2 * L3__PARTS) {
                const L3__VF weight = L3__K(all)(w[h * L3__TILE + t]);
                sum[h][b][j]        = L3__K(plus)(sum[h][b][j], L3__K(times)(weight, v[j]));
            }
        }
    }
    L3__EACH(h, heads) L3__EACH(b, blocks) L3__EACH(j, 2 * L3__PARTS) {
        L3__K(store)(out + h * cols + first + b * 32 + j * L3__W, sum[h][b][j]);
    }
}

#if L3__W == 16
/* The same for values of small heads, half a vector: two heads, or one. */
L3__PART void l3__weigh_8(const int type, const uint8_t *rows, size_t row_bytes, const float *w, uint32_t n, float *out,
                          const size_t heads) {
    const float *second = w + (heads - 1) * L3__TILE;
    __m512       sum    = heads == 2 ? _mm512_loadu_ps(out) : _mm512_zextps256_ps512(_mm256_loadu_ps(out));
    for (uint32_t t = 0; t < n; t++, rows += row_bytes) {
        const void  *row    = rows;
        const __m256 v      = type == L3_F32   ? _mm256_loadu_ps((const float *)row)
                              : type == L3_F16 ? l3__from_f16_avx2(rows)
                                               : l3__from_bf16_avx2(rows);
        const __m512 both   = heads == 2 ? _mm512_broadcast_f32x8(v) : _mm512_zextps256_ps512(v);
        const __m512 weight = _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(w[t]), _mm512_set1_ps(second[t]));
        sum                 = _mm512_add_ps(sum, _mm512_mul_ps(weight, both));
    }
    if (heads == 2) _mm512_storeu_ps(out, sum);
    else _mm256_storeu_ps(out, _mm512_castps512_ps256(sum));
}
#endif

/* Columns first ... cols - 1, fewer than 32. */
L3__PART void L3__K(weigh_last)(const int type, const uint8_t *rows, size_t row_bytes, const float *w, uint32_t n,
                                float *out, uint32_t first, uint32_t cols) {
    if (type == L3_Q8_0) {
        float last[32] = {0};
        memcpy(last, out + first, (cols - first) * sizeof *last);
        for (uint32_t t = 0; t < n; t++) {
            L3__VF v[2 * L3__PARTS];
            L3__K(last_q8)(rows + t * row_bytes, first, cols - first, v);
            L3__EACH(j, 2 * L3__PARTS) {
                const L3__VF sum = L3__K(plus)(L3__K(load)(last + j * L3__W), L3__K(times)(L3__K(all)(w[t]), v[j]));
                L3__K(store)(last + j * L3__W, sum);
            }
        }
        memcpy(out + first, last, (cols - first) * sizeof *last);
        return;
    }
    for (uint32_t i = first; i < cols; i += L3__W) {
        const uint32_t left = cols - i;
        float          last[L3__W];
        L3__VF         sum = L3__K(load_part)(out + i, left);
        for (uint32_t t = 0; t < n; t++)
            sum = L3__K(plus)(sum, L3__K(times)(L3__K(all)(w[t]), L3__K(some)(type, rows + t * row_bytes, i, left)));
        L3__K(store)(last, sum);
        memcpy(out + i, last, (left < L3__W ? left : L3__W) * sizeof *last);
    }
}

/* out (heads, cols) += the sum of n rows weighted by w (heads, L3__TILE), for one head or two that share the rows. */
L3__PART void L3__K(weigh)(const int type, const uint8_t *rows, size_t row_bytes, const float *w, uint32_t n,
                           float *out, uint32_t cols, const size_t heads) {
    uint32_t i = 0;
#if L3__W == 16
    if (cols == 8 && type != L3_Q8_0) {
        l3__weigh_8(type, rows, row_bytes, w, n, out, heads);
        return;
    }
#endif
    if (L3__W == 16 && heads == 1)
        for (; i + 128 <= cols; i += 128) L3__K(weigh_blocks)(type, rows, row_bytes, w, n, out, cols, i, 4, heads);
    if (L3__W == 16 || (L3__W == 8 && heads == 1))
        for (; i + 64 <= cols; i += 64) L3__K(weigh_blocks)(type, rows, row_bytes, w, n, out, cols, i, 2, heads);
    for (; i + 32 <= cols; i += 32) L3__K(weigh_blocks)(type, rows, row_bytes, w, n, out, cols, i, 1, heads);
    for (size_t h = 0; i < cols && h < heads; h++)
        L3__K(weigh_last)(type, rows, row_bytes, w + h * L3__TILE, n, out + h * cols, i, cols);
}

L3__KERNEL void L3__K(weigh_rows)(int type, const uint8_t *rows, size_t row_bytes, const float *w, uint32_t n,
                                  float *out, uint32_t cols, uint32_t heads) {
    for (uint32_t some; heads > 0; heads -= some, w += some * L3__TILE, out += (size_t)some * cols) {
        some = heads >= 2 && type != L3_BF16 && type != L3_Q6_K ? 2 : 1;
        switch (type) {
        case L3_F32:
            if (some == 2) L3__K(weigh)(L3_F32, rows, row_bytes, w, n, out, cols, 2);
            else L3__K(weigh)(L3_F32, rows, row_bytes, w, n, out, cols, 1);
            break;
        case L3_F16:
            if (some == 2) L3__K(weigh)(L3_F16, rows, row_bytes, w, n, out, cols, 2);
            else L3__K(weigh)(L3_F16, rows, row_bytes, w, n, out, cols, 1);
            break;
        case L3_Q8_0:
            if (some == 2) L3__K(weigh)(L3_Q8_0, rows, row_bytes, w, n, out, cols, 2);
            else L3__K(weigh)(L3_Q8_0, rows, row_bytes, w, n, out, cols, 1);
            break;
        case L3_BF16: L3__K(weigh)(L3_BF16, rows, row_bytes, w, n, out, cols, 1); break;
        case L3_Q4_0:
            if (some == 2) L3__K(weigh)(L3_Q4_0, rows, row_bytes, w, n, out, cols, 2);
            else L3__K(weigh)(L3_Q4_0, rows, row_bytes, w, n, out, cols, 1);
            break;
        default: L3__K(weigh)(L3_Q6_K, rows, row_bytes, w, n, out, cols, 1); break;
        }
    }
}

/* ---- L3_FAST: panels and tiles ---- */

/* 32 elements of 16 rows from element k on, as floats. Rows may be one and the same. */
L3__PART void L3__K(panel32)(const int type, const uint8_t *const *rows, uint32_t k, float *panel) {
    for (uint32_t g = 0; g < 16; g += L3__W) {
        L3__VF v[L3__W][2 * L3__PARTS], t[L3__W];
        L3__EACH(r, L3__W) L3__K(weights32)(type, rows[g + r], k, v[r]);
        L3__EACH(j, 2 * L3__PARTS) {
            L3__EACH(r, L3__W) t[r] = v[r][j];
            L3__K(transpose)(t);
            L3__EACH(c, L3__W) L3__K(store)(panel + (j * L3__W + c) * 16 + g, t[c]);
        }
    }
}

/* Element k of row r lies at k * 16 + r of the panel. */
L3__KERNEL void L3__K(panel_f32)(int type, const uint8_t *const *rows, uint32_t first, uint32_t end, uint32_t cols,
                                 void *to) {
    float *panel = (float *)to;
    for (uint32_t k = first * 32; k < end * 32; k += 32, panel += 32 * 16) {
        if (cols - k < 32) l3__panel_tail(type, rows, k, cols - k, panel);
        else if (type == L3_F32) L3__K(panel32)(L3_F32, rows, k, panel);
        else if (type == L3_F16) L3__K(panel32)(L3_F16, rows, k, panel);
        else if (type == L3_BF16) L3__K(panel32)(L3_BF16, rows, k, panel);
        else if (type == L3_Q8_0) L3__K(panel32)(L3_Q8_0, rows, k, panel);
        else if (type == L3_Q4_0) L3__K(panel32)(L3_Q4_0, rows, k, panel);
        else L3__K(panel32)(L3_Q6_K, rows, k, panel);
    }
}

L3__KERNEL void L3__K(times_f32)(const void *w_panel, const void *x_tile, uint32_t blocks, bool first, float *c,
                                 size_t cs) {
    const float *panel = (const float *)w_panel, *x = (const float *)x_tile;
    L3__VF       sum[L3__P][L3__PARTS], w[L3__PARTS];
    L3__EACH(p, L3__P) {
        L3__EACH(j, L3__PARTS) sum[p][j] = first ? L3__K(all)(0.0f) : L3__K(load)(c + p * cs + j * L3__W);
    }
    for (uint32_t depth = blocks * 32; depth > 0; depth--, panel += 16, x += L3__P) {
        L3__EACH(j, L3__PARTS) w[j] = L3__K(load)(panel + j * L3__W);
        L3__EACH(p, L3__P) {
            const L3__VF v                   = L3__K(all)(x[p]);
            L3__EACH(j, L3__PARTS) sum[p][j] = L3__K(fma)(w[j], v, sum[p][j]);
        }
    }
    L3__EACH(p, L3__P) { L3__EACH(j, L3__PARTS) L3__K(store)(c + p * cs + j * L3__W, sum[p][j]); }
}

/* Tiles of L3__P positions: word k of position p lies at k * L3__P + p. */
L3__KERNEL void L3__K(pack_f32)(int type, const float *x, size_t xs, uint32_t n, uint32_t cols, unsigned char *dst) {
    const uint32_t depth = (cols + 31) / 32 * 32;
    void          *first = dst;
    float         *tile  = (float *)first;
    (void)type;
    for (uint32_t p0 = 0; p0 < n; p0 += L3__P, tile += (size_t)depth * L3__P)
        for (uint32_t k = 0; k < depth; k++)
            for (uint32_t p = 0; p < L3__P; p++)
                tile[(size_t)k * L3__P + p] = p0 + p < n && k < cols ? x[(p0 + p) * xs + k] : 0.0f;
}

static const l3__fast L3__K(fast_f32) = {L3__K(pack_f32), NULL, L3__K(panel_f32), L3__K(times_f32), L3__P, 32, 32};

#if defined(L3__PAIRS_TARGET)
/* The same in bf16, words being pairs of elements. */
#define L3__BF16_KERNEL static __attribute__((unused, L3__PAIRS_TARGET))
#define L3__BF16_PART   static inline __attribute__((always_inline, unused, L3__PAIRS_TARGET))

#if L3__W == 16
/* 32 floats, rounded to nearest even, as 16 words. */
L3__BF16_PART __m512 l3__pairs_avx512(__m512 low, __m512 high) {
    const __m512bh h = _mm512_cvtne2ps_pbh(high, low);
    __m512         words;
    memcpy(&words, &h, sizeof words);
    return words;
}
#endif

/* 32 elements of 16 rows from element k on, as 16 words of each. */
L3__BF16_PART void L3__K(panel32_bf16)(const int type, const uint8_t *const *rows, uint32_t k, float *panel) {
    for (uint32_t g = 0; g < 16; g += L3__W) {
        L3__VF v[2 * L3__PARTS], words[L3__PARTS][L3__W];
        L3__EACH(r, L3__W) {
            L3__K(weights32)(type, rows[g + r], k, v);
            L3__EACH(j, L3__PARTS) words[j][r] = L3__K(pairs)(v[2 * j], v[2 * j + 1]);
        }
        L3__EACH(j, L3__PARTS) {
            L3__K(transpose)(words[j]);
            L3__EACH(c, L3__W) L3__K(store)(panel + (j * L3__W + c) * 16 + g, words[j][c]);
        }
    }
}

/* The last n < 32 elements, with zeros behind them. */
L3__BF16_KERNEL void L3__K(panel_tail_bf16)(int type, const uint8_t *const *rows, uint32_t k, uint32_t n,
                                            float *panel) {
    float          x[16][32];
    const uint8_t *row[16];
    memset(x, 0, sizeof x);
    for (uint32_t r = 0; r < 16; r++) {
        const void *p = x[r];
        l3__unpacker(type)(rows[r], k, n, x[r]);
        row[r] = (const uint8_t *)p;
    }
    L3__K(panel32_bf16)(L3_F32, row, 0, panel);
}

/* Elements 2 k and 2 k + 1 of row r lie in word k * 16 + r of the panel. */
L3__BF16_KERNEL void L3__K(panel_bf16)(int type, const uint8_t *const *rows, uint32_t first, uint32_t end,
                                       uint32_t cols, void *to) {
    float *panel = (float *)to;
    for (uint32_t k = first * 32; k < end * 32; k += 32, panel += 16 * 16) {
        if (cols - k < 32) L3__K(panel_tail_bf16)(type, rows, k, cols - k, panel);
        else if (type == L3_F32) L3__K(panel32_bf16)(L3_F32, rows, k, panel);
        else if (type == L3_F16) L3__K(panel32_bf16)(L3_F16, rows, k, panel);
        else if (type == L3_BF16) L3__K(panel32_bf16)(L3_BF16, rows, k, panel);
        else if (type == L3_Q8_0) L3__K(panel32_bf16)(L3_Q8_0, rows, k, panel);
        else if (type == L3_Q4_0) L3__K(panel32_bf16)(L3_Q4_0, rows, k, panel);
        else L3__K(panel32_bf16)(L3_Q6_K, rows, k, panel);
    }
}

#if L3__W == 16
L3__BF16_KERNEL void l3__times_bf16(const void *panel, const void *x, uint32_t blocks, bool first, float *c,
                                    size_t cs) {
    const unsigned char *w = (const unsigned char *)panel, *a = (const unsigned char *)x;
    __m512               sum[L3__P];
    L3__EACH(p, L3__P) sum[p] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(c + p * cs);
    for (uint32_t depth = blocks * 16; depth > 0; depth--, w += 64, a += 4 * L3__P) {
        __m512bh pairs, all;
        memcpy(&pairs, w, 64);
        L3__EACH(p, L3__P) {
            const __m512i word = l3__word_avx512(a + 4 * p);
            memcpy(&all, &word, 64);
            sum[p] = _mm512_dpbf16_ps(sum[p], pairs, all);
        }
    }
    L3__EACH(p, L3__P) _mm512_storeu_ps(c + p * cs, sum[p]);
}

L3__BF16_KERNEL void l3__pack_bf16(int type, const float *x, size_t xs, uint32_t n, uint32_t cols, unsigned char *dst) {
    const uint32_t depth = (cols + 31) / 32 * 16;
    (void)type;
    for (uint32_t p0 = 0; p0 < n; p0 += L3__P, dst += (size_t)depth * L3__P * 4) {
        memset(dst, 0, (size_t)depth * L3__P * 4);
        for (uint32_t p = 0; p < L3__P && p0 + p < n; p++)
            for (uint32_t k = 0; k < cols; k += 32) {
                const uint32_t left  = cols - k < 32 ? cols - k : 32;
                float          v[32] = {0}, words[16];
                memcpy(v, x + (p0 + p) * xs + k, left * sizeof *v);
                _mm512_storeu_ps(words, l3__pairs_avx512(_mm512_loadu_ps(v), _mm512_loadu_ps(v + 16)));
                L3__EACH(i, 16) memcpy(dst + ((k / 2 + i) * L3__P + p) * 4, words + i, 4);
            }
    }
}

static const l3__fast l3__fast_bf16 = {l3__pack_bf16, NULL, l3__panel_bf16_avx512, l3__times_bf16, L3__P, 16, 16};
#endif

#if defined(L3__AMX_DECODE)
/* ---- AMX: a tile of 16 positions times a tile of 16 rows of weights, 32 elements deep, by one instruction ---- */

#define L3__AMX_KERNEL static __attribute__((unused, L3__AMX_TARGET))
#define L3__AMX_PART   static inline __attribute__((always_inline, unused, L3__AMX_TARGET))

typedef struct l3__amx_config {
    uint8_t  palette, start_row, reserved[14];
    uint16_t row_bytes[16]; /* of tiles 0 ... 7; the others are for palettes to come */
    uint8_t  rows[16];
} l3__amx_config;
static const l3__amx_config l3__amx_tiles = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

#define L3__AMX_BYTES 1024u /* of a tile */
#define L3__AMX_DEEP  32u /* blocks of 32 elements of 32 rows of weights at a time: 64 KB, which stay in the L2 cache */
#define L3__AMX_MOST  128u /* positions whose sums with 32 rows are kept meanwhile: 16 KB */

/* 16 positions after another 16, each block of 32 elements a tile as panel_bf16 makes it: word k of a position in its row k. */
L3__BF16_KERNEL void l3__pack_amx(int type, const float *x, size_t xs, uint32_t n, uint32_t cols, unsigned char *dst) {
    const uint32_t blocks = (cols + 31) / 32;
    const void    *first  = x;
    (void)type;
    for (uint32_t p = 0; p < n; p += 16, dst += (size_t)blocks * L3__AMX_BYTES) {
        const uint8_t *rows[16];
        l3__panel_rows(rows, (const uint8_t *)first + p * xs * sizeof *x, xs * sizeof *x, n - p);
        L3__K(panel_bf16)(L3_F32, rows, 0, blocks, cols, dst);
    }
}

/* 32 weights from element k on, as a row of a tile. */
L3__BF16_PART void l3__amx_block(const int type, const uint8_t *row, uint32_t k, unsigned char *to) {
    L3__VF v[2 * L3__PARTS];
    void  *words = to;
    L3__K(weights32)(type, row, k, v);
    L3__EACH(j, L3__PARTS) L3__K(store)((float *)words + j * L3__W, L3__K(pairs)(v[2 * j], v[2 * j + 1]));
}

/* Blocks first ... end - 1 of a row of weights, each as a row of a tile of its own. */
L3__BF16_PART void l3__amx_row(const int type, const uint8_t *row, uint32_t first, uint32_t end, uint32_t cols,
                               unsigned char *to) {
    const size_t bytes = type == L3_Q6_K ? 0 : type == L3_Q8_0 ? 34 : type == L3_Q4_0 ? 18 : 64; /* Q6_K's are of 256 */
    const uint32_t whole = cols / 32 < end ? cols / 32 : end;
    const uint8_t *at    = row + first * bytes;
    for (; first < whole; first++, at += bytes, to += L3__AMX_BYTES)
        l3__amx_block(type, at, bytes ? 0 : first * 32, to);
    if (first < end) {
        float       last[32] = {0};
        const void *values   = last;
        l3__unpacker(type)(row, first * 32, cols - first * 32, last);
        l3__amx_block(L3_F32, (const uint8_t *)values, 0, to);
    }
}

/* The same of 16 rows. Rows may be one and the same. */
L3__BF16_KERNEL void l3__amx_panel(int type, const uint8_t *const *rows, uint32_t first, uint32_t end, uint32_t cols,
                                   unsigned char *panel) {
    for (uint32_t r = 0; r < 16; r++, panel += 64) {
        if (type == L3_F16) l3__amx_row(L3_F16, rows[r], first, end, cols, panel);
        else if (type == L3_BF16) l3__amx_row(L3_BF16, rows[r], first, end, cols, panel);
        else if (type == L3_Q8_0) l3__amx_row(L3_Q8_0, rows[r], first, end, cols, panel);
        else if (type == L3_Q4_0) l3__amx_row(L3_Q4_0, rows[r], first, end, cols, panel);
        else l3__amx_row(L3_Q6_K, rows[r], first, end, cols, panel);
    }
}

/* A product of up to 32 rows and 32 positions, `blocks` blocks of 32 elements deep. */
typedef struct l3__amx_product {
    const unsigned char *panel, *x;          /* of the first 16 rows, the first 16 positions */
    size_t               next_panel, next_x; /* to the other 16, in bytes */
    uint32_t             blocks;
    float               *sums;        /* (4, 16 rows, 16 positions) */
    bool                 first, last; /* sums begin at 0; they are complete then */
    const float         *y;           /* where they will go, with stride ys in floats */
    size_t               ys;
    const uint8_t       *ahead; /* weights that are wanted later: so many cache lines for each block */
    size_t               lines;
} l3__amx_product;

/* 16 or, if `wide`, 32 rows; 16 or, if `tall`, 32 positions. Tiles 0 ... 3 are the sums, 4 and 5 positions, 6 and 7 weights.
 * Intel's figures: a product takes 16 cycles and is there after 52, a tile is loaded in 8; measured where tiles lie in the L2
 * cache, as here: in 22. Two by two loads one tile for a product, one by six 1.17. First all loads, then all products: a fifth
 * faster than mixed where another thread shares the core, 2% slower where none does. */
L3__AMX_PART void l3__times_amx_of(const bool tall, const bool wide, const l3__amx_product *m) {
    const unsigned char *panel = m->panel, *x = m->x;
    const uint8_t       *ahead = m->ahead;
    const float         *y     = m->y;
    __asm__ volatile("" : : "r"(panel), "r"(x) : "memory"); /* gcc's intrinsics do not say that they read */
    if (m->first) {
        L3__AMX_ZERO(0);
        if (wide) L3__AMX_ZERO(1);
        if (tall) L3__AMX_ZERO(2);
        if (tall && wide) L3__AMX_ZERO(3);
    } else {
        L3__AMX_LOAD(0, m->sums, 64);
        if (wide) L3__AMX_LOAD(1, m->sums + 256, 64);
        if (tall) L3__AMX_LOAD(2, m->sums + 512, 64);
        if (tall && wide) L3__AMX_LOAD(3, m->sums + 768, 64);
    }
    for (uint32_t b = 0; b < m->blocks;
         b++, panel += L3__AMX_BYTES, x += L3__AMX_BYTES, ahead += m->lines * 64, y += m->ys) {
        L3__AMX_LOAD(6, panel, 64);
        L3__AMX_LOAD(4, x, 64);
        if (wide) L3__AMX_LOAD(7, panel + m->next_panel, 64);
        if (tall) L3__AMX_LOAD(5, x + m->next_x, 64);
        for (size_t i = 0; i < m->lines; i++) __builtin_prefetch(ahead + 64 * i, 0, 2);
        if (m->last) __builtin_prefetch(y, 1), __builtin_prefetch(y + 16, 1); /* 32 blocks: those of 32 positions */
        L3__AMX_DOT(0, 6, 4);
        if (tall) L3__AMX_DOT(2, 6, 5);
        if (wide) L3__AMX_DOT(1, 7, 4);
        if (tall && wide) L3__AMX_DOT(3, 7, 5);
    }
    L3__AMX_STORE(0, m->sums, 64);
    if (wide) L3__AMX_STORE(1, m->sums + 256, 64);
    if (tall) L3__AMX_STORE(2, m->sums + 512, 64);
    if (tall && wide) L3__AMX_STORE(3, m->sums + 768, 64);
    __asm__ volatile("" : : "r"(m->sums) : "memory");
}

L3__AMX_KERNEL void l3__times_amx(bool tall, bool wide, const l3__amx_product *m) {
    if (tall && wide) l3__times_amx_of(true, true, m);
    else if (tall) l3__times_amx_of(true, false, m);
    else if (wide) l3__times_amx_of(false, true, m);
    else l3__times_amx_of(false, false, m);
}

/* y (n, rows) = the sums (16 rows, 16 positions), n and rows being 16 at most. */
L3__BF16_PART void l3__amx_out(const float *sums, float *y, size_t ys, uint32_t rows, uint32_t n) {
    for (uint32_t g = 0; g < rows; g += L3__W) {
        const uint32_t left = rows - g < L3__W ? rows - g : L3__W;
        for (uint32_t p = 0; p < n; p += L3__W) {
            L3__VF v[L3__W];
            L3__EACH(r, L3__W) v[r] = L3__K(load)(sums + (g + r) * 16 + p);
            L3__K(transpose)(v);
            L3__EACH(c, L3__W) {
                float *to = y + (p + c) * ys + g, last[L3__W];
                if (p + c >= n) continue;
                L3__K(store)(left < L3__W ? last : to, v[c]);
                if (left < L3__W) memcpy(to, last, left * sizeof *to);
            }
        }
    }
}

/* The same for up to 32 rows and 32 positions. */
L3__AMX_KERNEL void l3__amx_out4(const float *sums, float *y, size_t ys, uint32_t rows, uint32_t n) {
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t p = i / 2 * 16, r = i % 2 * 16;
        if (p < n && r < rows)
            l3__amx_out(sums + i * 256, y + p * ys + r, ys, rows - r < 16 ? rows - r : 16, n - p < 16 ? n - p : 16);
    }
}

/* Y = X W^T by 32 rows. Weights are the first operand of each product, whose rows are rows of the tile: they need no
 * transposing, but the sums do, which are fewer. A thread's tiles are configured here and nowhere longer: while they are, each
 * switch to another thread saves 8 KB. */
L3__AMX_KERNEL void l3__amx(int type, const uint8_t *w, size_t row_bytes, uint32_t rows, uint32_t cols,
                            const unsigned char *x, uint32_t n, float *y, size_t ys) {
    L3__ALIGN64 unsigned char panel[2 * L3__AMX_DEEP * L3__AMX_BYTES];
    L3__ALIGN64 float         sums[L3__AMX_MOST * 32];
    const uint32_t            blocks = (cols + 31) / 32, times = (blocks + L3__AMX_DEEP - 1) / L3__AMX_DEEP;
    const uint32_t            most = (blocks + times - 1) / times;
    const size_t    steps = (size_t)blocks * ((n + 31) / 32); /* the next 32 rows come into the L2 cache meanwhile */
    l3__amx_product m     = {panel, x, 0, (size_t)blocks * L3__AMX_BYTES, 0, sums, true, true, y, ys, w, 0};
    m.lines               = (32 * row_bytes / 64 + steps - 1) / steps;
    L3__AMX_CONFIGURE(&l3__amx_tiles);
    for (uint32_t r = 0; r < rows; r += 32) {
        m.ahead = w + (r + 32) * row_bytes;
        for (uint32_t p0 = 0; p0 < n; p0 += L3__AMX_MOST) {
            const uint32_t end = n - p0 < L3__AMX_MOST ? n : p0 + L3__AMX_MOST;
            for (uint32_t b = 0; b < blocks; b += most) {
                m.blocks     = blocks - b < most ? blocks - b : most;
                m.next_panel = (size_t)m.blocks * L3__AMX_BYTES;
                m.first = b == 0, m.last = b + m.blocks == blocks;
                for (uint32_t j = 0; j < 32 && r + j < rows; j += 16) {
                    const uint8_t *row[16];
                    l3__panel_rows(row, w + (r + j) * row_bytes, row_bytes, rows - r - j);
                    l3__amx_panel(type, row, b, b + m.blocks, cols, panel + j / 16 * m.next_panel);
                }
                for (uint32_t p = p0; p < end; p += 32, m.ahead += m.lines * m.blocks * 64) {
                    m.sums = sums + (p - p0) * 32;
                    m.x    = x + (size_t)p * blocks * 64 + b * L3__AMX_BYTES;
                    m.y    = y + p * ys + r;
                    l3__times_amx(n - p > 16, rows - r > 16, &m);
                    if (m.last) l3__amx_out4(m.sums, y + p * ys + r, ys, rows - r, n - p);
                }
            }
        }
    }
    L3__AMX_RELEASE();
}

static const l3__fast l3__fast_amx = {l3__pack_amx, l3__amx, NULL, NULL, 16, 16, 0};
#undef L3__AMX_KERNEL
#undef L3__AMX_PART
#endif
#undef L3__BF16_KERNEL
#undef L3__BF16_PART
#endif

#define L3__FLOAT_KERNELS                                                                                     \
    L3__K(dot), L3__K(unpack), L3__K(pack), L3__K(add_scaled), L3__K(scale), L3__K(normalize), L3__K(swiglu), \
        L3__K(rotate), L3__K(softmax_tile), L3__K(weigh_rows), {                                              \
        L3__K(matmul_f32), L3__K(matmul_f16), L3__K(matmul_bf16), L3__K(matmul_q8_0), L3__K(matmul_q4_0),     \
            L3__K(matmul_q6_k)                                                                                \
    }
L3__TABLES
#if defined(L3__AMX_DECODE)
static const l3__kernels l3__amx_kernels = {
    L3_LEVEL_AMX,
    128,
    L3__FLOAT_KERNELS,
    L3__AMX_DECODE,
    {&L3__K(fast_f32), &l3__fast_amx, &l3__fast_amx, &l3__fast_amx, &l3__fast_amx, &l3__fast_amx}};
#endif
#undef L3__FLOAT_KERNELS
#undef L3__JOIN2
#undef L3__JOIN
#undef L3__K
#undef L3__PARTS
#undef L3__KERNEL
#undef L3__PART
#undef L3__VF
#endif /* L3__ISA */

/* This file is free and unencumbered: public domain where that exists (unlicense.org), else under MIT-0:
 * Copyright (c) 2026 the l3 authors. Permission is hereby granted, free of charge, to any person obtaining a copy of this
 * software and associated documentation files, to deal in the software without restriction, including without limitation
 * the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of it. The software is
 * provided "as is", without warranty of any kind, express or implied. */
