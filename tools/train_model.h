/* train_model.h - a Llama-style model with lookup layers (or experts) for training: parameters, forward pass, and the whole
 * backward pass by hand.
 *
 * Work is split by sequences: every slot (one a thread) runs its own sequences through the whole model with activations and
 * dense gradients of its own, so a slot's results do not depend on the others. The gradient of table rows is different: what
 * it needs is kept by every slot, and train_step.h adds it up token by token afterwards.
 *
 * Shapes: n tokens in a slot, of sequences of t; d = dim, q = n_heads * head_dim, kv = n_kv_heads * head_dim, f = ffn,
 * e = value_length, u = up_length. Every weight matrix is (outputs, inputs), as in the file.
 *
 * Sections: >>shape >>parameters >>slots >>products >>attention >>feed-forward >>experts >>lookup >>head >>passes */
#ifndef TRAIN_MODEL_H
#define TRAIN_MODEL_H

#include "cli.h"
#include "train_ops.h"

/* >>shape ------------------------------------------------------------------------------------------------------------ */

enum { TRAIN_MAX_LOOKUPS = 16, TRAIN_TILE = 64 /* query positions of attention at a time */ };

/* What a lookup layer computes: the fields of l3_lookup. */
typedef struct train_shape {
    uint32_t vocab, context; /* tokens, positions */
    uint32_t dim, blocks, heads, kv_heads, head_dim, ffn, rope_dims;
    double   rope_base;
    real     rms_epsilon;
    bool     tied_head;
    uint32_t lookups, lookup_blocks[TRAIN_MAX_LOOKUPS]; /* rising */
    uint32_t row_count, max_rows, value_length, up_length;
    bool     has_up, tied, query_norm, query_norm_weight, key_norm, layer_norm, up_norm_weight, up_norm_bias, residual;
    real     score_scale, norm_epsilon;
    uint32_t experts, experts_used; /* 0: one feed-forward layer a block */
    real     balance;               /* weight of the experts' load-balancing loss (Fedus et al. 2021, eq. 4) */
    real     dropout;               /* of what attention and feed-forward layers add */
} train_shape;

static inline uint32_t train_row_width(const train_shape *s) { return s->dim + (s->tied ? 0 : s->value_length); }

/* >>parameters ------------------------------------------------------------------------------------------------------- */

/* A tensor whose gradient is dense. */
typedef struct train_param {
    char     name[64];
    uint32_t rows, cols; /* a vector has rows 0 */
    size_t   at, n;      /* where it lies in the arrays of weights, gradients and moments */
    real     deviation;  /* of its initial values; 0: they are `fill` */
    real     fill;
    bool     of_lookup;
} train_param;

#define TRAIN_NONE SIZE_MAX

/* Places of a block's tensors in the dense arrays. With experts, gate, up (experts * f, d) and down (experts * d, f). */
typedef struct train_block {
    size_t attn_norm, wq, wk, wv, wo, ffn_norm, router, gate, up, down;
} train_block;

typedef struct train_lookup {
    uint32_t block;
    size_t   query_norm, up, up_norm, up_bias, mix; /* places in the dense arrays, or TRAIN_NONE */
    int32_t *offsets;                               /* (vocab + 1,) */
    real    *rows, *m, *v;                          /* (row_count, row width): weights and their moments */
    /* The gradient of the rows that this step has touched. */
    uint32_t *grad_at; /* (vocab,) first row of a touched token in grad */
    real     *grad;    /* (grad_rows, row width) */
    size_t    grad_rows, grad_room;
} train_lookup;

typedef struct train_model {
    train_shape      shape;
    const train_ops *ops;
    train_param     *params;
    size_t           n_params, n_dense;
    real            *w, *m, *v;                      /* (n_dense,) */
    size_t           embedding, output_norm, output; /* places; output is the embedding when tied */
    train_block     *block;
    train_lookup     lookup[TRAIN_MAX_LOOKUPS];
    real            *cosine, *sine; /* (context, rope_dims / 2) */
    uint64_t         bytes;         /* of memory taken, moments and gradients included */
} train_model;

static inline void *train_zeroed(uint64_t bytes) {
    void *p = cli_aligned((size_t)bytes, "training");
    memset(p, 0, (size_t)bytes);
    return p;
}

/* Memory that the count of bytes knows. */
static inline void *train_take(train_model *m, uint64_t count, uint64_t size) {
    m->bytes += count * size;
    return train_zeroed(count * size);
}

static inline size_t train_add(train_model *m, const char *name, uint32_t rows, uint32_t cols, double deviation,
                               double fill) {
    m->params      = (train_param *)cli_grow(m->params, m->n_params, sizeof *m->params);
    train_param *p = &m->params[m->n_params++];
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", name);
    p->rows      = rows;
    p->cols      = cols;
    p->at        = m->n_dense;
    p->n         = (size_t)(rows ? rows : 1) * cols;
    p->deviation = (real)deviation;
    p->fill      = (real)fill;
    p->of_lookup = strstr(name, ".lookup_") != NULL;
    m->n_dense += (p->n + 15) / 16 * 16;
    return p->at;
}

static inline size_t train_add_block(train_model *m, uint32_t block, const char *name, uint32_t rows, uint32_t cols,
                                     double deviation, double fill) {
    char full[64];
    snprintf(full, sizeof full, "blk.%" PRIu32 ".%s", block, name);
    return train_add(m, full, rows, cols, deviation, fill);
}

/* GPT-2's 0.02 at a width of 768 for every fan-in: 0.55 / sqrt(fan-in). */
static inline double train_deviation(uint32_t inputs) { return 0.55 / sqrt((double)inputs); }

static inline void train_add_blocks(train_model *m) {
    const train_shape *s = &m->shape;
    const uint32_t     d = s->dim, q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim, f = s->ffn;
    const uint32_t     e    = s->experts ? s->experts : 1;
    const double       last = 1 / sqrt(2.0 * s->blocks); /* what adds to the stream starts smaller the more there is */
    for (uint32_t b = 0; b < s->blocks; b++) {
        train_block *x = &m->block[b];
        x->attn_norm   = train_add_block(m, b, "attn_norm.weight", 0, d, 0, 1);
        x->wq          = train_add_block(m, b, "attn_q.weight", q, d, train_deviation(d), 0);
        x->wk          = train_add_block(m, b, "attn_k.weight", kv, d, train_deviation(d), 0);
        x->wv          = train_add_block(m, b, "attn_v.weight", kv, d, train_deviation(d), 0);
        x->wo          = train_add_block(m, b, "attn_output.weight", d, q, train_deviation(q) * last, 0);
        x->ffn_norm    = train_add_block(m, b, "ffn_norm.weight", 0, d, 0, 1);
        x->router = s->experts ? train_add_block(m, b, "ffn_gate_inp.weight", e, d, train_deviation(d), 0) : TRAIN_NONE;
        x->gate   = train_add_block(m, b, "ffn_gate.weight", e * f, d, train_deviation(d), 0);
        x->up     = train_add_block(m, b, "ffn_up.weight", e * f, d, train_deviation(d), 0);
        x->down   = train_add_block(m, b, "ffn_down.weight", e * d, f, train_deviation(f) * last, 0);
    }
}

static inline void train_add_lookup(train_model *m, train_lookup *k, uint32_t block) {
    const train_shape *s = &m->shape;
    const uint32_t     d = s->dim, e = s->value_length, u = s->up_length;
    k->block = block;
    k->query_norm =
        s->query_norm_weight ? train_add_block(m, block, "lookup_query_norm.weight", 0, d, 0, 1) : TRAIN_NONE;
    k->up      = s->has_up ? train_add_block(m, block, "lookup_up.weight", u, e, train_deviation(e), 0) : TRAIN_NONE;
    k->up_norm = s->up_norm_weight ? train_add_block(m, block, "lookup_up_norm.weight", 0, u, 0, 1) : TRAIN_NONE;
    k->up_bias = s->up_norm_bias ? train_add_block(m, block, "lookup_up_norm.bias", 0, u, 0, 0) : TRAIN_NONE;
    k->mix =
        train_add_block(m, block, "lookup_mix.weight", d, u + d, train_deviation(u + d) / sqrt(2.0 * s->blocks), 0);
}

