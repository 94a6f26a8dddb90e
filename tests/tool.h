/* tool.h - command-line programs run by tests: their exit code and what they print. The programs are in $BUILD. */
#ifndef TEST_TOOL_H
#define TEST_TOOL_H

#include "test.h"

#include "json.h"

#include <stdarg.h>
#include <sys/wait.h>

typedef struct tool_result {
    int    code;      /* exit code; -1: it did not end by itself */
    char  *out, *err; /* what it printed, in malloc memory */
    size_t out_bytes;
} tool_result;

/* Runs `$BUILD/program arguments...`, as a shell reads them; they may say where standard input comes from. */
static inline tool_result tool_run(const char *program, const char *format, ...) {
    static tool_result r; /* the last one's memory is freed by the next call */
    char               command[4096], out[600], err[600];
    const char        *build = getenv("BUILD");
    va_list            args;
    test_temp("tool.out", out, sizeof out);
    test_temp("tool.err", err, sizeof err);
    int n = snprintf(command, sizeof command, "'%s/%s' ", build && *build ? build : "build", program);
    va_start(args, format);
    n += vsnprintf(command + n, sizeof command - (size_t)n, format, args);
    va_end(args);
    n += snprintf(command + n, sizeof command - (size_t)n, " >'%s' 2>'%s' %s", out, err,
                  strchr(format, '<') ? "" : "</dev/null");
    if ((size_t)n >= sizeof command) abort();
    const int status = system(command);
    free(r.out);
    free(r.err);
    r.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    r.out  = (char *)test_read(out, &r.out_bytes);
    r.err  = (char *)test_read(err, NULL);
    return r;
}

static inline size_t tool_lines(const char *text) {
    size_t n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

/* It said one sentence on stderr with `words` in it, nothing on stdout, and ended with this exit code. */
static inline int tool_refused(const tool_result *r, int code, const char *words) {
    const int ok = r->code == code && r->out_bytes == 0 && tool_lines(r->err) == 1 && strstr(r->err, words);
    if (!ok) fprintf(stderr, "  exit code %d (%d expected), not \"%s\": %s%s\n", r->code, code, words, r->out, r->err);
    return ok;
}

#define CHECK_REFUSED(code, words, ...)                     \
    do {                                                    \
        const tool_result refused_ = tool_run(__VA_ARGS__); \
        CHECK(tool_refused(&refused_, code, words));        \
    } while (0)

/* The object that it printed, or NULL. */
static inline json *tool_json(const tool_result *r) {
    json *v = r->code == 0 ? json_parse(r->out) : NULL;
    if (!v) fprintf(stderr, "  exit code %d, no JSON: %s%s\n", r->code, r->out, r->err);
    return v;
}

#endif
