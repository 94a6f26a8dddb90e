/* test_train_native.c - test_train_float.c with nothing emulated: what the trainer itself runs on this machine. */
#define TRAIN_NATIVE
#include "test_train_float.c"
