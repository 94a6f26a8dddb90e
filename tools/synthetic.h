/* synthetic.h - models made of random numbers, of any shape, so that speed can be measured without a trained model. */
#ifndef SYNTHETIC_H
#define SYNTHETIC_H

#include "allocation.h"
#include "gguf_copy.h"
#include "gguf_write.h"

typedef struct shape {
    const char *name;
    uint32_t    dim, blocks, ffn, heads, kv_heads, vocab;
    uint32_t    lookups, rows, k, d_emb, d_up; /* rows 0: 4 a token; d_emb 0: keys are the values; d_up 0: 2 dim */
    uint32_t    context;
    uint32_t    after[2]; /* blocks that two lookup layers follow; {0, 0}: spread evenly, as any other number of them */
    bool        unchecked; /* no checksums */
    int         type;      /* a choice */
    cli_engine *tokenizer; /* whose vocabulary it has, or NULL: none */
    int32_t    *offsets;   /* (vocab + 1,) of every lookup layer, or NULL: as Zipf would have them */
} shape;

static const char types[]  = "q8_0|q4_0|f16|bf16|f32";
static const char shapes[] = "1.1B|110M|0.8B|1.5B|2.6B";

static const l3_type tensor_types[] = {L3_Q8_0, L3_Q4_0, L3_F16, L3_BF16, L3_F32};

enum { SYNTHETIC_CONTEXT = 2048 };

static const shape known_shapes[] = {
    {.name = "1.1B", 2048, 22, 5632, 32, 4, 32000, 2, 0, 512, .context = SYNTHETIC_CONTEXT}, /* as TinyLlama */
    {.name = "110M", 768, 12, 2048, 12, 12, 32000, 2, 0, 512, .context = SYNTHETIC_CONTEXT}, /* as stories110M */

    /* The paper's sizes (arXiv 2601.21461): its vocabulary, rows, d_up and d_emb; its dense shapes are not told, so these
     * are a Llama's with heads of 128. Millions of parameters that are read for a token, blocks (4 dim^2 + 3 dim ffn each) and
     * head (dim vocab), without those of the lookup layers (d_up d_emb + dim (d_up + dim) each):
     *     0.8B   18 * 28.3 + 276.5 =  786, and 2 * 10.7      1.5B   22 * 51.4 + 368.6 = 1499, and 2 * 15.7
     *     2.6B   27 * 79.3 + 460.8 = 2602, and 2 * 21.2
     * The embedding, of which a token reads one row, is as large as the head and not counted. Lookup layers follow blocks 4
     * and 16 of the largest, as in the paper; of the others 4 and the one as far up. */
    {.name = "0.8B", 1536, 18, 4096, 12, 12, 180000, 2, 710000, 512, 512, 4096, SYNTHETIC_CONTEXT, {4, 11}},
    {.name = "1.5B", 2048, 22, 5632, 16, 16, 180000, 2, 710000, 512, 768, 4096, SYNTHETIC_CONTEXT, {4, 13}},
    {.name = "2.6B", 2560, 27, 6912, 20, 20, 180000, 2, 710000, 512, 1024, 4096, SYNTHETIC_CONTEXT, {4, 16}},
};

static float random_unit(uint64_t *state) { return (float)(l3_random(state) >> 40) * (1.0f / 8388608.0f) - 1.0f; }

/* A tensor out of a few random rows, over and over; values that keep activations near one. */
static void write_random(gguf_writer *w, l3_type type, uint32_t cols, uint32_t rows, uint64_t *state) {
    enum { DISTINCT = 16 };
    const size_t   row   = (size_t)l3_row_bytes((int)type, cols);
    float         *x     = (float *)cli_malloc((uint64_t)cols * sizeof *x);
    unsigned char *bytes = (unsigned char *)cli_malloc((uint64_t)row * DISTINCT);
    for (uint32_t i = 0; i < DISTINCT; i++) {
        for (uint32_t k = 0; k < cols; k++) x[k] = random_unit(state) * 1.7f / sqrtf((float)cols);
        l3_pack((int)type, x, cols, bytes + i * row);
    }
    for (uint32_t at = 0; at < rows; at += DISTINCT)
        gguf_data(w, bytes, row * (rows - at < DISTINCT ? rows - at : DISTINCT));
    free(bytes);
    free(x);
}

