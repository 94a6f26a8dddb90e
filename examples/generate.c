/* generate.c - text from a model: prompt in, tokens out as they come, and figures about speed, memory and reading.
 *
 * Shows the whole of l3_model.h on a machine with an operating system, from a Raspberry Pi up: the prompt becomes token
 * IDs, l3_prefill() runs them all at once, then l3_sample() and l3_decode() take turns, while l3_detokenize() makes text
 * of every token without ever splitting a character. Options, memory blocks, the file and the session come from
 * tools/cli.h (cli_open_model and cli_start_session are worth a look); examples/flash_stream.c shows them by hand.
 *
 *     build/generate examples/models/books-l3.gguf -p "Once upon a time" --stats */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "../tools/cli.h"

typedef struct settings {
    const char *prompt, *file;
    uint32_t    count;
    bool        stats, quiet, show_seed;
    cli_setup   setup;
    l3_sampling sampling;
} settings;

typedef struct run {
    cli_engine    engine;
    cli_tokenizer text;
    l3_sampler   *sampler;
    size_t        sampler_size;
    int32_t      *prompt; /* (prompt_count,) */
    size_t        prompt_count;
    uint32_t      made;                   /* new tokens */
    double        prefill, first, decode; /* seconds: the prompt; until the first new token; the tokens after it */
    l3_error      err;
} run;

static const char *parse(settings *s, int argc, char **argv) {
    const char *path      = NULL;
    const char *seed      = NULL;
    cli_option  options[] = {
         {"-p", CLI_TEXT, &s->prompt, "PROMPT", "text to continue (none)", 0, 0},
         {"-f", CLI_TEXT, &s->file, "FILE", "file with the text to continue; - for standard input", 0, 0},
         {"-n", CLI_U32, &s->count, "TOKENS", "new tokens at most (256)", 0, 0},
         {"-t", CLI_REAL, &s->sampling.temperature, "TEMPERATURE", "0: always the likeliest token (0.8)", 0, 1000},
         {"--top-k", CLI_U32, &s->sampling.top_k, "K", "choose among the K likeliest; 0: all (40)", 0, 0},
         {"--top-p", CLI_REAL, &s->sampling.top_p, "P", "... which hold this probability; 1: all (0.95)", 0, 1},
         {"--min-p", CLI_REAL, &s->sampling.min_p, "P", "... at least P times as likely as the best (0.05)", 0, 1},
         {"--repeat-penalty", CLI_REAL, &s->sampling.repeat_penalty, "X", "make recent tokens less likely; 1: off (1)",
          0.01, 100},
         {"--repeat-last-n", CLI_U32, &s->sampling.repeat_last_n, "N", "how many tokens are recent (64)", 0, 1 << 20},
         {"-s", CLI_TEXT, &seed, "SEED", "the same seed gives the same text (random)", 0, 0},
         CLI_CONTEXT_OPTION(&s->setup),
         CLI_THREADS_OPTION(&s->setup),
         CLI_EXACT_OPTION(&s->setup),
         CLI_SOURCE_OPTION(&s->setup),
         CLI_CACHE_OPTION(&s->setup),
         {"--window", CLI_SIZE, &s->setup.window, "BYTES[K|M|G]", "memory that weights are read through (64K)", 0, 0},
         CLI_PIN_OPTION(&s->setup),
         CLI_KV_OPTION(&s->setup),
         {"--stats", CLI_FLAG, &s->stats, "", "speed, memory and bytes read, on standard error", 0, 0},
         {"--quiet", CLI_FLAG, &s->quiet, "", "nothing on standard error but errors", 0, 0},
         {0},
    };
    const cli_program program = {
        "generate", "MODEL [options]",
        "Continues a text. The text, prompt included, goes to standard output, all else to standard error.", options};
    if (cli_parse(&program, argc, argv, &path, 1) != 1) cli_usage("a model is expected: generate MODEL [options]");
    if (s->prompt && s->file) cli_usage("-p and -f are two prompts; give one");
    const cli_option number = {"-s", CLI_U64, &s->sampling.seed, "SEED", "", 0, 0};
    if (seed) cli_set(&number, seed);
    else s->sampling.seed = cli_random_seed();
    s->show_seed = !seed && !s->quiet;
    return path;
}

