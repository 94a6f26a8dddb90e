/* l3_bench.c - how fast a model is, how much it reads, and how far that is from what the memory allows.
 *
 * Every case prefills a prompt and decodes after it, several times; the median, the least and the most are printed. The
 * memory floor is the time that the same threads take to sum up the mapped file: no decoder that looks at every weight
 * can be faster, so decoding is also given as a share of it. --synthetic makes a model of a real size out of random
 * numbers, in $TMPDIR, removed at the end. */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "cli.h"
#include "gguf_write.h"

enum { LIST = 8, REPETITIONS = 99, SYNTHETIC_CONTEXT = 2048 };

typedef struct shape {
    const char *name;
    uint32_t    dim, blocks, ffn, heads, kv_heads, vocab;
    uint32_t    lookups, rows, k, d_emb; /* rows 0: 4 a token; d_emb 0: keys are the values */
    int         type;                    /* a choice */
} shape;

static const char types[]  = "q8_0|q4_0|f16|bf16|f32";
static const char shapes[] = "1.1B|110M";

static const l3_type tensor_types[] = {L3_Q8_0, L3_Q4_0, L3_F16, L3_BF16, L3_F32};

static const shape known_shapes[] = {
    {"1.1B", 2048, 22, 5632, 32, 4, 32000, 2, 0, 512, 0, 0}, /* as TinyLlama */
    {"110M", 768, 12, 2048, 12, 12, 32000, 2, 0, 512, 0, 0}, /* as stories110M */
};

typedef struct settings {
    int         synthetic; /* a choice; -1: none */
    shape       shape;
    const char *threads, *prompts, *text;
    uint32_t    thread_list[LIST], prompt_list[LIST], n_threads, n_prompts;
    uint32_t    tokens, repetitions;
    bool        json;
    cli_setup   setup;
} settings;

/* Where given, a number replaces the shape's own. */
static void override_shape(shape *s, const shape *given) {
    const uint32_t *from = &given->dim;
    uint32_t       *to   = &s->dim;
    for (size_t i = 0; i < 6; i++)
        if (from[i]) to[i] = from[i];
    if (given->lookups != UINT32_MAX) s->lookups = given->lookups;
    if (given->rows) s->rows = given->rows;
    if (given->k) s->k = given->k;
    s->d_emb = given->d_emb;
    s->type  = given->type;
    if (!s->rows) s->rows = 4 * s->vocab;
}

static void check_shape(const shape *s) {
    if (s->dim % s->heads || s->dim / s->heads % 2) cli_usage("--dim must be an even multiple of --heads");
    if (s->heads % s->kv_heads) cli_usage("--heads must be a multiple of --kv-heads");
    if (s->lookups > s->blocks)
        cli_usage("--lookups: there is one after each of the %" PRIu32 " blocks at most", s->blocks);
    if (s->lookups && (s->rows < s->vocab || s->rows > (uint64_t)s->vocab * s->k || s->rows > INT32_MAX))
        cli_usage("--rows %" PRIu32 ": from one to --k for each of the %" PRIu32 " tokens is right", s->rows, s->vocab);
}

