/* test.h - a small test harness for one-file test programs.
 *
 *     TEST(adds) { CHECK_EQ(1 + 1, 2); }
 *     int main(void) { RUN(adds); return test_report("arithmetic"); }
 *
 * A case passes when it made at least one check and none failed. Failures and reasons to skip go to stderr;
 * stdout has the one line "suite: P passed, F failed, S skipped", counted in cases.
 *
 * L3_FIXTURES   directory of fixtures, default ../shared/fixtures
 * L3_QUICK=1    test_quick() is true: leave out what takes seconds
 * L3_TEST=text  run only the cases whose name contains the text
 * L3_VERBOSE=1  test_verbose() is true: names of cases, figures */
#ifndef TEST_H
#define TEST_H

#include <dirent.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(_WIN32) /* no links, no permissions */
#include <direct.h>
#include <io.h>
#define lstat(path, st) stat(path, st)
#define mkdtemp(path)   (_mktemp(path) && _mkdir(path) == 0)
#elif defined(__wasi__) /* mkdtemp is missing */
#include <time.h>
static inline int test_mkdtemp(char *path) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return snprintf(strrchr(path, 'X') - 5, 7, "%06x", (unsigned)now.tv_nsec & 0xffffff) == 6 && mkdir(path, 0700) == 0;
}
#define mkdtemp test_mkdtemp
#endif

typedef struct test_state {
    int         passed, failed, skipped; /* cases */
    int         checks, bad, skip;       /* of the running case */
    const char *name;
    char        temp[512]; /* "" until test_temp() is called */
} test_state;

static inline test_state *test_get(void) {
    static test_state state;
    return &state;
}

/* ---- checks ---- */

enum { TEST_SHOWN = 12 }; /* failures printed per case */

static inline int test_note(int ok) {
    test_state *t = test_get();
    t->checks++;
    if (!ok) t->bad++;
    if (!ok && t->bad == TEST_SHOWN + 1) fprintf(stderr, "  ... and more\n");
    return !ok && t->bad <= TEST_SHOWN;
}

static inline int test_true(int ok, const char *what, const char *file, int line) {
    if (test_note(ok)) fprintf(stderr, "  %s:%d: %s\n", file, line, what);
    return ok;
}

static inline int test_eq(long long a, long long b, const char *what, const char *file, int line) {
    if (test_note(a == b)) fprintf(stderr, "  %s:%d: %s: %lld and %lld\n", file, line, what, a, b);
    return a == b;
}

static inline int test_near(double a, double b, double tol, const char *what, const char *file, int line) {
    int ok = fabs(a - b) <= tol;
    if (test_note(ok)) {
        fprintf(stderr, "  %s:%d: %s: %.10g and %.10g differ by %.3g, allowed %.3g\n", file, line, what, a, b,
                fabs(a - b), tol);
    }
    return ok;
}

static inline int test_str(const char *a, const char *b, const char *what, const char *file, int line) {
    int ok = a && b ? strcmp(a, b) == 0 : a == b;
    if (test_note(ok)) {
        fprintf(stderr, "  %s:%d: %s:\n    \"%s\"\n    \"%s\"\n", file, line, what, a ? a : "(null)", b ? b : "(null)");
    }
    return ok;
}

static inline int test_mem(const void *a, const void *b, size_t n, const char *what, const char *file, int line) {
    const unsigned char *p = (const unsigned char *)a, *q = (const unsigned char *)b;
    size_t               i = 0;
    while (i < n && p[i] == q[i]) i++;
    if (test_note(i == n)) {
        fprintf(stderr, "  %s:%d: %s: byte %lu of %lu is %02x and %02x\n", file, line, what, (unsigned long)i,
                (unsigned long)n, (unsigned)p[i], (unsigned)q[i]);
    }
    return i == n;
}

#define CHECK(cond)           test_true(!!(cond), #cond, __FILE__, __LINE__)
#define CHECK_EQ(a, b)        test_eq((long long)(a), (long long)(b), #a " == " #b, __FILE__, __LINE__)
#define CHECK_NEAR(a, b, tol) test_near((a), (b), (tol), #a " ~ " #b, __FILE__, __LINE__)
#define CHECK_STR(a, b)       test_str((a), (b), #a " == " #b, __FILE__, __LINE__)
#define CHECK_MEM(a, b, n)    test_mem((a), (b), (n), #a " == " #b, __FILE__, __LINE__)
#define REQUIRE(cond)             \
    do {                          \
        if (!CHECK(cond)) return; \
    } while (0)
#define SKIP(why)       \
    do {                \
        test_skip(why); \
        return;         \
    } while (0)

/* ---- cases ---- */

static inline int test_flag(const char *variable) {
    const char *value = getenv(variable);
    return value && *value && strcmp(value, "0") != 0;
}

static inline int test_quick(void) { return test_flag("L3_QUICK"); }
static inline int test_verbose(void) { return test_flag("L3_VERBOSE"); }

/* n, or about a tenth of it with L3_QUICK=1: emulated machines are slow. */
static inline int test_some(int n) { return test_quick() ? (n + 9) / 10 : n; }

