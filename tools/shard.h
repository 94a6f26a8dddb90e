/* shard.h - tokens for training: shard files, which are text that was tokenized once, and whatever the user names as one
 * array of tokens.
 *
 *     token_store s;
 *     store_open(&s, tokenizer, paths, n_paths, false); // text, .xz, .gz or shards
 *     for (uint64_t i = 0; i < s.n; i++) use(store_token(&s, i));
 *     store_close(&s);
 *
 * Every document is BOS, its tokens, EOS. A shard, everything little-endian:
 *
 *     offset  size  field
 *     0       4     "L3TK"
 *     4       4     u32 version: 1
 *     8       4     u32 vocabulary
 *     12      4     u32 bytes of a token: 2 if the vocabulary is at most 65,536, else 4
 *     16      8     u64 fingerprint of the tokenizer (text.h)
 *     24      8     u64 tokens
 *     32      8     u64 bytes of the documents they came from
 *     40      4     u32 CRC-32 of the tokens
 *     44      4     u32 zero
 *     48      ...   tokens
 *
 * Sections: >>write >>read >>store */
#ifndef SHARD_H
#define SHARD_H

#include "text.h"

/* Bytes written at once, a multiple of 4; tests make it small. */
#ifndef SHARD_BUFFER
#define SHARD_BUFFER (1 << 16)
#endif

enum { SHARD_HEADER = 48 };

/* 2 or 4 bytes a token. */
static inline uint32_t shard_width(uint32_t vocab) { return vocab <= 65536 ? 2 : 4; }

/* The n lowest bytes of a number, little-endian, and back. */
static inline void shard_put(unsigned char *p, uint64_t v, size_t n) {
    for (size_t i = 0; i < n; i++) p[i] = (unsigned char)(v >> (8 * i) & 255);
}

static inline uint64_t shard_get(const unsigned char *p, size_t n) {
    uint64_t v = 0;
    for (size_t i = n; i > 0; i--) v = v << 8 | p[i - 1];
    return v;
}

/* The tokens that begin and end a document; fails if there are none. */
static inline void shard_needs_ends(const l3_info *info) {
    if (info->bos < 0 || info->eos < 0)
        cli_fail("the tokenizer has no %s token, and every document is put between BOS and EOS",
                 info->bos < 0 ? "BOS" : "EOS");
}

/* >>write ------------------------------------------------------------------------------------------------------------ */

typedef struct shard_writer {
    cli_output     out;
    uint32_t       vocab, width, crc;
    uint64_t       fingerprint, tokens;
    unsigned char *bytes; /* tokens not yet written */
    size_t         used;
} shard_writer;

static inline void shard_begin(shard_writer *w, const char *path, const l3_model *tokenizer) {
    static const unsigned char zero[SHARD_HEADER];
    memset(w, 0, sizeof *w);
    w->vocab       = l3_model_info(tokenizer)->vocab;
    w->width       = shard_width(w->vocab);
    w->fingerprint = tokenizer_fingerprint(tokenizer);
    w->bytes       = (unsigned char *)cli_malloc(SHARD_BUFFER);
    cli_output_open(&w->out, path);
    if (!w->out.beside) cli_fail("%s: a shard's header is written last; the path of a file is expected", path);
    cli_write(&w->out, zero, SHARD_HEADER);
}

static inline void shard_flush(shard_writer *w) {
    w->crc = l3_crc32(w->crc, w->bytes, w->used);
    cli_write(&w->out, w->bytes, w->used);
    w->used = 0;
}

static inline void shard_write(shard_writer *w, const int32_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (w->used == SHARD_BUFFER) shard_flush(w);
        shard_put(w->bytes + w->used, (uint64_t)ids[i], w->width);
        w->used += w->width;
    }
    w->tokens += n;
}

/* The file appears under its name when it is whole. */
static inline void shard_end(shard_writer *w, uint64_t text_bytes) {
    unsigned char header[SHARD_HEADER] = "L3TK";
    shard_flush(w);
    shard_put(header + 4, 1, 4);
    shard_put(header + 8, w->vocab, 4);
    shard_put(header + 12, w->width, 4);
    shard_put(header + 16, w->fingerprint, 8);
    shard_put(header + 24, w->tokens, 8);
    shard_put(header + 32, text_bytes, 8);
    shard_put(header + 40, w->crc, 4);
    if (fseek(w->out.file, 0, SEEK_SET) != 0) cli_fail("%s: cannot be written (%s)", w->out.path, strerror(errno));
    cli_write(&w->out, header, SHARD_HEADER);
    cli_output_close(&w->out);
    free(w->bytes);
}