static const char *parse(settings *s, int argc, char **argv) {
    const char *path      = NULL;
    shape       given     = {.lookups = UINT32_MAX};
    cli_option  options[] = {
         {"-j", CLI_TEXT, &s->threads, "THREADS,...", "numbers of threads (what generate would take)", 0, 0},
         {"-p", CLI_TEXT, &s->prompts, "TOKENS,...", "lengths of the prompt (128)", 0, 0},
         {"-n", CLI_U32, &s->tokens, "TOKENS", "tokens to decode after it (64)", 1, 1e6},
         {"-r", CLI_U32, &s->repetitions, "TIMES", "repetitions (3)", 1, REPETITIONS},
         {"--text", CLI_TEXT, &s->text, "FILE", "take the tokens from here (random: the worst for caches)", 0, 0},
         CLI_CONTEXT_OPTION(&s->setup),
         CLI_EXACT_OPTION(&s->setup),
         CLI_SOURCE_OPTION(&s->setup),
         CLI_CACHE_OPTION(&s->setup),
         CLI_KV_OPTION(&s->setup),
         {"--synthetic", CLI_CHOICE, &s->synthetic, shapes, "a random model of this size", 0, 0},
         {"--dim", CLI_U32, &given.dim, "N", "... with this width instead", 1, 1 << 20},
         {"--blocks", CLI_U32, &given.blocks, "N", "... decoder blocks", 1, 1000},
         {"--ffn", CLI_U32, &given.ffn, "N", "... width of the feed-forward", 1, 1 << 20},
         {"--heads", CLI_U32, &given.heads, "N", "... attention heads", 1, 1 << 16},
         {"--kv-heads", CLI_U32, &given.kv_heads, "N", "... heads of keys and values", 1, 1 << 16},
         {"--vocab", CLI_U32, &given.vocab, "N", "... tokens", 1, 1 << 24},
         {"--lookups", CLI_U32, &given.lookups, "N", "lookup layers (2)", 0, 1000},
         {"--rows", CLI_U32, &given.rows, "N", "rows of each (4 a token)", 1, 0},
         {"--k", CLI_U32, &given.k, "N", "rows of a token at most (512)", 1, 0},
         {"--d-emb", CLI_U32, &given.d_emb, "N", "width of values (none: keys are the values)", 1, 1 << 20},
         {"--type", CLI_CHOICE, &given.type, types, "type of weights and rows (q8_0)", 0, 0},
         {"--json", CLI_FLAG, &s->json, "", "print one JSON object", 0, 0},
         {0},
    };
    const cli_program program = {"l3-bench", "MODEL|--synthetic SHAPE [options]",
                                 "Measures prefill and decode, bytes read, and the memory floor.", options};
    s->synthetic              = -1;
    const int n               = cli_parse(&program, argc, argv, &path, 1);
    s->n_threads              = s->threads ? cli_list("-j", s->threads, 0, 64, s->thread_list, LIST) : 1;
    s->n_prompts              = s->prompts ? cli_list("-p", s->prompts, 1, 1 << 24, s->prompt_list, LIST) : 1;
    if (!s->prompts) s->prompt_list[0] = 128;
    if (n + (s->synthetic >= 0) != 1) cli_usage("either a model or --synthetic is expected: l3-bench MODEL [options]");
    if (s->synthetic < 0) return path;
    if (s->text) cli_usage("--text needs a tokenizer, and a synthetic model has none");
    s->shape = known_shapes[s->synthetic];
    override_shape(&s->shape, &given);
    check_shape(&s->shape);
    return NULL;
}

/* ---- a synthetic model ---- */

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

static void write_offsets(gguf_writer *w, const shape *s) {
    uint32_t      *rows  = (uint32_t *)cli_malloc(4 * (uint64_t)s->vocab);
    unsigned char *bytes = (unsigned char *)cli_malloc(4 * ((uint64_t)s->vocab + 1));
    double         low = 0, high = (double)s->vocab * s->k;
    int32_t        at = 0;
    for (int i = 0; i < 100; i++) {
        const double middle = (low + high) / 2;
        if (zipf_rows(s, middle, rows) <= s->rows) low = middle;
        else high = middle;
    }
    uint64_t left = s->rows - zipf_rows(s, low, rows);
    for (uint32_t t = 0; left; t = (t + 1) % s->vocab)
        if (rows[t] < s->k) rows[t]++, left--;
    for (uint32_t t = 0; t < s->vocab; t++) {
        l3_pack_i32(&at, 1, bytes + 4 * (size_t)t);
        at += (int32_t)rows[t];
    }
    l3_pack_i32(&at, 1, bytes + 4 * (size_t)s->vocab);
    gguf_data(w, bytes, 4 * ((size_t)s->vocab + 1));
    free(bytes);
    free(rows);
}

static uint32_t lookup_block(const shape *s, uint32_t i) { return (i + 1) * s->blocks / (s->lookups + 1); }
static uint32_t value_length(const shape *s) { return s->d_emb ? s->d_emb : s->dim; }

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
    gguf_string(w, "tokenizer.ggml.model", "no_vocab");
    write_number(w, a, "vocab_size", s->vocab);
    write_number(w, a, "context_length", SYNTHETIC_CONTEXT);
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
    gguf_u32(w, "l3.lookup.up_length", 2 * s->dim);
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
    else if (type == L3_I32) write_offsets(w, s);
    else if (rows == 0) write_ones(w, cols);
    else write_random(w, type, cols, rows, state);
}

