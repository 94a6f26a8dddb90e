/* test_memory.c - blocks of exactly the stated size are enough and one byte less is refused, nothing is written outside
 * of them, the library never allocates, a large vocabulary costs next to nothing, and the stack stays small. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1 /* __GLIBC__ must be known before the hooks below */
#endif
#include "../l3_model.h"

#include "make_model.h"
#include "model.h"

#include <pthread.h>

/* ---- malloc, counted: glibc lets a program replace it ---- */

#if defined(__GLIBC__) && !defined(GUARD_ASAN)
#define HAVE_HOOKS 1
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t count, size_t n);
extern void *__libc_realloc(void *p, size_t n);
extern void  __libc_free(void *p);

static volatile long allocations; /* else a compiler that knows malloc takes it for unchanged by a call */

void *malloc(size_t n) { return allocations++, __libc_malloc(n); }
void *calloc(size_t count, size_t n) { return allocations++, __libc_calloc(count, n); }
void *realloc(void *p, size_t n) { return allocations++, __libc_realloc(p, n); }
void  free(void *p) { allocations++, __libc_free(p); }
#endif

/* ---- exact sizes ---- */

/* Each kind of object: its size, and making one in a block. */
typedef struct maker {
    const char       *name;
    const l3_source  *source;
    const l3_model   *model;
    l3_session_config session;
    l3_sampling       sampling;
    size_t            run;
    uint32_t          vocab;
    size_t (*size)(const struct maker *m);
    int (*init)(const struct maker *m, void *mem, size_t size, void **made, l3_error *err);
} maker;

static size_t model_size(const maker *m) {
    size_t size = 0;
    return l3_model_size(m->source, NULL, &size, NULL) == L3_OK ? size : 0;
}
static int model_init(const maker *m, void *mem, size_t size, void **made, l3_error *err) {
    l3_model *x    = NULL;
    const int code = l3_model_open(&x, m->source, NULL, mem, size, err);
    *made          = x;
    return code;
}
static size_t session_size(const maker *m) { return l3_session_size(m->model, &m->session); }
static int    session_init(const maker *m, void *mem, size_t size, void **made, l3_error *err) {
       l3_session *x    = NULL;
       const int   code = l3_session_init(&x, m->model, &m->session, mem, size, err);
       *made            = x;
       return code;
}
static size_t tokenizer_size(const maker *m) { return l3_tokenizer_size(m->model, m->run); }
static int    tokenizer_init(const maker *m, void *mem, size_t size, void **made, l3_error *err) {
       l3_tokenizer *x    = NULL;
       const int     code = l3_tokenizer_init(&x, m->model, m->run, mem, size, err);
       *made              = x;
       return code;
}
static size_t sampler_size(const maker *m) { return l3_sampler_size(&m->sampling, m->vocab); }
static int    sampler_init(const maker *m, void *mem, size_t size, void **made, l3_error *err) {
       l3_sampler *x    = NULL;
       const int   code = l3_sampler_init(&x, &m->sampling, m->vocab, mem, size, err);
       *made            = x;
       return code;
}

static void refuse(const maker *m, void *mem, size_t size) {
    void     *made = NULL;
    l3_error  err;
    const int code = m->init(m, mem, size, &made, &err);
    if (!CHECK_EQ(code, L3_ERR_MEMORY) || !CHECK(error_sound(code, &err)) || !CHECK(made == NULL))
        fprintf(stderr, "    %s\n", m->name);
}

/* An object in a block of exactly its size, after everything less was refused. The block is NULL on failure. */
static guard make(const maker *m, void **made) {
    const size_t size = m->size(m);
    l3_error     err;
    guard        g = guard_new(size, L3_ALIGN, 0xff), less;
    CHECK(size > 0);
    refuse(m, NULL, size);
    refuse(m, g.mem, 0);
    refuse(m, g.mem, size - 1);
    refuse(m, g.mem + 1, size - 1);
    for (size_t off = 1; off < L3_ALIGN; off *= 2) {
        less = guard_new(size + L3_ALIGN, L3_ALIGN, 0xff);
        refuse(m, less.mem + off, size);
        CHECK(guard_free(&less));
    }
    *made          = NULL;
    const int code = m->init(m, g.mem, size, made, &err);
    if (code == L3_OK && *made) return g;
    CHECK_EQ(code, L3_OK);
    fprintf(stderr, "    %s: %s\n", m->name, err.text);
    CHECK(guard_free(&g));
    return g;
}

