/* l3-eval against the reference model: perplexities in windows with and without a stride, multiple choice, two models compared;
 * and the JSON reader that it uses. */
#include "../l3_model.h"

#include "make_model.h"
#include "model.h"
#include "ref.h"
#include "tool.h"

static const char *const shipped = "examples/models/stories-l3-small.gguf";

/* ---- JSON ---- */

TEST(json_values) {
    json *v = json_parse(
        " {\"a\": [1, -2.5e2, 0, true, false, null, {}, []], \"b\\u00e9\\n\": \"\\ud83d\\ude00\\\"\\\\\\/\\u0000x\"} ");
    REQUIRE(v != NULL);
    const json *a = json_get(v, "a"), *b = json_get(v, "b\xc3\xa9\n");
    CHECK_EQ(a->length, 8);
    CHECK(json_at(a, 1)->number == -250 && json_at(a, 3)->type == JSON_TRUE && json_at(a, 5)->type == JSON_NULL);
    CHECK(json_at(a, 6)->type == JSON_OBJECT && json_at(a, 7)->type == JSON_ARRAY && json_at(a, 8) == NULL);
    REQUIRE(b && b->length == 9);
    CHECK_MEM(b->string, "\xf0\x9f\x98\x80\"\\/\0x", 9);
    json_free(v);
}

