/* train_config.h - the settings of a training run: one table of names, defaults, bounds and meanings; presets, files with
 * KEY = VALUE lines, --set KEY=VALUE. */
#ifndef TRAIN_CONFIG_H
#define TRAIN_CONFIG_H

#include "train_model.h"

/* SHAPE settings make the model and cannot change when a run is resumed. X(kind, group, key, default, min, max, meaning) */
#define TRAIN_SETTINGS(X)                                                                                              \
    X(count, SHAPE, dim, 256, 2, 65536, "width of the hidden state")                                                   \
    X(count, SHAPE, blocks, 6, 1, 512, "decoder blocks")                                                               \
    X(count, SHAPE, heads, 0, 0, 4096, "attention heads; 0: one for every 32 of dim")                                  \
    X(count, SHAPE, kv_heads, 0, 0, 4096, "key and value heads; 0: as many as heads")                                  \
    X(count, SHAPE, head_dim, 0, 0, 1024, "width of a head, even; 0: dim / heads")                                     \
    X(count, SHAPE, ffn, 0, 0, 1048576, "width of the feed-forward layers; 0: 8/3 dim, a multiple of 32")              \
    X(count, SHAPE, context, 256, 2, 1048576, "tokens of a training sequence, and the model's context")                \
    X(number, SHAPE, rope_base, 10000, 1, 1e9, "base of the rotary position embedding")                                \
    X(number, SHAPE, rms_epsilon, 1e-5, 1e-12, 1, "epsilon of the norms")                                              \
    X(flag, SHAPE, tied_head, 1, 0, 1, "the embedding is the head")                                                    \
    X(list, SHAPE, lookup, 0, 0, 511, "blocks that a lookup layer follows, as 1,3; empty: none")                       \
    X(count, SHAPE, value_length, 0, 0, 65536, "width of a row's value; 0: dim. Equals dim when tied")                 \
    X(count, SHAPE, up_length, 0, 0, 65536, "width after lookup_up; 0: 2 dim")                                         \
    X(flag, SHAPE, up, 1, 0, 1, "lookup layers have lookup_up")                                                        \
    X(flag, SHAPE, tied, 1, 0, 1, "keys are the values: a row is one vector")                                          \
    X(flag, SHAPE, query_norm, 1, 0, 1, "queries are normalized, with a learned weight")                               \
    X(flag, SHAPE, key_norm, 0, 0, 1, "keys are normalized")                                                           \
    X(flag, SHAPE, layer_norm, 0, 0, 1, "layer norm instead of RMS norm after lookup_up")                              \
    X(flag, SHAPE, residual, 1, 0, 1, "x + y instead of y")                                                            \
    X(number, SHAPE, score_scale, 1, 1e-6, 1e6, "factor of the scores")                                                \
    X(count, SHAPE, experts, 0, 0, 1024, "experts in every feed-forward layer, for comparisons; 0: none")              \
    X(count, SHAPE, experts_used, 1, 1, 16, "experts that a token goes through")                                       \
    X(number, RUN, balance, 0.01, 0, 10, "weight of the experts' load-balancing loss")                                 \
    X(number, RUN, dropout, 0, 0, 0.9, "share of what attention and feed-forward layers add that is dropped")          \
    X(count, RUN, batch, 32, 1, 1048576, "sequences of a step")                                                        \
    X(count, RUN, micro_batch, 0, 0, 65536, "sequences that a thread holds at once; 0: about 2048 tokens")             \
    X(count, RUN, steps, 0, 0, 1000000000, "steps of the whole schedule; 0: what --time allows")                       \
    X(number, RUN, lr, 2e-3, 0, 10, "learning rate at its highest")                                                    \
    X(number, RUN, min_lr, 0.05, 0, 1, "learning rate at the end, as a share of lr")                                   \
    X(number, RUN, rows_lr, 1, 0, 1000, "learning rate of table rows, as a multiple of lr")                            \
    X(count, RUN, warmup, 100, 0, 1000000, "steps over which the learning rate rises")                                 \
    X(number, RUN, beta1, 0.9, 0, 0.9999, "AdamW")                                                                     \
    X(number, RUN, beta2, 0.95, 0, 0.99999, "AdamW")                                                                   \
    X(number, RUN, eps, 1e-8, 1e-20, 1, "AdamW")                                                                       \
    X(number, RUN, weight_decay, 0.1, 0, 10, "AdamW, of matrices; not of norms, biases, the embedding and table rows") \
    X(number, RUN, clip, 1, 0, 1e9, "largest norm of the gradient; 0: any")                                            \
    X(flag, RUN, freeze, 0, 0, 1, "only lookup layers learn")                                                          \
    X(count, RUN, log_every, 10, 1, 1000000, "steps between lines of the log")                                         \
    X(count, RUN, eval_every, 250, 1, 1000000, "steps between validations")                                            \
    X(count, RUN, eval_tokens, 100000, 2, 100000000, "tokens of a validation at most")                                 \
    X(count, RUN, sample, 40, 0, 10000, "tokens written after every validation")                                       \
    X(count, RUN, patience, 0, 0, 1000000, "validations without a better loss until the run ends; 0: any number")      \
    X(number, RUN, save_minutes, 10, 0.01, 100000, "minutes between checkpoints")                                      \
    X(count, RUN, seed, 1, 0, 4294967295, "of initial weights, order of the text, dropout")

