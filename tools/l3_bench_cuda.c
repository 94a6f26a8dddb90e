/* l3_bench_cuda.c - how fast a model is on an NVIDIA GPU with its tables on the device, in host memory or in the file, beside
 * the same model without lookup layers.
 *
 * Every figure is the median of several repetitions with the least and the most; those of one repetition are taken one
 * after another, so that their ratios can be relied on. Tokens of decoding are given, not chosen, so that rows are those of
 * a real stream; what choosing on the device adds is the line "generate". A step reads the weights once, the rows and KV
 * caches of its tokens: decoding is also given as a share of what copying so many bytes within the device would allow. */
#include "../l3_model.h"

#define L3_CUDA_DECLARATIONS
#include "../l3_cuda.cu"

#include "bench.h"

enum { STREAM = 1 << 16, TRACES = 5, LAYERS = 8 };

/* ---- options ---- */

typedef enum place { DENSE, DEVICE, HOST, HOT, SOURCE, PLACES } place;

static const char        places[]      = "dense|device|host|hot|source";
static const char *const place_names[] = {"dense", "device", "host", "hot", "source"};

typedef struct settings {
    bench_model model;
    const char *prompts, *batches, *tables, *text, *peer;
    uint32_t    prompt_list[LIST], batch_list[LIST], n_prompts, n_batches;
    bool        wanted[PLACES];
    uint32_t    tokens, depth, repetitions, limit, hot, device;
    int         kv;
    bool        json, exact, no_graph;
} settings;

static void choose_places(settings *s) {
    char word[16];
    for (const char *at = s->tables; *at; at += *at == ',') {
        const size_t n = strcspn(at, ",");
        snprintf(word, sizeof word, "%.*s", (int)n, at);
        const int which = n < sizeof word ? cli_choice(places, word) : -1;
        if (which < 0) cli_usage("--tables %s: some of %s with commas between are expected", s->tables, places);
        s->wanted[which] = true;
        at += n;
    }
}

static const char *parse(settings *s, int argc, char **argv) {
    const char *path      = NULL;
    cli_option  options[] = {
         {"-p", CLI_TEXT, &s->prompts, "TOKENS,...", "lengths of the prompt (128,512,2048)", 0, 0},
         {"-b", CLI_TEXT, &s->batches, "N,...", "sequences that are decoded at once (1,8,64,300)", 0, 0},
         {"-n", CLI_U32, &s->tokens, "TOKENS", "tokens to decode (64)", 1, 1e6},
         {"--depth", CLI_U32, &s->depth, "TOKENS", "... behind so many in each sequence (128)", 1, 1e6},
         {"-r", CLI_U32, &s->repetitions, "TIMES", "repetitions (3)", 1, REPETITIONS},
         {"--limit", CLI_U32, &s->limit, "SECONDS", "begin no other repetition after so long (no limit)", 0, 0},
         {"--tables", CLI_TEXT, &s->tables, places,
          "which of these, with commas between (dense,device,host): no lookup layers; tables on the\n"
           "                           device; in host memory; there, and hot rows on the device; in the file",
          0, 0},
         {"--hot", CLI_U32, &s->hot, "PERCENT", "share of the tables that \"hot\" keeps on the device (30)", 1, 100},
         {"--text", CLI_TEXT, &s->text, "FILE", "take the tokens from here (random, as Zipf has them)", 0, 0},
         {"--kv", CLI_CHOICE, &s->kv, "f16|f32", "type of the KV cache (f16)", 0, 0},
         CLI_EXACT_OPTION(s),
         {"--no-graph", CLI_FLAG, &s->no_graph, "", "launch kernels one by one", 0, 0},
         {"--device", CLI_U32, &s->device, "N", "CUDA's number of the device (0)", 0, 1023},
         {"--compare", CLI_TEXT, &s->peer, "COMMAND", "take turns with another program, see below", 0, 0},
         BENCH_MODEL_OPTIONS(&s->model, "f16"),
         {"--json", CLI_FLAG, &s->json, "", "print one JSON object", 0, 0},
         {0},
    };
    const cli_program program = {
        "l3-bench-cuda", "MODEL|--synthetic SHAPE [options]",
        "Measures prefill and decode on a GPU, and when rows of tables arrive.\n"
        "--compare: COMMAND runs once a repetition, with {model}, {dense}, {prompt} (the longest), {tokens}\n"
        "and {type} filled in; the last line that it prints is to be tokens a second: of the prompt and of\n"
        "decoding at batch 1, or only of decoding.",
        options};
    const int n  = cli_parse(&program, argc, argv, &path, 1);
    s->n_prompts = cli_list("-p", s->prompts, 1, 1 << 24, s->prompt_list, LIST);
    s->n_batches = cli_list("-b", s->batches, 1, 4096, s->batch_list, LIST);
    choose_places(s);
    choose_shape(&s->model, n, s->text, s->depth + s->tokens);
    return path;
}

