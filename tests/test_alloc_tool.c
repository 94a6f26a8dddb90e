/* l3-alloc against the reference's tokens and allocation, a naive highest-averages method, and the fixtures; what its file and
 * its report say; what is refused. */
#include "../tools/allocation.h"

#include "make_model.h"
#include "ref.h"
#include "tool.h"

enum { VOCAB = 300, DOCS = 24, DOC_BYTES = 400 };

static char model_path[600], text_path[600], out_path[600], counts_path[600];

typedef struct setting {
    unsigned char *bytes;
    size_t         n;
    ref_model     *ref;
    int            n_docs;
    char           docs[DOCS][DOC_BYTES];
    int32_t        ids[DOCS][3 * DOC_BYTES]; /* as the reference tokenizes them */
    size_t         lengths[DOCS];
    uint64_t       tokens, text_bytes, frequency[VOCAB];
} setting;

/* Words out of a few letters, so that codewords grow long. No line breaks, so that a document can be a line. */
static void make_document(char *doc, test_rng *r) {
    static const char *const words[] = {"a", "cat",         "dog", "ran", "the",  " ",
                                        ".", "caf\xc3\xa9", "zz",  "\t<", "home", ", and"};
    size_t                   n       = 0;
    for (uint32_t left = 1 + test_below(r, 60); left; left--)
        n +=
            (size_t)snprintf(doc + n, DOC_BYTES - n, "%s%s", n ? " " : "", words[test_below(r, 1 + test_below(r, 12))]);
}

/* A document a line, or a mark behind each. */
static void write_text(const setting *x, int lines) {
    FILE *f = fopen(text_path, "wb");
    if (!CHECK(f != NULL)) return;
    for (int i = 0; i < x->n_docs; i++) fprintf(f, lines ? "%s\n" : "%s\n<|endoftext|>\n", x->docs[i]);
    fclose(f);
}

static setting *open_setting(uint64_t seed) {
    setting *x    = (setting *)calloc(1, sizeof *x);
    test_rng r    = {seed};
    mk_spec  spec = {.seed = seed, .dim = 32, .n_blocks = 1, .n_heads = 2, .ffn = 32, .vocab = VOCAB, .context = 16};
    spec.no_space_prefix = seed % 3 == 0;
    x->bytes             = mk_model(&spec, &x->n);
    x->ref               = ref_load(x->bytes, x->n);
    x->n_docs            = 1 + (int)test_below(&r, DOCS);
    for (int i = 0; i < x->n_docs; i++) {
        make_document(x->docs[i], &r);
        x->lengths[i] = ref_encode(x->ref, x->docs[i], strlen(x->docs[i]), x->ids[i]);
        for (size_t k = 0; k < x->lengths[i]; k++) x->frequency[x->ids[i][k]]++;
        x->tokens += x->lengths[i];
        x->text_bytes += strlen(x->docs[i]);
    }
    test_temp("model.gguf", model_path, sizeof model_path);
    test_temp("text", text_path, sizeof text_path);
    test_temp("out.gguf", out_path, sizeof out_path);
    test_temp("counts", counts_path, sizeof counts_path);
    unlink(out_path);
    CHECK(x->ref && test_write(model_path, x->bytes, x->n));
    return x;
}

static void close_setting(setting *x) {
    ref_free(x->ref);
    free(x->bytes);
    free(x);
}

static json *run_alloc(uint32_t rows, uint32_t max, const char *arguments, const char *text) {
    const tool_result r =
        tool_run("l3-alloc", "--tokenizer '%s' --rows %u --max %u -o '%s' --counts '%s' --json %s %s%s%s", model_path,
                 rows, max, out_path, counts_path, arguments, text ? "'" : "", text ? text : "", text ? "'" : "");
    return tool_json(&r);
}

/* ---- what it wrote ---- */

static void read_counts(const char *path, uint32_t vocab, uint32_t *counts) {
    unsigned char *text = test_read(path, NULL);
    char          *p    = (char *)text;
    if (!CHECK(text != NULL)) return;
    CHECK_EQ(tool_lines(p), vocab);
    for (uint32_t t = 0; t < vocab; t++) counts[t] = (uint32_t)strtoul(p, &p, 10);
    CHECK_STR(p, "\n");
    free(text);
}

