/* l3_model.h - v0.1.0 - Llama-style language models with L3 layers - public domain or MIT-0, see the end of l3.h
 *
 * Text in, text out: opens a GGUF file (architecture "l3", or dense "llama") through an l3_source, tokenizes, runs the
 * forward pass with a KV cache, samples. Weights may be mapped, or stream through a window of a few kilobytes.
 *
 *     #define L3_IMPLEMENTATION                                  // in one C or C++ file; gives l3.h's as well
 *     #include "l3_model.h"
 *
 *     l3_source_open_file(&file, "model.gguf", L3_FILE_MAP, &err);
 *     l3_model_size(&file.source, NULL, &size, &err);            // then: mem = size bytes of yours
 *     l3_model_open(&model, &file.source, NULL, mem, size, &err);
 *     l3_session_init(&session, model, NULL, mem2, l3_session_size(model, NULL), &err);
 *     l3_prefill(session, ids, n, NULL, &err);                   // the prompt
 *     l3_sample(sampler, l3_logits(session), &id, &err);         // the next token ...
 *     l3_decode(session, id, &err);                              // ... and what follows it
 *
 * On a device: l3_decode_step() is a token in bounded pieces, l3_model_pin() keeps weights in RAM that is left over,
 * l3_session_memory() says what each byte is for.
 *
 * Whole programs: examples/generate.c, examples/flash_stream.c, examples/snapshot.c.
 *
 * A model is immutable and serves any number of sessions and threads; a session holds everything that changes (KV cache,
 * scratch, row cache) in one block of the caller's. Weights flow one way: source -> model -> session.
 *
 * SWITCHES (besides those of l3.h)
 *     L3_NO_ENCODER      leaves out l3_tokenize(): the tokenizer only decodes (run 0)
 *     L3_NO_SAMPLER      leaves out l3_sample() and what belongs to it
 *     L3_NO_SNAPSHOT     leaves out l3_session_save() and l3_session_load()
 *     L3_NO_SELFTEST     leaves out l3_session_selftest(): a file's self-test is passed over
 *     L3_NO_STEPS        leaves out l3_decode_begin(), l3_decode_step() and l3_session_step_bound()
 *     L3_NO_PIN          leaves out l3_model_pin() and l3_model_pin_size()
 *
 * MEMORY, ERRORS, THREADS, NUMBERS: as in l3.h.
 *
 * Sections: >>gguf >>model >>session >>tokenizer >>sampler, then the implementation:
 *           >>scan >>keys >>tensors >>open >>layout >>attention >>blocks >>calls >>snapshots >>selftest >>pieces >>bpe
 *           >>text >>sample
 */
#ifndef L3_MODEL_H
#define L3_MODEL_H

#include "l3.h"

#ifdef __cplusplus
extern "C" {
#endif

/* >>gguf ----------------------------------------------------------------------------------------------------------- */

/* GGUF v3 metadata value types. */
typedef enum l3_gguf_type {
    L3_GGUF_U8,
    L3_GGUF_I8,
    L3_GGUF_U16,
    L3_GGUF_I16,
    L3_GGUF_U32,
    L3_GGUF_I32,
    L3_GGUF_F32,
    L3_GGUF_BOOL,
    L3_GGUF_STRING,
    L3_GGUF_ARRAY,
    L3_GGUF_U64,
    L3_GGUF_I64,
    L3_GGUF_F64
} l3_gguf_type;

/* One metadata key. Pointers are valid during the callback only. */
typedef struct l3_gguf_key {
    const char *name;      /* cut after 127 bytes */
    int         type;      /* l3_gguf_type */
    int         item_type; /* of an array */
    uint64_t    count;     /* items of an array, bytes of a string, else 1 */
    uint64_t    offset;    /* of the value: the number, the string's bytes, or the array's first item */
    const char *text;      /* of a string: count bytes, not terminated; NULL if they are too many for the buffer */
    uint64_t    integer;   /* value of an integer or bool; two's complement when negative */
    double      number;    /* value of an integer, bool or float */
} l3_gguf_key;

typedef struct l3_gguf_tensor {
    const char *name; /* cut after 127 bytes */
    uint32_t    n_dims;
    uint64_t    dims[4]; /* fastest first; 1 where absent */
    uint32_t    type;    /* l3_type or another of ggml's */
    uint64_t    offset;  /* from the start of the tensor data */
} l3_gguf_tensor;

/* What a scan tells; callbacks may be NULL. Anything but 0 ends the scan and comes back. */
typedef struct l3_gguf_visitor {
    void *user;
    int (*key)(void *user, const l3_gguf_key *key);
    int (*string)(void *user, uint64_t index, uint64_t offset,
                  uint64_t length); /* items of the string array just told */
    int (*tensor)(void *user, const l3_gguf_tensor *tensor);
    int (*data)(void *user, uint64_t start, uint64_t alignment); /* last: where the tensor data begin */
} l3_gguf_visitor;

/* Reads a file's metadata in order through a small buffer on the stack, every count and length checked before use. */
L3_API int l3_gguf_scan(const l3_source *source, const l3_gguf_visitor *visitor, l3_error *err);

/* >>model ---------------------------------------------------------------------------------------------------------- */

typedef enum l3_kind { L3_KIND_MODEL, L3_KIND_TOKENIZER, L3_KIND_ALLOCATION } l3_kind; /* general.type */

/* What a file says about itself. */
typedef struct l3_info {
    l3_kind  kind;
    char     architecture[16];
    char     name[64];       /* general.name, cut; "" if there is none */
    uint32_t vocab, context; /* tokens */
    uint32_t dim, ffn_dim;   /* embedding_length, feed_forward_length */
    uint32_t n_blocks, n_heads, n_kv_heads, head_dim;
    uint32_t rope_dims; /* of each head, rotated in adjacent pairs */
    double   rope_base;
    float    rms_epsilon;
    uint32_t n_lookups;     /* L3 layers */
    bool     tied_head;     /* the embedding is the head */
    bool     has_tokenizer; /* of a kind that l3_tokenizer knows */
    bool     add_bos, add_space_prefix;
    int32_t  bos, eos, unknown; /* token IDs; -1: none */
    uint32_t longest_piece;     /* bytes */
    uint64_t file_bytes;
    bool     has_file_checksum;
    uint32_t selftest_tokens; /* of the self-test in the file; 0: it has none */
} l3_info;

typedef struct l3_model l3_model;

typedef struct l3_model_config {
    bool require_checksums; /* refuse a file without l3.checksum.file, or with a lookup layer without row checksums */
    /* Where the rows of tables come from: the same bytes in another way, such as read ahead by a thread while the source
     * itself is mapped. NULL: the source. Copied, like it. */
    const l3_source *tables;
} l3_model_config;

/* Bytes that l3_model_open needs for this file: descriptions of tensors and a sparse index of the vocabulary, no weights.
 * Reads the metadata once. config may be NULL, here and below. */
L3_API int l3_model_size(const l3_source *source, const l3_model_config *config, size_t *size, l3_error *err);
#ifndef L3_NO_STDIO
/* l3_model_size() on another machine, for tools that tell sizes before a program is made. */
L3_API int l3_model_size_for(const l3_target *target, const l3_source *source, size_t *size, l3_error *err);
#endif
/* mem: size bytes aligned to L3_ALIGN, used until the model is forgotten; there is nothing to free. *source is copied; what
 * it refers to must outlive the model. Every tensor's place, shape and type and every lookup offset is checked.
 * L3_ERR_FORMAT, L3_ERR_UNSUPPORTED, L3_ERR_CHECKSUM (required, and none), L3_ERR_IO, L3_ERR_MEMORY. */
L3_API int            l3_model_open(l3_model **model, const l3_source *source, const l3_model_config *config, void *mem,
                                    size_t size, l3_error *err);
L3_API const l3_info *l3_model_info(const l3_model *model);
/* Lookup layer i < n_lookups and the block that it follows, or NULL. block may be NULL. */
L3_API const l3_lookup *l3_model_lookup(const l3_model *model, uint32_t i, uint32_t *block);
/* Tensor i = 0, 1, ... of the file in a fixed order, its name of at most 63 bytes; NULL after the last. */
L3_API const l3_tensor *l3_model_tensor(const l3_model *model, uint32_t i, char name[64]);
#ifndef L3_NO_PIN
/* Copies what is read for every token into RAM, where the source has no map: a byte given here saves reading a byte for each
 * token (or batch of them). In this order: vectors and matrices, the smallest first, the last matrix as far as its rows have
 * room; then the lookup layers' offsets and checksums. Tables are what l3_work_config.cache is for; an embedding that is not
 * the head stays where it is, too. mem: size bytes aligned to L3_ALIGN, used as long as the model is. Call it before any
 * session is made, several times if there are several pieces of RAM: each goes on with the tensors of which nothing is in
 * RAM yet. On L3_ERR_IO what was copied is used, and a later call goes on. */
L3_API int l3_model_pin(l3_model *model, void *mem, size_t size, l3_error *err);
/* How much of a budget of so many bytes l3_model_pin() would use; of SIZE_MAX: all that there is to pin. */
L3_API size_t l3_model_pin_size(const l3_model *model, size_t budget);
#endif
/* A hash of the metadata and of the first bytes of every tensor, which tells models apart. */
L3_API int l3_model_fingerprint(const l3_model *model, uint64_t *fingerprint, l3_error *err);
/* Reads the whole file once and compares every checksum that it has. L3_ERR_CHECKSUM with the place. */
L3_API int l3_model_verify(const l3_model *model, l3_error *err);

/* >>session -------------------------------------------------------------------------------------------------------- */

/* All zero is a good choice. */
typedef struct l3_session_config {
    uint32_t       context; /* positions kept; 0: what the model says. More than that is refused */
    int32_t        kv_type; /* l3_type of the KV cache: L3_F32 (0), L3_F16 or L3_Q8_0 */
    uint32_t       step;    /* multiply-adds of one l3_decode_step(); 0: 16384 */
    l3_work_config work;    /* batch, window, cache, mode, threads, progress: see l3.h */
} l3_session_config;

typedef struct l3_session l3_session;

/* Bytes of a session, exact, or 0 if the configuration cannot work (l3_session_init says why). */
L3_API size_t l3_session_size(const l3_model *model, const l3_session_config *config);
#ifndef L3_NO_STDIO
/* l3_session_size() on another machine, exact if it gets at the file in the same way: what the model has mapped is mapped
 * there, what is read is read with the same source.align and start. */
L3_API size_t l3_session_size_for(const l3_target *target, const l3_model *model, const l3_session_config *config);
#endif
/* The same by purpose, with what the model takes: the members of *memory from `session` on add up to the size, which is
 * returned. */
L3_API size_t l3_session_memory(const l3_model *model, const l3_session_config *config, l3_memory *memory);
#ifndef L3_NO_STDIO
L3_API size_t l3_session_memory_for(const l3_target *target, const l3_model *model, const l3_session_config *config,
                                    l3_memory *memory);
#endif
/* The least config->work.window that works; 0 when everything is mapped. */
L3_API size_t l3_session_window_min(const l3_model *model);
/* mem: size bytes, aligned to L3_ALIGN, used until the session is forgotten; there is nothing to free. */
L3_API int l3_session_init(l3_session **session, const l3_model *model, const l3_session_config *config, void *mem,
                           size_t size, l3_error *err);

/* Appends n tokens, n >= 1. Afterwards l3_logits() are those after the last one. all: NULL, or (n, vocab) floats for the
 * logits after every token. On any error the session is where it was before the call, and usable.
 * L3_ERR_CONTEXT if they do not fit, L3_ERR_TOKEN, L3_ERR_CANCELLED, L3_ERR_IO, L3_ERR_CHECKSUM. */
L3_API int l3_prefill(l3_session *session, const int32_t *tokens, uint32_t n, float *all, l3_error *err);
/* Appends one token. */
L3_API int l3_decode(l3_session *session, int32_t token, l3_error *err);
/* Appends tokens[i] to sessions[i], for n different sessions of one model; weights are read once for up to work.batch of
 * sessions[0]. Results are those of n calls of l3_decode. On any error no session has moved. */
L3_API int l3_decode_batch(l3_session *const *sessions, const int32_t *tokens, uint32_t n, l3_error *err);
#ifndef L3_NO_STEPS
/* The same in pieces, for programs in which a watchdog, a radio or a scheduler lives beside the model: l3_decode_begin()
 * appends n tokens, 1 <= n <= work.batch, and each l3_decode_step() does a bounded part of the work and returns
 *     1: there is more to do;    0: done, l3_position() and l3_logits() are those after the last token;
 *     an error: the session is where it was before l3_decode_begin(), and usable.
 * Results are the same bits as those of n calls of l3_decode(); weights are read once for all n, and logits are computed
 * for the last token only. Until the last step the position stays and logits are undefined; l3_session_hint() does nothing.
 * Every other call that moves the session, and the next l3_decode_begin(), ends what was begun as if it had not been;
 * l3_truncate(session, l3_position(session), NULL) does only that, and waits for a read that was started.
 * L3_ERR_ARGUMENT if n is out of range, or for a step when nothing was begun; else as l3_prefill(). */
L3_API int l3_decode_begin(l3_session *session, const int32_t *tokens, uint32_t n, l3_error *err);
L3_API int l3_decode_step(l3_session *session, l3_error *err);

/* What a step of a session does at most; l3_decode_begin() reads no more either, but 8 bytes for each token and lookup layer
 * where the source has a hint. */
typedef struct l3_step_bound {
    /* Multiply-adds, an exponential counting as 16: config.step, or one row of the widest matrix for every position of a
     * batch where that is more. Beside them, what is done once an element of a vector of each position: a norm, a sum. */
    uint64_t products;
    /* Bytes asked of sources, their alignment included: the window, or a token's rows where they go to the cache at once,
     * with the few that say where rows lie. */
    uint64_t read_bytes;
    uint32_t reads; /* calls of read or start */
} l3_step_bound;
L3_API l3_step_bound l3_session_step_bound(const l3_session *session);
#endif

/* Logits (vocab,) after the last token; of the last call that succeeded, until the next call or l3_truncate. */
L3_API const float *l3_logits(const l3_session *session);
/* Tokens so far: the position of the next one. */
L3_API uint32_t l3_position(const l3_session *session);
/* Positions that fit. */
L3_API uint32_t l3_context(const l3_session *session);
/* Keeps the first n tokens, n <= l3_position(), and forgets the rest. */
L3_API int l3_truncate(l3_session *session, uint32_t n, l3_error *err);
/* Tells which tokens will come, so that their rows can be fetched. */
L3_API void     l3_session_hint(l3_session *session, const int32_t *tokens, uint32_t n);
L3_API l3_stats l3_session_stats(const l3_session *session);
/* The level whose kernels the session uses; never L3_LEVEL_BEST. */
L3_API l3_level l3_session_level(const l3_session *session);

#ifndef L3_NO_SELFTEST
/* Runs the token IDs that are stored in the file (l3-embed puts them there) and compares logits with those stored beside
 * them, which plain C computed in exact mode on another machine. A device that writes nonsense is told apart so: bytes that do
 * not match their checksum (L3_ERR_CHECKSUM from l3_model_verify(), or when rows are read) are a bad flash; sound bytes and
 * L3_ERR_SELFTEST a bad port: compiler, options, kernels. L3_EXACT must give the same bits, L3_FAST stays within a bound.
 * *difference, if not NULL, gets the largest difference, as a part of the range from the lowest to the highest stored logit;
 * below a millionth in L3_EXACT it comes from a compiler that contracts (NUMBERS in l3.h) and is harmless; fast-math does
 * more harm.
 * The session must be at position 0 (L3_ERR_ARGUMENT) and is there again afterwards, whatever the result. It takes the time and
 * the context of l3_info.selftest_tokens. L3_ERR_UNSUPPORTED: the file has no self-test. Else the errors of l3_prefill(). */
#define L3_SELFTEST_BOUND 0.0625f /* of L3_FAST */
L3_API int l3_session_selftest(l3_session *session, float *difference, l3_error *err);
#endif

#ifndef L3_NO_SNAPSHOT
/* Takes bytes somewhere: 0, or an own negative code, which comes back in l3_error.io. */
typedef int (*l3_write_fn)(void *user, const void *bytes, size_t n);

/* The position, KV cache and logits of a session, in a form that any machine can load (docs/FORMAT.md). The logits are
 * whatever l3_logits() gives: after a failed call or l3_truncate(), decode a token before sampling from them. */
L3_API uint64_t l3_session_save_size(const l3_session *session);
L3_API int      l3_session_save(const l3_session *session, l3_write_fn write, void *user, l3_error *err);
/* Puts a session of the same model, the same kv_type and enough context where the saved one was. The snapshot is checked
 * first (one pass over it), so an error leaves the session as it was; only a source that fails or changes between that
 * pass and the next leaves it empty. L3_ERR_MISMATCH, L3_ERR_CHECKSUM, L3_ERR_FORMAT, L3_ERR_IO. */
L3_API int l3_session_load(l3_session *session, const l3_source *snapshot, l3_error *err);

/* An l3_write_fn into memory, user being an l3_buffer: fails with -1 when it is full. */
typedef struct l3_buffer {
    unsigned char *bytes;
    size_t         size, used;
} l3_buffer;
L3_API int l3_write_buffer(void *user, const void *bytes, size_t n);
#endif

/* >>tokenizer ------------------------------------------------------------------------------------------------------ */

/* Tokenizer "llama": SentencePiece BPE with byte fallback. Text is UTF-8; other bytes survive the round trip. One thread
 * at a time. */
typedef struct l3_tokenizer l3_tokenizer;

/* Bytes for tokenizing runs of up to `run` bytes of text (0: for decoding only, a few hundred bytes when the vocabulary is
 * mapped). A run ends where no piece of the vocabulary could go on, mostly at a space: texts are longer than their runs,
 * and their own length is always enough. 0 if the model has no tokenizer that is known here. */
L3_API size_t l3_tokenizer_size(const l3_model *model, size_t run);
L3_API int    l3_tokenizer_init(l3_tokenizer **tokenizer, const l3_model *model, size_t run, void *mem, size_t size,
                                l3_error *err);
#ifndef L3_NO_STDIO
/* l3_tokenizer_size() on another machine. */
L3_API size_t l3_tokenizer_size_for(const l3_target *target, const l3_model *model, size_t run);
#endif

#ifndef L3_NO_ENCODER
enum {
    L3_TEXT_SPECIAL  = 1, /* the text of control tokens ("<s>") means the token */
    L3_TEXT_CONTINUE = 2, /* no dummy space in front: the text continues another */
    L3_TEXT_BOS      = 4  /* BOS in front if the model wants one (add_bos) */
};

/* ids (capacity,) gets the first capacity token IDs; *n is how many there are in all. ids NULL with capacity 0 only counts.
 * L3_ERR_MEMORY with *n above capacity: they did not fit; with *n = 0, as after every other error: a run is too long. */
L3_API int l3_tokenize(l3_tokenizer *tokenizer, const char *text, size_t length, int flags, int32_t *ids,
                       size_t capacity, size_t *n, l3_error *err);
#endif

/* The text of the next token of a stream: *text (*n bytes, not terminated) is valid until the next call. Bytes of a UTF-8
 * character that is not yet complete are held back. The dummy space of the first piece, in a stream and after BOS, is dropped;
 * so the prompt's tokens go through it too. */
L3_API int l3_detokenize(l3_tokenizer *tokenizer, int32_t id, const char **text, size_t *n, l3_error *err);
/* Ends a stream: the bytes held back, at most 3. The next token starts a new one. */
L3_API void l3_detokenize_end(l3_tokenizer *tokenizer, const char **text, size_t *n);
/* The vocabulary's own text of a token (U+2581 for spaces), its score and its type (tokenizer.ggml.token_type). Pointers
 * may be NULL; *piece is valid until the next call. */
L3_API int l3_token_piece(l3_tokenizer *tokenizer, int32_t id, const char **piece, size_t *n, float *score, int *type,
                          l3_error *err);

/* >>sampler -------------------------------------------------------------------------------------------------------- */

#ifndef L3_NO_SAMPLER
typedef struct l3_sampling {
    float    temperature;    /* 0: always the highest logit */
    uint32_t top_k;          /* keep the k best; 0: all */
    float    top_p;          /* keep the fewest best that hold this probability; 1: all */
    float    min_p;          /* drop what is less likely than this times the best; 0: none */
    float    repeat_penalty; /* logits of recent tokens are divided by it, or multiplied when negative; 1: off */
    uint32_t repeat_last_n;  /* how many tokens are recent */
    uint64_t seed;
} l3_sampling;

typedef struct l3_sampler l3_sampler;

/* Temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, no penalty (over 64 tokens), seed 0. */
L3_API l3_sampling l3_sampling_defaults(void);
/* 8 bytes a candidate (top_k, or vocab without it) and 8 a recent token, exact. 0 if out of range. */
L3_API size_t l3_sampler_size(const l3_sampling *sampling, uint32_t vocab);
L3_API int    l3_sampler_init(l3_sampler **sampler, const l3_sampling *sampling, uint32_t vocab, void *mem, size_t size,
                              l3_error *err);
#ifndef L3_NO_STDIO
/* l3_sampler_size() on another machine. */
L3_API size_t l3_sampler_size_for(const l3_target *target, const l3_sampling *sampling, uint32_t vocab);
#endif
/* Tells which tokens came, for the repetition penalty: the prompt, and what was sampled. */
L3_API void l3_sampler_accept(l3_sampler *sampler, const int32_t *tokens, size_t n);
/* The next token: repetition penalty, top-k, top-p, min-p, temperature, then one draw from the cumulative distribution in
 * descending probability; equal logits in order of ID. NaN counts as minus infinity. L3_ERR_NUMBER if the best is not
 * finite. */
L3_API int l3_sample(l3_sampler *sampler, const float *logits, int32_t *id, l3_error *err);
/* The generator, SplitMix64 (Steele, Lea, Flood 2014): the next 64 bits. A draw is the upper 24 bits times 2^-24. */
L3_API uint64_t l3_random(uint64_t *state);
#endif

#ifdef __cplusplus
}
#endif
#endif /* L3_MODEL_H */

/* ================================================================================================================== */

#if defined(L3_IMPLEMENTATION) && !defined(L3__MODEL_IMPLEMENTED)
#define L3__MODEL_IMPLEMENTED

