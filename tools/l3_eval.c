/* l3_eval.c - numbers of a model: the perplexity of a text, how often the likeliest of several answers is the right one,
 * the same for two models with the difference, the logits after given tokens, the token IDs of lines. */
#include "../l3_model.h"

#include "choices.h"
#include "perplexity.h"

typedef struct settings {
    const char *text, *choices, *ids, *logits, *encode;
    uint32_t    window, stride; /* tokens, BOS included; tokens, or 0 */
    bool        compare, json;
    cli_setup   setup;
} settings;

/* One model, or two with --compare. */
static void parse(settings *s, int argc, char **argv, const char *paths[2]) {
    cli_option options[] = {
        {"--text", CLI_TEXT, &s->text, "FILE",
         "print the perplexity of this text (.xz and .gz, too); - for standard input", 0, 0},
        {"--window", CLI_U32, &s->window, "N", "in windows of N tokens, BOS included (the context)", 2, 0},
        {"--stride", CLI_U32, &s->stride, "S", "windows begin every S tokens and count what is new (N - 1)", 1, 0},
        {"--choices", CLI_TEXT, &s->choices, "FILE",
         "print how often the likeliest answer is right; JSON lines, as\n"
         "                           {\"context\": \"2 + 2 =\", \"choices\": [\" 4\", \" 5\"], \"answer\": 0}",
         0, 0},
        {"--compare", CLI_FLAG, &s->compare, "", "two models, and the second one's difference from the first", 0, 0},
        {"--ids", CLI_TEXT, &s->ids, "IDS.i32", "token IDs, little-endian int32; with --logits", 0, 0},
        {"--logits", CLI_TEXT, &s->logits, "OUT.f32",
         "write the logits after each of them, float32 (n, vocab); as with --exact", 0, 0},
        {"--encode", CLI_TEXT, &s->encode, "FILE", "print the token IDs of every line, without BOS", 0, 0},
        CLI_CONTEXT_OPTION(&s->setup),
        CLI_THREADS_OPTION(&s->setup),
        CLI_EXACT_OPTION(&s->setup),
        CLI_SOURCE_OPTION(&s->setup),
        CLI_CACHE_OPTION(&s->setup),
        CLI_KV_OPTION(&s->setup),
        {"--decode", CLI_FLAG, &s->setup.decode, "",
         "token by token, as when text is generated; fast mode has other kernels for that", 0, 0},
        {"--json", CLI_FLAG, &s->json, "", "print one JSON object", 0, 0},
        {0},
    };
    const cli_program program = {
        "l3-eval",
        "MODEL --text FILE | --choices FILE | --ids IDS.i32 --logits OUT.f32 | --encode FILE\n"
        "       l3-eval --compare MODEL MODEL --text FILE | --choices FILE",
        "Perplexity: windows of N-1 tokens with BOS in front of each, not overlapping; every token but\n"
        "BOS is predicted. A line that is exactly <|endoftext|> ends a document; windows end there too.\n"
        "With --stride each window keeps N-S positions of context that were counted before.\n"
        "Choices: the likelihood of each answer after the context; the highest wins, once by the whole\n"
        "likelihood and once by its logarithm per byte of the answer.",
        options};
    const int n = cli_parse(&program, argc, argv, paths, 2);
    if (n == 0) cli_usage("a model is expected: l3-eval MODEL --text FILE");
    if (s->compare && n != 2) cli_usage("--compare needs two models");
    if (!s->compare && n != 1) cli_usage("%s: there is one model too many, or --compare is missing", paths[1]);
    if ((s->ids != NULL) != (s->logits != NULL)) cli_usage("--ids and --logits go together; give both");
    if ((s->text != NULL) + (s->choices != NULL) + (s->ids != NULL) + (s->encode != NULL) != 1)
        cli_usage("one of --text, --choices, --ids with --logits, and --encode is expected");
    if (s->compare && (s->ids || s->encode)) cli_usage("--compare goes with --text or --choices");
    if (s->compare && strcmp(s->text ? s->text : s->choices, "-") == 0)
        cli_usage("--compare reads the file once for each model; standard input can be read only once");
    if ((s->window || s->stride) && !s->text) cli_usage("--window and --stride go with --text");
    if (s->logits) s->setup.exact = true; /* what others compare their own numbers with */
    if (s->setup.decode && !s->text && !s->choices) cli_usage("--decode goes with --text or --choices");
    if (s->encode && s->json) cli_usage("--encode has no --json: its output is already one line of numbers per line");
}

/* What one model made of the text or of the questions. */
typedef struct result {
    const char    *path;
    uint32_t       window, stride, threads;
    uint64_t       fingerprint; /* of the tokenizer */
    double         seconds;
    ppl_sum        text;
    ppl_sum       *spans; /* (n_spans,) with --compare */
    size_t         n_spans;
    choice_result *choices; /* (n_choices,) */
    size_t         n_choices;
} result;