static l3_session_config random_config(test_rng *r, const l3_model *model) {
    static const int32_t kv[] = {L3_F32, L3_F16, L3_Q8_0};
    l3_session_config    c;
    memset(&c, 0, sizeof c);
    c.context    = test_below(r, l3_model_info(model)->context + 1);
    c.kv_type    = kv[test_below(r, 3)];
    c.work.batch = test_below(r, 20);
    c.work.cache = test_below(r, 2) ? test_below(r, 40000) : 0;
    if (test_below(r, 2)) c.work.window = l3_session_window_min(model) + test_below(r, 300);
    if (test_below(r, 2)) make_exact(&c.work);
    return c;
}

/* What memory is for adds up to what it takes, whatever the configuration, here and on another machine. */
static void parts_of(const l3_model *model, const l3_session_config *c, size_t model_bytes) {
    l3_memory    here, there;
    const size_t session = l3_session_memory(model, c, &here);
    CHECK_EQ(session, l3_session_size(model, c));
    CHECK_EQ(here.session + here.kv + here.logits + here.scratch + here.window + here.cache, session);
    CHECK_EQ(here.model + here.vocabulary, model_bytes);
    CHECK(here.kv > 0 && here.logits >= l3_model_info(model)->vocab * sizeof(float));
    CHECK_EQ(here.window == 0, l3_session_window_min(model) == 0);
    const l3_target target = l3_target_32();
    CHECK_EQ(l3_session_memory_for(&target, model, c, &there), l3_session_size_for(&target, model, c));
    CHECK_EQ(there.session + there.kv + there.logits + there.scratch + there.window + there.cache,
             l3_session_size_for(&target, model, c));
    if (sizeof(void *) > 4) CHECK(there.model < here.model && there.session < here.session);
}

static void use_session(l3_session *s, const maker *how, test_rng *r) {
    const uint32_t n = l3_context(s), vocab = l3_model_info(how->model)->vocab;
    int32_t       *ids = random_ids(r, vocab, n);
    float         *all = new_floats(n, vocab);
    CHECK_EQ(l3_prefill(s, ids, n, all, NULL), L3_OK);
    CHECK_EQ(l3_truncate(s, n - 1, NULL), L3_OK);
    CHECK_EQ(l3_decode(s, ids[n - 1], NULL), L3_OK);
    if (how->session.work.mode == L3_EXACT) CHECK_MEM(l3_logits(s), all + (size_t)(n - 1) * vocab, vocab * sizeof *all);
    free(ids);
    free(all);
}

static void use_tokenizer(l3_tokenizer *t, size_t run) {
    static const char text[] = "the cat \xe2\x98\x83 sat <s>";
    int32_t           ids[64];
    const char       *piece;
    size_t            n;
    const int         flags = L3_TEXT_BOS | L3_TEXT_SPECIAL;
    const size_t      most  = run < sizeof text - 1 ? run : sizeof text - 1;
    if (run) CHECK_EQ(l3_tokenize(t, text, most, flags, ids, 64, &n, NULL), L3_OK);
    for (size_t i = 0; i < 64; i++) CHECK_EQ(l3_detokenize(t, (int32_t)(i * 5 % 259), &piece, &n, NULL), L3_OK);
    l3_detokenize_end(t, &piece, &n);
}

static void use_sampler(l3_sampler *s, uint32_t vocab, test_rng *r) {
    float   *logits = new_floats(1, vocab);
    int32_t *ids    = random_ids(r, vocab, 100), id;
    for (int turn = 0; turn < 5; turn++) {
        for (uint32_t i = 0; i < vocab; i++) logits[i] = (float)test_normal(r);
        l3_sampler_accept(s, ids, test_below(r, 100));
        CHECK_EQ(l3_sample(s, logits, &id, NULL), L3_OK);
        CHECK(id >= 0 && (uint32_t)id < vocab);
    }
    free(logits);
    free(ids);
}

