/* l3_quantize.c - a model with its matrices in other types, class by class: tables, weights, embedding, head. Tensors pass
 * through buffers of a fixed size, so memory does not grow with the model. Keys are copied byte by byte, but for those that
 * speak of types, checksums and the self-test. */
#include "../l3_model.h"

#include "gguf_copy.h"
#include "perplexity.h"

enum { WEIGHTS, ROWS, EMBEDDING, HEAD, OTHER }; /* classes; OTHER is copied: norms, biases, offsets */
enum { PIECE = 1 << 16, LINES = 64 };           /* a piece: elements converted at once, whole blocks of every type */

#define TYPES "f32|f16|bf16|q8_0|q4_0"
static const int         type_of[]     = {L3_F32, L3_F16, L3_BF16, L3_Q8_0, L3_Q4_0};
static const char *const class_names[] = {"weights", "rows", "embedding", "head", "other"};

typedef struct settings {
    const char *in, *out, *text;
    int         types[OTHER]; /* which of type_of; -1: not given */
    cli_setup   setup;
    bool        json;
} settings;

/* Tensors of one class with one type before, one asked for and one after. */
typedef struct line {
    int class, before, asked, after;
    uint64_t tensors, values, bytes_before, bytes_after;
    double   squares, error_squares, max_error; /* of the values before; of after - before */
} line;

typedef struct job {
    const settings *s;
    cli_engine      e; /* the input, by explicit reads */
    gguf_writer     w;
    line            lines[LINES];
    uint32_t        n_lines;
    bool            has_file_type;           /* the input has general.file_type */
    uint64_t        read_bytes, all_bytes;   /* of tensors: so far, in the end */
    uint64_t        input_bytes, file_bytes; /* of the input, of the output */
    float          *values, *back;           /* (PIECE,) before; what the output's bytes mean */
    unsigned char  *in, *out;                /* a piece's bytes */
    ppl_sum         text[2];                 /* before, after */
} job;

static void parse(settings *s, int argc, char **argv) {
    const char *paths[2]  = {NULL, NULL};
    cli_option  options[] = {
         {"--weights", CLI_CHOICE, &s->types[WEIGHTS], TYPES, "every matrix of the blocks", 0, 0},
         {"--rows", CLI_CHOICE, &s->types[ROWS], TYPES, "the tables of the lookup layers", 0, 0},
         {"--embedding", CLI_CHOICE, &s->types[EMBEDDING], TYPES, "token_embd.weight", 0, 0},
         {"--head", CLI_CHOICE, &s->types[HEAD], TYPES, "output.weight", 0, 0},
         {"--text", CLI_TEXT, &s->text, "FILE", "print this text's perplexity before and after", 0, 0},
         CLI_THREADS_OPTION(&s->setup),
         {"--json", CLI_FLAG, &s->json, "", "print one JSON object", 0, 0},
         {0},
    };
    const cli_program program = {
        "l3-quantize", "IN.gguf OUT.gguf [--weights TYPE] [--rows TYPE] [--embedding TYPE] [--head TYPE]",
        "Writes a model with its matrices in other types. A class that is not named follows --weights; without\n"
        "--weights it stays as it is, so that no option at all copies the model and adds checksums. Norms, biases\n"
        "and offsets stay as they are. Rows that are no whole blocks of 32 become f16 instead, which the report\n"
        "says. OUT may be IN; the perplexity of --text is l3-eval's, in windows of the whole context.",
        options};
    for (int i = 0; i < OTHER; i++) s->types[i] = -1;
    if (cli_parse(&program, argc, argv, paths, 2) != 2)
        cli_usage("two files are expected: l3-quantize IN.gguf OUT.gguf");
    s->in  = paths[0];
    s->out = paths[1];
    for (int i = 0; i < OTHER; i++)
        if (s->types[i] < 0) s->types[i] = s->types[WEIGHTS];
    if (strcmp(s->out, "-") == 0 && (s->text || s->json))
        cli_usage("--text and --json need an output other than standard output");
    if (s->text && cli_is_device(s->out)) cli_fail("%s: --text needs an output that can be read again", s->out);
}

/* ---- keys ---- */

/* general.file_type of a file whose weights are mostly of this type, as other programs number them. */
static uint32_t file_type(int type) {
    switch (type) {
    case L3_F16: return 1;
    case L3_Q4_0: return 2;
    case L3_Q8_0: return 7;
    case L3_Q6_K: return 18;
    case L3_BF16: return 32;
    default: return 0; /* F32 */
    }
}

/* Keys that do not depend on types are copied. */
static bool is_copied(void *user, const l3_gguf_key *k) {
    job *j = (job *)user;
    if (strcmp(k->name, "general.file_type") == 0) return !(j->has_file_type = true);
    return strcmp(k->name, "general.quantization_version") != 0 && !gguf_is_check_key(k->name);
}

