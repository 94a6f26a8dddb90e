/* train_files.h - models in and out of training, and checkpoints. All are GGUF files (docs/FORMAT.md).
 *
 * Sections: >>shape of a file >>weights >>export >>checkpoint */
#ifndef TRAIN_FILES_H
#define TRAIN_FILES_H

#include "gguf_copy.h"
#include "shard.h"
#include "train_config.h"
#include "train_step.h"

/* >>shape of a file -------------------------------------------------------------------------------------------------- */

/* The shape of a model file, with its offsets (vocab + 1,) in *offsets (NULL without lookup layers), in malloc memory. */
static inline train_shape train_shape_of_model(const cli_engine *e, int32_t **offsets) {
    const l3_info *info = e->info;
    train_shape    s;
    memset(&s, 0, sizeof s);
    *offsets      = NULL;
    s.vocab       = info->vocab;
    s.context     = info->context;
    s.dim         = info->dim;
    s.blocks      = info->n_blocks;
    s.heads       = info->n_heads;
    s.kv_heads    = info->n_kv_heads;
    s.head_dim    = info->head_dim;
    s.ffn         = info->ffn_dim;
    s.rope_dims   = info->rope_dims;
    s.rope_base   = info->rope_base;
    s.rms_epsilon = info->rms_epsilon;
    s.tied_head   = info->tied_head;
    if (info->n_lookups > TRAIN_MAX_LOOKUPS)
        cli_fail("%s: %u lookup layers; %d at most can be trained", e->path, info->n_lookups, TRAIN_MAX_LOOKUPS);
    for (uint32_t i = 0; i < info->n_lookups; i++) {
        const l3_lookup *k = l3_model_lookup(e->model, i, &s.lookup_blocks[i]);
        s.lookups++;
        s.row_count         = k->row_count;
        s.max_rows          = k->max_rows;
        s.value_length      = k->value_length;
        s.up_length         = k->up_length;
        s.has_up            = k->up.rows > 0;
        s.tied              = k->tied;
        s.query_norm        = k->query_norm;
        s.query_norm_weight = k->query_norm && k->query_norm_weight.cols > 0;
        s.key_norm          = k->key_norm;
        s.layer_norm        = k->layer_norm;
        s.up_norm_weight    = k->up_norm_weight.cols > 0;
        s.up_norm_bias      = k->up_norm_bias.cols > 0;
        s.residual          = k->residual;
        s.score_scale       = k->score_scale;
        s.norm_epsilon      = k->norm_epsilon;
        if (!*offsets) *offsets = cli_offsets(k);
    }
    return s;
}

/* >>weights ---------------------------------------------------------------------------------------------------------- */

static inline train_param *train_find(const train_model *m, const char *name) {
    for (size_t i = 0; i < m->n_params; i++)
        if (strcmp(m->params[i].name, name) == 0) return &m->params[i];
    return NULL;
}

/* The lookup layer whose tensor `part` this is, or NULL. */
static inline train_lookup *train_find_lookup(train_model *m, const char *name, const char *part) {
    char full[64];
    for (uint32_t i = 0; i < m->shape.lookups; i++) {
        snprintf(full, sizeof full, "blk.%u.%s", m->lookup[i].block, part);
        if (strcmp(full, name) == 0) return &m->lookup[i];
    }
    return NULL;
}

/* Every element of a tensor of any type, row by row. */
static inline void train_read_tensor(const char *path, const char *name, const l3_tensor *t, real *dst) {
    const size_t   bytes = (size_t)l3_row_bytes(t->type, t->cols);
    unsigned char *row   = (unsigned char *)cli_malloc(bytes);
    for (uint32_t r = 0; r < t->rows; r++) {
        const uint64_t at = t->offset + (uint64_t)r * bytes;
        const int      io = t->source->read(t->source->user, at, row, bytes);
        if (io) cli_fail("%s: tensor %s cannot be read at byte %" PRIu64 " (%s)", path, name, at, strerror(abs(io)));
        l3_unpack(t->type, row, 0, t->cols, dst + (size_t)r * t->cols);
    }
    free(row);
}

