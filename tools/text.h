/* text.h - text files as documents, and documents as tokens, in pieces: memory does not grow with a file or a document.
 *
 *     token_reader r;
 *     token_piece  p;
 *     tokens_open(&r, model, paths, n_paths, false);
 *     while (tokens_next(&r, &p)) use(p.ids, p.n, p.begins, p.ends);
 *     tokens_close(&r);
 *
 * A document ends at a line that is exactly <|endoftext|>, and at the end of a file; that line and the '\n' before it belong
 * to no document. With `lines` every line is a document. Empty documents are dropped. A path that ends in .xz or .gz goes
 * through that program, "-" is standard input. Failures end the program, as everything in cli.h does.
 *
 * Sections: >>text >>window >>joins >>tokens >>fingerprint */
#ifndef TEXT_H
#define TEXT_H

#include "cli.h"
#include "string_set.h"

/* >>text ------------------------------------------------------------------------------------------------------------- */

/* The next bytes of a document, at least one unless empty documents are wanted; valid until the next call. */
typedef struct text_piece {
    const char *bytes;
    size_t      n;
    bool        begins, ends; /* the document's first bytes, its last */
} text_piece;

/* Bytes read at once; tests make it small. */
#ifndef TEXT_ROOM
#define TEXT_ROOM (1 << 18)
#endif

/* When so few bytes are left the buffer is filled again, and so many wait until more have come: "\n", a mark and the byte
 * after it fit, so that a mark and what is before it are seen together. */
enum { TEXT_HELD = 16 };

typedef struct text_reader {
    const char *const *paths;
    size_t             n_paths, n_opened;
    bool               lines;
    bool               keep_empty; /* give out empty documents, too; false unless set after text_open() */
    FILE              *file;       /* the one being read, or NULL */
    const char        *tool;       /* what unpacks it, or NULL */
    bool               whole;      /* all that is left of it is in the buffer */
    char              *buffer;
    size_t             at, end;    /* what is in the buffer and not yet given out */
    bool               inside;     /* of a document */
    uint64_t           bytes_read; /* of the files, unpacked */
    uint64_t           text_bytes; /* of the documents given out */
} text_reader;

static inline void text_open(text_reader *r, const char *const *paths, size_t n_paths, bool lines) {
    memset(r, 0, sizeof *r);
    r->paths   = paths;
    r->n_paths = n_paths;
    r->lines   = lines;
    r->whole   = true;
    r->buffer  = (char *)cli_malloc(TEXT_ROOM);
}

/* The program that unpacks a file, or NULL. */
static inline const char *text_tool(const char *path) {
    const size_t n = strlen(path);
    if (n > 3 && strcmp(path + n - 3, ".xz") == 0) return "xz";
    return n > 3 && strcmp(path + n - 3, ".gz") == 0 ? "gzip" : NULL;
}

#if defined(_WIN32)
#define TEXT_QUOTE "\""
static inline FILE *text_popen(const char *command) { return _popen(command, "rb"); }
static inline int   text_pclose(FILE *f) { return _pclose(f); }
static inline bool  text_not_found(int status) { return status < 0; } /* the shell's answer does not tell */
#define TEXT_NOWHERE "NUL"
#else
#define TEXT_QUOTE   "'"
static inline FILE *text_popen(const char *command) { return popen(command, "r"); }
static inline int   text_pclose(FILE *f) { return pclose(f); }
static inline bool  text_not_found(int status) { return status == 127 << 8; } /* what sh says then */
#define TEXT_NOWHERE "/dev/null"
#endif

/* Starts `tool -dc -- 'path'`. A quote in the path becomes '\'' on POSIX; Windows has none in names. */
static inline FILE *text_unpack(const char *tool, const char *path) {
    const size_t room    = 4 * strlen(path) + 64;
    char        *command = (char *)cli_malloc(room);
    size_t       n       = (size_t)snprintf(command, room, "%s -dc -- " TEXT_QUOTE, tool);
    for (; *path; path++) {
        if (*path == TEXT_QUOTE[0]) n += (size_t)snprintf(command + n, room - n, "'\\''");
        else command[n++] = *path;
    }
    snprintf(command + n, room - n, TEXT_QUOTE " 2>" TEXT_NOWHERE);
    FILE *f = text_popen(command);
    free(command);
    return f;
}

