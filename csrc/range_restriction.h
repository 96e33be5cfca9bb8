// The arithmetic of range restriction, one value at a time (FT2, HPDC '25, sections 4.2 and 4.3).
//
// Later tokens: NaN becomes 0, then every value is clipped to its bounds. First token: NaN becomes
// 0, an infinite value the type's largest of its sign, and the finite ones make the bounds.
#pragma once

#include "number_formats.h"

namespace ft2 {

// The ranks that a run of values spans; empty at first.
template <class Format>
struct Span {
  using Rank = typename Format::Rank;
  Rank lowest = static_cast<Rank>(Format::magnitude);
  Rank highest = static_cast<Rank>(Format::sign);

  FT2_INLINE void add(Rank rank) {
    lowest = rank < lowest ? rank : lowest;
    highest = rank > highest ? rank : highest;
  }

  FT2_INLINE bool within(Rank low, Rank high) const { return low <= lowest && highest <= high; }

  // Whether no value of the run is NaN or infinite.
  FT2_INLINE bool finite() const {
    using Bits = typename Format::Bits;
    return within(rank_of<Format>(static_cast<Bits>(Format::sign | Format::largest)),
                  rank_of<Format>(Format::largest));
  }
};

// What one request's values of a layer are clipped to.
template <class Format>
struct Bounds {
  using Bits = typename Format::Bits;
  using Rank = typename Format::Rank;
  Rank low, high;
  Bits at_low, at_high, at_nan;

  Bounds() = default;

  // Clipping in fp32 and rounding once to the type is the same as clipping to the rounded bounds.
  // No bound lies beyond the type's range; one that is NaN bounds nothing else than infinity; a
  // lower bound above the upper one gives way to it.
  FT2_INLINE Bounds(float lower, float upper) {
    at_low = within_range(lower, Format::sign);
    at_high = within_range(upper, Bits{0});
    if (upper < lower) {
      at_low = at_high;
      lower = upper;
    }
    // Either zero lies within a bound that is zero: what needs no clipping stays as it is.
    low = is_zero(lower) ? rank_of<Format>(Format::sign) : rank_of<Format>(at_low);
    high = is_zero(upper) ? rank_of<Format>(Bits{0}) : rank_of<Format>(at_high);
    at_nan = 0 < low ? at_low : 0 > high ? at_high : Bits{0};
  }

  FT2_INLINE bool hold(const Span<Format>& span) const { return span.within(low, high); }

  // NaN ranks beyond the infinities, so that it is never held.
  FT2_INLINE bool hold(Bits value) const {
    const Rank rank = rank_of<Format>(value);
    return low <= rank && rank <= high;
  }

  FT2_INLINE Bits restricted(Bits value) const {
    const Rank rank = rank_of<Format>(value);
    Bits result = rank < low ? at_low : value;
    result = rank > high ? at_high : result;
    return (value & Format::magnitude) > Format::infinity ? at_nan : result;
  }

 private:
  static FT2_INLINE bool is_zero(float bound) { return (bits_of(bound) & Float::magnitude) == 0; }

  static FT2_INLINE Bits within_range(float bound, Bits sign_of_nan) {
    const Bits bits = nearest<Format>(bound);
    const Bits size = static_cast<Bits>(bits & Format::magnitude);
    const bool is_nan = size > Format::infinity;
    const Bits sign = is_nan ? sign_of_nan : static_cast<Bits>(bits & Format::sign);
    return size < Format::infinity ? bits : static_cast<Bits>(sign | Format::largest);
  }
};

// Whether a value was corrected to another one: a zero that changed its sign was not.
template <class Format>
FT2_INLINE bool differ(typename Format::Bits value, typename Format::Bits restricted) {
  return value != restricted && ((value | restricted) & Format::magnitude) != 0;
}

template <class Format>
FT2_INLINE bool is_finite(typename Format::Bits value) {
  return (value & Format::magnitude) < Format::infinity;
}

// NaN as 0 and infinity as the type's largest number; a finite value as it is.
template <class Format>
FT2_INLINE typename Format::Bits made_finite(typename Format::Bits value) {
  using Bits = typename Format::Bits;
  const Bits size = static_cast<Bits>(value & Format::magnitude);
  const Bits saturated = static_cast<Bits>((value & Format::sign) | Format::largest);
  return size > Format::infinity ? Bits{0} : size == Format::infinity ? saturated : value;
}

// A learned bound in fp32. Of the two zeros it is always +0, whatever the order of the values.
template <class Format>
FT2_INLINE float learned_bound(typename Format::Rank rank) {
  return to_float<Format>(pattern_of<Format>(rank)) + 0.0f;
}

}  // namespace ft2
