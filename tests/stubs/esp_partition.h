/* Just enough of ESP-IDF's interface to compile and run examples/projects/esp-idf on a desktop: one partition, whose bytes
 * are those of the file STUB_PARTITION. */
#ifndef ESP_PARTITION_H
#define ESP_PARTITION_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef int esp_err_t;
enum { ESP_OK = 0, ESP_FAIL = -1 };
typedef enum { ESP_PARTITION_TYPE_APP, ESP_PARTITION_TYPE_DATA } esp_partition_type_t;
typedef int esp_partition_subtype_t;
typedef enum { ESP_PARTITION_MMAP_DATA, ESP_PARTITION_MMAP_INST } esp_partition_mmap_memory_t;
typedef uint32_t esp_partition_mmap_handle_t;
typedef struct {
    uint32_t size;
} esp_partition_t;

static inline const esp_partition_t *esp_partition_find_first(esp_partition_type_t    type,
                                                              esp_partition_subtype_t subtype, const char *label) {
    static const esp_partition_t partition = {1 << 20};
    return type == ESP_PARTITION_TYPE_DATA && subtype == 0x40 && strcmp(label, "model") == 0 ? &partition : NULL;
}

static inline esp_err_t esp_partition_mmap(const esp_partition_t *partition, size_t offset, size_t size,
                                           esp_partition_mmap_memory_t memory, const void **out_ptr,
                                           esp_partition_mmap_handle_t *out_handle) {
    static unsigned char bytes[1 << 20];
    FILE                *f = fopen(STUB_PARTITION, "rb");
    (void)memory;
    if (!f || offset + size > partition->size || fread(bytes, 1, sizeof bytes, f) < size) return ESP_FAIL;
    fclose(f);
    *out_ptr    = bytes + offset;
    *out_handle = 1;
    return ESP_OK;
}

void app_main(void);
#ifdef STUB_MAIN
int main(void) {
    app_main();
    return 0;
}
#endif

#endif
