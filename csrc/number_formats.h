// The number formats of layer outputs, as bit patterns: their order, their way to fp32 and back.
//
// Nearly all of it is integer arithmetic, so that it is defined for every pattern, depends on no
// flushing of subnormals, and vectorises without conversions.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FT2_INLINE __host__ __device__ __forceinline__
#else
#define FT2_INLINE inline __attribute__((always_inline))
#endif

namespace ft2 {

template <class BitsType, class RankType, int fraction>
struct NumberFormat {
  using Bits = BitsType;
  using Rank = RankType;
  static constexpr int fraction_bits = fraction;
  static constexpr Bits sign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  static constexpr Bits magnitude = static_cast<Bits>(~sign);
  static constexpr Bits infinity = static_cast<Bits>(magnitude & ~((Bits{1} << fraction) - 1));
  static constexpr Bits largest = static_cast<Bits>(infinity - 1);
  // Half the distance from 1 to the next number: the relative error of one rounding.
  static constexpr double unit_roundoff = 0.5 / (uint32_t{1} << fraction);
};

struct Half : NumberFormat<uint16_t, int16_t, 10> {};
struct BFloat16 : NumberFormat<uint16_t, int16_t, 7> {};
struct Float : NumberFormat<uint32_t, int32_t, 23> {};

FT2_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

FT2_INLINE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Orders patterns as integers: -NaN < -Inf < ... < -0 < +0 < ... < +Inf < +NaN.
template <class Format>
FT2_INLINE typename Format::Rank rank_of(typename Format::Bits bits) {
  using Rank = typename Format::Rank;
  const Rank pattern = static_cast<Rank>(bits);
  const Rank negative = static_cast<Rank>(pattern >> (8 * sizeof(Rank) - 1));
  return static_cast<Rank>(pattern ^ (negative & static_cast<Rank>(Format::magnitude)));
}

// The pattern of a rank.
template <class Format>
FT2_INLINE typename Format::Bits pattern_of(typename Format::Rank rank) {
  using Bits = typename Format::Bits;
  // The mapping is its own inverse.
  return static_cast<Bits>(rank_of<Format>(static_cast<Bits>(rank)));
}

// The number nearest to an fp32 number, ties to even; NaN stays NaN.
template <class Format>
FT2_INLINE typename Format::Bits nearest(float value);

template <>
FT2_INLINE uint32_t nearest<Float>(float value) {
  return bits_of(value);
}

template <>
FT2_INLINE uint16_t nearest<BFloat16>(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & Float::magnitude) > Float::infinity) {
    return static_cast<uint16_t>((bits >> 16) | 0x40);  // Quiet, so that no NaN becomes infinity.
  }
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <>
FT2_INLINE uint16_t nearest<Half>(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & Half::sign;
  const uint32_t size = bits & Float::magnitude;
  const uint32_t normal = (size + 0xfff + ((size >> 13) & 1) - 0x38000000) >> 13;
  // Next to 1/2, fp32 numbers lie as far apart as subnormal ones do here: adding it rounds.
  const uint32_t subnormal = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
  // 2^-14 is the least normal number; 65520 lies halfway from the largest to the next power of two.
  const uint32_t finite = size < 0x38800000 ? subnormal : normal;
  const uint32_t special = size > Float::infinity ? Half::infinity | 0x200 : Half::infinity;
  return static_cast<uint16_t>(sign | (size < 0x477ff000 ? finite : special));
}

// The fp32 number that equals a pattern's; always exact.
template <class Format>
FT2_INLINE float to_float(typename Format::Bits bits);

template <>
FT2_INLINE float to_float<Float>(uint32_t bits) {
  return float_of(bits);
}

template <>
FT2_INLINE float to_float<BFloat16>(uint16_t bits) {
  return float_of(static_cast<uint32_t>(bits) << 16);
}

template <>
FT2_INLINE float to_float<Half>(uint16_t bits) {
  const uint32_t size = bits & Half::magnitude;
  const uint32_t sign = static_cast<uint32_t>(bits & Half::sign) << 16;
  // 2^24 times the fraction is a whole number, and so is a subnormal one.
  const uint32_t subnormal = bits_of(static_cast<float>(static_cast<int32_t>(size)) * 0x1p-24f);
  const uint32_t normal = (size << 13) + 0x38000000;
  const uint32_t special = (size << 13) | Float::infinity;
  const uint32_t finite = size < 0x400 ? subnormal : normal;
  return float_of(sign | (size >= Half::infinity ? special : finite));
}

}  // namespace ft2
