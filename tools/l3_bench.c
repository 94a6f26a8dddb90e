/* l3_bench.c - how fast a model is, how much it reads, and how far that is from what the memory allows.
 *
 * Every case prefills a prompt and decodes after it, several times; the median, the least and the most are printed. The
 * memory floor is the time that the same threads take to sum up the mapped file: no decoder that looks at every weight
 * can be faster, so decoding is also given as a share of it. --synthetic makes a model of a real size out of random
 * numbers, in $TMPDIR, removed at the end. */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "synthetic.h"

enum { LIST = 8, REPETITIONS = 99, SESSIONS = 64 };

typedef struct settings {
    int         synthetic; /* a choice; -1: none */
    shape       shape;
    const char *threads, *prompts, *text, *tokenizer, *alloc, *output, *peer;
    uint32_t    thread_list[LIST], prompt_list[LIST], n_threads, n_prompts;
    uint32_t    tokens, repetitions, sessions;
    bool        json, cold, without;
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
    s->d_up  = given->d_up;
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
         {"--sessions", CLI_U32, &s->sessions, "N", "texts decoded side by side, in one call (1)", 1, SESSIONS},
         {"--text", CLI_TEXT, &s->text, "FILE", "take the tokens from here (random: the worst for caches)", 0, 0},
         CLI_CONTEXT_OPTION(&s->setup),
         CLI_EXACT_OPTION(&s->setup),
         CLI_SOURCE_OPTION(&s->setup),
         CLI_CACHE_OPTION(&s->setup),
         CLI_KV_OPTION(&s->setup),
         {"--cold", CLI_FLAG, &s->cold, "", "before each repetition the file leaves the system's cache", 0, 0},
         {"--no-lookup", CLI_FLAG, &s->without, "", "take turns with the same model having one row a token", 0, 0},
         {"--compare", CLI_TEXT, &s->peer, "COMMAND", "take turns with another program, see below", 0, 0},
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
         {"--d-up", CLI_U32, &given.d_up, "N", "width after W_up (twice the model's)", 1, 1 << 20},
         {"--tokenizer", CLI_TEXT, &s->tokenizer, "TOK.gguf", "... with this vocabulary, so that --text works", 0, 0},
         {"--alloc", CLI_TEXT, &s->alloc, "ALLOC.gguf", "... with these rows for each token (as Zipf would have them)",
          0, 0},
         {"--type", CLI_CHOICE, &given.type, types, "type of weights and rows (q8_0)", 0, 0},
         {"-o", CLI_TEXT, &s->output, "FILE", "keep the synthetic model here", 0, 0},
         {"--json", CLI_FLAG, &s->json, "", "print one JSON object", 0, 0},
         {0},
    };
    const cli_program program = {
        "l3-bench", "MODEL|--synthetic SHAPE [options]",
        "Measures prefill and decode, bytes read, and the memory floor.\n"
        "--compare: COMMAND runs once a repetition, with {model}, {threads}, {prompt} and {tokens} filled in; the\n"
        "last line that it prints is to be tokens a second: of the prompt and of decoding, or only of decoding.",
        options};
    s->synthetic = -1;
    const int n  = cli_parse(&program, argc, argv, &path, 1);
    s->n_threads = s->threads ? cli_list("-j", s->threads, 0, 64, s->thread_list, LIST) : 1;
    s->n_prompts = s->prompts ? cli_list("-p", s->prompts, 1, 1 << 24, s->prompt_list, LIST) : 1;
    if (!s->prompts) s->prompt_list[0] = 128;
    if (n + (s->synthetic >= 0) != 1) cli_usage("either a model or --synthetic is expected: l3-bench MODEL [options]");
    if (s->synthetic < 0 && (s->output || s->tokenizer || s->alloc))
        cli_usage("-o, --tokenizer and --alloc are for --synthetic");
    if (s->synthetic < 0) return path;
    if (s->text && !s->tokenizer) cli_usage("--text with --synthetic needs --tokenizer");
    s->shape = known_shapes[s->synthetic];
    override_shape(&s->shape, &given);
    if (s->setup.context > s->shape.context) s->shape.context = s->setup.context;
    return NULL;
}

/* ---- models that are made for a measurement ---- */

