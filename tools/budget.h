/* budget.h - what a model needs on a device: every byte of RAM by purpose, the flash that a token reads, what to lower when it
 * does not fit, and what spare RAM is good for. Sizes are from the library's own layout, for a 32-bit machine unless asked
 * otherwise. Reads are counted by the library's own session, run over a text with kernels that compute nothing. */
#ifndef BUDGET_H
#define BUDGET_H

#include "text.h"

enum { BUDGET_LINES = 10, BUDGET_TOKENS = 20000, BUDGET_READS = 20000000 };

typedef struct budget_setup {
    size_t      ram;           /* bytes; 0: no budget is asked for */
    bool        here;          /* sizes on this machine instead of a 32-bit one */
    bool        mapped, ahead; /* the flash is mapped; rows are read ahead, through a second window */
    uint32_t    batch, run, page;
    const char *text;  /* or NULL: every token as often as the others */
    cli_setup   setup; /* pin 0: what is spare */
} budget_setup;

/* ---- counting what is read ---- */

typedef struct budget_flash {
    const unsigned char *bytes; /* the file */
    const l3_model      *model; /* of which only rows, where they lie and their checksums are truly read; NULL: all */
    uint64_t             reads, asked;
} budget_flash;

static inline bool budget_holds(const l3_tensor *t, uint64_t off, size_t n) {
    return t->source && off + n > t->offset && off < t->offset + l3__tensor_bytes(t);
}

static inline bool budget_is_used(const budget_flash *f, uint64_t off, size_t n) {
    for (uint32_t i = 0; f->model && i < f->model->info.n_lookups; i++) {
        const l3_lookup *l = &f->model->lookups[i];
        if (budget_holds(&l->rows, off, n) || budget_holds(&l->offsets, off, n) || budget_holds(&l->checksums, off, n))
            return true;
    }
    return !f->model;
}

static inline int budget_read(void *user, uint64_t off, void *dst, size_t n) {
    budget_flash *f = (budget_flash *)user;
    f->reads++;
    f->asked += n;
    if (budget_is_used(f, off, n)) memcpy(dst, f->bytes + off, n);
    return 0;
}

static inline const void *budget_map(void *user, uint64_t off, size_t n) {
    (void)n;
    return ((const budget_flash *)user)->bytes + off;
}

static inline int budget_wait(void *user) {
    (void)user;
    return 0;
}

/* Kernels of a session that only reads. */
static inline float budget_dot(const float *a, const float *b, uint32_t n) { return (void)a, (void)b, (float)n; }
static inline void  budget_unpack(int type, const uint8_t *row, uint32_t n, float *dst) {
     (void)type, (void)row, (void)n, (void)dst;
}
static inline void budget_add(float *a, const float *b, float c, size_t n) { (void)a, (void)b, (void)c, (void)n; }
static inline void budget_scale(float *x, float f, size_t n) { (void)x, (void)f, (void)n; }
static inline void budget_normalize(const float *x, const float *w, float f, size_t n, float *y) {
    (void)x, (void)w, (void)f, (void)n, (void)y;
}
static inline void  budget_swiglu(float *g, const float *u, size_t n) { (void)g, (void)u, (void)n; }
static inline float budget_softmax(float *w, uint32_t n, float s, float *peak) {
    return (void)w, (void)n, (void)s, (void)peak, 1;
}
static inline void budget_weigh_rows(int type, const uint8_t *r, size_t b, const float *w, uint32_t n, float *o,
                                     uint32_t c, uint32_t heads) {
    (void)type, (void)r, (void)b, (void)w, (void)n, (void)o, (void)c, (void)heads;
}
static inline void budget_matmul(const uint8_t *w, size_t row, uint32_t rows, uint32_t cols, const float *x, size_t xs,
                                 uint32_t n, float *y, size_t ys) {
    (void)w, (void)row, (void)cols, (void)x, (void)xs;
    for (uint32_t p = 0; p < n; p++) memset(y + p * ys, 0, rows * sizeof *y);
}

static inline void budget_compute_nothing(l3__kernels *k) {
    k->dot = budget_dot, k->unpack = budget_unpack, k->add_scaled = budget_add, k->scale = budget_scale;
    k->normalize = budget_normalize, k->swiglu = budget_swiglu, k->softmax_tile = budget_softmax;
    k->weigh_rows = budget_weigh_rows;
    for (int i = 0; i < L3__N_TYPES; i++) k->matmul[i] = budget_matmul, k->decode[i] = k->prefill[i] = NULL;
}