/* No contraction, as in l3.h. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* >>scan ---------------------------------------------------------------------------------------------------------- */

/* Limits no real file comes near; with them every product below stays in 64 bits and every loop is short. */
#define L3__MAX_KEYS    65536u
#define L3__MAX_TENSORS 65536u
#define L3__MAX_STRINGS (1u << 24)
#define L3__MAX_VOCAB   (1u << 20)
#define L3__MAX_WIDTH   (1u << 20)
#define L3__MAX_BLOCKS  512u
#define L3__MAX_HEADS   4096u
#define L3__MAX_CONTEXT (1u << 24)
#define L3__MAX_PIECE   4096u

/* A cursor over the metadata. The first failure is kept in code. */
typedef struct l3__scan {
    l3__reader reader;
    uint64_t   at;
    l3_error  *err;
    int        code;
    char       name[128];
} l3__scan;

/* The next n bytes, or NULL. */
L3__FN const uint8_t *l3__scan_bytes(l3__scan *s, size_t n) {
    if (s->code != L3_OK) return NULL;
    const uint8_t *p = l3__peek(&s->reader, s->at, n, s->err);
    if (!p) s->code = s->err ? s->err->code : L3_ERR_FORMAT;
    s->at += n;
    return p;
}

L3__FN uint32_t l3__scan_u32(l3__scan *s) {
    const uint8_t *p = l3__scan_bytes(s, 4);
    return p ? l3__le32(p) : 0;
}

L3__FN uint64_t l3__scan_u64(l3__scan *s) {
    const uint8_t *p = l3__scan_bytes(s, 8);
    return p ? l3__le64(p) : 0;
}

/* Moves over n bytes, which must be in the file. */
L3__FN void l3__scan_skip(l3__scan *s, uint64_t n) {
    uint64_t end;
    if (s->code != L3_OK) return;
    if (!l3__add(s->at, n, &end) || end > s->reader.source->size)
        s->code = l3__fail(s->err, L3_ERR_FORMAT, s->at, "%U bytes at %U reach beyond the end of the file at %U", n,
                           s->at, s->reader.source->size);
    else s->at = end;
}

/* A length and that many bytes, cut to what s->name holds. */
L3__FN void l3__scan_name(l3__scan *s) {
    const uint64_t n = l3__scan_u64(s), start = s->at;
    const size_t   kept = n < sizeof s->name - 1 ? (size_t)n : sizeof s->name - 1;
    const uint8_t *p    = l3__scan_bytes(s, kept);
    if (p) memcpy(s->name, p, kept);
    s->name[p ? kept : 0] = '\0';
    s->at                 = start;
    l3__scan_skip(s, n);
}

/* A metadata type; all that are unknown are 255. */
L3__FN int l3__scan_type(l3__scan *s) {
    const uint32_t type = l3__scan_u32(s);
    return type <= L3_GGUF_F64 ? (int)type : 255;
}

/* Bytes of a number of a metadata type; 0 for strings, arrays and unknown types. */
L3__FN uint32_t l3__gguf_size(int type) {
    static const uint8_t sizes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type >= 0 && type < 13 ? sizes[type] : 0;
}

L3__FN void l3__scan_number(l3__scan *s, l3_gguf_key *k) {
    const uint32_t n = l3__gguf_size(k->type);
    const uint8_t *p = l3__scan_bytes(s, n);
    uint64_t       u = 0;
    for (uint32_t i = 0; p && i < n; i++) u |= (uint64_t)p[i] << (8 * i);
    const uint64_t sign = n < 8 ? (uint64_t)1 << (8 * n - 1) : 0;
    switch (k->type) {
    case L3_GGUF_F32: k->number = (double)l3__as_float((uint32_t)u); return;
    case L3_GGUF_F64: memcpy(&k->number, &u, 8); return;
    case L3_GGUF_I8:
    case L3_GGUF_I16:
    case L3_GGUF_I32:
    case L3_GGUF_I64:
        u         = (u ^ sign) - sign; /* extends the sign */
        k->number = u >> 63 ? -(double)(~u + 1) : (double)u;
        break;
    default: k->number = (double)u;
    }
    k->integer = u;
}

L3__FN void l3__scan_string(l3__scan *s, l3_gguf_key *k) {
    k->count  = l3__scan_u64(s);
    k->offset = s->at;
    k->text   = NULL;
    if (k->count <= s->reader.capacity / 2) k->text = (const char *)l3__scan_bytes(s, (size_t)k->count);
    s->at = k->offset;
    l3__scan_skip(s, k->count);
}

L3__FN void l3__scan_array(l3__scan *s, l3_gguf_key *k) {
    uint64_t bytes;
    k->item_type         = l3__scan_type(s);
    k->count             = l3__scan_u64(s);
    k->offset            = s->at;
    const uint32_t size  = l3__gguf_size(k->item_type);
    const uint64_t start = s->at;
    if (s->code != L3_OK) return;
    if (size) {
        if (!l3__mul(k->count, size, &bytes)) bytes = UINT64_MAX;
        l3__scan_skip(s, bytes);
        s->at = s->code == L3_OK ? start : s->at; /* the visitor is told before the items are passed */
    } else if (k->item_type != L3_GGUF_STRING || k->count > L3__MAX_STRINGS) {
        s->code = l3__fail(s->err, L3_ERR_FORMAT, start, "key %s: an array of %U items of type %u cannot be read",
                           s->name, k->count, (uint32_t)k->item_type);
    }
}

/* Passes over the items of an array that has been told. */
L3__FN void l3__scan_items(l3__scan *s, const l3_gguf_key *k, const l3_gguf_visitor *v) {
    const uint32_t size = l3__gguf_size(k->item_type);
    if (size) l3__scan_skip(s, k->count * size);
    for (uint64_t i = 0; !size && i < k->count && s->code == L3_OK; i++) {
        const uint64_t n = l3__scan_u64(s), at = s->at;
        l3__scan_skip(s, n);
        if (s->code == L3_OK && v->string) s->code = v->string(v->user, i, at, n);
    }
}

L3__FN void l3__scan_key(l3__scan *s, const l3_gguf_visitor *v) {
    l3_gguf_key k;
    memset(&k, 0, sizeof k);
    l3__scan_name(s);
    k.name            = s->name;
    const uint64_t at = s->at;
    k.type            = l3__scan_type(s);
    k.count           = 1;
    k.offset          = s->at;
    if (k.type == L3_GGUF_STRING) l3__scan_string(s, &k);
    else if (k.type == L3_GGUF_ARRAY) l3__scan_array(s, &k);
    else if (l3__gguf_size(k.type)) l3__scan_number(s, &k);
    else if (s->code == L3_OK)
        s->code = l3__fail(s->err, L3_ERR_FORMAT, at, "key %s has an unknown value type", s->name);
    if (s->code == L3_OK && v->key) s->code = v->key(v->user, &k);
    if (k.type == L3_GGUF_ARRAY) l3__scan_items(s, &k, v);
}

L3__FN void l3__scan_tensor(l3__scan *s, const l3_gguf_visitor *v) {
    l3_gguf_tensor t;
    l3__scan_name(s);
    t.name   = s->name;
    t.n_dims = l3__scan_u32(s);
    if (s->code == L3_OK && (t.n_dims == 0 || t.n_dims > 4))
        s->code =
            l3__fail(s->err, L3_ERR_FORMAT, s->at, "tensor %s has %u dimensions; 1 to 4 are right", s->name, t.n_dims);
    for (uint32_t i = 0; i < 4; i++) t.dims[i] = s->code == L3_OK && i < t.n_dims ? l3__scan_u64(s) : 1;
    t.type   = l3__scan_u32(s);
    t.offset = l3__scan_u64(s);
    if (s->code == L3_OK && v->tensor) s->code = v->tensor(v->user, &t);
}

/* Up to the keys' end: *tensors is how many follow. general.alignment goes to *alignment. */
L3__FN void l3__scan_header(l3__scan *s, uint64_t *keys, uint64_t *tensors) {
    const uint8_t *magic = l3__scan_bytes(s, 4);
    if (magic && memcmp(magic, "GGUF", 4) != 0)
        s->code = l3__fail(s->err, L3_ERR_FORMAT, 0, "this is no GGUF file: it does not begin with \"GGUF\"");
    const uint32_t version = l3__scan_u32(s);
    if (s->code == L3_OK && (version < 2 || version > 3))
        s->code =
            l3__fail(s->err, L3_ERR_UNSUPPORTED, 4, "GGUF version %u is not supported; 3 (or 2) is right", version);
    *tensors = l3__scan_u64(s);
    *keys    = l3__scan_u64(s);
    if (s->code == L3_OK && (*tensors > L3__MAX_TENSORS || *keys > L3__MAX_KEYS))
        s->code = l3__fail(s->err, L3_ERR_FORMAT, 8, "%U tensors and %U keys are more than any real file has", *tensors,
                           *keys);
}

typedef struct l3__alignment {
    const l3_gguf_visitor *inner;
    uint64_t               value;
} l3__alignment;

L3__FN int l3__alignment_key(void *user, const l3_gguf_key *k) {
    l3__alignment *a = (l3__alignment *)user;
    if (strcmp(k->name, "general.alignment") == 0) a->value = k->type == L3_GGUF_U32 ? k->integer : 0;
    return a->inner->key ? a->inner->key(a->inner->user, k) : 0;
}
L3__FN int l3__alignment_string(void *user, uint64_t i, uint64_t off, uint64_t n) {
    const l3__alignment *a = (const l3__alignment *)user;
    return a->inner->string ? a->inner->string(a->inner->user, i, off, n) : 0;
}

L3_API int l3_gguf_scan(const l3_source *source, const l3_gguf_visitor *v, l3_error *err) {
    l3__stack_buffer buffer;
    l3__scan         s;
    l3__alignment    alignment = {v, 32};
    l3_gguf_visitor  keys      = {&alignment, l3__alignment_key, l3__alignment_string, NULL, NULL};
    uint64_t         n_keys, n_tensors;
    memset(&s, 0, sizeof s);
    if ((s.code = l3__check_source(source, err)) != L3_OK) return s.code;
    s.reader = l3__stack_reader(source, &buffer);
    s.err    = err;
    l3__scan_header(&s, &n_keys, &n_tensors);
    for (uint64_t i = 0; i < n_keys && s.code == L3_OK; i++) l3__scan_key(&s, &keys);
    const uint64_t a = alignment.value;
    if (s.code == L3_OK && (a < 8 || a > 65536 || (a & (a - 1)) != 0))
        s.code = l3__fail(err, L3_ERR_FORMAT, s.at, "general.alignment must be a u32 power of two from 8 to 65536");
    if (!v->tensor && !v->data) return s.code;
    for (uint64_t i = 0; i < n_tensors && s.code == L3_OK; i++) l3__scan_tensor(&s, v);
    if (s.code == L3_OK && v->data) s.code = v->data(v->user, (s.at + a - 1) & ~(a - 1), a);
    return s.code;
}

/* >>keys ---------------------------------------------------------------------------------------------------------- */

typedef struct l3__block {
    l3_tensor attn_norm, attn_q, attn_k, attn_v, attn_output, ffn_norm, ffn_gate, ffn_up, ffn_down;
} l3__block;

#define L3__ABSENT (-2e6) /* below what any key may say */

/* Numbers from the keys with a model's prefix; 0, L3__ABSENT or the default where a key is absent. */
typedef struct l3__params {
    uint32_t vocab_size, context_length, embedding_length, block_count, feed_forward_length;
    uint32_t head_count, head_count_kv, key_length, value_length, rope_dims;
    double   rms_epsilon, rope_base;
    uint32_t row_count, rows_per_token_max, lookup_key_length, lookup_value_length, up_length;
    uint32_t tied, query_norm, key_norm, residual, layer_norm;
    double   score_scale, norm_epsilon;
} l3__params;

typedef struct l3__vocabulary {
    uint64_t tokens_at, tokens_end, scores_at, types_at; /* file offsets; 0: absent */
    uint32_t count, n_scores, n_types;
    bool     other_model, normalizes; /* a tokenizer, or a text normalization, that is not ours */
} l3__vocabulary;

struct l3_model {
    l3_info        info;
    l3_source      source, tables;
    l3__vocabulary vocabulary;
    uint64_t       file_checksum_at, data_start;
    size_t         pinned;                         /* bytes given to l3_model_pin() that are in use */
    l3_tensor      embedding, output_norm, output; /* (vocab, dim), (1, dim), (vocab, dim) or absent */
    l3_tensor      selftest_tokens;                /* (1, n) I32, or absent */
    l3_tensor      selftest_logits; /* (3, n) for a KV cache of F32, F16, Q8_0: bits of floats, as I32; or absent */
    l3__block     *blocks;          /* (n_blocks,) */
    l3_lookup     *lookups;         /* (n_lookups,) */
    uint32_t      *lookup_blocks;   /* (n_lookups,) the block that each follows, rising */
    uint32_t      *checkpoints;     /* where every 16th token lies, from tokens_at */
};

/* Everything that a scan of the keys collects. */
typedef struct l3__keys {
    l3_error      *err;
    l3__params     params;
    l3__vocabulary vocabulary;
    l3_info        info;
    uint64_t       lookup_indices_at, file_checksum_at;
    uint32_t       n_lookups;
    bool           in_tokens; /* the strings being told are the vocabulary */
    bool           l3_keys, llama_keys;
    l3_model      *model; /* NULL in the first pass; in the second its arrays, sized by the first, are filled in */
    uint64_t       end;   /* of the tensors so far, relative to the data */
} l3__keys;

/* One token in 16 has its place in the file remembered: a quarter of a byte a token. */
#define L3__CHECKPOINT 16u

typedef enum l3__key_kind {
    L3__KEY_U32,
    L3__KEY_BOOL,
    L3__KEY_F64,
    L3__KEY_ZERO,
    L3__KEY_ONE,
    L3__KEY_ANY
} l3__key_kind;

typedef struct l3__key_rule {
    const char *suffix;
    uint8_t     kind;  /* l3__key_kind; ZERO and ONE: only this value does not change the numbers */
    uint16_t    field; /* offset in l3__params */
    uint32_t    max;
} l3__key_rule;

#define L3__FIELD(name) (uint16_t) offsetof(l3__params, name)

