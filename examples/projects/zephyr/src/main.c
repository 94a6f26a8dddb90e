/* A story from a model in flash, on the console. */
#include <zephyr/kernel.h>

#define STORIES_ALONE /* leaves out the element types that this model has not */
#include "stories.h"

#define L3_NO_STDIO
#include "tell.h"

static void put(void *user, const char *text, size_t n) {
    ARG_UNUSED(user);
    printk("%.*s", (int)n, text);
}

int main(void) {
    const l3_source source = l3_source_memory(stories, STORIES_SIZE);
    l3_error        err;
    if (tell(&source, "Once upon a time", 32, put, NULL, &err) != L3_OK) printk("%s", err.text);
    printk("\n");
    return 0;
}