static void each_lookup_tensor(gguf_writer *w, const shape *s, uint64_t *state, uint32_t b) {
    const l3_type  type = tensor_types[s->type];
    const uint32_t d = s->dim, up = 2 * d;
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

/* The path of a new model, which is removed when the program ends. */
static const char *write_synthetic(const shape *s) {
    static char              path[1024];
    static const char *const variables[] = {"TMPDIR", "TMP", "TEMP"};
    const char              *folder      = "/tmp";
    gguf_writer              w;
    uint64_t                 state = 1;
    for (size_t i = 3; i-- > 0;) folder = getenv(variables[i]) && *getenv(variables[i]) ? getenv(variables[i]) : folder;
    snprintf(path, sizeof path, "%s/l3-bench-%" PRIu64 ".gguf", folder, cli_process());
    fprintf(stderr, "writing %s\n", path);
    gguf_begin(&w, path);
    write_keys(&w, s);
    each_model_tensor(&w, s, NULL);
    gguf_begin_data(&w);
    each_model_tensor(&w, s, &state);
    gguf_end(&w);
    cli_temporary = (char *)cli_malloc(strlen(path) + 1);
    memcpy(cli_temporary, path, strlen(path) + 1);
    return path;
}

/* ---- the memory floor ---- */

typedef struct floor_job {
    const uint64_t *words;
    uint64_t        n;
    uint32_t        pieces;
    uint64_t        sums[256];
} floor_job;

/* Eight sums side by side, so that adding never is what takes the time. */
static void sum_piece(void *arg, uint32_t piece) {
    floor_job      *job = (floor_job *)arg;
    const uint64_t *p   = job->words + job->n / 8 * piece / job->pieces * 8;
    const uint64_t *end = job->words + job->n / 8 * (piece + 1) / job->pieces * 8;
    uint64_t        a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
    for (; p < end; p += 8) {
        a += p[0], b += p[1], c += p[2], d += p[3];
        e += p[4], f += p[5], g += p[6], h += p[7];
    }
    job->sums[piece] = a + b + c + d + e + f + g + h;
}

/* Bytes a second, the best of a few passes over at least 64 MB. */
static double measure_floor(const cli_engine *e, const l3_file *file) {
    floor_job      job   = {(const uint64_t *)file->mapping, file->source.size / 8, 1, {0}};
    const l3_jobs *jobs  = &e->config.work.jobs;
    const int      times = (int)((64u << 20) / file->source.size) + 1;
    double         best  = 0;
    if (!file->mapping) return 0;
    if (jobs->run) job.pieces = 4 * jobs->width < 256 ? 4 * jobs->width : 256;
    for (int pass = 0; pass < 5 && !cli_stopped; pass++) {
        const double start = cli_now();
        for (int i = 0; i < times && !cli_stopped; i++) {
            if (jobs->run) jobs->run(jobs->user, job.pieces, sum_piece, &job);
            else sum_piece(&job, 0);
        }
        const double speed = (double)file->source.size * times / (cli_now() - start);
        if (speed > best) best = speed;
    }
    if (cli_stopped) cli_fail("stopped");
    return best;
}

/* ---- measuring ---- */

typedef struct series {
    double   values[REPETITIONS];
    uint32_t n;
} series;

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(series *s) {
    qsort(s->values, s->n, sizeof s->values[0], compare);
    return (s->values[(s->n - 1) / 2] + s->values[s->n / 2]) / 2;
}

typedef struct result {
    uint32_t threads, prompt, context;
    series   prefill, decode, first;   /* tokens/s, tokens/s, seconds */
    double   cold_rows, rows, weights; /* bytes read a decoded token: of rows, in the first and the last repetition */
    double   hits;                     /* share of its row blocks that were in the cache, in the last repetition */
    double   floor, needed;            /* bytes/s; bytes of weights and rows that a decoded token looks at */
    uint64_t rss;
    size_t   session;
} result;

/* Bytes of weights that decoding one token looks at. */
static double weight_bytes(const l3_model *model) {
    char             name[64];
    const l3_tensor *t;
    double           sum = 0;
    for (uint32_t i = 0; (t = l3_model_tensor(model, i, name)) != NULL; i++) {
        const bool table     = cli_has(name, ".lookup_rows") || t->type == L3_I32;
        const bool embedding = cli_has(name, "token_embd") && !l3_model_info(model)->tied_head;
        if (!table) sum += (double)l3_row_bytes(t->type, t->cols) * (embedding ? 1 : t->rows);
    }
    return sum;
}

static void repeat_once(cli_engine *e, const int32_t *ids, uint32_t prompt, uint32_t tokens, result *r) {
    l3_error err;
    memset(&err, 0, sizeof err);
    cli_check(l3_truncate(e->session, 0, &err), e->path, &err);
    const double start = cli_now();
    cli_check(l3_prefill(e->session, ids, prompt, NULL, &err), e->path, &err);
    const double   middle = cli_now();
    const l3_stats before = l3_session_stats(e->session);
    for (uint32_t i = 0; i < tokens; i++) cli_check(l3_decode(e->session, ids[prompt + i], &err), e->path, &err);
    const double   end = cli_now();
    const l3_stats now = l3_session_stats(e->session);
    r->rows            = (double)(now.row_bytes_read - before.row_bytes_read) / tokens;
    r->weights         = (double)(now.weight_bytes_read - before.weight_bytes_read) / tokens;
    r->needed          = weight_bytes(e->model) + (double)(now.row_bytes_asked - before.row_bytes_asked) / tokens;
    r->hits            = now.lookups > before.lookups
                             ? (double)(now.cache_hits - before.cache_hits) / (double)(now.lookups - before.lookups)
                             : 0;
    if (r->prefill.n == 0) r->cold_rows = r->rows;
    r->prefill.values[r->prefill.n++] = prompt / (middle - start);
    r->decode.values[r->decode.n++]   = tokens / (end - middle);
    r->first.values[r->first.n++]     = middle - start;
}

static void run_case(const settings *s, const char *path, const int32_t *ids, result *r) {
    cli_engine e;
    cli_setup  setup = s->setup;
    cli_open_model(&e, path, setup.source);
    if (setup.context == 0) setup.context = r->prompt + s->tokens;
    setup.threads = r->threads;
    cli_start_session(&e, &setup);
    r->threads = e.threads;
    r->context = setup.context;
    r->session = e.session_size;
    for (uint32_t i = 0; i < s->repetitions; i++) repeat_once(&e, ids, r->prompt, s->tokens, r);
    r->rss = cli_peak_rss();
    cli_close(&e);
}

/* After all cases, since looking at the whole mapping makes it resident. */
static void run_floor(const char *path, result *r) {
    cli_engine e;
    cli_open_model(&e, path, 0);
    cli_start_threads(&e, r->threads);
    r->floor = measure_floor(&e, &e.file);
    cli_close(&e);
}

/* n tokens: of the text, from its beginning again if it is short, or random ones. */
static int32_t *choose_tokens(const settings *s, const char *path, uint32_t n) {
    cli_engine e;
    cli_corpus c;
    uint64_t   state = 1;
    int32_t   *ids   = (int32_t *)cli_malloc(n * sizeof *ids);
    cli_open_model(&e, path, 0);
    const uint32_t context = s->setup.context ? s->setup.context : e.info->context;
    if (n > context || context > e.info->context)
        cli_fail("-p and -n need a context of %" PRIu32 "; there are %" PRIu32 ", and the model has %" PRIu32, n,
                 context, e.info->context);
    if (s->text) {
        cli_read_corpus(&c, e.model, s->text);
        for (size_t i = 0, d = 0, at = 0; i < n; i++, at++) {
            while (at == c.lengths[d]) d = (d + 1) % c.n, at = 0;
            ids[i] = c.ids[d][at];
        }
        cli_free_corpus(&c);
    } else {
        for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(l3_random(&state) % e.info->vocab);
    }
    cli_close(&e);
    return ids;
}

/* ---- output ---- */

static void print_series(const char *name, series *s, double scale, const char *unit) {
    const double middle = median(s); /* sorts */
    printf("  %-13s %10.1f %s (%.1f to %.1f)\n", name, middle * scale, unit, s->values[0] * scale,
           s->values[s->n - 1] * scale);
}

static void print_case(const settings *s, result *r) {
    const double ideal = r->floor / r->needed;
    printf("\n%" PRIu32 " thread%s, prompt of %" PRIu32 ", %" PRIu32 " tokens after it, %s, session of %s\n",
           r->threads, r->threads == 1 ? "" : "s", r->prompt, s->tokens, s->setup.source ? "read" : "mapped",
           cli_bytes((double)r->session));
    print_series("prefill", &r->prefill, 1, "tokens/s");
    print_series("decode", &r->decode, 1, "tokens/s");
    print_series("first token", &r->first, 1e3, "ms");
    printf("  %-13s %10s a token in the first repetition, %s in the last; cache %.0f%%; and %s of weights\n",
           "rows read", cli_bytes(r->cold_rows), cli_bytes(r->rows), 100 * r->hits, cli_bytes(r->weights));
    printf("  %-13s %10s so far\n", "peak memory", cli_bytes((double)r->rss));
    if (r->floor > 0)
        printf("  %-13s %10.1f GB/s: %.1f tokens/s at %s a token; decode is %.0f%% of that\n", "memory floor",
               r->floor / 1e9, ideal, cli_bytes(r->needed), 100 * median(&r->decode) / ideal);
}

static void json_series(const char *name, series *s, double scale, const char *unit) {
    static const char *const parts[]  = {"", "_min", "_max"};
    const double             values[] = {median(s), s->values[0], s->values[s->n - 1]};
    for (int i = 0; i < 3; i++) {
        char key[64];
        snprintf(key, sizeof key, "%s%s_%s", name, parts[i], unit);
        cli_json_real(key, values[i] * scale);
    }
}

static void json_case(const settings *s, result *r, const char *type) {
    static const char *const sources[] = {"map", "read"}, *const kv[] = {"f32", "f16", "q8_0"};
    printf("{\"threads\": %" PRIu32 ", \"type\": \"%s\", \"source\": \"%s\", \"kv_type\": \"%s\"", r->threads, type,
           sources[s->setup.source], kv[s->setup.kv]);
    cli_json_u64("prompt", r->prompt);
    cli_json_u64("tokens", s->tokens);
    cli_json_u64("context", r->context);
    cli_json_u64("cache_bytes", s->setup.cache);
    cli_json_bool("exact", s->setup.exact);
    json_series("prefill", &r->prefill, 1, "tok_s");
    json_series("decode", &r->decode, 1, "tok_s");
    json_series("first_token", &r->first, 1e3, "ms");
    cli_json_real("cold_row_read_bytes_per_token", r->cold_rows);
    cli_json_real("row_read_bytes_per_token", r->rows);
    cli_json_real("read_bytes_per_token", r->rows + r->weights);
    cli_json_real("needed_bytes_per_token", r->needed);
    cli_json_real("cache_hit_share", r->hits);
    cli_json_real("floor_gb_s", r->floor / 1e9);
    cli_json_real("floor_tok_s", r->floor / r->needed);
    cli_json_real("floor_share", r->floor > 0 ? median(&r->decode) * r->needed / r->floor : NAN);
    cli_json_u64("session_bytes", r->session);
    cli_json_u64("rss_bytes", r->rss);
    putchar('}');
}

/* The type of the model's largest kind of weights. */
static const char *weight_type(const l3_model *model) {
    char             name[64];
    const l3_tensor *t;
    for (uint32_t i = 0; (t = l3_model_tensor(model, i, name)) != NULL; i++)
        if (cli_has(name, ".ffn_up")) return l3_type_name(t->type);
    return "";
}

static void print_all(const settings *s, const char *path, result *results, uint32_t n) {
    cli_engine e;
    cli_open_model(&e, path, 0);
    const char *type = weight_type(e.model), *name = e.info->name[0] ? e.info->name : path;
    if (s->json) {
        printf("{\"model\": ");
        cli_json_string(name);
        cli_json_u64("file_bytes", e.info->file_bytes);
        cli_json_real("active_parameters", cli_active_parameters(e.model));
        cli_json_u64("repetitions", s->repetitions);
        cli_json_key("cases");
    } else {
        printf("%s: %s, %.1f million parameters active a token, %s\n", name, cli_bytes((double)e.info->file_bytes),
               cli_active_parameters(e.model) / 1e6, type);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (s->json) fputs(i ? ", " : "[", stdout), json_case(s, &results[i], type);
        else print_case(s, &results[i]);
    }
    if (s->json) printf("]}\n");
    cli_close(&e);
}

int main(int argc, char **argv) {
    settings      s       = {.tokens = 64, .repetitions = 3};
    const char   *path    = parse(&s, argc, argv);
    uint32_t      longest = 0;
    static result results[LIST * LIST];
    if (!path) path = write_synthetic(&s.shape);
    for (uint32_t i = 0; i < s.n_prompts; i++)
        if (s.prompt_list[i] > longest) longest = s.prompt_list[i];
    const uint32_t n   = s.n_threads * s.n_prompts;
    int32_t       *ids = choose_tokens(&s, path, longest + s.tokens);
    for (uint32_t i = 0; i < n; i++) {
        fprintf(stderr, "case %" PRIu32 " of %" PRIu32 "\n", i + 1, n);
        results[i].threads = s.thread_list[i / s.n_prompts];
        results[i].prompt  = s.prompt_list[i % s.n_prompts];
        run_case(&s, path, ids, &results[i]);
    }
    for (uint32_t i = 0; i < n; i++) run_floor(path, &results[i]);
    print_all(&s, path, results, n);
    free(ids);
    cli_forget_temporary(); /* the synthetic model */
    cli_end_stdout();
    return 0;
}