/* What is wrong, and at which byte (from 0). */
TEST(json_errors) {
    static const struct {
        const char *text;
        int         at;
    } cases[] = {{"", 0},
                 {" ", 1},
                 {"{", 1},
                 {"[", 1},
                 {"[1,]", 3},
                 {"[1 2]", 3},
                 {"{\"a\" 1}", 5},
                 {"{a:1}", 1},
                 {"{\"a\":}", 5},
                 {"{\"a\":1,}", 7},
                 {"01", 1},
                 {"-", 1},
                 {"1.", 2},
                 {".5", 0},
                 {"1e", 2},
                 {"1e999", 5},
                 {"0x10", 1},
                 {"+1", 0},
                 {"tru", 0},
                 {"truex", 4},
                 {"nan", 0},
                 {"\"a", 0},
                 {"\"a\\\"", 0},
                 {"\"\\x\"", 1},
                 {"\"\\u12g4\"", 1},
                 {"\"\\u12\"", 1},
                 {"\"\\ud83d\"", 1},
                 {"\"\\ude00\"", 1},
                 {"\"\\ud83d\\u0041\"", 1},
                 {"\"\t\"", 1},
                 {"1 2", 2},
                 {"[]]", 2},
                 {"'a'", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_parser r;
        json       *v = json_read(&r, cases[i].text, strlen(cases[i].text));
        CHECK(v == NULL && r.wrong != NULL);
        if (!CHECK_EQ(r.at - cases[i].text, cases[i].at)) fprintf(stderr, "  %s\n", cases[i].text);
        json_free(v);
    }
}

TEST(json_depth) {
    char        text[300];
    json_parser r;
    for (int depth = 60; depth < 70; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        json *v = json_read(&r, text, 2 * (size_t)depth);
        CHECK_EQ(v != NULL, depth <= 64);
        json_free(v);
    }
}

/* ---- a small model and its reference ---- */

typedef struct setting {
    unsigned char *bytes;
    ref_model     *ref;
    uint32_t       vocab, context;
    char           model[600], text[600];
} setting;

static setting open_setting(uint64_t seed, const char *name) {
    mk_spec s = spec_small();
    setting x;
    size_t  n;
    s.seed = seed, s.context = 24, s.heavy_rows = 0, s.no_space_prefix = seed % 2 == 0;
    x.bytes   = mk_model(&s, &n);
    x.ref     = ref_load(x.bytes, n);
    x.vocab   = s.vocab;
    x.context = s.context;
    test_temp(name, x.model, sizeof x.model);
    test_temp("text", x.text, sizeof x.text);
    CHECK(x.ref && test_write(x.model, x.bytes, n));
    return x;
}

static void close_setting(setting *x) {
    ref_free(x->ref);
    free(x->bytes);
}

/* -log softmax(logits)[id] */
static double nll_of(const double *logits, uint32_t n, int32_t id) {
    double max = logits[0], sum = 0;
    for (uint32_t i = 1; i < n; i++) max = fmax(max, logits[i]);
    for (uint32_t i = 0; i < n; i++) sum += exp(logits[i] - max);
    return max + log(sum) - logits[id];
}

/* The cost of ids[from ... n) after BOS and what is before them; that of each to each[from ... n), unless it is NULL. */
static double cost(const setting *x, const int32_t *ids, size_t from, size_t n, double *each) {
    int32_t *all    = (int32_t *)malloc((n + 1) * sizeof *all);
    double  *logits = (double *)malloc((n + 1) * x->vocab * sizeof *logits), sum = 0;
    all[0] = ref_bos(x->ref);
    memcpy(all + 1, ids, n * sizeof *all);
    ref_logits(x->ref, all, n, logits); /* the last token is predicted only */
    for (size_t i = from; i < n; i++) {
        const double nll = nll_of(logits + i * x->vocab, x->vocab, ids[i]);
        if (each) each[i] = nll;
        sum += nll;
    }
    free(all), free(logits);
    return sum;
}

/* A document's cost in windows as the sliding-window evaluation of other programs has them: each begins `stride` tokens
 * after the one before it and counts the tokens that were not counted yet. */
static double windows(const setting *x, const int32_t *ids, size_t n, size_t window, size_t stride, double *each) {
    double sum     = 0;
    size_t counted = 0;
    for (size_t begin = 0; counted < n; begin += stride) {
        const size_t end = begin + window - 1 < n ? begin + window - 1 : n;
        sum += cost(x, ids + begin, counted - begin, end - begin, each ? each + begin : NULL);
        counted = end;
    }
    return sum;
}

static const char *const documents[] = {
    "One day a cat and a dog went out.", "x",
    "Then it rained; they ran home and slept until the next morning came, as they did.", "   spaces  \n\nand lines\n",
    "caf\xc3\xa9 \xf0\x9f\x98\x80 end"};
enum { DOCUMENTS = 5 };

static void write_documents(const setting *x) {
    FILE *f = fopen(x->text, "wb");
    REQUIRE(f != NULL);
    for (int i = 0; i < DOCUMENTS; i++) fprintf(f, "%s\n<|endoftext|>\n", documents[i]);
    fclose(f);
}

/* What the text costs, as the reference has it. */
static double reference_cost(const setting *x, size_t window, size_t stride, size_t *tokens, size_t *bytes) {
    double sum = 0;
    *tokens = *bytes = 0;
    for (int i = 0; i < DOCUMENTS; i++) {
        int32_t      ids[1000];
        const size_t length = strlen(documents[i]), n = ref_encode(x->ref, documents[i], length, ids);
        sum += windows(x, ids, n, window, stride, NULL);
        *tokens += n;
        *bytes += length;
    }
    return sum;
}

static json *eval_json(const char *arguments, const char *model, const char *option, const char *file) {
    const tool_result r = tool_run("l3-eval", "'%s' %s '%s' %s --json", model, option, file, arguments);
    return tool_json(&r);
}

static void check_perplexity(const setting *x, uint32_t window, uint32_t stride) {
    char   arguments[64];
    size_t tokens, bytes;
    double sum = reference_cost(x, window ? window : x->context, stride ? stride : (window ? window : x->context) - 1,
                                &tokens, &bytes);
    int    n   = window ? snprintf(arguments, sizeof arguments, "--window %u ", window) : 0;
    if (stride) snprintf(arguments + n, sizeof arguments - (size_t)n, "--stride %u", stride);
    else arguments[n] = '\0';
    json *v = eval_json(arguments, x->model, "--text", x->text);
    REQUIRE(v != NULL);
    CHECK_EQ(json_number(v, "tokens"), tokens);
    CHECK_EQ(json_number(v, "text_bytes"), bytes);
    CHECK_NEAR(json_number(v, "perplexity"), exp(sum / (double)tokens), 2e-4 * exp(sum / (double)tokens));
    CHECK_NEAR(json_number(v, "bits_per_byte"), sum / log(2) / (double)bytes, 1e-4);
    json_free(v);
}

TEST(perplexity) {
    static const uint32_t cases[][2] = {{0, 0},  {24, 23}, {24, 8}, {24, 1}, {10, 0}, {10, 9},
                                        {10, 4}, {10, 5},  {2, 0},  {2, 1},  {3, 1}};
    for (uint64_t seed = 1; seed <= 2; seed++) {
        setting x = open_setting(seed, "model.gguf");
        write_documents(&x);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_perplexity(&x, cases[i][0], cases[i][1]);
        close_setting(&x);
    }
}

/* For people: the same numbers. A stride of window - 1 gives what none gives; packed text what plain text gives. */
TEST(the_same_text) {
    setting x = open_setting(1, "model.gguf");
    char    plain[200], xz[700];
    write_documents(&x);
    tool_result r = tool_run("l3-eval", "'%s' --text '%s' --window 12", x.model, x.text);
    CHECK(r.code == 0 && tool_lines(r.out) == 2 && strstr(r.out, "\nbits per byte "));
    snprintf(plain, sizeof plain, "%s", r.out);
    r = tool_run("l3-eval", "'%s' --text '%s' --window 12 --stride 11", x.model, x.text);
    CHECK_STR(r.out, plain);
    r = tool_run("l3-eval", "'%s' --text - --window 12 <'%s'", x.model, x.text);
    CHECK_STR(r.out, plain);
    snprintf(xz, sizeof xz, "gzip -k -f '%s' 2>/dev/null", x.text);
    if (system(xz) == 0) {
        r = tool_run("l3-eval", "'%s' --text '%s.gz' --window 12", x.model, x.text);
        CHECK_STR(r.out, plain);
    }
    close_setting(&x);
}

/* ---- multiple choice ---- */

enum { QUESTIONS = 8, MOST = 3 };
static const struct question {
    const char *context, *choices[MOST];
    int         n, answer;
} questions[QUESTIONS] = {{"One day a", {" cat", " dog ran", " zebra"}, 3, 0},
                          {"", {"abc", "def"}, 2, 1},
                          {"He sa", {"id", "w it", "t"}, 3, 2},
                          {"caf", {"\xc3\xa9 au lait", "e"}, 2, 0},
                          {"ends with a space ", {"x", " y"}, 2, 0},
                          {"q", {"q", "qq", "qqq"}, 3, 1},
                          {"a\nb", {"\n", "\t"}, 2, 1},
                          {"a much longer context than there is room for", {" in", " out"}, 2, 0}};

static void put_json(FILE *f, const char *s) {
    fputc('"', f);
    for (; *s; s++) {
        if ((unsigned char)*s < 0x20) fprintf(f, "\\u%04x", (unsigned)*s);
        else fputc(*s, f);
    }
    fputc('"', f);
}

static void write_questions(const char *path) {
    FILE *f = fopen(path, "wb");
    REQUIRE(f != NULL);
    for (int i = 0; i < QUESTIONS; i++) {
        const struct question *q = &questions[i];
        fprintf(f, "%s{\"answer\": %d, \"id\": [%d], \"choices\": [", i % 3 ? "" : " \t\n", q->answer, i);
        for (int k = 0; k < q->n; k++) {
            if (k) fprintf(f, ", ");
            put_json(f, q->choices[k]);
        }
        fprintf(f, "], \"context\": ");
        put_json(f, q->context);
        fprintf(f, "}\n");
    }
    fclose(f);
}

typedef struct verdict {
    double log_likelihood[MOST];
    int    best, best_per_byte, cut;
} verdict;

static size_t same_length(const int32_t *a, size_t n, const int32_t *b, size_t m) {
    size_t i = 0;
    while (i < n && i < m && a[i] == b[i]) i++;
    return i;
}

static verdict judge(const setting *x, const struct question *q) {
    int32_t ids[MOST + 1][200];
    size_t  n[MOST + 1], given = SIZE_MAX, longest = 0;
    verdict v = {{0}, 0, 0, 0};
    for (int k = 0; k <= q->n; k++) {
        char text[400];
        snprintf(text, sizeof text, "%s%s", q->context, k < q->n ? q->choices[k] : "");
        n[k]              = ref_encode(x->ref, text, strlen(text), ids[k]);
        const size_t same = same_length(ids[k], n[k], ids[0], n[0]);
        if (same < given) given = same;
        if (k < q->n && n[k] > longest) longest = n[k];
    }
    const size_t cut = longest > x->context ? longest - x->context : 0;
    v.cut            = cut > 0;
    for (int k = 0; k < q->n; k++) {
        v.log_likelihood[k] = -cost(x, ids[k] + cut, given - cut, n[k] - cut, NULL);
        const double a = (double)strlen(q->choices[k]), b = (double)strlen(q->choices[v.best_per_byte]);
        if (v.log_likelihood[k] > v.log_likelihood[v.best]) v.best = k;
        if (v.log_likelihood[k] / a > v.log_likelihood[v.best_per_byte] / b) v.best_per_byte = k;
    }
    return v;
}

/* Returns how many of the two kinds of answers are right. */
static void check_choices(const setting *x, const json *v, int right[2]) {
    int cut  = 0;
    right[0] = right[1] = 0;
    for (int i = 0; i < QUESTIONS; i++) {
        const verdict want = judge(x, &questions[i]);
        const json   *got  = json_at(json_get(v, "cases"), (size_t)i);
        REQUIRE(got != NULL);
        CHECK_EQ(json_number(got, "line"), i + 2 + i / 3); /* a blank line before every third question */
        for (int k = 0; k < questions[i].n; k++)
            CHECK_NEAR(json_at(json_get(got, "log_likelihood"), (size_t)k)->number, want.log_likelihood[k], 1e-3);
        CHECK_EQ(json_number(got, "choice"), want.best);
        CHECK_EQ(json_number(got, "choice_per_byte"), want.best_per_byte);
        CHECK_EQ(json_number(got, "answer"), questions[i].answer);
        CHECK_EQ(json_get(got, "cut")->type == JSON_TRUE, want.cut);
        right[0] += want.best == questions[i].answer;
        right[1] += want.best_per_byte == questions[i].answer;
        cut += want.cut;
    }
    CHECK_EQ(json_number(v, "cut"), cut);
    CHECK(cut >= 1);
}

/* A share of n with its standard error sqrt(p (1 - p) / (n - 1)). */
static void check_share(const json *v, const char *key, int right, int n) {
    char         error[100];
    const double p = (double)right / n;
    snprintf(error, sizeof error, "%s_standard_error", key);
    CHECK_NEAR(json_number(v, key), p, 1e-9);
    CHECK_NEAR(json_number(v, error), sqrt(p * (1 - p) / (n - 1)), 1e-9);
}

TEST(choices) {
    for (uint64_t seed = 1; seed <= 4; seed++) {
        setting x = open_setting(seed, "model.gguf");
        int     right[2];
        write_questions(x.text);
        json *v = eval_json("", x.model, "--choices", x.text);
        REQUIRE(v != NULL);
        check_choices(&x, v, right);
        CHECK_EQ(json_number(v, "questions"), QUESTIONS);
        check_share(v, "accuracy", right[0], QUESTIONS);
        check_share(v, "accuracy_per_byte", right[1], QUESTIONS);
        json_free(v);
        close_setting(&x);
    }
}

TEST(bad_questions) {
    static const char *const cases[][2] = {
        {"", "there are no questions"},
        {"\n \n", "there are no questions"},
        {"{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 0}\n{",
         "line 2, byte 2: this is no JSON: a string belongs"},
        {"\n{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 0,}", "line 2, byte 53: this is no JSON"},
        {"[1]", "line 1: an object"},
        {"{\"choices\": [\"b\", \"c\"], \"answer\": 0}", "line 1: \"context\" is expected"},
        {"{\"context\": 1, \"choices\": [\"b\", \"c\"], \"answer\": 0}", "\"context\" is expected"},
        {"{\"context\": \"a\", \"choices\": [\"b\"], \"answer\": 0}", "\"choices\" is expected"},
        {"{\"context\": \"a\", \"choices\": \"bc\", \"answer\": 0}", "\"choices\" is expected"},
        {"{\"context\": \"a\", \"choices\": [\"b\", \"\"], \"answer\": 0}", "every choice must be"},
        {"{\"context\": \"a\", \"choices\": [\"b\", 3], \"answer\": 0}", "every choice must be"},
        {"{\"context\": \"a\", \"choices\": [\"b\", \"c\"]}", "\"answer\" is expected"},
        {"{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 2}", "\"answer\" is expected"},
        {"{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": -1}", "\"answer\" is expected"},
        {"{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 0.5}", "\"answer\" is expected"},
        {"{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": \"b\"}", "\"answer\" is expected"},
        {"{\"context\": \"\", \"choices\": [\"no room for so many letters in this model\", \"c\"], \"answer\": 0}",
         "the context holds 24"},
    };
    setting x = open_setting(1, "model.gguf");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        REQUIRE(test_write(x.text, cases[i][0], strlen(cases[i][0])));
        CHECK_REFUSED(1, cases[i][1], "l3-eval", "'%s' --choices '%s'", x.model, x.text);
    }
    close_setting(&x);
}