/* ---- statistics ---- */

typedef struct estimate {
    double mean, error; /* the standard error; NAN when there is only one unit */
} estimate;

/* The ratio sum(d) / sum(w) over n units, w NULL meaning ones, with its standard error: units are taken for a random sample,
 * and the ratio's residuals d - ratio * w for its noise (the ratio estimator, as in Cochran, Sampling Techniques, ch. 6).
 * With ones it is the mean and the usual standard error of a mean. */
static estimate ratio(const double *d, const double *w, size_t n) {
    double   sum = 0, weight = 0, squares = 0;
    estimate e;
    for (size_t i = 0; i < n; i++) sum += d[i], weight += w ? w[i] : 1;
    e.mean = sum / weight;
    for (size_t i = 0; i < n; i++) {
        const double residual = d[i] - e.mean * (w ? w[i] : 1);
        squares += residual * residual;
    }
    e.error = n > 1 ? sqrt(squares * (double)n / (double)(n - 1)) / weight : NAN;
    return e;
}

static void print_error(const estimate *e) {
    if (cli_finite(e->error)) printf(", standard error %.6f", e->error);
    else printf(", no standard error");
}

/* ---- perplexity ---- */

/* With --compare, texts are cut into spans of bytes, which are the same for every tokenizer: a document of up to SPAN bytes is
 * one, a longer one several. A token belongs to the span in which it ends. */
enum { SPAN = 1024 };

typedef struct span_list {
    uint32_t *token_bytes; /* (vocab,) */
    ppl_sum  *list;
    size_t    n, first; /* first: of the current document */
    int64_t   at,
        before; /* bytes of the current document so far; `before` of them when it begins: -1 for the dummy space */
} span_list;

/* How many bytes of text each token stands for. */
static uint32_t *new_token_bytes(const l3_model *model) {
    const uint32_t vocab = l3_model_info(model)->vocab;
    uint32_t      *bytes = (uint32_t *)cli_malloc((uint64_t)vocab * sizeof *bytes);
    cli_tokenizer  t;
    cli_tokenizer_open(&t, model, 0);
    for (uint32_t id = 0; id < vocab; id++) {
        enum { BYTE = 6 }; /* tokenizer.ggml.token_type */
        const char *piece;
        size_t      n;
        int         type;
        l3_error    err;
        memset(&err, 0, sizeof err);
        cli_check(l3_token_piece(t.tokenizer, (int32_t)id, &piece, &n, NULL, &type, &err), "tokenizer", &err);
        bytes[id] = type == BYTE ? 1 : (uint32_t)n;
        for (size_t i = 0; type != BYTE && i + 3 <= n; i++)
            if (memcmp(piece + i, "\xe2\x96\x81", 3) == 0) bytes[id] -= 2; /* U+2581 for a space */
    }
    cli_tokenizer_close(&t);
    return bytes;
}

static ppl_sum *span_at(span_list *s, size_t i) {
    while (s->n <= i) {
        s->list         = (ppl_sum *)cli_grow(s->list, s->n, sizeof *s->list);
        s->list[s->n++] = (ppl_sum){0, 0, 0};
    }
    return &s->list[i];
}

static void span_token(void *user, int32_t id, double nll) {
    span_list *s = (span_list *)user;
    s->at += s->token_bytes[id];
    ppl_sum *span = span_at(s, s->first + (s->at > 0 ? (size_t)(s->at - 1) / SPAN : 0));
    span->nll += nll;
    span->tokens++;
}

/* The document's own length says how many spans there are; tokens beyond it (a character that the tokenizer does not give
 * back as it was) count to the last. */
static void span_document(void *user, uint64_t bytes) {
    span_list   *s = (span_list *)user;
    const size_t n = (size_t)((bytes + SPAN - 1) / SPAN), last = s->first + n - 1;
    span_at(s, last);
    for (size_t i = last + 1; i < s->n; i++)
        s->list[last].nll += s->list[i].nll, s->list[last].tokens += s->list[i].tokens;
    for (size_t i = s->first; i < last; i++) s->list[i].bytes = SPAN;
    s->list[last].bytes = bytes - (n - 1) * SPAN;
    s->n = s->first = last + 1;
    s->at           = s->before;
}

static void run_text(result *r, cli_engine *e, const settings *s) {
    const double start = cli_now();
    span_list    spans = {.before = e->info->add_space_prefix ? -1 : 0};
    ppl          p;
    ppl_open(&p, e, &s->setup, s->window, s->stride);
    spans.at = spans.before;
    if (s->compare) spans.token_bytes = new_token_bytes(e->model), p.user = &spans, p.each = span_token;
    ppl_text(&p, s->text, s->compare ? span_document : NULL);
    r->text    = p.total;
    r->window  = p.window;
    r->stride  = p.stride;
    r->spans   = spans.list;
    r->n_spans = spans.n;
    r->seconds = cli_now() - start;
    free(spans.token_bytes);
    ppl_close(&p);
}

