/* l3_inspect.c - what is in a GGUF file, for people or as JSON: shapes, sizes, how many rows tokens own, what a token
 * costs to read, what memory a session takes; and whether the file is sound. */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "allocation.h"
#include "budget.h"

enum { PARTS = 64, MAX_LOOKUPS = 64, RUN = 1024 };

typedef struct settings {
    bool         json, verify;
    budget_setup budget; /* with the text and the context for the rest, too */
} settings;

/* Tensors of one class and type. */
typedef struct part {
    const char *name, *type;
    uint32_t    tensors;
    uint64_t    parameters, bytes;
} part;

typedef struct lookup {
    const l3_lookup *layer;
    uint32_t         block;
    uint64_t         row_bytes;
    uint64_t         tokens[ROW_BINS]; /* that own 0, 1, 2, 3-4, 5-8, ... rows */
    int32_t         *offsets;
    int32_t          worst; /* the token with most rows */
} lookup;

typedef struct report {
    cli_engine e;
    part       parts[PARTS];
    uint32_t   n_parts, n_lookups;
    lookup     lookups[MAX_LOOKUPS];
    uint64_t parameters, table_parameters, table_bytes, weight_bytes; /* the last: read for every token if not mapped */
    double   active, mean, text; /* parameters; bytes of rows a token: over the vocabulary, over --text (or -1) */
    uint64_t worst;
    int32_t  worst_token;
    size_t   model_bytes[2], tokenizer_bytes[2], session_bytes[2][3]; /* map, read; for decoding, for encoding; types */
    uint32_t context;
    budget_report budget;          /* with --budget */
    float         fast_difference; /* of the self-test in fast mode, from the stored logits; of their range */
} report;

static const char *parse(settings *s, int argc, char **argv) {
    const char   *path      = NULL;
    budget_setup *b         = &s->budget;
    cli_option    options[] = {
           {"--json", CLI_FLAG, &s->json, "", "print one JSON object", 0, 0},
           {"--verify", CLI_FLAG, &s->verify, "", "check every bound and every checksum, run the self-test", 0, 0},
           {"--text", CLI_TEXT, &b->text, "FILE", "expect tokens as often as they are in this text (.xz, .gz, too)", 0, 0},
           CLI_CONTEXT_OPTION(&b->setup),
           {"--budget", CLI_SIZE, &b->ram, "BYTES[K|M|G]",
            "what a device with so much RAM needs, by purpose, and reads from flash;\n"
               "                           what to lower, or what spare RAM is good for. With it:",
            0, 0},
           CLI_KV_OPTION(&b->setup),
           {"--batch", CLI_U32, &b->batch, "N", "tokens of a prompt at once (1)", 1, 65536},
           {"--window", CLI_SIZE, &b->setup.window, "BYTES[K|M|G]", "memory that weights are read through (4K)", 0, 0},
           CLI_CACHE_OPTION(&b->setup),
           {"--pin", CLI_SIZE, &b->setup.pin, "BYTES[K|M|G]", "weights that stay in RAM (what is spare)", 0, 0},
           {"--run", CLI_U32, &b->run, "BYTES", "longest word that is tokenized; 0: only decoding (64)", 0, 1 << 20},
           {"--page", CLI_U32, &b->page, "BYTES", "reads are whole pages of this size (1)", 0, L3_MAX_ALIGN},
           {"--ahead", CLI_FLAG, &b->ahead, "", "rows are read ahead (start and wait), through a second window", 0, 0},
           {"--mapped", CLI_FLAG, &b->mapped, "", "the flash is mapped: nothing is read through a window", 0, 0},
           {"--here", CLI_FLAG, &b->here, "", "sizes on this machine instead of a 32-bit one", 0, 0},
           {0},
    };
    const cli_program program = {"l3-inspect",
                                 "MODEL [--json] [--verify] [--text FILE] [-c CONTEXT] [--budget BYTES ...]",
                                 "Says what is in a model, a tokenizer or an allocation, and what it needs.", options};
    b->batch = 1, b->run = 64;
    if (cli_parse(&program, argc, argv, &path, 1) != 1) cli_usage("a file is expected: l3-inspect MODEL");
    return path;
}

/* ---- gathering ---- */