/* Weights of every tensor that model and file have in common; `loaded` (n_params + lookups,) says which. */
static inline void train_load(train_model *m, const cli_engine *e, bool *loaded) {
    const l3_tensor *t;
    char             name[64];
    for (uint32_t i = 0; (t = l3_model_tensor(e->model, i, name)) != NULL; i++) {
        train_param  *p = train_find(m, name);
        train_lookup *k = train_find_lookup(m, name, "lookup_rows.weight");
        if (!p && !k) continue;
        if ((p && (t->cols != p->cols || t->rows != (p->rows ? p->rows : 1))) ||
            (k && (t->cols != train_row_width(&m->shape) || t->rows != m->shape.row_count)))
            cli_fail("%s: tensor %s is %u x %u, another shape than the model's", e->path, name, t->rows, t->cols);
        train_read_tensor(e->path, name, t, p ? m->w + p->at : k->rows);
        loaded[p ? (size_t)(p - m->params) : m->n_params + (size_t)(k - m->lookup)] = true;
    }
    for (uint32_t i = 0; i < m->shape.lookups; i++) { /* files may have another allocation in every layer */
        const l3_lookup *k;
        uint32_t         block;
        for (uint32_t j = 0; (k = l3_model_lookup(e->model, j, &block)) != NULL; j++)
            if (block == m->lookup[i].block) {
                int32_t *offsets = cli_offsets(k);
                memcpy(m->lookup[i].offsets, offsets, ((size_t)m->shape.vocab + 1) * sizeof *offsets);
                free(offsets);
            }
    }
}

/* >>export ----------------------------------------------------------------------------------------------------------- */

/* The keys of a shape. */
static inline void train_shape_keys(gguf_writer *w, const train_shape *s) {
    const char *const a = s->lookups ? "l3" : "llama";
    char              key[80];
#define TRAIN_KEY(suffix) (snprintf(key, sizeof key, "%s.%s", a, suffix), key)
    gguf_u32(w, TRAIN_KEY("vocab_size"), s->vocab);
    gguf_u32(w, TRAIN_KEY("context_length"), s->context);
    gguf_u32(w, TRAIN_KEY("embedding_length"), s->dim);
    gguf_u32(w, TRAIN_KEY("block_count"), s->blocks);
    gguf_u32(w, TRAIN_KEY("feed_forward_length"), s->ffn);
    gguf_u32(w, TRAIN_KEY("attention.head_count"), s->heads);
    gguf_u32(w, TRAIN_KEY("attention.head_count_kv"), s->kv_heads);
    gguf_u32(w, TRAIN_KEY("attention.key_length"), s->head_dim);
    gguf_u32(w, TRAIN_KEY("attention.value_length"), s->head_dim);
    gguf_f32(w, TRAIN_KEY("attention.layer_norm_rms_epsilon"), (float)s->rms_epsilon);
    gguf_u32(w, TRAIN_KEY("rope.dimension_count"), s->rope_dims);
    gguf_f32(w, TRAIN_KEY("rope.freq_base"), (float)s->rope_base);
#undef TRAIN_KEY
    if (!s->lookups) return;
    gguf_array(w, "l3.lookup.block_indices", L3_GGUF_U32, s->lookups);
    for (uint32_t i = 0; i < s->lookups; i++) gguf_put_number(&w->keys, s->lookup_blocks[i], 4);
    gguf_u32(w, "l3.lookup.row_count", s->row_count);
    gguf_u32(w, "l3.lookup.rows_per_token_max", s->max_rows);
    gguf_u32(w, "l3.lookup.key_length", s->dim);
    gguf_u32(w, "l3.lookup.value_length", s->value_length);
    gguf_u32(w, "l3.lookup.up_length", s->up_length);
    gguf_bool(w, "l3.lookup.tied", s->tied);
    gguf_bool(w, "l3.lookup.query_norm", s->query_norm);
    gguf_bool(w, "l3.lookup.key_norm", s->key_norm);
    gguf_f32(w, "l3.lookup.score_scale", (float)s->score_scale);
    gguf_string(w, "l3.lookup.norm_type", s->layer_norm ? "layer" : "rms");
    gguf_f32(w, "l3.lookup.norm_epsilon", (float)s->norm_epsilon);
    gguf_bool(w, "l3.lookup.residual", s->residual);
}

