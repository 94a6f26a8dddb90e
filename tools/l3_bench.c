/* l3_bench.c - how fast a model is, how much it reads, and how far that is from what the memory allows.
 *
 * Every case prefills a prompt and decodes after it, several times; the median, the least and the most are printed. The
 * memory floor is the time that the same threads take to sum up the weights of the mapped file, in turns with decoding: no
 * decoder that looks at every weight can be faster, so decoding is also given as a share of it, and prefill as a share of the
 * products that the processor has for weights of this type. --synthetic makes a model of a real size out of random numbers, in
 * $TMPDIR, removed at the end. */
#include "../l3_model.h"

#include "bench.h"
#include "peak.h"

enum { SESSIONS = 64 };

typedef struct settings {
    bench_model model;
    const char *threads, *prompts, *text, *peer;
    uint32_t    thread_list[LIST], prompt_list[LIST], n_threads, n_prompts;
    uint32_t    tokens, repetitions, sessions;
    bool        json, cold, without;
    cli_setup   setup;
} settings;

static const char *parse(settings *s, int argc, char **argv) {
    const char *path      = NULL;
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
         CLI_BATCH_OPTION(&s->setup),
         {"--cold", CLI_FLAG, &s->cold, "", "before each repetition the file leaves the system's cache", 0, 0},
         {"--no-lookup", CLI_FLAG, &s->without, "", "take turns with the same model having one row a token", 0, 0},
         {"--compare", CLI_TEXT, &s->peer, "COMMAND", "take turns with another program, see below", 0, 0},
         BENCH_MODEL_OPTIONS(&s->model, "q8_0"),
         {"--json", CLI_FLAG, &s->json, "", "print one JSON object", 0, 0},
         {0},
    };
    const cli_program program = {
        "l3-bench", "MODEL|--synthetic SHAPE [options]",
        "Measures prefill and decode, bytes read, and how far they are from what memory and processor allow.\n"
        "--compare: COMMAND runs once a repetition, with {model}, {threads}, {prompt} and {tokens} filled in; the\n"
        "last line that it prints is to be tokens a second: of the prompt and of decoding, or only of decoding. It "
        "may\n"
        "warm up before it measures: so does l3-bench then.",
        options};
    const int n  = cli_parse(&program, argc, argv, &path, 1);
    s->n_threads = s->threads ? cli_list("-j", s->threads, 0, 64, s->thread_list, LIST) : 1;
    s->n_prompts = s->prompts ? cli_list("-p", s->prompts, 1, 1 << 24, s->prompt_list, LIST) : 1;
    if (!s->prompts) s->prompt_list[0] = 128;
    choose_shape(&s->model, n, s->text, s->setup.context);
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

/* A file as the system reads it in one go: the pages of one that was written in pieces lie scattered, which costs 5% of decoding. */
static void read_anew(const char *path) {
    static char piece[1 << 20];
    FILE       *f = cli_drop(path) ? fopen(path, "rb") : NULL;
    while (f && fread(piece, 1, sizeof piece, f) == sizeof piece) continue;
    if (f) fclose(f);
}

/* ---- the memory floor ---- */

enum { FLOOR_PIECE = 1 << 18 }; /* bytes */

typedef struct floor_job {
    const uint64_t **pieces;
    size_t          *words, n;
    uint64_t        *sums;
    bool streams; /* four quarters of a piece at a time, or one word after another: the faster one differs */
} floor_job;

/* Eight sums side by side, so that adding never is what takes the time. */
static inline uint64_t sum_streams(const uint64_t *p, size_t words, const size_t streams) {
    const size_t part = words / streams / 8 * 8;
    uint64_t     a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
    for (size_t i = 0; i < part; i += 8)
        for (size_t s = 0; s < streams; s++) {
            const uint64_t *at = p + s * part + i;
            if (streams > 1) __builtin_prefetch(at + 256);
            a += at[0], b += at[1], c += at[2], d += at[3];
            e += at[4], f += at[5], g += at[6], h += at[7];
        }
    return a + b + c + d + e + f + g + h;
}

static void sum_piece(void *arg, uint32_t piece) {
    floor_job      *job   = (floor_job *)arg;
    const uint64_t *p     = job->pieces[piece];
    const size_t    words = job->words[piece];
    job->sums[piece]      = job->streams ? sum_streams(p, words, 4) : sum_streams(p, words, 1);
}