/* >>read ------------------------------------------------------------------------------------------------------------- */

typedef struct shard {
    l3_file              file;
    const unsigned char *tokens;
    unsigned char       *copy; /* of the tokens, where files cannot be mapped */
    uint32_t             vocab, width, crc;
    uint64_t             fingerprint, n, text_bytes;
} shard;

/* Whether a file is a shard. What cannot be opened is none; reading it as text says why. A pipe is left untouched. */
static inline bool shard_is(const char *path) {
    char       magic[4];
    FILE      *f  = strcmp(path, "-") == 0 || cli_is_device(path) ? NULL : cli_fopen(path, "rb");
    const bool is = f && fread(magic, 1, 4, f) == 4 && memcmp(magic, "L3TK", 4) == 0;
    if (f) fclose(f);
    return is;
}

static inline void shard_read(const l3_source *s, uint64_t at, void *bytes, size_t n, const char *path) {
    const int code = s->read(s->user, at, bytes, n);
    if (code != 0) cli_fail("%s: cannot be read (%s)", path, strerror(abs(code)));
}

static inline void shard_read_header(shard *s, const char *path) {
    unsigned char  h[SHARD_HEADER];
    const uint64_t size = s->file.source.size;
    if (size < SHARD_HEADER)
        cli_fail("%s: %" PRIu64 " bytes; a shard of tokens begins with %d", path, size, SHARD_HEADER);
    shard_read(&s->file.source, 0, h, SHARD_HEADER, path);
    if (memcmp(h, "L3TK", 4) != 0) cli_fail("%s: this is no shard of tokens; those begin with L3TK", path);
    if (shard_get(h + 4, 4) != 1)
        cli_fail("%s: a shard of version %" PRIu64 "; version 1 is known here", path, shard_get(h + 4, 4));
    s->vocab       = (uint32_t)shard_get(h + 8, 4);
    s->width       = (uint32_t)shard_get(h + 12, 4);
    s->fingerprint = shard_get(h + 16, 8);
    s->n           = shard_get(h + 24, 8);
    s->text_bytes  = shard_get(h + 32, 8);
    s->crc         = (uint32_t)shard_get(h + 40, 4);
    if (s->width != shard_width(s->vocab) || shard_get(h + 44, 4) != 0)
        cli_fail("%s: the shard's header contradicts itself; make it again", path);
    if (s->n > (size - SHARD_HEADER) / s->width || size != SHARD_HEADER + s->n * s->width)
        cli_fail("%s: the shard says %" PRIu64 " tokens and has %" PRIu64 " bytes of them; make it again", path, s->n,
                 size - SHARD_HEADER);
}

/* The IDs below the vocabulary, and the checksum. Both in one pass over every token. */
static inline void shard_check(const shard *s, const char *path) {
    const uint64_t step = SHARD_BUFFER;
    uint32_t       crc  = 0;
    for (uint64_t at = 0; at < s->n; at += step) {
        const uint64_t       n = s->n - at < step ? s->n - at : step;
        const unsigned char *p = s->tokens + at * s->width;
        if (cli_stopped) cli_fail("stopped");
        crc = l3_crc32(crc, p, (size_t)n * s->width);
        for (uint64_t i = 0; i < n; i++)
            if (shard_get(p + i * s->width, s->width) >= s->vocab)
                cli_fail("%s: token %" PRIu64 " of the shard is outside its vocabulary of %" PRIu32 "; make it again",
                         path, at + i, s->vocab);
    }
    if (crc != s->crc) cli_fail("%s: the shard's checksum is wrong, so it is damaged; make it again", path);
}

/* Maps a shard, or reads it where files cannot be mapped, and checks it. */
static inline void shard_open(shard *s, const char *path) {
    l3_error err = {0};
    memset(s, 0, sizeof *s);
    if (l3_source_open_file(&s->file, path, L3_FILE_MAP, &err) != L3_OK) cli_fail("%s", err.text);
    shard_read_header(s, path);
    const l3_source *source = &s->file.source;
    const uint64_t   n      = s->n * s->width;
    if (source->map && n) s->tokens = (const unsigned char *)source->map(source->user, SHARD_HEADER, (size_t)n);
    if (!s->tokens) {
        s->tokens = s->copy = (unsigned char *)cli_malloc(n);
        if (n) shard_read(source, SHARD_HEADER, s->copy, (size_t)n, path);
    }
    shard_check(s, path);
}