/* FNV-1a over the tokenizer's keys, as text.h says. */
static uint64_t hash(uint64_t h, const void *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) h = (h ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
    return h;
}

static uint64_t hash_u32(uint64_t h, uint32_t v) {
    for (int i = 0; i < 4; i++, v >>= 8) h = hash(h, (const unsigned char[]){(unsigned char)(v & 255)}, 1);
    return h;
}

static uint64_t fingerprint(const ref_gguf *g) {
    uint64_t h = 14695981039346656037u;
    for (uint32_t t = 0; t < VOCAB; t++) {
        size_t      n;
        const char *piece = ref_string(g, "tokenizer.ggml.tokens", t, &n);
        const float score = (float)ref_number(g, "tokenizer.ggml.scores", t, 0);
        uint32_t    bits;
        memcpy(&bits, &score, 4);
        h = hash_u32(hash(hash_u32(h, (uint32_t)n), piece, n), bits);
        h = hash_u32(h, (uint32_t)ref_number(g, "tokenizer.ggml.token_type", t, 0));
    }
    h = hash_u32(h, 1); /* BOS */
    h = hash_u32(h, 2); /* EOS */
    return hash_u32(h, ref_number(g, "tokenizer.ggml.add_space_prefix", 0, 1) != 0);
}

static void check_allocation(const setting *x, const uint32_t *counts, uint32_t rows, uint32_t max) {
    size_t         n     = 0;
    unsigned char *bytes = test_read(out_path, &n);
    ref_gguf      *g     = bytes ? ref_gguf_open(bytes, n) : NULL;
    REQUIRE(g != NULL);
    const ref_tensor *t  = ref_tensor_find(g, "blk.0.lookup_offsets");
    double           *at = ref_tensor_read(g, "blk.0.lookup_offsets", NULL), sum = 0;
    REQUIRE(t && at && t->n_elements == VOCAB + 1);
    for (uint32_t i = 0; i < VOCAB; sum += counts[i++]) CHECK_EQ(at[i], sum);
    CHECK_EQ(at[VOCAB], rows);
    CHECK_EQ(ref_tensor_count(g), 1);
    CHECK_STR(ref_string(g, "general.type", 0, NULL), "allocation");
    CHECK_EQ(ref_number(g, "l3.lookup.row_count", 0, 0), rows);
    CHECK_EQ(ref_number(g, "l3.lookup.rows_per_token_max", 0, 0), max);
    CHECK_EQ(ref_number(g, "l3.vocab_size", 0, 0), VOCAB);
    CHECK_EQ(ref_number(g, "allocation.tokens", 0, -1), x->tokens);
    CHECK_EQ(ref_number(g, "allocation.tokenizer_fingerprint", 0, 0), (double)fingerprint(ref_file(x->ref)));
    free(at);
    ref_gguf_close(g);
    free(bytes);
    const tool_result r = tool_run("l3-inspect", "'%s' --verify --json", out_path);
    CHECK(r.code == 0 && strstr(r.out, "\"kind\": \"allocation\"") && strstr(r.out, "\"file_checksum\": true"));
}

/* The report's numbers against the rows themselves. */
static void check_report(const setting *x, const json *v, const uint32_t *counts) {
    double      of_text = 0, tokens = 0, previous = INFINITY;
    uint32_t    most = 0;
    const json *top  = json_get(v, "top");
    for (uint32_t t = 0; t < VOCAB; t++) {
        of_text += (double)counts[t] * (double)x->frequency[t];
        if (counts[t] > most) most = counts[t];
    }
    CHECK_EQ(json_number(v, "documents"), x->n_docs);
    CHECK_EQ(json_number(v, "tokens"), x->tokens);
    CHECK_EQ(json_number(v, "text_bytes"), x->text_bytes);
    CHECK_NEAR(json_number(v, "text_rows_per_token_mean"), of_text / (double)x->tokens, 1e-6);
    CHECK_EQ(json_number(v, "rows_per_token_worst"), most);
    for (const json *bin = json_get(v, "rows_histogram")->first; bin; bin = bin->next) {
        uint32_t n = 0;
        for (uint32_t t = 0; t < VOCAB; t++)
            n += counts[t] >= json_number(bin, "from") && counts[t] <= json_number(bin, "to");
        CHECK_EQ(json_number(bin, "tokens"), n);
        tokens += n;
    }
    CHECK_EQ(tokens, VOCAB);
    for (const json *e = top->first; e; e = e->next) {
        const uint32_t id = (uint32_t)json_number(e, "id");
        CHECK_EQ(json_number(e, "rows"), counts[id]);
        CHECK_EQ(json_number(e, "count"), x->frequency[id]);
        CHECK(counts[id] <= previous);
        previous = counts[id];
    }
    CHECK_EQ(json_number(top->first, "rows"), most);
}

