/* l3_eval.c - numbers of a model: the perplexity of a text, the logits after given tokens, the token IDs of lines. */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "cli.h"

typedef struct settings {
    const char *text, *ids, *logits, *encode;
    uint32_t    window; /* tokens, BOS included */
    bool        json;
    cli_setup   setup;
} settings;

static const char *parse(settings *s, int argc, char **argv) {
    const char *path      = NULL;
    cli_option  options[] = {
         {"--text", CLI_TEXT, &s->text, "FILE", "print the perplexity of this text; - for standard input", 0, 0},
         {"--window", CLI_U32, &s->window, "N", "in windows of N tokens, BOS included (the context)", 2, 0},
         {"--ids", CLI_TEXT, &s->ids, "IDS.i32", "token IDs, little-endian int32; with --logits", 0, 0},
         {"--logits", CLI_TEXT, &s->logits, "OUT.f32", "write the logits after each of them, float32 (n, vocab)", 0, 0},
         {"--encode", CLI_TEXT, &s->encode, "FILE", "print the token IDs of every line, without BOS", 0, 0},
         CLI_CONTEXT_OPTION(&s->setup),
         CLI_THREADS_OPTION(&s->setup),
         CLI_EXACT_OPTION(&s->setup),
         CLI_SOURCE_OPTION(&s->setup),
         CLI_CACHE_OPTION(&s->setup),
         CLI_KV_OPTION(&s->setup),
         {"--json", CLI_FLAG, &s->json, "", "print one JSON object", 0, 0},
         {0},
    };
    const cli_program program = {
        "l3-eval", "MODEL --text FILE | --ids IDS.i32 --logits OUT.f32 | --encode FILE",
        "Perplexity: windows of N-1 tokens with BOS in front of each, not overlapping; every token but\n"
        "BOS is predicted. A line that is exactly <|endoftext|> ends a document; windows end there too.",
        options};
    if (cli_parse(&program, argc, argv, &path, 1) != 1) cli_usage("a model is expected: l3-eval MODEL --text FILE");
    if ((s->ids != NULL) != (s->logits != NULL)) cli_usage("--ids and --logits go together; give both");
    if ((s->text != NULL) + (s->ids != NULL) + (s->encode != NULL) != 1)
        cli_usage("one of --text, --ids with --logits, and --encode is expected");
    if (s->encode && s->json) cli_usage("--encode has no --json: its output is already one line of numbers per line");
    return path;
}

/* "done of all" on a terminal, at most ten times a second. */
static void report(uint64_t done, uint64_t all, const char *what) {
    static double last;
    const double  now = cli_now();
    if (!cli_is_terminal(stderr) || (done < all && now - last < 0.1)) return;
    last = now;
    fprintf(stderr, "\r%" PRIu64 " of %" PRIu64 " %s%s", done, all, what, done == all ? "\n" : "");
}

/* Tokens in one call, so that their logits stay within 64 MiB. */
static uint32_t tokens_per_call(const cli_engine *e) {
    const uint32_t n = (64u << 20) / 4 / e->info->vocab;
    return n ? n : 1;
}

/* Runs n tokens in pieces; each(user, i, logits after token i). */
static void run_tokens(cli_engine *e, const int32_t *ids, uint32_t n, float *all,
                       void (*each)(void *user, uint32_t i, const float *logits), void *user) {
    const uint32_t step = tokens_per_call(e);
    l3_error       err;
    memset(&err, 0, sizeof err);
    for (uint32_t at = 0; at < n; at += step) {
        const uint32_t count = n - at < step ? n - at : step;
        cli_check(l3_prefill(e->session, ids + at, count, all, &err), e->path, &err);
        for (uint32_t i = 0; i < count; i++) each(user, at + i, all + (size_t)i * e->info->vocab);
    }
}

static float *new_logits(const cli_engine *e, uint64_t n) {
    const uint32_t step = tokens_per_call(e);
    return (float *)cli_malloc((n < step ? n : step) * e->info->vocab * sizeof(float));
}

/* ---- perplexity ---- */

typedef struct sum {
    const int32_t *ids; /* of the window, BOS first */
    uint32_t       vocab;
    double         nll;
    uint64_t       tokens, count; /* predicted so far, and in the end */
} sum;

/* -log softmax(logits)[id] */
static double negative_log_likelihood(const float *logits, uint32_t n, int32_t id) {
    double max = logits[0], total = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > max) max = logits[i];
    for (uint32_t i = 0; i < n; i++) total += exp((double)logits[i] - max);
    return max + log(total) - (double)logits[id];
}

static void add_prediction(void *user, uint32_t i, const float *logits) {
    sum *s = (sum *)user;
    s->nll += negative_log_likelihood(logits, s->vocab, s->ids[i + 1]);
    s->tokens++;
}

/* One document: windows of up to `window` - 1 tokens. The last token of a window is predicted, never run. */
static void add_document(cli_engine *e, const int32_t *ids, size_t n, uint32_t window, float *logits, sum *s) {
    int32_t *buffer = (int32_t *)cli_malloc((uint64_t)window * sizeof *buffer);
    l3_error err;
    memset(&err, 0, sizeof err);
    buffer[0] = e->info->bos;
    s->ids    = buffer;
    for (size_t at = 0; at < n; at += window - 1) {
        const uint32_t count = n - at < window - 1 ? (uint32_t)(n - at) : window - 1;
        memcpy(buffer + 1, ids + at, count * sizeof *buffer);
        cli_check(l3_truncate(e->session, 0, &err), e->path, &err);
        run_tokens(e, buffer, count, logits, add_prediction, s);
        report(s->tokens, s->count, "tokens");
    }
    free(buffer);
}

