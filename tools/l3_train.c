/* l3_train.c - trains dense and L3 models from text: train_model.h has the arithmetic, train_step.h a step, train_files.h the
 * files, train_config.h the settings, train_log.h the curves; here is the run around them.
 *
 * Sections: >>options >>data >>validation >>sample >>check >>run */
#include "../l3_model.h"

#include "allocation.h"
#include "train_files.h"
#include "train_log.h"

/* >>options ---------------------------------------------------------------------------------------------------------- */

typedef struct options {
    const char *tokenizer, *alloc, *preset, *config, *time, *out, *init, *add_lookup, *valid, *name, *description;
    const char *check, *batch, *shape, *gradients, *kernels, *seed;
    cli_words   sets, data;
    uint32_t    threads, steps, export_every;
    bool        has_data, resume, settings, lines;
} options;

static void parse(options *o, int argc, char **argv) {
    const char *operands[256];
    cli_option  list[] = {
         {"--tokenizer", CLI_TEXT, &o->tokenizer, "TOK.gguf", "tokenizer: such a file, or any model that has one", 0, 0},
         {"--alloc", CLI_TEXT, &o->alloc, "ALLOC.gguf", "rows of every token, from l3-alloc; for lookup layers", 0, 0},
         {"--data", CLI_FLAG, &o->has_data, "", "FILE...: texts (.xz, .gz, -) or shards of tokens to train on", 0, 0},
         {"--valid", CLI_TEXT, &o->valid, "FILE", "text for validation (the last hundredth of the data)", 0, 0},
         {"--lines", CLI_FLAG, &o->lines, "", "every line of a text is a document", 0, 0},
         {"--preset", CLI_TEXT, &o->preset, "NAME", "nano, small or base: --settings shows them", 0, 0},
         {"--config", CLI_TEXT, &o->config, "FILE", "settings, a line KEY = VALUE each", 0, 0},
         {"--set", CLI_LIST, &o->sets, "KEY=VALUE", "one setting; as often as wanted", 0, 0},
         {"--settings", CLI_FLAG, &o->settings, "", "list the settings and their defaults", 0, 0},
         {"--time", CLI_TEXT, &o->time, "TIME", "train for so long in all: 90s, 45m, 1.5h; with --steps, in one go", 0,
          0},
         {"--steps", CLI_U32, &o->steps, "N", "steps of the whole schedule (what --time allows)", 1, 1e9},
         {"--seed", CLI_TEXT, &o->seed, "S", "as --set seed=S", 0, 0},
         {"-j", CLI_U32, &o->threads, "THREADS", "threads; 0: all cores (0)", 0, 64},
         {"--resume", CLI_FLAG, &o->resume, "", "go on from the checkpoint beside -o", 0, 0},
         {"--init", CLI_TEXT, &o->init, "MODEL.gguf",
          "begin with this model's weights (and tokenizer); again with --resume", 0, 0},
         {"--add-lookup", CLI_TEXT, &o->add_lookup, "BLOCKS", "with --init: new lookup layers that change nothing yet",
          0, 0},
         {"--export-every", CLI_U32, &o->export_every, "N", "write the model every N steps, too (at the end)", 1, 1e9},
         {"--name", CLI_TEXT, &o->name, "TEXT", "general.name of the model", 0, 0},
         {"--description", CLI_TEXT, &o->description, "TEXT", "general.description: what it was trained on, for example",
          0, 0},
         {"--kernels", CLI_TEXT, &o->kernels, "NAME", "plain, avx2, avx512, bf16 or amx (the fastest here)", 0, 0},
         {"-o", CLI_TEXT, &o->out, "MODEL.gguf", "the model; MODEL.ckpt, .csv and .svg appear beside it", 0, 0},
         {"--check", CLI_TEXT, &o->check, "MODEL.gguf", "print the loss on a fixed batch before each step, in F32", 0,
          0},
         {"--batch", CLI_TEXT, &o->batch, "IDS.i32", "the batch: B sequences of T token IDs, little-endian int32", 0, 0},
         {"--shape", CLI_TEXT, &o->shape, "B,T", "its shape", 0, 0},
         {"--gradients", CLI_TEXT, &o->gradients, "OUT.gguf", "write the gradient before the first step", 0, 0},
         {0},
    };
    const cli_program program = {
        "l3-train",
        "--tokenizer TOK.gguf [--alloc ALLOC.gguf] --data FILE... [--preset P] [--time T] [--steps N] -o MODEL.gguf\n"
        "       l3-train --resume -o MODEL.gguf ...\n"
        "       l3-train --check MODEL.gguf --batch IDS.i32 --shape B,T [--gradients OUT.gguf] [--steps N]",
        "Trains a model from text. Ctrl-C and --time end a run cleanly, with a checkpoint that --resume goes on from:\n"
        "bit for bit, with --steps and the same -j.",
        list};
    const int n = cli_parse(&program, argc, argv, operands, 256);
    for (int i = 0; i < n; i++) cli_append(&o->data, operands[i]);
    if (o->settings) {
        train_print_settings();
        for (int i = 0; i < TRAIN_N_PRESETS; i++)
            printf("\n--preset %s, %s:\n%s", train_presets[i].name, train_presets[i].about, train_presets[i].lines);
        cli_end_stdout();
        exit(0);
    }
    if (o->check) {
        if (!o->batch || !o->shape) cli_usage("--check needs --batch IDS.i32 and --shape B,T");
        return;
    }
    if (!o->out) cli_usage("-o MODEL.gguf is expected: where the model goes");
    if (!o->has_data || o->data.n == 0) cli_usage("--data FILE... is expected: texts to train on");
    if (!o->tokenizer && !o->init)
        cli_usage("--tokenizer TOK.gguf is expected (l3-tokenizer makes one), or --init MODEL.gguf");
    if (o->add_lookup && !o->init)
        cli_usage("--add-lookup needs --init MODEL.gguf: the model that layers are added to");
    if (!o->steps && !o->time && !o->config && !o->resume && o->sets.n == 0)
        cli_usage("--time T or --steps N is expected: how long to train");
}