/* The next file; false when there is none. */
static inline bool text_next_file(text_reader *r) {
    if (r->n_opened == r->n_paths) return false;
    const char *path = r->paths[r->n_opened++];
    r->tool          = strcmp(path, "-") == 0 ? NULL : text_tool(path);
    r->file          = strcmp(path, "-") == 0 ? stdin : cli_fopen(path, "rb");
    if (!r->file) cli_fail("%s: cannot be opened (%s)", path, strerror(errno));
    if (r->tool) fclose(r->file), r->file = text_unpack(r->tool, path); /* opened first for a good message */
    if (!r->file) cli_fail("%s: %s cannot be started (%s)", path, r->tool, strerror(errno));
    r->at = r->end = 0;
    r->whole = r->inside = false;
    return true;
}

/* The file is at its end. */
static inline void text_end_file(text_reader *r) {
    const char *path   = r->paths[r->n_opened - 1];
    int         status = 0;
    if (cli_stopped) cli_fail("stopped");
    if (ferror(r->file)) cli_fail("%s: cannot be read (%s)", path, strerror(errno));
    if (r->tool) status = text_pclose(r->file);
    else if (r->file != stdin) fclose(r->file);
    r->file  = NULL;
    r->whole = true;
    if (status && text_not_found(status)) cli_fail("%s: the program %s, which unpacks it, is not here", path, r->tool);
    if (status) cli_fail("%s: %s cannot unpack it; the file is damaged or something else", path, r->tool);
}

/* Moves what is left to the front and fills the buffer. */
static inline void text_fill(text_reader *r) {
    memmove(r->buffer, r->buffer + r->at, r->end - r->at);
    r->end -= r->at;
    r->at = 0;
    while (r->end < TEXT_ROOM) {
        const size_t got = fread(r->buffer + r->end, 1, TEXT_ROOM - r->end, r->file);
        r->end += got;
        r->bytes_read += got;
        if (got == 0) {
            text_end_file(r);
            return;
        }
    }
}

/* A place in the buffer where the document ends, and where the next begins. */
typedef struct text_end {
    size_t stop, next;
} text_end;

/* Whether a line that begins here is the mark. */
static inline bool text_is_mark(const text_reader *r, size_t at) {
    static const char mark[] = "<|endoftext|>";
    const size_t      n      = sizeof mark - 1;
    if (r->end - at < n || memcmp(r->buffer + at, mark, n) != 0) return false;
    return r->end - at == n ? r->whole : r->buffer[at + n] == '\n';
}

static inline bool text_find_mark(const text_reader *r, text_end *e) {
    bool line = !r->inside; /* a line begins at `at` */
    for (size_t at = r->at; at < r->end; line = true) {
        if (line && text_is_mark(r, at)) {
            const size_t mark = sizeof "<|endoftext|>" - 1;
            e->stop           = at > r->at ? at - 1 : at;
            e->next           = r->end - at == mark ? r->end : at + mark + 1;
            return true;
        }
        const char *newline = (const char *)memchr(r->buffer + at, '\n', r->end - at);
        at                  = newline ? (size_t)(newline - r->buffer) + 1 : r->end;
    }
    return false;
}

static inline bool text_find_line_end(const text_reader *r, text_end *e) {
    const char *newline = (const char *)memchr(r->buffer + r->at, '\n', r->end - r->at);
    if (!newline) return false;
    e->stop = (size_t)(newline - r->buffer);
    e->next = e->stop + 1;
    return true;
}

/* The next piece of a document; false: there is no more. */
static inline bool text_next(text_reader *r, text_piece *piece) {
    for (;;) {
        text_end e;
        if (cli_stopped) cli_fail("stopped");
        if (r->end - r->at <= TEXT_HELD && !r->whole) text_fill(r);
        if (r->at == r->end) {
            if (!text_next_file(r)) return false;
            continue;
        }
        bool ends = r->lines ? text_find_line_end(r, &e) : text_find_mark(r, &e);
        if (!ends) e.stop = e.next = r->whole ? r->end : r->end - TEXT_HELD, ends = r->whole;
        *piece    = (text_piece){r->buffer + r->at, e.stop - r->at, !r->inside, ends};
        r->at     = e.next;
        r->inside = !ends;
        r->text_bytes += piece->n;
        if (piece->n || r->keep_empty) return true;
    }
}

/* What was read so far, on a terminal; `last` ends the line. */
static inline void text_report(const text_reader *r, bool last) {
    const uint64_t mb = r->bytes_read >> 20;
    if (mb || last) cli_report(mb, last ? mb : 0, "MB of text");
}

