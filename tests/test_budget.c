/* test_budget.c - what l3-inspect --budget tells beforehand against what happens: bytes by purpose against the library's sizes,
 * flash read for a token against a session that runs the same text for real, what a change saves against the changed call. */
#define L3_NO_SIMD /* plain C is what a budget is for */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "make_model.h"
#include "model.h"
#include "tool.h"

#define MODEL "examples/models/stories-l3-small.gguf"

static const char *const stories[2] = {
    "Once upon a time there was a little girl who had a red ball. She liked to play with the ball in the garden, and "
    "the "
    "dog liked to play with the girl. One day the ball was gone.",
    "The bear and the bird were friends. They went to the river, and the river was big and cold."};

typedef struct scenario {
    const char *options; /* of l3-inspect, and what they mean: */
    uint32_t    context, page;
    int         ahead;
    int32_t     kv_type;
    size_t      ram, window, cache;
} scenario;

static const scenario scenarios[] = {
    {"--kv q8_0 --budget 300K", 256, 0, 0, L3_Q8_0, 300 << 10, 4096, 0},
    {"--kv q8_0 --budget 200K --page 256 --window 2K --cache 8K", 256, 256, 0, L3_Q8_0, 200 << 10, 2048, 8192},
    {"--kv f16 --budget 600K --page 64 --ahead", 256, 64, 1, L3_F16, 600 << 10, 4096, 0},
    {"--kv f32 --budget 60K -c 40 --ahead --cache 3000", 40, 0, 1, L3_F32, 60 << 10, 4096, 3000},
};
enum { SCENARIOS = sizeof scenarios / sizeof *scenarios };

static file story_model(void) {
    file f  = {NULL, 0};
    f.bytes = test_read(MODEL, &f.n);
    if (!f.bytes) exit(1);
    return f;
}

static json *ask(const char *options) {
    char path[600], text[600];
    test_temp("story.txt", path, sizeof path);
    snprintf(text, sizeof text, "%s\n<|endoftext|>\n%s", stories[0], stories[1]);
    CHECK(test_write(path, text, strlen(text)));
    const tool_result r = tool_run("l3-inspect", "%s --json --text '%s' %s", MODEL, path, options);
    return tool_json(&r);
}

static double number(const json *v, const char *key) {
    const json *n = json_get(v, key);
    if (!CHECK(n && n->type == JSON_NUMBER)) fprintf(stderr, "    %s\n", key);
    return n ? n->number : -1;
}

/* ---- flash ---- */

/* The device, and where text becomes tokens without its reads being counted. */
typedef struct device {
    rig   rig, other;
    desk  desk;
    seat  seat;
    guard pins;
} device;

static int device_open(device *d, file f, const scenario *c, size_t pinned, size_t cache) {
    const way         way = {c->page, 0, c->ahead ? MOCK_START : 0};
    l3_session_config s;
    memset(&s, 0, sizeof s);
    if (!CHECK_EQ(rig_open(&d->rig, f, way), L3_OK) || !CHECK_EQ(rig_open(&d->other, f, MAPPED), L3_OK)) return 0;
    d->pins = guard_new(pinned, L3_ALIGN, 0xa5);
    CHECK_EQ(l3_model_pin(d->rig.model, d->pins.mem, pinned, NULL), L3_OK);
    s.context = c->context, s.kv_type = c->kv_type;
    s.work.batch = 1, s.work.window = c->window, s.work.cache = cache;
    return CHECK_EQ(seat_open_as(&d->seat, d->rig.model, &s, NULL), L3_OK) &&
           CHECK_EQ(desk_open(&d->desk, d->other.model, 300, NULL), L3_OK);
}

static void device_close(device *d) {
    desk_close(&d->desk);
    seat_close(&d->seat);
    CHECK(guard_free(&d->pins));
    rig_close(&d->other);
    rig_close(&d->rig);
}

static void decode(l3_session *s, int32_t id) {
    if (l3_position(s) == l3_context(s)) CHECK_EQ(l3_truncate(s, 0, NULL), L3_OK);
    CHECK_EQ(l3_decode(s, id, NULL), L3_OK);
}