/* "90s", "45m", "1.5h", seconds without a letter; 0 for NULL. */
static double seconds_of(const char *s) {
    char   number[32];
    double value = 0;
    if (!s) return 0;
    const size_t n      = strlen(s);
    const char   letter = n ? s[n - 1] : '\0';
    const double unit   = letter == 'h' ? 3600 : letter == 'm' ? 60 : 1;
    const size_t digits = letter == 'h' || letter == 'm' || letter == 's' ? n - 1 : n;
    if (digits >= sizeof number) cli_usage("--time %s: a time as 90s, 45m or 1.5h is expected", s);
    memcpy(number, s, digits);
    number[digits] = '\0';
    if (!cli_real(number, &value) || value <= 0) cli_usage("--time %s: a time as 90s, 45m or 1.5h is expected", s);
    return value * unit;
}

/* Defaults, preset, file, --set, in this order. */
static void configure(const options *o, train_config *c) {
    if (o->preset) train_set_preset(c, o->preset);
    if (o->config) {
        size_t n;
        char  *text = cli_read_file(o->config, &n);
        train_set_lines(c, text, n, o->config);
        free(text);
    }
    for (size_t i = 0; i < o->sets.n; i++) train_set_line(c, o->sets.items[i], strlen(o->sets.items[i]), "--set");
    if (o->seed) train_set(c, "seed", 4, o->seed, "--seed");
    if (o->steps) c->steps = o->steps;
}

/* "model.gguf" and ".csv": "model.csv", in malloc memory. */
static char *beside(const char *path, const char *suffix) {
    const size_t n = strlen(path), stem = n > 5 && strcmp(path + n - 5, ".gguf") == 0 ? n - 5 : n;
    char        *s = (char *)cli_malloc(stem + strlen(suffix) + 1);
    memcpy(s, path, stem);
    strcpy(s + stem, suffix);
    return s;
}

typedef struct threads {
    uint32_t n;
    l3_jobs  jobs;
#ifdef L3_THREADS
    l3_pool *pool; /* the block, too */
#endif
} threads;

/* n 0: one for every core. */
static void start_threads(threads *t, uint32_t n) {
    memset(t, 0, sizeof *t);
    t->n = 1;
#ifdef L3_THREADS
    l3_error err;
    memset(&err, 0, sizeof err);
    t->n = n ? n : cli_cores() < L3_MAX_THREADS ? cli_cores() : L3_MAX_THREADS;
    if (t->n == 1) return;
    void *block = cli_aligned(l3_pool_size(), "the thread pool");
    cli_check(l3_pool_init(&t->pool, t->n, block, l3_pool_size(), &err), "threads", &err);
    t->jobs = l3_pool_jobs(t->pool);
#else
    (void)n;
#endif
}

static void stop_threads(threads *t) {
#ifdef L3_THREADS
    if (!t->pool) return;
    l3_pool_free(t->pool);
    cli_free_aligned(t->pool);
#else
    (void)t;
#endif
}

static const train_ops *find_ops(const char *name) {
    const train_ops *ops = train_ops_find(name ? name : "");
    if (!ops) cli_fail("--kernels %s: not on this machine; plain works everywhere", name);
    return ops;
}

/* >>data ------------------------------------------------------------------------------------------------------------- */

/* Training text as windows of `t` tokens, each behind a BOS: what a model sees when it is used, at every place of the text. */
typedef struct windows {
    const token_store *store;
    uint64_t           n, windows; /* tokens that are trained on; windows of an epoch */
    uint32_t           t;
    int32_t            bos;
    uint64_t           seed, epoch, shift;
    uint32_t          *order; /* (windows,) of the epoch */
} windows;

static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t state = a * 0x9e3779b97f4a7c15u ^ b;
    return l3_random(&state);
}

static void start_epoch(windows *w, uint64_t epoch) {
    uint64_t state = mix(w->seed, epoch);
    w->epoch       = epoch;
    w->shift       = w->n > (w->windows + 1) * w->t ? l3_random(&state) % w->t : 0;
    for (uint64_t i = 0; i < w->windows; i++) w->order[i] = (uint32_t)i;
    for (uint64_t i = w->windows; i > 1; i--) { /* Fisher and Yates */
        const uint64_t j     = l3_random(&state) % i;
        const uint32_t other = w->order[j];
        w->order[j]          = w->order[i - 1];
        w->order[i - 1]      = other;
    }
}

static void open_windows(windows *w, const token_store *store, uint64_t n, uint32_t t, int32_t bos, uint64_t seed) {
    memset(w, 0, sizeof *w);
    w->store   = store;
    w->n       = n;
    w->t       = t;
    w->bos     = bos;
    w->seed    = seed;
    w->windows = n / t > 1 ? n / t - 1 : n / t;
    if (w->windows == 0) cli_fail("the text has %" PRIu64 " tokens to train on; one sequence alone is %u", n, t);
    if (w->windows > UINT32_MAX) cli_fail("the text has more than 2^32 sequences");
    w->order = (uint32_t *)cli_malloc(w->windows * sizeof *w->order);
    start_epoch(w, 0);
}

