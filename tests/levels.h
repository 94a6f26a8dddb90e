/* levels.h - exact mode gives the same bits at every level, so tests that compare bits take another level each time. */
#ifndef LEVELS_H
#define LEVELS_H

/* The levels that work here, one after the other. */
static inline l3_level next_level(void) {
    static int level = L3_LEVEL_PLAIN;
    do level = l3_level_name(level + 1) ? level + 1 : L3_LEVEL_PLAIN;
    while (!l3_level_works(level));
    return (l3_level)level;
}

/* Exact mode at the next level. */
static inline void make_exact(l3_work_config *c) {
    c->mode = L3_EXACT;
    if (c->level == L3_LEVEL_BEST) c->level = next_level();
}

#endif
