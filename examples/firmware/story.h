/* story.h - the program itself, the same on every board and over every l3_source. */
#ifndef STORY_H
#define STORY_H

#include "../../l3_model.h"

typedef struct story_plan {
    const char *storage; /* how the model is reached, for the report */
    const char *prompt;
    uint32_t    tokens;  /* new ones at most */
    l3_mode     mode;    /* L3_EXACT: the desktop's bits; L3_FAST: sooner where the core has kernels */
    bool        trusted; /* not verified first */
} story_plan;

/* Continues the prompt out of the board's serial port and reports what it took, in a line of JSON; or says why it could not.
 * Returns an l3_status. Everything is static: one at a time. */
int story_write(const l3_source *source, const story_plan *plan);

#endif