static void one_model(uint64_t seed) {
    test_rng r    = {seed};
    mk_spec  spec = mk_random_spec(seed);
    spec.context  = 4 + test_below(&r, 30);
    file  f       = file_make(&spec);
    mock  m;
    guard model, object;
    void *made;
    maker how;
    mock_init(&m, f.bytes, f.n, 1u << test_below(&r, 13), test_below(&r, 2), test_below(&r, 4));
    memset(&how, 0, sizeof how);
    how.name = "model", how.source = &m.source, how.size = model_size, how.init = model_init;
    if ((model = make(&how, &made)).mem == NULL) return;
    how.model = (const l3_model *)made;
    for (int i = 0; i < 4; i++) {
        how.name = "session", how.size = session_size, how.init = session_init;
        how.session = random_config(&r, how.model);
        parts_of(how.model, &how.session, model_size(&how));
        if ((object = make(&how, &made)).mem == NULL) break;
        use_session((l3_session *)made, &how, &r);
        CHECK(guard_free(&object));
        how.name = "tokenizer", how.size = tokenizer_size, how.init = tokenizer_init;
        how.run = test_below(&r, 3) * test_below(&r, 40);
        if ((object = make(&how, &made)).mem == NULL) break;
        use_tokenizer((l3_tokenizer *)made, how.run);
        CHECK(guard_free(&object));
    }
    CHECK(guard_free(&model));
    CHECK(mock_clean(&m));
    free(f.bytes);
}

TEST(exact_sizes) {
    const uint64_t n = test_flag("L3_LONG") ? 400 : (uint64_t)test_some(40);
    for (uint64_t seed = 1; seed <= n; seed++) one_model(seed);
}

TEST(exact_samplers) {
    test_rng r = {1};
    for (int i = 0; i < 60; i++) {
        void *made;
        maker how;
        memset(&how, 0, sizeof how);
        how.name = "sampler", how.size = sampler_size, how.init = sampler_init;
        how.sampling                = l3_sampling_defaults();
        how.vocab                   = 1 + test_below(&r, i % 2 ? 10 : 2000);
        how.sampling.top_k          = test_below(&r, 3) * test_below(&r, how.vocab);
        how.sampling.temperature    = i % 5 ? 1.0f : 0.0f;
        how.sampling.repeat_last_n  = test_below(&r, 3) * test_below(&r, 100);
        how.sampling.repeat_penalty = 1.25f;
        guard g                     = make(&how, &made);
        if (g.mem == NULL) break;
        use_sampler((l3_sampler *)made, how.vocab, &r);
        CHECK(guard_free(&g));
    }
}

TEST(settings_that_cannot_work) {
    file              f = file_make(&(mk_spec){0});
    rig               r;
    l3_session_config c;
    l3_error          err;
    l3_session       *s;
    l3_sampling       o;
    l3_sampler       *sampler;
    static uint64_t   mem[1000];
    REQUIRE(rig_open(&r, f, (way){16, 0, 0}) == L3_OK);
    for (int i = 0; i < 5; i++) {
        memset(&c, 0, sizeof c);
        if (i == 0) c.context = l3_model_info(r.model)->context + 1;
        if (i == 1) c.kv_type = L3_Q4_0;
        if (i == 2) c.kv_type = -1;
        if (i == 3) c.work.batch = 65537;
        if (i == 4) c.work.window = l3_session_window_min(r.model) - 1;
        CHECK_EQ(l3_session_size(r.model, &c), 0);
        const int code = l3_session_init(&s, r.model, &c, mem, sizeof mem, &err);
        if (!CHECK(code < 0 && error_sound(code, &err))) fprintf(stderr, "    case %d\n", i);
    }
    for (int i = 0; i < 8; i++) {
        o = l3_sampling_defaults();
        if (i < 4) *(i == 0 ? &o.temperature : i == 1 ? &o.top_p : i == 2 ? &o.min_p : &o.repeat_penalty) = -1;
        if (i >= 4) *(i == 4 ? &o.temperature : i == 5 ? &o.top_p : i == 6 ? &o.min_p : &o.repeat_penalty) = (float)NAN;
        CHECK_EQ(l3_sampler_size(&o, 100), 0);
        CHECK_EQ(l3_sampler_init(&sampler, &o, 100, mem, sizeof mem, &err), L3_ERR_ARGUMENT);
    }
    rig_close(&r);
    free(f.bytes);
}