static inline void train_tensor(gguf_writer *w, const char *name, const char *suffix, uint32_t cols, uint32_t rows) {
    char full[80];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    gguf_tensor(w, full, L3_F32, cols, rows);
}

/* Announces everything in one set of arrays: weights (suffix "") or moments. */
static inline void train_tensors(gguf_writer *w, const train_model *m, const char *suffix) {
    char name[64];
    for (size_t i = 0; i < m->n_params; i++)
        train_tensor(w, m->params[i].name, suffix, m->params[i].cols, m->params[i].rows);
    for (uint32_t i = 0; i < m->shape.lookups; i++) {
        snprintf(name, sizeof name, "blk.%u.lookup_offsets", m->lookup[i].block);
        if (!*suffix) gguf_tensor(w, name, L3_I32, m->shape.vocab + 1, 0);
        snprintf(name, sizeof name, "blk.%u.lookup_rows.weight", m->lookup[i].block);
        train_tensor(w, name, suffix, train_row_width(&m->shape), m->shape.row_count);
    }
}

static inline void train_put_reals(gguf_writer *w, const real *x, size_t n) {
    unsigned char bytes[4096];
    float         values[1024];
    for (size_t at = 0; at < n; at += 1024) {
        const size_t count = n - at < 1024 ? n - at : 1024;
        for (size_t i = 0; i < count; i++) values[i] = (float)x[at + i];
        l3_pack(L3_F32, values, (uint32_t)count, bytes);
        gguf_data(w, bytes, 4 * count);
    }
}

static inline void train_put_offsets(gguf_writer *w, const train_model *m, const train_lookup *k) {
    unsigned char bytes[4];
    for (uint32_t t = 0; t <= m->shape.vocab; t++) {
        l3_pack_i32(&k->offsets[t], 1, bytes);
        gguf_data(w, bytes, 4);
    }
}

/* What train_tensors announced: 0 weights, 1 and 2 the moments. */
static inline void train_put_all(gguf_writer *w, const train_model *m, int which) {
    const real *dense = which == 0 ? m->w : which == 1 ? m->m : m->v;
    for (size_t i = 0; i < m->n_params; i++) train_put_reals(w, dense + m->params[i].at, m->params[i].n);
    for (uint32_t i = 0; i < m->shape.lookups; i++) {
        const train_lookup *k = &m->lookup[i];
        if (which == 0) train_put_offsets(w, m, k);
        train_put_reals(w,
                        which == 0   ? k->rows
                        : which == 1 ? k->m
                                     : k->v,
                        (size_t)m->shape.row_count * train_row_width(&m->shape));
    }
}

/* Keys for people, and the run's own. */
typedef struct train_about {
    const char *name, *description, *settings; /* NULL: none */
    uint64_t    steps, tokens;
    double      seconds, valid_loss; /* valid_loss: NaN if there is none */
} train_about;

static inline void train_about_keys(gguf_writer *w, const train_about *a, const char *prefix) {
    char key[80];
    if (a->name) gguf_string(w, "general.name", a->name);
    if (a->description) gguf_string(w, "general.description", a->description);
    if (!a->settings) return;
#define TRAIN_KEY(suffix) (snprintf(key, sizeof key, "%s.training.%s", prefix, suffix), key)
    gguf_string(w, TRAIN_KEY("settings"), a->settings);
    gguf_u64(w, TRAIN_KEY("steps"), a->steps);
    gguf_u64(w, TRAIN_KEY("tokens"), a->tokens);
    gguf_f32(w, TRAIN_KEY("seconds"), (float)a->seconds);
    if (cli_finite(a->valid_loss)) gguf_f32(w, TRAIN_KEY("valid_perplexity"), (float)exp(a->valid_loss));
#undef TRAIN_KEY
}

