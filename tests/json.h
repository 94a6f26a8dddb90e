/* json.h - a small forgiving JSON reader for test data: the text becomes a tree.
 * Strings are UTF-8 with a zero byte behind; `length` counts their bytes, which may include zero bytes.
 * Broken text gives NULL. Nesting is limited to 64. */
#ifndef TEST_JSON_H
#define TEST_JSON_H

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

static inline const char *json_space(const char *p) {
    while (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r') p++;
    return p;
}

static inline size_t json_utf8(unsigned long c, char *out) {
    int                        more    = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3, i;
    static const unsigned char lead[4] = {0, 0xC0, 0xE0, 0xF0};
    out[0]                             = (char)(unsigned char)(lead[more] | (c >> (6 * more)));
    for (i = 1; i <= more; i++) out[i] = (char)(unsigned char)(0x80 | ((c >> (6 * (more - i))) & 0x3F));
    return (size_t)more + 1;
}

static inline const char *json_hex4(const char *p, unsigned long *out) {
    int i;
    for (*out = 0, i = 0; i < 4; i++, p++) {
        int c = *p, d = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
        if (d < 0) return NULL;
        *out = *out * 16 + (unsigned long)d;
    }
    return p;
}

/* p is behind "\u"; a surrogate pair gives one character. */
static inline const char *json_unicode(const char *p, char *out, size_t *n) {
    unsigned long c, low;
    p = json_hex4(p, &c);
    if (p && c >= 0xD800 && c < 0xDC00 && p[0] == '\\' && p[1] == 'u') {
        p = json_hex4(p + 2, &low);
        c = 0x10000 + ((c - 0xD800) << 10) + ((low - 0xDC00) & 0x3FF);
    }
    if (p) *n += json_utf8(c, out + *n);
    return p;
}

/* p is at the opening quote. A decoded string is never longer than its source. */
static inline const char *json_text(const char *p, char **out, size_t *length) {
    static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
    char             *s = (char *)malloc(strlen(p) + 1);
    size_t            n = 0;
    const char       *hit;
    *out = s;
    if (!s || *p++ != '"') return NULL;
    while (p && *p != '"') {
        if (!*p) return NULL;
        if (*p != '\\') {
            s[n++] = *p++;
            continue;
        }
        if (!p[1]) return NULL;
        if (p[1] == 'u') {
            p = json_unicode(p + 2, s, &n);
            continue;
        }
        hit    = strchr(from, p[1]);
        s[n++] = hit ? to[hit - from] : p[1];
        p += 2;
    }
    if (!p) return NULL;
    s[n]    = 0;
    *length = n;
    *out    = (char *)realloc(s, n + 1);
    return p + 1;
}

static inline const char *json_value(const char *p, json **out, int depth);

/* p is behind the opening bracket. */
static inline const char *json_items(const char *p, json *v, char close, int depth) {
    json **tail = &v->first;
    p           = json_space(p);
    while (*p != close) {
        char  *key = NULL;
        size_t n;
        if (v->type == JSON_OBJECT) {
            p = json_text(p, &key, &n);
            if (p) p = json_space(p);
            if (!p || *p++ != ':') {
                free(key);
                return NULL;
            }
        }
        p = json_value(p, tail, depth);
        if (*tail) (*tail)->key = key;
        else free(key);
        if (!p) return NULL;
        tail = &(*tail)->next;
        v->length++;
        p = json_space(p);
        if (*p == ',') p = json_space(p + 1);
        else if (*p != close) return NULL;
    }
    return p + 1;
}

static inline const char *json_word(const char *p, json *v) {
    char *end;
    if (strncmp(p, "true", 4) == 0) {
        v->type = JSON_TRUE;
        return p + 4;
    }
    if (strncmp(p, "false", 5) == 0) {
        v->type = JSON_FALSE;
        return p + 5;
    }
    if (strncmp(p, "null", 4) == 0) {
        v->type = JSON_NULL;
        return p + 4;
    }
    v->type   = JSON_NUMBER;
    v->number = strtod(p, &end);
    return end > p ? end : NULL;
}

static inline const char *json_value(const char *p, json **out, int depth) {
    json *v = (json *)calloc(1, sizeof *v);
    *out    = v;
    if (!v || depth > 64) return NULL;
    p = json_space(p);
    if (*p == '"') {
        v->type = JSON_STRING;
        return json_text(p, &v->string, &v->length);
    }
    if (*p == '[') {
        v->type = JSON_ARRAY;
        return json_items(p + 1, v, ']', depth + 1);
    }
    if (*p == '{') {
        v->type = JSON_OBJECT;
        return json_items(p + 1, v, '}', depth + 1);
    }
    return json_word(p, v);
}

/* text ends with a zero byte; the tree is freed with json_free(). */
static inline json *json_parse(const char *text) {
    json       *v   = NULL;
    const char *end = json_value(text, &v, 0);
    if (end && *json_space(end) == 0) return v;
    json_free(v);
    return NULL;
}

#endif