static inline void train_rope_table(train_model *m) {
    const uint32_t half = m->shape.rope_dims / 2, t = m->shape.context;
    m->cosine = (real *)train_take(m, (uint64_t)t * half, sizeof(real));
    m->sine   = (real *)train_take(m, (uint64_t)t * half, sizeof(real));
    for (uint32_t i = 0; i < t; i++)
        for (uint32_t j = 0; j < half; j++) {
            const double angle              = i * pow(m->shape.rope_base, -2.0 * j / m->shape.rope_dims);
            m->cosine[(size_t)i * half + j] = (real)cos(angle);
            m->sine[(size_t)i * half + j]   = (real)sin(angle);
        }
}

/* All parameters of a shape, zero. offsets (vocab + 1,) is copied for every lookup layer. moments: for training. */
static inline void train_model_new(train_model *m, const train_shape *shape, const int32_t *offsets, bool moments,
                                   const train_ops *ops) {
    memset(m, 0, sizeof *m);
    m->shape     = *shape;
    m->ops       = ops;
    m->block     = (train_block *)train_take(m, shape->blocks, sizeof *m->block);
    m->embedding = train_add(m, "token_embd.weight", shape->vocab, shape->dim, train_deviation(shape->dim), 0);
    train_add_blocks(m);
    m->output_norm = train_add(m, "output_norm.weight", 0, shape->dim, 0, 1);
    m->output      = shape->tied_head
                         ? m->embedding
                         : train_add(m, "output.weight", shape->vocab, shape->dim, train_deviation(shape->dim), 0);
    for (uint32_t i = 0; i < shape->lookups; i++) {
        train_lookup *k = &m->lookup[i];
        const size_t  n = (size_t)shape->row_count * train_row_width(shape);
        train_add_lookup(m, k, shape->lookup_blocks[i]);
        k->offsets = (int32_t *)train_take(m, (uint64_t)shape->vocab + 1, sizeof *k->offsets);
        k->rows    = (real *)train_take(m, n, sizeof(real));
        k->m       = moments ? (real *)train_take(m, n, sizeof(real)) : NULL;
        k->v       = moments ? (real *)train_take(m, n, sizeof(real)) : NULL;
        k->grad_at = (uint32_t *)train_take(m, shape->vocab, sizeof *k->grad_at);
        memcpy(k->offsets, offsets, ((size_t)shape->vocab + 1) * sizeof *offsets);
    }
    m->w = (real *)train_take(m, m->n_dense, sizeof(real));
    m->m = moments ? (real *)train_take(m, m->n_dense, sizeof(real)) : NULL;
    m->v = moments ? (real *)train_take(m, m->n_dense, sizeof(real)) : NULL;
    train_rope_table(m);
}

static inline void train_model_free(train_model *m) {
    for (uint32_t i = 0; i < m->shape.lookups; i++) {
        train_lookup *k        = &m->lookup[i];
        void *const   blocks[] = {k->offsets, k->rows, k->m, k->v, k->grad_at, k->grad};
        for (size_t j = 0; j < sizeof blocks / sizeof *blocks; j++) cli_free_aligned(blocks[j]);
    }
    cli_free_aligned(m->w);
    cli_free_aligned(m->m);
    cli_free_aligned(m->v);
    cli_free_aligned(m->cosine);
    cli_free_aligned(m->sine);
    cli_free_aligned(m->block);
    free(m->params);
}

/* Standard normal numbers: the polar method of Box, Muller and Marsaglia over SplitMix64. */
static inline double train_normal(uint64_t *state) {
    for (;;) {
        const double a = (double)(int64_t)l3_random(state) / 9223372036854775808.0;
        const double b = (double)(int64_t)l3_random(state) / 9223372036854775808.0, r = a * a + b * b;
        if (r > 0 && r < 1) return a * sqrt(-2 * log(r) / r);
    }
}

static inline void train_fill(real *w, size_t n, real deviation, real fill, uint64_t *state) {
    for (size_t i = 0; i < n; i++) w[i] = deviation > 0 ? (real)(train_normal(state) * (double)deviation) : fill;
}

/* Initial values of parameter i, or of a table's rows (i = n_params + layer): each has a stream of random numbers of its own,
 * so that models that differ in one layer begin alike everywhere else. */
static inline void train_init(train_model *m, size_t i, uint64_t seed) {
    uint64_t state = seed;
    if (i >= m->n_params) {
        train_lookup *k = &m->lookup[i - m->n_params];
        state ^= 0x9e3779b97f4a7c15u * (1000003u + k->block);
        train_fill(k->rows, (size_t)m->shape.row_count * train_row_width(&m->shape),
                   (real)train_deviation(m->shape.dim), 0, &state);
        return;
    }
    const train_param *p = &m->params[i];
    for (const char *c = p->name; *c; c++) state = (state ^ (uint64_t)(unsigned char)*c) * 0x100000001b3u;
    train_fill(m->w + p->at, p->n, p->deviation, p->fill, &state);
}

static inline void train_init_all(train_model *m, uint64_t seed) {
    for (size_t i = 0; i < m->n_params + m->shape.lookups; i++) train_init(m, i, seed);
}

/* >>slots ------------------------------------------------------------------------------------------------------------ */

/* What a block keeps of its forward pass for the backward pass. */
typedef struct train_kept {
    real     *in, *middle;   /* (n, d) the stream before attention and before the feed-forward layer */
    real     *rstd1, *rstd2; /* (n,) of their norms */
    real     *q, *k, *v, *o; /* (n, q), (n, kv), (n, kv), (n, q): rotated queries and keys, attention's output */
    uint32_t  room;          /* tokens it is made for */
    real     *lse;           /* (heads, room) log of the sum of exponentials of every row of scores */
    real     *gate, *up;     /* (n * experts_used, f) */
    real     *probs;         /* (n, experts) */
    uint32_t *choice;        /* (n, experts_used) experts */
    uint32_t *slot_token,
        *starts; /* (n * experts_used,) by expert: token * used + which; per sequence (experts + 1,) */
} train_kept;

/* One distinct token of a slot: `count` positions from `start` on in sorted order. */
typedef struct train_group {
    int32_t  token;
    uint32_t start, count;
} train_group;

/* What a lookup layer keeps; everything in the order of the sorted positions. */
typedef struct train_looked {
    real   *x, *q;                    /* (n, d) the stream; the query (x where there is no query norm) */
    real   *q_rstd, *u_rstd, *u_mean; /* (n,) */
    real   *a, *da;                   /* (n, e) what was read, and its gradient */
    real   *raw;                      /* (n, u) before the norm; the same as a without up */
    real   *p, *dp;                   /* probabilities and gradients of scores: group after group (count, d_t) */
    size_t *p_at;                     /* (groups,) where each begins */
    size_t  p_room;
} train_looked;