static const char *class_of(const char *name) {
    if (cli_has(name, ".lookup_rows")) return "lookup tables";
    if (cli_has(name, ".lookup_offsets") || cli_has(name, "checksum")) return "lookup index";
    if (cli_has(name, "_norm")) return "norms";
    if (cli_has(name, ".lookup_")) return "lookup mixing";
    if (cli_has(name, "token_embd")) return "embedding";
    if (cli_has(name, ".attn_")) return "attention";
    if (cli_has(name, ".ffn_")) return "feed-forward";
    return strcmp(name, "output.weight") == 0 ? "head" : "other";
}

static uint64_t tensor_bytes(const l3_tensor *t) {
    return t->rows * (t->type == L3_I32 ? 4 * (uint64_t)t->cols : l3_row_bytes(t->type, t->cols));
}

static void add_tensor(report *r, const char *name, const l3_tensor *t) {
    const char *class = class_of(name), *type = t->type == L3_I32 ? "i32" : l3_type_name(t->type);
    uint32_t i = 0;
    while (i < r->n_parts && (strcmp(r->parts[i].name, class) != 0 || strcmp(r->parts[i].type, type) != 0)) i++;
    if (i == PARTS) return;
    if (i == r->n_parts) r->parts[r->n_parts++] = (part){class, type, 0, 0, 0};
    const uint64_t n = (uint64_t)t->rows * t->cols, bytes = tensor_bytes(t);
    r->parts[i].tensors++;
    r->parts[i].parameters += n;
    r->parts[i].bytes += bytes;
    if (t->type != L3_I32) r->parameters += n;
    if (strcmp(class, "lookup tables") == 0) r->table_parameters += n, r->table_bytes += bytes;
    else if (strcmp(class, "embedding") == 0 && !r->e.info->tied_head) r->weight_bytes += bytes / t->rows;
    else if (t->type != L3_I32) r->weight_bytes += bytes;
}

static uint32_t rows_of(const lookup *l, uint32_t token) {
    return (uint32_t)(l->offsets[token + 1] - l->offsets[token]);
}

static void add_lookup(report *r, uint32_t i) {
    lookup *l    = &r->lookups[i];
    l->layer     = l3_model_lookup(r->e.model, i, &l->block);
    l->row_bytes = l3_row_bytes(l->layer->rows.type, l->layer->rows.cols);
    l->offsets   = cli_offsets(l->layer);
    for (uint32_t t = 0; t < l->layer->vocab; t++) {
        l->tokens[row_bin(rows_of(l, t))]++;
        if (rows_of(l, t) > rows_of(l, (uint32_t)l->worst)) l->worst = (int32_t)t;
    }
    r->mean += (double)l->row_bytes * l->layer->row_count / l->layer->vocab;
}

static uint64_t row_bytes_of(const report *r, uint32_t token) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < r->n_lookups; i++) sum += r->lookups[i].row_bytes * rows_of(&r->lookups[i], token);
    return sum;
}

static void add_text(report *r, const char *path) {
    token_reader t;
    token_piece  p;
    double       sum = 0;
    tokens_open(&t, r->e.model, &path, 1, false);
    while (tokens_next(&t, &p))
        for (size_t i = 0; i < p.n; i++) sum += (double)row_bytes_of(r, (uint32_t)p.ids[i]);
    if (t.tokens == 0) cli_fail("%s: there is no text in it", path);
    r->text = sum / (double)t.tokens;
    tokens_close(&t);
}

static void add_memory(report *r, const settings *s, const char *path) {
    cli_engine other;
    cli_open_file(&other, path, 1);
    const cli_engine *engines[2] = {&r->e, &other};
    r->context                   = s->budget.setup.context ? s->budget.setup.context : r->e.info->context;
    for (int source = 0; source < 2; source++) {
        r->model_bytes[source] = engines[source]->model_size;
        for (int kv = 0; kv < 3 && r->e.info->kind == L3_KIND_MODEL; kv++) {
            const cli_setup         setup  = {.context = r->context, .kv = kv};
            const l3_session_config config = cli_session_config(&setup);
            r->session_bytes[source][kv]   = l3_session_size(engines[source]->model, &config);
            if (r->session_bytes[source][kv] == 0)
                cli_fail("-c %" PRIu32 ": no session of this model can have that; 1 to %" PRIu32 " is right",
                         r->context, r->e.info->context);
        }
    }
    cli_close(&other);
    r->tokenizer_bytes[0] = l3_tokenizer_size(r->e.model, 0);
    r->tokenizer_bytes[1] = l3_tokenizer_size(r->e.model, RUN);
}

