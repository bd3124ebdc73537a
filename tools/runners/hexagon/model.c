// edgeq_run, and what TVM's kernels call: memory of their own, parallel loops, errors. Link it with kernels.o and plan.c.
#include "edgeq_plan.h"

// DLPack's tensor, as dlpack.h has it.
typedef struct {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t rank;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  const int64_t* shape;
  const int64_t* strides;
  uint64_t byte_offset;
} tensor;

enum { CPU = 1, DL_TENSOR = 7, MOST_ARGUMENTS = 64 };

const char* edgeq_error = "";
static uint64_t used;  // bytes of edgeq_workspace

// Kernels free in the opposite order of allocating.
static void* allocate(int type, int id, uint64_t bytes, int code, int bits) {
  (void)type, (void)id, (void)code, (void)bits;
  const uint64_t whole = (bytes + EDGEQ_ALIGNMENT - 1) / EDGEQ_ALIGNMENT * EDGEQ_ALIGNMENT;
  if (used + whole > edgeq_model.workspace_bytes) return 0;
  void* memory = edgeq_workspace + used;
  used += whole;
  return memory;
}

static int release(int type, int id, void* memory) {
  (void)type, (void)id;
  used = (uint64_t)((char*)memory - edgeq_workspace);
  return 0;
}

typedef struct {
  void* sync;
  int32_t tasks;
} parallel;

// One thread does it all; on a DSP with several hardware threads this is the function to replace (a workspace each, then).
static int launch(int (*body)(int task, parallel* group, void* closure), void* closure, int tasks) {
  (void)tasks;
  parallel group = {0, 1};
  return body(0, &group, closure);
}

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  static char text[512];
  uint32_t length = 0;
  (void)kind;
  for (int32_t i = 0; i < count; ++i)
    for (const char* c = parts[i]; c && *c && length + 1 < sizeof text; ++c) text[length++] = *c;
  text[length] = 0;
  edgeq_error = text;
}

// Pointers that TVM's code calls through; a kernel file that calls one of them defines it.
extern void* __TVMBackendAllocWorkspace __attribute__((weak));
extern void* __TVMBackendFreeWorkspace __attribute__((weak));
extern void* __TVMBackendParallelLaunch __attribute__((weak));

static void connect(void** pointer, void* function) {
  if (pointer) *pointer = function;
}

int edgeq_run(void* const* inputs, void* const* outputs, void (*watch)(uint32_t step, int done)) {
  connect(&__TVMBackendAllocWorkspace, (void*)allocate);
  connect(&__TVMBackendFreeWorkspace, (void*)release);
  connect(&__TVMBackendParallelLaunch, (void*)launch);
  used = 0;
  for (uint32_t s = 0; s < edgeq_model.steps; ++s) {
    const edgeq_step* step = &edgeq_model.step[s];
    tensor tensors[MOST_ARGUMENTS];
    edgeq_any arguments[MOST_ARGUMENTS], result = {0, 0, {0}};
    for (uint32_t i = 0; i < step->count; ++i) {
      const edgeq_value* v = &edgeq_model.value[step->values[i]];
      void* data = v->place == EDGEQ_INPUT      ? inputs[v->where]
                   : v->place == EDGEQ_OUTPUT   ? outputs[v->where]
                   : v->place == EDGEQ_CONSTANT ? (void*)(edgeq_constants + v->where)
                                                : (void*)(edgeq_scratch + v->where);
      tensors[i] = (tensor){data, {CPU, 0}, v->rank, {v->code, v->bits, 1}, v->shape, v->strides, 0};
      arguments[i] = (edgeq_any){DL_TENSOR, 0, {0}};
      arguments[i].value.pointer = &tensors[i];
    }
    if (watch) watch(s, 0);
    const int status = step->kernel(0, arguments, (int32_t)step->count, &result);
    if (watch) watch(s, 1);
    if (status) return status;
  }
  return 0;
}