/* ---- the device ---- */

#ifdef L3_CUDA_EMULATED
static void     use_device(uint32_t device) { (void)device; }
static double   copy_speed(bool from_host) { return from_host ? 0 : 0; }
static uint64_t free_memory(void) { return UINT64_MAX; }
#else
#include <cuda_runtime_api.h>

static void use_device(uint32_t device) {
    const cudaError_t status = cudaSetDevice((int)device);
    if (status != cudaSuccess) cli_fail("CUDA device %" PRIu32 ": %s", device, cudaGetErrorString(status));
}

/* Bytes a second, the best of a few copies; within the device those read and those written. 0: it cannot be measured. */
static double copy_speed(bool from_host) {
    const size_t n    = (size_t)1 << 28;
    void        *from = NULL, *to = NULL;
    cudaEvent_t  begin = NULL, end = NULL;
    float        ms, best          = 0;
    bool         ok = (from_host ? cudaMallocHost(&from, n) : cudaMalloc(&from, n)) == cudaSuccess &&
              cudaMalloc(&to, n) == cudaSuccess && cudaEventCreate(&begin) == cudaSuccess &&
              cudaEventCreate(&end) == cudaSuccess;
    for (int i = 0; ok && i < 10; i++) {
        cudaEventRecord(begin, NULL);
        cudaMemcpyAsync(to, from, n, from_host ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice, NULL);
        cudaEventRecord(end, NULL);
        ok = cudaEventSynchronize(end) == cudaSuccess && cudaEventElapsedTime(&ms, begin, end) == cudaSuccess;
        if (ok && ms > 0 && (best == 0 || ms < best)) best = ms;
    }
    if (begin) cudaEventDestroy(begin);
    if (end) cudaEventDestroy(end);
    cudaFree(to);
    if (from_host) cudaFreeHost(from);
    else cudaFree(from);
    return best > 0 ? (from_host ? 1 : 2) * (double)n / (1e-3 * (double)best) : 0;
}

static uint64_t free_memory(void) {
    size_t left, all;
    return cudaMemGetInfo(&left, &all) == cudaSuccess ? left : UINT64_MAX;
}
#endif

/* ---- tokens ---- */

typedef struct stream {
    int32_t *ids;
    size_t   n;
    double   rows; /* mean of a token, in the first lookup layer */
} stream;

/* As Zipf has them: token t with a probability proportional to 1 / (t + 1), by which rows of synthetic models are allotted. */
static void random_tokens(uint32_t vocab, int32_t *ids, size_t n) {
    double  *sum   = (double *)cli_malloc(vocab * sizeof *sum); /* of the tokens up to this one */
    uint64_t state = 1;
    for (uint32_t t = 0; t < vocab; t++) sum[t] = (t ? sum[t - 1] : 0) + 1.0 / (t + 1);
    for (size_t i = 0; i < n; i++) {
        const double at  = (double)(l3_random(&state) >> 11) * 0x1p-53 * sum[vocab - 1];
        uint32_t     low = 0, high = vocab - 1; /* the first token whose sum is above */
        while (low < high) {
            const uint32_t middle = low + (high - low) / 2;
            if (sum[middle] > at) high = middle;
            else low = middle + 1;
        }
        ids[i] = (int32_t)low;
    }
    free(sum);
}

static stream choose_tokens(const settings *s, const l3_model *model, size_t n) {
    const l3_lookup *l       = l3_model_lookup(model, 0, NULL);
    int32_t         *offsets = l ? cli_offsets(l) : NULL;
    stream           t       = {(int32_t *)cli_malloc(n * sizeof(int32_t)), n, 0};
    if (s->text) take_text(model, s->text, t.ids, n);
    else random_tokens(l3_model_info(model)->vocab, t.ids, n);
    for (size_t i = 0; i < n && l; i++) t.rows += (double)(offsets[t.ids[i] + 1] - offsets[t.ids[i]]) / (double)n;
    free(offsets);
    return t;
}

/* Sequences begin at places that are far from each other. */
static const int32_t *tokens_at(const stream *t, uint32_t sequence, uint32_t sequences, uint32_t position, uint32_t n) {
    const size_t first = t->n / sequences * sequence + position;
    return t->ids + first % (t->n - n);
}

/* ---- what is measured ---- */

/* A batch of sequences on one place of tables. */
typedef struct decoding {
    series   speed;                          /* tokens/s */
    double   needed;                         /* bytes of a step, wherever they lie */
    double   row_bytes, hot, staged, direct; /* of a step; shares of them */
    series   wanted[LAYERS], there[LAYERS];  /* ms since the step began */
    uint32_t layers;
} decoding;

