/* A story over USB, again and again, from a model in the flash that the processor reads in place. */
#include "pico/stdlib.h"

#define STORIES_ALONE /* leaves out the element types that this model has not */
#include "stories.h"

#define L3_NO_STDIO
#include "tell.h"

#include <stdio.h>

static void put(void *user, const char *text, size_t n) {
    (void)user;
    printf("%.*s", (int)n, text);
}

int main(void) {
    const l3_source source = l3_source_memory(stories, STORIES_SIZE);
    l3_error        err;
    stdio_init_all();
    do {
        if (tell(&source, "Once upon a time", 32, put, NULL, &err) != L3_OK) printf("%s", err.text);
        printf("\n");
        sleep_ms(10000);
    } while (true);
}
