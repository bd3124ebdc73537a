// What compilers call by themselves, in libraries that a freestanding program lacks. Weak, so that a real library wins.
#include <stdint.h>

static uint64_t divided(uint64_t a, uint64_t b, uint64_t* rest) {
  uint64_t quotient = 0, remainder = 0;
  for (int bit = 63; bit >= 0; --bit) {
    remainder = remainder << 1 | (a >> bit & 1);
    if (remainder >= b) remainder -= b, quotient |= (uint64_t)1 << bit;
  }
  *rest = remainder;
  return quotient;
}

static int64_t signed_divided(int64_t a, int64_t b, int64_t* rest) {
  uint64_t remainder;
  const uint64_t quotient = divided(a < 0 ? -(uint64_t)a : (uint64_t)a, b < 0 ? -(uint64_t)b : (uint64_t)b, &remainder);
  *rest = (int64_t)(a < 0 ? -remainder : remainder);
  return (int64_t)((a < 0) != (b < 0) ? -quotient : quotient);
}

#define WEAK __attribute__((weak))
WEAK void* memset(void* to, int value, unsigned size) {
  volatile char* c = to;  // volatile: else these loops become calls of memset
  const uint64_t eight = (value & 255) * 0x0101010101010101u;
  for (; (uintptr_t)c % 8 && size; --size) *c++ = (char)value;
  for (; size >= 8; size -= 8, c += 8) *(volatile uint64_t*)c = eight;
  for (; size; --size) *c++ = (char)value;
  return to;
}
WEAK void* memcpy(void* to, const void* from, unsigned size) {
  const char* source = from;
  for (volatile char* c = to; size--;) *c++ = *source++;
  return to;
}
WEAK void* memmove(void* to, const void* from, unsigned size) {
  if ((char*)to <= (const char*)from) return memcpy(to, from, size);
  for (volatile char* c = to; size--;) c[size] = ((const char*)from)[size];
  return to;
}
WEAK void* __hexagon_memcpy_likely_aligned_min32bytes_mult8bytes(void* to, const void* from, unsigned size) {
  volatile uint64_t* target = to;
  const uint64_t* source = from;
  if (((uintptr_t)to | (uintptr_t)from) % 8) return memcpy(to, from, size);
  for (size /= 8; size--;) *target++ = *source++;
  return to;
}

WEAK uint32_t __hexagon_udivsi3(uint32_t a, uint32_t b) { uint64_t rest; return (uint32_t)divided(a, b, &rest); }
WEAK uint32_t __hexagon_umodsi3(uint32_t a, uint32_t b) { uint64_t rest; divided(a, b, &rest); return (uint32_t)rest; }
WEAK int32_t __hexagon_divsi3(int32_t a, int32_t b) { int64_t rest; return (int32_t)signed_divided(a, b, &rest); }
WEAK int32_t __hexagon_modsi3(int32_t a, int32_t b) { int64_t rest; signed_divided(a, b, &rest); return (int32_t)rest; }
WEAK uint64_t __hexagon_udivdi3(uint64_t a, uint64_t b) { uint64_t rest; return divided(a, b, &rest); }
WEAK uint64_t __hexagon_umoddi3(uint64_t a, uint64_t b) { uint64_t rest; divided(a, b, &rest); return rest; }
WEAK int64_t __hexagon_divdi3(int64_t a, int64_t b) { int64_t rest; return signed_divided(a, b, &rest); }
WEAK int64_t __hexagon_moddi3(int64_t a, int64_t b) { int64_t rest; signed_divided(a, b, &rest); return rest; }