typedef struct variant {
    place             place;
    const cli_engine *engine;
    char              why[256]; /* it is left out; "": it is not */
    l3_cuda          *gpu;
    void             *block;
    l3_cuda_memory    memory[2]; /* of either stage */
    series            prefill[LIST], generate;
    decoding          decoding[LIST];
} variant;

/* What is measured with one configuration: prompts and one sequence, or many. */
typedef struct stage {
    uint32_t number, sequences, context;
} stage;

static bool in_stage(const stage *g, uint32_t batch) { return (g->number == 0) == (batch == 1); }

static l3_cuda_config configuration(const settings *s, const stage *g, const variant *v) {
    static const l3_cuda_place where[] = {L3_CUDA_DEVICE, L3_CUDA_DEVICE, L3_CUDA_HOST, L3_CUDA_HOST, L3_CUDA_SOURCE};
    l3_cuda_config             config;
    const l3_lookup           *l;
    memset(&config, 0, sizeof config);
    config.device    = (int)s->device;
    config.sequences = g->sequences;
    config.context   = g->context;
    config.kv_type   = s->kv == 0 ? L3_F16 : L3_F32;
    config.mode      = s->exact ? L3_EXACT : L3_FAST;
    config.tables    = where[v->place];
    config.no_graph  = s->no_graph;
    for (uint32_t i = 0; (l = l3_model_lookup(v->engine->model, i, NULL)) != NULL; i++) {
        if (v->place == HOT) config.hot_bytes += l3_row_bytes(l->rows.type, l->rows.cols) * l->row_count / 100 * s->hot;
    }
    return config;
}

static void leave_out(variant *v, const char *why) {
    snprintf(v->why, sizeof v->why, "%s", why);
    fprintf(stderr, "%s: %s is left out: %s\n", cli_name, place_names[v->place], why);
}

/* Asks what every variant takes; returns whether all have room side by side. */
static bool plan(const settings *s, const stage *g, variant *v, uint32_t n) {
    uint64_t       sum  = 0;
    const uint64_t left = free_memory();
    l3_error       err;
    memset(&err, 0, sizeof err);
    for (uint32_t i = 0; i < n; i++) {
        const l3_cuda_config config = configuration(s, g, &v[i]);
        l3_cuda_memory      *memory = &v[i].memory[g->number];
        cli_check(l3_cuda_memory_of(v[i].engine->model, &config, memory, &err), v[i].engine->path, &err);
        if (memory->device > left) {
            char why[128];
            snprintf(why, sizeof why, "%s of device memory are needed and %s are free",
                     cli_bytes((double)memory->device), cli_bytes((double)left));
            leave_out(&v[i], why);
        } else sum += memory->device;
    }
    return sum <= left / 10 * 9;
}

static char gpu_name[64]; /* of the device that was used */

static void open_variant(const settings *s, const stage *g, variant *v) {
    const l3_cuda_config config = configuration(s, g, v);
    const size_t         size   = v->memory[g->number].host;
    l3_error             err;
    memset(&err, 0, sizeof err);
    v->block         = cli_aligned(size, "the GPU's session");
    const int status = l3_cuda_open(&v->gpu, v->engine->model, &config, v->block, size, &err);
    if (status == L3_ERR_MEMORY) {
        leave_out(v, err.text);
        cli_free_aligned(v->block);
        v->gpu = NULL;
        return;
    }
    cli_check(status, v->engine->path, &err);
    snprintf(gpu_name, sizeof gpu_name, "%s", l3_cuda_name(v->gpu));
}

static void close_variant(variant *v) {
    if (!v->gpu) return;
    l3_cuda_close(v->gpu);
    cli_free_aligned(v->block);
    v->gpu = NULL;
}

/* Waits for the device. */
static l3_cuda_stats finish(const variant *v) {
    l3_cuda_stats stats;
    l3_error      err;
    memset(&err, 0, sizeof err);
    cli_check(l3_cuda_get_stats(v->gpu, &stats, &err), v->engine->path, &err);
    if (cli_stopped) cli_fail("stopped");
    return stats;
}

static void keep(const variant *v, uint32_t sequences, uint32_t n) {
    l3_error err;
    memset(&err, 0, sizeof err);
    for (uint32_t i = 0; i < sequences; i++) cli_check(l3_cuda_truncate(v->gpu, i, n, &err), v->engine->path, &err);
}

/* Seconds. */
static double prefill(const variant *v, uint32_t sequence, const int32_t *ids, uint32_t n) {
    l3_error     err;
    const double begin = cli_now();
    memset(&err, 0, sizeof err);
    cli_check(l3_cuda_prefill(v->gpu, sequence, ids, n, NULL, &err), v->engine->path, &err);
    finish(v);
    return cli_now() - begin;
}

