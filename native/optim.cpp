// One step of an optimizer whose state is 8-bit codes: per block of state values, decode, update, encode.
//
// Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022. The arithmetic is defined once, in
// edgeq/optim/update.py, as single float32 operations in a fixed order; every path here gives the same bytes. No operation
// is contracted (-ffp-contract=off), so that a product and a sum stay two roundings.
//
// Plain C interface, no torch and no Python: it is loaded by ctypes.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#define TARGET(features) __attribute__((target(features)))
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#define INLINE static inline __attribute__((always_inline))

namespace {

constexpr int kLargestBlock = 4096;  // state values; a block lies in a thread's first-level cache
constexpr int kDecades = 8;          // of a map, with that of 1 alone
constexpr int kBins = 1 << 15;       // of ratios: 16 bits without a sign, 15 with one
constexpr int kStep = 64;            // codes handled at once; block sizes are multiples of it
constexpr float kLeastTop = 0x1p-64f;       // below it the inverse of a block's largest magnitude is not taken
constexpr uint32_t kTooLarge = 0x58800000;  // bits of 2^50: sums of many squares of what is below are finite

}  // namespace

extern "C" {

// A map of 256 values in ascending order. `magnitudes`: the values not below 0, of which the signed map has 129.
// `thresholds[i]`: above it magnitude i + 1 is nearer than i. `bins`: for every ratio's highest bits, the code of the bin's
// least magnitude (255 less it where the sign's bit is set) times 2^low, and what carries the bits below, `low` of them, over
// 2^low where they are above the bin's threshold.
struct Map {
    float values[256];
    float magnitudes[256];
    float thresholds[256];
    uint32_t bins[kBins];
    int32_t is_signed;
};

// One parameter. `first`, `second`: codes of its state, or null; `*_max`: the largest magnitude of each block.
struct Parameter {
    float* weight;
    const float* gradient;
    uint8_t* first;
    float* first_max;
    uint8_t* second;
    float* second_max;
    int64_t count;
    float beta1, rest1, beta2, rest2;  // rest = 1 - beta, rounded once; Adam's beta: beta / (1 - beta)
    float epsilon;  // Adam's: epsilon / (sqrt(1 - beta2) / sqrt(1 - beta2^step))
    float rate;     // what multiplies the update
    float keep;    // 1 - lr * weight_decay, for decay beside the gradient
    float decay;   // weight_decay, for decay inside the gradient
    float scale;   // of the gradient: -1 to maximise, below 1 where it is clipped
    int32_t plain;  // 1 where the momentum begins with the gradient itself
};
}

namespace {

enum Kind { kAdam, kMomentum, kNesterov, kLion, kAdagrad };

// ---------------------------------------------------------------- decode and encode, any processor

INLINE void decode_plain(const uint8_t* codes, int count, const Map& map, float maximum, float* out) {
    for (int i = 0; i < count; ++i) out[i] = map.values[codes[i]] * maximum;
}

// A bin's highest bits: with the sign where the map has one. No bits of any float lie outside of the bins.
INLINE uint8_t code_of(float ratio, const Map& map) {
    uint32_t bits;
    std::memcpy(&bits, &ratio, 4);
    const uint32_t negative = map.is_signed ? bits >> 31 : 0;
    const int low = map.is_signed ? 17 : 16;
    if (!map.is_signed) bits &= 0x7fffffff;
    return static_cast<uint8_t>((map.bins[bits >> low] + (bits & ((1u << low) - 1))) >> low ^ (negative ? 255 : 0));
}

INLINE void encode_plain(const float* in, int count, const Map& map, float inverse, uint8_t* codes) {
    for (int i = 0; i < count; ++i) codes[i] = code_of(in[i] * inverse, map);
}

#if defined(__x86_64__)

// ---------------------------------------------------------------- AVX2: tables by loads, which are faster than gathers

#define AVX2 "avx2,fma"

// Values of eight codes.
TARGET(AVX2) INLINE __m256 values8(const float* values, const uint8_t* codes) {
    uint64_t at;
    std::memcpy(&at, codes, 8);
    return _mm256_setr_ps(values[at & 255], values[at >> 8 & 255], values[at >> 16 & 255], values[at >> 24 & 255],
                          values[at >> 32 & 255], values[at >> 40 & 255], values[at >> 48 & 255], values[at >> 56]);
}

// Codes of eight ratios, each in 32 bits, of which the lowest eight count.
template <bool kSigned>
TARGET(AVX2) INLINE __m256i codes8(__m256 ratios, const Map& map) {
    constexpr int kLow = kSigned ? 17 : 16;
    __m256i bits = _mm256_castps_si256(ratios);
    if (!kSigned) bits = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    const __m256i high = _mm256_srli_epi32(bits, kLow);
    const __m128i numbers = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    const uint64_t a = _mm_cvtsi128_si64(numbers), b = _mm_extract_epi64(numbers, 1);
    const float* bins = reinterpret_cast<const float*>(map.bins);
    const __m256i bin = _mm256_castps_si256(_mm256_setr_ps(bins[a & 65535], bins[a >> 16 & 65535], bins[a >> 32 & 65535],
                                                           bins[a >> 48], bins[b & 65535], bins[b >> 16 & 65535],
                                                           bins[b >> 32 & 65535], bins[b >> 48]));
    const __m256i below = _mm256_and_si256(bits, _mm256_set1_epi32((1 << kLow) - 1));
    const __m256i code = _mm256_srli_epi32(_mm256_add_epi32(bin, below), kLow);
    return kSigned ? _mm256_xor_si256(code, _mm256_srai_epi32(bits, 31)) : code;
}

TARGET(AVX2) INLINE float largest8(__m256 x) {
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

TARGET(AVX2) INLINE void put8(__m256i code, uint8_t* codes) {
    const __m256i bytes = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m256i packed = _mm256_shuffle_epi8(code, bytes);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(codes),
                     _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1)));
}

TARGET(AVX2) void decode_avx2(const uint8_t* codes, int count, const Map& map, float maximum, float* out) {
    const __m256 scale = _mm256_set1_ps(maximum);
    for (int i = 0; i < count; i += 8) _mm256_storeu_ps(out + i, _mm256_mul_ps(values8(map.values, codes + i), scale));
}

