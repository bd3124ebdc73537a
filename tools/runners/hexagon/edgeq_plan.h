// A compiled network without a virtual machine: which kernel is called with which values, and where those lie.
// plan.c, which edgeq writes, defines edgeq_model; the kernels are in kernels.o. C99, freestanding.
#pragma once

#include <stdint.h>

#define EDGEQ_ALIGNMENT 128  // bytes; of every value, as HVX's vectors want it

typedef enum { EDGEQ_INPUT, EDGEQ_OUTPUT, EDGEQ_CONSTANT, EDGEQ_SCRATCH } edgeq_place;

// A tensor. `where`: index of the input or output, else byte offset into edgeq_constants or edgeq_scratch.
typedef struct {
  uint8_t place;
  uint8_t code;  // DLPack's: 0 signed integer, 1 unsigned, 2 float, 6 bool
  uint8_t bits;
  uint8_t rank;
  uint32_t where;
  uint64_t bytes;
  const int64_t* shape;
  const int64_t* strides;  // in elements
} edgeq_value;

// TVM's calling convention, as tvm/ffi/c_api.h has it.
typedef struct {
  int32_t type_index;
  uint32_t zero;
  union {
    int64_t integer;
    void* pointer;
  } value;
} edgeq_any;
typedef int edgeq_kernel(void* self, const edgeq_any* arguments, int32_t count, edgeq_any* result);

typedef struct {
  const char* name;
  edgeq_kernel* kernel;
  uint32_t count;
  const uint16_t* values;  // inputs and constants, then what is computed
} edgeq_step;

typedef struct {
  const char* runtime;
  uint32_t inputs, outputs, values, steps;
  const uint16_t* input_values;
  const uint16_t* output_values;
  const edgeq_value* value;
  const edgeq_step* step;
  uint64_t scratch_bytes;    // edgeq_scratch: values between kernels
  uint64_t workspace_bytes;  // edgeq_workspace: what one kernel needs for itself
} edgeq_plan;

extern const edgeq_plan edgeq_model;
extern const char edgeq_constants[];
extern char edgeq_scratch[], edgeq_workspace[];

// Run the network: inputs and outputs by index, each aligned and as large as its value says. `watch`, where it is not
// null, is called before and after each step. Returns 0, or a kernel's status, whose message edgeq_error then holds.
int edgeq_run(void* const* inputs, void* const* outputs, void (*watch)(uint32_t step, int done));
extern const char* edgeq_error;