/* The tokens of step i, one for each sequence. */
static void step_tokens(const settings *s, const stage *g, const stream *t, uint32_t batch, uint32_t i, int32_t *ids) {
    for (uint32_t k = 0; k < batch; k++) ids[k] = tokens_at(t, k, g->sequences, 0, s->depth + s->tokens)[s->depth + i];
}

/* Seconds for so many steps, all sequences being `depth` long before and after. */
static double decode(const settings *s, const stage *g, const stream *t, const variant *v, uint32_t batch,
                     uint32_t steps) {
    int32_t     *ids   = (int32_t *)cli_malloc(batch * sizeof *ids);
    const double begin = cli_now();
    l3_error     err;
    memset(&err, 0, sizeof err);
    for (uint32_t i = 0; i < steps; i++) {
        step_tokens(s, g, t, batch, i, ids);
        cli_check(l3_cuda_decode(v->gpu, NULL, ids, batch, &err), v->engine->path, &err);
    }
    finish(v);
    const double seconds = cli_now() - begin;
    keep(v, batch, s->depth);
    free(ids);
    return seconds;
}

static void measure_prompts(const settings *s, const stream *t, variant *v, bool warm) {
    for (uint32_t i = 0; i < s->n_prompts; i++) {
        const uint32_t n   = s->prompt_list[i];
        const int32_t *ids = tokens_at(t, 0, 1, 0, n);
        for (int pass = warm ? 1 : 0; pass < 2; pass++) {
            keep(v, 1, 0);
            const double seconds = prefill(v, 0, ids, n);
            if (pass) add(&v->prefill[i], n / seconds);
        }
    }
    keep(v, 1, 0);
}

/* The device chooses: always the likeliest token. */
static void measure_generate(const settings *s, const stream *t, variant *v, bool warm) {
    int32_t       *out   = (int32_t *)cli_malloc(s->tokens * sizeof *out);
    const int32_t *first = tokens_at(t, 0, 1, 0, s->depth + s->tokens) + s->depth;
    l3_error       err;
    memset(&err, 0, sizeof err);
    for (int pass = warm ? 1 : 0; pass < 2; pass++) {
        const double begin = cli_now();
        cli_check(l3_cuda_generate(v->gpu, NULL, first, 1, s->tokens, NULL, out, &err), v->engine->path, &err);
        finish(v);
        if (pass) add(&v->generate, s->tokens / (cli_now() - begin));
        keep(v, 1, s->depth);
    }
    free(out);
}

static void measure_batch(const settings *s, const stage *g, const stream *t, variant *v, uint32_t which, bool warm) {
    decoding      *d     = &v->decoding[which];
    const uint32_t batch = s->batch_list[which];
    if (!warm) decode(s, g, t, v, batch, s->tokens < 4 ? s->tokens : 4);
    const l3_cuda_stats before  = finish(v);
    const double        seconds = decode(s, g, t, v, batch, s->tokens);
    const l3_cuda_stats after   = finish(v);
    const double        all     = (double)(after.row_bytes - before.row_bytes);
    add(&d->speed, (double)batch * s->tokens / seconds);
    d->row_bytes = all / s->tokens;
    d->hot       = all > 0 ? (double)(after.hot_bytes - before.hot_bytes) / all : 0;
    d->staged    = all > 0 ? (double)(after.staged_bytes - before.staged_bytes) / all : 0;
    d->direct    = all > 0 ? (double)(after.direct_bytes - before.direct_bytes) / all : 0;
    d->needed    = weight_bytes(v->engine->model) + d->row_bytes +
                batch * kv_bytes(v->engine->info, s->kv == 0 ? L3_F16 : L3_F32, s->depth + (s->tokens + 1) / 2.0);
}

static void trace_batch(const settings *s, const stage *g, const stream *t, variant *v, uint32_t which) {
    decoding        *d     = &v->decoding[which];
    const uint32_t   batch = s->batch_list[which], layers = v->engine->info->n_lookups;
    int32_t         *ids      = (int32_t *)cli_malloc(batch * sizeof *ids);
    l3_cuda_arrival *arrivals = (l3_cuda_arrival *)cli_malloc(layers * sizeof *arrivals);
    l3_error         err;
    memset(&err, 0, sizeof err);
    d->layers = layers < LAYERS ? layers : LAYERS;
    for (uint32_t i = 0; layers && i < TRACES && i < s->tokens; i++) {
        step_tokens(s, g, t, batch, i, ids);
        cli_check(l3_cuda_trace(v->gpu, NULL, ids, batch, arrivals, &err), v->engine->path, &err);
        for (uint32_t k = 0; k < d->layers; k++) {
            add(&d->wanted[k], (double)arrivals[k].wanted);
            add(&d->there[k], (double)arrivals[k].there);
        }
    }
    keep(v, batch, s->depth);
    free(arrivals);
    free(ids);
}