/* The rule of a key after its "l3." or "llama.", or NULL. */
L3__FN const l3__key_rule *l3__find_rule(const char *suffix) {
    static const l3__key_rule rules[] = {
        {"vocab_size", L3__KEY_U32, L3__FIELD(vocab_size), L3__MAX_VOCAB},
        {"context_length", L3__KEY_U32, L3__FIELD(context_length), L3__MAX_CONTEXT},
        {"embedding_length", L3__KEY_U32, L3__FIELD(embedding_length), L3__MAX_WIDTH},
        {"block_count", L3__KEY_U32, L3__FIELD(block_count), L3__MAX_BLOCKS},
        {"feed_forward_length", L3__KEY_U32, L3__FIELD(feed_forward_length), L3__MAX_WIDTH},
        {"attention.head_count", L3__KEY_U32, L3__FIELD(head_count), L3__MAX_HEADS},
        {"attention.head_count_kv", L3__KEY_U32, L3__FIELD(head_count_kv), L3__MAX_HEADS},
        {"attention.key_length", L3__KEY_U32, L3__FIELD(key_length), L3__MAX_WIDTH},
        {"attention.value_length", L3__KEY_U32, L3__FIELD(value_length), L3__MAX_WIDTH},
        {"attention.layer_norm_rms_epsilon", L3__KEY_F64, L3__FIELD(rms_epsilon), 1},
        {"rope.dimension_count", L3__KEY_U32, L3__FIELD(rope_dims), L3__MAX_WIDTH},
        {"rope.freq_base", L3__KEY_F64, L3__FIELD(rope_base), 1000000000},
        {"rope.scale_linear", L3__KEY_ONE, 0, 0},
        {"attention.causal", L3__KEY_ONE, 0, 0},
        {"expert_count", L3__KEY_ZERO, 0, 0},
        {"expert_used_count", L3__KEY_ZERO, 0, 0},
        {"tensor_data_layout", L3__KEY_ANY, 0, 0},
        {"lookup.row_count", L3__KEY_U32, L3__FIELD(row_count), INT32_MAX},
        {"lookup.rows_per_token_max", L3__KEY_U32, L3__FIELD(rows_per_token_max), INT32_MAX},
        {"lookup.key_length", L3__KEY_U32, L3__FIELD(lookup_key_length), L3__MAX_WIDTH},
        {"lookup.value_length", L3__KEY_U32, L3__FIELD(lookup_value_length), L3__MAX_WIDTH},
        {"lookup.up_length", L3__KEY_U32, L3__FIELD(up_length), L3__MAX_WIDTH},
        {"lookup.tied", L3__KEY_BOOL, L3__FIELD(tied), 1},
        {"lookup.query_norm", L3__KEY_BOOL, L3__FIELD(query_norm), 1},
        {"lookup.key_norm", L3__KEY_BOOL, L3__FIELD(key_norm), 1},
        {"lookup.residual", L3__KEY_BOOL, L3__FIELD(residual), 1},
        {"lookup.score_scale", L3__KEY_F64, L3__FIELD(score_scale), 1000000},
        {"lookup.norm_epsilon", L3__KEY_F64, L3__FIELD(norm_epsilon), 1},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (strcmp(rules[i].suffix, suffix) == 0) return &rules[i];
    return NULL;
}

L3__FN bool l3__is_integer(const l3_gguf_key *k) {
    return k->type <= L3_GGUF_I32 || k->type == L3_GGUF_U64 || k->type == L3_GGUF_I64;
}
L3__FN bool l3__is_float(const l3_gguf_key *k) { return k->type == L3_GGUF_F32 || k->type == L3_GGUF_F64; }
L3__FN bool l3__is_text(const l3_gguf_key *k, const char *text) {
    const size_t n = strlen(text);
    return k->type == L3_GGUF_STRING && k->text && k->count == n && memcmp(k->text, text, n) == 0;
}
L3__FN bool l3__starts_with(const char *s, const char *prefix) { return strncmp(s, prefix, strlen(prefix)) == 0; }

L3__FN int l3__bad_key(const l3__keys *m, const l3_gguf_key *k, const char *right) {
    return l3__fail(m->err, L3_ERR_FORMAT, k->offset, "key %s: %s is right", k->name, right);
}
L3__FN int l3__unsupported_key(const l3__keys *m, const l3_gguf_key *k) {
    return l3__fail(m->err, L3_ERR_UNSUPPORTED, k->offset, "key %s is not supported, and it may change the numbers",
                    k->name);
}

L3__FN int l3__apply_rule(l3__keys *m, const l3__key_rule *rule, const l3_gguf_key *k) {
    unsigned char *field = (unsigned char *)&m->params + rule->field;
    const uint32_t value = (uint32_t)(k->integer & UINT32_MAX);
    switch (rule->kind) {
    case L3__KEY_U32:
        if (!l3__is_integer(k) || k->integer > rule->max) /* 0 counts as absent, and is refused where that is */
            return l3__fail(m->err, L3_ERR_FORMAT, k->offset, "key %s: an integer up to %u is right", k->name,
                            rule->max);
        memcpy(field, &value, sizeof value);
        return L3_OK;
    case L3__KEY_BOOL:
        if (k->type != L3_GGUF_BOOL || k->integer > 1) return l3__bad_key(m, k, "a bool");
        memcpy(field, &value, sizeof value);
        return L3_OK;
    case L3__KEY_F64:
        if (!l3__is_float(k) || !(k->number > -1e6) || !(k->number <= rule->max))
            return l3__fail(m->err, L3_ERR_FORMAT, k->offset, "key %s: a number up to %u is right", k->name, rule->max);
        memcpy(field, &k->number, sizeof k->number);
        return L3_OK;
    case L3__KEY_ZERO:
    case L3__KEY_ONE:
        if (k->type == L3_GGUF_STRING || k->type == L3_GGUF_ARRAY) return l3__unsupported_key(m, k);
        return k->number == (rule->kind == L3__KEY_ONE ? 1 : 0) ? L3_OK : l3__unsupported_key(m, k);
    default: return L3_OK;
    }
}

/* A key with the prefix of an architecture of ours. What is not known might change the numbers, so it is refused. */
L3__FN int l3__model_key(l3__keys *m, const l3_gguf_key *k, const char *suffix) {
    const l3__key_rule *rule = l3__find_rule(suffix);
    if (rule) return l3__apply_rule(m, rule, k);
    if (strcmp(suffix, "rope.scaling.type") == 0) return l3__is_text(k, "none") ? L3_OK : l3__unsupported_key(m, k);
    if (strcmp(suffix, "lookup.norm_type") == 0) {
        m->params.layer_norm = l3__is_text(k, "layer");
        return m->params.layer_norm || l3__is_text(k, "rms") ? L3_OK : l3__bad_key(m, k, "\"rms\" or \"layer\"");
    }
    if (strcmp(suffix, "lookup.block_indices") == 0) {
        if (k->type != L3_GGUF_ARRAY || (k->item_type != L3_GGUF_U32 && k->item_type != L3_GGUF_I32) ||
            k->count > L3__MAX_BLOCKS)
            return l3__bad_key(m, k, "an array of u32 with at most one block each");
        m->lookup_indices_at = k->offset;
        m->n_lookups         = (uint32_t)k->count;
        return L3_OK;
    }
    return l3__starts_with(suffix, "training.") ? L3_OK : l3__unsupported_key(m, k);
}

/* The tensor's address, where its source is mapped. */
L3__FN void l3__map_tensor(l3_tensor *t) {
    const uint64_t bytes = l3__tensor_bytes(t);
    if (t->source->map && bytes <= SIZE_MAX) t->data = t->source->map(t->source->user, t->offset, (size_t)bytes);
}

/* An array of numbers of four bytes in the metadata, as a tensor of I32. */
L3__FN void l3__key_tensor(const l3__keys *m, const l3_gguf_key *k, l3_tensor *t, uint32_t rows) {
    t->source = &m->model->source;
    t->offset = k->offset;
    t->rows   = rows;
    t->cols   = (uint32_t)k->count / rows;
    t->type   = L3_I32;
    l3__map_tensor(t);
}

L3__FN int l3__checksum_key(l3__keys *m, const l3_gguf_key *k, const char *suffix) {
    uint32_t block = 0;
    if (strcmp(suffix, "file") == 0) {
        if (k->type != L3_GGUF_U32) return l3__bad_key(m, k, "a u32");
        m->file_checksum_at       = k->offset;
        m->info.has_file_checksum = true;
        return L3_OK;
    }
    if (!l3__starts_with(suffix, "rows.")) return l3__unsupported_key(m, k);
    for (const char *p = suffix + 5; *p >= '0' && *p <= '9' && block < L3__MAX_BLOCKS; p++)
        block = block * 10 + (uint32_t)(*p - '0');
    for (uint32_t i = 0; m->model && i < m->model->info.n_lookups; i++) {
        l3_tensor *t = &m->model->lookups[i].checksums;
        if (m->model->lookup_blocks[i] != block) continue;
        if (k->type != L3_GGUF_ARRAY || k->item_type != L3_GGUF_U32 || k->count != m->model->info.vocab)
            return l3__bad_key(m, k, "an array of u32 with one for each token");
        l3__key_tensor(m, k, t, 1);
    }
    return L3_OK;
}

#ifndef L3_NO_SELFTEST
L3__FN int l3__selftest_key(const l3__keys *m, const l3_gguf_key *k, const char *suffix) {
    const bool is_tokens = strcmp(suffix, "tokens") == 0;
    if (!is_tokens && strcmp(suffix, "logits") != 0) return l3__unsupported_key(m, k);
    if (!m->model) return L3_OK;
    const uint32_t rows = is_tokens ? 1 : 3, most = is_tokens ? m->model->info.context : m->model->info.vocab;
    if (k->type != L3_GGUF_ARRAY || k->item_type != (is_tokens ? L3_GGUF_I32 : L3_GGUF_F32) || k->count % rows != 0 ||
        k->count / rows < 2 || k->count / rows > most)
        return l3__bad_key(m, k,
                           is_tokens ? "an array of i32, 2 to the context's length"
                                     : "an array of f32, three times 2 to the vocabulary's size");
    l3__key_tensor(m, k, is_tokens ? &m->model->selftest_tokens : &m->model->selftest_logits, rows);
    return L3_OK;
}
#endif

L3__FN int l3__id_key(const l3__keys *m, const l3_gguf_key *k, int32_t *id) {
    if (!l3__is_integer(k)) return l3__bad_key(m, k, "a token ID");
    *id = (k->integer & UINT32_MAX) == UINT32_MAX ? -1 : (int32_t)(k->integer < INT32_MAX ? k->integer : INT32_MAX);
    return L3_OK;
}

L3__FN int l3__array_key(const l3__keys *m, const l3_gguf_key *k, int type, int or_type, uint64_t *at, uint32_t *n) {
    if (k->type != L3_GGUF_ARRAY || (k->item_type != type && k->item_type != or_type) || k->count > L3__MAX_VOCAB)
        return l3__bad_key(m, k, "an array of its type with one item a token, at most 2^20");
    *at = k->offset;
    *n  = (uint32_t)k->count;
    return L3_OK;
}

L3__FN int l3__tokenizer_key(l3__keys *m, const l3_gguf_key *k, const char *suffix) {
    l3__vocabulary *v = &m->vocabulary;
    if (strcmp(suffix, "model") == 0) v->other_model = !l3__is_text(k, "llama");
    if (strcmp(suffix, "precompiled_charsmap") == 0 && k->count) v->normalizes = true;
    if (strcmp(suffix, "remove_extra_whitespaces") == 0 && k->integer) v->normalizes = true;
    if (strcmp(suffix, "bos_token_id") == 0) return l3__id_key(m, k, &m->info.bos);
    if (strcmp(suffix, "eos_token_id") == 0) return l3__id_key(m, k, &m->info.eos);
    if (strcmp(suffix, "unknown_token_id") == 0) return l3__id_key(m, k, &m->info.unknown);
    if (strcmp(suffix, "add_bos_token") == 0) m->info.add_bos = k->integer != 0;
    if (strcmp(suffix, "add_space_prefix") == 0) m->info.add_space_prefix = k->integer != 0;
    if (strcmp(suffix, "scores") == 0)
        return l3__array_key(m, k, L3_GGUF_F32, L3_GGUF_F32, &v->scores_at, &v->n_scores);
    if (strcmp(suffix, "token_type") == 0)
        return l3__array_key(m, k, L3_GGUF_I32, L3_GGUF_U32, &v->types_at, &v->n_types);
    if (strcmp(suffix, "tokens") != 0) return L3_OK;
    m->in_tokens = true;
    return l3__array_key(m, k, L3_GGUF_STRING, L3_GGUF_STRING, &v->tokens_at, &v->count);
}

L3__FN void l3__copy_text(char *dst, size_t size, const l3_gguf_key *k) {
    const size_t n = k->text && k->count < size ? (size_t)k->count : k->text ? size - 1 : 0;
    if (n) memcpy(dst, k->text, n);
    dst[n] = '\0';
}

L3__FN int l3__general_key(l3__keys *m, const l3_gguf_key *k, const char *suffix) {
    if (strcmp(suffix, "architecture") == 0) l3__copy_text(m->info.architecture, sizeof m->info.architecture, k);
    if (strcmp(suffix, "name") == 0) l3__copy_text(m->info.name, sizeof m->info.name, k);
    if (strcmp(suffix, "type") == 0)
        m->info.kind = l3__is_text(k, "tokenizer")    ? L3_KIND_TOKENIZER
                       : l3__is_text(k, "allocation") ? L3_KIND_ALLOCATION
                                                      : L3_KIND_MODEL;
    return L3_OK;
}

L3__FN int l3__on_key(void *user, const l3_gguf_key *k) {
    l3__keys *m  = (l3__keys *)user;
    m->in_tokens = false;
    if (l3__starts_with(k->name, "general.")) return l3__general_key(m, k, k->name + 8);
    if (l3__starts_with(k->name, "tokenizer.ggml.")) return l3__tokenizer_key(m, k, k->name + 15);
    if (l3__starts_with(k->name, "l3.checksum.")) return l3__checksum_key(m, k, k->name + 12);
#ifdef L3_NO_SELFTEST
    if (l3__starts_with(k->name, "l3.selftest.")) return L3_OK;
#else
    if (l3__starts_with(k->name, "l3.selftest.")) return l3__selftest_key(m, k, k->name + 12);
#endif
    if (strcmp(k->name, "split.count") == 0 && k->integer > 1) return l3__unsupported_key(m, k);
    if (l3__starts_with(k->name, "llama.")) {
        m->llama_keys = true;
        return l3__model_key(m, k, k->name + 6);
    }
    if (!l3__starts_with(k->name, "l3.")) return L3_OK;
    m->l3_keys = true;
    return l3__model_key(m, k, k->name + 3);
}

L3__FN int l3__on_string(void *user, uint64_t i, uint64_t off, uint64_t n) {
    l3__keys *m = (l3__keys *)user;
    if (!m->in_tokens) return L3_OK;
    if (n > L3__MAX_PIECE || off - m->vocabulary.tokens_at > UINT32_MAX)
        return l3__fail(m->err, L3_ERR_FORMAT, off,
                        "tokenizer.ggml.tokens: piece %U has %U bytes; at most %u are right", i, n, L3__MAX_PIECE);
    if (m->info.longest_piece < n) m->info.longest_piece = (uint32_t)n;
    if (m->model && i % L3__CHECKPOINT == 0 && i < m->model->info.vocab && m->model->info.has_tokenizer)
        m->model->checkpoints[i / L3__CHECKPOINT] = (uint32_t)(off - 8 - m->vocabulary.tokens_at);
    m->vocabulary.tokens_end = off + n;
    return L3_OK;
}

/* Checks what the keys say together, and completes m->info. */
L3__FN int l3__settle_shape(l3__keys *m) {
    const l3__params *p = &m->params;
    l3_info          *x = &m->info;
    x->context = p->context_length, x->dim = p->embedding_length, x->ffn_dim = p->feed_forward_length;
    x->n_blocks = p->block_count, x->n_heads = p->head_count;
    if (!x->context || !x->dim || !x->ffn_dim || !x->n_blocks || !x->n_heads)
        return l3__fail(m->err, L3_ERR_FORMAT, 0, "key %s.%s is missing", x->architecture,
                        !x->context    ? "context_length"
                        : !x->dim      ? "embedding_length"
                        : !x->ffn_dim  ? "feed_forward_length"
                        : !x->n_blocks ? "block_count"
                                       : "attention.head_count");
    x->n_kv_heads = p->head_count_kv ? p->head_count_kv : x->n_heads;
    x->head_dim   = p->key_length ? p->key_length : x->dim / x->n_heads;
    x->rope_dims  = p->rope_dims ? p->rope_dims : x->dim / x->n_heads;
    x->rope_base  = p->rope_base;
    if ((p->value_length && p->value_length != x->head_dim) || (!p->key_length && x->dim % x->n_heads != 0) ||
        x->n_heads % x->n_kv_heads != 0 || (uint64_t)x->n_heads * x->head_dim > L3__MAX_WIDTH)
        return l3__fail(m->err, L3_ERR_FORMAT, 0, "%u heads and %u KV heads of %u do not fit an embedding of %u",
                        x->n_heads, x->n_kv_heads, x->head_dim, x->dim);
    if (x->rope_dims > x->head_dim || x->rope_dims % 2 != 0 || !(x->rope_base >= 1))
        return l3__fail(m->err, L3_ERR_FORMAT, 0, "RoPE over %u of %u dimensions, or its base, cannot be", x->rope_dims,
                        x->head_dim);
    if (!(p->rms_epsilon >= 1e-30))
        return l3__fail(m->err, L3_ERR_FORMAT, 0, "key %s.attention.layer_norm_rms_epsilon is missing or not above 0",
                        x->architecture);
    if (p->norm_epsilon < 0 && p->norm_epsilon > L3__ABSENT)
        return l3__fail(m->err, L3_ERR_FORMAT, 0, "key l3.lookup.norm_epsilon is below 0");
    x->rms_epsilon = (float)p->rms_epsilon;
    return L3_OK;
}

L3__FN int l3__settle_vocabulary(l3__keys *m) {
    const l3__vocabulary *v = &m->vocabulary;
    l3_info              *x = &m->info;
    x->vocab                = m->params.vocab_size ? m->params.vocab_size : v->count;
    x->has_tokenizer        = v->count && !v->other_model && !v->normalizes;
    if (x->vocab == 0)
        return l3__fail(m->err, L3_ERR_FORMAT, 0, "the file says neither vocab_size nor tokenizer.ggml.tokens");
    if ((v->count && v->count != x->vocab) || (v->n_scores && v->n_scores != v->count) ||
        (v->n_types && v->n_types != v->count))
        return l3__fail(m->err, L3_ERR_FORMAT, v->tokens_at,
                        "%u tokens, %u scores, %u token types for a vocabulary of %u", v->count, v->n_scores,
                        v->n_types, x->vocab);
    if (!v->count) x->bos = x->eos = x->unknown = -1;
    if (x->bos >= (int64_t)x->vocab || x->eos >= (int64_t)x->vocab || x->unknown >= (int64_t)x->vocab || x->bos < -1 ||
        x->eos < -1 || x->unknown < -1)
        return l3__fail(m->err, L3_ERR_FORMAT, 0, "a special token's ID is outside the vocabulary of %u", x->vocab);
    return L3_OK;
}

L3__FN int l3__settle(l3__keys *m) {
    l3_info   *x     = &m->info;
    const bool is_l3 = strcmp(x->architecture, "l3") == 0;
    if (x->kind == L3_KIND_MODEL && !is_l3 && strcmp(x->architecture, "llama") != 0)
        return l3__fail(m->err, L3_ERR_UNSUPPORTED, 0, "architecture \"%s\" is not supported; \"l3\" and \"llama\" are",
                        x->architecture);
    if (is_l3 ? m->llama_keys : m->l3_keys && x->kind == L3_KIND_MODEL)
        return l3__fail(m->err, L3_ERR_FORMAT, 0, "the file has keys of another architecture than its own, \"%s\"",
                        x->architecture);
    int code = l3__settle_vocabulary(m);
    if (code == L3_OK && x->kind == L3_KIND_MODEL) code = l3__settle_shape(m);
    x->n_lookups = x->kind == L3_KIND_TOKENIZER ? 0 : x->kind == L3_KIND_ALLOCATION ? 1 : m->n_lookups;
    if (code == L3_OK && m->n_lookups > x->n_blocks)
        code = l3__fail(m->err, L3_ERR_FORMAT, m->lookup_indices_at, "%u lookup layers for %u blocks", m->n_lookups,
                        x->n_blocks);
    return code;
}

L3__FN void l3__keys_init(l3__keys *m, l3_error *err) {
    memset(m, 0, sizeof *m);
    m->err                   = err;
    m->params.rope_base      = 10000;
    m->params.score_scale    = 1;
    m->params.norm_epsilon   = L3__ABSENT;
    m->params.residual       = 1;
    m->info.bos              = 1;
    m->info.eos              = 2;
    m->info.add_bos          = true;
    m->info.add_space_prefix = true;
}

/* First pass: the keys alone, which say how much memory the model takes. */
L3__FN int l3__scan_keys(l3__keys *m, const l3_source *source, l3_error *err) {
    const l3_gguf_visitor v = {m, l3__on_key, l3__on_string, NULL, NULL};
    l3__keys_init(m, err);
    int code = l3_gguf_scan(source, &v, err);
    if (code != L3_OK) return code;
    m->info.file_bytes = source->size;
    return l3__settle(m);
}

/* >>tensors ------------------------------------------------------------------------------------------------------- */

typedef enum l3__size { /* what a dimension must be */
                        L3__1,
                        L3__VOCAB,
                        L3__VOCAB_1,
                        L3__DIM,
                        L3__Q,
                        L3__KV,
                        L3__FFN,
                        L3__V,
                        L3__ROW,
                        L3__VALUE,
                        L3__UP,
                        L3__MIX,
                        L3__SIZES
} l3__size;

typedef struct l3__slot {
    const char *name;
    uint16_t    field;      /* offset in l3_model, l3__block or l3_lookup */
    uint8_t     rows, cols; /* l3__size */
    bool        optional;
} l3__slot;

#define L3__OF(type, field) (uint16_t) offsetof(type, field)
#define L3__TOP_SLOTS       3u
#define L3__BLOCK_SLOTS     9u
#define L3__LOOKUP_SLOTS    7u

/* Every tensor of a file: first the model's, then a block's, then a lookup layer's. */
L3__FN const l3__slot *l3__slots(void) {
    static const l3__slot slots[L3__TOP_SLOTS + L3__BLOCK_SLOTS + L3__LOOKUP_SLOTS] = {
        {"token_embd.weight", L3__OF(l3_model, embedding), L3__VOCAB, L3__DIM, false},
        {"output_norm.weight", L3__OF(l3_model, output_norm), L3__1, L3__DIM, false},
        {"output.weight", L3__OF(l3_model, output), L3__VOCAB, L3__DIM, true},
        {"attn_norm.weight", L3__OF(l3__block, attn_norm), L3__1, L3__DIM, false},
        {"attn_q.weight", L3__OF(l3__block, attn_q), L3__Q, L3__DIM, false},
        {"attn_k.weight", L3__OF(l3__block, attn_k), L3__KV, L3__DIM, false},
        {"attn_v.weight", L3__OF(l3__block, attn_v), L3__KV, L3__DIM, false},
        {"attn_output.weight", L3__OF(l3__block, attn_output), L3__DIM, L3__Q, false},
        {"ffn_norm.weight", L3__OF(l3__block, ffn_norm), L3__1, L3__DIM, false},
        {"ffn_gate.weight", L3__OF(l3__block, ffn_gate), L3__FFN, L3__DIM, false},
        {"ffn_up.weight", L3__OF(l3__block, ffn_up), L3__FFN, L3__DIM, false},
        {"ffn_down.weight", L3__OF(l3__block, ffn_down), L3__DIM, L3__FFN, false},
        {"lookup_offsets", L3__OF(l3_lookup, offsets), L3__1, L3__VOCAB_1, false},
        {"lookup_rows.weight", L3__OF(l3_lookup, rows), L3__V, L3__ROW, false},
        {"lookup_query_norm.weight", L3__OF(l3_lookup, query_norm_weight), L3__1, L3__DIM, true},
        {"lookup_up.weight", L3__OF(l3_lookup, up), L3__UP, L3__VALUE, true},
        {"lookup_up_norm.weight", L3__OF(l3_lookup, up_norm_weight), L3__1, L3__UP, true},
        {"lookup_up_norm.bias", L3__OF(l3_lookup, up_norm_bias), L3__1, L3__UP, true},
        {"lookup_mix.weight", L3__OF(l3_lookup, mix), L3__DIM, L3__MIX, false},
    };
    return slots;
}

L3__FN uint32_t l3__size_of(const l3_model *m, uint8_t size) {
    const l3_info   *x = &m->info;
    const l3_lookup *l = m->info.n_lookups ? m->lookups : NULL;
    switch (size) {
    case L3__1: return 1;
    case L3__VOCAB: return x->vocab;
    case L3__VOCAB_1: return x->vocab + 1;
    case L3__DIM: return x->dim;
    case L3__Q: return x->n_heads * x->head_dim;
    case L3__KV: return x->n_kv_heads * x->head_dim;
    case L3__FFN: return x->ffn_dim;
    case L3__V: return l ? l->row_count : 0;
    case L3__ROW: return l ? l->key_length + (l->tied ? 0 : l->value_length) : 0;
    case L3__VALUE: return l ? l->value_length : 0;
    case L3__UP: return l ? l->up_length : 0;
    default: return l ? l->up_length + l->key_length : 0;
    }
}

/* A tensor of the model with what its table entry says. */
typedef struct l3__place {
    const l3__slot *slot;
    l3_tensor      *tensor;
    uint32_t        block; /* UINT32_MAX: none */
} l3__place;

L3__FN l3_tensor *l3__field(void *base, const l3__slot *slot) {
    void *p = (unsigned char *)base + slot->field;
    return (l3_tensor *)p;
}

/* Place i = 0, 1, ... of all that the model could have; false after the last. */
L3__FN bool l3__place_at(const l3_model *m, uint32_t i, l3__place *p) {
    const l3__slot *slots         = l3__slots();
    const uint32_t  n_block_slots = m->info.n_blocks * L3__BLOCK_SLOTS,
                   n_lookup_slots = m->info.n_lookups * L3__LOOKUP_SLOTS;
    union {
        const l3_model *in;
        l3_model       *out;
    } top; /* the places of a model that is being opened are filled in through this; const callers only read */
    top.in   = m;
    p->block = UINT32_MAX;
    if (i < L3__TOP_SLOTS) {
        p->slot   = &slots[i];
        p->tensor = l3__field(top.out, p->slot);
        return true;
    }
    i -= L3__TOP_SLOTS;
    if (i < n_block_slots) {
        p->block  = i / L3__BLOCK_SLOTS;
        p->slot   = &slots[L3__TOP_SLOTS + i % L3__BLOCK_SLOTS];
        p->tensor = l3__field(&m->blocks[p->block], p->slot);
        return true;
    }
    i -= n_block_slots;
    if (i >= n_lookup_slots) return false;
    p->block  = m->lookup_blocks[i / L3__LOOKUP_SLOTS];
    p->slot   = &slots[L3__TOP_SLOTS + L3__BLOCK_SLOTS + i % L3__LOOKUP_SLOTS];
    p->tensor = l3__field(&m->lookups[i / L3__LOOKUP_SLOTS], p->slot);
    return true;
}

/* "blk.N.name", or the name alone. */
L3__FN void l3__place_name(const l3__place *p, char name[64]) {
    char    *at     = name;
    uint32_t digits = 1, n = p->block;
    if (n != UINT32_MAX) {
        memcpy(at, "blk.", 4);
        at += 4;
        while (digits * 10 <= n) digits *= 10;
        for (; digits; digits /= 10) *at++ = (char)('0' + (int)(n / digits % 10));
        *at++ = '.';
    }
    memcpy(at, p->slot->name, strlen(p->slot->name) + 1);
}

L3__FN bool l3__place_named(const l3_model *m, const char *wanted, l3__place *p) {
    char     name[64];
    uint32_t first = 0, block = 0, last = UINT32_MAX;
    if (l3__starts_with(wanted, "blk.")) { /* only this block's places can match, and the lookups' */
        for (const char *c = wanted + 4; *c >= '0' && *c <= '9' && block < L3__MAX_BLOCKS; c++)
            block = block * 10 + (uint32_t)(*c - '0');
        first = L3__TOP_SLOTS + (block < m->info.n_blocks ? block : 0) * L3__BLOCK_SLOTS;
        last  = first + L3__BLOCK_SLOTS;
    }
    for (uint32_t i = first; l3__place_at(m, i, p); i++) {
        if (i == last) i = L3__TOP_SLOTS + m->info.n_blocks * L3__BLOCK_SLOTS;
        if (!l3__place_at(m, i, p)) return false;
        l3__place_name(p, name);
        if (strcmp(name, wanted) == 0) return true;
    }
    return false;
}

/* >>open ---------------------------------------------------------------------------------------------------------- */

L3__FN int l3__overlaps(const l3__keys *o, const char *name, const l3_tensor *t, uint64_t end) {
    l3__place p;
    char      other[64];
    for (uint32_t i = 0; l3__place_at(o->model, i, &p); i++) {
        if (!p.tensor->source || p.tensor == t) continue;
        if (t->offset >= p.tensor->offset + l3__tensor_bytes(p.tensor) || p.tensor->offset >= end) continue;
        l3__place_name(&p, other);
        return l3__fail(o->err, L3_ERR_FORMAT, t->offset, "tensors %s and %s overlap", name, other);
    }
    return L3_OK;
}

L3__FN int l3__on_tensor(void *user, const l3_gguf_tensor *in) {
    l3__keys *o = (l3__keys *)user;
    l3__place p;
    uint64_t  end;
    if (!l3__place_named(o->model, in->name, &p))
        return l3__fail(o->err, L3_ERR_UNSUPPORTED, in->offset,
                        "tensor %s is not known here, and it may change the numbers", in->name);
    l3_tensor     *t    = p.tensor;
    const uint32_t rows = l3__size_of(o->model, p.slot->rows), cols = l3__size_of(o->model, p.slot->cols);
    if (t->source) return l3__fail(o->err, L3_ERR_FORMAT, in->offset, "tensor %s is there twice", in->name);
    if (in->dims[0] != cols || in->dims[1] != rows || in->dims[2] != 1 || in->dims[3] != 1)
        return l3__fail(o->err, L3_ERR_FORMAT, in->offset, "tensor %s is [%U, %U, %U]; [%u, %u] is right", in->name,
                        in->dims[0], in->dims[1], in->dims[2], cols, rows);
    const bool is_offsets = p.slot->cols == L3__VOCAB_1;
    if (in->type > INT32_MAX || (is_offsets ? in->type != L3_I32 : !l3__unpacker((int)in->type)))
        return l3__refuse_type(o->err, in->offset, in->name, in->type);
    t->rows = rows, t->cols = cols, t->type = (int32_t)in->type, t->offset = in->offset;
    const uint64_t bytes = l3__tensor_bytes(t);
    if (bytes == 0 || !l3__add(t->offset, bytes, &end))
        return l3__fail(o->err, L3_ERR_FORMAT, in->offset,
                        "tensor %s: rows of %u are no whole blocks of type %s, or it has none", in->name, cols,
                        l3_type_name(t->type));
    const int code = t->offset >= o->end ? L3_OK : l3__overlaps(o, in->name, t, end);
    if (o->end < end) o->end = end;
    t->source = p.slot->rows == L3__V ? &o->model->tables : &o->model->source;
    return code;
}

/* The data begin at start: every tensor gets its place in the file, and its address where that is mapped. */
L3__FN int l3__on_data(void *user, uint64_t start, uint64_t alignment) {
    l3__keys        *o = (l3__keys *)user;
    const l3_source *s = &o->model->source;
    l3__place        p;
    char             name[64];
    uint64_t         end;
    o->model->data_start = start;
    for (uint32_t i = 0; l3__place_at(o->model, i, &p); i++) {
        l3_tensor     *t     = p.tensor;
        const uint64_t bytes = l3__tensor_bytes(t);
        if (!t->source) continue;
        l3__place_name(&p, name);
        if (t->offset % alignment != 0)
            return l3__fail(o->err, L3_ERR_FORMAT, t->offset, "tensor %s begins at %U, no multiple of the alignment %U",
                            name, t->offset, alignment);
        if (!l3__add(start, t->offset, &t->offset) || !l3__add(t->offset, bytes, &end) || end > s->size)
            return l3__fail(o->err, L3_ERR_FORMAT, t->offset, "tensor %s lies at %U with %U bytes; the file ends at %U",
                            name, t->offset, bytes, s->size);
        l3__map_tensor(t);
        if (!t->data && !s->read)
            return l3__fail(o->err, L3_ERR_IO, t->offset, "tensor %s is not mapped, and the source has no read", name);
    }
    return L3_OK;
}

/* An allocation has nothing but its offsets; a tokenizer no tensors at all. */
L3__FN bool l3__is_needed(const l3_model *m, const l3__place *p) {
    if (m->info.kind == L3_KIND_MODEL) return !p->slot->optional;
    return m->info.kind == L3_KIND_ALLOCATION && p->slot->cols == L3__VOCAB_1;
}

L3__APART int l3__check_complete(l3_model *m, l3_error *err) {
    l3__place p;
    char      name[64];
    for (uint32_t i = 0; l3__place_at(m, i, &p); i++) {
        l3__place_name(&p, name);
        if (!p.tensor->source && l3__is_needed(m, &p))
            return l3__fail(err, L3_ERR_FORMAT, m->data_start, "tensor %s is missing", name);
    }
    m->info.tied_head = m->info.kind == L3_KIND_MODEL && !m->output.source;
#ifndef L3_NO_SELFTEST
    if (l3__present(&m->selftest_tokens) != l3__present(&m->selftest_logits))
        return l3__fail(err, L3_ERR_FORMAT, 0, "of l3.selftest.tokens and l3.selftest.logits only one is there");
    m->info.selftest_tokens = m->selftest_tokens.cols;
#endif
    return L3_OK;
}

/* The lookup layers' numbers; their blocks must rise. */
L3__APART int l3__describe_lookups(l3_model *m, const l3__keys *k, l3_error *err) {
    l3__stack_buffer  buffer;
    l3__reader        r = l3__stack_reader(&m->source, &buffer);
    const l3__params *p = &k->params;
    for (uint32_t i = 0; i < m->info.n_lookups; i++) {
        l3_lookup     *l = &m->lookups[i];
        const uint8_t *b = m->info.kind == L3_KIND_MODEL ? l3__peek(&r, k->lookup_indices_at + 4 * i, 4, err) : NULL;
        if (!b && m->info.kind == L3_KIND_MODEL) return L3_ERR_IO;
        m->lookup_blocks[i] = b ? l3__le32(b) : 0;
        if (m->info.kind == L3_KIND_MODEL &&
            (m->lookup_blocks[i] >= m->info.n_blocks || (i && m->lookup_blocks[i] <= m->lookup_blocks[i - 1])))
            return l3__fail(err, L3_ERR_FORMAT, k->lookup_indices_at + 4 * i,
                            "l3.lookup.block_indices: block %u at place %u; blocks rise and are below %u",
                            m->lookup_blocks[i], i, m->info.n_blocks);
        l->vocab        = m->info.vocab;
        l->row_count    = p->row_count;
        l->max_rows     = p->rows_per_token_max;
        l->key_length   = p->lookup_key_length ? p->lookup_key_length : m->info.dim;
        l->value_length = p->lookup_value_length ? p->lookup_value_length : l->key_length;
        l->up_length    = p->up_length ? p->up_length : l->value_length;
        l->tied         = p->tied != 0;
        l->query_norm   = p->query_norm != 0;
        l->key_norm     = p->key_norm != 0;
        l->layer_norm   = p->layer_norm != 0;
        l->residual     = p->residual != 0;
        l->score_scale  = (float)p->score_scale;
        l->norm_epsilon = p->norm_epsilon >= 0 ? (float)p->norm_epsilon : m->info.rms_epsilon;
        if (m->info.kind == L3_KIND_MODEL && l->key_length != m->info.dim)
            return l3__fail(err, L3_ERR_FORMAT, 0, "l3.lookup.key_length is %u; the embedding_length %u is right",
                            l->key_length, m->info.dim);
        if (l->row_count == 0) return l3__fail(err, L3_ERR_FORMAT, 0, "key l3.lookup.row_count is missing");
    }
    return L3_OK;
}

L3__FN int l3__check_lookups(const l3_model *m, const l3_model_config *config, l3_error *err) {
    for (uint32_t i = 0; i < m->info.n_lookups; i++) {
        const l3_lookup *l    = &m->lookups[i];
        const int        code = m->info.kind == L3_KIND_MODEL ? l3_lookup_check(l, err) : l3__check_offsets(l, err);
        if (code != L3_OK) return code;
        if (config && config->require_checksums && !l3__present(&l->checksums))
            return l3__fail(err, L3_ERR_CHECKSUM, 0, "l3.checksum.rows.%u is required and not in the file",
                            m->lookup_blocks[i]);
    }
    if (config && config->require_checksums && !m->info.has_file_checksum)
        return l3__fail(err, L3_ERR_CHECKSUM, 0, "l3.checksum.file is required and not in the file");
    return L3_OK;
}

L3__FN size_t l3__model_layout(l3_model *m, const l3_info *x, const l3__target *target, l3_memory *memory, void *base) {
    l3__arena a = l3__arena_of(base, target);
    a.memory    = memory;
    L3__PURPOSE(&a, model);
    (void)l3__take(&a, 1, L3__BYTES_OF(&a, l3_model, model));
    m->blocks        = (l3__block *)l3__take(&a, x->n_blocks, L3__BYTES_OF(&a, l3__block, block));
    m->lookups       = (l3_lookup *)l3__take(&a, x->n_lookups, L3__BYTES_OF(&a, l3_lookup, lookup));
    m->lookup_blocks = (uint32_t *)l3__take(&a, x->n_lookups, sizeof(uint32_t));
    L3__PURPOSE(&a, vocabulary);
    m->checkpoints = (uint32_t *)l3__take(&a, x->has_tokenizer ? (x->vocab + L3__CHECKPOINT - 1) / L3__CHECKPOINT : 0,
                                          sizeof(uint32_t));
    return l3__arena_size(&a);
}

L3__APART size_t l3__count_model(const l3_info *x, const l3__target *target, l3_memory *memory) {
    l3_model m;
    return l3__model_layout(&m, x, target, memory, NULL);
}

L3__FN int l3__model_bytes(const l3_source *source, const l3__target *target, size_t *size, l3_error *err) {
    l3__keys  k;
    const int code = l3__scan_keys(&k, source, err);
    if (code == L3_OK) *size = l3__count_model(&k.info, target, NULL);
    return code;
}

L3_API int l3_model_size(const l3_source *source, const l3_model_config *config, size_t *size, l3_error *err) {
    (void)config;
    return l3__model_bytes(source, NULL, size, err);
}

#ifndef L3_NO_STDIO
L3_API int l3_model_size_for(const l3_target *target, const l3_source *source, size_t *size, l3_error *err) {
    return l3__model_bytes(source, target, size, err);
}
#endif

L3_API int l3_model_open(l3_model **model, const l3_source *source, const l3_model_config *config, void *mem,
                         size_t size, l3_error *err) {
    l3__keys              k;
    l3_model             *m          = (l3_model *)mem;
    const l3_gguf_visitor everything = {&k, l3__on_key, l3__on_string, l3__on_tensor, l3__on_data};
    int                   code       = l3__scan_keys(&k, source, err);
    if (code == L3_OK) code = l3__check_block(mem, size, l3__count_model(&k.info, NULL, NULL), err);
    if (code != L3_OK) return code;
    memset(mem, 0, l3__count_model(&k.info, NULL, NULL));
    (void)l3__model_layout(m, &k.info, NULL, NULL, mem);
    m->info       = k.info;
    m->vocabulary = k.vocabulary;
    m->source     = *source;
    m->tables     = config && config->tables ? *config->tables : *source;
    if (m->tables.size != m->source.size)
        return l3__fail(err, L3_ERR_ARGUMENT, 0,
                        "config.tables has %U bytes, the source %U; the same bytes are expected", m->tables.size,
                        m->source.size);
    m->file_checksum_at = k.file_checksum_at;
    if ((code = l3__describe_lookups(m, &k, err)) != L3_OK) return code;
    l3__keys_init(&k, err);
    k.model = m;
    code    = l3_gguf_scan(source, &everything, err);
    if (code == L3_OK) code = l3__check_complete(m, err);
    if (code == L3_OK) code = l3__check_lookups(m, config, err);
    if (code == L3_OK) *model = m;
    return code;
}

L3_API const l3_info *l3_model_info(const l3_model *m) { return &m->info; }

L3_API const l3_lookup *l3_model_lookup(const l3_model *m, uint32_t i, uint32_t *block) {
    if (i >= m->info.n_lookups) return NULL;
    if (block) *block = m->lookup_blocks[i];
    return &m->lookups[i];
}

L3_API const l3_tensor *l3_model_tensor(const l3_model *m, uint32_t i, char name[64]) {
    l3__place p;
    for (uint32_t at = 0, seen = 0; l3__place_at(m, at, &p); at++) {
        if (!p.tensor->source || seen++ != i) continue;
        l3__place_name(&p, name);
        return p.tensor;
    }
    return NULL;
}

/* Calls piece for the bytes [from, to) of the reader's source, in order. */
L3__FN int l3__each_piece(l3__reader *r, uint64_t from, uint64_t to, void (*piece)(void *, const uint8_t *, size_t),
                          void *user, l3_error *err) {
    while (from < to) {
        const size_t   n = to - from < L3__PEEK / 2 ? (size_t)(to - from) : L3__PEEK / 2;
        const uint8_t *p = l3__peek(r, from, n, err);
        if (!p) return err ? err->code : L3_ERR_IO;
        piece(user, p, n);
        from += n;
    }
    return L3_OK;
}

typedef struct l3__copying {
    unsigned char *to;
    uint32_t       crc;
} l3__copying;

L3__FN void l3__copy_piece(void *user, const uint8_t *p, size_t n) {
    l3__copying *c = (l3__copying *)user;
    memcpy(c->to, p, n);
    c->crc = l3_crc32(c->crc, c->to, n);
    c->to += n;
}

#ifndef L3_NO_PIN
/* A tensor that could be pinned. */
typedef struct l3__pin {
    l3_tensor *tensor;
    uint32_t   place; /* its number among all places, then the lookups' checksums */
    uint64_t   rank;  /* what goes first has less: its bytes, and what is read a few bytes at a time after all others */
} l3__pin;

/* What is not read for every token as a whole, or is in memory, or is pinned in part, has no rank. */
L3__FN uint64_t l3__pin_rank(const l3_model *m, const l3_tensor *t, bool rows) {
    if (!t->source || t->data || rows || (t == &m->embedding && !m->info.tied_head)) return 0;
    return l3__tensor_bytes(t) + (t->type == L3_I32 ? UINT64_MAX / 2 : 0);
}

/* The next tensor after *pin, the least rank first and of equals the first place; false after the last. */
L3__FN bool l3__next_pin(const l3_model *m, l3__pin *pin) {
    const l3__pin before = *pin;
    l3__place     p;
    pin->tensor = NULL;
    for (uint32_t i = 0, sums = 0;; i++) {
        const bool place = l3__place_at(m, i, &p);
        if (!place && sums == m->info.n_lookups) return pin->tensor != NULL;
        l3_tensor     *t    = place ? p.tensor : &m->lookups[sums++].checksums;
        const uint64_t rank = l3__pin_rank(m, t, place && p.slot->rows == L3__V);
        if (rank < before.rank || rank == 0 || (rank == before.rank && i <= before.place)) continue;
        if (pin->tensor && rank >= pin->rank) continue;
        pin->tensor = t, pin->rank = rank, pin->place = i;
    }
}

/* Takes room for the next tensor out of size bytes: how many of its rows fit. */
L3__FN uint32_t l3__take_pin(l3__arena *a, const l3_tensor *t, size_t size, unsigned char **to) {
    const uint64_t row = l3__tensor_bytes(t) / t->rows, used = (a->used + L3_ALIGN - 1) / L3_ALIGN * L3_ALIGN;
    const uint64_t fits = used < size ? (size - used) / row : 0;
    const uint32_t rows = fits < t->rows ? (uint32_t)fits : t->rows;
    if (rows) *to = (unsigned char *)l3__take(a, rows, (size_t)row);
    return rows;
}

L3_API size_t l3_model_pin_size(const l3_model *m, size_t budget) {
    l3__arena      a    = l3__arena_of(NULL, NULL);
    l3__pin        pin  = {NULL, 0, 0};
    unsigned char *to   = NULL;
    bool           more = true;
    while (more && l3__next_pin(m, &pin)) more = l3__take_pin(&a, pin.tensor, budget, &to) == pin.tensor->rows;
    return l3__arena_size(&a);
}

L3_API int l3_model_pin(l3_model *m, void *mem, size_t size, l3_error *err) {
    l3__stack_buffer buffer;
    l3__reader       r    = l3__stack_reader(&m->source, &buffer);
    l3__arena        a    = l3__arena_of(mem, NULL);
    l3__pin          pin  = {NULL, 0, 0};
    int              code = size ? l3__check_block(mem, size, size, err) : L3_OK;
    while (code == L3_OK && size && l3__next_pin(m, &pin)) {
        l3_tensor     *t    = pin.tensor;
        unsigned char *to   = NULL;
        const uint32_t rows = l3__take_pin(&a, t, size, &to);
        const uint64_t n    = l3__tensor_bytes(t) / t->rows * rows;
        l3__copying    copy = {to, 0};
        if (rows) code = l3__each_piece(&r, t->offset, t->offset + n, l3__copy_piece, &copy, err);
        if (rows && code == L3_OK) t->data = to, t->pinned = rows < t->rows ? rows : 0, m->pinned += (size_t)n;
        if (rows < t->rows) break;
    }
    return code;
}
#endif /* L3_NO_PIN */

/* FNV-1a, 64 bits. */
L3__FN void l3__hash_piece(void *user, const uint8_t *p, size_t n) {
    uint64_t h;
    memcpy(&h, user, sizeof h);
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3u;
    memcpy(user, &h, sizeof h);
}

L3_API int l3_model_fingerprint(const l3_model *m, uint64_t *fingerprint, l3_error *err) {
    l3__stack_buffer buffer;
    l3__reader       r = l3__stack_reader(&m->source, &buffer);
    l3__place        p;
    *fingerprint = 0xcbf29ce484222325u;
    int code = l3__each_piece(&r, 0, m->data_start < m->source.size ? m->data_start : m->source.size, l3__hash_piece,
                              fingerprint, err);
    for (uint32_t i = 0; code == L3_OK && l3__place_at(m, i, &p); i++) {
        const uint64_t bytes = l3__tensor_bytes(p.tensor), n = bytes < 64 ? bytes : 64;
        if (p.tensor->source)
            code = l3__each_piece(&r, p.tensor->offset, p.tensor->offset + n, l3__hash_piece, fingerprint, err);
    }
    return code;
}

L3__FN void l3__crc_piece(void *user, const uint8_t *p, size_t n) {
    uint32_t crc;
    memcpy(&crc, user, sizeof crc);
    crc = l3_crc32(crc, p, n);
    memcpy(user, &crc, sizeof crc);
}

/* l3.checksum.file: over the whole file, its own four bytes taken as zero. */
L3__FN int l3__verify_file(const l3_model *m, l3__reader *r, l3_error *err) {
    const uint64_t at      = m->file_checksum_at;
    const uint8_t  zero[4] = {0, 0, 0, 0};
    uint32_t       crc     = 0;
    int            code    = l3__each_piece(r, 0, at, l3__crc_piece, &crc, err);
    l3__crc_piece(&crc, zero, 4);
    if (code == L3_OK) code = l3__each_piece(r, at + 4, m->source.size, l3__crc_piece, &crc, err);
    const uint8_t *p = code == L3_OK ? l3__peek(r, at, 4, err) : NULL;
    if (!p) return code == L3_OK ? L3_ERR_IO : code;
    if (l3__le32(p) == crc) return L3_OK;
    return l3__fail(err, L3_ERR_CHECKSUM, at, "the file does not match its checksum l3.checksum.file");
}

/* One row block of a lookup layer against its checksum. */
L3__FN int l3__verify_rows(const l3_lookup *l, uint32_t token, l3__reader *r, l3_error *err) {
    const uint64_t row = l3_row_bytes(l->rows.type, l->rows.cols);
    uint32_t       crc = 0;
    const uint8_t *p   = l3__peek(r, l->offsets.offset + (uint64_t)token * 4, 8, err);
    if (!p) return L3_ERR_IO;
    const uint64_t from = l->rows.offset + row * l3__le32(p), to = l->rows.offset + row * l3__le32(p + 4);
    if (from > to || to > l->rows.source->size) return l3__fail(err, L3_ERR_FORMAT, from, "the offsets have changed");
    const int code = l3__each_piece(r, from, to, l3__crc_piece, &crc, err);
    if (code != L3_OK) return code;
    if (!(p = l3__peek(r, l->checksums.offset + (uint64_t)token * 4, 4, err))) return L3_ERR_IO;
    if (l3__le32(p) == crc) return L3_OK;
    return l3__fail(err, L3_ERR_CHECKSUM, from, "the rows of token %u at byte %U do not match their checksum", token,
                    from);
}

L3_API int l3_model_verify(const l3_model *m, l3_error *err) {
    l3__stack_buffer buffer;
    l3__reader       r    = l3__stack_reader(&m->source, &buffer);
    int              code = L3_OK;
    for (uint32_t i = 0; i < m->info.n_lookups; i++)
        for (uint32_t t = 0; l3__present(&m->lookups[i].checksums) && t < m->info.vocab; t++)
            if ((code = l3__verify_rows(&m->lookups[i], t, &r, err)) != L3_OK) return code;
    return m->info.has_file_checksum ? l3__verify_file(m, &r, err) : L3_OK;
}

/* >>layout -------------------------------------------------------------------------------------------------------- */

/* Where the online softmax over a text is. */
typedef struct l3__softmax {
    uint32_t at; /* keys that are done */
    float    peak, total;
} l3__softmax;

/* Heads that attend together at most, so that one need not wait for the other's exponentials. */
#if defined(L3__VECTORS)
#define L3__HEADS 4u
#else
#define L3__HEADS 1u
#endif

struct l3_session {
    const l3_model   *model;
    l3_session_config config; /* context and kv_type settled */
    uint32_t          position;
    size_t            kv_row;     /* bytes of one head's key or value at one position */
    unsigned char    *kv;         /* (n_blocks, n_kv_heads, 2: key then value, context, kv_row) */
    float            *logits;     /* (vocab,) */
    double           *rope_rates; /* (rope_dims / 2,) radians a position */
    l3_work           work;

    /* What one forward pass is about, for each of its positions: (batch,). */
    l3_session **owner;
    uint32_t    *at;     /* position in the owner's text */
    float      **wanted; /* where this position's logits go, or NULL */

    /* How far it is. */
    int         stage; /* l3__pass_stage */
    uint32_t    n;     /* positions; from L3__PASS_HEAD on, those whose logits are wanted */
    uint32_t    block, lookup;
    size_t      unit;    /* how much of the stage is done: positions, heads, elements or rows */
    l3__softmax softmax; /* of a head that attends in pieces */

    /* Scratch, (batch, ...). */
    float *x, *normed, *out;     /* dim */
    float *rope_sin, *rope_cos;  /* rope_dims / 2 */
    float *q, *k, *v, *attended; /* n_heads, n_kv_heads, n_kv_heads, n_heads times head_dim: while attending */
    float *gate, *up;            /* ffn_dim: in the feed-forward, on the same bytes; gate serves the head too */
};

/* Bytes of a KV cache row: whole blocks of its type, the last one of Q8_0 cut short where head_dim is no multiple of 32. */
L3__FN size_t l3__kv_row_bytes(int type, uint32_t head_dim) {
    if (type == L3_Q8_0) return (size_t)(head_dim / 32) * 34 + (head_dim % 32 ? 2 + head_dim % 32 : 0);
    return (size_t)l3_row_bytes(type, head_dim);
}

/* The first row of a head's keys (which = 0) or values (1) in one block. */
L3__FN unsigned char *l3__kv_rows(const l3_session *s, uint32_t block, uint32_t kv_head, uint32_t which) {
    const size_t head = (size_t)block * s->model->info.n_kv_heads + kv_head;
    return s->kv + (head * 2 + which) * s->config.context * s->kv_row;
}

/* Widest head of attention by tiles, whose keys and values lie on the stack. */
#define L3__MAX_HEAD 128

L3__FN bool l3__tiles_attention(const l3_model *m) {
    return m->info.head_dim % 32 == 0 && m->info.head_dim <= L3__MAX_HEAD;
}

L3__FN l3__widths l3__model_widths(const l3_model *m) {
    l3__widths x = l3__lookup_widths(m->lookups, m->info.n_lookups);
    l3__place  p;
    if (x.vector < m->info.dim) x.vector = m->info.dim;
    for (uint32_t i = 0; l3__place_at(m, i, &p); i++) l3__need_window(&x.window, p.tensor);
#ifndef L3_NO_SELFTEST
    l3__need_window(&x.window, &m->selftest_tokens);
    l3__need_window(&x.window, &m->selftest_logits);
#endif
    for (uint32_t b = 0; b < m->info.n_blocks; b++) {
        const l3__block *w         = &m->blocks[b];
        const l3_tensor *matrix[7] = {&w->attn_q,   &w->attn_k, &w->attn_v,  &w->attn_output,
                                      &w->ffn_gate, &w->ffn_up, &w->ffn_down};
        for (int i = 0; i < 7; i++) l3__need_cols(&x, matrix[i]);
    }
    l3__need_cols(&x, m->info.tied_head ? &m->embedding : &m->output);
    if (l3__tiles_attention(m)) x.queries = m->info.n_heads * m->info.head_dim;
    if (x.window && x.align < l3__align_of(&m->source)) x.align = l3__align_of(&m->source);
    return x;
}

L3_API size_t l3_session_window_min(const l3_model *m) { return (size_t)l3__model_widths(m).window; }

/* Attention by tiles writes whole tiles of positions. */
L3__FN uint32_t l3__spare_rows(const l3_session *s) {
    const l3__fast *f = s->work.kernels->prefill[0];
    return f && s->config.work.mode == L3_FAST && l3__tiles_attention(s->model) ? f->tile - 1 : 0;
}

/* The scratch of attention, feed-forward and lookup layers, one over the other: they are never in use together. */
L3__FN void l3__session_scratch(l3__arena *a, l3_session *s) {
    const l3_info *x     = &s->model->info;
    const uint64_t batch = s->work.batch, start = a->used;
    const uint64_t q_dim = (uint64_t)x->n_heads * x->head_dim, kv_dim = (uint64_t)x->n_kv_heads * x->head_dim;
    s->q        = (float *)l3__take(a, batch * q_dim, sizeof(float));
    s->k        = (float *)l3__take(a, batch * kv_dim, sizeof(float));
    s->v        = (float *)l3__take(a, batch * kv_dim, sizeof(float));
    s->attended = (float *)l3__take(a, (batch + l3__spare_rows(s)) * q_dim, sizeof(float));
    a->used     = start;
    s->gate     = (float *)l3__take(a, batch * x->ffn_dim, sizeof(float));
    s->up       = (float *)l3__take(a, batch * x->ffn_dim, sizeof(float));
    a->used     = start;
    l3__scratch_layout(a, &s->work);
}

/* Size and init in one: with base NULL it only counts. 0: the configuration cannot work. */
L3__FN size_t l3__session_layout(l3_session *s, const l3_model *m, const l3_session_config *config,
                                 const l3__target *target, l3_memory *memory, void *base) {
    const l3_info   *x      = &m->info;
    const l3__widths widths = l3__model_widths(m);
    l3__arena        a      = l3__arena_of(base, target);
    const size_t     word   = L3__BYTES_OF(&a, void *, pointer);
    uint64_t         kv;
    a.memory = memory;
    L3__PURPOSE(&a, session);
    (void)l3__take(&a, 1, L3__BYTES_OF(&a, l3_session, session));
    memset(s, 0, sizeof *s);
    s->model = m;
    if (config) s->config = *config;
    if (s->config.context == 0) s->config.context = x->context;
    if (s->config.step == 0) s->config.step = 16384;
    s->kv_row = l3__kv_row_bytes(s->config.kv_type, x->head_dim);
    if (!l3__work_layout(&a, &s->work, m->lookups, x->n_lookups, &s->config.work, &widths)) return 0;
    const uint64_t batch = s->work.batch;
    if (!l3__mul((uint64_t)x->n_blocks * x->n_kv_heads * 2 * s->kv_row, s->config.context, &kv)) return 0;
    L3__PURPOSE(&a, kv);
    s->kv = (unsigned char *)l3__take(&a, kv, 1);
    L3__PURPOSE(&a, logits);
    s->logits = (float *)l3__take(&a, x->vocab, sizeof(float));
    L3__PURPOSE(&a, session);
    s->rope_rates = (double *)l3__take(&a, x->rope_dims / 2, sizeof(double));
    s->owner      = (l3_session **)l3__take(&a, batch, word);
    s->at         = (uint32_t *)l3__take(&a, batch, sizeof(uint32_t));
    s->wanted     = (float **)l3__take(&a, batch, word);
    L3__PURPOSE(&a, scratch);
    s->x        = (float *)l3__take(&a, batch * x->dim, sizeof(float));
    s->normed   = (float *)l3__take(&a, batch * x->dim, sizeof(float));
    s->out      = (float *)l3__take(&a, batch * x->dim, sizeof(float));
    s->rope_sin = (float *)l3__take(&a, batch * (x->rope_dims / 2), sizeof(float));
    s->rope_cos = (float *)l3__take(&a, batch * (x->rope_dims / 2), sizeof(float));
    l3__session_scratch(&a, s);
    return l3__arena_size(&a);
}

L3__FN int l3__check_session(const l3_model *m, const l3_session_config *c, l3_error *err) {
    const size_t least = l3_session_window_min(m);
    if (m->info.kind != L3_KIND_MODEL)
        return l3__fail(err, L3_ERR_UNSUPPORTED, 0, "the file holds no model that could run");
    if (!c) return l3__check_level(NULL, err);
    if (c->context > m->info.context)
        return l3__fail(err, L3_ERR_ARGUMENT, 0, "a context of %u; the model was made for at most %u", c->context,
                        m->info.context);
    if (c->kv_type != L3_F32 && c->kv_type != L3_F16 && c->kv_type != L3_Q8_0)
        return l3__fail(err, L3_ERR_ARGUMENT, 0, "a KV cache of type %u; f32, f16 and q8_0 are right",
                        (uint32_t)c->kv_type);
    if (!l3__packer(c->kv_type)) return l3__refuse_type(err, 0, "the KV cache", (uint32_t)c->kv_type);
    if (c->work.batch > 65536)
        return l3__fail(err, L3_ERR_ARGUMENT, 0, "a batch of %u; at most 65536 is right", c->work.batch);
    if (c->work.window && c->work.window < least) return l3__window_error(err, c->work.window, least);
    return l3__check_level(&c->work, err);
}

L3_API size_t l3_session_size(const l3_model *m, const l3_session_config *config) {
    l3_session s;
    return l3__check_session(m, config, NULL) == L3_OK ? l3__session_layout(&s, m, config, NULL, NULL, NULL) : 0;
}

#ifndef L3_NO_STDIO
L3__FN size_t l3__session_for(const l3_target *target, const l3_model *m, const l3_session_config *config,
                              l3_memory *memory) {
    l3_session        s;
    l3_session_config c;
    memset(&c, 0, sizeof c);
    if (config) c = *config;
    c.work = l3__config_for(&c.work);
    return l3__check_session(m, &c, NULL) == L3_OK ? l3__session_layout(&s, m, &c, target, memory, NULL) : 0;
}

L3_API size_t l3_session_size_for(const l3_target *target, const l3_model *m, const l3_session_config *config) {
    return l3__session_for(target, m, config, NULL);
}

L3_API size_t l3_session_memory_for(const l3_target *target, const l3_model *m, const l3_session_config *config,
                                    l3_memory *memory) {
    memset(memory, 0, sizeof *memory);
    (void)l3__count_model(&m->info, target, memory);
    memory->pinned = m->pinned;
    return l3__session_for(target, m, config, memory);
}
#endif

L3_API size_t l3_session_memory(const l3_model *m, const l3_session_config *config, l3_memory *memory) {
    l3_session s;
    memset(memory, 0, sizeof *memory);
    (void)l3__count_model(&m->info, NULL, memory);
    memory->pinned = m->pinned;
    return l3__check_session(m, config, NULL) == L3_OK ? l3__session_layout(&s, m, config, NULL, memory, NULL) : 0;
}

L3_API int l3_session_init(l3_session **session, const l3_model *m, const l3_session_config *config, void *mem,
                           size_t size, l3_error *err) {
    int code = l3__check_session(m, config, err);
    if (code == L3_OK) code = l3__check_block(mem, size, l3_session_size(m, config), err);
    if (code != L3_OK) return code;
    l3_session    *s = (l3_session *)mem;
    const l3_info *x = &m->info;
    (void)l3__session_layout(s, m, config, NULL, NULL, mem);
    l3__work_reset(&s->work);
    for (uint32_t i = 0; i < x->rope_dims / 2; i++)
        s->rope_rates[i] = l3__exp(-2.0 * i / x->rope_dims * l3__log(x->rope_base));
    memset(s->logits, 0, x->vocab * sizeof(float));
    *session = s;
    return L3_OK;
}

/* >>attention ----------------------------------------------------------------------------------------------------- */

/* Sines and cosines for one position of the pass (RoPE: Su et al. 2021). */
L3__FN int l3__rope_table(l3_session *s) {
    const size_t half = s->model->info.rope_dims / 2, p = s->unit++;
    for (size_t i = 0; i < half; i++)
        l3__sincos(s->at[p] * s->rope_rates[i], &s->rope_sin[p * half + i], &s->rope_cos[p * half + i]);
    return s->unit < s->n ? L3__MORE : L3_OK;
}

/* Rotates adjacent pairs of the first rope_dims of each head; x (n_heads, head_dim) of pass position p. */
L3__FN void l3__rope(const l3_session *s, float *x, uint32_t n_heads, uint32_t p) {
    const uint32_t half = s->model->info.rope_dims / 2, head_dim = s->model->info.head_dim;
    const float   *sine = s->rope_sin + (size_t)p * half, *cosine = s->rope_cos + (size_t)p * half;
    for (uint32_t h = 0; h < n_heads; h++, x += head_dim) s->work.kernels->rotate(x, cosine, sine, half);
}

/* Keys and values of pass position p go to their owner's cache. */
L3__FN void l3__store_kv(const l3_session *s, uint32_t block, uint32_t p) {
    const l3_info    *x     = &s->model->info;
    const l3_session *owner = s->owner[p];
    for (uint32_t h = 0; h < x->n_kv_heads; h++) {
        const size_t from = ((size_t)p * x->n_kv_heads + h) * x->head_dim, to = s->at[p] * owner->kv_row;
        s->work.kernels->pack(owner->config.kv_type, s->k + from, x->head_dim, l3__kv_rows(owner, block, h, 0) + to);
        s->work.kernels->pack(owner->config.kv_type, s->v + from, x->head_dim, l3__kv_rows(owner, block, h, 1) + to);
    }
}

/* Softmax over one tile's scores (32,) of one position, of which `count` are its own; rescales what it has summed so far. */
L3__FN void l3__online_softmax(const l3__kernels *k, float *w, uint32_t count, float scale, float *peak, float *total,
                               float *out, uint32_t head_dim) {
    const float before = *peak, sum = k->softmax_tile(w, count, scale, peak);
    if (*peak > before && *total > 0) {
        const float shrink = l3__expf(before - *peak);
        k->scale(out, shrink, head_dim);
        *total *= shrink;
    }
    *total += sum;
}

/* Heads h ... h + heads - 1, which share keys and values, of one position over the positions up to its own, tile by tile: at
 * most `tiles` from a->at on. The result is complete when a->at has passed its own position. a (heads,). */
L3__FN void l3__attend(const l3_session *s, uint32_t block, uint32_t p, uint32_t h, uint32_t heads, l3__softmax *a,
                       uint32_t tiles) {
    const l3_info       *x     = &s->model->info;
    const l3_session    *owner = s->owner[p];
    const uint32_t       n = s->at[p] + 1, d = x->head_dim, kv_head = h / (x->n_heads / x->n_kv_heads);
    const unsigned char *keys = l3__kv_rows(owner, block, kv_head, 0), *values = l3__kv_rows(owner, block, kv_head, 1);
    const float         *q                      = s->q + ((size_t)p * x->n_heads + h) * d;
    float               *out                    = s->attended + ((size_t)p * x->n_heads + h) * d;
    const float          scale                  = 1.0f / l3__sqrtf((float)d);
    const l3__kernels   *k                      = s->work.kernels;
    const int            type                   = owner->config.kv_type;
    const size_t         row                    = owner->kv_row;
    const l3__fast      *fast                   = NULL;
    unsigned char       *packed                 = NULL;
    float                w[L3__HEADS][L3__TILE] = {{0}};
    uint32_t             t                      = a->at;
#if defined(L3__FIXED) /* queries and keys in whole numbers, too */
    l3__fixed_block query[L3__MAX_HEAD / 32];
    void           *room = query;
    packed               = (unsigned char *)room;
    if (s->config.work.mode == L3_FAST && k->level == L3__FIXED && d % 32 == 0 && d <= L3__MAX_HEAD)
        fast = k->decode[l3__type_index(type)];
    if (fast) fast->pack(type, q, 0, 1, d, packed);
#endif
    for (uint32_t i = 0; t == 0 && i < heads; i++) a[i].peak = l3__as_float(0xff800000u), a[i].total = 0;
    if (t == 0) memset(out, 0, (size_t)heads * d * sizeof *out);
    for (; t < n && tiles > 0; t += L3__TILE, tiles--) { /* each step for all heads: they do not wait for each other */
        const uint32_t count = n - t < L3__TILE ? n - t : L3__TILE;
        l3__scores(&s->work, fast, type, keys + t * row, row, count, d, q, packed, heads, w[0]);
        for (uint32_t i = 0; i < heads; i++)
            l3__online_softmax(k, w[i], count, scale, &a[i].peak, &a[i].total, out + (size_t)i * d, d);
#if defined(L3__FIXED) /* one head at a time */
        if (fast) {
            l3__fixed_weigh(values + t * row, row, w[0], count, out, d);
            continue;
        }
#endif
        k->weigh_rows(type, values + t * row, row, w[0], count, out, d, heads);
    }
    a->at = t;
    for (uint32_t i = 0; t >= n && i < heads; i++, out += d)
        for (uint32_t c = 0; c < d; c++) out[c] /= a[i].total;
}

#define L3__QUERIES 48u /* positions that share the unpacking of keys and values, where attention goes by tiles */

#if defined(L3__VECTORS)
/* ---- attention by tiles: many positions of one text against each tile of 32 keys and values, in L3_FAST ---- */

/* Values of up to 32 rows as panels of floats: 16 columns of all rows, then the next 16. */
L3__FN void l3__value_panels(const l3__kernels *k, int type, const unsigned char *values, size_t row, uint32_t count,
                             uint32_t head_dim, float *panel) {
    float v[L3__MAX_HEAD];
    for (uint32_t t = 0; t < L3__TILE; t++) {
        if (t < count) k->unpack(type, values + t * row, head_dim, v);
        else memset(v, 0, sizeof v);
        for (uint32_t c = 0; c < head_dim; c += 16) memcpy(panel + c * L3__TILE + t * 16, v + c, 16 * sizeof *v);
    }
}

/* Positions p0 ... p0 + n - 1, n <= L3__QUERIES, of head h. */
L3__FN void l3__attend_tiles(const l3_session *s, uint32_t block, uint32_t h, uint32_t p0, uint32_t n) {
    const l3_info     *x     = &s->model->info;
    const l3_session  *owner = s->owner[p0];
    const l3__kernels *k     = s->work.kernels;
    const l3__fast    *f     = k->prefill[0];
    const uint32_t     d = x->head_dim, q_dim = x->n_heads * d, kv_head = h / (x->n_heads / x->n_kv_heads);
    const int          type  = owner->config.kv_type;
    const size_t       row   = owner->kv_row;
    const float        scale = 1.0f / l3__sqrtf((float)d);
    float             *out   = s->attended + (size_t)p0 * q_dim + (size_t)h * d;
    float              keys[L3__MAX_HEAD * 16], values[L3__TILE * L3__MAX_HEAD], turned[L3__TILE * 16];
    float              w[L3__QUERIES + 16][L3__TILE]; /* whole tiles of positions */
    float              peak[L3__QUERIES], total[L3__QUERIES];
    unsigned char     *packed =
        s->work.packed + ((size_t)h * l3__packed_bytes(f, s->work.batch, d)) + l3__packed_bytes(f, p0, d);
    const size_t   tile_bytes = (size_t)l3__packed_bytes(f, 1, d);
    const uint32_t tiles = (n + f->tile - 1) / f->tile, last = s->at[p0 + n - 1];
    f->pack(L3_F32, s->q + (size_t)p0 * q_dim + (size_t)h * d, q_dim, n, d, packed);
    for (uint32_t p = 0; p < tiles * f->tile; p++) memset(out + (size_t)p * q_dim, 0, d * sizeof *out);
    for (uint32_t p = 0; p < n; p++) peak[p] = l3__as_float(0xff800000u), total[p] = 0;
    for (uint32_t t = 0; t <= last; t += L3__TILE) {
        const unsigned char *first = l3__kv_rows(owner, block, kv_head, 0) + t * row;
        const uint32_t       count = last + 1 - t < L3__TILE ? last + 1 - t : L3__TILE;
        const uint8_t       *rows[2][16];
        l3__panel_rows(rows[0], first, row, count);
        l3__panel_rows(rows[1], count > 16 ? first + 16 * row : first, row, count > 16 ? count - 16 : 1);
        l3__value_panels(k, type, l3__kv_rows(owner, block, kv_head, 1) + t * row, row, count, d, values);
        uint32_t skipped = 0; /* tiles of positions that come before these keys */
        while ((skipped + 1) * f->tile <= n && s->at[p0 + (skipped + 1) * f->tile - 1] < t) skipped++;
        for (uint32_t half = 0; half < 2; half++) {
            f->panel(type, rows[half], 0, d / 32, d, keys);
            for (uint32_t i = skipped; i < tiles; i++)
                f->times(keys, packed + i * tile_bytes, d / 32, true, &w[i * f->tile][16 * half], L3__TILE);
        }
        for (uint32_t i = skipped; i < tiles; i++) {
            const uint32_t from = i * f->tile, some = n - from < f->tile ? n - from : f->tile;
            memset(turned, 0, L3__TILE * f->tile * sizeof *turned);
            for (uint32_t p = 0; p < some; p++) {
                const uint32_t at  = s->at[p0 + from + p];
                const uint32_t own = at < t ? 0 : at - t + 1 < count ? at - t + 1 : count;
                if (own) {
                    l3__online_softmax(k, w[from + p], own, scale, &peak[from + p], &total[from + p],
                                       out + (size_t)(from + p) * q_dim, d);
                } else {
                    memset(w[from + p], 0, sizeof w[from + p]);
                }
                for (uint32_t j = 0; j < L3__TILE; j++) turned[j * f->tile + p] = w[from + p][j];
            }
            for (uint32_t c = 0; c < d; c += 16)
                f->times(values + c * L3__TILE, turned, L3__TILE / 32, false, out + (size_t)from * q_dim + c, q_dim);
        }
    }
    for (uint32_t p = 0; p < n; p++)
        for (uint32_t i = 0; i < d; i++) out[(size_t)p * q_dim + i] /= total[p];
}

#endif

typedef struct l3__attend_job {
    const l3_session *session;
    uint32_t          block, n, per_head; /* pieces of a head, 0: position by position, `heads` heads at a time */
    uint32_t          heads;
} l3__attend_job;

L3__FN void l3__attend_piece(void *arg, uint32_t i) {
    const l3__attend_job *j       = (const l3__attend_job *)arg;
    const uint32_t        n_heads = j->session->model->info.n_heads;
#if defined(L3__VECTORS)
    if (j->per_head) {
        const uint32_t from = i % j->per_head * L3__QUERIES, left = j->n - from;
        l3__attend_tiles(j->session, j->block, i / j->per_head, from, left < L3__QUERIES ? left : L3__QUERIES);
        return;
    }
#endif
    const uint32_t groups = n_heads / j->heads;
    l3__softmax    a[L3__HEADS];
    a[0].at = 0;
    l3__attend(j->session, j->block, i / groups, i % groups * j->heads, j->heads, a, UINT32_MAX);
}

/* Every head of n positions: small passes stay on this thread; else there are some pieces for each. */
L3__FN void l3__attend_all(const l3_session *s, uint32_t block, uint32_t n) {
    const l3_info *x       = &s->model->info;
    l3__attend_job j       = {s, block, n, 0, L3__HEADS};
    uint64_t       work    = 0;
    const l3_jobs  nowhere = {NULL, 0, NULL}, *jobs = &nowhere;
    for (uint32_t p = 0; p < n; p++) work += (uint64_t)s->at[p] * x->n_heads * x->head_dim;
    if (work >= 65536) jobs = &s->work.config.jobs;
    while (x->n_heads / x->n_kv_heads % j.heads ||
           (j.heads > 1 && jobs->run && n * x->n_heads / j.heads < 4 * jobs->width))
        j.heads--;
    if (s->work.prefill && s->config.work.mode == L3_FAST && s->work.kernels->prefill[0] &&
        l3__tiles_attention(s->model))
        j.per_head = (n + L3__QUERIES - 1) / L3__QUERIES;
    l3__run(jobs, j.per_head ? j.per_head * x->n_heads : n * (x->n_heads / j.heads), l3__attend_piece, &j);
}

/* All of it, or as many tiles of one head as make a piece. */
L3__FN int l3__attend_some(l3_session *s) {
    const l3_info *x     = &s->model->info;
    const uint32_t heads = s->n * x->n_heads, head = (uint32_t)s->unit, p = head / x->n_heads;
    if (!l3__in_pieces(&s->work)) {
        l3__attend_all(s, s->block, s->n);
        return L3_OK;
    }
    const uint32_t tiles = (s->at[p] - s->softmax.at) / L3__TILE + 1;
    l3__attend(s, s->block, p, head % x->n_heads, 1, &s->softmax,
               l3__allowed(&s->work, tiles, L3__TILE * (2 * (uint64_t)x->head_dim + L3__EXP_COST)));
    if (s->softmax.at > s->at[p]) s->softmax.at = 0, s->unit++;
    return s->unit < heads ? L3__MORE : L3_OK;
}

/* >>blocks -------------------------------------------------------------------------------------------------------- */

/* out (n, dim) = rms(x) * weight. */
L3__FN int l3__norm_all(l3_session *s, const l3_tensor *weight, const float *x, uint32_t n, float *out, l3_error *err) {
    const uint32_t  dim = s->model->info.dim;
    const float    *w;
    const int       code = l3__load_weight(&s->work, weight, &w, err);
    const l3__norms j    = {s->work.kernels, x, w, out, dim, dim, s->model->info.rms_epsilon, false};
    if (code == L3_OK) l3__each_position(&s->work, n, 2 * dim, l3__norm_one, &j);
    return code;
}

/* The embedding of one position. */
L3__FN int l3__embed(l3_session *s, l3_error *err) {
    const size_t p = s->unit++;
    const int    code =
        l3__load_row(&s->work, &s->model->embedding, (uint32_t)s->work.tokens[p], s->x + p * s->model->info.dim, err);
    return code == L3_OK && s->unit < s->n ? L3__MORE : code;
}

L3__FN int l3__qkv(l3_session *s, l3_error *err) {
    const l3_info    *x     = &s->model->info;
    const l3__block  *w     = &s->model->blocks[s->block];
    const uint32_t    q_dim = x->n_heads * x->head_dim, kv_dim = x->n_kv_heads * x->head_dim;
    const l3__product products[3] = {{&w->attn_q, s->q, q_dim}, {&w->attn_k, s->k, kv_dim}, {&w->attn_v, s->v, kv_dim}};
    return l3__matmuls(&s->work, products, 3, s->normed, x->dim, s->n, err);
}

/* Queries and keys of one position are rotated, keys and values stored. */
L3__FN void l3__rope_and_store(const void *arg, uint32_t p) {
    const l3_session *s = (const l3_session *)arg;
    const l3_info    *x = &s->model->info;
    l3__rope(s, s->q + (size_t)p * x->n_heads * x->head_dim, x->n_heads, p);
    l3__rope(s, s->k + (size_t)p * x->n_kv_heads * x->head_dim, x->n_kv_heads, p);
    l3__store_kv(s, s->block, p);
}

/* Of all positions, or of the next one. */
L3__FN int l3__rope_some(l3_session *s) {
    const l3_info *x = &s->model->info;
    if (!l3__in_pieces(&s->work)) {
        l3__each_position(&s->work, s->n, 2 * (uint64_t)(x->n_heads + x->n_kv_heads) * x->head_dim, l3__rope_and_store,
                          s);
        return L3_OK;
    }
    l3__rope_and_store(s, (uint32_t)s->unit++);
    return s->unit < s->n ? L3__MORE : L3_OK;
}

L3__FN void l3__residual_one(const void *arg, uint32_t p) {
    const l3_session *s  = (const l3_session *)arg;
    const size_t      at = (size_t)p * s->model->info.dim;
    s->work.kernels->add_scaled(s->x + at, s->out + at, 1.0f, s->model->info.dim);
}

/* x += matrix times y (n, cols). */
L3__FN int l3__add_product(l3_session *s, const l3_tensor *matrix, const float *y, l3_error *err) {
    const uint32_t d    = s->model->info.dim;
    const int      code = l3__matmul(&s->work, matrix, y, matrix->cols, s->n, s->out, d, err);
    if (code == L3_OK) l3__each_position(&s->work, s->n, d, l3__residual_one, s);
    return code;
}

L3__FN int l3__gate_up(l3_session *s, l3_error *err) {
    const l3__block  *w           = &s->model->blocks[s->block];
    const uint32_t    f           = s->model->info.ffn_dim;
    const l3__product products[2] = {{&w->ffn_gate, s->gate, f}, {&w->ffn_up, s->up, f}};
    return l3__matmuls(&s->work, products, 2, s->normed, s->model->info.dim, s->n, err);
}

L3__FN void l3__swiglu_one(const void *arg, uint32_t p) {
    const l3_session *s  = (const l3_session *)arg;
    const size_t      at = (size_t)p * s->model->info.ffn_dim;
    s->work.kernels->swiglu(s->gate + at, s->up + at, s->model->info.ffn_dim);
}

/* gate = silu(gate) * up: SwiGLU (Shazeer 2020). Of all positions, or of as many elements as make a piece. */
L3__FN int l3__swiglu_some(l3_session *s) {
    const size_t all = (size_t)s->n * s->model->info.ffn_dim, left = all - s->unit;
    if (!l3__in_pieces(&s->work)) {
        l3__each_position(&s->work, s->n, (uint64_t)s->model->info.ffn_dim * L3__EXP_COST, l3__swiglu_one, s);
        return L3_OK;
    }
    const size_t n = l3__allowed(&s->work, left < UINT32_MAX ? (uint32_t)left : UINT32_MAX, L3__EXP_COST);
    s->work.kernels->swiglu(s->gate + s->unit, s->up + s->unit, n);
    s->unit += n;
    return s->unit < all ? L3__MORE : L3_OK;
}

/* The final norm of the positions whose logits are wanted; s->n becomes their number. */
L3__FN int l3__final_norm(l3_session *s, l3_error *err) {
    const uint32_t d      = s->model->info.dim;
    uint32_t       wanted = 0;
    for (uint32_t p = 0; p < s->n; p++) {
        if (!s->wanted[p]) continue;
        s->wanted[wanted] = s->wanted[p];
        if (wanted != p) memcpy(s->x + (size_t)wanted * d, s->x + (size_t)p * d, d * sizeof(float));
        wanted++;
    }
    s->n = wanted;
    return wanted ? l3__norm_all(s, &s->model->output_norm, s->x, wanted, s->normed, err) : L3_OK;
}

/* Logits of the n rows of s->normed, which go to wanted[i] (vocab,). Several positions share each read of the weights: the
 * head runs over as many of its rows at a time as the feed-forward's scratch holds results for. */
L3__FN int l3__head(l3_session *s, l3_error *err) {
    const l3_model  *m    = s->model;
    const l3_tensor *head = m->info.tied_head ? &m->embedding : &m->output;
    const uint32_t   d = m->info.dim, vocab = m->info.vocab, step = m->info.ffn_dim, done = (uint32_t)s->unit;
    const uint32_t   left = vocab - done;
    if (s->n == 0) return L3_OK;
    if (s->n == 1) return l3__matmul(&s->work, head, s->normed, d, 1, s->wanted[0], vocab, err);
    const l3_tensor part = l3__rows_of(head, done, left < step ? left : step);
    const int       code = l3__matmul(&s->work, &part, s->normed, d, s->n, s->gate, step, err);
    if (code != L3_OK) return code;
    for (uint32_t p = 0; p < s->n; p++)
        memcpy(s->wanted[p] + done, s->gate + (size_t)p * step, part.rows * sizeof(float));
    s->unit += part.rows;
    return s->unit < vocab ? L3__MORE : L3_OK;
}

typedef enum l3__pass_stage {
    L3__PASS_IDLE,
    L3__PASS_EMBED,
    L3__PASS_ROPE_TABLES,
    L3__PASS_ATTN_NORM, /* a block begins */
    L3__PASS_QKV,
    L3__PASS_ROPE,
    L3__PASS_ATTEND,
    L3__PASS_ATTN_OUTPUT,
    L3__PASS_FFN_NORM,
    L3__PASS_GATE_UP,
    L3__PASS_SWIGLU,
    L3__PASS_DOWN,
    L3__PASS_LOOKUP, /* and ends */
    L3__PASS_FINAL_NORM,
    L3__PASS_HEAD
} l3__pass_stage;

/* Gives up the pass under way, if there is one. */
L3__FN void l3__pass_drop(l3_session *s) {
    l3__chunks_drop(&s->work);
    s->stage = L3__PASS_IDLE;
}

/* Begins a pass over n <= batch positions, which owner, at and wanted describe. */
L3__FN int l3__pass_begin(l3_session *s, const int32_t *tokens, uint32_t n, uint64_t most, l3_error *err) {
    s->stage       = L3__PASS_IDLE;
    s->work.most   = most;
    const int code = l3_lookup_begin(&s->work, tokens, n, err);
    if (code != L3_OK) return code;
    s->stage = L3__PASS_EMBED;
    s->n     = n;
    s->block = s->lookup = s->softmax.at = 0;
    s->unit                              = 0;
    return L3_OK;
}

L3__FN int l3__block_stage(l3_session *s, l3_error *err) {
    const l3_model  *m = s->model;
    const l3__block *w = &m->blocks[s->block];
    int              code;
    switch (s->stage) {
    case L3__PASS_ATTN_NORM:
        code = l3__check_progress(&s->work, err);
        return code == L3_OK ? l3__norm_all(s, &w->attn_norm, s->x, s->n, s->normed, err) : code;
    case L3__PASS_QKV: return l3__qkv(s, err);
    case L3__PASS_ROPE: return l3__rope_some(s);
    case L3__PASS_ATTEND: return l3__attend_some(s);
    case L3__PASS_ATTN_OUTPUT: return l3__add_product(s, &w->attn_output, s->attended, err);
    case L3__PASS_FFN_NORM: return l3__norm_all(s, &w->ffn_norm, s->x, s->n, s->normed, err);
    case L3__PASS_GATE_UP: return l3__gate_up(s, err);
    case L3__PASS_SWIGLU: return l3__swiglu_some(s);
    case L3__PASS_DOWN: return l3__add_product(s, &w->ffn_down, s->gate, err);
    default:
        if (s->lookup == m->info.n_lookups || m->lookup_blocks[s->lookup] != s->block) return L3_OK;
        code = l3__lookup_piece(&s->work, s->lookup, s->x, err);
        if (code == L3_OK) s->lookup++;
        return code;
    }
}

L3__FN int l3__pass_stage_run(l3_session *s, l3_error *err) {
    switch (s->stage) {
    case L3__PASS_EMBED: return l3__embed(s, err);
    case L3__PASS_ROPE_TABLES: return l3__rope_table(s);
    case L3__PASS_FINAL_NORM: return l3__final_norm(s, err);
    case L3__PASS_HEAD: return l3__head(s, err);
    default: return l3__block_stage(s, err);
    }
}

/* Runs a piece of the pass: L3__MORE until all are done. */
L3__FN int l3__pass_piece(l3_session *s, l3_error *err) {
    const int code = l3__pass_stage_run(s, err);
    if (code == L3__MORE) return code;
    if (code != L3_OK || s->stage == L3__PASS_HEAD) {
        l3__pass_drop(s);
        return code;
    }
    s->unit = 0;
    if (s->stage == L3__PASS_LOOKUP && ++s->block < s->model->info.n_blocks) s->stage = L3__PASS_ATTN_NORM;
    else s->stage++;
    return L3__MORE;
}

/* A whole pass: all its pieces, each as large as it can be. */
L3__FN int l3__pass(l3_session *s, const int32_t *tokens, uint32_t n, l3_error *err) {
    int code = l3__pass_begin(s, tokens, n, UINT64_MAX, err);
    if (code == L3_OK) code = L3__MORE;
    while (code == L3__MORE) code = l3__pass_piece(s, err);
    return code;
}

/* >>calls --------------------------------------------------------------------------------------------------------- */

L3__FN int l3__check_tokens(const l3_model *m, const int32_t *tokens, uint32_t n, l3_error *err) {
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= m->info.vocab)
            return l3__fail(err, L3_ERR_TOKEN, 0, "token %u of this call is outside the vocabulary of %u", i,
                            m->info.vocab);
    return L3_OK;
}