/* The prompt's tokens, BOS in front if the model wants one; never none. */
static void encode_prompt(run *r, const settings *s) {
    const l3_info *info = r->engine.info;
    size_t         n    = s->prompt ? strlen(s->prompt) : 0;
    char          *file = s->file ? cli_read_file(s->file, &n) : NULL;
    cli_tokenizer_open(&r->text, r->engine.model, n < CLI_RUN ? n + 1 : CLI_RUN);
    r->prompt = cli_encode(&r->text, file ? file : s->prompt ? s->prompt : "", n, L3_TEXT_BOS, &r->prompt_count);
    free(file);
    if (r->prompt_count == 0) {
        if (info->bos < 0) cli_fail("the prompt is empty and the model has no BOS token to begin with; give a prompt");
        r->prompt[r->prompt_count++] = info->bos;
    }
    const uint32_t context = s->setup.context ? s->setup.context : info->context;
    if (r->prompt_count > context)
        cli_fail("the prompt has %zu tokens and the context holds %" PRIu32
                 "; a shorter prompt or a larger -c is right",
                 r->prompt_count, context);
}

static void start_sampler(run *r, const settings *s) {
    r->sampler_size = l3_sampler_size(&s->sampling, r->engine.info->vocab);
    void *block     = cli_aligned(r->sampler_size, "the sampler");
    cli_check(l3_sampler_init(&r->sampler, &s->sampling, r->engine.info->vocab, block, r->sampler_size, &r->err),
              "sampling", &r->err);
}

static void print(const char *text, size_t n) {
    if (fwrite(text, 1, n, stdout) != n || fflush(stdout) != 0)
        cli_fail("standard output cannot be written (%s)", strerror(errno));
}

static void print_token(run *r, int32_t id) {
    const char *text;
    size_t      n;
    cli_check(l3_detokenize(r->text.tokenizer, id, &text, &n, &r->err), "text", &r->err);
    print(text, n);
}

/* A call on the session ended: false if Ctrl-C did it; ends the program on any other failure. */
static bool went_on(run *r, int status) {
    if (status == L3_ERR_CANCELLED) return false;
    if (status != L3_OK) putchar('\n');
    cli_check(status, r->engine.path, &r->err);
    return true;
}

/* Writes until something ends it, and says what. */
static const char *generate(run *r, uint32_t count) {
    l3_session    *session = r->engine.session;
    const l3_info *info    = r->engine.info;
    const double   start   = cli_now();
    int32_t        id;
    if (!went_on(r, l3_prefill(session, r->prompt, (uint32_t)r->prompt_count, NULL, &r->err))) return "Ctrl-C";
    r->prefill = cli_now() - start;
    l3_sampler_accept(r->sampler, r->prompt, r->prompt_count);
    while (r->made < count) {
        went_on(r, l3_sample(r->sampler, l3_logits(session), &id, &r->err));
        l3_sampler_accept(r->sampler, &id, 1);
        if (id == info->eos) return "the end-of-text token";
        if (id == info->bos) return "the begin-of-text token";
        print_token(r, id);
        if (r->made++ == 0) r->first = cli_now() - start;
        if (r->made == count) break;
        if (l3_position(session) == l3_context(session)) return "the context is full";
        const double before = cli_now();
        if (!went_on(r, l3_decode(session, id, &r->err))) return "Ctrl-C";
        r->decode += cli_now() - before;
    }
    return "as many as -n asks for";
}

static void end_text(run *r) {
    const char *text;
    size_t      n;
    l3_detokenize_end(r->text.tokenizer, &text, &n);
    print(text, n);
    print("\n", 1);
}