/* What a token reads: bytes and calls of read or start. */
typedef struct budget_reading {
    uint64_t tokens;
    double   weights, rows, reads; /* means */
    double   hits;                 /* share of row blocks that were in the cache */
    uint64_t worst;                /* bytes, of the token with most rows, none of them in the cache */
} budget_reading;

/* A model behind a driver that counts. */
typedef struct budget_device {
    budget_flash flash;
    l3_source    source;
    l3_model    *model;
    l3_session  *session;
    l3__kernels  kernels;
    void        *blocks[3];
} budget_device;

static inline void budget_open(budget_device *d, const cli_engine *e, const budget_setup *s) {
    size_t   size = 0;
    l3_error err;
    memset(d, 0, sizeof *d);
    memset(&err, 0, sizeof err);
    d->flash.bytes  = (const unsigned char *)e->file.mapping;
    d->source.user  = &d->flash;
    d->source.size  = e->file.source.size;
    d->source.align = s->page;
    d->source.map   = s->mapped ? budget_map : NULL;
    d->source.read  = budget_read;
    d->source.start = s->ahead ? budget_read : NULL;
    d->source.wait  = s->ahead ? budget_wait : NULL;
    if (!d->flash.bytes) cli_fail("%s: it cannot be mapped here, which is needed to count reads", e->path);
    cli_check(l3_model_size(&d->source, NULL, &size, &err), e->path, &err);
    d->blocks[0] = cli_aligned(size, "the model");
    cli_check(l3_model_open(&d->model, &d->source, NULL, d->blocks[0], size, &err), e->path, &err);
}

static inline void budget_close(budget_device *d) {
    for (int i = 0; i < 3; i++) cli_free_aligned(d->blocks[i]);
}

static inline l3_session_config budget_config(const budget_setup *s, size_t cache) {
    l3_session_config c = cli_session_config(&s->setup);
    c.work.batch        = s->batch;
    c.work.level        = L3_LEVEL_PLAIN;
    c.work.cache        = cache;
    return c;
}

static inline void budget_start(budget_device *d, const cli_engine *e, const budget_setup *s, size_t cache,
                                size_t pin) {
    l3_session_config c      = budget_config(s, cache);
    const size_t      pinned = l3_model_pin_size(d->model, pin);
    l3_error          err;
    memset(&err, 0, sizeof err);
    if (pinned) d->blocks[1] = cli_aligned(pinned, "the pinned weights");
    if (pinned) cli_check(l3_model_pin(d->model, d->blocks[1], pinned, &err), e->path, &err);
    const size_t size = l3_session_size(d->model, &c);
    d->blocks[2]      = cli_aligned(size, "the session");
    cli_check(l3_session_init(&d->session, d->model, &c, d->blocks[2], size, &err), e->path, &err);
    d->kernels = *d->session->work.kernels;
    budget_compute_nothing(&d->kernels);
    d->session->work.kernels = &d->kernels;
    d->flash.model           = d->model;
}

/* One more token; the text begins again where the context ends. False: that is enough of a large model. */
static inline bool budget_decode(budget_device *d, const char *path, int32_t id) {
    l3_error err;
    memset(&err, 0, sizeof err);
    if (l3_position(d->session) == l3_context(d->session)) (void)l3_truncate(d->session, 0, NULL);
    cli_check(l3_decode(d->session, id, &err), path, &err);
    if (cli_stopped) cli_fail("stopped");
    return d->flash.reads < BUDGET_READS;
}

/* Every document after BOS, up to BUDGET_TOKENS in all. */
static inline uint64_t budget_run_text(budget_device *d, const cli_engine *e, const char *text) {
    const l3_info *info   = e->info;
    uint64_t       tokens = 0;
    bool           more   = true;
    token_reader   t;
    token_piece    p;
    tokens_open(&t, e->model, &text, 1, false);
    while (more && tokens_next(&t, &p)) {
        if (p.begins) (void)l3_truncate(d->session, 0, NULL);
        if (p.begins && info->add_bos && info->bos >= 0) more = budget_decode(d, e->path, info->bos), tokens++;
        for (size_t i = 0; more && i < p.n; i++) more = budget_decode(d, e->path, p.ids[i]) && ++tokens < BUDGET_TOKENS;
    }
    tokens_close(&t);
    if (tokens == 0) cli_fail("%s: there is no text in it", text);
    return tokens;
}