static void write_ones(gguf_writer *w, uint32_t n) {
    const float    one   = 1;
    unsigned char *bytes = (unsigned char *)cli_malloc(4 * (uint64_t)n);
    for (uint32_t i = 0; i < n; i++) l3_pack(L3_F32, &one, 1, bytes + 4 * (size_t)i);
    gguf_data(w, bytes, 4 * (size_t)n);
    free(bytes);
}

/* Rows as Zipf would give them: token t gets about scale / (t + 1), from 1 to k. */
static uint64_t zipf_rows(const shape *s, double scale, uint32_t *rows) {
    uint64_t sum = 0;
    for (uint32_t t = 0; t < s->vocab; t++) {
        const double wanted = 1 + floor(scale / (t + 1));
        rows[t]             = wanted < s->k ? (uint32_t)wanted : s->k;
        sum += rows[t];
    }
    return sum;
}

/* (vocab + 1,) in malloc memory. */
static int32_t *zipf_offsets(const shape *s) {
    uint32_t *rows    = (uint32_t *)cli_malloc(4 * (uint64_t)s->vocab);
    int32_t  *offsets = (int32_t *)cli_malloc(4 * ((uint64_t)s->vocab + 1));
    double    low = 0, high = (double)s->vocab * s->k;
    for (int i = 0; i < 100; i++) {
        const double middle = (low + high) / 2;
        if (zipf_rows(s, middle, rows) <= s->rows) low = middle;
        else high = middle;
    }
    uint64_t left = s->rows - zipf_rows(s, low, rows);
    for (uint32_t t = 0; left; t = (t + 1) % s->vocab)
        if (rows[t] < s->k) rows[t]++, left--;
    offsets[0] = 0;
    for (uint32_t t = 0; t < s->vocab; t++) offsets[t + 1] = offsets[t] + (int32_t)rows[t];
    free(rows);
    return offsets;
}

static void write_offsets(gguf_writer *w, const int32_t *offsets, uint32_t vocab) {
    unsigned char *bytes = (unsigned char *)cli_malloc(4 * ((uint64_t)vocab + 1));
    l3_pack_i32(offsets, (size_t)vocab + 1, bytes);
    gguf_data(w, bytes, 4 * ((size_t)vocab + 1));
    free(bytes);
}

static uint32_t lookup_block(const shape *s, uint32_t i) {
    if (s->lookups == 2 && s->after[1] && s->after[1] < s->blocks) return s->after[i];
    return (i + 1) * s->blocks / (s->lookups + 1);
}
static uint32_t value_length(const shape *s) { return s->d_emb ? s->d_emb : s->dim; }
static uint32_t up_length(const shape *s) { return s->d_up ? s->d_up : 2 * s->dim; }

static void write_number(gguf_writer *w, const char *architecture, const char *key, uint32_t value) {
    char name[64];
    snprintf(name, sizeof name, "%s.%s", architecture, key);
    gguf_u32(w, name, value);
}

/* Without lookup layers it is a Llama that other programs read too. */
static void write_keys(gguf_writer *w, const shape *s) {
    const char *a = s->lookups ? "l3" : "llama";
    char        name[64];
    snprintf(name, sizeof name, "synthetic %s", s->name);
    gguf_string(w, "general.architecture", a);
    gguf_string(w, "general.name", name);
    if (s->tokenizer) gguf_copy_keys(w, s->tokenizer->path, &s->tokenizer->file.source, gguf_is_tokenizer_key, NULL);
    else gguf_string(w, "tokenizer.ggml.model", "no_vocab");
    write_number(w, a, "vocab_size", s->vocab);
    write_number(w, a, "context_length", s->context);
    write_number(w, a, "embedding_length", s->dim);
    write_number(w, a, "feed_forward_length", s->ffn);
    write_number(w, a, "block_count", s->blocks);
    write_number(w, a, "attention.head_count", s->heads);
    write_number(w, a, "attention.head_count_kv", s->kv_heads);
    snprintf(name, sizeof name, "%s.attention.layer_norm_rms_epsilon", a);
    gguf_f32(w, name, 1e-5f);
    if (!s->lookups) return;
    gguf_array(w, "l3.lookup.block_indices", L3_GGUF_U32, s->lookups);
    for (uint32_t i = 0; i < s->lookups; i++) gguf_put_number(&w->keys, lookup_block(s, i), 4);
    gguf_u32(w, "l3.lookup.row_count", s->rows);
    gguf_u32(w, "l3.lookup.rows_per_token_max", s->k);
    gguf_u32(w, "l3.lookup.key_length", s->dim);
    gguf_u32(w, "l3.lookup.value_length", value_length(s));
    gguf_u32(w, "l3.lookup.up_length", up_length(s));
    gguf_bool(w, "l3.lookup.tied", s->d_emb == 0);
    gguf_bool(w, "l3.lookup.query_norm", true);
    gguf_string(w, "l3.lookup.norm_type", "rms");
}

