/* The library, compiled once; its switches stand in the Makefile, as all files must agree on them. */
#define L3_IMPLEMENTATION
#include "../../l3_model.h"
