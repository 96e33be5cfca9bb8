// Where the values of a tensor lie: one vector of columns per token, with any strides.
#pragma once

#include <cstdint>

#include "number_formats.h"

namespace ft2 {

// Vectors are counted row by row. What belongs to whole requests or rows (bounds, counters, marks)
// is shared among them evenly: with n parts, each part has the next count / n vectors.
struct TokenVectors {
  void* data;
  uint32_t count;
  uint32_t inner;  // Vectors of a row.
  int64_t columns;
  int64_t outer_stride, inner_stride, column_stride;

  FT2_INLINE int64_t offset(uint32_t vector) const {
    return vector / inner * outer_stride + vector % inner * inner_stride;
  }
};

// Marks the vectors whose corrections count; without data all do.
struct Marks {
  const uint8_t* data;
  uint32_t count;
  uint32_t inner;
  int64_t outer_stride, inner_stride;

  FT2_INLINE bool counted(uint32_t vector, uint32_t vectors) const {
    if (data == nullptr) {
      return true;
    }
    const uint32_t mark = vector / (vectors / count);
    return data[mark / inner * outer_stride + mark % inner * inner_stride] != 0;
  }
};

// A layer's kept output, one vector per row, all at one distance.
struct Matrix {
  const void* data;
  uint32_t count;
  uint32_t columns;
  int64_t stride;
};

}  // namespace ft2