static inline void text_close(text_reader *r) {
    if (r->file && r->tool) text_pclose(r->file);
    else if (r->file && r->file != stdin) fclose(r->file);
    free(r->buffer);
    memset(r, 0, sizeof *r);
}

/* >>window -----------------------------------------------------------------------------------------------------------
 * Text of one document that was read and not yet used. Its users find runs of characters in it, one after another. */

typedef struct text_window {
    text_reader text;
    bool        space;                  /* a document gets a dummy space in front */
    char       *bytes;                  /* (used + 1,) a zero byte at the end */
    size_t      room, used, from, seen; /* the run under way begins at `from` and is known to go on up to `seen` */
    bool        begins, ends;           /* nothing of the document was given out; its last bytes are here */
} text_window;

/* Bytes of the character at s, 1 for a byte that belongs to none. What follows the text must be no continuation byte. */
static inline size_t text_char(const char *s) {
    const size_t n = (signed char)*s >= 0 ? 1 : cli_utf8(s);
    return n ? n : 1;
}

/* Whether the whole character at i is here, which has up to 4 bytes. */
static inline bool window_has(const text_window *w, size_t i) { return i < w->used && (w->ends || w->used - i >= 4); }

/* Takes in the next piece of text; false: there is none. */
static inline bool window_fill(text_window *w) {
    text_piece   piece;
    const size_t left = w->used - w->from;
    if (!text_next(&w->text, &piece)) return false;
    if (left) memmove(w->bytes, w->bytes + w->from, left);
    w->seen -= w->from;
    w->from  = 0;
    w->used  = left;
    w->bytes = (char *)string_set_room(w->bytes, &w->room, left + piece.n + 2, 1);
    if (piece.begins) w->begins = true;
    if (piece.begins && piece.n && w->space) w->bytes[w->used++] = ' ';
    memcpy(w->bytes + w->used, piece.bytes, piece.n);
    w->used += piece.n;
    w->bytes[w->used] = '\0';
    w->ends           = piece.ends;
    return true;
}

/* The run under way ended at `stop`, and the next begins. */
static inline void window_pass(text_window *w, size_t stop) { w->from = w->seen = stop; }

/* The document is used up. */
static inline void window_end(text_window *w) {
    w->ends = false;
    w->from = w->seen = w->used = 0;
}

static inline void window_close(text_window *w) {
    text_close(&w->text);
    free(w->bytes);
    memset(w, 0, sizeof *w);
}

/* >>joins ------------------------------------------------------------------------------------------------------------
 * Where text can be cut so that tokens do not change: between two characters that no piece of the vocabulary has side by
 * side, no merge can cross. Characters are told apart by their last bytes, as l3_model.h does; a space is U+2581 there. */

typedef struct text_joins {
    uint8_t bits[8192];   /* bit set of 65536: last byte of a character, last byte of the next */
    bool    user_defined; /* such pieces are found byte by byte, inside of characters too */
} text_joins;

enum { TEXT_SPACE_END = 0x81, TEXT_CONTROL = 3, TEXT_USER_DEFINED = 4 }; /* types: tokenizer.ggml.token_type */

static inline void text_join(text_joins *j, unsigned last, unsigned now) {
    const unsigned i = last << 8 | now;
    j->bits[i / 8]   = (uint8_t)(j->bits[i / 8] | 1u << i % 8);
}

static inline bool text_joined(const text_joins *j, unsigned last, unsigned now) {
    const unsigned i = last << 8 | now;
    return j->bits[i / 8] >> i % 8 & 1;
}

/* The pairs of one piece (n bytes and a zero byte). */
static inline void text_join_piece(text_joins *j, const char *s, size_t n) {
    unsigned last = 0;
    for (size_t i = 0, length; i < n; i += length) {
        length             = text_char(s + i);
        const unsigned now = (unsigned char)s[i + length - 1];
        if (i) text_join(j, last, now);
        last = now;
    }
}

/* A space may stand wherever a character that ends like U+2581 may. */
static inline void text_join_spaces(text_joins *j) {
    for (unsigned b = 0; b < 256; b++) {
        if (text_joined(j, b, TEXT_SPACE_END)) text_join(j, b, ' ');
        if (text_joined(j, TEXT_SPACE_END, b)) text_join(j, ' ', b);
    }
    if (text_joined(j, TEXT_SPACE_END, TEXT_SPACE_END)) text_join(j, ' ', ' ');
}

