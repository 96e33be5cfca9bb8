// The operations on the CPU.

#include <algorithm>

#include "checksum.h"
#include "operations.h"
#include "range_restriction.h"

// Compiles a function for several levels of x86-64; the loader picks what the processor has. Other
// processors have their vectors in the baseline.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__)
#define FT2_EVERY_LEVEL \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FT2_EVERY_LEVEL
#endif

namespace ft2 {
namespace {

// Small enough for the first cache, so that a second pass is cheap, and for counts of 16 bits.
constexpr int64_t block_size = 4096;
// Values per thread below which another thread costs more than it gives (torch's own number).
constexpr int64_t grain = 32768;

template <class Format>
FT2_INLINE Span<Format> span_of(const typename Format::Bits* values, int64_t count) {
  Span<Format> span;
  for (int64_t index = 0; index < count; ++index) {
    span.add(rank_of<Format>(values[index]));
  }
  return span;
}

// Returns how many of at most block_size values it corrected.
template <class Format>
FT2_INLINE int64_t clip(typename Format::Bits* values, int64_t count,
                        const Bounds<Format>& bounds) {
  using Bits = typename Format::Bits;
  Bits wrong = 0;
  for (int64_t index = 0; index < count; ++index) {
    const Bits value = values[index];
    const Bits restricted = bounds.restricted(value);
    wrong = static_cast<Bits>(wrong + Bits{differ<Format>(value, restricted)});
    values[index] = restricted;
  }
  return wrong;
}

// Returns how many of at most block_size values it corrected; the span is of the finite values, and
// of the zeros that NaN became.
template <class Format>
FT2_INLINE int64_t make_finite(typename Format::Bits* values, int64_t count, Span<Format>& span) {
  using Bits = typename Format::Bits;
  Bits wrong = 0;
  Span<Format> seen;
  for (int64_t index = 0; index < count; ++index) {
    const Bits value = values[index];
    const Bits finite = made_finite<Format>(value);
    wrong = static_cast<Bits>(wrong + Bits{!is_finite<Format>(value)});
    const bool infinite = (value & Format::magnitude) == Format::infinity;
    const auto rank = rank_of<Format>(finite);
    // An infinite value leaves the span as it is.
    const auto as_lowest = infinite ? seen.lowest : rank;
    const auto as_highest = infinite ? seen.highest : rank;
    seen.lowest = std::min(seen.lowest, as_lowest);
    seen.highest = std::max(seen.highest, as_highest);
    values[index] = finite;
  }
  span = seen;
  return wrong;
}

template <class Format>
FT2_INLINE ColumnSums sums_of(const typename Format::Bits* values, int64_t count) {
  double sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum, squares)
  for (int64_t index = 0; index < count; ++index) {
    const double value = to_float<Format>(values[index]);
    sum += value;
    squares += value * value;
  }
  ColumnSums sums;
  sums.sum = sum;
  sums.squares = squares;
  return sums;
}

template <class Format>
FT2_INLINE double product_of(const typename Format::Bits* values, const float* weights,
                             int64_t count) {
  double product = 0;
#pragma omp simd reduction(+ : product)
  for (int64_t index = 0; index < count; ++index) {
    product += static_cast<double>(to_float<Format>(values[index])) * weights[index];
  }
  return product;
}

// Returns how many values are not as they would be after clipping.
template <class Format>
FT2_INLINE int64_t count_wrong(const typename Format::Bits* values, int64_t count,
                               const Bounds<Format>& bounds) {
  int64_t wrong = 0;
  for (int64_t index = 0; index < count; ++index) {
    wrong += differ<Format>(values[index], bounds.restricted(values[index]));
  }
  return wrong;
}

// Clones are made of functions, not of templates, so each format has its own.
template <class Format>
struct Loops;

#define FT2_LOOPS(FORMAT)                                                                        \
  FT2_EVERY_LEVEL Span<FORMAT> span_of_##FORMAT(const FORMAT::Bits* values, int64_t count) {     \
    return span_of<FORMAT>(values, count);                                                       \
  }                                                                                              \
  FT2_EVERY_LEVEL int64_t clip_##FORMAT(FORMAT::Bits* values, int64_t count,                     \
                                        const Bounds<FORMAT>& bounds) {                          \
    return clip<FORMAT>(values, count, bounds);                                                  \
  }                                                                                              \
  FT2_EVERY_LEVEL int64_t make_finite_##FORMAT(FORMAT::Bits* values, int64_t count,              \
                                               Span<FORMAT>& span) {                             \
    return make_finite<FORMAT>(values, count, span);                                             \
  }                                                                                              \
  FT2_EVERY_LEVEL ColumnSums sums_of_##FORMAT(const FORMAT::Bits* values, int64_t count) {       \
    return sums_of<FORMAT>(values, count);                                                       \
  }                                                                                              \
  FT2_EVERY_LEVEL double product_of_##FORMAT(const FORMAT::Bits* values, const float* weights,   \
                                             int64_t count) {                                    \
    return product_of<FORMAT>(values, weights, count);                                           \
  }                                                                                              \
  FT2_EVERY_LEVEL int64_t count_wrong_##FORMAT(const FORMAT::Bits* values, int64_t count,        \
                                               const Bounds<FORMAT>& bounds) {                   \
    return count_wrong<FORMAT>(values, count, bounds);                                           \
  }                                                                                              \
  template <>                                                                                    \
  struct Loops<FORMAT> {                                                                         \
    static constexpr auto count_wrong = count_wrong_##FORMAT;                                    \
    static constexpr auto span_of = span_of_##FORMAT;                                            \
    static constexpr auto clip = clip_##FORMAT;                                                  \
    static constexpr auto make_finite = make_finite_##FORMAT;                                    \
    static constexpr auto sums_of = sums_of_##FORMAT;                                            \
    static constexpr auto product_of = product_of_##FORMAT;                                      \
  }

