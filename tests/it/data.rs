//! Made-up data that behaves like the real thing: texts that break naive encodings, and vectors
//! that lie in clusters on a few dimensions, as embeddings do. (Gaussian noise would make every
//! neighbour equally far, and any search look good or bad for no reason.)

use refrain::types::{Attributes, SpaceId, Vector};

/// Components of the test vectors.
pub const DIMENSION: usize = 48;

/// Texts that break naive encodings, query languages and terminals.
pub const CRAFTED: &[&str] = &[
    "plain",
    "a|b",
    "{a}",
    "{a}:entry",
    "*",
    "@text:*",
    "'single' \"double\" `back`",
    "a, b, c",
    "line\nline\r\nline",
    "a\0b",
    "\u{202e}right to left\u{202c}",
    "\u{1f980}\u{10348} four bytes",
    "-(not) [1 2] ~maybe %fuzzy% $param => \\",
    "' OR 1=1; DROP TABLE entries; --",
    "e\u{301} and \u{e9}",
];

/// `SplitMix64`: small, seeded, and good enough to place test points.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// In [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    fn row(&mut self, length: usize) -> Vec<f32> {
        (0..length).map(|_| self.unit()).collect()
    }
}

/// The space of the test vectors.
pub fn space() -> SpaceId {
    SpaceId::derive(&[b"test", b"clusters"])
}

/// `count` distinct vectors of [`DIMENSION`] components.
pub fn clustered(seed: u64, count: usize) -> Vec<Vector> {
    clustered_in(DIMENSION, seed, count)
}

/// `count` distinct vectors in about `count / 8` clusters on 12 of the dimensions.
pub fn clustered_in(dimension: usize, seed: u64, count: usize) -> Vec<Vector> {
    const RANK: usize = 12;
    let mut random = Random(seed);
    let basis: Vec<Vec<f32>> = (0..RANK).map(|_| random.row(dimension)).collect();
    let centers: Vec<Vec<f32>> = (0..count.div_ceil(8)).map(|_| random.row(RANK)).collect();
    (0..count)
        .map(|number| {
            let center = &centers[number % centers.len()];
            let mut values = random.row(dimension);
            for value in &mut values {
                *value *= 0.02;
            }
            for (axis, middle) in basis.iter().zip(center) {
                let weight = middle + 0.3 * random.unit();
                values.iter_mut().zip(axis).for_each(|(value, a)| *value += weight * a);
            }
            Vector::new(values).expect("a weighted sum of random rows has a direction")
        })
        .collect()
}

/// The cosine of two vectors in double precision.
pub fn cosine(a: &Vector, b: &Vector) -> f64 {
    let dot = |a: &Vector, b: &Vector| -> f64 {
        a.as_slice().iter().zip(b.as_slice()).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Attributes out of pairs.
pub fn attributes(pairs: &[(&str, &str)]) -> Attributes {
    Attributes::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())), 16).expect("test pairs are valid")
}