/* Returns the number of tokens. */
static size_t tell(device *d, const char *story) {
    int32_t ids[300];
    size_t  n = 0;
    CHECK_EQ(l3_tokenize(d->desk.tokenizer, story, strlen(story), L3_TEXT_BOS, ids, 300, &n, NULL), L3_OK);
    CHECK_EQ(l3_truncate(d->seat.session, 0, NULL), L3_OK);
    for (size_t i = 0; i < n; i++) decode(d->seat.session, ids[i]);
    return n;
}

static int32_t token_of_most_rows(const l3_model *m, file f) {
    const unsigned char *p    = f.bytes + m->lookups[0].offsets.offset; /* the layers of this model have the same */
    int32_t              best = 0;
    uint32_t             most = 0;
    for (uint32_t t = 0; t < m->info.vocab; t++) {
        const uint32_t rows = l3__le32(p + 4 * t + 4) - l3__le32(p + 4 * t);
        if (rows > most) most = rows, best = (int32_t)t;
    }
    return best;
}

/* A real session with weights pinned and rows cached as the budget says: the token of most rows, then the stories. */
static void reads_what_was_told(file f, const scenario *c, const json *told, size_t pinned, size_t cache) {
    device d;
    mock  *m = &d.rig.mock;
    if (!device_open(&d, f, c, pinned, cache)) return;
    mock_reset_counts(m);
    decode(d.seat.session, token_of_most_rows(d.rig.model, f));
    CHECK_EQ(number(told, "worst_read_bytes"), (double)m->asked);
    mock_reset_counts(m);
    const l3_stats before = l3_session_stats(d.seat.session);
    const double   tokens = (double)(tell(&d, stories[0]) + tell(&d, stories[1]));
    const l3_stats after  = l3_session_stats(d.seat.session);
    const double   rows   = (double)(after.row_bytes_read - before.row_bytes_read);
    const double   bound  = 1e-9 * (double)m->asked; /* of a quotient */
    CHECK_EQ(number(told, "tokens"), tokens);
    CHECK_NEAR(number(told, "read_bytes_per_token") * tokens, (double)m->asked, bound);
    CHECK_NEAR(number(told, "row_bytes_per_token") * tokens, rows, bound);
    CHECK_NEAR(number(told, "weight_bytes_per_token") * tokens, (double)m->asked - rows, bound);
    CHECK_NEAR(number(told, "reads_per_token") * tokens, (double)(m->reads + m->starts), bound);
    device_close(&d);
}

TEST(flash_that_a_token_reads) {
    file f = story_model();
    for (int i = 0; i < SCENARIOS; i++) {
        json       *v = ask(scenarios[i].options);
        const json *b = json_get(v, "budget");
        if (!CHECK(b)) continue;
        const size_t pinned = (size_t)number(b, "pinned_bytes"), cache = (size_t)number(b, "cache_bytes");
        CHECK_EQ(cache > scenarios[i].cache, i == 0 || i == 2);
        CHECK_EQ(pinned > 0, i < 3);
        reads_what_was_told(f, &scenarios[i], json_get(b, "reads"), 0, scenarios[i].cache);
        reads_what_was_told(f, &scenarios[i], json_get(b, "reads_with_spare"), pinned, cache);
        json_free(v);
    }
    free(f.bytes);
}

/* ---- memory ---- */

