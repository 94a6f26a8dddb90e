/* l3_alloc.c - how many rows each token gets in the tables of a model that is to be trained: from the LZW parse of a text (the
 * paper's way, l3_alloc_* of l3.h), from how often tokens are, or the same for all. */
#if defined(__linux__) && !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE /* madvise */
#include <sys/mman.h>
#endif
#include "../l3_model.h"

#include "allocation.h"
#include "gguf_write.h"

enum { BY_CODEWORDS, BY_FREQUENCY, UNIFORM, TOP = 12 };
static const char *const rule_names[] = {"codewords", "frequency", "uniform"};

typedef struct settings {
    const char  *tokenizer, *output, *counts, *svg;
    const char **texts;
    size_t       n_texts, memory;
    uint32_t     rows, max; /* of all tokens; of one, 0: no bound */
    bool         lines, uniform, frequency, json;
    int          rule;
} settings;

/* A token with its rows and how often it came. */
typedef struct entry {
    uint32_t id, rows;
    uint64_t count;
} entry;

typedef struct job {
    const settings *s;
    cli_engine      e; /* the tokenizer */
    uint32_t        vocab;
    uint64_t       *frequency; /* (vocab,) */
    uint64_t        documents, tokens, text_bytes;
    uint32_t       *rows;    /* (vocab,) */
    int32_t        *offsets; /* (vocab + 1,) */
    entry          *entries; /* (vocab,) sorted: by_rows() */
    l3_alloc       *alloc;   /* by codewords only, and what follows */
    void           *block;
    size_t          alloc_bytes;
    double          seconds; /* of processor time in l3_alloc_add() */
    l3_alloc_report report;
    uint64_t        bins[ROW_BINS], bin_rows[ROW_BINS], bin_counts[ROW_BINS]; /* tokens, their rows, their frequency */
    double          rows_of_text;                                             /* over all tokens of the text */
} job;

static void parse(settings *s, int argc, char **argv) {
    const cli_option options[] = {
        {"--tokenizer", CLI_TEXT, &s->tokenizer, "TOK.gguf", "a tokenizer, or any model with one", 0, 0},
        {"--rows", CLI_U32, &s->rows, "V", "rows of all tokens together", 1, INT32_MAX},
        {"--max", CLI_U32, &s->max, "K", "rows of one token at most; 0: no bound", 0, INT32_MAX},
        {"-o", CLI_TEXT, &s->output, "ALLOC.gguf", "where the allocation goes", 0, 0},
        {"--lines", CLI_FLAG, &s->lines, "", "every line of TEXT is a document", 0, 0},
        {"--frequency", CLI_FLAG, &s->frequency, "",
         "rows by frequency: the next one always goes to the token with\n"
         "                           most occurrences per row",
         0, 0},
        {"--uniform", CLI_FLAG, &s->uniform, "",
         "V / vocabulary rows each, one more for the lowest IDs until V are given", 0, 0},
        {"--memory", CLI_SIZE, &s->memory, "BYTES[K|M|G]", "for codewords; when it is full none is added (1G)", 0, 0},
        {"--counts", CLI_TEXT, &s->counts, "FILE", "write the rows of token 0, 1, ..., one a line", 0, 0},
        {"--svg", CLI_TEXT, &s->svg, "FILE", "draw rows by rank", 0, 0},
        {"--json", CLI_FLAG, &s->json, "", "print one JSON object", 0, 0},
        {0},
    };
    const cli_program program = {
        "l3-alloc", "--tokenizer TOK.gguf --rows V --max K -o ALLOC.gguf [options] TEXT...",
        "Says how many rows each token gets in the tables of lookup layers. Every token has one; text is cut\n"
        "into codewords as by LZW, and the most frequent ones give their last token one more each, which has\n"
        "K at most. When there are no codewords left, tokens get one each by frequency, again and again.\n"
        "TEXT may end in .xz or .gz, or be - for standard input; a line that is exactly <|endoftext|> ends a\n"
        "document. No BOS or EOS is added. --uniform needs no TEXT.",
        options};
    s->texts   = (const char **)cli_malloc((uint64_t)argc * sizeof *s->texts);
    s->n_texts = (size_t)cli_parse(&program, argc, argv, s->texts, argc);
    s->rule    = s->uniform ? UNIFORM : s->frequency ? BY_FREQUENCY : BY_CODEWORDS;
    if (s->uniform && s->frequency) cli_usage("--uniform and --frequency: one of them, or none");
    if (!s->tokenizer) cli_usage("--tokenizer TOK.gguf is expected, a tokenizer or any model with one");
    if (!s->rows) cli_usage("--rows V is expected, the rows of all tokens together");
    if (s->max == UINT32_MAX) cli_usage("--max K is expected, the rows of one token at most; 0: no bound");
    if (!s->output) cli_usage("-o ALLOC.gguf is expected, where the allocation goes");
    if (s->n_texts == 0 && !s->uniform) cli_usage("a text is expected, or --uniform");
    if (strcmp(s->output, "-") == 0 && s->json) cli_usage("--json needs an output other than standard output");
}