/* A model that every program of this project runs: F32, with the tokenizer of `tokenizer` (opened for reading). */
static inline void train_export(const train_model *m, const char *path, cli_engine *tokenizer,
                                const train_about *about) {
    gguf_writer w;
    gguf_begin(&w, path);
    gguf_string(&w, "general.architecture", m->shape.lookups ? "l3" : "llama");
    train_about_keys(&w, about, m->shape.lookups ? "l3" : "llama");
    gguf_u32(&w, "general.file_type", 0);
    train_shape_keys(&w, &m->shape);
    if (tokenizer) gguf_copy_keys(&w, tokenizer->path, &tokenizer->file.source, gguf_is_tokenizer_key, NULL);
    train_tensors(&w, m, "");
    gguf_begin_data(&w);
    train_put_all(&w, m, 0);
    gguf_end(&w);
}

/* The gradient of every tensor under the tensor's name. Rows of tokens that no sequence has are zero. */
static inline void train_export_gradients(const train_trainer *r, const char *path) {
    const train_model *m     = r->m;
    const size_t       width = train_row_width(&m->shape);
    gguf_writer        w;
    real              *zero = (real *)cli_malloc(width * sizeof *zero);
    gguf_begin(&w, path);
    gguf_string(&w, "general.architecture", m->shape.lookups ? "l3" : "llama");
    gguf_string(&w, "general.type", "gradients");
    train_tensors(&w, m, "");
    gguf_begin_data(&w);
    for (size_t i = 0; i < m->n_params; i++) train_put_reals(&w, r->slot[0].g + m->params[i].at, m->params[i].n);
    for (uint32_t i = 0; i < m->shape.lookups; i++) {
        const train_lookup *k = &m->lookup[i];
        train_put_offsets(&w, m, k);
        for (uint32_t t = 0; t < m->shape.vocab; t++)
            for (int32_t row = 0; row < k->offsets[t + 1] - k->offsets[t]; row++)
                train_put_reals(&w, r->is_touched[t] ? k->grad + ((size_t)k->grad_at[t] + (size_t)row) * width : zero,
                                width);
    }
    gguf_end(&w);
    free(zero);
}

/* >>checkpoint ------------------------------------------------------------------------------------------------------- */

/* Where a run stands, besides weights and moments. */
typedef struct train_state {
    uint64_t step, data_tokens, data_hash, bad_validations;
    double   seconds, best_loss; /* best_loss: infinity before the first validation */
} train_state;

static inline void train_save(train_trainer *r, train_config *c, const train_state *s, const char *path) {
    train_model *m    = r->m;
    char        *text = train_config_text(c);
    gguf_writer  w;
    gguf_begin(&w, path);
    gguf_string(&w, "general.architecture", "l3");
    gguf_string(&w, "general.type", "checkpoint");
    gguf_string(&w, "l3.training.settings", text);
    gguf_u64(&w, "l3.training.steps", s->step);
    gguf_u64(&w, "l3.training.data_tokens", s->data_tokens);
    gguf_u64(&w, "l3.training.data_hash", s->data_hash);
    gguf_u64(&w, "l3.training.bad_validations", s->bad_validations);
    gguf_f64(&w, "l3.training.seconds", s->seconds);
    gguf_f64(&w, "l3.training.best_loss", s->best_loss);
    gguf_u32(&w, "l3.lookup.row_count", m->shape.row_count);
    gguf_u32(&w, "l3.lookup.rows_per_token_max", m->shape.max_rows);
    train_tensors(&w, m, "");
    train_tensors(&w, m, ".m");
    train_tensors(&w, m, ".v");
    gguf_begin_data(&w);
    for (int i = 0; i < 3; i++) train_put_all(&w, m, i);
    gguf_end(&w);
    free(text);
}

/* What a scan of a checkpoint finds. */
typedef struct train_checkpoint {
    l3_file     file;
    const char *path;
    bool        is_checkpoint;
    char       *settings;
    train_state state;
    uint32_t    row_count, max_rows, crc;
    uint64_t    crc_at; /* of its four bytes; 0: none */
    struct {
        char     name[80];
        uint64_t rows, cols, offset;
        uint32_t type;
    } * tensors;
    size_t   n_tensors;
    uint64_t data_at;
} train_checkpoint;