/* ---- rules ---- */

static void codewords(setting *x, uint32_t rows, uint32_t max, int lines) {
    const int32_t *docs[DOCS];
    uint32_t       want[VOCAB] = {0}, got[VOCAB] = {0};
    uint64_t       fallback = 0;
    for (int i = 0; i < x->n_docs; i++) docs[i] = x->ids[i];
    write_text(x, lines);
    json *v = run_alloc(rows, max, lines ? "--lines" : "", text_path);
    REQUIRE(v != NULL);
    read_counts(counts_path, VOCAB, got);
    CHECK_EQ(ref_alloc(docs, x->lengths, (size_t)x->n_docs, VOCAB, rows, max, want, &fallback), rows);
    CHECK_MEM(got, want, sizeof want);
    CHECK_EQ(json_number(v, "placed_by_frequency"), fallback);
    CHECK_EQ(json_number(v, "placed_by_codewords"), rows - VOCAB - fallback);
    CHECK_EQ(json_number(v, "full_after_tokens"), 0);
    check_allocation(x, got, rows, max);
    check_report(x, v, got);
    json_free(v);
}

TEST(by_codewords) {
    test_rng r = {1};
    for (uint64_t seed = 1; seed <= 8; seed++) {
        setting *x = open_setting(seed);
        for (int lines = 0; lines < 2; lines++) {
            const uint32_t max = test_below(&r, 3) ? 4 + test_below(&r, 12) : 0;
            codewords(x, VOCAB + test_below(&r, max ? VOCAB * (max - 1) : 3000), max, lines);
        }
        close_setting(x);
    }
}

/* One row after another goes to the token with most occurrences per row; of equals to the one with fewer rows, then to the
 * lowest ID. */
static void naive_frequency(const setting *x, uint32_t rows, uint32_t max, uint32_t *counts) {
    for (uint32_t t = 0; t < VOCAB; t++) counts[t] = 1;
    for (uint32_t left = rows - VOCAB; left; left--) {
        uint32_t best = VOCAB;
        for (uint32_t t = 0; t < VOCAB; t++) {
            if (max && counts[t] >= max) continue;
            const double a = best < VOCAB ? (double)x->frequency[t] * counts[best] : 1;
            const double b = best < VOCAB ? (double)x->frequency[best] * counts[t] : 0;
            if (a > b || (a == b && counts[t] < counts[best])) best = t;
        }
        counts[best]++;
    }
}

TEST(by_frequency) {
    test_rng r = {2};
    for (uint64_t seed = 1; seed <= 6; seed++) {
        setting       *x = open_setting(seed);
        uint32_t       want[VOCAB], got[VOCAB] = {0};
        const uint32_t max  = test_below(&r, 3) ? 2 + test_below(&r, 12) : 0;
        const uint32_t rows = VOCAB + test_below(&r, max ? VOCAB * (max - 1) + 1 : 3000);
        write_text(x, 0);
        json *v = run_alloc(rows, max, "--frequency", text_path);
        REQUIRE(v != NULL);
        read_counts(counts_path, VOCAB, got);
        naive_frequency(x, rows, max, want);
        CHECK_MEM(got, want, sizeof want);
        check_allocation(x, got, rows, max);
        check_report(x, v, got);
        json_free(v);
        close_setting(x);
    }
}

