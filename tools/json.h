/* json.h - a small strict JSON reader (RFC 8259): the text becomes a tree.
 *
 *     json_parser r;
 *     json       *v = json_read(&r, text, n);        // NULL: r.wrong says what is wrong, r.at where
 *     puts(json_string(v, "name"));
 *     json_free(v);
 *
 * Strings are UTF-8 with a zero byte behind; `length` counts their bytes, which may include zero bytes. Bytes above 127 pass
 * as they are. Arrays and objects are nested up to 64 deep. */
#ifndef JSON_H
#define JSON_H

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef enum { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } json_type;

typedef struct json {
    json_type    type;
    double       number;
    char        *string;       /* JSON_STRING */
    size_t       length;       /* bytes of string, or number of items */
    char        *key;          /* of this value inside an object */
    struct json *first, *next; /* items; the item behind this one */
} json;

typedef struct json_parser {
    const char *at, *end;
    const char *wrong; /* what is wrong at `at`; NULL: nothing */
} json_parser;

enum { JSON_DEPTH = 64 };

static inline void json_free(json *v) {
    while (v) {
        json *next = v->next;
        json_free(v->first);
        free(v->string);
        free(v->key);
        free(v);
        v = next;
    }
}

/* A member of an object, or NULL. */
static inline const json *json_get(const json *v, const char *key) {
    const json *item = v ? v->first : NULL;
    while (item && !(item->key && strcmp(item->key, key) == 0)) item = item->next;
    return item;
}

/* Item i of an array or object, or NULL. */
static inline const json *json_at(const json *v, size_t i) {
    const json *item = v ? v->first : NULL;
    while (item && i--) item = item->next;
    return item;
}

static inline double json_number(const json *v, const char *key) {
    const json *item = json_get(v, key);
    return item && item->type == JSON_NUMBER ? item->number : 0;
}

static inline const char *json_string(const json *v, const char *key) {
    const json *item = json_get(v, key);
    return item && item->type == JSON_STRING ? item->string : "";
}

static inline bool json_fail(json_parser *r, const char *wrong) {
    if (!r->wrong) r->wrong = wrong;
    return false;
}

/* The byte at `at`, or 0 at the end. */
static inline char json_peek(const json_parser *r) { return r->at < r->end ? *r->at : '\0'; }

static inline void json_space(json_parser *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')) r->at++;
}

static inline size_t json_utf8(unsigned long c, char *out) {
    static const unsigned char lead[4] = {0, 0xC0, 0xE0, 0xF0};
    const int                  more    = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    out[0]                             = (char)(unsigned char)(lead[more] | (c >> (6 * more)));
    for (int i = 1; i <= more; i++) out[i] = (char)(unsigned char)(0x80 | ((c >> (6 * (more - i))) & 0x3F));
    return (size_t)more + 1;
}

/* "\u" and four hexadecimal digits. */
static inline bool json_hex(json_parser *r, unsigned long *c) {
    if (r->end - r->at < 6 || r->at[0] != '\\' || r->at[1] != 'u')
        return json_fail(r, "\\u and four digits belong here");
    *c = 0;
    for (int i = 2; i < 6; i++) {
        const char *digits = "0123456789abcdef0123456789ABCDEF";
        const char *hit    = r->at[i] ? strchr(digits, r->at[i]) : NULL;
        if (!hit) return json_fail(r, "\\u needs four hexadecimal digits");
        *c = *c * 16 + (unsigned long)(hit - digits) % 16;
    }
    r->at += 6;
    return true;
}

/* At "\u"; a surrogate pair gives one character. */
static inline bool json_unicode(json_parser *r, char *out, size_t *n) {
    const char   *start = r->at;
    unsigned long c, low = 0;
    if (!json_hex(r, &c)) return false;
    if (c >= 0xD800 && c < 0xE000) {
        const bool pair = c < 0xDC00 && json_hex(r, &low) && low >= 0xDC00 && low < 0xE000;
        if (!pair) {
            r->at    = start;
            r->wrong = NULL;
            return json_fail(r, "half of a surrogate pair");
        }
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
    *n += json_utf8(c, out + *n);
    return true;
}

/* At a backslash. */
static inline bool json_escape(json_parser *r, char *out, size_t *n) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char        c   = r->end - r->at > 1 ? r->at[1] : '\0';
    const char       *hit = c ? strchr(from, c) : NULL;
    if (c == 'u') return json_unicode(r, out, n);
    if (!hit) return json_fail(r, "an escape that JSON does not have");
    out[(*n)++] = to[hit - from];
    r->at += 2;
    return true;
}