/* Sequence `index` of the whole run. */
static void window(windows *w, uint64_t index, int32_t *inputs, int32_t *targets) {
    if (index / w->windows != w->epoch) start_epoch(w, index / w->windows);
    const uint64_t at = w->shift + (uint64_t)w->order[index % w->windows] * w->t;
    inputs[0]         = w->bos;
    for (uint32_t i = 0; i < w->t; i++) {
        targets[i] = store_token(w->store, at + i);
        if (i + 1 < w->t) inputs[i + 1] = targets[i];
    }
}

/* Tells texts apart: a hash of tokens from all over it. */
static uint64_t data_hash(const token_store *s) {
    uint64_t hash = s->n, step = s->n / 65536 + 1;
    for (uint64_t i = 0; i < s->n; i += step) hash = mix(hash, (uint64_t)store_token(s, i));
    return hash;
}

/* >>validation ------------------------------------------------------------------------------------------------------- */

/* Held-out windows as l3-eval cuts them: BOS and up to t - 1 tokens of one document, every token predicted. */
typedef struct held_out {
    int32_t *inputs, *targets; /* (sequences, t) */
    uint32_t sequences, t;
    uint64_t tokens;
} held_out;

static void add_window(held_out *h, int32_t bos, const int32_t *ids, uint32_t n) {
    h->inputs   = (int32_t *)cli_grow(h->inputs, h->sequences, h->t * sizeof *h->inputs);
    h->targets  = (int32_t *)cli_grow(h->targets, h->sequences, h->t * sizeof *h->targets);
    int32_t *in = h->inputs + (size_t)h->sequences * h->t, *out = h->targets + (size_t)h->sequences * h->t;
    for (uint32_t i = 0; i < h->t; i++) {
        in[i]  = i == 0 ? bos : i < n ? ids[i - 1] : bos;
        out[i] = i < n ? ids[i] : -1;
    }
    h->sequences++;
    h->tokens += n;
}

static void cut_windows(held_out *h, const token_store *s, uint64_t from, uint64_t end, uint64_t most,
                        const l3_info *info) {
    int32_t *ids = (int32_t *)cli_malloc((uint64_t)h->t * sizeof *ids);
    uint32_t n   = 0;
    for (uint64_t i = from; i < end && h->tokens < most; i++) {
        const int32_t id     = store_token(s, i);
        const bool    border = id == info->bos || id == info->eos;
        if (!border) ids[n++] = id;
        if (n && (border || n == h->t - 1)) {
            add_window(h, info->bos, ids, n);
            n = 0;
        }
    }
    if (n && h->tokens < most) add_window(h, info->bos, ids, n);
    free(ids);
}

static double validate(train_trainer *r, const held_out *h) {
    return train_gradients(r, h->inputs, h->targets, h->sequences, false, 0).loss;
}

/* >>sample ----------------------------------------------------------------------------------------------------------- */

/* Logits after the last of n tokens, by the trainer's own forward pass. */
static const float *next_logits(train_trainer *r, const int32_t *ids, uint32_t n) {
    train_model *m = r->m;
    train_slot  *s = &r->slot[0];
    s->n = s->t = n;
    s->tokens   = ids;
    s->noise    = 0;
    train_forward(m, s);
    m->ops->rms_norm(1, m->shape.dim, s->stream + (size_t)(n - 1) * m->shape.dim, m->w + m->output_norm,
                     m->shape.rms_epsilon, s->head, s->head_rstd);
    train_linear(m, s, 1, m->shape.dim, m->shape.vocab, s->head, m->w + m->output, m->shape.dim, false, s->logits);
    return s->logits;
}

/* Writes `count` tokens after BOS to stdout, in one line. */
static void print_sample(train_trainer *r, const cli_engine *tokenizer, uint32_t count, uint64_t seed) {
    const uint32_t vocab = r->m->shape.vocab, room = r->t;
    l3_sampling    sampling = l3_sampling_defaults();
    l3_sampler    *sampler;
    l3_error       err;
    cli_tokenizer  text;
    int32_t       *ids = (int32_t *)cli_malloc((uint64_t)room * sizeof *ids);
    sampling.seed      = seed;
    const size_t size  = l3_sampler_size(&sampling, vocab);
    void        *block = cli_aligned(size, "the sampler");
    memset(&err, 0, sizeof err);
    cli_check(l3_sampler_init(&sampler, &sampling, vocab, block, size, &err), "sampler", &err);
    cli_tokenizer_open(&text, tokenizer->model, 0);
    ids[0] = tokenizer->info->bos;
    printf("  ");
    for (uint32_t n = 1; n < room && n <= count; n++) {
        const char *bytes;
        size_t      length;
        if (l3_sample(sampler, next_logits(r, ids, n), &ids[n], &err) != L3_OK) break;
        if (ids[n] == tokenizer->info->eos || ids[n] == tokenizer->info->bos) break;
        if (l3_detokenize(text.tokenizer, ids[n], &bytes, &length, &err) != L3_OK) break;
        for (size_t i = 0; i < length; i++)
            putchar((unsigned char)bytes[i] < 0x20 || bytes[i] == 0x7f ? ' ' : bytes[i]);
    }
    putchar('\n');
    cli_tokenizer_close(&text);
    cli_free_aligned(block);
    free(ids);
}