template <bool kSigned>
TARGET(AVX2)
void encode_avx2(const float* in, int count, const Map& map, float inverse, uint8_t* codes) {
    const __m256 scale = _mm256_set1_ps(inverse);
    for (int i = 0; i < count; i += 8) put8(codes8<kSigned>(_mm256_mul_ps(_mm256_loadu_ps(in + i), scale), map), codes + i);
}

// ---------------------------------------------------------------- AVX-512: the table in registers

#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl"

// How a ratio's magnitude is found by one multiplication. Ratios are sorted into 16 slots, each a factor of four wide (what is
// below 2^-31 goes to the first), so that a slot has at most one border between two decades: a threshold, infinite where there
// is none. `slope` is that of the decade up to the border and of the one above it. The line's value, t * slope + kStart, runs
// from 4 to 8 within the decade; its mantissa counts the decade's cells, from the highest bit on. Rotated right, its low byte
// is the magnitude's index (without a sign, one more), as the implicit bit of the mantissa counts the magnitudes below, and
// the top bits are the fraction of a cell. How far to rotate is in the slope's own five lowest bits, the ones that vprorvd
// reads, which moves the line by less than kNear; so close above a cell's edge, the thresholds themselves decide.
struct Lines {
    __m512 border, slope[2];
};

constexpr uint32_t kStart = 0x40638e40;  // bits of 4 - 0.4 / 0.9 and a little, so that the rounded line is never too low
constexpr uint32_t kNear = 20;           // in units of the line's last place; by trial with every float32 from 0 to 1
constexpr uint32_t kLeast = 96u << 23;   // bits of 2^-31

inline float of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// Bits of the slope of a decade (-1: of zero) in a slot that ends at `upper`, with the rotation in the lowest five.
uint32_t slope_bits(const Map& map, int decade, float upper) {
    constexpr uint32_t kBeyond = 0x53800000;  // 2^40: above any cap, whose bits are rotated to 0 and 1 then
    constexpr uint32_t kOne = 0x3ee7ae00;     // 0.4525: 1 becomes the first cell's middle
    if (map.is_signed && decade <= 0) return kBeyond | (decade < 0 ? 0 : 30);
    if (decade < 0) return 22;                                // kStart is rotated to 1
    if (decade == 0 && upper <= map.thresholds[1]) return 29;  // to 2
    if (decade == kDecades - 1) return kOne | (map.is_signed ? 16 : 15);
    double slope = 4 / 0.9;
    for (int above = decade; above < kDecades - 2; ++above) slope *= 10;
    const float single = static_cast<float>(slope);
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    bits = (bits & ~31u) | static_cast<uint32_t>((map.is_signed ? 23 : 22) - decade);
    while (of_bits(bits) < slope) bits += 32;
    while (of_bits(bits - 32) >= slope) bits -= 32;
    return bits;
}

TARGET(AVX512) Lines lines512(const Map& map) {
    float borders[kDecades];  // above it a ratio is in the decade
    for (int decade = 0; decade < kDecades; ++decade)
        borders[decade] = map.thresholds[map.is_signed ? (1 << decade) - 1 : (2 << decade) - 2];
    alignas(64) float border[16];
    alignas(64) uint32_t slope[32];
    for (int slot = 0; slot < 16; ++slot) {
        const float lower = slot ? std::ldexp(1.0f, 2 * slot - 31) : 0, upper = std::ldexp(1.0f, 2 * slot - 29);
        int decade = -1;
        while (decade + 1 < kDecades && borders[decade + 1] < lower) ++decade;
        const bool parted = decade + 1 < kDecades && borders[decade + 1] < upper;
        border[slot] = parted ? borders[decade + 1] : INFINITY;
        slope[slot] = slope_bits(map, decade, upper);
        slope[slot + 16] = slope_bits(map, decade + parted, upper);
    }
    return {_mm512_load_ps(border),
            {_mm512_castsi512_ps(_mm512_load_si512(slope)), _mm512_castsi512_ps(_mm512_load_si512(slope + 16))}};
}

// Ratios to their lines' rotated values. x: at most 1, without a sign where the map has none.
template <bool kSigned>
TARGET(AVX512) INLINE __m512i rotated512(__m512 x, const Lines& by) {
    const __m512i least = _mm512_set1_epi32(kLeast);
    __m512i bits = _mm512_castps_si512(x);
    if (kSigned) bits = _mm512_max_epu32(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)), least);
    const __m512i slot = _mm512_srli_epi32(kSigned ? bits : _mm512_max_epu32(bits, least), 24);  // 48 to 63
    const __m512 t = _mm512_castsi512_ps(bits);
    const __mmask16 above = _mm512_cmp_ps_mask(t, _mm512_permutexvar_ps(slot, by.border), _CMP_GT_OQ);
    const __m512i chosen = _mm512_mask_xor_epi32(slot, above, slot, _mm512_set1_epi32(16));
    const __m512 slope = _mm512_permutex2var_ps(by.slope[1], chosen, by.slope[0]);
    const __m512 line = _mm512_fmadd_ps(t, slope, _mm512_castsi512_ps(_mm512_set1_epi32(kStart)));
    // up to the border, a decade's last cell is twice as wide: never beyond its first half
    const __m512i cap = _mm512_set1_epi32(kSigned ? 0x40ff0000 : 0x40ff8000);
    return _mm512_rorv_epi32(_mm512_min_epu32(_mm512_castps_si512(line), cap), _mm512_castps_si512(slope));
}

template <bool kSigned>
constexpr uint32_t kUnsettled = kNear << (kSigned ? 15 : 16);  // the fraction's bits, rotated to the top, below which it is near

template <bool kSigned>
TARGET(AVX512) INLINE bool unsettled512(__m512i rotated) {
    const __mmask16 near = _mm512_cmplt_epu32_mask(rotated, _mm512_set1_epi32(kUnsettled<kSigned>));
    return !_kortestz_mask16_u8(near, near);
}

