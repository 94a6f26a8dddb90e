/* choices.h - multiple choice by likelihood: how likely a model finds each of several answers after a context.
 *
 * A file of JSON lines, one question a line: {"context": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0}. Other members are
 * passed over, lines of white space too. The texts context + choice are tokenized whole, BOS in front. What all of them and
 * the context alone begin with is the given part; the likelihood of a choice is that of all tokens behind it. So the answers
 * are compared after the same tokens, even where a choice's first letters melt into the context's last token. When a text is
 * longer than the model's context, the oldest tokens of the given part are left out, of all choices alike. */
#ifndef CHOICES_H
#define CHOICES_H

#include "json.h"
#include "perplexity.h"

/* What became of a line. */
typedef struct choice_result {
    uint64_t line;                /* from 1 */
    uint32_t n, answer;           /* choices; the right one */
    uint32_t best, best_per_byte; /* the likeliest one; by log-likelihood per byte of the choice. Ties: the first */
    double  *log_likelihood;      /* (n,) in nats */
    bool     cut;                 /* the context was too long */
} choice_result;

typedef struct choice_text {
    int32_t *ids; /* of context + choice; without BOS */
    size_t   n, bytes;
} choice_text;

typedef struct choices {
    cli_engine   *e;
    const char   *path;
    uint64_t      line;
    cli_tokenizer tokenizer;
    float        *given, *logits; /* (vocab,) after the given part; ppl_new_logits() */
    uint32_t      context;
} choices;

static inline void choices_open(choices *c, cli_engine *e, const cli_setup *setup, const char *path) {
    memset(c, 0, sizeof *c);
    c->e    = e;
    c->path = path;
    if (e->info->bos < 0) cli_fail("%s: the model has no BOS token, and every text begins with one", e->path);
    cli_tokenizer_open(&c->tokenizer, e->model, CLI_RUN);
    cli_start_session(e, setup);
    c->context = l3_context(e->session);
    c->given   = (float *)cli_malloc((uint64_t)e->info->vocab * sizeof(float));
    c->logits  = ppl_new_logits(e, c->context);
}

static inline void choices_close(choices *c) {
    cli_tokenizer_close(&c->tokenizer);
    free(c->given);
    free(c->logits);
}

/* ---- a line ---- */

CLI_NORETURN static inline void choices_bad(const choices *c, const char *what) {
    cli_fail("%s: line %" PRIu64 ": %s", c->path, c->line, what);
}

/* The object of a line, with everything in it that is needed. */
static inline json *choices_parse(const choices *c, const char *line, size_t n) {
    json_parser r;
    json       *v = json_read(&r, line, n);
    if (!v)
        cli_fail("%s: line %" PRIu64 ", byte %zu: this is no JSON: %s", c->path, c->line, (size_t)(r.at - line) + 1,
                 r.wrong);
    const json *context = json_get(v, "context"), *list = json_get(v, "choices"), *answer = json_get(v, "answer");
    if (v->type != JSON_OBJECT) choices_bad(c, "an object is expected");
    if (!context || context->type != JSON_STRING) choices_bad(c, "\"context\" is expected, a string");
    if (!list || list->type != JSON_ARRAY || list->length < 2)
        choices_bad(c, "\"choices\" is expected, an array of two strings or more");
    for (const json *item = list->first; item; item = item->next)
        if (item->type != JSON_STRING || item->length == 0)
            choices_bad(c, "every choice must be a string that is not empty");
    if (!answer || answer->type != JSON_NUMBER || !(answer->number >= 0 && answer->number < (double)list->length) ||
        answer->number != floor(answer->number))
        choices_bad(c, "\"answer\" is expected, the number of the right choice, counted from 0");
    return v;
}

static inline choice_text choices_encode(choices *c, const json *context, const json *choice) {
    const size_t n    = context->length + (choice ? choice->length : 0);
    char        *text = (char *)cli_malloc((uint64_t)n + 1);
    choice_text  t    = {NULL, 0, choice ? choice->length : 0};
    memcpy(text, context->string, context->length);
    if (choice) memcpy(text + context->length, choice->string, choice->length);
    t.ids = cli_encode(&c->tokenizer, text, n, 0, &t.n);
    free(text);
    return t;
}

/* How many tokens all texts begin with. */
static inline size_t choices_given(const choice_text *texts, size_t n) {
    size_t given = texts[0].n;
    for (size_t i = 1; i < n; i++) {
        size_t same = 0;
        while (same < given && same < texts[i].n && texts[i].ids[same] == texts[0].ids[same]) same++;
        given = same;
    }
    return given;
}

typedef struct choice_sum {
    const int32_t *next;
    uint32_t       vocab;
    double         log_likelihood;
} choice_sum;