/* >>check ------------------------------------------------------------------------------------------------------------ */

/* B sequences of T token IDs become inputs and targets (B, T - 1). */
static void read_batch(const options *o, uint32_t vocab, uint32_t *sequences, uint32_t *t, int32_t **inputs,
                       int32_t **targets) {
    uint32_t shape[2];
    size_t   length;
    if (cli_list("--shape", o->shape, 1, 1u << 20, shape, 2) != 2 || shape[1] < 2)
        cli_usage("--shape %s: B,T is expected, T at least 2", o->shape);
    char *bytes = cli_read_file(o->batch, &length);
    if (length != (uint64_t)shape[0] * shape[1] * 4)
        cli_fail("%s: %zu bytes; %u sequences of %u token IDs are %" PRIu64, o->batch, length, shape[0], shape[1],
                 (uint64_t)shape[0] * shape[1] * 4);
    *sequences = shape[0];
    *t         = shape[1] - 1;
    *inputs    = (int32_t *)cli_malloc(length);
    *targets   = (int32_t *)cli_malloc(length);
    for (size_t b = 0; b < shape[0]; b++)
        for (size_t i = 0; i < shape[1]; i++) {
            const void   *p  = bytes + 4 * (b * shape[1] + i);
            const int32_t id = (int32_t)shard_get((const unsigned char *)p, 4);
            if (id < 0 || (uint32_t)id >= vocab)
                cli_fail("%s: token ID %d is outside the vocabulary of %u", o->batch, id, vocab);
            if (i < *t) (*inputs)[b * *t + i] = id;
            if (i > 0) (*targets)[b * *t + i - 1] = id;
        }
    free(bytes);
}

/* Weights of a model file. `add`: new lookup layers, in a shape that has them already; they begin as no-ops. */
static void load_weights(train_model *m, const cli_engine *e, uint64_t seed, bool fresh_lookups) {
    bool *loaded = (bool *)cli_malloc(m->n_params + m->shape.lookups);
    train_load(m, e, loaded);
    for (size_t i = 0; i < m->n_params + m->shape.lookups; i++) {
        if (loaded[i]) continue;
        const bool of_lookup = i >= m->n_params || m->params[i].of_lookup;
        if (!of_lookup || !fresh_lookups)
            cli_fail("%s: tensor %s is missing", e->path, i < m->n_params ? m->params[i].name : "lookup_rows");
        train_init(m, i, seed);
        if (i < m->n_params && strstr(m->params[i].name, ".lookup_mix.")) /* no-op until it has learned something */
            memset(m->w + m->params[i].at, 0, m->params[i].n * sizeof(real));
    }
    free(loaded);
}

static void check(const options *o) {
    cli_engine    e;
    int32_t      *offsets, *inputs, *targets;
    uint32_t      sequences, t;
    threads       pool;
    train_model   m;
    train_trainer r;
    train_config  c;
    train_defaults(&c);
    configure(o, &c);
    cli_open_model(&e, o->check, 1);
    train_shape s = train_shape_of_model(&e, &offsets);
    read_batch(o, s.vocab, &sequences, &t, &inputs, &targets);
    if (t > s.context) cli_fail("--shape %s: the model's context is %u", o->shape, s.context);
    s.context            = t;
    const train_ops *ops = find_ops(o->kernels);
    start_threads(&pool, o->threads);
    if (train_rounds(ops)) ops = find_ops("avx512"); /* F32 only */
    train_model_new(&m, &s, offsets, true, ops);
    load_weights(&m, &e, 0, false);
    train_trainer_new(&r, &m, pool.n, (sequences + pool.n - 1) / pool.n, t, sequences, pool.jobs, c.freeze > 0);
    for (uint32_t step = 0; step < (c.steps > 0 ? (uint32_t)c.steps : 1); step++) {
        const train_adam   adam   = {(real)c.beta1, (real)c.beta2, (real)c.eps};
        const train_result result = train_gradients(&r, inputs, targets, sequences, true, 0);
        if (!cli_finite(result.loss)) cli_fail("%s: the loss is no finite number at step %u", o->check, step);
        printf("loss %.9f\n", result.loss);
        if (step == 0) printf("grad_norm %.9f\n", result.grad_norm);
        if (step == 0 && o->gradients) train_export_gradients(&r, o->gradients);
        train_update(&r, result.grad_norm, c.clip, c.lr, c.lr * c.rows_lr, c.weight_decay, adam);
    }
    train_trainer_free(&r);
    train_model_free(&m);
    stop_threads(&pool);
    cli_close(&e);
    free(offsets), free(inputs), free(targets);
}

/* >>run -------------------------------------------------------------------------------------------------------------- */

typedef struct run {
    const options   *o;
    train_config     config;
    cli_engine       tokenizer, init; /* init: only with --init */
    token_store      data, valid;
    windows          windows;
    held_out         held_out;
    train_model      model;
    train_trainer    trainer;
    train_checkpoint checkpoint;
    train_state      state;
    train_log        log;
    char            *checkpoint_path, *csv_path, *svg_path;
    threads          threads;
    uint32_t         batch;
    int32_t         *inputs, *targets; /* (batch, t) */
    double           limit;            /* seconds of --time; 0: none */
    double           started, earlier; /* clock when this process began to train; seconds trained before it */
    double           last_valid;
} run;