/* A name for a model in $TMPDIR that is removed when the program ends. */
static char *temporary_name(const char *what) {
    static const char *const variables[] = {"TMPDIR", "TMP", "TEMP"};
    const char              *folder      = "/tmp";
    for (size_t i = 3; i-- > 0;) folder = getenv(variables[i]) && *getenv(variables[i]) ? getenv(variables[i]) : folder;
    const size_t room = strlen(folder) + 64;
    char        *path = (char *)cli_malloc(room);
    snprintf(path, room, "%s/l3-bench-%s%" PRIu64 ".gguf", folder, what, cli_process());
    cli_add_temporary(path);
    return path;
}

/* The tokenizer and the rows that a synthetic model gets. */
static void dress_shape(settings *s) {
    static cli_engine tokenizer, alloc;
    if (s->tokenizer) {
        cli_open_file(&tokenizer, s->tokenizer, 1);
        if (!tokenizer.info->has_tokenizer) cli_fail("%s: it has no tokenizer that is known here", s->tokenizer);
        s->shape.tokenizer = &tokenizer;
        s->shape.vocab     = tokenizer.info->vocab;
    }
    if (s->alloc) {
        cli_open_file(&alloc, s->alloc, 1);
        const l3_lookup *l = l3_model_lookup(alloc.model, 0, NULL);
        if (!l) cli_fail("%s: it has no rows; an allocation or an L3 model is expected", s->alloc);
        if (s->tokenizer) allocation_check_tokenizer(&alloc, tokenizer.model);
        s->shape.vocab   = l->vocab;
        s->shape.rows    = l->row_count;
        s->shape.k       = l->max_rows;
        s->shape.offsets = cli_offsets(l);
    }
    check_shape(&s->shape);
}

static const char *make_synthetic(settings *s) {
    const char *path = s->output ? s->output : temporary_name("");
    dress_shape(s);
    write_synthetic(&s->shape, path);
    free(s->shape.offsets);
    return path;
}

static const char *make_without_tables(const char *path) {
    const char *plain = temporary_name("plain-");
    cli_engine  e;
    cli_open_model(&e, path, 0);
    if (!e.info->n_lookups) cli_fail("--no-lookup: %s has no lookup layer", path);
    if (!e.file.mapping) cli_fail("--no-lookup: %s cannot be mapped", path);
    write_without_tables(&e, plain);
    cli_close(&e);
    return plain;
}

/* ---- the memory floor ---- */

enum { FLOOR_PIECE = 1 << 18 }; /* bytes */

typedef struct floor_job {
    const uint64_t **pieces;
    size_t          *words, n;
    uint64_t        *sums;
} floor_job;

/* Eight sums side by side, so that adding never is what takes the time. */
static void sum_piece(void *arg, uint32_t piece) {
    floor_job      *job = (floor_job *)arg;
    const uint64_t *p = job->pieces[piece], *end = p + job->words[piece] / 8 * 8;
    uint64_t        a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
    for (; p < end; p += 8) {
        a += p[0], b += p[1], c += p[2], d += p[3];
        e += p[4], f += p[5], g += p[6], h += p[7];
    }
    job->sums[piece] = a + b + c + d + e + f + g + h;
}

/* Bytes of a tensor that decoding a token looks at, without rows of tables. */
static uint64_t active_bytes(const l3_model *model, const char *name, const l3_tensor *t) {
    const bool embedding = cli_has(name, "token_embd") && !l3_model_info(model)->tied_head;
    if (cli_has(name, ".lookup_rows") || t->type == L3_I32) return 0;
    return l3_row_bytes(t->type, t->cols) * (embedding ? 1 : t->rows);
}

static double weight_bytes(const l3_model *model) {
    char             name[64];
    const l3_tensor *t;
    double           sum = 0;
    for (uint32_t i = 0; (t = l3_model_tensor(model, i, name)) != NULL; i++)
        sum += (double)active_bytes(model, name, t);
    return sum;
}

/* What attention reads of the KV cache for a token at this position, in bytes. */
static double kv_bytes(const cli_engine *e, double position) {
    const l3_info *info = e->info;
    return 2.0 * (double)l3_row_bytes(e->config.kv_type, info->n_kv_heads * info->head_dim) * info->n_blocks * position;
}