typedef struct train_slot {
    train_space    space;
    real          *g;       /* (n_dense,) gradient */
    uint32_t       n, t;    /* tokens now, length of a sequence now */
    const int32_t *tokens;  /* (n,) */
    const int32_t *targets; /* (n,) -1: not predicted */
    train_kept    *kept;    /* (blocks,) */
    train_looked  *looked;  /* (lookups,) */
    real          *stream;  /* (n, d) after the last block */
    real          *dx;      /* (n, d) */
    uint32_t      *order;   /* (n,) positions sorted by token */
    train_group   *groups;  /* (n_groups,) */
    uint32_t       n_groups;
    int32_t       *group_of;                        /* (vocab,) group of a token, or -1 */
    real          *xn, *h, *dh, *dq, *dk, *dv;      /* (t, ...) scratch of a sequence */
    real          *scores, *dscores;                /* (TRAIN_TILE, t) */
    real          *wide, *wide2;                    /* (n, u) scratch of a lookup layer */
    real          *rows, *rows_rstd;                /* normalized keys of a token (max d_t, d) and (max d_t,) */
    real          *drows;                           /* their gradient */
    real          *small;                           /* (2 max(d, u),) */
    real          *head, *dhead, *head_rstd;        /* (chunk, d), (chunk, d), (chunk,) */
    real          *dropped;                         /* (t, d) */
    real          *xe, *dye, *dxe, *dgate, *dprobs; /* (t * experts_used, d) three times, and (..., 1), (t, experts) */
    real          *dy, *du, *draw, *dxs;            /* (n, d), (n, u), (n, u), (n, d) gradients within a lookup layer */
    real          *logits;                          /* (chunk, vocab) */
    uint32_t       chunk;
    double         loss, balance; /* sums over the predicted tokens */
    uint64_t       predicted;
    uint64_t       noise;       /* seed of this step's dropout; 0: none */
    bool           no_backbone; /* gradients of the backbone are not wanted */
} train_slot;

static inline uint32_t train_most_rows(const train_model *m) {
    uint32_t most = 1;
    for (uint32_t i = 0; i < m->shape.lookups; i++)
        for (uint32_t t = 0; t < m->shape.vocab; t++) {
            const uint32_t d = (uint32_t)(m->lookup[i].offsets[t + 1] - m->lookup[i].offsets[t]);
            if (d > most) most = d;
        }
    return most;
}

static inline real *train_reals(train_model *m, uint64_t a, uint64_t b) {
    return (real *)train_take(m, a * b, sizeof(real));
}

static inline void train_keep(train_model *m, train_kept *k, uint32_t n) {
    const train_shape *s    = &m->shape;
    const uint32_t     used = s->experts ? s->experts_used : 1;
    const uint32_t     q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    k->room   = n;
    k->in     = train_reals(m, n, s->dim);
    k->middle = train_reals(m, n, s->dim);
    k->rstd1  = train_reals(m, n, 1);
    k->rstd2  = train_reals(m, n, 1);
    k->q      = train_reals(m, n, q);
    k->k      = train_reals(m, n, kv);
    k->v      = train_reals(m, n, kv);
    k->o      = train_reals(m, n, q);
    k->lse    = train_reals(m, n, s->heads);
    k->gate   = train_reals(m, (uint64_t)n * used, s->ffn);
    k->up     = train_reals(m, (uint64_t)n * used, s->ffn);
    if (!s->experts) return;
    k->probs      = train_reals(m, n, s->experts);
    k->choice     = (uint32_t *)train_take(m, (uint64_t)n * used, sizeof(uint32_t));
    k->slot_token = (uint32_t *)train_take(m, (uint64_t)n * used, sizeof(uint32_t));
    k->starts     = (uint32_t *)train_take(m, (uint64_t)n * (s->experts + 1), sizeof(uint32_t));
}

static inline void train_look(train_model *m, train_looked *k, uint32_t n) {
    const train_shape *s = &m->shape;
    k->x                 = train_reals(m, n, s->dim);
    k->q                 = s->query_norm ? train_reals(m, n, s->dim) : k->x;
    k->q_rstd            = train_reals(m, n, 1);
    k->u_rstd            = train_reals(m, n, 1);
    k->u_mean            = train_reals(m, n, 1);
    k->a                 = train_reals(m, n, s->value_length);
    k->da                = train_reals(m, n, s->value_length);
    k->raw               = s->has_up ? train_reals(m, n, s->up_length) : k->a;
    k->p_at              = (size_t *)train_take(m, n, sizeof(size_t));
}

/* A slot for up to n tokens in sequences of up to t. gradients: false for evaluation only. */
static inline void train_slot_new(train_model *m, train_slot *x, uint32_t n, uint32_t t, bool gradients) {
    const train_shape *s    = &m->shape;
    const uint32_t     used = s->experts ? s->experts_used : 1;
    const uint32_t     d = s->dim, q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    const uint32_t     wide = d > s->up_length ? d : s->up_length, most = train_most_rows(m);
    memset(x, 0, sizeof *x);
    x->space.a = train_take(m, 1, TRAIN_SPACE_A);
    x->space.b = train_take(m, 1, TRAIN_SPACE_B);
    x->g       = gradients ? train_reals(m, m->n_dense, 1) : NULL;
    x->kept    = (train_kept *)train_take(m, s->blocks, sizeof *x->kept);
    for (uint32_t b = 0; b < s->blocks; b++) train_keep(m, &x->kept[b], n);
    x->looked = (train_looked *)train_take(m, s->lookups, sizeof *x->looked);
    for (uint32_t i = 0; i < s->lookups; i++) train_look(m, &x->looked[i], n);
    x->stream    = train_reals(m, n, d);
    x->dx        = train_reals(m, n, d);
    x->xn        = train_reals(m, (uint64_t)t * used, d > q ? d : q);
    x->h         = train_reals(m, (uint64_t)t * used, s->ffn);
    x->dh        = train_reals(m, (uint64_t)t * used, s->ffn > d ? s->ffn : d);
    x->dq        = train_reals(m, t, q > d ? q : d);
    x->dk        = train_reals(m, t, kv);
    x->dv        = train_reals(m, t, kv);
    x->scores    = train_reals(m, TRAIN_TILE, t);
    x->dscores   = train_reals(m, TRAIN_TILE, t);
    x->small     = train_reals(m, 2, wide);
    x->chunk     = n < 256 ? n : 256;
    x->logits    = train_reals(m, x->chunk, s->vocab);
    x->head      = train_reals(m, x->chunk, d);
    x->dhead     = train_reals(m, x->chunk, d);
    x->head_rstd = train_reals(m, x->chunk, 1);
    x->dropped   = s->dropout > 0 ? train_reals(m, t, d) : NULL;
    if (s->experts) {
        x->xe     = train_reals(m, (uint64_t)t * used, d);
        x->dye    = train_reals(m, (uint64_t)t * used, d);
        x->dxe    = train_reals(m, (uint64_t)t * used, d);
        x->dgate  = train_reals(m, t, used);
        x->dprobs = train_reals(m, t, s->experts);
    }
    if (!s->lookups) return;
    x->order     = (uint32_t *)train_take(m, n, sizeof *x->order);
    x->groups    = (train_group *)train_take(m, n, sizeof *x->groups);
    x->group_of  = (int32_t *)train_take(m, s->vocab, sizeof *x->group_of);
    x->wide      = train_reals(m, n, wide);
    x->wide2     = train_reals(m, n, wide);
    x->rows      = train_reals(m, most, d);
    x->drows     = train_reals(m, most, d);
    x->rows_rstd = train_reals(m, most, 1);
    if (gradients) {
        x->dy   = train_reals(m, n, d);
        x->du   = train_reals(m, n, s->up_length);
        x->draw = train_reals(m, n, s->up_length);
        x->dxs  = train_reals(m, n, d);
    }
    memset(x->group_of, 0xff, s->vocab * sizeof *x->group_of);
}

static inline void train_kept_free(train_kept *k) {
    void *const blocks[] = {k->in,  k->middle, k->rstd1, k->rstd2, k->q,      k->k,          k->v,     k->o,
                            k->lse, k->gate,   k->up,    k->probs, k->choice, k->slot_token, k->starts};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) cli_free_aligned(blocks[i]);
}

static inline void train_looked_free(train_looked *k) {
    if (k->raw != k->a) cli_free_aligned(k->raw);
    if (k->q != k->x) cli_free_aligned(k->q);
    void *const blocks[] = {k->x, k->q_rstd, k->u_rstd, k->u_mean, k->a, k->da, k->p, k->dp, k->p_at};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) cli_free_aligned(blocks[i]);
}