// Codes of 16 values, some of which `rotated512` may have put one too high. (No mask register here: GCC 12 writes two bytes of
// one to the stack and reads four, where the address sanitizer leaves it no other register.)
template <bool kSigned>
TARGET(AVX512)
__attribute__((noinline, cold)) void settle512(__m512i rotated, const float* in, float inverse, const Map& map, uint8_t* codes) {
    alignas(64) uint32_t lanes[16];
    _mm512_store_si512(lanes, rotated);
    for (int i = 0; i < 16; ++i) {
        if (lanes[i] >= kUnsettled<kSigned>) continue;
        const int magnitude = kSigned ? std::abs(codes[i] - 127) : codes[i];
        if (magnitude == 0 || std::fabs(in[i] * inverse) > map.thresholds[magnitude - 1]) continue;
        codes[i] = static_cast<uint8_t>(kSigned && codes[i] < 127 ? codes[i] + 1 : codes[i] - 1);
    }
}

// Between the order of memory and that of four registers whose lanes are filled in turns: a 4 by 4 transpose of groups of four
// bytes, its own inverse.
TARGET(AVX512) INLINE __m512i turned(__m512i codes) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, codes);
}

// Byte `which` of all lanes of four registers, in `turned` order.
TARGET(AVX512) INLINE __m512i bytes_of(const __m512i* lanes, int which) {
    const __m512i order = _mm512_set1_epi32(0x0c080400 + 0x01010101 * which);
    __m512i found = _mm512_shuffle_epi8(lanes[0], order);
    for (int k = 1; k < 4; ++k)
        found = _mm512_mask_shuffle_epi8(found, 0x000f000f000f000fu << 4 * k, lanes[k], order);
    return found;
}

// 64 values at `in` to codes.
template <bool kSigned>
TARGET(AVX512) INLINE void encoded(const float* in, __m512 inverse, const Lines& by, const Map& map, uint8_t* codes) {
    __m512i x[4], rotated[4];
    for (int k = 0; k < 4; ++k) {
        const __m512 ratio = _mm512_mul_ps(_mm512_loadu_ps(in + 16 * k), inverse);
        x[k] = _mm512_castps_si512(ratio);
        rotated[k] = rotated512<kSigned>(ratio, by);
    }
    __m512i code = bytes_of(rotated, 0);
    if (kSigned) {  // magnitude 128 is no negative value's
        const __m512i zero = _mm512_set1_epi8(127);
        const __mmask64 negative = _mm512_movepi8_mask(bytes_of(x, 3));
        code = _mm512_mask_sub_epi8(_mm512_add_epi8(zero, code), negative, zero, _mm512_min_epu8(code, zero));
    } else {
        code = _mm512_sub_epi8(code, _mm512_set1_epi8(1));
    }
    _mm512_storeu_si512(codes, turned(code));
    const __m512i least = _mm512_min_epu32(_mm512_min_epu32(rotated[0], rotated[1]), _mm512_min_epu32(rotated[2], rotated[3]));
    if (__builtin_expect(unsettled512<kSigned>(least), 0))
        for (int k = 0; k < 4; ++k)
            settle512<kSigned>(rotated[k], in + 16 * k, _mm512_cvtss_f32(inverse), map, codes + 16 * k);
}

template <bool kSigned>
TARGET(AVX512)
void encode_avx512(const float* in, int count, const Map& map, float inverse, uint8_t* codes) {
    const Lines by = lines512(map);
    for (int i = 0; i < count; i += kStep) encoded<kSigned>(in + i, _mm512_set1_ps(inverse), by, map, codes + i);
}

// Without VBMI the table is two planes of 16 bits. Floats 0 to 127 of it: plane[4 * w + k] has word w of 32 of them from 32k on.
struct Words {
    __m512i plane[8];
};

TARGET(AVX512) Words words(const float* table) {
    Words made;
    alignas(64) uint16_t halves[32];
    for (int w = 0; w < 2; ++w)
        for (int k = 0; k < 4; ++k) {
            for (int i = 0; i < 32; ++i) std::memcpy(&halves[i], reinterpret_cast<const char*>(table + 32 * k + i) + 2 * w, 2);
            made.plane[4 * w + k] = _mm512_load_si512(halves);
        }
    return made;
}

struct WordTables {
    Words magnitudes;  // signed: 1 to 128; that of 0 is 0
    Words low, high;   // unsigned values
};

TARGET(AVX512) WordTables word_tables(const Map& signed_map, const Map& unsigned_map) {
    return {words(signed_map.magnitudes + 1), words(unsigned_map.values), words(unsigned_map.values + 128)};
}

// Words `w` of a table's floats 0 to 127; 0 where a bit of `there` is.
TARGET(AVX512) INLINE __m512i word128(const Words& table, int w, __mmask32 there, __m512i index) {
    const __mmask32 upper = _mm512_mask_test_epi16_mask(there, index, _mm512_set1_epi16(64));
    const __m512i *plane = table.plane + 4 * w, found = _mm512_maskz_permutex2var_epi16(there, plane[0], index, plane[1]);
    return _mm512_mask_blend_epi16(upper, found, _mm512_permutex2var_epi16(plane[2], index, plane[3]));
}

// 64 codes in `turned` order to four registers of values, each divided by its block's largest magnitude; where a bit of
// `alive` is 0, a signed one is 0.
template <bool kSigned>
TARGET(AVX512) INLINE void decoded(__m512i code, __mmask64 alive, const WordTables& with, __m512* found) {
    const __m512i none = _mm512_setzero_si512();
    __m512i index = code, negative = none;
    if (kSigned) {  // a magnitude's index less one, 255 for 0
        const __m512i middle = _mm512_set1_epi8(127);
        code = _mm512_mask_blend_epi8(alive, middle, code);
        index = _mm512_sub_epi8(_mm512_abs_epi8(_mm512_sub_epi8(code, middle)), _mm512_set1_epi8(1));
        negative = _mm512_maskz_set1_epi8(_mm512_cmplt_epu8_mask(code, middle), -128);
    }
    for (int half = 0; half < 2; ++half) {
        const __m512i at = half ? _mm512_unpackhi_epi8(index, none) : _mm512_unpacklo_epi8(index, none);
        const __mmask32 lower = _mm512_testn_epi16_mask(at, _mm512_set1_epi16(128));
        __m512i word[2];
        for (int w = 0; w < 2; ++w) {
            word[w] = word128(kSigned ? with.magnitudes : with.low, w, lower, at);
            if (!kSigned) word[w] = _mm512_mask_blend_epi16(lower, word128(with.high, w, ~__mmask32{0}, at), word[w]);
        }
        const __m512i signs = half ? _mm512_unpackhi_epi8(none, negative) : _mm512_unpacklo_epi8(none, negative);
        if (kSigned) word[1] = _mm512_or_si512(word[1], signs);
        found[2 * half] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(word[0], word[1]));
        found[2 * half + 1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(word[0], word[1]));
    }
}