/* At the opening quote. What an escape means is never longer than the escape. */
static inline bool json_text(json_parser *r, char **out, size_t *length) {
    const char *close = r->at + 1;
    size_t      n     = 0;
    if (json_peek(r) != '"') return json_fail(r, "a string belongs here");
    while (close < r->end && *close != '"') close += *close == '\\' ? 2 : 1;
    if (close >= r->end) return json_fail(r, "a string without an end");
    char *s = *out = (char *)malloc((size_t)(close - r->at));
    if (!s) return json_fail(r, "no memory is left for this string");
    for (r->at++; r->at < close;) {
        if (*r->at == '\\') {
            if (!json_escape(r, s, &n)) return false;
        } else if ((unsigned char)*r->at < 0x20) {
            return json_fail(r, "a control character in a string; it must be escaped");
        } else {
            s[n++] = *r->at++;
        }
    }
    r->at++;
    s[n]    = '\0';
    *length = n;
    return true;
}

static inline bool json_digits(json_parser *r) {
    const char *start = r->at;
    while (json_peek(r) >= '0' && json_peek(r) <= '9') r->at++;
    return r->at > start || json_fail(r, "a digit belongs here");
}

static inline bool json_read_number(json_parser *r, json *v) {
    const char *start = r->at;
    if (json_peek(r) == '-') r->at++;
    if (json_peek(r) == '0') r->at++;
    else if (!json_digits(r)) return false;
    if (json_peek(r) == '.') {
        r->at++;
        if (!json_digits(r)) return false;
    }
    if (json_peek(r) == 'e' || json_peek(r) == 'E') {
        r->at++;
        if (json_peek(r) == '+' || json_peek(r) == '-') r->at++;
        if (!json_digits(r)) return false;
    }
    v->type   = JSON_NUMBER;
    v->number = strtod(start, NULL);
    return isfinite(v->number) || json_fail(r, "a number that is too large");
}

static inline bool json_word(json_parser *r, json *v, const char *word, json_type type) {
    const size_t n = strlen(word);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, word, n) != 0) return json_fail(r, "a value belongs here");
    r->at += n;
    v->type = type;
    return true;
}

static inline bool json_value(json_parser *r, json **out, int depth);

static inline bool json_item(json_parser *r, const json *v, json **out, int depth) {
    char  *key = NULL;
    size_t n;
    bool   ok = true;
    json_space(r);
    if (v->type == JSON_OBJECT) {
        ok = json_text(r, &key, &n);
        json_space(r);
        if (ok && json_peek(r) != ':') ok = json_fail(r, "a colon belongs here");
        if (ok) r->at++;
    }
    ok = ok && json_value(r, out, depth);
    if (*out) (*out)->key = key;
    else free(key);
    return ok;
}

/* At the opening bracket of the depth-th array or object in one another. */
static inline bool json_items(json_parser *r, json *v, json_type type, char close, int depth) {
    json **tail = &v->first;
    v->type     = type;
    if (depth > JSON_DEPTH) return json_fail(r, "nested too deeply");
    r->at++;
    json_space(r);
    if (json_peek(r) == close) return r->at++, true;
    for (;;) {
        if (!json_item(r, v, tail, depth)) return false;
        tail = &(*tail)->next;
        v->length++;
        json_space(r);
        if (json_peek(r) == close) return r->at++, true;
        if (json_peek(r) != ',') return json_fail(r, "a comma or a closing bracket belongs here");
        r->at++;
    }
}

static inline bool json_value(json_parser *r, json **out, int depth) {
    json *v = *out = (json *)calloc(1, sizeof *v);
    if (!v) return json_fail(r, "no memory is left");
    json_space(r);
    switch (json_peek(r)) {
    case '"': v->type = JSON_STRING; return json_text(r, &v->string, &v->length);
    case '[': return json_items(r, v, JSON_ARRAY, ']', depth + 1);
    case '{': return json_items(r, v, JSON_OBJECT, '}', depth + 1);
    case 't': return json_word(r, v, "true", JSON_TRUE);
    case 'f': return json_word(r, v, "false", JSON_FALSE);
    case 'n': return json_word(r, v, "null", JSON_NULL);
    case '-': return json_read_number(r, v);
    default:
        return json_peek(r) >= '0' && json_peek(r) <= '9' ? json_read_number(r, v)
                                                          : json_fail(r, "a value belongs here");
    }
}

/* n bytes of text; the byte behind them is readable and no digit. NULL: it is no JSON, or there is more behind the value. */
static inline json *json_read(json_parser *r, const char *text, size_t n) {
    json *v = NULL;
    *r      = (json_parser){text, text + n, NULL};
    if (json_value(r, &v, 0)) {
        json_space(r);
        if (r->at == r->end) return v;
        json_fail(r, "something is behind the value");
    }
    json_free(v);
    return NULL;
}

/* Text that ends with a zero byte. */
static inline json *json_parse(const char *text) {
    json_parser r;
    return json_read(&r, text, strlen(text));
}

#endif /* JSON_H */