static void open_tokenizer(run *x) {
    const char *path = x->o->tokenizer ? x->o->tokenizer : x->o->init;
    cli_open_file(&x->tokenizer, path, 1);
    if (!x->tokenizer.info->has_tokenizer) cli_fail("%s: there is no tokenizer in it that this program knows", path);
    if (x->tokenizer.info->bos < 0) cli_fail("%s: the tokenizer has no BOS token", path);
}

/* Rows of every token, from --alloc, in malloc memory. */
static int32_t *read_allocation(const run *x, train_shape *s) {
    cli_engine e;
    if (!x->o->alloc) cli_usage("--alloc ALLOC.gguf is expected for lookup layers (l3-alloc makes one)");
    cli_open_file(&e, x->o->alloc, 1);
    const l3_lookup *k = l3_model_lookup(e.model, 0, NULL);
    if (!k) cli_fail("%s: there is no allocation in it", x->o->alloc);
    if (k->vocab != s->vocab)
        cli_fail("%s: the allocation is for a vocabulary of %u, the tokenizer has %u", x->o->alloc, k->vocab, s->vocab);
    allocation_check_tokenizer(&e, x->tokenizer.model);
    s->row_count     = k->row_count;
    s->max_rows      = k->max_rows;
    int32_t *offsets = cli_offsets(k);
    cli_close(&e);
    return offsets;
}

/* The shape, and offsets in malloc memory (NULL without lookup layers). */
static train_shape find_shape(run *x, int32_t **offsets) {
    const uint32_t vocab = x->tokenizer.info->vocab;
    train_shape    s     = train_shape_of(&x->config, vocab);
    *offsets             = NULL;
    if (x->o->init) {
        cli_open_model(&x->init, x->o->init, 1);
        const train_shape settings = s;
        s                          = train_shape_of_model(&x->init, offsets);
        if (s.vocab != vocab) cli_fail("%s: a vocabulary of %u, the tokenizer has %u", x->o->init, s.vocab, vocab);
        s.dropout = settings.dropout;
        if (x->config.context < s.context) s.context = (uint32_t)x->config.context;
        if (!x->o->add_lookup) return s;
        if (s.lookups) cli_fail("%s: it has lookup layers already; --add-lookup is for dense models", x->o->init);
        snprintf(x->config.lookup, sizeof x->config.lookup, "%s", x->o->add_lookup);
        x->config.dim   = s.dim; /* for the checks of what lookup layers need */
        x->config.heads = s.heads, x->config.head_dim = s.head_dim, x->config.kv_heads = s.kv_heads;
        x->config.blocks    = s.blocks;
        const train_shape l = train_shape_of(&x->config, vocab);
        s.lookups           = l.lookups;
        memcpy(s.lookup_blocks, l.lookup_blocks, sizeof s.lookup_blocks);
        s.value_length = l.value_length, s.up_length = l.up_length, s.has_up = l.has_up, s.tied = l.tied;
        s.query_norm = l.query_norm, s.query_norm_weight = l.query_norm_weight, s.key_norm = l.key_norm;
        s.layer_norm = l.layer_norm, s.up_norm_weight = l.up_norm_weight, s.up_norm_bias = l.up_norm_bias;
        s.residual = l.residual, s.score_scale = l.score_scale, s.norm_epsilon = l.norm_epsilon;
        if (!s.residual) cli_usage("residual=0: a lookup layer without it cannot begin as a no-op");
    }
    if (s.lookups && !*offsets)
        *offsets =
            x->o->resume ? train_checkpoint_offsets(&x->checkpoint, s.lookup_blocks[0], vocab) : read_allocation(x, &s);
    if (x->o->resume) s.row_count = x->checkpoint.row_count, s.max_rows = x->checkpoint.max_rows;
    return s;
}

/* Settings: those of the checkpoint when resuming, then what the command line says, which must not change the shape. */
static void settle(run *x) {
    train_config saved;
    train_defaults(&x->config);
    if (x->o->resume) {
        train_checkpoint_open(&x->checkpoint, x->checkpoint_path);
        train_set_lines(&x->config, x->checkpoint.settings, strlen(x->checkpoint.settings), x->checkpoint_path);
    }
    saved = x->config;
    configure(x->o, &x->config);
    for (int i = 0; x->o->resume && i < TRAIN_N_SETTINGS; i++) {
        const train_setting *s    = &train_settings[i];
        const bool           same = s->kind == KIND_list ? strcmp(saved.lookup, x->config.lookup) == 0
                                                         : *train_value(&saved, s) == *train_value(&x->config, s);
        if (!same && s->group == SHAPE && !x->o->add_lookup)
            cli_fail("%s: %s is another than the checkpoint's; a run is resumed with the shape it began with",
                     x->checkpoint_path, s->key);
    }
    x->limit = seconds_of(x->o->time);
    if (x->config.steps == 0 && x->limit == 0) cli_usage("--time T or --steps N is expected: how long to train");
}

static void open_data(run *x, const train_shape *s) {
    const l3_info *info = x->tokenizer.info;
    const uint64_t most = (uint64_t)x->config.eval_tokens;
    store_open(&x->data, x->tokenizer.model, x->o->data.items, x->o->data.n, x->o->lines);
    uint64_t n    = x->data.n;
    x->held_out.t = s->context;
    if (x->o->valid) {
        store_open(&x->valid, x->tokenizer.model, &x->o->valid, 1, x->o->lines);
        cut_windows(&x->held_out, &x->valid, 0, x->valid.n, most, info);
    } else {
        const uint64_t share = n / 100 < most ? n / 100 : most;
        n -= share > s->context ? share : s->context < n / 2 ? s->context : n / 2;
        cut_windows(&x->held_out, &x->data, n, x->data.n, most, info);
    }
    if (x->held_out.sequences == 0) cli_fail("there is no text to validate on; give more, or --valid FILE");
    open_windows(&x->windows, &x->data, n, s->context, info->bos, (uint64_t)x->config.seed);
    x->state.data_tokens = n;
    x->state.data_hash   = data_hash(&x->data);
}