template <bool kSigned>
TARGET(AVX512)
void decode_avx512(const uint8_t* codes, int count, const Map& map, float maximum, float* out) {
    const WordTables with = word_tables(map, map);
    const __m512 scale = _mm512_set1_ps(maximum);
    for (int i = 0; i < count; i += kStep) {
        __m512 found[4];
        decoded<kSigned>(turned(_mm512_loadu_si512(codes + i)), ~__mmask64{0}, with, found);
        for (int k = 0; k < 4; ++k) _mm512_storeu_ps(out + i + 16 * k, _mm512_mul_ps(found[k], scale));
    }
}

// ---------------------------------------------------------------- AVX-512 VBMI: the table as four planes of bytes

#define VBMI AVX512 ",avx512vbmi"

// Floats 0 to 127 of a table, byte by byte: plane[2 * b] has byte b of the first 64, plane[2 * b + 1] of the others.
struct Planes {
    __m512i plane[8];
};

TARGET(VBMI) Planes planes(const float* table) {
    Planes made;
    alignas(64) uint8_t bytes[64];
    for (int b = 0; b < 4; ++b)
        for (int half = 0; half < 2; ++half) {
            for (int i = 0; i < 64; ++i) bytes[i] = reinterpret_cast<const uint8_t*>(table + 64 * half + i)[b];
            made.plane[2 * b + half] = _mm512_load_si512(bytes);
        }
    return made;
}

// Four registers of floats from four of bytes; register k holds bytes 4k to 4k + 3 of every lane.
TARGET(VBMI) INLINE void woven(const __m512i* bytes, __m512* out) {
    const __m512i low01 = _mm512_unpacklo_epi8(bytes[0], bytes[1]), high01 = _mm512_unpackhi_epi8(bytes[0], bytes[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(bytes[2], bytes[3]), high23 = _mm512_unpackhi_epi8(bytes[2], bytes[3]);
    out[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low01, low23));
    out[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low01, low23));
    out[2] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(high01, high23));
    out[3] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(high01, high23));
}

struct Tables {
    Planes magnitudes;  // signed: 1 to 128; that of 0 is 0
    Planes low, high;   // unsigned values
};

TARGET(VBMI) Tables tables(const Map& signed_map, const Map& unsigned_map) {
    return {planes(signed_map.magnitudes + 1),
            planes(unsigned_map.values),
            planes(unsigned_map.values + 128)};
}

TARGET(VBMI) INLINE void lookup128(const Planes& table, __mmask64 there, __m512i index, __m512i* bytes) {
    for (int b = 0; b < 4; ++b)
        bytes[b] = _mm512_maskz_permutex2var_epi8(there, table.plane[2 * b], index, table.plane[2 * b + 1]);
}

TARGET(VBMI) INLINE void lookup256(const Planes& low, const Planes& high, __m512i index, __m512* found) {
    const __mmask64 upper = _mm512_movepi8_mask(index);
    __m512i bytes[4];
    for (int b = 0; b < 4; ++b)
        bytes[b] = _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(low.plane[2 * b], index, low.plane[2 * b + 1]),
                                          _mm512_permutex2var_epi8(high.plane[2 * b], index, high.plane[2 * b + 1]));
    woven(bytes, found);
}

// 64 codes in `turned` order to four registers of values, each divided by its block's largest magnitude; where a bit of
// `alive` is 0, a signed one is 0.
template <bool kSigned>
TARGET(VBMI) INLINE void decoded(__m512i code, __mmask64 alive, const Tables& with, __m512* found) {
    if (!kSigned) return lookup256(with.low, with.high, code, found);
    const __m512i middle = _mm512_set1_epi8(127), one = _mm512_set1_epi8(1);
    const __mmask64 negative = _mm512_mask_cmplt_epu8_mask(alive, code, middle);
    const __mmask64 there = _mm512_mask_cmpneq_epu8_mask(alive, code, middle);
    const __m512i above = _mm512_sub_epi8(code, middle);
    __m512i bytes[4];
    lookup128(with.magnitudes, there, _mm512_sub_epi8(_mm512_mask_sub_epi8(above, negative, middle, code), one), bytes);
    bytes[3] = _mm512_or_si512(bytes[3], _mm512_maskz_mov_epi8(negative, _mm512_set1_epi8(-128)));
    woven(bytes, found);
}

template <bool kSigned>
TARGET(VBMI)
void decode_vbmi(const uint8_t* codes, int count, const Map& map, float maximum, float* out) {
    const Tables with = tables(map, map);
    const __m512 scale = _mm512_set1_ps(maximum);
    for (int i = 0; i < count; i += kStep) {
        __m512 found[4];
        decoded<kSigned>(turned(_mm512_loadu_si512(codes + i)), ~__mmask64{0}, with, found);
        for (int k = 0; k < 4; ++k) _mm512_storeu_ps(out + i + 16 * k, _mm512_mul_ps(found[k], scale));
    }
}

#endif  // x86-64

#if defined(__aarch64__)

// ---------------------------------------------------------------- NEON: the table by loads, four values at once

void decode_neon(const uint8_t* codes, int count, const Map& map, float maximum, float* out) {
    for (int i = 0; i < count; i += 4) {
        const uint8_t* c = codes + i;
        const float found[4] = {map.values[c[0]], map.values[c[1]], map.values[c[2]], map.values[c[3]]};
        vst1q_f32(out + i, vmulq_n_f32(vld1q_f32(found), maximum));
    }
}

#endif

// ---------------------------------------------------------------- the update

INLINE float larger(float a, float b) { return b > a ? b : a; }