static inline void text_joins_of(text_joins *j, l3_tokenizer *t, const l3_info *info) {
    char *copy = (char *)cli_malloc((uint64_t)info->longest_piece + 1);
    memset(j, 0, sizeof *j);
    for (uint32_t id = 0; id < info->vocab; id++) {
        const char *piece;
        size_t      n;
        int         type;
        l3_error    err = {0};
        cli_check(l3_token_piece(t, (int32_t)id, &piece, &n, NULL, &type, &err), "tokenizer", &err);
        if (n) memcpy(copy, piece, n);
        copy[n] = '\0';
        text_join_piece(j, copy, n);
        if (type == TEXT_USER_DEFINED) j->user_defined = true;
    }
    text_join_spaces(j);
    free(copy);
}

/* Whether text may be cut between a character that ends in `last` and the next one, n bytes at s. A user-defined piece may
 * end inside of that one, which then is a lone first byte to the piece and to the text before. */
static inline bool text_may_cut(const text_joins *j, unsigned last, const char *s, size_t n) {
    if (text_joined(j, last, (unsigned char)s[n - 1])) return false;
    return !j->user_defined || !text_joined(j, last, (unsigned char)s[0]);
}

/* >>tokens -----------------------------------------------------------------------------------------------------------
 * The tokens of a document are those of l3_tokenize over the whole of it. Text is cut into runs, mostly words, as above; what
 * a run becomes is remembered. The dummy space in front of a document is a space like others. */

/* The next tokens of a document; may be none. Valid until the next call. */
typedef struct token_piece {
    const int32_t *ids;
    size_t         n;
    bool           begins, ends;
} token_piece;

/* Tests make these small, too. */
#ifndef TOKENS_AT_ONCE
#define TOKENS_AT_ONCE (1 << 16)
#endif
#ifndef TOKENS_CACHE
#define TOKENS_CACHE (64 << 20) /* bytes for runs and what they became; when they are full all are forgotten */
#endif

enum { TOKENS_WORD = 64 }; /* bytes of the longest run that is remembered */

typedef struct token_reader {
    text_window    window;
    const l3_info *info;
    cli_tokenizer  tokenizer;
    text_joins     joins;
    string_set     runs;
    size_t        *run_ends; /* (runs.n,) in run_ids */
    int32_t       *run_ids;
    size_t         room_runs, room_run_ids;
    int32_t       *ids; /* to give out */
    size_t         n_ids, room_ids;
    uint64_t       tokens; /* given out */
} token_reader;

static inline void tokens_open(token_reader *r, const l3_model *tokenizer, const char *const *paths, size_t n_paths,
                               bool lines) {
    memset(r, 0, sizeof *r);
    r->info         = l3_model_info(tokenizer);
    r->window.space = r->info->add_space_prefix;
    text_open(&r->window.text, paths, n_paths, lines);
    cli_tokenizer_open(&r->tokenizer, tokenizer, CLI_RUN);
    text_joins_of(&r->joins, r->tokenizer.tokenizer, r->info);
}

/* Where the run under way ends; false: not in what is here. */
static inline bool tokens_find_run(token_reader *r, size_t *stop) {
    text_window *w    = &r->window;
    size_t       i    = w->seen;
    unsigned     last = i > w->from ? (unsigned char)w->bytes[i - 1] : 0;
    while (window_has(w, i)) {
        const size_t n = text_char(w->bytes + i);
        if (i > w->from && text_may_cut(&r->joins, last, w->bytes + i, n)) return *stop = i, true;
        i += n;
        last = (unsigned char)w->bytes[i - 1];
    }
    w->seen = *stop = i;
    return w->ends && i > w->from;
}

static inline void tokens_put(token_reader *r, const int32_t *ids, size_t n) {
    r->ids = (int32_t *)string_set_room(r->ids, &r->room_ids, r->n_ids + n, sizeof *ids);
    for (size_t i = 0; i < n; i++) r->ids[r->n_ids++] = ids[i];
}

static inline void tokens_forget_runs(token_reader *r) {
    const size_t n = r->runs.n ? r->run_ends[r->runs.n - 1] : 0;
    if (string_set_size(&r->runs) + r->runs.n * sizeof *r->run_ends + n * sizeof *r->run_ids > TOKENS_CACHE)
        string_set_clear(&r->runs);
}

