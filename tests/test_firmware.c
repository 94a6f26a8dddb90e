/* test_firmware.c - the firmware example on this machine: its program and its driver as they are, over a chip that bends bits,
 * fails, stalls and ends early. Whatever it does, there is an error with a place, or the same text.
 * L3_LONG=1: every byte of the metadata, many more of the rest. */
#undef L3_THREADS
#define L3_NO_STDIO /* as on the device; plain C, too */
#define L3_NO_ALLOCATOR
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#define STORY_MEMORY (176 * 1024) /* pointers are longer here */
#include "../examples/firmware/flash.c"
#include "../examples/firmware/story.c"

#include "test.h"

enum { TOKENS = 16, PAGES_MAX = 1 << 18 };

static const char model_path[] = "examples/models/stories-l3-small.gguf";

/* ---- the chip: instead of spi.c ---- */

static struct {
    unsigned char *bytes;
    uint32_t       size, off, n;
    void          *dst;               /* of the page under way, or NULL */
    uint32_t       pages;             /* asked for so far */
    uint32_t       fail_at, stall_at; /* the page that does not come, counted from 1; 0: none */
    int            broken;            /* rules */
} chip;

static void rule(int ok) { chip.broken += !ok; }

void spi_start(uint32_t off, void *dst, uint32_t n) {
    rule(!chip.dst && off % FLASH_PAGE == 0 && n > 0 && n <= FLASH_PAGE);
    rule(off <= chip.size && n <= chip.size - off && (n == FLASH_PAGE || off + n == chip.size));
    memset(dst, 0xff, n); /* what a page under way holds is nobody's business */
    chip.off = off, chip.n = n, chip.dst = dst;
    rule(++chip.pages < PAGES_MAX); /* no endless reading */
}

void spi_stop(void) { chip.dst = NULL; }

void spi_idle(void) {
    void *dst = chip.dst;
    if (!dst || chip.pages == chip.stall_at) return;
    chip.dst = NULL;
    if (chip.pages == chip.fail_at || chip.pages >= PAGES_MAX) {
        flash_page_done(1);
        return;
    }
    memcpy(dst, chip.bytes + chip.off, chip.n);
    flash_page_done(0);
}

/* ---- the board ---- */

static struct {
    char   text[4096];
    size_t n;
} serial;

void board_write(const char *text, size_t n) {
    if (n > sizeof serial.text - 1 - serial.n) n = sizeof serial.text - 1 - serial.n;
    memcpy(serial.text + serial.n, text, n);
    serial.n += n;
    serial.text[serial.n] = '\0';
}
size_t board_stack_used(void) { return 0; }

/* ---- runs ---- */

typedef enum storage { MAPPED, DRIVER } storage;

typedef struct place {
    int           driver;
    unsigned long byte;
} place;

static unsigned char *image; /* a good one */
static size_t         image_size;
static size_t         data_at; /* where its metadata end */
static char           good_text[1024];

/* What the chip holds is written to the serial port as a story, or as an error. */
static int run(storage how, size_t size, bool trusted) {
    const story_plan plan   = {"test", "Once upon a time", TOKENS, L3_EXACT, trusted};
    l3_source        source = l3_source_memory(image, size);
    serial.n = 0, serial.text[0] = '\0';
    chip.bytes = image, chip.size = (uint32_t)size, chip.dst = NULL, chip.pages = 0;
    if (how == DRIVER) source = flash_open((uint32_t)size);
    return story_write(&source, &plan);
}

/* The run ended with this error and said so. */
static bool said(int status, place *p) {
    const char *at   = strstr(serial.text, "\nerror ");
    int         code = 0;
    p->driver        = 0;
    p->byte          = 0;
    const char *rest = at ? strstr(at, "), driver ") : NULL;
    return status < 0 && at && rest && sscanf(at, "\nerror %d", &code) == 1 && code == status &&
           sscanf(rest, "), driver %d, byte %lu", &p->driver, &p->byte) == 2;
}

static bool same_text(void) {
    const size_t n = strlen(good_text);
    return strncmp(serial.text, good_text, n) == 0 && strncmp(serial.text + n, "{\"board\"", 8) == 0;
}