/* ---- a large vocabulary ---- */

static mk_gguf *vocabulary(uint32_t n, int control_every) {
    mk_gguf *g          = mk_gguf_new();
    char(*texts)[24]    = (char(*)[24])must((size_t)n * 24);
    const char **list   = (const char **)must(n * sizeof *list);
    float       *scores = new_floats(1, n);
    int32_t     *types  = (int32_t *)must(n * sizeof *types);
    for (uint32_t i = 0; i < n; i++) {
        snprintf(texts[i], 24, i < 256 ? "<0x%02X>" : "\xe2\x96\x81word%u", i < 256 ? i : 10000 + i);
        list[i]   = texts[i];
        scores[i] = -(float)i;
        types[i]  = i < 256 ? 6 : control_every && i % (uint32_t)control_every == 0 ? 3 : 1;
    }
    mk_string(g, "general.architecture", "l3");
    mk_string(g, "general.type", "tokenizer");
    mk_string(g, "tokenizer.ggml.model", "llama");
    mk_strings(g, "tokenizer.ggml.tokens", list, n);
    mk_f32s(g, "tokenizer.ggml.scores", scores, n);
    mk_i32s(g, "tokenizer.ggml.token_type", types, n);
    free(texts);
    free(list);
    free(scores);
    free(types);
    return g;
}

typedef struct costs {
    size_t model, decoding, encoding;
} costs;

static costs vocabulary_costs(uint32_t n) {
    costs c = {0, 0, 0};
    file  f;
    rig   r;
    f.bytes = mk_finish(vocabulary(n, 0), &f.n);
    if (CHECK_EQ(rig_open(&r, f, MAPPED), L3_OK)) {
        c.model    = r.block.size;
        c.decoding = l3_tokenizer_size(r.model, 0);
        c.encoding = l3_tokenizer_size(r.model, 1);
        rig_close(&r);
    }
    free(f.bytes);
    return c;
}

TEST(large_vocabulary) {
    const costs small = vocabulary_costs(1000), large = vocabulary_costs(33000);
    CHECK(large.model < 4096 + 33000);
    CHECK(large.model - small.model <= 32000 / 2);
    CHECK_EQ(large.decoding, small.decoding);
    CHECK(large.encoding - small.encoding <= 32000 * 6 + 1024);
    if (test_verbose())
        fprintf(stderr, "  33000 tokens: model %u bytes, decoding %u, encoding %u\n", (unsigned)large.model,
                (unsigned)large.decoding, (unsigned)large.encoding);
}

/* ---- everything once, through reads, as one call: for what the library must not do on the way ---- */

typedef struct journey {
    uint64_t model[600], session[80000], tokenizer[5000], sampler[2000], snapshot[4000]; /* multiples of L3_ALIGN */
    file     f;
    mock     mock;
    l3_session_config config;
    int               code, step;
} journey;

static int travel(journey *j) {
    static const char text[] = "the cat sat on the mat";
    l3_model         *model;
    l3_session       *session;
    l3_tokenizer     *tokenizer;
    l3_sampler       *sampler;
    const l3_sampling o = l3_sampling_defaults();
    l3_buffer         b;
    l3_source         in;
    l3_error          err;
    int32_t           ids[64], id;
    const char       *piece;
    size_t            size, n;
#define STEP(call) \
    if (j->step++, (j->code = (call)) != L3_OK) return j->code
    STEP(l3_model_size(&j->mock.source, NULL, &size, &err));
    STEP(l3_model_open(&model, &j->mock.source, NULL, j->model, sizeof j->model, &err));
    STEP(l3_model_verify(model, &err));
    STEP(l3_session_init(&session, model, &j->config, j->session, sizeof j->session, &err));
    STEP(l3_tokenizer_init(&tokenizer, model, 100, j->tokenizer, sizeof j->tokenizer, &err));
    STEP(l3_sampler_init(&sampler, &o, l3_model_info(model)->vocab, j->sampler, sizeof j->sampler, &err));
    STEP(l3_tokenize(tokenizer, text, sizeof text - 1, L3_TEXT_BOS | L3_TEXT_SPECIAL, ids, 64, &n, &err));
    l3_session_hint(session, ids, (uint32_t)n);
    STEP(l3_prefill(session, ids, (uint32_t)n, NULL, &err));
    for (int i = 0; i < 3; i++) {
        STEP(l3_sample(sampler, l3_logits(session), &id, &err));
        STEP(l3_detokenize(tokenizer, id, &piece, &size, &err));
        STEP(l3_decode_batch(&session, &id, 1, &err));
    }
    void *snapshot = j->snapshot;
    b.bytes = (unsigned char *)snapshot, b.size = sizeof j->snapshot, b.used = 0;
    STEP(l3_session_save(session, l3_write_buffer, &b, &err));
    in = l3_source_memory(b.bytes, b.used);
    STEP(l3_session_load(session, &in, &err));
#undef STEP
    return L3_OK;
}

