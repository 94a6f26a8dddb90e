/* What a program calls that opens a model, decodes, samples and writes text: tests/sizes.sh keeps what it needs and nothing else.
 * The switches come before it. */
#define L3_IMPLEMENTATION
#include "../l3_model.h"

int program(const l3_source *source, void *mem, size_t n);
int program(const l3_source *source, void *mem, size_t n) {
    const l3_sampling sampling = l3_sampling_defaults();
    l3_model         *model;
    l3_session       *session;
    l3_tokenizer     *tokenizer;
    l3_sampler       *sampler;
    l3_error          err;
    const char       *text;
    size_t            size, length;
    int32_t           id   = 1;
    int               code = l3_model_size(source, NULL, &size, &err);
    if (code == L3_OK) code = l3_model_open(&model, source, NULL, mem, n, &err);
    if (code != L3_OK) return code;
    size += l3_session_size(model, NULL) + l3_tokenizer_size(model, 0) + l3_sampler_size(&sampling, 1);
    if (code == L3_OK) code = l3_session_init(&session, model, NULL, mem, size, &err);
    if (code == L3_OK) code = l3_tokenizer_init(&tokenizer, model, 0, mem, size, &err);
    if (code == L3_OK) code = l3_sampler_init(&sampler, &sampling, 1, mem, size, &err);
    if (code == L3_OK) code = l3_decode(session, id, &err);
    if (code == L3_OK) code = l3_sample(sampler, l3_logits(session), &id, &err);
    if (code == L3_OK) code = l3_detokenize(tokenizer, id, &text, &length, &err);
    return code;
}
