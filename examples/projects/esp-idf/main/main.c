/* A story from a model in a partition of its own, which is mapped; another model is flashed without this program. */
#define L3_NO_STDIO
#include "tell.h"

#include "esp_partition.h"
#include "stories.h" /* STORIES_SIZE: what l3-embed wrote beside stories.bin */

#include <stdio.h>

static void put(void *user, const char *text, size_t n) { fwrite(text, 1, n, (FILE *)user); }

void app_main(void) {
    const esp_partition_t      *model = esp_partition_find_first(ESP_PARTITION_TYPE_DATA, 0x40, "model");
    esp_partition_mmap_handle_t handle;
    const void                 *bytes;
    l3_error                    err;
    if (!model || model->size < STORIES_SIZE ||
        esp_partition_mmap(model, 0, STORIES_SIZE, ESP_PARTITION_MMAP_DATA, &bytes, &handle) != ESP_OK) {
        printf("there is no partition \"model\" of %u bytes\n", (unsigned)STORIES_SIZE);
        return;
    }
    const l3_source source = l3_source_memory(bytes, STORIES_SIZE);
    if (tell(&source, "Once upon a time", 32, put, stdout, &err) != L3_OK) printf("%s", err.text);
    printf("\n");
}
