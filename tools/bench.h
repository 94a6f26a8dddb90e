/* bench.h - what the programs that measure speed share: models made for a measurement, what a token reads of them, figures of
 * several repetitions, another program to compare with. */
#ifndef BENCH_H
#define BENCH_H

#include "synthetic.h"

enum { LIST = 8, REPETITIONS = 99 };

/* ---- models that are made for a measurement ---- */

typedef struct bench_model {
    int         synthetic; /* a choice; -1: none */
    bool        unchecked; /* without checksums, unless it is kept */
    shape       shape, given;
    const char *tokenizer, *alloc, *output;
} bench_model;

#define BENCH_MODEL                                        \
    {                                                      \
        .synthetic = -1, .given = {.lookups = UINT32_MAX } \
    }

/* What is made instead of a model file; type_text: the default of --type. */
/* clang-format off */
#define BENCH_MODEL_OPTIONS(m, type_text) \
    {"--synthetic", CLI_CHOICE, &(m)->synthetic, shapes, "a random model of this size", 0, 0}, \
    {"--dim", CLI_U32, &(m)->given.dim, "N", "... with this width instead", 1, 1 << 20}, \
    {"--blocks", CLI_U32, &(m)->given.blocks, "N", "... decoder blocks", 1, 1000}, \
    {"--ffn", CLI_U32, &(m)->given.ffn, "N", "... width of the feed-forward", 1, 1 << 20}, \
    {"--heads", CLI_U32, &(m)->given.heads, "N", "... attention heads", 1, 1 << 16}, \
    {"--kv-heads", CLI_U32, &(m)->given.kv_heads, "N", "... heads of keys and values", 1, 1 << 16}, \
    {"--vocab", CLI_U32, &(m)->given.vocab, "N", "... tokens", 1, 1 << 24}, \
    {"--lookups", CLI_U32, &(m)->given.lookups, "N", "lookup layers (2)", 0, 1000}, \
    {"--rows", CLI_U32, &(m)->given.rows, "N", "rows of each (4 a token; from 0.8B on 710000)", 1, 0}, \
    {"--k", CLI_U32, &(m)->given.k, "N", "rows of a token at most (512)", 1, 0}, \
    {"--d-emb", CLI_U32, &(m)->given.d_emb, "N", "width of values (from 0.8B on 512 to 1024; else none)", 1, 1 << 20}, \
    {"--d-up", CLI_U32, &(m)->given.d_up, "N", "width after W_up (from 0.8B on 4096, else twice the model's)", 1, 1 << 20}, \
    {"--tokenizer", CLI_TEXT, &(m)->tokenizer, "TOK.gguf", "... with this vocabulary, so that --text works", 0, 0}, \
    {"--alloc", CLI_TEXT, &(m)->alloc, "ALLOC.gguf", "... with these rows for each token (as Zipf would have them)", 0, 0}, \
    {"--type", CLI_CHOICE, &(m)->given.type, types, "type of weights and rows (" type_text ")", 0, 0}, \
    {"-o", CLI_TEXT, &(m)->output, "FILE", "keep the synthetic model here", 0, 0}
/* clang-format on */

/* Where given, a number replaces the shape's own. */
static inline void override_shape(shape *s, const shape *given) {
    const uint32_t *from = &given->dim;
    uint32_t       *to   = &s->dim;
    for (size_t i = 0; i < 6; i++)
        if (from[i]) to[i] = from[i];
    if (given->lookups != UINT32_MAX) s->lookups = given->lookups;
    if (given->rows) s->rows = given->rows;
    if (given->k) s->k = given->k;
    if (given->d_emb) s->d_emb = given->d_emb;
    if (given->d_up) s->d_up = given->d_up;
    s->type = given->type;
    if (!s->rows) s->rows = 4 * s->vocab;
}

static inline void check_shape(const shape *s) {
    if (s->dim % s->heads || s->dim / s->heads % 2) cli_usage("--dim must be an even multiple of --heads");
    if (s->heads % s->kv_heads) cli_usage("--heads must be a multiple of --kv-heads");
    if (s->lookups > s->blocks)
        cli_usage("--lookups: there is one after each of the %" PRIu32 " blocks at most", s->blocks);
    if (s->lookups && (s->rows < s->vocab || s->rows > (uint64_t)s->vocab * s->k || s->rows > INT32_MAX))
        cli_usage("--rows %" PRIu32 ": from one to --k for each of the %" PRIu32 " tokens is right", s->rows, s->vocab);
}