/* ---- the text ---- */

static void open_tokenizer(job *j) {
    const settings *s = j->s;
    cli_open_file(&j->e, s->tokenizer, 0);
    if (!j->e.info->has_tokenizer)
        cli_fail("%s: it has no tokenizer, or another than \"llama\" without normalization", s->tokenizer);
    j->vocab = j->e.info->vocab;
    if (s->rows < j->vocab || (s->max && s->rows > (uint64_t)j->vocab * s->max))
        cli_fail("--rows %" PRIu32 ": for %" PRIu32 " tokens it must be from %" PRIu32 " to %" PRIu64, s->rows,
                 j->vocab, j->vocab, s->max ? (uint64_t)j->vocab * s->max : (uint64_t)INT32_MAX);
    j->frequency = (uint64_t *)cli_malloc((uint64_t)j->vocab * sizeof *j->frequency);
    j->offsets   = (int32_t *)cli_malloc(((uint64_t)j->vocab + 1) * sizeof *j->offsets);
}

/* The most codewords that there can be, UINT64_MAX where the size of a text is not known. A codeword takes two tokens at
 * least, a byte gives six at most: a space that is no piece goes through three byte tokens, and so does one in front. */
static uint64_t codewords_possible(const job *j) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < j->s->n_texts; i++) {
        const char *path = j->s->texts[i];
        FILE       *f = strcmp(path, "-") == 0 || text_tool(path) || cli_is_device(path) ? NULL : cli_fopen(path, "rb");
        const long  end = f && fseek(f, 0, SEEK_END) == 0 ? ftell(f) : -1;
        if (f) fclose(f);
        if (end < 0) return UINT64_MAX;
        bytes += (uint64_t)end;
    }
    return j->vocab + 3 * bytes;
}

/* The dictionary is used in no order: with large pages far fewer of their addresses have to be looked up. */
static void want_large_pages(void *block, size_t size) {
#ifdef MADV_HUGEPAGE
    enum { PAGE = 1 << 12 };
    const size_t skip = PAGE - (size_t)((uintptr_t)block % PAGE);
    if (size > 2 * PAGE) madvise((char *)block + skip, size - skip, MADV_HUGEPAGE);
#else
    (void)block;
    (void)size;
#endif
}

/* As many codewords as fit --memory. */
static void start_alloc(job *j) {
    const uint64_t possible = codewords_possible(j);
    uint32_t       low = j->vocab, high = possible < INT32_MAX ? (uint32_t)possible : INT32_MAX;
    l3_error       err;
    memset(&err, 0, sizeof err);
    if (l3_alloc_size(j->vocab, low) > j->s->memory)
        cli_fail("--memory: %zu bytes are too few for a vocabulary of %" PRIu32 "; %zu or more are right", j->s->memory,
                 j->vocab, l3_alloc_size(j->vocab, low));
    while (low < high) {
        const uint32_t middle = low + (high - low + 1) / 2;
        const size_t   size   = l3_alloc_size(j->vocab, middle);
        if (size && size <= j->s->memory) low = middle;
        else high = middle - 1;
    }
    j->alloc_bytes = l3_alloc_size(j->vocab, low);
    j->block       = cli_aligned(j->alloc_bytes, "the dictionary");
    want_large_pages(j->block, j->alloc_bytes);
    cli_check(l3_alloc_init(&j->alloc, j->vocab, low, j->block, j->alloc_bytes, &err), "the dictionary", &err);
}