static inline void test_skip(const char *why) {
    test_get()->skip = 1;
    fprintf(stderr, "  skipped %s: %s\n", test_get()->name, why);
}

static inline void test_run(const char *name, void (*fn)(void)) {
    test_state *t    = test_get();
    const char *only = getenv("L3_TEST");
    if (only && !strstr(name, only)) return;
    t->checks = t->bad = t->skip = 0;
    t->name                      = name;
    if (test_verbose()) fprintf(stderr, "%s\n", name);
    fn();
    if (t->bad) {
        fprintf(stderr, "  FAILED: %d of %d checks in %s\n", t->bad, t->checks, name);
        t->failed++;
    } else if (t->skip) {
        t->skipped++;
    } else if (t->checks) {
        t->passed++;
    } else {
        fprintf(stderr, "  FAILED: %s checked nothing\n", name);
        t->failed++;
    }
}

#define TEST(name) static void name(void)
#define RUN(fn)    test_run(#fn, fn)

/* ---- files ---- */

/* The path of a fixture; 0 when it is not there. */
static inline int test_fixture(const char *name, char *path, size_t n) {
    const char *dir = getenv("L3_FIXTURES");
    FILE       *f;
    int         len = snprintf(path, n, "%s/%s", dir && *dir ? dir : "../shared/fixtures", name);
    if (len < 0 || (size_t)len >= n) return 0;
    f = fopen(path, "rb");
    if (!f) return 0;
    fclose(f);
    return 1;
}

/* A whole file in malloc memory, with a zero byte behind it; NULL when it cannot be read. */
static inline unsigned char *test_read(const char *path, size_t *n) {
    FILE          *f    = fopen(path, "rb");
    unsigned char *data = NULL;
    size_t         cap = 0, len = 0, got = 1;
    while (f && got) {
        if (len + 1 >= cap) {
            cap  = cap ? 2 * cap : 65536;
            data = (unsigned char *)realloc(data, cap);
            if (!data) abort();
        }
        got = fread(data + len, 1, cap - len - 1, f);
        len += got;
    }
    if (f) fclose(f);
    if (data) data[len] = 0;
    if (n) *n = len;
    return data;
}

static inline unsigned char *test_read_fixture(const char *name, size_t *n) {
    char path[1024];
    return test_fixture(name, path, sizeof path) ? test_read(path, n) : NULL;
}

static inline int test_write(const char *path, const void *data, size_t n) {
    FILE *f  = fopen(path, "wb");
    int   ok = f && fwrite(data, 1, n, f) == n;
    if (f && fclose(f) != 0) ok = 0;
    return ok;
}

/* A path inside a directory of our own that test_report() removes. */
static inline const char *test_temp(const char *name, char *path, size_t n) {
    test_state *t   = test_get();
    const char *dir = getenv("TMPDIR");
    if (!t->temp[0]) {
        int len = snprintf(t->temp, sizeof t->temp, "%s/l3test.XXXXXX", dir && *dir ? dir : "/tmp");
        if (len < 0 || (size_t)len >= sizeof t->temp || !mkdtemp(t->temp)) {
            fprintf(stderr, "cannot make a temporary directory\n");
            exit(2);
        }
    }
    if (strlen(t->temp) + strlen(name) + 2 > n) abort();
    strcpy(path, t->temp);
    strcat(path, "/");
    return strcat(path, name);
}

static inline void test_remove(const char *path) {
    DIR           *dir = opendir(path);
    struct dirent *e;
    char           inner[1024];
    while (dir && (e = readdir(dir)) != NULL) {
        struct stat st;
        int         len = snprintf(inner, sizeof inner, "%s/%s", path, e->d_name);
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        if (len < 0 || (size_t)len >= sizeof inner || lstat(inner, &st) != 0) continue;
        if (S_ISDIR(st.st_mode)) test_remove(inner);
        else unlink(inner);
    }
    if (dir) closedir(dir);
    rmdir(path);
}

static inline int test_report(const char *suite) {
    test_state *t = test_get();
    if (t->temp[0]) test_remove(t->temp);
    t->temp[0] = 0;
    fflush(stderr);
    printf("%s: %d passed, %d failed, %d skipped\n", suite, t->passed, t->failed, t->skipped);
    return t->failed != 0;
}

/* ---- random numbers: splitmix64 (Steele, Lea, Flood 2014) ---- */

typedef struct test_rng {
    uint64_t state;
} test_rng;

static inline uint64_t test_random(test_rng *r) {
    uint64_t z = r->state += 0x9E3779B97F4A7C15u;
    z          = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z          = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* uniform in [0, n) */
static inline uint32_t test_below(test_rng *r, uint32_t n) { return (uint32_t)(test_random(r) % n); }

/* uniform in [0, 1) */
static inline double test_unit(test_rng *r) { return (double)(test_random(r) >> 11) / 9007199254740992.0; }

/* near enough to a standard normal */
static inline double test_normal(test_rng *r) {
    double sum = 0;
    int    i;
    for (i = 0; i < 12; i++) sum += test_unit(r);
    return sum - 6.0;
}

#endif
