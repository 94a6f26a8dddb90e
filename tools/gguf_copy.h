/* gguf_copy.h - keys and tensors of a GGUF file, byte by byte into another that is being written. */
#ifndef GGUF_COPY_H
#define GGUF_COPY_H

#include "gguf_write.h"

/* Keys lie one after another, so one begins where the one before it ends. */
typedef struct gguf_copier {
    gguf_writer *w;
    const char  *path;
    l3_source   *source;
    bool (*wanted)(void *user, const l3_gguf_key *key);
    void    *user;
    uint64_t start, end; /* of the current key in the input */
    bool     keep;
} gguf_copier;

/* n bytes of a source with a read callback. */
static inline void gguf_read(const char *path, const l3_source *source, uint64_t at, void *bytes, size_t n) {
    const int io = source->read(source->user, at, bytes, n);
    if (io) cli_fail("%s: byte %" PRIu64 " cannot be read (%s)", path, at, strerror(abs(io)));
}

static inline void gguf_copy_one(gguf_copier *c) {
    unsigned char bytes[4096];
    if (c->keep) c->w->n_keys++;
    for (uint64_t at = c->start; c->keep && at < c->end;) {
        const size_t n = c->end - at < sizeof bytes ? (size_t)(c->end - at) : sizeof bytes;
        gguf_read(c->path, c->source, at, bytes, n);
        gguf_put(&c->w->keys, bytes, n);
        at += n;
    }
}

static inline int gguf_copy_key(void *user, const l3_gguf_key *k) {
    static const unsigned char sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    gguf_copier               *c       = (gguf_copier *)user;
    gguf_copy_one(c);
    c->start = c->end;
    c->end   = k->offset;
    if (k->type == L3_GGUF_STRING) c->end += k->count;
    else c->end += k->count * sizes[k->type == L3_GGUF_ARRAY ? k->item_type : k->type];
    c->keep = c->wanted(c->user, k);
    if (c->keep && strcmp(k->name, "general.alignment") == 0) c->w->alignment = k->integer;
    return 0;
}

static inline int gguf_copy_string(void *user, uint64_t index, uint64_t offset, uint64_t length) {
    (void)index;
    ((gguf_copier *)user)->end = offset + length;
    return 0;
}

static inline bool gguf_is_tokenizer_key(void *user, const l3_gguf_key *k) {
    (void)user;
    return strncmp(k->name, "tokenizer.", 10) == 0;
}

/* What is made anew for every file: checksums by the writer, the self-test by l3-embed. */
static inline bool gguf_is_check_key(const char *name) {
    return strncmp(name, "l3.checksum.", 12) == 0 || strncmp(name, "l3.selftest.", 12) == 0;
}

/* All keys of `source` (with a read callback) that are wanted. */
static inline void gguf_copy_keys(gguf_writer *w, const char *path, l3_source *source,
                                  bool (*wanted)(void *user, const l3_gguf_key *key), void *user) {
    enum { FIRST_KEY = 24 }; /* behind magic, version and two counts */
    gguf_copier           c       = {w, path, source, wanted, user, FIRST_KEY, FIRST_KEY, false};
    const l3_gguf_visitor visitor = {&c, gguf_copy_key, gguf_copy_string, NULL, NULL};
    l3_error              err;
    memset(&err, 0, sizeof err);
    cli_check(l3_gguf_scan(source, &visitor, &err), path, &err);
    gguf_copy_one(&c);
}

/* Tensors of one dimension: norms, biases and offsets. */
static inline bool gguf_is_vector(const char *name) {
    return cli_has(name, "_norm.") || cli_has(name, ".lookup_offsets");
}

/* Which tensors an open model has; their data are copied after gguf_begin_data(). */
static inline void gguf_copy_tensors(gguf_writer *w, const l3_model *model) {
    const l3_tensor *t;
    char             name[64];
    for (uint32_t i = 0; (t = l3_model_tensor(model, i, name)) != NULL; i++)
        gguf_tensor(w, name, (l3_type)t->type, t->cols, gguf_is_vector(name) ? 0 : t->rows);
}

static inline void gguf_copy_data(gguf_writer *w, const char *path, const l3_model *model) {
    static unsigned char bytes[1 << 16];
    const l3_tensor     *t;
    char                 name[64];
    for (uint32_t i = 0; (t = l3_model_tensor(model, i, name)) != NULL; i++) {
        const uint64_t size = w->sizes[i];
        for (uint64_t at = 0, n; at < size; at += n) {
            n = size - at < sizeof bytes ? size - at : sizeof bytes;
            gguf_read(path, t->source, t->offset + at, bytes, (size_t)n);
            gguf_data(w, bytes, (size_t)n);
        }
    }
}

#endif /* GGUF_COPY_H */