/* Everything of a stage once; warm: since it was opened it has been run. */
static void measure(const settings *s, const stage *g, const stream *t, variant *v, bool warm, bool first) {
    if (g->number == 0) measure_prompts(s, t, v, warm);
    for (uint32_t i = 0; l3_cuda_position(v->gpu, g->sequences - 1) < s->depth && i < g->sequences; i++)
        prefill(v, i, tokens_at(t, i, g->sequences, 0, s->depth + s->tokens), s->depth);
    for (uint32_t i = 0; i < s->n_batches; i++) {
        if (!in_stage(g, s->batch_list[i])) continue;
        measure_batch(s, g, t, v, i, warm);
        if (first) trace_batch(s, g, t, v, i);
    }
    if (g->number == 0) measure_generate(s, t, v, warm);
}

typedef struct peer {
    const char *model, *dense;
    series      prefill, decode;
} peer;

static void repeat_peer(const settings *s, peer *p, const char *type) {
    char     number[2][16];
    uint32_t longest = 0;
    for (uint32_t i = 0; i < s->n_prompts; i++) longest = s->prompt_list[i] > longest ? s->prompt_list[i] : longest;
    snprintf(number[0], sizeof number[0], "%" PRIu32, longest);
    snprintf(number[1], sizeof number[1], "%" PRIu32, s->tokens);
    const peer_word words[] = {{"{model}", p->model},
                               {"{dense}", p->dense ? p->dense : p->model},
                               {"{prompt}", number[0]},
                               {"{tokens}", number[1]},
                               {"{type}", type}};
    run_peer(s->peer, words, 5, &p->prefill, &p->decode);
}

/* The time that --limit gives is over, or half of it; it begins with the first call. */
static bool too_late(const settings *s, uint32_t halves) {
    static double start;
    if (start == 0) start = cli_now();
    return s->limit && cli_now() - start > s->limit * halves / 2.0;
}

/* Variants take turns in every repetition, all of them open where there is room. */
static void run_stage(const settings *s, const stage *g, const stream *t, variant *v, uint32_t n, peer *p) {
    static const char *const what[]   = {"of one sequence", "of batches"};
    const bool               together = plan(s, g, v, n);
    const uint32_t           all      = s->repetitions * n;
    if (!together) fprintf(stderr, "%s: no room for all at once: each is opened anew for every repetition\n", cli_name);
    for (uint32_t i = 0; i < all; i++) {
        variant   *x    = &v[i % n];
        const bool warm = x->gpu != NULL;
        if (i >= n && too_late(s, g->number + 1)) {
            fprintf(stderr, "%s: --limit: %" PRIu32 " of %" PRIu32 " measurements %s\n", cli_name, i, all,
                    what[g->number]);
            break;
        }
        cli_report(i, all, what[g->number]);
        if (!warm && !x->why[0]) open_variant(s, g, x);
        if (x->gpu) measure(s, g, t, x, warm, i < n);
        if (!together) close_variant(x);
        if (s->peer && g->number == 0 && i % n == n - 1)
            repeat_peer(s, p, l3_type_name(weight_type(v[0].engine->model)));
    }
    for (uint32_t i = 0; i < n; i++) close_variant(&v[i]);
    cli_report(all, all, what[g->number]);
}

/* ---- output ---- */

typedef struct report {
    const settings *s;
    variant        *v; /* (n,) */
    uint32_t        n;
    const variant  *dense; /* or NULL */
    const peer     *peer;
    const char     *name, *gpu, *type;
    double          copy, host_copy; /* bytes/s; 0: unknown */
    double          rows;            /* of a token */
    bool            many;
} report;

/* Speed of a variant in a case, or of the dense one. */
typedef const series *(*pick)(const variant *v, uint32_t which);

static const series *prefill_of(const variant *v, uint32_t which) { return &v->prefill[which]; }
static const series *decode_of(const variant *v, uint32_t which) { return &v->decoding[which].speed; }
static const series *generate_of(const variant *v, uint32_t which) { return (void)which, &v->generate; }

/* One line a variant: tokens a second, and as a part of the dense model's. */
static void print_speeds(const report *r, pick of, uint32_t which, const series *peer) {
    for (uint32_t i = 0; i < r->n; i++) {
        const series x = sorted(of(&r->v[i], which));
        if (x.n == 0) continue;
        printf("  %-10s %10.1f tokens/s (%.1f to %.1f)", place_names[r->v[i].place], median(&x), x.values[0],
               x.values[x.n - 1]);
        if (r->dense && r->dense != &r->v[i] && of(r->dense, which)->n) {
            const series ratio = ratios(of(&r->v[i], which), of(r->dense, which)), q = sorted(&ratio);
            printf("; %.3f of dense (%.3f to %.3f)", median(&q), q.values[0], q.values[q.n - 1]);
        }
        if (peer && peer->n) {
            const series ratio = ratios(of(&r->v[i], which), peer), q = sorted(&ratio);
            printf("; %.3f of COMMAND's %.1f (%.3f to %.3f)", median(&q), median(peer), q.values[0], q.values[q.n - 1]);
        }
        printf("\n");
    }
}