/* The active weights in pieces. */
static floor_job floor_pieces(const l3_model *model) {
    floor_job        job = {NULL, NULL, 0, NULL, false};
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

/* Bytes a second of a pass over the active weights, 64 MB of them at least, in the order that is faster. */
static double measure_floor(const cli_engine *e) {
    floor_job      job   = floor_pieces(e->model);
    const l3_jobs *jobs  = &e->config.work.jobs;
    double         bytes = 0, best = 0;
    for (size_t i = 0; i < job.n; i++) bytes += 8.0 * (double)job.words[i];
    const int times = bytes > 0 ? (int)((64 << 20) / bytes) + 1 : 0; /* no tensor of 64 bytes: no floor */
    for (int order = 0; order < 2 && times && !cli_stopped; order++) {
        const double start = cli_now();
        job.streams        = order == 1;
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

/* ---- the floor of prompts ---- */

/* Multiply-adds of a prompt a token: the blocks, attention to half of the prompt, the head once. Rows of tables are left out. */
static double prompt_products(const l3_model *model, uint32_t prompt) {
    const l3_info   *info = l3_model_info(model);
    const l3_tensor *t;
    char             name[64];
    double           sum = (double)info->vocab * info->dim / prompt;
    for (uint32_t i = 0; (t = l3_model_tensor(model, i, name)) != NULL; i++)
        if (cli_has(name, "blk.") && !cli_has(name, ".lookup_rows") && !cli_has(name, ".lookup_offsets"))
            sum += (double)t->rows * t->cols;
    return sum + 2.0 * info->n_heads * info->head_dim * info->n_blocks * (prompt + 1) / 2;
}

/* Multiply-adds a second of all threads, or 0. */
static double measure_peak(const cli_engine *e, peak_unit unit) {
    enum { PIECES = 64 };
    const l3_jobs *jobs  = &e->config.work.jobs;
    const double   start = cli_now();
    if (!unit.run) return 0;
    if (jobs->run) jobs->run(jobs->user, PIECES, peak_piece, &unit);
    else
        for (uint32_t i = 0; i < PIECES; i++) peak_piece(&unit, i);
    return unit.products * PEAK_STEPS * PEAK_TIMES * PIECES / (cli_now() - start);
}

/* ---- measuring ---- */

typedef struct result {
    uint32_t threads, prompt, context;
    series   open, first, prefill, decode; /* seconds, seconds, tokens/s, tokens/s */
    series   disk;                         /* bytes that came from the disk for a decoded token */
    series   floor, share;                 /* bytes/s; of decode in the speed that they allow */
    series   peak, peak_share;             /* multiply-adds/s; of prefill in the speed that they allow */
    series   plain_prefill, plain_decode;  /* of the model without tables */
    series   peer_prefill, peer_decode;    /* of the other program */
    double   cold_rows, rows, weights; /* bytes read a decoded token: of rows, in the first and the last repetition */
    double   hits;                     /* share of its row blocks that were in the cache, in the last repetition */
    double   needed;                   /* bytes that a decoded token looks at */
    const char *unit;                  /* what multiplies in prefill */
    uint64_t    rss;
    size_t      session;
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
                kv_bytes(e->info, e->config.kv_type, r->prompt + (steps + 1) / 2.0);
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

static void repeat_peak(const settings *s, const cli_engine *e, result *r) {
    const peak_unit unit = peak_of(l3_session_level(e->session), weight_type(e->model), s->setup.exact);
    const double    peak = measure_peak(e, unit);
    if (!(peak > 0)) return;
    r->unit = unit.name;
    add(&r->peak, peak);
    add(&r->peak_share, r->prefill.values[r->prefill.n - 1] * prompt_products(e->model, r->prompt) / peak);
}

/* The floor beside the next repetition that has none yet. */
static void repeat_floor(const cli_engine *e, result *r) {
    const double floor = measure_floor(e);
    if (!(floor > 0)) return;
    add(&r->share, r->decode.values[r->floor.n] * r->needed / floor);
    add(&r->floor, floor);
}

/* ---- another program ---- */

static void repeat_peer(const settings *s, const char *path, result *r) {
    char number[3][16];
    snprintf(number[0], sizeof number[0], "%" PRIu32, r->threads);
    snprintf(number[1], sizeof number[1], "%" PRIu32, r->prompt);
    snprintf(number[2], sizeof number[2], "%" PRIu32, s->tokens);
    const peer_word words[] = {
        {"{model}", path}, {"{threads}", number[0]}, {"{prompt}", number[1]}, {"{tokens}", number[2]}};
    run_peer(s->peer, words, 4, &r->peer_prefill, &r->peer_decode);
}

/* ---- cases ---- */

/* Whether floors go in turns with decoding: looking at the whole mapping makes it resident. */
static bool floor_in_turns(const settings *s, const cli_engine *e) {
    return !s->cold && s->setup.source == 0 && e->file.mapping;
}

static void run_case(const settings *s, const char *path, const char *plain_path, const int32_t *ids, result *r) {
    static stand e, plain;
    cli_forget_peak_rss();
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
        if (s->peer && !s->cold) run_once(&e, ids, r->prompt, 1); /* after waiting; other programs warm up, too */
        repeat_once(&e, ids, s->tokens, r);
        if (i + 1 == s->repetitions) r->rss = cli_peak_rss();
        if (floor_in_turns(s, &e.engine)) repeat_floor(&e.engine, r);
        if (r->prompt > 1) repeat_peak(s, &e.engine, r);
        if (plain_path) repeat_plain(&plain, ids, s->tokens, r);
        if (s->peer) repeat_peer(s, path, r);
    }
    r->threads = e.engine.threads;
    r->session = e.engine.session_size;
    stand_close(&e);
    if (plain_path) stand_close(&plain);
}

/* Floors that could not go in turns with decoding, after all cases. */
static void run_floor(const char *path, result *r) {
    cli_engine e;
    cli_open_model(&e, path, 0);
    cli_start_threads(&e, r->threads);
    for (size_t i = r->floor.n; e.file.mapping && i < r->decode.n; i++) repeat_floor(&e, r);
    cli_close(&e);
}

/* n tokens: of the text, from its beginning again if it is short, or random ones. */
static int32_t *choose_tokens(const settings *s, const char *path, uint32_t n) {
    cli_engine e;
    uint64_t   state = 1;
    int32_t   *ids   = (int32_t *)cli_malloc(n * sizeof *ids);
    cli_open_model(&e, path, 0);
    const uint32_t context = s->setup.context ? s->setup.context : e.info->context;
    if (n > context || context > e.info->context)
        cli_fail("-p and -n need a context of %" PRIu32 "; there are %" PRIu32 ", and the model has %" PRIu32, n,
                 context, e.info->context);
    if (s->text) {
        take_text(e.model, s->text, ids, n);
    } else {
        for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(l3_random(&state) % e.info->vocab);
    }
    cli_close(&e);
    return ids;
}

/* ---- output ---- */

static const char *const sources[] = {"map", "read", "ahead"};

static void print_case(const settings *s, const result *r) {
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
    printf("  %-13s %10s%s\n", "peak memory", cli_bytes((double)r->rss), s->without ? " with both models" : "");
    if (r->peak.n) {
        print_series("peak products", &r->peak, 1e-9, "billion/s");
        printf("  %-13s %10.1f tokens/s by %s; prefill is %.0f%% of that\n", "",
               median(&r->prefill) / median(&r->peak_share), r->unit, 100 * median(&r->peak_share));
    }
    if (!r->floor.n) return;
    print_series("memory floor", &r->floor, 1e-9, "GB/s");
    printf("  %-13s %10.1f tokens/s at %s a token; decode is %.0f%% of that\n", "", median(&r->floor) / r->needed,
           cli_bytes(r->needed), 100 * median(&r->share));
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
    cli_json_u64("batch", s->setup.batch);
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
    json_series("floor", &r->floor, 1e-9, "_gb_s");
    json_series("floor", &r->floor, 1 / r->needed, "_tok_s");
    json_series("floor", &r->share, 1, "_share");
    json_series("peak", &r->peak, 1e-9, "_billion_products_s");
    json_series("peak", &r->peak_share, 1, "_share");
    cli_json_u64("session_bytes", r->session);
    cli_json_u64("rss_bytes", r->rss);
    putchar('}');
}

static void print_all(const settings *s, const char *path, result *results, uint32_t n) {
    cli_engine e;
    cli_open_model(&e, path, 0);
    const char *type = l3_type_name(weight_type(e.model)), *name = e.info->name[0] ? e.info->name : path;
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
    settings      s    = {.model = BENCH_MODEL, .tokens = 64, .repetitions = 3, .sessions = 1};
    const char   *path = parse(&s, argc, argv), *plain = NULL;
    uint32_t      longest = 0;
    static result results[LIST * LIST];
    if (!path) path = make_synthetic(&s.model);
    if (s.without) plain = make_without_tables(path), read_anew(plain);
    if (s.without && !s.cold) read_anew(path);
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