static void flip(size_t byte, uint32_t bit) { image[byte] ^= (unsigned char)(1u << bit); }

static bool thorough(void) { return test_flag("L3_LONG"); }

/* What a good image says; the report behind it is another matter. */
static bool learn_text(void) {
    if (run(MAPPED, image_size, false) != L3_OK) return false;
    const char *line = strstr(serial.text, "{\"board\"");
    if (!line || (size_t)(line - serial.text) >= sizeof good_text) return false;
    memcpy(good_text, serial.text, (size_t)(line - serial.text));
    return true;
}

/* ---- cases ---- */

TEST(storage_does_not_show) {
    CHECK(strncmp(good_text, "Once upon a time", 16) == 0 && strlen(good_text) > 40);
    CHECK_EQ(run(DRIVER, image_size, false), L3_OK);
    CHECK(same_text());
    CHECK_EQ(run(DRIVER, image_size, true), L3_OK);
    CHECK(same_text());
    CHECK_EQ(chip.broken, 0);
}

/* With everything verified first, no flipped bit comes to the text. */
TEST(every_flip_is_reported) {
    const size_t step = thorough() ? 1 : 9, data_step = thorough() ? 61 : 331;
    uint32_t     flips = 0, missed = 0, unsaid = 0;
    for (size_t byte = 0; byte < image_size; byte += byte < 64 ? 1 : byte < data_at ? step : data_step)
        for (uint32_t bit = 0; bit < 8; bit++) {
            place p;
            if (byte >= 64 && bit != byte % 8) continue;
            flip(byte, bit);
            const int status = run(byte % 3 ? MAPPED : DRIVER, image_size, false);
            if (status == L3_OK && missed++ < 5) fprintf(stderr, "  bit %u of byte %lu\n", bit, (unsigned long)byte);
            unsaid += !said(status, &p);
            flip(byte, bit);
            flips++;
        }
    CHECK_EQ(missed, 0);
    CHECK_EQ(unsaid, 0);
    CHECK(flips > 2000);
    CHECK_EQ(chip.broken, 0);
    if (test_verbose()) fprintf(stderr, "  %u flips\n", flips);
}

/* Without that, in metadata and dense weights: whatever comes, it ends, and an error is said. */
TEST(flips_that_nobody_looks_for_do_no_harm) {
    const size_t step = thorough() ? 3 : 101, data_step = thorough() ? 331 : 4001;
    uint32_t     flips = 0, errors = 0, unsaid = 0, same = 0;
    for (size_t byte = 0; byte < image_size; byte += byte < data_at ? step : data_step) {
        place p;
        flip(byte, (uint32_t)(byte % 8));
        const int status = run(byte % 3 ? DRIVER : MAPPED, image_size, true);
        errors += status != L3_OK;
        same += status == L3_OK && same_text();
        unsaid += status != L3_OK && !said(status, &p);
        flip(byte, (uint32_t)(byte % 8));
        flips++;
    }
    CHECK_EQ(unsaid, 0);
    CHECK(errors > 0 && same > 0);
    CHECK_EQ(chip.broken, 0);
    if (test_verbose()) fprintf(stderr, "  %u flips: %u errors, %u times the same text\n", flips, errors, same);
}

