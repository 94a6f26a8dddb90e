/* Two copies of l3 with different switches in one program, neither of which sees the other. */
#include <stdio.h>

int story_c(const char *path, FILE *out);
int story_cpp(const char *path, FILE *out);

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: two MODEL.gguf\n"), 2;
    return story_c(argv[1], stdout) || story_cpp(argv[1], stdout);
}
