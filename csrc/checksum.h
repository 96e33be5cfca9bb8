// The checksum test of a linear layer's outputs.
//
// For y = W x + b the sum over the columns of y is c.x + sum(b), where c holds the sums of W over
// its rows. A 16-bit output, summed in fp32, is rounded once: by at most u |y_i|, independently of
// the others, so that the sums differ by about u ||y||; at most 1.8 u ||y|| was seen. 8 u ||y|| is
// beyond that, and any larger difference an error. An fp32 output has the rounding of all its
// products in it, which grows with the root of their number: 25 u ||y|| was seen with 4096.
// Sums are kept in fp64, in which the squares of fp32 numbers neither overflow nor vanish.
#pragma once

#include <cmath>

#include "number_formats.h"

namespace ft2 {

struct ColumnSums {
  double sum = 0;
  double squares = 0;

  FT2_INLINE void add(double value) {
    sum += value;
    squares += value * value;
  }

  // Written so that NaN flags; the squares are infinite only if a value is.
  FT2_INLINE bool agree(double expected, double tolerance) const {
    const bool finite = squares <= 1.7976931348623157e308;
    return finite && fabs(sum - expected) <= tolerance * sqrt(squares);
  }
};

template <class Format>
FT2_INLINE double tolerance_of(double roundoffs) {
  return roundoffs * Format::unit_roundoff;
}

}  // namespace ft2