/* One tensor: told about in the first pass (state NULL), written in the second. type I32: the offsets; F32 with rows 0:
 * a norm. */
static void each_tensor(gguf_writer *w, const shape *s, uint64_t *state, const char *name, uint32_t block, l3_type type,
                        uint32_t cols, uint32_t rows) {
    char full[64];
    snprintf(full, sizeof full, name, block);
    if (!state) gguf_tensor(w, full, type, cols, rows);
    else if (type == L3_I32) write_offsets(w, s->offsets, s->vocab);
    else if (rows == 0) write_ones(w, cols);
    else write_random(w, type, cols, rows, state);
}

static void each_lookup_tensor(gguf_writer *w, const shape *s, uint64_t *state, uint32_t b) {
    const l3_type  type = tensor_types[s->type];
    const uint32_t d = s->dim, up = up_length(s);
    each_tensor(w, s, state, "blk.%u.lookup_offsets", b, L3_I32, s->vocab + 1, 0);
    each_tensor(w, s, state, "blk.%u.lookup_rows.weight", b, type, d + s->d_emb, s->rows);
    each_tensor(w, s, state, "blk.%u.lookup_query_norm.weight", b, L3_F32, d, 0);
    each_tensor(w, s, state, "blk.%u.lookup_up.weight", b, type, value_length(s), up);
    each_tensor(w, s, state, "blk.%u.lookup_up_norm.weight", b, L3_F32, up, 0);
    each_tensor(w, s, state, "blk.%u.lookup_mix.weight", b, type, up + d, d);
}

static void each_model_tensor(gguf_writer *w, const shape *s, uint64_t *state) {
    const l3_type  type = tensor_types[s->type];
    const uint32_t d = s->dim, kv = d / s->heads * s->kv_heads;
    each_tensor(w, s, state, "token_embd.weight", 0, type, d, s->vocab);
    for (uint32_t b = 0; b < s->blocks; b++) {
        each_tensor(w, s, state, "blk.%u.attn_norm.weight", b, L3_F32, d, 0);
        each_tensor(w, s, state, "blk.%u.attn_q.weight", b, type, d, d);
        each_tensor(w, s, state, "blk.%u.attn_k.weight", b, type, d, kv);
        each_tensor(w, s, state, "blk.%u.attn_v.weight", b, type, d, kv);
        each_tensor(w, s, state, "blk.%u.attn_output.weight", b, type, d, d);
        each_tensor(w, s, state, "blk.%u.ffn_norm.weight", b, L3_F32, d, 0);
        each_tensor(w, s, state, "blk.%u.ffn_gate.weight", b, type, d, s->ffn);
        each_tensor(w, s, state, "blk.%u.ffn_up.weight", b, type, d, s->ffn);
        each_tensor(w, s, state, "blk.%u.ffn_down.weight", b, type, s->ffn, d);
        for (uint32_t i = 0; i < s->lookups; i++)
            if (lookup_block(s, i) == b) each_lookup_tensor(w, s, state, b);
    }
    each_tensor(w, s, state, "output_norm.weight", 0, L3_F32, d, 0);
    each_tensor(w, s, state, "output.weight", 0, type, d, s->vocab);
}

/* Writes the model. */
static void write_synthetic(shape *s, const char *path) {
    gguf_writer w;
    uint64_t    state = 1;
    int32_t    *zipf  = s->offsets ? NULL : (s->offsets = zipf_offsets(s));
    gguf_begin(&w, path);
    w.unchecked = s->unchecked;
    write_keys(&w, s);
    each_model_tensor(&w, s, NULL);
    gguf_begin_data(&w);
    each_model_tensor(&w, s, &state);
    gguf_end(&w);
    if (zipf) s->offsets = NULL;
    free(zipf);
}

/* ---- the same model without its tables ---- */

static inline bool is_kept_without_tables(void *user, const l3_gguf_key *k) {
    static const char *const other[] = {"general.alignment", "l3.lookup.row_count", "l3.lookup.rows_per_token_max"};
    (void)user;
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        if (strcmp(k->name, other[i]) == 0) return false;
    return !gguf_is_check_key(k->name);
}