static inline int train_checkpoint_key(void *user, const l3_gguf_key *k) {
    train_checkpoint *c = (train_checkpoint *)user;
    if (strcmp(k->name, "general.type") == 0 && k->text)
        c->is_checkpoint = k->count == 10 && memcmp(k->text, "checkpoint", 10) == 0;
    if (strcmp(k->name, "l3.training.settings") == 0 && k->type == L3_GGUF_STRING && k->count < 65536) {
        c->settings = (char *)cli_malloc(k->count + 1);
        if (c->file.source.read(c->file.source.user, k->offset, c->settings, (size_t)k->count) != 0)
            cli_fail("%s: the settings cannot be read", c->path);
    }
    if (strcmp(k->name, "l3.training.steps") == 0) c->state.step = k->integer;
    if (strcmp(k->name, "l3.training.data_tokens") == 0) c->state.data_tokens = k->integer;
    if (strcmp(k->name, "l3.training.data_hash") == 0) c->state.data_hash = k->integer;
    if (strcmp(k->name, "l3.training.bad_validations") == 0) c->state.bad_validations = k->integer;
    if (strcmp(k->name, "l3.training.seconds") == 0) c->state.seconds = k->number;
    if (strcmp(k->name, "l3.training.best_loss") == 0) c->state.best_loss = k->number;
    if (strcmp(k->name, "l3.lookup.row_count") == 0) c->row_count = (uint32_t)k->integer;
    if (strcmp(k->name, "l3.lookup.rows_per_token_max") == 0) c->max_rows = (uint32_t)k->integer;
    if (strcmp(k->name, "l3.checksum.file") == 0) c->crc_at = k->offset, c->crc = (uint32_t)k->integer;
    return 0;
}

static inline int train_checkpoint_tensor(void *user, const l3_gguf_tensor *t) {
    train_checkpoint *c = (train_checkpoint *)user;
    c->tensors          = cli_grow(c->tensors, c->n_tensors, sizeof *c->tensors);
    snprintf(c->tensors[c->n_tensors].name, sizeof c->tensors[0].name, "%s", t->name);
    c->tensors[c->n_tensors].cols   = t->dims[0];
    c->tensors[c->n_tensors].rows   = t->dims[1];
    c->tensors[c->n_tensors].offset = t->offset;
    c->tensors[c->n_tensors].type   = t->type;
    c->n_tensors++;
    return 0;
}

static inline int train_checkpoint_data(void *user, uint64_t start, uint64_t alignment) {
    (void)alignment;
    ((train_checkpoint *)user)->data_at = start;
    return 0;
}

/* The whole file against its checksum: a damaged checkpoint is refused before anything depends on it. */
static inline void train_checkpoint_verify(const train_checkpoint *c) {
    unsigned char *bytes = (unsigned char *)cli_malloc(1 << 20);
    uint32_t       crc   = 0;
    for (uint64_t at = 0; at < c->file.source.size; at += 1 << 20) {
        const uint64_t left = c->file.source.size - at;
        const size_t   n    = left < 1 << 20 ? (size_t)left : 1 << 20;
        if (c->file.source.read(c->file.source.user, at, bytes, n) != 0) cli_fail("%s: it cannot be read", c->path);
        for (uint64_t i = c->crc_at; i < c->crc_at + 4; i++)
            if (i >= at && i < at + n) bytes[i - at] = 0;
        crc = l3_crc32(crc, bytes, n);
    }
    free(bytes);
    if (!c->crc_at || crc != c->crc)
        cli_fail("%s: the checkpoint is damaged or cut short (its checksum is wrong); start without --resume, or from "
                 "a copy",
                 c->path);
}

static inline void train_checkpoint_open(train_checkpoint *c, const char *path) {
    const l3_gguf_visitor visitor = {c, train_checkpoint_key, NULL, train_checkpoint_tensor, train_checkpoint_data};
    l3_error              err;
    memset(c, 0, sizeof *c);
    memset(&err, 0, sizeof err);
    c->path = path;
    if (l3_source_open_file(&c->file, path, L3_FILE_READ, &err) != L3_OK)
        cli_fail("%s; --resume expects the checkpoint of the run", err.text);
    cli_check(l3_gguf_scan(&c->file.source, &visitor, &err), path, &err);
    if (!c->is_checkpoint || !c->settings) cli_fail("%s: this is no checkpoint of l3-train", path);
    train_checkpoint_verify(c);
}