static void print_perplexity(const cli_engine *e, const settings *s, const sum *result, uint32_t window,
                             double seconds) {
    const double perplexity = exp(result->nll / (double)result->tokens);
    if (!s->json) {
        printf("perplexity %.6f over %" PRIu64 " tokens\n", perplexity, result->tokens);
        return;
    }
    printf("{\"model\": ");
    cli_json_string(e->path);
    cli_json_key("text");
    cli_json_string(s->text);
    cli_json_real("perplexity", perplexity);
    cli_json_u64("tokens", result->tokens);
    cli_json_u64("window", window);
    cli_json_u64("threads", e->threads);
    cli_json_bool("exact", s->setup.exact);
    cli_json_real("prefill_tok_s", (double)result->tokens / seconds);
    cli_json_u64("rss_bytes", cli_peak_rss());
    printf("}\n");
}

static void perplexity(cli_engine *e, settings *s) {
    const uint32_t context = s->setup.context ? s->setup.context : e->info->context;
    const uint32_t window  = s->window ? s->window : context;
    cli_corpus     corpus;
    sum            result = {.vocab = e->info->vocab};
    if (e->info->bos < 0) cli_fail("%s: the model has no BOS token, and every window begins with one", e->path);
    if (window > context)
        cli_fail("--window %" PRIu32 ": the context holds %" PRIu32 " tokens; no more than that is right", window,
                 context);
    if (window < 2) cli_fail("%s: a context of %" PRIu32 " has no room for BOS and a token", e->path, context);
    cli_read_corpus(&corpus, e->model, s->text);
    s->setup.context = window;
    cli_start_session(e, &s->setup);
    float       *logits = new_logits(e, window);
    const double start  = cli_now();
    result.count        = corpus.tokens;
    for (size_t i = 0; i < corpus.n; i++) add_document(e, corpus.ids[i], corpus.lengths[i], window, logits, &result);
    print_perplexity(e, s, &result, window, cli_now() - start);
    cli_free_corpus(&corpus);
    free(logits);
}

/* ---- logits ---- */

typedef struct logits_file {
    cli_output     out;
    unsigned char *bytes; /* one row, little-endian */
    uint32_t       vocab, count;
} logits_file;

static void write_logits(void *user, uint32_t i, const float *logits) {
    logits_file *f = (logits_file *)user;
    for (uint32_t k = 0; k < f->vocab; k++) l3_pack(L3_F32, logits + k, 1, f->bytes + 4 * (size_t)k);
    cli_write(&f->out, f->bytes, 4 * (size_t)f->vocab);
    report(i + 1, f->count, "tokens");
}

static int32_t *read_ids(const char *path, uint32_t *n) {
    size_t               length;
    char                *bytes = cli_read_file(path, &length);
    const unsigned char *p     = (const unsigned char *)bytes;
    int32_t             *ids   = (int32_t *)cli_malloc(length);
    if (length == 0 || length % 4 != 0 || length / 4 > UINT32_MAX)
        cli_fail("%s: %zu bytes; a whole number of 4-byte token IDs is expected", path, length);
    *n = (uint32_t)(length / 4);
    for (uint32_t i = 0; i < *n; i++, p += 4)
        ids[i] = (int32_t)((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
    free(bytes);
    return ids;
}

static void logits(cli_engine *e, const settings *s) {
    uint32_t       n;
    int32_t       *ids     = read_ids(s->ids, &n);
    const uint32_t context = s->setup.context ? s->setup.context : e->info->context;
    logits_file    f       = {.vocab = e->info->vocab};
    if (n > context)
        cli_fail("%s: %" PRIu32 " tokens, and the context holds %" PRIu32 "; no more than that is right", s->ids, n,
                 context);
    cli_start_session(e, &s->setup);
    float *all = new_logits(e, n);
    f.bytes    = (unsigned char *)cli_malloc(4 * (uint64_t)f.vocab);
    f.count    = n;
    cli_output_open(&f.out, s->logits);
    run_tokens(e, ids, n, all, write_logits, &f);
    cli_output_close(&f.out);
    if (s->json && strcmp(s->logits, "-") != 0)
        printf("{\"tokens\": %" PRIu32 ", \"vocab\": %" PRIu32 "}\n", n, f.vocab);
    free(f.bytes);
    free(all);
    free(ids);
}

/* ---- encode ---- */

static void encode_lines(const cli_engine *e, const char *path) {
    size_t        length, n, count;
    char         *text = cli_read_file(path, &length);
    const char   *at   = text, *line;
    cli_tokenizer tokenizer;
    cli_tokenizer_open(&tokenizer, e->model, CLI_RUN);
    while (cli_next_line(&at, text + length, &line, &n)) {
        if (cli_stopped) cli_fail("stopped");
        int32_t *ids = cli_encode(&tokenizer, line, n, 0, &count);
        for (size_t i = 0; i < count; i++) printf(i ? " %" PRId32 : "%" PRId32, ids[i]);
        putchar('\n');
        free(ids);
    }
    cli_tokenizer_close(&tokenizer);
    free(text);
}

int main(int argc, char **argv) {
    settings    s    = {.window = 0};
    const char *path = parse(&s, argc, argv);
    cli_engine  e;
    if (s.encode) cli_open_file(&e, path, s.setup.source); /* a tokenizer alone will do */
    else cli_open_model(&e, path, s.setup.source);
    if (s.text) perplexity(&e, &s);
    if (s.ids) logits(&e, &s);
    if (s.encode) encode_lines(&e, s.encode);
    cli_end_stdout();
    cli_close(&e);
    return 0;
}
