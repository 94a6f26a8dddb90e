/* nolibc.h - the seven functions of the C library that the headers use, for programs without one. Simple, and never turned
 * into calls of themselves. */
#ifndef NOLIBC_H
#define NOLIBC_H

#include <stddef.h>
#include <stdint.h>

void *memcpy(void *to, const void *from, size_t n) {
    for (size_t i = 0; i < n; i++) ((volatile char *)to)[i] = ((const char *)from)[i];
    return to;
}
void *memmove(void *to, const void *from, size_t n) {
    const char *f = (const char *)from;
    if ((uintptr_t)to < (uintptr_t)from) return memcpy(to, from, n);
    while (n--) ((volatile char *)to)[n] = f[n];
    return to;
}
void *memset(void *to, int c, size_t n) {
    for (size_t i = 0; i < n; i++) ((volatile char *)to)[i] = (char)c;
    return to;
}
int memcmp(const void *a, const void *b, size_t n) {
    const unsigned char *x = (const unsigned char *)a, *y = (const unsigned char *)b;
    for (; n && *x == *y; n--) x++, y++;
    return n ? *x - *y : 0;
}
size_t strlen(const char *s) {
    size_t n = 0;
    while (((const volatile char *)s)[n]) n++;
    return n;
}
int strncmp(const char *a, const char *b, size_t n) {
    for (; n && *a && *a == *b; n--) a++, b++;
    return n ? (unsigned char)*a - (unsigned char)*b : 0;
}
int strcmp(const char *a, const char *b) { return strncmp(a, b, SIZE_MAX); }

#endif
