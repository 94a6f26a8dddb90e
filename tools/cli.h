/* cli.h - what the command-line programs share: options, failure, files, a model with its session, clock, memory figures.
 *
 *     uint32_t   count = 256;
 *     cli_option options[] = {{"-n", CLI_U32, &count, "TOKENS", "new tokens at most (256)", 0, 0}, {0}};
 *     cli_parse(&(cli_program){"generate", "MODEL [options]", "Writes text.", options}, argc, argv, &path, 1);
 *
 * Exit codes: 0 done; 1 the input or the machine did not allow it; 2 wrong usage. The last two with one sentence on
 * stderr. Whatever fails here ends the program: libraries return errors, programs may leave.
 *
 * Sections: >>platform >>failure >>options >>text >>output >>json >>engine */
#ifndef CLI_H
#define CLI_H

#ifndef __USE_MINGW_ANSI_STDIO
#define __USE_MINGW_ANSI_STDIO 1 /* %zu and %llu on Windows */
#endif

#include "../l3_model.h"

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#ifndef __wasi__
#include <signal.h>
#else
typedef int        sig_atomic_t; /* WASI has no signals, no other programs and no figures about memory */
#endif
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* >>platform: everything that is not the same everywhere ------------------------------------------------------------ */

#if defined(__MINGW32__)
#define CLI_PRINTF(text, first) __attribute__((format(gnu_printf, text, first)))
#elif defined(__GNUC__)
#define CLI_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define CLI_PRINTF(text, first)
#endif
#if defined(__GNUC__)
#define CLI_NORETURN __attribute__((noreturn))
#else
#define CLI_NORETURN
#endif

static volatile sig_atomic_t cli_stopped; /* Ctrl-C was pressed */
static bool cli_finishes_writing;         /* a program that sets it looks at cli_stopped itself, between files */

#if defined(_WIN32)
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#define PSAPI_VERSION 2 /* in kernel32 */
#include <windows.h>

#include <fcntl.h>
#include <io.h>
#include <psapi.h>
#include <shellapi.h>

static inline void cli_on_stop(int sig) {
    cli_stopped = 1;
    signal(sig, SIG_DFL); /* the second one ends the program */
}

static inline char *cli_to_utf8(const wchar_t *wide) {
    const int n = WideCharToMultiByte(CP_UTF8, 0, wide, -1, NULL, 0, NULL, NULL);
    char     *s = (char *)calloc((size_t)n + 1, 1);
    if (s) WideCharToMultiByte(CP_UTF8, 0, wide, -1, s, n, NULL, NULL);
    return s;
}

static inline wchar_t *cli_to_wide(const char *s) {
    const int n    = MultiByteToWideChar(CP_UTF8, 0, s, -1, NULL, 0);
    wchar_t  *wide = (wchar_t *)calloc((size_t)n + 1, sizeof *wide);
    if (wide) MultiByteToWideChar(CP_UTF8, 0, s, -1, wide, n);
    return wide;
}

/* Arguments as UTF-8, the console too, no translation of line ends. */
static inline void cli_platform_start(int *argc, char ***argv) {
    LPWSTR *wide = CommandLineToArgvW(GetCommandLineW(), argc);
    char  **args = wide ? (char **)calloc((size_t)*argc + 1, sizeof *args) : NULL;
    for (int i = 0; args && i < *argc; i++) args[i] = cli_to_utf8(wide[i]);
    if (args) *argv = args;
    SetConsoleOutputCP(CP_UTF8);
    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
    signal(SIGINT, cli_on_stop);
}

static inline FILE *cli_fopen(const char *path, const char *mode) {
    wchar_t *wide = cli_to_wide(path), *wide_mode = cli_to_wide(mode);
    FILE    *f = wide && wide_mode ? _wfopen(wide, wide_mode) : NULL;
    free(wide);
    free(wide_mode);
    return f;
}

static inline bool cli_rename(const char *from, const char *to) {
    wchar_t   *a = cli_to_wide(from), *b = cli_to_wide(to);
    const bool ok = a && b && MoveFileExW(a, b, MOVEFILE_REPLACE_EXISTING);
    free(a);
    free(b);
    return ok;
}

static inline void cli_remove(const char *path) {
    wchar_t *wide = cli_to_wide(path);
    if (wide) _wremove(wide);
    free(wide);
}

static inline bool cli_is_device(const char *path) {
    wchar_t    *wide = cli_to_wide(path);
    const DWORD kind = wide ? GetFileAttributesW(wide) : INVALID_FILE_ATTRIBUTES;
    free(wide);
    return kind != INVALID_FILE_ATTRIBUTES && (kind & FILE_ATTRIBUTE_DEVICE) != 0;
}

static inline char *cli_resolve(const char *path) { return _strdup(path); }

static inline double cli_now(void) {
    LARGE_INTEGER count, per_second;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&per_second);
    return (double)count.QuadPart / (double)per_second.QuadPart;
}

static inline uint64_t cli_peak_rss(void) {
    PROCESS_MEMORY_COUNTERS m;
    memset(&m, 0, sizeof m);
    return GetProcessMemoryInfo(GetCurrentProcess(), &m, sizeof m) ? m.PeakWorkingSetSize : 0;
}

static inline void cli_forget_peak_rss(void) {}