static void add_type_keys(job *j) {
    uint64_t most   = 0;
    int      type   = L3_F32; /* of most weights */
    bool     blocks = false;
    for (uint32_t i = 0; i < j->n_lines; i++) {
        const line *l = &j->lines[i];
        if (l->class == WEIGHTS && l->values > most) most = l->values, type = l->after;
        blocks |= l3_type_block(l->after) > 1;
    }
    if (j->has_file_type) gguf_u32(&j->w, "general.file_type", file_type(type));
    if (blocks) gguf_u32(&j->w, "general.quantization_version", 2); /* of ggml's block layouts */
}

/* ---- tensors ---- */

static int class_of(const char *name) {
    if (strcmp(name, "token_embd.weight") == 0) return EMBEDDING;
    if (strcmp(name, "output.weight") == 0) return HEAD;
    if (cli_has(name, ".lookup_rows")) return ROWS;
    return gguf_is_vector(name) ? OTHER : WEIGHTS;
}

/* No block may straddle two rows, or the key and the value of a lookup row. */
static bool fits(const job *j, int class, int type, uint32_t cols) {
    const uint32_t block = l3_type_block(type);
    if (class == ROWS) cols = l3_model_lookup(j->e.model, 0, NULL)->key_length;
    return cols % block == 0 && (class != ROWS || l3_model_lookup(j->e.model, 0, NULL)->value_length % block == 0);
}

static line *line_of(job *j, const char *name, const l3_tensor *t) {
    const int class = class_of(name), choice = class == OTHER ? -1 : j->s->types[class];
    const int asked = choice < 0 ? t->type : type_of[choice];
    const int after = fits(j, class, asked, t->cols) || asked == t->type ? asked : L3_F16;
    uint32_t  i     = 0;
    for (; i < j->n_lines; i++) {
        const line *l = &j->lines[i];
        if (l->class == class && l->before == t->type && l->asked == asked && l->after == after) break;
    }
    if (i == LINES) cli_fail("%s: more kinds of tensors than there can be", j->s->in);
    if (i == j->n_lines) j->lines[j->n_lines++] = (line){.class = class, t->type, asked, after};
    return &j->lines[i];
}

static uint64_t bytes_of(int type, uint64_t n) {
    const uint32_t block = l3_type_block(type);
    return n / block * l3_row_bytes(type, block);
}

static void announce(job *j, const char *name, const l3_tensor *t) {
    line          *l = line_of(j, name, t);
    const uint64_t n = (uint64_t)t->rows * t->cols;
    l->tensors++;
    l->values += n;
    l->bytes_before += bytes_of(l->before, n);
    l->bytes_after += bytes_of(l->after, n);
    j->all_bytes += bytes_of(l->before, n);
    gguf_tensor(&j->w, name, (l3_type)l->after, t->cols, l->class != OTHER ? t->rows : 0);
}

/* A block of Q4_0: element i is scale times q[i]. */
typedef struct q4_block {
    float scale, q[32];
    float error; /* sum of squares */
} q4_block;

static float nearest_half(float v) {
    unsigned char bytes[2];
    float         half;
    l3_pack(L3_F16, &v, 1, bytes);
    l3_unpack(L3_F16, bytes, 0, 1, &half);
    return half;
}

static q4_block q4_round(const float *x, float scale) {
    q4_block    b       = {.scale = nearest_half(scale)};
    const float inverse = b.scale < 0 || b.scale > 0 ? 1 / b.scale : 0;
    for (int i = 0; i < 32; i++) {
        float v = x[i] * inverse; /* rounded by adding a number whose last bit is worth 1 */
        v       = v < -8 ? -8 : v > 7 ? 7 : v;
        b.q[i]  = (v + 12582912.0f) - 12582912.0f;
        b.error += (x[i] - b.scale * b.q[i]) * (x[i] - b.scale * b.q[i]);
    }
    return b;
}

/* With what the elements were rounded to, the scale that leaves the least error is the projection of x on it. */
static q4_block q4_refine(const float *x, const q4_block *b) {
    float xq = 0, qq = 0;
    for (int i = 0; i < 32; i++) xq += x[i] * b->q[i], qq += b->q[i] * b->q[i];
    return q4_round(x, qq > 0 ? xq / qq : 0);
}

/* l3_pack() maps the element of largest magnitude to -8. Here it goes to 7 ... 9 in steps of a quarter, of either sign (what
 * is out of range is cut), each scale is refined once, and the best is kept: stories-l3.gguf with all its matrices in Q4_0
 * has a perplexity of 19.08 so, 19.53 with l3_pack(), 18.71 in F32 (stories_eval.txt). */