static journey *journey_new(int mapped, l3_mode mode) {
    journey *j = NULL;
    void    *p;
    mk_spec  s = spec_small();
    if (posix_memalign(&p, L3_ALIGN, sizeof *j)) abort();
    j = (journey *)p;
    memset(j, 0, sizeof *j);
    j->f                = file_make(&s);
    j->config.work.mode = mode;
    mock_init(&j->mock, j->f.bytes, j->f.n, 64, (uint32_t)mapped, MOCK_START | MOCK_HINT);
    return j;
}

static void journey_free(journey *j) {
    CHECK(mock_clean(&j->mock));
    free(j->f.bytes);
    free(j);
}

TEST(nothing_is_allocated) {
#ifdef HAVE_HOOKS
    for (int k = 0; k < 4; k++) {
        journey   *j        = journey_new(k % 2, k / 2 ? L3_EXACT : L3_FAST);
        const long before   = allocations;
        void *volatile some = malloc(1); /* the hooks work */
        free(some);
        CHECK_EQ(allocations, before + 2);
        const int code = travel(j);
        CHECK_EQ(allocations, before + 2);
        if (!CHECK_EQ(code, L3_OK)) fprintf(stderr, "    step %d\n", j->step);
        journey_free(j);
    }
#else
    SKIP("malloc cannot be replaced here");
#endif
}

/* ---- the stack ---- */

/* Two aligned buffers while a snapshot is loaded; in fast mode, a panel of weights. */
enum { EXACT_STACK = 3 * L3_MAX_ALIGN + 4096, FAST_STACK = 44 * 1024 };

enum { STACK = 512 * 1024 };

static void *travel_thread(void *arg) {
    if (arg) travel((journey *)arg);
    return NULL;
}

/* Bytes of a stack that a thread used. */
static size_t stack_used(journey *j) {
    static unsigned char *stack;
    pthread_attr_t        attributes;
    pthread_t             thread;
    size_t                untouched = 0;
    void                 *p;
    if (!stack && posix_memalign(&p, 65536, STACK) == 0) stack = (unsigned char *)p;
    memset(stack, 0x5c, STACK);
    pthread_attr_init(&attributes);
    CHECK_EQ(pthread_attr_setstack(&attributes, stack, STACK), 0);
    CHECK_EQ(pthread_create(&thread, &attributes, travel_thread, j), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    pthread_attr_destroy(&attributes);
    while (untouched < STACK && stack[untouched] == 0x5c) untouched++;
    return STACK - untouched;
}

TEST(small_stack) {
#ifdef GUARD_ASAN
    SKIP("sanitizers use the stack");
#endif
    const size_t none = stack_used(NULL);
    for (int k = 0; k < 4; k++) {
        journey     *j    = journey_new(k % 2, k / 2 ? L3_EXACT : L3_FAST);
        const size_t used = stack_used(j);
        CHECK_EQ(j->code, L3_OK);
        CHECK(used - none < (k / 2 ? EXACT_STACK : FAST_STACK));
        if (test_verbose())
            fprintf(stderr, "  %s, %s: %u bytes of stack\n", k % 2 ? "mapped" : "read", k / 2 ? "exact" : "fast",
                    (unsigned)(used - none));
        journey_free(j);
    }
}

int main(void) {
    RUN(exact_sizes);
    RUN(exact_samplers);
    RUN(settings_that_cannot_work);
    RUN(large_vocabulary);
    RUN(nothing_is_allocated);
    RUN(small_stack);
    return test_report("memory");
}