static inline uint32_t cli_cores(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwNumberOfProcessors ? (uint32_t)info.dwNumberOfProcessors : 1;
}

static inline uint64_t cli_process(void) { return GetCurrentProcessId(); }

static inline FILE *cli_popen(const char *command) { return _popen(command, "r"); }
static inline int   cli_pclose(FILE *f) { return _pclose(f); }

/* The bytes that this process has read from the disk; 0: not known here. */
static inline uint64_t cli_disk_reads(void) { return 0; }

static inline bool cli_drop(const char *path) {
    (void)path;
    return false;
}

static inline bool cli_is_terminal(FILE *f) { return _isatty(_fileno(f)) != 0; }

#else
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __wasi__
static inline void cli_platform_start(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
}

static inline uint64_t cli_peak_rss(void) { return 0; }
static inline void     cli_forget_peak_rss(void) {}
static inline uint64_t cli_process(void) { return 1; }
static inline FILE    *cli_popen(const char *command) { return (void)command, errno = ENOSYS, NULL; }
static inline int      cli_pclose(FILE *f) { return fclose(f); }

#else
#include <sys/resource.h>
#include <sys/wait.h>

static inline void cli_on_stop(int sig) {
    (void)sig;
    cli_stopped = 1;
}

static inline void cli_platform_start(int *argc, char ***argv) {
    struct sigaction action;
    (void)argc;
    (void)argv;
    memset(&action, 0, sizeof action);
    action.sa_handler = cli_on_stop;
    action.sa_flags   = (int)SA_RESETHAND; /* the second one ends the program */
    sigaction(SIGINT, &action, NULL);
}

static inline uint64_t cli_peak_rss(void) {
    struct rusage use;
    if (getrusage(RUSAGE_SELF, &use) != 0) return 0;
#if defined(__APPLE__)
    return (uint64_t)use.ru_maxrss;
#else
    return (uint64_t)use.ru_maxrss * 1024;
#endif
}

/* From here on the peak is counted anew, where the system can (Linux: proc_pid_clear_refs(5)). */
static inline void cli_forget_peak_rss(void) {
    FILE *f = fopen("/proc/self/clear_refs", "w");
    if (f) {
        fputs("5", f);
        fclose(f);
    }
}

static inline uint64_t cli_process(void) { return (uint64_t)getpid(); }

/* A command's output. */
static inline FILE *cli_popen(const char *command) { return popen(command, "r"); }

/* Returns what the command returned. */
static inline int cli_pclose(FILE *f) {
    const int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : status;
}
#endif

static inline FILE *cli_fopen(const char *path, const char *mode) { return fopen(path, mode); }

static inline bool cli_rename(const char *from, const char *to) { return rename(from, to) == 0; }

static inline void cli_remove(const char *path) { remove(path); }

/* Something that must be written in place: /dev/stdout, a pipe. */
static inline bool cli_is_device(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && !S_ISREG(st.st_mode);
}

/* The file that a chain of links ends at, so that the links stay; in malloc memory. */
static inline char *cli_resolve(const char *path) {
    size_t room = strlen(path) + 1;
    char  *at   = (char *)malloc(room);
    if (at) memcpy(at, path, room);
    for (int links = 0; at && links < 40; links++) {
        char          target[4096];
        const ssize_t n     = readlink(at, target, sizeof target - 1);
        const char   *slash = strrchr(at, '/');
        if (n <= 0) break;
        const size_t directory = target[0] == '/' || !slash ? 0 : (size_t)(slash - at) + 1;
        char        *next      = (char *)malloc(directory + (size_t)n + 1);
        if (next)
            memcpy(next, at, directory), memcpy(next + directory, target, (size_t)n),
                next[directory + (size_t)n] = '\0';
        free(at);
        at = next;
    }
    return at;
}

static inline double cli_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline uint32_t cli_cores(void) {
#ifdef _SC_NPROCESSORS_ONLN
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
#else
    return 1;
#endif
}

/* The bytes that this process has read from the disk; 0: not known here. */
static inline uint64_t cli_disk_reads(void) {
    FILE    *f = fopen("/proc/self/io", "r"); /* Linux */
    char     line[64];
    uint64_t n = 0;
    while (f && fgets(line, sizeof line, f)) sscanf(line, "read_bytes: %" SCNu64, &n);
    if (f) fclose(f);
    return n;
}

/* The system forgets what it has of a file in memory. */
static inline bool cli_drop(const char *path) {
#ifdef POSIX_FADV_DONTNEED
    const int  fd = open(path, O_RDONLY);
    const bool ok = fd >= 0 && fsync(fd) == 0 && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0;
    if (fd >= 0) close(fd);
    return ok;
#else
    (void)path;
    return false;
#endif
}

static inline bool cli_is_terminal(FILE *f) { return isatty(fileno(f)) != 0; }
#endif

/* >>failure ---------------------------------------------------------------------------------------------------------- */

static const char *cli_name = "l3";
static char       *cli_temporaries[4]; /* files to remove when the program ends; NULL: a free place */

/* From now on the file is removed when the program ends early. The path is malloc memory. */
static inline void cli_add_temporary(char *path) {
    size_t i = 0;
    while (cli_temporaries[i]) i++; /* no program has more than 4 */
    cli_temporaries[i] = path;
}