static void print_text(const result *r) {
    printf("perplexity %.6f over %" PRIu64 " tokens\n", ppl_perplexity(&r->text), r->text.tokens);
    printf("bits per byte %.6f over %" PRIu64 " bytes\n", ppl_bits_per_byte(&r->text), r->text.bytes);
}

static void json_text_result(const result *r, const settings *s) {
    cli_json_key("text");
    cli_json_string(s->text);
    cli_json_real("perplexity", ppl_perplexity(&r->text));
    cli_json_u64("tokens", r->text.tokens);
    cli_json_real("bits_per_byte", ppl_bits_per_byte(&r->text));
    cli_json_u64("text_bytes", r->text.bytes);
    cli_json_u64("window", r->window);
    cli_json_u64("stride", r->stride);
    cli_json_real("prefill_tok_s", (double)r->text.tokens / r->seconds);
}

/* The second model's cost minus the first one's, in `unit` nats, per byte or per token of the text. */
static estimate text_difference(const result *r, double unit, bool per_token) {
    const size_t n = r[0].n_spans;
    double      *d = (double *)cli_malloc(n * sizeof *d), *w = (double *)cli_malloc(n * sizeof *w);
    for (size_t i = 0; i < n; i++) {
        d[i] = (r[1].spans[i].nll - r[0].spans[i].nll) / unit;
        w[i] = (double)(per_token ? r[0].spans[i].tokens : r[0].spans[i].bytes);
    }
    const estimate e = ratio(d, w, n);
    free(d);
    free(w);
    return e;
}

static void print_text_difference(const result *r) {
    const estimate bits = text_difference(r, log(2), false), nats = text_difference(r, 1, true);
    printf("difference %+.6f bits per byte", bits.mean);
    print_error(&bits);
    if (r[0].fingerprint == r[1].fingerprint) {
        printf("\ndifference %+.6f nats per token", nats.mean);
        print_error(&nats);
    }
    printf("\nfrom %zu spans of up to %d bytes\n", r[0].n_spans, SPAN);
}

static void json_text_difference(const result *r) {
    const estimate bits = text_difference(r, log(2), false), nats = text_difference(r, 1, true);
    const bool     same = r[0].fingerprint == r[1].fingerprint;
    cli_json_bool("same_tokenizer", same);
    cli_json_real("difference_bits_per_byte", bits.mean);
    cli_json_real("difference_bits_per_byte_standard_error", bits.error);
    cli_json_real("difference_nats_per_token", same ? nats.mean : NAN);
    cli_json_real("difference_nats_per_token_standard_error", same ? nats.error : NAN);
    cli_json_u64("spans", r[0].n_spans);
    cli_json_u64("span_bytes", SPAN);
}

/* ---- choices ---- */

static void run_choices(result *r, cli_engine *e, const settings *s) {
    const double start = cli_now();
    choices      c;
    choices_open(&c, e, &s->setup, s->choices);
    r->choices = choices_file(&c, &r->n_choices);
    r->seconds = cli_now() - start;
    choices_close(&c);
}

static double is_right(const choice_result *c, bool per_byte) {
    return (per_byte ? c->best_per_byte : c->best) == c->answer ? 1 : 0;
}

/* Of the right answers of r or, with `other`, of those of other minus those of r. */
static estimate accuracy(const result *r, const result *other, bool per_byte) {
    double *d = (double *)cli_malloc(r->n_choices * sizeof *d);
    for (size_t i = 0; i < r->n_choices; i++) {
        d[i] = is_right(&r->choices[i], per_byte);
        if (other) d[i] = is_right(&other->choices[i], per_byte) - d[i];
    }
    const estimate e = ratio(d, NULL, r->n_choices);
    free(d);
    return e;
}

static uint64_t count_cut(const result *r) {
    uint64_t n = 0;
    for (size_t i = 0; i < r->n_choices; i++) n += r->choices[i].cut;
    return n;
}

static void print_accuracy(const estimate *e, bool difference, const char *of) {
    printf(difference ? "difference %+.6f" : "accuracy %.6f", e->mean);
    print_error(e);
    printf(", %s\n", of);
}

static void print_choices(const result *r, const result *other) {
    const estimate whole = accuracy(r, other, false), per_byte = accuracy(r, other, true);
    char           of[64];
    snprintf(of, sizeof of, "over %zu questions", r->n_choices);
    print_accuracy(&whole, other != NULL, of);
    print_accuracy(&per_byte, other != NULL, "by likelihood per byte");
    if (!other && count_cut(r))
        printf("%" PRIu64 " contexts were too long and have lost their beginning\n", count_cut(r));
}

