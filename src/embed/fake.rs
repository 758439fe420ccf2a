//! A model without weights, for tests and for trying things out: deterministic, instant, and with
//! neighbors where a test wants them.
//!
//! A text's vector follows from its words alone:
//!
//! - **Words.** Each word (split at white space, lower case) has a random unit vector seeded by its
//!   hash; a text's is the sum of its words', scaled to unit length. Texts that share `s` of `n` and
//!   `m` words have a similarity of about `s / sqrt(n * m)`, unrelated texts about 0 (give or take
//!   .05 in 384 dimensions). Word order does not count.
//! - **Planted neighbors.** If the last word is `~` and a number between -1 and 1, the text lies at
//!   exactly that similarity to the text before it: `"how do I pay ~0.93"` is at .93 to
//!   `"how do I pay"`. A label makes more of them: `~0.93#a` and `~0.93#b` are two different
//!   neighbors, at about `.93 * .93` to each other.
//!
//! Words that hold U+FFFD are those its vocabulary lacks.
//!
//! A text has as many tokens as words, and two special ones. Words past the limit are not read.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::model::{Model, ModelError, Session, Spec};
use crate::types::PartsHasher;

/// Special tokens around a text.
const SPECIAL_TOKENS: usize = 2;

/// The fake model; clones share hooks and call log.
#[derive(Clone)]
pub struct Fake {
    spec: Spec,
    hooks: Arc<Hooks>,
}

/// How the next inference goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// It returns an error.
    Error,
    /// It panics.
    Panic,
}

#[derive(Default)]
struct Hooks {
    /// Time an inference takes: once, and for each padded token.
    latency: (Duration, Duration),
    logs_calls: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    calls: Vec<Vec<Arc<str>>>,
    mishaps: VecDeque<Mishap>,
    held: bool,
    arrived: usize,
    sessions: usize,
}

impl Default for Fake {
    fn default() -> Self {
        let spec = Spec {
            name: "fake".into(),
            revision: "1".into(),
            pooling: "mean".into(),
            quantization: "none".into(),
            dimension: 384,
            tokens_max: 256,
            query_prefix: String::new(),
            passage_prefix: String::new(),
        };
        Self { spec, hooks: Arc::default() }
    }
}

impl Fake {
    /// A fake of 384 dimensions that reads 256 tokens and has no prefixes.
    pub fn new() -> Self {
        Self::default()
    }

    /// A fake of another shape.
    pub fn with_spec(spec: Spec) -> Self {
        Self { spec, hooks: Arc::default() }
    }

    /// Lets every inference take `per_batch`, and `per_token` for each padded token.
    #[must_use]
    pub fn with_latency(self, per_batch: Duration, per_token: Duration) -> Self {
        let hooks = Hooks { latency: (per_batch, per_token), logs_calls: self.hooks.logs_calls, ..Hooks::default() };
        Self { hooks: Arc::new(hooks), ..self }
    }

    /// Records the texts of every inference, for [`Fake::calls`].
    #[must_use]
    pub fn with_call_log(self) -> Self {
        let hooks = Hooks { latency: self.hooks.latency, logs_calls: true, ..Hooks::default() };
        Self { hooks: Arc::new(hooks), ..self }
    }

    /// The texts of every inference so far, if recorded.
    pub fn calls(&self) -> Vec<Vec<Arc<str>>> {
        self.lock().calls.clone()
    }

    /// How many sessions were opened.
    pub fn sessions(&self) -> usize {
        self.lock().sessions
    }

    /// Makes the next inference that is not yet spoken for go wrong.
    pub fn fail_next(&self, mishap: Mishap) {
        self.lock().mishaps.push_back(mishap);
    }

    /// Holds inferences back, before they begin, until [`Fake::release`].
    pub fn hold(&self) {
        self.lock().held = true;
    }

    /// Lets inferences go on.
    pub fn release(&self) {
        self.lock().held = false;
        self.hooks.changed.notify_all();
    }