static inline void train_slot_free(const train_model *m, train_slot *x) {
    for (uint32_t b = 0; b < m->shape.blocks; b++) train_kept_free(&x->kept[b]);
    for (uint32_t i = 0; i < m->shape.lookups; i++) train_looked_free(&x->looked[i]);
    void *const blocks[] = {x->space.a, x->space.b, x->g,      x->kept,      x->looked, x->stream,   x->dx,
                            x->xn,      x->h,       x->dh,     x->dq,        x->dk,     x->dv,       x->scores,
                            x->dscores, x->small,   x->logits, x->order,     x->groups, x->group_of, x->wide,
                            x->wide2,   x->rows,    x->drows,  x->rows_rstd, x->head,   x->dhead,    x->head_rstd,
                            x->dropped, x->xe,      x->dye,    x->dxe,       x->dgate,  x->dprobs,   x->dy,
                            x->du,      x->draw,    x->dxs};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) cli_free_aligned(blocks[i]);
}

/* >>products --------------------------------------------------------------------------------------------------------- */

/* y (n, out) (+)= x (n, in) w (out, in)^T; w's rows are `stride` apart. */
static inline void train_linear(const train_model *m, train_slot *s, size_t n, size_t in, size_t out, const real *x,
                                const real *w, size_t stride, bool add, real *y) {
    m->ops->gemm(&s->space, false, true, n, out, in, 1, x, in, w, stride, add, y, out);
}

/* dx (n, in) (+)= dy (n, out) w (out, in) */
static inline void train_linear_input(const train_model *m, train_slot *s, size_t n, size_t in, size_t out,
                                      const real *dy, const real *w, size_t stride, bool add, real *dx) {
    m->ops->gemm(&s->space, false, false, n, in, out, 1, dy, out, w, stride, add, dx, in);
}

/* dw (out, in) += dy (n, out)^T x (n, in) */
static inline void train_linear_weight(const train_model *m, train_slot *s, size_t n, size_t in, size_t out,
                                       const real *dy, const real *x, size_t stride, real *dw) {
    m->ops->gemm(&s->space, true, false, out, in, n, 1, dy, out, x, in, true, dw, stride);
}

/* Both of a layer whose weights lie at `w` of the dense arrays. */
static inline void train_linear_backward(const train_model *m, train_slot *s, size_t n, size_t in, size_t out,
                                         const real *dy, const real *x, size_t w, bool add, real *dx) {
    if (!s->no_backbone) train_linear_weight(m, s, n, in, out, dy, x, in, s->g + w);
    train_linear_input(m, s, n, in, out, dy, m->w + w, in, add, dx);
}

static inline real *train_grad(const train_slot *s, size_t at, bool backbone) {
    return at == TRAIN_NONE || (backbone && s->no_backbone) ? NULL : s->g + at;
}
static inline const real *train_weight(const train_model *m, size_t at) { return at == TRAIN_NONE ? NULL : m->w + at; }

/* Zeroes a share of x and scales the rest: which ones follows from the key alone, so the backward pass does the same. */
static inline void train_dropout(real share, size_t n, real *x, uint64_t key) {
    const uint32_t bound = (uint32_t)((double)share * 4294967296.0), low = (uint32_t)(key ^ key >> 32);
    const real     scale = 1 / (1 - share);
    for (size_t i = 0; i < n; i++) { /* the finalizer of MurmurHash3 */
        uint32_t h = low + (uint32_t)i * 0x9e3779b9u;
        h          = (h ^ h >> 16) * 0x85ebca6bu;
        h          = (h ^ h >> 13) * 0xc2b2ae35u;
        h ^= h >> 16;
        x[i] = h < bound ? 0 : x[i] * scale;
    }
}

/* The key of one use of dropout: place 2 * block (attention) or 2 * block + 1 (feed-forward), sequence from position `at`. */
static inline uint64_t train_dropout_key(const train_slot *s, uint32_t place, size_t at) {
    uint64_t state = s->noise ^ (uint64_t)place << 32 ^ (uint64_t)at;
    return l3_random(&state);
}

/* >>attention -------------------------------------------------------------------------------------------------------- */

/* The rows [i0, i0 + rows) of one head's scores become probabilities; cols: columns kept, those after the diagonal zero. */
static inline void train_probabilities(const train_model *m, size_t i0, size_t rows, size_t cols, real *scores,
                                       real *lse, bool again) {
    for (size_t i = 0; i < rows; i++) {
        real *row = scores + i * cols;
        if (again) m->ops->softmax_again(i0 + i + 1, row, lse[i0 + i]);
        else lse[i0 + i] = m->ops->softmax(i0 + i + 1, row);
        memset(row + i0 + i + 1, 0, (cols - i0 - i - 1) * sizeof *row);
    }
}

/* o (t, q) of one sequence from rotated q, k and v. */
static inline void train_attention(const train_model *m, train_slot *s, size_t t, const train_kept *k, size_t at) {
    const train_shape *x  = &m->shape;
    const size_t       hd = x->head_dim, q = x->heads * hd, kv = x->kv_heads * hd;
    const real         scale = 1 / REAL_SQRT((real)hd);
    for (size_t h = 0; h < x->heads; h++) {
        const real *qh = k->q + at * q + h * hd, *kh = k->k + at * kv + h / (x->heads / x->kv_heads) * hd;
        const real *vh = k->v + at * kv + h / (x->heads / x->kv_heads) * hd;
        for (size_t i = 0; i < t; i += TRAIN_TILE) {
            const size_t rows = t - i < TRAIN_TILE ? t - i : TRAIN_TILE, cols = i + rows;
            m->ops->gemm(&s->space, false, true, rows, cols, hd, scale, qh + i * q, q, kh, kv, false, s->scores, cols);
            train_probabilities(m, i, rows, cols, s->scores, k->lse + h * k->room + at, false);
            m->ops->gemm(&s->space, false, false, rows, hd, cols, 1, s->scores, cols, vh, kv, false,
                         k->o + (at + i) * q + h * hd, q);
        }
    }
}

/* From do (t, q) in s->xn: s->dq, s->dk, s->dv. */
static inline void train_attention_backward(const train_model *m, train_slot *s, size_t t, const train_kept *k,
                                            size_t at) {
    const train_shape *x  = &m->shape;
    const size_t       hd = x->head_dim, q = x->heads * hd, kv = x->kv_heads * hd;
    const real         scale = 1 / REAL_SQRT((real)hd);
    memset(s->dk, 0, t * kv * sizeof(real));
    memset(s->dv, 0, t * kv * sizeof(real));
    for (size_t h = 0; h < x->heads; h++) {
        const size_t kvh = h / (x->heads / x->kv_heads) * hd;
        const real  *qh = k->q + at * q + h * hd, *kh = k->k + at * kv + kvh, *vh = k->v + at * kv + kvh;
        for (size_t i = 0; i < t; i += TRAIN_TILE) {
            const size_t rows = t - i < TRAIN_TILE ? t - i : TRAIN_TILE, cols = i + rows;
            const real  *out = s->xn + i * q + h * hd;
            m->ops->gemm(&s->space, false, true, rows, cols, hd, scale, qh + i * q, q, kh, kv, false, s->scores, cols);
            train_probabilities(m, i, rows, cols, s->scores, k->lse + h * k->room + at, true);
            m->ops->gemm(&s->space, false, true, rows, cols, hd, 1, out, q, vh, kv, false, s->dscores, cols);
            m->ops->gemm(&s->space, true, false, cols, hd, rows, 1, s->scores, cols, out, q, true, s->dv + kvh, kv);
            for (size_t r = 0; r < rows; r++)
                m->ops->softmax_backward(cols, s->scores + r * cols, s->dscores + r * cols);
            m->ops->gemm(&s->space, false, false, rows, hd, cols, scale, s->dscores, cols, kh, kv, false,
                         s->dq + i * q + h * hd, q);
            m->ops->gemm(&s->space, true, false, cols, hd, rows, scale, s->dscores, cols, qh + i * q, q, true,
                         s->dk + kvh, kv);
        }
    }
}