/* ---- two models ---- */

/* sum(d) / sum(w) and its standard error, written out. */
static void check_estimate(const json *v, const char *key, const double *d, const double *w, int n) {
    double sum = 0, weight = 0, squares = 0;
    char   error[100];
    for (int i = 0; i < n; i++) sum += d[i], weight += w[i];
    for (int i = 0; i < n; i++) squares += pow(d[i] - sum / weight * w[i], 2);
    snprintf(error, sizeof error, "%s_standard_error", key);
    CHECK_NEAR(json_number(v, key), sum / weight, 2e-5);
    CHECK_NEAR(json_number(v, error), sqrt(squares * n / (n - 1.0)) / weight, 2e-5);
    CHECK(json_number(v, error) > 1e-4);
}

/* Short documents are one span each: their costs are those of runs over a file with that document alone. */
TEST(two_models) {
    setting a = open_setting(1, "a.gguf"), b = open_setting(2, "b.gguf");
    double  bits[DOCUMENTS], bytes[DOCUMENTS];
    for (int i = 0; i < DOCUMENTS; i++) {
        double nll[2];
        REQUIRE(test_write(a.text, documents[i], strlen(documents[i])));
        for (int k = 0; k < 2; k++) {
            json *v  = eval_json("", k ? b.model : a.model, "--text", a.text);
            nll[k]   = log(json_number(v, "perplexity")) * json_number(v, "tokens");
            bytes[i] = json_number(v, "text_bytes");
            json_free(v);
        }
        bits[i] = (nll[1] - nll[0]) / log(2);
    }
    write_documents(&a);
    tool_result r = tool_run("l3-eval", "--compare '%s' '%s' --text '%s' --json", a.model, b.model, a.text);
    json       *v = tool_json(&r);
    REQUIRE(v != NULL);
    check_estimate(v, "difference_bits_per_byte", bits, bytes, DOCUMENTS);
    CHECK_EQ(json_number(v, "spans"), DOCUMENTS);
    CHECK_EQ(json_get(v, "same_tokenizer")->type, JSON_FALSE); /* one puts a space in front */
    CHECK_EQ(json_get(v, "difference_nats_per_token")->type, JSON_NULL);
    for (int k = 0; k < 2; k++) {
        json *one = eval_json("", k ? b.model : a.model, "--text", a.text);
        CHECK_NEAR(json_number(json_at(json_get(v, "models"), (size_t)k), "perplexity"), json_number(one, "perplexity"),
                   0);
        json_free(one);
    }
    json_free(v);
    close_setting(&a);
    close_setting(&b);
}

