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
 * The file appears under its name when it is whole. Failures end the program, as everything in cli.h does.
 *
 * Checksums (docs/FORMAT.md) come by themselves: l3.checksum.file, and l3.checksum.rows.N for a lookup layer whose offsets
 * come before its rows. They are known only after the data, so they are put in at the end; output that is written in place
 * (a pipe, standard output) has none. */
#ifndef GGUF_WRITE_H
#define GGUF_WRITE_H

#include "cli.h"

enum { GGUF_ALIGNMENT = 32, GGUF_ALIGNMENT_MAX = 65536 };

typedef struct gguf_buffer {
    unsigned char *bytes;
    size_t         used, room;
} gguf_buffer;

/* The checksums of a lookup layer's row blocks, taken while its rows go by. */
typedef struct gguf_row_checksums {
    uint64_t       offsets_at, rows_at; /* which tensors; 0: none, else 1 + its number */
    uint32_t       block, vocab;
    uint64_t       row_bytes;
    unsigned char *offsets; /* (vocab + 1,) int32, as in the file; from the offsets' data on */
    size_t         values;  /* where in the keys the (vocab,) checksums are */
    uint32_t       token, crc;
} gguf_row_checksums;

typedef struct gguf_writer {
    cli_output          out;
    gguf_buffer         head, keys, tensors;
    uint64_t            n_keys, n_tensors;
    uint64_t           *sizes;      /* (n_tensors,) bytes of each tensor */
    uint64_t            next;       /* offset of the next tensor's data */
    uint64_t            at, filled; /* the tensor whose data come now, and how many of its bytes came */
    uint64_t            alignment;  /* of tensors; whoever changes it writes general.alignment, too */
    gguf_row_checksums *lookups;    /* (n_lookups,) */
    size_t              n_lookups;
    size_t              checksum;   /* where in the keys l3.checksum.file is; 0: there is none */
    bool                unchecked;  /* set behind gguf_begin(): no checksums, which take longer than writing */
    uint64_t            data_bytes; /* behind the metadata, */
    uint32_t            crc;        /* and their checksum */
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
    w->alignment = GGUF_ALIGNMENT;
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

static inline void gguf_u64(gguf_writer *w, const char *name, uint64_t v) {
    gguf_key(w, name, L3_GGUF_U64);
    gguf_put_number(&w->keys, v, 8);
}

static inline void gguf_f64(gguf_writer *w, const char *name, double v) {
    uint64_t bits;
    memcpy(&bits, &v, 8);
    gguf_key(w, name, L3_GGUF_F64);
    gguf_put_number(&w->keys, bits, 8);
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

/* Remembers which tensors are a lookup layer's. */
static inline void gguf_note_lookup(gguf_writer *w, const char *name, uint32_t cols, uint64_t row_bytes) {
    unsigned block;
    int      end = 0;
    if (sscanf(name, "blk.%u.lookup_%n", &block, &end) != 1 || !end) return;
    const bool offsets = strcmp(name + end, "offsets") == 0;
    if (!offsets && strcmp(name + end, "rows.weight") != 0) return;
    if (offsets) {
        w->lookups = (gguf_row_checksums *)cli_grow(w->lookups, w->n_lookups, sizeof *w->lookups);
        w->lookups[w->n_lookups++] =
            (gguf_row_checksums){.offsets_at = w->n_tensors, .block = block, .vocab = cols - 1};
    }
    for (size_t i = 0; i < w->n_lookups && !offsets; i++)
        if (w->lookups[i].block == block) w->lookups[i].rows_at = w->n_tensors, w->lookups[i].row_bytes = row_bytes;
}

/* A matrix (rows, cols), or a vector with rows 0. */
static inline void gguf_tensor(gguf_writer *w, const char *name, l3_type type, uint32_t cols, uint32_t rows) {
    const uint64_t row   = type == L3_I32 ? 4 * (uint64_t)cols : l3_row_bytes((int)type, cols);
    uint64_t      *sizes = (uint64_t *)realloc(w->sizes, (size_t)(w->n_tensors + 1) * sizeof *sizes);
    if (!sizes) cli_fail("no memory is left for the file's metadata");
    if (row == 0) cli_fail("%s: a row of %" PRIu32 " cannot be stored as %s", name, cols, l3_type_name((int)type));
    w->sizes                 = sizes;
    w->sizes[w->n_tensors++] = row * (rows ? rows : 1);
    gguf_put_text(&w->tensors, name, strlen(name));
    gguf_put_number(&w->tensors, rows ? 2 : 1, 4);
    gguf_put_number(&w->tensors, cols, 8);
    if (rows) gguf_put_number(&w->tensors, rows, 8);
    gguf_put_number(&w->tensors, (uint64_t)type, 4);
    gguf_put_number(&w->tensors, w->next, 8);
    w->next = (w->next + row * (rows ? rows : 1) + w->alignment - 1) / w->alignment * w->alignment;
    gguf_note_lookup(w, name, cols, row);
}

/* ---- checksums ---- */

/* A product of polynomials over GF(2) modulo CRC-32's, in its order of bits: the highest bit is x^0. */
static inline uint32_t gguf_crc_multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (int i = 31; i >= 0; i--) {
        if (a >> i & 1) product ^= b;
        b = b >> 1 ^ (b & 1 ? 0xedb88320u : 0); /* times x */
    }
    return product;
}

/* The CRC-32 of bytes with this one, followed by n bytes with the one of `next`: n bytes more multiply it by x^8n. */
static inline uint32_t gguf_crc_join(uint32_t crc, uint32_t next, uint64_t n) {
    uint32_t power = 0x80000000u >> 8; /* x^8, then its squares */
    for (; n; n >>= 1) {
        if (n & 1) crc = gguf_crc_multiply(crc, power);
        power = gguf_crc_multiply(power, power);
    }
    return crc ^ next;
}

static inline uint64_t gguf_offset(const gguf_row_checksums *c, uint32_t token) {
    const unsigned char *p = c->offsets + 4 * (size_t)token;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline void gguf_set_u32(unsigned char *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (unsigned char)(v >> (8 * i) & 0xff);
}

/* The bytes [from, from + n) of a layer's rows go by. */
static inline void gguf_check_rows(gguf_writer *w, gguf_row_checksums *c, uint64_t from, const unsigned char *p,
                                   uint64_t n) {
    while (c->token < c->vocab) {
        const uint64_t end  = gguf_offset(c, c->token + 1) * c->row_bytes;
        const uint64_t here = end <= from ? 0 : end - from < n ? end - from : n;
        c->crc              = l3_crc32(c->crc, p, (size_t)here);
        from += here, p += here, n -= here;
        if (from < end) return; /* the block goes on in the next call */
        gguf_set_u32(w->keys.bytes + c->values + 4 * (size_t)c->token, c->crc);
        c->token++;
        c->crc = 0;
    }
}

/* n bytes of the tensor w->at, of which w->filled came before. */
static inline void gguf_check(gguf_writer *w, const void *bytes, size_t n) {
    for (size_t i = 0; i < w->n_lookups; i++) {
        gguf_row_checksums *c = &w->lookups[i];
        if (!c->values) continue;
        if (c->offsets_at == w->at + 1) {
            if (!c->offsets) c->offsets = (unsigned char *)cli_malloc(4 * ((uint64_t)c->vocab + 1));
            memcpy(c->offsets + w->filled, bytes, n);
        }
        if (c->rows_at == w->at + 1) gguf_check_rows(w, c, w->filled, (const unsigned char *)bytes, n);
    }
}

/* The keys of the checksums, with zeros for now. */
static inline void gguf_checksum_keys(gguf_writer *w) {
    for (size_t i = 0; i < w->n_lookups; i++) {
        gguf_row_checksums *c = &w->lookups[i];
        char                name[40];
        if (!c->rows_at || c->vocab == 0) continue;
        snprintf(name, sizeof name, "l3.checksum.rows.%" PRIu32, c->block);
        gguf_array(w, name, L3_GGUF_U32, c->vocab);
        c->values = w->keys.used;
        for (uint32_t t = 0; t < c->vocab; t++) gguf_put_number(&w->keys, 0, 4);
    }
    gguf_u32(w, "l3.checksum.file", 0);
    w->checksum = w->keys.used - 4;
}

/* The file's own checksum is over everything with zero in its place. */
static inline void gguf_patch_checksums(gguf_writer *w) {
    uint32_t crc = l3_crc32(0, w->head.bytes, w->head.used);
    crc          = l3_crc32(crc, w->keys.bytes, w->keys.used);
    crc          = l3_crc32(crc, w->tensors.bytes, w->tensors.used);
    gguf_set_u32(w->keys.bytes + w->checksum, gguf_crc_join(crc, w->crc, w->data_bytes));
    if (fseek(w->out.file, (long)w->head.used, SEEK_SET) != 0)
        cli_fail("%s: cannot be written (%s)", w->out.path, strerror(errno));
    cli_write(&w->out, w->keys.bytes, w->keys.used);
}

/* ---- data ---- */

static inline void gguf_write_out(gguf_writer *w, const void *bytes, size_t n) {
    if (w->checksum) w->crc = l3_crc32(w->crc, bytes, n);
    w->data_bytes += n;
    cli_write(&w->out, bytes, n);
}

static inline void gguf_pad(gguf_writer *w, uint64_t size) {
    static const unsigned char zero[GGUF_ALIGNMENT_MAX];
    gguf_write_out(w, zero, (size_t)((w->alignment - size % w->alignment) % w->alignment));
}

static inline void gguf_begin_data(gguf_writer *w) {
    if (w->out.beside && !w->unchecked) gguf_checksum_keys(w);
    gguf_put(&w->head, "GGUF", 4);
    gguf_put_number(&w->head, 3, 4);
    gguf_put_number(&w->head, w->n_tensors, 8);
    gguf_put_number(&w->head, w->n_keys, 8);
    cli_write(&w->out, w->head.bytes, w->head.used);
    cli_write(&w->out, w->keys.bytes, w->keys.used);
    cli_write(&w->out, w->tensors.bytes, w->tensors.used);
    gguf_pad(w, w->head.used + w->keys.used + w->tensors.used);
}

/* The next n bytes of tensor data; a call does not go past the end of a tensor. */
static inline void gguf_data(gguf_writer *w, const void *bytes, size_t n) {
    if (w->at == w->n_tensors || n > w->sizes[w->at] - w->filled) cli_fail("%s: more data than tensors", w->out.path);
    gguf_check(w, bytes, n);
    gguf_write_out(w, bytes, n);
    w->filled += n;
    if (w->filled < w->sizes[w->at]) return;
    gguf_pad(w, w->filled);
    w->filled = 0;
    w->at++;
}

/* Bytes of the file so far. */
static inline uint64_t gguf_size(const gguf_writer *w) {
    return w->head.used + w->keys.used + w->tensors.used + w->data_bytes;
}

static inline void gguf_end(gguf_writer *w) {
    if (w->at != w->n_tensors) cli_fail("%s: tensors without data", w->out.path);
    if (w->checksum) gguf_patch_checksums(w);
    cli_output_close(&w->out);
    for (size_t i = 0; i < w->n_lookups; i++) free(w->lookups[i].offsets);
    free(w->lookups);
    free(w->head.bytes);
    free(w->keys.bytes);
    free(w->tensors.bytes);
    free(w->sizes);
}

#endif /* GGUF_WRITE_H */