static void pack_q4_0(const float *x, unsigned char *dst) {
    q4_block best = {.error = INFINITY};
    float    peak = 0;
    for (int i = 0; i < 32; i++)
        if (fabsf(x[i]) > fabsf(peak)) peak = x[i];
    for (int step = 28; step <= 36; step++)
        for (int sign = -1; sign <= 1; sign += 2) {
            const q4_block plain = q4_round(x, (float)sign * peak / ((float)step / 4)), refined = q4_refine(x, &plain);
            if (!(plain.error >= best.error)) best = plain;
            if (refined.error < best.error) best = refined;
        }
    l3_pack(L3_F16, &best.scale, 1, dst);
    for (int i = 0; i < 16; i++) dst[2 + i] = (unsigned char)((int)best.q[i] + 8 + 16 * ((int)best.q[i + 16] + 8));
}

/* One piece of n elements in j->in; what it became is in j->out. */
static void convert(job *j, line *l, const char *name, uint32_t n) {
    double worst = 0;
    l3_unpack(l->before, j->in, 0, n, j->values);
    for (uint32_t i = 0; i < n; i++)
        if (!cli_finite((double)j->values[i])) cli_fail("%s: %s has values that are no finite numbers", j->s->in, name);
    if (l->after != L3_Q4_0) l3_pack(l->after, j->values, n, j->out);
    else
        for (uint32_t i = 0; i < n; i += 32) pack_q4_0(j->values + i, j->out + i / 32 * 18);
    l3_unpack(l->after, j->out, 0, n, j->back);
    for (uint32_t i = 0; i < n; i++) {
        const double error = (double)j->back[i] - (double)j->values[i];
        l->squares += (double)j->values[i] * (double)j->values[i];
        l->error_squares += error * error;
        if (!(fabs(error) <= worst)) worst = fabs(error);
    }
    if (!cli_finite(worst)) cli_fail("%s: %s has numbers that %s cannot hold", j->s->in, name, l3_type_name(l->after));
    if (worst > l->max_error) l->max_error = worst;
}

static void copy_tensor(job *j, const char *name, const l3_tensor *t) {
    line          *l   = line_of(j, name, t);
    const uint64_t all = (uint64_t)t->rows * t->cols;
    for (uint64_t at = 0; at < all; at += PIECE) {
        const uint32_t n     = all - at < PIECE ? (uint32_t)(all - at) : PIECE;
        const size_t   bytes = (size_t)bytes_of(l->before, n);
        const uint64_t from  = t->offset + bytes_of(l->before, at);
        gguf_read(j->s->in, t->source, from, j->in, bytes);
        if (l->after != l->before) convert(j, l, name, n);
        gguf_data(&j->w, l->after != l->before ? j->out : j->in, (size_t)bytes_of(l->after, n));
        j->read_bytes += bytes;
        cli_report(j->read_bytes, j->all_bytes, "bytes");
    }
}

static int by_class(const void *a, const void *b) { return ((const line *)a)->class - ((const line *)b)->class; }

static void each_tensor(job *j, void (*what)(job *j, const char *name, const l3_tensor *t)) {
    const l3_tensor *t;
    char             name[64];
    for (uint32_t i = 0; (t = l3_model_tensor(j->e.model, i, name)) != NULL; i++) what(j, name, t);
}

static void check_classes(const job *j) {
    if (j->e.info->tied_head && j->s->types[HEAD] != j->s->types[WEIGHTS])
        cli_fail("--head: %s has no output.weight; its head is the embedding", j->s->in);
    if (j->e.info->n_lookups == 0 && j->s->types[ROWS] != j->s->types[WEIGHTS])
        cli_fail("--rows: %s has no lookup layer", j->s->in);
}

/* The input is closed before the output gets its name, which may be the same. */
static void quantize(job *j) {
    l3_error err;
    memset(&err, 0, sizeof err);
    cli_open_model(&j->e, j->s->in, 1);
    j->input_bytes = j->e.info->file_bytes;
    check_classes(j);
    cli_check(l3_model_verify(j->e.model, &err), j->s->in, &err); /* no new checksums over damage */
    gguf_begin(&j->w, j->s->out);
    gguf_copy_keys(&j->w, j->s->in, &j->e.file.source, is_copied, j);
    each_tensor(j, announce);
    qsort(j->lines, j->n_lines, sizeof *j->lines, by_class);
    add_type_keys(j);
    gguf_begin_data(&j->w);
    each_tensor(j, copy_tensor);
    cli_close(&j->e);
    j->file_bytes = gguf_size(&j->w);
    gguf_end(&j->w);
}