/* The file has become what it should be, or it is gone. */
static inline void cli_forget_temporary(char *path) {
    for (size_t i = 0; i < 4; i++)
        if (cli_temporaries[i] == path) cli_temporaries[i] = NULL;
    free(path);
}

static inline void cli_remove_temporaries(void) {
    for (size_t i = 0; i < 4; i++) {
        if (!cli_temporaries[i]) continue;
        cli_remove(cli_temporaries[i]);
        cli_forget_temporary(cli_temporaries[i]);
    }
}

CLI_PRINTF(2, 0) CLI_NORETURN static inline void cli_leave(int code, const char *format, va_list args) {
    fflush(stdout);
    fprintf(stderr, "%s: ", cli_name);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    cli_remove_temporaries();
    _Exit(code); /* blocks are still in use all over the program */
}

/* One sentence on stderr, exit 1. */
CLI_PRINTF(1, 2) CLI_NORETURN static inline void cli_fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    cli_leave(1, format, args);
}

/* Wrong usage: one sentence, exit 2. */
CLI_PRINTF(1, 2) CLI_NORETURN static inline void cli_usage(const char *format, ...) {
    va_list args;
    va_start(args, format);
    cli_leave(2, format, args);
}

/* Returns if status is L3_OK, else fails with what the library says. */
static inline void cli_check(int status, const char *what, const l3_error *err) {
    if (status == L3_OK) return;
    if (status == L3_ERR_CANCELLED && cli_stopped) cli_fail("stopped");
    const char *text = err->text[0] ? err->text : l3_status_text(status);
    const int   io   = status == L3_ERR_IO ? abs(err->io) : 0;
    if (io) cli_fail("%s: %s (%s)", what, text, strerror(io));
    if (err->offset) cli_fail("%s: %s (byte %" PRIu64 ")", what, text, err->offset);
    cli_fail("%s: %s", what, text);
}

static inline void *cli_malloc(uint64_t n) {
    void *p = n <= SIZE_MAX ? calloc(n ? (size_t)n : 1, 1) : NULL;
    if (!p) cli_fail("no %" PRIu64 " bytes of memory are left", n);
    return p;
}

/* A block as the library wants it. cli_free_aligned() frees it. */
static inline void *cli_aligned(size_t n, const char *what) {
    unsigned char *raw = n < SIZE_MAX - L3_ALIGN ? (unsigned char *)malloc(n + L3_ALIGN) : NULL;
    if (!raw) cli_fail("%s needs %zu bytes of memory, and so many are not left", what, n);
    const size_t skip = L3_ALIGN - (size_t)((uintptr_t)raw % L3_ALIGN); /* 1 ... L3_ALIGN */
    raw[skip - 1]     = (unsigned char)(skip - 1);
    return raw + skip;
}

static inline void cli_free_aligned(void *block) {
    unsigned char *p = (unsigned char *)block;
    if (p) free(p - p[-1] - 1);
}

/* >>options ---------------------------------------------------------------------------------------------------------- */

typedef enum cli_type {
    CLI_FLAG,   /* bool */
    CLI_TEXT,   /* const char * */
    CLI_CHOICE, /* int: which of the words in `argument`, "map|read" */
    CLI_U32,    /* uint32_t, min ... max */
    CLI_U64,    /* uint64_t */
    CLI_SIZE,   /* size_t: BYTES[K|M|G] */
    CLI_REAL,   /* float, min ... max */
    CLI_LIST    /* cli_words: may be given several times */
} cli_type;

typedef struct cli_words {
    const char **items;
    size_t       n;
} cli_words;

typedef struct cli_option {
    const char *name; /* "-n" or "--top-k"; NULL ends the table */
    cli_type    type;
    void       *value;
    const char *argument; /* what the help calls its value */
    const char *help;
    double      min, max; /* of U32 and REAL; max 0: no bound */
} cli_option;

typedef struct cli_program {
    const char       *name, *usage, *about;
    const cli_option *options;
} cli_program;

CLI_NORETURN static inline void cli_help(const cli_program *program) {
    printf("usage: %s %s\n\n%s\n\n", program->name, program->usage, program->about);
    for (const cli_option *o = program->options; o->name; o++) {
        char left[64];
        snprintf(left, sizeof left, "%s %s", o->name, o->type == CLI_FLAG ? "" : o->argument);
        const bool fits = strlen(left) <= 24;
        if (!fits) printf("  %s\n", left);
        printf("  %-24s %s\n", fits ? left : "", o->help);
    }
    printf("  %-24s %s\n", "--help", "this text");
    exit(fflush(stdout) == 0 ? 0 : 1);
}

static inline bool cli_finite(double x) { return x >= -DBL_MAX && x <= DBL_MAX; }

/* A decimal number and nothing else. */
static inline bool cli_number(const char *s, const char **end, uint64_t *value) {
    *value = 0;
    if (*s < '0' || *s > '9') return false;
    for (; *s >= '0' && *s <= '9'; s++) {
        const uint64_t digit = (uint64_t)(*s - '0');
        if (*value > (UINT64_MAX - digit) / 10) return false;
        *value = *value * 10 + digit;
    }
    *end = s;
    return true;
}