L3__FN int l3__check_room(const l3_session *s, uint32_t n, l3_error *err) {
    const uint32_t left = s->config.context - s->position;
    if (n <= left) return L3_OK;
    return l3__fail(err, L3_ERR_CONTEXT, 0, "%u tokens do not fit: the context of %u holds %u already", n,
                    s->config.context, s->position);
}

L3_API int l3_prefill(l3_session *s, const int32_t *tokens, uint32_t n, float *all, l3_error *err) {
    const uint32_t vocab = s->model->info.vocab, batch = s->work.batch;
    if (n == 0) return l3__fail(err, L3_ERR_ARGUMENT, 0, "no tokens were given");
    int code = l3__check_room(s, n, err);
    if (code == L3_OK) code = l3__check_tokens(s->model, tokens, n, err);
    for (uint32_t i = 0; code == L3_OK && i < n; i += batch) {
        const uint32_t count = n - i < batch ? n - i : batch, after = n - i - count;
        for (uint32_t p = 0; p < count; p++) {
            s->owner[p]  = s;
            s->at[p]     = s->position + i + p;
            s->wanted[p] = all ? all + (size_t)(i + p) * vocab : i + p + 1 == n ? s->logits : NULL;
        }
        s->work.prefill = n > 1;
        code            = l3__pass(s, tokens + i, count, err);
        if (code == L3_OK && after) l3_lookup_hint(&s->work, tokens + i + count, after < batch ? after : batch);
    }
    if (code != L3_OK) return code;
    if (all) memcpy(s->logits, all + (size_t)(n - 1) * vocab, vocab * sizeof(float));
    s->position += n;
    return L3_OK;
}