    /// Blocks until `count` inferences have arrived since the model was made, whether held back
    /// or not; false if they do not come within `patience`.
    pub fn await_arrivals(&self, count: usize, patience: Duration) -> bool {
        let waited = self.hooks.changed.wait_timeout_while(self.lock(), patience, |state| state.arrived < count);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// The vector of a text, shape `[dimension]`, unit length.
    pub fn vector(&self, text: &str) -> Vec<f32> {
        let words: Vec<_> = text.split_whitespace().collect();
        let words_max = self.spec.tokens_max.saturating_sub(SPECIAL_TOKENS).max(1);
        let planted = words.split_last().and_then(|(last, base)| Some((similarity(last)?, base)));
        match planted {
            Some((similarity, base)) if !base.is_empty() => {
                let base = self.bag(&base[..base.len().min(words_max)]);
                let mut away = self.direction("text", text);
                // The part of a random direction that is at right angles to the base.
                let along = dot(&base, &away);
                away.iter_mut().zip(&base).for_each(|(a, b)| *a -= along * b);
                let away = unit(away);
                let rest = (1.0 - similarity * similarity).sqrt();
                base.iter().zip(&away).map(|(b, a)| similarity * b + rest * a).collect()
            }
            _ => self.bag(&words[..words.len().min(words_max)]),
        }
    }

    fn bag(&self, words: &[&str]) -> Vec<f32> {
        let mut sum = vec![0.0; self.spec.dimension];
        for word in words {
            let direction = self.direction("word", &word.to_lowercase());
            sum.iter_mut().zip(direction).for_each(|(s, d)| *s += d);
        }
        if words.is_empty() { self.direction("word", "") } else { unit(sum) }
    }

    /// A random unit vector that belongs to `seed`.
    fn direction(&self, kind: &str, seed: &str) -> Vec<f32> {
        let mut hasher = PartsHasher::new("refrain fake model v1");
        hasher.part(kind.as_bytes()).part(seed.as_bytes());
        let mut bytes = vec![0; self.spec.dimension * 4];
        blake3::Hasher::new_keyed(&hasher.finish()).finalize_xof().fill(&mut bytes);
        let centered = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32 / (u32::MAX as f32) - 0.5;
        unit(bytes.chunks_exact(4).map(centered).collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.hooks.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The similarity that a last word such as `~0.93` or `~0.93#label` asks for.
fn similarity(word: &str) -> Option<f32> {
    let number = word.strip_prefix('~')?.split('#').next()?;
    number.parse().ok().filter(|similarity| (-1.0..=1.0).contains(similarity))
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn unit(mut values: Vec<f32>) -> Vec<f32> {
    let norm = dot(&values, &values).sqrt();
    for value in &mut values {
        *value /= norm;
    }
    values
}

impl Model for Fake {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn count_tokens(&self, text: &str) -> Result<usize, ModelError> {
        Ok(text.split_whitespace().count() + SPECIAL_TOKENS)
    }

    fn knows(&self, text: &str) -> Result<bool, ModelError> {
        Ok(!text.contains(char::REPLACEMENT_CHARACTER))
    }

    fn session(&self) -> Result<Box<dyn Session>, ModelError> {
        self.lock().sessions += 1;
        Ok(Box::new(FakeSession(self.clone())))
    }
}

struct FakeSession(Fake);

impl Session for FakeSession {
    fn embed(&mut self, texts: &[Arc<str>]) -> Result<Vec<Vec<f32>>, ModelError> {
        let Self(model) = self;
        let mut state = model.lock();
        state.arrived += 1;
        if model.hooks.logs_calls {
            state.calls.push(texts.to_vec());
        }
        model.hooks.changed.notify_all();
        let held = model.hooks.changed.wait_while(state, |state| state.held);
        let mishap = held.unwrap_or_else(PoisonError::into_inner).mishaps.pop_front();
        match mishap {
            Some(Mishap::Error) => return Err(ModelError::Inference("a planned failure".into())),
            #[expect(clippy::panic, reason = "a test asked for it, to see that workers survive it")]
            Some(Mishap::Panic) => panic!("a planned panic"),
            None => {}
        }
        let longest = texts.iter().map(|text| text.split_whitespace().count() + SPECIAL_TOKENS).max().unwrap_or(0);
        let (per_batch, per_token) = model.hooks.latency;
        let latency = per_batch + per_token * (longest * texts.len()) as u32;
        if !latency.is_zero() {
            std::thread::sleep(latency);
        }
        Ok(texts.iter().map(|text| model.vector(text)).collect())
    }
}
