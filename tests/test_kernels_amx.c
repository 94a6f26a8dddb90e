/* test_kernels_amx.c - test_kernels.c at the level "amx" alone, with its tiles emulated: on every x86-64 machine with AVX2. */
#if defined(__x86_64__)
#include "emulated_amx.h"
#endif
#define FIRST_LEVEL L3_LEVEL_AMX
#define SUITE       "kernels_amx"
#include "test_kernels.c"
