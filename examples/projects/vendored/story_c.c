/* A private copy of l3 in a C file: no operating system for the library, no error texts; a driver reads pages. */
#define L3_STATIC
#define L3_NO_STDIO
#define L3_NO_ERROR_TEXT
#include "tell.h"

#include <stdio.h>

static int read_file(void *user, uint64_t off, void *dst, size_t n) {
    FILE *f = (FILE *)user;
    return fseek(f, (long)off, SEEK_SET) == 0 && fread(dst, 1, n, f) == n ? 0 : -1;
}

static void put(void *user, const char *text, size_t n) { fwrite(text, 1, n, (FILE *)user); }

int story_c(const char *path, FILE *out);
int story_c(const char *path, FILE *out) {
    l3_source source;
    l3_error  err;
    int       code = L3_ERR_IO;
    memset(&source, 0, sizeof source);
    source.read  = read_file;
    source.align = 256;
    source.user  = fopen(path, "rb");
    if (source.user && fseek((FILE *)source.user, 0, SEEK_END) == 0) {
        source.size = (uint64_t)ftell((FILE *)source.user);
        code        = tell(&source, "Once upon a time", 32, put, out, &err);
    }
    if (source.user) fclose((FILE *)source.user);
    if (code != L3_OK) return fprintf(stderr, "%s\n", l3_status_text(code)), 1;
    fprintf(out, "\n");
    return 0;
}

#ifdef ALONE
int main(int argc, char **argv) { return argc == 2 ? story_c(argv[1], stdout) : 2; }
#endif
