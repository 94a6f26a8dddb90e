/* Just enough of Zephyr's interface to compile and run examples/projects/zephyr on a desktop. */
#ifndef ZEPHYR_KERNEL_H
#define ZEPHYR_KERNEL_H

#include <stdio.h>

#define ARG_UNUSED(x) (void)(x)
#define printk        printf

#endif