L3_API int l3_decode(l3_session *s, int32_t token, l3_error *err) { return l3_prefill(s, &token, 1, NULL, err); }

#ifndef L3_NO_STEPS
L3_API int l3_decode_begin(l3_session *s, const int32_t *tokens, uint32_t n, l3_error *err) {
    l3__pass_drop(s);
    if (n == 0 || n > s->work.batch)
        return l3__fail(err, L3_ERR_ARGUMENT, 0, "%u tokens; from 1 to the batch of %u is right", n, s->work.batch);
    int code = l3__check_room(s, n, err);
    if (code == L3_OK) code = l3__check_tokens(s->model, tokens, n, err);
    if (code != L3_OK) return code;
    for (uint32_t p = 0; p < n; p++) {
        s->owner[p]  = s;
        s->at[p]     = s->position + p;
        s->wanted[p] = p + 1 == n ? s->logits : NULL;
    }
    s->work.prefill = false; /* as if each came alone */
    return l3__pass_begin(s, tokens, n, s->config.step, err);
}

L3_API int l3_decode_step(l3_session *s, l3_error *err) {
    if (s->stage == L3__PASS_IDLE) return l3__fail(err, L3_ERR_ARGUMENT, 0, "no l3_decode_begin, or it was ended");
    const uint32_t n    = s->work.n;
    const int      code = l3__pass_piece(s, err);
    if (code == L3_OK) s->position += n;
    return code;
}