static inline bool cli_size(const char *s, size_t *size) {
    static const char letters[] = "KMG";
    const char       *end;
    uint64_t          n;
    unsigned          shift = 0;
    if (!cli_number(s, &end, &n)) return false;
    const char *letter = *end ? strchr(letters, *end) : NULL;
    if (letter) shift = 10 * (unsigned)(letter - letters + 1), end++;
    if (*end || n > (SIZE_MAX >> shift)) return false;
    *size = (size_t)n << shift;
    return true;
}

static inline bool cli_real(const char *s, double *value) {
    char *end;
    if (!*s || s[strspn(s, "+-.0123456789eE")]) return false; /* no hexadecimal, no NaN */
    *value = strtod(s, &end);
    return *end == '\0' && cli_finite(*value);
}

/* Which of the words in "a|b|c", or -1. */
static inline int cli_choice(const char *words, const char *s) {
    const size_t n = strlen(s);
    for (int i = 0;; i++) {
        const size_t length = strcspn(words, "|");
        if (length == n && strncmp(words, s, n) == 0) return i;
        if (!words[length]) return -1;
        words += length + 1;
    }
}

CLI_NORETURN static inline void cli_bad_value(const cli_option *o, const char *s) {
    if (o->type == CLI_CHOICE) cli_usage("%s %s: one of %s is expected", o->name, s, o->argument);
    if (o->type == CLI_SIZE)
        cli_usage("%s %s: a number of bytes is expected, with K, M or G behind it if you like", o->name, s);
    if (o->max > 0) cli_usage("%s %s: a number from %g to %g is expected", o->name, s, o->min, o->max);
    cli_usage("%s %s: a number not below %g is expected", o->name, s, o->min);
}

static inline bool cli_in_range(const cli_option *o, double v) { return v >= o->min && (o->max <= 0 || v <= o->max); }

static inline void cli_append(cli_words *list, const char *s) {
    const char **items = (const char **)realloc((void *)list->items, (list->n + 1) * sizeof *items);
    if (!items) cli_fail("no memory is left");
    list->items            = items;
    list->items[list->n++] = s;
}

static inline void cli_set(const cli_option *o, const char *s) {
    const char *end = "";
    uint64_t    n   = 0;
    double      x   = 0;
    bool        ok  = true;
    switch (o->type) {
    case CLI_FLAG: *(bool *)o->value = true; break;
    case CLI_TEXT: *(const char **)o->value = s; break;
    case CLI_LIST: cli_append((cli_words *)o->value, s); break;
    case CLI_CHOICE: ok = (*(int *)o->value = cli_choice(o->argument, s)) >= 0; break;
    case CLI_SIZE: ok = cli_size(s, (size_t *)o->value); break;
    case CLI_U64: ok = cli_number(s, &end, (uint64_t *)o->value) && !*end; break;
    case CLI_U32:
        ok                    = cli_number(s, &end, &n) && !*end && n <= UINT32_MAX && cli_in_range(o, (double)n);
        *(uint32_t *)o->value = (uint32_t)n;
        break;
    case CLI_REAL:
        ok                 = cli_real(s, &x) && cli_in_range(o, x);
        *(float *)o->value = (float)x;
        break;
    }
    if (!ok) cli_bad_value(o, s);
}

/* The option that an argument names: --opt, --opt=value, -n, -n5. *value: what is attached, or NULL. */
static inline const cli_option *cli_find(const cli_option *o, const char *arg, const char **value) {
    for (; o->name; o++) {
        const size_t n       = strlen(o->name);
        const bool   is_long = o->name[1] == '-';
        *value               = NULL;
        if (strncmp(arg, o->name, n) != 0) continue;
        if (!arg[n]) return o;
        if (arg[n] == '=') return *value = arg + n + 1, o;
        if (!is_long && o->type != CLI_FLAG) return *value = arg + n, o;
    }
    cli_usage("unknown option %s; --help lists what there is", arg);
}

/* Fills in the options' values and the first `max` operands; returns how many operands there were. */
static inline int cli_parse(const cli_program *program, int argc, char **argv, const char **operands, int max) {
    int  n       = 0;
    bool literal = false; /* after "--" */
    cli_name     = program->name;
    cli_platform_start(&argc, &argv);
    for (int i = 1; i < argc; i++) {
        const char *value;
        if (literal || argv[i][0] != '-' || !argv[i][1]) {
            if (n == max)
                cli_usage("%s: there is nothing for this argument to be; --help says what is expected", argv[i]);
            operands[n++] = argv[i];
            continue;
        }
        if (strcmp(argv[i], "--") == 0) {
            literal = true;
            continue;
        }
        if (strcmp(argv[i], "--help") == 0) cli_help(program);
        const cli_option *o = cli_find(program->options, argv[i], &value);
        if (o->type == CLI_FLAG && value) cli_usage("%s takes no value", o->name);
        if (o->type != CLI_FLAG && !value && !(value = i + 1 < argc ? argv[++i] : NULL))
            cli_usage("%s needs a value: %s", o->name, o->argument);
        cli_set(o, value);
    }
    return n;
}

/* "1,2,4": how many numbers, each from min to max. */
static inline uint32_t cli_list(const char *option, const char *s, uint64_t min, uint64_t max, uint32_t *list,
                                uint32_t room) {
    for (uint32_t n = 0;;) {
        uint64_t    v   = 0;
        const char *end = s;
        if (n == room || !cli_number(s, &end, &v) || (*end && *end != ',') || v < min || v > max)
            cli_usage("%s %s: at most %" PRIu32 " numbers from %" PRIu64 " to %" PRIu64
                      " with commas between are expected",
                      option, s, room, min, max);
        list[n++] = (uint32_t)v;
        if (!*end) return n;
        s = end + 1;
    }
}

