//! Texts and their limits, the fake's rule, and that batches do not matter.

use super::*;
use crate::error::Fault;

fn similarity(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vector_does_not_depend_on_its_batch() {
    let texts = ["one", "two words", "three words here", "a much longer text that goes on for quite a few words more"];
    let alone = Room::new(settings());
    let together = Room::new(settings());
    let batch = together.embed(&texts).await.unwrap();
    for (text, in_batch) in texts.iter().zip(batch) {
        let by_itself = alone.embed(&[text]).await.unwrap();
        assert_eq!(by_itself[0].vector, in_batch.vector);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_name_the_text_at_fault() {
    let room = Room::new(Settings { text_bytes_max: 20, texts_max: 2, ..settings() });
    let field = |error: Error| error.field().map(str::to_owned);
    let long = room.embed(&["short", "a text of more than twenty bytes"]).await.unwrap_err();
    assert_eq!(field(long).as_deref(), Some("texts[1]"));
    let empty = room.embed(&[" \n"]).await.unwrap_err();
    assert_eq!(field(empty).as_deref(), Some("texts[0]"));
    let many = room.embed(&["a", "b", "c"]).await.unwrap_err();
    assert_eq!(field(many).as_deref(), Some("texts"));
    let long = room.embed_new("a text of more than twenty bytes").await.unwrap_err();
    assert_eq!(field(long).as_deref(), Some("text"));
    let none = room.embed(&[]).await.unwrap_err();
    assert_eq!(field(none).as_deref(), Some("texts"));
    assert!(room.model.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_and_cuts_are_reported_also_from_the_memo() {
    let room = Room::new(settings());
    let long = "word ".repeat(300);
    for memoized in [false, true] {
        let embedded = room.embed(&["three short words", &long]).await.unwrap();
        assert_eq!((embedded[0].tokens, embedded[0].truncated), (5, false));
        assert_eq!((embedded[1].tokens, embedded[1].truncated), (302, true));
        assert!(embedded.iter().all(|embedded| embedded.memoized == memoized));
    }
    // Large enough to be counted off the runtime's threads.
    let large = "word ".repeat(5_000);
    assert_eq!(room.embed_new(&large).await.unwrap().tokens, 5_002);
}

#[tokio::test(flavor = "multi_thread")]
async fn fits_tells_whether_the_model_reads_it_all() {
    let spec = Spec { tokens_max: 16, passage_prefix: "passage: ".into(), ..Fake::new().spec().clone() };
    let room = Room::with(Fake::with_spec(spec), Engine::default(), settings());
    let fits = |text: &str| room.embedder.fits(text).unwrap();
    assert!(fits("abc"), "by its bytes");
    assert!(fits("some words that are more than sixteen bytes"), "by its tokens");
    assert!(!fits("a b c d e f g h i j k l m n o p q"));
    assert!(fits("a b c d e f g h i j k l m"), "thirteen, the prefix and two special ones");
    assert!(!fits("a b c d e f g h i j k l m n"), "one more");
    assert!(fits("äöü"), "outside ASCII it is counted");
    assert!(!fits(&"x".repeat(16 * 32)), "too long to be worth counting");
    assert!(!fits("a \u{fffd} b"), "a word outside the vocabulary is not read");
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_reach_the_model() {
    let spec = Spec { query_prefix: "query: ".into(), ..Fake::new().spec().clone() };
    let room = Room::with(Fake::with_spec(spec).with_call_log(), Engine::default(), settings());
    let embedded = room.embed(&["how do I pay"]).await.unwrap();
    assert_eq!(room.model.calls()[0], [Arc::<str>::from("query: how do I pay")]);
    assert_eq!(embedded[0].tokens, 7);
}

#[test]
fn the_fake_plants_neighbors_where_they_are_wanted() {
    let fake = Fake::new();
    let base = fake.vector("how do I reset my password");
    for wanted in [1.0, 0.97, 0.9, 0.5, 0.0, -0.3] {
        let planted = fake.vector(&format!("how do I reset my password ~{wanted}"));
        assert!((similarity(&base, &planted) - wanted).abs() < 1e-4);
        assert!((similarity(&planted, &planted) - 1.0).abs() < 1e-4);
    }
    let (a, b) = (fake.vector("x y z ~0.9#a"), fake.vector("x y z ~0.9#b"));
    assert!((similarity(&a, &b) - 0.81).abs() < 0.06);
    // Shared words bring texts near, others do not.
    let near = similarity(&base, &fake.vector("how do I reset my laptop"));
    assert!((near - 5.0 / 6.0).abs() < 0.1, "{near}");
    assert!(similarity(&base, &fake.vector("weather in Lisbon")).abs() < 0.2);
    assert!((similarity(&base, &fake.vector("Password my RESET i do how")) - 1.0).abs() < 1e-4);
}

#[test]
fn settings_come_from_a_file_and_know_their_keys() {
    let file = r#"
        workers = 2
        queue_tokens_max = 65536
        queue_rows_max = 4096
        batch_tokens_max = 1024
        batch_rows_max = 32
        bulk_rows_max = 4
        bulk_wait_max = "500ms"
        idle_before_bulk = "50ms"
        text_bytes_max = 65536
        texts_max = 256
        memo_bytes_max = 67108864
        memo_ttl = "7days"
        memo_writes_in_flight_max = 16
    "#;
    let settings: Settings = toml::from_str(file).unwrap();
    assert_eq!(settings.memo_ttl, Duration::from_hours(7 * 24));
    assert_eq!(settings.worker_count(), 2);
    assert!(toml::from_str::<Settings>(&format!("{file}\nunknown = 1")).is_err());
    assert!(toml::from_str::<Settings>("workers = 1").is_err(), "every key is required");
}
