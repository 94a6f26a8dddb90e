/* test_files.c - files as the system gives them: names in UTF-8, mapped and read, a tensor beyond 4 GB. */
#define L3_NO_SIMD /* nothing here depends on kernels: compiles in half the time */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

#include "make_model.h"
#include "model.h"

#include <errno.h>

#if defined(_WIN32)
static FILE *open_file(const char *path, const char *mode) {
    wchar_t wide[600], wide_mode[8];
    MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, 600);
    MultiByteToWideChar(CP_UTF8, 0, mode, -1, wide_mode, 8);
    return _wfopen(wide, wide_mode);
}
static void remove_file(const char *path) {
    wchar_t wide[600];
    MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, 600);
    _wremove(wide);
}
static int seek(FILE *f, uint64_t to) { return _fseeki64(f, (long long)to, SEEK_SET); }
#else
static FILE *open_file(const char *path, const char *mode) { return fopen(path, mode); }
static void  remove_file(const char *path) { remove(path); }
static int   seek(FILE *f, uint64_t to) { return fseeko(f, (off_t)to, SEEK_SET); }
#endif

enum { TOKENS = 6 };

/* Logits after a few tokens of a model from `source`, (vocab,), in malloc memory; NULL: that failed. */
static float *logits_through(const l3_source *source) {
    l3_session_config config;
    l3_model         *model;
    l3_session       *session;
    l3_error          err;
    size_t            size   = 0;
    float            *logits = NULL;
    if (!CHECK_EQ(l3_model_size(source, NULL, &size, &err), L3_OK)) return NULL;
    guard m = guard_new(size, L3_ALIGN, 0xff), s;
    if (CHECK_EQ(l3_model_open(&model, source, NULL, m.mem, size, &err), L3_OK)) {
        memset(&config, 0, sizeof config);
        config.work.mode = L3_EXACT;
        size             = l3_session_size(model, &config);
        s                = guard_new(size, L3_ALIGN, 0xff);
        int ok           = CHECK_EQ(l3_session_init(&session, model, &config, s.mem, size, &err), L3_OK);
        for (int32_t id = 3; ok && id < 3 + TOKENS; id++) ok = CHECK_EQ(l3_decode(session, id, &err), L3_OK);
        if (ok) {
            logits = new_floats(1, l3_model_info(model)->vocab);
            memcpy(logits, l3_logits(session), l3_model_info(model)->vocab * sizeof *logits);
        }
        CHECK(guard_free(&s));
    } else {
        fprintf(stderr, "    %s\n", err.text);
    }
    CHECK(guard_free(&m));
    return logits;
}

/* The model in the file, mapped and read, gives the logits that it gives in memory. */
static void same_in_file(const char *path, file f) {
    const l3_source memory   = l3_source_memory(f.bytes, f.n);
    float          *expected = logits_through(&memory);
    for (int mode = L3_FILE_MAP; expected && mode <= L3_FILE_READ; mode++) {
        l3_file  in;
        l3_error err;
        if (!CHECK_EQ(l3_source_open_file(&in, path, (l3_file_mode)mode, &err), L3_OK)) {
            fprintf(stderr, "    %s\n", err.text);
            continue;
        }
        float *got = logits_through(&in.source);
        if (CHECK(got != NULL)) CHECK_MEM(got, expected, spec_small().vocab * sizeof *got);
        if (sizeof(void *) >= 8 && mode == L3_FILE_MAP) CHECK(in.mapping != NULL);
        if (mode == L3_FILE_READ) CHECK(in.mapping == NULL);
        free(got);
        l3_source_close_file(&in);
    }
    free(expected);
}

TEST(names_in_utf8) {
    static const char name[] = "gr\xc3\xb6\xc3\x9f"
                               "e \xe6\xa8\xa1\xe5\x9e\x8b \xf0\x9f\x98\x80.gguf";
    const mk_spec     spec   = spec_small();
    file              f      = file_make(&spec);
    char              path[600];
    l3_file           in;
    l3_error          err;
    FILE             *out = open_file(test_temp(name, path, sizeof path), "wb");
    REQUIRE(out != NULL);
    CHECK_EQ(fwrite(f.bytes, 1, f.n, out), f.n);
    CHECK_EQ(fclose(out), 0);
    same_in_file(path, f);
    remove_file(path);
    CHECK_EQ(l3_source_open_file(&in, path, L3_FILE_MAP, &err), L3_ERR_IO);
    CHECK(err.io != 0 && strstr(err.text, name));
    free(f.bytes);
}

/* Where a tensor's offset stands in the file: behind its name, dimensions and type. */
static unsigned char *offset_of(file f, const char *name) {
    const size_t n = strlen(name);
    for (size_t i = 8; i + n + 4 < f.n; i++)
        if (l3__le64(f.bytes + i - 8) == n && memcmp(f.bytes + i, name, n) == 0)
            return f.bytes + i + n + 4 + 8 * l3__le32(f.bytes + i + n) + 4;
    return NULL;
}

/* The last tensor moves up by 4 GB; between them the file has a hole. */
TEST(tensors_beyond_4_gb) {
    const mk_spec    spec = spec_small();
    const uint64_t   up   = (uint64_t)1 << 32;
    file             f = file_make(&spec), original = file_make(&spec);
    rig              r;
    char             path[600], name[64], last_name[64] = "";
    const l3_tensor *t, *last = NULL;
    REQUIRE(rig_open(&r, original, MAPPED) == L3_OK);
    for (uint32_t i = 0; (t = l3_model_tensor(r.model, i, name)) != NULL; i++)
        if (!last || t->offset > last->offset) last = t, memcpy(last_name, name, sizeof name);
    const size_t   at    = (size_t)last->offset;
    unsigned char *where = offset_of(f, last_name);
    REQUIRE(where != NULL);
    l3__put_le32(where + 4, l3__le32(where + 4) + 1);
    FILE *out = fopen(test_temp("large.gguf", path, sizeof path), "wb");
    REQUIRE(out != NULL);
    int made = fwrite(f.bytes, 1, at, out) == at && seek(out, up + at) == 0 &&
               fwrite(f.bytes + at, 1, f.n - at, out) == f.n - at;
    made = fclose(out) == 0 && made;
    if (made) same_in_file(path, original);
    remove(path);
    rig_close(&r);
    free(f.bytes);
    free(original.bytes);
    if (!made) SKIP("no file of 4 GB can be made here");
}

int main(void) {
    RUN(names_in_utf8);
    RUN(tensors_beyond_4_gb);
    return test_report("files");
}