/* Row counts of a token, weighted by how often the text has it. */
static double mean_rows(const run *x, const train_lookup *k) {
    const uint64_t step = x->data.n / 1000000 + 1;
    double         sum = 0, count = 0;
    for (uint64_t i = 0; i < x->data.n; i += step, count++) {
        const int32_t id = store_token(&x->data, i);
        sum += k->offsets[id + 1] - k->offsets[id];
    }
    return sum / count;
}

/* Room for a slot's probabilities, for what the text asks of a lookup layer on average and a quarter more. */
static void reserve(run *x) {
    train_model *m = &x->model;
    for (uint32_t i = 0; i < m->shape.lookups; i++) {
        const double mean = mean_rows(x, &m->lookup[i]);
        for (uint32_t j = 0; j < x->trainer.slots; j++) {
            train_looked *y = &x->trainer.slot[j].looked[i];
            y->p_room       = (size_t)(1.25 * mean * x->trainer.per_slot * x->trainer.t) + 4096;
            y->p            = train_reals(m, y->p_room, 1);
            y->dp           = train_reals(m, y->p_room, 1);
        }
    }
}

static void build(run *x, const train_shape *s, const int32_t *offsets) {
    const train_ops *ops = find_ops(x->o->kernels);
    start_threads(&x->threads, x->o->threads);
    const uint32_t n = x->threads.n;
    uint32_t       per_slot;
    x->batch = (uint32_t)x->config.batch;
    per_slot = x->config.micro_batch > 0 ? (uint32_t)x->config.micro_batch : 2048 / s->context;
    if (per_slot == 0) per_slot = 1;
    if (per_slot > (x->batch + n - 1) / n) per_slot = (x->batch + n - 1) / n;
    train_model_new(&x->model, s, offsets, true, ops);
    train_trainer_new(&x->trainer, &x->model, n, per_slot, s->context, x->batch, x->threads.jobs, x->config.freeze > 0);
    reserve(x);
    x->inputs  = (int32_t *)train_take(&x->model, (uint64_t)x->batch * s->context, sizeof *x->inputs);
    x->targets = (int32_t *)train_take(&x->model, (uint64_t)x->batch * s->context, sizeof *x->targets);
}

static void begin_weights(run *x) {
    if (x->o->resume) {
        const train_state *s = &x->checkpoint.state;
        if (s->data_tokens != x->state.data_tokens || s->data_hash != x->state.data_hash)
            cli_fail("%s: the run was trained on another text (or another --valid); a run is resumed with what it "
                     "began with",
                     x->checkpoint_path);
        train_checkpoint_load(&x->checkpoint, &x->model);
        train_checkpoint_close(&x->checkpoint);
        x->state        = *s;
        x->trainer.step = s->step;
        x->earlier      = s->seconds;
    } else if (x->o->init) {
        load_weights(&x->model, &x->init, (uint64_t)x->config.seed, x->o->add_lookup != NULL);
    } else {
        train_init_all(&x->model, (uint64_t)x->config.seed);
    }
    if (x->o->init) cli_close(&x->init);
}

static void make_batch(run *x, uint64_t step) {
    const size_t t = x->windows.t;
    for (uint32_t i = 0; i < x->batch; i++)
        window(&x->windows, step * x->batch + i, x->inputs + i * t, x->targets + i * t);
}

/* Parameters: all, those of tables, those that take part in one token with a token's mean number of rows. */
static void count_parameters(const train_model *m, double *all, double *rows, double *active) {
    const train_shape *s = &m->shape;
    *all = *active = *rows = 0;
    for (size_t i = 0; i < m->n_params; i++) {
        const double n = (double)m->params[i].n;
        *all += n;
        if (strcmp(m->params[i].name, "token_embd.weight") == 0 && !s->tied_head) continue;
        *active +=
            s->experts && strstr(m->params[i].name, "ffn_") && m->params[i].rows && !strstr(m->params[i].name, "inp")
                ? n * s->experts_used / s->experts
                : n;
    }
    *rows = (double)s->lookups * s->row_count * train_row_width(s);
    *all += *rows;
    *active += *rows / s->vocab;
}

/* A time for people, in one of two static buffers. */
static const char *duration(double seconds) {
    static char     text[2][32];
    static unsigned next;
    char           *s = text[next++ % 2];
    const double    t = seconds > 0 ? seconds : 0;
    if (t < 100) snprintf(s, sizeof text[0], "%.1f s", t);
    else if (t < 6000) snprintf(s, sizeof text[0], "%.0f min", t / 60);
    else snprintf(s, sizeof text[0], "%d h %02d min", (int)(t / 3600), (int)(t / 60) % 60);
    return s;
}

static double elapsed(const run *x) { return x->earlier + cli_now() - x->started; }

/* How far the schedule has come, 0 ... 1: by steps where their number is given, else by time. */
static double progress(const run *x) {
    const double steps = x->config.steps;
    const double p     = steps > 0 ? (double)x->state.step / steps : elapsed(x) / x->limit;
    return p < 1 ? p : 1;
}