FT2_LOOPS(Half);
FT2_LOOPS(BFloat16);
FT2_LOOPS(Float);

// Calls work(block, count) on each block of a vector, adjacent or not, and returns the sum.
template <class Bits, class Work>
int64_t over_blocks(const TokenVectors& vectors, uint32_t vector, const Work& work) {
  Bits* const values = static_cast<Bits*>(vectors.data) + vectors.offset(vector);
  const int64_t stride = vectors.column_stride;
  int64_t total = 0;
  for (int64_t begin = 0; begin < vectors.columns; begin += block_size) {
    const int64_t count = std::min(block_size, vectors.columns - begin);
    if (stride == 1 || vectors.columns == 1) {
      total += work(values + begin, count);
      continue;
    }
    Bits copy[block_size];
    for (int64_t index = 0; index < count; ++index) {
      copy[index] = values[(begin + index) * stride];
    }
    total += work(copy, count);
    for (int64_t index = 0; index < count; ++index) {
      values[(begin + index) * stride] = copy[index];
    }
  }
  return total;
}

void add(int64_t* counter, int64_t amount) {
  if (amount != 0) {
    __atomic_fetch_add(counter, amount, __ATOMIC_RELAXED);
  }
}

// Nearly all blocks hold nothing to clip: those are only read.
template <class Format>
int64_t clip_if_needed(typename Format::Bits* values, int64_t count,
                       const Bounds<Format>& bounds) {
  return bounds.hold(Loops<Format>::span_of(values, count))
             ? 0
             : Loops<Format>::clip(values, count, bounds);
}