/* Tokens from the whole vocabulary, each as often as the others. */
static inline uint64_t budget_run_vocabulary(budget_device *d, const cli_engine *e) {
    const uint32_t step = e->info->vocab / 1000 + 1;
    uint64_t       n    = 0;
    for (uint32_t id = 0; id < e->info->vocab; id += step, n++)
        if (!budget_decode(d, e->path, (int32_t)id)) return n + 1;
    return n;
}

/* The token with most bytes of rows. */
static inline int32_t budget_worst_token(const l3_model *m) {
    uint64_t *bytes = (uint64_t *)cli_malloc(m->info.vocab * sizeof *bytes);
    uint32_t  worst = 0;
    memset(bytes, 0, m->info.vocab * sizeof *bytes);
    for (uint32_t i = 0; i < m->info.n_lookups; i++) {
        const l3_lookup *l       = &m->lookups[i];
        int32_t         *offsets = cli_offsets(l);
        for (uint32_t t = 0; t < m->info.vocab; t++)
            bytes[t] += (uint64_t)(offsets[t + 1] - offsets[t]) * l3_row_bytes(l->rows.type, l->rows.cols);
        free(offsets);
    }
    for (uint32_t t = 0; t < m->info.vocab; t++)
        if (bytes[t] > bytes[worst]) worst = t;
    free(bytes);
    return (int32_t)worst;
}

static inline budget_reading budget_count(const cli_engine *e, const budget_setup *s, size_t cache, size_t pin) {
    budget_device  d;
    budget_reading r;
    memset(&r, 0, sizeof r);
    budget_open(&d, e, s);
    budget_start(&d, e, s, cache, pin);
    d.flash.reads = d.flash.asked = 0;
    (void)budget_decode(&d, e->path, budget_worst_token(e->model));
    r.worst              = d.flash.asked;
    const uint64_t reads = d.flash.reads;
    const l3_stats one   = l3_session_stats(d.session);
    r.tokens             = s->text ? budget_run_text(&d, e, s->text) : budget_run_vocabulary(&d, e);
    const l3_stats all   = l3_session_stats(d.session);
    const double   n     = (double)r.tokens;
    r.weights            = (double)(all.weight_bytes_read - one.weight_bytes_read) / n;
    r.rows               = (double)(all.row_bytes_read - one.row_bytes_read) / n;
    r.reads              = (double)(d.flash.reads - reads) / n;
    r.hits =
        all.lookups > one.lookups ? (double)(all.cache_hits - one.cache_hits) / (double)(all.lookups - one.lookups) : 0;
    budget_close(&d);
    return r;
}

/* ---- memory ---- */

typedef struct budget_line {
    const char *name, *key, *text; /* key: without its "_bytes" */
    size_t      bytes;
} budget_line;

static inline size_t budget_tokenizer(const budget_setup *s, const l3_model *m) {
    const l3_target target = l3_target_32();
    if (!m->info.has_tokenizer) return 0;
    return s->here ? l3_tokenizer_size(m, s->run) : l3_tokenizer_size_for(&target, m, s->run);
}

static inline size_t budget_sampler(const budget_setup *s, uint32_t vocab) {
    const l3_target   target   = l3_target_32();
    const l3_sampling sampling = l3_sampling_defaults();
    return s->here ? l3_sampler_size(&sampling, vocab) : l3_sampler_size_for(&target, &sampling, vocab);
}

/* Bytes of everything, and by purpose. 0: such a session cannot be. */
static inline size_t budget_memory(const budget_setup *s, const l3_model *m, budget_line lines[BUDGET_LINES]) {
    const l3_target         target = l3_target_32();
    const l3_session_config c      = budget_config(s, s->setup.cache);
    l3_memory               x;
    const size_t      session = s->here ? l3_session_memory(m, &c, &x) : l3_session_memory_for(&target, m, &c, &x);
    const char       *window  = s->ahead ? "two, for what is read" : "for what is read";
    const budget_line all[BUDGET_LINES] = {
        {"model", "model", "descriptions of tensors", x.model},
        {"vocabulary", "vocabulary", "where every 16th token lies", x.vocabulary},
        {"KV cache", "kv", "keys and values of the context", x.kv},
        {"logits", "logits", "", x.logits},
        {"scratch", "scratch", "activations of a batch", x.scratch},
        {"session", "session", "its struct, and what a batch is about", x.session},
        {"window", "window", window, x.window},
        {"row cache", "cache", "", x.cache},
        {"tokenizer", "tokenizer", s->run ? "text to tokens and back" : "tokens to text only", budget_tokenizer(s, m)},
        {"sampler", "sampler", "top-k 40, the last 64 tokens", budget_sampler(s, m->info.vocab)},
    };
    size_t total = 0;
    for (int i = 0; i < BUDGET_LINES; i++) total += all[i].bytes;
    if (lines) memcpy(lines, all, sizeof all);
    return session ? total : 0;
}

