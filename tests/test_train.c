/* test_train.c - the gradient of every parameter, for every kind of layer and flag, against finite differences, everything in
 * double precision. tests/test_train_files.c and test_train_tool.sh check the same code in float. */
#define TRAIN_REAL double
#include "../l3_model.h"

#include "../tools/train_step.h"
#include "test.h"

enum { VOCAB = 11, CONTEXT = 7, SEQUENCES = 5, MOST = 8 };

typedef struct rig {
    train_model   m;
    train_trainer r;
    int32_t       inputs[SEQUENCES * CONTEXT], targets[SEQUENCES * CONTEXT];
    uint64_t      noise;
} rig;

static train_shape base_shape(void) {
    train_shape s;
    memset(&s, 0, sizeof s);
    s.vocab = VOCAB, s.context = CONTEXT, s.dim = 8, s.blocks = 3, s.heads = 4, s.kv_heads = 2, s.head_dim = 2,
    s.ffn       = 10;
    s.rope_dims = 2, s.rope_base = 100, s.rms_epsilon = 1e-5, s.norm_epsilon = 1e-4;
    s.row_count = 40, s.value_length = 8, s.up_length = 6, s.has_up = true, s.tied = true, s.query_norm = true;
    s.query_norm_weight = true, s.up_norm_weight = true, s.residual = true, s.score_scale = 1;
    return s;
}

/* Token t has this many rows: none, one, many. */
static void make_offsets(const train_shape *s, int32_t *offsets) {
    static const int rows[VOCAB] = {3, 0, 1, 9, 2, 1, 4, 0, 12, 5, 3};
    offsets[0]                   = 0;
    for (uint32_t t = 0; t < s->vocab; t++) offsets[t + 1] = offsets[t] + rows[t];
}

/* Sequences that repeat tokens, with targets of which some are not predicted. */
static void make_batch(rig *x, test_rng *r) {
    for (int i = 0; i < SEQUENCES * CONTEXT; i++) {
        x->inputs[i]  = (int32_t)(test_below(r, 3) ? test_below(r, VOCAB) : 8);
        x->targets[i] = test_below(r, 6) ? (int32_t)test_below(r, VOCAB) : -1;
    }
}

static void rig_new(rig *x, const train_shape *s, uint32_t slots, uint32_t per_slot, uint64_t seed) {
    const l3_jobs none = {NULL, 0, NULL};
    int32_t       offsets[VOCAB + 1];
    test_rng      r = {seed};
    make_offsets(s, offsets);
    memset(x, 0, sizeof *x);
    train_model_new(&x->m, s, offsets, true, &ops_plain);
    for (size_t i = 0; i < x->m.n_params; i++)
        for (size_t j = 0; j < x->m.params[i].n; j++)
            x->m.w[x->m.params[i].at + j] = x->m.params[i].fill + 0.4 * test_normal(&r);
    for (uint32_t i = 0; i < s->lookups; i++)
        for (size_t j = 0; j < (size_t)s->row_count * train_row_width(s); j++) x->m.lookup[i].rows[j] = test_normal(&r);
    train_trainer_new(&x->r, &x->m, slots, per_slot, CONTEXT, SEQUENCES, none, false);
    make_batch(x, &r);
    x->noise = s->dropout > 0 ? 77 : 0;
}

static void rig_free(rig *x) {
    train_trainer_free(&x->r);
    train_model_free(&x->m);
}

static double total(rig *x, bool backward, double *norm) {
    const train_result r = train_gradients(&x->r, x->inputs, x->targets, SEQUENCES, backward, x->noise);
    if (norm) *norm = r.grad_norm;
    return r.loss + r.balance;
}

/* d loss / d *w by central differences with an error of order h^4. */
static double difference(rig *x, double *w) {
    const double at = *w, h = 3e-5;
    double       f[4];
    const double steps[4] = {-2, -1, 1, 2};
    for (int i = 0; i < 4; i++) {
        *w   = at + steps[i] * h;
        f[i] = total(x, false, NULL);
    }
    *w = at;
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h);
}

typedef struct worst {
    double error, largest; /* of differences and of gradients, within one tensor */
} worst;

static void compare(rig *x, double *w, double gradient, worst *e) {
    const double want = difference(x, w), error = fabs(gradient - want);
    if (error > e->error) e->error = error;
    if (fabs(want) > e->largest) e->largest = fabs(want);
}

/* The largest error in a tensor, relative to its largest gradient. */
static void judge(const char *shape, const char *name, const worst *e) {
    const double relative = e->largest > 0 ? e->error / e->largest : e->error;
    if (test_verbose()) fprintf(stderr, "    %-16s %-32s %.1e of %.1e\n", shape, name, relative, e->largest);
    if (!(relative <= 1e-5)) fprintf(stderr, "  %s: %s: relative error %.2e\n", shape, name, relative);
    CHECK(relative <= 1e-5);
}