/* The active weights in pieces. */
static floor_job floor_pieces(const l3_model *model) {
    floor_job        job = {NULL, NULL, 0, NULL};
    char             name[64];
    const l3_tensor *t;
    for (uint32_t i = 0; (t = l3_model_tensor(model, i, name)) != NULL; i++) {
        const unsigned char *p = (const unsigned char *)t->data;
        for (uint64_t left = active_bytes(model, name, t), n; left >= 64; p += n, left -= n) {
            const void *words  = p;
            n                  = (left < FLOOR_PIECE ? left : FLOOR_PIECE) / 64 * 64;
            job.pieces         = (const uint64_t **)cli_grow((void *)job.pieces, job.n, sizeof *job.pieces);
            job.words          = (size_t *)cli_grow(job.words, job.n, sizeof *job.words);
            job.pieces[job.n]  = (const uint64_t *)words;
            job.words[job.n++] = (size_t)(n / 8);
        }
    }
    job.sums = (uint64_t *)cli_malloc(job.n * sizeof *job.sums);
    return job;
}

/* Bytes a second, the best of a few passes over the active weights, of at least 64 MB each. */
static double measure_floor(const cli_engine *e) {
    floor_job      job   = floor_pieces(e->model);
    const l3_jobs *jobs  = &e->config.work.jobs;
    double         bytes = 0, best = 0;
    for (size_t i = 0; i < job.n; i++) bytes += 8.0 * (double)job.words[i];
    const int times = bytes > 0 ? (int)((64 << 20) / bytes) + 1 : 0; /* no tensor of 64 bytes: no floor */
    for (int pass = 0; pass < 5 && times && !cli_stopped; pass++) {
        const double start = cli_now();
        for (int i = 0; i < times && !cli_stopped; i++) {
            if (jobs->run) jobs->run(jobs->user, (uint32_t)job.n, sum_piece, &job);
            else
                for (uint32_t k = 0; k < job.n; k++) sum_piece(&job, k);
        }
        const double speed = bytes * times / (cli_now() - start);
        if (speed > best) best = speed;
    }
    if (cli_stopped) cli_fail("stopped");
    free((void *)job.pieces);
    free(job.words);
    free(job.sums);
    return best;
}

/* ---- measuring ---- */

typedef struct series {
    double   values[REPETITIONS];
    uint32_t n;
} series;

static void add(series *s, double value) { s->values[s->n++] = value; }

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of a copy: the order in which values came pairs those of one repetition. */
static series sorted(const series *s) {
    series copy = *s;
    qsort(copy.values, copy.n, sizeof copy.values[0], compare);
    return copy;
}

static double median(const series *s) {
    const series x = sorted(s);
    return x.n ? (x.values[(x.n - 1) / 2] + x.values[x.n / 2]) / 2 : NAN;
}

static series ratios(const series *a, const series *b) {
    series r = {.n = a->n < b->n ? a->n : b->n};
    for (uint32_t i = 0; i < r.n; i++) r.values[i] = a->values[i] / b->values[i];
    return r;
}

typedef struct result {
    uint32_t threads, prompt, context;
    series   open, first, prefill, decode; /* seconds, seconds, tokens/s, tokens/s */
    series   disk;                         /* bytes that came from the disk for a decoded token */
    series   plain_prefill, plain_decode;  /* of the model without tables */
    series   peer_prefill, peer_decode;    /* of the other program */
    double   cold_rows, rows, weights; /* bytes read a decoded token: of rows, in the first and the last repetition */
    double   hits;                     /* share of its row blocks that were in the cache, in the last repetition */
    double   floor, needed;            /* bytes/s; bytes that a decoded token looks at */
    uint64_t rss;
    size_t   session;
} result;

/* An engine as a case wants it, and the sessions beside the first one. */
typedef struct stand {
    cli_engine  engine;
    l3_session *sessions[SESSIONS];
    void       *blocks[SESSIONS];
    uint32_t    n;
} stand;

static void stand_open(stand *b, const settings *s, const char *path, const result *r) {
    cli_engine *e     = &b->engine;
    cli_setup   setup = s->setup;
    l3_error    err;
    memset(&err, 0, sizeof err);
    cli_open_model(e, path, setup.source);
    setup.context = r->context;
    setup.threads = r->threads;
    cli_start_session(e, &setup);
    b->n           = s->sessions;
    b->sessions[0] = e->session;
    for (uint32_t i = 1; i < b->n; i++) {
        b->blocks[i] = cli_aligned(e->session_size, "a session");
        cli_check(l3_session_init(&b->sessions[i], e->model, &e->config, b->blocks[i], e->session_size, &err), path,
                  &err);
    }
}

