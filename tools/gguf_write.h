/* gguf_write.h - a GGUF v3 file written as a stream: keys, then what tensors there will be, then their data in that order.
 *
 *     gguf_writer w;
 *     gguf_begin(&w, "model.gguf");
 *     gguf_string(&w, "general.architecture", "l3");
 *     gguf_tensor(&w, "token_embd.weight", L3_F32, cols, rows);
 *     gguf_begin_data(&w);
 *     gguf_data(&w, bytes, n);                                 // as often as needed; tensors follow one another
 *     gguf_end(&w);
 *
 * The file appears under its name when it is whole. Failures end the program, as everything in cli.h does. */
#ifndef GGUF_WRITE_H
#define GGUF_WRITE_H

#include "cli.h"

enum { GGUF_ALIGNMENT = 32 };

typedef struct gguf_buffer {
    unsigned char *bytes;
    size_t         used, room;
} gguf_buffer;

typedef struct gguf_writer {
    cli_output  out;
    gguf_buffer keys, tensors;
    uint64_t    n_keys, n_tensors;
    uint64_t   *sizes;      /* (n_tensors,) bytes of each tensor */
    uint64_t    next;       /* offset of the next tensor's data */
    uint64_t    at, filled; /* the tensor whose data come now, and how many of its bytes came */
} gguf_writer;

static inline void gguf_put(gguf_buffer *b, const void *bytes, size_t n) {
    if (b->room - b->used < n) {
        b->room            = 2 * b->room + n + 256;
        unsigned char *now = (unsigned char *)realloc(b->bytes, b->room);
        if (!now) cli_fail("no memory is left for the file's metadata");
        b->bytes = now;
    }
    memcpy(b->bytes + b->used, bytes, n);
    b->used += n;
}

/* The n lowest bytes of a number, little-endian. */
static inline void gguf_put_number(gguf_buffer *b, uint64_t v, size_t n) {
    unsigned char bytes[8];
    for (size_t i = 0; i < n; i++) bytes[i] = (unsigned char)(v >> (8 * i) & 0xff);
    gguf_put(b, bytes, n);
}

static inline void gguf_put_text(gguf_buffer *b, const char *s, size_t n) {
    gguf_put_number(b, n, 8);
    gguf_put(b, s, n);
}

static inline void gguf_put_float(gguf_buffer *b, float v) {
    unsigned char bytes[4];
    l3_pack(L3_F32, &v, 1, bytes);
    gguf_put(b, bytes, 4);
}

static inline void gguf_begin(gguf_writer *w, const char *path) {
    memset(w, 0, sizeof *w);
    cli_output_open(&w->out, path);
}

/* ---- keys ---- */

static inline void gguf_key(gguf_writer *w, const char *name, l3_gguf_type type) {
    gguf_put_text(&w->keys, name, strlen(name));
    gguf_put_number(&w->keys, (uint64_t)type, 4);
    w->n_keys++;
}

/* An array's head; its items follow with gguf_put_...(&w->keys, ...). */
static inline void gguf_array(gguf_writer *w, const char *name, l3_gguf_type items, uint64_t n) {
    gguf_key(w, name, L3_GGUF_ARRAY);
    gguf_put_number(&w->keys, (uint64_t)items, 4);
    gguf_put_number(&w->keys, n, 8);
}

static inline void gguf_u32(gguf_writer *w, const char *name, uint32_t v) {
    gguf_key(w, name, L3_GGUF_U32);
    gguf_put_number(&w->keys, v, 4);
}

static inline void gguf_f32(gguf_writer *w, const char *name, float v) {
    gguf_key(w, name, L3_GGUF_F32);
    gguf_put_float(&w->keys, v);
}

static inline void gguf_bool(gguf_writer *w, const char *name, bool v) {
    gguf_key(w, name, L3_GGUF_BOOL);
    gguf_put_number(&w->keys, v, 1);
}

static inline void gguf_string(gguf_writer *w, const char *name, const char *v) {
    gguf_key(w, name, L3_GGUF_STRING);
    gguf_put_text(&w->keys, v, strlen(v));
}

/* ---- tensors ---- */

/* A matrix (rows, cols), or a vector with rows 0. */
static inline void gguf_tensor(gguf_writer *w, const char *name, l3_type type, uint32_t cols, uint32_t rows) {
    const uint64_t size  = (type == L3_I32 ? 4 * (uint64_t)cols : l3_row_bytes((int)type, cols)) * (rows ? rows : 1);
    uint64_t      *sizes = (uint64_t *)realloc(w->sizes, (size_t)(w->n_tensors + 1) * sizeof *sizes);
    if (!sizes) cli_fail("no memory is left for the file's metadata");
    if (size == 0) cli_fail("%s: a row of %" PRIu32 " cannot be stored as %s", name, cols, l3_type_name((int)type));
    w->sizes                 = sizes;
    w->sizes[w->n_tensors++] = size;
    gguf_put_text(&w->tensors, name, strlen(name));
    gguf_put_number(&w->tensors, rows ? 2 : 1, 4);
    gguf_put_number(&w->tensors, cols, 8);
    if (rows) gguf_put_number(&w->tensors, rows, 8);
    gguf_put_number(&w->tensors, (uint64_t)type, 4);
    gguf_put_number(&w->tensors, w->next, 8);
    w->next = (w->next + size + GGUF_ALIGNMENT - 1) / GGUF_ALIGNMENT * GGUF_ALIGNMENT;
}

static inline void gguf_write_out(gguf_writer *w, const void *bytes, size_t n) { cli_write(&w->out, bytes, n); }

static inline void gguf_pad(gguf_writer *w, uint64_t size) {
    static const unsigned char zero[GGUF_ALIGNMENT];
    gguf_write_out(w, zero, (size_t)((GGUF_ALIGNMENT - size % GGUF_ALIGNMENT) % GGUF_ALIGNMENT));
}

static inline void gguf_begin_data(gguf_writer *w) {
    gguf_buffer head = {NULL, 0, 0};
    gguf_put(&head, "GGUF", 4);
    gguf_put_number(&head, 3, 4);
    gguf_put_number(&head, w->n_tensors, 8);
    gguf_put_number(&head, w->n_keys, 8);
    gguf_write_out(w, head.bytes, head.used);
    gguf_write_out(w, w->keys.bytes, w->keys.used);
    gguf_write_out(w, w->tensors.bytes, w->tensors.used);
    gguf_pad(w, head.used + w->keys.used + w->tensors.used);
    free(head.bytes);
}

/* The next n bytes of tensor data; a call does not go past the end of a tensor. */
static inline void gguf_data(gguf_writer *w, const void *bytes, size_t n) {
    if (w->at == w->n_tensors || n > w->sizes[w->at] - w->filled) cli_fail("%s: more data than tensors", w->out.path);
    gguf_write_out(w, bytes, n);
    w->filled += n;
    if (w->filled < w->sizes[w->at]) return;
    gguf_pad(w, w->filled);
    w->filled = 0;
    w->at++;
}

static inline void gguf_end(gguf_writer *w) {
    if (w->at != w->n_tensors) cli_fail("%s: tensors without data", w->out.path);
    cli_output_close(&w->out);
    free(w->keys.bytes);
    free(w->tensors.bytes);
    free(w->sizes);
}

#endif /* GGUF_WRITE_H */