static void measure(job *j, const char *path, int which) {
    cli_engine e;
    ppl        p;
    cli_open_model(&e, path, 0);
    ppl_open(&p, &e, &j->s->setup, 0, 0);
    ppl_text(&p, j->s->text, NULL);
    j->text[which] = p.total;
    ppl_close(&p);
    cli_close(&e);
}

/* ---- report ---- */

static double rms(double squares, uint64_t n) { return n ? sqrt(squares / (double)n) : 0; }
static double relative(const line *l) { return l->squares > 0 ? sqrt(l->error_squares / l->squares) : 0; }

static void print_table(const job *j) {
    printf("%-10s %-5s    %-5s %8s %13s %12s    %12s %10s %9s %10s\n", "class", "from", "to", "tensors", "values",
           "bytes before", "after", "RMS error", "relative", "largest");
    for (uint32_t i = 0; i < j->n_lines; i++) {
        const line *l = &j->lines[i];
        printf("%-10s %-5s -> %-5s %8" PRIu64 " %13" PRIu64 " %12" PRIu64 " -> %12" PRIu64 " %10.3g %8.3f%% %10.3g\n",
               class_names[l->class], l3_type_name(l->before), l3_type_name(l->after), l->tensors, l->values,
               l->bytes_before, l->bytes_after, rms(l->error_squares, l->values), 100 * relative(l), l->max_error);
    }
    printf("file       %" PRIu64 " -> %" PRIu64 " bytes (%.1f%%)\n", j->input_bytes, j->file_bytes,
           100 * (double)j->file_bytes / (double)j->input_bytes);
    for (uint32_t i = 0; i < j->n_lines; i++)
        if (j->lines[i].asked != j->lines[i].after)
            printf("note       %" PRIu64 " tensors of class %s are %s: their rows are no whole blocks of %s\n",
                   j->lines[i].tensors, class_names[j->lines[i].class], l3_type_name(j->lines[i].after),
                   l3_type_name(j->lines[i].asked));
    if (!j->s->text) return;
    const double a = ppl_perplexity(&j->text[0]), b = ppl_perplexity(&j->text[1]);
    printf("perplexity %.6f -> %.6f (%+.3f%%) over %" PRIu64 " tokens\n", a, b, 100 * (b / a - 1), j->text[0].tokens);
}

static void json_line(const line *l) {
    printf("{\"class\": \"%s\", \"type_before\": \"%s\", \"type_asked\": \"%s\", \"type_after\": \"%s\"",
           class_names[l->class], l3_type_name(l->before), l3_type_name(l->asked), l3_type_name(l->after));
    cli_json_u64("tensors", l->tensors);
    cli_json_u64("values", l->values);
    cli_json_u64("bytes_before", l->bytes_before);
    cli_json_u64("bytes_after", l->bytes_after);
    cli_json_real("rms_value_before", l->after != l->before ? rms(l->squares, l->values) : NAN);
    cli_json_real("rms_error", rms(l->error_squares, l->values));
    cli_json_real("max_error", l->max_error);
    putchar('}');
}

static void print_json(const job *j) {
    printf("{\"model\": ");
    cli_json_string(j->s->in);
    cli_json_key("output");
    cli_json_string(j->s->out);
    cli_json_u64("file_bytes_before", j->input_bytes);
    cli_json_u64("file_bytes_after", j->file_bytes);
    cli_json_key("cases");
    putchar('[');
    for (uint32_t i = 0; i < j->n_lines; i++) {
        if (i) printf(", ");
        json_line(&j->lines[i]);
    }
    putchar(']');
    if (j->s->text) {
        cli_json_real("perplexity_before", ppl_perplexity(&j->text[0]));
        cli_json_real("perplexity_after", ppl_perplexity(&j->text[1]));
        cli_json_u64("tokens", j->text[0].tokens);
    }
    cli_json_u64("rss_bytes", cli_peak_rss());
    printf("}\n");
}

int main(int argc, char **argv) {
    static job j;
    settings   s = {.json = false};
    parse(&s, argc, argv);
    j.s      = &s;
    j.values = (float *)cli_malloc(PIECE * sizeof(float));
    j.back   = (float *)cli_malloc(PIECE * sizeof(float));
    j.in     = (unsigned char *)cli_malloc(PIECE * sizeof(float));
    j.out    = (unsigned char *)cli_malloc(PIECE * sizeof(float));
    if (s.text) measure(&j, s.in, 0);
    quantize(&j);
    if (s.text) measure(&j, s.out, 1);
    if (s.json) print_json(&j);
    else if (strcmp(s.out, "-") != 0) print_table(&j);
    cli_end_stdout();
    free(j.values), free(j.back), free(j.in), free(j.out);
    return 0;
}
