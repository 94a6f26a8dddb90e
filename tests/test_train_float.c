/* test_train_float.c - training in float, on every instruction set of this machine: matrix products and vector functions
 * against naive sums in double, loss, gradients and AdamW against PyTorch's (the fixtures), files against what was written.
 * AMX is emulated, so that its index arithmetic is tested everywhere; test_train_native.c takes the machine's own. */
#ifndef TRAIN_NATIVE
#define TRAIN_EMULATE_AMX
#endif
#include "../l3_model.h"

#include "../tools/train_files.h"
#include "json.h"
#include "test.h"

/* ---- kernels ---- */

static float *random_floats(size_t n, test_rng *r) {
    float *x = (float *)malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)test_normal(r);
    return x;
}

static train_space new_space(void) {
    train_space s = {train_zeroed(TRAIN_SPACE_A), train_zeroed(TRAIN_SPACE_B)};
    return s;
}

static float bf16(float x) {
    unsigned char bytes[2];
    float         y;
    l3_pack(L3_BF16, &x, 1, bytes);
    l3_unpack(L3_BF16, bytes, 0, 1, &y);
    return y;
}

typedef struct product {
    size_t m, n, k;
    bool   ta, tb, add;
    float  alpha;
} product;

/* The largest difference from a sum in double of what the kernel multiplies (rounded to bf16 where it does so). */
static double product_error(const train_ops *ops, train_space *space, const product *p, test_rng *r) {
    const bool   half = train_rounds(ops);
    const size_t lda = (p->ta ? p->m : p->k) + 3, ldb = (p->tb ? p->k : p->n) + 1, ldc = p->n + 2;
    float       *a = random_floats((p->ta ? p->k : p->m) * lda, r), *b = random_floats((p->tb ? p->n : p->k) * ldb, r);
    float       *c = random_floats(p->m * ldc, r), *was = (float *)malloc(p->m * ldc * sizeof *was);
    double       worst = 0;
    memcpy(was, c, p->m * ldc * sizeof *was);
    ops->gemm(space, p->ta, p->tb, p->m, p->n, p->k, p->alpha, a, lda, b, ldb, p->add, c, ldc);
    for (size_t i = 0; i < p->m; i++)
        for (size_t j = 0; j < ldc; j++) {
            double sum = 0;
            for (size_t k = 0; j < p->n && k < p->k; k++) {
                const float x = p->ta ? a[k * lda + i] : a[i * lda + k], y = p->tb ? b[j * ldb + k] : b[k * ldb + j];
                sum += half ? (double)bf16(x) * (double)bf16(y) : (double)x * (double)y;
            }
            const double want =
                j >= p->n ? (double)was[i * ldc + j] : (p->add ? (double)was[i * ldc + j] : 0) + (double)p->alpha * sum;
            const double error = fabs((double)c[i * ldc + j] - want);
            if (!(error <= worst)) worst = error;
        }
    free(a), free(b), free(c), free(was);
    return worst;
}

TEST(products) {
    static const size_t sizes[] = {1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 100, 257, 300};
    const train_ops    *list[TRAIN_MAX_OPS];
    train_space         space = new_space();
    test_rng            r     = {11};
    for (int o = train_ops_list(list) - 1; o >= 0; o--)
        for (int i = 0; i < 160; i++) {
            const product p     = {sizes[test_below(&r, 13)],
                                   sizes[test_below(&r, 13)],
                                   sizes[test_below(&r, 13)],
                                   i & 1,
                                   (i >> 1) & 1,
                                   (i >> 2) & 1,
                               i % 3 ? 1 : 0.25f};
            const double  error = product_error(list[o], &space, &p, &r);
            if (!CHECK(error <= 2e-5 * sqrt((double)p.k)))
                fprintf(stderr, "  %s: %zu x %zu x %zu%s%s: %g\n", list[o]->name, p.m, p.n, p.k, p.ta ? " ta" : "",
                        p.tb ? " tb" : "", error);
        }
    cli_free_aligned(space.a);
    cli_free_aligned(space.b);
}

TEST(exponential) {
    for (double x = -86; x < 87; x += 0.0137) {
        const double want = exp((double)(float)x), got = (double)train_exp((float)x);
        if (!CHECK(fabs(got / want - 1) < 3e-7)) fprintf(stderr, "  exp(%g) is %g\n", x, got);
    }
    CHECK(train_exp(-1000) < 1e-37f && train_exp(-1000) >= 0);
    CHECK(cli_finite((double)train_exp(1000)));
}

