//! The exact search: every live row of one namespace under one attribute set, against one query.
//!
//! Envelope, for rows of 384 floats (1,536 bytes) and one core that reads about 10 GB/s:
//!
//! | rows   | bytes read | expected, idle machine     |
//! |--------|------------|----------------------------|
//! | 1,000  | 1.5 MB     | 0.15 ms; from cache 0.04   |
//! | 10,000 | 15 MB      | 1.5 ms; from cache 0.4     |
//! | 50,000 | 77 MB      | 8 ms; fits no cache        |
//!
//! The arithmetic (two operations a float, fused, 8 or 16 lanes) is faster than the memory from a
//! few thousand rows on, so there is nothing to win by threads of its own for one query: other
//! queries run on the other reader threads. `cargo bench --bench store` checks the table. Past
//! about 100,000 rows in one namespace an approximate index is the better tool; this engine has
//! none by design.
//!
//! A row whose attributes differ costs a comparison of 16 bytes, not a dot product.

use pulp::{Arch, Simd, WithSimd};

use super::{
    top::{Claim, Top},
    vectors::{Segment, Snapshot},
};
use crate::{
    store::Candidate,
    types::{Similarity, Timestamp},
};

/// What a scan looks for.
pub(super) struct Wanted<'a> {
    /// Unit length, of the rows' dimension.
    pub(super) query: &'a [f32],
    /// Rows must carry exactly this attribute token.
    pub(super) token: u128,
    /// Rows that end at or before this moment are not seen.
    pub(super) now: Timestamp,
    /// How many to return at most.
    pub(super) count: usize,
}

/// The nearest rows, nearest first; `None` if `give_up` said so between two segments.
pub(super) fn nearest(snapshot: &Snapshot, wanted: &Wanted<'_>, give_up: impl Fn() -> bool) -> Option<Vec<Candidate>> {
    let arch = Arch::new();
    let mut top = Top::new(wanted.count);
    for (number, segment) in snapshot.segments.iter().enumerate() {
        if give_up() {
            return None;
        }
        arch.dispatch(ScanSegment { segment, number, wanted, top: &mut top });
    }
    Some(top.into_best().into_iter().filter_map(|claim| candidate(snapshot, claim)).collect())
}

fn candidate(snapshot: &Snapshot, claim: Claim) -> Option<Candidate> {
    let segment = &snapshot.segments[claim.segment];
    let label = &segment.labels[claim.row];
    Some(Candidate {
        id: label.id,
        // Unit vectors have a finite dot product, so nothing is dropped here.
        similarity: Similarity::new(claim.similarity)?,
        prompt: label.prompt.clone(),
        category: label.category.clone(),
        created: label.created,
        expires: segment.expires[claim.row],
    })
}

struct ScanSegment<'a> {
    segment: &'a Segment,
    number: usize,
    wanted: &'a Wanted<'a>,
    top: &'a mut Top,
}

impl WithSimd for ScanSegment<'_> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "must be compiled into the function that enables the instruction set")]
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { segment, number, wanted, top } = self;
        let rows = segment.values.chunks_exact(wanted.query.len());
        for (row, values) in rows.enumerate() {
            if segment.tokens[row] != wanted.token || segment.expires[row] <= wanted.now {
                continue;
            }
            let similarity = dot(simd, values, wanted.query);
            if top.may_enter(similarity) {
                top.offer(Claim { similarity, id: segment.labels[row].id, segment: number, row });
            }
        }
    }
}

/// Four sums run side by side: one alone would wait for each fused multiply-add to finish.
#[expect(clippy::inline_always, reason = "must be compiled into the function that enables the instruction set")]
#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, a_rest) = S::as_simd_f32s(a);
    let (b_lanes, b_rest) = S::as_simd_f32s(b);
    let (a_fours, a_ones) = pulp::as_arrays::<4, _>(a_lanes);
    let (b_fours, b_ones) = pulp::as_arrays::<4, _>(b_lanes);
    let mut sums = [simd.splat_f32s(0.0); 4];
    for (a_four, b_four) in a_fours.iter().zip(b_fours) {
        for ((sum, &x), &y) in sums.iter_mut().zip(a_four).zip(b_four) {
            *sum = simd.mul_add_e_f32s(x, y, *sum);
        }
    }
    for (&x, &y) in a_ones.iter().zip(b_ones) {
        sums[0] = simd.mul_add_e_f32s(x, y, sums[0]);
    }
    let sum = simd.add_f32s(simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3]));
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    simd.reduce_sum_f32s(sum) + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Dot<'a>(&'a [f32], &'a [f32]);

    impl WithSimd for Dot<'_> {
        type Output = f32;

        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            dot(simd, self.0, self.1)
        }
    }

    proptest! {
        /// Dimensions that fill no lane, some lanes, and all of them.
        #[test]
        fn equals_the_sum_of_products(pairs in proptest::collection::vec((-1.0_f32..1.0, -1.0_f32..1.0), 1..200)) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let exact: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            let found = Arch::new().dispatch(Dot(&a, &b));
            prop_assert!((f64::from(found) - exact).abs() < 1e-4, "{found} instead of {exact}");
        }
    }
}