enum { LONG = 3500, SPAN = 1024, SPANS = (LONG + SPAN - 1) / SPAN };

/* A long document's cost, each token's in the span that holds its last byte. */
static void cost_of_spans(const setting *x, const char *text, double spans[SPANS]) {
    int32_t     *ids  = (int32_t *)malloc(3 * LONG * sizeof *ids);
    double      *each = (double *)malloc(3 * LONG * sizeof *each);
    const size_t n    = ref_encode(x->ref, text, LONG, ids);
    CHECK_EQ(ref_decode(x->ref, ids, n, NULL, 0), LONG);
    windows(x, ids, n, x->context, x->context - 1, each);
    for (size_t i = 0; i < n; i++) {
        const size_t end = ref_decode(x->ref, ids, i + 1, NULL, 0);
        spans[end ? (end - 1) / SPAN : 0] += each[i];
    }
    free(ids), free(each);
}

TEST(span_boundaries) {
    setting  a = open_setting(1, "a.gguf"), b = open_setting(2, "b.gguf");
    double   nll[2][SPANS] = {{0}, {0}}, bits[SPANS], bytes[SPANS];
    char     text[LONG + 1];
    test_rng r = {3};
    for (size_t i = 0; i < LONG; i++) text[i] = " etaoinshrdlu,."[test_below(&r, 15)];
    REQUIRE(test_write(a.text, text, LONG));
    cost_of_spans(&a, text, nll[0]);
    cost_of_spans(&b, text, nll[1]);
    for (size_t i = 0; i < SPANS; i++) {
        bits[i]  = (nll[1][i] - nll[0][i]) / log(2);
        bytes[i] = i + 1 < SPANS ? SPAN : LONG - (SPANS - 1) * SPAN;
    }
    const tool_result out = tool_run("l3-eval", "--compare '%s' '%s' --text '%s' --json", a.model, b.model, a.text);
    json             *v   = tool_json(&out);
    REQUIRE(v != NULL);
    CHECK_EQ(json_number(v, "spans"), SPANS);
    check_estimate(v, "difference_bits_per_byte", bits, bytes, SPANS);
    json_free(v);
    close_setting(&a);
    close_setting(&b);
}