/* "done of all" on a terminal, at most ten times a second; all 0: not known. The line ends when all is done. */
static inline void cli_report(uint64_t done, uint64_t all, const char *what) {
    static double last;
    const double  now = cli_now();
    if (!cli_is_terminal(stderr) || (done != all && now - last < 0.1)) return;
    last = now;
    fprintf(stderr, "\r%" PRIu64, done);
    if (all) fprintf(stderr, " of %" PRIu64, all);
    fprintf(stderr, " %s%s", what, done == all ? "\n" : "");
}

/* A short seed that nobody chose. */
static inline uint64_t cli_random_seed(void) {
    uint64_t state = (uint64_t)time(NULL) ^ (uint64_t)(cli_now() * 1e9) << 20 ^ cli_process() << 48;
    return l3_random(&state) >> 32;
}

/* A size for people, in one of a few static buffers. */
static inline const char *cli_bytes(double n) {
    static char              text[8][24];
    static unsigned          next;
    static const char *const units[] = {"bytes", "KB", "MB", "GB", "TB"};
    char                    *s       = text[next++ % 8];
    int                      unit    = 0;
    while (n >= 1024 && unit < 4) n /= 1024, unit++;
    snprintf(s, sizeof text[0], unit == 0 && n == floor(n) ? "%.0f %s" : "%.1f %s", n, units[unit]);
    return s;
}

/* >>text ------------------------------------------------------------------------------------------------------------- */

/* A whole file, or standard input for "-", in malloc memory with a zero byte behind it. */
static inline char *cli_read_file(const char *path, size_t *n) {
    FILE  *f    = strcmp(path, "-") == 0 ? stdin : cli_fopen(path, "rb");
    char  *all  = NULL;
    size_t room = 0, got;
    *n          = 0;
    if (!f) cli_fail("%s: cannot be opened (%s)", path, strerror(errno));
    do {
        if (room - *n < 2) {
            room      = room ? 2 * room : 65536;
            char *now = (char *)realloc(all, room);
            if (!now) cli_fail("%s: no %zu bytes of memory are left for it", path, room);
            all = now;
        }
        got = fread(all + *n, 1, room - *n - 1, f);
        *n += got;
    } while (got);
    if (cli_stopped) cli_fail("stopped");
    if (ferror(f)) cli_fail("%s: cannot be read (%s)", path, strerror(errno));
    if (f != stdin) fclose(f);
    all[*n] = '\0';
    return all;
}

/* The next line without its '\n'; a last line without one counts. False: there is none. */
static inline bool cli_next_line(const char **at, const char *end, const char **line, size_t *n) {
    if (*at == end) return false;
    const char *stop = (const char *)memchr(*at, '\n', (size_t)(end - *at));
    *line            = *at;
    *n               = (size_t)((stop ? stop : end) - *at);
    *at              = stop ? stop + 1 : end;
    return true;
}

/* The next document: documents end at a line "<|endoftext|>", which takes the '\n' before it along; empty ones are
 * dropped. False: there is none. */
static inline bool cli_next_document(const char **at, const char *end, const char **document, size_t *n) {
    static const char mark[] = "<|endoftext|>";
    while (*at < end) {
        const char *line, *stop = NULL;
        size_t      length;
        *document = *at;
        while (!stop && cli_next_line(at, end, &line, &length))
            if (length == sizeof mark - 1 && memcmp(line, mark, length) == 0) stop = line;
        *n = (size_t)((stop ? stop : end) - *document);
        if (stop && *n) --*n;
        if (*n) return true;
    }
    return false;
}

/* >>output ----------------------------------------------------------------------------------------------------------- */

/* A file that is written beside its place and renamed when it is whole; "-" is standard output. One at a time. */
typedef struct cli_output {
    FILE *file;
    char *path, *beside; /* beside: NULL when it is written in place */
} cli_output;

static inline void cli_output_open(cli_output *o, const char *path) {
    o->path   = cli_resolve(path);
    o->beside = NULL;
    o->file   = stdout;
    if (!o->path) cli_fail("no memory is left");
    if (strcmp(path, "-") == 0) return;
    if (!cli_is_device(path)) {
        const size_t room = strlen(o->path) + 32;
        o->beside         = (char *)cli_malloc(room);
        snprintf(o->beside, room, "%s.%" PRIu64 ".tmp", o->path, cli_process());
        cli_add_temporary(o->beside);
    }
    o->file = cli_fopen(o->beside ? o->beside : path, "wb");
    if (!o->file) cli_fail("%s: cannot be written (%s)", path, strerror(errno));
}

static inline void cli_write(cli_output *o, const void *bytes, size_t n) {
    if (cli_stopped && !cli_finishes_writing) cli_fail("stopped");
    if (n && fwrite(bytes, 1, n, o->file) != n) cli_fail("%s: cannot be written (%s)", o->path, strerror(errno));
}

/* Formatted text of up to 1023 bytes. */
CLI_PRINTF(2, 3) static inline void cli_print(cli_output *o, const char *format, ...) {
    char    text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cli_write(o, text, strlen(text));
}