/* Share of what the device's bandwidth allows; NAN: unknown. */
static double floor_share(const report *r, const variant *v, uint32_t which) {
    const decoding *d = &v->decoding[which];
    if (r->copy <= 0 || d->speed.n == 0) return NAN;
    return median(&d->speed) / r->s->batch_list[which] * d->needed / r->copy;
}

static void print_rows(const report *r, const variant *v, uint32_t which) {
    const decoding *d = &v->decoding[which];
    if (d->speed.n == 0) return;
    printf("  %-10s %10s a step", place_names[v->place], cli_bytes(d->needed));
    if (r->copy > 0) printf(", %.0f%% of what copying allows", 100 * floor_share(r, v, which));
    if (d->row_bytes > 0)
        printf("; of these %s of rows, %.0f%% on the device, %.0f%% fetched ahead, %.0f%% as needed",
               cli_bytes(d->row_bytes), 100 * d->hot, 100 * d->staged, 100 * d->direct);
    printf("\n");
    for (uint32_t k = 0; k < d->layers && d->wanted[k].n; k++) {
        uint32_t block = 0;
        l3_model_lookup(v->engine->model, k, &block);
        printf("  %-10s rows after block %" PRIu32 " wanted at %.3f ms, there at %.3f ms\n", "", block,
               median(&d->wanted[k]), median(&d->there[k]));
    }
}

static void print_memory(const report *r, int stage) {
    printf("\n%-12s %9s %9s %9s %9s %9s %9s %9s %9s %9s\n", stage == 0 ? "one sequence" : "batches", "device",
           "weights", "tables", "hot", "staging", "kv", "logits", "scratch", "pinned");
    for (uint32_t i = 0; i < r->n; i++) {
        const l3_cuda_memory *m       = &r->v[i].memory[stage];
        const uint64_t        parts[] = {m->device, m->weights, m->tables,  m->hot,   m->staging,
                                         m->kv,     m->logits,  m->scratch, m->pinned};
        printf("  %-10s", place_names[r->v[i].place]);
        for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) printf(" %9s", cli_bytes((double)parts[k]));
        printf("%s\n", r->v[i].why[0] ? " (left out)" : "");
    }
}

static const variant *find(const report *r, place place) {
    for (uint32_t i = 0; i < r->n; i++)
        if (r->v[i].place == place) return &r->v[i];
    return NULL;
}

/* A line of the table: the dense model, then each of the others as a part of it. */
static void print_line(const report *r, const char *what, pick of, uint32_t which) {
    printf("| %s | %s | %s |", r->name, r->type, what);
    for (int p = 0; p < PLACES; p++) {
        const variant *v = find(r, (place)p);
        const series  *x = v ? of(v, which) : NULL;
        if (!r->s->wanted[p]) continue;
        if (!x || x->n == 0) printf(" - |");
        else if (v == r->dense || !r->dense || of(r->dense, which)->n == 0) printf(" %.1f |", median(x));
        else {
            const series ratio = ratios(x, of(r->dense, which));
            printf(" %.1f (%.3f) |", median(x), median(&ratio));
        }
    }
    const variant *best  = find(r, DEVICE) ? find(r, DEVICE) : &r->v[0];
    const double   share = of == decode_of ? floor_share(r, best, which) : NAN;
    if (cli_finite(share)) printf(" %.0f%% |\n", 100 * share);
    else printf(" |\n");
}

/* Short, in Markdown. */
static void print_table(const report *r) {
    char what[64];
    printf("\n| model | type | tokens/s (of dense) |");
    for (int p = 0; p < PLACES; p++)
        if (r->s->wanted[p]) printf(" %s |", place_names[p]);
    printf(" decode / copying, %s |\n|---|---|---|---|", place_names[find(r, DEVICE) ? DEVICE : r->v[0].place]);
    for (int p = 0; p < PLACES; p++)
        if (r->s->wanted[p]) printf("---|");
    printf("\n");
    for (uint32_t i = 0; i < r->s->n_prompts; i++) {
        snprintf(what, sizeof what, "prompt of %" PRIu32, r->s->prompt_list[i]);
        print_line(r, what, prefill_of, i);
    }
    for (uint32_t i = 0; i < r->s->n_batches; i++) {
        snprintf(what, sizeof what, "decode, batch %" PRIu32, r->s->batch_list[i]);
        print_line(r, what, decode_of, i);
    }
    print_line(r, "generate, batch 1", generate_of, 0);
}

