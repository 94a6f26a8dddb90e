/* train_step.h - one step of training: waves of sequences through the slots, the gradient of table rows token by token, the
 * norm of it all, and AdamW.
 *
 * Nothing here depends on which thread does what: pieces are fixed by the number of slots alone, so a run is the same bits
 * with the same -j. Rows are sparse: a step zeroes, adds up and updates the rows of its own tokens, whatever the table's size;
 * moments of other rows stay as they are, the bias correction counts all steps. */
#ifndef TRAIN_STEP_H
#define TRAIN_STEP_H

#include "train_model.h"

enum { TRAIN_PIECE = 16384 /* dense parameters at a time */ };

/* A part of one dense tensor. */
typedef struct train_piece {
    size_t at, n;
    bool   decays, frozen;
} train_piece;

typedef struct train_trainer {
    train_model *m;
    train_slot  *slot;
    uint32_t     slots, t, per_slot; /* sequences of t tokens; at most per_slot of them in a slot's wave */
    l3_jobs      jobs;
    bool         freeze; /* only lookup layers learn */
    train_piece *pieces;
    size_t       n_pieces;
    double      *sums;    /* (n_pieces,) and then (slots * lookups,) of squared gradients */
    int32_t     *touched; /* (n_touched,) tokens of this step with rows, in order of appearance */
    uint32_t     n_touched;
    bool        *is_touched; /* (vocab,) */
    int32_t     *wave;       /* (n_wave,) tokens of this wave */
    uint32_t     n_wave;
    bool        *in_wave; /* (vocab,) */
    uint64_t     step;    /* steps done */
    /* Of the step under way. */
    const int32_t *inputs, *targets; /* (sequences, t) */
    uint32_t       sequences;
    real           per_token, clip, lr, rows_lr, decay, c1, c2;
    train_adam     adam;
    bool           backward;
} train_trainer;

typedef struct train_result {
    double   loss;      /* mean over the predicted tokens, nats */
    double   balance;   /* the experts' part of what is minimized */
    double   grad_norm; /* before clipping */
    uint64_t predicted;
} train_result;

/* Decay is for matrices: norms, biases, the embedding and table rows do without. */
static inline bool train_decays(const train_param *p) {
    return p->rows > 0 && strcmp(p->name, "token_embd.weight") != 0;
}

static inline void train_cut(train_trainer *r) {
    for (size_t i = 0; i < r->m->n_params; i++) {
        const train_param *p = &r->m->params[i];
        for (size_t at = 0; at < p->n; at += TRAIN_PIECE) {
            r->pieces                = (train_piece *)cli_grow(r->pieces, r->n_pieces, sizeof *r->pieces);
            r->pieces[r->n_pieces++] = (train_piece){p->at + at, p->n - at < TRAIN_PIECE ? p->n - at : TRAIN_PIECE,
                                                     train_decays(p), r->freeze && !p->of_lookup};
        }
    }
}

/* The most rows that the tokens of one step can own: those of the `tokens` tokens with most rows. */
static inline int train_more_rows(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}
static inline size_t train_row_bound(const train_model *m, const train_lookup *k, uint64_t tokens) {
    const uint32_t vocab = m->shape.vocab;
    uint32_t      *rows  = (uint32_t *)cli_malloc((uint64_t)vocab * sizeof *rows);
    size_t         sum   = 0;
    for (uint32_t t = 0; t < vocab; t++) rows[t] = (uint32_t)(k->offsets[t + 1] - k->offsets[t]);
    qsort(rows, vocab, sizeof *rows, train_more_rows);
    for (uint32_t t = 0; t < vocab && t < tokens; t++) sum += rows[t];
    free(rows);
    return sum;
}