/* A long document is several spans, and the tokens of all of them are there. With itself a model does not differ. */
TEST(spans) {
    char  text[600], quantized[600];
    FILE *f = fopen(test_temp("long", text, sizeof text), "wb");
    REQUIRE(f != NULL);
    for (int i = 0; i < 40; i++)
        fprintf(f, "The little dog number %d ran to the park and played with a red ball.\n", i);
    fclose(f);
    test_temp("q.gguf", quantized, sizeof quantized);
    tool_result r = tool_run("l3-quantize", "%s '%s' --weights q4_0 --json", shipped, quantized);
    CHECK_EQ(r.code, 0);
    r       = tool_run("l3-eval", "--compare %s '%s' --text '%s' --json", shipped, quantized, text);
    json *v = tool_json(&r);
    REQUIRE(v != NULL);
    const json  *first = json_at(json_get(v, "models"), 0), *second = json_at(json_get(v, "models"), 1);
    const double bytes = json_number(first, "text_bytes"), tokens = json_number(first, "tokens");
    const double nats = (log(json_number(second, "perplexity")) - log(json_number(first, "perplexity")));
    CHECK_EQ(json_number(v, "spans"), ceil(bytes / 1024));
    CHECK_EQ(json_get(v, "same_tokenizer")->type, JSON_TRUE);
    CHECK_NEAR(json_number(v, "difference_nats_per_token"), nats, 1e-7);
    CHECK_NEAR(json_number(v, "difference_bits_per_byte"), nats * tokens / bytes / log(2), 1e-7);
    CHECK(json_number(v, "difference_nats_per_token_standard_error") > 0);
    json_free(v);
    r = tool_run("l3-eval", "--compare %s %s --text '%s' --json", shipped, shipped, text);
    v = tool_json(&r);
    CHECK(json_get(v, "difference_bits_per_byte") && json_number(v, "difference_bits_per_byte") == 0);
    CHECK(json_number(v, "difference_bits_per_byte_standard_error") == 0);
    json_free(v);
}