// Replaces the number if the new one is `better`.
template <class Better>
void improve(float* number, float candidate, const Better& better) {
  float current;
  __atomic_load(number, &current, __ATOMIC_RELAXED);
  while (better(candidate, current) &&
         !__atomic_compare_exchange(number, &current, &candidate, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
  }
}

// Calls work(vector, values, count, bounds) on the blocks of vectors; it returns its corrections.
template <class Format, class Work>
void over_restricted(const Restriction& call, uint32_t begin, uint32_t end, const Work& work) {
  const TokenVectors& vectors = call.values;
  const uint32_t per_bounds = vectors.count / call.bounds_parts;
  const uint32_t per_counter = vectors.count / call.corrected_parts;
  Bounds<Format> bounds;
  uint32_t bounds_are_of = UINT32_MAX;
  for (uint32_t vector = begin; vector < end; ++vector) {
    const uint32_t part = vector / per_bounds;
    if (part != bounds_are_of) {
      bounds = Bounds<Format>(call.bounds[part], call.bounds[call.bounds_parts + part]);
      bounds_are_of = part;
    }
    const int64_t wrong = over_blocks<typename Format::Bits>(
        vectors, vector, [&](typename Format::Bits* values, int64_t count) -> int64_t {
          return work(values, count, bounds);
        });
    if (wrong != 0 && call.marks.counted(vector, vectors.count)) {
      add(call.corrected + vector / per_counter, wrong);
    }
  }
}

template <class Format>
void record_vectors(const Restriction& call, uint32_t begin, uint32_t end) {
  const TokenVectors& vectors = call.values;
  const uint32_t per_bounds = vectors.count / call.bounds_parts;
  const uint32_t per_counter = vectors.count / call.corrected_parts;
  for (uint32_t vector = begin; vector < end; ++vector) {
    Span<Format> span;
    const int64_t wrong = over_blocks<typename Format::Bits>(
        vectors, vector, [&](typename Format::Bits* values, int64_t count) -> int64_t {
          Span<Format> seen = Loops<Format>::span_of(values, count);
          const int64_t changed =
              seen.finite() ? 0 : Loops<Format>::make_finite(values, count, seen);
          span.lowest = std::min(span.lowest, seen.lowest);
          span.highest = std::max(span.highest, seen.highest);
          return changed;
        });
    if (!call.marks.counted(vector, vectors.count)) {
      continue;
    }
    add(call.corrected + vector / per_counter, wrong);
    if (span.lowest <= span.highest) {
      float* const low = call.bounds + vector / per_bounds;
      improve(low, learned_bound<Format>(span.lowest),
              [](float candidate, float current) { return candidate < current; });
      improve(low + call.bounds_parts, learned_bound<Format>(span.highest),
              [](float candidate, float current) { return candidate > current; });
    }
  }
}

// Runs work(begin, end) over all of them, on torch's threads if it is worth it.
template <class Work>
void in_parallel(uint32_t count, int64_t values, const Work& work) {
  if (values < 2 * grain || count == 1) {
    work(0, count);
    return;
  }
  const int64_t each = std::max<int64_t>(1, grain / (values / count));
  require_success(torch_parallel_for(
      0, count, each,
      [](int64_t begin, int64_t end, void* context) {
        (*static_cast<const Work*>(context))(static_cast<uint32_t>(begin),
                                             static_cast<uint32_t>(end));
      },
      const_cast<Work*>(&work)));
}

template <class Bits>
const Bits* row(const Matrix& matrix, uint32_t vector) {
  return static_cast<const Bits*>(matrix.data) + vector * matrix.stride;
}

template <class Format>
void count_vector(const Counts& counts, const Check& check, uint32_t vector) {
  const Matrix& output = check.output;
  const uint32_t part = vector / (output.count / check.parts);
  const Bounds<Format> bounds(check.against[part], check.against[check.parts + part]);
  const auto* const values = row<typename Format::Bits>(output, vector);
  if (!bounds.hold(Loops<Format>::span_of(values, output.columns)) &&
      counts.marks.counted(vector, output.count)) {
    add(counts.corrected + vector / (output.count / counts.corrected_parts),
        Loops<Format>::count_wrong(values, output.columns, bounds));
  }
}

void flag(const Checks& checks, const Check& check, uint32_t vector, uint8_t kind) {
  const uint32_t per_flag = check.output.count / checks.flag_count;
  __atomic_fetch_or(checks.flags + vector / per_flag, kind, __ATOMIC_RELAXED);
}

// Calls vector_is_wrong(check, vector) on all of them, and flags.
template <class IsWrong>
void check_all(const Checks& checks, uint8_t kind, const IsWrong& is_wrong) {
  for (const Check& check : checks.all) {
    const int64_t columns = int64_t{check.output.columns} + check.input.columns;
    const int64_t values = check.output.count * columns;
    in_parallel(check.output.count, values, [&](uint32_t begin, uint32_t end) {
      for (uint32_t vector = begin; vector < end; ++vector) {
        if (is_wrong(check, vector)) {
          flag(checks, check, vector, kind);
        }
      }
    });
  }
}

// expected(group) gives the sum that a group of columns should have.
template <class Format, class Expected>
bool sums_disagree(const Check& check, uint32_t vector, double tolerance,
                   const Expected& expected) {
  const auto* const values = row<typename Format::Bits>(check.output, vector);
  const uint32_t columns = check.output.columns / check.parts;
  for (uint32_t group = 0; group < check.parts; ++group) {
    const ColumnSums sums = Loops<Format>::sums_of(values + group * columns, columns);
    if (!sums.agree(expected(group), tolerance)) {
      return true;
    }
  }
  return false;
}

}  // namespace

