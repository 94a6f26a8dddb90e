/* ref.h - a slow, plain second opinion in double precision, written from the format and the formulas alone.
 * It shares no code with the library. Nothing here is fast, and everything allocates. */
#ifndef REF_H
#define REF_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- GGUF v3 ---- */

enum { REF_F32 = 0, REF_F16 = 1, REF_Q4_0 = 2, REF_Q8_0 = 8, REF_Q6_K = 14, REF_I32 = 26, REF_BF16 = 30 };

typedef struct ref_gguf ref_gguf;

typedef struct ref_tensor {
    char                *name;
    uint32_t             type, n_dims;
    uint64_t             dims[4]; /* fastest first; 1 beyond n_dims */
    uint64_t             offset;  /* of its first byte in the file */
    size_t               n_elements, n_bytes;
    const unsigned char *data;
} ref_tensor;

/* The bytes stay the caller's and must outlive the reader. NULL: not a GGUF v3 file, or a broken one. */
ref_gguf *ref_gguf_open(const void *data, size_t n);
void      ref_gguf_close(ref_gguf *g);

/* Elements of a key's value: 1 for a scalar, 0 for an absent key or an empty array (ref_key_type() tells). */
size_t ref_key_count(const ref_gguf *g, const char *key);
/* GGUF type number (of the elements, for an array), or -1 when absent. */
int ref_key_type(const ref_gguf *g, const char *key);
int ref_key_is_array(const ref_gguf *g, const char *key);
/* Element i (0 for a scalar) as a number, or `otherwise` when the key is absent or holds strings. */
double ref_number(const ref_gguf *g, const char *key, size_t i, double otherwise);
/* Element i as a string, zero-terminated, or NULL. length may be NULL. */
const char *ref_string(const ref_gguf *g, const char *key, size_t i, size_t *length);

size_t            ref_tensor_count(const ref_gguf *g);
const ref_tensor *ref_tensor_at(const ref_gguf *g, size_t i);
const ref_tensor *ref_tensor_find(const ref_gguf *g, const char *name);
/* All elements in file order, malloc memory; NULL when absent or of an unknown type. n may be NULL. */
double *ref_tensor_read(const ref_gguf *g, const char *name, size_t *n);

/* Bytes of n elements, 0 when the type is unknown or n is no multiple of its block. */
size_t ref_type_size(uint32_t type, uint64_t n);
/* n elements, ggml block layouts. Returns 0 when the type is unknown or n is no multiple of its block. */
int ref_dequantize(uint32_t type, const void *bytes, size_t n, double *out);

/* ---- one lookup layer ---- */

typedef struct ref_lookup_layer {
    size_t        d_in, d_emb, d_up;
    int           tied, query_norm, key_norm, layer_norm, residual;
    double        score_scale, epsilon;
    const double *query_weight; /* (d_in,) or NULL: ones */
    const double *up;           /* (d_up, d_emb) or NULL: u = norm(a) */
    const double *norm_weight;  /* (d_up,) or NULL: ones */
    const double *norm_bias;    /* (d_up,) or NULL: zeros; for layer_norm */
    const double *mix;          /* (d_in, d_up + d_in) */
} ref_lookup_layer;

/* rows: this token's, (n_rows, d_in) when tied, else (n_rows, d_in + d_emb): key, value. out may be x. */
void ref_lookup(const ref_lookup_layer *layer, const double *rows, size_t n_rows, const double *x, double *out);

/* ---- a model ---- */

typedef struct ref_model   ref_model;
typedef struct ref_session ref_session;

/* Architectures "llama" and "l3". The bytes must outlive the model. NULL: broken or not supported. */
ref_model *ref_load(const void *data, size_t n);
/* A file of which only the tokenizer is used; ref_encode and ref_decode work, nothing else. */
ref_model *ref_load_tokenizer(const void *data, size_t n);
void       ref_free(ref_model *m);

const ref_gguf         *ref_file(const ref_model *m);
uint32_t                ref_vocab(const ref_model *m);
uint32_t                ref_dim(const ref_model *m);
uint32_t                ref_block_count(const ref_model *m);
uint32_t                ref_context(const ref_model *m);
int                     ref_has_lookup(const ref_model *m, uint32_t block);
uint32_t                ref_row_count(const ref_model *m, uint32_t block, int32_t token); /* d_t */
const double           *ref_rows(const ref_model *m, uint32_t block, int32_t token);      /* (d_t, row length) */
const ref_lookup_layer *ref_layer(const ref_model *m, uint32_t block);                    /* NULL: none */
int32_t                 ref_bos(const ref_model *m);                                      /* -1: none */
int32_t                 ref_eos(const ref_model *m);

/* One token after the other; logits (vocab,) or NULL. */
ref_session *ref_start(const ref_model *m);
void         ref_step(ref_session *s, int32_t id, double *logits);
void         ref_end(ref_session *s);

/* Logits after every position of ids, from an empty context: out (n, vocab). */
void ref_logits(const ref_model *m, const int32_t *ids, size_t n, double *out);

/* The highest logit; the lowest ID of equals. */
int32_t ref_argmax(const double *logits, uint32_t vocab);

/* Windows of `window` - 1 tokens, BOS in front of each. predicted (may be NULL): tokens counted. */
double ref_perplexity(const ref_model *m, const int32_t *ids, size_t n, size_t window, size_t *predicted);

/* ---- tokenizer: SentencePiece BPE ---- */

/* No BOS is added. out has room for 3 * (n + 1) IDs. */
size_t ref_encode(const ref_model *m, const char *text, size_t n, int32_t *out);
/* Bytes of the text; what fits cap is written, no zero byte. */
size_t ref_decode(const ref_model *m, const int32_t *ids, size_t n, char *out, size_t cap);

/* ---- allocation ---- */

/* Rows of every token, counts (vocab,), from the LZW parse of the documents. max 0: unbounded.
 * Returns the rows placed (less than `rows` only when every token has max), 0 when rows < vocab. */
uint64_t ref_alloc(const int32_t *const *docs, const size_t *lengths, size_t n_docs, uint32_t vocab, uint64_t rows,
                   uint32_t max, uint32_t *counts, uint64_t *placed_by_fallback);

#ifdef __cplusplus
}
#endif
#endif