/* middle = in + attention(norm(in)) of the sequence at position `at` of the slot. */
static inline void train_attention_layer(const train_model *m, train_slot *s, uint32_t b, size_t at, size_t t) {
    const train_shape *x = &m->shape;
    const train_block *w = &m->block[b];
    const train_kept  *k = &s->kept[b];
    const size_t       d = x->dim, q = x->heads * x->head_dim, kv = x->kv_heads * x->head_dim, half = x->rope_dims / 2;
    m->ops->rms_norm(t, d, k->in + at * d, m->w + w->attn_norm, x->rms_epsilon, s->xn, k->rstd1 + at);
    train_linear(m, s, t, d, q, s->xn, m->w + w->wq, d, false, k->q + at * q);
    train_linear(m, s, t, d, kv, s->xn, m->w + w->wk, d, false, k->k + at * kv);
    train_linear(m, s, t, d, kv, s->xn, m->w + w->wv, d, false, k->v + at * kv);
    m->ops->rope(t, x->heads, x->head_dim, half, m->cosine, m->sine, 1, k->q + at * q, q);
    m->ops->rope(t, x->kv_heads, x->head_dim, half, m->cosine, m->sine, 1, k->k + at * kv, kv);
    train_attention(m, s, t, k, at);
    real *out = k->middle + at * d;
    train_linear(m, s, t, q, d, k->o + at * q, m->w + w->wo, q, false, out);
    if (s->noise && x->dropout > 0) train_dropout(x->dropout, t * d, out, train_dropout_key(s, 2 * b, at));
    m->ops->axpy(t * d, 1, k->in + at * d, out);
}

/* dx: the gradient after the layer becomes that before it. */
static inline void train_attention_layer_backward(const train_model *m, train_slot *s, uint32_t b, size_t at,
                                                  size_t t) {
    const train_shape *x = &m->shape;
    const train_block *w = &m->block[b];
    const train_kept  *k = &s->kept[b];
    const size_t       d = x->dim, q = x->heads * x->head_dim, kv = x->kv_heads * x->head_dim, half = x->rope_dims / 2;
    real              *dx = s->dx + at * d;
    const real        *dy = dx;
    if (s->noise && x->dropout > 0) {
        memcpy(s->dropped, dx, t * d * sizeof(real));
        train_dropout(x->dropout, t * d, s->dropped, train_dropout_key(s, 2 * b, at));
        dy = s->dropped;
    }
    train_linear_backward(m, s, t, q, d, dy, k->o + at * q, w->wo, false, s->xn);
    train_attention_backward(m, s, t, k, at);
    m->ops->rope(t, x->heads, x->head_dim, half, m->cosine, m->sine, -1, s->dq, q);
    m->ops->rope(t, x->kv_heads, x->head_dim, half, m->cosine, m->sine, -1, s->dk, kv);
    m->ops->rms_norm(t, d, k->in + at * d, m->w + w->attn_norm, x->rms_epsilon, s->xn, k->rstd1 + at);
    train_linear_backward(m, s, t, d, q, s->dq, s->xn, w->wq, false, s->dh);
    train_linear_backward(m, s, t, d, kv, s->dk, s->xn, w->wk, true, s->dh);
    train_linear_backward(m, s, t, d, kv, s->dv, s->xn, w->wv, true, s->dh);
    m->ops->rms_norm_backward(t, d, k->in + at * d, m->w + w->attn_norm, k->rstd1 + at, s->dh, dx,
                              train_grad(s, w->attn_norm, true), s->small);
}

/* >>feed-forward ----------------------------------------------------------------------------------------------------- */

/* out (t, d) = down(silu(gate(xn)) * up(xn)); xn (t, d) in s->xn. */
static inline void train_dense_ffn(const train_model *m, train_slot *s, uint32_t b, size_t at, size_t t, real *out) {
    const train_block *w = &m->block[b];
    const size_t       d = m->shape.dim, f = m->shape.ffn;
    real              *gate = s->kept[b].gate + at * f, *up = s->kept[b].up + at * f;
    train_linear(m, s, t, d, f, s->xn, m->w + w->gate, d, false, gate);
    train_linear(m, s, t, d, f, s->xn, m->w + w->up, d, false, up);
    m->ops->swiglu(t * f, gate, up, s->h);
    train_linear(m, s, t, f, d, s->h, m->w + w->down, f, false, out);
}

/* dxn (t, d) from dy (t, d); xn in s->xn. */
static inline void train_dense_ffn_backward(const train_model *m, train_slot *s, uint32_t b, size_t at, size_t t,
                                            const real *dy, real *dxn) {
    const train_block *w = &m->block[b];
    const size_t       d = m->shape.dim, f = m->shape.ffn;
    real              *gate = s->kept[b].gate + at * f, *up = s->kept[b].up + at * f;
    train_linear_input(m, s, t, f, d, dy, m->w + w->down, f, false, s->dh);
    m->ops->swiglu_backward(t * f, gate, up, s->dh, s->h);
    if (!s->no_backbone) train_linear_weight(m, s, t, f, d, dy, s->h, f, s->g + w->down);
    train_linear_backward(m, s, t, d, f, gate, s->xn, w->gate, false, dxn);
    train_linear_backward(m, s, t, d, f, up, s->xn, w->up, true, dxn);
}

/* >>experts ---------------------------------------------------------------------------------------------------------- */

/* The `used` most probable experts of every token; ties: the lower number. */
static inline void train_choose(const real *probs, uint32_t experts, uint32_t used, uint32_t *choice) {
    for (uint32_t j = 0; j < used; j++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t e = 0; e < experts; e++) {
            bool taken = false;
            for (uint32_t i = 0; i < j; i++) taken = taken || choice[i] == e;
            if (!taken && (best == UINT32_MAX || probs[e] > probs[best])) best = e;
        }
        choice[j] = best;
    }
}

/* The weight of choice j: its probability, among several of the chosen ones' sum. */
static inline real train_gate(const real *probs, const uint32_t *choice, uint32_t used, uint32_t j) {
    real sum = 0;
    if (used == 1) return probs[choice[0]];
    for (uint32_t i = 0; i < used; i++) sum += probs[choice[i]];
    return probs[choice[j]] / sum;
}

/* slot_token = all (token, choice) pairs by expert, starts (experts + 1,). */
static inline void train_route(const train_shape *x, size_t t, const uint32_t *choice, uint32_t *slot_token,
                               uint32_t *starts) {
    const uint32_t pairs = (uint32_t)t * x->experts_used;
    uint32_t       at    = 0;
    for (uint32_t e = 0; e < x->experts; e++) {
        starts[e] = at;
        for (uint32_t i = 0; i < pairs; i++)
            if (choice[i] == e) slot_token[at++] = i;
    }
    starts[x->experts] = at;
}

/* The share of the choices that went to each expert, times balance * experts: what the probabilities' mean is weighed by. */
static inline real train_expert_load(const train_shape *x, const uint32_t *starts, uint32_t e, size_t t) {
    return x->balance * (real)x->experts * (real)(starts[e + 1] - starts[e]) / (real)(t * x->experts_used);
}

static inline void train_gather(size_t n, size_t d, const uint32_t *index, uint32_t divisor, const real *src,
                                real *dst) {
    for (size_t i = 0; i < n; i++) memcpy(dst + i * d, src + (size_t)(index[i] / divisor) * d, d * sizeof *dst);
}