static inline void cli_output_close(cli_output *o) {
    const bool ok = o->file == stdout ? fflush(stdout) == 0 : fclose(o->file) == 0;
    if (!ok || (o->beside && !cli_rename(o->beside, o->path)))
        cli_fail("%s: cannot be written (%s)", o->path, strerror(errno));
    if (o->beside) cli_forget_temporary(o->beside);
    free(o->path);
}

/* Ends a program that wrote to standard output. */
static inline void cli_end_stdout(void) {
    if (fflush(stdout) != 0 || ferror(stdout)) cli_fail("standard output cannot be written (%s)", strerror(errno));
}

/* >>json ------------------------------------------------------------------------------------------------------------- */

/* Bytes of the UTF-8 character at s, or 0. */
static inline size_t cli_utf8(const char *s) {
    const unsigned char *p = (const unsigned char *)s;
    const size_t         n = p[0] < 0x80                   ? 1
                             : p[0] >= 0xc2 && p[0] < 0xe0 ? 2
                             : (p[0] & 0xf0) == 0xe0       ? 3
                             : p[0] >= 0xf0 && p[0] < 0xf5 ? 4
                                                           : 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f)) return 0;
    if ((p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f)) return 0;
    return n;
}

/* Prints a JSON string; what is no UTF-8 becomes U+FFFD. */
static inline void cli_json_string(const char *s) {
    putchar('"');
    while (*s) {
        const size_t n = cli_utf8(s);
        if (n == 0) printf("\\ufffd");
        else if (*s == '"' || *s == '\\') printf("\\%c", *s);
        else if ((unsigned char)*s < 0x20 || *s == 0x7f) printf("\\u%04x", (unsigned)(unsigned char)*s);
        else fwrite(s, 1, n, stdout);
        s += n ? n : 1;
    }
    putchar('"');
}

/* A member of an object, with the comma before it; numbers that JSON cannot say become null. */
static inline void cli_json_key(const char *key) { printf(", \"%s\": ", key); }
static inline void cli_json_u64(const char *key, uint64_t v) { printf(", \"%s\": %" PRIu64, key, v); }
static inline void cli_json_bool(const char *key, bool v) { printf(", \"%s\": %s", key, v ? "true" : "false"); }
static inline void cli_json_real(const char *key, double v) {
    if (cli_finite(v)) printf(", \"%s\": %.10g", key, v);
    else printf(", \"%s\": null", key);
}
static inline void cli_json_float(const char *key, float v) { printf(", \"%s\": %.7g", key, (double)v); }

/* >>engine ----------------------------------------------------------------------------------------------------------- */

/* Choices of --source. */
enum { CLI_MAP, CLI_READ, CLI_READ_AHEAD };

/* The options of every program that runs a model. */
typedef struct cli_setup {
    int      source, kv; /* choices of --source and --kv */
    bool     exact;
    bool     decode; /* texts go token by token, with fast mode's kernels for that */
    uint32_t context, threads, batch;
    size_t   cache, window, pin;
} cli_setup;

#define CLI_SOURCE_OPTION(s)                                                                                     \
    {                                                                                                            \
        "--source", CLI_CHOICE, &(s)->source, "map|read|ahead",                                                  \
            "map the file; read it piece by piece; or map it, but a thread reads the rows of tables (map)", 0, 0 \
    }
#define CLI_CONTEXT_OPTION(s) \
    { "-c", CLI_U32, &(s)->context, "CONTEXT", "positions kept (what the model says)", 1, 0 }
#define CLI_THREADS_OPTION(s) \
    { "-j", CLI_U32, &(s)->threads, "THREADS", "threads; 0: as many as are fastest (0)", 0, 64 }
#define CLI_CACHE_OPTION(s)                                                    \
    {                                                                          \
        "--cache", CLI_SIZE, &(s)->cache, "BYTES[K|M|G]",                      \
            "memory for rows read before, where they are not mapped (0)", 0, 0 \
    }
#define CLI_BATCH_OPTION(s) \
    { "--batch", CLI_U32, &(s)->batch, "N", "tokens of a prompt computed at once; 0: as many as are fast (0)", 0, 4096 }
#define CLI_PIN_OPTION(s)                                                             \
    {                                                                                 \
        "--pin", CLI_SIZE, &(s)->pin, "BYTES[K|M|G]",                                 \
            "memory for weights that stay in it, where they are not mapped (0)", 0, 0 \
    }
#define CLI_KV_OPTION(s) \
    { "--kv", CLI_CHOICE, &(s)->kv, "f32|f16|q8_0", "type of the KV cache (f32)", 0, 0 }
#define CLI_EXACT_OPTION(s) \
    { "--exact", CLI_FLAG, &(s)->exact, "", "the same bits however the text is split into calls", 0, 0 }

static const l3_type cli_kv_types[] = {L3_F32, L3_F16, L3_Q8_0};

/* A model with one session and its threads. */
typedef struct cli_engine {
    const char       *path;
    l3_file           file, rows;
    l3_source         tables; /* with CLI_READ_AHEAD */
    l3_model_config   model_config;
    l3_model         *model;
    const l3_info    *info;
    size_t            model_size, pinned_size, session_size;
    l3_session       *session;
    l3_session_config config;
    bool              decode; /* cli_setup.decode */
    uint32_t          threads;
    void             *model_block, *pinned_block, *session_block, *pool_block, *reader_block;
#ifdef L3_THREADS
    l3_pool   *pool;
    l3_reader *reader;
#endif
} cli_engine;