void restrict_values(const Restriction& call, int32_t) {
  with_format(call.format, [&](auto format) {
    using Type = decltype(format);
    in_parallel(call.values.count, call.values.count * call.values.columns,
                [&](uint32_t begin, uint32_t end) {
                  over_restricted<Type>(call, begin, end, clip_if_needed<Type>);
                });
  });
}

void count_outside(const Counts& counts, int32_t) {
  with_format(counts.format, [&](auto format) {
    using Type = decltype(format);
    for (const Check& check : counts.all) {
      const Matrix& output = check.output;
      in_parallel(output.count, int64_t{output.count} * output.columns,
                  [&](uint32_t begin, uint32_t end) {
                    for (uint32_t vector = begin; vector < end; ++vector) {
                      count_vector<Type>(counts, check, vector);
                    }
                  });
    }
  });
}

void record_values(const Restriction& call, int32_t) {
  with_format(call.format, [&](auto format) {
    in_parallel(call.values.count, call.values.count * call.values.columns,
                [&](uint32_t begin, uint32_t end) {
                  record_vectors<decltype(format)>(call, begin, end);
                });
  });
}

void check_bounds(const Checks& checks, int32_t) {
  with_format(checks.format, [&](auto format) {
    using Type = decltype(format);
    check_all(checks, outside_bounds_flag, [](const Check& check, uint32_t vector) {
      const uint32_t part = vector / (check.output.count / check.parts);
      const Bounds<Type> bounds(check.against[part], check.against[check.parts + part]);
      const auto* const values = row<typename Type::Bits>(check.output, vector);
      return !bounds.hold(Loops<Type>::span_of(values, check.output.columns));
    });
  });
}

void check_sums(const Checks& checks, int32_t) {
  with_format(checks.format, [&](auto format) {
    using Type = decltype(format);
    const double tolerance = tolerance_of<Type>(checks.roundoffs);
    check_all(checks, wrong_sum_flag, [&](const Check& check, uint32_t vector) {
      const float* const expected = check.against + int64_t{vector} * check.parts;
      return sums_disagree<Type>(check, vector, tolerance,
                                 [&](int64_t group) { return double{expected[group]}; });
    });
  });
}

void check_products(const Checks& checks, int32_t) {
  with_format(checks.format, [&](auto format) {
    using Type = decltype(format);
    const double tolerance = tolerance_of<Type>(checks.roundoffs);
    check_all(checks, wrong_sum_flag, [&](const Check& check, uint32_t vector) {
      const auto* const input = row<typename Type::Bits>(check.input, vector);
      const int64_t inputs = check.input.columns;
      return sums_disagree<Type>(check, vector, tolerance, [&](int64_t group) {
        const float* const weights = check.against + group * (inputs + 1);
        return Loops<Type>::product_of(input, weights, inputs) + weights[inputs];
      });
    });
  });
}

}  // namespace ft2

FT2_EXPORT int32_t ft2_register() {
  const AOTITorchError error = ft2::define_operations();
  return error ? error : ft2::implement_operations("CPU");
}
