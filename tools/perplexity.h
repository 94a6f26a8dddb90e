/* perplexity.h - what a text costs a model: the negative log-likelihood of its tokens, window by window.
 *
 *     ppl p;
 *     ppl_open(&p, &engine, &setup, window, 0);      // starts the engine's session
 *     ppl_text(&p, "text.txt", NULL);
 *     printf("%g\n", ppl_perplexity(&p.total));
 *     ppl_close(&p);
 *
 * A window is BOS and up to window - 1 tokens of one document; every token but BOS is predicted. Without a stride, windows
 * do not overlap. With one, each window begins `stride` tokens after the one before it, and only the tokens that no window
 * before it has counted count: each has at least window - stride positions before it (BOS is one of them), save at the
 * document's beginning. A stride of window - 1 is the same as none. */
#ifndef PERPLEXITY_H
#define PERPLEXITY_H

#include "text.h"

typedef struct ppl_sum {
    double   nll;    /* negative log-likelihood of all tokens, in nats */
    uint64_t tokens; /* predicted */
    uint64_t bytes;  /* of the documents */
} ppl_sum;

typedef struct ppl {
    cli_engine *e;
    uint32_t    window, stride;
    int32_t    *ids;           /* (window,) BOS, then the tokens of the current window */
    uint32_t    held, counted; /* how many tokens those are, and how many of them have been counted */
    float      *logits;
    ppl_sum     total;
    void       *user;
    void (*each)(void *user, int32_t id, double nll); /* optional: is told what every predicted token cost */
} ppl;

static inline double ppl_perplexity(const ppl_sum *s) { return exp(s->nll / (double)s->tokens); }
static inline double ppl_bits_per_byte(const ppl_sum *s) { return s->nll / log(2) / (double)s->bytes; }

/* Tokens in one call, so that their logits stay within 64 MiB. */
static inline uint32_t ppl_tokens_per_call(const cli_engine *e) {
    const uint32_t n = (64u << 20) / 4 / e->info->vocab;
    return n ? n : 1;
}

static inline float *ppl_new_logits(const cli_engine *e, uint64_t n) {
    const uint32_t step = ppl_tokens_per_call(e);
    return (float *)cli_malloc((n < step ? n : step) * e->info->vocab * sizeof(float));
}

/* The logits after each of `count` tokens, which go in one call or, to be decoded, one by one. */
static inline int ppl_call(cli_engine *e, const int32_t *ids, uint32_t count, float *logits, l3_error *err) {
    if (!e->decode) return l3_prefill(e->session, ids, count, logits, err);
    for (uint32_t i = 0; i < count; i++) {
        const int code = l3_decode(e->session, ids[i], err);
        if (code != L3_OK) return code;
        memcpy(logits + (size_t)i * e->info->vocab, l3_logits(e->session), e->info->vocab * sizeof *logits);
    }
    return L3_OK;
}

/* Runs n tokens in pieces; each(user, i, logits after token i). logits is from ppl_new_logits(). */
static inline void ppl_run(cli_engine *e, const int32_t *ids, uint32_t n, float *logits,
                           void (*each)(void *user, uint32_t i, const float *logits), void *user) {
    const uint32_t step = ppl_tokens_per_call(e);
    l3_error       err;
    memset(&err, 0, sizeof err);
    for (uint32_t at = 0; at < n; at += step) {
        const uint32_t count = n - at < step ? n - at : step;
        cli_check(ppl_call(e, ids + at, count, logits, &err), e->path, &err);
        for (uint32_t i = 0; i < count; i++) each(user, at + i, logits + (size_t)i * e->info->vocab);
    }
}

/* -log softmax(logits)[id] */
static inline double ppl_nll(const float *logits, uint32_t n, int32_t id) {
    double max = logits[0], total = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > max) max = logits[i];
    for (uint32_t i = 0; i < n; i++) total += exp((double)logits[i] - max);
    return max + log(total) - (double)logits[id];
}