/* A second way to the file's bytes, for rows: a thread that reads. */
static inline void cli_read_ahead(cli_engine *e) {
#ifdef L3_THREADS
    l3_error err;
    memset(&err, 0, sizeof err);
    cli_check(l3_source_open_file(&e->rows, e->path, L3_FILE_READ, &err), e->path, &err);
    e->reader_block = cli_aligned(l3_reader_size(), "the reading thread");
    cli_check(l3_reader_init(&e->reader, &e->rows.source, e->reader_block, l3_reader_size(), &err), e->path, &err);
    e->tables       = l3_reader_source(e->reader);
    e->model_config = (l3_model_config){.tables = &e->tables};
#else
    (void)e;
    cli_fail("--source ahead: %s was built without threads", cli_name);
#endif
}

/* Opens a GGUF file of any kind. The engine must not move afterwards. */
static inline void cli_open_file(cli_engine *e, const char *path, int how) {
    l3_error err;
    memset(e, 0, sizeof *e);
    memset(&err, 0, sizeof err);
    e->path = path;
    if (l3_source_open_file(&e->file, path, how == CLI_READ ? L3_FILE_READ : L3_FILE_MAP, &err) != L3_OK)
        cli_fail("%s; the path of a GGUF file is expected", err.text);
    if (how == CLI_READ_AHEAD) cli_read_ahead(e);
    cli_check(l3_model_size(&e->file.source, &e->model_config, &e->model_size, &err), path, &err);
    e->model_block = cli_aligned(e->model_size, path);
    cli_check(l3_model_open(&e->model, &e->file.source, &e->model_config, e->model_block, e->model_size, &err), path,
              &err);
    e->info = l3_model_info(e->model);
}

/* Opens a model that can be run. */
static inline void cli_open_model(cli_engine *e, const char *path, int how) {
    cli_open_file(e, path, how);
    if (e->info->kind != L3_KIND_MODEL)
        cli_fail("%s: this is %s; a whole model is expected", path,
                 e->info->kind == L3_KIND_TOKENIZER ? "a tokenizer" : "an allocation");
}

static inline bool cli_has(const char *name, const char *part) { return strstr(name, part) != NULL; }

/* Parameters that take part in the computation of one token, with the mean number of rows. */
static inline double cli_active_parameters(const l3_model *model) {
    const l3_info   *info = l3_model_info(model);
    const l3_tensor *t;
    char             name[64];
    double           sum = info->tied_head ? 0 : info->dim;
    for (uint32_t i = 0; (t = l3_model_tensor(model, i, name)) != NULL; i++) {
        const double n = (double)t->rows * t->cols;
        if (cli_has(name, ".lookup_offsets") || (cli_has(name, "token_embd") && !info->tied_head)) continue;
        sum += cli_has(name, ".lookup_rows") ? n / info->vocab : n;
    }
    return sum;
}

/* The number of threads that -j means. Waking threads up costs more than a tiny model. */
static inline uint32_t cli_threads(const l3_model *model, uint32_t asked) {
#ifdef L3_THREADS
    const uint32_t cores = cli_cores();
    if (asked) return asked;
    if (cli_active_parameters(model) < 4e6) return 1;
    return cores < L3_MAX_THREADS ? cores : L3_MAX_THREADS;
#else
    (void)model;
    (void)asked;
    return 1;
#endif
}

static inline int cli_progress(void *user) {
    (void)user;
    return cli_stopped;
}

static inline void cli_start_threads(cli_engine *e, uint32_t asked) {
    e->threads = cli_threads(e->model, asked);
#ifdef L3_THREADS
    l3_error err;
    if (e->threads < 2) return;
    memset(&err, 0, sizeof err);
    e->pool_block = cli_aligned(l3_pool_size(), "the thread pool");
    cli_check(l3_pool_init(&e->pool, e->threads, e->pool_block, l3_pool_size(), &err), "threads", &err);
    e->config.work.jobs = l3_pool_jobs(e->pool);
#endif
}

static inline l3_session_config cli_session_config(const cli_setup *s) {
    l3_session_config config;
    memset(&config, 0, sizeof config);
    config.context       = s->context;
    config.kv_type       = (int32_t)cli_kv_types[s->kv];
    config.work.mode     = s->exact ? L3_EXACT : L3_FAST;
    config.work.cache    = s->cache;
    config.work.batch    = s->batch;
    config.work.window   = s->window;
    config.work.progress = cli_progress;
    return config;
}

/* As many weights as fit stay in memory. */
static inline void cli_pin(cli_engine *e, size_t budget) {
    l3_error err;
    memset(&err, 0, sizeof err);
    e->pinned_size = l3_model_pin_size(e->model, budget);
    if (e->pinned_size == 0) return;
    e->pinned_block = cli_aligned(e->pinned_size, "the pinned weights");
    cli_check(l3_model_pin(e->model, e->pinned_block, e->pinned_size, &err), e->path, &err);
}