// Updates `count` weights; leaves the new states in `m` and `v`, and the largest magnitude of each in `maxima`. Adam's come
// times beta, and lack the factor `rest`.
template <Kind kind>
INLINE void update(const Parameter& at, float* __restrict p, const float* __restrict gradient, float* __restrict m,
                   float* __restrict v, int count, float* maxima) {
    float first = 0, second = 0;
#pragma omp simd reduction(max : first, second)
    for (int i = 0; i < count; ++i) {
        float weight = p[i];
        float g = gradient[i] * at.scale;
        if (kind != kLion) g = g + at.decay * weight;
        weight = weight * at.keep;
        if (kind == kAdam) {
            const float a = m[i] + g;
            const float b = v[i] + g * g;
            m[i] = a;
            v[i] = b;
            weight = weight - at.rate * (a / (std::sqrt(b) + at.epsilon));
        } else if (kind == kMomentum || kind == kNesterov) {
            const float a = at.plain ? g : m[i] * at.beta1 + g * at.rest1;
            m[i] = a;
            weight = weight - at.rate * (kind == kNesterov ? g + at.beta1 * a : a);
        } else if (kind == kLion) {
            const float u = m[i] * at.beta1 + g * at.rest1;
            m[i] = m[i] * at.beta2 + g * at.rest2;
            weight = weight - at.rate * static_cast<float>((u > 0) - (u < 0));
        } else {
            const float b = v[i] + g * g;
            v[i] = b;
            weight = weight - at.rate * (g / (std::sqrt(b) + at.epsilon));
        }
        p[i] = weight;
        if (kind != kAdagrad) first = larger(first, std::fabs(m[i]));
        if (kind == kAdam || kind == kAdagrad) second = larger(second, v[i]);
    }
    maxima[0] = first;
    maxima[1] = second;
}

using Decode = void (*)(const uint8_t*, int, const Map&, float, float*);
using Encode = void (*)(const float*, int, const Map&, float, uint8_t*);
using Update = void (*)(const Parameter&, float*, const float*, float*, float*, int, float*);
using Sound = bool (*)(const float*, int64_t);
constexpr int kRoom = 4096;

struct Path {
    Decode decode_signed, decode_unsigned;
    Encode encode_signed, encode_unsigned;
    Update update[5];
    Sound sound;
    // Adam's step of one whole block in fewer passes, where there is one: `prepare` fills kRoom bytes that `adam` needs, which
    // gives false where the block is left to the functions above. The second is for gradients neither scaled nor decayed.
    void (*prepare)(void* room, const Map& with_sign, const Map& without);
    bool (*adam[2])(const Parameter& at, const void* room, int size, int64_t number);
};

INLINE uint32_t magnitude_bits(const float* at) {
    uint32_t bits;
    std::memcpy(&bits, at, 4);
    return bits & 0x7fffffffu;
}

// Eight runs at once: a core gets more from memory where it reads several streams.
INLINE bool sound_inline(const float* gradient, int64_t count) {
    constexpr int kRuns = 8, kWidth = 16;
    const int64_t run = count / (kRuns * kWidth) * kWidth;
    uint32_t found[kRuns][kWidth] = {}, largest = 0;
    for (int64_t i = 0; i < run; i += kWidth)
        for (int r = 0; r < kRuns; ++r)
            for (int k = 0; k < kWidth; ++k) {
                const uint32_t bits = magnitude_bits(gradient + r * run + i + k);
                found[r][k] = bits > found[r][k] ? bits : found[r][k];
            }
    for (int r = 0; r < kRuns; ++r)
        for (int k = 0; k < kWidth; ++k) largest = found[r][k] > largest ? found[r][k] : largest;
    for (int64_t i = kRuns * run; i < count; ++i) {
        const uint32_t bits = magnitude_bits(gradient + i);
        largest = bits > largest ? bits : largest;
    }
    return largest < kTooLarge;
}

#define UPDATES(name, attribute)                                                                                          \
    template <Kind kind>                                                                                                   \
    attribute void update_##name(const Parameter& at, float* p, const float* g, float* m, float* v, int n, float* maxima) { \
        update<kind>(at, p, g, m, v, n, maxima);                                                                            \
    }                                                                                                                       \
    attribute bool sound_##name(const float* gradient, int64_t count) { return sound_inline(gradient, count); }