/* As train_dense_ffn, each token through its experts. */
static inline void train_experts(const train_model *m, train_slot *s, uint32_t b, size_t at, size_t t, real *out) {
    const train_shape *x    = &m->shape;
    const train_block *w    = &m->block[b];
    const train_kept  *k    = &s->kept[b];
    const uint32_t     used = x->experts_used;
    const size_t       d = x->dim, f = x->ffn;
    real              *probs = k->probs + at * x->experts, *xe = s->dh;
    uint32_t          *choice = k->choice + at * used, *pairs = k->slot_token + at * used;
    uint32_t          *starts = k->starts + at * (x->experts + 1);
    train_linear(m, s, t, d, x->experts, s->xn, m->w + w->router, d, false, probs);
    for (size_t i = 0; i < t; i++) {
        m->ops->softmax(x->experts, probs + i * x->experts);
        train_choose(probs + i * x->experts, x->experts, used, choice + i * used);
    }
    train_route(x, t, choice, pairs, starts);
    memset(out, 0, t * d * sizeof *out);
    for (uint32_t e = 0; e < x->experts; e++) {
        const size_t first = starts[e], n = starts[e + 1] - first;
        real        *gate = k->gate + (at * used + first) * f, *up = k->up + (at * used + first) * f;
        double       mean = 0;
        for (size_t i = 0; i < t; i++) mean += (double)probs[i * x->experts + e];
        s->balance += mean * (double)train_expert_load(x, starts, e, t);
        if (n == 0) continue;
        train_gather(n, d, pairs + first, used, s->xn, xe);
        train_linear(m, s, n, d, f, xe, m->w + w->gate + e * f * d, d, false, gate);
        train_linear(m, s, n, d, f, xe, m->w + w->up + e * f * d, d, false, up);
        m->ops->swiglu(n * f, gate, up, s->h);
        train_linear(m, s, n, f, d, s->h, m->w + w->down + e * f * d, f, false, xe);
        for (size_t i = 0; i < n; i++) {
            const uint32_t token = pairs[first + i] / used, j = pairs[first + i] % used;
            m->ops->axpy(d, train_gate(probs + token * x->experts, choice + token * used, used, j), xe + i * d,
                         out + token * d);
        }
    }
}

/* Adds the gradient of one token's gates (dgate (used,)) to that of its probabilities. */
static inline void train_gate_backward(const real *probs, const uint32_t *choice, uint32_t used, const real *dgate,
                                       real *dprobs) {
    real sum = 0, mean = 0;
    for (uint32_t j = 0; j < used; j++) sum += probs[choice[j]];
    for (uint32_t j = 0; j < used; j++) mean += dgate[j] * probs[choice[j]] / sum;
    for (uint32_t j = 0; j < used; j++) dprobs[choice[j]] += used == 1 ? dgate[j] : (dgate[j] - mean) / sum;
}

/* As train_dense_ffn_backward. per_token: what one token counts in the mean loss. */
static inline void train_experts_backward(const train_model *m, train_slot *s, uint32_t b, size_t at, size_t t,
                                          const real *dy, real *dxn, real per_token) {
    const train_shape *x    = &m->shape;
    const train_block *w    = &m->block[b];
    const train_kept  *k    = &s->kept[b];
    const uint32_t     used = x->experts_used;
    const size_t       d = x->dim, f = x->ffn;
    const real        *probs  = k->probs + at * x->experts;
    uint32_t          *choice = k->choice + at * used, *pairs = k->slot_token + at * used;
    const uint32_t    *starts = k->starts + at * (x->experts + 1);
    real              *xe = s->xe, *dye = s->dye, *dxe = s->dxe, *dgate = s->dgate, *dprobs = s->dprobs;
    memset(dxn, 0, t * d * sizeof *dxn);
    memset(dprobs, 0, t * x->experts * sizeof *dprobs);
    for (uint32_t e = 0; e < x->experts; e++) {
        const size_t first = starts[e], n = starts[e + 1] - first, place = e * f * d;
        real        *gate = k->gate + (at * used + first) * f, *up = k->up + (at * used + first) * f;
        for (size_t i = 0; i < t; i++) dprobs[i * x->experts + e] += per_token * train_expert_load(x, starts, e, t);
        if (n == 0) continue;
        train_gather(n, d, pairs + first, used, s->xn, xe);
        train_gather(n, d, pairs + first, used, dy, dye);
        train_linear_input(m, s, n, f, d, dye, m->w + w->down + place, f, false, s->dh);
        m->ops->swiglu(n * f, gate, up, s->h);
        for (size_t i = 0; i < n; i++) { /* the gate's own gradient, then its weight on everything behind it */
            const uint32_t token = pairs[first + i] / used, j = pairs[first + i] % used;
            const real     g        = train_gate(probs + token * x->experts, choice + token * used, used, j);
            dgate[pairs[first + i]] = m->ops->dot(f, s->dh + i * f, s->h + i * f);
            for (size_t c = 0; c < f; c++) s->dh[i * f + c] *= g;
            for (size_t c = 0; c < d; c++) dye[i * d + c] *= g;
        }
        m->ops->swiglu_backward(n * f, gate, up, s->dh, s->h);
        if (!s->no_backbone) train_linear_weight(m, s, n, f, d, dye, s->h, f, s->g + w->down + place);
        train_linear_backward(m, s, n, d, f, gate, xe, w->gate + place, false, dxe);
        train_linear_backward(m, s, n, d, f, up, xe, w->up + place, true, dxe);
        for (size_t i = 0; i < n; i++) m->ops->axpy(d, 1, dxe + i * d, dxn + (size_t)(pairs[first + i] / used) * d);
    }
    for (size_t i = 0; i < t; i++) {
        train_gate_backward(probs + i * x->experts, choice + i * used, used, dgate + i * used, dprobs + i * x->experts);
        m->ops->softmax_backward(x->experts, probs + i * x->experts, dprobs + i * x->experts);
    }
    train_linear_backward(m, s, t, d, x->experts, dprobs, s->xn, w->router, true, dxn);
}

/* next = middle + ffn(norm(middle)) */
static inline void train_ffn_layer(const train_model *m, train_slot *s, uint32_t b, size_t at, size_t t, real *next) {
    const train_shape *x   = &m->shape;
    const train_kept  *k   = &s->kept[b];
    const size_t       d   = x->dim;
    real              *out = next + at * d;
    m->ops->rms_norm(t, d, k->middle + at * d, m->w + m->block[b].ffn_norm, x->rms_epsilon, s->xn, k->rstd2 + at);
    if (x->experts) train_experts(m, s, b, at, t, out);
    else train_dense_ffn(m, s, b, at, t, out);
    if (s->noise && x->dropout > 0) train_dropout(x->dropout, t * d, out, train_dropout_key(s, 2 * b + 1, at));
    m->ops->axpy(t * d, 1, k->middle + at * d, out);
}

static inline void train_ffn_layer_backward(const train_model *m, train_slot *s, uint32_t b, size_t at, size_t t,
                                            real per_token) {
    const train_shape *x  = &m->shape;
    const train_kept  *k  = &s->kept[b];
    const size_t       d  = x->dim;
    real              *dx = s->dx + at * d, *dxn = s->dq; /* (t, max(q, d)) */
    const real        *dy = dx;
    if (s->noise && x->dropout > 0) {
        memcpy(s->dropped, dx, t * d * sizeof(real));
        train_dropout(x->dropout, t * d, s->dropped, train_dropout_key(s, 2 * b + 1, at));
        dy = s->dropped;
    }
    m->ops->rms_norm(t, d, k->middle + at * d, m->w + m->block[b].ffn_norm, x->rms_epsilon, s->xn, k->rstd2 + at);
    if (x->experts) train_experts_backward(m, s, b, at, t, dy, dxn, per_token);
    else train_dense_ffn_backward(m, s, b, at, t, dy, dxn);
    m->ops->rms_norm_backward(t, d, k->middle + at * d, m->w + m->block[b].ffn_norm, k->rstd2 + at, dxn, dx,
                              train_grad(s, m->block[b].ffn_norm, true), s->small);
}