/* What --cache did, or why it could do nothing. */
static void print_cache(const run *r, const l3_stats *s) {
    const l3_lookup *layer = l3_model_lookup(r->engine.model, 0, NULL);
    if (!layer) fprintf(stderr, "cache        no effect: the model has no lookup layer\n");
    else if (layer->rows.data)
        fprintf(stderr, "cache        no effect: the rows are mapped; --source read and ahead use it\n");
    else
        fprintf(stderr, "cache        %" PRIu64 " of %" PRIu64 " row blocks found; %" PRIu64 " had no room in it\n",
                s->cache_hits, s->lookups, s->cache_misfits);
}

static void print_reading(const run *r, size_t cache) {
    const l3_stats s      = l3_session_stats(r->engine.session);
    const uint32_t tokens = l3_position(r->engine.session);
    const double   per    = tokens ? 1.0 / tokens : 0;
    fprintf(stderr, "rows         asked %s a token, read %s a token in %" PRIu64 " reads%s\n",
            cli_bytes((double)s.row_bytes_asked * per), cli_bytes((double)s.row_bytes_read * per), s.row_reads,
            r->engine.model_config.tables ? " by a thread"
            : r->engine.file.mapping      ? " (mapped, hinted)"
                                          : "");
    fprintf(stderr, "weights      read %s a token%s\n", cli_bytes((double)s.weight_bytes_read * per),
            r->engine.file.mapping ? " (mapped)" : "");
    if (cli_disk_reads()) fprintf(stderr, "disk         %s came from it\n", cli_bytes((double)cli_disk_reads()));
    if (cache) print_cache(r, &s);
}

static void print_stats(const run *r, size_t cache) {
    const cli_engine *e = &r->engine;
    fprintf(stderr, "model        %s, %s, %s, %" PRIu32 " thread%s, kernels for %s\n",
            e->info->name[0] ? e->info->name : e->path, e->info->architecture, e->file.mapping ? "mapped" : "read",
            e->threads, e->threads == 1 ? "" : "s", l3_level_name(l3_session_level(e->session)));
    if (r->prefill > 0)
        fprintf(stderr, "prefill      %zu tokens, %.1f tokens/s\n", r->prompt_count,
                (double)r->prompt_count / r->prefill);
    if (r->made) fprintf(stderr, "first token  after %.1f ms\n", 1e3 * r->first);
    if (r->made > 1)
        fprintf(stderr, "decode       %" PRIu32 " tokens, %.1f tokens/s\n", r->made - 1, (r->made - 1) / r->decode);
    fprintf(stderr, "memory       model %s, session %s, tokenizer %s, sampler %s", cli_bytes((double)e->model_size),
            cli_bytes((double)e->session_size), cli_bytes((double)r->text.size), cli_bytes((double)r->sampler_size));
    if (cli_peak_rss()) fprintf(stderr, "; the process %s at most", cli_bytes((double)cli_peak_rss()));
    fprintf(stderr, "\n");
    if (e->pinned_size) fprintf(stderr, "pinned       %s of weights\n", cli_bytes((double)e->pinned_size));
    print_reading(r, cache);
}

static void finish(run *r) {
    cli_tokenizer_close(&r->text);
    cli_free_aligned(r->sampler);
    free(r->prompt);
    cli_close(&r->engine);
}

int main(int argc, char **argv) {
    settings s = {.count = 256};
    run      r = {.made = 0};
    s.sampling = l3_sampling_defaults();

    const char *path = parse(&s, argc, argv);
    cli_open_model(&r.engine, path, s.setup.source);
    encode_prompt(&r, &s);
    cli_start_session(&r.engine, &s.setup);
    start_sampler(&r, &s);
    if (s.show_seed) fprintf(stderr, "seed %" PRIu64 "\n", s.sampling.seed);
    for (size_t i = 0; i < r.prompt_count; i++) print_token(&r, r.prompt[i]);
    const char *end = generate(&r, s.count);
    end_text(&r);
    if (!s.quiet) fprintf(stderr, "ended after %" PRIu32 " new tokens: %s\n", r.made, end);
    if (s.stats && !s.quiet) print_stats(&r, s.setup.cache);
    finish(&r);
    return 0;
}