#define NAMED(name) \
    {update_##name<kAdam>, update_##name<kMomentum>, update_##name<kNesterov>, update_##name<kLion>, update_##name<kAdagrad>}

UPDATES(plain, )
void encode_any(const float* in, int n, const Map& map, float s, uint8_t* c) { encode_plain(in, n, map, s, c); }
#if defined(__aarch64__)
const Path kPlain = {decode_neon, decode_neon, encode_any, encode_any, NAMED(plain), sound_plain, nullptr, {}};
#else
void decode_any(const uint8_t* c, int n, const Map& map, float s, float* out) { decode_plain(c, n, map, s, out); }
const Path kPlain = {decode_any, decode_any, encode_any, encode_any, NAMED(plain), sound_plain, nullptr, {}};
#endif

#if defined(__x86_64__)
UPDATES(avx2, TARGET(AVX2))
UPDATES(avx512, TARGET(AVX512 ",prefer-vector-width=512"))
#endif

// What a block's values are multiplied by to have ratios. Where the largest is too small to have a normal inverse, the
// values are first brought up by a power of two, which changes no ratio.
float inverse_of(float maximum, float* values, int count) {
    if (!(maximum > 0)) return 0;
    if (maximum >= kLeastTop) return 1 / maximum;
    for (int i = 0; i < count; ++i) values[i] *= 0x1p64f;
    return 1 / (maximum * 0x1p64f);
}

// One block: `codes` may be a short last one, which is worked on in a copy that is filled up with zeros.
void block(const Path& path, Kind kind, const Parameter& at, const Map& signed_map, const Map& unsigned_map, int64_t start,
           int size, int64_t number) {
    alignas(64) float m[kLargestBlock], v[kLargestBlock], p[kLargestBlock], g[kLargestBlock];
    alignas(64) uint8_t codes[2][kLargestBlock];
    const int count = static_cast<int>(at.count - start < size ? at.count - start : size);
    const int padded = (count + kStep - 1) / kStep * kStep;
    float* weight = at.weight + start;
    const float* gradient = at.gradient + start;
    uint8_t* first = at.first ? at.first + start : nullptr;
    uint8_t* second = at.second ? at.second + start : nullptr;
    const bool whole = padded == count;
    if (!whole) {
        std::memset(p, 0, 4 * padded);
        std::memset(g, 0, 4 * padded);
        std::memcpy(p, weight, 4 * count);
        std::memcpy(g, gradient, 4 * count);
        weight = p;
        gradient = g;
        for (int state = 0; state < 2; ++state) {
            uint8_t*& given = state ? second : first;
            if (!given) continue;
            std::memset(codes[state], state ? 0 : 127, padded);
            std::memcpy(codes[state], given, count);
            given = codes[state];
        }
    }
    const bool adam = kind == kAdam;
    if (first && !at.plain) path.decode_signed(first, padded, signed_map, at.first_max[number] * (adam ? at.beta1 : 1), m);
    if (second) path.decode_unsigned(second, padded, unsigned_map, at.second_max[number] * (adam ? at.beta2 : 1), v);
    if (adam) {
        const bool some = at.second_max[number] > 0;
        for (int i = 0; i < padded; ++i) m[i] = some && second[i] ? m[i] : 0;
    }
    float maxima[2];
    path.update[kind](at, weight, gradient, m, v, padded, maxima);
    for (int state = 0; state < 2; ++state) {
        uint8_t* given = state ? second : first;
        if (!given) continue;
        const float inverse = inverse_of(maxima[state], state ? v : m, padded);
        if (state)
            path.encode_unsigned(v, padded, unsigned_map, inverse, given);
        else
            path.encode_signed(m, padded, signed_map, inverse, given);
        (state ? at.second_max : at.first_max)[number] = maxima[state] * (!adam ? 1 : state ? at.rest2 : at.rest1);
    }
    if (!whole) {
        std::memcpy(at.weight + start, weight, 4 * count);
        if (first) std::memcpy(at.first + start, first, count);
        if (second) std::memcpy(at.second + start, second, count);
    }
}

#if defined(__x86_64__)

constexpr int kLine = 16, kPage = 1024;  // floats

INLINE void ahead(const void* at) { __builtin_prefetch(at, 0, 2); }

// A whole block of one parameter, for Adam's fused steps: the operations of `block` in two passes. First the moments, which
// leaves shuffles and multiplications alone, then the weights, whose roots and quotients take their time while the moments
// are encoded.
struct Whole {
    float* weight;
    const float* gradient;
    uint8_t *first, *second;
    float *first_max, *second_max;
    int size;

    __attribute__((always_inline)) Whole(const Parameter& at, int of, int64_t number)
        : weight(at.weight + number * of),
          gradient(at.gradient + number * of),
          first(at.first + number * of),
          second(at.second + number * of),
          first_max(at.first_max + number),
          second_max(at.second_max + number),
          size(of) {
        // Two passes touch too much for the processor to read ahead by itself: here the pages of the block after the next
        // one, so that their addresses are known in time, and beside the arithmetic every line of the next one.
        for (int page = 0; page < size; page += kPage) {
            ahead(weight + 2 * size + page);
            ahead(gradient + 2 * size + page);
        }
        ahead(first + 2 * size);
        ahead(second + 2 * size);
    }

    __attribute__((always_inline)) void inputs_ahead(int i) const {
        for (int line = 0; line < kStep; line += kLine) ahead(gradient + size + i + line);
        ahead(first + size + i);
        ahead(second + size + i);
    }

    __attribute__((always_inline)) void weights_ahead(int i) const {
        for (int line = 0; line < kStep; line += kLine) ahead(weight + size + i + line);
    }

    // Takes the moments' largest magnitudes, and gives what they are multiplied by to have ratios. False, with nothing
    // changed, where a block's largest magnitude has no normal inverse.
    bool topped(float first_top, float second_top, const Parameter& at, float* inverse) const {
        if ((first_top > 0 && first_top < kLeastTop) || (second_top > 0 && second_top < kLeastTop)) return false;
        *first_max = first_top * at.rest1;
        *second_max = second_top * at.rest2;
        inverse[0] = first_top > 0 ? 1 / first_top : 0;
        inverse[1] = second_top > 0 ? 1 / second_top : 0;
        return true;
    }
};

// What the two passes hand on: M and V of a block's values, and the largest magnitudes; and what all moments need.
struct Moments512 {
    float *m, *v;
    __m512 first, second, scale, decay, carry1, carry2;
    __mmask64 some;
};

TARGET(AVX512) INLINE Moments512 begun512(const Parameter& at, const Whole& of, float* m, float* v) {
    const __m512 none = _mm512_setzero_ps();
    return {m,
            v,
            none,
            none,
            _mm512_set1_ps(at.scale),
            _mm512_set1_ps(at.decay),
            _mm512_set1_ps(*of.first_max * at.beta1),
            _mm512_set1_ps(*of.second_max * at.beta2),
            *of.second_max > 0 ? ~__mmask64{0} : 0};
}

// The moments of 64 values from decoded ones. kBare: the gradient is neither scaled nor decayed, which at a scale of 1 and a
// decay of 0 gives the same bytes.
template <bool kBare>
TARGET(AVX512) INLINE void moments512(const Whole& of, int i, const __m512* a, const __m512* b, Moments512& to) {
    for (int k = 0; k < 4; ++k) {
        const int j = i + 16 * k;
        __m512 g = _mm512_loadu_ps(of.gradient + j);
        if (!kBare) g = _mm512_add_ps(_mm512_mul_ps(g, to.scale), _mm512_mul_ps(to.decay, _mm512_loadu_ps(of.weight + j)));
        const __m512 new1 = _mm512_add_ps(_mm512_mul_ps(a[k], to.carry1), g);
        const __m512 new2 = _mm512_add_ps(_mm512_mul_ps(b[k], to.carry2), _mm512_mul_ps(g, g));
        _mm512_store_ps(to.m + j, new1);
        _mm512_store_ps(to.v + j, new2);
        to.first = _mm512_max_ps(to.first, _mm512_abs_ps(new1));
        to.second = _mm512_max_ps(to.second, new2);
    }
}

// What all blocks' fused steps need.
template <typename WithTables>
struct Fused512 {
    const Map &signed_map, &unsigned_map;
    Lines signed_lines, unsigned_lines;
    WithTables tables;
};

// The second pass.
template <typename WithTables>
TARGET(AVX512)
INLINE bool weights512(const Parameter& at, const Whole& of, const Moments512& with, const Fused512<WithTables>& by) {
    const __m512 keep = _mm512_set1_ps(at.keep), epsilon = _mm512_set1_ps(at.epsilon), rate = _mm512_set1_ps(at.rate);
    float inverse[2];
    if (!of.topped(_mm512_reduce_max_ps(with.first), _mm512_reduce_max_ps(with.second), at, inverse)) return false;
    const __m512 inverse1 = _mm512_set1_ps(inverse[0]), inverse2 = _mm512_set1_ps(inverse[1]);
    const Lines signed_lines = by.signed_lines, unsigned_lines = by.unsigned_lines;
    for (int i = 0; i < of.size; i += kStep) {
        of.weights_ahead(i);
        __m512 step[4];
        for (int k = 0; k < 4; ++k) step[k] = _mm512_sqrt_ps(_mm512_load_ps(with.v + i + 16 * k));
        encoded<true>(with.m + i, inverse1, signed_lines, by.signed_map, of.first + i);
        for (int k = 0; k < 4; ++k) {
            const __m512 below = _mm512_add_ps(step[k], epsilon);
            step[k] = _mm512_mul_ps(rate, _mm512_div_ps(_mm512_load_ps(with.m + i + 16 * k), below));
        }
        encoded<false>(with.v + i, inverse2, unsigned_lines, by.unsigned_map, of.second + i);
        for (int k = 0; k < 4; ++k) {
            const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(of.weight + i + 16 * k), keep);
            _mm512_storeu_ps(of.weight + i + 16 * k, _mm512_sub_ps(kept, step[k]));
        }
    }
    return true;
}