TEST(uniform) {
    static const uint32_t cases[] = {VOCAB, VOCAB + 1, 2 * VOCAB - 1, 2 * VOCAB, 5 * VOCAB - 7, 5 * VOCAB};
    setting              *x       = open_setting(1);
    write_text(x, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t got[VOCAB] = {0};
        json    *v          = run_alloc(cases[i], 5, "--uniform", i % 2 ? text_path : NULL);
        REQUIRE(v != NULL);
        read_counts(counts_path, VOCAB, got);
        for (uint32_t t = 0; t < VOCAB; t++) CHECK_EQ(got[t], cases[i] / VOCAB + (t < cases[i] % VOCAB));
        if (i % 2) check_report(x, v, got);
        else CHECK_EQ(json_number(v, "tokens"), 0);
        json_free(v);
    }
    close_setting(x);
}

/* Little memory: the library with as many codewords as the report says gives the same, full after the same token. */
TEST(little_memory) {
    setting        *x = open_setting(1);
    char            options[64];
    uint32_t        got[VOCAB] = {0};
    int32_t         offsets[VOCAB + 1];
    l3_alloc       *a;
    l3_alloc_report report;
    const size_t    memory = l3_alloc_size(VOCAB, VOCAB + 40);
    snprintf(options, sizeof options, "--memory %zu", memory + 17);
    write_text(x, 0);
    json *v = run_alloc(2 * VOCAB, 0, options, text_path);
    REQUIRE(v != NULL);
    read_counts(counts_path, VOCAB, got);
    const uint32_t words = (uint32_t)json_number(v, "codewords");
    const size_t   size  = l3_alloc_size(VOCAB, words);
    CHECK(words >= VOCAB + 40 && size <= memory + 17);
    CHECK_EQ(json_number(v, "dictionary_bytes"), size);
    void *block = cli_aligned(size, "the test");
    REQUIRE(l3_alloc_init(&a, VOCAB, words, block, size, NULL) == L3_OK);
    for (int i = 0; i < x->n_docs; i++) {
        CHECK_EQ(l3_alloc_add(a, x->ids[i], x->lengths[i], NULL), L3_OK);
        l3_alloc_end_document(a);
    }
    CHECK_EQ(l3_alloc_finish(a, 2 * VOCAB, 0, offsets, &report, NULL), L3_OK);
    for (uint32_t t = 0; t < VOCAB; t++) CHECK_EQ(got[t], offsets[t + 1] - offsets[t]);
    CHECK(report.full_after > 0);
    CHECK_EQ(json_number(v, "full_after_tokens"), report.full_after);
    json_free(v);
    cli_free_aligned(block);
    const tool_result r = tool_run("l3-alloc", "--tokenizer '%s' --rows %d --max 0 -o '%s' %s '%s'", model_path,
                                   2 * VOCAB, out_path, options, text_path);
    CHECK(r.code == 0 && strstr(r.out, "; full after "));
    close_setting(x);
}

/* ---- fixtures ---- */

TEST(fixture) {
    char text[1024], tokenizer[1024], counts[1024];
    if (!test_fixture("alloc/stories_lines.txt", text, sizeof text) ||
        !test_fixture("alloc/stories_lines.counts.txt", counts, sizeof counts) ||
        !test_fixture("stories-l3.gguf", tokenizer, sizeof tokenizer))
        SKIP("no fixtures");
    test_temp("out.gguf", out_path, sizeof out_path);
    test_temp("counts", counts_path, sizeof counts_path);
    const tool_result r =
        tool_run("l3-alloc", "--tokenizer '%s' --rows 16384 --max 64 --lines --counts '%s' -o '%s' '%s'", tokenizer,
                 counts_path, out_path, text);
    size_t         n, m;
    unsigned char *got = test_read(counts_path, &n), *want = test_read(counts, &m);
    CHECK_EQ(r.code, 0);
    REQUIRE(got && want);
    CHECK_EQ(n, m);
    CHECK_MEM(got, want, n < m ? n : m);
    CHECK(strstr(r.out, "million tokens a second") && strstr(r.out, "  \" and\"\n"));
    free(got), free(want);
}

/* ---- other outputs ---- */

static int falling(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? 1 : -(x > y);
}

