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
 *     L3_NO_ERROR_TEXT   leaves out the sentences; codes and offsets stay
 *     L3_NO_ALLOCATOR    leaves out the builder of allocations (l3_alloc_*)
 *     L3_THREADS         gives l3_pool, a small pthread pool (needs gcc or clang atomics)
 *     L3_ALIGN           alignment of blocks given to the library, a power of two >= 8 (64; 16 with L3_NO_STDIO)
 *     L3_MAX_ALIGN       largest l3_source.align; three times this is taken from the stack while a file is opened, six
 *                        times while a snapshot is loaded (4096; 512 with L3_NO_STDIO)
 *
 * MEMORY   The library never allocates. A call ending in _size tells how many bytes an object needs, the call ending
 *          in _init takes them; the size is exact. No globals. No recursion.
 * ERRORS   Every call that can fail returns L3_OK (0) or a negative l3_status and, where err is not NULL, fills *err.
 * THREADS  Objects that calls take as const may be used by any number of threads at once; l3_work by one at a time.
 * NUMBERS  For one build, results are the same bits however the bytes arrive (mapped, read, any window, alignment,
 *          cache, threads). Built without fast-math and contraction (gcc: -ffp-contract=off), with floats computed as
 *          floats (FLT_EVAL_METHOD 0: on 32-bit x86 -msse2 -mfpmath=sse, on s390x -std=gnu99 instead of c99), they are
 *          the same on every IEEE-754 machine: exp, sin, cos, pow and sqrt are ours.
 *
 * Sections: >>status >>source >>types >>jobs >>lookup >>allocation, then the implementation:
 *           >>base >>math >>rows >>matmul >>threads >>files >>cache >>chunks >>forward >>lzw
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
#define L3_MAX_ALIGN 512
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
    X(L3_ERR_NUMBER, -11, "the logits hold no finite maximum")

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
    intptr_t    view;    /* mapping object on Windows */
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
    int32_t          type; /* l3_type */
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
    L3_FAST, /* whatever is fastest; today the same code as L3_EXACT                                            */
    L3_EXACT /* every reduction in a fixed order: also the same bits however a text is split into calls         */
} l3_mode;

/* How layers are run. All zero is a good choice; NULL means the same. */
typedef struct l3_work_config {
    l3_mode   mode;
    uint32_t  batch;  /* positions computed at once; 0: 32. Memory grows with it, weights are read once for all  */
    size_t    window; /* bytes through which weights and rows without a mapping are read; 0: the larger of 64 KiB and
                         the least that works. With start/wait there are two. Without effect when all is mapped */
    size_t    cache;  /* bytes for rows of tokens read before; 0: none. Without effect when rows are mapped     */
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
    uint64_t cache_misfits;     /* row blocks that found no room in a cache that is too small for them     */
    uint64_t weight_bytes_read; /* bytes read for everything else; 0 when mapped                           */
} l3_stats;

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
#include <string.h>
#ifndef L3_NO_STDIO
#if defined(_WIN32)
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
#else
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif
#endif
#ifdef L3_THREADS
#include <pthread.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Internal functions are static; some serve only l3_model.h, so that a file with this header alone leaves them unused. */
#define L3__FN static L3__UNUSED
#if defined(__GNUC__)
#define L3__INLINE static inline __attribute__((always_inline))
#else
#define L3__INLINE static inline
#endif

/* >>base ---------------------------------------------------------------------------------------------------------- */

L3_API uint32_t l3_version(void) { return L3_VERSION; }

L3_API const char *l3_status_text(int status) {
    switch (status) {
#define L3__TEXT(name, code, text) \
    case code: return text;
        L3_STATUS_LIST(L3__TEXT)
#undef L3__TEXT
    default: return "unknown status";
    }
}

#ifndef L3_NO_ERROR_TEXT
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
#endif

/* Fills *err and returns code. format knows %s, %u (uint32_t) and %U (uint64_t). */
L3__FN int l3__fail(l3_error *err, int code, uint64_t offset, const char *format, ...) {
    if (!err) return code;
    err->code    = code;
    err->io      = 0;
    err->offset  = offset;
    err->text[0] = '\0';
#ifndef L3_NO_ERROR_TEXT
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
#else
    (void)format;
#endif
    return code;
}

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

/* Carves a caller's block. With base NULL it only counts: every _size call is its _init call's layout, run dry. */
typedef struct l3__arena {
    unsigned char *base;
    uint64_t       used, peak;
    bool           overflow;
} l3__arena;

L3__FN void *l3__take(l3__arena *a, uint64_t count, uint64_t size) {
    uint64_t       bytes, end;
    const uint64_t start = (a->used + (L3_ALIGN - 1)) & ~(uint64_t)(L3_ALIGN - 1);
    if (!l3__mul(count, size, &bytes) || !l3__add(start, bytes, &end) || end > (UINT64_MAX >> 1)) {
        a->overflow = true;
        return NULL;
    }
    a->used = end;
    if (a->peak < end) a->peak = end;
    return a->base ? a->base + start : NULL;
}