static inline void shard_close(shard *s) {
    free(s->copy);
    l3_source_close_file(&s->file);
    memset(s, 0, sizeof *s);
}

/* >>store ------------------------------------------------------------------------------------------------------------ */

/* Tokens of any number of files. A single shard stays where it is; everything else is collected in memory. */
typedef struct token_store {
    const void *tokens; /* (n,) of `width` bytes, little-endian */
    uint32_t    width;  /* 2 or 4 */
    uint32_t    vocab;
    uint64_t    n, text_bytes, fingerprint;
    shard       mapped; /* a single shard */
    void       *memory; /* all else */
    size_t      room;   /* bytes there */
} token_store;

static inline int32_t store_token(const token_store *s, uint64_t i) {
    const unsigned char *p = (const unsigned char *)s->tokens + i * s->width;
    if (s->width == 2) return (int32_t)(p[0] | (uint32_t)p[1] << 8);
    return (int32_t)(p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
}

static inline unsigned char *store_room(token_store *s, uint64_t tokens) {
    const uint64_t used = s->n * s->width, bytes = tokens * s->width;
    if (s->room - used < bytes) {
        s->room   = (size_t)(2 * s->room + bytes + SHARD_BUFFER);
        s->memory = realloc(s->memory, s->room);
        if (!s->memory) cli_fail("no %zu bytes of memory are left for the tokens", s->room);
    }
    s->n += tokens;
    return (unsigned char *)s->memory + used;
}

static inline void store_put(token_store *s, const int32_t *ids, size_t n) {
    unsigned char *p = store_room(s, n);
    for (size_t i = 0; i < n; i++, p += s->width) shard_put(p, (uint64_t)ids[i], s->width);
}

static inline void store_add_text(token_store *s, const l3_model *tokenizer, const char *path, bool lines) {
    const l3_info *info = l3_model_info(tokenizer);
    token_reader   r;
    token_piece    piece;
    tokens_open(&r, tokenizer, &path, 1, lines);
    while (tokens_next(&r, &piece)) {
        if (piece.begins) store_put(s, &info->bos, 1);
        store_put(s, piece.ids, piece.n);
        if (piece.ends) store_put(s, &info->eos, 1);
        text_report(&r.window.text, false);
    }
    text_report(&r.window.text, true);
    s->text_bytes += r.window.text.text_bytes;
    tokens_close(&r);
}

static inline void store_open_shard(token_store *s, shard *part, const char *path) {
    shard_open(part, path);
    if (part->fingerprint != s->fingerprint || part->vocab != s->vocab)
        cli_fail("%s: the shard was made with another tokenizer; make it again with this one", path);
    s->text_bytes += part->text_bytes;
}

static inline void store_add_shard(token_store *s, const char *path) {
    shard part;
    store_open_shard(s, &part, path);
    const size_t bytes = (size_t)(part.n * part.width);
    if (bytes) memcpy(store_room(s, part.n), part.tokens, bytes);
    shard_close(&part);
}

/* The tokens of every file, in order. Fails if there are none. */
static inline void store_open(token_store *s, const l3_model *tokenizer, const char *const *paths, size_t n_paths,
                              bool lines) {
    const l3_info *info = l3_model_info(tokenizer);
    memset(s, 0, sizeof *s);
    shard_needs_ends(info);
    s->vocab       = info->vocab;
    s->width       = shard_width(s->vocab);
    s->fingerprint = tokenizer_fingerprint(tokenizer);
    if (n_paths == 1 && shard_is(paths[0])) {
        store_open_shard(s, &s->mapped, paths[0]);
        s->tokens = s->mapped.tokens;
        s->n      = s->mapped.n;
    } else {
        for (size_t i = 0; i < n_paths; i++) {
            if (shard_is(paths[i])) store_add_shard(s, paths[i]);
            else store_add_text(s, tokenizer, paths[i], lines);
        }
        s->tokens = s->memory;
    }
    if (s->n == 0) cli_fail("%s: there is no text in it", n_paths ? paths[0] : "the training text");
}

static inline void store_close(token_store *s) {
    if (s->mapped.tokens) shard_close(&s->mapped);
    free(s->memory);
    memset(s, 0, sizeof *s);
}

#endif /* SHARD_H */