/* sequences: the most that one step will have. */
static inline void train_trainer_new(train_trainer *r, train_model *m, uint32_t slots, uint32_t per_slot, uint32_t t,
                                     uint32_t sequences, l3_jobs jobs, bool freeze) {
    memset(r, 0, sizeof *r);
    r->m        = m;
    r->slots    = slots;
    r->t        = t;
    r->per_slot = per_slot;
    r->jobs     = jobs;
    r->freeze   = freeze;
    r->slot     = (train_slot *)train_take(m, slots, sizeof *r->slot);
    for (uint32_t i = 0; i < slots; i++) {
        train_slot_new(m, &r->slot[i], per_slot * t, t, true);
        r->slot[i].no_backbone = freeze;
    }
    train_cut(r);
    r->sums       = (double *)train_take(m, r->n_pieces + (uint64_t)slots * m->shape.lookups, sizeof *r->sums);
    r->touched    = (int32_t *)train_take(m, m->shape.vocab, sizeof *r->touched);
    r->wave       = (int32_t *)train_take(m, m->shape.vocab, sizeof *r->wave);
    r->is_touched = (bool *)train_take(m, m->shape.vocab, sizeof *r->is_touched);
    r->in_wave    = (bool *)train_take(m, m->shape.vocab, sizeof *r->in_wave);
    for (uint32_t i = 0; i < m->shape.lookups; i++) {
        train_lookup *k = &m->lookup[i];
        k->grad_room    = train_row_bound(m, k, (uint64_t)sequences * t);
        k->grad         = (real *)train_take(m, (uint64_t)k->grad_room * train_row_width(&m->shape), sizeof(real));
    }
}

static inline void train_trainer_free(train_trainer *r) {
    for (uint32_t i = 0; i < r->slots; i++) train_slot_free(r->m, &r->slot[i]);
    void *const blocks[] = {r->slot, r->sums, r->touched, r->wave, r->is_touched, r->in_wave};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) cli_free_aligned(blocks[i]);
    free(r->pieces);
}

static inline void train_run(const train_trainer *r, uint32_t n, void (*piece)(void *arg, uint32_t i), void *arg) {
    if (r->jobs.run && r->jobs.width > 1) r->jobs.run(r->jobs.user, n, piece, arg);
    else
        for (uint32_t i = 0; i < n; i++) piece(arg, i);
}

/* ---- a wave: every slot runs its share ---- */

/* The share of n things that slot i takes. */
static inline uint32_t train_share(uint32_t n, uint32_t slots, uint32_t i) {
    return (uint32_t)((uint64_t)n * i / slots);
}

static void train_wave_piece(void *arg, uint32_t i) {
    train_trainer *r     = (train_trainer *)arg;
    train_slot    *s     = &r->slot[i];
    const uint32_t first = train_share(r->sequences, r->slots, i),
                   n     = train_share(r->sequences, r->slots, i + 1) - first;
    s->n                 = n * r->t;
    s->t                 = r->t;
    s->tokens            = r->inputs + (size_t)first * r->t;
    s->targets           = r->targets + (size_t)first * r->t;
    train_forward(r->m, s);
    if (n == 0) return;
    train_head(r->m, s, r->per_token, r->backward);
    if (r->backward) train_backward(r->m, s, r->per_token);
}

/* Notes the wave's tokens, and gives those that are new in this step a zeroed place for their rows' gradient. */
static inline void train_note(train_trainer *r) {
    train_model *m     = r->m;
    const size_t width = train_row_width(&m->shape);
    for (uint32_t i = 0; i < r->n_wave; i++) r->in_wave[r->wave[i]] = false;
    r->n_wave = 0;
    for (uint32_t i = 0; i < r->slots; i++)
        for (uint32_t g = 0; g < r->slot[i].n_groups; g++) {
            const int32_t token = r->slot[i].groups[g].token;
            if (r->in_wave[token]) continue;
            r->in_wave[token]    = true;
            r->wave[r->n_wave++] = token;
            if (r->is_touched[token]) continue;
            r->is_touched[token]       = true;
            r->touched[r->n_touched++] = token;
            for (uint32_t j = 0; j < m->shape.lookups; j++) {
                train_lookup  *k  = &m->lookup[j];
                const uint32_t n  = (uint32_t)(k->offsets[token + 1] - k->offsets[token]);
                k->grad_at[token] = (uint32_t)k->grad_rows;
                memset(k->grad + k->grad_rows * width, 0, n * width * sizeof(real));
                k->grad_rows += n;
            }
        }
}