/* count times size bytes that start on a multiple of align, which may be more than L3_ALIGN: takes the worst case. */
L3__FN unsigned char *l3__take_aligned(l3__arena *a, uint64_t bytes, uint32_t align) {
    const uint32_t slack = bytes && align > L3_ALIGN ? align - L3_ALIGN : 0;
    unsigned char *p     = (unsigned char *)l3__take(a, bytes + slack, 1);
    if (p && slack) p += (align - (uint32_t)((uintptr_t)p % align)) % align;
    return p;
}

/* Ends a layout: the exact size, or 0 if it does not fit this machine. */
L3__FN size_t l3__arena_size(const l3__arena *a) {
    return a->overflow || a->peak > (uint64_t)(SIZE_MAX / 2) ? 0 : (size_t)a->peak;
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

/* A reader over a buffer on the stack, for the calls that have no block yet. */
typedef struct l3__stack_buffer {
    unsigned char bytes[3 * L3_MAX_ALIGN]; /* two aligned blocks wherever the stack put it */
} l3__stack_buffer;

L3__FN l3__reader l3__stack_reader(const l3_source *s, l3__stack_buffer *b) {
    const uint32_t align = l3__align_of(s);
    l3__reader     r;
    r.source   = s;
    r.buffer   = b->bytes + (align - (uint32_t)((uintptr_t)b->bytes % align)) % align;
    r.capacity = 2 * L3_MAX_ALIGN;
    r.at       = 0;
    r.have     = 0;
    return r;
}

L3_API uint32_t l3_crc32(uint32_t crc, const void *bytes, size_t n) {
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
    const uint8_t *p = (const uint8_t *)bytes;
    crc              = ~crc;
    while (n--) crc = table[(crc ^ *p++) & 0xff] ^ crc >> 8;
    return ~crc;
}

/* >>math ---------------------------------------------------------------------------------------------------------- */

/* Our own elementary functions: only IEEE operations, so that every machine gives the same bits. */

/* e^x: Cody-Waite reduction by ln 2, Cephes' polynomial (expf.c, S. Moshier). About 1 ulp; results below 2^-125 are 0. */
L3__INLINE float l3__expf(float x) {
    if (!(x > -86.6f)) return x != x ? x : 0.0f;
    if (x > 88.72f) return l3__as_float(0x7f800000u);
    const float   shifted = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
    const int32_t k       = (int32_t)l3__as_bits(shifted) - 0x4b400000;
    const float   n       = shifted - 12582912.0f;
    const float   r       = x - n * 0.693359375f + n * 2.12194440e-4f;
    float         p       = 1.9875691500e-4f;
    p                     = p * r + 1.3981999507e-3f;
    p                     = p * r + 8.3334519073e-3f;
    p                     = p * r + 4.1665795894e-2f;
    p                     = p * r + 1.6666665459e-1f;
    p                     = p * r + 5.0000001201e-1f;
    p                     = p * r * r + r + 1.0f;
    const int32_t half    = k / 2; /* two factors, as 2^128 is no float */
    return p * l3__as_float((uint32_t)(half + 127) << 23) * l3__as_float((uint32_t)(k - half + 127) << 23);
}

/* Square root, correctly rounded for floats: Newton in double from a guess that halves the exponent. */
L3__FN float l3__sqrtf(float x) {
    if (!(x > 0.0f) || x > 3.4028235e38f) return x == 0.0f || x > 0.0f ? x : l3__as_float(0x7fc00000u);
    const double d = (double)x;
    uint64_t     bits;
    double       y;
    memcpy(&bits, &d, 8);
    bits = (bits >> 1) + ((uint64_t)0x3ff00000 << 31);
    memcpy(&y, &bits, 8);
    for (int i = 0; i < 5; i++) y = 0.5 * (y + d / y);
    return (float)y;
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

/* Sine and cosine of an angle in radians, 0 <= a < 2^31: reduction by pi/2 in two parts (fdlibm's), Taylor series. */
L3__FN void l3__sincos(double a, float *sine, float *cosine) {
    const int64_t k = (int64_t)(a * 6.36619772367581382433e-01 + 0.5);
    const double  r = (a - (double)k * 1.57079632673412561417e+00) - (double)k * 6.07710050650619224932e-11, r2 = r * r;
    double        s = 1, c = 1;
    for (int i = 15; i > 1; i -= 2) s = 1 - s * r2 / (i * (i - 1));
    for (int i = 16; i > 1; i -= 2) c = 1 - c * r2 / (i * (i - 1));
    s *= r;
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
    float       all[32];
    for (int i = 0; i < 16; i++) all[i] = scale * (float)((row[2 + i] & 15) - 8);
    for (int i = 0; i < 16; i++) all[16 + i] = scale * (float)((row[2 + i] >> 4) - 8);
    memcpy(dst, all, n * sizeof *dst);
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
    case L3_F16: return l3__unpack_f16;
    case L3_BF16: return l3__unpack_bf16;
    case L3_Q8_0: return l3__unpack_q8_0;
    case L3_Q4_0: return l3__unpack_q4_0;
    case L3_Q6_K: return l3__unpack_q6_k;
    default: return NULL;
    }
}

L3_API void l3_unpack(int type, const void *row, uint32_t first, uint32_t n, float *dst) {
    const l3__unpack_fn unpack = l3__unpacker(type);
    for (uint32_t i = 0; unpack && i < n; i += 32)
        unpack((const uint8_t *)row, first + i, n - i < 32 ? n - i : 32, dst + i);
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
L3__FN void l3__pack_q4_0(const float *src, uint8_t *dst) {
    float peak = 0;
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

L3_API void l3_pack(int type, const float *src, uint32_t n, void *row) {
    uint8_t *p = (uint8_t *)row;
    for (uint32_t i = 0; i < n; i += (type == L3_Q8_0 || type == L3_Q4_0) ? 32 : 1) {
        switch (type) {
        case L3_F32: l3__put_le32(p + (size_t)i * 4, l3__as_bits(src[i])); break;
        case L3_F16: l3__put_le16(p + (size_t)i * 2, l3__to_f16(src[i])); break;
        case L3_BF16: l3__put_le16(p + (size_t)i * 2, l3__to_bf16(src[i])); break;
        case L3_Q8_0: l3__pack_q8_0(src + i, n - i < 32 ? n - i : 32, p + (size_t)(i / 32) * 34); break;
        case L3_Q4_0: l3__pack_q4_0(src + i, p + (size_t)(i / 32) * 18); break;
        default: return;
        }
    }
}

L3_API void l3_pack_i32(const int32_t *src, uint32_t n, void *row) {
    for (uint32_t i = 0; i < n; i++) l3__put_le32((uint8_t *)row + (size_t)i * 4, (uint32_t)src[i]);
}

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

/* gcc keeps lanes in registers only where it sees through the loops over them: twice the speed at -O2. */
#if defined(__GNUC__) && !defined(__clang__)
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
    L3__UNROLL
    for (int i = 0; i < L3__LANES; i++) lane[i] += a[i] * b[i];
    L3__UNROLL
    for (int i = 0; i < L3__LANES; i++) lane[i] += a[i + L3__LANES] * b[i + L3__LANES];
}

/* The last n < 32 elements. */
L3__INLINE void l3__lanes_add(float *lane, const float *a, const float *b, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) lane[i % L3__LANES] += a[i] * b[i];
}

L3__FN float l3__dot(const float *a, const float *b, uint32_t n) {
    float    lane[L3__LANES] = {0};
    uint32_t i               = 0;
    for (; i + 32 <= n; i += 32) l3__lanes_add32(lane, a + i, b + i);
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
    float    lane[4][L3__LANES], w[32];
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
        for (; p + 4 <= n; p += 4) l3__dot_row(unpack, row, cols, x + p * xs, xs, 4, y + p * ys + r, ys);
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

L3__FN l3__matmul_fn l3__matmul_for(int type) {
    switch (type) {
    case L3_F32: return l3__matmul_f32;
    case L3_F16: return l3__matmul_f16;
    case L3_BF16: return l3__matmul_bf16;
    case L3_Q8_0: return l3__matmul_q8_0;
    case L3_Q4_0: return l3__matmul_q4_0;
    case L3_Q6_K: return l3__matmul_q6_k;
    default: return NULL;
    }
}

/* acc += weight * row, element by element. */
L3__FN void l3__add_scaled(float *acc, const float *row, float weight, size_t n) {
    for (size_t i = 0; i < n; i++) acc[i] += weight * row[i];
}

/* 1 / rms(x): the scale of RMSNorm (Zhang, Sennrich 2019). */
L3__FN float l3__rms_scale(const float *x, uint32_t n, float epsilon) {
    return 1.0f / l3__sqrtf(l3__dot(x, x, n) / (float)n + epsilon);
}

/* y = rms(x) * weight; weight NULL means ones; y may be x. */
L3__FN void l3__rms_norm(const float *x, const float *weight, uint32_t n, float epsilon, float *y) {
    const float scale = l3__rms_scale(x, n, epsilon);
    for (uint32_t i = 0; i < n; i++) y[i] = weight ? x[i] * scale * weight[i] : x[i] * scale;
}

L3__FN void l3__center(float *x, uint32_t n) {
    float sum[L3__LANES] = {0};
    for (uint32_t i = 0; i < n; i++) sum[i % L3__LANES] += x[i];
    const float mean = l3__lanes_sum(sum) / (float)n;
    for (uint32_t i = 0; i < n; i++) x[i] -= mean;
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
/* Workers join a run while it is open, take pieces from `next`, and leave; a run ends when it is closed and all have
 * left. A worker that the system wakes late finds the run closed and costs nothing. */
struct l3_pool {
    pthread_mutex_t lock;
    pthread_cond_t  wake, left;
    pthread_t       threads[L3_MAX_THREADS];
    uint32_t        workers;
    uint32_t        run;          /* number of the current run, atomic */
    uint32_t        next, inside; /* atomic */
    bool            open, stop;
    uint32_t        n;
    void (*piece)(void *arg, uint32_t i);
    void *arg;
};

/* How often a waiting thread looks before it sleeps: some 20 microseconds. */
#define L3__SPINS 2000

L3__FN void l3__relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

L3__FN void l3__pool_work(l3_pool *p) {
    uint32_t i;
    while ((i = __atomic_fetch_add(&p->next, 1, __ATOMIC_RELAXED)) < p->n) p->piece(p->arg, i);
}

L3__FN void *l3__pool_thread(void *arg) {
    l3_pool *p    = (l3_pool *)arg;
    uint32_t seen = 0;
    for (;;) {
        for (int i = 0; i < L3__SPINS && __atomic_load_n(&p->run, __ATOMIC_ACQUIRE) == seen; i++) l3__relax();
        pthread_mutex_lock(&p->lock);
        while (p->run == seen && !p->stop) pthread_cond_wait(&p->wake, &p->lock);
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
    for (int i = 0; i < L3__SPINS && __atomic_load_n(&p->inside, __ATOMIC_ACQUIRE) != 0; i++) l3__relax();
    pthread_mutex_lock(&p->lock);
    p->open = false;
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
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (uint32_t i = 0; i < p->workers; i++) pthread_join(p->threads[i], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->left);
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
    uint8_t *p = (uint8_t *)dst;
    while (n) {
        const size_t want = n > 0x40000000 ? 0x40000000 : n;
#ifdef L3__HAVE_PREAD
        const ssize_t got = pread((int)f->handle, p, want, (off_t)off);
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
    const l3_file *f = (const l3_file *)user;
    const uintptr_t p = (uintptr_t)f->mapping + (uintptr_t)off;
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
    f->handle = fd;
    f->view = (intptr_t)sysconf(_SC_PAGESIZE);
    f->source.user = f;
    f->source.size = (uint64_t)st.st_size;
    f->source.read = l3__read_file;
#ifdef POSIX_FADV_WILLNEED
    f->source.hint = l3__hint_read;
#endif
    if (mode == L3_FILE_MAP && f->source.size <= SIZE_MAX) {
        void *p = mmap(NULL, (size_t)f->source.size, PROT_READ, MAP_SHARED, fd, 0);
        if (p != MAP_FAILED) {
            f->mapping = p;
            f->source.map = l3__map_file;
#ifdef POSIX_MADV_WILLNEED
            f->source.hint = l3__hint_map;
#endif
        }
    }
    return L3_OK;
}

L3_API void l3_source_close_file(l3_file *f) {
    if (f->mapping) {
        void *p;
        memcpy(&p, &f->mapping, sizeof p);
        munmap(p, (size_t)f->source.size);
    }
    close((int)f->handle);
    memset(f, 0, sizeof *f);
}
#endif
#endif /* L3_NO_STDIO */

/* >>cache --------------------------------------------------------------------------------------------------------- */

/* Row blocks of tokens read before. Entries lie one after another in a ring and are evicted oldest first, but one that
 * was used since it came goes to the front once more (the CLOCK policy with moving entries): whole blocks stay
 * contiguous, nothing fragments, and bookkeeping is one header an entry and a few hash buckets. */
typedef struct l3__entry {
    size_t   size;  /* of the entry with this header, a multiple of 8 */
    size_t   next;  /* offset + 1 of the next entry in the hash bucket */
    size_t   skip;  /* from the entry's start to the rows */
    uint32_t layer; /* UINT32_MAX: dead */
    int32_t  token;
    uint32_t used, pinned; /* asked for again; being read or computed with, so it must stay where it is */
} l3__entry;

typedef struct l3__cache {
    unsigned char *bytes;
    size_t         size;    /* 0: no cache */
    size_t        *buckets; /* offset + 1 of the first entry; a power of two of them */
    size_t         n_buckets;
    size_t         head, tail, end; /* next free byte; oldest entry; where the last round ended, if wrapped */
    size_t         entries;
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

/* Takes the oldest entry out, or moves it to the front if it earned that. False: it is pinned. */
L3__FN bool l3__cache_evict(l3__cache *c) {
    const size_t     from = c->tail;
    const l3__entry *e    = l3__entry_at(c, from);
    const size_t     size = e->size;
    const bool       keep = e->used && e->layer != UINT32_MAX;
    if (e->pinned) return false;
    if (e->layer != UINT32_MAX) l3__cache_unlink(c, from);
    c->tail += size;
    c->entries--;
    if (c->wrapped && c->tail == c->end) c->tail = 0, c->wrapped = false;
    if (!keep) return true;
    const bool   last = c->entries == 0;
    const size_t to   = l3__cache_room(c, size);
    if (to == SIZE_MAX || last) return true;
    memmove(c->bytes + to, c->bytes + from, size);
    c->head = to + size;
    c->entries++;
    l3__entry_at(c, to)->used = 0;
    l3__cache_link(c, to);
    return true;
}

/* A pinned entry with room for n bytes, or NULL if it cannot be had now. */
L3__FN l3__entry *l3__cache_add(l3__cache *c, uint32_t layer, int32_t token, uint64_t n) {
    size_t       at;
    const size_t header = sizeof(l3__entry);
    if (n > c->size || c->size - (size_t)n < header + 8) return NULL;
    const size_t size = (header + (size_t)n + 7) & ~(size_t)7;
    while ((at = l3__cache_room(c, size)) == SIZE_MAX)
        if (!l3__cache_evict(c)) return NULL;
    l3__entry *e = l3__entry_at(c, at);
    e->size      = size;
    e->skip      = header;
    e->layer     = layer;
    e->token     = token;
    e->used      = 0;
    e->pinned    = 1;
    c->head      = at + size;
    c->entries++;
    l3__cache_link(c, at);
    return e;
}

L3__FN void l3__cache_layout(l3__arena *a, l3__cache *c, size_t budget) {
    memset(c, 0, sizeof *c);
    if (budget < 1024) return;
    c->n_buckets = 1;
    while (c->n_buckets * 1024 <= budget / 2) c->n_buckets *= 2;
    c->size    = (budget - c->n_buckets * sizeof(size_t)) & ~(size_t)7; /* the index is within the budget */
    c->buckets = (size_t *)l3__take(a, c->n_buckets, sizeof(size_t));
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
    const l3_lookup *layers;
    uint32_t         n_layers, batch;
    l3_work_config   config;
    size_t           window_size;
    unsigned char   *window[2]; /* [0] for everything that is read at once; [1] only where start/wait exist */
    bool             async;     /* some layer's rows come through start/wait */
    l3__cache        cache;
    l3_stats         stats;

    uint32_t   n, n_groups; /* positions and distinct tokens of this batch */
    int32_t   *tokens;      /* (batch,) */
    uint32_t  *order;       /* (batch,) positions sorted by token */
    l3__group *groups;      /* (batch,) */
    uint32_t   planned;     /* the layer whose rows the groups hold, or UINT32_MAX */
    l3__chunk  ahead;       /* the first chunk of the next layer, under way */

    float *vector; /* (widest vector,) a norm's weight or bias while it is used */
    float *row;    /* (key_length + value_length,) one unpacked row */
    /* Scratch of one layer, each (batch, ...). A session shares these bytes with its attention and feed-forward. */
    float *query;        /* key_length */
    float *sum;          /* value_length: rows weighted so far */
    float *peak, *total; /* highest score so far, and the sum of e^(score - peak) */
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
    if (!l3__present(t) || t->data) return;
    const uint64_t row  = t->type == L3_I32 ? 8 : l3_row_bytes(t->type, t->cols); /* offsets are read in pairs */
    const uint64_t need = l3__window_for(t->source, row);
    if (*min < need) *min = need;
}

/* n bytes of a tensor from byte `at` on, valid until the window is used again. */
L3__FN const uint8_t *l3__bytes(l3_work *w, const l3_tensor *t, uint64_t at, size_t n, l3_error *err) {
    const uint8_t   *p;
    const l3_source *s = t->source;
    if (t->data) return (const uint8_t *)t->data + at;
    if (s->map && (p = (const uint8_t *)s->map(s->user, t->offset + at, n)) != NULL) return p;
    if (l3__read(s, t->offset + at, n, w->window[0], &p, err) != L3_OK) return NULL;
    w->stats.weight_bytes_read += l3__aligned_range(s, t->offset + at, n).size;
    return p;
}

/* Row `row` of a tensor as floats (cols,). */
L3__FN int l3__load_row(l3_work *w, const l3_tensor *t, uint32_t row, float *dst, l3_error *err) {
    const uint64_t bytes = l3_row_bytes(t->type, t->cols);
    const uint8_t *p     = l3__bytes(w, t, bytes * row, (size_t)bytes, err);
    if (!p) return L3_ERR_IO;
    l3_unpack(t->type, p, 0, t->cols, dst);
    return L3_OK;
}

/* A norm's weight: w->vector, or NULL for ones where the tensor is absent. */
L3__FN int l3__load_weight(l3_work *w, const l3_tensor *t, const float **weight, l3_error *err) {
    *weight = NULL;
    if (!l3__present(t)) return L3_OK;
    *weight = w->vector;
    return l3__load_row(w, t, 0, w->vector, err);
}

typedef struct l3__matmul_job {
    l3__matmul_fn  run;
    const uint8_t *weights;
    size_t         row_bytes;
    uint32_t       rows, cols, n, rows_per_piece;
    const float   *x;
    float         *y;
    size_t         xs, ys;
} l3__matmul_job;

L3__FN void l3__matmul_piece(void *arg, uint32_t i) {
    const l3__matmul_job *j    = (const l3__matmul_job *)arg;
    const uint32_t        from = i * j->rows_per_piece, left = j->rows - from;
    j->run(j->weights + from * j->row_bytes, j->row_bytes, left < j->rows_per_piece ? left : j->rows_per_piece, j->cols,
           j->x, j->xs, j->n, j->y + from, j->ys);
}

/* Splits rows into pieces of at least some microseconds, a few for each thread so that a slow one holds nobody up. */
L3__FN void l3__matmul_rows(const l3_work *w, l3__matmul_job *j) {
    const uint64_t products = (uint64_t)j->rows * j->cols * j->n, piece = 16384;
    uint32_t       pieces = w->config.jobs.run ? w->config.jobs.width * 4 : 1;
    if (products / piece < pieces) pieces = (uint32_t)(products / piece);
    if (pieces > j->rows) pieces = j->rows;
    if (pieces < 2) pieces = 1;
    j->rows_per_piece = (j->rows + pieces - 1) / pieces;
    l3__run(&w->config.jobs, (j->rows + j->rows_per_piece - 1) / j->rows_per_piece, l3__matmul_piece, j);
}

/* y (n, t->rows) = x (n, t->cols) times t transposed; xs and ys are the strides of x and y in floats. Weights without a
 * mapping pass through the window, a few rows at a time, each once. */
L3__FN int l3__matmul(l3_work *w, const l3_tensor *t, const float *x, size_t xs, uint32_t n, float *y, size_t ys,
                      l3_error *err) {
    l3__matmul_job j;
    const uint32_t step = t->data ? t->rows : l3__rows_per_window(w, t);
    j.run               = l3__matmul_for(t->type);
    j.row_bytes         = (size_t)l3_row_bytes(t->type, t->cols);
    j.cols = t->cols, j.n = n;
    j.x = x, j.xs = xs, j.ys = ys;
    for (uint32_t r = 0; r < t->rows; r += j.rows) {
        j.rows    = t->rows - r < step ? t->rows - r : step;
        j.y       = y + r;
        j.weights = l3__bytes(w, t, (uint64_t)r * j.row_bytes, j.rows * j.row_bytes, err);
        if (!j.weights) return L3_ERR_IO;
        l3__matmul_rows(w, &j);
        const int code = l3__check_progress(w, err);
        if (code != L3_OK) return code;
    }
    return L3_OK;
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
        if (!t->data && align < l3__align_of(t->source)) align = l3__align_of(t->source);
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
    if (c->row == 0)
        c->entry =
            l3__cache_add(&w->cache, c->layer, w->groups[c->group].token, l3__window_for(t->source, bytes) + align);
    if (!c->entry) {
        if (c->row == 0 && w->config.cache) w->stats.cache_misfits++;
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
    if (c->row == 0 && (c->entry = l3__cache_find(&w->cache, c->layer, g->token)) != NULL) {
        void *e          = c->entry;
        c->bytes         = (const uint8_t *)e + c->entry->skip;
        c->entry->used   = 1;
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
    const l3_tensor *t = &w->layers[layer].rows;
    uint32_t         first, rows;
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
    l3__chunk_drop(w, &w->ahead);
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

/* One more row for one position: online softmax (Milakov, Gimelshein 2018). Only a new highest score rescales what
 * was summed, so the result depends on the rows and their order, never on how many come at a time. */
L3__FN void l3__attend_row(l3_work *w, uint32_t p, float score, const float *value, uint32_t n) {
    float *sum = w->sum + (size_t)p * n, weight = 1.0f;
    if (score > w->peak[p]) {
        const float shrink = l3__expf(w->peak[p] - score);
        w->peak[p]         = score;
        w->total[p] *= shrink;
        for (uint32_t i = 0; i < n; i++) sum[i] *= shrink;
    } else {
        weight = l3__expf(score - w->peak[p]);
    }
    w->total[p] += weight;
    l3__add_scaled(sum, value, weight, n);
}

L3__FN void l3__attend_chunk(l3_work *w, const l3__chunk *c) {
    const l3_lookup *l   = &w->layers[c->layer];
    const l3__group *g   = &w->groups[c->group];
    const size_t     row = (size_t)l3_row_bytes(l->rows.type, l->rows.cols);
    const float     *key = w->row, *value = w->row + (l->tied ? 0 : l->key_length);
    for (uint32_t r = 0; r < c->rows; r++) {
        l3_unpack(l->rows.type, c->bytes + r * row, 0, l->rows.cols, w->row);
        const float scale =
            l->key_norm ? l->score_scale * l3__rms_scale(key, l->key_length, l->norm_epsilon) : l->score_scale;
        for (uint32_t i = g->begin; i < g->end; i++) {
            const uint32_t p = w->order[i];
            const float    s = l3__dot(key, w->query + (size_t)p * l->key_length, l->key_length) * scale;
            l3__attend_row(w, p, s, value, l->value_length);
        }
    }
}

/* sum (n, value_length) = softmax-weighted rows, each distinct token's rows brought in once. */
L3__FN int l3__gather(l3_work *w, uint32_t layer, l3_error *err) {
    l3__chunk current = w->ahead, next;
    uint32_t  crc     = 0;
    int       slot = 1, code = L3_OK;
    bool      more = true;
    next.active    = false;
    if (current.active && current.layer == layer) {
        w->ahead.active = false;
    } else {
        l3__chunk_drop(w, &w->ahead);
        if ((code = l3__plan(w, layer, err)) != L3_OK) return code;
        if (!l3__chunk_first(w, layer, &current)) return L3_OK;
        slot = 0;
        code = l3__chunk_begin(w, &current, slot, err);
    }
    while (code == L3_OK && more) {
        if ((code = l3__chunk_wait(w, &current, err)) != L3_OK) break;
        if ((code = l3__chunk_verify(w, &current, &crc, err)) != L3_OK) break;
        more = l3__chunk_next(w, &current, &next);
        if (more && w->async) code = l3__chunk_begin(w, &next, slot ^= 1, err);
        if (code == L3_OK) l3__attend_chunk(w, &current);
        if (code == L3_OK) code = l3__check_progress(w, err);
        if (code != L3_OK) break;
        if (current.entry) current.entry->pinned = 0;
        if (more && !w->async) code = l3__chunk_begin(w, &next, slot, err);
        current     = next;
        next.active = false;
    }
    if (code == L3_OK) return L3_OK;
    l3__chunk_drop(w, &next);
    l3__chunk_drop(w, &current);
    return code;
}

L3__FN int l3__make_queries(l3_work *w, const l3_lookup *l, const float *x, l3_error *err) {
    const float *weight = NULL;
    const size_t d      = l->key_length;
    const int    code   = l->query_norm ? l3__load_weight(w, &l->query_norm_weight, &weight, err) : L3_OK;
    if (code != L3_OK) return code;
    for (uint32_t p = 0; p < w->n; p++) {
        if (l->query_norm) l3__rms_norm(x + p * d, weight, l->key_length, l->norm_epsilon, w->query + p * d);
        else memcpy(w->query + p * d, x + p * d, d * sizeof(float));
        w->peak[p]  = l3__as_float(0xff800000u); /* -infinity */
        w->total[p] = 0;
    }
    memset(w->sum, 0, (size_t)w->n * l->value_length * sizeof(float));
    return L3_OK;
}

/* mix (n, up_length + key_length), first part: u = norm(up sum / total). */
L3__FN int l3__make_up(l3_work *w, const l3_lookup *l, l3_error *err) {
    const size_t stride = (size_t)l->up_length + l->key_length;
    const float *weight;
    int          code = L3_OK;
    for (uint32_t p = 0; p < w->n; p++) {
        float *sum = w->sum + (size_t)p * l->value_length;
        for (uint32_t i = 0; w->total[p] > 0 && i < l->value_length; i++) sum[i] /= w->total[p];
        if (!l3__present(&l->up)) memcpy(w->mix + p * stride, sum, l->value_length * sizeof(float));
    }
    if (l3__present(&l->up)) code = l3__matmul(w, &l->up, w->sum, l->value_length, w->n, w->mix, stride, err);
    if (code == L3_OK) code = l3__load_weight(w, &l->up_norm_weight, &weight, err);
    if (code != L3_OK) return code;
    for (uint32_t p = 0; p < w->n; p++) {
        float *u = w->mix + p * stride;
        if (l->layer_norm) l3__center(u, l->up_length); /* the rest of layer norm is RMSNorm */
        l3__rms_norm(u, weight, l->up_length, l->norm_epsilon, u);
    }
    if (!l3__present(&l->up_norm_bias)) return L3_OK;
    if ((code = l3__load_weight(w, &l->up_norm_bias, &weight, err)) != L3_OK) return code;
    for (uint32_t p = 0; p < w->n; p++) l3__add_scaled(w->mix + p * stride, weight, 1.0f, l->up_length);
    return L3_OK;
}

L3__FN int l3__mix(l3_work *w, const l3_lookup *l, float *x, l3_error *err) {
    const size_t d = l->key_length, stride = l->up_length + d;
    for (uint32_t p = 0; p < w->n; p++) memcpy(w->mix + p * stride + l->up_length, x + p * d, d * sizeof(float));
    const int code = l3__matmul(w, &l->mix, w->mix, stride, w->n, w->out, d, err);
    if (code != L3_OK) return code;
    for (size_t i = 0; i < w->n * d; i++) x[i] = l->residual ? x[i] + w->out[i] : w->out[i];
    return L3_OK;
}

L3_API int l3_lookup_forward(l3_work *w, uint32_t layer, float *x, l3_error *err) {
    if (layer >= w->n_layers || w->n == 0)
        return l3__fail(err, L3_ERR_ARGUMENT, 0, "no lookup layer %u, or no l3_lookup_begin before", layer);
    const l3_lookup *l    = &w->layers[layer];
    int              code = l3__make_queries(w, l, x, err);
    if (code == L3_OK) code = l3__gather(w, layer, err);
    if (code == L3_OK) code = l3__start_ahead(w, layer + 1, err);
    if (code == L3_OK) code = l3__make_up(w, l, err);
    if (code == L3_OK) code = l3__mix(w, l, x, err);
    if (code == L3_OK) return L3_OK;
    l3__chunk_drop(w, &w->ahead);
    w->n = 0;
    return code;
}

L3_API l3_stats l3_work_stats(const l3_work *w) { return w->stats; }

/* What a work must be wide enough for: the layers', and whatever a model adds. */
typedef struct l3__widths {
    uint64_t window; /* least window in bytes */
    uint32_t vector; /* longest norm weight */
    uint32_t align;  /* of windows */
    bool     start;  /* some source has start */
} l3__widths;

L3__FN l3__widths l3__lookup_widths(const l3_lookup *layers, uint32_t n) {
    l3__widths x = {0, 0, 1, false};
    for (uint32_t i = 0; i < n; i++) {
        const l3_lookup *l    = &layers[i];
        const l3_source *s    = l->rows.source;
        const uint64_t   need = l3__lookup_window(l);
        if (x.window < need) x.window = need;
        if (x.vector < l->key_length) x.vector = l->key_length;
        if (x.vector < l->up_length) x.vector = l->up_length;
        if (x.align < l3__lookup_align(l)) x.align = l3__lookup_align(l);
        if (!l->rows.data && s && s->start) x.start = true;
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

/* Everything of a work that lives longer than one layer. False if the window is too small. */
L3__FN bool l3__work_layout(l3__arena *a, l3_work *w, const l3_lookup *layers, uint32_t n_layers,
                            const l3_work_config *config, const l3__widths *widths) {
    uint64_t window = config && config->window ? config->window : 65536;
    uint32_t row    = 0;
    memset(w, 0, sizeof *w);
    if (config) w->config = *config;
    w->layers   = layers;
    w->n_layers = n_layers;
    w->batch    = w->config.batch ? w->config.batch : 32;
    w->planned  = UINT32_MAX;
    w->async    = widths->start;
    if (!w->config.window && window < widths->window) window = widths->window;
    if (widths->window == 0) window = 0;
    if (window < widths->window || window > SIZE_MAX) return false;
    w->window_size = (size_t)window;
    w->window[0]   = l3__take_aligned(a, window, widths->align);
    w->window[1]   = l3__take_aligned(a, widths->start ? window : 0, widths->align);
    for (uint32_t i = 0; i < n_layers; i++)
        if (row < layers[i].rows.cols) row = layers[i].rows.cols;
    for (uint32_t i = 0; i < n_layers; i++)
        if (!layers[i].rows.data && w->cache.size == 0) l3__cache_layout(a, &w->cache, w->config.cache);
    w->tokens = (int32_t *)l3__take(a, w->batch, sizeof(int32_t));
    w->order  = (uint32_t *)l3__take(a, n_layers ? w->batch : 0, sizeof(uint32_t));
    w->groups = (l3__group *)l3__take(a, n_layers ? w->batch : 0, sizeof(l3__group));
    w->vector = (float *)l3__take(a, widths->vector, sizeof(float));
    w->row    = (float *)l3__take(a, row, sizeof(float));
    return true;
}

/* After a layout with a base: what must start at zero. */
L3__FN void l3__work_reset(l3_work *w) {
    if (w->cache.size) memset(w->cache.buckets, 0, w->cache.n_buckets * sizeof(size_t));
}

L3_API size_t l3_work_window_min(const l3_lookup *layers, uint32_t n_layers) {
    return (size_t)l3__lookup_widths(layers, n_layers).window;
}

/* One layout for size and init: base NULL counts. */
L3__FN size_t l3__work_place(l3_work *w, const l3_lookup *layers, uint32_t n_layers, const l3_work_config *config,
                             void *base) {
    const l3__widths widths = l3__lookup_widths(layers, n_layers);
    l3__arena        a      = {(unsigned char *)base, 0, 0, false};
    (void)l3__take(&a, 1, sizeof(l3_work));
    if (!l3__work_layout(&a, w, layers, n_layers, config, &widths)) return 0;
    l3__scratch_layout(&a, w);
    return l3__arena_size(&a);
}

L3_API size_t l3_work_size(const l3_lookup *layers, uint32_t n_layers, const l3_work_config *config) {
    l3_work w;
    return l3__work_place(&w, layers, n_layers, config, NULL);
}

L3__FN int l3__window_error(l3_error *err, uint64_t window, uint64_t least) {
    return l3__fail(err, L3_ERR_ARGUMENT, 0, "a window of %U bytes is too small: the longest row needs %U", window,
                    least);
}

L3_API int l3_work_init(l3_work **work, const l3_lookup *layers, uint32_t n_layers, const l3_work_config *config,
                        void *mem, size_t size, l3_error *err) {
    const size_t least = l3_work_window_min(layers, n_layers);
    if (config && config->window && config->window < least) return l3__window_error(err, config->window, least);
    const int code = l3__check_block(mem, size, l3_work_size(layers, n_layers, config), err);
    if (code != L3_OK) return code;
    for (uint32_t i = 0; i < n_layers; i++)
        if (layers[i].vocab != layers[0].vocab || layers[i].key_length != layers[0].key_length)
            return l3__fail(err, L3_ERR_ARGUMENT, 0, "layer %u has another vocabulary or key length than layer 0", i);
    l3_work *w = (l3_work *)mem;
    (void)l3__work_place(w, layers, n_layers, config, mem);
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
    else if (!l3__unpacker(t->type))
        c->code = l3__fail(c->err, L3_ERR_UNSUPPORTED, t->offset, "%s has type %u, which is not supported", name,
                           (uint32_t)t->type);
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
L3__FN int l3__check_offsets(const l3_lookup *l, l3_error *err) {
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
    l3__arena a = {NULL, 0, 0, false};
    if (vocab == 0 || max_codewords < vocab || max_codewords > INT32_MAX) return 0;
    (void)l3__take(&a, 1, sizeof x);
    return (size_t)l3__alloc_layout(&a, &x, vocab, max_codewords);
}

L3_API int l3_alloc_init(l3_alloc **alloc, uint32_t vocab, uint32_t max_codewords, void *mem, size_t size,
                         l3_error *err) {
    l3__arena a = {(unsigned char *)mem, 0, 0, false};
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
#endif /* L3_IMPLEMENTATION */

/* This file is free and unencumbered: public domain where that exists (unlicense.org), else under MIT-0:
 * Copyright (c) 2026 the l3 authors. Permission is hereby granted, free of charge, to any person obtaining a copy of this
 * software and associated documentation files, to deal in the software without restriction, including without limitation
 * the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of it. The software is
 * provided "as is", without warranty of any kind, express or implied. */