static inline void tokens_encode_run(token_reader *r, const char *run, size_t length) {
    bool           added  = true;
    const uint32_t number = length <= TOKENS_WORD ? string_set_add(&r->runs, run, length, &added) : 0;
    if (!added) {
        const size_t start = number ? r->run_ends[number - 1] : 0;
        tokens_put(r, r->run_ids + start, r->run_ends[number] - start);
        return;
    }
    size_t   n;
    int32_t *ids = cli_encode(&r->tokenizer, run, length, L3_TEXT_CONTINUE, &n);
    tokens_put(r, ids, n);
    if (length <= TOKENS_WORD) {
        const size_t start = number ? r->run_ends[number - 1] : 0;
        r->run_ends = (size_t *)string_set_room(r->run_ends, &r->room_runs, (size_t)number + 1, sizeof *r->run_ends);
        r->run_ids  = (int32_t *)string_set_room(r->run_ids, &r->room_run_ids, start + n + 1, sizeof *ids);
        memcpy(r->run_ids + start, ids, n * sizeof *ids);
        r->run_ends[number] = start + n;
        tokens_forget_runs(r);
    }
    free(ids);
}

/* The next tokens of a document; false: there is no more. */
static inline bool tokens_next(token_reader *r, token_piece *piece) {
    text_window *w = &r->window;
    size_t       stop;
    r->n_ids = 0;
    while (r->n_ids < TOKENS_AT_ONCE) {
        if (tokens_find_run(r, &stop)) {
            tokens_encode_run(r, w->bytes + w->from, stop - w->from);
            window_pass(w, stop);
        } else if (w->ends || !window_fill(w)) {
            break;
        }
    }
    const bool ends = w->ends && w->from == w->used;
    *piece          = (token_piece){r->ids, r->n_ids, w->begins, ends};
    if (!w->begins && !ends && r->n_ids == 0) return false;
    w->begins = false;
    if (ends) window_end(w);
    r->tokens += r->n_ids;
    return true;
}

static inline void tokens_close(token_reader *r) {
    window_close(&r->window);
    cli_tokenizer_close(&r->tokenizer);
    string_set_free(&r->runs);
    free(r->run_ends);
    free(r->run_ids);
    free(r->ids);
    memset(r, 0, sizeof *r);
}

/* >>fingerprint ------------------------------------------------------------------------------------------------------ */

/* FNV-1a (64 bits), goes on from h. */
static inline uint64_t fnv1a(uint64_t h, const void *bytes, size_t n) {
    const unsigned char *p = (const unsigned char *)bytes;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

/* Of a number's four bytes, little-endian. */
static inline uint64_t fnv1a_u32(uint64_t h, uint32_t v) {
    const unsigned char bytes[4] = {(unsigned char)(v & 255), (unsigned char)(v >> 8 & 255),
                                    (unsigned char)(v >> 16 & 255), (unsigned char)(v >> 24)};
    return fnv1a(h, bytes, 4);
}

/* The same for a tokenizer and for every model with it, other tokenizers another: FNV-1a over, for each token, the piece's
 * length (u32), its bytes, its score (f32) and its type (u32), then BOS, EOS (i32) and add_space_prefix (u32). */
static inline uint64_t tokenizer_fingerprint(const l3_model *model) {
    const l3_info *info = l3_model_info(model);
    uint64_t       h    = 0xcbf29ce484222325u;
    cli_tokenizer  t;
    cli_tokenizer_open(&t, model, 0);
    for (uint32_t id = 0; id < info->vocab; id++) {
        const char   *piece;
        size_t        n;
        float         score;
        int           type;
        unsigned char bytes[4];
        l3_error      err = {0};
        cli_check(l3_token_piece(t.tokenizer, (int32_t)id, &piece, &n, &score, &type, &err), "tokenizer", &err);
        h = fnv1a(fnv1a_u32(h, (uint32_t)n), piece, n);
        l3_pack(L3_F32, &score, 1, bytes);
        h = fnv1a_u32(fnv1a(h, bytes, 4), (uint32_t)type);
    }
    cli_tokenizer_close(&t);
    h = fnv1a_u32(fnv1a_u32(h, (uint32_t)info->bos), (uint32_t)info->eos);
    return fnv1a_u32(h, info->add_space_prefix);
}

#endif /* TEXT_H */
