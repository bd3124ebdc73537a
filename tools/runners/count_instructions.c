/* A plugin for QEMU's user-mode emulators: how many instructions did the program execute, all threads together?
 *
 *   cc -shared -fPIC -O2 -DPLUGIN_API=1 count_instructions.c -o count_instructions.so
 *   qemu-aarch64 -plugin ./count_instructions.so,out=FILE PROGRAM
 *
 * FILE gets one decimal number when the program exits; none when a signal kills it. Debian does not package
 * qemu-plugin.h, so the few functions used are declared here as its documentation has them (docs/devel/tcg-plugins).
 * PLUGIN_API is the version of that interface: 1 up to QEMU 8, 2 from QEMU 9 on.
 *
 * Counted block by block: QEMU leaves a block early only where an instruction faults. On Hexagon QEMU's unit is the
 * packet, so the instructions of each packet are counted from its words (V67 Programmer's Reference Manual, section 10).
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef uint64_t qemu_plugin_id_t;
typedef struct {
    const char *target_name;
    struct {
        int min;
        int cur;
    } version;
    bool system_emulation;
    struct {
        int smp_vcpus;
        int max_vcpus;
    } system;
} qemu_info_t;

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                                  void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, void (*executed)(unsigned int, void *),
                                                 int flags, void *data);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*ended)(qemu_plugin_id_t, void *), void *data);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
#if PLUGIN_API == 1
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
#else
extern size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *data, size_t size);
#endif

__attribute__((visibility("default"))) int qemu_plugin_version = PLUGIN_API;

#define SLOTS 256 /* threads share one only where more than this many run at once, hence the atomic add */
static struct {
    uint64_t count;
    char own_cache_line[64 - sizeof(uint64_t)];
} counted[SLOTS];
static bool hexagon;
static char *out;

static void executed(unsigned int vcpu, void *instructions) {
    __atomic_fetch_add(&counted[vcpu % SLOTS].count, (uint64_t)(uintptr_t)instructions, __ATOMIC_RELAXED);
}

/* Words of a packet: parse bits 15:14 are zero in a duplex, which holds two instructions; a word of class 0 that is no
 * duplex extends its neighbour's constant and is no instruction of its own. */
static size_t in_packet(const struct qemu_plugin_insn *packet) {
    uint32_t words[16];
    size_t size = qemu_plugin_insn_size(packet), total = 0;
    if (size > sizeof words) size = sizeof words;
#if PLUGIN_API == 1
    memcpy(words, qemu_plugin_insn_data(packet), size);
#else
    qemu_plugin_insn_data(packet, words, size);
#endif
    for (size_t i = 0; i < size / sizeof words[0]; i++) {
        bool duplex = (words[i] >> 14 & 3) == 0, extender = !duplex && words[i] >> 28 == 0;
        total += duplex ? 2 : extender ? 0 : 1;
    }
    return total;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    size_t total = qemu_plugin_tb_n_insns(tb);
    (void)id;
    if (hexagon) {
        size_t packets = total;
        total = 0;
        for (size_t i = 0; i < packets; i++) total += in_packet(qemu_plugin_tb_get_insn(tb, i));
    }
    qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, 0, (void *)(uintptr_t)total);
}

static void ended(qemu_plugin_id_t id, void *data) {
    uint64_t total = 0;
    FILE *file = fopen(out, "w");
    (void)id, (void)data;
    for (int i = 0; i < SLOTS; i++) total += counted[i].count;
    if (file != NULL) {
        fprintf(file, "%llu\n", (unsigned long long)total);
        fclose(file);
    }
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
                                                               char **argv) {
    hexagon = strcmp(info->target_name, "hexagon") == 0;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "out=", 4) == 0) out = strdup(argv[i] + 4);
    }
    if (out == NULL) return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