/* >>lookup ----------------------------------------------------------------------------------------------------------- */

/* Sorts the slot's positions by token (order, groups, group_of): every distinct token's rows are then used once, by all its
 * positions together. */
static inline void train_sort(const train_model *m, train_slot *s) {
    uint32_t at = 0;
    for (uint32_t g = 0; g < s->n_groups; g++) s->group_of[s->groups[g].token] = -1;
    s->n_groups = 0;
    if (!m->shape.lookups) return;
    for (uint32_t i = 0; i < s->n; i++) { /* groups in order of first appearance: nothing needs them in order of ID */
        int32_t *g = &s->group_of[s->tokens[i]];
        if (*g < 0) {
            *g            = (int32_t)s->n_groups++;
            s->groups[*g] = (train_group){s->tokens[i], 0, 0};
        }
        s->groups[*g].count++;
    }
    for (uint32_t g = 0; g < s->n_groups; g++) {
        s->groups[g].start = at;
        at += s->groups[g].count;
        s->groups[g].count = 0;
    }
    for (uint32_t i = 0; i < s->n; i++) {
        train_group *g                  = &s->groups[s->group_of[s->tokens[i]]];
        s->order[g->start + g->count++] = i;
    }
}

static inline uint32_t train_rows_of(const train_lookup *k, int32_t token, const real **rows, size_t width) {
    *rows = k->rows + (size_t)k->offsets[token] * width;
    return (uint32_t)(k->offsets[token + 1] - k->offsets[token]);
}

/* Below this many positions a group is computed row by row: packing for a matrix product would cost more than it saves. */
enum { TRAIN_FEW = 4 };

/* c (count, rows) = alpha a (count, d) b (rows, d)^T, rows of b `stride` apart. */
static inline void train_scores(const train_model *m, train_slot *s, size_t count, size_t rows, size_t d, real alpha,
                                const real *a, const real *b, size_t stride, real *c) {
    if (count >= TRAIN_FEW) {
        m->ops->gemm(&s->space, false, true, count, rows, d, alpha, a, d, b, stride, false, c, rows);
        return;
    }
    for (size_t i = 0; i < count; i++)
        for (size_t r = 0; r < rows; r++) c[i * rows + r] = alpha * m->ops->dot(d, a + i * d, b + r * stride);
}

/* c (count, d) = p (count, rows) b (rows, d) */
static inline void train_weighted(const train_model *m, train_slot *s, size_t count, size_t rows, size_t d,
                                  const real *p, const real *b, size_t stride, real *c) {
    if (count >= TRAIN_FEW && rows > 0) {
        m->ops->gemm(&s->space, false, false, count, d, rows, 1, p, rows, b, stride, false, c, d);
        return;
    }
    memset(c, 0, count * d * sizeof *c);
    for (size_t i = 0; i < count; i++)
        for (size_t r = 0; r < rows; r++) m->ops->axpy(d, p[i * rows + r], b + r * stride, c + i * d);
}

/* c (rows, d) += p (count, rows)^T a (count, d) */
static inline void train_outer(const train_model *m, train_space *space, size_t count, size_t rows, size_t d,
                               const real *p, const real *a, real *c, size_t stride) {
    if (count >= 2 * TRAIN_FEW) {
        m->ops->gemm(space, true, false, rows, d, count, 1, p, rows, a, d, true, c, stride);
        return;
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < count; i++) m->ops->axpy(d, p[i * rows + r], a + i * d, c + r * stride);
}

/* The keys of a token as they are scored: the rows themselves, or normalized in s->rows. */
static inline const real *train_keys(const train_model *m, train_slot *s, const real *rows, uint32_t n,
                                     size_t *stride) {
    const train_shape *x = &m->shape;
    if (!x->key_norm) return rows;
    for (uint32_t r = 0; r < n; r++)
        m->ops->rms_norm(1, x->dim, rows + r * *stride, NULL, x->norm_epsilon, s->rows + r * x->dim, s->rows_rstd + r);
    *stride = x->dim;
    return s->rows;
}

/* Room for the probabilities of this slot's groups: p_at, p, dp. */
static inline void train_room(const train_slot *s, const train_lookup *k, train_looked *y) {
    size_t n = 0;
    for (uint32_t g = 0; g < s->n_groups; g++) {
        const int32_t token = s->groups[g].token;
        y->p_at[g]          = n;
        n += (size_t)s->groups[g].count * (size_t)(k->offsets[token + 1] - k->offsets[token]);
    }
    if (n <= y->p_room) return;
    cli_free_aligned(y->p);
    cli_free_aligned(y->dp);
    y->p_room = n + n / 4;
    y->p      = (real *)train_zeroed(y->p_room * sizeof(real));
    y->dp     = (real *)train_zeroed(y->p_room * sizeof(real));
}

/* a = softmax(scale K q) V, group by group. */
static inline void train_read(const train_model *m, train_slot *s, const train_lookup *k, train_looked *y) {
    const train_shape *x     = &m->shape;
    const size_t       width = train_row_width(x), d = x->dim, e = x->value_length;
    for (uint32_t g = 0; g < s->n_groups; g++) {
        const train_group *group = &s->groups[g];
        const real        *rows;
        const uint32_t     n      = train_rows_of(k, group->token, &rows, width);
        size_t             stride = width;
        const real        *keys   = train_keys(m, s, rows, n, &stride);
        real              *p      = y->p + y->p_at[g];
        train_scores(m, s, group->count, n, d, x->score_scale, y->q + group->start * d, keys, stride, p);
        for (uint32_t i = 0; n > 0 && i < group->count; i++) m->ops->softmax(n, p + i * n);
        train_weighted(m, s, group->count, n, e, p, rows + (x->tied ? 0 : d), width, y->a + group->start * e);
    }
}

/* u = norm(raw) into s->wide */
static inline void train_up_norm(const train_model *m, train_slot *s, const train_lookup *k, train_looked *y) {
    const train_shape *x = &m->shape;
    const real        *w = train_weight(m, k->up_norm), *b = train_weight(m, k->up_bias);
    if (x->layer_norm)
        m->ops->layer_norm(s->n, x->up_length, y->raw, w, b, x->norm_epsilon, s->wide, y->u_mean, y->u_rstd);
    else m->ops->rms_norm(s->n, x->up_length, y->raw, w, x->norm_epsilon, s->wide, y->u_rstd);
}

/* stream (n, d) in place. */
static inline void train_lookup_layer(const train_model *m, train_slot *s, uint32_t i, real *stream) {
    const train_shape  *x = &m->shape;
    const train_lookup *k = &m->lookup[i];
    train_looked       *y = &s->looked[i];
    const size_t        n = s->n, d = x->dim, e = x->value_length, u = x->up_length;
    train_room(s, k, y);
    train_gather(n, d, s->order, 1, stream, y->x);
    if (x->query_norm) m->ops->rms_norm(n, d, y->x, train_weight(m, k->query_norm), x->norm_epsilon, y->q, y->q_rstd);
    train_read(m, s, k, y);
    if (x->has_up) train_linear(m, s, n, e, u, y->a, m->w + k->up, e, false, y->raw);
    train_up_norm(m, s, k, y);
    train_linear(m, s, n, u, d, s->wide, m->w + k->mix, u + d, false, s->wide2);
    train_linear(m, s, n, d, d, y->x, m->w + k->mix + u, u + d, true, s->wide2);
    for (size_t j = 0; j < n; j++) {
        real *to = stream + (size_t)s->order[j] * d;
        if (x->residual) m->ops->axpy(d, 1, s->wide2 + j * d, to);
        else memcpy(to, s->wide2 + j * d, d * sizeof *to);
    }
}