/* Something smaller than what was asked for. */
typedef struct budget_change {
    const char *option;
    char        from[24], to[24];
    size_t      saves;
} budget_change;

static inline void budget_number(char text[24], size_t n) { snprintf(text, 24, "%zu", n); }

enum { BUDGET_CHANGES = 6 };

/* Each alone; those that save nothing are left out. */
static inline int budget_changes(const budget_setup *s, const l3_model *m, size_t total,
                                 budget_change changes[BUDGET_CHANGES]) {
    static const char *const types[] = {"f32", "f16", "q8_0"};
    const size_t             least   = l3_session_window_min(m);
    int                      n       = 0;
    for (int i = 0; i < BUDGET_CHANGES; i++) {
        budget_change *c    = &changes[n];
        budget_setup   less = *s;
        switch (i) {
        case 0:
            c->option = "--kv", less.setup.kv = 2;
            snprintf(c->from, sizeof c->from, "%s", types[s->setup.kv]);
            snprintf(c->to, sizeof c->to, "%s", types[2]);
            break;
        case 1:
            c->option = "-c", less.setup.context = (s->setup.context + 1) / 2;
            budget_number(c->from, s->setup.context), budget_number(c->to, less.setup.context);
            break;
        case 2:
            c->option = "--batch", less.batch = 1;
            budget_number(c->from, s->batch), budget_number(c->to, 1);
            break;
        case 3:
            c->option = "--window", less.setup.window = least;
            budget_number(c->from, s->setup.window), budget_number(c->to, least);
            break;
        case 4:
            c->option = "--cache", less.setup.cache = 0;
            budget_number(c->from, s->setup.cache), budget_number(c->to, 0);
            break;
        default: c->option = "--run", less.run = 0; budget_number(c->from, s->run), budget_number(c->to, 0);
        }
        const size_t now = budget_memory(&less, m, NULL);
        if (now == 0 || now >= total) continue;
        c->saves = total - now;
        n++;
    }
    return n;
}

typedef struct budget_report {
    const budget_setup *s;
    budget_line         lines[BUDGET_LINES];
    size_t              total;    /* of the lines */
    size_t         pinned, cache; /* what spare RAM becomes; the cache is the one asked for with what is then left */
    size_t         pinnable;      /* all that could be pinned */
    l3_step_bound  step;
    budget_reading as_is, spare; /* with nothing pinned and the cache asked for; with the spare RAM used */
    budget_change  changes[BUDGET_CHANGES];
    int            n_changes;
} budget_report;

/* What is left of the budget goes to weights, of which each byte saves reading one for every token; only what is then left
 * to the cache, as even the most frequent rows are wanted for a few tokens of a hundred. */
static inline void budget_split(budget_report *r, const l3_model *m) {
    const budget_setup *s     = r->s;
    const size_t        spare = s->ram > r->total ? s->ram - r->total : 0, budget = s->setup.pin ? s->setup.pin : spare;
    r->pinned = l3_model_pin_size(m, budget < spare ? budget : spare);
    r->cache  = s->setup.cache;
    if (m->info.n_lookups && !s->mapped && spare - r->pinned >= 1024) r->cache += spare - r->pinned;
}

static inline void budget_gather(budget_report *r, const cli_engine *e, budget_setup *s) {
    budget_device d;
    l3_error      err;
    memset(r, 0, sizeof *r);
    memset(&err, 0, sizeof err);
    r->s = s;
    if (s->setup.context == 0) s->setup.context = e->info->context;
    budget_open(&d, e, s);
    const size_t least = l3_session_window_min(d.model);
    if (s->setup.window == 0) s->setup.window = least > 4096 ? least : 4096;
    const l3_session_config c = budget_config(s, s->setup.cache);
    cli_check(l3__check_session(d.model, &c, &err), e->path, &err);
    r->total     = budget_memory(s, d.model, r->lines);
    r->n_changes = budget_changes(s, d.model, r->total, r->changes);
    r->pinnable  = l3_model_pin_size(d.model, SIZE_MAX);
    budget_split(r, d.model);
    budget_start(&d, e, s, s->setup.cache, 0);
    r->step = l3_session_step_bound(d.session);
    budget_close(&d);
    if (s->mapped) return;
    r->as_is = budget_count(e, s, s->setup.cache, 0);
    r->spare = r->pinned || r->cache > s->setup.cache ? budget_count(e, s, r->cache, r->pinned) : r->as_is;
}

