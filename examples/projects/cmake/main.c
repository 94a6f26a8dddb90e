/* A story from a file, on a machine with an operating system. */
#include "tell.h"

#include <stdio.h>

static void put(void *user, const char *text, size_t n) { fwrite(text, 1, n, (FILE *)user); }

int main(int argc, char **argv) {
    l3_file  file;
    l3_error err;
    int      code;
    if (argc != 2) return fprintf(stderr, "usage: story MODEL.gguf\n"), 2;
    code = l3_source_open_file(&file, argv[1], L3_FILE_MAP, &err);
    if (code == L3_OK) {
        code = tell(&file.source, "Once upon a time", 32, put, stdout, &err);
        l3_source_close_file(&file);
    }
    if (code != L3_OK) return fprintf(stderr, "%s\n", err.text), 1;
    printf("\n");
    return 0;
}