/* From y->da: dp (after the scale), and dq (n, d) into s->wide2. */
static inline void train_read_backward(const train_model *m, train_slot *s, const train_lookup *k, train_looked *y) {
    const train_shape *x     = &m->shape;
    const size_t       width = train_row_width(x), d = x->dim, e = x->value_length;
    for (uint32_t g = 0; g < s->n_groups; g++) {
        const train_group *group = &s->groups[g];
        const real        *rows;
        const uint32_t     n      = train_rows_of(k, group->token, &rows, width);
        size_t             stride = width;
        real              *p = y->p + y->p_at[g], *dp = y->dp + y->p_at[g];
        train_scores(m, s, group->count, n, e, 1, y->da + group->start * e, rows + (x->tied ? 0 : d), width, dp);
        for (uint32_t i = 0; i < group->count; i++) {
            m->ops->softmax_backward(n, p + i * n, dp + i * n);
            for (uint32_t r = 0; r < n; r++) dp[i * n + r] *= x->score_scale;
        }
        const real *keys = train_keys(m, s, rows, n, &stride);
        train_weighted(m, s, group->count, n, d, dp, keys, stride, s->wide2 + group->start * d);
    }
}

/* s->dx in place; leaves what train_step.h needs for the rows: q, p, dp, da. */
static inline void train_lookup_layer_backward(const train_model *m, train_slot *s, uint32_t i) {
    const train_shape  *x = &m->shape;
    const train_lookup *k = &m->lookup[i];
    train_looked       *y = &s->looked[i];
    const size_t        n = s->n, d = x->dim, e = x->value_length, u = x->up_length;
    real               *dy = s->dy, *du = s->du, *dxs = s->dxs, *draw = x->has_up ? s->draw : y->da;
    train_gather(n, d, s->order, 1, s->dx, dy);
    train_up_norm(m, s, k, y); /* u in s->wide once more */
    train_linear_weight(m, s, n, u, d, dy, s->wide, u + d, s->g + k->mix);
    train_linear_weight(m, s, n, d, d, dy, y->x, u + d, s->g + k->mix + u);
    train_linear_input(m, s, n, u, d, dy, m->w + k->mix, u + d, false, du);
    train_linear_input(m, s, n, d, d, dy, m->w + k->mix + u, u + d, false, dxs);
    if (x->layer_norm) {
        m->ops->layer_norm_backward(n, u, y->raw, train_weight(m, k->up_norm), y->u_mean, y->u_rstd, du, draw,
                                    train_grad(s, k->up_norm, false), train_grad(s, k->up_bias, false), s->small);
    } else {
        memset(draw, 0, n * u * sizeof *draw);
        m->ops->rms_norm_backward(n, u, y->raw, train_weight(m, k->up_norm), y->u_rstd, du, draw,
                                  train_grad(s, k->up_norm, false), s->small);
    }
    if (x->has_up) {
        train_linear_weight(m, s, n, e, u, draw, y->a, e, s->g + k->up);
        train_linear_input(m, s, n, e, u, draw, m->w + k->up, e, false, y->da);
    }
    train_read_backward(m, s, k, y);
    if (x->query_norm)
        m->ops->rms_norm_backward(n, d, y->x, train_weight(m, k->query_norm), y->q_rstd, s->wide2, dxs,
                                  train_grad(s, k->query_norm, false), s->small);
    else m->ops->axpy(n * d, 1, s->wide2, dxs);
    for (size_t j = 0; j < n; j++) {
        real *to = s->dx + (size_t)s->order[j] * d;
        if (x->residual) m->ops->axpy(d, 1, dxs + j * d, to);
        else memcpy(to, dxs + j * d, d * sizeof *to);
    }
}

/* >>head ------------------------------------------------------------------------------------------------------------- */

/* logits become their gradient (times `scale`) under cross entropy with the target; returns the loss. */
static inline double train_cross_entropy(const train_ops *ops, uint32_t vocab, real *logits, int32_t target, real scale,
                                         bool gradient) {
    const real   raw  = logits[target];
    const double loss = (double)ops->softmax(vocab, logits) - (double)raw;
    if (!gradient) return loss;
    for (uint32_t i = 0; i < vocab; i++) logits[i] *= scale;
    logits[target] -= scale;
    return loss;
}

/* The loss of the stream after the last block, chunk by chunk; with gradients s->dx and those of the head and its norm.
 * per_token: what one token counts in the mean. */
static inline void train_head(const train_model *m, train_slot *s, real per_token, bool backward) {
    const train_shape *x = &m->shape;
    const size_t       d = x->dim, vocab = x->vocab;
    real              *xf = s->head, *dxf = s->dhead, *rstd = s->head_rstd;
    if (backward) memset(s->dx, 0, s->n * d * sizeof *s->dx);
    for (size_t at = 0; at < s->n; at += s->chunk) {
        const size_t n = s->n - at < s->chunk ? s->n - at : s->chunk;
        m->ops->rms_norm(n, d, s->stream + at * d, m->w + m->output_norm, x->rms_epsilon, xf, rstd);
        train_linear(m, s, n, d, vocab, xf, m->w + m->output, d, false, s->logits);
        for (size_t i = 0; i < n; i++) {
            const int32_t target = s->targets[at + i];
            if (target < 0) {
                memset(s->logits + i * vocab, 0, vocab * sizeof(real));
                continue;
            }
            s->loss += train_cross_entropy(m->ops, x->vocab, s->logits + i * vocab, target, per_token, backward);
            s->predicted++;
        }
        if (!backward) continue;
        train_linear_backward(m, s, n, d, vocab, s->logits, xf, m->output, false, dxf);
        m->ops->rms_norm_backward(n, d, s->stream + at * d, m->w + m->output_norm, rstd, dxf, s->dx + at * d,
                                  train_grad(s, m->output_norm, true), s->small);
    }
}

/* >>passes ----------------------------------------------------------------------------------------------------------- */

/* Everything up to the stream after the last block. s->tokens (n,), sequences of t (the last may be shorter). */
static inline void train_forward(const train_model *m, train_slot *s) {
    const train_shape *x           = &m->shape;
    const size_t       d           = x->dim;
    uint32_t           next_lookup = 0;
    train_sort(m, s);
    for (uint32_t i = 0; i < s->n; i++)
        memcpy(s->kept[0].in + i * d, m->w + m->embedding + (size_t)s->tokens[i] * d, d * sizeof(real));
    for (uint32_t b = 0; b < x->blocks; b++) {
        real *next = b + 1 < x->blocks ? s->kept[b + 1].in : s->stream;
        for (uint32_t at = 0; at < s->n; at += s->t) {
            const uint32_t t = s->n - at < s->t ? s->n - at : s->t;
            train_attention_layer(m, s, b, at, t);
            train_ffn_layer(m, s, b, at, t, next);
        }
        if (next_lookup < x->lookups && x->lookup_blocks[next_lookup] == b)
            train_lookup_layer(m, s, next_lookup++, next);
    }
}

/* After train_forward and train_head: s->g of everything but table rows. */
static inline void train_backward(const train_model *m, train_slot *s, real per_token) {
    const train_shape *x      = &m->shape;
    const size_t       d      = x->dim;
    uint32_t           lookup = x->lookups;
    for (uint32_t b = x->blocks; b-- > 0;) {
        if (lookup > 0 && x->lookup_blocks[lookup - 1] == b) train_lookup_layer_backward(m, s, --lookup);
        if (s->no_backbone && lookup == 0) return; /* nothing that learns lies before */
        for (uint32_t at = 0; at < s->n; at += s->t) {
            const uint32_t t = s->n - at < s->t ? s->n - at : s->t;
            train_ffn_layer_backward(m, s, b, at, t, per_token);
            train_attention_layer_backward(m, s, b, at, t);
        }
    }
    for (uint32_t i = 0; i < s->n; i++)
        m->ops->axpy(d, 1, s->dx + i * d, s->g + m->embedding + (size_t)s->tokens[i] * d);
}

#endif /* TRAIN_MODEL_H */