/* Vector functions are the same code for every instruction set: each against the plain one, at lengths around the lanes. */
TEST(vectors) {
    const train_ops *list[TRAIN_MAX_OPS];
    test_rng         r = {12};
    for (int o = train_ops_list(list) - 1; o > 0; o--)
        for (size_t n = 1; n < 70; n++) {
            float *a = random_floats(n, &r), *b = random_floats(n, &r), *x = (float *)malloc(n * 4),
                  *y = (float *)malloc(n * 4);
            CHECK_NEAR((double)list[o]->dot(n, a, b), (double)ops_plain.dot(n, a, b), 2e-5);
            CHECK_NEAR((double)list[o]->sum(n, a), (double)ops_plain.sum(n, a), 2e-5);
            memcpy(x, a, n * 4), memcpy(y, a, n * 4);
            CHECK_NEAR((double)list[o]->softmax(n, x), (double)ops_plain.softmax(n, y), 2e-6);
            for (size_t i = 0; i < n; i++) CHECK_NEAR((double)x[i], (double)y[i], 1e-6);
            list[o]->swiglu(n, a, b, x), ops_plain.swiglu(n, a, b, y);
            for (size_t i = 0; i < n; i++) CHECK_NEAR((double)x[i], (double)y[i], 2e-6);
            free(a), free(b), free(x), free(y);
        }
    if (train_ops_list(list) == 1) CHECK(list[0] == &ops_plain);
}

/* ---- against PyTorch ---- */

typedef struct fixture {
    cli_engine    e;
    train_model   m;
    train_trainer r;
    int32_t      *inputs, *targets;
    uint32_t      sequences, t;
} fixture;

static int32_t *read_i32(const char *path, size_t *n) {
    size_t         bytes;
    unsigned char *p = test_read_fixture(path, &bytes);
    if (!p) return NULL;
    int32_t *ids = (int32_t *)malloc(bytes);
    *n           = bytes / 4;
    for (size_t i = 0; i < *n; i++) ids[i] = (int32_t)shard_get(p + 4 * i, 4);
    free(p);
    return ids;
}

static bool fixture_open(fixture *f, const char *name, const train_ops *ops, uint32_t slots, uint32_t per_slot) {
    const l3_jobs none = {NULL, 0, NULL};
    char          path[1024], file[128];
    int32_t      *offsets, *ids;
    bool          loaded[256] = {false};
    size_t        n;
    memset(f, 0, sizeof *f);
    snprintf(file, sizeof file, "train/%s.batch.i32", name);
    ids = read_i32(file, &n);
    snprintf(file, sizeof file, "train/%s.gguf", name);
    if (!ids || !test_fixture(file, path, sizeof path)) return false;
    f->sequences = 4;
    f->t         = (uint32_t)(n / 4 - 1);
    f->inputs    = (int32_t *)malloc(n * sizeof *ids);
    f->targets   = (int32_t *)malloc(n * sizeof *ids);
    for (uint32_t b = 0; b < 4; b++)
        for (uint32_t i = 0; i < f->t; i++) {
            f->inputs[b * f->t + i]  = ids[b * (f->t + 1) + i];
            f->targets[b * f->t + i] = ids[b * (f->t + 1) + i + 1];
        }
    free(ids);
    cli_open_model(&f->e, path, 1);
    train_shape s = train_shape_of_model(&f->e, &offsets);
    s.context     = f->t;
    train_model_new(&f->m, &s, offsets, true, ops);
    free(offsets);
    train_load(&f->m, &f->e, loaded);
    for (size_t i = 0; i < f->m.n_params + s.lookups; i++) CHECK(loaded[i]);
    train_trainer_new(&f->r, &f->m, slots, per_slot, f->t, 4, none, false);
    return true;
}

static void fixture_close(fixture *f) {
    train_trainer_free(&f->r);
    train_model_free(&f->m);
    cli_close(&f->e);
    free(f->inputs);
    free(f->targets);
}

/* The length of a - b relative to b's. */
static double distance(const real *a, const float *b, size_t n) {
    double d = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        sum += (double)b[i] * (double)b[i];
    }
    return sum > 0 ? sqrt(d / sum) : sqrt(d);
}

/* A tensor of the gradient file, in malloc memory. The file is no model, but scanned like one. */
static float *gradient_of(const train_checkpoint *c, const char *name, size_t n) {
    float *x = (float *)malloc(n * sizeof *x);
    train_checkpoint_read(c, name, "", L3_F32, n, x);
    return x;
}