static inline void cli_start_session(cli_engine *e, const cli_setup *s) {
    l3_error err;
    memset(&err, 0, sizeof err);
    cli_pin(e, s->pin);
    e->config = cli_session_config(s);
    e->decode = s->decode;
    cli_start_threads(e, s->threads);
    e->session_size  = l3_session_size(e->model, &e->config); /* 0: l3_session_init says why */
    e->session_block = cli_aligned(e->session_size, "the session");
    cli_check(l3_session_init(&e->session, e->model, &e->config, e->session_block, e->session_size, &err), e->path,
              &err);
}

static inline void cli_close(cli_engine *e) {
#ifdef L3_THREADS
    if (e->reader) l3_reader_free(e->reader), l3_source_close_file(&e->rows); /* it may still read into the session */
    if (e->pool) l3_pool_free(e->pool);
#endif
    cli_free_aligned(e->reader_block);
    cli_free_aligned(e->pool_block);
    cli_free_aligned(e->session_block);
    cli_free_aligned(e->pinned_block);
    cli_free_aligned(e->model_block);
    l3_source_close_file(&e->file);
}

/* A tokenizer that grows when a text has a longer run of bytes than it has room for. */
typedef struct cli_tokenizer {
    const l3_model *model;
    l3_tokenizer   *tokenizer; /* the block, too */
    size_t          run, size;
} cli_tokenizer;

static inline void cli_tokenizer_open(cli_tokenizer *t, const l3_model *model, size_t run) {
    l3_error err;
    memset(&err, 0, sizeof err);
    t->model    = model;
    t->run      = run;
    t->size     = l3_tokenizer_size(model, run); /* 0: l3_tokenizer_init says why */
    void *block = cli_aligned(t->size, "the tokenizer");
    cli_check(l3_tokenizer_init(&t->tokenizer, model, run, block, t->size, &err), "tokenizer", &err);
}

static inline void cli_tokenizer_close(cli_tokenizer *t) { cli_free_aligned(t->tokenizer); }

/* Token IDs in malloc memory. */
static inline int32_t *cli_encode(cli_tokenizer *t, const char *text, size_t length, int flags, size_t *n) {
    size_t   room = length + 8;
    int32_t *ids  = (int32_t *)cli_malloc(room * sizeof *ids);
    for (;;) {
        l3_error err;
        memset(&err, 0, sizeof err);
        *n               = 0;
        const int status = l3_tokenize(t->tokenizer, text, length, flags, ids, room, n, &err);
        if (status == L3_ERR_MEMORY && *n > room) { /* more tokens than bytes: no piece for the space */
            free(ids);
            ids = (int32_t *)cli_malloc((room = *n) * sizeof *ids);
        } else if (status == L3_ERR_MEMORY && t->run < length) {
            const size_t run = t->run < length / 8 ? 8 * t->run : length;
            cli_tokenizer_close(t);
            cli_tokenizer_open(t, t->model, run);
        } else {
            cli_check(status, "tokenizer", &err);
            return ids;
        }
    }
}

enum { CLI_RUN = 4096 }; /* bytes without a space in between; more in rare texts only */

/* Every document of a text file as tokens. */
typedef struct cli_corpus {
    size_t    n; /* documents */
    int32_t **ids;
    size_t   *lengths;
    uint64_t  tokens;
} cli_corpus;

static inline void *cli_grow(void *block, size_t n, size_t size) {
    if (n & (n - 1)) return block; /* room doubles when n is a power of two */
    void *now = realloc(block, (n ? 2 * n : 1) * size);
    if (!now) cli_fail("no memory is left");
    return now;
}

static inline void cli_read_corpus(cli_corpus *c, const l3_model *model, const char *path) {
    size_t        length, n;
    char         *text = cli_read_file(path, &length);
    const char   *at   = text, *document;
    cli_tokenizer tokenizer;
    memset(c, 0, sizeof *c);
    cli_tokenizer_open(&tokenizer, model, CLI_RUN);
    while (cli_next_document(&at, text + length, &document, &n)) {
        if (cli_stopped) cli_fail("stopped");
        c->ids       = (int32_t **)cli_grow(c->ids, c->n, sizeof *c->ids);
        c->lengths   = (size_t *)cli_grow(c->lengths, c->n, sizeof *c->lengths);
        c->ids[c->n] = cli_encode(&tokenizer, document, n, 0, &c->lengths[c->n]);
        c->tokens += c->lengths[c->n++];
    }
    if (c->tokens == 0) cli_fail("%s: there is no text in it", path);
    cli_tokenizer_close(&tokenizer);
    free(text);
}

static inline void cli_free_corpus(cli_corpus *c) {
    while (c->n) free(c->ids[--c->n]);
    free(c->ids);
    free(c->lengths);
}

/* Every offset of a lookup layer (vocab + 1,), in malloc memory. */
static inline int32_t *cli_offsets(const l3_lookup *layer) {
    const l3_tensor *t     = &layer->offsets;
    const size_t     n     = t->cols;
    int32_t         *all   = (int32_t *)cli_malloc((uint64_t)n * 4);
    unsigned char   *bytes = (unsigned char *)all;
    if (t->data) memcpy(bytes, t->data, n * 4);
    else if (t->source->read(t->source->user, t->offset, bytes, n * 4) != 0) cli_fail("the row offsets cannot be read");
    for (size_t i = 0; i < n; i++) { /* little-endian, in place */
        const unsigned char *p = bytes + 4 * i;
        all[i] = (int32_t)((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
    }
    return all;
}

#endif /* CLI_H */