static void stand_close(stand *b) {
    for (uint32_t i = 1; i < b->n; i++) cli_free_aligned(b->blocks[i]);
    cli_close(&b->engine);
}

typedef struct lap {
    double   prefill, decode, disk; /* seconds, seconds, bytes */
    l3_stats before, after;         /* decoding */
} lap;

/* Each text goes on with the tokens of the one before it, one further. */
static lap run_once(stand *b, const int32_t *ids, uint32_t prompt, uint32_t tokens) {
    cli_engine *e = &b->engine;
    l3_error    err;
    lap         l;
    memset(&err, 0, sizeof err);
    for (uint32_t i = 0; i < b->n; i++) cli_check(l3_truncate(b->sessions[i], 0, &err), e->path, &err);
    const double begin = cli_now();
    for (uint32_t i = 0; i < b->n; i++) cli_check(l3_prefill(b->sessions[i], ids, prompt, NULL, &err), e->path, &err);
    const double   middle = cli_now();
    const uint64_t disk   = cli_disk_reads();
    l.before              = l3_session_stats(e->session);
    for (uint32_t i = 0; i < tokens; i++) {
        int32_t next[SESSIONS];
        for (uint32_t k = 0; k < b->n; k++) next[k] = ids[(prompt + i + k) % (prompt + tokens)];
        cli_check(l3_decode_batch(b->sessions, next, b->n, &err), e->path, &err);
    }
    l.decode  = cli_now() - middle;
    l.prefill = middle - begin;
    l.disk    = (double)(cli_disk_reads() - disk);
    l.after   = l3_session_stats(e->session);
    return l;
}

static void repeat_once(stand *b, const int32_t *ids, uint32_t steps, result *r) {
    cli_engine     *e      = &b->engine;
    const lap       l      = run_once(b, ids, r->prompt, steps);
    const double    tokens = (double)steps * b->n;
    const l3_stats *now = &l.after, *before = &l.before;
    r->rows    = (double)(now->row_bytes_read - before->row_bytes_read) / tokens;
    r->weights = (double)(now->weight_bytes_read - before->weight_bytes_read) / tokens;
    r->needed  = weight_bytes(e->model) / b->n + (double)(now->row_bytes_asked - before->row_bytes_asked) / tokens +
                kv_bytes(e, r->prompt + (steps + 1) / 2.0);
    r->hits = now->lookups > before->lookups
                  ? (double)(now->cache_hits - before->cache_hits) / (double)(now->lookups - before->lookups)
                  : 0;
    if (r->prefill.n == 0) r->cold_rows = r->rows;
    add(&r->prefill, (double)r->prompt * b->n / l.prefill);
    add(&r->decode, tokens / l.decode);
    add(&r->first, l.prefill);
    add(&r->disk, l.disk / tokens);
}

static void repeat_plain(stand *b, const int32_t *ids, uint32_t steps, result *r) {
    const lap l = run_once(b, ids, r->prompt, steps);
    add(&r->plain_prefill, (double)r->prompt * b->n / l.prefill);
    add(&r->plain_decode, (double)steps * b->n / l.decode);
}

/* ---- another program ---- */

/* The command with {model}, {threads}, {prompt} and {tokens} filled in, in malloc memory. */
static char *peer_command(const settings *s, const char *path, const result *r) {
    char              number[3][16];
    const char *const names[]  = {"{model}", "{threads}", "{prompt}", "{tokens}"};
    const char *const values[] = {path, number[0], number[1], number[2]};
    char             *command = (char *)cli_malloc(strlen(s->peer) * (strlen(path) + 16) + 1), *to = command;
    snprintf(number[0], sizeof number[0], "%" PRIu32, r->threads);
    snprintf(number[1], sizeof number[1], "%" PRIu32, r->prompt);
    snprintf(number[2], sizeof number[2], "%" PRIu32, s->tokens);
    for (const char *at = s->peer; *at;) {
        size_t i = 0;
        while (i < 4 && strncmp(at, names[i], strlen(names[i])) != 0) i++;
        if (i == 4) *to++ = *at++;
        else to += sprintf(to, "%s", values[i]), at += strlen(names[i]);
    }
    *to = '\0';
    return command;
}