static double learning_rate(const run *x) {
    const train_config *c   = &x->config;
    const double        low = c->lr * c->min_lr, at = (double)x->state.step + 1;
    const double        rate = low + (c->lr - low) * 0.5 * (1 + cos(3.14159265358979 * progress(x)));
    return c->warmup > 0 && at < c->warmup ? rate * at / c->warmup : rate;
}

/* What this run will need, before it starts; a wave of sequences is timed for it. */
static void announce(run *x) {
    const train_shape *s = &x->model.shape;
    double             all, rows, active;
    uint32_t           n = x->trainer.slots * x->trainer.per_slot;
    count_parameters(&x->model, &all, &rows, &active);
    printf("model    %.2f M parameters, %.2f M of them in tables; %.2f M active for a token\n", all * 1e-6, rows * 1e-6,
           active * 1e-6);
    printf("         %u blocks of width %u, %u heads of %u, feed-forward %u, context %u, vocabulary %u", s->blocks,
           s->dim, s->heads, s->head_dim, s->ffn, s->context, s->vocab);
    if (s->lookups) printf("; lookups after %s: %u rows of %u", x->config.lookup, s->row_count, train_row_width(s));
    if (s->experts) printf("; %u experts, %u used", s->experts, s->experts_used);
    printf("\ntext     %.2f M tokens of %.2f bytes; %" PRIu64 " more to validate on\n", (double)x->windows.n * 1e-6,
           (double)x->data.text_bytes / (double)x->data.n, x->held_out.tokens);
    if (n > x->batch) n = x->batch;
    make_batch(x, x->state.step);
    train_gradients(&x->trainer, x->inputs, x->targets, n, true, 0); /* the first one also touches the memory */
    const double start = cli_now();
    train_gradients(&x->trainer, x->inputs, x->targets, n, true, 0);
    const double step   = (cli_now() - start) * x->batch / n;
    const double tokens = (double)x->batch * s->context;
    const double steps  = x->config.steps > 0 ? x->config.steps : x->limit / step;
    const double store  = x->data.memory ? (double)x->data.n * x->data.width : 0;
    printf("memory   %s for the model, its gradients, moments and activations; %s for the text\n",
           cli_bytes((double)x->model.bytes), cli_bytes(store + 4 * (double)x->windows.windows));
    printf("time     %s a step of %.0f tokens with %s on %u thread%s: about %s for %.0f steps, %.2f times through the "
           "text\n",
           duration(step), tokens, x->model.ops->name, x->threads.n, x->threads.n == 1 ? "" : "s",
           duration((steps - (double)x->state.step) * step), steps, steps * tokens / (double)x->windows.n);
    fflush(stdout);
}

static void about(const run *x, train_about *a, char *settings) {
    a->name        = x->o->name;
    a->description = x->o->description;
    a->settings    = settings;
    a->steps       = x->state.step;
    a->tokens      = x->state.step * x->batch * x->windows.t;
    a->seconds     = elapsed(x);
    a->valid_loss  = x->last_valid;
}

static void export_model(run *x) {
    train_about a;
    char       *settings = train_config_text(&x->config);
    about(x, &a, settings);
    if (!x->model.shape.experts) train_export(&x->model, x->o->out, &x->tokenizer, &a);
    free(settings);
}

static void save(run *x) {
    x->state.seconds = elapsed(x);
    train_save(&x->trainer, &x->config, &x->state, x->checkpoint_path);
    train_log_flush(&x->log);
}

/* The line that is overwritten on a terminal, or written every ten seconds elsewhere. */
static void report(const run *x, double loss, double tokens_per_second) {
    static double last;
    const double  now = cli_now(), wait = cli_is_terminal(stderr) ? 0.2 : 10, p = progress(x), done = elapsed(x);
    if (now - last < wait) return;
    last              = now;
    const double left = x->limit > 0 && x->config.steps == 0
                            ? x->limit - done
                            : (x->config.steps - (double)x->state.step) * x->batch * x->windows.t / tokens_per_second;
    fprintf(stderr, "%sstep %" PRIu64 "  %.1f%%  loss %.4f  %.0f tok/s  %s left%s", cli_is_terminal(stderr) ? "\r" : "",
            x->state.step, 100 * p, loss, tokens_per_second, duration(left), cli_is_terminal(stderr) ? "   " : "\n");
}

/* True when the run should end for want of improvement. */
static bool evaluate(run *x) {
    x->last_valid = validate(&x->trainer, &x->held_out);
    if (cli_is_terminal(stderr)) fputc('\n', stderr);
    printf("step %" PRIu64 "  validation loss %.4f, perplexity %.3f\n", x->state.step, x->last_valid,
           exp(x->last_valid));
    if (x->config.sample > 0)
        print_sample(&x->trainer, &x->tokenizer, (uint32_t)x->config.sample,
                     mix((uint64_t)x->config.seed, x->state.step));
    fflush(stdout);
    if (x->last_valid < x->state.best_loss) {
        x->state.best_loss       = x->last_valid;
        x->state.bad_validations = 0;
        if (x->config.patience > 0) export_model(x); /* the best one is what stays */
        return false;
    }
    x->state.bad_validations++;
    return x->config.patience > 0 && (double)x->state.bad_validations >= x->config.patience;
}