static void gather(report *r, settings *s, const char *path) {
    char             name[64];
    const l3_tensor *t;
    cli_open_file(&r->e, path, 0);
    for (uint32_t i = 0; (t = l3_model_tensor(r->e.model, i, name)) != NULL; i++) add_tensor(r, name, t);
    r->n_lookups = r->e.info->n_lookups;
    if (r->n_lookups > MAX_LOOKUPS) cli_fail("%s: more than %d lookup layers", path, MAX_LOOKUPS);
    for (uint32_t i = 0; i < r->n_lookups; i++) add_lookup(r, i);
    for (uint32_t i = 0; i < r->e.info->vocab && r->n_lookups; i++)
        if (row_bytes_of(r, i) > r->worst) r->worst = row_bytes_of(r, i), r->worst_token = (int32_t)i;
    r->active = r->e.info->kind == L3_KIND_MODEL ? cli_active_parameters(r->e.model) : 0;
    r->text   = -1;
    if (s->budget.text) add_text(r, s->budget.text);
    add_memory(r, s, path);
    if (s->budget.ram && r->e.info->kind != L3_KIND_MODEL) cli_fail("%s: --budget is for models", path);
    if (s->budget.ram) budget_gather(&r->budget, &r->e, &s->budget);
}

static bool has_row_checksums(const lookup *l) { return l->layer->checksums.data || l->layer->checksums.source; }

static uint32_t count_row_checksums(const report *r) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->n_lookups; i++) n += has_row_checksums(&r->lookups[i]);
    return n;
}

/* The file's self-test with every kind of KV cache, in exact and in fast mode, by this machine's kernels. */
static void run_selftest(report *r) {
    for (int run = 0; run < 6; run++) {
        const cli_setup setup = {.kv = run / 2, .exact = run % 2 == 0, .context = r->e.info->selftest_tokens};
        cli_engine      e;
        l3_error        err;
        float           difference;
        memset(&err, 0, sizeof err);
        cli_open_model(&e, r->e.path, CLI_MAP);
        cli_start_session(&e, &setup);
        cli_check(l3_session_selftest(e.session, &difference, &err), r->e.path, &err);
        if (difference > r->fast_difference) r->fast_difference = difference;
        cli_close(&e);
    }
}

static void verify(report *r) {
    l3_error err;
    memset(&err, 0, sizeof err);
    cli_check(l3_model_verify(r->e.model, &err), r->e.path, &err);
    if (r->e.info->selftest_tokens) run_selftest(r);
}

/* ---- for people ---- */

static const char *kind_name(l3_kind kind) {
    return kind == L3_KIND_MODEL ? "model" : kind == L3_KIND_TOKENIZER ? "tokenizer" : "allocation";
}

/* The vocabulary's text of a token, in quotes; nothing without a tokenizer. */
static void print_piece(const report *r, int32_t id) {
    cli_tokenizer t;
    const char   *piece;
    size_t        n;
    if (!r->e.info->has_tokenizer) return;
    cli_tokenizer_open(&t, r->e.model, 0);
    if (l3_token_piece(t.tokenizer, id, &piece, &n, NULL, NULL, NULL) == L3_OK) {
        printf(" \"");
        for (size_t i = 0; i < n; i++) putchar((unsigned char)piece[i] < 0x20 || piece[i] == 0x7f ? '?' : piece[i]);
        printf("\"");
    }
    cli_tokenizer_close(&t);
}