/* window 0: the context. stride 0: no overlap. */
static inline void ppl_open(ppl *p, cli_engine *e, const cli_setup *setup, uint32_t window, uint32_t stride) {
    cli_setup      s       = *setup;
    const uint32_t context = s.context ? s.context : e->info->context;
    memset(p, 0, sizeof *p);
    p->e      = e;
    p->window = s.context = window ? window : context;
    if (e->info->bos < 0) cli_fail("%s: the model has no BOS token, and every window begins with one", e->path);
    if (p->window > context)
        cli_fail("--window %" PRIu32 ": the context holds %" PRIu32 " tokens; no more than that is right", p->window,
                 context);
    if (p->window < 2) cli_fail("%s: a context of %" PRIu32 " has no room for BOS and a token", e->path, context);
    if (stride >= p->window)
        cli_fail("--stride %" PRIu32 ": windows hold %" PRIu32 " tokens behind BOS; no more than that is right", stride,
                 p->window - 1);
    p->stride = stride ? stride : p->window - 1;
    cli_start_session(e, &s);
    p->ids    = (int32_t *)cli_malloc((uint64_t)p->window * sizeof *p->ids);
    p->logits = ppl_new_logits(e, p->window);
    p->ids[0] = e->info->bos;
}

static inline void ppl_close(ppl *p) {
    free(p->ids);
    free(p->logits);
}

typedef struct ppl_window {
    ppl           *p;
    const int32_t *next; /* the token that is predicted first */
} ppl_window;

static inline void ppl_predict(void *user, uint32_t i, const float *logits) {
    const ppl_window *w   = (const ppl_window *)user;
    const double      nll = ppl_nll(logits, w->p->e->info->vocab, w->next[i]);
    w->p->total.nll += nll;
    w->p->total.tokens++;
    if (w->p->each) w->p->each(w->p->user, w->next[i], nll);
}

/* Counts what the window holds and no window before it has counted. Its last token is predicted, never run. */
static inline void ppl_count(ppl *p) {
    ppl_window window = {p, p->ids + 1 + p->counted};
    l3_error   err;
    memset(&err, 0, sizeof err);
    cli_check(l3_truncate(p->e->session, 0, &err), p->e->path, &err);
    if (p->counted) cli_check(l3_prefill(p->e->session, p->ids, p->counted, NULL, &err), p->e->path, &err);
    ppl_run(p->e, p->ids + p->counted, p->held - p->counted, p->logits, ppl_predict, &window);
    p->counted = p->held;
    cli_report(p->total.tokens, 0, "tokens");
}

/* The next n tokens of the document. */
static inline void ppl_add(ppl *p, const int32_t *ids, size_t n) {
    while (n) {
        if (p->held == p->window - 1) { /* full, and counted: the next window begins `stride` tokens later */
            p->held = p->counted = p->held - p->stride;
            memmove(p->ids + 1, p->ids + 1 + p->stride, p->held * sizeof *p->ids);
        }
        const uint32_t room = p->window - 1 - p->held, take = n < room ? (uint32_t)n : room;
        memcpy(p->ids + 1 + p->held, ids, take * sizeof *ids);
        p->held += take, ids += take, n -= take;
        if (p->held == p->window - 1) ppl_count(p);
    }
}

/* Ends the document: a shorter last window counts. */
static inline void ppl_end_document(ppl *p) {
    if (p->held > p->counted) ppl_count(p);
    p->held = p->counted = 0;
}

/* Every document of a text file; end(user, bytes), if there is one, is told of each document's end and length. */
static inline void ppl_text(ppl *p, const char *path, void (*end)(void *user, uint64_t bytes)) {
    token_reader r;
    token_piece  piece;
    tokens_open(&r, p->e->model, &path, 1, false);
    while (tokens_next(&r, &piece)) {
        ppl_add(p, piece.ids, piece.n);
        if (!piece.ends) continue;
        ppl_end_document(p);
        if (end) end(p->user, r.window.text.text_bytes - p->total.bytes);
        p->total.bytes = r.window.text.text_bytes;
    }
    tokens_close(&r);
    if (p->total.tokens == 0) cli_fail("%s: there is no text in it", path);
    cli_report(p->total.tokens, p->total.tokens, "tokens");
}

#endif /* PERPLEXITY_H */