// What `Path::prepare` and `Path::adam` are, for tables of either kind.
#define ADAM512(name, features, WithTables, made)                                                               \
    TARGET(features) void prepare_##name(void* room, const Map& with_sign, const Map& without) {                 \
        static_assert(sizeof(Fused512<WithTables>) <= kRoom);                                                    \
        const WithTables from = made(with_sign, without);                                                        \
        new (room) Fused512<WithTables>{with_sign, without, lines512(with_sign), lines512(without), from};       \
    }                                                                                                            \
    template <bool kBare>                                                                                        \
    TARGET(features)                                                                                             \
    bool adam_##name(const Parameter& at, const void* room, int size, int64_t number) {                          \
        const Fused512<WithTables>& by = *static_cast<const Fused512<WithTables>*>(room);                        \
        const Whole of(at, size, number);                                                                        \
        alignas(64) float m[kLargestBlock], v[kLargestBlock];                                                    \
        Moments512 to = begun512(at, of, m, v);                                                                  \
        for (int i = 0; i < size; i += kStep) {                                                                  \
            __m512 a[4], b[4];                                                                                   \
            of.inputs_ahead(i);                                                                                  \
            const __m512i squares = turned(_mm512_loadu_si512(of.second + i));                                   \
            const __mmask64 alive = _mm512_mask_test_epi8_mask(to.some, squares, squares);                       \
            decoded<true>(turned(_mm512_loadu_si512(of.first + i)), alive, by.tables, a);                        \
            decoded<false>(squares, alive, by.tables, b);                                                        \
            moments512<kBare>(of, i, a, b, to);                                                                  \
        }                                                                                                        \
        return weights512(at, of, to, by);                                                                       \
    }

ADAM512(avx512, AVX512, WordTables, word_tables)
ADAM512(vbmi, VBMI, Tables, tables)

// The same by eight values, without tables of its own.
struct Fused256 {
    const Map &signed_map, &unsigned_map;
};

void prepare_avx2(void* room, const Map& with_sign, const Map& without) { new (room) Fused256{with_sign, without}; }

template <bool kBare>
TARGET(AVX2)
bool adam_avx2(const Parameter& at, const void* room, int size, int64_t number) {
    alignas(64) float m[kLargestBlock], v[kLargestBlock];
    const Fused256& by = *static_cast<const Fused256*>(room);
    const Whole of(at, size, number);
    const __m256 scale = _mm256_set1_ps(at.scale), decay = _mm256_set1_ps(at.decay), none = _mm256_setzero_ps();
    const __m256 carry1 = _mm256_set1_ps(*of.first_max * at.beta1), carry2 = _mm256_set1_ps(*of.second_max * at.beta2);
    const __m256 dead = _mm256_set1_ps(*of.second_max > 0 ? 0 : 1);  // decoded squares up to it have no momentum
    const __m256 unsign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 first = none, second = none;
    for (int i = 0; i < size; i += kStep) {
        of.inputs_ahead(i);
        for (int j = i; j < i + kStep; j += 8) {
            const __m256 squares = values8(by.unsigned_map.values, of.second + j);
            const __m256 decoded = _mm256_mul_ps(values8(by.signed_map.values, of.first + j), carry1);
            const __m256 a = _mm256_and_ps(decoded, _mm256_cmp_ps(squares, dead, _CMP_GT_OQ));
            __m256 g = _mm256_loadu_ps(of.gradient + j);
            if (!kBare) g = _mm256_add_ps(_mm256_mul_ps(g, scale), _mm256_mul_ps(decay, _mm256_loadu_ps(of.weight + j)));
            const __m256 new1 = _mm256_add_ps(a, g);
            const __m256 new2 = _mm256_add_ps(_mm256_mul_ps(squares, carry2), _mm256_mul_ps(g, g));
            _mm256_store_ps(m + j, new1);
            _mm256_store_ps(v + j, new2);
            first = _mm256_max_ps(first, _mm256_and_ps(new1, unsign));
            second = _mm256_max_ps(second, new2);
        }
    }
    float inverse[2];
    if (!of.topped(largest8(first), largest8(second), at, inverse)) return false;
    const __m256 inverse1 = _mm256_set1_ps(inverse[0]), inverse2 = _mm256_set1_ps(inverse[1]);
    const __m256 keep = _mm256_set1_ps(at.keep), epsilon = _mm256_set1_ps(at.epsilon), rate = _mm256_set1_ps(at.rate);
    for (int i = 0; i < size; i += kStep) {
        of.weights_ahead(i);
        for (int j = i; j < i + kStep; j += 8) {
            const __m256 a = _mm256_load_ps(m + j), b = _mm256_load_ps(v + j);
            const __m256 step = _mm256_mul_ps(rate, _mm256_div_ps(a, _mm256_add_ps(_mm256_sqrt_ps(b), epsilon)));
            put8(codes8<true>(_mm256_mul_ps(a, inverse1), by.signed_map), of.first + j);
            put8(codes8<false>(_mm256_mul_ps(b, inverse2), by.unsigned_map), of.second + j);
            _mm256_storeu_ps(of.weight + j, _mm256_sub_ps(_mm256_mul_ps(_mm256_loadu_ps(of.weight + j), keep), step));
        }
    }
    return true;
}