static void print_head(const report *r) {
    const l3_info *x = r->e.info;
    printf("file           %s, %" PRIu64 " bytes\n", r->e.path, x->file_bytes);
    printf("holds          %s%s%s%s\n", x->kind == L3_KIND_ALLOCATION ? "an " : "a ", kind_name(x->kind),
           x->name[0] ? ": " : "", x->name);
    printf("vocabulary     %" PRIu32 " tokens", x->vocab);
    if (x->has_tokenizer)
        printf("; tokenizer llama, BOS %" PRId32 "%s, EOS %" PRId32 ", unknown %" PRId32 ", longest piece %" PRIu32
               " bytes",
               x->bos, x->add_bos ? "" : " (not put in front)", x->eos, x->unknown, x->longest_piece);
    printf("\n");
    if (x->kind != L3_KIND_MODEL) return;
    printf("architecture   %s: %" PRIu32 " blocks of width %" PRIu32 ", feed-forward %" PRIu32 ", context %" PRIu32
           "\n",
           x->architecture, x->n_blocks, x->dim, x->ffn_dim, x->context);
    printf("attention      %" PRIu32 " heads of %" PRIu32 ", %" PRIu32 " for keys and values; RoPE over %" PRIu32
           ", base %g; RMS epsilon %g\n",
           x->n_heads, x->head_dim, x->n_kv_heads, x->rope_dims, x->rope_base, (double)x->rms_epsilon);
    printf("head           %s\n", x->tied_head ? "the embedding" : "its own matrix");
}

static void print_layer(const l3_lookup *l, uint32_t block) {
    printf("lookup         after block %" PRIu32 ": %" PRIu32 " rows, %s%s of %" PRIu32 " + %" PRIu32
           "%s, up to %" PRIu32 "\n",
           block, l->row_count, l3_type_name(l->rows.type), l->tied ? ", keys are the values" : ", key and value",
           l->key_length, l->tied ? 0 : l->value_length, l->up.data || l->up.source ? "" : ", no W_up", l->up_length);
    printf("               query norm %s, key norm %s, score scale %g, %s norm, residual %s\n",
           l->query_norm ? "yes" : "no", l->key_norm ? "yes" : "no", (double)l->score_scale,
           l->layer_norm ? "layer" : "RMS", l->residual ? "yes" : "no");
}

static void print_parts(const report *r) {
    printf("\ntensors\n");
    for (uint32_t i = 0; i < r->n_parts; i++) {
        const part *p = &r->parts[i];
        printf("  %-14s %-5s %4" PRIu32 " tensors %14" PRIu64 " values %12s %6.1f%%\n", p->name, p->type, p->tensors,
               p->parameters, cli_bytes((double)p->bytes), 100 * (double)p->bytes / (double)r->e.info->file_bytes);
    }
    if (r->e.info->kind != L3_KIND_MODEL) return;
    printf("\nparameters     %" PRIu64 " in all, %.0f active a token (with the mean number of rows)\n", r->parameters,
           r->active);
    printf("tables         %" PRIu64 " parameters, %s: %.1f%% of the file\n", r->table_parameters,
           cli_bytes((double)r->table_bytes), 100 * (double)r->table_bytes / (double)r->e.info->file_bytes);
}

static void print_histogram(const report *r, const lookup *l) {
    uint64_t most = 1;
    uint32_t last = 0;
    for (uint32_t i = 0; i < ROW_BINS; i++) {
        if (l->tokens[i] > most) most = l->tokens[i];
        if (l->tokens[i]) last = i;
    }
    printf("\nrows per token after block %" PRIu32 ": %.2f in the mean, %" PRIu32 " at most (token %" PRId32, l->block,
           (double)l->layer->row_count / l->layer->vocab, rows_of(l, (uint32_t)l->worst), l->worst);
    print_piece(r, l->worst);
    printf(")\n");
    for (uint32_t i = 0; i <= last; i++) {
        char range[48];
        row_bin_name(i, range);
        printf("  %13s rows %9" PRIu64 " tokens  ", range, l->tokens[i]);
        row_bar(l->tokens[i], most);
    }
}

static void print_reading(const report *r, const char *text) {
    printf("\nbytes of rows a token\n");
    printf("  expected       %12.0f   if every token is as likely as the others\n", r->mean);
    if (r->text >= 0) printf("  expected       %12.0f   if tokens come as in %s\n", r->text, text);
    printf("  worst          %12" PRIu64 "   token %" PRId32, r->worst, r->worst_token);
    print_piece(r, r->worst_token);
    printf("\n");
    if (r->e.info->kind == L3_KIND_MODEL)
        printf("  and            %12" PRIu64 "   of weights, unless they are mapped or shared by a batch\n",
               r->weight_bytes);
}