static void print_all(const report *r, const cli_engine *e) {
    const settings *s = r->s;
    printf("%s: %s, %.1f million parameters active a token, %s, KV cache %s\n%s", r->name,
           cli_bytes((double)e->info->file_bytes), cli_active_parameters(e->model) / 1e6, r->type,
           s->kv == 0 ? "f16" : "f32", r->gpu);
    if (r->copy > 0)
        printf(": copies %.0f GB/s within the device (read and written), %.1f GB/s from the host", r->copy / 1e9,
               r->host_copy / 1e9);
    printf("\n%s tokens", s->text ? "the text's" : "random");
    if (r->rows > 0) printf(", %.1f rows each in a lookup layer", r->rows);
    printf("\n");
    for (int stage = 0; stage <= (int)r->many; stage++) print_memory(r, stage);
    for (uint32_t i = 0; i < s->n_prompts; i++) {
        printf("\nprompt of %" PRIu32 "\n", s->prompt_list[i]);
        print_speeds(r, prefill_of, i, i + 1 == s->n_prompts ? &r->peer->prefill : NULL);
    }
    for (uint32_t i = 0; i < s->n_batches; i++) {
        printf("\ndecode, batch %" PRIu32 ", positions %" PRIu32 " to %" PRIu32 "\n", s->batch_list[i], s->depth,
               s->depth + s->tokens);
        print_speeds(r, decode_of, i, s->batch_list[i] == 1 ? &r->peer->decode : NULL);
        for (uint32_t k = 0; k < r->n; k++) print_rows(r, &r->v[k], i);
    }
    printf("\ngenerate, batch 1, the likeliest token\n");
    print_speeds(r, generate_of, 0, NULL);
    print_table(r);
}

static void json_arrivals(const decoding *d) {
    cli_json_key("arrivals");
    for (uint32_t k = 0; k < d->layers; k++)
        printf("%s{\"wanted_ms\": %.6g, \"there_ms\": %.6g}", k ? ", " : "[", median(&d->wanted[k]),
               median(&d->there[k]));
    printf(d->layers ? "]" : "[]");
}

/* Begins a case; the caller ends it. */
static void json_case(const report *r, const variant *v, int stage, const char **comma) {
    printf("%s{\"tables\": \"%s\", \"type\": \"%s\", \"kv_type\": \"%s\"", *comma, place_names[v->place], r->type,
           r->s->kv == 0 ? "f16" : "f32");
    *comma = ", ";
    cli_json_bool("exact", r->s->exact);
    cli_json_u64("device_bytes", v->memory[stage].device);
    cli_json_u64("table_bytes", v->memory[stage].tables);
    cli_json_u64("hot_bytes", v->memory[stage].hot);
    cli_json_u64("pinned_bytes", v->memory[stage].pinned);
}

static void json_speed(const report *r, const variant *v, const char *name, pick of, uint32_t which,
                       const series *peer) {
    json_series(name, of(v, which), 1, "_tok_s");
    if (r->dense && v != r->dense) json_other("dense", name, of(v, which), of(r->dense, which));
    if (peer) json_other("peer", name, of(v, which), peer);
}

static void json_decoding(const report *r, const variant *v, uint32_t which, const char **comma) {
    const decoding *d = &v->decoding[which];
    if (d->speed.n == 0) return;
    json_case(r, v, r->s->batch_list[which] == 1 ? 0 : 1, comma);
    cli_json_u64("batch", r->s->batch_list[which]);
    cli_json_u64("context", r->s->depth);
    cli_json_u64("tokens", r->s->tokens);
    json_speed(r, v, "decode", decode_of, which, r->s->batch_list[which] == 1 ? &r->peer->decode : NULL);
    cli_json_real("needed_bytes_per_step", d->needed);
    cli_json_real("row_bytes_per_step", d->row_bytes);
    cli_json_real("hot_share", d->hot);
    cli_json_real("staged_share", d->staged);
    cli_json_real("direct_share", d->direct);
    cli_json_real("floor_share", floor_share(r, v, which));
    json_arrivals(d);
    putchar('}');
}