static void json_accuracy(const char *key, const estimate *e) {
    char error[64];
    snprintf(error, sizeof error, "%s_standard_error", key);
    cli_json_real(key, e->mean);
    cli_json_real(error, e->error);
}

static void json_choice(const choice_result *c) {
    printf("{\"line\": %" PRIu64, c->line);
    cli_json_u64("answer", c->answer);
    cli_json_u64("choice", c->best);
    cli_json_u64("choice_per_byte", c->best_per_byte);
    cli_json_bool("cut", c->cut);
    cli_json_key("log_likelihood");
    for (uint32_t i = 0; i < c->n; i++) printf("%s%.10g", i ? ", " : "[", c->log_likelihood[i]);
    printf("]}");
}

static void json_choices(const result *r, const settings *s) {
    const estimate whole = accuracy(r, NULL, false), per_byte = accuracy(r, NULL, true);
    cli_json_key("choices");
    cli_json_string(s->choices);
    cli_json_u64("questions", r->n_choices);
    cli_json_u64("cut", count_cut(r));
    json_accuracy("accuracy", &whole);
    json_accuracy("accuracy_per_byte", &per_byte);
    cli_json_key("cases");
    for (size_t i = 0; i < r->n_choices; i++) {
        printf(i ? ", " : "[");
        json_choice(&r->choices[i]);
    }
    printf("]");
}

/* ---- one model, or two ---- */

static void run(result *r, const char *path, const settings *s) {
    cli_engine e;
    r->path = path;
    cli_open_model(&e, path, s->setup.source);
    if (s->compare) r->fingerprint = tokenizer_fingerprint(e.model);
    if (s->text) run_text(r, &e, s);
    else run_choices(r, &e, s);
    r->threads = e.threads;
    cli_close(&e);
}

static void json_result(const result *r, const settings *s) {
    printf("{\"model\": ");
    cli_json_string(r->path);
    if (s->text) json_text_result(r, s);
    else json_choices(r, s);
    cli_json_u64("threads", r->threads);
    cli_json_bool("exact", s->setup.exact);
    cli_json_bool("decode", s->setup.decode);
    cli_json_u64("rss_bytes", cli_peak_rss());
}

static void print_one(const result *r, const settings *s) {
    if (s->json) {
        json_result(r, s);
        printf("}\n");
    } else if (s->text) {
        print_text(r);
    } else {
        print_choices(r, NULL);
    }
}

static void json_both(const result *r, const settings *s) {
    for (int i = 0; i < 2; i++) {
        printf(i ? "}, " : "{\"models\": [");
        json_result(&r[i], s);
    }
    printf("}]");
    if (s->text) {
        json_text_difference(r);
    } else {
        const estimate whole = accuracy(&r[0], &r[1], false), per_byte = accuracy(&r[0], &r[1], true);
        json_accuracy("difference_accuracy", &whole);
        json_accuracy("difference_accuracy_per_byte", &per_byte);
    }
    printf("}\n");
}

static void print_both(const result *r, const settings *s) {
    for (int i = 0; i < 2; i++) {
        printf("%s\n", r[i].path);
        print_one(&r[i], s);
    }
    printf("the second minus the first\n");
    if (s->text) print_text_difference(r);
    else print_choices(&r[0], &r[1]);
}

static void evaluate(const char *const *paths, const settings *s) {
    result    r[2];
    const int n = s->compare ? 2 : 1;
    memset(r, 0, sizeof r);
    for (int i = 0; i < n; i++) run(&r[i], paths[i], s);
    if (n == 1) print_one(&r[0], s);
    else if (s->json) json_both(r, s);
    else print_both(r, s);
    for (int i = 0; i < n; i++) {
        for (size_t k = 0; k < r[i].n_choices; k++) free(r[i].choices[k].log_likelihood);
        free(r[i].choices);
        free(r[i].spans);
    }
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
    cli_report(i + 1, f->count, "tokens");
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
    float *all = ppl_new_logits(e, n);
    f.bytes    = (unsigned char *)cli_malloc(4 * (uint64_t)f.vocab);
    f.count    = n;
    cli_output_open(&f.out, s->logits);
    ppl_run(e, ids, n, all, write_logits, &f);
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
    settings    s        = {.window = 0};
    const char *paths[2] = {NULL, NULL};
    cli_engine  e;
    parse(&s, argc, argv, paths);
    if (s.text || s.choices) {
        evaluate(paths, &s);
    } else {
        if (s.encode) cli_open_file(&e, paths[0], s.setup.source); /* a tokenizer alone will do */
        else cli_open_model(&e, paths[0], s.setup.source);
        if (s.ids) logits(&e, &s);
        else encode_lines(&e, s.encode);
        cli_close(&e);
    }
    cli_end_stdout();
    return 0;
}