static void compare_gradients(fixture *f, const char *name, double bound) {
    const l3_gguf_visitor visitor = {NULL, NULL, NULL, train_checkpoint_tensor, train_checkpoint_data};
    l3_gguf_visitor       v       = visitor;
    train_checkpoint      c;
    char                  path[1024], file[128];
    const size_t          width = train_row_width(&f->m.shape);
    memset(&c, 0, sizeof c);
    snprintf(file, sizeof file, "train/%s.grads.gguf", name);
    REQUIRE(test_fixture(file, path, sizeof path));
    REQUIRE(l3_source_open_file(&c.file, path, L3_FILE_READ, NULL) == L3_OK);
    v.user = &c, c.path = path;
    REQUIRE(l3_gguf_scan(&c.file.source, &v, NULL) == L3_OK);
    for (size_t i = 0; i < f->m.n_params; i++) {
        const train_param *p    = &f->m.params[i];
        float             *want = gradient_of(&c, p->name, p->n);
        const double       d    = distance(f->r.slot[0].g + p->at, want, p->n);
        if (!CHECK(d <= bound)) fprintf(stderr, "  %s %s %s: %.2e\n", name, f->m.ops->name, p->name, d);
        free(want);
    }
    for (uint32_t i = 0; i < f->m.shape.lookups; i++) {
        const train_lookup *k = &f->m.lookup[i];
        char                rows[64];
        snprintf(rows, sizeof rows, "blk.%u.lookup_rows.weight", k->block);
        const size_t n    = (size_t)f->m.shape.row_count * width;
        float       *want = gradient_of(&c, rows, n);
        real        *got  = (real *)calloc(n, sizeof *got);
        for (uint32_t t = 0; t < f->m.shape.vocab; t++)
            if (f->r.is_touched[t])
                memcpy(got + (size_t)k->offsets[t] * width, k->grad + (size_t)k->grad_at[t] * width,
                       (size_t)(k->offsets[t + 1] - k->offsets[t]) * width * sizeof *got);
        const double d = distance(got, want, n);
        if (!CHECK(d <= bound)) fprintf(stderr, "  %s %s %s: %.2e\n", name, f->m.ops->name, rows, d);
        free(want), free(got);
    }
    train_checkpoint_close(&c);
}

static void against_pytorch(const char *name, const train_ops *ops, uint32_t slots, uint32_t per_slot,
                            const json *want) {
    const bool       half = train_rounds(ops);
    const train_adam adam = {(real)0.9, (real)0.95, (real)1e-8};
    fixture          f;
    REQUIRE(fixture_open(&f, name, ops, slots, per_slot));
    const json *losses = json_get(want, "losses");
    REQUIRE(losses && losses->length > 0);
    for (size_t step = 0; step < losses->length; step++) {
        const train_result r = train_gradients(&f.r, f.inputs, f.targets, f.sequences, true, 0);
        CHECK_NEAR(r.loss, json_at(losses, step)->number, half ? 4e-2 : 2e-5);
        if (step == 0) CHECK_NEAR(r.grad_norm, json_number(want, "grad_norm"), half ? 5e-2 : 2e-5);
        if (step == 0) compare_gradients(&f, name, half ? 4e-2 : 2e-5);
        train_update(&f.r, r.grad_norm, 1, 1e-3, 1e-3, 0, adam);
    }
    fixture_close(&f);
}

TEST(pytorch) {
    static const char *const names[] = {"separate", "tied", "layernorm"};
    const train_ops         *list[TRAIN_MAX_OPS];
    unsigned char           *text = test_read_fixture("train/index.json", NULL);
    if (!text) SKIP("no fixtures");
    json *index = json_parse((const char *)text);
    REQUIRE(index != NULL);
    for (int o = train_ops_list(list) - 1; o >= 0; o--)
        for (int i = 0; i < 3; i++)
            against_pytorch(names[i], list[o], 1 + (uint32_t)i, o ? 4 : 1, json_get(index, names[i]));
    json_free(index);
    free(text);
}

/* ---- files ---- */

/* What is exported and loaded again gives the same logits in the runtime as in the trainer. */
TEST(exported) {
    fixture f;
    char    path[600];
    if (!fixture_open(&f, "separate", &ops_plain, 1, 4)) SKIP("no fixtures");
    const train_about about = {"a name", "a description", "seed=1\n", 3, 4, 5, NAN};
    test_temp("exported.gguf", path, sizeof path);
    train_export(&f.m, path, NULL, &about);
    cli_engine e;
    cli_setup  setup = {.threads = 1};
    cli_open_model(&e, path, 1);
    CHECK_STR(e.info->name, "a name");
    CHECK_EQ(l3_model_verify(e.model, NULL), L3_OK);
    cli_start_session(&e, &setup);
    float *all = (float *)malloc((size_t)f.t * e.info->vocab * sizeof *all);
    CHECK_EQ(l3_prefill(e.session, f.inputs, f.t, all, NULL), L3_OK);
    double sum = 0;
    for (uint32_t i = 0; i < f.t; i++) {
        const float *l = all + (size_t)i * e.info->vocab;
        double       z = 0;
        for (uint32_t j = 0; j < e.info->vocab; j++) z += exp((double)l[j]);
        sum += log(z) - (double)l[f.targets[i]];
    }
    CHECK_NEAR(sum / f.t, train_gradients(&f.r, f.inputs, f.targets, 1, false, 0).loss, 1e-5);
    free(all);
    cli_close(&e);
    fixture_close(&f);
}

int main(void) {
    RUN(products);
    RUN(exponential);
    RUN(vectors);
    RUN(pytorch);
    RUN(exported);
    #ifdef TRAIN_NATIVE
    return test_report("train_native");
#else
    return test_report("train_float");
#endif
}
