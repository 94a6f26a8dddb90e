// Another private copy, in C++: the file is mapped, errors are sentences.
#define L3_STATIC
#define L3_NO_ALLOCATOR
#include "tell.h"

#include <cstdio>
#include <string>

static void append(void *user, const char *text, size_t n) { static_cast<std::string *>(user)->append(text, n); }

extern "C" int story_cpp(const char *path, FILE *out);
extern "C" int story_cpp(const char *path, FILE *out) {
    l3_file     file;
    l3_error    err;
    std::string story;
    int         code = l3_source_open_file(&file, path, L3_FILE_MAP, &err);
    if (code == L3_OK) {
        code = tell(&file.source, "Once upon a time", 32, append, &story, &err);
        l3_source_close_file(&file);
    }
    if (code != L3_OK) return std::fprintf(stderr, "%s\n", err.text), 1;
    std::fprintf(out, "%s\n", story.c_str());
    return 0;
}

#ifdef ALONE
int main(int argc, char **argv) { return argc == 2 ? story_cpp(argv[1], stdout) : 2; }
#endif