TEST(two_models_choosing) {
    setting a = open_setting(1, "a.gguf"), b = open_setting(3, "b.gguf");
    double  d[QUESTIONS], sum = 0, squares = 0;
    write_questions(a.text);
    tool_result r = tool_run("l3-eval", "--compare '%s' '%s' --choices '%s' --json", a.model, b.model, a.text);
    json       *v = tool_json(&r);
    REQUIRE(v != NULL);
    for (int i = 0; i < QUESTIONS; i++) {
        d[i] = (judge(&b, &questions[i]).best == questions[i].answer) -
               (judge(&a, &questions[i]).best == questions[i].answer);
        sum += d[i];
    }
    for (int i = 0; i < QUESTIONS; i++) squares += pow(d[i] - sum / QUESTIONS, 2);
    CHECK_NEAR(json_number(v, "difference_accuracy"), sum / QUESTIONS, 1e-9);
    CHECK_NEAR(json_number(v, "difference_accuracy_standard_error"), sqrt(squares / (QUESTIONS - 1) / QUESTIONS), 1e-9);
    CHECK(squares > 0);
    json_free(v);
    r = tool_run("l3-eval", "--compare '%s' '%s' --choices '%s'", a.model, b.model, a.text);
    CHECK(r.code == 0 && strstr(r.out, "\ndifference ") && strstr(r.out, "standard error"));
    close_setting(&a);
    close_setting(&b);
}