/* The first row of each token; where it has none, the table's first. */
static inline void write_first_rows(gguf_writer *w, const l3_lookup *l) {
    const size_t         row     = (size_t)l3_row_bytes(l->rows.type, l->rows.cols);
    const unsigned char *rows    = (const unsigned char *)l->rows.data;
    int32_t             *offsets = cli_offsets(l);
    for (uint32_t t = 0; t < l->vocab; t++)
        gguf_data(w, rows + row * (offsets[t] < offsets[t + 1] ? (size_t)offsets[t] : 0), row);
    free(offsets);
}

static inline void write_one_each(gguf_writer *w, uint32_t vocab) {
    int32_t *offsets = (int32_t *)cli_malloc(4 * ((uint64_t)vocab + 1));
    for (uint32_t t = 0; t <= vocab; t++) offsets[t] = (int32_t)t;
    write_offsets(w, offsets, vocab);
    free(offsets);
}

static inline const l3_lookup *lookup_of_rows(const l3_model *model, const l3_tensor *t) {
    for (uint32_t i = 0; i < l3_model_info(model)->n_lookups; i++)
        if (l3_model_lookup(model, i, NULL)->rows.offset == t->offset) return l3_model_lookup(model, i, NULL);
    return NULL;
}

/* Begins a copy of a mapped model with those of its keys that are kept. */
static inline void begin_copy(gguf_writer *w, const cli_engine *e, const char *path, bool unchecked,
                              bool (*keep)(void *user, const l3_gguf_key *k)) {
    l3_source source = e->file.source; /* read, not mapped */
    source.map       = NULL;
    gguf_begin(w, path);
    w->unchecked = unchecked;
    gguf_copy_keys(w, e->path, &source, keep, NULL);
}

/* A copy of a mapped model in which every token has one row: what it would cost without large tables. */
static inline void write_without_tables(const cli_engine *e, const char *path) {
    const uint32_t   vocab = e->info->vocab;
    gguf_writer      w;
    const l3_tensor *t;
    char             name[64];
    begin_copy(&w, e, path, false, is_kept_without_tables);
    gguf_u32(&w, "l3.lookup.row_count", vocab);
    gguf_u32(&w, "l3.lookup.rows_per_token_max", 1);
    for (uint32_t i = 0; (t = l3_model_tensor(e->model, i, name)) != NULL; i++)
        gguf_tensor(&w, name, (l3_type)t->type, t->cols,
                    lookup_of_rows(e->model, t) ? vocab
                    : t->rows > 1               ? t->rows
                                                : 0);
    gguf_begin_data(&w);
    for (uint32_t i = 0; (t = l3_model_tensor(e->model, i, name)) != NULL; i++) {
        const l3_lookup *l = lookup_of_rows(e->model, t);
        if (l) write_first_rows(&w, l);
        else if (t->type == L3_I32) write_one_each(&w, vocab);
        else gguf_data(&w, t->data, (size_t)(l3_row_bytes(t->type, t->cols) * t->rows));
    }
    gguf_end(&w);
}

/* ---- the same model without its lookup layers ---- */

static inline bool is_kept_without_lookups(void *user, const l3_gguf_key *k) {
    return strncmp(k->name, "l3.lookup.", 10) != 0 && is_kept_without_tables(user, k);
}

/* A copy of a mapped model without the lookup layers: the dense model that they were added to. For a measurement: it has no
 * checksums. */
static inline void write_dense(const cli_engine *e, const char *path) {
    gguf_writer      w;
    const l3_tensor *t;
    char             name[64];
    begin_copy(&w, e, path, true, is_kept_without_lookups);
    for (uint32_t i = 0; (t = l3_model_tensor(e->model, i, name)) != NULL; i++)
        if (!cli_has(name, ".lookup_"))
            gguf_tensor(&w, name, (l3_type)t->type, t->cols, gguf_is_vector(name) ? 0 : t->rows);
    gguf_begin_data(&w);
    for (uint32_t i = 0; (t = l3_model_tensor(e->model, i, name)) != NULL; i++)
        if (!cli_has(name, ".lookup_")) gguf_data(&w, t->data, (size_t)(l3_row_bytes(t->type, t->cols) * t->rows));
    gguf_end(&w);
}

#endif /* SYNTHETIC_H */