/* The stair goes right and down, inside of the axes; every step where the next smaller number of rows begins. */
static void check_curve(const char *svg, uint32_t *counts) {
    uint32_t rank = 0;
    qsort(counts, VOCAB, sizeof *counts, falling);
    const char *p = strstr(svg, "stroke-width=\"2\" d=\"M");
    REQUIRE(p != NULL);
    p += strlen("stroke-width=\"2\" d=\"M");
    char  *end;
    double x = strtod(p, &end), y = strtod(end, &end);
    CHECK(x == 70 && y >= 40 && y <= 340);
    while (*end != '"') {
        const char   axis = *end;
        const double v    = strtod(end + 1, &end);
        REQUIRE(axis == 'H' || axis == 'V');
        while (axis == 'H' && rank + 1 < VOCAB && counts[rank + 1] == counts[rank]) rank++;
        if (axis == 'H' && ++rank < VOCAB) CHECK_NEAR(v, 70 + log10(rank + 1) / log10(VOCAB) * 550, 0.06);
        if (axis == 'H') CHECK(v >= x && v <= 620), x = v;
        else CHECK(v >= y && v <= 340), y = v;
    }
    CHECK_NEAR(x, 620, 0.05);
}

TEST(picture) {
    setting *x = open_setting(4);
    char     svg[600];
    uint32_t counts[VOCAB] = {0};
    write_text(x, 0);
    test_temp("rows.svg", svg, sizeof svg);
    const tool_result r =
        tool_run("l3-alloc", "--tokenizer '%s' --rows 2000 --max 50 -o '%s' --svg '%s' --counts '%s' '%s'", model_path,
                 out_path, svg, counts_path, text_path);
    CHECK_EQ(r.code, 0);
    char *picture = (char *)test_read(svg, NULL);
    REQUIRE(picture != NULL);
    CHECK(strncmp(picture, "<svg xmlns=", 11) == 0 && strstr(picture, "</svg>\n"));
    CHECK(strstr(picture, ">rank of the token</text>") && strstr(picture, ">rows</text>"));
    read_counts(counts_path, VOCAB, counts);
    check_curve(picture, counts);
    free(picture);
    close_setting(x);
}

TEST(standard_streams) {
    setting *x = open_setting(4);
    write_text(x, 0);
    json          *v = run_alloc(1000, 20, "", text_path);
    size_t         n;
    unsigned char *want = test_read(counts_path, &n);
    json_free(v);
    tool_result    r   = tool_run("l3-alloc", "--tokenizer '%s' --rows 1000 --max 20 -o '%s' --counts '%s' - <'%s'",
                                  model_path, out_path, counts_path, text_path);
    unsigned char *got = test_read(counts_path, NULL);
    CHECK_EQ(r.code, 0);
    CHECK_STR((char *)got, (char *)want);
    r           = tool_run("l3-alloc", "--tokenizer '%s' --rows 1000 --max 20 -o - '%s'", model_path, text_path);
    ref_gguf *g = ref_gguf_open(r.out, r.out_bytes);
    CHECK(r.code == 0 && g && ref_tensor_find(g, "blk.0.lookup_offsets"));
    if (g) ref_gguf_close(g);
    free(got), free(want);
    close_setting(x);
}

/* ---- whose tokens ---- */