static void json_all(const report *r, const cli_engine *e) {
    const char *comma = "[";
    printf("{\"model\": ");
    cli_json_string(r->name);
    cli_json_key("gpu");
    cli_json_string(r->gpu);
    cli_json_u64("file_bytes", e->info->file_bytes);
    cli_json_real("active_parameters", cli_active_parameters(e->model));
    cli_json_real("device_copy_gb_s", r->copy / 1e9);
    cli_json_real("host_copy_gb_s", r->host_copy / 1e9);
    cli_json_real("rows_per_token", r->rows);
    cli_json_u64("repetitions", r->s->repetitions);
    cli_json_key("cases");
    for (uint32_t k = 0; k < r->n; k++) {
        const variant *v = &r->v[k];
        for (uint32_t i = 0; i < r->s->n_prompts && v->prefill[i].n; i++) {
            json_case(r, v, 0, &comma);
            cli_json_u64("prompt", r->s->prompt_list[i]);
            json_speed(r, v, "prefill", prefill_of, i, i + 1 == r->s->n_prompts ? &r->peer->prefill : NULL);
            putchar('}');
        }
        for (uint32_t i = 0; i < r->s->n_batches; i++) json_decoding(r, v, i, &comma);
        if (!v->generate.n) continue;
        json_case(r, v, 0, &comma);
        cli_json_u64("context", r->s->depth);
        json_speed(r, v, "generate", generate_of, 0, NULL);
        putchar('}');
    }
    printf(comma[0] == '[' ? "[]}\n" : "]}\n");
}

/* ---- all of it ---- */

static const char *make_dense(const cli_engine *e) {
    const char *path = temporary_name("dense-");
    if (!e->file.mapping) cli_fail("--tables dense: %s cannot be mapped", e->path);
    write_dense(e, path);
    return path;
}

/* The first stage has what one sequence needs, the second what the largest batch does. */
static void make_stages(const settings *s, const l3_info *info, stage stages[2]) {
    const uint32_t each = s->depth + s->tokens;
    stages[0]           = (stage){0, 1, each};
    stages[1]           = (stage){1, 1, each};
    for (uint32_t i = 0; i < s->n_prompts; i++)
        if (s->prompt_list[i] > stages[0].context) stages[0].context = s->prompt_list[i];
    for (uint32_t i = 0; i < s->n_batches; i++)
        if (s->batch_list[i] > stages[1].sequences) stages[1].sequences = s->batch_list[i];
    if (stages[0].context > info->context)
        cli_fail("-p, or --depth and -n, need a context of %" PRIu32 "; the model has %" PRIu32, stages[0].context,
                 info->context);
}

static uint32_t make_variants(const settings *s, const cli_engine *l3, const cli_engine *dense, variant *v) {
    uint32_t n = 0;
    for (int p = 0; p < PLACES; p++) {
        if (!s->wanted[p] || (p != DENSE && !l3->info->n_lookups)) continue;
        v[n].place    = (place)p;
        v[n++].engine = p == DENSE && l3->info->n_lookups ? dense : l3;
    }
    if (n == 0) cli_fail("%s: it has no lookup layers, so --tables dense is all there is to measure", l3->path);
    return n;
}

int main(int argc, char **argv) {
    static cli_engine l3, dense;
    static variant    variants[PLACES];
    static peer       other;
    settings          s = {.model       = BENCH_MODEL,
                           .prompts     = "128,512,2048",
                           .batches     = "1,8,64,300",
                           .tables      = "dense,device,host",
                           .tokens      = 64,
                           .depth       = 128,
                           .repetitions = 3,
                           .hot         = 30};
    stage             stages[2];
    s.model.given.type = 2; /* f16 */
    s.model.unchecked  = true;

    other.model = parse(&s, argc, argv);
    use_device(s.device);
    too_late(&s, 2);
    report r = {.s = &s, .v = variants, .peer = &other, .copy = copy_speed(false), .host_copy = copy_speed(true)};
    if (!other.model) other.model = make_synthetic(&s.model);
    cli_open_model(&l3, other.model, CLI_MAP);
    make_stages(&s, l3.info, stages);
    if (s.wanted[DENSE] && l3.info->n_lookups) cli_open_model(&dense, other.dense = make_dense(&l3), CLI_MAP);
    r.n            = make_variants(&s, &l3, &dense, variants);
    r.dense        = find(&r, DENSE);
    r.many         = stages[1].sequences > 1;
    const size_t n = (size_t)stages[1].sequences * (s.depth + s.tokens) + stages[0].context;
    const stream t = choose_tokens(&s, l3.model, n < STREAM ? STREAM : n);
    for (int i = 0; i <= (int)r.many; i++) run_stage(&s, &stages[i], &t, variants, r.n, &other);

    r.name = l3.info->name[0] ? l3.info->name : other.model;
    r.type = l3_type_name(weight_type(l3.model));
    r.rows = t.rows;
    r.gpu  = gpu_name;
    if (s.json) json_all(&r, &l3);
    else print_all(&r, &l3);
    free(t.ids);
    if (other.dense) cli_close(&dense);
    cli_close(&l3);
    cli_remove_temporaries(); /* what was made for the measurement */
    cli_end_stdout();
    return 0;
}