/* One step; its loss. */
static train_result step(run *x) {
    const train_config *c    = &x->config;
    const train_adam    adam = {(real)c->beta1, (real)c->beta2, (real)c->eps};
    const double        lr   = learning_rate(x);
    make_batch(x, x->state.step);
    const train_result result = train_gradients(&x->trainer, x->inputs, x->targets, x->batch, true,
                                                c->dropout > 0 ? mix((uint64_t)c->seed + 77, x->state.step) | 1 : 0);
    if (!cli_finite(result.loss) || !cli_finite(result.grad_norm))
        cli_fail("step %" PRIu64
                 ": the loss or its gradient is no finite number (loss %g, gradient norm %g); a lower lr helps. "
                 "The last good checkpoint is as it was: %s",
                 x->state.step + 1, result.loss, result.grad_norm, x->checkpoint_path);
    train_update(&x->trainer, result.grad_norm, c->clip, lr, lr * c->rows_lr, c->weight_decay, adam);
    x->state.step++;
    return result;
}

static void train(run *x) {
    const train_config *c   = &x->config;
    double              sum = 0, count = 0, saved = cli_now(), logged = cli_now();
    const train_line   *before = x->log.n > 0 ? &x->log.lines[x->log.n - 1] : NULL; /* of the run that is resumed */
    bool                stop = false, evaluated = before && before->step == x->state.step && cli_finite(before->valid_loss);
    if (evaluated) x->last_valid = before->valid_loss; /* perhaps there is nothing left to do */
    x->started           = cli_now();
    cli_finishes_writing = true; /* Ctrl-C ends the loop, wherever it comes: curves, models and checkpoints are whole */
    while (!stop && !cli_stopped && progress(x) < 1 &&
           (x->limit == 0 || elapsed(x) - (c->steps > 0 ? x->earlier : 0) < x->limit)) {
        const double       lr = learning_rate(x);
        const train_result r  = step(x);
        evaluated             = false;
        sum += r.loss, count++;
        const double speed = count * x->batch * x->windows.t / (cli_now() - logged);
        report(x, sum / count, speed);
        if (x->state.step % (uint64_t)c->eval_every == 0) stop = evaluate(x), evaluated = true;
        if (evaluated || x->state.step % (uint64_t)c->log_every == 0) {
            train_log_add(&x->log, (train_line){x->state.step, x->state.step * x->batch * x->windows.t, elapsed(x), lr,
                                                sum / count, r.grad_norm, speed, evaluated ? x->last_valid : NAN});
            sum = count = 0;
            logged      = cli_now();
        }
        if (evaluated) train_log_draw(&x->log, x->svg_path, x->o->name ? x->o->name : x->o->out);
        if (x->o->export_every && x->state.step % x->o->export_every == 0) export_model(x);
        if (cli_now() - saved > 60 * c->save_minutes) save(x), saved = cli_now();
    }
    const bool interrupted = cli_stopped != 0;
    if (!evaluated) {
        evaluate(x);
        train_log_add(&x->log, (train_line){x->state.step, x->state.step * x->batch * x->windows.t, elapsed(x),
                                            learning_rate(x), count > 0 ? sum / count : NAN, NAN, NAN, x->last_valid});
    }
    train_log_draw(&x->log, x->svg_path, x->o->name ? x->o->name : x->o->out);
    save(x);
    if (c->patience == 0) export_model(x);
    const double p = progress(x);
    printf("%s after %" PRIu64 " steps, %s: validation loss %.4f, perplexity %.3f\n",
           interrupted      ? "stopped"
           : p < 1 && !stop ? "out of time"
           : stop           ? "no more improvement"
                            : "done",
           x->state.step, duration(elapsed(x)), x->last_valid, exp(x->last_valid));
    if (x->model.shape.experts) printf("models with experts are for comparison alone: none is written\n");
    else printf("%s written; to go on: --resume, from %s\n", x->o->out, x->checkpoint_path);
    printf("peak memory %s\n", cli_bytes((double)cli_peak_rss()));
}

static void close_run(run *x) {
    train_trainer_free(&x->trainer);
    train_model_free(&x->model);
    stop_threads(&x->threads);
    cli_free_aligned(x->inputs);
    cli_free_aligned(x->targets);
    train_log_close(&x->log);
    store_close(&x->data);
    if (x->valid.n) store_close(&x->valid);
    cli_close(&x->tokenizer);
    free(x->windows.order);
    free(x->held_out.inputs), free(x->held_out.targets);
    free(x->checkpoint_path), free(x->csv_path), free(x->svg_path);
}

int main(int argc, char **argv) {
    options    o;
    static run x;
    int32_t   *offsets;
    memset(&o, 0, sizeof o);
    parse(&o, argc, argv);
    if (o.check) {
        check(&o);
        cli_end_stdout();
        free(o.sets.items), free(o.data.items);
        return 0;
    }
    x.o               = &o;
    x.checkpoint_path = beside(o.out, ".ckpt");
    x.csv_path        = beside(o.out, ".csv");
    x.svg_path        = beside(o.out, ".svg");
    x.last_valid      = NAN;
    settle(&x);
    open_tokenizer(&x);
    const train_shape s = find_shape(&x, &offsets);
    open_data(&x, &s);
    build(&x, &s, offsets);
    free(offsets);
    x.state.best_loss = INFINITY;
    begin_weights(&x);
    train_log_open(&x.log, x.csv_path, o.resume, x.state.step);
    announce(&x);
    train(&x);
    close_run(&x);
    cli_end_stdout();
    free(o.sets.items), free(o.data.items);
    return 0;
}
