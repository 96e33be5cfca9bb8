// What a device has to offer; arguments are checked before they come here.
#pragma once

#include <vector>

#include "token_vectors.h"

namespace ft2 {

enum class Format { half, bfloat16, float32 };

// Calls run with a value of the format's type.
template <class Run>
void with_format(Format format, const Run& run) {
  switch (format) {
    case Format::half:
      return run(Half{});
    case Format::bfloat16:
      return run(BFloat16{});
    case Format::float32:
      return run(Float{});
  }
}

// Bounds are (2, bounds_parts): all lower ones, then all upper ones.
struct Restriction {
  TokenVectors values;
  Format format;
  float* bounds;
  uint32_t bounds_parts;
  int64_t* corrected;
  uint32_t corrected_parts;
  Marks marks;
};

constexpr uint8_t outside_bounds_flag = 1;
constexpr uint8_t wrong_sum_flag = 2;

// An output to check, and what it is checked against: the bounds of its requests; or the expected
// sum of each row and group of columns; or what gives that sum, the layer's input and, for each
// group, weights[group][0 .. input.columns - 1] and, at input.columns, the constant.
struct Check {
  Matrix output;
  Matrix input;
  const float* against;
  uint32_t parts;  // Of the bounds, or groups of columns.
};

struct Checks {
  std::vector<Check> all;
  Format format;
  uint8_t* flags;
  uint32_t flag_count;
  double roundoffs;
};

// The values of kept outputs that restriction would correct, to be counted.
struct Counts {
  std::vector<Check> all;
  Format format;
  int64_t* corrected;
  uint32_t corrected_parts;
  Marks marks;
};

void restrict_values(const Restriction& call, int32_t device);
void record_values(const Restriction& call, int32_t device);
void count_outside(const Counts& counts, int32_t device);
void check_bounds(const Checks& checks, int32_t device);
void check_sums(const Checks& checks, int32_t device);
void check_products(const Checks& checks, int32_t device);

}  // namespace ft2