/* A table's row block that is read is checked: its bits are right, or there is an error with the place. */
TEST(flips_in_rows_show_when_they_are_read) {
    l3_lookup layer;
    uint32_t  flips = 0, errors = 0, changed = 0, astray = 0;
    REQUIRE(run(DRIVER, image_size, true) == L3_OK);
    const l3_model *model = (const l3_model *)(void *)memory; /* taken first, by every run */
    REQUIRE(l3_model_info(model)->n_lookups == 2);
    for (uint32_t i = 0; i < 2; i++) {
        layer                  = *l3_model_lookup(model, i, NULL);
        const size_t row       = (size_t)l3_row_bytes(layer.rows.type, layer.rows.cols);
        const size_t places[3] = {(size_t)layer.rows.offset, (size_t)layer.offsets.offset,
                                  (size_t)layer.checksums.offset};
        const size_t sizes[3]  = {row * layer.rows.rows, 4 * (size_t)layer.offsets.cols,
                                  4 * (size_t)layer.checksums.cols};
        for (int part = 0; part < 3; part++)
            for (size_t at = part; at < sizes[part]; at += thorough() ? 67 : part ? 131 : 1009) {
                place        p;
                const size_t byte = places[part] + at;
                flip(byte, (uint32_t)(at % 8));
                const int status = run(DRIVER, image_size, true);
                flip(byte, (uint32_t)(at % 8));
                flips++;
                errors += status != L3_OK;
                changed += status == L3_OK && !same_text();
                if (status != L3_OK && (!said(status, &p) || (status != L3_ERR_CHECKSUM && status != L3_ERR_FORMAT)))
                    astray++;
            }
        REQUIRE(run(DRIVER, image_size, true) == L3_OK); /* the model again */
    }
    CHECK_EQ(changed, 0);
    CHECK_EQ(astray, 0);
    CHECK(errors > 0 && errors < flips);
    CHECK_EQ(chip.broken, 0);
    if (test_verbose()) fprintf(stderr, "  %u flips: %u errors\n", flips, errors);
}

TEST(images_cut_short_are_refused) {
    uint32_t missed = 0;
    for (size_t size = 0; size < image_size; size += size < 64 ? 1 : size < data_at ? 509 : 8191)
        for (int how = 0; how < 2; how++)
            for (int trusted = 0; trusted < 2; trusted++) {
                place p;
                missed += !said(run((storage)how, size, trusted), &p) || p.byte > image_size;
            }
    missed += run(DRIVER, image_size - 1, true) == L3_OK;
    CHECK_EQ(missed, 0);
    CHECK_EQ(chip.broken, 0);
}

/* One page fails or never comes: the driver's code, and a place that lies in what was being read. */
static void lose_each(uint32_t *which, int code) {
    uint32_t unsaid = 0, tries = 0;
    *which = 0;
    REQUIRE(run(DRIVER, image_size, false) == L3_OK);
    const uint32_t pages = chip.pages, step = pages / (thorough() ? 2000 : 100);
    for (uint32_t at = 1; at <= pages; at += at < 20 ? 1 : step) {
        place p;
        *which           = at;
        const int status = run(DRIVER, image_size, false);
        unsaid += !said(status, &p) || status != L3_ERR_IO || p.driver != code || p.byte >= image_size;
        tries++;
    }
    *which = 0;
    CHECK(tries > 100);
    CHECK_EQ(unsaid, 0);
    CHECK_EQ(run(DRIVER, image_size, false), L3_OK); /* and afterwards everything is as before */
    CHECK(same_text());
    CHECK_EQ(chip.broken, 0);
}
TEST(a_chip_that_fails) { lose_each(&chip.fail_at, FLASH_FAILED); }
TEST(a_chip_that_stalls) { lose_each(&chip.stall_at, FLASH_TIMEOUT); }

static int on_data(void *user, uint64_t start, uint64_t alignment) {
    (void)alignment;
    *(size_t *)user = (size_t)start;
    return 0;
}

int main(void) {
    const l3_gguf_visitor visitor = {&data_at, NULL, NULL, NULL, on_data};
    image                         = test_read(model_path, &image_size);
    if (!image) {
        fprintf(stderr, "%s cannot be read\n", model_path);
        return 2;
    }
    const l3_source source = l3_source_memory(image, image_size);
    if (l3_gguf_scan(&source, &visitor, NULL) != L3_OK || !learn_text()) {
        fprintf(stderr, "no text from %s:\n%s", model_path, serial.text);
        return 2;
    }
    alarm(1500); /* no endless computing */
    RUN(storage_does_not_show);
    RUN(every_flip_is_reported);
    RUN(flips_that_nobody_looks_for_do_no_harm);
    RUN(flips_in_rows_show_when_they_are_read);
    RUN(images_cut_short_are_refused);
    RUN(a_chip_that_fails);
    RUN(a_chip_that_stalls);
    free(image);
    return test_report("firmware on this machine");
}