/* ---- usage ---- */

TEST(usage) {
    CHECK_REFUSED(2, "--compare needs two models", "l3-eval", "--compare %s --text x", shipped);
    CHECK_REFUSED(2, "one model too many", "l3-eval", "%s %s --text x", shipped, shipped);
    CHECK_REFUSED(2, "goes with --text or --choices", "l3-eval", "--compare %s %s --encode x", shipped, shipped);
    CHECK_REFUSED(2, "standard input can be read only once", "l3-eval", "--compare %s %s --text -", shipped, shipped);
    CHECK_REFUSED(2, "is expected", "l3-eval", "%s --text x --choices y", shipped);
    CHECK_REFUSED(2, "go with --text", "l3-eval", "%s --choices x --stride 5", shipped);
    CHECK_REFUSED(2, "--stride 0", "l3-eval", "%s --text x --stride 0", shipped);
    CHECK_REFUSED(1, "no more than that is right", "l3-eval", "%s --text LICENSE --stride 256", shipped);
    CHECK_REFUSED(1, "no more than that is right", "l3-eval", "%s --text LICENSE --window 20 --stride 20", shipped);
    CHECK_REFUSED(1, "cannot be opened", "l3-eval", "%s --choices no-such-file", shipped);
}

int main(void) {
    RUN(json_values);
    RUN(json_errors);
    RUN(json_depth);
    RUN(perplexity);
    RUN(the_same_text);
    RUN(choices);
    RUN(bad_questions);
    RUN(two_models);
    RUN(span_boundaries);
    RUN(spans);
    RUN(two_models_choosing);
    RUN(usage);
    return test_report("eval");
}