/* ---- output ---- */

static inline void budget_print_reading(const char *name, const budget_reading *r) {
    printf(
        "  %-14s %10.0f bytes in %.1f reads: weights %.0f, rows %.0f (%.0f%% of blocks in the cache); at most %" PRIu64
        "\n",
        name, r->weights + r->rows, r->reads, r->weights, r->rows, 100 * r->hits, r->worst);
}

static inline void budget_print(const budget_report *r) {
    const budget_setup *s = r->s;
    printf("RAM on %s: context %" PRIu32 ", batch %" PRIu32 "\n", s->here ? "this machine" : "a 32-bit machine",
           s->setup.context, s->batch);
    for (int i = 0; i < BUDGET_LINES; i++)
        if (r->lines[i].bytes) printf("  %-14s %10zu   %s\n", r->lines[i].name, r->lines[i].bytes, r->lines[i].text);
    printf("  %-14s %10zu   of %zu; the stack comes on top\n", "in all", r->total, s->ram);
    if (r->total > s->ram) {
        printf("\n%zu bytes too many; each of these alone would save\n", r->total - s->ram);
        for (const budget_change *c = r->changes; c < r->changes + r->n_changes; c++)
            printf("  %-14s %10zu   %s instead of %s\n", c->option, c->saves, c->to, c->from);
    } else {
        printf("\nspare RAM      %10zu\n", s->ram - r->total);
        if (r->pinnable)
            printf("  %-14s %10zu   of %zu bytes of weights that every token reads\n", "pinned", r->pinned,
                   r->pinnable);
        if (r->cache > s->setup.cache) printf("  %-14s %10zu   of rows\n", "cached", r->cache - s->setup.cache);
    }
    if (s->mapped) return;
    printf("\nflash read for a token, %s (%" PRIu64 " tokens)\n",
           s->text ? "in the mean of the text" : "all tokens being as likely", r->as_is.tokens);
    budget_print_reading("so far", &r->as_is);
    if (r->pinned || r->cache > s->setup.cache) budget_print_reading("with spare RAM", &r->spare);
    printf("\na step         %10" PRIu64 " multiply-adds, %" PRIu64 " bytes in %" PRIu32 " reads at most\n",
           r->step.products, r->step.read_bytes, r->step.reads);
}

static inline void budget_json_reading(const char *key, const budget_reading *r) {
    cli_json_key(key);
    printf("{\"tokens\": %" PRIu64, r->tokens);
    cli_json_real("read_bytes_per_token", r->weights + r->rows);
    cli_json_real("weight_bytes_per_token", r->weights);
    cli_json_real("row_bytes_per_token", r->rows);
    cli_json_real("reads_per_token", r->reads);
    cli_json_real("cache_hits", r->hits);
    cli_json_u64("worst_read_bytes", r->worst);
    printf("}");
}

static inline void budget_json(const budget_report *r) {
    const budget_setup *s = r->s;
    cli_json_key("budget");
    printf("{\"ram_bytes\": %zu", s->ram);
    cli_json_u64("context", s->setup.context);
    cli_json_bool("fits", r->total <= s->ram);
    cli_json_u64("total_bytes", r->total);
    cli_json_key("parts");
    for (int i = 0; i < BUDGET_LINES; i++)
        printf("%s\"%s_bytes\": %zu", i ? ", " : "{", r->lines[i].key, r->lines[i].bytes);
    printf("}");
    cli_json_u64("pinnable_bytes", r->pinnable);
    cli_json_u64("pinned_bytes", r->pinned);
    cli_json_u64("cache_bytes", r->cache);
    if (!s->mapped) budget_json_reading("reads", &r->as_is), budget_json_reading("reads_with_spare", &r->spare);
    cli_json_u64("step_products", r->step.products);
    cli_json_u64("step_read_bytes", r->step.read_bytes);
    cli_json_u64("step_reads", r->step.reads);
    cli_json_key("savings");
    printf("{");
    for (int i = 0; i < r->n_changes; i++)
        printf("%s\"%s\": %zu", i ? ", " : "", r->changes[i].option, r->changes[i].saves);
    printf("}}");
}

#endif