/* After the options: the shape, if there is to be one. operands: how many model files were given; context: at least so much. */
static inline void choose_shape(bench_model *m, int operands, const char *text, uint32_t context) {
    if (operands + (m->synthetic >= 0) != 1)
        cli_usage("either a model or --synthetic is expected: %s MODEL [options]", cli_name);
    if (m->synthetic < 0 && (m->output || m->tokenizer || m->alloc))
        cli_usage("-o, --tokenizer and --alloc are for --synthetic");
    if (m->synthetic < 0) return;
    if (text && !m->tokenizer) cli_usage("--text with --synthetic needs --tokenizer");
    m->shape = known_shapes[m->synthetic];
    override_shape(&m->shape, &m->given);
    if (context > m->shape.context) m->shape.context = context;
}
/* A name for a model in $TMPDIR that is removed when the program ends. */
static inline char *temporary_name(const char *what) {
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
static inline void dress_shape(bench_model *m) {
    static cli_engine tokenizer, alloc;
    if (m->tokenizer) {
        cli_open_file(&tokenizer, m->tokenizer, 1);
        if (!tokenizer.info->has_tokenizer) cli_fail("%s: it has no tokenizer that is known here", m->tokenizer);
        m->shape.tokenizer = &tokenizer;
        m->shape.vocab     = tokenizer.info->vocab;
    }
    if (m->alloc) {
        cli_open_file(&alloc, m->alloc, 1);
        const l3_lookup *l = l3_model_lookup(alloc.model, 0, NULL);
        if (!l) cli_fail("%s: it has no rows; an allocation or an L3 model is expected", m->alloc);
        if (m->tokenizer) allocation_check_tokenizer(&alloc, tokenizer.model);
        m->shape.vocab   = l->vocab;
        m->shape.rows    = l->row_count;
        m->shape.k       = l->max_rows;
        m->shape.offsets = cli_offsets(l);
    }
    check_shape(&m->shape);
}

static inline const char *make_synthetic(bench_model *m) {
    const char *path = m->output ? m->output : temporary_name("");
    dress_shape(m);
    m->shape.unchecked = m->unchecked && !m->output;
    write_synthetic(&m->shape, path);
    free(m->shape.offsets);
    return path;
}

/* ---- what a token reads ---- */

/* Bytes of a tensor that decoding a token looks at, without rows of tables. */
static inline uint64_t active_bytes(const l3_model *model, const char *name, const l3_tensor *t) {
    const bool embedding = cli_has(name, "token_embd") && !l3_model_info(model)->tied_head;
    if (cli_has(name, ".lookup_rows") || t->type == L3_I32) return 0;
    return l3_row_bytes(t->type, t->cols) * (embedding ? 1 : t->rows);
}

static inline double weight_bytes(const l3_model *model) {
    char             name[64];
    const l3_tensor *t;
    double           sum = 0;
    for (uint32_t i = 0; (t = l3_model_tensor(model, i, name)) != NULL; i++)
        sum += (double)active_bytes(model, name, t);
    return sum;
}

/* What attention reads of the KV cache for a token at this position, in bytes. */
static inline double kv_bytes(const l3_info *info, int kv_type, double position) {
    return 2.0 * (double)l3_row_bytes(kv_type, info->n_kv_heads * info->head_dim) * info->n_blocks * position;
}

/* The type of the model's largest kind of weights. */
static inline int weight_type(const l3_model *model) {
    char             name[64];
    const l3_tensor *t;
    for (uint32_t i = 0; (t = l3_model_tensor(model, i, name)) != NULL; i++)
        if (cli_has(name, ".ffn_up")) return t->type;
    return L3_F32;
}

/* ---- which tokens ---- */

/* n tokens of a text, from its beginning again if it is short. */
static inline void take_text(const l3_model *model, const char *text, int32_t *ids, size_t n) {
    cli_corpus c;
    cli_read_corpus(&c, model, text);
    for (size_t i = 0, d = 0, at = 0; i < n; i++, at++) {
        while (at == c.lengths[d]) d = (d + 1) % c.n, at = 0;
        ids[i] = c.ids[d][at];
    }
    cli_free_corpus(&c);
}

/* ---- figures of several repetitions ---- */

typedef struct series {
    double   values[REPETITIONS];
    uint32_t n;
} series;

static inline void add(series *s, double value) { s->values[s->n++] = value; }

static inline int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of a copy: the order in which values came pairs those of one repetition. */
static inline series sorted(const series *s) {
    series copy = *s;
    qsort(copy.values, copy.n, sizeof copy.values[0], compare);
    return copy;
}

static inline double median(const series *s) {
    const series x = sorted(s);
    return x.n ? (x.values[(x.n - 1) / 2] + x.values[x.n / 2]) / 2 : NAN;
}

static inline series ratios(const series *a, const series *b) {
    series r = {.n = a->n < b->n ? a->n : b->n};
    for (uint32_t i = 0; i < r.n; i++) r.values[i] = a->values[i] / b->values[i];
    return r;
}

static inline void print_series(const char *name, const series *s, double scale, const char *unit) {
    const series x = sorted(s);
    if (x.n == 0) return;
    printf("  %-13s %10.1f %s (%.1f to %.1f)\n", name, median(&x) * scale, unit, x.values[0] * scale,
           x.values[x.n - 1] * scale);
}

/* Tokens a second of something else, and how many times as fast ours is. */
static inline void print_other(const char *name, const series *own, const series *other) {
    const series x = ratios(own, other), r = sorted(&x), o = sorted(other);
    if (r.n == 0) return;
    printf("  %-13s %10.1f tokens/s (%.1f to %.1f); this is %.3f times that (%.3f to %.3f)\n", name, median(&o),
           o.values[0], o.values[o.n - 1], median(&r), r.values[0], r.values[r.n - 1]);
}

static inline void json_series(const char *name, const series *s, double scale, const char *unit) {
    static const char *const parts[]  = {"", "_min", "_max"};
    const series             x        = sorted(s);
    const double             values[] = {median(&x), x.values[0], x.values[x.n ? x.n - 1 : 0]};
    for (int i = 0; i < 3 && x.n; i++) {
        char key[96];
        snprintf(key, sizeof key, "%s%s%s", name, parts[i], unit);
        cli_json_real(key, values[i] * scale);
    }
}

static inline void json_other(const char *what, const char *part, const series *own, const series *other) {
    char         name[64];
    const series r = ratios(own, other);
    snprintf(name, sizeof name, "%s_%s", what, part);
    json_series(name, other, 1, "_tok_s");
    snprintf(name, sizeof name, "%s_%s_ratio", what, part);
    json_series(name, &r, 1, "");
}

/* ---- another program ---- */

/* What stands for {name} in a command. */
typedef struct peer_word {
    const char *name, *value;
} peer_word;

/* The command with its words filled in, in malloc memory. */
static inline char *peer_command(const char *peer, const peer_word *words, size_t n) {
    size_t longest = 1;
    for (size_t i = 0; i < n; i++) longest += strlen(words[i].value);
    char *command = (char *)cli_malloc(strlen(peer) * longest + 1), *to = command;
    for (const char *at = peer; *at;) {
        size_t i = 0;
        while (i < n && strncmp(at, words[i].name, strlen(words[i].name)) != 0) i++;
        if (i == n) *to++ = *at++;
        else to += sprintf(to, "%s", words[i].value), at += strlen(words[i].name);
    }
    *to = '\0';
    return command;
}

/* Runs it once; the last line that it prints is a figure more of either kind, or of decoding. */
static inline void run_peer(const char *peer, const peer_word *words, size_t n_words, series *prefill, series *decode) {
    char   line[1024], last[1024] = "";
    double x, y;
    char  *command = peer_command(peer, words, n_words), rest;
    FILE  *f       = cli_popen(command);
    if (!f) cli_fail("--compare: %s cannot be run (%s)", command, strerror(errno));
    while (fgets(line, sizeof line, f)) memcpy(last, line, sizeof last);
    const int code = cli_pclose(f);
    if (code) cli_fail("--compare: \"%s\" ended with code %d", command, code);
    const int n = sscanf(last, "%lf %lf %c", &x, &y, &rest);
    if (n != 1 && n != 2)
        cli_fail("--compare: the last line is \"%.*s\"; one or two numbers are expected, tokens a second",
                 (int)strcspn(last, "\r\n"), last);
    if (n == 2) add(prefill, x);
    add(decode, n == 2 ? y : x);
    free(command);
}

#endif /* BENCH_H */