static void add_piece(job *j, const token_piece *p) {
    const clock_t start = clock();
    l3_error      err;
    memset(&err, 0, sizeof err);
    if (j->alloc) cli_check(l3_alloc_add(j->alloc, p->ids, p->n, &err), "the text", &err);
    if (j->alloc && p->ends) l3_alloc_end_document(j->alloc);
    j->seconds += (double)(clock() - start) / CLOCKS_PER_SEC;
    for (size_t i = 0; i < p->n; i++) j->frequency[p->ids[i]]++;
    j->tokens += p->n;
    j->documents += p->ends;
}

static void read_texts(job *j) {
    token_reader r;
    token_piece  p;
    tokens_open(&r, j->e.model, j->s->texts, j->s->n_texts, j->s->lines);
    while (tokens_next(&r, &p)) {
        add_piece(j, &p);
        text_report(&r.window.text, false);
    }
    text_report(&r.window.text, true);
    j->text_bytes = r.window.text.text_bytes;
    tokens_close(&r);
    if (j->tokens == 0) cli_fail("%s: there is no text in it", j->s->texts[0]);
}

/* ---- rules other than codewords ---- */

static void place_uniform(job *j) {
    const uint32_t each = j->s->rows / j->vocab, more = j->s->rows % j->vocab;
    for (uint32_t t = 0; t < j->vocab; t++) j->rows[t] = each + (t < more);
}

/* The sign of a * x - b * y, in 96 bits. */
static int compare_products(uint64_t a, uint32_t x, uint64_t b, uint32_t y) {
    const uint64_t a_low = (a & UINT32_MAX) * x, b_low = (b & UINT32_MAX) * y;
    const uint64_t a_high = (a >> 32) * x + (a_low >> 32), b_high = (b >> 32) * y + (b_low >> 32);
    if (a_high != b_high) return a_high > b_high ? 1 : -1;
    return (a_low & UINT32_MAX) > (b_low & UINT32_MAX) ? 1 : (a_low & UINT32_MAX) < (b_low & UINT32_MAX) ? -1 : 0;
}

/* Whether token a gets a row before token b: more occurrences per row, then fewer rows, then the lower ID. */
static bool is_next(const job *j, uint32_t a, uint32_t b) {
    const int sign = compare_products(j->frequency[a], j->rows[b], j->frequency[b], j->rows[a]);
    if (sign) return sign > 0;
    return j->rows[a] != j->rows[b] ? j->rows[a] < j->rows[b] : a < b;
}

/* Moves the token at place i of the heap (n,) down to where it belongs. */
static void sift(const job *j, uint32_t *heap, uint32_t n, uint32_t i) {
    const uint32_t t = heap[i];
    for (uint64_t child; (child = 2 * (uint64_t)i + 1) < n; i = (uint32_t)child) {
        if (child + 1 < n && is_next(j, heap[child + 1], heap[child])) child++;
        if (!is_next(j, heap[child], t)) break;
        heap[i] = heap[child];
    }
    heap[i] = t;
}

/* Highest averages (D'Hondt's method), from one row each to at most K. */
static void place_by_frequency(job *j) {
    uint32_t *heap = (uint32_t *)cli_malloc((uint64_t)j->vocab * sizeof *heap), n = j->vocab;
    for (uint32_t t = 0; t < n; t++) heap[t] = t, j->rows[t] = 1;
    for (uint32_t i = n / 2; i-- > 0;) sift(j, heap, n, i);
    for (uint32_t left = j->s->rows - j->vocab; left; left--) {
        while (j->s->max && j->rows[heap[0]] >= j->s->max) {
            heap[0] = heap[--n];
            sift(j, heap, n, 0);
        }
        j->rows[heap[0]]++;
        sift(j, heap, n, 0);
    }
    free(heap);
}

/* ---- placing ---- */

static void place_by_codewords(job *j) {
    l3_error err;
    memset(&err, 0, sizeof err);
    cli_check(l3_alloc_finish(j->alloc, j->s->rows, j->s->max, j->offsets, &j->report, &err), "allocation", &err);
    for (uint32_t t = 0; t < j->vocab; t++) j->rows[t] = (uint32_t)(j->offsets[t + 1] - j->offsets[t]);
    cli_free_aligned(j->block);
}