const Path kAvx2 = {decode_avx2, decode_avx2, encode_avx2<true>, encode_avx2<false>, NAMED(avx2), sound_avx2,
                    prepare_avx2, {adam_avx2<false>, adam_avx2<true>}};
const Path kAvx512 = {decode_avx512<true>, decode_avx512<false>, encode_avx512<true>, encode_avx512<false>, NAMED(avx512),
                      sound_avx512, prepare_avx512, {adam_avx512<false>, adam_avx512<true>}};
const Path kVbmi = {decode_vbmi<true>, decode_vbmi<false>, encode_avx512<true>, encode_avx512<false>, NAMED(avx512),
                    sound_avx512, prepare_vbmi, {adam_vbmi<false>, adam_vbmi<true>}};

#endif

const Path* path_of(int name) {
    switch (name) {
        case 0:
            return &kPlain;
#if defined(__x86_64__)
        case 1:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kAvx2 : nullptr;
        case 2:
        case 3: {
            const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
            if (!wide || (name == 3 && !__builtin_cpu_supports("avx512vbmi"))) return nullptr;
            return name == 3 ? &kVbmi : &kAvx512;
        }
#endif
        default:
            return nullptr;
    }
}

}  // namespace

extern "C" {

// Whether this processor can run path `name`: 0 any processor (on Arm NEON, which every AArch64 has), 1 AVX2, 2 AVX-512,
// 3 AVX-512 with VBMI.
int edgeq_optim_can(int name) { return path_of(name) != nullptr; }

int edgeq_optim_largest_block() { return kLargestBlock; }

// Of `Parameter` and of the arithmetic: edgeq/optim/native.py, which has the same number, takes no library of another.
int edgeq_optim_version() { return 3; }

// Number of the first parameter whose gradient is infinite, NaN or too large to square, or -1. Nothing is written.
int edgeq_optim_unsound(int name, const Parameter* parameters, int count, int threads) {
    const Path& path = *path_of(name);
    constexpr int64_t kPiece = 1 << 16;
    int found = count;
    for (int i = 0; i < count && found == count; ++i) {
        const int64_t pieces = (parameters[i].count + kPiece - 1) / kPiece;
        bool sound = true;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(&& : sound) if (pieces > 1)
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const int64_t start = piece * kPiece, left = parameters[i].count - start;
            sound = path.sound(parameters[i].gradient + start, left < kPiece ? left : kPiece) && sound;
        }
        if (!sound) found = i;
    }
    return found == count ? -1 : found;
}

// Piece `piece` of `pieces` of one step of all parameters: a run of their blocks, which do not depend on each other.
void edgeq_optim_piece(int name, int kind, const Parameter* parameters, const int64_t* first_block, int count, int size,
                       const Map* signed_map, const Map* unsigned_map, int piece, int pieces) {
    const Path& path = *path_of(name);
    const int64_t total = first_block[count], end = total * (piece + 1) / pieces;
    int of = 0;
    const bool fused = path.prepare && kind == kAdam;
    alignas(64) unsigned char room[kRoom];
    if (fused) path.prepare(room, *signed_map, *unsigned_map);
    for (int64_t number = total * piece / pieces; number < end; ++number) {
        while (first_block[of + 1] <= number) ++of;
        const Parameter& at = parameters[of];
        const int64_t own = number - first_block[of];
        const bool whole = (own + 1) * size <= at.count;
        if (fused && whole && path.adam[at.scale == 1 && at.decay == 0](at, room, size, own)) continue;
        block(path, static_cast<Kind>(kind), at, *signed_map, *unsigned_map, own * size, size, own);
    }
}

// One step, its pieces shared among `threads`.
void edgeq_optim_step(int name, int kind, const Parameter* parameters, const int64_t* first_block, int count, int size,
                      const Map* signed_map, const Map* unsigned_map, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1 && first_block[count] > 1)
    for (int piece = 0; piece < threads; ++piece)
        edgeq_optim_piece(name, kind, parameters, first_block, count, size, signed_map, unsigned_map, piece, threads);
}

// The codes of `count` values in blocks of `size`, and back.
void edgeq_optim_encode(int name, const float* in, int64_t count, int size, const Map* map, uint8_t* codes, float* maxima) {
    const Path& path = *path_of(name);
    for (int64_t start = 0, number = 0; start < count; start += size, ++number) {
        alignas(64) float padded[kLargestBlock] = {};
        alignas(64) uint8_t made[kLargestBlock];
        const int here = static_cast<int>(count - start < size ? count - start : size);
        std::memcpy(padded, in + start, 4 * here);
        float maximum = 0;
        for (int i = 0; i < here; ++i) maximum = larger(maximum, std::fabs(padded[i]));
        const float inverse = inverse_of(maximum, padded, here);
        (map->is_signed ? path.encode_signed : path.encode_unsigned)(padded, (here + kStep - 1) / kStep * kStep, *map, inverse,
                                                                     made);
        std::memcpy(codes + start, made, here);
        maxima[number] = maximum;
    }
}

void edgeq_optim_decode(int name, const uint8_t* codes, const float* maxima, int64_t count, int size, const Map* map,
                        float* out) {
    const Path& path = *path_of(name);
    for (int64_t start = 0, number = 0; start < count; start += size, ++number) {
        alignas(64) float made[kLargestBlock];
        alignas(64) uint8_t padded[kLargestBlock] = {};
        const int here = static_cast<int>(count - start < size ? count - start : size);
        std::memcpy(padded, codes + start, here);
        (map->is_signed ? path.decode_signed : path.decode_unsigned)(padded, (here + kStep - 1) / kStep * kStep, *map,
                                                                     maxima[number], made);
        std::memcpy(out + start, made, 4 * here);
    }
}
}