/* The part of slot x's positions in the gradient of one token's rows. */
static inline void train_row_gradient(const train_model *m, train_slot *own, const train_slot *x, uint32_t layer,
                                      int32_t token) {
    const train_shape  *s     = &m->shape;
    const train_lookup *k     = &m->lookup[layer];
    const train_looked *y     = &x->looked[layer];
    const size_t        width = train_row_width(s), d = s->dim, e = s->value_length;
    const int32_t       g = x->group_of[token];
    const real         *rows;
    const uint32_t      n    = train_rows_of(k, token, &rows, width);
    real               *grad = k->grad + (size_t)k->grad_at[token] * width;
    if (g < 0 || n == 0) return;
    const train_group *group = &x->groups[g];
    const real        *p = y->p + y->p_at[g], *dp = y->dp + y->p_at[g], *q = y->q + group->start * d;
    train_outer(m, &own->space, group->count, n, e, p, y->da + group->start * e, grad + (s->tied ? 0 : d), width);
    if (!s->key_norm) {
        train_outer(m, &own->space, group->count, n, d, dp, q, grad, width);
        return;
    }
    size_t stride = width;
    (void)train_keys(m, own, rows, n, &stride); /* for the norms in own->rows_rstd */
    memset(own->drows, 0, n * d * sizeof(real));
    train_outer(m, &own->space, group->count, n, d, dp, q, own->drows, d);
    for (uint32_t r = 0; r < n; r++)
        m->ops->rms_norm_backward(1, d, rows + r * width, NULL, own->rows_rstd + r, own->drows + r * d,
                                  grad + r * width, NULL, own->small);
}

static void train_rows_piece(void *arg, uint32_t i) {
    train_trainer *r = (train_trainer *)arg;
    for (uint32_t w = i; w < r->n_wave; w += r->slots)
        for (uint32_t layer = 0; layer < r->m->shape.lookups; layer++)
            for (uint32_t x = 0; x < r->slots; x++)
                train_row_gradient(r->m, &r->slot[i], &r->slot[x], layer, r->wave[w]);
}

/* ---- all gradients of a step ---- */

static void train_zero_piece(void *arg, uint32_t i) {
    train_trainer *r = (train_trainer *)arg;
    memset(r->slot[i].g, 0, r->m->n_dense * sizeof(real));
    r->slot[i].loss = r->slot[i].balance = 0;
    r->slot[i].predicted                 = 0;
}

/* Adds the slots' dense gradients up in slot 0, and squares. */
static void train_sum_piece(void *arg, uint32_t i) {
    train_trainer     *r = (train_trainer *)arg;
    const train_piece *p = &r->pieces[i];
    real              *g = r->slot[0].g + p->at;
    for (uint32_t x = 1; x < r->slots; x++) r->m->ops->axpy(p->n, 1, r->slot[x].g + p->at, g);
    r->sums[i] = p->frozen ? 0 : (double)r->m->ops->dot(p->n, g, g);
}

static void train_row_sum_piece(void *arg, uint32_t i) {
    train_trainer      *r     = (train_trainer *)arg;
    const train_lookup *k     = &r->m->lookup[i / r->slots];
    const size_t        width = train_row_width(&r->m->shape);
    const size_t first = k->grad_rows * (i % r->slots) / r->slots, end = k->grad_rows * (i % r->slots + 1) / r->slots;
    double       sum = 0;
    for (size_t row = first; row < end; row++)
        sum += (double)r->m->ops->dot(width, k->grad + row * width, k->grad + row * width);
    r->sums[r->n_pieces + i] = sum;
}

static inline double train_gradient_norm(train_trainer *r) {
    double       sum = 0;
    const size_t all = r->n_pieces + (size_t)r->slots * r->m->shape.lookups;
    train_run(r, (uint32_t)r->n_pieces, train_sum_piece, r);
    train_run(r, r->slots * r->m->shape.lookups, train_row_sum_piece, r);
    for (size_t i = 0; i < all; i++) sum += r->sums[i];
    return sqrt(sum);
}

static inline train_result train_totals(const train_trainer *r) {
    train_result result = {0, 0, 0, 0};
    for (uint32_t i = 0; i < r->slots; i++) {
        result.loss += r->slot[i].loss;
        result.balance += r->slot[i].balance;
        result.predicted += r->slot[i].predicted;
    }
    return result;
}