/* About MOST parameters of each dense tensor, the first and last among them; every row of every token at one element. */
static void check_shape(const char *name, const train_shape *s, uint32_t slots, uint32_t per_slot) {
    rig x;
    rig_new(&x, s, slots, per_slot, 5);
    total(&x, true, NULL);
    real *g = (real *)malloc(x.m.n_dense * sizeof *g);
    bool  has[VOCAB];
    memcpy(g, x.r.slot[0].g, x.m.n_dense * sizeof *g);
    memcpy(has, x.r.is_touched, sizeof has);
    for (size_t i = 0; i < x.m.n_params; i++) {
        const train_param *p    = &x.m.params[i];
        const size_t       step = p->n / MOST + 1;
        worst              e    = {0, 0};
        for (size_t j = 0; j < p->n; j += step) compare(&x, &x.m.w[p->at + j], g[p->at + j], &e);
        compare(&x, &x.m.w[p->at + p->n - 1], g[p->at + p->n - 1], &e);
        judge(name, p->name, &e);
    }
    for (uint32_t i = 0; i < s->lookups; i++) {
        train_lookup *k     = &x.m.lookup[i];
        const size_t  width = train_row_width(s);
        worst         e     = {0, 0};
        total(&x, true, NULL);
        const size_t n    = k->grad_rows * width;
        real        *grad = (real *)malloc(n * sizeof *grad);
        memcpy(grad, k->grad, n * sizeof *grad);
        for (int32_t t = 0; t < VOCAB; t++)
            for (int32_t row = 0; row < k->offsets[t + 1] - k->offsets[t]; row++)
                for (size_t c = (size_t)row % 4; c < width; c += 4) {
                    const size_t at = (size_t)(k->offsets[t] + row) * width + c;
                    compare(&x, &k->rows[at], has[t] ? grad[((size_t)k->grad_at[t] + (size_t)row) * width + c] : 0, &e);
                }
        judge(name, "lookup_rows.weight", &e);
        free(grad);
    }
    free(g);
    rig_free(&x);
}

TEST(dense) {
    train_shape s = base_shape();
    check_shape("dense", &s, 1, SEQUENCES);
    s.tied_head = true;
    check_shape("tied head", &s, 2, 1);
    s.heads = s.kv_heads = 1, s.head_dim = 6, s.rope_dims = 4;
    check_shape("one head", &s, 1, 2);
    s.dropout = 0.3;
    check_shape("dropout", &s, 2, 2);
}

static void with_lookups(train_shape *s) { s->lookups = 2, s->lookup_blocks[0] = 0, s->lookup_blocks[1] = 2; }

TEST(lookup) {
    train_shape s = base_shape();
    with_lookups(&s);
    check_shape("lookup", &s, 1, SEQUENCES);
    check_shape("three slots", &s, 3, 1);
    s.query_norm_weight = s.up_norm_weight = false;
    check_shape("no norm weights", &s, 1, 2);
    s.query_norm = false, s.score_scale = 0.4;
    check_shape("no query norm", &s, 1, 2);
    s.key_norm = true;
    check_shape("key norm", &s, 2, 1);
    s.residual = false;
    check_shape("no residual", &s, 1, 2);
}

TEST(lookup_untied) {
    train_shape s = base_shape();
    with_lookups(&s);
    s.tied = false, s.value_length = 5;
    check_shape("untied", &s, 2, 2);
    s.key_norm = true;
    check_shape("untied, key norm", &s, 1, 2);
    s.has_up = false, s.up_length = s.value_length;
    check_shape("no up", &s, 1, 2);
}

TEST(lookup_layer_norm) {
    train_shape s = base_shape();
    with_lookups(&s);
    s.layer_norm = true, s.up_norm_bias = true;
    check_shape("layer norm", &s, 1, 2);
    s.up_norm_weight = s.up_norm_bias = false;
    check_shape("layer norm, bare", &s, 1, 2);
}

TEST(experts) {
    train_shape s = base_shape();
    s.experts = 4, s.experts_used = 1, s.balance = 0.3;
    check_shape("one expert", &s, 1, 2);
    s.experts_used = 2;
    check_shape("two experts", &s, 2, 1);
    s.dropout = 0.2;
    with_lookups(&s);
    check_shape("experts and lookups", &s, 2, 1);
}

/* Loss, gradients and updates do not depend on how sequences are dealt out, up to rounding. */
TEST(split) {
    train_shape      s    = base_shape();
    const train_adam adam = {0.9, 0.95, 1e-8};
    with_lookups(&s);
    rig a, b;
    rig_new(&a, &s, 1, SEQUENCES, 3);
    rig_new(&b, &s, 3, 1, 3);
    for (int step = 0; step < 4; step++) {
        double na, nb;
        CHECK_NEAR(total(&a, true, &na), total(&b, true, &nb), 1e-12);
        CHECK_NEAR(na, nb, 1e-11);
        train_update(&a.r, na, 1, 1e-2, 2e-2, 0.1, adam);
        train_update(&b.r, nb, 1, 1e-2, 2e-2, 0.1, adam);
    }
    rig_free(&a);
    rig_free(&b);
}

int main(void) {
    RUN(dense);
    RUN(lookup);
    RUN(lookup_untied);
    RUN(lookup_layer_norm);
    RUN(experts);
    RUN(split);
    return test_report("train");
}