static void print_memory(const report *r) {
    static const char *const sources[] = {"mapped", "read"};
    printf("\nmemory\n  model          %12zu bytes mapped, %zu read\n", r->model_bytes[0], r->model_bytes[1]);
    if (r->e.info->has_tokenizer)
        printf("  tokenizer      %12zu bytes to decode, %zu to encode runs of %d bytes\n", r->tokenizer_bytes[0],
               r->tokenizer_bytes[1], RUN);
    if (r->e.info->kind != L3_KIND_MODEL) return;
    printf("  session        %12s %12s %12s   for a context of %" PRIu32 "\n", "kv f32", "f16", "q8_0", r->context);
    for (int source = 0; source < 2; source++)
        printf("    %-12s %12zu %12zu %12zu\n", sources[source], r->session_bytes[source][0],
               r->session_bytes[source][1], r->session_bytes[source][2]);
}

static void print_checksums(const report *r, bool verified) {
    const uint32_t n = count_row_checksums(r);
    printf("\nchecksums      file: %s; row blocks: ", r->e.info->has_file_checksum ? "yes" : "no");
    if (r->n_lookups == 0) printf("there are none\n");
    else printf("%" PRIu32 " of %" PRIu32 " layers\n", n, r->n_lookups);
    if (r->e.info->selftest_tokens) printf("self-test      %" PRIu32 " tokens\n", r->e.info->selftest_tokens);
    if (!verified) return;
    printf("verified       every bound%s%s%s\n", r->e.info->has_file_checksum ? ", the file's checksum" : "",
           n ? ", the checksum of every row block" : "",
           n || r->e.info->has_file_checksum ? "" : "; there is no checksum to compare");
    if (r->e.info->selftest_tokens)
        printf("               the self-test: the same bits in exact mode, within %.3f%% of the range in fast mode\n",
               100 * (double)r->fast_difference);
}

static void print_report(const report *r, const settings *s) {
    if (s->budget.ram) {
        budget_print(&r->budget);
        return;
    }
    print_head(r);
    for (uint32_t i = 0; i < r->n_lookups && r->e.info->kind == L3_KIND_MODEL; i++)
        print_layer(r->lookups[i].layer, r->lookups[i].block);
    if (r->n_parts) print_parts(r);
    for (uint32_t i = 0; i < r->n_lookups; i++) print_histogram(r, &r->lookups[i]);
    if (r->n_lookups && r->e.info->kind == L3_KIND_MODEL) print_reading(r, s->budget.text);
    print_memory(r);
    print_checksums(r, s->verify);
}

/* ---- JSON ---- */

static void json_info(const l3_info *x) {
    cli_json_key("kind");
    cli_json_string(kind_name(x->kind));
    cli_json_key("architecture");
    cli_json_string(x->architecture);
    cli_json_key("name");
    cli_json_string(x->name);
    cli_json_u64("vocab", x->vocab);
    cli_json_u64("context", x->context);
    cli_json_u64("dim", x->dim);
    cli_json_u64("ffn_dim", x->ffn_dim);
    cli_json_u64("n_blocks", x->n_blocks);
    cli_json_u64("n_heads", x->n_heads);
    cli_json_u64("n_kv_heads", x->n_kv_heads);
    cli_json_u64("head_dim", x->head_dim);
    cli_json_u64("rope_dims", x->rope_dims);
    cli_json_real("rope_base", x->rope_base);
    cli_json_float("rms_epsilon", x->rms_epsilon);
    cli_json_bool("tied_head", x->tied_head);
    cli_json_bool("has_tokenizer", x->has_tokenizer);
    cli_json_bool("add_bos", x->add_bos);
    cli_json_real("bos", x->bos);
    cli_json_real("eos", x->eos);
    cli_json_real("unknown", x->unknown);
}