/* The mean loss over `sequences` sequences of r->t tokens and targets (-1: not predicted), and with `backward` its gradient:
 * dense in slot[0].g, of rows in lookup[].grad. noise: seed of dropout, 0 for none. */
static inline train_result train_gradients(train_trainer *r, const int32_t *inputs, const int32_t *targets,
                                           uint32_t sequences, bool backward, uint64_t noise) {
    const uint32_t wave  = r->slots * r->per_slot;
    uint64_t       count = 0;
    for (size_t i = 0; i < (size_t)sequences * r->t; i++) count += targets[i] >= 0;
    for (uint32_t i = 0; i < r->n_touched; i++) r->is_touched[r->touched[i]] = false;
    for (uint32_t i = 0; i < r->m->shape.lookups; i++) r->m->lookup[i].grad_rows = 0;
    r->n_touched = 0;
    r->per_token = 1 / (real)(count ? count : 1);
    r->backward  = backward;
    train_run(r, r->slots, train_zero_piece, r);
    for (uint32_t at = 0; at < sequences; at += wave) {
        r->inputs    = inputs + (size_t)at * r->t;
        r->targets   = targets + (size_t)at * r->t;
        r->sequences = sequences - at < wave ? sequences - at : wave;
        for (uint32_t i = 0; i < r->slots; i++) {
            uint64_t state   = noise + at + i;
            r->slot[i].noise = noise ? l3_random(&state) | 1 : 0;
        }
        train_run(r, r->slots, train_wave_piece, r);
        if (!backward || !r->m->shape.lookups) continue;
        train_note(r);
        train_run(r, r->slots, train_rows_piece, r);
    }
    train_result result = train_totals(r);
    result.loss /= (double)(count ? count : 1);
    result.balance *= (double)r->per_token;
    if (backward) result.grad_norm = train_gradient_norm(r);
    return result;
}

/* ---- the update ---- */

static void train_update_piece(void *arg, uint32_t i) {
    train_trainer     *r = (train_trainer *)arg;
    train_model       *m = r->m;
    const train_piece *p = &r->pieces[i];
    if (p->frozen) return;
    m->ops->adamw(p->n, m->w + p->at, r->slot[0].g + p->at, m->m + p->at, m->v + p->at, &r->adam, r->lr,
                  p->decays ? r->decay : 0, r->clip, r->c1, r->c2);
}

static void train_update_rows_piece(void *arg, uint32_t i) {
    train_trainer *r     = (train_trainer *)arg;
    train_model   *m     = r->m;
    const size_t   width = train_row_width(&m->shape);
    for (uint32_t j = i; j < r->n_touched; j += r->slots)
        for (uint32_t layer = 0; layer < m->shape.lookups; layer++) {
            train_lookup *k     = &m->lookup[layer];
            const int32_t token = r->touched[j];
            const size_t  at    = (size_t)k->offsets[token] * width;
            const size_t  n     = (size_t)(k->offsets[token + 1] - k->offsets[token]) * width;
            m->ops->adamw(n, k->rows + at, k->grad + (size_t)k->grad_at[token] * width, k->m + at, k->v + at, &r->adam,
                          r->rows_lr, 0, r->clip, r->c1, r->c2);
        }
}

/* AdamW with the gradients of train_gradients(); max_norm 0: not clipped. */
static inline void train_update(train_trainer *r, double grad_norm, double max_norm, double lr, double rows_lr,
                                double decay, train_adam adam) {
    r->step++;
    r->adam    = adam;
    r->clip    = max_norm > 0 && grad_norm > max_norm ? (real)(max_norm / grad_norm) : 1;
    r->lr      = (real)lr;
    r->rows_lr = (real)rows_lr;
    r->decay   = (real)decay;
    r->c1      = (real)(1 / (1 - pow((double)adam.beta1, (double)r->step)));
    r->c2      = (real)(1 / (1 - pow((double)adam.beta2, (double)r->step)));
    train_run(r, (uint32_t)r->n_pieces, train_update_piece, r);
    train_run(r, r->slots, train_update_rows_piece, r);
}

#endif /* TRAIN_STEP_H */
