// A program without a C library around edgeq_run, for qemu-hexagon: files and times by system calls of Hexagon Linux.
// Its command line is that of ../runner.h; the model is linked in, so that --model names nothing.
#include "edgeq_plan.h"

enum { MOST_TENSORS = 32, MOST_RUNS = 100000, MOST_STEPS = 4096 };
enum { SYS_MKDIRAT = 34, SYS_OPENAT = 56, SYS_CLOSE = 57, SYS_READ = 63, SYS_WRITE = 64, SYS_EXIT = 94, SYS_TIME64 = 403, SYS_MMAP = 222 };

__asm__(".globl _start\n_start:\n\t{ r0 = r29 }\n\t{ r29 = and(r29, #-128) }\n\t{ call edgeq_main }\n");

static long call(long number, long a, long b, long c, long d, long e, long f) {
  register long r6 __asm__("r6") = number;
  register long r0 __asm__("r0") = a;
  register long r1 __asm__("r1") = b;
  register long r2 __asm__("r2") = c;
  register long r3 __asm__("r3") = d;
  register long r4 __asm__("r4") = e;
  register long r5 __asm__("r5") = f;
  __asm__ volatile("trap0(#1)" : "+r"(r0) : "r"(r6), "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5) : "memory");
  return r0;
}

static unsigned length(const char* text) {
  unsigned n = 0;
  while (text[n]) ++n;
  return n;
}
static int same(const char* a, const char* b) {
  while (*a && *a == *b) ++a, ++b;
  return *a == *b;
}

// Text that grows, cut where it is full.
typedef struct {
  char* text;
  unsigned used, room;
} string;
static void put(string* s, const char* text) {
  while (*text && s->used + 1 < s->room) s->text[s->used++] = *text++;
  s->text[s->used] = 0;
}
static void put_number(string* s, uint64_t value) {
  char digits[24];
  unsigned n = sizeof digits;
  digits[--n] = 0;
  do digits[--n] = (char)('0' + value % 10);
  while ((value /= 10) != 0);
  put(s, digits + n);
}
static void put_ms(string* s, uint64_t microseconds) {
  put_number(s, microseconds / 1000);
  put(s, microseconds % 1000 < 10 ? ".00" : microseconds % 1000 < 100 ? ".0" : ".");
  put_number(s, microseconds % 1000);
}

static void quit(int status) {
  call(SYS_EXIT, status, 0, 0, 0, 0, 0);
  __builtin_unreachable();
}
static void fail(const char* a, const char* b, const char* c) {
  const char* parts[] = {a, b, c, "\n"};
  for (int i = 0; i < 4; ++i) call(SYS_WRITE, 2, (long)parts[i], (long)length(parts[i]), 0, 0, 0);
  quit(1);
}

static void* memory(uint64_t bytes) {
  const long found = call(SYS_MMAP, 0, (long)((bytes + 4095) / 4096 * 4096 + 4096), 3, 0x22, -1, 0);
  if ((unsigned long)found > (unsigned long)-4096) fail("out of memory", "", "");
  return (void*)found;  // aligned to a page
}

static uint64_t now_us(void) {
  struct {
    int64_t seconds, nanoseconds;
  } time = {0, 0};
  call(SYS_TIME64, 1, (long)&time, 0, 0, 0, 0);
  return (uint64_t)time.seconds * 1000000 + (uint64_t)time.nanoseconds / 1000;
}

static char path_text[4096];
static const char* numbered(const char* folder, unsigned batch, unsigned index) {
  string path = {path_text, 0, sizeof path_text};
  put(&path, folder), put(&path, "/"), put_number(&path, batch), put(&path, "_"), put_number(&path, index), put(&path, ".bin");
  return path_text;
}

enum { READ = 0, CREATE = 01 | 0100 | 01000, HERE = -100 };
static void transfer(const char* path, char* data, uint64_t bytes, int writing) {
  const long file = call(SYS_OPENAT, HERE, (long)path, writing ? CREATE : READ, 0644, 0, 0);
  if (file < 0) fail(path, writing ? " cannot be written" : " cannot be read", "");
  uint64_t done = 0;
  while (done < bytes) {
    const long some = call(writing ? SYS_WRITE : SYS_READ, file, (long)(data + done), (long)(bytes - done), 0, 0, 0);
    if (some <= 0) fail(path, writing ? " cannot be written" : " holds fewer bytes than the input takes", "");
    done += (uint64_t)some;
  }
  char more;
  if (!writing && call(SYS_READ, file, (long)&more, 1, 0, 0, 0) > 0) fail(path, " holds more bytes than the input takes", "");
  call(SYS_CLOSE, file, 0, 0, 0, 0, 0);
}

static unsigned number(const char* name, const char* text) {
  unsigned value = 0;
  for (const char* c = text; *c || c == text; ++c) {
    if (*c < '0' || *c > '9' || value > 100000) fail(name, " takes a number, not ", text);
    value = value * 10 + (unsigned)(*c - '0');
  }
  return value;
}

static const char* dtype(const edgeq_value* v) {
  switch (v->code * 100 + v->bits) {
    case 8: return "int8";
    case 16: return "int16";
    case 32: return "int32";
    case 64: return "int64";
    case 108: return "uint8";
    case 216: return "float16";
    case 232: return "float32";
    case 264: return "float64";
    case 608: return "bool";
  }
  fail("a value's dtype has no name here", "", "");
  return 0;
}

static uint64_t begun[MOST_STEPS], spent[MOST_STEPS];
static void clocked(uint32_t step, int done) {
  if (step >= MOST_STEPS) return;
  if (done)
    spent[step] = now_us() - begun[step];
  else
    begun[step] = now_us();
}

static void* inputs[MOST_TENSORS];
static void* outputs[MOST_TENSORS];

static void run(void (*watch)(uint32_t, int)) {
  if (edgeq_run(inputs, outputs, watch)) fail("a kernel failed: ", edgeq_error, "");
}
static void feed(const char* folder, unsigned batch) {
  for (unsigned i = 0; i < edgeq_model.inputs; ++i)
    transfer(numbered(folder, batch, i), inputs[i], edgeq_model.value[edgeq_model.input_values[i]].bytes, 0);
}

static void listed(string* out, const uint64_t* us, unsigned count, unsigned stride) {
  put(out, "[");
  for (unsigned i = 0; i < count; ++i) {
    if (i) put(out, ", ");
    put_ms(out, us[i * stride]);
  }
  put(out, "]");
}

__attribute__((used)) void edgeq_main(long* stack) {
  const int argc = (int)stack[0];
  char** argv = (char**)(stack + 1);
  const char *input = 0, *output = 0, *result = 0;
  unsigned batches = 0, threads = 1, warmup = 0, runs = 0;
  int events = 0;
  const uint64_t start = now_us();
  for (int i = 1; i < argc; ++i) {
    const char* name = argv[i];
    if (same(name, "--events")) {
      events = 1;
      continue;
    }
    if (i + 1 == argc) fail(name, " is no option, or wants a value", "");
    const char* text = argv[++i];
    if (same(name, "--input")) input = text;
    else if (same(name, "--output")) output = text;
    else if (same(name, "--result")) result = text;
    else if (same(name, "--batches")) batches = number(name, text);
    else if (same(name, "--threads")) threads = number(name, text);
    else if (same(name, "--warmup")) warmup = number(name, text);
    else if (same(name, "--runs")) runs = number(name, text);
    else if (!same(name, "--model") && !same(name, "--cores")) fail(name, " is no option of this runner", "");
  }
  if (!input || !output || !result) fail("--input, --output and --result are needed", "", "");
  if (batches < 1) fail("--batches is at least 1", "", "");
  if (edgeq_model.inputs > MOST_TENSORS || edgeq_model.outputs > MOST_TENSORS) fail("more inputs or outputs than 32", "", "");
  for (unsigned i = 0; i < edgeq_model.inputs; ++i)
    inputs[i] = memory(edgeq_model.value[edgeq_model.input_values[i]].bytes);
  for (unsigned i = 0; i < edgeq_model.outputs; ++i)
    outputs[i] = memory(edgeq_model.value[edgeq_model.output_values[i]].bytes);
  const uint64_t loaded = now_us();
  call(SYS_MKDIRAT, HERE, (long)output, 0777, 0, 0, 0);
  for (unsigned b = 0; b < batches; ++b) {
    feed(input, b);
    run(0);
    for (unsigned i = 0; i < edgeq_model.outputs; ++i)
      transfer(numbered(output, b, i), outputs[i], edgeq_model.value[edgeq_model.output_values[i]].bytes, 1);
  }
  const unsigned steps = edgeq_model.steps < MOST_STEPS ? edgeq_model.steps : MOST_STEPS;
  uint64_t* run_us = memory((uint64_t)(runs + 1) * 8);
  uint64_t* traced_us = memory((uint64_t)(runs + 1) * 8);
  uint64_t* step_us = memory((uint64_t)(events ? runs + 1 : 1) * steps * 8);
  if (runs) {
    feed(input, 0);
    for (unsigned i = 0; i < warmup; ++i) run(0);
    for (unsigned i = 0; i < runs; ++i) {
      const uint64_t before = now_us();
      run(0);
      run_us[i] = now_us() - before;
    }
    for (unsigned i = 0; events && i < runs; ++i) {
      const uint64_t before = now_us();
      run(clocked);
      traced_us[i] = now_us() - before;
      for (unsigned s = 0; s < steps; ++s) step_us[i * steps + s] = spent[s];
    }
  }
  const unsigned room = 65536 + steps * 256 + (runs + 1) * (events ? steps + 2 : 2) * 24;
  string out = {memory(room), 0, room};
  put(&out, "{\"runtime\": \""), put(&out, edgeq_model.runtime), put(&out, "\",\n \"threads\": "), put_number(&out, threads);
  put(&out, ",\n \"cores\": [],\n \"outputs\": [");
  for (unsigned i = 0; i < edgeq_model.outputs; ++i) {
    const edgeq_value* v = &edgeq_model.value[edgeq_model.output_values[i]];
    put(&out, i ? ", {\"dtype\": \"" : "{\"dtype\": \""), put(&out, dtype(v)), put(&out, "\", \"shape\": [");
    for (unsigned d = 0; d < v->rank; ++d) {
      if (d) put(&out, ", ");
      put_number(&out, (uint64_t)v->shape[d]);
    }
    put(&out, "]}");
  }
  put(&out, "],\n \"load_ms\": "), put_ms(&out, loaded - start);
  put(&out, ",\n \"run_ms\": "), listed(&out, run_us, runs, 1);
  put(&out, ",\n \"events\": [");
  for (unsigned s = 0; events && s < steps; ++s) {
    put(&out, s ? ",\n  {\"name\": \"" : "\n  {\"name\": \""), put(&out, edgeq_model.step[s].name);
    put(&out, "\", \"kind\": \"kernel\", \"ms\": "), listed(&out, step_us + s, runs, steps), put(&out, "}");
  }
  put(&out, "],\n \"events_run_ms\": "), listed(&out, traced_us, events ? runs : 0, 1), put(&out, "}\n");
  transfer(result, out.text, out.used, 1);
  quit(0);
}