/* Exit code of the check in a process of its own. */
static int check_in_child(const char *allocation, const char *tokenizer) {
    int         status;
    const pid_t child = fork();
    if (child == 0) {
        cli_engine a, t;
        if (!freopen("/dev/null", "w", stderr)) _exit(9);
        cli_open_file(&a, allocation, 1);
        cli_open_file(&t, tokenizer, 0);
        allocation_check_tokenizer(&a, t.model);
        _exit(0);
    }
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(another_tokenizer) {
    setting *x = open_setting(1), *y;
    char     other[600];
    json    *v = run_alloc(VOCAB, 1, "--uniform", NULL);
    CHECK(v != NULL);
    json_free(v);
    CHECK_EQ(check_in_child(out_path, model_path), 0);
    CHECK_EQ(check_in_child(model_path, model_path), 0); /* a model's own allocation */
    test_temp("out.gguf", other, sizeof other);
    y = open_setting(2); /* removes the output, and has other pieces */
    CHECK(test_write(test_temp("x.gguf", other, sizeof other), x->bytes, x->n));
    v = run_alloc(VOCAB, 1, "--uniform", NULL);
    json_free(v);
    CHECK_EQ(check_in_child(out_path, other), 1);
    CHECK_EQ(check_in_child(model_path, other), 1);
    close_setting(x);
    close_setting(y);
}

/* ---- refused ---- */

static void without_tokenizer(setting *x, char *path, size_t n) {
    for (size_t i = 0; i + 40 < x->n; i++)
        if (memcmp(x->bytes + i, "tokenizer.ggml.model", 20) == 0) {
            x->bytes[i + 20 + 4 + 8] = 'L'; /* "Llama" */
            break;
        }
    CHECK(test_write(test_temp("none.gguf", path, n), x->bytes, x->n));
}

TEST(refused) {
    setting *x = open_setting(1);
    char     none[600];
    write_text(x, 0);
#define REFUSED(code, words, arguments, ...) CHECK_REFUSED(code, words, "l3-alloc", arguments, __VA_ARGS__)
    REFUSED(1, "from 300 to 1200", "--tokenizer '%s' --rows 299 --max 4 -o '%s' '%s'", model_path, out_path, text_path);
    REFUSED(1, "from 300 to 1200", "--tokenizer '%s' --rows 1201 --max 4 -o '%s' '%s'", model_path, out_path,
            text_path);
    REFUSED(1, "from 300 to 2147483647", "--tokenizer '%s' --rows 9 --max 0 -o '%s' '%s'", model_path, out_path,
            text_path);
    REFUSED(1, "there is no text in it", "--tokenizer '%s' --rows 600 --max 4 -o '%s' /dev/null", model_path, out_path);
    REFUSED(1, "cannot be opened", "--tokenizer '%s' --rows 600 --max 4 -o '%s' '%s.no'", model_path, out_path,
            text_path);
    REFUSED(1, "too few for a vocabulary", "--tokenizer '%s' --rows 600 --max 4 --memory 9K -o '%s' '%s'", model_path,
            out_path, text_path);
    REFUSED(1, "GGUF", "--tokenizer '%s' --rows 600 --max 4 -o '%s' '%s'", text_path, out_path, text_path);
    REFUSED(1, "cannot be written", "--tokenizer '%s' --rows 600 --max 4 -o '%s/x' '%s'", model_path, text_path,
            text_path);
    without_tokenizer(x, none, sizeof none);
    REFUSED(1, "no tokenizer", "--tokenizer '%s' --rows 600 --max 4 -o '%s' '%s'", none, out_path, text_path);
    REFUSED(2, "--rows V", "--tokenizer '%s' --max 4 -o '%s' '%s'", model_path, out_path, text_path);
    REFUSED(2, "--rows 2147483648", "--tokenizer '%s' --rows 2147483648 --max 4 -o '%s' '%s'", model_path, out_path,
            text_path);
    REFUSED(2, "--max K", "--tokenizer '%s' --rows 600 -o '%s' '%s'", model_path, out_path, text_path);
    REFUSED(2, "--tokenizer TOK", "--rows 600 --max 4 -o '%s' '%s'", out_path, text_path);
    REFUSED(2, "-o ALLOC", "--tokenizer '%s' --rows 600 --max 4 '%s'", model_path, text_path);
    REFUSED(2, "a text is expected", "--tokenizer '%s' --rows 600 --max 4 -o '%s'", model_path, out_path);
    REFUSED(2, "one of them", "--tokenizer '%s' --rows 600 --max 4 -o '%s' --uniform --frequency x", model_path,
            out_path);
    REFUSED(2, "--json needs", "--tokenizer '%s' --rows 600 --max 4 -o - --json '%s'", model_path, text_path);
#undef REFUSED
    struct stat st;
    CHECK(stat(out_path, &st) != 0);
    close_setting(x);
}

int main(void) {
    RUN(by_codewords);
    RUN(by_frequency);
    RUN(uniform);
    RUN(little_memory);
    RUN(fixture);
    RUN(picture);
    RUN(standard_streams);
    RUN(another_tokenizer);
    RUN(refused);
    return test_report("alloc_tool");
}