/* Bytes that a read of n bytes of a tensor asks its source for at most; 0 where they are in memory. */
L3__FN uint64_t l3__most_read(const l3_tensor *t, uint64_t n) {
    const uint32_t align = l3__align_of(t->source);
    return !l3__present(t) || l3__in_memory(t) ? 0 : l3__window_for(t->source, n) & ~(uint64_t)(align - 1);
}

L3_API l3_step_bound l3_session_step_bound(const l3_session *s) {
    const l3_model  *m        = s->model;
    const l3__widths x        = l3__model_widths(m);
    uint64_t         products = L3__TILE * (2 * (uint64_t)m->info.head_dim + L3__EXP_COST), index = 0;
    uint64_t         rows = s->work.window_size;
    l3_step_bound    b;
    if (products < s->config.step) products = s->config.step;
    for (int i = 0; i < L3__N_TYPES; i++)
        if (products < (uint64_t)s->work.batch * x.cols[i]) products = (uint64_t)s->work.batch * x.cols[i];
    for (uint32_t i = 0; i < m->info.n_lookups; i++) {
        const l3_lookup *l   = &m->lookups[i];
        const uint64_t   row = s->work.batch * l3__row_products(l), lies = l3__most_read(&l->offsets, 8);
        uint64_t         block = l3__most_read(&l->rows, l3_row_bytes(l->rows.type, l->rows.cols) *
                                                             (l->max_rows ? l->max_rows : l->row_count));
        if (block > s->work.cache.size) block = s->work.cache.size; /* what is larger passes through the window */
        if (products < row) products = row;
        if (rows < block) rows = block;
        if (index < lies + l3__most_read(&l->checksums, 4)) index = lies + l3__most_read(&l->checksums, 4);
    }
    b.products   = products;
    b.read_bytes = rows ? rows + s->work.batch * index : 0;
    b.reads      = rows ? 1 + (index ? 2 * s->work.batch : 0) : 0;
    return b;
}
#endif

L3_API int l3_decode_batch(l3_session *const *sessions, const int32_t *tokens, uint32_t n, l3_error *err) {
    if (n == 0) return l3__fail(err, L3_ERR_ARGUMENT, 0, "no sessions were given");
    l3_session    *lead  = sessions[0];
    const uint32_t batch = lead->work.batch;
    int            code  = l3__check_tokens(lead->model, tokens, n, err);
    for (uint32_t i = 0; code == L3_OK && i < n; i++) {
        if (sessions[i]->model != lead->model)
            return l3__fail(err, L3_ERR_ARGUMENT, 0, "session %u has another model than session 0", i);
        for (uint32_t j = 0; j < i; j++)
            if (sessions[j] == sessions[i]) return l3__fail(err, L3_ERR_ARGUMENT, 0, "session %u is given twice", i);
        code = l3__check_room(sessions[i], 1, err);
    }
    for (uint32_t i = 0; code == L3_OK && i < n; i++) l3__pass_drop(sessions[i]);
    for (uint32_t i = 0; code == L3_OK && i < n; i += batch) {
        const uint32_t count = n - i < batch ? n - i : batch;
        for (uint32_t p = 0; p < count; p++) {
            lead->owner[p]  = sessions[i + p];
            lead->at[p]     = sessions[i + p]->position;
            lead->wanted[p] = sessions[i + p]->logits;
        }
        lead->work.prefill = false; /* as if each was alone */
        code               = l3__pass(lead, tokens + i, count, err);
    }
    for (uint32_t i = 0; code == L3_OK && i < n; i++) sessions[i]->position++;
    return code;
}

L3_API const float *l3_logits(const l3_session *s) { return s->logits; }
L3_API uint32_t     l3_position(const l3_session *s) { return s->position; }
L3_API uint32_t     l3_context(const l3_session *s) { return s->config.context; }
L3_API l3_stats     l3_session_stats(const l3_session *s) { return s->work.stats; }
L3_API l3_level     l3_session_level(const l3_session *s) { return s->work.kernels->level; }

L3_API int l3_truncate(l3_session *s, uint32_t n, l3_error *err) {
    if (n > s->position) return l3__fail(err, L3_ERR_ARGUMENT, 0, "%u tokens cannot be kept of %u", n, s->position);
    l3__pass_drop(s);
    s->position = n;
    return L3_OK;
}

L3_API void l3_session_hint(l3_session *s, const int32_t *tokens, uint32_t n) {
    if (s->stage == L3__PASS_IDLE) l3_lookup_hint(&s->work, tokens, n); /* else the window may be in use */
}

/* >>snapshots ----------------------------------------------------------------------------------------------------- */

#ifndef L3_NO_SNAPSHOT

/* "L3SN", then u32: version, kv_type, position, n_blocks, n_kv_heads, head_dim, vocab; u64 fingerprint; for each block, KV
 * head, and key then value: `position` rows of the KV cache; logits as f32; u32 CRC-32 of all before it. */
#define L3__SNAPSHOT_HEADER 40u

L3__APART int l3__snapshot_header(const l3_session *s, uint8_t header[L3__SNAPSHOT_HEADER], l3_error *err) {
    const l3_info *x         = &s->model->info;
    const uint32_t fields[7] = {
        1, (uint32_t)s->config.kv_type, s->position, x->n_blocks, x->n_kv_heads, x->head_dim, x->vocab};
    uint64_t  fingerprint;
    const int code = l3_model_fingerprint(s->model, &fingerprint, err);
    memcpy(header, "L3SN", 4);
    for (int i = 0; i < 7; i++) l3__put_le32(header + 4 + 4 * i, fields[i]);
    l3__put_le64(header + 32, fingerprint);
    return code;
}

L3_API uint64_t l3_session_save_size(const l3_session *s) {
    const l3_info *x = &s->model->info;
    return L3__SNAPSHOT_HEADER + (uint64_t)x->n_blocks * x->n_kv_heads * 2 * s->position * s->kv_row +
           (uint64_t)x->vocab * 4 + 4;
}

typedef struct l3__saving {
    l3_write_fn write;
    void       *user;
    uint64_t    done;
    uint32_t    crc;
    l3_error   *err;
} l3__saving;

L3__FN int l3__save_bytes(l3__saving *out, const void *bytes, size_t n) {
    const int io = n ? out->write(out->user, bytes, n) : 0;
    if (io != 0) {
        (void)l3__fail(out->err, L3_ERR_IO, out->done, "writing %U bytes of the snapshot at %U failed", (uint64_t)n,
                       out->done);
        if (out->err) out->err->io = io;
        return L3_ERR_IO;
    }
    out->crc = l3_crc32(out->crc, bytes, n);
    out->done += n;
    return L3_OK;
}

L3_API int l3_session_save(const l3_session *s, l3_write_fn write, void *user, l3_error *err) {
    const l3_info *x   = &s->model->info;
    l3__saving     out = {write, user, 0, 0, err};
    uint8_t        header[L3__SNAPSHOT_HEADER], word[4];
    int            code = l3__snapshot_header(s, header, err);
    if (code == L3_OK) code = l3__save_bytes(&out, header, sizeof header);
    for (uint32_t i = 0; code == L3_OK && i < x->n_blocks * x->n_kv_heads * 2; i++)
        code = l3__save_bytes(&out, l3__kv_rows(s, 0, i / 2, i % 2), s->position * s->kv_row);
    for (uint32_t i = 0; code == L3_OK && i < x->vocab; i++) {
        l3__put_le32(word, l3__as_bits(s->logits[i]));
        code = l3__save_bytes(&out, word, 4);
    }
    l3__put_le32(word, out.crc);
    return code == L3_OK ? l3__save_bytes(&out, word, 4) : code;
}