static inline void choices_predict(void *user, uint32_t i, const float *logits) {
    choice_sum *s = (choice_sum *)user;
    s->log_likelihood -= ppl_nll(logits, s->vocab, s->next[i]);
}

/* The log-likelihood of the tokens behind the given part, of which the session has `position` tokens, BOS included. */
static inline double choices_score(choices *c, const choice_text *t, size_t given, uint32_t position) {
    const int32_t *rest = t->ids + given;
    const uint32_t n    = (uint32_t)(t->n - given);
    choice_sum     s    = {rest + 1, c->e->info->vocab, -ppl_nll(c->given, c->e->info->vocab, rest[0])};
    l3_error       err;
    memset(&err, 0, sizeof err);
    cli_check(l3_truncate(c->e->session, position, &err), c->e->path, &err);
    ppl_run(c->e, rest, n - 1, c->logits, choices_predict, &s);
    return s.log_likelihood;
}

/* Runs BOS and the given part without its first `cut` tokens; the position behind it. */
static inline uint32_t choices_run_given(choices *c, const int32_t *ids, size_t given, size_t cut) {
    const int32_t bos = c->e->info->bos;
    l3_error      err;
    memset(&err, 0, sizeof err);
    cli_check(l3_truncate(c->e->session, 0, &err), c->e->path, &err);
    cli_check(l3_prefill(c->e->session, &bos, 1, NULL, &err), c->e->path, &err);
    if (given > cut)
        cli_check(l3_prefill(c->e->session, ids + cut, (uint32_t)(given - cut), NULL, &err), c->e->path, &err);
    memcpy(c->given, l3_logits(c->e->session), c->e->info->vocab * sizeof(float));
    return l3_position(c->e->session);
}

/* texts: the n choices' and, behind them, the context's. */
static inline void choices_score_all(choices *c, const choice_text *texts, choice_result *r) {
    const size_t given   = choices_given(texts, (size_t)r->n + 1);
    size_t       longest = 0;
    for (uint32_t i = 0; i < r->n; i++) {
        if (texts[i].n > longest) longest = texts[i].n;
        if (texts[i].n == given) choices_bad(c, "a choice adds no token to the context");
    }
    const size_t cut = longest > c->context ? longest - c->context : 0; /* the last token is predicted, BOS is run */
    r->cut           = cut > 0;
    if (cut > given)
        cli_fail("%s: line %" PRIu64 ": a choice of %zu tokens; the context holds %" PRIu32, c->path, c->line,
                 longest - given, c->context);
    const uint32_t position = choices_run_given(c, texts[0].ids, given, cut);
    for (uint32_t i = 0; i < r->n; i++) r->log_likelihood[i] = choices_score(c, &texts[i], given, position);
    for (uint32_t i = 1; i < r->n; i++) {
        const double *p = r->log_likelihood;
        if (p[i] > p[r->best]) r->best = i;
        if (p[i] / (double)texts[i].bytes > p[r->best_per_byte] / (double)texts[r->best_per_byte].bytes)
            r->best_per_byte = i;
    }
}

static inline choice_result choices_line(choices *c, const char *line, size_t n) {
    json         *v       = choices_parse(c, line, n);
    const json   *context = json_get(v, "context"), *list = json_get(v, "choices");
    choice_text  *texts = (choice_text *)cli_malloc((list->length + 1) * sizeof *texts);
    choice_result r     = {.line = c->line, .n = (uint32_t)list->length, .answer = (uint32_t)json_number(v, "answer")};
    uint32_t      i     = 0;
    r.log_likelihood    = (double *)cli_malloc(list->length * sizeof(double));
    for (const json *choice = list->first; choice; choice = choice->next)
        texts[i++] = choices_encode(c, context, choice);
    texts[i] = choices_encode(c, context, NULL);
    choices_score_all(c, texts, &r);
    for (i = 0; i <= r.n; i++) free(texts[i].ids);
    free(texts);
    json_free(v);
    return r;
}

/* Every line of the file; the results, *n of them, in malloc memory. */
static inline choice_result *choices_file(choices *c, size_t *n) {
    size_t         length, size;
    char          *text = cli_read_file(c->path, &length);
    const char    *at   = text, *line;
    choice_result *all  = NULL;
    for (*n = 0; cli_next_line(&at, text + length, &line, &size);) {
        size_t blank = 0;
        c->line++;
        while (blank < size && strchr(" \t\r", line[blank])) blank++;
        if (blank == size) continue;
        all     = (choice_result *)cli_grow(all, *n, sizeof *all);
        all[*n] = choices_line(c, line, size);
        ++*n;
        cli_report(*n, 0, "questions");
    }
    if (*n == 0) cli_fail("%s: there are no questions in it", c->path);
    cli_report(*n, *n, "questions");
    free(text);
    return all;
}

#endif /* CHOICES_H */
