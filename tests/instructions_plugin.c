/* A QEMU plugin that counts instructions between calls of one function: -plugin ./it.so,at=0xADDRESS prints how many calls there
 * were and how many instructions, in the mean, from one to the next. Debian ships no qemu-plugin.h, so what is used of version 1
 * of the interface is declared here.
 *
 *     gcc -shared -fPIC -O2 tests/instructions_plugin.c -o it.so */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translated_fn)(uint64_t id, struct qemu_plugin_tb *tb);
typedef void (*executed_fn)(unsigned cpu, void *user);
typedef void (*exit_fn)(uint64_t id, void *user);
extern void                     qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, translated_fn fn);
extern void                     qemu_plugin_register_atexit_cb(uint64_t id, exit_fn fn, void *user);
extern size_t                   qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i);
extern uint64_t                 qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, int operation, void *counter,
                                                     uint64_t add);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, executed_fn fn, int flags,
                                                   void *user);

EXPORT int      qemu_plugin_version = 1;
EXPORT int      qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv);
static uint64_t at, instructions, calls, first, last;

static void called(unsigned cpu, void *user) {
    (void)cpu;
    (void)user;
    if (calls++ == 0) first = instructions;
    last = instructions;
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb) {
    const size_t n = qemu_plugin_tb_n_insns(tb);
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, 0 /* add to a u64 */, &instructions, n);
    for (size_t i = 0; i < n; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        if (qemu_plugin_insn_vaddr(insn) == at) qemu_plugin_register_vcpu_insn_exec_cb(insn, called, 0, NULL);
    }
}

static void ended(uint64_t id, void *user) {
    (void)id;
    (void)user;
    fprintf(stderr, "instructions %" PRIu64 ", calls %" PRIu64 ", each %" PRIu64 "\n", instructions, calls,
            calls > 1 ? (last - first) / (calls - 1) : 0);
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++)
        if (strncmp(argv[i], "at=", 3) == 0) at = strtoull(argv[i] + 3, NULL, 0);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