/* The header against this session's, field by field; *position is the saved one. */
L3__FN int l3__check_snapshot(const l3_session *s, const uint8_t *got, uint8_t *want, uint32_t *position,
                              l3_error *err) {
    if (memcmp(got, "L3SN", 4) != 0 || l3__le32(got + 4) != 1)
        return l3__fail(err, L3_ERR_FORMAT, 0, "this is no snapshot of version 1");
    *position = l3__le32(got + 12);
    memcpy(want + 12, got + 12, 4);
    if (l3__le32(got + 8) != l3__le32(want + 8))
        return l3__fail(err, L3_ERR_MISMATCH, 8, "the snapshot's KV cache has type %u, this session's %u",
                        l3__le32(got + 8), l3__le32(want + 8));
    if (memcmp(got, want, L3__SNAPSHOT_HEADER) != 0)
        return l3__fail(err, L3_ERR_MISMATCH, 16, "the snapshot is of another model");
    if (*position > s->config.context)
        return l3__fail(err, L3_ERR_MISMATCH, 12, "the snapshot has %u tokens, this session room for %u", *position,
                        s->config.context);
    return L3_OK;
}

/* Copies what follows the header, and continues its checksum. */
L3__FN int l3__load_kv(l3_session *s, l3__reader *in, uint32_t *crc, l3_error *err) {
    const uint32_t n    = s->model->info.n_blocks * s->model->info.n_kv_heads * 2;
    const uint64_t rows = s->position * (uint64_t)s->kv_row;
    uint64_t       at   = L3__SNAPSHOT_HEADER;
    int            code = L3_OK;
    for (uint32_t i = 0; code == L3_OK && i < n; i++, at += rows) {
        l3__copying copy = {l3__kv_rows(s, 0, i / 2, i % 2), *crc};
        code             = l3__each_piece(in, at, at + rows, l3__copy_piece, &copy, err);
        *crc             = copy.crc;
    }
    if (code != L3_OK) return code;
    void       *logits = s->logits;
    l3__copying copy   = {(unsigned char *)logits, *crc};
    code               = l3__each_piece(in, at, at + (uint64_t)s->model->info.vocab * 4, l3__copy_piece, &copy, err);
    *crc               = copy.crc;
    for (uint32_t i = 0; i < s->model->info.vocab; i++)
        s->logits[i] = l3__as_float(l3__le32((const uint8_t *)logits + 4 * i));
    return code;
}

/* A source that fails in the second pass only, after the checks, or then gives other bytes, leaves the session empty. `header`
 * is what this session's snapshot would begin with. */
L3__APART int l3__load(l3_session *s, const l3_source *in, uint8_t *header, l3_error *err) {
    l3__stack_buffer buffer;
    uint32_t         position = 0, crc = 0;
    const uint32_t   before = s->position;
    int              code   = L3_OK;
    l3__reader       r      = l3__stack_reader(in, &buffer);
    const uint8_t   *p      = l3__peek(&r, 0, L3__SNAPSHOT_HEADER, err);
    if (!p) return err ? err->code : L3_ERR_FORMAT;
    uint32_t copied = l3_crc32(0, p, L3__SNAPSHOT_HEADER);
    if ((code = l3__check_snapshot(s, p, header, &position, err)) != L3_OK) return code;
    s->position         = position;
    const uint64_t size = l3_session_save_size(s);
    s->position         = before;
    if (in->size < size)
        return l3__fail(err, L3_ERR_FORMAT, in->size, "the snapshot is cut short: it should have %U bytes", size);
    if ((code = l3__each_piece(&r, 0, size - 4, l3__crc_piece, &crc, err)) != L3_OK) return code;
    if (!(p = l3__peek(&r, size - 4, 4, err))) return L3_ERR_IO;
    if (l3__le32(p) != crc) return l3__fail(err, L3_ERR_CHECKSUM, size - 4, "the snapshot does not match its checksum");
    l3__pass_drop(s);
    s->position = position;
    code        = l3__load_kv(s, &r, &copied, err);
    if (code == L3_OK && copied != crc)
        code = l3__fail(err, L3_ERR_CHECKSUM, 0, "the snapshot changes while it is read");
    if (code != L3_OK) s->position = 0;
    return code;
}

/* The model is read before the snapshot, so that only one of them needs a buffer at a time. */
L3_API int l3_session_load(l3_session *s, const l3_source *in, l3_error *err) {
    uint8_t header[L3__SNAPSHOT_HEADER];
    int     code = l3__check_source(in, err);
    if (code == L3_OK) code = l3__snapshot_header(s, header, err);
    return code == L3_OK ? l3__load(s, in, header, err) : code;
}

L3_API int l3_write_buffer(void *user, const void *bytes, size_t n) {
    l3_buffer *b = (l3_buffer *)user;
    if (n > b->size - b->used) return -1;
    memcpy(b->bytes + b->used, bytes, n);
    b->used += n;
    return 0;
}
#endif /* L3_NO_SNAPSHOT */

/* >>selftest ------------------------------------------------------------------------------------------------------ */

#ifndef L3_NO_SELFTEST
/* The stored tokens: the first half in calls of several, the others one by one, so that both kinds of kernels take part. */
L3__FN int l3__run_selftest(l3_session *s, l3_error *err) {
    const l3_tensor *t    = &s->model->selftest_tokens;
    const uint32_t   half = t->cols / 2;
    int32_t          ids[8];
    int              code = L3_OK;
    for (uint32_t i = 0, n; code == L3_OK && i < t->cols; i += n) {
        n = i >= half ? 1 : half - i < 8 ? half - i : 8;
        for (uint32_t j = 0; j < n; j++) {
            const uint8_t *p = l3__bytes(&s->work, t, (uint64_t)(i + j) * 4, 4, err);
            if (!p) return L3_ERR_IO;
            ids[j] = (int32_t)l3__le32(p);
        }
        code = l3_prefill(s, ids, n, NULL, err);
    }
    return code;
}

/* Whose logit is the i-th of n that are stored: tokens from the first to the last, evenly spread. */
L3__FN uint32_t l3__selftest_id(const l3_model *m, uint32_t i, uint32_t n) {
    return (uint32_t)((uint64_t)(m->info.vocab - 1) * i / (n - 1));
}

L3__FN int l3__compare_selftest(l3_session *s, float *difference, l3_error *err) {
    const l3_tensor *t   = &s->model->selftest_logits;
    const uint32_t   n   = t->cols;
    const uint32_t   row = s->config.kv_type == L3_F32 ? 0 : s->config.kv_type == L3_F16 ? 1 : 2;
    const float      big = 1e30f; /* in place of what is not finite */
    float            low = big, high = -big, worst = 0;
    uint32_t         worst_at = 0;
    bool             same     = true;
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *p = l3__bytes(&s->work, t, ((uint64_t)row * n + i) * 4, 4, err);
        if (!p) return L3_ERR_IO;
        const float want = l3__as_float(l3__le32(p)), got = s->logits[l3__selftest_id(s->model, i, n)];
        const float d = want < got ? got - want : want - got;
        same          = same && l3__as_bits(got) == l3__le32(p);
        if (!(d <= worst) && worst < big) worst = d < big ? d : big, worst_at = i;
        low  = want < low ? want : low;
        high = want > high ? want : high;
    }
    *difference = !(worst > 0) ? 0 : worst < big && high > low ? worst / (high - low) : big;
    if (s->config.work.mode == L3_EXACT ? same : *difference <= L3_SELFTEST_BOUND) return L3_OK;
    return l3__fail(err, L3_ERR_SELFTEST, t->offset + ((uint64_t)row * n + worst_at) * 4,
                    "self-test: after %u tokens the logit of token %u is off by %u billionths of the range; at most %u "
                    "is right",
                    s->model->selftest_tokens.cols, l3__selftest_id(s->model, worst_at, n),
                    *difference < 4 ? (uint32_t)(*difference * 1e9f) : 4000000000u,
                    s->config.work.mode == L3_EXACT ? 0 : (uint32_t)(L3_SELFTEST_BOUND * 1e9f));
}

L3_API int l3_session_selftest(l3_session *s, float *difference, l3_error *err) {
    float d;
    if (!difference) difference = &d;
    *difference = 0;
    if (!s->model->info.selftest_tokens)
        return l3__fail(err, L3_ERR_UNSUPPORTED, 0, "the file has no self-test; l3-embed puts one in");
    if (s->position)
        return l3__fail(err, L3_ERR_ARGUMENT, 0, "the session has %u tokens; a self-test begins with none",
                        s->position);
    int code = l3__run_selftest(s, err);
    if (code == L3_OK) code = l3__compare_selftest(s, difference, err);
    s->position = 0;
    return code;
}
#endif /* L3_NO_SELFTEST */

/* >>pieces -------------------------------------------------------------------------------------------------------- */

enum { L3__NORMAL = 1, L3__UNKNOWN = 2, L3__CONTROL = 3, L3__USER_DEFINED = 4, L3__UNUSED_TYPE = 5, L3__BYTE = 6 };
#define L3__PIECE_TYPES (1u << L3__NORMAL | 1u << L3__UNUSED_TYPE) /* what plain text can become */

/* A node of the list of symbols that a run of text is merged from. */
typedef struct l3__symbol {
    uint32_t start, length; /* bytes of the run */
    uint32_t before, after; /* neighbours, UINT32_MAX at the ends */
    int32_t  id;            /* its piece, or -1 */
} l3__symbol;

/* A pair of neighbours that make a piece. Out of date once either has changed, which its length tells. */
typedef struct l3__merge {
    float    score;
    uint32_t left, length;
    int32_t  id;
} l3__merge;

struct l3_tokenizer {
    const l3_model *model;
    l3__reader      reader;
    l3_error       *err;  /* of the call under way */
    int             code; /* its first failure to read the vocabulary */

    /* For tokenizing. The index sorts the IDs of all pieces by a hash of their text. */
    size_t      run;             /* longest run in bytes, the dummy space included; 0: decoding only */
    uint32_t   *index;           /* (vocab,) ID and, above it, L3__TAG_BITS more of the hash */
    uint32_t   *buckets;         /* (n_buckets + 1,) first entry of each */
    uint32_t    n_buckets;       /* a power of two */
    uint32_t    longest_special; /* bytes of the longest control or user-defined piece */
    bool        has_user_defined;
    int32_t    *byte_ids;   /* (256,) -1: none */
    uint8_t     starts[32]; /* bit set: first bytes of control and user-defined pieces */
    uint8_t    *joins;      /* (8192,) bit set of 65536: some piece has these last bytes of characters side by side */
    l3__symbol *symbols;    /* (run,) */
    l3__merge  *heap;       /* (2 run,) best merge first */
    uint32_t    n_symbols, n_heap;

    /* For decoding. */
    bool     first; /* the next piece is the first of its text */
    uint32_t n_held, n_text;
    uint8_t *text; /* (longest_piece + 8,) bytes held back, then what came */
};

#define L3__ID_BITS 20u
#define L3__ID_MASK ((1u << L3__ID_BITS) - 1)

/* Every public call begins here. */
L3__FN void l3__begin_call(l3_tokenizer *t, l3_error *err) {
    t->err  = err;
    t->code = L3_OK;
}

/* n bytes of the file, or NULL once anything has failed in this call: t->code tells in the end. */
L3__FN const uint8_t *l3__look(l3_tokenizer *t, uint64_t at, size_t n) {
    l3_error       own;
    l3_error      *err = t->err ? t->err : &own;
    const uint8_t *p   = t->code == L3_OK ? l3__peek(&t->reader, at, n, err) : NULL;
    if (!p && t->code == L3_OK) t->code = err->code;
    return p;
}

L3__FN const uint8_t *l3__string_at(l3_tokenizer *t, uint64_t at, uint32_t *n) {
    const uint8_t *p      = l3__look(t, at, 8);
    const uint64_t length = p ? l3__le64(p) : 0;
    if (length > t->model->info.longest_piece) {
        t->code = l3__fail(t->err, L3_ERR_FORMAT, at, "a vocabulary piece has changed since the file was opened");
        return NULL;
    }
    *n = (uint32_t)length;
    return l3__look(t, at + 8, *n);
}

/* The text of a token: from the nearest remembered place, over at most 15 others. NULL on failure. */
L3__FN const uint8_t *l3__piece(l3_tokenizer *t, uint32_t id, uint32_t *n) {
    const l3_model *m  = t->model;
    uint64_t        at = m->vocabulary.tokens_at + m->checkpoints[id / L3__CHECKPOINT];
    for (uint32_t i = 0;; i++) {
        const uint8_t *p = i == id % L3__CHECKPOINT ? l3__string_at(t, at, n) : l3__look(t, at, 8);
        if (!p || i == id % L3__CHECKPOINT) return p;
        const uint64_t length = l3__le64(p);
        at += 8 + (length < L3__MAX_PIECE ? length : L3__MAX_PIECE);
    }
}

L3__FN float l3__score(l3_tokenizer *t, uint32_t id) {
    const uint64_t at = t->model->vocabulary.scores_at;
    const uint8_t *p  = at ? l3__look(t, at + (uint64_t)id * 4, 4) : NULL;
    return p ? l3__as_float(l3__le32(p)) : 0;
}

/* tokenizer.ggml.token_type; without it everything is text but what has a special ID. */
L3__FN int l3__type(l3_tokenizer *t, uint32_t id) {
    const l3_info *x  = &t->model->info;
    const uint64_t at = t->model->vocabulary.types_at;
    const uint8_t *p  = at ? l3__look(t, at + (uint64_t)id * 4, 4) : NULL;
    if (p) return (int)(l3__le32(p) & 0xff);
    if ((int32_t)id == x->bos || (int32_t)id == x->eos) return L3__CONTROL;
    return (int32_t)id == x->unknown ? L3__UNKNOWN : L3__NORMAL;
}