static void json_lookup(const lookup *l) {
    const l3_lookup *x = l->layer;
    printf("{\"block\": %" PRIu32, l->block);
    cli_json_u64("row_count", x->row_count);
    cli_json_u64("rows_per_token_max", x->max_rows);
    cli_json_real("rows_per_token_mean", (double)x->row_count / x->vocab);
    cli_json_u64("rows_per_token_worst", rows_of(l, (uint32_t)l->worst));
    cli_json_u64("key_length", x->key_length);
    cli_json_u64("value_length", x->value_length);
    cli_json_u64("up_length", x->up_length);
    cli_json_bool("tied", x->tied);
    cli_json_bool("query_norm", x->query_norm);
    cli_json_bool("key_norm", x->key_norm);
    cli_json_bool("layer_norm", x->layer_norm);
    cli_json_bool("residual", x->residual);
    cli_json_float("score_scale", x->score_scale);
    cli_json_u64("row_bytes", l->row_bytes);
    cli_json_bool("checksums", has_row_checksums(l));
    row_bins_json(l->tokens);
    putchar('}');
}

static void json_parts(const report *r) {
    cli_json_key("tensors");
    putchar('[');
    for (uint32_t i = 0; i < r->n_parts; i++) {
        const part *p = &r->parts[i];
        printf("%s{\"class\": \"%s\", \"type\": \"%s\"", i ? ", " : "", p->name, p->type);
        cli_json_u64("tensors", p->tensors);
        cli_json_u64("parameters", p->parameters);
        cli_json_u64("bytes", p->bytes);
        putchar('}');
    }
    putchar(']');
}

static void json_cases(const report *r) {
    static const char *const types[] = {"f32", "f16", "q8_0"};
    cli_json_key("cases");
    putchar('[');
    for (int i = 0; i < 6 && r->e.info->kind == L3_KIND_MODEL; i++)
        printf("%s{\"source\": \"%s\", \"type\": \"%s\", \"context\": %" PRIu32 ", \"session_bytes\": %zu}",
               i ? ", " : "", i < 3 ? "map" : "read", types[i % 3], r->context, r->session_bytes[i / 3][i % 3]);
    putchar(']');
}

static void print_json(const report *r, const settings *s) {
    printf("{\"model\": ");
    cli_json_string(r->e.path);
    cli_json_u64("file_bytes", r->e.info->file_bytes);
    json_info(r->e.info);
    cli_json_u64("parameters", r->parameters);
    cli_json_real("active_parameters", r->active);
    cli_json_u64("table_parameters", r->table_parameters);
    cli_json_u64("table_bytes", r->table_bytes);
    cli_json_real("table_share", (double)r->table_bytes / (double)r->e.info->file_bytes);
    json_parts(r);
    cli_json_key("lookups");
    putchar('[');
    for (uint32_t i = 0; i < r->n_lookups; i++) {
        if (i) printf(", ");
        json_lookup(&r->lookups[i]);
    }
    putchar(']');
    cli_json_real("read_bytes_per_token", r->mean);
    cli_json_real("text_read_bytes_per_token", r->text >= 0 ? r->text : NAN);
    cli_json_u64("worst_read_bytes_per_token", r->worst);
    cli_json_u64("weight_bytes_per_token", r->weight_bytes);
    cli_json_u64("model_bytes", r->model_bytes[0]);
    cli_json_u64("model_read_bytes", r->model_bytes[1]);
    cli_json_u64("tokenizer_decode_bytes", r->tokenizer_bytes[0]);
    cli_json_u64("tokenizer_encode_bytes", r->tokenizer_bytes[1]);
    json_cases(r);
    cli_json_bool("file_checksum", r->e.info->has_file_checksum);
    cli_json_bool("row_checksums", r->n_lookups && count_row_checksums(r) == r->n_lookups);
    cli_json_u64("selftest_tokens", r->e.info->selftest_tokens);
    cli_json_real("selftest_fast_difference",
                  s->verify && r->e.info->selftest_tokens ? (double)r->fast_difference : NAN);
    cli_json_bool("verified", s->verify);
    if (s->budget.ram) budget_json(&r->budget);
    printf("}\n");
}

int main(int argc, char **argv) {
    settings      s    = {.json = false};
    const char   *path = parse(&s, argc, argv);
    static report r;
    gather(&r, &s, path);
    if (s.verify) verify(&r);
    if (s.json) print_json(&r, &s);
    else print_report(&r, &s);
    for (uint32_t i = 0; i < r.n_lookups; i++) free(r.lookups[i].offsets);
    cli_close(&r.e);
    cli_end_stdout();
    return 0;
}
