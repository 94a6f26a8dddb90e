/* make_model.h - random models as GGUF v3 files in memory, and a plain GGUF writer underneath, with which a
 * test can also write files that are wrong on purpose. Every byte is written one by one, so the files are the
 * same on every host. It shares no code with the library. */
#ifndef MAKE_MODEL_H
#define MAKE_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- GGUF writer ---- */

enum { /* tensor types */
       MK_F32  = 0,
       MK_F16  = 1,
       MK_Q4_0 = 2,
       MK_Q8_0 = 8,
       MK_Q6_K = 14,
       MK_I32  = 26,
       MK_BF16 = 30
};

enum { /* types of values */
       MK_U8 = 0,
       MK_I8,
       MK_U16,
       MK_I16,
       MK_U32,
       MK_INT32,
       MK_FLOAT,
       MK_BOOL,
       MK_STRING,
       MK_ARRAY,
       MK_U64,
       MK_I64,
       MK_DOUBLE
};

typedef struct mk_buf {
    unsigned char *data;
    size_t         n, cap;
} mk_buf;

void mk_put(mk_buf *b, const void *bytes, size_t n);
void mk_put_u8(mk_buf *b, uint32_t v);
void mk_put_u16(mk_buf *b, uint32_t v);
void mk_put_u32(mk_buf *b, uint32_t v);
void mk_put_u64(mk_buf *b, uint64_t v);
void mk_put_f32(mk_buf *b, float v);
void mk_put_string(mk_buf *b, const void *text, size_t n); /* u64 length, bytes */

/* A file being made. All fields may be changed before mk_finish(). */
typedef struct mk_gguf {
    uint32_t magic, version;    /* "GGUF", 3 */
    uint32_t alignment;         /* of tensor data, default 32; writes no key */
    uint64_t n_tensors, n_keys; /* as the header will say */
    mk_buf   keys, infos, blob; /* encoded keys, encoded tensor infos, tensor data */
    size_t   checksum_at;       /* in keys, the 4 bytes of l3.checksum.file; 0: none */
} mk_gguf;

mk_gguf *mk_gguf_new(void);
void     mk_gguf_free(mk_gguf *g);

void mk_u32(mk_gguf *g, const char *key, uint32_t v);
void mk_u64(mk_gguf *g, const char *key, uint64_t v);
void mk_f32(mk_gguf *g, const char *key, float v);
void mk_bool(mk_gguf *g, const char *key, int v);
void mk_string(mk_gguf *g, const char *key, const char *v);
void mk_u32s(mk_gguf *g, const char *key, const uint32_t *v, size_t n);
void mk_i32s(mk_gguf *g, const char *key, const int32_t *v, size_t n);
void mk_f32s(mk_gguf *g, const char *key, const float *v, size_t n);
void mk_strings(mk_gguf *g, const char *key, const char *const *v, size_t n);
/* A value of any type from its encoded bytes. */
void mk_key(mk_gguf *g, const char *key, uint32_t type, const void *value, size_t n);
/* l3.checksum.file, filled in by mk_finish(). */
void mk_checksum(mk_gguf *g);

/* dims: fastest first. The data goes to the next aligned place; returns its offset in blob. */
size_t mk_tensor(mk_gguf *g, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *dims, const void *data,
                 size_t n);
/* The info alone, with any offset. */
void mk_tensor_info(mk_gguf *g, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *dims,
                    uint64_t offset);

/* The whole file in malloc memory; frees g. */
unsigned char *mk_finish(mk_gguf *g, size_t *n);

/* CRC-32 of IEEE 802.3; begin with 0, go on with the last result. */
uint32_t mk_crc32(uint32_t crc, const void *data, size_t n);

/* ---- quantizers ---- */

/* Elements in a block of this type, 0 for an unknown one. */
size_t mk_block_elements(uint32_t type);
/* n floats, a multiple of the block. */
void mk_quantize(mk_buf *out, uint32_t type, const float *x, size_t n);

/* ---- random models ---- */

enum { MK_LOOKUPS = 8 };

/* Zero is the default everywhere. A tensor whose rows are no multiple of its type's block becomes F16. */
typedef struct mk_spec {
    const char *architecture; /* "l3", or "llama": no lookups, no lookup keys */
    uint64_t    seed;
    uint32_t    dim;        /* 64 */
    uint32_t    n_blocks;   /* 3 */
    uint32_t    n_heads;    /* 4 */
    uint32_t    n_kv_heads; /* n_heads */
    uint32_t    rope_dim;   /* dim / n_heads */
    uint32_t    ffn;        /* 160 */
    uint32_t    vocab;      /* 320; 259 or more */
    uint32_t    context;    /* 64 */
    uint32_t    alignment;  /* 32 */
    float       rms_eps;    /* 1e-5 */
    float       freq_base;  /* 10000 */

    uint32_t lookup_blocks[MK_LOOKUPS]; /* a lookup layer after each of these */
    uint32_t n_lookups;                 /* 0: one, after block n_blocks / 2 */
    int      no_lookup;                 /* "l3" without any: the keys are there, the list is empty */
    uint32_t row_count;                 /* v; default: whatever the tokens happen to get */
    uint32_t k;                         /* rows_per_token_max, 24 */
    uint32_t empty_every;               /* tokens t with t % empty_every == 1 own no row; 0: all own some */
    uint32_t heavy_token, heavy_rows;   /* heavy_rows > 0: this token owns so many; k becomes at least that */
    int      tied;
    uint32_t value_length; /* d_emb, default dim / 2; tied: dim */
    uint32_t up_length;    /* d_up; 0: no W_up, d_up = d_emb */
    int      no_query_norm, no_query_weight;
    int      key_norm;
    float    score_scale;  /* 0: no key, which means 1 */
    int      layer_norm;   /* norm_type "layer" instead of "rms" */
    float    norm_epsilon; /* 0: no key, which means rms_eps */
    int      no_up_weight; /* weight of the norm after W_up */
    int      up_bias;      /* its bias, with layer_norm only */
    int      no_residual;

    uint32_t weight_type, row_type, embedding_type, head_type; /* MK_F32 */
    int      separate_head;                                    /* output.weight */
    int      checksums;
    int      no_bos, no_space_prefix; /* tokenizer keys set to false instead of absent */
    int      minimal;                 /* leave out every key whose value is its default */

    const int32_t *selftest_tokens; /* l3.selftest.tokens and .logits; NULL: absent */
    size_t         n_selftest_tokens;
    const float   *selftest_logits;
    size_t         n_selftest_logits;
} mk_spec;

/* The spec with its defaults filled in. */
mk_spec mk_defaults(const mk_spec *spec);
/* A small valid spec with all sorts of variations, chosen by the seed. */
mk_spec mk_random_spec(uint64_t seed);
/* The file in malloc memory. */
unsigned char *mk_model(const mk_spec *spec, size_t *n);

#ifdef __cplusplus
}
#endif
#endif