typedef double train_number;
typedef double train_count; /* whole numbers; doubles hold them all */
typedef double train_flag;
typedef char   train_list[64];

typedef struct train_config {
#define X(kind, group, key, fallback, min, max, meaning) train_##kind key;
    TRAIN_SETTINGS(X)
#undef X
} train_config;

typedef enum train_group_of_setting { SHAPE, RUN } train_group_of_setting;
typedef enum train_kind { KIND_number, KIND_count, KIND_flag, KIND_list } train_kind;

typedef struct train_setting {
    const char *key, *meaning;
    int         kind, group;
    size_t      at;
    double      fallback, min, max;
} train_setting;

static const train_setting train_settings[] = {
#define X(kind, group, key, fallback, min, max, meaning) \
    {#key, meaning, KIND_##kind, group, offsetof(train_config, key), fallback, min, max},
    TRAIN_SETTINGS(X)
#undef X
};
enum { TRAIN_N_SETTINGS = sizeof train_settings / sizeof *train_settings };

static inline double *train_value(train_config *c, const train_setting *s) {
    return (double *)(void *)((char *)c + s->at);
}

static inline void train_defaults(train_config *c) {
    memset(c, 0, sizeof *c);
    for (int i = 0; i < TRAIN_N_SETTINGS; i++)
        if (train_settings[i].kind != KIND_list) *train_value(c, &train_settings[i]) = train_settings[i].fallback;
}

/* The settings that have no value yet, in words, for --help. */
static inline void train_print_settings(void) {
    printf("settings, as --set KEY=VALUE or as lines KEY = VALUE of a --config file:\n\n");
    for (int i = 0; i < TRAIN_N_SETTINGS; i++) {
        const train_setting *s = &train_settings[i];
        printf("  %-14s %s", s->key, s->meaning);
        if (s->kind == KIND_list) printf("\n");
        else printf(" (%g)\n", s->fallback);
    }
}

/* Numbers with commas between. */
static inline uint32_t train_blocks_of(const char *list, uint32_t *blocks) {
    uint32_t n = 0;
    while (*list) {
        uint64_t v = 0;
        if (n == TRAIN_MAX_LOOKUPS || !cli_number(list, &list, &v) || v > 511 || (*list && *list != ','))
            return UINT32_MAX;
        if (*list == ',' && !*++list) return UINT32_MAX;
        blocks[n++] = (uint32_t)v;
        if (n > 1 && blocks[n - 1] <= blocks[n - 2]) return UINT32_MAX;
    }
    return n;
}

/* Sets a key; `where` is what the message begins with. */
static inline void train_set(train_config *c, const char *key, size_t n, const char *value, const char *where) {
    uint32_t blocks[TRAIN_MAX_LOOKUPS];
    double   v = 0;
    for (int i = 0; i < TRAIN_N_SETTINGS; i++) {
        const train_setting *s = &train_settings[i];
        if (strlen(s->key) != n || strncmp(s->key, key, n) != 0) continue;
        if (s->kind == KIND_list) {
            if (strlen(value) >= sizeof c->lookup || train_blocks_of(value, blocks) == UINT32_MAX)
                cli_usage("%s: %s is expected as rising block numbers with commas between, not %s", where, s->key,
                          value);
            snprintf(c->lookup, sizeof c->lookup, "%s", value);
            return;
        }
        if (!cli_real(value, &v) || v < s->min || v > s->max || (s->kind != KIND_number && v != floor(v)))
            cli_usage("%s: %s is %s; a %s from %.10g to %.10g is expected", where, s->key, value,
                      s->kind == KIND_number ? "number" : "whole number", s->min, s->max);
        *train_value(c, s) = v;
        return;
    }
    cli_usage("%s: there is no setting %.*s; --settings lists them", where, (int)n, key);
}

/* "KEY=VALUE", blanks allowed around both. */
static inline void train_set_line(train_config *c, const char *line, size_t n, const char *where) {
    char        text[256];
    const char *equals = (const char *)memchr(line, '=', n);
    if (!equals || n >= sizeof text)
        cli_usage("%s: KEY=VALUE is expected, not %.*s", where, (int)(n < 80 ? n : 80), line);
    size_t key = (size_t)(equals - line);
    while (key && (line[key - 1] == ' ' || line[key - 1] == '\t')) key--;
    const char *value = equals + 1;
    size_t      left  = n - (size_t)(value - line);
    while (left && (*value == ' ' || *value == '\t')) value++, left--;
    while (left && strchr(" \t\r", value[left - 1])) left--;
    memcpy(text, value, left);
    text[left] = '\0';
    train_set(c, line, key, text, where);
}

/* Lines KEY = VALUE; empty ones and what follows a # are passed over. */
static inline void train_set_lines(train_config *c, const char *text, size_t n, const char *where) {
    const char *at = text, *line;
    size_t      length;
    for (unsigned number = 1; cli_next_line(&at, text + n, &line, &length); number++) {
        char        place[300];
        const char *comment = (const char *)memchr(line, '#', length);
        if (comment) length = (size_t)(comment - line);
        while (length && strchr(" \t\r", line[length - 1])) length--;
        while (length && (*line == ' ' || *line == '\t')) line++, length--;
        snprintf(place, sizeof place, "%.200s, line %u", where, number);
        if (length) train_set_line(c, line, length, place);
    }
}

/* What a run is described by in a checkpoint and a model: KEY=VALUE lines that train_set_lines reads back. */
static inline char *train_config_text(train_config *c) {
    char  *text = (char *)cli_malloc(TRAIN_N_SETTINGS * 128);
    size_t n    = 0;
    for (int i = 0; i < TRAIN_N_SETTINGS; i++) {
        const train_setting *s = &train_settings[i];
        if (s->kind == KIND_list) n += (size_t)sprintf(text + n, "%s=%s\n", s->key, c->lookup);
        else n += (size_t)sprintf(text + n, "%s=%.17g\n", s->key, *train_value(c, s));
    }
    return text;
}

typedef struct train_preset {
    const char *name, *lines, *about;
} train_preset;

static const train_preset train_presets[] = {
    {"nano", "dim=64\nblocks=4\nheads=4\nffn=160\ncontext=128\nlookup=1,2\nlr=4e-3\nbatch=64\n",
     "for microcontrollers: some 100,000 active parameters"},
    {"small", "dim=192\nblocks=6\nheads=6\nffn=512\ncontext=256\nlookup=1,3\nlr=2.5e-3\nbatch=48\n",
     "for a Raspberry Pi: some 3 million active parameters"},
    {"base", "dim=512\nblocks=8\nheads=8\nffn=1376\ncontext=512\nlookup=2,5\nlr=1e-3\nbatch=64\n",
     "for a desktop: some 25 million active parameters"},
};
enum { TRAIN_N_PRESETS = sizeof train_presets / sizeof *train_presets };

static inline void train_set_preset(train_config *c, const char *name) {
    for (int i = 0; i < TRAIN_N_PRESETS; i++)
        if (strcmp(train_presets[i].name, name) == 0) {
            train_set_lines(c, train_presets[i].lines, strlen(train_presets[i].lines), name);
            return;
        }
    cli_usage("--preset %s: one of nano, small, base is expected", name);
}

/* The shape that the settings mean, checked. Rows come from an allocation. */
static inline train_shape train_shape_of(const train_config *c, uint32_t vocab) {
    train_shape s;
    memset(&s, 0, sizeof s);
    s.vocab        = vocab;
    s.context      = (uint32_t)c->context;
    s.dim          = (uint32_t)c->dim;
    s.blocks       = (uint32_t)c->blocks;
    s.heads        = c->heads > 0 ? (uint32_t)c->heads : s.dim >= 32 ? s.dim / 32 : 1;
    s.kv_heads     = c->kv_heads > 0 ? (uint32_t)c->kv_heads : s.heads;
    s.head_dim     = c->head_dim > 0 ? (uint32_t)c->head_dim : s.dim / s.heads;
    s.ffn          = c->ffn > 0 ? (uint32_t)c->ffn : (s.dim * 8 / 3 + 31) / 32 * 32;
    s.rope_dims    = s.head_dim;
    s.rope_base    = c->rope_base;
    s.rms_epsilon  = (real)c->rms_epsilon;
    s.norm_epsilon = (real)1e-6; /* what the paper's listing has */
    s.tied_head    = c->tied_head > 0;
    s.lookups      = train_blocks_of(c->lookup, s.lookup_blocks);
    s.tied         = c->tied > 0;
    s.value_length = c->value_length > 0 ? (uint32_t)c->value_length : s.dim;
    s.has_up       = c->up > 0;
    s.up_length    = !s.has_up ? s.value_length : c->up_length > 0 ? (uint32_t)c->up_length : 2 * s.dim;
    s.query_norm = s.query_norm_weight = c->query_norm > 0;
    s.key_norm                         = c->key_norm > 0;
    s.layer_norm                       = c->layer_norm > 0;
    s.up_norm_weight                   = true;
    s.up_norm_bias                     = s.layer_norm;
    s.residual                         = c->residual > 0;
    s.score_scale                      = (real)c->score_scale;
    s.experts                          = (uint32_t)c->experts;
    s.experts_used                     = (uint32_t)c->experts_used;
    s.balance                          = (real)c->balance;
    s.dropout                          = (real)c->dropout;
    if (c->heads == 0 && c->head_dim == 0 && s.dim % s.heads) cli_usage("dim %u: give heads, too", s.dim);
    if (c->head_dim == 0 && s.dim % s.heads) cli_usage("heads %u: dim %u is no multiple of it", s.heads, s.dim);
    if (s.head_dim % 2) cli_usage("head_dim %u: an even number is expected, since positions rotate pairs", s.head_dim);
    if (s.heads % s.kv_heads) cli_usage("kv_heads %u: heads %u is no multiple of it", s.kv_heads, s.heads);
    if (s.lookups && s.lookup_blocks[s.lookups - 1] >= s.blocks)
        cli_usage("lookup %s: blocks are numbered 0 to %u", c->lookup, s.blocks - 1);
    if (s.tied && s.value_length != s.dim)
        cli_usage("value_length %u: tied rows are as wide as dim, %u", s.value_length, s.dim);
    if (s.experts && s.experts_used > s.experts)
        cli_usage("experts_used %u: there are %u experts", s.experts_used, s.experts);
    return s;
}

#endif /* TRAIN_CONFIG_H */