/* Parts are what the library says that a 32-bit machine needs; spare RAM is used and not exceeded. */
TEST(memory_by_purpose) {
    file f = story_model();
    for (int i = 0; i < SCENARIOS; i++) {
        static const char *const keys[]   = {"session_bytes", "kv_bytes",     "logits_bytes",
                                             "scratch_bytes", "window_bytes", "cache_bytes"};
        const scenario          *c        = &scenarios[i];
        const way                way      = {c->page, 0, c->ahead ? MOCK_START : 0};
        const l3_target          t        = l3_target_32();
        const l3_sampling        sampling = l3_sampling_defaults();
        l3_session_config        s;
        rig                      r;
        size_t                   model = 0;
        double                   sum   = 0;
        json                    *v     = ask(c->options);
        const json              *b = json_get(v, "budget"), *parts = json_get(b, "parts");
        memset(&s, 0, sizeof s);
        s.context = c->context, s.kv_type = c->kv_type;
        s.work.batch = 1, s.work.window = c->window, s.work.cache = c->cache;
        REQUIRE(rig_open(&r, f, way) == L3_OK && CHECK(parts));
        for (int k = 0; k < 6; k++) sum += number(parts, keys[k]);
        CHECK_EQ(sum, (double)l3_session_size_for(&t, r.model, &s));
        CHECK_EQ(l3_model_size_for(&t, &r.mock.source, &model, NULL), L3_OK);
        CHECK_EQ(number(parts, "model_bytes") + number(parts, "vocabulary_bytes"), (double)model);
        CHECK_EQ(number(parts, "tokenizer_bytes"), (double)l3_tokenizer_size_for(&t, r.model, 64));
        CHECK_EQ(number(parts, "sampler_bytes"), (double)l3_sampler_size_for(&t, &sampling, r.model->info.vocab));
        const double total = number(b, "total_bytes");
        CHECK_EQ(sum + (double)model + number(parts, "tokenizer_bytes") + number(parts, "sampler_bytes"), total);
        CHECK_EQ(json_get(b, "fits")->type == JSON_TRUE, total <= (double)c->ram);
        const double spare = number(b, "pinned_bytes") + number(b, "cache_bytes") - (double)c->cache;
        CHECK(spare == 0 || total + spare <= (double)c->ram);
        if (i < 3) CHECK(total + spare > (double)c->ram - 1024);
        rig_close(&r);
        json_free(v);
    }
    free(f.bytes);
}

/* Each saving is what the call with that option needs less. */
TEST(what_to_lower) {
    static const char *const changed[][2] = {
        {"--kv", "--budget 90K --kv q8_0 --batch 4 --cache 9K -c 200"},
        {"-c", "--budget 90K --kv f16 --batch 4 --cache 9K -c 100"},
        {"--batch", "--budget 90K --kv f16 --batch 1 --cache 9K -c 200"},
        {"--window", "--budget 90K --kv f16 --batch 4 --cache 9K -c 200 --window 256"},
        {"--cache", "--budget 90K --kv f16 --batch 4 -c 200"},
        {"--run", "--budget 90K --kv f16 --batch 4 --cache 9K -c 200 --run 0"},
    };
    json       *v = ask("--budget 90K --kv f16 --batch 4 --cache 9K -c 200");
    const json *b = json_get(v, "budget"), *savings = json_get(b, "savings");
    REQUIRE(CHECK(savings) && CHECK(json_get(b, "fits")->type == JSON_FALSE));
    CHECK_EQ(savings->length, 6);
    for (int i = 0; i < 6; i++) {
        json *less = ask(changed[i][1]);
        CHECK_EQ(number(b, "total_bytes") - number(savings, changed[i][0]),
                 number(json_get(less, "budget"), "total_bytes"));
        json_free(less);
    }
    json_free(v);
    v       = ask("--budget 1M --kv q8_0 --run 0 --window 256 -c 1"); /* nothing is left to lower but half a position */
    savings = json_get(json_get(v, "budget"), "savings");
    CHECK(savings && savings->length == 0);
    json_free(v);
}

TEST(budgets_for_people) {
    tool_result r = tool_run("l3-inspect", MODEL " --budget 90K");
    CHECK(r.code == 0 && strstr(r.out, "bytes too many") && strstr(r.out, "q8_0 instead of f32"));
    r = tool_run("l3-inspect", MODEL " --budget 300K --kv q8_0");
    CHECK(r.code == 0 && strstr(r.out, "spare RAM") && strstr(r.out, "with spare RAM") && strstr(r.out, "a step"));
    r = tool_run("l3-inspect", MODEL " --budget 300K --kv q8_0 --mapped");
    CHECK(r.code == 0 && !strstr(r.out, "flash read") && !strstr(r.out, "window"));
    r = tool_run("l3-inspect", MODEL " --budget 300K --here --kv q8_0");
    CHECK(r.code == 0 && strstr(r.out, "on this machine"));
    CHECK_REFUSED(1, "a power of two", "l3-inspect", MODEL " --budget 90K --page 77");
    CHECK_REFUSED(1, "the longest row needs", "l3-inspect", MODEL " --budget 90K --window 50");
}

int main(void) {
    RUN(flash_that_a_token_reads);
    RUN(memory_by_purpose);
    RUN(what_to_lower);
    RUN(budgets_for_people);
    return test_report("budget");
}