L3__FN int l3__hex(uint8_t c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* The byte that a piece like <0x0A> stands for, or -1. */
L3__FN int l3__byte_of(const uint8_t *p, uint32_t n) {
    if (n != 6 || memcmp(p, "<0x", 3) != 0 || p[5] != '>') return -1;
    const int high = l3__hex(p[3]), low = l3__hex(p[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Bytes of the UTF-8 character at p, of which n are there; 1 for a byte that begins none; 0 if it is cut off. */
L3__FN uint32_t l3__utf8_length(const uint8_t *p, size_t n) {
    const uint32_t want = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 1 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 1;
    for (uint32_t i = 1; i < want; i++) {
        if (i == n) return 0;
        const bool second_bad = i == 1 && ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
                                           (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f));
        if ((p[i] & 0xc0) != 0x80 || second_bad) return 1;
    }
    return want;
}

static const uint8_t l3__space[3] = {0xe2, 0x96, 0x81}; /* U+2581 */

/* >>bpe ----------------------------------------------------------------------------------------------------------- */

#ifndef L3_NO_ENCODER

/* Text is seen as the vocabulary writes it, a space as U+2581, without a copy: `front` is a dummy space before it. */
typedef struct l3__text {
    const uint8_t *bytes;
    size_t         n;
    bool           front;
} l3__text;

L3__FN uint8_t l3__text_at(const l3__text *x, size_t i) {
    return x->front ? (i == 0 ? ' ' : x->bytes[i - 1]) : x->bytes[i];
}
L3__FN size_t l3__text_size(const l3__text *x) { return x->n + (x->front ? 1 : 0); }

/* FNV-1a of a text as the vocabulary writes it, byte by byte. */
#define L3__HASH_START 0x811c9dc5u
L3__FN uint32_t l3__hash_byte(uint32_t h, uint8_t b) {
    if (b != ' ') return (h ^ b) * 0x01000193u;
    for (int j = 0; j < 3; j++) h = (h ^ l3__space[j]) * 0x01000193u;
    return h;
}
L3__FN uint32_t l3__hash_end(uint32_t h) { return h ^ h >> 15; }

/* Whether n bytes of text are the piece's. */
L3__FN bool l3__same_text(const l3__text *x, size_t from, uint32_t n, const uint8_t *piece, uint32_t length) {
    uint32_t at = 0;
    for (size_t i = from; i < from + n; i++) {
        const uint8_t  b    = l3__text_at(x, i);
        const uint32_t size = b == ' ' ? 3 : 1;
        if (length - at < size || memcmp(piece + at, b == ' ' ? l3__space : &b, size) != 0) return false;
        at += size;
    }
    return at == length;
}

/* The lowest ID whose piece is this text, with this hash, and whose type is in `types` (bits), or -1. */
L3__FN int32_t l3__find_hashed(l3_tokenizer *t, const l3__text *x, size_t from, uint32_t n, uint32_t h,
                               uint32_t types) {
    const uint32_t bucket = h & (t->n_buckets - 1);
    for (uint32_t i = t->buckets[bucket]; i < t->buckets[bucket + 1]; i++) {
        uint32_t       length;
        const uint32_t id = t->index[i] & L3__ID_MASK;
        if (t->index[i] >> L3__ID_BITS != h >> L3__ID_BITS || !(types >> (l3__type(t, id) & 31) & 1)) continue;
        const uint8_t *p = l3__piece(t, id, &length);
        if (p && l3__same_text(x, from, n, p, length)) return (int32_t)id;
    }
    return -1;
}

L3__FN int32_t l3__find_piece(l3_tokenizer *t, const l3__text *x, size_t from, uint32_t n, uint32_t types) {
    uint32_t h = L3__HASH_START;
    for (size_t i = from; i < from + n; i++) h = l3__hash_byte(h, l3__text_at(x, i));
    return l3__find_hashed(t, x, from, n, l3__hash_end(h), types);
}

L3__FN bool l3__bit(const uint8_t *set, uint32_t i) { return set[i / 8] >> (i % 8) & 1; }
L3__FN void l3__set_bit(uint8_t *set, uint32_t i) { set[i / 8] = (uint8_t)(set[i / 8] | 1u << (i % 8)); }

/* What the index needs to know of one piece, besides its hash. */
L3__FN void l3__note_piece(l3_tokenizer *t, uint32_t id, int type, const uint8_t *p, uint32_t n) {
    const int byte = type == L3__BYTE ? l3__byte_of(p, n) : -1;
    uint32_t  length, last = UINT32_MAX;
    if (byte >= 0 && t->byte_ids[byte] < 0) t->byte_ids[byte] = (int32_t)id;
    if (n && (type == L3__CONTROL || type == L3__USER_DEFINED)) {
        if (type == L3__USER_DEFINED) t->has_user_defined = true;
        if (t->longest_special < n) t->longest_special = n;
        l3__set_bit(t->starts, n >= 3 && memcmp(p, l3__space, 3) == 0 ? ' ' : p[0]);
        l3__set_bit(t->starts, p[0]);
    }
    for (uint32_t i = 0; i < n; i += length) {
        length = l3__utf8_length(p + i, n - i);
        if (length == 0) length = 1;
        const uint32_t now = p[i + length - 1];
        if (last != UINT32_MAX) l3__set_bit(t->joins, last << 8 | now);
        last = now;
    }
}

/* Calls of one pass over the vocabulary: counting buckets, then filling them. */
L3__FN int l3__index_pass(l3_tokenizer *t, bool fill) {
    uint64_t at = t->model->vocabulary.tokens_at;
    for (uint32_t id = 0, n; id < t->model->info.vocab; id++, at += 8 + n) {
        const int      type  = l3__type(t, id); /* before the text: they share the reader's buffer */
        const float    score = l3__score(t, id);
        const uint8_t *p     = l3__string_at(t, at, &n);
        if (!p) return t->code;
        uint32_t h = L3__HASH_START;
        for (uint32_t i = 0; i < n; i++) h = l3__hash_byte(h, p[i]);
        h                     = l3__hash_end(h);
        const uint32_t bucket = h & (t->n_buckets - 1);
        if (fill) {
            if (t->buckets[bucket] >= t->model->info.vocab)
                return l3__fail(t->err, L3_ERR_FORMAT, at, "the vocabulary changes while it is read");
            t->index[t->buckets[bucket]++] = (h & ~L3__ID_MASK) | id;
            continue;
        }
        t->buckets[bucket + 1]++;
        l3__note_piece(t, id, type, p, n);
        if (!(score > -3e38f) || !(score < 3e38f))
            return l3__fail(t->err, L3_ERR_FORMAT, at, "the score of token %u is no finite number", id);
    }
    return L3_OK;
}

/* Sorts the IDs into buckets by counting: starts shift by one place while they are filled, and back. */
L3__FN int l3__build_index(l3_tokenizer *t) {
    memset(t->buckets, 0, ((size_t)t->n_buckets + 1) * sizeof *t->buckets);
    memset(t->joins, 0, 8192);
    memset(t->byte_ids, 0xff, 256 * sizeof *t->byte_ids);
    int code = l3__index_pass(t, false);
    for (uint32_t i = 1; i <= t->n_buckets; i++) t->buckets[i] += t->buckets[i - 1];
    if (code == L3_OK) code = l3__index_pass(t, true);
    for (uint32_t i = t->n_buckets; i > 0; i--) t->buckets[i] = t->buckets[i - 1];
    t->buckets[0] = 0;
    return code;
}

L3__FN bool l3__merge_before(const l3__merge *a, const l3__merge *b) {
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

L3__FN void l3__heap_push(l3_tokenizer *t, l3__merge m) {
    uint32_t i = t->n_heap++;
    for (; i > 0 && l3__merge_before(&m, &t->heap[(i - 1) / 2]); i = (i - 1) / 2) t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = m;
}

L3__FN l3__merge l3__heap_pop(l3_tokenizer *t) {
    const l3__merge top = t->heap[0], last = t->heap[--t->n_heap];
    uint32_t        i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= t->n_heap) break;
        if (child + 1 < t->n_heap && l3__merge_before(&t->heap[child + 1], &t->heap[child])) child++;
        if (!l3__merge_before(&t->heap[child], &last)) break;
        t->heap[i] = t->heap[child];
        i          = child;
    }
    t->heap[i] = last;
    return top;
}

/* Offers symbol `left` and its neighbour for merging, if together they are a piece. */
L3__FN void l3__offer(l3_tokenizer *t, const l3__text *x, size_t from, uint32_t left) {
    if (left == UINT32_MAX || t->symbols[left].after == UINT32_MAX) return;
    const l3__symbol *a = &t->symbols[left], *b = &t->symbols[a->after];
    l3__merge         m;
    m.left   = left;
    m.length = a->length + b->length;
    m.id     = l3__find_piece(t, x, from + a->start, m.length, L3__PIECE_TYPES);
    if (m.id < 0) return;
    m.score = l3__score(t, (uint32_t)m.id);
    l3__heap_push(t, m);
}

L3__FN void l3__merge_all(l3_tokenizer *t, const l3__text *x, size_t from) {
    t->n_heap = 0;
    for (uint32_t i = 0; i + 1 < t->n_symbols; i++) l3__offer(t, x, from, i);
    while (t->n_heap) {
        const l3__merge m = l3__heap_pop(t);
        l3__symbol     *a = &t->symbols[m.left];
        if (a->length == 0 || a->after == UINT32_MAX || a->length + t->symbols[a->after].length != m.length) continue;
        l3__symbol *b = &t->symbols[a->after];
        a->length     = m.length;
        a->id         = m.id;
        a->after      = b->after;
        b->length     = 0;
        if (a->after != UINT32_MAX) t->symbols[a->after].before = m.left;
        l3__offer(t, x, from, a->before);
        l3__offer(t, x, from, m.left);
    }
}

typedef struct l3__ids {
    int32_t *ids;
    size_t   capacity, n;
} l3__ids;

L3__FN void l3__put_id(l3__ids *out, int32_t id) {
    if (out->n < out->capacity) out->ids[out->n] = id;
    out->n++;
}

/* What is no piece goes through byte tokens, or where there are none is unknown. */
L3__FN void l3__put_bytes(const l3_tokenizer *t, const l3__text *x, size_t from, uint32_t n, l3__ids *out) {
    for (size_t i = from; i < from + n; i++) {
        const uint8_t  b    = l3__text_at(x, i);
        const uint32_t size = b == ' ' ? 3 : 1;
        for (uint32_t j = 0; j < size; j++) {
            const int32_t id = t->byte_ids[b == ' ' ? l3__space[j] : b];
            if (id >= 0 || t->model->info.unknown >= 0) l3__put_id(out, id >= 0 ? id : t->model->info.unknown);
        }
    }
}

/* Merges the symbols of one run, which begins at `from`, and gives out their IDs. */
L3__FN void l3__finish_run(l3_tokenizer *t, const l3__text *x, size_t from, l3__ids *out) {
    if (t->n_symbols == 0) return;
    t->symbols[t->n_symbols - 1].after = UINT32_MAX;
    l3__merge_all(t, x, from);
    for (uint32_t i = 0; i != UINT32_MAX; i = t->symbols[i].after) {
        const l3__symbol *s  = &t->symbols[i];
        const int32_t     id = s->id >= 0 ? s->id : l3__find_piece(t, x, from + s->start, s->length, L3__PIECE_TYPES);
        if (id >= 0) l3__put_id(out, id);
        else l3__put_bytes(t, x, from + s->start, s->length, out);
    }
    t->n_symbols = 0;
}

/* >>text ---------------------------------------------------------------------------------------------------------- */

L3__FN uint32_t l3__char_length(const l3__text *x, size_t i) {
    uint8_t bytes[4] = {0, 0, 0, 0};
    size_t  n        = l3__text_size(x) - i;
    if (n > 4) n = 4;
    for (size_t j = 0; j < n; j++) bytes[j] = l3__text_at(x, i + j);
    const uint32_t length = l3__utf8_length(bytes, n);
    return length ? length : 1;
}

/* A text without special tokens inside. Runs end between characters that no piece has side by side: no merge could cross
 * there, so each run is merged alone, and time is near linear in the text. */
L3__FN int l3__tokenize_plain(l3_tokenizer *t, const l3__text *x, l3__ids *out, l3_error *err) {
    const size_t size = l3__text_size(x);
    size_t       from = 0;
    uint32_t     last = 0, length;
    t->n_symbols      = 0;
    for (size_t i = 0; i < size; i += length) {
        length             = l3__char_length(x, i);
        const uint8_t  b   = l3__text_at(x, i + length - 1);
        const uint32_t now = b == ' ' ? l3__space[2] : b;
        if (t->n_symbols && !l3__bit(t->joins, last << 8 | now)) {
            l3__finish_run(t, x, from, out);
            from = i;
        }
        if (i + length - from > t->run)
            return l3__fail(err, L3_ERR_MEMORY, i,
                            "a run of text is longer than the %U bytes this tokenizer was made for",
                            (uint64_t)(t->run - 1));
        const uint32_t k = t->n_symbols++;
        l3__symbol    *s = &t->symbols[k];
        s->start         = (uint32_t)(i - from);
        s->length        = length;
        s->before        = k ? k - 1 : UINT32_MAX;
        s->after         = k + 1;
        s->id            = -1;
        last             = now;
    }
    l3__finish_run(t, x, from, out);
    return L3_OK;
}

/* The longest control or user-defined piece at this place: its ID and length in text bytes, or -1. */
L3__FN int32_t l3__special_at(l3_tokenizer *t, const l3__text *x, size_t at, uint32_t types, uint32_t *length) {
    const size_t   left = l3__text_size(x) - at;
    const uint32_t most = left < t->longest_special ? (uint32_t)left : t->longest_special;
    uint32_t       h    = L3__HASH_START;
    int32_t        best = -1;
    if (!l3__bit(t->starts, l3__text_at(x, at))) return -1;
    for (uint32_t n = 1; n <= most; n++) {
        h                = l3__hash_byte(h, l3__text_at(x, at + n - 1));
        const int32_t id = l3__find_hashed(t, x, at, n, l3__hash_end(h), types);
        if (id < 0) continue;
        best    = id;
        *length = n;
    }
    return best;
}

L3_API int l3_tokenize(l3_tokenizer *t, const char *text, size_t length, int flags, int32_t *ids, size_t capacity,
                       size_t *n, l3_error *err) {
    const void    *bytes = text;
    const bool     dummy = t->model->info.add_space_prefix, controls = (flags & L3_TEXT_SPECIAL) != 0;
    const uint32_t user = 1u << L3__USER_DEFINED, special = user | (uint32_t)controls << L3__CONTROL;
    l3__ids        out = {ids, capacity, 0};
    l3__text       x   = {(const uint8_t *)bytes, length, dummy && !(flags & L3_TEXT_CONTINUE)}; /* what is left */
    uint32_t       size;
    int            code = L3_OK;
    l3__begin_call(t, err);
    if (t->run == 0) return l3__fail(err, L3_ERR_ARGUMENT, 0, "this tokenizer was made for decoding only (run 0)");
    if ((flags & L3_TEXT_BOS) && t->model->info.add_bos && t->model->info.bos >= 0)
        l3__put_id(&out, t->model->info.bos);
    for (size_t i = 0; code == L3_OK && (controls || t->has_user_defined) && x.n > 0 && i < l3__text_size(&x);) {
        const int32_t id = l3__special_at(t, &x, i, x.front && i == 0 ? user : special, &size); /* a dummy is text */
        if (id < 0) {
            i++;
            continue;
        }
        /* A user-defined piece is text, so what follows it goes on; after a control token a new text begins. */
        const bool     control = l3__type(t, (uint32_t)id) == L3__CONTROL;
        const size_t   front   = x.front ? 1 : 0;
        const l3__text before  = {x.bytes, i > front ? i - front : 0, x.front && i > 0};
        if (before.n > 0 || !control) code = l3__tokenize_plain(t, &before, &out, err);
        l3__put_id(&out, id);
        x.bytes += i + size - front;
        x.n -= i + size - front;
        x.front = control && dummy;
        i       = 0;
    }
    if (code == L3_OK && x.n > 0) code = l3__tokenize_plain(t, &x, &out, err);
    if (code == L3_OK) code = t->code;
    *n = code == L3_OK ? out.n : 0;
    if (code != L3_OK || !ids || out.n <= capacity) return code;
    return l3__fail(err, L3_ERR_MEMORY, 0, "%U token IDs do not fit in %U", (uint64_t)out.n, (uint64_t)capacity);
}
#endif /* L3_NO_ENCODER */

L3__FN size_t l3__tokenizer_layout(l3_tokenizer *t, const l3_model *m, size_t run, const l3__target *target,
                                   void *base) {
    const uint32_t align = l3__align_of(&m->source), vocab = m->info.vocab;
    l3__arena      a = l3__arena_of(base, target);
    (void)l3__take(&a, 1, L3__BYTES_OF(&a, l3_tokenizer, tokenizer));
    memset(t, 0, sizeof *t);
    t->model           = m;
    t->run             = run ? run + 1 : 0;
    t->first           = true;
    t->reader.source   = &m->source;
    t->reader.capacity = m->source.read ? ((size_t)m->info.longest_piece + 64 + 2 * align) / align * align : 0;
    t->reader.buffer   = l3__take_aligned(&a, t->reader.capacity, align);
    t->text            = (uint8_t *)l3__take(&a, (uint64_t)m->info.longest_piece + 8, 1);
    if (!run) return l3__arena_size(&a);
    if (t->run > UINT32_MAX / 2) return 0;
    t->n_buckets = 1;
    while (t->n_buckets < vocab / 4) t->n_buckets *= 2;
    t->index    = (uint32_t *)l3__take(&a, vocab, sizeof *t->index);
    t->buckets  = (uint32_t *)l3__take(&a, (uint64_t)t->n_buckets + 1, sizeof *t->buckets);
    t->joins    = (uint8_t *)l3__take(&a, 8192, 1);
    t->byte_ids = (int32_t *)l3__take(&a, 256, sizeof *t->byte_ids);
    t->symbols  = (l3__symbol *)l3__take(&a, t->run, sizeof *t->symbols);
    t->heap     = (l3__merge *)l3__take(&a, (uint64_t)t->run * 2, sizeof *t->heap);
    return l3__arena_size(&a);
}

L3_API size_t l3_tokenizer_size(const l3_model *m, size_t run) {
    l3_tokenizer t;
    return m->info.has_tokenizer ? l3__tokenizer_layout(&t, m, run, NULL, NULL) : 0;
}

#ifndef L3_NO_STDIO
L3_API size_t l3_tokenizer_size_for(const l3_target *target, const l3_model *m, size_t run) {
    l3_tokenizer t;
    return m->info.has_tokenizer ? l3__tokenizer_layout(&t, m, run, target, NULL) : 0;
}
#endif

L3_API int l3_tokenizer_init(l3_tokenizer **tokenizer, const l3_model *m, size_t run, void *mem, size_t size,
                             l3_error *err) {
    if (!m->info.has_tokenizer)
        return l3__fail(err, L3_ERR_UNSUPPORTED, 0,
                        "the file has no tokenizer, or another than \"llama\" without normalization");
    const int code = l3__check_block(mem, size, l3_tokenizer_size(m, run), err);
    if (code != L3_OK) return code;
    l3_tokenizer *t = (l3_tokenizer *)mem;
    (void)l3__tokenizer_layout(t, m, run, NULL, mem);
    l3__begin_call(t, err);
#ifdef L3_NO_ENCODER
    const int built = run ? l3__fail(err, L3_ERR_UNSUPPORTED, 0, "this build has no encoder, by L3_NO_ENCODER") : L3_OK;
#else
    const int built = run ? l3__build_index(t) : L3_OK;
#endif
    if (built == L3_OK) *tokenizer = t;
    return built;
}

/* Appends a piece to t->text as text: U+2581 becomes a space, the first one of a text nothing. */
L3__FN void l3__append_piece(l3_tokenizer *t, const uint8_t *p, uint32_t n) {
    uint32_t i = t->first && t->model->info.add_space_prefix && n >= 3 && memcmp(p, l3__space, 3) == 0 ? 3 : 0;
    while (i < n) {
        const bool space     = n - i >= 3 && memcmp(p + i, l3__space, 3) == 0;
        t->text[t->n_text++] = space ? ' ' : p[i];
        i += space ? 3 : 1;
    }
}

/* How many of n bytes at the end of a text begin a UTF-8 character that is not yet complete. */
L3__FN uint32_t l3__incomplete(const uint8_t *p, uint32_t n) {
    for (uint32_t back = 1; back <= 3 && back <= n; back++)
        if (l3__utf8_length(p + n - back, back) == 0) return back;
    return 0;
}

L3_API int l3_detokenize(l3_tokenizer *t, int32_t id, const char **text, size_t *n, l3_error *err) {
    uint32_t length;
    if (id < 0 || (uint32_t)id >= t->model->info.vocab)
        return l3__fail(err, L3_ERR_TOKEN, 0, "token %u is outside the vocabulary of %u", (uint32_t)id,
                        t->model->info.vocab);
    l3__begin_call(t, err);
    const int      type = l3__type(t, (uint32_t)id);
    const uint8_t *p    = l3__piece(t, (uint32_t)id, &length);
    if (!p) return t->code;
    memmove(t->text, t->text + t->n_text, t->n_held); /* bytes held back stand behind those given out last */
    t->n_text      = t->n_held;
    const int byte = type == L3__BYTE ? l3__byte_of(p, length) : -1;
    if (byte >= 0) t->text[t->n_text++] = (uint8_t)(byte & 0xff);
    else if (type != L3__CONTROL && type != L3__UNKNOWN) l3__append_piece(t, p, length);
    if (id == t->model->info.bos) t->first = true;
    else if (type != L3__CONTROL) t->first = false;
    t->n_held = l3__incomplete(t->text, t->n_text);
    t->n_text -= t->n_held;
    const void *bytes = t->text;
    *text             = (const char *)bytes;
    *n                = t->n_text;
    return L3_OK;
}

L3_API void l3_detokenize_end(l3_tokenizer *t, const char **text, size_t *n) {
    const void *bytes = t->text + t->n_text;
    *text             = (const char *)bytes;
    *n                = t->n_held;
    t->n_held = t->n_text = 0;
    t->first              = true;
}

L3_API int l3_token_piece(l3_tokenizer *t, int32_t id, const char **piece, size_t *n, float *score, int *type,
                          l3_error *err) {
    uint32_t length;
    if (id < 0 || (uint32_t)id >= t->model->info.vocab)
        return l3__fail(err, L3_ERR_TOKEN, 0, "token %u is outside the vocabulary of %u", (uint32_t)id,
                        t->model->info.vocab);
    l3__begin_call(t, err);
    if (score) *score = l3__score(t, (uint32_t)id);
    if (type) *type = l3__type(t, (uint32_t)id);
    const void *p = l3__piece(t, (uint32_t)id, &length);
    if (!p) return t->code;
    if (piece) *piece = (const char *)p;
    if (n) *n = length;
    return L3_OK;
}

/* >>sample -------------------------------------------------------------------------------------------------------- */

#ifndef L3_NO_SAMPLER
typedef struct l3__candidate {
    float   logit;
    int32_t id;
} l3__candidate;

struct l3_sampler {
    l3_sampling    options;
    uint32_t       vocab, capacity, n;
    uint64_t       state;      /* of the generator */
    l3__candidate *candidates; /* (capacity,) */
    int32_t       *recent;     /* (repeat_last_n,) a ring */
    int32_t       *sorted;     /* (repeat_last_n,) the same, by ID */
    uint32_t       n_recent, next;
};

L3_API uint64_t l3_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z          = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z          = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

L3_API l3_sampling l3_sampling_defaults(void) {
    const l3_sampling s = {0.8f, 40, 0.95f, 0.05f, 1.0f, 64, 0};
    return s;
}

L3__FN size_t l3__sampler_layout(l3_sampler *s, const l3_sampling *options, uint32_t vocab, const l3__target *target,
                                 void *base) {
    l3__arena a = l3__arena_of(base, target);
    (void)l3__take(&a, 1, L3__BYTES_OF(&a, l3_sampler, sampler));
    memset(s, 0, sizeof *s);
    s->options  = *options;
    s->vocab    = vocab;
    s->state    = options->seed;
    s->capacity = options->top_k && options->top_k < vocab ? options->top_k : vocab;
    if (!(options->temperature > 0)) s->capacity = 1;
    s->candidates = (l3__candidate *)l3__take(&a, s->capacity, sizeof *s->candidates);
    s->recent     = (int32_t *)l3__take(&a, options->repeat_last_n, sizeof *s->recent);
    s->sorted     = (int32_t *)l3__take(&a, options->repeat_last_n, sizeof *s->sorted);
    return l3__arena_size(&a);
}

L3__FN int l3__check_sampling(const l3_sampling *o, l3_error *err) {
    if (!(o->temperature >= 0) || !(o->temperature < 1e6f) || !(o->top_p >= 0) || !(o->top_p <= 1) ||
        !(o->min_p >= 0) || !(o->min_p <= 1) || !(o->repeat_penalty > 0) || !(o->repeat_penalty < 1e6f))
        return l3__fail(err, L3_ERR_ARGUMENT, 0,
                        "sampling: a temperature from 0, top-p and min-p from 0 to 1 and a penalty above 0 are right");
    return L3_OK;
}

L3_API size_t l3_sampler_size(const l3_sampling *options, uint32_t vocab) {
    l3_sampler s;
    return l3__check_sampling(options, NULL) == L3_OK ? l3__sampler_layout(&s, options, vocab, NULL, NULL) : 0;
}

#ifndef L3_NO_STDIO
L3_API size_t l3_sampler_size_for(const l3_target *target, const l3_sampling *options, uint32_t vocab) {
    l3_sampler s;
    return l3__check_sampling(options, NULL) == L3_OK ? l3__sampler_layout(&s, options, vocab, target, NULL) : 0;
}
#endif

L3_API int l3_sampler_init(l3_sampler **sampler, const l3_sampling *options, uint32_t vocab, void *mem, size_t size,
                           l3_error *err) {
    int code = l3__check_sampling(options, err);
    if (code == L3_OK) code = l3__check_block(mem, size, l3_sampler_size(options, vocab), err);
    if (code != L3_OK) return code;
    *sampler = (l3_sampler *)mem;
    (void)l3__sampler_layout(*sampler, options, vocab, NULL, mem);
    return L3_OK;
}

L3_API void l3_sampler_accept(l3_sampler *s, const int32_t *tokens, size_t n) {
    const uint32_t room = s->options.repeat_last_n;
    for (size_t i = 0; room && i < n; i++) {
        s->recent[s->next] = tokens[i];
        s->next            = (s->next + 1) % room;
        if (s->n_recent < room) s->n_recent++;
    }
}

L3__FN bool l3__better(const l3__candidate *a, const l3__candidate *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

/* Restores the heap (worst candidate on top) below place i of the first n. */
L3__FN void l3__sift(l3__candidate *heap, uint32_t n, uint32_t i) {
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= n) return;
        if (child + 1 < n && l3__better(&heap[child], &heap[child + 1])) child++;
        if (!l3__better(&heap[i], &heap[child])) return;
        const l3__candidate swap = heap[i];
        heap[i]                  = heap[child];
        heap[child]              = swap;
        i                        = child;
    }
}

/* Sorts the recent tokens by ID: there are few. */
L3__FN void l3__sort_recent(l3_sampler *s) {
    for (uint32_t i = 0; i < s->n_recent; i++) {
        uint32_t j = i;
        for (; j > 0 && s->sorted[j - 1] > s->recent[i]; j--) s->sorted[j] = s->sorted[j - 1];
        s->sorted[j] = s->recent[i];
    }
}

/* The `capacity` best of all tokens after the repetition penalty, best first. */
L3__FN void l3__select(l3_sampler *s, const float *logits) {
    const float    penalty  = s->options.repeat_penalty;
    const uint32_t n_recent = penalty < 1 || penalty > 1 ? s->n_recent : 0;
    uint32_t       r        = 0;
    s->n                    = 0;
    if (n_recent) l3__sort_recent(s);
    for (uint32_t id = 0; id < s->vocab; id++) {
        l3__candidate c = {logits[id], (int32_t)id};
        while (r < n_recent && s->sorted[r] < (int32_t)id) r++;
        if (r < n_recent && s->sorted[r] == (int32_t)id) c.logit = c.logit > 0 ? c.logit / penalty : c.logit * penalty;
        if (!(c.logit >= -3.4028235e38f)) continue; /* minus infinity, or NaN */
        if (s->n < s->capacity) {
            s->candidates[s->n++] = c;
            if (s->n == s->capacity)
                for (uint32_t i = s->n / 2; i-- > 0;) l3__sift(s->candidates, s->n, i);
        } else if (l3__better(&c, &s->candidates[0])) {
            s->candidates[0] = c;
            l3__sift(s->candidates, s->n, 0);
        }
    }
    if (s->n < s->capacity)
        for (uint32_t i = s->n / 2; i-- > 0;) l3__sift(s->candidates, s->n, i);
    for (uint32_t n = s->n; n > 1;) { /* the worst goes to the end */
        const l3__candidate worst = s->candidates[0];
        s->candidates[0]          = s->candidates[--n];
        s->candidates[n]          = worst;
        l3__sift(s->candidates, n, 0);
    }
}

L3__FN float l3__relative(const l3_sampler *s, uint32_t i, float temperature) {
    return l3__expf((s->candidates[i].logit - s->candidates[0].logit) / temperature);
}

/* Top-p, then min-p, at temperature 1: how many of the best stay, at least one. */
L3__FN uint32_t l3__cut(const l3_sampler *s) {
    float    total = 0, sum = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n; i++) total += l3__relative(s, i, 1);
    while (n < s->n && (n == 0 || s->options.top_p >= 1 || sum < s->options.top_p * total))
        sum += l3__relative(s, n++, 1);
    while (n > 1 && l3__relative(s, n - 1, 1) < s->options.min_p) n--;
    return n;
}

L3_API int l3_sample(l3_sampler *s, const float *logits, int32_t *id, l3_error *err) {
    const float temperature = s->options.temperature;
    float       total = 0, sum = 0;
    uint32_t    i = 0;
    l3__select(s, logits);
    if (s->n == 0 || !(s->candidates[0].logit <= 3.4028235e38f))
        return l3__fail(err, L3_ERR_NUMBER, 0, "the highest of %u logits is not finite", s->vocab);
    *id = s->candidates[0].id;
    if (!(temperature > 0)) return L3_OK;
    const uint32_t n = l3__cut(s);
    for (uint32_t j = 0; j < n; j++) total += l3__relative(s, j, temperature);
    const float draw = (float)(l3_random(&s->state) >> 40) * 5.9604644775390625e-8f * total; /* 2^-24 */
    while (i + 1 < n && (sum += l3__relative(s, i, temperature)) <= draw) i++;
    *id = s->candidates[i].id;
    return L3_OK;
}
#endif /* L3_NO_SAMPLER */

#ifdef __cplusplus
}
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT DEFAULT
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif /* L3_IMPLEMENTATION */