/* By rows, then by frequency, falling; then by ID. */
static int by_rows(const void *a, const void *b) {
    const entry *x = (const entry *)a, *y = (const entry *)b;
    if (x->rows != y->rows) return x->rows < y->rows ? 1 : -1;
    if (x->count != y->count) return x->count < y->count ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static void place(job *j) {
    j->rows    = (uint32_t *)cli_malloc((uint64_t)j->vocab * sizeof *j->rows);
    j->entries = (entry *)cli_malloc((uint64_t)j->vocab * sizeof *j->entries);
    if (j->s->rule == UNIFORM) place_uniform(j);
    else if (j->s->rule == BY_FREQUENCY) place_by_frequency(j);
    else place_by_codewords(j);
    for (uint32_t t = 0; t < j->vocab; t++) {
        const uint32_t bin = row_bin(j->rows[t]);
        j->offsets[t + 1]  = j->offsets[t] + (int32_t)j->rows[t];
        j->entries[t]      = (entry){t, j->rows[t], j->frequency[t]};
        j->bins[bin]++;
        j->bin_rows[bin] += j->rows[t];
        j->bin_counts[bin] += j->frequency[t];
        j->rows_of_text += (double)j->rows[t] * (double)j->frequency[t];
    }
    qsort(j->entries, j->vocab, sizeof *j->entries, by_rows);
}

/* ---- files ---- */

static void write_allocation(const job *j) {
    const settings *s     = j->s;
    unsigned char  *bytes = (unsigned char *)cli_malloc(4 * ((uint64_t)j->vocab + 1));
    gguf_writer     w;
    gguf_begin(&w, s->output);
    gguf_string(&w, "general.architecture", "l3");
    gguf_string(&w, "general.type", "allocation");
    gguf_u32(&w, "l3.vocab_size", j->vocab);
    gguf_u32(&w, "l3.lookup.row_count", s->rows);
    if (s->max) gguf_u32(&w, "l3.lookup.rows_per_token_max", s->max);
    gguf_u64(&w, ALLOCATION_FINGERPRINT, tokenizer_fingerprint(j->e.model));
    gguf_string(&w, "allocation.rule", rule_names[s->rule]);
    gguf_u64(&w, "allocation.documents", j->documents);
    gguf_u64(&w, "allocation.tokens", j->tokens);
    gguf_u64(&w, "allocation.text_bytes", j->text_bytes);
    if (s->rule == BY_CODEWORDS) {
        gguf_u64(&w, "allocation.codewords", j->report.codewords);
        gguf_u64(&w, "allocation.full_after_tokens", j->report.full_after);
        gguf_u64(&w, "allocation.placed_by_frequency", j->report.placed_by_frequency);
    }
    gguf_tensor(&w, "blk.0.lookup_offsets", L3_I32, j->vocab + 1, 0);
    gguf_begin_data(&w);
    l3_pack_i32(j->offsets, j->vocab + 1, bytes);
    gguf_data(&w, bytes, 4 * ((size_t)j->vocab + 1));
    gguf_end(&w);
    free(bytes);
}

static void write_counts(const job *j) {
    cli_output out;
    cli_output_open(&out, j->s->counts);
    for (uint32_t t = 0; t < j->vocab; t++) cli_print(&out, "%" PRIu32 "\n", j->rows[t]);
    cli_output_close(&out);
}

/* ---- picture: rows over rank, both logarithmic ---- */

enum { WIDTH = 640, HEIGHT = 400, LEFT = 70, RIGHT = 20, TOP_MARGIN = 40, BOTTOM = 60 };

typedef struct axis {
    double decades;  /* from 1 */
    double from, to; /* in the picture */
} axis;

static double place_on(const axis *a, double v) { return a->from + log10(v) / a->decades * (a->to - a->from); }

/* A line at every power of ten and its number. */
static void draw_grid(cli_output *out, const axis *x, const axis *y) {
    for (int i = 0; i <= x->decades; i++) {
        const double at = place_on(x, pow(10, i));
        cli_print(out, "<path d=\"M%.1f %dV%d\" stroke=\"#ddd\"/>\n", at, TOP_MARGIN, HEIGHT - BOTTOM);
        cli_print(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.0f</text>\n", at, HEIGHT - BOTTOM + 18,
                  pow(10, i));
    }
    for (int i = 0; i <= y->decades; i++) {
        const double at = place_on(y, pow(10, i));
        cli_print(out, "<path d=\"M%d %.1fH%d\" stroke=\"#ddd\"/>\n", LEFT, at, WIDTH - RIGHT);
        cli_print(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.0f</text>\n", LEFT - 8, at + 4, pow(10, i));
    }
}

/* Rows fall with the rank, so the curve is a stair with one step for each number of rows. */
static void draw_curve(cli_output *out, const job *j, const axis *x, const axis *y) {
    cli_print(out, "<path fill=\"none\" stroke=\"#06c\" stroke-width=\"2\" d=\"M%.1f %.1f", x->from,
              place_on(y, j->entries[0].rows));
    for (uint32_t i = 1; i < j->vocab; i++)
        if (j->entries[i].rows != j->entries[i - 1].rows)
            cli_print(out, "H%.1fV%.1f", place_on(x, i + 1), place_on(y, j->entries[i].rows));
    cli_print(out, "H%.1f\"/>\n", place_on(x, j->vocab));
}

static void write_svg(const job *j) {
    const axis x = {fmax(1, log10(j->vocab)), LEFT, WIDTH - RIGHT};
    const axis y = {fmax(1, ceil(log10(j->entries[0].rows))), HEIGHT - BOTTOM, TOP_MARGIN};
    cli_output out;
    cli_output_open(&out, j->s->svg);
    cli_print(&out,
              "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" "
              "font-size=\"12\">\n",
              WIDTH, HEIGHT);
    cli_print(&out, "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n");
    cli_print(&out, "<text x=\"%d\" y=\"24\" font-size=\"15\">%" PRIu32 " rows for %" PRIu32 " tokens, by %s</text>\n",
              LEFT, j->s->rows, j->vocab, rule_names[j->s->rule]);
    draw_grid(&out, &x, &y);
    draw_curve(&out, j, &x, &y);
    cli_print(&out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">rank of the token</text>\n",
              (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14);
    cli_print(&out, "<text transform=\"translate(20 %d) rotate(-90)\" text-anchor=\"middle\">rows</text>\n</svg>\n",
              (TOP_MARGIN + HEIGHT - BOTTOM) / 2);
    cli_output_close(&out);
}

/* ---- report ---- */

/* A token's text in quotes, as JSON writes it. */
static void print_token(l3_tokenizer *tokenizer, uint32_t id) {
    const char *piece;
    size_t      n, length = 0;
    l3_error    err;
    memset(&err, 0, sizeof err);
    cli_check(l3_token_piece(tokenizer, (int32_t)id, &piece, &n, NULL, NULL, &err), "tokenizer", &err);
    char *text = (char *)cli_malloc((uint64_t)n + 1);
    for (size_t i = 0; i < n;) {
        const bool space = n - i >= 3 && memcmp(piece + i, "\xe2\x96\x81", 3) == 0; /* U+2581 */
        text[length++]   = space ? ' ' : piece[i];
        i += space ? 3 : 1;
    }
    cli_json_string(text);
    free(text);
}

static double share(uint64_t part, uint64_t all) { return all ? 100 * (double)part / (double)all : 0; }

static void print_histogram(const job *j) {
    uint64_t most = 0;
    for (uint32_t i = 0; i < ROW_BINS; i++)
        if (j->bins[i] > most) most = j->bins[i];
    printf("\n%14s %10s %9s %9s\n", "rows", "tokens", "of rows", "of text");
    for (uint32_t i = 0; i < ROW_BINS; i++) {
        char name[48];
        if (!j->bins[i]) continue;
        row_bin_name(i, name);
        printf("%14s %10" PRIu64 " %8.2f%% %8.2f%%  ", name, j->bins[i], share(j->bin_rows[i], j->s->rows),
               share(j->bin_counts[i], j->tokens));
        row_bar(j->bins[i], most);
    }
}

static void print_top(const job *j, l3_tokenizer *tokenizer) {
    printf("\n%14s %10s %9s\n", "most rows", "token", "of text");
    for (uint32_t i = 0; i < j->vocab && i < TOP; i++) {
        const entry *e = &j->entries[i];
        printf("%14" PRIu32 " %10" PRIu32 " %8.2f%%  ", e->rows, e->id, share(e->count, j->tokens));
        print_token(tokenizer, e->id);
        putchar('\n');
    }
}

static void print_report(const job *j, l3_tokenizer *tokenizer) {
    const l3_alloc_report *r = &j->report;
    printf("text       %" PRIu64 " tokens, %" PRIu64 " documents, %" PRIu64 " bytes\n", j->tokens, j->documents,
           j->text_bytes);
    if (j->s->rule == BY_CODEWORDS) {
        printf("codewords  %" PRIu64 " in %s", r->codewords, cli_bytes((double)j->alloc_bytes));
        if (r->full_after) printf("; full after %" PRIu64 " tokens, from then on none was added\n", r->full_after);
        else printf("; all there are\n");
        printf("speed      %.2f million tokens a second of processor time, without tokenizing\n",
               1e-6 * (double)j->tokens / j->seconds);
        printf("rows       %" PRIu32 ": one for each token, %" PRIu64 " by codewords, %" PRIu64 " by frequency\n",
               j->s->rows, r->placed_by_code, r->placed_by_frequency);
    } else {
        printf("rows       %" PRIu32 " by rule \"%s\"\n", j->s->rows, rule_names[j->s->rule]);
    }
    printf("a token    %.2f rows in the mean, %" PRIu32 " at most", (double)j->s->rows / j->vocab, j->entries[0].rows);
    if (j->tokens) printf("; %.2f in the mean as tokens come in the text", j->rows_of_text / (double)j->tokens);
    putchar('\n');
    print_histogram(j);
    print_top(j, tokenizer);
}

static void json_top(const job *j, l3_tokenizer *tokenizer) {
    cli_json_key("top");
    for (uint32_t i = 0; i < j->vocab && i < TOP; i++) {
        printf("%s{\"id\": %" PRIu32 ", \"text\": ", i ? ", " : "[", j->entries[i].id);
        print_token(tokenizer, j->entries[i].id);
        cli_json_u64("rows", j->entries[i].rows);
        cli_json_u64("count", j->entries[i].count);
        putchar('}');
    }
    putchar(']');
}

static void print_json(const job *j, l3_tokenizer *tokenizer) {
    const bool codewords = j->s->rule == BY_CODEWORDS;
    printf("{\"tokenizer\": ");
    cli_json_string(j->s->tokenizer);
    cli_json_key("output");
    cli_json_string(j->s->output);
    cli_json_key("rule");
    cli_json_string(rule_names[j->s->rule]);
    cli_json_u64("vocab", j->vocab);
    cli_json_u64("row_count", j->s->rows);
    cli_json_u64("rows_per_token_max", j->s->max);
    cli_json_u64("documents", j->documents);
    cli_json_u64("tokens", j->tokens);
    cli_json_u64("text_bytes", j->text_bytes);
    if (codewords) {
        cli_json_u64("codewords", j->report.codewords);
        cli_json_u64("full_after_tokens", j->report.full_after);
        cli_json_u64("placed_by_codewords", j->report.placed_by_code);
        cli_json_u64("placed_by_frequency", j->report.placed_by_frequency);
        cli_json_u64("dictionary_bytes", j->alloc_bytes);
        cli_json_real("alloc_tok_s", (double)j->tokens / j->seconds);
    }
    cli_json_real("rows_per_token_mean", (double)j->s->rows / j->vocab);
    cli_json_real("text_rows_per_token_mean", j->tokens ? j->rows_of_text / (double)j->tokens : NAN);
    cli_json_u64("rows_per_token_worst", j->entries[0].rows);
    row_bins_json(j->bins);
    json_top(j, tokenizer);
    cli_json_u64("rss_bytes", cli_peak_rss());
    printf("}\n");
}

static void report(const job *j) {
    cli_tokenizer t;
    cli_tokenizer_open(&t, j->e.model, 0);
    if (j->s->json) print_json(j, t.tokenizer);
    else print_report(j, t.tokenizer);
    cli_tokenizer_close(&t);
}

int main(int argc, char **argv) {
    settings s = {.max = UINT32_MAX, .memory = (size_t)1 << 30};
    job      j = {.s = &s};
    parse(&s, argc, argv);
    open_tokenizer(&j);
    if (s.rule == BY_CODEWORDS) start_alloc(&j);
    if (s.n_texts) read_texts(&j);
    place(&j);
    write_allocation(&j);
    if (s.counts) write_counts(&j);
    if (s.svg) write_svg(&j);
    if (strcmp(s.output, "-") != 0) report(&j);
    cli_end_stdout();
    cli_close(&j.e);
    free(j.frequency), free(j.offsets), free(j.rows), free(j.entries), free((void *)s.texts);
    return 0;
}
