/* A program with a model in it, as l3-embed made it: compiled with -include HEADER -DIMAGE=name -DIMAGE_SIZE=NAME_SIZE.
 *     dump      writes the image to standard output
 *     damage    with one bit of a weight turned
 *     forge     the same, with the file's checksum made right again
 *     aligned   ends with 0 if the image begins at a multiple of ALIGN
 *     run       checks the checksums, runs the self-test exactly and in fast mode, says what they returned */
#define L3_STATIC
#define L3_NO_SIMD
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include <stdio.h>
#include <stdlib.h>

static unsigned char copy[IMAGE_SIZE];
static union {
    unsigned char bytes[1 << 20];
    double        aligned;
} memory;

static void *block(size_t skip) {
    unsigned char *p = memory.bytes + skip;
    return p + (L3_ALIGN - (uintptr_t)p % L3_ALIGN) % L3_ALIGN;
}

static l3_model *open_model(const unsigned char *bytes, size_t *size) {
    const l3_source source = l3_source_memory(bytes, IMAGE_SIZE);
    l3_model       *model  = NULL;
    l3_error        err;
    if (l3_model_size(&source, NULL, size, &err) == L3_OK &&
        l3_model_open(&model, &source, NULL, block(0), *size, &err) == L3_OK)
        return model;
    fprintf(stderr, "%s\n", err.text);
    exit(1);
}

static void turn_a_bit(void) {
    size_t           size;
    const l3_model  *model = open_model(copy, &size);
    const l3_tensor *t;
    char             name[64];
    for (uint32_t i = 0; (t = l3_model_tensor(model, i, name)) != NULL; i++)
        if (strcmp(name, "blk.1.attn_k.weight") == 0) copy[t->offset + 1] ^= 0x04; /* of a scale */
}

static void make_checksum_right(void) {
    static const char key[] = "l3.checksum.file";
    size_t            at    = 0;
    int32_t           crc;
    while (memcmp(copy + at, key, sizeof key - 1) != 0) at++;
    at += sizeof key - 1 + 4;
    memset(copy + at, 0, 4);
    crc = (int32_t)l3_crc32(0, copy, sizeof copy);
    l3_pack_i32(&crc, 1, copy + at);
}

static int run(void) {
    l3_session_config config;
    l3_session       *session;
    l3_error          err;
    float             difference;
    size_t            size;
    const l3_model   *model = open_model(IMAGE, &size);
    printf("verify %d", l3_model_verify(model, &err));
    for (int exact = 1; exact >= 0; exact--) {
        memset(&config, 0, sizeof config);
        config.context    = 24;
        config.work.batch = 4;
        config.work.mode  = exact ? L3_EXACT : L3_FAST;
        config.kv_type    = L3_Q8_0;
        if (l3_session_init(&session, model, &config, block(size + L3_ALIGN), sizeof memory - size - 2 * L3_ALIGN,
                            &err) != L3_OK)
            return 1;
        const int code = l3_session_selftest(session, &difference, &err);
        printf(", %s %d", exact ? "exact" : "fast", code);
    }
    printf("\n");
    return 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "run";
    if (strcmp(what, "run") == 0) return run();
    memcpy(copy, IMAGE, sizeof copy);
    if (strcmp(what, "dump") != 0) turn_a_bit();
    if (strcmp(what, "forge") == 0) make_checksum_right();
    if (strcmp(what, "aligned") == 0) return (uintptr_t)IMAGE % ALIGN == 0 ? 0 : 1;
    return fwrite(copy, 1, sizeof copy, stdout) == sizeof copy ? 0 : 1;
}