static void repeat_peer(const settings *s, const char *path, result *r) {
    char   line[1024], last[1024] = "";
    double x, y;
    char  *command = peer_command(s, path, r), rest;
    FILE  *f       = cli_popen(command);
    if (!f) cli_fail("--compare: %s cannot be run (%s)", command, strerror(errno));
    while (fgets(line, sizeof line, f)) memcpy(last, line, sizeof last);
    const int code = cli_pclose(f);
    if (code) cli_fail("--compare: \"%s\" ended with code %d", command, code);
    const int n = sscanf(last, "%lf %lf %c", &x, &y, &rest);
    if (n != 1 && n != 2)
        cli_fail("--compare: the last line is \"%.*s\"; one or two numbers are expected, tokens a second",
                 (int)strcspn(last, "\r\n"), last);
    if (n == 2) add(&r->peer_prefill, x);
    add(&r->peer_decode, n == 2 ? y : x);
    free(command);
}

/* ---- cases ---- */

static void run_case(const settings *s, const char *path, const char *plain_path, const int32_t *ids, result *r) {
    static stand e, plain;
    r->context = s->setup.context ? s->setup.context : r->prompt + s->tokens;
    for (uint32_t i = 0; i < s->repetitions; i++) {
        if (i == 0 && plain_path) stand_open(&plain, s, plain_path, r);
        if (s->cold && i) stand_close(&e);
        if (s->cold && !cli_drop(path)) cli_fail("--cold: the system keeps what it has read of %s", path);
        if (s->cold || i == 0) {
            const double begin = cli_now();
            stand_open(&e, s, path, r);
            add(&r->open, cli_now() - begin);
        }
        repeat_once(&e, ids, s->tokens, r);
        if (i + 1 == s->repetitions) r->rss = cli_peak_rss();
        if (plain_path) repeat_plain(&plain, ids, s->tokens, r);
        if (s->peer) repeat_peer(s, path, r);
    }
    r->threads = e.engine.threads;
    r->session = e.engine.session_size;
    stand_close(&e);
    if (plain_path) stand_close(&plain);
}