static inline void train_checkpoint_close(train_checkpoint *c) {
    l3_source_close_file(&c->file);
    free(c->settings);
    free(c->tensors);
}

/* Reads a tensor of n values into dst, float or int32. */
static inline void train_checkpoint_read(const train_checkpoint *c, const char *name, const char *suffix, uint32_t type,
                                         size_t n, void *dst) {
    char   full[80];
    size_t i = 0;
    snprintf(full, sizeof full, "%s%s", name, suffix);
    while (i < c->n_tensors && strcmp(c->tensors[i].name, full) != 0) i++;
    if (i == c->n_tensors) cli_fail("%s: tensor %s is missing; this checkpoint is of another model", c->path, full);
    const uint64_t at = c->data_at + c->tensors[i].offset;
    if (c->tensors[i].cols * c->tensors[i].rows != n || c->tensors[i].type != type)
        cli_fail("%s: tensor %s has another shape than the model's", c->path, full);
    if (at > c->file.source.size || c->file.source.size - at < 4 * (uint64_t)n)
        cli_fail("%s: tensor %s lies beyond the end of the file", c->path, full);
    unsigned char bytes[4096];
    for (size_t done = 0; done < n; done += 1024) {
        const size_t count = n - done < 1024 ? n - done : 1024;
        if (c->file.source.read(c->file.source.user, at + 4 * done, bytes, 4 * count) != 0)
            cli_fail("%s: tensor %s cannot be read", c->path, full);
        for (size_t j = 0; j < count; j++) {
            const uint32_t v = (uint32_t)shard_get(bytes + 4 * j, 4);
            float          f;
            memcpy(&f, &v, 4);
            if (type == L3_I32) ((int32_t *)dst)[done + j] = (int32_t)v;
            else ((real *)dst)[done + j] = (real)f;
        }
    }
}

/* Allocation of the checkpoint's first lookup layer (vocab + 1,), in malloc memory. */
static inline int32_t *train_checkpoint_offsets(const train_checkpoint *c, uint32_t block, uint32_t vocab) {
    int32_t *offsets = (int32_t *)cli_malloc(((uint64_t)vocab + 1) * sizeof *offsets);
    char     name[64];
    snprintf(name, sizeof name, "blk.%u.lookup_offsets", block);
    train_checkpoint_read(c, name, "", L3_I32, (size_t)vocab + 1, offsets);
    for (uint32_t t = 0; t < vocab; t++)
        if (offsets[t + 1] < offsets[t]) cli_fail("%s: the row offsets are damaged", c->path);
    if (offsets[0] != 0 || (uint32_t)offsets[vocab] != c->row_count)
        cli_fail("%s: the row offsets are damaged", c->path);
    return offsets;
}

static inline void train_checkpoint_load(const train_checkpoint *c, train_model *m) {
    static const char *const suffixes[] = {"", ".m", ".v"};
    real *const              dense[]    = {m->w, m->m, m->v};
    char                     name[64];
    for (int k = 0; k < 3; k++) {
        for (size_t i = 0; i < m->n_params; i++)
            train_checkpoint_read(c, m->params[i].name, suffixes[k], L3_F32, m->params[i].n,
                                  dense[k] + m->params[i].at);
        for (uint32_t i = 0; i < m->shape.lookups; i++) {
            real *const rows[] = {m->lookup[i].rows, m->lookup[i].m, m->lookup[i].v};
            snprintf(name, sizeof name, "blk.%u.lookup_rows.weight", m->lookup[i].block);
            train_checkpoint_read(c, name, suffixes[k], L3_F32, (size_t)m->shape.row_count * train_row_width(&m->shape),
                                  rows[k]);
        }
    }
}

#endif /* TRAIN_FILES_H */