/* After all cases, since looking at the whole mapping makes it resident. */
static void run_floor(const char *path, result *r) {
    cli_engine e;
    cli_open_model(&e, path, 0);
    cli_start_threads(&e, r->threads);
    r->floor = e.file.mapping ? measure_floor(&e) : 0;
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

static const char *const sources[] = {"map", "read", "ahead"};

static void print_series(const char *name, const series *s, double scale, const char *unit) {
    const series x = sorted(s);
    if (x.n == 0) return;
    printf("  %-13s %10.1f %s (%.1f to %.1f)\n", name, median(&x) * scale, unit, x.values[0] * scale,
           x.values[x.n - 1] * scale);
}

/* Tokens a second of something else, and how many times as fast ours is. */
static void print_other(const char *name, const series *own, const series *other) {
    const series x = ratios(own, other), r = sorted(&x), o = sorted(other);
    if (r.n == 0) return;
    printf("  %-13s %10.1f tokens/s (%.1f to %.1f); this is %.3f times that (%.3f to %.3f)\n", name, median(&o),
           o.values[0], o.values[o.n - 1], median(&r), r.values[0], r.values[r.n - 1]);
}

static void print_case(const settings *s, const result *r) {
    const double ideal = r->floor / r->needed;
    printf("\n%" PRIu32 " thread%s, prompt of %" PRIu32 ", %" PRIu32 " tokens after it, --source %s%s, %" PRIu32
           " session%s of %s\n",
           r->threads, r->threads == 1 ? "" : "s", r->prompt, s->tokens, sources[s->setup.source],
           s->cold ? " cold" : "", s->sessions, s->sessions == 1 ? "" : "s", cli_bytes((double)r->session));
    print_series("prefill", &r->prefill, 1, "tokens/s");
    print_other("... no tables", &r->prefill, &r->plain_prefill);
    print_other("... COMMAND", &r->prefill, &r->peer_prefill);
    print_series("decode", &r->decode, 1, "tokens/s");
    print_other("... no tables", &r->decode, &r->plain_decode);
    print_other("... COMMAND", &r->decode, &r->peer_decode);
    print_series("opening", &r->open, 1e3, "ms");
    print_series("first token", &r->first, 1e3, "ms");
    printf("  %-13s %10s a token in the first repetition, %s in the last; cache %.0f%%; and %s of weights\n",
           "rows read", cli_bytes(r->cold_rows), cli_bytes(r->rows), 100 * r->hits, cli_bytes(r->weights));
    printf("  %-13s %10s a token while decoding\n", "from the disk", cli_bytes(median(&r->disk)));
    printf("  %-13s %10s so far\n", "peak memory", cli_bytes((double)r->rss));
    if (r->floor > 0)
        printf("  %-13s %10.1f GB/s: %.1f tokens/s at %s a token; decode is %.0f%% of that\n", "memory floor",
               r->floor / 1e9, ideal, cli_bytes(r->needed), 100 * median(&r->decode) / ideal);
}

static void json_series(const char *name, const series *s, double scale, const char *unit) {
    static const char *const parts[]  = {"", "_min", "_max"};
    const series             x        = sorted(s);
    const double             values[] = {median(&x), x.values[0], x.values[x.n ? x.n - 1 : 0]};
    for (int i = 0; i < 3 && x.n; i++) {
        char key[64];
        snprintf(key, sizeof key, "%s%s%s", name, parts[i], unit);
        cli_json_real(key, values[i] * scale);
    }
}

static void json_other(const char *what, const char *part, const series *own, const series *other) {
    char         name[64];
    const series r = ratios(own, other);
    snprintf(name, sizeof name, "%s_%s", what, part);
    json_series(name, other, 1, "_tok_s");
    snprintf(name, sizeof name, "%s_%s_ratio", what, part);
    json_series(name, &r, 1, "");
}

static void json_case(const settings *s, const result *r, const char *type) {
    static const char *const kv[] = {"f32", "f16", "q8_0"};
    printf("{\"threads\": %" PRIu32 ", \"type\": \"%s\", \"source\": \"%s\", \"kv_type\": \"%s\"", r->threads, type,
           sources[s->setup.source], kv[s->setup.kv]);
    cli_json_u64("prompt", r->prompt);
    cli_json_u64("tokens", s->tokens);
    cli_json_u64("sessions", s->sessions);
    cli_json_u64("context", r->context);
    cli_json_u64("cache_bytes", s->setup.cache);
    cli_json_bool("exact", s->setup.exact);
    cli_json_bool("cold", s->cold);
    json_series("prefill", &r->prefill, 1, "_tok_s");
    json_series("decode", &r->decode, 1, "_tok_s");
    json_series("open", &r->open, 1e3, "_ms");
    json_series("first_token", &r->first, 1e3, "_ms");
    json_other("no_lookup", "prefill", &r->prefill, &r->plain_prefill);
    json_other("no_lookup", "decode", &r->decode, &r->plain_decode);
    json_other("peer", "prefill", &r->prefill, &r->peer_prefill);
    json_other("peer", "decode", &r->decode, &r->peer_decode);
    cli_json_real("cold_row_read_bytes_per_token", r->cold_rows);
    cli_json_real("row_read_bytes_per_token", r->rows);
    cli_json_real("read_bytes_per_token", r->rows + r->weights);
    json_series("disk_bytes_per_token", &r->disk, 1, "");
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
    settings      s    = {.tokens = 64, .repetitions = 3, .sessions = 1};
    const char   *path = parse(&s, argc, argv), *plain = NULL;
    uint32_t      longest = 0;
    static result results[LIST * LIST];
    if (!path) path = make_synthetic(&s);
    if (s.without) plain = make_without_tables(path);
    for (uint32_t i = 0; i < s.n_prompts; i++)
        if (s.prompt_list[i] > longest) longest = s.prompt_list[i];
    const uint32_t n   = s.n_threads * s.n_prompts;
    int32_t       *ids = choose_tokens(&s, path, longest + s.tokens);
    for (uint32_t i = 0; i < n; i++) {
        cli_report(i, n, "cases");
        results[i].threads = s.thread_list[i / s.n_prompts];
        results[i].prompt  = s.prompt_list[i % s.n_prompts];
        run_case(&s, path, plain, ids, &results[i]);
    }
    cli_report(n, n, "cases");
    for (uint32_t i = 0; i < n; i++) run_floor(path, &results[i]);
    print_all(&s, path, results, n);
    free(ids);
    cli_remove_temporaries(); /* what was made for the measurement */
    cli_end_stdout();
    return 0;
}
